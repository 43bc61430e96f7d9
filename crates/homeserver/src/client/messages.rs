//! `/messages`: the timeline of a room, page by page.

use std::collections::HashSet;

use ::rooms::timeline::Direction;
use http::{Method, StatusCode};
use ruma::{DeviceId, OwnedDeviceId, OwnedUserId, RoomId, UserId};
use serde::Deserialize;
use store::{Pos, Read};

use crate::App;
use crate::auth::{Access, Requester};
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response, Routes, json_response};
use crate::rooms::pages::{self, Wanted};
use crate::rooms::read::RoomReader;
use crate::rooms::relations::Gatherer;
use crate::rooms::shown::{Shown, Style, string};
use crate::rooms::visibility::{Eyes, Ignored, Reach};
use crate::stored::StoredEvent;
use crate::sync::filter::Events;
use crate::sync::token;

const DEFAULT_LIMIT: usize = 10;
const MAX_LIMIT: usize = 1_000;

pub fn routes() -> Routes {
    Routes::default()
        .raw(
            Method::GET,
            &["/_matrix/client/r0/rooms/{room_id}/messages", "/_matrix/client/v3/rooms/{room_id}/messages"],
            messages,
        )
        .access(Access::Token)
        .guests()
}

#[derive(Deserialize)]
struct Query {
    from: Option<String>,
    to: Option<String>,
    dir: Dir,
    limit: Option<usize>,
    filter: Option<String>,
}

/// The `dir` of a request.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) enum Dir {
    #[serde(rename = "b")]
    Backward,
    #[serde(rename = "f")]
    Forward,
}

impl From<Dir> for Direction {
    fn from(dir: Dir) -> Self {
        match dir {
            Dir::Backward => Direction::Backward,
            Dir::Forward => Direction::Forward,
        }
    }
}

/// The same for administrators, who see everything.
pub fn admin_routes() -> Routes {
    Routes::default().raw(Method::GET, &["/_synapse/admin/v1/rooms/{room_id}/messages"], messages_for_admin)
}

async fn messages(ctx: RawCtx) -> Result<Response> {
    read_messages(&ctx, Looking::of(&ctx)?)
}

async fn messages_for_admin(ctx: RawCtx) -> Result<Response> {
    read_messages(&ctx, Looking::for_admin(&ctx)?)
}

/// Who looks into a room.
pub(super) struct Looking {
    user_id: OwnedUserId,
    device_id: Option<OwnedDeviceId>,
    /// An administrator, from whom nothing is hidden.
    admin: bool,
}

impl Looking {
    pub(super) fn of(ctx: &RawCtx) -> Result<Self> {
        let Requester { user_id, device_id, .. } = ctx.requester()?.clone();
        Ok(Looking { user_id, device_id, admin: false })
    }

    /// An administrator, who need not be a user.
    pub(super) fn for_admin(ctx: &RawCtx) -> Result<Self> {
        let nobody = || UserId::parse(format!("@:{}", ctx.app.server_name)).map_err(Error::internal);
        let user_id = ctx.requester.as_ref().map(|requester| requester.user_id.clone());
        Ok(Looking { user_id: user_id.map_or_else(nobody, Ok)?, device_id: None, admin: true })
    }

    pub(super) fn user_id(&self) -> &UserId {
        &self.user_id
    }

    pub(super) fn reach<R: Read>(&self, reader: RoomReader<'_, R>, room_id: &RoomId) -> Result<Reach> {
        if self.admin { Reach::whole(reader, room_id) } else { Reach::of(reader, &self.user_id, room_id) }
    }

    pub(super) fn ignored(&self, read: &impl Read) -> Result<Ignored> {
        if self.admin { Ok(Ignored::default()) } else { Ignored::by(read, &self.user_id) }
    }

    pub(super) fn style<'a>(&'a self, app: &App, room_id: &'a RoomId) -> Style<'a> {
        Style {
            now_ms: app.clock.now_ms(),
            device_id: self.device_id.as_deref().map(DeviceId::as_str),
            room_id: Some(room_id.as_str()),
            federation: false,
        }
    }
}

