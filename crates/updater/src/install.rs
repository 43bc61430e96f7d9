//! Bringing a release in: judge it, write it beside what runs, read it back, arm it.
//!
//! Lives here: the plan, staging, approval, arming. Not here: what happens after the next boot (wake.rs).

use std::cmp::Ordering;
use std::io::{self, Read, Seek};

use bundle::{Bundle, Checked, Have, NoSlot, Part, PartName, Refusal, ThisBox};

use crate::disk::{Pen, Stretch};
use crate::entry::{Entry, Tries, compare_versions, staged};
use crate::folder::hash_all;
use crate::gpt::{Partition, Table};
use crate::history::Event;
use crate::journal::{Journal, Newest, Reason, Release, State};
use crate::slots::{RunningChunks, Slot, Slots, ids, label, verity_label};
#[cfg(test)]
use crate::tests::Bug;
use crate::updater::{Error, Updater};

/// What an installation would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub from: Release,
    pub to: Release,
    /// The slot that will be written.
    pub slot: char,
    /// Bytes that will be written to it and to the ESP.
    pub bytes: u64,
    /// The release in that slot, which can be booted no more then.
    pub gives_up: Option<String>,
    /// The newest release that this box has seen, if this one is older, and by how many days.
    pub stale: Option<(String, u64)>,
    pub needs_approval: bool,
    pub notes: String,
    /// Who has signed.
    pub signers: Vec<String>,
}

/// How far something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Check,
    Write,
    ReadBack,
    Arm,
}

/// Hears how many bytes of how many are done.
type Report<'a> = &'a mut dyn FnMut(Step, u64, u64);
/// Says whether a reader gives a part; hears how many of its bytes are read.
type Same<'a> = &'a dyn Fn(PartName, &Part, &mut dyn Read, &mut dyn FnMut(u64)) -> Result<bool, Error>;

