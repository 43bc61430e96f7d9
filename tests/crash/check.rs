//! What must be true after every restart.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};

use rand::Rng as _;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::client::{Session, part};
use crate::load::{Memory, Sent, picture_bytes};

/// An account and what it remembers.
pub struct Witness {
    pub session: Session,
    pub name: String,
    pub memory: Arc<Mutex<Memory>>,
}

/// A room as the server has shown it so far, oldest first.
#[derive(Default)]
pub struct Shown {
    pub order: Vec<String>,
    at: HashMap<String, usize>,
    bodies: HashSet<String>,
    /// The last message number of each sender.
    last: BTreeMap<String, u64>,
}

impl Shown {
    pub fn knows(&self, event_id: &str) -> Option<usize> {
        self.at.get(event_id).copied()
    }

    /// Takes the next event: never one that was there, never a message said before, per sender in the order of sending.
    fn push(&mut self, event: &Value) {
        let id = event["event_id"].as_str().unwrap();
        let before = self.at.insert(id.to_owned(), self.order.len());
        assert_eq!(before, None, "{id} stands in the room twice");
        self.order.push(id.to_owned());
        let Some(body) = event["content"]["body"].as_str() else { return };
        assert!(self.bodies.insert(body.to_owned()), "{body:?} was said twice");
        let (sender, number) = body.rsplit_once(' ').unwrap();
        let number = number.parse().unwrap();
        let last = self.last.insert(sender.to_owned(), number);
        assert!(last.is_none_or(|last| last < number), "{sender}: {number} stands after {last:?}");
    }
}

/// Reads what is new in a room, back to the newest event that is known; with `whole`, back to the start.
pub async fn read_on(session: &Session, room_id: &str, shown: &mut Shown, whole: bool) {
    if whole {
        let before = std::mem::take(&mut shown.order);
        *shown = Shown::default();
        let events = page_back(session, room_id, None).await;
        events.iter().rev().for_each(|event| shown.push(event));
        assert_eq!(shown.order[..before.len()], before, "the history of {room_id} has changed");
        return;
    }
    let known = shown.order.last().cloned();
    let events = page_back(session, room_id, known.as_deref()).await;
    events.iter().rev().for_each(|event| shown.push(event));
}

/// Events newer than `until`, newest first.
async fn page_back(session: &Session, room_id: &str, until: Option<&str>) -> Vec<Value> {
    let mut events = Vec::new();
    let mut from = String::new();
    loop {
        let path = format!("/v3/rooms/{}/messages?dir=b&limit=100{from}", part(room_id));
        let page = session.ok("GET", &path, &Value::Null).await;
        for event in page["chunk"].as_array().unwrap() {
            if event["event_id"].as_str() == until {
                return events;
            }
            events.push(event.clone());
        }
        match page["end"].as_str() {
            Some(end) => from = format!("&from={}", part(end)),
            None => {
                assert_eq!(until, None, "{room_id}: the newest known event is gone");
                return events;
            }
        }
    }
}

/// Everything that this account was told since the last check, and a few older things.
pub async fn witness(witness: &Witness, rooms: &[String], shown: &[Shown], rng: &mut ChaCha8Rng) {
    let (new, old, redacted) = {
        let mut memory = witness.memory.lock().unwrap();
        let new = memory.sent[memory.checked..].to_vec();
        let old: Vec<Sent> = (0..3)
            .filter(|_| !memory.sent.is_empty())
            .map(|_| memory.sent[rng.random_range(0..memory.sent.len())].clone())
            .collect();
        memory.checked = memory.sent.len();
        (new, old, memory.redacted.last().cloned())
    };
    for sent in new.iter().chain(&old) {
        assert!(shown[sent.room].knows(&sent.event_id).is_some(), "{}: lost: {sent:?}", witness.name);
    }
    for sent in new.iter().rev().take(3).chain(&old).filter(|sent| sent.has_txn) {
        let again = witness.session.ok("PUT", &sent.path, &sent.body).await;
        assert_eq!(again["event_id"], sent.event_id.as_str(), "a transaction ID was forgotten: {sent:?}");
    }
    if let Some((room, event_id)) = redacted {
        let path = format!("/v3/rooms/{}/event/{}", part(&rooms[room]), part(&event_id));
        let event = witness.session.ok("GET", &path, &Value::Null).await;
        assert_eq!(event["content"], json!({}), "a redaction is undone: {event}");
    }
    slots(witness, rooms).await;
    media(witness, rng).await;
}

/// State, receipts and account data: the last acknowledged value, or the one that was being written.
async fn slots(witness: &Witness, rooms: &[String]) {
    let session = &witness.session;
    let (account_data, state, receipts) = {
        let memory = witness.memory.lock().unwrap();
        (memory.account_data.clone(), memory.state.clone(), memory.receipts.clone())
    };
    let path = format!("/v3/user/{}/account_data/org.example.crash", part(&session.user_id));
    let found = number(session, &path).await;
    assert!(account_data.allows(&found), "{}: account data is {found:?}, not {account_data:?}", witness.name);
    for (room, slot) in &state {
        let path = format!("/v3/rooms/{}/state/org.example.crash/{}", part(&rooms[*room]), part(&witness.name));
        let found = number(session, &path).await;
        assert!(slot.allows(&found), "{}: state is {found:?}, not {slot:?}", witness.name);
    }
    let filter = json!({ "room": { "timeline": { "limit": 1 }, "state": { "lazy_load_members": true } } });
    let sync = session.ok("GET", &format!("/v3/sync?filter={}", part(&filter.to_string())), &Value::Null).await;
    for (room, slot) in &receipts {
        let found = receipt(&sync["rooms"]["join"][&rooms[*room]], &session.user_id);
        assert!(slot.allows(&found), "{}: receipt at {found:?}, not {slot:?}", witness.name);
    }
}

/// The field `n` of a JSON document; nothing when there is no such document.
async fn number(session: &Session, path: &str) -> Option<u64> {
    let reply = session.call("GET", path, &Value::Null).await.unwrap();
    assert!(reply.status == 200 || reply.status == 404, "{path}: {}", reply.status);
    reply.json()["n"].as_u64()
}

fn receipt(room: &Value, user_id: &str) -> Option<String> {
    let ephemeral = room["ephemeral"]["events"].as_array()?;
    let receipts = ephemeral.iter().filter(|event| event["type"] == "m.receipt");
    let mut by_event = receipts.filter_map(|event| event["content"].as_object()).flatten();
    by_event.find(|(_, kinds)| !kinds["m.read"][user_id].is_null()).map(|(event_id, _)| event_id.clone())
}

/// New uploads and one older, byte for byte.
async fn media(witness: &Witness, rng: &mut ChaCha8Rng) {
    let wanted: Vec<(String, u64)> = {
        let mut memory = witness.memory.lock().unwrap();
        let mut wanted = memory.media[memory.media_checked..].to_vec();
        if !memory.media.is_empty() {
            wanted.push(memory.media[rng.random_range(0..memory.media.len())].clone());
        }
        memory.media_checked = memory.media.len();
        wanted
    };
    for (uri, seed) in wanted {
        let path = format!("/_matrix/client/v1/media/download/{}", uri.strip_prefix("mxc://").unwrap());
        let reply = witness.session.bytes("GET", &path, "text/plain", Default::default()).await.unwrap();
        assert_eq!(reply.status, 200, "{uri} is lost: {}", String::from_utf8_lossy(&reply.body));
        assert!(reply.body == picture_bytes(seed), "{uri} has other bytes now");
    }
}
