//! Disks for tests, the fuzzer and the benchmark: a partition table over what they say.
#![allow(clippy::missing_panics_doc, clippy::unwrap_used, clippy::indexing_slicing, reason = "for tests")]

use crate::disk::SECTOR;
use crate::gpt::{Guid, crc32};

/// What partitions are, in the Discoverable Partitions Specification: root and hash tree are those of x86_64.
pub const ESP_KIND: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";
pub const ROOT_KIND: &str = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709";
pub const VERITY_KIND: &str = "2c7357ed-ebd2-46d9-aec1-23d437ec2bf5";

/// An entry of the table. Places are in bytes.
pub fn partition(kind: &str, id: Guid, label: &str, at: u64, bytes: u64) -> [u8; 128] {
    let mut entry = [0; 128];
    entry[..16].copy_from_slice(&Guid::parse(kind).unwrap().to_disk());
    entry[16..32].copy_from_slice(&id.to_disk());
    entry[32..40].copy_from_slice(&(at / SECTOR).to_le_bytes());
    entry[40..48].copy_from_slice(&((at + bytes) / SECTOR - 1).to_le_bytes());
    for (unit, place) in label.encode_utf16().zip(entry[56..].chunks_exact_mut(2)) {
        place.copy_from_slice(&unit.to_le_bytes());
    }
    entry
}

/// Both copies of a table with 128 entries, for a disk of this many bytes: what to write where.
pub fn table(disk_bytes: u64, entries: &[[u8; 128]]) -> Vec<(u64, Vec<u8>)> {
    let mut array = entries.concat();
    array.resize(128 * 128, 0);
    let last = disk_bytes / SECTOR - 1;
    let mut pieces = Vec::new();
    for (at, other, entries_at) in [(1, last, 2), (last, 1, last - 32)] {
        let mut header = vec![0_u8; 92];
        header[..8].copy_from_slice(b"EFI PART");
        header[8..12].copy_from_slice(&0x1_0000_u32.to_le_bytes());
        header[12..16].copy_from_slice(&92_u32.to_le_bytes());
        for (place, number) in [(24, at), (32, other), (40, 34), (48, last - 33), (72, entries_at)] {
            header[place..place + 8].copy_from_slice(&number.to_le_bytes());
        }
        header[56..72].copy_from_slice(&[9; 16]);
        for (place, number) in [(80, 128_u32), (84, 128), (88, crc32(&array))] {
            header[place..place + 4].copy_from_slice(&number.to_le_bytes());
        }
        let sum = crc32(&header);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        pieces.push((at * SECTOR, header));
        pieces.push((entries_at * SECTOR, array.clone()));
    }
    pieces
}
