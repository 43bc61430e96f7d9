//! Messages from device to device. They wait here until the device they are for has acknowledged them.
//!
//! What waits for a device is bounded. When it is too much, whoever has most in the queue loses their oldest messages,
//! until it is some less than it may be: who floods a device pushes out their own messages and nobody else's.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;

use bytes::Bytes;
use ruma::{OwnedUserId, ServerName, UserId};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use store::{Batch, Pos, Read, Store, Tx};

use crate::error::Result;
use crate::schema::{DEVICES, TO_DEVICE, TO_DEVICE_AT, TO_DEVICE_LOAD, TXNS, ToDevice, Txn, Usage};

/// All devices of a user.
const ALL: &str = "*";
/// What may wait for one device.
const MAX_WAITING: Usage = Usage { count: 10_000, bytes: 16 * 1024 * 1024 };
/// What is kept of a queue that was found to be too long.
const KEPT: Usage = Usage { count: 9_000, bytes: 14 * 1024 * 1024 };
/// After so many messages a queue is counted, whatever is believed of it.
const COUNT_EVERY: u64 = 1_000;
/// So many messages are deleted in one commit.
const MAX_DELETED: usize = 500;

/// What is sent to whom: content by user and device.
pub type Messages = BTreeMap<OwnedUserId, BTreeMap<String, Box<RawValue>>>;

/// A request to send messages.
#[derive(Debug)]
pub struct Sending<'a> {
    pub sender: &'a UserId,
    pub kind: &'a str,
    pub messages: &'a Messages,
    /// The row that says whether this was done already.
    pub txn: (&'a str, &'a str, &'a [u8; 16]),
    pub now_ms: u64,
}

/// An event as the device gets it.
#[derive(Serialize)]
struct Event<'a> {
    sender: &'a UserId,
    r#type: &'a str,
    content: &'a RawValue,
}

/// User and device.
pub type DeviceOf = (String, String);

