//! Work that administrators ask for and then ask about: jobs that write down how they stand, and still know it for some
//! days after their end.

use ruma::{EventId, OwnedRoomId, OwnedUserId, RoomId, UserId};
use serde_json::{Map, Value, json};
use store::{Pos, Read, Tx};

use crate::App;
use crate::error::{Error, Result};
use crate::rooms::remove::{self, History};
use crate::rooms::{membership, moderate};
use crate::schema::{DeleteStep, EVENTS, HEADS, JOBS, Job, MEMBERSHIPS, TASKS, Task, TaskAction, TaskState, room_nr};

/// People who leave, or events that are redacted, before it is another job's turn.
const SLICE: usize = 32;
/// Events that are looked at for those of one user.
const LOOK: usize = 2_000;
/// The most names in a result.
const MAX_NAMES: usize = 500;
/// A task is forgotten so long after its end.
const KEEP_MS: u64 = 7 * 24 * 60 * 60 * 1000;
/// The most tasks that are forgotten when another one begins.
const MAX_FORGOTTEN: usize = 100;

/// What to do with a room that is closed.
#[derive(Clone, Debug)]
pub struct Removal {
    pub room_id: OwnedRoomId,
    /// Also delete all of it.
    pub purge: bool,
    /// Nobody may join it later on.
    pub block: bool,
    /// Where those go who are in it.
    pub new_room: Option<OwnedRoomId>,
}

/// Begins to close a room. Returns the ID to ask for.
pub async fn delete_room(app: &App, by: &str, removal: &Removal) -> Result<String> {
    let block = crate::schema::Block { user_id: by.to_owned(), ts: app.clock.now_ms() };
    let begin = |tx: &mut Tx| {
        let keep_block = removal.block || tx.contains(&crate::schema::BLOCKED_ROOMS, removal.room_id.as_str())?;
        // Nobody comes back while the room is being emptied.
        moderate::set_blocked(tx, &removal.room_id, Some(&block));
        let job = |task| Job::DeleteRoom {
            task,
            room_id: removal.room_id.to_string(),
            step: DeleteStep::Leave { after: String::new() },
            purge: removal.purge,
            keep_block,
            new_room: removal.new_room.as_ref().map(ToString::to_string),
        };
        let new_room_id = removal.new_room.clone();
        let result = json!({ "kicked_users": [], "failed_to_kick_users": [], "local_aliases": [],
            "new_room_id": new_room_id });
        begin(app, tx, TaskAction::DeleteRoom, removal.room_id.as_str(), &result, job)
    };
    Ok(app.store.transact(begin).await?.value)
}

/// Begins to delete the messages before an event. Returns the ID to ask for.
pub async fn purge_history(app: &App, room_id: &RoomId, before: Pos, local: bool) -> Result<String> {
    let job = |task| Job::PurgeHistory { task, room_id: room_id.to_string(), after: 0, before: before.0, local };
    let result = json!({ "deleted_events": 0 });
    let begin = |tx: &mut Tx| begin(app, tx, TaskAction::PurgeHistory, room_id.as_str(), &result, job);
    Ok(app.store.transact(begin).await?.value)
}

/// Begins to redact the newest of what a user said, in some rooms or in all that they are or were in. Returns the ID to
/// ask for.
pub async fn redact_user(
    app: &App,
    user_id: &UserId,
    rooms: &[OwnedRoomId],
    reason: Option<&str>,
    limit: u64,
) -> Result<String> {
    let job = |task, rooms: Vec<String>| Job::RedactUser {
        task,
        user_id: user_id.to_string(),
        reason: reason.map(str::to_owned),
        rooms,
        before: u64::MAX >> 1,
        left: limit,
    };
    let result = json!({ "redacted": 0, "failed_redactions": {} });
    let begin = |tx: &mut Tx| {
        let mut wanted: Vec<String> = rooms.iter().map(ToString::to_string).collect();
        if wanted.is_empty() {
            wanted = all_rooms(tx.unchecked(), user_id)?;
        }
        begin(app, tx, TaskAction::RedactUser, user_id.as_str(), &result, |task| job(task, wanted))
    };
    Ok(app.store.transact(begin).await?.value)
}

fn all_rooms(read: &impl Read, user_id: &UserId) -> Result<Vec<String>> {
    let mut rooms = Vec::new();
    for row in read.scan(&MEMBERSHIPS, MEMBERSHIPS.prefix((user_id.as_str(),))) {
        let ((_, room), _) = row?;
        rooms.extend(read.get(&HEADS, room)?.map(|head| head.room_id));
    }
    Ok(rooms)
}

fn begin(
    app: &App,
    tx: &mut Tx,
    action: TaskAction,
    resource: &str,
    result: &Value,
    job: impl FnOnce(String) -> Job,
) -> Result<String> {
    let now = app.clock.now_ms();
    let id = app.rng.alphanumeric(16);
    forget_old(tx, now)?;
    let task = Task {
        action,
        state: TaskState::Scheduled,
        resource: resource.to_owned(),
        started_ts: now,
        changed_ts: now,
        result: result.to_string(),
        error: None,
    };
    tx.put(&TASKS, &id, &task);
    let at = tx.next_pos();
    tx.put(&JOBS, at, &job(id.clone()));
    Ok(id)
}

