//! The sequencer and the committer: how a batch gets its place in the order, and then to the disk.
//!
//! `commit` holds one lock for a few microseconds: it checks the batch, gives it its positions, and puts its rows into
//! the overlay and into the open group. One thread takes the open group, writes and syncs it, and publishes it.

use std::{
    collections::VecDeque,
    hash::{BuildHasherDefault, Hasher},
    sync::Arc,
    thread,
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};
use hashbrown::HashMap;
use parking_lot::{Condvar, Mutex};
use smallvec::SmallVec;
use tokio::sync::{Notify, oneshot};

use crate::{
    Batch, Error, Hub, Pos, Published, Read, Result, Topic, View,
    batch::{Check, Guard, Write, hash_key},
    engine::{Engine, Group, Row, RowRef, Rows},
    export::IMPORTING,
    journal,
    key::Stamp,
    limits,
    read::{Source, Stable, split_first_chunk},
    table::{Hint, chunk_key},
};

/// A group is closed when it has this many bytes; what comes later goes into the next one.
const GROUP_BYTES: usize = 4 * 1024 * 1024;
/// The window of recent writes that checks can look back on holds between one and two times this many rows.
const RECENT_ROWS: usize = 64 * 1024;
/// How many written rows guards can look back on.
const GUARDED_ROWS: usize = 16 * 1024;
/// How often the committer tries to recover the engine.
const RECOVERY_INTERVAL: Duration = Duration::from_millis(500);

pub(crate) struct Core {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) hub: Hub,
    stable: ArcSwap<Stable>,
    state: Mutex<State>,
    work: Condvar,
    durable: Mutex<Durable>,
    /// Notified when `durable` moves. Whoever waits goes on in the order they came.
    settled: Notify,
    /// Notified when the queue shrinks.
    room: Notify,
    /// The group whose write failed, until it is known whether it was written all the same.
    doubtful: Mutex<Vec<Published>>,
}

/// How far durability has come. A new epoch means that sequenced commits were dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Durable {
    pub(crate) epoch: u64,
    pub(crate) version: Pos,
}

struct State {
    stable: Arc<Stable>,
    /// The last position given out.
    last: Pos,
    epoch: u64,
    /// Commits go here.
    open: OpenGroup,
    /// Closed groups, oldest first; the committer may be writing the first one.
    closed: VecDeque<ClosedGroup>,
    queued_bytes: usize,
    recent: Recent,
    log: GuardLog,
    health: Health,
    /// No commit gets a place in the order.
    frozen: bool,
}

enum Health {
    Good,
    /// Writes are refused with this error until the engine recovered.
    Failed(Error),
    Closed,
}

#[derive(Default)]
struct OpenGroup {
    rows: Rows,
    commits: Vec<Queued>,
    bytes: usize,
}

struct ClosedGroup {
    /// Still read by views.
    rows: Rows,
    /// Taken by the committer.
    commits: Vec<Queued>,
    bytes: usize,
}

struct Queued {
    published: Published,
    done: oneshot::Sender<Result<()>>,
}

/// Where a commit landed in the order, before it is durable.
pub(crate) struct Sequenced {
    pub(crate) base: Pos,
    pub(crate) version: Pos,
    pub(crate) done: oneshot::Receiver<Result<()>>,
}

impl Core {
    pub(crate) fn open(engine: Arc<dyn Engine>) -> Result<Arc<Self>> {
        let stable = Arc::new(read_stable(engine, Pos::ZERO)?);
        let tip = stable.version;
        let opened = View { stable: Arc::clone(&stable), overlay: SmallVec::new(), version: tip, epoch: 0 };
        if opened.contains(&IMPORTING, ())? {
            return Err(Error::Engine(
                "an import into this store was interrupted; delete it and start again".to_owned(),
            ));
        }
        Ok(Arc::new(Self {
            engine: Arc::clone(&stable.engine),
            hub: Hub::new(tip),
            stable: ArcSwap::new(Arc::clone(&stable)),
            state: Mutex::new(State {
                stable,
                last: tip,
                epoch: 0,
                open: OpenGroup::default(),
                closed: VecDeque::new(),
                queued_bytes: 0,
                recent: Recent::new(tip),
                log: GuardLog::new(tip),
                health: Health::Good,
                frozen: false,
            }),
            work: Condvar::new(),
            durable: Mutex::new(Durable { epoch: 0, version: tip }),
            settled: Notify::new(),
            room: Notify::new(),
            doubtful: Mutex::default(),
        }))
    }

