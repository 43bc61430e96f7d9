//! Keys: uploaded by a device, asked for by others. Each one-time key is handed out once, the oldest first.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::ops::ControlFlow;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use store::limits::BATCH_BYTES;
use store::{Pos, Read, Tx};

use super::cross_signing;
use crate::error::{Error, Result};
use crate::schema::{
    self, DEVICE_KEYS, DEVICES, DeviceKeys, FALLBACK_KEYS, FallbackKey, Held, KEY_COUNTS, KeyCounts, ONE_TIME_KEY_IDS,
    ONE_TIME_KEYS, OneTimeKey, OneTimeKeyId,
};

/// A device that has more unclaimed keys than this is confused.
const MAX_ONE_TIME_KEYS: u32 = 1_000;
/// So many claimed keys of a device are remembered, the newest: no device has the secrets of so many.
const MAX_CLAIMED: usize = 5_000;
/// Beyond that so many more may gather before some are forgotten.
const CLAIMED_SLACK: usize = 500;
const MAX_KEY_ID_BYTES: usize = 255;
const MAX_ALGORITHMS: usize = 16;

/// What a device uploads, checked as far as that goes without the store.
#[derive(Debug)]
pub struct Upload {
    device_keys: Option<DeviceKeys>,
    one_time_keys: Vec<NewKey>,
    fallback_keys: Vec<NewKey>,
}

/// A one-time key or fallback key.
#[derive(Debug)]
struct NewKey {
    algorithm: String,
    key_id: String,
    digest: [u8; 16],
    json: Bytes,
}

/// The members of device keys that a server looks at.
#[derive(Deserialize)]
struct Identity<'a> {
    #[serde(borrow)]
    user_id: Cow<'a, str>,
    #[serde(borrow)]
    device_id: Cow<'a, str>,
}

/// Keys by ID, as JSON.
pub type KeysById = BTreeMap<String, Box<RawValue>>;

impl Upload {
    /// Checks that the identity keys are those of the device, and that all is well formed.
    pub fn new(
        user_id: &str,
        device_id: &str,
        device_keys: Option<&RawValue>,
        one_time_keys: &KeysById,
        fallback_keys: &KeysById,
    ) -> Result<Self> {
        Ok(Upload {
            device_keys: device_keys.map(|keys| checked_identity(user_id, device_id, keys)).transpose()?,
            one_time_keys: one_time_keys.iter().map(|(id, key)| NewKey::new(id, key)).collect::<Result<_>>()?,
            fallback_keys: fallback_keys.iter().map(|(id, key)| NewKey::new(id, key)).collect::<Result<_>>()?,
        })
    }
}

/// The keys as they came, but for `unsigned`, which is the server's to write. What is signed keeps its bytes.
fn checked_identity(user_id: &str, device_id: &str, keys: &RawValue) -> Result<DeviceKeys> {
    let identity: Identity<'_> = serde_json::from_str(keys.get())?;
    if identity.user_id != user_id || identity.device_id != device_id {
        return Err(Error::invalid_param("These keys are of another user or device"));
    }
    let mut members: BTreeMap<&str, &RawValue> = serde_json::from_str(keys.get())?;
    members.remove("unsigned");
    Ok(DeviceKeys(serde_json::to_vec(&members)?.into()))
}

impl NewKey {
    fn new(key_id: &str, key: &RawValue) -> Result<Self> {
        let parts = key_id.split_once(':').filter(|(algorithm, id)| !algorithm.is_empty() && !id.is_empty());
        let (algorithm, _) = parts.ok_or_else(|| Error::invalid_param(format!("{key_id:?} is no key ID")))?;
        if key_id.len() > MAX_KEY_ID_BYTES {
            return Err(Error::invalid_param("This key ID is too long"));
        }
        let json = key.get();
        if json.len() > store::limits::VALUE_BYTES / 2 {
            return Err(Error::too_large("This key is too large"));
        }
        let (algorithm, key_id) = (algorithm.to_owned(), key_id.to_owned());
        Ok(NewKey { algorithm, key_id, digest: digest(json), json: Bytes::copy_from_slice(json.as_bytes()) })
    }
}

