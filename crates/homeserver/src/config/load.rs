//! Where settings come from (file, environment, flags, the later wins) and how their mistakes are reported: with the
//! file, the line and the key.

use std::fmt;
use std::path::{Path, PathBuf};

use figment::error::Kind;
use figment::providers::{Format as _, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider, Source};

use super::reference::sections;
use super::registrations::Registrations;
use super::{Config, RESERVED_PATHS, RegistrationMode, Section, Web};

/// What is to be read.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// The settings file. Without one there are only the environment and the flags.
    pub file: Option<PathBuf>,
    /// `SKERRY_SECTION__KEY=value`; variables that begin with no section or key of ours are not looked at.
    pub environment: Vec<(String, String)>,
    /// `section.key=value`
    pub flags: Vec<String>,
}

/// Everything that is wrong with the settings, one complaint per line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(Vec<String>);

const ENVIRONMENT_PREFIX: &str = "SKERRY_";

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    pub fn load(overrides: &Overrides) -> Result<Self, ConfigError> {
        let text = match &overrides.file {
            Some(path) => read(path)?,
            None => String::new(),
        };
        let complain = |error: figment::Error| {
            ConfigError(error.into_iter().map(|one| complaint(&one, overrides, &text)).collect())
        };
        let config: Self = figment(overrides, &text)?.extract().map_err(complain)?;
        let wrong: Vec<String> = config
            .contradictions()
            .into_iter()
            .map(|(key, why)| {
                format!(
                    "{}{key}: {why}",
                    place(overrides, &text, &key.split('.').map(str::to_owned).collect::<Vec<_>>())
                )
            })
            .collect();
        if wrong.is_empty() { Ok(config) } else { Err(ConfigError(wrong)) }
    }

    /// What no type can say.
    fn contradictions(&self) -> Vec<(&'static str, String)> {
        let mut wrong = Vec::new();
        if self.listeners.is_empty() {
            wrong.push(("listeners", "at least one is needed".to_owned()));
        }
        if self.memory_budget < super::Size::mib(32) {
            wrong.push(("memory_budget", "less than 32MiB is too little".to_owned()));
        }
        if self.registration.mode == RegistrationMode::Token && self.registration.tokens.is_empty() {
            wrong.push(("registration.mode", "`token` needs registration.tokens".to_owned()));
        }
        if self.oauth.enabled && !self.well_known.client_base_url.as_deref().is_some_and(is_base_url) {
            wrong.push(("oauth.enabled", "needs well_known.client_base_url, without query or fragment".to_owned()));
        }
        let fits = |name: &str| {
            !name.is_empty()
                && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._=-/+".contains(&b))
        };
        if self.server_notices.sender.as_deref().is_some_and(|name| !fits(name)) {
            let why = "is the local part of a user ID: a-z, 0-9 and . _ = - / +";
            wrong.push(("server_notices.sender", why.to_owned()));
        }
        if self.rooms.default_version.rules().is_none() {
            wrong.push(("rooms.default_version", format!("`{}` is not supported", self.rooms.default_version)));
        }
        if !self.calls.turn_uris.is_empty() && self.calls.turn_secret.is_none() && self.calls.turn_username.is_none() {
            wrong.push((
                "calls.turn_uris",
                "needs calls.turn_secret, or calls.turn_username and turn_password".to_owned(),
            ));
        }
        if let Err(causes) = Registrations::load(&self.application_services.files, &self.server_name) {
            wrong.extend(causes.into_iter().map(|cause| ("application_services.files", cause)));
        }
        if let Some(why) = wrong_web_path(&self.web.path) {
            wrong.push(("web.path", why));
        }
        if let Err(cause) = tracing_subscriber::EnvFilter::try_new(&self.log.level) {
            wrong.push(("log.level", cause.to_string()));
        }
        wrong
    }
}

