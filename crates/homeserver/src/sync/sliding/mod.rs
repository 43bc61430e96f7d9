//! Sliding sync (MSC4186): clients hear of windows over their rooms instead of all of them.
//!
//! - `config`: what a client asks for. `connection`: what each client was told.
//! - `order`: a user's rooms by last activity. `lists`: which of them a request is about.
//! - `answer`: one look at the store. `room`: one room of it; `extensions`: what is not rooms.
//! - `assemble`: the JSON. `poll`: waiting.
//!
//! One engine for all dialects: `config` and `material` do not know how either is spelled.

pub mod answer;
pub mod assemble;
pub mod config;
pub mod connection;
pub mod extensions;
pub mod lists;
pub mod material;
pub mod order;
pub mod poll;
pub mod room;
#[cfg(test)]
mod tests;

/// What all sliding polls share.
pub struct Sliding {
    pub connections: connection::Connections,
    pub orders: order::Orders,
    pub bumps: room::Bumps,
}

impl Sliding {
    /// With connections in about `bytes` of memory.
    pub fn new(bytes: u64) -> Self {
        Sliding {
            connections: connection::Connections::new(bytes),
            orders: order::Orders::default(),
            bumps: room::Bumps::default(),
        }
    }
}
