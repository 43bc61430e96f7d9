//! Sending events to a room: messages, state, redactions (spec: Events, Sending events to a room; Redactions).

use ::rooms::build::Draft;
use ruma::api::client::message::send_message_event;
use ruma::api::client::redact::redact_event;
use ruma::api::client::state::send_state_event;
use ruma::events::TimelineEventType;
use ruma::{CanonicalJsonObject, CanonicalJsonValue, EventId};

use crate::error::{Error, Result};
use crate::http::{Ctx, Routes};
use crate::limits::Class;
use crate::rooms::create::timestamp;
use crate::rooms::send::{TxnKey, content_from, redaction, send, send_state};

pub fn routes() -> Routes {
    Routes::default()
        .ruma(send_message)
        .limit(Class::Message)
        .guests()
        .ruma(put_state)
        .limit(Class::Message)
        .ruma(redact)
        .limit(Class::Message)
}

async fn send_message(ctx: Ctx<send_message_event::v3::Request>) -> Result<send_message_event::v3::Response> {
    ctx.requester.not_suspended()?;
    refuse_delay(ctx.query_value("org.matrix.msc4140.delay").is_some())?;
    let request = &ctx.request;
    let kind = request.event_type.to_string();
    let at = timestamp(&ctx.app, request.timestamp, ctx.requester.appservice.is_some());
    let mut content = content_from(request.body.json().get().as_bytes())?;
    let sender = ctx.requester.user_id.clone();
    let draft = if kind == "m.room.redaction" {
        let redacts = match content.remove("redacts") {
            Some(CanonicalJsonValue::String(id)) => EventId::parse(id).ok(),
            _ => None,
        };
        let redacts = redacts.ok_or_else(|| Error::missing_param("The content does not say what it redacts"))?;
        redaction(sender, redacts, content, at)
    } else {
        Draft::message(TimelineEventType::from(kind.as_str()), content, sender, at)
    };
    let txn = TxnKey::new(
        &ctx.requester.user_id,
        ctx.requester.device_id.as_deref(),
        &["send", request.room_id.as_str(), &kind],
        &request.txn_id,
    );
    let event_id = send(&ctx.app, &request.room_id, draft, Some(txn)).await?;
    Ok(send_message_event::v3::Response { event_id })
}

async fn put_state(ctx: Ctx<send_state_event::v3::Request>) -> Result<send_state_event::v3::Response> {
    ctx.requester.not_suspended()?;
    refuse_delay(ctx.query_value("org.matrix.msc4140.delay").is_some())?;
    let request = &ctx.request;
    let at = timestamp(&ctx.app, request.timestamp, ctx.requester.appservice.is_some());
    let content = content_from(request.body.json().get().as_bytes())?;
    let kind = request.event_type.to_string();
    let sender = ctx.requester.user_id.clone();
    let draft = Draft::state(kind.as_str(), request.state_key.as_str(), content, sender, at);
    let event_id = send_state(&ctx.app, &request.room_id, draft).await?;
    Ok(send_state_event::v3::Response { event_id })
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

/// Delayed events are not served yet. An event that should wait must not go out at once (pitfall 75).
fn refuse_delay(delayed: bool) -> Result<()> {
    if delayed { Err(Error::unrecognized()) } else { Ok(()) }
}
