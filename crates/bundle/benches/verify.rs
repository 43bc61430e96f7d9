//! How fast a bundle is verified, and in how much memory: a file of about the size of a release, from disk.
//!
//! The bytes per second are those of the file; what comes out of it is two to three times as much.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Cursor, Read};

use bundle::{Arch, Bundle, Digest, ImageSource, Inputs, Signed, Store, build};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const PLAIN: usize = 160 * 1024 * 1024;

/// Machine code, as a root image is made of, but no two parts of it alike.
fn root() -> Vec<u8> {
    let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let mut state = 1u64;
    let mut bytes = Vec::with_capacity(PLAIN + program.len());
    while bytes.len() < PLAIN {
        for part in program.chunks(97) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            bytes.extend_from_slice(part);
            bytes.push((state >> 56) as u8);
        }
    }
    bytes.truncate(PLAIN);
    bytes
}

fn source(bytes: Vec<u8>) -> Box<dyn Read> {
    Box::new(Cursor::new(bytes))
}

fn written(folder: &std::path::Path) -> File {
    let path = folder.join("release.skerry");
    let image = ImageSource {
        root: source(root()),
        verity: source(vec![7; 4096]),
        kernel: source(vec![9; 4096]),
        root_hash: Digest::of(b"tree"),
    };
    let inputs = Inputs {
        version: "1.0.0".into(),
        security_version: 1,
        from_security_version: 1,
        built_s: 1_790_000_000,
        notes: String::new(),
        store: Store { oldest: 1, newest: 1 },
        images: BTreeMap::from([(Arch::X86_64, image)]),
        sbom: b"{}".to_vec(),
        roots: Vec::<Signed>::new(),
        level: 3,
    };
    let spool = File::options().read(true).write(true).create(true).truncate(true).open(folder.join("spool")).unwrap();
    build(inputs, &mut { spool }, &mut File::create(&path).unwrap()).unwrap();
    File::open(path).unwrap()
}

/// The most memory that this process ever had, in MiB.
fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

fn benches(c: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    let file = written(folder.path());
    // From here on, only what verifying takes counts.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = peak_mib();
    let bytes = file.metadata().unwrap().len();
    let mut group = c.benchmark_group("verify");
    group.sample_size(10).throughput(Throughput::Bytes(bytes));
    group.bench_function("a release", |b| {
        b.iter(|| {
            let reader = BufReader::new(file.try_clone().unwrap());
            Bundle::open(reader).unwrap().unjudged().unwrap().verify(|_| {}).unwrap().plain
        });
    });
    println!(
        "file: {} MiB, plain: {} MiB, memory: {before} MiB before, {} MiB at most",
        bytes >> 20,
        PLAIN >> 20,
        peak_mib()
    );
}

criterion_group!(verify_benches, benches);
criterion_main!(verify_benches);
