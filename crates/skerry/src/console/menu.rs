//! The console of a box that is set up: how it is, and the few things that are done at it.

use std::io::{BufRead, Write};
use std::path::Path;

use anyhow::{Context as _, Result};
use http::Method;
use serde_json::Value;

use super::files::Layout;
use super::machine::Machine;
use super::setup::{self, Admin, Certificate};
use super::stick::{self, Stick};
use super::wizard::{self, Terminal};
use super::{orders, papers, provision, steps};

const MENU: &str = "\n  1 status          4 update from a stick    7 restart the machine\n  \
                    2 new password    5 approve an update      8 switch it off\n  \
                    3 network         6 back to the release before\n                    9 orders on a stick\n";

/// Shows the status, and does what is chosen, until nobody is there any more.
pub(crate) fn run<R: BufRead, W: Write>(
    terminal: &mut Terminal<R, W>,
    layout: &Layout,
    machine: &mut impl Machine,
) -> Result<()> {
    status(terminal, layout, machine)?;
    loop {
        terminal.say(MENU)?;
        let choice = terminal.line("> ")?;
        if let Err(why) = choose(&choice, terminal, layout, machine) {
            terminal.say(&format!("  {why:#}"))?;
        }
    }
}

fn choose<R: BufRead, W: Write>(
    choice: &str,
    terminal: &mut Terminal<R, W>,
    layout: &Layout,
    machine: &mut impl Machine,
) -> Result<()> {
    match choice {
        "" | "1" => status(terminal, layout, machine),
        "2" => password(terminal, machine),
        "3" => network(terminal, layout, machine),
        "4" => update(terminal, machine),
        "5" => approve(terminal, machine),
        "6" => match terminal.agree("Restart into the release before this one?")? {
            true => updater(&["rollback"], machine),
            false => Ok(()),
        },
        "7" => power("reboot", terminal, machine),
        "8" => power("poweroff", terminal, machine),
        "9" => {
            let mut said = Vec::new();
            let found = orders::look(layout, machine, &mut |line| said.push(line.to_owned()));
            said.iter().try_for_each(|line| terminal.say(&format!("  {line}")))?;
            if !found? {
                terminal.say("  no stick with an order is there")?;
            }
            Ok(())
        }
        other => terminal.say(&format!("  there is no {other:?}")),
    }
}

/// What somebody who stands before the box wants to know.
pub(crate) fn status<R: BufRead, W: Write>(
    terminal: &mut Terminal<R, W>,
    layout: &Layout,
    machine: &mut impl Machine,
) -> Result<()> {
    let settings = std::fs::read_to_string(layout.settings()).unwrap_or_default();
    let value = |key: &str| {
        let line = settings.lines().find_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix('='));
        line.map_or_else(|| "?".to_owned(), |value| value.trim().trim_matches('"').to_owned())
    };
    let addresses: Vec<String> = machine.addresses().iter().map(ToString::to_string).collect();
    let addresses = if addresses.is_empty() { "none".to_owned() } else { addresses.join(", ") };
    let health = match machine.server(Method::GET, "/health", None) {
        Ok((status, _)) if status.is_success() => "serves".to_owned(),
        Ok((_, answer)) => format!("is not well: {}", short(&answer)),
        Err(_) => format!("does not answer ({})", unit(machine)),
    };
    let print = std::fs::read_to_string(layout.authority()).ok().and_then(|pem| papers::fingerprint(&pem));
    let url = value("well_known.client_base_url");
    terminal.say(&format!("\n  {}  {url}", value("server_name")))?;
    terminal.say(&format!("  release {}, server {health}", release(Path::new("/etc/os-release"))))?;
    terminal.say(&format!("  addresses {addresses}"))?;
    if let Some(print) = print {
        terminal.say(&format!("  devices trust {url}/ca.crt SHA-256\n  {print}"))?;
    }
    Ok(())
}

fn short(answer: &Value) -> String {
    answer.to_string().chars().take(300).collect()
}

fn unit(machine: &mut impl Machine) -> String {
    // It ends with a failure for what does not run; the word is what counts.
    match machine.systemctl(&["is-active", "skerry.service"]) {
        Ok(state) => state,
        Err(said) => said.split(": ").last().unwrap_or("unknown").to_owned(),
    }
}

fn release(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let version = text.lines().find_map(|line| line.strip_prefix("IMAGE_VERSION="));
    version.map_or_else(|| env!("CARGO_PKG_VERSION").to_owned(), |version| version.trim_matches('"').to_owned())
}

fn password<R: BufRead, W: Write>(terminal: &mut Terminal<R, W>, machine: &mut impl Machine) -> Result<()> {
    let username = terminal.ask("User name", "admin", setup::username)?;
    let password = terminal.password("New password (not shown)")?;
    steps::reset_password(&Admin { username, password }, machine)?;
    terminal.say("  done; all of the account's sessions have ended")
}

fn network<R: BufRead, W: Write>(
    terminal: &mut Terminal<R, W>,
    layout: &Layout,
    machine: &mut impl Machine,
) -> Result<()> {
    let network = wizard::network(terminal)?;
    layout.write_network(&network)?;
    steps::restart_network(machine)?;
    terminal.say("  the network is restarted; the certificate follows within the hour")
}

fn update<R: BufRead, W: Write>(terminal: &mut Terminal<R, W>, machine: &mut impl Machine) -> Result<()> {
    for name in stick::candidates(Path::new("/sys")) {
        let Ok(stick) = Stick::open(&name) else { continue };
        let files = stick::update_files(stick.path());
        let Some(file) = chosen(&files, terminal)? else { continue };
        let path = stick.path().join(file);
        let path = path.to_str().context("the file has an odd name")?;
        updater(&["plan", path], machine)?;
        if terminal.agree("Install it? The machine restarts")? {
            updater(&["install", path], machine)?;
        }
        return Ok(());
    }
    terminal.say("  no stick with an update file (*.skerry) is there")
}

