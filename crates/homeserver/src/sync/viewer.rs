//! One user looking at a moment of the store: what both dialects of sync read of a room. Stretches of timelines, heroes,
//! receipts, and rooms seen from outside.
//!
//! Not here: what of it a client gets (`room`, `sliding`), and how it is written (`assemble`).

use std::sync::Arc;

use ::rooms::state::{Part, Root, Select};
use ::rooms::{stripped, summary};
use quick_cache::sync::Cache;
use ruma::{OwnedUserId, UserId};
use store::{Pos, Read as _, Snapshot};

use super::live::Tastes;
use super::material::{ReadBy, Stripped, Timeline};
use super::recent::Recent;
use crate::error::Result;
use crate::rooms::read::RoomReader;
use crate::rooms::relations::Gatherer;
use crate::rooms::shown::{self, Shown, Style};
use crate::rooms::sight::Sight;
use crate::rooms::visibility::Eyes;
use crate::schema::{self, Membership, MembershipState, RoomNr};
use crate::stored::StoredEvent;

/// No more than so many events are looked at for one timeline, however few of them are wanted.
const MAX_SCANNED: usize = 5_000;
/// So many member events are read to find the heroes of a room.
const MAX_CANDIDATES: usize = 500;

/// Who looks, and where they find things.
#[derive(Clone, Copy)]
pub struct Viewer<'a> {
    pub user_id: &'a UserId,
    pub rooms: RoomReader<'a, Snapshot>,
    pub recent: &'a Recent,
    pub candidates: &'a Cache<Root, Arc<Candidates>>,
    pub tastes: &'a Tastes,
}

/// Whom to name a room after: the first members, whoever asks.
#[derive(Debug)]
pub struct Candidates {
    present: Vec<OwnedUserId>,
    gone: Vec<OwnedUserId>,
}

/// Which part of a timeline is looked for.
#[derive(Clone, Copy, Debug)]
pub struct Stretch {
    /// After this, if the client has what is before.
    pub since: Option<Pos>,
    pub until: Pos,
    /// No more events than this, the newest ones.
    pub limit: usize,
}

/// A stretch of a timeline with what is needed to find the state that goes with it.
pub struct Window {
    /// Oldest first.
    pub events: Vec<(Pos, StoredEvent)>,
    pub limited: bool,
    pub prev_batch: Pos,
    /// The state before the first event of the stretch (shown or not), if the stretch reaches down to where the
    /// client is.
    pub base: Option<Root>,
    /// Whether all that happened in the stretch is shown.
    pub complete: bool,
}

impl<'a> Viewer<'a> {
    /// The newest events of a stretch that `shows` lets through.
    pub fn window(
        &self,
        nr: RoomNr,
        stretch: Stretch,
        shows: impl FnMut(Pos, &StoredEvent) -> Result<bool>,
    ) -> Result<Window> {
        let Stretch { since, until, .. } = stretch;
        let remembered = since.and_then(|since| self.recent.events(nr, since, until));
        if let Some(newest_first) = remembered {
            return fill(newest_first.into_iter().map(Ok), stretch, shows);
        }
        let mut span = schema::EVENTS.prefix((nr,)).through((nr, until)).reversed();
        if let Some(since) = since {
            span = span.after((nr, since));
        }
        let rows = self.rooms.read.scan(&schema::EVENTS, span);
        fill(rows.map(|row| Ok(row.map(|((_, at), event)| (at, event))?)), stretch, shows)
    }

    /// Whether an event is for the user at all, whatever they ask for.
    pub fn shows(&self, at: Pos, event: &StoredEvent, sight: &Sight<'_, Snapshot>) -> Result<bool> {
        let ignored = event.state_key().is_none() && self.tastes.ignores(event.sender());
        Ok(!event.hidden() && !ignored && sight.may_see(at, event)?)
    }

