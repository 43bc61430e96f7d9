//! The two slots of a disk: which one runs, what they hold, and their chunks.
//!
//! Lives here: finding the slots in a partition table, the chunks that a thin bundle leaves out.
//! Not here: when a slot is written (install.rs). The slot that runs is never written.

use std::collections::HashMap;
use std::io::{self, Read as _, Seek as _, SeekFrom};

use bundle::{Arch, Digest, Have, cut};

use crate::disk::{Disk, Stretch};
use crate::folder::Folder;
use crate::gpt::{Guid, Partition, Table};

/// The label of a partition that holds nothing.
pub const EMPTY: &str = "_empty";

/// Kinds of partitions, of the Discoverable Partitions Specification.
const fn kinds(arch: Arch) -> [Guid; 2] {
    let [root, verity] = match arch {
        Arch::X86_64 => [0x4f68_bce3_e8cd_4db1_96e7_fbca_f984_b709, 0x2c73_57ed_ebd2_46d9_aec1_23d4_37ec_2bf5],
        Arch::Arm64 => [0xb921_b045_1df0_41c3_af44_4c6f_280d_3fae_u128, 0xdf33_00ce_d69f_4c92_978c_9bfb_0f38_d820],
    };
    [Guid(root.to_be_bytes()), Guid(verity.to_be_bytes())]
}

/// A root partition and the one with its hash tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// `a` or `b`, by the order of the partitions.
    pub name: char,
    pub root: Partition,
    pub verity: Partition,
}

/// Both slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slots {
    /// What runs was started from here.
    pub active: Slot,
    pub inactive: Slot,
}

/// What runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Booted {
    pub version: String,
    /// From the kernel's command line.
    pub root_hash: Option<Digest>,
}

/// Why the slots are not known.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SlotError {
    #[error("The disk has {roots} root partitions and {verities} with hash trees for {arch}; two of each are needed.")]
    Layout { arch: Arch, roots: usize, verities: usize },
    #[error("Neither slot of the disk is the one that runs (release {version}).")]
    NoneRuns { version: String },
}

impl Slots {
    /// # Errors
    /// The disk is not laid out in two slots, or none of them runs.
    pub fn find(table: &Table, arch: Arch, booted: &Booted) -> Result<Self, SlotError> {
        let all = table.partitions();
        let [roots, verities] =
            kinds(arch).map(|kind| all.iter().filter(|one| one.kind == kind).cloned().collect::<Vec<_>>());
        let (Ok([root_a, root_b]), Ok([verity_a, verity_b])) =
            (<[Partition; 2]>::try_from(roots.clone()), <[Partition; 2]>::try_from(verities.clone()))
        else {
            return Err(SlotError::Layout { arch, roots: roots.len(), verities: verities.len() });
        };
        let a = Slot { name: 'a', root: root_a, verity: verity_a };
        let b = Slot { name: 'b', root: root_b, verity: verity_b };
        let runs = |slot: &Slot| match &booted.root_hash {
            Some(hash) => slot.root.id == ids(hash)[0],
            None => slot.root.label == label(&booted.version),
        };
        match (runs(&a), runs(&b)) {
            (true, false) => Ok(Self { active: a, inactive: b }),
            (false, true) => Ok(Self { active: b, inactive: a }),
            _ => Err(SlotError::NoneRuns { version: booted.version.clone() }),
        }
    }
}

/// The label of a root partition with a release.
pub(crate) fn label(version: &str) -> String {
    format!("skerry_{version}")
}

/// The label of a partition with the hash tree of a release.
pub(crate) fn verity_label(version: &str) -> String {
    format!("skerry_{version}_verity")
}

/// The identities of the root and of the hash tree's partition: the halves of the root hash.
pub fn ids(root_hash: &Digest) -> [Guid; 2] {
    let number = root_hash.0.iter().map(|byte| u128::from(*byte));
    let half =
        |skip: usize| Guid(number.clone().skip(skip).take(16).fold(0, |all, byte| all << 8 | byte).to_be_bytes());
    [half(0), half(16)]
}

