//! What an event is: the numbers we give it, its fields, its format per room version, and how its
//! JSON is divided for storage. Not here: whether it may enter a room (`auth`, `admit`), and how
//! we make our own (`build`).

use std::{collections::BTreeMap, fmt};

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId,
    OwnedUserId, RoomId, RoomVersionId, UInt, UserId,
    events::{StateEventType, TimelineEventType},
    room_version_rules::{RoomIdFormatVersion, RoomVersionRules},
    signatures::reference_hash,
    state_res::{Event, check_pdu_format},
};
use serde::Deserialize;
use serde_json::value::{RawValue, to_raw_value};

/// The largest event, in bytes of canonical JSON with signatures.
pub const MAX_EVENT_BYTES: usize = 65_536;
/// The largest `type`, `state_key`, `sender`, `room_id` and event id, in bytes.
pub const MAX_FIELD_BYTES: usize = 255;
/// The most `prev_events` an event may name.
pub const MAX_PREV_EVENTS: usize = 20;
/// The most `auth_events` an event may name.
pub const MAX_AUTH_EVENTS: usize = 10;
/// The largest `depth`: what canonical JSON can hold.
pub const MAX_DEPTH: u64 = (1 << 53) - 1;

/// The number the store gave an event.
///
/// With the top bit set it is *pending*: an offset from the base of the commit that is being
/// put together, to be replaced once the base is known. Auth events are always stored before the
/// events that cite them, so along auth edges numbers only go down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventNr(pub u64);

impl EventNr {
    const PENDING: u64 = 1 << 63;

    /// The number `offset` places after the base of the commit in the making.
    pub const fn pending(offset: u64) -> Self {
        Self(Self::PENDING | offset)
    }

    /// The offset from the base of the commit, if this number is still pending.
    pub const fn pending_offset(self) -> Option<u64> {
        if self.0 & Self::PENDING == 0 { None } else { Some(self.0 & !Self::PENDING) }
    }

    /// The real number, given the base of the commit.
    pub const fn resolve(self, base: u64) -> Self {
        match self.pending_offset() {
            Some(offset) => Self(base + offset),
            None => self,
        }
    }
}

impl fmt::Display for EventNr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pending_offset() {
            Some(offset) => write!(f, "+{offset}"),
            None => write!(f, "{}", self.0),
        }
    }
}

/// The type and state key of a piece of state.
pub type StateKey = (StateEventType, String);

/// The rules of a room version, if it is one we take part in (6 to 12).
pub fn rules(version: &RoomVersionId) -> Option<&'static RoomVersionRules> {
    static V6: RoomVersionRules = RoomVersionRules::V6;
    static V7: RoomVersionRules = RoomVersionRules::V7;
    static V8: RoomVersionRules = RoomVersionRules::V8;
    static V9: RoomVersionRules = RoomVersionRules::V9;
    static V10: RoomVersionRules = RoomVersionRules::V10;
    static V11: RoomVersionRules = RoomVersionRules::V11;
    static V12: RoomVersionRules = RoomVersionRules::V12;
    match version {
        RoomVersionId::V6 => Some(&V6),
        RoomVersionId::V7 => Some(&V7),
        RoomVersionId::V8 => Some(&V8),
        RoomVersionId::V9 => Some(&V9),
        RoomVersionId::V10 => Some(&V10),
        RoomVersionId::V11 => Some(&V11),
        RoomVersionId::V12 => Some(&V12),
        _ => None,
    }
}

/// Every room version we take part in, oldest first.
pub const SUPPORTED_VERSIONS: [RoomVersionId; 7] = [
    RoomVersionId::V6,
    RoomVersionId::V7,
    RoomVersionId::V8,
    RoomVersionId::V9,
    RoomVersionId::V10,
    RoomVersionId::V11,
    RoomVersionId::V12,
];

/// Whether the room id is made from the create event, which then carries no room id itself.
pub fn room_id_is_create_hash(rules: &RoomVersionRules) -> bool {
    rules.room_id_format == RoomIdFormatVersion::V2
}

/// The id of the room that a create event of such a version founds.
pub fn room_id_of_create(create_id: &EventId) -> Option<OwnedRoomId> {
    let hash = create_id.as_str().strip_prefix('$')?;
    RoomId::parse(format!("!{hash}")).ok()
}

