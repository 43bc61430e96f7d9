//! Registration files of application services (spec: Application Service API, Registration): read at the start, checked
//! as a whole, and asked ever after: whose token is this, whose namespace is that name in.
//!
//! Not here: what a service is told (`appservice`), and what its token lets it do (`auth`).

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hashbrown::HashMap;
use regex::{Regex, RegexBuilder};
use ring::digest::{SHA256, digest};
use ruma::{OwnedUserId, RoomAliasId, ServerName, UserId};
use serde::Deserialize;

use super::Destination;

/// The largest registration file.
const MAX_FILE_BYTES: u64 = 256 * 1024;
/// Namespaces of one kind in one registration.
const MAX_NAMESPACES: usize = 256;
/// The longest expression, and the memory that one may take when it is compiled.
const MAX_REGEX_BYTES: usize = 4 * 1024;
const MAX_COMPILED_BYTES: usize = 512 * 1024;
/// An ID is a part of keys.
const MAX_ID_BYTES: usize = 255;

/// All application services.
#[derive(Debug, Default)]
pub struct Registrations {
    all: Vec<Arc<Registration>>,
    by_token: HashMap<[u8; 32], Arc<Registration>>,
}

/// An application service.
pub struct Registration {
    pub id: String,
    /// Where it is told of events; `None`: it wants to be told of none.
    pub service: Option<Service>,
    /// Whom it acts as when it names nobody.
    pub sender: OwnedUserId,
    /// What it shows to prove who it is.
    as_token: String,
    /// What it is shown.
    pub hs_token: String,
    pub users: Namespaces,
    pub aliases: Namespaces,
    pub rooms: Namespaces,
    /// Its users (but for the sender) are rate limited like others.
    pub rate_limited: bool,
    pub protocols: Vec<String>,
    /// It wants to hear of typing, receipts and presence.
    pub ephemeral: bool,
    /// It asked for that by the name of a time when it was not in the specification.
    pub old_ephemeral: bool,
    /// It does end-to-end encryption for its users, and is told what their devices need (MSC3202, MSC4203).
    pub encryption: bool,
    /// It makes devices instead of logging in (MSC4190).
    pub makes_devices: bool,
}

/// Where a service listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Without a slash at the end.
    pub url: String,
    pub place: Destination,
}

/// Names that belong to a service.
#[derive(Debug, Default)]
pub struct Namespaces(Vec<(Regex, bool)>);

/// A registration as it is written.
#[derive(Deserialize)]
struct Written {
    id: String,
    url: Option<String>,
    as_token: String,
    hs_token: String,
    sender_localpart: String,
    namespaces: WrittenNamespaces,
    rate_limited: Option<bool>,
    protocols: Option<Vec<String>>,
    receive_ephemeral: Option<bool>,
    #[serde(rename = "de.sorunome.msc2409.push_ephemeral")]
    push_ephemeral: Option<bool>,
    #[serde(rename = "org.matrix.msc3202")]
    msc3202: Option<bool>,
    #[serde(rename = "io.element.msc4190")]
    msc4190: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WrittenNamespaces {
    users: Option<Vec<WrittenNamespace>>,
    aliases: Option<Vec<WrittenNamespace>>,
    rooms: Option<Vec<WrittenNamespace>>,
}

#[derive(Deserialize)]
struct WrittenNamespace {
    exclusive: bool,
    regex: String,
}

impl Registrations {
    /// Reads and checks registration files. Everything that is wrong with them, one complaint per line.
    pub fn load(files: &[PathBuf], server_name: &ServerName) -> Result<Self, Vec<String>> {
        let (mut all, mut wrong) = (Vec::new(), Vec::new());
        for file in files {
            match read(file).and_then(|text| Registration::parse(&text, server_name)) {
                Ok(registration) => all.push((file, registration)),
                Err(cause) => wrong.push(format!("{}: {cause}", file.display())),
            }
        }
        let (mut ids, mut tokens, mut senders) = (HashSet::new(), HashSet::new(), HashSet::new());
        for (file, registration) in &all {
            let mut twice = |new: bool, what: &str| {
                if !new {
                    wrong.push(format!("{}: another registration has the same {what}", file.display()));
                }
            };
            twice(ids.insert(&registration.id), "id");
            twice(tokens.insert(&registration.as_token), "as_token");
            twice(senders.insert(&registration.sender), "sender_localpart");
        }
        if !wrong.is_empty() {
            return Err(wrong);
        }
        Ok(Self::of(all.into_iter().map(|(_, registration)| registration)))
    }

