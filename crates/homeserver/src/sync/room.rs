//! One room of a sync answer: which stretch of its timeline, which state with it, who is in it.

use std::collections::{BTreeSet, HashSet};

use ::rooms::state::{self, Root, Select};
use hashbrown::HashMap;
use store::Pos;

use super::collect::Collector;
use super::filter::Lazy;
use super::material::{ReadBy, Room, Stripped, Summary};
use super::recent::What;
use super::unread::Counter;
use super::viewer::{Stretch, Viewer, Window};
use crate::error::Result;
use crate::rooms::relations::Sees;
use crate::rooms::shown::{self, Style};
use crate::rooms::sight::{Sight, left_at};
use crate::schema::{Membership, MembershipState, RoomNr};
use crate::stored::{Head, StoredEvent};

/// So many receipts of others are sent for a room that is new to the client, the newest ones.
const MAX_RECEIPTS: usize = 500;

/// What of a room's state is sent.
struct Wanted<'a> {
    /// What the client has; all of it is sent if it has none.
    base: Option<Root>,
    /// Before the timeline.
    start: Root,
    /// After it.
    end: Root,
    window: &'a Window,
    heroes: &'a [String],
}

impl Collector<'_> {
    /// What happened in a joined room; `None` if it is unknown or not wanted. Without `since` all of it is new.
    pub(super) fn joined(
        &self,
        nr: RoomNr,
        member: &Membership,
        since: Option<Pos>,
        what: What,
        counted: bool,
    ) -> Result<Option<Room>> {
        let Some(head) = self.rooms.head_of(nr)? else { return Ok(None) };
        if !self.filter.rooms.take(&head.room_id) {
            return Ok(None);
        }
        let since = since.filter(|since| member.joined.is_some_and(|joined| joined <= *since));
        let mut room = Room { room_id: head.room_id.clone(), ..Room::default() };
        if since.is_none() || what.events || self.full_state {
            self.put_events(&mut room, nr, &head, member, since)?;
        } else {
            room.timeline.prev_batch = since.unwrap_or_default();
        }
        let mut own_receipt = false;
        if since.is_none() || what.receipts {
            (room.receipts, own_receipt) = self.receipts(nr, &head.room_id, since)?;
        }
        let moved = own_receipt || counted || !room.timeline.events.is_empty() || room.timeline.limited;
        if since.is_none() || moved {
            let Self { app, rooms, user_id, recent, tastes, ref budget, .. } = *self;
            let counter = Counter { rooms, recent, user_id, tastes, recounts: &app.sync.recounts, budget };
            room.unread = Some(counter.count(&self.live.counts, nr, &head, member)?);
        }
        Ok(Some(room))
    }

    fn put_events(
        &self,
        room: &mut Room,
        nr: RoomNr,
        head: &Head,
        member: &Membership,
        since: Option<Pos>,
    ) -> Result<()> {
        let sight = Sight::new(self.rooms, nr, self.user_id, Some(member))?;
        let mut window = self.window(nr, &head.room_id, since, self.version, &sight)?;
        self.cut(&mut window, head.state)?;
        let base = self.base(nr, since, &window, head.state)?.filter(|_| !self.full_state);
        room.summary = self.summary(nr, head, base)?;
        let heroes = room.summary.as_ref().and_then(|summary| summary.heroes.as_deref()).unwrap_or_default();
        let start = window.events.first().map_or(head.state, |(_, event)| event.before());
        let wanted = Wanted { base, start, end: head.state, window: &window, heroes };
        room.state = self.state(nr, &head.room_id, &wanted)?;
        room.timeline = self.viewer().timeline(nr, window, &sight, self.version)?;
        if room.timeline.limited {
            self.viewer().bundle(nr, &mut room.timeline, sight, self.style())?;
        }
        Ok(())
    }

    /// A room the user left, was banned from, or whose invite is gone: up to the event that ended it, and no further.
    pub(super) fn left(&self, nr: RoomNr, member: &Membership, since: Option<Pos>) -> Result<Option<Room>> {
        let Some(head) = self.rooms.head_of(nr)? else {
            return if since.is_some() { self.closed(nr, member) } else { Ok(None) };
        };
        if !self.filter.rooms.take(&head.room_id) {
            return Ok(None);
        }
        let was = since.map(|since| self.membership_at(nr, since)).transpose()?;
        if member.forgotten {
            // A device that still has the room learns that it is gone, and nothing else.
            let had = was.is_some_and(|was| !matches!(was, MembershipState::Leave | MembershipState::Ban));
            let room = Room { room_id: head.room_id.clone(), ..Room::default() };
            return Ok(had.then_some(room));
        }
        let mut room = Room { room_id: head.room_id.clone(), ..Room::default() };
        room.timeline.prev_batch = Pos(member.event.0.saturating_sub(1));
        let sight = Sight::new(self.rooms, nr, self.user_id, Some(member))?;
        let left = left_at(self.rooms, nr, member)?;
        let saw_the_end = since.is_some_and(|since| left.is_none_or(|left| left <= since));
        let (Some(left), false) = (left, saw_the_end) else {
            // Never inside, or outside already: there is only the event that says so.
            let Some(event) = self.rooms.event(nr, member.event)? else { return Ok(None) };
            if since.is_none() {
                return Ok(None);
            }
            let window = Window {
                events: vec![(member.event, event)],
                limited: false,
                prev_batch: room.timeline.prev_batch,
                base: None,
                complete: true,
            };
            room.timeline = self.viewer().timeline(nr, window, &sight, left.unwrap_or(member.event))?;
            return Ok(Some(room));
        };
        let since = since.filter(|_| was == Some(MembershipState::Join));
        let mut window = self.window(nr, &head.room_id, since, left, &sight)?;
        let end = self.rooms.event(nr, left)?.map_or(Root::EMPTY, |event| event.after);
        self.cut(&mut window, end)?;
        let base = self.base(nr, since, &window, end)?.filter(|_| !self.full_state);
        let start = window.events.first().map_or(end, |(_, event)| event.before());
        room.state = self.state(nr, &head.room_id, &Wanted { base, start, end, window: &window, heroes: &[] })?;
        if member.event > left {
            // What became of the membership since is told, but nothing of what happened around it.
            window.events.extend(self.rooms.event(nr, member.event)?.map(|event| (member.event, event)));
        }
        room.timeline = self.viewer().timeline(nr, window, &sight, left)?;
        Ok(Some(room))
    }

    /// A room that was deleted: that it is over is all there is to tell.
    fn closed(&self, nr: RoomNr, member: &Membership) -> Result<Option<Room>> {
        let Some((room_id, last)) = self.rooms.closed(nr, self.user_id)? else { return Ok(None) };
        if !self.filter.rooms.take(&room_id) {
            return Ok(None);
        }
        let mut room = Room { room_id, ..Room::default() };
        room.timeline.prev_batch = member.event;
        if matches!(shown::membership(&last), Some(MembershipState::Leave | MembershipState::Ban)) {
            room.state.push((member.event, last));
        }
        Ok(Some(room))
    }

    /// A room the user is invited to or knocks at, as it was then.
    pub(super) fn stripped(&self, nr: RoomNr, member: &Membership) -> Result<Option<Stripped>> {
        let Some(head) = self.rooms.head_of(nr)? else { return Ok(None) };
        if !self.filter.rooms.take(&head.room_id) {
            return Ok(None);
        }
        self.viewer().stripped(nr, member)
    }

    /// What the user was in a room at a position of the stream.
    fn membership_at(&self, nr: RoomNr, at: Pos) -> Result<MembershipState> {
        let root = self.rooms.root_at(nr, at)?;
        let event = self.rooms.state_event(nr, root, "m.room.member", self.user_id.as_str())?;
        Ok(event.and_then(|event| shown::membership(&event)).unwrap_or(MembershipState::Leave))
    }

    // ---- timeline ------------------------------------------------------------------------------------------------

    /// The newest events after `since` and up to `until`, as many as are wanted.
    fn window(
        &self,
        nr: RoomNr,
        room_id: &str,
        since: Option<Pos>,
        until: Pos,
        sight: &Sight<'_, store::Snapshot>,
    ) -> Result<Window> {
        let (viewer, filter) = (self.viewer(), &self.filter.timeline);
        let wants_room = filter.rooms.take(room_id);
        let stretch = Stretch { since, until, limit: self.filter.timeline_limit() };
        let sees = |at, looks: &mut usize| Ok(at <= until && sight.see_at(at, looks)?);
        let looker: (Sees<'_>, _) = (&sees, &viewer.tastes.ignored);
        viewer.window(nr, stretch, |at, event| {
            Ok(wants_room
                && filter.take(event)
                && viewer.shows(at, event, sight)?
                && filter.related.take(self.rooms, nr, looker, event)?)
        })
    }

    /// Shortens a window that does not show all that happened in it. Who applies first the state and then the timeline
    /// would otherwise end with what was shown of an entry, although it changed again, unseen: what is older than such
    /// a change is left to paging back.
    fn cut(&self, window: &mut Window, end: Root) -> Result<()> {
        let Some((_, first)) = window.events.first().filter(|_| !window.complete && !self.state_after.wanted()) else {
            return Ok(());
        };
        let shown: HashSet<u64> = window.events.iter().map(|(at, _)| at.0).collect();
        let changes = state::diff(&self.rooms, first.before(), end, Select::All)?;
        let unseen = changes.into_iter().filter(|change| change.after.is_some_and(|nr| !shown.contains(&nr.0)));
        let unseen: HashSet<state::Key> = unseen.map(|change| change.key).collect();
        let outdated = |event: &StoredEvent| {
            event.state_key().is_some_and(|key| unseen.contains(&state::Key::new(event.kind(), key)))
        };
        if let Some(last) = window.events.iter().rposition(|(_, event)| outdated(event)) {
            window.limited = true;
            window.base = None;
            window.prev_batch = window.events.get(last).map_or(window.prev_batch, |(at, _)| *at);
            window.events.drain(..=last);
        }
        Ok(())
    }

    // ---- state ---------------------------------------------------------------------------------------------------

    /// The state the client has; `None` if it has none.
    fn base(&self, nr: RoomNr, since: Option<Pos>, window: &Window, end: Root) -> Result<Option<Root>> {
        let Some(since) = since else { return Ok(None) };
        if let Some(base) = window.base {
            return Ok(Some(base));
        }
        if window.limited { Ok(Some(self.rooms.root_at(nr, since)?)) } else { Ok(Some(end)) }
    }

    fn state(&self, nr: RoomNr, room_id: &str, wanted: &Wanted<'_>) -> Result<Vec<(Pos, StoredEvent)>> {
        if !self.filter.state.rooms.take(room_id) {
            return Ok(Vec::new());
        }
        let target = if self.state_after.wanted() { wanted.end } else { wanted.start };
        let mut positions = self.changed_state(wanted, target)?;
        if let Lazy::Senders { redundant } = self.filter.lazy {
            self.add_members(nr, wanted, target, redundant, &mut positions)?;
        }
        positions.sort_unstable();
        positions.dedup();
        let mut events = self.recent.state_events(self.rooms, nr, &positions)?;
        if !self.filter.state.take_all() {
            events.retain(|(_, event)| self.filter.state.take(event));
        }
        if let (Lazy::Senders { .. }, Some(sent)) = (self.filter.lazy, &self.sent) {
            if wanted.base.is_none() {
                sent.forget_room(nr);
            }
            let is_member = |(_, event): &&(Pos, StoredEvent)| event.kind() == "m.room.member";
            let members = events.iter().filter(is_member).chain(wanted.window.events.iter().filter(is_member));
            sent.remember(nr, members.map(|(at, _)| *at), self.version);
        }
        Ok(events)
    }

    /// Where the state events lie that the client does not have and does not get in the timeline.
    fn changed_state(&self, wanted: &Wanted<'_>, target: Root) -> Result<Vec<Pos>> {
        let lazy = self.filter.lazy != Lazy::All && wanted.base.is_none();
        let select = if lazy { Select::Only(state::Part::Others) } else { Select::All };
        let base = wanted.base.unwrap_or(Root::EMPTY);
        let changes = state::diff(&self.rooms, base, target, select)?;
        let Window { events, complete, .. } = wanted.window;
        let told = *complete && events.last().is_none_or(|(_, event)| event.after == wanted.end);
        if target == wanted.end || told {
            return Ok(changes.into_iter().filter_map(|change| change.after).map(|nr| Pos(nr.0)).collect());
        }
        // The timeline does not tell everything that happened in it: what it keeps to itself goes with the state.
        let shown: HashSet<Pos> = events.iter().map(|(at, _)| *at).collect();
        let mut state: HashMap<state::Key, Pos> = HashMap::new();
        let untold = state::diff(&self.rooms, target, wanted.end, select)?;
        let untold = untold.into_iter().filter(|change| change.after.is_some_and(|nr| !shown.contains(&Pos(nr.0))));
        for change in changes.into_iter().chain(untold) {
            if let Some(nr) = change.after {
                state.insert(change.key, Pos(nr.0));
            }
        }
        Ok(state.into_values().collect())
    }

    /// Lazy loading: the members who wrote what is in the timeline, the heroes, and, in a room that is new to the
    /// client, the user.
    fn add_members(
        &self,
        nr: RoomNr,
        wanted: &Wanted<'_>,
        target: Root,
        redundant: bool,
        positions: &mut Vec<Pos>,
    ) -> Result<()> {
        let mut members: BTreeSet<&str> = wanted.window.events.iter().map(|(_, event)| event.sender()).collect();
        members.extend(wanted.heroes.iter().map(String::as_str));
        let shown: HashSet<Pos> = wanted.window.events.iter().map(|(at, _)| *at).collect();
        if wanted.base.is_none() {
            members.insert(self.user_id.as_str());
        }
        for member in members {
            // What changed and is not shown goes with the state, too.
            let unseen = self.rooms.state_at(wanted.end, "m.room.member", member)?.filter(|at| !shown.contains(at));
            let before = || self.rooms.state_at(target, "m.room.member", member);
            let Some(at) = unseen.map_or_else(before, |at| Ok(Some(at)))? else { continue };
            let since = self.since.map(|since| since.version).filter(|_| !redundant && wanted.base.is_some());
            let known = since.is_some_and(|since| self.sent.as_ref().is_some_and(|sent| sent.knows(nr, at, since)));
            if !known {
                positions.push(at);
            }
        }
        if let Some(since) = self.since.filter(|_| wanted.base.is_none())
            && self.membership_at(nr, since.version)? == MembershipState::Join
        {
            // Who left and came back since then still has the members from before.
            let then = self.rooms.root_at(nr, since.version)?;
            let changes = state::diff(&self.rooms, then, wanted.end, Select::Only(state::Part::Members))?;
            let members = changes.into_iter().filter_map(|change| change.after).map(|nr| Pos(nr.0));
            positions.extend(members.filter(|at| self.state_after.wanted() || !shown.contains(at)));
        }
        Ok(())
    }

    // ---- summary -------------------------------------------------------------------------------------------------

    /// Who is in the room, if that changed since the client's state.
    fn summary(&self, nr: RoomNr, head: &Head, base: Option<Root>) -> Result<Option<Summary>> {
        if let Some(base) = base
            && state::diff(&self.rooms, base, head.state, Select::Only(state::Part::Members))?.is_empty()
            && !self.name_changed(base, head.state)?
        {
            return Ok(None);
        }
        let heroes = if self.has_name(nr, head.state)? {
            None
        } else {
            let heroes = self.viewer().heroes(nr, head.state)?;
            Some(heroes.into_iter().map(String::from).collect())
        };
        Ok(Some(Summary { heroes, joined: head.joined_members, invited: head.invited_members }))
    }

    /// A room that lost its name is named after its heroes.
    fn name_changed(&self, base: Root, now: Root) -> Result<bool> {
        if base == now {
            return Ok(false);
        }
        for kind in NAMES {
            if self.rooms.state_at(base, kind, "")? != self.rooms.state_at(now, kind, "")? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn has_name(&self, nr: RoomNr, root: Root) -> Result<bool> {
        for (kind, field) in NAMES.into_iter().zip(["name", "alias"]) {
            if self.viewer().text(nr, root, kind, field)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    // ---- receipts ------------------------------------------------------------------------------------------------

    /// Receipts that the user may see, and whether one of their own is among them.
    fn receipts(&self, nr: RoomNr, room_id: &str, since: Option<Pos>) -> Result<(Vec<ReadBy>, bool)> {
        let wanted = self.filter.ephemeral.take_kind("m.receipt") && self.filter.ephemeral.rooms.take(room_id);
        self.viewer().receipts(nr, since, MAX_RECEIPTS, |_, _| wanted)
    }

    fn style(&self) -> Style<'_> {
        Style {
            now_ms: self.app.clock.now_ms(),
            device_id: self.device_id.map(|device| device.as_str()),
            room_id: None,
            federation: false,
        }
    }

    fn viewer(&self) -> Viewer<'_> {
        let Self { user_id, rooms, recent, candidates, tastes, .. } = *self;
        Viewer { user_id, rooms, recent, candidates, tastes }
    }
}

/// What gives a room a name.
const NAMES: [&str; 2] = ["m.room.name", "m.room.canonical_alias"];
