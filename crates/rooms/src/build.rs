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

#[cfg(test)]
mod tests {
    use ruma::{EventId, UserId, event_id, room_id, server_name};
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{RULES_10, RULES_11, RULES_12, key_pair, object};

    const SEED: &str = "YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1";

    fn draft(kind: &str, state_key: Option<&str>, content: Value) -> Draft {
        Draft {
            kind: kind.into(),
            content: object(content),
            state_key: state_key.map(str::to_owned),
            sender: UserId::parse("@alice:a.test").unwrap(),
            redacts: None,
            origin_server_ts: MilliSecondsSinceUnixEpoch(ruma::uint!(5)),
        }
    }

    fn context<'a>(prev_events: &'a [OwnedEventId], depth: u64) -> Context<'a> {
        Context { room_id: Some(room_id!("!r:a.test")), prev_events, depth, auth_events: prev_events }
    }

    fn cited(draft: &Draft, rules: &RoomVersionRules) -> Vec<String> {
        let mut keys: Vec<String> = auth_types(draft, rules)
            .unwrap()
            .into_iter()
            .map(|(kind, key)| format!("{kind} {key}").replace("m.room.", "").trim().to_owned())
            .collect();
        keys.sort();
        keys
    }

    #[test]
    fn pitfall_090_exactly_the_state_of_the_selection_is_cited() {
        let member = |target: &str, content: Value| draft("m.room.member", Some(target), content);
        let by = "@bob:b.test";
        let join = |extra: Value| {
            let mut join = member("@alice:a.test", json!({"membership": "join"}));
            join.content.extend(object(extra));
            join
        };
        let authorised = join(json!({"join_authorised_via_users_server": by}));
        let mut leave = authorised.clone();
        leave.content.extend(object(json!({"membership": "leave"})));
        let third = json!({"membership": "invite", "third_party_invite": {"signed": {"token": "tok"}}});
        let alice = "member @alice:a.test";
        let bob = "member @bob:b.test";
        let cases = [
            (draft("m.room.create", Some(""), json!({})), vec![]),
            (draft("m.room.message", None, json!({})), vec!["create", alice, "power_levels"]),
            (join(json!({})), vec!["create", "join_rules", alice, "power_levels"]),
            (authorised, vec!["create", "join_rules", alice, bob, "power_levels"]),
            (leave, vec!["create", alice, "power_levels"]),
            (member(by, json!({"membership": "invite"})), vec!["create", "join_rules", alice, bob, "power_levels"]),
            (member(by, third), vec!["create", "join_rules", alice, bob, "power_levels", "third_party_invite tok"]),
            (member(by, json!({"membership": "ban"})), vec!["create", alice, bob, "power_levels"]),
        ];
        for (draft, expected) in cases {
            assert_eq!(cited(&draft, RULES_11), expected, "{draft:?}");
            let without: Vec<_> = expected.into_iter().filter(|key| *key != "create").collect();
            assert_eq!(cited(&draft, RULES_12), without, "{draft:?}");
        }
    }

    #[test]
    fn pitfall_066_a_redaction_names_its_target_where_the_version_wants_it() {
        let mut redaction = draft("m.room.redaction", None, json!({"reason": "r"}));
        redaction.redacts = Some(EventId::parse("$target").unwrap());
        let old = build(redaction.clone(), &context(&[], 1), RULES_10);
        let old = serde_json::to_value(old).unwrap();
        assert_eq!((&old["redacts"], &old["content"]), (&json!("$target"), &json!({"reason": "r"})));
        let new = serde_json::to_value(build(redaction, &context(&[], 1), RULES_11)).unwrap();
        assert_eq!(new.get("redacts"), None);
        assert_eq!(new["content"], json!({"reason": "r", "redacts": "$target"}));
    }

    #[test]
    fn a_sealed_event_reads_like_any_other() {
        let prev = [event_id!("$prev").to_owned()];
        let object = build(draft("m.room.name", Some(""), json!({"name": "n"})), &context(&prev, 7), RULES_11);
        let sealed = seal(object, server_name!("a.test"), &key_pair(SEED), RULES_11).unwrap();
        let read = Parsed::from_bytes(&sealed.json(), RULES_11).unwrap();
        assert_eq!(read.pdu.event_id, sealed.pdu.event_id);
        assert_eq!((read.pdu.depth, read.pdu.prev_events.as_slice()), (7, prev.as_slice()));
        assert_eq!(read.object, sealed.object);
    }

    #[test]
    fn pitfall_091_a_hostile_depth_does_not_spread() {
        let object = build(draft("m.x", None, json!({})), &context(&[], u64::MAX), RULES_11);
        assert_eq!(serde_json::to_value(object).unwrap()["depth"], json!(9_007_199_254_740_991_u64));
    }

    #[test]
    fn pitfall_069_the_size_counts_what_we_add_ourselves() {
        let sealed = |size: usize| {
            let content = json!({"body": "x".repeat(size)});
            let object = build(draft("m.room.message", None, content), &context(&[], 1), RULES_11);
            seal(object, server_name!("a.test"), &key_pair(SEED), RULES_11)
        };
        let frame = sealed(0).unwrap().json().len();
        assert!(frame > 300, "hash and signature are in");
        assert_eq!(sealed(65_536 - frame).unwrap().json().len(), 65_536);
        assert!(sealed(65_537 - frame).unwrap_err().is_too_large());
        assert!(sealed(100_000).unwrap_err().is_too_large());
    }

    #[test]
    fn clients_cannot_send_what_canonical_json_cannot_hold() {
        assert!(content_from_json(br#"{"a":1}"#).is_ok());
        assert!(content_from_json(br#"{"a":1.5}"#).is_err());
        assert!(content_from_json(br#"{"a":9007199254740992}"#).is_err());
        assert!(content_from_json(b"[]").is_err());
    }
}