/// Whether other URLs can be made from this one by adding a path.
fn is_base_url(url: &str) -> bool {
    let plain = !url.contains(['?', '#', '@']) && url.bytes().all(|byte| byte.is_ascii_graphic());
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    plain && rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'))
}

/// Why a web client cannot be served under this path.
fn wrong_web_path(path: &str) -> Option<String> {
    if !path.starts_with('/') {
        return Some(format!("`{path}` does not begin with a slash"));
    }
    let base = Web { path: path.to_owned(), ..Web::default() }.base_path();
    let is_plain = |name: &str| name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~".contains(&b));
    let mut names = base.trim_matches('/').split('/');
    if base != "/" && !names.all(|name| is_plain(name) && name.bytes().any(|b| b != b'.')) {
        return Some(format!(
            "`{path}` is not made of names (letters, digits, `-`, `.`, `_`, `~`) between single slashes"
        ));
    }
    let reserved = RESERVED_PATHS.iter().find(|reserved| base.starts_with(&format!("{reserved}/")))?;
    Some(format!("`{reserved}` is taken"))
}

fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|cause| ConfigError(vec![format!("{}: {cause}", path.display())]))
}

fn figment(overrides: &Overrides, text: &str) -> Result<Figment, ConfigError> {
    let mut figment = Figment::new();
    if overrides.file.is_some() {
        figment = figment.merge(Toml::string(text));
    }
    for (name, value) in &overrides.environment {
        if let Some(key) = setting_of(name) {
            let origin = format!("environment variable {name}");
            figment = figment.merge(Single { origin, key, value: value.clone() });
        }
    }
    for flag in &overrides.flags {
        let Some((key, value)) = flag.split_once('=') else {
            return Err(ConfigError(vec![format!("--set {flag}: is not `section.key=value`")]));
        };
        let (key, value) = (key.trim().to_owned(), value.to_owned());
        figment = figment.merge(Single { origin: format!("--set {flag}"), key, value });
    }
    Ok(figment)
}

/// The key that an environment variable sets. The environment also holds what others put there (`SKERRY_PORT` by a
/// container manager), so that an unknown beginning is no mistake; an unknown key in a section is one.
fn setting_of(variable: &str) -> Option<String> {
    let key = variable.strip_prefix(ENVIRONMENT_PREFIX)?.to_ascii_lowercase().replace("__", ".");
    let first = key.split('.').next()?;
    let ours = |section: &Section| match section.name {
        "" => section.settings.iter().any(|setting| setting.name == first),
        name => name == first,
    };
    sections().iter().any(ours).then_some(key)
}

/// One value from outside of the file.
struct Single {
    origin: String,
    key: String,
    value: String,
}

impl Provider for Single {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.origin.clone()).source(Source::Custom(self.origin.clone()))
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        // Numbers, booleans, arrays and tables as in the file; everything else is a string without quotes.
        let value: Value = self.value.parse().unwrap_or_else(|_| Value::from(self.value.clone()));
        let dict = figment::util::nest(&self.key, value).into_dict().unwrap_or_default();
        Ok(Profile::Default.collect(dict))
    }
}

fn complaint(error: &figment::Error, overrides: &Overrides, text: &str) -> String {
    let mut path = error.path.clone();
    let message = match &error.kind {
        Kind::UnknownField(name, expected) => {
            if path.last() != Some(name) {
                path.push(name.clone());
            }
            format!("there is no such setting{}", nearest(name, expected))
        }
        Kind::MissingField(name) => return format!("{}{name}: has to be set", file_name(overrides)),
        Kind::InvalidType(found, expected) => format!("found {found}, expected {expected}"),
        Kind::InvalidValue(found, expected) => format!("found {found}, expected {expected}"),
        Kind::UnknownVariant(found, expected) => format!("`{found}` is none of {}", expected.join(", ")),
        // The file is no TOML at all: this message brings its line along.
        Kind::Message(message) if path.is_empty() => return format!("{}{message}", file_name(overrides)),
        other => other.to_string(),
    };
    let key = path.join(".");
    match error.metadata.as_ref().and_then(|metadata| metadata.source.as_ref()) {
        Some(Source::Custom(origin)) => format!("{origin}: {key}: {message}"),
        _ => format!("{}{key}: {message}", place(overrides, text, &path)),
    }
}

