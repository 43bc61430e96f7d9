//! A look at programs: are they static, for the right processor, without symbols?
//!
//! Lives here: just enough of the ELF format to answer that. Not here: who asks (dist.rs).

use anyhow::{Context, Result, bail};

/// Segments of which none may be there: something would be loaded at run time.
const DYNAMIC: u32 = 2;
const INTERPRETER: u32 = 3;
const STACK: u32 = 0x6474_e551;
const EXECUTABLE: u32 = 1;
/// Sections of which none may be there.
const SYMBOLS: u32 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Machine {
    X86_64 = 62,
    Arm64 = 183,
}

/// An error that says in what way a program is not what is shipped.
pub(crate) fn static_and_stripped(program: &[u8], machine: Machine) -> Result<()> {
    // 64 bits, little endian.
    if program.get(..6) != Some(b"\x7fELF\x02\x01") {
        bail!("not a 64-bit ELF program");
    }
    let found = number(program, 18, 2)?;
    if found != machine as u64 {
        bail!("made for machine {found}, not {}", machine as u64);
    }
    for (kind, at) in table(program, 32, 54)? {
        match u32::try_from(kind)? {
            DYNAMIC => bail!("it has a dynamic section"),
            INTERPRETER => bail!("it wants a dynamic loader"),
            STACK if number(program, at + 4, 4)? as u32 & EXECUTABLE != 0 => bail!("its stack is executable"),
            _ => {}
        }
    }
    for (_, at) in table(program, 40, 58)? {
        if number(program, at + 4, 4)? == u64::from(SYMBOLS) {
            bail!("it has a symbol table");
        }
    }
    Ok(())
}

/// First word and place of each entry of a header table, given where the ELF header names its place and its entries' size.
fn table(program: &[u8], place: usize, shape: usize) -> Result<Vec<(u64, usize)>> {
    let start = usize::try_from(number(program, place, 8)?)?;
    let (size, count) = (number(program, shape, 2)? as usize, number(program, shape + 2, 2)? as usize);
    (0..count)
        .map(|n| {
            let at = start.checked_add(n * size).context("a table lies outside")?;
            Ok((number(program, at, 4)?, at))
        })
        .collect()
}

fn number(program: &[u8], at: usize, bytes: usize) -> Result<u64> {
    let end = at.checked_add(bytes).context("outside the program")?;
    let bytes = program.get(at..end).context("the program is cut short")?;
    Ok(bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program of headers alone: its segments as (kind, flags), its sections' kinds.
    fn program(machine: u16, segments: &[(u32, u32)], sections: &[u32]) -> Vec<u8> {
        let mut program = b"\x7fELF\x02\x01".to_vec();
        program.resize(64, 0);
        program[18..20].copy_from_slice(&machine.to_le_bytes());
        program[32..40].copy_from_slice(&64u64.to_le_bytes());
        program[40..48].copy_from_slice(&(64 + 56 * segments.len() as u64).to_le_bytes());
        program[54..56].copy_from_slice(&56u16.to_le_bytes());
        program[56..58].copy_from_slice(&(segments.len() as u16).to_le_bytes());
        program[58..60].copy_from_slice(&64u16.to_le_bytes());
        program[60..62].copy_from_slice(&(sections.len() as u16).to_le_bytes());
        for (kind, flags) in segments {
            let at = program.len();
            program.extend(kind.to_le_bytes());
            program.extend(flags.to_le_bytes());
            program.resize(at + 56, 0);
        }
        for kind in sections {
            let at = program.len();
            program.resize(at + 4, 0);
            program.extend(kind.to_le_bytes());
            program.resize(at + 64, 0);
        }
        program
    }

    fn check(program: &[u8], expected: &str) {
        let found = static_and_stripped(program, Machine::X86_64).err().map_or("good".into(), |e| e.to_string());
        assert_eq!(found, expected);
    }

    #[test]
    fn only_static_programs_without_symbols_are_shipped() {
        check(&program(62, &[(1, 5), (STACK, 6)], &[0, 1]), "good");
        check(&program(62, &[(1, 5), (2, 6)], &[]), "it has a dynamic section");
        check(&program(62, &[(3, 4)], &[]), "it wants a dynamic loader");
        check(&program(62, &[(STACK, 7)], &[]), "its stack is executable");
        check(&program(62, &[(1, 5)], &[0, 2]), "it has a symbol table");
        check(&program(183, &[], &[]), "made for machine 183, not 62");
        check(b"#!/bin/sh\n", "not a 64-bit ELF program");
    }

    #[test]
    fn a_program_that_is_cut_short_is_an_error() {
        let whole = program(62, &[(1, 5)], &[0, 1]);
        assert!((0..whole.len() - 60).all(|end| static_and_stripped(&whole[..end], Machine::X86_64).is_err()));
    }
}
