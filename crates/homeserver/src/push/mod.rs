//! Notifications: which events count for whom.

pub mod counts;
pub mod rules;
