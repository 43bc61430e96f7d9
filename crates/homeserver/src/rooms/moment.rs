//! The event of a room that is nearest to a point in time, of those that one user may see.
//!
//! Events lie in the order of their arrival, and their timestamps follow it but for clocks that went wrong: the place
//! is found by halving, and then looked around in. Not here: asking other servers.

use ::rooms::timeline::Direction;
use store::{Pos, Read, Span};

use super::read::RoomReader;
use super::visibility::{Eyes, Reach};
use crate::error::Result;
use crate::schema::{self, RoomNr};
use crate::stored::StoredEvent;

/// So many events next to a place are looked at for one that is nearer in time.
const NEARBY: usize = 200;
/// The most events that are looked at for one that the user may see.
const MAX_SCANNED: usize = 5_000;

/// The first event at or after a time, or the last one at or before it.
pub fn find<R: Read>(
    reader: RoomReader<'_, R>,
    reach: &Reach,
    eyes: &Eyes<'_, R>,
    ts: u64,
    direction: Direction,
) -> Result<Option<(Pos, StoredEvent)>> {
    let room = reach.room;
    let forward = direction == Direction::Forward;
    let wanted = if forward { ts } else { ts.saturating_add(1) };
    let place = halve(reader, reach, wanted)?;
    let all = schema::EVENTS.prefix((room,)).through((room, reach.end()));
    let (above, below) = (all.clone().from((room, place)), all.before((room, place)).reversed());
    let (ahead, behind) = if forward { (above, below) } else { (below, above) };
    let mut best = Nearest { eyes, ts, forward, found: None };
    best.look(reader, behind, NEARBY, NEARBY)?;
    best.look(reader, ahead, NEARBY, MAX_SCANNED)?;
    Ok(best.found)
}

/// A position before which events are older than a time, and after which they are not.
fn halve<R: Read>(reader: RoomReader<'_, R>, reach: &Reach, ts: u64) -> Result<Pos> {
    let (room, end) = (reach.room, reach.end().min(reach.head.last));
    let (mut low, mut high) = (0, end.0.saturating_add(1));
    while low < high {
        let middle = low + (high - low) / 2;
        let span = schema::EVENTS.prefix((room,)).from((room, Pos(middle))).through((room, end));
        match reader.read.first(&schema::EVENTS, span)? {
            // Everything up to there is older.
            Some(((_, at), event)) if event.origin_server_ts < ts => low = at.0 + 1,
            _ => high = middle,
        }
    }
    Ok(Pos(low))
}

struct Nearest<'a, R> {
    eyes: &'a Eyes<'a, R>,
    ts: u64,
    forward: bool,
    found: Option<(Pos, StoredEvent)>,
}

impl<R: Read> Nearest<'_, R> {
    /// Looks at events, until `nearby` of them came after the first that counts, or `most` in all.
    fn look(&mut self, reader: RoomReader<'_, R>, span: Span<(RoomNr, Pos)>, nearby: usize, most: usize) -> Result<()> {
        let mut left = most;
        for row in reader.read.scan(&schema::EVENTS, span.limit(most)) {
            let ((_, at), event) = row?;
            if self.is_nearer(at, &event) && self.eyes.see(at, &event)? {
                left = left.min(nearby);
                self.found = Some((at, event));
            }
            left = left.saturating_sub(1);
            if left == 0 {
                break;
            }
        }
        Ok(())
    }

    fn is_nearer(&self, at: Pos, event: &StoredEvent) -> bool {
        let place = (event.origin_server_ts, at);
        let best = self.found.as_ref().map(|(at, event)| (event.origin_server_ts, *at));
        if self.forward {
            place.0 >= self.ts && best.is_none_or(|best| place < best)
        } else {
            place.0 <= self.ts && best.is_none_or(|best| place > best)
        }
    }
}
