//! Taking rooms, and what was said in them, away for good. All of it is done in small commits, and each can be done twice.
//!
//! A room is emptied first, then forgotten, so that nobody reaches it any more, and then its rows go. Not here: when that is
//! done (`jobs`).

use ::rooms::state::{Part, Select};
use ruma::{OwnedUserId, RoomId, UserId};
use store::limits::BATCH_BYTES;
use store::{Pos, Read, Tx};

use super::read::RoomReader;
use super::shown::{membership, redacts};
use super::{aliases, relations, search};
use crate::App;
use crate::error::{Error, Result};
use crate::schema::{self, Membership, MembershipState, RoomNr, room_nr};
use crate::stored::StoredEvent;

/// Rows that are looked at in one commit.
const SLICE: usize = 200;
/// Clients that come by within this time hear that a room is gone.
const REMEMBERED_MS: u64 = 7 * 24 * 60 * 60 * 1000;

/// Somebody, and whether they have joined.
pub type Member = (OwnedUserId, bool);

/// Those of this server who are in a room or asked to be, whose member event lies after a position and up to another: some
/// of them, and after which position to go on.
pub fn next_members(
    app: &App,
    room_id: &RoomId,
    (after, through): (Pos, Pos),
    most: usize,
) -> Result<(Vec<Member>, Option<Pos>)> {
    let read = app.store.snapshot();
    let reader = RoomReader::new(&app.room_cache, &read);
    let Some((room, head)) = reader.head(room_id)? else { return Ok((Vec::new(), None)) };
    let mut positions = reader.state_positions(head.state, Select::Only(Part::Members))?;
    positions.retain(|at| *at > after && *at <= through);
    positions.sort_unstable();
    let mut members = Vec::new();
    for chunk in positions.chunks(SLICE) {
        for (at, event) in reader.events_at(room, chunk)? {
            let user_id = event.state_key().and_then(|key| UserId::parse(key).ok());
            let Some(user_id) = user_id.filter(|user_id| user_id.server_name() == app.server_name) else { continue };
            match membership(&event) {
                Some(MembershipState::Join) => members.push((user_id, true)),
                Some(MembershipState::Invite | MembershipState::Knock) => members.push((user_id, false)),
                _ => {}
            }
            if members.len() == most {
                return Ok((members, Some(at)));
            }
        }
    }
    Ok((members, None))
}

/// Takes a room out of the directory, and some of its names away or over to another room. Returns these names.
pub fn unlist(tx: &mut Tx, room_id: &RoomId, new: Option<&RoomId>) -> Result<Vec<String>> {
    tx.delete(&schema::PUBLIC_ROOMS, room_nr(room_id));
    let mut names = aliases::of_room(tx.unchecked(), room_id)?;
    names.truncate(SLICE);
    for alias in &names {
        tx.delete(&schema::ROOM_ALIASES, (room_nr(room_id), alias));
        let Some(row) = tx.get(&schema::ALIASES, alias)? else { continue };
        match new {
            Some(new) => {
                tx.put(&schema::ALIASES, alias, &schema::Alias { room_id: new.to_string(), ..row });
                tx.put(&schema::ROOM_ALIASES, (room_nr(new), alias), &());
            }
            None => tx.delete(&schema::ALIASES, alias),
        }
    }
    Ok(names)
}

/// Forgets what some users of this server are and were in a room, but for the fact that it is over: their clients have
/// still to hear of that. Where to go on, or `None` when nobody reaches the room any more.
pub fn forget_members(app: &App, tx: &mut Tx, room_id: &RoomId, from: Pos) -> Result<Option<Pos>> {
    let view = tx.unchecked();
    let reader = RoomReader::new(&app.room_cache, view);
    let Some((room, head)) = reader.head(room_id)? else { return Ok(None) };
    let mut positions = reader.state_positions(head.state, Select::Only(Part::Members))?;
    positions.retain(|at| *at >= from);
    positions.sort_unstable();
    let next = positions.get(SLICE).copied();
    positions.truncate(SLICE);
    let members = reader.events_at(room, &positions)?;
    for (at, event) in members {
        // Member events may be large.
        if tx.batch().size_bytes() > BATCH_BYTES / 2 {
            return Ok(Some(at));
        }
        if let Some(user_id) = event.state_key() {
            forget_member(tx, room, user_id, &event)?;
        }
    }
    if next.is_none() {
        tx.get(&schema::HEADS, room)?;
        tx.delete(&schema::HEADS, room);
        tx.put(&schema::CLOSED_ROOMS, room, &head.room_id);
        let job = schema::Job::ForgetClosed { room };
        let due_ts = app.clock.now_ms().saturating_add(REMEMBERED_MS);
        let at = tx.next_pos();
        tx.put(&schema::JOBS, at, &schema::Job::Later { job: Box::new(job), attempts: 0, due_ts });
    }
    Ok(next)
}

