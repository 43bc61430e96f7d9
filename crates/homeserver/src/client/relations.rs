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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use store::{Batch, Pos, Read as _, ValueBuf};

    use crate::client::testing::*;
    use crate::schema::{EVENT_IDS, EVENTS, RELATIONS, Relation};
    use crate::testing::{Server, User};

    fn relate(rel_type: &str, to: &str, body: &str) -> Value {
        json!({"body": body, "m.new_content": {"body": body}, "m.relates_to": {"rel_type": rel_type, "event_id": to}})
    }

    impl Room<'_> {
        async fn bundle(&self, event_id: &str) -> Value {
            ok(&self.event(event_id).await)["unsigned"]["m.relations"].clone()
        }
    }

    #[tokio::test]
    async fn pitfall_050_only_the_newest_edits_are_read() {
        let server = Server::default();
        let [alice] = users(&server).await;
        let room = public_room(&alice).await;
        let root = room.say("root").await;
        let old = room.send("m.room.message", relate("m.replace", &root, "old")).await;
        server.app.clock.advance(std::time::Duration::from_millis(5));
        room.send("m.room.message", relate("m.replace", &root, "newer")).await;
        server.app.clock.advance(std::time::Duration::from_millis(5));
        let newest = room.send("m.room.message", relate("m.replace", &root, "newest")).await;
        // Whoever reads the oldest fails.
        let store = &server.app.store;
        let at = store.snapshot().get(&EVENT_IDS, &old).unwrap().unwrap();
        let (mut batch, mut junk) = (Batch::new(), ValueBuf::default());
        junk.raw(&[250]);
        batch.put_buf(&EVENTS, (at.room, at.at), junk);
        store.commit(batch).unwrap().durable().await.unwrap();
        assert_eq!(room.bundle(&root).await["m.replace"]["event_id"], *newest);
    }

    #[tokio::test]
    async fn pitfall_052_a_page_looks_at_so_many_relations_and_no_more() {
        let server = Server::default();
        let [alice] = users(&server).await;
        let room = public_room(&alice).await;
        let root = room.say("root").await;
        let real = room.send("m.room.message", relate("m.reference", &root, "real")).await;
        let store = &server.app.store;
        let found = store.snapshot().get(&EVENT_IDS, &real).unwrap().unwrap();
        let relation =
            Relation { rel_type: "m.reference".to_owned(), kind: String::new(), sender: String::new(), key: None };
        for chunk in 0..3 {
            let mut batch = Batch::new();
            for nr in 0..1_700 {
                batch.put(&RELATIONS, (found.room, &root, Pos(found.at.0 + 1_000 + chunk * 1_700 + nr)), &relation);
            }
            store.commit(batch).unwrap().durable().await.unwrap();
        }
        let page = async |from: &str| {
            let path = room.path(&format!("relations/{}?from={from}", enc(&root))).replace("/v3/", "/v1/");
            ok(&alice.client.get(&path).await)
        };
        let first = page("").await;
        assert_eq!(first["chunk"], json!([]), "the events that there are come later");
        let second = page(first["next_batch"].as_str().unwrap()).await;
        assert_eq!(ids(second["chunk"].as_array().unwrap()), [&*real]);
        assert_eq!(second.get("next_batch"), None);
    }

    #[tokio::test]
    async fn pitfall_046_replies_that_one_may_not_see_are_not_counted() {
        let server = Server::default();
        let [alice, bob] = users(&server).await;
        let room = room_with_history(&alice, "joined").await;
        room.join(&bob).await;
        let root = room.say("root").await;
        let reply = async |body: &str| room.send("m.room.message", relate("m.thread", &root, body)).await;
        reply("seen").await;
        room.of(&bob).leave().await;
        reply("not seen").await;
        assert_eq!(room.of(&bob).bundle(&root).await["m.thread"]["count"], 1);
        room.join(&bob).await;
        let last = reply("seen").await;
        let thread = room.of(&bob).bundle(&root).await["m.thread"].clone();
        assert_eq!((&thread["count"], &thread["latest_event"]["event_id"]), (&json!(2), &json!(last)));
        assert_eq!(room.bundle(&root).await["m.thread"]["count"], 3);
    }

    #[tokio::test]
    async fn pitfall_046_filters_tell_nothing_of_relations_that_one_may_not_see() {
        let server = Server::default();
        let [alice, bob, carol] = users(&server).await;
        let room = public_room(&alice).await;
        room.join(&bob).await;
        room.join(&carol).await;
        let (seen, later) = (room.say("seen").await, room.say("later").await);
        room.of(&carol).send("m.room.message", relate("m.reference", &seen, "r")).await;
        let by_carol = async |user: &User| {
            let filter = json!({"related_by_senders": [carol.user_id]}).to_string();
            let found = room.of(user).messages(&format!("dir=f&limit=100&filter={}", enc(&filter))).await;
            ids(found["chunk"].as_array().unwrap()).into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(by_carol(&bob).await, [&*seen]);
        room.of(&bob).leave().await;
        room.of(&carol).send("m.room.message", relate("m.reference", &later, "r")).await;
        assert_eq!(by_carol(&bob).await, [&*seen], "what came of it after the user left is not told");
        assert_eq!(by_carol(&alice).await, [&*seen, &*later]);
        let path = format!("/_matrix/client/v3/user/{}/account_data/m.ignored_user_list", enc(&alice.user_id));
        ok(&alice.client.put(&path, json!({"ignored_users": {(carol.user_id.clone()): {}}})).await);
        assert_eq!(by_carol(&alice).await, Vec::<String>::new());
    }
}
