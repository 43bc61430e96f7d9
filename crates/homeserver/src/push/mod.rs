//! Notifications: which events count for whom, and where a user wants to be told. Telling them is for `gateway`.

pub mod counts;
pub mod pattern;
pub mod pushers;
pub mod rules;
