//! Work that a request decided on and that goes on after its answer, also after a restart: the rows of `JOBS`.
//!
//! One runner goes round: each job gets a slice of its work, and what is left of it is written back. Doing a slice
//! twice (after a crash) changes nothing. What fails in one room is skipped. A job that fails as a whole is put behind
//! the others and tried again, each time later; when the store cannot write, the round ends and is tried again soon.

pub mod tasks;

use std::time::Duration;

use ruma::{OwnedRoomId, RoomId, UserId};
use store::{Pos, Read, Tx};

use crate::App;
use crate::auth::devices;
use crate::e2ee::{self, backup};
use crate::error::{Error, Result};
use crate::rooms::{membership, remove, upgrade};
use crate::schema::{DEVICES, HEADS, JOBS, Job, MEMBERSHIPS, MembershipState, RoomNr, topic};

/// Rooms that a job may change before it is another job's turn.
const SLICE: usize = 32;
const PAUSE: Duration = Duration::from_secs(5);
/// How long a job that failed waits: this long after the first failure, twice as long after each further one.
const FIRST_WAIT_MS: u64 = 5_000;
const LONGEST_WAIT_MS: u64 = 6 * 60 * 60 * 1000;

/// When there is something to do again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Next {
    Now,
    /// At this time, in milliseconds since the epoch.
    At(u64),
    /// When there are new jobs.
    WhenTold,
}

