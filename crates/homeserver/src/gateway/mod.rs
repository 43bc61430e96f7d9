//! Push gateways are told of notifications (spec: Push Gateway API). A follower of the journal: whoever sends an event
//! does not wait for it, and what was not told when the server stopped is told after its start.
//!
//! - `audience`: who has pushers, and in which rooms they are. Nobody else costs anything.
//! - `outbox`: what waits for one pusher, in order. `delivery`: sending it.
//!
//! Events are looked at once for all who are in the room; what notifies goes to the outboxes in memory. The journal's
//! cursor stays before the oldest event that waits, and each pusher has a row that says how far it has come. Both are
//! written every few seconds, not with each notification: after a crash some may be told twice, none is left out.

pub mod audience;
pub mod delivery;
pub mod outbox;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use ruma::push::{HighlightTweakValue, Tweak};
use serde_json::{Map, Value};
use store::{Batch, Pos, Read as _, Snapshot, Tx, journal};

use crate::App;
use crate::background;
use crate::error::{Error, Result};
use crate::push::pattern::Fuel;
use crate::push::rules::{Facts, Prepared, Rules};
use crate::rooms::read::RoomReader;
use crate::schema::{self, MembershipState, Pushed, RoomNr, topic};
use crate::stored::StoredEvent;
use crate::sync::live::Tastes;
use crate::sync::unread::{Beholder, RoomScene};
use audience::{Audience, Listener};
use outbox::{Item, Note};

const FOLLOWER: &str = "push";
/// Entries of the journal that are gone through at a time.
const ENTRIES: usize = 64;
const SAVE_EVERY: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_secs(5);

/// Tells gateways until the server stops. Without any gateway that may be told there is nothing to do.
pub async fn run(app: App) {
    loop {
        let followed = if app.config.push.gateways.is_empty() { forget(&app).await } else { follow(&app).await };
        match followed {
            Ok(()) => return,
            Err(cause) => {
                tracing::warn!(%cause, "notifications pause");
                tokio::select! {
                    () = app.shutdown.cancelled() => return,
                    () = app.clock.sleep(PAUSE) => {}
                }
            }
        }
    }
}

/// Whoever switched notifications off does not need the journal for them.
async fn forget(app: &App) -> Result<()> {
    if journal::cursor(&app.store.snapshot(), FOLLOWER)?.is_some() {
        let mut batch = Batch::new();
        journal::forget(&mut batch, FOLLOWER);
        app.store.commit(batch)?.durable().await?;
    }
    Ok(())
}

async fn follow(app: &App) -> Result<()> {
    let mut follower = Follower::start(app).await?;
    let signal = follower.audience.signal().clone();
    loop {
        // What is written while we look is seen next time.
        let (seen, nudges) = (app.store.tip(), signal.nudges());
        while follower.step()? {
            tokio::task::yield_now().await;
        }
        tokio::select! {
            () = signal.changed(seen, nudges) => {}
            () = app.clock.sleep(follower.until_save()), if follower.unsaved() => {}
            () = app.shutdown.cancelled() => return follower.save().await,
        }
        if follower.unsaved() && follower.until_save().is_zero() {
            follower.save().await?;
        }
    }
}

struct Follower<'a> {
    app: &'a App,
    audience: Audience,
    /// Everything up to here was looked at.
    done: Pos,
    saved: Pos,
    saved_when: Duration,
}

/// An event to look at.
struct Happened {
    at: Pos,
    room: RoomNr,
    event: StoredEvent,
    /// Who is told although they are not in the room: whom it invites.
    invited: Option<Arc<Listener>>,
}

/// What was read of those who listen, for one stretch.
type Tasted = HashMap<*const Listener, (Arc<Tastes>, Rules)>;

/// How an event is presented, by the rule that was the last to match: it is the same one for most.
#[derive(Default)]
struct Tweaks(Option<(*const Prepared, Arc<Map<String, Value>>)>);

impl Tweaks {
    fn of(&mut self, rule: &Prepared) -> Arc<Map<String, Value>> {
        match &self.0 {
            Some((of, tweaks)) if std::ptr::eq(*of, rule) => tweaks.clone(),
            _ => self.0.insert((std::ptr::from_ref(rule), Arc::new(tweaks_of(rule)))).1.clone(),
        }
    }
}

/// What has changed in a stretch of the journal.
#[derive(Default)]
struct Changes {
    rooms: BTreeSet<RoomNr>,
    members: BTreeSet<String>,
    accounts: BTreeSet<String>,
    /// And until when.
    pushers: BTreeMap<String, Pos>,
}

impl<'a> Follower<'a> {
    async fn start(app: &'a App) -> Result<Self> {
        let hub = app.store.hub();
        // Listening begins before anything is read.
        let mut audience = Audience::new(app.config.push.gateways.clone().into(), hub);
        let snapshot = app.store.snapshot();
        let done = match journal::cursor(&snapshot, FOLLOWER)? {
            Some(done) => done,
            None => {
                let mut batch = Batch::new();
                journal::advance(&mut batch, FOLLOWER, snapshot.version());
                app.store.commit(batch)?.durable().await?;
                snapshot.version()
            }
        };
        audience.load(hub, &snapshot)?;
        Ok(Follower { app, audience, done, saved: done, saved_when: app.clock.monotonic() })
    }

