//! `cargo xtask vm test --secure-boot`: what firmware that checks signatures starts, and what it refuses. Images are signed
//! with keys for trying, and a machine whose firmware knows no keys takes them at its first start. `--tpm`: where data that a
//! TPM holds the key of is opened, and where a recovery key is asked for.
//!
//! Lives here: the stages and what is expected of each. Not here: the machine (machine.rs), the life of a machine without
//! any of this (journey.rs). As there, nothing depends on how fast a machine is.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::journey::{self, ESP, LIMIT, SET_UP};
use super::machine::{Machine, Ports, Setup};
use super::{fresh, stick};
use crate::image::keys::Keys;
use crate::image::{self, Arch, Recipe, trust};
use crate::{dist, needs, run};

/// Said by a unit that systemd starts only where firmware checks signatures.
const ENFORCED: &str = "JOURNEY firmware checks signatures";
/// What the boot loader says of what firmware refuses.
const REFUSED: &str = "Error loading \\EFI\\Linux\\skerry_1.1.0";
/// What firmware says when it has nothing left to try.
const NOTHING_LEFT: &str = "No bootable option or device was found";
/// Where the data's partition begins: behind boot partition and two slots (image/disk.rs).
const VAR: u64 = (1 + 512 + 2 * 528) << 20;
/// As often as an entry is tried.
const TRIES: usize = 3;

/// Said before the data is mounted.
const BOUND: &str = "the data is encrypted, and bound to this machine's TPM";
const OPENED: &str = "the data is open: the TPM knows this machine and this release";
/// The beginning of what is on a partition that has to be opened.
const LOCKED: &[u8] = b"LUKS\xba\xbe";
const KEY_LETTERS: usize = 64 + 7;

const OLD: &str = "1.0.0";
const NEW: &str = "1.1.0";

/// `cargo xtask vm test --secure-boot` and `--tpm`
pub(crate) fn verb(what: &str, args: &[String]) -> Result<()> {
    let keep = match args {
        [] => false,
        [flag] if flag == "--keep" => true,
        _ => bail!("usage: cargo xtask vm test {what} [--keep]"),
    };
    needs::machine(Arch::X86_64)?;
    let folder = run::target_dir().join("vm").join(what.trim_start_matches('-'));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    let with_tpm = what == "--tpm";
    if with_tpm {
        needs::tpm()?;
    }
    let mut bench = Bench::prepared(&folder, with_tpm)?;
    let stages = if with_tpm { TPM } else { SECURE_BOOT };
    for (number, (text, stage)) in stages.iter().enumerate() {
        println!("\n#### {}. {text}", number + 1);
        stage(&mut bench).with_context(|| format!("stage {}: {text}", number + 1))?;
        println!("   entries of the boot loader: {}", journey::entries(&bench.setup.disk)?.join(", "));
    }
    if !keep {
        fs::remove_dir_all(&folder)?;
    }
    println!("\nvm: {} passed, 0 failed, 0 skipped", stages.len());
    Ok(())
}

type Stage = fn(&mut Bench) -> Result<()>;

const SECURE_BOOT: &[(&str, Stage)] = &[
    ("firmware takes the keys, starts what they signed, and the server serves", Bench::enrol),
    ("a signed update from a stick is started, and is blessed", Bench::update),
    ("a kernel image with another byte in it is refused, and the other slot starts", Bench::refuse_changed),
    ("a kernel image without a signature is refused, and the other slot starts", Bench::refuse_unsigned),
];

const TPM: &[(&str, Stage)] = &[
    ("a first start encrypts the data, and the stick gets a recovery key", Bench::bind),
    ("a restart opens the data without a question", Bench::restart),
    ("an update from a stick opens it, too", Bench::update_of_sealed),
    ("on another machine it stays locked until the recovery key is typed", Bench::move_disk),
    ("which then opens it without a question, and whose console makes another key", Bench::another_key),
];

struct Bench {
    folder: PathBuf,
    setup: Setup,
    sticks: u32,
    recovery_key: String,
}

impl Bench {
    /// Makes two signed releases: a disk of the first, an update to the second, and the second's kernel without a signature.
    fn prepared(folder: &Path, with_tpm: bool) -> Result<Self> {
        if !dist::folder(Arch::X86_64).join("skerry").exists() {
            dist::build(Arch::X86_64, false)?;
        }
        let keys = image::keys_for_trying()?;
        let old = recipe(folder, OLD, Some(&keys))?;
        image::build(&old)?;
        let disk = fresh(&old.disk(), &folder.join("disk.raw"))?;
        fs::remove_dir_all(old.folder())?;
        let new = recipe(folder, NEW, Some(&keys))?;
        image::build(&new)?;
        trust::ready(&dist::folder(Arch::X86_64))?.bundle(&new, &folder.join(update_file()), 3)?;
        if !with_tpm {
            let unsigned = recipe(folder, NEW, None)?;
            image::build(&unsigned)?;
            fs::copy(unsigned.payload().join("kernel.efi"), folder.join("unsigned.efi"))?;
        }
        fs::remove_dir_all(new.folder())?;
        let mut setup = Setup::new(Arch::X86_64, disk, Ports { https: 0, federation: 0 }.or_free()?);
        // The kernel for virtual machines has no USB.
        setup.usb = false;
        if with_tpm {
            setup.tpm = Some(folder.join("tpm"));
        } else {
            setup.secure = Some(folder.join("keys.fd"));
        }
        Ok(Self { folder: folder.to_owned(), setup, sticks: 0, recovery_key: String::new() })
    }

