//! Which rooms a request is about: the windows of its lists over the user's rooms, and its subscriptions.

use std::sync::Arc;

use super::config::{Config, Filters, Lists, RoomConfig};
use super::connection::State;
use super::order::{Order, Row, Standing};
use crate::schema::{MembershipState, RoomNr};

/// Which of a user's rooms the client hears of, and in which way.
#[derive(Debug, Default)]
pub struct Marks {
    /// The generation of the order: places mean something within one only.
    pub generation: u64,
    /// The change of the order that they were made from.
    changes: u64,
    /// A room is marked because its client has to hear that it is over, which is told once.
    farewell: bool,
    /// For each place in the order, a way; zero for none.
    ways: Vec<u16>,
    pub table: Vec<Way>,
    /// For each list, how many rooms match its filters.
    pub counts: Vec<u64>,
}

/// How a room got into an answer, and what is wanted of it therefore.
#[derive(Clone, Debug)]
pub struct Way {
    pub lists: Lists,
    pub subscribed: bool,
    pub config: Arc<RoomConfig>,
}

impl Marks {
    pub fn places(&self) -> usize {
        self.ways.len()
    }

    pub fn get(&self, at: usize) -> Option<&Way> {
        let way = *self.ways.get(at)?;
        self.table.get(usize::from(way).checked_sub(1)?)
    }

    /// All that are marked, with their places.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &Way)> {
        (0..self.ways.len()).filter_map(|at| Some((at, self.get(at)?)))
    }

    /// Whether the same rooms are marked in the same way, given that the same was asked for.
    pub fn same_rooms(&self, other: &Marks) -> bool {
        let same = |a: &Way, b: &Way| a.lists == b.lists && a.subscribed == b.subscribed;
        self.generation == other.generation
            && self.ways == other.ways
            && self.table.len() == other.table.len()
            && self.table.iter().zip(&other.table).all(|(a, b)| same(a, b))
    }

    fn are_those(&self, other: &Marks) -> bool {
        self.same_rooms(other) && self.counts == other.counts
    }

    /// Whether they would be the same again, as long as the same is asked for.
    fn are_up_to_date(&self, order: &Order) -> bool {
        (self.generation, self.changes) == (order.generation, order.changes) && !self.farewell
    }
}

/// Marks the rooms. What was found before is taken over if nothing changed since, so that this costs nothing then.
pub fn mark(config: &Arc<Config>, state: &State, order: &Order) -> Arc<Marks> {
    let same = state.config.as_ref().is_some_and(|before| Arc::ptr_eq(before, config));
    if same && state.marks.are_up_to_date(order) {
        debug_assert!(state.marks.are_those(&mark_all(config, state, order)), "a change of the order was not counted");
        return state.marks.clone();
    }
    Arc::new(mark_all(config, state, order))
}

fn mark_all(config: &Arc<Config>, state: &State, order: &Order) -> Marks {
    let same = state.config.as_ref().is_some_and(|before| Arc::ptr_eq(before, config));
    let before = if same { &*state.marks.table } else { &[] };
    let mut marker = Marker { config, before, lists: vec![0; order.rows.len()], farewell: false };
    let mut counts = Vec::with_capacity(config.lists.len());
    for (index, list) in config.lists.values().enumerate() {
        let mut count = 0;
        for at in order.sorted.iter().map(|at| *at as usize) {
            let Some(row) = order.rows.get(at) else { continue };
            if !is_listed(row, state) || !matches(row, &list.filters, order) {
                continue;
            }
            if list.ranges.iter().any(|(from, to)| (*from..=*to).contains(&count)) {
                marker.put(at, index);
                marker.farewell |= row.standing == Standing::Over;
            }
            // What is over is shown where it would stand, and counts no more.
            count += usize::from(row.standing == Standing::Listed);
        }
        counts.push(count as u64);
    }
    marker.finish(state, order, counts)
}

struct Marker<'a> {
    config: &'a Config,
    /// What the same request led to before.
    before: &'a [Way],
    lists: Vec<Lists>,
    farewell: bool,
}

impl Marker<'_> {
    fn put(&mut self, at: usize, list: usize) {
        if let Some(lists) = self.lists.get_mut(at) {
            *lists |= 1 << list;
        }
    }

    fn finish(self, state: &State, order: &Order, counts: Vec<u64>) -> Marks {
        let mut ways = vec![0; self.lists.len()];
        let mut table = Vec::new();
        let mut known = hashbrown::HashMap::new();
        for (lists, way) in self.lists.iter().zip(&mut ways).filter(|(lists, _)| **lists != 0) {
            *way = *known.entry(*lists).or_insert_with(|| {
                table.push(self.way(*lists, None));
                table.len() as u16
            });
        }
        let mut known = hashbrown::HashMap::new();
        let mut farewell = self.farewell;
        for (room, config) in &self.config.subscriptions {
            let Some((at, row)) = order.row(*room) else { continue };
            if !is_listed(row, state) {
                continue;
            }
            farewell |= row.standing == Standing::Over;
            let lists = self.lists.get(at).copied().unwrap_or_default();
            if let Some(way) = ways.get_mut(at) {
                // Equal wishes are one and the same.
                *way = *known.entry((lists, Arc::as_ptr(config))).or_insert_with(|| {
                    table.push(self.way(lists, Some(config)));
                    table.len() as u16
                });
            }
        }
        Marks { generation: order.generation, changes: order.changes, farewell, ways, table, counts }
    }

    fn way(&self, lists: Lists, subscription: Option<&Arc<RoomConfig>>) -> Way {
        let known = self.before.iter().find(|way| subscription.is_none() && !way.subscribed && way.lists == lists);
        if let Some(known) = known {
            return known.clone();
        }
        let in_lists = self.config.lists.values().enumerate().filter(|(index, _)| lists & (1 << index) != 0);
        let mut configs = in_lists.map(|(_, list)| &list.room).chain(subscription);
        let first = configs.next().cloned().unwrap_or_default();
        let config = configs.fold(first, |all, one| if all == *one { all } else { Arc::new(all.and(one)) });
        Way { lists, subscribed: subscription.is_some(), config }
    }
}

/// Whether a room is one of those that lists and subscriptions can have.
fn is_listed(row: &Row, state: &State) -> bool {
    match row.standing {
        Standing::Listed => true,
        Standing::Hidden => false,
        // The client learns that it is over, if it knows the room.
        Standing::Over => state.knows(row.room).is_some_and(|since| since < row.member.event),
    }
}

fn matches(row: &Row, filters: &Filters, order: &Order) -> bool {
    let is = |wanted: Option<bool>, value: bool| wanted.is_none_or(|wanted| wanted == value);
    if !is(filters.is_dm, row.is_dm) || !is(filters.is_invite, row.member.state == MembershipState::Invite) {
        return false;
    }
    let tagged = |tag: &String| order.has_tag(row.room, tag);
    if filters.not_tags.iter().any(tagged) || filters.tags.as_ref().is_some_and(|tags| !tags.iter().any(tagged)) {
        return false;
    }
    let inside = |spaces: &Vec<RoomNr>| spaces.iter().any(|space| order.has_child(*space, row.room));
    if filters.spaces.as_ref().is_some_and(|spaces| !inside(spaces)) {
        return false;
    }
    if !filters.need_state() {
        return true;
    }
    let Some(traits) = row.traits() else { return false };
    is(filters.is_encrypted, traits.encrypted)
        && !filters.not_room_types.contains(&traits.room_type)
        && filters.room_types.as_ref().is_none_or(|wanted| wanted.contains(&traits.room_type))
}
