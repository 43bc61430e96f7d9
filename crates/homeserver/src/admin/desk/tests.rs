//! The desk as a console uses it: with an administrator's token.

use std::path::Path;
use std::sync::Arc;

use http::Method;
use parking_lot::Mutex;
use serde_json::{Value, json};
use store::Read as _;

use crate::http::{Answer, Body};
use crate::jobs;
use crate::testing::{PASSWORD, Server, User, config};
use crate::users::admin;
use crate::{api, schema};

mod looking;

struct World {
    server: Server,
    root: User,
    alice: User,
}

impl World {
    async fn new() -> Self {
        Self::on(Server::default()).await
    }

    /// With a folder for uploads.
    async fn with_uploads(dir: &Path) -> Self {
        let mut config = config();
        config.data_dir = dir.to_owned();
        Self::on(Server::new(config)).await
    }

    async fn on(server: Server) -> Self {
        admin::create(&server.app, "root", PASSWORD, true).await.unwrap();
        let (root, alice) = (server.log_in("root").await, server.user("alice").await);
        World { server, root, alice }
    }

    async fn get(&self, path: &str) -> Answer {
        self.root.client.get(&format!("/_synapse/admin/{path}")).await
    }

    async fn put(&self, path: &str, body: Value) -> Answer {
        self.root.client.put(&format!("/_synapse/admin/{path}"), body).await
    }

    async fn post(&self, path: &str, body: Value) -> Answer {
        self.root.client.post(&format!("/_synapse/admin/{path}"), body).await
    }

    async fn delete(&self, path: &str, body: Value) -> Answer {
        let path = format!("/_synapse/admin/{path}");
        self.root.client.send(Method::DELETE, &path, Body::from(body.to_string())).await
    }

    async fn room(&self, user: &User) -> String {
        let body = json!({ "preset": "public_chat", "name": "A room" });
        ok(&user.client.post("/_matrix/client/v3/createRoom", body).await)["room_id"].as_str().unwrap().to_owned()
    }

    async fn say(&self, user: &User, room_id: &str, text: &str) -> String {
        let path = format!("/_matrix/client/v3/rooms/{room_id}/send/m.room.message/{text}");
        let content = json!({ "msgtype": "m.text", "body": text });
        ok(&user.client.put(&path, content).await)["event_id"].as_str().unwrap().to_owned()
    }
}

fn ok(answer: &Answer) -> Value {
    assert!(answer.status.is_success(), "{} {}", answer.status, answer.json());
    answer.json()
}

#[test]
fn nothing_is_open_to_others_than_administrators() {
    const OPEN: &[&str] = &["/_synapse/admin/v1/register", "/_synapse/admin/v1/server_version"];
    let mut seen = 0;
    for operation in api::routes().inventory() {
        if operation.path.starts_with("/_synapse/admin/") && !OPEN.contains(&operation.path.as_str()) {
            assert_eq!(operation.access, "administrator", "{}", operation.path);
            seen += 1;
        }
    }
    assert!(seen > 60, "{seen}");
}

#[tokio::test]
async fn others_are_refused() {
    let world = World::new().await;
    let path = "/_synapse/admin/v2/users/@alice:hs.test";
    assert_eq!(world.alice.client.get(path).await.errcode(), "M_FORBIDDEN");
    assert_eq!(world.server.client.get(path).await.errcode(), "M_MISSING_TOKEN");
}

