//! What a client wants to see of a sync (spec: Filtering), compiled once and shared by all polls that use it.
//!
//! An empty list means nothing, an absent one everything, and what is excluded stays excluded whatever is included.
//! Not here: storing filters (`client/filter`), and history visibility.

use std::collections::HashSet;
use std::sync::Arc;

use quick_cache::Weighter;
use quick_cache::sync::Cache;
use ruma::UserId;
use ruma::api::client::filter::{
    EventFormat, Filter as PlainFilter, FilterDefinition, LazyLoadOptions, RoomEventFilter, RoomFilter, UrlFilter,
};
use serde::Deserialize;
use serde_json::Value;
use store::Read;

use crate::error::{Error, Result};
use crate::rooms::relations::RelatedBy;
use crate::schema;
use crate::stored::StoredEvent;

/// How many events of a timeline are sent when the filter says nothing.
pub const DEFAULT_LIMIT: usize = 10;
/// How many events of a timeline are sent at most.
pub const MAX_LIMIT: usize = 1000;

/// A whole filter.
#[derive(Debug)]
pub struct Filter {
    pub fields: Option<Fields>,
    /// Events as other servers get them.
    pub federation: bool,
    pub presence: Events,
    pub account_data: Events,
    pub rooms: Rooms,
    pub include_leave: bool,
    pub timeline: Events,
    pub state: Events,
    pub ephemeral: Events,
    pub room_account_data: Events,
    pub lazy: Lazy,
    /// Unread counts are wanted for each thread.
    pub thread_counts: bool,
}

/// Which member events are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lazy {
    All,
    /// Only those of the senders in the timeline; again and again if `redundant`.
    Senders {
        redundant: bool,
    },
}

/// Which rooms.
#[derive(Debug, Default)]
pub struct Rooms {
    only: Option<HashSet<String>>,
    not: HashSet<String>,
}

impl Rooms {
    pub fn take(&self, room_id: &str) -> bool {
        !self.not.contains(room_id) && self.only.as_ref().is_none_or(|only| only.contains(room_id))
    }

    fn take_all(&self) -> bool {
        self.only.is_none() && self.not.is_empty()
    }

    fn bytes(&self) -> usize {
        self.only.as_ref().map_or(0, set_bytes) + set_bytes(&self.not)
    }
}

/// What a set of texts takes in memory.
fn set_bytes(set: &HashSet<String>) -> usize {
    set.capacity() * (size_of::<String>() + 8) + set.iter().map(text_bytes).sum::<usize>()
}

fn list_bytes(list: &[String]) -> usize {
    list.iter().map(|text| size_of::<String>() + text_bytes(text)).sum()
}

/// On the heap, where short texts take some room, too.
fn text_bytes(text: &String) -> usize {
    16 + text.capacity()
}

/// Which events.
#[derive(Debug)]
pub struct Events {
    types: Option<Vec<String>>,
    not_types: Vec<String>,
    senders: Option<HashSet<String>>,
    not_senders: HashSet<String>,
    pub rooms: Rooms,
    url: Option<bool>,
    /// What has to relate to the events.
    pub related: RelatedBy,
    pub limit: Option<usize>,
    all: bool,
}

impl Events {
    /// Whether no event is left out, rooms aside.
    pub fn take_all(&self) -> bool {
        self.all
    }

    fn bytes(&self) -> usize {
        let types = self.types.as_deref().map_or(0, list_bytes) + list_bytes(&self.not_types);
        let senders = self.senders.as_ref().map_or(0, set_bytes) + set_bytes(&self.not_senders);
        types + senders + self.rooms.bytes() + self.related.bytes()
    }

    /// Whether the room and the event are wanted.
    pub fn take(&self, event: &StoredEvent) -> bool {
        self.all
            || self.take_parts(event.kind(), event.sender())
                && self.url.is_none_or(|wanted| wanted == event.contains_url())
    }

    /// For what has a type only, such as account data.
    pub fn take_kind(&self, kind: &str) -> bool {
        !self.not_types.iter().any(|pattern| glob(pattern, kind))
            && self.types.as_ref().is_none_or(|types| types.iter().any(|pattern| glob(pattern, kind)))
    }