    /// Goes through a stretch of the journal. Says whether there was any.
    fn step(&mut self) -> Result<bool> {
        let snapshot = self.app.store.snapshot();
        let entries = journal::read(&snapshot, self.done, ENTRIES)?;
        let end = match entries.last() {
            Some(last) if entries.len() == ENTRIES => last.version,
            _ => snapshot.version(),
        };
        if end <= self.done {
            return Ok(false);
        }
        let changes = Changes::of(&entries);
        let hub = self.app.store.hub();
        for user_id in &changes.accounts {
            self.audience.account_changed(user_id, snapshot.version());
        }
        for (user_id, version) in &changes.pushers {
            self.audience.pushers_changed(hub, &snapshot, user_id, *version)?;
        }
        for user_id in &changes.members {
            self.audience.memberships_changed(hub, &snapshot, user_id)?;
        }
        let mut happened = self.invites(&snapshot, &changes.members, end)?;
        let mut read = Vec::new();
        for room in changes.rooms {
            if !self.audience.in_room(room).is_empty() {
                self.events(&snapshot, room, end, &mut happened)?;
                self.receipts(&snapshot, room, end, &mut read)?;
            }
        }
        happened.sort_by_key(|happened| happened.at);
        self.look_at(&snapshot, &happened, &mut read)?;
        for listener in read {
            self.put(&listener, &Item::Badge);
        }
        self.done = end;
        Ok(true)
    }

    fn events(&self, snapshot: &Snapshot, room: RoomNr, end: Pos, found: &mut Vec<Happened>) -> Result<()> {
        let events = match self.app.sync.recent.events(room, self.done, end) {
            Some(events) => events,
            None => {
                let span = schema::EVENTS.prefix((room,)).after((room, self.done)).through((room, end));
                let rows = snapshot.scan(&schema::EVENTS, span);
                rows.map(|row| row.map(|((_, at), event)| (at, event))).collect::<store::Result<_>>()?
            }
        };
        let shown = events.into_iter().filter(|(_, event)| !event.hidden());
        found.extend(shown.map(|(at, event)| Happened { at, room, event, invited: None }));
        Ok(())
    }

    /// Those who have read something meanwhile.
    fn receipts(&self, snapshot: &Snapshot, room: RoomNr, end: Pos, read: &mut Vec<Arc<Listener>>) -> Result<()> {
        let span = schema::RECEIPT_LOG.prefix((room,)).after((room, self.done)).through((room, end));
        for row in snapshot.scan(&schema::RECEIPT_LOG, span) {
            let (_, key) = row?;
            if let Some(listener) = self.audience.of(&key.user_id) {
                listener.touch(room);
                read.push(listener.clone());
            }
        }
        Ok(())
    }

    /// The invites that those of the audience have got.
    fn invites(&self, snapshot: &Snapshot, members: &BTreeSet<String>, end: Pos) -> Result<Vec<Happened>> {
        let mut found = Vec::new();
        for listener in members.iter().filter_map(|user_id| self.audience.of(user_id)) {
            for (room, member) in listener.memberships().iter() {
                let new = member.event > self.done && member.event <= end;
                if member.state != MembershipState::Invite || !new {
                    continue;
                }
                if let Some(event) = snapshot.get(&schema::EVENTS, (room, member.event))? {
                    found.push(Happened { at: member.event, room, event, invited: Some(listener.clone()) });
                }
            }
        }
        Ok(found)
    }

    /// Whom does each event notify?
    fn look_at(&self, snapshot: &Snapshot, happened: &[Happened], read: &mut Vec<Arc<Listener>>) -> Result<()> {
        let rooms = RoomReader::new(&self.app.room_cache, snapshot);
        let mut tastes = Tasted::default();
        for happened in happened {
            let Some(head) = rooms.head_of(happened.room)? else { continue };
            let scene = RoomScene::new(rooms, happened.room, &head);
            let facts = Facts::new(&happened.event);
            let listeners = happened.invited.as_ref();
            let listeners =
                listeners.map_or_else(|| self.audience.in_room(happened.room), |invited| std::slice::from_ref(invited));
            let mut tweaks = Tweaks::default();
            for listener in listeners {
                listener.touch(happened.room);
                if happened.event.sender() == listener.user_id {
                    // Who writes has read what is before.
                    if listener.outboxes().iter().any(|outbox| outbox.last_badge().is_some_and(|unread| unread > 0)) {
                        read.push(listener.clone());
                    }
                    continue;
                }
                // What is wrong with one of them is nothing to the others.
                let decided = background::guard(self.app, "push rules", || {
                    let decided = self.decide(snapshot, happened, listener, &facts, &scene, &mut tastes)?;
                    Ok::<_, Error>(decided.map(|rule| tweaks.of(rule)))
                });
                let tweaks = decided.transpose()?.flatten();
                if let Some(tweaks) = tweaks {
                    let ts = self.app.clock.now_ms();
                    self.put(listener, &Item::Event(Note { room: happened.room, at: happened.at, tweaks, ts }));
                }
            }
        }
        Ok(())
    }

