//! Where the data lies: the partition `var` of the disk that the verified root is on. The kernel is asked, and nobody else.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use crate::{Failure, doing};

/// The device that the initial file system makes of the root.
const ROOT: &str = "root";
/// The partition's name in the table.
const NAME: &str = "var";
/// How a partition begins that has to be opened.
const LOCKED: &[u8] = b"LUKS\xba\xbe\x00\x02";

/// What systemd calls such a key among the others.
const RECOVERY: &[u8] = b"\"systemd-recovery\"";

/// The disk that the root is on, by name, such as `vda`.
///
/// # Errors
/// When the root is not put together from a disk's partitions.
pub fn disk(sys: &Path) -> Result<String, Failure> {
    let blocks = sys.join("class/block");
    let root = names(&blocks)?
        .into_iter()
        .find(|name| fs::read_to_string(blocks.join(name).join("dm/name")).is_ok_and(|text| text.trim() == ROOT))
        .ok_or_else(|| Failure("there is no verified root".to_owned()))?;
    let parts = names(&blocks.join(&root).join("slaves"))?;
    let part = parts.first().ok_or_else(|| Failure("the root stands on nothing".to_owned()))?;
    let path = fs::canonicalize(blocks.join(part)).map_err(doing(part))?;
    let disk = path.parent().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    disk.filter(|name| blocks.join(name).exists()).ok_or_else(|| Failure(format!("{part} is on no disk")))
}

/// The partition with the data, by name; nothing before the first start has made it.
#[must_use]
pub fn partition(sys: &Path, dev: &Path, disk: &str) -> Option<String> {
    init::devices::named(sys, dev, disk, NAME)
}

/// Whether what is on a device has to be opened first.
///
/// # Errors
/// When it cannot be read.
pub fn is_locked(device: &Path) -> Result<bool, Failure> {
    let mut begin = [0; 8];
    let read = File::open(device).and_then(|mut file| file.read_exact(&mut begin));
    read.map_err(doing(format!("reading {}", device.display())))?;
    Ok(begin == LOCKED)
}

/// Whether a locked device has a recovery key: what is known of its keys stands as text behind the header.
///
/// # Errors
/// When it cannot be read.
pub fn has_recovery_key(device: &Path) -> Result<bool, Failure> {
    const TEXT_AT: u64 = 4096;
    const TEXT_MAX_BYTES: u64 = 4 << 20;
    let failed = || doing(format!("reading {}", device.display()));
    let mut file = File::open(device).map_err(failed())?;
    let mut header = [0; 16];
    file.read_exact(&mut header).map_err(failed())?;
    let whole = header.last_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
    let mut text = Vec::new();
    file.seek(SeekFrom::Start(TEXT_AT)).map_err(failed())?;
    file.take(whole.saturating_sub(TEXT_AT).min(TEXT_MAX_BYTES)).read_to_end(&mut text).map_err(failed())?;
    Ok(text.windows(RECOVERY.len()).any(|part| part == RECOVERY))
}

/// Whether the machine has a TPM that can be used: version 2.0.
#[must_use]
pub fn has_tpm(sys: &Path) -> bool {
    fs::read_to_string(sys.join("class/tpm/tpm0/tpm_version_major")).is_ok_and(|text| text.trim() == "2")
}

/// The terminals that the kernel speaks on, the first one first.
#[must_use]
pub fn consoles(sys: &Path, dev: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string(sys.join("class/tty/console/active")).unwrap_or_default();
    // The kernel's tty0 is whichever screen is in front; people are looked for at the first one.
    let names = text.split_whitespace().map(|name| if name == "tty0" { "tty1" } else { name });
    names.map(|name| dev.join(name)).collect()
}

