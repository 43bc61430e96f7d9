//! The unread counts of one user in one room, as of a version: counted from the receipts on, oldest event first, and
//! carried on from the last count where nothing before it changed.
//!
//! No event is left out of a count. But an answer does only so much of it ([`Budget`]); what is left is counted in the
//! background (`recount`), and then the room goes into another answer.

use std::cell::{Cell, OnceCell};
use std::collections::BTreeMap;
use std::time::Duration;

use hashbrown::HashMap;
use ruma::events::room::power_levels::{RoomPowerLevels, RoomPowerLevelsEventContent, RoomPowerLevelsSource};
use ruma::power_levels::NotificationPowerLevelsKey;
use ruma::push::PushConditionPowerLevelsCtx;
use ruma::{OwnedUserId, UserId};
use store::{Pos, Read};

use super::live::Tastes;
use super::recent::Recent;
use super::recount::Recounts;
use crate::error::Result;
use crate::push::counts::{ReadUpTo, Tally, Unread};
use crate::push::pattern::Fuel;
use crate::push::rules::{Facts, RoomFacts, Rules};
use crate::rooms::read::RoomReader;
use crate::rooms::shown::{content, content_field};
use crate::schema::{self, Membership, RoomNr, UNREAD};
use crate::stored::{Head, StoredEvent};

/// So many events are read at a time.
const CHUNK: usize = 256;
/// Steps (about nanoseconds) that any event takes, and one that relates to another besides.
const EVENT_STEPS: u64 = 2_000;
const RELATION_STEPS: u64 = 8_000;
/// After so many events a count is written down, so that it need not be made again.
const WRITE_AFTER: u32 = 2_000;
/// The relation of events in threads to their root.
const THREAD: &str = "m.thread";
const REDACTION: &str = "m.room.redaction";
/// So many rooms of one user are remembered.
const MAX_ROOMS: usize = 512;

/// The counts of one user that were made lately.
#[derive(Default)]
pub struct Counts(HashMap<RoomNr, Known>);

impl Counts {
    /// About what they take in memory. (Those of threads are few.)
    pub fn bytes(&self) -> usize {
        self.0.capacity() * (size_of::<(RoomNr, Known)>() + 64)
    }
}

/// A count, as far as it has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Events up to here are counted.
    as_of: Pos,
    /// All of them were read at this version or later.
    began: Pos,
    edition: (Pos, Pos),
    read: ReadUpTo,
    tally: Tally,
    /// There is more to count.
    partial: bool,
    /// What is said until then: the count before it began anew.
    stale: Option<Tally>,
    /// Events that were counted since it was written down.
    unwritten: u32,
}

/// How much counting may cost one answer, over all of its rooms, in steps of about a nanosecond.
#[derive(Debug)]
pub struct Budget(Cell<u64>);

impl Budget {
    pub fn new(time: Duration) -> Self {
        Budget(Cell::new(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)))
    }

    fn take(&self, steps: u64) {
        self.0.set(self.0.get().saturating_sub(steps));
    }

    /// Whether nothing is left of it.
    pub fn is_spent(&self) -> bool {
        self.0.get() == 0
    }
}

/// Who counts what.
pub struct Counter<'a, R> {
    pub rooms: RoomReader<'a, R>,
    pub recent: &'a Recent,
    pub user_id: &'a UserId,
    pub tastes: &'a Tastes,
    pub recounts: &'a Recounts,
    pub budget: &'a Budget,
}

