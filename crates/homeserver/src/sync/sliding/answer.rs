//! One look at the store for one connection: which rooms have to be looked into, what is new, and what the client will
//! know once it has that.

use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use ruma::{DeviceId, OwnedUserId};
use store::{Pos, Read as _, Snapshot};

use super::config::{Config, Filters, Messages, RoomConfig, Scopes};
use super::connection::{Sent, State};
use super::extensions::device_news;
use super::lists::{Marks, Way, mark};
use super::material::Material;
use super::order::{Order, Row};
use super::room::{Visit, Visitor};
use crate::App;
use crate::error::Result;
use crate::rooms::read::RoomReader;
use crate::rooms::shown::Style;
use crate::schema::{self, MembershipState, RoomNr};
use crate::sync::live::{LiveUser, Look};
use crate::sync::material::ReadBy;
use crate::sync::recount::counted_since;
use crate::sync::unread::Budget;
use crate::sync::viewer::Viewer;

/// Receipts of a room that is new to the client, at most.
const MAX_RECEIPTS: usize = 100;

/// Who asks what.
#[derive(Clone, Copy)]
pub struct Ask<'a> {
    pub app: &'a App,
    pub user_id: &'a OwnedUserId,
    pub device_id: Option<&'a DeviceId>,
    pub live: &'a LiveUser,
    pub config: &'a Arc<Config>,
    pub messages: Option<Messages>,
    /// What the client has.
    pub state: &'a State,
}

/// What to look into.
#[derive(Default)]
pub(super) struct Plan {
    visits: Vec<Visit>,
    /// Extensions that are new for a room: all of it is sent.
    pub(super) fresh: HashMap<RoomNr, Scopes>,
    /// Rooms in which somebody may have read something, and since when the client has to know.
    receipts: HashMap<RoomNr, Option<Pos>>,
    /// Rooms whose counts became right.
    counted: HashSet<RoomNr>,
}

/// An answer on its way.
pub(super) struct Answer<'a> {
    pub(super) ask: Ask<'a>,
    pub(super) look: &'a Look,
    pub(super) plan: Plan,
    /// What the client will have.
    pub(super) next: State,
    pub(super) material: Material,
    /// For counts of what is unread.
    budget: Budget,
}

/// What is new for a client, and what it will have once it has that.
pub fn answer(ask: Ask<'_>) -> Result<(State, Material)> {
    // Before anything is read: what changes meanwhile is told again rather than not at all.
    let serial = ask.app.sync.serial();
    let mut next = ask.state.clone();
    (next.serial, next.config) = (serial, Some(ask.config.clone()));
    let (look, plan) = if ask.config.has_rooms() || !ask.state.rooms.is_empty() {
        let orders = &ask.app.sync.sliding.orders;
        orders.look(ask.app, ask.live, ask.user_id, |look, order| plan(ask, look, order, &mut next))?
    } else {
        (ask.live.look(&ask.app.store)?, Plan::default())
    };
    next.version = look.snapshot.version();
    let budget = ask.app.sync.recounts.budget(ask.state.config.is_none());
    let mut answer = Answer { ask, look: &look, plan, next, material: Material::default(), budget };
    answer.rooms()?;
    answer.account_data()?;
    answer.typing();
    answer.device_lists()?;
    device_news(ask, &look.snapshot, &mut answer.material)?;
    Ok((answer.next, answer.material))
}

