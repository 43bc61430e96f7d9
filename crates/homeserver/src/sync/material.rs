//! What a sync answer is made of: read from the store by `collect`, written as JSON by `assemble`.

use bytes::Bytes;
use ruma::OwnedUserId;
use store::Pos;

use super::devices;
use super::presence::Seen;
use super::token::SyncToken;
use crate::push::counts::Tally;
use crate::rooms::shown::Shown;
use crate::stored::StoredEvent;

/// Everything in one answer.
#[derive(Debug)]
pub struct Material {
    pub next: SyncToken,
    pub join: Vec<Room>,
    pub invite: Vec<Stripped>,
    pub knock: Vec<Stripped>,
    pub leave: Vec<Room>,
    pub account_data: Vec<Datum>,
    pub presence: Vec<Seen>,
    pub devices: devices::News,
}

/// A piece of account data: type and content.
pub type Datum = (String, Bytes);

/// A room the user is or was in.
#[derive(Debug, Default)]
pub struct Room {
    pub room_id: String,
    pub timeline: Timeline,
    pub state: Vec<(Pos, StoredEvent)>,
    pub summary: Option<Summary>,
    pub typing: Option<Vec<OwnedUserId>>,
    pub receipts: Vec<ReadBy>,
    pub account_data: Vec<Datum>,
    pub unread: Option<Tally>,
}

impl Room {
    /// Whether there is nothing in it that the client does not know.
    pub fn is_empty(&self) -> bool {
        self.timeline.events.is_empty()
            && !self.timeline.limited
            && self.state.is_empty()
            && self.summary.is_none()
            && self.typing.is_none()
            && self.receipts.is_empty()
            && self.account_data.is_empty()
            && self.unread.is_none()
    }
}

/// A stretch of a timeline, oldest event first.
#[derive(Debug, Default)]
pub struct Timeline {
    pub events: Vec<Shown>,
    pub limited: bool,
    pub prev_batch: Pos,
}

/// Who is in a room.
#[derive(Debug)]
pub struct Summary {
    /// Absent where the room has a name.
    pub heroes: Option<Vec<String>>,
    pub joined: u32,
    pub invited: u32,
}

/// A receipt.
#[derive(Debug)]
pub struct ReadBy {
    pub event_id: String,
    pub user_id: String,
    pub private: bool,
    /// Empty for receipts of no thread.
    pub thread: String,
    pub ts: u64,
}

/// A room the user is invited to or knocks at.
#[derive(Debug)]
pub struct Stripped {
    pub room_id: String,
    pub events: Vec<StoredEvent>,
}

impl Material {
    /// An answer that says nothing new.
    pub fn nothing(next: SyncToken) -> Self {
        Material {
            next,
            join: Vec::new(),
            invite: Vec::new(),
            knock: Vec::new(),
            leave: Vec::new(),
            account_data: Vec::new(),
            presence: Vec::new(),
            devices: devices::News::default(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.join.is_empty()
            && self.invite.is_empty()
            && self.knock.is_empty()
            && self.leave.is_empty()
            && self.account_data.is_empty()
            && self.presence.is_empty()
            && self.devices.is_empty()
    }
}