impl<R: Read> Counter<'_, R> {
    /// The unread events of a joined room; if the budget does not last, the first of them.
    pub fn count(
        &self,
        counts: &parking_lot::Mutex<Counts>,
        room: RoomNr,
        head: &Head,
        membership: &Membership,
    ) -> Result<Tally> {
        let memory = counts.lock().0.get(&room).cloned();
        let mut known = self.known(memory, room, membership)?;
        self.carry_on(&mut known, room, head)?;
        if known.partial || known.unwritten >= WRITE_AFTER {
            self.recounts.put(self.user_id, room, known.clone());
            known.unwritten = 0;
        }
        let tally = known.said().clone();
        counts.lock().put(room, known);
        Ok(tally)
    }

    /// What is known that still holds: in memory, else in the store, else nothing.
    fn known(&self, memory: Option<Known>, room: RoomNr, membership: &Membership) -> Result<Known> {
        let read = read_up_to(self.rooms, self.user_id, room, membership)?;
        let memory = self.resume(memory, read.clone());
        if memory.as_of > read.all && !memory.partial {
            return Ok(memory);
        }
        let written = self.rooms.read.get(&UNREAD, (self.user_id.as_str(), room))?.map(Known::from);
        let written = self.resume(written, read);
        Ok(if written.as_of > memory.as_of { written } else { memory })
    }

    /// What is known, if it still holds; else nothing is.
    pub fn resume(&self, known: Option<Known>, read: ReadUpTo) -> Known {
        let (version, edition) = (self.rooms.read.version(), self.tastes.edition());
        let holds = |known: &Known| known.as_of <= version && known.edition == edition && known.read == read;
        known.filter(holds).unwrap_or_else(|| Known::new(version, edition, read.clone()))
    }

    /// Counts on until the budget is used up.
    pub fn carry_on(&self, known: &mut Known, room: RoomNr, head: &Head) -> Result<()> {
        let version = self.rooms.read.version();
        let scene = RoomScene::new(self.rooms, room, head);
        let mut rules = None;
        known.partial = false;
        'chunks: while head.last > known.as_of {
            let rules = match &rules {
                Some(rules) => rules,
                None => rules.insert(self.tastes.rules(self.rooms.read, self.user_id)?),
            };
            let events = self.events(room, known.as_of, version)?;
            if events.is_empty() {
                break;
            }
            for (at, event) in events {
                if self.budget.is_spent() {
                    known.partial = true;
                    return Ok(());
                }
                if event.kind() == REDACTION && at > known.began && known.as_of > known.read.all {
                    // What was counted may be gone.
                    let stale = Some(known.said().clone());
                    *known = Known { stale, ..Known::new(version, known.edition, known.read.clone()) };
                    continue 'chunks;
                }
                self.add(known, (at, &event), rules, &scene)?;
            }
        }
        (known.as_of, known.began, known.stale) = (version, version, None);
        Ok(())
    }

    /// The next events, oldest first.
    fn events(&self, room: RoomNr, after: Pos, until: Pos) -> Result<Vec<(Pos, StoredEvent)>> {
        if let Some(mut events) = self.recent.events(room, after, until) {
            events.reverse();
            return Ok(events);
        }
        let span = schema::EVENTS.prefix((room,)).after((room, after)).through((room, until)).limit(CHUNK);
        let rows = self.rooms.read.scan(&schema::EVENTS, span);
        Ok(rows.map(|row| row.map(|((_, at), event)| (at, event))).collect::<Result<_, store::Error>>()?)
    }

    fn add(
        &self,
        known: &mut Known,
        (at, event): (Pos, &StoredEvent),
        rules: &Rules,
        scene: &RoomScene<'_, R>,
    ) -> Result<()> {
        (known.as_of, known.unwritten) = (at, known.unwritten.saturating_add(1));
        self.budget.take(EVENT_STEPS);
        let own = event.sender() == self.user_id;
        if event.hidden() || own && event.state_key().is_some() || self.tastes.ignores(event.sender()) {
            return Ok(());
        }
        let facts = Facts::new(event);
        if facts.relates_to().is_some() {
            self.budget.take(RELATION_STEPS);
        }
        let thread = thread_by(self.rooms, scene.room, &facts)?;
        let thread = thread.as_deref();
        if own {
            // Who writes has read what is before.
            known.tally.clear(thread);
        } else if at > known.read.of(thread) && event.redacted_by().is_none() {
            let fuel = Fuel::default();
            let outcome = rules.decide(&facts, &Beholder { user_id: self.user_id, scene }, &fuel)?;
            self.budget.take(fuel.taken());
            known.tally.add(thread, outcome);
        }
        Ok(())
    }
}

