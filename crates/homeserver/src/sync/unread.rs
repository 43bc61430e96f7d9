//! The unread counts of one user in one room, as of a version: counted at read time, from the receipts on, and carried
//! on from the last count where nothing before it changed.

use std::cell::OnceCell;
use std::collections::BTreeMap;

use hashbrown::HashMap;
use ruma::events::room::power_levels::{RoomPowerLevels, RoomPowerLevelsEventContent, RoomPowerLevelsSource};
use ruma::power_levels::NotificationPowerLevelsKey;
use ruma::push::{PushConditionPowerLevelsCtx, PushConditionRoomCtx};
use ruma::{OwnedUserId, RoomId, UInt, UserId};
use store::{Pos, Read};

use super::live::Tastes;
use super::recent::Recent;
use crate::error::{Error, Result};
use crate::push::counts::{ReadUpTo, Tally};
use crate::push::rules::{Facts, RoomFacts, Rules};
use crate::rooms::read::RoomReader;
use crate::rooms::shown::{content, content_field};
use crate::schema::{self, Membership, RoomNr};
use crate::stored::{Head, StoredEvent};

/// No more than so many of the newest events are looked at: who has more unread has many.
const MAX_EVENTS: usize = 2_000;
/// The relation of events in threads to their root.
const THREAD: &str = "m.thread";
/// So many rooms of one user are remembered.
const MAX_ROOMS: usize = 512;

/// The counts of one user that were made lately.
#[derive(Default)]
pub struct Counts(HashMap<RoomNr, Known>);

#[derive(Clone)]
struct Known {
    as_of: Pos,
    edition: (Pos, Pos),
    read: ReadUpTo,
    tally: Tally,
}

/// Who counts what.
pub struct Counter<'a, R> {
    pub rooms: RoomReader<'a, R>,
    pub recent: &'a Recent,
    pub user_id: &'a UserId,
    pub tastes: &'a Tastes,
}

impl<R: Read> Counter<'_, R> {
    /// The unread events of a joined room.
    pub fn count(
        &self,
        counts: &parking_lot::Mutex<Counts>,
        room: RoomNr,
        head: &Head,
        membership: &Membership,
    ) -> Result<Tally> {
        let version = self.rooms.read.version();
        let read = self.read_up_to(room, membership)?;
        let edition = self.tastes.edition();
        let known = counts.lock().0.get(&room).cloned();
        let known = known.filter(|known| known.as_of <= version && known.edition == edition && known.read == read);
        let mut tally = Tally::default();
        let mut after = read.all;
        if let Some(known) = known {
            (tally, after) = (known.tally, known.as_of);
        }
        if head.last > after {
            let scene = RoomScene::new(self.rooms, room, head);
            let rules = self.tastes.rules(self.rooms.read, self.user_id)?;
            let mut events = self.events(room, after, version)?;
            if after > read.all && events.iter().any(|(_, event)| event.kind() == "m.room.redaction") {
                // What was counted may be gone.
                tally = Tally::default();
                events = self.events(room, read.all, version)?;
            }
            for (at, event) in events.iter().rev() {
                self.add(&mut tally, &read, (*at, event), &rules, &scene)?;
            }
        }
        let mut counts = counts.lock();
        if counts.0.len() >= MAX_ROOMS && !counts.0.contains_key(&room) {
            counts.0.clear();
        }
        counts.0.insert(room, Known { as_of: version, edition, read, tally: tally.clone() });
        Ok(tally)
    }

    /// Counting begins where the user joined, and goes on where they have read up to.
    pub fn read_up_to(&self, room: RoomNr, membership: &Membership) -> Result<ReadUpTo> {
        let mut read = ReadUpTo { all: membership.joined.unwrap_or_default(), ..ReadUpTo::default() };
        let span = schema::RECEIPTS.prefix((room, self.user_id.as_str()));
        for row in self.rooms.read.scan(&schema::RECEIPTS, span) {
            let ((_, _, (_, thread)), receipt) = row?;
            read.raise(&thread, receipt.event);
        }
        Ok(read)
    }

    /// Newest first.
    fn events(&self, room: RoomNr, after: Pos, until: Pos) -> Result<Vec<(Pos, StoredEvent)>> {
        if let Some(events) = self.recent.events(room, after, until) {
            return Ok(events);
        }
        let events = schema::EVENTS.prefix((room,));
        let span = events.after((room, after)).through((room, until)).reversed().limit(MAX_EVENTS);
        let rows = self.rooms.read.scan(&schema::EVENTS, span);
        Ok(rows.map(|row| row.map(|((_, at), event)| (at, event))).collect::<Result<_, store::Error>>()?)
    }

    fn add(
        &self,
        tally: &mut Tally,
        read: &ReadUpTo,
        (at, event): (Pos, &StoredEvent),
        rules: &Rules,
        scene: &RoomScene<'_, R>,
    ) -> Result<()> {
        let own = event.sender() == self.user_id;
        if event.hidden() || own && event.state_key().is_some() || self.tastes.ignores(event.sender()) {
            return Ok(());
        }
        let facts = Facts::new(event);
        let thread = thread_by(self.rooms, scene.room, &facts)?;
        let thread = thread.as_deref();
        if own {
            // Who writes has read what is before.
            tally.clear(thread);
        } else if at > read.of(thread) && event.redacted_by().is_none() {
            let outcome = rules.decide(&facts, &Beholder { user_id: self.user_id, scene })?;
            tally.add(thread, outcome);
        }
        Ok(())
    }
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

    fn context(&self) -> Result<PushConditionRoomCtx> {
        let RoomScene { rooms, room, head, .. } = self.scene;
        let member = rooms.state_event(*room, head.state, "m.room.member", self.user_id.as_str())?;
        let name = member.and_then(|event| content_field::<String>(&event, "displayname"));
        let mut context = PushConditionRoomCtx::new(
            RoomId::parse(&head.room_id).map_err(Error::internal)?,
            UInt::new_saturating(self.joined_members()),
            self.user_id.to_owned(),
            name.unwrap_or_else(|| self.user_id.localpart().to_owned()),
        );
        context.power_levels = self.scene.power()?.cloned();
        Ok(context)
    }
}

/// The parts of a count as they are sent: the room's, and with threads apart those of the threads.
pub fn split(
    tally: Tally,
    threads_apart: bool,
) -> (crate::push::counts::Unread, BTreeMap<String, crate::push::counts::Unread>) {
    if threads_apart { (tally.main, tally.threads) } else { (tally.total(), BTreeMap::new()) }
}