fn plan(ask: Ask<'_>, look: &Look, order: &mut Order, next: &mut State) -> Result<Plan> {
    let Ask { app, config, state, .. } = ask;
    if config.lists.values().any(|list| list.filters.need_state()) {
        order.read_traits(RoomReader::new(&app.room_cache, &look.snapshot))?;
    }
    let filters = || config.lists.values().map(|list| &list.filters);
    if filters().any(Filters::need_tags) {
        order.read_tags(&look.snapshot, look)?;
    }
    let spaces: Vec<RoomNr> = filters().filter_map(|filters| filters.spaces.as_ref()).flatten().copied().collect();
    order.read_children(RoomReader::new(&app.room_cache, &look.snapshot), &spaces)?;
    let marks = mark(config, state, order);
    let same = state.config.as_ref().is_some_and(|before| Arc::ptr_eq(before, config));
    let mut planner = Planner { ask, order, next, plan: Plan::default() };
    if same && (Arc::ptr_eq(&marks, &state.marks) || marks.same_rooms(&state.marks)) {
        planner.what_happened(&marks);
        planner.who_became_direct(&marks);
    } else {
        planner.all(&marks);
        planner.forget_others(&marks);
    }
    planner.receipts(look, &marks)?;
    let plan = planner.plan;
    next.marks = marks;
    Ok(plan)
}

struct Planner<'a> {
    ask: Ask<'a>,
    order: &'a Order,
    next: &'a mut State,
    plan: Plan,
}

