//! `kill -9` under load: every commit that was acknowledged is there afterwards, once, and in order.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "tests")]

use std::{
    env,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use rand::{Rng, SeedableRng};
use store::{Disk, Error, Hint, Pos, Read, Store, Table};

/// What each writer has come to.
static LAST: Table<u64, u64> = Table::new(1, "last", Hint::Small, None, "the last number of a writer");
/// All numbers, by position.
static LOG: Table<Pos, (u64, u64)> = Table::new(2, "log", Hint::Log, None, "writer and number");
static BULK: Table<(u64, u64), bytes::Bytes> = Table::new(3, "bulk", Hint::Bulk, None, "ballast");

const WRITERS: u64 = 8;
const ROUNDS: u64 = 30;
/// Tells this test that it is the child, and where.
const CHILD_DIR: &str = "STORE_CRASH_TEST_DIR";

#[test]
fn every_acknowledged_commit_survives_kill_9() {
    if let Ok(dir) = env::var(CHILD_DIR) {
        commit_until_killed(Path::new(&dir));
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(7);
    let mut acknowledged = [0; WRITERS as usize];
    for round in 0..ROUNDS {
        let lifetime = Duration::from_millis(random.random_range(5..150));
        for (writer, number) in run_and_kill(dir.path(), lifetime) {
            let known = &mut acknowledged[writer as usize];
            *known = number.max(*known);
        }
        verify(dir.path(), &acknowledged, round);
    }
    assert!(acknowledged.iter().sum::<u64>() > ROUNDS, "something was committed: {acknowledged:?}");
}

/// Every writer counts up, each number in a commit of its own, and prints it once it is durable.
fn commit_until_killed(dir: &Path) {
    let store = Store::open(Disk::at(dir).memory_budget_bytes(8 << 20).reserve_bytes(0)).unwrap();
    println!("open");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let writers: Vec<_> = (0..WRITERS).map(|writer| tokio::spawn(count_up(store.clone(), writer))).collect();
        for writer in writers {
            writer.await.unwrap();
        }
    });
}

async fn count_up(store: Store, writer: u64) {
    let ballast = Arc::new(bytes::Bytes::from(vec![writer as u8; 3000]));
    loop {
        let committed = store
            .transact(|tx| {
                let next = tx.get(&LAST, writer)?.unwrap_or_default() + 1;
                let pos = tx.next_pos();
                tx.put(&LAST, writer, &next);
                tx.put(&LOG, pos, &(writer, next));
                tx.put(&BULK, (writer, next % 500), &ballast);
                Ok::<_, Error>(next)
            })
            .await
            .unwrap();
        println!("{writer} {}", committed.value);
    }
}

/// Runs the child for a while after it opened the store; what it acknowledged.
fn run_and_kill(dir: &Path, lifetime: Duration) -> Vec<(u64, u64)> {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "every_acknowledged_commit_survives_kill_9", "--nocapture"])
        .env(CHILD_DIR, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.ends_with("open")), "the child opens the store");
    let reader = std::thread::spawn(move || lines.filter_map(|line| parse(&line)).collect());
    std::thread::sleep(lifetime);
    child.kill().unwrap();
    child.wait().unwrap();
    reader.join().unwrap()
}

fn parse(line: &str) -> Option<(u64, u64)> {
    let (writer, number) = line.split_once(' ')?;
    Some((writer.parse().ok()?, number.parse().ok()?))
}

fn verify(dir: &Path, acknowledged: &[u64], round: u64) {
    let store = Store::open(Disk::at(dir).memory_budget_bytes(8 << 20)).unwrap();
    let snapshot = store.snapshot();
    let mut counted = [0; WRITERS as usize];
    let mut positions = 0;
    for row in snapshot.scan(&LOG, LOG.all()) {
        let (pos, (writer, number)) = row.unwrap();
        positions += 1;
        assert_eq!(pos, Pos(positions), "round {round}: no position is missing");
        counted[writer as usize] += 1;
        assert_eq!(number, counted[writer as usize], "round {round}: exactly once and in order");
    }
    assert_eq!(snapshot.version(), Pos(positions), "round {round}: the tip fits the rows");
    for (writer, &number) in acknowledged.iter().enumerate() {
        let there = counted[writer];
        assert!(there >= number, "round {round}: writer {writer} was told {number}, but only {there} are there");
        assert_eq!(
            snapshot.get(&LAST, writer as u64).unwrap().unwrap_or_default(),
            there,
            "round {round}: whole commits"
        );
    }
}