    /// The rule by which an event notifies somebody, if it does.
    fn decide<'t>(
        &self,
        snapshot: &Snapshot,
        happened: &Happened,
        listener: &Arc<Listener>,
        facts: &Facts<'_>,
        scene: &RoomScene<'_, Snapshot>,
        tastes: &'t mut Tasted,
    ) -> Result<Option<&'t Prepared>> {
        let Happened { at, room, event, invited } = happened;
        let memberships = listener.memberships();
        let joined = memberships.of(*room).and_then(|member| member.joined);
        if invited.is_none() && joined.is_none_or(|joined| joined > *at) {
            return Ok(None);
        }
        let (tastes, rules) = match tastes.entry(Arc::as_ptr(listener)) {
            hashbrown::hash_map::Entry::Occupied(known) => known.into_mut(),
            hashbrown::hash_map::Entry::Vacant(new) => {
                let tastes = listener.tastes(self.app, snapshot)?;
                let rules = tastes.rules(snapshot, &listener.user_id)?;
                new.insert((tastes, rules))
            }
        };
        // An invite from somebody who is ignored is none.
        if tastes.ignores(event.sender()) && (event.state_key().is_none() || invited.is_some()) {
            return Ok(None);
        }
        let beholder = Beholder { user_id: &listener.user_id, scene };
        Ok(rules.matching(facts, &beholder, &Fuel::default())?.filter(|rule| rule.outcome.notify))
    }

    fn put(&self, listener: &Arc<Listener>, item: &Item) {
        for outbox in listener.outboxes() {
            if outbox.put(item.clone()) {
                self.app.tasks.spawn(delivery::deliver(self.app.clone(), listener.clone(), outbox));
            }
        }
    }

    fn until_save(&self) -> Duration {
        (self.saved_when + SAVE_EVERY).saturating_sub(self.app.clock.monotonic())
    }

    /// Up to where nothing waits.
    fn cursor(&self) -> Pos {
        let outboxes = self.audience.users().flat_map(|listener| listener.outboxes());
        let oldest = outboxes.filter_map(|outbox| outbox.oldest()).min();
        oldest.map_or(self.done, |oldest| self.done.min(Pos(oldest.0.saturating_sub(1))))
    }

    fn unsaved(&self) -> bool {
        self.done > self.saved
    }

    /// Writes down how far everything has come, as far as that is news.
    async fn save(&mut self) -> Result<()> {
        let cursor = self.cursor();
        self.saved_when = self.app.clock.monotonic();
        let mut came = Vec::new();
        for listener in self.audience.users() {
            for outbox in listener.outboxes() {
                came.extend(outbox.unsaved().map(|at| (listener.user_id.as_str(), outbox, at)));
            }
        }
        if cursor == self.saved && came.is_empty() {
            return Ok(());
        }
        let write = |tx: &mut Tx| -> Result<()> {
            for (user_id, outbox, at) in &came {
                let key = (*user_id, outbox.id.0.as_str(), outbox.id.1.as_str());
                // Of a pusher that is gone nothing is kept.
                if tx.contains(&schema::PUSHERS, key)? {
                    tx.put(&schema::PUSHED, key, &Pushed { at: at.0 });
                }
            }
            journal::advance(tx.batch(), FOLLOWER, cursor);
            Ok(())
        };
        self.app.store.transact(write).await?;
        came.iter().for_each(|(_, outbox, at)| outbox.saved(*at));
        self.saved = cursor;
        Ok(())
    }
}

impl Changes {
    fn of(entries: &[journal::Entry]) -> Self {
        let mut changes = Changes::default();
        for entry in entries {
            for topic in &entry.topics {
                let name = || topic.as_str().unwrap_or_default().to_owned();
                match topic.class {
                    topic::ROOM => changes.rooms.extend(topic.as_number()),
                    topic::MEMBERSHIP => _ = changes.members.insert(name()),
                    topic::USER => _ = changes.accounts.insert(name()),
                    topic::PUSHERS if !topic.key.is_empty() => _ = changes.pushers.insert(name(), entry.version),
                    _ => {}
                }
            }
        }
        changes
    }
}

fn tweaks_of(rule: &Prepared) -> Map<String, Value> {
    let value = |tweak: &Tweak| match tweak {
        Tweak::Highlight(value) => Some(Value::Bool(*value == HighlightTweakValue::Yes)),
        Tweak::Sound(sound) => serde_json::to_value(sound).ok(),
        other => other.value().map(|value| serde_json::from_str(value.get()).unwrap_or_default()),
    };
    rule.tweaks().filter_map(|tweak| Some((tweak.set_tweak().to_owned(), value(tweak)?))).collect()
}
