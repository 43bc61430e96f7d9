//! Accounts as an administrator handles them, from the command line or the administration endpoints.

use ruma::OwnedUserId;

use crate::App;
use crate::error::{Error, Result};
use crate::users::accounts::{self, NewAccount};

/// Opens an account, whatever the settings say about registration.
pub async fn create(app: &App, username: &str, password: &str, admin: bool) -> Result<OwnedUserId> {
    let user_id = accounts::user_id_for_new(app, username)?;
    accounts::check_free(app, &user_id)?;
    app.auth.passwords.acceptable(password)?;
    let hash = app.auth.passwords.hash(password).await?;
    let new = NewAccount { password_hash: Some(hash), admin, ..NewAccount::default() };
    app.store.transact(|tx| accounts::open(app, tx, &user_id, new.clone())).await?;
    Ok(user_id)
}

/// Sets a new password; `log_out` ends all sessions.
pub async fn reset_password(app: &App, user: &str, password: &str, log_out: bool) -> Result<OwnedUserId> {
    let user_id = existing(app, user)?;
    app.auth.passwords.acceptable(password)?;
    let hash = app.auth.passwords.hash(password).await?;
    app.store.transact(|tx| accounts::set_password(tx, &user_id, &hash, log_out, None)).await?;
    Ok(user_id)
}

/// Closes an account for ever; `erase` also deletes its profile.
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
