//! Messages to devices (spec: Send-to-Device messaging).

use std::collections::BTreeMap;

use http::{Method, StatusCode};
use ruma::{OwnedUserId, TransactionId};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::auth::Access;
use crate::e2ee::to_device::{self, Sending};
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response, Routes, json_response};
use crate::rooms::send::TxnKey;

/// Event types are no longer in rooms either.
const MAX_TYPE_BYTES: usize = 255;

pub fn routes() -> Routes {
    let paths = [
        "/_matrix/client/v3/sendToDevice/{event_type}/{txn_id}",
        "/_matrix/client/r0/sendToDevice/{event_type}/{txn_id}",
    ];
    Routes::default().raw(Method::PUT, &paths, send_to_device).access(Access::Token).guests()
}

#[derive(Deserialize)]
struct Body {
    messages: BTreeMap<OwnedUserId, BTreeMap<String, Box<RawValue>>>,
}

async fn send_to_device(mut ctx: RawCtx) -> Result<Response> {
    let body: Body = ctx.read_json().await?;
    let (requester, kind) = (ctx.requester()?, ctx.arg(0));
    if kind.is_empty() || kind.len() > MAX_TYPE_BYTES {
        return Err(Error::invalid_param("This is not an event type"));
    }
    let contents = body.messages.values().flat_map(BTreeMap::values);
    if contents.into_iter().any(|content| !content.get().starts_with('{')) {
        return Err(Error::bad_json("The content of a message is an object"));
    }
    let (sender, device_id) = (&*requester.user_id, requester.device_id.as_deref());
    let txn = TxnKey::new(sender, device_id, &["sendToDevice", kind], <&TransactionId>::from(ctx.arg(1)));
    let sending = Sending { sender, kind, messages: &body.messages, txn: txn.row() };
    ctx.app.store.transact(|tx| to_device::send(tx, &ctx.app.server_name, &sending)).await?;
    Ok(json_response(StatusCode::OK, "{}"))
}
