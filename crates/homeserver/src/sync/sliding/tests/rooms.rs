//! Which rooms an answer has, and what is in them.

use super::*;

#[tokio::test]
async fn a_first_answer_has_everything_of_a_room() {
    let server = Server::default();
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = create(&alice, json!({"preset": "public_chat", "name": "Room"})).await;
    join(&bob, &room).await;
    let avatar = set(&alice, &room, "m.room.avatar", "", json!({"url": "mxc://hs.test/a"})).await;
    let (one, two) = (say(&bob, &room, "one").await, say(&alice, &room, "two").await);
    let required = json!([["m.room.avatar", ""], ["m.room.member", "$ME"], LAZY]);
    let answer = Connection::list(&alice, 2, required).sync().await;
    assert_eq!(answer["lists"]["all"]["count"], 1);
    let room = only(&answer, &room);
    assert_eq!(ids(&room["timeline"]), [one, two]);
    assert_eq!((&room["name"], &room["avatar"]), (&json!("Room"), &json!("mxc://hs.test/a")));
    assert_eq!((&room["joined_count"], &room["invited_count"]), (&json!(2), &json!(0)));
    assert_eq!((&room["initial"], &room["limited"], &room["num_live"]), (&json!(true), &json!(true), &json!(0)));
    assert_eq!((&room["notification_count"], &room["heroes"]), (&json!(0), &Value::Null));
    let members = [&alice, &bob].map(|user| key("m.room.member", &user.user_id));
    assert_eq!(keys(&room["required_state"]), [&[key("m.room.avatar", "")], &members[..]].concat());
    assert!(ids(&room["required_state"]).contains(&avatar));
}

#[tokio::test]
async fn a_room_without_a_name_has_heroes() {
    let server = Server::default();
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = create(&alice, json!({"preset": "private_chat", "is_direct": true, "invite": [bob.user_id]})).await;
    let data = json!({ &bob.user_id: [room], "@nobody:x": "nonsense" });
    let at = format!("/_matrix/client/v3/user/{}/account_data/m.direct", enc(&alice.user_id));
    ok(&alice.client.put(&at, data).await);
    let mut connection = Connection::list(&alice, 1, json!([]));
    let answer = connection.sync().await;
    let found = only(&answer, &room);
    assert_eq!((&found["is_dm"], &found["name"]), (&json!(true), &Value::Null));
    assert_eq!(found["heroes"], json!([{"user_id": bob.user_id}]));
    // A name comes and goes again.
    set(&alice, &room, "m.room.name", "", json!({"name": "N"})).await;
    let answer = connection.sync().await;
    assert_eq!((&only(&answer, &room)["name"], &only(&answer, &room)["heroes"]), (&json!("N"), &Value::Null));
    set(&alice, &room, "m.room.name", "", json!({})).await;
    let answer = connection.sync().await;
    assert!(only(&answer, &room).as_object().unwrap().contains_key("name"));
    assert_eq!(only(&answer, &room)["heroes"][0]["user_id"], bob.user_id.as_str());
}

#[tokio::test]
async fn pitfall_041_rooms_are_ordered_by_any_activity_and_bumped_by_some() {
    let server = Server::default();
    let alice = server.user("alice").await;
    let (one, two) = (public_room(&alice).await, public_room(&alice).await);
    let body = json!({"lists": {"top": {"ranges": [[0, 0]], "timeline_limit": 1, "required_state": []}}});
    let mut connection = Connection::new(&alice, body);
    assert_eq!(rooms_of(&connection.sync().await), std::slice::from_ref(&two));
    // Any event brings a room to the front, where this connection sees it for the first time.
    set(&alice, &one, "m.room.topic", "", json!({"topic": "t"})).await;
    let answer = connection.sync().await;
    let before = only(&answer, &one)["bump_stamp"].as_u64().unwrap();
    assert_eq!(only(&answer, &one)["initial"], true);
    assert_eq!(answer["rooms"][&one]["num_live"], 1);
    set(&alice, &one, "m.room.topic", "", json!({"topic": "u"})).await;
    let answer = connection.sync().await;
    assert_eq!((&only(&answer, &one)["bump_stamp"], &answer["rooms"][&one]["initial"]), (&json!(before), &Value::Null));
    say(&alice, &one, "proper").await;
    let after = connection.sync().await["rooms"][&one]["bump_stamp"].as_u64().unwrap();
    assert!(after > before);
    // The other room went out of the window, and comes back where it was left.
    let message = say(&alice, &two, "back").await;
    let answer = connection.sync().await;
    assert_eq!(ids(&only(&answer, &two)["timeline"]), [message]);
    assert_eq!(answer["rooms"][&two]["initial"], Value::Null);
}

