//! Files on the disk, named by the SHA-256 of their content: `ab/cd/abcd…`. They are written under another name,
//! synced, and only then put in their place; a file in its place is whole and never changes.
//!
//! Not here: which files are wanted. Rows in the store say so; whoever puts a file in place holds on to it
//! ([`Placed`]) until its row is committed, and [`Files::collect`] removes what has no row.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, stream};
use nix::sys::statvfs::statvfs;
use parking_lot::Mutex;
use tokio::task::{JoinHandle, spawn_blocking};

use super::headers::hex;
use crate::dirs;
use crate::rng::Rng;

pub type Sha256 = [u8; 32];
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Files are read and written in pieces of this size. A transfer holds two of them, however large the file.
pub const PIECE_BYTES: usize = 256 * 1024;

#[derive(Clone)]
pub struct Files(Arc<Inner>);

struct Inner {
    root: PathBuf,
    /// Where files are written before they have a name.
    incoming: PathBuf,
    rng: Rng,
    /// What is left free on the disk, in bytes.
    keep_free: u64,
    /// Directories that are known to outlive a power cut.
    lasting: Mutex<HashSet<[u8; 2]>>,
    /// Files in place whose rows are not committed yet, and how many hold on to them.
    held: Mutex<HashMap<Sha256, usize>>,
}

impl Files {
    /// Opens the directory, and makes it if it is not there. Files that an earlier run did not finish are removed,
    /// also from their place if `wanted` says that no row came of them.
    pub fn open<E: From<io::Error>>(
        root: &Path,
        rng: Rng,
        keep_free: u64,
        mut wanted: impl FnMut(&Sha256) -> Result<bool, E>,
    ) -> Result<Self, E> {
        let incoming = root.join("incoming");
        dirs::make(&incoming)?;
        let files = Self(Arc::new(Inner {
            root: root.to_owned(),
            incoming,
            rng,
            keep_free,
            lasting: Mutex::default(),
            held: Mutex::default(),
        }));
        for entry in fs::read_dir(&files.0.incoming)? {
            let entry = entry?;
            if let Some(sha256) = sha256_of(&entry.file_name()) {
                files.collect(&sha256, &mut wanted)?;
            }
            fs::remove_file(entry.path())?;
        }
        Ok(files)
    }

    /// A new file, to be written piece by piece.
    pub fn incoming(&self) -> Incoming {
        Incoming { files: self.clone(), state: State::Idle(None), buffer: Vec::new(), size: 0 }
    }

    /// A file of what is in memory already.
    pub async fn put(&self, content: Vec<u8>) -> io::Result<Placed> {
        let files = self.clone();
        blocking(move || {
            let mut writing = Writing::new(&files)?;
            writing.write(&content)?;
            writing.place()
        })
        .await
    }

