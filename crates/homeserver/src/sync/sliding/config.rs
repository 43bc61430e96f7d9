//! What a client asks of a connection: lists, subscriptions, and what it wants of each room. The same for all dialects;
//! how it is spelled is for the endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hashbrown::HashSet;
use store::Pos;

use crate::schema::RoomNr;

/// A connection has at most so many lists: as many as a [`Lists`] has bits for, and to spare.
pub const MAX_LISTS: usize = 100;
pub const MAX_SUBSCRIPTIONS: usize = 2_000;
/// No timeline is longer, whatever is asked for.
pub const MAX_TIMELINE: usize = 500;

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

/// Which rooms a list is of. What is not said does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters {
    pub is_dm: Option<bool>,
    pub is_encrypted: Option<bool>,
    pub is_invite: Option<bool>,
    /// `None` in the list stands for rooms without a type.
    pub room_types: Option<Vec<Option<String>>>,
    pub not_room_types: Vec<Option<String>>,
}

impl Filters {
    /// Whether the state of rooms has to be read for it.
    pub fn need_state(&self) -> bool {
        self.is_encrypted.is_some() || self.room_types.is_some() || !self.not_room_types.is_empty()
    }
}

/// What is wanted of a room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoomConfig {
    pub timeline_limit: usize,
    pub required: Required,
}

impl RoomConfig {
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
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Keys {
    all: bool,
    keys: BTreeSet<String>,
}

const MEMBER: &str = "m.room.member";

impl Required {
    /// From pairs of type and key, where `*` stands for all. `me` is what `$ME` stands for.
    pub fn from_pairs<'p>(pairs: impl IntoIterator<Item = (&'p str, &'p str)>, me: &str) -> Self {
        let (mut required, mut everything) = (Required::default(), false);
        for (kind, key) in pairs {
            let key = if key == "$ME" { me } else { key };
            match (kind, key) {
                ("*", "*") => everything = true,
                (MEMBER, "$LAZY") => required.lazy = true,
                (MEMBER, "*") => required.members = true,
                (_, "$LAZY") => {}
                ("*", key) => {
                    required.any_type.insert(key.to_owned());
                }
                (kind, "*") => required.types.entry(kind.to_owned()).or_default().all = true,
                (kind, key) => {
                    required.types.entry(kind.to_owned()).or_default().keys.insert(key.to_owned());
                }
            }
        }
        required.others = everything;
        required.members |= everything && !required.lazy;
        required
    }

    fn add(&mut self, other: &Self) {
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

    /// Whether a state event is wanted, whoever is seen in the timeline.
    pub fn wants(&self, kind: &str, key: &str) -> bool {
        let all = if kind == MEMBER { self.members } else { self.others };
        all || self.any_type.contains(key)
            || self.types.get(kind).is_some_and(|keys| keys.all || keys.keys.contains(key))
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
    fn the_wishes_of_lists_add_up() {
        let config = |timeline_limit, pairs: &[_]| RoomConfig { timeline_limit, required: required(pairs) };
        let both = config(1, &[("a", "x")]).and(&config(9, &[("a", "*"), (MEMBER, "$LAZY")]));
        assert_eq!(both, config(9, &[("a", "x"), ("a", "*"), (MEMBER, "$LAZY")]));
        let members = config(1, &[("*", "*")]).and(&config(1, &[("*", "*"), (MEMBER, "$LAZY")]));
        assert!(members.required.members && members.required.lazy);
    }
}