    pub(crate) fn stable(&self) -> Arc<Stable> {
        self.stable.load_full()
    }

    pub(crate) fn latest(&self) -> View {
        self.state.lock().view()
    }

    /// [`Core::latest`], unless nobody knows what the last write left on the disk.
    pub(crate) fn certain(&self) -> Result<View> {
        let state = self.state.lock();
        state.health.check().map(|()| state.view())
    }

    /// From now on commits are refused, or taken again. What was sequenced before is what this view sees.
    pub(crate) fn hold(&self, frozen: bool) -> View {
        let mut state = self.state.lock();
        state.frozen = frozen;
        state.view()
    }

    /// Gives the batch its place in the order. `view` is what it was decided on, if known: its epoch is checked, and
    /// it tells how many chunks are replaced.
    pub(crate) fn commit(&self, batch: Batch, view: Option<&View>) -> Result<Sequenced> {
        batch.validate()?;
        self.engine.note_commit(!batch.checks.is_empty() || !batch.guards.is_empty())?;
        let chunked = batch.writes.values().any(|write| write.table.chunked);
        let latest = if chunked && view.is_none() { Some(self.latest()) } else { None };
        let mut prepared = Prepared::new(batch, view.or(latest.as_ref()))?;
        let epoch = view.or(latest.as_ref()).map(|view| view.epoch);

        let mut state = self.state.lock();
        let sequenced = state.sequence(&mut prepared, epoch)?;
        drop(state);
        self.work.notify_one();
        Ok(sequenced)
    }

    /// Waits until everything a view of this epoch and version saw is durable.
    pub(crate) async fn settled(&self, epoch: u64, version: Pos) -> Result<()> {
        loop {
            let mut moved = std::pin::pin!(self.settled.notified());
            moved.as_mut().enable();
            let now = *self.durable.lock();
            if now.epoch != epoch {
                return Err(Error::Unknown);
            }
            if now.version >= version {
                return Ok(());
            }
            moved.await;
        }
    }

    fn durable_moves(&self, now: Durable) {
        *self.durable.lock() = now;
        self.settled.notify_waiters();
    }

    /// Waits until the queue has room.
    pub(crate) async fn wait_for_room(&self) {
        loop {
            let mut shrunk = std::pin::pin!(self.room.notified());
            shrunk.as_mut().enable();
            if self.state.lock().queued_bytes < limits::QUEUE_BYTES {
                return;
            }
            shrunk.await;
        }
    }

    /// Are writes taken? The error they are refused with, if not.
    pub(crate) fn health(&self) -> Result<()> {
        self.state.lock().health.check()
    }

    /// How many bytes wait for the disk.
    pub(crate) fn queued_bytes(&self) -> usize {
        self.state.lock().queued_bytes
    }

    /// No more commits; the committer writes what is queued and ends.
    pub(crate) fn close(&self) {
        self.state.lock().health = Health::Closed;
        self.work.notify_one();
    }
}

/// The durable state of an engine. `floor` is the least version it may claim.
fn read_stable(engine: Arc<dyn Engine>, floor: Pos) -> Result<Stable> {
    let snapshot = engine.snapshot()?;
    let mut stable = Stable { engine, snapshot, version: Pos::ZERO };
    let view = View { stable: Arc::new(stable), overlay: SmallVec::new(), version: Pos::ZERO, epoch: 0 };
    let tip = view.get(&journal::TIP, ())?.unwrap_or_default();
    stable = Arc::into_inner(view.stable).ok_or(Error::Closed)?;
    stable.version = tip.max(floor);
    Ok(stable)
}

impl Health {
    fn check(&self) -> Result<()> {
        match self {
            Self::Good => Ok(()),
            Self::Failed(error) => Err(error.clone()),
            Self::Closed => Err(Error::Closed),
        }
    }
}

// ---------------------------------------------------------------------------------------------------- sequencing