    /// The events of a window with what is said about them. `until` is as far as the user sees the room.
    pub fn timeline(&self, nr: RoomNr, window: Window, sight: &Sight<'_, Snapshot>, until: Pos) -> Result<Timeline> {
        let mut events = Vec::with_capacity(window.events.len());
        for (at, event) in window.events {
            let mut shown = Shown::plain(at, event);
            shown.membership = Some(sight.membership_at(at, &shown.event)?);
            if let Some(replaced) = shown.event.replaces()
                && let Some(event) = self.rooms.event(nr, replaced)?
                && sight.may_see(replaced, &event)?
            {
                shown.replaced = Some(event);
            }
            if let Some(by) = shown.event.redacted_by().filter(|by| *by <= until)
                && let Some(event) = self.rooms.event(nr, by)?
                && sight.may_see(by, &event)?
            {
                shown.redaction = Some(event);
            }
            events.push(shown);
        }
        Ok(Timeline { events, limited: window.limited, prev_batch: window.prev_batch })
    }

    /// Adds to each event what relates to it. For timelines that are limited: who has seen all events has seen these,
    /// too. `sight` is that of the same user.
    pub fn bundle(
        &self,
        nr: RoomNr,
        timeline: &mut Timeline,
        sight: Sight<'a, Snapshot>,
        style: Style<'_>,
    ) -> Result<()> {
        let relations = schema::RELATIONS.prefix((nr,)).limit(1);
        if self.rooms.read.scan(&schema::RELATIONS, relations).keys().next().transpose()?.is_none() {
            return Ok(());
        }
        let eyes = Eyes::up_to(self.rooms.read.version(), sight);
        let (reader, user_id, ignored) = (self.rooms, self.user_id, &self.tastes.ignored);
        let gatherer = Gatherer { reader, room: nr, eyes: &eyes, user_id, ignored, style };
        for shown in &mut timeline.events {
            shown.relations = gatherer.bundle(&shown.event, true)?;
        }
        Ok(())
    }

    /// A room the user is invited to or knocks at, as it was then; `None` if there is nothing to show of it.
    pub fn stripped(&self, nr: RoomNr, member: &Membership) -> Result<Option<Stripped>> {
        let Some(head) = self.rooms.head_of(nr)? else { return Ok(None) };
        let Some(event) = self.rooms.event(nr, member.event)? else { return Ok(None) };
        if member.state == MembershipState::Invite && self.tastes.ignores(event.sender()) {
            return Ok(None);
        }
        let actor = UserId::parse(event.sender()).ok().filter(|sender| sender != self.user_id);
        let mut positions = Vec::new();
        for (kind, key) in stripped::keys(actor.as_deref()) {
            positions.extend(self.rooms.state_at(event.after, &kind.to_string(), &key)?);
        }
        positions.push(member.event);
        let events = self.recent.state_events(self.rooms, nr, &positions)?;
        Ok(Some(Stripped { room_id: head.room_id, events: events.into_iter().map(|(_, event)| event).collect() }))
    }

    // ---- names ---------------------------------------------------------------------------------------------------

    /// A text in a state event of the room, if there is one and it is not empty.
    pub fn text(&self, nr: RoomNr, root: Root, kind: &str, field: &str) -> Result<Option<String>> {
        let Some(at) = self.rooms.state_at(root, kind, "")? else { return Ok(None) };
        let events = self.recent.state_events(self.rooms, nr, &[at])?;
        let text = events.first().and_then(|(_, event)| shown::content_field::<String>(event, field));
        Ok(text.filter(|text| !text.is_empty()))
    }

    /// Whom the user sees the room named after.
    pub fn heroes(&self, nr: RoomNr, root: Root) -> Result<Vec<OwnedUserId>> {
        let candidates = self.candidates(nr, root)?;
        Ok(summary::heroes(self.user_id, candidates.present.clone(), candidates.gone.clone()))
    }

