//! From a snapshot of the store to the material of one answer: which rooms, and what besides rooms.
//!
//! Where the client comes back soon, memory tells in which rooms something happened; else one pass over the rooms does.
//! Not here: what a room's part of the answer is (`room`), and waiting (`wait`).

use std::collections::BTreeMap;
use std::sync::Arc;

use ::rooms::state::Root;
use quick_cache::sync::Cache;
use ruma::push::Ruleset;
use ruma::{DeviceId, RoomId, UserId};
use serde_json::json;
use store::{Pos, Read as _, Snapshot};

use super::assemble::StateAfter;
use super::devices::Lists;
use super::filter::Filter;
use super::lazy::Sent;
use super::live::{LiveUser, Look, Memberships, Tastes};
use super::material::{Datum, Material, Room};
use super::presence;
use super::recent::{Recent, What};
use super::recount::counted_since;
use super::token::{Ephemeral, SyncToken};
use super::unread::Budget;
use super::viewer::Candidates;
use crate::App;
use crate::error::Result;
use crate::rooms::read::RoomReader;
use crate::schema::{self, MembershipState, RoomNr, room_nr};

/// What a client asked for.
#[derive(Clone, Copy)]
pub struct Ask<'a> {
    pub app: &'a App,
    pub user_id: &'a UserId,
    pub device_id: Option<&'a DeviceId>,
    pub live: &'a LiveUser,
    pub filter: &'a Filter,
    /// `None`: everything.
    pub since: Option<SyncToken>,
    pub full_state: bool,
    pub state_after: StateAfter,
}

/// Reads one answer.
pub struct Collector<'a> {
    pub(super) app: &'a App,
    pub(super) user_id: &'a UserId,
    pub(super) device_id: Option<&'a DeviceId>,
    pub(super) live: &'a LiveUser,
    pub(super) filter: &'a Filter,
    pub(super) since: Option<SyncToken>,
    pub(super) full_state: bool,
    pub(super) state_after: StateAfter,
    pub(super) rooms: RoomReader<'a, Snapshot>,
    pub(super) recent: &'a Recent,
    pub(super) candidates: &'a Cache<Root, Arc<Candidates>>,
    pub(super) memberships: &'a Memberships,
    pub(super) tastes: &'a Tastes,
    /// What the device was sent of members.
    pub(super) sent: Option<Arc<Sent>>,
    pub(super) version: Pos,
    /// For counts of what is unread.
    pub(super) budget: Budget,
    account_moved: Pos,
}

/// What is new in a joined room, besides what the room itself knows.
#[derive(Default)]
struct News {
    what: What,
    /// A count became right.
    counted: bool,
    typing: bool,
    account_data: Vec<Datum>,
}

/// Reads what is new for the client.
pub fn collect(ask: &Ask<'_>) -> Result<Material> {
    collect_with(ask, |collector, ephemeral| collector.material(ephemeral))
}

/// Reads only whose devices changed.
pub fn device_lists(ask: &Ask<'_>) -> Result<Lists> {
    collect_with(ask, |collector, _| {
        let rooms = collector.changed_rooms()?;
        collector.device_lists(&rooms_of(&rooms))
    })
}

/// The same, as of a moment that was taken already.
pub fn device_lists_at(ask: &Ask<'_>, look: &Look) -> Result<Lists> {
    let collector = Collector::new(ask, look);
    let rooms = collector.changed_rooms()?;
    collector.device_lists(&rooms_of(&rooms))
}

fn collect_with<T>(ask: &Ask<'_>, read: impl FnOnce(&Collector<'_>, Ephemeral) -> Result<T>) -> Result<T> {
    // Before anything is read: what changes meanwhile is told again rather than not at all.
    let serial = ask.app.sync.serial();
    let look = ask.live.look(&ask.app.store)?;
    read(&Collector::new(ask, &look), Ephemeral { boot: ask.app.sync.boot, serial, typing: false })
}

/// The rooms with new events.
fn rooms_of(changed: &BTreeMap<RoomNr, News>) -> Vec<RoomNr> {
    changed.iter().filter(|(_, news)| news.what.events).map(|(room, _)| *room).collect()
}

impl<'a> Collector<'a> {
    fn new(ask: &Ask<'a>, look: &'a Look) -> Self {
        let Ask { app, user_id, device_id, live, filter, since, full_state, state_after } = *ask;
        let Look { snapshot, memberships, tastes, account_moved, .. } = look;
        let lazy = filter.lazy != super::filter::Lazy::All;
        let sent = device_id.filter(|_| lazy).map(|device| app.sync.sent.of(user_id, device, since.is_none()));
        if let (Some(sent), Some(since)) = (&sent, since) {
            sent.forget_after(since.version);
        }
        Collector {
            app,
            user_id,
            device_id,
            live,
            filter,
            since,
            full_state,
            state_after,
            rooms: RoomReader::new(&app.room_cache, snapshot),
            recent: &app.sync.recent,
            candidates: &app.sync.candidates,
            memberships,
            tastes,
            sent,
            version: snapshot.version(),
            budget: app.sync.recounts.budget(since.is_none() || full_state),
            account_moved: *account_moved,
        }
    }
}

