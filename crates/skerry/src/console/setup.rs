//! What a first set-up decides, checked: the same for the wizard at the console and for a file on a stick.
//!
//! Lives here: the answers and what makes them good. Not here: asking (wizard.rs), reading files (provision.rs), writing
//! what follows from them (files.rs).

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use homeserver::config::Config;
use time::{Date, OffsetDateTime, PrimitiveDateTime};

/// Everything that has to be known before the server can start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setup {
    pub(crate) server_name: String,
    /// The name or IP address under which clients find the server.
    pub(crate) address: String,
    pub(crate) network: Network,
    pub(crate) reach: Reach,
    pub(crate) admin: Admin,
    pub(crate) certificate: Certificate,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Network {
    Dhcp,
    Static { address: Cidr, gateway: Option<IpAddr>, dns: Vec<IpAddr> },
}

/// How far the server's own connections may go. Answers to clients always pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// It opens none at all.
    Nothing,
    /// To private addresses: bridges, push gateways, pages of the site.
    Site,
}

/// The first account.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Admin {
    pub(crate) username: String,
    pub(crate) password: String,
}

/// Where the server's certificate is from.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Certificate {
    /// An authority of its own, made here.
    Own,
    /// The site's, as PEM.
    Site { chain: String, key: String, authority: Option<String> },
}

/// An address and the length of its network's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cidr {
    pub(crate) address: IpAddr,
    pub(crate) prefix: u8,
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Admin({})", self.username)
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Own { "Own" } else { "Site" })
    }
}

impl Certificate {
    /// Whether devices have to be told of an authority.
    pub(crate) fn has_authority(&self) -> bool {
        !matches!(self, Self::Site { authority: None, .. })
    }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not an address with its prefix, such as 10.1.2.3/24");
        let (address, prefix) = text.trim().split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let prefix = prefix.parse().map_err(|_| wrong())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        if prefix == 0 || prefix > longest || address.is_unspecified() || address.is_multicast() {
            return Err(wrong());
        }
        Ok(Self { address, prefix })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl Setup {
    /// The host of the server's name, without a port and brackets.
    pub(crate) fn host(&self) -> &str {
        host(&self.server_name)
    }

    /// Where browsers and apps go.
    pub(crate) fn url(&self) -> String {
        match self.address.parse::<IpAddr>() {
            Ok(IpAddr::V6(address)) => format!("https://[{address}]"),
            _ => format!("https://{}", self.address),
        }
    }
}

pub(crate) fn host(server_name: &str) -> &str {
    let host = match server_name.strip_prefix('[') {
        Some(rest) => rest.split(']').next(),
        None => server_name.split(':').next(),
    };
    host.unwrap_or(server_name)
}

// ---- what makes an answer good -----------------------------------------------------------------------------------

/// A server name that the server itself takes.
pub(crate) fn server_name(text: &str) -> Result<String, String> {
    let text = text.trim();
    let good = serde_json::from_value(serde_json::json!(text)).map(Config::new);
    // Clients would have to know the port: the box listens on two only.
    match good {
        Ok(config) if text.len() <= 200 && config.server_name.port().is_none() => Ok(text.to_owned()),
        _ => Err(format!("`{text}` is not a name such as matrix.example.org")),
    }
}

/// A name or an IP address, without scheme and port.
pub(crate) fn address(text: &str) -> Result<String, String> {
    let text = text.trim();
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.to_string());
    }
    server_name(text).map_err(|_| format!("`{text}` is not a name or an IP address"))
}

pub(crate) fn ip(text: &str) -> Result<IpAddr, String> {
    text.trim().parse().map_err(|_| format!("`{}` is not an IP address", text.trim()))
}

/// Addresses with commas or spaces between them; none is fine.
pub(crate) fn ips(text: &str) -> Result<Vec<IpAddr>, String> {
    let words = text.split([',', ' ']).filter(|word| !word.is_empty());
    words.map(ip).collect()
}

pub(crate) fn username(text: &str) -> Result<String, String> {
    let text = text.trim();
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._=-/".contains(&byte);
    match !text.is_empty() && text.len() <= 100 && text.bytes().all(plain) {
        true => Ok(text.to_owned()),
        false => Err(format!("`{text}` is not a user name: lower case letters, digits and . _ = - / only")),
    }
}

/// The server has a rule of its own for accounts; this one is for the account that may do everything.
pub(crate) fn password(text: &str) -> Result<String, String> {
    const MIN: usize = 10;
    match text.chars().count() {
        MIN..=512 => Ok(text.to_owned()),
        _ => Err(format!("a password has {MIN} to 512 characters")),
    }
}

