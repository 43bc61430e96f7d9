//! Positions: the order of everything that was ever written.

use serde::{Deserialize, Serialize};

/// A position in the order of commits. A commit takes one or more consecutive positions; the last one is its
/// *version*. Positions start at 1 and are never used twice.
///
/// A position whose top bit is set is *pending*: it means "the first position of the commit this is written in, plus
/// an offset", and the store replaces it by the real one where it was encoded with [`crate::KeyBuf::pos`] or
/// [`crate::ValueBuf::pos`]. [`crate::Committed::resolve`] does the same for a position held in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Pos(pub u64);

const PENDING: u64 = 1 << 63;

impl Pos {
    /// Before everything.
    pub const ZERO: Self = Self(0);
    /// After every real position.
    pub const MAX: Self = Self(PENDING - 1);

    /// The position `offset` after the first one of the commit being built. Offsets count from 0.
    pub const fn pending(offset: u32) -> Self {
        Self(PENDING | offset as u64)
    }

    /// Is this a placeholder that only means something inside the batch it was made for?
    pub const fn is_pending(self) -> bool {
        self.0 & PENDING != 0
    }

    /// The offset of a pending position; `None` for a real one.
    pub const fn offset(self) -> Option<u32> {
        if self.is_pending() { Some(self.0 as u32) } else { None }
    }

    /// The real position, when the first position of the commit is `base`. Real positions stay as they are.
    #[must_use]
    pub const fn resolve(self, base: Self) -> Self {
        match self.offset() {
            Some(offset) => Self(base.0 + offset as u64),
            None => self,
        }
    }

    /// The position right after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl std::fmt::Display for Pos {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.offset() {
            Some(offset) => write!(f, "+{offset}"),
            None => write!(f, "{}", self.0),
        }
    }
}
