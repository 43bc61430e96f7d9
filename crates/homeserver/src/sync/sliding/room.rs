//! One room of an answer: which events of its timeline, which of its state, and what it is called.

use std::collections::BTreeSet;
use std::sync::Arc;

use ::rooms::state::{self, Part, Root, Select};
use quick_cache::sync::Cache;
use store::{Pos, Read as _};

use super::config::{Lists, Required, RoomConfig};
use super::connection::State;
use super::material::{Hero, Room};
use crate::error::Result;
use crate::rooms::shown::{self, Style};
use crate::rooms::sight::{Sight, left_at};
use crate::schema::{self, Membership, MembershipState, RoomNr};
use crate::stored::{Head, StoredEvent};
use crate::sync::live::LiveUser;
use crate::sync::recount::Recounts;
use crate::sync::unread::{Budget, Counter};
use crate::sync::viewer::{Stretch, Viewer, Window};

/// Looking for the last proper activity of a room ends after so many events.
const MAX_SCANNED: usize = 500;

const MEMBER: &str = "m.room.member";

/// What counts as activity by which clients sort rooms.
const BUMPS: [&str; 9] = [
    "m.room.create",
    "m.room.message",
    "m.room.encrypted",
    "m.sticker",
    "m.call.invite",
    "m.poll.start",
    "org.matrix.msc3381.poll.start",
    "m.beacon_info",
    "org.matrix.msc3672.beacon_info",
];

/// For each room up to where its events are known, and the last of them that counts as activity.
pub struct Bumps(Cache<RoomNr, (Pos, Pos)>);

impl Default for Bumps {
    fn default() -> Self {
        Bumps(Cache::new(16_384))
    }
}

/// A room to look into.
#[derive(Clone, Debug)]
pub struct Visit {
    pub room: RoomNr,
    pub member: Membership,
    pub lists: Lists,
    pub is_dm: bool,
    /// The client believes the contrary.
    pub dm_changed: bool,
    /// Up to where the client knows the room; `None` if it does not know it.
    pub since: Option<Pos>,
    pub config: Arc<RoomConfig>,
    /// What the client asked for before, if that was less.
    pub before: Option<Arc<RoomConfig>>,
    /// The user may have read something, or it was counted.
    pub receipts: bool,
}

/// Looks into rooms for one answer.
pub struct Visitor<'a> {
    pub viewer: Viewer<'a>,
    pub live: &'a LiveUser,
    pub bumps: &'a Bumps,
    pub recounts: &'a Recounts,
    pub budget: &'a Budget,
    pub style: Style<'a>,
    /// What the client has. Members that were sent are added.
    pub state: &'a mut State,
    /// Up to where the client knows anything; `None` for its first request.
    pub seen: Option<Pos>,
    pub version: Pos,
}

/// How far the client and its user see into a room.
struct Reach<'v> {
    visit: &'v Visit,
    head: &'v Head,
    since: Option<Pos>,
    until: Pos,
    /// The state at the end.
    end: Root,
    /// The state the client has.
    base: Option<Root>,
}

