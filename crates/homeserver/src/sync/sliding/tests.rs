//! Tests of sliding sync as clients use it: requests into the router of a server in memory.

use std::sync::atomic::{AtomicU64, Ordering};

use http::StatusCode;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use crate::http::Answer;
use crate::testing::{Server, User};

mod connections;
mod merged;
mod model;
mod rooms;

fn next() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn enc(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

fn ok(answer: &Answer) -> Value {
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.json());
    answer.json()
}

/// The pairs of a member event with state and key.
const LAZY: [&str; 2] = ["m.room.member", "$LAZY"];

async fn create(user: &User, request: Value) -> String {
    let created = ok(&user.client.post("/_matrix/client/v3/createRoom", request).await);
    created["room_id"].as_str().unwrap().to_owned()
}

async fn public_room(user: &User) -> String {
    create(user, json!({"preset": "public_chat"})).await
}

fn path(room: &str, rest: &str) -> String {
    format!("/_matrix/client/v3/rooms/{}/{rest}", enc(room))
}

async fn act(user: &User, room: &str, act: &str, body: Value) {
    ok(&user.client.post(&path(room, act), body).await);
}

async fn join(user: &User, room: &str) {
    act(user, room, "join", json!({})).await;
}

async fn send(user: &User, room: &str, kind: &str, content: Value) -> String {
    let sent = user.client.put(&path(room, &format!("send/{kind}/{}", next())), content).await;
    ok(&sent)["event_id"].as_str().unwrap().to_owned()
}

async fn say(user: &User, room: &str, body: &str) -> String {
    send(user, room, "m.room.message", json!({"msgtype": "m.text", "body": body})).await
}

async fn set(user: &User, room: &str, kind: &str, key: &str, content: Value) -> String {
    let set = user.client.put(&path(room, &format!("state/{kind}/{}", enc(key))), content).await;
    ok(&set)["event_id"].as_str().unwrap().to_owned()
}

/// Where the early dialect is spoken.
const EARLY: &str = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync";

/// One client's connection.
#[derive(Clone)]
struct Connection<'a> {
    user: &'a User,
    body: Value,
    pos: Option<String>,
}

impl<'a> Connection<'a> {
    fn new(user: &'a User, body: Value) -> Self {
        let mut connection = Connection { user, body, pos: None };
        connection.body["conn_id"] = json!(next().to_string());
        connection
    }

    /// With one list of all rooms.
    fn list(user: &'a User, limit: u64, required: Value) -> Self {
        let list = json!({"ranges": [[0, 99]], "timeline_limit": limit, "required_state": required});
        Self::new(user, json!({"lists": {"all": list}}))
    }

    async fn ask(&self, timeout: u64) -> Answer {
        let pos = self.pos.as_ref().map(|pos| format!("&pos={}", enc(pos))).unwrap_or_default();
        self.user.client.post(&format!("{EARLY}?timeout={timeout}{pos}"), self.body.clone()).await
    }

    /// Gets an answer, and does not come back with it.
    async fn peek(&self) -> Value {
        ok(&self.ask(0).await)
    }

    async fn sync(&mut self) -> Value {
        self.wait(0).await
    }

    async fn wait(&mut self, timeout: u64) -> Value {
        let answer = ok(&self.ask(timeout).await);
        self.pos = Some(answer["pos"].as_str().unwrap().to_owned());
        answer
    }
}

/// The room of an answer that is about one.
fn only<'v>(answer: &'v Value, room: &str) -> &'v Value {
    let rooms = answer["rooms"].as_object().unwrap();
    assert_eq!(rooms.keys().collect::<Vec<_>>(), [room], "{answer}");
    &answer["rooms"][room]
}

fn rooms_of(answer: &Value) -> Vec<String> {
    let mut rooms: Vec<String> = answer["rooms"].as_object().unwrap().keys().cloned().collect();
    rooms.sort_unstable();
    rooms
}

fn nothing(answer: &Value) {
    assert_eq!((&answer["rooms"], &answer["extensions"]), (&json!({}), &json!({})), "{answer}");
}

fn ids(events: &Value) -> Vec<String> {
    events.as_array().into_iter().flatten().map(|event| event["event_id"].as_str().unwrap().to_owned()).collect()
}

/// Types and keys of state events, sorted.
fn keys(events: &Value) -> Vec<(String, String)> {
    let text = |event: &Value, name: &str| event[name].as_str().unwrap().to_owned();
    let events = events.as_array().into_iter().flatten();
    let mut keys: Vec<_> = events.map(|event| (text(event, "type"), text(event, "state_key"))).collect();
    keys.sort_unstable();
    keys
}

fn key(kind: &str, key: &str) -> (String, String) {
    (kind.to_owned(), key.to_owned())
}
