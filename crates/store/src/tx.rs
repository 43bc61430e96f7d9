//! Transactions: read, decide, write, with a check for everything that was read.

use crate::{
    Batch, Key, Pos, Read, Result, Span, Table, Topic, Value, ValueBuf, View,
    batch::Check,
    read::{Layers, Recorder, Source},
};

/// What the closure of [`crate::Store::transact`] works on: the latest view, plus a batch.
///
/// It implements [`Read`]: reads see the transaction's own writes (their positions still pending), and every row read
/// with `get`, `multi_get`, `contains` or by a scan becomes a check, so that the commit conflicts if it changed. A scan
/// checks the rows it returned; rows that appear in between are noticed only after [`Tx::guard`].
pub struct Tx {
    pub(crate) view: View,
    pub(crate) batch: Batch,
    pub(crate) recorder: Recorder,
}

impl Source for Tx {
    fn layers(&self) -> Layers<'_> {
        Layers { batch: Some(&self.batch), recorder: Some(&self.recorder), ..self.view.layers() }
    }
}

impl Tx {
    pub(crate) fn new(view: View) -> Self {
        Self { view, batch: Batch::new(), recorder: Recorder::default() }
    }

    /// See [`Batch::next_pos`].
    pub fn next_pos(&mut self) -> Pos {
        self.batch.next_pos()
    }

    /// See [`Batch::put`].
    pub fn put<K: Key, V: Value>(&mut self, table: &Table<K, V>, key: K::Ref<'_>, value: &V) {
        self.batch.put(table, key, value);
    }

    /// See [`Batch::put_buf`].
    pub fn put_buf<K: Key, V: Value>(&mut self, table: &Table<K, V>, key: K::Ref<'_>, value: ValueBuf) {
        self.batch.put_buf(table, key, value);
    }

    /// See [`Batch::delete`].
    pub fn delete<K: Key, V: Value>(&mut self, table: &Table<K, V>, key: K::Ref<'_>) {
        self.batch.delete(table, key);
    }

    /// See [`Batch::touch`].
    pub fn touch(&mut self, topic: Topic) {
        self.batch.touch(topic);
    }

    /// The commit conflicts if anything in this span (its limit aside) was written, deleted or inserted meanwhile.
    pub fn guard<K: Key>(&mut self, span: &Span<K>) {
        self.batch.check_span_unchanged(span, self.view.version);
    }

    /// The rows of a span, read under a [`Tx::guard`].
    pub fn scan_guarded<K: Key, V: Value>(&mut self, table: &Table<K, V>, span: Span<K>) -> Result<Vec<(K, V)>> {
        self.guard(&span);
        self.scan(table, span).collect()
    }

    /// The value of a row, without a check and without own writes.
    pub fn peek<K: Key, V: Value>(&self, table: &Table<K, V>, key: K::Ref<'_>) -> Result<Option<V>> {
        let value = self.unchecked().get(table, key);
        self.recorder.saw_pending.set(self.recorder.saw_pending.get() | self.has_pending());
        value
    }

    /// The view this transaction began with, for reads without checks. Use it for what may change without making the
    /// decision wrong, and for what never changes.
    pub fn unchecked(&self) -> &View {
        if self.has_pending() {
            self.recorder.saw_pending.set(true);
        }
        &self.view
    }

    /// The batch so far, to hand to functions that lower data to writes.
    pub fn batch(&mut self) -> &mut Batch {
        &mut self.batch
    }

    fn has_pending(&self) -> bool {
        !self.view.overlay.is_empty()
    }

    /// The batch with a check for everything read.
    pub(crate) fn finish(self) -> (Batch, View) {
        let mut batch = self.batch;
        let since = self.view.version;
        let mut keys = self.recorder.keys.into_inner();
        keys.sort_unstable();
        keys.dedup();
        batch.checks.extend(keys.into_iter().map(|hash| Check { hash, since }));
        (batch, self.view)
    }
}
