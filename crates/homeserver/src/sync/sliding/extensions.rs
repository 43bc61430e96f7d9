//! What goes into an answer besides rooms: account data, typing, and what concerns the device. (Receipts are read with
//! their rooms.)

use std::collections::{BTreeMap, BTreeSet};

use ruma::RoomId;
use store::{Pos, Read as _, Snapshot};

use super::answer::{Answer, Ask};
use super::config::{Messages, Scopes};
use super::material::{Material, ToDevice};
use crate::error::Result;
use crate::schema::{self, RoomNr, room_nr};
use crate::sync::assemble::StateAfter;
use crate::sync::collect::{self, PUSH_RULES, default_push_rules};
use crate::sync::devices;
use crate::sync::filter::Filter;
use crate::sync::material::Datum;
use crate::sync::token::{Ephemeral, SyncToken};

impl Answer<'_> {
    pub(super) fn account_data(&mut self) -> Result<()> {
        if !self.ask.config.extensions.account_data.enabled {
            return Ok(());
        }
        let mut rooms = BTreeMap::new();
        let before = self.ask.state.config.as_ref();
        let since = before.filter(|before| before.extensions.account_data.enabled).map(|_| self.ask.state.version);
        match since {
            Some(since) if since >= self.look.memberships.attached && self.look.account_moved <= since => {}
            Some(since) => self.changed_account_data(since, &mut rooms)?,
            None => {
                self.material.account_data = self.all_account_data("")?;
                if !self.material.account_data.iter().any(|(kind, _)| kind == PUSH_RULES) {
                    self.material.account_data.push(default_push_rules(self.ask.user_id));
                }
            }
        }
        for nr in self.fresh(Scopes::ACCOUNT_DATA) {
            let Some(room_id) = self.room_id(nr)? else { continue };
            let all = self.all_account_data(&room_id)?;
            if !all.is_empty() {
                rooms.insert(room_id, all);
            }
        }
        self.material.room_account_data = rooms.into_iter().collect();
        Ok(())
    }

    fn changed_account_data(&mut self, since: Pos, rooms: &mut BTreeMap<String, Vec<Datum>>) -> Result<()> {
        let (snapshot, user) = (&self.look.snapshot, self.ask.user_id.as_str());
        let span = schema::ACCOUNT_DATA_LOG.prefix((user,)).after((user, since));
        for row in snapshot.scan(&schema::ACCOUNT_DATA_LOG, span) {
            let (_, key) = row?;
            let wanted = key.room_id.is_empty()
                || RoomId::parse(&key.room_id).is_ok_and(|room| self.covers(room_nr(&room), Scopes::ACCOUNT_DATA));
            let place = (user, key.room_id.as_str(), key.kind.as_str());
            let Some(data) = snapshot.get(&schema::ACCOUNT_DATA, place)?.filter(|_| wanted) else { continue };
            let datum = (key.kind, data.0);
            if key.room_id.is_empty() {
                self.material.account_data.push(datum);
            } else {
                rooms.entry(key.room_id).or_default().push(datum);
            }
        }
        Ok(())
    }

    /// All account data of a room; without one, that of none.
    fn all_account_data(&self, room_id: &str) -> Result<Vec<Datum>> {
        let span = schema::ACCOUNT_DATA.prefix((self.ask.user_id.as_str(), room_id));
        let rows = self.look.snapshot.scan(&schema::ACCOUNT_DATA, span);
        rows.map(|row| Ok(row.map(|((_, _, kind), data)| (kind, data.0))?)).collect()
    }

    pub(super) fn typing(&mut self) {
        let typing = &self.ask.app.sync.typing;
        if !self.ask.config.extensions.typing.enabled {
            self.next.typing.clear();
            return;
        }
        let mut rooms: BTreeSet<RoomNr> = self.fresh(Scopes::TYPING).into_iter().collect();
        let before = self.ask.state.serial;
        if before != self.next.serial {
            let covered = |room| self.covers(room, Scopes::TYPING);
            match typing.changed(before, covered) {
                Some(changed) => rooms.extend(changed),
                // Too long ago: all of them, and those that the client was told of.
                None => {
                    rooms.extend(typing.active(covered));
                    rooms.extend(self.next.typing.iter().filter(|room| covered(**room)));
                }
            }
        }
        rooms.retain(|room| self.covers(*room, Scopes::TYPING));
        for room in rooms {
            let mut typists = typing.of(room);
            typists.retain(|user| !self.look.tastes.ignores(user.as_str()));
            let told = match typists.is_empty() {
                true => self.next.typing.remove(&room).is_some(),
                false => {
                    self.next.typing.insert(room);
                    true
                }
            };
            if let Ok(Some(room_id)) = self.room_id(room)
                && told
            {
                self.material.typing.push((room_id, typists));
            }
        }
    }

    /// Whose devices changed. A client that begins anew asks for all of them anyway.
    pub(super) fn device_lists(&mut self) -> Result<()> {
        let Ask { app, user_id, device_id, live, config, state, .. } = self.ask;
        let before = state.config.as_ref().filter(|before| before.extensions.e2ee);
        if !config.extensions.e2ee || before.is_none() {
            return Ok(());
        }
        let since = SyncToken { version: state.version, ephemeral: Ephemeral::default(), to_device: None };
        let (filter, state_after) = (&Filter::default(), StateAfter::default());
        let since = Some(since);
        let ask = collect::Ask { app, user_id, device_id, live, filter, since, full_state: false, state_after };
        self.material.device_lists = collect::device_lists_at(&ask, self.look)?;
        Ok(())
    }

    fn fresh(&self, scope: Scopes) -> Vec<RoomNr> {
        let fresh = self.plan.fresh.iter().filter(|(_, scopes)| scopes.has(scope)).map(|(room, _)| *room);
        fresh.filter(|room| self.covers(*room, scope)).collect()
    }
}

/// What waits for the device, and how many of its keys are left: part of every answer.
pub fn device_news(ask: Ask<'_>, snapshot: &Snapshot, material: &mut Material) -> Result<()> {
    let Ask { app, user_id, device_id: Some(device_id), config, messages, state, .. } = ask else { return Ok(()) };
    if let Some(Messages { since, limit }) = messages {
        let waiting = devices::messages(app, snapshot, user_id, device_id, since, limit)?;
        let none = since.unwrap_or_else(|| snapshot.version());
        let next_batch = if waiting.events.is_empty() { none } else { waiting.through };
        material.to_device = Some(ToDevice { next_batch, events: waiting.events });
    }
    if config.extensions.e2ee {
        let counts = devices::key_counts(snapshot, user_id, Some(device_id))?;
        material.key_counts_changed = counts.as_ref().is_some_and(|counts| counts.changed > state.version);
        material.key_counts = counts;
    }
    Ok(())
}

/// Whether there are messages that the device does not have, whatever happened lately: the client may not have got far
/// with those of the last answer.
pub fn messages_wait(ask: Ask<'_>, snapshot: &Snapshot) -> Result<bool> {
    let Some((Messages { since, .. }, device_id)) = ask.messages.zip(ask.device_id) else { return Ok(false) };
    devices::messages_wait(ask.app, snapshot, ask.user_id, device_id, since)
}
