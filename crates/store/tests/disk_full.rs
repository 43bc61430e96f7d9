//! A disk that is really full: writes are refused, reads go on, and writes go on when there is space again.
//!
//! Needs to mount a small tmpfs, so it runs itself in a user namespace. Where the system allows neither that nor root,
//! the test says so and ends.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "tests")]

use std::{
    env, fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use bytes::Bytes;
use store::{Batch, Disk, Error, Hint, Pos, Read, Store, Table};

static ROWS: Table<u64, Bytes> = Table::new(1, "rows", Hint::Bulk, None, "ballast that does not compress");

/// Tells this test that it runs inside the namespace, and where it may mount.
const CHILD_DIR: &str = "STORE_DISK_FULL_TEST_DIR";

fn inside_namespace(test: &str, check: fn(&Path)) {
    if let Ok(dir) = env::var(CHILD_DIR) {
        let dir = Path::new(&dir);
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=48m", "tmpfs"]).arg(dir).status().unwrap();
        assert!(mounted.success());
        check(dir);
        return;
    }
    if !Command::new("unshare").args(["-rm", "true"]).status().is_ok_and(|status| status.success()) {
        eprintln!("cannot make a namespace with a small disk here; {test} checks nothing");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let status = Command::new("unshare")
        .arg("-rm")
        .arg(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(CHILD_DIR, dir.path())
        .status()
        .unwrap();
    assert!(status.success());
}

/// Rows of bytes that do not compress.
struct Writer {
    store: Store,
    next: u64,
    acknowledged: Vec<u64>,
}

impl Writer {
    fn new(disk: Disk) -> Self {
        Self { store: Store::open(disk).unwrap(), next: 0, acknowledged: Vec::new() }
    }

    fn write(&mut self) -> Result<Pos, Error> {
        self.next += 1;
        let mut batch = Batch::new();
        batch.put(&ROWS, self.next, &noise(self.next));
        let version = self.store.commit(batch)?.durable_blocking()?.version;
        self.acknowledged.push(self.next);
        Ok(version)
    }

    /// Writes until it is refused.
    fn fill(&mut self) -> Error {
        for _ in 0..10_000 {
            if let Err(error) = self.write() {
                return error;
            }
        }
        panic!("the disk never became full");
    }

    #[expect(clippy::disallowed_methods, reason = "how long a real disk takes is real time")]
    fn write_when_recovered(&mut self) -> Duration {
        let start = Instant::now();
        while let Err(error) = self.write() {
            assert!(matches!(error, Error::Full | Error::Engine(_)), "{error}");
            assert!(start.elapsed() < Duration::from_secs(40), "no recovery: {error}");
            std::thread::sleep(Duration::from_millis(50));
        }
        start.elapsed()
    }

    fn check_rows(&self) {
        let snapshot = self.store.snapshot();
        for &row in &self.acknowledged {
            assert_eq!(snapshot.get(&ROWS, row).unwrap(), Some(noise(row)), "row {row} was acknowledged");
        }
    }

    fn reopen(self, disk: Disk) {
        let Self { store, next, acknowledged } = self;
        let tip = store.tip();
        drop(store);
        let reopened = Self { store: Store::open(disk).unwrap(), next, acknowledged };
        assert!(reopened.store.tip() >= tip);
        reopened.check_rows();
    }
}

fn noise(seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()
    };
    (0..4096).flat_map(|_| next()).collect()
}

#[test]
fn the_reserve_keeps_the_disk_from_filling_up() {
    inside_namespace("the_reserve_keeps_the_disk_from_filling_up", |dir| {
        let ballast = dir.join("ballast");
        let disk = Disk::at(dir.join("db")).memory_budget_bytes(8 << 20).reserve_bytes(8 << 20);
        let mut writer = Writer::new(disk.clone());
        for _ in 0..50 {
            writer.write().unwrap();
        }
        for round in 0..3 {
            fs::write(&ballast, vec![round; 36 << 20]).unwrap();
            assert!(matches!(writer.fill(), Error::Full));
            assert!(matches!(writer.store.health(), Err(Error::Full)));
            writer.check_rows();
            fs::remove_file(&ballast).unwrap();
            let took = writer.write_when_recovered();
            assert!(took < Duration::from_secs(3), "recovered after {took:?}");
            writer.check_rows();
        }
        writer.reopen(disk);
    });
}

#[test]
fn a_write_that_fails_half_way_is_recovered_from() {
    inside_namespace("a_write_that_fails_half_way_is_recovered_from", |dir| {
        let ballast = dir.join("ballast");
        // No reserve: the engine itself hits the end of the disk.
        let disk = Disk::at(dir.join("db")).memory_budget_bytes(8 << 20).reserve_bytes(0);
        let mut writer = Writer::new(disk.clone());
        for _ in 0..20 {
            writer.write().unwrap();
        }
        for round in 0..3 {
            let free = 4 << 20;
            let stat = nix::sys::statvfs::statvfs(dir).unwrap();
            let available = (stat.blocks_available() * stat.fragment_size()) as usize;
            fs::write(&ballast, vec![round; available - free]).unwrap();
            let error = writer.fill();
            assert!(matches!(error, Error::Full), "{error}");
            writer.check_rows();
            fs::remove_file(&ballast).unwrap();
            let took = writer.write_when_recovered();
            eprintln!("round {round}: recovered after {took:?}");
            for _ in 0..20 {
                writer.write().unwrap();
            }
            writer.check_rows();
        }
        writer.reopen(disk);
    });
}
