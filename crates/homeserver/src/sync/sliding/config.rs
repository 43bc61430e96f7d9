//! What a client asks of a connection: lists, subscriptions, and what it wants of each room. The same for all dialects;
//! how it is spelled is for the endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hashbrown::HashSet;
use store::Pos;

use crate::error::{Error, Result};
use crate::schema::RoomNr;

/// A connection has at most so many lists: as many as a [`Lists`] has bits for, and to spare.
pub const MAX_LISTS: usize = 100;
/// No timeline is longer, whatever is asked for.
pub const MAX_TIMELINE: usize = 500;
/// So much may be said of one list or subscription: patterns of state, exceptions from them, ranges, entries of a filter.
/// Clients say some dozens.
pub const MAX_ENTRIES: usize = 200;
/// Whatever way the wishes of lists and subscriptions come together in rooms, they are no more patterns than this.
const MAX_COMBINED: usize = 40_000;

/// The lists a room is in, by their place in the order of the names.
pub type Lists = u128;

/// One request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    pub lists: BTreeMap<String, List>,
    /// Sorted by room.
    pub subscriptions: Vec<(RoomNr, Arc<RoomConfig>)>,
    pub extensions: Extensions,
}

impl Config {
    /// What it takes in memory, besides what is wanted of rooms.
    pub fn bytes(&self) -> usize {
        let lists = self.lists.iter().map(|(name, list)| ENTRY_BYTES + name.len() + list.bytes());
        let scopes = [&self.extensions.account_data, &self.extensions.receipts, &self.extensions.typing];
        let rooms: usize = scopes.iter().map(|scope| scope.rooms.capacity()).sum();
        size_of::<Self>() + lists.sum::<usize>() + self.subscriptions.capacity() * 16 + rooms * 10
    }

    /// What is wanted of rooms, by each list and subscription.
    pub fn wishes(&self) -> impl Iterator<Item = &Arc<RoomConfig>> {
        let lists = self.lists.values().map(|list| &list.room);
        lists.chain(self.subscriptions.iter().map(|(_, room)| room))
    }

    /// Refuses what no client has use for, and makes equal wishes one.
    pub fn checked(mut self) -> Result<Self> {
        let too_much = || Error::invalid_param("There is too much in a list or in a subscription");
        if !self.lists.values().all(List::is_modest) || !self.wishes().all(|room| room.required.is_modest()) {
            return Err(too_much());
        }
        let of_lists = share(self.lists.values_mut().map(|list| &mut list.room)).ok_or_else(too_much)?;
        let subscribed = share(self.subscriptions.iter_mut().map(|(_, room)| room)).ok_or_else(too_much)?;
        // A room may be in any of the lists, and subscribed to in any way or not at all.
        let patterns = |wishes: &[Arc<RoomConfig>]| wishes.iter().map(|room| room.required.len()).collect::<Vec<_>>();
        let all: usize = patterns(&of_lists).iter().sum();
        let most = all + patterns(&subscribed).into_iter().max().unwrap_or_default();
        let combinations = (1 << of_lists.len().min(16)) * (1 + subscribed.len());
        if most.saturating_mul(combinations) > MAX_COMBINED { Err(too_much()) } else { Ok(self) }
    }

    /// Whether it says anything about rooms.
    pub fn has_rooms(&self) -> bool {
        !self.lists.is_empty() || !self.subscriptions.is_empty()
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List {
    /// From and to, both of them in.
    pub ranges: Vec<(usize, usize)>,
    pub room: Arc<RoomConfig>,
    pub filters: Filters,
}

/// Lets equal wishes be one and the same. The different ones, if they are not too many.
fn share<'w>(wishes: impl Iterator<Item = &'w mut Arc<RoomConfig>>) -> Option<Vec<Arc<RoomConfig>>> {
    let mut different: Vec<Arc<RoomConfig>> = Vec::new();
    for wish in wishes {
        match different.iter().find(|known| *known == wish) {
            Some(known) => *wish = known.clone(),
            None if different.len() == MAX_LISTS => return None,
            None => different.push(wish.clone()),
        }
    }
    Some(different)
}

impl List {
    fn is_modest(&self) -> bool {
        self.ranges.len() <= MAX_ENTRIES && self.filters.lengths().iter().all(|length| *length <= MAX_ENTRIES)
    }

