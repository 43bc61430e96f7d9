//! `skerry-provision.toml`: what a stick may order a box to do.
//!
//! Lives here: the file's keys, bounds and complaints. Not here: finding sticks (stick.rs), doing what is ordered (orders.rs).

use std::net::IpAddr;

use serde::Deserialize;

use super::setup::{self, Admin, Certificate, Network, Setup};
use super::site::{self, Site};

/// The file that is looked for, at the top of a stick.
pub(crate) const FILE: &str = "skerry-provision.toml";
/// Nobody writes that much by hand.
pub(crate) const FILE_MAX_BYTES: u64 = 64 * 1024;
/// A chain of certificates, or a key.
pub(crate) const PEM_MAX_BYTES: u64 = 256 * 1024;

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Orders {
    pub(crate) setup: Option<Setup>,
    /// Settings of the server.
    pub(crate) site: Option<Site>,
    /// Another certificate of the site's, for a box that is set up.
    pub(crate) certificate: Option<Certificate>,
    /// The name of an update file beside the order.
    pub(crate) update: Option<String>,
}

/// Reads a file that lies beside the order, no longer than so many bytes.
pub(crate) type Beside<'f> = &'f dyn Fn(&str, u64) -> Result<String, String>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    server_name: Option<String>,
    address: Option<String>,
    federation: Option<String>,
    reach: Option<String>,
    network: Option<NetworkTable>,
    admin: Option<AdminTable>,
    certificate: Option<CertificateTable>,
    update: Option<UpdateTable>,
    #[serde(default)]
    defaults: Vec<String>,
    settings: Option<toml::Table>,
    application_services: Option<ServicesTable>,
    outgoing: Option<OutgoingTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NetworkTable {
    #[serde(default)]
    dhcp: bool,
    address: Option<String>,
    gateway: Option<String>,
    #[serde(default)]
    dns: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AdminTable {
    username: Option<String>,
    password: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CertificateTable {
    chain: String,
    key: String,
    authority: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ServicesTable {
    files: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OutgoingTable {
    ca_file: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UpdateTable {
    file: String,
}

/// Reads an order.
///
/// # Errors
/// The first thing that is wrong with it, with the key's name.
pub(crate) fn parse(text: &str, beside: Beside<'_>) -> Result<Orders, String> {
    let file: File = toml::from_str(text).map_err(|error| complaint(&error, text))?;
    let update = file.update.as_ref().map(|table| plain_name(&table.file)).transpose().map_err(at("update.file"))?;
    let setup = match &file.server_name {
        Some(name) => Some(file.setup(name, beside)?),
        None if file.is_part_of_a_setup() => return Err("server_name: is missing".to_owned()),
        None => None,
    };
    let alone = file.certificate.as_ref().filter(|_| setup.is_none());
    let certificate = alone.map(|table| table.certificate(beside)).transpose()?;
    let site = file.site(setup.is_some(), beside)?;
    if setup.is_none() && certificate.is_none() && update.is_none() && site.is_none() {
        let all = "`server_name`, `[certificate]`, `[settings]` or `[update]`";
        return Err(format!("nothing is ordered: no {all} is there"));
    }
    Ok(Orders { setup, site, certificate, update })
}

/// What is wrong and in which line, and nothing of what is written there: it may be a password, and what is said here is
/// seen on the console, kept in the journal, and left on the stick.
fn complaint(error: &toml::de::Error, text: &str) -> String {
    let before = error.span().and_then(|span| text.get(..span.start));
    let line = before.map_or_else(String::new, |before| format!("line {}: ", before.matches('\n').count() + 1));
    let message: Vec<&str> = error.message().lines().map(str::trim).collect();
    format!("{line}{}", without_values(&message.join("; ")))
}

/// Messages about types name the value that was found.
pub(crate) fn without_values(message: &str) -> String {
    let names_it = message.starts_with("invalid type: ") || message.starts_with("invalid value: ");
    let Some((begin, rest)) = message.split_once(['`', '"']).filter(|_| names_it) else { return message.to_owned() };
    let expected = rest.rsplit_once(", expected ").map_or("something else", |(_, expected)| expected);
    format!("{}, expected {expected}", begin.trim_end())
}

fn at(key: &'static str) -> impl Fn(String) -> String {
    move |why| format!("{key}: {why}")
}

impl File {
    /// What only makes sense beside a server name.
    fn is_part_of_a_setup(&self) -> bool {
        let Self { address, federation, network, admin, .. } = self;
        [address, federation].iter().any(|text| text.is_some()) || network.is_some() || admin.is_some()
    }

    /// What the site wants otherwise. How far the server reaches is part of a set-up, and can be changed later.
    fn site(&self, is_setup: bool, beside: Beside<'_>) -> Result<Option<Site>, String> {
        let reach = self.reach.as_deref().filter(|_| !is_setup).map(setup::reach).transpose().map_err(at("reach"))?;
        let services = self.application_services.as_ref().map(|table| {
            let read = |name: &String| read_beside(name, "application_services.files", beside);
            table.files.iter().map(read).collect::<Result<Vec<_>, _>>()
        });
        let ca_file = self.outgoing.as_ref().map(|table| read_beside(&table.ca_file, "outgoing.ca_file", beside));
        let site = Site {
            defaults: self.defaults.clone(),
            settings: self.settings.clone().unwrap_or_default(),
            services: services.transpose()?,
            authorities: ca_file.transpose()?,
            reach,
        };
        match site.refusal() {
            Some(why) => Err(why),
            None if site == Site::default() => Ok(None),
            None => Ok(Some(site)),
        }
    }

    fn setup(&self, name: &str, beside: Beside<'_>) -> Result<Setup, String> {
        let server_name = setup::server_name(name).map_err(at("server_name"))?;
        let address = self.address.as_deref().unwrap_or_else(|| setup::host(&server_name));
        setup::federation(self.federation.as_deref().unwrap_or("isolated")).map_err(at("federation"))?;
        let admin = self.admin.as_ref().ok_or("admin.password: is missing")?;
        Ok(Setup {
            address: setup::address(address).map_err(at("address"))?,
            reach: setup::reach(self.reach.as_deref().unwrap_or("nothing")).map_err(at("reach"))?,
            network: self.network.as_ref().ok_or("network: is missing")?.network()?,
            admin: admin.admin()?,
            certificate: self.certificate.as_ref().map_or(Ok(Certificate::Own), |table| table.certificate(beside))?,
            server_name,
        })
    }
}

impl NetworkTable {
    fn network(&self) -> Result<Network, String> {
        match (&self.address, self.dhcp) {
            (Some(_), true) => Err("network: either `dhcp = true` or `address`, not both".to_owned()),
            (None, false) => Err("network: needs `dhcp = true` or `address`".to_owned()),
            (None, true) => Ok(Network::Dhcp),
            (Some(address), false) => {
                let address = address.parse().map_err(at("network.address"))?;
                let gateway = self.gateway.as_deref().map(setup::ip).transpose().map_err(at("network.gateway"))?;
                let dns: Result<Vec<IpAddr>, String> = self.dns.iter().map(|text| setup::ip(text)).collect();
                setup::network(address, gateway, dns.map_err(at("network.dns"))?).map_err(at("network.gateway"))
            }
        }
    }
}

impl AdminTable {
    fn admin(&self) -> Result<Admin, String> {
        let username = self.username.as_deref().unwrap_or("admin");
        Ok(Admin {
            username: setup::username(username).map_err(at("admin.username"))?,
            password: setup::password(&self.password).map_err(at("admin.password"))?,
        })
    }
}

impl CertificateTable {
    fn certificate(&self, beside: Beside<'_>) -> Result<Certificate, String> {
        let read = |key: &'static str, name: &str| {
            plain_name(name).and_then(|name| beside(&name, PEM_MAX_BYTES)).map_err(at(key))
        };
        Ok(Certificate::Site {
            chain: read("certificate.chain", &self.chain)?,
            key: read("certificate.key", &self.key)?,
            authority: self.authority.as_ref().map(|name| read("certificate.authority", name)).transpose()?,
        })
    }
}

fn read_beside(name: &str, key: &'static str, beside: Beside<'_>) -> Result<site::Beside, String> {
    let name = plain_name(name).map_err(at(key))?;
    let text = beside(&name, PEM_MAX_BYTES).map_err(at(key))?;
    Ok(site::Beside { name, text })
}

/// A file beside the order, and nowhere else.
fn plain_name(name: &str) -> Result<String, String> {
    let odd = name.is_empty() || name.starts_with('.') || name.len() > 200 || name.contains(['/', '\\', '\0', '\n']);
    if odd { Err(format!("{name:?} is not the name of a file beside this one")) } else { Ok(name.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "server_name = \"matrix.site.example\"\naddress = \"10.1.2.3\"\nfederation = \"isolated\"\n\
        reach = \"site\"\n[network]\naddress = \"10.1.2.3/24\"\ngateway = \"10.1.2.1\"\ndns = [\"10.1.2.1\"]\n[admin]\n\
        username = \"root\"\npassword = \"correct horse\"\n[certificate]\nchain = \"server.pem\"\nkey = \"server.key\"\n\
        [update]\nfile = \"skerry-2.skerry\"\n";
    const SHORT: &str = "server_name = \"box\"\nnetwork.dhcp = true\nadmin.password = \"correct horse\"\n";

    fn read(text: &str) -> Result<Orders, String> {
        parse(text, &|name, _| Ok(format!("what {name} holds")))
    }

    #[test]
    fn everything_at_once() {
        let orders = read(WHOLE).unwrap();
        assert_eq!(orders.update.as_deref(), Some("skerry-2.skerry"));
        let setup = orders.setup.unwrap();
        assert_eq!((setup.url().as_str(), setup.host()), ("https://10.1.2.3", "matrix.site.example"));
        assert_eq!(setup.admin.username, "root");
        let held = |name: &str| format!("what {name} holds");
        let (chain, key) = (held("server.pem"), held("server.key"));
        assert!(setup.certificate == Certificate::Site { chain, key, authority: None });
    }

    #[test]
    fn little_is_enough() {
        let setup = read(SHORT).unwrap().setup.unwrap();
        assert_eq!(
            (setup.url().as_str(), setup.network, setup.reach),
            ("https://box", Network::Dhcp, setup::Reach::Nothing)
        );
        assert_eq!(setup.admin.username, "admin");
        assert!(read("[update]\nfile = \"a.skerry\"").unwrap().setup.is_none());
        let renewed = read("[certificate]\nchain = \"c\"\nkey = \"k\"").unwrap();
        assert!(renewed.setup.is_none() && renewed.certificate.is_some_and(|one| one != Certificate::Own));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |text: &str, key: &str| {
            let why = read(text).unwrap_err();
            assert!(why.contains(key), "{text}\n=> {why}");
        };
        check("", "nothing is ordered");
        check("servername = \"x\"", "servername");
        check("address = \"10.0.0.1\"", "server_name: is missing");
        check("server_name = \"x\"\nnetwork.dhcp = true", "admin.password: is missing");
        check("server_name = \"x\"\nadmin.password = \"correct horse\"", "network: is missing");
        for (from, to, key) in [
            ("server_name = \"box\"", "server_name = \"a b\"", "server_name: "),
            ("dhcp = true", "dhcp = false", "network: needs"),
            ("dhcp = true", "address = \"10.0.0.1\"", "network.address: "),
            ("correct horse", "short", "admin.password: "),
        ] {
            check(&SHORT.replace(from, to), key);
        }
        for (from, to, key) in [
            ("10.1.2.1\"\ndns", "10.9.9.9\"\ndns", "network.gateway: "),
            ("[network]", "[network]\ndhcp = true", "not both"),
            ("skerry-2.skerry", "../x", "update.file: "),
            ("server.key", "/etc/shadow", "certificate.key: "),
            ("isolated", "closed", "federation: "),
            ("\"site\"", "\"world\"", "reach: "),
            ("root", "Root", "admin.username: "),
        ] {
            check(&WHOLE.replace(from, to), key);
        }
    }

    #[test]
    fn settings_of_the_server() {
        let site = read(
            "reach = \"site\"\ndefaults = [\"oauth\"]\n[settings.registration]\nmode = \"open\"\n\
                         [application_services]\nfiles = [\"a.yaml\"]\n[outgoing]\nca_file = \"ca.pem\"\n",
        );
        let site = site.unwrap().site.unwrap();
        assert_eq!((site.reach, site.defaults.as_slice()), (Some(setup::Reach::Site), ["oauth".to_owned()].as_slice()));
        let held = |name: &str| site::Beside { name: name.to_owned(), text: format!("what {name} holds") };
        assert!(site.services == Some(vec![held("a.yaml")]) && site.authorities == Some(held("ca.pem")));
        assert_eq!(site.settings["registration"]["mode"].as_str(), Some("open"));
        assert!(read(WHOLE).unwrap().site.is_none());
        for (text, key) in [
            ("settings.listeners = []", "settings.listeners: belongs to the box"),
            ("application_services.files = [\"../x\"]", "application_services.files: "),
            ("reach = \"world\"", "reach: "),
            ("defaults = \"oauth\"", "expected a sequence"),
            ("[settings]", "nothing is ordered"),
        ] {
            let why = read(text).unwrap_err();
            assert!(why.contains(key), "{text} => {why}");
        }
    }

    #[test]
    fn a_mistake_does_not_repeat_what_is_written_there() {
        let rest = SHORT.replace("admin.password = \"correct horse\"\n", "");
        for (line, says) in [
            ("admin.password = \"hunter2hunter2\nx = \"1\"", "line 3: "),
            ("admin.pasword = \"hunter2hunter2\"", "unknown field `pasword`"),
            ("admin = \"hunter2hunter2\"", "expected struct AdminTable"),
            ("admin.password = hunter2hunter2", "line 3: "),
            ("admin.password \"hunter2hunter2\"", "line 3: "),
            ("admin.password = [\"hunter2hunter2\", \"\\\", expected a hunter2\"]", "expected a string"),
            ("admin.password = 1112223334", "expected a string"),
            ("admin.password = \"a\"\nadmin.password = \"hunter2\"", "duplicate key"),
            ("network.gateway = \"hunter2\"\nnetwork.gateway = 1", "duplicate key"),
            ("admin.password = 'hunter2\\'hunter2'", "line 3: "),
        ] {
            let why = read(&format!("{rest}{line}\n")).unwrap_err();
            assert!(why.contains(says) && !why.contains("hunter2") && !why.contains("1112223334"), "{line}\n=> {why}");
        }
        for (message, rest) in [
            ("invalid type: string \"a, expected \", expected a map", "invalid type: string, expected a map"),
            ("expected `,`", "expected `,`"),
        ] {
            assert_eq!(without_values(message), rest);
        }
    }

    #[test]
    fn files_that_cannot_be_read_are_named() {
        let why = parse(WHOLE, &|name, _| Err(format!("{name} is too long"))).unwrap_err();
        assert_eq!(why, "certificate.chain: server.pem is too long");
    }
}
