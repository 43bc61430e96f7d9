//! Where a user wants to be told of notifications (spec: Push Notifications, pushers).

use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use store::Tx;

use crate::auth::Access;
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response, Routes, json_response};
use crate::limits::Class;
use crate::push::pushers;
use crate::schema::Pusher;

/// What goes with every notification is not for stories.
const MAX_DATA_BYTES: usize = 16 * 1024;
const MAX_TEXT_BYTES: usize = 1_024;

pub fn routes() -> Routes {
    Routes::default()
        .raw(Method::GET, &["/_matrix/client/r0/pushers", "/_matrix/client/v3/pushers"], list)
        .access(Access::Token)
        .raw(Method::POST, &["/_matrix/client/r0/pushers/set", "/_matrix/client/v3/pushers/set"], set)
        .access(Access::Token)
        .limit(Class::Other)
}

async fn list(ctx: RawCtx) -> Result<Response> {
    let found = pushers::of(&ctx.app.store.snapshot(), &ctx.requester()?.user_id)?;
    let shown = |(app_id, pushkey, pusher): (String, String, Pusher)| {
        let data: Value = serde_json::from_str(&pusher.data).unwrap_or_default();
        let mut shown = json!({
            "app_id": app_id,
            "pushkey": pushkey,
            "kind": pusher.kind,
            "app_display_name": pusher.app_display_name,
            "device_display_name": pusher.device_display_name,
            "lang": pusher.lang,
            "data": data,
        });
        if let Some(tag) = pusher.profile_tag {
            shown["profile_tag"] = json!(tag);
        }
        shown
    };
    let all: Vec<Value> = found.into_iter().map(shown).collect();
    Ok(json_response(StatusCode::OK, json!({ "pushers": all }).to_string()))
}

#[derive(Deserialize)]
struct Request {
    app_id: String,
    pushkey: String,
    /// `null` deletes the pusher; the key has to be there.
    #[serde(deserialize_with = "Option::deserialize")]
    kind: Option<String>,
    app_display_name: Option<String>,
    device_display_name: Option<String>,
    profile_tag: Option<String>,
    lang: Option<String>,
    data: Option<Map<String, Value>>,
    #[serde(default)]
    append: bool,
}

async fn set(mut ctx: RawCtx) -> Result<Response> {
    let request: Request = ctx.read_json().await?;
    let (app, requester) = (&ctx.app, ctx.requester()?);
    let id = (request.app_id.as_str(), request.pushkey.as_str());
    let Some(kind) = &request.kind else {
        app.store.transact(|tx: &mut Tx| pushers::delete(tx, &requester.user_id, id)).await?;
        return Ok(json_response(StatusCode::OK, "{}"));
    };
    if kind != "http" {
        return Err(Error::invalid_param(format!("Notifications of the kind {kind} are not sent here")));
    }
    let data = request.data.as_ref().ok_or_else(|| Error::missing_param("data is missing"))?;
    let url = data.get("url").and_then(Value::as_str).ok_or_else(|| Error::missing_param("data.url is missing"))?;
    pushers::check_url(url)?;
    let data = serde_json::to_string(data).map_err(Error::internal)?;
    if data.len() > MAX_DATA_BYTES {
        return Err(Error::invalid_param(format!("data has at most {MAX_DATA_BYTES} bytes")));
    }
    let pusher = Pusher {
        device_id: requester.device_id.as_ref().map(ToString::to_string).unwrap_or_default(),
        kind: kind.clone(),
        app_display_name: text("app_display_name", request.app_display_name.as_ref())?,
        device_display_name: text("device_display_name", request.device_display_name.as_ref())?,
        profile_tag: request.profile_tag.as_ref().map(|tag| text("profile_tag", Some(tag))).transpose()?,
        lang: text("lang", request.lang.as_ref())?,
        data,
        ts: app.clock.now_ms(),
    };
    let set = |tx: &mut Tx| pushers::set(tx, &requester.user_id, id, &pusher, request.append);
    app.store.transact(set).await?;
    Ok(json_response(StatusCode::OK, "{}"))
}

