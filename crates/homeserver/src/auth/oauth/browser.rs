//! Who sits in front of the browser: logins of the pages by cookie, the tokens that keep other sites from sending
//! their forms, and what users approved there.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ruma::{OwnedUserId, UserId};
use store::Read as _;

use super::{Expiring, Key};
use crate::App;
use crate::auth::tokens::{self, Hash};
use crate::error::Result;
use crate::rng::Rng;
use crate::schema::{USERS, User};

/// Logins of browsers.
pub struct Browsers {
    logins: Expiring<Hash, Person>,
    key: Key,
}

/// A user who logged in by a password. A new one ends what they were let do by the old one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    pub user_id: OwnedUserId,
    /// Of the password at that time.
    password: Hash,
}

impl Person {
    pub fn new(user_id: OwnedUserId, user: &User) -> Self {
        Self { user_id, password: password_of(user) }
    }

    /// Whether the account still is theirs, and open.
    pub fn is(&self, user: &User) -> bool {
        !user.deactivated && !user.locked && password_of(user) == self.password
    }
}

/// Which users may replace their cross-signing keys for a while.
pub struct Resets(Expiring<OwnedUserId, ()>);

/// A login of a browser is for a task, not for a day.
const LOGIN_LIFETIME_MS: u64 = 30 * 60 * 1000;
const MAX_LOGINS: usize = 4_096;
const RESET_LIFETIME_MS: u64 = 10 * 60 * 1000;
const MAX_RESETS: usize = 4_096;
const SECRET_LENGTH: usize = 43;

impl Browsers {
    pub(super) fn new(rng: &Rng) -> Self {
        Self { logins: Expiring::new(MAX_LOGINS), key: Key::new(rng) }
    }

    /// What a browser keeps in its cookie before anybody logs in.
    pub fn new_secret(&self, app: &App) -> String {
        app.rng.alphanumeric(SECRET_LENGTH)
    }

    /// What stands in the forms for the browser with this secret: nobody else can know it.
    pub fn form_token(&self, secret: &str) -> String {
        URL_SAFE_NO_PAD.encode(self.key.tag(secret))
    }

    pub fn is_form_token(&self, secret: &str, token: &str) -> bool {
        let tag = URL_SAFE_NO_PAD.decode(token).unwrap_or_default();
        is_secret(secret) && self.key.is_tag(secret, &tag)
    }

    /// Logs a user in. The secret is a new one: what the browser had before may have come from somebody else.
    pub fn log_in(&self, app: &App, user_id: OwnedUserId, user: &User) -> String {
        let (secret, now) = (self.new_secret(app), app.clock.now_ms());
        let ends = now.saturating_add(LOGIN_LIFETIME_MS);
        self.logins.push(now, ends, tokens::hash(&secret), Person::new(user_id, user));
        secret
    }

    /// Who is logged in with this secret, with their account as it is now.
    pub fn who(&self, app: &App, secret: &str) -> Result<Option<(OwnedUserId, User)>> {
        let Some(login) = self.logins.get(app.clock.now_ms(), &tokens::hash(secret)) else { return Ok(None) };
        let user = app.store.snapshot().get(&USERS, login.user_id.as_str())?;
        Ok(user.filter(|user| login.is(user)).map(|user| (login.user_id, user)))
    }

    pub fn log_out(&self, app: &App, secret: &str) {
        self.logins.take(app.clock.now_ms(), &tokens::hash(secret));
    }
}

fn is_secret(text: &str) -> bool {
    text.len() == SECRET_LENGTH && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

fn password_of(user: &User) -> Hash {
    tokens::hash(user.password_hash.as_deref().unwrap_or(""))
}

impl Default for Resets {
    fn default() -> Self {
        Self(Expiring::new(MAX_RESETS))
    }
}

impl Resets {
    pub fn approve(&self, app: &App, user_id: OwnedUserId) {
        let now = app.clock.now_ms();
        self.0.push(now, now.saturating_add(RESET_LIFETIME_MS), user_id, ());
    }

    pub fn is_approved(&self, app: &App, user_id: &UserId) -> bool {
        self.0.get(app.clock.now_ms(), &user_id.to_owned()).is_some()
    }

    /// It was made use of.
    pub fn done(&self, app: &App, user_id: &UserId) {
        self.0.take(app.clock.now_ms(), &user_id.to_owned());
    }
}
