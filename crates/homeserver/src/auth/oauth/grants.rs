//! What users granted to clients and the clients have not fetched yet: codes that came back by a redirect, and grants for
//! devices that have no browser. Both are good for minutes and for one session.

use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest::{SHA256, digest};
use store::{Read as _, Tx};

use super::browser::Person;
use super::scope::Scope;
use super::{Expiring, Failure, Key, Reason, Refused, clients};
use crate::App;
use crate::auth::devices;
use crate::auth::tokens::{self, Grant, Hash};
use crate::error::{Error, Result};
use crate::limits::network;
use crate::rng::Rng;
use crate::schema::{OAUTH_SESSIONS, OauthSession, TOKENS, USERS};

/// All that is granted and not fetched.
pub struct Grants {
    codes: Expiring<Hash, Code>,
    devices: Expiring<Hash, DeviceGrant>,
    /// From what a user types to the hash of the device code.
    user_codes: Expiring<String, Hash>,
    key: Key,
}

/// A code that a client gets by a redirect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Code {
    pub client_id: String,
    pub redirect_uri: String,
    /// The SHA-256 of what the client will show, in base64.
    pub challenge: String,
    pub by: Person,
    pub scope: Scope,
    /// It was shown once; it is remembered to notice when it is shown again.
    spent: bool,
}

/// A device that waits for its user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceGrant {
    pub client_id: String,
    pub scope: Scope,
    pub user_code: String,
    /// The network that it asked from.
    from: IpAddr,
    state: State,
    interval_ms: u64,
    next_poll_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Granted(Person),
    Denied,
}

/// A session that was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    pub grant: Grant,
    pub scope: String,
}

/// What a device and its user are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceCodes {
    pub device_code: String,
    pub user_code: String,
}

const CODE_LIFETIME_MS: u64 = 2 * 60 * 1000;
pub const DEVICE_LIFETIME_MS: u64 = 15 * 60 * 1000;
pub const POLL_INTERVAL_MS: u64 = 5 * 1000;
const MAX_CODES: usize = 4_096;
const MAX_DEVICES: usize = 4_096;
/// Of one network, so that none takes the places of all others.
const MAX_DEVICES_OF_ONE: usize = 64;
/// Letters that are not taken for others and make no words.
const USER_CODE_LETTERS: &[u8; 20] = b"BCDFGHJKLMNPQRSTVWXZ";
const USER_CODE_LENGTH: usize = 8;

impl Grants {
    pub(super) fn new(rng: &Rng) -> Self {
        Self {
            codes: Expiring::new(MAX_CODES),
            devices: Expiring::new(MAX_DEVICES),
            user_codes: Expiring::new(MAX_DEVICES),
            key: Key::new(rng),
        }
    }
}

// ---- codes -------------------------------------------------------------------------------------------------------

impl Code {
    pub fn new(client_id: String, redirect_uri: String, challenge: String, by: Person, scope: Scope) -> Self {
        Self { client_id, redirect_uri, challenge, by, scope, spent: false }
    }

    /// Makes it known; what the client gets to hold.
    pub fn issue(self, app: &App) -> Result<String, Refused> {
        let (code, now) = (format!("skc_{}", app.rng.alphanumeric(40)), app.clock.now_ms());
        let ends = now.saturating_add(CODE_LIFETIME_MS);
        if app.auth.oauth.grants.codes.add(now, ends, tokens::hash(&code), self) {
            Ok(code)
        } else {
            Err(Refused::new(Reason::TemporarilyUnavailable, "Too many log in at once"))
        }
    }
}

/// Whether this can be a challenge: the SHA-256 of something, in base64.
pub fn is_challenge(text: &str) -> bool {
    text.len() == 43 && URL_SAFE_NO_PAD.decode(text).is_ok_and(|bytes| bytes.len() == 32)
}

/// RFC 7636, section 4.1.
fn is_verifier(text: &str) -> bool {
    (43..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))
}

/// Opens the session that a code stands for. One that is shown again ends it: somebody else has the code, too.
pub async fn redeem(
    app: &App,
    code: &str,
    client_id: &str,
    redirect_uri: &str,
    verifier: &str,
) -> Result<Session, Failure> {
    let refused = || Refused::new(Reason::InvalidGrant, "This code is not valid, or not for this client");
    let (hash, now, grants) = (tokens::hash(code), app.clock.now_ms(), &app.auth.oauth.grants);
    if !is_verifier(verifier) {
        return Err(refused().into());
    }
    let shown = URL_SAFE_NO_PAD.encode(digest(&SHA256, verifier.as_bytes()));
    // Who does not know what belongs to the code neither uses it up nor ends anything.
    let taken = grants.codes.update(now, &hash, |code| {
        let fits = grants.key.same(&code.challenge, &shown)
            & grants.key.same(&code.client_id, client_id)
            & grants.key.same(&code.redirect_uri, redirect_uri);
        fits.then(|| (std::mem::replace(&mut code.spent, true), code.clone()))
    });
    let (spent, code) = taken.flatten().ok_or_else(refused)?;
    if spent {
        end(app, &code, &hash).await?;
        return Err(refused().into());
    }
    open(app, &code.by, client_id, &code.scope, hash).await
}

