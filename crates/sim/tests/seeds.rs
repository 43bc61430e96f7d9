//! Many worlds, each from its seed; that a seed is a world; and that the oracles see what is wrong.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use sim::{Failure, Options, STEPS, Sabotage, run};

const SEEDS: u64 = 1_000;

fn options(seed: u64) -> Options {
    Options { seed, steps: STEPS, sabotage: None }
}

/// Runs worlds on all processors, until `enough` of them failed.
fn failures(seeds: u64, enough: usize, of: impl Fn(u64) -> Options + Sync) -> Vec<Failure> {
    let next = AtomicU64::new(0);
    let failures = Mutex::new(Vec::new());
    let threads = thread::available_parallelism().map_or(2, usize::from);
    let work = || {
        while failures.lock().unwrap().len() < enough {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return;
            }
            failures.lock().unwrap().extend(run(&of(seed)).err());
        }
    };
    thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    failures.into_inner().unwrap()
}

#[test]
fn worlds_hold_together() {
    let failures = failures(SEEDS, 5, options);
    for failure in &failures {
        println!("{failure}\n");
    }
    let seeds: Vec<u64> = failures.iter().map(|failure| failure.seed).collect();
    assert!(seeds.is_empty(), "replay with: cargo xtask sim --seed N --full, N of {seeds:?}");
}

#[test]
fn a_seed_is_a_world() {
    for seed in [3, 7, 11, 42, 77, 123] {
        let (first, second) = (run(&options(seed)).unwrap(), run(&options(seed)).unwrap());
        assert_eq!(first, second, "seed {seed}");
        assert_ne!(first.trace_hash, run(&options(seed + 1_000)).unwrap().trace_hash);
    }
}

#[test]
fn planted_bugs_are_found() {
    for sabotage in Sabotage::ALL {
        let found = failures(40, 8, |seed| Options { sabotage: Some(sabotage), ..options(seed) });
        let found: Vec<&str> = found.iter().map(|failure| failure.what.as_str()).collect();
        let noticed = found.iter().any(|what| what.contains(sign_of(sabotage)));
        assert!(noticed, "nobody noticed {sabotage:?}: {found:#?}");
    }
}

/// What the oracle says whose business it is.
fn sign_of(sabotage: Sabotage) -> &'static str {
    match sabotage {
        Sabotage::DropTimelineEvent | Sabotage::SwapTimelineEvents => "timeline",
        Sabotage::DropStateEvent => "state (incremental) differ",
        Sabotage::DropReceipt => "receipts differ",
        Sabotage::DropAccountData => "account data",
        Sabotage::DropNote => "never came to device",
        Sabotage::DropLeave => "joined rooms differ",
        Sabotage::MiscountUnread => "unread counts differ",
        Sabotage::MistakeUser => " saw ",
        Sabotage::SleepThrough => "sleeps on",
        Sabotage::ForgetTransaction => "one transaction is answered",
        Sabotage::LoseDurable => "acknowledged",
    }
}
