//! Storage that forgets: what was not synced may be lost, torn or written in another order when the power goes.
//!
//! Lives here: sectors with a volatile memory in front of them, a folder of a POSIX file system, and the switch. Not here:
//! the boot partition's file system (fat.rs).

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::io::{self, Cursor};
use std::rc::Rc;
use std::sync::Arc;

use crate::disk::{Disk, SECTOR};
use crate::folder::{Fill, Folder, ReadSeek};

pub(super) type Sector = [u8; SECTOR as usize];

/// Chance with a seed.
#[derive(Clone)]
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides.max(1)
    }
}

/// How a power cut treats what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    Nothing,
    Everything,
    AllButTheFirst,
    OnlyTheLast,
    Some(u64),
}

/// The power of the box. Every write and sync asks for it.
#[derive(Default)]
pub(super) struct Power {
    /// Operations until it goes.
    left: Cell<Option<u64>>,
    used: Cell<u64>,
}

impl Power {
    pub(super) fn on(&self, left: Option<u64>) {
        self.left.set(left);
        self.used.set(0);
    }

    pub(super) fn used(&self) -> u64 {
        self.used.get()
    }

    pub(super) fn is_off(&self) -> bool {
        self.left.get() == Some(0)
    }

    pub(super) fn spend(&self) -> io::Result<()> {
        self.check()?;
        self.left.set(self.left.get().map(|left| left - 1));
        self.used.set(self.used.get() + 1);
        Ok(())
    }

    pub(super) fn check(&self) -> io::Result<()> {
        if self.is_off() { Err(io::Error::other("the power is off")) } else { Ok(()) }
    }
}

/// What is on the platters.
#[derive(Clone)]
pub(super) struct Image {
    base: Arc<Vec<u8>>,
    over: HashMap<u64, Sector>,
}

impl Image {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self { base: Arc::new(bytes), over: HashMap::new() }
    }

    fn sector(&self, at: u64) -> Sector {
        let from = (at * SECTOR) as usize;
        self.over.get(&at).copied().unwrap_or_else(|| self.base[from..from + SECTOR as usize].try_into().unwrap())
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        (0..self.base.len() as u64 / SECTOR).flat_map(|at| self.sector(at)).collect()
    }
}

/// A way to a stretch of the disk, with a volatile memory of its own.
#[derive(Clone)]
pub(super) struct Media {
    image: Rc<RefCell<Image>>,
    pending: Rc<RefCell<Vec<(u64, Sector)>>>,
    newest: Rc<RefCell<HashMap<u64, Sector>>>,
    power: Rc<Power>,
    at: u64,
    pub(super) bytes: u64,
    /// Syncs that are claimed, and not done: as if the caller had forgotten them.
    pub(super) lies: Rc<Cell<bool>>,
    /// Where a write goes astray without a word.
    pub(super) loses: Rc<Cell<Option<u64>>>,
}

impl Media {
    pub(super) fn new(image: &Rc<RefCell<Image>>, power: &Rc<Power>, at: u64, bytes: u64) -> Self {
        let (image, power) = (Rc::clone(image), Rc::clone(power));
        Self {
            image,
            pending: Rc::default(),
            newest: Rc::default(),
            power,
            at,
            bytes,
            lies: Rc::default(),
            loses: Rc::default(),
        }
    }

    /// The same bytes once more, with nothing that forgets and power of their own.
    pub(super) fn copy(&self) -> Self {
        let mut image = self.image.borrow().clone();
        image.over.extend(self.newest.borrow().iter().map(|(at, sector)| (*at, *sector)));
        Self::new(&Rc::new(RefCell::new(image)), &Rc::default(), self.at, self.bytes)
    }

    /// The sectors that were written and not synced, as they are now.
    pub(super) fn written(&self) -> BTreeMap<u64, Sector> {
        self.newest.borrow().iter().map(|(at, sector)| (at - self.at / SECTOR, *sector)).collect()
    }

