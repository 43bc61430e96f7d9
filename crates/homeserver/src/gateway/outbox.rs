//! What one pusher still has to be told, in order, and what was learned about its gateway. Sending is for `delivery`.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Map, Value};
use store::Pos;

use crate::config::Destination;
use crate::schema::{Pusher, RoomNr};

/// More than so many wait for nobody: the oldest are given up.
const MAX_WAITING: usize = 256;

/// Something to tell.
#[derive(Clone, Debug)]
pub enum Item {
    Event(Note),
    /// How much is unread has changed.
    Badge,
}

/// An event that notifies.
#[derive(Clone, Debug)]
pub struct Note {
    pub room: RoomNr,
    pub at: Pos,
    pub tweaks: Arc<Map<String, Value>>,
    /// When it was put here.
    pub ts: u64,
}

/// What a pusher asks for.
#[derive(Clone, Debug)]
pub struct Settings {
    pub pusher: Pusher,
    pub url: String,
    /// What goes along with every notification.
    pub data: Map<String, Value>,
    pub event_id_only: bool,
    /// The app counts itself what is unread.
    pub no_badge: bool,
}

/// The queue of one pusher.
pub struct Outbox {
    /// App ID and pushkey.
    pub id: (String, String),
    state: Mutex<State>,
}

struct State {
    settings: Arc<Settings>,
    waiting: VecDeque<Item>,
    /// Somebody is at work on it.
    busy: bool,
    closed: bool,
    /// Everything up to here was dealt with.
    done: Pos,
    saved: Pos,
    /// How often it failed in a row, and when it is tried again (milliseconds since the epoch).
    failures: u32,
    retry_ts: u64,
    last_badge: Option<u64>,
}

impl Outbox {
    /// `None` for pushers that nothing may be sent to.
    pub fn open(app_id: String, pushkey: String, pusher: Pusher, gateways: &[Destination]) -> Option<Self> {
        let mut data: Map<String, Value> = serde_json::from_str(&pusher.data).ok()?;
        let Some(Value::String(url)) = data.remove("url") else { return None };
        let place: Destination = place_of(&url)?;
        if !gateways.iter().any(|gateway| gateway.covers(&place)) {
            return None;
        }
        let event_id_only = data.get("format").and_then(Value::as_str) == Some("event_id_only");
        let no_badge = data.get("org.matrix.msc4076.disable_badge_count") == Some(&Value::Bool(true));
        let settings = Arc::new(Settings { pusher, url, data, event_id_only, no_badge });
        let state = State {
            settings,
            waiting: VecDeque::new(),
            busy: false,
            closed: false,
            done: Pos::ZERO,
            saved: Pos::ZERO,
            failures: 0,
            retry_ts: 0,
            last_badge: None,
        };
        Some(Outbox { id: (app_id, pushkey), state: Mutex::new(state) })
    }

    pub fn settings(&self) -> Arc<Settings> {
        self.state.lock().settings.clone()
    }

    /// The pusher was set anew. Perhaps its gateway is another one.
    pub fn changed(&self, fresh: &Outbox) {
        let mut state = self.state.lock();
        state.settings = fresh.settings();
        (state.failures, state.retry_ts) = (0, 0);
    }

    /// Nothing up to here is told.
    pub fn begin_after(&self, at: Pos) {
        let mut state = self.state.lock();
        (state.done, state.saved) = (at, at);
    }

    /// The pusher is gone.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.waiting.clear();
    }

    /// Puts something at the end. Says whether somebody has to begin to work on it.
    #[must_use]
    pub fn put(&self, item: Item) -> bool {
        let mut state = self.state.lock();
        match (&item, state.waiting.back()) {
            _ if state.closed => return false,
            (Item::Event(note), _) if note.at <= state.done => return false,
            (Item::Badge, Some(Item::Badge)) => return false,
            _ => {}
        }
        if state.waiting.len() >= MAX_WAITING {
            // The first may be under way just now.
            if let Some(Item::Event(note)) = state.waiting.remove(1) {
                tracing::debug!(at = %note.at, "a notification is given up: too many wait for their gateway");
            }
        }
        state.waiting.push_back(item);
        !std::mem::replace(&mut state.busy, true)
    }

    /// The next thing to do; `None`: the work is over.
    pub fn next(&self) -> Option<Item> {
        let mut state = self.state.lock();
        let next = state.waiting.front().cloned();
        state.busy = next.is_some();
        next
    }

    /// The next thing was dealt with. `told`: the gateway answered, and was told that so much is unread.
    pub fn pop(&self, told: Option<u64>) {
        let mut state = self.state.lock();
        if let Some(Item::Event(note)) = state.waiting.pop_front() {
            state.done = state.done.max(note.at);
        }
        if told.is_some() {
            (state.failures, state.retry_ts, state.last_badge) = (0, 0, told);
        }
    }

    pub fn last_badge(&self) -> Option<u64> {
        self.state.lock().last_badge
    }

    /// When the next attempt may be made.
    pub fn retry_ts(&self) -> u64 {
        self.state.lock().retry_ts
    }

    /// It failed again. `pause_ms` says how long to wait after so many failures. Says how many there were.
    pub fn failed(&self, now_ms: u64, pause_ms: impl Fn(u32) -> u64) -> u32 {
        let mut state = self.state.lock();
        state.failures = state.failures.saturating_add(1);
        state.retry_ts = now_ms.saturating_add(pause_ms(state.failures));
        state.failures
    }

    /// The oldest event that waits.
    pub fn oldest(&self) -> Option<Pos> {
        self.state.lock().waiting.iter().find_map(|item| match item {
            Item::Event(note) => Some(note.at),
            Item::Badge => None,
        })
    }

    /// How far it has come, if that has to be written down.
    pub fn unsaved(&self) -> Option<Pos> {
        let state = self.state.lock();
        (state.done > state.saved && !state.closed).then_some(state.done)
    }

    pub fn saved(&self, at: Pos) {
        self.state.lock().saved = at;
    }
}

fn place_of(url: &str) -> Option<Destination> {
    let uri: http::Uri = url.parse().ok()?;
    format!("{}://{}", uri.scheme_str()?, uri.authority()?).parse().ok()
}
