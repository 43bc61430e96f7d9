//! Which events an application service hears of: those of its users, of the rooms that they are in, and of the rooms
//! and aliases in its namespaces.
//!
//! Whether its users are in a room is decided by the state at the event: they enter and leave as the member events go
//! by, in the order of the stream.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use ruma::UserId;
use serde_json::json;
use store::{Pos, Read as _, Signal, Snapshot, journal};

use super::transaction::Draft;
use crate::App;
use crate::config::registrations::Registration;
use crate::error::{Error, Result};
use crate::rooms::aliases;
use crate::rooms::read::RoomReader;
use crate::rooms::shown::membership;
use crate::schema::{
    DEVICE_LIST_LOG, DEVICES, EVENTS, KEY_COUNTS, MEMBERSHIPS, MembershipState, RECEIPT_LOG, RECEIPTS, RoomNr, USERS,
    topic,
};
use crate::stored::{Head, StoredEvent};
use crate::sync::presence;

const MEMBER: &str = "m.room.member";

/// What concerns one service. In memory, made from the store at the start.
pub(super) struct Interest<'a> {
    app: &'a App,
    service: &'a Registration,
    /// The rooms that its users are in, and who they are.
    joined: HashMap<RoomNr, HashSet<String>>,
    /// Rooms whose typing it is told of. The signal moves with it.
    watched: HashSet<RoomNr>,
    signal: Arc<Signal>,
    /// Changes of typing and presence up to this number were told.
    heard: u64,
    /// Its users about whose devices there may be news.
    fresh: BTreeSet<String>,
}

/// What a stretch of the journal touches.
#[derive(Default)]
struct Changes {
    /// And whether the service's own users entered or left there, perhaps.
    rooms: BTreeMap<RoomNr, bool>,
}

impl<'a> Interest<'a> {
    /// As of a position.
    pub(super) fn load(app: &'a App, service: &'a Registration, snapshot: &Snapshot, at: Pos) -> Result<Self> {
        let mut interest = Interest {
            app,
            service,
            joined: HashMap::new(),
            watched: HashSet::new(),
            signal: app.store.hub().signal(),
            heard: app.sync.serial(),
            fresh: BTreeSet::new(),
        };
        for user_id in snapshot.scan(&USERS, USERS.all()).keys() {
            let user_id = user_id?;
            if !service.has_user_named(&user_id) {
                continue;
            }
            for room in rooms_at(app, snapshot, &user_id, at)? {
                interest.enter(room, &user_id);
            }
            if service.encryption {
                interest.fresh.insert(user_id);
            }
        }
        Ok(interest)
    }

    /// Moves when there may be news that no commit brings.
    pub(super) fn signal(&self) -> &Arc<Signal> {
        &self.signal
    }

    /// Puts what the service hears of into a transaction: what happened after a position and up to another. Up to where
    /// it went, when not all fits.
    pub(super) fn gather(
        &mut self,
        snapshot: &Snapshot,
        entries: &[journal::Entry],
        (after, end): (Pos, Pos),
        draft: &mut Draft<'_>,
    ) -> Result<Pos> {
        let changes = self.changes(entries);
        let rooms = self.rooms_to_look_at(snapshot, &changes)?;
        let through = self.events(snapshot, &rooms, (after, end), draft)?;
        if self.service.ephemeral {
            for (room, head) in &rooms {
                self.receipts(snapshot, (*room, head), (after, through), draft)?;
            }
            // Taken before anything is read: what changes meanwhile is told twice rather than never.
            let heard = self.app.sync.serial();
            self.typing(snapshot, draft)?;
            self.presence(draft)?;
            self.heard = heard;
        }
        if self.service.encryption {
            self.device_lists(snapshot, (after, through), draft)?;
            self.messages(snapshot, after, draft)?;
        }
        Ok(through)
    }

    fn changes(&mut self, entries: &[journal::Entry]) -> Changes {
        let service = self.service;
        let mut changes = Changes::default();
        for entry in entries {
            let own = |class: u8| {
                let topics = entry.topics.iter().filter(move |topic| topic.class == class);
                topics.filter_map(|topic| topic.as_str()).filter(move |user_id| service.has_user_named(user_id))
            };
            let entered = own(topic::MEMBERSHIP).next().is_some();
            for room in entry.topics.iter().filter(|topic| topic.class == topic::ROOM).filter_map(|it| it.as_number()) {
                *changes.rooms.entry(room).or_default() |= entered;
            }
            if self.service.encryption {
                let users: Vec<String> = own(topic::USER).map(str::to_owned).collect();
                self.fresh.extend(users);
            }
        }
        changes
    }

