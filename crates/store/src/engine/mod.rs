//! What the store needs from an engine. Engines know bytes and column families, never tables or positions.

mod memory;
mod rocks;

use std::{borrow::Borrow, cmp::Ordering, path::Path, sync::Arc};

use bytes::Bytes;
use smallvec::SmallVec;

use crate::{Result, table::Hint};

pub use memory::{Faults, MemoryDisk};
pub use rocks::Disk;

/// Where a store keeps its data.
pub enum Backing {
    /// In a directory.
    Disk(Disk),
    /// In memory, for tests.
    Memory(MemoryDisk),
}

impl From<Disk> for Backing {
    fn from(disk: Disk) -> Self {
        Self::Disk(disk)
    }
}

impl From<MemoryDisk> for Backing {
    fn from(disk: MemoryDisk) -> Self {
        Self::Memory(disk)
    }
}

pub(crate) fn open_engine(backing: Backing) -> Result<Arc<dyn Engine>> {
    Ok(match backing {
        Backing::Disk(disk) => Arc::new(rocks::Rocks::open(disk)?),
        Backing::Memory(disk) => Arc::new(disk.engine()),
    })
}

/// One row written: shared between the overlay, the queue, the hub and the engine.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) hint: Hint,
    pub(crate) key: SmallVec<[u8; 56]>,
    /// `None` deletes.
    pub(crate) value: Option<Bytes>,
}

/// A row in a set, ordered by its key.
#[derive(Debug, Clone)]
pub(crate) struct RowRef(pub(crate) Arc<Row>);

impl Borrow<[u8]> for RowRef {
    fn borrow(&self) -> &[u8] {
        &self.0.key
    }
}

impl PartialEq for RowRef {
    fn eq(&self, other: &Self) -> bool {
        self.0.key == other.0.key
    }
}

impl Eq for RowRef {}

impl PartialOrd for RowRef {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for RowRef {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.key.as_slice().cmp(other.0.key.as_slice())
    }
}

/// The rows of one group, in the order of their keys, each key once.
pub(crate) type Rows = imbl::OrdSet<RowRef>;

/// What a group write hands to the engine, to be written atomically and synced before `write` returns.
pub(crate) struct Group<'a> {
    pub(crate) rows: &'a Rows,
    /// Rows made by the committer: journal and tip.
    pub(crate) extra: &'a [Row],
}

impl Group<'_> {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().map(|row| &*row.0).chain(self.extra)
    }
}

/// An ordered key-value store with atomic synced writes and snapshots.
pub(crate) trait Engine: Send + Sync {
    /// Everything written so far, as it is now.
    fn snapshot(&self) -> Result<Arc<dyn EngineSnapshot>>;

    /// Writes all rows atomically and makes them durable. After an error the group may or may not be there.
    fn write(&self, group: &Group<'_>) -> Result<()>;

    /// Makes the engine usable again after a failed write, if the cause is gone. An error means: not yet.
    fn recover(&self) -> Result<()>;

    /// A consistent copy in a directory that does not exist yet.
    fn checkpoint(&self, dir: &Path) -> Result<()>;

    /// Compacts everything.
    fn compact(&self) -> Result<()>;

    /// Figures for metrics.
    fn stats(&self) -> Vec<(&'static str, u64)>;

    /// Called for every read on a snapshot, view or transaction; tests count them or make them fail.
    fn note_read(&self, _in_transaction: bool) -> Result<()> {
        Ok(())
    }

    /// Called for every batch before it is sequenced; tests make it fail.
    fn note_commit(&self, _checked: bool) -> Result<()> {
        Ok(())
    }
}

/// An immutable state of an engine.
pub(crate) trait EngineSnapshot: Send + Sync {
    /// Calls `found` with the value if there is one.
    fn get(&self, hint: Hint, key: &[u8], found: &mut dyn FnMut(&[u8])) -> Result<()>;

    /// Calls `found` with the index of the key and the value for each key that has one.
    fn multi_get(&self, hint: Hint, keys: &[&[u8]], found: &mut dyn FnMut(usize, &[u8])) -> Result<()> {
        for (index, key) in keys.iter().enumerate() {
            self.get(hint, key, &mut |value| found(index, value))?;
        }
        Ok(())
    }

    /// Rows with `low <= key < high`.
    fn scan<'a>(&'a self, hint: Hint, low: &[u8], high: &[u8], reversed: bool) -> Box<dyn EngineIter + 'a>;
}

/// A position in a scan.
pub(crate) trait EngineIter {
    /// The row at the position; `None` at the end.
    fn row(&self) -> Option<(&[u8], &[u8])>;

    /// Moves on.
    fn advance(&mut self);

    /// What went wrong, if the end came early.
    fn status(&self) -> Result<()>;
}
