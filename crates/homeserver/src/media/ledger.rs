//! Uploads as administrators look through them: whose they are, how old, how large. Reads rows only, never files.

use std::collections::BTreeMap;

use ruma::UserId;
use store::Read;

use super::{Media, MediaId, marks};
use crate::error::Result;
use crate::schema::{self, MEDIA, MediaMarks, USER_MEDIA};

/// An upload whose file has arrived.
#[derive(Clone, Debug)]
pub struct Entry {
    pub media_id: MediaId,
    pub upload: schema::Media,
    pub marks: MediaMarks,
}

/// What a user has uploaded in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    pub count: u64,
    pub bytes: u64,
}

impl Media {
    /// One upload, whether or not its file has arrived.
    pub fn entry(&self, media_id: &MediaId) -> Result<Option<Entry>> {
        let read = self.store.snapshot();
        let Some(upload) = read.get(&MEDIA, media_id.as_str())? else { return Ok(None) };
        Ok(Some(Entry { media_id: media_id.clone(), marks: marks::of(&read, media_id)?, upload }))
    }

    /// The uploads of a user.
    pub fn entries_of(&self, user_id: &UserId) -> Result<Vec<Entry>> {
        let read = self.store.snapshot();
        let mut entries = Vec::new();
        for key in read.scan(&USER_MEDIA, USER_MEDIA.prefix((user_id.as_str(),))).keys() {
            let Some(media_id) = MediaId::parse(&key?.1) else { continue };
            let Some(upload) = read.get(&MEDIA, media_id.as_str())? else { continue };
            if upload.sha256.is_some() {
                let marks = marks::of(&read, &media_id)?;
                entries.push(Entry { media_id, upload, marks });
            }
        }
        Ok(entries)
    }

    /// What was uploaded before a time and is larger than so many bytes. Protected uploads are not among it.
    pub fn older_than(&self, before_ts: u64, larger_than: u64) -> Result<Vec<Entry>> {
        let read = self.store.snapshot();
        let mut entries = Vec::new();
        for row in read.scan(&MEDIA, MEDIA.all()) {
            let (name, upload) = row?;
            if upload.sha256.is_none() || upload.created_ts >= before_ts || upload.size_bytes <= larger_than {
                continue;
            }
            let Some(media_id) = MediaId::parse(&name) else { continue };
            let marks = marks::of(&read, &media_id)?;
            if !marks.protected {
                entries.push(Entry { media_id, upload, marks });
            }
        }
        Ok(entries)
    }

    /// What each user has uploaded between two times.
    pub fn sums(&self, from_ts: u64, until_ts: u64) -> Result<BTreeMap<String, Sum>> {
        let read = self.store.snapshot();
        let mut sums: BTreeMap<String, Sum> = BTreeMap::new();
        for row in read.scan(&MEDIA, MEDIA.all()) {
            let (_, upload) = row?;
            if upload.sha256.is_some() && (from_ts..=until_ts).contains(&upload.created_ts) {
                let sum = sums.entry(upload.user_id).or_default();
                sum.count += 1;
                sum.bytes += upload.size_bytes;
            }
        }
        Ok(sums)
    }
}
