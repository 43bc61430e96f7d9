//! Orders on a stick: found at boot (or when somebody asks), done once, reported on the console and on the stick.
//!
//! Lives here: their course. Power may be cut at any moment of it: every step can be done again, and an order is remembered
//! (memory.rs) when it is done. Not here: what an order may say (provision.rs), what is done about it (steps.rs).

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use bundle::{Bundle, Hasher};

use super::files::Layout;
use super::machine::Machine;
use super::memory::Memory;
use super::provision::{self, Orders};
use super::setup::{Certificate, Setup};
use super::site::{self, Beside, Site};
use super::stick::{self, Stick};
use super::{recovery, steps};

const REPORT: &str = "skerry-report.txt";
const MACHINE_ID: &str = "/etc/machine-id";
/// An update that stopped the machine so often is not begun again.
const MOST_BEGINNINGS: u32 = 3;

/// Where what happens is told, a line at a time.
pub(crate) type Tell<'t> = &'t mut dyn FnMut(&str);

/// What has become of an order.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// It was done at an earlier time.
    Before,
    /// It was done, or cannot be.
    Ended,
    /// All of it but the update is done.
    Update(Update),
}

#[derive(Debug, PartialEq, Eq)]
struct Update {
    file: String,
    /// The order's digest.
    sum: String,
}

/// Looks for orders on all sticks there are, but for those that were looked at (`seen`), and does what is new. Whether there
/// was an order.
pub(crate) fn look(layout: &Layout, machine: &mut impl Machine, seen: &mut BTreeSet<String>, say: Tell<'_>) -> bool {
    let mut found = false;
    for name in stick::candidates(Path::new("/sys")) {
        let Some(stick) = Some(&name).filter(|name| !seen.contains(*name)).and_then(|name| Stick::open(name).ok())
        else {
            continue;
        };
        let Some(text) = order(stick.path()) else { continue };
        found = true;
        seen.insert(name.clone());
        say(&format!("order: found on {}", stick.name()));
        match obey(&text, stick, &name, layout, machine, say) {
            // The machine restarts: what is on other sticks is done then.
            Ok(true) => return true,
            Ok(false) => {}
            Err(why) => say(&format!("order: {why:#}")),
        }
    }
    found
}

/// Does what the order on a stick says. Whether the machine restarts now.
fn obey(
    text: &Result<String, String>,
    stick: Stick,
    name: &str,
    layout: &Layout,
    machine: &mut impl Machine,
    say: Tell<'_>,
) -> Result<bool> {
    let mut report = String::new();
    let outcome = carry_out(text, stick.path(), layout, machine, &mut |line| tell(line, &mut report, say));
    // A report of an order that was done before says more than that.
    if outcome == Outcome::Before {
        return Ok(false);
    }
    leave(stick, &report, say);
    hand_over_key(layout, machine, say, &|file, text| Stick::open(name)?.leave(file, text))?;
    let Outcome::Update(update) = outcome else { return Ok(false) };
    let stick = Stick::open(name)?;
    let armed = install(&update, stick.path(), layout, machine, &mut |line| tell(line, &mut report, say));
    leave(stick, &report, say);
    if armed? {
        machine.systemctl(&["reboot"]).map_err(anyhow::Error::msg)?;
        return Ok(true);
    }
    Ok(false)
}

fn tell(line: &str, report: &mut String, say: Tell<'_>) {
    say(&format!("order: {line}"));
    report.push_str(line);
    report.push('\n');
}

fn leave(stick: Stick, report: &str, say: Tell<'_>) {
    if let Err(why) = stick.leave(REPORT, report) {
        say(&format!("order: no report is left on the stick: {why:#}"));
    }
}

