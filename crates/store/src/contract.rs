//! What every engine must do, run over each of them: `engine_contract!` lists the promises.

use std::{
    collections::BTreeMap,
    future::Future,
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use proptest::{collection::vec, prelude::*};
use tempfile::TempDir;

use crate::{
    Batch, Desc, Disk, Error, Hint, MemoryDisk, Pos, Read, Store, Table, Topic, journal, limits,
    table::{CHUNKS_TAG, Span},
};

const ROOM: u8 = 1;
static COUNTERS: Table<u64, u64> = Table::new(1, "counters", Hint::Small, None, "numbers");
static EVENTS: Table<(u64, Pos), Bytes> =
    Table::new(2, "events", Hint::Bulk, Some(|(room, _)| Topic::number(ROOM, room)), "events of a room");
static NEWEST: Table<(u64, Desc<Pos>), Pos> = Table::new(3, "newest", Hint::Small, None, "events, newest first");
static NAMES: Table<String, String> = Table::new(4, "names", Hint::Lookup, None, "names");
static LETTERS: Table<Pos, Bytes> = Table::new(9, "letters", Hint::Cold, None, "large values in order").chunked();
static BLOBS: Table<(u64, String), Bytes> = Table::new(5, "blobs", Hint::Cold, None, "large values").chunked();

/// Where a store of some engine lives, for as long as the test.
pub(crate) trait Place: Send + Sync {
    fn new() -> Self;
    fn open(&self) -> Store;
}

pub(crate) struct InMemory(pub(crate) MemoryDisk);

impl Place for InMemory {
    fn new() -> Self {
        Self(MemoryDisk::new())
    }
    fn open(&self) -> Store {
        Store::open(self.0.clone()).unwrap()
    }
}

pub(crate) struct OnDisk(pub(crate) TempDir);

impl Place for OnDisk {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }
    fn open(&self) -> Store {
        Store::open(Disk::at(self.0.path()).memory_budget_bytes(16 << 20)).unwrap()
    }
}

macro_rules! engine_contract {
    ($engine:ident, $place:ty: $($promise:ident)+) => {
        mod $engine {
            use super::*;
            $(
                #[test]
                fn $promise() {
                    super::$promise::<$place>();
                }
            )+
        }
    };
}

macro_rules! for_engines {
    ($($promise:ident)+) => {
        engine_contract!(memory, InMemory: $($promise)+);
        engine_contract!(disk, OnDisk: $($promise)+);
    };
}

for_engines! {
    a_commit_takes_consecutive_positions
    pending_positions_become_real
    all_of_a_batch_or_nothing
    checks_hold_or_conflict
    guards_notice_inserted_rows
    snapshots_and_views_do_not_move
    views_see_commits_at_once
    the_last_write_wins
    limits_are_enforced
    a_store_that_holds_still_takes_nothing_and_loses_nothing
    large_values_are_split_and_joined
    scans_merge_all_layers
    reads_agree_with_each_other
    transactions_lose_no_update
    transactions_that_fail_write_nothing
    written_implies_notified
    nudges_wake_without_a_version
    taps_see_every_commit_in_order
    the_journal_is_followed_and_trimmed
    a_store_opens_where_it_was_closed
    random_histories_match_a_model
}

pub(crate) fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(future)
}

pub(crate) fn put_counter(store: &Store, key: u64, value: u64) -> Pos {
    let mut batch = Batch::new();
    batch.put(&COUNTERS, key, &value);
    store.commit(batch).unwrap().durable_blocking().unwrap().version
}

pub(crate) fn counter(read: &impl Read, key: u64) -> Option<u64> {
    read.get(&COUNTERS, key).unwrap()
}

fn a_commit_takes_consecutive_positions<P: Place>() {
    let place = P::new();
    let store = place.open();
    assert_eq!(store.tip(), Pos::ZERO);
    let one = store.commit(Batch::new()).unwrap();
    assert_eq!((one.base, one.version), (Pos(1), Pos(1)));
    let mut batch = Batch::new();
    batch.next_pos();
    batch.next_pos();
    batch.put(&EVENTS, (1, Pos::pending(3)), &Bytes::new());
    let four = store.commit(batch).unwrap();
    assert_eq!((four.base, four.version), (Pos(2), Pos(5)));
    four.durable_blocking().unwrap();
    assert_eq!(store.tip(), Pos(5));
}