#[tokio::test]
async fn an_account_is_made_changed_and_found() {
    let world = World::new().await;
    let bob = "v2/users/@bob:hs.test";
    assert_eq!(world.get(bob).await.status, 404);
    let made = world.put(bob, json!({ "password": PASSWORD, "displayname": "Bob" })).await;
    assert_eq!((made.status.as_u16(), &made.json()["displayname"]), (201, &json!("Bob")));
    // A console sends back all that it was told.
    let mut record = ok(&world.get(bob).await);
    record["admin"] = json!(true);
    record["id"] = json!("@bob:hs.test");
    record["user_type"] = Value::Null;
    let changed = world.put(bob, record).await;
    assert_eq!((changed.status.as_u16(), &changed.json()["admin"]), (200, &json!(true)));
    let admins = ok(&world.get("v3/users?admins=true&order_by=name&dir=b").await);
    let names: Vec<&str> = admins["users"].as_array().unwrap().iter().map(|u| u["name"].as_str().unwrap()).collect();
    assert_eq!((names, &admins["total"]), (vec!["@root:hs.test", "@bob:hs.test"], &json!(2)));
    let page = ok(&world.get("v3/users?limit=1&from=1").await);
    assert_eq!((&page["users"][0]["name"], &page["next_token"]), (&json!("@bob:hs.test"), &json!("2")));
    assert_eq!(world.get("v3/users?order_by=shoe_size").await.errcode(), "M_INVALID_PARAM");
    assert_eq!(world.get("v3/users?limit=-1").await.errcode(), "M_INVALID_PARAM");
    assert_eq!(ok(&world.get("v3/users?name=BO").await)["total"], 1);
    let own = world.put("v2/users/@root:hs.test", json!({ "admin": false })).await;
    assert_eq!(own.errcode(), "M_FORBIDDEN");
}

#[tokio::test]
async fn closing_and_reopening_an_account_are_real() {
    let world = World::new().await;
    let answer = ok(&world.post("v1/deactivate/@alice:hs.test", json!({ "erase": true })).await);
    assert_eq!(answer, json!({ "id_server_unbind_result": "no-support" }));
    assert_eq!(world.server.try_log_in("alice", PASSWORD, json!({})).await.status, 403);
    let reopen = json!({ "deactivated": false, "password": PASSWORD });
    let early = world.put("v2/users/@alice:hs.test", reopen.clone()).await;
    assert_eq!(early.status, 409, "its rooms are still being left");
    jobs::drain(&world.server.app).await.unwrap();
    ok(&world.put("v2/users/@alice:hs.test", reopen.clone()).await);
    assert_eq!(world.server.try_log_in("alice", PASSWORD, json!({})).await.status, 200);
    // Nobody becomes an administrator again by that.
    ok(&world.put("v2/users/@alice:hs.test", json!({ "admin": true })).await);
    ok(&world.post("v1/deactivate/@alice:hs.test", json!({})).await);
    jobs::drain(&world.server.app).await.unwrap();
    assert_eq!(ok(&world.put("v2/users/@alice:hs.test", reopen).await)["admin"], false);
    assert_eq!(world.post("v1/deactivate/@root:hs.test", json!({})).await.errcode(), "M_FORBIDDEN");
}

#[tokio::test]
async fn an_administrator_acts_for_a_user_until_the_time_is_over() {
    let world = World::new().await;
    let until = world.server.app.clock.now_ms() + 1_000;
    let body = json!({ "valid_until_ms": until });
    let token = ok(&world.post("v1/users/@alice:hs.test/login", body).await)["access_token"].clone();
    let acting = world.server.client.with_token(token.as_str().unwrap());
    let me = ok(&acting.get("/_matrix/client/v3/account/whoami").await);
    assert_eq!(me, json!({ "user_id": "@alice:hs.test" }));
    let devices = ok(&world.get("v2/users/@alice:hs.test/devices").await);
    assert_eq!(devices["total"], 1, "no device comes of it");
    world.server.app.clock.advance(std::time::Duration::from_secs(2));
    assert_eq!(acting.get("/_matrix/client/v3/account/whoami").await.status, 401);
}

#[tokio::test]
async fn a_token_to_act_for_a_user_ends_with_the_office_of_who_took_it() {
    let world = World::new().await;
    let whoami = "/_matrix/client/v3/account/whoami";
    let act = async |more: Value| {
        let answer = ok(&world.post("v1/users/@alice:hs.test/login", more).await);
        world.server.client.with_token(answer["access_token"].as_str().unwrap())
    };
    // Not for ever.
    let acting = act(json!({})).await;
    assert_eq!(acting.get(whoami).await.status, 200);
    world.server.app.clock.advance(std::time::Duration::from_secs(3_600));
    assert_eq!(acting.get(whoami).await.status, 401);
    let late = world.server.app.clock.now_ms() + 25 * 3_600_000;
    let refused = world.post("v1/users/@alice:hs.test/login", json!({ "valid_until_ms": late })).await;
    assert_eq!(refused.errcode(), "M_INVALID_PARAM");
    // Nor longer than the administrator is one,
    let acting = act(json!({})).await;
    let root = ruma::user_id!("@root:hs.test");
    admin::set_admin(&world.server.app, root, false).await.unwrap();
    assert_eq!(acting.get(whoami).await.errcode(), "M_UNKNOWN_TOKEN");
    admin::set_admin(&world.server.app, root, true).await.unwrap();
    assert_eq!(acting.get(whoami).await.status, 200);
    // or is logged in.
    ok(&world.root.client.post("/_matrix/client/v3/logout/all", json!({})).await);
    assert_eq!(acting.get(whoami).await.errcode(), "M_UNKNOWN_TOKEN");
    assert_eq!(world.alice.client.get(whoami).await.status, 200);
}

