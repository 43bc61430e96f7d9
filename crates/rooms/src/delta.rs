//! What an admitted event changes: all that the caller persists besides the event. Not here:
//! how it is stored.

use std::collections::BTreeSet;

use ruma::{
    EventId, OwnedEventId, OwnedUserId, UserId,
    events::{TimelineEventType, room::member::MembershipState},
};
use serde::Deserialize;

use crate::{
    admit::Verdict,
    event::{Pdu, content_field},
    graph::extremities_after,
    membership, state,
};

/// The consequences of one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta {
    /// The forward extremities from now on.
    pub extremities: BTreeSet<OwnedEventId>,
    /// The entry of the state after the event that is this event. Also set for soft-failed
    /// events: the state after them counts in state resolution.
    pub state_entry: Option<state::Key>,
    /// Clients see the event.
    pub visible: bool,
    pub membership: Option<MembershipChange>,
    /// The event this one wants to redact. Whether it takes effect is for [`crate::redact`].
    pub redacts: Option<OwnedEventId>,
    pub relation: Option<Relation>,
}

/// A user's membership before and after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MembershipChange {
    pub user_id: OwnedUserId,
    pub before: MembershipState,
    pub after: MembershipState,
}

/// What an event relates to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    pub rel_type: String,
    pub event_id: OwnedEventId,
    /// Of annotations.
    pub key: Option<String>,
}

/// What changes with an event that was judged. `previous_member` is the entry of the current state
/// that a member event replaces; for `passed_over` and `has_successor` see [`extremities_after`].
pub fn delta<P>(
    pdu: &Pdu,
    verdict: &Verdict,
    extremities: &BTreeSet<OwnedEventId>,
    has_successor: bool,
    passed_over: impl Fn(&EventId) -> Option<P>,
    previous_member: Option<&Pdu>,
) -> Delta
where
    P: IntoIterator<Item = OwnedEventId>,
{
    let extremities = extremities_after(extremities, pdu, verdict, has_successor, passed_over);
    let visible = verdict.is_accepted();
    let counts = !verdict.is_rejected();
    let state_key = pdu.state_key.as_deref().filter(|_| counts);
    Delta {
        extremities,
        state_entry: state_key.map(|key| state::Key::new(&pdu.kind.to_string(), key)),
        visible,
        membership: visible.then(|| membership_change(pdu, previous_member)).flatten(),
        redacts: pdu.redacts.clone().filter(|_| counts),
        relation: counts.then(|| relation(pdu)).flatten(),
    }
}

fn membership_change(pdu: &Pdu, previous: Option<&Pdu>) -> Option<MembershipChange> {
    if pdu.kind != TimelineEventType::RoomMember {
        return None;
    }
    let user_id = UserId::parse(pdu.state_key.as_deref()?).ok()?;
    let before = membership::of(previous);
    Some(MembershipChange { user_id, before, after: membership::of(Some(pdu)) })
}

/// What an event relates to. State events relate to nothing.
pub fn relation(pdu: &Pdu) -> Option<Relation> {
    #[derive(Deserialize)]
    struct RelatesTo {
        rel_type: String,
        event_id: OwnedEventId,
        key: Option<serde_json::Value>,
    }
    if pdu.state_key.is_some() || !pdu.content.get().contains("m.relates_to") {
        return None;
    }
    let relates: RelatesTo = content_field(&pdu.content, "m.relates_to")?;
    let key = relates.key.and_then(|key| key.as_str().map(str::to_owned));
    Some(Relation { rel_type: relates.rel_type, event_id: relates.event_id, key })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        auth::Refusal,
        event::Parsed,
        testing::{RULES_11, object, state},
    };

    fn of(pdu: &Pdu, verdict: &Verdict, previous: Option<&Pdu>) -> Delta {
        let nothing = |_: &EventId| None::<Vec<OwnedEventId>>;
        delta(pdu, verdict, &BTreeSet::new(), false, nothing, previous)
    }

    fn message(content: Value) -> Pdu {
        let event = json!({
            "auth_events": [], "content": content, "depth": 1, "hashes": {}, "origin_server_ts": 1,
            "prev_events": [], "room_id": "!r:a.test", "sender": "@u:a.test", "signatures": {},
            "type": "m.room.message",
        });
        Parsed::from_object(object(event), RULES_11).unwrap().pdu
    }

    #[test]
    fn a_membership_changes_when_clients_see_it() {
        let join = state("m.room.member", "@u:a.test", "@u:a.test", json!({"membership": "join"}));
        let leave = state("m.room.member", "@u:a.test", "@u:a.test", json!({"membership": "leave"}));
        let change = of(&leave, &Verdict::Accept, Some(&join)).membership.unwrap();
        assert_eq!((change.before, change.after), (MembershipState::Join, MembershipState::Leave));
        let change = of(&join, &Verdict::Accept, None).membership.unwrap();
        assert_eq!((change.before, change.after), (MembershipState::Leave, MembershipState::Join));
    }

    #[test]
    fn pitfall_089_a_soft_failed_event_counts_as_state_but_nobody_sees_it() {
        let join = state("m.room.member", "@u:a.test", "@u:a.test", json!({"membership": "join"}));
        let refusal = Refusal("no".to_owned());
        let soft = of(&join, &Verdict::SoftFail(refusal.clone()), None);
        assert_eq!((soft.visible, soft.membership), (false, None));
        assert_eq!(soft.state_entry, Some(state::Key::new("m.room.member", "@u:a.test")));
        let rejected = of(&join, &Verdict::Reject(refusal), None);
        assert_eq!((rejected.visible, rejected.state_entry), (false, None));
    }

    #[test]
    fn relations_are_found_where_they_make_sense() {
        let relates = json!({"m.relates_to": {"rel_type": "m.annotation", "event_id": "$x", "key": "+"}});
        let found = relation(&message(relates.clone())).unwrap();
        assert_eq!((found.rel_type.as_str(), found.event_id.as_str()), ("m.annotation", "$x"));
        assert_eq!(found.key.as_deref(), Some("+"));
        assert_eq!(relation(&state("m.custom", "@u:a.test", "", relates)), None);
        for nonsense in [
            json!({"m.relates_to": 1}),
            json!({"m.relates_to": {"event_id": "$x"}}),
            json!({"m.relates_to": {"rel_type": "m.thread", "event_id": "x"}}),
            json!({"body": "m.relates_to"}),
        ] {
            assert_eq!(relation(&message(nonsense)), None);
        }
        let odd_key = json!({"m.relates_to": {"rel_type": "m.annotation", "event_id": "$x", "key": 1}});
        assert_eq!(relation(&message(odd_key)).unwrap().key, None);
    }
}