#[tokio::test]
async fn pitfall_042_more_is_sent_at_once_when_more_is_asked_for() {
    let server = Server::default();
    let alice = server.user("alice").await;
    let room = public_room(&alice).await;
    let mut events = Vec::new();
    for n in 0..5 {
        events.push(say(&alice, &room, &n.to_string()).await);
    }
    let mut connection = Connection::list(&alice, 1, json!([["m.room.create", ""]]));
    connection.sync().await;
    // By a subscription.
    let subscription =
        json!({"timeline_limit": 4, "required_state": [["m.room.create", ""], ["m.room.history_visibility", ""]]});
    connection.body["room_subscriptions"] = json!({ &room: subscription });
    let answer = connection.sync().await;
    let found = only(&answer, &room);
    assert_eq!(ids(&found["timeline"]), events[1..]);
    assert_eq!((&found["unstable_expanded_timeline"], &found["num_live"]), (&json!(true), &json!(0)));
    assert_eq!((&found["initial"], &found["limited"]), (&Value::Null, &json!(true)));
    assert_eq!(keys(&found["required_state"]), [key("m.room.history_visibility", "")]);
    nothing(&connection.sync().await);
    // Less is no news; what is new afterwards counts as live.
    connection.body["room_subscriptions"] = json!({});
    nothing(&connection.sync().await);
    let event = say(&alice, &room, "new").await;
    let answer = connection.sync().await;
    assert_eq!(ids(&only(&answer, &room)["timeline"]), [event]);
    assert_eq!(only(&answer, &room)["num_live"], 1);
    assert_eq!(only(&answer, &room)["unstable_expanded_timeline"], Value::Null);
}

#[tokio::test]
async fn pitfall_043_members_come_lazily_and_gaps_flush_them() {
    let server = Server::default();
    let (alice, bob, carol) = (server.user("alice").await, server.user("bob").await, server.user("carol").await);
    let room = public_room(&alice).await;
    join(&bob, &room).await;
    say(&alice, &room, "x").await;
    let mut connection = Connection::list(&alice, 2, json!([LAZY]));
    let answer = connection.sync().await;
    // The timeline has the join of bob and a message of alice.
    let member = |user: &User| key("m.room.member", &user.user_id);
    assert_eq!(keys(&only(&answer, &room)["required_state"]), [member(&alice), member(&bob)]);
    say(&bob, &room, "known").await;
    assert_eq!(only(&connection.sync().await, &room)["required_state"], Value::Null);
    // Without a gap a change of members is told.
    join(&carol, &room).await;
    say(&bob, &room, "y").await;
    assert_eq!(keys(&only(&connection.sync().await, &room)["required_state"]), [member(&carol)]);
    // With one it is not, and who speaks is told again.
    act(&carol, &room, "leave", json!({})).await;
    for n in 0..3 {
        say(&bob, &room, &n.to_string()).await;
    }
    let answer = connection.sync().await;
    assert_eq!(only(&answer, &room)["limited"], true);
    assert_eq!(keys(&only(&answer, &room)["required_state"]), [member(&bob)]);
}

#[tokio::test]
async fn pitfall_043_wildcards_of_required_state() {
    let server = Server::default();
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = public_room(&alice).await;
    join(&bob, &room).await;
    set(&alice, &room, "org.test", "a", json!({})).await;
    set(&alice, &room, "org.test", "b", json!({})).await;
    set(&alice, &room, "org.other", "a", json!({})).await;
    let state = ok(&alice.client.get(&path(&room, "state")).await);
    let required = async |required: Value| {
        let answer = Connection::list(&alice, 0, required).sync().await;
        keys(&only(&answer, &room)["required_state"])
    };
    assert_eq!(required(json!([["org.test", "*"]])).await, [key("org.test", "a"), key("org.test", "b")]);
    assert_eq!(required(json!([["*", "a"]])).await, [key("org.other", "a"), key("org.test", "a")]);
    assert_eq!(required(json!([["*", "*"]])).await, keys(&state));
    assert_eq!(required(json!([["m.room.member", "*"]])).await.len(), 2);
    let lazily = required(json!([["*", "*"], LAZY])).await;
    assert_eq!(lazily.len(), keys(&state).len() - 2);
    assert_eq!(required(json!([["org.test", "$LAZY"], ["org.test", "c"]])).await, []);
}