/// Key IDs have the algorithm in front.
fn algorithm_of(key_id: &str) -> &str {
    key_id.split_once(':').map_or(key_id, |(algorithm, _)| algorithm)
}

/// Tells keys apart: by the key itself, whatever signatures are around it and however they are written.
fn digest(json: &str) -> [u8; 16] {
    #[derive(Deserialize)]
    struct Signed<'a> {
        #[serde(borrow)]
        key: Cow<'a, str>,
    }
    let key = match serde_json::from_str::<Signed<'_>>(json) {
        Ok(signed) => signed.key,
        Err(_) => json.into(),
    };
    let hash = ring::digest::digest(&ring::digest::SHA256, key.as_bytes());
    let mut short = [0; 16];
    short.copy_from_slice(&hash.as_ref()[..16]);
    short
}

/// Keeps what a device uploaded. Returns how many of its keys there are now.
pub fn upload(tx: &mut Tx, user_id: &str, device_id: &str, upload: &Upload) -> Result<KeyCounts> {
    if !tx.contains(&DEVICES, (user_id, device_id))? {
        return Err(Error::unknown_token());
    }
    if let Some(keys) = &upload.device_keys {
        let known = tx.get(&DEVICE_KEYS, (user_id, device_id))?;
        let keys = match &known {
            Some(known) if known != keys => Cow::Owned(cross_signing::keep_signatures(user_id, known, keys)?),
            _ => Cow::Borrowed(keys),
        };
        if known.as_ref() != Some(&*keys) {
            tx.put(&DEVICE_KEYS, (user_id, device_id), &*keys);
            schema::device_list_changed(tx, user_id)?;
        }
    }
    let fresh = || KeyCounts { claimed: Some(0), ..KeyCounts::default() };
    let before = tx.get(&KEY_COUNTS, (user_id, device_id))?.unwrap_or_else(fresh);
    let mut counts = before.clone();
    add_one_time_keys(tx, user_id, device_id, &upload.one_time_keys, &mut counts)?;
    for key in &upload.fallback_keys {
        add_fallback_key(tx, user_id, device_id, key, &mut counts)?;
    }
    if counts.one_time.len() + counts.unused_fallback.len() > MAX_ALGORITHMS {
        return Err(Error::invalid_param("These are too many algorithms"));
    }
    if counts != before {
        counts.changed = tx.next_pos();
        tx.put(&KEY_COUNTS, (user_id, device_id), &counts);
    }
    Ok(counts)
}

fn add_one_time_keys(
    tx: &mut Tx,
    user_id: &str,
    device_id: &str,
    keys: &[NewKey],
    counts: &mut KeyCounts,
) -> Result<()> {
    if keys.is_empty() {
        return Ok(());
    }
    let ids = keys.iter().map(|key| (user_id, device_id, key.key_id.as_str()));
    let known = tx.multi_get(&ONE_TIME_KEY_IDS, ids)?;
    let mut claimed = match counts.claimed {
        Some(claimed) => claimed,
        None => count_claimed(tx, user_id, device_id)?,
    };
    let at = tx.next_pos();
    for (index, (key, known)) in (0u16..).zip(keys.iter().zip(known)) {
        let NewKey { algorithm, key_id, digest, json } = key;
        match known {
            Some(known) if known.digest == *digest => continue,
            Some(known) if !is_claimed(tx, user_id, device_id, key_id, known)? => {
                return Err(Error::unknown(format!("There is another one-time key {key_id}")));
            }
            // Its name is now that of another key.
            Some(_) => claimed = claimed.saturating_sub(1),
            None => {}
        }
        let count = counts.one_time.entry(algorithm.clone()).or_default();
        *count += 1;
        if *count > MAX_ONE_TIME_KEYS {
            return Err(Error::unknown(format!("A device has at most {MAX_ONE_TIME_KEYS} one-time keys")));
        }
        let row = OneTimeKey { key_id: key_id.clone(), json: json.clone(), placed: true };
        tx.put(&ONE_TIME_KEYS, (user_id, device_id, algorithm, at, index), &row);
        let row = OneTimeKeyId { digest: *digest, at, held: Held::AtIndex(index) };
        tx.put(&ONE_TIME_KEY_IDS, (user_id, device_id, key_id), &row);
    }
    if claimed as usize >= MAX_CLAIMED + CLAIMED_SLACK {
        claimed = forget_claimed(tx, user_id, device_id)?;
    }
    counts.claimed = Some(claimed);
    Ok(())
}

