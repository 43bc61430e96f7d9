//! State resolution: one state out of several that contradict each other (algorithms 2 and 2.1).
//!
//! The algorithm is the library's. Here the question is made small before it is put: only the
//! entries in conflict go in, and of the rest what the authorization rules look at. Not here:
//! fetching events from other servers; all events of the states and of their auth chains must be
//! stored.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use ruma::{
    EventId, OwnedEventId,
    events::TimelineEventType,
    room_version_rules::{RoomVersionRules, StateResolutionV2Rules},
    state_res::{self, StateMap, utils::event_id_set::EventIdSet},
};

use crate::{
    admit::{Needs, Step},
    auth::keys_to_judge,
    event::{EventNr, Pdu, StateKey, create_id_of_room, room_id_is_create_hash},
    state::{self, Fresh, Key, Nodes, Root, Select, Updated},
};

/// An entry on which states do not agree: what it is in each of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    pub key: Key,
    pub sides: Vec<Option<EventNr>>,
}

/// What is known so far about the events in and around the conflict.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    by_id: HashMap<OwnedEventId, (EventNr, Arc<Pdu>)>,
    by_nr: HashMap<EventNr, OwnedEventId>,
    /// Entries on which all states agree. `None`: not set in any of them.
    pub agreed: HashMap<StateKey, Option<EventNr>>,
    /// See [`auth_difference`].
    pub auth_difference: Option<BTreeSet<EventNr>>,
    /// See [`subgraph`].
    pub subgraph: Option<BTreeSet<EventNr>>,
}

impl Facts {
    pub fn add_event(&mut self, nr: EventNr, pdu: Arc<Pdu>) {
        self.by_nr.insert(nr, pdu.event_id.clone());
        self.by_id.insert(pdu.event_id.clone(), (nr, pdu));
    }

    fn number(&self, nr: EventNr) -> Option<&Arc<Pdu>> {
        self.by_id.get(self.by_nr.get(&nr)?).map(|(_, pdu)| pdu)
    }

    fn id(&self, id: &EventId) -> Option<Arc<Pdu>> {
        self.by_id.get(id).map(|(_, pdu)| pdu.clone())
    }
}

/// Why states could not be resolved.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    #[error("this room version has no state resolution that we know")]
    Version,
    #[error("more than {MAX_SIDES} states at once")]
    TooManySides,
    #[error("event {0} of an auth chain is not stored")]
    Missing(String),
    #[error(transparent)]
    Algorithm(#[from] state_res::Error),
}

/// More states than an event can follow are never resolved at once.
pub const MAX_SIDES: usize = 64;

/// The changes to the first state that make it the resolved one.
pub type Changes = Vec<(Key, Option<EventNr>)>;

/// Where the states differ.
pub fn conflicts<N: Nodes>(nodes: &N, roots: &[Root]) -> Result<Vec<Conflict>, N::Error> {
    let Some((first, others)) = roots.split_first() else { return Ok(Vec::new()) };
    let mut conflicts: BTreeMap<Key, Vec<Option<EventNr>>> = BTreeMap::new();
    for (at, other) in others.iter().enumerate() {
        for change in state::diff(nodes, *first, *other, Select::All)? {
            let sides = conflicts.entry(change.key).or_insert_with(|| vec![change.before; roots.len()]);
            if let Some(side) = sides.get_mut(at + 1) {
                *side = change.after;
            }
        }
    }
    Ok(conflicts.into_iter().map(|(key, sides)| Conflict { key, sides }).collect())
}

/// Resolve the conflicts, or ask for what is missing.
pub fn resolve(conflicts: &[Conflict], facts: &Facts, rules: &RoomVersionRules) -> Step<Result<Changes, ResolveError>> {
    let Some(algorithm) = rules.state_res.v2_rules() else {
        return Step::Done(Err(ResolveError::Version));
    };
    let question = Question { conflicts, facts, rules, algorithm };
    let needs = question.needs();
    if needs.is_empty() { Step::Done(question.answer()) } else { Step::Need(needs) }
}

struct Question<'a> {
    conflicts: &'a [Conflict],
    facts: &'a Facts,
    rules: &'a RoomVersionRules,
    algorithm: &'a StateResolutionV2Rules,
}