/// The id of the create event of a room whose id is made from it.
pub fn create_id_of_room(room_id: &RoomId) -> Option<OwnedEventId> {
    let hash = room_id.as_str().strip_prefix('!')?;
    EventId::parse(format!("${hash}")).ok()
}

/// Why bytes are not an event of the room version. Such events are dropped, not rejected.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    #[error("not canonical JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the event has {0} bytes, more than {MAX_EVENT_BYTES}")]
    TooLarge(usize),
    #[error("{0}")]
    Format(String),
    #[error("`{field}` is missing or malformed")]
    Field { field: &'static str },
}

/// An event, parsed as far as the rules look into it.
#[derive(Clone, Debug)]
pub struct Pdu {
    pub event_id: OwnedEventId,
    /// The room it is in, also for create events that do not carry it.
    pub room_id: OwnedRoomId,
    pub sender: OwnedUserId,
    pub kind: TimelineEventType,
    pub state_key: Option<String>,
    pub content: Box<RawValue>,
    pub origin_server_ts: MilliSecondsSinceUnixEpoch,
    pub prev_events: Vec<OwnedEventId>,
    pub auth_events: Vec<OwnedEventId>,
    pub depth: u64,
    /// The event this one redacts, wherever the room version puts it.
    pub redacts: Option<OwnedEventId>,
    /// Refused by the authorization rules when it was received. Known from storage, never parsed.
    pub rejected: bool,
    /// Whether the event carries its room id (create events of version 12 do not).
    has_room_id: bool,
}

impl Pdu {
    /// Parse canonical (or any) JSON of one event and compute its id.
    pub fn parse(bytes: &[u8], rules: &RoomVersionRules) -> Result<Self, FormatError> {
        Ok(Parsed::from_bytes(bytes, rules)?.pdu)
    }

    /// Put an event together from its stored parts, without hashing anything.
    pub fn from_storage(
        event_id: OwnedEventId,
        room_id: OwnedRoomId,
        parts: &Parts,
        rejected: bool,
        rules: &RoomVersionRules,
    ) -> Result<Self, FormatError> {
        let client: StoredClient = serde_json::from_slice(&wrapped(&parts.client))?;
        let federation: StoredFederation = serde_json::from_slice(&wrapped(&parts.federation))?;
        let has_room_id = !(room_id_is_create_hash(rules) && client.kind == TimelineEventType::RoomCreate);
        let redacts = if client.kind == TimelineEventType::RoomRedaction {
            redacts_of(client.redacts.as_ref(), &client.content, rules)
        } else {
            None
        };
        Ok(Self {
            event_id,
            room_id,
            sender: client.sender,
            kind: client.kind,
            state_key: client.state_key,
            content: client.content,
            origin_server_ts: client.origin_server_ts,
            prev_events: federation.prev_events,
            auth_events: federation.auth_events,
            depth: federation.depth,
            redacts,
            rejected,
            has_room_id,
        })
    }

    /// The key under which this event is state, if it is a state event.
    pub fn state_pair(&self) -> Option<StateKey> {
        self.state_key.as_ref().map(|key| (self.kind.to_string().into(), key.clone()))
    }

    /// Whether this is a state event of the given type and key.
    pub fn is_state(&self, kind: &TimelineEventType, state_key: &str) -> bool {
        self.kind == *kind && self.state_key.as_deref() == Some(state_key)
    }

    /// One field of the content, if it is there and has the type asked for.
    pub fn content_field<'a, T: Deserialize<'a>>(&'a self, field: &str) -> Option<T> {
        content_field(&self.content, field)
    }
}

/// One field of a content, if it is there and has the type asked for.
pub fn content_field<'a, T: Deserialize<'a>>(content: &'a RawValue, field: &str) -> Option<T> {
    let fields: BTreeMap<std::borrow::Cow<'a, str>, &'a RawValue> = serde_json::from_str(content.get()).ok()?;
    serde_json::from_str(fields.get(field)?.get()).ok()
}

impl Event for Pdu {
    type Id = OwnedEventId;

    fn event_id(&self) -> &Self::Id {
        &self.event_id
    }

