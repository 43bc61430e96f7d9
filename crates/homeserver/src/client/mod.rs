//! The client-server API: one file per section of the specification.

pub mod discovery;
