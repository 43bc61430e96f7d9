//! A room as it really is: its rows, read from the store and replayed by the simplest rules there are. On one server a
//! room's history is a line, so the state is whatever was set last.

use std::collections::BTreeMap;

use homeserver::App;
use homeserver::schema::{EVENTS, HEADS};
use serde_json::Value;
use store::Read as _;

use crate::Check;

pub(crate) type StateKey = (String, String);

#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) at: u64,
    pub(crate) id: String,
    pub(crate) sender: String,
    pub(crate) kind: String,
    pub(crate) state_key: Option<String>,
    pub(crate) content: Value,
    visibility: String,
}

#[derive(Debug)]
pub(crate) struct Room {
    pub(crate) id: String,
    /// In the order of the stream.
    pub(crate) events: Vec<Event>,
    pub(crate) index: BTreeMap<String, usize>,
    /// Index of the event that set it.
    pub(crate) state: BTreeMap<StateKey, usize>,
    /// Where a user's membership changed, and to what.
    memberships: BTreeMap<String, Vec<(usize, String)>>,
}

/// All rooms, by ID.
pub(crate) fn rooms(app: &App) -> Check<BTreeMap<String, Room>> {
    let read = app.store.snapshot();
    let mut rooms = BTreeMap::new();
    for row in read.scan(&HEADS, HEADS.all()) {
        let (nr, head) = row.map_err(|cause| format!("heads: {cause}"))?;
        let mut room = Room {
            id: head.room_id.clone(),
            events: Vec::new(),
            index: BTreeMap::new(),
            state: BTreeMap::new(),
            memberships: BTreeMap::new(),
        };
        for row in read.scan(&EVENTS, EVENTS.prefix((nr,))) {
            let ((_, at), stored) = row.map_err(|cause| format!("events: {cause}"))?;
            let json = [b"{", stored.client(), b"}"].concat();
            let json: Value = serde_json::from_slice(&json).map_err(|cause| format!("an event's JSON: {cause}"))?;
            room.push(Event {
                at: at.0,
                id: stored.event_id().to_owned(),
                sender: stored.sender().to_owned(),
                kind: stored.kind().to_owned(),
                state_key: stored.state_key().map(str::to_owned),
                content: json["content"].clone(),
                visibility: String::new(),
            })?;
        }
        rooms.insert(head.room_id, room);
    }
    Ok(rooms)
}

impl Room {
    fn push(&mut self, mut event: Event) -> Check {
        let index = self.events.len();
        if event.kind != "m.room.create" && event.kind != "m.room.member" && self.membership(&event.sender) != "join" {
            return Err(format!("{} of {} is in {} although its sender is not", event.id, event.sender, self.id));
        }
        event.visibility = self.visibility();
        if let Some(key) = &event.state_key {
            self.state.insert((event.kind.clone(), key.clone()), index);
            if event.kind == "m.room.member" {
                let membership = text(&event.content["membership"]);
                self.memberships.entry(key.clone()).or_default().push((index, membership));
            }
        }
        if self.index.insert(event.id.clone(), index).is_some() {
            return Err(format!("{} is in {} twice", event.id, self.id));
        }
        self.events.push(event);
        Ok(())
    }

    /// The history visibility after the last event so far.
    fn visibility(&self) -> String {
        let set = self.state.get(&("m.room.history_visibility".to_owned(), String::new()));
        let set = set.map(|index| text(&self.events[*index].content["history_visibility"]));
        set.filter(|set| ["world_readable", "shared", "invited", "joined"].contains(&set.as_str()))
            .unwrap_or_else(|| "shared".to_owned())
    }

    /// What a user is in the room now.
    pub(crate) fn membership(&self, user: &str) -> &str {
        self.memberships.get(user).and_then(|list| list.last()).map_or("leave", |(_, membership)| membership)
    }

    fn membership_before(&self, user: &str, index: usize) -> &str {
        let list = self.memberships.get(user).map(Vec::as_slice).unwrap_or_default();
        list.iter().rev().find(|(at, _)| *at < index).map_or("leave", |(_, membership)| membership)
    }

    /// Whether a user may see an event, as of a version of the stream.
    pub(crate) fn may_see(&self, user: &str, index: usize, tip: u64) -> bool {
        let event = &self.events[index];
        let before = self.membership_before(user, index);
        let joins_later = self.memberships.get(user).is_some_and(|list| {
            list.iter().any(|(at, membership)| *at > index && self.events[*at].at <= tip && membership == "join")
        });
        let allows = |visibility: &str, membership: &str| {
            visibility == "world_readable"
                || membership == "join"
                || (visibility == "shared" && joins_later)
                || (visibility == "invited" && membership == "invite")
        };
        let mut memberships = vec![before.to_owned()];
        if event.kind == "m.room.member" && event.state_key.as_deref() == Some(user) {
            memberships.push(text(&event.content["membership"]));
        }
        let mut visibilities = vec![event.visibility.clone()];
        if event.kind == "m.room.history_visibility" && event.state_key.as_deref() == Some("") {
            visibilities.push(text(&event.content["history_visibility"]));
        }
        memberships.iter().any(|membership| visibilities.iter().any(|visibility| allows(visibility, membership)))
    }

    /// Where a user last stopped being in the room, up to a version of the stream: `None` if they never were inside,
    /// the largest index if they still are.
    pub(crate) fn end_for(&self, user: &str, tip: u64) -> Option<usize> {
        let list = self.memberships.get(user)?;
        let mut end = None;
        let mut inside = false;
        for (at, membership) in list.iter().filter(|(at, _)| self.events[*at].at <= tip) {
            if membership == "join" {
                (inside, end) = (true, Some(usize::MAX));
            } else if inside {
                (inside, end) = (false, Some(*at));
            }
        }
        end
    }

    pub(crate) fn is_world_readable(&self) -> bool {
        self.visibility() == "world_readable"
    }

    /// Whether anybody could look at the room at some time.
    pub(crate) fn was_world_readable(&self) -> bool {
        self.is_world_readable() || self.events.iter().any(|event| event.visibility == "world_readable")
    }

    /// The state as event IDs, before the event at this index (all of it for the number of events).
    pub(crate) fn state_before(&self, index: usize) -> BTreeMap<StateKey, String> {
        let mut state = BTreeMap::new();
        for event in &self.events[..index.min(self.events.len())] {
            if let Some(key) = &event.state_key {
                state.insert((event.kind.clone(), key.clone()), event.id.clone());
            }
        }
        state
    }

    pub(crate) fn joined(&self) -> usize {
        self.memberships.keys().filter(|user| self.membership(user) == "join").count()
    }

    pub(crate) fn has_membership(&self, user: &str, membership: &str, tip: u64) -> bool {
        let list = self.memberships.get(user).map(Vec::as_slice).unwrap_or_default();
        list.iter().any(|(at, state)| state == membership && self.events[*at].at <= tip)
    }
}

pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
