//! One's own devices.

use http::StatusCode;
use ruma::api::client::device::{self, delete_device, delete_devices, get_device, get_devices, update_device};
use ruma::{MilliSecondsSinceUnixEpoch, UInt};
use store::{Read, Tx};

use crate::auth::{devices, uia};
use crate::error::{Error, Result};
use crate::http::{Ctx, Response, Routes, json_response};
use crate::schema::{self, DEVICE_SEEN, DEVICES, Device};

pub fn routes() -> Routes {
    Routes::default().ruma(list).ruma(get).ruma_answering(update).ruma(delete).ruma(delete_some)
}

async fn list(ctx: Ctx<get_devices::v3::Request>) -> Result<get_devices::v3::Response> {
    let (read, user_id) = (ctx.app.store.snapshot(), ctx.requester.user_id.as_str());
    let mut found = Vec::new();
    for (device_id, device) in devices::of(&read, user_id)? {
        found.push(describe(&read, user_id, &device_id, device)?);
    }
    Ok(get_devices::v3::Response::new(found))
}

async fn get(ctx: Ctx<get_device::v3::Request>) -> Result<get_device::v3::Response> {
    let (read, user_id) = (ctx.app.store.snapshot(), ctx.requester.user_id.as_str());
    let device_id = ctx.request.device_id.as_str();
    let device = read.get(&DEVICES, (user_id, device_id))?.ok_or_else(unknown)?;
    Ok(get_device::v3::Response::new(describe(&read, user_id, device_id, device)?))
}

/// Changes a device's name. An application service makes devices in this way, too.
async fn update(ctx: Ctx<update_device::v3::Request>) -> Result<Response> {
    let (user_id, device_id) = (ctx.requester.user_id.as_str(), ctx.request.device_id.as_str());
    let name = ctx.request.display_name.as_deref().map(devices::valid_name).transpose()?;
    let update = |tx: &mut Tx| -> Result<bool> {
        let known = tx.get(&DEVICES, (user_id, device_id))?;
        if known.is_none() && ctx.requester.appservice.is_some() {
            // Its users do not log in.
            devices::log_in(&ctx.app, tx, user_id, Some(device_id), name.as_deref())?;
            return Ok(true);
        }
        let device = known.ok_or_else(unknown)?;
        if let Some(name) = &name {
            tx.put(&DEVICES, (user_id, device_id), &Device { display_name: Some(name.clone()), ..device });
            // Others are shown the name, where the device has keys.
            schema::device_list_changed(tx, user_id)?;
        }
        Ok(false)
    };
    let made = ctx.app.store.transact(update).await?.value;
    Ok(json_response(if made { StatusCode::CREATED } else { StatusCode::OK }, "{}"))
}

async fn delete(ctx: Ctx<delete_device::v3::Request>) -> Result<delete_device::v3::Response> {
    let (user_id, device_id) = (ctx.requester.user_id.as_str(), ctx.request.device_id.as_str());
    let operation = format!("devices/{device_id}");
    let passed = uia::check_password(&ctx.app, &ctx.requester, operation, &ctx.body).await?;
    let delete = |tx: &mut Tx| {
        passed.holds(tx)?;
        devices::delete(tx, user_id, device_id)
    };
    ctx.app.store.transact(delete).await?;
    Ok(delete_device::v3::Response::new())
}

async fn delete_some(ctx: Ctx<delete_devices::v3::Request>) -> Result<delete_devices::v3::Response> {
    let user_id = ctx.requester.user_id.as_str();
    let passed = uia::check_password(&ctx.app, &ctx.requester, "delete_devices".to_owned(), &ctx.body).await?;
    devices::delete_some(&ctx.app, user_id, &ctx.request.devices, |tx| passed.holds(tx)).await?;
    Ok(delete_devices::v3::Response::new())
}