impl Updater<'_> {
    /// Checks a bundle to its last byte and says what installing it would do. Writes nothing.
    ///
    /// # Errors
    /// The release may not be installed here, or now.
    pub fn plan(&self, file: impl Read + Seek, report: Report<'_>) -> Result<Plan, Error> {
        let journal = self.journal()?;
        self.must_be_free(&journal)?;
        let mut checked = Bundle::open(file)?.judge(&self.trust(&journal)?)?;
        Ok(self.judge(&journal, &mut checked, report)?.0)
    }

    /// Checks a bundle, writes it into the slot that does not run, and reads it back. The slot is not bootable before
    /// [`Updater::arm`].
    ///
    /// # Errors
    /// As [`Updater::plan`]; or the disk fails, and what was written is thrown away when the box wakes up.
    pub fn stage(&self, file: impl Read + Seek, by: &str, report: Report<'_>) -> Result<Plan, Error> {
        let mut journal = self.journal()?;
        self.must_be_free(&journal)?;
        if journal.state != State::Idle {
            // An installation that was killed behind the checkpoint has left clients waiting.
            self.serve_again(&journal)?;
        }
        let (mut checked, plan, mut have) = match self.take_in(&mut journal, file, report) {
            Ok(judged) => judged,
            Err(error) => {
                self.step(&mut journal, Event::Refused, &format!("a file from {by}: {error}"))?;
                return Err(error);
            }
        };
        journal.attempts += 1;
        // The release may ask for less, once it runs.
        journal.policy = self.policy(&journal);
        self.begin(&mut journal, &plan, by)?;
        self.write(&mut checked, &plan, &mut have, report)?;
        let by_chunks = |name, _: &Part, reader: &mut dyn Read, progress: &mut dyn FnMut(u64)| {
            Ok(checked.is_part(self.settings.arch, name, reader, progress)?)
        };
        self.read_back(&plan.to, &by_chunks, report)?;
        self.name_slot(&plan.to)?;
        let to = plan.to.clone();
        journal.state = State::Staged { to, whole: true, by: by.to_owned(), approved_by: None };
        let text = format!("release {} lies in slot {}", plan.to.version, plan.slot);
        self.step(&mut journal, Event::Staged, &text)?;
        Ok(plan)
    }

    /// Judges a file, and learns from it what it teaches.
    fn take_in<R: Read + Seek>(
        &self,
        journal: &mut Journal,
        file: R,
        report: Report<'_>,
    ) -> Result<(Checked<R>, Plan, RunningChunks<'_>), Error> {
        let mut checked = Bundle::open(file)?.judge(&self.trust(journal)?)?;
        learn(journal, &checked);
        let (plan, have) = self.judge(journal, &mut checked, report)?;
        Ok((checked, plan, have))
    }

    /// Writes down that a file was not taken, where somebody else has looked at it.
    ///
    /// # Errors
    /// The journal cannot be written.
    pub fn refused(&self, by: &str, why: &str) -> Result<(), Error> {
        self.step(&mut self.journal()?, Event::Refused, &format!("a file from {by}: {why}"))
    }

    /// A second person says that the staged release is the one they want.
    ///
    /// # Errors
    /// Nothing is staged, it is another release, or it is the same person.
    pub fn approve(&self, version: &str, name: &str) -> Result<(), Error> {
        let mut journal = self.journal()?;
        let State::Staged { to, whole: true, by, approved_by } = &mut journal.state else {
            return Err(Error::Not("No release waits for approval.".into()));
        };
        if to.version != version {
            return Err(Error::Not(format!("Release {} waits for approval, not {version}.", to.version)));
        }
        if by == name {
            return Err(Error::Not(format!("{name} has installed this release: somebody else has to approve it.")));
        }
        *approved_by = Some(name.to_owned());
        self.step(&mut journal, Event::Approved, &format!("{name} approved release {version}"))
    }

    /// Makes the staged release the next to be booted: from here on a boot tries it. `fresh` says that it was staged just
    /// now; otherwise it is read once more.
    ///
    /// # Errors
    /// Nothing is staged, approval is missing, the server does not go along, or a disk fails. Then the old release stays.
    pub fn arm(&self, fresh: bool, report: Report<'_>) -> Result<(), Error> {
        let mut journal = self.journal()?;
        let State::Staged { to, whole: true, approved_by, .. } = &journal.state else {
            return Err(Error::Not("No release is staged: install one first.".into()));
        };
        if self.policy(&journal).second_approval && approved_by.is_none() {
            return Err(Error::Not(format!("Release {} waits for the approval of a second person.", to.version)));
        }
        let to = to.clone();
        if !fresh {
            self.read_back(&to, &is_whole, report)?;
        }
        report(Step::Arm, 0, 1);
        let checkpoint = checkpoint_name(journal.attempts, &journal.running.version, &to.version);
        self.host.clear()?;
        self.hold_still(&journal, &checkpoint)?;
        if let Err(error) = self.switch(&mut journal, to, checkpoint.clone()) {
            // The next boot sorts it out if this cannot.
            let reason = Reason::Unfit { what: error.to_string() };
            return Err(match self.take_back(&mut journal, checkpoint, reason)? {
                true => Error::Not(format!("{error} Restart the box: until then clients wait.")),
                false => error,
            });
        }
        report(Step::Arm, 1, 1);
        Ok(())
    }

    /// From the checkpoint on, nobody is told that anything is safe: neither by the server that runs nor by one that is
    /// started in its place.
    fn hold_still(&self, journal: &Journal, checkpoint: &str) -> Result<(), Error> {
        self.host.start_silent(!self.starts_open())?;
        if let Err(why) = self.host.freeze(checkpoint) {
            self.serve_again(journal)?;
            return Err(Error::Host(why));
        }
        Ok(())
    }

    #[cfg(test)]
    fn starts_open(&self) -> bool {
        self.planted(Bug::StartsOpen)
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, reason = "its other half is for tests")]
    fn starts_open(&self) -> bool {
        false
    }

    /// The server is silent, the checkpoint is there: the rename that counts.
    fn switch(&self, journal: &mut Journal, to: Release, checkpoint: String) -> Result<(), Error> {
        let version = to.version.clone();
        let entry =
            Entry { version: version.clone(), tries: Some(Tries { left: self.settings.tries.max(1), done: 0 }) };
        #[cfg(test)]
        if self.planted(Bug::SwitchBeforeJournal) {
            self.esp.give_name(&staged(&version), &entry.name())?;
            journal.state = State::Armed { to, checkpoint };
            return self.step(journal, Event::Armed, "planted");
        }
        journal.state = State::Armed { to, checkpoint };
        self.step(
            journal,
            Event::Armed,
            &format!("release {version} is booted next, with {} tries", self.settings.tries),
        )?;
        Ok(self.esp.give_name(&staged(&version), &entry.name())?)
    }

    fn must_be_free(&self, journal: &Journal) -> Result<(), Error> {
        let version = journal.state.release().map_or("", |release| release.version.as_str());
        let why = match &journal.state {
            State::Armed { .. } => format!("Release {version} is installed and waits for a restart."),
            State::Trial { .. } => format!("Release {version} is on trial."),
            State::Fallback { .. } => format!("The box is going back from release {version}: restart it first."),
            State::Idle | State::Staged { .. } if journal.running.version != self.booted.version => {
                format!("The box runs release {}, which it does not expect: restart it first.", self.booted.version)
            }
            State::Idle | State::Staged { .. } => return Ok(()),
        };
        Err(Error::Not(why))
    }

    /// Whether this release may be installed on this box, and how; and the chunks that it takes from what runs.
    fn judge<R: Read + Seek>(
        &self,
        journal: &Journal,
        checked: &mut Checked<R>,
        report: Report<'_>,
    ) -> Result<(Plan, RunningChunks<'_>), Error> {
        let this = ThisBox {
            arch: self.settings.arch,
            floor: self.floor(journal),
            security_version: journal.running.security_version,
            store_format: self.host.store_format()?,
        };
        let to = Release::of(checked.manifest(), checked.fits(&this)?);
        let Slots { active, inactive } = self.slots()?;
        self.check_place(journal, &to, &inactive)?;
        let whole = stored_bytes(checked);
        checked.verify(|done| report(Step::Check, done, whole))?;
        let have = self.have(checked, &active)?;
        if let Some(missing) = checked.missing(this.arch, &have)?.first() {
            return Err(Refusal::Missing { part: missing.part, count: missing.count, first: missing.first }.into());
        }
        let manifest = checked.manifest();
        let stale = journal.newest.as_ref().filter(|newest| newest.built_s > manifest.built_s);
        let plan = Plan {
            from: journal.running.clone(),
            slot: inactive.name,
            bytes: to.image.iter().flat_map(|image| image.parts()).map(|(_, part)| part.bytes).sum(),
            gives_up: journal.other.as_ref().map(|other| other.version.clone()),
            stale: stale.map(|newest| (newest.version.clone(), (newest.built_s - manifest.built_s) / 86_400)),
            needs_approval: self.policy(journal).second_approval,
            notes: manifest.notes.clone(),
            signers: checked.signers().iter().map(ToString::to_string).collect(),
            to,
        };
        Ok((plan, have))
    }

    /// Whether there is room for it, and whether the boot loader would take it.
    fn check_place(&self, journal: &Journal, to: &Release, slot: &Slot) -> Result<(), Error> {
        let (new, old) = (&to.version, &journal.running.version);
        match compare_versions(new, old) {
            Ordering::Greater => {}
            _ if new == old => return Err(Error::Not(format!("Release {new} runs already."))),
            _ => {
                return Err(Error::Not(format!(
                    "Release {new} is older than release {old}, which runs; `rollback` goes back to the release before."
                )));
            }
        }
        let entries = self.entries(old)?;
        let Some(entry) = entries.first() else {
            return Err(Error::Not(format!("Release {old} runs, but its boot entry is gone: it would not come back.")));
        };
        if entry.tries.is_some_and(|tries| tries.done > 0) {
            return Err(Error::Not(format!(
                "Release {old} has not yet proven that it is well: try again in some minutes."
            )));
        }
        let image = to.image.as_ref();
        let parts = image.map(|image| [(image.root.bytes, slot.root.bytes), (image.verity.bytes, slot.verity.bytes)]);
        if let Some((needed, there)) = parts.into_iter().flatten().find(|(needed, there)| needed > there) {
            return Err(Error::Not(format!("Slot {} has {there} bytes; release {new} needs {needed}.", slot.name)));
        }
        let kernel = image.map_or(0, |image| image.kernel.bytes);
        let mut room = self.esp.free_bytes()?;
        for name in self.given_up(journal)? {
            room += self.esp.bytes(&name)?;
        }
        if room < kernel {
            return Err(Error::Not(format!(
                "The boot partition has {room} bytes free; the kernel of release {new} needs {kernel}."
            )));
        }
        Ok(())
    }

    /// Files on the ESP that go before a slot is written.
    fn given_up(&self, journal: &Journal) -> Result<Vec<String>, Error> {
        let mut names = self.esp.list()?;
        names.retain(|name| match Entry::parse(name) {
            Some(entry) => entry.version != journal.running.version,
            // What shares its bytes with the entry that runs stays.
            None => name.ends_with(".staged") && *name != staged(&journal.running.version),
        });
        Ok(names)
    }

    /// What runs is read and cut only for a release that leaves something out.
    fn have<R: Read + Seek>(&self, checked: &Checked<R>, active: &Slot) -> Result<RunningChunks<'_>, Error> {
        if checked.missing(self.settings.arch, &NoSlot)?.is_empty() {
            return Ok(RunningChunks::none(self.disk, self.esp));
        }
        let entries = self.entries(&self.booted.version)?;
        Ok(RunningChunks::find(self.disk, self.esp, active, entries.first().map(Entry::name))?)
    }

    /// From here on only the release that runs can be booted: the other slot is about to change.
    fn begin(&self, journal: &mut Journal, plan: &Plan, by: &str) -> Result<(), Error> {
        let names = self.given_up(journal)?;
        journal.other = None;
        journal.state = State::Staged { to: plan.to.clone(), whole: false, by: by.to_owned(), approved_by: None };
        journal.store(self.state)?;
        // While there is another entry: what is alone is never renamed, neither here nor by what counts tries.
        self.set_tries(&journal.running.version, None)?;
        #[cfg(test)]
        if self.planted(Bug::KeepOldEntry) {
            return self.empty_slot();
        }
        self.remove_all(&names)?;
        self.empty_slot()
    }

    fn remove_all(&self, names: &[String]) -> Result<(), Error> {
        for name in names {
            self.esp.remove(name)?;
        }
        Ok(self.esp.sync()?)
    }

    /// What [`Updater::begin`] has begun to take away goes: half of a file may be gone already.
    pub(crate) fn finish_giving_up(&self, journal: &Journal) -> Result<(), Error> {
        let names = self.given_up(journal)?;
        self.remove_all(&names)?;
        self.empty_slot()
    }

    fn write<R: Read + Seek>(
        &self,
        checked: &mut Checked<R>,
        plan: &Plan,
        have: &mut impl Have,
        report: Report<'_>,
    ) -> Result<(), Error> {
        let Slots { inactive, .. } = self.slots()?;
        let (arch, mut done) = (self.settings.arch, 0);
        let mut part = |name: PartName, out: &mut dyn io::Write| {
            let mut counted = Counted { out, done: &mut done, whole: plan.bytes, report: &mut *report };
            checked.write_part(arch, name, have, &mut counted)
        };
        for (name, place) in [(PartName::Root, &inactive.root), (PartName::Verity, &inactive.verity)] {
            let mut pen = Pen::new(self.disk, place.at, place.bytes);
            part(name, &mut pen)?;
            io::Write::flush(&mut pen)?;
        }
        self.disk.sync()?;
        self.esp.write(&staged(&plan.to.version), &mut |out| part(PartName::Kernel, out).map_err(io::Error::other))?;
        Ok(self.esp.sync()?)
    }

    /// Compares what lies on the disks with what was signed: `same` is given each part of the release.
    fn read_back(&self, to: &Release, same: Same<'_>, report: Report<'_>) -> Result<(), Error> {
        #[cfg(test)]
        if self.planted(Bug::NoReadBack) {
            return Ok(());
        }
        let Some(image) = &to.image else { return Ok(()) };
        let Slots { inactive, .. } = self.slots()?;
        let whole = image.parts().iter().map(|(_, part)| part.bytes).sum();
        let mut before = 0;
        for (name, part) in image.parts() {
            let mut progress = |bytes| report(Step::ReadBack, before + bytes, whole);
            let place = match name {
                PartName::Root => Some(&inactive.root),
                PartName::Verity => Some(&inactive.verity),
                PartName::Kernel => None,
            };
            let good = match place {
                Some(place) => same(name, part, &mut Stretch::new(self.disk, place.at, part.bytes), &mut progress)?,
                // A file that cannot be found is not the one that was written.
                None => match self.esp.open(&staged(&to.version)) {
                    Ok(mut file) => same(name, part, &mut file, &mut progress)?,
                    Err(_) => false,
                },
            };
            if !good {
                return Err(lost(place));
            }
            before += part.bytes;
        }
        Ok(())
    }

    fn name_slot(&self, to: &Release) -> Result<(), Error> {
        let Some(hash) = to.root_hash() else { return Ok(()) };
        let mut table = Table::read(self.disk)?;
        let Slots { inactive, .. } = Slots::find(&table, self.settings.arch, &self.booted)?;
        let [root, verity] = ids(&hash);
        table.name(inactive.root.index, &label(&to.version), Some(root))?;
        table.name(inactive.verity.index, &verity_label(&to.version), Some(verity))?;
        Ok(table.write(self.disk)?)
    }
}

