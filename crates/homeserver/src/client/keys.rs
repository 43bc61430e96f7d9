//! End-to-end encryption keys (spec: Key and message distribution). Other servers are not asked: none is reachable.

use std::collections::{BTreeMap, BTreeSet};

use http::{Method, StatusCode};
use ruma::api::client::keys::get_key_changes::v3 as get_key_changes;
use ruma::{OwnedServerName, OwnedUserId, UserId};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use store::Read;

use crate::App;
use crate::auth::Access;
use crate::blocking;
use crate::e2ee::cross_signing::{self, Usage};
use crate::e2ee::keys::{self, Claimed, KeysById, Upload};
use crate::error::{Error, Result};
use crate::http::{Ctx, RawCtx, Response, Routes, json_response};
use crate::rooms::shown::{number, string};
use crate::schema::DEVICES;
use crate::sync::assemble::StateAfter;
use crate::sync::collect::{Ask, device_lists};
use crate::sync::filter::Filter;
use crate::sync::token::SyncToken;

/// Keys of so many devices are claimed in one commit.
const CLAIMS_AT_ONCE: usize = 500;
/// Answers about more users than this are made where they keep nobody waiting.
const MANY_USERS: usize = 200;

pub fn routes() -> Routes {
    Routes::default()
        .raw(Method::POST, &["/_matrix/client/v3/keys/upload", "/_matrix/client/r0/keys/upload"], upload)
        .access(Access::Token)
        .guests()
        .raw(Method::POST, &["/_matrix/client/v3/keys/query", "/_matrix/client/r0/keys/query"], query)
        .access(Access::Token)
        .guests()
        .raw(Method::POST, &["/_matrix/client/v3/keys/claim", "/_matrix/client/r0/keys/claim"], claim)
        .access(Access::Token)
        .guests()
        .ruma(key_changes)
}

// ---- upload ------------------------------------------------------------------------------------------------------

#[derive(Deserialize)]
struct UploadBody {
    device_keys: Option<Box<RawValue>>,
    one_time_keys: Option<KeysById>,
    fallback_keys: Option<KeysById>,
}

async fn upload(mut ctx: RawCtx) -> Result<Response> {
    let body: UploadBody = ctx.read_json().await?;
    let requester = ctx.requester()?;
    let (user_id, device_id) = (requester.user_id.as_str(), requester.device()?.as_str());
    let (one_time, fallback) = (body.one_time_keys.unwrap_or_default(), body.fallback_keys.unwrap_or_default());
    let new = Upload::new(user_id, device_id, body.device_keys.as_deref(), &one_time, &fallback)?;
    let counts = ctx.app.store.transact(|tx| keys::upload(tx, user_id, device_id, &new)).await?.value;
    let mut out = b"{\"one_time_key_counts\":{".to_vec();
    each(&mut out, &counts.one_time, |out, (algorithm, count)| {
        string(out, algorithm);
        out.push(b':');
        number(out, u64::from(*count));
    });
    out.extend_from_slice(b"}}");
    Ok(json_response(StatusCode::OK, out))
}

// ---- query -------------------------------------------------------------------------------------------------------

#[derive(Deserialize)]
struct QueryBody {
    device_keys: BTreeMap<OwnedUserId, Vec<String>>,
}

async fn query(mut ctx: RawCtx) -> Result<Response> {
    let body: QueryBody = ctx.read_json().await?;
    let requester = ctx.requester()?.user_id.clone();
    let app = ctx.app;
    let answer = if body.device_keys.len() > MANY_USERS {
        blocking::run(move || answer_query(&app, &requester, &body)).await??
    } else {
        answer_query(&app, &requester, &body)?
    };
    Ok(json_response(StatusCode::OK, answer))
}

fn answer_query(app: &App, requester: &UserId, body: &QueryBody) -> Result<Vec<u8>> {
    let (here, elsewhere): (Vec<_>, Vec<_>) =
        body.device_keys.iter().partition(|(user_id, _)| user_id.server_name() == &*app.server_name);
    let mut out = Vec::with_capacity(64 + 1024 * here.len());
    out.extend_from_slice(b"{\"device_keys\":{");
    let read = app.store.snapshot();
    let mut failed = Ok(());
    each(&mut out, &here, |out, (user_id, devices)| {
        string(out, user_id.as_str());
        out.extend_from_slice(b":{");
        let mut first = true;
        let wanted = devices.iter().map(String::as_str);
        let written = keys::identities(&read, user_id.as_str(), wanted, |device_id, keys| {
            if !std::mem::take(&mut first) {
                out.push(b',');
            }
            string(out, device_id);
            out.push(b':');
            let device = read.get(&DEVICES, (user_id.as_str(), device_id));
            let name = device.map(|device| device.and_then(|device| device.display_name));
            named(out, keys, name.ok().flatten().as_deref());
        });
        if let Err(error) = written {
            failed = Err(error);
        }
        out.push(b'}');
    });
    failed?;
    out.push(b'}');
    cross_signing_keys(&mut out, &read, requester, here.into_iter().map(|(user_id, _)| user_id))?;
    out.extend_from_slice(b",\"failures\":");
    out.extend_from_slice(&unreachable(elsewhere.into_iter().map(|(user_id, _)| user_id)));
    out.push(b'}');
    Ok(out)
}

