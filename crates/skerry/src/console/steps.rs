//! What is done with a set-up: certificates, files, services, the first account; and later what keeps them good.
//!
//! Lives here: the order of the steps, over `Machine`. Not here: where answers come from (wizard.rs, provision.rs).

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use homeserver::config::Tls;
use homeserver::http::listener::Certificate as Loaded;
use http::{Method, StatusCode};
use serde_json::json;

use super::files::{Layout, Papers, joined};
use super::machine::Machine;
use super::papers::{Authority, Purpose, fingerprint, is_private};
use super::setup::{Admin, Certificate, Network, Setup};
use super::site::Site;
use crate::admin::encoded;

/// Pauses of half a second. Emulated machines take minutes for the first start.
const SERVER_ROUNDS: u32 = 1200;
const ADDRESS_ROUNDS: u32 = 60;

/// What the officer at the console is told in the end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) url: String,
    pub(crate) username: String,
    pub(crate) fingerprint: Option<String>,
}

/// The first set-up, from certificates to the first account, with what the site wants otherwise.
pub(crate) fn set_up(setup: &Setup, site: &Site, layout: &Layout, machine: &mut impl Machine) -> Result<Done> {
    if layout.is_set_up() {
        bail!("this box is set up already");
    }
    // The site's own papers are looked at before anything changes.
    if let Certificate::Site { chain, key, .. } = &setup.certificate {
        fit(chain, key)?;
    }
    let settings = site.laid_over(&layout.server_settings(setup, machine.memory_mib()), layout)?;
    layout.write_network(&setup.network)?;
    restart_network(machine)?;
    await_address(setup, machine);
    let papers = papers(setup, layout, machine)?;
    layout.write(setup, &papers, &settings)?;
    start(layout, machine)?;
    finish(layout, machine)?;
    Ok(done(setup, layout))
}

pub(crate) fn done(setup: &Setup, layout: &Layout) -> Done {
    let authority = fs::read_to_string(layout.authority()).ok();
    let fingerprint = authority.as_deref().and_then(fingerprint);
    Done { url: setup.url(), username: setup.admin.username.clone(), fingerprint }
}

/// Opens the first account as soon as the server answers. Does nothing when that was done, and nothing to a set-up that was
/// cut before the server had settings: that one is begun anew.
pub(crate) fn finish(layout: &Layout, machine: &mut impl Machine) -> Result<()> {
    let Some(admin) = layout.read_first_admin().filter(|_| layout.is_set_up()) else { return Ok(()) };
    await_server(machine)?;
    let body = json!({ "username": admin.username, "password": admin.password, "admin": true });
    let (status, answer) = machine.server(Method::POST, "/users", Some(&body)).map_err(anyhow::Error::msg)?;
    // Cut between the account and the removal of this file, the account is there, and takes the password once more.
    if !status.is_success() && reset_password(&admin, machine).is_err() {
        bail!("the first account: {}", answer["error"].as_str().unwrap_or(status.as_str()));
    }
    layout.forget_first_admin()
}

pub(crate) fn restart_network(machine: &mut impl Machine) -> Result<()> {
    machine.systemctl(&["restart", "systemd-networkd.service"]).map_err(anyhow::Error::msg)?;
    Ok(())
}

fn start(layout: &Layout, machine: &mut impl Machine) -> Result<()> {
    let mut call = |args: &[&str]| machine.systemctl(args).map_err(anyhow::Error::msg);
    if layout.config.join("site").exists() {
        call(&["restart", "skerry-reach.service"])?;
    }
    call(&["start", "skerry.socket"])?;
    call(&["restart", "--no-block", "skerry.service"])?;
    Ok(())
}

/// Starts the server anew, and waits until it serves.
///
/// # Errors
/// It does not start.
pub(crate) fn restart_server(layout: &Layout, machine: &mut impl Machine) -> Result<()> {
    let mut call = |args: &[&str]| machine.systemctl(args).map_err(anyhow::Error::msg);
    if layout.config.join("site").exists() {
        call(&["restart", "skerry-reach.service"])?;
    }
    call(&["restart", "skerry.service"])?;
    await_server(machine)
}

fn await_server(machine: &mut impl Machine) -> Result<()> {
    for _ in 0..SERVER_ROUNDS {
        if machine.server(Method::GET, "/health", None).is_ok() {
            return Ok(());
        }
        machine.pause();
    }
    bail!("the server does not start; see what the box says")
}

