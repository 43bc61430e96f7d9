//! Messages from device to device. They wait here until the device they are for has acknowledged them.

use std::collections::BTreeMap;

use bytes::Bytes;
use ruma::{OwnedUserId, ServerName, UserId};
use serde::Serialize;
use serde_json::value::RawValue;
use store::{Pos, Read, Tx};

use crate::error::Result;
use crate::schema::{DEVICES, TO_DEVICE, TO_DEVICE_AT, TXNS, ToDevice, Txn};

/// All devices of a user.
const ALL: &str = "*";

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

/// Puts messages into the queues of their devices, once. Devices that are not here are passed over.
pub fn send(tx: &mut Tx, server_name: &ServerName, sending: &Sending<'_>) -> Result<()> {
    if tx.contains(&TXNS, sending.txn)? {
        return Ok(());
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
                put(tx, user_id, device_id, at, &event)?;
                continue;
            }
            let all = tx.scan_guarded(&DEVICES, DEVICES.prefix((user_id.as_str(),)))?;
            for ((_, device_id), _) in all.iter().filter(|((_, id), _)| !devices.contains_key(id)) {
                put(tx, user_id, device_id, at, &event)?;
            }
        }
    }
    tx.put(&TXNS, sending.txn, &Txn::new("", sending.now_ms));
    Ok(())
}

fn put(tx: &mut Tx, user_id: &UserId, device_id: &str, at: Pos, event: &ToDevice) -> Result<()> {
    let user_id = user_id.as_str();
    if tx.contains(&DEVICES, (user_id, device_id))? {
        tx.put(&TO_DEVICE, (user_id, device_id, at), event);
        tx.put(&TO_DEVICE_AT, (user_id, device_id), &at);
    }
    Ok(())
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
