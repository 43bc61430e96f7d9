//! What a device gets besides rooms: messages from other devices, how many of its keys are left, and whose devices
//! changed.
//!
//! A message stays stored until the device comes back with a token from after it. A user's devices concern everybody in
//! a room with them; who begins to share an encrypted room is new, whatever was known of them before.

use std::collections::BTreeSet;

use ::rooms::state::{self, Part, Root, Select};
use bytes::Bytes;
use quick_cache::sync::Cache;
use ruma::{DeviceId, OwnedDeviceId, OwnedUserId, UserId};
use store::{Batch, Pos, Read};

use super::collect::Collector;
use super::presence;
use super::token::SyncToken;
use crate::App;
use crate::e2ee::to_device::{self, Waiting};
use crate::error::Result;
use crate::rooms::shown;
use crate::schema::{self, KEY_COUNTS, KeyCounts, MembershipState, RoomNr, TO_DEVICE};
use crate::stored::StoredEvent;

/// At most so many messages go into one answer, of about so many bytes.
const MOST_MESSAGES: (usize, usize) = (100, 1 << 20);
/// So many acknowledged messages are deleted at one time.
const MAX_DELETED: usize = 500;
/// At most so many devices are remembered.
const MAX_DEVICES: usize = 100_000;
/// Who left a larger room is not told of everybody who stayed: a device that goes on asking for their keys does no harm.
const MAX_LEFT: usize = 500;

/// What is new for a device.
#[derive(Debug, Default)]
pub struct News {
    /// Messages, as JSON.
    pub to_device: Vec<Bytes>,
    pub lists: Lists,
    /// Absent where there is no device.
    pub key_counts: Option<KeyCounts>,
    /// The counts are not those that the device was told.
    pub key_counts_changed: bool,
}

/// Whose devices have to be asked for again, and whose no longer matter.
#[derive(Debug, Default)]
pub struct Lists {
    pub changed: BTreeSet<String>,
    pub left: BTreeSet<String>,
}

impl Lists {
    pub fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.left.is_empty()
    }
}

impl News {
    pub fn is_empty(&self) -> bool {
        self.to_device.is_empty() && self.lists.is_empty() && !self.key_counts_changed
    }
}

/// How many keys a device has, for every answer: one that says nothing of them says that there are none.
pub fn key_counts(read: &impl Read, user_id: &UserId, device_id: Option<&DeviceId>) -> Result<Option<KeyCounts>> {
    let Some(device_id) = device_id else { return Ok(None) };
    Ok(Some(read.get(&KEY_COUNTS, (user_id.as_str(), device_id.as_str()))?.unwrap_or_default()))
}

// ---- acknowledging -----------------------------------------------------------------------------------------------

/// How far devices have acknowledged their messages. A device that is not here may have some from before the server
/// was started.
pub struct Unacknowledged(Cache<(OwnedUserId, OwnedDeviceId), Acknowledged>);

#[derive(Clone, Copy)]
struct Acknowledged {
    /// The device has everything up to here; that may not be deleted on the disk yet.
    through: Pos,
    /// Nothing that is stored lies before this place.
    first: Pos,
}

impl Default for Unacknowledged {
    fn default() -> Self {
        Unacknowledged(Cache::new(MAX_DEVICES))
    }
}

impl Unacknowledged {
    fn sent(&self, user_id: &UserId, device_id: &DeviceId, after: Pos) {
        let key = (user_id.to_owned(), device_id.to_owned());
        if let Some(known) = self.0.get(&key) {
            self.0.insert(key, Acknowledged { first: known.first.min(after.next()), ..known });
        }
    }

    /// The device has everything up to here, as far as that is remembered.
    fn through(&self, user_id: &UserId, device_id: &DeviceId) -> Pos {
        self.0.get(&(user_id.to_owned(), device_id.to_owned())).map_or(Pos::ZERO, |known| known.through)
    }

