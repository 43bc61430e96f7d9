//! The dialect of the merged proposal, where it differs from the one before.

use super::*;

const SYNC: &str = "/_matrix/client/v4/sync";

async fn post(user: &User, body: &Value) -> Answer {
    user.client.post(SYNC, body.clone()).await
}

/// Gets an answer, and goes on from it.
async fn go_on(user: &User, body: &mut Value) -> Value {
    let answer = ok(&post(user, body).await);
    body["pos"] = answer["pos"].clone();
    answer
}

fn list(filters: Value) -> Value {
    json!({"timeline_limit": 1, "required_state": {}, "filters": filters})
}

async fn account_data(user: &User, kind: &str, content: Value) {
    let path = format!("/_matrix/client/v3/user/{}/account_data/{kind}", enc(&user.user_id));
    ok(&user.client.put(&path, content).await);
}

#[tokio::test]
async fn everything_is_in_the_body_and_has_its_merged_name() {
    let server = Server::default();
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = create(&alice, json!({"preset": "public_chat", "name": "Room", "topic": "Topic"})).await;
    join(&bob, &room).await;
    let (one, two) = (say(&bob, &room, "one").await, say(&bob, &room, "two").await);
    let state = json!({"include": [{}], "exclude": [{"type": "m.room.topic"}, {"type": "m.room.create", "state_key": ""}], "lazy_members": true});
    let all = json!({"timeline_limit": 1, "required_state": state});
    let none = json!({"range": [5, 9], "timeline_limit": 1, "required_state": {}});
    let mut body = json!({"conn_id": "c", "lists": {"all": all, "none": none}});
    let answer = go_on(&alice, &mut body).await;
    assert_eq!(answer["lists"], json!({"all": {"count": 1}, "none": {"count": 1}}));
    let found = only(&answer, &room);
    assert_eq!((&found["membership"], &found["lists"]), (&json!("join"), &json!(["all"])));
    assert_eq!((&found["initial"], &found["name"]), (&json!(true), &json!("Room")));
    assert_eq!(ids(&found["timeline"]), std::slice::from_ref(&two));
    for early in ["notification_count", "highlight_count", "unstable_expanded_timeline", "invite_state"] {
        assert_eq!(found.get(early), None, "{early}");
    }
    let state = keys(&found["required_state"]);
    assert!(state.contains(&key("m.room.name", "")) && state.contains(&key("m.room.power_levels", "")));
    assert!(!state.iter().any(|(kind, _)| kind == "m.room.topic" || kind == "m.room.create"), "{state:?}");
    assert!(state.contains(&key("m.room.member", &bob.user_id)));
    assert!(!state.contains(&key("m.room.member", &alice.user_id)), "{state:?}");
    // A subscription asks for more: also for what the list does not want.
    let more = json!({"timeline_limit": 2, "required_state": {"include": [{"type": "m.room.topic", "state_key": ""}]}});
    body["room_subscriptions"] = json!({ &room: more });
    let answer = go_on(&alice, &mut body).await;
    let found = only(&answer, &room);
    assert_eq!((ids(&found["timeline"]), &found["expanded_timeline"]), (vec![one, two], &json!(true)));
    // Whoever is seen in a limited timeline comes with it.
    assert_eq!(keys(&found["required_state"]), [key("m.room.member", &bob.user_id), key("m.room.topic", "")]);
    // The position serves elsewhere, too.
    let three = say(&bob, &room, "three").await;
    let from = body["pos"].as_str().unwrap();
    let after = ok(&alice.client.get(&path(&room, &format!("messages?dir=f&from={}", enc(from)))).await);
    assert_eq!(ids(&after["chunk"]), [three]);
    // Without a list it says none.
    body["lists"] = json!({});
    assert_eq!(only(&go_on(&alice, &mut body).await, &room).get("lists"), None);
}

