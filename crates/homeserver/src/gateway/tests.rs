//! Notifications all the way to a gateway of our own, on loopback.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use ruma::push::{Action, NewPatternedPushRule, NewPushRule, Ruleset};
use serde_json::{Value, json};
use store::{MemoryDisk, Read as _, journal};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;

use super::{FOLLOWER, SAVE_EVERY};
use crate::App;
use crate::schema::{PUSHED, PUSHERS, topic};
use crate::testing::{Server, User, config};
use crate::users::{account_data, push_rules};

/// A push gateway.
struct Gateway {
    url: String,
    /// What it is told, one after the other.
    told: mpsc::UnboundedReceiver<Value>,
    /// Status and body of the next answers; then all is well.
    answers: Arc<Mutex<VecDeque<(u16, Value)>>>,
    /// Each answer waits for one of these.
    turns: Arc<Semaphore>,
}

impl Gateway {
    async fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (tell, told) = mpsc::unbounded_channel();
        let answers: Arc<Mutex<VecDeque<(u16, Value)>>> = Arc::default();
        let shared = answers.clone();
        let turns = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
        let held = turns.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (tell, answers, turns) = (tell.clone(), shared.clone(), held.clone());
                let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    let (tell, answers, turns) = (tell.clone(), answers.clone(), turns.clone());
                    async move {
                        assert_eq!(request.uri().path(), "/_matrix/push/v1/notify");
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        let body: Value = serde_json::from_slice(&body).unwrap();
                        let (status, answer) = answers.lock().pop_front().unwrap_or((200, json!({ "rejected": [] })));
                        let _ = tell.send(body["notification"].clone());
                        turns.acquire().await.unwrap().forget();
                        let answer = Full::new(Bytes::from(answer.to_string()));
                        Ok::<_, Infallible>(http::Response::builder().status(status).body(answer).unwrap())
                    }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Gateway { url, told, answers, turns }
    }

    async fn next(&mut self) -> Value {
        tokio::time::timeout(Duration::from_secs(20), self.told.recv()).await.expect("nothing was told").unwrap()
    }

    /// Nothing more was told up to now.
    fn is_silent(&mut self) -> bool {
        self.told.try_recv().is_err()
    }
}

/// A server that may tell this gateway.
fn server(gateway: &Gateway, disk: MemoryDisk) -> (Server, JoinHandle<()>) {
    let mut config = config();
    config.push.gateways = vec![gateway.url.parse().unwrap()];
    let server = Server::of(App::on_memory_disk(config, disk));
    let follower = tokio::spawn(super::run(server.app.clone()));
    (server, follower)
}

async fn set_pusher(user: &User, gateway: &Gateway, pushkey: &str, more: Value) {
    let mut data = json!({ "url": format!("{}/_matrix/push/v1/notify", gateway.url), "brand": "x" });
    data.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let body = json!({
        "app_id": "org.app", "pushkey": pushkey, "kind": "http", "app_display_name": "App",
        "device_display_name": "Phone", "lang": "en", "data": data,
    });
    let answer = user.client.post("/_matrix/client/v3/pushers/set", body).await;
    assert_eq!(answer.status, 200, "{}", answer.json());
}

