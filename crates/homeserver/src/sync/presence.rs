//! Who is online (spec: Presence). Kept in memory only; every change gets a number that sync tokens count by.
//!
//! Changes are told in batches: a server that starts up has thousands of them at once, and each wakes everybody who
//! shares a room. Not here: who may ask for whose presence (`client::presence`).

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::Mutex;
use ruma::presence::PresenceState;
use ruma::{OwnedUserId, UserId};
use tokio::sync::Notify;

use super::live::Memberships;
use crate::App;
use crate::error::Result;
use crate::schema::{RoomNr, topic};

/// Who does not sync for so long is offline.
const OFFLINE_AFTER: Duration = Duration::from_secs(30);
/// Who does nothing but sync for so long is away.
const IDLE_AFTER: Duration = Duration::from_secs(5 * 60);
/// Changes wait for others for so long.
const BATCH: Duration = Duration::from_millis(500);
/// How often it is checked who went offline or away.
const CHECK_EVERY: Duration = Duration::from_secs(10);
/// Who was offline for so long and has nothing to say is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(60 * 60);

/// The presence of everybody who was here since the start.
#[derive(Default)]
pub struct Presence {
    people: Mutex<HashMap<OwnedUserId, Person>>,
    running: AtomicBool,
    changes: Notify,
}

#[derive(Debug)]
struct Person {
    /// What the user's clients said last.
    wanted: PresenceState,
    /// What others see: what time has made of that.
    state: PresenceState,
    status: Option<String>,
    last_active: Duration,
    last_sync: Duration,
    /// Polls that wait now, of clients that are not offline.
    polls: u32,
    /// The number of the last change.
    changed: u64,
    /// The change was not told yet.
    fresh: bool,
}

/// What others see of somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub user_id: OwnedUserId,
    pub state: PresenceState,
    pub status: Option<String>,
    pub last_active_ago: Duration,
}

impl Person {
    fn new(now: Duration) -> Self {
        Person {
            wanted: PresenceState::Offline,
            state: PresenceState::Offline,
            status: None,
            last_active: now,
            last_sync: now,
            polls: 0,
            changed: 0,
            fresh: false,
        }
    }

    /// Brings what others see up to the time. Returns whether that is another now.
    fn settle(&mut self, serial: &AtomicU64, now: Duration) -> bool {
        if self.polls == 0 && now.saturating_sub(self.last_sync) >= OFFLINE_AFTER {
            // Only who says so is online again, not who polls as offline.
            self.wanted = PresenceState::Offline;
        }
        let idle = now.saturating_sub(self.last_active) >= IDLE_AFTER;
        let state = match &self.wanted {
            PresenceState::Online if idle => PresenceState::Unavailable,
            wanted => wanted.clone(),
        };
        let changed = self.state != state;
        if changed {
            self.state = state;
            self.count(serial);
        }
        changed
    }

    fn count(&mut self, serial: &AtomicU64) {
        // Under the lock, so that who has seen the number finds the change.
        self.changed = serial.fetch_add(1, Ordering::SeqCst) + 1;
        self.fresh = true;
    }

    fn seen(&self, user_id: &UserId, now: Duration) -> Seen {
        Seen {
            user_id: user_id.to_owned(),
            state: self.state.clone(),
            status: self.status.clone(),
            last_active_ago: now.saturating_sub(self.last_active),
        }
    }
}

impl Presence {
    /// What others see of a user; `None` if they were never here.
    pub fn of(&self, user_id: &UserId, now: Duration) -> Option<Seen> {
        Some(self.people.lock().get(user_id)?.seen(user_id, now))
    }

    /// Whose presence changed after a number (everybody's who is not offline, without one).
    pub fn changed(&self, after: Option<u64>, now: Duration) -> Vec<Seen> {
        let people = self.people.lock();
        let changed = people.iter().filter(|(_, person)| match after {
            Some(after) => person.changed > after,
            None => person.state != PresenceState::Offline,
        });
        changed.map(|(user_id, person)| person.seen(user_id, now)).collect()
    }

    fn update<T>(&self, user_id: &UserId, now: Duration, change: impl FnOnce(&mut Person) -> T) -> T {
        let mut people = self.people.lock();
        match people.get_mut(user_id) {
            Some(person) => change(person),
            None => change(people.entry(user_id.to_owned()).or_insert_with(|| Person::new(now))),
        }
    }

