//! Clients: what they say about themselves, and where the answers to them may be sent.
//!
//! A client proves who it is by nothing but its redirect URI, so the rules for those are strict. All clients are
//! public: none has a secret. What a client says decides its ID, so that the same client registered by many is one row.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use store::{Read, Tx};

use super::{Expiring, Failure, Reason, Refused};
use crate::App;
use crate::error::{Error, Result};
use crate::limits::network;
use crate::schema::{OAUTH_CLIENTS, OAUTH_SESSIONS, OauthClient};

/// What a client said about itself, as far as it is good for something here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_name: Option<String>,
    pub client_uri: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logo_uri: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tos_uri: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_uri: Option<String>,
    pub redirect_uris: Vec<String>,
    pub response_types: Vec<String>,
    pub grant_types: Vec<String>,
    pub token_endpoint_auth_method: String,
    pub application_type: ApplicationType,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ApplicationType {
    #[default]
    Web,
    Native,
}

/// What a client sends. Fields that are not here (names in other languages, say) are not kept.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Registration {
    client_name: Option<String>,
    client_uri: Option<String>,
    logo_uri: Option<String>,
    tos_uri: Option<String>,
    policy_uri: Option<String>,
    #[serde(default)]
    redirect_uris: Vec<String>,
    response_types: Option<Vec<String>>,
    grant_types: Option<Vec<String>>,
    token_endpoint_auth_method: Option<String>,
    #[serde(default)]
    application_type: ApplicationType,
}

pub const CODE: &str = "authorization_code";
pub const REFRESH: &str = "refresh_token";
pub const DEVICE_CODE: &str = "urn:ietf:params:oauth:grant-type:device_code";

const MAX_NAME_CHARS: usize = 128;
const MAX_URI_BYTES: usize = 1_024;
const MAX_REDIRECT_URIS: usize = 16;
const MAX_CLIENTS: usize = 4_096;
/// So many that nobody had heard of before come from one network in so long. The same app is one client wherever it is.
const MAX_NEW_PER_NETWORK: usize = 32;
const NEW_MS: u64 = 60 * 60 * 1000;
/// Clients that nobody used for so long, and that have no session, are forgotten.
const KEEP_UNUSED_MS: u64 = 7 * 24 * 60 * 60 * 1000;
/// Clients that never opened a session are forgotten sooner.
const KEEP_NEVER_USED_MS: u64 = 24 * 60 * 60 * 1000;
/// If there are too many, those go earlier; never sooner than this.
const KEEP_NEW_MS: u64 = 60 * 60 * 1000;

// ---- what a client may say ---------------------------------------------------------------------------------------

impl Metadata {
    /// Checks what a client says, and keeps what counts here.
    pub fn new(said: Registration) -> Result<Self, Refused> {
        let invalid = |why: &'static str| Refused::new(Reason::InvalidClientMetadata, why);
        let client_uri = said.client_uri.ok_or_else(|| invalid("client_uri is missing"))?;
        let host = https_host(&client_uri).ok_or_else(|| invalid("client_uri is no https URL"))?;
        if said.token_endpoint_auth_method.is_some_and(|method| method != "none") {
            return Err(invalid("Clients authenticate by nothing here: token_endpoint_auth_method is none"));
        }
        let mut grant_types = said.grant_types.unwrap_or_else(|| vec![CODE.to_owned()]);
        keep(&mut grant_types, &[CODE, REFRESH, DEVICE_CODE]);
        let mut response_types = said.response_types.unwrap_or_else(|| vec!["code".to_owned()]);
        keep(&mut response_types, &["code"]);
        let by_code = grant_types.iter().any(|grant| grant == CODE);
        if !by_code && !grant_types.iter().any(|grant| grant == DEVICE_CODE) {
            return Err(invalid("None of the grant types is known here"));
        }
        if by_code && response_types.is_empty() {
            return Err(invalid("None of the response types is known here"));
        }
        if by_code && said.redirect_uris.is_empty() {
            return Err(Refused::new(Reason::InvalidRedirectUri, "redirect_uris is missing"));
        }
        let fits = |uri: &String| may_redirect(said.application_type, &host, uri);
        if said.redirect_uris.len() > MAX_REDIRECT_URIS || !said.redirect_uris.iter().all(fits) {
            return Err(Refused::new(Reason::InvalidRedirectUri, "A redirect URI is not one of this client"));
        }
        // Nobody shows these yet: one that does not fit is left out rather than to keep a client away.
        let page = |uri: Option<String>| uri.filter(|uri| https_host(uri).is_some_and(|own| is_within(&own, &host)));
        Ok(Self {
            client_name: said.client_name.map(|name| plain(&name)).filter(|name| !name.is_empty()),
            logo_uri: page(said.logo_uri),
            tos_uri: page(said.tos_uri),
            policy_uri: page(said.policy_uri),
            client_uri,
            redirect_uris: said.redirect_uris,
            response_types,
            grant_types,
            token_endpoint_auth_method: "none".to_owned(),
            application_type: said.application_type,
        })
    }

