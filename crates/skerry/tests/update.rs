//! `skerry update` as a box runs it, against files: a real server whose accounts were acknowledged, a disk with two slots, a
//! release that is left and one that stays. The boot loader is a rename here; its model is in the updater's own tests.
#![allow(clippy::unwrap_used, clippy::panic)]
#![allow(clippy::disallowed_methods, reason = "a test is a client, and measures real time")]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use bundle::Digest;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const SECTOR: usize = 512;
const ROOT: usize = 1 << 20;
const VERITY: usize = 64 << 10;

/// A box in a folder.
struct Machine {
    dir: tempfile::TempDir,
    server: Option<Child>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
    }
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn root_of(release: u32) -> Vec<u8> {
    (0..30_000)
        .map(|line| format!("root {line}\n"))
        .collect::<String>()
        .into_bytes()
        .into_iter()
        .chain(format!("release {release}").into_bytes())
        .collect()
}

/// The table of a disk with two slots, release 1 in the first.
fn disk(arch: &str) -> Vec<u8> {
    let kinds = match arch {
        "x86_64" => [0x4f68_bce3_e8cd_4db1_96e7_fbca_f984_b709_u128, 0x2c73_57ed_ebd2_46d9_aec1_23d4_37ec_2bf5],
        _ => [0xb921_b045_1df0_41c3_af44_4c6f_280d_3fae, 0xdf33_00ce_d69f_4c92_978c_9bfb_0f38_d820],
    };
    let on_disk = |guid: u128| {
        let [a, b, c, d, e, f, g, h, rest @ ..] = guid.to_be_bytes();
        [[d, c, b, a, f, e, h, g], rest].concat()
    };
    let ids = updater::ids(&Digest::of(&root_of(1)));
    let mut bytes = vec![0; (1 << 20) + 2 * (ROOT + VERITY)];
    let (mut entries, mut at) = (Vec::new(), 64 << 10);
    for (nr, (kind, size)) in
        [(kinds[0], ROOT), (kinds[1], VERITY), (kinds[0], ROOT), (kinds[1], VERITY)].into_iter().enumerate()
    {
        let id = ids.get(nr).map_or(nr as u128, |id| u128::from_be_bytes(id.0));
        let mut entry = [on_disk(kind), on_disk(id)].concat();
        entry.extend((at as u64 / 512).to_le_bytes());
        entry.extend(((at + size) as u64 / 512 - 1).to_le_bytes());
        entry.resize(128, 0);
        entries.extend(entry);
        if nr == 0 {
            bytes[at..at + root_of(1).len()].copy_from_slice(&root_of(1));
        }
        at += size;
    }
    entries.resize(128 * 128, 0);
    let crc = |bytes: &[u8]| {
        let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 };
        !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
    };
    let last = bytes.len() / SECTOR - 1;
    for (at, other, entries_at) in [(1, last, 2), (last, 1, last - 32)] {
        let mut header = b"EFI PART\0\0\x01\0\x5c\0\0\0".to_vec();
        header.resize(92, 0);
        for (place, number) in [(24, at), (32, other), (40, 34), (48, last - 33), (72, entries_at)] {
            header[place..place + 8].copy_from_slice(&(number as u64).to_le_bytes());
        }
        for (place, number) in [(80, 128), (84, 128), (88, crc(&entries))] {
            header[place..place + 4].copy_from_slice(&u32::to_le_bytes(number));
        }
        let sum = crc(&header);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        bytes[at * SECTOR..][..92].copy_from_slice(&header);
        bytes[entries_at * SECTOR..][..entries.len()].copy_from_slice(&entries);
    }
    bytes
}

impl Machine {
    fn new() -> Self {
        let machine = Self { dir: tempfile::tempdir().unwrap(), server: None };
        let at = machine.at().display().to_string();
        let write = |name: &str, text: &str| fs::write(machine.at().join(name), text.replace("DIR", &at)).unwrap();
        write(
            "skerry.toml",
            "server_name = \"hs.test\"\ndata_dir = \"DIR/data\"\n[[listeners]]\nbind = \"127.0.0.1:0\"\n",
        );
        fs::write(machine.at().join("disk"), disk(std::env::consts::ARCH)).unwrap();
        fs::create_dir_all(machine.at().join("esp/EFI/Linux")).unwrap();
        fs::create_dir(machine.at().join("efivars")).unwrap();
        fs::write(machine.at().join("esp/EFI/Linux/skerry_1.1.0.efi"), "MZ").unwrap();
        machine.settings("http://127.0.0.1:1/");
        machine.runs(1);
        machine
    }

