//! Servers that get the same events in different orders agree: on the state before and after every
//! event, and on which events are rejected. Only soft failure may differ, which depends on what a
//! server knew when the event came.

#![allow(clippy::unwrap_used, clippy::panic)]

mod room;

use std::collections::BTreeMap;

use proptest::{prelude::*, sample::Index};
use rooms::{Draft, Pdu};
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedUserId, RoomVersionId, UInt, canonical_json::CanonicalJsonObject,
};
use serde_json::{Value, json};

use crate::room::{Room, resolve_plainly};

const USERS: [&str; 4] = ["@alice:a.test", "@bob:b.test", "@carol:c.test", "@dave:a.test"];

/// Something a user tries to do, somewhere in the graph.
#[derive(Clone, Debug)]
struct Deed {
    user: usize,
    what: What,
    after: Vec<Index>,
    ts: u64,
}

#[derive(Clone, Debug)]
enum What {
    Message,
    Topic(u8),
    Join,
    Leave,
    Kick(usize),
    Ban(usize),
    Invite(usize),
    Rules(bool),
    Levels { user: usize, level: i64 },
}

fn what() -> impl Strategy<Value = What> {
    prop_oneof![
        2 => Just(What::Message),
        3 => any::<u8>().prop_map(What::Topic),
        4 => Just(What::Join),
        2 => Just(What::Leave),
        1 => (0..USERS.len()).prop_map(What::Kick),
        1 => (0..USERS.len()).prop_map(What::Ban),
        1 => (0..USERS.len()).prop_map(What::Invite),
        1 => any::<bool>().prop_map(What::Rules),
        2 => (1..USERS.len(), prop_oneof![Just(0i64), Just(50), Just(100)])
            .prop_map(|(user, level)| What::Levels { user, level }),
    ]
}

fn deed() -> impl Strategy<Value = Deed> {
    let after = prop::collection::vec(any::<Index>(), 1..3);
    (0..USERS.len(), what(), after, 100u64..140).prop_map(|(user, what, after, ts)| Deed { user, what, after, ts })
}

fn user(at: usize) -> OwnedUserId {
    USERS[at].try_into().unwrap()
}

fn draft(deed: &Deed, at: usize, v12: bool) -> Draft {
    let sender = user(deed.user);
    let member = |of: usize, membership: &str| {
        ("m.room.member", Some(USERS[of].to_owned()), json!({"membership": membership, "n": at}))
    };
    let (kind, state_key, content) = match &deed.what {
        What::Message => ("m.room.message", None, json!({"n": at})),
        What::Topic(n) => ("m.room.topic", Some(String::new()), json!({"topic": n, "n": at})),
        What::Join => member(deed.user, "join"),
        What::Leave => member(deed.user, "leave"),
        What::Kick(target) => member(*target, "leave"),
        What::Ban(target) => member(*target, "ban"),
        What::Invite(target) => member(*target, "invite"),
        What::Rules(open) => {
            let rule = if *open { "public" } else { "invite" };
            ("m.room.join_rules", Some(String::new()), json!({"join_rule": rule, "n": at}))
        }
        What::Levels { user, level } => {
            ("m.room.power_levels", Some(String::new()), levels(Some((*user, *level)), v12))
        }
    };
    let ts = MilliSecondsSinceUnixEpoch(UInt::new(deed.ts).unwrap());
    Draft { kind: kind.into(), content: object(content), state_key, sender, redacts: None, origin_server_ts: ts }
}

fn levels(extra: Option<(usize, i64)>, v12: bool) -> Value {
    let mut users = serde_json::Map::new();
    if !v12 {
        users.insert(USERS[0].to_owned(), json!(100));
    }
    if let Some((user, level)) = extra {
        users.insert(USERS[user].to_owned(), json!(level));
    }
    json!({"users": users, "state_default": 50, "events": {"m.room.topic": 0, "m.room.power_levels": 50}})
}

fn object(value: Value) -> CanonicalJsonObject {
    serde_json::from_value(value).unwrap()
}

