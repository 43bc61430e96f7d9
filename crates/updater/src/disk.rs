//! A disk as the updater sees it: bytes at places, and the promise that they stay.
//!
//! Lives here: the trait, and a file or block device behind it. Not here: what lies where (gpt.rs, slots.rs).

use std::cell::Cell;
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

/// How much is written before the disk begins with it.
const PUSH: u64 = 8 * 1024 * 1024;

/// A block device or a file.
#[derive(Debug)]
pub struct FileDisk {
    file: File,
    /// What was written in one go and the kernel was not yet asked to bring to the disk: from where to where.
    waits: Cell<(u64, u64)>,
}

impl FileDisk {
    /// # Errors
    /// It cannot be opened; `write` asks for more than reading.
    pub fn open(path: &Path, write: bool) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(write).open(path)?;
        Ok(Self { file, waits: Cell::default() })
    }

    /// Without this, the kernel would begin to write only when it is told to sync: after all of it was made.
    fn push(&self, at: u64, end: u64) -> io::Result<()> {
        let (from, to) = self.waits.get();
        let from = if to == at { from } else { at };
        // Whole blocks: the last one may be written once more.
        let ready = end - end % (1 << 20);
        if ready < from.saturating_add(PUSH) {
            self.waits.set((from, end));
            return Ok(());
        }
        self.waits.set((ready, end));
        self.forget(from, ready - from)
    }

    /// What is not on the disk is on its way there then; what is needs no memory any more. 0 bytes: to the end.
    fn forget(&self, at: u64, bytes: u64) -> io::Result<()> {
        let number = |number: u64| i64::try_from(number).map_err(io::Error::other);
        posix_fadvise(&self.file, number(at)?, number(bytes)?, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        Ok(())
    }
}

impl Disk for FileDisk {
    fn size(&self) -> io::Result<u64> {
        // The length in a block device's metadata is 0.
        (&self.file).seek(SeekFrom::End(0))
    }

    fn read_at(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(bytes, at)
    }

    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let end = at.saturating_add(bytes.len() as u64);
        if end > self.size()? {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a write behind the end of the disk"));
        }
        self.file.write_all_at(bytes, at)?;
        self.push(at, end)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()?;
        self.forget(0, 0)
    }
}

/// A stretch of a disk, read from its start on. Never goes beyond its end.
pub(crate) struct Stretch<'a> {
    disk: &'a dyn Disk,
    at: u64,
    end: u64,
}

impl<'a> Stretch<'a> {
    pub(crate) fn new(disk: &'a dyn Disk, at: u64, bytes: u64) -> Self {
        Self { disk, at, end: at.saturating_add(bytes) }
    }
}

impl Read for Stretch<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let len = usize::try_from(self.end - self.at).map_or(bytes.len(), |left| left.min(bytes.len()));
        let (wanted, _) = bytes.split_at_mut(len);
        self.disk.read_at(self.at, wanted)?;
        self.at += len as u64;
        Ok(len)
    }
}

/// Writes a stretch of a disk from its start on, in pieces that begin and end with whole blocks: for a part of a block the
/// kernel would have to read the rest of it first. Never goes beyond its end.
pub(crate) struct Pen<'a> {
    disk: &'a dyn Disk,
    at: u64,
    end: u64,
    piece: Vec<u8>,
}

impl<'a> Pen<'a> {
    const PIECE: usize = 1 << 20;

    pub(crate) fn new(disk: &'a dyn Disk, at: u64, bytes: u64) -> Self {
        Self { disk, at, end: at.saturating_add(bytes), piece: Vec::with_capacity(Self::PIECE) }
    }
}

impl Write for Pen<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let left = self.end - self.at - self.piece.len() as u64;
        let len = bytes.len().min(Self::PIECE - self.piece.len()).min(usize::try_from(left).unwrap_or(usize::MAX));
        self.piece.extend_from_slice(bytes.get(..len).unwrap_or_default());
        if self.piece.len() == Self::PIECE {
            self.flush()?;
        }
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.disk.write_at(self.at, &self.piece)?;
        self.at += self.piece.len() as u64;
        self.piece.clear();
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
    fn what_is_written_in_odd_pieces_arrives_whole() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(24 << 20).unwrap();
        let disk = FileDisk::open(file.path(), true).unwrap();
        let bytes: Vec<u8> = (0..20_000_003_u32).map(|at| (at / 7) as u8).collect();
        let mut pen = Pen::new(&disk, 4096, bytes.len() as u64);
        bytes.chunks(70_001).for_each(|piece| pen.write_all(piece).unwrap());
        pen.flush().unwrap();
        disk.sync().unwrap();
        let mut read = Vec::new();
        Stretch::new(&disk, 4096, bytes.len() as u64).read_to_end(&mut read).unwrap();
        assert!(read == bytes);
    }

    #[test]
    fn a_stretch_ends_where_it_ends() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4 * SECTOR).unwrap();
        let disk = FileDisk::open(file.path(), true).unwrap();
        let mut pen = Pen::new(&disk, 10, 3);
        assert!(pen.write_all(b"four").is_err());
        pen.flush().unwrap();
        let mut read = Vec::new();
        Stretch::new(&disk, 9, 6).read_to_end(&mut read).unwrap();
        assert_eq!(read, b"\0fou\0\0");
    }
}