    fn bytes(&self) -> usize {
        size_of::<Self>() + self.ranges.capacity() * 16 + self.filters.bytes()
    }
}

/// Which rooms a list is of. What is not said does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters {
    pub is_dm: Option<bool>,
    pub is_encrypted: Option<bool>,
    pub is_invite: Option<bool>,
    /// `None` in the list stands for rooms without a type.
    pub room_types: Option<Vec<Option<String>>>,
    pub not_room_types: Vec<Option<String>>,
    /// Children of any of these spaces, as far as the user is in the space.
    pub spaces: Option<Vec<RoomNr>>,
    /// Rooms with any of these tags.
    pub tags: Option<Vec<String>>,
    pub not_tags: Vec<String>,
}

impl Filters {
    fn lengths(&self) -> [usize; 5] {
        let length = |list: &Option<Vec<String>>| list.as_ref().map_or(0, Vec::len);
        [
            self.room_types.as_ref().map_or(0, Vec::len),
            self.not_room_types.len(),
            self.spaces.as_ref().map_or(0, Vec::len),
            length(&self.tags),
            self.not_tags.len(),
        ]
    }

    fn bytes(&self) -> usize {
        let kinds = self.room_types.iter().flatten().chain(&self.not_room_types).flatten();
        let texts = kinds.chain(self.tags.iter().flatten()).chain(&self.not_tags);
        let entries: usize = self.lengths().iter().sum();
        entries * size_of::<String>() + texts.map(String::capacity).sum::<usize>()
    }

    /// Whether the state of rooms has to be read for it.
    pub fn need_state(&self) -> bool {
        self.is_encrypted.is_some() || self.room_types.is_some() || !self.not_room_types.is_empty()
    }

    /// Whether the tags of rooms have to be known for it.
    pub fn need_tags(&self) -> bool {
        self.tags.is_some() || !self.not_tags.is_empty()
    }
}

/// What is wanted of a room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoomConfig {
    pub timeline_limit: usize,
    pub required: Required,
}

impl RoomConfig {
    /// What it takes in memory.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.required.bytes()
    }

    /// Both of them.
    pub fn and(&self, other: &Self) -> Self {
        let mut both = self.clone();
        both.timeline_limit = both.timeline_limit.max(other.timeline_limit);
        both.required.add(&other.required);
        both
    }

    /// Whether a client that asked for `before` lacks some of it.
    pub fn expands(&self, before: &Self) -> bool {
        self.timeline_limit > before.timeline_limit || self.required.expands(&before.required)
    }
}

/// Which state events are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Required {
    /// All of them but members.
    pub others: bool,
    /// All members.
    pub members: bool,
    /// The members who are seen in the timeline.
    pub lazy: bool,
    /// By type.
    types: BTreeMap<String, Keys>,
    /// Whatever the type.
    any_type: BTreeSet<String>,
    /// What is not wanted, though it is among the above. Members who are seen in the timeline are wanted all the same.
    except: BTreeSet<Pattern>,
}

/// State events of a type, with a key; `None` stands for all.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pattern {
    pub kind: Option<String>,
    pub key: Option<String>,
}

impl Pattern {
    fn has_kind(&self, kind: &str) -> bool {
        self.kind.as_deref().is_none_or(|wanted| wanted == kind)
    }

