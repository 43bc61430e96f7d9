//! Orders on a stick: found at boot (or when somebody asks), done once, reported on the console and on the stick.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use ring::digest::{SHA256, digest};

use super::files::Layout;
use super::machine::Machine;
use super::provision::{self, Orders};
use super::setup::Certificate;
use super::steps;
use super::stick::{self, Stick};

const REPORT: &str = "skerry-report.txt";

/// Looks for an order on every stick there is; does the first one that is new. Whether there was one.
pub(crate) fn look(layout: &Layout, machine: &mut impl Machine, say: &mut dyn FnMut(&str)) -> Result<bool> {
    for name in stick::candidates(Path::new("/sys")) {
        let Ok(stick) = Stick::open(&name) else { continue };
        let Some(text) = order(stick.path()) else { continue };
        say(&format!("order: found on {}", stick.name()));
        let mut report = String::new();
        let mut told = |line: &str| {
            say(&format!("order: {line}"));
            report.push_str(line);
            report.push('\n');
        };
        let update = carry_out(&text, stick.path(), layout, machine, &mut told);
        // The update reads from the stick for as long as it runs, and then this machine restarts: so the report is first.
        if let Err(why) = stick.leave(REPORT, &report) {
            say(&format!("order: no report is left on the stick: {why:#}"));
        }
        let Some(file) = update else { return Ok(true) };
        let stick = Stick::open(&name)?;
        install(&stick.path().join(file), machine, say)?;
        return Ok(true);
    }
    Ok(false)
}

/// The text of an order, whatever is wrong with it.
fn order(dir: &Path) -> Option<Result<String, String>> {
    let there = fs::symlink_metadata(dir.join(provision::FILE)).is_ok();
    there.then(|| stick::read(dir, provision::FILE, provision::FILE_MAX_BYTES))
}

/// Does everything but the update, whose file it names. An order is remembered before it is begun: one that ends badly is
/// not tried at every boot for ever.
fn carry_out(
    text: &Result<String, String>,
    dir: &Path,
    layout: &Layout,
    machine: &mut impl Machine,
    tell: &mut dyn FnMut(&str),
) -> Option<String> {
    let outcome = text.clone().and_then(|text| {
        let orders = provision::parse(&text, &|name, max_bytes| stick::read(dir, name, max_bytes))?;
        if was_done(layout, &text, &orders).map_err(|why| format!("{why:#}"))? {
            tell("this one was done before");
            return Ok(None);
        }
        begin(orders, layout, machine, tell).map_err(|why| {
            // A set-up that came to nothing is tried again at the next start.
            if !layout.is_set_up() {
                let _ = fs::remove_file(mark(layout));
            }
            format!("{why:#}")
        })
    });
    outcome.unwrap_or_else(|why| {
        tell(&format!("NOT done: {why}"));
        None
    })
}

fn begin(
    orders: Orders,
    layout: &Layout,
    machine: &mut impl Machine,
    tell: &mut dyn FnMut(&str),
) -> Result<Option<String>> {
    match &orders.setup {
        Some(_) if layout.is_set_up() => tell("this box is set up already; what the order says of that is left out"),
        Some(setup) => {
            tell(&format!("setting up {}", setup.server_name));
            let done = steps::set_up(setup, layout, machine)?;
            tell(&format!("set up: {} administrator {}", done.url, done.username));
            if let Some(fingerprint) = done.fingerprint {
                tell(&format!("certificate to trust: {}/ca.crt SHA-256 {fingerprint}", done.url));
            }
        }
        None => {}
    }
    if let Some(certificate) = &orders.certificate {
        steps::replace_certificate(certificate, layout, machine)?;
        tell("the server has the certificate of the stick");
    }
    if let Some(file) = &orders.update {
        tell(&format!("installing {file}"));
    }
    Ok(orders.update)
}

/// What remembers the last order.
fn mark(layout: &Layout) -> PathBuf {
    layout.console.join("order")
}

