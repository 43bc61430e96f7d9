//! A user's rooms in the order of their last activity, kept in memory while the user polls, and carried on from what
//! happened lately instead of being read again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ::rooms::state::Root;
use hashbrown::HashSet;
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use ruma::{OwnedUserId, RoomId};
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
    /// By room number.
    pub rows: Vec<Row>,
    /// Places in `rows`, last activity first.
    pub sorted: Vec<u32>,
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
    /// Of this state.
    root: Root,
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
        self.memberships = Some(look.memberships.clone());
        self.edition = look.tastes.edition();
        // Whatever was known of direct rooms has to be marked on the new rows.
        self.direct_at = Pos::ZERO;
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
        Ok(())
    }

    /// Reads what filters ask for, where it is not known.
    pub fn read_traits(&mut self, rooms: RoomReader<'_, Snapshot>) -> Result<()> {
        for row in &mut self.rows {
            if row.standing == Standing::Hidden {
                continue;
            }
            let Some(root) = visible_root(rooms, row.room, &row.member)? else { continue };
            if row.traits.as_ref().is_some_and(|known| known.root == root) {
                continue;
            }
            let room_type = match row.traits.take() {
                Some(known) => known.room_type,
                None => {
                    let create = rooms.state_event(row.room, root, "m.room.create", "")?;
                    create.and_then(|event| content_field::<String>(&event, "type"))
                }
            };
            let encrypted = rooms.state_at(root, "m.room.encryption", "")?.is_some();
            row.traits = Some(Traits { encrypted, room_type, root });
        }
        Ok(())
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

/// The rooms in the content of `m.direct`, as far as it makes sense.
fn direct_rooms(content: &[u8]) -> HashSet<RoomNr> {
    let users: std::collections::BTreeMap<String, &RawValue> = serde_json::from_slice(content).unwrap_or_default();
    let rooms = users.into_values().filter_map(|rooms| serde_json::from_str::<Vec<String>>(rooms.get()).ok());
    rooms.flatten().filter_map(|room| RoomId::parse(room).ok()).map(|room| room_nr(&room)).collect()
}