    fn of(registrations: impl Iterator<Item = Registration>) -> Self {
        let all: Vec<Arc<Registration>> = registrations.map(Arc::new).collect();
        let by_token = all.iter().map(|one| (hash(&one.as_token), one.clone())).collect();
        Registrations { all, by_token }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Registration>> {
        self.all.iter()
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whose token this is. Found by its hash, so that the time it takes says nothing about a token.
    pub fn by_token(&self, token: &str) -> Option<&Arc<Registration>> {
        if self.all.is_empty() {
            return None;
        }
        self.by_token.get(&hash(token))
    }

    pub fn by_id(&self, id: &str) -> Option<&Arc<Registration>> {
        self.all.iter().find(|registration| registration.id == id)
    }

    /// Whether a local user's name is kept for a service other than this one.
    pub fn keeps_user(&self, user_id: &UserId, but_for: Option<&str>) -> bool {
        self.others(but_for).any(|one| one.sender == user_id || one.users.keep(user_id.as_str()))
    }

    /// Whether an alias is kept for a service other than this one.
    pub fn keeps_alias(&self, alias: &RoomAliasId, but_for: Option<&str>) -> bool {
        self.others(but_for).any(|one| one.aliases.keep(alias.as_str()))
    }

    fn others(&self, but_for: Option<&str>) -> impl Iterator<Item = &Arc<Registration>> {
        self.all.iter().filter(move |registration| Some(registration.id.as_str()) != but_for)
    }
}

impl Registration {
    /// A registration from YAML.
    pub fn parse(text: &str, server_name: &ServerName) -> Result<Self, String> {
        let written: Written = serde_saphyr::from_str(text).map_err(|cause| cause.to_string())?;
        if written.id.is_empty() || written.id.len() > MAX_ID_BYTES || written.id.contains(char::is_control) {
            return Err(format!("id: has to be 1 to {MAX_ID_BYTES} bytes of text"));
        }
        for (name, token) in [("as_token", &written.as_token), ("hs_token", &written.hs_token)] {
            if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(format!("{name}: has to be letters, digits and signs without spaces"));
            }
        }
        let sender = UserId::parse(format!("@{}:{server_name}", written.sender_localpart));
        let sender =
            sender.ok().filter(|_| !written.sender_localpart.is_empty() && !written.sender_localpart.contains(':'));
        let sender = sender.ok_or("sender_localpart: is not the local part of a user ID")?;
        let url = written.url.as_deref().filter(|url| !url.is_empty());
        let kinds = written.namespaces;
        Ok(Registration {
            service: url.map(Service::parse).transpose().map_err(|cause| format!("url: {cause}"))?,
            users: Namespaces::compile("users", kinds.users)?,
            aliases: Namespaces::compile("aliases", kinds.aliases)?,
            rooms: Namespaces::compile("rooms", kinds.rooms)?,
            id: written.id,
            sender,
            as_token: written.as_token,
            hs_token: written.hs_token,
            rate_limited: written.rate_limited.unwrap_or(true),
            protocols: written.protocols.unwrap_or_default(),
            ephemeral: written.receive_ephemeral == Some(true) || written.push_ephemeral == Some(true),
            old_ephemeral: written.push_ephemeral == Some(true),
            encryption: written.msc3202 == Some(true),
            makes_devices: written.msc4190 == Some(true),
        })
    }

    /// Whether a user is one of its own. Users of other servers never are.
    pub fn has_user(&self, user_id: &UserId) -> bool {
        user_id.server_name() == self.sender.server_name()
            && (self.sender == user_id || self.users.contain(user_id.as_str()))
    }

    /// The same for the text of a user ID.
    pub fn has_user_named(&self, user_id: &str) -> bool {
        <&UserId>::try_from(user_id).is_ok_and(|user_id| self.has_user(user_id))
    }

    pub fn has_alias(&self, alias: &str) -> bool {
        self.aliases.contain(alias)
    }

    pub fn has_room(&self, room_id: &str) -> bool {
        self.rooms.contain(room_id)
    }
}

impl fmt::Debug for Registration {
    /// Without the tokens.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration").field("id", &self.id).field("sender", &self.sender).finish_non_exhaustive()
    }
}

impl Service {
    fn parse(url: &str) -> Result<Self, String> {
        let url = url.trim_end_matches('/');
        let wrong = || format!("`{url}` is not a URL such as \"http://127.0.0.1:29318\"");
        let uri: http::Uri = url.parse().map_err(|_| wrong())?;
        let (scheme, authority) = uri.scheme_str().zip(uri.authority()).ok_or_else(wrong)?;
        if authority.as_str().contains('@') || uri.query().is_some() {
            return Err(wrong());
        }
        let place: Destination = format!("{scheme}://{authority}").parse().map_err(|_| wrong())?;
        if place.port.is_none() {
            return Err(wrong());
        }
        Ok(Service { url: url.to_owned(), place })
    }
}

impl Namespaces {
    fn compile(kind: &str, written: Option<Vec<WrittenNamespace>>) -> Result<Self, String> {
        let written = written.unwrap_or_default();
        if written.len() > MAX_NAMESPACES {
            return Err(format!("namespaces.{kind}: there are more than {MAX_NAMESPACES}"));
        }
        let compile = |WrittenNamespace { exclusive, regex }| {
            let complain = |cause: &str| format!("namespaces.{kind}: `{regex}`: {cause}");
            if regex.len() > MAX_REGEX_BYTES {
                return Err(format!("namespaces.{kind}: an expression is longer than {MAX_REGEX_BYTES} bytes"));
            }
            // From the beginning of a name on, but not up to its end: that is what registrations are written for.
            let compiled = RegexBuilder::new(&format!("^(?:{})", in_ascii(&regex)))
                .size_limit(MAX_COMPILED_BYTES)
                .dfa_size_limit(MAX_COMPILED_BYTES)
                .build()
                .map_err(|cause| complain(cause.to_string().lines().last().unwrap_or_default()))?;
            Ok((compiled, exclusive))
        };
        written.into_iter().map(compile).collect::<Result<_, String>>().map(Namespaces)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn contain(&self, name: &str) -> bool {
        self.0.iter().any(|(regex, _)| regex.is_match(name))
    }

    /// Whether a name is in here, and nobody else may have it.
    fn keep(&self, name: &str) -> bool {
        self.0.iter().any(|(regex, exclusive)| *exclusive && regex.is_match(name))
    }
}

/// Classes such as `\d` as ASCII has them: names consist of it, and the tables of all scripts are large.
fn in_ascii(regex: &str) -> String {
    let mut out = String::with_capacity(regex.len());
    let mut chars = regex.chars();
    while let Some(char) = chars.next() {
        let Some(escaped) = (char == '\\').then(|| chars.next()).flatten() else {
            out.push(char);
            continue;
        };
        match escaped {
            'd' => out.push_str("[0-9]"),
            'D' => out.push_str("[^0-9]"),
            'w' => out.push_str("[0-9A-Za-z_]"),
            'W' => out.push_str("[^0-9A-Za-z_]"),
            's' => out.push_str("[ \\t\\r\\n]"),
            'S' => out.push_str("[^ \\t\\r\\n]"),
            'b' => out.push_str("(?-u:\\b)"),
            other => out.extend(['\\', other]),
        }
    }
    out
}

fn read(file: &Path) -> Result<String, String> {
    let size = std::fs::metadata(file).map_err(|cause| cause.to_string())?.len();
    if size > MAX_FILE_BYTES {
        return Err(format!("is larger than {MAX_FILE_BYTES} bytes"));
    }
    std::fs::read_to_string(file).map_err(|cause| cause.to_string())
}

fn hash(token: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    hash
}

#[cfg(test)]
mod tests {
    use ruma::{room_alias_id, server_name, user_id};

