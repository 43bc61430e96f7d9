//! Key backups: the keys of conversations, encrypted by a user's devices, in versions that replace each other.

use store::{Read, Tx};

use crate::error::{Error, Result};
use crate::schema::{BACKED_UP_KEYS, BACKUPS, BackedUpKey, Backup, JOBS, Job};

/// So many keys are deleted in one commit.
const MAX_DELETED: usize = 500;
/// So many backups of one user go in one commit.
const MAX_FORGOTTEN: usize = 200;
/// A user keeps so many versions, and only the newest is of use: beyond that the oldest goes.
const MAX_VERSIONS: usize = 64;

/// The keys of all backups of one user take no more than this. A key is about 1 KiB, a thousand conversations of years
/// some ten thousand of them.
const MAX_BYTES: u64 = 512 * 1024 * 1024;

/// A key on its way into a backup.
#[derive(Debug)]
pub struct NewKey {
    pub room_id: String,
    pub session_id: String,
    pub key: BackedUpKey,
}

/// Which keys of a backup: all, those of a room, or one of them.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    pub room_id: Option<&'a str>,
    pub session_id: Option<&'a str>,
}

/// What a backup holds, after a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    pub count: u64,
    pub etag: u64,
}

impl From<&Backup> for Totals {
    fn from(backup: &Backup) -> Self {
        Totals { count: backup.count, etag: backup.etag }
    }
}

fn unknown() -> Error {
    Error::not_found("There is no such backup")
}

// ---- versions ----------------------------------------------------------------------------------------------------

/// The newest version of a user's backup.
pub fn current(read: &impl Read, user_id: &str) -> Result<Option<(u64, Backup)>> {
    for row in read.scan(&BACKUPS, BACKUPS.prefix((user_id,)).reversed()) {
        let ((_, version), backup) = row?;
        if !backup.deleted {
            return Ok(Some((version, backup)));
        }
    }
    Ok(None)
}

pub fn get(read: &impl Read, user_id: &str, version: u64) -> Result<Backup> {
    read.get(&BACKUPS, (user_id, version))?.filter(|backup| !backup.deleted).ok_or_else(unknown)
}

/// A new version, which takes the place of the ones before.
pub fn create(tx: &mut Tx, user_id: &str, algorithm: &str, auth_data: &str) -> Result<u64> {
    let all = BACKUPS.prefix((user_id,));
    tx.guard(&all);
    let last = tx.first(&BACKUPS, all.clone().reversed())?;
    let version = last.as_ref().map_or(0, |((_, version), _)| *version) + 1;
    if let Some(((_, last), Backup { deleted: true, .. })) = last {
        // It was kept for its number.
        tx.delete(&BACKUPS, (user_id, last));
    }
    make_room(tx, user_id)?;
    let (algorithm, auth_data) = (algorithm.to_owned(), auth_data.to_owned());
    tx.put(&BACKUPS, (user_id, version), &Backup { algorithm, auth_data, ..Backup::default() });
    Ok(version)
}

/// Deletes what is too much for another version to be made. Call it under a guard.
fn make_room(tx: &mut Tx, user_id: &str) -> Result<()> {
    let span = BACKUPS.prefix((user_id,)).limit(MAX_VERSIONS + MAX_FORGOTTEN);
    let rows: Vec<_> = tx.unchecked().scan(&BACKUPS, span).collect::<store::Result<_>>()?;
    let kept: Vec<u64> = rows.iter().filter(|(_, backup)| !backup.deleted).map(|((_, version), _)| *version).collect();
    // Those that only keep a number, from a time when all of them did, stand in nobody's way but take room.
    let spent = rows.iter().filter(|(_, backup)| backup.deleted).map(|((_, version), _)| *version);
    for version in spent.take(MAX_FORGOTTEN) {
        tx.delete(&BACKUPS, (user_id, version));
    }
    let excess = (kept.len() + 1).saturating_sub(MAX_VERSIONS);
    for version in kept.into_iter().take(excess) {
        remove(tx, user_id, version)?;
    }
    Ok(())
}

/// Replaces what is said of a backup. How it is encrypted stays.
pub fn update(tx: &mut Tx, user_id: &str, version: u64, algorithm: &str, auth_data: &str) -> Result<()> {
    let backup = get(tx, user_id, version)?;
    if backup.algorithm != algorithm {
        return Err(Error::invalid_param("The algorithm of a backup does not change"));
    }
    tx.put(&BACKUPS, (user_id, version), &Backup { auth_data: auth_data.to_owned(), ..backup });
    Ok(())
}