#[tokio::test]
async fn a_room_is_emptied_forgotten_and_purged() {
    let world = World::new().await;
    let room_id = world.room(&world.alice).await;
    world.say(&world.alice, &room_id, "hello").await;
    let found = ok(&world.get("v1/rooms?search_term=a%20room").await);
    assert_eq!((&found["total_rooms"], &found["rooms"][0]["room_id"]), (&json!(1), &json!(room_id)));
    assert_eq!(ok(&world.get(&format!("v1/rooms/{room_id}/members")).await)["members"], json!(["@alice:hs.test"]));
    let before = ok(&world.alice.client.get("/_matrix/client/v3/sync").await)["next_batch"].clone();
    let body = json!({ "block": true, "purge": true });
    let delete_id = ok(&world.delete(&format!("v2/rooms/{room_id}"), body).await)["delete_id"].clone();
    jobs::drain(&world.server.app).await.unwrap();
    let status = ok(&world.get(&format!("v2/rooms/delete_status/{}", delete_id.as_str().unwrap())).await);
    assert_eq!(status["status"], "complete", "{status}");
    assert_eq!(status["shutdown_room"]["kicked_users"], json!(["@alice:hs.test"]));
    assert_eq!(world.get(&format!("v1/rooms/{room_id}")).await.status, 404);
    let read = world.server.app.store.snapshot();
    for left in [
        read.count(&schema::HEADS, schema::HEADS.all()).unwrap(),
        read.count(&schema::EVENTS, schema::EVENTS.all()).unwrap(),
        read.count(&schema::EVENT_IDS, schema::EVENT_IDS.all()).unwrap(),
        read.count(&schema::STATE_NODES, schema::STATE_NODES.all()).unwrap(),
    ] {
        assert_eq!(left, 0);
    }
    // A client that was away hears that the room is over, one that begins hears nothing of it.
    let since = format!("/_matrix/client/v3/sync?since={}", before.as_str().unwrap());
    let over = ok(&world.alice.client.get(&since).await)["rooms"]["leave"][&room_id].clone();
    assert_eq!(over["state"]["events"][0]["content"]["membership"], "leave", "{over}");
    let fresh = ok(&world.alice.client.get("/_matrix/client/v3/sync").await);
    assert!(!fresh.to_string().contains(&room_id), "{fresh}");
    world.server.app.clock.advance(std::time::Duration::from_secs(7 * 24 * 3_600));
    jobs::drain(&world.server.app).await.unwrap();
    let read = world.server.app.store.snapshot();
    for left in [
        read.count(&schema::MEMBERSHIPS, schema::MEMBERSHIPS.all()).unwrap(),
        read.count(&schema::CLOSED_ROOMS, schema::CLOSED_ROOMS.all()).unwrap(),
        read.count(&schema::LAST_EVENTS, schema::LAST_EVENTS.all()).unwrap(),
        read.count(&schema::JOBS, schema::JOBS.all()).unwrap(),
    ] {
        assert_eq!(left, 0);
    }
    assert_eq!(ok(&world.get(&format!("v1/rooms/{room_id}/block")).await)["block"], true);
    let sync = world.alice.client.get("/_matrix/client/v3/sync").await;
    assert_eq!(sync.status, 200);
}

