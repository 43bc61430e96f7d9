//! A user's rooms in the order of their last activity, kept in memory while the user polls, and carried on from what
//! happened lately instead of being read again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ::rooms::state::{Part, Root, Select};
use hashbrown::{HashMap, HashSet};
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use ruma::{OwnedUserId, RoomId};
use serde::Deserialize;
use serde_json::value::RawValue;
use store::{Pos, Read as _, Snapshot};

use crate::App;
use crate::error::Result;
use crate::rooms::read::RoomReader;
use crate::rooms::shown::content_field;
use crate::rooms::sight::left_at;
use crate::schema::{self, Membership, MembershipState, RoomNr, room_nr};
use crate::sync::live::{LiveUser, Look, Memberships};

const MAX_USERS: usize = 4_096;

/// The orders of those who polled lately.
pub struct Orders {
    known: Cache<OwnedUserId, Arc<Mutex<Order>>>,
    generations: AtomicU64,
}

impl Default for Orders {
    fn default() -> Self {
        Orders { known: Cache::new(MAX_USERS), generations: AtomicU64::new(1) }
    }
}

/// One user's rooms.
#[derive(Default)]
pub struct Order {
    memberships: Option<Arc<Memberships>>,
    edition: (Pos, Pos),
    as_of: Pos,
    direct_at: Pos,
    /// Changes whenever rows come, go, or move.
    pub generation: u64,
    /// Counts, within a generation, the changes of what lists look at.
    pub changes: u64,
    /// The traits of all rows are those of this change.
    traits_at: Option<u64>,
    /// By room number.
    pub rows: Vec<Row>,
    /// Places in `rows`, last activity first.
    pub sorted: Vec<u32>,
    /// The children of spaces that lists were about lately, and the state they were read from.
    children: HashMap<RoomNr, (Root, HashSet<RoomNr>)>,
    tags: HashMap<RoomNr, Vec<String>>,
    /// Up to where the tags are known; zero before anybody asked for them.
    tags_at: Pos,
}

/// A room, as far as lists have to know it.
#[derive(Clone, Debug)]
pub struct Row {
    pub room: RoomNr,
    pub member: Membership,
    /// When something happened last that the user may know of.
    pub last: Pos,
    pub standing: Standing,
    pub is_dm: bool,
    traits: Option<Traits>,
}

/// What lists make of a membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Joined, invited, knocking, or removed by somebody else.
    Listed,
    /// Over: shown once more to those who know the room, and then never again.
    Over,
    Hidden,
}

/// What filters ask for.
#[derive(Clone, Debug)]
pub struct Traits {
    pub encrypted: bool,
    pub room_type: Option<String>,
    /// What had happened last when they were read.
    as_of: (Pos, Pos),
}

impl Orders {
    /// The user's rooms as of now, with the moment they are of.
    pub fn look<T>(
        &self,
        app: &App,
        live: &LiveUser,
        user_id: &OwnedUserId,
        then: impl FnOnce(&Look, &mut Order) -> Result<T>,
    ) -> Result<(Look, T)> {
        let fresh = || Ok::<_, std::convert::Infallible>(Arc::default());
        let order = match self.known.get_or_insert_with(user_id, fresh) {
            Ok(order) => order,
            Err(never) => match never {},
        };
        // The moment is taken under the lock, so that it never goes back.
        let mut order = order.lock();
        let look = live.look(&app.store)?;
        let refreshed = order.refresh(app, &look, &self.generations);
        if refreshed.is_err() {
            *order = Order::default();
        }
        refreshed?;
        let then = then(&look, &mut order)?;
        Ok((look, then))
    }
}

impl Order {
    pub fn row(&self, room: RoomNr) -> Option<(usize, &Row)> {
        let at = self.rows.binary_search_by_key(&room, |row| row.room).ok()?;
        self.rows.get(at).map(|row| (at, row))
    }

