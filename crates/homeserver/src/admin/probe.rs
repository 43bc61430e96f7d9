//! `POST /maintenance/probe`: an event that shows whether this server can make, store and read events, and that nobody sees.
//!
//! A room is made and a message sent into it as anybody's would be: power levels, rules, state, signature. Then that
//! transaction is thrown away. What stays is one row outside of all rooms with the message as events are stored; it is
//! durable before it is read back, and the next probe takes its place.

use ::rooms::build::Draft;
use ::rooms::event::{Parsed, Parts, join_from_storage, rules};
use http::StatusCode;
use ruma::events::TimelineEventType;
use ruma::{CanonicalJsonObject, CanonicalJsonValue, OwnedEventId, OwnedRoomId, RoomVersionId, UserId};
use serde::de::IgnoredAny;
use serde_json::json;
use store::{Raw, Read as _, Value as _, ValueBuf};

use crate::App;
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response, json_response};
use crate::rooms::create::Wanted;
use crate::rooms::write::{Origin, RoomTx};
use crate::schema::SERVER;
use crate::stored::{NewEvent, StoredEvent};
use crate::users::accounts::user_id_for_new;

/// The row.
const ROW: &str = "probe";
/// Who speaks; nobody has to have this name.
const SENDER: &str = "health.gate";

/// A message of a room that never was.
struct Message {
    event_id: OwnedEventId,
    room_id: OwnedRoomId,
    version: RoomVersionId,
    parts: Parts,
}

/// How a rehearsal ends: never with a commit.
enum Rehearsed {
    Well(Box<Message>),
    Ill(Error),
}

impl From<store::Error> for Rehearsed {
    fn from(error: store::Error) -> Self {
        Self::Ill(error.into())
    }
}

impl From<Error> for Rehearsed {
    fn from(error: Error) -> Self {
        Self::Ill(error)
    }
}

pub async fn probe(mut ctx: RawCtx) -> Result<Response> {
    let _: IgnoredAny = ctx.read_json().await?;
    let event_id = round_trip(&ctx.app).await?;
    let answer = json!({ "ok": true, "event_id": event_id, "position": ctx.app.store.tip().0 });
    Ok(json_response(StatusCode::OK, answer.to_string()))
}

/// Makes an event, stores it durably, reads it back and compares. Gives its ID.
///
/// # Errors
/// The rules refuse it, the store does not take it, or it does not come back as it was.
async fn round_trip(app: &App) -> Result<OwnedEventId> {
    let sender = user_id_for_new(app, SENDER)?;
    let message = rehearse(app, &sender).await?;
    let mut row = ValueBuf::default();
    let (kind, by) = (TimelineEventType::RoomMessage.to_string(), sender.as_str());
    let event = NewEvent::plain(&kind, None, by, &message.parts.client);
    NewEvent { event_id: message.event_id.as_str(), federation: &message.parts.federation, ..event }.encode(&mut row);
    let put = |tx: &mut store::Tx| -> Result<(), store::Error> {
        tx.put_buf(&SERVER, ROW, row.clone());
        Ok(())
    };
    app.store.transact(put).await?;
    let there = app.store.snapshot().get(&SERVER, ROW)?.ok_or_else(|| Error::internal("the event is not there"))?;
    let stored = StoredEvent::decode(Raw::Borrowed(&there)).map_err(Error::internal)?;
    if !message.is(&stored)? {
        return Err(Error::internal("the event is not what was stored"));
    }
    Ok(message.event_id)
}

async fn rehearse(app: &App, sender: &UserId) -> Result<Message> {
    let room = Wanted::private(app, sender, "health gate".to_owned(), CanonicalJsonObject::new())?;
    let text = |text: &str| CanonicalJsonValue::String(text.to_owned());
    // Never the same twice: what was there before is not what was written now.
    let body = format!("a test {}", app.rng.alphanumeric(18));
    let content = [("msgtype", text("m.text")), ("body", text(&body))].map(|(key, value)| (key.to_owned(), value));
    let draft = Draft::message(
        TimelineEventType::RoomMessage,
        CanonicalJsonObject::from(content),
        sender.to_owned(),
        app.clock.now(),
    );
    let rehearsed = app.store.transact(|tx| -> Result<(), Rehearsed> {
        let mut room: RoomTx<'_> = room.found(app, tx)?;
        let sent = room.append(draft.clone(), Origin::default())?;
        let (room_id, version) = (room.room_id.clone(), room.head.version.clone());
        let _nothing_redacted = room.finish();
        Err(Rehearsed::Well(Box::new(Message { event_id: sent.event_id, room_id, version, parts: sent.parts })))
    });
    match rehearsed.await {
        Err(Rehearsed::Well(message)) => Ok(*message),
        Err(Rehearsed::Ill(error)) => Err(error),
        Ok(_) => Err(Error::internal("a rehearsal was committed")),
    }
}

impl Message {
    /// Whether a stored event is this one: to the byte, and by the digest that is its ID.
    fn is(&self, stored: &StoredEvent) -> Result<bool> {
        let rules = rules(&self.version).ok_or_else(|| Error::internal("a room version without rules"))?;
        let parts = Parts { client: stored.client().to_vec(), federation: stored.federation().to_vec() };
        let json = join_from_storage(&parts, &self.room_id, rules).map_err(Error::internal)?;
        let parsed = Parsed::from_bytes(&json, rules).map_err(Error::internal)?;
        Ok(parts == self.parts && stored.event_id() == self.event_id && parsed.pdu.event_id == self.event_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::{EVENTS, HEADS, MEMBERSHIPS, USERS};
    use crate::testing::Server;

    #[tokio::test]
    async fn an_event_comes_back_and_nothing_of_it_is_to_be_seen() {
        let server = Server::default();
        let alice = server.user("alice").await;
        alice.client.post("/_matrix/client/v3/createRoom", json!({})).await;
        let rows = || {
            let read = server.app.store.snapshot();
            let events = read.scan(&EVENTS, EVENTS.all()).count();
            let (rooms, members) =
                (read.scan(&HEADS, HEADS.all()).count(), read.scan(&MEMBERSHIPS, MEMBERSHIPS.all()).count());
            (events, rooms, members, read.scan(&USERS, USERS.all()).count())
        };
        let before = (rows(), server.app.store.tip().0);
        let (first, second) = (round_trip(&server.app).await.unwrap(), round_trip(&server.app).await.unwrap());
        assert_ne!(first, second);
        assert_eq!((rows(), server.app.store.tip().0), (before.0, before.1 + 2));
    }

    #[tokio::test]
    async fn an_event_that_comes_back_otherwise_is_noticed() {
        let server = Server::default();
        let sender = user_id_for_new(&server.app, SENDER).unwrap();
        let message = rehearse(&server.app, &sender).await.unwrap();
        let is = |client: &[u8], federation: &[u8], event_id: &str| {
            let event = NewEvent::plain("m.room.message", None, sender.as_str(), client);
            message.is(&NewEvent { event_id, federation, ..event }.stored().unwrap()).is_ok_and(|is| is)
        };
        let Parts { client, federation } = &message.parts;
        let changed = String::from_utf8(client.clone()).unwrap().replace("a test", "a text").into_bytes();
        assert!(is(client, federation, message.event_id.as_str()));
        assert!(!is(&changed, federation, message.event_id.as_str()));
        assert!(!is(client, b"", message.event_id.as_str()));
        assert!(!is(client, federation, "$another"));
    }
}
