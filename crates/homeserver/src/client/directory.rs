//! Room aliases and the room directory.

use std::sync::Arc;

use http::{Method, StatusCode};
use ruma::api::client::alias::{create_alias, delete_alias, get_alias};
use ruma::api::client::directory::{get_public_rooms, get_public_rooms_filtered, get_room_visibility};
use ruma::api::client::room::{Visibility, aliases as room_aliases};
use ruma::directory::{Filter, RoomNetwork};
use ruma::{OwnedServerName, RoomAliasId, RoomId, UInt};
use serde::Deserialize;
use store::Snapshot;

use crate::App;
use crate::appservice::queries;
use crate::auth::{Access, Requester};
use crate::blocking;
use crate::config::registrations::Registration;
use crate::error::{Error, Result};
use crate::http::{Ctx, RawCtx, Response, Routes, json_response};
use crate::limits::Class;
use crate::rooms::aliases;
use crate::rooms::directory::Place;
use crate::rooms::public::{self, Listing, Page};
use crate::rooms::read::RoomReader;
use crate::rooms::visibility::{Reach, Standing};
use crate::schema::RoomNr;

pub fn routes() -> Routes {
    Routes::default()
        .ruma(get_alias)
        .limit(Class::Other)
        .ruma(create_alias)
        .ruma(delete_alias)
        .ruma(room_aliases)
        .ruma(public_rooms)
        .limit(Class::Other)
        .ruma(search_public_rooms)
        .limit(Class::Search)
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
    let room_id = queries::alias(&ctx.app, alias).await?;
    let room_id = room_id.ok_or_else(|| Error::not_found(format!("There is no alias {alias}")))?;
    Ok(get_alias::v3::Response::new(room_id, vec![ctx.app.server_name.clone()]))
}

async fn create_alias(ctx: Ctx<create_alias::v3::Request>) -> Result<create_alias::v3::Response> {
    ctx.requester.not_suspended()?;
    own_or_free(&ctx.app, &ctx.requester, &ctx.request.room_alias)?;
    aliases::create(&ctx.app, &ctx.requester.user_id, &ctx.request.room_alias, &ctx.request.room_id).await?;
    Ok(create_alias::v3::Response::new())
}

/// Aliases that are kept for an application service are not for others.
fn not_kept(app: &App, requester: &Requester, alias: &RoomAliasId) -> Result<()> {
    if app.appservices.keeps_alias(alias, requester.appservice.as_deref()) {
        return Err(Error::exclusive(format!("The alias {alias} is kept for an application service")));
    }
    Ok(())
}

/// Whether somebody may make an alias: it is not kept for another, and a service makes none outside of its namespaces.
pub(super) fn own_or_free(app: &App, requester: &Requester, alias: &RoomAliasId) -> Result<()> {
    not_kept(app, requester, alias)?;
    let id = requester.appservice.as_deref();
    let outside = |service: &Arc<Registration>| !service.has_alias(alias.as_str());
    if id.and_then(|id| app.appservices.by_id(id)).is_some_and(outside) {
        return Err(Error::exclusive(format!("The alias {alias} is not in the namespaces of the application service")));
    }
    Ok(())
}

async fn delete_alias(ctx: Ctx<delete_alias::v3::Request>) -> Result<delete_alias::v3::Response> {
    ctx.requester.not_suspended()?;
    let alias = &ctx.request.room_alias;
    not_kept(&ctx.app, &ctx.requester, alias)?;
    // A service rules over its namespaces.
    let service = ctx.requester.appservice.as_deref().and_then(|id| ctx.app.appservices.by_id(id));
    let rules = ctx.requester.admin || service.is_some_and(|service| service.has_alias(alias.as_str()));
    aliases::delete(&ctx.app, &ctx.requester.user_id, rules, &ctx.request.room_alias).await?;
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
    let get_public_rooms::v3::Request { server, limit, since, .. } = ctx.request;
    let listing = list(ctx.app, server, limit, since, Filter::default(), RoomNetwork::Matrix).await?;
    let mut response = get_public_rooms::v3::Response::new(listing.chunk);
    response.next_batch = listing.next_batch;
    response.prev_batch = listing.prev_batch;
    response.total_room_count_estimate = Some(UInt::new_saturating(listing.total as u64));
    Ok(response)
}