    fn refresh(&mut self, app: &App, look: &Look, generations: &AtomicU64) -> Result<()> {
        let rooms = RoomReader::new(&app.room_cache, &look.snapshot);
        let same = self.memberships.as_ref().is_some_and(|known| Arc::ptr_eq(known, &look.memberships));
        if same && self.edition == look.tastes.edition() {
            self.carry_on(app, rooms, look)?;
        } else {
            self.rebuild(rooms, look)?;
            self.generation = generations.fetch_add(1, Ordering::Relaxed);
        }
        self.mark_direct(rooms, look)?;
        self.as_of = look.snapshot.version();
        Ok(())
    }

    /// Brings the rows up to date with what happened in joined rooms.
    fn carry_on(&mut self, app: &App, rooms: RoomReader<'_, Snapshot>, look: &Look) -> Result<()> {
        let version = look.snapshot.version();
        if version <= self.as_of {
            return Ok(());
        }
        let is_joined = |room| look.memberships.is_joined(room);
        let Some(changed) = app.sync.recent.changes(self.as_of, version, is_joined) else {
            return self.rebuild(rooms, look);
        };
        for (room, _) in changed.into_iter().filter(|(_, what)| what.events) {
            let (Some(head), Some((at, row))) = (rooms.head_of(room)?, self.row(room)) else { continue };
            self.advance(at, row.last, head.last);
        }
        Ok(())
    }

    /// Something happened in a room: it comes to the front.
    fn advance(&mut self, at: usize, before: Pos, now: Pos) {
        if before == now {
            return;
        }
        let key = |rows: &[Row], slot: u32| rows.get(slot as usize).map(|row| (std::cmp::Reverse(row.last), row.room));
        let room = self.rows.get(at).map(|row| row.room).unwrap_or_default();
        let place = |order: &Order, last| {
            order.sorted.binary_search_by_key(&Some((std::cmp::Reverse(last), room)), |slot| key(&order.rows, *slot))
        };
        if let Ok(found) = place(self, before) {
            self.sorted.remove(found);
        }
        if let Some(row) = self.rows.get_mut(at) {
            row.last = now;
        }
        self.changes += 1;
        let (Ok(found) | Err(found)) = place(self, now);
        self.sorted.insert(found, at as u32);
    }

    fn rebuild(&mut self, rooms: RoomReader<'_, Snapshot>, look: &Look) -> Result<()> {
        let joined: Vec<RoomNr> = look.memberships.joined().collect();
        let heads = rooms.read.multi_get(&schema::HEADS, joined.iter().copied())?;
        let mut heads = joined.into_iter().zip(heads).peekable();
        let mut rows = Vec::new();
        for (room, member) in look.memberships.iter() {
            let head = heads.next_if(|(joined, _)| *joined == room).and_then(|(_, head)| head);
            let known = self.row(room).map(|(_, row)| row).filter(|row| row.member == *member);
            let last = head.map_or(member.event, |head| head.last);
            let standing = match known.filter(|_| self.edition == look.tastes.edition()) {
                Some(known) => known.standing,
                None => standing(rooms, room, member, look)?,
            };
            let (is_dm, traits) = known.map_or((false, None), |row| (row.is_dm, row.traits.clone()));
            rows.push(Row { room, member: member.clone(), last, standing, is_dm, traits });
        }
        rows.shrink_to_fit();
        let mut sorted: Vec<u32> = (0..rows.len() as u32).collect();
        sorted.sort_unstable_by_key(|slot| rows.get(*slot as usize).map(|row| (std::cmp::Reverse(row.last), row.room)));
        (self.rows, self.sorted) = (rows, sorted);
        (self.changes, self.traits_at) = (self.changes + 1, None);
        self.memberships = Some(look.memberships.clone());
        self.edition = look.tastes.edition();
        // Whatever was known of direct rooms has to be marked on the new rows; and if the user was not watched for a
        // while, nobody knows what happened to the tags.
        self.direct_at = Pos::ZERO;
        self.tags_at = Pos::ZERO;
        Ok(())
    }