fn is_claimed(tx: &Tx, user_id: &str, device_id: &str, key_id: &str, id: OneTimeKeyId) -> Result<bool> {
    match id.held {
        Held::AtIndex(index) => {
            Ok(!tx.contains(&ONE_TIME_KEYS, (user_id, device_id, algorithm_of(key_id), id.at, index))?)
        }
        Held::UnlessClaimed(claimed) => Ok(claimed),
    }
}

/// The claimed keys of a device that are remembered, the oldest first. Whoever uploads or claims keys of the device
/// writes its counts, so that nobody else changes these rows meanwhile.
fn claimed_keys(tx: &Tx, user_id: &str, device_id: &str) -> Result<Vec<(Pos, String)>> {
    let there = tx.scan(&ONE_TIME_KEYS, ONE_TIME_KEYS.prefix((user_id, device_id))).keys();
    let there = there.map(|key| key.map(|(_, _, algorithm, at, index)| (algorithm, at, index)));
    let there: HashSet<_> = there.collect::<store::Result<_>>()?;
    let mut claimed = Vec::new();
    for row in tx.scan(&ONE_TIME_KEY_IDS, ONE_TIME_KEY_IDS.prefix((user_id, device_id))) {
        let ((_, _, key_id), id) = row?;
        let is_claimed = match id.held {
            Held::AtIndex(index) => !there.contains(&(algorithm_of(&key_id).to_owned(), id.at, index)),
            Held::UnlessClaimed(claimed) => claimed,
        };
        if is_claimed {
            claimed.push((id.at, key_id));
        }
    }
    claimed.sort_unstable();
    Ok(claimed)
}

fn count_claimed(tx: &Tx, user_id: &str, device_id: &str) -> Result<u32> {
    Ok(claimed_keys(tx, user_id, device_id)?.len() as u32)
}

/// Forgets keys that were claimed long ago. Returns how many are left.
fn forget_claimed(tx: &mut Tx, user_id: &str, device_id: &str) -> Result<u32> {
    let claimed = claimed_keys(tx, user_id, device_id)?;
    let excess = claimed.len().saturating_sub(MAX_CLAIMED);
    let mut left = claimed.len() as u32;
    for (_, key_id) in claimed.iter().take(excess.min(2 * CLAIMED_SLACK)) {
        if tx.batch().size_bytes() > BATCH_BYTES / 2 {
            break;
        }
        tx.delete(&ONE_TIME_KEY_IDS, (user_id, device_id, key_id));
        left -= 1;
    }
    Ok(left)
}

fn add_fallback_key(tx: &mut Tx, user_id: &str, device_id: &str, key: &NewKey, counts: &mut KeyCounts) -> Result<()> {
    let at = (user_id, device_id, key.algorithm.as_str());
    let same = |known: &FallbackKey| known.key_id == key.key_id && known.json == key.json;
    if tx.get(&FALLBACK_KEYS, at)?.as_ref().is_some_and(same) {
        return Ok(());
    }
    tx.put(&FALLBACK_KEYS, at, &FallbackKey { key_id: key.key_id.clone(), used: false, json: key.json.clone() });
    counts.unused_fallback.insert(key.algorithm.clone());
    Ok(())
}

