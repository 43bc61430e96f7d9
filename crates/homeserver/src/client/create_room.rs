//! Making rooms (spec: Rooms, Creation).

use ruma::RoomAliasId;
use ruma::api::client::room::create_room::v3::{Request, Response};

use super::directory::own_or_free;
use crate::appservice::queries;
use crate::error::Result;
use crate::http::{Ctx, Routes};
use crate::limits::Class;
use crate::rooms::create;

pub fn routes() -> Routes {
    Routes::default().ruma(create_room).limit(Class::CreateRoom)
}

async fn create_room(ctx: Ctx<Request>) -> Result<Response> {
    ctx.requester.not_suspended()?;
    create::check_number(ctx.request.invite.len())?;
    for invitee in &ctx.request.invite {
        queries::user(&ctx.app, invitee, ctx.requester.appservice.as_deref()).await?;
    }
    let name = ctx.request.room_alias_name.as_deref();
    // What is no alias is refused with the rest of the request.
    if let Some(alias) = name.and_then(|name| RoomAliasId::parse(format!("#{name}:{}", ctx.app.server_name)).ok()) {
        own_or_free(&ctx.app, &ctx.requester, &alias)?;
    }
    let room_id = create::create(&ctx.app, &ctx.requester.user_id, ctx.request).await?;
    Ok(Response { room_id })
}
