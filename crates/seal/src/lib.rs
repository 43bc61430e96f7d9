//! What `skerry-seal` does before the data is mounted, as functions that can be tried on any machine.
//!
//! Lives here: where the data's partition is, making it at the first start, opening it with the TPM or with the recovery key.
//! Not here: the work itself, which systemd's and ext4's programs do (`tools.rs` calls them); what the console asks later. No
//! key is kept anywhere: one that is typed lies in memory for as long as a program reads it.

pub mod key;
pub mod open;
pub mod person;
pub mod place;
pub mod tools;

pub use init::Failure;
pub(crate) use init::doing;
