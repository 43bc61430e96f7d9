//! Traps of the specification in `/sync`, one test each.

use ::rooms::event::content_field;
use serde_json::value::RawValue;
use store::{Pos, Read as _};

use super::*;
use crate::App;
use crate::clock::Clock;
use crate::http::Local;
use crate::rng::Rng;
use crate::schema::{self, room_nr};
use crate::sync::token;

fn lazy(limit: u32) -> Value {
    json!({"room": {"timeline": {"limit": limit}, "state": {"lazy_load_members": true}}})
}

#[tokio::test]
async fn pitfall_002_the_transaction_id_comes_back_to_its_device_only() {
    let world = World::new();
    let alice = world.user("alice").await;
    let other = world.server.log_in("alice").await;
    let room = world.public(&alice).await;
    world.say(&alice, &room, "hello").await;
    let last = |answer: &Value| joined(answer, &room)["timeline"]["events"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(last(&Client::new(&alice).next().await)["unsigned"]["transaction_id"], "0");
    assert_eq!(last(&Client::new(&other).next().await)["unsigned"].get("transaction_id"), None);
}

#[tokio::test]
async fn pitfall_020_tokens_survive_a_restart_and_garbled_ones_are_a_400() {
    let world = World::new();
    let alice = world.user("alice").await;
    let room = world.public(&alice).await;
    let mut client = Client::new(&alice);
    client.next().await;
    world.say(&alice, &room, "before").await;
    client.next().await;
    world.say(&alice, &room, "after").await;
    let app = &world.server.app;
    let key = crate::signing::generate(&Rng::seeded(9)).unwrap().key_pair().unwrap();
    let restarted = App::new(config(), app.store.clone(), key, Clock::manual(1_700_000_001_000), Rng::seeded(7));
    let again = Local::new(restarted.router()).with_token(&*alice.token);
    client.user.client = again.clone();
    assert_eq!(told(&joined(&client.next().await, &room)["timeline"]), ["after"]);
    assert!(is_quiet(&client.next().await));
    for garbled in ["x", "s1", "s99999999_00000000.0", "t1"] {
        let answer = again.get(&format!("/_matrix/client/v3/sync?since={garbled}")).await;
        assert_eq!((answer.status.as_u16(), answer.errcode().as_str()), (400, "M_INVALID_PARAM"), "{garbled}");
    }
}

#[tokio::test]
async fn pitfall_021_the_order_is_that_of_arrival_whatever_the_clocks_say() {
    let world = World::new();
    let alice = world.user("alice").await;
    let room = world.public(&alice).await;
    let mut client = Client::new(&alice);
    let before = client.next().await["next_batch"].as_str().unwrap().to_owned();
    let (app, room_id) = (&world.server.app, ruma::RoomId::parse(&*room).unwrap());
    // As an application service may say, and other servers do.
    for (text, ts) in [("first", 5_000_u32), ("second", 9_000), ("third", 1)] {
        let content = crate::rooms::send::content_from(json!({"body": text}).to_string().as_bytes()).unwrap();
        let (sender, ts) = (alice.user_id.as_str().try_into().unwrap(), ruma::MilliSecondsSinceUnixEpoch(ts.into()));
        let draft = crate::rooms::send::message("m.room.message", content, sender, ts).unwrap();
        crate::rooms::send::send(app, &room_id, draft, None).await.unwrap();
    }
    let answer = client.next().await;
    assert_eq!(told(&joined(&answer, &room)["timeline"]), ["first", "second", "third"]);
    // The tokens of sync are places in the timeline, too.
    let after = answer["next_batch"].as_str().unwrap();
    let messages = async |query: String| {
        let answer = alice.client.get(&format!("/_matrix/client/v3/rooms/{room}/messages?limit=3&{query}")).await;
        assert!(answer.status.is_success(), "{}", answer.json());
        let chunk = answer.json()["chunk"].as_array().unwrap().clone();
        chunk.iter().filter_map(|event| event["content"]["body"].as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    assert_eq!(messages(format!("dir=f&from={before}")).await, ["first", "second", "third"]);
    assert_eq!(messages(format!("dir=b&from={after}&to={before}")).await, ["third", "second", "first"]);
    assert!(messages(format!("dir=f&from={after}")).await.is_empty());
    assert!(messages(format!("dir=b&from={before}")).await.is_empty(), "what came before has no body");
}

#[tokio::test]
async fn pitfall_020_one_token_covers_events_receipts_and_account_data() {
    let world = World::new();
    let alice = world.user("alice").await;
    let room = world.public(&alice).await;
    let event = world.say(&alice, &room, "hello").await;
    let mut client = Client::new(&alice);
    client.next().await;
    world.receipt(&alice, &room, "m.read", &event, json!({})).await;
    world.account_data(&alice, None, "a.b", json!({"x": 1})).await;
    world.account_data(&alice, Some(&room), "c.d", json!({})).await;
    let retried = client.peek("").await;
    let answer = client.next().await;
    assert_eq!(retried, answer);
    assert_eq!(answer["account_data"]["events"], json!([{"type": "a.b", "content": {"x": 1}}]));
    assert_eq!(joined(&answer, &room)["account_data"]["events"], json!([{"type": "c.d", "content": {}}]));
    assert_eq!(told(&joined(&answer, &room)["ephemeral"]), ["m.receipt"]);
    assert!(is_quiet(&client.next().await));
}

#[tokio::test]
async fn pitfall_022_limited_and_prev_batch_leave_no_gap() {
    let world = World::new();
    let alice = world.user("alice").await;
    let room = world.public(&alice).await;
    let mut client = Client::filtered(&alice, &json!({"room": {"timeline": {"limit": 2}}}));
    let before = client.next().await;
    assert_eq!(joined(&before, &room)["timeline"]["limited"], true);
    let since = token::parse_position(before["next_batch"].as_str().unwrap()).unwrap();
    for text in ["1", "2"] {
        world.say(&alice, &room, text).await;
    }
    let exact = joined(&client.peek("").await, &room)["timeline"].clone();
    assert_eq!((told(&exact), &exact["limited"]), (vec!["1".to_owned(), "2".to_owned()], &json!(false)));
    world.say(&alice, &room, "3").await;
    let timeline = joined(&client.next().await, &room)["timeline"].clone();
    assert_eq!((told(&timeline), &timeline["limited"]), (vec!["2".to_owned(), "3".to_owned()], &json!(true)));
    let gap = token::parse_position(timeline["prev_batch"].as_str().unwrap()).unwrap();
    assert_eq!(bodies_between(&world, &room, since, gap), ["1"]);
}

fn bodies_between(world: &World, room: &str, after: Pos, through: Pos) -> Vec<String> {
    let nr = room_nr(room.try_into().unwrap());
    let span = schema::EVENTS.prefix((nr,)).after((nr, after)).through((nr, through));
    let snapshot = world.server.app.store.snapshot();
    let body = |event: crate::stored::StoredEvent| {
        let content: &RawValue = crate::rooms::shown::content(&event);
        content_field::<String>(content, "body").unwrap_or_default()
    };
    snapshot.scan(&schema::EVENTS, span).map(|row| body(row.unwrap().1)).collect()
}

#[tokio::test]
async fn pitfall_023_state_is_that_before_the_timeline() {
    let world = World::new();
    let alice = world.user("alice").await;
    let room = world.public(&alice).await;
    let mut client = Client::filtered(&alice, &json!({"room": {"timeline": {"limit": 2}}}));
    client.next().await;
    world.set(&alice, &room, "m.room.name", json!({"name": "one"})).await;
    world.set(&alice, &room, "m.room.topic", json!({"topic": "t"})).await;
    world.set(&alice, &room, "m.room.name", json!({"name": "two"})).await;
    world.say(&alice, &room, "hello").await;
    let answer = client.peek("").await;
    let room_part = joined(&answer, &room);
    // The name was `one` when the timeline began, and the timeline says that it changed.
    assert_eq!(keys(&room_part["state"]), ["m.room.name ", "m.room.topic "]);
    assert_eq!(room_part["state"]["events"][0]["content"]["name"], "one");
    assert_eq!(told(&room_part["timeline"]), ["m.room.name", "hello"]);
    assert_eq!(room_part["timeline"]["events"][0]["unsigned"]["prev_content"], json!({"name": "one"}));
}

#[tokio::test]
async fn pitfall_023_what_the_filter_keeps_out_of_the_timeline_goes_with_the_state() {
    let world = World::new();
    let alice = world.user("alice").await;
    let room = world.public(&alice).await;
    let mut client = Client::filtered(&alice, &json!({"room": {"timeline": {"types": ["m.room.message"]}}}));
    client.next().await;
    world.say(&alice, &room, "hello").await;
    world.set(&alice, &room, "m.room.name", json!({"name": "one"})).await;
    let answer = client.next().await;
    assert_eq!(told(&joined(&answer, &room)["timeline"]), ["hello"]);
    assert_eq!(joined(&answer, &room)["timeline"]["limited"], false);
    assert_eq!(keys(&joined(&answer, &room)["state"]), ["m.room.name "]);
}

#[tokio::test]
async fn pitfall_024_state_after_is_that_after_the_timeline_under_both_names() {
    let world = World::new();
    let alice = world.user("alice").await;
    let room = world.public(&alice).await;
    let mut client = Client::new(&alice);
    client.next().await;
    world.set(&alice, &room, "m.room.name", json!({"name": "one"})).await;
    for (query, name) in [
        ("&use_state_after=true", "state_after"),
        ("&org.matrix.msc4222.use_state_after=true", "org.matrix.msc4222.state_after"),
    ] {
        let answer = client.peek(query).await;
        assert_eq!(keys(&joined(&answer, &room)[name]), ["m.room.name "]);
        assert_eq!(joined(&answer, &room).get("state"), None);
    }
    client.next().await;
    world.say(&alice, &room, "hello").await;
    let answer = client.peek("&use_state_after=true").await;
    assert_eq!(joined(&answer, &room)["state_after"], json!({"events": []}));
}

#[tokio::test]
async fn pitfall_025_a_room_that_is_new_comes_with_its_whole_state() {
    let world = World::new();
    let (alice, bob) = (world.user("alice").await, world.user("bob").await);
    let room = world.public(&alice).await;
    world.set(&alice, &room, "m.room.name", json!({"name": "one"})).await;
    let mut client = Client::filtered(&bob, &json!({"room": {"timeline": {"limit": 1}}}));
    client.next().await;
    for _ in 0..2 {
        world.join(&bob, &room).await;
        let answer = client.next().await;
        let state = keys(&joined(&answer, &room)["state"]);
        assert!(state.contains(&"m.room.create ".to_owned()), "{state:?}");
        assert!(state.contains(&"m.room.name ".to_owned()), "{state:?}");
        // Leaving and joining again, unseen in between, is new as well.
        world.leave(&bob, &room).await;
    }
    world.join(&bob, &room).await;
    let answer = client.next().await;
    assert!(keys(&joined(&answer, &room)["state"]).contains(&"m.room.create ".to_owned()));
}

#[tokio::test]
async fn pitfall_025_leaving_ends_with_the_leave_and_then_the_room_is_gone() {
    let world = World::new();
    let (alice, bob) = (world.user("alice").await, world.user("bob").await);
    let room = world.public(&alice).await;
    world.join(&bob, &room).await;
    let mut client = Client::new(&bob);
    client.next().await;
    world.say(&alice, &room, "before").await;
    world.leave(&bob, &room).await;
    world.say(&alice, &room, "after").await;
    let answer = client.next().await;
    assert_eq!(told(&answer["rooms"]["leave"][&room]["timeline"]), ["before", "m.room.member"]);
    assert_eq!(answer["rooms"].get("join"), None);
    assert!(is_quiet(&client.next().await));
    assert_eq!(Client::new(&bob).next().await.get("rooms"), None);
    let leavers = json!({"room": {"include_leave": true}});
    let archived = Client::filtered(&bob, &leavers).next().await;
    let timeline = told(&archived["rooms"]["leave"][&room]["timeline"]);
    assert_eq!(timeline.last().map(String::as_str), Some("m.room.member"));
    world.act(&bob, "forget", &room, json!({})).await;
    assert_eq!(Client::filtered(&bob, &leavers).next().await.get("rooms"), None);
}

#[tokio::test]
async fn pitfall_025_joining_and_leaving_unseen_still_ends_the_room() {
    let world = World::new();
    let (alice, bob) = (world.user("alice").await, world.user("bob").await);
    let room = world.public(&alice).await;
    let mut client = Client::new(&bob);
    client.next().await;
    world.join(&bob, &room).await;
    world.leave(&bob, &room).await;
    let answer = client.next().await;
    assert_eq!(told(&answer["rooms"]["leave"][&room]["timeline"]).last().map(String::as_str), Some("m.room.member"));
}

#[tokio::test]
async fn pitfall_025_a_ban_after_leaving_tells_nothing_else() {
    let world = World::new();
    let (alice, bob) = (world.user("alice").await, world.user("bob").await);
    let room = world.public(&alice).await;
    world.join(&bob, &room).await;
    world.on(&alice, "kick", &room, &bob).await;
    let mut client = Client::new(&bob);
    client.next().await;
    world.say(&alice, &room, "secret").await;
    world.set(&alice, &room, "m.room.name", json!({"name": "secret"})).await;
    world.on(&alice, "ban", &room, &bob).await;
    let answer = client.next().await;
    let left = &answer["rooms"]["leave"][&room];
    assert_eq!(told(&left["timeline"]), ["m.room.member"]);
    assert_eq!(left["state"]["events"], json!([]));
    assert!(!answer.to_string().contains("secret"));
}

#[tokio::test]
async fn pitfall_025_a_ban_after_leaving_unseen_tells_nothing_between() {
    let world = World::new();
    let (alice, bob) = (world.user("alice").await, world.user("bob").await);
    let room = world.public(&alice).await;
    world.join(&bob, &room).await;
    let mut client = Client::new(&bob);
    client.next().await;
    world.leave(&bob, &room).await;
    let public = json!({"history_visibility": "world_readable"});
    world.set(&alice, &room, "m.room.history_visibility", public).await;
    world.say(&alice, &room, "without bob").await;
    world.on(&alice, "ban", &room, &bob).await;
    let answer = client.next().await;
    let events = answer["rooms"]["leave"][&room]["timeline"]["events"].as_array().unwrap();
    let memberships: Vec<_> = events.iter().map(|event| event["content"]["membership"].as_str()).collect();
    assert_eq!(memberships, [Some("leave"), Some("ban")]);
}

#[tokio::test]
async fn pitfall_026_lazy_loading_sends_the_senders_once() {
    let world = World::new();
    let (alice, bob, carol) = (world.user("alice").await, world.user("bob").await, world.user("carol").await);
    let room = world.room(&alice, json!({"preset": "public_chat", "name": "n"})).await;
    world.join(&bob, &room).await;
    world.join(&carol, &room).await;
    world.say(&bob, &room, "hello").await;
    let members = |answer: &Value| {
        let keys = keys(&joined(answer, &room)["state"]);
        keys.into_iter().filter_map(|key| Some(key.strip_prefix("m.room.member ")?.to_owned())).collect::<Vec<_>>()
    };
    let mut client = Client::filtered(&alice, &lazy(1));
    let first = client.next().await;
    // The sender, and the user.
    assert_eq!(members(&first), [&*alice.user_id, &*bob.user_id]);
    world.say(&bob, &room, "again").await;
    assert_eq!(members(&client.next().await), [""; 0]);
    world.say(&carol, &room, "me, too").await;
    let retried = client.peek("").await;
    assert_eq!(members(&retried), [&*carol.user_id]);
    // An answer that got lost is given again.
    assert_eq!(members(&client.next().await), [&*carol.user_id]);
    world.say(&carol, &room, "more").await;
    assert_eq!(members(&client.next().await), [""; 0]);
    // A client that starts anew knows nothing, and another device never did.
    assert_eq!(members(&Client::filtered(&alice, &lazy(1)).next().await), [&*alice.user_id, &*carol.user_id]);
    world.say(&bob, &room, "and now").await;
    assert_eq!(members(&client.next().await), [&*bob.user_id]);
    let mut filter = lazy(1);
    filter["room"]["state"]["include_redundant_members"] = json!(true);
    client.query = format!("&filter={}", encode(&filter.to_string()));
    world.say(&bob, &room, "once more").await;
    assert_eq!(members(&client.next().await), [&*bob.user_id]);
}

#[tokio::test]
async fn pitfall_026_all_memberships_of_a_gap_are_sent() {
    let world = World::new();
    let (alice, bob, carol) = (world.user("alice").await, world.user("bob").await, world.user("carol").await);
    let room = world.public(&alice).await;
    let mut client = Client::filtered(&alice, &lazy(1));
    client.next().await;
    world.join(&bob, &room).await;
    world.join(&carol, &room).await;
    world.say(&alice, &room, "hello").await;
    let answer = client.next().await;
    assert_eq!(joined(&answer, &room)["timeline"]["limited"], true);
    let state = keys(&joined(&answer, &room)["state"]);
    assert!(state.contains(&format!("m.room.member {}", bob.user_id)), "{state:?}");
    assert!(state.contains(&format!("m.room.member {}", carol.user_id)), "{state:?}");
}

#[tokio::test]
async fn pitfall_023_a_change_that_is_not_shown_is_not_undone_by_one_that_is() {
    let world = World::new();
    let (alice, bob) = (world.user("alice").await, world.user("bob").await);
    let room = world.public(&alice).await;
    world.set(&alice, &room, "m.room.history_visibility", json!({"history_visibility": "joined"})).await;
    world.join(&bob, &room).await;
    let mut client = Client::new(&bob);
    client.next().await;
    world.set(&alice, &room, "m.room.name", json!({"name": "one"})).await;
    world.leave(&bob, &room).await;
    world.set(&alice, &room, "m.room.name", json!({"name": "two"})).await;
    world.join(&bob, &room).await;
    // First the state, then the timeline, each event over the one before.
    let answer = client.next().await;
    let room = joined(&answer, &room);
    let events = |section: &str| room[section]["events"].as_array().cloned().unwrap_or_default();
    let events = [events("state"), events("timeline")].concat();
    let name = events.iter().rfind(|event| event["type"] == "m.room.name").unwrap();
    assert_eq!(name["content"]["name"], "two");
}

#[tokio::test]
async fn pitfall_026_a_sender_is_sent_as_they_are_now() {
    let world = World::new();
    let (alice, bob) = (world.user("alice").await, world.user("bob").await);
    let room = world.public(&alice).await;
    world.join(&bob, &room).await;
    let mut filter = lazy(10);
    filter["room"]["timeline"]["types"] = json!(["m.room.message"]);
    let mut client = Client::filtered(&alice, &filter);
    client.next().await;
    world.say(&bob, &room, "hello").await;
    let renamed = json!({"membership": "join", "displayname": "Bobby"});
    world.set(&bob, &room, &format!("m.room.member/{}", bob.user_id), renamed).await;
    let answer = client.next().await;
    let members = joined(&answer, &room)["state"]["events"].as_array().unwrap();
    assert_eq!(members.last().unwrap()["content"]["displayname"], "Bobby", "{answer}");
}

#[tokio::test]
async fn pitfall_026_who_comes_back_learns_which_members_changed_meanwhile() {
    let world = World::new();
    let (alice, bob, carol) = (world.user("alice").await, world.user("bob").await, world.user("carol").await);
    let room = world.public(&alice).await;
    world.join(&bob, &room).await;
    world.join(&carol, &room).await;
    world.say(&carol, &room, "hello").await;
    let mut client = Client::filtered(&bob, &lazy(1));
    client.next().await;
    world.leave(&bob, &room).await;
    world.leave(&carol, &room).await;
    world.join(&bob, &room).await;
    let answer = client.next().await;
    let state = keys(&joined(&answer, &room)["state"]);
    assert!(state.contains(&format!("m.room.member {}", carol.user_id)), "{state:?}");
}

#[tokio::test]
async fn pitfall_027_the_summary_names_heroes_where_there_is_no_name() {
    let world = World::new();
    let alice = world.user("alice").await;
    let room = world.public(&alice).await;
    let mut others = Vec::new();
    for n in 0..7 {
        let other = world.user(&format!("u{n}")).await;
        world.join(&other, &room).await;
        others.push(other.user_id);
    }
    let mut client = Client::new(&alice);
    let summary = joined(&client.next().await, &room)["summary"].clone();
    assert_eq!(summary, json!({"m.joined_member_count": 8, "m.invited_member_count": 0, "m.heroes": others[..5]}));
    world.say(&alice, &room, "hello").await;
    assert_eq!(joined(&client.next().await, &room).get("summary"), None);
    let dave = world.user("dave").await;
    world.on(&alice, "invite", &room, &dave).await;
    assert_eq!(joined(&client.next().await, &room)["summary"]["m.invited_member_count"], 1);
    world.set(&alice, &room, "m.room.name", json!({"name": "n"})).await;
    world.join(&dave, &room).await;
    let summary = joined(&client.next().await, &room)["summary"].clone();
    assert_eq!(summary, json!({"m.joined_member_count": 9, "m.invited_member_count": 0}));
}

#[tokio::test]
async fn pitfall_028_filters_by_id_and_inline() {
    let world = World::new();
    let alice = world.user("alice").await;
    let (room, other) = (world.public(&alice).await, world.public(&alice).await);
    world.say(&alice, &room, "hello").await;
    let filter = json!({
        "event_fields": ["type", "content.body"],
        "room": {"not_rooms": [other], "timeline": {"types": ["m.room.m*"], "not_types": ["m.room.member"]}},
    });
    let path = format!("/_matrix/client/v3/user/{}/filter", alice.user_id);
    let id = alice.client.post(&path, filter.clone()).await.json()["filter_id"].as_str().unwrap().to_owned();
    let stored = Client { query: format!("&filter={id}"), ..Client::new(&alice) }.next().await;
    let inline = Client::filtered(&alice, &filter).next().await;
    assert_eq!(stored["rooms"], inline["rooms"]);
    let expected = json!([{"type": "m.room.message", "content": {"body": "hello"}}]);
    assert_eq!(joined(&stored, &room)["timeline"]["events"], expected);
    assert_eq!(joined(&stored, &other), &Value::Null);
    for bad in ["999", "nonsense"] {
        let answer = alice.client.get(&format!("/_matrix/client/v3/sync?filter={bad}")).await;
        assert_eq!(answer.status.as_u16(), 400);
    }
    assert_eq!(alice.client.get("/_matrix/client/v3/sync?filter=%7Bx").await.status.as_u16(), 400);
    let federation = Client::filtered(&alice, &json!({"event_format": "federation"})).next().await;
    assert!(joined(&federation, &room)["timeline"]["events"][0].get("signatures").is_some());
}

#[tokio::test]
async fn pitfall_029_timeouts() {
    let world = World::new();
    let alice = world.user("alice").await;
    let room = world.public(&alice).await;
    let mut client = Client::new(&alice);
    client.next().await;
    // No timeout: at once. So does the whole state, whatever the timeout.
    assert!(is_quiet(&client.next().await));
    let whole = client.peek("&full_state=true&timeout=30000").await;
    assert!(keys(&joined(&whole, &room)["state"]).contains(&"m.room.create ".to_owned()));
    assert_eq!(told(&joined(&whole, &room)["timeline"]), [""; 0]);
    // A timeout that is over is an answer with a token.
    let clock = world.server.app.clock.clone();
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.peek("&timeout=30000").await }
    });
    settle().await;
    assert!(!waiting.is_finished());
    clock.advance(Duration::from_millis(29_999));
    settle().await;
    assert!(!waiting.is_finished());
    clock.advance(Duration::from_millis(1));
    let answer = waiting.await.unwrap();
    assert!(is_quiet(&answer) && answer["next_batch"].is_string());
    // Longer than proxies wait is not waited.
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.peek("&timeout=3000000").await }
    });
    settle().await;
    clock.advance(crate::sync::wait::MAX_TIMEOUT);
    assert!(is_quiet(&waiting.await.unwrap()));
}

