//! Typing notifications (spec: Typing Notifications).

use std::time::Duration;

use http::{Method, StatusCode};
use ruma::RoomId;
use serde::Deserialize;
use store::Read as _;

use crate::auth::Access;
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response, Routes, json_response};
use crate::limits::Class;
use crate::schema::{self, MembershipState, room_nr};
use crate::sync::{presence, typing};

/// How long somebody types who does not say how long.
const DEFAULT_TIMEOUT_MS: u64 = 30_000;

pub fn routes() -> Routes {
    let paths =
        ["/_matrix/client/r0/rooms/{room_id}/typing/{user_id}", "/_matrix/client/v3/rooms/{room_id}/typing/{user_id}"];
    Routes::default().raw(Method::PUT, &paths, set_typing).access(Access::Token).limit(Class::Other).guests()
}

/// Unlike ruma's type, the timeout may be missing, as in the specification.
#[derive(Deserialize)]
struct Body {
    typing: bool,
    timeout: Option<u64>,
}

async fn set_typing(mut ctx: RawCtx) -> Result<Response> {
    let body: Body = ctx.read_json().await?;
    let user_id = &ctx.requester()?.user_id;
    let room = room_nr(&RoomId::parse(ctx.arg(0))?);
    if ctx.arg(1) != user_id.as_str() {
        return Err(Error::forbidden("Only you know whether you are typing"));
    }
    let member = ctx.app.store.snapshot().get(&schema::MEMBERSHIPS, (user_id.as_str(), room))?;
    if member.is_none_or(|member| member.state != MembershipState::Join) {
        return Err(Error::forbidden("You are not in this room"));
    }
    let timeout = body.typing.then(|| Duration::from_millis(body.timeout.unwrap_or(DEFAULT_TIMEOUT_MS)));
    typing::set(&ctx.app, room, user_id, timeout);
    presence::active(&ctx.app, user_id);
    Ok(json_response(StatusCode::OK, "{}"))
}