impl Question<'_> {
    /// What is missing, in stages: each stage can only be known when the one before is complete.
    fn needs(&self) -> Needs {
        let mut needs = Needs {
            auth_difference: self.facts.auth_difference.is_none(),
            subgraph: self.algorithm.consider_conflicted_state_subgraph && self.facts.subgraph.is_none(),
            ..Needs::default()
        };
        let missing = |nr: &EventNr| !self.facts.by_nr.contains_key(nr);
        needs.numbers = self.full_conflicted_set().filter(missing).collect();
        if !needs.is_empty() {
            return needs;
        }
        let asked = self.keys_around();
        let agreed = asked.iter().filter(|key| !self.facts.agreed.contains_key(*key));
        needs.agreed_state = agreed.cloned().collect();
        let known = asked.iter().filter_map(|key| self.facts.agreed.get(key).copied().flatten());
        needs.numbers = known.filter(missing).collect();
        if needs.is_empty() {
            needs.events = self.missing_auth_events();
        }
        needs
    }

    /// The numbers of the conflicting events, the auth difference and the subgraph.
    fn full_conflicted_set(&self) -> impl Iterator<Item = EventNr> {
        let conflicting = self.conflicts.iter().flat_map(|conflict| &conflict.sides).flatten();
        let difference = self.facts.auth_difference.iter().flatten();
        let subgraph = self.facts.subgraph.iter().flatten();
        conflicting.chain(difference).chain(subgraph).copied()
    }

    /// The entries outside the conflict that the algorithm looks at, or may add to.
    fn keys_around(&self) -> BTreeSet<StateKey> {
        let in_conflict: HashSet<Key> = self.conflicts.iter().map(|conflict| conflict.key).collect();
        let mut keys = BTreeSet::from([(TimelineEventType::RoomPowerLevels.to_string().into(), String::new())]);
        for nr in self.full_conflicted_set() {
            let Some(pdu) = self.facts.number(nr) else { continue };
            keys.extend(pdu.state_pair());
            keys.extend(keys_to_judge(pdu, self.rules).unwrap_or_default());
        }
        keys.retain(|(kind, key)| !in_conflict.contains(&Key::new(&kind.to_string(), key)));
        keys
    }

    /// The auth events of everything that takes part, and the whole line of power levels events
    /// behind it, which orders the events.
    fn missing_auth_events(&self) -> BTreeSet<OwnedEventId> {
        let agreed = self.facts.agreed.values().copied().flatten();
        let mut todo: Vec<Arc<Pdu>> =
            self.full_conflicted_set().chain(agreed).filter_map(|nr| self.facts.number(nr).cloned()).collect();
        let mut seen: HashSet<OwnedEventId> = todo.iter().map(|pdu| pdu.event_id.clone()).collect();
        let mut missing = BTreeSet::new();
        while let Some(pdu) = todo.pop() {
            for id in pdu.auth_events.iter().chain(create_behind(&pdu, self.rules).as_ref()) {
                match self.facts.id(id) {
                    None => {
                        missing.insert(id.clone());
                    }
                    Some(event) if event.is_state(&TimelineEventType::RoomPowerLevels, "") => {
                        if seen.insert(id.clone()) {
                            todo.push(event);
                        }
                    }
                    Some(_) => {}
                }
            }
        }
        missing
    }

    fn answer(&self) -> Result<Changes, ResolveError> {
        let maps = self.state_maps();
        let ids = |numbers: &Option<BTreeSet<EventNr>>| -> EventIdSet<OwnedEventId> {
            let numbers = numbers.iter().flatten();
            numbers.filter_map(|nr| self.facts.by_nr.get(nr).cloned()).collect()
        };
        // The library wants whole auth chains and takes the difference; we have the difference,
        // which is also that of itself and nothing.
        let chains = vec![ids(&self.facts.auth_difference), EventIdSet::new()];
        let resolved = state_res::resolve(
            &self.rules.authorization,
            self.algorithm,
            &maps,
            chains,
            |id| self.facts.id(id),
            |_| Some(ids(&self.facts.subgraph)),
        )?;
        Ok(self.changes(&resolved))
    }

    /// The states to resolve, reduced to what matters.
    fn state_maps(&self) -> Vec<StateMap<OwnedEventId>> {
        let sides = self.conflicts.first().map_or(0, |conflict| conflict.sides.len());
        let mut agreed = StateMap::new();
        if !self.algorithm.begin_iterative_auth_checks_with_empty_state_map {
            for (key, nr) in &self.facts.agreed {
                if let Some(id) = nr.and_then(|nr| self.facts.by_nr.get(&nr)) {
                    agreed.insert(key.clone(), id.clone());
                }
            }
        }
        let mut maps = vec![agreed; sides];
        for conflict in self.conflicts {
            for (map, nr) in maps.iter_mut().zip(&conflict.sides) {
                if let Some(pdu) = nr.and_then(|nr| self.facts.number(nr))
                    && let Some(key) = pdu.state_pair()
                {
                    map.insert(key, pdu.event_id.clone());
                }
            }
        }
        maps
    }

    /// What the resolved entries change in the first state.
    fn changes(&self, resolved: &StateMap<OwnedEventId>) -> Changes {
        let mut after: HashMap<Key, EventNr> = HashMap::with_capacity(resolved.len());
        for ((kind, key), id) in resolved {
            // An entry on which all agree stays as it is, whatever the algorithm says on its way.
            let agreed = self.facts.agreed.get(&(kind.clone(), key.clone())).copied().flatten();
            if let (None, Some((nr, _))) = (agreed, self.facts.by_id.get(id)) {
                after.insert(Key::new(&kind.to_string(), key), *nr);
            }
        }
        let mut changes = Changes::new();
        for conflict in self.conflicts {
            let resolved = after.remove(&conflict.key);
            if conflict.sides.first().copied().flatten() != resolved {
                changes.push((conflict.key, resolved));
            }
        }
        // Entries no state had, from events that only the auth chains know.
        changes.extend(after.into_iter().map(|(key, nr)| (key, Some(nr))));
        changes.sort();
        changes
    }
}

