//! A room at once, for clients that look into it without syncing: state, the newest messages, what the user keeps about it.

use ::rooms::state::Select;
use ::rooms::timeline::Direction;
use http::{Method, StatusCode};
use ruma::RoomId;
use serde::Deserialize;
use serde_json::{Value, json};
use store::Read;

use super::messages::{array, style};
use crate::auth::Access;
use crate::blocking;
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response, Routes, json_response};
use crate::limits::Class;
use crate::rooms::pages::{self, Wanted};
use crate::rooms::public;
use crate::rooms::read::RoomReader;
use crate::rooms::relations::Gatherer;
use crate::rooms::shown::{Shown, string};
use crate::rooms::visibility::{Ignored, Reach, Standing};
use crate::schema::ACCOUNT_DATA;
use crate::stored::StoredEvent;
use crate::sync::token;

const DEFAULT_LIMIT: usize = 10;
const MAX_LIMIT: usize = 100;

pub fn routes() -> Routes {
    const PATHS: &[&str] =
        &["/_matrix/client/r0/rooms/{room_id}/initialSync", "/_matrix/client/v3/rooms/{room_id}/initialSync"];
    Routes::default().raw(Method::GET, PATHS, initial_sync).access(Access::Token).guests().limit(Class::Other)
}

#[derive(Deserialize)]
struct Query {
    limit: Option<usize>,
}

async fn initial_sync(ctx: RawCtx) -> Result<Response> {
    // The whole state of a room may be much.
    blocking::run(move || answer(&ctx)).await?
}

fn answer(ctx: &RawCtx) -> Result<Response> {
    let query: Query = ctx.query()?;
    let room_id = RoomId::parse(ctx.arg(0))?;
    let requester = ctx.requester()?;
    let user_id = &requester.user_id;
    let read = ctx.app.store.snapshot();
    let reader = RoomReader::new(&ctx.app.room_cache, &read);
    let reach = Reach::of(reader, user_id, &room_id)?;
    let eyes = reach.eyes(reader, user_id)?;
    let ignored = Ignored::by(&read, user_id)?;
    let takes = |event: &StoredEvent| Ok(!ignored.hides(event));
    let limit = query.limit.unwrap_or(DEFAULT_LIMIT).clamp(1, MAX_LIMIT);
    let wanted = Wanted { direction: Direction::Backward, from: None, to: None, limit, takes: &takes };
    let mut page = pages::read(reader, &reach, &eyes, &wanted)?;
    page.events.reverse();

    let style = style(&ctx.app, requester, &room_id);
    let gatherer = Gatherer { reader, room: reach.room, eyes: &eyes, user_id, ignored: &ignored, style };
    let mut out = Vec::with_capacity(32 * 1_024);
    out.extend_from_slice(b"{\"room_id\":");
    string(&mut out, room_id.as_str());
    if let Some(membership) = membership(reach.standing) {
        out.extend_from_slice(b",\"membership\":");
        string(&mut out, membership);
    }
    let listed = public::is_listed(&read, &room_id)? == Some(true);
    out.extend_from_slice(b",\"visibility\":");
    string(&mut out, if listed { "public" } else { "private" });
    out.extend_from_slice(b",\"messages\":{\"start\":");
    string(&mut out, &token::position(page.end.unwrap_or(store::Pos::ZERO)));
    out.extend_from_slice(b",\"end\":");
    string(&mut out, &token::position(page.start));
    out.extend_from_slice(b",\"chunk\":");
    array(&mut out, &page.events, |out, (at, event)| gatherer.write(out, *at, event))?;
    out.extend_from_slice(b"},\"state\":");
    let mut positions = reader.state_positions(reach.state(reader)?, Select::All)?;
    positions.sort_unstable();
    array(&mut out, reader.events_at(reach.room, &positions)?, |out, (at, event)| {
        Shown::plain(at, event).write(out, &style);
        Ok(())
    })?;
    out.extend_from_slice(b",\"account_data\":");
    let kept = account_data(&read, user_id.as_str(), room_id.as_str())?;
    out.extend_from_slice(Value::Array(kept).to_string().as_bytes());
    out.push(b'}');
    Ok(json_response(StatusCode::OK, out))
}

/// What is said of those who were in the room; who only looks at it has none.
fn membership(standing: Standing) -> Option<&'static str> {
    match standing {
        Standing::Joined => Some("join"),
        Standing::Left(_) => Some("leave"),
        Standing::Peeking | Standing::Stranger => None,
    }
}

fn account_data(read: &impl Read, user_id: &str, room_id: &str) -> Result<Vec<Value>> {
    let mut kept = Vec::new();
    for row in read.scan(&ACCOUNT_DATA, ACCOUNT_DATA.prefix((user_id, room_id))) {
        let ((_, _, kind), data) = row?;
        let content: Value = serde_json::from_slice(&data.0).map_err(Error::internal)?;
        kept.push(json!({ "type": kind, "content": content }));
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::client::testing::*;
    use crate::testing::Server;

    #[tokio::test]
    async fn a_room_comes_at_once_to_those_who_may_see_it() {
        let server = Server::default();
        let [alice, bob] = users(&server).await;
        let room = public_room(&alice).await;
        let said = room.say("hello").await;
        let tags = format!("/_matrix/client/v3/user/{}/rooms/{}/account_data/a", enc(&alice.user_id), enc(&room.id));
        ok(&alice.client.put(&tags, json!({ "b": 1 })).await);
        let seen = ok(&room.get("initialSync?limit=2").await);
        assert_eq!((&seen["membership"], &seen["visibility"]), (&json!("join"), &json!("private")));
        let chunk = seen["messages"]["chunk"].as_array().unwrap();
        assert_eq!((chunk.len(), &chunk[1]["event_id"]), (2, &json!(said)));
        assert_eq!(seen["account_data"], json!([{ "type": "a", "content": { "b": 1 } }]));
        let state = seen["state"].as_array().unwrap();
        assert!(state.iter().any(|event| event["type"] == "m.room.create"));
        let earlier = room.messages(&format!("dir=b&from={}", seen["messages"]["start"].as_str().unwrap())).await;
        assert!(!earlier["chunk"].as_array().unwrap().iter().any(|event| event["event_id"] == chunk[0]["event_id"]));
        assert_eq!(refused(&room.of(&bob).get("initialSync").await), forbidden());
    }
}
