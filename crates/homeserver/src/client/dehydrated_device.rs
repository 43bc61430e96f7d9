//! Dehydrated devices (MSC3814).

use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use store::Read as _;

use crate::auth::Access;
use crate::e2ee::dehydrated::{self, NewDevice};
use crate::e2ee::keys::{KeysById, Upload};
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response, Routes, json_response};
use crate::rooms::shown::string;
use crate::schema::DehydratedDevice;
use crate::sync::devices;
use crate::sync::token;

const MAX_DATA_BYTES: usize = store::limits::CHUNKED_VALUE_BYTES / 4;
/// So many messages go into one answer.
const MAX_EVENTS: usize = 100;

pub fn routes() -> Routes {
    const DEVICE: &[&str] = &["/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device"];
    const EVENTS: &[&str] = &["/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device/{device_id}/events"];
    Routes::default()
        .raw(Method::PUT, DEVICE, put)
        .access(Access::Token)
        .raw(Method::GET, DEVICE, get)
        .access(Access::Token)
        .raw(Method::DELETE, DEVICE, delete)
        .access(Access::Token)
        .raw(Method::GET, EVENTS, events)
        .access(Access::Token)
        // The same, as the proposal was before.
        .raw(Method::POST, EVENTS, events)
        .access(Access::Token)
}

#[derive(Deserialize)]
struct Body {
    device_id: String,
    initial_device_display_name: Option<String>,
    device_data: Box<RawValue>,
    device_keys: Option<Box<RawValue>>,
    #[serde(default)]
    one_time_keys: KeysById,
    #[serde(default)]
    fallback_keys: KeysById,
}

impl Body {
    fn read(self, user_id: &str) -> Result<NewDevice> {
        let device_keys = self.device_keys.ok_or_else(|| Error::missing_param("device_keys are missing"))?;
        if !self.device_data.get().starts_with('{') {
            return Err(Error::bad_json("device_data is an object"));
        }
        if self.device_data.get().len() > MAX_DATA_BYTES {
            return Err(Error::too_large("This device is too large"));
        }
        let keys = Upload::new(user_id, &self.device_id, Some(&device_keys), &self.one_time_keys, &self.fallback_keys)?;
        let data = String::from(Box::<str>::from(self.device_data));
        let device = DehydratedDevice { device_id: self.device_id, data };
        Ok(NewDevice { device, display_name: self.initial_device_display_name, keys })
    }
}

async fn put(mut ctx: RawCtx) -> Result<Response> {
    let body: Body = ctx.read_json().await?;
    let user_id = ctx.requester()?.user_id.as_str();
    let new = body.read(user_id)?;
    let app = &ctx.app;
    app.store.transact(|tx| dehydrated::put(app, tx, user_id, &new)).await?;
    Ok(json_response(StatusCode::OK, json!({ "device_id": new.device.device_id }).to_string()))
}

async fn get(ctx: RawCtx) -> Result<Response> {
    let found = dehydrated::get(&ctx.app.store.snapshot(), ctx.requester()?.user_id.as_str())?;
    let mut out = b"{\"device_id\":".to_vec();
    string(&mut out, &found.device_id);
    out.extend_from_slice(b",\"device_data\":");
    out.extend_from_slice(found.data.as_bytes());
    out.push(b'}');
    Ok(json_response(StatusCode::OK, out))
}

async fn delete(ctx: RawCtx) -> Result<Response> {
    let user_id = ctx.requester()?.user_id.as_str();
    let deleted = ctx.app.store.transact(|tx| dehydrated::delete(tx, user_id)).await?;
    Ok(json_response(StatusCode::OK, json!({ "device_id": deleted.value }).to_string()))
}

#[derive(Default, Deserialize)]
struct From {
    next_batch: Option<String>,
}