    /// The device has everything up to a position: that is deleted. Nobody waits for it: what comes back after a power
    /// cut lies before the device's token.
    pub fn acknowledge(&self, app: &App, user_id: &UserId, device_id: &DeviceId, through: Pos) -> Result<()> {
        let key = (user_id.to_owned(), device_id.to_owned());
        let known = self.0.get(&key).unwrap_or(Acknowledged { through: Pos::ZERO, first: Pos::ZERO });
        if known.first > through {
            return Ok(());
        }
        let (user, device) = (user_id.as_str(), device_id.as_str());
        let span = TO_DEVICE.prefix((user, device)).through((user, device, through)).limit(MAX_DELETED);
        let view = app.store.latest();
        let rows: Vec<_> = view.scan(&TO_DEVICE, span).keys().collect::<store::Result<_>>()?;
        let mut batch = Batch::new();
        for (_, _, at) in &rows {
            batch.delete(&TO_DEVICE, (user, device, *at));
        }
        // If it is refused, the next request tries again.
        let deleted = batch.is_empty() || app.store.commit(batch).is_ok();
        if deleted && rows.len() < MAX_DELETED {
            self.0.insert(key, Acknowledged { through: through.max(known.through), first: Pos::MAX });
        }
        Ok(())
    }
}

/// The messages to a device after what it has acknowledged, or has acknowledged before. No more than `limit`.
pub fn messages(
    app: &App,
    read: &impl Read,
    user_id: &UserId,
    device_id: &DeviceId,
    after: Option<Pos>,
    limit: usize,
) -> Result<Waiting> {
    let unacknowledged = &app.sync.unacknowledged;
    let after = after.unwrap_or_else(|| unacknowledged.through(user_id, device_id));
    let most = (limit.min(MOST_MESSAGES.0), MOST_MESSAGES.1);
    let waiting = to_device::waiting(read, user_id.as_str(), device_id.as_str(), after, most)?;
    if !waiting.events.is_empty() {
        unacknowledged.sent(user_id, device_id, after);
    }
    Ok(waiting)
}

/// Whether there are any such messages, whatever happened lately.
pub fn messages_wait(
    app: &App,
    read: &impl Read,
    user_id: &UserId,
    device_id: &DeviceId,
    after: Option<Pos>,
) -> Result<bool> {
    let after = after.unwrap_or_else(|| app.sync.unacknowledged.through(user_id, device_id));
    let last = read.get(&schema::TO_DEVICE_AT, (user_id.as_str(), device_id.as_str()))?;
    Ok(last.is_some_and(|last| last > after))
}

// ---- reading -----------------------------------------------------------------------------------------------------

