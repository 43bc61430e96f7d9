//! Connections: what each client was told, by the position it comes back with.
//!
//! A connection keeps the state the client is known to have and those of the answers it may have got since. Only when
//! the client comes back with the position of an answer does that answer count; until then any number of retries, with
//! any request, start from the same state. States share what they have in common. All of it is in memory, and whoever
//! is not remembered starts anew.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use store::Pos;

use super::config::{Config, RoomConfig, Scopes};
use super::lists::Marks;
use crate::schema::RoomNr;

/// So many answers are remembered that the client may have got or not.
const MAX_PENDING: usize = 4;
/// A connection remembers so many members it has sent for lazy loading; then it begins anew.
const MAX_MEMBERS: usize = 8_192;

/// All connections.
pub struct Connections {
    known: Cache<Key, Weighed, Weight>,
    numbers: AtomicU64,
}

/// User, device, and the client's name for the connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pub user_id: String,
    pub device_id: String,
    pub conn_id: String,
}

/// A connection with what it was weighed with: the cache wants that to stay.
#[derive(Clone)]
struct Weighed {
    connection: Arc<Connection>,
    bytes: u64,
}

#[derive(Clone)]
struct Weight;
impl Weighter<Key, Weighed> for Weight {
    fn weight(&self, _: &Key, weighed: &Weighed) -> u64 {
        weighed.bytes
    }
}

/// One client's loop of requests.
#[derive(Default)]
pub struct Connection {
    states: Mutex<States>,
}

#[derive(Default)]
struct States {
    /// The state the client has for sure, and its number.
    committed: Option<(u64, Arc<State>)>,
    pending: VecDeque<(u64, Arc<State>)>,
}

/// What a client has been told.
#[derive(Clone, Default)]
pub struct State {
    /// Everything up to this was looked at.
    pub version: Pos,
    /// The same for what is not stored.
    pub serial: u64,
    /// The request that was answered.
    pub config: Option<Arc<Config>>,
    pub rooms: imbl::HashMap<RoomNr, Sent>,
    /// Which rooms the client hears of.
    pub marks: Arc<Marks>,
    /// Member events that were sent because of lazy loading.
    pub members: imbl::HashSet<(RoomNr, Pos)>,
    /// The rooms in which the client believes somebody is typing.
    pub typing: imbl::OrdSet<RoomNr>,
}

/// What a client was told of a room.
#[derive(Clone, Debug)]
pub struct Sent {
    /// Up to where; `None` while the room is one that the client hears of: then up to the version of the state.
    pub up_to: Option<Pos>,
    /// What it wanted.
    pub config: Arc<RoomConfig>,
    pub scopes: Scopes,
    pub is_dm: bool,
}

impl State {
    /// Up to where the client knows a room, if at all.
    pub fn knows(&self, room: RoomNr) -> Option<Pos> {
        self.rooms.get(&room).map(|sent| sent.up_to.unwrap_or(self.version))
    }

    /// The answer has these member events.
    pub fn remember_members(&mut self, room: RoomNr, members: impl IntoIterator<Item = Pos>) {
        for at in members {
            if self.members.len() >= MAX_MEMBERS {
                self.members = imbl::HashSet::new();
            }
            self.members.insert((room, at));
        }
    }
}

impl Connections {
    /// In about so much memory.
    pub fn new(bytes: u64) -> Self {
        Connections { known: Cache::with_weighter((bytes / 8_192) as usize, bytes, Weight), numbers: AtomicU64::new(1) }
    }

    /// A client begins anew: what it was told before is forgotten.
    pub fn begin(&self, key: Key) -> Arc<Connection> {
        let connection = Arc::new(Connection::default());
        self.known.insert(key, Weighed { bytes: connection.bytes(), connection: connection.clone() });
        connection
    }

    /// The state of a client that comes back with the number of an answer. What went before is forgotten.
    pub fn resume(&self, key: &Key, number: u64) -> Option<(Arc<Connection>, Arc<State>)> {
        let connection = self.known.get(key)?.connection;
        let state = connection.states.lock().come_to(number)?;
        Some((connection, state))
    }

    /// An answer goes out. Returns its number.
    pub fn put(&self, key: &Key, connection: &Arc<Connection>, state: Arc<State>) -> u64 {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        {
            let mut states = connection.states.lock();
            if states.pending.len() >= MAX_PENDING {
                states.pending.pop_front();
            }
            states.pending.push_back((number, state));
        }
        // Weighed again, if it grew; but a connection that was replaced meanwhile does not come back.
        let bytes = connection.bytes();
        let known = self.known.peek(key).filter(|known| Arc::ptr_eq(&known.connection, connection));
        if known.is_some_and(|known| bytes.abs_diff(known.bytes) > known.bytes / 4) {
            self.known.insert(key.clone(), Weighed { connection: connection.clone(), bytes });
        }
        number
    }
}

impl Connection {
    /// A rough guess, on the safe side.
    fn bytes(&self) -> u64 {
        let states = self.states.lock();
        let newest = states.pending.back().or(states.committed.as_ref());
        let of = |state: &State| state.rooms.len() * 96 + state.members.len() * 32 + state.marks.places() * 2;
        4_096 + newest.map_or(0, |(_, state)| of(state)) as u64 * 2
    }
}

impl States {
    fn come_to(&mut self, number: u64) -> Option<Arc<State>> {
        if let Some((committed, state)) = &self.committed
            && *committed == number
        {
            return Some(state.clone());
        }
        let at = self.pending.iter().position(|(pending, _)| *pending == number)?;
        let found = self.pending.remove(at)?;
        self.pending.clear();
        let state = found.1.clone();
        self.committed = Some(found);
        Some(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        Key { user_id: "@a:x".to_owned(), device_id: "D".to_owned(), conn_id: "c".to_owned() }
    }

    fn at(version: u64) -> Arc<State> {
        Arc::new(State { version: Pos(version), ..State::default() })
    }

    fn resumed(connections: &Connections, number: u64) -> Option<u64> {
        connections.resume(&key(), number).map(|(_, state)| state.version.0)
    }

    #[test]
    fn pitfall_040_an_answer_counts_when_the_client_comes_back_with_it() {
        let connections = Connections::new(1 << 20);
        let connection = connections.begin(key());
        let one = connections.put(&key(), &connection, at(1));
        assert_eq!(resumed(&connections, one), Some(1));
        // Two attempts from the same position: the client may have got either.
        let two = connections.put(&key(), &connection, at(2));
        let three = connections.put(&key(), &connection, at(3));
        assert_eq!(resumed(&connections, one), Some(1));
        assert_eq!(resumed(&connections, three), Some(3));
        assert_eq!((resumed(&connections, one), resumed(&connections, two)), (None, None));
        assert_eq!(resumed(&connections, three), Some(3));
    }

    #[test]
    fn pitfall_040_positions_belong_to_one_connection() {
        let connections = Connections::new(1 << 20);
        let other = Key { conn_id: "d".to_owned(), ..key() };
        let number = connections.put(&key(), &connections.begin(key()), at(1));
        connections.put(&other, &connections.begin(other.clone()), at(2));
        assert!(connections.resume(&other, number).is_none());
        connections.begin(key());
        assert!(connections.resume(&key(), number).is_none());
    }

    #[test]
    fn memory_is_bounded() {
        let connections = Connections::new(1 << 20);
        for user in 0..10_000 {
            let key = Key { user_id: user.to_string(), ..key() };
            connections.put(&key, &connections.begin(key.clone()), at(1));
        }
        assert!(connections.known.len() <= 256);
    }
}
