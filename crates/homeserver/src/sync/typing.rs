//! Who is typing where. Kept in memory only; every change gets a number that sync tokens count by.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::Mutex;
use ruma::{OwnedUserId, UserId};
use tokio::sync::Notify;

use crate::App;
use crate::schema::{RoomNr, topic};

/// Nobody types for longer than this without saying so again.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(120);
/// Rooms in which nobody types any more are remembered for those who have to hear of it, up to so many.
const MAX_ROOMS: usize = 4096;

/// The typists of all rooms.
#[derive(Default)]
pub struct Typing {
    rooms: Mutex<Rooms>,
    sooner: Notify,
    expiring: AtomicBool,
}

#[derive(Default)]
struct Rooms {
    known: HashMap<RoomNr, Room>,
    /// Changes up to this number may be forgotten.
    forgotten: u64,
}

#[derive(Default)]
struct Room {
    /// The number of the last change.
    changed: u64,
    /// Until when, by the clock that never jumps.
    typists: BTreeMap<OwnedUserId, Duration>,
}

impl Typing {
    /// Somebody types until then, or stopped. Returns whether the list of typists is another now.
    pub fn set(&self, serial: &AtomicU64, room: RoomNr, user_id: &UserId, until: Option<Duration>) -> bool {
        let mut rooms = self.rooms.lock();
        let Rooms { known, .. } = &mut *rooms;
        let changed = match until {
            Some(until) => known.entry(room).or_default().typists.insert(user_id.to_owned(), until).is_none(),
            None => known.get_mut(&room).is_some_and(|room| room.typists.remove(user_id).is_some()),
        };
        if changed {
            rooms.count(serial, room);
        }
        changed
    }

    /// Who types in a room.
    pub fn of(&self, room: RoomNr) -> Vec<OwnedUserId> {
        let rooms = self.rooms.lock();
        rooms.known.get(&room).map(|room| room.typists.keys().cloned().collect()).unwrap_or_default()
    }

    /// Whether anybody types in one of these rooms.
    pub fn any(&self, wanted: impl Fn(RoomNr) -> bool) -> bool {
        let rooms = self.rooms.lock();
        rooms.known.iter().any(|(room, typing)| !typing.typists.is_empty() && wanted(*room))
    }

    /// The rooms in which somebody types.
    pub fn active(&self, wanted: impl Fn(RoomNr) -> bool) -> Vec<RoomNr> {
        let rooms = self.rooms.lock();
        let active = rooms.known.iter().filter(|(room, typing)| !typing.typists.is_empty() && wanted(**room));
        active.map(|(room, _)| *room).collect()
    }

    /// The rooms whose typists changed after a number; `None` if that is not remembered.
    pub fn changed(&self, after: u64, wanted: impl Fn(RoomNr) -> bool) -> Option<Vec<RoomNr>> {
        let rooms = self.rooms.lock();
        if after < rooms.forgotten {
            return None;
        }
        let changed = rooms.known.iter().filter(|(room, typing)| typing.changed > after && wanted(**room));
        Some(changed.map(|(room, _)| *room).collect())
    }

    /// Takes out who stopped without saying so. Returns the rooms, and when to look again.
    fn expire(&self, serial: &AtomicU64, now: Duration) -> (Vec<RoomNr>, Option<Duration>) {
        let mut rooms = self.rooms.lock();
        let mut changed = Vec::new();
        let mut next: Option<Duration> = None;
        for (nr, room) in &mut rooms.known {
            let before = room.typists.len();
            room.typists.retain(|_, until| *until > now);
            if room.typists.len() < before {
                changed.push(*nr);
            }
            next = room.typists.values().copied().chain(next).min();
        }
        for room in &changed {
            rooms.count(serial, *room);
        }
        (changed, next)
    }
}

impl Rooms {
    fn count(&mut self, serial: &AtomicU64, room: RoomNr) {
        // Under the lock, so that who has seen the number finds the change.
        let number = serial.fetch_add(1, Ordering::SeqCst) + 1;
        self.known.entry(room).or_default().changed = number;
        if self.known.len() > MAX_ROOMS {
            self.known.retain(|_, room| !room.typists.is_empty());
            self.forgotten = number;
        }
    }
}

/// Sets who types, tells the room, and sees to it that it ends.
pub fn set(app: &App, room: RoomNr, user_id: &UserId, timeout: Option<Duration>) {
    let typing = &app.sync.typing;
    let until = timeout.map(|timeout| app.clock.monotonic() + timeout.min(MAX_TIMEOUT));
    if typing.set(&app.sync.serial, room, user_id, until) {
        app.store.hub().nudge(&topic::room(room));
    }
    if until.is_none() {
        return;
    }
    typing.sooner.notify_one();
    if !typing.expiring.swap(true, Ordering::SeqCst) {
        app.tasks.spawn(expire(app.clone()));
    }
}

/// Runs while anybody types.
async fn expire(app: App) {
    let typing = &app.sync.typing;
    loop {
        let now = app.clock.monotonic();
        let (changed, next) = typing.expire(&app.sync.serial, now);
        for room in changed {
            app.store.hub().nudge(&topic::room(room));
        }
        let Some(next) = next else {
            typing.expiring.store(false, Ordering::SeqCst);
            // Somebody may have begun just before.
            if typing.any(|_| true) && !typing.expiring.swap(true, Ordering::SeqCst) {
                continue;
            }
            return;
        };
        tokio::select! {
            () = app.clock.sleep(next.saturating_sub(now)) => {}
            () = typing.sooner.notified() => {}
            () = app.shutdown.cancelled() => return,
        }
    }
}