fn forget_old(tx: &mut Tx, now: u64) -> Result<()> {
    let mut old = Vec::new();
    for row in tx.unchecked().scan(&TASKS, TASKS.all()) {
        let (id, task) = row?;
        let ended = matches!(task.state, TaskState::Complete | TaskState::Failed);
        if ended && task.changed_ts.saturating_add(KEEP_MS) < now {
            old.push(id);
        }
        if old.len() == MAX_FORGOTTEN {
            break;
        }
    }
    old.iter().for_each(|id| tx.delete(&TASKS, id));
    Ok(())
}

// ---- doing it ----------------------------------------------------------------------------------------------------

/// Does a part of a job of this kind; what is left of it. What goes wrong ends the task, unless it may go better later.
pub(super) async fn slice(app: &App, job: &Job) -> Result<Option<Job>> {
    let (task, outcome) = match job {
        Job::DeleteRoom { task, .. } => (task, delete_slice(app, job).await),
        Job::PurgeHistory { task, .. } => (task, purge_slice(app, job).await),
        Job::RedactUser { task, .. } => (task, redact_slice(app, job).await),
        _ => return Err(Error::internal("a job that is no task")),
    };
    let (rest, state, error) = match outcome {
        Err(cause) if matches!(cause.status().as_u16(), 503 | 507) => return Err(cause),
        Err(cause) => (None, TaskState::Failed, Some(cause.message().to_owned())),
        Ok(Some(rest)) => (Some(rest), TaskState::Active, None),
        Ok(None) => (None, TaskState::Complete, None),
    };
    note(app, task, |known| {
        known.state = state;
        known.error.clone_from(&error);
    })
    .await?;
    Ok(rest)
}

/// Writes down how a task stands.
async fn note(app: &App, id: &str, change: impl Fn(&mut Task) + Send + Sync) -> Result<()> {
    let note = |tx: &mut Tx| -> Result<()> {
        if let Some(mut task) = tx.get(&TASKS, id)? {
            change(&mut task);
            task.changed_ts = app.clock.now_ms();
            tx.put(&TASKS, id, &task);
        }
        Ok(())
    };
    app.store.transact(note).await.map(drop)
}

/// Writes down a part of a task's result.
async fn note_result(app: &App, id: &str, change: impl Fn(&mut Map<String, Value>) + Send + Sync) -> Result<()> {
    note(app, id, |task| {
        let mut result = serde_json::from_str::<Map<String, Value>>(&task.result).unwrap_or_default();
        change(&mut result);
        task.result = Value::Object(result).to_string();
    })
    .await
}

/// Adds names to a list of a result, as far as there is room.
fn add_names(result: &mut Map<String, Value>, list: &str, names: &[String]) {
    if let Some(list) = result.get_mut(list).and_then(Value::as_array_mut) {
        let room = MAX_NAMES.saturating_sub(list.len());
        list.extend(names.iter().take(room).map(|name| json!(name)));
    }
}

async fn delete_slice(app: &App, job: &Job) -> Result<Option<Job>> {
    let Job::DeleteRoom { task, room_id, step, purge, keep_block, new_room } = job else { return Ok(None) };
    let room_id = RoomId::parse(room_id).map_err(Error::internal)?;
    let new_room = new_room.as_ref().map(|id| RoomId::parse(id).map_err(Error::internal)).transpose()?;
    let next = match step {
        DeleteStep::Leave { after } => {
            let members = remove::next_members(app, &room_id, after, SLICE)?;
            empty(app, task, &room_id, new_room.as_deref(), &members).await?;
            match members.last().filter(|_| members.len() == SLICE) {
                Some((last, _)) => Some(DeleteStep::Leave { after: last.to_string() }),
                None => {
                    let unlist = |tx: &mut Tx| remove::unlist(tx, &room_id, new_room.as_deref());
                    let names = app.store.transact(unlist).await?.value;
                    note_result(app, task, |result| add_names(result, "local_aliases", &names)).await?;
                    purge.then_some(DeleteStep::Forget { from: 0 })
                }
            }
        }
        DeleteStep::Forget { from } => {
            let forget = |tx: &mut Tx| remove::forget_members(app, tx, &room_id, Pos(*from));
            let next = app.store.transact(forget).await?.value;
            Some(next.map_or(DeleteStep::Purge, |next| DeleteStep::Forget { from: next.0 }))
        }
        DeleteStep::Purge => {
            let done = app.store.transact(|tx| remove::purge_some(tx, &room_id)).await?.value;
            (!done).then_some(DeleteStep::Purge)
        }
    };
    let Some(step) = next else {
        if !keep_block {
            let unblock = |tx: &mut Tx| -> Result<()> {
                moderate::set_blocked(tx, &room_id, None);
                Ok(())
            };
            app.store.transact(unblock).await?;
        }
        return Ok(None);
    };
    let mut rest = job.clone();
    if let Job::DeleteRoom { step: rest, .. } = &mut rest {
        *rest = step;
    }
    Ok(Some(rest))
}

