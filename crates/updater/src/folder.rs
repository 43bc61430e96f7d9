//! A folder of files as the updater sees it: the boot entries on the ESP, and its own state.
//!
//! Lives here: the trait, what is built on it (replacing a file in one step), and a folder of the operating system. Not
//! here: what the files say.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bundle::{Digest, hashed};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

/// Gives the bytes of a file that is being written.
pub type Fill<'a> = &'a mut dyn FnMut(&mut dyn Write) -> io::Result<()>;

/// What can be read from anywhere.
pub trait ReadSeek: Read + Seek {}

impl<T: Read + Seek> ReadSeek for T {}

/// Files by name, without folders below.
pub trait Folder {
    /// # Errors
    /// The folder cannot be read.
    fn list(&self) -> io::Result<Vec<String>>;
    /// # Errors
    /// There is no such file ([`io::ErrorKind::NotFound`]), or it cannot be read.
    fn open(&self, name: &str) -> io::Result<Box<dyn ReadSeek + '_>>;
    /// Writes a file anew. Its bytes are durable when this returns, its name is only after [`Folder::sync`].
    ///
    /// # Errors
    /// What `fill` says, or the file cannot be written.
    fn write(&self, name: &str, fill: Fill<'_>) -> io::Result<()>;
    /// Writes behind the end of a file, durably.
    ///
    /// # Errors
    /// The file cannot be written; some of the bytes may be there.
    fn append(&self, name: &str, bytes: &[u8]) -> io::Result<()>;
    /// A power cut leaves the old name, the new one, or both; the new one perhaps without bytes: see [`Folder::give_name`].
    ///
    /// # Errors
    /// There is no such file, or the folder cannot be written.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// # Errors
    /// There is no such file, or the folder cannot be written.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Returns once the bytes of a file stay, and that they are those of its name.
    ///
    /// # Errors
    /// There is no such file, or the disk fails.
    fn sync_file(&self, name: &str) -> io::Result<()>;
    /// Returns once the names stay as they are.
    ///
    /// # Errors
    /// The disk fails.
    fn sync(&self) -> io::Result<()>;
    /// Bytes that new files may have.
    ///
    /// # Errors
    /// The disk fails.
    fn free_bytes(&self) -> io::Result<u64>;

    /// The bytes of a small file, or nothing where there is none.
    ///
    /// # Errors
    /// It cannot be read, or has more than `most` bytes.
    fn load(&self, name: &str, most: usize) -> io::Result<Option<Vec<u8>>> {
        let file = match self.open(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let mut bytes = Vec::new();
        file.take(most as u64 + 1).read_to_end(&mut bytes)?;
        if bytes.len() > most {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{name} is too large")));
        }
        Ok(Some(bytes))
    }

    /// How many bytes a file has.
    ///
    /// # Errors
    /// There is no such file, or it cannot be read.
    fn bytes(&self, name: &str) -> io::Result<u64> {
        self.open(name)?.seek(SeekFrom::End(0))
    }

    /// Whether a file has no bytes: a name that a power cut has left while a file was renamed, or written.
    ///
    /// # Errors
    /// There is no such file, or it cannot be read.
    fn is_empty(&self, name: &str) -> io::Result<bool> {
        Ok(self.bytes(name)? == 0)
    }

    /// Gives a file another name, durably. On FAT, the kernel writes a new name with neither length nor content, and these
    /// with the file: so the file is synced, too.
    ///
    /// # Errors
    /// There is no such file, or the folder cannot be written.
    fn give_name(&self, from: &str, to: &str) -> io::Result<()> {
        self.rename(from, to)?;
        self.sync_file(to)?;
        self.sync()
    }

    /// Puts new bytes in the place of a file in one durable step: a power cut leaves the old ones or the new ones.
    ///
    /// # Errors
    /// The folder cannot be written.
    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let new = format!("{name}.new");
        self.write(&new, &mut |out| out.write_all(bytes))?;
        self.give_name(&new, name)
    }

    /// Bytes and digest of a file.
    ///
    /// # Errors
    /// There is no such file, or it cannot be read.
    fn digest(&self, name: &str) -> io::Result<(u64, Digest)> {
        let mut file = self.open(name)?;
        hash_all(&mut file)
    }
}

/// Bytes and digest of what is read piece by piece, until there is no more. Reading and hashing wait for each other only
/// as far as memory is bounded.
pub(crate) fn hash_all(reader: &mut dyn Read) -> io::Result<(u64, Digest)> {
    const PIECE: usize = 1 << 20;
    hashed(|feed| {
        let mut bytes = 0;
        loop {
            let mut piece = vec![0; PIECE];
            let len = reader.read(&mut piece)?;
            if len == 0 {
                return Ok(bytes);
            }
            piece.truncate(len);
            bytes += len as u64;
            feed.give(piece)?;
        }
    })
}

/// A folder of the operating system.
#[derive(Clone, Debug)]
pub struct OsFolder(PathBuf);

impl OsFolder {
    /// The folder is made, for its owner only, if it is not there.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new(path: &Path) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        Ok(Self(path.to_owned()))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Folder for OsFolder {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                names.extend(entry.file_name().into_string().ok());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn ReadSeek + '_>> {
        Ok(Box::new(File::open(self.path(name))?))
    }

    fn write(&self, name: &str, fill: Fill<'_>) -> io::Result<()> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(self.path(name))?;
        fill(&mut file)?;
        file.sync_all()?;
        // Whoever reads it now reads what is on the disk.
        Ok(posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?)
    }

    fn append(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let mut file = File::options().append(true).create(true).mode(0o600).open(self.path(name))?;
        file.write_all(bytes)?;
        file.sync_all()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path(name))
    }

    fn sync_file(&self, name: &str) -> io::Result<()> {
        File::open(self.path(name))?.sync_all()
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.0)?.sync_all()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let of = nix::sys::statvfs::statvfs(&self.0)?;
        Ok(of.blocks_available().saturating_mul(of.fragment_size()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_keeps_files_and_replaces_them_whole() {
        let dir = tempfile::tempdir().unwrap();
        let folder = OsFolder::new(&dir.path().join("state")).unwrap();
        assert_eq!(folder.load("a", 10).unwrap(), None);
        folder.replace("a", b"one").unwrap();
        folder.replace("a", b"two").unwrap();
        folder.append("b", b"x").unwrap();
        folder.append("b", b"y").unwrap();
        assert_eq!(folder.load("a", 10).unwrap().unwrap(), b"two");
        assert_eq!(folder.digest("b").unwrap(), (2, Digest::of(b"xy")));
        assert!(folder.load("a", 2).is_err());
        folder.give_name("b", "c").unwrap();
        folder.remove("a").unwrap();
        folder.sync().unwrap();
        assert_eq!(folder.list().unwrap(), ["c"]);
        assert!(folder.free_bytes().unwrap() > 0);
    }
}