fn a_store_that_holds_still_takes_nothing_and_loses_nothing<P: Place>() {
    let place = P::new();
    let store = place.open();
    let mut batch = Batch::new();
    batch.put(&COUNTERS, 1, &1);
    let ticket = store.commit(batch).unwrap();
    // What was sequenced before is durable when it holds still.
    run(store.freeze()).unwrap();
    assert_eq!((store.tip(), counter(&store.snapshot(), 1)), (ticket.version, Some(1)));
    let mut batch = Batch::new();
    batch.put(&COUNTERS, 1, &2);
    assert!(matches!(store.commit(batch), Err(Error::Frozen)));
    let written = run(store.transact(|tx| {
        tx.put(&COUNTERS, 1, &2);
        Ok::<_, Error>(())
    }));
    assert!(matches!(written, Err(Error::Frozen)));
    // Who writes nothing is answered, and nobody is told that the disk is sick.
    let seen = run(store.transact(|tx| tx.get(&COUNTERS, 1))).unwrap();
    assert_eq!((seen.value, store.health().is_ok(), store.tip()), (Some(1), true, ticket.version));
    store.thaw();
    put_counter(&store, 1, 3);
    assert_eq!(counter(&store.snapshot(), 1), Some(3));
}

fn pending_positions_become_real<P: Place>() {
    let place = P::new();
    let store = place.open();
    put_counter(&store, 1, 1);
    let mut batch = Batch::new();
    let (first, second) = (batch.next_pos(), batch.next_pos());
    batch.put(&EVENTS, (7, first), &Bytes::from_static(b"a"));
    batch.put(&EVENTS, (7, second), &Bytes::from_static(b"b"));
    batch.put(&NEWEST, (7, Desc(first)), &second);
    batch.put(&NEWEST, (7, Desc(second)), &Pos(1));
    let ticket = store.commit(batch).unwrap();
    assert_eq!((ticket.resolve(first), ticket.resolve(second), ticket.resolve(Pos(1))), (Pos(2), Pos(3), Pos(1)));
    let check = |read: &dyn Fn() -> (Vec<Pos>, Vec<(Pos, Pos)>)| {
        assert_eq!(read(), (vec![Pos(2), Pos(3)], vec![(Pos(3), Pos(1)), (Pos(2), Pos(3))]));
    };
    fn rows(read: &impl Read) -> (Vec<Pos>, Vec<(Pos, Pos)>) {
        (
            read.scan(&EVENTS, EVENTS.prefix((7,))).map(|row| row.unwrap().0.1).collect(),
            read.scan(&NEWEST, NEWEST.prefix((7,)))
                .map(|row| row.unwrap())
                .map(|(key, value)| (key.1.0, value))
                .collect(),
        )
    }
    check(&|| rows(&store.latest()));
    ticket.durable_blocking().unwrap();
    check(&|| rows(&store.snapshot()));
}

fn all_of_a_batch_or_nothing<P: Place>() {
    let place = P::new();
    let store = place.open();
    let version = put_counter(&store, 1, 1);
    put_counter(&store, 2, 1);
    let mut batch = Batch::new();
    batch.put(&COUNTERS, 1, &2);
    batch.put(&NAMES, "x", &"y".to_owned());
    batch.check_unchanged(&COUNTERS, 1, version);
    batch.check_unchanged(&COUNTERS, 2, version);
    assert!(matches!(store.commit(batch.clone()), Err(Error::Conflict)));
    assert_eq!((counter(&store.latest(), 1), store.latest().get(&NAMES, "x").unwrap()), (Some(1), None));
    assert_eq!(store.latest().version(), Pos(2));
}

fn checks_hold_or_conflict<P: Place>() {
    let place = P::new();
    let store = place.open();
    let first = put_counter(&store, 1, 1);
    let second = put_counter(&store, 1, 2);
    let attempt = |key, since| {
        let mut batch = Batch::new();
        batch.check_unchanged(&COUNTERS, key, since);
        batch.put(&NAMES, "last", &format!("{key} {since}"));
        store.commit(batch).map(|ticket| ticket.durable_blocking().unwrap())
    };
    assert!(matches!(attempt(1, first), Err(Error::Conflict)), "overwritten since");
    assert!(attempt(1, second).is_ok());
    assert!(attempt(2, first).is_ok(), "never written");
    let mut batch = Batch::new();
    batch.delete(&COUNTERS, 1);
    store.commit(batch).unwrap().durable_blocking().unwrap();
    assert!(matches!(attempt(1, second), Err(Error::Conflict)), "deleted since");

    // A store that was just opened knows nothing about the time before.
    drop(store);
    let store = place.open();
    let mut batch = Batch::new();
    batch.check_unchanged(&COUNTERS, 9, first);
    assert!(matches!(store.commit(batch), Err(Error::Conflict)), "too old to be checked");
    let mut batch = Batch::new();
    batch.check_unchanged(&COUNTERS, 9, store.tip());
    assert!(store.commit(batch).is_ok());
}