/// A recovery key for whoever has the stick, where the data is encrypted and nobody has one. It is neither said nor logged,
/// stands in a file that no later report takes the place of, and opens nothing if it did not get there.
fn hand_over_key(
    layout: &Layout,
    machine: &mut impl Machine,
    say: Tell<'_>,
    put: &dyn Fn(&str, &str) -> Result<()>,
) -> Result<()> {
    if !layout.is_set_up() || !recovery::is_missing(machine) {
        return Ok(());
    }
    let key = match recovery::make(machine) {
        Ok(key) => key,
        Err(why) => {
            say(&format!("order: no recovery key was made: {why:#}"));
            return Ok(());
        }
    };
    let id: String = fs::read_to_string(MACHINE_ID).unwrap_or_default().trim().chars().take(8).collect();
    let file = format!("skerry-recovery-key-{id}.txt");
    let text = format!("recovery key of the data of the machine {id}, kept nowhere else:\n{key}\n");
    if let Err(why) = put(&file, &text) {
        recovery::take_back(machine)?;
        say(&format!("order: no recovery key is left on the stick: {why:#}; 16 in the console's menu makes one"));
        return Ok(());
    }
    say(&format!("order: the recovery key of the data stands in {file} on the stick, and nowhere else"));
    Ok(())
}

/// The text of an order, whatever is wrong with it.
fn order(dir: &Path) -> Option<Result<String, String>> {
    let there = fs::symlink_metadata(dir.join(provision::FILE)).is_ok();
    there.then(|| stick::read(dir, provision::FILE, provision::FILE_MAX_BYTES))
}

/// Does everything but the update. What is wrong is said, and tried again at the next start: by then it may be mended.
fn carry_out(
    text: &Result<String, String>,
    dir: &Path,
    layout: &Layout,
    machine: &mut impl Machine,
    tell: Tell<'_>,
) -> Outcome {
    let done = text.clone().and_then(|text| {
        let orders = provision::parse(&text, &|name, max_bytes| stick::read(dir, name, max_bytes))?;
        let sum = sum(&text, &orders, dir)?;
        if Memory::of(layout).was_done(&sum) {
            tell("this one was done before");
            return Ok(Outcome::Before);
        }
        begin(orders, sum, layout, machine, tell).map_err(|why| format!("{why:#}"))
    });
    done.unwrap_or_else(|why| {
        tell(&format!("NOT done: {why}"));
        Outcome::Ended
    })
}

fn begin(orders: Orders, sum: String, layout: &Layout, machine: &mut impl Machine, tell: Tell<'_>) -> Result<Outcome> {
    match (&orders.setup, &orders.site) {
        (Some(setup), site) => set_up(setup, &site.clone().unwrap_or_default(), layout, machine, tell)?,
        // What does not do once is not tried at every start: clients wait meanwhile.
        (None, Some(site)) if !site::apply(site, layout, machine, tell)? => {
            return Memory::of(layout).done(&sum).map(|()| Outcome::Ended);
        }
        _ => {}
    }
    if let Some(certificate) = &orders.certificate {
        steps::replace_certificate(certificate, layout, machine)?;
        tell("the server has the certificate of the stick");
    }
    match orders.update {
        Some(file) => Ok(Outcome::Update(Update { file, sum })),
        None => Memory::of(layout).done(&sum).map(|()| Outcome::Ended),
    }
}

fn set_up(setup: &Setup, site: &Site, layout: &Layout, machine: &mut impl Machine, tell: Tell<'_>) -> Result<()> {
    let done = match layout.is_set_up() {
        false => {
            tell(&format!("setting up {}", setup.server_name));
            steps::set_up(setup, site, layout, machine)?
        }
        // It was cut, or its first account was refused: the same server gets the one that the order names now.
        true if layout.first_admin().exists() && layout.server_name().as_ref() == Some(&setup.server_name) => {
            layout.write_first_admin(&setup.admin)?;
            steps::finish(layout, machine)?;
            steps::done(setup, layout)
        }
        true => {
            tell("this box is set up already; what the order says of that is left out");
            return Ok(());
        }
    };
    tell(&format!("set up: {} administrator {}", done.url, done.username));
    if let Some(fingerprint) = done.fingerprint {
        tell(&format!("certificate to trust: {}/ca.crt SHA-256 {fingerprint}", done.url));
    }
    Ok(())
}

