//! `cargo xtask vm time`: how much work a machine has from power-on until it answers, and how much of it is whose.
//!
//! Counted is the processor time of QEMU as a whole (user and system), which under emulation is what the guest and its
//! devices cost; how busy the builder is does not matter much. The machine is set up by a stick first; the starts after
//! that, without a stick, are the ones that count.
//!
//! Lives here: the verb, its markers, the table. Not here: the machine and its devices, which are those of `cargo xtask vm`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::journey::SET_UP;
use super::machine::{FIRMWARE_IS_UP, Machine, Ports, Setup};
use super::{fetched, fresh, stick};
use crate::image::{Arch, Recipe};
use crate::{clients, needs, run};

/// For a machine that hangs.
const LIMIT: Duration = Duration::from_secs(20 * 60);
/// What is said on the way, and what has been done when it is said. The first comes from firmware, the others from our own
/// initial program.
const STEPS: [(&str, &str); 3] = [
    (FIRMWARE_IS_UP, "firmware hands over"),
    ("skerry-init: starts", "boot loader and kernel are up"),
    ("skerry-init: the root is verified", "the root is verified, systemd starts"),
];
const SERVED: &str = "/versions is served";
const USAGE: &str = "\
usage: cargo xtask vm time [--arch x86_64|arm64] [--hardware] [--image FILE] [--starts N] [--at-most SECONDS]

  --starts   how many starts are counted (2)
  --at-most  fail if one of them takes more seconds of processor
";

struct Choices {
    arch: Arch,
    image: Option<PathBuf>,
    hardware: bool,
    starts: u32,
    at_most_s: Option<f64>,
}

pub(super) fn verb(args: &[String]) -> Result<()> {
    let choices = choices(args)?;
    needs::machine(choices.arch)?;
    let folder = run::target_dir().join("vm").join("time");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    let mut made = Recipe::new(choices.arch);
    made.hardware = choices.hardware;
    let image = choices.image.clone().unwrap_or_else(|| made.disk());
    let disk = fresh(&image, &folder.join("disk.raw"))?;
    let ports = Ports { https: 0, federation: 0 }.or_free()?;
    let mut setup = Setup::new(choices.arch, disk, ports);
    let python = clients::python("nio")?;
    set_up(&mut setup, &folder, &python)?;
    let mut worst_s = 0_f64;
    for start in 1..=choices.starts {
        println!("\n#### start {start} of {}", choices.starts);
        let stamps = counted(&setup, &folder, &python, &format!("start-{start}"))?;
        print!("{}", table(&stamps));
        worst_s = stamps.last().map_or(worst_s, |(_, s)| worst_s.max(*s));
    }
    println!("\nvm time: at most {worst_s:.1} s of processor from power-on to {SERVED}; logs in {}", folder.display());
    match choices.at_most_s {
        Some(limit) if worst_s > limit => bail!("{worst_s:.1} s of processor; {limit} s are allowed"),
        _ => Ok(()),
    }
}

fn choices(args: &[String]) -> Result<Choices> {
    let mut choices = Choices { arch: Arch::X86_64, image: None, hardware: false, starts: 2, at_most_s: None };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} wants a value\n\n{USAGE}"));
        match arg.as_str() {
            "--arch" => choices.arch = Arch::parse(value()?)?,
            "--hardware" => choices.hardware = true,
            "--image" => choices.image = Some(value()?.into()),
            "--starts" => choices.starts = value()?.parse().context("--starts")?,
            "--at-most" => choices.at_most_s = Some(value()?.parse().context("--at-most")?),
            _ => bail!("{USAGE}"),
        }
    }
    Ok(choices)
}

/// The first start of all: makes the data partition, does what a stick says. A stick on USB needs the kernel for racks, so
/// here it is a disk like any other.
fn set_up(setup: &mut Setup, folder: &Path, python: &str) -> Result<()> {
    println!("\n#### set-up by a stick");
    let content = folder.join("stick");
    fs::create_dir_all(&content)?;
    fs::write(content.join("skerry-provision.toml"), SET_UP)?;
    let file = folder.join("stick.raw");
    stick::make(&file, &content)?;
    setup.sticks = vec![file];
    setup.usb = false;
    let mut machine = Machine::start(setup, folder, "set-up")?;
    machine.expect("order: set up: https://box.example", LIMIT)?;
    machine.until("clients are served", LIMIT, || answered(setup, python, "/_matrix/client/v3/login"))?;
    setup.sticks.clear();
    machine.cut()
}

/// One start; what was done, with the processor's seconds until then.
fn counted(setup: &Setup, folder: &Path, python: &str, name: &str) -> Result<Vec<(&'static str, f64)>> {
    let mut machine = Machine::start(setup, folder, name)?;
    let mut stamps = Vec::new();
    for (marker, what) in STEPS {
        machine.expect(marker, LIMIT)?;
        stamps.push((what, machine.processor_s()?));
    }
    machine.until(SERVED, LIMIT, || answered(setup, python, "/_matrix/client/versions"))?;
    stamps.push((SERVED, machine.processor_s()?));
    machine.cut()?;
    Ok(stamps)
}

fn answered(setup: &Setup, python: &str, path: &str) -> Option<()> {
    fetched(python, setup.ports.https, path).ok().map(|_| ())
}

fn table(stamps: &[(&str, f64)]) -> String {
    let mut before_s = 0.0;
    let mut text = format!("{:<40} {:>9} {:>9}\n", "seconds of processor until", "in all", "of it");
    for (what, s) in stamps {
        text.push_str(&format!("{what:<40} {s:>9.1} {:>9.1}\n", s - before_s));
        before_s = *s;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_says_what_it_took() {
        let text = table(&[("a", 1.5), ("b", 4.0)]);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1..], [["a", "1.5", "1.5"], ["b", "4.0", "2.5"]]);
    }

    #[test]
    fn choices_are_read() {
        let args = |text: &str| choices(&text.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        let read = args("--hardware --starts 3 --at-most 25").unwrap();
        assert!(read.hardware && read.starts == 3 && read.at_most_s == Some(25.0));
        assert!(args("--fast").is_err() && args("--starts").is_err());
    }
}