    /// Work that costs no power: it happens at once, or not at all.
    pub(super) fn at_once<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.power.spend()?;
        let (left, used) = (self.power.left.replace(None), self.power.used());
        let done = work();
        self.power.left.set(left);
        self.power.used.set(used);
        done
    }

    fn sector(&self, at: u64) -> Sector {
        let newest = self.newest.borrow().get(&at).copied();
        newest.unwrap_or_else(|| self.image.borrow().sector(at))
    }

    /// Whether there is power.
    pub(super) fn check(&self) -> io::Result<()> {
        self.power.check()
    }

    pub(super) fn switch_off_after(&self, writes: u64) {
        self.power.on(Some(writes));
    }

    /// Whether all that was written is durable.
    pub(super) fn is_settled(&self) -> bool {
        self.pending.borrow().is_empty()
    }

    pub(super) fn cut(&self, cut: Cut) {
        let pending = self.pending.take();
        self.newest.borrow_mut().clear();
        let (last, mut dice) =
            (pending.len().saturating_sub(1), Dice(if let Cut::Some(seed) = cut { seed } else { 0 }));
        for (nr, (at, sector)) in pending.into_iter().enumerate() {
            let stays = match cut {
                Cut::Nothing => false,
                Cut::Everything => true,
                Cut::AllButTheFirst => nr > 0,
                Cut::OnlyTheLast => nr == last,
                Cut::Some(_) => dice.roll(2) == 0,
            };
            if stays {
                self.image.borrow_mut().over.insert(at, sector);
            }
        }
    }
}

impl Disk for Media {
    fn size(&self) -> io::Result<u64> {
        Ok(self.bytes)
    }

    fn read_at(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.power.check()?;
        if at + bytes.len() as u64 > self.bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (mut place, mut rest) = (self.at + at, bytes);
        while !rest.is_empty() {
            let (from, sector) = ((place % SECTOR) as usize, self.sector(place / SECTOR));
            let len = rest.len().min(SECTOR as usize - from);
            rest[..len].copy_from_slice(&sector[from..from + len]);
            (place, rest) = (place + len as u64, &mut rest[len..]);
        }
        Ok(())
    }

    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.power.spend()?;
        let (mut place, mut rest) = (self.at + at, bytes);
        assert!(place + bytes.len() as u64 <= self.at + self.bytes, "a write behind the end");
        while !rest.is_empty() {
            let (from, mut sector) = ((place % SECTOR) as usize, self.sector(place / SECTOR));
            let len = rest.len().min(SECTOR as usize - from);
            sector[from..from + len].copy_from_slice(&rest[..len]);
            if self.loses.get() != Some(place / SECTOR) {
                self.pending.borrow_mut().push((place / SECTOR, sector));
                self.newest.borrow_mut().insert(place / SECTOR, sector);
            }
            (place, rest) = (place + len as u64, &rest[len..]);
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.power.spend()?;
        if !self.lies.get() {
            self.cut(Cut::Everything);
        }
        Ok(())
    }
}

/// A folder of a POSIX file system: names are durable, in order, when the folder is synced, bytes when the file is.
pub(super) struct Posix {
    files: RefCell<Files>,
    power: Rc<Power>,
    pub(super) lies: Cell<bool>,
}

#[derive(Clone, Default)]
struct Files {
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    /// What the names were after each change since the last sync.
    changes: Vec<BTreeMap<String, usize>>,
    bytes: Vec<Vec<u8>>,
    durable_bytes: Vec<Vec<u8>>,
}

impl Posix {
    pub(super) fn new(power: &Rc<Power>) -> Self {
        Self { files: RefCell::default(), power: Rc::clone(power), lies: Cell::new(false) }
    }

    pub(super) fn clone_from_posix(&mut self, other: &Self) {
        self.files = RefCell::new(other.files.borrow().clone());
        self.lies = other.lies.clone();
    }

