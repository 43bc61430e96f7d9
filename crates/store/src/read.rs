//! Reading: one trait over snapshots (durable), views (latest) and transactions (latest plus own writes).

use std::{
    cell::{Cell, RefCell},
    cmp::Ordering,
    collections::BTreeMap,
    iter::Peekable,
    ops::{Bound, ControlFlow},
    sync::Arc,
    vec,
};

use bytes::Bytes;
use smallvec::SmallVec;

use crate::{
    Batch, Corrupt, Error, Key, Pos, Raw, Result, Span, Table, Value,
    batch::hash_key,
    engine::{Engine, EngineIter, EngineSnapshot, Rows},
    table::{TableDef, chunk_key},
};

/// Typed reads. Everything read through one value of this trait is from one moment: [`Read::version`].
///
/// Reads block the calling thread for as long as the engine needs: microseconds from its cache, a disk access if not.
pub trait Read: Source {
    /// Exactly the commits up to and including this version are visible.
    fn version(&self) -> Pos {
        self.layers().version
    }

    /// The value of one row.
    fn get<K: Key, V: Value>(&self, table: &Table<K, V>, key: K::Ref<'_>) -> Result<Option<V>> {
        let key = table.key(key);
        let mut value = None;
        let layers = self.layers();
        layers.note_read()?;
        layers.get(table.def(), &key.bytes, &mut |raw| value = Some(table.decode_value(&key.bytes, raw)))?;
        value.transpose()
    }

    /// Calls `f` with the stored bytes of one row, without copying where that is possible.
    fn get_with<K: Key, V: Value, R>(
        &self,
        table: &Table<K, V>,
        key: K::Ref<'_>,
        f: impl FnOnce(&[u8]) -> R,
    ) -> Result<Option<R>> {
        let mut f = Some(f);
        let mut result = None;
        let layers = self.layers();
        layers.note_read()?;
        layers.get(table.def(), &table.key(key).bytes, &mut |raw| result = f.take().map(|f| f(&raw)))?;
        Ok(result)
    }

    /// The stored bytes of one row.
    fn get_bytes<K: Key, V: Value>(&self, table: &Table<K, V>, key: K::Ref<'_>) -> Result<Option<Bytes>> {
        let mut result = None;
        let layers = self.layers();
        layers.note_read()?;
        layers.get(table.def(), &table.key(key).bytes, &mut |raw| result = Some(raw.into_bytes()))?;
        Ok(result)
    }

    /// Is there such a row?
    fn contains<K: Key, V: Value>(&self, table: &Table<K, V>, key: K::Ref<'_>) -> Result<bool> {
        let mut found = false;
        let layers = self.layers();
        layers.note_read()?;
        layers.get(table.def(), &table.key(key).bytes, &mut |_| found = true)?;
        Ok(found)
    }

    /// The values of many rows, in the order of the keys. Counts as one read round.
    fn multi_get<'k, K: Key, V: Value>(
        &self,
        table: &Table<K, V>,
        keys: impl IntoIterator<Item = K::Ref<'k>>,
    ) -> Result<Vec<Option<V>>> {
        let layers = self.layers();
        layers.note_read()?;
        let keys: Vec<_> = keys.into_iter().map(|key| table.key(key).bytes).collect();
        let mut values: Vec<Option<Result<V>>> = Vec::new();
        values.resize_with(keys.len(), || None);
        layers.multi_get(table.def(), &keys, &mut |index, raw| {
            if let (Some(slot), Some(key)) = (values.get_mut(index), keys.get(index)) {
                *slot = Some(table.decode_value(key, raw));
            }
        })?;
        values.into_iter().map(Option::transpose).collect()
    }

    /// The rows of a span, in order. Errors end it.
    fn scan<K: Key, V: Value>(&self, table: &Table<K, V>, span: Span<K>) -> Scan<'_, K, V> {
        Scan { table: *table, rows: RawScan::new(self.layers(), table.def(), span) }
    }

    /// The first row of a span (the last one of a reversed span).
    fn first<K: Key, V: Value>(&self, table: &Table<K, V>, span: Span<K>) -> Result<Option<(K, V)>> {
        self.scan(table, span.limit(1)).next().transpose()
    }

    /// Calls `f` with every row of a span, without copying values where that is possible, until it breaks.
    fn visit<K: Key, V: Value>(
        &self,
        table: &Table<K, V>,
        span: Span<K>,
        mut f: impl FnMut(K, &[u8]) -> ControlFlow<()>,
    ) -> Result<()> {
        let mut rows = RawScan::new(self.layers(), table.def(), span);
        while let Some(row) = rows.next_with(|key, raw| table.decode_key(key).map(|key| f(key, &raw))) {
            if row??.is_break() {
                break;
            }
        }
        Ok(())
    }

    /// How many rows a span has. Reads them all.
    fn count<K: Key, V: Value>(&self, table: &Table<K, V>, span: Span<K>) -> Result<usize> {
        let mut rows = RawScan::new(self.layers(), table.def(), span);
        let mut count = 0;
        while let Some(row) = rows.next_with(|_, _| ()) {
            row?;
            count += 1;
        }
        Ok(count)
    }
}

