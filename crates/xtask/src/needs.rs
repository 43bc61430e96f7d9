//! What the machine must have before we can build and test: found, installed through apt, or named.
//!
//! Lives here: the list of needs, how each is recognised, and its Debian package. Not here: Rust itself, and packages
//! of Python or JavaScript (the suites install those).

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::dist::Arch;
use crate::run;

/// Something a step needs and Debian packages.
struct Need {
    packages: &'static [&'static str],
    present: fn() -> bool,
}

const BUILD: &[Need] = &[
    Need { packages: &["g++"], present: || answers("c++", &["--version"]) },
    Need { packages: &["make"], present: || answers("make", &["--version"]) },
    Need { packages: &["libclang-dev"], present: libclang },
];

const PYTHON: Need = Need {
    packages: &["python3-venv", "python3-pip"],
    present: || answers("python3", &["-c", "import venv, ensurepip"]),
};

const JAVASCRIPT: Need = Need {
    packages: &["nodejs", "npm"],
    present: || answers("node", &["--version"]) && answers("npm", &["--version"]),
};

const BROWSER: Need = Need { packages: &["chromium"], present: || answers("chromium", &["--version"]) };

/// Puts authorities where Chromium finds them.
const CERTUTIL: Need = Need { packages: &["libnss3-tools"], present: || Path::new("/usr/bin/certutil").exists() };

const UNITS: &[Need] = &[
    Need { packages: &["systemd"], present: || answers("systemd-analyze", &["--version"]) },
    Need { packages: &["nftables"], present: || answers("nft", &["--version"]) },
];

const RUST_SRC: &[Need] = &[
    Need { packages: &["xz-utils"], present: || answers("xz", &["--version"]) },
    Need { packages: &["ca-certificates"], present: || Path::new("/etc/ssl/certs/ca-certificates.crt").exists() },
];

const DEBOOTSTRAP: Need = Need { packages: &["debootstrap"], present: || Path::new("/usr/sbin/debootstrap").exists() };
const GPGV: Need = Need { packages: &["gpgv"], present: || answers("gpgv", &["--version"]) };

const MTOOLS: Need = Need { packages: &["mtools"], present: || answers("mcopy", &["--version"]) };
const QEMU_X86_64: Need =
    Need { packages: &["qemu-system-x86"], present: || answers("qemu-system-x86_64", &["--version"]) };
const QEMU_ARM64: Need =
    Need { packages: &["qemu-system-arm"], present: || answers("qemu-system-aarch64", &["--version"]) };
const OVMF: Need = Need { packages: &["ovmf"], present: || Path::new("/usr/share/OVMF").exists() };
const SWTPM: Need = Need { packages: &["swtpm"], present: || answers("swtpm", &["--version"]) };
const AAVMF: Need = Need { packages: &["qemu-efi-aarch64"], present: || Path::new("/usr/share/AAVMF").exists() };

/// Compilers and RocksDB's bindings.
pub(crate) fn build() -> Result<()> {
    meet(BUILD)
}

/// What judges the units and the packet filter of the appliance.
pub(crate) fn units() -> Result<()> {
    meet(UNITS)
}

/// What fetches and unpacks the source of Rust's library.
pub(crate) fn rust_src() -> Result<()> {
    meet(RUST_SRC)
}

/// What fetches packages of Python.
pub(crate) fn python() -> Result<()> {
    meet(&[PYTHON])
}

/// What puts images together: the rest comes in a tree of its own.
pub(crate) fn image() -> Result<()> {
    meet(&[DEBOOTSTRAP, GPGV])
}

/// A machine to try images on.
pub(crate) fn machine(arch: Arch) -> Result<()> {
    match arch {
        Arch::X86_64 => meet(&[PYTHON, QEMU_X86_64, OVMF, MTOOLS]),
        Arch::Arm64 => meet(&[PYTHON, QEMU_ARM64, AAVMF, MTOOLS]),
    }
}

/// What stands for a TPM.
pub(crate) fn tpm() -> Result<()> {
    meet(&[SWTPM])
}

/// The real clients' languages.
pub(crate) fn clients() -> Result<()> {
    meet(&[PYTHON, JAVASCRIPT])
}

/// What puts web pages together.
pub(crate) fn javascript() -> Result<()> {
    meet(&[JAVASCRIPT])
}

/// What looks at them.
pub(crate) fn browser() -> Result<()> {
    meet(&[JAVASCRIPT, BROWSER])
}

/// The same, for pages of a server that is trusted as people are told to.
pub(crate) fn trusting_browser() -> Result<()> {
    meet(&[JAVASCRIPT, BROWSER, CERTUTIL])
}

fn meet(needs: &[Need]) -> Result<()> {
    let missing: Vec<&str> = needs.iter().filter(|n| !(n.present)()).flat_map(|n| n.packages).copied().collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !(is_root() && answers("apt-get", &["--version"])) {
        bail!("these are missing: {list}\nOn Debian: sudo apt-get update && sudo apt-get install -y {list}");
    }
    let apt = |args: &[&str]| {
        let mut command = run::command("apt-get", args);
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    run::step("apt-get update", apt(&["update", "-q"]))?;
    let mut install = vec!["install", "-q", "-y", "--no-install-recommends"];
    install.extend(&missing);
    run::step(&format!("apt-get install {list}"), apt(&install))?;
    match needs.iter().find(|n| !(n.present)()) {
        Some(need) => bail!("installed {}, and still cannot use it", need.packages.join(" ")),
        None => Ok(()),
    }
}

/// Whether a program can be run at all.
pub(crate) fn answers(program: &str, args: &[&str]) -> bool {
    Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

pub(crate) fn is_root() -> bool {
    run::output(run::command("id", ["-u"])).is_ok_and(|uid| uid.trim() == "0")
}

/// bindgen loads libclang at run time; it looks in these places and asks llvm-config.
fn libclang() -> bool {
    if std::env::var_os("LIBCLANG_PATH").is_some() || answers("llvm-config", &["--version"]) {
        return true;
    }
    let holds_it = |dir: &Path| {
        std::fs::read_dir(dir).is_ok_and(|entries| {
            entries.flatten().any(|e| {
                let name = e.file_name();
                let name = name.to_string_lossy();
                name.starts_with("libclang.so") || (name.starts_with("libclang-") && name.contains(".so"))
            })
        })
    };
    let versions = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let llvm_dirs = versions.filter(|e| e.file_name().to_string_lossy().starts_with("llvm-"));
    llvm_dirs.map(|e| e.path().join("lib")).any(|dir| holds_it(&dir))
        || [format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH), "/usr/lib64".into(), "/usr/local/lib".into()]
            .iter()
            .any(|dir| holds_it(Path::new(dir)))
}