    pub fn may(&self, grant_type: &str) -> bool {
        self.grant_types.iter().any(|known| known == grant_type)
    }

    /// Whether an answer may be sent there: to exactly what was registered. Only the port of a program that listens on
    /// its own machine is free.
    pub fn redirects_to(&self, uri: &str) -> bool {
        let exactly = |uri: &str| self.redirect_uris.iter().any(|known| known == uri);
        exactly(uri)
            || self.application_type == ApplicationType::Native && without_port(uri).is_some_and(|uri| exactly(&uri))
    }

    /// Whose client it says it is: the host of its page. Who answers by `https` has proven that.
    pub fn host(&self) -> String {
        https_host(&self.client_uri).unwrap_or_default()
    }

    fn id(&self) -> Result<(String, String)> {
        let json = serde_json::to_string(self).map_err(Error::internal)?;
        let id = URL_SAFE_NO_PAD.encode(digest(&SHA256, json.as_bytes()));
        Ok((id, json))
    }
}

fn keep(words: &mut Vec<String>, known: &[&str]) {
    words.retain(|word| known.contains(&word.as_str()));
    words.sort_unstable();
    words.dedup();
}

/// A name for one line: what turns text around or makes new lines has no place in it.
fn plain(name: &str) -> String {
    let odd = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    name.chars().filter(|c| !odd(*c)).take(MAX_NAME_CHARS).collect::<String>().trim().to_owned()
}

fn may_redirect(kind: ApplicationType, client_host: &str, uri: &str) -> bool {
    if !is_plain_uri(uri) {
        return false;
    }
    if let Some(host) = https_host(uri) {
        return is_within(&host, client_host);
    }
    kind == ApplicationType::Native && (is_loopback(uri) || is_private_scheme(uri, client_host))
}

/// `http` on the machine itself, without a port.
fn is_loopback(uri: &str) -> bool {
    loopback(uri).is_some_and(|(_, rest)| rest.is_empty() || rest.starts_with(['/', '?']))
}

/// The beginning up to the host, and what follows.
fn loopback(uri: &str) -> Option<(&str, &str)> {
    ["http://localhost", "http://127.0.0.1", "http://[::1]"]
        .iter()
        .find_map(|prefix| uri.strip_prefix(prefix).map(|rest| (*prefix, rest)))
}

/// A loopback URI without its port, if it has one.
fn without_port(uri: &str) -> Option<String> {
    let (host, rest) = loopback(uri).filter(|_| is_plain_uri(uri))?;
    let rest = rest.strip_prefix(':')?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (port, rest) = rest.split_at_checked(end)?;
    let digits = (1..=5).contains(&port.len()) && port.bytes().all(|byte| byte.is_ascii_digit());
    (digits && port.parse::<u16>().is_ok()).then(|| format!("{host}{rest}"))
}

