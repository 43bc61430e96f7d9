//! Running other programs with visible progress: every step has a headline and a time, every long silence a sign of life.
//!
//! Lives here: the working directory, the target directory, spawning, echoing, the ticker, and reading the counts that
//! test runners print. Not here: which programs are run.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How many object files RocksDB compiles to, near enough for a progress line.
const ROCKSDB_OBJECTS: usize = 343;
const TICK: Duration = Duration::from_secs(30);
/// How long a step's output may go on after its end.
const LAST_LINES: Duration = Duration::from_secs(3);

/// What a step of tests counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// The repository's top folder: this crate lies two levels below it.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap_or(Path::new(".")).to_owned()
}

/// Where cargo puts what it builds.
pub(crate) fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) if !dir.is_empty() => root().join(dir),
        _ => root().join("target"),
    }
}

/// Where things that outlive a clone are kept (the client suites' packages).
pub(crate) fn cache_dir() -> PathBuf {
    let base = match std::env::var_os("XDG_CACHE_HOME") {
        Some(dir) if !dir.is_empty() => PathBuf::from(dir),
        _ => PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/tmp".into())).join(".cache"),
    };
    base.join("skerry")
}

/// A command in the repository's top folder.
pub(crate) fn command<I, S>(program: &str, args: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new(program);
    command.args(args).current_dir(root());
    command
}

/// A cargo command: the cargo that runs us, in the repository's top folder.
///
/// What `cargo run` told us about ourselves is taken out of the environment: build scripts look at it (ring's does),
/// and `cargo build` after `cargo xtask` would build half the tree again.
pub(crate) fn cargo<I, S>(args: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = command(&std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()), args);
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(is_about_us) {
            command.env_remove(name);
        }
    }
    command
}

/// Whether a variable describes the package that `cargo run` runs.
fn is_about_us(variable: &str) -> bool {
    ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_NAME", "CARGO_PRIMARY_PACKAGE"]
        .iter()
        .any(|start| variable.starts_with(start))
        || variable == "OUT_DIR"
}

/// Standard output of a quiet helper command; an error when it fails.
pub(crate) fn output(mut command: Command) -> Result<String> {
    let out = command.stdin(Stdio::null()).output().with_context(|| format!("starting {command:?}"))?;
    if !out.status.success() {
        bail!("{command:?} failed ({}):\n{}", out.status, String::from_utf8_lossy(&out.stderr));
    }
    String::from_utf8(out.stdout).context("output is not UTF-8")
}

/// Runs one step to its end, echoing what it prints; an error when it fails.
pub(crate) fn step(headline: &str, command: Command) -> Result<()> {
    let (ok, _) = counted_step(headline, command)?;
    if !ok {
        bail!("{headline}: failed");
    }
    Ok(())
}

/// Like [`step`], and adds up the test counts in its output. The flag tells whether it exited with success.
pub(crate) fn counted_step(headline: &str, mut command: Command) -> Result<(bool, Counts)> {
    println!("\n== {headline}");
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {command:?}"))?;
    let ticker = Ticker::start();
    let counts = Arc::default();
    let (open, ended) = mpsc::channel();
    if let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) {
        echo(stdout, ticker.seen(), Arc::clone(&counts), open.clone());
        echo(stderr, ticker.seen(), Arc::clone(&counts), open);
    }
    let status = child.wait()?;
    // The output ends with the step, unless something that it has left behind holds on to it.
    if ended.recv_timeout(LAST_LINES) == Err(RecvTimeoutError::Timeout) {
        println!("== {headline}: has ended, but something that it started still runs");
    }
    drop(ticker);
    let word = if status.success() { "ok" } else { "FAILED" };
    println!("== {headline}: {word} in {:.1} s", started.elapsed().as_secs_f64());
    let counts = *counts.lock().unwrap_or_else(PoisonError::into_inner);
    Ok((status.success(), counts))
}

/// Copies lines to our output as they come and adds up the counts in them. Drops `open` at the end.
fn echo(pipe: impl Read + Send + 'static, seen: Arc<AtomicU64>, counts: Arc<Mutex<Counts>>, open: Sender<()>) {
    thread::spawn(move || {
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        while pipe.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            let text = String::from_utf8_lossy(&line);
            let _ = write!(std::io::stdout().lock(), "{text}");
            counts.lock().unwrap_or_else(PoisonError::into_inner).add(counts_in(&text));
            seen.fetch_add(1, Ordering::Relaxed);
            line.clear();
        }
        drop(open);
    });
}

/// One closing line of Node's test runner, behind its mark.
fn node_counts(line: &str) -> Counts {
    let mut counts = Counts::default();
    if let Some((what, number)) = line.split_once(' ')
        && let Ok(number) = number.parse()
    {
        match what {
            "pass" => counts.passed = number,
            "fail" | "cancelled" => counts.failed = number,
            "skipped" => counts.skipped = number,
            _ => {}
        }
    }
    counts
}

