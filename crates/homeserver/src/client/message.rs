//! Sending events to a room: messages, state, redactions (spec: Events, Sending events to a room; Redactions).

use ::rooms::build::Draft;
use http::StatusCode;
use ruma::api::client::message::send_message_event;
use ruma::api::client::redact::redact_event;
use ruma::api::client::state::send_state_event;
use ruma::{CanonicalJsonObject, CanonicalJsonValue, EventId};
use serde_json::json;

use super::delayed_events::{PARAMETER, Target, delay_in, put_off};
use crate::error::Result;
use crate::http::{Ctx, Response, Routes, json_response};
use crate::limits::Class;
use crate::rooms::create::timestamp;
use crate::rooms::send::{TxnKey, content_from, message, redaction, send, send_state};

pub fn routes() -> Routes {
    Routes::default()
        .ruma_answering(send_message)
        .limit(Class::Message)
        .guests()
        .ruma_answering(put_state)
        .limit(Class::Message)
        .ruma(redact)
        .limit(Class::Message)
}

async fn send_message(ctx: Ctx<send_message_event::v3::Request>) -> Result<Response> {
    ctx.requester.not_suspended()?;
    let request = &ctx.request;
    let kind = request.event_type.to_string();
    let content = request.body.json().get();
    if let Some(delay_ms) = delay_in(ctx.query_value(PARAMETER).as_deref())? {
        let (room_id, txn_id) = (&*request.room_id, Some(&*request.txn_id));
        let target = Target { room_id, kind: &kind, state_key: None, txn_id };
        return put_off(&ctx.app, &ctx.requester, &target, content, delay_ms).await;
    }
    let at = timestamp(&ctx.app, request.timestamp, ctx.requester.appservice.is_some());
    let content = content_from(content.as_bytes())?;
    let draft = message(&kind, content, ctx.requester.user_id.clone(), at)?;
    let txn = TxnKey::new(
        &ctx.requester.user_id,
        ctx.requester.device_id.as_deref(),
        &["send", request.room_id.as_str(), &kind],
        &request.txn_id,
    );
    let event_id = send(&ctx.app, &request.room_id, draft, Some(txn)).await?;
    Ok(sent(&event_id))
}

async fn put_state(ctx: Ctx<send_state_event::v3::Request>) -> Result<Response> {
    ctx.requester.not_suspended()?;
    let request = &ctx.request;
    let kind = request.event_type.to_string();
    let content = request.body.json().get();
    if let Some(delay_ms) = delay_in(ctx.query_value(PARAMETER).as_deref())? {
        let state_key = Some(request.state_key.as_str());
        let target = Target { room_id: &request.room_id, kind: &kind, state_key, txn_id: None };
        return put_off(&ctx.app, &ctx.requester, &target, content, delay_ms).await;
    }
    let at = timestamp(&ctx.app, request.timestamp, ctx.requester.appservice.is_some());
    let content = content_from(content.as_bytes())?;
    let sender = ctx.requester.user_id.clone();
    let draft = Draft::state(kind.as_str(), request.state_key.as_str(), content, sender, at);
    let event_id = send_state(&ctx.app, &request.room_id, draft).await?;
    Ok(sent(&event_id))
}

fn sent(event_id: &EventId) -> Response {
    json_response(StatusCode::OK, json!({ "event_id": event_id }).to_string())
}

async fn redact(ctx: Ctx<redact_event::v3::Request>) -> Result<redact_event::v3::Response> {
    let request = &ctx.request;
    let mut content = CanonicalJsonObject::new();
    if let Some(reason) = &request.reason {
        content.insert("reason".to_owned(), CanonicalJsonValue::String(reason.clone()));
    }
    let sender = ctx.requester.user_id.clone();
    let draft = redaction(sender, request.event_id.clone(), content, ctx.app.clock.now());
    let path = ["redact", request.room_id.as_str(), request.event_id.as_str()];
    let txn = TxnKey::new(&ctx.requester.user_id, ctx.requester.device_id.as_deref(), &path, &request.txn_id);
    let event_id = send(&ctx.app, &request.room_id, draft, Some(txn)).await?;
    Ok(redact_event::v3::Response { event_id })
}
