//! Room membership: join, knock, invite, leave, kick, ban, unban, forget (spec: Rooms, Room membership).

use ::rooms::membership::Act;
use ruma::api::client::knock::knock_room;
use ruma::api::client::membership::{
    ban_user, forget_room, invite_user, join_room_by_id, join_room_by_id_or_alias, kick_user, leave_room, unban_user,
};
use ruma::{OwnedRoomId, RoomAliasId, RoomId, RoomOrAliasId, UserId};
use store::Read as _;

use crate::App;
use crate::auth::Requester;
use crate::error::{Error, Result};
use crate::http::{Ctx, Routes};
use crate::limits::Class;
use crate::rooms::membership::{Wish, carry_out, forget};
use crate::schema;

pub fn routes() -> Routes {
    Routes::default()
        .ruma(join_by_id)
        .limit(Class::Join)
        .guests()
        .ruma(join)
        .limit(Class::Join)
        .guests()
        .ruma(knock)
        .limit(Class::Join)
        .ruma(invite)
        .limit(Class::Invite)
        .ruma(leave)
        .guests()
        .ruma(kick)
        .ruma(ban)
        .ruma(unban)
        .ruma(forget_it)
        .guests()
}

async fn join_by_id(ctx: Ctx<join_room_by_id::v3::Request>) -> Result<join_room_by_id::v3::Response> {
    let room_id = ctx.request.room_id;
    join_room(&ctx.app, &ctx.requester, &room_id, ctx.request.reason).await?;
    Ok(join_room_by_id::v3::Response { room_id })
}

async fn join(ctx: Ctx<join_room_by_id_or_alias::v3::Request>) -> Result<join_room_by_id_or_alias::v3::Response> {
    let room_id = resolve(&ctx.app, &ctx.request.room_id_or_alias)?;
    join_room(&ctx.app, &ctx.requester, &room_id, ctx.request.reason).await?;
    Ok(join_room_by_id_or_alias::v3::Response { room_id })
}

async fn join_room(app: &App, requester: &Requester, room_id: &RoomId, reason: Option<String>) -> Result<()> {
    requester.not_suspended()?;
    known(app, room_id)?;
    let wish = Wish { reason, guest: requester.guest, ..Wish::own(Act::Join, &requester.user_id) };
    carry_out(app, room_id, wish).await
}

async fn knock(ctx: Ctx<knock_room::v3::Request>) -> Result<knock_room::v3::Response> {
    ctx.requester.not_suspended()?;
    let room_id = resolve(&ctx.app, &ctx.request.room_id_or_alias)?;
    known(&ctx.app, &room_id)?;
    let wish = Wish { reason: ctx.request.reason, ..Wish::own(Act::Knock, &ctx.requester.user_id) };
    carry_out(&ctx.app, &room_id, wish).await?;
    Ok(knock_room::v3::Response { room_id })
}

async fn invite(ctx: Ctx<invite_user::v3::Request>) -> Result<invite_user::v3::Response> {
    ctx.requester.not_suspended()?;
    let invite_user::v3::InvitationRecipient::UserId(invitee) = &ctx.request.recipient else {
        return Err(Error::forbidden("People cannot be invited by address: there is no identity server"));
    };
    on_another(&ctx.app, &ctx.requester, &ctx.request.room_id, Act::Invite, &invitee.user_id, invitee.reason.clone())
        .await?;
    Ok(invite_user::v3::Response {})
}

async fn leave(ctx: Ctx<leave_room::v3::Request>) -> Result<leave_room::v3::Response> {
    let wish = Wish { reason: ctx.request.reason, ..Wish::own(Act::Leave, &ctx.requester.user_id) };
    carry_out(&ctx.app, &ctx.request.room_id, wish).await?;
    Ok(leave_room::v3::Response {})
}

async fn kick(ctx: Ctx<kick_user::v3::Request>) -> Result<kick_user::v3::Response> {
    ctx.requester.not_suspended()?;
    let request = ctx.request;
    on_another(&ctx.app, &ctx.requester, &request.room_id, Act::Kick, &request.user_id, request.reason).await?;
    Ok(kick_user::v3::Response {})
}

async fn ban(ctx: Ctx<ban_user::v3::Request>) -> Result<ban_user::v3::Response> {
    ctx.requester.not_suspended()?;
    let request = ctx.request;
    on_another(&ctx.app, &ctx.requester, &request.room_id, Act::Ban, &request.user_id, request.reason).await?;
    Ok(ban_user::v3::Response {})
}

async fn unban(ctx: Ctx<unban_user::v3::Request>) -> Result<unban_user::v3::Response> {
    ctx.requester.not_suspended()?;
    let request = ctx.request;
    on_another(&ctx.app, &ctx.requester, &request.room_id, Act::Unban, &request.user_id, request.reason).await?;
    Ok(unban_user::v3::Response {})
}

async fn forget_it(ctx: Ctx<forget_room::v3::Request>) -> Result<forget_room::v3::Response> {
    forget(&ctx.app, &ctx.requester.user_id, &ctx.request.room_id).await?;
    Ok(forget_room::v3::Response {})
}

async fn on_another(
    app: &App,
    requester: &Requester,
    room_id: &RoomId,
    act: Act,
    target: &UserId,
    reason: Option<String>,
) -> Result<()> {
    let actor = &requester.user_id;
    carry_out(app, room_id, Wish { act, actor, target, reason, is_direct: false, guest: requester.guest }).await
}

/// For those who come from outside, an unknown room is one that nobody could find.
fn known(app: &App, room_id: &RoomId) -> Result<()> {
    let head = app.store.latest().get(&schema::HEADS, schema::room_nr(room_id))?;
    match head {
        Some(head) if head.room_id == room_id.as_str() => Ok(()),
        _ => Err(Error::not_found("This room is not known here, and federation is off")),
    }
}

fn resolve(app: &App, room: &RoomOrAliasId) -> Result<OwnedRoomId> {
    if let Ok(room_id) = RoomId::parse(room.as_str()) {
        return Ok(room_id);
    }
    let alias = RoomAliasId::parse(room.as_str()).map_err(|cause| Error::invalid_param(cause.to_string()))?;
    let row = app.store.latest().get(&schema::ALIASES, alias.as_str())?;
    let row = row.ok_or_else(|| Error::not_found("This alias leads nowhere"))?;
    RoomId::parse(&row.room_id).map_err(Error::internal)
}