#[tokio::test]
async fn a_poll_is_woken_by_what_concerns_it_and_by_a_stop() {
    let world = World::new();
    let (alice, bob) = (world.user("alice").await, world.user("bob").await);
    let room = world.public(&alice).await;
    let elsewhere = world.public(&bob).await;
    let mut client = Client::new(&alice);
    client.next().await;
    let poll = |client: &Client| {
        let client = client.clone();
        tokio::spawn(async move { client.peek("&timeout=30000").await })
    };
    let waiting = poll(&client);
    settle().await;
    world.say(&bob, &elsewhere, "not for you").await;
    settle().await;
    assert!(!waiting.is_finished());
    world.say(&alice, &room, "for you").await;
    assert_eq!(told(&joined(&waiting.await.unwrap(), &room)["timeline"]), ["for you"]);
    client.next().await;
    // A room that is joined while a poll waits is listened to from then on.
    let waiting = poll(&client);
    settle().await;
    world.join(&alice, &elsewhere).await;
    let answer = waiting.await.unwrap();
    assert!(joined(&answer, &elsewhere)["state"].is_object());
    client.next().await;
    let waiting = poll(&client);
    settle().await;
    world.say(&bob, &elsewhere, "for you, too").await;
    assert_eq!(told(&joined(&waiting.await.unwrap(), &elsewhere)["timeline"]), ["for you, too"]);
    client.next().await;
    let waiting = poll(&client);
    settle().await;
    world.server.app.shutdown.cancel();
    assert!(is_quiet(&waiting.await.unwrap()));
}