    fn enrol(&mut self) -> Result<()> {
        self.plug(SET_UP, false)?;
        let mut machine = self.start("enrol")?;
        machine.expect("successfully enrolled", LIMIT)?;
        machine.expect(ENFORCED, LIMIT)?;
        machine.expect("order: set up: https://box.example", LIMIT)?;
        self.serves(&mut machine)?;
        journey::blessed(&self.setup, &mut machine, OLD)?;
        machine.cut()
    }

    fn update(&mut self) -> Result<()> {
        self.plug(&format!("[update]\nfile = \"{}\"\n", update_file()), true)?;
        let mut machine = self.start("update")?;
        machine.expect(&journey::runs(NEW), LIMIT)?;
        self.serves(&mut machine)?;
        journey::blessed(&self.setup, &mut machine, NEW)?;
        self.setup.sticks.clear();
        machine.cut()
    }

    fn refuse_changed(&mut self) -> Result<()> {
        let good = self.folder.join("good.efi");
        let name = self.newest()?;
        self.mtool("mcopy", &["-n", &format!("::/EFI/Linux/{name}"), &good.display().to_string()])?;
        let mut bytes = fs::read(&good)?;
        let middle = bytes.len() / 2;
        *bytes.get_mut(middle).context("the kernel image is empty")? ^= 1;
        let changed = self.folder.join("changed.efi");
        fs::write(&changed, bytes)?;
        self.replace(&changed)?;
        self.refuses("changed")?;
        // Nothing else was wrong with it.
        self.replace(&good)?;
        let mut machine = self.start("mended")?;
        machine.expect(&journey::runs(NEW), LIMIT)?;
        machine.cut()
    }

    fn refuse_unsigned(&mut self) -> Result<()> {
        self.replace(&self.folder.join("unsigned.efi"))?;
        self.refuses("unsigned")
    }

    fn bind(&mut self) -> Result<()> {
        self.plug(SET_UP, false)?;
        let mut machine = self.start("bind")?;
        machine.expect(BOUND, LIMIT)?;
        machine.expect("order: set up: https://box.example", LIMIT)?;
        machine.expect("order: the recovery key of the data stands in ", LIMIT)?;
        let file = machine.line(LIMIT)?;
        let file = file.split_whitespace().next().context("no file is named")?;
        self.serves(&mut machine)?;
        journey::blessed(&self.setup, &mut machine, OLD)?;
        machine.cut()?;
        let stick = self.setup.sticks.first().context("no stick")?;
        let place = format!("{}{ESP}", stick.display());
        let text = run::output(run::command("mtype", ["-i", &place, &format!("::/{file}")]))?;
        let key = text.lines().map(str::trim).find(|line| line.len() == KEY_LETTERS);
        self.recovery_key = key.with_context(|| format!("no key in {text:?}"))?.to_owned();
        self.setup.sticks.clear();
        // It is nowhere on the console.
        let said = fs::read_to_string(self.folder.join("bind.log")).unwrap_or_default();
        if said.contains(&self.recovery_key) {
            bail!("the recovery key was said on the console");
        }
        match journey::start_of(&self.setup.disk, VAR)?.starts_with(LOCKED) {
            true => Ok(()),
            false => bail!("the data is not encrypted"),
        }
    }

    fn restart(&mut self) -> Result<()> {
        let mut machine = self.start("restart")?;
        machine.expect(OPENED, LIMIT)?;
        self.serves(&mut machine)?;
        machine.cut()
    }

    fn update_of_sealed(&mut self) -> Result<()> {
        self.plug(&format!("[update]\nfile = \"{}\"\n", update_file()), true)?;
        let mut machine = self.start("update")?;
        // By the release that runs, and by the one that it installs.
        machine.expect(OPENED, LIMIT)?;
        machine.expect(OPENED, LIMIT)?;
        machine.expect(&journey::runs(NEW), LIMIT)?;
        self.serves(&mut machine)?;
        journey::blessed(&self.setup, &mut machine, NEW)?;
        self.setup.sticks.clear();
        machine.cut()
    }