/// A time such as `2026-11-22 18:30`, in UTC.
pub(crate) fn moment(text: &str) -> Result<OffsetDateTime, String> {
    let wrong = || format!("`{}` is not a time such as 2026-11-22 18:30", text.trim());
    let numbers: Option<Vec<u16>> = text.trim().split(['-', ' ', ':']).map(|part| part.parse().ok()).collect();
    let Some([year, rest @ ..]) = numbers.as_deref() else { return Err(wrong()) };
    let rest: Result<Vec<u8>, _> = rest.iter().map(|number| u8::try_from(*number)).collect();
    let Ok([month, day, hour, minute]) = rest.as_deref() else { return Err(wrong()) };
    let date = time::Month::try_from(*month)
        .and_then(|month| Date::from_calendar_date(i32::from(*year), month, *day))
        .and_then(|date| date.with_hms(*hour, *minute, 0));
    date.map(PrimitiveDateTime::assume_utc).map_err(|_| wrong())
}

pub(crate) fn reach(text: &str) -> Result<Reach, String> {
    match text.trim() {
        "nothing" => Ok(Reach::Nothing),
        "site" => Ok(Reach::Site),
        other => Err(format!("`{other}` is neither `nothing` nor `site`")),
    }
}

/// Whether this box speaks to other homeservers. This release has one way only.
pub(crate) fn federation(text: &str) -> Result<(), String> {
    match text.trim() {
        "isolated" => Ok(()),
        "closed" => Err("this release does not speak to other homeservers yet: only `isolated`".to_owned()),
        other => Err(format!("`{other}` is no way to federate: `isolated`")),
    }
}

/// A gateway has to be a neighbour.
pub(crate) fn network(address: Cidr, gateway: Option<IpAddr>, dns: Vec<IpAddr>) -> Result<Network, String> {
    if let Some(gateway) = gateway
        && (gateway.is_ipv4() != address.address.is_ipv4() || !address.holds(gateway))
    {
        return Err(format!("the gateway {gateway} is not in the network of {address}"));
    }
    Ok(Network::Static { address, gateway, dns })
}

impl Cidr {
    fn holds(&self, other: IpAddr) -> bool {
        let bits = |address: IpAddr| match address {
            IpAddr::V4(address) => u128::from(u32::from(address)) << 96,
            IpAddr::V6(address) => u128::from(address),
        };
        (bits(self.address) ^ bits(other)) >> (128 - u32::from(self.prefix)) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses() {
        for good in ["matrix.example.org", "box", "10.1.2.3"] {
            assert_eq!(server_name(&format!(" {good} ")), Ok(good.to_owned()));
        }
        for bad in ["", "a b", "https://x", "x:8448", "x/y", "ä", &"x".repeat(300)] {
            assert!(server_name(bad).is_err(), "{bad}");
        }
        assert_eq!(address("fd00::1"), Ok("fd00::1".to_owned()));
        assert!(address("https://10.1.2.3").is_err());
        assert_eq!((host("[fd00::1]"), host("a.b:1"), host("a.b")), ("fd00::1", "a.b", "a.b"));
    }

    #[test]
    fn networks() {
        let cidr = |text: &str| text.parse::<Cidr>();
        assert_eq!(cidr("10.1.2.3/24").unwrap().to_string(), "10.1.2.3/24");
        for bad in ["10.1.2.3", "10.1.2.3/33", "10.1.2.3/0", "fd00::1/129", "0.0.0.0/8", "224.0.0.1/4", "x/24"] {
            assert!(cidr(bad).is_err(), "{bad}");
        }
        let with =
            |address: &str, gateway: &str| network(cidr(address).unwrap(), Some(ip(gateway).unwrap()), Vec::new());
        assert!(with("10.1.2.3/24", "10.1.2.1").is_ok());
        assert!(with("fd00::3/64", "fd00::1").is_ok());
        assert!(with("10.1.2.3/24", "10.1.3.1").is_err());
        assert!(with("10.1.2.3/24", "fd00::1").is_err());
        assert_eq!(ips("10.0.0.1, 10.0.0.2").unwrap().len(), 2);
        assert!(ips("10.0.0.1 x").is_err());
    }

    #[test]
    fn accounts() {
        assert!(username("admin").is_ok() && username("a.b-1").is_ok());
        for bad in ["", "Admin", "a b", "@a:b"] {
            assert!(username(bad).is_err(), "{bad}");
        }
        assert!(password("0123456789").is_ok() && password("012345678").is_err());
        let admin = Admin { username: "root".to_owned(), password: "secret secret".to_owned() };
        assert!(!format!("{admin:?}").contains("secret"));
    }

    #[test]
    fn times() {
        assert_eq!(moment(" 2026-11-22 18:30\n").unwrap().unix_timestamp(), 1_795_372_200);
        for bad in ["", "2026-11-22", "2026-13-01 00:00", "2026-02-29 00:00", "2026-01-01 24:00", "1-1-1-1-1-1", "x"] {
            assert!(moment(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_federation_that_is_not_there_is_not_promised() {
        assert!(federation("isolated").is_ok());
        assert!(federation("closed").is_err_and(|why| why.contains("not speak to other homeservers yet")));
        assert!(federation("open").is_err());
    }
}