/// With DHCP, the address is part of the certificate when it comes in time. It is issued anew when it changes.
fn await_address(setup: &Setup, machine: &mut impl Machine) {
    let mut rounds = if setup.network == Network::Dhcp { ADDRESS_ROUNDS } else { 0 };
    while rounds > 0 && machine.addresses().is_empty() {
        machine.pause();
        rounds -= 1;
    }
}

// ---- certificates ------------------------------------------------------------------------------------------------

fn papers(setup: &Setup, layout: &Layout, machine: &impl Machine) -> Result<Papers> {
    if let Certificate::Site { chain, key, authority } = &setup.certificate {
        // A set-up that was cut may have left these: the box would renew what is not its own.
        layout.remove(&layout.purpose())?;
        layout.remove(&layout.authority())?;
        return Ok(Papers { chain: chain.clone(), key: key.clone(), authority: authority.clone() });
    }
    let mut domains = vec![setup.host().to_owned(), setup.address.clone()];
    domains.dedup();
    let authority = Authority::new(&domains)?;
    let (mut papers, purpose) = issue(&authority, &domains, setup_address(setup), machine)?;
    papers.authority = Some(authority.certificate(machine.now())?);
    layout.secret(&layout.authority_key(), &authority.key_pem())?;
    keep(&purpose, layout)?;
    Ok(papers)
}

/// A fixed address counts before any network card has it.
fn setup_address(setup: &Setup) -> Option<String> {
    match &setup.network {
        Network::Static { address, .. } if is_private(address.address) => Some(address.address.to_string()),
        _ => None,
    }
}

fn issue(
    authority: &Authority,
    domains: &[String],
    more: Option<String>,
    machine: &impl Machine,
) -> Result<(Papers, Purpose)> {
    let mut names = names(domains, machine);
    names.extend(more.filter(|name| !names.contains(name)));
    let now = machine.now();
    let issued = authority.issue(&names, now)?;
    let purpose = Purpose { domains: domains.to_vec(), names, issued: now.unix_timestamp() };
    Ok((Papers { chain: issued.chain_pem, key: issued.key_pem, authority: None }, purpose))
}

fn keep(purpose: &Purpose, layout: &Layout) -> Result<()> {
    layout.secret(&layout.purpose(), &serde_json::to_string(purpose)?)
}

/// What the server's certificate is to be good for at this moment.
fn names(domains: &[String], machine: &impl Machine) -> Vec<String> {
    let here =
        machine.addresses().into_iter().filter(|address| is_private(*address)).map(|address| address.to_string());
    let own = domains.iter().cloned().chain(["localhost".to_owned(), "127.0.0.1".to_owned()]);
    let mut names = Vec::new();
    own.chain(here).for_each(|name| {
        if !names.contains(&name) {
            names.push(name);
        }
    });
    names
}

/// Issues the server's certificate anew when it is due, and tells the server. Whether it was.
pub(crate) fn renew(layout: &Layout, machine: &mut impl Machine) -> Result<bool> {
    // Without this file the certificate is the site's.
    let Ok(text) = fs::read(layout.purpose()) else { return Ok(false) };
    let purpose: Purpose = serde_json::from_slice(&text).context("what the certificate is for")?;
    let is_good = || {
        let files = Tls { certificate: layout.papers(), key: layout.papers() };
        loads(&files, &layout.config).is_ok() && !purpose.is_over(&names(&purpose.domains, machine), machine.now())
    };
    if !layout.is_set_up() || is_good() {
        return Ok(false);
    }
    let key = fs::read_to_string(layout.authority_key()).context("the authority's key")?;
    let authority = Authority::from_pem(&purpose.domains, &key)?;
    let (papers, purpose) = issue(&authority, &purpose.domains, None, machine)?;
    layout.write_papers(&papers)?;
    // Only now: cut in between, it is due once more.
    keep(&purpose, layout)?;
    reload(machine)?;
    Ok(true)
}

/// Puts the site's certificate in the place of the one there is, which is not renewed by the box any more.
pub(crate) fn replace_certificate(new: &Certificate, layout: &Layout, machine: &mut impl Machine) -> Result<()> {
    if !layout.is_set_up() {
        bail!("this box is not set up");
    }
    let Certificate::Site { chain, key, authority } = new else { return Ok(()) };
    fit(chain, key)?;
    layout.remove(&layout.purpose())?;
    layout.write_papers(&Papers { chain: chain.clone(), key: key.clone(), authority: authority.clone() })?;
    reload(machine)
}

