//! A/B slots: plan, write, arm, judge, commit, fall back.
//!
//! A box has two slots and one journal. An update goes `Idle → Staged → Armed → Trial → Idle` with the new release, or from
//! `Armed` or `Trial` through `Fallback` to `Idle` with the old one. Every transition is one durable replacement of the
//! journal; what becomes bootable is one rename on the ESP. Whoever wakes up in a state finds one safe thing to do
//! ([`decide`]), and may be cut while doing it.
//!
//! The slot that runs is never written. Nothing is written before all signatures and all bytes of a bundle are good. No
//! clock is believed: times are shown.
//!
//! Everything is done to a [`Disk`], two [`Folder`]s (the ESP's entries and the updater's own state) and a [`Host`] (server
//! and data), so that all of it runs against files. Not here: arguments, sockets and terminals (the binary), the format of
//! bundles (`bundle`), the boot loader, which counts tries by itself.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing))]

mod decide;
mod disk;
pub mod entry;
mod folder;
#[cfg(any(test, feature = "testing"))]
pub mod fuzz;
mod gpt;
mod history;
mod host;
mod install;
mod journal;
mod policy;
mod slots;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod turn;
mod updater;
mod wake;

pub use decide::{Decision, Facts, decide};
pub use disk::{Disk, FileDisk, SECTOR};
pub use folder::{Fill, Folder, OsFolder, ReadSeek};
pub use gpt::{GptError, Guid, Partition, Table};
pub use history::{Event, Head, History, Line};
pub use host::Host;
pub use install::{Plan, Step};
pub use journal::{Journal, Newest, Reason, Release, State};
pub use policy::{Policy, Site};
pub use slots::{Booted, EMPTY, Slot, SlotError, Slots, ids};
pub use updater::{Error, Settings, Updater};
pub use wake::Woken;