/// Puts messages into the queues of their devices, once. Devices that are not here are passed over. Returns those whose
/// queue may be too long now: they want to be trimmed.
pub fn send(tx: &mut Tx, server_name: &ServerName, sending: &Sending<'_>) -> Result<Vec<DeviceOf>> {
    let mut long = Vec::new();
    if tx.contains(&TXNS, sending.txn)? {
        return Ok(long);
    }
    let at = tx.next_pos();
    for (user_id, devices) in sending.messages {
        if user_id.server_name() != server_name {
            continue;
        }
        for (device_id, content) in devices {
            let Sending { sender, kind, .. } = *sending;
            let event = ToDevice(serde_json::to_vec(&Event { sender, r#type: kind, content })?.into());
            if device_id != ALL {
                put(tx, user_id, device_id, at, &event, &mut long)?;
                continue;
            }
            let all = tx.scan_guarded(&DEVICES, DEVICES.prefix((user_id.as_str(),)))?;
            for ((_, device_id), _) in all.iter().filter(|((_, id), _)| !devices.contains_key(id)) {
                put(tx, user_id, device_id, at, &event, &mut long)?;
            }
        }
    }
    tx.put(&TXNS, sending.txn, &Txn::new("", sending.now_ms));
    Ok(long)
}

fn put(
    tx: &mut Tx,
    user_id: &UserId,
    device_id: &str,
    at: Pos,
    event: &ToDevice,
    long: &mut Vec<DeviceOf>,
) -> Result<()> {
    let device = (user_id.as_str(), device_id);
    if !tx.contains(&DEVICES, device)? {
        return Ok(());
    }
    tx.put(&TO_DEVICE, (device.0, device.1, at), event);
    tx.put(&TO_DEVICE_AT, device, &at);
    // Whoever sends at the same time does not wait: what is miscounted is counted again later.
    let load = tx.peek(&TO_DEVICE_LOAD, device)?.unwrap_or_default().with(event.0.len() as u64);
    tx.put(&TO_DEVICE_LOAD, device, &load);
    if is_long(load) || load.count.is_multiple_of(COUNT_EVERY) {
        long.push((user_id.to_string(), device_id.to_owned()));
    }
    Ok(())
}

fn is_long(waiting: Usage) -> bool {
    waiting.count > MAX_WAITING.count || waiting.bytes > MAX_WAITING.bytes
}

/// Counts what waits for a device, and deletes what is too much. Blocks while it reads.
pub fn trim(store: &Store, (user_id, device_id): &DeviceOf) -> Result<()> {
    let read = store.snapshot();
    let mut queue = Queue::read(&read, user_id, device_id)?;
    let gone = if is_long(queue.load) { queue.shorten() } else { Vec::new() };
    for some in gone.chunks(MAX_DELETED) {
        let mut batch = Batch::new();
        for at in some {
            batch.delete(&TO_DEVICE, (user_id, device_id, *at));
        }
        store.commit(batch).map(drop)?;
    }
    let mut batch = Batch::new();
    // Of a device that is deleted at this moment nothing is counted.
    batch.check_unchanged(&DEVICES, (user_id, device_id), read.version());
    batch.put(&TO_DEVICE_LOAD, (user_id, device_id), &queue.load);
    match store.commit(batch) {
        Ok(_) | Err(store::Error::Conflict) => Ok(()),
        Err(cause) => Err(cause.into()),
    }
}

/// What waits for a device, by who sent it.
#[derive(Default)]
struct Queue {
    load: Usage,
    senders: BTreeMap<String, (Usage, VecDeque<(Pos, u64)>)>,
}

impl Queue {
    fn read(read: &impl Read, user_id: &str, device_id: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Sent<'a> {
            #[serde(borrow)]
            sender: Cow<'a, str>,
        }
        let mut queue = Queue::default();
        read.visit(&TO_DEVICE, TO_DEVICE.prefix((user_id, device_id)), |(.., at), row| {
            let json = ToDevice::json_of(row);
            let sender = serde_json::from_slice::<Sent<'_>>(json).map(|sent| sent.sender.into_owned());
            let bytes = json.len() as u64;
            let (usage, sent) = queue.senders.entry(sender.unwrap_or_default()).or_default();
            *usage = usage.with(bytes);
            sent.push_back((at, bytes));
            queue.load = queue.load.with(bytes);
            ControlFlow::Continue(())
        })?;
        Ok(queue)
    }

    /// Takes out the oldest messages of whoever has most. Where they lie.
    fn shorten(&mut self) -> Vec<Pos> {
        let mut gone = Vec::new();
        while self.load.count > KEPT.count || self.load.bytes > KEPT.bytes {
            // A message takes some room however short it is.
            let weight = |usage: &Usage| usage.bytes + usage.count * (KEPT.bytes / KEPT.count);
            let Some((usage, sent)) = self.senders.values_mut().max_by_key(|(usage, _)| weight(usage)) else { break };
            let Some((at, bytes)) = sent.pop_front() else { break };
            (*usage, self.load) = (usage.without(bytes), self.load.without(bytes));
            gone.push(at);
        }
        gone
    }
}

/// The messages to a device after a position, oldest first: at most so many, and of about so many bytes (but one at
/// least). `more` says that some are left.
pub fn waiting(read: &impl Read, user_id: &str, device_id: &str, after: Pos, most: (usize, usize)) -> Result<Waiting> {
    let mut waiting = Waiting::default();
    if read.get(&TO_DEVICE_AT, (user_id, device_id))?.is_none_or(|last| last <= after) {
        return Ok(waiting);
    }
    let (max_messages, max_bytes) = most;
    let mut bytes = 0;
    let span = TO_DEVICE.prefix((user_id, device_id)).after((user_id, device_id, after));
    for row in read.scan(&TO_DEVICE, span) {
        let ((.., at), event) = row?;
        bytes += event.0.len();
        if !waiting.events.is_empty() && (waiting.events.len() >= max_messages || bytes > max_bytes) {
            waiting.more = true;
            break;
        }
        waiting.through = at;
        waiting.events.push(event.0);
    }
    Ok(waiting)
}

/// Messages that a device has not acknowledged.
#[derive(Debug, Default)]
pub struct Waiting {
    pub events: Vec<Bytes>,
    /// Where the last one of them lies.
    pub through: Pos,
    pub more: bool,
}
