//! The client-server API: one file per section of the specification.

pub mod account;
pub mod account_data;
pub mod admin;
pub mod calls;
pub mod capabilities;
pub mod create_room;
pub mod dehydrated_device;
pub mod delayed_events;
pub mod devices;
pub mod directory;
pub mod discovery;
pub mod events;
pub mod filters;
pub mod keys;
pub mod media;
pub mod members;
pub mod membership;
pub mod message;
pub mod messages;
pub mod notifications;
pub mod openid;
pub mod presence;
pub mod profile;
pub mod push_rules;
pub mod pushers;
#[cfg(test)]
mod reading_tests;
pub mod receipts;
pub mod register;
pub mod relations;
pub mod room_keys;
pub mod room_state;
pub mod session;
pub mod signing_keys;
pub mod sliding_sync;
pub mod sliding_sync_merged;
pub mod spaces;
pub mod sync;
pub mod tags;
#[cfg(test)]
mod testing;
pub mod threads;
pub mod to_device;
pub mod typing;
pub mod user_directory;
