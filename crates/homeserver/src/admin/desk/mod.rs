//! Administration over HTTP, under the paths and with the fields that administration consoles know.
//!
//! The same endpoints are served in two places: where clients connect, to those with an administrator's token (the
//! router sees to that), and on the socket, to whoever can open it. Here are requests and answers; what is done to
//! accounts, rooms and uploads lives with these.

mod devices;
mod media;
mod members;
mod notices;
mod paging;
mod rate_limits;
mod removal;
mod reports;
mod rooms;
mod statistics;
mod tasks;
#[cfg(test)]
mod tests;
mod tokens;
mod users;

use http::{Method, StatusCode};
use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::http::{RawCtx, Response, Routes, json_response};
use crate::schema::User;
use crate::users::accounts;

/// What an administrator may ask for.
pub fn routes() -> Routes {
    Routes::default()
        .join(users::routes())
        .join(devices::routes())
        .join(rooms::routes())
        .join(members::routes())
        .join(removal::routes())
        .join(media::routes())
        .join(tokens::routes())
        .join(reports::routes())
        .join(notices::routes())
        .join(rate_limits::routes())
        .join(statistics::routes())
        .join(tasks::routes())
}

/// What anybody may ask for.
pub fn open_routes() -> Routes {
    Routes::default().raw(Method::GET, &["/_synapse/admin/v1/server_version"], server_version)
}

async fn server_version(_: RawCtx) -> Result<Response> {
    let version = concat!("Skerry ", env!("CARGO_PKG_VERSION"));
    ok(&json!({ "server_version": version }))
}

fn ok(body: &Value) -> Result<Response> {
    Ok(json_response(StatusCode::OK, body.to_string()))
}

fn done() -> Result<Response> {
    Ok(json_response(StatusCode::OK, "{}"))
}

/// The user of this server that a path argument names.
fn named(ctx: &RawCtx, index: usize) -> Result<OwnedUserId> {
    user_of(ctx, ctx.arg(index))
}

fn user_of(ctx: &RawCtx, name: &str) -> Result<OwnedUserId> {
    let user_id = accounts::local_user(&ctx.app.server_name, name);
    user_id.ok_or_else(|| Error::invalid_param("This is no user of this server"))
}

/// The account that a path argument names; closed ones are accounts, too.
fn account(ctx: &RawCtx, index: usize) -> Result<(OwnedUserId, User)> {
    let user_id = named(ctx, index)?;
    let user = account_of(ctx, &user_id)?;
    Ok((user_id, user))
}

fn account_of(ctx: &RawCtx, user_id: &UserId) -> Result<User> {
    accounts::find(&ctx.app, user_id)?.ok_or_else(|| Error::not_found("There is no such user"))
}

fn room(ctx: &RawCtx, index: usize) -> Result<OwnedRoomId> {
    Ok(RoomId::parse(ctx.arg(index))?)
}

fn no_room() -> Error {
    Error::not_found("There is no such room")
}

/// Who asks; nobody in particular on the socket.
fn asking(ctx: &RawCtx) -> Option<&UserId> {
    ctx.requester.as_ref().map(|requester| &*requester.user_id)
}

/// The same, to be written down.
fn asking_name(ctx: &RawCtx) -> String {
    asking(ctx).map(ToString::to_string).unwrap_or_default()
}