    fn room_id(&self) -> Option<&RoomId> {
        self.has_room_id.then_some(&*self.room_id)
    }

    fn sender(&self) -> &UserId {
        &self.sender
    }

    fn origin_server_ts(&self) -> MilliSecondsSinceUnixEpoch {
        self.origin_server_ts
    }

    fn event_type(&self) -> &TimelineEventType {
        &self.kind
    }

    fn content(&self) -> &RawValue {
        &self.content
    }

    fn state_key(&self) -> Option<&str> {
        self.state_key.as_deref()
    }

    fn prev_events(&self) -> Box<dyn DoubleEndedIterator<Item = &Self::Id> + '_> {
        Box::new(self.prev_events.iter())
    }

    fn auth_events(&self) -> Box<dyn DoubleEndedIterator<Item = &Self::Id> + '_> {
        Box::new(self.auth_events.iter())
    }

    fn redacts(&self) -> Option<&Self::Id> {
        self.redacts.as_ref()
    }

    fn rejected(&self) -> bool {
        self.rejected
    }
}

/// An event together with the JSON object it was parsed from, without `unsigned`.
#[derive(Clone, Debug)]
pub struct Parsed {
    pub pdu: Pdu,
    pub object: CanonicalJsonObject,
}

impl Parsed {
    /// Parse one event as another server sent it.
    pub fn from_bytes(bytes: &[u8], rules: &RoomVersionRules) -> Result<Self, FormatError> {
        Self::from_object(serde_json::from_slice(bytes)?, rules)
    }

    /// Check the format of an event and compute its id.
    ///
    /// `unsigned` is removed: nobody signed it, so nothing may depend on it, its size included.
    pub fn from_object(mut object: CanonicalJsonObject, rules: &RoomVersionRules) -> Result<Self, FormatError> {
        object.remove("unsigned");
        check_format(&object, rules)?;
        let hash = reference_hash(&object, rules).map_err(|error| FormatError::Format(error.to_string()))?;
        let event_id = EventId::parse(format!("${hash}")).map_err(|_| FormatError::Field { field: "event_id" })?;
        let pdu = pdu_from_object(event_id, &object, rules)?;
        Ok(Self { pdu, object })
    }

    /// The canonical JSON, as it goes to other servers.
    pub fn json(&self) -> Vec<u8> {
        canonical(&self.object)
    }

    /// The JSON divided for storage.
    pub fn parts(&self, rules: &RoomVersionRules) -> Parts {
        split_for_storage(&self.object, rules)
    }
}

/// The canonical JSON of an object.
pub fn canonical(object: &CanonicalJsonObject) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1024);
    write_json(&mut bytes, object);
    bytes
}

fn check_format(object: &CanonicalJsonObject, rules: &RoomVersionRules) -> Result<(), FormatError> {
    let size = canonical(object).len();
    if size > MAX_EVENT_BYTES {
        return Err(FormatError::TooLarge(size));
    }
    let checked = if size == MAX_EVENT_BYTES {
        // The library's own limit is one byte too low; what it checks besides does not look at
        // the signatures, so an event of exactly the limit is checked without them.
        let mut smaller = object.clone();
        smaller.remove("signatures");
        check_pdu_format(&smaller, &rules.event_format)
    } else {
        check_pdu_format(object, &rules.event_format)
    };
    checked.map_err(FormatError::Format)
}

