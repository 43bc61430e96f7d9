//! The updater of one box: what it works on, and what all its verbs share.
//!
//! Lives here: journal and history together, boot entries by version, the trust of the box, status. Not here: bringing a
//! release in (install.rs), waking up, committing and going back (wake.rs).

use std::io;

use bundle::{Arch, Refusal, Trust};

use crate::disk::Disk;
use crate::entry::{Entry, staged};
use crate::folder::Folder;
use crate::gpt::{GptError, Table};
use crate::history::{self, BoxKey, Event, History};
use crate::host::Host;
use crate::journal::{Journal, Release};
use crate::policy::Policy;
use crate::slots::{Booted, EMPTY, SlotError, Slots};

const COMPLAINT: &str = "complaint.txt";

/// What the updater works on.
pub struct Updater<'a> {
    pub disk: &'a dyn Disk,
    /// The folder with the boot entries.
    pub esp: &'a dyn Folder,
    /// The updater's own folder.
    pub state: &'a dyn Folder,
    pub host: &'a dyn Host,
    pub settings: Settings,
    pub booted: Booted,
    /// Seconds since 1970, for the history. Nothing depends on it.
    pub now_s: u64,
    /// Bytes of chance, for the key of a box that has none yet.
    pub chance: [u8; 32],
    /// A bug planted on purpose, to see that the tests notice.
    #[cfg(test)]
    pub(crate) planted: Option<crate::tests::Bug>,
}

/// How a box is set up.
#[derive(Clone, Debug)]
pub struct Settings {
    pub arch: Arch,
    /// How often a new release is tried.
    pub tries: u32,
    /// How often in a row a release that was good may fail to come up before the other slot has its turn; 0: for ever.
    pub keep_tries: u32,
    /// The root document that the image brings.
    pub trust: Vec<u8>,
    /// What the image wants besides; see [`Updater::policy`] for what is in force.
    pub policy: Policy,
    /// What the image says of itself: used where the journal knows nothing of it.
    pub factory: Release,
}

