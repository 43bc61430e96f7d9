//! What a commit, a read and a notification cost. `cargo bench -p store`.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "benches measure real time")]

use std::{
    hint::black_box,
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use store::{Batch, Disk, Hint, MemoryDisk, Pos, Read, Store, Table, Topic};
use tokio::runtime::Runtime;

const ROOM: u8 = 1;
static EVENTS: Table<(u64, Pos), Bytes> =
    Table::new(1, "events", Hint::Bulk, Some(|(room, _)| Topic::number(ROOM, room)), "events");
static EVENT_IDS: Table<[u8; 32], (u64, u64)> = Table::new(2, "event_ids", Hint::Lookup, None, "event ids");
static HEADS: Table<u64, Pos> = Table::new(3, "heads", Hint::Small, None, "heads");
static TXNS: Table<(u64, String), Pos> = Table::new(4, "txns", Hint::Lookup, None, "transaction ids");

fn open(dir: &tempfile::TempDir) -> Store {
    Store::open(Disk::at(dir.path()).memory_budget_bytes(128 << 20)).unwrap()
}

/// The rows of one message.
fn event(batch: &mut Batch, number: u64, body: &Bytes) {
    let room = number % 64;
    let mut id = [0; 32];
    id[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    let pos = batch.next_pos();
    batch.put(&EVENTS, (room, pos), body);
    batch.put(&EVENT_IDS, &id, &(room, number));
    batch.put(&HEADS, room, &pos);
    batch.put(&TXNS, (number % 100, &format!("m{number}")), &pos);
    for other in 1..5u8 {
        id[31] = other;
        batch.put(&EVENT_IDS, &id, &(room, number));
    }
}

fn commits(c: &mut Criterion) {
    let body = Bytes::from(vec![b'x'; 700]);
    let runtime = Runtime::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let mut number = 0;
    c.bench_function("commit 8 rows, durable, one at a time", |b| {
        b.iter_batched(
            || {
                number += 1;
                let mut batch = Batch::new();
                event(&mut batch, number, &body);
                batch
            },
            |batch| store.commit(batch).unwrap().durable_blocking().unwrap(),
            BatchSize::SmallInput,
        );
    });
    c.bench_function("transact 8 rows, durable, 64 at a time", |b| {
        b.iter_custom(|iterations| runtime.block_on(concurrently(&store, 64, iterations, &body)));
    });
    let memory = Store::open(MemoryDisk::new()).unwrap();
    c.bench_function("sequence 8 rows (in memory, not waiting)", |b| {
        b.iter_batched(
            || {
                number += 1;
                let mut batch = Batch::new();
                event(&mut batch, number, &body);
                batch
            },
            |batch| while memory.commit(batch.clone()).is_err() {},
            BatchSize::SmallInput,
        );
    });
}

async fn concurrently(store: &Store, tasks: u64, iterations: u64, body: &Bytes) -> Duration {
    let start = Instant::now();
    let each = iterations.div_ceil(tasks);
    let running: Vec<_> = (0..tasks)
        .map(|task| {
            let (store, body) = (store.clone(), body.clone());
            tokio::spawn(async move {
                for n in 0..each {
                    let number = (task << 32) + n * 64 + task;
                    let sent = store.transact(|tx| {
                        tx.get(&HEADS, number % 64)?;
                        event(tx.batch(), number, &body);
                        Ok::<_, store::Error>(())
                    });
                    sent.await.unwrap();
                }
            })
        })
        .collect();
    for task in running {
        task.await.unwrap();
    }
    start.elapsed()
}

fn reads(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let body = Bytes::from(vec![b'x'; 700]);
    let mut last = None;
    for number in 0..20_000 {
        let mut batch = Batch::new();
        event(&mut batch, number, &body);
        last = Some(store.commit(batch).unwrap());
        if number % 500 == 0 {
            last.take().unwrap().durable_blocking().unwrap();
        }
    }
    last.unwrap().durable_blocking().unwrap();
    store.compact().unwrap();
    let snapshot = store.snapshot();
    let mut room = 0;
    c.bench_function("get, cached", |b| {
        b.iter(|| {
            room = (room + 1) % 64;
            snapshot.get(&HEADS, room).unwrap().unwrap()
        });
    });
    let first = snapshot.first(&EVENTS, EVENTS.prefix((7,))).unwrap().unwrap().0;
    c.bench_function("get_with of an event, cached", |b| {
        b.iter(|| snapshot.get_with(&EVENTS, first, <[u8]>::len).unwrap().unwrap());
    });
    c.bench_function("get of what is not there", |b| {
        b.iter(|| snapshot.contains(&EVENT_IDS, black_box(&[7; 32])).unwrap());
    });
    c.bench_function("multi_get of 16, cached", |b| {
        b.iter(|| snapshot.multi_get(&HEADS, black_box(0..16)).unwrap());
    });
    c.bench_function("scan of 100 events, newest first", |b| {
        b.iter(|| {
            let mut bytes = 0;
            snapshot
                .visit(&EVENTS, EVENTS.prefix((7,)).reversed().limit(100), |_, value| {
                    bytes += value.len();
                    ControlFlow::Continue(())
                })
                .unwrap();
            bytes
        });
    });
    c.bench_function("snapshot", |b| b.iter(|| store.snapshot()));
    c.bench_function("latest view", |b| b.iter(|| store.latest()));
}

fn notifications(c: &mut Criterion) {
    let body = Bytes::from_static(b"x");
    for listeners in [0, 1_000] {
        let store = Store::open(MemoryDisk::new()).unwrap();
        let signals: Vec<_> = (0..listeners).map(|_| store.hub().signal()).collect();
        for signal in &signals {
            store.hub().attach(Topic::number(ROOM, 1), signal);
        }
        c.bench_function(&format!("one commit in memory, {listeners} idle signals"), |b| {
            b.iter_batched(
                || {
                    let mut batch = Batch::new();
                    batch.put(&EVENTS, (1, Pos::pending(0)), &body);
                    batch
                },
                |batch| store.commit(batch).unwrap().durable_blocking().unwrap(),
                BatchSize::SmallInput,
            );
        });
        assert!(signals.iter().all(|signal| Arc::strong_count(signal) == 2));
    }
}

criterion_group!(benches, commits, reads, notifications);
criterion_main!(benches);
