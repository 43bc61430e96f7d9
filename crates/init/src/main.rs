//! `skerry-init`: the first process of the appliance. Brings up the verified root and becomes systemd, or says what is wrong
//! and restarts the machine, so that the boot loader counts a failed try.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use init::devices::{self, Slot};
use init::roothash::RootHash;
use init::verity::{SUPERBLOCK_BYTES, Superblock};
use init::{Failure, cmdline, coldplug, dm, modules, settings, switch, watchdog};
use nix::sys::reboot::{RebootMode, reboot};

/// Written when the image is built: the modules that every machine needs, in order.
const MODULES: &str = "/modules.list";
/// Written when the image is built: drivers, and which devices they are for.
const DRIVERS: &str = "/modules.alias";
/// Written when the image is built: the kernel's settings.
const SETTINGS: &str = "/sysctl.conf";
/// Written when the image is built: the kernel's command line.
const LINE_AS_MADE: &str = "/command-line";
/// Read by udev once it runs: after its own rules, which ask partitions for their names.
const RULES: &str = "/run/udev/rules.d/90-skerry.rules";
const DEV: &str = "/dev";
/// Disks of servers can take this long to show up.
const WAIT_ROUNDS: u32 = 600;
/// A stick with the same system has to wait for disks that take longer to show up.
const ROUNDS_FOR_DISKS: u32 = 100;
/// Then all drivers are tried: a controller may not say what it is.
const ROUNDS_FOR_DRIVERS: u32 = 200;
const ROUND: Duration = Duration::from_millis(50);
const BEFORE_RESTART: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!("skerry-init {}: only as the first process of the appliance", env!("CARGO_PKG_VERSION"));
        return ExitCode::from(2);
    }
    // It comes back with a failure only.
    let Err(failure) = boot();
    say(2, &format!("this slot does not start: {failure}"));
    say(2, "the machine restarts in 10 seconds");
    sleep(BEFORE_RESTART);
    let Err(cause) = reboot(RebootMode::RB_AUTOBOOT);
    say(2, &format!("no restart: {cause}"));
    // The end of the first process is a panic, and a panic restarts, too.
    ExitCode::FAILURE
}

fn boot() -> Result<Infallible, Failure> {
    switch::mount_kernel()?;
    tell("starts");
    restart_after_panic();
    make_settings();
    let table = file_or_nothing(DRIVERS);
    let mut drivers = Drivers { table: coldplug::table(&table), devices: BTreeSet::new(), loaded: BTreeSet::new() };
    // First of all: sums that others look for when they are loaded have processors as their devices.
    drivers.load_for_devices();
    load_modules();
    if let Err(why) = watchdog::arm(Path::new("/dev/watchdog")) {
        say(6, &format!("no watchdog: {why}"));
    }
    let line = text("/proc/cmdline")?;
    cmdline::as_made(&line, &text(LINE_AS_MADE)?)?;
    let hash = cmdline::root_hash(&line)?;
    let slot = wait_for_slot(&hash, &mut drivers)?;
    name_partitions(&slot)?;
    say(6, &format!("root {} with {}", slot.data.display(), slot.tree.display()));
    let target = superblock(&slot.tree)?.target(&slot, &hash);
    let device = dm::create("root", &target, Path::new(DEV))?;
    wait_for(|| device.exists().then_some(()))
        .ok_or_else(|| Failure(format!("{} does not show up", device.display())))?;
    // Where other programs look for it. No udev rule makes this name for a device without udev's own data.
    let _ = std::os::unix::fs::symlink(&device, "/dev/mapper/root");
    switch::mount_root(&device)?;
    if let Err(why) = switch::keep_papers(Path::new(switch::PAPERS), Path::new(switch::KEPT)) {
        // Without them a recovery key is asked for, and the box is not lost.
        say(4, &why.to_string());
    }
    switch::mount_temporary()?;
    tell("the root is verified, systemd starts");
    switch::change_over()
}

/// A panic that waits for somebody to come is no panic that falls back. The command line may have set another time.
fn restart_after_panic() {
    const PANIC: &str = "/proc/sys/kernel/panic";
    if fs::read_to_string(PANIC).is_ok_and(|seconds| seconds.trim() == "0") {
        let _ = fs::write(PANIC, "10");
    }
}

