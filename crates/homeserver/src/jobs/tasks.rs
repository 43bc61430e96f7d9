//! Work that administrators ask for and then ask about: jobs that write down how they stand, and still know it for some
//! days after their end.

use ruma::{EventId, OwnedRoomId, RoomId, UserId};
use serde_json::{Map, Value, json};
use store::{Pos, Read, Tx, journal};

use crate::App;
use crate::error::{Error, Result};
use crate::rooms::remove::{self, History};
use crate::rooms::{membership, moderate};
use crate::schema::{
    BLOCKED_ROOMS, Block, DeleteStep, EVENTS, HEADS, JOBS, Job, MEMBERSHIPS, Rooms, SERVICE_FOLLOWERS, TASKS, Task,
    TaskAction, TaskState, room_nr,
};

/// People who leave, or events that are redacted, before it is another job's turn.
const SLICE: usize = 32;
/// Events that are looked at for those of one user.
const LOOK: usize = 2_000;
/// The most bytes of a list in a result: all lists of one have to fit into a row.
const MAX_LIST_BYTES: usize = 24 * 1024;
/// The most rooms that may be named, and the most bytes of a reason: a job has to fit into a row, too.
pub const MAX_ROOMS: usize = 200;
pub const MAX_REASON_BYTES: usize = 8 * 1024;
/// Application services that are away hold up the deletion of a room for so long.
const MAX_TELL_MS: u64 = 3 * 24 * 60 * 60 * 1000;
/// How often to look whether they have been told.
const TELL_PAUSE_MS: u64 = 1_000;
/// A task is forgotten so long after its end.
const KEEP_MS: u64 = 7 * 24 * 60 * 60 * 1000;
/// The most tasks that are forgotten when another one begins.
const MAX_FORGOTTEN: usize = 100;

