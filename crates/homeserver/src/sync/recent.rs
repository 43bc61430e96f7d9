//! What happened lately, in memory: fed by every commit before its snapshot is published, so that whoever waits for an
//! event gets it from here and not from the disk.
//!
//! For each room the newest events, and over all rooms in which of them something happened since when. Both reach back
//! to one version, [`Recent::covers`]; whoever asks further back reads the store. Also the state events that were read
//! lately. Nothing here is the truth: all of it can be forgotten at any time.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashMap;
use parking_lot::RwLock;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use smallvec::SmallVec;
use store::{Pos, Published, Read, Store};

use crate::error::Result;
use crate::rooms::read::{Gate, RoomReader};
use crate::schema::{self, EventAt, RoomNr};
use crate::stored::StoredEvent;

/// At most so many commits are remembered.
const MAX_COMMITS: usize = 8192;
/// If something happened in more rooms than this, each room is asked instead.
const MAX_CHANGED: usize = 64;

/// The newest commits, and a cache of events.
pub struct Recent {
    log: RwLock<Log>,
    max_bytes: usize,
    events: Cache<EventAt, StoredEvent, EventWeight>,
    gate: Gate,
}

#[derive(Clone)]
struct EventWeight;
impl Weighter<EventAt, StoredEvent> for EventWeight {
    fn weight(&self, _: &EventAt, event: &StoredEvent) -> u64 {
        256 + event.client().len() as u64 + event.federation().len() as u64
    }
}

#[derive(Default)]
struct Log {
    /// Everything after this version is here.
    from: Pos,
    commits: VecDeque<Commit>,
    rooms: HashMap<RoomNr, VecDeque<(Pos, StoredEvent)>>,
    bytes: usize,
}

/// What one commit did in one room.
#[derive(Clone, Copy, Debug)]
struct Commit {
    version: Pos,
    room: RoomNr,
    events: u32,
    bytes: u32,
    receipts: bool,
}

/// What happened in a room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct What {
    pub events: bool,
    pub receipts: bool,
}

impl What {
    pub const ALL: What = What { events: true, receipts: true };
}

impl Recent {
    /// Remembers commits of the store from now on, in about `max_bytes`, and keeps a cache of the same size.
    pub fn follow(store: &Store, max_bytes: usize) -> Arc<Self> {
        let cache = Cache::with_weighter(max_bytes / 1024, max_bytes as u64, EventWeight);
        let recent = Arc::new(Recent { log: RwLock::default(), max_bytes, events: cache, gate: Gate::default() });
        let tapped = Arc::downgrade(&recent);
        store.hub().tap(move |commits| {
            if let Some(recent) = tapped.upgrade() {
                recent.publish(commits);
            }
        });
        let mut log = recent.log.write();
        log.from = log.from.max(store.tip());
        drop(log);
        recent
    }

    fn publish(&self, commits: &[Published]) {
        let mut log = self.log.write();
        for commit in commits {
            self.publish_one(&mut log, commit);
        }
        while log.commits.len() > MAX_COMMITS || log.bytes > self.max_bytes {
            if !log.forget_oldest() {
                break;
            }
        }
    }

    fn publish_one(&self, log: &mut Log, commit: &Published) {
        let mut touched: SmallVec<[Commit; 2]> = SmallVec::new();
        for (room, at, event) in
            commit.writes_to(&schema::EVENTS).flatten().map(|((room, at), event)| (room, at, event))
        {
            if at < commit.base {
                self.rewrite(log, commit.version, (room, at), event);
                continue;
            }
            let Some(event) = event else { continue };
            let bytes = EventWeight.weight(&EventAt { room, at }, &event) as u32;
            let entry = entry_of(&mut touched, commit.version, room);
            (entry.events, entry.bytes) = (entry.events + 1, entry.bytes + bytes);
            log.bytes += bytes as usize;
            log.rooms.entry(room).or_default().push_back((at, event));
        }
        for ((room, _), key) in commit.writes_to(&schema::RECEIPT_LOG).flatten() {
            if key.is_some() {
                entry_of(&mut touched, commit.version, room).receipts = true;
            }
        }
        log.commits.extend(touched);
    }

    /// An event was redacted, or is gone: everywhere it now is what is left of it.
    fn rewrite(&self, log: &mut Log, version: Pos, (room, at): (RoomNr, Pos), event: Option<StoredEvent>) {
        self.gate.rewritten(version, || {
            self.events.remove(&EventAt { room, at });
        });
        match event {
            Some(event) => {
                let mut events = log.rooms.get_mut(&room).into_iter().flatten();
                if let Some((_, known)) = events.find(|(known, _)| *known == at) {
                    *known = event;
                }
            }
            None => log.remove(room, at),
        }
    }