fn guards_notice_inserted_rows<P: Place>() {
    let place = P::new();
    let store = place.open();
    let since = put_counter(&store, 1, 1);
    let guarded = |span: Span<u64>| {
        let mut batch = Batch::new();
        batch.check_span_unchanged(&span, since);
        store.commit(batch).map(drop)
    };
    let mut batch = Batch::new();
    batch.put(&COUNTERS, 50, &1);
    let _pending = store.commit(batch).unwrap();
    assert!(matches!(guarded(COUNTERS.all()), Err(Error::Conflict)));
    assert!(matches!(guarded(COUNTERS.all().through(50)), Err(Error::Conflict)));
    assert!(guarded(COUNTERS.all().before(50)).is_ok());
    assert!(guarded(COUNTERS.all().after(50)).is_ok());

    // In a transaction: both runs scan, the second sees the row that was inserted behind the back of the first.
    let runs = AtomicUsize::new(0);
    let committed = run(store.transact(|tx| {
        let rows = tx.scan_guarded(&COUNTERS, COUNTERS.all())?;
        if runs.fetch_add(1, Ordering::Relaxed) == 0 {
            let mut batch = Batch::new();
            batch.put(&COUNTERS, 51, &1);
            let _pending = store.commit(batch)?;
        }
        tx.put(&NAMES, "rows", &rows.len().to_string());
        Ok::<_, Error>(rows.len())
    }));
    assert_eq!((committed.unwrap().value, runs.into_inner()), (3, 2));
}

fn snapshots_and_views_do_not_move<P: Place>() {
    let place = P::new();
    let store = place.open();
    put_counter(&store, 1, 1);
    let (snapshot, view) = (store.snapshot(), store.latest());
    for value in 2..50 {
        let mut batch = Batch::new();
        batch.put(&COUNTERS, 1, &value);
        batch.put(&COUNTERS, value, &value);
        let ticket = store.commit(batch).unwrap();
        assert_eq!(counter(&view, 1), Some(1));
        ticket.durable_blocking().unwrap();
        assert_eq!((counter(&snapshot, 1), counter(&view, 1)), (Some(1), Some(1)));
        assert_eq!(counter(&store.snapshot(), 1), Some(value));
        assert_eq!(view.count(&COUNTERS, COUNTERS.all()).unwrap(), 1);
    }
    assert_eq!((snapshot.version(), view.version(), store.tip()), (Pos(1), Pos(1), Pos(49)));
}

fn views_see_commits_at_once<P: Place>() {
    let place = P::new();
    let store = place.open();
    let mut tickets = Vec::new();
    for value in 1..=200 {
        let mut batch = Batch::new();
        batch.put(&COUNTERS, 1, &value);
        tickets.push(store.commit(batch).unwrap());
        let view = store.latest();
        assert_eq!((counter(&view, 1), view.version()), (Some(value), Pos(value)));
        let snapshot = store.snapshot();
        assert_eq!(counter(&snapshot, 1).unwrap_or(0), snapshot.version().0, "exactly what is at or below the version");
    }
    let view = store.latest();
    run(store.settled(&view)).unwrap();
    assert!(store.tip() >= view.version());
    for ticket in tickets {
        ticket.durable_blocking().unwrap();
    }
}

fn the_last_write_wins<P: Place>() {
    let place = P::new();
    let store = place.open();
    let mut batch = Batch::new();
    batch.put(&COUNTERS, 1, &1);
    batch.put(&COUNTERS, 2, &1);
    batch.delete(&COUNTERS, 1);
    batch.put(&COUNTERS, 2, &2);
    let mut other = Batch::new();
    other.put(&COUNTERS, 3, &3);
    other.put(&COUNTERS, 2, &4);
    batch.append(other);
    let _pending = store.commit(batch).unwrap();
    let mut batch = Batch::new();
    batch.put(&COUNTERS, 1, &5);
    batch.delete(&COUNTERS, 3);
    store.commit(batch).unwrap().durable_blocking().unwrap();
    let rows: Vec<_> = store.snapshot().scan(&COUNTERS, COUNTERS.all()).map(Result::unwrap).collect();
    assert_eq!(rows, [(1, 5), (2, 4)]);
}