    pub(super) fn is_settled(&self) -> bool {
        let files = self.files.borrow();
        files.changes.is_empty() && files.bytes == files.durable_bytes
    }

    pub(super) fn cut(&self, cut: Cut) {
        let mut files = self.files.borrow_mut();
        let files = &mut *files;
        let mut dice = Dice(if let Cut::Some(seed) = cut { seed } else { 0 });
        let kept = match cut {
            Cut::Nothing => 0,
            Cut::Some(_) => dice.roll(files.changes.len() + 1),
            _ => files.changes.len(),
        };
        if let Some(names) = kept.checked_sub(1).map(|last| files.changes[last].clone()) {
            files.durable_names = names;
        }
        for (durable, now) in files.durable_bytes.iter_mut().zip(&files.bytes) {
            if durable != now {
                match if let Cut::Some(_) = cut { dice.roll(4) } else { usize::from(cut == Cut::Everything) } {
                    0 => {}
                    1 => durable.clone_from(now),
                    // What was durable before an addition stays what it was.
                    torn => {
                        let kept = if now.starts_with(durable) { durable.len() } else { 0 };
                        let half = kept + (now.len() - kept) / 2;
                        let mut bytes = now[..if torn == 2 { half } else { kept }].to_vec();
                        bytes.resize(if torn == 2 { half } else { now.len() }, 0);
                        *durable = bytes;
                    }
                }
            }
        }
        files.changes.clear();
        files.names.clone_from(&files.durable_names);
        files.bytes.clone_from(&files.durable_bytes);
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<String, usize>) -> Option<()>) -> io::Result<()> {
        self.power.spend()?;
        let files = &mut *self.files.borrow_mut();
        change(&mut files.names).ok_or(io::ErrorKind::NotFound)?;
        files.changes.push(files.names.clone());
        Ok(())
    }

    fn file(&self, name: &str) -> io::Result<usize> {
        if let Some(file) = self.files.borrow().names.get(name) {
            return Ok(*file);
        }
        let file = self.files.borrow().bytes.len();
        self.change(|names| {
            names.insert(name.to_owned(), file);
            Some(())
        })?;
        let files = &mut *self.files.borrow_mut();
        files.bytes.push(Vec::new());
        files.durable_bytes.push(Vec::new());
        Ok(file)
    }

    fn settle(&self, file: usize) -> io::Result<()> {
        self.power.spend()?;
        let files = &mut *self.files.borrow_mut();
        if !self.lies.get() {
            files.durable_bytes[file].clone_from(&files.bytes[file]);
        }
        Ok(())
    }
}

impl Folder for Posix {
    fn list(&self) -> io::Result<Vec<String>> {
        self.power.check()?;
        Ok(self.files.borrow().names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn ReadSeek + '_>> {
        self.power.check()?;
        let files = self.files.borrow();
        let file = *files.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(Cursor::new(files.bytes[file].clone())))
    }

    fn write(&self, name: &str, fill: Fill<'_>) -> io::Result<()> {
        let file = self.file(name)?;
        let mut bytes = Vec::new();
        fill(&mut bytes)?;
        self.power.spend()?;
        self.files.borrow_mut().bytes[file] = bytes;
        self.settle(file)
    }

    fn append(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let file = self.file(name)?;
        self.power.spend()?;
        self.files.borrow_mut().bytes[file].extend_from_slice(bytes);
        self.settle(file)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.change(|names| {
            let file = names.remove(from)?;
            names.insert(to.to_owned(), file);
            Some(())
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.change(|names| names.remove(name).map(drop))
    }

    fn sync_file(&self, name: &str) -> io::Result<()> {
        let file = *self.files.borrow().names.get(name).ok_or(io::ErrorKind::NotFound)?;
        self.settle(file)
    }

    fn sync(&self) -> io::Result<()> {
        self.power.spend()?;
        let files = &mut *self.files.borrow_mut();
        files.changes.clear();
        files.durable_names.clone_from(&files.names);
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(1 << 30)
    }
}
