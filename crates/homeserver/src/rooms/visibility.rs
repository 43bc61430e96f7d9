//! Which stretch of a room a user may read: all of it up to now, what there was until they left, or nothing.
//!
//! Within the stretch each event says by itself who may see it: that is asked of `sight`. Not here: filters.

use std::collections::{BTreeMap, HashSet};

use ::rooms::state::Root;
use ::rooms::visibility::of;
use ruma::events::room::history_visibility::HistoryVisibility;
use ruma::{RoomId, UserId};
use serde::Deserialize;
use serde::de::IgnoredAny;
use store::{Pos, Read};

use crate::error::{Error, Result};
use crate::rooms::read::RoomReader;
use crate::rooms::sight::{Sight, left_at};
use crate::schema::{self, Membership, MembershipState, RoomNr};
use crate::stored::{Head, StoredEvent};

/// How a user stands to a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Joined,
    /// They were joined until the event at this position, and see the room as it was after that.
    Left(Pos),
    /// They never were there, but anybody may look at the room as it is now.
    Peeking,
    /// They never were there. There may have been a time when anybody could look.
    Stranger,
}

/// A room, and how far into it a user may look.
#[derive(Clone, Debug)]
pub struct Reach {
    pub room: RoomNr,
    pub head: Head,
    pub standing: Standing,
    membership: Option<Membership>,
    /// Everything is to be seen, as an administrator sees it.
    whole: bool,
}

impl Reach {
    /// What a user may read of a room. Who may read nothing is told the same of rooms that do not exist.
    pub fn of<R: Read>(reader: RoomReader<'_, R>, user_id: &UserId, room_id: &RoomId) -> Result<Self> {
        let reach = Self::of_any(reader, user_id, room_id)?;
        reach.filter(|reach| reach.standing != Standing::Stranger).ok_or_else(not_there)
    }

    /// The same, for those who are in the room now.
    pub fn of_joined<R: Read>(reader: RoomReader<'_, R>, user_id: &UserId, room_id: &RoomId) -> Result<Self> {
        let reach = Self::of_any(reader, user_id, room_id)?;
        reach.filter(|reach| reach.standing == Standing::Joined).ok_or_else(not_there)
    }

    /// What a user may read of a room from now on: as one who is in it, or because anybody may.
    pub fn of_watching<R: Read>(reader: RoomReader<'_, R>, user_id: &UserId, room_id: &RoomId) -> Result<Self> {
        let mut reach = Self::of_any(reader, user_id, room_id)?.ok_or_else(not_there)?;
        if matches!(reach.standing, Standing::Left(_)) && is_world_readable(reader, reach.room, &reach.head)? {
            reach.standing = Standing::Peeking;
        }
        let watches = matches!(reach.standing, Standing::Joined | Standing::Peeking);
        if watches { Ok(reach) } else { Err(not_there()) }
    }

    /// The same for anybody: for looking at single events, of which each says itself who may see it. `None` only if the
    /// room is not known.
    pub fn of_any<R: Read>(reader: RoomReader<'_, R>, user_id: &UserId, room_id: &RoomId) -> Result<Option<Self>> {
        let Some((room, head)) = reader.head(room_id)? else { return Ok(None) };
        // Who has forgotten a room stands before it like somebody who never was there.
        let membership = reader.membership(user_id.as_str(), room)?.filter(|row| !row.forgotten);
        let joined = membership.as_ref().is_some_and(|row| row.state == MembershipState::Join);
        let left = membership.as_ref().filter(|_| !joined).map(|row| left_at(reader, room, row)).transpose()?;
        let standing = match left.flatten() {
            _ if joined => Standing::Joined,
            Some(left) => Standing::Left(left),
            None if is_world_readable(reader, room, &head)? => Standing::Peeking,
            None => Standing::Stranger,
        };
        Ok(Some(Reach { room, head, standing, membership, whole: false }))
    }

    /// All of a room, for an administrator.
    pub fn whole<R: Read>(reader: RoomReader<'_, R>, room_id: &RoomId) -> Result<Self> {
        let (room, head) = reader.head(room_id)?.ok_or_else(|| Error::not_found("There is no such room"))?;
        Ok(Reach { room, head, standing: Standing::Joined, membership: None, whole: true })
    }

