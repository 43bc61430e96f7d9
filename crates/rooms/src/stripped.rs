//! Stripped state: what somebody outside learns of a room they are invited to or knock at. Not
//! here: checking the signatures of full events that came with an invite.

use ruma::{RoomId, UserId, events::StateEventType, room_version_rules::RoomVersionRules};
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use crate::event::{FormatError, Pdu, StateKey, room_id_is_create_hash};

/// The state to show, as far as it is set.
pub const KINDS: [StateEventType; 7] = [
    StateEventType::RoomCreate,
    StateEventType::RoomJoinRules,
    StateEventType::RoomCanonicalAlias,
    StateEventType::RoomAvatar,
    StateEventType::RoomName,
    StateEventType::RoomEncryption,
    StateEventType::RoomTopic,
];

/// The state to show, with the member event of the one who acts (the inviter).
pub fn keys(actor: Option<&UserId>) -> Vec<StateKey> {
    KINDS
        .into_iter()
        .map(|kind| (kind, String::new()))
        .chain(actor.map(|user| (StateEventType::RoomMember, user.to_string())))
        .collect()
}

#[derive(Serialize, Deserialize)]
struct Stripped<'a> {
    #[serde(borrow)]
    content: &'a RawValue,
    #[serde(borrow)]
    sender: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    state_key: std::borrow::Cow<'a, str>,
    #[serde(borrow, rename = "type")]
    kind: std::borrow::Cow<'a, str>,
}

/// A state event with nothing but `content`, `sender`, `state_key` and `type`.
pub fn strip(pdu: &Pdu) -> Result<Box<RawValue>, serde_json::Error> {
    let state_key = pdu.state_key.as_deref().unwrap_or_default();
    to_raw_value(&Stripped {
        content: &pdu.content,
        sender: pdu.sender.as_str().into(),
        state_key: state_key.into(),
        kind: pdu.kind.to_string().into(),
    })
}

/// Why the state that came with an invite or after a knock will not do.
#[derive(Debug, thiserror::Error)]
pub enum StrippedError {
    #[error("the create event is missing")]
    NoCreate,
    #[error("the create event is of another room")]
    OtherRoom,
    #[error(transparent)]
    Format(#[from] FormatError),
}

/// The stripped state for clients out of what another server sent.
///
/// Where the room id is made from the create event, that must be there, whole, and be the one the
/// id is made from. Older rooms are taken as servers have always sent them; what cannot even be
/// stripped is left out.
pub fn strip_received(
    events: &[Box<RawValue>],
    room_id: &RoomId,
    rules: &RoomVersionRules,
) -> Result<Vec<Box<RawValue>>, StrippedError> {
    let mut stripped = Vec::with_capacity(events.len());
    let mut has_create = false;
    for event in events {
        let Ok(fields) = serde_json::from_str::<Stripped<'_>>(event.get()) else { continue };
        if fields.kind == "m.room.create" && room_id_is_create_hash(rules) {
            let create = Pdu::parse(event.get().as_bytes(), rules)?;
            if create.room_id != room_id {
                return Err(StrippedError::OtherRoom);
            }
            has_create = true;
        }
        stripped.push(to_raw_value(&fields).map_err(FormatError::from)?);
    }
    if room_id_is_create_hash(rules) && !has_create {
        return Err(StrippedError::NoCreate);
    }
    Ok(stripped)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{RULES_11, RULES_12, state};

    fn raw(value: Value) -> Box<RawValue> {
        to_raw_value(&value).unwrap()
    }

    fn create() -> Value {
        json!({
            "auth_events": [], "content": {"room_version": "12"}, "depth": 1, "hashes": {},
            "origin_server_ts": 1, "prev_events": [], "sender": "@a:a.test", "signatures": {},
            "state_key": "", "type": "m.room.create", "unsigned": {"age": 1},
        })
    }

    #[test]
    fn pitfall_053_stripped_state_has_four_members() {
        let name = state("m.room.name", "@a:a.test", "", json!({"name": "\u{e9}\"\n"}));
        let stripped: Value = serde_json::from_str(strip(&name).unwrap().get()).unwrap();
        let expected = json!({
            "content": {"name": "\u{e9}\"\n"}, "sender": "@a:a.test", "state_key": "",
            "type": "m.room.name"
        });
        assert_eq!(stripped, expected);
        let shown = keys(Some(ruma::user_id!("@a:a.test")));
        assert!(shown.contains(&(StateEventType::RoomCreate, String::new())));
        assert!(shown.contains(&(StateEventType::RoomMember, "@a:a.test".to_owned())));
    }

    #[test]
    fn pitfall_062_an_invite_to_version_12_shows_the_create_event_of_that_room() {
        let pdu = Pdu::parse(create().to_string().as_bytes(), RULES_12).unwrap();
        let name = json!({"content": {}, "sender": "@a:a.test", "state_key": "", "type": "m.room.name"});
        let events = [raw(create()), raw(name.clone())];
        let stripped = strip_received(&events, &pdu.room_id, RULES_12).unwrap();
        assert_eq!(
            stripped[0].get(),
            r#"{"content":{"room_version":"12"},"sender":"@a:a.test","state_key":"","type":"m.room.create"}"#
        );
        let none = strip_received(&events[1..], &pdu.room_id, RULES_12);
        assert!(matches!(none, Err(StrippedError::NoCreate)));
        let elsewhere = RoomId::parse("!other").unwrap();
        let other = strip_received(&events, &elsewhere, RULES_12);
        assert!(matches!(other, Err(StrippedError::OtherRoom)));
        let mut bare = create();
        bare.as_object_mut().unwrap().remove("auth_events");
        assert!(strip_received(&[raw(bare.clone())], &pdu.room_id, RULES_12).is_err());
        // Older rooms come with what servers have always sent.
        let sent = [raw(bare), raw(name), raw(json!({"type": "no event"}))];
        assert_eq!(strip_received(&sent, &elsewhere, RULES_11).unwrap().len(), 2);
    }
}
