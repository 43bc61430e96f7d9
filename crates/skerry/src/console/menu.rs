//! The console of a box that is set up: how it is, and the few things that are done at it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, Write};
use std::path::Path;

use anyhow::{Context as _, Result};
use homeserver::config::{Config, Overrides};
use http::Method;
use serde_json::Value;

use super::files::Layout;
use super::machine::Machine;
use super::setup::{self, Admin, Certificate};
use super::stick::{self, Stick};
use super::wizard::{self, Terminal};
use super::{orders, papers, provision, recovery, steps};
use crate::bundle::moment;

const MENU: &str = "\n  1 status             6 back to the release before   11 history of updates\n  \
                    2 new password       7 restart the machine          12 what the box says\n  \
                    3 network            8 switch it off                13 the same onto a stick\n  \
                    4 update from stick  9 orders on a stick            14 time\n  \
                    5 approve an update 10 status of updates            15 rules of updates\n  \
                    16 recovery key of the data\n";
/// What a person needs to see of the journal, and what somebody who helps them from far away may want.
const SAYS: [&str; 5] = ["--boot", "--unit=skerry*", "--unit=nftables.service", "--lines=200", "--output=short-iso"];
const SAYS_ALL: [&str; 2] = ["--lines=200000", "--output=short-iso"];
const LOG: &str = "skerry-log.txt";

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
        "9" => on_sticks(terminal, layout, machine),
        "10" => shown(&["status"], terminal, machine),
        "11" => shown(&["history"], terminal, machine),
        "12" => {
            let said = machine.journal(&SAYS, None).map_err(anyhow::Error::msg)?;
            terminal.pages(&said)
        }
        "13" => onto_stick(terminal, layout, machine),
        "14" => time(terminal, layout, machine),
        "15" => rules(terminal, machine),
        "16" => recovery_key(terminal, machine),
        other => terminal.say(&format!("  there is no {other:?}")),
    }
}

/// What somebody who stands before the box wants to know.
pub(crate) fn status<R: BufRead, W: Write>(
    terminal: &mut Terminal<R, W>,
    layout: &Layout,
    machine: &mut impl Machine,
) -> Result<()> {
    let settings: toml::Table =
        std::fs::read_to_string(layout.settings()).ok().and_then(|text| text.parse().ok()).unwrap_or_default();
    let text = |value: Option<&toml::Value>| value.and_then(toml::Value::as_str).unwrap_or("?").to_owned();
    let url = text(settings.get("well_known").and_then(|section| section.get("client_base_url")));
    let addresses: Vec<String> = machine.addresses().iter().map(ToString::to_string).collect();
    let addresses = if addresses.is_empty() { "none".to_owned() } else { addresses.join(", ") };
    let health = health(machine);
    let print = std::fs::read_to_string(layout.authority()).ok().and_then(|pem| papers::fingerprint(&pem));
    terminal.say(&format!("\n  {}  {url}", text(settings.get("server_name"))))?;
    terminal.say(&format!("  release {}, server {health}", release(Path::new("/etc/os-release"))))?;
    terminal.say(&format!("  addresses {addresses}"))?;
    if let Some(data) = recovery::state(machine) {
        terminal.say(&format!("  data {data}"))?;
    }
    if let Some(print) = print {
        terminal.say(&format!("  devices trust {url}/ca.crt SHA-256\n  {print}"))?;
    }
    let (_, updates) = machine.ask_update(&["status"]).unwrap_or_else(|why| (false, why));
    updates.lines().filter(|line| !line.is_empty()).try_for_each(|line| terminal.say(&format!("  {line}")))
}

fn health(machine: &mut impl Machine) -> String {
    match machine.server(Method::GET, "/health", None) {
        Ok((status, answer)) if status.is_success() && answer["maintenance"] == true => {
            "holds still for an update; clients wait".to_owned()
        }
        Ok((status, _)) if status.is_success() => "serves".to_owned(),
        Ok((_, answer)) => format!("is not well: {}", short(&answer)),
        Err(_) => format!("does not answer ({}); see what the box says", unit(machine)),
    }
}

/// Orders on sticks, done or refused before somebody's eyes.
fn on_sticks<R: BufRead, W: Write>(
    terminal: &mut Terminal<R, W>,
    layout: &Layout,
    machine: &mut impl Machine,
) -> Result<()> {
    let mut say = |line: &str| {
        // It goes on without anybody who looks.
        let _ = terminal.say(&format!("  {line}"));
    };
    match orders::look(layout, machine, &mut BTreeSet::new(), &mut say) {
        true => Ok(()),
        false => terminal.say("  no stick with an order is there"),
    }
}