fn read_messages(ctx: &RawCtx, looking: Looking) -> Result<Response> {
    let query: Query = ctx.query()?;
    let room_id = RoomId::parse(ctx.arg(0))?;
    let filter = Filter::parse(query.filter.as_deref())?;
    let (from, to) = (position(query.from.as_deref())?, position(query.to.as_deref())?);
    let read = ctx.app.store.snapshot();
    let reader = RoomReader::new(&ctx.app.room_cache, &read);
    let reach = looking.reach(reader, &room_id)?;
    let eyes = reach.eyes(reader, looking.user_id())?;
    let ignored = looking.ignored(&read)?;

    let takes = |event: &StoredEvent| filter.takes(reader, &reach, (&eyes, &ignored), event);
    let limit = query.limit.unwrap_or(DEFAULT_LIMIT).min(filter.events.limit.unwrap_or(MAX_LIMIT)).clamp(1, MAX_LIMIT);
    let wanted = Wanted { direction: query.dir.into(), from, to, limit, takes: &takes };
    let page = if filter.events.rooms.take(room_id.as_str()) {
        pages::read(reader, &reach, &eyes, &wanted)?
    } else {
        pages::Page { start: from.unwrap_or(Pos::ZERO), events: Vec::new(), end: None }
    };

    let style = looking.style(&ctx.app, &room_id);
    let user_id = looking.user_id();
    let gatherer = Gatherer { reader, room: reach.room, eyes: &eyes, user_id, ignored: &ignored, style };
    let mut out = Vec::with_capacity(1_024 * (page.events.len() + 1));
    out.extend_from_slice(b"{\"start\":");
    string(&mut out, &query.from.unwrap_or_else(|| token::position(page.start)));
    if let Some(end) = page.end {
        out.extend_from_slice(b",\"end\":");
        string(&mut out, &token::position(end));
    }
    out.extend_from_slice(b",\"chunk\":");
    array(&mut out, &page.events, |out, (at, event)| gatherer.write(out, *at, event))?;
    if filter.lazy {
        out.extend_from_slice(b",\"state\":");
        let members = senders(reader, &reach, page.events.iter().map(|(_, event)| event))?;
        array(&mut out, members, |out, (at, member)| {
            Shown::plain(at, member).write(out, &style);
            Ok(())
        })?;
    }
    out.push(b'}');
    Ok(json_response(StatusCode::OK, out))
}

/// How events look to the one who asks.
pub(super) fn style<'a>(app: &App, requester: &'a Requester, room_id: &'a RoomId) -> Style<'a> {
    Style {
        now_ms: app.clock.now_ms(),
        device_id: requester.device_id.as_deref().map(DeviceId::as_str),
        room_id: Some(room_id.as_str()),
        federation: false,
    }
}

/// The place a token stands for, if there is one.
pub(super) fn position(token: Option<&str>) -> Result<Option<Pos>> {
    token.filter(|token| !token.is_empty()).map(token::parse_position).transpose()
}

/// The member events of those who sent these events, as they were at the first of these that each of them sent.
pub(super) fn senders<'e, R: Read>(
    reader: RoomReader<'_, R>,
    reach: &Reach,
    events: impl IntoIterator<Item = &'e StoredEvent>,
) -> Result<Vec<(Pos, StoredEvent)>> {
    let mut seen = HashSet::new();
    let mut positions: Vec<Pos> = Vec::new();
    for event in events {
        if seen.insert(event.sender()) {
            positions.extend(reader.state_at(event.after, "m.room.member", event.sender())?);
        }
    }
    positions.sort_unstable();
    reader.events_at(reach.room, &positions)
}

/// Writes a JSON array.
pub(super) fn array<T>(
    out: &mut Vec<u8>,
    items: impl IntoIterator<Item = T>,
    mut write: impl FnMut(&mut Vec<u8>, T) -> Result<()>,
) -> Result<()> {
    out.push(b'[');
    for (index, item) in items.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write(out, item)?;
    }
    out.push(b']');
    Ok(())
}

/// A room event filter, as it comes in a query.
pub(super) struct Filter {
    pub(super) events: Events,
    /// Only the member events of senders are wanted with them.
    pub(super) lazy: bool,
}

impl Filter {
    /// Whether an event that the user may see is one that they want to see.
    pub(super) fn takes<R: Read>(
        &self,
        reader: RoomReader<'_, R>,
        reach: &Reach,
        (eyes, ignored): (&Eyes<'_, R>, &Ignored),
        event: &StoredEvent,
    ) -> Result<bool> {
        let fits = self.events.take(event) && !ignored.hides(event);
        let sees = |at, looks: &mut usize| eyes.see_at(at, looks);
        Ok(fits && self.events.related.take(reader, reach.room, (&sees, ignored), event)?)
    }

    pub(super) fn parse(json: Option<&str>) -> Result<Self> {
        let json = json.filter(|json| !json.is_empty()).unwrap_or("{}");
        let invalid = |cause: Error| Error::invalid_param(format!("filter: {}", cause.message()));
        let (events, lazy) = Events::parse(json.as_bytes()).map_err(invalid)?;
        Ok(Filter { events, lazy: !lazy.is_disabled() })
    }
}