impl Collector<'_> {
    /// What is new for the device, and the token that goes with it: it tells how far its messages go.
    pub(super) fn device_news(&self, rooms: &[RoomNr], next: &mut SyncToken) -> Result<News> {
        let mut news = News { lists: self.device_lists(rooms)?, ..News::default() };
        let Some(device_id) = self.device_id else { return Ok(news) };
        let after = self.since.map(|since| since.messages());
        let waiting = messages(self.app, self.rooms.read, self.user_id, device_id, after, MOST_MESSAGES.0)?;
        next.to_device = waiting.more.then_some(waiting.through);
        news.to_device = waiting.events;
        let counts = key_counts(self.rooms.read, self.user_id, Some(device_id))?;
        let told = self.since_version();
        news.key_counts_changed = told.is_some_and(|told| counts.as_ref().is_some_and(|counts| counts.changed > told));
        news.key_counts = counts;
        Ok(news)
    }

    /// Whose devices changed since the token. `rooms` are those in which something happened.
    pub(super) fn device_lists(&self, rooms: &[RoomNr]) -> Result<Lists> {
        let mut lists = Lists::default();
        let Some(since) = self.since_version() else { return Ok(lists) };
        let all = schema::DEVICE_LIST_LOG.all().after(since).through(self.version);
        for row in self.rooms.read.scan(&schema::DEVICE_LIST_LOG, all) {
            let (_, user_id) = row?;
            if user_id == self.user_id.as_str() || self.shares_a_room(&user_id)? {
                lists.changed.insert(user_id);
            }
        }
        let user = self.user_id.as_str();
        let vouched = schema::USER_SIGNATURE_LOG.prefix((user,)).after((user, since)).through((user, self.version));
        for row in self.rooms.read.scan(&schema::USER_SIGNATURE_LOG, vouched) {
            lists.changed.insert(row?.1);
        }
        let mut gone = BTreeSet::new();
        for &room in rooms {
            let member = self.memberships.of(room).filter(|member| member.state == MembershipState::Join);
            if member.is_some_and(|member| member.joined.is_none_or(|at| at <= since)) {
                self.who_came_and_went(room, since, &mut lists.changed, &mut gone)?;
            }
        }
        for (room, member) in self.memberships.changed_after(since) {
            let joined = member.state == MembershipState::Join;
            if joined && member.joined.is_some_and(|at| at > since) {
                self.everybody_is_new(room, &mut lists.changed)?;
            } else if !joined {
                self.everybody_is_gone(room, &mut gone)?;
            }
        }
        for user_id in gone {
            if !lists.changed.contains(&user_id) && user_id != self.user_id.as_str() && !self.shares_a_room(&user_id)? {
                lists.left.insert(user_id);
            }
        }
        Ok(lists)
    }

    fn shares_a_room(&self, user_id: &str) -> Result<bool> {
        let Ok(user_id) = <&UserId>::try_from(user_id) else { return Ok(false) };
        Ok(presence::rooms_of(self.app, user_id)?.share_a_room(self.memberships))
    }

    fn is_encrypted(&self, root: Root) -> Result<bool> {
        Ok(self.rooms.state_at(root, "m.room.encryption", "")?.is_some())
    }

    /// The user came into a room: the devices of everybody in it matter from now on.
    fn everybody_is_new(&self, room: RoomNr, changed: &mut BTreeSet<String>) -> Result<()> {
        let Some(head) = self.rooms.head_of(room)? else { return Ok(()) };
        if self.is_encrypted(head.state)? {
            changed.extend(self.joined_members(room, head.state)?);
        }
        Ok(())
    }

    fn everybody_is_gone(&self, room: RoomNr, gone: &mut BTreeSet<String>) -> Result<()> {
        let Some(head) = self.rooms.head_of(room)? else { return Ok(()) };
        if head.joined_members as usize <= MAX_LEFT && self.is_encrypted(head.state)? {
            gone.extend(self.joined_members(room, head.state)?);
        }
        Ok(())
    }

    fn joined_members(&self, room: RoomNr, root: Root) -> Result<Vec<String>> {
        let members = self.rooms.state_positions(root, Select::Only(Part::Members))?;
        let members = self.recent.state_events(self.rooms, room, &members)?;
        Ok(members.iter().filter_map(|(_, event)| joined(event)).collect())
    }

    /// Others came into a room that the user was in, or left it; or it is encrypted only now.
    fn who_came_and_went(
        &self,
        room: RoomNr,
        since: Pos,
        changed: &mut BTreeSet<String>,
        gone: &mut BTreeSet<String>,
    ) -> Result<()> {
        if let Some(events) = self.recent.events(room, since, self.version)
            && !events.iter().any(|(_, event)| concerns_devices(event))
        {
            return Ok(());
        }
        let Some(head) = self.rooms.head_of(room)? else { return Ok(()) };
        if !self.is_encrypted(head.state)? {
            return Ok(());
        }
        let before = self.rooms.root_at(room, since)?;
        if !self.is_encrypted(before)? {
            changed.extend(self.joined_members(room, head.state)?);
            return Ok(());
        }
        for change in state::diff(&self.rooms, before, head.state, Select::Only(Part::Members))? {
            let of = |nr: Option<::rooms::event::EventNr>| -> Result<Option<String>> {
                let Some(nr) = nr else { return Ok(None) };
                let events = self.recent.state_events(self.rooms, room, &[Pos(nr.0)])?;
                Ok(events.first().and_then(|(_, event)| joined(event)))
            };
            match (of(change.before)?, of(change.after)?) {
                (None, Some(user_id)) => changed.extend([user_id]),
                (Some(user_id), None) => gone.extend([user_id]),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The member of a member event that says that they are in the room.
fn joined(event: &StoredEvent) -> Option<String> {
    let is_joined = shown::membership(event) == Some(MembershipState::Join);
    event.state_key().filter(|_| is_joined).map(str::to_owned)
}

fn concerns_devices(event: &StoredEvent) -> bool {
    event.state_key().is_some() && matches!(event.kind(), "m.room.member" | "m.room.encryption")
}
