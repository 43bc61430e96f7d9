//! The store as its users see it.

use std::{fmt, path::Path, sync::Arc, thread};

use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, oneshot};

use crate::{
    Batch, Error, Hub, Pos, Result, Snapshot, Tx, View,
    engine::{Backing, open_engine},
    sequencer::{Core, Sequenced, spawn_committer},
};

/// How often `transact` runs its closure before it gives up with `Conflict`.
const ATTEMPTS: usize = 64;
/// After this many conflicts, attempts wait for one another.
const FREE_ATTEMPTS: usize = 4;

/// An open store. Clones are the same store; the last one to be dropped waits until everything queued is written.
#[derive(Clone)]
pub struct Store {
    core: Arc<Core>,
    lane: Arc<AsyncMutex<()>>,
    _closer: Arc<Closer>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("tip", &self.tip()).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store, or creates it. Blocks, for as long as the engine needs to replay its log.
    pub fn open(backing: impl Into<Backing>) -> Result<Self> {
        let engine = open_engine(backing.into())?;
        let core = Core::open(engine)?;
        let thread = spawn_committer(&core)?;
        let closer = Closer { core: Arc::clone(&core), thread: Mutex::new(Some(thread)) };
        Ok(Self { core, lane: Arc::default(), _closer: Arc::new(closer) })
    }

    /// Opens the store without a thread that writes: nothing becomes durable but by [`Committer::step`]. For
    /// simulations, whose runs must not depend on how threads take turns.
    pub fn open_manual(backing: impl Into<Backing>) -> Result<(Self, Committer)> {
        let core = Core::open(open_engine(backing.into())?)?;
        let closer = Closer { core: Arc::clone(&core), thread: Mutex::new(None) };
        let store = Self { core: Arc::clone(&core), lane: Arc::default(), _closer: Arc::new(closer) };
        Ok((store, Committer { core }))
    }

    /// What is durable, now. Takes a few nanoseconds.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { stable: self.core.stable() }
    }

    /// What is sequenced, durable or not. Before anything read from it leaves the process, wait for
    /// [`Store::settled`].
    pub fn latest(&self) -> View {
        self.core.latest()
    }

    /// [`Store::latest`], or the error that writes are refused with: after a write that failed it is not known what the
    /// store holds until it recovered. For those who do something that cannot be undone because a row is missing.
    pub fn certain(&self) -> Result<View> {
        self.core.certain()
    }

    /// The version of [`Store::snapshot`].
    pub fn tip(&self) -> Pos {
        self.core.stable().version
    }

    /// Signals, taps and the tip.
    pub fn hub(&self) -> &Hub {
        &self.core.hub
    }

    /// Checks a batch and gives it its place in the order, all or nothing. Takes microseconds and does not wait for
    /// the disk: the ticket does. An empty batch is a commit, too.
    ///
    /// Errors: `Conflict` (a check did not hold, or somebody else wrote the same large value meanwhile), `TooLarge`,
    /// `Busy`, and `Full` or `Engine` while the store cannot write. After an error nothing was written.
    pub fn commit(&self, batch: Batch) -> Result<Ticket> {
        self.core.commit(batch, None).map(Ticket::new)
    }

    /// Runs `decide` on the latest view, commits what it wrote, and waits until that is durable.
    ///
    /// `decide` may run several times, each time on a fresh view, when something it read changed meanwhile: it must
    /// have no effects but through `tx`. If it fails, or writes nothing, nothing is committed; the answer still waits
    /// until everything it has seen is durable. What it reads through `tx` is checked, see [`Tx`].
    ///
    /// Dropping the future after the commit was sequenced does not undo it.
    pub async fn transact<T, E, F>(&self, decide: F) -> Result<Committed<T>, E>
    where
        F: FnMut(&mut Tx) -> Result<T, E>,
        E: From<Error>,
    {
        self.transact_in(None, decide).await
    }

    /// [`Store::transact`], with each attempt up to its place in the order under `lane`: transactions that would
    /// conflict take turns instead. The lane is not held while the disk is waited for.
    pub async fn transact_in<T, E, F>(&self, lane: Option<&Mutex<()>>, mut decide: F) -> Result<Committed<T>, E>
    where
        F: FnMut(&mut Tx) -> Result<T, E>,
        E: From<Error>,
    {
        let mut turn = None;
        for attempt in 0..ATTEMPTS {
            self.core.wait_for_room().await;
            if attempt == FREE_ATTEMPTS {
                turn = Some(self.lane.lock().await);
            }
            if let Attempt::Done(outcome) = self.attempt(lane, &mut decide) {
                drop(turn);
                return outcome.settle(&self.core).await;
            }
        }
        Err(Error::Conflict.into())
    }

    fn attempt<T, E: From<Error>>(
        &self,
        lane: Option<&Mutex<()>>,
        decide: &mut impl FnMut(&mut Tx) -> Result<T, E>,
    ) -> Attempt<T, E> {
        let _turn = lane.map(Mutex::lock);
        let mut tx = Tx::new(self.core.latest());
        let decided = decide(&mut tx);
        if tx.recorder.expired.get() {
            return Attempt::Again;
        }
        let saw = tx.recorder.saw_pending.get().then_some((tx.view.epoch, tx.view.version));
        match decided {
            Ok(value) if tx.batch.is_empty() => {
                // What saw nothing pending is true of the durable state, and only that version may be handed out now.
                let version = saw.map_or(tx.view.stable.version, |(_, version)| version);
                Attempt::Done(Outcome::Seen { decided: Ok(Committed { value, base: version, version }), saw })
            }
            Err(error) => Attempt::Done(Outcome::Seen { decided: Err(error), saw }),
            Ok(value) => {
                let (batch, view) = tx.finish();
                match self.core.commit(batch, Some(&view)) {
                    Ok(sequenced) => Attempt::Done(Outcome::Written(Ticket::new(sequenced), value)),
                    Err(Error::Conflict | Error::Busy) => Attempt::Again,
                    Err(error) => Attempt::Done(Outcome::Seen { decided: Err(error.into()), saw: None }),
                }
            }
        }
    }

    /// Waits until everything this view sees is durable. `Unknown`: it will not be; read again.
    pub async fn settled(&self, view: &View) -> Result<()> {
        self.core.settled(view.epoch, view.version).await
    }

    /// Are writes taken? If not: the error they are refused with.
    pub fn health(&self) -> Result<()> {
        self.core.health()
    }

    /// Writes a consistent copy into `dir`, which must not exist yet. Blocks; commits go on meanwhile.
    pub fn checkpoint(&self, dir: impl AsRef<Path>) -> Result<()> {
        self.core.engine.checkpoint(dir.as_ref())
    }

    /// Refuses commits ([`Error::Frozen`]) from now on, and waits until all that came before are durable: a checkpoint
    /// that is taken then holds everything that was ever acknowledged. After an error commits are taken as before.
    pub async fn freeze(&self) -> Result<()> {
        let last = self.core.hold(true);
        let settled = self.settled(&last).await.and_then(|()| self.health());
        if settled.is_err() {
            self.thaw();
        }
        settled
    }

    /// Takes commits again.
    pub fn thaw(&self) {
        self.core.hold(false);
    }

    /// Compacts everything. Blocks, for long if there is much data.
    pub fn compact(&self) -> Result<()> {
        self.core.engine.compact()
    }

    /// Figures for metrics, as (name, value).
    pub fn stats(&self) -> Vec<(&'static str, u64)> {
        let mut stats = self.core.engine.stats();
        stats.push(("queued_bytes", self.core.queued_bytes() as u64));
        stats
    }
}

