//! What the accounts do while the server is killed under them, and what they remember of its answers.
//!
//! A worker does one thing at a time and goes on with it, like a real client, until it has an answer: after a crash it
//! repeats the request as it was. So in the end everything that was begun is acknowledged, and must be there once.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rand::Rng as _;
use rand::SeedableRng as _;
use rand::seq::IndexedRandom as _;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::client::{Gone, Reply, Session, part};

/// A value that was acknowledged, and one that was asked for and not answered yet: after a crash it may be either.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Slot<T> {
    pub acknowledged: Option<T>,
    pub asked: Option<T>,
}

impl<T: PartialEq> Slot<T> {
    fn ask(&mut self, value: T) {
        self.asked = Some(value);
    }

    fn acknowledge(&mut self) {
        self.acknowledged = self.asked.take();
    }

    pub fn allows(&self, value: &Option<T>) -> bool {
        *value == self.acknowledged || (self.asked.is_some() && *value == self.asked)
    }
}

/// An acknowledged event, with the request that made it.
#[derive(Clone, Debug)]
pub struct Sent {
    pub room: usize,
    pub event_id: String,
    pub path: String,
    pub body: Value,
    /// State events have no transaction ID: repeating the request may make a new event.
    pub has_txn: bool,
}

/// What one account knows to be true.
#[derive(Debug, Default)]
pub struct Memory {
    pub sent: Vec<Sent>,
    /// How many of `sent` an earlier check has found in the room.
    pub checked: usize,
    pub redacted: Vec<(usize, String)>,
    pub state: BTreeMap<usize, Slot<u64>>,
    pub receipts: BTreeMap<usize, Slot<String>>,
    pub account_data: Slot<u64>,
    /// Address and the seed of the bytes.
    pub media: Vec<(String, u64)>,
    pub media_checked: usize,
    /// Requests that were cut off and had to be repeated.
    pub repeated: u64,
}

/// Whether the server is there, for workers to wait on; and how many of them wait.
pub struct Gate {
    open: watch::Sender<bool>,
    waiting: AtomicUsize,
}

impl Gate {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { open: watch::Sender::new(false), waiting: AtomicUsize::new(0) })
    }

    pub fn set(&self, open: bool) {
        self.open.send_replace(open);
    }

    async fn pass(&self) {
        if *self.open.borrow() {
            return;
        }
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let _ = self.open.subscribe().wait_for(|open| *open).await;
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether all `workers` have noticed that the gate is closed.
    pub fn all_wait(&self, workers: usize) -> bool {
        self.waiting.load(Ordering::SeqCst) >= workers
    }
}

pub struct Worker {
    pub session: Session,
    pub memory: Arc<Mutex<Memory>>,
    gate: Arc<Gate>,
    rooms: Arc<Vec<String>>,
    rng: ChaCha8Rng,
    name: String,
    counter: u64,
}

