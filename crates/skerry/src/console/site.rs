//! What a site wants otherwise: settings of the server that an order changes, and the files that belong to them.
//!
//! Lives here: laying them over the settings there are, what belongs to the box, the server's own check, and that a server that
//! does not start with the new ones gets the old ones back. Not here: what the settings mean (`homeserver::config`), the
//! order's keys (provision.rs).

use std::fmt;
use std::fs;
use std::io::Write as _;

use anyhow::{Result, bail};
use bundle::Digest;
use homeserver::config::{Config, Overrides};
use toml::{Table, Value};

use super::files::{Layout, text};
use super::machine::Machine;
use super::provision::without_values;
use super::setup::Reach;
use super::steps;

/// An order that changes the server's settings.
#[derive(Clone, Default, PartialEq)]
pub(crate) struct Site {
    /// `section` or `section.key`: these are again as the server has them by itself.
    pub(crate) defaults: Vec<String>,
    pub(crate) settings: Table,
    /// Registrations of all application services, in the place of those there are.
    pub(crate) services: Option<Vec<Beside>>,
    /// Certificates of the authorities that the server believes when it opens a connection.
    pub(crate) authorities: Option<Beside>,
    pub(crate) reach: Option<Reach>,
}

/// A file that lies beside the order.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Beside {
    pub(crate) name: String,
    pub(crate) text: String,
}

/// Registrations hold tokens, and settings secrets.
impl fmt::Debug for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.settings.keys()).finish()
    }
}

/// They belong to the box: its units, its first set-up or its image say so, and the server could not start otherwise, or
/// nobody would find it.
const OWNED: [&str; 8] =
    ["server_name", "data_dir", "listeners", "admin", "metrics", "media.dir", "web.dir", "web.authority"];
/// These come as files beside the order.
const FILES: [&str; 2] = ["application_services", "outgoing.ca_file"];
/// Where clients go. It can be changed, and has to be there.
const ADDRESS: &str = "well_known.client_base_url";

impl Site {
    /// What keeps this from being done, whatever the settings are that it is laid over.
    pub(crate) fn refusal(&self) -> Option<String> {
        let set = |key: &&&str| at(&self.settings, key).is_some();
        if let Some(key) = OWNED.iter().find(set) {
            return Some(format!("settings.{key}: belongs to the box, and stays"));
        }
        if let Some(key) = FILES.iter().find(set) {
            return Some(format!("settings.{key}: comes as a file beside the order (`{key}` without `settings`)"));
        }
        let owned = |key: &&String| OWNED.iter().any(|owned| is_below(key, owned));
        self.defaults.iter().find(owned).map(|key| format!("defaults: {key} belongs to the box, and stays"))
    }

    /// The server's settings with these laid over them. The files that belong to them are in place then, under names that
    /// say what is in them: those that are in use stay as they are.
    ///
    /// # Errors
    /// What the server's own check has against them.
    pub(crate) fn laid_over(&self, base: &str, layout: &Layout) -> Result<String> {
        let base: Table = base.parse().map_err(|_| anyhow::Error::msg("the settings of this box cannot be read"))?;
        let mut new = base.clone();
        self.defaults.iter().for_each(|key| remove(&mut new, key));
        for key in OWNED.iter().chain([&ADDRESS]) {
            if let Some(value) = at(&base, key) {
                put(&mut new, key, value.clone());
            }
        }
        merge(&mut new, &self.settings);
        if let Some(services) = &self.services {
            let paths: Result<Vec<Value>> = services.iter().map(|file| place(file, layout)).collect();
            put(&mut new, "application_services.files", Value::Array(paths?));
        }
        if let Some(file) = &self.authorities {
            put(&mut new, "outgoing.ca_file", place(file, layout)?);
        }
        let new = text(&new);
        check(&new)?;
        Ok(new)
    }
}

