//! Connections: what each client was told, by the position it comes back with.
//!
//! A connection keeps the state the client is known to have and those of the answers it may have got since. Only when
//! the client comes back with the position of an answer does that answer count; until then any number of retries, with
//! any request, start from the same state. States share what they have in common. All of it is in memory, weighed with
//! the requests it came from, and whoever is not remembered starts anew. A device has a few connections: one more takes
//! the place of the one that was not used for the longest time.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hashbrown::HashSet;
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

/// So many connections of one device are remembered: clients have two or three.
const MAX_OF_DEVICE: usize = 16;

/// All connections.
pub struct Connections {
    known: Cache<Device, Weighed, Weight>,
    numbers: AtomicU64,
}

/// A device, and the client's name for the connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pub device: Device,
    pub conn_id: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Device {
    pub user_id: String,
    pub device_id: String,
}

/// The connections of a device with what they were weighed with: the cache wants that to stay.
#[derive(Clone)]
struct Weighed {
    device: Arc<OfDevice>,
    bytes: u64,
}

/// The connections of a device, the one that was used last at the end.
#[derive(Default)]
struct OfDevice(Mutex<Vec<(String, Arc<Connection>)>>);

#[derive(Clone)]
struct Weight;
impl Weighter<Device, Weighed> for Weight {
    fn weight(&self, _: &Device, weighed: &Weighed) -> u64 {
        weighed.bytes
    }
}

/// One client's loop of requests.
#[derive(Default)]
pub struct Connection {
    states: Mutex<States>,
    /// What it was found to take in memory.
    bytes: AtomicU64,
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
    wishes: Wishes,
    /// Which rooms the client hears of.
    pub marks: Arc<Marks>,
    /// Member events that were sent because of lazy loading.
    pub members: imbl::HashSet<(RoomNr, Pos)>,
    /// The rooms in which the client believes somebody is typing.
    pub typing: imbl::OrdSet<RoomNr>,
}

/// The different wishes of the rooms of a state, to weigh them.
#[derive(Clone, Default)]
struct Wishes {
    /// The rooms they were gathered from.
    of: imbl::HashMap<RoomNr, Sent>,
    different: Arc<[Arc<RoomConfig>]>,
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

impl State {
    /// Gathers the wishes of rooms, if they are others than before.
    fn gather_wishes(&mut self) {
        if self.rooms.ptr_eq(&self.wishes.of) {
            return;
        }
        let mut seen = HashSet::new();
        let different = self.rooms.values().map(|sent| &sent.config).filter(|wish| seen.insert(Arc::as_ptr(wish)));
        self.wishes = Wishes { different: different.cloned().collect(), of: self.rooms.clone() };
    }
}

impl Connections {
    /// In about so much memory.
    pub fn new(bytes: u64) -> Self {
        Connections {
            known: Cache::with_weighter((bytes / 16_384) as usize, bytes, Weight),
            numbers: AtomicU64::new(1),
        }
    }

    /// A client begins anew: what it was told before is forgotten.
    pub fn begin(&self, key: &Key) -> Arc<Connection> {
        let fresh = || Ok::<_, Infallible>(Weighed { device: Arc::default(), bytes: BASE_BYTES });
        let device = match self.known.get_or_insert_with(&key.device, fresh) {
            Ok(known) => known.device,
            Err(never) => match never {},
        };
        let connection = Arc::new(Connection { bytes: AtomicU64::new(BASE_BYTES), ..Connection::default() });
        {
            let mut all = device.0.lock();
            all.retain(|(conn_id, _)| *conn_id != key.conn_id);
            if all.len() >= MAX_OF_DEVICE {
                all.remove(0);
            }
            all.push((key.conn_id.clone(), connection.clone()));
        }
        self.weigh(&key.device);
        connection
    }

    /// The state of a client that comes back with the number of an answer. What went before is forgotten.
    pub fn resume(&self, key: &Key, number: u64) -> Option<(Arc<Connection>, Arc<State>)> {
        let device = self.known.get(&key.device)?.device;
        let mut all = device.0.lock();
        let at = all.iter().position(|(conn_id, _)| *conn_id == key.conn_id)?;
        let connection = all.get(at)?.1.clone();
        let state = connection.states.lock().come_to(number)?;
        let last = all.len();
        all.get_mut(at..last)?.rotate_left(1);
        Some((connection, state))
    }

    /// An answer goes out. Returns its number.
    pub fn put(&self, key: &Key, connection: &Arc<Connection>, mut state: State) -> u64 {
        state.gather_wishes();
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        {
            let mut states = connection.states.lock();
            if states.pending.len() >= MAX_PENDING {
                states.pending.pop_front();
            }
            states.pending.push_back((number, Arc::new(state)));
            connection.bytes.store(states.bytes(), Ordering::Relaxed);
        }
        self.weigh(&key.device);
        number
    }