fn make_settings() {
    for setting in settings::list(&file_or_nothing(SETTINGS)) {
        if let Err(why) = setting.make(Path::new("/proc/sys")) {
            say(4, &why);
        }
    }
}

fn load_modules() {
    for module in modules::list(&file_or_nothing(MODULES)) {
        load(&module);
    }
}

fn load(module: &modules::Module<'_>) {
    if let Err(why) = module.load() {
        say(4, &why);
    }
}

/// Without it the boot goes on: the root may need nothing of what it says.
fn file_or_nothing(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_else(|cause| {
        say(4, &format!("{path}: {cause}"));
        String::new()
    })
}

struct Drivers<'t> {
    table: Vec<coldplug::Driver<'t>>,
    /// That were looked at.
    devices: BTreeSet<String>,
    loaded: BTreeSet<&'t str>,
}

impl Drivers<'_> {
    /// Loads what fits the devices that have come since it was called last. Drivers bring devices.
    fn load_for_devices(&mut self) {
        let mut devices = coldplug::devices(Path::new("/sys"));
        devices.retain(|device| !self.devices.contains(device));
        if !devices.is_empty() {
            self.load(|driver| driver.fits(&devices));
            self.devices.append(&mut devices);
        }
    }

    fn load(&mut self, is_wanted: impl Fn(&coldplug::Driver<'_>) -> bool) {
        for driver in self.table.iter().filter(|driver| is_wanted(driver)) {
            for path in driver.files.iter().filter(|path| self.loaded.insert(path)) {
                load(&modules::Module { path, parameters: "" });
            }
        }
    }
}

fn text(path: &str) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|cause| Failure(format!("{path}: {cause}")))
}

fn wait_for_slot(hash: &RootHash, drivers: &mut Drivers<'_>) -> Result<Slot, Failure> {
    let (sys, dev) = (Path::new("/sys"), Path::new(DEV));
    let mut rounds = 0;
    let ready = || {
        rounds += 1;
        let in_time = |slot: &Slot| !slot.removable || rounds > ROUNDS_FOR_DISKS;
        match devices::find(sys, dev, hash) {
            Ok(Some(slot)) if slot.data.exists() && slot.tree.exists() && in_time(&slot) => return Some(Ok(slot)),
            Ok(_) if rounds == ROUNDS_FOR_DRIVERS => drivers.load(|_| true),
            Ok(_) => drivers.load_for_devices(),
            Err(refused) => return Some(Err(refused)),
        }
        None
    };
    wait_for(ready).unwrap_or_else(|| {
        let (data, tree) = (hash.data_uuid(), hash.tree_uuid());
        Err(Failure(format!("no disk has the partitions {data} and {tree} of this slot")))
    })
}

/// Tells udev which disk this is.
fn name_partitions(slot: &Slot) -> Result<(), Failure> {
    put(RULES, &devices::rules(slot))
}

fn put(path: &str, text: &str) -> Result<(), Failure> {
    let failed = |cause: std::io::Error| Failure(format!("{path}: {cause}"));
    let path = Path::new(path);
    fs::create_dir_all(path.parent().unwrap_or(path)).map_err(failed)?;
    fs::write(path, text).map_err(failed)
}

/// Asks until there is an answer, for half a minute.
fn wait_for<T>(mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    for _ in 0..WAIT_ROUNDS {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        sleep(ROUND);
    }
    None
}

fn superblock(tree: &Path) -> Result<Superblock, Failure> {
    let mut bytes = [0; SUPERBLOCK_BYTES];
    let read = File::open(tree).and_then(|mut device| device.read_exact(&mut bytes));
    read.map_err(|cause| Failure(format!("reading {}: {cause}", tree.display())))?;
    Superblock::parse(&bytes)
}

/// A line for whoever looks at the console, where the kernel keeps silent about what goes well; in its log, too.
fn tell(text: &str) {
    say(6, text);
    let _ = writeln!(std::io::stdout(), "skerry-init: {text}");
}

/// A line in the kernel's log, which stays readable after the change of root; on the console when there is no such log.
/// Levels are the kernel's: 2 critical, 4 warning, 6 information.
fn say(level: u8, text: &str) {
    let logged = File::options()
        .write(true)
        .open("/dev/kmsg")
        .and_then(|mut log| log.write_all(format!("<{level}>skerry-init: {text}\n").as_bytes()));
    if logged.is_err() {
        eprintln!("skerry-init: {text}");
    }
}
