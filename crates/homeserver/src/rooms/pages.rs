//! Pages of a room's timeline, in either direction, of what one user may see and wants to see.
//!
//! A page stands between two positions. Reading backward from a position yields the events at or before it, reading
//! forward those after it, so the same position is the end of one page and the start of the next, whichever way.
//! Not here: what a position looks like in a token, and the windows of sync.

use ::rooms::timeline::Direction;
use store::{Pos, Read, Span};

use crate::error::Result;
use crate::rooms::read::RoomReader;
use crate::rooms::visibility::{Eyes, Reach};
use crate::schema::{self, RoomNr};
use crate::stored::StoredEvent;

/// The most events that are looked at for one page. A page that ends here may be empty and still not be the last.
const MAX_SCANNED: usize = 5_000;

/// What somebody wants to read.
pub struct Wanted<'a> {
    pub direction: Direction,
    /// Where to start; at the end of what there is if absent.
    pub from: Option<Pos>,
    /// Where to stop.
    pub to: Option<Pos>,
    pub limit: usize,
    /// Which of the events that the user may see.
    pub takes: &'a dyn Fn(&StoredEvent) -> Result<bool>,
}

/// A page, in the order it was read.
#[derive(Debug)]
pub struct Page {
    /// Where it starts, which is `from` if that was given.
    pub start: Pos,
    pub events: Vec<(Pos, StoredEvent)>,
    /// Where the next page starts, if there can be one.
    pub end: Option<Pos>,
}

/// Reads a page.
pub fn read<R: Read>(
    reader: RoomReader<'_, R>,
    reach: &Reach,
    eyes: &Eyes<'_, R>,
    wanted: &Wanted<'_>,
) -> Result<Page> {
    let start = wanted.from.unwrap_or(match wanted.direction {
        Direction::Forward => Pos::ZERO,
        Direction::Backward => reach.end().min(reader.read.version()),
    });
    let mut page = Page { start, events: Vec::new(), end: None };
    for (scanned, row) in reader.read.scan(&schema::EVENTS, span(reach, wanted, start)).enumerate() {
        let ((_, at), event) = row?;
        if scanned == MAX_SCANNED {
            page.end = Some(before(wanted.direction, at));
            return Ok(page);
        }
        if !eyes.see(at, &event)? {
            continue;
        }
        if page.events.len() >= wanted.limit {
            // One more that the user may see: the page is not the last.
            let last = page.events.last().map(|(last, _)| after(wanted.direction, *last));
            page.end = Some(last.unwrap_or(before(wanted.direction, at)));
            return Ok(page);
        }
        if (wanted.takes)(&event)? {
            page.events.push((at, event));
        }
    }
    if !page.events.is_empty() {
        // There may be more on the other side of where the reader wanted to stop.
        page.end = wanted.to;
    }
    Ok(page)
}

/// Where to go on so that the event at `next` is the first to be read.
pub fn before(direction: Direction, next: Pos) -> Pos {
    match direction {
        Direction::Backward => next,
        Direction::Forward => Pos(next.0.saturating_sub(1)),
    }
}

/// Where to go on after the event at `last` was read.
pub fn after(direction: Direction, last: Pos) -> Pos {
    match direction {
        Direction::Backward => Pos(last.0.saturating_sub(1)),
        Direction::Forward => last,
    }
}

fn span(reach: &Reach, wanted: &Wanted<'_>, start: Pos) -> Span<(RoomNr, Pos)> {
    let room = reach.room;
    let whole = schema::EVENTS.prefix((room,)).through((room, reach.end()));
    match (wanted.direction, wanted.to) {
        (Direction::Backward, None) => whole.through((room, start)).reversed(),
        (Direction::Backward, Some(to)) => whole.through((room, start)).after((room, to)).reversed(),
        (Direction::Forward, None) => whole.after((room, start)),
        (Direction::Forward, Some(to)) => whole.after((room, start)).through((room, to)),
    }
}