#[tokio::test]
async fn pitfall_045_rooms_one_is_not_in_are_not_there() {
    let server = Server::default();
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = create(&alice, json!({"preset": "public_chat", "name": "Secret"})).await;
    let subscription = json!({"timeline_limit": 9, "required_state": [["*", "*"]]});
    let mut connection = Connection::list(&bob, 9, json!([["*", "*"]]));
    connection.body["room_subscriptions"] =
        json!({ &room: subscription, "!no:where": subscription, "x": subscription });
    connection.body["extensions"] = json!({"typing": {"enabled": true}, "receipts": {"enabled": true}});
    let answer = connection.sync().await;
    nothing(&answer);
    assert_eq!(answer["lists"]["all"]["count"], 0);
    // Banned without ever having been there.
    act(&alice, &room, "ban", json!({"user_id": bob.user_id})).await;
    nothing(&connection.sync().await);
}

#[tokio::test]
async fn pitfall_045_after_a_kick_nothing_more_is_told() {
    let server = Server::default();
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = create(&alice, json!({"preset": "public_chat", "name": "Before"})).await;
    join(&bob, &room).await;
    let mut connection = Connection::list(&bob, 9, json!([["m.room.name", ""], ["m.room.member", "$ME"]]));
    connection.body["extensions"] = json!({"typing": {"enabled": true}, "receipts": {"enabled": true}});
    connection.sync().await;
    act(&alice, &room, "ban", json!({"user_id": bob.user_id})).await;
    set(&alice, &room, "m.room.name", "", json!({"name": "After"})).await;
    say(&alice, &room, "secret").await;
    ok(&alice
        .client
        .put(&path(&room, &format!("typing/{}", enc(&alice.user_id))), json!({"typing": true, "timeout": 9000}))
        .await);
    let answer = connection.sync().await;
    let found = only(&answer, &room);
    assert_eq!(found["timeline"].as_array().unwrap().len(), 1);
    assert_eq!(found["timeline"][0]["content"]["membership"], "ban");
    assert_eq!(keys(&found["required_state"]), [key("m.room.member", &bob.user_id)]);
    assert_eq!((&found["name"], &found["joined_count"]), (&Value::Null, &Value::Null));
    assert_eq!((&answer["lists"]["all"]["count"], &answer["extensions"]), (&json!(1), &json!({})));
    say(&alice, &room, "more").await;
    nothing(&connection.sync().await);
    // On a new connection the room is there as it was then.
    let answer = Connection::list(&bob, 2, json!([["m.room.name", ""]])).sync().await;
    let found = only(&answer, &room);
    assert_eq!((&found["name"], &found["initial"]), (&json!("Before"), &json!(true)));
    assert_eq!(found["required_state"][0]["content"]["name"], "Before");
    assert_eq!(found["timeline"].as_array().unwrap().last().unwrap()["content"]["membership"], "ban");
}

#[tokio::test]
async fn pitfall_045_a_room_that_was_left_is_told_once_and_then_gone() {
    let server = Server::default();
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = public_room(&alice).await;
    join(&bob, &room).await;
    let mut connection = Connection::list(&bob, 9, json!([]));
    connection.sync().await;
    act(&bob, &room, "leave", json!({})).await;
    let answer = connection.sync().await;
    assert_eq!(only(&answer, &room)["timeline"][0]["content"]["membership"], "leave");
    let answer = connection.sync().await;
    nothing(&answer);
    assert_eq!(answer["lists"]["all"]["count"], 0);
    assert_eq!(rooms_of(&Connection::list(&bob, 9, json!([])).sync().await), [""; 0]);
    // Who comes back gets all of it.
    join(&bob, &room).await;
    assert_eq!(only(&connection.sync().await, &room)["initial"], true);
}

#[tokio::test]
async fn pitfall_046_who_left_does_not_see_who_redacted_something_later() {
    let server = Server::default();
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = public_room(&alice).await;
    join(&bob, &room).await;
    let mut connection = Connection::list(&bob, 9, json!([]));
    connection.sync().await;
    let said = say(&alice, &room, "hello").await;
    act(&bob, &room, "leave", json!({})).await;
    let redact = path(&room, &format!("redact/{}/t", enc(&said)));
    ok(&alice.client.put(&redact, json!({"reason": "between us"})).await);
    let answer = connection.sync().await;
    let shown = only(&answer, &room)["timeline"].as_array().unwrap().iter().find(|event| event["event_id"] == *said);
    let shown = shown.unwrap();
    assert_eq!((&shown["content"], shown["unsigned"].get("redacted_because")), (&json!({}), None), "{shown}");
}

