//! Batches: a commit as data. Checks, writes and topics; nothing happens until it is committed.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use bytes::Bytes;
use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    Corrupt, Error, Key, KeyBuf, Pos, Result, Span, Table, Topic, Value, ValueBuf,
    key::Stamp,
    limits,
    table::{Hint, TableDef},
};

/// What is to be written together, or not at all.
///
/// The last write to a key wins. Mistakes (a value too large) are reported by the commit.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    pub(crate) writes: BTreeMap<SmallVec<[u8; 56]>, Write>,
    pub(crate) checks: Vec<Check>,
    pub(crate) guards: Vec<Guard>,
    /// A set: a change of somebody's devices touches all the rooms they are in.
    pub(crate) topics: BTreeSet<Topic>,
    pub(crate) stamps: u32,
    bytes: usize,
    error: Option<Error>,
}

/// What happens to one key.
#[derive(Debug, Clone)]
pub(crate) struct Write {
    pub(crate) table: TableDef,
    pub(crate) key_stamps: SmallVec<[Stamp; 2]>,
    /// `None` deletes.
    pub(crate) value: Option<Bytes>,
    pub(crate) value_stamps: SmallVec<[Stamp; 2]>,
}

/// The key with this hash was not written after `since`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Check {
    pub(crate) hash: u64,
    pub(crate) since: Pos,
}

/// Nothing between these keys was written after `since`.
#[derive(Debug, Clone)]
pub(crate) struct Guard {
    pub(crate) low: SmallVec<[u8; 56]>,
    pub(crate) high: SmallVec<[u8; 56]>,
    pub(crate) since: Pos,
}

pub(crate) fn hash_key(key: &[u8]) -> u64 {
    xxh3_64(key)
}

