//! Tables: typed parts of the key space, and spans of their rows.

use std::marker::PhantomData;

use smallvec::SmallVec;

use crate::{Corrupt, Error, Key, KeyBuf, KeyReader, Prefix, Raw, Result, Topic, Value};

/// How a table is used. Tables with the same hint share one part of the engine (a column family).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Hint {
    /// Small rows that are read and overwritten often: heads, devices, cursors, counters.
    Small = 0,
    /// Many small rows, written once and found by their exact key: event ids, transaction ids, state nodes.
    Lookup = 1,
    /// Large rows, written once and kept: events.
    Bulk = 2,
    /// Rows written in order, read from a cursor on and deleted soon: journal, to-device messages, outbox.
    Log = 3,
    /// Rarely touched and compressed harder: backups, account data, archives.
    Cold = 4,
}

impl Hint {
    pub(crate) const ALL: [Self; 5] = [Self::Small, Self::Lookup, Self::Bulk, Self::Log, Self::Cold];
}

/// Tags from here on belong to the store itself.
pub const RESERVED_TAGS: u8 = 0xf0;

/// Continuation chunks of large values: `(CHUNKS, tag, key, index)`.
pub(crate) const CHUNKS_TAG: u8 = 0xff;

type TopicRule<K> = for<'a> fn(<K as Key>::Ref<'a>) -> Topic;

/// A table: declared once as a `const` or `static`. Copying it is free.
///
/// ```
/// use store::{Hint, Pos, Table, Topic};
/// const ROOM: u8 = 1;
/// static EVENTS: Table<(u64, Pos), bytes::Bytes> =
///     Table::new(3, "events", Hint::Bulk, Some(|(room, _)| Topic::number(ROOM, room)), "the events of a room");
/// ```
pub struct Table<K: Key, V> {
    def: TableDef,
    topic: Option<TopicRule<K>>,
    types: PhantomData<fn() -> (K, V)>,
}

/// What is known of a table without its types; for lists of all tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableDef {
    /// The first byte of all its keys. Never used again for another table.
    pub tag: u8,
    /// Its name.
    pub name: &'static str,
    /// How it is used.
    pub hint: Hint,
    /// Whether values may be longer than [`crate::limits::VALUE_BYTES`].
    pub chunked: bool,
    /// What a row means, in one line.
    pub meaning: &'static str,
}

impl<K: Key, V: Value> Table<K, V> {
    /// Declares a table. `tag` must be below [`RESERVED_TAGS`] and is never reused. `topic` says which topic a write to
    /// a row notifies; the rule must not depend on pending positions.
    pub const fn new(
        tag: u8,
        name: &'static str,
        hint: Hint,
        topic: Option<TopicRule<K>>,
        meaning: &'static str,
    ) -> Self {
        assert!(tag < RESERVED_TAGS, "this tag belongs to the store itself");
        Self::internal(tag, name, hint, topic, meaning)
    }

    pub(crate) const fn internal(
        tag: u8,
        name: &'static str,
        hint: Hint,
        topic: Option<TopicRule<K>>,
        meaning: &'static str,
    ) -> Self {
        Self { def: TableDef { tag, name, hint, chunked: false, meaning }, topic, types: PhantomData }
    }

    /// Allows values up to [`crate::limits::CHUNKED_VALUE_BYTES`]. Decided when the table is born: it changes the
    /// encoding. Values in such a table must not hold pending positions.
    #[must_use]
    pub const fn chunked(mut self) -> Self {
        self.def.chunked = true;
        self
    }

    /// The table without its types.
    pub const fn def(&self) -> TableDef {
        self.def
    }

    /// All rows.
    pub fn all(&self) -> Span<K> {
        Span::of_prefix(KeyBuf::with_tag(self.def.tag).bytes.as_slice())
    }

    /// The rows whose key begins with `prefix`: `(a,)`, `(a, b)`…
    pub fn prefix(&self, prefix: impl Prefix<K>) -> Span<K> {
        let mut key = KeyBuf::with_tag(self.def.tag);
        prefix.encode(&mut key);
        Span::of_prefix(&key.bytes)
    }

    pub(crate) fn key(&self, key: K::Ref<'_>) -> KeyBuf {
        let mut buf = KeyBuf::with_tag(self.def.tag);
        K::encode(key, &mut buf);
        buf
    }

    pub(crate) fn topic(&self, key: K::Ref<'_>) -> Option<Topic> {
        self.topic.map(|rule| rule(key))
    }