async fn search_public_rooms(
    ctx: Ctx<get_public_rooms_filtered::v3::Request>,
) -> Result<get_public_rooms_filtered::v3::Response> {
    let get_public_rooms_filtered::v3::Request { server, limit, since, filter, room_network, .. } = ctx.request;
    let listing = list(ctx.app, server, limit, since, filter, room_network).await?;
    let mut response = get_public_rooms_filtered::v3::Response::new();
    response.chunk = listing.chunk;
    response.next_batch = listing.next_batch;
    response.prev_batch = listing.prev_batch;
    response.total_room_count_estimate = Some(UInt::new_saturating(listing.total as u64));
    Ok(response)
}

async fn list(
    app: App,
    server: Option<OwnedServerName>,
    limit: Option<UInt>,
    since: Option<String>,
    filter: Filter,
    network: RoomNetwork,
) -> Result<Listing> {
    if server.is_some_and(|server| server != app.server_name) {
        return Err(Error::forbidden("The directories of other servers cannot be read: federation is off"));
    }
    let read = move || {
        let read = app.store.snapshot();
        let reader = RoomReader::new(&app.room_cache, &read);
        let places = places(&app, reader, &network)?;
        public::list(reader, &places, Page { limit, since: since.as_deref(), filter: &filter })
    };
    // A search looks at all rooms.
    blocking::run(read).await?
}

/// The places of the rooms of a network.
fn places(app: &App, reader: RoomReader<'_, Snapshot>, network: &RoomNetwork) -> Result<Arc<[Place]>> {
    if let RoomNetwork::ThirdParty(instance_id) = network {
        // A name that is none is that of a network with nothing in it.
        let network = queries::parts_of(instance_id).unwrap_or_default();
        return Ok(public::places_with(reader, &[], Some(network))?.into());
    }
    let changed = |since, until, wanted: &dyn Fn(RoomNr) -> bool| {
        Some(app.sync.recent.changes(since, until, wanted)?.into_iter().map(|(room, _)| room).collect())
    };
    let here = app.directory.places(reader, changed)?;
    match network {
        RoomNetwork::All => Ok(public::places_with(reader, &here, None)?.into()),
        _ => Ok(here),
    }
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::client::testing::{create, ok};
    use crate::testing::{Server, User};

    fn kept(server: &Server) -> Arc<[Place]> {
        let read = server.app.store.snapshot();
        places(&server.app, RoomReader::new(&server.app.room_cache, &read), &RoomNetwork::Matrix).unwrap()
    }

    async fn names(user: &User, query: &str) -> Vec<String> {
        let answer = ok(&user.client.get(&format!("/_matrix/client/v3/publicRooms{query}")).await);
        let rooms = answer["chunk"].as_array().unwrap().iter();
        rooms.map(|room| room["name"].as_str().unwrap().to_owned()).collect()
    }

    #[tokio::test]
    async fn pages_are_read_from_what_is_kept() {
        let server = Server::default();
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let mut rooms = Vec::new();
        for name in ["a", "b", "c"] {
            let request = json!({"preset": "public_chat", "visibility": "public", "name": name});
            rooms.push(create(&alice, request).await);
        }
        let before = kept(&server);
        assert_eq!(before.len(), 3);
        rooms[0].say("hello").await;
        create(&alice, json!({"preset": "public_chat"})).await;
        assert!(Arc::ptr_eq(&before, &kept(&server)), "nothing happened that matters here");
        assert_eq!(names(&alice, "?limit=500").await.len(), 3);
        assert!(Arc::ptr_eq(&before, &kept(&server)));
        // What does matter is noticed.
        rooms[2].join(&bob).await;
        assert_eq!(names(&alice, "?limit=1").await, ["c"]);
        rooms[1].leave().await;
        assert_eq!(names(&alice, "").await, ["c", "a"]);
        let path = format!("/_matrix/client/v3/directory/list/room/{}", rooms[2].id);
        ok(&alice.client.put(&path, json!({"visibility": "private"})).await);
        assert_eq!(names(&alice, "").await, ["a"]);
        ok(&alice.client.put(&path, json!({"visibility": "public"})).await);
        assert_eq!(names(&alice, "").await, ["c", "a"]);
    }

    #[tokio::test]
    async fn a_page_has_a_hundred_rooms_unless_more_are_asked_for() {
        let server = Server::default();
        let alice = server.user("alice").await;
        for nr in 0..101 {
            let request = json!({"preset": "public_chat", "visibility": "public", "name": nr.to_string()});
            create(&alice, request).await;
        }
        assert_eq!(names(&alice, "").await.len(), 100);
        assert_eq!(names(&alice, "?limit=500").await.len(), 101);
    }
}