/// Writes the cross-signing keys of users, after other members of an object.
fn cross_signing_keys<'a>(
    out: &mut Vec<u8>,
    read: &impl Read,
    requester: &UserId,
    users: impl Iterator<Item = &'a OwnedUserId>,
) -> Result<()> {
    let [mut master, mut self_signing, mut user_signing] = [Vec::new(), Vec::new(), Vec::new()];
    for user_id in users {
        cross_signing::keys_for(read, requester.as_str(), user_id.as_str(), |usage, json| {
            let keys = match usage {
                Usage::Master => &mut master,
                Usage::SelfSigning => &mut self_signing,
                Usage::UserSigning => &mut user_signing,
            };
            if !keys.is_empty() {
                keys.push(b',');
            }
            string(keys, user_id.as_str());
            keys.push(b':');
            keys.extend_from_slice(json);
        })?;
    }
    for (name, keys) in [("master", master), ("self_signing", self_signing), ("user_signing", user_signing)] {
        out.extend_from_slice(b",\"");
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b"_keys\":{");
        out.extend_from_slice(&keys);
        out.push(b'}');
    }
    Ok(())
}

/// Device keys with the device's name, which is all that the server adds.
fn named(out: &mut Vec<u8>, keys: &[u8], name: Option<&str>) {
    let Some((name, open)) = name.zip(keys.strip_suffix(b"}")) else {
        out.extend_from_slice(keys);
        return;
    };
    out.extend_from_slice(open);
    out.extend_from_slice(b",\"unsigned\":{\"device_display_name\":");
    string(out, name);
    out.extend_from_slice(b"}}");
}

// ---- claim -------------------------------------------------------------------------------------------------------

#[derive(Deserialize)]
struct ClaimBody {
    one_time_keys: BTreeMap<OwnedUserId, BTreeMap<String, String>>,
}

async fn claim(mut ctx: RawCtx) -> Result<Response> {
    let body: ClaimBody = ctx.read_json().await?;
    let app = ctx.app;
    let (here, elsewhere): (Vec<_>, Vec<_>) =
        body.one_time_keys.iter().partition(|(user_id, _)| user_id.server_name() == &*app.server_name);
    let wanted: Vec<Wanted<'_>> = here
        .into_iter()
        .flat_map(|(user_id, devices)| {
            let devices = devices.iter();
            devices.map(|(device_id, algorithm)| Wanted { user_id: user_id.as_str(), device_id, algorithm })
        })
        .collect();
    let mut claimed: Vec<(Wanted<'_>, Claimed)> = Vec::with_capacity(wanted.len());
    for some in wanted.chunks(CLAIMS_AT_ONCE) {
        let taken = app.store.transact(|tx| {
            let claims = some.iter().map(|w| keys::claim(tx, w.user_id, w.device_id, w.algorithm));
            claims.collect::<Result<Vec<_>>>()
        });
        match taken.await {
            Ok(taken) => {
                let taken = some.iter().zip(taken.value);
                claimed.extend(taken.filter_map(|(wanted, key)| Some((*wanted, key?))));
            }
            // What was taken before is nobody else's any more, so it has to be answered.
            Err(cause) if !claimed.is_empty() => {
                tracing::warn!(%cause, "only some of the keys could be claimed");
                break;
            }
            Err(cause) => return Err(cause),
        }
    }
    let failures = unreachable(elsewhere.into_iter().map(|(user_id, _)| user_id));
    Ok(json_response(StatusCode::OK, answer_claim(&claimed, &failures)))
}

#[derive(Clone, Copy)]
struct Wanted<'a> {
    user_id: &'a str,
    device_id: &'a str,
    algorithm: &'a str,
}

