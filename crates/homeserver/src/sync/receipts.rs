//! Moving receipts and read markers (spec: Receipts; Fully read markers). They only move forward, by the order of the
//! stream; each thread, and no thread, and each kind is a row of its own. What sync tells of them is in `room`.

use bytes::Bytes;
use ruma::{EventId, OwnedEventId, RoomId, UserId};
use serde::Deserialize;
use serde_json::json;
use store::{Pos, Read, Tx};

use super::unread::thread_of;
use crate::App;
use crate::error::{Error, Result};
use crate::rooms::read::RoomReader;
use crate::schema::{self, MembershipState, Receipt, ReceiptKey, RoomNr, room_nr};
use crate::users::account_data;

const FULLY_READ: &str = "m.fully_read";

/// What a client says it has read.
#[derive(Clone, Debug, Default)]
pub struct Marks {
    pub fully_read: Option<OwnedEventId>,
    pub read: Option<Mark>,
    pub private: Option<Mark>,
}

/// Up to where, and in which thread: empty for none, `main`, or the root.
#[derive(Clone, Debug)]
pub struct Mark {
    pub event_id: OwnedEventId,
    pub thread: String,
}

/// Moves all of them in one commit, as far as they move forward. What is not known here moves nothing.
pub async fn mark(app: &App, room_id: &RoomId, user_id: &UserId, marks: &Marks) -> Result<()> {
    let nr = room_nr(room_id);
    let ts = app.clock.now_ms();
    app.store
        .transact(|tx| {
            let member = tx.unchecked().get(&schema::MEMBERSHIPS, (user_id.as_str(), nr))?;
            if member.is_none_or(|member| member.state != MembershipState::Join) {
                return Err(Error::forbidden("You are not in this room"));
            }
            for (private, mark) in [(false, &marks.read), (true, &marks.private)] {
                if let Some(mark) = mark {
                    move_receipt(app, tx, nr, user_id, private, mark, ts)?;
                }
            }
            if let Some(event_id) = &marks.fully_read {
                move_marker(tx, nr, room_id, user_id, event_id)?;
            }
            Ok(())
        })
        .await
        .map(|_| ())
}

fn move_receipt(
    app: &App,
    tx: &mut Tx,
    nr: RoomNr,
    user_id: &UserId,
    private: bool,
    mark: &Mark,
    ts: u64,
) -> Result<()> {
    let Some(event) = place(tx, nr, &mark.event_id)? else { return Ok(()) };
    check_thread(app, tx, nr, event, mark)?;
    let key = (nr, user_id.as_str(), (private, mark.thread.as_str()));
    if let Some(before) = tx.get(&schema::RECEIPTS, key)? {
        if before.event >= event {
            return Ok(());
        }
        tx.delete(&schema::RECEIPT_LOG, (nr, before.at));
    }
    let at = tx.next_pos();
    let event_id = mark.event_id.to_string();
    tx.put(&schema::RECEIPTS, key, &Receipt { at, event, event_id, ts });
    let log = ReceiptKey { user_id: user_id.to_string(), private, thread: mark.thread.clone() };
    tx.put(&schema::RECEIPT_LOG, (nr, at), &log);
    Ok(())
}

/// A receipt for a thread has to be of an event in it. The root is in its own thread, too.
fn check_thread(app: &App, tx: &Tx, nr: RoomNr, event: Pos, mark: &Mark) -> Result<()> {
    if matches!(mark.thread.as_str(), "" | "main") || mark.thread == mark.event_id.as_str() {
        return Ok(());
    }
    let rooms = RoomReader::new(&app.room_cache, tx.unchecked());
    let found = rooms.event(nr, event)?;
    let thread = found.map(|event| thread_of(rooms, nr, &event)).transpose()?.flatten();
    if thread.as_deref() == Some(&mark.thread) {
        return Ok(());
    }
    Err(Error::invalid_param("The event is not in this thread"))
}

fn move_marker(tx: &mut Tx, nr: RoomNr, room_id: &RoomId, user_id: &UserId, event_id: &EventId) -> Result<()> {
    #[derive(Deserialize)]
    struct Content {
        event_id: OwnedEventId,
    }
    let Some(event) = place(tx, nr, event_id)? else { return Ok(()) };
    let before = account_data::get(tx, user_id, room_id.as_str(), FULLY_READ)?;
    let before = before.and_then(|content| serde_json::from_slice::<Content>(&content).ok());
    let before = before.map(|content| place(tx, nr, &content.event_id)).transpose()?.flatten();
    if before.is_some_and(|before| before >= event) {
        return Ok(());
    }
    let content = Bytes::from(json!({ "event_id": event_id }).to_string());
    account_data::put(tx, user_id, room_id.as_str(), FULLY_READ, content)
}

/// Where an event of the room lies. It never moves.
fn place(tx: &Tx, nr: RoomNr, event_id: &EventId) -> Result<Option<Pos>> {
    let found = tx.unchecked().get(&schema::EVENT_IDS, event_id.as_str())?;
    Ok(found.filter(|found| found.room == nr).map(|found| found.at))
}