    fn has_key(&self, key: &str) -> bool {
        self.key.as_deref().is_none_or(|wanted| wanted == key)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Keys {
    all: bool,
    keys: BTreeSet<String>,
}

const MEMBER: &str = "m.room.member";
/// What a text takes in a set or map besides its bytes, with its share of a node that is half full.
const ENTRY_BYTES: usize = 64;

impl Required {
    /// All that fits one of the patterns, but for what fits one of the exceptions. With `lazy`, a pattern of everything
    /// leaves out the members.
    pub fn new(wanted: Vec<Pattern>, except: Vec<Pattern>, lazy: bool) -> Self {
        let mut required = Required { lazy, except: except.into_iter().collect(), ..Required::default() };
        for Pattern { kind, key } in wanted {
            match (kind, key) {
                (None, None) => required.others = true,
                (Some(kind), None) if kind == MEMBER => required.members = true,
                (Some(kind), None) => required.types.entry(kind).or_default().all = true,
                (None, Some(key)) => {
                    required.any_type.insert(key);
                }
                (Some(kind), Some(key)) => {
                    required.types.entry(kind).or_default().keys.insert(key);
                }
            }
        }
        required.members |= required.others && !lazy;
        required
    }

    /// From pairs of type and key, where `*` stands for all. `me` is what `$ME` stands for.
    pub fn from_pairs<'p>(pairs: impl IntoIterator<Item = (&'p str, &'p str)>, me: &str) -> Self {
        let (mut wanted, mut lazy) = (Vec::new(), false);
        let all = |text: &str| Some(text).filter(|text| *text != "*").map(str::to_owned);
        for (kind, key) in pairs {
            match key {
                "$LAZY" => lazy |= kind == MEMBER,
                "$ME" => wanted.push(Pattern { kind: all(kind), key: Some(me.to_owned()) }),
                key => wanted.push(Pattern { kind: all(kind), key: all(key) }),
            }
        }
        Required::new(wanted, Vec::new(), lazy)
    }

    fn add(&mut self, other: &Self) {
        // What one of them does not want remains an exception only if the other has no use for it.
        let idle = |pattern: &Pattern, of: &Self| of.except.contains(pattern) || !of.may_want(pattern);
        let mine = self.except.iter().filter(|pattern| idle(pattern, other));
        let theirs = other.except.iter().filter(|pattern| idle(pattern, self));
        self.except = mine.chain(theirs).cloned().collect();
        self.others |= other.others;
        self.members |= other.members;
        self.lazy |= other.lazy;
        self.any_type.extend(other.any_type.iter().cloned());
        for (kind, more) in &other.types {
            let keys = self.types.entry(kind.clone()).or_default();
            keys.all |= more.all;
            keys.keys.extend(more.keys.iter().cloned());
        }
    }

    /// How many patterns and exceptions there are.
    fn len(&self) -> usize {
        self.patterns() + self.except.len()
    }

    fn patterns(&self) -> usize {
        let typed = |keys: &Keys| usize::from(keys.all) + keys.keys.len();
        self.any_type.len() + self.types.values().map(typed).sum::<usize>()
    }

    fn is_modest(&self) -> bool {
        self.except.len() <= MAX_ENTRIES && self.patterns() <= MAX_ENTRIES
    }

    fn bytes(&self) -> usize {
        let entry = |text: &String| ENTRY_BYTES + text.capacity();
        let typed = |(kind, keys): (&String, &Keys)| {
            2 * ENTRY_BYTES + kind.capacity() + keys.keys.iter().map(entry).sum::<usize>()
        };
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::capacity);
        let except = |pattern: &Pattern| 2 * ENTRY_BYTES + text(&pattern.kind) + text(&pattern.key);
        self.types.iter().map(typed).sum::<usize>()
            + self.any_type.iter().map(entry).sum::<usize>()
            + self.except.iter().map(except).sum::<usize>()
    }

    /// Whether a state event is wanted, whoever is seen in the timeline.
    pub fn wants(&self, kind: &str, key: &str) -> bool {
        let all = if kind == MEMBER { self.members } else { self.others };
        let named = || self.types.get(kind).is_some_and(|keys| keys.all || keys.keys.contains(key));
        let excepted = || self.except.iter().any(|pattern| pattern.has_kind(kind) && pattern.has_key(key));
        (all || self.any_type.contains(key) || named()) && !excepted()
    }

