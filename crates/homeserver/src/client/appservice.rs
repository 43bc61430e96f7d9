//! What application services ask of this server besides what clients do: whether it reaches them, and the room
//! directories of their networks.

use http::{Method, StatusCode};
use ruma::RoomId;
use ruma::api::client::appservice::request_ping::v1 as ping;
use ruma::api::client::room::Visibility;
use serde::Deserialize;

use super::register::service_of;
use crate::appservice::queries;
use crate::auth::Access;
use crate::error::{Error, Result};
use crate::http::{Ctx, RawCtx, Response, Routes, json_response};
use crate::rooms::public;

pub fn routes() -> Routes {
    Routes::default()
        .ruma(request_ping)
        .raw(
            Method::PUT,
            &[
                "/_matrix/client/r0/directory/list/appservice/{network_id}/{room_id}",
                "/_matrix/client/v3/directory/list/appservice/{network_id}/{room_id}",
            ],
            list_room,
        )
        .access(Access::AppserviceToken)
}

async fn request_ping(ctx: Ctx<ping::Request>) -> Result<ping::Response> {
    let service = service_of(&ctx.app, Some(&ctx.requester))?;
    if service.id != ctx.request.appservice_id {
        return Err(Error::forbidden("This is the ID of another application service"));
    }
    let transaction_id = ctx.request.transaction_id.as_ref().map(|id| id.as_str());
    Ok(ping::Response::new(queries::ping(&ctx.app, service, transaction_id).await?))
}

/// Not by ruma's type, for which the visibility is one of two.
async fn list_room(mut ctx: RawCtx) -> Result<Response> {
    #[derive(Deserialize)]
    struct Body {
        visibility: Visibility,
    }
    let body: Body = ctx.read_json().await?;
    let listed = match body.visibility {
        Visibility::Public => true,
        Visibility::Private => false,
        _ => return Err(Error::invalid_param("There is no such visibility")),
    };
    let service = service_of(&ctx.app, ctx.requester.as_ref())?;
    let room_id = RoomId::parse(ctx.arg(1))?;
    public::set_listed_in(&ctx.app, (&service.id, ctx.arg(0)), &room_id, listed).await?;
    Ok(json_response(StatusCode::OK, "{}"))
}
