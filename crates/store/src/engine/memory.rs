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

/// One map per hint, like the column families of a real engine.
type Rows = [OrdMap<Bytes, Bytes>; Hint::ALL.len()];

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

    /// Another disk with the same on it, and no faults.
    pub fn copy(&self) -> Self {
        let rows = self.shared.disk.lock().rows.clone();
        let disk = Mutex::new(Disk { rows, ..Disk::default() });
        Self { shared: Arc::new(Shared { disk, ..Shared::default() }) }
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
            let rows = &mut self.rows[row.hint as usize];
            match &row.value {
                Some(value) => rows.insert(Bytes::copy_from_slice(&row.key), value.clone()),
                None => rows.remove(row.key.as_slice()),
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
        vec![("rows_estimate", self.shared.disk.lock().rows.iter().map(OrdMap::len).sum::<usize>() as u64)]
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
    fn get(&self, hint: Hint, key: &[u8], found: &mut dyn FnMut(&[u8])) -> Result<()> {
        if let Some(value) = self.0[hint as usize].get(key) {
            found(value);
        }
        Ok(())
    }

    fn scan<'a>(&'a self, hint: Hint, low: &[u8], high: &[u8], reversed: bool) -> Box<dyn EngineIter + 'a> {
        let rows = self.0[hint as usize].range::<_, [u8]>((Bound::Included(low), Bound::Excluded(high)));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Batch, Pos, Read, Store,
        contract::{InMemory, Place, counter, put_counter, run},
        journal,
        table::Table,
    };

    static COUNTERS: Table<u64, u64> = Table::new(1, "counters", Hint::Small, None, "numbers");

    fn put(value: u64) -> Batch {
        let mut batch = Batch::new();
        batch.put(&COUNTERS, 1, &value);
        batch
    }

    async fn increment(store: &Store) -> Result<u64> {
        let committed = store
            .transact(|tx| {
                let next = tx.get(&COUNTERS, 1)?.unwrap_or_default() + 1;
                tx.put(&COUNTERS, 1, &next);
                Ok::<_, Error>(next)
            })
            .await;
        committed.map(|committed| committed.value)
    }

    /// Waits until the store takes writes again.
    async fn recovered(store: &Store) {
        while store.health().is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[test]
    fn what_is_held_is_pending_and_not_durable() {
        let place = InMemory::new();
        let store = place.open();
        place.0.hold();
        let tickets: Vec<_> = (1..=5).map(|value| store.commit(put(value)).unwrap()).collect();
        assert_eq!(
            (counter(&store.latest(), 1), counter(&store.snapshot(), 1), store.tip()),
            (Some(5), None, Pos::ZERO)
        );
        run(async {
            // A read-only transaction that saw pending data answers only when that is durable.
            let reading = {
                let store = store.clone();
                tokio::spawn(async move { store.transact(|tx| tx.get(&COUNTERS, 1)).await })
            };
            let blind = store.transact(|tx| tx.get(&COUNTERS, 2)).await.unwrap();
            assert_eq!(blind.value, None, "one that saw none of it does not wait");
            assert_eq!(blind.version, Pos::ZERO, "nor does it know of versions that may be lost");
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert!(!reading.is_finished());
            place.0.release();
            let read = reading.await.unwrap().unwrap();
            assert_eq!(read.value, Some(5));
            for ticket in tickets {
                assert!(ticket.durable().await.unwrap().version <= store.tip());
            }
        });
    }

    #[test]
    fn by_hand_nothing_is_written_before_the_step() {
        let disk = MemoryDisk::new();
        let (store, committer) = Store::open_manual(disk.clone()).unwrap();
        assert!(!committer.step(), "nothing to do");
        let ticket = store.commit(put(1)).unwrap();
        assert_eq!((counter(&store.latest(), 1), counter(&store.snapshot(), 1)), (Some(1), None));
        assert!(committer.step());
        assert_eq!(counter(&store.snapshot(), 1), Some(1));
        ticket.durable_blocking().unwrap();

        disk.set_full(true);
        let ticket = store.commit(put(2)).unwrap();
        assert!(committer.step(), "fails");
        assert!(matches!(ticket.durable_blocking(), Err(Error::Full)));
        assert!(!committer.step(), "does not recover");
        assert!(matches!(store.commit(put(3)), Err(Error::Full)));
        disk.set_full(false);
        assert!(committer.step(), "recovers");
        let ticket = store.commit(put(4)).unwrap();
        assert!(committer.step() && !committer.step());
        ticket.durable_blocking().unwrap();
        assert_eq!(counter(&Store::open(disk).unwrap().snapshot(), 1), Some(4));
    }

    #[test]
    fn a_crash_leaves_exactly_the_durable_prefix() {
        let place = InMemory::new();
        let store = place.open();
        put_counter(&store, 1, 1);
        put_counter(&store, 1, 2);
        place.0.hold();
        let lost: Vec<_> = (3..=6).map(|value| store.commit(put(value)).unwrap()).collect();
        place.0.crash();
        for ticket in lost {
            assert!(matches!(ticket.durable_blocking(), Err(Error::Engine(_))));
        }
        assert_eq!(counter(&store.snapshot(), 1), Some(2), "reads go on");
        assert_eq!(counter(&store.latest(), 1), Some(2));
        assert!(matches!(store.commit(put(7)), Err(Error::Engine(_))));
        let after = place.open();
        assert_eq!((after.tip(), counter(&after.snapshot(), 1)), (Pos(2), Some(2)));
        put_counter(&after, 1, 3);
    }

    #[test]
    fn a_full_disk_fails_what_is_queued_and_recovers_when_space_returns() {
        let place = InMemory::new();
        let store = place.open();
        put_counter(&store, 1, 1);
        let before = store.latest();
        place.0.hold();
        let first = store.commit(put(2)).unwrap();
        let second = store.commit(put(3)).unwrap();
        let seen = store.latest();
        place.0.set_full(true);
        place.0.release();
        assert!(matches!(first.durable_blocking(), Err(Error::Full)));
        assert!(matches!(second.durable_blocking(), Err(Error::Full)));
        run(async {
            assert!(matches!(store.settled(&seen).await, Err(Error::Unknown)), "what was seen will never be durable");
            assert!(store.settled(&before).await.is_err() || store.tip() >= before.version());
            assert!(matches!(increment(&store).await, Err(Error::Full)));
            assert_eq!(counter(&store.latest(), 1), Some(1));
            place.0.set_full(false);
            recovered(&store).await;
            assert_eq!(increment(&store).await.unwrap(), 2);
        });
        assert!(store.tip() > seen.version(), "no position is given out twice");
        let mut stale = put(9);
        stale.check_unchanged(&COUNTERS, 5, seen.version());
        assert!(matches!(store.commit(stale), Err(Error::Conflict)), "decided on what was lost");
        drop(store);
        assert_eq!(counter(&place.open().snapshot(), 1), Some(2));
    }

    #[test]
    fn faults_cost_retries_but_no_update() {
        for seed in 0..8 {
            let place = InMemory::new();
            let store = place.open();
            let told = Arc::new(AtomicU64::new(0));
            let tap = Arc::clone(&told);
            store.hub().tap(move |commits| {
                let values = commits.iter().flat_map(|commit| commit.writes_to(&COUNTERS));
                values.for_each(|row| tap.store(row.unwrap().1.unwrap(), Ordering::Relaxed));
            });
            place.0.set_faults(Faults {
                seed,
                conflict: 0.2,
                expired: 0.1,
                unknown_written: 0.05,
                unknown_lost: 0.05,
                delay: Duration::from_micros(200),
            });
            let (sure, maybe) = run(async {
                let tasks: Vec<_> = (0..4).map(|_| tokio::spawn(many_increments(store.clone()))).collect();
                let (mut sure, mut maybe) = (0, 0);
                for task in tasks {
                    let (s, m) = task.await.unwrap();
                    sure += s;
                    maybe += m;
                }
                (sure, maybe)
            });
            place.0.set_faults(Faults::default());
            run(recovered(&store));
            let total = counter(&store.snapshot(), 1).unwrap_or_default();
            assert!(
                (sure..=sure + maybe).contains(&total),
                "seed {seed}: {sure} sure, {maybe} unknown, {total} counted"
            );
            assert_eq!(told.load(Ordering::Relaxed), total, "seed {seed}: whatever was written was notified");
            drop(store);
            assert_eq!(counter(&place.open().snapshot(), 1), Some(total));
        }
    }

    /// How many increments were acknowledged, and of how many the outcome is unknown.
    async fn many_increments(store: Store) -> (u64, u64) {
        let (mut sure, mut maybe) = (0, 0);
        for _ in 0..30 {
            match increment(&store).await {
                Ok(_) => sure += 1,
                Err(Error::Conflict) => {}
                Err(_) => {
                    maybe += 1;
                    recovered(&store).await;
                }
            }
        }
        (sure, maybe)
    }

    #[test]
    fn the_same_seed_makes_the_same_choices() {
        let choices = |seed| {
            let disk = MemoryDisk::new();
            let store = Store::open(disk.clone()).unwrap();
            disk.set_faults(Faults { seed, conflict: 0.5, ..Faults::default() });
            (0..64)
                .map(|_| {
                    let mut batch = put(1);
                    batch.check_unchanged(&COUNTERS, 2, Pos::ZERO);
                    store.commit(batch).is_ok()
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(choices(1), choices(1));
        assert_ne!(choices(1), choices(2));
    }

    #[test]
    fn every_read_call_is_one_round() {
        let place = InMemory::new();
        let store = place.open();
        put_counter(&store, 1, 1);
        let before = place.0.read_rounds();
        let snapshot = store.snapshot();
        counter(&snapshot, 1);
        snapshot.multi_get(&COUNTERS, [1, 2, 3]).unwrap();
        assert_eq!(snapshot.scan(&COUNTERS, COUNTERS.all()).count(), 1);
        assert!(journal::cursors(&snapshot).unwrap().is_empty());
        assert_eq!(place.0.read_rounds() - before, 4);
    }
}