    /// Weighs the connections of a device again, if they grew or shrank much.
    fn weigh(&self, key: &Device) {
        let Some(known) = self.known.peek(key) else { return };
        let bytes = known.device.0.lock().iter().map(|(_, connection)| connection.bytes.load(Ordering::Relaxed)).sum();
        if known.bytes.abs_diff(bytes) > known.bytes / 4 {
            self.known.insert(key.clone(), Weighed { device: known.device, bytes });
        }
    }
}

/// What a connection takes at least.
const BASE_BYTES: u64 = 4_096;

impl States {
    /// A rough guess, on the safe side. What states have in common counts once.
    fn bytes(&self) -> u64 {
        let newest = self.pending.back().or(self.committed.as_ref());
        let of = |state: &State| state.rooms.len() * 96 + state.members.len() * 32 + state.marks.places() * 2;
        let mut bytes = newest.map_or(0, |(_, state)| of(state)) * 2;
        let (mut configs, mut wishes) = (HashSet::new(), HashSet::new());
        for (_, state) in self.committed.iter().chain(&self.pending) {
            let config = state.config.iter().filter(|config| configs.insert(Arc::as_ptr(config)));
            for config in config {
                bytes += config.bytes();
                bytes += new_bytes(&mut wishes, config.wishes());
            }
            bytes += new_bytes(&mut wishes, state.marks.table.iter().map(|way| &way.config));
            bytes += new_bytes(&mut wishes, state.wishes.different.iter());
        }
        BASE_BYTES + bytes as u64
    }

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

/// What those of the wishes take in memory that were not seen yet.
fn new_bytes<'w>(seen: &mut HashSet<*const RoomConfig>, wishes: impl Iterator<Item = &'w Arc<RoomConfig>>) -> usize {
    wishes.filter(|wish| seen.insert(Arc::as_ptr(wish))).map(|wish| wish.bytes()).sum()
}

#[cfg(test)]
mod tests {
    use super::super::config::{List, Required};
    use super::*;

    fn key() -> Key {
        let device = Device { user_id: "@a:x".to_owned(), device_id: "D".to_owned() };
        Key { device, conn_id: "c".to_owned() }
    }

    fn named(conn_id: &str) -> Key {
        Key { conn_id: conn_id.to_owned(), ..key() }
    }

    fn at(version: u64) -> State {
        State { version: Pos(version), ..State::default() }
    }

    fn resumed(connections: &Connections, number: u64) -> Option<u64> {
        connections.resume(&key(), number).map(|(_, state)| state.version.0)
    }

    #[test]
    fn pitfall_040_an_answer_counts_when_the_client_comes_back_with_it() {
        let connections = Connections::new(1 << 20);
        let connection = connections.begin(&key());
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
        let other = named("d");
        let number = connections.put(&key(), &connections.begin(&key()), at(1));
        connections.put(&other, &connections.begin(&other), at(2));
        assert!(connections.resume(&other, number).is_none());
        connections.begin(&key());
        assert!(connections.resume(&key(), number).is_none());
    }

    #[test]
    fn pitfall_040_the_connection_that_was_not_used_for_longest_makes_room() {
        let connections = Connections::new(1 << 20);
        let open = |conn_id: &str| connections.put(&named(conn_id), &connections.begin(&named(conn_id)), at(1));
        let numbers: Vec<(String, u64)> =
            (0..MAX_OF_DEVICE).map(|nr| nr.to_string()).map(|name| (name.clone(), open(&name))).collect();
        let is_known = |(name, number): &(String, u64)| connections.resume(&named(name), *number).is_some();
        assert!(is_known(&numbers[0]), "and it is the newest again");
        open("one more");
        assert!(!is_known(&numbers[1]));
        assert!(is_known(&numbers[0]) && numbers[2..].iter().all(is_known));
        // Beginning anew takes nobody's place.
        open("one more");
        assert!(is_known(&numbers[0]) && numbers[2..].iter().all(is_known));
    }

    #[test]
    fn memory_is_bounded() {
        let connections = Connections::new(1 << 20);
        for user in 0..10_000 {
            let device = Device { user_id: user.to_string(), ..key().device };
            let key = Key { device, ..key() };
            connections.put(&key, &connections.begin(&key), at(1));
        }
        assert!(connections.known.len() <= 256);
    }

    /// With so many patterns of state.
    fn wish(patterns: usize) -> Arc<RoomConfig> {
        let keys: Vec<String> = (0..patterns).map(|nr| format!("a state key of some length {nr}")).collect();
        let pairs = keys.iter().map(|key| ("m.type", key.as_str()));
        Arc::new(RoomConfig { timeline_limit: 1, required: Required::from_pairs(pairs, "@a:x") })
    }

    #[test]
    fn pitfall_040_a_request_weighs_what_it_takes() {
        let connections = Connections::new(1 << 20);
        let count = 1_000;
        for nr in 0..count {
            let key = Key { device: Device { user_id: nr.to_string(), ..key().device }, ..key() };
            let list = List { room: wish(200), ..List::default() };
            let config = Config { lists: [("all".to_owned(), list)].into(), ..Config::default() };
            let state = State { config: Some(Arc::new(config)), ..at(1) };
            connections.put(&key, &connections.begin(&key), state);
        }
        // Each has 200 texts of some thirty bytes at least.
        let real = connections.known.len() * 200 * 30;
        assert!(real <= 1 << 20, "{} connections are kept", connections.known.len());
    }

    #[test]
    fn pitfall_040_what_rooms_were_sent_with_counts_once_and_as_long_as_it_is_kept() {
        let connections = Connections::new(64 << 20);
        let connection = connections.begin(&key());
        let sent = |config: &Arc<RoomConfig>| Sent {
            up_to: None,
            config: config.clone(),
            scopes: Scopes::default(),
            is_dm: false,
        };
        let shared = wish(200);
        let mut state = at(1);
        state.rooms = (0..100).map(|room| (room, sent(&shared))).collect();
        connections.put(&key(), &connection, state.clone());
        let once = connection.bytes.load(Ordering::Relaxed);
        state.rooms = (0..100).map(|room| (room, sent(&wish(200)))).collect();
        connections.put(&key(), &connection, state.clone());
        let each = connection.bytes.load(Ordering::Relaxed);
        assert!(once < 2 * shared.bytes() as u64 + 100_000 && each > 100 * shared.bytes() as u64, "{once} {each}");
        state.rooms = (0..100).map(|room| (room, sent(&shared))).collect();
        for _ in 0..MAX_PENDING {
            connections.put(&key(), &connection, state.clone());
        }
        assert_eq!(connection.bytes.load(Ordering::Relaxed), once);
    }
}
