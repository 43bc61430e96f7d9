//! Access, refresh and login tokens: how they are made, given out, used up and taken back.
//!
//! A device is one session: it has the tokens of its last login and of the refreshes since. Only hashes are stored, so
//! that a stolen disk does not log anybody in. Who may get a token is decided elsewhere.

use std::time::Duration;

use ring::digest::{SHA256, digest};
use ruma::UserId;
use store::{Read, Tx};

use crate::App;
use crate::auth::devices;
use crate::error::{Error, Result};
use crate::schema::{DEVICE_TOKENS, OAUTH_SESSIONS, TOKENS, Token, TokenKind, USERS, User};

pub type Hash = [u8; 32];

/// What a client gets to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    pub access_token: String,
    pub refresh_token: Option<String>,
    pub expires_in: Option<Duration>,
}

/// Pairs that were given out for one refresh token before any of them was used. A client that loses answers asks
/// again; one that asks more often than this is broken, and its older answers are worth nothing.
const MAX_SIBLINGS: usize = 16;
/// Login tokens of one user at a time, next to the newest; likewise OpenID tokens, tokens to act for the user, and such
/// that the user has of others.
const MAX_APART: usize = 64;
/// Tokens of a device that were replaced and have not been forgotten yet. More than a client has use for, and few enough
/// to be dealt with in one commit.
const MAX_REPLACED: usize = 64;
/// Ended access tokens stay known for this long, so that the client learns that its session lives.
const KEEP_ENDED_MS: u64 = 24 * 60 * 60 * 1000;

pub fn hash(token: &str) -> Hash {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    hash
}

/// A new session of a device; whatever tokens it had are void.
pub fn open(app: &App, tx: &mut Tx, user_id: &str, device_id: &str, refreshable: bool) -> Result<Grant> {
    close(tx, user_id, device_id)?;
    issue(app, tx, user_id, device_id, refreshable, false)
}

/// Ends the session of a device.
pub fn close(tx: &mut Tx, user_id: &str, device_id: &str) -> Result<()> {
    if tx.get(&OAUTH_SESSIONS, (user_id, device_id))?.is_some() {
        tx.delete(&OAUTH_SESSIONS, (user_id, device_id));
    }
    for (_, _, hash) in of_device(tx, user_id, device_id)? {
        drop_token(tx, user_id, device_id, &hash);
    }
    Ok(())
}

/// Keeps the tokens of a device while all others become void.
pub fn carry_over(tx: &mut Tx, user_id: &str, device_id: &str, epoch: u64) -> Result<()> {
    for (_, _, hash) in of_device(tx, user_id, device_id)? {
        if let Some(token) = tx.get(&TOKENS, &hash)? {
            tx.put(&TOKENS, &hash, &Token { epoch, ..token });
        }
    }
    Ok(())
}

/// A token that logs its user in once, on another device.
pub fn issue_login(app: &App, tx: &mut Tx, user_id: &str, lifetime: Duration) -> Result<String> {
    issue_apart(app, tx, user_id, TokenKind::Login, Some(lifetime))
}

/// How long an OpenID token lasts.
pub const OPENID_LIFETIME: Duration = Duration::from_secs(60 * 60);

/// A token that says who its user is.
pub fn issue_openid(app: &App, tx: &mut Tx, user_id: &str) -> Result<String> {
    issue_apart(app, tx, user_id, TokenKind::OpenId, Some(OPENID_LIFETIME))
}

/// An access token without a device, for an administrator who acts for a user; none for one at the machine. It ends with
/// the sessions of either of the two.
pub fn issue_acting(app: &App, tx: &mut Tx, user_id: &str, by: Option<&UserId>, lifetime: Duration) -> Result<String> {
    let kind = TokenKind::Acting { by: by.map(ToString::to_string) };
    let secret = issue_apart(app, tx, user_id, kind, Some(lifetime))?;
    if let Some(by) = by {
        make_room_apart(app, tx, by.as_str(), |token| token.user_id != by.as_str())?;
        tx.put(&DEVICE_TOKENS, (by.as_str(), NO_DEVICE, &hash(&secret)), &());
    }
    Ok(secret)
}

/// A token that belongs to no device. Those that have ended go, and the oldest if there are too many of this kind.
fn issue_apart(app: &App, tx: &mut Tx, user_id: &str, kind: TokenKind, lifetime: Option<Duration>) -> Result<String> {
    let same = |token: &Token| {
        token.user_id == user_id && std::mem::discriminant(&token.kind) == std::mem::discriminant(&kind)
    };
    make_room_apart(app, tx, user_id, same)?;
    let prefix = match kind {
        TokenKind::Login => "skl",
        TokenKind::OpenId => "sko",
        TokenKind::Access | TokenKind::Refresh | TokenKind::Spent | TokenKind::Acting { .. } => "ska",
    };
    let secret = new_secret(app, prefix);
    let token = Token {
        kind,
        user_id: user_id.to_owned(),
        device_id: NO_DEVICE.to_owned(),
        expires_ts: lifetime.map(|lifetime| app.clock.now_ms().saturating_add(millis(lifetime))),
        partner: None,
        unconfirmed: false,
        epoch: devices::epoch(tx, user_id)?,
    };
    put(tx, &hash(&secret), &token);
    Ok(secret)
}