/// The messages that wait for the device. Who comes back with `next_batch` has those before it.
async fn events(mut ctx: RawCtx) -> Result<Response> {
    let named = ["next_batch", "from"].into_iter().find_map(|name| ctx.query_value(name)).map(String::from);
    let from = match ctx.method {
        Method::POST => ctx.read_json::<From>().await?.next_batch,
        _ => named,
    };
    let from = from.filter(|from| !from.is_empty()).as_deref().map(token::parse_position).transpose()?;
    let (app, user_id) = (&ctx.app, &ctx.requester()?.user_id);
    let device = dehydrated::get(&app.store.snapshot(), user_id.as_str())?;
    if device.device_id != ctx.arg(0) {
        return Err(Error::not_found("This is not the dehydrated device"));
    }
    let device_id = device.device_id.as_str().into();
    if let Some(from) = from {
        app.sync.unacknowledged.acknowledge(app, user_id, device_id, from)?;
    }
    let snapshot = app.store.snapshot();
    let waiting = devices::messages(app, &snapshot, user_id, device_id, from, MAX_EVENTS)?;
    let next = if waiting.events.is_empty() { from.unwrap_or_else(|| snapshot.version()) } else { waiting.through };
    let mut out = b"{\"next_batch\":".to_vec();
    string(&mut out, &token::position(next));
    out.extend_from_slice(b",\"events\":[");
    out.extend_from_slice(&waiting.events.join(&b","[..]));
    out.extend_from_slice(b"]}");
    Ok(json_response(StatusCode::OK, out))
}

#[cfg(test)]
mod tests {
    use http::Method;
    use serde_json::{Value, json};
    use store::Read as _;

    use crate::http::{Answer, Body};
    use crate::schema::{DEVICES, ONE_TIME_KEYS, TO_DEVICE};
    use crate::testing::{Server, User};

    const PATH: &str = "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device";
    const SIGNED: &str = "signed_curve25519";

    fn ok(answer: &Answer) -> Value {
        assert!(answer.status.is_success(), "{answer:?}");
        answer.json()
    }

    fn outcome(answer: &Answer) -> (u16, String) {
        (answer.status.as_u16(), answer.errcode())
    }

    fn device(user: &User, device_id: &str) -> Value {
        json!({
            "device_id": device_id, "initial_device_display_name": "Dehydrated",
            "device_data": { "algorithm": "org.matrix.msc3814.v2", "device_pickle": "p", "nonce": device_id },
            "device_keys": {
                "user_id": user.user_id, "device_id": device_id, "algorithms": [], "dehydrated": true,
                "keys": { (format!("ed25519:{device_id}")): "k" }, "signatures": {},
            },
            "one_time_keys": { (format!("{SIGNED}:1")): { "key": "1" } },
            "fallback_keys": { (format!("{SIGNED}:f")): { "key": "f", "fallback": true } },
        })
    }

    async fn delete(user: &User) -> Answer {
        user.client.send(Method::DELETE, PATH, Body::from("")).await
    }

    async fn devices_of(user: &User) -> Vec<String> {
        let body = json!({ "device_keys": { (user.user_id.clone()): [] } });
        let found = ok(&user.client.post("/_matrix/client/v3/keys/query", body).await);
        found["device_keys"][&user.user_id].as_object().unwrap().keys().cloned().collect()
    }

    async fn send(from: &User, to: &User, n: usize) {
        let path = format!("/_matrix/client/v3/sendToDevice/m.test/{n}");
        let body = json!({ "messages": { (to.user_id.clone()): { "*": { "n": n } } } });
        ok(&from.client.put(&path, body).await);
    }

