//! Cross-signing: the keys by which users vouch for their devices and for each other.
//!
//! What a user signs of their own devices and of their own master key everybody may see: it is kept with the keys.
//! What they sign of others is seen by themselves only, and kept apart.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bytes::Bytes;
use ruma::OwnedUserId;
use ruma::serde::Base64;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use store::{Read, Tx};

use super::signed::Signed;
use crate::error::{Error, Result};
use crate::schema::{
    self, CROSS_SIGNING_KEYS, DEVICE_KEYS, DEVICES, DeviceKeys, USER_SIGNATURE_LOG, USER_SIGNATURES, UserSignatures,
};

/// A master key that this many devices signed is none that a person has.
const MAX_SIGNATURES: usize = 1_000;
/// So many keys are signed in one request.
const MAX_SIGNED: usize = 256;
const ALGORITHM: &str = "ed25519:";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Usage {
    Master,
    SelfSigning,
    UserSigning,
}

impl Usage {
    pub fn as_str(self) -> &'static str {
        match self {
            Usage::Master => "master",
            Usage::SelfSigning => "self_signing",
            Usage::UserSigning => "user_signing",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        [Usage::Master, Usage::SelfSigning, Usage::UserSigning].into_iter().find(|usage| usage.as_str() == name)
    }
}

/// A cross-signing key.
#[derive(Clone, Debug)]
pub struct SigningKey {
    usage: Usage,
    /// In base64; it is its own name, too.
    public_key: String,
    signed: Signed,
}

/// What a server looks at.
#[derive(Deserialize)]
struct Body {
    user_id: String,
    usage: Vec<String>,
    keys: BTreeMap<String, String>,
}

impl SigningKey {
    /// Checks that a key is one of this user for this usage.
    pub fn new(user_id: &str, usage: Usage, json: &[u8]) -> Result<Self> {
        let body: Body = serde_json::from_slice(json)?;
        if body.user_id != user_id {
            return Err(Error::invalid_param("This key is of another user"));
        }
        if !body.usage.iter().any(|name| name == usage.as_str()) {
            return Err(Error::invalid_param(format!("This is no {} key", usage.as_str())));
        }
        let mut keys = body.keys.into_iter();
        let public_key = match (keys.next(), keys.next()) {
            (Some((key_id, key)), None) if key_id.strip_prefix(ALGORITHM) == Some(&key) => key,
            _ => return Err(Error::invalid_param("This is not one ed25519 key under its own name")),
        };
        let bytes = Base64::<ruma::serde::base64::Standard>::parse(&public_key);
        if bytes.map(|bytes| bytes.as_bytes().len()).ok() != Some(32) {
            return Err(Error::invalid_param("This is no ed25519 key"));
        }
        Ok(SigningKey { usage, public_key, signed: Signed::parse(json)? })
    }

    /// The user's present key.
    pub fn of(read: &impl Read, user_id: &str, usage: Usage) -> Result<Option<Self>> {
        let row = read.get(&CROSS_SIGNING_KEYS, (user_id, usage.as_str()))?;
        let key = row.map(|row| SigningKey::new(user_id, usage, &row.0));
        key.transpose().map_err(Error::internal)
    }

    fn key_id(&self) -> String {
        format!("{ALGORITHM}{}", self.public_key)
    }

    fn put(&self, tx: &mut Tx, user_id: &str) -> Result<()> {
        let json = self.signed.to_json()?;
        if json.len() > store::limits::VALUE_BYTES / 2 {
            return Err(Error::too_large("This key is too large"));
        }
        tx.put(&CROSS_SIGNING_KEYS, (user_id, self.usage.as_str()), &schema::SigningKey(json));
        Ok(())
    }
}

// ---- keys --------------------------------------------------------------------------------------------------------

/// Whether keys were taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// They would replace others: for that a user has to prove who they are.
    ProveYourself,
}