    fn mark_direct(&mut self, rooms: RoomReader<'_, Snapshot>, look: &Look) -> Result<()> {
        const DIRECT: &str = "m.direct";
        if self.direct_at != Pos::ZERO && look.account_moved <= self.as_of {
            return Ok(());
        }
        let user = look.user_id.as_str();
        let at = rooms.read.get(&schema::ACCOUNT_DATA_AT, (user, "", DIRECT))?;
        // There is no position zero: so what was looked at and not found is told from what was not looked at.
        let at = at.unwrap_or(Pos::MAX);
        if self.direct_at == at {
            return Ok(());
        }
        let content = rooms.read.get(&schema::ACCOUNT_DATA, (user, "", DIRECT))?;
        let direct = content.map(|content| direct_rooms(&content.0)).unwrap_or_default();
        for row in &mut self.rows {
            row.is_dm = direct.contains(&row.room);
        }
        self.direct_at = at;
        self.changes += 1;
        Ok(())
    }

    /// Reads what filters ask for, where it is not known.
    pub fn read_traits(&mut self, rooms: RoomReader<'_, Snapshot>) -> Result<()> {
        if self.traits_at == Some(self.changes) {
            return Ok(());
        }
        // Cautiously: if it fails halfway, some are other ones already.
        self.changes += 1;
        for row in &mut self.rows {
            if row.standing == Standing::Hidden {
                continue;
            }
            let as_of = (row.last, row.member.event);
            if row.traits.as_ref().is_some_and(|known| known.as_of == as_of) {
                continue;
            }
            let Some(root) = visible_root(rooms, row.room, &row.member)? else { continue };
            let room_type = match row.traits.take() {
                Some(known) => known.room_type,
                None => {
                    let create = rooms.state_event(row.room, root, "m.room.create", "")?;
                    create.and_then(|event| content_field::<String>(&event, "type"))
                }
            };
            let encrypted = rooms.state_at(root, "m.room.encryption", "")?.is_some();
            row.traits = Some(Traits { encrypted, room_type, as_of });
        }
        self.traits_at = Some(self.changes);
        Ok(())
    }
}

impl Order {
    /// Reads which rooms the spaces have, where that is not known. Those that are not among them are forgotten.
    pub fn read_children(&mut self, rooms: RoomReader<'_, Snapshot>, spaces: &[RoomNr]) -> Result<()> {
        let before = self.children.len();
        self.children.retain(|space, _| spaces.contains(space));
        self.changes += u64::from(self.children.len() != before);
        for space in spaces {
            let joined = self.row(*space).is_some_and(|(_, row)| row.member.state == MembershipState::Join);
            let Some(head) = rooms.head_of(*space)?.filter(|_| joined) else {
                self.changes += u64::from(self.children.remove(space).is_some());
                continue;
            };
            if self.children.get(space).is_none_or(|(root, _)| *root != head.state) {
                let children = children(rooms, *space, head.state)?;
                self.children.insert(*space, (head.state, children));
                self.changes += 1;
            }
        }
        Ok(())
    }

    pub fn has_child(&self, space: RoomNr, room: RoomNr) -> bool {
        self.children.get(&space).is_some_and(|(_, children)| children.contains(&room))
    }

    /// Brings the tags up to date.
    pub fn read_tags(&mut self, snapshot: &Snapshot, look: &Look) -> Result<()> {
        const TAGS: &str = "m.tag";
        let user = look.user_id.as_str();
        let known = std::mem::replace(&mut self.tags_at, snapshot.version());
        if known != Pos::ZERO && look.account_moved <= known {
            return Ok(());
        }
        if known == Pos::ZERO {
            self.tags.clear();
        }
        let span = schema::ACCOUNT_DATA_LOG.prefix((user,)).after((user, known));
        for row in snapshot.scan(&schema::ACCOUNT_DATA_LOG, span) {
            let (_, key) = row?;
            let Some(room) = RoomId::parse(&key.room_id).ok().filter(|_| key.kind == TAGS) else { continue };
            let content = snapshot.get(&schema::ACCOUNT_DATA, (user, key.room_id.as_str(), TAGS))?;
            let tags = content.map(|content| tags(&content.0)).unwrap_or_default();
            self.tags.insert(room_nr(&room), tags);
            self.changes += 1;
        }
        Ok(())
    }

