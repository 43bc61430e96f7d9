//! Installing a release against copying it: one ratio, in one run, on the disk that has the target folder.
//!
//! An installation checks a file, writes what it unpacks to into a slot and reads that back from the disk. The copy reads
//! what it unpacks to from files, writes it into a file of the same shape, syncs, and reads that back. Neither finds
//! anything in memory that it reads. They take turns, so that a busy machine troubles both; the medians are compared.
//!
//! `SKERRY_PAYLOAD=FOLDER` takes `root.img`, `verity.img` and `kernel.efi` of an image; otherwise they are made, of about
//! the sizes of a release that packs about as well.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods, reason = "it measures real time")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bundle::testing::{noise, root, signed, signed_root};
use bundle::{Arch, Digest, ImageSource, Inputs, Store, build};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use updater::testing::{ESP_KIND, ROOT_KIND, VERITY_KIND, partition, table};
use updater::{Booted, FileDisk, Folder as _, Guid, Host, OsFolder, Release, Settings, Step, Updater, ids};

/// As the program has it.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const MIB: u64 = 1 << 20;
const ROUNDS: usize = 9;
const NAMES: [&str; 3] = ["root.img", "verity.img", "kernel.efi"];
/// Where a slot begins on the disk, how long its root may be, and its hash tree.
const PLACES: [u64; 2] = [16 * MIB, 16 * MIB + ROOT + VERITY];
const ROOT: u64 = 160 * MIB;
const VERITY: u64 = 16 * MIB;

/// A server without data.
struct Nobody;