impl Visitor<'_> {
    /// What is new in a room; `None` if there is nothing.
    pub fn room(&mut self, visit: &Visit) -> Result<Option<Room>> {
        let mut room = match visit.member.state {
            MembershipState::Invite | MembershipState::Knock => self.outside(visit)?,
            MembershipState::Join => self.inside(visit)?,
            MembershipState::Leave | MembershipState::Ban => self.over(visit)?,
        };
        if let Some(room) = &mut room {
            room.is_dm = (visit.is_dm || visit.dm_changed).then_some(visit.is_dm);
            (room.membership, room.lists) = (Some(visit.member.state), visit.lists);
        }
        Ok(room)
    }

    fn outside(&self, visit: &Visit) -> Result<Option<Room>> {
        if visit.since.is_some_and(|since| since >= visit.member.event) && !visit.dm_changed {
            return Ok(None);
        }
        let Some(stripped) = self.viewer.stripped(visit.room, &visit.member)? else { return Ok(None) };
        Ok(Some(Room {
            room_id: stripped.room_id,
            initial: true,
            stripped: Some(stripped.events),
            bump_stamp: visit.member.event,
            ..Room::default()
        }))
    }

    fn inside(&mut self, visit: &Visit) -> Result<Option<Room>> {
        let Some(head) = self.viewer.rooms.head_of(visit.room)? else { return Ok(None) };
        // Who joins again gets everything again.
        let joined = visit.member.joined.unwrap_or_default();
        let since = visit.since.filter(|since| joined <= *since);
        let (until, end) = (self.version, head.state);
        let reach = Reach { visit, head: &head, since, until, end, base: None };
        let Some(mut room) = self.read(reach)? else { return Ok(None) };
        room.bump_stamp = self.bump(visit.room)?.max(joined);
        let Viewer { rooms, recent, user_id, tastes, .. } = self.viewer;
        let counter = Counter { rooms, recent, user_id, tastes, recounts: self.recounts, budget: self.budget };
        room.unread = Some(counter.count(&self.live.counts, visit.room, &head, &visit.member)?.total());
        if room.members.is_some() {
            room.members = Some((head.joined_members, head.invited_members));
        }
        Ok(Some(room))
    }

    /// A room the user is no longer in: up to the event that ended it, and no further.
    fn over(&mut self, visit: &Visit) -> Result<Option<Room>> {
        let rooms = self.viewer.rooms;
        let (nr, member) = (visit.room, &visit.member);
        let Some(head) = rooms.head_of(nr)? else { return self.closed(visit) };
        let Some(event) = rooms.event(nr, member.event)? else { return Ok(None) };
        let left = left_at(rooms, nr, member)?.filter(|_| !member.forgotten);
        let saw_the_end = visit.since.is_some_and(|since| left.is_none_or(|left| left <= since));
        let (Some(left), false) = (left, saw_the_end) else {
            if visit.since.is_none_or(|since| since >= member.event) && visit.before.is_none() {
                return Ok(None);
            }
            return Ok(Some(self.the_end(head.room_id, visit, event)?));
        };
        let since = visit.since.filter(|since| member.joined.is_some_and(|joined| joined <= *since));
        let end = rooms.event(nr, left)?.map_or(Root::EMPTY, |event| event.after);
        let reach = Reach { visit, head: &head, since, until: member.event, end, base: None };
        let Some(mut room) = self.read(reach)? else { return Ok(None) };
        room.bump_stamp = member.event;
        room.members = None;
        Ok(Some(room))
    }

    /// Nothing but the event that says that it is over.
    /// A room that was deleted: that it is over is all there is to tell, to who knew it.
    fn closed(&self, visit: &Visit) -> Result<Option<Room>> {
        let at = visit.member.event;
        if visit.since.is_none_or(|since| since >= at) {
            return Ok(None);
        }
        let closed = self.viewer.rooms.closed(visit.room, self.viewer.user_id)?;
        Ok(closed.map(|(room_id, last)| Room {
            room_id,
            required_state: vec![(at, last)],
            bump_stamp: at,
            ..Room::default()
        }))
    }

    fn the_end(&self, room_id: String, visit: &Visit, event: StoredEvent) -> Result<Room> {
        let Membership { event: at, .. } = visit.member;
        let sight = Sight::new(self.viewer.rooms, visit.room, self.viewer.user_id, Some(&visit.member))?;
        let window = Window {
            events: vec![(at, event.clone())],
            limited: false,
            prev_batch: Pos(at.0.saturating_sub(1)),
            base: None,
            complete: true,
        };
        Ok(Room {
            room_id,
            outside: visit.member.joined.is_none() && !visit.member.was_joined,
            required_state: vec![(at, event)],
            timeline: Some(self.viewer.timeline(visit.room, window, &sight, at)?),
            num_live: usize::from(self.seen.is_some_and(|seen| seen < at)),
            bump_stamp: at,
            ..Room::default()
        })
    }

    fn read(&mut self, mut reach: Reach<'_>) -> Result<Option<Room>> {
        let Visit { room: nr, member, config, .. } = reach.visit;
        let (viewer, nr) = (self.viewer, *nr);
        let sight = Sight::new(viewer.rooms, nr, viewer.user_id, Some(member))?;
        let more = reach.visit.before.as_ref().is_some_and(|before| config.timeline_limit > before.timeline_limit);
        let stretch =
            Stretch { since: reach.since.filter(|_| !more), until: reach.until, limit: config.timeline_limit };
        let window = viewer.window(nr, stretch, |at, event| viewer.shows(at, event, &sight))?;
        reach.base = match reach.since {
            None => None,
            Some(since) if since >= reach.head.last => Some(reach.end),
            Some(since) => match window.base.filter(|_| !more) {
                Some(base) => Some(base),
                None => Some(viewer.rooms.root_at(nr, since)?),
            },
        };
        let first = window.events.first().map(|(at, _)| *at);
        let mut room = Room {
            room_id: reach.head.room_id.clone(),
            initial: reach.since.is_none(),
            expanded: more && reach.since.is_some_and(|since| first.is_some_and(|first| first <= since)),
            num_live: window.events.iter().filter(|(at, _)| self.seen.is_some_and(|seen| *at > seen)).count(),
            ..Room::default()
        };
        room.required_state = self.state(&reach, &window)?;
        self.name(&mut room, &reach)?;
        let news = !window.events.is_empty() || window.limited && (!more || room.expanded);
        let nothing = !room.initial && !news && !reach.visit.receipts && !reach.visit.dm_changed;
        let same = room.name.is_none() && room.avatar.is_none() && room.members.is_none();
        if nothing && same && room.required_state.is_empty() {
            return Ok(None);
        }
        if room.initial || news {
            let mut timeline = viewer.timeline(nr, window, &sight, reach.until)?;
            if timeline.limited {
                viewer.bundle(nr, &mut timeline, sight, self.style)?;
            }
            room.timeline = Some(timeline);
        }
        Ok(Some(room))
    }

    // ---- state ---------------------------------------------------------------------------------------------------

    /// The wanted state at the end, as far as the client does not have it.
    fn state(&mut self, reach: &Reach<'_>, window: &Window) -> Result<Vec<(Pos, StoredEvent)>> {
        let nr = reach.visit.room;
        let required = &reach.visit.config.required;
        let rooms = self.viewer.rooms;
        let mut positions = match (reach.base, &reach.visit.before) {
            (None, _) => self.select(nr, required, reach.end)?,
            (Some(base), before) => {
                let mut changed = self.changes(reach, base, window)?;
                if let Some(before) = before
                    && before.required != *required
                {
                    changed.extend(self.added(reach, base, &before.required)?);
                }
                changed
            }
        };
        let mut lazily = Vec::new();
        if required.lazy && !required.members {
            for member in seen_in(window) {
                let Some(at) = rooms.state_at(reach.end, MEMBER, member)? else { continue };
                // After a gap, and in a room that is new to it, the client has thrown away what it knew.
                let known = !window.limited && reach.base.is_some() && self.state.members.contains(&(nr, at));
                if !known {
                    lazily.push(at);
                }
            }
        }
        positions.extend(&lazily);
        positions.sort_unstable();
        positions.dedup();
        self.state.remember_members(nr, lazily);
        self.viewer.recent.state_events(rooms, nr, &positions)
    }

    /// All that is wanted of a state.
    fn select(&self, nr: RoomNr, required: &Required, root: Root) -> Result<Vec<Pos>> {
        let rooms = self.viewer.rooms;
        let mut positions = Vec::new();
        if required.members {
            positions.extend(rooms.state_positions(root, Select::Only(Part::Members))?);
        }
        if required.others {
            positions.extend(rooms.state_positions(root, Select::Only(Part::Others))?);
        } else if required.needs_search() {
            let others = rooms.state_positions(root, Select::Only(Part::Others))?;
            let others = self.viewer.recent.state_events(rooms, nr, &others)?;
            positions.extend(others.iter().filter(|(_, event)| wants(required, event)).map(|(at, _)| *at));
        }
        for (kind, key) in required.exact() {
            positions.extend(rooms.state_at(root, kind, key)?);
        }
        if required.has_exceptions() {
            let events = self.viewer.recent.state_events(rooms, nr, &positions)?;
            positions = events.iter().filter(|(_, event)| wants(required, event)).map(|(at, _)| *at).collect();
        }
        Ok(positions)
    }

    /// What is wanted of what changed since the client's state.
    fn changes(&self, reach: &Reach<'_>, base: Root, window: &Window) -> Result<Vec<Pos>> {
        let required = &reach.visit.config.required;
        let rooms = self.viewer.rooms;
        let changes = state::diff(&rooms, base, reach.end, Select::All)?;
        let positions: Vec<Pos> = changes.into_iter().filter_map(|change| change.after).map(|nr| Pos(nr.0)).collect();
        let events = self.viewer.recent.state_events(rooms, reach.visit.room, &positions)?;
        // Without a gap all changes of members go to clients that load them lazily: they can keep their lists.
        let all_members = required.lazy && !window.limited;
        let wanted = |event: &StoredEvent| wants(required, event) || all_members && event.kind() == MEMBER;
        Ok(events.iter().filter(|(_, event)| wanted(event)).map(|(at, _)| *at).collect())
    }

    /// What is wanted now and was not wanted before.
    fn added(&self, reach: &Reach<'_>, base: Root, before: &Required) -> Result<Vec<Pos>> {
        let nr = reach.visit.room;
        let now = self.select(nr, &reach.visit.config.required, reach.end)?;
        let events = self.viewer.recent.state_events(self.viewer.rooms, nr, &now)?;
        let mut added = Vec::new();
        for (at, event) in events {
            let has = wants(before, &event)
                && self.viewer.rooms.state_at(base, event.kind(), event.state_key().unwrap_or_default())? == Some(at);
            if !has {
                added.push(at);
            }
        }
        Ok(added)
    }

    // ---- names ---------------------------------------------------------------------------------------------------

    /// What the room is called and who is in it, as far as that changed.
    fn name(&self, room: &mut Room, reach: &Reach<'_>) -> Result<()> {
        let (nr, end) = (reach.visit.room, reach.end);
        let (rooms, viewer) = (self.viewer.rooms, self.viewer);
        let changed = |kind| -> Result<bool> {
            let Some(base) = reach.base else { return Ok(true) };
            Ok(base != end && rooms.state_at(base, kind, "")? != rooms.state_at(end, kind, "")?)
        };
        let members_changed = match reach.base {
            None => true,
            Some(base) if base == end => false,
            Some(base) => !state::diff(&rooms, base, end, Select::Only(Part::Members))?.is_empty(),
        };
        let renamed = changed("m.room.name")?;
        if members_changed {
            room.members = Some((0, 0));
        }
        if renamed || members_changed {
            let name = viewer.text(nr, end, "m.room.name", "name")?;
            if name.is_none() {
                room.heroes = Some(self.heroes(nr, end)?);
            }
            room.name = renamed.then_some(name).filter(|name| !room.initial || name.is_some());
        }
        if changed("m.room.avatar")? {
            let avatar = viewer.text(nr, end, "m.room.avatar", "url")?;
            room.avatar = Some(avatar).filter(|avatar| !room.initial || avatar.is_some());
        }
        Ok(())
    }

    fn heroes(&self, nr: RoomNr, root: Root) -> Result<Vec<Hero>> {
        let rooms = self.viewer.rooms;
        let mut heroes = Vec::new();
        for user_id in self.viewer.heroes(nr, root)? {
            let at = rooms.state_at(root, MEMBER, user_id.as_str())?;
            let events = self.viewer.recent.state_events(rooms, nr, at.as_slice())?;
            let text = |field| events.first().and_then(|(_, event)| shown::content_field::<String>(event, field));
            let (displayname, avatar_url) = (text("displayname"), text("avatar_url"));
            heroes.push(Hero { user_id, displayname, avatar_url });
        }
        Ok(heroes)
    }

    /// The last event of a room by which clients sort.
    fn bump(&self, nr: RoomNr) -> Result<Pos> {
        let Viewer { rooms, recent, .. } = self.viewer;
        let known = self.bumps.0.get(&nr).filter(|(as_of, _)| *as_of <= self.version);
        let is_bump = |event: &StoredEvent| !event.hidden() && BUMPS.contains(&event.kind());
        if let Some((as_of, stamp)) = known
            && let Some(newest_first) = recent.events(nr, as_of, self.version)
        {
            let newer = newest_first.iter().find(|(_, event)| is_bump(event)).map(|(at, _)| *at);
            let stamp = newer.unwrap_or(stamp);
            self.bumps.0.insert(nr, (self.version, stamp));
            return Ok(stamp);
        }
        let span = schema::EVENTS.prefix((nr,)).through((nr, self.version)).reversed().limit(MAX_SCANNED);
        let mut stamp = Pos::ZERO;
        for row in rooms.read.scan(&schema::EVENTS, span) {
            let ((_, at), event) = row?;
            stamp = at;
            if is_bump(&event) {
                break;
            }
        }
        self.bumps.0.insert(nr, (self.version, stamp));
        Ok(stamp)
    }
}

fn wants(required: &Required, event: &StoredEvent) -> bool {
    required.wants(event.kind(), event.state_key().unwrap_or_default())
}

/// Who wrote what is in a timeline, and whose membership changes in it.
fn seen_in(window: &Window) -> BTreeSet<&str> {
    let events = window.events.iter().map(|(_, event)| event);
    let targets = events.clone().filter(|event| event.kind() == MEMBER).filter_map(|event| event.state_key());
    events.map(|event| event.sender()).chain(targets).collect()
}