    pub fn has_tag(&self, room: RoomNr, tag: &str) -> bool {
        self.tags.get(&room).is_some_and(|tags| tags.iter().any(|known| known == tag))
    }

    /// Which rooms are direct changed last here; `Pos::MAX` if it never did.
    pub fn direct_at(&self) -> Pos {
        self.direct_at
    }
}

impl Row {
    pub fn traits(&self) -> Option<&Traits> {
        self.traits.as_ref()
    }
}

/// The newest state of a room that its user may know.
fn visible_root(rooms: RoomReader<'_, Snapshot>, room: RoomNr, member: &Membership) -> Result<Option<Root>> {
    let at = match member.state {
        MembershipState::Join => return Ok(rooms.head_of(room)?.map(|head| head.state)),
        MembershipState::Invite | MembershipState::Knock => member.event,
        MembershipState::Leave | MembershipState::Ban => left_at(rooms, room, member)?.unwrap_or(member.event),
    };
    Ok(rooms.event(room, at)?.map(|event| event.after))
}

fn standing(rooms: RoomReader<'_, Snapshot>, room: RoomNr, member: &Membership, look: &Look) -> Result<Standing> {
    let sender =
        || -> Result<Option<String>> { Ok(rooms.event(room, member.event)?.map(|event| event.sender().to_owned())) };
    Ok(match member.state {
        MembershipState::Join | MembershipState::Knock => Standing::Listed,
        MembershipState::Invite => match sender()? {
            Some(sender) if !look.tastes.ignores(&sender) => Standing::Listed,
            _ => Standing::Hidden,
        },
        MembershipState::Leave | MembershipState::Ban if member.forgotten || member.joined.is_none() => Standing::Over,
        MembershipState::Ban => Standing::Listed,
        MembershipState::Leave => {
            let by_themselves = sender()?.is_none_or(|sender| sender == look.user_id.as_str());
            if by_themselves { Standing::Over } else { Standing::Listed }
        }
    })
}

/// The rooms that a space says are in it.
fn children(rooms: RoomReader<'_, Snapshot>, space: RoomNr, root: Root) -> Result<HashSet<RoomNr>> {
    let positions = rooms.state_positions(root, Select::Only(Part::Others))?;
    let mut children = HashSet::new();
    for at in positions {
        let Some(event) = rooms.event(space, at)?.filter(|event| event.kind() == "m.space.child") else { continue };
        // One that does not say where to find the room is one that was taken out.
        let via = content_field::<Vec<String>>(&event, "via");
        let child = event.state_key().filter(|_| via.is_some()).and_then(|key| RoomId::parse(key).ok());
        children.extend(child.map(|room| room_nr(&room)));
    }
    Ok(children)
}

/// The names in the content of `m.tag`.
fn tags(content: &[u8]) -> Vec<String> {
    #[derive(Deserialize)]
    struct Content {
        tags: std::collections::BTreeMap<String, serde::de::IgnoredAny>,
    }
    let content = serde_json::from_slice::<Content>(content);
    content.map(|content| content.tags.into_keys().collect()).unwrap_or_default()
}

/// The rooms in the content of `m.direct`, as far as it makes sense.
fn direct_rooms(content: &[u8]) -> HashSet<RoomNr> {
    let users: std::collections::BTreeMap<String, &RawValue> = serde_json::from_slice(content).unwrap_or_default();
    let rooms = users.into_values().filter_map(|rooms| serde_json::from_str::<Vec<String>>(rooms.get()).ok());
    rooms.flatten().filter_map(|room| RoomId::parse(room).ok()).map(|room| room_nr(&room)).collect()
}
