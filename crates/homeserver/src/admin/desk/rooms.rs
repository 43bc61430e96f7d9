//! Looking at rooms: all of them, one, its members and state, single events.

use ::rooms::state::Select;
use http::Method;
use ruma::EventId;
use serde::Deserialize;
use serde_json::{Value, json};
use store::{Pos, Read};

use super::paging::{Paging, order};
use super::{no_room, ok, room};
use crate::blocking;
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response, Routes};
use crate::rooms::moderate;
use crate::rooms::overview::{self, Order, Overview};
use crate::rooms::read::RoomReader;
use crate::rooms::shown::{Shown, Style};
use crate::schema::{DEVICES, EVENT_IDS, MEMBERSHIPS};
use crate::stored::StoredEvent;

pub(super) fn routes() -> Routes {
    Routes::default()
        .raw(Method::GET, &["/_synapse/admin/v1/rooms"], list)
        .raw(Method::GET, &["/_synapse/admin/v1/rooms/{room_id}"], get)
        .raw(Method::GET, &["/_synapse/admin/v1/rooms/{room_id}/members"], members)
        .raw(Method::GET, &["/_synapse/admin/v1/rooms/{room_id}/state"], state)
        .raw(Method::GET, &["/_synapse/admin/v1/rooms/{room_id}/forward_extremities"], extremities)
        .raw(Method::DELETE, &["/_synapse/admin/v1/rooms/{room_id}/forward_extremities"], drop_extremities)
        .raw(Method::GET, &["/_synapse/admin/v1/fetch_event/{event_id}"], event)
}

#[derive(Deserialize)]
struct Query {
    search_term: Option<String>,
    public_rooms: Option<bool>,
    empty_rooms: Option<bool>,
    order_by: Option<String>,
}

async fn list(ctx: RawCtx) -> Result<Response> {
    let (query, paging): (Query, Paging) = (ctx.query()?, ctx.query()?);
    let wanted = overview::Wanted {
        search_term: query.search_term.map(|term| term.trim().to_owned()).filter(|term| !term.is_empty()),
        public: query.public_rooms,
        empty: query.empty_rooms,
    };
    let (order, descending) = (order(query.order_by.as_deref(), Order::parse)?, paging.descending());
    let app = ctx.app.clone();
    let work = move || {
        let read = app.store.snapshot();
        let reader = RoomReader::new(&app.room_cache, &read);
        let found = overview::list(reader, &app.server_name, &wanted, order, descending)?;
        let page = paging.cut(found);
        let show = |found: &overview::Found| overview::of(reader, found.room, &found.head, &app.server_name);
        let rooms: Vec<Overview> = page.items.iter().map(show).collect::<Result<_>>()?;
        let mut body = json!({ "rooms": rooms, "offset": page.from, "total_rooms": page.total });
        for (name, at) in [("next_batch", page.next), ("prev_batch", page.previous)] {
            if let Some(at) = at {
                body[name] = json!(at);
            }
        }
        Ok::<_, Error>(body)
    };
    ok(&blocking::run(work).await??)
}

async fn get(ctx: RawCtx) -> Result<Response> {
    let room_id = room(&ctx, 0)?;
    let read = ctx.app.store.snapshot();
    let reader = RoomReader::new(&ctx.app.room_cache, &read);
    let (nr, head) = reader.head(&room_id)?.ok_or_else(no_room)?;
    let room = overview::of(reader, nr, &head, &ctx.app.server_name)?;
    let (mut devices, mut remembered) = (0, false);
    for user_id in overview::members(reader, nr, &head)? {
        devices += read.count(&DEVICES, DEVICES.prefix((user_id.as_str(),)))?;
        remembered |= read.get(&MEMBERSHIPS, (&user_id, nr))?.is_some_and(|row| !row.forgotten);
    }
    let mut body = serde_json::to_value(&room).map_err(Error::internal)?;
    body["joined_local_devices"] = json!(devices);
    body["forgotten"] = json!(!remembered);
    ok(&body)
}

