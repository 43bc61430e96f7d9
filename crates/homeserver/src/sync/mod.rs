//! `/sync` and what goes with it: tokens, filters, who is waiting for what.

pub mod token;
