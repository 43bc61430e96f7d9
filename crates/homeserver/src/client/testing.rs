//! Rooms as the tests of endpoints use them: requests into the router of a server in memory.

use std::sync::atomic::{AtomicU64, Ordering};

use http::StatusCode;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use crate::http::Answer;
use crate::testing::{Server, User};

/// Transaction IDs.
pub(crate) fn next() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A part of a path or of a query.
pub(crate) fn enc(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

pub(crate) fn ok(answer: &Answer) -> Value {
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.json());
    answer.json()
}

pub(crate) fn refused(answer: &Answer) -> (u16, String) {
    (answer.status.as_u16(), answer.errcode())
}

pub(crate) fn forbidden() -> (u16, String) {
    (403, "M_FORBIDDEN".to_owned())
}

pub(crate) fn not_found() -> (u16, String) {
    (404, "M_NOT_FOUND".to_owned())
}

/// A room as one user reaches it.
#[derive(Clone)]
pub(crate) struct Room<'a> {
    pub(crate) user: &'a User,
    pub(crate) id: String,
}

pub(crate) async fn create(user: &User, request: Value) -> Room<'_> {
    let created = ok(&user.client.post("/_matrix/client/v3/createRoom", request).await);
    Room { user, id: created["room_id"].as_str().unwrap().to_owned() }
}

pub(crate) async fn public_room(user: &User) -> Room<'_> {
    create(user, json!({"preset": "public_chat"})).await
}

/// A public room with a history for those whom `visibility` lets see it.
pub(crate) async fn room_with_history<'a>(user: &'a User, visibility: &str) -> Room<'a> {
    let content = json!({"history_visibility": visibility});
    let state = json!([{"type": "m.room.history_visibility", "content": content}]);
    create(user, json!({"preset": "public_chat", "initial_state": state})).await
}

impl<'a> Room<'a> {
    pub(crate) fn of<'b>(&self, user: &'b User) -> Room<'b> {
        Room { user, id: self.id.clone() }
    }

    pub(crate) fn path(&self, rest: &str) -> String {
        format!("/_matrix/client/v3/rooms/{}/{rest}", enc(&self.id))
    }

    pub(crate) async fn get(&self, rest: &str) -> Answer {
        self.user.client.get(&self.path(rest)).await
    }

    pub(crate) async fn act(&self, act: &str, body: Value) {
        ok(&self.user.client.post(&self.path(act), body).await);
    }

    pub(crate) async fn join(&self, user: &User) {
        self.of(user).act("join", json!({})).await;
    }

    pub(crate) async fn leave(&self) {
        self.act("leave", json!({})).await;
    }

    pub(crate) async fn send(&self, kind: &str, content: Value) -> String {
        let nr = next();
        let sent = ok(&self.user.client.put(&self.path(&format!("send/{}/{nr}", enc(kind))), content).await);
        sent["event_id"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn say(&self, body: &str) -> String {
        self.send("m.room.message", json!({"msgtype": "m.text", "body": body})).await
    }

    pub(crate) async fn set(&self, kind: &str, key: &str, content: Value) -> String {
        let path = self.path(&format!("state/{}/{}", enc(kind), enc(key)));
        ok(&self.user.client.put(&path, content).await)["event_id"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn redact(&self, event_id: &str) -> String {
        let path = self.path(&format!("redact/{}/{}", enc(event_id), next()));
        ok(&self.user.client.put(&path, json!({})).await)["event_id"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn event(&self, event_id: &str) -> Answer {
        self.get(&format!("event/{}", enc(event_id))).await
    }

    pub(crate) async fn messages(&self, query: &str) -> Value {
        ok(&self.get(&format!("messages?{query}")).await)
    }

    /// The whole timeline as this user sees it, newest event first.
    pub(crate) async fn history(&self) -> Vec<Value> {
        self.pages("b", None, &[1_000]).await
    }

    /// All that is to be read from a token on, in pages of these sizes.
    pub(crate) async fn pages(&self, dir: &str, from: Option<&str>, sizes: &[usize]) -> Vec<Value> {
        let (mut events, mut from) = (Vec::new(), from.map(str::to_owned));
        for size in sizes.iter().cycle() {
            let from_part = from.as_ref().map(|from| format!("&from={}", enc(from))).unwrap_or_default();
            let page = self.messages(&format!("dir={dir}&limit={size}{from_part}")).await;
            let chunk = page["chunk"].as_array().unwrap();
            assert!(chunk.len() <= *size);
            if let Some(from) = &from {
                assert_eq!(page["start"], **from);
            }
            events.extend(chunk.iter().cloned());
            match page["end"].as_str() {
                Some(end) => from = Some(end.to_owned()),
                None => break,
            }
        }
        events
    }
}

pub(crate) fn ids(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["event_id"].as_str().unwrap()).collect()
}

pub(crate) fn bodies(events: &Value) -> Vec<&str> {
    events.as_array().unwrap().iter().filter_map(|event| event["content"]["body"].as_str()).collect()
}

pub(crate) async fn users<const N: usize>(server: &Server) -> [User; N] {
    let names = ["alice", "bob", "carol", "dave", "erin"];
    let mut users = Vec::new();
    for name in names.iter().take(N) {
        users.push(server.user(name).await);
    }
    users.try_into().ok().unwrap()
}
