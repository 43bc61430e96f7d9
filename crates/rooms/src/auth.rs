//! The authorization rules: which state an event is judged by, and the judgement. The rules
//! themselves are the library's; here is how we ask it. Not here: which states to judge by, and
//! what follows from a refusal (`admit`).

use std::sync::Arc;

use ruma::{
    EventId, UserId,
    events::{StateEventType, TimelineEventType},
    room_version_rules::RoomVersionRules,
    state_res::{auth_types_for_event, check_state_dependent_auth_rules, check_state_independent_auth_rules},
};
use serde_json::value::RawValue;

use crate::event::{Pdu, StateKey};

/// Why the rules refuse an event, in words fit for a log and for the one who sent it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub String);

impl From<String> for Refusal {
    fn from(reason: String) -> Self {
        Self(reason)
    }
}

/// The state an event cites as its auth events: exactly this, no more, no duplicates.
pub fn auth_keys(
    kind: &TimelineEventType,
    sender: &UserId,
    state_key: Option<&str>,
    content: &RawValue,
    rules: &RoomVersionRules,
) -> Result<Vec<StateKey>, Refusal> {
    Ok(auth_types_for_event(kind, sender, state_key, content, &rules.authorization)?)
}

/// The state the rules look at to judge an event: its auth events, and always the create event.
pub fn keys_to_judge(pdu: &Pdu, rules: &RoomVersionRules) -> Result<Vec<StateKey>, Refusal> {
    let mut keys = auth_keys(&pdu.kind, &pdu.sender, pdu.state_key.as_deref(), &pdu.content, rules)?;
    if pdu.kind != TimelineEventType::RoomCreate && !keys.iter().any(|(kind, _)| *kind == StateEventType::RoomCreate) {
        keys.push((StateEventType::RoomCreate, String::new()));
    }
    Ok(keys)
}

/// The rules that look at the event and the events it cites only.
pub fn check_independent(
    pdu: &Pdu,
    event: impl Fn(&EventId) -> Option<Arc<Pdu>>,
    rules: &RoomVersionRules,
) -> Result<(), Refusal> {
    Ok(check_state_independent_auth_rules(&rules.authorization, pdu, event)?)
}

/// The rules that judge the event by a state of the room.
pub fn check_by_state(
    pdu: &Pdu,
    state: impl Fn(&StateEventType, &str) -> Option<Arc<Pdu>>,
    rules: &RoomVersionRules,
) -> Result<(), Refusal> {
    Ok(check_state_dependent_auth_rules(&rules.authorization, pdu, state)?)
}
