//! What the users know they did: what was acknowledged, what was not, and what they were shown.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::request::Request;
use crate::view::{Taste, View};

#[derive(Default)]
pub(crate) struct Model {
    pub(crate) users: Vec<User>,
    pub(crate) devices: Vec<Device>,
    /// The rooms that somebody was told of, in the order they were made.
    pub(crate) rooms: Vec<String>,
    pub(crate) sent: Vec<Sent>,
    pub(crate) notes: Vec<Note>,
    /// Who saw which event first when, by user ID and event ID.
    pub(crate) seen: BTreeMap<(String, String), Seen>,
    pub(crate) data: BTreeMap<(usize, String, String), Data>,
    pub(crate) memberships: Vec<Acked>,
    /// Receipts that were acknowledged: user ID, room, event.
    pub(crate) receipts: Vec<(String, String, String)>,
    pub(crate) numbers: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct User {
    pub(crate) id: String,
    pub(crate) name: String,
}

#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) user: usize,
    pub(crate) id: String,
    pub(crate) token: String,
    /// Where its sliding sync is, and how many crashes there were when that was told.
    pub(crate) pos: Option<(String, u32)>,
    pub(crate) sliding: bool,
    /// The notes that came, by their markers.
    pub(crate) notes: BTreeSet<String>,
    pub(crate) refresh: Option<String>,
    pub(crate) taste: Taste,
    pub(crate) since: Option<String>,
    pub(crate) view: View,
    pub(crate) alive: bool,
    /// A logout was asked for, and nobody knows what became of it.
    pub(crate) uncertain: bool,
    pub(crate) syncing: bool,
    pub(crate) refreshing: bool,
    /// The access token ended; the refresh token has to be used.
    pub(crate) expired: bool,
}

/// An event that somebody tried to send.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) room: String,
    pub(crate) device: usize,
    pub(crate) request: Request,
    /// Found in the content, if it is there.
    pub(crate) marker: String,
    /// The request carries a transaction ID.
    pub(crate) txn: bool,
    /// The event that this one redacts.
    pub(crate) redacts: Option<String>,
    pub(crate) event_id: Option<String>,
    pub(crate) began: u64,
    pub(crate) acked: Option<u64>,
}

/// A message to devices that somebody tried to send.
#[derive(Debug)]
pub(crate) struct Note {
    pub(crate) device: usize,
    pub(crate) request: Request,
    pub(crate) marker: String,
    pub(crate) to: BTreeSet<usize>,
    pub(crate) acked: bool,
}

#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) tip: u64,
    pub(crate) in_state: bool,
    pub(crate) place: &'static str,
}

/// A piece of account data: what it must be, if that is known.
#[derive(Debug, Default)]
pub(crate) struct Data {
    pub(crate) value: Option<Value>,
    pub(crate) pending: usize,
    pub(crate) unsure: bool,
}

/// A change of membership that was acknowledged.
#[derive(Debug)]
pub(crate) struct Acked {
    pub(crate) room: String,
    pub(crate) user: String,
    pub(crate) membership: &'static str,
    pub(crate) tip: u64,
}

impl Model {
    pub(crate) fn user_of(&self, device: usize) -> &str {
        &self.users[self.devices[device].user].id
    }

    /// A number that was never used before.
    pub(crate) fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    pub(crate) fn saw(&mut self, user: &str, event: &str, tip: u64, in_state: bool, place: &'static str) {
        let seen = self.seen.entry((user.to_owned(), event.to_owned())).or_insert(Seen { tip, in_state, place });
        // A timeline is held to more than the state is.
        if seen.in_state && !in_state {
            *seen = Seen { tip, in_state, place };
        }
    }

    pub(crate) fn learn_room(&mut self, room: &str) {
        if !room.is_empty() && !self.rooms.iter().any(|known| known == room) {
            self.rooms.push(room.to_owned());
        }
    }

    pub(crate) fn data_begins(&mut self, key: (usize, String, String)) {
        let data = self.data.entry(key).or_default();
        data.pending += 1;
        data.unsure |= data.pending > 1;
    }

    /// `value`: what was acknowledged.
    pub(crate) fn data_ends(&mut self, key: &(usize, String, String), value: Option<Value>) {
        let Some(data) = self.data.get_mut(key) else { return };
        data.pending = data.pending.saturating_sub(1);
        data.unsure |= value.is_none();
        data.value = value.filter(|_| !data.unsure);
        data.unsure &= data.pending > 0;
    }

    pub(crate) fn alive(&self) -> BTreeSet<usize> {
        (0..self.devices.len()).filter(|index| self.devices[*index].alive).collect()
    }
}