fn limits_are_enforced<P: Place>() {
    let place = P::new();
    let store = place.open();
    let commit = |key: usize, value: usize| {
        let mut batch = Batch::new();
        // Tag and terminator.
        batch.put(&NAMES, &"k".repeat(key - 2), &"v".repeat(value));
        store.commit(batch).map(|ticket| ticket.durable_blocking().unwrap())
    };
    assert!(commit(limits::KEY_BYTES, limits::VALUE_BYTES).is_ok());
    assert!(matches!(commit(limits::KEY_BYTES + 1, 1), Err(Error::TooLarge { what: "key", .. })));
    assert!(matches!(commit(10, limits::VALUE_BYTES + 1), Err(Error::TooLarge { what: "value", .. })));

    let mut batch = Batch::new();
    for key in 0..11 {
        batch.put(&NAMES, &key.to_string(), &"v".repeat(limits::VALUE_BYTES));
    }
    let size = batch.size_bytes();
    assert!(size > limits::BATCH_BYTES);
    assert!(matches!(store.commit(batch), Err(Error::TooLarge { what: "batch", .. })));
    let mut batch = Batch::new();
    batch.put(&BLOBS, (1, "x"), &Bytes::from(vec![0; limits::CHUNKED_VALUE_BYTES + 1]));
    assert!(matches!(store.commit(batch), Err(Error::TooLarge { what: "value", .. })));
    assert_eq!(store.tip(), Pos(1), "nothing of it was written");
}

fn large_values_are_split_and_joined<P: Place>() {
    let place = P::new();
    let store = place.open();
    let blob = |len: usize| Bytes::from((0..len).map(|at| (at % 251) as u8).collect::<Vec<_>>());
    let chunk = limits::VALUE_BYTES - 2;
    let chunks_stored = || {
        let snapshot = store.snapshot();
        let mut rows = snapshot.stable.snapshot.scan(Hint::Cold, &[CHUNKS_TAG], &[0xff; 2], false);
        let mut count = 0;
        while rows.row().is_some() {
            count += 1;
            rows.advance();
        }
        count
    };
    for (len, chunks) in [
        (limits::CHUNKED_VALUE_BYTES, 10),
        (0, 0),
        (chunk, 0),
        (chunk + 1, 1),
        (3 * chunk, 2),
        (3 * chunk + 1, 3),
        (1, 0),
    ] {
        let mut batch = Batch::new();
        batch.put(&BLOBS, (1, "x"), &blob(len));
        batch.put(&BLOBS, (1, "y"), &blob(5));
        let ticket = store.commit(batch).unwrap();
        assert_eq!(store.latest().get(&BLOBS, (1, "x")).unwrap(), Some(blob(len)));
        ticket.durable_blocking().unwrap();
        let snapshot = store.snapshot();
        assert_eq!(snapshot.get(&BLOBS, (1, "x")).unwrap(), Some(blob(len)));
        assert_eq!(snapshot.multi_get(&BLOBS, [(1, "x"), (1, "z")]).unwrap(), [Some(blob(len)), None]);
        let rows: Vec<_> = snapshot.scan(&BLOBS, BLOBS.prefix((1,))).map(|row| row.unwrap().1).collect();
        assert_eq!(rows, [blob(len), blob(5)]);
        assert_eq!(chunks_stored(), chunks, "no chunk is missing, and none is left over, at {len} bytes");
    }
    let committed = run(store.transact(|tx| {
        tx.put(&BLOBS, (1, "x"), &blob(4 * chunk));
        let own = tx.get(&BLOBS, (1, "x"))?.map(|value| value.len());
        let scanned: usize = tx.scan(&BLOBS, BLOBS.all()).map(|row| row.map_or(0, |(_, value)| value.len())).sum();
        Ok::<_, Error>((own, scanned))
    }));
    assert_eq!(committed.unwrap().value, (Some(4 * chunk), 4 * chunk + 5));
    let mut batch = Batch::new();
    let places = [batch.next_pos(), batch.next_pos()];
    batch.put(&LETTERS, places[0], &blob(3));
    batch.put(&LETTERS, places[1], &blob(2 * chunk + 1));
    let ticket = store.commit(batch).unwrap();
    let places = places.map(|at| ticket.resolve(at));
    assert_eq!(store.latest().get(&LETTERS, places[1]).unwrap(), Some(blob(2 * chunk + 1)));
    ticket.durable_blocking().unwrap();
    let letters =
        |store: &Store| store.snapshot().scan(&LETTERS, LETTERS.all()).collect::<Result<Vec<_>, _>>().unwrap();
    assert_eq!(letters(&store), [(places[0], blob(3)), (places[1], blob(2 * chunk + 1))], "at a place of the commit");
    let mut batch = Batch::new();
    batch.delete(&LETTERS, places[1]);
    batch.delete(&BLOBS, (1, "x"));
    store.commit(batch).unwrap().durable_blocking().unwrap();
    assert_eq!((chunks_stored(), store.snapshot().get(&BLOBS, (1, "x")).unwrap()), (0, None));
}

