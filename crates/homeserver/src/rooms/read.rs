//! Reading rooms: heads, events, state. Everything that looks into a room goes through [`RoomReader`].
//!
//! State nodes never change and stay cached; parsed events change once at most (by redaction) and are dropped then.
//! Not here: what a user may see (`visibility`), and changing rooms (`write`).

use std::sync::Arc;

use ::rooms::event::{EventNr, Parts, Pdu, rules};
use ::rooms::state::{self, Corrupt, Key, Node, NodeId, Nodes, Root, Select};
use parking_lot::Mutex;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use ruma::events::StateEventType;
use ruma::{EventId, OwnedRoomId, RoomId, UserId};
use store::{Pos, Read, Store};

use crate::error::{Error, Result};
use crate::schema::{self, EventAt, Membership, RoomNr, room_nr};
use crate::stored::{Head, StoredEvent};

/// Keeps a cache of events from taking in what was read before one of them was rewritten: what a redaction took away must
/// not come back through somebody who began to read before it.
#[derive(Debug, Default)]
pub struct Gate {
    /// The version of the last commit that rewrote an event.
    rewritten: Mutex<Pos>,
}

impl Gate {
    /// A commit of this version rewrote an event, which `forget` takes out of the cache.
    pub fn rewritten(&self, version: Pos, forget: impl FnOnce()) {
        let mut rewritten = self.rewritten.lock();
        *rewritten = (*rewritten).max(version);
        forget();
    }

    /// Runs `keep`, which puts what was read at this version into the cache, unless an event was rewritten since.
    pub fn keep(&self, version: Pos, keep: impl FnOnce()) {
        let rewritten = self.rewritten.lock();
        if version >= *rewritten {
            keep();
        }
    }
}

/// What is worth keeping in memory of rooms. Its sizes are shares of the memory budget.
pub struct RoomCache {
    nodes: Cache<NodeId, Arc<Node>, NodeWeight>,
    pdus: Cache<EventAt, Arc<Pdu>, PduWeight>,
    gate: Gate,
}

#[derive(Clone)]
struct NodeWeight;
impl Weighter<NodeId, Arc<Node>> for NodeWeight {
    fn weight(&self, _: &NodeId, _: &Arc<Node>) -> u64 {
        640
    }
}

#[derive(Clone)]
struct PduWeight;
impl Weighter<EventAt, Arc<Pdu>> for PduWeight {
    fn weight(&self, _: &EventAt, pdu: &Arc<Pdu>) -> u64 {
        1_024 + pdu.content.get().len() as u64
    }
}

impl RoomCache {
    /// Caches of about `bytes` in all, which forget what commits of the store rewrite.
    pub fn follow(store: &Store, bytes: u64) -> Arc<Self> {
        let half = bytes / 2;
        let cache = Arc::new(RoomCache {
            nodes: Cache::with_weighter((half / 640) as usize, half, NodeWeight),
            pdus: Cache::with_weighter((half / 1_536) as usize, half, PduWeight),
            gate: Gate::default(),
        });
        let tapped = Arc::downgrade(&cache);
        store.hub().tap(move |commits| {
            let Some(cache) = tapped.upgrade() else { return };
            for commit in commits {
                let old = commit.keys_in(&schema::EVENTS).flatten().filter(|(_, at)| *at < commit.base);
                old.for_each(|(room, at)| cache.forget(EventAt { room, at }, commit.version));
            }
        });
        cache
    }

    /// The event is not what it was, from this version on.
    pub fn forget(&self, at: EventAt, version: Pos) {
        self.gate.rewritten(version, || {
            self.pdus.remove(&at);
        });
    }
}

/// Looks into rooms through one view of the store.
pub struct RoomReader<'a, R> {
    pub read: &'a R,
    pub cache: &'a RoomCache,
}

impl<R> Clone for RoomReader<'_, R> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<R> Copy for RoomReader<'_, R> {}

impl<R: Read> Nodes for RoomReader<'_, R> {
    type Error = Error;

    fn node(&self, id: NodeId) -> Result<Arc<Node>> {
        if let Some(node) = self.cache.nodes.get(&id) {
            return Ok(node);
        }
        let bytes = self.read.get(&schema::STATE_NODES, (Pos(id.nr.0), id.idx))?;
        let bytes = bytes.ok_or(Corrupt("a node is missing"))?;
        let node = Arc::new(Node::decode(&bytes)?);
        self.cache.nodes.insert(id, node.clone());
        Ok(node)
    }
}

impl<'a, R: Read> RoomReader<'a, R> {
    pub fn new(cache: &'a RoomCache, read: &'a R) -> Self {
        RoomReader { read, cache }
    }

    /// The room, if it is known here.
    pub fn head(&self, room_id: &RoomId) -> Result<Option<(RoomNr, Head)>> {
        let nr = room_nr(room_id);
        let head = self.read.get(&schema::HEADS, nr)?.filter(|head| head.room_id == room_id.as_str());
        Ok(head.map(|head| (nr, head)))
    }