#[tokio::test]
async fn a_sliding_sync_hears_that_a_room_is_gone() {
    let world = World::new().await;
    let room_id = world.room(&world.alice).await;
    let lists = json!({ "all": { "ranges": [[0, 9]], "timeline_limit": 1, "required_state": [] } });
    let path = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync";
    let first = ok(&world.alice.client.post(path, json!({ "lists": lists })).await);
    assert!(first["rooms"][&room_id].is_object(), "{first}");
    ok(&world.delete(&format!("v2/rooms/{room_id}"), json!({})).await);
    jobs::drain(&world.server.app).await.unwrap();
    let next = format!("{path}?timeout=0&pos={}", first["pos"].as_str().unwrap());
    let next = ok(&world.alice.client.post(&next, json!({ "lists": lists })).await);
    assert_eq!(next["rooms"][&room_id]["required_state"][0]["content"]["membership"], "leave", "{next}");
}

#[tokio::test]
async fn a_block_of_a_deletion_ends_with_it_and_no_other() {
    let world = World::new().await;
    let blocked = async |room_id: &str| ok(&world.get(&format!("v1/rooms/{room_id}/block")).await)["block"] == true;
    let (plain, meant) = (world.room(&world.alice).await, world.room(&world.alice).await);
    for room_id in [&plain, &meant] {
        ok(&world.delete(&format!("v2/rooms/{room_id}"), json!({ "purge": false })).await);
        assert!(blocked(room_id).await, "nobody comes back meanwhile");
    }
    ok(&world.put(&format!("v1/rooms/{meant}/block"), json!({ "block": true })).await);
    jobs::drain(&world.server.app).await.unwrap();
    assert_eq!((blocked(&plain).await, blocked(&meant).await), (false, true));
}

#[tokio::test]
async fn a_room_of_many_names_is_emptied_to_the_last() {
    let world = World::new().await;
    let room_id = world.room(&world.alice).await;
    // Long names, more of them than are dealt with at once.
    let mut batch = store::Batch::new();
    let nr = schema::room_nr(<&ruma::RoomId>::try_from(room_id.as_str()).unwrap());
    for alias in (0..450).map(|nr| format!("#{nr:x>230}:hs.test")) {
        let row = schema::Alias { room_id: room_id.clone(), creator: "@alice:hs.test".to_owned() };
        batch.put(&schema::ALIASES, &alias, &row);
        batch.put(&schema::ROOM_ALIASES, (nr, &alias), &());
    }
    world.server.app.store.commit(batch).unwrap().durable().await.unwrap();
    let id = ok(&world.delete(&format!("v2/rooms/{room_id}"), json!({})).await)["delete_id"].clone();
    jobs::drain(&world.server.app).await.unwrap();
    let status = ok(&world.get(&format!("v2/rooms/delete_status/{}", id.as_str().unwrap())).await);
    assert_eq!(status["status"], "complete", "{status}");
    let names = status["shutdown_room"]["local_aliases"].as_array().unwrap().len();
    assert!((50..450).contains(&names), "{names}: a result has room for so many");
    let read = world.server.app.store.snapshot();
    assert_eq!(read.count(&schema::ALIASES, schema::ALIASES.all()).unwrap(), 0);
    assert_eq!(read.count(&schema::ROOM_ALIASES, schema::ROOM_ALIASES.all()).unwrap(), 0);
}

#[tokio::test]
async fn who_is_sent_away_finds_the_new_room() {
    let world = World::new().await;
    let room_id = world.room(&world.alice).await;
    let body = json!({ "new_room_user_id": "@root:hs.test", "purge": false });
    ok(&world.delete(&format!("v1/rooms/{room_id}"), body).await);
    jobs::drain(&world.server.app).await.unwrap();
    let rooms = ok(&world.get("v1/users/@alice:hs.test/memberships").await);
    assert_eq!(rooms["memberships"][&room_id], "leave");
    let joined = ok(&world.get("v1/users/@alice:hs.test/joined_rooms").await);
    assert_eq!(joined["total"], 1);
}

