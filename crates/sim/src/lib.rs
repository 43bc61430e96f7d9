//! Deterministic worlds: users on a server whose store fails on purpose, and oracles that know what must be true.
//!
//! A run is a function of its seed: one thread, a clock that is moved by hand, seeded randomness, a disk in memory that
//! misbehaves, and a committer that writes when it is told to. Users act through the real router, without sockets.
//!
//! - `world`: the server, its disk and its crashes; requests under way; the trace.
//! - `act`: what users do, chosen at random. `play`: one run from its first step to the last check.
//! - `model`: what users know they did. `view`: a client that only knows what sync told it.
//! - `truth`: a room read from the store's rows and replayed by simple rules. `oracle`: what must hold, during and after.
#![allow(clippy::indexing_slicing, reason = "a broken simulation should stop")]

mod act;
mod model;
mod oracle;
mod play;
mod request;
mod trace;
mod truth;
mod view;
mod world;

pub use play::{Failure, Options, Report, run};
pub use world::Sabotage;

/// How long a run is, unless somebody says otherwise.
pub const STEPS: u64 = 300;

/// Why a run failed, in words. The trace says how it came to that.
pub(crate) type Check<T = ()> = Result<T, String>;
