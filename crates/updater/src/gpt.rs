//! The partition table of a disk: read with every bound checked, and changed without a moment in which no good copy is
//! there.
//!
//! Lives here: both copies, their checksums, names of partitions. Not here: which partition means what (slots.rs). What is
//! never changed here: where partitions begin and end, and what kind they are.

use std::fmt;
use std::io;

use crate::disk::{Disk, SECTOR};

const SIGNATURE: &[u8; 8] = b"EFI PART";
const ENTRY: usize = 128;
/// The smallest header, and the largest that fits its sector.
const HEADER: std::ops::RangeInclusive<usize> = 92..=SECTOR as usize;
const MOST_ENTRIES: u32 = 1024;
/// UTF-16 units of a label.
const LABEL: usize = 36;

/// A GUID in the order in which people write it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Guid(pub [u8; 16]);

/// A partition, as the table names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its place in the table.
    pub index: usize,
    pub kind: Guid,
    pub id: Guid,
    pub label: String,
    /// Where it begins on the disk, in bytes.
    pub at: u64,
    pub bytes: u64,
}

/// Why a partition table is not used.
#[derive(Debug, thiserror::Error)]
pub enum GptError {
    #[error("The disk cannot be read or written: {0}")]
    Io(#[from] io::Error),
    #[error("The disk has no partition table that is whole ({primary}; {backup}).")]
    NoTable { primary: &'static str, backup: &'static str },
    #[error("The partition table has no partition {0}.")]
    NoPartition(usize),
    #[error("The copies of the partition table lie on one another, or on a partition.")]
    Overlap,
    #[error("A partition's label has at most 36 characters: {0}")]
    Label(String),
}

/// A partition table.
#[derive(Clone, Debug)]
pub struct Table {
    header: Vec<u8>,
    entries: Vec<u8>,
    primary_at: u64,
    backup_at: u64,
    /// Where the entries lie, of the primary and of the backup.
    entries_at: [u64; 2],
    primary: Health,
    backup: Health,
}

/// What a copy is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Same,
    /// Whole, but it says something else.
    Other,
    Damaged,
}

/// One copy as it lies there.
struct Copy {
    header: Vec<u8>,
    entries: Vec<u8>,
    entries_at: u64,
    alternate: u64,
}

impl Table {
    /// Reads the primary copy, or the backup where the primary is damaged.
    ///
    /// # Errors
    /// Neither copy is whole, or the disk fails.
    pub fn read(disk: &dyn Disk) -> Result<Self, GptError> {
        let sectors = disk.size()? / SECTOR;
        let primary = Copy::read(disk, 1, sectors)?;
        // The primary says where the backup is: a disk may have grown since.
        let last = sectors.saturating_sub(1);
        let backup_at = primary.as_ref().map_or(last, |copy| copy.alternate);
        let backup_at = if backup_at < sectors { backup_at } else { last };
        let backup = Copy::read(disk, backup_at, sectors)?;
        match (primary, backup) {
            (Ok(primary), Ok(backup)) => {
                let same = primary.says_the_same(&backup);
                let at = [primary.entries_at, backup.entries_at];
                let health = if same { Health::Same } else { Health::Other };
                Ok(Self::new(primary, backup_at, at, [Health::Same, health]))
            }
            (Ok(primary), Err(_)) => {
                let at = [primary.entries_at, backup_at.saturating_sub(primary.entry_sectors())];
                Ok(Self::new(primary, backup_at, at, [Health::Same, Health::Damaged]))
            }
            (Err(_), Ok(backup)) => {
                let at = [2, backup.entries_at];
                Ok(Self::new(backup, backup_at, at, [Health::Damaged, Health::Same]))
            }
            (Err(primary), Err(backup)) => Err(GptError::NoTable { primary, backup }),
        }
    }

    fn new(copy: Copy, backup_at: u64, entries_at: [u64; 2], [primary, backup]: [Health; 2]) -> Self {
        let Copy { header, entries, .. } = copy;
        Self { header, entries, primary_at: 1, backup_at, entries_at, primary, backup }
    }

    /// Whether one of the copies is damaged or lags behind.
    pub fn needs_repair(&self) -> bool {
        self.primary != Health::Same || self.backup != Health::Same
    }

    /// The partitions, in the order of the table.
    pub fn partitions(&self) -> Vec<Partition> {
        let used = self.entries.chunks_exact(ENTRY).enumerate();
        used.filter_map(|(index, entry)| Partition::parse(index, entry)).collect()
    }

