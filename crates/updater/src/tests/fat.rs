//! The boot partition: a FAT file system as Linux keeps it; files lie in `EFI/Linux`.
//!
//! Linux renames a file in three changes to the folder: the new name, with neither length nor first cluster; both of them,
//! which belong to the file and not to its name; the old name goes. With the mount option `dirsync` each is on the disk
//! before the next. Without it, the second one stays in memory until the file is synced or the kernel finds the time, and
//! syncing the folder does not bring it to the disk.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io::{self, Cursor, Read, Seek, SeekFrom, Write};

use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions, format_volume};

use super::media::{Media, Sector};
use crate::disk::{Disk, SECTOR};
use crate::folder::{Fill, Folder, ReadSeek};

/// A piece of a directory.
type Slot = [u8; SLOT];
const SLOT: usize = 32;
/// Where a slot says that it holds a piece of a long name, and how such a slot begins that holds nothing any more.
const KIND: usize = 11;
const LONG: u8 = 0x0f;
const FREE: u8 = 0xe5;

/// The file system.
pub(super) struct Fat {
    pub(super) media: Media,
    /// The mount option.
    pub(super) dirsync: Cell<bool>,
    /// Syncs of files that have a new name are claimed, and not done: as if the caller had forgotten them.
    pub(super) forgets: Cell<bool>,
    /// What only the memory knows: slots with length and first cluster, by their places.
    inodes: RefCell<BTreeMap<u64, Slot>>,
}

/// A place in a stretch.
struct Head {
    media: Media,
    at: u64,
}

impl Read for Head {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let len = bytes.len().min((self.media.bytes - self.at) as usize);
        self.media.read_at(self.at, &mut bytes[..len])?;
        self.at += len as u64;
        Ok(len)
    }
}