impl<T: Source> Read for T {}

/// Where [`Read`] reads from. Implemented by this crate only.
pub trait Source {
    #[doc(hidden)]
    fn layers(&self) -> Layers<'_>;
}

/// The layers of a read, newest first: own writes, sequenced commits that are not durable yet, the durable snapshot.
#[derive(Clone, Copy)]
#[doc(hidden)]
pub struct Layers<'a> {
    pub(crate) version: Pos,
    pub(crate) batch: Option<&'a Batch>,
    pub(crate) overlay: &'a [Rows],
    pub(crate) stable: &'a Stable,
    pub(crate) recorder: Option<&'a Recorder>,
}

/// A durable state of the store.
pub(crate) struct Stable {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) snapshot: Arc<dyn EngineSnapshot>,
    pub(crate) version: Pos,
}

/// What a transaction has read.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    /// Hashes of the keys read.
    pub(crate) keys: RefCell<Vec<u64>>,
    /// Was anything read that is not durable yet?
    pub(crate) saw_pending: Cell<bool>,
    /// Did a read fail because the view is too old?
    pub(crate) expired: Cell<bool>,
}

impl Recorder {
    fn read(&self, key: &[u8]) {
        self.keys.borrow_mut().push(hash_key(key));
    }
}

impl<'a> Layers<'a> {
    fn note_read(&self) -> Result<()> {
        let noted = self.stable.engine.note_read(self.recorder.is_some());
        if let (Some(recorder), Err(Error::Conflict)) = (self.recorder, &noted) {
            recorder.expired.set(true);
        }
        noted
    }

    /// Calls `found` with the whole value, if there is one.
    fn get(&self, table: TableDef, key: &[u8], found: &mut dyn FnMut(Raw<'_>)) -> Result<()> {
        if let Some(write) = self.batch.and_then(|batch| batch.find(key)) {
            if let Some(value) = &write.value {
                found(Raw::Shared(value.clone()));
            }
            return Ok(());
        }
        if let Some(recorder) = self.recorder {
            recorder.read(key);
        }
        if !table.chunked {
            return self.get_row(table, key, found);
        }
        let mut assembled = Ok(());
        self.get_row(table, key, &mut |raw| assembled = self.assemble(table, key, raw).map(&mut *found))?;
        assembled
    }

    fn multi_get(
        &self,
        table: TableDef,
        keys: &[SmallVec<[u8; 56]>],
        found: &mut dyn FnMut(usize, Raw<'_>),
    ) -> Result<()> {
        if table.chunked {
            return keys
                .iter()
                .enumerate()
                .try_for_each(|(index, key)| self.get(table, key, &mut |raw| found(index, raw)));
        }
        let mut stored: SmallVec<[usize; 16]> = SmallVec::new();
        for (index, key) in keys.iter().enumerate() {
            match self.get_newer(key) {
                Some(Some(value)) => found(index, Raw::Shared(value.clone())),
                Some(None) => {}
                None => stored.push(index),
            }
        }
        let stored_keys: SmallVec<[&[u8]; 16]> =
            stored.iter().filter_map(|&index| Some(&keys.get(index)?[..])).collect();
        self.stable.snapshot.multi_get(table.hint, &stored_keys, &mut |nth, value| {
            if let Some(&index) = stored.get(nth) {
                found(index, Raw::Borrowed(value));
            }
        })
    }

    /// What is newer than the engine about a key; `Some(None)` if it was deleted. Records the read.
    fn get_newer(&self, key: &[u8]) -> Option<Option<&'a Bytes>> {
        if let Some(write) = self.batch.and_then(|batch| batch.find(key)) {
            return Some(write.value.as_ref());
        }
        if let Some(recorder) = self.recorder {
            recorder.read(key);
        }
        self.get_pending(key)
    }

    /// What the overlay says about a key.
    fn get_pending(&self, key: &[u8]) -> Option<Option<&'a Bytes>> {
        let row = self.overlay.iter().find_map(|rows| rows.get(key))?;
        if let Some(recorder) = self.recorder {
            recorder.saw_pending.set(true);
        }
        Some(row.0.value.as_ref())
    }

