//! What a fuzzer drives: the partition table of a disk that somebody else has had in their hands, read by the updater and by
//! the first process of the system. Both must come back, whatever the bytes are, and panic when an answer is wrong. The
//! inputs that were worth keeping are replayed by the tests here.
//!
//! An input begins with `r` (the bytes as they are) or `s` (checksums are made right first, where luck does not lead), and
//! the number of the disk's sectors. Behind them: both headers, and what lies behind the first and before the second.

#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::io::{self, Cursor};

use bundle::{Arch, Digest};

use crate::disk::{Disk, SECTOR};
use crate::gpt::{Guid, Partition, Table, crc32};
use crate::slots::{Booted, Slots};

/// The name of the target.
pub const TARGET: &str = "gpt";

const BLOCK: usize = SECTOR as usize;
/// Bytes of a header in an input.
const HEADER: usize = 92;
const LEAST: usize = 8;

/// # Panics
/// If an answer is wrong.
pub fn run(input: &[u8]) {
    let Some(([kind, sectors], rest)) = input.split_first_chunk() else { return };
    let sectors = usize::from(*sectors).max(LEAST);
    let mut bytes = vec![0; sectors * BLOCK];
    let places = [(BLOCK, HEADER), ((sectors - 1) * BLOCK, HEADER), (2 * BLOCK, BLOCK), ((sectors - 2) * BLOCK, BLOCK)];
    let mut rest = rest.iter();
    for (at, len) in places {
        bytes.iter_mut().skip(at).take(len).zip(&mut rest).for_each(|(to, from)| *to = *from);
    }
    if *kind == b's' {
        [1, sectors - 1].into_iter().for_each(|header| make_right(&mut bytes, header * BLOCK));
    }
    first_process(&bytes, sectors as u64);
    updater(bytes);
}

fn u32_at(bytes: &[u8], at: usize) -> usize {
    bytes
        .get(at..at + 4)
        .and_then(|number| number.try_into().ok())
        .map_or(0, |number| u32::from_le_bytes(number) as usize)
}

fn put(bytes: &mut [u8], at: usize, new: &[u8]) {
    if let Some(to) = bytes.get_mut(at..at + new.len()) {
        to.copy_from_slice(new);
    }
}

/// The checksums of a header, where it lets them be computed.
fn make_right(bytes: &mut [u8], at: usize) {
    let (entries, count) = (u32_at(bytes, at + 72), u32_at(bytes, at + 80));
    let Some(from) = entries.checked_mul(BLOCK) else { return };
    let Some(table) = count.checked_mul(128).and_then(|len| bytes.get(from..from.checked_add(len)?)) else { return };
    let sum = crc32(table);
    put(bytes, at + 88, &sum.to_le_bytes());
    put(bytes, at + 16, &[0; 4]);
    let len = u32_at(bytes, at + 12);
    let Some(header) = bytes.get(at..at.saturating_add(len)).filter(|_| len <= BLOCK) else { return };
    let sum = crc32(header);
    put(bytes, at + 16, &sum.to_le_bytes());
}

/// Takes what it finds as it is: the kernel has looked at the sums.
fn first_process(bytes: &[u8], sectors: u64) {
    for (block, header) in [(512, 1), (512, sectors - 1), (4096, 1), (4096, u64::MAX), (u64::MAX, 2)] {
        if let Ok(entries) = init::gpt::entries(&mut Cursor::new(bytes), block, header) {
            assert!(entries.iter().all(|entry| entry.uuid.len() == 36));
        }
    }
}

fn updater(bytes: Vec<u8>) {
    let disk = Memory(RefCell::new(bytes));
    let Ok(mut table) = Table::read(&disk) else { return };
    let before = table.partitions();
    let size = disk.0.borrow().len() as u64;
    assert!(before.iter().all(|one| one.at + one.bytes <= size), "a partition behind the end");
    if !table.needs_repair() {
        the_same(&disk, &table);
    }
    let booted = Booted { version: "1".into(), root_hash: Some(Digest([7; 32])) };
    let _ = Slots::find(&table, Arch::X86_64, &booted);
    for one in &before {
        assert!(table.name(one.index, "skerry_1.2.0", Some(Guid([7; 16]))).is_ok());
    }
    let untouched = disk.0.borrow().clone();
    if table.write(&disk).is_err() {
        assert_eq!(untouched, *disk.0.borrow(), "all or nothing");
        return;
    }
    for one in &before {
        let place = one.at as usize..(one.at + one.bytes) as usize;
        assert_eq!(untouched.get(place.clone()), disk.0.borrow().get(place), "a partition was written over");
    }
    let again = Table::read(&disk);
    assert!(again.is_ok(), "what was written cannot be read");
    let Ok(again) = again else { return };
    assert!(!again.needs_repair(), "only one copy was written");
    let places = |all: Vec<Partition>| all.into_iter().map(|p| (p.index, p.kind, p.at, p.bytes)).collect::<Vec<_>>();
    assert_eq!(places(again.partitions()), places(before), "names change nothing else");
    assert!(again.partitions().iter().all(|one| one.label == "skerry_1.2.0" && one.id == Guid([7; 16])));
}

/// A table that is whole says the same to both readers.
fn the_same(disk: &Memory, table: &Table) {
    let read = init::gpt::entries(&mut Cursor::new(&*disk.0.borrow()), SECTOR, 1);
    let theirs =
        read.map(|all| all.into_iter().map(|one| (one.number as usize, one.uuid, one.first_block)).collect::<Vec<_>>());
    let ours: Vec<_> =
        table.partitions().iter().map(|one| (one.index + 1, one.id.to_string(), one.at / SECTOR)).collect();
    assert_eq!(theirs.ok(), Some(ours));
}

struct Memory(RefCell<Vec<u8>>);

impl Disk for Memory {
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.borrow().len() as u64)
    }

    fn read_at(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        let at = usize::try_from(at).map_err(io::Error::other)?;
        let disk = self.0.borrow();
        let there = disk.get(at..at.saturating_add(bytes.len())).ok_or(io::ErrorKind::UnexpectedEof)?;
        bytes.copy_from_slice(there);
        Ok(())
    }

    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let at = usize::try_from(at).map_err(io::Error::other)?;
        let mut disk = self.0.borrow_mut();
        let there = disk.get_mut(at..at.saturating_add(bytes.len())).ok_or(io::ErrorKind::InvalidInput)?;
        there.copy_from_slice(bytes);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}
