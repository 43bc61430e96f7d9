//! The kernel's command line, which the kernel image carries. Firmware can add to it (strings of SMBIOS, options of a boot
//! entry), and systemd would do much of what it says: so the line has to be the one that this image was made with.

use crate::Failure;
use crate::roothash::RootHash;

/// Nobody reads more of a line that somebody has tampered with.
const MOST_NAMED: usize = 8;

/// Looks whether the line is the one that the image was made with.
///
/// # Errors
/// When it has other words, which are named.
pub fn as_made(line: &str, made: &str) -> Result<(), Failure> {
    if line.split_ascii_whitespace().eq(made.split_ascii_whitespace()) {
        return Ok(());
    }
    let known: Vec<&str> = made.split_ascii_whitespace().collect();
    let foreign: Vec<&str> =
        line.split_ascii_whitespace().filter(|word| !known.contains(word)).take(MOST_NAMED).collect();
    Err(Failure(match foreign.is_empty() {
        true => "the kernel command line is not the one of this image".to_owned(),
        false => format!("the kernel command line has what this image was not made with: {}", foreign.join(" ")),
    }))
}

/// The one `roothash=` of the line.
///
/// # Errors
/// When there is none, more than one, or it is no SHA-256.
pub fn root_hash(line: &str) -> Result<RootHash, Failure> {
    let mut values = line.split_ascii_whitespace().filter_map(|word| word.strip_prefix("roothash="));
    match (values.next(), values.next()) {
        (None, _) => Err(Failure("the kernel command line has no roothash=".to_owned())),
        (Some(_), Some(_)) => Err(Failure("the kernel command line has more than one roothash=".to_owned())),
        (Some(value), None) => {
            RootHash::from_hex(value).ok_or_else(|| Failure("roothash= is not 64 hexadecimal digits".to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "00112233445566778899aabbccddeeff0123456789abcdeffedcba9876543210";

    fn check(line: &str, outcome: Result<(), &str>) {
        let got = root_hash(line).map(|hash| assert_eq!(hash.to_string(), HEX)).map_err(|failure| failure.0);
        match outcome {
            Ok(()) => assert_eq!(got, Ok(()), "{line}"),
            Err(part) => assert!(got.clone().is_err_and(|text| text.contains(part)), "{line}: {got:?}"),
        }
    }

    #[test]
    fn nobody_adds_to_the_line_and_nobody_takes_from_it() {
        let made = format!("quiet panic=10 roothash={HEX}");
        assert!(as_made(&format!(" quiet  panic=10 roothash={HEX}\n"), &made).is_ok());
        let added = as_made(&format!("{made} systemd.unit=rescue.target"), &made).unwrap_err();
        assert!(added.0.ends_with("not made with: systemd.unit=rescue.target"), "{}", added.0);
        for other in [format!("panic=10 roothash={HEX}"), format!("panic=10 quiet roothash={HEX}"), String::new()] {
            assert!(as_made(&other, &made).unwrap_err().0.contains("not the one of this image"), "{other}");
        }
    }

    #[test]
    fn one_root_hash_and_only_one() {
        check(&format!("console=ttyS0 roothash={HEX} quiet\n"), Ok(()));
        check("console=ttyS0", Err("no roothash="));
        check(&format!("roothash={HEX} roothash={HEX}"), Err("more than one"));
        check("roothash=abc", Err("not 64"));
        check(&format!("xroothash={HEX}"), Err("no roothash="));
    }
}