fn text(name: &str, value: Option<&String>) -> Result<String> {
    let value = value.ok_or_else(|| Error::missing_param(format!("{name} is missing")))?;
    if value.len() > MAX_TEXT_BYTES {
        return Err(Error::invalid_param(format!("{name} has at most {MAX_TEXT_BYTES} bytes")));
    }
    Ok(value.clone())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::testing::{PASSWORD, Server, User};

    const SET: &str = "/_matrix/client/v3/pushers/set";

    fn pusher(pushkey: &str) -> Value {
        json!({
            "app_id": "org.app", "pushkey": pushkey, "kind": "http", "app_display_name": "App",
            "device_display_name": "Phone", "lang": "en", "profile_tag": "x",
            "data": { "url": "https://push.example/_matrix/push/v1/notify", "format": "event_id_only", "more": [1] },
        })
    }

    async fn set(user: &User, body: Value) -> (u16, String) {
        let answer = user.client.post(SET, body).await;
        (answer.status.as_u16(), answer.errcode())
    }

    async fn keys(user: &User) -> Vec<String> {
        let all = user.client.get("/_matrix/client/v3/pushers").await.json();
        let keys = all["pushers"].as_array().unwrap().iter();
        keys.map(|pusher| pusher["pushkey"].as_str().unwrap().to_owned()).collect()
    }

    #[tokio::test]
    async fn a_pusher_is_set_changed_listed_and_deleted() {
        let server = Server::default();
        let alice = server.user("alice").await;
        assert_eq!(set(&alice, pusher("k")).await.0, 200);
        let listed = alice.client.get("/_matrix/client/v3/pushers").await.json()["pushers"][0].clone();
        let expected = pusher("k");
        assert_eq!(listed, expected);
        let mut changed = pusher("k");
        changed["lang"] = json!("de");
        assert_eq!(set(&alice, changed).await.0, 200);
        let listed = alice.client.get("/_matrix/client/v3/pushers").await.json();
        assert_eq!(listed["pushers"].as_array().unwrap().len(), 1);
        assert_eq!(listed["pushers"][0]["lang"], "de");
        assert_eq!(set(&alice, json!({ "app_id": "org.app", "pushkey": "k", "kind": null })).await.0, 200);
        assert!(keys(&alice).await.is_empty());
        assert_eq!(set(&alice, json!({ "app_id": "org.app", "pushkey": "k", "kind": null })).await.0, 200);
    }

    #[tokio::test]
    async fn pitfall_073_a_phone_that_changes_hands_tells_its_new_owner_only() {
        let server = Server::default();
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        set(&alice, pusher("shared")).await;
        set(&alice, pusher("own")).await;
        let mut more = pusher("shared");
        more["append"] = json!(true);
        assert_eq!(set(&bob, more).await.0, 200);
        assert_eq!(keys(&alice).await, ["own", "shared"]);
        assert_eq!(set(&bob, pusher("shared")).await.0, 200);
        assert_eq!((keys(&alice).await, keys(&bob).await), (vec!["own".to_owned()], vec!["shared".to_owned()]));
    }

    #[tokio::test]
    async fn pushers_that_make_no_sense_are_refused() {
        let server = Server::default();
        let alice = server.user("alice").await;
        let changed = |change: fn(&mut Value)| {
            let mut body = pusher("k");
            change(&mut body);
            body
        };
        for (wrong, code) in [
            (changed(|body| body["data"]["url"] = json!("https://push.example/elsewhere")), "M_INVALID_PARAM"),
            (
                changed(|body| body["data"]["url"] = json!("ftp://push.example/_matrix/push/v1/notify")),
                "M_INVALID_PARAM",
            ),
            (changed(|body| body["data"] = json!({})), "M_MISSING_PARAM"),
            (changed(|body| body["kind"] = json!("email")), "M_INVALID_PARAM"),
            (changed(|body| body["app_id"] = json!("x".repeat(65))), "M_INVALID_PARAM"),
            (changed(|body| body["pushkey"] = json!("x".repeat(513))), "M_INVALID_PARAM"),
            (changed(|body| body["lang"] = Value::Null), "M_MISSING_PARAM"),
        ] {
            assert_eq!(set(&alice, wrong.clone()).await, (400, code.to_owned()), "{wrong}");
        }
        assert_eq!(set(&alice, json!({ "app_id": "a", "pushkey": "k" })).await.0, 400);
    }

    #[tokio::test]
    async fn pitfall_011_pushers_go_with_their_session() {
        let server = Server::default();
        let alice = server.user("alice").await;
        let other = server.log_in("alice").await;
        set(&alice, pusher("one")).await;
        set(&other, pusher("two")).await;
        other.client.post("/_matrix/client/v3/logout", json!({})).await;
        assert_eq!(keys(&alice).await, ["one"]);
    }

    #[tokio::test]
    async fn pitfall_016_a_closed_account_has_no_pushers() {
        use store::Read as _;
        let server = Server::default();
        let alice = server.user("alice").await;
        set(&alice, pusher("one")).await;
        // One that no device made.
        let mut batch = store::Batch::new();
        batch.put(&crate::schema::PUSHERS, (&alice.user_id, "bridge", "two"), &crate::schema::Pusher::default());
        server.app.store.commit(batch).unwrap().durable().await.unwrap();
        let body = json!({ "auth": alice.auth() });
        assert_eq!(alice.client.post("/_matrix/client/v3/account/deactivate", body).await.status, 200);
        let table = crate::schema::PUSHERS;
        assert_eq!(server.app.store.snapshot().count(&table, table.all()).unwrap(), 0);
    }

    #[tokio::test]
    async fn pitfall_012_a_new_password_ends_the_pushers_of_other_sessions() {
        let server = Server::default();
        let alice = server.user("alice").await;
        let other = server.log_in("alice").await;
        set(&alice, pusher("one")).await;
        set(&other, pusher("two")).await;
        let body = json!({ "new_password": format!("{PASSWORD} 2"), "logout_devices": false, "auth": alice.auth() });
        assert_eq!(alice.client.post("/_matrix/client/v3/account/password", body).await.status, 200);
        assert_eq!(keys(&alice).await, ["one"]);
        assert_eq!(keys(&other).await, ["one"], "the session itself goes on");
    }
}
