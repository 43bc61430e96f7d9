//! The threads of a room.

use http::{Method, StatusCode};
use ruma::RoomId;
use serde::Deserialize;

use super::messages::{array, position, style};
use crate::auth::Access;
use crate::error::Result;
use crate::http::{RawCtx, Response, Routes, json_response};
use crate::limits::Class;
use crate::rooms::read::RoomReader;
use crate::rooms::relations::Gatherer;
use crate::rooms::shown::string;
use crate::rooms::threads::{self, Wanted};
use crate::rooms::visibility::{Ignored, Reach};
use crate::sync::token;

const DEFAULT_LIMIT: usize = 20;
const MAX_LIMIT: usize = 100;

const PATHS: &[&str] = &[
    "/_matrix/client/unstable/org.matrix.msc3856/rooms/{room_id}/threads",
    "/_matrix/client/v1/rooms/{room_id}/threads",
];

pub fn routes() -> Routes {
    Routes::default().raw(Method::GET, PATHS, threads).access(Access::Token).limit(Class::Other)
}

#[derive(Deserialize)]
struct Query {
    from: Option<String>,
    include: Option<Include>,
    limit: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Include {
    All,
    Participated,
}

async fn threads(ctx: RawCtx) -> Result<Response> {
    let query: Query = ctx.query()?;
    let room_id = RoomId::parse(ctx.arg(0))?;
    let requester = ctx.requester()?;
    let read = ctx.app.store.snapshot();
    let reader = RoomReader::new(&ctx.app.room_cache, &read);
    let reach = Reach::of(reader, &requester.user_id, &room_id)?;
    let eyes = reach.eyes(reader, &requester.user_id)?;
    let ignored = Ignored::by(&read, &requester.user_id)?;
    let wanted = Wanted {
        from: position(query.from.as_deref())?,
        limit: query.limit.unwrap_or(DEFAULT_LIMIT).clamp(1, MAX_LIMIT),
        participated: query.include == Some(Include::Participated),
        user_id: &requester.user_id,
        ignored: &ignored,
    };
    let (page, end) = threads::read(reader, &reach, &eyes, &wanted)?;

    let style = style(&ctx.app, requester, &room_id);
    let gatherer =
        Gatherer { reader, room: reach.room, eyes: &eyes, user_id: &requester.user_id, ignored: &ignored, style };
    let mut out = Vec::with_capacity(2_048 * (page.len() + 1));
    out.extend_from_slice(b"{\"chunk\":");
    array(&mut out, &page, |out, (at, event)| gatherer.write(out, *at, event))?;
    if let Some(end) = end {
        out.extend_from_slice(b",\"next_batch\":");
        string(&mut out, &token::position(end));
    }
    out.push(b'}');
    Ok(json_response(StatusCode::OK, out))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::client::testing::*;
    use crate::testing::{Server, User};

    impl Room<'_> {
        async fn reply(&self, root: &str, body: &str) -> String {
            let relates_to = json!({"rel_type": "m.thread", "event_id": root});
            self.send("m.room.message", json!({"msgtype": "m.text", "body": body, "m.relates_to": relates_to})).await
        }

        async fn threads(&self, query: &str) -> Value {
            let path = format!("/_matrix/client/v1/rooms/{}/threads?{query}", enc(&self.id));
            ok(&self.user.client.get(&path).await)
        }

        /// The roots, the newest thread first.
        async fn roots(&self, query: &str) -> Vec<String> {
            ids(self.threads(query).await["chunk"].as_array().unwrap()).into_iter().map(str::to_owned).collect()
        }
    }

    async fn ignore(user: &User, ignored: Value) {
        let path = format!("/_matrix/client/v3/user/{}/account_data/m.ignored_user_list", enc(&user.user_id));
        ok(&user.client.put(&path, json!({"ignored_users": ignored})).await);
    }

