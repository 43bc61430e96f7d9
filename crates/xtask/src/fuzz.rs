//! `cargo xtask fuzz`: builds a target of `tests/fuzz` with the stable compiler, runs it, and keeps what is worth it.
//!
//! Lives here: the compiler's flags, the fuzzer's options, and the packs in which inputs are kept (so that a thousand
//! small files are one). Not here: what is run (`fuzz` in the homeserver, in `bundle` and in `updater`), and the replay (their tests).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::{needs, run};

/// What cargo-fuzz passes too, short of what takes a nightly compiler: counters at every branch, and the operands of
/// comparisons.
const FLAGS: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];
const DEFAULT_MINUTES: u64 = 10;
/// A pack grows no larger: it is committed, and replayed by every `cargo test`.
const LARGEST_PACK: usize = 96 * 1024;

pub(crate) fn verb(args: &[String]) -> Result<()> {
    let targets = targets()?;
    let (target, minutes) = match args {
        [target] => (target, DEFAULT_MINUTES),
        [target, flag, minutes] if flag == "--minutes" => (target, minutes.parse().context("--minutes")?),
        _ => bail!("usage: cargo xtask fuzz TARGET [--minutes N]; TARGET: {}", targets.join(", ")),
    };
    if !targets.contains(target) {
        bail!("no target {target}; there are: {}", targets.join(", "));
    }
    needs::build()?;
    let binary = build(target)?;
    let places = Places::new(target)?;
    let status = places.run(&binary, minutes);
    places.keep(&binary)?;
    status
}