    /// Whether there may be a state event that fits the pattern and is wanted.
    fn may_want(&self, pattern: &Pattern) -> bool {
        let any = |keys: &BTreeSet<String>| keys.iter().any(|key| pattern.has_key(key));
        let typed = |(kind, keys): (&String, &Keys)| pattern.has_kind(kind) && (keys.all || any(&keys.keys));
        self.others && pattern.kind.as_deref() != Some(MEMBER)
            || self.members && pattern.has_kind(MEMBER)
            || any(&self.any_type)
            || self.types.iter().any(typed)
    }

    /// Whether not all of what it names is wanted.
    pub fn has_exceptions(&self) -> bool {
        !self.except.is_empty()
    }

    /// Whether it takes a look at every state event that is no member to know which are wanted.
    pub fn needs_search(&self) -> bool {
        !self.any_type.is_empty() || self.types.values().any(|keys| keys.all)
    }

    /// What can be looked up.
    pub fn exact(&self) -> impl Iterator<Item = (&str, &str)> {
        let types = self.types.iter();
        let typed = types.flat_map(|(kind, keys)| keys.keys.iter().map(move |key| (kind.as_str(), key.as_str())));
        typed.chain(self.any_type.iter().map(|key| (MEMBER, key.as_str())))
    }

    fn expands(&self, before: &Self) -> bool {
        if self == before {
            return false;
        }
        let has = |kind: &str, keys: &Keys| {
            let known = before.types.get(kind);
            let all = before.others && kind != MEMBER || known.is_some_and(|known| known.all);
            all || !keys.all && keys.keys.iter().all(|key| before.wants(kind, key))
        };
        self.others && !before.others
            || self.members && !before.members
            || self.lazy && !(before.lazy || before.members)
            || before.except.iter().any(|pattern| !self.except.contains(pattern))
            || self.any_type.iter().any(|key| !before.any_type.contains(key))
            || self.types.iter().any(|(kind, keys)| !has(kind, keys))
    }
}

/// What is wanted besides rooms.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extensions {
    pub account_data: Scope,
    pub receipts: Scope,
    pub typing: Scope,
    pub to_device: bool,
    pub e2ee: bool,
}

/// Which messages to the device are wanted. Apart from the rest of a request, because it changes with every one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Messages {
    /// The device has those up to here.
    pub since: Option<Pos>,
    pub limit: usize,
}

/// For which rooms an extension is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    pub enabled: bool,
    pub lists: Lists,
    /// All rooms that are subscribed to.
    pub subscribed: bool,
    pub rooms: HashSet<RoomNr>,
}

impl Scope {
    pub fn covers(&self, room: RoomNr, lists: Lists, subscribed: bool) -> bool {
        self.enabled && (self.lists & lists != 0 || self.subscribed && subscribed || self.rooms.contains(&room))
    }
}

/// A set of extensions: those a room is in the scope of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scopes(u8);

impl Scopes {
    pub const ACCOUNT_DATA: Scopes = Scopes(1);
    pub const RECEIPTS: Scopes = Scopes(2);
    pub const TYPING: Scopes = Scopes(4);
    pub const ALL: Scopes = Scopes(7);

    pub fn has(self, other: Scopes) -> bool {
        self.0 & other.0 != 0
    }

    pub fn without(self, other: Scopes) -> Scopes {
        Scopes(self.0 & !other.0)
    }
}

