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

/// What went wrong, as a sentence for the console.
#[derive(Debug)]
pub struct Failure(pub String);

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Says what was being done when a call failed.
pub(crate) fn doing<E: std::fmt::Display>(what: impl Into<String>) -> impl FnOnce(E) -> Failure {
    move |cause| Failure(format!("{}: {cause}", what.into()))
}