impl Planner<'_> {
    /// The client hears of the same rooms as before: those in which something happened are in front.
    fn what_happened(&mut self, marks: &Marks) {
        let since = self.ask.state.version;
        for at in self.order.sorted.iter().map(|at| *at as usize) {
            let Some(row) = self.order.rows.get(at).filter(|row| row.last > since) else { break };
            if let Some(way) = marks.get(at) {
                self.plan.visits.push(visit(row, way, Some(since), None));
                self.freshen(row, Some(since), Scopes::default());
            }
        }
    }

    /// The user said of rooms that they are direct, or no longer.
    fn who_became_direct(&mut self, marks: &Marks) {
        let (at, since) = (self.order.direct_at(), self.ask.state.version);
        if at == Pos::MAX || at <= since {
            return;
        }
        for (at, way) in marks.iter() {
            let Some(row) = self.order.rows.get(at) else { continue };
            let Some(sent) = self.ask.state.rooms.get(&row.room).filter(|sent| sent.is_dm != row.is_dm) else {
                continue;
            };
            self.next.rooms.insert(row.room, Sent { is_dm: row.is_dm, ..sent.clone() });
            match self.plan.visits.iter_mut().find(|visit| visit.room == row.room) {
                Some(visit) => visit.dm_changed = true,
                None => {
                    let visit = Visit { dm_changed: true, ..visit(row, way, Some(since), None) };
                    self.plan.visits.push(visit);
                }
            }
        }
    }

    /// Each room the client hears of now.
    fn all(&mut self, marks: &Marks) {
        for (at, way) in marks.iter() {
            let Some(row) = self.order.rows.get(at) else { continue };
            let scopes = self.ask.config.extensions.scopes(row.room, way.lists, way.subscribed);
            let sent = self.ask.state.rooms.get(&row.room);
            let since = sent.map(|sent| sent.up_to.unwrap_or(self.ask.state.version));
            let returns = sent.is_none_or(|sent| sent.up_to.is_some());
            let same = sent.is_some_and(|sent| Arc::ptr_eq(&sent.config, &way.config) || sent.config == way.config);
            let before = sent.map(|sent| sent.config.clone()).filter(|before| !same && way.config.expands(before));
            let dm_changed = sent.is_some_and(|sent| sent.is_dm != row.is_dm);
            if since.is_none_or(|since| row.last > since) || before.is_some() || dm_changed {
                self.plan.visits.push(Visit { dm_changed, ..visit(row, way, since, before) });
            }
            let known = if returns { Scopes::default() } else { sent.map(|sent| sent.scopes).unwrap_or_default() };
            self.freshen(row, since, scopes.without(known));
            if returns {
                self.plan.receipts.insert(row.room, since);
            }
            if returns || !same || dm_changed || sent.is_none_or(|sent| sent.scopes != scopes) {
                let sent = Sent { up_to: None, config: way.config.clone(), scopes, is_dm: row.is_dm };
                self.next.rooms.insert(row.room, sent);
            }
        }
    }

    /// Extensions for which all of a room is new, besides those who are known to be.
    fn freshen(&mut self, row: &Row, since: Option<Pos>, scopes: Scopes) {
        let joins = since.is_none_or(|since| row.member.joined.is_none_or(|joined| joined > since));
        let scopes = if joins { Scopes::ALL } else { scopes };
        if row.member.state == MembershipState::Join && scopes != Scopes::default() {
            self.plan.fresh.insert(row.room, scopes);
        }
    }

    /// The client no longer hears of some rooms: up to where it knows them is remembered.
    fn forget_others(&mut self, marks: &Marks) {
        let marked = |room| self.order.row(room).is_some_and(|(at, _)| marks.get(at).is_some());
        let state = self.ask.state;
        let gone = state.rooms.iter().filter(|(room, sent)| sent.up_to.is_none() && !marked(**room));
        for (room, sent) in gone {
            let sent = Sent { up_to: Some(state.version), scopes: Scopes::default(), ..sent.clone() };
            self.next.rooms.insert(*room, sent);
        }
    }

    /// Where somebody may have read something.
    fn receipts(&mut self, look: &Look, marks: &Marks) -> Result<()> {
        if self.ask.state.config.is_none() {
            // Everything is new.
            return Ok(());
        }
        let since = self.ask.state.version;
        let wanted = |room| {
            let row = self.order.row(room).filter(|(_, row)| row.member.state == MembershipState::Join);
            row.is_some_and(|(at, _)| marks.get(at).is_some())
        };
        let recent = &self.ask.app.sync.recent;
        match recent.changes(since, look.snapshot.version(), wanted) {
            Some(changed) => {
                for (room, _) in changed.into_iter().filter(|(_, what)| what.receipts) {
                    self.plan.receipts.entry(room).or_insert(Some(since));
                }
            }
            None => {
                for row in marks.iter().filter_map(|(at, _)| self.order.rows.get(at)) {
                    if row.member.state == MembershipState::Join && any_receipt(&look.snapshot, row.room, since)? {
                        self.plan.receipts.entry(row.room).or_insert(Some(since));
                    }
                }
            }
        }
        if look.account_moved > since {
            let counted = counted_since(&look.snapshot, self.ask.user_id, since)?;
            self.plan.counted.extend(counted.into_iter().filter(|room| wanted(*room)));
        }
        self.visit_readers(marks);
        Ok(())
    }

    /// Whoever reads changes their counts; and receipts are read with their rooms.
    fn visit_readers(&mut self, marks: &Marks) {
        let state = self.ask.state;
        let planned: HashSet<RoomNr> = self.plan.visits.iter().map(|visit| visit.room).collect();
        let read = self.plan.receipts.iter().map(|(room, since)| (*room, *since));
        let fresh = self.plan.fresh.iter().filter(|(_, scopes)| scopes.has(Scopes::RECEIPTS));
        let fresh = fresh.map(|(room, _)| (*room, state.knows(*room)));
        let counted = self.plan.counted.iter().map(|room| (*room, state.knows(*room)));
        let mut rooms: Vec<(RoomNr, Option<Pos>)> = read.chain(fresh).chain(counted).collect();
        rooms.sort_unstable();
        rooms.dedup_by_key(|(room, _)| *room);
        for (room, since) in rooms.into_iter().filter(|(room, _)| !planned.contains(room)) {
            let Some((at, row)) = self.order.row(room) else { continue };
            if let Some(way) = marks.get(at).filter(|_| row.member.state == MembershipState::Join) {
                self.plan.visits.push(visit(row, way, since, None));
            }
        }
    }
}

fn visit(row: &Row, way: &Way, since: Option<Pos>, before: Option<Arc<RoomConfig>>) -> Visit {
    Visit {
        room: row.room,
        member: row.member.clone(),
        lists: way.lists,
        is_dm: row.is_dm,
        dm_changed: false,
        since,
        config: way.config.clone(),
        before,
        receipts: false,
    }
}

