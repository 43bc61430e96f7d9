//! Profiles: reading anybody's, field by field or whole, and changing one's own.

use http::{Method, StatusCode};
use ruma::UserId;
use serde_json::{Map, Value, json};
use store::Tx;

use crate::App;
use crate::auth::Access;
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response, Routes, json_response};
use crate::limits::Class;
use crate::users::{accounts, profiles};

const WHOLE: &[&str] = &[
    "/_matrix/client/r0/profile/{user_id}",
    "/_matrix/client/v3/profile/{user_id}",
    "/_matrix/client/unstable/uk.tcpip.msc4133/profile/{user_id}",
];
const FIELD: &[&str] = &[
    "/_matrix/client/r0/profile/{user_id}/{field}",
    "/_matrix/client/v3/profile/{user_id}/{field}",
    "/_matrix/client/unstable/uk.tcpip.msc4133/profile/{user_id}/{field}",
];

pub fn routes() -> Routes {
    Routes::default()
        .raw(Method::GET, WHOLE, get_all)
        .limit(Class::Other)
        .raw(Method::GET, FIELD, get)
        .limit(Class::Other)
        .raw(Method::PUT, FIELD, put)
        .access(Access::Token)
        .limit(Class::Other)
        .raw(Method::DELETE, FIELD, delete)
        .access(Access::Token)
        .limit(Class::Other)
}

async fn get_all(ctx: RawCtx) -> Result<Response> {
    let user_id = known(&ctx.app, ctx.arg(0))?;
    let profile = profiles::all(&ctx.app.store.snapshot(), user_id)?;
    Ok(json_response(StatusCode::OK, Value::Object(profile).to_string()))
}

async fn get(ctx: RawCtx) -> Result<Response> {
    let (user_id, name) = (known(&ctx.app, ctx.arg(0))?, ctx.arg(1));
    let value = profiles::field(&ctx.app.store.snapshot(), user_id, name)?;
    let value = value.ok_or_else(|| Error::not_found("The profile has no such field"))?;
    Ok(json_response(StatusCode::OK, json!({ name: value }).to_string()))
}

async fn put(mut ctx: RawCtx) -> Result<Response> {
    let mut body: Map<String, Value> = ctx.read_json().await?;
    let value = body.remove(ctx.arg(1)).ok_or_else(|| Error::missing_param(format!("{} is missing", ctx.arg(1))))?;
    change(ctx, Some(value)).await
}

async fn delete(ctx: RawCtx) -> Result<Response> {
    change(ctx, None).await
}

async fn change(ctx: RawCtx, value: Option<Value>) -> Result<Response> {
    let requester = ctx.requester()?.clone();
    let (app, user_id, name) = (ctx.app.clone(), ctx.arg(0), ctx.arg(1).to_owned());
    if requester.user_id != user_id {
        return Err(Error::forbidden("This is the profile of somebody else"));
    }
    requester.not_suspended()?;
    profiles::check_name(&name)?;
    // The body of a request is no thing to hold on to while waiting.
    drop(ctx);
    let change = |tx: &mut Tx| profiles::set(tx, &requester.user_id, &name, value.as_ref());
    app.store.transact(change).await?;
    Ok(json_response(StatusCode::OK, "{}"))
}

/// A user of this server; only their profiles are known.
fn known<'a>(app: &App, user_id: &'a str) -> Result<&'a UserId> {
    let user_id = <&UserId>::try_from(user_id)?;
    if accounts::find(app, user_id)?.is_some() { Ok(user_id) } else { Err(Error::not_found("There is no such user")) }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::testing::{Server, User};

    const PROFILE: &str = "/_matrix/client/v3/profile/@alice:hs.test";

    async fn put(user: &User, name: &str, value: Value) -> (u16, String) {
        let answer = user.client.put(&format!("{PROFILE}/{name}"), json!({ name: value })).await;
        (answer.status.as_u16(), answer.errcode())
    }

    fn ok() -> (u16, String) {
        (200, String::new())
    }

    #[tokio::test]
    async fn everybody_reads_a_profile_and_its_owner_changes_it() {
        let server = Server::default();
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        assert_eq!(server.client.get(PROFILE).await.json(), json!({}));
        assert_eq!(server.client.get(&format!("{PROFILE}/displayname")).await.errcode(), "M_NOT_FOUND");
        assert_eq!(put(&alice, "displayname", json!("Alice")).await, ok());
        assert_eq!(put(&alice, "avatar_url", json!("mxc://hs.test/abc")).await, ok());
        assert_eq!(put(&alice, "m.tz", json!("Europe/Berlin")).await, ok());
        assert_eq!(put(&alice, "com.example.pets", json!(["cat", { "name": null }])).await, ok());
        let whole = json!({
            "displayname": "Alice",
            "avatar_url": "mxc://hs.test/abc",
            "m.tz": "Europe/Berlin",
            "com.example.pets": ["cat", { "name": null }],
        });
        assert_eq!(server.client.get(PROFILE).await.json(), whole);
        let one = server.client.get(&format!("{PROFILE}/com.example.pets")).await.json();
        assert_eq!(one, json!({ "com.example.pets": ["cat", { "name": null }] }));
        assert_eq!(put(&bob, "displayname", json!("Mallory")).await, (403, "M_FORBIDDEN".to_owned()));
        assert_eq!(alice.client.delete(&format!("{PROFILE}/m.tz")).await.status, 200);
        assert_eq!(alice.client.delete(&format!("{PROFILE}/m.tz")).await.status, 200);
        assert_eq!(server.client.get(&format!("{PROFILE}/m.tz")).await.status, 404);
        let nobody = server.client.get("/_matrix/client/v3/profile/@nobody:hs.test").await;
        assert_eq!(nobody.errcode(), "M_NOT_FOUND");
    }

    #[tokio::test]
    async fn pitfall_068_names_and_sizes_have_limits() {
        let server = Server::default();
        let alice = server.user("alice").await;
        let refused = |code: &str| (400, code.to_owned());
        assert_eq!(put(&alice, &format!("a.{}", "x".repeat(254)), json!(1)).await, refused("M_KEY_TOO_LARGE"));
        assert_eq!(put(&alice, "Upper", json!(1)).await, refused("M_INVALID_PARAM"));
        assert_eq!(put(&alice, "displayname", json!(1)).await, refused("M_BAD_JSON"));
        assert_eq!(put(&alice, "displayname", json!("x".repeat(257))).await, refused("M_INVALID_PARAM"));
        assert_eq!(put(&alice, "avatar_url", json!("https://hs.test/a")).await, refused("M_INVALID_PARAM"));
        let missing = alice.client.put(&format!("{PROFILE}/displayname"), json!({ "other": 1 })).await;
        assert_eq!(missing.errcode(), "M_MISSING_PARAM");
        let half = json!("x".repeat(33_000));
        assert_eq!(put(&alice, "a.one", half.clone()).await, ok());
        assert_eq!(put(&alice, "a.two", half.clone()).await, refused("M_PROFILE_TOO_LARGE"));
        assert_eq!(put(&alice, "a.one", json!(1)).await, ok());
        assert_eq!(put(&alice, "a.two", half).await, ok());
    }

    #[tokio::test]
    async fn pitfall_068_clients_of_old_take_a_name_away_by_null_or_nothing() {
        let server = Server::default();
        let alice = server.user("alice").await;
        for nothing in [Value::Null, json!("")] {
            assert_eq!(put(&alice, "displayname", json!("Alice")).await, ok());
            assert_eq!(put(&alice, "displayname", nothing).await, ok());
            assert_eq!(server.client.get(PROFILE).await.json(), json!({}));
        }
    }
}