#[tokio::test]
async fn invites_are_seen_from_outside_until_they_are_answered() {
    let server = Server::default();
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let mut connection = Connection::list(&bob, 9, json!([["*", "*"]]));
    connection.body["lists"]["invites"] =
        json!({"ranges": [[0, 9]], "timeline_limit": 1, "filters": {"is_invite": true}});
    connection.sync().await;
    let request = json!({"preset": "private_chat", "name": "Come", "invite": [bob.user_id]});
    let (room, other) = (create(&alice, request.clone()).await, create(&alice, request).await);
    let answer = connection.sync().await;
    assert_eq!((&answer["lists"]["all"]["count"], &answer["lists"]["invites"]["count"]), (&json!(2), &json!(2)));
    let found = &answer["rooms"][&room];
    assert_eq!(
        (&found["initial"], &found["timeline"], &found["required_state"]),
        (&json!(true), &Value::Null, &Value::Null)
    );
    let state = found["invite_state"].as_array().unwrap();
    assert!(state.iter().any(|event| event["type"] == "m.room.create"));
    assert!(state.iter().all(|event| event.as_object().unwrap().len() == 4));
    nothing(&connection.sync().await);
    // One is taken back, one is taken.
    act(&alice, &other, "kick", json!({"user_id": bob.user_id})).await;
    let answer = connection.sync().await;
    assert_eq!(only(&answer, &other)["required_state"][0]["content"]["membership"], "leave");
    assert_eq!(only(&answer, &other)["timeline"].as_array().unwrap().len(), 1);
    join(&bob, &room).await;
    let answer = connection.sync().await;
    assert_eq!((&only(&answer, &room)["initial"], &answer["rooms"][&room]["name"]), (&json!(true), &json!("Come")));
    assert_eq!((&answer["lists"]["all"]["count"], &answer["lists"]["invites"]["count"]), (&json!(1), &json!(0)));
}

#[tokio::test]
async fn lists_are_filtered() {
    let server = Server::default();
    let alice = server.user("alice").await;
    let encryption = json!([{"type": "m.room.encryption", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}]);
    let plain = public_room(&alice).await;
    let space = create(&alice, json!({"creation_content": {"type": "m.space"}})).await;
    let encrypted = create(&alice, json!({"initial_state": encryption})).await;
    let mut connection = Connection::new(&alice, json!({}));
    let mut filtered = async |filters: Value| {
        let list = json!({"ranges": [[0, 9]], "timeline_limit": 0, "filters": filters});
        connection.pos = None;
        connection.body["lists"] = json!({ "l": list });
        let answer = connection.sync().await;
        assert_eq!(answer["lists"]["l"]["count"], answer["rooms"].as_object().unwrap().len());
        rooms_of(&answer)
    };
    let sorted = |rooms: &[&String]| {
        let mut rooms: Vec<String> = rooms.iter().map(|room| (*room).clone()).collect();
        rooms.sort_unstable();
        rooms
    };
    assert_eq!(filtered(json!({"room_types": ["m.space"]})).await, sorted(&[&space]));
    assert_eq!(filtered(json!({"room_types": [null]})).await, sorted(&[&plain, &encrypted]));
    assert_eq!(
        filtered(json!({"room_types": [null, "m.space"], "not_room_types": ["m.space"]})).await,
        sorted(&[&plain, &encrypted])
    );
    assert_eq!(filtered(json!({"is_encrypted": true})).await, sorted(&[&encrypted]));
    assert_eq!(filtered(json!({"is_encrypted": false, "room_name_like": "x"})).await, sorted(&[&plain, &space]));
    assert_eq!(filtered(json!({"is_dm": true})).await, sorted(&[]));
    assert_eq!(filtered(json!({"is_invite": false})).await, sorted(&[&plain, &space, &encrypted]));
}

