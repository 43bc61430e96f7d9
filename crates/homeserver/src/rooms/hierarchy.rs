//! The rooms of a space, in the order of the space, as far as one user may know of them.
//!
//! Depth first, and each room where it comes first. A page goes on after the room that the one before it ended with;
//! the way there is walked again, which is why it is bounded. Not here: what a room is in short (`summary`).

use std::collections::HashSet;

use ::rooms::state::{Part, Select};
use ruma::{RoomId, SpaceChildOrder, UserId};
use store::Read;

use super::read::RoomReader;
use super::shown::{content, content_field};
use super::summary::{self, Summary};
use crate::error::{Error, Result};
use crate::schema::{RoomNr, room_nr};
use crate::stored::{Head, StoredEvent};

/// The most rooms that are looked at, in all pages together.
const MAX_ROOMS: usize = 2_000;
/// The most state events of a space that are looked at for its children.
const MAX_STATE: usize = 10_000;
/// They are read in pieces of so many.
const PIECE: usize = 64;
/// The most bytes of state that are read for one page. Spaces that come after that have no children.
const MAX_READ_BYTES: usize = 64 << 20;
/// The most bytes of children that one space shows, and that a page shows.
const MAX_CHILDREN_BYTES: usize = 4 << 20;
const MAX_PAGE_BYTES: usize = 8 << 20;

/// What somebody wants to know of a space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// How far down to go: 0 for the space alone.
    pub max_depth: u32,
    pub suggested_only: bool,
}

/// Where the next page starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct From {
    /// It belongs to this question only.
    pub wanted: Wanted,
    /// How many rooms there were so far, and the last of them.
    pub count: usize,
    pub last: RoomNr,
}

/// A room of the space.
pub struct Entry {
    pub summary: Summary,
    /// The `m.space.child` events, in the order of the children.
    pub children: Vec<StoredEvent>,
}

/// A page of the rooms of a space; without a user, of all of them, for an administrator.
pub fn read<R: Read>(
    reader: RoomReader<'_, R>,
    user_id: Option<&UserId>,
    space: &RoomId,
    wanted: Wanted,
    from: Option<From>,
    limit: usize,
) -> Result<(Vec<Entry>, Option<From>)> {
    let next = vec![(room_nr(space), 0)];
    let mut walk = Walk { reader, user_id, wanted, seen: HashSet::new(), next, left_bytes: MAX_READ_BYTES };
    // Without the room that the last page ended with, the count has to do.
    let (mut passed, mut page) = (Vec::new(), Page { rooms: Vec::new(), bytes: 0, limit });
    let mut found = from.is_none();
    while let Some(room) = walk.step()? {
        let last = from.is_some_and(|from| from.last == room.nr);
        if found {
            page.push(room);
        } else {
            passed.push((room.nr, room.head));
        }
        found |= last;
        if page.is_full() {
            break;
        }
    }
    if page.rooms.is_empty() && passed.is_empty() {
        return Err(Error::forbidden("You may not see this room"));
    }
    let start = if found { passed.len() } else { from.map_or(0, |from| from.count) };
    if !found {
        walk.left_bytes = MAX_READ_BYTES;
        for (nr, head) in passed.into_iter().skip(start) {
            let children = walk.children(nr, &head)?;
            page.push(Room { nr, head, children });
            if page.is_full() {
                break;
            }
        }
    }
    let more = page.is_full();
    let mut page = page.rooms;
    if more {
        // One too many, which shows that there is more.
        page.pop();
    }
    let next = page.last().filter(|_| more).map(|last| From { wanted, count: start + page.len(), last: last.nr });
    let entry = |room: Room| Ok(Entry { summary: summary::of(reader, room.nr, &room.head)?, children: room.children });
    Ok((page.into_iter().map(entry).collect::<Result<_>>()?, next))
}

struct Room {
    nr: RoomNr,
    head: Head,
    children: Vec<StoredEvent>,
}

/// A page and one room more, if there is one. No room alone is too much for a page.
struct Page {
    rooms: Vec<Room>,
    /// Of all children.
    bytes: usize,
    limit: usize,
}

impl Page {
    fn push(&mut self, room: Room) {
        self.bytes += room.children.iter().map(|child| child.client().len()).sum::<usize>();
        self.rooms.push(room);
    }

    fn is_full(&self) -> bool {
        self.rooms.len() > self.limit || self.bytes > MAX_PAGE_BYTES
    }
}

struct Walk<'a, R> {
    reader: RoomReader<'a, R>,
    user_id: Option<&'a UserId>,
    wanted: Wanted,
    seen: HashSet<RoomNr>,
    /// Rooms and their depths; what comes next is last.
    next: Vec<(RoomNr, u32)>,
    /// Bytes of state that may still be read.
    left_bytes: usize,
}