    /// For what has a type and a sender only, such as presence.
    pub fn take_parts(&self, kind: &str, sender: &str) -> bool {
        self.take_kind(kind)
            && !self.not_senders.contains(sender)
            && self.senders.as_ref().is_none_or(|senders| senders.contains(sender))
    }
}

impl From<RoomEventFilter> for Events {
    fn from(filter: RoomEventFilter) -> Self {
        let url = filter.url_filter.map(|url| url == UrlFilter::EventsWithUrl);
        let rooms = Rooms { only: filter.rooms.map(strings), not: strings(filter.not_rooms) };
        let events = Events {
            types: filter.types,
            not_types: filter.not_types,
            senders: filter.senders.map(strings),
            not_senders: strings(filter.not_senders),
            rooms,
            url,
            related: RelatedBy::default(),
            limit: filter.limit.map(|limit| u64::from(limit) as usize),
            all: false,
        };
        events.finished()
    }
}

impl From<PlainFilter> for Events {
    fn from(filter: PlainFilter) -> Self {
        let events = Events {
            types: filter.types,
            not_types: filter.not_types,
            senders: filter.senders.map(strings),
            not_senders: strings(filter.not_senders),
            rooms: Rooms::default(),
            url: None,
            related: RelatedBy::default(),
            limit: filter.limit.map(|limit| u64::from(limit) as usize),
            all: false,
        };
        events.finished()
    }
}

impl Events {
    /// A room event filter as JSON. (What has to relate to events is not among what ruma reads of it.)
    pub fn parse(json: &[u8]) -> Result<(Self, LazyLoadOptions)> {
        let filter: RoomEventFilter = serde_json::from_slice(json)?;
        let lazy = filter.lazy_load_options;
        let related = serde_json::from_slice(json)?;
        Ok((Events { related, ..filter.into() }, lazy))
    }

    fn finished(mut self) -> Self {
        self.all = self.types.is_none()
            && self.not_types.is_empty()
            && self.senders.is_none()
            && self.not_senders.is_empty()
            && self.url.is_none();
        self
    }
}

impl From<FilterDefinition> for Filter {
    fn from(definition: FilterDefinition) -> Self {
        let room: RoomFilter = definition.room;
        let lazy = match room.state.lazy_load_options {
            LazyLoadOptions::Enabled { include_redundant_members } => {
                Lazy::Senders { redundant: include_redundant_members }
            }
            LazyLoadOptions::Disabled => Lazy::All,
        };
        Filter {
            fields: definition.event_fields.map(|fields| Fields::new(&fields)),
            federation: definition.event_format == EventFormat::Federation,
            presence: definition.presence.into(),
            account_data: definition.account_data.into(),
            rooms: Rooms { only: room.rooms.map(strings), not: strings(room.not_rooms) },
            include_leave: room.include_leave,
            thread_counts: room.timeline.unread_thread_notifications,
            timeline: room.timeline.into(),
            state: room.state.into(),
            ephemeral: room.ephemeral.into(),
            room_account_data: room.account_data.into(),
            lazy,
        }
    }
}

impl Default for Filter {
    fn default() -> Self {
        FilterDefinition::default().into()
    }
}

impl Filter {
    /// How many events of a timeline are sent.
    pub fn timeline_limit(&self) -> usize {
        self.timeline.limit.unwrap_or(DEFAULT_LIMIT).min(MAX_LIMIT)
    }

    /// What it takes in memory.
    fn bytes(&self) -> usize {
        let events =
            [&self.presence, &self.account_data, &self.timeline, &self.state, &self.ephemeral, &self.room_account_data];
        let fields = self.fields.as_ref().map_or(0, Fields::bytes);
        size_of::<Self>() + events.map(Events::bytes).iter().sum::<usize>() + self.rooms.bytes() + fields
    }

    /// Whether every room is wanted.
    pub fn takes_all_rooms(&self) -> bool {
        self.rooms.take_all()
    }
}

fn strings<T: ToString>(items: impl IntoIterator<Item = T>) -> HashSet<String> {
    items.into_iter().map(|item| item.to_string()).collect()
}

/// Whether a text is what a pattern says, in which `*` stands for anything.
pub(crate) fn glob(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(first) else { return false };
    let mut parts = rest.split('*').peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return text.ends_with(part);
        }
        let Some(at) = text.find(part) else { return false };
        text = text.get(at + part.len()..).unwrap_or_default();
    }
    true
}