    /// Gives a partition another label, and another identity where one is given.
    ///
    /// # Errors
    /// There is no such partition, or the label is too long.
    pub fn name(&mut self, index: usize, label: &str, id: Option<Guid>) -> Result<(), GptError> {
        let units: Vec<u16> = label.encode_utf16().collect();
        if units.len() > LABEL {
            return Err(GptError::Label(label.to_owned()));
        }
        let entry =
            self.entries.chunks_exact_mut(ENTRY).nth(index).filter(|entry| Partition::parse(index, entry).is_some());
        let entry = entry.ok_or(GptError::NoPartition(index))?;
        if let Some(id) = id {
            put(entry, 16, &id.to_disk());
        }
        let mut text: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        text.resize(LABEL * 2, 0);
        put(entry, 56, &text);
        Ok(())
    }

    /// Writes both copies, one after the other, each durable before the next: first the one that is damaged, so that the
    /// only good one is never touched.
    ///
    /// # Errors
    /// The disk fails; or the table is such that something else would be written over: then nothing is written.
    pub fn write(&mut self, disk: &dyn Disk) -> Result<(), GptError> {
        self.has_room(disk.size()? / SECTOR)?;
        let places = [
            (self.primary_at, self.backup_at, self.entries_at[0]),
            (self.backup_at, self.primary_at, self.entries_at[1]),
        ];
        let order = if self.primary == Health::Damaged { [0, 1] } else { [1, 0] };
        for (at, alternate, entries_at) in order.map(|place| places[place]) {
            disk.write_at(entries_at * SECTOR, &self.entries)?;
            disk.write_at(at * SECTOR, &self.header_for(at, alternate, entries_at))?;
            disk.sync()?;
        }
        (self.primary, self.backup) = (Health::Same, Health::Same);
        Ok(())
    }

    /// Headers, entries and partitions must lie beside one another.
    fn has_room(&self, sectors: u64) -> Result<(), GptError> {
        let len = (self.entries.len() as u64).div_ceil(SECTOR);
        let mut used = vec![(0, 1), (self.primary_at, 1), (self.backup_at, 1)];
        used.extend(self.entries_at.map(|at| (at, len)));
        let tables = used.len();
        used.extend(self.partitions().iter().map(|one| (one.at / SECTOR, one.bytes / SECTOR)));
        let apart = |(a, a_len): (u64, u64), (b, b_len): (u64, u64)| a + a_len <= b || b + b_len <= a;
        let beside = |nr: usize, one: (u64, u64)| used.iter().skip(nr + 1).all(|other| apart(one, *other));
        let inside = used.iter().all(|(at, len)| at.saturating_add(*len) <= sectors);
        let free = inside && used.iter().take(tables).enumerate().all(|(nr, one)| beside(nr, *one));
        if free { Ok(()) } else { Err(GptError::Overlap) }
    }

    fn header_for(&self, at: u64, alternate: u64, entries_at: u64) -> Vec<u8> {
        let mut sector = self.header.clone();
        put(&mut sector, 24, &at.to_le_bytes());
        put(&mut sector, 32, &alternate.to_le_bytes());
        put(&mut sector, 72, &entries_at.to_le_bytes());
        put(&mut sector, 88, &crc32(&self.entries).to_le_bytes());
        let sum = header_crc(&sector).unwrap_or_default();
        put(&mut sector, 16, &sum.to_le_bytes());
        sector
    }
}

impl Copy {
    /// The copy whose header is at a sector, or what is wrong with it.
    fn read(disk: &dyn Disk, at: u64, sectors: u64) -> io::Result<Result<Self, &'static str>> {
        if at == 0 || at >= sectors {
            return Ok(Err("there is no place for it"));
        }
        let mut header = vec![0; SECTOR as usize];
        disk.read_at(at * SECTOR, &mut header)?;
        let (entries_at, entries_len, alternate) = match Self::places(&header, at, sectors) {
            Ok(places) => places,
            Err(why) => return Ok(Err(why)),
        };
        let mut entries = vec![0; entries_len];
        disk.read_at(entries_at * SECTOR, &mut entries)?;
        if u32_at(&header, 88) != Some(crc32(&entries)) {
            return Ok(Err("the checksum of its entries is wrong"));
        }
        let first_last = |entry: &[u8]| Some((u64_at(entry, 32)?, u64_at(entry, 40)?));
        let inside = |entry: &[u8]| {
            free(entry) || first_last(entry).is_some_and(|(first, last)| first <= last && last < sectors)
        };
        if !entries.chunks_exact(ENTRY).all(inside) {
            return Ok(Err("a partition lies outside of the disk"));
        }
        Ok(Ok(Self { header, entries, entries_at, alternate }))
    }

    /// Where the entries are, how many bytes, and where the other copy is.
    fn places(header: &[u8], at: u64, sectors: u64) -> Result<(u64, usize, u64), &'static str> {
        if !header.starts_with(SIGNATURE) {
            return Err("there is none");
        }
        if header_crc(header).is_none_or(|sum| u32_at(header, 16) != Some(sum)) {
            return Err("the checksum of its header is wrong");
        }
        let number = |place| u64_at(header, place).ok_or("it is cut off");
        let (count, size) = (u32_at(header, 80).unwrap_or(0), u32_at(header, 84).unwrap_or(0));
        if size as usize != ENTRY || count == 0 || count > MOST_ENTRIES {
            return Err("its entries are of a size that is not known");
        }
        if number(24)? != at {
            return Err("it is not where it says it is");
        }
        let (entries_at, len) = (number(72)?, count as usize * ENTRY);
        let end = entries_at.saturating_add((len as u64).div_ceil(SECTOR));
        if entries_at < 2 || end > sectors || (entries_at..end).contains(&at) {
            return Err("its entries lie outside of the disk");
        }
        Ok((entries_at, len, number(32)?))
    }

    fn says_the_same(&self, other: &Self) -> bool {
        // The disk's own identity and the bounds of what may be used; the rest differs by the place.
        self.entries == other.entries && self.header.get(40..72) == other.header.get(40..72)
    }

    fn entry_sectors(&self) -> u64 {
        (self.entries.len() as u64).div_ceil(SECTOR)
    }
}