impl<R: Read> Walk<'_, R> {
    /// The next room that the user may know of.
    fn step(&mut self) -> Result<Option<Room>> {
        while let Some((nr, depth)) = self.next.pop() {
            if self.seen.len() >= MAX_ROOMS || !self.seen.insert(nr) {
                continue;
            }
            let Some(room) = self.room(nr)? else { continue };
            if depth < self.wanted.max_depth {
                let child = |event: &StoredEvent| Some((room_nr(&RoomId::parse(event.state_key()?).ok()?), depth + 1));
                self.next.extend(room.children.iter().rev().filter_map(child));
            }
            return Ok(Some(room));
        }
        Ok(None)
    }

    /// A room, if it is known here and the user may know of it.
    fn room(&mut self, nr: RoomNr) -> Result<Option<Room>> {
        let Some(head) = self.reader.head_of(nr)? else { return Ok(None) };
        let hidden = |user_id| summary::may_know(self.reader, Some(user_id), nr, &head).map(|known| !known);
        if self.user_id.map(hidden).transpose()? == Some(true) {
            return Ok(None);
        }
        let children = self.children(nr, &head)?;
        Ok(Some(Room { nr, head, children }))
    }

    fn children(&mut self, nr: RoomNr, head: &Head) -> Result<Vec<StoredEvent>> {
        let create = self.reader.state_event(nr, head.state, "m.room.create", "")?;
        let is_space = create.is_some_and(|create| content_field::<&str>(&create, "type") == Some("m.space"));
        if !is_space {
            return Ok(Vec::new());
        }
        let mut positions = self.reader.state_positions(head.state, Select::Only(Part::Others))?;
        positions.sort_unstable();
        positions.truncate(MAX_STATE);
        let mut children: Vec<(Child, StoredEvent)> = Vec::new();
        let mut bytes = 0;
        for piece in positions.chunks(PIECE) {
            if self.left_bytes == 0 || bytes > MAX_CHILDREN_BYTES {
                break;
            }
            for (_, event) in self.reader.events_at(nr, piece)? {
                self.left_bytes = self.left_bytes.saturating_sub(event.client().len());
                let child = Child::of(&event).filter(|child| child.suggested || !self.wanted.suggested_only);
                let Some(child) = child else { continue };
                bytes += event.client().len();
                if bytes <= MAX_CHILDREN_BYTES {
                    children.push((child, event));
                }
            }
        }
        children.sort_by(|(a, _), (b, _)| a.place().cmp(&b.place()));
        Ok(children.into_iter().map(|(_, event)| event).collect())
    }
}

/// What a space says of a child.
struct Child {
    order: Option<String>,
    origin_server_ts: u64,
    room_id: String,
    suggested: bool,
}

impl Child {
    /// `None` if the event names no child, or not any more.
    fn of(event: &StoredEvent) -> Option<Self> {
        let room_id = event.state_key().filter(|_| event.kind() == "m.space.child")?;
        let via: Vec<serde_json::Value> = content_field(event, "via")?;
        if via.is_empty() {
            return None;
        }
        let order: Option<String> = content_field(event, "order");
        Some(Child {
            order: order.filter(|order| <&SpaceChildOrder>::try_from(order.as_str()).is_ok()),
            origin_server_ts: event.origin_server_ts,
            room_id: room_id.to_owned(),
            suggested: content_field(event, "suggested").unwrap_or(false),
        })
    }

    /// Those with an order come first.
    fn place(&self) -> (bool, Option<&str>, u64, &str) {
        (self.order.is_none(), self.order.as_deref(), self.origin_server_ts, &self.room_id)
    }
}

impl From {
    /// As a token.
    pub fn write(&self) -> String {
        let Wanted { max_depth, suggested_only } = self.wanted;
        format!("h{max_depth}_{}_{}_{:x}", u8::from(suggested_only), self.count, self.last)
    }

    pub fn parse(token: &str) -> Option<Self> {
        let mut parts = token.strip_prefix('h')?.split('_');
        let max_depth = parts.next()?.parse().ok()?;
        let suggested_only = match parts.next()? {
            "0" => false,
            "1" => true,
            _ => return None,
        };
        let count = parts.next()?.parse().ok()?;
        let last = u64::from_str_radix(parts.next()?, 16).ok()?;
        parts.next().is_none().then_some(From { wanted: Wanted { max_depth, suggested_only }, count, last })
    }
}

/// Writes a child's event as the hierarchy shows it: five keys.
pub fn child_json(out: &mut Vec<u8>, event: &StoredEvent) -> Result<()> {
    #[derive(serde::Serialize)]
    struct Shown<'a> {
        content: &'a serde_json::value::RawValue,
        origin_server_ts: u64,
        sender: &'a str,
        state_key: &'a str,
        #[serde(rename = "type")]
        kind: &'a str,
    }
    let shown = Shown {
        content: content(event),
        origin_server_ts: event.origin_server_ts,
        sender: event.sender(),
        state_key: event.state_key().unwrap_or_default(),
        kind: event.kind(),
    };
    serde_json::to_writer(out, &shown).map_err(Error::internal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back() {
        let wanted = Wanted { max_depth: 3, suggested_only: true };
        let from = From { wanted, count: 50, last: u64::MAX };
        assert_eq!(From::parse(&from.write()), Some(from));
        for wrong in ["", "h", "h1_2_3_4", "h1_0_3", "h1_0_x_4", "h1_0_3_4_5", "s12"] {
            assert_eq!(From::parse(wrong), None, "{wrong}");
        }
    }
}