/// Keeps the cross-signing keys of a user. `proven`: it is certain that it is them.
pub fn upload(tx: &mut Tx, user_id: &str, keys: &[SigningKey], proven: bool) -> Result<Outcome> {
    let known_master = SigningKey::of(tx, user_id, Usage::Master)?;
    let new_master = keys.iter().find(|key| key.usage == Usage::Master);
    let Some(master) = new_master.or(known_master.as_ref()) else {
        return Err(Error::missing_param("There is no master key"));
    };
    let mut new = Vec::new();
    for key in keys {
        if key.usage != Usage::Master {
            key.signed.verify(user_id, &master.key_id(), &master.public_key)?;
        }
        let known = SigningKey::of(tx, user_id, key.usage)?;
        if known.is_none_or(|known| known.public_key != key.public_key) {
            new.push(key);
        }
        if tx.contains(&DEVICES, (user_id, key.public_key.as_str()))? {
            return Err(Error::forbidden("A device has this name already"));
        }
    }
    if new.is_empty() {
        return Ok(Outcome::Done);
    }
    if known_master.is_some() && !proven {
        return Ok(Outcome::ProveYourself);
    }
    // What an old key signed is worth nothing any more.
    let replaces = |usage| new.iter().any(|key| key.usage == usage);
    if replaces(Usage::Master) || replaces(Usage::SelfSigning) {
        unsign_devices(tx, user_id)?;
    }
    if replaces(Usage::Master) {
        for usage in [Usage::SelfSigning, Usage::UserSigning] {
            tx.delete(&CROSS_SIGNING_KEYS, (user_id, usage.as_str()));
        }
    }
    for key in &new {
        with_own_signatures(tx, user_id, key, master)?.put(tx, user_id)?;
    }
    schema::device_list_changed(tx, user_id)?;
    Ok(Outcome::Done)
}

/// A key with those of its signatures that are right: by the master key, and by devices of the user.
fn with_own_signatures(tx: &Tx, user_id: &str, key: &SigningKey, master: &SigningKey) -> Result<SigningKey> {
    let mut right = BTreeMap::new();
    for (key_id, signature) in key.signed.signatures.get(user_id).into_iter().flatten().take(MAX_SIGNATURES) {
        let signer = match *key_id == master.key_id() {
            true => Some(master.public_key.clone()),
            false => device_key(tx, user_id, key_id)?,
        };
        let Some(signer) = signer else { continue };
        key.signed.verify(user_id, key_id, &signer)?;
        right.insert(key_id.clone(), signature.clone());
    }
    let mut key = key.clone();
    key.signed.signatures = BTreeMap::from([(user_id.to_owned(), right)]);
    Ok(key)
}

/// The key by which a device of the user signs.
fn device_key(read: &impl Read, user_id: &str, key_id: &str) -> Result<Option<String>> {
    #[derive(Deserialize)]
    struct Keys {
        keys: BTreeMap<String, String>,
    }
    let Some(device_id) = key_id.strip_prefix(ALGORITHM) else { return Ok(None) };
    let Some(row) = read.get(&DEVICE_KEYS, (user_id, device_id))? else { return Ok(None) };
    let keys = serde_json::from_slice::<Keys>(&row.0).ok();
    Ok(keys.and_then(|mut keys| keys.keys.remove(key_id)))
}

/// Takes the signatures of the present self-signing key from the user's devices.
fn unsign_devices(tx: &mut Tx, user_id: &str) -> Result<()> {
    let row = tx.get(&CROSS_SIGNING_KEYS, (user_id, Usage::SelfSigning.as_str()))?;
    let Some(key) = row.and_then(|row| SigningKey::new(user_id, Usage::SelfSigning, &row.0).ok()) else {
        return Ok(());
    };
    for ((_, device_id), keys) in tx.scan_guarded(&DEVICE_KEYS, DEVICE_KEYS.prefix((user_id,)))? {
        let mut signed = Signed::parse(&keys.0).map_err(Error::internal)?;
        let own = signed.signatures.get_mut(user_id);
        if own.is_some_and(|own| own.remove(&key.key_id()).is_some()) {
            tx.put(&DEVICE_KEYS, (user_id, &device_id), &DeviceKeys(signed.to_json()?));
        }
    }
    Ok(())
}