#[tokio::test]
async fn nobody_joins_a_blocked_room() {
    let world = World::new().await;
    let room_id = world.room(&world.alice).await;
    ok(&world.put(&format!("v1/rooms/{room_id}/block"), json!({ "block": true })).await);
    let join = format!("/_matrix/client/v3/join/{room_id}");
    assert_eq!(world.root.client.post(&join, json!({})).await.errcode(), "M_FORBIDDEN");
    // Nor by writing the event.
    let member = |user: &str| format!("/_matrix/client/v3/rooms/{room_id}/state/m.room.member/{user}");
    let (join_event, invite) = (json!({ "membership": "join" }), json!({ "membership": "invite" }));
    let root = member("@root:hs.test");
    assert_eq!(world.root.client.put(&root, join_event.clone()).await.errcode(), "M_FORBIDDEN");
    assert_eq!(world.alice.client.put(&root, invite).await.errcode(), "M_FORBIDDEN");
    let made = world.post(&format!("v1/rooms/{room_id}/make_room_admin"), json!({})).await;
    assert_eq!(made.errcode(), "M_FORBIDDEN", "that would invite");
    // Who is there may change what others see of them.
    let named = json!({ "membership": "join", "displayname": "A" });
    ok(&world.alice.client.put(&member("@alice:hs.test"), named).await);
    ok(&world.put(&format!("v1/rooms/{room_id}/block"), json!({ "block": false })).await);
    ok(&world.root.client.post(&join, json!({})).await);
}

#[tokio::test]
async fn a_user_is_put_into_a_room_and_given_power() {
    let world = World::new().await;
    let body = json!({ "preset": "private_chat" });
    let room_id = ok(&world.alice.client.post("/_matrix/client/v3/createRoom", body).await)["room_id"].clone();
    let room_id = room_id.as_str().unwrap();
    ok(&world.post(&format!("v1/join/{room_id}"), json!({ "user_id": "@root:hs.test" })).await);
    ok(&world.post(&format!("v1/rooms/{room_id}/make_room_admin"), json!({})).await);
    let name = format!("/_matrix/client/v3/rooms/{room_id}/state/m.room.name");
    ok(&world.root.client.put(&name, json!({ "name": "Mine" })).await);
}

#[tokio::test]
async fn history_goes_up_to_an_event() {
    let world = World::new().await;
    let room_id = world.room(&world.alice).await;
    let before = ok(&world.alice.client.get("/_matrix/client/v3/sync").await)["next_batch"].clone();
    let mut said = Vec::new();
    let name = format!("/_matrix/client/v3/rooms/{room_id}/state/m.room.name");
    let named = ok(&world.alice.client.put(&name, json!({ "name": "Rude" })).await)["event_id"].clone();
    let redact = format!("/_matrix/client/v3/rooms/{room_id}/redact/{}/r", named.as_str().unwrap());
    let redaction = ok(&world.alice.client.put(&redact, json!({})).await)["event_id"].clone();
    for text in ["one", "two", "three"] {
        said.push(world.say(&world.alice, &room_id, text).await);
    }
    let path = format!("v1/purge_history/{room_id}/{}", said[1]);
    let purge_id = ok(&world.post(&path, json!({ "delete_local_events": true })).await)["purge_id"].clone();
    jobs::drain(&world.server.app).await.unwrap();
    let status = ok(&world.get(&format!("v1/purge_history_status/{}", purge_id.as_str().unwrap())).await);
    assert_eq!((&status["status"], &status["deleted_events"]), (&json!("complete"), &json!(1)));
    let messages = ok(&world.get(&format!("v1/rooms/{room_id}/messages?dir=b&limit=100")).await);
    let ids: Vec<&str> =
        messages["chunk"].as_array().unwrap().iter().map(|e| e["event_id"].as_str().unwrap()).collect();
    assert!(!ids.contains(&said[0].as_str()) && ids.contains(&said[1].as_str()) && ids.contains(&said[2].as_str()));
    let state = format!("/_matrix/client/v3/rooms/{room_id}/state");
    assert_eq!(world.alice.client.get(&state).await.status, 200);
    // State stays, and why it is empty.
    assert!(ids.contains(&named.as_str().unwrap()) && ids.contains(&redaction.as_str().unwrap()));
    // Nobody is told any more of what is gone.
    let since = format!("/_matrix/client/v3/sync?since={}", before.as_str().unwrap());
    let news = ok(&world.alice.client.get(&since).await)["rooms"]["join"][&room_id]["timeline"].to_string();
    assert!(!news.contains(&said[0]) && news.contains(&said[1]), "{news}");
}

