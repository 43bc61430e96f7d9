//! Devices: made by a login, deleted with everything that was only theirs.
//!
//! A user has a bounded number of them: beyond it a login takes the place of the device that was not used for the longest
//! time. All sessions at once are ended by one number in the user's row, the epoch: tokens and devices of an earlier one
//! are void from that commit on, however many there are, and a job deletes what does not fit into it.

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
    KEY_COUNTS, ONE_TIME_KEY_IDS, ONE_TIME_KEYS, PUSHERS, TO_DEVICE, TO_DEVICE_AT, TO_DEVICE_LOAD, TXNS, USERS, User,
    topic,
};

/// Rows that are deleted together with their device. A device that has more leaves the rest to a job.
const MAX_ROWS: usize = 2_000;
/// What a deleted row takes in a batch, on the safe side, besides the names of user and device.
const ROW_BYTES: usize = 320;
/// So many devices are deleted in one commit, as far as they fit.
const MAX_AT_ONCE: usize = 50;
/// So many devices make room for a new one, at most: who had more from before gets rid of them little by little.
const MAX_REPLACED: usize = 4;
const MAX_ID_BYTES: usize = 255;
const MAX_NAME_BYTES: usize = 1_024;

/// The device to log in on: the one that the client names, or a new one. A known device keeps its name.
pub fn log_in(app: &App, tx: &mut Tx, user_id: &str, device_id: Option<&str>, name: Option<&str>) -> Result<String> {
    let device_id = match device_id {
        Some(device_id) => valid_id(device_id)?.to_owned(),
        None => app.rng.alphanumeric(10).to_ascii_uppercase(),
    };
    let epoch = epoch(tx, user_id)?;
    match tx.get(&DEVICES, (user_id, &device_id))? {
        Some(known) if known.epoch == epoch => {
            if known.by_service {
                // It is its user's own from now on.
                tx.put(&DEVICES, (user_id, &device_id), &Device { by_service: false, ..known });
            }
            return Ok(device_id);
        }
        // It was logged out with the others, and its turn to be deleted has not come: the name is all they share.
        Some(_) => delete(tx, user_id, &device_id)?,
        None => {}
    }
    if is_key_name(tx, user_id, &device_id)? {
        return Err(Error::invalid_param("A key has this name already"));
    }
    let display_name = name.map(valid_name).transpose()?;
    make_room(app, tx, user_id, epoch)?;
    let device = Device { display_name, created_ts: app.clock.now_ms(), epoch, by_service: false };
    tx.put(&DEVICES, (user_id, &device_id), &device);
    Ok(device_id)
}

/// Notes that the session of a device was opened by an application service.
pub fn opened_by_service(tx: &mut Tx, user_id: &str, device_id: &str) -> Result<()> {
    if let Some(device) = tx.get(&DEVICES, (user_id, device_id))? {
        tx.put(&DEVICES, (user_id, device_id), &Device { by_service: true, ..device });
    }
    Ok(())
}

/// The number that tokens and devices of a user need to have.
pub fn epoch(read: &impl Read, user_id: &str) -> Result<u64> {
    Ok(read.get(&USERS, user_id)?.map_or(0, |user| user.epoch))
}

/// Whether a device is there, and was not logged out with all the others.
pub fn is_open(read: &impl Read, user_id: &str, device_id: &str) -> Result<bool> {
    match read.get(&DEVICES, (user_id, device_id))? {
        Some(device) => Ok(device.epoch == epoch(read, user_id)?),
        None => Ok(false),
    }
}

/// The devices of a user, without those that were logged out all at once and are about to be deleted.
pub fn of(read: &impl Read, user_id: &str) -> Result<Vec<(String, Device)>> {
    let epoch = epoch(read, user_id)?;
    let mut found = Vec::new();
    for row in read.scan(&DEVICES, DEVICES.prefix((user_id,))) {
        let ((_, device_id), device) = row?;
        if device.epoch == epoch {
            found.push((device_id, device));
        }
    }
    Ok(found)
}

