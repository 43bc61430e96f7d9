//! Taking away rooms and what was said: all of it goes on after the answer, and can be asked about.

use ::rooms::timeline::Direction;
use http::Method;
use ruma::api::client::room::create_room::v3::{Request as CreateRoom, RoomPreset};
use ruma::{EventId, OwnedRoomId, RoomId, UserId};
use serde::Deserialize;
use serde_json::json;
use store::Pos;

use super::rooms::exists;
use super::{account, asking_name, ok, room, user_of};
use crate::App;
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response, Routes};
use crate::jobs::tasks::{self, Removal};
use crate::rooms::read::RoomReader;
use crate::rooms::visibility::Reach;
use crate::rooms::{create, moment, send};

/// What is said in the room that people are sent to, and its name, unless somebody says otherwise.
const ROOM_NAME: &str = "Content Violation Notification";
const MESSAGE: &str = "A room that you were in has been closed by the administrators of this server.";
/// The most messages that are redacted if nobody says otherwise.
const REDACTIONS: u64 = 1_000;

pub(super) fn routes() -> Routes {
    Routes::default()
        .raw(Method::DELETE, &["/_synapse/admin/v1/rooms/{room_id}", "/_synapse/admin/v2/rooms/{room_id}"], delete)
        .raw(
            Method::POST,
            &["/_synapse/admin/v1/purge_history/{room_id}", "/_synapse/admin/v1/purge_history/{room_id}/{event_id}"],
            purge_history,
        )
        .raw(Method::POST, &["/_synapse/admin/v1/user/{user_id}/redact"], redact)
}

#[derive(Deserialize)]
struct Delete {
    new_room_user_id: Option<String>,
    room_name: Option<String>,
    message: Option<String>,
    #[serde(default)]
    block: bool,
    purge: Option<bool>,
    /// People are made to leave in any case.
    #[serde(rename = "force_purge")]
    _force_purge: Option<bool>,
}

async fn delete(mut ctx: RawCtx) -> Result<Response> {
    let asked: Delete = ctx.read_json().await?;
    let room_id = room(&ctx, 0)?;
    if exists(&ctx, &room_id).is_err() && !asked.block {
        return Err(super::no_room());
    }
    let new_room = match &asked.new_room_user_id {
        Some(name) => {
            let user_id = user_of(&ctx, name)?;
            if super::account_of(&ctx, &user_id)?.deactivated {
                return Err(Error::invalid_param("The account of new_room_user_id is closed"));
            }
            Some(open_new_room(&ctx.app, &user_id, &asked).await?)
        }
        None => None,
    };
    let removal = Removal { room_id, purge: asked.purge.unwrap_or(true), block: asked.block, new_room };
    let by = asking_name(&ctx);
    let delete_id = tasks::delete_room(&ctx.app, &by, &removal).await?;
    tracing::info!(room_id = %removal.room_id, purge = removal.purge, block = removal.block, by, "an administrator closes a room");
    ok(&json!({ "delete_id": delete_id }))
}

/// The room that people are sent to, and what they are told there.
async fn open_new_room(app: &App, user_id: &UserId, asked: &Delete) -> Result<OwnedRoomId> {
    let mut request = CreateRoom::new();
    request.preset = Some(RoomPreset::PublicChat);
    request.name = Some(asked.room_name.clone().unwrap_or_else(|| ROOM_NAME.to_owned()));
    let quiet = json!({ "events_default": 50, "invite": 50 });
    let quiet = serde_json::value::to_raw_value(&quiet).map_err(Error::internal)?;
    request.power_level_content_override = Some(ruma::serde::Raw::from_json(quiet));
    let new_room = create::create(app, user_id, request).await?;
    tell(app, &new_room, user_id, asked.message.as_deref().unwrap_or(MESSAGE)).await?;
    Ok(new_room)
}