/// A room with alice and bob in it, and the deeds done in it in the order given.
fn grow(version: &RoomVersionId, deeds: &[Deed]) -> (Room, Vec<Pdu>) {
    let v12 = *version == RoomVersionId::V12;
    let mut room = Room::new(version);
    let mut events: Vec<Pdu> = Vec::new();
    let start = [
        ("m.room.create", "", 0, json!({"room_version": version.as_str(), "creator": USERS[0]})),
        ("m.room.member", USERS[0], 0, json!({"membership": "join"})),
        ("m.room.power_levels", "", 0, levels(None, v12)),
        ("m.room.join_rules", "", 0, json!({"join_rule": "public"})),
        ("m.room.member", USERS[1], 1, json!({"membership": "join"})),
    ];
    for (at, (kind, key, sender, content)) in start.into_iter().enumerate() {
        let ts = MilliSecondsSinceUnixEpoch(UInt::new(at as u64).unwrap());
        let draft = Draft::state(kind, key, object(content), user(sender), ts);
        let after: Vec<OwnedEventId> = events.last().map(|pdu| pdu.event_id.clone()).into_iter().collect();
        let pdu = room.make(draft, &after, None).pdu;
        assert!(room.receive(pdu.clone()).is_accepted());
        events.push(pdu);
    }
    let base = events.len() - 1;
    for (at, deed) in deeds.iter().enumerate() {
        let mut after: Vec<OwnedEventId> = deed
            .after
            .iter()
            // Mostly the newest few, so that the graph grows long and forked.
            .map(|index| events.len() - 1 - index.index((events.len() - base).min(5)))
            .map(|at| events[at].event_id.clone())
            .collect();
        after.sort();
        after.dedup();
        let pdu = room.make(draft(deed, at, v12), &after, None).pdu;
        if room.numbers.contains_key(&pdu.event_id) {
            continue;
        }
        room.receive(pdu.clone());
        events.push(pdu);
    }
    (room, events)
}

/// What every server has to see alike.
type Seen = BTreeMap<OwnedEventId, (bool, BTreeMap<(String, String), OwnedEventId>)>;

fn seen(room: &Room) -> Seen {
    room.events
        .values()
        .map(|stored| {
            let state = room.state_map(stored.after);
            (stored.pdu.event_id.clone(), (stored.verdict.is_rejected(), state))
        })
        .collect()
}

/// The same events in another order that still has every event after those it refers to.
fn shuffled(events: &[Pdu], seed: u64) -> Vec<Pdu> {
    use rand::{SeedableRng, seq::IndexedRandom};
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let mut left: Vec<&Pdu> = events.iter().collect();
    let mut done: Vec<Pdu> = Vec::new();
    while !left.is_empty() {
        let known = |id: &OwnedEventId| done.iter().any(|pdu| pdu.event_id == *id);
        let ready: Vec<usize> = left
            .iter()
            .enumerate()
            .filter(|(_, pdu)| pdu.prev_events.iter().chain(&pdu.auth_events).all(known))
            .map(|(at, _)| at)
            .collect();
        let next = *ready.choose(&mut rng).unwrap();
        done.push(left.remove(next).clone());
    }
    done
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn the_order_of_arrival_does_not_matter(
        deeds in prop::collection::vec(deed(), 1..40),
        version in prop::sample::select(vec![RoomVersionId::V6, RoomVersionId::V10, RoomVersionId::V11, RoomVersionId::V12]),
        seed: u64,
    ) {
        let (room, events) = grow(&version, &deeds);
        let expected = seen(&room);
        let mut other = Room::new(&version);
        for pdu in shuffled(&events, seed) {
            other.receive(pdu);
        }
        prop_assert_eq!(seen(&other), expected);
    }

    #[test]
    fn the_reduced_question_has_the_answer_of_the_whole(
        deeds in prop::collection::vec(deed(), 1..40),
        version in prop::sample::select(vec![RoomVersionId::V9, RoomVersionId::V11, RoomVersionId::V12]),
        picks in prop::collection::vec(any::<Index>(), 2..5),
    ) {
        let (mut room, events) = grow(&version, &deeds);
        let ids: Vec<OwnedEventId> =
            picks.iter().map(|pick| pick.get(&events).event_id.clone()).collect();
        let roots: Vec<_> = ids.iter().map(|id| room.stored(id).after).collect();
        let plainly = resolve_plainly(&room, &roots);
        let resolved = room.state_after_all(&ids);
        prop_assert_eq!(room.state_map(resolved), plainly);
    }
}
