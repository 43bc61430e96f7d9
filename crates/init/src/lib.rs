//! What `skerry-init` does between the kernel and systemd, as functions that can be tried on any machine.
//!
//! Lives here: the kernel's command line, finding the root slot, the dm-verity device, the kernel's settings, modules and drivers, the change of root. Not here:
//! the order in which that is done, and what happens on a failure (`main.rs`). Nothing here reads a file system that was
//! not verified, and there is no way to another root, program or shell.

pub mod cmdline;
pub mod coldplug;
pub mod devices;
pub mod dm;
pub mod gpt;
pub mod modules;
pub mod roothash;
pub mod settings;
pub mod switch;
pub mod verity;
pub mod watchdog;

/// What went wrong, as a sentence for the console.
#[derive(Debug)]
pub struct Failure(pub String);

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Says what was being done when a call failed.
pub fn doing<E: std::fmt::Display>(what: impl Into<String>) -> impl FnOnce(E) -> Failure {
    move |cause| Failure(format!("{}: {cause}", what.into()))
}
