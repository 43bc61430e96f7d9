//! Positions, retries, waiting, and several connections of one device.

use store::{MemoryDisk, Store};

use super::*;
use crate::clock::Clock;
use crate::rng::Rng;
use crate::testing::config;
use crate::{App, signing};

#[tokio::test]
async fn pitfall_040_retries_with_another_body_start_from_what_the_client_has() {
    let server = Server::default();
    let alice = server.user("alice").await;
    let room = public_room(&alice).await;
    let mut connection = Connection::list(&alice, 1, json!([]));
    connection.sync().await;
    let event = say(&alice, &room, "one").await;
    // The answer is lost, twice; once the client asks for something else.
    assert_eq!(ids(&only(&connection.peek().await, &room)["timeline"]), std::slice::from_ref(&event));
    let mut other = connection.clone();
    other.body["lists"]["all"]["required_state"] = json!([["m.room.create", ""]]);
    let answer = other.peek().await;
    assert_eq!(ids(&only(&answer, &room)["timeline"]), std::slice::from_ref(&event));
    assert_eq!(keys(&only(&answer, &room)["required_state"]), [key("m.room.create", "")]);
    assert_eq!(ids(&only(&connection.sync().await, &room)["timeline"]), [event]);
    nothing(&connection.sync().await);
}

#[tokio::test]
async fn pitfall_040_unknown_positions_are_refused() {
    let server = Server::default();
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let mut connection = Connection::list(&alice, 1, json!([]));
    connection.sync().await;
    let refused = |answer: Answer| (answer.status.as_u16(), answer.errcode());
    let unknown = || (400, "M_UNKNOWN_POS".to_owned());
    for pos in ["x", "0", "c1_00000000.1", "s1_00000000.1", "c99999999_ffffffff.99"] {
        let other = Connection { pos: Some(pos.to_owned()), ..connection.clone() };
        assert_eq!(refused(other.ask(0).await), unknown(), "{pos}");
    }
    // Of another user, of another device, of another connection.
    let foreign = Connection { user: &bob, ..connection.clone() };
    assert_eq!(refused(foreign.ask(0).await), unknown());
    let device = server.log_in("alice").await;
    let foreign = Connection { user: &device, ..connection.clone() };
    assert_eq!(refused(foreign.ask(0).await), unknown());
    let mut foreign = connection.clone();
    foreign.body["conn_id"] = json!("other");
    assert_eq!(refused(foreign.ask(0).await), unknown());
    // Who begins anew cannot go back; who came back with a position cannot go behind it.
    let old = connection.clone();
    say(&alice, &public_room(&alice).await, "x").await;
    connection.sync().await;
    connection.sync().await;
    assert_eq!(refused(old.ask(0).await), unknown());
    let mut anew = Connection { pos: None, ..connection.clone() };
    anew.sync().await;
    assert_eq!(refused(connection.ask(0).await), unknown());
    assert_eq!(anew.ask(0).await.status, 200);
}

#[tokio::test]
async fn pitfall_044_connections_wait_side_by_side() {
    let server = Server::default();
    let alice = server.user("alice").await;
    let room = public_room(&alice).await;
    let mut list = Connection::list(&alice, 1, json!([]));
    list.sync().await;
    let mut bare = Connection::new(&alice, json!({"extensions": {"account_data": {"enabled": true}}}));
    bare.sync().await;
    let (mut waiting, mut other) = (list.clone(), bare.clone());
    let (answer, bare_answer, _) = tokio::join!(waiting.wait(30_000), other.wait(30_000), async {
        tokio::task::yield_now().await;
        say(&alice, &room, "hello").await;
        tokio::task::yield_now().await;
        let data = json!({"a": 1});
        let at = format!("/_matrix/client/v3/user/{}/account_data/m.test", enc(&alice.user_id));
        ok(&alice.client.put(&at, data).await);
    });
    only(&answer, &room);
    assert_eq!(bare_answer["rooms"], json!({}));
    assert_eq!(bare_answer["extensions"]["account_data"]["global"][0]["content"], json!({"a": 1}));
}