async fn members(ctx: RawCtx) -> Result<Response> {
    let room_id = room(&ctx, 0)?;
    let read = ctx.app.store.snapshot();
    let reader = RoomReader::new(&ctx.app.room_cache, &read);
    let (nr, head) = reader.head(&room_id)?.ok_or_else(no_room)?;
    let members = overview::members(reader, nr, &head)?;
    ok(&json!({ "total": members.len(), "members": members }))
}

async fn state(ctx: RawCtx) -> Result<Response> {
    let room_id = room(&ctx, 0)?;
    let read = ctx.app.store.snapshot();
    let reader = RoomReader::new(&ctx.app.room_cache, &read);
    let (nr, head) = reader.head(&room_id)?.ok_or_else(no_room)?;
    let wanted = ctx.query_value("type");
    let mut positions = reader.state_positions(head.state, Select::All)?;
    positions.sort_unstable();
    let events = reader.events_at(nr, &positions)?;
    let of_kind = |event: &StoredEvent| wanted.as_deref().is_none_or(|kind| kind == event.kind());
    let shown = events.into_iter().filter(|(_, event)| of_kind(event));
    let state: Vec<Value> = shown.map(|(at, event)| show(&ctx, room_id.as_str(), at, event)).collect::<Result<_>>()?;
    ok(&json!({ "state": state }))
}

/// An event as an administrator gets it.
fn show(ctx: &RawCtx, room_id: &str, at: Pos, event: StoredEvent) -> Result<Value> {
    let style = Style { now_ms: ctx.app.clock.now_ms(), device_id: None, room_id: Some(room_id), federation: false };
    let mut bytes = Vec::new();
    Shown::plain(at, event).write(&mut bytes, &style);
    serde_json::from_slice(&bytes).map_err(Error::internal)
}

async fn extremities(ctx: RawCtx) -> Result<Response> {
    let room_id = room(&ctx, 0)?;
    let read = ctx.app.store.snapshot();
    let reader = RoomReader::new(&ctx.app.room_cache, &read);
    let (nr, head) = reader.head(&room_id)?.ok_or_else(no_room)?;
    let mut results = Vec::new();
    for event_id in &head.extremities {
        let id = EventId::parse(event_id).map_err(Error::internal)?;
        let Some(at) = reader.find(nr, &id)? else { continue };
        let Some(event) = reader.pdu(nr, &head, at)? else { continue };
        results.push(json!({
            "event_id": event_id,
            "depth": event.depth,
            "received_ts": event.origin_server_ts,
            "state_group": at.0,
        }));
    }
    ok(&json!({ "count": results.len(), "results": results }))
}

async fn drop_extremities(ctx: RawCtx) -> Result<Response> {
    let room_id = room(&ctx, 0)?;
    exists(&ctx, &room_id)?;
    let deleted = moderate::drop_extremities(&ctx.app, &room_id).await?;
    ok(&json!({ "deleted": deleted }))
}

/// Whether the room is known here.
pub(super) fn exists(ctx: &RawCtx, room_id: &ruma::RoomId) -> Result<()> {
    let read = ctx.app.store.snapshot();
    RoomReader::new(&ctx.app.room_cache, &read).head(room_id)?.map(drop).ok_or_else(no_room)
}

async fn event(ctx: RawCtx) -> Result<Response> {
    let unknown = || Error::not_found("There is no such event");
    let read = ctx.app.store.snapshot();
    let found = read.get(&EVENT_IDS, ctx.arg(0))?.ok_or_else(unknown)?;
    let reader = RoomReader::new(&ctx.app.room_cache, &read);
    let head = reader.head_of(found.room)?.ok_or_else(unknown)?;
    let event = reader.event(found.room, found.at)?.ok_or_else(unknown)?;
    ok(&json!({ "event": show(&ctx, &head.room_id, found.at, event)? }))
}
