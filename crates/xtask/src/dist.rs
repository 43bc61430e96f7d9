//! `cargo xtask dist`: the static programs that are shipped, for one processor after the other.
//!
//! Lives here: where Rust's library for musl comes from, the compiler for C and C++ that makes RocksDB, how cargo is called,
//! and the look at what came out. Everything that is fetched is pinned by its hash and kept below the target folder; the
//! system is left alone. Not here: what the image makes of the programs (image/).

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::elf::{self, Machine};
use crate::{needs, run};

/// The largest program that shall be shipped. A larger one is made, and said to be.
const LARGEST_BYTES: u64 = 25_000_000;
/// Zig is the C and C++ compiler and the linker; the other makes cargo call it. Hashes: the wheels for hosts of either kind.
const WHEELS: &str = "\
ziglang==0.17.1 \\
    --hash=sha256:ea6cc5d87b033cf0aedfbc8f9549a908cae6c50ac31f1698188fa48a74524b54 \\
    --hash=sha256:b7c5f02fccd40f89b999ee16a1f5ddced56e6182370f8affe494bcf8a28cf07e
cargo-zigbuild==0.24.0 \\
    --hash=sha256:484412e39e4c6039474535ce97ee75a22bab22d58233056f8ec8a8f9034bb957 \\
    --hash=sha256:6942e4320f7b05d8fb29e0a8ce5670bcbb3d254275100b85b5b7c86552f9a744
";
/// The source of Rust's library, for toolchains that cannot add targets. It has to be the compiler's own version. Rust keeps
/// all versions at this address; distributions drop old ones.
const RUST_SRC_VERSION: &str = "1.95.0";
const RUST_SRC_PLACE: &str = "https://static.rust-lang.org/dist";
const RUST_SRC_SHA256: &str = "67b09138c8db96afc4bbfc69ea771ac9a091fd777698acb43f6dfd9fb7dea363";
/// What is shipped: package and program. Each is built by itself, so that what one needs of a library is not in the other.
const PROGRAMS: &[(&str, &str)] = &[("init", "skerry-init"), ("seal", "skerry-seal"), ("skerry", "skerry")];

/// A processor that Skerry is shipped for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arch {
    X86_64,
    Arm64,
}

impl Arch {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        match text {
            "x86_64" | "amd64" => Ok(Self::X86_64),
            "aarch64" | "arm64" => Ok(Self::Arm64),
            _ => bail!("no such processor: {text} (x86_64, or aarch64, which is also called arm64)"),
        }
    }

    /// What bundles and images call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Arm64 => "arm64",
        }
    }

    /// What Debian calls it.
    pub(crate) fn debian(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// What Rust calls it.
    fn target(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64-unknown-linux-musl",
            Self::Arm64 => "aarch64-unknown-linux-musl",
        }
    }

    fn machine(self) -> Machine {
        match self {
            Self::X86_64 => Machine::X86_64,
            Self::Arm64 => Machine::Arm64,
        }
    }
}

pub(crate) fn verb(args: &[String]) -> Result<()> {
    let mut arches = Vec::new();
    let mut from_source = false;
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--target" => arches.push(Arch::parse(args.next().context("--target wants x86_64 or aarch64")?)?),
            "--build-std" => from_source = true,
            _ => bail!("usage: cargo xtask dist [--target x86_64|aarch64]... [--build-std]"),
        }
    }
    if arches.is_empty() {
        arches.push(Arch::X86_64);
    }
    for arch in arches {
        build(arch, from_source)?;
    }
    Ok(())
}

/// Where the programs for a processor are put.
pub(crate) fn folder(arch: Arch) -> PathBuf {
    run::target_dir().join("static").join(arch.name())
}

/// Builds the programs, looks at them and puts them into [`folder`].
pub(crate) fn build(arch: Arch, from_source: bool) -> Result<()> {
    needs::build()?;
    needs::python()?;
    let cache = run::target_dir().join("cache");
    let zig = zig(&cache)?;
    let library = if from_source { Library::Source(rust_src(&cache)?) } else { library(arch, &cache)? };
    let kit = Kit { arch, library, zig, cache };
    let rocksdb = kit.rocksdb()?;
    for (package, program) in PROGRAMS {
        let mut cargo = kit.cargo(package)?;
        cargo.env("ROCKSDB_LIB_DIR", &rocksdb).env("ROCKSDB_STATIC", "1");
        run::step(&format!("{program} for {}", arch.name()), cargo)?;
        ship(arch, program)?;
    }
    Ok(())
}