    fn rooms_to_look_at(&mut self, snapshot: &Snapshot, changes: &Changes) -> Result<BTreeMap<RoomNr, Head>> {
        let mut rooms = BTreeMap::new();
        for (room, entered) in &changes.rooms {
            let Some(head) = self.rooms(snapshot).head_of(*room)? else { continue };
            let named = self.is_named(snapshot, &head)?;
            if named && self.service.ephemeral {
                self.watch(*room);
            }
            if named || *entered || self.joined.contains_key(room) {
                rooms.insert(*room, head);
            }
        }
        Ok(rooms)
    }

    /// Whether a room, or one of its aliases, is in the service's namespaces.
    fn is_named(&self, snapshot: &Snapshot, head: &Head) -> Result<bool> {
        if self.service.has_room(&head.room_id) {
            return Ok(true);
        }
        if self.service.aliases.is_empty() {
            return Ok(false);
        }
        let room_id = ruma::RoomId::parse(&head.room_id).map_err(Error::internal)?;
        Ok(aliases::of_room(snapshot, &room_id)?.iter().any(|alias| self.service.has_alias(alias)))
    }

    fn events(
        &mut self,
        snapshot: &Snapshot,
        rooms: &BTreeMap<RoomNr, Head>,
        (after, end): (Pos, Pos),
        draft: &mut Draft<'_>,
    ) -> Result<Pos> {
        let mut happened = Vec::new();
        for (room, head) in rooms {
            let named = self.is_named(snapshot, head)?;
            let events = self.happened_in(snapshot, *room, (after, end))?;
            happened.extend(events.into_iter().map(|(at, event)| (at, *room, head, named, event)));
        }
        happened.sort_by_key(|(at, ..)| *at);
        for (at, room, head, named, event) in happened {
            if draft.is_full() {
                return Ok(Pos(at.0.saturating_sub(1)));
            }
            let heard = self.hears_of(room, &event);
            if self.service.encryption && self.joined.contains_key(&room) {
                // Who comes in has devices that nobody kept track of.
                let joins = event.kind() == MEMBER && membership(&event) == Some(MembershipState::Join);
                draft.device_lists(event.state_key().filter(|_| joins));
            }
            if heard || named {
                let replaced = event.replaces().map(|before| self.rooms(snapshot).event(room, before)).transpose()?;
                draft.event(at, event, replaced.flatten(), &head.room_id);
            }
        }
        Ok(end)
    }

    fn happened_in(
        &self,
        snapshot: &Snapshot,
        room: RoomNr,
        (after, end): (Pos, Pos),
    ) -> Result<Vec<(Pos, StoredEvent)>> {
        let mut events = match self.app.sync.recent.events(room, after, end) {
            Some(events) => events,
            None => {
                let span = EVENTS.prefix((room,)).after((room, after)).through((room, end));
                let rows = snapshot.scan(&EVENTS, span);
                rows.map(|row| row.map(|((_, at), event)| (at, event))).collect::<store::Result<_>>()?
            }
        };
        events.retain(|(_, event)| !event.hidden());
        Ok(events)
    }

    /// Whether an event concerns the service's users. They enter and leave with it.
    fn hears_of(&mut self, room: RoomNr, event: &StoredEvent) -> bool {
        let there = self.joined.contains_key(&room);
        let about = event.state_key().filter(|_| event.kind() == MEMBER);
        let Some(user_id) = about.filter(|user_id| self.service.has_user_named(user_id)) else {
            return there || self.service.has_user_named(event.sender());
        };
        if membership(event) == Some(MembershipState::Join) {
            self.enter(room, user_id);
        } else {
            self.leave(room, user_id);
        }
        true
    }

    fn enter(&mut self, room: RoomNr, user_id: &str) {
        self.joined.entry(room).or_default().insert(user_id.to_owned());
        if self.service.ephemeral {
            self.watch(room);
        }
    }

    fn leave(&mut self, room: RoomNr, user_id: &str) {
        let Some(users) = self.joined.get_mut(&room) else { return };
        users.remove(user_id);
        if users.is_empty() {
            self.joined.remove(&room);
            if self.watched.remove(&room) {
                self.app.store.hub().detach(&topic::room(room), &self.signal);
            }
        }
    }

    fn watch(&mut self, room: RoomNr) {
        if self.watched.insert(room) {
            self.app.store.hub().attach(topic::room(room), &self.signal);
        }
    }

    /// Receipts, the private ones only of its own users.
    fn receipts(
        &self,
        snapshot: &Snapshot,
        (room, head): (RoomNr, &Head),
        (after, through): (Pos, Pos),
        draft: &mut Draft<'_>,
    ) -> Result<()> {
        if !self.watched.contains(&room) {
            return Ok(());
        }
        let span = RECEIPT_LOG.prefix((room,)).after((room, after)).through((room, through));
        for row in snapshot.scan(&RECEIPT_LOG, span) {
            let (_, key) = row?;
            if key.private && !self.service.has_user_named(&key.user_id) {
                continue;
            }
            let row = (room, key.user_id.as_str(), (key.private, key.thread.as_str()));
            let Some(receipt) = snapshot.get(&RECEIPTS, row)? else { continue };
            let kind = if key.private { "m.read.private" } else { "m.read" };
            let mut read = json!({ "ts": receipt.ts });
            if !key.thread.is_empty() {
                read["thread_id"] = json!(key.thread);
            }
            let content = json!({ (receipt.event_id): { (kind): { (key.user_id): read } } });
            draft.ephemeral(&json!({ "type": "m.receipt", "room_id": head.room_id, "content": content }));
        }
        Ok(())
    }