fn nearest(name: &str, expected: &[&str]) -> String {
    let shared = |candidate: &&&str| candidate.bytes().zip(name.bytes()).take_while(|(a, b)| a == b).count();
    match expected.iter().max_by_key(shared).filter(|best| shared(best) >= 3) {
        Some(best) => format!("; did you mean `{best}`?"),
        None if expected.len() > 10 => "; `skerry config reference` lists all".to_owned(),
        None => format!("; there are {}", expected.join(", ")),
    }
}

fn file_name(overrides: &Overrides) -> String {
    overrides.file.as_ref().map_or(String::new(), |path| format!("{}: ", path.display()))
}

/// `file:line: ` of a key, as well as it can be found.
fn place(overrides: &Overrides, text: &str, path: &[String]) -> String {
    match (&overrides.file, line_of(text, path)) {
        (Some(file), Some(line)) => format!("{}:{line}: ", file.display()),
        _ => file_name(overrides),
    }
}

/// The line that sets a key, or else the nearest table around it. Knows tables, arrays of tables and dotted keys.
fn line_of(text: &str, path: &[String]) -> Option<usize> {
    let mut table: Vec<String> = Vec::new();
    let mut counts = std::collections::BTreeMap::<String, usize>::new();
    let mut best: Option<(usize, usize)> = None;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        let here = if let Some(name) = line.strip_prefix("[[").and_then(|rest| rest.split("]]").next()) {
            let count = counts.entry(name.trim().to_owned()).or_default();
            table = keys(name);
            table.push(count.to_string());
            *count += 1;
            table.clone()
        } else if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            table = keys(name);
            table.clone()
        } else if let Some((key, _)) = line.split_once('=').filter(|_| !line.starts_with('#')) {
            table.iter().cloned().chain(keys(key)).collect()
        } else {
            continue;
        };
        if path.starts_with(&here) && best.is_none_or(|(depth, _)| here.len() > depth) {
            best = Some((here.len(), index + 1));
        }
    }
    best.map(|(_, line)| line)
}