/// Which fields of events are wanted, as paths.
#[derive(Debug)]
pub struct Fields(Vec<Vec<String>>);

impl Fields {
    fn new(fields: &[String]) -> Self {
        Fields(fields.iter().map(|field| split_path(field)).collect())
    }

    fn bytes(&self) -> usize {
        self.0.iter().map(|path| size_of::<Vec<String>>() + list_bytes(path)).sum()
    }

    /// What is wanted of an event.
    pub fn project(&self, event: &[u8]) -> Vec<u8> {
        let Ok(event) = serde_json::from_slice::<Value>(event) else { return b"{}".to_vec() };
        let mut picked = Value::Object(serde_json::Map::new());
        for path in &self.0 {
            pick(&event, &mut picked, path);
        }
        serde_json::to_vec(&picked).unwrap_or_else(|_| b"{}".to_vec())
    }
}

/// Copies what is under a path, with the objects around it.
fn pick(from: &Value, to: &mut Value, path: &[String]) {
    let Some((name, rest)) = path.split_first() else { return };
    let (Some(value), Some(object)) = (from.get(name), to.as_object_mut()) else { return };
    if rest.is_empty() {
        object.insert(name.clone(), value.clone());
        return;
    }
    let mut inner = object.remove(name).unwrap_or_else(|| Value::Object(serde_json::Map::new()));
    pick(value, &mut inner, rest);
    if inner.as_object().is_none_or(|inner| !inner.is_empty()) {
        object.insert(name.clone(), inner);
    }
}

/// Dots separate names; a backslash takes the meaning from a dot or a backslash.
fn split_path(path: &str) -> Vec<String> {
    let mut names = vec![String::new()];
    let mut chars = path.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '.' => names.push(String::new()),
            '\\' if matches!(chars.peek(), Some('.' | '\\')) => {
                let escaped = chars.next();
                names.last_mut().into_iter().for_each(|name| name.extend(escaped));
            }
            _ => names.last_mut().into_iter().for_each(|name| name.push(char)),
        }
    }
    names
}

/// The filters that were used lately, and the one of requests without any.
pub struct Filters {
    everything: Arc<Filter>,
    known: Cache<String, Known, KnownWeight>,
}

/// A filter, and what it takes in memory.
#[derive(Clone)]
struct Known {
    filter: Arc<Filter>,
    bytes: usize,
}

#[derive(Clone)]
struct KnownWeight;
impl Weighter<String, Known> for KnownWeight {
    fn weight(&self, key: &String, known: &Known) -> u64 {
        (key.capacity() + known.bytes) as u64
    }
}

impl Filters {
    /// In about so much memory.
    pub fn new(bytes: u64) -> Self {
        let known = Cache::with_weighter((bytes / 4_096) as usize, bytes, KnownWeight);
        Filters { everything: Arc::default(), known }
    }

    /// The filter a request names: nothing, JSON, or the ID of a stored one.
    pub fn find(&self, read: &impl Read, user_id: &UserId, named: Option<&str>) -> Result<Arc<Filter>> {
        let Some(named) = named.filter(|named| !named.is_empty()) else { return Ok(self.everything.clone()) };
        // Neither JSON nor what is stored under an ID ever changes its meaning.
        let inline = named.starts_with('{');
        let key = if inline { named.to_owned() } else { format!("{user_id} {named}") };
        if let Some(known) = self.known.get(&key) {
            return Ok(known.filter);
        }
        let filter = Arc::new(if inline { parse(named.as_bytes())? } else { stored(read, user_id, named)? });
        if key.len() <= 4096 {
            self.known.insert(key, Known { bytes: filter.bytes(), filter: filter.clone() });
        }
        Ok(filter)
    }
}

fn stored(read: &impl Read, user_id: &UserId, id: &str) -> Result<Filter> {
    let unknown = || Error::invalid_param("There is no such filter");
    let id: u64 = id.parse().map_err(|_| unknown())?;
    let json = read.get(&schema::FILTERS, (user_id.as_str(), id))?.ok_or_else(unknown)?;
    parse(&json)
}