    /// Whether everything after a version is remembered.
    pub fn covers(&self, since: Pos) -> bool {
        self.log.read().from <= since
    }

    /// The rooms in which something happened after `since` and up to `until`, of those that are wanted. `None` if that
    /// is not remembered, or if so much happened that asking each room is less work.
    pub fn changes(
        &self,
        since: Pos,
        until: Pos,
        wanted: impl Fn(RoomNr) -> bool,
    ) -> Option<SmallVec<[(RoomNr, What); 4]>> {
        let log = self.log.read();
        if log.from > since {
            return None;
        }
        let mut changed: SmallVec<[(RoomNr, What); 4]> = SmallVec::new();
        for commit in log.commits.iter().rev().take_while(|commit| commit.version > since) {
            if commit.version > until {
                continue;
            }
            let known = changed.iter().position(|(room, _)| *room == commit.room);
            let index = match known {
                Some(index) => index,
                None if !wanted(commit.room) => continue,
                None if changed.len() >= MAX_CHANGED => return None,
                None => {
                    changed.push((commit.room, What::default()));
                    changed.len() - 1
                }
            };
            let Some((_, what)) = changed.get_mut(index) else { continue };
            what.events |= commit.events > 0;
            what.receipts |= commit.receipts;
        }
        Some(changed)
    }

    /// The events of a room after `since` and up to `until`, newest first, if they are remembered.
    pub fn events(&self, room: RoomNr, since: Pos, until: Pos) -> Option<Vec<(Pos, StoredEvent)>> {
        let log = self.log.read();
        if log.from > since {
            return None;
        }
        let Some(events) = log.rooms.get(&room) else { return Some(Vec::new()) };
        let newest_first = events.iter().rev().skip_while(|(at, _)| *at > until);
        Some(newest_first.take_while(|(at, _)| *at > since).cloned().collect())
    }

    /// The events at these positions, in the order given, kept for the next who asks.
    pub fn state_events<R: Read>(
        &self,
        rooms: RoomReader<'_, R>,
        room: RoomNr,
        positions: &[Pos],
    ) -> Result<Vec<(Pos, StoredEvent)>> {
        let mut events: Vec<(Pos, Option<StoredEvent>)> =
            positions.iter().map(|&at| (at, self.events.get(&EventAt { room, at }))).collect();
        let missing: Vec<Pos> = events.iter().filter(|(_, event)| event.is_none()).map(|(at, _)| *at).collect();
        if !missing.is_empty() {
            let mut read = rooms.events_at(room, &missing)?.into_iter().peekable();
            for (at, event) in events.iter_mut().filter(|(_, event)| event.is_none()) {
                *event = read.next_if(|(found, _)| found == at).map(|(_, event)| event);
                let Some(event) = event else { continue };
                let keep = || self.events.insert(EventAt { room, at: *at }, event.clone());
                self.gate.keep(rooms.read.version(), keep);
            }
        }
        Ok(events.into_iter().filter_map(|(at, event)| Some((at, event?))).collect())
    }
}

fn entry_of(touched: &mut SmallVec<[Commit; 2]>, version: Pos, room: RoomNr) -> &mut Commit {
    let index = touched.iter().position(|commit| commit.room == room).unwrap_or_else(|| {
        touched.push(Commit { version, room, events: 0, bytes: 0, receipts: false });
        touched.len() - 1
    });
    &mut touched[index]
}

impl Log {
    /// Takes an event out, and out of the account of the commit that it came with.
    fn remove(&mut self, room: RoomNr, at: Pos) {
        let Some(events) = self.rooms.get_mut(&room) else { return };
        let Some(index) = events.iter().position(|(known, _)| *known == at) else { return };
        let Some((_, event)) = events.remove(index) else { return };
        let bytes = EventWeight.weight(&EventAt { room, at }, &event) as u32;
        let first = self.commits.partition_point(|commit| commit.version < at);
        if let Some(commit) = self.commits.iter_mut().skip(first).find(|commit| commit.room == room) {
            commit.events = commit.events.saturating_sub(1);
            // A redacted event takes less than it did.
            let given_back = bytes.min(commit.bytes);
            commit.bytes -= given_back;
            self.bytes -= given_back as usize;
        }
    }

    fn forget_oldest(&mut self) -> bool {
        let Some(oldest) = self.commits.pop_front() else { return false };
        self.from = self.from.max(oldest.version);
        self.bytes -= oldest.bytes as usize;
        if oldest.events > 0
            && let Some(events) = self.rooms.get_mut(&oldest.room)
        {
            events.drain(..(oldest.events as usize).min(events.len()));
            if events.is_empty() {
                self.rooms.remove(&oldest.room);
            }
        }
        true
    }
}
