//! Room membership: join, knock, invite, leave, kick, ban, unban, forget (spec: Rooms, Room membership).

use ::rooms::membership::Act;
use ruma::api::client::knock::knock_room;
use ruma::api::client::membership::{
    ban_user, forget_room, invite_user, join_room_by_id, join_room_by_id_or_alias, kick_user, leave_room, unban_user,
};
use ruma::{OwnedRoomId, RoomAliasId, RoomId, RoomOrAliasId, UserId};
use store::Read as _;

use crate::App;
use crate::appservice::queries;
use crate::auth::Requester;
use crate::error::{Error, Result};
use crate::http::{Ctx, Routes};
use crate::limits::Class;
use crate::rooms::membership::{Wish, carry_out, forget};
use crate::schema;
use crate::users::upgrade::follow;

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
    let room_id = resolve(&ctx.app, &ctx.request.room_id_or_alias).await?;
    join_room(&ctx.app, &ctx.requester, &room_id, ctx.request.reason).await?;
    Ok(join_room_by_id_or_alias::v3::Response { room_id })
}

async fn join_room(app: &App, requester: &Requester, room_id: &RoomId, reason: Option<String>) -> Result<()> {
    requester.not_suspended()?;
    known(app, room_id)?;
    let wish =
        Wish { reason, guest: requester.guest, follow: Some(follow), ..Wish::own(Act::Join, &requester.user_id) };
    carry_out(app, room_id, wish).await
}

async fn knock(ctx: Ctx<knock_room::v3::Request>) -> Result<knock_room::v3::Response> {
    ctx.requester.not_suspended()?;
    let room_id = resolve(&ctx.app, &ctx.request.room_id_or_alias).await?;
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
    queries::user(&ctx.app, &invitee.user_id, ctx.requester.appservice.as_deref()).await?;
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
    carry_out(app, room_id, Wish { actor, reason, guest: requester.guest, ..Wish::own(act, target) }).await
}

/// For those who come from outside, an unknown room is one that nobody could find.
fn known(app: &App, room_id: &RoomId) -> Result<()> {
    let head = app.store.latest().get(&schema::HEADS, schema::room_nr(room_id))?;
    match head {
        Some(head) if head.room_id == room_id.as_str() => Ok(()),
        _ => Err(Error::not_found("This room is not known here, and federation is off")),
    }
}

async fn resolve(app: &App, room: &RoomOrAliasId) -> Result<OwnedRoomId> {
    if let Ok(room_id) = RoomId::parse(room.as_str()) {
        return Ok(room_id);
    }
    let alias = RoomAliasId::parse(room.as_str()).map_err(|cause| Error::invalid_param(cause.to_string()))?;
    let row = app.store.latest().get(&schema::ALIASES, alias.as_str())?;
    if let Some(row) = row {
        return RoomId::parse(&row.room_id).map_err(Error::internal);
    }
    queries::alias(app, &alias).await?.ok_or_else(|| Error::not_found("This alias leads nowhere"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::client::testing::*;
    use crate::testing::{Server, User, config};

    async fn configure(user: &User, kind: &str, content: Value) {
        let path = format!("/_matrix/client/v3/user/{}/account_data/{kind}", enc(&user.user_id));
        ok(&user.client.put(&path, content).await);
    }

    #[tokio::test]
    async fn pitfall_062_who_blocks_invites_gets_none() {
        let server = Server::default();
        let [alice, bob] = users(&server).await;
        let room = public_room(&alice).await;
        let invite = async || {
            let answer = alice.client.post(&room.path("invite"), json!({"user_id": bob.user_id})).await;
            let created = json!({"invite": [bob.user_id]});
            let with_room = alice.client.post("/_matrix/client/v3/createRoom", created).await;
            assert_eq!((answer.status, answer.errcode()), (with_room.status, with_room.errcode()));
            (answer.status.as_u16(), answer.errcode())
        };
        let blocked = (403, "M_INVITE_BLOCKED".to_owned());
        for (kind, blocks, allows) in [
            ("m.invite_permission_config", json!({"default_action": "block"}), json!({"default_action": "allow"})),
            ("org.matrix.msc4380.invite_permission_config", json!({"block_all": true}), json!({"block_all": 7})),
            ("org.matrix.msc4155.invite_permission_config", json!({"blocked_users": ["@al*"]}), json!({})),
        ] {
            configure(&bob, kind, blocks).await;
            assert_eq!(invite().await, blocked, "{kind}");
            configure(&bob, kind, allows).await;
        }
        assert_eq!(invite().await.0, 200);
        // Joining, and inviting others, is not what was blocked.
        configure(&bob, "m.invite_permission_config", json!({"default_action": "block"})).await;
        room.join(&bob).await;
    }

    #[tokio::test]
    async fn pitfall_017_guests_come_where_they_may_and_go_when_they_may_not() {
        let mut config = config();
        config.registration.guests = true;
        let server = Server::new(config);
        let [alice, bob] = users(&server).await;
        let access = |to: &str| json!({"guest_access": to});
        let state = json!([{"type": "m.room.guest_access", "content": access("can_join")}]);
        let open = create(&alice, json!({"preset": "public_chat", "initial_state": state})).await;
        let closed = public_room(&alice).await;
        let answer = ok(&server.client.post("/_matrix/client/v3/register?kind=guest", json!({})).await);
        let text = |name: &str| answer[name].as_str().unwrap().to_owned();
        let token = text("access_token");
        let client = server.client.with_token(&*token);
        let guest = User { user_id: text("user_id"), device_id: text("device_id"), token, client };
        let refusal = guest.client.post(&closed.path("join"), json!({})).await;
        assert_eq!(refused(&refusal), (403, "M_GUEST_ACCESS_FORBIDDEN".to_owned()));
        let members = async || {
            let joined = ok(&open.get("joined_members").await)["joined"].clone();
            joined.as_object().unwrap().len()
        };
        open.join(&bob).await;
        open.join(&guest).await;
        assert_eq!(members().await, 3);
        // The same again revokes nothing.
        open.set("m.room.guest_access", "", json!({"guest_access": "can_join", "more": 1})).await;
        crate::jobs::drain(&server.app).await.unwrap();
        assert_eq!(members().await, 3);
        open.set("m.room.guest_access", "", access("forbidden")).await;
        crate::jobs::drain(&server.app).await.unwrap();
        assert_eq!(members().await, 2);
        let back = open.set("m.room.guest_access", "", access("can_join")).await;
        open.join(&guest).await;
        open.redact(&back).await;
        crate::jobs::drain(&server.app).await.unwrap();
        assert_eq!(members().await, 2);
    }
}