impl Batch {
    /// A batch that does nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// True when committing would write and notify nothing.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.topics.is_empty()
    }

    /// The size of what is written so far, in bytes; at most [`limits::BATCH_BYTES`] can be committed.
    pub fn size_bytes(&self) -> usize {
        self.bytes
    }

    /// Takes the next position of this commit: the first call returns `Pos::pending(0)`. A commit takes at least one
    /// position, whether asked for or not.
    pub fn next_pos(&mut self) -> Pos {
        let pos = Pos::pending(self.stamps);
        self.stamps += 1;
        pos
    }

    /// Writes a row.
    pub fn put<K: Key, V: Value>(&mut self, table: &Table<K, V>, key: K::Ref<'_>, value: &V) {
        let mut buf = ValueBuf::default();
        value.encode(&mut buf);
        self.put_buf(table, key, buf);
    }

    /// Writes a row whose value is encoded already: for values that are written in another shape than they are read.
    pub fn put_buf<K: Key, V: Value>(&mut self, table: &Table<K, V>, key: K::Ref<'_>, value: ValueBuf) {
        self.note_topic(table, key);
        self.write(table.def(), table.key(key), Some(value));
    }

    /// Deletes a row; deleting what is not there is fine.
    pub fn delete<K: Key, V: Value>(&mut self, table: &Table<K, V>, key: K::Ref<'_>) {
        self.note_topic(table, key);
        self.write(table.def(), table.key(key), None);
    }

    /// Commits only if this row was not written (or deleted) after position `since`.
    pub fn check_unchanged<K: Key, V: Value>(&mut self, table: &Table<K, V>, key: K::Ref<'_>, since: Pos) {
        self.checks.push(Check { hash: hash_key(&table.key(key).bytes), since });
    }

    /// Commits only if no row of this span (its limit aside) was written, deleted or inserted after position `since`.
    pub fn check_span_unchanged<K: Key>(&mut self, span: &Span<K>, since: Pos) {
        self.guards.push(Guard { low: span.low.clone(), high: span.high.clone(), since });
    }

    /// Notifies a topic besides those of the tables written.
    pub fn touch(&mut self, topic: Topic) {
        self.topics.insert(topic);
    }

    /// Adds everything in `other`, whose pending positions mean the same commit: made by counting on from this batch
    /// or without any. Later writes win.
    pub fn append(&mut self, other: Self) {
        self.stamps = self.stamps.max(other.stamps);
        self.checks.extend(other.checks);
        self.guards.extend(other.guards);
        self.topics.extend(other.topics);
        for (key, write) in other.writes {
            self.insert(key, write);
        }
        self.error = self.error.take().or(other.error);
    }

    fn note_topic<K: Key, V: Value>(&mut self, table: &Table<K, V>, key: K::Ref<'_>) {
        if let Some(topic) = table.topic(key) {
            self.touch(topic);
        }
    }

    fn write(&mut self, table: TableDef, key: KeyBuf, value: Option<ValueBuf>) {
        let limit = if table.chunked { limits::CHUNKED_VALUE_BYTES } else { limits::VALUE_BYTES };
        let mut value_stamps = SmallVec::new();
        let value = value.map(|value| {
            if let Some(corrupt) = value.error {
                self.fail(table.corrupt(&key.bytes, &corrupt));
            }
            if table.chunked && !value.stamps.is_empty() {
                self.fail(table.corrupt(&key.bytes, &Corrupt::new("a chunked value holds a pending position")));
            }
            self.check_size("value", value.bytes.len(), limit);
            value_stamps = value.stamps;
            Bytes::from(value.bytes)
        });
        // Continuation chunks carry three more bytes.
        self.check_size("key", key.bytes.len() + if table.chunked { 3 } else { 0 }, limits::KEY_BYTES);
        for (stamps, bytes) in [(&key.stamps, &key.bytes[..]), (&value_stamps, value.as_deref().unwrap_or_default())] {
            for stamp in stamps {
                self.stamps = self.stamps.max(stamp.offset(bytes) + 1);
            }
        }
        self.insert(key.bytes, Write { table, key_stamps: key.stamps, value, value_stamps });
    }

    fn insert(&mut self, key: SmallVec<[u8; 56]>, write: Write) {
        self.bytes += key.len() + write.len();
        let key_len = key.len();
        if let Some(before) = self.writes.insert(key, write) {
            self.bytes -= key_len + before.len();
        }
    }

    fn check_size(&mut self, what: &'static str, size: usize, limit: usize) {
        if size > limit {
            self.fail(Error::TooLarge { what, size, limit });
        }
    }

    fn fail(&mut self, error: Error) {
        self.error.get_or_insert(error);
    }

    /// The first mistake, if any was made.
    pub(crate) fn validate(&self) -> Result<()> {
        if let Some(error) = &self.error {
            return Err(error.clone());
        }
        if self.bytes > limits::BATCH_BYTES {
            return Err(Error::TooLarge { what: "batch", size: self.bytes, limit: limits::BATCH_BYTES });
        }
        Ok(())
    }

    /// What this batch does to a key, as far as it was told.
    pub(crate) fn find(&self, key: &[u8]) -> Option<&Write> {
        self.writes.get(key)
    }

    /// The writes between two keys.
    pub(crate) fn range(&self, low: &[u8], high: &[u8]) -> impl DoubleEndedIterator<Item = (&[u8], Option<&Bytes>)> {
        self.writes
            .range::<[u8], _>((Bound::Included(low), Bound::Excluded(high)))
            .map(|(key, write)| (key.as_slice(), write.value.as_ref()))
    }
}

impl Write {
    fn len(&self) -> usize {
        self.value.as_ref().map_or(0, Bytes::len)
    }

    pub(crate) fn hint(&self) -> Hint {
        self.table.hint
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread, time::Duration};

    use super::*;

    /// Looking through all of them for each one takes many minutes; a set takes a second or two.
    #[test]
    fn touching_a_topic_does_not_look_through_all_the_others() {
        let (done, outcome) = mpsc::channel();
        thread::spawn(move || {
            let mut batch = Batch::new();
            for number in (0..300_000).chain(0..300_000) {
                batch.touch(Topic::number(1, number));
            }
            done.send(batch.topics.len())
        });
        assert_eq!(outcome.recv_timeout(Duration::from_secs(120)), Ok(300_000));
    }
}