fn keys(dotted: &str) -> Vec<String> {
    dotted.split('.').map(|key| key.trim().trim_matches(['"', '\'']).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{FederationMode, Limit, Size, Span};

    fn load(text: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("skerry.toml");
        std::fs::write(&file, text).unwrap();
        let overrides = Overrides { file: Some(file), ..Overrides::default() };
        let shorten = |error: ConfigError| error.to_string().replace(&format!("{}/", dir.path().display()), "");
        Config::load(&overrides).map_err(shorten)
    }

    fn load_outside(environment: &[(&str, &str)], flags: &[&str]) -> Result<Config, String> {
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        Config::load(&Overrides { file: None, environment, flags }).map_err(|error| error.to_string())
    }

    #[test]
    fn the_name_is_all_that_is_needed() {
        let config = load("server_name = 'hs.test'").unwrap();
        assert_eq!(config, Config::new(ruma::owned_server_name!("hs.test")));
        assert_eq!(load("").unwrap_err(), "skerry.toml: server_name: has to be set");
    }

    #[test]
    fn values_are_read() {
        let config = load(
            "server_name = 'hs.test'\nmemory_budget = '1GiB'\n[http]\nidle_timeout = '5m'\nmax_body = 4096\n\
             [[listeners]]\nbind = '127.0.0.1:1'\n[[listeners]]\nbind = '[::]:2'\ntrusted_proxies = ['10.0.0.0/8']\n\
             tls = { certificate = 'c', key = 'k' }\n[rate_limits]\nlogin = false\njoin = { per_second = 1.5, burst = 3 }\n\
             [federation]\nmode = 'isolated'\n[well_known]\nclient_extra = { a = { b = 1 } }",
        )
        .unwrap();
        assert_eq!(config.memory_budget, Size::mib(1024));
        assert_eq!(config.http.idle_timeout, Span::seconds(300));
        assert_eq!(config.http.max_body, Size::bytes(4096));
        assert_eq!(config.listeners.len(), 2);
        assert!(config.listeners[1].tls.is_some());
        assert_eq!(config.rate_limits.login, Limit::Off);
        assert_eq!(config.rate_limits.join, Limit::On { per_second: 1.5, burst: 3 });
        assert_eq!(config.federation.mode, FederationMode::Isolated);
        assert_eq!(config.well_known.client_extra["a"]["b"], 1);
        for (path, base) in [("/", "/"), ("/chat", "/chat/"), ("/a/b~1.x/", "/a/b~1.x/"), ("/accounts", "/accounts/")] {
            let config = load(&format!("server_name = 'hs.test'\nweb.path = '{path}'")).unwrap();
            assert_eq!(config.web.base_path(), base);
        }
    }

    #[test]
    fn mistakes_name_file_line_and_key() {
        let wrong = |text: &str| load(&format!("server_name = 'hs.test'\n{text}")).unwrap_err();
        insta::assert_snapshot!(
            [
                wrong("\n[media]\nmax_uplod = '1MiB'"),
                wrong("[media]\n# a comment\nmax_upload = 'much'"),
                wrong("[media]\nmax_upload = true"),
                wrong("colour = 'red'"),
                wrong("[http]\nidle_timeout = 30"),
                wrong("[registration]\nmode = 'everybody'"),
                wrong("[registration]\nmode = 'token'"),
                wrong("[federation]\nmode = 'open'"),
                wrong("[[listeners]]\nbind = '127.0.0.1:1'\n[[listeners]]\nbind = 'somewhere'"),
                wrong("[rate_limits]\nlogin = { per_second = 0.0, burst = 1 }"),
                wrong("rooms.default_version = '99'"),
                wrong("[server_notices]\nsender = '@notices:hs.test'"),
                wrong("[media]\npreview_hosts = ['wiki.example.org']"),
                wrong("[log]\nlevel = 'info,a=b=c'"),
                wrong("web.path = 'chat'"),
                wrong("web.path = '/a b'"),
                wrong("web.path = '/chat/../x'"),
                wrong("web.path = '/chat//x'"),
                wrong("web.path = '/_matrix/'"),
                wrong("web.path = '/account/web'"),
                wrong("web.connect = ['matrix.example.org']"),
                wrong("[http\nmax_body = 1"),
                load("server_name = 'not a name'").unwrap_err(),
            ]
            .join("\n")
        );
    }

    #[test]
    fn environment_and_flags_win_and_are_named_in_errors() {
        let name = ("SKERRY_SERVER_NAME", "hs.test");
        let config = load_outside(&[name, ("SKERRY_MEDIA__MAX_UPLOAD", "1MiB"), ("SKERRY_PORT", "x")], &[]).unwrap();
        assert_eq!(config.media.max_upload, Size::mib(1));
        let config = load_outside(&[name, ("SKERRY_PRESENCE__ENABLED", "true")], &["presence.enabled=false"]).unwrap();
        assert!(!config.presence.enabled);
        let config = load_outside(&[name], &["listeners=[{bind=\"127.0.0.1:0\"}]"]).unwrap();
        assert_eq!(config.listeners[0].bind.port(), 0);
        insta::assert_snapshot!(
            [
                load_outside(&[name, ("SKERRY_MEDIA__MAX_UPLOAD", "much")], &[]).unwrap_err(),
                load_outside(&[name], &["media.max_upload=much"]).unwrap_err(),
                load_outside(&[name], &["media.max_upload"]).unwrap_err(),
                load_outside(&[name, ("SKERRY_HTTP__COLOUR", "red")], &[]).unwrap_err(),
            ]
            .join("\n")
        );
    }
}
