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
use crate::limits::{Class, Owner};
use crate::rooms::create::timestamp;
use crate::rooms::membership::invites;
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
    let txn = TxnKey::new(&ctx.requester, &["send", request.room_id.as_str(), &kind], &request.txn_id);
    let event_id = send(&ctx.app, &request.room_id, draft, Some(txn)).await?;
    Ok(sent(&event_id))
}

async fn put_state(ctx: Ctx<send_state_event::v3::Request>) -> Result<Response> {
    ctx.requester.not_suspended()?;
    let request = &ctx.request;
    let kind = request.event_type.to_string();
    let content = request.body.json().get();
    if kind == "m.room.member" && ctx.requester.rate_limited && invites(&content_from(content.as_bytes())?) {
        // An invite like those that come in another way.
        ctx.app.limits.check(Class::Invite, Owner::User(&ctx.requester.user_id))?;
    }
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
    let txn = TxnKey::new(&ctx.requester, &path, &request.txn_id);
    let event_id = send(&ctx.app, &request.room_id, draft, Some(txn)).await?;
    Ok(redact_event::v3::Response { event_id })
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use store::{Read as _, Tx};

    use crate::client::testing::*;
    use crate::error::Result;
    use crate::schema::USERS;
    use crate::testing::{Server, config};

    #[tokio::test]
    async fn pitfall_015_who_is_suspended_redacts_only_what_is_theirs() {
        let server = Server::default();
        let [alice, bob] = users(&server).await;
        let room = public_room(&alice).await;
        room.join(&bob).await;
        let (mine, theirs) = (room.say("mine").await, room.of(&bob).say("theirs").await);
        let suspend = |tx: &mut Tx| -> Result<()> {
            let mut user = tx.get(&USERS, &alice.user_id)?.unwrap();
            user.suspended = true;
            tx.put(&USERS, &alice.user_id, &user);
            Ok(())
        };
        server.app.store.transact(suspend).await.unwrap();
        let path = room.path(&format!("redact/{}/t", enc(&theirs)));
        let refusal = (403, "M_USER_SUSPENDED".to_owned());
        assert_eq!(refused(&alice.client.put(&path, json!({})).await), refusal);
        assert_eq!(ok(&room.event(&theirs).await)["content"]["body"], "theirs");
        room.redact(&mine).await;
        assert_eq!(ok(&room.event(&mine).await)["content"], json!({}));
    }

    #[tokio::test]
    async fn pitfall_062_invites_that_come_as_state_are_held_to_what_invites_are_held_to() {
        let mut config = config();
        config.rate_limits.invite = crate::config::Limit::per_second(0.01, 2);
        let server = Server::new(config);
        let [alice, bob, carol] = users(&server).await;
        let block = format!("/_matrix/client/v3/user/{}/account_data/m.invite_permission_config", enc(&bob.user_id));
        let invite = json!({"membership": "invite"});
        let initial = |user_id: &str| {
            let event = json!({"type": "m.room.member", "state_key": user_id, "content": invite});
            json!({"initial_state": [event]})
        };
        let create = async |body| alice.client.post("/_matrix/client/v3/createRoom", body).await;
        // As a part of a new room.
        ok(&bob.client.put(&block, json!({"default_action": "block"})).await);
        assert_eq!(refused(&create(initial(&bob.user_id)).await), (403, "M_INVITE_BLOCKED".to_owned()));
        assert_eq!(refused(&create(initial("@nobody:hs.test")).await), not_found());
        ok(&create(initial(&carol.user_id)).await);
        let many: Vec<_> = (0..101)
            .map(|nr| json!({"type": "m.room.member", "state_key": format!("@u{nr}:hs.test"), "content": invite}))
            .collect();
        let too_many = create(json!({"initial_state": many})).await;
        assert_eq!(refused(&too_many), (400, "M_INVALID_PARAM".to_owned()));
        // As state of a room that there is, told anew to somebody who has it already, and as often as invites may come.
        let room = public_room(&alice).await;
        let put = async |content| {
            alice.client.put(&room.path(&format!("state/m.room.member/{}", enc(&bob.user_id))), content).await
        };
        ok(&bob.client.put(&block, json!({})).await);
        ok(&put(invite.clone()).await);
        ok(&bob.client.put(&block, json!({"default_action": "block"})).await);
        let louder = json!({"membership": "invite", "reason": "come on"});
        assert_eq!(refused(&put(louder.clone()).await), (403, "M_INVITE_BLOCKED".to_owned()));
        assert_eq!(put(louder).await.errcode(), "M_LIMIT_EXCEEDED");
    }
}