/// Makes room for one more device of a user who has as many as one may have: those go that were not used for the longest
/// time. A dehydrated one waits to be used.
fn make_room(app: &App, tx: &mut Tx, user_id: &str, epoch: u64) -> Result<()> {
    let most = app.config.auth.max_devices as usize;
    // Whatever logs in or out at the same time: it is about a few more or less.
    let mut all: Vec<(u64, String)> = Vec::new();
    for row in tx.unchecked().scan(&DEVICES, DEVICES.prefix((user_id,))) {
        let ((_, device_id), device) = row?;
        if device.epoch == epoch {
            all.push((device.created_ts, device_id));
        }
    }
    let Some(excess) = (all.len() + 1).checked_sub(most).filter(|excess| *excess > 0 && most > 0) else {
        return Ok(());
    };
    let seen =
        tx.unchecked().multi_get(&DEVICE_SEEN, all.iter().map(|(_, device_id)| (user_id, device_id.as_str())))?;
    for ((used_ts, _), seen) in all.iter_mut().zip(seen) {
        *used_ts = seen.map_or(*used_ts, |seen| seen.ts.max(*used_ts));
    }
    all.sort_unstable();
    let dehydrated = tx.get(&DEHYDRATED_DEVICES, user_id)?.map(|device| device.device_id);
    let unused = all.iter().filter(|(_, device_id)| dehydrated.as_ref() != Some(device_id));
    for (_, device_id) in unused.take(excess.min(MAX_REPLACED)) {
        delete(tx, user_id, device_id)?;
    }
    Ok(())
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
    tx.delete(&TO_DEVICE_LOAD, (user_id, device_id));
    delete_pushers(tx, user_id, |maker| maker == device_id)?;
    if !forget(tx, user_id, device_id)? {
        let job = tx.next_pos();
        tx.put(&JOBS, job, &Job::ForgetDevice { user_id: user_id.to_owned(), device_id: device_id.to_owned() });
    }
    Ok(())
}

/// Deletes some devices, in as many commits as that takes: each device is deleted whole, or not. `may` is asked in each.
pub async fn delete_some(
    app: &App,
    user_id: &str,
    device_ids: &[impl AsRef<str>],
    may: impl Fn(&Tx) -> Result<()>,
) -> Result<()> {
    let mut rest = device_ids;
    while !rest.is_empty() {
        let delete = |tx: &mut Tx| -> Result<usize> {
            may(tx)?;
            let mut deleted = 0;
            for device_id in rest.iter().take(MAX_AT_ONCE) {
                if is_full(tx) {
                    break;
                }
                delete(tx, user_id, device_id.as_ref())?;
                deleted += 1;
            }
            Ok(deleted)
        };
        let deleted = app.store.transact(delete).await?.value;
        rest = rest.get(deleted..).unwrap_or_default();
    }
    Ok(())
}

/// Whether a commit has enough to do, so that another device might not fit in.
fn is_full(tx: &mut Tx) -> bool {
    tx.batch().size_bytes() > BATCH_BYTES / 4
}

/// Ends all sessions of a user but that of one device. They are void with this commit, however many there are; devices
/// that do not fit into it are deleted by a job.
pub fn delete_others(tx: &mut Tx, user_id: &str, keep: Option<&str>) -> Result<()> {
    let user = tx.get(&USERS, user_id)?.ok_or_else(|| Error::not_found("There is no such account"))?;
    let epoch = user.epoch + 1;
    tx.put(&USERS, user_id, &User { epoch, ..user });
    tokens::close(tx, user_id, tokens::NO_DEVICE)?;
    if let Some(keep) = keep {
        if let Some(device) = tx.get(&DEVICES, (user_id, keep))? {
            tx.put(&DEVICES, (user_id, keep), &Device { epoch, ..device });
        }
        tokens::carry_over(tx, user_id, keep, epoch)?;
    }
    delete_other_pushers(tx, user_id, keep)?;
    // Polls of all of them end.
    tx.touch(topic::user(user_id));
    if !delete_void(tx, user_id)? {
        let job = tx.next_pos();
        tx.put(&JOBS, job, &Job::ForgetDevices { user_id: user_id.to_owned() });
    }
    Ok(())
}

/// Deletes devices of earlier epochs, as many as go into one commit. Says whether those were all.
pub fn delete_void(tx: &mut Tx, user_id: &str) -> Result<bool> {
    let epoch = epoch(tx, user_id)?;
    // A device that is logged in on again was read by its own transaction, and this one reads it once more below.
    let mut void = Vec::new();
    for row in tx.unchecked().scan(&DEVICES, DEVICES.prefix((user_id,))) {
        let ((_, device_id), device) = row?;
        if void.len() > MAX_AT_ONCE {
            break;
        }
        if device.epoch < epoch {
            void.push(device_id);
        }
    }
    let all = void.len() <= MAX_AT_ONCE;
    for device_id in void.iter().take(MAX_AT_ONCE) {
        if is_full(tx) {
            return Ok(false);
        }
        // Not the one that stays: it is of the new epoch by now.
        if tx.get(&DEVICES, (user_id, device_id))?.is_some_and(|device| device.epoch < epoch) {
            delete(tx, user_id, device_id)?;
        }
    }
    Ok(all)
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
    let row_bytes = ROW_BYTES + user_id.len() + device_id.len();
    let room = (BATCH_BYTES / 2).saturating_sub(tx.batch().size_bytes()) / row_bytes;
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
