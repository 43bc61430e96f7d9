//! Sync as clients see it: requests straight into the router, on the memory engine. Numbers are those of the pitfalls.

use std::time::Duration;

use serde_json::{Value, json};
use store::MemoryDisk;

use crate::App;
use crate::config::Config;
use crate::testing::{Server, User, config};

mod law;
mod pitfalls;
mod unread;

/// A server and shorthands for what its users do.
struct World {
    server: Server,
    txn: std::cell::Cell<u32>,
}

impl World {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = config();
        // Everybody who comes and goes would be told to everybody else.
        config.presence.enabled = false;
        change(&mut config);
        World { server: Server::new(config), txn: std::cell::Cell::new(0) }
    }

    /// On a disk that is there already, or will be later.
    fn at(disk: MemoryDisk) -> Self {
        let mut config = config();
        config.presence.enabled = false;
        World { server: Server::of(App::on_memory_disk(config, disk)), txn: std::cell::Cell::new(0) }
    }

    async fn user(&self, name: &str) -> User {
        self.server.user(name).await
    }

    async fn room(&self, creator: &User, body: Value) -> String {
        let answer = creator.client.post("/_matrix/client/v3/createRoom", body).await;
        answer.json()["room_id"].as_str().unwrap_or_else(|| panic!("{}", answer.json())).to_owned()
    }

    async fn public(&self, creator: &User) -> String {
        self.room(creator, json!({"preset": "public_chat"})).await
    }

    async fn act(&self, who: &User, act: &str, room: &str, body: Value) {
        let answer = who.client.post(&format!("/_matrix/client/v3/rooms/{room}/{act}"), body).await;
        assert!(answer.status.is_success(), "{act}: {}", answer.json());
    }

    async fn join(&self, who: &User, room: &str) {
        self.act(who, "join", room, json!({})).await;
    }

    async fn leave(&self, who: &User, room: &str) {
        self.act(who, "leave", room, json!({})).await;
    }

    async fn on(&self, who: &User, act: &str, room: &str, target: &User) {
        self.act(who, act, room, json!({"user_id": target.user_id})).await;
    }

    async fn say(&self, who: &User, room: &str, text: &str) -> String {
        self.send(who, room, "m.room.message", json!({"msgtype": "m.text", "body": text})).await
    }

    async fn send(&self, who: &User, room: &str, kind: &str, content: Value) -> String {
        let txn = self.txn.replace(self.txn.get() + 1);
        let path = format!("/_matrix/client/v3/rooms/{room}/send/{kind}/{txn}");
        event_id(&who.client.put(&path, content).await.json())
    }

    async fn set(&self, who: &User, room: &str, kind: &str, content: Value) -> String {
        event_id(&who.client.put(&format!("/_matrix/client/v3/rooms/{room}/state/{kind}"), content).await.json())
    }

    async fn receipt(&self, who: &User, room: &str, kind: &str, event_id: &str, body: Value) {
        let path = format!("/_matrix/client/v3/rooms/{room}/receipt/{kind}/{event_id}");
        let answer = who.client.post(&path, body).await;
        assert!(answer.status.is_success(), "{}", answer.json());
    }

    async fn account_data(&self, who: &User, room: Option<&str>, kind: &str, content: Value) {
        let room = room.map(|room| format!("/rooms/{room}")).unwrap_or_default();
        let path = format!("/_matrix/client/v3/user/{}{room}/account_data/{kind}", who.user_id);
        let answer = who.client.put(&path, content).await;
        assert!(answer.status.is_success(), "{}", answer.json());
    }

    async fn typing(&self, who: &User, room: &str, typing: bool) {
        let path = format!("/_matrix/client/v3/rooms/{room}/typing/{}", who.user_id);
        let answer = who.client.put(&path, json!({"typing": typing, "timeout": 10_000})).await;
        assert!(answer.status.is_success(), "{}", answer.json());
    }
}

fn event_id(answer: &Value) -> String {
    answer["event_id"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

/// A client that syncs again and again.
#[derive(Clone)]
struct Client {
    user: User,
    since: Option<String>,
    query: String,
}

impl Client {
    fn new(user: &User) -> Self {
        Client { user: user.clone(), since: None, query: String::new() }
    }

    fn filtered(user: &User, filter: &Value) -> Self {
        Client { query: format!("&filter={}", encode(&filter.to_string())), ..Self::new(user) }
    }

    /// What is new, and from now on known.
    async fn next(&mut self) -> Value {
        self.poll("").await
    }

    async fn poll(&mut self, more: &str) -> Value {
        let answer = self.peek(more).await;
        self.since = answer["next_batch"].as_str().map(str::to_owned);
        answer
    }

    /// What is new, without getting to know it.
    async fn peek(&self, more: &str) -> Value {
        let since = self.since.as_ref().map(|since| format!("&since={since}")).unwrap_or_default();
        let answer = self.user.client.get(&format!("/_matrix/client/v3/sync?x{since}{}{more}", self.query)).await;
        assert!(answer.status.is_success(), "{}", answer.json());
        answer.json()
    }
}

fn encode(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// The bodies (or types) of events.
fn told(events: &Value) -> Vec<String> {
    let body = |event: &Value| event["content"]["body"].as_str().or(event["type"].as_str()).unwrap_or("").to_owned();
    events["events"].as_array().into_iter().flatten().map(body).collect()
}

/// Type and state key of events, sorted.
fn keys(events: &Value) -> Vec<String> {
    let key = |event: &Value| {
        format!("{} {}", event["type"].as_str().unwrap_or_default(), event["state_key"].as_str().unwrap_or_default())
    };
    let mut keys: Vec<String> = events["events"].as_array().into_iter().flatten().map(key).collect();
    keys.sort();
    keys
}

fn joined<'a>(answer: &'a Value, room: &str) -> &'a Value {
    &answer["rooms"]["join"][room]
}

/// What every answer says, whether or not anything happened.
const ALWAYS: [&str; 3] = ["next_batch", "device_one_time_keys_count", "device_unused_fallback_key_types"];

/// Whether nothing happened.
fn is_quiet(answer: &Value) -> bool {
    answer.as_object().is_some_and(|answer| answer.keys().all(|key| ALWAYS.contains(&key.as_str())))
}

/// Lets everything that can run do so.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
