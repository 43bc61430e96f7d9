//! The updater against a whole box made of files: a disk with a partition table and a FAT file system, a folder whose files
//! are durable when they are synced, a server with data, and a model of the boot loader.
//!
//! Lives here: which bugs can be planted. The box is in world.rs, the disk's volatile memory in media.rs, the boot partition in fat.rs, the boot loader in
//! loader.rs; what is tested in power.rs (cuts), paths.rs (whole paths) and refused.rs (what is not taken).

mod fat;
mod large;
mod loader;
mod media;
mod paths;
mod power;
mod refused;
mod table;
mod world;

/// A bug that somebody might write, planted to see that the tests notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// Arms what was not read back.
    NoReadBack,
    /// Leaves the boot entry of a slot that it writes over.
    KeepOldEntry,
    /// Makes the release bootable before the journal says so.
    SwitchBeforeJournal,
    /// Falls back without putting the data back.
    NoRestore,
    /// Lets a server that is started after the checkpoint serve.
    StartsOpen,
}
