//! Delayed events (MSC4140): scheduled by a client, sent when their time comes, unless somebody begins the delay anew,
//! sends them at once, or cancels them. Rows of the store, so that they outlive the server; one runner that sleeps until
//! the next is due.
//!
//! Whether an event is allowed is decided when it is sent, and in the commit that sends it the row says so: it is sent
//! once. What became of an event is kept for a day. Not here: the endpoints.

use std::time::Duration;

use ::rooms::build::Draft;
use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};
use store::{Read, Tx};

use crate::App;
use crate::error::{Error, ErrorCode, Result};
use crate::rooms::change;
use crate::rooms::send::{self, TxnKey};
use crate::schema::{
    self, DELAYED, DELAYED_DUE, DELAYED_OF, Delayed, DelayedEnd, DelayedOutcome, MembershipState, room_nr, topic,
};

/// Events wait no longer than this.
pub const MAX_DELAY_MS: u64 = 24 * 60 * 60 * 1000;
/// So many events of one user wait at one time.
pub const MAX_SCHEDULED: usize = 100;
/// So long it can be asked what became of an event.
const KEEP_MS: u64 = 24 * 60 * 60 * 1000;
/// But not of more than this for each user.
const MAX_ROWS: usize = 300;
/// Events that are sent before the runner looks at the clock again.
const SLICE: usize = 64;
const PAUSE: Duration = Duration::from_secs(1);

/// What a client wants sent later.
pub struct Plan {
    pub user_id: OwnedUserId,
    pub device_id: String,
    pub room_id: OwnedRoomId,
    pub kind: String,
    pub state_key: Option<String>,
    /// A JSON object.
    pub content: String,
    pub delay_ms: u64,
    pub txn: Option<TxnKey>,
}

/// What may be done about a delayed event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Restart,
    Send,
    Cancel,
}

impl Action {
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "restart" => Self::Restart,
            "send" => Self::Send,
            "cancel" => Self::Cancel,
            _ => return None,
        })
    }
}

/// Schedules an event, once for each transaction. Returns its delay ID.
pub async fn schedule(app: &App, plan: &Plan) -> Result<String> {
    if plan.delay_ms == 0 {
        return Err(Error::invalid_param("The delay has to be longer than nothing"));
    }
    if plan.delay_ms > MAX_DELAY_MS {
        return Err(Error::max_delay_exceeded(MAX_DELAY_MS));
    }
    // What cannot become an event is refused now and not later.
    draft(app, plan.user_id.clone(), &plan.kind, plan.state_key.as_deref(), &plan.content)?;
    let fresh_id = app.rng.alphanumeric(32);
    let now_ms = app.clock.now_ms();
    let write = |tx: &mut Tx| -> Result<String> {
        if let Some(txn) = &plan.txn {
            if let Some(done) = tx.get(&schema::TXNS, txn.row())? {
                return Ok(done.event_id);
            }
            txn.check_device(tx)?;
            tx.put(&schema::TXNS, txn.row(), &schema::Txn::new(&*fresh_id, now_ms));
        }
        let member = tx.get(&schema::MEMBERSHIPS, (plan.user_id.as_str(), room_nr(&plan.room_id)))?;
        if member.is_none_or(|member| member.state != MembershipState::Join) {
            return Err(Error::forbidden("You are not in this room"));
        }
        make_room(tx, plan.user_id.as_str(), now_ms)?;
        let row = Delayed {
            user_id: plan.user_id.to_string(),
            device_id: plan.device_id.clone(),
            room_id: plan.room_id.to_string(),
            kind: plan.kind.clone(),
            state_key: plan.state_key.clone(),
            content: plan.content.clone(),
            delay_ms: plan.delay_ms,
            since_ts: now_ms,
            end: None,
        };
        tx.put(&DELAYED_OF, (&row.user_id, &fresh_id), &());
        tx.put(&DELAYED_DUE, (due(&row), &fresh_id), &());
        tx.put(&DELAYED, &fresh_id, &row);
        Ok(fresh_id.clone())
    };
    Ok(app.store.transact(write).await?.value)
}

