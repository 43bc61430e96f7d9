//! The files that follow from a set-up: what they say, and that they are all there or none counts.
//!
//! Lives here: the server's settings, networkd's file, where certificates and keys lie and who may read them. Not here: what
//! certificates say (papers.rs), restarting what reads the files (steps.rs).

use std::fs::{self, File};
use std::net::{Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use homeserver::dirs;
use serde_json::json;
use toml::{Table, Value};

use super::setup::{Admin, Network, Reach, Setup};

/// The group that the server runs as; the number is fixed in the image.
const SERVER_GROUP: u32 = 970;

/// Where everything lies.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) config: PathBuf,
    pub(crate) data: PathBuf,
    /// Only root reads what is in there.
    pub(crate) console: PathBuf,
    pub(crate) socket: PathBuf,
    /// Where the server listens: on the box, the sockets that systemd opens.
    pub(crate) listeners: Vec<SocketAddr>,
    group: Option<u32>,
}

/// Certificates and keys, as PEM.
pub(crate) struct Papers {
    pub(crate) chain: String,
    pub(crate) key: String,
    /// What devices have to trust, where it is not known to them anyway.
    pub(crate) authority: Option<String>,
}

impl Layout {
    pub(crate) fn of_the_box() -> Self {
        Self {
            config: "/var/lib/skerry/config".into(),
            data: "/var/lib/skerry/data".into(),
            console: "/var/lib/skerry-console".into(),
            socket: "/run/skerry/admin.sock".into(),
            listeners: [443, 8448].map(|port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).to_vec(),
            group: Some(SERVER_GROUP),
        }
    }

    /// The same below a folder, for whoever runs this.
    #[cfg(test)]
    pub(crate) fn below(dir: &Path) -> Self {
        let console = dir.join("console");
        fs::create_dir_all(&console).unwrap();
        let (config, data, socket) = (dir.join("config"), dir.join("data"), dir.join("admin.sock"));
        Self { config, data, console, socket, listeners: vec![SocketAddr::from(([127, 0, 0, 1], 0))], group: None }
    }

    pub(crate) fn settings(&self) -> PathBuf {
        self.config.join("skerry.toml")
    }

    /// Those before, while nobody knows yet whether the server starts with the new ones.
    pub(crate) fn settings_before(&self) -> PathBuf {
        self.config.join("skerry.before")
    }

    /// Files that the settings name.
    pub(crate) fn beside(&self) -> PathBuf {
        self.config.join("files")
    }

    /// A box is set up once the server has settings: they are written last.
    pub(crate) fn is_set_up(&self) -> bool {
        self.settings().exists()
    }

    /// What this server is called.
    pub(crate) fn server_name(&self) -> Option<String> {
        let table: toml::Table = fs::read_to_string(self.settings()).ok()?.parse().ok()?;
        Some(table.get("server_name")?.as_str()?.to_owned())
    }

    pub(crate) fn authority(&self) -> PathBuf {
        self.config.join("tls/ca.pem")
    }

    /// The server's certificate and its key, in one file.
    pub(crate) fn papers(&self) -> PathBuf {
        self.config.join("tls/server.pem")
    }

    pub(crate) fn authority_key(&self) -> PathBuf {
        self.console.join("ca.key")
    }

    pub(crate) fn purpose(&self) -> PathBuf {
        self.console.join("certificate.json")
    }

    /// Orders that were done.
    pub(crate) fn orders(&self) -> PathBuf {
        self.console.join("orders")
    }

    /// The first account, until the server has it.
    pub(crate) fn first_admin(&self) -> PathBuf {
        self.console.join("first-admin.json")
    }

    /// Writes everything. Cut short at any point, the box is as if nothing had been written.
    pub(crate) fn write(&self, setup: &Setup, papers: &Papers, settings: &str) -> Result<()> {
        self.write_first_admin(&setup.admin)?;
        self.write_network(&setup.network)?;
        self.write_reach(setup.reach)?;
        self.write_papers(papers)?;
        self.shared(&self.settings(), settings)
    }

    pub(crate) fn write_first_admin(&self, admin: &Admin) -> Result<()> {
        let admin = json!({ "username": admin.username, "password": admin.password });
        self.secret(&self.first_admin(), &admin.to_string())
    }

    pub(crate) fn write_network(&self, network: &Network) -> Result<()> {
        self.public(&self.config.join("network/10-site.network"), &networkd(network))
    }

    pub(crate) fn write_reach(&self, reach: Reach) -> Result<()> {
        let mark = self.config.join("site");
        match reach {
            Reach::Site => self.public(&mark, "The server may reach private addresses.\n"),
            Reach::Nothing => self.remove(&mark),
        }
    }

    pub(crate) fn write_papers(&self, papers: &Papers) -> Result<()> {
        if let Some(authority) = &papers.authority {
            self.public(&self.authority(), authority)?;
        }
        // Chain and key belong together: in one file, power cannot part them.
        self.shared(&self.papers(), &joined(&papers.chain, &papers.key))
    }

