//! Pushers: setting, deleting and listing them. Rows are written by `schema`'s helpers; they go with the device that made
//! them (`auth::devices`). Sending is for `gateway`.

use ruma::UserId;
use store::{Read, Tx};

use crate::error::{Error, Result};
use crate::schema::{self, PUSHERS, PUSHKEYS, Pusher, PusherId};

/// More would be a mistake of a client: each one is told of every notification.
const MAX_PUSHERS: usize = 64;
const MAX_APP_ID_CHARS: usize = 64;
const MAX_PUSHKEY_BYTES: usize = 512;
/// The only path that notifications are sent to.
pub const PATH: &str = "/_matrix/push/v1/notify";

/// Makes a pusher or changes it. Unless it shall be one more, those of others with the same key are gone after it: the
/// phone has a new owner.
pub fn set(tx: &mut Tx, user_id: &UserId, id: PusherId<'_>, pusher: &Pusher, append: bool) -> Result<()> {
    check_id(id)?;
    if !tx.contains(&PUSHERS, (user_id.as_str(), id.0, id.1))? {
        let own = tx.scan_guarded(&PUSHERS, PUSHERS.prefix((user_id.as_str(),)))?;
        if own.len() >= MAX_PUSHERS {
            return Err(Error::invalid_param(format!("A user has at most {MAX_PUSHERS} pushers")));
        }
    }
    if !append {
        for ((_, _, owner), ()) in tx.scan_guarded(&PUSHKEYS, PUSHKEYS.prefix(id))? {
            if owner != user_id.as_str() {
                schema::delete_pusher(tx, &owner, id);
            }
        }
    }
    schema::put_pusher(tx, user_id.as_str(), id, pusher);
    Ok(())
}

/// Deletes a pusher. One that is not there is gone already.
pub fn delete(tx: &mut Tx, user_id: &UserId, id: PusherId<'_>) -> Result<()> {
    if tx.contains(&PUSHERS, (user_id.as_str(), id.0, id.1))? {
        schema::delete_pusher(tx, user_id.as_str(), id);
    }
    Ok(())
}

/// A user's pushers, with app ID and pushkey.
pub fn of(read: &impl Read, user_id: &UserId) -> Result<Vec<(String, String, Pusher)>> {
    let rows = read.scan(&PUSHERS, PUSHERS.prefix((user_id.as_str(),)));
    Ok(rows.map(|row| row.map(|((_, app, key), pusher)| (app, key, pusher))).collect::<store::Result<_>>()?)
}

fn check_id((app_id, pushkey): PusherId<'_>) -> Result<()> {
    if app_id.is_empty() || app_id.chars().count() > MAX_APP_ID_CHARS {
        return Err(Error::invalid_param(format!("app_id has 1 to {MAX_APP_ID_CHARS} characters")));
    }
    if pushkey.is_empty() || pushkey.len() > MAX_PUSHKEY_BYTES {
        return Err(Error::invalid_param(format!("pushkey has 1 to {MAX_PUSHKEY_BYTES} bytes")));
    }
    Ok(())
}

/// Whether a URL is one that notifications may be sent to at all.
pub fn check_url(url: &str) -> Result<()> {
    let uri: http::Uri = url.parse().map_err(|_| Error::invalid_param("data.url is no URL"))?;
    if !matches!(uri.scheme_str(), Some("https" | "http")) || uri.host().is_none() {
        return Err(Error::invalid_param("data.url is not the URL of a push gateway"));
    }
    if uri.path() != PATH {
        return Err(Error::invalid_param(format!("data.url has to have the path {PATH}")));
    }
    Ok(())
}