fn scans_merge_all_layers<P: Place>() {
    let place = P::new();
    let store = place.open();
    for key in [1, 2, 3, 4, 5, 6] {
        put_counter(&store, key, key);
    }
    let mut batch = Batch::new();
    batch.delete(&COUNTERS, 2);
    batch.put(&COUNTERS, 4, &40);
    batch.put(&COUNTERS, 7, &70);
    let _pending = store.commit(batch).unwrap();
    let keys = |read: &dyn Fn(Span<u64>) -> Vec<(u64, u64)>| {
        let all = || COUNTERS.all();
        vec![
            read(all()),
            read(all().reversed()),
            read(all().from(3).limit(2)),
            read(all().after(3).before(7)),
            read(all().through(4).reversed().limit(2)),
            read(all().from(100)),
            read(all().limit(0)),
            read(all().from(5).before(5)),
        ]
    };
    let committed = run(store.transact(|tx| {
        tx.delete(&COUNTERS, 1);
        tx.put(&COUNTERS, 5, &50);
        tx.put(&COUNTERS, 8, &80);
        Ok::<_, Error>(keys(&|span| tx.scan(&COUNTERS, span).map(Result::unwrap).collect()))
    }))
    .unwrap();
    let expected = vec![
        vec![(3, 3), (4, 40), (5, 50), (6, 6), (7, 70), (8, 80)],
        vec![(8, 80), (7, 70), (6, 6), (5, 50), (4, 40), (3, 3)],
        vec![(3, 3), (4, 40)],
        vec![(4, 40), (5, 50), (6, 6)],
        vec![(4, 40), (3, 3)],
        vec![],
        vec![],
        vec![],
    ];
    assert_eq!(committed.value, expected);
    let snapshot = store.snapshot();
    assert_eq!(keys(&|span| snapshot.scan(&COUNTERS, span).map(Result::unwrap).collect()), expected);
}