/// A batch made ready outside the lock.
struct Prepared {
    rows: Vec<PreparedRow>,
    hashes: Vec<u64>,
    checks: Vec<Check>,
    guards: Vec<Guard>,
    topics: Arc<[Topic]>,
    positions: u64,
    bytes: usize,
}

enum PreparedRow {
    Ready(RowRef),
    Stamped(Box<StampedRow>),
}

/// A row that waits for its positions.
struct StampedRow {
    hint: Hint,
    key: SmallVec<[u8; 56]>,
    key_stamps: SmallVec<[Stamp; 2]>,
    value: Option<BytesMut>,
    value_stamps: SmallVec<[Stamp; 2]>,
}

impl Prepared {
    fn new(batch: Batch, view: Option<&View>) -> Result<Self> {
        let bytes = batch.size_bytes();
        let mut prepared = Self {
            rows: Vec::with_capacity(batch.writes.len()),
            hashes: Vec::with_capacity(batch.writes.len()),
            checks: batch.checks,
            guards: batch.guards,
            topics: batch.topics.into_iter().collect(),
            positions: u64::from(batch.stamps.max(1)),
            bytes,
        };
        for (key, write) in batch.writes {
            match view {
                Some(view) if write.table.chunked => prepared.add_chunked(key, write, view)?,
                _ => prepared.add(key, write),
            }
        }
        Ok(prepared)
    }

    fn add(&mut self, key: SmallVec<[u8; 56]>, write: Write) {
        if write.key_stamps.is_empty() && write.value_stamps.is_empty() {
            self.add_ready(write.hint(), key, write.value);
            return;
        }
        let hint = write.hint();
        let Write { key_stamps, value, value_stamps, .. } = write;
        let value = value.map(BytesMut::from);
        self.add_stamped(StampedRow { hint, key, key_stamps, value, value_stamps });
    }

    fn add_stamped(&mut self, row: StampedRow) {
        // Stamped keys are hashed when their position is known.
        self.hashes.push(if row.key_stamps.is_empty() { hash_key(&row.key) } else { 0 });
        self.rows.push(PreparedRow::Stamped(Box::new(row)));
    }

    fn add_ready(&mut self, hint: Hint, key: SmallVec<[u8; 56]>, value: Option<Bytes>) {
        self.hashes.push(hash_key(&key));
        self.rows.push(PreparedRow::Ready(RowRef(Arc::new(Row { hint, key, value }))));
    }

    /// Splits a large value, and deletes the chunks that the value before had more of.
    fn add_chunked(&mut self, key: SmallVec<[u8; 56]>, write: Write, view: &View) -> Result<()> {
        let hint = write.hint();
        if !write.key_stamps.is_empty() {
            self.add_new_chunked(&key, &write);
            return Ok(());
        }
        let mut before = Ok(0);
        view.layers().get_row(write.table, &key, &mut |row| {
            before =
                split_first_chunk(&row).map(|(more, _)| more).map_err(|corrupt| write.table.corrupt(&key, &corrupt));
        })?;
        let before = before?;
        self.checks.push(Check { hash: hash_key(&key), since: view.version });
        let mut more = 0;
        if let Some(value) = write.value {
            // The first chunk shares its row with the count.
            let mut chunks = value.chunks(limits::VALUE_BYTES - 2);
            let first = chunks.next().unwrap_or_default();
            for chunk in chunks {
                more += 1;
                self.add_ready(hint, chunk_key(&key, more), Some(value.slice_ref(chunk)));
            }
            let head = [&more.to_be_bytes(), first].concat();
            self.add_ready(hint, key.clone(), Some(head.into()));
        } else {
            self.add_ready(hint, key.clone(), None);
        }
        for index in more + 1..=before {
            self.add_ready(hint, chunk_key(&key, index), None);
        }
        Ok(())
    }

    /// Splits a large value whose key holds a position of this commit, so that there was none before.
    fn add_new_chunked(&mut self, key: &SmallVec<[u8; 56]>, write: &Write) {
        let Some(value) = &write.value else { return };
        let parts: Vec<&[u8]> = value.chunks(limits::VALUE_BYTES - 2).collect();
        let first = parts.first().copied().unwrap_or_default();
        let more = parts.len().saturating_sub(1) as u16;
        let mut add = |key, key_stamps, value: &[u8]| {
            let (hint, value_stamps) = (write.hint(), SmallVec::new());
            self.add_stamped(StampedRow { hint, key, key_stamps, value: Some(value.into()), value_stamps });
        };
        add(key.clone(), write.key_stamps.clone(), &[&more.to_be_bytes(), first].concat());
        for (index, part) in (1..).zip(parts.iter().skip(1)) {
            // A continuation has one byte in front of the key.
            let behind = write.key_stamps.iter().map(|stamp| Stamp { at: stamp.at + 1, ..*stamp });
            add(chunk_key(key, index), behind.collect(), part);
        }
    }