    fn at(&self) -> &Path {
        self.dir.path()
    }

    /// How many the firmware has.
    fn variables(&self) -> usize {
        fs::read_dir(self.at().join("efivars")).unwrap().count()
    }

    fn settings(&self, health_url: &str) {
        let text = "[slots]\nnames = \"for others\"\n[update]\ndisk = \"DIR/disk\"\nesp = \"DIR/esp\"\nstate = \"DIR/update\"\n\
            data = \"DIR/data\"\ntrust = \"DIR/root.json\"\nos_release = \"DIR/os-release\"\ncmdline = \"DIR/cmdline\"\n\
            admin_socket = \"DIR/data/admin.sock\"\nboot_env = \"DIR/boot.env\"\njudge = [\"touch\", \"DIR/judged\"]\n\
            firmware = \"DIR/efivars\"\nreboot = [\"touch\", \"DIR/rebooted\"]\n\
            health_within_s = 60\nhealth_url = \"URL\"\n";
        let text = text.replace("DIR", &self.at().display().to_string()).replace("URL", health_url);
        fs::write(self.at().join("box.toml"), text).unwrap();
    }

    /// The release that was booted.
    fn runs(&self, release: u32) {
        let os_release = format!("ID=skerry\nIMAGE_VERSION=1.{release}.0\nSKERRY_SECURITY_VERSION={release}\n");
        fs::write(self.at().join("os-release"), os_release).unwrap();
        fs::write(self.at().join("cmdline"), format!("quiet roothash={} panic=10\n", Digest::of(&root_of(release))))
            .unwrap();
    }

    fn skerry(&self, args: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_skerry"));
        command.env_clear().current_dir(self.at()).args(args.split_whitespace()).output().unwrap()
    }

    fn good(&self, args: &str) -> String {
        let output = self.skerry(args);
        assert!(output.status.success(), "{args}: {}", text(&output));
        text(&output)
    }

    fn update(&self, args: &str) -> String {
        self.good(&format!("update --box box.toml {args}"))
    }

