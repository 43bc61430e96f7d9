//! Who has pushers, and in which rooms they are: so that an event is looked at for those who want to be told of it, and
//! for nobody else. In memory, made from the store at the start, kept up to date by the journal.

use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use parking_lot::Mutex;
use ruma::{OwnedUserId, UserId};
use store::{Hub, Pos, Read as _, Signal, Snapshot};

use super::outbox::Outbox;
use crate::App;
use crate::config::Destination;
use crate::error::Result;
use crate::push::pushers;
use crate::rooms::read::RoomReader;
use crate::schema::{self, MembershipState, RoomNr, topic};
use crate::sync::live::{Memberships, Tastes};
use crate::sync::unread::{Counter, Counts};

/// Somebody who has pushers.
pub struct Listener {
    pub user_id: OwnedUserId,
    state: Mutex<State>,
    counts: Mutex<Counts>,
    badge: Mutex<Badge>,
}

struct State {
    memberships: Arc<Memberships>,
    tastes: Option<Arc<Tastes>>,
    /// Their account changed up to here: what was read before does not count.
    account: Pos,
    outboxes: Vec<Arc<Outbox>>,
}

/// How much is unread, room by room.
#[derive(Default)]
struct Badge {
    edition: (Pos, Pos),
    /// Rooms with unread notifications; `None`: never counted.
    rooms: Option<HashMap<RoomNr, u64>>,
    /// To be counted again.
    dirty: HashSet<RoomNr>,
}

impl Listener {
    pub fn outboxes(&self) -> Vec<Arc<Outbox>> {
        self.state.lock().outboxes.clone()
    }

    pub fn memberships(&self) -> Arc<Memberships> {
        self.state.lock().memberships.clone()
    }

    /// Their push rules and whom they ignore.
    pub fn tastes(&self, app: &App, snapshot: &Snapshot) -> Result<Arc<Tastes>> {
        let mut state = self.state.lock();
        if let Some(tastes) = &state.tastes
            && tastes.as_of() >= state.account
        {
            return Ok(tastes.clone());
        }
        let tastes = Arc::new(app.sync.live.tastes(snapshot, &self.user_id, state.tastes.as_deref())?);
        state.tastes = Some(tastes.clone());
        Ok(tastes)
    }

    /// Something of their account changed, up to this version.
    fn account_changed(&self, version: Pos) {
        self.state.lock().account = version;
    }

    /// Something happened in a room that may change how much is unread there.
    pub fn touch(&self, room: RoomNr) {
        let mut badge = self.badge.lock();
        if badge.rooms.is_some() {
            badge.dirty.insert(room);
        }
    }

    /// How many notifications are unread in all rooms.
    pub fn unread(&self, app: &App) -> Result<u64> {
        let mut badge = self.badge.lock();
        // Taken under the lock, so that it is not older than what marked a room.
        let snapshot = app.store.snapshot();
        let tastes = self.tastes(app, &snapshot)?;
        let memberships = self.memberships();
        let rooms = RoomReader::new(&app.room_cache, &snapshot);
        let (recent, recounts, user_id) = (&app.sync.recent, &app.sync.recounts, &self.user_id);
        let budget = recounts.budget(false);
        let counter = Counter { rooms, recent, user_id, tastes: &tastes, recounts, budget: &budget };
        if badge.edition != tastes.edition() {
            (badge.edition, badge.rooms) = (tastes.edition(), None);
        }
        let again: Vec<RoomNr> = match &badge.rooms {
            None => memberships.joined().collect(),
            Some(_) => badge.dirty.iter().copied().collect(),
        };
        let mut known = badge.rooms.take().unwrap_or_default();
        badge.dirty.clear();
        known.retain(|room, _| memberships.is_joined(*room));
        for room in again.iter().copied() {
            let member = memberships.of(room).filter(|member| member.state == MembershipState::Join);
            let count = match (member, rooms.head_of(room)?) {
                (Some(member), Some(head)) => counter.count(&self.counts, room, &head, member)?.total().notifications,
                _ => 0,
            };
            if count == 0 {
                known.remove(&room);
            } else {
                known.insert(room, count);
            }
        }
        if budget.is_spent() {
            // What there was no time for is counted in the background: next time it is known.
            badge.dirty.extend(again);
        }
        let unread = known.values().sum();
        badge.rooms = Some(known);
        Ok(unread)
    }
}

/// Everybody who has pushers that may be served.
pub struct Audience {
    gateways: Arc<[Destination]>,
    signal: Arc<Signal>,
    users: HashMap<OwnedUserId, Arc<Listener>>,
    rooms: HashMap<RoomNr, Vec<Arc<Listener>>>,
}

impl Audience {
    /// Nobody yet. The signal moves with everything that concerns the audience.
    pub fn new(gateways: Arc<[Destination]>, hub: &Hub) -> Self {
        let signal = hub.signal();
        hub.attach(topic::pushers(), &signal);
        Audience { gateways, signal, users: HashMap::new(), rooms: HashMap::new() }
    }

    pub fn signal(&self) -> &Arc<Signal> {
        &self.signal
    }

