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

/// A user who logged in by a password. A new one ends what they were let do by the old one, and so does logging out
/// everywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    pub user_id: OwnedUserId,
    /// Of what they could log in with at that time.
    mark: Hash,
}

impl Person {
    pub fn new(user_id: OwnedUserId, user: &User) -> Self {
        Self { user_id, mark: mark_of(user) }
    }

    /// Whether the account still is theirs, and open.
    pub fn is(&self, user: &User) -> bool {
        !user.deactivated && !user.locked && mark_of(user) == self.mark
    }
}

/// Which devices want to replace the cross-signing keys of their users, and which may, for a while.
pub struct Resets(Expiring<OwnedUserId, Vec<Reset>>);

/// What a device asks for.
#[derive(Clone, Debug)]
pub struct Reset {
    pub device_id: String,
    /// Of the request, with the new keys in it.
    pub wanted: Hash,
    approved_by: Option<Person>,
    ends_ms: u64,
}

/// A login of a browser is for a task, not for a day.
const LOGIN_LIFETIME_MS: u64 = 30 * 60 * 1000;
const MAX_LOGINS: usize = 4_096;
const RESET_LIFETIME_MS: u64 = 10 * 60 * 1000;
const MAX_RESETS: usize = 4_096;
/// More devices than one who ask at once are too many.
const MAX_ASKING: usize = 4;
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

/// Whether this can be what we gave a browser to keep.
pub fn is_secret(text: &str) -> bool {
    text.len() == SECRET_LENGTH && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// What changes with the password, and when all sessions are ended.
fn mark_of(user: &User) -> Hash {
    tokens::hash(&format!("{} {}", user.epoch, user.password_hash.as_deref().unwrap_or("")))
}

impl Default for Resets {
    fn default() -> Self {
        Self(Expiring::new(MAX_RESETS))
    }
}

impl Resets {
    /// A device asks. What it asked for before counts no longer.
    pub fn ask(&self, app: &App, user_id: &UserId, device_id: &str, wanted: Hash) {
        let (now, mut asking) = (app.clock.now_ms(), self.asking(app, user_id));
        asking.retain(|reset| reset.device_id != device_id);
        if asking.len() < MAX_ASKING {
            let (device_id, ends_ms) = (device_id.to_owned(), now.saturating_add(RESET_LIFETIME_MS));
            asking.push(Reset { device_id, wanted, approved_by: None, ends_ms });
            self.0.push(now, ends_ms, user_id.to_owned(), asking);
        }
    }

    /// What is asked for now.
    pub fn asking(&self, app: &App, user_id: &UserId) -> Vec<Reset> {
        let now = app.clock.now_ms();
        let mut asking = self.0.get(now, &user_id.to_owned()).unwrap_or_default();
        asking.retain(|reset| reset.ends_ms > now);
        asking
    }

    /// The user allows this, and nothing else. `false`: nobody asks for it any more.
    pub fn approve(&self, app: &App, user: &Person, wanted: Hash) -> bool {
        let (now, mut asking) = (app.clock.now_ms(), self.asking(app, &user.user_id));
        asking.retain(|reset| reset.wanted == wanted);
        let Some(reset) = asking.first_mut() else { return false };
        (reset.approved_by, reset.ends_ms) = (Some(user.clone()), now.saturating_add(RESET_LIFETIME_MS));
        self.0.push(now, reset.ends_ms, user.user_id.clone(), asking);
        true
    }

    pub fn is_approved(&self, app: &App, user_id: &UserId, device_id: &str, wanted: Hash) -> Result<bool> {
        let asking = self.asking(app, user_id);
        let is = |reset: &&Reset| reset.device_id == device_id && reset.wanted == wanted;
        let Some(by) = asking.iter().find(is).and_then(|reset| reset.approved_by.as_ref()) else { return Ok(false) };
        let user = app.store.snapshot().get(&USERS, user_id.as_str())?;
        Ok(user.is_some_and(|user| by.is(&user)))
    }

    /// It was made use of.
    pub fn done(&self, app: &App, user_id: &UserId) {
        self.0.take(app.clock.now_ms(), &user_id.to_owned());
    }
}
