//! The order of things at a start: make the data's partition if there is none, open it, look it over.

use std::path::PathBuf;

use crate::person::Person;
use crate::tools::Tools;
use crate::{Failure, key};

/// How the data lies on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Readable for whoever has the disk.
    Plain,
    /// The TPM opens it.
    Sealed,
    /// Only the recovery key opens it.
    Refused,
}

impl State {
    /// The word that stands for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Sealed => "sealed",
            Self::Refused => "refused",
        }
    }
}

/// Data that can be mounted.
#[derive(Debug, PartialEq, Eq)]
pub struct Data {
    pub device: PathBuf,
    pub state: State,
}

/// Makes the data ready to be mounted.
///
/// # Errors
/// When the disk does not do what it should. A TPM that refuses is none: somebody is asked until the key is right.
pub fn open(tools: &mut impl Tools, person: &mut impl Person, tell: &mut dyn FnMut(&str)) -> Result<Data, Failure> {
    let data = match tools.partition()? {
        None => first(tools, tell)?,
        Some(partition) if tools.is_locked(&partition)? => unlock(tools, person, tell, partition)?,
        Some(partition) => Data { device: partition, state: State::Plain },
    };
    tools.check(&data.device)?;
    Ok(data)
}

/// The first start. What was just made is opened the way it will be opened from now on: a TPM that does not give back what it
/// was given is left alone.
fn first(tools: &mut impl Tools, tell: &mut dyn FnMut(&str)) -> Result<Data, Failure> {
    let missing = || Failure("the partition for the data was made, and is not there".to_owned());
    if !tools.has_tpm() {
        tools.make(false)?;
        return Ok(Data { device: tools.partition()?.ok_or_else(missing)?, state: State::Plain });
    }
    if let Err(why) = tools.make(true) {
        tell(&format!("the data is NOT encrypted, the TPM does not work: {why}"));
        if tools.partition()?.is_none() {
            tools.make(false)?;
        }
    }
    let partition = tools.partition()?.ok_or_else(missing)?;
    if !tools.is_locked(&partition)? {
        return Ok(Data { device: partition, state: State::Plain });
    }
    match tools.open_by_tpm(&partition) {
        Ok(device) => {
            tell("the data is encrypted, and bound to this machine's TPM");
            Ok(Data { device, state: State::Sealed })
        }
        Err(why) => {
            tell(&format!("the data is NOT encrypted, the TPM does not open what it has closed: {why}"));
            tools.make_plain(&partition)?;
            Ok(Data { device: partition, state: State::Plain })
        }
    }
}

fn unlock(
    tools: &mut impl Tools,
    person: &mut impl Person,
    tell: &mut dyn FnMut(&str),
    partition: PathBuf,
) -> Result<Data, Failure> {
    let has_tpm = tools.has_tpm();
    if has_tpm {
        match tools.open_by_tpm(&partition) {
            Ok(device) => {
                tell("the data is open: the TPM knows this machine and this release");
                return Ok(Data { device, state: State::Sealed });
            }
            Err(why) => tell(&format!("the data stays locked: {why}")),
        }
    }
    person.say(if has_tpm { REFUSED } else { NO_TPM });
    let (device, key) = loop {
        person.say("\r\nRecovery key: ");
        let Some(key) = key::read(&person.line()) else {
            person.say("  a recovery key has 64 letters, in groups of eight\r\n");
            continue;
        };
        match tools.open_by_key(&partition, &key) {
            Ok(device) => break (device, key),
            Err(_) => person.say("  this is not the key of this box's data\r\n"),
        }
    };
    tell("the data is open: by the recovery key");
    let state = match has_tpm && agrees(person) {
        true => bind(tools, tell, &partition, &key),
        false => State::Refused,
    };
    Ok(Data { device, state })
}

const REFUSED: &str = "\r\n\r\nThis machine's TPM does not open the data. That is so when the disk was moved to another machine, when firmware or\r\n\
     its settings were changed, or when somebody has tampered with the machine. If you do not know why, do not go on.\r\n";
const NO_TPM: &str = "\r\n\r\nThe data on this disk is encrypted, and this machine has no TPM that could open it.\r\n";

fn agrees(person: &mut impl Person) -> bool {
    loop {
        person.say("\r\nShall this machine's TPM open the data from now on, as it is now? (yes/no): ");
        match person.line().as_str() {
            "yes" | "y" => return true,
            "no" | "n" => return false,
            _ => {}
        }
    }
}

