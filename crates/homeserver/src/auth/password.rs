//! Passwords: hashing and checking them, a few at a time.
//!
//! Argon2id wants memory. Each hash in progress holds a permit, and permits are a share of the memory budget; who
//! comes when too many wait already is told to come back later.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use argon2::password_hash::{PasswordHash, PasswordHasher as _, PasswordVerifier as _, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use ruma::{OwnedUserId, UserId};
use store::Read;
use tokio::sync::{OnceCell, Semaphore};

use crate::App;
use crate::blocking;
use crate::config::Config;
use crate::error::{Error, ErrorCode, Result};
use crate::rng::Rng;
use crate::schema::USERS;

pub struct Passwords {
    argon2: Argon2<'static>,
    permits: Arc<Semaphore>,
    waiting: AtomicUsize,
    min_length: usize,
    /// Checked in place of the hash of an account that does not exist, so that both take the same time.
    decoy: OnceCell<String>,
    rng: Rng,
}

/// Longer ones only cost time.
const MAX_BYTES: usize = 512;
const MAX_WAITING: usize = 256;

impl Passwords {
    pub fn new(config: &Config, rng: Rng) -> Self {
        let settings = &config.auth;
        let memory_kib = u32::try_from(settings.password_memory.as_usize() / 1024).unwrap_or(u32::MAX);
        // Too little of either is no setting at all.
        let params = Params::new(memory_kib, settings.password_passes, 1, None).unwrap_or_default();
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let share = config.memory_budget.as_usize() / 8;
        let permits = (share / settings.password_memory.as_usize().max(1)).clamp(1, 64);
        Self {
            argon2,
            permits: Arc::new(Semaphore::new(permits)),
            waiting: AtomicUsize::new(0),
            min_length: settings.password_min_length,
            decoy: OnceCell::new(),
            rng,
        }
    }

    /// Whether a password may be chosen.
    pub fn acceptable(&self, password: &str) -> Result<()> {
        if password.len() > MAX_BYTES {
            return Err(Error::invalid_param(format!("A password has at most {MAX_BYTES} bytes")));
        }
        if password.chars().count() < self.min_length {
            return Err(Error::bad_request(
                ErrorCode::WeakPassword,
                format!("A password has at least {} characters", self.min_length),
            ));
        }
        Ok(())
    }

    /// What to store of a password.
    pub async fn hash(&self, password: &str) -> Result<String> {
        let (argon2, rng, password) = (self.argon2.clone(), self.rng.clone(), password.to_owned());
        self.run(move || hash(&argon2, &rng, &password)).await?
    }

    /// Whether this is the password that was hashed. Without a hash it takes as long, and never is.
    pub async fn verify(&self, hash: Option<&str>, password: &str) -> Result<bool> {
        let exists = hash.is_some() && password.len() <= MAX_BYTES;
        let decoy = self.decoy.get_or_try_init(|| self.hash("decoy")).await?;
        let hash = hash.unwrap_or(decoy).to_owned();
        let password = if password.len() <= MAX_BYTES { password.to_owned() } else { String::new() };
        let argon2 = self.argon2.clone();
        let fits = self.run(move || verify(&argon2, &hash, &password)).await??;
        Ok(exists && fits)
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let _waiting = Waiting::new(&self.waiting)?;
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(Error::internal)?;
        let work = move || {
            let done = work();
            drop(permit);
            done
        };
        blocking::run(work).await
    }
}

/// That a password was right when it was checked. Checking takes long, so what it allows asks again, in its transaction,
/// whether it still is: whoever sets a new one meanwhile shuts out who shows the old one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    user_id: OwnedUserId,
    hash: String,
}

impl Proof {
    pub fn user_id(&self) -> &OwnedUserId {
        &self.user_id
    }

    /// An error if the account has another password by now.
    pub fn holds(&self, read: &impl Read) -> Result<()> {
        let user = read.get(&USERS, self.user_id.as_str())?;
        if user.is_some_and(|user| user.password_hash.as_ref() == Some(&self.hash)) { Ok(()) } else { Err(wrong()) }
    }
}

/// Checks the password of a user, who need not exist: nobody sees that in the time it takes.
pub async fn prove(app: &App, user_id: Option<&UserId>, password: &str) -> Result<Option<Proof>> {
    let user = user_id.map(|user_id| app.store.snapshot().get(&USERS, user_id.as_str())).transpose()?.flatten();
    let hash = user.and_then(|user| user.password_hash);
    let fits = app.auth.passwords.verify(hash.as_deref(), password).await?;
    let known = user_id.map(ToOwned::to_owned).zip(hash).filter(|_| fits);
    Ok(known.map(|(user_id, hash)| Proof { user_id, hash }))
}

/// What is said whether the name or the password is wrong.
pub fn wrong() -> Error {
    Error::forbidden("Wrong user name or password")
}

fn hash(argon2: &Argon2<'_>, rng: &Rng, password: &str) -> Result<String> {
    let salt = SaltString::encode_b64(&rng.bytes::<16>()).map_err(Error::internal)?;
    Ok(argon2.hash_password(password.as_bytes(), &salt).map_err(Error::internal)?.to_string())
}