/// Does something about a delayed event. Who knows the delay ID may.
pub async fn manage(app: &App, delay_id: &str, action: Action) -> Result<()> {
    let now_ms = app.clock.now_ms();
    let decide = |tx: &mut Tx| -> Result<bool> {
        let row = tx.get(&DELAYED, delay_id)?.ok_or_else(unknown)?;
        let Some(end) = &row.end else {
            match action {
                Action::Send => return Ok(true),
                Action::Restart => put(tx, delay_id, &row, Delayed { since_ts: now_ms, ..row.clone() }),
                Action::Cancel => {
                    let end = DelayedEnd { ts: now_ms, outcome: DelayedOutcome::Cancelled };
                    put(tx, delay_id, &row, Delayed { end: Some(end), ..row.clone() });
                }
            }
            return Ok(false);
        };
        let was_sent = matches!(end.outcome, DelayedOutcome::Sent(_));
        match action {
            Action::Send if was_sent => Ok(false),
            Action::Cancel if !was_sent => Ok(false),
            _ if was_sent => Err(Error::conflict(ErrorCode::Unknown, "The delayed event was sent already")),
            _ => Err(Error::conflict(ErrorCode::Unknown, "The delayed event was cancelled already")),
        }
    };
    // Whoever asks for it is told why it cannot be sent, and it stays as it is.
    if app.store.transact(decide).await?.value { fire(app, delay_id, u64::MAX).await } else { Ok(()) }
}

/// A user's delayed events, what became of them included, with their delay IDs.
pub fn of(read: &impl Read, user_id: &UserId) -> Result<Vec<(String, Delayed)>> {
    let mut found = Vec::new();
    for key in read.scan(&DELAYED_OF, DELAYED_OF.prefix((user_id.as_str(),))).keys() {
        let (_, delay_id) = key?;
        if let Some(row) = read.get(&DELAYED, &delay_id)? {
            found.push((delay_id, row));
        }
    }
    found.sort_by_key(|(_, row)| row.since_ts.saturating_add(row.delay_ms));
    Ok(found)
}

/// One of them.
pub fn get(read: &impl Read, user_id: &UserId, delay_id: &str) -> Result<Delayed> {
    let row = read.get(&DELAYED, delay_id)?.filter(|row| row.user_id == user_id.as_str());
    row.ok_or_else(unknown)
}

