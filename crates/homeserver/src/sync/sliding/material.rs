//! What an answer is made of, whatever the dialect.

use bytes::Bytes;
use ruma::OwnedUserId;
use store::Pos;

use super::config;
use crate::push::counts::Unread;
use crate::schema::{KeyCounts, MembershipState};
use crate::stored::StoredEvent;
use crate::sync::devices::Lists;
use crate::sync::material::{Datum, ReadBy, Timeline};

/// What is new for a client.
#[derive(Debug, Default)]
pub struct Material {
    pub rooms: Vec<Room>,
    pub account_data: Vec<Datum>,
    /// Account data of rooms, by room ID.
    pub room_account_data: Vec<(String, Vec<Datum>)>,
    pub receipts: Vec<(String, Vec<ReadBy>)>,
    pub typing: Vec<(String, Vec<OwnedUserId>)>,
    pub to_device: Option<ToDevice>,
    pub device_lists: Lists,
    /// Said in every answer: one that says nothing of them says that there are none.
    pub key_counts: Option<KeyCounts>,
    pub key_counts_changed: bool,
}

/// Messages to the device.
#[derive(Debug)]
pub struct ToDevice {
    /// With this the device says that it has them.
    pub next_batch: Pos,
    pub events: Vec<Bytes>,
}

impl Material {
    pub fn is_empty(&self) -> bool {
        self.rooms.is_empty()
            && self.account_data.is_empty()
            && self.room_account_data.is_empty()
            && self.receipts.is_empty()
            && self.typing.is_empty()
            && self.to_device.as_ref().is_none_or(|messages| messages.events.is_empty())
            && self.device_lists.is_empty()
            && !self.key_counts_changed
    }
}

/// What is new of one room.
#[derive(Debug, Default)]
pub struct Room {
    pub room_id: String,
    /// All of it is here; what the client knew of the room before does not count.
    pub initial: bool,
    /// The timeline has events that are older than what the client had, because it asked for more.
    pub expanded: bool,
    /// `Some(None)`: it has none any more.
    pub name: Option<Option<String>>,
    pub avatar: Option<Option<String>>,
    pub heroes: Option<Vec<Hero>>,
    /// What the user is in the room.
    pub membership: Option<MembershipState>,
    /// The lists it is in.
    pub lists: config::Lists,
    /// The user was never in it.
    pub outside: bool,
    /// `Some(false)`: it was direct, and is no more.
    pub is_dm: Option<bool>,
    /// For rooms seen from outside.
    pub stripped: Option<Vec<StoredEvent>>,
    pub required_state: Vec<(Pos, StoredEvent)>,
    pub timeline: Option<Timeline>,
    /// How many of the events are new, and not only new to the client.
    pub num_live: usize,
    /// Who is joined, and who invited.
    pub members: Option<(u32, u32)>,
    pub unread: Option<Unread>,
    pub bump_stamp: Pos,
}

/// Somebody a room is named after.
#[derive(Debug)]
pub struct Hero {
    pub user_id: OwnedUserId,
    pub displayname: Option<String>,
    pub avatar_url: Option<String>,
}
