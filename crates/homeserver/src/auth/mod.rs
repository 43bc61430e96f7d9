//! Who somebody is: tokens, passwords, devices, interactive authentication. The HTTP edge calls `authenticate`.

pub mod appservice;
pub mod devices;
pub mod lockout;
pub mod nonces;
pub mod oauth;
pub mod password;
pub mod requester;
mod seen;
#[cfg(test)]
mod tests;
pub mod tokens;
pub mod uia;

use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ruma::UserId;
use store::Read;

pub use nonces::Nonces;
pub use requester::{Access, Credentials, Requester, Scheme};

use crate::App;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::rng::Rng;
use crate::schema::{DEVICES, OAUTH_SESSIONS, TOKENS, Token, TokenKind, USERS, User};

/// What authentication keeps in memory.
pub struct Auth {
    pub passwords: password::Passwords,
    pub interactive: uia::Sessions,
    pub nonces: Nonces,
    pub oauth: oauth::Oauth,
    pub lockout: lockout::Lockout,
    seen: seen::LastSeen,
}

impl Auth {
    pub fn new(config: &Config, rng: Rng) -> Self {
        Self {
            oauth: oauth::Oauth::new(config, &rng),
            passwords: password::Passwords::new(config, rng),
            interactive: uia::Sessions::default(),
            nonces: Nonces::default(),
            lockout: lockout::Lockout::new(&config.auth),
            seen: seen::LastSeen::default(),
        }
    }
}

/// Looks a token up: two rows, no lock. Only the first use after a refresh writes something and waits for it.
pub async fn authenticate(app: &App, credentials: &Credentials, ip: IpAddr) -> Result<Requester> {
    if let Some(service) = app.appservices.by_token(&credentials.token) {
        return appservice::speaker(app, service, credentials);
    }
    let hash = tokens::hash(&credentials.token);
    let (token, user) = {
        let read = app.store.snapshot();
        let token = read
            .get(&TOKENS, &hash)?
            .filter(|token| matches!(token.kind, TokenKind::Access | TokenKind::Acting { .. }));
        let token = token.ok_or_else(Error::unknown_token)?;
        let user = read.get(&USERS, &token.user_id)?.filter(|user| !user.deactivated && !token.is_void(user));
        let user = user.ok_or_else(Error::unknown_token)?;
        if token.ended(app.clock.now_ms()) {
            let lives = tokens::session_lives(&read, &token)?;
            return Err(if lives {
                Error::soft_logout("The access token has expired")
            } else {
                Error::unknown_token()
            });
        }
        if let TokenKind::Acting { by: Some(by) } = &token.kind {
            // With the office goes what it allowed.
            let by = read.get(&USERS, by)?.filter(|by| by.admin && !by.deactivated && !by.locked);
            by.ok_or_else(Error::unknown_token)?;
        }
        let admin = user.admin && may_administer(&read, &token)?;
        app.auth.seen.note(app, &read, &hash, &token, ip);
        (token, User { admin, ..user })
    };
    if token.unconfirmed {
        tokens::confirm(app, &hash).await?;
    }
    Ok(Requester {
        user_id: UserId::parse(token.user_id).map_err(Error::internal)?,
        // An administrator who acts for a user has no device.
        device_id: Some(token.device_id).filter(|device_id| device_id != tokens::NO_DEVICE).map(Into::into),
        token_id: Arc::from(URL_SAFE_NO_PAD.encode(hash)),
        guest: user.guest,
        locked: user.locked,
        suspended: user.suspended,
        admin: user.admin,
        appservice: None,
        rate_limited: true,
    })
}

/// Whether a session of an administrator is one to administer with: a client of OAuth has to have been given that, and an
/// application service never is.
fn may_administer(read: &impl Read, token: &Token) -> Result<bool> {
    let device = (token.user_id.as_str(), token.device_id.as_str());
    if read.get(&DEVICES, device)?.is_some_and(|device| device.by_service) {
        return Ok(false);
    }
    let session = read.get(&OAUTH_SESSIONS, device)?;
    Ok(session.is_none_or(|session| oauth::scope::may_administer(&session.scope)))
}