impl Counts {
    /// What was counted at a later moment stays.
    fn put(&mut self, room: RoomNr, known: Known) {
        if self.0.len() >= MAX_ROOMS && !self.0.contains_key(&room) {
            self.0.clear();
        }
        match self.0.get_mut(&room) {
            Some(later) if later.is_beyond(&known) => {}
            Some(before) => *before = known,
            None => _ = self.0.insert(room, known),
        }
    }
}

impl Known {
    /// Nothing is counted yet.
    fn new(version: Pos, edition: (Pos, Pos), read: ReadUpTo) -> Self {
        let (as_of, tally) = (read.all, Tally::default());
        Known { as_of, began: version, edition, read, tally, partial: false, stale: None, unwritten: 0 }
    }

    fn said(&self) -> &Tally {
        self.stale.as_ref().unwrap_or(&self.tally)
    }

    /// Whether there is more to count.
    pub fn is_partial(&self) -> bool {
        self.partial
    }

    /// Whether this says more than another of the same room, and rests on the same.
    pub fn is_beyond(&self, other: &Known) -> bool {
        let same = self.edition == other.edition && self.read == other.read;
        same && self.as_of > other.as_of && self.began >= other.began
    }
}

impl From<schema::Unread> for Known {
    fn from(row: schema::Unread) -> Self {
        let (all, main, threads) = row.read;
        let unread = |(notifications, highlights)| Unread { notifications, highlights };
        let in_threads = row.threads.into_iter().map(|(root, counts)| (root, unread(counts)));
        Known {
            as_of: row.as_of,
            began: row.began,
            edition: row.edition,
            read: ReadUpTo { all, main, threads },
            tally: Tally { main: unread(row.main), threads: in_threads.collect() },
            partial: false,
            stale: None,
            unwritten: 0,
        }
    }
}

impl From<&Known> for schema::Unread {
    fn from(known: &Known) -> Self {
        let ReadUpTo { all, main, threads } = known.read.clone();
        let counts = |unread: &Unread| (unread.notifications, unread.highlights);
        schema::Unread {
            as_of: known.as_of,
            began: known.began,
            edition: known.edition,
            read: (all, main, threads),
            main: counts(&known.tally.main),
            threads: known.tally.threads.iter().map(|(root, unread)| (root.clone(), counts(unread))).collect(),
        }
    }
}

/// Counting begins where a user joined, and goes on where they have read up to.
pub fn read_up_to<R: Read>(
    rooms: RoomReader<'_, R>,
    user_id: &UserId,
    room: RoomNr,
    membership: &Membership,
) -> Result<ReadUpTo> {
    let mut read = ReadUpTo { all: membership.joined.unwrap_or_default(), ..ReadUpTo::default() };
    let span = schema::RECEIPTS.prefix((room, user_id.as_str()));
    for row in rooms.read.scan(&schema::RECEIPTS, span) {
        let ((_, _, (_, thread)), receipt) = row?;
        read.raise(&thread, receipt.event);
    }
    Ok(read)
}

/// The root of the thread an event is in: by its own relation, or by that of the event it relates to.
pub fn thread_of<R: Read>(rooms: RoomReader<'_, R>, room: RoomNr, event: &StoredEvent) -> Result<Option<String>> {
    thread_by(rooms, room, &Facts::new(event))
}

