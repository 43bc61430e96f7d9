//! A box made of files, and releases for it.
//!
//! Lives here: the disk's layout, a server with data, bundles, installing and booting. Not here: what is tested.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io::{self, Cursor};
use std::rc::Rc;
use std::sync::OnceLock;

use bundle::testing::{root, signed, signed_root};
use bundle::{Arch, Digest, ImageSource, Inputs, Signed, Store, build};

use super::Bug;
use super::fat::Fat;
use super::loader;
use super::media::{Cut, Image, Media, Posix, Power};
use crate::disk::Disk;
use crate::entry::Entry;
use crate::folder::Folder;
use crate::gpt::{Guid, Table};
use crate::history::Event;
use crate::host::Host;
use crate::journal::{Reason, Release, State};
use crate::policy::Policy;
use crate::slots::{Booted, ids};
use crate::testing::{self, ROOT_KIND, VERITY_KIND, partition};
use crate::updater::{Error, Settings, Updater};

const KIB: u64 = 1024;
pub(super) const ROOT: u64 = 160 * KIB;
const VERITY: u64 = 8 * KIB;

/// How well a release does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Health {
    Good,
    /// It never gets as far as to say anything.
    Hangs,
    /// It finds itself unfit.
    Unfit,
}

pub(super) fn version(number: u64) -> String {
    format!("1.{number}.0")
}

/// Root, hash tree and kernel of a release, and the root hash. Most of the root is the same in all.
pub(super) fn parts(number: u64) -> ([Vec<u8>; 3], Digest) {
    let (parts, root_hash) = made(number);
    (parts.clone(), *root_hash)
}

fn made(number: u64) -> &'static ([Vec<u8>; 3], Digest) {
    static MADE: OnceLock<Vec<([Vec<u8>; 3], Digest)>> = OnceLock::new();
    &MADE.get_or_init(|| (0..8).map(make).collect())[number as usize]
}

fn make(number: u64) -> ([Vec<u8>; 3], Digest) {
    let noise = |seed: u64, len: u64| -> Vec<u8> {
        let mut dice = super::media::Dice(seed);
        (0..len).map(|_| dice.roll(256) as u8).collect()
    };
    let root = [noise(0, 120 * KIB), noise(number, 20 * KIB)].concat();
    let root_hash = Digest::of(&root);
    let mut verity = b"verity\0\0".to_vec();
    verity.resize(64, 0);
    for field in [4096_u32, 4096] {
        verity.extend(field.to_le_bytes());
    }
    verity.extend((root.len() as u64 / 4096).to_le_bytes());
    verity.resize(4096, 0);
    verity.extend(noise(number + 100, 4096));
    let kernel = [format!("MZ roothash={root_hash}\n").into_bytes(), noise(number + 200, 2 * KIB)].concat();
    ([root, verity, kernel], root_hash)
}

/// How a release is made.
pub(super) struct Recipe {
    pub(super) number: u64,
    pub(super) security_version: u64,
    pub(super) built_s: u64,
    pub(super) roots: Vec<Signed>,
    pub(super) by: Vec<u8>,
    pub(super) arch: Arch,
    pub(super) store: Store,
    pub(super) parts: [Vec<u8>; 3],
}

impl Recipe {
    pub(super) fn new(number: u64) -> Self {
        Self {
            number,
            security_version: number,
            built_s: 1_790_000_000 + number * 86_400,
            roots: vec![signed_root(&root(1), &[1, 2])],
            by: vec![11, 12],
            arch: Arch::X86_64,
            store: Store { oldest: 1, newest: 1 },
            parts: parts(number).0,
        }
    }

    pub(super) fn bundle(self) -> Vec<u8> {
        let [root, verity, kernel] = self.parts.map(|bytes| Box::new(Cursor::new(bytes)) as Box<dyn io::Read>);
        let source = ImageSource { root, verity, kernel, root_hash: parts(self.number).1 };
        let inputs = Inputs {
            version: version(self.number),
            security_version: self.security_version,
            from_security_version: 0,
            built_s: self.built_s,
            notes: String::new(),
            store: self.store,
            images: BTreeMap::from([(self.arch, source)]),
            sbom: b"{}".to_vec(),
            roots: self.roots,
            level: 1,
        };
        let mut plain = Vec::new();
        build(inputs, &mut Cursor::new(Vec::new()), &mut plain).unwrap();
        signed(&plain, &self.by)
    }
}

