//! A good release whose file and root image have more than four gibibytes: nobody counts with 32 bits.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;

use bundle::testing::{Large, large_chunk};

use super::media::Sector;
use super::paths::ESP;
use super::world::World;
use crate::disk::{Disk, SECTOR};
use crate::gpt::Table;
use crate::slots::ids;
use crate::testing::{self, ROOT_KIND, VERITY_KIND, partition};
use crate::updater::Updater;
use crate::{Guid, State};

const CHUNK: u64 = 256 * 1024;
const CHUNKS: u64 = (4 << 30) / CHUNK + 8;
const SLOT: u64 = CHUNKS * CHUNK;
const VERITY: u64 = 1 << 20;
const AT: u64 = 1 << 20;

/// A disk on which the root image may only be written where it belongs: it remembers how far that went.
struct Vast {
    others: RefCell<BTreeMap<u64, Sector>>,
    written: Cell<u64>,
}

/// Where the slot that is written begins.
const ROOT_B: u64 = AT + SLOT + VERITY;

impl Vast {
    fn new(old: [Guid; 2]) -> Self {
        let disk = Self { others: RefCell::default(), written: Cell::new(0) };
        let entries = [
            partition(ROOT_KIND, old[0], "skerry_1.1.0", AT, SLOT),
            partition(VERITY_KIND, old[1], "skerry_1.1.0_verity", AT + SLOT, VERITY),
            partition(ROOT_KIND, Guid([4; 16]), "_empty", ROOT_B, SLOT),
            partition(VERITY_KIND, Guid([5; 16]), "_empty", ROOT_B + SLOT, VERITY),
        ];
        for (at, bytes) in testing::table(disk.size().unwrap(), &entries) {
            disk.write_at(at, &bytes).unwrap();
        }
        disk
    }

    /// Goes through the pieces of a stretch: of the root image (where in it), and of the rest (which sector).
    fn pieces(at: u64, len: usize, mut piece: impl FnMut(bool, u64, usize, std::ops::Range<usize>)) {
        let (mut at, mut from) = (at, 0);
        while from < len {
            let inside = (ROOT_B..ROOT_B + SLOT).contains(&at);
            let (place, size) = if inside { (at - ROOT_B, CHUNK) } else { (at, SECTOR) };
            let within = (place % size) as usize;
            let take = (size as usize - within).min(len - from);
            piece(inside, place / size, within, from..from + take);
            (at, from) = (at + take as u64, from + take);
        }
    }
}

impl Disk for Vast {
    fn size(&self) -> io::Result<u64> {
        Ok(ROOT_B + SLOT + VERITY + AT)
    }

    fn read_at(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        Self::pieces(at, bytes.len(), |inside, number, within, range| {
            let (sector, chunk);
            let there: &[u8] = if inside && number * CHUNK < self.written.get() {
                chunk = large_chunk(number);
                &chunk[within..]
            } else {
                sector = self.others.borrow().get(&number).copied().unwrap_or([0; SECTOR as usize]);
                &sector[within..]
            };
            let len = range.len();
            bytes[range].copy_from_slice(&there[..len]);
        });
        Ok(())
    }

    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        Self::pieces(at, bytes.len(), |inside, number, within, range| {
            if inside {
                assert_eq!(self.written.get(), number * CHUNK + within as u64, "one after the other");
                assert!(large_chunk(number)[within..within + range.len()] == bytes[range.clone()], "at chunk {number}");
                self.written.set(self.written.get() + range.len() as u64);
            } else {
                let mut others = self.others.borrow_mut();
                others.entry(number).or_insert([0; SECTOR as usize])[within..within + range.len()]
                    .copy_from_slice(&bytes[range]);
            }
        });
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_good_file_of_more_than_four_gibibytes_is_installed() {
    let file = Large::new(CHUNKS);
    assert!(file.len() > 4 << 30);
    let mut world = World::new(ESP);
    world.settle().unwrap();
    let updater = world.updater();
    let old = updater.booted.root_hash.unwrap();
    let disk = Vast::new(ids(&old));
    let updater = Updater { disk: &disk, ..updater };
    let plan = updater.stage(file, "officer", &mut |_, _, _| {}).unwrap();
    assert_eq!((plan.bytes, disk.written.get()), (SLOT + 22, SLOT));
    let journal = updater.journal().unwrap();
    assert!(matches!(journal.state, State::Staged { whole: true, .. }), "{:?}", journal.state);
    let names: Vec<String> = Table::read(&disk).unwrap().partitions().into_iter().map(|one| one.label).collect();
    assert_eq!(names, ["skerry_1.1.0", "skerry_1.1.0_verity", "skerry_1.2.0", "skerry_1.2.0_verity"]);
}