/// The create event, where events do not cite it themselves.
fn create_behind(pdu: &Pdu, rules: &RoomVersionRules) -> Option<OwnedEventId> {
    let implied = room_id_is_create_hash(rules) && pdu.kind != TimelineEventType::RoomCreate;
    implied.then(|| create_id_of_room(&pdu.room_id)).flatten()
}

/// Knows which events an event cites as its auth events.
pub trait AuthEdges {
    type Error;

    /// The auth events, whose numbers are all smaller than `nr`.
    fn auth_events(&self, nr: EventNr) -> Result<Vec<EventNr>, Self::Error>;
}

/// The auth chain difference: the events in the auth chains of some states, but not of all. The
/// events of a state count as part of its auth chain, as they do in other servers.
///
/// `agreed` are the events on which all states agree. Numbers only go down along auth edges, so
/// the chains are followed from the highest number on, and only until all that is left is in all
/// of them.
pub fn auth_difference<E: AuthEdges>(
    edges: &E,
    conflicts: &[Conflict],
    agreed: impl IntoIterator<Item = EventNr>,
) -> Result<BTreeSet<EventNr>, E::Error> {
    let sides = conflicts.first().map_or(0, |conflict| conflict.sides.len()).min(MAX_SIDES);
    let all = u64::MAX.checked_shr((MAX_SIDES - sides) as u32).unwrap_or(0);
    let mut todo: BTreeMap<EventNr, u64> = agreed.into_iter().map(|nr| (nr, all)).collect();
    for conflict in conflicts {
        for (side, nr) in conflict.sides.iter().take(sides).enumerate() {
            if let Some(nr) = nr {
                *todo.entry(*nr).or_default() |= 1 << side;
            }
        }
    }
    let mut open = todo.values().filter(|mask| **mask != all).count();
    let mut difference = BTreeSet::new();
    while open > 0 {
        let Some((nr, mask)) = todo.pop_last() else { break };
        if mask != all {
            open -= 1;
            difference.insert(nr);
        }
        for cited in edges.auth_events(nr)? {
            // An edge that does not go down could lead in a circle; there is none in a store that
            // keeps its promise.
            if cited >= nr {
                continue;
            }
            let before = todo.get(&cited).copied();
            let after = before.unwrap_or(0) | mask;
            open += usize::from(before.is_none() && after != all);
            open -= usize::from(before.is_some_and(|before| before != all) && after == all);
            todo.insert(cited, after);
        }
    }
    Ok(difference)
}

