//! Devices: made by a login, deleted with everything that was only theirs.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;
use store::limits::BATCH_BYTES;
use store::{Key, Read, Span, Table, Tx, Value};

use crate::App;
use crate::auth::tokens;
use crate::error::{Error, Result};
use crate::schema::{
    self, CROSS_SIGNING_KEYS, DEHYDRATED_DEVICES, DEVICE_KEYS, DEVICE_SEEN, DEVICES, Device, FALLBACK_KEYS, JOBS, Job,
    KEY_COUNTS, ONE_TIME_KEY_IDS, ONE_TIME_KEYS, PUSHERS, TO_DEVICE, TO_DEVICE_AT, TXNS,
};

/// Rows that are deleted together with their device. A device that has more leaves the rest to a job.
const MAX_ROWS: usize = 2_000;
/// What a deleted row takes in a batch, on the safe side.
const ROW_BYTES: usize = 256;
const MAX_ID_BYTES: usize = 255;
const MAX_NAME_BYTES: usize = 1_024;

/// The device to log in on: the one that the client names, or a new one. A known device keeps its name.
pub fn log_in(app: &App, tx: &mut Tx, user_id: &str, device_id: Option<&str>, name: Option<&str>) -> Result<String> {
    let device_id = match device_id {
        Some(device_id) => valid_id(device_id)?.to_owned(),
        None => app.rng.alphanumeric(10).to_ascii_uppercase(),
    };
    if tx.get(&DEVICES, (user_id, &device_id))?.is_none() {
        if is_key_name(tx, user_id, &device_id)? {
            return Err(Error::invalid_param("A key has this name already"));
        }
        let display_name = name.map(valid_name).transpose()?;
        tx.put(&DEVICES, (user_id, &device_id), &Device { display_name, created_ts: app.clock.now_ms() });
    }
    Ok(device_id)
}

