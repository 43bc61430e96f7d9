//! Counts of what is unread that an answer could not wait for, made in the background, and long ones that are written
//! down so that nobody has to make them again.
//!
//! One count goes on for a moment, and then it is the turn of the next. Nothing of this is in the store before it is
//! done: after a restart whoever syncs asks anew.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::Mutex;
use ruma::{OwnedUserId, UserId};
use store::{Read as _, Snapshot, Tx};
use tokio::sync::Notify;

use super::unread::{Budget, Counter, Known, read_up_to};
use crate::App;
use crate::blocking;
use crate::error::Result;
use crate::rooms::read::RoomReader;
use crate::schema::{MEMBERSHIPS, MembershipState, RoomNr, UNREAD, UNREAD_LOG, Unread};

/// So long (about) all counts of an answer may take. Tests have less patience.
const ANSWER: Duration = Duration::from_millis(20);
/// The first answer of a client is made where it is in nobody's way: there it may be so many times as much.
const FIRST: u64 = 20;
/// So long a count goes on before it is another one's turn.
const SLICE: Duration = Duration::from_millis(20);
/// More do not wait: who syncs later asks again.
const MAX_WAITING: usize = 4_096;
const PAUSE: Duration = Duration::from_secs(5);

/// What waits to be counted.
pub struct Recounts {
    waiting: Mutex<Waiting>,
    wake: Notify,
    answer_ns: AtomicU64,
}

#[derive(Default)]
struct Waiting {
    order: VecDeque<Key>,
    work: HashMap<Key, Work>,
}

type Key = (OwnedUserId, RoomNr);

/// A count that goes on.
struct Work {
    known: Known,
    /// Somebody was told less than there is.
    tell: bool,
    /// As of this moment, once it was begun: so that it comes to an end however much happens.
    moment: Option<Snapshot>,
}

impl Default for Recounts {
    fn default() -> Self {
        let answer_ns = AtomicU64::new(ANSWER.as_nanos() as u64);
        Recounts { waiting: Mutex::default(), wake: Notify::new(), answer_ns }
    }
}

impl Recounts {
    /// What counting may cost one answer: the first one for a client, or any other.
    pub fn budget(&self, first: bool) -> Budget {
        let answer = Duration::from_nanos(self.answer_ns.load(Ordering::Relaxed));
        Budget::new(answer.saturating_mul(if first { FIRST as u32 } else { 1 }))
    }

    /// Lets answers do less themselves.
    #[cfg(test)]
    pub fn set_patience(&self, patience: Duration) {
        self.answer_ns.store(patience.as_nanos() as u64, Ordering::Relaxed);
    }

    /// This count is to be brought to its end and written down.
    pub fn put(&self, user_id: &UserId, room: RoomNr, known: Known) {
        let tell = known.is_partial();
        self.put_work((user_id.to_owned(), room), Work { known, tell, moment: None });
    }

    fn put_work(&self, key: Key, mut work: Work) {
        let mut waiting = self.waiting.lock();
        let Waiting { order, work: all } = &mut *waiting;
        match all.get_mut(&key) {
            Some(before) => {
                work.tell |= before.tell;
                if before.known.is_beyond(&work.known) {
                    before.tell = work.tell;
                } else {
                    *before = work;
                }
            }
            None if order.len() >= MAX_WAITING => {}
            None => {
                order.push_back(key.clone());
                all.insert(key, work);
            }
        }
        drop(waiting);
        self.wake.notify_one();
    }

    fn take(&self) -> Option<(Key, Work)> {
        let mut waiting = self.waiting.lock();
        let key = waiting.order.pop_front()?;
        let work = waiting.work.remove(&key)?;
        Some((key, work))
    }
}

/// Counts until the server stops.
pub async fn run(app: App) {
    loop {
        while !app.shutdown.is_cancelled()
            && let Err(cause) = drain(&app).await
        {
            tracing::warn!(%cause, "counting pauses");
            tokio::select! {
                () = app.shutdown.cancelled() => {}
                () = app.clock.sleep(PAUSE) => {}
            }
        }
        tokio::select! {
            () = app.shutdown.cancelled() => return,
            () = app.sync.recounts.wake.notified() => {}
        }
    }
}

/// Counts until nothing waits.
pub async fn drain(app: &App) -> Result<()> {
    while !app.shutdown.is_cancelled()
        && let Some((key, work)) = app.sync.recounts.take()
    {
        let counted = {
            let (app, key) = (app.clone(), key.clone());
            blocking::run(move || carry_on(&app, &key, work)).await??
        };
        match counted {
            Some(work) if work.known.is_partial() => app.sync.recounts.put_work(key, work),
            Some(work) => write(app, &key, &work).await?,
            None => {}
        }
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// Carries a count on for a moment. `None`: nobody needs it any more.
fn carry_on(app: &App, (user_id, room): &Key, work: Work) -> Result<Option<Work>> {
    let Work { known, tell, moment } = work;
    let snapshot = moment.unwrap_or_else(|| app.store.snapshot());
    let rooms = RoomReader::new(&app.room_cache, &snapshot);
    let member = rooms.membership(user_id.as_str(), *room)?.filter(|member| member.state == MembershipState::Join);
    let (Some(member), Some(head)) = (member, rooms.head_of(*room)?) else { return Ok(None) };
    let tastes = app.sync.live.tastes(&snapshot, user_id, None)?;
    let read = read_up_to(rooms, user_id, *room, &member)?;
    let (recent, recounts, budget) = (&app.sync.recent, &app.sync.recounts, Budget::new(SLICE));
    let counter = Counter { rooms, recent, user_id, tastes: &tastes, recounts, budget: &budget };
    let mut known = counter.resume(Some(known), read);
    counter.carry_on(&mut known, *room, &head)?;
    Ok(Some(Work { known, tell, moment: Some(snapshot) }))
}

/// Writes a count down, and says so if somebody was told less.
async fn write(app: &App, (user_id, room): &Key, work: &Work) -> Result<()> {
    let user = user_id.as_str();
    let row = Unread::from(&work.known);
    let write = |tx: &mut Tx| -> Result<()> {
        // Who leaves takes their row away; who has left meanwhile gets none.
        if tx.get(&MEMBERSHIPS, (user, *room))?.is_none_or(|member| member.state != MembershipState::Join) {
            return Ok(());
        }
        tx.put(&UNREAD, (user, *room), &row);
        if work.tell {
            let before = tx.scan_guarded(&UNREAD_LOG, UNREAD_LOG.prefix((user,)))?;
            for ((_, at), _) in before.iter().filter(|(_, of)| of == room) {
                tx.delete(&UNREAD_LOG, (user, *at));
            }
            let at = tx.next_pos();
            tx.put(&UNREAD_LOG, (user, at), room);
        }
        Ok(())
    };
    app.store.transact(write).await.map(|_| ())
}

/// The rooms whose counts became right after a version.
pub fn counted_since(snapshot: &Snapshot, user_id: &UserId, since: store::Pos) -> Result<Vec<RoomNr>> {
    let user = user_id.as_str();
    let rows = snapshot.scan(&UNREAD_LOG, UNREAD_LOG.prefix((user,)).after((user, since)));
    Ok(rows.map(|row| row.map(|(_, room)| room)).collect::<store::Result<_>>()?)
}
