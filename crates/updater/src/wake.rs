//! After a boot: the one safe thing, committing a release that has proven itself, and going back.
//!
//! Lives here: waking up, commit, fallback, rollback. All of it may be cut anywhere and is done again at the next boot.

use crate::decide::{Decision, Facts, decide};
use crate::entry::{Entry, Tries, staged_version};
use crate::gpt::Table;
use crate::history::Event;
use crate::journal::{Journal, Reason, Release, State};
#[cfg(test)]
use crate::tests::Bug;
use crate::updater::{Error, Updater};

/// How the box is to go on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Woken {
    /// The release that runs is on trial: serve nobody, change nothing that cannot be undone.
    pub trial: bool,
    /// The release that runs is to be left: boot again.
    pub reboot: bool,
    /// What was done, for people.
    pub said: Vec<String>,
}

impl Updater<'_> {
    /// To be called once after each boot, before the server starts. It starts open only if all was done that is to be done
    /// before, or if nothing can be.
    ///
    /// # Errors
    /// A disk fails. What was begun is done again at the next boot.
    pub fn wake(&self) -> Result<Woken, Error> {
        self.host.start_silent(true)?;
        let woken = self.do_what_is_safe();
        let held = woken.as_ref().is_ok_and(|woken| woken.trial || woken.reboot);
        if !held && self.journal().is_ok_and(|journal| self.may_serve(&journal)) {
            self.host.start_silent(false)?;
        }
        woken
    }

    fn may_serve(&self, journal: &Journal) -> bool {
        journal.may_serve(self.settings.factory.security_version)
    }

    fn do_what_is_safe(&self) -> Result<Woken, Error> {
        let mut woken = Woken::default();
        let mut table = Table::read(self.disk)?;
        if table.needs_repair() {
            table.write(self.disk)?;
            woken.said.push("One copy of the partition table was damaged or old; it was written anew.".into());
        }
        self.remove_empty()?;
        let mut journal = self.journal()?;
        let watched = match &journal.state {
            State::Idle | State::Staged { .. } => &journal.running,
            State::Armed { to: release, .. }
            | State::Trial { to: release, .. }
            | State::Fallback { from: release, .. } => release,
        };
        let watched = watched.version.clone();
        let entry = self.entries(&watched)?.into_iter().next().map(|entry| entry.tries);
        let facts = Facts { booted: self.booted.version.clone(), entry, complaint: self.complaint()? };
        match decide(&journal, &facts) {
            Decision::Serve => {}
            Decision::Discard => {
                self.finish_giving_up(&journal)?;
                self.discard(&mut journal, "it was not whole")?;
            }
            Decision::Adopt(reason) => {
                let mut text = format!("release {watched} does not run ({reason}); release {} does", facts.booted);
                if let Some(why) = self.why_silent(&journal)? {
                    text += &format!(", but serves nobody: {why}");
                    woken.reboot = self.tries_again(&mut journal, &text)?;
                }
                if !woken.reboot {
                    self.adopt(&mut journal, &text)?;
                }
                woken.said.push(text);
            }
            Decision::Try => match self.begin_trial(&mut journal, facts.complaint)? {
                true => {
                    woken.trial = true;
                    woken.said.push(format!("Release {watched} is on trial."));
                }
                false => {
                    woken.reboot = true;
                    woken.said.push(format!("Release {watched} was tried often enough: the box starts again."));
                }
            },
            Decision::Commit => {
                self.commit_release(&mut journal)?;
                woken.said.push(format!("Release {watched} has proven itself and stays."));
            }
            Decision::FallBack(reason) => {
                woken.said.push(format!("Release {watched} was left: {reason}."));
                let checkpoint = journal.state.checkpoint();
                self.fall_back(&mut journal, checkpoint, reason)?;
            }
            Decision::Leave => {
                self.remove_entries(&watched)?;
                woken.reboot = true;
                woken.said.push(format!("Release {watched} is to be left: the box starts again."));
            }
        }
        if journal.state == State::Idle {
            self.tidy()?;
        }
        Ok(woken)
    }

    /// The release on trial has proven itself: it stays, and nothing below its security version comes back. Clients are
    /// served again. Without a trial, it renews the tries of the release that runs.
    ///
    /// # Errors
    /// The release that is on trial does not run, its boot entry is gone, or a disk fails.
    pub fn commit(&self) -> Result<bool, Error> {
        let mut journal = self.journal()?;
        let on_trial = match &journal.state {
            State::Armed { to, .. } | State::Trial { to, .. } if to.version == self.booted.version => true,
            State::Idle | State::Staged { .. } => false,
            state => {
                let word = state.word();
                return Err(Error::Not(format!(
                    "There is nothing to keep: the state is \"{word}\", release {} runs.",
                    self.booted.version
                )));
            }
        };
        if on_trial {
            self.commit_release(&mut journal)?;
        }
        // Without a trial, too: an earlier call may have come no further than the journal.
        if journal.state == State::Idle {
            self.serve_again(&journal)?;
            self.tidy()?;
        }
        if journal.returns > 0 && journal.running.version == self.booted.version && self.may_serve(&journal) {
            journal.returns = 0;
            journal.store(self.state)?;
        }
        if journal.running.version == self.booted.version {
            self.renew_tries(&journal)?;
            self.host.keep_floor(journal.floor);
        }
        Ok(on_trial)
    }

    /// Goes back: throws away what is staged, leaves what is armed or on trial, or returns to the release in the other slot;
    /// one above that did not come up is tried again. Says whether the box has to boot again for it.
    ///
    /// # Errors
    /// There is nothing to go back to, it would open holes again, or it cannot read the data.
    pub fn rollback(&self, by: &str) -> Result<bool, Error> {
        let mut journal = self.journal()?;
        let asked = Reason::Asked { by: by.to_owned() };
        match journal.state.clone() {
            State::Staged { to, .. } => {
                self.discard(&mut journal, &format!("{by} asked for it"))?;
                self.remove_entries(&to.version)?;
                self.empty_slot()?;
                // An installation that was killed behind the checkpoint has left clients waiting.
                self.serve_again(&journal)?;
                Ok(false)
            }
            State::Armed { checkpoint, .. } if journal.running.version == self.booted.version => {
                self.take_back(&mut journal, checkpoint, asked)
            }
            State::Armed { to, checkpoint } | State::Trial { to, checkpoint, .. } => {
                self.leave(&mut journal, to, Some(checkpoint), asked)?;
                Ok(true)
            }
            State::Fallback { .. } => Ok(true),
            State::Idle => {
                let before = self.may_go_back(&journal)?;
                if self.entries(&before.version)?.iter().all(Entry::is_bad) {
                    self.once_more(&mut journal, before, by)?;
                    return Ok(true);
                }
                let from = std::mem::replace(&mut journal.running, before);
                journal.other = None;
                self.leave(&mut journal, from, None, asked)?;
                Ok(true)
            }
        }
    }

    fn may_go_back(&self, journal: &Journal) -> Result<Release, Error> {
        let not = |why: String| Err(Error::Not(why));
        let Some(other) = &journal.other else { return not("The other slot holds no release.".into()) };
        let version = &other.version;
        let entries = self.entries(version)?;
        if entries.iter().all(Entry::is_bad) && !self.deserves_a_turn(other, &entries) {
            return not(format!("Release {version} in the other slot cannot be booted."));
        }
        let floor = self.floor(journal);
        if other.security_version < floor {
            return not(format!(
                "Release {version} has security version {}, but this box has run {}: going back would bring back holes that are closed.",
                other.security_version, floor
            ));
        }
        let format = self.host.store_format()?;
        if !(other.store.oldest..=other.store.newest).contains(&format) {
            return not(format!("Release {version} cannot read the data any more (format {format})."));
        }
        Ok(other.clone())
    }

    /// Says whether the release may be tried. The boot loader starts it only so often, but not where it could not count.
    fn begin_trial(&self, journal: &mut Journal, complaint: Option<String>) -> Result<bool, Error> {
        match journal.state.clone() {
            State::Armed { to, checkpoint } => {
                let text = format!("release {} was booted and is on trial", to.version);
                journal.state = State::Trial { to, checkpoint, starts: 1 };
                self.step(journal, Event::Trial, &text)?;
            }
            State::Trial { to, checkpoint, starts } if starts >= self.settings.tries => {
                let reason = match complaint {
                    Some(what) => Reason::Unfit { what },
                    None => Reason::DidNotStart { tries: starts },
                };
                self.leave(journal, to, Some(checkpoint), reason)?;
                return Ok(false);
            }
            State::Trial { to, checkpoint, starts } => {
                journal.state = State::Trial { to, checkpoint, starts: starts + 1 };
                journal.store(self.state)?;
            }
            State::Idle | State::Staged { .. } | State::Fallback { .. } => {}
        }
        Ok(true)
    }

    fn discard(&self, journal: &mut Journal, why: &str) -> Result<(), Error> {
        let version = journal.state.release().map(|release| release.version.clone()).unwrap_or_default();
        journal.state = State::Idle;
        self.step(journal, Event::Discarded, &format!("release {version} was thrown away: {why}"))
    }

    /// What runs is what runs: the journal follows.
    fn adopt(&self, journal: &mut Journal, text: &str) -> Result<(), Error> {
        let other = journal.other.take().filter(|other| other.version == self.booted.version);
        let runs = other.unwrap_or_else(|| self.settings.factory.clone());
        journal.other = Some(std::mem::replace(&mut journal.running, runs));
        journal.state = State::Idle;
        journal.failure = Some(text.to_owned());
        self.step(journal, Event::Noticed, text)
    }

    /// The entry first, then the journal: a release whose entry has no counter has proven itself.
    fn commit_release(&self, journal: &mut Journal) -> Result<(), Error> {
        let (State::Armed { to, .. } | State::Trial { to, .. }) = journal.state.clone() else { return Ok(()) };
        let Some(entry) = self.entries(&to.version)?.into_iter().next() else {
            return Err(Error::Not(format!("The boot entry of release {} is gone: it cannot stay.", to.version)));
        };
        let blessed = Entry { tries: None, ..entry.clone() };
        if entry != blessed {
            self.esp.give_name(&entry.name(), &blessed.name())?;
        }
        self.forget_complaint()?;
        journal.floor = journal.floor.max(to.security_version);
        journal.failure = None;
        journal.state = State::Idle;
        let text = format!("release {} stays; the floor is {}", to.version, journal.floor);
        journal.other = Some(std::mem::replace(&mut journal.running, to));
        self.step(journal, Event::Committed, &text)
    }

    /// Takes back what is armed while the release that runs goes on. Says whether the box has to boot for it: if a silent
    /// server was started meanwhile, its data is put back with no server over it.
    pub(crate) fn take_back(&self, journal: &mut Journal, checkpoint: String, reason: Reason) -> Result<bool, Error> {
        if self.host.touched()? {
            let Some(from) = journal.state.release().cloned() else { return Ok(false) };
            self.leave(journal, from, Some(checkpoint), reason)?;
            return Ok(true);
        }
        self.fall_back(journal, None, reason)?;
        self.serve_again(journal)?;
        Ok(false)
    }

    /// Clients are served again, also by a server that is started anew, if the journal says already that they may be.
    pub(crate) fn serve_again(&self, journal: &Journal) -> Result<(), Error> {
        if !self.may_serve(journal) {
            return Ok(());
        }
        self.host.start_silent(false)?;
        self.host.thaw().map_err(Error::Host)
    }

    /// Writes down that a release is left, puts the data back, and throws away what made the release bootable.
    pub(crate) fn fall_back(
        &self,
        journal: &mut Journal,
        checkpoint: Option<String>,
        reason: Reason,
    ) -> Result<(), Error> {
        let Some(from) = journal.state.release().cloned() else { return Ok(()) };
        let text = format!("release {} was left: {reason}", from.version);
        if !matches!(journal.state, State::Fallback { .. }) {
            journal.state = State::Fallback { from: from.clone(), checkpoint: checkpoint.clone(), reason };
            self.step(journal, Event::FellBack, &text)?;
        }
        if let Some(checkpoint) = checkpoint.filter(|_| !self.forgets_data())
            && self.host.touched()?
        {
            self.host.restore(&checkpoint)?;
        }
        self.remove_entries(&from.version)?;
        self.empty_slot()?;
        self.forget_complaint()?;
        journal.state = State::Idle;
        journal.other = None;
        journal.failure = Some(text);
        journal.store(self.state)?;
        self.tidy()
    }

    /// Writes down that the release which runs is to be left, and takes away its boot entry.
    fn leave(
        &self,
        journal: &mut Journal,
        from: Release,
        checkpoint: Option<String>,
        reason: Reason,
    ) -> Result<(), Error> {
        let (version, text) = (from.version.clone(), format!("release {} is to be left: {reason}", from.version));
        journal.state = State::Fallback { from, checkpoint, reason };
        self.step(journal, Event::RolledBack, &text)?;
        self.remove_entries(&version)
    }

    /// While there is another release to go to, the one that runs may fail only so often in a row.
    fn renew_tries(&self, journal: &Journal) -> Result<(), Error> {
        let keep = self.settings.keep_tries;
        let other = journal.other.as_ref().map(|other| self.entries(&other.version)).transpose()?;
        let bootable = other.is_some_and(|entries| entries.iter().any(|entry| !entry.is_bad()));
        let wanted = (keep > 0 && bootable).then_some(Tries { left: keep, done: 0 });
        self.set_tries(&journal.running.version, wanted)
    }

    /// Gives the entry of a version this many tries. Two that share their bytes are left alone.
    pub(crate) fn set_tries(&self, version: &str, wanted: Option<Tries>) -> Result<(), Error> {
        if let [entry] = &self.entries(version)?[..]
            && entry.tries != wanted
        {
            let renamed = Entry { tries: wanted, ..entry.clone() };
            self.esp.give_name(&entry.name(), &renamed.name())?;
        }
        Ok(())
    }

    /// What nobody needs while nothing is going on: checkpoints, and kernel images that wait for nothing.
    fn tidy(&self) -> Result<(), Error> {
        self.host.clear()?;
        let names = self.esp.list()?;
        let entries: Vec<Entry> = names.iter().filter_map(|name| Entry::parse(name)).collect();
        for name in &names {
            // One that shares its bytes with an entry stays as long as that.
            if staged_version(name).is_some_and(|version| entries.iter().all(|entry| entry.version != version)) {
                self.esp.remove(name)?;
            }
        }
        Ok(())
    }

    #[cfg(test)]
    fn forgets_data(&self) -> bool {
        self.planted(Bug::NoRestore)
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, reason = "its other half is for tests")]
    fn forgets_data(&self) -> bool {
        false
    }
}

impl State {
    /// What the data is put back to if the release on its way is left; nothing if no release is.
    pub fn checkpoint(&self) -> Option<String> {
        match self {
            Self::Armed { checkpoint, .. } | Self::Trial { checkpoint, .. } => Some(checkpoint.clone()),
            Self::Fallback { checkpoint, .. } => checkpoint.clone(),
            Self::Idle | Self::Staged { .. } => None,
        }
    }
}
