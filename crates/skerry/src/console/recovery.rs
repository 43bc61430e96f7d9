//! The key that opens the data when the machine's TPM does not: made once somebody is there who keeps it, shown to them, and
//! kept nowhere here.

use std::io::{BufRead, Write};

use anyhow::{Result, bail};

use super::machine::Machine;
use super::wizard::Terminal;

/// How the data lies on the disk, in words for the console; nothing to say where it is not encrypted.
pub(crate) fn state(machine: &mut impl Machine) -> Option<&'static str> {
    match machine.seal(&["status"]).ok()?.as_str() {
        "sealed" => Some("encrypted, opened by the TPM; NO RECOVERY KEY was handed over: choose 16"),
        "sealed with-key" => Some("encrypted, opened by the TPM; somebody has a recovery key"),
        "refused" => Some("encrypted, opened by the recovery key; this machine's TPM does not open it"),
        _ => None,
    }
}

/// Whether a recovery key can be made and nobody has one.
pub(crate) fn is_missing(machine: &mut impl Machine) -> bool {
    machine.seal(&["status"]).is_ok_and(|state| state == "sealed")
}

/// A new key, for whoever is not at the console: who gets it has to see that it arrives, or take it back.
pub(crate) fn make(machine: &mut impl Machine) -> Result<String> {
    machine.seal(&["recovery-key"]).map_err(anyhow::Error::msg)
}

pub(crate) fn take_back(machine: &mut impl Machine) -> Result<()> {
    machine.seal(&["forget-recovery-key"]).map_err(anyhow::Error::msg)?;
    Ok(())
}

/// Makes a new key and shows it until somebody has it; takes it back if nobody does.
pub(crate) fn hand_over<R: BufRead, W: Write>(terminal: &mut Terminal<R, W>, machine: &mut impl Machine) -> Result<()> {
    let key = make(machine)?;
    let taken = terminal
        .say(&format!("{EXPLAINED}\n  recovery key  {key}\n"))
        .and_then(|()| is_written_down(terminal, key.rsplit('-').next().unwrap_or(&key)));
    match taken {
        Ok(true) => terminal.say("  good; it is kept nowhere on this box"),
        Ok(false) => {
            take_back(machine)?;
            bail!("the key opens nothing any more; 16 in the menu makes another one")
        }
        Err(why) => {
            take_back(machine)?;
            Err(why)
        }
    }
}

const EXPLAINED: &str = "\nThe data on this box is encrypted, and only this machine's TPM opens it. Should the board break, or its firmware be\n\
     changed, this key opens it, and nothing else does. Write it down, and keep it away from the box.\n";

fn is_written_down<R: BufRead, W: Write>(terminal: &mut Terminal<R, W>, end: &str) -> Result<bool> {
    loop {
        match terminal.line("Type its last eight letters when you have it, or `no`: ")?.to_lowercase().as_str() {
            "no" => return Ok(false),
            typed if typed == end => return Ok(true),
            _ => terminal.say("  these are not its last eight letters")?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::steps::tests::{Fake, RECOVERY_KEY};
    use super::*;

    fn talk(lines: &str) -> (Result<()>, String, Vec<String>) {
        let mut terminal = Terminal { input: lines.as_bytes(), output: Vec::new(), echo: |_| {} };
        let mut machine = Fake { data: "sealed", ..Fake::default() };
        let outcome = hand_over(&mut terminal, &mut machine);
        (outcome, String::from_utf8(terminal.output).unwrap(), machine.calls)
    }

    #[test]
    fn a_key_counts_once_somebody_has_it() {
        let (outcome, said, calls) = talk("yes\n\nKLNRTUVV\n");
        outcome.unwrap();
        assert_eq!(said.matches(RECOVERY_KEY).count(), 1, "{said}");
        assert_eq!(said.matches("not its last eight").count(), 2, "{said}");
        assert_eq!(calls, ["seal recovery-key"]);
    }

    #[test]
    fn a_key_that_nobody_has_is_taken_back() {
        for lines in ["no\n", ""] {
            let (outcome, _, calls) = talk(lines);
            assert!(outcome.is_err());
            assert_eq!(calls, ["seal recovery-key", "seal forget-recovery-key"], "{lines:?}");
        }
    }

    #[test]
    fn a_box_without_a_tpm_says_nothing_of_it() {
        let mut machine = Fake::default();
        assert!(state(&mut machine).is_none() && !is_missing(&mut machine));
        machine.data = "sealed";
        assert!(state(&mut machine).is_some_and(|text| text.contains("NO RECOVERY KEY")) && is_missing(&mut machine));
        for (data, part) in [("sealed with-key", "somebody has"), ("refused", "does not open it")] {
            machine.data = data;
            assert!(state(&mut machine).is_some_and(|text| text.contains(part)) && !is_missing(&mut machine));
        }
    }
}