impl Worker {
    pub fn new(session: Session, gate: Arc<Gate>, rooms: Arc<Vec<String>>, name: String, seed: u64) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(seed);
        Self { session, memory: Arc::default(), gate, rooms, rng, name, counter: 0 }
    }

    /// Works until the task is aborted.
    pub async fn run(mut self) {
        loop {
            self.gate.pass().await;
            let room = self.rng.random_range(0..self.rooms.len());
            self.counter += 1;
            match self.rng.random_range(0..100) {
                0..60 => self.say(room).await,
                60..68 => self.set_state(room).await,
                68..75 => self.redact().await,
                75..84 => self.read(room).await,
                84..92 => self.keep_account_data().await,
                _ => self.upload().await,
            }
        }
    }

    fn remember(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.memory.lock().unwrap()
    }

    /// Repeats a request until it is answered. Every answer but success is a failure of the test.
    async fn insist(&self, method: &str, path: &str, body: &Value) -> Value {
        let reply = self.insist_with(|| self.session.call(method, path, body)).await;
        assert_eq!(reply.status, 200, "{method} {path}: {}", String::from_utf8_lossy(&reply.body));
        reply.json()
    }

    async fn insist_with<F: Future<Output = Result<Reply, Gone>>>(&self, request: impl Fn() -> F) -> Reply {
        loop {
            self.gate.pass().await;
            match request().await {
                Ok(reply) => return reply,
                Err(Gone) => {
                    self.remember().repeated += 1;
                    // The gate closes a moment after the kill; do not spin until then.
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
            }
        }
    }

    async fn say(&mut self, room: usize) {
        let body = json!({ "msgtype": "m.text", "body": format!("{} {}", self.name, self.counter) });
        let path = format!("/v3/rooms/{}/send/m.room.message/t{}", part(&self.rooms[room]), self.counter);
        let answer = if self.rng.random_bool(0.1) {
            // The same request twice at the same time: one event.
            let (one, two) = tokio::join!(self.insist("PUT", &path, &body), self.insist("PUT", &path, &body));
            assert_eq!(one, two, "one transaction ID, two answers");
            one
        } else {
            self.insist("PUT", &path, &body).await
        };
        self.acknowledged(room, &answer, path, body, true);
    }

    fn acknowledged(&self, room: usize, answer: &Value, path: String, body: Value, has_txn: bool) {
        let event_id = answer["event_id"].as_str().unwrap().to_owned();
        self.remember().sent.push(Sent { room, event_id, path, body, has_txn });
    }

    async fn set_state(&mut self, room: usize) {
        let path = format!("/v3/rooms/{}/state/org.example.crash/{}", part(&self.rooms[room]), part(&self.name));
        let body = json!({ "n": self.counter });
        self.remember().state.entry(room).or_default().ask(self.counter);
        let answer = self.insist("PUT", &path, &body).await;
        self.remember().state.entry(room).or_default().acknowledge();
        self.acknowledged(room, &answer, path, body, false);
    }

    async fn redact(&mut self) {
        let chosen = {
            let memory = self.memory.lock().unwrap();
            let own: Vec<&Sent> = memory.sent.iter().rev().filter(|s| s.path.contains("/send/")).take(50).collect();
            own.choose(&mut self.rng).map(|sent| (sent.room, sent.event_id.clone()))
        };
        let Some((room, event_id)) = chosen else { return };
        let path = format!("/v3/rooms/{}/redact/{}/t{}", part(&self.rooms[room]), part(&event_id), self.counter);
        let body = json!({ "reason": "crash test" });
        let answer = self.insist("PUT", &path, &body).await;
        self.acknowledged(room, &answer, path, body, true);
        self.remember().redacted.push((room, event_id));
    }

    async fn read(&mut self, room: usize) {
        let newest = self.remember().sent.iter().rev().find(|sent| sent.room == room).map(|sent| sent.event_id.clone());
        let Some(event_id) = newest else { return };
        let path = format!("/v3/rooms/{}/receipt/m.read/{}", part(&self.rooms[room]), part(&event_id));
        self.remember().receipts.entry(room).or_default().ask(event_id);
        self.insist("POST", &path, &json!({})).await;
        self.remember().receipts.entry(room).or_default().acknowledge();
    }

    async fn keep_account_data(&mut self) {
        let path = format!("/v3/user/{}/account_data/org.example.crash", part(&self.session.user_id));
        self.remember().account_data.ask(self.counter);
        self.insist("PUT", &path, &json!({ "n": self.counter })).await;
        self.remember().account_data.acknowledge();
    }

    async fn upload(&mut self) {
        let seed = self.rng.random();
        let send = || {
            let body = picture_bytes(seed).into();
            self.session.bytes("POST", "/_matrix/media/v3/upload", "application/octet-stream", body)
        };
        let reply = self.insist_with(send).await;
        assert_eq!(reply.status, 200, "upload: {}", String::from_utf8_lossy(&reply.body));
        let uri = reply.json()["content_uri"].as_str().unwrap().to_owned();
        self.remember().media.push((uri, seed));
    }
}

/// Bytes that are made again from their seed when they are compared.
pub fn picture_bytes(seed: u64) -> Vec<u8> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut bytes = vec![0; rng.random_range(1..40_000)];
    rng.fill(&mut bytes[..]);
    bytes
}
