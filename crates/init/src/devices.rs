//! The slot's two partitions: found by their identifiers, on one disk; and the disk's name for everybody after us.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::roothash::RootHash;
use crate::{Failure, gpt};

const SECTOR_BYTES: u64 = 512;

/// Where the two partitions of a slot are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The device with the files, such as `/dev/vda2`.
    pub data: PathBuf,
    /// The device with the hash tree.
    pub tree: PathBuf,
    /// The name of the disk that both are on, such as `vda`.
    pub disk: String,
    /// It can be pulled out.
    pub removable: bool,
}

/// Both partitions of the slot with this root hash; nothing while one of them is missing. A copy on a second disk (the
/// stick that the image was written from) changes nothing in what the root is, but it would in where the data are: a disk
/// that stays in the machine goes before one that can be pulled out.
///
/// # Errors
/// When two disks of one kind have the slot: which one has the data nobody could tell.
pub fn find(sys: &Path, dev: &Path, hash: &RootHash) -> Result<Option<Slot>, Failure> {
    let Ok(listed) = fs::read_dir(sys.join("class/block")) else { return Ok(None) };
    let mut disks: Vec<PathBuf> = listed.flatten().map(|entry| entry.path()).filter(|path| is_disk(path)).collect();
    disks.sort();
    let (leave, stay): (Vec<_>, Vec<_>) = disks.iter().partition(|disk| is_removable(disk));
    for disks in [stay, leave] {
        let mut slots = disks.into_iter().filter_map(|disk| slot_on(disk, dev, hash));
        match (slots.next(), slots.next()) {
            (Some(one), Some(other)) => {
                return Err(Failure(format!(
                    "the disks {} and {} hold the same system: take one of them away",
                    one.disk, other.disk
                )));
            }
            (Some(slot), None) => return Ok(Some(slot)),
            (None, _) => {}
        }
    }
    Ok(None)
}

/// A rule for udev by which the boot partition is the one on the slot's disk (`/dev/skerry/esp`), whatever partitions of the
/// same name there are on others. The data is found by `skerry-seal`.
#[must_use]
pub fn rules(slot: &Slot) -> String {
    let rule = |name: &str, link: &str| {
        format!(
            "ACTION!=\"remove\", SUBSYSTEM==\"block\", ENV{{DEVTYPE}}==\"partition\", KERNELS==\"{}\", \
             ENV{{ID_PART_ENTRY_NAME}}==\"{name}\", SYMLINK+=\"skerry/{link}\"\n",
            slot.disk
        )
    };
    rule("ESP", "esp")
}

fn is_disk(entry: &Path) -> bool {
    entry.join("queue").is_dir() && !entry.join("partition").exists()
}

fn is_removable(disk: &Path) -> bool {
    number(&disk.join("removable")) == Some(1)
}

/// The partition of a disk that its table calls so, by the kernel's name, such as `vda6`. The kernel itself knows names only
/// of partitions that were there when it read the whole table.
#[must_use]
pub fn named(sys: &Path, dev: &Path, disk: &str, name: &str) -> Option<String> {
    in_table(&sys.join("class/block").join(disk), dev, |entries, kernels| {
        let found = kernels(entries.iter().find(|entry| entry.name == name)?)?;
        Some(found.to_string_lossy().into_owned())
    })
}

fn slot_on(disk: &Path, dev: &Path, hash: &RootHash) -> Option<Slot> {
    in_table(disk, dev, |entries, kernels| {
        let with = |uuid: &str| Some(dev.join(kernels(entries.iter().find(|entry| entry.uuid == uuid)?)?));
        let (name, removable) = (disk.file_name()?.to_string_lossy().into_owned(), is_removable(disk));
        Some(Slot { data: with(&hash.data_uuid())?, tree: with(&hash.tree_uuid())?, disk: name, removable })
    })
}

/// Gives the kernel's name of an entry's partition.
type Kernels<'t> = &'t dyn Fn(&gpt::Entry) -> Option<std::ffi::OsString>;