fn describe(read: &impl Read, user_id: &str, device_id: &str, device: Device) -> Result<device::Device> {
    let seen = read.get(&DEVICE_SEEN, (user_id, device_id))?;
    // A login is a sight too, before the first request; clients such as matrix-nio insist on a time.
    let (ts, ip) = seen.map_or((device.created_ts, None), |seen| (seen.ts, seen.ip));
    Ok(device::Device {
        device_id: device_id.into(),
        display_name: device.display_name,
        last_seen_ip: ip,
        last_seen_ts: Some(MilliSecondsSinceUnixEpoch(UInt::new_saturating(ts))),
    })
}

fn unknown() -> Error {
    Error::not_found("There is no such device")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::Method;
    use serde_json::{Value, json};

    use crate::http::{Answer, Body};
    use crate::testing::{Server, User};

    const DEVICES: &str = "/_matrix/client/v3/devices";
    const WHOAMI: &str = "/_matrix/client/v3/account/whoami";

    async fn delete(user: &User, device_id: &str, auth: Value) -> Answer {
        let body = Body::from(json!({ "auth": auth }).to_string());
        user.client.send(Method::DELETE, &format!("{DEVICES}/{device_id}"), body).await
    }

    #[tokio::test]
    async fn devices_have_names_and_are_ones_own() {
        let server = Server::default();
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let phone =
            server.log_in_with("alice", json!({ "device_id": "a/b+c", "initial_device_display_name": "Phone" }));
        phone.await;
        let all = alice.client.get(DEVICES).await.json();
        assert_eq!(all["devices"].as_array().unwrap().len(), 2);
        // Device IDs may hold what has to be encoded in a path.
        let path = format!("{DEVICES}/a%2Fb%2Bc");
        assert_eq!(alice.client.get(&path).await.json()["display_name"], "Phone");
        assert_eq!(alice.client.put(&path, json!({ "display_name": "Old phone" })).await.status, 200);
        assert_eq!(alice.client.put(&path, json!({})).await.status, 200);
        assert_eq!(alice.client.get(&path).await.json()["display_name"], "Old phone");
        assert_eq!(alice.client.put(&path, json!({ "display_name": "x".repeat(2_000) })).await.status, 400);
        for client in [&bob.client] {
            assert_eq!(client.get(&path).await.errcode(), "M_NOT_FOUND");
            assert_eq!(client.put(&path, json!({ "display_name": "mine" })).await.errcode(), "M_NOT_FOUND");
        }
    }

    #[tokio::test]
    async fn the_time_of_use_is_noted_now_and_then_and_wakes_nobody() {
        let server = Server::default();
        let alice = server.user("alice").await;
        let user_topic = server.app.store.hub().signal();
        server.app.store.hub().attach(crate::schema::topic::user(&alice.user_id), &user_topic);
        let path = format!("{DEVICES}/{}", alice.device_id);
        alice.client.get(WHOAMI).await;
        // A commit that waits for the disk comes after the note.
        server.user("bob").await;
        let first = alice.client.get(&path).await.json();
        assert_eq!(
            (&first["last_seen_ts"], &first["last_seen_ip"]),
            (&json!(1_700_000_000_000u64), &json!("127.0.0.1"))
        );
        server.app.clock.advance(Duration::from_secs(60));
        alice.client.get(WHOAMI).await;
        server.user("carol").await;
        assert_eq!(alice.client.get(&path).await.json()["last_seen_ts"], first["last_seen_ts"]);
        server.app.clock.advance(Duration::from_secs(600));
        alice.client.get(WHOAMI).await;
        server.user("dora").await;
        assert_eq!(alice.client.get(&path).await.json()["last_seen_ts"], 1_700_000_660_000u64);
        assert_eq!(user_topic.last(), store::Pos::ZERO);
    }

    #[tokio::test]
    async fn a_deleted_device_is_logged_out() {
        let server = Server::default();
        let (here, there) = (server.user("alice").await, server.log_in("alice").await);
        let asked = delete(&here, &there.device_id, Value::Null).await;
        assert_eq!(asked.status, 401);
        assert_eq!(there.client.get(WHOAMI).await.status, 200);
        let mut auth = here.auth();
        auth["session"] = asked.json()["session"].clone();
        let deleted = delete(&here, &there.device_id, auth.clone()).await;
        assert_eq!((deleted.status.as_u16(), deleted.json()), (200, json!({})));
        assert_eq!(there.client.get(WHOAMI).await.errcode(), "M_UNKNOWN_TOKEN");
        assert_eq!(here.client.get(DEVICES).await.json()["devices"].as_array().unwrap().len(), 1);
        assert_eq!(delete(&here, "NOSUCH", here.auth()).await.status, 200);
    }

    #[tokio::test]
    async fn several_devices_go_at_once() {
        let server = Server::default();
        let (here, two, three) =
            (server.user("alice").await, server.log_in("alice").await, server.log_in("alice").await);
        let body = json!({ "devices": [two.device_id, three.device_id, "NOSUCH"], "auth": here.auth() });
        assert_eq!(here.client.post("/_matrix/client/v3/delete_devices", body).await.status, 200);
        assert_eq!(two.client.get(WHOAMI).await.status, 401);
        assert_eq!(three.client.get(WHOAMI).await.status, 401);
        assert_eq!(here.client.get(WHOAMI).await.status, 200);
    }

    #[tokio::test]
    async fn pitfall_013_a_session_is_good_for_one_request_of_one_user() {
        let server = Server::default();
        let (here, there, bob) = (server.user("alice").await, server.log_in("alice").await, server.user("bob").await);
        let session = delete(&here, &there.device_id, Value::Null).await.json()["session"].clone();
        let with_session = |user: &User| {
            let mut auth = user.auth();
            auth["session"] = session.clone();
            auth
        };
        // Not for another device, another endpoint, another user.
        assert_eq!(delete(&here, &here.device_id, with_session(&here)).await.errcode(), "M_FORBIDDEN");
        let body = json!({ "devices": [there.device_id], "auth": with_session(&here) });
        let other = here.client.post("/_matrix/client/v3/delete_devices", body).await;
        assert_eq!((other.status.as_u16(), other.errcode().as_str()), (403, "M_FORBIDDEN"));
        assert_eq!(delete(&bob, &there.device_id, with_session(&bob)).await.status, 403);
        // Not with somebody else's password, nor with a stage that was not asked for.
        let mut stolen = bob.auth();
        stolen["session"] = session.clone();
        assert_eq!(delete(&here, &there.device_id, stolen).await.status, 401);
        let dummy = json!({ "type": "m.login.dummy", "session": session });
        assert_eq!(delete(&here, &there.device_id, dummy).await.status, 401);
        // Not by the session alone: nothing was proven yet.
        let alone = delete(&here, &there.device_id, json!({ "session": session })).await;
        assert_eq!((alone.status.as_u16(), alone.json()["session"].clone()), (401, session.clone()));
        assert_eq!(there.client.get(WHOAMI).await.status, 200);
        assert_eq!(delete(&here, &there.device_id, with_session(&here)).await.status, 200);
        let again = delete(&here, &there.device_id, with_session(&here)).await;
        assert_eq!(again.status, 401);
    }

    #[tokio::test]
    async fn pitfall_013_a_session_ends() {
        let server = Server::default();
        let (here, there) = (server.user("alice").await, server.log_in("alice").await);
        let mut auth = here.auth();
        auth["session"] = delete(&here, &there.device_id, Value::Null).await.json()["session"].clone();
        server.app.clock.advance(Duration::from_secs(15 * 60));
        let late = delete(&here, &there.device_id, auth.clone()).await;
        assert_eq!((late.status.as_u16(), late.errcode().as_str()), (401, "M_UNKNOWN"));
        assert_ne!(late.json()["session"], auth["session"]);
    }
}
