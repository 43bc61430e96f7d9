//! One event, alone or with what happened around it.

use ::rooms::state::{Part, Select};
use ::rooms::timeline::Direction;
use http::{Method, StatusCode};
use ruma::{EventId, RoomId};
use serde::Deserialize;
use store::{Pos, Read, Snapshot};

use super::messages::{Filter, Looking, array, senders, style};
use crate::auth::Access;
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response, Routes, json_response};
use crate::rooms::pages::{self, Wanted};
use crate::rooms::read::RoomReader;
use crate::rooms::relations::Gatherer;
use crate::rooms::shown::{Shown, string};
use crate::rooms::visibility::{Eyes, Ignored, Reach};
use crate::schema::{EVENT_IDS, HEADS};
use crate::stored::StoredEvent;
use crate::sync::token;

const DEFAULT_LIMIT: usize = 10;
const MAX_LIMIT: usize = 100;

pub fn routes() -> Routes {
    Routes::default()
        .raw(
            Method::GET,
            &[
                "/_matrix/client/r0/rooms/{room_id}/event/{event_id}",
                "/_matrix/client/v3/rooms/{room_id}/event/{event_id}",
            ],
            event,
        )
        .access(Access::Token)
        .guests()
        .raw(
            Method::GET,
            &[
                "/_matrix/client/r0/rooms/{room_id}/context/{event_id}",
                "/_matrix/client/v3/rooms/{room_id}/context/{event_id}",
            ],
            context,
        )
        .access(Access::Token)
        .guests()
        .raw(
            Method::GET,
            &["/_matrix/client/r0/events/{event_id}", "/_matrix/client/v3/events/{event_id}"],
            event_of_any_room,
        )
        .access(Access::Token)
        .guests()
}

async fn event(ctx: RawCtx) -> Result<Response> {
    let (room_id, event_id) = (RoomId::parse(ctx.arg(0))?, EventId::parse(ctx.arg(1))?);
    read_event(&ctx, &ctx.app.store.snapshot(), &room_id, &event_id)
}

async fn event_of_any_room(ctx: RawCtx) -> Result<Response> {
    let event_id = EventId::parse(ctx.arg(0))?;
    let read = ctx.app.store.snapshot();
    let found = read.get(&EVENT_IDS, event_id.as_str())?.ok_or_else(not_found)?;
    let head = read.get(&HEADS, found.room)?.ok_or_else(not_found)?;
    read_event(&ctx, &read, &RoomId::parse(&head.room_id).map_err(Error::internal)?, &event_id)
}

fn read_event(ctx: &RawCtx, read: &Snapshot, room_id: &RoomId, event_id: &EventId) -> Result<Response> {
    let requester = ctx.requester()?;
    let reader = RoomReader::new(&ctx.app.room_cache, read);
    // Whether it is not there or not to be seen is nobody's business.
    let reach = Reach::of_any(reader, &requester.user_id, room_id)?.ok_or_else(not_found)?;
    let eyes = reach.eyes(reader, &requester.user_id)?;
    let (at, event) = find(reader, &reach, &eyes, event_id)?;
    let ignored = Ignored::by(read, &requester.user_id)?;
    let style = style(&ctx.app, requester, room_id);
    let gatherer =
        Gatherer { reader, room: reach.room, eyes: &eyes, user_id: &requester.user_id, ignored: &ignored, style };
    let mut out = Vec::with_capacity(2_048);
    gatherer.write(&mut out, at, &event)?;
    Ok(json_response(StatusCode::OK, out))
}

/// An event of the room that the user may see.
pub(super) fn find<R: Read>(
    reader: RoomReader<'_, R>,
    reach: &Reach,
    eyes: &Eyes<'_, R>,
    event_id: &EventId,
) -> Result<(Pos, StoredEvent)> {
    let at = reader.find(reach.room, event_id)?.ok_or_else(not_found)?;
    let event = reader.event(reach.room, at)?.ok_or_else(not_found)?;
    if eyes.see(at, &event)? { Ok((at, event)) } else { Err(not_found()) }
}

