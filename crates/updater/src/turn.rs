//! A release that failed to come up gets another turn: by itself where the one that came up instead may not serve, or because
//! somebody asks for it.
//!
//! Lives here: who may serve, whether the other slot still holds what was signed, new tries for it. Not here: what is decided
//! at a boot (decide.rs), going back to the release before (wake.rs).

use bundle::PartName;

use crate::disk::Stretch;
use crate::entry::{Entry, Tries, compare_versions};
use crate::folder::hash_all;
use crate::history::Event;
use crate::journal::{Journal, Release};
use crate::slots::Slots;
use crate::updater::{Error, Updater};

/// How often in a row a box goes forward again by itself.
const RETURNS: u32 = 2;

impl Updater<'_> {
    /// Why the release that runs may not serve: it would open holes that were closed, or cannot read the data.
    pub(crate) fn why_silent(&self, journal: &Journal) -> Result<Option<String>, Error> {
        let runs = &self.settings.factory;
        if runs.security_version < journal.floor {
            return Ok(Some(format!(
                "it has security version {}, and this box has run {}",
                runs.security_version, journal.floor
            )));
        }
        let format = self.host.store_format()?;
        let reads = (runs.store.oldest..=runs.store.newest).contains(&format);
        Ok((!reads).then(|| format!("it cannot read the data (format {format})")))
    }

    /// What should run did not come up, and what did may not serve. It may have been power cuts, so what is whole gets new
    /// tries; but not for ever.
    pub(crate) fn tries_again(&self, journal: &mut Journal, why: &str) -> Result<bool, Error> {
        let release = journal.running.clone();
        if journal.returns >= RETURNS || !self.is_whole(&release) {
            return Ok(false);
        }
        journal.returns += 1;
        self.step(journal, Event::Noticed, &format!("{why}; it is whole, and is tried again"))?;
        self.set_tries(&release.version, Some(self.new_tries()))?;
        Ok(true)
    }

    /// Somebody wants the release that did not come up to be tried again. What runs keeps its entry.
    pub(crate) fn once_more(&self, journal: &mut Journal, release: Release, by: &str) -> Result<(), Error> {
        let version = release.version.clone();
        journal.other = Some(std::mem::replace(&mut journal.running, release));
        journal.returns = 0;
        self.step(journal, Event::RolledBack, &format!("release {version} is tried again: {by} asked for it"))?;
        self.set_tries(&version, Some(self.new_tries()))
    }

    fn new_tries(&self) -> Tries {
        Tries { left: self.settings.tries.max(1), done: 0 }
    }

    /// Whether a release in the other slot is above the one that runs, is out of tries, and still what was signed.
    pub(crate) fn deserves_a_turn(&self, release: &Release, entries: &[Entry]) -> bool {
        !entries.is_empty()
            && entries.iter().all(Entry::is_bad)
            && compare_versions(&release.version, &self.booted.version).is_gt()
            && self.is_whole(release)
    }

    /// What cannot be read is not whole, and what nobody signed cannot be told.
    fn is_whole(&self, release: &Release) -> bool {
        let (Some(image), Ok(Slots { inactive, .. })) = (&release.image, self.slots()) else { return false };
        let kernel = || {
            let entry = self.entries(&release.version).ok()?.into_iter().next()?;
            self.esp.digest(&entry.name()).ok()
        };
        image.parts().into_iter().all(|(name, part)| {
            let on_disk = |at| hash_all(&mut Stretch::new(self.disk, at, part.bytes)).ok();
            let there = match name {
                PartName::Root => on_disk(inactive.root.at),
                PartName::Verity => on_disk(inactive.verity.at),
                PartName::Kernel => kernel(),
            };
            there == Some((part.bytes, part.sha256))
        })
    }
}