fn answer_claim(claimed: &[(Wanted<'_>, Claimed)], failures: &[u8]) -> Vec<u8> {
    let mut out = b"{\"one_time_keys\":{".to_vec();
    let of_a_user = claimed.chunk_by(|(a, _), (b, _)| a.user_id == b.user_id);
    each(&mut out, of_a_user, |out, devices| {
        string(out, devices.first().map_or("", |(wanted, _)| wanted.user_id));
        out.extend_from_slice(b":{");
        each(out, devices, |out, (wanted, (key_id, key))| {
            string(out, wanted.device_id);
            out.extend_from_slice(b":{");
            string(out, key_id);
            out.push(b':');
            out.extend_from_slice(key);
            out.push(b'}');
        });
        out.push(b'}');
    });
    out.extend_from_slice(b"},\"failures\":");
    out.extend_from_slice(failures);
    out.push(b'}');
    out
}

// ---- changes -----------------------------------------------------------------------------------------------------

async fn key_changes(ctx: Ctx<get_key_changes::Request>) -> Result<get_key_changes::Response> {
    let (from, _to): (SyncToken, SyncToken) = (ctx.request.from.parse()?, ctx.request.to.parse()?);
    let user_id = ctx.requester.user_id;
    let app = ctx.app;
    // What came after `to` is told, too: the device is going to hear of it anyhow.
    let lists = blocking::run(move || {
        device_lists(&Ask {
            app: &app,
            user_id: &user_id,
            device_id: None,
            live: &app.sync.live.get(&app.store, &user_id),
            filter: &Filter::default(),
            since: Some(from),
            full_state: false,
            state_after: StateAfter::default(),
        })
    });
    let lists = lists.await??;
    let users = |ids: BTreeSet<String>| ids.into_iter().filter_map(|id| OwnedUserId::try_from(id).ok()).collect();
    Ok(get_key_changes::Response::new(users(lists.changed), users(lists.left)))
}

// ---- writing -----------------------------------------------------------------------------------------------------

/// Writes items with commas between them.
fn each<T>(out: &mut Vec<u8>, items: impl IntoIterator<Item = T>, mut write: impl FnMut(&mut Vec<u8>, T)) {
    for (index, item) in items.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write(out, item);
    }
}

/// The servers of these users, as failures.
fn unreachable<'a>(users: impl Iterator<Item = &'a OwnedUserId>) -> Vec<u8> {
    let servers: BTreeSet<OwnedServerName> = users.map(|user_id| user_id.server_name().to_owned()).collect();
    let failure = || Error::unavailable("Other servers cannot be reached from here").body();
    let failures: Map<String, Value> = servers.into_iter().map(|server| (server.to_string(), failure())).collect();
    Value::Object(failures).to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::http::Answer;
    use crate::testing::{Server, User};

    const UPLOAD: &str = "/_matrix/client/v3/keys/upload";
    const QUERY: &str = "/_matrix/client/v3/keys/query";
    const CLAIM: &str = "/_matrix/client/v3/keys/claim";
    const SIGNED: &str = "signed_curve25519";

    fn device_keys(user: &User, key: &str) -> Value {
        json!({
            "user_id": user.user_id, "device_id": user.device_id, "algorithms": ["m.olm.v1.curve25519-aes-sha2"],
            "keys": { (format!("ed25519:{}", user.device_id)): key },
            "signatures": { (user.user_id.clone()): { (format!("ed25519:{}", user.device_id)): "no signature at all" } },
        })
    }

    fn one_time_keys(ids: impl IntoIterator<Item = u32>) -> Value {
        let key = |n| (format!("{SIGNED}:{n:04}"), json!({ "key": format!("key {n}"), "signatures": {} }));
        Value::Object(ids.into_iter().map(key).collect())
    }

    async fn upload(user: &User, body: Value) -> Value {
        let answer = user.client.post(UPLOAD, body).await;
        assert!(answer.status.is_success(), "{answer:?}");
        answer.json()["one_time_key_counts"].clone()
    }

    async fn query(user: &User, of: &User) -> Value {
        let answer = user.client.post(QUERY, json!({ "device_keys": { (of.user_id.clone()): [] } })).await;
        answer.json()["device_keys"][&of.user_id].clone()
    }

    /// The ID of the key that was given out, if any.
    async fn claim(user: &User, of: &User) -> Option<String> {
        let body = json!({ "one_time_keys": { (of.user_id.clone()): { (of.device_id.clone()): SIGNED } } });
        let answer = user.client.post(CLAIM, body).await;
        assert!(answer.status.is_success(), "{answer:?}");
        let keys = answer.json()["one_time_keys"][&of.user_id][&of.device_id].clone();
        let ids: Vec<String> = keys.as_object().map(|keys| keys.keys().cloned().collect()).unwrap_or_default();
        assert!(ids.len() <= 1);
        ids.into_iter().next()
    }

    pub(super) async fn sync(user: &User, since: Option<&str>) -> Value {
        let since = since.map(|since| format!("&since={since}")).unwrap_or_default();
        let answer = user.client.get(&format!("/_matrix/client/v3/sync?timeout=0{since}")).await;
        assert!(answer.status.is_success(), "{answer:?}");
        answer.json()
    }

    fn next(sync: &Value) -> &str {
        sync["next_batch"].as_str().unwrap()
    }

    #[tokio::test]
    async fn keys_that_were_claimed_long_ago_are_forgotten() {
        use crate::schema::{Held, KEY_COUNTS, KeyCounts, ONE_TIME_KEY_IDS, OneTimeKeyId};
        use store::{Pos, Read as _};
        let server = Server::default();
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        upload(&alice, json!({ "one_time_keys": one_time_keys([9_001]) })).await;
        let device = (alice.user_id.as_str(), alice.device_id.as_str());
        let counts = || server.app.store.snapshot().get(&KEY_COUNTS, device).unwrap().unwrap();
        for chunk in (0..6_000u64).collect::<Vec<_>>().chunks(1_000) {
            let mut batch = store::Batch::new();
            for nr in chunk {
                // Older ones have names that come later.
                let id = OneTimeKeyId { digest: [1; 16], at: Pos(*nr), held: Held::UnlessClaimed(true) };
                batch.put(&ONE_TIME_KEY_IDS, (device.0, device.1, &format!("{SIGNED}:old {}", 9_999 - nr)), &id);
            }
            // As if it was of a time when nobody counted them.
            batch.put(&KEY_COUNTS, device, &KeyCounts { claimed: None, ..counts() });
            server.app.store.commit(batch).unwrap().durable().await.unwrap();
        }
        upload(&alice, json!({ "one_time_keys": one_time_keys([9_002]) })).await;
        let known = |nr: u64| {
            let name = format!("{SIGNED}:old {}", 9_999 - nr);
            server.app.store.snapshot().contains(&ONE_TIME_KEY_IDS, (device.0, device.1, &name)).unwrap()
        };
        assert_eq!((known(0), known(999), known(1_000), known(5_999)), (false, false, true, true));
        // What nobody has claimed stays, and what was claimed lately does not come back.
        assert_eq!(claim(&bob, &alice).await.unwrap(), format!("{SIGNED}:9001"));
        assert_eq!(upload(&alice, json!({ "one_time_keys": one_time_keys([9_001]) })).await[SIGNED], 1);
        assert_eq!(claim(&bob, &alice).await.unwrap(), format!("{SIGNED}:9002"));
        assert_eq!(counts().claimed, Some(5_002));
        // A name of old is given to another key, which can be claimed.
        upload(&alice, json!({ "one_time_keys": { (format!("{SIGNED}:old 4000")): { "key": "new" } } })).await;
        assert_eq!(counts().claimed, Some(5_001));
        assert_eq!(claim(&bob, &alice).await.unwrap(), format!("{SIGNED}:old 4000"));
        assert_eq!((counts().claimed, claim(&bob, &alice).await), (Some(5_002), None));
    }

    #[tokio::test]
    async fn keys_that_were_uploaded_before_an_update_are_claimed_once_too() {
        use crate::schema::{Held, ONE_TIME_KEY_IDS, ONE_TIME_KEYS, OneTimeKey, OneTimeKeyId};
        use store::Read as _;
        let server = Server::default();
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        upload(&alice, json!({ "one_time_keys": one_time_keys(0..3) })).await;
        let (user, device) = (alice.user_id.as_str(), alice.device_id.as_str());
        let (snapshot, mut batch) = (server.app.store.snapshot(), store::Batch::new());
        for row in snapshot.scan(&ONE_TIME_KEYS, ONE_TIME_KEYS.all()) {
            let ((_, _, algorithm, at, index), key) = row.unwrap();
            batch.put(&ONE_TIME_KEYS, (user, device, &algorithm, at, index), &OneTimeKey { placed: false, ..key });
        }
        for row in snapshot.scan(&ONE_TIME_KEY_IDS, ONE_TIME_KEY_IDS.all()) {
            let ((_, _, key_id), id) = row.unwrap();
            let old = OneTimeKeyId { held: Held::UnlessClaimed(false), ..id };
            batch.put(&ONE_TIME_KEY_IDS, (user, device, &key_id), &old);
        }
        server.app.store.commit(batch).unwrap().durable().await.unwrap();
        assert_eq!(upload(&alice, json!({ "one_time_keys": one_time_keys(2..5) })).await[SIGNED], 5);
        for nr in 0..4 {
            assert_eq!(claim(&bob, &alice).await.unwrap(), format!("{SIGNED}:{nr:04}"));
        }
        assert_eq!(upload(&alice, json!({ "one_time_keys": one_time_keys(0..5) })).await[SIGNED], 1);
        let other = json!({ "one_time_keys": { (format!("{SIGNED}:0004")): { "key": "other" } } });
        assert_eq!(outcome(&alice.client.post(UPLOAD, other).await).0, 400, "it is still there");
        assert_eq!(claim(&bob, &alice).await.unwrap(), format!("{SIGNED}:0004"));
        assert_eq!(claim(&bob, &alice).await, None);
    }

    fn outcome(answer: &Answer) -> (u16, String) {
        (answer.status.as_u16(), answer.errcode())
    }

    fn changed(sync: &Value) -> Vec<&str> {
        let list = sync["device_lists"]["changed"].as_array();
        list.into_iter().flatten().filter_map(Value::as_str).collect()
    }

    fn left(sync: &Value) -> Vec<&str> {
        let list = sync["device_lists"]["left"].as_array();
        list.into_iter().flatten().filter_map(Value::as_str).collect()
    }

    /// A room of these users; the first one makes it.
    async fn room(users: &[&User], encrypted: bool) -> String {
        let encryption = json!({ "type": "m.room.encryption", "content": { "algorithm": "m.megolm.v1.aes-sha2" } });
        let initial = if encrypted { json!([encryption]) } else { json!([]) };
        let body = json!({ "preset": "public_chat", "initial_state": initial });
        let answer = users[0].client.post("/_matrix/client/v3/createRoom", body).await;
        let room_id = answer.json()["room_id"].as_str().unwrap().to_owned();
        for user in &users[1..] {
            go(user, "join", &room_id).await;
        }
        room_id
    }

    async fn go(user: &User, act: &str, room_id: &str) {
        let answer = user.client.post(&format!("/_matrix/client/v3/rooms/{room_id}/{act}"), json!({})).await;
        assert!(answer.status.is_success(), "{answer:?}");
    }

    #[tokio::test]
    async fn pitfall_076_a_key_is_uploaded_once_and_kept_as_it_is() {
        let server = Server::default();
        let alice = server.user("alice").await;
        let mut keys = device_keys(&alice, "a");
        keys["more"] = json!({ "b": 1, "a": [1.5, "ü"] });
        let body = json!({ "device_keys": keys, "one_time_keys": one_time_keys(0..50) });
        assert_eq!(upload(&alice, body.clone()).await, json!({ SIGNED: 50 }));
        assert_eq!(upload(&alice, body).await, json!({ SIGNED: 50 }), "the same again is nothing new");
        assert_eq!(upload(&alice, json!({})).await, json!({ SIGNED: 50 }));
        let other = json!({ "one_time_keys": { (format!("{SIGNED}:0007")): { "key": "other" } } });
        assert_eq!(outcome(&alice.client.post(UPLOAD, other).await), (400, "M_UNKNOWN".to_owned()));
        keys["unsigned"] = json!({ "device_display_name": "mallory" });
        upload(&alice, json!({ "device_keys": keys })).await;
        keys["unsigned"] = Value::Null;
        let mut shown = query(&alice, &alice).await[&alice.device_id].clone();
        shown["unsigned"] = Value::Null;
        assert_eq!(shown, keys);
    }

    #[tokio::test]
    async fn pitfall_076_keys_are_those_of_the_device() {
        let server = Server::default();
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let phone = server.log_in("alice").await;
        for wrong in [device_keys(&bob, "b"), device_keys(&phone, "p"), json!({}), json!([]), json!("keys")] {
            let answer = alice.client.post(UPLOAD, json!({ "device_keys": wrong })).await;
            assert_eq!(answer.status, 400, "{answer:?}");
        }
        for id in ["", ":", "a:", ":a", "a", &format!("a:{}", "b".repeat(300))] {
            let answer = alice.client.post(UPLOAD, json!({ "one_time_keys": { (id): "key" } })).await;
            assert_eq!(outcome(&answer), (400, "M_INVALID_PARAM".to_owned()), "{id}");
        }
        assert_eq!(query(&bob, &alice).await, json!({}));
        assert_eq!(outcome(&server.client.post(UPLOAD, json!({})).await).0, 401);
    }

    #[tokio::test]
    async fn pitfall_078_a_query_tells_of_those_it_can_reach() {
        let server = Server::default();
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let phone = server.log_in("alice").await;
        upload(&alice, json!({ "device_keys": device_keys(&alice, "a") })).await;
        upload(&phone, json!({ "device_keys": device_keys(&phone, "p") })).await;
        server.log_in("alice").await;
        let all = query(&bob, &alice).await;
        assert_eq!(all.as_object().unwrap().len(), 2, "a device without keys is not one to send to");
        let body = json!({ "device_keys": {
            "@alice:hs.test": [phone.device_id, "UNKNOWN"], "@bob:hs.test": [], "@nobody:hs.test": [],
            "@carol:else.test": [], "@dave:else.test": ["D"],
        } });
        let answer = bob.client.post(QUERY, body).await.json();
        let expected = json!({
            "@alice:hs.test": { (phone.device_id.clone()): all[&phone.device_id] }, "@bob:hs.test": {}, "@nobody:hs.test": {},
        });
        assert_eq!(answer["device_keys"], expected);
        assert_eq!(answer["failures"].as_object().unwrap().keys().collect::<Vec<_>>(), ["else.test"]);
        for wrong in [json!({}), json!({ "device_keys": [] }), json!({ "device_keys": { "alice": [] } })] {
            assert_eq!(bob.client.post(QUERY, wrong).await.status, 400);
        }
    }

    #[tokio::test]
    async fn a_device_is_shown_with_its_name() {
        let server = Server::default();
        let alice = server.user("alice").await;
        upload(&alice, json!({ "device_keys": device_keys(&alice, "a") })).await;
        let before = sync(&alice, None).await;
        let path = format!("/_matrix/client/v3/devices/{}", alice.device_id);
        alice.client.put(&path, json!({ "display_name": "Tablet \"1\"" })).await;
        let shown = query(&alice, &alice).await[&alice.device_id].clone();
        assert_eq!(shown["unsigned"], json!({ "device_display_name": "Tablet \"1\"" }));
        assert_eq!(shown["keys"], device_keys(&alice, "a")["keys"]);
        assert_eq!(changed(&sync(&alice, Some(next(&before))).await), ["@alice:hs.test"]);
    }

    #[tokio::test]
    async fn pitfall_077_the_oldest_key_first_and_the_fallback_last() {
        let server = Server::default();
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        assert_eq!(claim(&bob, &alice).await, None);
        upload(&alice, json!({ "one_time_keys": one_time_keys([9, 8]) })).await;
        upload(&alice, json!({ "one_time_keys": one_time_keys([3, 1]) })).await;
        let fallback =
            |key: &str| json!({ "fallback_keys": { (format!("{SIGNED}:{key}")): { "key": key, "fallback": true } } });
        upload(&alice, fallback("F1")).await;
        let unused = async || sync(&alice, None).await["device_unused_fallback_key_types"].clone();
        assert_eq!(unused().await, json!([SIGNED]));
        let mut order = Vec::new();
        for _ in 0..6 {
            order.push(claim(&bob, &alice).await.unwrap());
        }
        let expected = ["0008", "0009", "0001", "0003", "F1", "F1"].map(|id| format!("{SIGNED}:{id}"));
        assert_eq!(order, expected);
        assert_eq!(unused().await, json!([]));
        upload(&alice, fallback("F1")).await;
        assert_eq!(unused().await, json!([]), "the same again is not a new one");
        upload(&alice, fallback("F2")).await;
        assert_eq!(unused().await, json!([SIGNED]));
        assert_eq!(claim(&bob, &alice).await.unwrap(), format!("{SIGNED}:F2"));
        let body = json!({ "one_time_keys": {
            "@alice:hs.test": { "UNKNOWN": SIGNED, (alice.device_id.clone()): "other_algorithm" }, "@x:else.test": { "D": SIGNED },
        } });
        let answer = bob.client.post(CLAIM, body).await.json();
        assert_eq!(answer["one_time_keys"], json!({}));
        assert!(answer["failures"]["else.test"].is_object());
    }

    #[tokio::test]
    async fn pitfall_077_a_claimed_key_does_not_come_back() {
        let server = Server::default();
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let keys = json!({ "one_time_keys": one_time_keys(0..3) });
        upload(&alice, keys.clone()).await;
        assert!(claim(&bob, &alice).await.is_some());
        // The device did not get the answer, and tries again.
        assert_eq!(upload(&alice, keys).await, json!({ SIGNED: 2 }));
        let mut seen = HashSet::new();
        while let Some(id) = claim(&bob, &alice).await {
            assert!(seen.insert(id));
        }
        assert_eq!(seen, HashSet::from([format!("{SIGNED}:0001"), format!("{SIGNED}:0002")]));
        // A device that counts from the beginning again has new keys under old names.
        let anew = json!({ "one_time_keys": { (format!("{SIGNED}:0000")): { "key": "anew" } } });
        assert_eq!(upload(&alice, anew).await, json!({ SIGNED: 1 }));
        assert_eq!(claim(&bob, &alice).await.unwrap(), format!("{SIGNED}:0000"));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn pitfall_077_each_key_once_whoever_claims_at_the_same_time() {
        let server = Server::default();
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        upload(&alice, json!({ "one_time_keys": one_time_keys(0..100) })).await;
        let (alice, bob) = (Arc::new(alice), Arc::new(bob));
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                let (alice, bob) = (alice.clone(), bob.clone());
                tokio::spawn(async move {
                    let mut got = Vec::new();
                    for _ in 0..14 {
                        got.extend(claim(&bob, &alice).await);
                    }
                    got
                })
            })
            .collect();
        let mut all = Vec::new();
        for task in tasks {
            all.extend(task.await.unwrap());
        }
        let different: HashSet<&String> = all.iter().collect();
        assert_eq!((all.len(), different.len()), (100, 100), "all of them, each once");
        assert_eq!(claim(&bob, &alice).await, None);
        assert_eq!(sync(&alice, None).await["device_one_time_keys_count"], json!({ SIGNED: 0 }));
    }

    #[tokio::test]
    async fn pitfall_032_every_sync_says_how_many_keys_are_left() {
        let server = Server::default();
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let first = sync(&alice, None).await;
        assert_eq!(first["device_one_time_keys_count"], json!({ SIGNED: 0 }));
        assert_eq!(first["device_unused_fallback_key_types"], json!([]));
        upload(&alice, json!({ "one_time_keys": one_time_keys(0..5) })).await;
        let second = sync(&alice, Some(next(&first))).await;
        assert_eq!(second["device_one_time_keys_count"], json!({ SIGNED: 5 }));
        let nothing = sync(&alice, Some(next(&second))).await;
        assert_eq!(nothing["device_one_time_keys_count"], json!({ SIGNED: 5 }), "also when nothing happened");
        assert_eq!(nothing["device_unused_fallback_key_types"], json!([]));
        let phone = server.log_in("alice").await;
        assert_eq!(sync(&phone, None).await["device_one_time_keys_count"], json!({ SIGNED: 0 }), "to each its own");
        // Pitfall 29: a claim is news to a device that waits.
        let path = format!("/_matrix/client/v3/sync?timeout=30000&since={}", next(&nothing));
        let (answer, claimed) = tokio::join!(alice.client.get(&path), claim(&bob, &alice));
        assert!(claimed.is_some());
        assert_eq!(answer.json()["device_one_time_keys_count"], json!({ SIGNED: 4 }));
    }

    #[tokio::test]
    async fn pitfall_011_a_device_takes_its_keys_with_it() {
        let server = Server::default();
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        room(&[&alice, &bob], true).await;
        let fallback = json!({ (format!("{SIGNED}:F")): { "key": "f" } });
        let body = json!({
            "device_keys": device_keys(&alice, "a"), "one_time_keys": one_time_keys(0..3), "fallback_keys": fallback,
        });
        upload(&alice, body).await;
        let before = sync(&bob, None).await;
        assert!(alice.client.post("/_matrix/client/v3/logout", json!({})).await.status.is_success());
        assert_eq!(query(&bob, &alice).await, json!({}));
        assert_eq!(claim(&bob, &alice).await, None);
        assert_eq!(changed(&sync(&bob, Some(next(&before))).await), ["@alice:hs.test"]);
        // The same name again is a new device.
        let again = server.log_in_with("alice", json!({ "device_id": alice.device_id })).await;
        assert_eq!(sync(&again, None).await["device_unused_fallback_key_types"], json!([]));
        let other = json!({ (format!("{SIGNED}:0000")): { "key": "another" } });
        assert_eq!(upload(&again, json!({ "one_time_keys": other })).await, json!({ SIGNED: 1 }));
    }

    #[tokio::test]
    async fn pitfall_011_logging_in_again_on_a_device_keeps_its_keys() {
        let server = Server::default();
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        upload(&alice, json!({ "device_keys": device_keys(&alice, "a"), "one_time_keys": one_time_keys(0..1) })).await;
        server.log_in_with("alice", json!({ "device_id": alice.device_id })).await;
        assert!(query(&bob, &alice).await[&alice.device_id].is_object());
        assert!(claim(&bob, &alice).await.is_some());
    }

    #[tokio::test]
    async fn pitfall_033_changed_devices_concern_those_in_a_room_with_the_user() {
        let server = Server::default();
        let (alice, bob, carol) = (server.user("alice").await, server.user("bob").await, server.user("carol").await);
        room(&[&alice, &bob], false).await;
        let first = (sync(&alice, None).await, sync(&bob, None).await, sync(&carol, None).await);
        assert_eq!(first.1.get("device_lists"), None, "only in an incremental sync");
        upload(&alice, json!({ "device_keys": device_keys(&alice, "a") })).await;
        let second = (
            sync(&alice, Some(next(&first.0))).await,
            sync(&bob, Some(next(&first.1))).await,
            sync(&carol, Some(next(&first.2))).await,
        );
        assert_eq!(changed(&second.0), ["@alice:hs.test"], "one's own, too");
        assert_eq!(changed(&second.1), ["@alice:hs.test"]);
        assert_eq!(second.2.get("device_lists"), None);
        upload(&alice, json!({ "device_keys": device_keys(&alice, "a") })).await;
        assert_eq!(sync(&bob, Some(next(&second.1))).await.get("device_lists"), None, "the same is no change");
        // It wakes a poll, and comes again for the same token.
        let path = format!("/_matrix/client/v3/sync?timeout=30000&since={}", next(&second.1));
        let body = json!({ "device_keys": device_keys(&alice, "b") });
        let (answer, _) = tokio::join!(bob.client.get(&path), upload(&alice, body));
        assert_eq!(changed(&answer.json()), ["@alice:hs.test"]);
        assert_eq!(changed(&sync(&bob, Some(next(&second.1))).await), ["@alice:hs.test"]);
        assert_eq!(changed(&sync(&bob, Some(next(&first.1))).await), ["@alice:hs.test"]);
    }

    #[tokio::test]
    async fn pitfall_033_who_begins_or_ends_to_share_an_encrypted_room() {
        let server = Server::default();
        let (alice, bob, carol) = (server.user("alice").await, server.user("bob").await, server.user("carol").await);
        let secret = room(&[&alice, &bob], true).await;
        let (a, c) = (sync(&alice, None).await, sync(&carol, None).await);
        go(&carol, "join", &secret).await;
        let a2 = sync(&alice, Some(next(&a))).await;
        assert_eq!(changed(&a2), ["@carol:hs.test"], "somebody else came");
        let c2 = sync(&carol, Some(next(&c))).await;
        assert_eq!(changed(&c2), ["@alice:hs.test", "@bob:hs.test", "@carol:hs.test"], "I came");
        go(&carol, "leave", &secret).await;
        let a3 = sync(&alice, Some(next(&a2))).await;
        assert_eq!((changed(&a3), left(&a3)), (vec![], vec!["@carol:hs.test"]));
        let c3 = sync(&carol, Some(next(&c2))).await;
        assert_eq!((changed(&c3), left(&c3)), (vec![], vec!["@alice:hs.test", "@bob:hs.test"]));
        // Who still shares another room has not left.
        room(&[&alice, &bob], false).await;
        let a4 = sync(&alice, Some(next(&a3))).await;
        assert_eq!(changed(&a4), Vec::<&str>::new(), "nothing is encrypted there");
        go(&bob, "leave", &secret).await;
        assert_eq!(left(&sync(&alice, Some(next(&a4))).await), Vec::<&str>::new());
        // While carol shared nothing with alice, nobody told alice; now she hears of it.
        upload(&carol, json!({ "device_keys": device_keys(&carol, "c") })).await;
        let a5 = sync(&alice, Some(next(&a4))).await;
        assert_eq!(changed(&a5), Vec::<&str>::new());
        go(&carol, "join", &secret).await;
        assert_eq!(changed(&sync(&alice, Some(next(&a5))).await), ["@carol:hs.test"]);
    }

    #[tokio::test]
    async fn pitfall_033_a_room_that_becomes_encrypted() {
        let server = Server::default();
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room_id = room(&[&alice, &bob], false).await;
        let before = sync(&bob, None).await;
        let path = format!("/_matrix/client/v3/rooms/{room_id}/state/m.room.encryption");
        alice.client.put(&path, json!({ "algorithm": "m.megolm.v1.aes-sha2" })).await;
        assert_eq!(changed(&sync(&bob, Some(next(&before))).await), ["@alice:hs.test", "@bob:hs.test"]);
    }

    #[tokio::test]
    async fn pitfall_034_changes_between_two_tokens() {
        let server = Server::default();
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        room(&[&alice, &bob], true).await;
        let from = sync(&bob, None).await;
        upload(&alice, json!({ "device_keys": device_keys(&alice, "a") })).await;
        let to = sync(&bob, Some(next(&from))).await;
        let changes = async |from: &str, to: &str| {
            bob.client.get(&format!("/_matrix/client/v3/keys/changes?from={from}&to={to}")).await
        };
        let answer = changes(next(&from), next(&to)).await;
        assert_eq!(answer.json(), json!({ "changed": ["@alice:hs.test"], "left": [] }));
        let answer = changes(next(&to), next(&to)).await;
        assert_eq!(answer.json(), json!({ "changed": [], "left": [] }));
        assert_eq!(changes("x", next(&to)).await.status, 400);
    }

    #[tokio::test]
    async fn pitfall_077_keys_that_were_claimed_are_answered_even_if_the_rest_fails() {
        let server = Server::default();
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        for user in [&alice, &bob] {
            upload(user, json!({ "device_keys": device_keys(user, "k"), "one_time_keys": one_time_keys(0..2) })).await;
        }
        // Whoever wants a key of bob's device fails, and it comes with the second commit.
        let mut junk = store::ValueBuf::default();
        junk.raw(&[250]);
        let mut batch = store::Batch::new();
        batch.put_buf(&crate::schema::KEY_COUNTS, (&bob.user_id, &bob.device_id), junk);
        server.app.store.commit(batch).unwrap().durable().await.unwrap();
        let mut devices: Map<String, Value> =
            (1..CLAIMS_AT_ONCE).map(|nr| (format!("none{nr}"), json!(SIGNED))).collect();
        devices.insert(alice.device_id.clone(), json!(SIGNED));
        let of_bob = json!({ (bob.device_id.clone()): SIGNED });
        let body = json!({ "one_time_keys": { (alice.user_id.clone()): devices, (bob.user_id.clone()): of_bob } });
        let answer = alice.client.post(CLAIM, body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let keys = &answer.json()["one_time_keys"];
        assert!(keys[&alice.user_id][&alice.device_id].is_object(), "{keys}");
        assert_eq!(keys.get(&bob.user_id), None);
    }
}
