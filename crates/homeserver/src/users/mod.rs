//! What belongs to a user: the account, the profile, account data, push rules, filters. Not here: who somebody is
//! (`auth`), and rooms.

pub mod account_data;
pub mod accounts;
pub mod admin;
pub mod directory;
pub mod filters;
pub mod listing;
pub mod profiles;
pub mod push_rules;
pub mod upgrade;
