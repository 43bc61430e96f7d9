//! How we make an event of our own: draft, canonical object, hash and signature. Not here: what a
//! new room consists of (`create`), and whether the event is allowed (`admit::admit_local`).

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, Int, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedUserId, RoomId,
    ServerName,
    events::TimelineEventType,
    room_version_rules::RoomVersionRules,
    signatures::{JsonError, KeyPair, hash_and_sign_event},
};
use serde_json::value::to_raw_value;

use crate::{
    auth::{Refusal, auth_keys},
    event::{FormatError, MAX_DEPTH, Parsed, StateKey, room_id_is_create_hash},
};

/// An event as somebody wants it, before it has a place in a room.
#[derive(Clone, Debug, PartialEq)]
pub struct Draft {
    pub kind: TimelineEventType,
    pub content: CanonicalJsonObject,
    pub state_key: Option<String>,
    pub sender: OwnedUserId,
    /// For redactions: the event to redact. Put where the room version wants it.
    pub redacts: Option<OwnedEventId>,
    pub origin_server_ts: MilliSecondsSinceUnixEpoch,
}

impl Draft {
    /// A state event.
    pub fn state(
        kind: impl Into<TimelineEventType>,
        state_key: impl Into<String>,
        content: CanonicalJsonObject,
        sender: OwnedUserId,
        origin_server_ts: MilliSecondsSinceUnixEpoch,
    ) -> Self {
        Self { kind: kind.into(), content, state_key: Some(state_key.into()), sender, redacts: None, origin_server_ts }
    }

    /// An event that is not state.
    pub fn message(
        kind: impl Into<TimelineEventType>,
        content: CanonicalJsonObject,
        sender: OwnedUserId,
        origin_server_ts: MilliSecondsSinceUnixEpoch,
    ) -> Self {
        Self { kind: kind.into(), content, state_key: None, sender, redacts: None, origin_server_ts }
    }
}

/// The place in the room a draft gets.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The room. Not written into create events of versions whose room id is made from them.
    pub room_id: Option<&'a RoomId>,
    /// The forward extremities (see [`crate::graph::choose_prev_events`]).
    pub prev_events: &'a [OwnedEventId],
    pub depth: u64,
    /// The events of the state named by [`auth_types`], as far as it is set.
    pub auth_events: &'a [OwnedEventId],
}

/// The state whose events the draft must cite as auth events.
pub fn auth_types(draft: &Draft, rules: &RoomVersionRules) -> Result<Vec<StateKey>, Refusal> {
    let content = to_raw_value(&draft.content).map_err(|error| Refusal(error.to_string()))?;
    auth_keys(&draft.kind, &draft.sender, draft.state_key.as_deref(), &content, rules)
}

/// The unsigned event.
pub fn build(draft: Draft, context: &Context<'_>, rules: &RoomVersionRules) -> CanonicalJsonObject {
    let mut object = CanonicalJsonObject::new();
    let mut content = draft.content;
    if let Some(redacts) = draft.redacts {
        let holder = if rules.redaction.content_field_redacts { &mut content } else { &mut object };
        holder.insert("redacts".to_owned(), CanonicalJsonValue::String(redacts.to_string()));
    }
    let founds_room = draft.kind == TimelineEventType::RoomCreate && room_id_is_create_hash(rules);
    if let Some(room_id) = context.room_id
        && !founds_room
    {
        object.insert("room_id".to_owned(), CanonicalJsonValue::String(room_id.to_string()));
    }
    if let Some(state_key) = draft.state_key {
        object.insert("state_key".to_owned(), CanonicalJsonValue::String(state_key));
    }
    let depth = Int::new(context.depth.min(MAX_DEPTH) as i64).unwrap_or(Int::MAX);
    object.insert("auth_events".to_owned(), ids(context.auth_events));
    object.insert("content".to_owned(), CanonicalJsonValue::Object(content));
    object.insert("depth".to_owned(), CanonicalJsonValue::Integer(depth));
    let at = Int::from(draft.origin_server_ts.get());
    object.insert("origin_server_ts".to_owned(), CanonicalJsonValue::Integer(at));
    object.insert("prev_events".to_owned(), ids(context.prev_events));
    object.insert("sender".to_owned(), CanonicalJsonValue::String(draft.sender.to_string()));
    object.insert("type".to_owned(), CanonicalJsonValue::String(draft.kind.to_string()));
    object
}

fn ids(events: &[OwnedEventId]) -> CanonicalJsonValue {
    CanonicalJsonValue::Array(events.iter().map(|id| CanonicalJsonValue::String(id.to_string())).collect())
}

/// Why an event could not be sealed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// Too large, or a field is: the client's fault.
    #[error(transparent)]
    Format(#[from] FormatError),
    #[error("{0}")]
    Json(#[from] JsonError),
}

impl SealError {
    /// Whether the event is too large with everything we have to add to it.
    pub fn is_too_large(&self) -> bool {
        matches!(self, Self::Format(FormatError::TooLarge(_)) | Self::Json(JsonError::PduTooLarge))
    }
}

/// A finished event of ours.
pub type Sealed = Parsed;

/// Hash and sign an event and compute its id. The format is checked like that of any other event.
pub fn seal<K: KeyPair>(
    mut object: CanonicalJsonObject,
    server_name: &ServerName,
    key_pair: &K,
    rules: &RoomVersionRules,
) -> Result<Sealed, SealError> {
    hash_and_sign_event(server_name.as_str(), key_pair, &mut object, &rules.redaction)?;
    Ok(Parsed::from_object(object, rules)?)
}

/// The content of a client's request, if canonical JSON can hold it.
pub fn content_from_json(bytes: &[u8]) -> Result<CanonicalJsonObject, serde_json::Error> {
    serde_json::from_slice(bytes)
}