/// Why something was not done, in words for the person on site.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Refused(Refusal),
    #[error(transparent)]
    Gpt(#[from] GptError),
    #[error(transparent)]
    Slot(#[from] SlotError),
    #[error("The box cannot read or write its own storage: {0}")]
    Io(io::Error),
    #[error("The server did not go along: {0}")]
    Host(String),
    #[error("{0}")]
    Not(String),
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        match error.downcast::<Refusal>() {
            Ok(refusal) => Self::Refused(refusal),
            Err(error) => Self::Io(error),
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Updater<'_> {
    /// The journal; of a box that has none, the first one.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn journal(&self) -> Result<Journal, Error> {
        let journal = Journal::load(self.state)?;
        Ok(journal.unwrap_or_else(|| Journal::new(self.settings.factory.clone())))
    }

    /// The lowest security version that may be installed: the highest that the data partition or the firmware knows.
    pub fn floor(&self, journal: &Journal) -> u64 {
        journal.floor.max(self.host.kept_floor())
    }

    /// The history, checked.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn history(&self) -> Result<History, Error> {
        let key = BoxKey::load(self.state, &self.chance)?;
        Ok(history::check(self.state, &key.public(), self.journal()?.log)?)
    }

    /// Whom this box believes: the image's root document or a later one that a bundle has brought, and the site.
    ///
    /// # Errors
    /// A root document cannot be read.
    pub fn trust(&self, journal: &Journal) -> Result<Trust, Error> {
        let born = Trust::new(&self.settings.trust)?;
        let grown = journal.root.as_ref().map(|root| Trust::new(root.as_bytes())).transpose()?;
        let trust = grown.filter(|grown| grown.root().version > born.root().version).unwrap_or(born);
        Ok(match self.policy(journal).site {
            Some(site) => trust.with_site(&site.keys, site.threshold)?,
            None => trust,
        })
    }

    /// What is asked of a release besides its makers' signatures.
    pub fn policy(&self, journal: &Journal) -> Policy {
        journal.policy.kept_by(&self.settings.policy)
    }

    /// Takes back what images before this one asked for. What this one asks for stays.
    ///
    /// # Errors
    /// It cannot be written down.
    pub fn forget_policy(&self, by: &str) -> Result<(), Error> {
        let mut journal = self.journal()?;
        journal.policy = Policy::default();
        self.step(&mut journal, Event::Noticed, &format!("{by} took back what was asked of releases besides"))
    }

    /// The slots of the disk.
    ///
    /// # Errors
    /// The disk cannot be read, or is not laid out in slots.
    pub fn slots(&self) -> Result<Slots, Error> {
        Ok(Slots::find(&Table::read(self.disk)?, self.settings.arch, &self.booted)?)
    }

    /// The boot entries of a version, the most promising first. There is more than one only after a power cut in the middle
    /// of a rename; then they share their bytes, and one must not be deleted without the others. Names without bytes, which
    /// such a cut may leave, too, are none.
    ///
    /// # Errors
    /// The ESP cannot be read.
    pub fn entries(&self, version: &str) -> Result<Vec<Entry>, Error> {
        let mut entries = Vec::new();
        for name in self.esp.list()? {
            if let Some(entry) = Entry::parse(&name).filter(|entry| entry.version == version)
                && !self.esp.is_empty(&name)?
            {
                entries.push(entry);
            }
        }
        entries.sort_by_key(|entry| entry.tries.map(|tries| tries.left));
        Ok(entries)
    }

    /// Deletes names without bytes.
    pub(crate) fn remove_empty(&self) -> Result<(), Error> {
        for name in self.esp.list()? {
            if Entry::parse(&name).is_some() && self.esp.is_empty(&name)? {
                self.esp.remove(&name)?;
                self.esp.sync()?;
            }
        }
        Ok(())
    }

    /// Deletes everything that a version has on the ESP.
    pub(crate) fn remove_entries(&self, version: &str) -> Result<(), Error> {
        let names = self.esp.list()?;
        let of_it = |name: &&String| {
            Entry::parse(name).is_some_and(|entry| entry.version == version) || **name == staged(version)
        };
        for name in names.iter().filter(of_it) {
            self.esp.remove(name)?;
        }
        Ok(self.esp.sync()?)
    }

    /// Says on the disk that the slot which does not run holds nothing.
    pub(crate) fn empty_slot(&self) -> Result<(), Error> {
        let mut table = Table::read(self.disk)?;
        let Slots { inactive, .. } = Slots::find(&table, self.settings.arch, &self.booted)?;
        if inactive.root.label != EMPTY || inactive.verity.label != EMPTY {
            table.name(inactive.root.index, EMPTY, None)?;
            table.name(inactive.verity.index, EMPTY, None)?;
            table.write(self.disk)?;
        }
        Ok(())
    }

    /// Adds a line to the history and takes the journal's next step with it.
    pub(crate) fn step(&self, journal: &mut Journal, event: Event, text: &str) -> Result<(), Error> {
        let key = BoxKey::load(self.state, &self.chance)?;
        journal.log = Some(history::add(self.state, &key, self.now_s, event, text)?);
        Ok(journal.store(self.state)?)
    }

    /// To be called by a release on trial that finds itself unfit: the next boot will know why.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn complain(&self, what: &str) -> Result<(), Error> {
        Ok(self.state.replace(COMPLAINT, what.as_bytes())?)
    }

    pub(crate) fn complaint(&self) -> Result<Option<String>, Error> {
        let bytes = self.state.load(COMPLAINT, 64 * 1024)?;
        Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    pub(crate) fn forget_complaint(&self) -> Result<(), Error> {
        if self.complaint()?.is_some() {
            self.state.remove(COMPLAINT)?;
            self.state.sync()?;
        }
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn planted(&self, bug: crate::tests::Bug) -> bool {
        self.planted == Some(bug)
    }
}