/// A scheme that begins with the client's host turned around, and no host behind it. A scheme of one word is never
/// one: there are some that browsers know better.
fn is_private_scheme(uri: &str, client_host: &str) -> bool {
    let Some((scheme, rest)) = uri.split_once(':') else { return false };
    let reversed = client_host.rsplit('.').collect::<Vec<_>>().join(".");
    let scheme = scheme.to_ascii_lowercase();
    let known = scheme.strip_prefix(&reversed).is_some_and(|more| more.is_empty() || more.starts_with(['.', '-']));
    let word = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    known && reversed.contains('.') && scheme.bytes().all(word) && !rest.starts_with("//")
}

/// The host of an `https` URL without user, password or fragment; small.
fn https_host(url: &str) -> Option<String> {
    if !is_plain_uri(url) {
        return None;
    }
    let uri: http::Uri = url.parse().ok()?;
    let authority = uri.authority().filter(|_| uri.scheme_str() == Some("https"))?;
    let host = authority.host().to_ascii_lowercase();
    (!authority.as_str().contains('@') && !host.is_empty()).then_some(host)
}

fn is_plain_uri(uri: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_graphic() && !b"\"#<>\\^`{|}".contains(&byte);
    !uri.is_empty() && uri.len() <= MAX_URI_BYTES && uri.bytes().all(fits)
}

/// The same host, or one below it.
fn is_within(host: &str, base: &str) -> bool {
    host == base || host.strip_suffix(base).is_some_and(|sub| sub.len() > 1 && sub.ends_with('.'))
}

// ---- rows --------------------------------------------------------------------------------------------------------

/// Clients that nobody had heard of before, by their IDs, and the networks that they came from.
pub struct Newcomers(Expiring<String, IpAddr>);

impl Default for Newcomers {
    fn default() -> Self {
        Self(Expiring::new(MAX_CLIENTS))
    }
}

impl Newcomers {
    /// Lets another client in, unless there were too many from the same network lately.
    fn admit(&self, app: &App, client_id: &str, by: IpAddr) -> Result<()> {
        let (now_ms, by) = (app.clock.now_ms(), network(by));
        if self.0.count(now_ms, |known| *known == by) >= MAX_NEW_PER_NETWORK {
            return Err(Error::limit_exceeded(Duration::from_millis(NEW_MS)));
        }
        self.0.push(now_ms, now_ms.saturating_add(NEW_MS), client_id.to_owned(), by);
        Ok(())
    }
}

/// Registers a client, or finds it registered. Its ID.
pub async fn register(app: &App, metadata: &Metadata, by: IpAddr) -> Result<String, Failure> {
    let (client_id, json) = metadata.id()?;
    let known = app.store.snapshot().contains(&OAUTH_CLIENTS, &client_id)?;
    if !known {
        app.auth.oauth.newcomers.admit(app, &client_id, by)?;
        if count(app)? >= MAX_CLIENTS {
            forget_unused(app, KEEP_NEW_MS, KEEP_NEW_MS).await?;
            if count(app)? >= MAX_CLIENTS {
                return Err(Error::unavailable("There are too many clients; try again later").into());
            }
        }
    }
    let used_ts = app.clock.now_ms();
    let put = |tx: &mut Tx| -> Result<()> {
        let opened = tx.get(&OAUTH_CLIENTS, &client_id)?.is_some_and(|client| client.opened);
        tx.put(&OAUTH_CLIENTS, &client_id, &OauthClient { metadata: json.clone(), used_ts, opened });
        Ok(())
    };
    app.store.transact(put).await?;
    Ok(client_id)
}

fn count(app: &App) -> Result<usize> {
    Ok(app.store.snapshot().count(&OAUTH_CLIENTS, OAUTH_CLIENTS.all())?)
}

/// The client of this ID.
pub fn find(read: &impl Read, client_id: &str) -> Result<Option<Metadata>> {
    // No ID of ours is longer, and a key has to fit.
    if client_id.len() > 64 {
        return Ok(None);
    }
    let row = read.get(&OAUTH_CLIENTS, client_id)?;
    row.map(|row| serde_json::from_str(&row.metadata).map_err(Error::internal)).transpose()
}