fn pdu_from_object(
    event_id: OwnedEventId,
    object: &CanonicalJsonObject,
    rules: &RoomVersionRules,
) -> Result<Pdu, FormatError> {
    let kind: TimelineEventType = string(object, "type")?.into();
    let is_create = kind == TimelineEventType::RoomCreate;
    let has_room_id = object.contains_key("room_id");
    let room_id = if is_create && room_id_is_create_hash(rules) {
        // Its hash would have to contain itself: no room can have such a create event.
        if has_room_id {
            return Err(FormatError::Field { field: "room_id" });
        }
        room_id_of_create(&event_id).ok_or(FormatError::Field { field: "event_id" })?
    } else {
        RoomId::parse(string(object, "room_id")?).map_err(|_| FormatError::Field { field: "room_id" })?
    };
    let content_object =
        object.get("content").and_then(CanonicalJsonValue::as_object).ok_or(FormatError::Field { field: "content" })?;
    let redacts = if kind == TimelineEventType::RoomRedaction {
        let holder = if rules.redaction.content_field_redacts { content_object } else { object };
        holder.get("redacts").and_then(CanonicalJsonValue::as_str).and_then(|id| EventId::parse(id).ok())
    } else {
        None
    };
    Ok(Pdu {
        room_id,
        sender: UserId::parse(string(object, "sender")?).map_err(|_| FormatError::Field { field: "sender" })?,
        state_key: object.get("state_key").and_then(CanonicalJsonValue::as_str).map(str::to_owned),
        content: to_raw_value(content_object)?,
        origin_server_ts: MilliSecondsSinceUnixEpoch(unsigned_integer(object, "origin_server_ts")?),
        prev_events: event_ids(object, "prev_events")?,
        auth_events: event_ids(object, "auth_events")?,
        depth: unsigned_integer(object, "depth")?.into(),
        redacts,
        rejected: false,
        has_room_id,
        event_id,
        kind,
    })
}

fn string<'a>(object: &'a CanonicalJsonObject, field: &'static str) -> Result<&'a str, FormatError> {
    object.get(field).and_then(CanonicalJsonValue::as_str).ok_or(FormatError::Field { field })
}

fn unsigned_integer(object: &CanonicalJsonObject, field: &'static str) -> Result<UInt, FormatError> {
    object
        .get(field)
        .and_then(CanonicalJsonValue::as_integer)
        .and_then(|value| UInt::try_from(i64::from(value)).ok())
        .ok_or(FormatError::Field { field })
}

fn event_ids(object: &CanonicalJsonObject, field: &'static str) -> Result<Vec<OwnedEventId>, FormatError> {
    let bad = || FormatError::Field { field };
    object
        .get(field)
        .and_then(CanonicalJsonValue::as_array)
        .ok_or_else(bad)?
        .iter()
        .map(|id| id.as_str().and_then(|id| EventId::parse(id).ok()).ok_or_else(bad))
        .collect()
}

/// The JSON of an event divided into what clients get and what only servers get.
///
/// Both are the members of a JSON object without its braces, in canonical order, so that they can
/// be spliced into a larger answer. `room_id` and `unsigned` are in neither.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// `"content":{..},"origin_server_ts":..,["redacts":..,]"sender":..,["state_key":..,]"type":..`
    pub client: Vec<u8>,
    /// `"auth_events":[..],"depth":..,"hashes":{..},"prev_events":[..],"signatures":{..}` and
    /// whatever else the sender put in.
    pub federation: Vec<u8>,
}

/// Divide an event for storage; [`join_from_storage`] is the inverse.
pub fn split_for_storage(object: &CanonicalJsonObject, rules: &RoomVersionRules) -> Parts {
    let redacts_is_ours = !rules.redaction.content_field_redacts
        && object.get("type").and_then(CanonicalJsonValue::as_str) == Some("m.room.redaction");
    let mut parts = Parts { client: Vec::with_capacity(512), federation: Vec::with_capacity(768) };
    for (name, value) in object {
        let part = match name.as_str() {
            "room_id" | "unsigned" => continue,
            "content" | "origin_server_ts" | "sender" | "state_key" | "type" => &mut parts.client,
            // Sticky events: clients read the duration at the top level.
            "sticky" | "msc4354_sticky" => &mut parts.client,
            "redacts" if redacts_is_ours => &mut parts.client,
            _ => &mut parts.federation,
        };
        push_member(part, name, value);
    }
    parts
}

