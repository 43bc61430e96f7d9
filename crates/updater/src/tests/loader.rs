//! A model of systemd-boot: which entry it takes, how it counts, and what a machine does with what it took.
//!
//! Facts from the Boot Loader Specification and systemd-boot's manual: entries that have no tries left come last, then the
//! highest version comes first; an entry with tries left is renamed before it is started, with one try less and one more
//! done. There is always an entry that is started, a bad one if there is none better. What does not begin like a program
//! (`MZ`) is not an entry. Firmware is taken to write a changed name in one go; what the kernel's file system does is not.

use std::io::{self, Read as _};

use crate::entry::{Entry, Tries, compare_versions};
use crate::folder::Folder;

/// Gives a file of the ESP another name.
pub(super) type Rename<'a> = &'a dyn Fn(&str, &str) -> io::Result<()>;

/// Takes an entry, counts, and gives its name and bytes; nothing if there is none.
pub(super) fn start(esp: &dyn Folder, rename: Rename<'_>) -> io::Result<Option<(Entry, Vec<u8>)>> {
    let mut entries = Vec::new();
    for name in esp.list()? {
        let Some(entry) = Entry::parse(&name) else { continue };
        let mut bytes = Vec::new();
        // A file that cannot be read is one that cannot be started.
        let read = esp.open(&name).and_then(|mut file| file.read_to_end(&mut bytes));
        if read.is_ok() && bytes.starts_with(b"MZ") {
            entries.push((entry, bytes));
        }
    }
    entries
        .sort_by(|(a, _), (b, _)| a.is_bad().cmp(&b.is_bad()).then_with(|| compare_versions(&b.version, &a.version)));
    let Some((entry, bytes)) = entries.into_iter().next() else { return Ok(None) };
    Ok(Some((count(rename, entry), bytes)))
}

fn count(rename: Rename<'_>, entry: Entry) -> Entry {
    let Some(Tries { left, done }) = entry.tries.filter(|tries| tries.left > 0) else { return entry };
    let counted = Entry { tries: Some(Tries { left: left - 1, done: done + 1 }), ..entry.clone() };
    // It starts what it has, also if the name could not be changed.
    if rename(&entry.name(), &counted.name()).is_ok() { counted } else { entry }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::OsFolder;

    /// What is started from a folder of these names, and what the folder is like then.
    fn check(names: &[&str], started: &str, after: &[&str]) {
        let dir = tempfile::tempdir().unwrap();
        let esp = OsFolder::new(dir.path()).unwrap();
        for name in names {
            let bytes: &[u8] = if name.contains("torn") { b"\0\0" } else { b"MZ" };
            esp.replace(&name.replace("torn", ""), bytes).unwrap();
        }
        let entry =
            start(&esp, &|from, to| esp.rename(from, to)).unwrap().map(|(entry, _)| entry.name()).unwrap_or_default();
        assert_eq!(
            (entry.as_str(), esp.list().unwrap()),
            (started, after.iter().map(|n| (*n).to_owned()).collect()),
            "{names:?}"
        );
    }

    #[test]
    fn the_highest_version_that_is_not_bad_is_started() {
        check(&[], "", &[]);
        check(&["skerry_1.efi"], "skerry_1.efi", &["skerry_1.efi"]);
        check(&["skerry_9.efi", "skerry_10.efi"], "skerry_10.efi", &["skerry_10.efi", "skerry_9.efi"]);
        check(&["skerry_1.efi", "skerry_2+3.efi"], "skerry_2+2-1.efi", &["skerry_1.efi", "skerry_2+2-1.efi"]);
        check(&["skerry_1.efi", "skerry_2+1-2.efi"], "skerry_2+0-3.efi", &["skerry_1.efi", "skerry_2+0-3.efi"]);
        check(&["skerry_1.efi", "skerry_2+0-3.efi"], "skerry_1.efi", &["skerry_1.efi", "skerry_2+0-3.efi"]);
        check(&["skerry_1.efi", "skerry_torn2.efi"], "skerry_1.efi", &["skerry_1.efi", "skerry_2.efi"]);
        check(&["skerry_1.efi", "skerry_2.staged"], "skerry_1.efi", &["skerry_1.efi", "skerry_2.staged"]);
    }

    #[test]
    fn a_bad_entry_is_better_than_none() {
        check(&["skerry_1+0-3.efi"], "skerry_1+0-3.efi", &["skerry_1+0-3.efi"]);
        check(&["skerry_1+0-3.efi", "skerry_2+0-1.efi"], "skerry_2+0-1.efi", &["skerry_1+0-3.efi", "skerry_2+0-1.efi"]);
    }
}
