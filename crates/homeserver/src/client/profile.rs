//! Profiles: reading anybody's, field by field or whole, and changing one's own.

use http::{Method, StatusCode};
use ruma::UserId;
use serde_json::{Map, Value, json};
use store::Tx;

use crate::App;
use crate::auth::Access;
use crate::error::{Error, Result};
use crate::http::limits::Class;
use crate::http::{RawCtx, Response, Routes, json_response};
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