/// Device keys that come again lose none of the signatures that came later, unless they are other keys.
pub fn keep_signatures(user_id: &str, known: &DeviceKeys, new: &DeviceKeys) -> Result<DeviceKeys> {
    let (known, mut signed) = (Signed::parse(&known.0).map_err(Error::internal)?, Signed::parse(&new.0)?);
    let Some(kept) = known.signatures.get(user_id).filter(|_| known.says_the_same(&signed)) else {
        return Ok(new.clone());
    };
    let own = signed.signatures.entry(user_id.to_owned()).or_default();
    for (key_id, signature) in kept {
        own.entry(key_id.clone()).or_insert_with(|| signature.clone());
    }
    Ok(DeviceKeys(signed.to_json()?))
}

// ---- signatures --------------------------------------------------------------------------------------------------

/// Signed keys, by user ID, and by device ID or public key.
pub type SignedKeys = BTreeMap<OwnedUserId, BTreeMap<String, Box<RawValue>>>;
/// What was wrong with some of them.
pub type Failures = BTreeMap<OwnedUserId, BTreeMap<String, Value>>;

/// Keeps the signatures that a user made, as far as they are right.
pub fn add_signatures(tx: &mut Tx, user_id: &str, keys: &SignedKeys) -> Result<Failures> {
    if keys.values().map(BTreeMap::len).sum::<usize>() > MAX_SIGNED {
        return Err(Error::invalid_param(format!("At most {MAX_SIGNED} keys can be signed at a time")));
    }
    let mut failures = Failures::new();
    for (signee, keys) in keys {
        for (name, json) in keys {
            let added = match signee == user_id {
                true => sign_own(tx, user_id, name, json),
                false => sign_other(tx, user_id, signee, name, json),
            };
            match added {
                Ok(()) => {}
                Err(failure) if failure.status().is_client_error() => {
                    failures.entry(signee.clone()).or_default().insert(name.clone(), failure.body());
                }
                Err(failure) => return Err(failure),
            }
        }
    }
    Ok(failures)
}

fn other_key() -> Error {
    Error::invalid_param("This is not the key that is known by this name")
}

fn no_key(usage: Usage) -> Error {
    Error::not_found(format!("There is no {} key", usage.as_str()))
}

fn sign_own(tx: &mut Tx, user_id: &str, name: &str, json: &RawValue) -> Result<()> {
    let new = Signed::parse(json.get().as_bytes())?;
    let master = SigningKey::of(tx, user_id, Usage::Master)?;
    if let Some(master) = master.filter(|master| master.public_key == name) {
        return sign_own_master(tx, user_id, master, &new);
    }
    let row = tx.get(&DEVICE_KEYS, (user_id, name))?;
    let row = row.ok_or_else(|| Error::not_found("There is no such key"))?;
    let mut known = Signed::parse(&row.0).map_err(Error::internal)?;
    if !known.says_the_same(&new) {
        return Err(other_key());
    }
    let signer = SigningKey::of(tx, user_id, Usage::SelfSigning)?.ok_or_else(|| no_key(Usage::SelfSigning))?;
    new.verify(user_id, &signer.key_id(), &signer.public_key)?;
    add(&mut known, &new, user_id, &signer.key_id());
    let keys = DeviceKeys(known.to_json()?);
    if keys != row {
        tx.put(&DEVICE_KEYS, (user_id, name), &keys);
        schema::device_list_changed(tx, user_id)?;
    }
    Ok(())
}

/// Devices vouch for the master key of their user.
fn sign_own_master(tx: &mut Tx, user_id: &str, mut master: SigningKey, new: &Signed) -> Result<()> {
    if !master.signed.says_the_same(new) {
        return Err(other_key());
    }
    let (mut any, mut changed) = (false, false);
    for (key_id, signature) in new.signatures.get(user_id).into_iter().flatten() {
        if *key_id == master.key_id() {
            continue;
        }
        let signer = device_key(tx, user_id, key_id)?.ok_or_else(|| Error::not_found("There is no such device"))?;
        new.verify(user_id, key_id, &signer)?;
        any = true;
        if master.signed.signature(user_id, key_id) != Some(signature) {
            changed = true;
            add(&mut master.signed, new, user_id, key_id);
        }
    }
    if !any {
        return Err(Error::invalid_signature("No device signed this"));
    }
    if changed {
        master.put(tx, user_id)?;
        schema::device_list_changed(tx, user_id)?;
    }
    Ok(())
}

