//! May this event enter the room? Accept, soft-fail, reject, or "I need these facts first".
//! Not here: signatures and hashes (`signature`, checked before), and computing the states that
//! are asked for (`resolve`).

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use ruma::{
    OwnedEventId,
    events::{StateEventType, TimelineEventType},
    room_version_rules::RoomVersionRules,
};

use crate::{
    auth::{Refusal, check_by_state, check_independent, keys_to_judge},
    event::{EventNr, Pdu, StateKey, create_id_of_room, room_id_is_create_hash},
};

/// An answer, or what it takes to give one. Functions that return this are pure and restartable:
/// the same facts give the same answer, and more facts only move towards [`Step::Done`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step<T> {
    Need(Needs),
    Done(T),
}

/// What the caller has to find out before asking again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Events, by id, for [`Facts::events`].
    pub events: BTreeSet<OwnedEventId>,
    /// Entries of the state before the event, for [`Facts::state_before`].
    pub state_before: Vec<StateKey>,
    /// Entries of the room's current state, for [`Facts::current_state`].
    pub current_state: Vec<StateKey>,
    /// Events, by number (state resolution only).
    pub numbers: BTreeSet<EventNr>,
    /// Entries of the state all sides agree on (state resolution only).
    pub agreed_state: Vec<StateKey>,
    /// The auth chain difference of the state sets (state resolution only).
    pub auth_difference: bool,
    /// The conflicted state subgraph (state resolution of version 12 only).
    pub subgraph: bool,
}

impl Needs {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Entries of a state. An entry that is `None` is known not to be set.
pub type KnownState = HashMap<StateKey, Option<Arc<Pdu>>>;

/// What is known so far about the surroundings of an event.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Auth events by id. `None`: looked for everywhere and not found.
    pub events: HashMap<OwnedEventId, Option<Arc<Pdu>>>,
    pub state_before: KnownState,
    pub current_state: KnownState,
    /// The state before the event is the room's current state, so judging once is enough.
    pub at_head: bool,
    /// Why the room's policy server does not want the event, if it said so.
    pub policy_refusal: Option<String>,
}

/// What becomes of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It becomes part of the room.
    Accept,
    /// It is stored and counts in state resolution, but no client sees it and no event of ours
    /// follows it.
    SoftFail(Refusal),
    /// It never takes effect. It stays in the graph so that events after it can be judged.
    Reject(Refusal),
}

impl Verdict {
    pub fn is_accepted(&self) -> bool {
        matches!(self, Self::Accept)
    }

    pub fn is_rejected(&self) -> bool {
        matches!(self, Self::Reject(_))
    }
}

/// Judge an event whose signatures and hash are known to be right.
pub fn admit(pdu: &Pdu, facts: &Facts, rules: &RoomVersionRules) -> Step<Verdict> {
    let reject = |refusal| Step::Done(Verdict::Reject(refusal));
    let cited = cited_events(pdu, rules);
    let events: BTreeSet<_> = cited.iter().filter(|id| !facts.events.contains_key(*id)).cloned().collect();
    if !events.is_empty() {
        return Step::Need(Needs { events, ..Needs::default() });
    }
    let event = |id: &ruma::EventId| facts.events.get(id).cloned().flatten();
    if let Err(refusal) = check_independent(pdu, event, rules) {
        return reject(refusal);
    }
    if let Err(refusal) = check_by_state(pdu, by_auth_events(&cited, facts), rules) {
        return reject(refusal);
    }

    let keys = match keys_to_judge(pdu, rules) {
        Ok(keys) => keys,
        Err(refusal) => return reject(refusal),
    };
    let unknown = |known: &KnownState| -> Vec<StateKey> {
        keys.iter().filter(|key| !known.contains_key(*key)).cloned().collect()
    };
    let state_before = unknown(&facts.state_before);
    let current_state = if facts.at_head { Vec::new() } else { unknown(&facts.current_state) };
    let needs = Needs { state_before, current_state, ..Needs::default() };
    if !needs.is_empty() {
        return Step::Need(needs);
    }
    if let Err(refusal) = check_by_state(pdu, lookup(&facts.state_before), rules) {
        return reject(refusal);
    }
    Step::Done(soft_checks(pdu, facts, rules))
}