/// A whole filter as JSON.
pub(crate) fn parse(json: &[u8]) -> Result<Filter> {
    /// What ruma does not read.
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct More {
        room: MoreOfRooms,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct MoreOfRooms {
        timeline: RelatedBy,
    }
    let definition: FilterDefinition = serde_json::from_slice(json)?;
    let mut filter = Filter::from(definition);
    filter.timeline.related = serde_json::from_slice::<More>(json)?.room.timeline;
    Ok(filter)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn filter(json: Value) -> Filter {
        parse(json.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn pitfall_028_types_with_wildcards() {
        assert!(glob("m.room.message", "m.room.message"));
        assert!(!glob("m.room.message", "m.room.messages"));
        assert!(glob("m.room.*", "m.room.message"));
        assert!(glob("*", ""));
        assert!(glob("*.b*c", "a.b.b.c"));
        assert!(!glob("a*b*c", "a-c-b"));
        assert!(!glob("aa*a", "aa"));
        let events =
            filter(json!({"room": {"timeline": {"types": ["m.*", "x"], "not_types": ["m.room.m*"]}}})).timeline;
        assert!(events.take_kind("m.sticker") && events.take_kind("x"));
        assert!(!events.take_kind("m.room.message") && !events.take_kind("xx"));
    }

    #[test]
    fn pitfall_028_not_wins_and_empty_is_nothing() {
        let events = filter(json!({"presence": {"senders": ["@a:x", "@b:x"], "not_senders": ["@b:x"]}})).presence;
        assert!(events.take_parts("m.presence", "@a:x"));
        assert!(!events.take_parts("m.presence", "@b:x") && !events.take_parts("m.presence", "@c:x"));
        assert!(!filter(json!({"account_data": {"types": []}})).account_data.take_kind("m.tag"));
        let rooms = filter(json!({"room": {"rooms": ["!a:x"], "not_rooms": ["!a:x"]}})).rooms;
        assert!(!rooms.take("!a:x") && !rooms.take("!b:x"));
        assert!(!filter(json!({"room": {"rooms": []}})).rooms.take("!a:x"));
        assert!(Filter::default().rooms.take("!a:x") && Filter::default().timeline.take_all());
    }

    #[tokio::test]
    async fn filters_are_remembered_by_what_they_take_in_memory() {
        let server = crate::testing::Server::default();
        let snapshot = server.app.store.snapshot();
        let (filters, alice) = (Filters::new(1 << 20), ruma::user_id!("@alice:hs.test"));
        let names: Vec<String> = (0..500).map(|name| format!("{name}")).collect();
        for nr in 0..500 {
            let named = json!({"org.example.nr": nr, "presence": {"not_types": names}}).to_string();
            assert!(named.len() < 4_096, "one that is remembered");
            filters.find(&snapshot, alice, Some(&named)).unwrap();
        }
        let real = filters.known.len() * 500 * size_of::<String>();
        assert!(filters.known.len() > 10 && real <= 1 << 20, "{} are remembered", filters.known.len());
    }

    #[test]
    fn pitfall_028_limits_are_capped() {
        assert_eq!(Filter::default().timeline_limit(), DEFAULT_LIMIT);
        assert_eq!(filter(json!({"room": {"timeline": {"limit": 1_000_000}}})).timeline_limit(), MAX_LIMIT);
        assert_eq!(filter(json!({"room": {"timeline": {"limit": 0}}})).timeline_limit(), 0);
    }

    #[test]
    fn pitfall_028_fields_are_paths_with_escapes() {
        let fields =
            Fields::new(&["content.body".to_owned(), r"content.m\.mentions.user_ids".to_owned(), "no.no".to_owned()]);
        let event =
            json!({"type": "m", "content": {"body": "b", "x": 1, "m.mentions": {"user_ids": ["@a:x"], "room": true}}});
        let picked: Value = serde_json::from_slice(&fields.project(event.to_string().as_bytes())).unwrap();
        assert_eq!(picked, json!({"content": {"body": "b", "m.mentions": {"user_ids": ["@a:x"]}}}));
        assert_eq!(split_path(r"a\\.b"), [r"a\", "b"]);
        assert_eq!(split_path(r"a\x"), [r"a\x"]);
    }
}