    fn typing(&self, snapshot: &Snapshot, draft: &mut Draft<'_>) -> Result<()> {
        let (typing, watched) = (&self.app.sync.typing, |room: RoomNr| self.watched.contains(&room));
        let changed = typing.changed(self.heard, watched).unwrap_or_else(|| typing.active(watched));
        for room in changed {
            let Some(head) = self.rooms(snapshot).head_of(room)? else { continue };
            let content = json!({ "user_ids": typing.of(room) });
            draft.ephemeral(&json!({ "type": "m.typing", "room_id": head.room_id, "content": content }));
        }
        Ok(())
    }

    /// Of those who share a room with its users.
    fn presence(&self, draft: &mut Draft<'_>) -> Result<()> {
        let changed = self.app.sync.presence.changed(Some(self.heard), self.app.clock.monotonic());
        for seen in changed {
            if !self.service.has_user(&seen.user_id) && !self.shares_a_room(&seen.user_id)? {
                continue;
            }
            let mut content = json!({
                "presence": seen.state,
                "last_active_ago": u64::try_from(seen.last_active_ago.as_millis()).unwrap_or(u64::MAX),
                "currently_active": seen.state == ruma::presence::PresenceState::Online,
            });
            if let Some(status) = &seen.status {
                content["status_msg"] = json!(status);
            }
            draft.ephemeral(&json!({ "type": "m.presence", "sender": seen.user_id, "content": content }));
        }
        Ok(())
    }

    fn shares_a_room(&self, user_id: &UserId) -> Result<bool> {
        let rooms = presence::rooms_of(self.app, user_id)?;
        Ok(rooms.joined().any(|room| self.joined.contains_key(&room)))
    }

    /// Whose devices changed, of those who share a room with its users.
    fn device_lists(&self, snapshot: &Snapshot, (after, through): (Pos, Pos), draft: &mut Draft<'_>) -> Result<()> {
        for row in snapshot.scan(&DEVICE_LIST_LOG, DEVICE_LIST_LOG.all().after(after).through(through)) {
            let (_, user_id) = row?;
            let parsed = <&UserId>::try_from(user_id.as_str()).map_err(Error::internal)?;
            if self.shares_a_room(parsed)? {
                draft.device_lists(Some(user_id.as_str()));
            }
        }
        Ok(())
    }

    /// Messages to the devices of its users, and how many keys those have left.
    fn messages(&mut self, snapshot: &Snapshot, after: Pos, draft: &mut Draft<'_>) -> Result<()> {
        while let Some(user_id) = self.fresh.first().cloned() {
            let mut more = false;
            for row in snapshot.scan(&DEVICES, DEVICES.prefix((user_id.as_str(),))) {
                let ((_, device_id), _) = row?;
                if draft.is_full() {
                    return Ok(());
                }
                let device = (user_id.as_str(), device_id.as_str());
                let (messages, left) = draft.messages(snapshot, device)?;
                more |= left;
                if let Some(counts) = snapshot.get(&KEY_COUNTS, device)?
                    && (messages || counts.changed > after)
                {
                    draft.key_counts(device, &counts);
                }
            }
            if more {
                return Ok(());
            }
            self.fresh.remove(&user_id);
        }
        Ok(())
    }

    fn rooms<'s>(&self, snapshot: &'s Snapshot) -> RoomReader<'s, Snapshot>
    where
        'a: 's,
    {
        RoomReader::new(&self.app.room_cache, snapshot)
    }
}

/// The rooms that a user was in at a position.
fn rooms_at(app: &App, snapshot: &Snapshot, user_id: &str, at: Pos) -> Result<Vec<RoomNr>> {
    let rooms = RoomReader::new(&app.room_cache, snapshot);
    let mut found = Vec::new();
    for row in snapshot.scan(&MEMBERSHIPS, MEMBERSHIPS.prefix((user_id,))) {
        let ((_, room), member) = row?;
        let state = if member.event <= at {
            Some(member.state)
        } else {
            let event = rooms.state_event(room, rooms.root_at(room, at)?, MEMBER, user_id)?;
            event.as_ref().and_then(membership)
        };
        if state == Some(MembershipState::Join) {
            found.push(room);
        }
    }
    Ok(found)
}
