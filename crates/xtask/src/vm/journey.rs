//! `cargo xtask vm test`: the life of one machine, from its first set-up over updates that go well, go wrong and are cut, to
//! a broken disk. One disk goes through all of it; a real client talks in between, and never misses what it was promised. On
//! the other processor, the first stages show that it starts, serves and updates itself.
//!
//! Lives here: the stages and what is expected of each. Not here: the machine (machine.rs), the client
//! (`tests/appliance/client.py`). Nothing here depends on how fast a machine is: stages end with what is seen, and limits are
//! for machines that hang.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::machine::{Machine, Ports, Setup};
use super::{fetched, fresh, stick};
use crate::image::{self, Arch, Recipe, trust};
use crate::{clients, dist, needs, run};

/// For anything that a machine does, on a builder that has much else to do.
pub(super) const LIMIT: Duration = Duration::from_secs(20 * 60);
/// Where the ESP and the first root lie on the disk (image/disk.rs).
pub(super) const ESP: &str = "@@1M";
const ROOT_A: u64 = 513 << 20;
const ROOT_B: u64 = ROOT_A + (528 << 20);
/// The superblock of erofs: read first, so that a start cannot miss that it changed.
const SUPERBLOCK: u64 = 1024;

pub(super) const SET_UP: &str =
    "server_name = \"box.example\"\n\n[network]\ndhcp = true\n\n[admin]\npassword = \"correct horse battery\"\n";
/// Said by a unit that only the journey's images have, once everything is up.
const RUNNING: &str = "JOURNEY runs ";

/// `cargo xtask vm test`
pub(crate) fn verb(args: &[String]) -> Result<()> {
    let (mut arch, mut keep) = (Arch::X86_64, false);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--arch" => arch = Arch::parse(args.next().context("--arch wants x86_64 or arm64")?)?,
            "--keep" => keep = true,
            _ => bail!("usage: cargo xtask vm test [--arch x86_64|arm64] [--keep]"),
        }
    }
    needs::machine(arch)?;
    let folder = run::target_dir().join("vm").join(format!("test-{}", arch.name()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    let stages = stages(arch);
    let outcome = Journey::prepared(arch, folder.clone())?.travel(stages);
    if outcome.is_ok() && !keep {
        fs::remove_dir_all(&folder)?;
    }
    outcome?;
    println!("\nvm: {} passed, 0 failed, 0 skipped", stages.len());
    Ok(())
}

type Stage = fn(&mut Journey) -> Result<()>;

const STAGES: &[(&str, Stage)] = &[
    ("a first start is set up by a stick, serves, and is blessed", Journey::set_up),
    ("an update from a stick runs, with its clock at 1970, and is blessed", Journey::update),
    ("an update whose health gate fails gives way to the one before", Journey::fall_back),
    ("an old update is refused", Journey::refuse_old),
    ("power that is cut in the middle of an install costs nothing", Journey::cut_power),
    ("a changed byte in the root starts the other slot", Journey::flip_byte),
];

/// How much of the journey a processor makes. What comes after an update is the same for all, and each stage takes minutes.
fn stages(arch: Arch) -> &'static [(&'static str, Stage)] {
    match arch {
        Arch::X86_64 => STAGES,
        Arch::Arm64 => STAGES.get(..2).unwrap_or(STAGES),
    }
}

/// The releases that it takes.
fn releases(arch: Arch) -> &'static [Release] {
    match arch {
        Arch::X86_64 => &[Release::First, Release::Good, Release::Sick, Release::Last],
        Arch::Arm64 => &[Release::First, Release::Good],
    }
}

/// Releases of the journey.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Release {
    First,
    Good,
    Sick,
    Last,
}

impl Release {
    fn version(self) -> &'static str {
        match self {
            Self::First => "1.0.0",
            Self::Good => "1.1.0",
            Self::Sick => "1.2.0",
            Self::Last => "1.3.0",
        }
    }

    fn security_version(self) -> u64 {
        if self == Self::First { 1 } else { 2 }
    }

    fn bundle(self) -> String {
        format!("{}.skerry", self.version())
    }

    fn runs(self) -> String {
        runs(self.version())
    }

    fn recipe(self, arch: Arch, folder: &Path) -> Recipe {
        let mut recipe = Recipe::new(arch);
        recipe.version = self.version().into();
        recipe.security_version = self.security_version();
        // The small kernel has no USB.
        recipe.hardware = true;
        recipe.programs = Some(dist::folder(arch));
        recipe.out = Some(image::work().join("journey").join(arch.name()).join(self.version()));
        recipe.overlay = Some(folder.join(format!("overlay-{}", self.version())));
        recipe.web = Some(folder.join(format!("web-{}", self.version())));
        recipe
    }

    /// The first page of its web client.
    fn page(self) -> String {
        format!("<p>The client of {}</p>", self.version())
    }
}