    /// Fills in the positions.
    fn into_rows(self, base: Pos) -> (Vec<RowRef>, Vec<u64>) {
        let mut hashes = self.hashes;
        let mut rows = Vec::with_capacity(self.rows.len());
        for (row, hash) in self.rows.into_iter().zip(&mut hashes) {
            rows.push(match row {
                PreparedRow::Ready(row) => row,
                PreparedRow::Stamped(mut row) => {
                    row.key_stamps.iter().for_each(|stamp| stamp.patch(&mut row.key, base));
                    if let Some(value) = &mut row.value {
                        row.value_stamps.iter().for_each(|stamp| stamp.patch(value, base));
                    }
                    if !row.key_stamps.is_empty() {
                        *hash = hash_key(&row.key);
                    }
                    RowRef(Arc::new(Row { hint: row.hint, key: row.key, value: row.value.map(BytesMut::freeze) }))
                }
            });
        }
        (rows, hashes)
    }
}

impl State {
    fn view(&self) -> View {
        let mut overlay = SmallVec::new();
        if !self.open.rows.is_empty() {
            overlay.push(self.open.rows.clone());
        }
        overlay.extend(self.closed.iter().rev().map(|group| group.rows.clone()));
        View { stable: Arc::clone(&self.stable), overlay, version: self.last, epoch: self.epoch }
    }

    fn sequence(&mut self, prepared: &mut Prepared, epoch: Option<u64>) -> Result<Sequenced> {
        self.health.check()?;
        if self.frozen {
            return Err(Error::Frozen);
        }
        if epoch.is_some_and(|epoch| epoch != self.epoch) {
            return Err(Error::Conflict);
        }
        if self.queued_bytes >= limits::QUEUE_BYTES {
            return Err(Error::Busy);
        }
        self.check(prepared)?;

        let prepared = std::mem::replace(prepared, Prepared::empty());
        let (bytes, topics, positions) = (prepared.bytes, Arc::clone(&prepared.topics), prepared.positions);
        let base = self.last.next();
        let version = Pos(self.last.0 + positions);
        let (rows, hashes) = prepared.into_rows(base);
        self.last = version;
        self.recent.record(&hashes, version);
        let rows = Arc::new(rows);
        self.log.record(version, &rows);
        for row in rows.iter() {
            self.open.rows.insert(row.clone());
        }
        let (done, waits) = oneshot::channel();
        self.open.commits.push(Queued { published: Published { base, version, topics, rows }, done });
        self.open.bytes += bytes;
        self.queued_bytes += bytes;
        if self.open.bytes >= GROUP_BYTES {
            self.close_group();
        }
        Ok(Sequenced { base, version, done: waits })
    }

    fn check(&self, prepared: &Prepared) -> Result<()> {
        for check in &prepared.checks {
            self.recent.check(*check, self.last)?;
        }
        for guard in &prepared.guards {
            self.log.check(guard, self.last)?;
        }
        Ok(())
    }

    fn close_group(&mut self) {
        let OpenGroup { rows, commits, bytes } = std::mem::take(&mut self.open);
        self.closed.push_back(ClosedGroup { rows, commits, bytes });
    }

    /// Drops everything that is not durable. Returns who must be told.
    fn drop_queue(&mut self) -> Vec<Queued> {
        let mut dropped = Vec::new();
        for group in self.closed.drain(..) {
            dropped.extend(group.commits);
        }
        dropped.append(&mut std::mem::take(&mut self.open).commits);
        self.queued_bytes = 0;
        self.epoch += 1;
        self.recent = Recent::new(self.last);
        self.log = GuardLog::new(self.last);
        dropped
    }
}