    /// An update file for this machine, signed.
    fn bundle(&self, release: u32) -> String {
        let folder = self.at().join(format!("image{release}"));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("root.img"), root_of(release)).unwrap();
        fs::write(folder.join("verity.img"), format!("tree {release}")).unwrap();
        fs::write(folder.join("kernel.efi"), format!("MZ kernel {release}")).unwrap();
        fs::write(folder.join("root_hash.txt"), format!("{}\n", Digest::of(&root_of(release)))).unwrap();
        fs::write(self.at().join("passphrase"), "correct horse battery\n").unwrap();
        fs::write(self.at().join("sbom.json"), "{}").unwrap();
        if !self.at().join("key").exists() {
            let said = self.good("bundle keygen key --passphrase-file passphrase");
            let public = said.lines().find_map(|line| line.strip_prefix("public  ")).unwrap().to_owned();
            self.good(&format!("bundle root new --root-key {public} --root-threshold 1 --release-key {public} --release-threshold 1 --out root.json"));
            self.good("bundle root request root.json --out root.request");
            self.good("bundle sign root.request --key key --passphrase-file passphrase --out root.sig");
            self.good("bundle root add root.json --signature root.sig --out roots");
        }
        let arch = if cfg!(target_arch = "x86_64") { "x86_64" } else { "arm64" };
        self.good(&format!(
            "bundle create --version 1.{release}.0 --security-version {release} --built-s 1790000000 --store 1..1 \
             --image {arch}=image{release} --sbom sbom.json --roots roots --level 1 --out plain{release}"
        ));
        self.good(&format!("bundle request plain{release} --out request{release}"));
        self.good(&format!("bundle sign request{release} --key key --passphrase-file passphrase --out sig{release}"));
        self.good(&format!("bundle attach plain{release} --signature sig{release} --out update{release}.skerry"));
        format!("update{release}.skerry")
    }

    /// Starts the server the way the unit does, and gives its address.
    fn start(&mut self) -> String {
        let ready = self.at().join("ready.json");
        let _ = fs::remove_file(&ready);
        let mut serve = Command::new(env!("CARGO_BIN_EXE_skerry"));
        serve.env_clear().current_dir(self.at()).args([
            "serve",
            "--config",
            "skerry.toml",
            "--ready-file",
            "ready.json",
        ]);
        let environment = fs::read_to_string(self.at().join("boot.env")).unwrap_or_default();
        serve.envs(environment.lines().filter_map(|line| line.split_once('='))).stderr(Stdio::null());
        self.server = Some(serve.spawn().unwrap());
        let started = Instant::now();
        loop {
            assert!(started.elapsed() < Duration::from_secs(120), "the server does not start");
            if let Some(bound) = fs::read(&ready).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok()) {
                let address = bound["listeners"][0].as_str().unwrap().to_owned();
                self.settings(&format!("http://{address}/_matrix/client/versions"));
                return address;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }

    fn health(&self) -> Value {
        serde_json::from_str(&self.good("admin --config skerry.toml health")).unwrap()
    }

    fn user(&self, name: &str) -> bool {
        self.skerry(&format!("admin --config skerry.toml user create {name}")).status.success()
    }

    fn users(&self) -> usize {
        let list: Value = serde_json::from_str(&self.good("admin --config skerry.toml user list")).unwrap();
        list["users"].as_array().unwrap().len()
    }

    fn entries(&self) -> Vec<String> {
        let entries = fs::read_dir(self.at().join("esp/EFI/Linux")).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn rename(&self, from: &str, to: &str) {
        let folder: PathBuf = self.at().join("esp/EFI/Linux");
        fs::rename(folder.join(from), folder.join(to)).unwrap();
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.update("status --json")).unwrap()
    }
}

