//! The engine of tests: rows in memory, and on request the misbehaviour of real disks.

use std::{ops::Bound, path::Path, sync::Arc};

use bytes::Bytes;
use imbl::OrdMap;
use parking_lot::Mutex;

use super::{Engine, EngineIter, EngineSnapshot, Group};
use crate::{Error, Result, table::Hint};

type Rows = OrdMap<Bytes, Bytes>;

/// A disk that lives in memory. Clones are the same disk, so that a test can close a store and open it again.
#[derive(Debug, Clone, Default)]
pub struct MemoryDisk {
    inner: Arc<Mutex<Disk>>,
}

#[derive(Debug, Default)]
struct Disk {
    durable: Rows,
}

impl MemoryDisk {
    /// An empty disk that behaves.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Engine for MemoryDisk {
    fn snapshot(&self) -> Result<Arc<dyn EngineSnapshot>> {
        Ok(Arc::new(MemorySnapshot(self.inner.lock().durable.clone())))
    }

    fn write(&self, group: &Group<'_>) -> Result<()> {
        let mut disk = self.inner.lock();
        for row in group.iter() {
            match &row.value {
                Some(value) => disk.durable.insert(Bytes::copy_from_slice(&row.key), value.clone()),
                None => disk.durable.remove(row.key.as_slice()),
            };
        }
        Ok(())
    }

    fn recover(&self) -> Result<()> {
        Ok(())
    }

    fn checkpoint(&self, _: &Path) -> Result<()> {
        Err(Error::Engine("a disk in memory cannot be checkpointed; export it".to_owned()))
    }

    fn compact(&self) -> Result<()> {
        Ok(())
    }

    fn stats(&self) -> Vec<(&'static str, u64)> {
        vec![("rows", self.inner.lock().durable.len() as u64)]
    }
}

struct MemorySnapshot(Rows);

impl EngineSnapshot for MemorySnapshot {
    fn get(&self, _: Hint, key: &[u8], found: &mut dyn FnMut(&[u8])) -> Result<()> {
        if let Some(value) = self.0.get(key) {
            found(value);
        }
        Ok(())
    }

    fn scan<'a>(&'a self, _: Hint, low: &[u8], high: &[u8], reversed: bool) -> Box<dyn EngineIter + 'a> {
        let rows = self.0.range::<_, [u8]>((Bound::Included(low), Bound::Excluded(high)));
        let rows: Box<dyn Iterator<Item = _>> = if reversed { Box::new(rows.rev()) } else { Box::new(rows) };
        let mut iter = MemoryIter { rows, row: None };
        iter.advance();
        Box::new(iter)
    }
}

struct MemoryIter<'a> {
    rows: Box<dyn Iterator<Item = (&'a Bytes, &'a Bytes)> + 'a>,
    row: Option<(&'a Bytes, &'a Bytes)>,
}

impl EngineIter for MemoryIter<'_> {
    fn row(&self) -> Option<(&[u8], &[u8])> {
        self.row.map(|(key, value)| (&key[..], &value[..]))
    }

    fn advance(&mut self) {
        self.row = self.rows.next();
    }

    fn status(&self) -> Result<()> {
        Ok(())
    }
}