    /// Whether so many bytes more leave enough free on the disk. Blocks, as a rule not for long.
    pub fn check_space(&self, bytes: u64) -> io::Result<()> {
        let disk = statvfs(&self.0.root)?;
        let free = disk.blocks_available().saturating_mul(disk.fragment_size());
        if free.saturating_sub(bytes) < self.0.keep_free { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    /// Opens a file for reading. Blocks.
    pub fn open_file(&self, sha256: &Sha256) -> io::Result<File> {
        File::open(self.0.path(sha256))
    }

    /// The bytes from `from` to before `to`, in pieces. Whoever has the first one can be sure that the file is there.
    pub async fn read(&self, sha256: Sha256, from: u64, to: u64) -> io::Result<Reading> {
        let files = self.clone();
        blocking(move || {
            let mut file = files.open_file(&sha256)?;
            if from > 0 {
                file.seek(SeekFrom::Start(from))?;
            }
            Reading::of(file, to.saturating_sub(from))
        })
        .await
    }

    /// Removes a file that no row names. `wanted` is asked while nobody can put the same file in place. Blocks.
    pub fn collect<E: From<io::Error>>(
        &self,
        sha256: &Sha256,
        wanted: impl FnOnce(&Sha256) -> Result<bool, E>,
    ) -> Result<(), E> {
        let held = self.0.held.lock();
        if held.contains_key(sha256) || wanted(sha256)? {
            return Ok(());
        }
        match fs::remove_file(self.0.path(sha256)) {
            // What was deleted must not come back with the power.
            Ok(()) => Ok(sync_dir(&self.0.dir(sha256))?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Inner {
    fn dir(&self, sha256: &Sha256) -> PathBuf {
        let [first, second, ..] = sha256;
        self.root.join(hex(&[*first])).join(hex(&[*second]))
    }

    fn path(&self, sha256: &Sha256) -> PathBuf {
        self.dir(sha256).join(hex(sha256))
    }

    /// The directory of a file; once it is made, it stays made.
    fn make_dir(&self, sha256: &Sha256) -> io::Result<PathBuf> {
        let dir = self.dir(sha256);
        let [first, second, ..] = *sha256;
        let mut lasting = self.lasting.lock();
        if !lasting.contains(&[first, second]) {
            fs::create_dir_all(&dir)?;
            if let Some(parent) = dir.parent() {
                sync_dir(parent)?;
            }
            sync_dir(&self.root)?;
            lasting.insert([first, second]);
        }
        Ok(dir)
    }
}

/// The name of a file that is to be put in place begins with its hash.
fn sha256_of(name: &OsStr) -> Option<Sha256> {
    let digits = name.to_str()?.get(..64)?;
    let mut sha256 = [0; 32];
    for (byte, pair) in sha256.iter_mut().zip(digits.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(sha256)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Runs what waits for the disk where it does not keep others waiting.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    joined(spawn_blocking(work)).await
}

async fn joined<T>(work: JoinHandle<io::Result<T>>) -> io::Result<T> {
    work.await.unwrap_or_else(|failure| Err(io::Error::other(failure)))
}

// ---- writing -----------------------------------------------------------------------------------------------------

/// A file that is being received. Dropping it removes it.
pub struct Incoming {
    files: Files,
    state: State,
    buffer: Vec<u8>,
    size: u64,
}

enum State {
    /// Nothing is being written; the file is made with the first piece.
    Idle(Option<(Box<Writing>, Vec<u8>)>),
    /// The last piece is on its way, with its buffer.
    Busy(JoinHandle<io::Result<(Box<Writing>, Vec<u8>)>>),
}

impl Incoming {
    /// How many bytes there are so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Takes some more. While one piece is written and hashed the next one fills up.
    pub async fn write(&mut self, mut data: &[u8]) -> io::Result<()> {
        self.size += data.len() as u64;
        while !data.is_empty() {
            let room = PIECE_BYTES - self.buffer.len().min(PIECE_BYTES);
            let (now, later) = data.split_at(data.len().min(room));
            self.buffer.extend_from_slice(now);
            data = later;
            if self.buffer.len() >= PIECE_BYTES {
                self.flush().await?;
            }
        }
        Ok(())
    }

    async fn flush(&mut self) -> io::Result<()> {
        let (writing, spare) = self.idle().await?;
        let full = std::mem::replace(&mut self.buffer, spare);
        let files = self.files.clone();
        self.state = State::Busy(spawn_blocking(move || write_piece(&files, writing, full)));
        Ok(())
    }

    /// Waits for the piece on its way. The file, if there is one yet, and an empty buffer.
    async fn idle(&mut self) -> io::Result<(Option<Box<Writing>>, Vec<u8>)> {
        match std::mem::replace(&mut self.state, State::Idle(None)) {
            State::Idle(None) => Ok((None, Vec::new())),
            State::Idle(Some((writing, spare))) => Ok((Some(writing), spare)),
            State::Busy(work) => joined(work).await.map(|(writing, spare)| (Some(writing), spare)),
        }
    }

    /// Puts the whole file in its place, durably.
    pub async fn finish(mut self) -> io::Result<Placed> {
        let (writing, _) = self.idle().await?;
        let last = std::mem::take(&mut self.buffer);
        let files = self.files.clone();
        blocking(move || write_piece(&files, writing, last)?.0.place()).await
    }
}

fn write_piece(
    files: &Files,
    writing: Option<Box<Writing>>,
    mut piece: Vec<u8>,
) -> io::Result<(Box<Writing>, Vec<u8>)> {
    let mut writing = match writing {
        Some(writing) => writing,
        None => Box::new(Writing::new(files)?),
    };
    writing.write(&piece)?;
    piece.clear();
    Ok((writing, piece))
}

/// A file under its first name. Dropping it removes it.
struct Writing {
    files: Files,
    path: PathBuf,
    file: File,
    hash: ring::digest::Context,
    size: u64,
    /// It stays where it is.
    left: bool,
}

impl Writing {
    fn new(files: &Files) -> io::Result<Self> {
        let path = files.0.incoming.join(files.0.rng.alphanumeric(20));
        let file = File::options().write(true).create_new(true).open(&path)?;
        let hash = ring::digest::Context::new(&ring::digest::SHA256);
        Ok(Self { files: files.clone(), path, file, hash, size: 0, left: false })
    }

    fn write(&mut self, data: &[u8]) -> io::Result<()> {
        // Others write at the same time; so each piece asks.
        self.files.check_space(data.len() as u64)?;
        self.file.write_all(data)?;
        self.hash.update(data);
        self.size += data.len() as u64;
        Ok(())
    }

    /// Until its row is committed the file keeps a second name, which tells the next start to look whether it was.
    fn place(mut self) -> io::Result<Placed> {
        self.file.sync_all()?;
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(self.hash.clone().finish().as_ref());
        let files = self.files.clone();
        let named = files.0.incoming.join(format!("{}-{}", hex(&sha256), files.0.rng.alphanumeric(20)));
        fs::rename(&self.path, &named)?;
        self.path = named;
        let held = Held::new(&files, sha256);
        let dir = files.0.make_dir(&sha256)?;
        match fs::hard_link(&self.path, files.0.path(&sha256)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        sync_dir(&dir)?;
        Ok(Placed { sha256, size_bytes: self.size, _held: held, writing: self })
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if self.left {
            return;
        }
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "an unfinished file could not be removed");
        }
    }
}

/// A file in its place, which nobody removes while this is held. Dropping it without a row leaves the file to
/// [`Files::collect`].
pub struct Placed {
    pub sha256: Sha256,
    pub size_bytes: u64,
    _held: Held,
    writing: Writing,
}

impl Placed {
    /// Lets go of the file, so that it can be collected, but not of its second name yet.
    pub fn release(mut self) -> SecondName {
        self.writing.left = true;
        SecondName(self.writing)
    }
}

/// The second name of a file in place, see [`Writing::place`]. Dropping it leaves it to the next start to find out whether
/// a row came of the file.
pub struct SecondName(Writing);

impl SecondName {
    /// It is known what came of the file.
    pub fn remove(mut self) {
        self.0.left = false;
    }
}

struct Held {
    files: Files,
    sha256: Sha256,
}

impl Held {
    fn new(files: &Files, sha256: Sha256) -> Self {
        *files.0.held.lock().entry(sha256).or_default() += 1;
        Self { files: files.clone(), sha256 }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut held = self.files.0.held.lock();
        if let Some(count) = held.get_mut(&self.sha256) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.sha256);
            }
        }
    }
}

// ---- reading -----------------------------------------------------------------------------------------------------

/// A file that is being sent; its first piece is read.
pub struct Reading {
    file: File,
    first: Bytes,
    left: u64,
}

impl Reading {
    /// The next `size` bytes of an open file. Blocks.
    pub fn of(file: File, size: u64) -> io::Result<Self> {
        let (file, first) = piece(file, size)?;
        let left = size.saturating_sub(first.len() as u64);
        Ok(Self { file, first, left })
    }

    /// All of it, when it fits into one piece.
    pub fn whole(self) -> Result<Bytes, Self> {
        if self.left == 0 { Ok(self.first) } else { Err(self) }
    }

    /// The pieces. While one is sent the next one is read.
    pub fn pieces(self) -> impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static {
        let ahead = read_ahead(self.file, self.left);
        stream::try_unfold((self.first, self.left, ahead), |(now, left, ahead)| async move {
            if now.is_empty() {
                return Ok::<_, BoxError>(None);
            }
            let Some(ahead) = ahead else { return Ok(Some((now, (Bytes::new(), 0, None)))) };
            let (file, next) = joined(ahead).await?;
            let left = left.saturating_sub(next.len() as u64);
            Ok(Some((now, (next, left, read_ahead(file, left)))))
        })
    }
}

fn read_ahead(file: File, left: u64) -> Option<JoinHandle<io::Result<(File, Bytes)>>> {
    (left > 0).then(|| spawn_blocking(move || piece(file, left)))
}

/// The next piece of `left` bytes; a file that ends before is an error.
fn piece(file: File, left: u64) -> io::Result<(File, Bytes)> {
    let size = left.min(PIECE_BYTES as u64);
    let mut buffer = Vec::with_capacity(size as usize);
    let mut part = file.take(size);
    part.read_to_end(&mut buffer)?;
    if (buffer.len() as u64) < size {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok((part.into_inner(), buffer.into()))
}
