//! Typing notifications (spec: Typing Notifications).

use ruma::api::client::typing::create_typing_event::v3::{Request, Response, Typing};
use store::Read as _;

use crate::error::{Error, Result};
use crate::http::{Ctx, Routes};
use crate::schema::{self, MembershipState, room_nr};
use crate::sync::{presence, typing};

pub fn routes() -> Routes {
    Routes::default().ruma(set_typing).guests()
}

async fn set_typing(ctx: Ctx<Request>) -> Result<Response> {
    let user_id = &ctx.requester.user_id;
    if ctx.request.user_id != *user_id {
        return Err(Error::forbidden("Only you know whether you are typing"));
    }
    let room = room_nr(&ctx.request.room_id);
    let member = ctx.app.store.snapshot().get(&schema::MEMBERSHIPS, (user_id.as_str(), room))?;
    if member.is_none_or(|member| member.state != MembershipState::Join) {
        return Err(Error::forbidden("You are not in this room"));
    }
    let timeout = match ctx.request.state {
        Typing::Yes(info) => Some(info.timeout),
        Typing::No => None,
    };
    typing::set(&ctx.app, room, user_id, timeout);
    presence::active(&ctx.app, user_id);
    Ok(Response::new())
}