    pub(crate) fn decode_key(&self, key: &[u8]) -> Result<K> {
        let mut input = KeyReader(key.get(1..).unwrap_or_default());
        let decoded = K::decode(&mut input).map_err(|corrupt| self.def.corrupt(key, &corrupt))?;
        if input.0.is_empty() {
            return Ok(decoded);
        }
        Err(self.def.corrupt(key, &Corrupt::new("the key goes on after its end")))
    }

    pub(crate) fn decode_value(&self, key: &[u8], raw: Raw<'_>) -> Result<V> {
        V::decode(raw).map_err(|corrupt| self.def.corrupt(key, &corrupt))
    }
}

impl<K: Key, V> Clone for Table<K, V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K: Key, V> Copy for Table<K, V> {}

impl TableDef {
    pub(crate) fn corrupt(&self, key: &[u8], corrupt: &Corrupt) -> Error {
        Error::Corrupt { table: self.name, reason: format!("key {}: {corrupt}", key.escape_ascii()) }
    }
}

/// Part of a table: between two keys, in one direction, at most so many rows. Made by [`Table::all`] and
/// [`Table::prefix`] and narrowed from there. Keys given to it are whole keys.
pub struct Span<K> {
    pub(crate) low: SmallVec<[u8; 56]>,
    /// Exclusive.
    pub(crate) high: SmallVec<[u8; 56]>,
    pub(crate) reversed: bool,
    pub(crate) limit: usize,
    key: PhantomData<fn() -> K>,
}

impl<K: Key> Span<K> {
    fn of_prefix(prefix: &[u8]) -> Self {
        Self {
            low: SmallVec::from_slice(prefix),
            high: successor(prefix),
            reversed: false,
            limit: usize::MAX,
            key: PhantomData,
        }
    }

    /// Only rows at or after `key`.
    #[must_use]
    pub fn from(mut self, key: K::Ref<'_>) -> Self {
        let key = self.whole_key(key);
        self.raise(key);
        self
    }

    /// Only rows after `key`.
    #[must_use]
    pub fn after(mut self, key: K::Ref<'_>) -> Self {
        let mut key = self.whole_key(key);
        key.push(0);
        self.raise(key);
        self
    }

    /// Only rows before `key`.
    #[must_use]
    pub fn before(mut self, key: K::Ref<'_>) -> Self {
        let key = self.whole_key(key);
        self.lower(key);
        self
    }

    /// Only rows up to and including `key`.
    #[must_use]
    pub fn through(mut self, key: K::Ref<'_>) -> Self {
        let mut key = self.whole_key(key);
        key.push(0);
        self.lower(key);
        self
    }

    /// Last row first.
    #[must_use]
    pub fn reversed(mut self) -> Self {
        self.reversed = !self.reversed;
        self
    }

    /// At most `rows` rows.
    #[must_use]
    pub fn limit(mut self, rows: usize) -> Self {
        self.limit = self.limit.min(rows);
        self
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.limit == 0 || self.low >= self.high
    }

    fn whole_key(&self, key: K::Ref<'_>) -> SmallVec<[u8; 56]> {
        let mut buf = KeyBuf::default();
        buf.raw(self.low.get(..1).unwrap_or_default());
        K::encode(key, &mut buf);
        buf.bytes
    }

    fn raise(&mut self, key: SmallVec<[u8; 56]>) {
        if key > self.low {
            self.low = key;
        }
    }

    fn lower(&mut self, key: SmallVec<[u8; 56]>) {
        if key < self.high {
            self.high = key;
        }
    }
}

impl<K> Clone for Span<K> {
    fn clone(&self) -> Self {
        Self {
            low: self.low.clone(),
            high: self.high.clone(),
            reversed: self.reversed,
            limit: self.limit,
            key: PhantomData,
        }
    }
}

/// The first key that does not begin with `prefix`. Tags are below 0xff or followed by one that is, so there is one.
fn successor(prefix: &[u8]) -> SmallVec<[u8; 56]> {
    let mut end = SmallVec::from_slice(prefix);
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    SmallVec::from_slice(&[0xff; 9])
}

/// The key of continuation chunk `index` (from 1) of the value at `key`.
pub(crate) fn chunk_key(key: &[u8], index: u16) -> SmallVec<[u8; 56]> {
    let mut chunk = SmallVec::with_capacity(key.len() + 3);
    chunk.push(CHUNKS_TAG);
    chunk.extend_from_slice(key);
    chunk.extend_from_slice(&index.to_be_bytes());
    chunk
}