/// Bundles of releases 2 and 3, made once.
pub(super) fn bundle_of(number: u64) -> &'static [u8] {
    static BUNDLES: OnceLock<[Vec<u8>; 2]> = OnceLock::new();
    &BUNDLES.get_or_init(|| [2, 3].map(|number| Recipe::new(number).bundle()))[number as usize - 2]
}

/// Messages that were acknowledged, and what a trial did to the database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Data {
    pub(super) acknowledged: u64,
    /// The release that did so.
    pub(super) changed_by: u64,
}

/// A server and its data. What it does is durable at once, step by step.
#[derive(Clone)]
pub(super) struct Server {
    power: Rc<Power>,
    pub(super) store: Cell<Option<Data>>,
    pub(super) checkpoint: RefCell<Option<(String, Data)>>,
    pub(super) touched: Cell<bool>,
    pub(super) frozen: Cell<bool>,
    /// It starts silent.
    pub(super) silent: Cell<bool>,
    /// The disk with the data cannot be written when a checkpoint is to be put back.
    pub(super) sticks: Cell<bool>,
    pub(super) format: Cell<u32>,
    pub(super) refuses: Cell<bool>,
    /// It does not hear that clients are to be served again.
    pub(super) deaf: Cell<bool>,
    /// What clients were told is safe.
    pub(super) promised: Cell<u64>,
    /// What the firmware keeps.
    pub(super) kept_floor: Cell<u64>,
}

impl Server {
    /// A message is sent, if the server takes it.
    pub(super) fn send(&self) {
        if let (false, false, Some(data)) = (self.power.is_off(), self.frozen.get(), self.store.get()) {
            self.store.set(Some(Data { acknowledged: data.acknowledged + 1, ..data }));
            self.promised.set(self.promised.get() + 1);
        }
    }

    /// What changes nothing is as good before a cut as behind it.
    fn spend_if(&self, changes: bool) -> io::Result<()> {
        if changes { self.power.spend() } else { self.power.check() }
    }

    /// It starts, or is killed and starts again.
    pub(super) fn start(&self) {
        if !self.power.is_off() {
            self.frozen.set(self.silent.get());
            self.touched.set(self.touched.get() || self.silent.get());
        }
    }
}

impl Host for Server {
    fn kept_floor(&self) -> u64 {
        self.kept_floor.get()
    }

    fn keep_floor(&self, floor: u64) {
        self.kept_floor.set(self.kept_floor.get().max(floor));
    }

    fn start_silent(&self, silent: bool) -> io::Result<()> {
        self.spend_if(self.silent.get() != silent)?;
        self.silent.set(silent);
        Ok(())
    }

    fn freeze(&self, checkpoint: &str) -> Result<(), String> {
        self.power.spend().map_err(|error| error.to_string())?;
        self.frozen.set(true);
        if self.refuses.get() {
            return Err("no answer within 900 s".into());
        }
        *self.checkpoint.borrow_mut() = self.store.get().map(|data| (checkpoint.to_owned(), data));
        Ok(())
    }

    fn thaw(&self) -> Result<(), String> {
        self.spend_if(self.frozen.get()).map_err(|error| error.to_string())?;
        if self.deaf.get() {
            return Err("no answer".into());
        }
        self.frozen.set(false);
        Ok(())
    }

    fn store_format(&self) -> io::Result<u32> {
        Ok(self.format.get())
    }

    fn touched(&self) -> io::Result<bool> {
        Ok(self.touched.get())
    }

    fn restore(&self, checkpoint: &str) -> io::Result<()> {
        let there = self.checkpoint.borrow().clone().filter(|(name, _)| name == checkpoint);
        if let Some((_, data)) = there {
            self.power.spend()?;
            if self.sticks.get() {
                return Err(io::Error::other("read-only"));
            }
            self.store.set(None);
            self.power.spend()?;
            self.store.set(Some(data));
            self.checkpoint.take();
        }
        Ok(())
    }