/// Ends the session that a code opened, unless the device has another one by now.
async fn end(app: &App, code: &Code, hash: &Hash) -> Result<()> {
    let (user_id, device_id) = (code.by.user_id.as_str(), code.scope.device_id.as_str());
    let end = |tx: &mut Tx| -> Result<()> {
        match tx.get(&OAUTH_SESSIONS, (user_id, device_id))? {
            Some(session) if session.code == *hash => devices::delete(tx, user_id, device_id),
            _ => Ok(()),
        }
    };
    app.store.transact(end).await.map(|_| ())
}

/// Opens a session for whoever granted it, unless they have another password by now, or logged out everywhere.
async fn open(app: &App, by: &Person, client_id: &str, scope: &Scope, code: Hash) -> Result<Session, Failure> {
    let user_id = &by.user_id;
    let open = |tx: &mut Tx| -> Result<Option<Session>> {
        let user = tx.get(&USERS, user_id.as_str())?.filter(|user| by.is(user));
        let Some(user) = user else { return Ok(None) };
        if !clients::used(app, tx, client_id)? {
            return Ok(None);
        }
        let device_id = devices::log_in(app, tx, user_id.as_str(), Some(&scope.device_id), None)?;
        let grant = tokens::open(app, tx, user_id.as_str(), &device_id, true)?;
        let (client_id, scope) = (client_id.to_owned(), scope.clone().for_user(user.admin).granted);
        let session = OauthSession { client_id, scope: scope.clone(), opened_ts: app.clock.now_ms(), code };
        tx.put(&OAUTH_SESSIONS, (user_id.as_str(), &device_id), &session);
        Ok(Some(Session { grant, scope }))
    };
    let opened = match app.store.transact(open).await {
        Ok(opened) => opened.value,
        // The device's name is taken, by a key say.
        Err(error) if error.status().is_client_error() => {
            return Err(Refused::new(Reason::InvalidGrant, error.message().to_owned()).into());
        }
        Err(error) => return Err(error.into()),
    };
    Ok(opened.ok_or_else(|| Refused::new(Reason::InvalidGrant, "The account or the client is gone"))?)
}

// ---- devices without a browser -----------------------------------------------------------------------------------

/// A device asks for its user.
pub fn ask(app: &App, client_id: &str, scope: Scope, ip: IpAddr) -> Result<DeviceCodes, Refused> {
    let (grants, now, from) = (&app.auth.oauth.grants, app.clock.now_ms(), network(ip));
    let full = || Refused::new(Reason::TemporarilyUnavailable, "Too many devices wait for their users");
    if grants.devices.count(now, |grant| grant.from == from) >= MAX_DEVICES_OF_ONE {
        return Err(full());
    }
    let ends = now.saturating_add(DEVICE_LIFETIME_MS);
    let device_code = format!("skd_{}", app.rng.alphanumeric(40));
    let hash = tokens::hash(&device_code);
    let user_code = loop {
        let user_code = user_code(&app.rng);
        if grants.user_codes.get(now, &user_code).is_none() {
            break user_code;
        }
    };
    let grant = DeviceGrant {
        client_id: client_id.to_owned(),
        scope,
        user_code: user_code.clone(),
        from,
        state: State::Waiting,
        interval_ms: POLL_INTERVAL_MS,
        next_poll_ms: now,
    };
    if !grants.devices.add(now, ends, hash, grant) || !grants.user_codes.add(now, ends, user_code.clone(), hash) {
        return Err(full());
    }
    Ok(DeviceCodes { device_code, user_code: shown(&user_code) })
}

fn user_code(rng: &Rng) -> String {
    let letter = || USER_CODE_LETTERS.get(rng.below(USER_CODE_LETTERS.len() as u64) as usize).copied().unwrap_or(b'B');
    (0..USER_CODE_LENGTH).map(|_| char::from(letter())).collect()
}

/// In two halves, for people.
fn shown(user_code: &str) -> String {
    let (one, two) = user_code.split_at_checked(USER_CODE_LENGTH / 2).unwrap_or((user_code, ""));
    format!("{one}-{two}")
}

/// What somebody typed, as it was made.
fn typed(text: &str) -> String {
    text.chars()
        .filter(char::is_ascii_alphanumeric)
        .take(2 * USER_CODE_LENGTH)
        .map(|c| c.to_ascii_uppercase())
        .collect()
}

/// The device that shows this code and still waits.
pub fn waiting(app: &App, user_code: &str) -> Option<DeviceGrant> {
    let (grants, now) = (&app.auth.oauth.grants, app.clock.now_ms());
    let hash = grants.user_codes.get(now, &typed(user_code))?;
    grants.devices.get(now, &hash).filter(|grant| grant.state == State::Waiting)
}