#[tokio::test]
async fn pitfall_035_typing_is_a_complete_list_that_ends_by_itself() {
    let world = World::new();
    let (alice, bob) = (world.user("alice").await, world.user("bob").await);
    let room = world.public(&alice).await;
    world.join(&bob, &room).await;
    let mut client = Client::new(&alice);
    client.next().await;
    let typists = |answer: &Value| joined(answer, &room)["ephemeral"]["events"][0]["content"]["user_ids"].clone();
    world.typing(&bob, &room, true).await;
    assert_eq!(typists(&client.next().await), json!([bob.user_id]));
    assert!(is_quiet(&client.next().await));
    world.typing(&bob, &room, false).await;
    assert_eq!(typists(&client.next().await), json!([]));
    world.typing(&bob, &room, true).await;
    assert_eq!(typists(&client.next().await), json!([bob.user_id]));
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.peek("&timeout=30000").await }
    });
    settle().await;
    world.server.app.clock.advance(Duration::from_millis(10_001));
    assert_eq!(typists(&waiting.await.unwrap()), json!([]));
    let elsewhere = format!("/_matrix/client/v3/rooms/{room}/typing/{}", alice.user_id);
    assert_eq!(bob.client.put(&elsewhere, json!({"typing": true})).await.status.as_u16(), 403);
}