/// Status and head of an answer.
fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// A release that is left loses nothing, and one that stays is served.
#[test]
fn what_was_acknowledged_survives_a_release_that_is_left() {
    let mut machine = Machine::new();
    let file = machine.bundle(2);
    assert!(machine.update("boot").is_empty());
    let address = machine.start();
    for nr in 0..5 {
        assert!(machine.user(&format!("user{nr}")));
    }

    // Installed while people use it: at its end clients wait, and nothing is written any more.
    let said = machine.update(&format!("plan {file}"));
    assert!(said.contains("release 1.2.0 takes the place of release 1.1.0") && said.contains("into slot b"), "{said}");
    let said = machine.update(&format!("install {file}"));
    assert!(said.contains("tried at the next start"), "{said}");
    assert!(machine.at().join("rebooted").exists());
    let waits = get(&address, "/_matrix/client/v3/login");
    assert!(
        waits.starts_with("HTTP/1.1 503") && waits.contains("retry-after: 15") && waits.contains("M_UNAVAILABLE"),
        "{waits}"
    );
    assert!(get(&address, "/_matrix/client/versions").starts_with("HTTP/1.1 200"));
    assert!(!machine.user("late"), "an account after the checkpoint");
    let frozen = machine.health();
    assert_eq!((&frozen["ok"], &frozen["maintenance"]), (&true.into(), &true.into()));
    assert_eq!(machine.entries(), ["skerry_1.1.0.efi", "skerry_1.2.0+3.efi"]);
    assert_eq!((&machine.status()["state"], &machine.status()["needs"]), (&"armed".into(), &"restart".into()));

    // A server that dies now and is started again serves nobody either.
    machine.kill();
    let address = machine.start();
    assert!(get(&address, "/_matrix/client/v3/login").starts_with("HTTP/1.1 503"));
    assert!(!machine.user("late"), "an account after the checkpoint");

    // The new release comes up, on trial: clients wait, it writes, and then it dies as often as it may.
    machine.kill();
    machine.runs(2);
    machine.rename("skerry_1.2.0+3.efi", "skerry_1.2.0+2-1.efi");
    assert!(machine.update("boot").contains("Release 1.2.0 is on trial"));
    assert!(machine.at().join("judged").exists());
    assert_eq!(fs::read_to_string(machine.at().join("boot.env")).unwrap(), "SKERRY_TRIAL=1\n");
    let address = machine.start();
    assert!(get(&address, "/_matrix/client/v3/login").starts_with("HTTP/1.1 503"));
    assert_eq!(machine.health()["maintenance"], true);
    for _ in 0..5 {
        assert_eq!(machine.update("health"), "fit\n");
    }
    let tried = machine.health()["position"].as_u64();
    assert!(tried >= frozen["position"].as_u64().map(|position| position + 5), "the gate of health writes");
    assert!(machine.at().join("data/trial").exists(), "the data is marked as touched");
    machine.kill();
    machine.rename("skerry_1.2.0+2-1.efi", "skerry_1.2.0+0-3.efi");

    // The old release comes back to what it had.
    machine.runs(1);
    let said = machine.update("boot");
    assert!(said.contains("Release 1.2.0 was left: it did not come up in 3 tries"), "{said}");
    assert_eq!(machine.entries(), ["skerry_1.1.0.efi"]);
    let address = machine.start();
    assert!(get(&address, "/_matrix/client/v3/login").starts_with("HTTP/1.1 200"));
    assert_eq!(machine.users(), 5);
    assert!(machine.health()["position"].as_u64() < tried, "what the trial wrote is gone");
    assert!(!machine.at().join("data/trial").exists());
    assert!(machine.user("user5"));

    // Once more, and this time it is well.
    machine.update(&format!("install {file} --no-reboot"));
    machine.kill();
    machine.runs(2);
    machine.rename("skerry_1.2.0+3.efi", "skerry_1.2.0+2-1.efi");
    machine.update("boot");
    let address = machine.start();
    assert_eq!(machine.update("health"), "fit\n");
    assert_eq!(machine.variables(), 0, "the firmware is told when a release stays, not before");
    assert!(machine.update("commit").contains("The new release stays"));
    assert_eq!(machine.variables(), 1);
    assert!(get(&address, "/_matrix/client/v3/login").starts_with("HTTP/1.1 200"));
    assert_eq!((machine.users(), machine.user("user6")), (6, true));
    assert_eq!(machine.entries(), ["skerry_1.1.0.efi", "skerry_1.2.0+3.efi"]);
    assert_eq!(fs::read_to_string(machine.at().join("boot.env")).unwrap(), "SKERRY_TRIAL=0\n");
    assert!(!machine.at().join("data/checkpoints").exists());

    refuses_what_was_changed(&machine, &file);

    // What is no step forward is refused in plain words, and written down.
    let again = machine.skerry(&format!("update --box box.toml install {file}"));
    assert!(
        !again.status.success() && text(&again).contains("NOT DONE\nRelease 1.2.0 runs already."),
        "{}",
        text(&again)
    );
    let history = machine.update("history");
    for line in [
        "release 1.2.0 was left: it did not come up",
        "release 1.2.0 stays",
        "Release 1.2.0 runs already",
        "none is missing",
    ] {
        assert!(history.contains(line), "{line}: {history}");
    }
}

/// By who reads it first; it is written down.
fn refuses_what_was_changed(machine: &Machine, file: &str) {
    let mut bytes = fs::read(machine.at().join(file)).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(machine.at().join("flipped.skerry"), bytes).unwrap();
    let flipped = machine.skerry("update --box box.toml install flipped.skerry --by somebody");
    assert!(
        !flipped.status.success() && text(&flipped).contains("NOT DONE\nThe file is damaged"),
        "{}",
        text(&flipped)
    );
    assert!(machine.update("history").contains("a file from somebody: The file is damaged"));
}