    fn clear(&self) -> io::Result<()> {
        self.spend_if(self.checkpoint.borrow().is_some())?;
        self.checkpoint.take();
        self.spend_if(self.touched.get())?;
        self.touched.set(false);
        Ok(())
    }
}

/// A box.
pub(super) struct World {
    pub(super) power: Rc<Power>,
    pub(super) image: Rc<RefCell<Image>>,
    pub(super) disk: Media,
    pub(super) esp: Fat,
    pub(super) state: Posix,
    pub(super) server: Server,
    pub(super) booted: u64,
    /// How the releases from this one on do.
    pub(super) sick_from: u64,
    pub(super) health: Health,
    pub(super) planted: Option<Bug>,
    pub(super) policy: Policy,
    pub(super) keep_tries: u32,
    /// Firmware lets the boot loader write its partition.
    pub(super) counts: bool,
    pub(super) now_s: u64,
    /// The server is killed behind the checkpoint of an installation, and starts again.
    pub(super) killed: bool,
    /// Somebody was told that a release is armed.
    pub(super) told: Cell<bool>,
    esp_at: u64,
    esp_bytes: u64,
}

/// A partition table over entries, both copies.
pub(super) fn table(bytes: &mut [u8], entries: &[[u8; 128]]) {
    for (at, new) in testing::table(bytes.len() as u64, entries) {
        bytes[at as usize..][..new.len()].copy_from_slice(&new);
    }
}

/// Layout and bytes of a disk with release 1 in slot a and nothing in slot b, and where the ESP is.
fn factory(esp_bytes: u64) -> (Vec<u8>, u64) {
    let ([root, verity, _], root_hash) = parts(1);
    let esp_at = 64 * KIB;
    let root_a = esp_at + esp_bytes;
    let places = [root_a, root_a + ROOT, root_a + ROOT + VERITY, root_a + 2 * ROOT + VERITY];
    let mut bytes = vec![0; (root_a + 2 * (ROOT + VERITY) + 64 * KIB) as usize];
    let [root_id, verity_id] = ids(&root_hash);
    let id = |number: u8| Guid([number; 16]);
    table(
        &mut bytes,
        &[
            partition(testing::ESP_KIND, id(1), "ESP", esp_at, esp_bytes),
            partition(ROOT_KIND, root_id, "skerry_1.1.0", places[0], ROOT),
            partition(VERITY_KIND, verity_id, "skerry_1.1.0_verity", places[1], VERITY),
            partition(ROOT_KIND, id(4), "_empty", places[2], ROOT),
            partition(VERITY_KIND, id(5), "_empty", places[3], VERITY),
        ],
    );
    bytes[places[0] as usize..][..root.len()].copy_from_slice(&root);
    bytes[places[1] as usize..][..verity.len()].copy_from_slice(&verity);
    (bytes, esp_at)
}

impl World {
    /// A new box. A small ESP is FAT12, one of 34 MiB is FAT32.
    pub(super) fn new(esp_bytes: u64) -> Self {
        let (bytes, esp_at) = factory(esp_bytes);
        let size = bytes.len() as u64;
        let power = Rc::new(Power::default());
        let image = Rc::new(RefCell::new(Image::new(bytes)));
        let esp = Fat::format(Media::new(&image, &power, esp_at, esp_bytes));
        let kernel = parts(1).0[2].clone();
        esp.write("skerry_1.1.0.efi", &mut |out| out.write_all(&kernel)).unwrap();
        let formatted = image.borrow().bytes();
        *image.borrow_mut() = Image::new(formatted);
        Self {
            disk: Media::new(&image, &power, 0, size),
            state: Posix::new(&power),
            server: Server {
                power: Rc::clone(&power),
                store: Cell::new(Some(Data { acknowledged: 10, ..Data::default() })),
                checkpoint: RefCell::default(),
                touched: Cell::default(),
                frozen: Cell::default(),
                silent: Cell::default(),
                sticks: Cell::default(),
                format: Cell::new(1),
                refuses: Cell::default(),
                deaf: Cell::default(),
                promised: Cell::new(10),
                kept_floor: Cell::default(),
            },
            power,
            image,
            esp,
            booted: 1,
            sick_from: 2,
            health: Health::Good,
            planted: None,
            policy: Policy::default(),
            keep_tries: 3,
            counts: true,
            now_s: 1_800_000_000,
            killed: false,
            told: Cell::default(),
            esp_at,
            esp_bytes,
        }
    }