    /// The last position of the room that the user gets to see anything of.
    pub fn end(&self) -> Pos {
        match self.standing {
            Standing::Left(at) => at,
            Standing::Joined | Standing::Peeking | Standing::Stranger => Pos::MAX,
        }
    }

    /// What the user takes for the room's current state.
    pub fn state<R: Read>(&self, reader: RoomReader<'_, R>) -> Result<Root> {
        let Standing::Left(at) = self.standing else { return Ok(self.head.state) };
        let event = reader.event(self.room, at)?;
        Ok(event.ok_or_else(|| Error::internal("the event that ended a membership is missing"))?.after)
    }

    /// The room's state as it was at a position, or at the end of what the user sees if that came first.
    pub fn state_at<R: Read>(&self, reader: RoomReader<'_, R>, at: Pos) -> Result<Root> {
        if at >= self.end().min(self.head.last) {
            return self.state(reader);
        }
        reader.root_at(self.room, at)
    }

    /// The user, looking at the events of the room one by one.
    pub fn eyes<'a, R: Read>(&self, reader: RoomReader<'a, R>, user_id: &'a UserId) -> Result<Eyes<'a, R>> {
        let sight = Sight::new(reader, self.room, user_id, self.membership.as_ref())?;
        Ok(Eyes { sight, end: self.end(), whole: self.whole })
    }
}

fn not_there() -> Error {
    Error::forbidden("You are not in this room")
}

/// Whether anybody may read the room as it is now.
pub fn is_world_readable<R: Read>(reader: RoomReader<'_, R>, room: RoomNr, head: &Head) -> Result<bool> {
    let at = reader.state_at(head.state, "m.room.history_visibility", "")?;
    let event = at.map(|at| reader.pdu(room, head, at)).transpose()?.flatten();
    Ok(of(event.as_deref()) == HistoryVisibility::WorldReadable)
}

/// A user looking at events, within their reach.
pub struct Eyes<'a, R> {
    sight: Sight<'a, R>,
    end: Pos,
    whole: bool,
}

impl<'a, R: Read> Eyes<'a, R> {
    /// Somebody who sees nothing after a position.
    pub fn up_to(end: Pos, sight: Sight<'a, R>) -> Self {
        Eyes { sight, end, whole: false }
    }

    /// Whether the user may see this event.
    pub fn see(&self, at: Pos, event: &StoredEvent) -> Result<bool> {
        Ok(self.reach(at) && !event.hidden() && (self.whole || self.sight.may_see(at, event)?))
    }

    /// Whether the user may see the event at this position. It is read only where that is not sure without, and no more
    /// often than `looks` says; after that nothing is seen that is not sure.
    pub fn see_at(&self, at: Pos, looks: &mut usize) -> Result<bool> {
        Ok(self.reach(at) && self.sight.see_at(at, looks)?)
    }

    /// Whether anything at this position can be seen at all.
    pub fn reach(&self, at: Pos) -> bool {
        at <= self.end
    }

    /// What the user was in the room at the event, with what the event itself changed.
    pub fn membership_at(&self, at: Pos, event: &StoredEvent) -> Result<MembershipState> {
        self.sight.membership_at(at, event)
    }
}

/// The users whose messages a user does not want to see. Their state events are not left out: the state would be wrong
/// without them.
#[derive(Clone, Debug, Default)]
pub struct Ignored(HashSet<String>);

impl Ignored {
    /// Whom a user ignores now.
    pub fn by(read: &impl Read, user_id: &UserId) -> Result<Self> {
        #[derive(Deserialize)]
        struct Content {
            ignored_users: BTreeMap<String, IgnoredAny>,
        }
        let row = read.get(&schema::ACCOUNT_DATA, (user_id.as_str(), "", "m.ignored_user_list"))?;
        // Clients may write anything there; what cannot be read ignores nobody.
        let content = row.and_then(|row| serde_json::from_slice::<Content>(&row.0).ok());
        let mut ignored: HashSet<String> =
            content.map(|content| content.ignored_users.into_keys().collect()).unwrap_or_default();
        // Nobody can ignore themselves.
        ignored.remove(user_id.as_str());
        Ok(Ignored(ignored))
    }

    pub fn hides(&self, event: &StoredEvent) -> bool {
        event.state_key().is_none() && self.hides_sender(event.sender())
    }

    pub fn hides_sender(&self, user_id: &str) -> bool {
        !self.0.is_empty() && self.0.contains(user_id)
    }
}
