//! Accounts as an administrator handles them, from the command line or the administration endpoints.

use std::time::Duration;

use ruma::{OwnedUserId, UserId};
use serde_json::json;
use store::{Read as _, Tx};

use crate::App;
use crate::auth::tokens;
use crate::error::{Error, ErrorCode, Result};
use crate::schema::{JOBS, Job, USERS, User};
use crate::users::accounts::{self, NewAccount, Opener};
use crate::users::{directory, profiles, push_rules};

/// Opens an account, whatever the settings say about registration.
pub async fn create(app: &App, username: &str, password: &str, admin: bool) -> Result<OwnedUserId> {
    let user_id = accounts::user_id_for_new(app, username)?;
    accounts::check_free(app, &user_id, &Opener::Administrator)?;
    app.auth.passwords.acceptable(password)?;
    let hash = app.auth.passwords.hash(password).await?;
    let opener = Opener::Administrator;
    let new = NewAccount { password_hash: Some(hash), admin, opener, ..NewAccount::default() };
    app.store.transact(|tx| accounts::open(app, tx, &user_id, new.clone())).await?;
    Ok(user_id)
}

/// Sets a new password; `log_out` ends all sessions.
pub async fn reset_password(app: &App, user: &str, password: &str, log_out: bool) -> Result<OwnedUserId> {
    let user_id = existing(app, user)?;
    app.auth.passwords.acceptable(password)?;
    let hash = app.auth.passwords.hash(password).await?;
    app.store.transact(|tx| accounts::set_password(tx, &user_id, &hash, log_out, None)).await?;
    app.auth.lockout.forgive(user_id.as_str());
    Ok(user_id)
}

/// Closes an account; `erase` also deletes its profile.
pub async fn deactivate(app: &App, user: &str, erase: bool) -> Result<OwnedUserId> {
    let user_id = existing(app, user)?;
    app.store.transact(|tx| accounts::close(tx, &user_id, erase)).await?;
    Ok(user_id)
}

fn existing(app: &App, user: &str) -> Result<OwnedUserId> {
    let user_id = accounts::local_user(&app.server_name, user).ok_or_else(unknown)?;
    if accounts::find(app, &user_id)?.is_some() { Ok(user_id) } else { Err(unknown()) }
}

fn unknown() -> Error {
    Error::not_found("There is no such account")
}

/// What an administrator wants of an account. What is absent stays as it is.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    pub password: Option<String>,
    /// With a new password: end all sessions.
    pub log_out: bool,
    /// Empty for none.
    pub displayname: Option<String>,
    /// Empty for none.
    pub avatar_url: Option<String>,
    pub admin: Option<bool>,
    pub locked: Option<bool>,
    pub deactivated: Option<bool>,
}

/// Changes an account, or opens it if it is not there. Says whether it was opened.
pub async fn put(app: &App, user_id: &UserId, wanted: &Wanted) -> Result<bool> {
    if accounts::find(app, user_id)?.is_none() && accounts::user_id_for_new(app, user_id.localpart())? != user_id {
        return Err(Error::invalid_param("New user IDs have no capitals"));
    }
    let hash = match &wanted.password {
        Some(password) => {
            app.auth.passwords.acceptable(password)?;
            Some(app.auth.passwords.hash(password).await?)
        }
        None => None,
    };
    let put = |tx: &mut Tx| {
        let known = tx.get(&USERS, user_id.as_str())?;
        match &known {
            None => {
                let new = NewAccount {
                    password_hash: hash.clone(),
                    admin: wanted.admin.unwrap_or_default(),
                    opener: Opener::Administrator,
                    ..NewAccount::default()
                };
                accounts::open(app, tx, user_id, new)?;
            }
            Some(user) => change(tx, user_id, user, wanted, hash.as_deref())?,
        }
        finish(tx, user_id, wanted)?;
        Ok::<_, Error>(known.is_none())
    };
    let made = app.store.transact(put).await?.value;
    if hash.is_some() {
        app.auth.lockout.forgive(user_id.as_str());
    }
    Ok(made)
}

/// What is different for an account that is there.
fn change(tx: &mut Tx, user_id: &UserId, user: &User, wanted: &Wanted, hash: Option<&str>) -> Result<()> {
    if user.deactivated {
        if wanted.deactivated == Some(false) {
            reopen(tx, user_id, user, hash)?;
        } else if hash.is_some() {
            return Err(Error::invalid_param("The account is closed: reopen it to give it a password"));
        } else {
            return Ok(());
        }
    } else if let Some(hash) = hash {
        accounts::set_password(tx, user_id, hash, wanted.log_out, None)?;
    }
    if let Some(admin) = wanted.admin {
        mark(tx, user_id, |user| user.admin = admin)?;
    }
    Ok(())
}