/// Reads the closing lines of cargo test, nextest, node and our own suites.
fn counts_in(line: &str) -> Counts {
    let line = line.trim();
    let cargo_test = line.strip_prefix("test result:").and_then(|rest| rest.split_once(". ")).map(|(_, rest)| rest);
    let nextest = line.strip_prefix("Summary [").and_then(|rest| rest.split_once("run:")).map(|(_, rest)| rest);
    let suite = line.split_once(": ").map(|(_, rest)| rest).filter(|rest| rest.contains(" passed, "));
    if let Some(node) = line.strip_prefix("ℹ ") {
        return node_counts(node);
    }
    let Some(list) = cargo_test.or(nextest).or(suite) else { return Counts::default() };
    let mut counts = Counts::default();
    for item in list.split([',', ';']) {
        let mut words = item.split_whitespace();
        let (Some(Ok(number)), Some(what)) = (words.next().map(str::parse::<u64>), words.next()) else { continue };
        match what {
            "passed" => counts.passed += number,
            "failed" | "timed" => counts.failed += number,
            "ignored" | "skipped" => counts.skipped += number,
            _ => {}
        }
    }
    counts
}

/// Says every half minute that something is going on, and how far RocksDB is while it builds.
struct Ticker {
    stop: Arc<AtomicBool>,
    seen: Arc<AtomicU64>,
}

impl Ticker {
    fn start() -> Self {
        let ticker = Self { stop: Arc::default(), seen: Arc::default() };
        let (stop, seen) = (Arc::clone(&ticker.stop), Arc::clone(&ticker.seen));
        thread::spawn(move || {
            let started = Instant::now();
            let mut next = TICK;
            let mut lines = 0;
            let mut objects = rocksdb_objects();
            while !stop.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(250));
                if started.elapsed() < next {
                    continue;
                }
                next += TICK;
                let (now_lines, now_objects) = (seen.load(Ordering::Relaxed), rocksdb_objects());
                if now_objects > objects {
                    println!(
                        "   ... {:>4} s: RocksDB builds, {now_objects} of about {ROCKSDB_OBJECTS} files",
                        next_s(next)
                    );
                } else if now_lines == lines {
                    println!("   ... {:>4} s: still at it", next_s(next));
                }
                (lines, objects) = (now_lines, now_objects);
            }
        });
        ticker
    }

    fn seen(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.seen)
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn next_s(next: Duration) -> u64 {
    (next - TICK).as_secs()
}

/// Object files that RocksDB's build script has made so far, over all profiles.
fn rocksdb_objects() -> usize {
    let mut found = 0;
    for profile in ["debug", "release"] {
        let Ok(builds) = std::fs::read_dir(target_dir().join(profile).join("build")) else { continue };
        for build in builds.flatten() {
            if build.file_name().to_string_lossy().starts_with("librocksdb-sys-") {
                found += objects_below(&build.path().join("out"));
            }
        }
    }
    found
}

fn objects_below(dir: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => objects_below(&entry.path()),
            Ok(_) if entry.path().extension().is_some_and(|e| e == "o") => 1,
            _ => 0,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cargo_told_us_about_ourselves_is_not_passed_on() {
        for variable in ["CARGO_PKG_NAME", "CARGO_MANIFEST_DIR", "CARGO_PRIMARY_PACKAGE", "OUT_DIR"] {
            assert!(is_about_us(variable), "{variable}");
        }
        for variable in ["CARGO_TARGET_DIR", "CARGO_BUILD_JOBS", "CARGO_HOME", "CARGO", "PATH"] {
            assert!(!is_about_us(variable), "{variable}");
        }
        let kept: Vec<_> =
            cargo(["--version"]).get_envs().filter(|(_, value)| value.is_some()).map(|e| e.0.to_owned()).collect();
        assert!(kept.is_empty(), "only taken out, nothing set: {kept:?}");
    }

    #[test]
    fn a_step_ends_though_something_that_it_started_does_not() {
        let started = Instant::now();
        // What it says is not caught, and must not look like a count to whoever counts these tests.
        let (ok, counts) = counted_step("leaves something behind", command("sh", ["-c", "sleep 30 & exit 1"])).unwrap();
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
        assert_eq!((ok, counts), (false, Counts::default()));
    }

    fn check(line: &str, passed: u64, failed: u64, skipped: u64) {
        assert_eq!(counts_in(line), Counts { passed, failed, skipped }, "{line}");
    }

    #[test]
    fn closing_lines_are_counted() {
        check(
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s\n",
            12,
            0,
            1,
        );
        check("test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 7 filtered out", 3, 2, 0);
        check("     Summary [   1.204s] 40 tests run: 38 passed (1 slow), 2 failed, 3 skipped", 38, 2, 3);
        check("     Summary [   1.204s] 40 tests run: 38 passed, 1 failed, 1 timed out, 0 skipped", 38, 2, 0);
        check("nio: 21 passed, 1 failed", 21, 1, 0);
        check("ℹ pass 17", 17, 0, 0);
        check("ℹ cancelled 1", 0, 1, 0);
        check("ℹ duration_ms 12.5", 0, 0, 0);
        check("nothing to see: 3 of 4", 0, 0, 0);
    }
}