pub(super) fn not_found() -> Error {
    Error::not_found("There is no such event")
}

#[derive(Deserialize)]
struct ContextQuery {
    limit: Option<usize>,
    filter: Option<String>,
}

/// The same for administrators, who see everything.
pub fn admin_routes() -> Routes {
    const CONTEXT: &str = "/_synapse/admin/v1/rooms/{room_id}/context/{event_id}";
    Routes::default().raw(Method::GET, &[CONTEXT], context_for_admin)
}

async fn context(ctx: RawCtx) -> Result<Response> {
    read_context(&ctx, &Looking::of(&ctx)?)
}

async fn context_for_admin(ctx: RawCtx) -> Result<Response> {
    read_context(&ctx, &Looking::for_admin(&ctx)?)
}

fn read_context(ctx: &RawCtx, looking: &Looking) -> Result<Response> {
    let query: ContextQuery = ctx.query()?;
    let (room_id, event_id) = (RoomId::parse(ctx.arg(0))?, EventId::parse(ctx.arg(1))?);
    let filter = Filter::parse(query.filter.as_deref())?;
    let limit = query.limit.unwrap_or(DEFAULT_LIMIT).min(MAX_LIMIT);
    let read = ctx.app.store.snapshot();
    let reader = RoomReader::new(&ctx.app.room_cache, &read);
    let reach = looking.reach(reader, &room_id)?;
    let eyes = reach.eyes(reader, looking.user_id())?;
    let (at, event) = find(reader, &reach, &eyes, &event_id)?;

    let ignored = looking.ignored(&read)?;
    let takes = |event: &StoredEvent| filter.takes(reader, &reach, (&eyes, &ignored), event);
    let around = |direction, from: Pos, limit| {
        let wanted = Wanted { direction, from: Some(from), to: None, limit, takes: &takes };
        pages::read(reader, &reach, &eyes, &wanted)
    };
    let before = around(Direction::Backward, Pos(at.0.saturating_sub(1)), limit / 2)?;
    let after = around(Direction::Forward, at, limit - limit / 2)?;

    let style = looking.style(&ctx.app, &room_id);
    let user_id = looking.user_id();
    let gatherer = Gatherer { reader, room: reach.room, eyes: &eyes, user_id, ignored: &ignored, style };
    let first = before.events.last().map_or(at, |(first, _)| *first);
    let (last, last_event) = after.events.last().map_or((at, &event), |(last, event)| (*last, event));
    let mut out = Vec::with_capacity(32 * 1_024);
    out.extend_from_slice(b"{\"start\":");
    string(&mut out, &token::position(Pos(first.0.saturating_sub(1))));
    out.extend_from_slice(b",\"end\":");
    string(&mut out, &token::position(last));
    out.extend_from_slice(b",\"event\":");
    gatherer.write(&mut out, at, &event)?;
    out.extend_from_slice(b",\"events_before\":");
    array(&mut out, &before.events, |out, (at, event)| gatherer.write(out, *at, event))?;
    out.extend_from_slice(b",\"events_after\":");
    array(&mut out, &after.events, |out, (at, event)| gatherer.write(out, *at, event))?;

    let select = if filter.lazy { Select::Only(Part::Others) } else { Select::All };
    let mut positions = reader.state_positions(last_event.after, select)?;
    positions.sort_unstable();
    let mut state = reader.events_at(reach.room, &positions)?;
    if filter.lazy {
        let shown = before.events.iter().chain(&after.events).map(|(_, event)| event).chain([&event]);
        state.extend(senders(reader, &reach, shown)?);
    }
    state.retain(|(_, event)| filter.events.take(event));
    out.extend_from_slice(b",\"state\":");
    array(&mut out, state, |out, (at, event)| {
        Shown::plain(at, event).write(out, &style);
        Ok(())
    })?;
    out.push(b'}');
    Ok(json_response(StatusCode::OK, out))
}