/// A user lets a device in, or not. `false`: nothing waits under this code any more.
pub fn answer(app: &App, user_code: &str, granted_by: Option<Person>) -> bool {
    let (grants, now) = (&app.auth.oauth.grants, app.clock.now_ms());
    let Some(hash) = grants.user_codes.take(now, &typed(user_code)) else { return false };
    let decide = |grant: &mut DeviceGrant| {
        let waits = grant.state == State::Waiting;
        if waits {
            grant.state = granted_by.map_or(State::Denied, State::Granted);
        }
        waits
    };
    grants.devices.update(now, &hash, decide).unwrap_or(false)
}

/// A device asks whether its user has answered.
pub async fn poll(app: &App, device_code: &str, client_id: &str) -> Result<Session, Failure> {
    let (grants, now, hash) = (&app.auth.oauth.grants, app.clock.now_ms(), tokens::hash(device_code));
    let look = |grant: &mut DeviceGrant| {
        if grant.client_id != client_id {
            return Err(Refused::new(Reason::InvalidGrant, "This code is for another client"));
        }
        match &grant.state {
            State::Granted(by) => return Ok((by.clone(), grant.scope.clone())),
            State::Denied => return Err(Refused::new(Reason::AccessDenied, "The user did not want this")),
            State::Waiting => {}
        }
        let early = now < grant.next_poll_ms;
        if early {
            grant.interval_ms = grant.interval_ms.saturating_add(POLL_INTERVAL_MS);
        }
        grant.next_poll_ms = now.saturating_add(grant.interval_ms);
        Err(match early {
            true => Refused::new(Reason::SlowDown, "Too soon; wait five seconds more each time"),
            false => Refused::new(Reason::AuthorizationPending, "The user has not answered yet"),
        })
    };
    let gone = || Refused::new(Reason::ExpiredToken, "This code is unknown, used, or has ended");
    let (by, scope) = grants.devices.update(now, &hash, look).ok_or_else(gone)??;
    // Of two requests at once one takes it.
    grants.devices.take(now, &hash).ok_or_else(gone)?;
    open(app, &by, client_id, &scope, hash).await
}

/// Ends the session that a token belongs to, if it is one of OAuth. Tokens that nobody knows are void already.
pub async fn revoke(app: &App, token: &str) -> Result<()> {
    let hash = tokens::hash(token);
    let revoke = |tx: &mut Tx| -> Result<()> {
        let Some(token) = tx.get(&TOKENS, &hash)? else { return Ok(()) };
        if tx.get(&OAUTH_SESSIONS, (&token.user_id, &token.device_id))?.is_some() {
            devices::delete(tx, &token.user_id, &token.device_id)?;
        }
        Ok(())
    };
    app.store.transact(revoke).await.map(|_| ())
}

/// A new pair for a refresh token of this client.
pub async fn refresh(app: &App, refresh_token: &str, client_id: &str) -> Result<Session, Failure> {
    let refused = || Refused::new(Reason::InvalidGrant, "This refresh token is not valid, or not for this client");
    let grant = match tokens::refresh(app, refresh_token, tokens::Opened::ByOauth(client_id)).await {
        Ok(grant) => grant,
        // The session lives on: clients try again after this.
        Err(error) if error.locks_out() => {
            return Err(Refused::new(Reason::TemporarilyUnavailable, "The account is locked").into());
        }
        Err(error) if error.status().is_client_error() => return Err(refused().into()),
        Err(error) => return Err(error.into()),
    };
    let found = session_of(app, &grant.access_token)?;
    Ok(Session { grant, scope: found.ok_or_else(refused)?.scope })
}

fn session_of(app: &App, access_token: &str) -> Result<Option<OauthSession>> {
    let read = app.store.snapshot();
    let Some(token) = read.get(&TOKENS, &tokens::hash(access_token))? else { return Ok(None) };
    read.get(&OAUTH_SESSIONS, (&token.user_id, &token.device_id)).map_err(Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_code_is_read_however_it_is_typed() {
        let code = user_code(&Rng::seeded(3));
        assert_eq!(code.len(), USER_CODE_LENGTH);
        assert!(code.bytes().all(|letter| USER_CODE_LETTERS.contains(&letter)), "{code}");
        for text in [shown(&code), shown(&code).to_lowercase(), format!(" {code} "), code.replace('-', " ")] {
            assert_eq!(typed(&text), code);
        }
    }

    #[test]
    fn a_challenge_is_a_hash_and_a_verifier_is_long() {
        let challenge = URL_SAFE_NO_PAD.encode([7; 32]);
        assert!(is_challenge(&challenge));
        for wrong in ["", "abc", &challenge[1..], &format!("{challenge}="), &"!".repeat(43)] {
            assert!(!is_challenge(wrong), "{wrong}");
        }
        assert!(is_verifier(&"a~".repeat(30)));
        assert!(!is_verifier(&"a".repeat(42)) && !is_verifier(&"a".repeat(129)) && !is_verifier(&"a b".repeat(20)));
    }
}
