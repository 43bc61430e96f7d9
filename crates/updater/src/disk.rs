//! A disk as the updater sees it: bytes at places, and the promise that they stay.
//!
//! Lives here: the trait, and a file or block device behind it. Not here: what lies where (gpt.rs, slots.rs).

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

/// Bytes of a sector. Disks of the box have sectors of this size; a power cut leaves each of them old or new.
pub const SECTOR: u64 = 512;

/// A disk, or a file that looks like one.
pub trait Disk {
    /// Its size in bytes.
    fn size(&self) -> io::Result<u64>;
    /// # Errors
    /// The disk fails, or the bytes are not all on it.
    fn read_at(&self, at: u64, bytes: &mut [u8]) -> io::Result<()>;
    /// Not durable before [`Disk::sync`].
    ///
    /// # Errors
    /// The disk fails, or it is too small.
    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()>;
    /// Returns once everything that was written stays, and the next reads come from the disk and not from memory.
    ///
    /// # Errors
    /// The disk fails: then nothing is known of what was written.
    fn sync(&self) -> io::Result<()>;
}

/// A block device or a file.
#[derive(Debug)]
pub struct FileDisk(File);

impl FileDisk {
    /// # Errors
    /// It cannot be opened; `write` asks for more than reading.
    pub fn open(path: &Path, write: bool) -> io::Result<Self> {
        OpenOptions::new().read(true).write(write).open(path).map(Self)
    }
}

impl Disk for FileDisk {
    fn size(&self) -> io::Result<u64> {
        // The length in a block device's metadata is 0.
        (&self.0).seek(SeekFrom::End(0))
    }

    fn read_at(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(bytes, at)
    }

    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let end = at.saturating_add(bytes.len() as u64);
        if end > self.size()? {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a write behind the end of the disk"));
        }
        self.0.write_all_at(bytes, at)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()?;
        posix_fadvise(&self.0, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).map_err(io::Error::from)
    }
}

/// A stretch of a disk, read or written from its start on. Never goes beyond its end.
pub(crate) struct Stretch<'a> {
    disk: &'a dyn Disk,
    at: u64,
    end: u64,
}

impl<'a> Stretch<'a> {
    pub(crate) fn new(disk: &'a dyn Disk, at: u64, bytes: u64) -> Self {
        Self { disk, at, end: at.saturating_add(bytes) }
    }

    fn room(&self, wanted: usize) -> usize {
        usize::try_from(self.end - self.at).map_or(wanted, |left| left.min(wanted))
    }
}

impl Read for Stretch<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let len = self.room(bytes.len());
        let (wanted, _) = bytes.split_at_mut(len);
        self.disk.read_at(self.at, wanted)?;
        self.at += len as u64;
        Ok(len)
    }
}

impl Write for Stretch<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.room(bytes.len());
        let (now, _) = bytes.split_at(len);
        self.disk.write_at(self.at, now)?;
        self.at += len as u64;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_a_disk_that_does_not_grow() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4 * SECTOR).unwrap();
        let disk = FileDisk::open(file.path(), true).unwrap();
        assert_eq!(disk.size().unwrap(), 4 * SECTOR);
        disk.write_at(SECTOR, b"here").unwrap();
        disk.sync().unwrap();
        let mut read = [0; 4];
        disk.read_at(SECTOR, &mut read).unwrap();
        assert_eq!(&read, b"here");
        assert!(disk.write_at(4 * SECTOR - 1, b"ab").is_err());
        assert!(disk.read_at(4 * SECTOR - 1, &mut read).is_err());
        assert_eq!(disk.size().unwrap(), 4 * SECTOR);
    }

    #[test]
    fn a_stretch_ends_where_it_ends() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4 * SECTOR).unwrap();
        let disk = FileDisk::open(file.path(), true).unwrap();
        assert!(Stretch::new(&disk, 10, 3).write_all(b"four").is_err());
        let mut read = Vec::new();
        Stretch::new(&disk, 9, 6).read_to_end(&mut read).unwrap();
        assert_eq!(read, b"\0fou\0\0");
    }
}
