//! The floor of security versions in a variable of the firmware: it stays when the disk is replaced or the data partition is
//! made anew. It is raised when a release has come to stay, and never lowered.
//!
//! Linux shows a variable as a file: four bytes of attributes, then the value. Files of names that it does not know are
//! immutable until somebody says otherwise. Where there is no firmware with variables, or it does not take them, the floor
//! of the data partition is what there is.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::PathBuf;

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

/// Ours, under an identifier that nobody else uses.
const NAME: &str = "SkerryFloor-8d3f5a64-2f0b-4c86-9b6e-736b65727279";
/// Kept without power, to be seen by boot programs and by the running system.
const ATTRIBUTES: u32 = 7;

/// The folder with the variables.
pub(super) struct Firmware(pub(super) PathBuf);

impl Firmware {
    /// 0 where nothing is kept, or nothing that makes sense.
    pub(super) fn floor(&self) -> u64 {
        let mut bytes = [0; 13];
        let read = File::open(self.0.join(NAME)).and_then(|mut file| file.read(&mut bytes));
        match (read, bytes) {
            (Ok(12), [_, _, _, _, floor @ .., _]) => u64::from_le_bytes(floor),
            _ => 0,
        }
    }

    /// Keeps a floor that is above the one that is there.
    ///
    /// # Errors
    /// The firmware does not take it, or is not to be written.
    pub(super) fn raise(&self, floor: u64) -> io::Result<()> {
        if !self.0.is_dir() || self.floor() >= floor {
            return Ok(());
        }
        let path = self.0.join(NAME);
        // One that is there, and a file system that knows such flags.
        let shut = File::open(&path).ok().and_then(|file| Some((ioctl_getflags(&file).ok()?, file)));
        if let Some((flags, file)) = &shut {
            let _ = ioctl_setflags(file, *flags & !IFlags::IMMUTABLE);
        }
        // All of it at once: that is how the firmware takes it, whole or not at all.
        let value = [&ATTRIBUTES.to_le_bytes()[..], &floor.to_le_bytes()].concat();
        let opened = File::options().write(true).create(true).truncate(false).open(&path);
        let written = opened.and_then(|mut file| match file.write(&value)? {
            12 => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        });
        if let Some((flags, file)) = &shut {
            let _ = ioctl_setflags(file, *flags);
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_floor_rises_and_never_falls() {
        let dir = tempfile::tempdir().unwrap();
        let firmware = Firmware(dir.path().to_owned());
        assert_eq!(firmware.floor(), 0);
        for (raised, expected) in [(3, 3), (2, 3), (0, 3), (70_000, 70_000)] {
            firmware.raise(raised).unwrap();
            assert_eq!(firmware.floor(), expected);
        }
        let bytes = fs::read(dir.path().join(NAME)).unwrap();
        assert_eq!(bytes, [7, 0, 0, 0, 0x70, 0x11, 1, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn what_makes_no_sense_counts_for_nothing_and_is_written_anew() {
        let dir = tempfile::tempdir().unwrap();
        let firmware = Firmware(dir.path().to_owned());
        for nonsense in [&b""[..], b"short", &[7, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 1]] {
            fs::write(dir.path().join(NAME), nonsense).unwrap();
            assert_eq!(firmware.floor(), 0, "{nonsense:?}");
        }
        fs::write(dir.path().join(NAME), b"short").unwrap();
        firmware.raise(5).unwrap();
        assert_eq!(firmware.floor(), 5);
    }

    #[test]
    fn a_machine_without_variables_has_none() {
        let dir = tempfile::tempdir().unwrap();
        let firmware = Firmware(dir.path().join("efivars"));
        firmware.raise(5).unwrap();
        assert_eq!(firmware.floor(), 0);
        assert!(!dir.path().join("efivars").exists());
    }
}