impl Write for Head {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.media.write_at(self.at, bytes)?;
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Head {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.media.bytes.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

fn open(media: &Media) -> io::Result<FileSystem<Head>> {
    FileSystem::new(Head { media: media.clone(), at: 0 }, FsOptions::new())
}

fn within<T>(media: &Media, work: impl FnOnce(&fatfs::Dir<'_, Head>) -> io::Result<T>) -> io::Result<T> {
    let fs = open(media)?;
    let dir = fs.root_dir().open_dir("EFI/Linux")?;
    let done = work(&dir);
    drop(dir);
    fs.unmount()?;
    done
}

impl Fat {
    pub(super) fn new(media: Media) -> Self {
        Self { media, dirsync: Cell::new(true), forgets: Cell::default(), inodes: RefCell::default() }
    }

    pub(super) fn format(media: Media) -> Self {
        let mut head = Head { media: media.clone(), at: 0 };
        let mut options = FormatVolumeOptions::new();
        if media.bytes > 33 << 20 {
            options = options.fat_type(FatType::Fat32).bytes_per_cluster(512);
        }
        format_volume(&mut head, options).unwrap();
        let fs = open(&media).unwrap();
        fs.root_dir().create_dir("EFI").unwrap().create_dir("Linux").unwrap();
        drop(fs);
        media.sync().unwrap();
        Self::new(media)
    }

    /// The same on another disk.
    pub(super) fn again(&self, media: Media) -> Self {
        let (dirsync, forgets) = (self.dirsync.clone(), self.forgets.clone());
        Self { dirsync, forgets, ..Self::new(media) }
    }

    pub(super) fn kind(&self) -> FatType {
        open(&self.media).unwrap().fat_type()
    }

    /// As firmware renames: it changes one piece of the directory in its memory and writes that in one go.
    pub(super) fn rename_at_once(&self, from: &str, to: &str) -> io::Result<()> {
        let rename = || within(&self.media, |dir| dir.rename(from, dir, to)).and_then(|()| self.media.sync());
        self.media.at_once(rename)
    }

    /// A machine that is shut down writes what is in its memory.
    pub(super) fn unmount(&self) -> io::Result<()> {
        self.media.at_once(|| {
            let places: Vec<u64> = self.inodes.borrow().keys().copied().collect();
            places.into_iter().try_for_each(|place| self.write_inode(place))
        })
    }

    /// Whether all that was done is durable.
    pub(super) fn is_settled(&self) -> bool {
        self.media.is_settled() && self.inodes.borrow().is_empty()
    }

    /// The memory, when the power goes.
    pub(super) fn forget(&self) {
        self.inodes.borrow_mut().clear();
    }

    /// What programs see.
    fn seen(&self) -> Media {
        let seen = self.media.copy();
        for (place, slot) in &*self.inodes.borrow() {
            seen.write_at(*place, slot).unwrap();
        }
        seen.sync().unwrap();
        seen
    }

    /// Where the slots of a name are; the last one has length and first cluster.
    fn slots(&self, name: &str) -> io::Result<Vec<u64>> {
        let (before, after) = (self.seen(), self.seen());
        within(&after, |dir| dir.remove(name))?;
        let mut gone = Vec::new();
        for (at, sector) in after.written() {
            let mut was: Sector = [0; SECTOR as usize];
            before.read_at(at * SECTOR, &mut was)?;
            for (nr, (was, is)) in was.chunks_exact(SLOT).zip(sector.chunks_exact(SLOT)).enumerate() {
                if was[0] != FREE && is[0] == FREE && was[1..] == is[1..] {
                    gone.push((was[KIND] != LONG, at * SECTOR + (nr * SLOT) as u64));
                }
            }
        }
        gone.sort_unstable();
        assert_eq!(gone.iter().filter(|(short, _)| *short).count(), 1, "the slots of {name}");
        Ok(gone.into_iter().map(|(_, place)| place).collect())
    }

    /// Changes the disk as the work does it to what programs see, sector by sector.
    fn change(&self, work: impl FnOnce(&fatfs::Dir<'_, Head>) -> io::Result<()>) -> io::Result<()> {
        let after = self.media.copy();
        within(&after, work)?;
        after.written().into_iter().try_for_each(|(at, sector)| self.media.write_at(at * SECTOR, &sector))?;
        self.step()
    }

    /// A change to the folder is made.
    fn step(&self) -> io::Result<()> {
        if self.dirsync.get() { self.media.sync() } else { Ok(()) }
    }

    fn write_inode(&self, place: u64) -> io::Result<()> {
        if let Some(slot) = self.inodes.borrow_mut().remove(&place) {
            self.media.write_at(place, &slot)?;
        }
        Ok(())
    }

    /// Length and first cluster of one file become those of another.
    fn pass_on(&self, from: u64, to: u64) -> io::Result<()> {
        let (seen, mut old, mut new) = (self.seen(), Slot::default(), Slot::default());
        seen.read_at(from, &mut old)?;
        seen.read_at(to, &mut new)?;
        for field in [20..22, 26..32] {
            new[field.clone()].copy_from_slice(&old[field]);
        }
        self.inodes.borrow_mut().remove(&from);
        self.inodes.borrow_mut().insert(to, new);
        if self.dirsync.get() {
            self.write_inode(to)?;
        }
        self.step()
    }
}

impl Folder for Fat {
    fn list(&self) -> io::Result<Vec<String>> {
        self.media.check()?;
        within(&self.seen(), |dir| {
            let mut names = Vec::new();
            for entry in dir.iter() {
                let entry = entry?;
                if entry.is_file() {
                    names.push(entry.file_name());
                }
            }
            names.sort();
            Ok(names)
        })
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn ReadSeek + '_>> {
        self.media.check()?;
        let mut bytes = Vec::new();
        within(&self.seen(), |dir| dir.open_file(name)?.read_to_end(&mut bytes))?;
        Ok(Box::new(Cursor::new(bytes)))
    }

    fn write(&self, name: &str, fill: Fill<'_>) -> io::Result<()> {
        within(&self.media, |dir| {
            let mut file = dir.create_file(name)?;
            file.truncate()?;
            fill(&mut file)?;
            file.flush()
        })?;
        self.media.sync()
    }

    fn append(&self, _: &str, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.media.check()?;
        let old = self.slots(from)?;
        if self.slots(to).is_err() {
            self.change(|dir| dir.create_file(to).map(drop))?;
        }
        let new = self.slots(to)?;
        self.pass_on(old[old.len() - 1], new[new.len() - 1])?;
        old.iter().try_for_each(|place| self.media.write_at(*place, &[FREE]))?;
        self.step()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.media.check()?;
        self.write_inode(*self.slots(name)?.last().ok_or(io::ErrorKind::NotFound)?)?;
        within(&self.media, |dir| dir.remove(name))
    }

    fn sync_file(&self, name: &str) -> io::Result<()> {
        self.media.check()?;
        if !self.forgets.get() {
            self.write_inode(*self.slots(name)?.last().ok_or(io::ErrorKind::NotFound)?)?;
        }
        self.media.sync()
    }

    fn sync(&self) -> io::Result<()> {
        self.media.sync()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let fs = open(&self.media)?;
        let stats = fs.stats()?;
        Ok(u64::from(stats.free_clusters()) * u64::from(stats.cluster_size()))
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::super::media::{Cut, Image, Power};
    use super::*;

    fn fat(dirsync: bool) -> Fat {
        let image = Rc::new(RefCell::new(Image::new(vec![0; 256 << 10])));
        let fat = Fat::format(Media::new(&image, &Rc::new(Power::default()), 0, 256 << 10));
        fat.dirsync.set(dirsync);
        // A name long enough for several slots, and more bytes than a cluster has.
        fat.write("skerry_1.2.0+3.efi", &mut |out| out.write_all(&[7; 3000])).unwrap();
        fat
    }

    /// What is there after the power was gone: names and lengths.
    fn left(fat: &Fat, cut: Cut) -> Vec<(String, u64)> {
        fat.media.cut(cut);
        fat.forget();
        fat.list().unwrap().into_iter().map(|name| (name.clone(), fat.digest(&name).unwrap().0)).collect()
    }

    fn is(name: &str, len: u64) -> (String, u64) {
        (name.to_owned(), len)
    }

    const OLD: &str = "skerry_1.2.0+3.efi";
    const NEW: &str = "skerry_1.2.0.efi";

    #[test]
    fn a_rename_is_seen_at_once_and_stays_once_file_and_folder_are_synced() {
        for dirsync in [false, true] {
            let fat = fat(dirsync);
            fat.rename(OLD, NEW).unwrap();
            assert_eq!((fat.list().unwrap(), fat.digest(NEW).unwrap().0), (vec![NEW.to_owned()], 3000));
            fat.sync_file(NEW).unwrap();
            fat.sync().unwrap();
            assert_eq!(left(&fat, Cut::Nothing), [is(NEW, 3000)], "{dirsync}");
        }
    }

    #[test]
    fn without_dirsync_a_folder_that_is_synced_has_a_name_without_a_file() {
        let fat = fat(false);
        fat.rename(OLD, NEW).unwrap();
        fat.sync().unwrap();
        assert_eq!(left(&fat, Cut::Nothing), [is(NEW, 0)]);
    }

    #[test]
    fn with_dirsync_there_is_a_whole_file_at_any_time() {
        let mut seen = Vec::new();
        for after in 0..20 {
            let fat = fat(true);
            fat.media.switch_off_after(after);
            let done = fat.rename(OLD, NEW).is_ok();
            fat.media.switch_off_after(1000);
            for cut in [Cut::Nothing, Cut::Everything] {
                let there = left(&fat, cut);
                assert!(there.iter().any(|(_, len)| *len == 3000), "after {after}: {there:?}");
                seen.push(there);
            }
            if done {
                break;
            }
        }
        for way in [
            vec![is(OLD, 3000)],
            vec![is(OLD, 3000), is(NEW, 0)],
            vec![is(OLD, 3000), is(NEW, 3000)],
            vec![is(NEW, 3000)],
        ] {
            assert!(seen.contains(&way), "{way:?} was never there");
        }
    }
}
