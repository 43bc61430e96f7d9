//! Who is told what was written: topics, signals, taps, and the tip.
//!
//! The order around a commit matters to readers, so here it is. Once a group is durable: taps run; the signals of its
//! topics are marked; the snapshot is published; then waiters are woken. So whoever holds a snapshot of version `v`
//! finds every signal marked, and every tap fed, with everything up to `v`.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use hashbrown::HashMap;
use parking_lot::{Mutex, RwLock};
use smallvec::SmallVec;
use tokio::sync::{Notify, watch};

use crate::{Key, Pos, Raw, Result, Table, Value, engine::RowRef};

/// Something that can be waited for: a class and a key within it, such as (room, room number).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Topic {
    /// The kind of thing, numbered by the schema.
    pub class: u8,
    /// Which one.
    pub key: SmallVec<[u8; 32]>,
}

impl Topic {
    /// The topic of a thing named by text or bytes (up to 255 bytes; keep it short).
    pub fn new(class: u8, key: impl AsRef<[u8]>) -> Self {
        Self { class, key: SmallVec::from_slice(key.as_ref()) }
    }

    /// The topic of a numbered thing.
    pub fn number(class: u8, number: u64) -> Self {
        Self { class, key: SmallVec::from_slice(&number.to_be_bytes()) }
    }

    /// The number given to [`Topic::number`].
    pub fn as_number(&self) -> Option<u64> {
        self.key.as_slice().try_into().ok().map(u64::from_be_bytes)
    }

    /// The text given to [`Topic::new`].
    pub fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.key).ok()
    }
}

/// A commit that became durable, as told to taps.
#[derive(Debug, Clone)]
pub struct Published {
    /// Its first position.
    pub base: Pos,
    /// Its last position.
    pub version: Pos,
    /// What it touched, each topic once.
    pub topics: Arc<[Topic]>,
    pub(crate) rows: Arc<Vec<RowRef>>,
}

impl Published {
    /// The rows it wrote to `table`; `None` for deletions. Values of chunked tables are left out.
    pub fn writes_to<K: Key, V: Value>(&self, table: &Table<K, V>) -> impl Iterator<Item = Result<(K, Option<V>)>> {
        let table = *table;
        let def = table.def();
        self.rows
            .iter()
            .filter(move |row| row.0.key.first() == Some(&def.tag) && !def.chunked)
            .map(move |row| decode_row(&table, &row.0.key, row.0.value.clone()))
    }

    /// The keys of the rows that it wrote to `table`, or deleted from it. Those of chunked tables are left out.
    pub fn keys_in<K: Key, V: Value>(&self, table: &Table<K, V>) -> impl Iterator<Item = Result<K>> {
        let table = *table;
        let def = table.def();
        self.rows
            .iter()
            .filter(move |row| row.0.key.first() == Some(&def.tag) && !def.chunked)
            .map(move |row| table.decode_key(&row.0.key))
    }
}

fn decode_row<K: Key, V: Value>(table: &Table<K, V>, key: &[u8], value: Option<Bytes>) -> Result<(K, Option<V>)> {
    let value = value.map(|value| table.decode_value(key, Raw::Shared(value))).transpose()?;
    Ok((table.decode_key(key)?, value))
}

type Tap = Box<dyn Fn(&[Published]) + Send + Sync>;

/// Tells listeners about commits. Owned by the store.
pub struct Hub {
    topics: Mutex<HashMap<Topic, Listeners>>,
    taps: RwLock<Vec<Tap>>,
    /// The version of the published snapshot.
    tip: Arc<AtomicU64>,
    tip_watch: watch::Sender<Pos>,
}

/// By address, so that attaching twice is harmless and detaching does not search.
type Listeners = HashMap<usize, Arc<Signal>>;

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("topics", &self.topics.lock().len()).finish_non_exhaustive()
    }
}

impl Hub {
    pub(crate) fn new(tip: Pos) -> Self {
        Self {
            topics: Mutex::default(),
            taps: RwLock::default(),
            tip: Arc::new(AtomicU64::new(tip.0)),
            tip_watch: watch::Sender::new(tip),
        }
    }

    /// A new signal, attached to nothing.
    pub fn signal(&self) -> Arc<Signal> {
        Arc::new(Signal {
            last: AtomicU64::new(0),
            nudges: AtomicU64::new(0),
            waiting: AtomicU32::new(0),
            attached: AtomicU32::new(0),
            wake: Notify::new(),
            tip: Arc::clone(&self.tip),
        })
    }