/// What makes an order another one: its text, the files beside it, and which update the file holds.
fn sum(text: &str, orders: &Orders, dir: &Path) -> Result<String, String> {
    let mut hasher = Hasher::default();
    let mut add = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_be_bytes());
        hasher.update(bytes);
    };
    add(text.as_bytes());
    if let Some(Certificate::Site { chain, .. }) = &orders.certificate {
        add(chain.as_bytes());
    }
    let beside = orders.site.iter().flat_map(|site| site.services.iter().flatten().chain(&site.authorities));
    beside.for_each(|Beside { text, .. }| add(text.as_bytes()));
    if let Some(name) = &orders.update {
        add(&update_name(&stick::file(dir, name).map_err(|why| format!("update.file: {why}"))?)?);
    }
    Ok(hasher.finish().to_string())
}

/// What an update file is called by those who signed it; of one that is none, how it begins.
fn update_name(path: &Path) -> Result<Vec<u8>, String> {
    const BEGIN_BYTES: u64 = 4096;
    let open = || File::open(path).map_err(|cause| format!("update.file: {cause}"));
    if let Ok(bundle) = Bundle::open(open()?) {
        return Ok([bundle.manifest_bytes(), &bundle.envelope().to_bytes()].concat());
    }
    let mut begin = Vec::new();
    open()?.take(BEGIN_BYTES).read_to_end(&mut begin).map_err(|cause| format!("update.file: {cause}"))?;
    Ok(begin)
}

/// Hands an update file over. Whether the machine has to restart for it. One that is refused may be tried again.
fn install(update: &Update, dir: &Path, layout: &Layout, machine: &mut impl Machine, tell: Tell<'_>) -> Result<bool> {
    let (memory, path) = (Memory::of(layout), dir.join(&update.file));
    let name = path.to_str().context("the file has an odd name")?;
    if memory.begin(&update.sum)? >= MOST_BEGINNINGS {
        memory.done(&update.sum)?;
        tell(&format!("NOT done: the machine stopped {MOST_BEGINNINGS} times while {} was installed", update.file));
        return Ok(false);
    }
    tell(&format!("installing {}", update.file));
    let (good, said) =
        machine.ask_update(&["install", name, "--by", "stick", "--no-reboot"]).map_err(anyhow::Error::msg)?;
    said.lines().filter(|line| !line.trim().is_empty()).for_each(&mut *tell);
    if !good {
        tell("the update was NOT installed; this release goes on");
        return memory.forget(&update.sum).map(|()| false);
    }
    memory.done(&update.sum)?;
    let armed = is_armed(machine);
    tell(if armed {
        "the update is in place; the machine restarts"
    } else {
        "the update is in place, and waits for approval"
    });
    Ok(armed)
}

/// An update that needs somebody's approval is not. In doubt it is: clients wait until the machine restarts, and a start too
/// many costs a minute.
fn is_armed(machine: &mut impl Machine) -> bool {
    let said = machine.ask_update(&["status", "--json"]).map(|(_, said)| said).unwrap_or_default();
    let status = said.lines().find_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    status.is_none_or(|status| status["state"] != "staged")
}

#[cfg(test)]
mod tests {
    use super::super::power;
    use super::super::steps::tests::{Fake, RECOVERY_KEY};
    use super::*;

    const ORDER: &str = "server_name = \"box.example\"\nnetwork.dhcp = true\nadmin.password = \"correct horse\"\n";
    const UPDATE: &str = "[update]\nfile = \"a.skerry\"\n";
    const CERTIFICATE: &str = "[certificate]\nchain = \"chain.pem\"\nkey = \"key.pem\"\n";

    struct World {
        dir: tempfile::TempDir,
        layout: Layout,
        machine: Fake,
    }

    impl World {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let layout = Layout::below(dir.path());
            fs::write(dir.path().join("a.skerry"), "release 1").unwrap();
            Self { dir, layout, machine: Fake::default() }
        }

        /// What is told, and what has become of it.
        fn order(&mut self, text: &str) -> (String, Outcome) {
            fs::write(self.dir.path().join(provision::FILE), text).unwrap();
            let text = order(self.dir.path()).unwrap();
            let mut told = String::new();
            let mut tell = |line: &str| told.push_str(&format!("{line}\n"));
            let outcome = carry_out(&text, self.dir.path(), &self.layout, &mut self.machine, &mut tell);
            (told, outcome)
        }