    #[tokio::test]
    async fn threads_come_in_the_order_of_their_newest_replies() {
        let server = Server::default();
        let [alice, bob] = users(&server).await;
        let room = public_room(&alice).await;
        room.join(&bob).await;
        let (one, two, three) = (room.say("1").await, room.of(&bob).say("2").await, room.say("3").await);
        assert_eq!(room.threads("").await, json!({"chunk": []}));
        for root in [&two, &one, &three] {
            room.reply(root, "a").await;
        }
        let last = room.of(&bob).reply(&one, "b").await;
        assert_eq!(room.roots("").await, [&*one, &*three, &*two]);
        let newest = room.threads("limit=1").await["chunk"][0]["unsigned"]["m.relations"]["m.thread"].clone();
        assert_eq!((&newest["count"], &newest["latest_event"]["event_id"]), (&json!(2), &json!(last)));
        // A reply that is redacted moves its thread back to where it was, or away.
        room.of(&bob).redact(&last).await;
        assert_eq!(room.roots("").await, [&*three, &*one, &*two]);
        let only = room.reply(&bob_thread(&room, &bob).await, "x").await;
        assert_eq!(room.roots("").await.len(), 4);
        room.redact(&only).await;
        assert_eq!(room.roots("").await, [&*three, &*one, &*two]);
    }

    async fn bob_thread(room: &Room<'_>, bob: &User) -> String {
        room.of(bob).say("4").await
    }

    #[tokio::test]
    async fn pages_of_threads_neither_overlap_nor_leave_out() {
        let server = Server::default();
        let [alice] = users(&server).await;
        let room = public_room(&alice).await;
        let mut roots = Vec::new();
        for nr in 0..7 {
            let root = room.say(&nr.to_string()).await;
            room.reply(&root, "r").await;
            roots.insert(0, root);
        }
        for limit in [1, 2, 3, 7, 8] {
            let (mut found, mut from) = (Vec::new(), String::new());
            loop {
                let page = room.threads(&format!("limit={limit}{from}")).await;
                let chunk = page["chunk"].as_array().unwrap();
                assert!(chunk.len() <= limit);
                found.extend(ids(chunk).into_iter().map(str::to_owned));
                let Some(next) = page["next_batch"].as_str() else { break };
                from = format!("&from={}", enc(next));
            }
            assert_eq!(found, roots, "{limit}");
        }
    }

    #[tokio::test]
    async fn only_the_threads_one_takes_part_in() {
        let server = Server::default();
        let [alice, bob] = users(&server).await;
        let room = public_room(&alice).await;
        room.join(&bob).await;
        let (mine, replied, other) = (room.say("m").await, room.of(&bob).say("r").await, room.of(&bob).say("o").await);
        for root in [&mine, &replied, &other] {
            room.of(&bob).reply(root, "b").await;
        }
        room.reply(&replied, "a").await;
        assert_eq!(room.roots("include=participated").await, [&*replied, &*mine]);
        assert_eq!(room.roots("include=all").await.len(), 3);
        let path = format!("/_matrix/client/v1/rooms/{}/threads?include=some", enc(&room.id));
        assert_eq!(alice.client.get(&path).await.status, 400);
    }

    #[tokio::test]
    async fn pitfall_037_threads_of_ignored_users_are_empty_shells() {
        let server = Server::default();
        let [alice, bob] = users(&server).await;
        let room = public_room(&alice).await;
        room.join(&bob).await;
        let (theirs, mine) = (room.of(&bob).say("secret").await, room.say("mine").await);
        room.reply(&theirs, "r").await;
        room.of(&bob).reply(&mine, "unheard").await;
        ignore(&alice, json!({ &bob.user_id: {} })).await;
        let shown = room.threads("").await;
        assert_eq!(ids(shown["chunk"].as_array().unwrap()), [&*theirs], "{shown}");
        assert_eq!(shown["chunk"][0]["content"], json!({}));
        assert_eq!(shown["chunk"][0]["unsigned"]["m.relations"]["m.thread"]["count"], 1);
        ignore(&alice, json!({})).await;
        assert_eq!(room.roots("").await, [&*mine, &*theirs]);
    }