#[tokio::test]
async fn who_acts_for_a_user_twice_says_things_twice() {
    let world = World::new().await;
    let room_id = world.room(&world.alice).await;
    let mut sent = Vec::new();
    for _ in 0..2 {
        let token = ok(&world.post("v1/users/@alice:hs.test/login", json!({})).await)["access_token"].clone();
        let acting = world.server.client.with_token(token.as_str().unwrap());
        let path = format!("/_matrix/client/v3/rooms/{room_id}/send/m.room.message/1");
        for _ in 0..2 {
            sent.push(ok(&acting.put(&path, json!({ "body": "news" })).await)["event_id"].clone());
        }
    }
    assert_eq!((&sent[0], &sent[2]), (&sent[1], &sent[3]), "once for each token");
    assert_ne!(sent[1], sent[2]);
}

#[tokio::test]
async fn what_a_user_said_is_redacted() {
    let world = World::new().await;
    let room_id = world.room(&world.alice).await;
    let said = world.say(&world.alice, &room_id, "rude").await;
    let redact_id = ok(&world.post("v1/user/@alice:hs.test/redact", json!({ "rooms": [] })).await)["redact_id"].clone();
    jobs::drain(&world.server.app).await.unwrap();
    let status = ok(&world.get(&format!("v1/user/redact_status/{}", redact_id.as_str().unwrap())).await);
    assert_eq!((&status["status"], &status["redacted"]), (&json!("complete"), &json!(1)), "{status}");
    assert_eq!(ok(&world.get(&format!("v1/fetch_event/{said}")).await)["event"]["content"], json!({}));
}

#[tokio::test]
async fn what_was_redacted_is_counted_where_the_work_goes_on() {
    let world = World::new().await;
    let room_id = world.room(&world.alice).await;
    for n in 0..40 {
        world.say(&world.alice, &room_id, &n.to_string()).await;
    }
    let commits = Arc::new(Mutex::new(0));
    let count = commits.clone();
    ok(&world.post("v1/user/@alice:hs.test/redact", json!({ "rooms": [room_id] })).await);
    world.server.app.store.hub().tap(move |published| *count.lock() += published.len());
    jobs::drain(&world.server.app).await.unwrap();
    // Each event; the looking for who may redact, for two parts; and once for each of three parts (the last one finds no more
    // rooms) what came of it together with what is left.
    assert_eq!(*commits.lock(), 40 + 2 + 3);
}

#[tokio::test]
async fn somebody_who_was_everywhere_is_redacted_everywhere() {
    let world = World::new().await;
    let (mut rooms, mut said) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let room_id = world.room(&world.root).await;
        ok(&world.alice.client.post(&format!("/_matrix/client/v3/join/{room_id}"), json!({})).await);
        said.push(world.say(&world.alice, &room_id, "rude").await);
        rooms.push(room_id);
    }
    // In one room she has no right to take back anything, in another she is no longer.
    let levels = format!("/_matrix/client/v3/rooms/{}/state/m.room.power_levels", rooms[0]);
    let mut muted = ok(&world.root.client.get(&levels).await);
    muted["users"]["@alice:hs.test"] = json!(-1);
    ok(&world.root.client.put(&levels, muted).await);
    ok(&world.alice.client.post(&format!("/_matrix/client/v3/rooms/{}/leave", rooms[1]), json!({})).await);
    // More rooms than a list of them would have room for.
    let mut batch = store::Batch::new();
    for nr in 0..4_000u64 {
        let left = schema::Membership {
            state: schema::MembershipState::Leave,
            event: store::Pos(1),
            joined: None,
            left: None,
            was_joined: false,
            forgotten: false,
        };
        batch.put(&schema::MEMBERSHIPS, ("@alice:hs.test", nr), &left);
    }
    world.server.app.store.commit(batch).unwrap().durable().await.unwrap();
    let id = ok(&world.post("v1/user/@alice:hs.test/redact", json!({ "rooms": [] })).await)["redact_id"].clone();
    jobs::drain(&world.server.app).await.unwrap();
    let status = ok(&world.get(&format!("v1/user/redact_status/{}", id.as_str().unwrap())).await);
    assert_eq!((&status["status"], &status["redacted"]), (&json!("complete"), &json!(3)), "{status}");
    for event_id in said {
        assert_eq!(ok(&world.get(&format!("v1/fetch_event/{event_id}")).await)["event"]["content"], json!({}));
    }
    let named: Vec<String> = (0..500).map(|nr| format!("!{nr}:hs.test")).collect();
    assert_eq!(world.post("v1/user/@alice:hs.test/redact", json!({ "rooms": named })).await.status, 400);
}