    pub(crate) fn forget_first_admin(&self) -> Result<()> {
        self.remove(&self.first_admin()).context("the first account is still written down")
    }

    pub(crate) fn read_first_admin(&self) -> Option<Admin> {
        let value: serde_json::Value = serde_json::from_slice(&fs::read(self.first_admin()).ok()?).ok()?;
        let text = |key: &str| Some(value.get(key)?.as_str()?.to_owned());
        Some(Admin { username: text("username")?, password: text("password")? })
    }

    /// What the server is told at the first set-up.
    pub(crate) fn server_settings(&self, setup: &Setup, memory_mib: u64) -> String {
        let path = |path: &Path| Value::String(path.to_string_lossy().into_owned());
        let tls = Value::Table(table([("certificate", path(&self.papers())), ("key", path(&self.papers()))]));
        let listener = |address: &SocketAddr| {
            let trusted_proxies = Value::Array(Vec::new());
            Value::Table(table([
                ("bind", Value::String(address.to_string())),
                ("trusted_proxies", trusted_proxies),
                ("tls", tls.clone()),
            ]))
        };
        let mut settings = table([
            ("server_name", Value::String(setup.server_name.clone())),
            ("data_dir", path(&self.data)),
            ("memory_budget", Value::String(format!("{}MiB", budget_mib(memory_mib)))),
            ("admin", Value::Table(table([("socket", path(&self.socket))]))),
            ("well_known", Value::Table(table([("client_base_url", Value::String(setup.url()))]))),
            ("listeners", Value::Array(self.listeners.iter().map(listener).collect())),
        ]);
        if setup.certificate.has_authority() {
            settings.insert("web".to_owned(), Value::Table(table([("authority", path(&self.authority()))])));
        }
        text(&settings)
    }

    /// For everybody on the box.
    pub(crate) fn public(&self, path: &Path, text: &str) -> Result<()> {
        self.replace(path, text, 0o644, None)
    }

    /// For root and the server.
    pub(crate) fn shared(&self, path: &Path, text: &str) -> Result<()> {
        self.replace(path, text, 0o640, self.group)
    }

    /// For root.
    pub(crate) fn secret(&self, path: &Path, text: &str) -> Result<()> {
        self.replace(path, text, 0o600, None)
    }