    /// The same box once more, with power of its own.
    pub(super) fn again(&self) -> Self {
        let power = Rc::new(Power::default());
        let image = Rc::new(RefCell::new(self.image.borrow().clone()));
        let disk = Media::new(&image, &power, 0, self.disk.size().unwrap());
        let mut state = Posix::new(&power);
        state.clone_from_posix(&self.state);
        let server = Server { power: Rc::clone(&power), ..self.server.clone() };
        let esp = self.esp.again(Media::new(&image, &power, self.esp_at, self.esp_bytes));
        disk.lies.set(self.disk.lies.get());
        esp.media.lies.set(self.esp.media.lies.get());
        let (planted, policy, told) = (self.planted, self.policy.clone(), Cell::default());
        Self { power, image, disk, esp, state, server, planted, policy, told, ..*self }
    }

    pub(super) fn updater(&self) -> Updater<'_> {
        self.updater_of(self.booted)
    }

    fn updater_of(&self, booted: u64) -> Updater<'_> {
        let factory = Release {
            version: version(booted),
            security_version: booted,
            store: Store { oldest: 1, newest: 1 },
            image: None,
        };
        Updater {
            disk: &self.disk,
            esp: &self.esp,
            state: &self.state,
            host: &self.server,
            settings: Settings {
                arch: Arch::X86_64,
                tries: 3,
                keep_tries: self.keep_tries,
                policy: self.policy.clone(),
                trust: root(1).to_bytes(),
                factory,
            },
            booted: Booted { version: version(booted), root_hash: Some(parts(booted).1) },
            now_s: self.now_s,
            chance: [42; 32],
            planted: self.planted,
        }
    }

    pub(super) fn install(&self, bundle: &[u8]) -> Result<(), Error> {
        let updater = self.updater();
        updater.stage(Cursor::new(bundle), "officer", &mut |_, _, _| {})?;
        // Messages come in while the slot is written.
        self.server.send();
        if !self.policy.second_approval {
            updater.arm(true, &mut |_, _, _| {})?;
            self.told.set(true);
        }
        if self.killed {
            self.server.start();
        }
        self.server.send();
        Ok(())
    }

    /// Whether a power cut has nothing to choose from.
    pub(super) fn is_settled(&self) -> bool {
        self.disk.is_settled() && self.esp.is_settled() && self.state.is_settled()
    }

    /// The power goes, and comes back.
    pub(super) fn cut(&mut self, cut: Cut) {
        self.disk.cut(cut);
        self.esp.media.cut(cut);
        self.esp.forget();
        self.state.cut(cut);
        self.power.on(None);
    }

    /// One start of the machine: the boot loader, the kernel, the updater, the server, the gate of health. Says whether it
    /// came to rest.
    pub(super) fn boot(&mut self) -> Result<bool, Error> {
        self.server.silent.set(true);
        self.esp.unmount()?;
        let rename = |from: &str, to: &str| match self.counts {
            true => self.esp.rename_at_once(from, to),
            false => Err(io::Error::other("firmware does not write")),
        };
        let started = loader::start(&self.esp, &rename)?;
        self.power.check()?;
        let (entry, kernel) = started.unwrap_or_else(|| {
            let sizes = |name: String| (self.esp.digest(&name).map(|(bytes, _)| bytes), name);
            panic!("nothing can be booted: {:?}", self.entry_names().into_iter().map(sizes).collect::<Vec<_>>())
        });
        let Some(number) = self.kernel_comes_up(&kernel) else { return Ok(false) };
        self.power.check()?;
        if number >= self.sick_from && self.health == Health::Hangs && entry.tries.is_some() {
            return Ok(false);
        }
        assert_eq!(entry.version, version(number), "a kernel under a false name");
        self.booted = number;
        let woken = self.updater().wake()?;
        if woken.reboot {
            return Ok(false);
        }
        let data = self.server.store.get().expect("the data is gone");
        self.power.spend()?;
        self.server.start();
        if woken.trial {
            self.server.store.set(Some(Data { changed_by: number, ..data }));
        }
        self.server.send();
        if number >= self.sick_from && self.health == Health::Unfit && entry.tries.is_some() {
            self.updater().complain("the disk is full")?;
            return Ok(false);
        }
        if entry.tries.is_some() {
            self.updater().commit()?;
        }
        self.server.send();
        Ok(true)
    }

    /// What a kernel with its command line comes to: it looks for its root, and believes no byte that is not the signed one.
    fn kernel_comes_up(&self, kernel: &[u8]) -> Option<u64> {
        let number = (1..8).find(|number| made(*number).0[2] == kernel)?;
        let ([root, verity, _], root_hash) = made(number);
        let all = Table::read(&self.disk).ok()?.partitions();
        for (bytes, id) in [root, verity].into_iter().zip(ids(root_hash)) {
            let place = all.iter().find(|partition| partition.id == id)?;
            let mut there = vec![0; bytes.len()];
            self.disk.read_at(place.at, &mut there).ok()?;
            if there != *bytes {
                return None;
            }
        }
        Some(number)
    }

    /// Once the journal says that a release is armed, what its boot entry starts is what was signed.
    pub(super) fn what_is_armed_is_whole(&self) {
        let State::Armed { to, .. } = self.state() else { return };
        for entry in self.updater().entries(&to.version).unwrap() {
            let kernel = self.esp.load(&entry.name(), 1 << 20).unwrap().unwrap();
            assert!(self.kernel_comes_up(&kernel).is_some(), "release {} is armed, and not whole", to.version);
        }
    }

    /// Boots until the box comes to rest.
    pub(super) fn settle(&mut self) -> Result<(), Error> {
        for _ in 0..12 {
            if self.boot()? {
                return Ok(());
            }
            self.power.check()?;
        }
        panic!("the box does not come to rest");
    }

    pub(super) fn state(&self) -> State {
        self.updater().journal().unwrap().state
    }

    pub(super) fn entry_names(&self) -> Vec<String> {
        self.esp.list().unwrap()
    }

    /// What a power cut must not do: another release runs than the one that counts, or one that was armed is not tried.
    pub(super) fn nothing_was_lost(&self) {
        for line in self.updater().history().unwrap().lines {
            assert_ne!(line.event, Event::Noticed, "{}", line.text);
            let never_tried = line.event == Event::FellBack && line.text.contains(&Reason::Interrupted.to_string());
            assert!(!(self.told.get() && never_tried), "it was armed, but: {}", line.text);
        }
    }

    /// What must hold whenever a box has come to rest.
    pub(super) fn must_be_well(&self) {
        let updater = self.updater();
        let journal = updater.journal().unwrap();
        assert!(matches!(journal.state, State::Idle | State::Staged { whole: true, .. }), "{:?}", journal.state);
        assert_eq!(journal.running.version, version(self.booted));
        assert!(journal.floor >= journal.running.security_version, "a release stays that was never on trial");
        let data = self.server.store.get().expect("the data is gone");
        assert_eq!(data.acknowledged, self.server.promised.get(), "what was acknowledged is not all there");
        let history = updater.history().unwrap();
        assert_eq!(history.broken, None);
        let stayed = format!("release {} stays", version(data.changed_by));
        let stayed = history.lines.iter().any(|line| line.event == Event::Committed && line.text.contains(&stayed));
        assert!(data.changed_by == 0 || stayed, "a trial that failed has left its changes");
        // A release that opens holes again holds the place, but serves nobody.
        assert_eq!(self.server.frozen.get(), self.booted < journal.floor, "whether clients are served");
        assert!(!Table::read(&self.disk).unwrap().needs_repair());
        let entries = self.entry_names().iter().filter_map(|name| Entry::parse(name)).collect::<Vec<_>>();
        let runs = entries.iter().find(|entry| entry.version == journal.running.version);
        assert!(runs.is_some_and(|entry| !entry.is_bad()), "{entries:?}");
        for entry in entries.iter().filter(|entry| !entry.is_bad()) {
            let kernel = self.esp.load(&entry.name(), 1 << 20).unwrap().unwrap();
            assert!(self.kernel_comes_up(&kernel).is_some(), "{} could be booted, and is not whole", entry.name());
        }
    }
}