#[tokio::test]
async fn registration_tokens_from_the_first_to_the_last() {
    let world = World::new().await;
    let made = ok(&world.post("v1/registration_tokens/new", json!({ "token": "abc", "uses_allowed": 1 })).await);
    let expected = json!({ "token": "abc", "uses_allowed": 1, "pending": 0, "completed": 0, "expiry_time": null });
    assert_eq!(made, expected);
    assert_eq!(world.post("v1/registration_tokens/new", json!({ "token": "abc" })).await.status, 400);
    let changed = ok(&world.put("v1/registration_tokens/abc", json!({ "uses_allowed": null })).await);
    assert_eq!(changed["uses_allowed"], Value::Null);
    assert_eq!(ok(&world.get("v1/registration_tokens?valid=false").await)["registration_tokens"], json!([]));
    ok(&world.delete("v1/registration_tokens/abc", json!({})).await);
    assert_eq!(world.get("v1/registration_tokens/abc").await.status, 404);
}

#[tokio::test]
async fn reports_are_read_and_put_away() {
    let world = World::new().await;
    let room_id = world.room(&world.alice).await;
    let said = world.say(&world.alice, &room_id, "rude").await;
    let path = format!("/_matrix/client/v3/rooms/{room_id}/report/{said}");
    ok(&world.alice.client.post(&path, json!({ "reason": "r" })).await);
    let reports = ok(&world.get("v1/event_reports?from=0&limit=10&dir=b").await);
    let report = &reports["event_reports"][0];
    assert_eq!((&report["sender"], &report["reason"]), (&json!("@alice:hs.test"), &json!("r")));
    let total = async |query: &str| ok(&world.get(&format!("v1/event_reports?{query}")).await)["total"].clone();
    assert_eq!(
        (total("event_sender_user_id=@alice:hs.test").await, total("event_sender_user_id=@bob").await),
        (json!(1), json!(0))
    );
    let one = format!("v1/event_reports/{}", report["id"]);
    assert_eq!(ok(&world.get(&one).await)["event_json"]["content"]["body"], "rude");
    ok(&world.delete(&one, json!({})).await);
    assert_eq!(world.get(&one).await.status, 404);
}

#[tokio::test]
async fn an_upload_is_put_under_lock_and_key_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::with_uploads(dir.path()).await;
    let upload = "/_matrix/media/v3/upload?filename=a.txt";
    let uri = ok(&world.alice.client.send(Method::POST, upload, Body::from("hello")).await)["content_uri"].clone();
    let media_id = uri.as_str().unwrap().rsplit('/').next().unwrap();
    let download = format!("/_matrix/client/v1/media/download/hs.test/{media_id}");
    let listed = ok(&world.get("v1/users/@alice:hs.test/media").await);
    assert_eq!((&listed["total"], &listed["media"][0]["media_length"]), (&json!(1), &json!(5)));
    ok(&world.post(&format!("v1/media/quarantine/hs.test/{media_id}"), json!({})).await);
    assert_eq!(world.alice.client.get(&download).await.errcode(), "M_NOT_FOUND");
    ok(&world.post(&format!("v1/media/unquarantine/hs.test/{media_id}"), json!({})).await);
    assert_eq!(world.alice.client.get(&download).await.status, 200);
    ok(&world.post(&format!("v1/media/protect/{media_id}"), json!({})).await);
    let refused = world.post(&format!("v1/media/quarantine/hs.test/{media_id}"), json!({})).await;
    assert_eq!(refused.errcode(), "M_FORBIDDEN");
    let figures = ok(&world.get("v1/statistics/users/media?order_by=media_length&dir=b").await);
    assert_eq!((&figures["users"][0]["user_id"], &figures["total"]), (&json!("@alice:hs.test"), &json!(1)));
    let later = world.server.app.clock.now_ms() + 1;
    let kept = ok(&world.post(&format!("v1/media/delete?before_ts={later}"), json!({})).await);
    assert_eq!(kept["total"], 0, "what is protected stays");
    let deleted = ok(&world.delete(&format!("v1/media/hs.test/{media_id}"), json!({})).await);
    assert_eq!(deleted, json!({ "deleted_media": [media_id], "total": 1 }));
    assert_eq!(world.alice.client.get(&download).await.errcode(), "M_NOT_FOUND");
}
