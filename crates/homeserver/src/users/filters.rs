//! Sync filters, kept under a number that is made of what they say: the same filter is stored once.

use bytes::Bytes;
use ring::digest::{SHA256, digest};
use ruma::UserId;
use store::{Read, Tx};

use crate::error::{Error, Result};
use crate::schema::FILTERS;

const MAX_BYTES: usize = 64 * 1024;
const MAX_FILTERS: usize = 1_000;

/// Keeps a filter (its JSON) and gives its ID.
pub fn create(tx: &mut Tx, user_id: &UserId, filter: &Bytes) -> Result<u64> {
    if filter.len() > MAX_BYTES {
        return Err(Error::too_large(format!("A filter has at most {MAX_BYTES} bytes")));
    }
    let hash = digest(&SHA256, filter);
    let first = hash.as_ref().iter().take(8).fold(0u64, |id, byte| id << 8 | u64::from(*byte));
    for id in first.. {
        match tx.get(&FILTERS, (user_id.as_str(), id))? {
            Some(known) if known == *filter => return Ok(id),
            Some(_) => continue,
            None => {}
        }
        if tx.unchecked().count(&FILTERS, FILTERS.prefix((user_id.as_str(),)).limit(MAX_FILTERS))? >= MAX_FILTERS {
            break;
        }
        tx.put(&FILTERS, (user_id.as_str(), id), filter);
        return Ok(id);
    }
    Err(Error::forbidden("There are too many filters"))
}

/// The JSON of a filter, as it was created.
pub fn get(read: &impl Read, user_id: &UserId, filter_id: &str) -> Result<Option<Bytes>> {
    match filter_id.parse::<u64>() {
        Ok(id) => Ok(read.get(&FILTERS, (user_id.as_str(), id))?),
        Err(_) => Ok(None),
    }
}