#[tokio::test]
async fn rooms_seen_from_outside_are_stripped() {
    let server = Server::default();
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let room = create(&alice, json!({"preset": "private_chat", "name": "Room", "invite": [bob.user_id]})).await;
    let mut body =
        json!({"lists": {"in": list(json!({"is_invited": true})), "not": list(json!({"is_invited": false}))}});
    let answer = go_on(&bob, &mut body).await;
    assert_eq!(answer["lists"], json!({"in": {"count": 1}, "not": {"count": 0}}));
    let found = only(&answer, &room);
    assert_eq!((&found["membership"], &found["lists"]), (&json!("invite"), &json!(["in"])));
    assert!(keys(&found["stripped_state"]).contains(&key("m.room.member", &bob.user_id)));
    assert_eq!((found.get("timeline"), found.get("required_state")), (None, None));
    act(&bob, &room, "leave", json!({})).await;
    let answer = go_on(&bob, &mut body).await;
    let found = only(&answer, &room);
    assert_eq!((&found["membership"], &found["lists"]), (&json!("leave"), &json!(["not"])));
    assert_eq!(keys(&found["stripped_state"]), [key("m.room.member", &bob.user_id)]);
    assert_eq!(found["stripped_state"][0].as_object().unwrap().len(), 4);
    assert_eq!((found.get("timeline"), found.get("required_state")), (None, None));
    nothing(&go_on(&bob, &mut body).await);
}

#[tokio::test]
async fn lists_are_filtered_by_spaces_and_tags() {
    let server = Server::default();
    let alice = server.user("alice").await;
    let (one, two, three) = (public_room(&alice).await, public_room(&alice).await, public_room(&alice).await);
    let space = create(&alice, json!({"creation_content": {"type": "m.space"}})).await;
    let via = json!({"via": ["hs.test"]});
    for child in [&one, &two] {
        set(&alice, &space, "m.space.child", child, via.clone()).await;
    }
    set(&alice, &space, "m.space.child", &two, json!({})).await;
    let tag = async |room: &str, tag: &str| {
        let path = format!("/_matrix/client/v3/user/{}/rooms/{}/tags/{tag}", enc(&alice.user_id), enc(room));
        ok(&alice.client.put(&path, json!({"order": 0.5})).await);
    };
    tag(&two, "u.x").await;
    tag(&three, "u.x").await;
    tag(&three, "m.favourite").await;
    let mut body = json!({"lists": {
        "in": list(json!({"spaces": [space, "!other:hs.test", "nonsense"]})), "nowhere": list(json!({"spaces": []})),
        "x": list(json!({"tags": ["u.x", "u.y"]})), "only": list(json!({"tags": ["u.x"], "not_tags": ["m.favourite"]})),
        "untagged": list(json!({"not_tags": ["u.x"]})),
    }});
    let in_list = |answer: &Value, list: &str| {
        let rooms = answer["rooms"].as_object().unwrap().iter();
        let mut found: Vec<String> = rooms
            .filter(|(_, room)| room["lists"].as_array().is_some_and(|lists| lists.contains(&json!(list))))
            .map(|(room, _)| room.clone())
            .collect();
        found.sort_unstable();
        found
    };
    let sorted = |mut rooms: Vec<String>| {
        rooms.sort_unstable();
        rooms
    };
    let answer = go_on(&alice, &mut body).await;
    assert_eq!(in_list(&answer, "in"), std::slice::from_ref(&one));
    assert_eq!(in_list(&answer, "nowhere"), [""; 0]);
    assert_eq!(in_list(&answer, "x"), sorted(vec![two.clone(), three.clone()]));
    assert_eq!(in_list(&answer, "only"), std::slice::from_ref(&two));
    assert_eq!(in_list(&answer, "untagged"), sorted(vec![one.clone(), space.clone()]));
    // Both follow what happens.
    set(&alice, &space, "m.space.child", &three, via).await;
    tag(&one, "u.y").await;
    let answer = go_on(&alice, &mut body).await;
    assert_eq!((&answer["lists"]["in"]["count"], &answer["lists"]["x"]["count"]), (&json!(2), &json!(3)));
    assert_eq!(answer["lists"]["untagged"]["count"], 2);
    // Who is not in the space does not see what is in it.
    act(&alice, &space, "leave", json!({})).await;
    assert_eq!(go_on(&alice, &mut body).await["lists"]["in"]["count"], 0);
    // The dialect of before knows them, too.
    let list = json!({"ranges": [[0, 9]], "timeline_limit": 1, "required_state": [], "filters": {"tags": ["u.y"]}});
    let answer = Connection::new(&alice, json!({"lists": {"y": list}})).sync().await;
    assert_eq!(rooms_of(&answer), [one]);
}

