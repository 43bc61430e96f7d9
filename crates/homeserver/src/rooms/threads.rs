//! The threads of a room, those with the newest replies first, of which one user may see something.
//!
//! Where the newest reply of each thread lies is kept by `write`. A page stands at a position, as one of the timeline
//! does: it yields the threads whose newest reply lies at or before it. Not here: what is bundled with a root.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use ::rooms::event::rules;
use ::rooms::timeline::Direction;
use ruma::UserId;
use store::{Pos, Raw, Read, Tx, Value as _, ValueBuf};

use super::pages::after;
use super::read::RoomReader;
use super::relations::{Page, THREAD, newest_reply};
use super::visibility::{Eyes, Ignored, Reach, Standing};
use crate::App;
use crate::error::{Error, Result};
use crate::schema::{self, RoomNr};
use crate::stored::StoredEvent;

/// The most threads that are looked at for one page.
const MAX_SCANNED: usize = 500;
/// The most replies that are looked at for one page.
const MAX_REPLIES: usize = 20_000;

/// The most relations that are looked at in one commit when threads are indexed anew.
const MAX_INDEXED: usize = 2_000;

/// What somebody wants to read.
pub struct Wanted<'a> {
    pub from: Option<Pos>,
    pub limit: usize,
    /// Only threads that the user began or replied to.
    pub participated: bool,
    pub user_id: &'a UserId,
    pub ignored: &'a Ignored,
}

/// The roots of the threads of a page, with the positions of the roots.
pub fn read<R: Read>(
    reader: RoomReader<'_, R>,
    reach: &Reach,
    eyes: &Eyes<'_, R>,
    wanted: &Wanted<'_>,
) -> Result<Page> {
    let end = reach.end().min(wanted.from.unwrap_or(Pos::MAX));
    let (threads, mut more) = threads(reader, reach, end)?;
    let mut page = Vec::new();
    let mut left = MAX_REPLIES;
    let mut last = end;
    for (newest, root) in threads {
        if page.len() >= wanted.limit || left == 0 {
            return Ok((page, Some(after(Direction::Backward, last))));
        }
        last = newest;
        let Some(at) = reader.read.get(&schema::EVENT_IDS, &root)?.filter(|found| found.room == reach.room) else {
            continue;
        };
        let Some(event) = reader.event(reach.room, at.at)? else { continue };
        if !eyes.see(at.at, &event)? || !concerns(reader, (reach, eyes), &event, wanted, &mut left)? {
            continue;
        }
        let hidden = wanted.ignored.hides_sender(event.sender());
        page.push((at.at, if hidden { without_content(&event, reach)? } else { event }));
    }
    more &= last > Pos::ZERO;
    Ok((page, more.then(|| after(Direction::Backward, last))))
}

/// The threads whose newest reply (of those the user can see, if they left) lies at or before `end`, the newest first;
/// and whether there may be more.
fn threads<R: Read>(reader: RoomReader<'_, R>, reach: &Reach, end: Pos) -> Result<(Vec<(Pos, String)>, bool)> {
    let room = reach.room;
    let rows = |span: store::Span<(RoomNr, Pos)>| -> Result<Vec<(Pos, String)>> {
        let rows = reader.read.scan(&schema::THREADS, span.limit(MAX_SCANNED));
        rows.map(|row| row.map(|((_, at), root)| (at, root)).map_err(Error::from)).collect()
    };
    let mut threads = rows(schema::THREADS.prefix((room,)).through((room, end)).reversed())?;
    let more = threads.len() == MAX_SCANNED;
    if let Standing::Left(left) = reach.standing {
        // Those that went on after the user left.
        for (_, root) in rows(schema::THREADS.prefix((room,)).after((room, left)))? {
            if let Some(newest) = newest_reply(reader.read, room, &root, left)?.filter(|newest| *newest <= end) {
                threads.push((newest, root));
            }
        }
        threads.sort_unstable_by_key(|(newest, _)| Reverse(*newest));
    }
    Ok((threads, more))
}

/// Finds the threads of a room that the index does not know: those from before there was one.
pub async fn index(app: &App, room: RoomNr) -> Result<()> {
    let mut from = Some((String::new(), Pos::ZERO));
    while let Some(start) = from {
        from = app.store.transact(|tx| index_some(tx, room, &start)).await?.value;
    }
    Ok(())
}

/// Looks at some relations of a room. Returns where to go on.
fn index_some(tx: &mut Tx, room: RoomNr, (parent, at): &(String, Pos)) -> Result<Option<(String, Pos)>> {
    let mut newest: BTreeMap<String, Pos> = BTreeMap::new();
    let mut last = None;
    let span = schema::RELATIONS.prefix((room,)).after((room, parent, *at)).limit(MAX_INDEXED);
    for (count, row) in tx.unchecked().scan(&schema::RELATIONS, span).enumerate() {
        let ((_, parent, at), relation) = row?;
        last = (count + 1 == MAX_INDEXED).then(|| (parent.clone(), at));
        if relation.rel_type == THREAD {
            newest.insert(parent, at);
        }
    }
    for (root, at) in newest {
        let known = tx.get(&schema::THREAD_AT, (room, &root))?;
        if known.is_some_and(|known| known >= at) {
            continue;
        }
        if let Some(known) = known {
            tx.delete(&schema::THREADS, (room, known));
        }
        tx.put(&schema::THREADS, (room, at), &root);
        tx.put(&schema::THREAD_AT, (room, &root), &at);
    }
    Ok(last)
}

/// Whether the thread has a reply that the user sees, and the user is part of it if that is wanted.
fn concerns<R: Read>(
    reader: RoomReader<'_, R>,
    (reach, eyes): (&Reach, &Eyes<'_, R>),
    root: &StoredEvent,
    wanted: &Wanted<'_>,
    left: &mut usize,
) -> Result<bool> {
    let me = wanted.user_id.as_str();
    let mut part = !wanted.participated || root.sender() == me;
    let mut alive = false;
    let (room, root) = (reach.room, root.event_id());
    let span = schema::RELATIONS.prefix((room, root)).through((room, root, reach.end())).reversed();
    for row in reader.read.scan(&schema::RELATIONS, span) {
        let ((_, _, at), relation) = row?;
        *left = left.saturating_sub(1);
        if relation.rel_type == THREAD {
            alive = alive || (!wanted.ignored.hides_sender(&relation.sender) && eyes.see_at(at, left)?);
            part |= relation.sender == me;
        }
        if alive && part || *left == 0 {
            break;
        }
    }
    Ok(alive && part)
}

/// What is shown of an event to somebody who ignores its sender: no more than after a redaction.
fn without_content(event: &StoredEvent, reach: &Reach) -> Result<StoredEvent> {
    let rules = rules(&reach.head.version).ok_or_else(|| Error::internal("a room of a version without rules"))?;
    let client = ::rooms::redact::client_part(event.client(), rules).map_err(Error::internal)?;
    let mut bytes = ValueBuf::default();
    event.redacted(Pos::ZERO, &client).encode(&mut bytes);
    StoredEvent::decode(Raw::Borrowed(bytes.as_bytes())).map_err(Error::internal)
}
