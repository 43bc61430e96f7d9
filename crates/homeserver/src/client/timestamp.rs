//! The event nearest to a point in time.

use http::{Method, StatusCode};
use ruma::RoomId;
use serde::Deserialize;
use serde_json::json;

use super::messages::{Dir, Looking};
use crate::auth::Access;
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response, Routes, json_response};
use crate::limits::Class;
use crate::rooms::moment;
use crate::rooms::read::RoomReader;

const PATHS: &[&str] = &[
    "/_matrix/client/unstable/org.matrix.msc3030/rooms/{room_id}/timestamp_to_event",
    "/_matrix/client/v1/rooms/{room_id}/timestamp_to_event",
];

pub fn routes() -> Routes {
    Routes::default().raw(Method::GET, PATHS, timestamp_to_event).access(Access::Token).limit(Class::Other)
}

#[derive(Deserialize)]
struct Query {
    ts: u64,
    dir: Option<Dir>,
}

/// The same for administrators, who see everything.
pub fn admin_routes() -> Routes {
    const PATH: &str = "/_synapse/admin/v1/rooms/{room_id}/timestamp_to_event";
    Routes::default().raw(Method::GET, &[PATH], timestamp_to_event_for_admin)
}

async fn timestamp_to_event(ctx: RawCtx) -> Result<Response> {
    nearest(&ctx, &Looking::of(&ctx)?)
}

async fn timestamp_to_event_for_admin(ctx: RawCtx) -> Result<Response> {
    nearest(&ctx, &Looking::for_admin(&ctx)?)
}

fn nearest(ctx: &RawCtx, looking: &Looking) -> Result<Response> {
    let query: Query = ctx.query()?;
    let room_id = RoomId::parse(ctx.arg(0))?;
    let read = ctx.app.store.snapshot();
    let reader = RoomReader::new(&ctx.app.room_cache, &read);
    let reach = looking.reach(reader, &room_id)?;
    let eyes = reach.eyes(reader, looking.user_id())?;
    let direction = query.dir.unwrap_or(Dir::Forward).into();
    let found = moment::find(reader, &reach, &eyes, query.ts, direction)?;
    let (_, event) = found.ok_or_else(|| Error::not_found("There is no event on that side of the time"))?;
    let body = json!({ "event_id": event.event_id(), "origin_server_ts": event.origin_server_ts });
    Ok(json_response(StatusCode::OK, body.to_string()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::Value;

    use crate::client::testing::*;
    use crate::http::Answer;
    use crate::testing::Server;

    impl Room<'_> {
        async fn at(&self, ts: u64, dir: &str) -> Answer {
            let path = format!("/_matrix/client/v1/rooms/{}/timestamp_to_event?ts={ts}&dir={dir}", enc(&self.id));
            self.user.client.get(&path).await
        }

        async fn nearest(&self, ts: u64, dir: &str) -> String {
            ok(&self.at(ts, dir).await)["event_id"].as_str().unwrap().to_owned()
        }
    }

    #[tokio::test]
    async fn every_time_has_its_neighbours() {
        let server = Server::default();
        let [alice] = users(&server).await;
        let room = public_room(&alice).await;
        let mut said: Vec<(u64, String)> = Vec::new();
        for nr in 0..40 {
            server.app.clock.advance(Duration::from_millis(10 + nr % 3 * 1_000));
            said.push((server.app.clock.now_ms(), room.say(&nr.to_string()).await));
        }
        for pair in said.windows(2) {
            let [(one_ts, one), (two_ts, two)] = pair else { panic!() };
            assert_eq!([&room.nearest(*one_ts, "f").await, &room.nearest(*one_ts, "b").await], [one, one]);
            assert_eq!([&room.nearest(one_ts + 1, "f").await, &room.nearest(two_ts - 1, "b").await], [two, one]);
        }
        let (first_ts, _) = said[0];
        let (last_ts, last) = said.last().unwrap();
        assert_eq!(&room.nearest(last_ts + 1_000_000, "b").await, last);
        assert_eq!(refused(&room.at(last_ts + 1, "f").await), not_found());
        // The room's own beginning is older than what was said in it.
        let beginning = ok(&room.at(0, "f").await);
        assert!(beginning["origin_server_ts"].as_u64().unwrap() < first_ts);
        assert_eq!(ok(&room.event(beginning["event_id"].as_str().unwrap()).await)["type"], "m.room.create");
        assert_eq!(refused(&room.at(1, "b").await), not_found());
        assert_eq!(room.at(0, "x").await.status, 400);
    }

    #[tokio::test]
    async fn pitfall_046_what_one_may_not_see_is_not_near() {
        let server = Server::default();
        let [alice, bob, carol] = users(&server).await;
        let room = room_with_history(&alice, "joined").await;
        let tick = || server.app.clock.advance(Duration::from_millis(10));
        tick();
        let before = server.app.clock.now_ms();
        room.say("before").await;
        tick();
        room.join(&bob).await;
        tick();
        let during = room.say("during").await;
        tick();
        room.of(&bob).leave().await;
        tick();
        let after = server.app.clock.now_ms();
        room.say("after").await;
        let event = async |ts, dir| -> Value {
            let found = ok(&room.of(&bob).at(ts, dir).await);
            ok(&room.of(&bob).event(found["event_id"].as_str().unwrap()).await)
        };
        assert_eq!(event(before, "f").await["content"]["membership"], "join");
        assert_eq!(event(after, "b").await["content"]["membership"], "leave");
        assert_eq!(event(before + 15, "f").await["event_id"], *during);
        assert_eq!(refused(&room.of(&bob).at(after, "f").await), not_found());
        assert_eq!(refused(&room.of(&carol).at(0, "f").await), forbidden());
    }
}