    /// A poll ended; called also when the client hangs up.
    pub fn poll_ended(&self, user_id: &UserId, now: Duration) {
        if let Some(person) = self.people.lock().get_mut(user_id) {
            person.polls = person.polls.saturating_sub(1);
            person.last_sync = now;
        }
    }

    /// Brings everybody up to the time. Returns whose change was not told yet.
    fn settle(&self, serial: &AtomicU64, now: Duration) -> Vec<OwnedUserId> {
        let mut people = self.people.lock();
        let mut fresh = Vec::new();
        for (user_id, person) in people.iter_mut() {
            person.settle(serial, now);
            if std::mem::take(&mut person.fresh) {
                fresh.push(user_id.clone());
            }
        }
        people.retain(|_, person| {
            person.state != PresenceState::Offline
                || person.polls > 0
                || person.status.is_some()
                || now.saturating_sub(person.last_sync) < FORGET_AFTER
        });
        fresh
    }
}

/// A client that is not offline syncs, and says what that makes of its user. Pair it with [`Presence::poll_ended`].
pub fn poll_begins(app: &App, user_id: &UserId, wanted: &PresenceState) {
    let (presence, now) = (&app.sync.presence, app.clock.monotonic());
    let changed = presence.update(user_id, now, |person| {
        person.polls += 1;
        person.last_sync = now;
        // Who is away for doing nothing does not come back by polling.
        if person.wanted != *wanted {
            person.wanted = wanted.clone();
            person.last_active = now;
        }
        person.settle(&app.sync.serial, now)
    });
    if changed {
        tell(app);
    }
}

/// A user did something.
pub fn active(app: &App, user_id: &UserId) {
    if !app.config.presence.enabled {
        return;
    }
    let now = app.clock.monotonic();
    let changed = app.sync.presence.update(user_id, now, |person| {
        person.last_active = now;
        person.settle(&app.sync.serial, now)
    });
    if changed {
        tell(app);
    }
}

/// A user says how they are.
pub fn set(app: &App, user_id: &UserId, wanted: PresenceState, status: Option<String>) {
    let now = app.clock.monotonic();
    let changed = app.sync.presence.update(user_id, now, |person| {
        (person.last_active, person.last_sync) = (now, now);
        person.wanted = wanted;
        let another = person.status != status;
        if another {
            person.status = status;
            person.count(&app.sync.serial);
        }
        person.settle(&app.sync.serial, now) || another
    });
    if changed {
        tell(app);
    }
}

fn tell(app: &App) {
    app.sync.presence.changes.notify_one();
    if !app.sync.presence.running.swap(true, Ordering::SeqCst) {
        app.tasks.spawn(run(app.clone()));
    }
}

/// Runs from the first change on: tells changes, and notices who went away.
async fn run(app: App) {
    let presence = &app.sync.presence;
    loop {
        tokio::select! {
            () = presence.changes.notified() => app.clock.sleep(BATCH).await,
            () = app.clock.sleep(CHECK_EVERY) => {}
            () = app.shutdown.cancelled() => return,
        }
        let fresh = presence.settle(&app.sync.serial, app.clock.monotonic());
        nudge(&app, &fresh);
    }
}

/// Wakes everybody who shares a room with one of these.
fn nudge(app: &App, changed: &[OwnedUserId]) {
    let mut rooms: HashSet<RoomNr> = HashSet::new();
    for user_id in changed {
        match rooms_of(app, user_id) {
            Ok(memberships) => rooms.extend(memberships.joined()),
            Err(error) => tracing::warn!(%error, "the presence of a user was not told"),
        }
    }
    let hub = app.store.hub();
    rooms.into_iter().for_each(|room| hub.nudge(&topic::room(room)));
    for user_id in changed {
        hub.nudge(&topic::user(user_id.as_str()));
    }
}

/// The rooms a user is in.
pub fn rooms_of(app: &App, user_id: &UserId) -> Result<Arc<Memberships>> {
    match app.sync.live.peek_rooms(user_id) {
        Some(memberships) => Ok(memberships),
        None => Ok(Arc::new(Memberships::read(&app.store.snapshot(), user_id)?)),
    }
}
