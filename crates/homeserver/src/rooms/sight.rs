//! What one user may see of one room: history visibility, event by event, over stored events.
//!
//! The rules are in the `rooms` crate; here is where the facts come from, and the short cut for the common case: who is
//! joined now and was when the event came has nothing to ask. Not here: ignored users, filters.

use std::cell::{Cell, RefCell};

use ::rooms::state::Root;
use ::rooms::visibility::{Scene, Viewer, may_see};
use ruma::UserId;
use ruma::events::TimelineEventType;
use ruma::events::room::history_visibility::HistoryVisibility;
use ruma::events::room::member::MembershipState as RumaMembership;
use store::{Pos, Read};

use super::read::RoomReader;
use super::shown::{content, content_field, membership};
use crate::error::Result;
use crate::schema::{Membership, MembershipState, RoomNr};
use crate::stored::StoredEvent;

/// A user looking at a room.
pub struct Sight<'a, R> {
    rooms: RoomReader<'a, R>,
    room: RoomNr,
    user_id: &'a UserId,
    /// Since when the user has been in the room without a break, if they are in it.
    joined_since: Option<Pos>,
    viewer: Viewer<'a>,
    /// Most neighbours have the same state before them.
    last: RefCell<Option<(Root, HistoryVisibility, MembershipState)>>,
    /// See [`Sight::surely_sees`].
    open_after: Cell<Option<Pos>>,
}

/// The most changes of a room's history visibility that are looked at.
const MAX_CHANGES: usize = 20;

impl<'a, R: Read> Sight<'a, R> {
    /// `membership` is what the user is in the room now.
    pub fn new(
        rooms: RoomReader<'a, R>,
        room: RoomNr,
        user_id: &'a UserId,
        membership: Option<&Membership>,
    ) -> Result<Self> {
        let joined = membership.filter(|member| member.state == MembershipState::Join);
        let joined_until = match membership {
            None => None,
            Some(_) if joined.is_some() => Some(Viewer::STILL),
            Some(member) if member.joined.is_none() => None,
            Some(member) => left_at(rooms, room, member)?.map(|at| at.0),
        };
        Ok(Sight {
            rooms,
            room,
            user_id,
            joined_since: joined.and_then(|member| member.joined),
            viewer: Viewer { user_id, joined_until },
            last: RefCell::new(None),
            open_after: Cell::new(None),
        })
    }

    /// Whether the user may see an event.
    pub fn may_see(&self, at: Pos, event: &StoredEvent) -> Result<bool> {
        if self.joined_since.is_some_and(|joined| at >= joined) {
            return Ok(true);
        }
        let (visibility, membership) = self.before(event.before())?;
        let kind = TimelineEventType::from(event.kind());
        let scene = Scene {
            position: at.0,
            kind: &kind,
            state_key: event.state_key(),
            content: content(event),
            visibility,
            membership: RumaMembership::from(membership.as_str()),
        };
        Ok(may_see(&self.viewer, &scene))
    }

    /// Whether the user may see the event at a position. It is read only where that is not sure without, and no more
    /// often than `looks` says; after that nothing is seen that is not sure.
    pub fn see_at(&self, at: Pos, looks: &mut usize) -> Result<bool> {
        if self.surely_sees(at)? {
            return Ok(true);
        }
        let Some(left) = looks.checked_sub(1) else { return Ok(false) };
        *looks = left;
        match self.rooms.event(self.room, at)? {
            Some(event) => Ok(!event.hidden() && self.may_see(at, &event)?),
            None => Ok(false),
        }
    }

    /// Whether the user sees whatever lies at a position, up to where they left: they were there, or the history is open
    /// to them since before. Costs some reads once, and none for each position.
    fn surely_sees(&self, at: Pos) -> Result<bool> {
        if self.joined_since.is_some_and(|joined| at >= joined) {
            return Ok(true);
        }
        let open_after = match self.open_after.get() {
            Some(known) => known,
            None => self.open_after()?,
        };
        self.open_after.set(Some(open_after));
        Ok(at > open_after && self.viewer.joined_until.is_none_or(|until| until > at.0))
    }

    /// Behind which position the history is open to the user, up to where they left.
    fn open_after(&self) -> Result<Pos> {
        let root = match self.viewer.joined_until {
            Some(until) if until != Viewer::STILL => self.rooms.event(self.room, Pos(until))?.map(|event| event.after),
            _ => self.rooms.head_of(self.room)?.map(|head| head.state),
        };
        let Some(root) = root else { return Ok(Pos::MAX) };
        let mut open_after = Pos::MAX;
        let mut next = self.rooms.state_at(root, "m.room.history_visibility", "")?;
        for _ in 0..MAX_CHANGES {
            let change = next.map(|at| self.rooms.event(self.room, at)).transpose()?.flatten();
            let visibility = change.as_ref().and_then(|event| content_field(event, "history_visibility"));
            let open = match visibility.unwrap_or(HistoryVisibility::Shared) {
                HistoryVisibility::WorldReadable => true,
                HistoryVisibility::Shared => self.viewer.joined_until.is_some(),
                _ => false,
            };
            match next.filter(|_| open) {
                Some(at) => open_after = at,
                None if open => return Ok(Pos::ZERO),
                None => break,
            }
            next = change.and_then(|event| event.replaces());
        }
        Ok(open_after)
    }

    /// What the user was in the room at an event, with what the event changed.
    pub fn membership_at(&self, at: Pos, event: &StoredEvent) -> Result<MembershipState> {
        if self.joined_since.is_some_and(|joined| at >= joined) {
            return Ok(MembershipState::Join);
        }
        if event.is_state("m.room.member", self.user_id.as_str()) && !event.hidden() {
            return Ok(membership(event).unwrap_or(MembershipState::Leave));
        }
        Ok(self.before(event.before())?.1)
    }

    fn before(&self, root: Root) -> Result<(HistoryVisibility, MembershipState)> {
        if let Some((known, visibility, membership)) = &*self.last.borrow()
            && *known == root
        {
            return Ok((visibility.clone(), *membership));
        }
        let member = self.rooms.state_event(self.room, root, "m.room.member", self.user_id.as_str())?;
        let member = member.and_then(|event| membership(&event)).unwrap_or(MembershipState::Leave);
        let visibility = self.rooms.state_event(self.room, root, "m.room.history_visibility", "")?;
        let visibility = visibility.and_then(|event| content_field(&event, "history_visibility"));
        let visibility: HistoryVisibility = visibility.unwrap_or(HistoryVisibility::Shared);
        *self.last.borrow_mut() = Some((root, visibility.clone(), member));
        Ok((visibility, member))
    }
}

/// Where a user who is no longer joined stopped being so: a leave may have become a ban since.
pub fn left_at<R: Read>(rooms: RoomReader<'_, R>, room: RoomNr, member: &Membership) -> Result<Option<Pos>> {
    let Some(joined) = member.joined else { return Ok(None) };
    if member.left.is_some() {
        return Ok(member.left);
    }
    // A row of the first format does not say it.
    let mut at = member.event;
    while at > joined {
        let replaced = rooms.event(room, at)?.and_then(|event| event.replaces());
        let Some(before) = replaced else { break };
        let was_joined = rooms.event(room, before)?.is_some_and(|e| membership(&e) == Some(MembershipState::Join));
        if was_joined {
            return Ok(Some(at));
        }
        at = before;
    }
    Ok(Some(member.event))
}
