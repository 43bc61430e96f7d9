//! The client-server API: one file per section of the specification.

pub mod account;
pub mod account_data;
pub mod capabilities;
pub mod create_room;
pub mod devices;
pub mod discovery;
pub mod filters;
pub mod media;
pub mod membership;
pub mod message;
pub mod presence;
pub mod profile;
pub mod push_rules;
pub mod receipts;
pub mod register;
pub mod session;
pub mod sync;
pub mod tags;
pub mod typing;