/// Without a server, the updater takes the checkpoint itself; and a trial that never opened the data changes nothing.
#[test]
fn a_box_whose_server_does_not_run_can_be_updated() {
    let mut machine = Machine::new();
    let file = machine.bundle(2);
    machine.start();
    assert!(machine.user("user0"));
    machine.kill();
    machine.update(&format!("install {file} --no-reboot --by officer"));
    assert_eq!(fs::read_dir(machine.at().join("data/checkpoints")).unwrap().count(), 1);
    assert!(machine.update("status").contains("release 1.2.0: it is tried at the next start"));
    machine.rename("skerry_1.2.0+3.efi", "skerry_1.2.0+0-3.efi");
    machine.update("boot");
    assert!(!machine.at().join("data/checkpoints").exists());
    machine.start();
    assert_eq!(machine.users(), 1);
    let wrong = machine.skerry("update --box box.toml rollback");
    assert!(!wrong.status.success() && text(&wrong).contains("other slot holds no release"), "{}", text(&wrong));
}

/// A start at which the boot partition cannot be had: nothing is known for sure, so clients wait, except where the journal
/// says that nothing was going on.
#[test]
fn a_start_without_the_boot_partition_serves_only_where_nothing_is_left_to_do() {
    let machine = Machine::new();
    let file = machine.bundle(2);
    let boot = |says: &str| {
        let _ = fs::remove_file(machine.at().join("boot.env"));
        let booted = machine.skerry("update --box box.toml boot");
        assert_eq!(booted.status.success(), says.is_empty(), "{}", text(&booted));
        assert!(text(&booted).contains(says), "{}", text(&booted));
        fs::read_to_string(machine.at().join("boot.env")).unwrap()
    };
    let [esp, away] = ["esp", "away"].map(|name| machine.at().join(name));
    let take = || {
        fs::rename(&esp, &away).unwrap();
        fs::write(&esp, "").unwrap();
    };
    let bring = || {
        fs::remove_file(&esp).unwrap();
        fs::rename(&away, &esp).unwrap();
    };
    assert_eq!(boot(""), "SKERRY_TRIAL=0\n");
    take();
    assert_eq!(boot("esp/EFI/Linux"), "SKERRY_TRIAL=0\n");
    bring();
    machine.update(&format!("install {file} --no-reboot"));
    take();
    for release in [1, 2] {
        machine.runs(release);
        assert_eq!(boot("esp/EFI/Linux"), "SKERRY_TRIAL=1\n", "release {release}");
    }
    bring();
    machine.runs(1);
    assert_eq!(boot(""), "SKERRY_TRIAL=0\n", "release 2 was not chosen, and the data is as it was");
    // A journal that cannot be read says nothing.
    fs::write(machine.at().join("update/state.json"), "torn").unwrap();
    assert_eq!(boot("state.json"), "SKERRY_TRIAL=1\n");
}

/// Consoles, a stick and the units may all start the updater.
#[test]
fn only_one_changes_the_box_at_a_time() {
    let machine = Machine::new();
    let file = machine.bundle(2);
    machine.update("boot");
    let other = fs::File::options().append(true).open(machine.at().join("update/lock")).unwrap();
    other.lock().unwrap();
    for verb in [format!("install {file} --no-reboot"), "rollback".into(), "approve 1.2.0 --by me".into()] {
        let said = machine.skerry(&format!("update --box box.toml {verb}"));
        assert!(!said.status.success() && text(&said).contains("elsewhere"), "{verb}: {}", text(&said));
    }
    assert_eq!((&machine.status()["state"], machine.entries().len()), (&"idle".into(), 1));
    machine.update(&format!("plan {file}"));
    other.unlock().unwrap();
    machine.update(&format!("install {file} --no-reboot"));
    assert_eq!(machine.status()["state"], "armed");
}

/// Whoever presses a key, or whose line hangs up, while clients wait does not leave them waiting.
#[test]
fn an_installation_is_not_ended_while_clients_wait() {
    let mut machine = Machine::new();
    let file = machine.bundle(2);
    machine.update("boot");
    machine.start();
    let mut install = Command::new(env!("CARGO_BIN_EXE_skerry"));
    install.env_clear().current_dir(machine.at()).stdout(Stdio::piped());
    let install = install.args(["update", "--box", "box.toml", "--json", "install", &file]);
    let mut install = install.spawn().unwrap();
    let said = BufReader::new(install.stdout.take().unwrap());
    let arms = said.lines().map_while(Result::ok).find(|line| line.contains("\"arm\""));
    assert!(arms.is_some(), "it came to the point");
    // Nobody reads what else it says.
    for signal in [Signal::SIGINT, Signal::SIGHUP, Signal::SIGTERM, Signal::SIGTSTP] {
        kill(Pid::from_raw(install.id().cast_signed()), signal).unwrap();
    }
    assert!(install.wait().unwrap().success());
    assert!(machine.at().join("rebooted").exists());
    assert_eq!((&machine.status()["state"], &machine.health()["maintenance"]), (&"armed".into(), &true.into()));
}

