//! Making rooms (spec: Rooms, Creation).

use ruma::api::client::room::create_room::v3::{Request, Response};

use crate::error::Result;
use crate::http::{Ctx, Routes};
use crate::limits::Class;

pub fn routes() -> Routes {
    Routes::default().ruma(create_room).limit(Class::Other)
}

async fn create_room(ctx: Ctx<Request>) -> Result<Response> {
    ctx.requester.not_suspended()?;
    let room_id = crate::rooms::create::create(&ctx.app, &ctx.requester.user_id, ctx.request).await?;
    Ok(Response { room_id })
}