/// Puts them in force. `false`: the server did not start with them, and has the old ones again.
pub(crate) fn apply(
    site: &Site,
    layout: &Layout,
    machine: &mut impl Machine,
    tell: &mut dyn FnMut(&str),
) -> Result<bool> {
    if !layout.is_set_up() {
        bail!("this box is not set up");
    }
    // A change that was cut: what it was laid over is what counts.
    put_back(layout)?;
    let old = fs::read_to_string(layout.settings())?;
    let new = site.laid_over(&old, layout)?;
    layout.shared(&layout.settings_before(), &old)?;
    layout.shared(&layout.settings(), &new)?;
    if let Some(reach) = site.reach {
        layout.write_reach(reach)?;
        if reach == Reach::Nothing {
            tell("the server can reach nothing any more as soon as this machine has been restarted");
        }
    }
    match steps::restart_server(layout, machine) {
        Ok(()) => {
            layout.remove(&layout.settings_before())?;
            tidy(layout, &new)?;
            tell("the server runs with the settings of the stick");
            Ok(true)
        }
        Err(why) => {
            tell(&format!(
                "NOT done: the server does not start with these settings, and has the old ones again: {why:#}"
            ));
            if let Ok(said) = machine.journal(&["--boot", "--unit=skerry.service", "--lines=5", "--output=cat"], None) {
                said.lines().for_each(&mut *tell);
            }
            put_back(layout)?;
            tidy(layout, &old)?;
            steps::restart_server(layout, machine)?;
            Ok(false)
        }
    }
}

/// Ends a change that was cut before anybody knew whether the server starts with it. Whether there was one.
pub(crate) fn put_back(layout: &Layout) -> Result<bool> {
    let before = layout.settings_before();
    let Ok(old) = fs::read_to_string(&before) else { return Ok(false) };
    layout.shared(&layout.settings(), &old)?;
    layout.remove(&before)?;
    Ok(true)
}

/// Puts a file where the server reads it.
fn place(file: &Beside, layout: &Layout) -> Result<Value> {
    let sum: String = Digest::of(file.text.as_bytes()).to_string().chars().take(16).collect();
    let path = layout.beside().join(format!("{sum}-{}", file.name));
    layout.shared(&path, &file.text)?;
    Ok(Value::String(path.to_string_lossy().into_owned()))
}

/// Files that no settings name any more.
fn tidy(layout: &Layout, settings: &str) -> Result<()> {
    for entry in fs::read_dir(layout.beside()).into_iter().flatten().flatten() {
        if !settings.contains(&*entry.file_name().to_string_lossy()) {
            layout.remove(&entry.path())?;
        }
    }
    Ok(())
}

/// The server's own check. Its complaints name a line of a file that nobody sees, and may name what is written there.
fn check(settings: &str) -> Result<()> {
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(settings.as_bytes())?;
    let overrides = Overrides { file: Some(file.path().to_owned()), ..Overrides::default() };
    let Err(why) = Config::load(&overrides) else { return Ok(()) };
    let path = file.path().to_string_lossy().into_owned();
    let complaints: Vec<String> = why.to_string().lines().map(|line| complaint(line, &path)).collect();
    bail!("settings: {}", complaints.join("; "))
}

fn complaint(line: &str, path: &str) -> String {
    let line = line.strip_prefix(path).unwrap_or(line).trim_start_matches(':');
    let line = line.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start_matches(':').trim();
    match line.split_once(": found ") {
        Some((key, found)) => {
            let said = without_values(&format!("invalid type: {found}"));
            format!("{key}: {}", said.replacen("invalid type:", "found", 1))
        }
        None => line.to_owned(),
    }
}

// ---- tables ------------------------------------------------------------------------------------------------------

/// `a.b` is below `a`, and below itself.
fn is_below(key: &str, above: &str) -> bool {
    key.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn at<'t>(table: &'t Table, key: &str) -> Option<&'t Value> {
    match key.split_once('.') {
        None => table.get(key),
        Some((section, rest)) => at(table.get(section)?.as_table()?, rest),
    }
}

fn put(table: &mut Table, key: &str, value: Value) {
    match key.split_once('.') {
        None => {
            table.insert(key.to_owned(), value);
        }
        Some((section, rest)) => {
            let inner = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(inner) = inner {
                put(inner, rest, value);
            }
        }
    }
}

fn remove(table: &mut Table, key: &str) {
    match key.split_once('.') {
        None => {
            table.remove(key);
        }
        Some((section, rest)) => {
            if let Some(Value::Table(inner)) = table.get_mut(section) {
                remove(inner, rest);
            }
        }
    }
}

