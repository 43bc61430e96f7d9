//! The event graph of a room at its growing end: forward extremities, what a new event of ours
//! follows, depth. Not here: state, and fetching what is missing.

use std::collections::BTreeSet;

use ruma::{EventId, OwnedEventId};

use crate::{
    admit::Verdict,
    event::{MAX_DEPTH, MAX_PREV_EVENTS, Pdu},
};

/// The forward extremities after an event was judged.
///
/// An accepted event takes the place of the events it follows. It is no extremity itself when
/// something in the room already follows it (`has_successor`). Soft-failed and rejected events
/// change nothing; an accepted event that follows one of them retires what is behind it, which
/// `passed_over` tells: the `prev_events` of an event that is soft-failed or rejected.
pub fn extremities_after<P>(
    extremities: &BTreeSet<OwnedEventId>,
    pdu: &Pdu,
    verdict: &Verdict,
    has_successor: bool,
    passed_over: impl Fn(&EventId) -> Option<P>,
) -> BTreeSet<OwnedEventId>
where
    P: IntoIterator<Item = OwnedEventId>,
{
    let mut after = extremities.clone();
    if !verdict.is_accepted() {
        return after;
    }
    let mut seen = BTreeSet::new();
    let mut behind = pdu.prev_events.clone();
    while let Some(id) = behind.pop() {
        if !seen.insert(id.clone()) {
            continue;
        }
        after.remove(&id);
        behind.extend(passed_over(&id).into_iter().flatten());
    }
    if !has_successor {
        after.insert(pdu.event_id.clone());
    }
    after
}

/// The extremities a new event follows, given with their depths.
///
/// When there are more than an event may name, half of them are the deepest, so that the event
/// follows what was said last, and half the shallowest, so that old ones go away.
pub fn choose_prev_events(mut extremities: Vec<(u64, OwnedEventId)>) -> Vec<OwnedEventId> {
    extremities.sort();
    extremities.reverse();
    if extremities.len() > MAX_PREV_EVENTS {
        let shallow = extremities.len() - MAX_PREV_EVENTS / 2;
        extremities.drain(MAX_PREV_EVENTS / 2..shallow);
    }
    extremities.into_iter().map(|(_, id)| id).collect()
}

/// The depth of an event that follows events of these depths. Nothing but the order of display in
/// some clients depends on it, so a hostile depth can only reach the end of the scale.
pub fn depth_after(depths: impl IntoIterator<Item = u64>) -> u64 {
    depths.into_iter().max().unwrap_or(0).saturating_add(1).min(MAX_DEPTH)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        auth::Refusal,
        event::Parsed,
        testing::{RULES_11, object},
    };

    fn id(name: &str) -> OwnedEventId {
        EventId::parse(format!("${name}")).unwrap()
    }

    fn ids(names: &[&str]) -> BTreeSet<OwnedEventId> {
        names.iter().map(|name| id(name)).collect()
    }

    fn after(extremities: &[&str], prevs: &[&str], verdict: &Verdict, successor: bool) -> Vec<String> {
        let prevs: Vec<String> = prevs.iter().map(|name| format!("${name}")).collect();
        let event = object(json!({
            "auth_events": [], "content": {}, "depth": 1, "hashes": {}, "origin_server_ts": 1,
            "prev_events": prevs, "room_id": "!r:a.test", "sender": "@u:a.test",
            "signatures": {}, "type": "m.x",
        }));
        let pdu = Parsed::from_object(event, RULES_11).unwrap().pdu;
        // `soft` is a soft-failed event after `a`.
        let passed_over = |event: &EventId| (*event == *id("soft")).then(|| vec![id("a")]);
        let after = extremities_after(&ids(extremities), &pdu, verdict, successor, passed_over);
        let name = |event: OwnedEventId| {
            if event == pdu.event_id { "$new".to_owned() } else { event.to_string() }
        };
        let mut names: Vec<String> = after.into_iter().map(name).collect();
        names.sort();
        names
    }

    #[test]
    fn an_accepted_event_takes_the_place_of_what_it_follows() {
        let accept = Verdict::Accept;
        assert_eq!(after(&["a", "b"], &["a"], &accept, false), ["$b", "$new"]);
        assert_eq!(after(&["a", "b"], &["a", "b"], &accept, false), ["$new"]);
        assert_eq!(after(&["a"], &["old"], &accept, false), ["$a", "$new"]);
        assert_eq!(after(&["a"], &["old"], &accept, true), ["$a"]);
    }

    #[test]
    fn pitfall_089_soft_failed_and_rejected_events_are_no_extremities() {
        let reason = || Refusal("no".to_owned());
        for verdict in [Verdict::SoftFail(reason()), Verdict::Reject(reason())] {
            assert_eq!(after(&["a"], &["a"], &verdict, false), ["$a"]);
        }
        // What is behind the soft-failed event is no longer the end of the room.
        assert_eq!(after(&["a", "b"], &["soft"], &Verdict::Accept, false), ["$b", "$new"]);
    }

    #[test]
    fn pitfall_091_of_many_extremities_the_oldest_and_the_newest_are_followed() {
        let many: Vec<_> = (0..50).map(|depth| (depth, id(&format!("e{depth:02}")))).collect();
        let chosen = choose_prev_events(many);
        assert_eq!(chosen.len(), 20);
        assert_eq!(chosen.first(), Some(&id("e49")));
        assert_eq!(chosen.last(), Some(&id("e00")));
        assert!(chosen.contains(&id("e40")) && chosen.contains(&id("e09")));
        let few: Vec<_> = (0..20).map(|depth| (depth, id(&format!("e{depth:02}")))).collect();
        assert_eq!(choose_prev_events(few).len(), 20);
    }

    #[test]
    fn pitfall_091_depth_ends_at_what_canonical_json_can_hold() {
        assert_eq!(depth_after([]), 1);
        assert_eq!(depth_after([3, 9, 4]), 10);
        assert_eq!(depth_after([MAX_DEPTH]), MAX_DEPTH);
        assert_eq!(depth_after([u64::MAX]), MAX_DEPTH);
    }
}