#[tokio::test]
async fn pitfall_035_typing_before_a_restart_is_taken_back() {
    let world = World::new();
    let alice = world.user("alice").await;
    let room = world.public(&alice).await;
    let mut client = Client::new(&alice);
    world.typing(&alice, &room, true).await;
    client.next().await;
    let key = crate::signing::generate(&Rng::seeded(9)).unwrap().key_pair().unwrap();
    let mut settings = config();
    settings.presence.enabled = false;
    let store = world.server.app.store.clone();
    let restarted = App::new(settings, store, key, Clock::manual(1_700_000_001_000), Rng::seeded(7));
    client.user.client = Local::new(restarted.router()).with_token(&*alice.token);
    let answer = client.next().await;
    assert_eq!(joined(&answer, &room)["ephemeral"]["events"][0]["content"]["user_ids"], json!([]));
    assert!(is_quiet(&client.next().await));
}

#[tokio::test]
async fn pitfall_035_account_data_replaces_and_cannot_set_markers() {
    let world = World::new();
    let alice = world.user("alice").await;
    let mut client = Client::new(&alice);
    let first = client.next().await;
    let kinds = told(&first["account_data"]);
    assert_eq!(kinds, ["m.push_rules"]);
    world.account_data(&alice, None, "a", json!({"x": 1})).await;
    world.account_data(&alice, None, "a", json!({"x": 2})).await;
    assert_eq!(client.next().await["account_data"]["events"], json!([{"type": "a", "content": {"x": 2}}]));
}