/// Runs jobs until the server stops.
pub async fn run(app: App) {
    let hub = app.store.hub();
    let signal = hub.signal();
    hub.attach(topic::jobs(), &signal);
    let work = async {
        loop {
            // What is written while we look is seen next time.
            let (seen, nudges) = (app.store.tip(), signal.nudges());
            let next = match round(&app).await {
                Ok(next) => next,
                Err(cause) => {
                    tracing::warn!(%cause, "background jobs pause");
                    app.clock.sleep(PAUSE).await;
                    continue;
                }
            };
            let told = signal.changed(seen, nudges);
            match next {
                Next::Now => {}
                Next::WhenTold => told.await,
                Next::At(ts) => {
                    let wait = Duration::from_millis(ts.saturating_sub(app.clock.now_ms()));
                    tokio::select! {
                        () = told => {}
                        () = app.clock.sleep(wait) => {}
                    }
                }
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = app.shutdown.cancelled() => {}
    }
}

/// Runs jobs until there are none that can be done now.
pub async fn drain(app: &App) -> Result<()> {
    while round(app).await? == Next::Now {}
    Ok(())
}

/// A slice of every job whose time has come.
async fn round(app: &App) -> Result<Next> {
    let mut next = Next::WhenTold;
    for (at, job) in jobs(app)? {
        let (job, attempts, due_ts) = match job {
            Job::Later { job, attempts, due_ts } => (*job, attempts, due_ts),
            job => (job, 0, 0),
        };
        if due_ts > app.clock.now_ms() {
            next = next.min(Next::At(due_ts));
            continue;
        }
        match slice(app, at, &job).await {
            Ok(()) => next = Next::Now,
            Err(cause) if is_of_the_store(&cause) => return Err(cause),
            Err(cause) => next = next.min(put_behind(app, at, job, attempts, &cause).await?),
        }
    }
    Ok(next)
}

/// The jobs in their order. One that cannot be read (a newer version of the server may have left it) holds up nobody.
fn jobs(app: &App) -> Result<Vec<(Pos, Job)>> {
    let read = app.store.snapshot();
    let mut jobs = Vec::new();
    for at in read.scan(&JOBS, JOBS.all()).keys() {
        let at = at?;
        match read.get(&JOBS, at) {
            Ok(job) => jobs.extend(job.map(|job| (at, job))),
            Err(cause @ store::Error::Corrupt { .. }) => tracing::warn!(%cause, "a background job is left alone"),
            Err(cause) => return Err(cause.into()),
        }
    }
    Ok(jobs)
}

/// Writes what is left of a job in its place.
fn replace(tx: &mut Tx, at: Pos, rest: Option<&Job>) {
    match rest {
        Some(rest) => tx.put(&JOBS, at, rest),
        None => tx.delete(&JOBS, at),
    }
}

/// A job failed: it is tried again later, and the others go first.
async fn put_behind(app: &App, at: Pos, job: Job, attempts: u32, cause: &Error) -> Result<Next> {
    let wait_ms = FIRST_WAIT_MS.saturating_mul(1 << attempts.min(32)).min(LONGEST_WAIT_MS);
    let due_ts = app.clock.now_ms().saturating_add(wait_ms);
    tracing::error!(%cause, ?job, attempts, wait_ms, "a background job failed and is tried again later");
    app.metrics.failed_jobs.inc();
    let later = Job::Later { job: Box::new(job), attempts: attempts.saturating_add(1), due_ts };
    let put = |tx: &mut Tx| -> Result<()> {
        tx.delete(&JOBS, at);
        let behind = tx.next_pos();
        tx.put(&JOBS, behind, &later);
        Ok(())
    };
    app.store.transact(put).await?;
    Ok(Next::At(due_ts))
}

/// Whether the store cannot write now, so that no other job would get any further either.
fn is_of_the_store(cause: &Error) -> bool {
    matches!(cause.status().as_u16(), 503 | 507)
}

/// Does a part of a job, and writes what is left of it.
async fn slice(app: &App, at: Pos, job: &Job) -> Result<()> {
    if tasks::is_one(job) {
        return tasks::slice(app, at, job).await;
    }
    let rest = part(app, job).await?;
    let write = |tx: &mut Tx| -> Result<()> {
        replace(tx, at, rest.as_ref());
        Ok(())
    };
    app.store.transact(write).await.map(drop)
}

/// Does a part of a job that is no task; what is left of it.
async fn part(app: &App, job: &Job) -> Result<Option<Job>> {
    match job {
        Job::PropagateProfile { user_id, from } => {
            let joined = |state| state == MembershipState::Join;
            let user = UserId::parse(user_id).map_err(Error::internal)?;
            let (rooms, next) = rooms(app, user_id, *from, joined)?;
            for room_id in rooms {
                skip_failure(&room_id, membership::refresh_profile(app, &user, &room_id).await)?;
            }
            Ok(next.map(|from| Job::PropagateProfile { user_id: user_id.clone(), from }))
        }
        Job::LeaveAll { user_id, from } => {
            let inside = |state| !matches!(state, MembershipState::Leave | MembershipState::Ban);
            let user = UserId::parse(user_id).map_err(Error::internal)?;
            if *from == 0 {
                // Before the rooms are left: who is in them hears of it.
                app.store.transact(|tx| e2ee::forget(tx, user_id)).await?;
            }
            let (rooms, next) = rooms(app, user_id, *from, inside)?;
            for room_id in rooms {
                skip_failure(&room_id, membership::leave(app, &user, &room_id).await)?;
            }
            Ok(next.map(|from| Job::LeaveAll { user_id: user_id.clone(), from }))
        }
        Job::CopyBans { from, to, by, after } => {
            let room = |id: &str| RoomId::parse(id).map_err(Error::internal);
            let user = UserId::parse(by).map_err(Error::internal)?;
            let next = upgrade::copy_bans(app, &room(from)?, &room(to)?, &user, *after).await?;
            let rest = |after| Job::CopyBans { from: from.clone(), to: to.clone(), by: by.clone(), after };
            Ok(next.map(rest))
        }
        Job::LeaveGuests { room_id } => {
            let room_id = RoomId::parse(room_id).map_err(Error::internal)?;
            let mut left = 0;
            for guest in membership::unwanted_guests(app, &room_id)? {
                if left == SLICE {
                    return Ok(Some(job.clone()));
                }
                // Who cannot leave counts for nothing: another round would only meet them again.
                let outcome = membership::leave(app, &guest, &room_id).await;
                left += usize::from(outcome.is_ok());
                skip_failure(&room_id, outcome)?;
            }
            Ok(None)
        }
        Job::ForgetDevice { user_id, device_id } => {
            let forget = |tx: &mut Tx| -> Result<bool> {
                // Who has come back under the same name has what was left for its own.
                Ok(tx.contains(&DEVICES, (user_id, device_id))? || devices::forget(tx, user_id, device_id)?)
            };
            let done = app.store.transact(forget).await?.value;
            Ok((!done).then(|| job.clone()))
        }
        Job::ForgetBackup { user_id, version } => {
            let done = app.store.transact(|tx| backup::forget(tx, user_id, *version)).await?.value;
            Ok((!done).then(|| job.clone()))
        }
        Job::ForgetDevices { user_id } => {
            let done = app.store.transact(|tx| devices::delete_void(tx, user_id)).await?.value;
            Ok((!done).then(|| job.clone()))
        }
        Job::ForgetBackups { user_id, from } => {
            let next = app.store.transact(|tx| backup::delete_from(tx, user_id, *from)).await?.value;
            Ok(next.map(|from| Job::ForgetBackups { user_id: user_id.clone(), from }))
        }
        Job::ForgetClosed { room } => {
            let done = app.store.transact(|tx| remove::forget_closed(tx, *room)).await?.value;
            Ok((!done).then(|| job.clone()))
        }
        Job::DeleteRoom { .. } | Job::PurgeHistory { .. } | Job::RedactUser { .. } => {
            Err(Error::internal("a task is no other job"))
        }
        Job::Later { job, .. } => Ok(Some(Job::clone(job))),
    }
}

/// The next rooms of a user, and where to go on after them.
fn rooms(
    app: &App,
    user_id: &str,
    from: RoomNr,
    wanted: impl Fn(MembershipState) -> bool,
) -> Result<(Vec<OwnedRoomId>, Option<RoomNr>)> {
    let read = app.store.snapshot();
    let mut found = Vec::new();
    for row in read.scan(&MEMBERSHIPS, MEMBERSHIPS.prefix((user_id,)).from((user_id, from))) {
        let ((_, room), membership) = row?;
        if !wanted(membership.state) {
            continue;
        }
        if let Some(head) = read.get(&HEADS, room)? {
            found.push(RoomId::parse(head.room_id).map_err(Error::internal)?);
        }
        if found.len() == SLICE {
            return Ok((found, room.checked_add(1)));
        }
    }
    Ok((found, None))
}

fn skip_failure(room_id: &RoomId, outcome: Result<()>) -> Result<()> {
    match outcome {
        Err(cause) if is_of_the_store(&cause) => Err(cause),
        Err(cause) => {
            tracing::warn!(%room_id, %cause, "a background job skips a room");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{Server, User};

    async fn room(user: &User) -> String {
        let body = json!({ "preset": "public_chat" });
        let answer = user.client.post("/_matrix/client/v3/createRoom", body).await;
        answer.json()["room_id"].as_str().unwrap().to_owned()
    }

    async fn join(user: &User, room_id: &str) {
        let answer = user.client.post(&format!("/_matrix/client/v3/join/{room_id}"), json!({})).await;
        assert_eq!(answer.status, 200, "{:?}", answer.json());
    }

    fn membership(server: &Server, user: &User, room_id: &str) -> MembershipState {
        let room = crate::schema::room_nr(<&RoomId>::try_from(room_id).unwrap());
        let read = server.app.store.snapshot();
        read.get(&MEMBERSHIPS, (user.user_id.as_str(), room)).unwrap().unwrap().state
    }

    fn last_event(server: &Server, room_id: &str) -> String {
        let room = crate::schema::room_nr(<&RoomId>::try_from(room_id).unwrap());
        let read = server.app.store.snapshot();
        let head = read.get(&HEADS, room).unwrap().unwrap();
        let event = read.get(&crate::schema::EVENTS, (room, head.last)).unwrap().unwrap();
        String::from_utf8_lossy(event.client()).into_owned()
    }

    #[tokio::test]
    async fn pitfall_068_a_new_name_reaches_every_room_that_takes_it() {
        let server = Server::default();
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let mut rooms = Vec::new();
        for _ in 0..SLICE + 2 {
            rooms.push(room(&alice).await);
        }
        join(&bob, &rooms[0]).await;
        let banned = rooms.pop().unwrap();
        join(&bob, &banned).await;
        let ban = json!({ "user_id": bob.user_id });
        alice.client.post(&format!("/_matrix/client/v3/rooms/{banned}/ban"), ban).await;
        let path = format!("/_matrix/client/v3/profile/{}/displayname", bob.user_id);
        assert_eq!(bob.client.put(&path, json!({ "displayname": "Bobby" })).await.status, 200);
        let path = format!("/_matrix/client/v3/profile/{}/displayname", alice.user_id);
        assert_eq!(alice.client.put(&path, json!({ "displayname": "Queen" })).await.status, 200);
        drain(&server.app).await.unwrap();
        assert!(!last_event(&server, &banned).contains("Bobby"));
        for room in &rooms {
            assert!(last_event(&server, room).contains("Queen"), "{room}");
        }
        assert_eq!(server.app.store.snapshot().count(&JOBS, JOBS.all()).unwrap(), 0);
    }

    #[tokio::test]
    async fn pitfall_016_who_closes_the_account_leaves_all_rooms_and_refuses_invites() {
        let server = Server::default();
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let (joined, invited) = (room(&alice).await, room(&alice).await);
        join(&bob, &joined).await;
        let invite = json!({ "user_id": bob.user_id });
        let answer = alice.client.post(&format!("/_matrix/client/v3/rooms/{invited}/invite"), invite).await;
        assert_eq!(answer.status, 200);
        let answer = bob.client.post("/_matrix/client/v3/account/deactivate", json!({ "auth": bob.auth() })).await;
        assert_eq!(answer.status, 200);
        assert_eq!(membership(&server, &bob, &joined), MembershipState::Join, "the answer does not wait");
        drain(&server.app).await.unwrap();
        assert_eq!(membership(&server, &bob, &joined), MembershipState::Leave);
        assert_eq!(membership(&server, &bob, &invited), MembershipState::Leave);
        assert_eq!(membership(&server, &alice, &joined), MembershipState::Join);
    }

    #[tokio::test]
    async fn the_runner_wakes_for_a_job_and_ends_with_the_server() {
        let server = Server::default();
        let alice = server.user("alice").await;
        let room = room(&alice).await;
        let runner = tokio::spawn(run(server.app.clone()));
        let path = format!("/_matrix/client/v3/profile/{}/displayname", alice.user_id);
        for name in ["One", "Two"] {
            alice.client.put(&path, json!({ "displayname": name })).await;
            tokio::time::timeout(Duration::from_secs(20), async {
                while !last_event(&server, &room).contains(name) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
            .await
            .unwrap();
        }
        server.app.shutdown.cancel();
        runner.await.unwrap();
    }

    #[tokio::test]
    async fn a_device_with_much_behind_it_is_forgotten_bit_by_bit() {
        use crate::schema::{TXNS, Txn};
        let server = Server::default();
        let alice = server.user("alice").await;
        for chunk in 0..5u16 {
            let mut batch = store::Batch::new();
            for nr in 0..1_000u16 {
                let mut hash = [0; 16];
                hash[..2].copy_from_slice(&chunk.to_be_bytes());
                hash[2..4].copy_from_slice(&nr.to_be_bytes());
                batch.put(&TXNS, (&alice.user_id, &alice.device_id, &hash), &Txn::new("", 0));
            }
            server.app.store.commit(batch).unwrap().durable().await.unwrap();
        }
        assert_eq!(alice.client.post("/_matrix/client/v3/logout", json!({})).await.status, 200);
        drain(&server.app).await.unwrap();
        assert_eq!(server.app.store.snapshot().count(&TXNS, TXNS.all()).unwrap(), 0);
    }

    /// Writes jobs into the store, as requests do.
    async fn put(app: &App, jobs: Vec<Job>) {
        let put = |tx: &mut Tx| -> Result<()> {
            for job in &jobs {
                let at = tx.next_pos();
                tx.put(&JOBS, at, job);
            }
            Ok(())
        };
        app.store.transact(put).await.unwrap();
    }

    fn left(app: &App) -> Vec<Job> {
        jobs(app).unwrap().into_iter().map(|(_, job)| job).collect()
    }

    #[tokio::test]
    async fn a_job_that_cannot_succeed_holds_up_no_other_and_is_tried_ever_later() {
        let server = Server::default();
        let alice = server.user("alice").await;
        let room = room(&alice).await;
        let app = &server.app;
        let hopeless = Job::PropagateProfile { user_id: "nobody".to_owned(), from: 0 };
        put(app, vec![hopeless.clone(), Job::LeaveAll { user_id: alice.user_id.clone(), from: 0 }]).await;
        drain(app).await.unwrap();
        assert_eq!(membership(&server, &alice, &room), MembershipState::Leave, "the job behind it is done");
        let mut due = Vec::new();
        for failed in 1..=4 {
            let [Job::Later { job, attempts, due_ts }] = &left(app)[..] else { panic!("one job waits") };
            assert_eq!((&**job, *attempts), (&hopeless, failed));
            assert_eq!(round(app).await.unwrap(), Next::At(*due_ts), "not before its time");
            due.push(due_ts - app.clock.now_ms());
            app.clock.advance(Duration::from_millis(due_ts - app.clock.now_ms()));
            assert!(matches!(round(app).await.unwrap(), Next::At(_)));
        }
        assert_eq!(due, [5_000, 10_000, 20_000, 40_000]);
        assert!(app.metrics.encode().contains("skerry_failed_jobs_total 5"), "{}", app.metrics.encode());
    }

    #[tokio::test]
    async fn a_job_that_nobody_understands_holds_up_no_other() {
        let server = Server::default();
        let alice = server.user("alice").await;
        let room = room(&alice).await;
        let app = &server.app;
        let unknown = |tx: &mut Tx| -> Result<()> {
            let mut bytes = store::ValueBuf::default();
            bytes.raw(&[1, 250]);
            let at = tx.next_pos();
            tx.put_buf(&JOBS, at, bytes);
            Ok(())
        };
        app.store.transact(unknown).await.unwrap();
        put(app, vec![Job::LeaveAll { user_id: alice.user_id.clone(), from: 0 }]).await;
        drain(app).await.unwrap();
        assert_eq!(membership(&server, &alice, &room), MembershipState::Leave);
    }

    #[tokio::test]
    async fn guests_who_cannot_leave_keep_nobody_busy() {
        let mut config = crate::testing::config();
        config.registration.guests = true;
        let server = Server::new(config);
        let alice = server.user("alice").await;
        let open = json!({ "type": "m.room.guest_access", "content": { "guest_access": "can_join" } });
        let body = json!({ "preset": "public_chat", "initial_state": [open] });
        let made = alice.client.post("/_matrix/client/v3/createRoom", body).await.json();
        let room_id = made["room_id"].as_str().unwrap();
        let nr = crate::schema::room_nr(<&RoomId>::try_from(room_id).unwrap());
        let mut stuck = store::Batch::new();
        let mut free = String::new();
        for _ in 0..=SLICE {
            let guest = server.client.post("/_matrix/client/v3/register?kind=guest", json!({})).await.json();
            let client = server.client.with_token(guest["access_token"].as_str().unwrap());
            let joined = client.post(&format!("/_matrix/client/v3/join/{room_id}"), json!({})).await;
            assert_eq!(joined.status, 200, "{:?}", joined.json());
            if !free.is_empty() {
                // A row that cannot be read: whatever is to be written on it fails.
                let mut bytes = store::ValueBuf::default();
                bytes.raw(&[250]);
                stuck.put_buf(&MEMBERSHIPS, (guest["user_id"].as_str().unwrap(), nr), bytes);
            } else {
                free = guest["user_id"].as_str().unwrap().to_owned();
            }
        }
        server.app.store.commit(stuck).unwrap().durable().await.unwrap();
        let path = format!("/_matrix/client/v3/rooms/{room_id}/state/m.room.guest_access");
        assert_eq!(alice.client.put(&path, json!({ "guest_access": "forbidden" })).await.status, 200);
        assert_eq!(left(&server.app).len(), 1);
        assert_eq!(round(&server.app).await.unwrap(), Next::Now);
        assert_eq!(left(&server.app), [], "nothing is done again that cannot be done");
        let read = server.app.store.snapshot();
        let free = read.get(&MEMBERSHIPS, (free.as_str(), nr)).unwrap().unwrap();
        assert_eq!(free.state, MembershipState::Leave);
    }
}