pub fn thread_by<R: Read>(rooms: RoomReader<'_, R>, room: RoomNr, facts: &Facts<'_>) -> Result<Option<String>> {
    let Some(relation) = facts.relates_to() else { return Ok(None) };
    let (Some(kind), Some(parent)) = (relation.rel_type, relation.event_id) else { return Ok(None) };
    if kind == THREAD {
        return Ok(Some(parent.into_owned()));
    }
    let found = rooms.read.get(&schema::EVENT_IDS, &*parent)?.filter(|found| found.room == room);
    let Some(parent) = found.map(|found| rooms.event(room, found.at)).transpose()?.flatten() else { return Ok(None) };
    let relation = Facts::new(&parent).relates_to().filter(|relation| relation.rel_type.as_deref() == Some(THREAD));
    Ok(relation.and_then(|relation| relation.event_id).map(|root| root.into_owned()))
}

/// A room as push rules see it, at one moment.
pub struct RoomScene<'a, R> {
    pub rooms: RoomReader<'a, R>,
    pub room: RoomNr,
    pub head: &'a Head,
    power: OnceCell<Option<PushConditionPowerLevelsCtx>>,
}

impl<'a, R: Read> RoomScene<'a, R> {
    pub fn new(rooms: RoomReader<'a, R>, room: RoomNr, head: &'a Head) -> Self {
        RoomScene { rooms, room, head, power: OnceCell::new() }
    }

    fn power(&self) -> Result<Option<&PushConditionPowerLevelsCtx>> {
        if let Some(power) = self.power.get() {
            return Ok(power.as_ref());
        }
        let power = self.power_levels()?.map(Into::into);
        Ok(self.power.get_or_init(|| power).as_ref())
    }

    fn power_levels(&self) -> Result<Option<RoomPowerLevels>> {
        let Some(rules) = ::rooms::rules(&self.head.version) else { return Ok(None) };
        let state = |kind| self.rooms.state_event(self.room, self.head.state, kind, "");
        let Some(create) = state("m.room.create")? else { return Ok(None) };
        let levels = state("m.room.power_levels")?;
        let levels =
            levels.and_then(|event| serde_json::from_str::<RoomPowerLevelsEventContent>(content(&event).get()).ok());
        let source = levels.map_or(RoomPowerLevelsSource::None, RoomPowerLevelsSource::Original);
        let mut creators: Vec<OwnedUserId> =
            content_field::<Vec<OwnedUserId>>(&create, "additional_creators").unwrap_or_default();
        creators.extend(UserId::parse(create.sender()).ok());
        Ok(Some(RoomPowerLevels::new(source, &rules.authorization, creators)))
    }
}

/// A room as the push rules of one user see it.
pub struct Beholder<'a, R> {
    pub user_id: &'a UserId,
    pub scene: &'a RoomScene<'a, R>,
}

impl<R: Read> RoomFacts for Beholder<'_, R> {
    fn user_id(&self) -> &UserId {
        self.user_id
    }

    fn room_id(&self) -> &str {
        &self.scene.head.room_id
    }

    fn joined_members(&self) -> u64 {
        self.scene.head.joined_members.into()
    }

    fn may_notify(&self, sender: &str, key: &NotificationPowerLevelsKey) -> Result<bool> {
        let (Some(power), Ok(sender)) = (self.scene.power()?, <&UserId>::try_from(sender)) else { return Ok(false) };
        Ok(power.has_sender_notification_permission(sender, key))
    }

    fn display_name(&self) -> Result<String> {
        let RoomScene { rooms, room, head, .. } = self.scene;
        let member = rooms.state_event(*room, head.state, "m.room.member", self.user_id.as_str())?;
        let name = member.and_then(|event| content_field::<String>(&event, "displayname"));
        Ok(name.unwrap_or_else(|| self.user_id.localpart().to_owned()))
    }
}

/// The parts of a count as they are sent: the room's, and with threads apart those of the threads.
pub fn split(tally: Tally, threads_apart: bool) -> (Unread, BTreeMap<String, Unread>) {
    if threads_apart { (tally.main, tally.threads) } else { (tally.total(), BTreeMap::new()) }
}