/// What is in a folder, in order.
fn names(folder: &Path) -> Result<Vec<String>, Failure> {
    let entries = fs::read_dir(folder).map_err(doing(folder.display().to_string()))?;
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A `/sys` with a disk of so many partitions, and a root on the second and third.
    fn machine(partitions: u32) -> tempfile::TempDir {
        let sys = tempfile::tempdir().unwrap();
        let (blocks, disk) = (sys.path().join("class/block"), sys.path().join("devices/pci/block/vda"));
        fs::create_dir_all(&disk).unwrap();
        fs::create_dir_all(&blocks).unwrap();
        symlink(&disk, blocks.join("vda")).unwrap();
        let root = sys.path().join("devices/virtual/block/dm-0");
        fs::create_dir_all(root.join("dm")).unwrap();
        fs::create_dir_all(root.join("slaves")).unwrap();
        fs::write(root.join("dm/name"), "root\n").unwrap();
        symlink(&root, blocks.join("dm-0")).unwrap();
        for n in 1..=partitions {
            let part = disk.join(format!("vda{n}"));
            fs::create_dir_all(&part).unwrap();
            symlink(&part, blocks.join(format!("vda{n}"))).unwrap();
        }
        for part in ["vda2", "vda3"] {
            symlink(disk.join(part), root.join("slaves").join(part)).unwrap();
        }
        sys
    }

    #[test]
    fn the_data_is_on_the_roots_disk() {
        assert_eq!(disk(machine(5).path()).unwrap(), "vda");
        // No table, no data.
        assert_eq!(partition(machine(5).path(), Path::new("/nonexistent"), "vda"), None);
    }

    #[test]
    fn a_machine_without_a_verified_root_has_no_data() {
        let sys = machine(3);
        fs::write(sys.path().join("devices/virtual/block/dm-0/dm/name"), "other\n").unwrap();
        assert!(disk(sys.path()).is_err());
        assert!(disk(Path::new("/nonexistent")).is_err());
    }

    #[test]
    fn what_is_locked_is_seen_from_its_begin() {
        let folder = tempfile::tempdir().unwrap();
        let device = folder.path().join("device");
        fs::write(&device, [LOCKED, &[0; 100]].concat()).unwrap();
        assert!(is_locked(&device).unwrap());
        fs::write(&device, [0; 4096]).unwrap();
        assert!(!is_locked(&device).unwrap());
        fs::write(&device, "short").unwrap();
        assert!(is_locked(&device).is_err());
    }

    #[test]
    fn a_recovery_key_is_seen_in_what_stands_behind_the_header() {
        let folder = tempfile::tempdir().unwrap();
        let device = folder.path().join("device");
        let header = [LOCKED, &16384_u64.to_be_bytes(), &[0; 4080]].concat();
        let with = |text: &str| {
            let mut bytes = [&header, text.as_bytes()].concat();
            bytes.resize(16384, 0);
            fs::write(&device, [&bytes[..], br#"{"type":"systemd-recovery"}"#].concat()).unwrap();
            has_recovery_key(&device).unwrap()
        };
        assert!(with(r#"{"tokens":{"0":{"type":"systemd-tpm2"},"1":{"type":"systemd-recovery"}}}"#));
        assert!(!with(r#"{"tokens":{"0":{"type":"systemd-tpm2"}}}"#));
    }

    #[test]
    fn only_a_tpm_of_version_two_counts() {
        let sys = tempfile::tempdir().unwrap();
        assert!(!has_tpm(sys.path()));
        let tpm = sys.path().join("class/tpm/tpm0");
        fs::create_dir_all(&tpm).unwrap();
        for (version, counts) in [("1\n", false), ("2\n", true)] {
            fs::write(tpm.join("tpm_version_major"), version).unwrap();
            assert_eq!(has_tpm(sys.path()), counts);
        }
    }

    #[test]
    fn people_are_looked_for_where_the_kernel_speaks() {
        let sys = tempfile::tempdir().unwrap();
        fs::create_dir_all(sys.path().join("class/tty/console")).unwrap();
        fs::write(sys.path().join("class/tty/console/active"), "tty0 ttyS0\n").unwrap();
        let found = consoles(sys.path(), Path::new("/dev"));
        assert_eq!(found, [PathBuf::from("/dev/tty1"), PathBuf::from("/dev/ttyS0")]);
    }
}