/// Notes that a session is opened: whoever would forget the client at this moment has to look again.
pub fn used(app: &App, tx: &mut Tx, client_id: &str) -> Result<bool> {
    let Some(row) = tx.get(&OAUTH_CLIENTS, client_id)? else { return Ok(false) };
    tx.put(&OAUTH_CLIENTS, client_id, &OauthClient { used_ts: app.clock.now_ms(), opened: true, ..row });
    Ok(true)
}

/// Forgets clients that nobody ever used, and those that nobody uses any more.
pub async fn forget_old(app: &App) -> Result<()> {
    forget_unused(app, KEEP_NEVER_USED_MS, KEEP_UNUSED_MS).await
}

/// Forgets those that never opened a session for so long, and those that have none any more for so long.
async fn forget_unused(app: &App, keep_never_used_ms: u64, keep_unused_ms: u64) -> Result<()> {
    let now = app.clock.now_ms();
    let is_old = |client: &OauthClient| {
        let keep_ms = if client.opened { keep_unused_ms } else { keep_never_used_ms };
        client.used_ts < now.saturating_sub(keep_ms)
    };
    let old = {
        let read = app.store.snapshot();
        let (mut old, mut any_opened) = (BTreeSet::new(), false);
        for row in read.scan(&OAUTH_CLIENTS, OAUTH_CLIENTS.all()) {
            let (client_id, client) = row?;
            if is_old(&client) {
                any_opened |= client.opened;
                old.insert(client_id);
            }
        }
        // Who never opened a session has none.
        if any_opened {
            for row in read.scan(&OAUTH_SESSIONS, OAUTH_SESSIONS.all()) {
                old.remove(&row?.1.client_id);
            }
        }
        old
    };
    for client_id in old {
        let forget = |tx: &mut Tx| -> Result<()> {
            if tx.get(&OAUTH_CLIENTS, &client_id)?.as_ref().is_some_and(is_old) {
                tx.delete(&OAUTH_CLIENTS, &client_id);
            }
            Ok(())
        };
        app.store.transact(forget).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn metadata(said: Value) -> Result<Metadata, Reason> {
        Metadata::new(serde_json::from_value(said).unwrap()).map_err(|refused| refused.reason)
    }

    fn with_redirect(kind: &str, client_uri: &str, redirect_uri: &str) -> Result<Metadata, Reason> {
        metadata(json!({ "client_uri": client_uri, "application_type": kind, "redirect_uris": [redirect_uri] }))
    }

    #[test]
    fn answers_to_web_clients_go_to_their_own_host_by_https() {
        let check = |uri: &str, fits: bool| {
            for kind in ["web", "native"] {
                assert_eq!(with_redirect(kind, "https://example.com/", uri).is_ok(), fits, "{kind} {uri}");
            }
        };
        check("https://example.com/callback", true);
        check("https://app.example.com/callback", true);
        check("https://EXAMPLE.com/callback", true);
        check("https://example.com:5173/?query=value", true);
        check("https://example.com/callback#fragment", false);
        check("https://example.com/#", false);
        check("http://example.com/callback", false);
        check("https://localhost/callback", false);
        check("https://badexample.com/", false);
        check("https://.example.com/", false);
        check("https://example.com.evil.test/", false);
        check("https://user@example.com/", false);
        check("https://user:pass@example.com/", false);
        check("https://evil.test\\@example.com/", false);
        check("https://evil.test/?@example.com/", false);
        check("https://example.com/\r\nX: y", false);
        check("https://example.com/ x", false);
        check("javascript:alert(1)", false);
        check("data:text/html,x", false);
        check("//example.com/", false);
        check("/callback", false);
        check("", false);
    }

    #[test]
    fn answers_to_programs_go_to_a_scheme_of_their_own_or_to_their_machine() {
        let check = |uri: &str, fits: bool| {
            assert_eq!(with_redirect("native", "https://example.com/", uri).is_ok(), fits, "{uri}");
            assert!(with_redirect("web", "https://example.com/", uri).is_err(), "{uri}");
        };
        check("com.example.app:/callback", true);
        check("com.example:/", true);
        check("com.example:callback", true);
        check("http://localhost/callback", true);
        check("http://127.0.0.1/callback", true);
        check("http://[::1]/callback", true);
        check("http://localhost", true);
        check("example:/callback", false);
        check("com.example.app://callback", false);
        check("com.exampleapp:/callback", false);
        check("http://localhost:1234/callback", false);
        check("http://localhost.evil.test/callback", false);
        check("http://localhost@evil.test/callback", false);
        check("http://127.0.0.2/callback", false);
        // No host can be turned into what a browser runs.
        assert!(with_redirect("native", "https://javascript/", "javascript:alert(1)").is_err());
        assert!(with_redirect("native", "https://element.io/apps/android", "io.element.android:/").is_ok());
    }

    #[test]
    fn only_the_port_of_a_program_is_free() {
        let client = with_redirect("native", "https://example.com/", "http://127.0.0.1/cb").unwrap();
        let check = |uri: &str, fits: bool| assert_eq!(client.redirects_to(uri), fits, "{uri}");
        check("http://127.0.0.1/cb", true);
        check("http://127.0.0.1:8080/cb", true);
        check("http://127.0.0.1:65535/cb", true);
        check("http://127.0.0.1:65536/cb", false);
        check("http://127.0.0.1:/cb", false);
        check("http://127.0.0.1:80@evil.test/cb", false);
        check("http://127.0.0.1:8080/cb/", false);
        check("http://127.0.0.1:8080/cb?x=1", false);
        check("http://localhost:8080/cb", false);
        let web = with_redirect("web", "https://example.com/", "https://example.com/cb").unwrap();
        for uri in [
            "https://example.com:8443/cb",
            "https://example.com/cb?",
            "https://example.com/CB",
            "https://example.com/cb/..",
        ] {
            assert!(!web.redirects_to(uri), "{uri}");
        }
        assert!(web.redirects_to("https://example.com/cb"));
    }

    #[test]
    fn what_is_not_known_is_left_out_and_what_is_wrong_is_refused() {
        let base = json!({
            "client_name": "App\u{202e}\n", "client_name#fr": "Appli", "client_uri": "https://example.com",
            "logo_uri": "https://evil.test/logo.png", "tos_uri": "https://www.example.com/tos",
            "redirect_uris": ["https://example.com/cb"],
            "grant_types": ["refresh_token", "urn:x", "authorization_code"], "response_types": ["code", "token"],
        });
        let known = metadata(base.clone()).unwrap();
        assert_eq!(
            serde_json::to_value(&known).unwrap(),
            json!({
                "client_name": "App", "client_uri": "https://example.com", "tos_uri": "https://www.example.com/tos",
                "redirect_uris": ["https://example.com/cb"], "grant_types": ["authorization_code", "refresh_token"],
                "response_types": ["code"], "token_endpoint_auth_method": "none", "application_type": "web",
            })
        );
        let check = |name: &str, value: Value, reason: Reason| {
            let mut said = base.clone();
            said[name] = value;
            assert_eq!(metadata(said).unwrap_err(), reason, "{name}");
        };
        check("client_uri", json!("http://example.com"), Reason::InvalidClientMetadata);
        check("client_uri", json!("https://u:p@example.com"), Reason::InvalidClientMetadata);
        check("client_uri", Value::Null, Reason::InvalidClientMetadata);
        check("token_endpoint_auth_method", json!("client_secret_post"), Reason::InvalidClientMetadata);
        check("grant_types", json!(["implicit"]), Reason::InvalidClientMetadata);
        check("response_types", json!(["token"]), Reason::InvalidClientMetadata);
        check("redirect_uris", json!([]), Reason::InvalidRedirectUri);
        check("redirect_uris", json!(vec!["https://example.com/cb"; 17]), Reason::InvalidRedirectUri);
        // A device without a browser needs none.
        let device = json!({ "client_uri": "https://example.com", "grant_types": [DEVICE_CODE, "refresh_token"] });
        assert!(metadata(device).unwrap().may(DEVICE_CODE));
    }
}
