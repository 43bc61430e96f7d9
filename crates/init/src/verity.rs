//! The superblock of a hash tree, and the line by which device-mapper is told of it.
//!
//! The superblock is not signed. What it says is only how to read the tree: whatever it says, the kernel lets nothing pass
//! that does not lead to the root hash. It is checked all the same, so that nonsense ends in a sentence on the console.

use std::path::Path;

use crate::Failure;
use crate::devices::Slot;
use crate::roothash::{RootHash, hex};

/// How much of the device is the superblock, in bytes.
pub const SUPERBLOCK_BYTES: usize = 512;

const SECTOR_BYTES: u64 = 512;
const BLOCK_SIZES: std::ops::RangeInclusive<u32> = 512..=4096;
const SALT_MAX_BYTES: usize = 256;

/// What the superblock says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    data_block_bytes: u32,
    tree_block_bytes: u32,
    data_blocks: u64,
    salt: Vec<u8>,
}

/// A device-mapper target: what the kernel needs besides the name `verity`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub length_sectors: u64,
    pub parameters: String,
}

impl Superblock {
    /// Reads version 1 with SHA-256, the only kind that is made for slots.
    ///
    /// # Errors
    /// When it is another kind, or its lengths make no sense.
    pub fn parse(bytes: &[u8; SUPERBLOCK_BYTES]) -> Result<Self, Failure> {
        let bad = |what: &str| Err(Failure(format!("the hash tree's superblock {what}")));
        let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if &bytes[..8] != b"verity\0\0" {
            return bad("is not there");
        }
        if (number(8), number(12)) != (1, 1) {
            return bad("is of an unknown version");
        }
        if bytes[32..64].split(|byte| *byte == 0).next() != Some(b"sha256") {
            return bad("names another hash than SHA-256");
        }
        let (data_block_bytes, tree_block_bytes) = (number(64), number(68));
        for size in [data_block_bytes, tree_block_bytes] {
            if !BLOCK_SIZES.contains(&size) || !size.is_power_of_two() {
                return bad("has a block size that makes no sense");
            }
        }
        let data_blocks = u64::from(number(72)) | u64::from(number(76)) << 32;
        if data_blocks == 0 || data_blocks.checked_mul(u64::from(data_block_bytes)).is_none() {
            return bad("has a length that makes no sense");
        }
        let salt_bytes = usize::from(u16::from_le_bytes([bytes[80], bytes[81]]));
        if salt_bytes > SALT_MAX_BYTES {
            return bad("has a salt that is too long");
        }
        let salt = bytes[88..88 + salt_bytes].to_vec();
        Ok(Self { data_block_bytes, tree_block_bytes, data_blocks, salt })
    }

    /// The target for a slot. A block that does not match stops the kernel, which then restarts: better no box than a changed
    /// one, and the boot loader counts it as a failed try.
    #[must_use]
    pub fn target(&self, slot: &Slot, hash: &RootHash) -> Target {
        let salt = if self.salt.is_empty() { "-".to_owned() } else { hex(&self.salt) };
        let (data, tree) = (name(&slot.data), name(&slot.tree));
        let Self { data_block_bytes, tree_block_bytes, data_blocks, .. } = self;
        // The tree begins in the block behind the superblock.
        let parameters = format!(
            "1 {data} {tree} {data_block_bytes} {tree_block_bytes} {data_blocks} 1 sha256 {hash} {salt} 1 panic_on_corruption"
        );
        Target { length_sectors: data_blocks * (u64::from(*data_block_bytes) / SECTOR_BYTES), parameters }
    }
}

fn name(device: &Path) -> std::path::Display<'_> {
    device.display()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the usual tool writes it for 25 600 blocks with a salt of four bytes.
    fn superblock() -> [u8; SUPERBLOCK_BYTES] {
        let mut bytes = [0; SUPERBLOCK_BYTES];
        bytes[..6].copy_from_slice(b"verity");
        bytes[8] = 1;
        bytes[12] = 1;
        bytes[16..32].fill(0xab);
        bytes[32..38].copy_from_slice(b"sha256");
        bytes[64..68].copy_from_slice(&4096_u32.to_le_bytes());
        bytes[68..72].copy_from_slice(&4096_u32.to_le_bytes());
        bytes[72..80].copy_from_slice(&25_600_u64.to_le_bytes());
        bytes[80] = 4;
        bytes[88..92].copy_from_slice(&[0xde, 0xad, 0xbe, 0xef]);
        bytes
    }

    fn target(bytes: &[u8; SUPERBLOCK_BYTES]) -> Target {
        let slot =
            Slot { data: "/dev/vda2".into(), tree: "/dev/vda3".into(), disk: "vda".to_owned(), removable: false };
        let hash = RootHash::from_hex(&"5a".repeat(32)).unwrap();
        Superblock::parse(bytes).unwrap().target(&slot, &hash)
    }

    #[test]
    fn the_line_for_the_kernel() {
        let hash = "5a".repeat(32);
        let expected = format!("1 /dev/vda2 /dev/vda3 4096 4096 25600 1 sha256 {hash} deadbeef 1 panic_on_corruption");
        assert_eq!(target(&superblock()), Target { length_sectors: 204_800, parameters: expected });
    }

    #[test]
    fn without_salt_a_dash_stands_for_it() {
        let mut bytes = superblock();
        bytes[80] = 0;
        assert!(target(&bytes).parameters.contains(" - 1 panic_on_corruption"));
    }

    #[test]
    fn nonsense_is_refused() {
        let check = |at: usize, value: &[u8], part: &str| {
            let mut bytes = superblock();
            bytes[at..at + value.len()].copy_from_slice(value);
            let got = Superblock::parse(&bytes).map_err(|failure| failure.0);
            assert!(got.as_ref().is_err_and(|text| text.contains(part)), "{part}: {got:?}");
        };
        check(0, b"VERITY", "is not there");
        check(8, &[2], "version");
        check(12, &[0], "version");
        check(32, b"sha512", "SHA-256");
        check(64, &0_u32.to_le_bytes(), "block size");
        check(64, &5000_u32.to_le_bytes(), "block size");
        check(68, &(1_u32 << 31).to_le_bytes(), "block size");
        check(72, &0_u64.to_le_bytes(), "length");
        check(72, &u64::MAX.to_le_bytes(), "length");
        check(80, &257_u16.to_le_bytes(), "salt");
    }
}
