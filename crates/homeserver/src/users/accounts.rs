//! Accounts: user names, opening, closing.

use ruma::{OwnedUserId, ServerName, UserId};
use store::{Read as _, Tx};

use crate::App;
use crate::auth::devices;
use crate::error::{Error, ErrorCode, Result};
use crate::schema::{JOBS, Job, REGISTRATION_TOKENS, USERS, User};
use crate::users::{directory, profiles, push_rules};

/// An account to be opened.
#[derive(Clone, Debug, Default)]
pub struct NewAccount {
    pub password_hash: Option<String>,
    pub admin: bool,
    pub guest: bool,
    /// A registration token that was shown; its use is counted.
    pub registration_token: Option<String>,
    pub opener: Opener,
}

/// Who opens an account: names in the namespaces of an application service are not for everybody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Opener {
    #[default]
    Anybody,
    Administrator,
    /// The application service of this ID.
    Service(String),
}

/// The user of a name that a client wants to register: capitals become small, everything else has to fit.
pub fn user_id_for_new(app: &App, username: &str) -> Result<OwnedUserId> {
    let invalid = |why: &str| Error::bad_request(ErrorCode::InvalidUsername, why.to_owned());
    let localpart = username.to_ascii_lowercase();
    if localpart.is_empty() {
        return Err(invalid("A user name is not empty"));
    }
    if !localpart.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._=-/+".contains(&byte)) {
        return Err(invalid("A user name consists of a-z, 0-9 and . _ = - / +"));
    }
    let user_id = UserId::parse(format!("@{localpart}:{}", app.server_name)).map_err(|_| invalid("Not a user name"))?;
    if user_id.as_bytes().len() > 255 { Err(invalid("The user name is too long")) } else { Ok(user_id) }
}

/// The local user somebody means by a localpart or a whole user ID. `None` for users of other servers and nonsense.
pub fn local_user(server_name: &ServerName, name: &str) -> Option<OwnedUserId> {
    let user_id = if name.starts_with('@') { name.to_owned() } else { format!("@{name}:{server_name}") };
    UserId::parse(user_id).ok().filter(|user_id| user_id.server_name() == server_name)
}

/// A name for somebody who did not choose one.
pub fn random_name(app: &App, guest: bool) -> Result<OwnedUserId> {
    let name = if guest { format!("guest-{}", app.rng.lowercase(10)) } else { app.rng.lowercase(10) };
    user_id_for_new(app, &name)
}

/// The account of a user, closed ones included.
pub fn find(app: &App, user_id: &UserId) -> Result<Option<User>> {
    Ok(app.store.snapshot().get(&USERS, user_id.as_str())?)
}

/// Whether a name is free for somebody. Names of closed accounts are not.
pub fn check_free(app: &App, user_id: &UserId, opener: &Opener) -> Result<()> {
    check_not_kept(app, user_id, opener)?;
    if app.store.snapshot().contains(&USERS, user_id.as_str())? { Err(in_use()) } else { Ok(()) }
}

/// Names in the namespaces of an application service are for itself, and for administrators who know what they do.
fn check_not_kept(app: &App, user_id: &UserId, opener: &Opener) -> Result<()> {
    let by = match opener {
        Opener::Administrator => return Ok(()),
        Opener::Anybody => None,
        Opener::Service(id) => Some(id.as_str()),
    };
    if app.appservices.keeps_user(user_id, by) {
        return Err(Error::exclusive("This user name is kept for an application service"));
    }
    Ok(())
}

/// Opens an account.
pub fn open(app: &App, tx: &mut Tx, user_id: &UserId, new: NewAccount) -> Result<()> {
    check_not_kept(app, user_id, &new.opener)?;
    if tx.get(&USERS, user_id.as_str())?.is_some() {
        return Err(in_use());
    }
    if let Some(token) = &new.registration_token {
        count_use(app, tx, token)?;
    }
    let user = User {
        password_hash: new.password_hash,
        created_ts: app.clock.now_ms(),
        admin: new.admin,
        guest: new.guest,
        ..User::default()
    };
    tx.put(&USERS, user_id.as_str(), &user);
    if !new.guest {
        push_rules::set_default(tx, user_id)?;
    }
    directory::update(tx, user_id)
}

/// Whether an account may open a session: it is there, open, and not locked.
pub fn may_log_in(tx: &Tx, user_id: &UserId) -> Result<()> {
    match tx.get(&USERS, user_id.as_str())? {
        Some(user) if user.locked && !user.deactivated => Err(Error::user_locked()),
        Some(user) if !user.deactivated => Ok(()),
        _ => Err(Error::forbidden("Wrong user name or password")),
    }
}

/// Closes an account for ever: nobody logs in any more, the devices are gone, a job leaves the rooms. `erase` also
/// deletes the profile.
pub fn close(tx: &mut Tx, user_id: &UserId, erase: bool) -> Result<()> {
    let unknown = || Error::not_found("There is no such account");
    devices::delete_others(tx, user_id.as_str(), None)?;
    let user = tx.get(&USERS, user_id.as_str())?.ok_or_else(unknown)?;
    if erase {
        profiles::delete_all(tx, user_id)?;
    }
    let erased = user.erased || erase;
    // Who opens it again says anew whether it is an administrator's.
    tx.put(&USERS, user_id.as_str(), &User { password_hash: None, deactivated: true, erased, admin: false, ..user });
    directory::update(tx, user_id)?;
    let job = tx.next_pos();
    tx.put(&JOBS, job, &Job::LeaveAll { user_id: user_id.to_string(), from: 0 });
    Ok(())
}

/// Changes a password. `keep` is the device that stays logged in when the others are logged out.
pub fn set_password(tx: &mut Tx, user_id: &UserId, hash: &str, log_out: bool, keep: Option<&str>) -> Result<()> {
    let user = tx.get(&USERS, user_id.as_str())?.filter(|user| !user.deactivated);
    let user = user.ok_or_else(|| Error::not_found("There is no such account"))?;
    tx.put(&USERS, user_id.as_str(), &User { password_hash: Some(hash.to_owned()), ..user });
    if log_out {
        devices::delete_others(tx, user_id.as_str(), keep)?;
    }
    devices::delete_other_pushers(tx, user_id.as_str(), keep)
}

fn count_use(app: &App, tx: &mut Tx, token: &str) -> Result<()> {
    if app.config.registration.tokens.iter().any(|known| known == token) {
        return Ok(());
    }
    let found = tx.get(&REGISTRATION_TOKENS, token)?.filter(|found| found.usable(app.clock.now_ms()));
    let mut found = found.ok_or_else(|| Error::forbidden("This registration token is used up"))?;
    found.completed += 1;
    tx.put(&REGISTRATION_TOKENS, token, &found);
    Ok(())
}

fn in_use() -> Error {
    Error::bad_request(ErrorCode::UserInUse, "This user name is taken")
}