    use super::*;

    const IRC: &str = "\
id: irc
url: http://127.0.0.1:9999/
as_token: \"as-secret\"
hs_token: hs-secret
sender_localpart: _irc_bot # the bot
namespaces:
  users:
    - exclusive: true
      regex: '@_irc_.*'
    - regex: '@shared.*:hs\\.test'
      exclusive: false
  aliases:
  - exclusive: true
    regex: \"#irc_.*:hs\\\\.test\"
  rooms: []
rate_limited: false
protocols: [irc]
de.sorunome.msc2409.push_ephemeral: true
unknown_key: { a: b }
";

    fn parse(text: &str) -> Result<Registration, String> {
        Registration::parse(text, server_name!("hs.test"))
    }

    #[test]
    fn a_registration_is_read() {
        let irc = parse(IRC).unwrap();
        assert_eq!((irc.id.as_str(), irc.sender.as_str()), ("irc", "@_irc_bot:hs.test"));
        assert_eq!(irc.service.as_ref().map(|service| service.url.as_str()), Some("http://127.0.0.1:9999"));
        assert_eq!((irc.rate_limited, irc.ephemeral, irc.encryption), (false, true, false));
        assert_eq!(irc.protocols, ["irc"]);
        assert!(irc.has_user(user_id!("@_irc_bot:hs.test")) && irc.has_user(user_id!("@_irc_anna:hs.test")));
        assert!(irc.has_user(user_id!("@shared1:hs.test")) && !irc.has_user(user_id!("@my_irc_anna:hs.test")));
        assert!(!irc.has_user(user_id!("@_irc_anna:else.test")), "users of other servers are nobody's");
        assert!(irc.has_alias("#irc_tea:hs.test") && !irc.has_alias("#tea:hs.test") && !irc.has_room("!a:hs.test"));
        assert!(!format!("{irc:?}").contains("secret"));
    }

