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
