//! The client-server API: one file per section of the specification.

pub mod create_room;
pub mod discovery;
pub mod membership;
pub mod message;
