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
use ruma::{EventId, OwnedRoomId, RoomId};
use store::{Pos, Read};

use crate::error::{Error, Result};
use crate::schema::{self, EventAt, Membership, RoomNr, room_nr};
use crate::stored::{Head, StoredEvent};

/// What is worth keeping in memory of rooms. Its sizes are shares of the memory budget.
pub struct RoomCache {
    nodes: Cache<NodeId, Arc<Node>, NodeWeight>,
    pdus: Cache<EventAt, Arc<Pdu>, PduWeight>,
    /// Counts redactions: an event read before one is not cached after it.
    redactions: Mutex<u64>,
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
    /// Caches of about `bytes` in all.
    pub fn new(bytes: u64) -> Self {
        let half = bytes / 2;
        RoomCache {
            nodes: Cache::with_weighter((half / 640) as usize, half, NodeWeight),
            pdus: Cache::with_weighter((half / 1_536) as usize, half, PduWeight),
            redactions: Mutex::new(0),
        }
    }

    /// The event was redacted by a commit that is sequenced: forget how it was.
    pub fn redacted(&self, at: EventAt) {
        *self.redactions.lock() += 1;
        self.pdus.remove(&at);
    }

    fn keep(&self, at: EventAt, pdu: &Arc<Pdu>, redactions: u64) {
        let now = self.redactions.lock();
        if *now == redactions {
            self.pdus.insert(at, pdu.clone());
        }
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
        let redactions = *self.cache.redactions.lock();
        let Some(stored) = self.event(room, at)? else { return Ok(None) };
        let pdu = Arc::new(parse_stored(&stored, head)?);
        self.cache.keep(key, &pdu, redactions);
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
