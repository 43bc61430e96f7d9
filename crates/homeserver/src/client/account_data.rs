//! Account data: what a client keeps on the server for its user.

use bytes::Bytes;
use http::StatusCode;
use ruma::UserId;
use ruma::api::client::config::{
    get_global_account_data, get_room_account_data, set_global_account_data, set_room_account_data,
};
use ruma::serde::Raw;
use serde_json::value::RawValue;
use store::Tx;

use crate::App;
use crate::auth::Requester;
use crate::error::{Error, ErrorCode, Result};
use crate::http::{Ctx, Routes};
use crate::users::account_data::{self, GLOBAL};

pub fn routes() -> Routes {
    Routes::default().ruma(get).guests().ruma(put).guests().ruma(get_in_room).guests().ruma(put_in_room).guests()
}

async fn get(ctx: Ctx<get_global_account_data::v3::Request>) -> Result<get_global_account_data::v3::Response> {
    own(&ctx.requester, &ctx.request.user_id)?;
    let content = find(&ctx.app, &ctx.requester.user_id, GLOBAL, &ctx.request.event_type.to_string())?;
    Ok(get_global_account_data::v3::Response::new(Raw::from_json(content)))
}

async fn put(ctx: Ctx<set_global_account_data::v3::Request>) -> Result<set_global_account_data::v3::Response> {
    own(&ctx.requester, &ctx.request.user_id)?;
    let kind = ctx.request.event_type.to_string();
    keep(&ctx.app, &ctx.requester.user_id, GLOBAL, &kind, ctx.body.clone()).await?;
    Ok(set_global_account_data::v3::Response::new())
}

async fn get_in_room(ctx: Ctx<get_room_account_data::v3::Request>) -> Result<get_room_account_data::v3::Response> {
    own(&ctx.requester, &ctx.request.user_id)?;
    let (room_id, kind) = (ctx.request.room_id.as_str(), ctx.request.event_type.to_string());
    let content = find(&ctx.app, &ctx.requester.user_id, room_id, &kind)?;
    Ok(get_room_account_data::v3::Response::new(Raw::from_json(content)))
}

async fn put_in_room(ctx: Ctx<set_room_account_data::v3::Request>) -> Result<set_room_account_data::v3::Response> {
    own(&ctx.requester, &ctx.request.user_id)?;
    let (room_id, kind) = (ctx.request.room_id.as_str(), ctx.request.event_type.to_string());
    keep(&ctx.app, &ctx.requester.user_id, room_id, &kind, ctx.body.clone()).await?;
    Ok(set_room_account_data::v3::Response::new())
}

/// Nobody sees or changes what is another's.
pub(crate) fn own(requester: &Requester, user_id: &UserId) -> Result<()> {
    if requester.user_id == user_id { Ok(()) } else { Err(Error::forbidden("This belongs to somebody else")) }
}

fn find(app: &App, user_id: &UserId, room_id: &str, kind: &str) -> Result<Box<RawValue>> {
    let content = account_data::get(&app.store.snapshot(), user_id, room_id, kind)?;
    let content = content.ok_or_else(|| Error::not_found("There is no account data of this type"))?;
    serde_json::from_slice(&content).map_err(Error::internal)
}