impl State {
    /// What the committer has to do now, if anything.
    fn find_work(&mut self) -> Option<Work> {
        if matches!(self.health, Health::Failed(_)) {
            return Some(Work::Recover);
        }
        if self.closed.is_empty() && !self.open.commits.is_empty() {
            self.close_group();
        }
        if let Some(group) = self.closed.front_mut() {
            return Some(Work::Write(group.rows.clone(), std::mem::take(&mut group.commits)));
        }
        matches!(self.health, Health::Closed).then_some(Work::Stop)
    }

    /// Recovering did not work. False when the store is closed, so that nobody needs to try again.
    fn still_failed(&mut self, error: Error) -> bool {
        let open = !matches!(self.health, Health::Closed);
        if open {
            self.health = Health::Failed(error);
        }
        open
    }
}

impl Prepared {
    fn empty() -> Self {
        Self {
            rows: Vec::new(),
            hashes: Vec::new(),
            checks: Vec::new(),
            guards: Vec::new(),
            topics: Arc::new([]),
            positions: 0,
            bytes: 0,
        }
    }
}

/// Which keys were written lately, by the hash of the key. Two hashes that collide cost a retry.
struct Recent {
    newer: HashMap<u64, Pos, Hashed>,
    older: HashMap<u64, Pos, Hashed>,
    /// The last version in `newer` when it was begun; what was written up to the one before is forgotten.
    newer_since: Pos,
    floor: Pos,
}

type Hashed = BuildHasherDefault<AlreadyHashed>;

/// The keys of the map are hashes themselves.
#[derive(Default)]
struct AlreadyHashed(u64);

impl Hasher for AlreadyHashed {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        self.0 = hash_key(bytes);
    }
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

impl Recent {
    /// Knows nothing about versions up to `floor`.
    fn new(floor: Pos) -> Self {
        Self { newer: HashMap::default(), older: HashMap::default(), newer_since: floor, floor }
    }

    fn record(&mut self, hashes: &[u64], version: Pos) {
        if self.newer.len() + hashes.len() > RECENT_ROWS {
            std::mem::swap(&mut self.newer, &mut self.older);
            self.newer.clear();
            self.floor = self.newer_since;
            self.newer_since = Pos(version.0 - 1);
        }
        for &hash in hashes {
            self.newer.insert(hash, version);
        }
    }

    fn check(&self, check: Check, last: Pos) -> Result<()> {
        if check.since >= last {
            return Ok(());
        }
        if check.since < self.floor {
            return Err(Error::Conflict);
        }
        match self.newer.get(&check.hash).or_else(|| self.older.get(&check.hash)) {
            Some(&written) if written > check.since => Err(Error::Conflict),
            _ => Ok(()),
        }
    }
}

/// What was written lately, in order, for guards over spans.
struct GuardLog {
    commits: VecDeque<(Pos, Arc<Vec<RowRef>>)>,
    rows: usize,
    floor: Pos,
}

impl GuardLog {
    fn new(floor: Pos) -> Self {
        Self { commits: VecDeque::new(), rows: 0, floor }
    }

    fn record(&mut self, version: Pos, rows: &Arc<Vec<RowRef>>) {
        self.commits.push_back((version, Arc::clone(rows)));
        self.rows += rows.len();
        while self.rows > GUARDED_ROWS {
            let Some((version, rows)) = self.commits.pop_front() else { break };
            self.rows -= rows.len();
            self.floor = version;
        }
    }

    fn check(&self, guard: &Guard, last: Pos) -> Result<()> {
        if guard.since >= last {
            return Ok(());
        }
        if guard.since < self.floor {
            return Err(Error::Conflict);
        }
        let guarded = guard.low.as_slice()..guard.high.as_slice();
        let written = self
            .commits
            .iter()
            .rev()
            .take_while(|(version, _)| *version > guard.since)
            .any(|(_, rows)| rows.iter().any(|row| guarded.contains(&row.0.key.as_slice())));
        if written { Err(Error::Conflict) } else { Ok(()) }
    }
}

// ---------------------------------------------------------------------------------------------------- committing

/// Starts the thread that writes. It ends after [`Core::close`].
pub(crate) fn spawn_committer(core: &Arc<Core>) -> Result<thread::JoinHandle<()>> {
    let core = Arc::clone(core);
    thread::Builder::new()
        .name("store-commit".to_owned())
        .spawn(move || {
            let _abandon = AbandonOnPanic(&core);
            while core.write_next_group() {}
        })
        .map_err(|error| Error::Engine(format!("cannot start the committer: {error}")))
}