    #[tokio::test]
    async fn pitfall_047_who_left_sees_the_threads_as_they_were() {
        let server = Server::default();
        let [alice, bob, carol] = users(&server).await;
        let room = public_room(&alice).await;
        room.join(&bob).await;
        let (one, two) = (room.say("1").await, room.say("2").await);
        room.reply(&one, "r").await;
        let before = room.reply(&two, "r").await;
        room.of(&bob).leave().await;
        room.reply(&one, "later").await;
        room.reply(&two, "later").await;
        let three = room.say("3").await;
        room.reply(&three, "r").await;
        let seen = room.of(&bob).threads("").await;
        assert_eq!(ids(seen["chunk"].as_array().unwrap()), [&*two, &*one]);
        assert_eq!(seen["chunk"][0]["unsigned"]["m.relations"]["m.thread"]["latest_event"]["event_id"], before);
        let first = room.of(&bob).threads("limit=1").await;
        let next = first["next_batch"].as_str().unwrap();
        assert_eq!(room.of(&bob).roots(&format!("from={}", enc(next))).await, [&*one]);
        let path = format!("/_matrix/client/v1/rooms/{}/threads", enc(&room.id));
        assert_eq!(refused(&carol.client.get(&path).await), forbidden());
    }

    #[tokio::test]
    async fn pitfall_051_a_thread_does_not_begin_inside_another() {
        let server = Server::default();
        let [alice] = users(&server).await;
        let room = public_room(&alice).await;
        let root = room.say("root").await;
        let inside = room.reply(&root, "inside").await;
        let relates_to = json!({"rel_type": "m.thread", "event_id": inside});
        let content = json!({"msgtype": "m.text", "body": "x", "m.relates_to": relates_to});
        let answer = alice.client.put(&room.path("send/m.room.message/nested"), content).await;
        assert_eq!(refused(&answer), (400, "M_UNKNOWN".to_owned()));
    }

    #[tokio::test]
    async fn filters_ask_for_what_relates_to_events() {
        let server = Server::default();
        let [alice, bob] = users(&server).await;
        let room = public_room(&alice).await;
        room.join(&bob).await;
        let (plain, thread, liked) = (room.say("plain").await, room.say("thread").await, room.say("liked").await);
        room.of(&bob).reply(&thread, "r").await;
        let relates_to = json!({"rel_type": "m.annotation", "event_id": liked, "key": "+"});
        room.send("m.reaction", json!({"m.relates_to": relates_to})).await;
        let seen = async |filter: Value| {
            let filter = enc(&filter.to_string());
            let page = room.messages(&format!("dir=f&limit=100&filter={filter}")).await;
            ids(page["chunk"].as_array().unwrap()).into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(seen(json!({"related_by_rel_types": ["m.thread"]})).await, [&*thread]);
        assert_eq!(seen(json!({"related_by_senders": [alice.user_id]})).await, [&*liked]);
        let both = json!({"related_by_rel_types": ["m.thread", "m.annotation"], "related_by_senders": [bob.user_id]});
        assert_eq!(seen(both).await, [&*thread]);
        assert!(seen(json!({"related_by_rel_types": []})).await.is_empty());
        assert!(seen(json!({})).await.contains(&plain));
        // The same in a sync.
        let filter = json!({"room": {"timeline": {"related_by_rel_types": ["m.annotation"], "limit": 5}}});
        let path = format!("/_matrix/client/v3/sync?filter={}", enc(&filter.to_string()));
        let timeline = ok(&alice.client.get(&path).await)["rooms"]["join"][&room.id]["timeline"]["events"].clone();
        assert_eq!(ids(timeline.as_array().unwrap()), [&*liked]);
    }
}