/// Looks at what was built, and puts it where it is shipped from.
fn ship(arch: Arch, program: &str) -> Result<()> {
    let made = run::target_dir().join(arch.target()).join("dist").join(program);
    let bytes = fs::read(&made).with_context(|| made.display().to_string())?;
    elf::static_and_stripped(&bytes, arch.machine()).with_context(|| made.display().to_string())?;
    fs::create_dir_all(folder(arch))?;
    let out = folder(arch).join(program);
    fs::copy(&made, &out)?;
    let too_large = if bytes.len() as u64 > LARGEST_BYTES { ", MORE THAN IT SHALL HAVE" } else { "" };
    println!("{}: static, stripped, {:.2} MB{too_large}", out.display(), bytes.len() as f64 / 1e6);
    Ok(())
}

/// Where Rust's library for the target comes from.
enum Library {
    /// It is installed beside the compiler.
    Installed,
    /// It is compiled with us, from this folder.
    Source(PathBuf),
}

/// The installed library if there is one or rustup can add it, else its source.
fn library(arch: Arch, cache: &Path) -> Result<Library> {
    if installed(arch)? {
        return Ok(Library::Installed);
    }
    println!("adding {} to the toolchain", arch.target());
    let added = run::command("rustup", ["target", "add", arch.target()]).status().is_ok_and(|s| s.success());
    if added && installed(arch)? {
        return Ok(Library::Installed);
    }
    println!("this toolchain cannot add targets: Rust's library is compiled from its source");
    Ok(Library::Source(rust_src(cache)?))
}