    /// One row as the engine knows it, own writes aside.
    pub(crate) fn get_row(&self, table: TableDef, key: &[u8], found: &mut dyn FnMut(Raw<'_>)) -> Result<()> {
        match self.get_pending(key) {
            Some(Some(value)) => found(Raw::Shared(value.clone())),
            Some(None) => {}
            None => {
                return self.stable.snapshot.get(table.hint, key, &mut |value| found(Raw::Borrowed(value)));
            }
        }
        Ok(())
    }

    /// The whole value of a chunked table, given its first row: how many chunks follow (two bytes), then the first.
    fn assemble<'r>(&self, table: TableDef, key: &[u8], first: Raw<'r>) -> Result<Raw<'r>> {
        let (more, part) = split_first_chunk(&first).map_err(|corrupt| table.corrupt(key, &corrupt))?;
        if more == 0 {
            return Ok(match first {
                Raw::Borrowed(bytes) => Raw::Borrowed(bytes.get(2..).unwrap_or_default()),
                Raw::Shared(bytes) => Raw::Shared(bytes.slice(2..)),
            });
        }
        let mut whole = part.to_vec();
        for index in 1..=more {
            let mut there = false;
            self.get_row(table, &chunk_key(key, index), &mut |raw| {
                there = true;
                whole.extend_from_slice(&raw);
            })?;
            if !there {
                return Err(table.corrupt(key, &Corrupt::new("a chunk is missing")));
            }
        }
        Ok(Raw::Shared(whole.into()))
    }
}

/// How many chunks follow, and the first one.
pub(crate) fn split_first_chunk(row: &[u8]) -> Result<(u16, &[u8]), Corrupt> {
    let (count, part) = row.split_first_chunk::<2>().ok_or(Corrupt::new("the first chunk has no count"))?;
    Ok((u16::from_be_bytes(*count), part))
}

/// The rows of a span, one by one. Made by [`Read::scan`].
pub struct Scan<'a, K: Key, V> {
    table: Table<K, V>,
    rows: RawScan<'a>,
}

impl<K: Key, V: Value> Iterator for Scan<'_, K, V> {
    type Item = Result<(K, V)>;

    fn next(&mut self) -> Option<Self::Item> {
        let table = &self.table;
        let row = self.rows.next_with(|key, raw| Ok((table.decode_key(key)?, table.decode_value(key, raw)?)))?;
        Some(row.flatten())
    }
}

impl<K: Key, V: Value> Scan<'_, K, V> {
    /// Only the keys; values are not decoded.
    pub fn keys(mut self) -> impl Iterator<Item = Result<K>> {
        std::iter::from_fn(move || {
            let table = &self.table;
            self.rows.next_with(|key, _| table.decode_key(key)).map(Result::flatten)
        })
    }
}

/// Merges what is not durable (or not even committed) with the rows of the engine.
struct RawScan<'a> {
    layers: Layers<'a>,
    table: TableDef,
    newer: Peekable<vec::IntoIter<Newer<'a>>>,
    iter: Option<Box<dyn EngineIter + 'a>>,
    reversed: bool,
    left: usize,
    error: Option<Error>,
}

/// A row that is not in the engine yet.
#[derive(Clone, Copy)]
struct Newer<'a> {
    key: &'a [u8],
    value: Option<&'a Bytes>,
    /// From the transaction's own batch, where values are not split yet.
    own: bool,
}

enum Next {
    Newer,
    Both,
    Engine,
    End,
}

impl<'a> RawScan<'a> {
    fn new<K: Key>(layers: Layers<'a>, table: TableDef, span: Span<K>) -> Self {
        let mut scan = Self {
            layers,
            table,
            newer: Vec::new().into_iter().peekable(),
            iter: None,
            reversed: span.reversed,
            left: span.limit,
            error: layers.note_read().err(),
        };
        if scan.error.is_none() && !span.is_empty() {
            let mut newer = layers.newer_rows(&span.low, &span.high);
            if span.reversed {
                newer.reverse();
            }
            scan.newer = newer.into_iter().peekable();
            scan.iter = Some(layers.stable.snapshot.scan(table.hint, &span.low, &span.high, span.reversed));
        }
        scan
    }