#[tokio::test]
async fn that_a_room_is_direct_is_told_when_it_changes() {
    let server = Server::default();
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let (room, other) = (public_room(&alice).await, public_room(&alice).await);
    let mut body = json!({"lists": {"all": list(json!({}))}});
    let answer = go_on(&alice, &mut body).await;
    assert_eq!((rooms_of(&answer).len(), answer["rooms"][&room].get("is_dm")), (2, None));
    account_data(&alice, "m.direct", json!({ &bob.user_id: [room] })).await;
    let answer = go_on(&alice, &mut body).await;
    assert_eq!(only(&answer, &room)["is_dm"], true);
    assert_eq!(answer["rooms"][&room].get("timeline"), None);
    nothing(&go_on(&alice, &mut body).await);
    account_data(&alice, "m.direct", json!({ &bob.user_id: [other] })).await;
    let before = body.clone();
    let answer = go_on(&alice, &mut body).await;
    assert_eq!((&answer["rooms"][&room]["is_dm"], &answer["rooms"][&other]["is_dm"]), (&json!(false), &json!(true)));
    // A retry, also with another request, is told the same.
    let mut again = before;
    again["lists"]["all"]["timeline_limit"] = json!(2);
    let answer = ok(&post(&alice, &again).await);
    assert_eq!((&answer["rooms"][&room]["is_dm"], &answer["rooms"][&other]["is_dm"]), (&json!(false), &json!(true)));
    nothing(&go_on(&alice, &mut body).await);
}

#[tokio::test]
async fn extensions_are_answered_by_the_name_they_were_asked_for() {
    let server = Server::default();
    let alice = server.user("alice").await;
    let on = json!({"enabled": true});
    let mut body = json!({"extensions": {
        "org.matrix.msc4538.to_device": on, "org.matrix.msc4543.e2ee": on, "org.matrix.msc3959.account_data": on,
        "org.matrix.msc3960.receipts": on, "org.matrix.msc4508.typing": on,
    }});
    let names = |answer: &Value| answer["extensions"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let prefixed = ["org.matrix.msc3959.account_data", "org.matrix.msc4538.to_device", "org.matrix.msc4543.e2ee"];
    assert_eq!(names(&ok(&post(&alice, &body).await)), prefixed);
    body["extensions"] = json!({"to_device": on, "e2ee": on, "account_data": on, "typing": on, "unheard.of": on});
    assert_eq!(names(&ok(&post(&alice, &body).await)), ["account_data", "e2ee", "to_device"]);
}

#[tokio::test]
async fn pitfall_040_a_position_is_that_of_a_device() {
    let server = Server::default();
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let phone = server.log_in("alice").await;
    let mut body = json!({"lists": {"all": list(json!({}))}});
    go_on(&alice, &mut body).await;
    for other in [&phone, &bob] {
        let answer = post(other, &body).await;
        assert_eq!((answer.status.as_u16(), answer.errcode().as_str()), (400, "M_UNKNOWN_POS"));
    }
    ok(&post(&alice, &body).await);
}

#[tokio::test]
async fn requests_that_make_no_sense_are_refused() {
    let server = Server::default();
    let alice = server.user("alice").await;
    let room = json!({"timeline_limit": 1, "required_state": {}});
    let many = |name: &dyn Fn(usize) -> String| Value::Object((0..101).map(|n| (name(n), room.clone())).collect());
    for (body, code) in [
        (json!({"set_presence": "sleepy"}), "M_INVALID_PARAM"),
        (json!({"lists": {"a b": room}}), "M_INVALID_PARAM"),
        (json!({"lists": {"": room}}), "M_INVALID_PARAM"),
        (json!({ "lists": many(&|n| format!("l{n}")) }), "M_INVALID_PARAM"),
        (json!({ "room_subscriptions": many(&|n| format!("!{n}:hs.test")) }), "M_INVALID_PARAM"),
        (json!({"lists": {"a": {"range": [2, 1], "timeline_limit": 1, "required_state": {}}}}), "M_INVALID_PARAM"),
        (json!({"lists": {"a": {"required_state": {}}}}), "M_BAD_JSON"),
        (json!({"lists": {"a": {"timeline_limit": 1}}}), "M_BAD_JSON"),
        (json!({"lists": {"a": {"timeline_limit": 1, "required_state": [["*", "*"]]}}}), "M_BAD_JSON"),
        (json!({"pos": "nonsense"}), "M_UNKNOWN_POS"),
    ] {
        let answer = post(&alice, &body).await;
        assert_eq!((answer.status.as_u16(), answer.errcode().as_str()), (400, code), "{body}");
    }
    assert_eq!(server.client.post(SYNC, json!({})).await.errcode(), "M_MISSING_TOKEN");
}