fn installed(arch: Arch) -> Result<bool> {
    let dir = run::output(run::command("rustc", ["--print", "target-libdir", "--target", arch.target()]))?;
    let Ok(entries) = fs::read_dir(dir.trim()) else { return Ok(false) };
    Ok(entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libstd-")))
}

/// What programs for a processor are built with.
struct Kit {
    arch: Arch,
    library: Library,
    /// The folder of zig's and cargo-zigbuild's programs.
    zig: PathBuf,
    cache: PathBuf,
}

impl Kit {
    /// The call of cargo. Nothing in what it makes tells where it was made.
    fn cargo(&self, package: &str) -> Result<Command> {
        let mut args = vec!["zigbuild", "--locked", "--profile", "dist", "--target", self.arch.target(), "-p", package];
        let mut flags = vec!["-C target-feature=+crt-static".to_owned()];
        let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
        let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
        // Paths within the repository are relative as it is. Were it named here, all would be compiled anew in each clone.
        flags.extend(home.map(|home| format!("--remap-path-prefix={}=/cargo", home.display())));
        if let Library::Source(source) = &self.library {
            args.extend(["-Z", "build-std=std,panic_unwind"]);
            flags.push("-C link-self-contained=no".into());
            flags.push(format!("--remap-path-prefix={}=/rustc/library", source.display()));
        }
        let mut cargo = run::cargo(args);
        if let Library::Source(source) = &self.library {
            // Rust's own switches for its nightly features and for where its library's source lies.
            cargo.env("RUSTC_BOOTSTRAP", "1").env("__CARGO_TESTS_ONLY_SRC_ROOT", source);
        }
        let path = std::env::var("PATH").context("PATH")?;
        cargo
            // Zig names its headers by where it is started if they lie below, and build scripts run elsewhere. Target folders
            // do not lie below this one.
            .current_dir(run::root().join("crates"))
            .env("PATH", format!("{}:{path}", self.zig.display()))
            .env("RUSTFLAGS", flags.join(" "))
            .env("CARGO_TARGET_DIR", run::target_dir())
            .env("CARGO_ZIGBUILD_CACHE_DIR", self.cache.join("zigbuild"))
            .env("ZIG_GLOBAL_CACHE_DIR", self.cache.join("zig-cache"))
            .env("ZIG_LOCAL_CACHE_DIR", self.cache.join("zig-cache"));
        Ok(cargo)
    }

    /// The folder with RocksDB for the processor. It is most of the work and never changes with what is ours: it is compiled
    /// by itself, and kept until its version, its optimisation or the compiler is another one.
    fn rocksdb(&self) -> Result<PathBuf> {
        const ARCHIVE: &str = "librocksdb.a";
        let text = |name: &str| fs::read_to_string(run::root().join(name)).with_context(|| name.to_owned());
        // Another archive has another path: that is what cargo goes by.
        let mut hasher = DefaultHasher::new();
        rocksdb_made_of(&text("Cargo.lock")?, &text("Cargo.toml")?).hash(&mut hasher);
        let all = self.cache.join("rocksdb").join(self.arch.name());
        let folder = all.join(format!("{:016x}", hasher.finish()));
        if folder.join(ARCHIVE).exists() {
            return Ok(folder);
        }
        let _ = fs::remove_dir_all(&all);
        let build = folder.join("build");
        let mut cargo = self.cargo("store")?;
        cargo.env("CARGO_TARGET_DIR", &build);
        run::step(&format!("RocksDB for {}", self.arch.name()), cargo)?;
        let scripts = build.join(self.arch.target()).join("dist").join("build");
        let mut made = fs::read_dir(&scripts)?.flatten().map(|entry| entry.path().join("out").join(ARCHIVE));
        let made = made.find(|path| path.exists()).context("no archive was made of RocksDB")?;
        fs::rename(made, folder.join(ARCHIVE))?;
        fs::remove_dir_all(build)?;
        Ok(folder)
    }
}

/// What RocksDB's archive depends on: the compiler, the versions of the sources, how they are optimised.
fn rocksdb_made_of(lock: &str, manifest: &str) -> String {
    let versions = ["librocksdb-sys", "lz4-sys", "zstd-sys"].map(|name| {
        let entry = lock.split("[[package]]").find(|entry| entry.contains(&format!("name = \"{name}\"\n")));
        let lines = entry.unwrap_or_default().lines().filter(|line| !line.is_empty());
        lines.take(4).map(|line| format!("{line}\n")).collect::<String>()
    });
    let profile = manifest.split("\n[").find(|part| part.starts_with("profile.dist.package.librocksdb-sys]"));
    format!("{WHEELS}{}[{}\n", versions.concat(), profile.unwrap_or_default())
}

/// Zig and cargo-zigbuild in a Python environment of their own; the folder of its programs.
fn zig(cache: &Path) -> Result<PathBuf> {
    let venv = cache.join("zig");
    let bin = venv.join("bin");
    let pins = venv.join("pins.txt");
    if fs::read_to_string(&pins).is_ok_and(|kept| kept == WHEELS) {
        return Ok(bin);
    }
    let _ = fs::remove_dir_all(&venv);
    fs::create_dir_all(cache)?;
    run::step("a Python environment", run::command("python3", [Path::new("-m"), Path::new("venv"), &venv]))?;
    let list = cache.join("wheels.txt");
    fs::write(&list, WHEELS)?;
    let mut pip = run::command(&bin.join("pip").to_string_lossy(), ["install", "-q", "--require-hashes", "-r"]);
    pip.arg(&list);
    run::step("zig and cargo-zigbuild", pip)?;
    fs::write(&pins, WHEELS)?;
    Ok(bin)
}

/// The folder with the source of Rust's library.
fn rust_src(cache: &Path) -> Result<PathBuf> {
    let version = run::output(run::command("rustc", ["--version"]))?;
    if version.split_whitespace().nth(1) != Some(RUST_SRC_VERSION) {
        bail!("the pinned source of Rust's library is {RUST_SRC_VERSION}'s, the compiler is {version}");
    }
    let folder = cache.join("rust-src");
    let name = format!("rust-src-{RUST_SRC_VERSION}");
    let source = folder.join(&name).join("rust-src/lib/rustlib/src/rust/library");
    if source.join("Cargo.lock").exists() {
        return Ok(source);
    }
    needs::rust_src()?;
    let _ = fs::remove_dir_all(&folder);
    let unpacked = cache.join("rust-src.part");
    let _ = fs::remove_dir_all(&unpacked);
    fs::create_dir_all(&unpacked)?;
    let packed = cache.join(format!("{name}.tar.xz"));
    let address = format!("{RUST_SRC_PLACE}/{name}.tar.xz");
    let mut fetch = run::command("/usr/lib/apt/apt-helper", ["download-file", &address]);
    fetch.arg(&packed).arg(format!("SHA256:{RUST_SRC_SHA256}"));
    run::step("the source of Rust's library", fetch)?;
    let mut unpack = run::command("tar", ["-xJf"]);
    unpack.arg(&packed).arg("-C").arg(&unpacked);
    run::step("unpack it", unpack)?;
    fs::rename(unpacked, &folder)?;
    Ok(source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rocksdb_is_made_again_for_what_changes_it_and_nothing_else() {
        let read = |name: &str| fs::read_to_string(run::root().join(name)).unwrap();
        let (lock, manifest) = (read("Cargo.lock"), read("Cargo.toml"));
        let made_of = rocksdb_made_of(&lock, &manifest);
        assert!(
            made_of.contains("name = \"librocksdb-sys\"\nversion = ") && made_of.contains("opt-level"),
            "{made_of}"
        );
        let other = |lock: &str, manifest: &str| rocksdb_made_of(lock, manifest) != made_of;
        let version = made_of.lines().find(|line| line.contains("version")).unwrap();
        assert!(other(&lock.replace(version, "version = \"0.0.1\""), &manifest));
        let faster =
            manifest.replace("package.librocksdb-sys]\nopt-level = 2", "package.librocksdb-sys]\nopt-level = 3");
        assert!(other(&lock, &faster));
        assert!(!other(&lock.replace("name = \"tokio\"\nversion = \"1", "name = \"tokio\"\nversion = \"2"), &manifest));
        assert!(!other(&lock, &manifest.replace("lto = \"fat\"", "lto = \"thin\"")));
    }
}