impl Extensions {
    /// The extensions that are wanted for a room.
    pub fn scopes(&self, room: RoomNr, lists: Lists, subscribed: bool) -> Scopes {
        let bit = |scope: &Scope, bit: Scopes| if scope.covers(room, lists, subscribed) { bit.0 } else { 0 };
        Scopes(
            bit(&self.account_data, Scopes::ACCOUNT_DATA)
                | bit(&self.receipts, Scopes::RECEIPTS)
                | bit(&self.typing, Scopes::TYPING),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn required(pairs: &[(&str, &str)]) -> Required {
        Required::from_pairs(pairs.iter().copied(), "@me:x")
    }

    #[test]
    fn pitfall_043_special_values_of_required_state() {
        let some = required(&[("m.room.name", ""), ("m.space.child", "*"), (MEMBER, "$LAZY"), (MEMBER, "$ME")]);
        assert!(some.wants("m.room.name", "") && !some.wants("m.room.name", "x"));
        assert!(some.wants("m.space.child", "!a") && some.needs_search() && some.lazy);
        assert!(some.wants(MEMBER, "@me:x") && !some.wants(MEMBER, "@you:x") && !some.wants(MEMBER, "$ME"));
        let all = required(&[("*", "*")]);
        assert!(all.wants(MEMBER, "@you:x") && all.wants("any", "thing"));
        let lazily = required(&[("*", "*"), (MEMBER, "$LAZY")]);
        assert!(!lazily.wants(MEMBER, "@you:x") && lazily.wants("any", "thing") && lazily.lazy);
        let key = required(&[("*", "k")]);
        assert!(key.wants("any", "k") && key.wants(MEMBER, "k") && !key.wants("any", ""));
    }

    #[test]
    fn pitfall_042_only_more_is_an_expansion() {
        let expands = |after: &[_], before: &[_]| required(after).expands(&required(before));
        assert!(!expands(&[("a", "")], &[("a", ""), ("b", "")]));
        assert!(expands(&[("a", ""), ("b", "")], &[("a", "")]));
        assert!(!expands(&[("a", "x")], &[("a", "*")]));
        assert!(expands(&[("a", "*")], &[("a", "x")]));
        assert!(!expands(&[("a", "*")], &[("*", "*")]));
        assert!(expands(&[("*", "*")], &[("a", "*"), (MEMBER, "*")]));
        assert!(expands(&[(MEMBER, "$LAZY")], &[("a", "")]));
        assert!(!expands(&[(MEMBER, "$LAZY")], &[(MEMBER, "*")]));
        let room = |timeline_limit| RoomConfig { timeline_limit, required: Required::default() };
        assert!(room(2).expands(&room(1)) && !room(1).expands(&room(2)));
    }

    #[test]
    fn exceptions_hold_until_somebody_else_wants_them() {
        let pattern = |kind: Option<&str>, key: Option<&str>| Pattern {
            kind: kind.map(str::to_owned),
            key: key.map(str::to_owned),
        };
        let all = || vec![pattern(None, None)];
        let some = Required::new(all(), vec![pattern(Some("a"), None), pattern(None, Some("k"))], true);
        assert!(some.wants("b", "") && !some.wants("a", "") && !some.wants("b", "k") && some.has_exceptions());
        assert!(some.lazy && !some.wants(MEMBER, "@me:x"));
        assert!(Required::new(all(), Vec::new(), false).wants(MEMBER, "@me:x"));
        let with = |other: Required| {
            let mut both = some.clone();
            both.add(&other);
            both
        };
        let both = with(required(&[("c", "")]));
        assert!(both.wants("c", "") && !both.wants("a", "") && !both.wants("b", "k"));
        let both = with(required(&[("a", "x")]));
        assert!(both.wants("a", "x") && !both.wants("b", "k"));
        let both = with(required(&[("*", "k")]));
        assert!(both.wants("b", "k") && both.wants("a", "k"));
        let both = with(some.clone());
        assert_eq!(both, some);
        let fewer = Required::new(all(), vec![pattern(Some("a"), None)], true);
        assert!(fewer.expands(&some) && !some.expands(&fewer));
    }

    #[test]
    fn the_wishes_of_lists_add_up() {
        let config = |timeline_limit, pairs: &[_]| RoomConfig { timeline_limit, required: required(pairs) };
        let both = config(1, &[("a", "x")]).and(&config(9, &[("a", "*"), (MEMBER, "$LAZY")]));
        assert_eq!(both, config(9, &[("a", "x"), ("a", "*"), (MEMBER, "$LAZY")]));
        let members = config(1, &[("*", "*")]).and(&config(1, &[("*", "*"), (MEMBER, "$LAZY")]));
        assert!(members.required.members && members.required.lazy);
    }
}