/// Whether one of the user's cross-signing keys has this name: nobody could tell whose signatures bear it.
fn is_key_name(tx: &mut Tx, user_id: &str, device_id: &str) -> Result<bool> {
    #[derive(Deserialize)]
    struct Names {
        keys: BTreeMap<String, IgnoredAny>,
    }
    let key_id = format!("ed25519:{device_id}");
    for (_, key) in tx.scan_guarded(&CROSS_SIGNING_KEYS, CROSS_SIGNING_KEYS.prefix((user_id,)))? {
        let Names { keys } = serde_json::from_slice(&key.0).map_err(Error::internal)?;
        if keys.contains_key(&key_id) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Deletes a device: its tokens are void, its transactions forgotten. Deleting what is not there does nothing.
pub fn delete(tx: &mut Tx, user_id: &str, device_id: &str) -> Result<()> {
    tokens::close(tx, user_id, device_id)?;
    if tx.get(&DEVICES, (user_id, device_id))?.is_none() {
        return Ok(());
    }
    tx.delete(&DEVICES, (user_id, device_id));
    if tx.get(&DEHYDRATED_DEVICES, user_id)?.is_some_and(|dehydrated| dehydrated.device_id == device_id) {
        tx.delete(&DEHYDRATED_DEVICES, user_id);
    }
    tx.delete(&DEVICE_SEEN, (user_id, device_id));
    if tx.contains(&DEVICE_KEYS, (user_id, device_id))? {
        tx.delete(&DEVICE_KEYS, (user_id, device_id));
        schema::device_list_changed(tx, user_id)?;
    }
    // Without this row no key can be claimed, and none is being claimed right now.
    tx.get(&KEY_COUNTS, (user_id, device_id))?;
    tx.delete(&KEY_COUNTS, (user_id, device_id));
    tx.delete(&TO_DEVICE_AT, (user_id, device_id));
    delete_pushers(tx, user_id, |maker| maker == device_id)?;
    if !forget(tx, user_id, device_id)? {
        let job = tx.next_pos();
        tx.put(&JOBS, job, &Job::ForgetDevice { user_id: user_id.to_owned(), device_id: device_id.to_owned() });
    }
    Ok(())
}

/// Deletes all devices of a user but one, and all tokens but its own.
pub fn delete_others(tx: &mut Tx, user_id: &str, keep: Option<&str>) -> Result<()> {
    tokens::close(tx, user_id, tokens::NO_DEVICE)?;
    for ((_, device_id), _) in tx.scan_guarded(&DEVICES, DEVICES.prefix((user_id,)))? {
        if keep != Some(device_id.as_str()) {
            delete(tx, user_id, &device_id)?;
        }
    }
    Ok(())
}

/// Deletes the pushers that other devices made: who set a new password does not want them.
pub fn delete_other_pushers(tx: &mut Tx, user_id: &str, keep: Option<&str>) -> Result<()> {
    delete_pushers(tx, user_id, |maker| keep != Some(maker))
}

fn delete_pushers(tx: &mut Tx, user_id: &str, goes: impl Fn(&str) -> bool) -> Result<()> {
    for ((_, app_id, pushkey), pusher) in tx.scan_guarded(&PUSHERS, PUSHERS.prefix((user_id,)))? {
        if goes(&pusher.device_id) {
            schema::delete_pusher(tx, user_id, (&app_id, &pushkey));
        }
    }
    Ok(())
}

/// Deletes a batch of what a deleted device left behind: keys first, so that nobody claims one, then messages and
/// transactions. Says whether that was all.
pub fn forget(tx: &mut Tx, user_id: &str, device_id: &str) -> Result<bool> {
    // A commit may delete several devices.
    let room = (BATCH_BYTES / 2).saturating_sub(tx.batch().size_bytes()) / ROW_BYTES;
    let most = MAX_ROWS.min(room);
    let device = (user_id, device_id);
    let mut left = most;
    for (_, _, algorithm, at, index) in keys(tx, &ONE_TIME_KEYS, ONE_TIME_KEYS.prefix(device), &mut left)? {
        tx.delete(&ONE_TIME_KEYS, (user_id, device_id, &algorithm, at, index));
    }
    for (_, _, algorithm) in keys(tx, &FALLBACK_KEYS, FALLBACK_KEYS.prefix(device), &mut left)? {
        tx.delete(&FALLBACK_KEYS, (user_id, device_id, &algorithm));
    }
    for (_, _, at) in keys(tx, &TO_DEVICE, TO_DEVICE.prefix(device), &mut left)? {
        tx.delete(&TO_DEVICE, (user_id, device_id, at));
    }
    for (_, _, key_id) in keys(tx, &ONE_TIME_KEY_IDS, ONE_TIME_KEY_IDS.prefix(device), &mut left)? {
        tx.delete(&ONE_TIME_KEY_IDS, (user_id, device_id, &key_id));
    }
    for (_, _, txn) in keys(tx, &TXNS, TXNS.prefix(device), &mut left)? {
        tx.delete(&TXNS, (user_id, device_id, &txn));
    }
    Ok(left > 0)
}

/// The keys of a span, at most as many as are left of the batch.
fn keys<K: Key, V: Value>(tx: &Tx, table: &Table<K, V>, span: Span<K>, left: &mut usize) -> Result<Vec<K>> {
    let keys: Vec<K> = tx.unchecked().scan(table, span.limit(*left)).keys().collect::<store::Result<_>>()?;
    *left -= keys.len();
    Ok(keys)
}

pub fn valid_name(name: &str) -> Result<String> {
    if name.len() > MAX_NAME_BYTES {
        return Err(Error::invalid_param(format!("A device's name has at most {MAX_NAME_BYTES} bytes")));
    }
    Ok(name.to_owned())
}

fn valid_id(device_id: &str) -> Result<&str> {
    let fits = !device_id.is_empty() && device_id.len() <= MAX_ID_BYTES && !device_id.contains(char::is_control);
    if fits { Ok(device_id) } else { Err(Error::invalid_param("This is not a device ID")) }
}