fn lost(place: Option<&Partition>) -> Error {
    let what = place.map_or("The boot partition".to_owned(), |place| format!("Partition {}", place.index + 1));
    Error::Not(format!(
        "{what} does not give back what was written to it: the disk may be failing. Nothing was changed for the next start."
    ))
}

/// As a whole: for what was written earlier.
fn is_whole(_: PartName, part: &Part, reader: &mut dyn Read, progress: &mut dyn FnMut(u64)) -> Result<bool, Error> {
    let is = hash_all(reader)? == (part.bytes, part.sha256);
    progress(part.bytes);
    Ok(is)
}

/// What a good file teaches even where its release is not taken: who may sign, and that there is something newer.
fn learn<R: Read + Seek>(journal: &mut Journal, checked: &Checked<R>) {
    let root = checked.trust().and_then(|trust| String::from_utf8(trust.root_bytes().to_vec()).ok());
    journal.root = root.or_else(|| journal.root.take());
    let manifest = checked.manifest();
    if journal.newest.as_ref().is_none_or(|newest| newest.built_s < manifest.built_s) {
        journal.newest = Some(Newest { version: manifest.version.clone(), built_s: manifest.built_s });
    }
}

/// Names say which attempt a checkpoint is of, and between what it lies.
fn checkpoint_name(attempt: u64, from: &str, to: &str) -> String {
    format!("update-{attempt}-{from}-to-{to}")
}

fn stored_bytes<R: Read + Seek>(checked: &Checked<R>) -> u64 {
    let arches = checked.manifest().images.keys();
    let parts = [PartName::Root, PartName::Verity, PartName::Kernel];
    let chunks = arches.flat_map(|arch| parts.map(|part| checked.index(*arch, part))).flatten().flatten();
    chunks.filter(|chunk| checked.contains(chunk)).map(|chunk| u64::from(chunk.stored_len)).sum()
}

/// Counts what goes through.
struct Counted<'a> {
    out: &'a mut dyn io::Write,
    done: &'a mut u64,
    whole: u64,
    report: &'a mut dyn FnMut(Step, u64, u64),
}

impl io::Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.out.write(bytes)?;
        *self.done += len as u64;
        (self.report)(Step::Write, *self.done, self.whole);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
