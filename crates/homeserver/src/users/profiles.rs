//! Profiles: a row per field, with its JSON value. What rooms show of them are member events, which a job sends.

use bytes::Bytes;
use ruma::{OwnedMxcUri, UserId};
use serde_json::{Map, Value};
use store::{Read, Tx};

use crate::error::{Error, ErrorCode, Result};
use crate::schema::{JOBS, Job, PROFILES};
use crate::users::directory;

pub const DISPLAYNAME: &str = "displayname";
pub const AVATAR_URL: &str = "avatar_url";

const MAX_KEY_BYTES: usize = 255;
const MAX_PROFILE_BYTES: usize = 64 * 1024;
const MAX_DISPLAYNAME_CHARS: usize = 256;
const MAX_AVATAR_URL_BYTES: usize = 1_000;

/// What member events show of a user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    pub displayname: Option<String>,
    pub avatar_url: Option<OwnedMxcUri>,
}

pub fn shown(read: &impl Read, user_id: &UserId) -> Result<Shown> {
    let text = |name| -> Result<Option<String>> {
        let value = field(read, user_id, name)?;
        Ok(value.as_ref().and_then(Value::as_str).map(str::to_owned))
    };
    Ok(Shown { displayname: text(DISPLAYNAME)?, avatar_url: text(AVATAR_URL)?.map(OwnedMxcUri::from) })
}

pub fn field(read: &impl Read, user_id: &UserId, name: &str) -> Result<Option<Value>> {
    let stored = read.get(&PROFILES, (user_id.as_str(), name))?;
    stored.map(|value| serde_json::from_slice(&value).map_err(Error::internal)).transpose()
}

/// All fields.
pub fn all(read: &impl Read, user_id: &UserId) -> Result<Map<String, Value>> {
    let mut profile = Map::new();
    for row in read.scan(&PROFILES, PROFILES.prefix((user_id.as_str(),))) {
        let ((_, name), value) = row?;
        profile.insert(name, serde_json::from_slice(&value).map_err(Error::internal)?);
    }
    Ok(profile)
}

/// Sets a field, or deletes it. What rooms show follows by a job of the same commit.
pub fn set(tx: &mut Tx, user_id: &UserId, name: &str, value: Option<&Value>) -> Result<()> {
    // Clients of old have no other way to say that they want none.
    let value = value.filter(|value| !is_shown(name) || !(value.is_null() || *value == ""));
    let key = (user_id.as_str(), name);
    let before = field(tx, user_id, name)?;
    if before.as_ref() == value {
        return Ok(());
    }
    match value {
        None => tx.delete(&PROFILES, key),
        Some(value) => {
            check(name, value)?;
            tx.guard(&PROFILES.prefix((user_id.as_str(),)));
            let mut profile = all(tx.unchecked(), user_id)?;
            profile.insert(name.to_owned(), value.clone());
            if Value::Object(profile).to_string().len() >= MAX_PROFILE_BYTES {
                return Err(Error::bad_request(ErrorCode::ProfileTooLarge, "A profile is smaller than 64 KiB"));
            }
            tx.put(&PROFILES, key, &Bytes::from(value.to_string()));
        }
    }
    if name == DISPLAYNAME {
        directory::update(tx, user_id)?;
    }
    if is_shown(name) {
        let job = tx.next_pos();
        tx.put(&JOBS, job, &Job::PropagateProfile { user_id: user_id.to_string(), from: 0 });
    }
    Ok(())
}

/// Deletes a profile, without telling rooms.
pub fn delete_all(tx: &mut Tx, user_id: &UserId) -> Result<()> {
    for ((_, name), _) in tx.scan_guarded(&PROFILES, PROFILES.prefix((user_id.as_str(),)))? {
        tx.delete(&PROFILES, (user_id.as_str(), &name));
    }
    Ok(())
}

/// Whether a name may be that of a field: one of the two old ones, or namespaced.
pub fn check_name(name: &str) -> Result<()> {
    if name.len() > MAX_KEY_BYTES {
        return Err(Error::bad_request(ErrorCode::KeyTooLarge, "A field's name has at most 255 bytes"));
    }
    let starts_well = name.starts_with(|first: char| first.is_ascii_lowercase());
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-.".contains(c);
    if starts_well && name.chars().all(fits) {
        Ok(())
    } else {
        Err(Error::invalid_param("This is not the name of a profile field"))
    }
}

fn is_shown(name: &str) -> bool {
    name == DISPLAYNAME || name == AVATAR_URL
}

fn check(name: &str, value: &Value) -> Result<()> {
    match (name, value) {
        (DISPLAYNAME, Value::String(text)) if text.chars().count() <= MAX_DISPLAYNAME_CHARS => Ok(()),
        (AVATAR_URL, Value::String(url)) if url.starts_with("mxc://") && url.len() <= MAX_AVATAR_URL_BYTES => Ok(()),
        ("m.tz", Value::String(_)) => Ok(()),
        (DISPLAYNAME, Value::String(_)) => Err(Error::invalid_param("The display name is too long")),
        (AVATAR_URL, Value::String(_)) => Err(Error::invalid_param("avatar_url must be an mxc:// URI")),
        (DISPLAYNAME | AVATAR_URL | "m.tz", _) => Err(Error::bad_json(format!("{name} must be a string"))),
        _ => Ok(()),
    }
}