/// Sections grow together; everything else takes the place of what was there.
fn merge(into: &mut Table, from: &Table) {
    for (key, value) in from {
        match (into.get_mut(key), value) {
            (Some(Value::Table(into)), Value::Table(from)) => merge(into, from),
            _ => {
                into.insert(key.clone(), value.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::power;
    use super::super::steps::tests::{Fake, set_up_box};
    use super::*;

    const SERVICE: &str = "id: bridge\nurl: null\nas_token: hunter2hunter2\nhs_token: secret\nsender_localpart: bridge\n\
                           namespaces: {}\n";

    fn site(settings: &str) -> Site {
        Site { settings: settings.parse().unwrap(), ..Site::default() }
    }

    fn beside(name: &str, text: &str) -> Beside {
        Beside { name: name.to_owned(), text: text.to_owned() }
    }

    fn apply_to(layout: &Layout, machine: &mut Fake, site: &Site) -> (Result<bool, String>, String) {
        let mut told = String::new();
        let done = apply(site, layout, machine, &mut |line| told.push_str(&format!("{line}\n")));
        (done.map_err(|why| format!("{why:#}")), told)
    }

    fn config(layout: &Layout) -> Config {
        Config::load(&Overrides { file: Some(layout.settings()), ..Overrides::default() }).unwrap()
    }

    #[test]
    fn settings_are_laid_over_those_there_are() {
        let (_dir, layout, mut machine) = set_up_box();
        let before = config(&layout);
        let first =
            site("oauth.enabled = true\n[rate_limits]\nlogin = false\n[registration]\nshared_secret = 'a \\ \"b'");
        assert_eq!(apply_to(&layout, &mut machine, &first).0, Ok(true));
        assert_eq!(machine.calls.last().unwrap(), "GET /health");
        assert!(machine.calls.contains(&"systemctl restart skerry.service".to_owned()));
        let second = site(
            "[registration]\nmode = 'token'\ntokens = ['x']\n[rate_limits]\njoin = { per_second = 1.5, burst = 3 }",
        );
        apply_to(&layout, &mut machine, &second).0.unwrap();
        let now = config(&layout);
        assert!(now.oauth.enabled && now.registration.tokens == ["x"]);
        assert_eq!(now.registration.shared_secret.as_deref(), Some("a \\ \"b"));
        assert_eq!(now.rate_limits.login, homeserver::config::Limit::Off);
        assert_eq!((now.listeners, now.admin, now.web), (before.listeners, before.admin, before.web));
        // And back.
        let third = Site {
            defaults: ["registration", "oauth.enabled", "well_known"].map(str::to_owned).to_vec(),
            ..Site::default()
        };
        apply_to(&layout, &mut machine, &third).0.unwrap();
        let now = config(&layout);
        assert!(!now.oauth.enabled && now.registration == Default::default());
        assert_eq!(now.well_known.client_base_url, before.well_known.client_base_url);
        assert_eq!(now.rate_limits.login, homeserver::config::Limit::Off);
    }

    #[test]
    fn what_the_server_does_not_take_changes_nothing() {
        let (_dir, layout, mut machine) = set_up_box();
        let before = fs::read_to_string(layout.settings()).unwrap();
        machine.calls.clear();
        for (settings, says) in [
            ("[registration]\nmodus = 'open'", "settings: registration.modus: there is no such setting"),
            ("[registration]\nmode = 'token'", "settings: registration.mode: `token` needs registration.tokens"),
            ("[registration]\nshared_secret = 1234512345", "registration.shared_secret: found "),
            ("[calls]\nturn_secret = ['1234512345']", "calls.turn_secret: found "),
            ("registration = '1234512345'", "registration: found string, expected "),
        ] {
            let (done, _) = apply_to(&layout, &mut machine, &site(settings));
            let why = done.unwrap_err();
            assert!(why.contains(says) && !why.contains("1234512345") && !why.contains("/tmp"), "{settings} => {why}");
        }
        let broken = Site { services: Some(vec![beside("bridge.yaml", "id: x")]), ..Site::default() };
        assert!(apply_to(&layout, &mut machine, &broken).0.unwrap_err().contains("application_services.files"));
        assert_eq!(fs::read_to_string(layout.settings()).unwrap(), before);
        assert!(machine.calls.is_empty());
    }

    #[test]
    fn what_belongs_to_the_box_is_refused() {
        let refusal = |settings: &str| site(settings).refusal().unwrap();
        for (settings, key) in [
            ("server_name = 'x'", "settings.server_name: belongs to the box"),
            ("data_dir = '/'", "settings.data_dir"),
            ("[[listeners]]\nbind = '0.0.0.0:80'", "settings.listeners"),
            ("admin.socket = '/x'", "settings.admin"),
            ("metrics.bind = '127.0.0.1:1'", "settings.metrics"),
            ("media.dir = '/x'", "settings.media.dir"),
            ("web.authority = '/x'", "settings.web.authority"),
            ("application_services.files = []", "settings.application_services: comes as a file"),
            ("outgoing.ca_file = '/x'", "settings.outgoing.ca_file: comes as a file"),
        ] {
            assert!(refusal(settings).starts_with(key), "{settings}: {}", refusal(settings));
        }
        assert_eq!(site("web.connect = []\nmedia.max_upload = '1MiB'").refusal(), None);
        for (key, refused) in
            [("listeners", true), ("admin.socket", true), ("web", false), ("media", false), ("x", false)]
        {
            let site = Site { defaults: vec![key.to_owned()], ..Site::default() };
            assert_eq!(site.refusal().is_some(), refused, "{key}");
        }
    }

    #[test]
    fn bridges_bring_their_files() {
        let (_dir, layout, mut machine) = set_up_box();
        let with = |text: &str| Site {
            services: Some(vec![beside("bridge.yaml", text)]),
            authorities: Some(beside("ca.pem", "none yet")),
            reach: Some(Reach::Site),
            ..Site::default()
        };
        apply_to(&layout, &mut machine, &with(SERVICE)).0.unwrap();
        let reach = machine.calls.iter().position(|call| call == "systemctl restart skerry-reach.service");
        assert!(reach < machine.calls.iter().rposition(|call| call == "systemctl restart skerry.service"));
        let first = config(&layout).application_services.files;
        assert_eq!(fs::read_to_string(&first[0]).unwrap(), SERVICE);
        apply_to(&layout, &mut machine, &with(&SERVICE.replace("secret", "other"))).0.unwrap();
        let second = config(&layout);
        assert!(second.application_services.files != first && !first[0].exists());
        assert!(second.outgoing.ca_file.is_some_and(|path| path.exists()));
        let none =
            Site { services: Some(Vec::new()), defaults: vec!["outgoing.ca_file".to_owned()], ..Site::default() };
        apply_to(&layout, &mut machine, &none).0.unwrap();
        assert!(config(&layout).application_services.files.is_empty());
        assert_eq!(fs::read_dir(layout.beside()).unwrap().count(), 0);
        assert!(!format!("{:?}", with(SERVICE)).contains("hunter2"));
    }

    #[test]
    fn a_server_that_does_not_start_has_its_old_settings_again() {
        let (_dir, layout, mut machine) = set_up_box();
        let before = fs::read_to_string(layout.settings()).unwrap();
        machine.sick_of = Some(("max_devices = 1", layout.settings()));
        machine.said = "why it does not\n";
        let (done, told) = apply_to(&layout, &mut machine, &site("auth.max_devices = 1"));
        assert_eq!(done, Ok(false));
        assert!(told.contains("NOT done: the server does not start") && told.contains("why it does not"), "{told}");
        assert_eq!(fs::read_to_string(layout.settings()).unwrap(), before);
        assert!(!layout.settings_before().exists());
        let starts = machine.calls.iter().filter(|call| *call == "systemctl restart skerry.service").count();
        assert_eq!(starts, 2);
    }

    #[test]
    fn a_change_that_is_cut_is_undone_or_done() {
        let change = Site { services: Some(vec![beside("bridge.yaml", SERVICE)]), ..site("oauth.enabled = true") };
        for steps in 0.. {
            let (_dir, layout, mut machine) = set_up_box();
            let before = fs::read_to_string(layout.settings()).unwrap();
            let whole = power::cut_after(steps, || apply_to(&layout, &mut machine, &change)).is_some();
            // Whatever lies there, a server can start with it.
            let in_between = config(&layout);
            assert_eq!(in_between.application_services.files.is_empty(), !in_between.oauth.enabled, "{steps}");
            // The stick is gone: what nobody has seen to work is undone.
            let undone = put_back(&layout).unwrap();
            let now = fs::read_to_string(layout.settings()).unwrap();
            assert!(!undone || now == before, "{steps}");
            // It comes back.
            apply_to(&layout, &mut machine, &change).0.unwrap();
            assert!(config(&layout).oauth.enabled && !layout.settings_before().exists());
            assert_eq!(fs::read_dir(layout.beside()).unwrap().count(), 1);
            if whole {
                assert!(steps > 5 && !undone);
                return;
            }
        }
    }
}