#[tokio::test]
async fn pitfall_036_invites_come_stripped_with_the_create_event_and_once() {
    let world = World::new();
    let (alice, bob) = (world.user("alice").await, world.user("bob").await);
    let room = world.room(&alice, json!({"name": "n"})).await;
    let mut client = Client::new(&bob);
    client.next().await;
    world.on(&alice, "invite", &room, &bob).await;
    world.set(&alice, &room, "m.room.topic", json!({"topic": "later"})).await;
    let answer = client.next().await;
    let state = &answer["rooms"]["invite"][&room]["invite_state"];
    let member = |user: &User| format!("m.room.member {}", user.user_id);
    let expected = [
        "m.room.create ".to_owned(),
        "m.room.join_rules ".to_owned(),
        member(&alice),
        member(&bob),
        "m.room.name ".to_owned(),
    ];
    assert_eq!(keys(state), expected);
    for event in state["events"].as_array().unwrap() {
        let mut names: Vec<_> = event.as_object().unwrap().keys().collect();
        names.sort();
        assert_eq!(names, ["content", "sender", "state_key", "type"]);
    }
    assert!(is_quiet(&client.next().await));
    // Taken back: it becomes a leave, with nothing of the room.
    world.on(&alice, "kick", &room, &bob).await;
    let answer = client.next().await;
    let left = &answer["rooms"]["leave"][&room];
    assert_eq!(told(&left["timeline"]), ["m.room.member"]);
    assert_eq!(left["state"]["events"], json!([]));
    assert!(!answer.to_string().contains("later"));
}