/// If the committer panics, nobody may wait for it any more.
struct AbandonOnPanic<'a>(&'a Core);

impl Drop for AbandonOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.close();
            self.0.fail(Vec::new(), Error::Engine("the committer panicked".to_owned()));
        }
    }
}

/// What the committer finds to do.
enum Work {
    Write(Rows, Vec<Queued>),
    Recover,
    Stop,
}

impl Core {
    /// Waits for work and does it. False when there will be none any more.
    fn write_next_group(&self) -> bool {
        match self.next_work() {
            Work::Stop => return false,
            Work::Recover => self.recover(),
            Work::Write(rows, commits) => self.write_and_publish(rows, commits),
        }
        true
    }

    /// Does the work that there is, without waiting for any. False when there was none, or nothing could be done.
    pub(crate) fn step(&self) -> bool {
        let work = self.state.lock().find_work();
        match work {
            None | Some(Work::Stop) => false,
            Some(Work::Recover) => match self.try_recover() {
                Ok(()) => true,
                Err(error) => {
                    self.state.lock().still_failed(error);
                    false
                }
            },
            Some(Work::Write(rows, commits)) => {
                self.write_and_publish(rows, commits);
                true
            }
        }
    }

    fn write_and_publish(&self, rows: Rows, commits: Vec<Queued>) {
        let group = commits.iter().map(|queued| queued.published.clone()).collect::<Vec<_>>();
        let result = self.write_group(&rows, &group);
        drop(rows);
        let result = result.map(|stable| self.publish(stable, &group));
        match result {
            Ok(()) => resolve(commits, &Ok(())),
            Err(error) => {
                *self.doubtful.lock() = group;
                self.fail(commits, error);
            }
        }
    }

    fn next_work(&self) -> Work {
        let mut state = self.state.lock();
        loop {
            if let Some(work) = state.find_work() {
                return work;
            }
            self.work.wait(&mut state);
        }
    }

    fn write_group(&self, rows: &Rows, commits: &[Published]) -> Result<Stable> {
        let version = commits.last().map_or(Pos::ZERO, |commit| commit.version);
        let mut extra: Vec<Row> = commits
            .iter()
            .filter(|commit| !commit.topics.is_empty())
            .map(|commit| journal::entry_row(commit.version, &commit.topics))
            .collect();
        extra.push(journal::tip_row(version));
        self.engine.write(&Group { rows, extra: &extra })?;
        Ok(Stable { engine: Arc::clone(&self.engine), snapshot: self.engine.snapshot()?, version })
    }

    fn publish(&self, stable: Stable, commits: &[Published]) {
        let stable = Arc::new(stable);
        let version = stable.version;
        let wake = self.hub.mark(commits);
        let mut state = self.state.lock();
        state.stable = Arc::clone(&stable);
        let published = state.closed.pop_front();
        state.queued_bytes -= published.as_ref().map_or(0, |group| group.bytes);
        let epoch = state.epoch;
        self.stable.store(stable);
        self.hub.publish(version);
        drop(state);
        self.hub.wake(&wake, version);
        self.durable_moves(Durable { epoch, version });
        self.room.notify_waiters();
    }

    /// The write failed: nothing that is queued may be acknowledged, and nothing may build on it.
    fn fail(&self, commits: Vec<Queued>, error: Error) {
        tracing::error!(%error, "the store cannot write");
        let mut state = self.state.lock();
        let dropped = state.drop_queue();
        if !matches!(state.health, Health::Closed) {
            state.health = Health::Failed(match &error {
                // Fits what was in flight, but not what will be refused.
                Error::Unknown => Error::Engine("recovering from a write of unknown outcome".to_owned()),
                error => error.clone(),
            });
        }
        let durable = Durable { epoch: state.epoch, version: state.stable.version };
        drop(state);
        self.durable_moves(durable);
        self.room.notify_waiters();
        resolve(commits, &Err(error.clone()));
        resolve(dropped, &Err(error));
    }