/// The exact canonical JSON of an event from its stored parts.
pub fn join_from_storage(parts: &Parts, room_id: &RoomId, rules: &RoomVersionRules) -> Result<Vec<u8>, FormatError> {
    let client = wrapped(&parts.client);
    let federation = wrapped(&parts.federation);
    let mut members: BTreeMap<String, &RawValue> = serde_json::from_slice(&client)?;
    members.extend(serde_json::from_slice::<BTreeMap<String, &RawValue>>(&federation)?);
    let is_create = members.get("type").is_some_and(|kind| kind.get() == r#""m.room.create""#);
    let room_id = to_raw_value(room_id)?;
    if !(is_create && room_id_is_create_hash(rules)) {
        members.insert("room_id".to_owned(), &room_id);
    }
    Ok(serde_json::to_vec(&members)?)
}

/// The client part with `redacts` both at the top level and in the content, as clients of all ages
/// expect it. Other events than redactions come back as they are.
pub fn with_redacts_for_clients<'a>(client: &'a [u8], redacts: Option<&EventId>) -> std::borrow::Cow<'a, [u8]> {
    let Some(redacts) = redacts else { return client.into() };
    let Ok(mut object) = serde_json::from_slice::<CanonicalJsonObject>(&wrapped(client)) else {
        return client.into();
    };
    let value = CanonicalJsonValue::String(redacts.to_string());
    if let Some(CanonicalJsonValue::Object(content)) = object.get_mut("content") {
        content.insert("redacts".to_owned(), value.clone());
    }
    object.insert("redacts".to_owned(), value);
    let mut members = Vec::with_capacity(client.len() + 128);
    for (name, value) in &object {
        push_member(&mut members, name, value);
    }
    members.into()
}

fn push_member(part: &mut Vec<u8>, name: &str, value: &CanonicalJsonValue) {
    if !part.is_empty() {
        part.push(b',');
    }
    write_json(part, name);
    part.push(b':');
    write_json(part, value);
}

fn write_json(bytes: &mut Vec<u8>, value: &(impl serde::Serialize + ?Sized)) {
    let before = bytes.len();
    if serde_json::to_writer(&mut *bytes, value).is_err() {
        // Canonical JSON has string keys only and a Vec takes every write: this cannot happen,
        // and if it did, half a value would be worse than none.
        bytes.truncate(before);
    }
}

fn wrapped(members: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(members.len() + 2);
    bytes.push(b'{');
    bytes.extend_from_slice(members);
    bytes.push(b'}');
    bytes
}

#[derive(Deserialize)]
struct StoredClient {
    content: Box<RawValue>,
    origin_server_ts: MilliSecondsSinceUnixEpoch,
    #[serde(default)]
    redacts: Option<serde_json::Value>,
    sender: OwnedUserId,
    #[serde(default)]
    state_key: Option<String>,
    #[serde(rename = "type")]
    kind: TimelineEventType,
}

#[derive(Deserialize)]
struct StoredFederation {
    auth_events: Vec<OwnedEventId>,
    depth: u64,
    prev_events: Vec<OwnedEventId>,
}