    fn move_disk(&mut self) -> Result<()> {
        self.setup.tpm = Some(self.folder.join("tpm-of-another-machine"));
        let mut machine = self.start("moved")?;
        let wrong: String = self.recovery_key.chars().rev().collect();
        machine.answer("Recovery key: ", "let me in", LIMIT)?;
        machine.expect("a recovery key has 64 letters", LIMIT)?;
        machine.answer("Recovery key: ", &wrong, LIMIT)?;
        machine.expect("this is not the key of this box's data", LIMIT)?;
        machine.answer("Recovery key: ", &self.recovery_key, LIMIT)?;
        machine.answer("open the data from now on, as it is now? (yes/no): ", "yes", LIMIT)?;
        machine.expect("the data is bound to this machine's TPM", LIMIT)?;
        self.serves(&mut machine)?;
        machine.cut()
    }

    fn another_key(&mut self) -> Result<()> {
        let mut machine = self.start("another-key")?;
        machine.expect(OPENED, LIMIT)?;
        self.serves(&mut machine)?;
        machine.answer("recovery key of the data", "16", LIMIT)?;
        machine.answer("The one before opens nothing any more (yes/no)", "yes", LIMIT)?;
        machine.expect("recovery key  ", LIMIT)?;
        let key = machine.line(LIMIT)?;
        if key.len() != KEY_LETTERS || key == self.recovery_key {
            bail!("this is no new key: {key}");
        }
        let end = key.rsplit('-').next().context("a key has groups")?;
        machine.answer("Type its last eight letters", end, LIMIT)?;
        machine.expect("it is kept nowhere on this box", LIMIT)?;
        machine.cut()
    }

    /// What firmware does when the boot loader comes back is its own affair: some try again, some wait for somebody. So the
    /// machine is switched off and on, as somebody would, until all tries of the entry are used up.
    fn refuses(&mut self, name: &str) -> Result<()> {
        let runs = journey::runs(OLD);
        let mut refused = 0;
        for round in 0..=TRIES {
            let mut machine = self.start(&format!("{name}-{round}"))?;
            loop {
                match machine.expect_any(&[REFUSED, &runs, NOTHING_LEFT], LIMIT)? {
                    0 => refused += 1,
                    1 if refused == TRIES => {
                        self.serves(&mut machine)?;
                        return machine.cut();
                    }
                    1 => bail!("the other slot started after {refused} tries, not after {TRIES}"),
                    _ => break,
                }
            }
            machine.cut()?;
        }
        bail!("the other slot does not start")
    }

    fn start(&self, name: &str) -> Result<Machine> {
        Machine::start(&self.setup, &self.folder, name)
    }

    fn serves(&self, machine: &mut Machine) -> Result<()> {
        journey::serves("python3", &self.setup, machine)
    }

    /// Puts a stick with an order in, and the update if it is asked for.
    fn plug(&mut self, order: &str, with_update: bool) -> Result<()> {
        self.sticks += 1;
        let content = self.folder.join("stick");
        let _ = fs::remove_dir_all(&content);
        fs::create_dir_all(&content)?;
        fs::write(content.join("skerry-provision.toml"), order)?;
        if with_update {
            fs::hard_link(self.folder.join(update_file()), content.join(update_file()))?;
        }
        let file = self.folder.join(format!("stick-{}.raw", self.sticks));
        stick::make(&file, &content)?;
        self.setup.sticks = vec![file];
        Ok(())
    }

    /// The name of the newer release's entry.
    fn newest(&self) -> Result<String> {
        let entries = journey::entries(&self.setup.disk)?;
        entries.into_iter().find(|name| name.starts_with(&format!("skerry_{NEW}"))).context("no entry of the update")
    }

    /// Puts another file in the place of the newer release's kernel image, with all its tries.
    fn replace(&self, file: &Path) -> Result<()> {
        self.mtool("mdel", &[&format!("::/EFI/Linux/{}", self.newest()?)])?;
        let entry = format!("::/EFI/Linux/skerry_{NEW}+{TRIES}.efi");
        self.mtool("mcopy", &[&file.display().to_string(), &entry])
    }

    fn mtool(&self, program: &str, args: &[&str]) -> Result<()> {
        let place = format!("{}{ESP}", self.setup.disk.display());
        let mut command = run::command(program, ["-i", &place]);
        command.args(args);
        run::output(command)?;
        Ok(())
    }
}

fn update_file() -> String {
    format!("{NEW}.skerry")
}

/// A release whose units say what runs, and whether firmware checks signatures.
fn recipe(folder: &Path, version: &str, keys: Option<&Keys>) -> Result<Recipe> {
    let overlay = folder.join(format!("overlay-{version}"));
    if !overlay.exists() {
        journey::say_when_up(&overlay, "journey", &journey::runs(version), "")?;
        journey::say_when_up(&overlay, "firmware", ENFORCED, "ConditionSecurity=uefi-secureboot\n")?;
    }
    let mut recipe = Recipe::new(Arch::X86_64);
    recipe.version = version.into();
    recipe.programs = Some(dist::folder(Arch::X86_64));
    recipe.keys = keys.cloned();
    recipe.overlay = Some(overlay);
    recipe.out = Some(image::work().join("sealed").join(version));
    Ok(recipe)
}
