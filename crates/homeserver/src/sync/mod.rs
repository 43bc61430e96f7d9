//! `/sync` and what goes with it.
//!
//! - `token`: where in the stream a client is. `filter`: what it wants to see.
//! - `viewer`: what one user sees of rooms at one moment, for both dialects.
//! - `collect` and `room`: from a snapshot of the store to the material of an answer. `assemble`: from that to JSON.
//! - `wait`: polls that wait until there is something to say.
//! - `live`: what is remembered of users who poll. `recent`: what happened lately. `lazy`: which members a device knows.
//! - `devices`: messages to devices, counts of their keys, and whose devices changed.
//! - `sliding`: the other way to sync, by windows over rooms.
//! - `typing`, `presence`: what is not stored. `unread`: counts of what was not read. `recount`: those that take long.
//! - `receipts`: saying what was read.
//!
//! Everything held here can be forgotten at any time: it is read again, counted again, or sent again.

pub mod assemble;
pub mod collect;
pub mod devices;
pub mod filter;
pub mod lazy;
pub mod live;
pub mod material;
pub mod presence;
pub mod receipts;
pub mod recent;
pub mod recount;
pub mod room;
pub mod sliding;
pub mod token;
pub mod typing;
pub mod unread;
pub mod viewer;
pub mod wait;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ::rooms::state::Root;
use quick_cache::sync::Cache;
use store::Store;
use tokio::sync::Semaphore;

use crate::rng::Rng;
use devices::Unacknowledged;
use filter::Filters;
use lazy::SentMembers;
use live::LiveUsers;
use presence::Presence;
use recent::Recent;
use recount::Recounts;
use sliding::Sliding;
use typing::Typing;
use viewer::Candidates;

/// So many large answers are made at one time; others wait for their turn, so that memory stays flat.
const LARGE_AT_ONCE: usize = 8;

/// What all polls share.
pub struct Sync {
    pub live: LiveUsers,
    pub recent: Arc<Recent>,
    pub filters: Filters,
    pub typing: Typing,
    pub presence: Presence,
    pub unacknowledged: Unacknowledged,
    pub sliding: Sliding,
    pub recounts: Recounts,
    sent: SentMembers,
    candidates: Cache<Root, Arc<Candidates>>,
    large: Semaphore,
    /// Tells this start of the server from others.
    boot: u32,
    /// Counts the changes of what is not stored.
    serial: AtomicU64,
}

impl Sync {
    /// For one store, in about `bytes` of memory.
    pub fn new(store: &Store, rng: &Rng, bytes: u64) -> Self {
        Sync {
            live: LiveUsers::new(bytes / 16 * 3, bytes / 16),
            // What happened lately, and as much again for events that were read.
            recent: Recent::follow(store, (bytes / 16 * 2) as usize),
            filters: Filters::new(bytes / 16),
            typing: Typing::default(),
            presence: Presence::default(),
            unacknowledged: Unacknowledged::default(),
            sliding: Sliding::new(bytes / 16 * 6),
            recounts: Recounts::default(),
            sent: SentMembers::new(bytes / 16),
            candidates: Cache::new(1024),
            large: Semaphore::new(LARGE_AT_ONCE),
            boot: rng.u64() as u32,
            serial: AtomicU64::new(0),
        }
    }

    /// The number of the last change of what is not stored.
    pub fn serial(&self) -> u64 {
        self.serial.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests;