        /// The same, with the update. Whether the machine restarts.
        fn obeyed(&mut self, text: &str) -> (String, bool) {
            let (mut told, outcome) = self.order(text);
            let Outcome::Update(update) = outcome else { return (told, false) };
            let mut tell = |line: &str| told.push_str(&format!("{line}\n"));
            let armed = install(&update, self.dir.path(), &self.layout, &mut self.machine, &mut tell).unwrap();
            (told, armed)
        }

        fn new_certificate(&self) -> String {
            let made = rcgen::generate_simple_self_signed(vec!["box.example".to_owned()]).unwrap();
            fs::write(self.dir.path().join("chain.pem"), made.cert.pem()).unwrap();
            fs::write(self.dir.path().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
            format!("{}\n{}", made.cert.pem().trim_end(), made.signing_key.serialize_pem())
        }

        fn papers(&self) -> String {
            fs::read_to_string(self.layout.papers()).unwrap()
        }
    }

    fn is_update(outcome: &Outcome) -> bool {
        matches!(outcome, Outcome::Update(update) if update.file == "a.skerry")
    }

    #[test]
    fn a_box_is_set_up_by_a_file() {
        let mut world = World::new();
        let (told, outcome) = world.order(&format!("{ORDER}{UPDATE}"));
        assert!(told.contains("set up: https://box.example administrator admin"), "{told}");
        assert!(told.contains("/ca.crt SHA-256 "), "{told}");
        assert!(is_update(&outcome) && world.layout.is_set_up());
    }

    #[test]
    fn an_order_is_done_once_and_never_over_a_box_that_is_set_up() {
        let mut world = World::new();
        world.order(ORDER);
        assert!(world.order(ORDER).0.contains("done before"));
        let (told, outcome) = world.order(&ORDER.replace("box.", "other.").replace("correct", "battery"));
        assert!(told.contains("set up already") && outcome == Outcome::Ended, "{told}");
        world.machine.state = "{\"state\":\"armed\"}";
        assert!(world.obeyed(UPDATE).1);
        assert!(world.order(UPDATE).1 == Outcome::Before && world.order(ORDER).1 == Outcome::Before);
    }

    #[test]
    fn an_order_that_is_wrong_changes_nothing_and_can_be_mended() {
        let mut world = World::new();
        let (told, _) = world.order(&ORDER.replace("correct horse", "short"));
        assert!(told.contains("NOT done: admin.password: "), "{told}");
        assert!(!world.layout.is_set_up() && world.machine.calls.is_empty());
        let (told, _) = world.order(&"x".repeat(70_000));
        assert!(told.contains("is longer than 65536 bytes"), "{told}");
        let (told, _) = world.order(&format!("{ORDER}{}", UPDATE.replace("a.skerry", "none.skerry")));
        assert!(told.contains("NOT done: update.file: none.skerry: "), "{told}");
        assert!(world.order(ORDER).0.contains("set up: "));
    }

    #[test]
    fn a_set_up_that_came_to_nothing_is_tried_again() {
        let mut world = World::new();
        world.machine.systemctl_fails = true;
        assert!(world.order(ORDER).0.contains("NOT done: no systemd"));
        assert!(!world.layout.is_set_up());
        world.machine.systemctl_fails = false;
        assert!(world.order(ORDER).0.contains("set up: "));
    }

    #[test]
    fn a_set_up_is_done_however_often_power_is_cut() {
        for steps in 0.. {
            let mut world = World::new();
            let whole = power::cut_after(steps, || world.order(ORDER)).is_some();
            // Another start of the machine.
            let mut calls = std::mem::take(&mut world.machine.calls);
            let (told, outcome) = world.order(ORDER);
            assert!(if whole { outcome == Outcome::Before } else { told.contains("set up") }, "{steps}: {told}");
            calls.append(&mut world.machine.calls);
            assert!(calls.iter().any(|call| call.starts_with("POST /users {")), "{steps}: {calls:?}");
            assert!(world.layout.is_set_up() && !world.layout.first_admin().exists());
            assert_eq!(world.order(ORDER).1, Outcome::Before);
            if whole {
                assert!(steps > 10);
                return;
            }
        }
    }