    /// Everybody who has pushers, as the store has it.
    pub fn load(&mut self, hub: &Hub, snapshot: &Snapshot) -> Result<()> {
        let mut users: Vec<String> = Vec::new();
        for key in snapshot.scan(&schema::PUSHERS, schema::PUSHERS.all()).keys() {
            let (user_id, ..) = key?;
            if users.last() != Some(&user_id) {
                users.push(user_id);
            }
        }
        for user_id in users {
            self.pushers_changed(hub, snapshot, &user_id, Pos::ZERO)?;
        }
        Ok(())
    }

    pub fn of(&self, user_id: &str) -> Option<&Arc<Listener>> {
        self.users.get(<&UserId>::try_from(user_id).ok()?)
    }

    /// Those of the audience who are in a room.
    pub fn in_room(&self, room: RoomNr) -> &[Arc<Listener>] {
        self.rooms.get(&room).map_or(&[], Vec::as_slice)
    }

    pub fn users(&self) -> impl Iterator<Item = &Arc<Listener>> {
        self.users.values()
    }

    /// A user's pushers changed. New ones get what comes after `from`.
    pub fn pushers_changed(&mut self, hub: &Hub, snapshot: &Snapshot, user_id: &str, from: Pos) -> Result<()> {
        let Ok(user) = <&UserId>::try_from(user_id) else { return Ok(()) };
        let known = self.users.get(user).map(|listener| listener.outboxes()).unwrap_or_default();
        let mut outboxes = Vec::new();
        for (app_id, pushkey, pusher) in pushers::of(snapshot, user)? {
            let same = known.iter().find(|outbox| outbox.id == (app_id.clone(), pushkey.clone()));
            let Some(fresh) = Outbox::open(app_id, pushkey, pusher, &self.gateways) else { continue };
            match same {
                Some(outbox) => {
                    outbox.changed(&fresh);
                    outboxes.push(outbox.clone());
                }
                None => {
                    let (app_id, pushkey) = &fresh.id;
                    let pushed = snapshot.get(&schema::PUSHED, (user_id, app_id, pushkey))?;
                    fresh.begin_after(pushed.map_or(from, |pushed| from.max(Pos(pushed.at))));
                    outboxes.push(Arc::new(fresh));
                }
            }
        }
        for outbox in &known {
            if !outboxes.iter().any(|kept| Arc::ptr_eq(kept, outbox)) {
                outbox.close();
            }
        }
        match (self.users.get(user), outboxes.is_empty()) {
            (Some(listener), false) => listener.state.lock().outboxes = outboxes,
            (Some(_), true) => self.remove(hub, user),
            (None, false) => self.add(hub, snapshot, user, outboxes)?,
            (None, true) => {}
        }
        Ok(())
    }

    fn add(&mut self, hub: &Hub, snapshot: &Snapshot, user: &UserId, outboxes: Vec<Arc<Outbox>>) -> Result<()> {
        hub.attach(topic::membership(user.as_str()), &self.signal);
        hub.attach(topic::user(user.as_str()), &self.signal);
        let memberships = Arc::new(Memberships::read(snapshot, user)?);
        let state = State { memberships: memberships.clone(), tastes: None, account: Pos::ZERO, outboxes };
        let listener = Arc::new(Listener {
            user_id: user.to_owned(),
            state: Mutex::new(state),
            counts: Mutex::default(),
            badge: Mutex::default(),
        });
        for room in memberships.joined() {
            self.enter(hub, room, &listener);
        }
        self.users.insert(user.to_owned(), listener);
        Ok(())
    }

    fn remove(&mut self, hub: &Hub, user: &UserId) {
        let Some(listener) = self.users.remove(user) else { return };
        hub.detach(&topic::membership(user.as_str()), &self.signal);
        hub.detach(&topic::user(user.as_str()), &self.signal);
        for room in listener.memberships().joined() {
            self.leave(hub, room, &listener);
        }
    }

    /// Somebody's memberships changed.
    pub fn memberships_changed(&mut self, hub: &Hub, snapshot: &Snapshot, user_id: &str) -> Result<()> {
        let Some(listener) = self.of(user_id).cloned() else { return Ok(()) };
        let now = Arc::new(Memberships::read(snapshot, &listener.user_id)?);
        let before = std::mem::replace(&mut listener.state.lock().memberships, now.clone());
        for room in now.joined().filter(|room| !before.is_joined(*room)) {
            self.enter(hub, room, &listener);
        }
        for room in before.joined().filter(|room| !now.is_joined(*room)) {
            self.leave(hub, room, &listener);
        }
        Ok(())
    }

    pub fn account_changed(&self, user_id: &str, version: Pos) {
        if let Some(listener) = self.of(user_id) {
            listener.account_changed(version);
        }
    }

    fn enter(&mut self, hub: &Hub, room: RoomNr, listener: &Arc<Listener>) {
        hub.attach(topic::room(room), &self.signal);
        self.rooms.entry(room).or_default().push(listener.clone());
        listener.touch(room);
    }

    fn leave(&mut self, hub: &Hub, room: RoomNr, listener: &Arc<Listener>) {
        let Some(listeners) = self.rooms.get_mut(&room) else { return };
        listeners.retain(|other| !Arc::ptr_eq(other, listener));
        if listeners.is_empty() {
            self.rooms.remove(&room);
            hub.detach(&topic::room(room), &self.signal);
        }
        listener.touch(room);
    }
}

/// What is not told by then is told by who comes after.
impl Drop for Audience {
    fn drop(&mut self) {
        self.users().flat_map(|listener| listener.outboxes()).for_each(|outbox| outbox.close());
    }
}