fn verify(argon2: &Argon2<'_>, hash: &str, password: &str) -> Result<bool> {
    let hash = PasswordHash::new(hash).map_err(|cause| Error::internal(format!("a stored password hash: {cause}")))?;
    match argon2.verify_password(password.as_bytes(), &hash) {
        Ok(()) => Ok(true),
        Err(argon2::password_hash::Error::Password) => Ok(false),
        Err(cause) => Err(Error::internal(format!("a stored password hash: {cause}"))),
    }
}

/// One who waits for a permit, counted until it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Result<Self> {
        let waiting = Self(count);
        if count.fetch_add(1, Ordering::Relaxed) < MAX_WAITING {
            Ok(waiting)
        } else {
            Err(Error::limit_exceeded(Duration::from_secs(2)))
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use http::Method;
    use serde_json::json;

    use super::*;
    use crate::config::Size;
    use crate::http::Body;
    use crate::testing::{PASSWORD, Server};
    use crate::users::accounts;

    fn passwords() -> Passwords {
        let mut config = Config::new(ruma::owned_server_name!("hs.test"));
        config.auth.password_memory = Size::kib(64);
        config.auth.password_passes = 1;
        Passwords::new(&config, Rng::seeded(1))
    }

    #[tokio::test]
    async fn only_the_password_fits_its_hash() {
        let passwords = passwords();
        let hash = passwords.hash("correct horse").await.unwrap();
        assert!(hash.starts_with("$argon2id$"), "{hash}");
        assert_ne!(hash, passwords.hash("correct horse").await.unwrap(), "salted");
        assert!(passwords.verify(Some(&hash), "correct horse").await.unwrap());
        assert!(!passwords.verify(Some(&hash), "correct horse ").await.unwrap());
        assert!(!passwords.verify(None, "decoy").await.unwrap());
        assert!(!passwords.verify(Some(&hash), &"x".repeat(MAX_BYTES + 1)).await.unwrap());
    }

    #[test]
    fn short_and_endless_passwords_are_refused() {
        let passwords = passwords();
        assert_eq!(passwords.acceptable("1234567").unwrap_err().body()["errcode"], "M_WEAK_PASSWORD");
        assert_eq!(passwords.acceptable(&"x".repeat(513)).unwrap_err().body()["errcode"], "M_INVALID_PARAM");
        assert!(passwords.acceptable("12345678").is_ok());
    }

    #[tokio::test]
    async fn too_many_who_wait_are_sent_away() {
        let passwords = passwords();
        passwords.waiting.store(MAX_WAITING, Ordering::Relaxed);
        let refused = passwords.hash("correct horse").await.unwrap_err();
        assert_eq!(refused.body()["errcode"], "M_LIMIT_EXCEEDED");
        assert_eq!(passwords.waiting.load(Ordering::Relaxed), MAX_WAITING);
    }

    #[tokio::test]
    async fn pitfall_012_an_old_password_is_worth_nothing_once_there_is_a_new_one() {
        let server = Server::default();
        let alice = server.user("alice").await;
        // The decoy is made, so that who checks a password does nothing else first.
        server.log_in("alice").await;
        let (app, user_id) = (&server.app, UserId::parse(&alice.user_id).unwrap());
        let passwords = &app.auth.passwords;
        let new = passwords.hash("battery staple").await.unwrap();
        let busy = Arc::clone(&passwords.permits).acquire_many_owned(passwords.permits.available_permits() as u32);
        let busy = busy.await.unwrap();
        let thief = async {
            let post = |path: &str, body: serde_json::Value| {
                let path = format!("/_matrix/client/v3/{path}");
                let client = alice.client.clone();
                async move { client.post(&path, body).await.status.as_u16() }
            };
            let mine = json!({ "new_password": "thief's own", "logout_devices": false, "auth": alice.auth() });
            let key = json!({ "auth": alice.auth() });
            tokio::join!(
                async { server.try_log_in("alice", PASSWORD, json!({})).await.status.as_u16() },
                post("account/password", mine),
                post("account/deactivate", key.clone()),
                async {
                    let path = format!("/_matrix/client/v3/devices/{}", alice.device_id);
                    let key = Body::from(key.to_string());
                    alice.client.send(Method::DELETE, &path, key).await.status.as_u16()
                },
                post("delete_devices", json!({ "devices": [alice.device_id], "auth": alice.auth() })),
            )
        };
        let owner = async {
            // All of them have read which password is the right one.
            while passwords.waiting.load(Ordering::Relaxed) < 5 {
                tokio::task::yield_now().await;
            }
            let set = |tx: &mut store::Tx| accounts::set_password(tx, &user_id, &new, false, None);
            app.store.transact(set).await.unwrap();
            drop(busy);
        };
        let (thief, ()) = tokio::join!(thief, owner);
        assert_eq!(thief, (403, 403, 403, 403, 403));
        assert_eq!(server.try_log_in("alice", "battery staple", json!({})).await.status, 200);
    }
}
