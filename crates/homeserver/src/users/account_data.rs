//! Account data: a value per user, room (or none) and type, the log that sync reads, and where the log has each.
//!
//! Every write of account data goes through [`put`], inside whatever transaction decides it (read markers, push rules,
//! tags): value, log row and pointer stay one.

use bytes::Bytes;
use ruma::UserId;
use store::{Read, Tx};

use crate::error::{Error, Result};
use crate::schema::{ACCOUNT_DATA, ACCOUNT_DATA_AT, ACCOUNT_DATA_LOG, AccountData, AccountDataKey};

/// In place of a room ID: account data of the user as such.
pub const GLOBAL: &str = "";

const MAX_BYTES: usize = 512 * 1024;
const MAX_TYPE_BYTES: usize = 255;
const MAX_TYPES: usize = 1_000;

/// The content, as it was put.
pub fn get(read: &impl Read, user_id: &UserId, room_id: &str, kind: &str) -> Result<Option<Bytes>> {
    Ok(read.get(&ACCOUNT_DATA, (user_id.as_str(), room_id, kind))?.map(|data| data.0))
}

/// Writes a JSON object. It is for the caller to know that it is one.
pub fn put(tx: &mut Tx, user_id: &UserId, room_id: &str, kind: &str, content: Bytes) -> Result<()> {
    if content.len() > MAX_BYTES {
        return Err(Error::too_large(format!("Account data has at most {MAX_BYTES} bytes")));
    }
    let key = (user_id.as_str(), room_id, kind);
    match tx.get(&ACCOUNT_DATA_AT, key)? {
        Some(before) => tx.delete(&ACCOUNT_DATA_LOG, (user_id.as_str(), before)),
        None => check_new(tx, user_id, room_id, kind)?,
    }
    let at = tx.next_pos();
    let log = AccountDataKey { room_id: room_id.to_owned(), kind: kind.to_owned() };
    tx.put(&ACCOUNT_DATA, key, &AccountData(content));
    tx.put(&ACCOUNT_DATA_AT, key, &at);
    tx.put(&ACCOUNT_DATA_LOG, (user_id.as_str(), at), &log);
    Ok(())
}

/// A type that a user did not have so far: there may be only so many of them.
fn check_new(tx: &Tx, user_id: &UserId, room_id: &str, kind: &str) -> Result<()> {
    if kind.is_empty() || kind.len() > MAX_TYPE_BYTES || kind.contains('\0') {
        return Err(Error::invalid_param("This is not an event type"));
    }
    let span = ACCOUNT_DATA_AT.prefix((user_id.as_str(), room_id)).limit(MAX_TYPES);
    if tx.unchecked().count(&ACCOUNT_DATA_AT, span)? >= MAX_TYPES {
        return Err(Error::forbidden("There are too many types of account data"));
    }
    Ok(())
}
