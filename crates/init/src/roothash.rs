//! The root hash of a slot: what is trusted, and by which the slot's two partitions are found.

use std::fmt;

/// A SHA-256 root hash of dm-verity.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RootHash([u8; 32]);

impl RootHash {
    /// Reads 64 hexadecimal digits.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return None;
        }
        let mut hash = [0; 32];
        for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
            let [high, low] = pair else { return None };
            *byte = (digit(*high)? << 4) | digit(*low)?;
        }
        Some(Self(hash))
    }

    /// The identifier of the partition that holds the files: the first half of the hash.
    #[must_use]
    pub fn data_uuid(&self) -> String {
        uuid(&self.0[..16])
    }

    /// The identifier of the partition that holds the hash tree: the second half.
    #[must_use]
    pub fn tree_uuid(&self) -> String {
        uuid(&self.0[16..])
    }
}

impl fmt::Display for RootHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for RootHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RootHash({self})")
    }
}

fn digit(letter: u8) -> Option<u8> {
    char::from(letter).to_digit(16).map(|value| value as u8)
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Sixteen bytes in the order in which they are written.
pub(crate) fn uuid(bytes: &[u8]) -> String {
    let mut text = hex(bytes);
    for at in [20, 16, 12, 8] {
        text.insert(at, '-');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "00112233445566778899aabbccddeeff0123456789abcdeffedcba9876543210";

    #[test]
    fn the_halves_are_the_partitions() {
        let hash = RootHash::from_hex(HEX).unwrap();
        assert_eq!(hash.to_string(), HEX);
        assert_eq!(hash.data_uuid(), "00112233-4455-6677-8899-aabbccddeeff");
        assert_eq!(hash.tree_uuid(), "01234567-89ab-cdef-fedc-ba9876543210");
        assert_eq!(RootHash::from_hex(&HEX.to_uppercase()), Some(hash));
    }

    #[test]
    fn what_is_no_hash_is_refused() {
        for bad in ["", "00", &HEX[1..], &format!("{HEX}0"), &HEX.replace('a', "g"), &"é".repeat(32)] {
            assert_eq!(RootHash::from_hex(bad), None, "{bad}");
        }
    }
}
