//! How much each user has uploaded: a row that moves with the uploads themselves, and what a user may have at most.

use store::{Read, Tx};

use crate::error::{Error, Result};
use crate::schema::{MEDIA, USAGE, USER_MEDIA, Usage};

/// Where it is counted.
const COUNTED: &str = "media";

/// The uploads of a user whose files have arrived. Users of a time when nobody counted are counted now.
pub fn of(read: &impl Read, user_id: &str) -> Result<Usage> {
    match read.get(&USAGE, (user_id, COUNTED))? {
        Some(known) => Ok(known),
        None => count(read, user_id),
    }
}

/// One more. Refused if that is too much; 0 means that it never is.
pub(super) fn add(tx: &mut Tx, user_id: &str, bytes: u64, most: u64) -> Result<()> {
    let usage = before(tx, user_id)?.with(bytes);
    if most > 0 {
        check(usage, most)?;
    }
    tx.put(&USAGE, (user_id, COUNTED), &usage);
    Ok(())
}

/// One less. Call it before the row of the upload is deleted, or after: what is deleted counts until it is committed.
pub(super) fn take_off(tx: &mut Tx, user_id: &str, bytes: u64) -> Result<()> {
    let usage = before(tx, user_id)?.without(bytes);
    tx.put(&USAGE, (user_id, COUNTED), &usage);
    Ok(())
}

pub(super) fn check(usage: Usage, most: u64) -> Result<()> {
    if usage.bytes > most {
        return Err(Error::forbidden(format!("Your uploads would take more than the {most} bytes that you may have")));
    }
    Ok(())
}

/// What there was when the transaction began, or since it last counted.
fn before(tx: &mut Tx, user_id: &str) -> Result<Usage> {
    match tx.get(&USAGE, (user_id, COUNTED))? {
        Some(known) => Ok(known),
        // Whoever else counts at the same time writes the row that was missing here.
        None => count(tx.unchecked(), user_id),
    }
}

fn count(read: &impl Read, user_id: &str) -> Result<Usage> {
    let mut usage = Usage::default();
    for key in read.scan(&USER_MEDIA, USER_MEDIA.prefix((user_id,))).keys() {
        let upload = read.get(&MEDIA, &key?.1)?.filter(|upload| upload.sha256.is_some());
        usage = upload.map_or(usage, |upload| usage.with(upload.size_bytes));
    }
    Ok(usage)
}
