//! Spaces, and rooms in short (spec: Spaces; Room Summaries).

use http::{Method, StatusCode};
use ruma::{RoomAliasId, RoomId};
use serde::Deserialize;
use serde_json::{Value, json};

use super::messages::array;
use crate::auth::Access;
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response, Routes, json_response};
use crate::limits::Class;
use crate::rooms::hierarchy::{self, From, Wanted, child_json};
use crate::rooms::read::RoomReader;
use crate::rooms::shown::string;
use crate::rooms::{aliases, summary};

const DEFAULT_LIMIT: usize = 50;
const MAX_LIMIT: usize = 100;
/// How far down a hierarchy goes.
const MAX_DEPTH: u32 = 100;

const HIERARCHY: &[&str] = &[
    "/_matrix/client/unstable/org.matrix.msc2946/rooms/{room_id}/hierarchy",
    "/_matrix/client/v1/rooms/{room_id}/hierarchy",
];
/// Clients still use the spellings from before it was specified.
const UNSTABLE_SUMMARY: &[&str] = &[
    "/_matrix/client/unstable/im.nheko.summary/rooms/{room_id_or_alias}/summary",
    "/_matrix/client/unstable/im.nheko.summary/summary/{room_id_or_alias}",
];

pub fn routes() -> Routes {
    Routes::default()
        .raw(Method::GET, HIERARCHY, hierarchy)
        .access(Access::Token)
        .limit(Class::Other)
        .raw(Method::GET, &["/_matrix/client/v1/room_summary/{room_id_or_alias}"], room_summary)
        .access(Access::OptionalToken)
        .limit(Class::Other)
        .guests()
        .raw(Method::GET, UNSTABLE_SUMMARY, unstable_room_summary)
        .access(Access::OptionalToken)
        .limit(Class::Other)
        .guests()
}

#[derive(Deserialize)]
struct Query {
    from: Option<String>,
    limit: Option<usize>,
    max_depth: Option<u32>,
    suggested_only: Option<bool>,
}

async fn hierarchy(ctx: RawCtx) -> Result<Response> {
    let query: Query = ctx.query()?;
    let room_id = RoomId::parse(ctx.arg(0))?;
    let wanted = Wanted {
        max_depth: query.max_depth.unwrap_or(MAX_DEPTH).min(MAX_DEPTH),
        suggested_only: query.suggested_only.unwrap_or(false),
    };
    let from = query.from.as_deref().map(|from| {
        let from = From::parse(from).filter(|from| from.wanted == wanted);
        from.ok_or_else(|| Error::invalid_param("This token is not one of this question"))
    });
    let from = from.transpose()?;
    let limit = query.limit.unwrap_or(DEFAULT_LIMIT).clamp(1, MAX_LIMIT);
    let (app, user_id) = (ctx.app.clone(), ctx.requester()?.user_id.clone());
    let walk = move || {
        let read = app.store.snapshot();
        let reader = RoomReader::new(&app.room_cache, &read);
        hierarchy::read(reader, &user_id, &room_id, wanted, from, limit)
    };
    // A space may be large, and its state is read from the disk.
    let (rooms, next) = tokio::task::spawn_blocking(walk).await.map_err(Error::internal)??;

    let mut out = Vec::with_capacity(1_024 * (rooms.len() + 1));
    out.push(b'{');
    if let Some(next) = next {
        out.extend_from_slice(b"\"next_batch\":");
        string(&mut out, &next.write());
        out.push(b',');
    }
    out.extend_from_slice(b"\"rooms\":");
    array(&mut out, &rooms, |out, room| {
        serde_json::to_writer(&mut *out, &room.summary).map_err(Error::internal)?;
        // Goes on in the object that was just closed.
        out.pop();
        out.extend_from_slice(b",\"children_state\":");
        array(out, &room.children, child_json)?;
        out.push(b'}');
        Ok(())
    })?;
    out.push(b'}');
    Ok(json_response(StatusCode::OK, out))
}

async fn room_summary(ctx: RawCtx) -> Result<Response> {
    Ok(json_response(StatusCode::OK, summarise(&ctx)?.to_string()))
}

async fn unstable_room_summary(ctx: RawCtx) -> Result<Response> {
    let mut summary = summarise(&ctx)?;
    for (was, is) in [("im.nheko.summary.room_version", "room_version"), ("im.nheko.summary.encryption", "encryption")]
    {
        if let Some(value) = summary.get(is).cloned() {
            summary[was] = value;
        }
    }
    Ok(json_response(StatusCode::OK, summary.to_string()))
}

fn summarise(ctx: &RawCtx) -> Result<Value> {
    let not_found = || Error::not_found("There is no such room, or it is not for you");
    let read = ctx.app.store.snapshot();
    let reader = RoomReader::new(&ctx.app.room_cache, &read);
    let room_id = match RoomId::parse(ctx.arg(0)) {
        Ok(room_id) => room_id,
        Err(_) => aliases::resolve(&read, &RoomAliasId::parse(ctx.arg(0))?)?.ok_or_else(not_found)?,
    };
    let user_id = ctx.requester.as_ref().map(|requester| &*requester.user_id);
    let (room, head) = reader.head(&room_id)?.ok_or_else(not_found)?;
    if !summary::may_know(reader, user_id, room, &head)? {
        return Err(not_found());
    }
    let mut summary = serde_json::to_value(summary::of(reader, room, &head)?).map_err(Error::internal)?;
    if let Some(user_id) = user_id {
        let membership = reader.membership(user_id.as_str(), room)?.map_or("leave", |row| row.state.as_str());
        summary["membership"] = json!(membership);
    }
    Ok(summary)
}
