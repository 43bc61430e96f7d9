//! A room in memory, driven by the crate the way a homeserver drives it: every event that arrives
//! is judged, stored, and moves the head. Not here: assertions.

#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use rooms::{
    Context, Draft, EventNr, Facts, Needs, Parsed, Pdu, Step, Verdict, admit, build,
    event::StateKey,
    graph, resolve,
    resolve::{AuthEdges, ResolveError, Source, resolve_roots},
    rules, seal,
    state::{self, Corrupt, Fresh, Key, Node, NodeId, Nodes, Root, Select},
};
use ruma::{
    EventId, OwnedEventId, OwnedRoomId, RoomVersionId, room_version_rules::RoomVersionRules, signatures::Ed25519KeyPair,
};

#[derive(Debug)]
pub(crate) enum Error {
    Corrupt(Corrupt),
    NoNode(NodeId),
    Resolve(ResolveError),
}

impl From<Corrupt> for Error {
    fn from(corrupt: Corrupt) -> Self {
        Self::Corrupt(corrupt)
    }
}

impl From<ResolveError> for Error {
    fn from(error: ResolveError) -> Self {
        Self::Resolve(error)
    }
}

/// A key pair that is the same in every run.
pub(crate) fn key_pair(seed: u8) -> Ed25519KeyPair {
    let mut der = vec![0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
    der.extend([seed; 32]);
    Ed25519KeyPair::from_der(&der, "1".to_owned()).unwrap()
}

pub(crate) struct Stored {
    pub(crate) pdu: Arc<Pdu>,
    pub(crate) verdict: Verdict,
    pub(crate) before: Root,
    pub(crate) after: Root,
}

pub(crate) struct Room {
    pub(crate) rules: &'static RoomVersionRules,
    pub(crate) room_id: Option<OwnedRoomId>,
    pub(crate) events: BTreeMap<EventNr, Stored>,
    pub(crate) numbers: HashMap<OwnedEventId, EventNr>,
    pub(crate) extremities: BTreeSet<OwnedEventId>,
    pub(crate) current: Root,
    nodes: HashMap<NodeId, Arc<Node>>,
    next: u64,
}

impl Nodes for Room {
    type Error = Error;

    fn node(&self, id: NodeId) -> Result<Arc<Node>, Error> {
        self.nodes.get(&id).cloned().ok_or(Error::NoNode(id))
    }
}

impl AuthEdges for Room {
    type Error = Error;

    fn auth_events(&self, nr: EventNr) -> Result<Vec<EventNr>, Error> {
        Ok(self.events[&nr].pdu.auth_events.iter().map(|id| self.numbers[id]).collect())
    }
}

impl Source for Room {
    fn event(&self, nr: EventNr) -> Result<Option<Arc<Pdu>>, Error> {
        Ok(self.events.get(&nr).map(|stored| stored.pdu.clone()))
    }

    fn number(&self, id: &EventId) -> Result<Option<EventNr>, Error> {
        Ok(self.numbers.get(id).copied())
    }
}

impl Room {
    pub(crate) fn new(version: &RoomVersionId) -> Self {
        let rules = rules(version).unwrap();
        let v12 = *version == RoomVersionId::V12;
        Self {
            rules,
            room_id: (!v12).then(|| "!room:a.test".try_into().unwrap()),
            events: BTreeMap::new(),
            numbers: HashMap::new(),
            extremities: BTreeSet::new(),
            current: Root::EMPTY,
            nodes: HashMap::new(),
            next: 1,
        }
    }

    fn next_nr(&mut self) -> EventNr {
        self.next += 1;
        EventNr(self.next - 1)
    }

    pub(crate) fn stored(&self, id: &EventId) -> &Stored {
        &self.events[&self.numbers[id]]
    }

    /// The state that several roots resolve to.
    pub(crate) fn resolved(&mut self, roots: &[Root]) -> Root {
        let mut fresh = Fresh::new(self.next_nr());
        let updated = resolve_roots(self, roots, &mut fresh, self.rules).unwrap();
        self.nodes.extend(updated.nodes);
        updated.root
    }

    pub(crate) fn state_after_all(&mut self, prevs: &[OwnedEventId]) -> Root {
        let roots: Vec<Root> = prevs.iter().map(|id| self.stored(id).after).collect();
        if roots.is_empty() { Root::EMPTY } else { self.resolved(&roots) }
    }

    pub(crate) fn lookup(&self, root: Root, key: &StateKey) -> Option<Arc<Pdu>> {
        let nr = state::get(self, root, Key::new(&key.0.to_string(), &key.1)).unwrap()?;
        Some(self.events[&nr].pdu.clone())
    }

    /// The event a draft becomes after these events; its auth events chosen from the state there
    /// unless they are given.
    pub(crate) fn make(&mut self, draft: Draft, prevs: &[OwnedEventId], auth: Option<Vec<OwnedEventId>>) -> Parsed {
        let before = self.state_after_all(prevs);
        let auth = auth.unwrap_or_else(|| {
            let keys = build::auth_types(&draft, self.rules).unwrap_or_default();
            let chosen = keys.iter().filter_map(|key| self.lookup(before, key));
            chosen.map(|pdu| pdu.event_id.clone()).collect()
        });
        let depth = graph::depth_after(prevs.iter().map(|id| self.stored(id).pdu.depth));
        let context = Context { room_id: self.room_id.as_deref(), prev_events: prevs, depth, auth_events: &auth };
        let server = draft.sender.server_name().to_owned();
        let object = build::build(draft, &context, self.rules);
        seal(object, &server, &key_pair(1), self.rules).unwrap()
    }

    /// What happens when an event arrives.
    pub(crate) fn receive(&mut self, pdu: Pdu) -> Verdict {
        let before = self.state_after_all(&pdu.prev_events);
        let mut facts = Facts { at_head: before == self.current, ..Facts::default() };
        let mut rounds = 0;
        let verdict = loop {
            match admit(&pdu, &facts, self.rules) {
                Step::Done(verdict) => break verdict,
                Step::Need(needs) => self.answer(needs, before, &mut facts),
            }
            rounds += 1;
            assert!(rounds < 10, "admission must come to an end");
        };
        self.store(pdu, verdict.clone(), before);
        verdict
    }

    fn answer(&self, needs: Needs, before: Root, facts: &mut Facts) {
        assert!(!needs.is_empty());
        for id in needs.events {
            let event = self.numbers.get(&id).map(|nr| self.events[nr].pdu.clone());
            facts.events.insert(id, event);
        }
        for key in needs.state_before {
            let entry = self.lookup(before, &key);
            facts.state_before.insert(key, entry);
        }
        for key in needs.current_state {
            let entry = self.lookup(self.current, &key);
            facts.current_state.insert(key, entry);
        }
    }

    fn store(&mut self, mut pdu: Pdu, verdict: Verdict, before: Root) {
        pdu.rejected = verdict.is_rejected();
        let nr = self.next_nr();
        let mut after = before;
        if let (Some(state_key), false) = (&pdu.state_key, pdu.rejected) {
            let key = Key::new(&pdu.kind.to_string(), state_key);
            let updated = state::insert(self, before, [(key, nr)], &mut Fresh::new(nr)).unwrap();
            self.nodes.extend(updated.nodes);
            after = updated.root;
        }
        if self.room_id.is_none() && verdict.is_accepted() {
            self.room_id = Some(pdu.room_id.clone());
        }
        let passed_over = |id: &EventId| {
            let stored = self.events.get(self.numbers.get(id)?)?;
            (!stored.verdict.is_accepted()).then(|| stored.pdu.prev_events.clone())
        };
        self.extremities = graph::extremities_after(&self.extremities, &pdu, &verdict, false, passed_over);
        self.numbers.insert(pdu.event_id.clone(), nr);
        let accepted = verdict.is_accepted();
        self.events.insert(nr, Stored { pdu: Arc::new(pdu), verdict, before, after });
        if accepted {
            let heads: Vec<_> = self.extremities.iter().cloned().collect();
            self.current = self.state_after_all(&heads);
        }
    }

    /// A state as a map, to compare rooms whose numbers differ.
    pub(crate) fn state_map(&self, root: Root) -> BTreeMap<(String, String), OwnedEventId> {
        state::iter(self, root, Select::All)
            .map(|nr| {
                let pdu = &self.events[&nr.unwrap()].pdu;
                let key = pdu.state_key.clone().unwrap();
                ((pdu.kind.to_string(), key), pdu.event_id.clone())
            })
            .collect()
    }
}

/// The library's algorithm over whole states and whole auth chains, without any of our reductions.
pub(crate) fn resolve_plainly(room: &Room, roots: &[Root]) -> BTreeMap<(String, String), OwnedEventId> {
    use ruma::state_res::{self, StateMap};
    let maps: Vec<StateMap<OwnedEventId>> = roots
        .iter()
        .map(|root| {
            let map = room.state_map(*root).into_iter();
            map.map(|((kind, key), id)| ((kind.as_str().into(), key), id)).collect()
        })
        .collect();
    let conflicts = resolve::conflicts(room, roots).unwrap();
    let names = |numbers: BTreeSet<EventNr>| -> BTreeSet<OwnedEventId> {
        numbers.iter().map(|nr| room.events[nr].pdu.event_id.clone()).collect()
    };
    let sides = conflicts.iter().flat_map(|conflict| &conflict.sides);
    let conflicting = names(sides.copied().flatten().collect());
    let quickly = names(resolve::subgraph(room, &conflicts).unwrap());
    assert_eq!(quickly, subgraph(room, &conflicting));
    let chains = maps.iter().map(|map| chain(room, map.values()).into_iter().collect()).collect();
    let resolved = state_res::resolve(
        &room.rules.authorization,
        room.rules.state_res.v2_rules().unwrap(),
        &maps,
        chains,
        |id| room.numbers.get(id).map(|nr| room.events[nr].pdu.clone()),
        |conflicted| {
            let conflicted = conflicted.values().flatten();
            Some(subgraph(room, &conflicted.cloned().collect()).into_iter().collect())
        },
    )
    .unwrap();
    resolved.into_iter().map(|((kind, key), id)| ((kind.to_string(), key), id)).collect()
}

/// Some events and everything behind them.
fn chain<'a>(room: &Room, events: impl IntoIterator<Item = &'a OwnedEventId>) -> BTreeSet<OwnedEventId> {
    let mut chain = BTreeSet::new();
    let mut todo: Vec<OwnedEventId> = events.into_iter().cloned().collect();
    while let Some(id) = todo.pop() {
        if chain.insert(id.clone()) {
            todo.extend(room.stored(&id).pdu.auth_events.iter().cloned());
        }
    }
    chain
}

/// The events behind a conflicted one that have a conflicted one behind them.
fn subgraph(room: &Room, conflicted: &BTreeSet<OwnedEventId>) -> BTreeSet<OwnedEventId> {
    let mut subgraph = chain(room, conflicted);
    subgraph.retain(|id| !chain(room, [id]).is_disjoint(conflicted));
    subgraph
}
