//! Ordered, atomic, observable key-value storage for Skerry.
//!
//! A [`Batch`] is data: checks, writes and topics. [`Store::commit`] gives it its place in the one order of all
//! commits (cheap, synchronous, at once visible to [`Store::latest`]); its [`Ticket`] resolves when it is on the disk.
//! [`Store::snapshot`] reads exactly what is durable. Positions in the order are Matrix stream positions, topics wake
//! waiters, the journal feeds followers. No table is declared here, and nothing here knows Matrix.
//!
//! ```
//! use store::{Hint, MemoryDisk, Pos, Read, Store, Table, Topic};
//!
//! const ROOM: u8 = 1;
//! static HEADS: Table<u64, Pos> =
//!     Table::new(1, "heads", Hint::Small, None, "the position of the last event of a room");
//! static EVENTS: Table<(u64, Pos), String> = Table::new(
//!     2, "events", Hint::Bulk, Some(|(room, _)| Topic::number(ROOM, room)), "the events of a room by position",
//! );
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! let store = Store::open(MemoryDisk::new())?;
//! let sent = store
//!     .transact(|tx| {
//!         let _before = tx.get(&HEADS, 7)?; // from now on a check: changed meanwhile means another run
//!         let pos = tx.next_pos();
//!         tx.put(&EVENTS, (7, pos), &"hello".to_owned());
//!         tx.put(&HEADS, 7, &pos);
//!         Ok::<_, store::Error>(pos)
//!     })
//!     .await?;
//! let pos = sent.resolve(sent.value); // pending no more, and fsynced
//! let snapshot = store.snapshot();
//! assert_eq!(snapshot.get(&EVENTS, (7, pos))?.as_deref(), Some("hello"));
//! let newest_first = EVENTS.prefix((7,)).reversed().limit(10);
//! assert_eq!(snapshot.scan(&EVENTS, newest_first).count(), 1);
//! # Ok(()) })
//! # }
//! ```
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

mod batch;
#[cfg(test)]
mod contract;
#[cfg(test)]
mod encoding;
mod engine;
mod error;
pub mod export;
mod hub;
pub mod journal;
mod key;
pub mod limits;
mod pos;
mod read;
mod sequencer;
mod store;
mod table;
mod tx;
mod value;

pub use batch::Batch;
pub use engine::{Backing, Disk, Faults, MemoryDisk};
pub use error::{Corrupt, Error, Result};
pub use hub::{Hub, Published, Signal, Topic};
pub use key::{Desc, Key, KeyBuf, KeyReader, Prefix};
pub use pos::Pos;
pub use read::{Read, Scan, Snapshot, View};
pub use store::{Committed, Committer, Store, Ticket};
pub use table::{Hint, RESERVED_TAGS, Span, Table, TableDef};
pub use tx::Tx;
pub use value::{Raw, Value, ValueBuf, ValueReader};