fn bind(tools: &mut impl Tools, tell: &mut dyn FnMut(&str), partition: &std::path::Path, key: &str) -> State {
    match tools.bind(partition, key) {
        Ok(()) => {
            tell("the data is bound to this machine's TPM");
            State::Sealed
        }
        Err(why) => {
            tell(&format!("the data is NOT bound to this machine's TPM: {why}"));
            State::Refused
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::path::Path;

    use super::*;

    const KEY: &str = "cbdefghi-jklnrtuv-cbdefghi-jklnrtuv-cbdefghi-jklnrtuv-cbdefghi-jklnrtuv";
    const OTHER: &str = "vvvvvvvv-jklnrtuv-cbdefghi-jklnrtuv-cbdefghi-jklnrtuv-cbdefghi-jklnrtuv";

    /// What is on the disk.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Disk {
        Empty,
        Plain,
        Locked,
    }

    struct Fake {
        disk: Disk,
        tpm: bool,
        /// What the TPM does not do.
        makes: bool,
        opens: bool,
        binds: bool,
        calls: Vec<String>,
    }

    impl Fake {
        fn new(disk: Disk, tpm: bool) -> Self {
            Self { disk, tpm, makes: true, opens: true, binds: true, calls: Vec::new() }
        }

        fn done(&mut self, good: bool, call: impl Into<String>) -> Result<(), Failure> {
            self.calls.push(call.into());
            if good { Ok(()) } else { Err(Failure("why".to_owned())) }
        }
    }

    impl Tools for Fake {
        fn has_tpm(&self) -> bool {
            self.tpm
        }
        fn partition(&mut self) -> Result<Option<PathBuf>, Failure> {
            Ok((self.disk != Disk::Empty).then(|| PathBuf::from("/dev/vda6")))
        }
        fn make(&mut self, sealed: bool) -> Result<(), Failure> {
            let good = !sealed || self.makes;
            if good {
                self.disk = if sealed { Disk::Locked } else { Disk::Plain };
            }
            self.done(good, format!("make {sealed}"))
        }
        fn make_plain(&mut self, _: &Path) -> Result<(), Failure> {
            self.disk = Disk::Plain;
            self.done(true, "make plain")
        }
        fn is_locked(&self, _: &Path) -> Result<bool, Failure> {
            Ok(self.disk == Disk::Locked)
        }
        fn open_by_tpm(&mut self, _: &Path) -> Result<PathBuf, Failure> {
            self.done(self.opens, "open by tpm")?;
            Ok("/dev/mapper/var".into())
        }
        fn open_by_key(&mut self, _: &Path, key: &str) -> Result<PathBuf, Failure> {
            self.done(key == KEY, "open by key")?;
            Ok("/dev/mapper/var".into())
        }
        fn bind(&mut self, _: &Path, key: &str) -> Result<(), Failure> {
            self.done(self.binds && key == KEY, "bind")
        }
        fn check(&mut self, device: &Path) -> Result<(), Failure> {
            self.done(true, format!("check {}", device.display()))
        }
    }

    #[derive(Default)]
    struct Somebody {
        types: VecDeque<&'static str>,
        heard: String,
    }

    impl Person for Somebody {
        fn say(&mut self, text: &str) {
            self.heard.push_str(text);
        }
        fn line(&mut self) -> String {
            self.types.pop_front().unwrap().to_owned()
        }
    }

    /// Starts the machine; what became of the data, and all that was said.
    fn start(fake: &mut Fake, types: &[&'static str]) -> (Data, String) {
        let mut somebody = Somebody { types: types.to_vec().into(), ..Somebody::default() };
        let mut told = String::new();
        let data = open(fake, &mut somebody, &mut |line| told.push_str(&format!("{line}\n"))).unwrap();
        assert!(somebody.types.is_empty(), "nobody asked for {:?}", somebody.types);
        (data, told + &somebody.heard)
    }

    fn check(fake: &mut Fake, types: &[&'static str], state: State, calls: &[&str]) -> String {
        let (data, said) = start(fake, types);
        assert_eq!(data.state, state, "{said}");
        let device = if fake.disk == Disk::Locked { "/dev/mapper/var" } else { "/dev/vda6" };
        assert_eq!(data.device, Path::new(device));
        let calls: Vec<String> =
            calls.iter().map(|call| (*call).to_owned()).chain([format!("check {device}")]).collect();
        assert_eq!(fake.calls, calls);
        said
    }

    #[test]
    fn without_a_tpm_nothing_is_asked_of_anybody() {
        check(&mut Fake::new(Disk::Empty, false), &[], State::Plain, &["make false"]);
        check(&mut Fake::new(Disk::Plain, false), &[], State::Plain, &[]);
        // Data that was there before the TPM stays as it is.
        check(&mut Fake::new(Disk::Plain, true), &[], State::Plain, &[]);
    }

    #[test]
    fn with_a_tpm_the_data_is_sealed_and_opened() {
        let calls = ["make true", "open by tpm"];
        let said = check(&mut Fake::new(Disk::Empty, true), &[], State::Sealed, &calls);
        assert!(said.contains("bound to this machine's TPM"), "{said}");
        check(&mut Fake::new(Disk::Locked, true), &[], State::Sealed, &["open by tpm"]);
    }

    #[test]
    fn a_tpm_that_does_not_work_is_left_alone_at_the_first_start_only() {
        let mut fake = Fake { makes: false, ..Fake::new(Disk::Empty, true) };
        let said = check(&mut fake, &[], State::Plain, &["make true", "make false"]);
        assert!(said.contains("NOT encrypted"), "{said}");
        let mut fake = Fake { opens: false, ..Fake::new(Disk::Empty, true) };
        let said = check(&mut fake, &[], State::Plain, &["make true", "open by tpm", "make plain"]);
        assert!(said.contains("NOT encrypted"), "{said}");
    }

    #[test]
    fn another_tpm_does_not_open_it_and_the_right_key_does() {
        let mut fake = Fake { opens: false, ..Fake::new(Disk::Locked, true) };
        let calls = ["open by tpm", "open by key", "open by key", "bind"];
        let said = check(&mut fake, &["", "what?", OTHER, KEY, "perhaps", "yes"], State::Sealed, &calls);
        assert!(said.contains("64 letters") && said.contains("not the key of this box's data"), "{said}");
        assert!(!said.contains(KEY), "{said}");
    }

    #[test]
    fn nothing_is_bound_that_nobody_wants_or_that_fails() {
        let mut fake = Fake { opens: false, ..Fake::new(Disk::Locked, true) };
        check(&mut fake, &[KEY, "no"], State::Refused, &["open by tpm", "open by key"]);
        let mut fake = Fake { opens: false, binds: false, ..Fake::new(Disk::Locked, true) };
        let said = check(&mut fake, &[KEY, "y"], State::Refused, &["open by tpm", "open by key", "bind"]);
        assert!(said.contains("NOT bound"), "{said}");
        check(&mut Fake::new(Disk::Locked, false), &[KEY], State::Refused, &["open by key"]);
    }
}