/// Before this position lies everything.
const NEWEST: u64 = u64::MAX >> 1;

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
    let begin = |tx: &mut Tx| {
        let job = |task| Job::DeleteRoom {
            task,
            room_id: removal.room_id.to_string(),
            step: DeleteStep::Leave { after: 0, through: 0 },
            purge: removal.purge,
            new_room: removal.new_room.as_ref().map(ToString::to_string),
        };
        let new_room_id = removal.new_room.clone();
        let result = json!({ "kicked_users": [], "failed_to_kick_users": [], "local_aliases": [],
            "new_room_id": new_room_id });
        let task = begin(app, tx, TaskAction::DeleteRoom, removal.room_id.as_str(), &result, job)?;
        // Nobody comes back while the room is being emptied.
        let known = tx.get(&BLOCKED_ROOMS, removal.room_id.as_str())?;
        if removal.block || known.is_none_or(|block| block.task.is_some()) {
            let only = Some(task.clone()).filter(|_| !removal.block);
            let block = Block { user_id: by.to_owned(), ts: app.clock.now_ms(), task: only };
            moderate::set_blocked(tx, &removal.room_id, Some(&block));
        }
        Ok::<_, Error>(task)
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
    let job = |task| Job::RedactUser {
        task,
        user_id: user_id.to_string(),
        reason: reason.map(str::to_owned),
        rooms: match rooms {
            [] => Rooms::From(0),
            rooms => Rooms::Named(rooms.iter().map(ToString::to_string).collect()),
        },
        before: NEWEST,
        left: limit,
    };
    let result = json!({ "redacted": 0, "failed_redactions": {} });
    let begin = |tx: &mut Tx| begin(app, tx, TaskAction::RedactUser, user_id.as_str(), &result, job);
    Ok(app.store.transact(begin).await?.value)
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

/// A part of a task that was done: what is left, and what it adds to the result.
struct Part {
    rest: Option<Job>,
    found: Box<Found>,
}

type Found = dyn Fn(&mut Map<String, Value>) + Send + Sync;

impl From<Option<Job>> for Part {
    fn from(rest: Option<Job>) -> Self {
        Part { rest, found: Box::new(|_| {}) }
    }
}

/// Whether a job is one that somebody asks about.
pub(super) fn is_one(job: &Job) -> bool {
    matches!(job, Job::DeleteRoom { .. } | Job::PurgeHistory { .. } | Job::RedactUser { .. })
}

/// Does a part of a job of this kind. What came of it and what is left are written in one commit: no part is done or
/// counted twice because of a stop between the two. What goes wrong ends the task, unless it may go better later.
pub(super) async fn slice(app: &App, at: Pos, job: &Job) -> Result<()> {
    let (task, outcome) = match job {
        Job::DeleteRoom { task, .. } => (task, delete_slice(app, job).await),
        Job::PurgeHistory { task, .. } => (task, purge_slice(app, job).await.map(Part::from)),
        Job::RedactUser { task, .. } => (task, redact_slice(app, job).await),
        _ => return Err(Error::internal("a job that is no task")),
    };
    let (part, error) = match outcome {
        Err(cause) if matches!(cause.status().as_u16(), 503 | 507) => return Err(cause),
        Err(cause) => (Part::from(None), Some(cause.message().to_owned())),
        Ok(part) => (part, None),
    };
    let state = match (&part.rest, &error) {
        (_, Some(_)) => TaskState::Failed,
        (Some(_), None) => TaskState::Active,
        (None, None) => TaskState::Complete,
    };
    let write = |tx: &mut Tx| -> Result<()> {
        change_result(app, tx, task, &part.found)?;
        change(app, tx, task, |known| {
            known.state = state;
            known.error.clone_from(&error);
        })?;
        super::replace(tx, at, part.rest.as_ref());
        match job {
            Job::DeleteRoom { room_id, .. } if part.rest.is_none() => unblock(tx, room_id, task),
            _ => Ok(()),
        }
    };
    app.store.transact(write).await.map(drop)
}

/// Lets people in again, if it was this task alone that kept them out.
fn unblock(tx: &mut Tx, room_id: &str, task: &str) -> Result<()> {
    if tx.get(&BLOCKED_ROOMS, room_id)?.is_some_and(|block| block.task.as_deref() == Some(task)) {
        tx.delete(&BLOCKED_ROOMS, room_id);
    }
    Ok(())
}

/// Writes down how a task stands.
fn change(app: &App, tx: &mut Tx, id: &str, change: impl Fn(&mut Task)) -> Result<()> {
    if let Some(mut task) = tx.get(&TASKS, id)? {
        change(&mut task);
        task.changed_ts = app.clock.now_ms();
        tx.put(&TASKS, id, &task);
    }
    Ok(())
}

/// Writes down a part of a task's result.
fn change_result(app: &App, tx: &mut Tx, id: &str, part: impl Fn(&mut Map<String, Value>)) -> Result<()> {
    change(app, tx, id, |task| {
        let mut result = serde_json::from_str::<Map<String, Value>>(&task.result).unwrap_or_default();
        part(&mut result);
        task.result = Value::Object(result).to_string();
    })
}

/// Adds names to a list of a result, as far as there is room.
fn add_names(result: &mut Map<String, Value>, list: &str, names: &[String]) {
    if let Some(list) = result.get_mut(list).and_then(Value::as_array_mut) {
        let mut bytes = json!(list).to_string().len();
        for name in names.iter().map(|name| json!(name)) {
            bytes += name.to_string().len() + 1;
            if bytes > MAX_LIST_BYTES {
                break;
            }
            list.push(name);
        }
    }
}

async fn delete_slice(app: &App, job: &Job) -> Result<Part> {
    let Job::DeleteRoom { task, room_id, step, purge, new_room } = job else { return Ok(Part::from(None)) };
    let room_id = RoomId::parse(room_id).map_err(Error::internal)?;
    let new_room = new_room.as_ref().map(|id| RoomId::parse(id).map_err(Error::internal)).transpose()?;
    let rest = |step: DeleteStep| {
        let mut rest = job.clone();
        if let Job::DeleteRoom { step: next, .. } = &mut rest {
            *next = step;
        }
        rest
    };
    let mut emptied = Emptied::default();
    let next = match step {
        DeleteStep::Leave { after, through } => {
            let through = if *through == 0 { app.store.tip().0 } else { *through };
            let (members, next) = remove::next_members(app, &room_id, (Pos(*after), Pos(through)), SLICE)?;
            emptied = empty(app, &room_id, new_room.as_deref(), &members).await?;
            match next {
                Some(next) => Some(DeleteStep::Leave { after: next.0, through }),
                None => {
                    unlist(app, task, &room_id, new_room.as_deref()).await?;
                    let until_ts = app.clock.now_ms().saturating_add(MAX_TELL_MS);
                    purge.then(|| DeleteStep::Tell { through: app.store.tip().0, until_ts })
                }
            }
        }
        DeleteStep::Tell { through, until_ts } => {
            let now = app.clock.now_ms();
            if now < *until_ts && !all_told(&app.store.snapshot(), Pos(*through))? {
                let job = Box::new(job.clone());
                let later = Job::Later { job, attempts: 0, due_ts: now.saturating_add(TELL_PAUSE_MS) };
                return Ok(Part::from(Some(later)));
            }
            Some(DeleteStep::Forget { from: 0 })
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
    let found = move |result: &mut Map<String, Value>| {
        add_names(result, "kicked_users", &emptied.left);
        add_names(result, "failed_to_kick_users", &emptied.failed);
    };
    Ok(Part { rest: next.map(rest), found: Box::new(found) })
}

/// Whether all application services have gone through what the journal has up to a position.
fn all_told(read: &impl Read, through: Pos) -> Result<bool> {
    for (follower, seen) in journal::cursors(read)? {
        let is_service = follower.starts_with(SERVICE_FOLLOWERS);
        let next = journal::read(read, seen, 1)?;
        if is_service && next.first().is_some_and(|entry| entry.version <= through) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What became of those who were to leave a room.
#[derive(Default)]
struct Emptied {
    left: Vec<String>,
    failed: Vec<String>,
}

/// Makes people leave a room, and those who were in it join another one, if there is one.
async fn empty(app: &App, room_id: &RoomId, new_room: Option<&RoomId>, members: &[remove::Member]) -> Result<Emptied> {
    let mut emptied = Emptied::default();
    for (user_id, joined) in members {
        // First of all: who has left is not met again.
        if let Some(new_room) = new_room.filter(|_| *joined) {
            super::skip_failure(new_room, moderate::join(app, None, user_id, new_room).await)?;
        }
        let outcome = membership::leave(app, user_id, room_id).await;
        super::skip_failure(room_id, outcome.as_ref().copied().map_err(again))?;
        let list = if outcome.is_ok() { &mut emptied.left } else { &mut emptied.failed };
        list.push(user_id.to_string());
    }
    Ok(emptied)
}

/// Takes a room out of the directory, and all its names away or over to another room.
async fn unlist(app: &App, task: &str, room_id: &RoomId, new_room: Option<&RoomId>) -> Result<()> {
    loop {
        let some = |tx: &mut Tx| -> Result<bool> {
            let names = remove::unlist(tx, room_id, new_room)?;
            change_result(app, tx, task, |result| add_names(result, "local_aliases", &names))?;
            Ok(names.is_empty())
        };
        if app.store.transact(some).await?.value {
            return Ok(());
        }
    }
}

async fn purge_slice(app: &App, job: &Job) -> Result<Option<Job>> {
    let Job::PurgeHistory { task, room_id, after, before, local } = job else { return Ok(None) };
    let room_id = RoomId::parse(room_id).map_err(Error::internal)?;
    let history = History { after: Pos(*after), before: Pos(*before), local: *local };
    let purge = |tx: &mut Tx| -> Result<Option<Pos>> {
        let (gone, next) = remove::purge_history(app, tx, &room_id, history)?;
        change_result(app, tx, task, |result| add(result, "deleted_events", gone))?;
        Ok(next)
    };
    let next = app.store.transact(purge).await?.value;
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

async fn redact_slice(app: &App, job: &Job) -> Result<Part> {
    let Job::RedactUser { task, user_id, reason, rooms, before, left } = job else { return Ok(Part::from(None)) };
    let Some((room_id, after)) = first_room(&app.store.snapshot(), user_id, rooms)? else {
        return Ok(Part::from(None));
    };
    let most = SLICE.min(usize::try_from(*left).unwrap_or(SLICE));
    let (said, next) = said_by(app, &room_id, user_id, *before, most)?;
    let redactor = if said.is_empty() { None } else { moderate::redactor(app, &room_id).await? };
    let mut failed = Map::new();
    for event_id in &said {
        if let Err(cause) = redact(app, &room_id, event_id, redactor.as_deref(), reason.as_deref()).await {
            failed.insert(event_id.clone(), json!(cause.message()));
        }
    }
    let left = left.saturating_sub(said.len() as u64);
    let rooms = if next.is_some() { Some(rooms.clone()) } else { after };
    let (task, user_id, reason) = (task.clone(), user_id.clone(), reason.clone());
    let rest = rooms.filter(|_| left > 0).map(|rooms| {
        let before = next.unwrap_or(NEWEST);
        Job::RedactUser { task, user_id, reason, rooms, before, left }
    });
    let redacted = said.len() - failed.len();
    let found = move |result: &mut Map<String, Value>| {
        add(result, "redacted", redacted);
        add_failures(result, &failed);
    };
    Ok(Part { rest, found: Box::new(found) })
}

/// Adds why events could not be redacted, as far as there is room.
fn add_failures(result: &mut Map<String, Value>, failed: &Map<String, Value>) {
    let Some(known) = result.get_mut("failed_redactions").and_then(Value::as_object_mut) else { return };
    let mut bytes = json!(known).to_string().len();
    for (event_id, why) in failed {
        bytes += event_id.len() + why.to_string().len() + 8;
        if bytes <= MAX_LIST_BYTES {
            known.insert(event_id.clone(), why.clone());
        }
    }
}

/// The first of some rooms, and those after it.
fn first_room(read: &impl Read, user_id: &str, rooms: &Rooms) -> Result<Option<(OwnedRoomId, Option<Rooms>)>> {
    match rooms {
        Rooms::Named(named) => {
            let Some((first, rest)) = named.split_last() else { return Ok(None) };
            let first = RoomId::parse(first).map_err(Error::internal)?;
            Ok(Some((first, Some(Rooms::Named(rest.to_vec())))))
        }
        Rooms::From(from) => {
            for row in read.scan(&MEMBERSHIPS, MEMBERSHIPS.prefix((user_id,)).from((user_id, *from))).keys() {
                let (_, room) = row?;
                if let Some(head) = read.get(&HEADS, room)? {
                    let room_id = RoomId::parse(head.room_id).map_err(Error::internal)?;
                    return Ok(Some((room_id, room.checked_add(1).map(Rooms::From))));
                }
            }
            Ok(None)
        }
    }
}

async fn redact(
    app: &App,
    room_id: &RoomId,
    event_id: &str,
    redactor: Option<&UserId>,
    reason: Option<&str>,
) -> Result<()> {
    let event_id = EventId::parse(event_id).map_err(Error::internal)?;
    let outcome = moderate::redact(app, room_id, &event_id, redactor, reason).await;
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
