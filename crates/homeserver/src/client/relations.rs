//! The events that relate to an event.

use http::{Method, StatusCode};
use ruma::{EventId, RoomId};
use serde::Deserialize;

use super::events::{find, not_found};
use super::messages::{Dir, array, position, style};
use crate::auth::Access;
use crate::error::Result;
use crate::http::{RawCtx, Response, Routes, json_response};
use crate::rooms::read::RoomReader;
use crate::rooms::relations::{self, Gatherer, MAX_DEPTH, Wanted};
use crate::rooms::shown::string;
use crate::rooms::visibility::{Ignored, Reach};
use crate::sync::token;

const DEFAULT_LIMIT: usize = 20;
const MAX_LIMIT: usize = 500;

pub fn routes() -> Routes {
    Routes::default()
        .raw(
            Method::GET,
            &[
                "/_matrix/client/v1/rooms/{room_id}/relations/{event_id}",
                "/_matrix/client/v1/rooms/{room_id}/relations/{event_id}/{rel_type}",
                "/_matrix/client/v1/rooms/{room_id}/relations/{event_id}/{rel_type}/{event_type}",
                "/_matrix/client/unstable/rooms/{room_id}/relations/{event_id}",
                "/_matrix/client/unstable/rooms/{room_id}/relations/{event_id}/{rel_type}",
                "/_matrix/client/unstable/rooms/{room_id}/relations/{event_id}/{rel_type}/{event_type}",
            ],
            relations,
        )
        .access(Access::Token)
}

#[derive(Deserialize)]
struct Query {
    from: Option<String>,
    to: Option<String>,
    limit: Option<usize>,
    dir: Option<Dir>,
    recurse: Option<bool>,
}

async fn relations(ctx: RawCtx) -> Result<Response> {
    let query: Query = ctx.query()?;
    let (room_id, event_id) = (RoomId::parse(ctx.arg(0))?, EventId::parse(ctx.arg(1))?);
    let requester = ctx.requester()?;
    let read = ctx.app.store.snapshot();
    let reader = RoomReader::new(&ctx.app.room_cache, &read);
    let reach = Reach::of_any(reader, &requester.user_id, &room_id)?.ok_or_else(not_found)?;
    let eyes = reach.eyes(reader, &requester.user_id)?;
    let (_, parent) = find(reader, &reach, &eyes, &event_id)?;

    let ignored = Ignored::by(&read, &requester.user_id)?;
    let wanted = Wanted {
        rel_type: ctx.args.get(2).map(String::as_str),
        kind: ctx.args.get(3).map(String::as_str),
        recurse: query.recurse.unwrap_or(false),
        direction: query.dir.unwrap_or(Dir::Backward).into(),
        from: position(query.from.as_deref())?,
        to: position(query.to.as_deref())?,
        limit: query.limit.unwrap_or(DEFAULT_LIMIT).clamp(1, MAX_LIMIT),
        ignored: &ignored,
    };
    let (page, end) = relations::read(reader, &reach, &eyes, &parent, &wanted)?;

    let style = style(&ctx.app, requester, &room_id);
    let gatherer =
        Gatherer { reader, room: reach.room, eyes: &eyes, user_id: &requester.user_id, ignored: &ignored, style };
    let mut out = Vec::with_capacity(1_024 * (page.len() + 1));
    out.extend_from_slice(b"{\"chunk\":");
    array(&mut out, &page, |out, (at, event)| gatherer.write(out, *at, event))?;
    if let Some(end) = end {
        out.extend_from_slice(b",\"next_batch\":");
        string(&mut out, &token::position(end));
    }
    if let Some(from) = &query.from {
        out.extend_from_slice(b",\"prev_batch\":");
        string(&mut out, from);
    }
    if wanted.recurse {
        out.extend_from_slice(format!(",\"recursion_depth\":{MAX_DEPTH}").as_bytes());
    }
    out.push(b'}');
    Ok(json_response(StatusCode::OK, out))
}
