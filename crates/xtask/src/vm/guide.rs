//! `cargo xtask vm guide`: what `docs/operators/first-boot.md` says, done by somebody who has nothing but the guide: the
//! questions at the console, the certificate and its fingerprint, and the first login in a browser that trusts the box's
//! authority and can reach nothing else.
//!
//! Lives here: the conversation at the console. Not here: the page (`tests/clients/browser/box.test.mjs`), the machine
//! (machine.rs). Nothing depends on how fast a machine is.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::machine::{Machine, Ports, Setup};
use super::{fetched, fresh};
use crate::image::{self, Arch, Recipe};
use crate::{clients, dist, needs, run, web};

const LIMIT: Duration = Duration::from_secs(20 * 60);
const NAME: &str = "box.example";
const PASSWORD: &str = "correct horse battery";

/// What is asked, in its order, and what somebody types who takes what is proposed.
const ANSWERS: &[(&str, &str)] = &[
    ("Press Enter to begin. ", ""),
    ("Network address with prefix, such as 10.1.2.3/24, or `dhcp` [dhcp]: ", ""),
    ("Server name, the part behind the colon in @user:name: ", NAME),
    ("What apps connect to, a name or an IP address [box.example]: ", ""),
    ("(bridges, push gateways)? (yes/no) [no]: ", ""),
    ("User name of the administrator [admin]: ", ""),
    ("Password (not shown): ", PASSWORD),
    ("once more: ", PASSWORD),
    ("(and ca.pem) [own]: ", ""),
    ("The server name can never be changed (yes/no) [no]: ", "yes"),
];

/// `cargo xtask vm guide`
pub(crate) fn verb(args: &[String]) -> Result<()> {
    let keep = match args {
        [] => false,
        [flag] if flag == "--keep" => true,
        _ => bail!("usage: cargo xtask vm guide [--keep]"),
    };
    needs::machine(Arch::X86_64)?;
    needs::trusting_browser()?;
    let folder = run::target_dir().join("vm").join("guide");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    let mut recipe = Recipe::new(Arch::X86_64);
    recipe.web = Some(web::client()?);
    recipe.out = Some(image::work().join("guide"));
    if dist::folder(Arch::X86_64).join("skerry").exists() {
        recipe.programs = Some(dist::folder(Arch::X86_64));
    }
    image::build(&recipe)?;
    let disk = fresh(&recipe.disk(), &folder.join("disk.raw"))?;
    fs::remove_dir_all(recipe.folder())?;
    let setup = Setup::new(Arch::X86_64, disk, Ports { https: 0, federation: 0 }.or_free()?);
    let mut machine = Machine::start(&setup, &folder, "guide")?;
    let fingerprint = set_up(&mut machine)?;
    log_in(&setup, &folder, &fingerprint)?;
    machine.cut()?;
    if !keep {
        fs::remove_file(&setup.disk)?;
    }
    println!("\nvm guide: 1 passed, 0 failed, 0 skipped");
    Ok(())
}

/// From the first question to the fingerprint that people compare.
fn set_up(machine: &mut Machine) -> Result<String> {
    for (question, answer) in ANSWERS {
        machine.answer(question, answer, LIMIT)?;
    }
    machine.expect(&format!("skerry: set up: https://{NAME} administrator admin"), LIMIT)?;
    machine.expect("server serves", LIMIT)?;
    machine.expect(&format!("devices trust https://{NAME}/ca.crt SHA-256"), LIMIT)?;
    machine.line(LIMIT)?;
    machine.line(LIMIT)
}

/// A browser takes the certificate, compares it with what the console says, and opens the box's page.
fn log_in(setup: &Setup, folder: &std::path::Path, fingerprint: &str) -> Result<()> {
    let python = clients::python("nio")?;
    let authority = folder.join("ca.pem");
    fs::write(&authority, fetched(&python, setup.ports.https, "/ca.pem")?)?;
    let mut look = run::command("openssl", ["x509", "-noout", "-fingerprint", "-sha256", "-in"]);
    look.arg(&authority);
    let seen = run::output(look)?;
    let seen = seen.trim().rsplit('=').next().context("no fingerprint")?;
    if plain(seen) != plain(fingerprint) {
        bail!("the console says {fingerprint}, the certificate has {seen}");
    }
    let database = folder.join("home/.pki/nssdb");
    fs::create_dir_all(&database)?;
    let place = format!("sql:{}", database.display());
    run::output(run::command("certutil", ["-N", "--empty-password", "-d", &place]))?;
    let mut trust = run::command("certutil", ["-A", "-n", "box", "-t", "C,,", "-d", &place, "-i"]);
    trust.arg(&authority);
    run::output(trust)?;

    let browser = run::root().join("tests/clients/browser");
    clients::npm_ci(&browser, "Playwright")?;
    let mut command = run::command(&clients::node()?, ["--test", "--test-force-exit", "--test-reporter=spec"]);
    command.arg("box.test.mjs").current_dir(&browser).env("HOME", folder.join("home"));
    command.env("TEST_BOX", NAME).env("TEST_BOX_PORT", setup.ports.https.to_string());
    command.env("TEST_PASSWORD", PASSWORD).env("TEST_PICTURES", folder);
    let (ok, counts) = run::counted_step("the first login", command)?;
    if !ok || counts.passed == 0 {
        bail!("nobody could log in; pictures are in {}", folder.display());
    }
    Ok(())
}

/// A fingerprint without what sets its parts off.
fn plain(fingerprint: &str) -> String {
    fingerprint.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_uppercase()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_compared_however_they_are_set() {
        assert_eq!(plain("AB:cd:01"), plain("ABCD 01"));
        assert_ne!(plain("AB:CD:01"), plain("AB:CD:02"));
    }
}