/// A second person says that they have seen what waits.
fn approve<R: BufRead, W: Write>(terminal: &mut Terminal<R, W>, machine: &mut impl Machine) -> Result<()> {
    updater(&["status"], machine)?;
    let version = terminal.ask("Release to approve, such as 1.1.0", "", word)?;
    let by = terminal.ask("Your name", "", word)?;
    updater(&["approve", &version, "--by", &by], machine)
}

/// No option, and nothing that breaks a line of the history.
fn word(text: &str) -> Result<String, String> {
    let good =
        !text.is_empty() && !text.starts_with('-') && text.chars().count() <= 100 && !text.contains(char::is_control);
    if good { Ok(text.to_owned()) } else { Err("a word is wanted".to_owned()) }
}

fn chosen<R: BufRead, W: Write>(files: &[String], terminal: &mut Terminal<R, W>) -> Result<Option<String>> {
    match files {
        [] => Ok(None),
        [only] => Ok(Some(only.clone())),
        many => {
            for (number, name) in (1..).zip(many) {
                terminal.say(&format!("  {number} {name}"))?;
            }
            terminal.ask("Which one", "1", |answer| {
                let number = answer.parse::<usize>().ok().and_then(|number| number.checked_sub(1));
                Ok(Some(number.and_then(|at| many.get(at)).ok_or("one of the numbers")?.clone()))
            })
        }
    }
}

fn updater(args: &[&str], machine: &mut impl Machine) -> Result<()> {
    match machine.update(args).map_err(anyhow::Error::msg)? {
        true => Ok(()),
        false => anyhow::bail!("that did not go well; see above"),
    }
}

fn power<R: BufRead, W: Write>(what: &str, terminal: &mut Terminal<R, W>, machine: &mut impl Machine) -> Result<()> {
    if terminal.agree(if what == "reboot" { "Restart the machine?" } else { "Switch the machine off?" })? {
        machine.systemctl(&[what]).map_err(anyhow::Error::msg)?;
    }
    Ok(())
}

/// The site's papers, from the first stick that has them.
pub(crate) fn site_papers() -> Result<Certificate> {
    for name in stick::candidates(Path::new("/sys")) {
        let Ok(stick) = Stick::open(&name) else { continue };
        let read = |file: &str| stick::read(stick.path(), file, provision::PEM_MAX_BYTES).map_err(anyhow::Error::msg);
        if !stick.path().join("server.pem").exists() {
            continue;
        }
        let authority = stick.path().join("ca.pem").exists().then(|| read("ca.pem")).transpose()?;
        return Ok(Certificate::Site { chain: read("server.pem")?, key: read("server.key")?, authority });
    }
    anyhow::bail!("no stick with server.pem is there")
}

#[cfg(test)]
mod tests {
    use super::super::steps::tests::Fake;
    use super::*;

    fn talk(lines: &str, machine: &mut Fake) -> String {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::below(dir.path());
        std::fs::create_dir_all(&layout.config).unwrap();
        let settings = "server_name = \"box.example\"\nwell_known.client_base_url = \"https://10.0.2.15\"\n";
        std::fs::write(layout.settings(), settings).unwrap();
        let mut terminal = Terminal { input: lines.as_bytes(), output: Vec::new(), echo: |_| {} };
        assert!(run(&mut terminal, &layout, machine).is_err(), "it ends when the console is closed");
        String::from_utf8(terminal.output).unwrap()
    }

    #[test]
    fn it_shows_how_the_box_is() {
        let mut machine = Fake::default();
        let said = talk("", &mut machine);
        for part in ["box.example", "https://10.0.2.15", "server serves", "addresses 10.0.2.15"] {
            assert!(said.contains(part), "{part}: {said}");
        }
        machine.server_in = 1;
        assert!(talk("", &mut machine).contains("does not answer"));
    }

    #[test]
    fn what_is_chosen_is_done_and_asked_for_first() {
        let mut machine = Fake::default();
        let said = talk(
            "7\nno\n7\nyes\n8\ny\n6\ny\n5\n--x\n1.1.0\nAda B\nx\n2\n\nbattery staple\nbattery staple\n",
            &mut machine,
        );
        let calls: Vec<&str> =
            machine.calls.iter().map(String::as_str).filter(|call| !call.contains("/health")).collect();
        let password = "POST /users/admin/password {\"log_out\":true,\"password\":\"battery staple\"}";
        assert_eq!(
            calls,
            [
                "systemctl reboot",
                "systemctl poweroff",
                "update rollback",
                "update status",
                "update approve 1.1.0 --by Ada B",
                password
            ]
        );
        assert!(said.contains("there is no \"x\"") && said.contains("sessions have ended"), "{said}");
    }

    #[test]
    fn what_goes_wrong_is_said_and_the_menu_goes_on() {
        let mut machine = Fake { update_goes_well: false, ..Fake::default() };
        let said = talk("5\n7\nyes\n", &mut machine);
        assert!(said.contains("did not go well"), "{said}");
        assert!(machine.calls.contains(&"systemctl reboot".to_owned()));
    }

    #[test]
    fn the_release_is_the_images() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("os-release");
        std::fs::write(&path, "ID=skerry\nIMAGE_VERSION=\"1.2.3\"\n").unwrap();
        assert_eq!(release(&path), "1.2.3");
        assert_eq!(release(&dir.path().join("none")), env!("CARGO_PKG_VERSION"));
    }
}