    /// The first members in the order of their member events. The same for everybody who asks, so it is kept.
    fn candidates(&self, nr: RoomNr, root: Root) -> Result<Arc<Candidates>> {
        if let Some(known) = self.candidates.get(&root) {
            return Ok(known);
        }
        let mut positions = self.rooms.state_positions(root, Select::Only(Part::Members))?;
        positions.sort_unstable();
        let mut found = Candidates { present: Vec::new(), gone: Vec::new() };
        for at in positions.into_iter().take(MAX_CANDIDATES) {
            // One more than are named: whoever asks is not named.
            if found.present.len() > summary::MAX_HEROES {
                break;
            }
            for (_, event) in self.recent.state_events(self.rooms, nr, &[at])? {
                let Some(user_id) = event.state_key().and_then(|key| UserId::parse(key).ok()) else { continue };
                match shown::membership(&event) {
                    Some(MembershipState::Join | MembershipState::Invite) => found.present.push(user_id),
                    Some(MembershipState::Leave | MembershipState::Ban) if found.gone.len() <= summary::MAX_HEROES => {
                        found.gone.push(user_id);
                    }
                    _ => {}
                }
            }
        }
        let found = Arc::new(found);
        self.candidates.insert(root, found.clone());
        Ok(found)
    }

    // ---- receipts ------------------------------------------------------------------------------------------------

    /// Receipts after a position, or the newest `limit` ones: those that the user may see and that are `wanted` (by
    /// whether it is the user's own, and the place of the event). Also whether one of their own is among all of them.
    pub fn receipts(
        &self,
        nr: RoomNr,
        since: Option<Pos>,
        limit: usize,
        wanted: impl Fn(bool, Pos) -> bool,
    ) -> Result<(Vec<ReadBy>, bool)> {
        let mut span = schema::RECEIPT_LOG.prefix((nr,)).reversed();
        span = match since {
            Some(since) => span.after((nr, since)),
            None => span.limit(limit),
        };
        let (mut receipts, mut own) = (Vec::new(), false);
        for row in self.rooms.read.scan(&schema::RECEIPT_LOG, span) {
            let (_, key) = row?;
            let mine = key.user_id == self.user_id.as_str();
            own |= mine;
            if !mine && (key.private || self.tastes.ignores(&key.user_id)) {
                continue;
            }
            let kind = (key.private, key.thread.as_str());
            let Some(receipt) = self.rooms.read.get(&schema::RECEIPTS, (nr, &key.user_id, kind))? else { continue };
            if !wanted(mine, receipt.event) {
                continue;
            }
            receipts.push(ReadBy {
                event_id: receipt.event_id,
                user_id: key.user_id,
                private: key.private,
                thread: key.thread,
                ts: receipt.ts,
            });
        }
        Ok((receipts, own))
    }
}

fn fill(
    newest_first: impl Iterator<Item = Result<(Pos, StoredEvent)>>,
    stretch: Stretch,
    mut shows: impl FnMut(Pos, &StoredEvent) -> Result<bool>,
) -> Result<Window> {
    let Stretch { since, until, limit } = stretch;
    let mut window = Window { events: Vec::new(), limited: false, prev_batch: until, base: None, complete: true };
    let mut base = None;
    for (scanned, row) in newest_first.enumerate() {
        let (at, event) = row?;
        if !shows(at, &event)? {
            window.complete = false;
            base = Some(event.before());
        } else if window.events.len() < limit {
            base = Some(event.before());
            window.events.push((at, event));
        } else {
            window.limited = true;
        }
        window.limited |= scanned >= MAX_SCANNED;
        if window.limited {
            break;
        }
    }
    window.events.reverse();
    window.base = base.filter(|_| !window.limited);
    window.prev_batch = match (window.events.first(), since) {
        (Some((first, _)), _) => Pos(first.0.saturating_sub(1)),
        (None, Some(since)) if !window.limited => since,
        (None, _) => until,
    };
    Ok(window)
}