/// Looks in the table at the disk's begin, then in the copy at its end, as the kernel does.
fn in_table<T>(disk: &Path, dev: &Path, look: impl Fn(&[gpt::Entry], Kernels<'_>) -> Option<T>) -> Option<T> {
    let block_bytes: u64 = number(&disk.join("queue/logical_block_size"))?;
    let blocks = number(&disk.join("size"))?.checked_mul(SECTOR_BYTES)?.checked_div(block_bytes)?;
    let mut device = File::open(dev.join(disk.file_name()?)).ok()?;
    [1, blocks.checked_sub(1)?].into_iter().find_map(|header| {
        let entries = gpt::entries(&mut device, block_bytes, header).ok()?;
        let kernels = |entry: &gpt::Entry| {
            partition(disk, entry.number, entry.first_block.checked_mul(block_bytes / SECTOR_BYTES)?)
        };
        look(&entries, &kernels)
    })
}

/// The name of the partition that the kernel has with this number at this place.
fn partition(disk: &Path, index: u32, start_sector: u64) -> Option<std::ffi::OsString> {
    let inside = fs::read_dir(disk).ok()?.flatten();
    let is_it = |path: &Path| {
        number(&path.join("partition")) == Some(u64::from(index)) && number(&path.join("start")) == Some(start_sector)
    };
    inside.map(|entry| entry.path()).find(|path| is_it(path))?.file_name().map(ToOwned::to_owned)
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpt::tests::disk;

    const HEX: &str = "00112233445566778899aabbccddeeff0123456789abcdeffedcba9876543210";
    const DATA: &str = "00112233-4455-6677-8899-aabbccddeeff";
    const TREE: &str = "01234567-89ab-cdef-fedc-ba9876543210";
    const ESP: &str = "11111111-4455-6677-8899-aabbccddeeff";

    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        /// A disk with its table in block `header`, which the kernel has read.
        fn disk(&self, name: &str, header: usize, parts: &[(&str, u64)]) {
            let bytes = disk(512, header, parts);
            let sys = self.0.path().join("class/block").join(name);
            fs::create_dir_all(sys.join("queue")).unwrap();
            fs::write(sys.join("queue/logical_block_size"), "512\n").unwrap();
            fs::write(sys.join("size"), format!("{}\n", if header == 1 { bytes.len() / 512 } else { header + 1 }))
                .unwrap();
            fs::write(self.0.path().join(name), bytes).unwrap();
            for (n, (_, start)) in parts.iter().enumerate() {
                self.partition(name, n + 1, *start);
            }
        }

        fn partition(&self, disk: &str, number: usize, start: u64) {
            let part = self.0.path().join("class/block").join(disk).join(format!("{disk}{number}"));
            fs::create_dir_all(&part).unwrap();
            fs::write(part.join("partition"), format!("{number}\n")).unwrap();
            fs::write(part.join("start"), format!("{start}\n")).unwrap();
        }

        fn looked(&self) -> Result<Option<Slot>, Failure> {
            find(self.0.path(), self.0.path(), &RootHash::from_hex(HEX).unwrap())
        }

        fn removable(&self, disk: &str) {
            fs::write(self.0.path().join("class/block").join(disk).join("removable"), "1\n").unwrap();
        }

        fn found(&self) -> Option<(String, String)> {
            let slot = self.looked().unwrap()?;
            let name = |path: PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
            Some((name(slot.data), name(slot.tree)))
        }
    }

    fn slot(data: &str, tree: &str) -> Option<(String, String)> {
        Some((data.to_owned(), tree.to_owned()))
    }

    #[test]
    fn both_partitions_are_found_and_one_is_not_enough() {
        let machine = Machine::new();
        assert_eq!(machine.found(), None);
        machine.disk("sda", 1, &[(ESP, 10), (DATA, 12)]);
        assert_eq!(machine.found(), None);
        machine.disk("vda", 1, &[(ESP, 10), (DATA, 12), (TREE, 14)]);
        assert_eq!(machine.found(), slot("vda2", "vda3"));
    }

    #[test]
    fn the_disk_that_stays_goes_before_the_stick_and_of_two_that_stay_one_has_to_go() {
        let machine = Machine::new();
        machine.disk("sda", 1, &[(DATA, 12), (TREE, 14)]);
        machine.removable("sda");
        assert_eq!(machine.found(), slot("sda1", "sda2"));
        machine.disk("vda", 1, &[(DATA, 12), (TREE, 14)]);
        assert_eq!(machine.found(), slot("vda1", "vda2"));
        machine.disk("vdb", 1, &[(DATA, 12), (TREE, 14)]);
        let refused = machine.looked().unwrap_err();
        assert!(refused.0.contains("vda and vdb") && refused.0.contains("take one of them away"), "{}", refused.0);
    }

    #[test]
    fn later_names_are_of_the_disk_that_was_started_from() {
        let slot =
            Slot { data: "/dev/vda2".into(), tree: "/dev/vda3".into(), disk: "vda".to_owned(), removable: false };
        let rules = rules(&slot);
        assert_eq!(rules.matches("KERNELS==\"vda\"").count(), 1, "{rules}");
        assert!(rules.contains("ENV{ID_PART_ENTRY_NAME}==\"ESP\", SYMLINK+=\"skerry/esp\"\n"), "{rules}");
    }

    #[test]
    fn a_partition_has_the_name_that_the_table_gives_it() {
        let machine = Machine::new();
        machine.disk("vda", 1, &[(ESP, 10), (DATA, 12), (TREE, 14)]);
        let find = |disk: &str, name: &str| named(machine.0.path(), machine.0.path(), disk, name);
        assert_eq!(find("vda", "part-3").as_deref(), Some("vda3"));
        assert_eq!((find("vda", "part-4"), find("vdb", "part-1")), (None, None));
        // One that the kernel does not have yet.
        fs::remove_dir_all(machine.0.path().join("class/block/vda/vda3")).unwrap();
        assert_eq!(find("vda", "part-3"), None);
    }

    #[test]
    fn a_slot_is_not_put_together_from_two_disks() {
        let machine = Machine::new();
        machine.disk("sda", 1, &[(DATA, 12)]);
        machine.disk("sdb", 1, &[(TREE, 12)]);
        assert_eq!(machine.found(), None);
    }

    #[test]
    fn the_table_at_the_end_stands_in() {
        let machine = Machine::new();
        machine.disk("vda", 40, &[(DATA, 12), (TREE, 14)]);
        assert_eq!(machine.found(), slot("vda1", "vda2"));
    }

    #[test]
    fn a_partition_counts_where_the_kernel_has_it() {
        let machine = Machine::new();
        machine.disk("vda", 1, &[(DATA, 12), (TREE, 14)]);
        machine.partition("vda", 2, 15);
        assert_eq!(machine.found(), None);
    }
}