/// What the updater says, a page at a time.
fn shown<R: BufRead, W: Write>(args: &[&str], terminal: &mut Terminal<R, W>, machine: &mut impl Machine) -> Result<()> {
    let (good, said) = machine.ask_update(args).map_err(anyhow::Error::msg)?;
    terminal.pages(&said)?;
    if good { Ok(()) } else { anyhow::bail!("that did not go well; see above") }
}

/// The journal of all starts, where updates stand, and the settings, for somebody elsewhere.
fn onto_stick<R: BufRead, W: Write>(
    terminal: &mut Terminal<R, W>,
    layout: &Layout,
    machine: &mut impl Machine,
) -> Result<()> {
    for name in stick::candidates(Path::new("/sys")) {
        let Ok(stick) = Stick::open(&name) else { continue };
        let device = stick.name();
        match stick.fill(LOG, |file| everything(file, layout, machine)) {
            Ok(()) => {
                return terminal.say(&format!("  {LOG} is on {device}. It says who was here and when: keep it safe."));
            }
            Err(why) => terminal.say(&format!("  {device}: {why:#}"))?,
        }
    }
    terminal.say("  no stick that can be written to is there: it has to be FAT or exFAT")
}

fn everything(mut file: &File, layout: &Layout, machine: &mut impl Machine) -> Result<()> {
    for verb in ["status", "history"] {
        let (_, said) = machine.ask_update(&[verb]).unwrap_or_else(|why| (false, why));
        writeln!(file, "==== skerry update {verb}\n{said}")?;
    }
    let overrides = Overrides { file: Some(layout.settings()), ..Overrides::default() };
    let settings = match Config::load(&overrides) {
        Ok(config) => serde_json::to_string_pretty(&config.without_secrets())?,
        Err(why) => why.to_string(),
    };
    writeln!(file, "==== settings, without secrets\n{settings}\n")?;
    writeln!(file, "==== journal")?;
    machine.journal(&SAYS_ALL, Some(file)).map_err(anyhow::Error::msg)?;
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

/// The clock goes by what a person says: nobody else is asked.
fn time<R: BufRead, W: Write>(
    terminal: &mut Terminal<R, W>,
    layout: &Layout,
    machine: &mut impl Machine,
) -> Result<()> {
    let seconds = u64::try_from(machine.now().unix_timestamp()).unwrap_or(0);
    terminal.say(&format!("  it is {} (UTC)", moment(seconds)))?;
    let to = terminal.ask("The time now (UTC), such as 2026-11-22 18:30, or `stay`", "stay", |text| match text {
        "stay" => Ok(None),
        text => setup::moment(text).map(Some),
    })?;
    let Some(to) = to else { return Ok(()) };
    match machine.set_time(to).map_err(anyhow::Error::msg)? {
        None => terminal.say("  done; the machine's own clock goes by it, too")?,
        Some(why) => terminal.say(&format!("  done; but the machine has no clock of its own that takes it ({why})"))?,
    }
    // A certificate of another time is no good.
    steps::renew(layout, machine)?;
    Ok(())
}

fn recovery_key<R: BufRead, W: Write>(terminal: &mut Terminal<R, W>, machine: &mut impl Machine) -> Result<()> {
    if recovery::state(machine).is_none() {
        return terminal.say("  the data of this box is not encrypted");
    }
    match terminal.agree("Make a new recovery key? The one before opens nothing any more")? {
        true => recovery::hand_over(terminal, machine),
        false => Ok(()),
    }
}

/// A second person says that they have seen what waits.
fn approve<R: BufRead, W: Write>(terminal: &mut Terminal<R, W>, machine: &mut impl Machine) -> Result<()> {
    updater(&["status"], machine)?;
    let version = terminal.ask("Release to approve, such as 1.1.0", "", word)?;
    let by = terminal.ask("Your name", "", word)?;
    updater(&["approve", &version, "--by", &by], machine)
}

/// What is asked of releases besides their makers' signatures. What this image asks for cannot be taken back here.
fn rules<R: BufRead, W: Write>(terminal: &mut Terminal<R, W>, machine: &mut impl Machine) -> Result<()> {
    shown(&["policy"], terminal, machine)?;
    if !terminal.agree("Take back what images before this one asked for?")? {
        return Ok(());
    }
    let by = terminal.ask("Your name", "", word)?;
    updater(&["policy", "--forget", "--by", &by], machine)
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
    use super::super::steps::tests::{Fake, set_up_box};
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
        let mut holding = Fake { maintenance: true, ..Fake::default() };
        assert!(talk("", &mut holding).contains("server holds still for an update; clients wait"));
    }

    #[test]
    fn a_person_says_what_time_it_is() {
        let mut machine = Fake::default();
        let said = talk("14\n2026\n2026-11-22 18:30\n14\n\n", &mut machine);
        assert!(said.contains("it is 2027-01-15 08:00 (UTC)") && said.contains("is not a time such as"), "{said}");
        assert!(
            said.contains("no clock of its own that takes it") && said.contains("it is 2026-11-22 18:30"),
            "{said}"
        );
        let set: Vec<&String> = machine.calls.iter().filter(|call| call.starts_with("clock ")).collect();
        assert_eq!(set, ["clock 1795372200"]);
    }

    #[test]
    fn rules_of_earlier_images_are_taken_back_by_somebody_with_a_name() {
        let mut machine = Fake { said: "second approval  asked for by 1.0.0\n", ..Fake::default() };
        let said = talk("15\n\n15\nyes\n-x\nAda\n", &mut machine);
        assert!(said.contains("asked for by 1.0.0"), "{said}");
        let policy: Vec<&String> = machine.calls.iter().filter(|call| call.contains("policy")).collect();
        assert_eq!(policy, ["update policy", "update policy", "update policy --forget --by Ada"]);
    }

    #[test]
    fn it_says_how_the_last_update_went() {
        let said = "state  nothing is going on\nlast failure  the server does not answer\nHISTORY CHANGED  line 3\n";
        let mut machine = Fake { said, ..Fake::default() };
        let shown = talk("", &mut machine);
        assert!(shown.contains("  last failure  the server does not answer\n  HISTORY CHANGED  line 3\n"), "{shown}");
        assert!(machine.calls.contains(&"update status".to_owned()));
    }

    #[test]
    fn what_the_box_says_is_read_page_by_page() {
        let said: &str = (0..50).map(|line| format!("line {line}\n")).collect::<String>().leak();
        let mut machine = Fake { said, update_goes_well: false, ..Fake::default() };
        let shown = talk("12\n\nq\n11\n\n\n1\n", &mut machine);
        assert!(machine.calls.iter().any(|call| call.starts_with("journalctl --boot --unit=skerry* ")));
        let after = shown.split("  13 the same onto a stick").nth(1).unwrap();
        assert!(after.contains("line 0\n") && after.contains("line 39\n") && !after.contains("line 40\n"), "{after}");
        let history = shown.split("  13 the same onto a stick").nth(2).unwrap();
        assert!(history.contains("line 49\n") && history.contains("did not go well"), "{history}");
        let shown = talk("10\n", &mut Fake { said: "state  armed\n", ..Fake::default() });
        assert!(shown.contains("state  armed\n"), "{shown}");
    }

    #[test]
    fn everything_is_written_for_somebody_elsewhere() {
        let (_dir, layout, mut machine) = set_up_box();
        machine.said = "said\n";
        let secret = "[registration]\nshared_secret = \"hunter2\"\n";
        let settings = std::fs::read_to_string(layout.settings()).unwrap() + secret;
        std::fs::write(layout.settings(), settings).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        everything(file.as_file(), &layout, &mut machine).unwrap();
        let text = std::fs::read_to_string(file.path()).unwrap();
        let begin =
            "==== skerry update status\nsaid\n\n==== skerry update history\nsaid\n\n==== settings, without secrets\n{";
        assert!(text.starts_with(begin) && text.ends_with("\n==== journal\nsaid\n"), "{text}");
        assert!(text.contains("\"server_name\": \"box.example\"") && !text.contains("hunter2"), "{text}");
    }

    #[test]
    fn what_is_chosen_is_done_and_asked_for_first() {
        let mut machine = Fake::default();
        let said = talk(
            "7\nno\n7\nyes\n8\ny\n6\ny\n5\n--x\n1.1.0\nAda B\nx\n2\n\nbattery staple\nbattery staple\n",
            &mut machine,
        );
        let calls: Vec<&str> =
            machine.calls.iter().map(String::as_str).skip(2).filter(|call| !call.contains("/health")).collect();
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
    fn a_recovery_key_is_made_for_data_that_is_encrypted() {
        let mut machine = Fake::default();
        let said = talk("16\n", &mut machine);
        assert!(said.contains("is not encrypted") && !said.contains("  data "), "{said}");
        machine.data = "sealed with-key";
        let said = talk("16\nno\n16\nyes\nklnrtuvv\n", &mut machine);
        assert!(said.contains("  data encrypted, opened by the TPM") && said.contains("kept nowhere"), "{said}");
        assert_eq!(machine.calls.iter().filter(|call| *call == "seal recovery-key").count(), 1);
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