/// Makes people leave a room, and those who were in it join another one, if there is one.
async fn empty(
    app: &App,
    task: &str,
    room_id: &RoomId,
    new_room: Option<&RoomId>,
    members: &[(OwnedUserId, bool)],
) -> Result<()> {
    let (mut left, mut failed) = (Vec::new(), Vec::new());
    for (user_id, joined) in members {
        let outcome = membership::leave(app, user_id, room_id).await;
        super::skip_failure(room_id, outcome.as_ref().copied().map_err(again))?;
        let list = if outcome.is_ok() { &mut left } else { &mut failed };
        list.push(user_id.to_string());
        if let Some(new_room) = new_room.filter(|_| *joined && outcome.is_ok()) {
            super::skip_failure(new_room, moderate::join(app, None, user_id, new_room).await)?;
        }
    }
    note_result(app, task, |result| {
        add_names(result, "kicked_users", &left);
        add_names(result, "failed_to_kick_users", &failed);
    })
    .await
}

async fn purge_slice(app: &App, job: &Job) -> Result<Option<Job>> {
    let Job::PurgeHistory { task, room_id, after, before, local } = job else { return Ok(None) };
    let room_id = RoomId::parse(room_id).map_err(Error::internal)?;
    let history = History { after: Pos(*after), before: Pos(*before), local: *local };
    let purge = |tx: &mut Tx| remove::purge_history(app, tx, &room_id, history);
    let (gone, next) = app.store.transact(purge).await?.value;
    note_result(app, task, |result| add(result, "deleted_events", gone)).await?;
    Ok(next.map(|next| Job::PurgeHistory {
        task: task.clone(),
        room_id: room_id.to_string(),
        after: next.0,
        before: *before,
        local: *local,
    }))
}

fn add(result: &mut Map<String, Value>, figure: &str, more: usize) {
    let before = result.get(figure).and_then(Value::as_u64).unwrap_or_default();
    result.insert(figure.to_owned(), json!(before + more as u64));
}

async fn redact_slice(app: &App, job: &Job) -> Result<Option<Job>> {
    let Job::RedactUser { task, user_id, reason, rooms, before, left } = job else { return Ok(None) };
    let mut rooms = rooms.clone();
    let Some(room_id) = rooms.last().cloned() else { return Ok(None) };
    let room_id = RoomId::parse(room_id).map_err(Error::internal)?;
    let most = SLICE.min(usize::try_from(*left).unwrap_or(SLICE));
    let (said, next) = said_by(app, &room_id, user_id, *before, most)?;
    let mut failed = Map::new();
    for event_id in &said {
        if let Err(cause) = redact(app, &room_id, event_id, reason.as_deref()).await {
            failed.insert(event_id.clone(), json!(cause.message()));
        }
    }
    let redacted = said.len() - failed.len();
    note_result(app, task, |result| {
        add(result, "redacted", redacted);
        if let Some(known) = result.get_mut("failed_redactions").and_then(Value::as_object_mut) {
            let room = MAX_NAMES.saturating_sub(known.len());
            known.extend(failed.clone().into_iter().take(room));
        }
    })
    .await?;
    if next.is_none() {
        rooms.pop();
    }
    let left = left.saturating_sub(said.len() as u64);
    if rooms.is_empty() || left == 0 {
        return Ok(None);
    }
    let (task, user_id, reason) = (task.clone(), user_id.clone(), reason.clone());
    let before = next.unwrap_or(u64::MAX >> 1);
    Ok(Some(Job::RedactUser { task, user_id, reason, rooms, before, left }))
}

async fn redact(app: &App, room_id: &RoomId, event_id: &str, reason: Option<&str>) -> Result<()> {
    let event_id = EventId::parse(event_id).map_err(Error::internal)?;
    let outcome = moderate::redact(app, room_id, &event_id, reason).await;
    super::skip_failure(room_id, outcome.as_ref().copied().map_err(again))?;
    outcome
}

/// The newest of what a user said in a room before a position, and before which one to go on.
fn said_by(app: &App, room_id: &RoomId, user_id: &str, before: u64, most: usize) -> Result<(Vec<String>, Option<u64>)> {
    let (read, room) = (app.store.snapshot(), room_nr(room_id));
    let span = EVENTS.prefix((room,)).before((room, Pos(before))).reversed().limit(LOOK);
    let (mut said, mut looked) = (Vec::new(), 0);
    for row in read.scan(&EVENTS, span) {
        let ((_, at), event) = row?;
        looked += 1;
        let counts = event.sender() == user_id
            && event.state_key().is_none()
            && event.redacted_by().is_none()
            && event.kind() != "m.room.redaction";
        if counts {
            said.push(event.event_id().to_owned());
        }
        if said.len() == most || looked == LOOK {
            return Ok((said, Some(at.0)));
        }
    }
    Ok((said, None))
}

/// The same error once more: what is to be done about it is decided in two places.
fn again(error: &Error) -> Error {
    Error::unknown(error.message().to_owned()).with_status(error.status())
}