/// Deletes a backup; its keys go later, and are seen by nobody meanwhile.
pub fn delete(tx: &mut Tx, user_id: &str, version: u64) -> Result<()> {
    let all = BACKUPS.prefix((user_id,));
    tx.guard(&all);
    let is_newest = tx.first(&BACKUPS, all.after((user_id, version)))?.is_none();
    match tx.get(&BACKUPS, (user_id, version))? {
        Some(backup) if !backup.deleted => remove(tx, user_id, version)?,
        Some(_) => return Ok(()),
        // What was given out once and is gone was deleted.
        None if version > 0 && !is_newest => return Ok(()),
        None => return Err(unknown()),
    }
    if is_newest {
        // Its number is not given out again.
        tx.put(&BACKUPS, (user_id, version), &Backup { deleted: true, ..Backup::default() });
    }
    Ok(())
}

/// Deletes a version. Its keys, if it has any, are left to a job.
fn remove(tx: &mut Tx, user_id: &str, version: u64) -> Result<()> {
    tx.delete(&BACKUPS, (user_id, version));
    // Whoever puts keys into it reads its row.
    if tx.unchecked().first(&BACKED_UP_KEYS, BACKED_UP_KEYS.prefix((user_id, version)))?.is_some() {
        let job = tx.next_pos();
        tx.put(&JOBS, job, &Job::ForgetBackup { user_id: user_id.to_owned(), version });
    }
    Ok(())
}

/// Deletes the backups of a user from one on, as many as go into one commit. Where to go on, if there are more.
pub fn delete_from(tx: &mut Tx, user_id: &str, from: u64) -> Result<Option<u64>> {
    let span = BACKUPS.prefix((user_id,)).from((user_id, from)).limit(MAX_FORGOTTEN + 1);
    let rows = tx.scan_guarded(&BACKUPS, span)?;
    for ((_, version), backup) in rows.iter().take(MAX_FORGOTTEN) {
        if !backup.deleted {
            delete(tx, user_id, *version)?;
        }
    }
    Ok(rows.get(MAX_FORGOTTEN).map(|((_, version), _)| *version))
}

/// Deletes some of the keys of a deleted backup. Says whether that was all.
pub fn forget(tx: &mut Tx, user_id: &str, version: u64) -> Result<bool> {
    let keys = BACKED_UP_KEYS.prefix((user_id, version)).limit(MAX_DELETED);
    let keys: Vec<_> = tx.unchecked().scan(&BACKED_UP_KEYS, keys).keys().collect::<store::Result<_>>()?;
    for (_, _, room_id, session_id) in &keys {
        tx.delete(&BACKED_UP_KEYS, (user_id, version, room_id, session_id));
    }
    Ok(keys.len() < MAX_DELETED)
}

// ---- keys --------------------------------------------------------------------------------------------------------

/// The backup, if it is the one that keys go into.
fn writable(tx: &mut Tx, user_id: &str, version: u64) -> Result<Backup> {
    tx.guard(&BACKUPS.prefix((user_id,)));
    match current(tx, user_id)? {
        Some((current, backup)) if current == version => Ok(backup),
        Some((current, _)) => {
            get(tx, user_id, version)?;
            Err(Error::wrong_backup(current))
        }
        None => Err(unknown()),
    }
}

/// Keeps keys, each one unless the one that is there is better.
pub fn put(tx: &mut Tx, user_id: &str, version: u64, keys: &[NewKey]) -> Result<Totals> {
    let mut backup = writable(tx, user_id, version)?;
    let places = keys.iter().map(|new| (user_id, version, new.room_id.as_str(), new.session_id.as_str()));
    let known = tx.multi_get(&BACKED_UP_KEYS, places)?;
    let (bytes, mut changed) = (backup.bytes, false);
    for (new, known) in keys.iter().zip(known) {
        if known.as_ref().is_some_and(|known| !is_better(&new.key, known)) {
            continue;
        }
        tx.put(&BACKED_UP_KEYS, (user_id, version, &new.room_id, &new.session_id), &new.key);
        backup.count += u64::from(known.is_none());
        let ids = (new.room_id.as_str(), new.session_id.as_str());
        let before = known.map_or(0, |known| bytes_of(ids, &known));
        backup.bytes = backup.bytes.saturating_sub(before).saturating_add(bytes_of(ids, &new.key));
        changed = true;
    }
    if backup.bytes > bytes && backup.bytes.saturating_add(bytes_of_others(tx, user_id, version)?) > MAX_BYTES {
        return Err(too_much());
    }
    if changed {
        backup.etag += 1;
        tx.put(&BACKUPS, (user_id, version), &backup);
    }
    Ok(Totals::from(&backup))
}