/// The conflicted state subgraph: all events on the paths along auth edges from one conflicting
/// event to another, those included.
pub fn subgraph<E: AuthEdges>(edges: &E, conflicts: &[Conflict]) -> Result<BTreeSet<EventNr>, E::Error> {
    let conflicting: BTreeSet<EventNr> =
        conflicts.iter().flat_map(|conflict| &conflict.sides).copied().flatten().collect();
    let Some(lowest) = conflicting.first().copied() else { return Ok(BTreeSet::new()) };
    // Everything behind the conflicting events that can still lead to one of them.
    let mut behind: BTreeMap<EventNr, Vec<EventNr>> = BTreeMap::new();
    let mut todo: Vec<EventNr> = conflicting.iter().copied().collect();
    while let Some(nr) = todo.pop() {
        if behind.contains_key(&nr) {
            continue;
        }
        let mut cited = edges.auth_events(nr)?;
        cited.retain(|cited| *cited >= lowest && *cited < nr);
        todo.extend(&cited);
        behind.insert(nr, cited);
    }
    let mut subgraph = BTreeSet::new();
    for (nr, cited) in &behind {
        if conflicting.contains(nr) || cited.iter().any(|cited| subgraph.contains(cited)) {
            subgraph.insert(*nr);
        }
    }
    Ok(subgraph)
}

/// Everything resolution asks for, from a store that has it all.
pub trait Source: Nodes + AuthEdges<Error = <Self as Nodes>::Error> {
    fn event(&self, nr: EventNr) -> Result<Option<Arc<Pdu>>, <Self as Nodes>::Error>;
    fn number(&self, id: &EventId) -> Result<Option<EventNr>, <Self as Nodes>::Error>;
}

/// The state resolved from several, answering the questions of [`resolve`] from a store.
pub fn resolve_roots<S: Source>(
    source: &S,
    roots: &[Root],
    fresh: &mut Fresh,
    rules: &RoomVersionRules,
) -> Result<Updated, <S as Nodes>::Error>
where
    <S as Nodes>::Error: From<ResolveError>,
{
    let mut distinct = roots.to_vec();
    distinct.sort_by_key(|root| root.0);
    distinct.dedup();
    let first = distinct.first().copied().unwrap_or(Root::EMPTY);
    let unchanged = Updated { root: first, nodes: Vec::new() };
    if distinct.len() < 2 {
        return Ok(unchanged);
    }
    if distinct.len() > MAX_SIDES {
        return Err(ResolveError::TooManySides.into());
    }
    let conflicts = conflicts(source, &distinct)?;
    if conflicts.is_empty() {
        return Ok(unchanged);
    }
    let mut facts = Facts::default();
    loop {
        match resolve(&conflicts, &facts, rules) {
            Step::Done(changes) => return state::update(source, first, changes?, fresh),
            Step::Need(needs) => find(source, first, &conflicts, needs, &mut facts)?,
        }
    }
}

fn find<S: Source>(
    source: &S,
    first: Root,
    conflicts: &[Conflict],
    needs: Needs,
    facts: &mut Facts,
) -> Result<(), <S as Nodes>::Error>
where
    <S as Nodes>::Error: From<ResolveError>,
{
    if needs.auth_difference {
        let in_conflict: HashSet<EventNr> =
            conflicts.iter().filter_map(|conflict| conflict.sides.first().copied()?).collect();
        let mut agreed = Vec::new();
        for nr in state::iter(source, first, Select::All) {
            agreed.push(nr?);
        }
        agreed.retain(|nr| !in_conflict.contains(nr));
        facts.auth_difference = Some(auth_difference(source, conflicts, agreed)?);
    }
    if needs.subgraph {
        facts.subgraph = Some(subgraph(source, conflicts)?);
    }
    for (kind, key) in needs.agreed_state {
        let nr = state::get(source, first, Key::new(&kind.to_string(), &key))?;
        facts.agreed.insert((kind, key), nr);
    }
    let missing = |what: String| <S as Nodes>::Error::from(ResolveError::Missing(what));
    for nr in needs.numbers {
        let pdu = source.event(nr)?.ok_or_else(|| missing(nr.to_string()))?;
        facts.add_event(nr, pdu);
    }
    for id in needs.events {
        let nr = source.number(&id)?.ok_or_else(|| missing(id.to_string()))?;
        let pdu = source.event(nr)?.ok_or_else(|| missing(id.to_string()))?;
        facts.add_event(nr, pdu);
    }
    Ok(())
}
