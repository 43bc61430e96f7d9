//! Room aliases and the room directory.

use http::{Method, StatusCode};
use ruma::api::client::alias::{create_alias, delete_alias, get_alias};
use ruma::api::client::directory::{get_public_rooms, get_public_rooms_filtered, get_room_visibility};
use ruma::api::client::room::{Visibility, aliases as room_aliases};
use ruma::directory::{Filter, RoomNetwork};
use ruma::{RoomAliasId, RoomId, ServerName, UInt};
use serde::Deserialize;

use crate::App;
use crate::auth::Access;
use crate::error::{Error, Result};
use crate::http::{Ctx, RawCtx, Response, Routes, json_response};
use crate::rooms::aliases;
use crate::rooms::public::{self, Listing};
use crate::rooms::read::RoomReader;
use crate::rooms::visibility::{Reach, Standing};

pub fn routes() -> Routes {
    Routes::default()
        .ruma(get_alias)
        .ruma(create_alias)
        .ruma(delete_alias)
        .ruma(room_aliases)
        .ruma(public_rooms)
        .ruma(search_public_rooms)
        .ruma(room_visibility)
        .raw(
            Method::PUT,
            &["/_matrix/client/r0/directory/list/room/{room_id}", "/_matrix/client/v3/directory/list/room/{room_id}"],
            set_room_visibility,
        )
        .access(Access::Token)
}

async fn get_alias(ctx: Ctx<get_alias::v3::Request>) -> Result<get_alias::v3::Response> {
    let alias = &ctx.request.room_alias;
    let room_id = aliases::resolve(&ctx.app.store.snapshot(), alias)?;
    let room_id = room_id.ok_or_else(|| Error::not_found(format!("There is no alias {alias}")))?;
    Ok(get_alias::v3::Response::new(room_id, vec![ctx.app.server_name.clone()]))
}

async fn create_alias(ctx: Ctx<create_alias::v3::Request>) -> Result<create_alias::v3::Response> {
    ctx.requester.not_suspended()?;
    aliases::create(&ctx.app, &ctx.requester.user_id, &ctx.request.room_alias, &ctx.request.room_id).await?;
    Ok(create_alias::v3::Response::new())
}

async fn delete_alias(ctx: Ctx<delete_alias::v3::Request>) -> Result<delete_alias::v3::Response> {
    ctx.requester.not_suspended()?;
    aliases::delete(&ctx.app, &ctx.requester.user_id, ctx.requester.admin, &ctx.request.room_alias).await?;
    Ok(delete_alias::v3::Response::new())
}

async fn room_aliases(ctx: Ctx<room_aliases::v3::Request>) -> Result<room_aliases::v3::Response> {
    let read = ctx.app.store.snapshot();
    let room_id = &ctx.request.room_id;
    let reach = Reach::of(RoomReader::new(&ctx.app.room_cache, &read), &ctx.requester.user_id, room_id)?;
    if matches!(reach.standing, Standing::Left(_)) && !ctx.requester.admin {
        return Err(Error::forbidden("You are not in this room"));
    }
    let aliases = aliases::of_room(&read, room_id)?.into_iter();
    let aliases = aliases.map(|alias| RoomAliasId::parse(alias).map_err(Error::internal)).collect::<Result<_>>()?;
    Ok(room_aliases::v3::Response::new(aliases))
}

async fn public_rooms(ctx: Ctx<get_public_rooms::v3::Request>) -> Result<get_public_rooms::v3::Response> {
    let request = &ctx.request;
    let listing =
        list(&ctx.app, request.server.as_deref(), request.limit, request.since.as_deref(), &Filter::default())?;
    let mut response = get_public_rooms::v3::Response::new(listing.chunk);
    response.next_batch = listing.next_batch;
    response.prev_batch = listing.prev_batch;
    response.total_room_count_estimate = Some(UInt::new_saturating(listing.total as u64));
    Ok(response)
}

async fn search_public_rooms(
    ctx: Ctx<get_public_rooms_filtered::v3::Request>,
) -> Result<get_public_rooms_filtered::v3::Response> {
    let request = &ctx.request;
    let listing = match request.room_network {
        // There are no networks besides this one, so nothing is in them.
        RoomNetwork::ThirdParty(_) => Listing::default(),
        _ => list(&ctx.app, request.server.as_deref(), request.limit, request.since.as_deref(), &request.filter)?,
    };
    let mut response = get_public_rooms_filtered::v3::Response::new();
    response.chunk = listing.chunk;
    response.next_batch = listing.next_batch;
    response.prev_batch = listing.prev_batch;
    response.total_room_count_estimate = Some(UInt::new_saturating(listing.total as u64));
    Ok(response)
}

fn list(
    app: &App,
    server: Option<&ServerName>,
    limit: Option<UInt>,
    since: Option<&str>,
    filter: &Filter,
) -> Result<Listing> {
    if server.is_some_and(|server| server != app.server_name) {
        return Err(Error::forbidden("The directories of other servers cannot be read: federation is off"));
    }
    let read = app.store.snapshot();
    public::list(RoomReader::new(&app.room_cache, &read), limit, since, filter)
}

async fn room_visibility(ctx: Ctx<get_room_visibility::v3::Request>) -> Result<get_room_visibility::v3::Response> {
    let listed = public::is_listed(&ctx.app.store.snapshot(), &ctx.request.room_id)?;
    let listed = listed.ok_or_else(|| Error::not_found("The room is not known"))?;
    Ok(get_room_visibility::v3::Response::new(if listed { Visibility::Public } else { Visibility::Private }))
}

/// Not by ruma's type, for which the visibility is not optional.
async fn set_room_visibility(mut ctx: RawCtx) -> Result<Response> {
    #[derive(Deserialize)]
    struct Body {
        visibility: Option<Visibility>,
    }
    let body: Body = ctx.read_json().await?;
    let listed = match body.visibility {
        None | Some(Visibility::Public) => true,
        Some(Visibility::Private) => false,
        Some(_) => return Err(Error::invalid_param("There is no such visibility")),
    };
    let room_id = RoomId::parse(ctx.arg(0))?;
    let requester = ctx.requester()?;
    requester.not_suspended()?;
    public::set_listed(&ctx.app, &requester.user_id, requester.admin, &room_id, listed).await?;
    Ok(json_response(StatusCode::OK, "{}"))
}