/// What a key takes in the store, about.
fn bytes_of((room_id, session_id): (&str, &str), key: &BackedUpKey) -> u64 {
    const REST: usize = 64;
    (room_id.len() + session_id.len() + key.session_data.len() + REST) as u64
}

/// What the keys of all other backups of a user take.
fn bytes_of_others(tx: &Tx, user_id: &str, version: u64) -> Result<u64> {
    let mut bytes = 0_u64;
    for row in tx.unchecked().scan(&BACKUPS, BACKUPS.prefix((user_id,))) {
        let ((_, other), backup) = row?;
        bytes = bytes.saturating_add(if other == version { 0 } else { backup.bytes });
    }
    Ok(bytes)
}

fn too_much() -> Error {
    Error::too_large(format!(
        "Key backups of one user hold {} MiB at most; old versions can be deleted",
        MAX_BYTES >> 20
    ))
}

/// Whether a key opens more, or can be trusted more, than another for the same session.
fn is_better(new: &BackedUpKey, known: &BackedUpKey) -> bool {
    let rank = |key: &BackedUpKey| (!key.is_verified, key.first_message_index, key.forwarded_count);
    rank(new) < rank(known)
}

/// Calls `found` with the keys of a backup, in the order of their rooms.
pub fn visit(
    read: &impl Read,
    user_id: &str,
    version: u64,
    part: Part<'_>,
    mut found: impl FnMut(&str, &str, &BackedUpKey),
) -> Result<()> {
    get(read, user_id, version)?;
    if let (Some(room_id), Some(session_id)) = (part.room_id, part.session_id) {
        if let Some(key) = read.get(&BACKED_UP_KEYS, (user_id, version, room_id, session_id))? {
            found(room_id, session_id, &key);
        }
        return Ok(());
    }
    for row in read.scan(&BACKED_UP_KEYS, span(user_id, version, part)) {
        let ((_, _, room_id, session_id), key) = row?;
        found(&room_id, &session_id, &key);
    }
    Ok(())
}

fn span(user_id: &str, version: u64, part: Part<'_>) -> store::Span<(String, u64, String, String)> {
    match part.room_id {
        Some(room_id) => BACKED_UP_KEYS.prefix((user_id, version, room_id)),
        None => BACKED_UP_KEYS.prefix((user_id, version)),
    }
}

/// Deletes some keys of a backup: as many as go into one commit. Says whether those were all.
pub fn delete_keys(tx: &mut Tx, user_id: &str, version: u64, part: Part<'_>) -> Result<(bool, Totals)> {
    let mut backup = get(tx, user_id, version)?;
    let keys: Vec<(String, String, u64)> = match (part.room_id, part.session_id) {
        (Some(room_id), Some(session_id)) => {
            let key = tx.get(&BACKED_UP_KEYS, (user_id, version, room_id, session_id))?;
            let sized = |key| (room_id.to_owned(), session_id.to_owned(), bytes_of((room_id, session_id), &key));
            key.map(sized).into_iter().collect()
        }
        _ => {
            let span = span(user_id, version, part).limit(MAX_DELETED);
            let sized = |((_, _, room_id, session_id), key): ((String, u64, String, String), BackedUpKey)| {
                let bytes = bytes_of((&room_id, &session_id), &key);
                (room_id, session_id, bytes)
            };
            tx.scan(&BACKED_UP_KEYS, span).map(|row| row.map(sized)).collect::<store::Result<_>>()?
        }
    };
    for (room_id, session_id, bytes) in &keys {
        tx.delete(&BACKED_UP_KEYS, (user_id, version, room_id, session_id));
        backup.bytes = backup.bytes.saturating_sub(*bytes);
    }
    if !keys.is_empty() {
        backup.count = backup.count.saturating_sub(keys.len() as u64);
        backup.etag += 1;
        tx.put(&BACKUPS, (user_id, version), &backup);
    }
    Ok((keys.len() < MAX_DELETED, Totals::from(&backup)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key((is_verified, first_message_index, forwarded_count): (bool, u64, u64)) -> BackedUpKey {
        BackedUpKey { first_message_index, forwarded_count, is_verified, session_data: String::new() }
    }

    #[test]
    fn pitfall_080_which_of_two_keys_is_better() {
        // From the best to the worst.
        let ranks = [(true, 0, 0), (true, 0, 1), (true, 5, 0), (false, 0, 0), (false, 0, 3), (false, 1, 0)];
        for (place, better) in ranks.iter().enumerate() {
            for (other, worse) in ranks.iter().enumerate() {
                assert_eq!(is_better(&key(*better), &key(*worse)), place < other, "{better:?} {worse:?}");
            }
        }
    }
}