impl Collector<'_> {
    fn material(&self, ephemeral: Ephemeral) -> Result<Material> {
        let mut material = Material::nothing(SyncToken { version: self.version, ephemeral, to_device: None });
        let mut news = self.changed_rooms()?;
        material.devices = self.device_news(&rooms_of(&news), &mut material.next)?;
        self.account_data(&mut material, &mut news)?;
        self.typing(&mut material, &mut news);
        self.joined_rooms(&mut material, news)?;
        self.other_rooms(&mut material)?;
        self.presence(&mut material)?;
        Ok(material)
    }

    pub(super) fn since_version(&self) -> Option<Pos> {
        self.since.map(|since| since.version)
    }

    /// The joined rooms to look into, by number.
    fn changed_rooms(&self) -> Result<BTreeMap<RoomNr, News>> {
        let everything = |(room, what)| (room, News { what, ..News::default() });
        let Some(since) = self.since_version().filter(|_| !self.full_state) else {
            let rooms = self.memberships.joined().map(|room| (room, What::ALL));
            return Ok(rooms.map(everything).collect());
        };
        let warm = since >= self.memberships.attached;
        if warm && self.live.signal.last() <= since {
            return Ok(BTreeMap::new());
        }
        let is_joined = |room| self.memberships.is_joined(room);
        if let Some(changed) = self.recent.changes(since, self.version, is_joined) {
            return Ok(changed.into_iter().map(everything).collect());
        }
        let mut changed = BTreeMap::new();
        for room in self.memberships.joined() {
            let what = self.changed(room, since)?;
            if what != What::default() {
                changed.extend([everything((room, what))]);
            }
        }
        Ok(changed)
    }

    /// What happened in a room, as the store knows it.
    fn changed(&self, room: RoomNr, since: Pos) -> Result<What> {
        let events = self.rooms.head_of(room)?.is_some_and(|head| head.last > since);
        let receipts = schema::RECEIPT_LOG.prefix((room,)).after((room, since)).limit(1);
        let receipts = self.rooms.read.scan(&schema::RECEIPT_LOG, receipts).keys().next().transpose()?.is_some();
        Ok(What { events, receipts })
    }

    fn joined_rooms(&self, material: &mut Material, mut news: BTreeMap<RoomNr, News>) -> Result<()> {
        if let Some(since) = self.since_version() {
            for (room, member) in self.memberships.iter() {
                let joined_since = member.joined.is_some_and(|joined| joined > since);
                if joined_since && member.state == MembershipState::Join {
                    news.entry(room).or_default();
                }
            }
        }
        for (nr, news) in news {
            let Some(member) = self.memberships.of(nr).filter(|member| member.state == MembershipState::Join) else {
                continue;
            };
            let since = self.since_version();
            let Some(mut room) = self.joined(nr, member, since, news.what, news.counted)? else { continue };
            let new = since.is_none_or(|since| member.joined.is_none_or(|joined| joined > since));
            self.put_typing(&mut room, nr, news.typing, new);
            material.next.ephemeral.typing |= room.typing.as_ref().is_some_and(|typists| !typists.is_empty());
            room.account_data = news.account_data;
            if new && since.is_some() {
                room.account_data = self.all_account_data(&room.room_id)?;
            }
            if new || self.full_state || !room.is_empty() {
                material.join.push(room);
            }
        }
        Ok(())
    }

    /// Invites, knocks, and rooms that are over.
    fn other_rooms(&self, material: &mut Material) -> Result<()> {
        let since = self.since_version();
        let new_after = since.filter(|_| !self.full_state).unwrap_or(Pos::ZERO);
        for (nr, member) in self.memberships.changed_after(new_after) {
            match member.state {
                MembershipState::Join => {}
                MembershipState::Invite => material.invite.extend(self.stripped(nr, member)?),
                MembershipState::Knock => material.knock.extend(self.stripped(nr, member)?),
                MembershipState::Leave | MembershipState::Ban => {
                    let over = since.is_some_and(|since| member.event > since);
                    if over || self.filter.include_leave {
                        material.leave.extend(self.left(nr, member, since.filter(|_| over))?);
                    }
                }
            }
        }
        Ok(())
    }

    // ---- account data --------------------------------------------------------------------------------------------

    fn account_data(&self, material: &mut Material, news: &mut BTreeMap<RoomNr, News>) -> Result<()> {
        let user = self.user_id.as_str();
        let Some(since) = self.since_version() else {
            let rows = self.rooms.read.scan(&schema::ACCOUNT_DATA, schema::ACCOUNT_DATA.prefix((user,)));
            for row in rows {
                let ((_, room_id, kind), data) = row?;
                self.put_datum(material, news, room_id, (kind, data.0));
            }
            if !material.account_data.iter().any(|(kind, _)| kind == PUSH_RULES) {
                self.put_datum(material, news, String::new(), default_push_rules(self.user_id));
            }
            return Ok(());
        };
        if since >= self.memberships.attached && self.account_moved <= since {
            return Ok(());
        }
        for room in counted_since(self.rooms.read, self.user_id, since)? {
            news.entry(room).or_default().counted = true;
        }
        let span = schema::ACCOUNT_DATA_LOG.prefix((user,)).after((user, since));
        for row in self.rooms.read.scan(&schema::ACCOUNT_DATA_LOG, span) {
            let (_, key) = row?;
            let key_of_value = (user, key.room_id.as_str(), key.kind.as_str());
            if let Some(data) = self.rooms.read.get(&schema::ACCOUNT_DATA, key_of_value)? {
                self.put_datum(material, news, key.room_id, (key.kind, data.0));
            }
        }
        Ok(())
    }

    fn put_datum(&self, material: &mut Material, news: &mut BTreeMap<RoomNr, News>, room_id: String, datum: Datum) {
        if room_id.is_empty() {
            if self.filter.account_data.take_kind(&datum.0) {
                material.account_data.push(datum);
            }
            return;
        }
        let Ok(room) = RoomId::parse(&room_id) else { return };
        let nr = room_nr(&room);
        let filter = &self.filter.room_account_data;
        if self.memberships.is_joined(nr) && filter.take_kind(&datum.0) && filter.rooms.take(&room_id) {
            news.entry(nr).or_default().account_data.push(datum);
        }
    }

    fn all_account_data(&self, room_id: &str) -> Result<Vec<Datum>> {
        let filter = &self.filter.room_account_data;
        let span = schema::ACCOUNT_DATA.prefix((self.user_id.as_str(), room_id));
        let mut all = Vec::new();
        for row in self.rooms.read.scan(&schema::ACCOUNT_DATA, span) {
            let ((_, _, kind), data) = row?;
            if filter.take_kind(&kind) && filter.rooms.take(room_id) {
                all.push((kind, data.0));
            }
        }
        Ok(all)
    }

    // ---- what is not stored --------------------------------------------------------------------------------------

    /// Marks the rooms whose typists the client has to hear of.
    fn typing(&self, material: &mut Material, news: &mut BTreeMap<RoomNr, News>) {
        let typing = &self.app.sync.typing;
        let is_joined = |room| self.memberships.is_joined(room);
        if let Some(since) = self.since {
            if self.same_boot(since) && since.ephemeral.serial == material.next.ephemeral.serial {
                material.next.ephemeral.typing = since.ephemeral.typing;
                return;
            }
            let changed = if self.same_boot(since) { typing.changed(since.ephemeral.serial, is_joined) } else { None };
            let rooms: Vec<RoomNr> = match changed {
                Some(rooms) => rooms,
                // Nobody knows what the client was told: if of anybody, then it is told of all rooms again.
                None if since.ephemeral.typing => self.memberships.joined().collect(),
                None => typing.active(is_joined),
            };
            for room in rooms {
                news.entry(room).or_default().typing = true;
            }
        }
        material.next.ephemeral.typing = typing.any(is_joined);
    }

    fn same_boot(&self, since: SyncToken) -> bool {
        since.ephemeral.boot == self.app.sync.boot
    }

    fn put_typing(&self, room: &mut Room, nr: RoomNr, changed: bool, new: bool) {
        let filter = &self.filter.ephemeral;
        if !(changed || new) || !filter.take_kind("m.typing") || !filter.rooms.take(&room.room_id) {
            return;
        }
        let mut typists = self.app.sync.typing.of(nr);
        typists.retain(|user| !self.tastes.ignores(user.as_str()));
        if changed || !typists.is_empty() {
            room.typing = Some(typists);
        }
    }

    fn presence(&self, material: &mut Material) -> Result<()> {
        if !self.app.config.presence.enabled {
            return Ok(());
        }
        let after = self.since.filter(|since| self.same_boot(*since)).map(|since| since.ephemeral.serial);
        if after == Some(material.next.ephemeral.serial) {
            return Ok(());
        }
        for seen in self.app.sync.presence.changed(after, self.app.clock.monotonic()) {
            let wanted = self.filter.presence.take_parts("m.presence", seen.user_id.as_str());
            if !wanted || self.tastes.ignores(seen.user_id.as_str()) {
                continue;
            }
            let myself = seen.user_id == self.user_id;
            if myself || presence::rooms_of(self.app, &seen.user_id)?.share_a_room(self.memberships) {
                material.presence.push(seen);
            }
        }
        material.presence.sort_by(|a, b| a.user_id.cmp(&b.user_id));
        Ok(())
    }
}

pub(super) const PUSH_RULES: &str = "m.push_rules";

/// The push rules of who has set none.
pub(super) fn default_push_rules(user_id: &UserId) -> Datum {
    let rules = json!({ "global": Ruleset::server_default(user_id) });
    (PUSH_RULES.to_owned(), rules.to_string().into())
}
