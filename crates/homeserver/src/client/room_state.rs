//! Reading a room's state: all of it, or one entry.

use http::{Method, StatusCode};
use ruma::RoomId;
use serde::Deserialize;
use store::Pos;

use ::rooms::state::Select;

use super::messages::{array, style};
use crate::auth::Access;
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response, Routes, json_response};
use crate::rooms::read::RoomReader;
use crate::rooms::shown::{Shown, content};
use crate::rooms::visibility::Reach;

pub fn routes() -> Routes {
    Routes::default()
        .raw(
            Method::GET,
            &["/_matrix/client/r0/rooms/{room_id}/state", "/_matrix/client/v3/rooms/{room_id}/state"],
            state,
        )
        .access(Access::Token)
        .guests()
        .raw(
            Method::GET,
            // The state key may be empty, and then its slash may be missing too.
            &[
                "/_matrix/client/r0/rooms/{room_id}/state/{event_type}",
                "/_matrix/client/r0/rooms/{room_id}/state/{event_type}/",
                "/_matrix/client/r0/rooms/{room_id}/state/{event_type}/{state_key}",
                "/_matrix/client/v3/rooms/{room_id}/state/{event_type}",
                "/_matrix/client/v3/rooms/{room_id}/state/{event_type}/",
                "/_matrix/client/v3/rooms/{room_id}/state/{event_type}/{state_key}",
            ],
            state_entry,
        )
        .access(Access::Token)
        .guests()
}

async fn state(ctx: RawCtx) -> Result<Response> {
    let room_id = RoomId::parse(ctx.arg(0))?;
    let read = ctx.app.store.snapshot();
    let reader = RoomReader::new(&ctx.app.room_cache, &read);
    let requester = ctx.requester()?;
    let reach = Reach::of(reader, &requester.user_id, &room_id)?;
    let mut positions: Vec<Pos> = reader.state_positions(reach.state(reader)?, Select::All)?;
    // The order they lie in is the cheapest to read.
    positions.sort_unstable();
    let events = ctx.app.sync.recent.state_events(reader, reach.room, &positions)?;
    let style = style(&ctx.app, requester, &room_id);
    let mut out = Vec::with_capacity(512 * (events.len() + 1));
    array(&mut out, events, |out, (at, event)| {
        Shown::plain(at, event).write(out, &style);
        Ok(())
    })?;
    Ok(json_response(StatusCode::OK, out))
}

#[derive(Deserialize)]
struct EntryQuery {
    #[serde(default)]
    format: Format,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    #[default]
    Content,
    Event,
}

async fn state_entry(ctx: RawCtx) -> Result<Response> {
    let query: EntryQuery = ctx.query()?;
    let room_id = RoomId::parse(ctx.arg(0))?;
    let read = ctx.app.store.snapshot();
    let reader = RoomReader::new(&ctx.app.room_cache, &read);
    let requester = ctx.requester()?;
    let reach = Reach::of(reader, &requester.user_id, &room_id)?;
    let no_such_state = || Error::not_found("The room has no such state");
    let at = reader.state_at(reach.state(reader)?, ctx.arg(1), ctx.arg(2))?.ok_or_else(no_such_state)?;
    let event = reader.event(reach.room, at)?.ok_or_else(no_such_state)?;
    let mut out = Vec::with_capacity(1_024);
    match query.format {
        Format::Content => out.extend_from_slice(content(&event).get().as_bytes()),
        Format::Event => Shown::plain(at, event).write(&mut out, &style(&ctx.app, requester, &room_id)),
    }
    Ok(json_response(StatusCode::OK, out))
}