/// Drops tokens without a device that have ended, and of those that are counted the ones that end first, if there are too
/// many.
fn make_room_apart(app: &App, tx: &mut Tx, user_id: &str, counts: impl Fn(&Token) -> bool) -> Result<()> {
    let now = app.clock.now_ms();
    let mut live = Vec::new();
    for (_, _, hash) in of_device(tx, user_id, NO_DEVICE)? {
        match tx.get(&TOKENS, &hash)?.filter(|token| !token.ended(now)) {
            Some(token) if counts(&token) => live.push((token.expires_ts.unwrap_or(u64::MAX), hash)),
            Some(_) => {}
            None => drop_token(tx, user_id, NO_DEVICE, &hash),
        }
    }
    live.sort_unstable();
    for (_, hash) in live.iter().rev().skip(MAX_APART) {
        drop_token(tx, user_id, NO_DEVICE, hash);
    }
    Ok(())
}

/// The user a login token stands for. It is used up, whatever comes of it.
pub fn take_login(app: &App, tx: &mut Tx, secret: &str) -> Result<Option<String>> {
    let hash = hash(secret);
    let Some(token) = tx.get(&TOKENS, &hash)?.filter(|token| token.kind == TokenKind::Login) else { return Ok(None) };
    drop_token(tx, &token.user_id, &token.device_id, &hash);
    Ok(Some(token.user_id.clone()).filter(|_| !token.ended(app.clock.now_ms())))
}

/// How a session was opened. It stays with that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened<'a> {
    ByLogin,
    /// By a client of this ID.
    ByOauth(&'a str),
}

/// A new pair for a refresh token. The old one stays good until one of the new pair is used: an answer may be lost.
/// One that was good once ends an OAuth session: somebody else has the newer one.
pub async fn refresh(app: &App, refresh_token: &str, opened: Opened<'_>) -> Result<Grant> {
    let hash = hash(refresh_token);
    let refreshed = app
        .store
        .transact(|tx| {
            let token = tx.get(&TOKENS, &hash)?.ok_or_else(Error::unknown_token)?;
            let session = tx.get(&OAUTH_SESSIONS, (&token.user_id, &token.device_id))?;
            let was = session.as_ref().map_or(Opened::ByLogin, |session| Opened::ByOauth(&session.client_id));
            match token.kind {
                TokenKind::Spent => {
                    devices::delete(tx, &token.user_id, &token.device_id)?;
                    return Ok(None);
                }
                TokenKind::Refresh if was == opened => {}
                _ => return Err(Error::unknown_token()),
            }
            let user = tx.get(&USERS, &token.user_id)?.filter(|user| !user.deactivated && !token.is_void(user));
            if user.ok_or_else(Error::unknown_token)?.locked {
                return Err(Error::user_locked());
            }
            if token.unconfirmed {
                confirm_in(app, tx, &hash, &token)?;
            }
            make_room(app, tx, &hash, &token)?;
            issue(app, tx, &token.user_id, &token.device_id, true, true).map(Some)
        })
        .await?;
    refreshed.value.ok_or_else(Error::unknown_token)
}

/// One of a new pair is used for the first time: the refresh tokens before it are void now.
pub async fn confirm(app: &App, hash: &Hash) -> Result<()> {
    let confirm = |tx: &mut Tx| {
        let token = tx.get(&TOKENS, hash)?.ok_or_else(Error::unknown_token)?;
        if token.unconfirmed { confirm_in(app, tx, hash, &token) } else { Ok(()) }
    };
    app.store.transact(confirm).await.map(|_| ())
}

