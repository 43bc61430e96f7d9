//! The homeserver: HTTP and the Matrix APIs, all shell around `rooms` (which decides) and `store` (which keeps).
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

pub mod admin;
pub mod api;
pub mod appservice;
pub mod auth;
pub mod background;
pub mod blocking;
pub mod client;
pub mod clock;
pub mod config;
pub mod delayed;
pub mod dirs;
pub mod e2ee;
pub mod error;
#[cfg(any(test, feature = "testing"))]
pub mod fuzz;
pub mod gateway;
pub mod housekeeping;
pub mod http;
pub mod indexing;
pub mod jobs;
pub mod limits;
pub mod log;
pub mod maintenance;
pub mod media;
pub mod metrics;
pub mod notices;
pub mod notify;
pub mod outgoing;
pub mod previews;
pub mod push;
pub mod rng;
pub mod rooms;
pub mod schema;
pub mod server;
mod services;
pub mod signing;
pub mod stored;
pub mod sync;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod users;
pub mod web;

pub use services::{App, Services, StartError};
