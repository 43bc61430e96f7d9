//! Telling one gateway, one thing after the other: what is sent, and what becomes of it when the gateway does not answer.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use store::{Read as _, Snapshot, Tx};

use super::audience::Listener;
use super::outbox::{Item, Note, Outbox, Settings};
use crate::App;
use crate::error::Result;
use crate::outgoing::{OutgoingError, Post};
use crate::push::rules::Facts;
use crate::rooms::read::RoomReader;
use crate::rooms::shown::{content, content_field};
use crate::schema::{self, MembershipState, PUSHERS};
use crate::stored::{Head, StoredEvent};
use crate::sync::unread::{read_up_to, thread_by};

/// A gateway has so long to answer.
const WITHIN: Duration = Duration::from_secs(20);
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// After the first failure; twice as long after each one more.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60 * 60);
/// Who looks at the phone after so long sees the messages anyway.
const GIVE_UP_MS: u64 = 24 * 60 * 60 * 1000;

/// How much is unread is told with the next event at the latest.
const BADGE_ATTEMPTS: u32 = 8;

/// What came of sending.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Yes,
    /// The gateway says that the pushkey is not (any longer) good for anything.
    Rejected,
    /// The gateway does not want this one.
    Refused(String),
    /// Another time perhaps.
    Failed(String),
}

/// Works until nothing waits.
pub async fn deliver(app: App, listener: Arc<Listener>, outbox: Arc<Outbox>) {
    while let Some(item) = outbox.next() {
        let wait = outbox.retry_ts().saturating_sub(app.clock.now_ms());
        if wait > 0 {
            tokio::select! {
                () = app.clock.sleep(Duration::from_millis(wait)) => continue,
                () = app.shutdown.cancelled() => return,
            }
        }
        let late = matches!(&item, Item::Event(note) if app.clock.now_ms().saturating_sub(note.ts) > GIVE_UP_MS);
        if late {
            tracing::info!(user = %listener.user_id, "a notification is given up: its gateway did not answer for a day");
            outbox.pop(None);
            continue;
        }
        let told = tokio::select! {
            told = AssertUnwindSafe(tell(&app, &listener, &outbox, &item)).catch_unwind() => told,
            () = app.shutdown.cancelled() => return,
        };
        let told = told.unwrap_or_else(|_| {
            app.metrics.panicked("delivery of notifications");
            Err("it panicked".to_owned())
        });
        match told {
            Ok(told) => outbox.pop(told),
            Err(cause) => {
                tracing::debug!(user = %listener.user_id, %cause, "a notification has to wait");
                let chance = app.rng.below(1_000);
                let failures = outbox.failed(app.clock.now_ms(), |failures| pause(failures, chance).as_millis() as u64);
                if matches!(item, Item::Badge) && failures >= BADGE_ATTEMPTS {
                    outbox.pop(None);
                }
            }
        }
    }
}

/// How long to wait after so many failures: up to a quarter more by chance, so that not all come back together.
fn pause(failures: u32, chance_of_thousand: u64) -> Duration {
    let pause = FIRST_PAUSE.saturating_mul(1 << (failures - 1).min(12)).min(LONGEST_PAUSE);
    pause + pause / 4 * chance_of_thousand as u32 / 1_000
}

/// Tells the gateway, if there is still something to tell. What it was told to be unread, or why it has to be asked
/// again.
async fn tell(app: &App, listener: &Listener, outbox: &Outbox, item: &Item) -> Result<Option<u64>, String> {
    let settings = outbox.settings();
    let prepared = prepare(app, listener, outbox, &settings, item).map_err(|cause| cause.to_string())?;
    let Some((notification, unread)) = prepared else { return Ok(None) };
    match send(app, &settings, outbox, notification).await {
        Told::Yes => Ok(Some(unread)),
        Told::Rejected => {
            tracing::info!(user = %listener.user_id, "a gateway rejects a pushkey");
            // The outbox is closed by whoever reads that the pusher is gone.
            match forget(app, listener, outbox, &settings).await {
                Ok(true) => Ok(None),
                Ok(false) => Err("the pusher was set anew meanwhile".to_owned()),
                Err(cause) => Err(cause.to_string()),
            }
        }
        Told::Refused(cause) => {
            tracing::info!(user = %listener.user_id, %cause, "a gateway does not take a notification");
            Ok(None)
        }
        Told::Failed(cause) => Err(cause),
    }
}

/// The notification and how much it says is unread; `None` if there is nothing to tell any more.
fn prepare(
    app: &App,
    listener: &Listener,
    outbox: &Outbox,
    settings: &Settings,
    item: &Item,
) -> Result<Option<(Map<String, Value>, u64)>> {
    let snapshot = app.store.snapshot();
    let mut notification = match item {
        Item::Event(note) => match about(app, &snapshot, listener, settings, note)? {
            Some(notification) => notification,
            None => return Ok(None),
        },
        Item::Badge if settings.no_badge => return Ok(None),
        Item::Badge => Map::new(),
    };
    let unread = listener.unread(app)?;
    if matches!(item, Item::Badge) && outbox.last_badge() == Some(unread) {
        return Ok(None);
    }
    if !settings.no_badge {
        notification.insert("counts".to_owned(), json!({ "unread": unread }));
    }
    let mut device = json!({
        "app_id": outbox.id.0,
        "pushkey": outbox.id.1,
        "pushkey_ts": settings.pusher.ts / 1_000,
        "data": settings.data,
    });
    if let (Item::Event(note), false) = (item, settings.event_id_only) {
        device["tweaks"] = Value::Object((*note.tweaks).clone());
    }
    notification.insert("devices".to_owned(), json!([device]));
    Ok(Some((notification, unread)))
}

