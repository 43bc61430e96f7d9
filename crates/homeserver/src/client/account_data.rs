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