/// A connection for what concerns the device.
fn encryption(user: &User) -> Connection<'_> {
    Connection::new(user, json!({"extensions": {"to_device": {"enabled": true}, "e2ee": {"enabled": true}}}))
}

/// The client has the messages of an answer.
fn acknowledge(connection: &mut Connection<'_>, answer: &Value) {
    connection.body["extensions"]["to_device"]["since"] = answer["extensions"]["to_device"]["next_batch"].clone();
}

async fn message(from: &User, to: &User, body: &str) {
    let content = json!({"messages": { &to.user_id: { &to.device_id: { "body": body } } }});
    ok(&from.client.put(&format!("/_matrix/client/v3/sendToDevice/m.test/{}", next()), content).await);
}

fn messages(answer: &Value) -> Vec<&str> {
    let events = answer["extensions"]["to_device"]["events"].as_array().unwrap();
    events.iter().map(|event| event["content"]["body"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn pitfall_030_messages_come_until_the_device_has_them() {
    let server = Server::default();
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let mut connection = encryption(&alice);
    let answer = connection.sync().await;
    assert_eq!(messages(&answer), [""; 0]);
    acknowledge(&mut connection, &answer);
    for body in ["one", "two", "three"] {
        message(&bob, &alice, body).await;
    }
    // Whatever becomes of the position: without the word of the device nothing is taken as read.
    connection.body["extensions"]["to_device"]["limit"] = json!(2);
    for _ in 0..2 {
        assert_eq!(messages(&connection.sync().await), ["one", "two"]);
    }
    let answer = connection.sync().await;
    assert_eq!(answer["extensions"]["to_device"]["events"][0]["sender"], bob.user_id.as_str());
    acknowledge(&mut connection, &answer);
    let answer = connection.sync().await;
    assert_eq!(messages(&answer), ["three"]);
    acknowledge(&mut connection, &answer);
    assert_eq!(messages(&connection.sync().await), [""; 0]);
    // They are gone, also for who begins anew.
    assert_eq!(messages(&encryption(&alice).sync().await), [""; 0]);
    connection.body["extensions"]["to_device"]["since"] = json!("nonsense");
    assert_eq!(connection.ask(0).await.status, 400);
}

#[tokio::test]
async fn pitfall_032_every_answer_has_the_counts_of_keys() {
    let server = Server::default();
    let alice = server.user("alice").await;
    let mut connection = encryption(&alice);
    for _ in 0..2 {
        let answer = connection.sync().await;
        let e2ee = &answer["extensions"]["e2ee"];
        assert_eq!(e2ee["device_one_time_keys_count"], json!({"signed_curve25519": 0}));
        assert_eq!(e2ee["device_unused_fallback_key_types"], json!([]));
        acknowledge(&mut connection, &answer);
    }
}

#[tokio::test]
async fn pitfall_044_a_message_wakes_the_connection_that_wants_it() {
    let server = Server::default();
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = public_room(&alice).await;
    let mut list = Connection::list(&alice, 1, json!([]));
    list.sync().await;
    let mut encryption = encryption(&alice);
    let answer = encryption.sync().await;
    acknowledge(&mut encryption, &answer);
    let (before, bob, room) = (list.pos.clone(), &bob, &room);
    let (answer, list_answer, ()) = tokio::join!(encryption.wait(30_000), list.wait(30_000), async {
        tokio::task::yield_now().await;
        message(bob, &alice, "hello").await;
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        // Only this is for the list.
        say(&alice, room, "x").await;
    });
    assert_eq!(messages(&answer), ["hello"]);
    assert_ne!(list.pos, before);
    assert_eq!(only(&list_answer, room)["timeline"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn pitfall_033_changed_devices_are_told() {
    let server = Server::default();
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let state = json!([{"type": "m.room.encryption", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}]);
    let room = create(&alice, json!({"preset": "public_chat", "initial_state": state})).await;
    let mut connection = encryption(&alice);
    let lists = async |connection: &mut Connection<'_>| {
        let answer = connection.sync().await;
        acknowledge(connection, &answer);
        answer["extensions"]["e2ee"]["device_lists"].clone()
    };
    assert_eq!(lists(&mut connection).await, json!({"changed": [], "left": []}));
    join(&bob, &room).await;
    assert_eq!(lists(&mut connection).await["changed"], json!([bob.user_id]));
    server.log_in("bob").await;
    let device = server.log_in("bob").await;
    ok(&device.client.post("/_matrix/client/v3/logout", json!({})).await);
    act(&bob, &room, "leave", json!({})).await;
    assert_eq!(lists(&mut connection).await["left"], json!([bob.user_id]));
    assert_eq!(lists(&mut connection).await, json!({"changed": [], "left": []}));
}

#[tokio::test]
async fn an_empty_poll_says_how_many_rooms_there_are_and_stays() {
    let server = Server::default();
    let alice = server.user("alice").await;
    let mut connection = Connection::list(&alice, 1, json!([]));
    connection.body["txn_id"] = json!("t");
    for _ in 0..3 {
        public_room(&alice).await;
    }
    assert_eq!(connection.sync().await["lists"]["all"]["count"], 3);
    let before = connection.pos.clone();
    let answer = connection.sync().await;
    nothing(&answer);
    assert_eq!((&answer["lists"]["all"]["count"], &answer["txn_id"]), (&json!(3), &json!("t")));
    assert_eq!(connection.pos, before);
}

#[tokio::test]
async fn an_empty_poll_stays_also_if_the_client_does_not_say_which_messages_it_has() {
    let server = Server::default();
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    public_room(&alice).await;
    let mut connection = encryption(&alice);
    connection.sync().await;
    connection.sync().await;
    let before = connection.pos.clone();
    assert!(messages(&connection.sync().await).is_empty());
    assert_eq!(connection.pos, before);
    message(&bob, &alice, "hello").await;
    let answer = connection.sync().await;
    assert_eq!(messages(&answer), ["hello"]);
    assert_eq!(messages(&connection.sync().await), ["hello"], "it was not acknowledged");
    acknowledge(&mut connection, &answer);
    assert!(messages(&connection.sync().await).is_empty());
    connection.body["extensions"]["to_device"].as_object_mut().unwrap().remove("since");
    connection.sync().await;
    let before = connection.pos.clone();
    assert!(messages(&connection.sync().await).is_empty());
    assert_eq!(connection.pos, before);
}

#[tokio::test]
async fn what_lists_are_about_is_followed_while_others_type() {
    let server = Server::default();
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let rooms = [public_room(&alice).await, public_room(&alice).await];
    let elsewhere = public_room(&bob).await;
    let typing = format!("typing/{}", enc(&bob.user_id));
    let mut list = Connection::list(&alice, 1, json!([]));
    list.body["lists"]["tagged"] =
        json!({"ranges": [[0, 9]], "timeline_limit": 1, "filters": {"tags": ["m.favourite"]}});
    list.body["lists"]["direct"] = json!({"ranges": [[0, 9]], "timeline_limit": 1, "filters": {"is_dm": true}});
    list.body["lists"]["open"] = json!({"ranges": [[0, 9]], "timeline_limit": 1, "filters": {"is_encrypted": false}});
    let account = |kind: &str| format!("/_matrix/client/v3/user/{}/account_data/{kind}", enc(&alice.user_id));
    let tag = format!("/_matrix/client/v3/user/{}/rooms/{}/tags/m.favourite", enc(&alice.user_id), enc(&rooms[0]));
    list.sync().await;
    for step in 0..6 {
        match step {
            1 => _ = ok(&alice.client.put(&tag, json!({})).await),
            2 => _ = ok(&alice.client.put(&account("m.direct"), json!({ (bob.user_id.clone()): rooms })).await),
            3 => {
                set(&alice, &rooms[1], "m.room.encryption", "", json!({"algorithm": "m.megolm.v1.aes-sha2"})).await;
            }
            4 => act(&alice, &rooms[1], "leave", json!({})).await,
            5 => _ = public_room(&alice).await,
            _ => {}
        }
        // Something that is not stored happens, of which the client hears nothing.
        let now = step % 2 == 0;
        ok(&bob.client.put(&path(&elsewhere, &typing), json!({"typing": now, "timeout": 30_000})).await);
        let answer = list.sync().await;
        let count = |name: &str| answer["lists"][name]["count"].as_u64().unwrap();
        let counts = ["all", "tagged", "direct", "open"].map(count);
        let expected = [[2, 0, 0, 2], [2, 1, 0, 2], [2, 1, 2, 2], [2, 1, 2, 1], [1, 1, 1, 1], [2, 1, 1, 2]][step];
        assert_eq!(counts, expected, "{step}");
    }
}

#[tokio::test]
async fn an_empty_poll_costs_the_same_in_any_number_of_rooms() {
    let disk = MemoryDisk::new();
    let rng = Rng::seeded(1);
    let key = signing::generate(&rng).unwrap().key_pair().unwrap();
    let store = Store::open(disk.clone()).unwrap();
    let server = Server::of(App::new(config(), store, key, Clock::manual(1), rng));
    let alice = server.user("alice").await;
    let all = json!({"enabled": true});
    let mut reads = Vec::new();
    for rooms in [1, 40] {
        for _ in 0..rooms {
            public_room(&alice).await;
        }
        let mut connection = Connection::list(&alice, 1, json!([LAZY]));
        connection.body["extensions"] =
            json!({"typing": all, "receipts": all, "account_data": all, "to_device": all, "e2ee": all});
        let answer = connection.sync().await;
        acknowledge(&mut connection, &answer);
        connection.sync().await;
        let before = disk.read_rounds();
        assert_eq!(connection.sync().await["rooms"], json!({}));
        reads.push(disk.read_rounds() - before);
    }
    assert_eq!(reads[0], reads[1]);
    assert!(reads[0] < 10, "{reads:?}");
}

#[tokio::test]
async fn versions_say_that_it_is_there() {
    let server = Server::default();
    let versions = ok(&server.client.get("/_matrix/client/versions").await);
    assert_eq!(versions["unstable_features"]["org.matrix.simplified_msc3575"], true);
}

/// So many different texts.
fn texts(count: usize) -> Vec<String> {
    (0..count).map(|nr| format!("t{nr}")).collect()
}

/// Requests in which everything that can be long has so many entries, in the early dialect and in the merged one.
fn long(count: usize) -> (Vec<Value>, Vec<Value>) {
    let pairs: Vec<Value> = texts(count).iter().map(|text| json!([text, ""])).collect();
    let elements: Vec<Value> = texts(count).iter().map(|text| json!({"type": text})).collect();
    let rooms: Vec<String> = texts(count).iter().map(|text| format!("!{text}:hs.test")).collect();
    let early = json!({"ranges": [[0, 9]], "timeline_limit": 1, "required_state": []});
    let merged = json!({"timeline_limit": 1, "required_state": {}});
    let with = |list: &Value, name: &str, value: Value| {
        let mut list = list.clone();
        list[name] = value;
        json!({"lists": {"a": list}})
    };
    let mut bodies = (Vec::new(), Vec::new());
    for name in ["tags", "not_tags", "room_types", "not_room_types"] {
        bodies.0.push(with(&early, "filters", json!({name: texts(count)})));
        bodies.1.push(with(&merged, "filters", json!({name: texts(count)})));
    }
    bodies.0.push(with(&early, "filters", json!({"spaces": rooms})));
    bodies.1.push(with(&merged, "filters", json!({"spaces": rooms})));
    bodies.0.push(with(&early, "ranges", json!(vec![[0, 1]; count])));
    bodies.0.push(with(&early, "required_state", json!(pairs)));
    bodies.0.push(json!({"room_subscriptions": {"!r:hs.test": {"timeline_limit": 1, "required_state": pairs}}}));
    for name in ["include", "exclude"] {
        bodies.1.push(with(&merged, "required_state", json!({name: elements})));
        let room = json!({"timeline_limit": 1, "required_state": {name: elements}});
        bodies.1.push(json!({"room_subscriptions": {"!r:hs.test": room}}));
    }
    bodies
}

#[tokio::test]
async fn pitfall_040_no_request_asks_for_more_than_clients_have_use_for() {
    let server = Server::default();
    let alice = server.user("alice").await;
    for (count, expected) in [(200, (200, "")), (201, (400, "M_INVALID_PARAM"))] {
        let (early, merged) = long(count);
        for (dialect, bodies) in [(EARLY, early), ("/_matrix/client/v4/sync", merged)] {
            for body in bodies {
                let answer = alice.client.post(dialect, body.clone()).await;
                assert_eq!((answer.status.as_u16(), answer.errcode().as_str()), expected, "{dialect} {body}");
            }
        }
    }
}

#[tokio::test]
async fn pitfall_040_wishes_that_would_multiply_are_refused() {
    let server = Server::default();
    let alice = server.user("alice").await;
    let list = |nr: usize, pairs: usize| {
        let pairs: Vec<Value> = texts(pairs).iter().map(|text| json!([format!("{nr} {text}"), ""])).collect();
        json!({"ranges": [[0, 9]], "timeline_limit": 1, "required_state": pairs})
    };
    let lists = |count: usize, different: usize| {
        let lists = (0..count).map(|nr| (nr.to_string(), list(nr % different, 20)));
        json!({"lists": lists.collect::<serde_json::Map<_, _>>()})
    };
    let status = async |body: Value| alice.client.post(EARLY, body).await.status.as_u16();
    assert_eq!(status(lists(6, 6)).await, 200);
    assert_eq!(status(lists(50, 3)).await, 200, "lists that want the same do not add up");
    assert_eq!(status(lists(12, 12)).await, 400);
    // Hundreds of rooms that are looked at in the same way are fine.
    let rooms = (0..400).map(|nr| (format!("!{nr}:hs.test"), list(0, 10)));
    assert_eq!(status(json!({"room_subscriptions": rooms.collect::<serde_json::Map<_, _>>()})).await, 200);
}

#[tokio::test]
async fn pitfall_040_what_is_asked_for_is_not_large() {
    let server = Server::default();
    let alice = server.user("alice").await;
    for path in [EARLY, "/_matrix/client/v4/sync"] {
        let answer = alice.client.post(path, json!({"org.example.more": "x".repeat(250 * 1024)})).await;
        assert_eq!(answer.status, 200, "{path}");
        let answer = alice.client.post(path, json!({"org.example.more": "x".repeat(256 * 1024)})).await;
        assert_eq!((answer.status.as_u16(), answer.errcode().as_str()), (413, "M_TOO_LARGE"), "{path}");
    }
}

#[tokio::test]
async fn pitfall_040_a_device_has_some_connections_and_the_one_used_last_the_longest_time_ago_makes_room() {
    let server = Server::default();
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let mut all: Vec<Connection<'_>> = (0..16).map(|_| Connection::list(&alice, 1, json!([]))).collect();
    for connection in &mut all {
        connection.sync().await;
    }
    all[0].sync().await;
    Connection::list(&alice, 1, json!([])).sync().await;
    Connection::list(&bob, 1, json!([])).sync().await;
    for (nr, connection) in all.iter().enumerate() {
        let answer = connection.ask(0).await;
        let expected = if nr == 1 { (400, "M_UNKNOWN_POS") } else { (200, "") };
        assert_eq!((answer.status.as_u16(), answer.errcode().as_str()), expected, "{nr}");
    }
}

#[tokio::test]
async fn requests_that_make_no_sense_are_refused() {
    let server = Server::default();
    let alice = server.user("alice").await;
    for body in [
        json!({"lists": {"a": {"ranges": [[2, 1]], "timeline_limit": 1, "required_state": []}}}),
        json!({"lists": {"a": {"ranges": "x"}}}),
        json!({"lists": []}),
    ] {
        let answer = Connection::new(&alice, body.clone()).ask(0).await;
        assert_eq!(answer.status, 400, "{body}");
    }
    let many: serde_json::Map<String, Value> = (0..101).map(|n| (n.to_string(), json!({"ranges": []}))).collect();
    assert_eq!(Connection::new(&alice, json!({"lists": many})).ask(0).await.status, 400);
}
