//! What a message costs on its way into a room, and what state costs in a large one.

#![allow(clippy::unwrap_used)]

use std::{collections::HashMap, hint::black_box, sync::Arc};

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use rooms::{
    Context, Draft, EventNr, Pdu, admit_local,
    build::{auth_types, build},
    rules, seal,
    state::{Corrupt, Fresh, Key, Node, NodeId, Nodes, Root, get, insert},
};
use ruma::{
    CanonicalJsonObject, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedUserId, RoomVersionId, ServerName,
    events::StateEventType, room_version_rules::RoomVersionRules, signatures::Ed25519KeyPair, uint,
};
use serde_json::{Value, json};

struct Room {
    rules: &'static RoomVersionRules,
    room_id: OwnedRoomId,
    key: Ed25519KeyPair,
    state: HashMap<(StateEventType, String), Arc<Pdu>>,
    last: OwnedEventId,
}

fn server() -> &'static ServerName {
    ruma::server_name!("a.test")
}

fn alice() -> OwnedUserId {
    ruma::user_id!("@alice:a.test").to_owned()
}

fn object(value: Value) -> CanonicalJsonObject {
    serde_json::from_value(value).unwrap()
}

fn key_pair() -> Ed25519KeyPair {
    let mut der = vec![0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
    der.extend([7; 32]);
    Ed25519KeyPair::from_der(&der, "1".to_owned()).unwrap()
}

impl Room {
    /// A room of version 12 with a hundred users in its power levels.
    fn new() -> Self {
        let rules = rules(&RoomVersionId::V12).unwrap();
        let mut room = Self {
            rules,
            room_id: "!unknown".try_into().unwrap(),
            key: key_pair(),
            state: HashMap::new(),
            last: "$unknown".try_into().unwrap(),
        };
        let users: serde_json::Map<_, _> = (0..100).map(|n| (format!("@user{n}:a.test"), json!(50))).collect();
        let alice = alice();
        room.add("m.room.create", "", json!({"room_version": "12"}));
        room.add("m.room.member", alice.as_str(), json!({"membership": "join"}));
        room.add("m.room.power_levels", "", json!({"users": users}));
        room.add("m.room.join_rules", "", json!({"join_rule": "public"}));
        room
    }

    fn add(&mut self, kind: &str, key: &str, content: Value) {
        let at = MilliSecondsSinceUnixEpoch(uint!(1_700_000_000));
        let draft = Draft::state(kind, key, object(content), alice(), at);
        let is_create = self.state.is_empty();
        let pdu = self.seal(draft, if is_create { &[] } else { std::slice::from_ref(&self.last) });
        self.room_id = pdu.room_id.clone();
        self.last = pdu.event_id.clone();
        self.state.insert(pdu.state_pair().unwrap(), Arc::new(pdu));
    }

    fn seal(&self, draft: Draft, prev_events: &[OwnedEventId]) -> Pdu {
        let keys = auth_types(&draft, self.rules).unwrap();
        let auth: Vec<OwnedEventId> =
            keys.iter().filter_map(|key| self.state.get(key)).map(|pdu| pdu.event_id.clone()).collect();
        let context = Context { room_id: Some(&self.room_id), prev_events, depth: 7, auth_events: &auth };
        let object = build(draft, &context, self.rules);
        seal(object, server(), &self.key, self.rules).unwrap().pdu
    }

    fn message(&self) -> Draft {
        let body = "a message of a usual length, as people write them to each other";
        let content = object(json!({"body": body, "msgtype": "m.text"}));
        let at = MilliSecondsSinceUnixEpoch(uint!(1_700_000_000));
        Draft::message("m.room.message", content, alice(), at)
    }

    fn admit(&self, pdu: &Pdu) {
        let state = |kind: &StateEventType, key: &str| self.state.get(&(kind.clone(), key.to_owned())).cloned();
        admit_local(pdu, state, self.rules).unwrap();
    }
}

fn messages(c: &mut Criterion) {
    let room = Room::new();
    let prevs = [room.last.clone()];
    let pdu = room.seal(room.message(), &prevs);
    c.bench_function("admit_local of a message", |b| b.iter(|| room.admit(black_box(&pdu))));
    c.bench_function("build and seal a message", |b| {
        b.iter_batched(|| room.message(), |draft| room.seal(draft, &prevs), BatchSize::SmallInput);
    });
    c.bench_function("build, seal and admit_local a message", |b| {
        b.iter_batched(|| room.message(), |draft| room.admit(&room.seal(draft, &prevs)), BatchSize::SmallInput);
    });
}

#[derive(Default)]
struct Memory(HashMap<NodeId, Arc<Node>>);

impl Nodes for Memory {
    type Error = Corrupt;

    fn node(&self, id: NodeId) -> Result<Arc<Node>, Corrupt> {
        self.0.get(&id).cloned().ok_or(Corrupt("no such node"))
    }
}

fn large_state(c: &mut Criterion) {
    let mut memory = Memory::default();
    let member = |n: u64| Key::new("m.room.member", &format!("@user{n}:a.test"));
    let members = (0..10_000).map(|n| (member(n), EventNr(n)));
    let updated = insert(&memory, Root::EMPTY, members, &mut Fresh::new(EventNr(1))).unwrap();
    memory.0.extend(updated.nodes);
    let root = updated.root;
    let key = member(4711);
    c.bench_function("key of a member", |b| {
        b.iter(|| Key::new("m.room.member", black_box("@user4711:a.test")));
    });
    c.bench_function("look up one of 10,000 members", |b| {
        b.iter(|| get(&memory, root, black_box(key)).unwrap());
    });
    c.bench_function("set one of 10,000 members", |b| {
        b.iter(|| {
            let change = [(black_box(key), EventNr(20_000))];
            insert(&memory, root, change, &mut Fresh::new(EventNr(2))).unwrap()
        });
    });
}

criterion_group!(benches, messages, large_state);
criterion_main!(benches);
