//! What can go wrong in the store, in the store's own words. Protocol errors are made elsewhere.

use std::borrow::Cow;

/// The result of a store call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the store could not do what was asked. Cloneable, because one failed write fails everybody who waits for it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A check did not hold, or the view was too old to be checked. Nothing was written; read again and decide again.
    #[error("the data changed since it was read")]
    Conflict,
    /// The commit may or may not have been written. Read before doing it again.
    #[error("it is unknown whether the commit was written")]
    Unknown,
    /// A key, value or batch exceeds its limit (see [`crate::limits`]). Nothing was written.
    #[error("{what} of {size} bytes exceeds the limit of {limit}")]
    TooLarge {
        /// What is too large: `"key"`, `"value"` or `"batch"`.
        what: &'static str,
        /// Its size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// More is queued than the store wants to hold in memory. Nothing was written; try again later.
    #[error("too many writes are waiting for the disk")]
    Busy,
    /// The disk is full (or about to be). The commit is not acknowledged; reads go on, and writes will be taken again
    /// once space returns.
    #[error("no space is left for the store")]
    Full,
    /// The engine failed. The commit is not acknowledged; the store tries to recover by itself.
    #[error("storage engine: {0}")]
    Engine(String),
    /// Stored bytes do not decode.
    #[error("corrupt row in table {table}: {reason}")]
    Corrupt {
        /// The name of the table.
        table: &'static str,
        /// What is wrong, with the key.
        reason: String,
    },
    /// The store holds still (see [`crate::Store::freeze`]). Nothing was written; try again later.
    #[error("writes are held back for a moment")]
    Frozen,
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

/// Bytes that do not decode into the type wanted. The table layer adds where they were found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Corrupt(pub Cow<'static, str>);

impl Corrupt {
    /// Says what is wrong with the bytes.
    pub fn new(reason: impl Into<Cow<'static, str>>) -> Self {
        Self(reason.into())
    }
}