/// A key to begin a conversation with: ID and JSON.
pub type Claimed = (String, Bytes);

/// Takes one key of a device: the oldest one-time key, or the fallback key when there is none.
pub fn claim(tx: &mut Tx, user_id: &str, device_id: &str, algorithm: &str) -> Result<Option<Claimed>> {
    let Some(mut counts) = tx.get(&KEY_COUNTS, (user_id, device_id))? else { return Ok(None) };
    let given_out = counts.given_out.get(algorithm).copied();
    let claimed = if let Some(((at, index), key)) = oldest(tx, user_id, device_id, algorithm, given_out)? {
        tx.delete(&ONE_TIME_KEYS, (user_id, device_id, algorithm, at, index));
        if !key.placed {
            let digest = digest(std::str::from_utf8(&key.json).unwrap_or_default());
            let id = OneTimeKeyId { digest, at, held: Held::UnlessClaimed(true) };
            tx.put(&ONE_TIME_KEY_IDS, (user_id, device_id, &key.key_id), &id);
        }
        if let Some(count) = counts.one_time.get_mut(algorithm) {
            *count = count.saturating_sub(1);
        }
        counts.given_out.insert(algorithm.to_owned(), (at, index));
        counts.claimed = counts.claimed.map(|claimed| claimed.saturating_add(1));
        (key.key_id, key.json)
    } else {
        let at = (user_id, device_id, algorithm);
        let Some(key) = tx.get(&FALLBACK_KEYS, at)? else { return Ok(None) };
        if key.used {
            return Ok(Some((key.key_id, key.json)));
        }
        tx.put(&FALLBACK_KEYS, at, &FallbackKey { used: true, ..key.clone() });
        counts.unused_fallback.remove(algorithm);
        (key.key_id, key.json)
    };
    counts.changed = tx.next_pos();
    tx.put(&KEY_COUNTS, (user_id, device_id), &counts);
    Ok(Some(claimed))
}

/// The oldest one-time key of a device, and its place.
fn oldest(
    tx: &Tx,
    user_id: &str,
    device_id: &str,
    algorithm: &str,
    given_out: Option<(Pos, u16)>,
) -> Result<Option<((Pos, u16), OneTimeKey)>> {
    let mut left = ONE_TIME_KEYS.prefix((user_id, device_id, algorithm));
    if let Some((at, index)) = given_out {
        // As a rule it is the next one of the same upload, which is looked up sooner than searched for.
        let next = index.saturating_add(1);
        if let Some(key) = tx.get(&ONE_TIME_KEYS, (user_id, device_id, algorithm, at, next))? {
            return Ok(Some(((at, next), key)));
        }
        left = left.after((user_id, device_id, algorithm, at, index));
    }
    Ok(tx.first(&ONE_TIME_KEYS, left)?.map(|((.., at, index), key)| ((at, index), key)))
}

/// Calls `found` with the ID and the identity keys (as JSON) of each of a user's devices that has any: of all devices,
/// or of those that are wanted.
pub fn identities<'a>(
    read: &impl Read,
    user_id: &str,
    wanted: impl ExactSizeIterator<Item = &'a str>,
    mut found: impl FnMut(&str, &[u8]),
) -> Result<()> {
    if wanted.len() == 0 {
        read.visit(&DEVICE_KEYS, DEVICE_KEYS.prefix((user_id,)), |(_, device_id), row| {
            found(&device_id, DeviceKeys::json_of(row));
            ControlFlow::Continue(())
        })?;
        return Ok(());
    }
    for device_id in wanted {
        read.get_with(&DEVICE_KEYS, (user_id, device_id), |row| found(device_id, DeviceKeys::json_of(row)))?;
    }
    Ok(())
}