/// Sends what is due until the server stops.
pub async fn run(app: App) {
    let hub = app.store.hub();
    let signal = hub.signal();
    hub.attach(topic::delayed(), &signal);
    loop {
        // What is written while we look is seen next time.
        let (seen, nudges) = (app.store.tip(), signal.nudges());
        let wait = round(&app).await.unwrap_or_else(|cause| {
            tracing::warn!(%cause, "delayed events pause");
            Some(PAUSE)
        });
        let sleep = async {
            match wait {
                Some(wait) => app.clock.sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = signal.changed(seen, nudges) => {}
            () = sleep => {}
            () = app.shutdown.cancelled() => return,
        }
    }
}

/// Does what is due. Says how long there is nothing to do; `None` if nothing waits.
async fn round(app: &App) -> Result<Option<Duration>> {
    loop {
        let now_ms = app.clock.now_ms();
        let first: Vec<(u64, String)> = {
            let read = app.store.snapshot();
            read.scan(&DELAYED_DUE, DELAYED_DUE.all().limit(SLICE)).keys().collect::<store::Result<_>>()?
        };
        for (due_ts, delay_id) in &first {
            if *due_ts > now_ms {
                return Ok(Some(Duration::from_millis(due_ts - now_ms)));
            }
            match fire(app, delay_id, now_ms).await {
                Err(cause) if cause.status().as_u16() == 503 || cause.status().as_u16() == 507 => return Err(cause),
                Err(cause) => give_up(app, delay_id, now_ms, &cause).await?,
                Ok(()) => {}
            }
        }
        if first.is_empty() {
            return Ok(None);
        }
    }
}

/// Sends an event that is due by then, or forgets one whose end is long past.
async fn fire(app: &App, delay_id: &str, by_ts: u64) -> Result<()> {
    let Some(row) = app.store.latest().get(&DELAYED, delay_id)? else { return Ok(()) };
    if row.end.is_some() {
        let now_ms = app.clock.now_ms();
        return app.store.transact(|tx: &mut Tx| forget(tx, delay_id, now_ms)).await.map(|_| ());
    }
    let room_id = RoomId::parse(&row.room_id).map_err(Error::internal)?;
    change(app, &room_id, |room| {
        // Meanwhile it may be over, or wait longer.
        let Some(row) = room.tx.get(&DELAYED, delay_id)?.filter(|row| row.end.is_none() && due(row) <= by_ts) else {
            return Ok(());
        };
        let sender = UserId::parse(&row.user_id).map_err(Error::internal)?;
        check_account(room.tx, &sender)?;
        let draft = draft(app, sender, &row.kind, row.state_key.as_deref(), &row.content)?;
        let event_id =
            if row.state_key.is_some() { send::put_state(room, draft)? } else { send::put(room, draft, None)? };
        let end = DelayedEnd { ts: app.clock.now_ms(), outcome: DelayedOutcome::Sent(event_id.to_string()) };
        put(room.tx, delay_id, &row, Delayed { end: Some(end), ..row.clone() });
        Ok(())
    })
    .await
    .map(|_| ())
}

/// Who was shut out since sends nothing any more.
fn check_account(tx: &Tx, user_id: &UserId) -> Result<()> {
    match tx.get(&schema::USERS, user_id.as_str())? {
        Some(user) if user.suspended => Err(Error::user_suspended()),
        Some(user) if !user.locked && !user.deactivated => Ok(()),
        _ => Err(Error::forbidden("The account that was to send this is locked or closed")),
    }
}

/// The rules do not allow it any more, or the room is gone.
async fn give_up(app: &App, delay_id: &str, now_ms: u64, cause: &Error) -> Result<()> {
    tracing::debug!(%cause, "a delayed event cannot be sent");
    let code = cause.code().unwrap_or(&ErrorCode::Unknown).as_str().to_owned();
    let failed = DelayedOutcome::Failed(code, cause.message().to_owned());
    let write = |tx: &mut Tx| -> Result<()> {
        if let Some(row) = tx.get(&DELAYED, delay_id)?.filter(|row| row.end.is_none() && due(row) <= now_ms) {
            let end = DelayedEnd { ts: now_ms, outcome: failed.clone() };
            put(tx, delay_id, &row, Delayed { end: Some(end), ..row.clone() });
        }
        Ok(())
    };
    app.store.transact(write).await.map(|_| ())
}

/// When there is something to do about a row: send the event, or forget what became of it.
fn due(row: &Delayed) -> u64 {
    match &row.end {
        None => row.since_ts.saturating_add(row.delay_ms),
        Some(end) => end.ts.saturating_add(KEEP_MS),
    }
}

/// Writes a row in the place of another.
fn put(tx: &mut Tx, delay_id: &str, before: &Delayed, after: Delayed) {
    tx.delete(&DELAYED_DUE, (due(before), delay_id));
    tx.put(&DELAYED_DUE, (due(&after), delay_id), &());
    tx.put(&DELAYED, delay_id, &after);
}

fn forget(tx: &mut Tx, delay_id: &str, by_ts: u64) -> Result<()> {
    if let Some(row) = tx.get(&DELAYED, delay_id)?.filter(|row| row.end.is_some() && due(row) <= by_ts) {
        tx.delete(&DELAYED_DUE, (due(&row), delay_id));
        tx.delete(&DELAYED_OF, (&row.user_id, delay_id));
        tx.delete(&DELAYED, delay_id);
    }
    Ok(())
}

/// Refuses one more event of who has too many, and forgets the oldest ends if there are too many of these.
fn make_room(tx: &mut Tx, user_id: &str, now_ms: u64) -> Result<()> {
    tx.guard(&DELAYED_OF.prefix((user_id,)));
    let user = UserId::parse(user_id).map_err(Error::internal)?;
    let rows = of(tx, &user)?;
    let waiting: Vec<u64> = rows.iter().filter(|(_, row)| row.end.is_none()).map(|(_, row)| due(row)).collect();
    if waiting.len() >= MAX_SCHEDULED {
        let next = waiting.into_iter().min().unwrap_or(now_ms).saturating_sub(now_ms);
        return Err(Error::limit_exceeded(Duration::from_millis(next.max(1))));
    }
    let mut ended: Vec<&(String, Delayed)> = rows.iter().filter(|(_, row)| row.end.is_some()).collect();
    ended.sort_by_key(|(_, row)| due(row));
    for (delay_id, _) in ended.iter().take(rows.len().saturating_sub(MAX_ROWS - 1)) {
        forget(tx, delay_id, u64::MAX)?;
    }
    Ok(())
}

fn draft(app: &App, sender: OwnedUserId, kind: &str, state_key: Option<&str>, content: &str) -> Result<Draft> {
    let content = send::content_from(content.as_bytes())?;
    match state_key {
        Some(state_key) => Ok(Draft::state(kind, state_key, content, sender, app.clock.now())),
        None => send::message(kind, content, sender, app.clock.now()),
    }
}

fn unknown() -> Error {
    Error::not_found("There is no such delayed event")
}