struct Journey {
    folder: PathBuf,
    setup: Setup,
    /// The client's Python.
    python: String,
    sticks: u32,
}

impl Journey {
    /// Makes the images, and updates of all of them.
    fn prepared(arch: Arch, folder: PathBuf) -> Result<Self> {
        let python = clients::python("nio")?;
        if !dist::folder(arch).join("skerry").exists() {
            dist::build(arch, false)?;
        }
        let keys = trust::ready(&dist::folder(arch))?;
        let mut first = None;
        for release in releases(arch) {
            let recipe = release.recipe(arch, &folder);
            overlay(*release, recipe.overlay.as_deref().context("no overlay")?)?;
            let web = recipe.web.as_deref().context("no web client")?;
            fs::create_dir_all(web)?;
            fs::write(web.join("index.html"), release.page())?;
            image::build(&recipe)?;
            keys.bundle(&recipe, &folder.join(release.bundle()), 3)?;
            if *release == Release::First {
                first = Some(fresh(&recipe.disk(), &folder.join("disk.raw"))?);
            }
            fs::remove_dir_all(recipe.folder())?;
        }
        let ports = Ports { https: 0, federation: 0 }.or_free()?;
        let setup = Setup::new(arch, first.context("no disk")?, ports);
        Ok(Self { folder, setup, python, sticks: 0 })
    }

    fn travel(mut self, stages: &[(&str, Stage)]) -> Result<()> {
        for (number, (what, stage)) in stages.iter().enumerate() {
            println!("\n#### {}. {what}", number + 1);
            stage(&mut self).with_context(|| format!("stage {}: {what}", number + 1))?;
            println!("   entries of the boot loader: {}", entries(&self.setup.disk)?.join(", "));
        }
        Ok(())
    }

    fn set_up(&mut self) -> Result<()> {
        self.plug(SET_UP, None)?;
        let mut machine = self.start("set-up")?;
        machine.expect("order: set up: https://box.example", LIMIT)?;
        self.serves(&mut machine)?;
        self.shows_client_of(Release::First)?;
        self.client("talk", 3)?;
        self.client("check", 0)?;
        self.blessed(&mut machine, Release::First)?;
        machine.cut()
    }

    fn update(&mut self) -> Result<()> {
        self.plug_update(Release::Good)?;
        self.setup.clock = Some("1970-01-01T00:00:00".into());
        let mut machine = self.start("update")?;
        machine.expect(&Release::Good.runs(), LIMIT)?;
        self.serves(&mut machine)?;
        self.blessed(&mut machine, Release::Good)?;
        self.shows_client_of(Release::Good)?;
        self.client("check", 0)?;
        self.client("talk", 3)?;
        self.setup.clock = None;
        machine.cut()
    }

    fn fall_back(&mut self) -> Result<()> {
        self.plug_update(Release::Sick)?;
        let mut machine = self.start("fall-back")?;
        // Once before the install, and once more after the trial has failed.
        machine.expect(&Release::Good.runs(), LIMIT)?;
        machine.expect(&Release::Good.runs(), LIMIT)?;
        self.serves(&mut machine)?;
        self.client("check", 0)?;
        self.client("talk", 1)?;
        self.blessed(&mut machine, Release::Good)?;
        machine.cut()
    }

    fn refuse_old(&mut self) -> Result<()> {
        self.plug_update(Release::First)?;
        let mut machine = self.start("refuse-old")?;
        machine.expect("the update was NOT installed", LIMIT)?;
        self.serves(&mut machine)?;
        self.client("check", 0)?;
        machine.cut()
    }

    fn cut_power(&mut self) -> Result<()> {
        self.plug_update(Release::Last)?;
        let before = self.slot_b_or_a(Release::Good)?;
        let disk = self.setup.disk.clone();
        let started = start_of(&disk, before)?;
        let mut machine = self.start("cut-power")?;
        // The inactive slot's first bytes are the new release's: the install is on its way.
        machine.until("a slot that is being written", LIMIT, || {
            start_of(&disk, before).ok().filter(|now| *now != started)
        })?;
        machine.cut()?;
        self.setup.sticks.clear();
        let mut machine = self.start("after-cut")?;
        machine.expect(RUNNING, LIMIT)?;
        self.serves(&mut machine)?;
        self.client("check", 0)?;
        machine.cut()
    }