fn forget_member(tx: &mut Tx, room: RoomNr, user_id: &str, event: &StoredEvent) -> Result<()> {
    let Some(row) = tx.get(&schema::MEMBERSHIPS, (user_id, room))? else { return Ok(()) };
    let left = matches!(row.state, MembershipState::Leave | MembershipState::Ban);
    let over = Membership {
        state: MembershipState::Leave,
        // Who could not leave is out now.
        event: if left { row.event } else { tx.next_pos() },
        joined: None,
        left: None,
        was_joined: false,
        forgotten: true,
    };
    tx.put(&schema::MEMBERSHIPS, (user_id, room), &over);
    tx.delete(&schema::UNREAD, (user_id, room));
    tx.put(&schema::LAST_EVENTS, (room, user_id), event);
    Ok(())
}

/// Forgets some of those who were in a room that was deleted. Says whether those were all.
pub fn forget_closed(tx: &mut Tx, room: RoomNr) -> Result<bool> {
    let is_back = tx.contains(&schema::HEADS, room)?;
    let last = schema::LAST_EVENTS.prefix((room,)).limit(SLICE);
    let last: Vec<(RoomNr, String)> =
        tx.unchecked().scan(&schema::LAST_EVENTS, last).keys().collect::<Result<_, _>>()?;
    for (_, user_id) in &last {
        tx.delete(&schema::LAST_EVENTS, (room, user_id));
        if !is_back && tx.contains(&schema::MEMBERSHIPS, (user_id, room))? {
            tx.delete(&schema::MEMBERSHIPS, (user_id, room));
        }
    }
    if last.len() < SLICE {
        tx.delete(&schema::CLOSED_ROOMS, room);
    }
    Ok(last.len() < SLICE)
}

/// Deletes some of the rows of a room that is forgotten. Says whether that was all.
pub fn purge_some(tx: &mut Tx, room_id: &RoomId) -> Result<bool> {
    let room = room_nr(room_id);
    if tx.contains(&schema::HEADS, room)? {
        return Err(Error::internal("a room is purged that is not forgotten"));
    }
    let events: Vec<((RoomNr, Pos), StoredEvent)> =
        tx.unchecked().scan(&schema::EVENTS, schema::EVENTS.prefix((room,)).limit(SLICE)).collect::<Result<_, _>>()?;
    for ((_, at), event) in &events {
        delete_event(tx, room, *at, event)?;
        let nodes: Vec<(Pos, u16)> = tx
            .unchecked()
            .scan(&schema::STATE_NODES, schema::STATE_NODES.prefix((*at,)))
            .keys()
            .collect::<Result<_, _>>()?;
        for (at, index) in nodes {
            tx.delete(&schema::STATE_NODES, (at, index));
        }
    }
    if events.len() == SLICE {
        return Ok(false);
    }
    purge_rest(tx, room)
}

/// The rows of a room that are no events.
fn purge_rest(tx: &mut Tx, room: RoomNr) -> Result<bool> {
    macro_rules! purge {
        ($table:expr, |$key:ident| $borrowed:expr) => {{
            let keys = tx.unchecked().scan(&$table, $table.prefix((room,)).limit(SLICE)).keys();
            let keys = keys.collect::<Result<Vec<_>, _>>()?;
            for $key in &keys {
                tx.delete(&$table, $borrowed);
            }
            if keys.len() == SLICE {
                return Ok(false);
            }
        }};
    }
    purge!(schema::RELATIONS, |key| (key.0, &key.1, key.2));
    purge!(schema::ANNOTATIONS, |key| (key.0, &key.1, &key.2));
    purge!(schema::THREADS, |key| (key.0, key.1));
    purge!(schema::THREAD_AT, |key| (key.0, &key.1));
    purge!(schema::RECEIPTS, |key| (key.0, &key.1, (key.2.0, &key.2.1)));
    purge!(schema::RECEIPT_LOG, |key| (key.0, key.1));
    purge!(schema::SEARCH_WORDS, |key| (key.0, &key.1, key.2));
    tx.delete(&schema::SEARCHED, room);
    Ok(true)
}