/// A release that has proven itself is not left for what would be no better with another.
#[test]
fn a_machine_that_cannot_write_does_not_cost_a_good_release_its_place() {
    let mut machine = Machine::new();
    let file = machine.bundle(2);
    machine.update("boot");
    machine.start();
    assert_eq!(machine.update("health"), "fit\n");
    // As on a full disk, nothing can be written.
    let hold = "{\"on\":true}";
    let mut socket = UnixStream::connect(machine.at().join("data/admin.sock")).unwrap();
    let head =
        format!("POST /maintenance HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n", hold.len());
    socket.write_all(format!("{head}content-type: application/json\r\n\r\n{hold}").as_bytes()).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let said = machine.update("health");
    assert!(said.contains("NOT FIT: a test event does not make its way") && said.contains("goes on"), "{said}");
    // On trial it does, and so does a server that does not run, at any time.
    machine.update(&format!("install {file} --no-reboot"));
    let unfit = machine.skerry("update --box box.toml health");
    assert!(!unfit.status.success() && text(&unfit).contains("NOT FIT"), "{}", text(&unfit));
    machine.update("rollback");
    assert_eq!(machine.update("health"), "fit\n");
    machine.kill();
    let settings = fs::read_to_string(machine.at().join("box.toml")).unwrap();
    fs::write(machine.at().join("box.toml"), settings.replace("within_s = 60", "within_s = 0")).unwrap();
    let gone = machine.skerry("update --box box.toml health");
    assert!(!gone.status.success() && text(&gone).contains("does not run"), "{}", text(&gone));
}

fn attack(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../bundle/tests/attacks").join(name).join("update.skerry")
}

#[test]
fn a_file_is_first_read_by_nobody_who_can_open_nothing() {
    let root = fs::read(attack("x").parent().unwrap().parent().unwrap().with_file_name("root.json")).unwrap();
    let believed = serde_json::json!({
        "root": base64::Engine::encode(&base64::engine::general_purpose::STANDARD, root),
        "site_keys": [],
        "site_threshold": 1,
    });
    // Its answer has no room, so that it can be looked at: a pipe that is full.
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    writer.write_all(&[b' '; 4096]).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_skerry"))
        .args(["update", "check-input", &believed.to_string()])
        .stdin(fs::File::open(attack("unsigned")).unwrap())
        .stdout(writer)
        .spawn()
        .unwrap();
    let proc = |name: &str| fs::read_to_string(format!("/proc/{}/{name}", child.id())).unwrap_or_default();
    let words = |text: &str, line: &str| -> Vec<String> {
        let line = text.lines().find_map(|one| one.strip_prefix(line)).unwrap_or_default();
        line.split_whitespace().map(str::to_owned).collect()
    };
    let until = Instant::now() + Duration::from_secs(120);
    while words(&proc("limits"), "Max cpu time").first().is_none_or(|limit| limit != "3600") {
        assert!(Instant::now() < until, "{}", proc("limits"));
        std::thread::sleep(Duration::from_millis(20));
    }
    let (status, limits) = (proc("status"), proc("limits"));
    assert_eq!(words(&status, "NoNewPrivs:"), ["1"]);
    assert_eq!(words(&status, "CapEff:"), ["0000000000000000"]);
    assert_ne!(words(&status, "Uid:")[1], "0");
    for nothing in ["Max open files", "Max file size", "Max core file size"] {
        assert_eq!(words(&limits, nothing)[..2], ["0", "0"], "{nothing}");
    }
    // Then it says what it has to say.
    let mut said = String::new();
    reader.read_to_string(&mut said).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(said.trim().starts_with(r#"{"refused":"The release is signed by 0 of the 2 keys"#), "{said}");
}