    #[test]
    fn a_certificate_is_the_sites_however_often_power_is_cut() {
        for steps in 0.. {
            let mut world = World::new();
            world.order(ORDER);
            let pair = world.new_certificate();
            let whole = power::cut_after(steps, || world.order(CERTIFICATE)).is_some();
            world.order(CERTIFICATE);
            assert_eq!(world.papers(), pair, "{steps}");
            assert!(!world.layout.purpose().exists(), "{steps}");
            assert!(world.machine.calls.iter().any(|call| call == "systemctl kill --signal=HUP skerry.service"));
            if whole {
                return;
            }
        }
    }

    #[test]
    fn settings_are_changed_by_a_stick() {
        let mut world = World::new();
        let settings = "[settings.registration]\nmode = \"token\"\ntokens = [\"hunter2\"]\n";
        assert!(world.order(settings).0.contains("NOT done: this box is not set up"));
        let (told, _) = world.order(&format!("{ORDER}[settings]\nregistration.mode = \"token\"\n"));
        assert!(told.contains("NOT done: settings: registration.mode: ") && !world.layout.is_set_up(), "{told}");
        world.order(&format!("{ORDER}[settings]\noauth.enabled = true\n"));
        let now = |world: &World| fs::read_to_string(world.layout.settings()).unwrap();
        assert!(now(&world).contains("[oauth]\nenabled = true"), "{}", now(&world));
        let (told, outcome) = world.order(settings);
        assert!(
            told.contains("runs with the settings") && outcome == Outcome::Ended && !told.contains("hunter2"),
            "{told}"
        );
        assert!(now(&world).contains("hunter2") && now(&world).contains("enabled = true"));
        assert_eq!(world.order(settings).1, Outcome::Before);
        // One with which the server does not start is not tried again and again.
        world.machine.sick_of = Some(("enabled = false", world.layout.settings()));
        let sick = "settings.presence.enabled = false\n";
        assert!(world.order(sick).0.contains("has the old ones again"));
        assert_eq!(world.order(sick).1, Outcome::Before);
        assert!(!now(&world).contains("presence"));
    }

    #[test]
    fn another_first_account_takes_the_place_of_one_that_is_refused() {
        let mut world = World::new();
        world.machine.refused = vec!["/users", "/users/admin/password"];
        assert!(world.order(ORDER).0.contains("NOT done: the first account: why"));
        let (told, _) = world.obeyed(UPDATE);
        assert!(told.contains("the update is in place"), "the box is not deaf: {told}");
        world.machine.refused.clear();
        let (told, _) = world.order(&ORDER.replace("correct horse", "battery staple"));
        assert!(told.contains("set up: https://box.example administrator admin"), "{told}");
        assert!(world.machine.calls.last().unwrap().contains("battery staple"));
        assert!(world.order(&ORDER.replace("box.", "other.")).0.contains("set up already"));
    }

    #[test]
    fn the_site_renews_its_certificate_by_a_stick() {
        let mut world = World::new();
        let first = world.new_certificate();
        assert!(world.order(CERTIFICATE).0.contains("NOT done: this box is not set up"));
        world.order(ORDER);
        assert!(world.order(CERTIFICATE).0.contains("has the certificate of the stick"));
        assert_eq!(world.papers(), first);
        assert_eq!(world.machine.calls.last().unwrap(), "systemctl kill --signal=HUP skerry.service");
        let old = ["chain.pem", "key.pem"].map(|name| (name, fs::read(world.dir.path().join(name)).unwrap()));
        // Next year, the order is the same.
        let next = world.new_certificate();
        assert!(world.order(CERTIFICATE).0.contains("has the certificate of the stick"));
        // It is not the box's to renew any more.
        assert!(!world.layout.purpose().exists());
        // Last year's stick, found in a drawer.
        old.iter().for_each(|(name, text)| fs::write(world.dir.path().join(name), text).unwrap());
        assert_eq!(world.order(CERTIFICATE).1, Outcome::Before);
        assert_eq!(world.papers(), next);
    }