fn delete_event(tx: &mut Tx, room: RoomNr, at: Pos, event: &StoredEvent) -> Result<()> {
    tx.delete(&schema::EVENTS, (room, at));
    if tx.get(&schema::EVENT_IDS, event.event_id())?.is_some_and(|found| found.room == room && found.at == at) {
        tx.delete(&schema::EVENT_IDS, event.event_id());
    }
    Ok(())
}

/// What of a room's history is to go.
#[derive(Clone, Copy, Debug)]
pub struct History {
    /// Events after this position,
    pub after: Pos,
    /// and before this one.
    pub before: Pos,
    /// Also what users of this server said: nobody else may have it.
    pub local: bool,
}

/// Deletes some messages. State stays: what comes later rests on it. Where to go on, or `None` at the end.
pub fn purge_history(app: &App, tx: &mut Tx, room_id: &RoomId, history: History) -> Result<(usize, Option<Pos>)> {
    let room = room_nr(room_id);
    let head = tx.get(&schema::HEADS, room)?.filter(|head| head.room_id == room_id.as_str());
    let Some(head) = head else { return Ok((0, None)) };
    let span = schema::EVENTS.prefix((room,)).after((room, history.after)).before((room, history.before)).limit(SLICE);
    let events: Vec<((RoomNr, Pos), StoredEvent)> =
        tx.unchecked().scan(&schema::EVENTS, span).collect::<Result<_, _>>()?;
    let next = events.last().map(|((_, at), _)| *at).filter(|_| events.len() == SLICE);
    let mut gone = 0;
    for ((_, at), event) in &events {
        let is_local = UserId::parse(event.sender()).is_ok_and(|user_id| user_id.server_name() == app.server_name);
        let stays = event.state_key().is_some()
            || redacts_what_stays(tx, room, event)?
            || head.extremities.iter().any(|id| id == event.event_id())
            || (is_local && !history.local);
        if stays {
            continue;
        }
        search::forget(tx, room, *at, event)?;
        forget_relations(tx, room, *at, event)?;
        delete_event(tx, room, *at, event)?;
        gone += 1;
    }
    Ok((gone, next))
}

/// Whether an event is the redaction of state, which nobody would understand without it.
fn redacts_what_stays(tx: &mut Tx, room: RoomNr, event: &StoredEvent) -> Result<bool> {
    if event.kind() != "m.room.redaction" {
        return Ok(false);
    }
    let Some(target) = redacts(event) else { return Ok(false) };
    let Some(found) = tx.get(&schema::EVENT_IDS, &target)?.filter(|found| found.room == room) else { return Ok(false) };
    let target = tx.get(&schema::EVENTS, (room, found.at))?;
    Ok(target.is_some_and(|target| target.state_key().is_some()))
}

/// An event that goes relates to nothing any more, and is the root of no thread.
fn forget_relations(tx: &mut Tx, room: RoomNr, at: Pos, event: &StoredEvent) -> Result<()> {
    #[derive(serde::Deserialize)]
    struct RelatesTo {
        event_id: Option<String>,
    }
    let relates_to = super::shown::content_field::<RelatesTo>(event, "m.relates_to");
    let parent = relates_to.and_then(|it| it.event_id).filter(|parent| parent.len() <= 255);
    if let Some(parent) = parent {
        tx.delete(&schema::RELATIONS, (room, &parent, at));
        relations::forget_annotation(tx, room, at, event)?;
        // Older replies are gone already: without its newest there is no thread.
        forget_thread(tx, room, &parent, |newest| newest == at)?;
    }
    forget_thread(tx, room, event.event_id(), |_| true)
}

fn forget_thread(tx: &mut Tx, room: RoomNr, root: &str, goes: impl Fn(Pos) -> bool) -> Result<()> {
    if let Some(newest) = tx.get(&schema::THREAD_AT, (room, root))?.filter(|newest| goes(*newest)) {
        tx.delete(&schema::THREADS, (room, newest));
        tx.delete(&schema::THREAD_AT, (room, root));
    }
    Ok(())
}