    /// What is not there is removed already.
    pub(crate) fn remove(&self, path: &Path) -> Result<()> {
        #[cfg(test)]
        super::power::step();
        match fs::remove_file(path) {
            Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => {
                Err(cause).with_context(|| format!("removing {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Written whole or not at all, and on the disk when this returns.
    fn replace(&self, path: &Path, text: &str, mode: u32, group: Option<u32>) -> Result<()> {
        #[cfg(test)]
        super::power::step();
        let at = || format!("writing {}", path.display());
        let dir = path.parent().with_context(at)?;
        if !dir.exists() {
            fs::create_dir_all(dir).with_context(at)?;
            // The server has to get through, whatever the process's mask takes away.
            fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).with_context(at)?;
        }
        let belongs = |file: &File| {
            if let Some(group) = group {
                std::os::unix::fs::fchown(file, None, Some(group))?;
            }
            // The process's mask has no say in this.
            file.set_permissions(fs::Permissions::from_mode(mode))
        };
        dirs::replace_with(path, text.as_bytes(), 0o600, belongs).with_context(at)
    }
}

/// A chain and its key as one file.
pub(crate) fn joined(chain: &str, key: &str) -> String {
    format!("{}\n{key}", chain.trim_end())
}

fn table<const N: usize>(pairs: [(&str, Value); N]) -> Table {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// A settings file.
pub(crate) fn text(settings: &Table) -> String {
    let mut text = "# Written by the console. An order on a stick changes it (`[settings]`).\n".to_owned();
    for (key, value) in settings.iter().filter(|(_, value)| !value.is_table()) {
        text.push_str(&format!("{} = {}\n", key_of(key), written(value)));
    }
    for (section, inner) in settings.iter().filter_map(|(key, value)| Some((key, value.as_table()?))) {
        text.push_str(&format!("\n[{}]\n", key_of(section)));
        inner.iter().for_each(|(key, value)| text.push_str(&format!("{} = {}\n", key_of(key), written(value))));
    }
    text
}

/// A value as it stands behind a key, on one line.
fn written(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        Value::Float(number) if number.is_nan() => "nan".to_owned(),
        Value::Float(number) => format!("{number:?}"),
        Value::Array(all) => format!("[{}]", all.iter().map(written).collect::<Vec<_>>().join(", ")),
        Value::Table(table) => {
            let pairs: Vec<String> =
                table.iter().map(|(key, value)| format!("{} = {}", key_of(key), written(value))).collect();
            format!("{{ {} }}", pairs.join(", "))
        }
        Value::Integer(number) => number.to_string(),
        Value::Boolean(truth) => truth.to_string(),
        Value::Datetime(moment) => moment.to_string(),
    }
}

fn key_of(key: &str) -> String {
    let is_bare = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    if is_bare { key.to_owned() } else { quoted(key) }
}

/// A text or a key between quotes: JSON's are TOML's, too, but for one character.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

/// Half of the machine: the other half is for files in memory, and for what the server cannot count.
fn budget_mib(memory_mib: u64) -> u64 {
    (memory_mib / 2).clamp(256, 32 * 1024)
}

/// One file for all network cards: a box has one that is plugged in, or two that are bridged outside.
fn networkd(network: &Network) -> String {
    let mut text = "# Written by the console.\n[Match]\nType=ether\nKind=!*\n\n[Network]\nLLMNR=no\nMulticastDNS=no\n\
                    LinkLocalAddressing=ipv6\n"
        .to_owned();
    match network {
        Network::Dhcp => text.push_str("DHCP=yes\nIPv6AcceptRA=yes\n\n[DHCPv4]\nUseHostname=no\nUseNTP=no\n"),
        Network::Static { address, gateway, dns } => {
            text.push_str(&format!("DHCP=no\nIPv6AcceptRA=no\nAddress={address}\n"));
            gateway.iter().for_each(|gateway| text.push_str(&format!("Gateway={gateway}\n")));
            dns.iter().for_each(|server| text.push_str(&format!("DNS={server}\n")));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use homeserver::config::{Config, Overrides};
    use nix::sys::stat::{Mode, umask};

    use super::super::setup::Certificate;
    use super::*;

    fn setup() -> Setup {
        Setup {
            server_name: "matrix.site.example".to_owned(),
            address: "10.1.2.3".to_owned(),
            network: Network::Static {
                address: "10.1.2.3/24".parse().unwrap(),
                gateway: Some("10.1.2.1".parse().unwrap()),
                dns: Vec::new(),
            },
            reach: Reach::Site,
            admin: Admin { username: "admin".to_owned(), password: "correct horse".to_owned() },
            certificate: Certificate::Own,
        }
    }

    fn papers() -> Papers {
        Papers { chain: "chain".to_owned(), key: "key".to_owned(), authority: Some("authority".to_owned()) }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn the_server_takes_the_settings() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::below(dir.path());
        assert!(!layout.is_set_up());
        layout.write(&setup(), &papers(), &layout.server_settings(&setup(), 4096)).unwrap();
        assert!(layout.is_set_up());
        let config = Config::load(&Overrides { file: Some(layout.settings()), ..Overrides::default() }).unwrap();
        assert_eq!(config.memory_budget.to_string(), "2GiB");
        assert_eq!(config.admin_socket(), layout.socket);
        assert_eq!(config.well_known.client_base_url.as_deref(), Some("https://10.1.2.3"));
        assert!(config.listeners.iter().all(|listener| listener.tls.is_some() && listener.trusted_proxies.is_empty()));
    }

    #[test]
    fn who_may_read_what() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::below(dir.path());
        // As in the console's unit. What other tests make in this moment is private, too.
        let before = umask(Mode::S_IRWXG | Mode::S_IRWXO);
        let outcome = layout.write(&setup(), &papers(), &layout.server_settings(&setup(), 4096));
        umask(before);
        outcome.unwrap();
        assert_eq!((mode(&layout.config.join("tls")), mode(&layout.config.join("network"))), (0o755, 0o755));
        let of = |name: &str| mode(&layout.config.join(name));
        assert_eq!((of("skerry.toml"), of("tls/server.pem"), of("tls/ca.pem")), (0o640, 0o640, 0o644));
        assert_eq!((of("network/10-site.network"), mode(&layout.first_admin())), (0o644, 0o600));
        assert!(layout.read_first_admin() == Some(setup().admin));
        layout.forget_first_admin().unwrap();
        assert!(layout.read_first_admin().is_none());
    }

    #[test]
    fn the_site_is_in_reach_only_as_long_as_it_shall_be() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::below(dir.path());
        for (reach, there) in [(Reach::Nothing, false), (Reach::Site, true), (Reach::Nothing, false)] {
            layout.write_reach(reach).unwrap();
            assert_eq!(layout.config.join("site").exists(), there);
        }
    }

    #[test]
    fn networks() {
        let text = networkd(&setup().network);
        assert!(text.contains("\nAddress=10.1.2.3/24\nGateway=10.1.2.1\n") && !text.contains("DHCP=yes"), "{text}");
        assert!(networkd(&Network::Dhcp).contains("\nDHCP=yes\n"));
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let settings: Table =
            "a = 1\nb = -1.0\nc = 1e300\nd = true\ne = \"x\\u007f\\n\\\"ä\\\\\"\nf = [[1], []]\n'g h' = 2.5\n\
             [i]\nj = { k = [{ l = 1 }], m = {} }\n'n.o' = 1979-05-27\n[i.p]\nq = inf\n[r]\n"
                .parse()
                .unwrap();
        assert_eq!(text(&settings).parse::<Table>().unwrap(), settings);
    }

    #[test]
    fn memory() {
        assert_eq!([128, 4096, 1 << 20].map(budget_mib), [256, 2048, 32 * 1024]);
    }
}