    /// The release of the second stage stands in the second slot; what is in the first one is the update that was cut, so a
    /// whole one is put there before the second slot is broken.
    fn flip_byte(&mut self) -> Result<()> {
        self.plug(&format!("# once more\n[update]\nfile = \"{}\"\n", Release::Last.bundle()), Some(Release::Last))?;
        let mut machine = self.start("before-flip")?;
        machine.expect(&Release::Last.runs(), LIMIT)?;
        self.serves(&mut machine)?;
        self.blessed(&mut machine, Release::Last)?;
        machine.cut()?;
        self.setup.sticks.clear();
        flip(&self.setup.disk, self.slot_of(Release::Last)? + SUPERBLOCK)?;
        let mut machine = self.start("flip")?;
        machine.expect(&Release::Good.runs(), LIMIT)?;
        self.serves(&mut machine)?;
        self.client("check", 0)?;
        machine.cut()
    }

    fn start(&self, name: &str) -> Result<Machine> {
        Machine::start(&self.setup, &self.folder, name)
    }

    fn plug_update(&mut self, release: Release) -> Result<()> {
        self.plug(&format!("[update]\nfile = \"{}\"\n", release.bundle()), Some(release))
    }

    /// Puts a stick with an order in, in place of the one before.
    fn plug(&mut self, order: &str, release: Option<Release>) -> Result<()> {
        self.sticks += 1;
        let content = self.folder.join("stick");
        let _ = fs::remove_dir_all(&content);
        fs::create_dir_all(&content)?;
        fs::write(content.join("skerry-provision.toml"), order)?;
        if let Some(release) = release {
            fs::hard_link(self.folder.join(release.bundle()), content.join(release.bundle()))?;
        }
        let file = self.folder.join(format!("stick-{}.raw", self.sticks));
        stick::make(&file, &content)?;
        self.setup.sticks = vec![file];
        Ok(())
    }

    fn serves(&self, machine: &mut Machine) -> Result<()> {
        serves(&self.python, &self.setup, machine)
    }

    /// An error if a browser is not handed the web client that came with a release.
    fn shows_client_of(&self, release: Release) -> Result<()> {
        let page = self.fetched("/")?;
        if page.trim() != release.page() {
            bail!("at / there is {page}");
        }
        Ok(())
    }

    fn fetched(&self, path: &str) -> Result<String> {
        fetched(&self.python, self.setup.ports.https, path)
    }

    fn blessed(&self, machine: &mut Machine, release: Release) -> Result<()> {
        blessed(&self.setup, machine, release.version())
    }

    fn client(&self, what: &str, count: u32) -> Result<()> {
        let mut command = run::command(&self.python, ["-u", "tests/appliance/client.py"]);
        let url = format!("https://127.0.0.1:{}", self.setup.ports.https);
        command.arg(self.folder.join("client.json")).args([&url, what, &count.to_string()]);
        run::step(&format!("the client: {what}"), command)
    }

    /// Where the slot of a release begins, by its name in the partition table.
    fn slot_of(&self, release: Release) -> Result<u64> {
        let name = format!("skerry_{}", release.version());
        let names = partition_names(&self.setup.disk)?;
        match names.iter().position(|found| *found == name) {
            Some(1) => Ok(ROOT_A),
            Some(3) => Ok(ROOT_B),
            _ => bail!("no slot is called {name}: {names:?}"),
        }
    }

    /// The slot that a release does not stand in.
    fn slot_b_or_a(&self, release: Release) -> Result<u64> {
        Ok(if self.slot_of(release)? == ROOT_A { ROOT_B } else { ROOT_A })
    }
}

/// What only the journey's images have: a unit that says what runs, and a gate that fails.
fn overlay(release: Release, folder: &Path) -> Result<()> {
    say_when_up(folder, "journey", &release.runs(), "")?;
    if release == Release::Sick {
        let gate = folder.join("usr/lib/systemd/system/skerry-health.service.d");
        fs::create_dir_all(&gate)?;
        fs::write(
            gate.join("90-journey.conf"),
            "[Service]\nExecStartPre=/usr/bin/systemctl is-active never.service\n",
        )?;
    }
    Ok(())
}

/// What a release says of itself when everything is up.
pub(super) fn runs(version: &str) -> String {
    format!("{RUNNING}{version}")
}