fn soft_checks(pdu: &Pdu, facts: &Facts, rules: &RoomVersionRules) -> Verdict {
    if !facts.at_head
        && let Err(refusal) = check_by_state(pdu, lookup(&facts.current_state), rules)
    {
        return Verdict::SoftFail(refusal);
    }
    match &facts.policy_refusal {
        Some(reason) => Verdict::SoftFail(Refusal(reason.clone())),
        None => Verdict::Accept,
    }
}

/// Judge an event of ours, built on the room's own head with auth events chosen from that same
/// state: the state it cites, the state before it and the current state are one.
pub fn admit_local(
    pdu: &Pdu,
    state: impl Fn(&StateEventType, &str) -> Option<Arc<Pdu>>,
    rules: &RoomVersionRules,
) -> Result<(), Refusal> {
    if pdu.kind == TimelineEventType::RoomCreate {
        check_independent(pdu, |_| None, rules)?;
    }
    check_by_state(pdu, state, rules)
}

/// The auth events, and the create event where the room id stands for it.
fn cited_events(pdu: &Pdu, rules: &RoomVersionRules) -> Vec<OwnedEventId> {
    let mut cited = pdu.auth_events.clone();
    if room_id_is_create_hash(rules)
        && pdu.kind != TimelineEventType::RoomCreate
        && let Some(create) = create_id_of_room(&pdu.room_id)
        && !cited.contains(&create)
    {
        cited.push(create);
    }
    cited
}

fn by_auth_events(cited: &[OwnedEventId], facts: &Facts) -> impl Fn(&StateEventType, &str) -> Option<Arc<Pdu>> {
    let state: KnownState = cited
        .iter()
        .filter_map(|id| facts.events.get(id).cloned().flatten())
        .filter_map(|event| Some((event.state_pair()?, Some(event))))
        .collect();
    move |kind, key| state.get(&(kind.clone(), key.to_owned())).cloned().flatten()
}

