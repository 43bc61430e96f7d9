//! The engine of tests: rows in memory, and on request the misbehaviour of real disks and of databases far away.

use std::{
    ops::Bound,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use imbl::OrdMap;
use parking_lot::{Condvar, Mutex};

use super::{Engine, EngineIter, EngineSnapshot, Group};
use crate::{Error, Result, table::Hint};

type Rows = OrdMap<Bytes, Bytes>;

/// A disk that lives in memory. Clones are the same disk, so that a test can open a store again on what it left.
#[derive(Debug, Clone, Default)]
pub struct MemoryDisk {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    disk: Mutex<Disk>,
    released: Condvar,
    rounds: AtomicU64,
}

#[derive(Debug, Default)]
struct Disk {
    rows: Rows,
    faults: Faults,
    random: u64,
    full: bool,
    held: bool,
    /// Counted up by every crash; an engine opened before one cannot write any more.
    life: u64,
}

/// How a [`MemoryDisk`] misbehaves. Probabilities are between 0 and 1; the same seed makes the same choices for the
/// same sequence of calls.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Where the choices come from.
    pub seed: u64,
    /// A commit that has checks answers `Conflict` although nothing changed.
    pub conflict: f64,
    /// A group is written, and yet the answer is `Unknown`.
    pub unknown_written: f64,
    /// A group is not written, and the answer is `Unknown`.
    pub unknown_lost: f64,
    /// A read in a transaction answers `Conflict`, as if the view had become too old.
    pub expired: f64,
    /// The longest time a write takes.
    pub delay: Duration,
}

impl MemoryDisk {
    /// An empty disk that behaves.
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on the disk misbehaves like this.
    pub fn set_faults(&self, faults: Faults) {
        let mut disk = self.shared.disk.lock();
        disk.random = faults.seed;
        disk.faults = faults;
    }

    /// From now on there is (no) space left.
    pub fn set_full(&self, full: bool) {
        self.shared.disk.lock().full = full;
    }

    /// From now on writes do not get to the disk, until [`MemoryDisk::release`]: what is committed stays pending.
    pub fn hold(&self) {
        self.shared.disk.lock().held = true;
    }

    /// Lets held writes go on.
    pub fn release(&self) {
        self.shared.disk.lock().held = false;
        self.shared.released.notify_all();
    }

    /// Pulls the plug: whatever is not on the disk now never gets there. Stores that are open can only read from now
    /// on; open another one to see what is left.
    pub fn crash(&self) {
        let mut disk = self.shared.disk.lock();
        disk.life += 1;
        disk.held = false;
        self.shared.released.notify_all();
    }

    /// How many reads (`get`, `multi_get`, one `scan`) there were on snapshots, views and transactions so far. Take
    /// the difference around a call to assert its budget.
    pub fn read_rounds(&self) -> u64 {
        self.shared.rounds.load(Ordering::Relaxed)
    }

    pub(crate) fn engine(&self) -> MemoryEngine {
        MemoryEngine { shared: Arc::clone(&self.shared), life: self.shared.disk.lock().life }
    }
}

impl Disk {
    /// Says yes with this probability.
    fn chance(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.fraction() < probability
    }

    fn fraction(&mut self) -> f64 {
        // SplitMix64: small, and good enough to choose faults.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn apply(&mut self, group: &Group<'_>) {
        for row in group.iter() {
            match &row.value {
                Some(value) => self.rows.insert(Bytes::copy_from_slice(&row.key), value.clone()),
                None => self.rows.remove(row.key.as_slice()),
            };
        }
    }
}

/// A [`MemoryDisk`] in use by a store.
pub(crate) struct MemoryEngine {
    shared: Arc<Shared>,
    life: u64,
}

impl MemoryEngine {
    fn alive(&self, disk: &Disk) -> Result<()> {
        if disk.life == self.life { Ok(()) } else { Err(Error::Engine("the disk crashed".to_owned())) }
    }
}

impl Engine for MemoryEngine {
    fn snapshot(&self) -> Result<Arc<dyn EngineSnapshot>> {
        Ok(Arc::new(MemorySnapshot(self.shared.disk.lock().rows.clone())))
    }

    fn write(&self, group: &Group<'_>) -> Result<()> {
        let delay = {
            let mut disk = self.shared.disk.lock();
            let longest = disk.faults.delay;
            if longest.is_zero() { longest } else { longest.mul_f64(disk.fraction()) }
        };
        if !delay.is_zero() {
            thread::sleep(delay);
        }
        let mut disk = self.shared.disk.lock();
        while disk.held {
            self.shared.released.wait(&mut disk);
        }
        self.alive(&disk)?;
        if disk.full {
            return Err(Error::Full);
        }
        let (lost, written) = (disk.faults.unknown_lost, disk.faults.unknown_written);
        if disk.chance(lost) {
            return Err(Error::Unknown);
        }
        disk.apply(group);
        if disk.chance(written) { Err(Error::Unknown) } else { Ok(()) }
    }

    fn recover(&self) -> Result<()> {
        let disk = self.shared.disk.lock();
        self.alive(&disk)?;
        if disk.full { Err(Error::Full) } else { Ok(()) }
    }

    fn checkpoint(&self, _: &Path) -> Result<()> {
        Err(Error::Engine("a disk in memory cannot be checkpointed; export it".to_owned()))
    }

    fn compact(&self) -> Result<()> {
        Ok(())
    }

    fn stats(&self) -> Vec<(&'static str, u64)> {
        vec![("rows_estimate", self.shared.disk.lock().rows.len() as u64)]
    }

    fn note_read(&self, in_transaction: bool) -> Result<()> {
        self.shared.rounds.fetch_add(1, Ordering::Relaxed);
        if in_transaction {
            let mut disk = self.shared.disk.lock();
            let expired = disk.faults.expired;
            if disk.chance(expired) {
                return Err(Error::Conflict);
            }
        }
        Ok(())
    }

    fn note_commit(&self, checked: bool) -> Result<()> {
        let mut disk = self.shared.disk.lock();
        let conflict = disk.faults.conflict;
        if checked && disk.chance(conflict) { Err(Error::Conflict) } else { Ok(()) }
    }
}

struct MemorySnapshot(Rows);

impl EngineSnapshot for MemorySnapshot {
    fn get(&self, _: Hint, key: &[u8], found: &mut dyn FnMut(&[u8])) -> Result<()> {
        if let Some(value) = self.0.get(key) {
            found(value);
        }
        Ok(())
    }

    fn scan<'a>(&'a self, _: Hint, low: &[u8], high: &[u8], reversed: bool) -> Box<dyn EngineIter + 'a> {
        let rows = self.0.range::<_, [u8]>((Bound::Included(low), Bound::Excluded(high)));
        let rows: Box<dyn Iterator<Item = _>> = if reversed { Box::new(rows.rev()) } else { Box::new(rows) };
        let mut iter = MemoryIter { rows, row: None };
        iter.advance();
        Box::new(iter)
    }
}

struct MemoryIter<'a> {
    rows: Box<dyn Iterator<Item = (&'a Bytes, &'a Bytes)> + 'a>,
    row: Option<(&'a Bytes, &'a Bytes)>,
}

impl EngineIter for MemoryIter<'_> {
    fn row(&self) -> Option<(&[u8], &[u8])> {
        self.row.map(|(key, value)| (&key[..], &value[..]))
    }

    fn advance(&mut self) {
        self.row = self.rows.next();
    }

    fn status(&self) -> Result<()> {
        Ok(())
    }
}