/// How many bytes of the slot's partitions are used: the hash tree's own header says so. The whole partitions where there
/// is no such header.
pub(crate) fn used(disk: &dyn Disk, slot: &Slot) -> io::Result<[u64; 2]> {
    let whole = [slot.root.bytes, slot.verity.bytes];
    let mut header = [0; 512];
    if slot.verity.bytes < 512 {
        return Ok(whole);
    }
    disk.read_at(slot.verity.at, &mut header)?;
    let number = |at: usize| header.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes).map(u64::from);
    let blocks = header.get(72..80).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
    let (Some(data), Some(hash), Some(blocks)) = (number(64), number(68), blocks) else { return Ok(whole) };
    if !header.starts_with(b"verity\0\0") || hash < 64 || blocks == 0 {
        return Ok(whole);
    }
    // One block for the header, then a tree of blocks of digests.
    let (mut tree, mut level) = (1_u64, blocks);
    while level > 1 {
        level = level.div_ceil(hash / 32);
        tree = tree.saturating_add(level);
    }
    let used = [data.saturating_mul(blocks), hash.saturating_mul(tree)];
    Ok(if used[0] <= whole[0] && used[1] <= whole[1] { used } else { whole })
}

/// Where a chunk is that the box has.
#[derive(Clone, Copy, Debug)]
enum Place {
    Disk,
    Kernel,
}

/// The chunks of the release that runs: of its slot, and of its kernel image on the ESP.
pub(crate) struct RunningChunks<'a> {
    disk: &'a dyn Disk,
    esp: &'a dyn Folder,
    kernel: Option<String>,
    places: HashMap<Digest, (Place, u64, u32)>,
}

impl<'a> RunningChunks<'a> {
    /// For a release that leaves nothing out: knows no chunk.
    pub(crate) fn none(disk: &'a dyn Disk, esp: &'a dyn Folder) -> Self {
        Self { disk, esp, kernel: None, places: HashMap::new() }
    }

    /// Reads and cuts all of it.
    pub(crate) fn find(
        disk: &'a dyn Disk,
        esp: &'a dyn Folder,
        slot: &Slot,
        kernel: Option<String>,
    ) -> io::Result<Self> {
        let mut found = Self { kernel, ..Self::none(disk, esp) };
        let used = used(disk, slot)?;
        for (partition, bytes) in [&slot.root, &slot.verity].into_iter().zip(used) {
            found.add(Place::Disk, partition.at, Stretch::new(disk, partition.at, bytes))?;
        }
        if let Some(kernel) = found.kernel.clone() {
            found.add(Place::Kernel, 0, esp.open(&kernel)?)?;
        }
        Ok(found)
    }

    fn add(&mut self, place: Place, mut at: u64, bytes: impl io::Read) -> io::Result<()> {
        for chunk in cut(bytes) {
            let chunk = chunk?;
            self.places.insert(Digest::of(&chunk), (place, at, u32::try_from(chunk.len()).unwrap_or(u32::MAX)));
            at += chunk.len() as u64;
        }
        Ok(())
    }
}

impl Have for RunningChunks<'_> {
    fn has(&self, plain: &Digest) -> bool {
        self.places.contains_key(plain)
    }

    fn chunk(&mut self, plain: &Digest) -> io::Result<Vec<u8>> {
        let (place, at, len) = *self.places.get(plain).ok_or(io::ErrorKind::NotFound)?;
        let mut chunk = vec![0; len as usize];
        match (place, &self.kernel) {
            (Place::Kernel, Some(kernel)) => {
                let mut file = self.esp.open(kernel)?;
                file.seek(SeekFrom::Start(at))?;
                file.read_exact(&mut chunk)?;
            }
            _ => self.disk.read_at(at, &mut chunk)?,
        }
        Ok(chunk)
    }
}