#[tokio::test]
async fn extensions_follow_the_rooms_they_are_wanted_for() {
    let server = Server::default();
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = public_room(&alice).await;
    join(&bob, &room).await;
    let event = say(&bob, &room, "read me").await;
    let tag = format!("/_matrix/client/v3/user/{}/rooms/{}/account_data/m.test", enc(&alice.user_id), enc(&room));
    ok(&alice.client.put(&tag, json!({"n": 1})).await);
    ok(&bob.client.post(&path(&room, &format!("receipt/m.read/{}", enc(&event))), json!({})).await);
    let mut connection = Connection::list(&alice, 1, json!([]));
    let all = json!({"enabled": true});
    connection.body["extensions"] = json!({"typing": all, "receipts": all, "account_data": all, "org.unknown": all});
    let answer = connection.sync().await;
    let extensions = &answer["extensions"];
    assert_eq!(extensions["account_data"]["rooms"][&room], json!([{"type": "m.test", "content": {"n": 1}}]));
    assert_eq!(extensions["account_data"]["global"][0]["type"], "m.push_rules");
    let read = &extensions["receipts"]["rooms"][&room]["content"][&event]["m.read"];
    assert!(read[&bob.user_id]["ts"].is_u64() && read.as_object().unwrap().len() == 1, "{extensions}");
    assert_eq!((&extensions["typing"], &only(&answer, &room)["notification_count"]), (&Value::Null, &json!(1)));
    // Reading changes the count; typing begins and ends.
    ok(&alice.client.post(&path(&room, &format!("receipt/m.read/{}", enc(&event))), json!({})).await);
    let answer = connection.sync().await;
    assert_eq!(only(&answer, &room)["notification_count"], 0);
    assert!(answer["extensions"]["receipts"]["rooms"][&room]["content"][&event]["m.read"][&alice.user_id].is_object());
    let typing = path(&room, &format!("typing/{}", enc(&bob.user_id)));
    for (typing_now, typists) in [(true, json!([bob.user_id])), (false, json!([]))] {
        ok(&bob.client.put(&typing, json!({"typing": typing_now, "timeout": 9000})).await);
        let answer = connection.sync().await;
        assert_eq!(answer["rooms"], json!({}));
        let event = json!({"type": "m.typing", "content": {"user_ids": typists}});
        assert_eq!(answer["extensions"], json!({"typing": {"rooms": { &room: event }}}));
        nothing(&connection.sync().await);
    }
    // Where no room is wanted, none is told of.
    ok(&alice.client.put(&tag, json!({"n": 2})).await);
    connection.body["extensions"]["account_data"] = json!({"enabled": true, "lists": [], "rooms": []});
    nothing(&connection.sync().await);
}

#[tokio::test]
async fn pitfall_037_ignored_users_are_not_heard() {
    let server = Server::default();
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = public_room(&alice).await;
    join(&bob, &room).await;
    let mut connection = Connection::list(&alice, 5, json!([]));
    connection.sync().await;
    let at = format!("/_matrix/client/v3/user/{}/account_data/m.ignored_user_list", enc(&alice.user_id));
    ok(&alice.client.put(&at, json!({"ignored_users": { &bob.user_id: {} }})).await);
    say(&bob, &room, "unheard").await;
    nothing(&connection.sync().await);
    let invite = json!({"preset": "private_chat", "invite": [alice.user_id]});
    create(&bob, invite).await;
    let answer = connection.sync().await;
    nothing(&answer);
    assert_eq!(answer["lists"]["all"]["count"], 1);
}

#[tokio::test]
async fn pitfall_050_relations_come_with_limited_timelines() {
    let server = Server::default();
    let alice = server.user("alice").await;
    let room = public_room(&alice).await;
    let event = say(&alice, &room, "first").await;
    let thread = json!({"msgtype": "m.text", "body": "t", "m.relates_to": {"rel_type": "m.thread", "event_id": event}});
    send(&alice, &room, "m.room.message", thread).await;
    let answer = Connection::list(&alice, 2, json!([])).sync().await;
    let first = &only(&answer, &room)["timeline"][0];
    assert_eq!(first["unsigned"]["m.relations"]["m.thread"]["count"], 1, "{first}");
}

#[tokio::test]
async fn pitfall_038_a_room_comes_again_when_what_is_unread_is_counted_to_the_end() {
    let server = Server::default();
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = public_room(&alice).await;
    join(&bob, &room).await;
    for n in 0..60 {
        say(&bob, &room, &n.to_string()).await;
    }
    server.app.sync.recounts.set_patience(std::time::Duration::from_micros(2));
    let mut connection = Connection::list(&alice, 1, json!([]));
    let part = only(&connection.sync().await, &room)["notification_count"].as_u64().unwrap();
    assert!((1..60).contains(&part), "{part}");
    nothing(&connection.sync().await);
    crate::sync::recount::drain(&server.app).await.unwrap();
    let answer = connection.sync().await;
    let again = only(&answer, &room);
    assert_eq!((&again["notification_count"], again.get("timeline")), (&json!(60), None));
    nothing(&connection.sync().await);
}