/// Writes for a store that was opened with [`Store::open_manual`].
pub struct Committer {
    core: Arc<Core>,
}

impl Committer {
    /// Writes one group of what is queued, or tries to recover from a write that failed. Says whether anything was
    /// done.
    pub fn step(&self) -> bool {
        self.core.step()
    }
}

impl fmt::Debug for Committer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Committer").finish_non_exhaustive()
    }
}

/// Ends the committer when the last user of the store is gone.
struct Closer {
    core: Arc<Core>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

impl Drop for Closer {
    fn drop(&mut self) {
        self.core.close();
        if let Some(thread) = self.thread.lock().take()
            && thread.thread().id() != thread::current().id()
            && thread.join().is_err()
        {
            tracing::error!("the committer panicked");
        }
    }
}

enum Attempt<T, E> {
    Again,
    Done(Outcome<T, E>),
}

enum Outcome<T, E> {
    Written(Ticket, T),
    Seen { decided: Result<Committed<T>, E>, saw: Option<(u64, Pos)> },
}

impl<T, E: From<Error>> Outcome<T, E> {
    async fn settle(self, core: &Core) -> Result<Committed<T>, E> {
        match self {
            Self::Written(ticket, value) => {
                let Committed { base, version, .. } = ticket.durable().await?;
                Ok(Committed { value, base, version })
            }
            Self::Seen { decided, saw } => {
                if let Some((epoch, version)) = saw {
                    core.settled(epoch, version).await?;
                }
                decided
            }
        }
    }
}

/// A commit that has its place in the order and is on its way to the disk. Dropping it does not undo it.
#[derive(Debug)]
#[must_use = "a commit is not durable before its ticket says so"]
pub struct Ticket {
    /// The first position of the commit.
    pub base: Pos,
    /// The last position of the commit.
    pub version: Pos,
    done: oneshot::Receiver<Result<()>>,
}

impl Ticket {
    fn new(sequenced: Sequenced) -> Self {
        Self { base: sequenced.base, version: sequenced.version, done: sequenced.done }
    }

    /// The real position for a pending one of this commit's batch.
    pub fn resolve(&self, pos: Pos) -> Pos {
        pos.resolve(self.base)
    }

    /// Waits until the commit is durable and published. An error means that it is not acknowledged: `Full` and `Engine`
    /// that the write failed (a sync that failed may still turn out to have been written), `Unknown` that nobody knows.
    pub async fn durable(self) -> Result<Committed<()>> {
        self.done.await.map_err(|_| Error::Unknown)??;
        Ok(Committed { value: (), base: self.base, version: self.version })
    }

    /// [`Ticket::durable`] for threads that may block. Panics inside an async runtime.
    pub fn durable_blocking(self) -> Result<Committed<()>> {
        self.done.blocking_recv().map_err(|_| Error::Unknown)??;
        Ok(Committed { value: (), base: self.base, version: self.version })
    }
}

/// A durable commit (or, if nothing was written, the durable version that the answer is about).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed<T> {
    /// What the closure returned.
    pub value: T,
    /// The first position of the commit.
    pub base: Pos,
    /// The last position of the commit.
    pub version: Pos,
}

impl<T> Committed<T> {
    /// The real position for a pending one of this commit; real ones stay as they are.
    pub fn resolve(&self, pos: Pos) -> Pos {
        pos.resolve(self.base)
    }
}