    pub fn head_of(&self, room: RoomNr) -> Result<Option<Head>> {
        Ok(self.read.get(&schema::HEADS, room)?)
    }

    pub fn event(&self, room: RoomNr, at: Pos) -> Result<Option<StoredEvent>> {
        Ok(self.read.get(&schema::EVENTS, (room, at))?)
    }

    /// The ID of a room that was deleted a while ago, and the event that says what became of a user there.
    pub fn closed(&self, room: RoomNr, user_id: &UserId) -> Result<Option<(String, StoredEvent)>> {
        let Some(room_id) = self.read.get(&schema::CLOSED_ROOMS, room)? else { return Ok(None) };
        let last = self.read.get(&schema::LAST_EVENTS, (room, user_id.as_str()))?;
        Ok(last.map(|event| (room_id, event)))
    }

    /// Where an event lies, if it is in this room.
    pub fn find(&self, room: RoomNr, event_id: &EventId) -> Result<Option<Pos>> {
        let found = self.read.get(&schema::EVENT_IDS, event_id.as_str())?;
        Ok(found.filter(|found| found.room == room).map(|found| found.at))
    }

    /// An event as the rules see it.
    pub fn pdu(&self, room: RoomNr, head: &Head, at: Pos) -> Result<Option<Arc<Pdu>>> {
        let key = EventAt { room, at };
        if let Some(pdu) = self.cache.pdus.get(&key) {
            return Ok(Some(pdu));
        }
        let Some(stored) = self.event(room, at)? else { return Ok(None) };
        let pdu = Arc::new(parse_stored(&stored, head)?);
        self.cache.gate.keep(self.read.version(), || self.cache.pdus.insert(key, pdu.clone()));
        Ok(Some(pdu))
    }

    /// Where the event lies that is the state under a type and key.
    pub fn state_at(&self, root: Root, kind: &str, state_key: &str) -> Result<Option<Pos>> {
        Ok(state::get(self, root, Key::new(kind, state_key))?.map(|nr| Pos(nr.0)))
    }

    /// The state event under a type and key, as it was stored.
    pub fn state_event(&self, room: RoomNr, root: Root, kind: &str, state_key: &str) -> Result<Option<StoredEvent>> {
        match self.state_at(root, kind, state_key)? {
            Some(at) => self.event(room, at),
            None => Ok(None),
        }
    }

    /// The state event under a type and key, as the rules see it.
    pub fn state_pdu(
        &self,
        room: RoomNr,
        head: &Head,
        root: Root,
        kind: &StateEventType,
        state_key: &str,
    ) -> Result<Option<Arc<Pdu>>> {
        match self.state_at(root, &kind.to_string(), state_key)? {
            Some(at) => self.pdu(room, head, at),
            None => Ok(None),
        }
    }

    /// Where all the events of a state lie.
    pub fn state_positions(&self, root: Root, select: Select) -> Result<Vec<Pos>> {
        state::iter(self, root, select).map(|nr| nr.map(|nr| Pos(nr.0))).collect()
    }

    /// All the events of a state. Members come first; otherwise in no order that means anything.
    pub fn state_events(&self, room: RoomNr, root: Root, select: Select) -> Result<Vec<(Pos, StoredEvent)>> {
        self.events_at(room, &self.state_positions(root, select)?)
    }

    /// The events at these positions, in the order given; those that are not there are left out.
    pub fn events_at(&self, room: RoomNr, positions: &[Pos]) -> Result<Vec<(Pos, StoredEvent)>> {
        let events = self.read.multi_get(&schema::EVENTS, positions.iter().map(|at| (room, *at)))?;
        Ok(positions.iter().zip(events).filter_map(|(at, event)| Some((*at, event?))).collect())
    }

    /// The room's state as it was at a position of the stream: after the last event at or before it.
    pub fn root_at(&self, room: RoomNr, at: Pos) -> Result<Root> {
        let span = schema::EVENTS.prefix((room,)).through((room, at)).reversed().limit(1);
        match self.read.scan(&schema::EVENTS, span).next() {
            Some(row) => Ok(row?.1.after),
            None => Ok(Root::EMPTY),
        }
    }

    pub fn membership(&self, user_id: &str, room: RoomNr) -> Result<Option<Membership>> {
        Ok(self.read.get(&schema::MEMBERSHIPS, (user_id, room))?)
    }
}

/// Puts an event together from how it was stored.
pub fn parse_stored(stored: &StoredEvent, head: &Head) -> Result<Pdu> {
    let rules = rules(&head.version).ok_or_else(|| Error::internal("a room of a version without rules"))?;
    let event_id = EventId::parse(stored.event_id()).map_err(Error::internal)?;
    let room_id: OwnedRoomId = RoomId::parse(&head.room_id).map_err(Error::internal)?;
    let parts = Parts { client: stored.client().to_vec(), federation: stored.federation().to_vec() };
    Pdu::from_storage(event_id, room_id, &parts, stored.rejected(), rules).map_err(Error::internal)
}

/// A position as the `rooms` crate calls it.
pub fn event_nr(at: Pos) -> EventNr {
    EventNr(at.0)
}