async fn tell(app: &App, room_id: &RoomId, user_id: &UserId, message: &str) -> Result<()> {
    let content = json!({ "msgtype": "m.text", "body": message }).to_string();
    let content = send::content_from(content.as_bytes())?;
    let draft = send::message("m.room.message", content, user_id.to_owned(), app.clock.now())?;
    crate::rooms::change(app, room_id, |room| send::put(room, draft.clone(), None)).await.map(drop)
}

#[derive(Deserialize)]
struct PurgeHistory {
    purge_up_to_event_id: Option<String>,
    purge_up_to_ts: Option<u64>,
    #[serde(default)]
    delete_local_events: bool,
}

async fn purge_history(mut ctx: RawCtx) -> Result<Response> {
    let asked: PurgeHistory = ctx.read_json().await?;
    let room_id = room(&ctx, 0)?;
    let named = Some(ctx.arg(1)).filter(|event_id| !event_id.is_empty()).or(asked.purge_up_to_event_id.as_deref());
    let before = match (named, asked.purge_up_to_ts) {
        (Some(event_id), _) => place_of(&ctx, &room_id, &EventId::parse(event_id)?)?,
        (None, Some(ts)) => last_before(&ctx, &room_id, ts)?,
        (None, None) => return Err(Error::missing_param("Up to which event or time is missing")),
    };
    let purge_id = tasks::purge_history(&ctx.app, &room_id, before, asked.delete_local_events).await?;
    tracing::info!(%room_id, by = asking_name(&ctx), "an administrator purges the history of a room");
    ok(&json!({ "purge_id": purge_id }))
}

fn place_of(ctx: &RawCtx, room_id: &RoomId, event_id: &EventId) -> Result<Pos> {
    let read = ctx.app.store.snapshot();
    let reader = RoomReader::new(&ctx.app.room_cache, &read);
    let (nr, _) = reader.head(room_id)?.ok_or_else(super::no_room)?;
    reader.find(nr, event_id)?.ok_or_else(|| Error::not_found("There is no such event"))
}

/// Just after the last event at or before a time.
fn last_before(ctx: &RawCtx, room_id: &RoomId, ts: u64) -> Result<Pos> {
    let read = ctx.app.store.snapshot();
    let reader = RoomReader::new(&ctx.app.room_cache, &read);
    let reach = Reach::whole(reader, room_id)?;
    // Nobody in particular: an administrator sees everything.
    let nobody = UserId::parse(format!("@:{}", ctx.app.server_name)).map_err(Error::internal)?;
    let eyes = reach.eyes(reader, &nobody)?;
    let found = moment::find(reader, &reach, &eyes, ts, Direction::Backward)?;
    let (at, _) = found.ok_or_else(|| Error::not_found("There is no event before this time"))?;
    Ok(Pos(at.0.saturating_add(1)))
}

#[derive(Deserialize)]
struct Redact {
    #[serde(default)]
    rooms: Vec<String>,
    reason: Option<String>,
    limit: Option<u64>,
}

async fn redact(mut ctx: RawCtx) -> Result<Response> {
    let asked: Redact = ctx.read_json().await?;
    let (user_id, _) = account(&ctx, 0)?;
    let rooms: Vec<OwnedRoomId> = asked.rooms.iter().map(|id| RoomId::parse(id.as_str())).collect::<Result<_, _>>()?;
    if rooms.len() > tasks::MAX_ROOMS {
        return Err(Error::invalid_param(format!(
            "At most {} rooms may be named; name none for all",
            tasks::MAX_ROOMS
        )));
    }
    if asked.reason.as_ref().is_some_and(|reason| reason.len() > tasks::MAX_REASON_BYTES) {
        return Err(Error::invalid_param(format!("A reason has at most {} bytes", tasks::MAX_REASON_BYTES)));
    }
    let limit = asked.limit.unwrap_or(REDACTIONS);
    if limit == 0 {
        return Err(Error::invalid_param("limit is at least 1"));
    }
    let redact_id = tasks::redact_user(&ctx.app, &user_id, &rooms, asked.reason.as_deref(), limit).await?;
    tracing::info!(%user_id, by = asking_name(&ctx), "an administrator redacts what a user said");
    ok(&json!({ "redact_id": redact_id }))
}