/// Puts a unit into an overlay that says something when everything is up, if a condition of systemd's holds.
pub(super) fn say_when_up(folder: &Path, name: &str, text: &str, condition: &str) -> Result<()> {
    let units = folder.join("usr/lib/systemd/system");
    let wants = units.join("multi-user.target.wants");
    fs::create_dir_all(&wants)?;
    // Without a shell, this is a program that prints a file.
    let said = folder.join("usr/lib/tmpfiles.d");
    fs::create_dir_all(&said)?;
    fs::write(said.join(format!("{name}.conf")), format!("# {text}\n"))?;
    fs::write(
        units.join(format!("{name}.service")),
        format!(
            "[Unit]\nDescription=Says what runs\nAfter=skerry.service\n{condition}\n[Service]\nType=oneshot\n\
             StandardOutput=tty\nTTYPath=/dev/console\n\
             ExecStart=/usr/bin/systemd-tmpfiles --cat-config {name}.conf\n"
        ),
    )?;
    Ok(std::os::unix::fs::symlink(format!("../{name}.service"), wants.join(format!("{name}.service")))?)
}

/// Waits until clients are served. While a release is on trial, they may ask for versions, and no more.
pub(super) fn serves(python: &str, setup: &Setup, machine: &mut Machine) -> Result<()> {
    machine
        .until("clients are served", LIMIT, || fetched(python, setup.ports.https, "/_matrix/client/v3/login").ok())?;
    Ok(())
}

/// Waits until the boot loader's entry of a release has no failed try on it.
pub(super) fn blessed(setup: &Setup, machine: &mut Machine, version: &str) -> Result<()> {
    let good = [format!("skerry_{version}.efi"), format!("skerry_{version}+3.efi")];
    machine.until(&format!("{version} is blessed"), LIMIT, || {
        let entries = entries(&setup.disk).ok()?;
        entries.iter().any(|entry| good.contains(entry)).then_some(())
    })
}

/// The boot loader's entries.
pub(super) fn entries(disk: &Path) -> Result<Vec<String>> {
    let place = format!("{}{ESP}", disk.display());
    let text = run::output(run::command("mdir", ["-b", "-i", &place, "::/EFI/Linux"]))?;
    Ok(text.lines().filter_map(|line| line.trim().rsplit('/').next()).map(str::to_owned).collect())
}

/// Names of the partitions, from the first table.
fn partition_names(disk: &Path) -> Result<Vec<String>> {
    let mut table = vec![0; 8 * 128];
    let mut file = File::open(disk)?;
    file.seek(SeekFrom::Start(1024))?;
    file.read_exact(&mut table)?;
    let name = |entry: &[u8]| {
        let units = entry.get(56..).unwrap_or_default().chunks_exact(2).map(|pair| match pair {
            [low, high] => u16::from_le_bytes([*low, *high]),
            _ => 0,
        });
        String::from_utf16_lossy(&units.take_while(|unit| *unit != 0).collect::<Vec<_>>())
    };
    Ok(table.chunks_exact(128).map(name).collect())
}

/// The first block of a slot.
pub(super) fn start_of(disk: &Path, slot: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; 4096];
    let mut file = File::open(disk)?;
    file.seek(SeekFrom::Start(slot))?;
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn flip(disk: &Path, at: u64) -> Result<()> {
    let mut file = File::options().read(true).write(true).open(disk)?;
    let mut byte = [0];
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(&mut byte)?;
    file.seek(SeekFrom::Start(at))?;
    Ok(file.write_all(&byte.map(|byte| byte ^ 1))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_is_flipped_and_names_are_read() {
        let file = std::env::temp_dir().join(format!("xtask-journey-{}", std::process::id()));
        let mut disk = vec![0u8; 8192];
        for (place, name) in [(1024, "ESP"), (1024 + 128, "skerry_1.0.0")] {
            for (at, unit) in name.encode_utf16().enumerate() {
                disk[place + 56 + 2 * at..place + 58 + 2 * at].copy_from_slice(&unit.to_le_bytes());
            }
        }
        fs::write(&file, &disk).unwrap();
        assert_eq!(partition_names(&file).unwrap()[..3], ["ESP", "skerry_1.0.0", ""]);
        flip(&file, 5000).unwrap();
        assert_eq!(start_of(&file, 4096).unwrap()[5000 - 4096], 1);
        fs::remove_file(&file).unwrap();
    }

    #[test]
    fn only_the_first_release_is_below_the_floor() {
        let all = [Release::First, Release::Good, Release::Sick, Release::Last];
        assert_eq!(all.map(Release::security_version), [1, 2, 2, 2]);
    }
}
