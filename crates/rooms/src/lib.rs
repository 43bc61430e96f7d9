//! Matrix room semantics as pure functions: values in, values out.
//!
//! Here live events and their formats, building and sealing, the authorization rules, admission,
//! the persistent state tree, state resolution, and the smaller rules (membership, power,
//! visibility, redaction, summaries). Not here: storage, time, randomness, the network. Whoever
//! calls brings the facts; when facts are missing a function answers [`Step::Need`].

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

pub mod admit;
pub mod auth;
pub mod build;
pub mod create;
pub mod delta;
pub mod event;
pub mod graph;
pub mod membership;
pub mod power;
pub mod redact;
pub mod resolve;
pub mod signature;
pub mod state;
pub mod stripped;
pub mod summary;
#[cfg(test)]
mod testing;
pub mod timeline;
pub mod upgrade;
pub mod visibility;

pub use admit::{Facts, Needs, Step, Verdict, admit, admit_local};
pub use build::{Context, Draft, Sealed, seal};
pub use event::{EventNr, Parsed, Pdu, rules};