/// What is said of an event; `None` if the user has read it meanwhile, or it is gone, or they are.
fn about(
    app: &App,
    snapshot: &Snapshot,
    listener: &Listener,
    settings: &Settings,
    note: &Note,
) -> Result<Option<Map<String, Value>>> {
    let rooms = RoomReader::new(&app.room_cache, snapshot);
    let Some(event) = rooms.event(note.room, note.at)?.filter(|event| event.redacted_by().is_none()) else {
        return Ok(None);
    };
    let Some(member) = rooms.membership(listener.user_id.as_str(), note.room)? else { return Ok(None) };
    let Some(head) = rooms.head_of(note.room)? else { return Ok(None) };
    let invited = member.state == MembershipState::Invite && member.event == note.at;
    if member.state != MembershipState::Join && !invited {
        return Ok(None);
    }
    if !invited && has_read(rooms, listener, note, &event)? {
        return Ok(None);
    }
    let mut said = Map::new();
    said.insert("event_id".to_owned(), json!(event.event_id()));
    said.insert("room_id".to_owned(), json!(head.room_id));
    let urgent = event.kind() == "m.room.encrypted"
        || note.tweaks.contains_key("sound")
        || note.tweaks.get("highlight") == Some(&Value::Bool(true));
    said.insert("prio".to_owned(), json!(if urgent { "high" } else { "low" }));
    if !settings.event_id_only {
        describe(rooms, note, &head, &event, listener.user_id.as_str(), &mut said)?;
    }
    Ok(Some(said))
}

fn has_read(rooms: RoomReader<'_, Snapshot>, listener: &Listener, note: &Note, event: &StoredEvent) -> Result<bool> {
    let Some(member) = rooms.membership(listener.user_id.as_str(), note.room)? else { return Ok(true) };
    let thread = thread_by(rooms, note.room, &Facts::new(event))?;
    Ok(read_up_to(rooms, &listener.user_id, note.room, &member)?.of(thread.as_deref()) >= note.at)
}

/// What a phone can show without asking.
fn describe(
    rooms: RoomReader<'_, Snapshot>,
    note: &Note,
    head: &Head,
    event: &StoredEvent,
    user_id: &str,
    said: &mut Map<String, Value>,
) -> Result<()> {
    let text = |kind: &str, state_key: &str, field: &str| -> Result<Option<String>> {
        let found = rooms.state_event(note.room, head.state, kind, state_key)?;
        Ok(found.and_then(|event| content_field::<String>(&event, field)).filter(|text| !text.is_empty()))
    };
    let mut put = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            said.insert(name.to_owned(), value);
        }
    };
    put("type", Some(json!(event.kind())));
    put("sender", Some(json!(event.sender())));
    put("sender_display_name", text("m.room.member", event.sender(), "displayname")?.map(Value::from));
    put("room_name", text("m.room.name", "", "name")?.map(Value::from));
    put("room_alias", text("m.room.canonical_alias", "", "alias")?.map(Value::from));
    put("content", serde_json::from_str(content(event).get()).ok());
    if event.kind() == "m.room.member" {
        put("user_is_target", Some(json!(event.state_key() == Some(user_id))));
    }
    Ok(())
}

async fn send(app: &App, settings: &Settings, outbox: &Outbox, notification: Map<String, Value>) -> Told {
    #[derive(Default, Deserialize)]
    struct Answer {
        #[serde(default)]
        rejected: Vec<String>,
    }
    let body = Bytes::from(json!({ "notification": notification }).to_string());
    let post = Post { url: &settings.url, body, within: WITHIN, max_answer_bytes: MAX_ANSWER_BYTES };
    let (status, body) = match app.outgoing.post_json(&app.config.push.gateways, post).await {
        Ok(answered) => answered,
        Err(cause @ OutgoingError::NotAllowed(_)) => return Told::Refused(cause.to_string()),
        Err(cause) => return Told::Failed(cause.to_string()),
    };
    if status.is_success() {
        let answer: Answer = serde_json::from_slice(&body).unwrap_or_default();
        return if answer.rejected.contains(&outbox.id.1) { Told::Rejected } else { Told::Yes };
    }
    let patient = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS].contains(&status);
    if status.is_client_error() && !patient {
        return Told::Refused(format!("it answers {status}"));
    }
    Told::Failed(format!("it answers {status}"))
}

/// Deletes a pusher that is good for nothing, unless it was set anew meanwhile. Says whether it is gone.
async fn forget(app: &App, listener: &Listener, outbox: &Outbox, settings: &Settings) -> Result<bool> {
    let (app_id, pushkey) = (outbox.id.0.as_str(), outbox.id.1.as_str());
    let user_id = listener.user_id.as_str();
    let delete = |tx: &mut Tx| -> Result<bool> {
        let Some(now) = tx.get(&PUSHERS, (user_id, app_id, pushkey))? else { return Ok(true) };
        let same = now == settings.pusher;
        if same {
            schema::delete_pusher(tx, user_id, (app_id, pushkey));
        }
        Ok(same)
    };
    app.store.transact(delete).await.map(|deleted| deleted.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_an_hour() {
        let seconds: Vec<u64> = [1, 2, 3, 12, 13, 40].into_iter().map(|n| pause(n, 0).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 2_048, 3_600, 3_600]);
        assert!(pause(5, 999) > pause(5, 0) && pause(5, 999) <= pause(5, 0) * 5 / 4);
    }
}