fn any_receipt(snapshot: &Snapshot, room: RoomNr, since: Pos) -> Result<bool> {
    let span = schema::RECEIPT_LOG.prefix((room,)).after((room, since)).limit(1);
    Ok(snapshot.scan(&schema::RECEIPT_LOG, span).keys().next().transpose()?.is_some())
}

impl<'a> Answer<'a> {
    fn rooms(&mut self) -> Result<()> {
        let Ask { app, live, state, device_id, .. } = self.ask;
        let style = style(app, device_id);
        let seen = state.config.is_some().then_some(state.version);
        for mut visit in std::mem::take(&mut self.plan.visits) {
            let nr = visit.room;
            let read = match self.plan.receipts.get(&nr) {
                Some(Some(since)) => self.read_since(nr, *since)?,
                _ => Read::default(),
            };
            visit.receipts = read.own || self.plan.counted.contains(&nr);
            let (viewer, version) = (self.viewer(), self.next.version);
            let bumps = &app.sync.sliding.bumps;
            let (recounts, budget) = (&app.sync.recounts, &self.budget);
            let state = &mut self.next;
            let mut visitor = Visitor { viewer, live, bumps, recounts, budget, style, state, seen, version };
            let room = visitor.room(&visit)?;
            let first = room.as_ref().and_then(|room| room.timeline.as_ref()?.events.first()).map(|shown| shown.at);
            self.put_receipts(nr, read.receipts, first)?;
            self.material.rooms.extend(room);
        }
        Ok(())
    }

    fn read_since(&self, nr: RoomNr, since: Pos) -> Result<Read> {
        let (receipts, own) = self.viewer().receipts(nr, Some(since), MAX_RECEIPTS, |_, _| true)?;
        Ok(Read { receipts, own })
    }

    /// Receipts go to those who asked for them. In a room that is new to the client they are those of the user, and
    /// those at events that it has.
    fn put_receipts(&mut self, nr: RoomNr, mut receipts: Vec<ReadBy>, first: Option<Pos>) -> Result<()> {
        if !self.covers(nr, Scopes::RECEIPTS) {
            return Ok(());
        }
        if self.plan.fresh.get(&nr).is_some_and(|scopes| scopes.has(Scopes::RECEIPTS)) {
            let wanted = |mine, at| mine || first.is_some_and(|first| at >= first);
            receipts = self.viewer().receipts(nr, None, MAX_RECEIPTS, wanted)?.0;
        }
        if !receipts.is_empty() {
            self.material.receipts.extend(self.room_id(nr)?.map(|room_id| (room_id, receipts)));
        }
        Ok(())
    }

    /// Whether an extension is wanted for a room, and the user is in it.
    pub(super) fn covers(&self, nr: RoomNr, scope: Scopes) -> bool {
        let sent = self.next.rooms.get(&nr).filter(|sent| sent.up_to.is_none());
        sent.is_some_and(|sent| sent.scopes.has(scope)) && self.look.memberships.is_joined(nr)
    }

    pub(super) fn room_id(&self, nr: RoomNr) -> Result<Option<String>> {
        Ok(self.viewer().rooms.head_of(nr)?.map(|head| head.room_id))
    }

    pub(super) fn viewer(&self) -> Viewer<'a> {
        let Ask { app, user_id, .. } = self.ask;
        Viewer {
            user_id,
            rooms: RoomReader::new(&app.room_cache, &self.look.snapshot),
            recent: &app.sync.recent,
            candidates: &app.sync.candidates,
            tastes: &self.look.tastes,
        }
    }
}

/// How events look to a device.
pub fn style<'a>(app: &App, device_id: Option<&'a DeviceId>) -> Style<'a> {
    let device_id = device_id.map(|device| device.as_str());
    Style { now_ms: app.clock.now_ms(), device_id, room_id: None, federation: false }
}

/// What was read of a room.
#[derive(Default)]
struct Read {
    receipts: Vec<ReadBy>,
    own: bool,
}