    #[tokio::test]
    async fn a_device_is_kept_replaced_and_deleted() {
        let server = Server::default();
        let alice = server.user("alice").await;
        assert_eq!(outcome(&alice.client.get(PATH).await), (404, "M_NOT_FOUND".to_owned()));
        assert_eq!(outcome(&delete(&alice).await), (404, "M_NOT_FOUND".to_owned()));
        assert_eq!(ok(&alice.client.put(PATH, device(&alice, "one/+")).await), json!({ "device_id": "one/+" }));
        let found = ok(&alice.client.get(PATH).await);
        assert_eq!(found, json!({ "device_id": "one/+", "device_data": device(&alice, "one/+")["device_data"] }));
        assert_eq!(devices_of(&alice).await, ["one/+"]);
        let claim = json!({ "one_time_keys": { (alice.user_id.clone()): { "one/+": SIGNED } } });
        let claimed = ok(&alice.client.post("/_matrix/client/v3/keys/claim", claim).await);
        assert_eq!(claimed["one_time_keys"][&alice.user_id]["one/+"][format!("{SIGNED}:1")], json!({ "key": "1" }));
        // Under the same name it is another device; under another name it takes the place of the first.
        for name in ["one/+", "two"] {
            ok(&alice.client.put(PATH, device(&alice, name)).await);
            assert_eq!(devices_of(&alice).await, [name]);
            assert_eq!(server.app.store.latest().count(&ONE_TIME_KEYS, ONE_TIME_KEYS.all()).unwrap(), 1);
        }
        assert_eq!(ok(&delete(&alice).await), json!({ "device_id": "two" }));
        assert_eq!(devices_of(&alice).await, [""; 0]);
        assert_eq!(alice.client.get(PATH).await.status, 404);
        assert_eq!(server.app.store.latest().count(&DEVICES, DEVICES.all()).unwrap(), 1);
        // Deleted like any other, it is no dehydrated device either.
        ok(&alice.client.put(PATH, device(&alice, "three")).await);
        let mut body = json!({ "devices": ["three"] });
        body["auth"] = alice.auth();
        ok(&alice.client.post("/_matrix/client/v3/delete_devices", body).await);
        assert_eq!(alice.client.get(PATH).await.status, 404);
    }

    #[tokio::test]
    async fn pitfall_031_messages_to_all_devices_wait_for_it_too() {
        let server = Server::default();
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        ok(&alice.client.put(PATH, device(&alice, "D/D")).await);
        for n in 0..130 {
            send(&bob, &alice, n).await;
        }
        let phone = server.log_in("alice").await;
        let path = format!("{PATH}/D%2FD/events");
        let numbers = |answer: &Value| -> Vec<u64> {
            answer["events"].as_array().unwrap().iter().map(|event| event["content"]["n"].as_u64().unwrap()).collect()
        };
        let first = ok(&phone.client.get(&path).await);
        assert_eq!(numbers(&first), (0..100).collect::<Vec<u64>>());
        assert_eq!(ok(&phone.client.post(&path, json!({})).await), first, "not acknowledged yet");
        let stored = || {
            let span = TO_DEVICE.prefix((alice.user_id.as_str(), "D/D"));
            server.app.store.latest().count(&TO_DEVICE, span).unwrap()
        };
        assert_eq!(stored(), 130);
        let next = first["next_batch"].as_str().unwrap();
        let second = ok(&phone.client.get(&format!("{path}?next_batch={next}")).await);
        assert_eq!(numbers(&second), (100..130).collect::<Vec<u64>>());
        assert_eq!(stored(), 30);
        let last = ok(&phone.client.post(&path, json!({ "next_batch": second["next_batch"] })).await);
        assert_eq!((numbers(&last), stored()), (vec![], 0));
        assert_eq!(phone.client.get(&format!("{PATH}/OTHER/events")).await.status, 404);
        assert_eq!(bob.client.get(&path).await.status, 404);
        assert_eq!(phone.client.get(&format!("{path}?next_batch=x")).await.status, 400);
    }

    #[tokio::test]
    async fn requests_that_make_no_sense_are_refused() {
        let server = Server::default();
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let mut no_keys = device(&alice, "D");
        no_keys.as_object_mut().unwrap().remove("device_keys");
        assert_eq!(outcome(&alice.client.put(PATH, no_keys).await), (400, "M_MISSING_PARAM".to_owned()));
        let mut no_data = device(&alice, "D");
        no_data["device_data"] = json!("text");
        assert_eq!(outcome(&alice.client.put(PATH, no_data).await), (400, "M_BAD_JSON".to_owned()));
        for wrong in [device(&bob, "D"), device(&alice, &alice.device_id), device(&alice, "")] {
            assert_eq!(outcome(&alice.client.put(PATH, wrong).await), (400, "M_INVALID_PARAM".to_owned()));
        }
        assert_eq!(alice.client.get(PATH).await.status, 404);
        assert_eq!(outcome(&server.client.get(PATH).await).0, 401);
        let features = server.client.get("/_matrix/client/versions").await.json()["unstable_features"].clone();
        assert_eq!(features["org.matrix.msc3814"], true);
    }
}