fn lookup(state: &KnownState) -> impl Fn(&StateEventType, &str) -> Option<Arc<Pdu>> {
    move |kind, key| state.get(&(kind.clone(), key.to_owned())).cloned().flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        event::Parsed,
        testing::{RULES_11, RULES_12, create_v12, object, state},
    };

    /// A room of two events, and a message by its creator that cites them.
    struct Scene {
        create: Arc<Pdu>,
        alice: Arc<Pdu>,
        message: Pdu,
    }

    fn scene() -> Scene {
        let create = state("m.room.create", "@alice:a.test", "", json!({}));
        let join = json!({"membership": "join"});
        let alice = state("m.room.member", "@alice:a.test", "@alice:a.test", join);
        let message = message(json!({"auth_events": [create.event_id, alice.event_id]}));
        Scene { create, alice, message }
    }

    fn message(extra: Value) -> Pdu {
        let mut event = object(json!({
            "auth_events": [], "content": {}, "depth": 3, "hashes": {}, "origin_server_ts": 1,
            "prev_events": ["$x"], "room_id": "!r:a.test", "sender": "@alice:a.test",
            "signatures": {}, "type": "m.room.message",
        }));
        event.extend(object(extra));
        Parsed::from_object(event, RULES_11).unwrap().pdu
    }

    fn answer(scene: &Scene, needs: Needs, facts: &mut Facts) {
        let known = |key: &StateKey| match (key.0.to_string().as_str(), key.1.as_str()) {
            ("m.room.create", "") => Some(scene.create.clone()),
            ("m.room.member", "@alice:a.test") => Some(scene.alice.clone()),
            _ => None,
        };
        for id in needs.events {
            let event = [&scene.create, &scene.alice].into_iter().find(|pdu| pdu.event_id == id);
            facts.events.insert(id, event.cloned());
        }
        facts.state_before.extend(needs.state_before.into_iter().map(|key| (key.clone(), known(&key))));
        facts.current_state.extend(needs.current_state.into_iter().map(|key| (key.clone(), known(&key))));
    }

    fn judge(scene: &Scene, mut facts: Facts) -> (Verdict, usize) {
        for round in 0..5 {
            match admit(&scene.message, &facts, RULES_11) {
                Step::Done(verdict) => return (verdict, round),
                Step::Need(needs) => answer(scene, needs, &mut facts),
            }
        }
        panic!("asked too often");
    }

    #[test]
    fn an_event_is_judged_after_asking_twice() {
        assert_eq!(judge(&scene(), Facts::default()), (Verdict::Accept, 2));
        let at_head = Facts { at_head: true, ..Facts::default() };
        assert_eq!(judge(&scene(), at_head), (Verdict::Accept, 2));
    }

    #[test]
    fn an_event_at_the_head_does_not_ask_for_the_current_state() {
        let scene = scene();
        let mut facts = Facts { at_head: true, ..Facts::default() };
        let Step::Need(needs) = admit(&scene.message, &facts, RULES_11) else { panic!() };
        assert_eq!(needs.events.len(), 2);
        answer(&scene, needs, &mut facts);
        let Step::Need(needs) = admit(&scene.message, &facts, RULES_11) else { panic!() };
        assert_eq!((needs.state_before.len(), needs.current_state.len()), (3, 0));
    }

    #[test]
    fn pitfall_088_an_auth_event_nobody_has_is_a_reason_to_reject() {
        let mut scene = scene();
        scene.message = message(json!({"auth_events": [scene.create.event_id, "$nowhere"]}));
        assert!(judge(&scene, Facts::default()).0.is_rejected());
    }

    #[test]
    fn pitfall_088_state_before_rejects_current_state_soft_fails() {
        let scene = scene();
        let banned = json!({"membership": "ban"});
        let banned = state("m.room.member", "@admin:a.test", "@alice:a.test", banned);
        let member = (StateEventType::RoomMember, "@alice:a.test".to_owned());
        let ban = KnownState::from([(member, Some(banned))]);
        let before = Facts { state_before: ban.clone(), ..Facts::default() };
        assert!(judge(&scene, before).0.is_rejected());
        let now = Facts { current_state: ban, ..Facts::default() };
        assert!(matches!(judge(&scene, now).0, Verdict::SoftFail(_)));
    }

    #[test]
    fn pitfall_088_the_policy_server_comes_last_and_soft_fails() {
        let refused = || Facts { policy_refusal: Some("spam".to_owned()), ..Facts::default() };
        let (verdict, _) = judge(&scene(), refused());
        assert_eq!(verdict, Verdict::SoftFail(Refusal("spam".to_owned())));
        let mut scene = scene();
        scene.message = message(json!({"auth_events": [scene.create.event_id]}));
        assert!(judge(&scene, refused()).0.is_rejected());
    }

    #[test]
    fn a_rejected_create_event_of_version_12_takes_the_room_with_it() {
        let create = create_v12("@alice:a.test", json!({"room_version": "12"}));
        let join = object(json!({
            "auth_events": [], "content": {"membership": "join"}, "depth": 2, "hashes": {},
            "origin_server_ts": 1, "prev_events": [create.event_id], "room_id": create.room_id,
            "sender": "@alice:a.test", "signatures": {}, "state_key": "@alice:a.test",
            "type": "m.room.member",
        }));
        let join = Parsed::from_object(join, RULES_12).unwrap().pdu;
        let Step::Need(needs) = admit(&join, &Facts::default(), RULES_12) else { panic!() };
        assert!(needs.events.contains(&create.event_id), "the room id names the create event");
        let mut rejected = (*create).clone();
        rejected.rejected = true;
        let mut facts = Facts { at_head: true, ..Facts::default() };
        facts.events.insert(create.event_id.clone(), Some(Arc::new(rejected)));
        let verdict = admit(&join, &facts, RULES_12);
        assert!(matches!(verdict, Step::Done(Verdict::Reject(_))));

        facts.events.insert(create.event_id.clone(), Some(create.clone()));
        for key in keys_to_judge(&join, RULES_12).unwrap() {
            let event = (key.0 == StateEventType::RoomCreate).then(|| create.clone());
            facts.state_before.insert(key, event);
        }
        assert_eq!(admit(&join, &facts, RULES_12), Step::Done(Verdict::Accept));
        let state = |kind: &StateEventType, _: &str| (*kind == StateEventType::RoomCreate).then(|| create.clone());
        assert_eq!(admit_local(&join, state, RULES_12), Ok(()));
    }
}