#[tokio::test]
async fn pitfall_036_knocks_come_likewise() {
    let world = World::new();
    let (alice, bob) = (world.user("alice").await, world.user("bob").await);
    let rule = json!([{"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "knock"}}]);
    let room = world.room(&alice, json!({"initial_state": rule, "name": "n"})).await;
    let mut client = Client::new(&bob);
    client.next().await;
    let answer = bob.client.post(&format!("/_matrix/client/v3/knock/{room}"), json!({})).await;
    assert!(answer.status.is_success(), "{}", answer.json());
    let answer = client.next().await;
    let state = keys(&answer["rooms"]["knock"][&room]["knock_state"]);
    assert!(state.contains(&"m.room.create ".to_owned()), "{state:?}");
    assert!(state.contains(&format!("m.room.member {}", bob.user_id)), "{state:?}");
}

#[tokio::test]
async fn pitfall_037_ignored_users_say_nothing_but_change_the_state() {
    let world = World::new();
    let (alice, bob) = (world.user("alice").await, world.user("bob").await);
    let levels = json!({"power_level_content_override": {"state_default": 0}, "preset": "public_chat"});
    let room = world.room(&alice, levels).await;
    world.join(&bob, &room).await;
    let mut client = Client::new(&alice);
    client.next().await;
    world.account_data(&alice, None, "m.ignored_user_list", json!({"ignored_users": {bob.user_id.clone(): {}}})).await;
    client.next().await;
    let event = world.say(&bob, &room, "unheard").await;
    world.set(&bob, &room, "m.room.topic", json!({"topic": "t"})).await;
    world.receipt(&bob, &room, "m.read", &event, json!({})).await;
    world.typing(&bob, &room, true).await;
    let answer = client.next().await;
    assert_eq!(told(&joined(&answer, &room)["timeline"]), ["m.room.topic"]);
    assert_eq!(joined(&answer, &room)["unread_notifications"]["notification_count"], 0);
    let ephemeral = joined(&answer, &room)["ephemeral"].to_string();
    assert!(!ephemeral.contains(&bob.user_id), "{ephemeral}");
    let other = world.room(&bob, json!({})).await;
    world.on(&bob, "invite", &other, &alice).await;
    assert!(is_quiet(&client.next().await));
    world.account_data(&alice, None, "m.ignored_user_list", json!({"ignored_users": {}})).await;
    client.next().await;
    world.say(&bob, &room, "heard").await;
    assert_eq!(told(&joined(&client.next().await, &room)["timeline"]), ["heard"]);
}

#[tokio::test]
async fn pitfall_038_counts_come_with_the_event_and_end_with_reading() {
    let world = World::new();
    let (alice, bob) = (world.user("alice").await, world.user("bob").await);
    let room = world.public(&alice).await;
    world.join(&bob, &room).await;
    let mut client = Client::new(&alice);
    client.next().await;
    let counts = |answer: &Value| {
        let counts = &joined(answer, &room)["unread_notifications"];
        (counts["notification_count"].as_u64().unwrap(), counts["highlight_count"].as_u64().unwrap())
    };
    let first = world.say(&bob, &room, "one").await;
    assert_eq!(counts(&client.next().await), (1, 0));
    let mention = json!({"msgtype": "m.text", "body": "you", "m.mentions": {"user_ids": [alice.user_id]}});
    let second = world.send(&bob, &room, "m.room.message", mention).await;
    assert_eq!(counts(&client.next().await), (2, 1));
    world.send(&bob, &room, "m.room.message", json!({"msgtype": "m.notice", "body": "hum"})).await;
    assert_eq!(counts(&client.next().await), (2, 1));
    world.receipt(&alice, &room, "m.read", &first, json!({})).await;
    assert_eq!(counts(&client.next().await), (1, 1));
    // A private receipt counts as well, and wherever counting begins it comes to the same.
    world.receipt(&alice, &room, "m.read.private", &second, json!({})).await;
    assert_eq!(counts(&client.next().await), (0, 0));
    world.say(&bob, &room, "three").await;
    assert_eq!(counts(&client.next().await), (1, 0));
    assert_eq!(counts(&Client::new(&alice).next().await), (1, 0));
    // Who answers has read.
    world.say(&alice, &room, "four").await;
    assert_eq!(counts(&client.next().await), (0, 0));
}

#[tokio::test]
async fn pitfall_038_what_was_redacted_is_not_unread() {
    let world = World::new();
    let (alice, bob) = (world.user("alice").await, world.user("bob").await);
    let room = world.public(&alice).await;
    world.join(&bob, &room).await;
    let counts = |answer: &Value| joined(answer, &room)["unread_notifications"]["notification_count"].clone();
    let mut client = Client::new(&alice);
    let first = world.say(&bob, &room, "one").await;
    world.say(&bob, &room, "two").await;
    assert_eq!(counts(&client.next().await), 2);
    // An edit does not notify, and what is left of it does neither.
    let edit = json!({"msgtype": "m.text", "body": "2", "m.new_content": {"msgtype": "m.text", "body": "2"},
        "m.relates_to": {"rel_type": "m.replace", "event_id": first}});
    let edit = world.send(&bob, &room, "m.room.message", edit).await;
    for (event, left) in [(edit, 2), (first, 1)] {
        let answer = bob.client.put(&format!("/_matrix/client/v3/rooms/{room}/redact/{event}/{left}"), json!({})).await;
        assert!(answer.status.is_success());
        assert_eq!(counts(&client.next().await), left);
        assert_eq!(counts(&Client::new(&alice).next().await), left);
    }
}

#[tokio::test]
async fn pitfall_038_threads_are_counted_apart_when_asked() {
    let world = World::new();
    let (alice, bob) = (world.user("alice").await, world.user("bob").await);
    let room = world.public(&alice).await;
    world.join(&bob, &room).await;
    let root = world.say(&alice, &room, "root").await;
    let thread = |body: &str| {
        let relation = json!({"rel_type": "m.thread", "event_id": root});
        json!({"msgtype": "m.text", "body": body, "m.relates_to": relation})
    };
    world.say(&bob, &room, "main").await;
    let reply = world.send(&bob, &room, "m.room.message", thread("reply")).await;
    let mut client = Client::filtered(&alice, &json!({"room": {"timeline": {"unread_thread_notifications": true}}}));
    let part = joined(&client.next().await, &room).clone();
    assert_eq!(part["unread_notifications"]["notification_count"], 1);
    assert_eq!(part["unread_thread_notifications"][&root]["notification_count"], 1);
    let sum = Client::new(&alice).next().await;
    assert_eq!(joined(&sum, &room)["unread_notifications"]["notification_count"], 2);
    assert_eq!(joined(&sum, &room).get("unread_thread_notifications"), None);
    world.receipt(&alice, &room, "m.read", &reply, json!({"thread_id": root})).await;
    let part = joined(&client.next().await, &room).clone();
    assert_eq!(part["unread_notifications"]["notification_count"], 1);
    assert_eq!(part["unread_thread_notifications"], json!({}));
    let main = world.say(&bob, &room, "main, too").await;
    world.receipt(&alice, &room, "m.read", &main, json!({"thread_id": "main"})).await;
    assert_eq!(joined(&client.next().await, &room)["unread_notifications"]["notification_count"], 0);
}

#[tokio::test]
async fn pitfall_039_presence_is_for_those_who_share_a_room() {
    let world = World::with(|config| config.presence.enabled = true);
    let (alice, bob, carol) = (world.user("alice").await, world.user("bob").await, world.user("carol").await);
    let room = world.public(&alice).await;
    world.join(&bob, &room).await;
    let clock = world.server.app.clock.clone();
    let of = |answer: &Value, user: &User| {
        let events = answer["presence"]["events"].as_array().cloned().unwrap_or_default();
        let found = events.into_iter().find(|event| event["sender"] == user.user_id.as_str());
        found.map(|event| event["content"]["presence"].as_str().unwrap().to_owned())
    };
    let mut client = Client { query: "&set_presence=offline".to_owned(), ..Client::new(&alice) };
    let first = client.next().await;
    assert_eq!(of(&first, &alice), None, "who polls as offline is not online");
    let poll = |client: &Client| {
        let client = client.clone();
        tokio::spawn(async move { client.peek("&timeout=50000").await })
    };
    let waiting = poll(&client);
    settle().await;
    Client::new(&bob).next().await;
    Client::new(&carol).next().await;
    settle().await;
    clock.advance(Duration::from_millis(500));
    let answer = waiting.await.unwrap();
    assert_eq!(of(&answer, &bob).as_deref(), Some("online"));
    assert_eq!(of(&answer, &carol), None);
    client.since = answer["next_batch"].as_str().map(str::to_owned);
    // Who does not come back is offline after a while.
    let waiting = poll(&client);
    settle().await;
    for _ in 0..5 {
        clock.advance(Duration::from_secs(9));
        settle().await;
    }
    assert_eq!(of(&waiting.await.unwrap(), &bob).as_deref(), Some("offline"));
    let path = |user: &User| format!("/_matrix/client/v3/presence/{}/status", user.user_id);
    let put = carol.client.put(&path(&carol), json!({"presence": "unavailable", "status_msg": "away"})).await;
    assert!(put.status.is_success());
    let seen = carol.client.get(&path(&carol)).await.json();
    assert_eq!((&seen["presence"], &seen["status_msg"]), (&json!("unavailable"), &json!("away")));
    assert_eq!(alice.client.get(&path(&carol)).await.status.as_u16(), 403);
    assert_eq!(alice.client.put(&path(&carol), json!({"presence": "online"})).await.status.as_u16(), 403);
}

#[tokio::test]
async fn pitfall_046_what_was_said_before_joining_is_seen_as_the_room_has_it() {
    let world = World::new();
    let (alice, bob) = (world.user("alice").await, world.user("bob").await);
    let room = world.public(&alice).await;
    world.say(&alice, &room, "shared").await;
    world.set(&alice, &room, "m.room.history_visibility", json!({"history_visibility": "joined"})).await;
    world.say(&alice, &room, "joined").await;
    world.set(&alice, &room, "m.room.history_visibility", json!({"history_visibility": "invited"})).await;
    world.on(&alice, "invite", &room, &bob).await;
    world.say(&alice, &room, "invited").await;
    world.join(&bob, &room).await;
    world.say(&alice, &room, "here").await;
    let answer = Client::filtered(&bob, &json!({"room": {"timeline": {"limit": 100, "types": ["m.room.message"]}}}))
        .next()
        .await;
    assert_eq!(told(&joined(&answer, &room)["timeline"]), ["shared", "invited", "here"]);
    let memberships: Vec<&Value> = joined(&answer, &room)["timeline"]["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| &event["unsigned"]["membership"])
        .collect();
    assert_eq!(memberships, ["leave", "invite", "join"]);
}

#[tokio::test]
async fn pitfall_053_a_redaction_empties_the_event_and_is_shown_with_it() {
    let world = World::new();
    let alice = world.user("alice").await;
    let room = world.public(&alice).await;
    let mut client = Client::new(&alice);
    client.next().await;
    let event = world.say(&alice, &room, "oops").await;
    let path = format!("/_matrix/client/v3/rooms/{room}/redact/{event}/r1");
    assert!(alice.client.put(&path, json!({"reason": "typo"})).await.status.is_success());
    let answer = client.next().await;
    let events = &joined(&answer, &room)["timeline"]["events"];
    assert_eq!(events[0]["content"], json!({}));
    assert_eq!(events[0]["unsigned"]["redacted_because"]["content"]["reason"], "typo");
    assert_eq!((&events[1]["redacts"], &events[1]["content"]["redacts"]), (&json!(event), &json!(event)));
    assert!(!answer.to_string().contains("oops"));
}

#[tokio::test]
async fn pitfall_054_rooms_of_a_sync_do_not_repeat_their_id() {
    let world = World::new();
    let alice = world.user("alice").await;
    let room = world.public(&alice).await;
    let answer = Client::new(&alice).next().await;
    let part = joined(&answer, &room);
    for events in [&part["timeline"]["events"], &part["state"]["events"]] {
        assert!(events.as_array().unwrap().iter().all(|event| event.get("room_id").is_none()));
    }
}

#[tokio::test]
async fn pitfall_070_receipts_do_not_move_backwards() {
    let world = World::new();
    let (alice, bob) = (world.user("alice").await, world.user("bob").await);
    let room = world.public(&alice).await;
    world.join(&bob, &room).await;
    let first = world.say(&alice, &room, "one").await;
    let second = world.say(&alice, &room, "two").await;
    let mut client = Client::new(&alice);
    client.next().await;
    world.receipt(&bob, &room, "m.read", &second, json!({})).await;
    let content = |answer: &Value| joined(answer, &room)["ephemeral"]["events"][0]["content"].clone();
    let ts = world.server.app.clock.now_ms();
    assert_eq!(content(&client.next().await), json!({second.clone(): {"m.read": {bob.user_id.clone(): {"ts": ts}}}}));
    world.receipt(&bob, &room, "m.read", &first, json!({})).await;
    assert!(is_quiet(&client.next().await));
    // A thread is a row of its own.
    world.receipt(&bob, &room, "m.read", &first, json!({"thread_id": "main"})).await;
    let receipt = json!({"ts": ts, "thread_id": "main"});
    assert_eq!(content(&client.next().await), json!({first.clone(): {"m.read": {bob.user_id.clone(): receipt}}}));
    // What nobody knows moves nothing, and no log row is left behind.
    world.receipt(&bob, &room, "m.read", "$unknown", json!({})).await;
    let nr = room_nr(room.as_str().try_into().unwrap());
    let rows = world.server.app.store.snapshot().count(&schema::RECEIPT_LOG, schema::RECEIPT_LOG.prefix((nr,)));
    assert_eq!(rows.unwrap(), 2);
    let stranger = world.user("carol").await;
    let path = format!("/_matrix/client/v3/rooms/{room}/receipt/m.read/{first}");
    assert_eq!(stranger.client.post(&path, json!({})).await.status.as_u16(), 403);
    for (kind, body) in [
        ("m.fully_read", json!({"thread_id": "main"})),
        ("m.read", json!({"thread_id": second})),
        ("m.strange", json!({})),
    ] {
        let path = format!("/_matrix/client/v3/rooms/{room}/receipt/{kind}/{first}");
        assert_eq!(bob.client.post(&path, body).await.status.as_u16(), 400, "{kind}");
    }
}

#[tokio::test]
async fn pitfall_070_read_markers_move_together() {
    let world = World::new();
    let alice = world.user("alice").await;
    let room = world.public(&alice).await;
    let first = world.say(&alice, &room, "one").await;
    let second = world.say(&alice, &room, "two").await;
    let mut client = Client::new(&alice);
    client.next().await;
    let mark = json!({"m.fully_read": second, "m.read": second, "m.read.private": second});
    world.act(&alice, "read_markers", &room, mark).await;
    let answer = client.next().await;
    let part = joined(&answer, &room);
    assert_eq!(part["account_data"]["events"], json!([{"type": "m.fully_read", "content": {"event_id": second}}]));
    let kinds: Vec<&String> = part["ephemeral"]["events"][0]["content"][&second].as_object().unwrap().keys().collect();
    assert_eq!(kinds, ["m.read", "m.read.private"]);
    let mark = json!({"m.fully_read": first, "m.read": first, "m.read.private": first});
    world.act(&alice, "read_markers", &room, mark).await;
    assert!(is_quiet(&client.next().await));
}

#[tokio::test]
async fn pitfall_071_private_receipts_are_for_their_owner_only() {
    let world = World::new();
    let (alice, bob) = (world.user("alice").await, world.user("bob").await);
    let room = world.public(&alice).await;
    world.join(&bob, &room).await;
    let event = world.say(&alice, &room, "one").await;
    let (mut mine, mut theirs) = (Client::new(&bob), Client::new(&alice));
    mine.next().await;
    theirs.next().await;
    world.receipt(&bob, &room, "m.read.private", &event, json!({})).await;
    assert_eq!(told(&joined(&mine.next().await, &room)["ephemeral"]), ["m.receipt"]);
    assert!(is_quiet(&theirs.next().await));
    assert!(!Client::new(&alice).next().await.to_string().contains("m.read.private"));
}

#[tokio::test]
async fn pitfall_050_what_relates_to_an_event_comes_with_it_where_the_timeline_is_limited() {
    let world = World::new();
    let alice = world.user("alice").await;
    let room = world.public(&alice).await;
    let mut client = Client::filtered(&alice, &json!({"room": {"timeline": {"limit": 2}}}));
    client.next().await;
    let event = world.say(&alice, &room, "teh").await;
    let edit = json!({
        "msgtype": "m.text",
        "body": "* the",
        "m.new_content": {"msgtype": "m.text", "body": "the"},
        "m.relates_to": {"rel_type": "m.replace", "event_id": event},
    });
    let edit = world.send(&alice, &room, "m.room.message", edit).await;
    let bundled = |answer: &Value| {
        let events = joined(answer, &room)["timeline"]["events"].as_array().unwrap().clone();
        let found = events.iter().find(|found| found["event_id"] == event.as_str()).unwrap().clone();
        assert_eq!(found["content"]["body"], "teh");
        found["unsigned"]["m.relations"]["m.replace"]["event_id"].clone()
    };
    assert_eq!(bundled(&client.next().await), Value::Null);
    assert_eq!(bundled(&Client::filtered(&alice, &json!({"room": {"timeline": {"limit": 2}}})).next().await), edit);
}

#[tokio::test]
async fn pitfall_046_who_left_does_not_see_who_redacted_something_later() {
    let world = World::new();
    let (alice, bob) = (world.user("alice").await, world.user("bob").await);
    let room = world.public(&alice).await;
    world.join(&bob, &room).await;
    let said = world.say(&alice, &room, "hello").await;
    let redact = async |event_id: &str, reason: &str| {
        let path = format!("/_matrix/client/v3/rooms/{room}/redact/{event_id}/{reason}");
        assert_eq!(alice.client.put(&path, json!({"reason": reason})).await.status, 200);
    };
    let early = world.say(&alice, &room, "gone early").await;
    redact(&early, "early").await;
    world.leave(&bob, &room).await;
    redact(&said, "late").await;
    let leavers = json!({"room": {"include_leave": true, "timeline": {"limit": 50}}});
    let answer = Client::filtered(&bob, &leavers).next().await;
    let events = answer["rooms"]["leave"][&room]["timeline"]["events"].as_array().unwrap();
    let find = |id: &str| events.iter().find(|event| event["event_id"] == *id).unwrap();
    assert_eq!(find(&early)["unsigned"]["redacted_because"]["content"]["reason"], "early");
    assert_eq!(find(&said)["content"], json!({}));
    assert_eq!(find(&said)["unsigned"].get("redacted_because"), None, "{}", find(&said));
}
