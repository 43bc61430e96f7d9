//! The kernel's command line, which the signed kernel image carries. Only the root hash is taken from it: who could change
//! the rest of the line gets nothing by it here.

use crate::Failure;
use crate::roothash::RootHash;

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
    fn one_root_hash_and_only_one() {
        check(&format!("console=ttyS0 roothash={HEX} quiet\n"), Ok(()));
        check("console=ttyS0", Err("no roothash="));
        check(&format!("roothash={HEX} roothash={HEX}"), Err("more than one"));
        check("roothash=abc", Err("not 64"));
        check(&format!("xroothash={HEX}"), Err("no roothash="));
    }
}