async fn keep(app: &App, user_id: &UserId, room_id: &str, kind: &str, content: Bytes) -> Result<()> {
    // These have endpoints of their own.
    if kind == "m.fully_read" || kind == "m.push_rules" {
        let message = format!("{kind} cannot be set here");
        return Err(Error::new(StatusCode::METHOD_NOT_ALLOWED, ErrorCode::BadJson, message));
    }
    let put = |tx: &mut Tx| account_data::put(tx, user_id, room_id, kind, content.clone());
    app.store.transact(put).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use store::Read as _;

    use crate::schema::{ACCOUNT_DATA, ACCOUNT_DATA_AT, ACCOUNT_DATA_LOG};
    use crate::testing::{Server, User};

    const GLOBAL: &str = "/_matrix/client/v3/user/@alice:hs.test/account_data";
    const IN_ROOM: &str = "/_matrix/client/v3/user/@alice:hs.test/rooms/!r:hs.test/account_data";

    async fn put(user: &User, base: &str, kind: &str, content: Value) -> (u16, String) {
        let answer = user.client.put(&format!("{base}/{kind}"), content).await;
        (answer.status.as_u16(), answer.errcode())
    }

    #[tokio::test]
    async fn pitfall_074_what_is_put_comes_back_even_when_it_is_nothing() {
        let server = Server::default();
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let ok = (200, String::new());
        assert_eq!(alice.client.get(&format!("{GLOBAL}/com.example")).await.errcode(), "M_NOT_FOUND");
        let content = json!({ "a": [1.5, null], "z": { "": "" } });
        assert_eq!(put(&alice, GLOBAL, "com.example", content.clone()).await, ok);
        // Also for rooms that one is not in, and apart from the global one.
        assert_eq!(put(&alice, IN_ROOM, "com.example", json!({ "room": true })).await, ok);
        assert_eq!(alice.client.get(&format!("{GLOBAL}/com.example")).await.json(), content);
        assert_eq!(alice.client.get(&format!("{IN_ROOM}/com.example")).await.json(), json!({ "room": true }));
        assert_eq!(put(&alice, GLOBAL, "com.example", json!({})).await, ok);
        assert_eq!(alice.client.get(&format!("{GLOBAL}/com.example")).await.json(), json!({}));
        assert_eq!(put(&bob, GLOBAL, "com.example", json!({})).await, (403, "M_FORBIDDEN".to_owned()));
        assert_eq!(bob.client.get(&format!("{GLOBAL}/com.example")).await.errcode(), "M_FORBIDDEN");
        assert_eq!(put(&alice, GLOBAL, "com.example", json!([])).await.0, 400);
    }

    #[tokio::test]
    async fn pitfall_035_read_markers_and_push_rules_have_their_own_endpoints() {
        let server = Server::default();
        let alice = server.user("alice").await;
        for base in [GLOBAL, IN_ROOM] {
            for kind in ["m.fully_read", "m.push_rules"] {
                assert_eq!(put(&alice, base, kind, json!({})).await, (405, "M_BAD_JSON".to_owned()), "{base} {kind}");
            }
        }
    }

    #[tokio::test]
    async fn large_values_are_kept_and_larger_ones_refused() {
        let server = Server::default();
        let alice = server.user("alice").await;
        let large = json!({ "a": "x".repeat(500_000) });
        assert_eq!(put(&alice, GLOBAL, "com.example", large.clone()).await.0, 200);
        assert_eq!(alice.client.get(&format!("{GLOBAL}/com.example")).await.json(), large);
        let larger = json!({ "a": "x".repeat(600_000) });
        assert_eq!(put(&alice, GLOBAL, "com.example", larger).await, (413, "M_TOO_LARGE".to_owned()));
        assert_eq!(put(&alice, GLOBAL, &"x".repeat(256), json!({})).await.0, 400);
    }

    #[tokio::test]
    async fn the_log_has_each_value_once_at_its_last_place() {
        let server = Server::default();
        let alice = server.user("alice").await;
        for turn in 0..3 {
            for kind in ["com.a", "com.b"] {
                put(&alice, GLOBAL, kind, json!({ "turn": turn })).await;
            }
        }
        let read = server.app.store.snapshot();
        let user = ("@alice:hs.test",);
        let log: Vec<_> = read.scan(&ACCOUNT_DATA_LOG, ACCOUNT_DATA_LOG.prefix(user)).map(Result::unwrap).collect();
        let kinds: Vec<&str> = log.iter().map(|(_, key)| key.kind.as_str()).collect();
        assert_eq!(kinds, ["m.push_rules", "com.a", "com.b"]);
        for ((_, at), key) in &log {
            let key = ("@alice:hs.test", key.room_id.as_str(), key.kind.as_str());
            assert_eq!(read.get(&ACCOUNT_DATA_AT, key).unwrap(), Some(*at));
            assert!(read.contains(&ACCOUNT_DATA, key).unwrap());
        }
        assert_eq!(read.count(&ACCOUNT_DATA_AT, ACCOUNT_DATA_AT.all()).unwrap(), log.len());
    }
}