impl Partition {
    fn parse(index: usize, entry: &[u8]) -> Option<Self> {
        if free(entry) {
            return None;
        }
        let (first, last) = (u64_at(entry, 32)?, u64_at(entry, 40)?);
        let units = entry.get(56..56 + LABEL * 2)?.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
        let label = String::from_utf16_lossy(&units.take_while(|unit| *unit != 0).collect::<Vec<_>>());
        Some(Self {
            index,
            kind: Guid::from_disk(entry.get(..16)?)?,
            id: Guid::from_disk(entry.get(16..32)?)?,
            label,
            at: first.checked_mul(SECTOR)?,
            bytes: last.checked_sub(first)?.checked_add(1)?.checked_mul(SECTOR)?,
        })
    }
}

fn free(entry: &[u8]) -> bool {
    entry.iter().take(16).all(|byte| *byte == 0)
}

fn put(bytes: &mut [u8], at: usize, new: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + new.len()) {
        place.copy_from_slice(new);
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// The checksum of a header, whose own place counts as zero.
fn header_crc(sector: &[u8]) -> Option<u32> {
    let len = u32_at(sector, 12)? as usize;
    let mut header = sector.get(..len).filter(|_| HEADER.contains(&len))?.to_vec();
    put(&mut header, 16, &[0; 4]);
    Some(crc32(&header))
}

/// The CRC of Ethernet, zip and GPT.
pub(crate) fn crc32(bytes: &[u8]) -> u32 {
    let next = |crc: u32, byte: &u8| crc >> 8 ^ CRCS[((crc ^ u32::from(*byte)) & 0xff) as usize];
    !bytes.iter().fold(!0, next)
}

/// What each value of a byte does to the checksum.
const CRCS: [u32; 256] = {
    let (mut all, mut byte) = ([0; 256], 0);
    while byte < 256 {
        let (mut crc, mut bit) = (byte as u32, 0);
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 };
            bit += 1;
        }
        all[byte] = crc;
        byte += 1;
    }
    all
};

impl Guid {
    /// As it lies on a disk: the first three groups are numbers, lowest byte first.
    pub(crate) fn to_disk(self) -> [u8; 16] {
        let [a, b, c, d, e, f, g, h, rest @ ..] = self.0;
        let mut bytes = [d, c, b, a, f, e, h, g, 0, 0, 0, 0, 0, 0, 0, 0];
        put(&mut bytes, 8, &rest);
        bytes
    }

    fn from_disk(bytes: &[u8]) -> Option<Self> {
        Some(Self(Self(bytes.try_into().ok()?).to_disk()))
    }

    /// From the spelling of [`fmt::Display`], in small or large letters.
    pub fn parse(text: &str) -> Option<Self> {
        let shape =
            text.len() == 36 && text.is_ascii() && [8, 13, 18, 23].iter().all(|at| text.as_bytes()[*at] == b'-');
        let digits: String = text.chars().filter(|c| *c != '-').collect();
        if !shape || digits.len() != 32 || !digits.chars().all(|c| c.is_ascii_hexdigit()) {
            return None;
        }
        Some(Self(u128::from_str_radix(&digits, 16).ok()?.to_be_bytes()))
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            let dash = if [4, 6, 8, 10].contains(&at) { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
