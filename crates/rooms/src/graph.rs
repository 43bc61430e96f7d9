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