/// The same file with the same update was seen before; remembered from now on.
fn was_done(layout: &Layout, text: &str, orders: &Orders) -> Result<bool> {
    let mark = mark(layout);
    // The same order with another certificate beside it is another one.
    let chain = match &orders.certificate {
        Some(Certificate::Site { chain, .. }) => chain.as_str(),
        _ => "",
    };
    let whole = format!("{}\n{chain}\n{text}", orders.update.as_deref().unwrap_or(""));
    let sum: String = digest(&SHA256, whole.as_bytes()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    if fs::read_to_string(&mark).is_ok_and(|before| before == sum) {
        return Ok(true);
    }
    layout.secret(&mark, &sum)?;
    Ok(false)
}

/// Hands an update file over; when it is armed, the machine restarts.
pub(crate) fn install(file: &Path, machine: &mut impl Machine, say: &mut dyn FnMut(&str)) -> Result<()> {
    let name = file.to_str().context("the file has an odd name")?;
    match machine.update(&["install", name, "--by", "stick"]).map_err(anyhow::Error::msg)? {
        true => say("the update is in place"),
        false => say("the update was NOT installed; this release goes on"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::steps::tests::Fake;
    use super::*;

    const ORDER: &str = "server_name = \"box.example\"\nnetwork.dhcp = true\nadmin.password = \"correct horse\"\n";
    const UPDATE: &str = "[update]\nfile = \"a.skerry\"\n";

    struct World {
        dir: tempfile::TempDir,
        layout: Layout,
        machine: Fake,
    }

    impl World {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let layout = Layout::below(dir.path());
            Self { dir, layout, machine: Fake::default() }
        }

        /// What is told, and the update that is to be installed.
        fn order(&mut self, text: &str) -> (String, Option<String>) {
            fs::write(self.dir.path().join(provision::FILE), text).unwrap();
            let text = order(self.dir.path()).unwrap();
            let mut told = String::new();
            let mut tell = |line: &str| told.push_str(&format!("{line}\n"));
            let update = carry_out(&text, self.dir.path(), &self.layout, &mut self.machine, &mut tell);
            (told, update)
        }
    }

    #[test]
    fn a_box_is_set_up_by_a_file() {
        let mut world = World::new();
        let (told, update) = world.order(&format!("{ORDER}{UPDATE}"));
        assert!(told.contains("set up: https://box.example administrator admin"), "{told}");
        assert!(told.contains("/ca.crt SHA-256 ") && told.contains("installing a.skerry"), "{told}");
        assert_eq!(update.as_deref(), Some("a.skerry"));
        assert!(world.layout.is_set_up());
    }

    #[test]
    fn an_order_is_done_once_and_never_over_a_box_that_is_set_up() {
        let mut world = World::new();
        world.order(ORDER);
        assert!(world.order(ORDER).0.contains("done before"));
        let (told, update) = world.order(&ORDER.replace("box.", "other.").replace("correct", "battery"));
        assert!(told.contains("set up already") && update.is_none(), "{told}");
        let (_, update) = world.order(UPDATE);
        assert_eq!(update.as_deref(), Some("a.skerry"));
        assert_eq!(world.order(UPDATE).1, None);
    }

    #[test]
    fn an_order_that_is_wrong_changes_nothing_and_can_be_mended() {
        let mut world = World::new();
        let (told, _) = world.order(&ORDER.replace("correct horse", "short"));
        assert!(told.contains("NOT done: admin.password: "), "{told}");
        assert!(!world.layout.is_set_up() && world.machine.calls.is_empty());
        let (told, _) = world.order(&"x".repeat(70_000));
        assert!(told.contains("is longer than 65536 bytes"), "{told}");
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
    fn the_site_renews_its_certificate_by_a_stick() {
        let mut world = World::new();
        let order = "[certificate]\nchain = \"chain.pem\"\nkey = \"key.pem\"\n";
        let made = rcgen::generate_simple_self_signed(vec!["box.example".to_owned()]).unwrap();
        fs::write(world.dir.path().join("chain.pem"), made.cert.pem()).unwrap();
        fs::write(world.dir.path().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
        assert!(world.order(order).0.contains("NOT done: this box is not set up"));
        world.order(ORDER);
        assert!(world.order(order).0.contains("has the certificate of the stick"));
        let written = fs::read_to_string(world.layout.config.join("tls/server.pem")).unwrap();
        assert_eq!(written, made.cert.pem());
        assert_eq!(world.machine.calls.last().unwrap(), "systemctl kill --signal=HUP skerry.service");
        assert!(world.order(order).0.contains("done before"));
        // Next year, the order is the same.
        let next = rcgen::generate_simple_self_signed(vec!["box.example".to_owned()]).unwrap();
        fs::write(world.dir.path().join("chain.pem"), next.cert.pem()).unwrap();
        fs::write(world.dir.path().join("key.pem"), next.signing_key.serialize_pem()).unwrap();
        assert!(world.order(order).0.contains("has the certificate of the stick"));
        // It is not the box's to renew any more.
        assert!(!world.layout.purpose().exists());
    }

    #[test]
    fn an_update_that_fails_is_said() {
        let mut world = World::new();
        let mut said = Vec::new();
        for good in [true, false] {
            world.machine.update_goes_well = good;
            install(Path::new("/stick/a.skerry"), &mut world.machine, &mut |line| said.push(line.to_owned())).unwrap();
        }
        assert!(said[0].contains("in place") && said[1].contains("NOT installed"), "{said:?}");
        assert_eq!(world.machine.calls, ["update install /stick/a.skerry --by stick"; 2]);
    }
}