fn redacts_of(
    top_level: Option<&serde_json::Value>,
    content: &RawValue,
    rules: &RoomVersionRules,
) -> Option<OwnedEventId> {
    let id: String = if rules.redaction.content_field_redacts {
        content_field(content, "redacts")?
    } else {
        top_level?.as_str()?.to_owned()
    };
    EventId::parse(id).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ruma::canonical_json::{CanonicalJsonObject, CanonicalJsonValue};
    use serde_json::json;

    use super::*;
    use crate::testing::{RULES_10, RULES_11, RULES_12, key_pair, object};

    fn pdu(size_of_body: usize) -> CanonicalJsonObject {
        object(json!({
            "auth_events": ["$a"], "content": {"body": "x".repeat(size_of_body)}, "depth": 4,
            "hashes": {"sha256": "abc"}, "origin_server_ts": 5, "prev_events": ["$b", "$c"],
            "room_id": "!r:a.test", "sender": "@u:a.test",
            "signatures": {"a.test": {"ed25519:1": "sig"}}, "type": "m.room.message",
        }))
    }

    #[test]
    fn pitfall_069_the_size_limit_is_65536_bytes_signatures_included() {
        let frame = canonical(&pdu(0)).len();
        let largest = pdu(MAX_EVENT_BYTES - frame);
        assert_eq!(canonical(&largest).len(), 65_536);
        assert!(Parsed::from_object(largest, RULES_11).is_ok());
        let larger = Parsed::from_object(pdu(MAX_EVENT_BYTES - frame + 1), RULES_11);
        assert!(matches!(larger, Err(FormatError::TooLarge(65_537))));
    }

    #[test]
    fn pitfall_069_fields_are_limited_in_bytes_not_characters() {
        for (field, fits, does_not) in [
            ("type", "t".repeat(255), "t".repeat(256)),
            ("state_key", "\u{e9}".repeat(127), "\u{e9}".repeat(128)),
            ("sender", format!("@{}:a.test", "u".repeat(247)), format!("@{}:a.test", "u".repeat(248))),
        ] {
            for (value, ok) in [(fits, true), (does_not, false)] {
                let mut object = pdu(0);
                object.insert(field.to_owned(), CanonicalJsonValue::String(value));
                assert_eq!(Parsed::from_object(object, RULES_11).is_ok(), ok, "{field}");
            }
        }
    }

    #[test]
    fn pitfall_091_the_lists_of_events_are_limited() {
        for (field, limit) in [("prev_events", MAX_PREV_EVENTS), ("auth_events", MAX_AUTH_EVENTS)] {
            for (count, ok) in [(limit, true), (limit + 1, false)] {
                let mut object = pdu(0);
                let ids = (0..count).map(|n| CanonicalJsonValue::String(format!("$e{n}")));
                object.insert(field.to_owned(), CanonicalJsonValue::Array(ids.collect()));
                assert_eq!(Parsed::from_object(object, RULES_11).is_ok(), ok, "{count} {field}");
            }
        }
    }

    #[test]
    fn malformed_events_are_no_events() {
        for (field, value) in [
            ("content", json!("text")),
            ("content", json!(null)),
            ("depth", json!(-1)),
            ("depth", json!("1")),
            ("origin_server_ts", json!(-1)),
            ("origin_server_ts", json!("1")),
            ("prev_events", json!([1])),
            ("prev_events", json!([["$a:b", {}]])),
            ("room_id", json!("r")),
            ("sender", json!("alice")),
            ("state_key", json!(1)),
            ("type", json!(null)),
        ] {
            let mut object = pdu(0);
            object.insert(field.to_owned(), value.clone().try_into().unwrap());
            assert!(Parsed::from_object(object, RULES_11).is_err(), "{field}: {value}");
        }
    }

    #[test]
    fn pitfall_099_numbers_are_integers_of_53_bits() {
        let with = |number: &str| {
            let json = String::from_utf8(canonical(&pdu(0))).unwrap();
            let json = json.replace(r#""body":"""#, &format!(r#""body":{number}"#));
            Pdu::parse(json.as_bytes(), RULES_11).is_ok()
        };
        assert!(with("9007199254740991"));
        assert!(with("-9007199254740991"));
        assert!(!with("9007199254740992"));
        assert!(!with("1.5"));
        assert!(!with("1e3"));
    }

    #[test]
    fn pitfall_099_of_duplicate_keys_the_last_one_counts() {
        let json = String::from_utf8(canonical(&pdu(0))).unwrap();
        let twice = json.replace(r#"{"body":""}"#, r#"{"body":"first","body":"last"}"#);
        let pdu = Pdu::parse(twice.as_bytes(), RULES_11).unwrap();
        assert_eq!(pdu.content.get(), r#"{"body":"last"}"#);
    }

    #[test]
    fn only_the_versions_we_know_have_rules() {
        for version in ["1", "2", "3", "4", "5", "13", "org.example"] {
            assert!(rules(&RoomVersionId::try_from(version).unwrap()).is_none(), "{version}");
        }
        for version in SUPPORTED_VERSIONS {
            assert!(rules(&version).is_some(), "{version}");
        }
    }

    #[test]
    fn pitfall_054_the_create_event_of_version_12_founds_its_room_id() {
        let mut create = pdu(0);
        create.remove("room_id");
        create.extend(object(json!({
            "type": "m.room.create", "state_key": "", "content": {"room_version": "12"},
            "auth_events": [], "prev_events": []
        })));
        let parsed = Parsed::from_object(create.clone(), RULES_12).unwrap();
        let hash = parsed.pdu.event_id.as_str().strip_prefix('$').unwrap();
        assert_eq!(parsed.pdu.room_id.as_str(), format!("!{hash}"));
        assert_eq!(Event::room_id(&parsed.pdu), None);
        assert_eq!(create_id_of_room(&parsed.pdu.room_id).unwrap(), parsed.pdu.event_id);

        let stored = parsed.parts(RULES_12);
        let joined = join_from_storage(&stored, &parsed.pdu.room_id, RULES_12).unwrap();
        assert_eq!(joined, parsed.json());
        create.extend(object(json!({"room_id": "!r:a.test"})));
        assert!(Parsed::from_object(create, RULES_12).is_err());
    }

    #[test]
    fn pitfall_066_clients_find_redacts_in_both_places() {
        let mut old = pdu(0);
        old.extend(object(json!({
            "type": "m.room.redaction", "redacts": "$x", "content": {"reason": "r", "redacts": "$no"}
        })));
        let mut new = pdu(0);
        new.extend(object(json!({"type": "m.room.redaction", "content": {"redacts": "$x"}, "redacts": "$no"})));
        for (object, rules) in [(old, RULES_10), (new, RULES_11)] {
            let parsed = Parsed::from_object(object, rules).unwrap();
            assert_eq!(parsed.pdu.redacts.as_deref(), Some(<&EventId>::try_from("$x").unwrap()));
            let parts = parsed.parts(rules);
            let client = with_redacts_for_clients(&parts.client, parsed.pdu.redacts.as_deref());
            let client: serde_json::Value = serde_json::from_slice(&wrapped(&client)).unwrap();
            assert_eq!(client["redacts"], "$x");
            assert_eq!(client["content"]["redacts"], "$x");
        }
    }

    #[test]
    fn the_client_part_is_what_clients_get() {
        let mut event = pdu(1);
        event.extend(object(json!({"state_key": "", "origin": "a.test", "unsigned": {"age": 1}})));
        let parts = split_for_storage(&event, RULES_11);
        assert_eq!(
            String::from_utf8(parts.client).unwrap(),
            r#""content":{"body":"x"},"origin_server_ts":5,"sender":"@u:a.test","state_key":"","type":"m.room.message""#
        );
        assert_eq!(
            String::from_utf8(parts.federation).unwrap(),
            r#""auth_events":["$a"],"depth":4,"hashes":{"sha256":"abc"},"origin":"a.test","prev_events":["$b","$c"],"signatures":{"a.test":{"ed25519:1":"sig"}}"#
        );
    }

    fn json_value() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(json!(null)),
            any::<bool>().prop_map(|b| json!(b)),
            (-9_007_199_254_740_991_i64..=9_007_199_254_740_991).prop_map(|n| json!(n)),
            any::<String>().prop_map(|s| json!(s)),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(|list| json!(list)),
                prop::collection::hash_map(any::<String>(), inner, 0..4).prop_map(|map| json!(map)),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_split_for_storage_joins_to_the_same_bytes(
            extra in prop::collection::hash_map(any::<String>(), json_value(), 0..4),
            content in prop::collection::hash_map(any::<String>(), json_value(), 0..4),
            is_redaction: bool, with_event_id: bool,
        ) {
            let mut event: CanonicalJsonObject = object(json!(extra));
            event.remove("state_key");
            event.remove("unsigned");
            event.extend(pdu(0));
            event.insert("content".to_owned(), json!(content).try_into().unwrap());
            event.extend(object(json!({"redacts": "$x"})));
            if is_redaction {
                event.extend(object(json!({"type": "m.room.redaction"})));
            }
            if with_event_id {
                event.extend(object(json!({"event_id": "$an:a.test"})));
            }
            for rules in [RULES_10, RULES_11, RULES_12] {
                let parsed = Parsed::from_object(event.clone(), rules).unwrap();
                let parts = parsed.parts(rules);
                let joined = join_from_storage(&parts, &parsed.pdu.room_id, rules).unwrap();
                prop_assert_eq!(String::from_utf8(joined).unwrap(), String::from_utf8(parsed.json()).unwrap());

                let pdu = parsed.pdu.clone();
                let loaded = Pdu::from_storage(
                    pdu.event_id.clone(), pdu.room_id.clone(), &parts, false, rules).unwrap();
                prop_assert_eq!(format!("{loaded:?}"), format!("{pdu:?}"));
            }
        }

        #[test]
        fn no_bytes_make_the_parser_fall_over(bytes: Vec<u8>) {
            let _ = Pdu::parse(&bytes, RULES_11);
            let parts = Parts { client: bytes.clone(), federation: bytes };
            let room_id = RoomId::parse("!r:a.test").unwrap();
            let _ = join_from_storage(&parts, &room_id, RULES_11);
            let _ = with_redacts_for_clients(&parts.client, None);
        }
    }

    #[test]
    fn pending_numbers_resolve_to_real_ones() {
        assert_eq!(EventNr::pending(3).resolve(40), EventNr(43));
        assert_eq!(EventNr(7).resolve(40), EventNr(7));
        assert!(EventNr::pending(0) > EventNr(u64::MAX >> 1));
    }

    #[test]
    fn the_events_of_the_spec_hash_and_sign_as_it_says() {
        // From the appendix "Cryptographic Test Vectors".
        let key = key_pair("YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1");
        let cases = [
            (
                json!({
                    "room_id": "!x:domain", "sender": "@a:domain", "origin": "domain",
                    "origin_server_ts": 1000000, "signatures": {}, "hashes": {}, "type": "X",
                    "content": {}, "prev_events": [], "auth_events": [], "depth": 3,
                    "unsigned": {"age_ts": 1000000}
                }),
                "5jM4wQpv6lnBo7CLIghJuHdW+s2CMBJPUOGOC89ncos",
                "KxwGjPSDEtvnFgU00fwFz+l6d2pJM6XBIaMEn81SXPTRl16AqLAYqfIReFGZlHi5KLjAWbOoMszkwsQma+lYAg",
            ),
            (
                json!({
                    "content": {"body": "Here is the message content"}, "event_id": "$0:domain",
                    "origin": "domain", "origin_server_ts": 1000000, "type": "m.room.message",
                    "room_id": "!r:domain", "sender": "@u:domain", "signatures": {},
                    "unsigned": {"age_ts": 1000000}
                }),
                "onLKD1bGljeBWQhWZ1kaP9SorVmRQNdN5aM2JYU2n/g",
                "Wm+VzmOUOz08Ds+0NTWb1d4CZrVsJSikkeRxh6aCcUwu6pNC78FunoD7KNWzqFn241eYHYMGCA5McEiVPdhzBA",
            ),
        ];
        for (event, hash, signature) in cases {
            let mut event = object(event);
            ruma::signatures::hash_and_sign_event("domain", &key, &mut event, &RULES_10.redaction).unwrap();
            let event: serde_json::Value = serde_json::from_slice(&canonical(&event)).unwrap();
            assert_eq!(event["hashes"]["sha256"], hash);
            assert_eq!(event["signatures"]["domain"]["ed25519:1"], signature);
        }
    }

    #[test]
    fn the_objects_of_the_spec_are_canonical_as_it_says() {
        // From the appendix "Canonical JSON".
        let nested = r#"{"auth":{"success":true,"mxid":"@john.doe:example.com","profile":{"display_name":"John Doe","three_pids":[{"medium":"email","address":"john.doe@example.org"},{"medium":"msisdn","address":"123456789"}]}}}"#;
        let sorted = r#"{"auth":{"mxid":"@john.doe:example.com","profile":{"display_name":"John Doe","three_pids":[{"address":"john.doe@example.org","medium":"email"},{"address":"123456789","medium":"msisdn"}]},"success":true}}"#;
        for (given, expected) in [
            ("{}", "{}"),
            (r#"{"one": 1, "two": "Two"}"#, r#"{"one":1,"two":"Two"}"#),
            (r#"{"b": "2", "a": "1"}"#, r#"{"a":"1","b":"2"}"#),
            (nested, sorted),
            ("{\"a\": \"\u{65e5}\u{672c}\u{8a9e}\"}", "{\"a\":\"\u{65e5}\u{672c}\u{8a9e}\"}"),
            ("{\"\u{672c}\": 2, \"\u{65e5}\": 1}", "{\"\u{65e5}\":1,\"\u{672c}\":2}"),
            (r#"{"a": "\u65E5"}"#, "{\"a\":\"\u{65e5}\"}"),
            (r#"{"a": null}"#, r#"{"a":null}"#),
        ] {
            let object: CanonicalJsonObject = serde_json::from_str(given).unwrap();
            assert_eq!(String::from_utf8(canonical(&object)).unwrap(), expected);
        }
    }
}