fn reload(machine: &mut impl Machine) -> Result<()> {
    machine.systemctl(&["kill", "--signal=HUP", "skerry.service"]).map_err(anyhow::Error::msg)?;
    Ok(())
}

/// Whether a key is that of the certificate, as the server will see it.
fn fit(chain: &str, key: &str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let files = Tls { certificate: dir.path().join("chain.pem"), key: dir.path().join("key.pem") };
    fs::write(&files.certificate, chain)?;
    fs::write(&files.key, key)?;
    loads(&files, dir.path())?;
    // In the end they are one file, and either may hold more than it should.
    fs::write(&files.certificate, joined(chain, key))?;
    loads(&Tls { key: files.certificate.clone(), ..files }, dir.path())
}

fn loads(files: &Tls, dir: &Path) -> Result<()> {
    // Paths of this moment tell nobody anything.
    let short = |why: String| why.replace(&format!("{}/", dir.display()), "");
    Loaded::load(files).map(|_| ()).map_err(|why| anyhow::Error::msg(short(why)))
}

// ---- later -------------------------------------------------------------------------------------------------------

pub(crate) fn reset_password(admin: &Admin, machine: &mut impl Machine) -> Result<()> {
    let body = json!({ "password": admin.password, "log_out": true });
    let path = format!("/users/{}/password", encoded(&admin.username));
    let (status, answer) = machine.server(Method::POST, &path, Some(&body)).map_err(anyhow::Error::msg)?;
    match status {
        StatusCode::OK => Ok(()),
        _ => bail!("{}", answer["error"].as_str().unwrap_or(status.as_str())),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs::File;
    use std::io::Write as _;
    use std::net::IpAddr;
    use std::path::PathBuf;

    use homeserver::config::{Config, Overrides};
    use serde_json::Value;
    use time::{Duration, OffsetDateTime};

    use super::super::power;
    use super::super::setup::Reach;
    use super::*;

    pub(crate) const RECOVERY_KEY: &str = "cbdefghi-cbdefghi-cbdefghi-cbdefghi-cbdefghi-cbdefghi-cbdefghi-klnrtuvv";

    /// A machine that writes down what it is asked to do.
    #[derive(Clone)]
    pub(crate) struct Fake {
        pub(crate) calls: Vec<String>,
        pub(crate) addresses: Vec<IpAddr>,
        pub(crate) now: OffsetDateTime,
        pub(crate) update_goes_well: bool,
        pub(crate) systemctl_fails: bool,
        /// What a file must not hold if the server is to start.
        pub(crate) sick_of: Option<(&'static str, PathBuf)>,
        /// How the data lies on the disk.
        pub(crate) data: &'static str,
        /// Rounds until the server answers.
        pub(crate) server_in: u32,
        pub(crate) maintenance: bool,
        /// What the updater says, and what it says of its state.
        pub(crate) said: &'static str,
        pub(crate) state: &'static str,
        /// Paths for which the server has a refusal.
        pub(crate) refused: Vec<&'static str>,
    }

    impl Default for Fake {
        fn default() -> Self {
            Self {
                calls: Vec::new(),
                addresses: vec!["10.0.2.15".parse().unwrap()],
                now: OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap(),
                update_goes_well: true,
                systemctl_fails: false,
                sick_of: None,
                data: "plain",
                server_in: 0,
                maintenance: false,
                said: "",
                state: "{}",
                refused: Vec::new(),
            }
        }
    }

    impl Machine for Fake {
        fn systemctl(&mut self, args: &[&str]) -> Result<String, String> {
            power::step();
            self.calls.push(format!("systemctl {}", args.join(" ")));
            let is_sick = |(word, file): &(&str, PathBuf)| fs::read_to_string(file).unwrap().contains(word);
            if args == ["restart", "skerry.service"] && self.sick_of.as_ref().is_some_and(is_sick) {
                return Err("it ended".to_owned());
            }
            if self.systemctl_fails { Err("no systemd".to_owned()) } else { Ok(String::new()) }
        }

        fn server(&mut self, method: Method, path: &str, body: Option<&Value>) -> Result<(StatusCode, Value), String> {
            power::step();
            if self.server_in > 0 {
                return Err("no server".to_owned());
            }
            let body = body.map(|body| format!(" {body}")).unwrap_or_default();
            self.calls.push(format!("{method} {path}{body}"));
            match self.refused.contains(&path) {
                true => Ok((StatusCode::BAD_REQUEST, json!({ "error": "why" }))),
                false => Ok((StatusCode::OK, json!({ "maintenance": self.maintenance }))),
            }
        }

        fn update(&mut self, args: &[&str]) -> Result<bool, String> {
            power::step();
            self.calls.push(format!("update {}", args.join(" ")));
            Ok(self.update_goes_well)
        }

        fn ask_update(&mut self, args: &[&str]) -> Result<(bool, String), String> {
            let good = self.update(args)?;
            Ok((good, if args == ["status", "--json"] { self.state.to_string() } else { self.said.to_owned() }))
        }

        fn journal(&mut self, args: &[&str], to: Option<&File>) -> Result<String, String> {
            self.calls.push(format!("journalctl {}", args.join(" ")));
            match to {
                Some(mut file) => {
                    file.write_all(self.said.as_bytes()).map(|()| String::new()).map_err(|_| String::new())
                }
                None => Ok(self.said.to_owned()),
            }
        }

        fn seal(&mut self, args: &[&str]) -> Result<String, String> {
            if args == ["status"] {
                return Ok(self.data.to_owned());
            }
            self.calls.push(format!("seal {}", args.join(" ")));
            Ok(if args == ["recovery-key"] { RECOVERY_KEY.to_owned() } else { String::new() })
        }

        fn addresses(&self) -> Vec<IpAddr> {
            self.addresses.clone()
        }

        fn memory_mib(&self) -> u64 {
            1024
        }

        fn now(&self) -> OffsetDateTime {
            self.now
        }

        fn set_time(&mut self, to: OffsetDateTime) -> Result<Option<String>, String> {
            self.calls.push(format!("clock {}", to.unix_timestamp()));
            self.now = to;
            Ok(Some("/dev/rtc0: none".to_owned()))
        }

        fn pause(&mut self) {
            self.server_in = self.server_in.saturating_sub(1);
        }
    }

    fn setup() -> Setup {
        Setup {
            server_name: "box.example".to_owned(),
            address: "box.example".to_owned(),
            network: Network::Dhcp,
            reach: Reach::Site,
            admin: Admin { username: "admin".to_owned(), password: "correct horse".to_owned() },
            certificate: Certificate::Own,
        }
    }

    /// A box that was set up by hand.
    pub(crate) fn set_up_box() -> (tempfile::TempDir, Layout, Fake) {
        let (dir, layout, mut machine) = world();
        set_up(&setup(), &Site::default(), &layout, &mut machine).unwrap();
        (dir, layout, machine)
    }

    fn world() -> (tempfile::TempDir, Layout, Fake) {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::below(dir.path());
        (dir, layout, Fake::default())
    }

    fn purpose(layout: &Layout) -> Purpose {
        serde_json::from_slice(&fs::read(layout.purpose()).unwrap()).unwrap()
    }

    #[test]
    fn the_steps_of_a_first_set_up() {
        let (_dir, layout, mut machine) = world();
        machine.server_in = 3;
        let done = set_up(&setup(), &Site::default(), &layout, &mut machine).unwrap();
        assert_eq!((done.url.as_str(), done.username.as_str()), ("https://box.example", "admin"));
        let pem = fs::read_to_string(layout.authority()).unwrap();
        assert_eq!(done.fingerprint, fingerprint(&pem));
        let expected = [
            "systemctl restart systemd-networkd.service",
            "systemctl restart skerry-reach.service",
            "systemctl start skerry.socket",
            "systemctl restart --no-block skerry.service",
            "GET /health",
            "POST /users {\"admin\":true,\"password\":\"correct horse\",\"username\":\"admin\"}",
        ];
        assert_eq!(machine.calls, expected);
        assert_eq!(purpose(&layout).names, ["box.example", "localhost", "127.0.0.1", "10.0.2.15"]);
        assert!(!layout.first_admin().exists());
        assert!(
            set_up(&setup(), &Site::default(), &layout, &mut machine)
                .is_err_and(|why| why.to_string().contains("already"))
        );
    }

    #[test]
    fn an_account_that_was_not_opened_in_time_is_opened_later() {
        let (_dir, layout, mut machine) = world();
        machine.server_in = u32::MAX;
        assert!(set_up(&setup(), &Site::default(), &layout, &mut machine).is_err());
        assert!(layout.first_admin().exists());
        machine = Fake { refused: vec!["/users"], ..Fake::default() };
        finish(&layout, &mut machine).unwrap();
        assert!(machine.calls.last().is_some_and(|call| call.starts_with("POST /users/admin/password ")));
        assert!(!layout.first_admin().exists());
    }

    #[test]
    fn an_account_that_is_refused_is_kept_for_later() {
        let (_dir, layout, mut machine) = world();
        machine.refused = vec!["/users", "/users/admin/password"];
        let said = set_up(&setup(), &Site::default(), &layout, &mut machine).unwrap_err().to_string();
        assert_eq!(said, "the first account: why");
        assert!(layout.first_admin().exists());
        machine.refused.clear();
        finish(&layout, &mut machine).unwrap();
        assert!(!layout.first_admin().exists());
    }

    #[test]
    fn a_key_that_does_not_fit_changes_nothing() {
        let (_dir, layout, mut machine) = world();
        let authority = Authority::new(&["box.example".to_owned()]).unwrap();
        let issue = || authority.issue(&["box.example".to_owned()], machine.now).unwrap();
        let (one, other) = (issue(), issue());
        let with = |key: &str| Setup {
            certificate: Certificate::Site { chain: one.chain_pem.clone(), key: key.to_owned(), authority: None },
            ..setup()
        };
        for bad in [other.key_pem.as_str(), "no key"] {
            assert!(set_up(&with(bad), &Site::default(), &layout, &mut machine).is_err());
        }
        assert!(machine.calls.is_empty() && !layout.is_set_up());
        set_up(&with(&one.key_pem), &Site::default(), &layout, &mut machine).unwrap();
        // The site's certificate is the site's to renew.
        machine.now += Duration::days(5000);
        assert!(!renew(&layout, &mut machine).unwrap());
    }

    #[test]
    fn a_certificate_is_renewed_when_it_ends_or_the_address_changes() {
        let (_dir, layout, mut machine) = world();
        set_up(&setup(), &Site::default(), &layout, &mut machine).unwrap();
        let authority = fs::read(layout.authority()).unwrap();
        assert!(!renew(&layout, &mut machine).unwrap());
        machine.addresses = vec!["10.0.2.99".parse().unwrap()];
        assert!(renew(&layout, &mut machine).unwrap());
        assert!(purpose(&layout).names.contains(&"10.0.2.99".to_owned()));
        assert_eq!(machine.calls.last().unwrap(), "systemctl kill --signal=HUP skerry.service");
        machine.now += Duration::days(700);
        assert!(renew(&layout, &mut machine).unwrap());
        assert!(!renew(&layout, &mut machine).unwrap());
        assert!(serves_a_whole_pair(&layout));
        assert_eq!(fs::read(layout.authority()).unwrap(), authority);
        // A file that was damaged is no reason to wait for its end.
        fs::write(layout.papers(), "damaged").unwrap();
        assert!(renew(&layout, &mut machine).unwrap() && serves_a_whole_pair(&layout));
    }

    /// The server could start with the settings there are.
    fn serves_a_whole_pair(layout: &Layout) -> bool {
        let overrides = Overrides { file: Some(layout.settings()), ..Overrides::default() };
        let config = Config::load(&overrides).unwrap();
        config.listeners.iter().all(|listener| Loaded::load(listener.tls.as_ref().unwrap()).is_ok())
    }

    #[test]
    fn a_renewal_that_is_cut_leaves_a_whole_pair_and_is_done_again() {
        for steps in 0.. {
            let (_dir, layout, mut machine) = world();
            set_up(&setup(), &Site::default(), &layout, &mut machine).unwrap();
            machine.addresses = vec!["10.0.2.99".parse().unwrap()];
            let whole = power::cut_after(steps, || renew(&layout, &mut machine).unwrap());
            assert!(serves_a_whole_pair(&layout), "cut after {steps}");
            renew(&layout, &mut machine).unwrap();
            assert!(purpose(&layout).names.contains(&"10.0.2.99".to_owned()), "cut after {steps}");
            assert!(!renew(&layout, &mut machine).unwrap());
            if whole.is_some() {
                assert!(steps > 2);
                return;
            }
        }
    }

    #[test]
    fn a_first_account_waits_for_settings() {
        let (_dir, layout, mut machine) = world();
        layout.secret(&layout.first_admin(), "{\"username\":\"a\",\"password\":\"b\"}").unwrap();
        machine.server_in = u32::MAX;
        finish(&layout, &mut machine).unwrap();
        assert!(machine.calls.is_empty());
    }

    #[test]
    fn what_does_not_fit_is_said_without_paths() {
        let said = fit("no", "no").unwrap_err().to_string();
        assert!(said.starts_with("certificate chain.pem: "), "{said}");
    }
}
