//! What waits for a service, why it does, and going on without it: for the administrator of a service that will never take
//! what it is sent.

use hashbrown::HashMap;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};
use store::{Read as _, Tx, journal};

use super::MAX_ROWS;
use crate::App;
use crate::config::registrations::Registration;
use crate::error::{Error, Result};
use crate::schema::{SERVICE_FOLLOWERS, SERVICE_TXNS, ServiceTxn, TO_DEVICE, topic};

/// Which services do not take what they are sent.
#[derive(Default)]
pub struct Troubles(Mutex<HashMap<String, Trouble>>);

/// Why a service has to wait.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Trouble {
    since_ts: u64,
    tried_ts: u64,
    failures: u64,
    cause: String,
}

/// Events that are named of a transaction.
const MAX_SHOWN: usize = 20;
const MAX_CAUSE_CHARS: usize = 500;

impl Troubles {
    /// Another attempt failed.
    pub fn failed(&self, app: &App, service: &Registration, cause: &str) {
        let now = app.clock.now_ms();
        let cause = cause.chars().take(MAX_CAUSE_CHARS).collect();
        let mut troubles = self.0.lock();
        let known = troubles.get(&service.id).map_or((now, 0), |known| (known.since_ts, known.failures));
        let trouble = Trouble { since_ts: known.0, tried_ts: now, failures: known.1 + 1, cause };
        troubles.insert(service.id.clone(), trouble);
    }

    /// The service took something, or is spared it.
    pub fn over(&self, service: &Registration) {
        self.0.lock().remove(&service.id);
    }
}

/// How a service stands: what it was not told yet, and why.
pub fn describe(app: &App, service: &Registration) -> Result<Value> {
    let read = app.store.snapshot();
    let cursor = journal::cursor(&read, &format!("{SERVICE_FOLLOWERS}{}", service.id))?;
    let txn = read.get(&SERVICE_TXNS, &service.id)?.filter(|txn| !txn.body.is_empty());
    let trouble = app.troubles.0.lock().get(&service.id).cloned();
    let trouble = trouble.map(|Trouble { since_ts, tried_ts, failures, cause }| {
        json!({ "since_ts": since_ts, "tried_ts": tried_ts, "failures": failures, "cause": cause })
    });
    Ok(json!({
        "id": service.id,
        "sender": service.sender,
        "url": service.service.as_ref().map(|to| &to.url),
        "positions_behind": cursor.map(|cursor| read.version().0.saturating_sub(cursor.0)),
        "transaction": txn.as_ref().map(|txn| describe_txn(app, txn)),
        "trouble": trouble,
    }))
}

/// What of an event helps to see what is wrong with it.
#[derive(Deserialize)]
struct Told {
    event_id: Option<String>,
    room_id: Option<String>,
    sender: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
}

#[derive(Deserialize)]
struct Body {
    #[serde(default)]
    events: Vec<Told>,
}

fn describe_txn(app: &App, txn: &ServiceTxn) -> Value {
    let body: Body = serde_json::from_str(&txn.body).unwrap_or(Body { events: Vec::new() });
    let told = |told: &Told| json!({ "event_id": told.event_id, "room_id": told.room_id, "sender": told.sender, "type": told.kind });
    json!({
        "number": txn.number,
        // A number is the time at which it was given.
        "since_ts": txn.number,
        "waiting_ms": app.clock.now_ms().saturating_sub(txn.number),
        "bytes": txn.body.len(),
        "event_count": body.events.len(),
        "events": body.events.iter().take(MAX_SHOWN).map(told).collect::<Vec<_>>(),
        "to_device_count": txn.to_device.len(),
    })
}

/// Goes on without a transaction that waits: its service never hears of what is in it. What was skipped.
pub async fn skip(app: &App, service: &Registration, number: u64) -> Result<Value> {
    let skip = |tx: &mut Tx| -> Result<ServiceTxn> {
        let waits = tx.get(&SERVICE_TXNS, &service.id)?.filter(|txn| txn.number == number && !txn.body.is_empty());
        let txn = waits.ok_or_else(|| Error::not_found("No transaction of this number waits for this service"))?;
        done_with(tx, &service.id, &txn)?;
        Ok(txn)
    };
    let txn = app.store.transact(skip).await?.value;
    app.troubles.over(service);
    app.store.hub().nudge(&topic::appservice(&service.id));
    Ok(describe_txn(app, &txn))
}

/// Nothing of a transaction waits any more: neither itself nor the messages to devices in it.
pub(super) fn done_with(tx: &mut Tx, service_id: &str, txn: &ServiceTxn) -> Result<ServiceTxn> {
    for (user_id, device_id, through) in &txn.to_device {
        let (user_id, device_id) = (user_id.as_str(), device_id.as_str());
        let span = TO_DEVICE.prefix((user_id, device_id)).through((user_id, device_id, store::Pos(*through)));
        let rows: Vec<_> =
            tx.unchecked().scan(&TO_DEVICE, span.limit(MAX_ROWS)).keys().collect::<store::Result<_>>()?;
        for (_, _, at) in rows {
            tx.delete(&TO_DEVICE, (user_id, device_id, at));
        }
    }
    let done = ServiceTxn { number: txn.number, ..ServiceTxn::default() };
    tx.put(&SERVICE_TXNS, service_id, &done);
    Ok(done)
}