    /// From now on the signal is marked by commits that touch `topic`. Attaching twice is the same as once. Commits
    /// before are not seen: attach first, then take the snapshot that the answer starts from.
    pub fn attach(&self, topic: Topic, signal: &Arc<Signal>) {
        let mut topics = self.topics.lock();
        if topics.entry(topic).or_default().insert(address(signal), Arc::clone(signal)).is_none() {
            signal.attached.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Undoes [`Hub::attach`]. A signal that nobody but the hub holds detaches itself with time.
    pub fn detach(&self, topic: &Topic, signal: &Arc<Signal>) {
        let mut topics = self.topics.lock();
        if let Some(listeners) = topics.get_mut(topic) {
            if listeners.remove(&address(signal)).is_some() {
                signal.attached.fetch_sub(1, Ordering::Relaxed);
            }
            if listeners.is_empty() {
                topics.remove(topic);
            }
        }
    }

    /// Wakes the listeners of a topic although nothing was written (typing, presence): counts up [`Signal::nudges`].
    pub fn nudge(&self, topic: &Topic) {
        let mut wake = Vec::new();
        each_listener(&mut self.topics.lock(), topic, |signal| {
            signal.nudges.fetch_add(1, Ordering::SeqCst);
            signal.collect_waiting(&mut wake);
        });
        wake.iter().for_each(|signal| signal.wake.notify_waiters());
    }

    /// Calls `tap` with every group of commits, in order, just before their snapshot is published. It runs on the
    /// committer thread: it must be quick, must not block, and must not commit.
    pub fn tap(&self, tap: impl Fn(&[Published]) + Send + Sync + 'static) {
        self.taps.write().push(Box::new(tap));
    }

    /// The version of the published snapshot, to be watched. For followers of the journal.
    pub fn watch_tip(&self) -> watch::Receiver<Pos> {
        self.tip_watch.subscribe()
    }

    /// How many topics have listeners, and how many listeners there are in all.
    pub fn listeners(&self) -> (usize, usize) {
        let topics = self.topics.lock();
        (topics.len(), topics.values().map(HashMap::len).sum())
    }

    /// Feeds taps and marks signals. Returns whom to wake once the snapshot is published.
    pub(crate) fn mark(&self, commits: &[Published]) -> Vec<Arc<Signal>> {
        for tap in self.taps.read().iter() {
            // A tap that panics must not take the committer with it.
            if catch_unwind(AssertUnwindSafe(|| tap(commits))).is_err() {
                tracing::error!("a tap of the hub panicked");
            }
        }
        let mut touched: HashMap<&Topic, Pos> = HashMap::new();
        for commit in commits {
            for topic in commit.topics.iter() {
                touched.insert(topic, commit.version);
            }
        }
        let mut wake = Vec::new();
        let mut topics = self.topics.lock();
        for (topic, version) in touched {
            each_listener(&mut topics, topic, |signal| {
                signal.mark(version);
                signal.collect_waiting(&mut wake);
            });
        }
        wake
    }

    /// The snapshot of `tip` is published.
    pub(crate) fn publish(&self, tip: Pos) {
        self.tip.store(tip.0, Ordering::SeqCst);
    }

    pub(crate) fn wake(&self, signals: &[Arc<Signal>], tip: Pos) {
        signals.iter().for_each(|signal| signal.wake.notify_waiters());
        self.tip_watch.send_replace(tip);
    }
}

fn each_listener(topics: &mut HashMap<Topic, Listeners>, topic: &Topic, mut f: impl FnMut(&Arc<Signal>)) {
    let Some(listeners) = topics.get_mut(topic) else { return };
    let mut forgotten = false;
    for signal in listeners.values() {
        forgotten |= signal.is_forgotten();
        f(signal);
    }
    if forgotten {
        listeners.retain(|_, signal| {
            let forgotten = signal.is_forgotten();
            if forgotten {
                signal.attached.fetch_sub(1, Ordering::Relaxed);
            }
            !forgotten
        });
        if listeners.is_empty() {
            topics.remove(topic);
        }
    }
}

fn address(signal: &Arc<Signal>) -> usize {
    Arc::as_ptr(signal) as usize
}

/// What one listener needs to know: did anything happen in its topics, and up to when. Made by [`Hub::signal`].
pub struct Signal {
    last: AtomicU64,
    nudges: AtomicU64,
    waiting: AtomicU32,
    /// To how many topics; changed under the lock of the hub.
    attached: AtomicU32,
    wake: Notify,
    tip: Arc<AtomicU64>,
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signal").field("last", &self.last()).field("nudges", &self.nudges()).finish_non_exhaustive()
    }
}

impl Signal {
    /// The last version that touched one of its topics; `Pos::ZERO` if none did since it was attached. May be ahead
    /// of the published snapshot for a moment, never behind.
    pub fn last(&self) -> Pos {
        Pos(self.last.load(Ordering::SeqCst))
    }

    /// How often one of its topics was nudged.
    pub fn nudges(&self) -> u64 {
        self.nudges.load(Ordering::SeqCst)
    }

    /// Waits until something after `since` touched one of its topics and is in the published snapshot, or until the
    /// nudges are not `nudges` any more. Returns at once if that is so already. Cancel-safe; any number may wait.
    pub async fn changed(&self, since: Pos, nudges: u64) {
        let _waiting = Waiting::new(self);
        loop {
            let mut woken = pin!(self.wake.notified());
            woken.as_mut().enable();
            if self.nudges() != nudges {
                return;
            }
            let last = self.last();
            if last > since {
                // Between mark and publish lie a few microseconds.
                while self.tip.load(Ordering::SeqCst) < last.0 {
                    tokio::task::yield_now().await;
                }
                return;
            }
            woken.await;
        }
    }

    fn mark(&self, version: Pos) {
        if self.last.load(Ordering::Relaxed) < version.0 {
            self.last.store(version.0, Ordering::SeqCst);
        }
    }

    /// Does nobody hold it but the topics it is attached to?
    fn is_forgotten(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) <= self.attached.load(Ordering::Relaxed) as usize
    }

    fn collect_waiting(self: &Arc<Self>, wake: &mut Vec<Arc<Self>>) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            wake.push(Arc::clone(self));
        }
    }
}

/// Counts a waiter as long as it waits, so that publishing skips signals nobody waits for.
struct Waiting<'a>(&'a Signal);

impl<'a> Waiting<'a> {
    fn new(signal: &'a Signal) -> Self {
        signal.waiting.fetch_add(1, Ordering::SeqCst);
        Self(signal)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}
