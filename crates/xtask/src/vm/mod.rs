//! `cargo xtask vm`: the appliance under QEMU, for trying it by hand and for the journey that tests it.
//!
//! Lives here: the verb and its choices. Not here: the machine (machine.rs), sticks (stick.rs), its TPM (tpm.rs), the
//! journeys (journey.rs, sealed.rs), the first login (guide.rs), what a start costs (time.rs).

mod guide;
mod journey;
mod machine;
mod sealed;
mod stick;
mod time;
mod tpm;

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::image::{Arch, Recipe};
use crate::{needs, run};
use machine::{Machine, Ports, Setup};

const USAGE: &str = "\
usage: cargo xtask vm [--arch x86_64|arm64] [--hardware] [--image FILE] [--disk FILE] [--stick FOLDER]
                      [--https PORT] [--federation PORT]
                      [--secure] [--tpm]
       cargo xtask vm test [--arch x86_64|arm64] [--keep]
       cargo xtask vm test --secure-boot|--tpm [--keep]
       cargo xtask vm guide [--keep]
       cargo xtask vm time [--hardware] [--starts N] [--at-most SECONDS]

  --image       the image to start from; without it, the one that `cargo xtask image` has made for this processor
  --hardware    the one with the kernel for racks
  --disk        the machine's disk, made from the image if it is not there; without it, a fresh one each time
  --stick       a folder to be put on a stick: orders, updates (the kernel for virtual machines has no USB)
  --https       where the machine's port 443 is on loopback (any free port)
  --federation  the same for 8448
  --secure      firmware that checks signatures; it takes the keys of an image that was made with --keys
  --tpm         with a TPM 2.0
  test          the whole life of a machine: set-up, updates, fall back, power cuts; --keep leaves its disks;
                for arm64, its first stages
                --secure-boot: in place of it, what firmware that checks signatures starts and refuses
                --tpm: in place of it, where data opens that a TPM holds the key of
  time          how much work a start is, from power-on until clients are answered
  guide         what the operators' guide says, done: the questions at the console, the certificate, a login in a browser

The serial console is this terminal; Ctrl-A X ends the machine.
";

/// As much as a small rack has.
const DISK_BYTES: u64 = 8 << 30;

pub(crate) fn verb(args: &[String]) -> Result<()> {
    match args.first().map(String::as_str) {
        Some("help" | "--help" | "-h") => {
            print!("{USAGE}");
            Ok(())
        }
        Some("guide") => guide::verb(args.get(1..).unwrap_or_default()),
        Some("time") => time::verb(args.get(1..).unwrap_or_default()),
        Some("test") => match args.get(1).map(String::as_str) {
            Some(what @ ("--secure-boot" | "--tpm")) => sealed::verb(what, args.get(2..).unwrap_or_default()),
            _ => journey::verb(args.get(1..).unwrap_or_default()),
        },
        _ => try_it(args),
    }
}

fn try_it(args: &[String]) -> Result<()> {
    let mut arch = Arch::X86_64;
    let (mut hardware, mut secure, mut tpm) = (false, false, false);
    let (mut image, mut disk, mut sticks): (Option<PathBuf>, Option<PathBuf>, Vec<PathBuf>) = (None, None, Vec::new());
    let mut ports = Ports { https: 0, federation: 0 };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} wants a value\n\n{USAGE}"));
        match arg.as_str() {
            "--arch" => arch = Arch::parse(value()?)?,
            "--hardware" => hardware = true,
            "--image" => image = Some(value()?.into()),
            "--disk" => disk = Some(value()?.into()),
            "--stick" => sticks.push(value()?.into()),
            "--https" => ports.https = value()?.parse().context("--https")?,
            "--secure" => secure = true,
            "--tpm" => tpm = true,
            "--federation" => ports.federation = value()?.parse().context("--federation")?,
            _ => bail!("{USAGE}"),
        }
    }
    needs::machine(arch)?;
    if secure && arch == Arch::Arm64 {
        bail!("there is no firmware for arm64 here that checks signatures");
    }
    if tpm {
        needs::tpm()?;
    }
    let folder = run::target_dir().join("vm");
    fs::create_dir_all(&folder)?;
    let mut made = Recipe::new(arch);
    made.hardware = hardware;
    let image = image.unwrap_or_else(|| made.disk());
    let disk = match disk {
        Some(disk) if disk.exists() => disk,
        Some(disk) => fresh(&image, &disk)?,
        None => fresh(&image, &folder.join("disk.raw"))?,
    };
    let mut setup = Setup::new(arch, disk, ports.or_free()?);
    // They belong to the disk: what one machine knows and keeps.
    setup.secure = secure.then(|| setup.disk.with_extension("keys.fd"));
    setup.tpm = tpm.then(|| setup.disk.with_extension("tpm"));
    for (number, content) in sticks.iter().enumerate() {
        let file = folder.join(format!("stick-{number}.raw"));
        stick::make(&file, content)?;
        setup.sticks.push(file);
    }
    println!(
        "\nSkerry's appliance. Clients: https://127.0.0.1:{}   federation: https://127.0.0.1:{}\n\
         Disk: {}\nThis terminal is its console. Ctrl-A X ends it.\n",
        setup.ports.https,
        setup.ports.federation,
        setup.disk.display()
    );
    Machine::by_hand(&setup, &folder)
}

impl Ports {
    /// Free ports in place of those that nobody has named.
    fn or_free(self) -> Result<Self> {
        // Both are held while they are asked for, so that they differ.
        let (one, two) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
        let or = |port: u16, other: &TcpListener| -> Result<u16> {
            Ok(if port == 0 { other.local_addr()?.port() } else { port })
        };
        Ok(Self { https: or(self.https, &one)?, federation: or(self.federation, &two)? })
    }
}

/// A disk for a machine, from an image: holes stay holes, and behind the image there is room for data.
fn fresh(image: &Path, disk: &Path) -> Result<PathBuf> {
    if !image.exists() {
        bail!("{}: no image; `cargo xtask image` makes one", image.display());
    }
    let _ = fs::remove_file(disk);
    run::output({
        let mut copy = run::command("cp", ["--sparse=always"]);
        copy.arg(image).arg(disk);
        copy
    })?;
    let file = File::options().write(true).open(disk)?;
    if file.metadata()?.len() < DISK_BYTES {
        file.set_len(DISK_BYTES)?;
    }
    Ok(disk.to_owned())
}

/// What a machine answers to somebody who trusts anybody, if that is a success.
fn fetched(python: &str, port: u16, path: &str) -> Result<String> {
    let url = format!("https://127.0.0.1:{port}{path}");
    let script = "import ssl, sys, urllib.request as u\n\
                  print(u.urlopen(sys.argv[1], context=ssl._create_unverified_context(), timeout=20).read().decode())";
    run::output(run::command(python, ["-c", script, &url]))
}