fn reads_agree_with_each_other<P: Place>() {
    let place = P::new();
    let store = place.open();
    let mut batch = Batch::new();
    for key in 0..20 {
        batch.put(&NAMES, &format!("k{key:02}"), &key.to_string());
    }
    store.commit(batch).unwrap().durable_blocking().unwrap();
    let mut batch = Batch::new();
    batch.delete(&NAMES, "k03");
    batch.put(&NAMES, "k04", &"four".to_owned());
    let _pending = store.commit(batch).unwrap();
    fn check(read: &impl Read) {
        let wanted = ["k02", "k03", "k04", "nope", "k19"];
        let many = read.multi_get(&NAMES, wanted).unwrap();
        for (key, value) in wanted.into_iter().zip(many) {
            assert_eq!(read.get(&NAMES, key).unwrap(), value);
            assert_eq!(read.contains(&NAMES, key).unwrap(), value.is_some());
            assert_eq!(read.get_bytes(&NAMES, key).unwrap(), value.clone().map(Bytes::from));
            assert_eq!(read.get_with(&NAMES, key, <[u8]>::len).unwrap(), value.map(|value| value.len()));
        }
        let rows: Vec<_> = read.scan(&NAMES, NAMES.all()).map(Result::unwrap).collect();
        let keys: Vec<_> = read.scan(&NAMES, NAMES.all()).keys().map(Result::unwrap).collect();
        let mut visited = Vec::new();
        read.visit(&NAMES, NAMES.all(), |key, value| {
            visited.push((key, String::from_utf8(value.to_vec()).unwrap()));
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(rows, visited);
        assert_eq!(rows.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>(), keys);
        assert_eq!(read.count(&NAMES, NAMES.all()).unwrap(), rows.len());
        assert_eq!(read.first(&NAMES, NAMES.all()).unwrap(), rows.first().cloned());
        assert_eq!(read.first(&NAMES, NAMES.all().reversed()).unwrap(), rows.last().cloned());
    }
    check(&store.latest());
    check(&store.snapshot());
    run(store.transact(|tx| {
        tx.put(&NAMES, "k02", &"two".to_owned());
        tx.delete(&NAMES, "k19");
        check(tx);
        assert_eq!(tx.peek(&NAMES, "k02").unwrap().as_deref(), Some("2"), "without own writes");
        Ok::<_, Error>(())
    }))
    .unwrap();
}

fn transactions_lose_no_update<P: Place>() {
    const TASKS: u64 = 16;
    const EACH: u64 = 25;
    let place = P::new();
    let store = place.open();
    run(async {
        let mut tasks = Vec::new();
        for task in 0..TASKS {
            let store = store.clone();
            tasks.push(tokio::spawn(async move {
                let mut seen = Vec::new();
                for _ in 0..EACH {
                    let key = if task % 2 == 0 { 1 } else { 2 };
                    let committed = store
                        .transact(|tx| {
                            let next = tx.get(&COUNTERS, key)?.unwrap_or(0) + 1;
                            tx.put(&COUNTERS, key, &next);
                            let pos = tx.next_pos();
                            tx.put(&EVENTS, (key, pos), &Bytes::from(next.to_string()));
                            Ok::<_, Error>((pos, next))
                        })
                        .await
                        .unwrap();
                    let (pos, next) = committed.value;
                    assert!(store.tip() >= committed.version, "an answer comes after the sync");
                    seen.push((committed.resolve(pos), next));
                }
                seen
            }));
        }
        for task in tasks {
            let snapshot = store.snapshot();
            for (pos, next) in task.await.unwrap() {
                if pos <= snapshot.version() {
                    let keys = [1, 2].map(|key| snapshot.get(&EVENTS, (key, pos)).unwrap());
                    assert!(keys.into_iter().flatten().any(|value| value == next.to_string()));
                }
            }
        }
    });
    let snapshot = store.snapshot();
    for key in [1, 2] {
        assert_eq!(counter(&snapshot, key), Some(TASKS / 2 * EACH));
        // The order of positions is the order of the numbers given out.
        let numbers: Vec<u64> = snapshot
            .scan(&EVENTS, EVENTS.prefix((key,)))
            .map(|row| String::from_utf8(row.unwrap().1.to_vec()).unwrap().parse().unwrap())
            .collect();
        assert_eq!(numbers, (1..=TASKS / 2 * EACH).collect::<Vec<_>>());
    }
}

fn transactions_that_fail_write_nothing<P: Place>() {
    #[derive(Debug)]
    enum Refused {
        No(u64),
        Store(Error),
    }
    impl From<Error> for Refused {
        fn from(error: Error) -> Self {
            Self::Store(error)
        }
    }
    let place = P::new();
    let store = place.open();
    put_counter(&store, 1, 5);
    let refused = run(store.transact(|tx| {
        let have = tx.get(&COUNTERS, 1)?.unwrap_or_default();
        tx.put(&COUNTERS, 1, &(have + 1));
        Err::<(), _>(Refused::No(have))
    }));
    assert!(matches!(refused, Err(Refused::No(5))));
    let too_large = run(store.transact(|tx| {
        tx.put(&NAMES, "x", &"x".repeat(limits::VALUE_BYTES + 1));
        Ok::<_, Refused>(())
    }));
    assert!(matches!(too_large, Err(Refused::Store(Error::TooLarge { .. }))));
    let read_only = run(store.transact(|tx| Ok::<_, Refused>(counter(tx, 1)))).unwrap();
    assert_eq!((read_only.value, read_only.version, store.tip()), (Some(5), Pos(1), Pos(1)));
}

fn written_implies_notified<P: Place>() {
    let place = P::new();
    let store = place.open();
    let hub = store.hub();
    let (mine, other) = (hub.signal(), hub.signal());
    hub.attach(Topic::number(ROOM, 7), &mine);
    hub.attach(Topic::number(ROOM, 7), &mine);
    hub.attach(Topic::number(ROOM, 8), &mine);
    hub.attach(Topic::number(ROOM, 9), &other);
    assert_eq!(hub.listeners(), (3, 3));
    run(async {
        let send = |room: u64| {
            let mut batch = Batch::new();
            let pos = batch.next_pos();
            batch.put(&EVENTS, (room, pos), &Bytes::new());
            store.commit(batch).unwrap()
        };
        let since = store.tip();
        let waiter = {
            let (mine, store) = (Arc::clone(&mine), store.clone());
            tokio::spawn(async move {
                mine.changed(since, 0).await;
                (mine.last(), store.snapshot().version())
            })
        };
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!waiter.is_finished());
        let version = send(7).durable().await.unwrap().version;
        let (last, snapshot) = tokio::time::timeout(Duration::from_secs(10), waiter).await.unwrap().unwrap();
        assert_eq!(last, version);
        assert!(snapshot >= version, "woken means visible");
        assert_eq!((mine.last(), other.last()), (version, Pos::ZERO));
        mine.changed(Pos::ZERO, 0).await;

        let second = send(8).durable().await.unwrap().version;
        assert_eq!(mine.last(), second);
        hub.detach(&Topic::number(ROOM, 8), &mine);
        send(8).durable().await.unwrap();
        assert_eq!(mine.last(), second);
        drop(mine);
        send(7).durable().await.unwrap();
        assert_eq!(hub.listeners(), (1, 1), "a forgotten signal is detached when its topic is touched");
    });
}

fn nudges_wake_without_a_version<P: Place>() {
    let place = P::new();
    let store = place.open();
    let topic = Topic::new(ROOM, "typing");
    let signal = store.hub().signal();
    store.hub().attach(topic.clone(), &signal);
    run(async {
        let waiter = {
            let signal = Arc::clone(&signal);
            tokio::spawn(async move { signal.changed(Pos::MAX, 0).await })
        };
        tokio::time::sleep(Duration::from_millis(10)).await;
        store.hub().nudge(&Topic::new(ROOM, "other"));
        assert_eq!(signal.nudges(), 0);
        store.hub().nudge(&topic);
        tokio::time::timeout(Duration::from_secs(10), waiter).await.unwrap().unwrap();
        assert_eq!((signal.nudges(), signal.last()), (1, Pos::ZERO));
    });
}

fn taps_see_every_commit_in_order<P: Place>() {
    let place = P::new();
    let store = place.open();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let fed = Arc::clone(&seen);
    store.hub().tap(|_| panic!("a tap that panics harms nobody"));
    store.hub().tap(move |commits| {
        for commit in commits {
            let rooms: Vec<_> = commit.topics.iter().filter_map(Topic::as_number).collect();
            let counters: Vec<_> = commit.writes_to(&COUNTERS).map(Result::unwrap).collect();
            let keys: Vec<_> = commit.keys_in(&COUNTERS).map(Result::unwrap).collect();
            assert_eq!(keys, counters.iter().map(|(key, _)| *key).collect::<Vec<_>>());
            fed.lock().push((commit.version, rooms, counters));
        }
    });
    let mut expected = Vec::new();
    for room in 0..30 {
        let mut batch = Batch::new();
        let pos = batch.next_pos();
        batch.put(&EVENTS, (room, pos), &Bytes::new());
        if room % 2 == 0 {
            batch.put(&COUNTERS, room, &room);
        } else {
            batch.delete(&COUNTERS, room);
        }
        let ticket = store.commit(batch).unwrap();
        expected.push((ticket.version, vec![room], vec![(room, (room % 2 == 0).then_some(room))]));
        let tip = store.tip();
        assert!(seen.lock().last().map_or(Pos::ZERO, |last| last.0) >= tip, "taps are never behind the snapshot");
        if room == 29 {
            ticket.durable_blocking().unwrap();
        }
    }
    assert_eq!(*seen.lock(), expected);
}

fn the_journal_is_followed_and_trimmed<P: Place>() {
    let place = P::new();
    let store = place.open();
    let send = |room: u64| {
        let mut batch = Batch::new();
        let pos = batch.next_pos();
        batch.put(&EVENTS, (room, pos), &Bytes::new());
        batch.touch(Topic::new(2, "extra"));
        batch.touch(Topic::number(ROOM, room));
        store.commit(batch).unwrap().durable_blocking().unwrap().version
    };
    let mut tip = store.hub().watch_tip();
    let versions: Vec<_> = (0..10).map(send).collect();
    assert!(tip.has_changed().unwrap());
    assert_eq!(*tip.borrow_and_update(), store.tip());
    put_counter(&store, 1, 1);
    let entries = journal::read(&store.snapshot(), Pos::ZERO, 100).unwrap();
    assert_eq!(entries.iter().map(|entry| entry.version).collect::<Vec<_>>(), versions, "no topic, no entry");
    assert_eq!(entries[3].topics, [Topic::number(ROOM, 3), Topic::new(2, "extra")]);
    assert_eq!(journal::read(&store.snapshot(), versions[4], 2).unwrap(), entries[5..7]);

    let advance = |follower: &str, to: Pos| {
        let mut batch = Batch::new();
        journal::advance(&mut batch, follower, to);
        store.commit(batch).unwrap().durable_blocking().unwrap();
    };
    let trim = |keep| {
        let mut batch = Batch::new();
        let count = journal::trim(&store.snapshot(), &mut batch, keep).unwrap();
        store.commit(batch).unwrap().durable_blocking().unwrap();
        count
    };
    advance("push", versions[2]);
    advance("federation", versions[6]);
    assert_eq!(journal::cursor(&store.snapshot(), "push").unwrap(), Some(versions[2]));
    assert_eq!(trim(0), 3, "what the slowest follower has dealt with");
    assert_eq!(trim(0), 0);
    advance("push", versions[9]);
    let mut batch = Batch::new();
    journal::forget(&mut batch, "federation");
    store.commit(batch).unwrap().durable_blocking().unwrap();
    let newest = store.tip().0 - versions[7].0;
    assert_eq!(trim(newest), 5, "but the newest stay");
    let left = journal::read(&store.snapshot(), Pos::ZERO, 100).unwrap();
    assert_eq!(left.iter().map(|entry| entry.version).collect::<Vec<_>>(), versions[8..]);
}

fn a_store_opens_where_it_was_closed<P: Place>() {
    let place = P::new();
    for round in 0..3 {
        let store = place.open();
        assert_eq!((store.tip(), counter(&store.snapshot(), 1)), (Pos(round * 20), (round > 0).then_some(round * 20)));
        for value in 1..=20 {
            let mut batch = Batch::new();
            batch.put(&COUNTERS, 1, &(round * 20 + value));
            // Dropping the store writes what is queued.
            let _unawaited = store.commit(batch).unwrap();
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Commit(Vec<(u8, Option<u8>)>),
    Sync,
    Transact(u8, u8),
    Read { low: u8, high: u8, reversed: bool, limit: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let write = (0u8..24, prop_oneof![3 => any::<u8>().prop_map(Some), 1 => Just(None)]);
    prop_oneof![
        4 => vec(write, 1..8).prop_map(Step::Commit),
        1 => Just(Step::Sync),
        1 => (0u8..24, any::<u8>()).prop_map(|(key, add)| Step::Transact(key, add)),
        3 => (0u8..26, 0u8..26, any::<bool>(), 0usize..30)
            .prop_map(|(low, high, reversed, limit)| Step::Read { low, high, reversed, limit }),
    ]
}

type Model = BTreeMap<u64, u64>;

fn random_histories_match_a_model<P: Place>() {
    proptest!(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() }, |(steps in vec(step(), 1..60))| {
        let place = P::new();
        let store = place.open();
        let mut models = vec![Model::new()];
        for step in steps {
            apply(&store, &mut models, step);
        }
        let tip = Pos(models.len() as u64 - 1);
        drop(store);
        let store = place.open();
        assert_eq!(store.tip(), tip);
        check(&store.snapshot(), &models, COUNTERS.all(), 0, u8::MAX, false, usize::MAX);
    });
}

fn apply(store: &Store, models: &mut Vec<Model>, step: Step) {
    let mut next = models.last().unwrap().clone();
    match step {
        Step::Commit(writes) => {
            let mut batch = Batch::new();
            for (key, value) in writes {
                let key = u64::from(key);
                match value {
                    Some(value) => {
                        batch.put(&COUNTERS, key, &u64::from(value));
                        next.insert(key, u64::from(value));
                    }
                    None => {
                        batch.delete(&COUNTERS, key);
                        next.remove(&key);
                    }
                }
            }
            let ticket = store.commit(batch).unwrap();
            assert_eq!(ticket.version, Pos(models.len() as u64));
            models.push(next);
        }
        Step::Sync => run(store.settled(&store.latest())).unwrap(),
        Step::Transact(key, add) => {
            let key = u64::from(key);
            let committed = run(store.transact(|tx| {
                let sum = tx.get(&COUNTERS, key)?.unwrap_or_default() + u64::from(add);
                tx.put(&COUNTERS, key, &sum);
                Ok::<_, Error>(sum)
            }));
            next.insert(key, committed.unwrap().value);
            models.push(next);
        }
        Step::Read { low, high, reversed, limit } => {
            let mut span = COUNTERS.all().from(u64::from(low)).before(u64::from(high)).limit(limit);
            if reversed {
                span = span.reversed();
            }
            check(&store.latest(), models, span.clone(), low, high, reversed, limit);
            check(&store.snapshot(), models, span, low, high, reversed, limit);
        }
    }
}

/// Compares a scan and look-ups with the model of the version that is read.
fn check(read: &impl Read, models: &[Model], span: Span<u64>, low: u8, high: u8, reversed: bool, limit: usize) {
    let model = &models[read.version().0 as usize];
    let inside = model.iter().filter(|(key, _)| (u64::from(low)..u64::from(high)).contains(key)).map(|(k, v)| (*k, *v));
    let mut expected: Vec<_> = inside.collect();
    if reversed {
        expected.reverse();
    }
    expected.truncate(limit);
    assert_eq!(read.scan(&COUNTERS, span).map(Result::unwrap).collect::<Vec<_>>(), expected);
    assert_eq!(counter(read, u64::from(low)), model.get(&u64::from(low)).copied());
}