    /// Tries to make the engine usable again; waits a little if it does not work.
    fn recover(&self) {
        match self.try_recover() {
            Ok(()) => tracing::info!("the store writes again"),
            Err(error) => {
                let mut state = self.state.lock();
                if state.still_failed(error) {
                    self.work.wait_for(&mut state, RECOVERY_INTERVAL);
                }
            }
        }
    }

    fn try_recover(&self) -> Result<()> {
        self.engine.recover()?;
        // Positions that were given out and lost are never given out again, not even after a restart: a reader may
        // have come as far as them. One more is skipped, so that no check made before the recovery passes after it:
        // the failed group may have been written after all. Writing the tip also proves that the engine writes.
        let last = self.state.lock().last.next();
        // Written implies notified, also for a group whose write seemed to fail.
        let written = read_stable(Arc::clone(&self.engine), Pos::ZERO)?.version;
        self.doubtful.lock().retain(|commit| commit.version <= written);
        let extra = [journal::tip_row(last)];
        self.engine.write(&Group { rows: &Rows::new(), extra: &extra })?;
        let stable = Arc::new(read_stable(Arc::clone(&self.engine), last)?);
        let found = std::mem::take(&mut *self.doubtful.lock());
        let wake = if found.is_empty() { Vec::new() } else { self.hub.mark(&found) };
        let mut state = self.state.lock();
        state.stable = Arc::clone(&stable);
        state.last = last;
        state.epoch += 1;
        state.recent = Recent::new(last);
        state.log = GuardLog::new(last);
        self.stable.store(stable);
        self.hub.publish(last);
        if !matches!(state.health, Health::Closed) {
            state.health = Health::Good;
        }
        let epoch = state.epoch;
        drop(state);
        self.hub.wake(&wake, last);
        self.durable_moves(Durable { epoch, version: last });
        Ok(())
    }
}

fn resolve(commits: Vec<Queued>, result: &Result<()>) {
    for queued in commits {
        // Nobody has to wait for their commit.
        let _ = queued.done.send(result.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conflicts(result: Result<()>) -> bool {
        matches!(result, Err(Error::Conflict))
    }

    #[test]
    fn the_window_of_checks_is_bounded_and_never_too_trusting() {
        let mut recent = Recent::new(Pos(10));
        let rows = 3 * RECENT_ROWS as u64;
        for version in 11..11 + rows {
            recent.record(&[version], Pos(version));
        }
        let last = Pos(10 + rows);
        assert!(recent.newer.len() + recent.older.len() <= 2 * RECENT_ROWS);
        assert!(conflicts(recent.check(Check { hash: 1, since: Pos(10) }, last)), "older than the window");
        let inside = recent.floor;
        assert!(inside.0 > 10 && inside < last);
        assert!(recent.check(Check { hash: 1, since: inside }, last).is_ok());
        for version in inside.0 + 1..=last.0 {
            assert!(conflicts(recent.check(Check { hash: version, since: Pos(version - 1) }, last)), "{version}");
            assert!(recent.check(Check { hash: version, since: Pos(version) }, last).is_ok(), "{version}");
        }
    }

    #[test]
    fn guards_look_back_a_bounded_way() {
        let row = |key: u8| RowRef(Arc::new(Row { hint: Hint::Small, key: SmallVec::from_slice(&[key]), value: None }));
        let mut log = GuardLog::new(Pos(0));
        for version in 1..=2 * GUARDED_ROWS as u64 {
            log.record(Pos(version), &Arc::new(vec![row(if version % 2 == 0 { 5 } else { 9 })]));
        }
        let last = Pos(2 * GUARDED_ROWS as u64);
        let guard = |low, high, since| Guard {
            low: SmallVec::from_slice(&[low]),
            high: SmallVec::from_slice(&[high]),
            since: Pos(since),
        };
        assert_eq!(log.rows, GUARDED_ROWS);
        assert!(conflicts(log.check(&guard(1, 2, 5), last)), "too old to know");
        assert!(log.check(&guard(1, 5, last.0 - 100), last).is_ok());
        assert!(conflicts(log.check(&guard(5, 6, last.0 - 100), last)));
        assert!(conflicts(log.check(&guard(5, 6, last.0 - 1), last)));
        assert!(log.check(&guard(9, 10, last.0 - 1), last).is_ok());
    }
}