    #[test]
    fn pitfall_018_what_is_exclusive_is_kept_from_others() {
        let all = Registrations::of([parse(IRC).unwrap()].into_iter());
        let anna = user_id!("@_irc_anna:hs.test");
        assert!(
            all.keeps_user(anna, None) && all.keeps_user(anna, Some("other")) && !all.keeps_user(anna, Some("irc"))
        );
        assert!(
            !all.keeps_user(user_id!("@shared1:hs.test"), None) && !all.keeps_user(user_id!("@anna:hs.test"), None)
        );
        assert!(all.keeps_alias(room_alias_id!("#irc_tea:hs.test"), None));
        assert!(!all.keeps_alias(room_alias_id!("#irc_tea:hs.test"), Some("irc")));
        assert_eq!(all.by_token("as-secret").map(|one| one.id.as_str()), Some("irc"));
        assert!(all.by_token("hs-secret").is_none() && all.by_token("").is_none());
    }

    #[test]
    fn classes_are_those_of_ascii() {
        let users = |regex: &str| {
            let written = WrittenNamespace { exclusive: true, regex: regex.to_owned() };
            Namespaces::compile("users", Some(vec![written])).unwrap()
        };
        assert!(users(r"@t_\d+:hs\.test").contain("@t_12:hs.test") && !users(r"@t_\d+:hs").contain("@t_a:hs.test"));
        assert!(users(r"@[\w-]+_bot\b").contain("@a-b_bot:hs.test") && !users(r"@\\d").contain("@1"));
        assert!(users("@_irc_").contain("@_irc_anna:hs.test"), "the end may be left out");
    }

    #[test]
    fn mistakes_are_named() {
        let wrong = |from: &str, to: &str| parse(&IRC.replace(from, to)).unwrap_err();
        for (from, to, named) in [
            ("http://127.0.0.1:9999/", "'127.0.0.1:9999'", "url: "),
            ("http://127.0.0.1:9999/", "http://me@127.0.0.1/", "url: "),
            ("'@_irc_.*'", "'@_irc_('", "namespaces.users: `@_irc_(`: "),
            ("'@_irc_.*'", "'(a{500}){500}'", "namespaces.users: "),
            ("hs-secret", "'two words'", "hs_token: "),
            ("_irc_bot", "'@a:b'", "sender_localpart: "),
            ("id: irc", "id: ''", "id: "),
            ("as_token: \"as-secret\"\n", "", "as_token"),
            ("rate_limited: false", "rate_limited: sometimes", ""),
        ] {
            let cause = wrong(from, to);
            assert!(cause.contains(named), "{to}: {cause}");
        }
    }

    #[test]
    fn files_are_checked_together() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let file = dir.path().join(name);
            std::fs::write(&file, text).unwrap();
            file
        };
        let (one, two) = (write("one", IRC), write("two", &IRC.replace("id: irc", "id: other")));
        let load = |files: &[PathBuf]| Registrations::load(files, server_name!("hs.test"));
        assert_eq!(load(std::slice::from_ref(&one)).unwrap().iter().count(), 1);
        let wrong = load(&[one, two, dir.path().join("none")]).unwrap_err().join("\n");
        assert!(wrong.contains("two: another registration has the same as_token"), "{wrong}");
        assert!(wrong.contains("two: another registration has the same sender_localpart"), "{wrong}");
        assert!(wrong.contains("none: "), "{wrong}");
        assert!(!wrong.contains("same id"), "{wrong}");
    }
}
