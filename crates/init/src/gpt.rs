//! The partition table, as far as it is needed to tell which partition has which identifier.
//!
//! The kernel has read the table, too, and has checked its sums; what is found here counts only where the kernel has a
//! partition of this number at this place (`devices.rs`). So this needs no sums, only bounds.

use std::io::{self, Read, Seek, SeekFrom};

/// Room for far more partitions than any disk has.
const ENTRIES_MAX: u32 = 1024;
const NAME_BYTES: usize = 72;
const ENTRY_BYTES: std::ops::RangeInclusive<u32> = 128..=1024;

/// A partition that is in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Counted from 1, as the kernel does.
    pub number: u32,
    /// In the usual written form, lower case.
    pub uuid: String,
    /// Where it begins, in the disk's own blocks.
    pub first_block: u64,
    pub name: String,
}

/// The entries of the table whose header is in block `header` of the disk.
///
/// # Errors
/// When there is no such table, it makes no sense, or the disk does not answer.
pub fn entries(disk: &mut (impl Read + Seek), block_bytes: u64, header: u64) -> io::Result<Vec<Entry>> {
    let mut head = [0; 92];
    read_at(disk, block_bytes, header, &mut head)?;
    let number = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let (count, entry_bytes) = (number(80), number(84));
    let first = u64::from(number(72)) | u64::from(number(76)) << 32;
    if &head[..8] != b"EFI PART" || count > ENTRIES_MAX || !ENTRY_BYTES.contains(&entry_bytes) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no partition table"));
    }
    let mut table = vec![0; (count * entry_bytes) as usize];
    read_at(disk, block_bytes, first, &mut table)?;
    let numbered = (1..).zip(table.chunks_exact(entry_bytes as usize));
    Ok(numbered.filter_map(|(number, bytes)| entry(number, bytes)).collect())
}

fn read_at(disk: &mut (impl Read + Seek), block_bytes: u64, block: u64, into: &mut [u8]) -> io::Result<()> {
    let at = block.checked_mul(block_bytes).ok_or(io::ErrorKind::InvalidData)?;
    disk.seek(SeekFrom::Start(at))?;
    disk.read_exact(into)
}

/// Without a type it is not in use.
fn entry(number: u32, bytes: &[u8]) -> Option<Entry> {
    let (kind, rest) = bytes.split_first_chunk::<16>()?;
    let (id, rest) = rest.split_first_chunk::<16>()?;
    let first_block = u64::from_le_bytes(*rest.first_chunk()?);
    // Behind it: the last block, and attributes.
    let name = rest.get(24..NAME_BYTES + 24)?;
    (*kind != [0; 16]).then(|| Entry { number, uuid: written(id), first_block, name: text(name) })
}

/// UTF-16, up to the first zero.
fn text(name: &[u8]) -> String {
    let units = name.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    String::from_utf16_lossy(&units.take_while(|unit| *unit != 0).collect::<Vec<_>>())
}

/// The first three groups stand with their lowest byte first.
fn written(id: &[u8; 16]) -> String {
    const ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    crate::roothash::uuid(&ORDER.map(|at| id[at]))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Cursor;

    use super::*;

    /// A disk with a table in block `header`, its entries behind it: identifiers and first blocks. Their names are
    /// `part-1` and so on.
    pub(crate) fn disk(block_bytes: usize, header: usize, parts: &[(&str, u64)]) -> Vec<u8> {
        let mut bytes = vec![0; (header + 34) * block_bytes];
        let head = &mut bytes[header * block_bytes..][..92];
        head[..8].copy_from_slice(b"EFI PART");
        head[72..80].copy_from_slice(&(header as u64 + 1).to_le_bytes());
        head[80..84].copy_from_slice(&128_u32.to_le_bytes());
        head[84..88].copy_from_slice(&128_u32.to_le_bytes());
        for (n, (uuid, first)) in parts.iter().enumerate() {
            let entry = &mut bytes[(header + 1) * block_bytes + n * 128..][..128];
            let digits = uuid.replace('-', "");
            let byte = |at: usize| u8::from_str_radix(&digits[at * 2..at * 2 + 2], 16).unwrap();
            let order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
            entry[0] = u8::from(!uuid.starts_with("00000000-0000-0000-0000-000000000000"));
            entry[16..32].copy_from_slice(&order.map(byte));
            entry[32..40].copy_from_slice(&first.to_le_bytes());
            for (to, unit) in entry[56..].chunks_exact_mut(2).zip(format!("part-{}", n + 1).encode_utf16()) {
                to.copy_from_slice(&unit.to_le_bytes());
            }
        }
        bytes
    }

    const UUID: &str = "00112233-4455-6677-8899-aabbccddeeff";
    const UNUSED: &str = "00000000-0000-0000-0000-000000000000";

    #[test]
    fn entries_in_use_keep_their_numbers() {
        for block_bytes in [512, 4096] {
            let mut disk = Cursor::new(disk(block_bytes, 1, &[(UNUSED, 0), (UUID, 2048)]));
            let expected = Entry { number: 2, uuid: UUID.to_owned(), first_block: 2048, name: "part-2".to_owned() };
            assert_eq!(entries(&mut disk, block_bytes as u64, 1).unwrap(), [expected]);
        }
    }

    #[test]
    fn what_is_no_table_is_refused() {
        let good = disk(512, 1, &[(UUID, 2048)]);
        let read = |bytes: Vec<u8>| entries(&mut Cursor::new(bytes), 512, 1).is_ok();
        let with = |at: usize, value: &[u8]| {
            let mut bytes = good.clone();
            bytes[at..at + value.len()].copy_from_slice(value);
            bytes
        };
        assert!(read(good.clone()));
        assert!(!read(with(512, b"efi part")));
        assert!(!read(with(512 + 80, &u32::MAX.to_le_bytes())));
        assert!(!read(with(512 + 84, &0_u32.to_le_bytes())));
        assert!(!read(with(512 + 84, &u32::MAX.to_le_bytes())));
        assert!(!read(with(512 + 72, &u64::MAX.to_le_bytes())));
        assert!(!read(with(512 + 72, &1_000_000_u64.to_le_bytes())));
        assert!(!read(good[..2000].to_vec()));
        assert!(!read(Vec::new()));
    }
}