impl Host for Nobody {
    fn freeze(&self, _: &str) -> Result<(), String> {
        Ok(())
    }
    fn thaw(&self) -> Result<(), String> {
        Ok(())
    }
    fn kept_floor(&self) -> u64 {
        0
    }
    fn keep_floor(&self, _: u64) {}
    fn start_silent(&self, _: bool) -> io::Result<()> {
        Ok(())
    }
    fn store_format(&self) -> io::Result<u32> {
        Ok(1)
    }
    fn touched(&self) -> io::Result<bool> {
        Ok(false)
    }
    fn restore(&self, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn clear(&self) -> io::Result<()> {
        Ok(())
    }
}

/// The parts of an image, as files.
fn payload(folder: &Path) -> [PathBuf; 3] {
    if let Some(given) = std::env::var_os("SKERRY_PAYLOAD") {
        return NAMES.map(|name| Path::new(&given).join(name));
    }
    // Half of it packs, as programs do; a kernel is packed already.
    let program = fs::read(std::env::current_exe().unwrap()).unwrap();
    let half = |seed: u64, bytes: u64| -> Vec<u8> {
        let code = |nr: usize| &program[nr * 7919 % (program.len() - 2048)..][..2048];
        let noise = noise(seed, bytes as usize / 2);
        noise.chunks(2048).enumerate().flat_map(|(nr, noise)| [noise, code(nr)].concat()).collect()
    };
    let bytes = [half(1, 85 * MIB), noise(2, 700 << 10), noise(3, 12 * MIB as usize)];
    let paths = NAMES.map(|name| folder.join(name));
    for (path, bytes) in paths.iter().zip(bytes) {
        fs::write(path, bytes).unwrap();
    }
    paths
}

fn bundle_of(parts: &[PathBuf; 3], path: &Path) {
    let [root_image, verity, kernel] =
        parts.each_ref().map(|path| Box::new(File::open(path).unwrap()) as Box<dyn io::Read>);
    let inputs = Inputs {
        version: "1.2.0".into(),
        security_version: 2,
        from_security_version: 0,
        built_s: 1_790_000_000,
        notes: String::new(),
        store: Store { oldest: 1, newest: 1 },
        images: BTreeMap::from([(
            Arch::X86_64,
            ImageSource { root: root_image, verity, kernel, root_hash: Digest::of(b"new") },
        )]),
        sbom: b"{}".to_vec(),
        roots: vec![signed_root(&root(1), &[1, 2])],
        level: 3,
    };
    let mut plain = Vec::new();
    build(inputs, &mut io::Cursor::new(Vec::new()), &mut plain).unwrap();
    fs::write(path, signed(&plain, &[11, 12])).unwrap();
}

/// A disk with two slots whose bytes all have their places already.
fn disk(path: &Path) {
    let bytes = PLACES[1] + ROOT + VERITY + 16 * MIB;
    let file = File::create(path).unwrap();
    let zeros = vec![0; MIB as usize];
    (0..bytes / MIB).for_each(|_| (&file).write_all(&zeros).unwrap());
    let [root_id, verity_id] = ids(&Digest::of(b"old"));
    let entries = [
        partition(ESP_KIND, Guid([1; 16]), "ESP", MIB, MIB),
        partition(ROOT_KIND, root_id, "skerry_1.1.0", PLACES[0], ROOT),
        partition(VERITY_KIND, verity_id, "skerry_1.1.0_verity", PLACES[0] + ROOT, VERITY),
        partition(ROOT_KIND, Guid([4; 16]), "_empty", PLACES[1], ROOT),
        partition(VERITY_KIND, Guid([5; 16]), "_empty", PLACES[1] + ROOT, VERITY),
    ];
    table(bytes, &entries).into_iter().for_each(|(at, new)| file.write_all_at(&new, at).unwrap());
    file.sync_all().unwrap();
}

/// What is read next comes from the disk.
fn forget(path: &Path) {
    let file = File::open(path).unwrap();
    file.sync_all().unwrap();
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
}

fn install(disk: &Path, esp: &OsFolder, state: &OsFolder, bundle: &Path) -> Duration {
    let factory =
        Release { version: "1.1.0".into(), security_version: 1, store: Store { oldest: 1, newest: 1 }, image: None };
    let start = Instant::now();
    let updater = Updater {
        disk: &FileDisk::open(disk, true).unwrap(),
        esp,
        state,
        host: &Nobody,
        settings: Settings {
            arch: Arch::X86_64,
            tries: 3,
            keep_tries: 3,
            trust: root(1).to_bytes(),
            policy: updater::Policy::default(),
            factory,
        },
        booted: Booted { version: "1.1.0".into(), root_hash: Some(Digest::of(b"old")) },
        now_s: 0,
        chance: [1; 32],
    };
    let mut steps: Vec<(Step, Duration, Duration)> = Vec::new();
    let mut report = |step, _, _| {
        let now = start.elapsed();
        match steps.last_mut() {
            Some((last, _, end)) if *last == step => *end = now,
            _ => steps.push((step, now, now)),
        }
    };
    updater.stage(BufReader::new(File::open(bundle).unwrap()), "bench", &mut report).unwrap();
    let all = start.elapsed();
    if std::env::var_os("SKERRY_STEPS").is_some() {
        steps.iter().for_each(|(step, from, to)| println!("  {step:?} from {from:.1?} to {to:.1?}"));
    }
    all
}

fn copy(parts: &[PathBuf; 3], disk: &Path, esp: &Path) -> Duration {
    let start = Instant::now();
    let disk = File::options().read(true).write(true).open(disk).unwrap();
    let kernel = File::options().read(true).write(true).create(true).truncate(true).open(esp.join("copy")).unwrap();
    let mut piece = vec![0; MIB as usize];
    for (part, (to, at)) in parts.iter().zip([(&disk, PLACES[1]), (&disk, PLACES[1] + ROOT), (&kernel, 0)]) {
        let (mut from, mut at) = (File::open(part).unwrap(), at);
        loop {
            let len = from.read(&mut piece).unwrap();
            if len == 0 {
                break;
            }
            to.write_all_at(&piece[..len], at).unwrap();
            at += len as u64;
        }
    }
    for (part, (to, at)) in parts.iter().zip([(&disk, PLACES[1]), (&disk, PLACES[1] + ROOT), (&kernel, 0)]) {
        to.sync_all().unwrap();
        posix_fadvise(to, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
        let (end, mut at) = (at + fs::metadata(part).unwrap().len(), at);
        while at < end {
            let len = piece.len().min((end - at) as usize);
            to.read_exact_at(&mut piece[..len], at).unwrap();
            at += len as u64;
        }
    }
    start.elapsed()
}

fn median(mut all: Vec<Duration>) -> Duration {
    all.sort_unstable();
    all[all.len() / 2]
}

/// The most memory that this process ever had, in MiB.
fn peak_mib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

fn main() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let at = |name: &str| folder.path().join(name);
    let parts = payload(folder.path());
    let (release, ours, theirs) = (at("release.skerry"), at("disk"), at("copy"));
    bundle_of(&parts, &release);
    [&ours, &theirs].into_iter().for_each(|path| disk(path));
    let (esp, state) = (OsFolder::new(&at("esp")).unwrap(), OsFolder::new(&at("state")).unwrap());
    esp.replace("skerry_1.1.0.efi", b"MZ").unwrap();
    let plain: u64 = parts.iter().map(|part| fs::metadata(part).unwrap().len()).sum();
    println!("file {} MiB, unpacked {} MiB", fs::metadata(&release).unwrap().len() / MIB, plain / MIB);
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = peak_mib();
    let (mut installs, mut copies) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        [&release, &ours, &theirs].into_iter().chain(&parts).for_each(|path| forget(path));
        copies.push(copy(&parts, &theirs, &at("esp")));
        installs.push(install(&ours, &esp, &state, &release));
        println!("copy {:>7.1?}  install {:>7.1?}", copies.last().unwrap(), installs.last().unwrap());
    }
    println!("memory {before} MiB before, {} MiB at most", peak_mib());
    let (install, copy) = (median(installs), median(copies));
    println!(
        "copy {copy:.1?}, install {install:.1?}: ratio {:.2} (at most 1.3)",
        install.as_secs_f64() / copy.as_secs_f64()
    );
}