    #[test]
    fn an_update_is_told_by_what_is_in_the_file() {
        let mut world = World::new();
        assert!(world.obeyed(UPDATE).0.contains("in place"));
        assert_eq!(world.order(UPDATE).1, Outcome::Before);
        fs::write(world.dir.path().join("a.skerry"), "release 2").unwrap();
        assert!(is_update(&world.order(UPDATE).1));
        // A release is the same one whatever else comes with it, and another one with more signatures on it.
        use bundle::testing::{signed, unsigned};
        for (file, is_new) in
            [(unsigned(1), true), (unsigned(1), false), (signed(&unsigned(1), &[1]), true), (unsigned(2), true)]
        {
            fs::write(world.dir.path().join("a.skerry"), file).unwrap();
            assert_eq!(world.obeyed(UPDATE).0.contains("in place"), is_new);
        }
    }

    #[test]
    fn the_machine_restarts_unless_an_update_waits_for_approval() {
        for (state, restarts) in [
            ("{\"state\":\"armed\"}\n", true),
            ("{\"state\":\"staged\",\"needs\":\"approval\"}\n", false),
            ("a remark\n{\"state\":\"staged\"}\n", false),
            ("no status", true),
        ] {
            let mut world = World::new();
            world.machine.state = state;
            let (told, armed) = world.obeyed(UPDATE);
            assert_eq!(armed, restarts, "{state}");
            assert_eq!(told.contains("the machine restarts"), restarts, "{told}");
        }
    }

    #[test]
    fn an_update_that_is_refused_is_said_and_tried_again() {
        let mut world = World::new();
        world.machine.update_goes_well = false;
        world.machine.said = "NOT DONE\nis signed by 1 of the 2 keys\n";
        for _ in 0..5 {
            let (told, armed) = world.obeyed(UPDATE);
            assert!(told.contains("1 of the 2 keys\nthe update was NOT installed") && !armed, "{told}");
        }
        world.machine.update_goes_well = true;
        assert!(world.obeyed(UPDATE).0.contains("in place"));
        let path = world.dir.path().join("a.skerry");
        let install = format!("update install {} --by stick --no-reboot", path.display());
        assert_eq!(world.machine.calls.iter().filter(|call| **call == install).count(), 6);
    }

    #[test]
    fn a_recovery_key_goes_to_the_stick_or_opens_nothing() {
        let mut world = World::new();
        world.order(ORDER);
        let World { layout, machine, .. } = &mut world;
        let mut said = String::new();
        let mut hand_over = |machine: &mut Fake, works: bool| {
            let files = std::cell::RefCell::new(String::new());
            let put = |file: &str, text: &str| {
                files.borrow_mut().push_str(&format!("{file}: {text}"));
                if works { Ok(()) } else { Err(anyhow::Error::msg("no room")) }
            };
            hand_over_key(layout, machine, &mut |line| said.push_str(&format!("{line}\n")), &put).unwrap();
            files.into_inner()
        };
        assert_eq!(hand_over(machine, true), "");
        machine.data = "sealed with-key";
        assert_eq!(hand_over(machine, true), "");
        machine.data = "sealed";
        let files = hand_over(machine, true);
        assert!(files.starts_with("skerry-recovery-key-") && files.contains(RECOVERY_KEY), "{files}");
        assert_eq!(machine.calls.last().unwrap(), "seal recovery-key");
        hand_over(machine, false);
        assert_eq!(machine.calls.last().unwrap(), "seal forget-recovery-key");
        assert!(said.contains("on the stick, and nowhere else") && said.contains("no room; 16"), "{said}");
        assert!(!said.contains(RECOVERY_KEY), "{said}");
    }

    #[test]
    fn an_update_that_was_cut_is_begun_again_and_not_for_ever() {
        let mut world = World::new();
        let mut begun = 0;
        // The updater is at work, and nothing of that is remembered when the machine stops.
        let stopping = |world: &mut World| power::cut_after(2, || world.obeyed(UPDATE));
        let told = loop {
            match stopping(&mut world) {
                None => begun += 1,
                Some((told, _)) => break told,
            }
            assert!(begun < 10);
        };
        assert!(told.contains("NOT done: the machine stopped 3 times"), "{begun}: {told}");
        assert_eq!(world.order(UPDATE).1, Outcome::Before);
    }
}