/// What is the same for accounts that are there and those that were opened just now.
fn finish(tx: &mut Tx, user_id: &UserId, wanted: &Wanted) -> Result<()> {
    let open = tx.get(&USERS, user_id.as_str())?.is_some_and(|user| !user.deactivated);
    if !open {
        return Ok(());
    }
    for (field, value) in [(profiles::DISPLAYNAME, &wanted.displayname), (profiles::AVATAR_URL, &wanted.avatar_url)] {
        if let Some(value) = value {
            profiles::set(tx, user_id, field, Some(&json!(value)).filter(|_| !value.is_empty()))?;
        }
    }
    if let Some(locked) = wanted.locked {
        set_locked(tx, user_id, locked)?;
    }
    match wanted.deactivated {
        Some(true) => accounts::close(tx, user_id, false),
        _ => Ok(()),
    }
}

/// Opens a closed account again, empty as it is now.
fn reopen(tx: &mut Tx, user_id: &UserId, user: &User, hash: Option<&str>) -> Result<()> {
    let hash = hash.ok_or_else(|| Error::invalid_param("An account that is reopened needs a password"))?;
    for (_, job) in tx.scan_guarded(&JOBS, JOBS.all())? {
        if matches!(&job, Job::LeaveAll { user_id: leaving, .. } if leaving == user_id.as_str()) {
            let busy = "The account is still being closed; try again later";
            return Err(Error::conflict(ErrorCode::Unknown, busy));
        }
    }
    let open = User { password_hash: Some(hash.to_owned()), deactivated: false, erased: false, ..user.clone() };
    tx.put(&USERS, user_id.as_str(), &open);
    directory::update(tx, user_id)?;
    push_rules::set_default(tx, user_id)
}

/// Locks an account or lifts that. Administrators are not to be locked out.
pub fn set_locked(tx: &mut Tx, user_id: &UserId, locked: bool) -> Result<()> {
    mark_other(tx, user_id, locked, |user| user.locked = locked)
}

/// Suspends an account or lifts that.
pub async fn suspend(app: &App, user_id: &UserId, suspended: bool) -> Result<()> {
    let suspend = |tx: &mut Tx| mark_other(tx, user_id, suspended, |user| user.suspended = suspended);
    app.store.transact(suspend).await.map(drop)
}

/// Makes an account that of an administrator, or no longer.
pub async fn set_admin(app: &App, user_id: &UserId, admin: bool) -> Result<()> {
    app.store.transact(|tx| mark(tx, user_id, |user| user.admin = admin)).await.map(drop)
}

/// How long a token to act for a user lasts, if nobody says how long, and at most.
const ACTING: Duration = Duration::from_secs(60 * 60);
const LONGEST_ACTING: Duration = Duration::from_secs(24 * 60 * 60);

/// A token to act for a user with, until a time if one is given. `by` is the administrator; none at the machine.
pub async fn act_for(app: &App, user_id: &UserId, by: Option<&UserId>, until_ts: Option<u64>) -> Result<String> {
    let now = app.clock.now_ms();
    let lifetime = match until_ts {
        Some(until) if until <= now => return Err(Error::invalid_param("valid_until_ms is in the past")),
        Some(until) => Duration::from_millis(until - now),
        None => ACTING,
    };
    if lifetime > LONGEST_ACTING {
        return Err(Error::invalid_param("A token to act for a user lasts a day at most"));
    }
    let issue = |tx: &mut Tx| -> Result<String> {
        open_account(tx, user_id)?;
        tokens::issue_acting(app, tx, user_id.as_str(), by, lifetime)
    };
    Ok(app.store.transact(issue).await?.value)
}

fn mark_other(tx: &mut Tx, user_id: &UserId, hard: bool, change: impl Fn(&mut User)) -> Result<()> {
    if hard && open_account(tx, user_id)?.admin {
        return Err(Error::forbidden("Administrators are not to be locked out"));
    }
    mark(tx, user_id, change)
}

fn mark(tx: &mut Tx, user_id: &UserId, change: impl Fn(&mut User)) -> Result<()> {
    let mut user = open_account(tx, user_id)?;
    let before = user.clone();
    change(&mut user);
    if user != before {
        tx.put(&USERS, user_id.as_str(), &user);
    }
    Ok(())
}

fn open_account(tx: &mut Tx, user_id: &UserId) -> Result<User> {
    tx.get(&USERS, user_id.as_str())?.filter(|user| !user.deactivated).ok_or_else(unknown)
}