/// The targets, by their files.
fn targets() -> Result<Vec<String>> {
    let mut names: Vec<String> = std::fs::read_dir(run::root().join("tests/fuzz/fuzz_targets"))?
        .filter_map(|entry| Some(entry.ok()?.path().file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort_unstable();
    Ok(names)
}

fn folder() -> PathBuf {
    run::target_dir().join("fuzz")
}

/// Builds with a target folder of its own: the flags are others. They are not meant for build scripts, which is why the
/// machine's own architecture is named.
fn build(target: &str) -> Result<PathBuf> {
    let machine = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let manifest = run::root().join("tests/fuzz/Cargo.toml");
    let args = ["build", "--release", "--locked", "--bin", target, "--target", &machine, "--manifest-path"];
    let mut command = run::cargo(args);
    command.arg(manifest).env("CARGO_TARGET_DIR", folder()).env("RUSTFLAGS", FLAGS.join(" "));
    // The storage engine is not what is fuzzed: one that is built already will do.
    if let Some(library) = built_engine() {
        command.env("ROCKSDB_LIB_DIR", library).env("ROCKSDB_STATIC", "1");
    }
    run::step(&format!("cargo build of {target}"), command)?;
    Ok(folder().join(machine).join("release").join(target))
}

fn built_engine() -> Option<PathBuf> {
    let builds = std::fs::read_dir(run::target_dir().join("debug/build")).ok()?;
    let mut outputs = builds.filter_map(|entry| Some(entry.ok()?.path().join("out")));
    outputs.find(|out| out.join("librocksdb.a").is_file())
}

/// Where the inputs of a target are.
struct Places {
    target: String,
    /// What is being worked with: everything that the fuzzer ever kept here.
    corpus: PathBuf,
    /// What is committed.
    pack: PathBuf,
    found: PathBuf,
}

impl Places {
    /// Fills the working folder with what is committed and, the first time, with examples.
    fn new(target: &str) -> Result<Self> {
        let kept = run::root().join("tests/fuzz");
        let places = Self {
            target: target.to_owned(),
            corpus: folder().join("corpus").join(target),
            pack: kept.join(format!("corpus/{target}.pack")),
            found: folder().join("found").join(target),
        };
        std::fs::create_dir_all(&places.corpus)?;
        std::fs::create_dir_all(&places.found)?;
        let seeds = folder().join("seeds");
        if !seeds.join(target).is_dir() {
            let package = match target {
                "bundle" => "bundle",
                "gpt" => "updater",
                _ => "homeserver",
            };
            let args = ["test", "--locked", "--package", package, "--lib", "fuzz::tests::good_inputs"];
            let mut command = run::cargo(args);
            command.env("FUZZ_SEEDS", &seeds);
            run::step("examples to start from", command)?;
        }
        for (nr, input) in unpack(&std::fs::read(&places.pack).unwrap_or_default())?.iter().enumerate() {
            std::fs::write(places.corpus.join(format!("kept-{nr}")), input)?;
        }
        Ok(places)
    }

    fn run(&self, binary: &Path, minutes: u64) -> Result<()> {
        let seconds = format!("-max_total_time={}", minutes * 60);
        let seeds = folder().join("seeds");
        let dictionary = format!("-dict={}", seeds.join(format!("{}.dict", self.target)).display());
        let found = format!("-artifact_prefix={}/", self.found.display());
        let options = ["-timeout=30", "-rss_limit_mb=3000", "-print_final_stats=1", "-max_len=8192"];
        let mut command = run::command(&binary.to_string_lossy(), options);
        command.args([&seconds, &dictionary, &found]).arg(&self.corpus).arg(seeds.join(&self.target));
        let outcome = run::step(&format!("fuzzing {} for {minutes} min", self.target), command);
        outcome.with_context(|| format!("the input is in {}", self.found.display()))
    }

    /// Packs the inputs that reach all that was ever reached, the smallest ones first.
    fn keep(&self, binary: &Path) -> Result<()> {
        let smallest = folder().join("smallest").join(&self.target);
        let _ = std::fs::remove_dir_all(&smallest);
        std::fs::create_dir_all(&smallest)?;
        let mut command = run::command(&binary.to_string_lossy(), ["-merge=1", "-timeout=30", "-rss_limit_mb=3000"]);
        command.arg(&smallest).arg(&self.corpus).arg(folder().join("seeds").join(&self.target));
        run::step("the smallest inputs that reach as much", command)?;
        let mut inputs = BTreeSet::new();
        for entry in std::fs::read_dir(&smallest)? {
            let input = std::fs::read(entry?.path())?;
            inputs.insert((input.len(), input));
        }
        let (mut pack, mut left_out) = (Vec::new(), 0);
        for (_, input) in &inputs {
            if pack.len() + input.len() > LARGEST_PACK {
                left_out += 1;
                continue;
            }
            put(&mut pack, input);
        }
        std::fs::write(&self.pack, &pack)?;
        println!("{}: {} inputs, {} bytes; {left_out} left out", self.target, inputs.len() - left_out, pack.len());
        Ok(())
    }
}

/// One input of a pack: a line with its length, and it.
fn put(pack: &mut Vec<u8>, input: &[u8]) {
    pack.extend_from_slice(format!("{}\n", input.len()).as_bytes());
    pack.extend_from_slice(input);
    pack.push(b'\n');
}

fn unpack(mut pack: &[u8]) -> Result<Vec<&[u8]>> {
    let mut inputs = Vec::new();
    while !pack.is_empty() {
        let (length, rest) = pack.split_at(pack.iter().position(|byte| *byte == b'\n').context("a pack breaks off")?);
        let length: usize = std::str::from_utf8(length)?.parse()?;
        inputs.push(rest.get(1..=length).context("a pack breaks off")?);
        pack = rest.get(length + 2..).context("a pack breaks off")?;
    }
    Ok(inputs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_are_read_as_they_are_written() {
        let inputs: [&[u8]; 4] = [b"", b"\n", b"12\nabc", &[0, 255, 10, 10]];
        let mut pack = Vec::new();
        inputs.iter().for_each(|input| put(&mut pack, input));
        assert_eq!(unpack(&pack).unwrap(), inputs);
        assert!(unpack(b"5\nabc\n").is_err());
        assert!(unpack(b"x\nabc\n").is_err());
    }

    #[test]
    fn every_target_has_a_pack_of_a_bearable_size() {
        for target in targets().unwrap() {
            let pack = std::fs::read(run::root().join(format!("tests/fuzz/corpus/{target}.pack"))).unwrap();
            assert!(!unpack(&pack).unwrap().is_empty() && pack.len() <= LARGEST_PACK + 4096, "{target}");
        }
    }
}