fn sign_other(tx: &mut Tx, user_id: &str, signee: &OwnedUserId, name: &str, json: &RawValue) -> Result<()> {
    let new = Signed::parse(json.get().as_bytes())?;
    let master = SigningKey::of(tx, signee.as_str(), Usage::Master)?.filter(|master| master.public_key == name);
    let master = master.ok_or_else(|| no_key(Usage::Master))?;
    if !master.signed.says_the_same(&new) {
        return Err(other_key());
    }
    let signer = SigningKey::of(tx, user_id, Usage::UserSigning)?.ok_or_else(|| no_key(Usage::UserSigning))?;
    let key_id = signer.key_id();
    new.verify(user_id, &key_id, &signer.public_key)?;
    let signature = new.signature(user_id, &key_id).unwrap_or_default().to_owned();
    let known = tx.get(&USER_SIGNATURES, (user_id, signee.as_str()))?;
    if known
        .as_ref()
        .is_some_and(|known| known.master_key == master.public_key && known.signatures.get(&key_id) == Some(&signature))
    {
        return Ok(());
    }
    if let Some(known) = known.filter(|known| !known.at.is_pending()) {
        tx.delete(&USER_SIGNATURE_LOG, (user_id, known.at));
    }
    let at = tx.next_pos();
    tx.put(&USER_SIGNATURE_LOG, (user_id, at), &signee.to_string());
    let signatures = BTreeMap::from([(key_id, signature)]);
    tx.put(
        &USER_SIGNATURES,
        (user_id, signee.as_str()),
        &UserSignatures { at, master_key: master.public_key, signatures },
    );
    Ok(())
}

fn add(known: &mut Signed, new: &Signed, user_id: &str, key_id: &str) {
    if let Some(signature) = new.signature(user_id, key_id) {
        known.signatures.entry(user_id.to_owned()).or_default().insert(key_id.to_owned(), signature.to_owned());
    }
}

// ---- reading -----------------------------------------------------------------------------------------------------

/// Calls `found` with the cross-signing keys of a user, as JSON, that somebody else (or the user) may see.
pub fn keys_for(read: &impl Read, requester: &str, user_id: &str, mut found: impl FnMut(Usage, &[u8])) -> Result<()> {
    let mine = requester == user_id;
    let mut failed = Ok(());
    read.visit(&CROSS_SIGNING_KEYS, CROSS_SIGNING_KEYS.prefix((user_id,)), |(_, usage), row| {
        let json = schema::SigningKey::json_of(row);
        match Usage::parse(&usage) {
            Some(Usage::UserSigning) if !mine => {}
            Some(Usage::Master) if !mine => match vouched(read, requester, user_id, json) {
                Ok(Some(vouched)) => found(Usage::Master, &vouched),
                Ok(None) => found(Usage::Master, json),
                Err(failure) => failed = Err(failure),
            },
            Some(usage) => found(usage, json),
            None => {}
        }
        ControlFlow::Continue(())
    })?;
    failed
}

/// A master key with what the requester signed of it by their present key, if they did.
fn vouched(read: &impl Read, requester: &str, user_id: &str, json: &[u8]) -> Result<Option<Bytes>> {
    let Some(vouched) = read.get(&USER_SIGNATURES, (requester, user_id))? else { return Ok(None) };
    let Some(signer) = SigningKey::of(read, requester, Usage::UserSigning)? else { return Ok(None) };
    let mut master = SigningKey::new(user_id, Usage::Master, json).map_err(Error::internal)?;
    let signature = vouched.signatures.get(&signer.key_id()).filter(|_| master.public_key == vouched.master_key);
    let Some(signature) = signature else { return Ok(None) };
    let own = master.signed.signatures.entry(requester.to_owned()).or_default();
    own.insert(signer.key_id(), signature.clone());
    master.signed.to_json().map(Some)
}

/// Deletes the keys of a user who is gone.
pub fn forget(tx: &mut Tx, user_id: &str) {
    for usage in [Usage::Master, Usage::SelfSigning, Usage::UserSigning] {
        tx.delete(&CROSS_SIGNING_KEYS, (user_id, usage.as_str()));
    }
}