/// Waits until everything up to now was looked at and told.
async fn settle(server: &Server) {
    let store = &server.app.store;
    let tip = store.tip();
    let settled = || {
        let cursor = journal::cursor(&store.snapshot(), FOLLOWER).unwrap();
        cursor.is_some_and(|cursor| cursor >= tip) && server.app.tasks.is_empty()
    };
    tokio::time::timeout(Duration::from_secs(20), async {
        while !settled() {
            store.hub().nudge(&topic::pushers());
            server.app.clock.advance(SAVE_EVERY);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .expect("it never comes to rest");
}

/// The next thing that is told while the clock runs, in steps, and how long that took by this clock.
async fn next_by_clock(server: &Server, gateway: &mut Gateway, step: Duration) -> (Value, Duration) {
    let before = server.app.clock.monotonic();
    let told = async {
        loop {
            if let Ok(told) = gateway.told.try_recv() {
                return told;
            }
            server.app.clock.advance(step);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let told = tokio::time::timeout(Duration::from_secs(20), told).await.expect("nothing was told");
    (told, server.app.clock.monotonic() - before)
}

async fn room(owner: &User, others: &[&User]) -> String {
    let body = json!({ "preset": "public_chat", "name": "Tea" });
    let answer = owner.client.post("/_matrix/client/v3/createRoom", body).await.json();
    let room = answer["room_id"].as_str().unwrap().to_owned();
    for user in others {
        let answer = user.client.post(&format!("/_matrix/client/v3/join/{room}"), json!({})).await;
        assert_eq!(answer.status, 200);
    }
    room
}

/// Two people in a room.
struct Two {
    server: Server,
    alice: User,
    bob: User,
    room: String,
}

/// Bob has a pusher with this key, and nothing was said yet.
async fn two(gateway: &Gateway, pushkey: &str) -> Two {
    let (server, _follower) = server(gateway, MemoryDisk::new());
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = room(&alice, &[&bob]).await;
    set_pusher(&bob, gateway, pushkey, json!({})).await;
    settle(&server).await;
    Two { server, alice, bob, room }
}

async fn say(user: &User, room: &str, content: Value) -> String {
    static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let txn = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let path = format!("/_matrix/client/v3/rooms/{room}/send/m.room.message/t{txn}");
    let answer = user.client.put(&path, content).await;
    assert_eq!(answer.status, 200, "{}", answer.json());
    answer.json()["event_id"].as_str().unwrap().to_owned()
}

fn text(body: &str) -> Value {
    json!({ "msgtype": "m.text", "body": body })
}

async fn read(user: &User, room: &str, event_id: &str) {
    let path = format!("/_matrix/client/v3/rooms/{room}/receipt/m.read/{event_id}");
    assert_eq!(user.client.post(&path, json!({})).await.status, 200);
}

#[tokio::test]
async fn pitfall_073_a_notification_says_what_a_phone_shows() {
    let mut gateway = Gateway::open().await;
    let (server, _follower) = server(&gateway, MemoryDisk::new());
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let profile = format!("/_matrix/client/v3/profile/{}/displayname", alice.user_id);
    assert_eq!(alice.client.put(&profile, json!({ "displayname": "Alice A." })).await.status, 200);
    let room = room(&alice, &[&bob]).await;
    set_pusher(&bob, &gateway, "key", json!({ "default_payload": { "aps": 1 } })).await;
    settle(&server).await;
    let first = say(&alice, &room, text("one")).await;
    let told = gateway.next().await;
    let device = json!({
        "app_id": "org.app", "pushkey": "key", "pushkey_ts": told["devices"][0]["pushkey_ts"],
        "data": { "brand": "x", "default_payload": { "aps": 1 } }, "tweaks": { "sound": "default" },
    });
    let expected = json!({
        "event_id": first, "room_id": room, "type": "m.room.message", "sender": alice.user_id,
        "sender_display_name": "Alice A.", "room_name": "Tea", "prio": "high", "content": text("one"),
        "counts": { "unread": 1 }, "devices": [device],
    });
    assert_eq!(told, expected);
    let second =
        say(&alice, &room, json!({ "msgtype": "m.text", "body": "x", "m.mentions": { "user_ids": [bob.user_id] } }))
            .await;
    let told = gateway.next().await;
    assert_eq!((&told["event_id"], &told["counts"]["unread"]), (&json!(second), &json!(2)));
    assert_eq!(told["devices"][0]["tweaks"], json!({ "sound": "default", "highlight": true }));
    // What bob writes himself, and notices, are no news; that he has read is.
    say(&alice, &room, json!({ "msgtype": "m.notice", "body": "n" })).await;
    read(&bob, &room, &second).await;
    let told = gateway.next().await;
    assert_eq!(told["counts"], json!({ "unread": 0 }));
    assert_eq!((told.get("event_id"), told.get("room_id")), (None, None));
    settle(&server).await;
    assert!(gateway.is_silent());
}

#[tokio::test]
async fn pitfall_073_an_app_that_fetches_itself_gets_ids_only() {
    let mut gateway = Gateway::open().await;
    let (server, _follower) = server(&gateway, MemoryDisk::new());
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    set_pusher(&bob, &gateway, "key", json!({ "format": "event_id_only" })).await;
    settle(&server).await;
    let room = room(&alice, &[]).await;
    let invite = json!({ "user_id": bob.user_id });
    alice.client.post(&format!("/_matrix/client/v3/rooms/{room}/invite"), invite).await;
    let told = gateway.next().await;
    let mut keys: Vec<&String> = told.as_object().unwrap().keys().collect();
    keys.sort();
    assert_eq!(keys, ["counts", "devices", "event_id", "prio", "room_id"]);
    assert_eq!(told["devices"][0].get("tweaks"), None);
    assert_eq!(told["devices"][0]["data"], json!({ "brand": "x", "format": "event_id_only" }));
    bob.client.post(&format!("/_matrix/client/v3/join/{room}"), json!({})).await;
    let said = say(&alice, &room, text("one")).await;
    assert_eq!(gateway.next().await["event_id"], said);
}

#[tokio::test]
async fn pitfall_037_who_is_ignored_notifies_nobody() {
    let mut gateway = Gateway::open().await;
    let (server, _follower) = server(&gateway, MemoryDisk::new());
    let (alice, bob, eve) = (server.user("alice").await, server.user("bob").await, server.user("eve").await);
    let room = room(&alice, &[&bob, &eve]).await;
    set_pusher(&bob, &gateway, "key", json!({})).await;
    let path = format!("/_matrix/client/v3/user/{}/account_data/m.ignored_user_list", bob.user_id);
    bob.client.put(&path, json!({ "ignored_users": { eve.user_id.clone(): {} } })).await;
    settle(&server).await;
    say(&eve, &room, text("spam")).await;
    let other = eve.client.post("/_matrix/client/v3/createRoom", json!({ "invite": [bob.user_id] })).await;
    assert_eq!(other.status, 200);
    let said = say(&alice, &room, text("hello")).await;
    assert_eq!(gateway.next().await["event_id"], said);
    // Rules that changed count at once.
    let path = "/_matrix/client/v3/pushrules/global/override/.m.rule.master/enabled";
    assert_eq!(bob.client.put(path, json!({ "enabled": true })).await.status, 200);
    settle(&server).await;
    say(&alice, &room, text("quiet")).await;
    settle(&server).await;
    while let Ok(told) = gateway.told.try_recv() {
        assert_eq!(told.get("event_id"), None, "{told}");
    }
}

#[tokio::test]
async fn pitfall_073_a_gateway_that_fails_is_asked_again_in_order_and_later_and_later() {
    let mut gateway = Gateway::open().await;
    let Two { server, alice, room, .. } = two(&gateway, "key").await;
    gateway.answers.lock().extend([(503, json!({})), (302, json!({})), (500, json!({}))]);
    let first = say(&alice, &room, text("one")).await;
    let second = say(&alice, &room, text("two")).await;
    assert_eq!(gateway.next().await["event_id"], first);
    for pause in [1, 2, 4] {
        let (told, waited) = next_by_clock(&server, &mut gateway, Duration::from_millis(50)).await;
        assert_eq!(told["event_id"], first);
        assert!(waited >= Duration::from_secs(pause), "{waited:?}");
    }
    assert_eq!(gateway.next().await["event_id"], second);
    // One that is not taken is not sent again.
    gateway.answers.lock().push_back((400, json!({})));
    let third = say(&alice, &room, text("three")).await;
    let fourth = say(&alice, &room, text("four")).await;
    assert_eq!(gateway.next().await["event_id"], third);
    assert_eq!(gateway.next().await["event_id"], fourth);
}

#[tokio::test]
async fn a_gateway_that_is_silent_for_a_day_is_given_up_and_what_comes_then_is_not() {
    let mut gateway = Gateway::open().await;
    let Two { server, alice, room, .. } = two(&gateway, "key").await;
    gateway.answers.lock().extend(std::iter::repeat_n((503, json!({})), 100));
    let first = say(&alice, &room, text("one")).await;
    assert_eq!(gateway.next().await["event_id"], first);
    let (mut told, mut waited, mut second) = (Value::Null, Duration::ZERO, None);
    while second.as_ref().is_none_or(|second| told["event_id"] != *second) {
        if second.is_none() && waited > Duration::from_secs(12 * 60 * 60) {
            second = Some(say(&alice, &room, text("two")).await);
        }
        let (next, took) = next_by_clock(&server, &mut gateway, Duration::from_secs(60)).await;
        (told, waited) = (next, waited + took);
    }
    assert!(waited >= Duration::from_secs(24 * 60 * 60), "{waited:?}");
    assert!(gateway.answers.lock().len() > 50, "it is not asked all the time");
}

#[tokio::test]
async fn pitfall_073_a_rejected_pushkey_is_the_end_of_its_pusher() {
    let mut gateway = Gateway::open().await;
    let Two { server, alice, room, .. } = two(&gateway, "dead").await;
    gateway.answers.lock().push_back((200, json!({ "rejected": ["other", "dead"] })));
    say(&alice, &room, text("one")).await;
    gateway.next().await;
    settle(&server).await;
    assert_eq!(server.app.store.snapshot().count(&PUSHERS, PUSHERS.all()).unwrap(), 0);
    say(&alice, &room, text("two")).await;
    settle(&server).await;
    assert!(gateway.is_silent());
}

#[tokio::test]
async fn a_pusher_that_is_set_anew_while_its_gateway_rejects_it_lives_on() {
    let mut gateway = Gateway::open().await;
    let Two { server, alice, bob, room } = two(&gateway, "key").await;
    gateway.answers.lock().push_back((200, json!({ "rejected": ["key"] })));
    gateway.turns.forget_permits(usize::MAX);
    let first = say(&alice, &room, text("one")).await;
    assert_eq!(gateway.next().await["event_id"], first);
    set_pusher(&bob, &gateway, "key", json!({ "brand": "new" })).await;
    gateway.turns.add_permits(1_000);
    let (told, _) = next_by_clock(&server, &mut gateway, Duration::from_millis(50)).await;
    assert_eq!((&told["event_id"], &told["devices"][0]["data"]["brand"]), (&json!(first), &json!("new")));
    let second = say(&alice, &room, text("two")).await;
    assert_eq!(gateway.next().await["event_id"], second);
    settle(&server).await;
    assert_eq!(server.app.store.snapshot().count(&PUSHERS, PUSHERS.all()).unwrap(), 1);
}

#[tokio::test]
async fn pitfall_072_rules_of_one_stop_nobody_else_from_being_told() {
    let mut gateway = Gateway::open().await;
    let (server, follower) = server(&gateway, MemoryDisk::new());
    let (alice, bob, eve) = (server.user("alice").await, server.user("bob").await, server.user("eve").await);
    let room = room(&alice, &[&eve, &bob]).await;
    // Kept by a server that did not look at what is in there.
    let eve_id = <&ruma::UserId>::try_from(eve.user_id.as_str()).unwrap();
    let pattern = "a".to_owned() + &"?".repeat(400_000);
    let rule = NewPatternedPushRule::new("evil".to_owned(), pattern, vec![Action::Notify]);
    let mut rules = Ruleset::server_default(eve_id);
    rules.insert(NewPushRule::Content(rule), None, None).unwrap();
    server.app.store.transact(|tx| push_rules::put(tx, eve_id, rules.clone())).await.unwrap();
    set_pusher(&eve, &gateway, "eve", json!({})).await;
    set_pusher(&bob, &gateway, "bob", json!({})).await;
    settle(&server).await;
    for body in ["a".repeat(1_000), "again".to_owned()] {
        let said = say(&alice, &room, text(&body)).await;
        for _ in 0..2 {
            assert_eq!(gateway.next().await["event_id"], said);
        }
        let nonsense = bytes::Bytes::from_static(b"{\"global\": 5}");
        let put = |tx: &mut store::Tx| account_data::put(tx, eve_id, "", push_rules::KIND, nonsense.clone());
        server.app.store.transact(put).await.unwrap();
        settle(&server).await;
    }
    assert!(!follower.is_finished());
}

#[tokio::test]
async fn pitfall_011_a_session_that_ended_is_told_nothing_more() {
    let mut gateway = Gateway::open().await;
    let (server, _follower) = server(&gateway, MemoryDisk::new());
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let phone = server.log_in("bob").await;
    let room = room(&alice, &[&bob]).await;
    set_pusher(&bob, &gateway, "stays", json!({})).await;
    set_pusher(&phone, &gateway, "goes", json!({})).await;
    settle(&server).await;
    say(&alice, &room, text("one")).await;
    let mut keys = [gateway.next().await, gateway.next().await].map(|told| told["devices"][0]["pushkey"].to_string());
    keys.sort();
    assert_eq!(keys, ["\"goes\"", "\"stays\""]);
    assert_eq!(phone.client.post("/_matrix/client/v3/logout", json!({})).await.status, 200);
    settle(&server).await;
    let second = say(&alice, &room, text("two")).await;
    settle(&server).await;
    let told = gateway.next().await;
    assert_eq!((&told["event_id"], &told["devices"][0]["pushkey"]), (&json!(second), &json!("stays")));
    assert!(gateway.is_silent());
}

#[tokio::test]
async fn what_was_not_told_when_the_server_stopped_is_told_after_its_start_and_nothing_else() {
    let mut gateway = Gateway::open().await;
    let disk = MemoryDisk::new();
    let (first, second, room, bob);
    {
        let (server, follower) = server(&gateway, disk.clone());
        let alice = server.user("alice").await;
        bob = server.user("bob").await;
        room = self::room(&alice, &[&bob]).await;
        set_pusher(&bob, &gateway, "key", json!({})).await;
        settle(&server).await;
        first = say(&alice, &room, text("one")).await;
        assert_eq!(gateway.next().await["event_id"], first);
        settle(&server).await;
        gateway.answers.lock().push_back((503, json!({})));
        second = say(&alice, &room, text("two")).await;
        assert_eq!(gateway.next().await["event_id"], second);
        server.app.shutdown.cancel();
        follower.await.unwrap();
        server.app.tasks.close();
        server.app.tasks.wait().await;
        assert_eq!(server.app.store.snapshot().count(&PUSHED, PUSHED.all()).unwrap(), 1);
    }
    let (server, _follower) = server(&gateway, disk);
    assert_eq!(gateway.next().await["event_id"], second);
    settle(&server).await;
    assert!(gateway.is_silent());
}

#[tokio::test]
async fn without_gateways_in_the_settings_nothing_leaves() {
    let mut gateway = Gateway::open().await;
    let server = Server::default();
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = room(&alice, &[&bob]).await;
    set_pusher(&bob, &gateway, "key", json!({})).await;
    // It has nothing to do, and says so.
    super::run(server.app.clone()).await;
    say(&alice, &room, text("one")).await;
    assert!(server.app.tasks.is_empty() && gateway.is_silent());
    assert!(store::journal::cursors(&server.app.store.snapshot()).unwrap().is_empty());
}
