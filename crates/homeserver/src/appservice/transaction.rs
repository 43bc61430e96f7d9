//! Putting a transaction together: JSON, written once and kept as it is.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use store::{Pos, Snapshot};

use crate::App;
use crate::config::registrations::Registration;
use crate::e2ee::to_device;
use crate::error::{Error, Result};
use crate::rooms::shown::{Shown, Style};
use crate::schema::{KeyCounts, ServiceTxn};
use crate::stored::StoredEvent;

/// A transaction with more events, or larger, is not begun.
const MAX_EVENTS: usize = 100;
const MAX_BYTES: usize = 512 * 1024;
/// Messages to one device in one transaction.
const MAX_MESSAGES: usize = 100;
/// What no transaction exceeds: it has to fit in one commit.
const MOST_BYTES: usize = 900 * 1024;

/// By user and device.
type ByDevice = BTreeMap<String, Map<String, Value>>;

/// A transaction that is being put together.
pub(super) struct Draft<'a> {
    service: &'a Registration,
    now_ms: u64,
    /// Lists of JSON objects, without brackets.
    events: Vec<u8>,
    ephemeral: Vec<u8>,
    to_device: Vec<u8>,
    count: usize,
    delivered: Vec<(String, String, u64)>,
    device_lists: BTreeSet<String>,
    one_time_keys: ByDevice,
    unused_fallback_keys: ByDevice,
}

impl<'a> Draft<'a> {
    pub(super) fn new(app: &App, service: &'a Registration) -> Self {
        Draft {
            service,
            now_ms: app.clock.now_ms(),
            events: Vec::new(),
            ephemeral: Vec::new(),
            to_device: Vec::new(),
            count: 0,
            delivered: Vec::new(),
            device_lists: BTreeSet::new(),
            one_time_keys: ByDevice::new(),
            unused_fallback_keys: ByDevice::new(),
        }
    }

    /// Nothing in it is worth sending.
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0 && self.device_lists.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.count >= MAX_EVENTS || self.bytes() >= MAX_BYTES
    }

    fn bytes(&self) -> usize {
        // The ephemeral ones may go under two names.
        self.events.len() + 2 * self.ephemeral.len() + self.to_device.len()
    }

    pub(super) fn event(&mut self, at: Pos, event: StoredEvent, replaced: Option<StoredEvent>, room_id: &str) {
        let style = Style { now_ms: self.now_ms, device_id: None, room_id: Some(room_id), federation: false };
        next(&mut self.events);
        Shown { replaced, ..Shown::plain(at, event) }.write(&mut self.events, &style);
        self.count += 1;
    }

    /// Typing, receipts, presence.
    pub(super) fn ephemeral(&mut self, event: &Value) {
        next(&mut self.ephemeral);
        self.ephemeral.extend_from_slice(event.to_string().as_bytes());
        self.count += 1;
    }

    /// The messages that wait for a device. Whether there are any, and whether some are left.
    pub(super) fn messages(&mut self, snapshot: &Snapshot, (user_id, device_id): (&str, &str)) -> Result<(bool, bool)> {
        let room = MOST_BYTES.saturating_sub(self.bytes());
        let waiting = to_device::waiting(snapshot, user_id, device_id, Pos::ZERO, (MAX_MESSAGES, room / 2))?;
        let too_large = waiting.events.iter().map(|event| event.len()).sum::<usize>() > room;
        if too_large && !self.is_empty() {
            return Ok((false, true));
        }
        if too_large {
            // A single one, which fits nowhere.
            tracing::warn!(user_id, device_id, "a message is too large for an application service and is given up");
            self.delivered.push((user_id.to_owned(), device_id.to_owned(), waiting.through.0));
            self.count += 1;
            return Ok((true, waiting.more));
        }
        for event in &waiting.events {
            let mut event: Map<String, Value> = serde_json::from_slice(event).map_err(Error::internal)?;
            event.insert("to_user_id".to_owned(), json!(user_id));
            event.insert("to_device_id".to_owned(), json!(device_id));
            next(&mut self.to_device);
            self.to_device.extend_from_slice(Value::Object(event).to_string().as_bytes());
            self.count += 1;
        }
        if waiting.events.is_empty() {
            return Ok((false, false));
        }
        self.delivered.push((user_id.to_owned(), device_id.to_owned(), waiting.through.0));
        Ok((true, waiting.more))
    }

    /// Somebody's devices changed.
    pub(super) fn device_lists(&mut self, user_id: Option<&str>) {
        self.device_lists.extend(user_id.map(str::to_owned));
    }

    pub(super) fn key_counts(&mut self, (user_id, device_id): (&str, &str), counts: &KeyCounts) {
        let put = |by_device: &mut ByDevice, value: Value| {
            by_device.entry(user_id.to_owned()).or_default().insert(device_id.to_owned(), value);
        };
        put(&mut self.one_time_keys, json!(counts.one_time));
        put(&mut self.unused_fallback_keys, json!(counts.unused_fallback));
        self.count += 1;
    }

    pub(super) fn finish(self, number: u64) -> ServiceTxn {
        let mut body = Vec::with_capacity(self.events.len() + self.ephemeral.len() + self.to_device.len() + 256);
        body.extend_from_slice(b"{\"events\":[");
        body.extend_from_slice(&self.events);
        body.push(b']');
        let mut list = |name: &str, items: &[u8]| {
            if !items.is_empty() {
                member(&mut body, name);
                body.push(b'[');
                body.extend_from_slice(items);
                body.push(b']');
            }
        };
        list("ephemeral", &self.ephemeral);
        if self.service.old_ephemeral {
            list("de.sorunome.msc2409.ephemeral", &self.ephemeral);
        }
        list("de.sorunome.msc2409.to_device", &self.to_device);
        let mut value = |name: &str, value: Value| {
            member(&mut body, name);
            body.extend_from_slice(value.to_string().as_bytes());
        };
        if !self.device_lists.is_empty() {
            value("org.matrix.msc3202.device_lists", json!({ "changed": self.device_lists, "left": [] }));
        }
        if !self.one_time_keys.is_empty() {
            value("org.matrix.msc3202.device_one_time_keys_count", json!(self.one_time_keys));
            value("org.matrix.msc3202.device_unused_fallback_key_types", json!(self.unused_fallback_keys));
        }
        body.push(b'}');
        // Stored events are UTF-8, and so is everything else here.
        let body = String::from_utf8_lossy(&body).into_owned();
        ServiceTxn { number, body, to_device: self.delivered }
    }
}

fn next(list: &mut Vec<u8>) {
    if !list.is_empty() {
        list.push(b',');
    }
}

fn member(body: &mut Vec<u8>, name: &str) {
    body.extend_from_slice(b",\"");
    body.extend_from_slice(name.as_bytes());
    body.extend_from_slice(b"\":");
}