    /// Calls `f` with the key and value of the next row.
    fn next_with<R>(&mut self, f: impl FnOnce(&[u8], Raw<'_>) -> R) -> Option<Result<R>> {
        if let Some(error) = self.error.take() {
            self.left = 0;
            return Some(Err(error));
        }
        if self.left == 0 {
            return None;
        }
        let result = loop {
            match self.which() {
                Next::End => {
                    self.left = 0;
                    return self.iter.as_ref().and_then(|iter| iter.status().err()).map(Err);
                }
                Next::Engine => break self.stored_row(f),
                which @ (Next::Newer | Next::Both) => {
                    if let (Next::Both, Some(iter)) = (which, &mut self.iter) {
                        iter.advance();
                    }
                    let newer = self.newer.next()?;
                    self.note_newer(newer);
                    if let Some(value) = newer.value {
                        break self.finish(newer.key, Raw::Shared(value.clone()), newer.own, f);
                    }
                }
            }
        };
        self.left = if result.is_ok() { self.left - 1 } else { 0 };
        Some(result)
    }

    fn which(&mut self) -> Next {
        let stored = self.iter.as_ref().and_then(|iter| iter.row());
        match (self.newer.peek(), stored) {
            (None, None) => Next::End,
            (None, Some(_)) => Next::Engine,
            (Some(_), None) => Next::Newer,
            (Some(newer), Some((key, _))) => {
                let order = newer.key.cmp(key);
                match if self.reversed { order.reverse() } else { order } {
                    Ordering::Less => Next::Newer,
                    Ordering::Equal => Next::Both,
                    Ordering::Greater => Next::Engine,
                }
            }
        }
    }

    fn stored_row<R>(&mut self, f: impl FnOnce(&[u8], Raw<'_>) -> R) -> Result<R> {
        let mut iter = self.iter.take();
        let result = match iter.as_ref().and_then(|iter| iter.row()) {
            Some((key, value)) => self.finish(key, Raw::Borrowed(value), false, f),
            None => Err(Error::Engine("a scan lost its row".to_owned())),
        };
        if let Some(iter) = &mut iter {
            iter.advance();
        }
        self.iter = iter;
        result
    }

    fn finish<R>(&self, key: &[u8], raw: Raw<'_>, own: bool, f: impl FnOnce(&[u8], Raw<'_>) -> R) -> Result<R> {
        if let (Some(recorder), false) = (self.layers.recorder, own) {
            recorder.read(key);
        }
        let raw = if self.table.chunked && !own { self.layers.assemble(self.table, key, raw)? } else { raw };
        Ok(f(key, raw))
    }

    fn note_newer(&self, newer: Newer<'_>) {
        if let (Some(recorder), false) = (self.layers.recorder, newer.own) {
            recorder.saw_pending.set(true);
            if newer.value.is_none() {
                recorder.read(newer.key);
            }
        }
    }
}

impl<'a> Layers<'a> {
    /// The rows between two keys that are not in the engine yet, in order, each key once.
    fn newer_rows(&self, low: &[u8], high: &[u8]) -> Vec<Newer<'a>> {
        let batch = self.batch.filter(|batch| !batch.writes.is_empty());
        let layers = self.overlay.iter().filter(|rows| !rows.is_empty()).count() + usize::from(batch.is_some());
        match (layers, batch) {
            (0, _) => Vec::new(),
            (1, Some(batch)) => own_rows(batch, low, high).collect(),
            (1, None) => self.overlay.iter().flat_map(|rows| pending_rows(rows, low, high)).collect(),
            _ => {
                let mut merged = BTreeMap::new();
                for newer in self.overlay.iter().rev().flat_map(|rows| pending_rows(rows, low, high)) {
                    merged.insert(newer.key, newer);
                }
                for newer in batch.into_iter().flat_map(|batch| own_rows(batch, low, high)) {
                    merged.insert(newer.key, newer);
                }
                merged.into_values().collect()
            }
        }
    }
}

fn own_rows<'a>(batch: &'a Batch, low: &[u8], high: &[u8]) -> impl Iterator<Item = Newer<'a>> {
    batch.range(low, high).map(|(key, value)| Newer { key, value, own: true })
}

fn pending_rows<'a>(rows: &'a Rows, low: &[u8], high: &[u8]) -> impl Iterator<Item = Newer<'a>> {
    rows.range::<_, [u8]>((Bound::Included(low), Bound::Excluded(high))).map(|row| Newer {
        key: &row.0.key,
        value: row.0.value.as_ref(),
        own: false,
    })
}

/// The durable state at one version: exactly the commits up to it. Cheap to make, clone and keep for a while; a
/// snapshot kept for hours keeps old data on the disk.
#[derive(Clone)]
pub struct Snapshot {
    pub(crate) stable: Arc<Stable>,
}

impl Source for Snapshot {
    fn layers(&self) -> Layers<'_> {
        Layers { version: self.stable.version, batch: None, overlay: &[], stable: &self.stable, recorder: None }
    }
}

/// The latest state: the durable snapshot and the sequenced commits that are not durable yet. What is read from it
/// must not leave the process before [`crate::Store::settled`]; transactions take care of that.
#[derive(Clone)]
pub struct View {
    pub(crate) stable: Arc<Stable>,
    /// Newest first.
    pub(crate) overlay: SmallVec<[Rows; 2]>,
    pub(crate) version: Pos,
    pub(crate) epoch: u64,
}

impl Source for View {
    fn layers(&self) -> Layers<'_> {
        Layers { version: self.version, batch: None, overlay: &self.overlay, stable: &self.stable, recorder: None }
    }
}
