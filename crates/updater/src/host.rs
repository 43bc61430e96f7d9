//! The server and its data as the updater sees them. Knows no socket and no engine: the binary brings those.

use std::io;

/// What the updater asks of the server, and does to its data.
pub trait Host {
    /// How the server starts from now on until the machine does: silent (on trial: it serves nobody, raises no format and marks
    /// the data as touched), or open. A server that runs already goes on as it is. After a start of the machine it is silent
    /// until this is called.
    ///
    /// # Errors
    /// It cannot be written down.
    fn start_silent(&self, silent: bool) -> io::Result<()>;
    /// Clients are told to wait, nothing is written any more, and a checkpoint of this name holds everything that was ever
    /// acknowledged; it is durable. A checkpoint of this name that is there already is made anew.
    ///
    /// # Errors
    /// In words for people. Then clients are served as before.
    fn freeze(&self, checkpoint: &str) -> Result<(), String>;
    /// Clients are served again.
    ///
    /// # Errors
    /// In words for people.
    fn thaw(&self) -> Result<(), String>;
    /// The format of the database.
    ///
    /// # Errors
    /// It cannot be read.
    fn store_format(&self) -> io::Result<u32>;
    /// The lowest security version that may be installed, as it is kept outside of the disk; 0 where nothing is.
    fn kept_floor(&self) -> u64;
    /// Keeps a floor outside of the disk, if there is such a place and it is below that. Nothing depends on it: what can be
    /// done is done again after each good start.
    fn keep_floor(&self, floor: u64);
    /// Whether a trial may have changed the data since [`Host::clear`].
    ///
    /// # Errors
    /// The data folder cannot be read.
    fn touched(&self) -> io::Result<bool>;
    /// Puts a checkpoint in the place of the database. The server does not run. Where there is no such checkpoint, it has
    /// been put back already: nothing happens.
    ///
    /// # Errors
    /// The data folder cannot be written.
    fn restore(&self, checkpoint: &str) -> io::Result<()>;
    /// Deletes all checkpoints and what a restoration has left, and forgets that the data was touched.
    ///
    /// # Errors
    /// The data folder cannot be written.
    fn clear(&self) -> io::Result<()>;
}