/// Whether the session that an ended access token belonged to goes on.
pub fn session_lives(read: &impl Read, token: &Token) -> Result<bool> {
    let span = DEVICE_TOKENS.prefix((token.user_id.as_str(), token.device_id.as_str()));
    for row in read.scan(&DEVICE_TOKENS, span) {
        let ((_, _, hash), ()) = row?;
        if read.get(&TOKENS, &hash)?.is_some_and(|token| token.kind == TokenKind::Refresh) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Login and OpenID tokens belong to no device.
pub const NO_DEVICE: &str = "";

impl Token {
    /// Whether it is of a time before all sessions of its user were ended.
    pub fn is_void(&self, user: &User) -> bool {
        self.epoch != user.epoch
    }

    pub fn ended(&self, now_ms: u64) -> bool {
        self.expires_ts.is_some_and(|expires_ts| expires_ts <= now_ms)
    }
}

fn issue(
    app: &App,
    tx: &mut Tx,
    user_id: &str,
    device_id: &str,
    refreshable: bool,
    unconfirmed: bool,
) -> Result<Grant> {
    let lifetime = app.config.auth.access_token_lifetime.get();
    let access_token = new_secret(app, "ska");
    let refresh_token = refreshable.then(|| new_secret(app, "skr"));
    let access = Token {
        kind: TokenKind::Access,
        user_id: user_id.to_owned(),
        device_id: device_id.to_owned(),
        expires_ts: refreshable.then(|| app.clock.now_ms().saturating_add(millis(lifetime))),
        partner: refresh_token.as_deref().map(hash),
        unconfirmed,
        epoch: devices::epoch(tx, user_id)?,
    };
    if let Some(refresh_token) = &refresh_token {
        let partner = Some(hash(&access_token));
        put(tx, &hash(refresh_token), &Token { kind: TokenKind::Refresh, expires_ts: None, partner, ..access.clone() });
    }
    put(tx, &hash(&access_token), &access);
    Ok(Grant { access_token, refresh_token, expires_in: refreshable.then_some(lifetime) })
}

/// Takes back the refresh tokens that this pair replaces. Access tokens of before run out by themselves: requests
/// that are under way with them must not look like the end of the session.
fn confirm_in(app: &App, tx: &mut Tx, hash: &Hash, token: &Token) -> Result<()> {
    tx.put(&TOKENS, hash, &Token { unconfirmed: false, ..token.clone() });
    let Some(partner) = token.partner else { return Ok(()) };
    let Some(other) = tx.get(&TOKENS, &partner)? else {
        // Another pair for the same refresh token was used first, and replaced what this one would have.
        return Ok(());
    };
    tx.put(&TOKENS, &partner, &Token { unconfirmed: false, ..other });
    let by_oauth = tx.get(&OAUTH_SESSIONS, (&token.user_id, &token.device_id))?.is_some();
    for (user_id, device_id, other) in of_device(tx, &token.user_id, &token.device_id)? {
        if other == *hash || partner == other {
            continue;
        }
        match tx.get(&TOKENS, &other)? {
            Some(old) if old.kind == TokenKind::Refresh && by_oauth && !old.unconfirmed => {
                let expires_ts = Some(app.clock.now_ms());
                let spent = Token { kind: TokenKind::Spent, expires_ts, partner: None, unconfirmed: false, ..old };
                tx.put(&TOKENS, &other, &spent);
            }
            Some(old) if old.kind != TokenKind::Refresh => {}
            _ => drop_token(tx, &user_id, &device_id, &other),
        }
    }
    Ok(())
}

/// Drops what ended long ago, what was replaced if there is too much of it, and pairs that nobody used likewise.
fn make_room(app: &App, tx: &mut Tx, hash: &Hash, token: &Token) -> Result<()> {
    let ended_before = app.clock.now_ms().saturating_sub(KEEP_ENDED_MS);
    let (mut siblings, mut replaced) = (Vec::new(), Vec::new());
    for (user_id, device_id, other) in of_device(tx, &token.user_id, &token.device_id)? {
        if other == *hash || token.partner == Some(other) {
            continue;
        }
        match tx.get(&TOKENS, &other)? {
            Some(found) if found.unconfirmed => siblings.push(other),
            Some(found) if !found.ended(ended_before) => replaced.push((found.expires_ts.unwrap_or(u64::MAX), other)),
            _ => drop_token(tx, &user_id, &device_id, &other),
        }
    }
    replaced.sort_unstable();
    for (_, old) in replaced.iter().rev().skip(MAX_REPLACED) {
        drop_token(tx, &token.user_id, &token.device_id, old);
    }
    if siblings.len() >= 2 * MAX_SIBLINGS {
        for sibling in siblings {
            drop_token(tx, &token.user_id, &token.device_id, &sibling);
        }
    }
    Ok(())
}

fn of_device(tx: &mut Tx, user_id: &str, device_id: &str) -> Result<Vec<(String, String, Hash)>> {
    let rows = tx.scan_guarded(&DEVICE_TOKENS, DEVICE_TOKENS.prefix((user_id, device_id)))?;
    Ok(rows.into_iter().map(|(key, ())| key).collect())
}

fn put(tx: &mut Tx, hash: &Hash, token: &Token) {
    tx.put(&TOKENS, hash, token);
    tx.put(&DEVICE_TOKENS, (&token.user_id, &token.device_id, hash), &());
}

fn drop_token(tx: &mut Tx, user_id: &str, device_id: &str, hash: &Hash) {
    tx.delete(&TOKENS, hash);
    tx.delete(&DEVICE_TOKENS, (user_id, device_id, hash));
}

/// 238 bits. The prefix lets scanners of leaked secrets recognise it.
fn new_secret(app: &App, kind: &str) -> String {
    format!("{kind}_{}", app.rng.alphanumeric(40))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
