//! Tests of reading rooms, as clients do it: requests into the router of a server in memory.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::testing::*;
use crate::testing::{Server, User};

/// Everybody's view of one room whose history has one setting throughout.
#[tokio::test]
async fn pitfall_046_who_sees_what_under_which_history_visibility() {
    let server = Server::default();
    let [alice, later, gone, asked, never] = users(&server).await;
    // Columns: before the invites, after the invites, after the joins, after one of them left.
    let cases = [
        ("world_readable", [("later", "yyyy"), ("gone", "yyyn"), ("asked", "yyyy"), ("never", "yyyy")]),
        ("shared", [("later", "yyyy"), ("gone", "yyyn"), ("asked", "nnnn"), ("never", "nnnn")]),
        ("invited", [("later", "nyyy"), ("gone", "nyyn"), ("asked", "nyyy"), ("never", "nnnn")]),
        ("joined", [("later", "nnyy"), ("gone", "nnyn"), ("asked", "nnnn"), ("never", "nnnn")]),
        // Nobody knows what this means, so it means `shared`.
        ("org.example.odd", [("later", "yyyy"), ("gone", "yyyn"), ("asked", "nnnn"), ("never", "nnnn")]),
    ];
    for (setting, expected) in cases {
        let room = room_with_history(&alice, setting).await;
        let mut said = vec![room.say("before").await];
        for user in [&later, &gone, &asked] {
            room.act("invite", json!({"user_id": user.user_id})).await;
        }
        said.push(room.say("invited").await);
        room.join(&later).await;
        room.join(&gone).await;
        said.push(room.say("joined").await);
        room.of(&gone).leave().await;
        said.push(room.say("left").await);
        for (user, (name, sees)) in [&later, &gone, &asked, &never].into_iter().zip(expected) {
            let room = room.of(user);
            let mut seen = String::new();
            for event_id in &said {
                let answer = room.event(event_id).await;
                seen.push(if answer.status.is_success() { 'y' } else { 'n' });
                let context = room.get(&format!("context/{}", enc(event_id))).await;
                let reach = answer.status.is_success() && !(name == "asked" && setting == "invited");
                assert_eq!(context.status.is_success(), reach, "{setting} {name}: {}", context.json());
                if !answer.status.is_success() {
                    assert_eq!(refused(&answer), not_found());
                }
            }
            assert_eq!(seen, sees, "{setting}, {name}");
            // The timeline shows the same, to those who may read it at all.
            let reads = matches!(name, "later" | "gone") || setting == "world_readable";
            let answer = room.get("messages?dir=b&limit=100").await;
            assert_eq!(answer.status.is_success(), reads, "{setting}, {name}: {}", answer.json());
            if reads {
                let shown = answer.json();
                let shown = ids(shown["chunk"].as_array().unwrap());
                let in_timeline: String =
                    said.iter().map(|id| if shown.contains(&id.as_str()) { 'y' } else { 'n' }).collect();
                assert_eq!(in_timeline, sees, "{setting}, {name}, in the timeline");
            } else {
                assert_eq!(refused(&answer), forbidden());
            }
        }
    }
}

#[tokio::test]
async fn pitfall_046_changes_of_visibility_and_own_memberships_are_seen_from_both_sides() {
    let server = Server::default();
    let [alice, bob, carol] = users(&server).await;
    let room = room_with_history(&alice, "joined").await;
    let opened = room.set("m.room.history_visibility", "", json!({"history_visibility": "world_readable"})).await;
    let open = room.say("open").await;
    let closed = room.set("m.room.history_visibility", "", json!({"history_visibility": "joined"})).await;
    let secret = room.say("secret").await;
    room.join(&bob).await;
    let mine = room.of(&bob).say("mine").await;
    room.of(&bob).leave().await;
    room.say("after").await;
    // Somebody who never was there sees what was open, and both ends of it.
    for event_id in [&opened, &open, &closed] {
        ok(&room.of(&carol).event(event_id).await);
    }
    for event_id in [&secret, &mine] {
        assert_eq!(refused(&room.of(&carol).event(event_id).await), not_found());
    }
    // And the timeline is theirs only while it is open.
    assert_eq!(refused(&room.of(&carol).get("messages?dir=b").await), forbidden());
    let seen = room.of(&bob).history().await;
    let own: Vec<&Value> = seen.iter().filter(|event| event["state_key"] == *bob.user_id).collect();
    assert_eq!(own.iter().map(|event| &event["content"]["membership"]).collect::<Vec<_>>(), ["leave", "join"]);
    let shown = ids(&seen);
    assert!(shown.contains(&mine.as_str()) && shown.contains(&open.as_str()) && !shown.contains(&secret.as_str()));
}

#[tokio::test]
async fn pitfall_047_who_left_sees_the_room_as_it_was_then() {
    let server = Server::default();
    let [alice, bob, carol, dave] = users(&server).await;
    let room = public_room(&alice).await;
    room.set("m.room.name", "", json!({"name": "old"})).await;
    room.join(&bob).await;
    room.of(&bob).leave().await;
    room.set("m.room.name", "", json!({"name": "new"})).await;
    room.set("org.example.later", "", json!({})).await;
    room.join(&carol).await;
    room.say("after").await;
    // A ban that comes later opens nothing.
    for banned in [false, true] {
        if banned {
            room.act("ban", json!({"user_id": bob.user_id})).await;
        }
        let bobs = room.of(&bob);
        let state = ok(&bobs.get("state").await);
        let state = state.as_array().unwrap();
        let find = |kind: &str, key: &str| {
            state.iter().find(|event| event["type"] == kind && event["state_key"] == key).map(|event| &event["content"])
        };
        assert_eq!(find("m.room.name", ""), Some(&json!({"name": "old"})));
        assert_eq!(find("org.example.later", ""), None);
        assert_eq!(find("m.room.member", &bob.user_id).unwrap()["membership"], "leave");
        assert_eq!(find("m.room.member", &carol.user_id), None);
        assert_eq!(ok(&bobs.get("state/m.room.name/").await), json!({"name": "old"}));
        assert_eq!(refused(&bobs.get("state/org.example.later/").await), not_found());
        let members = ok(&bobs.get("members").await);
        assert_eq!(members["chunk"].as_array().unwrap().len(), 2);
        let newest = &bobs.history().await[0];
        assert_eq!((&newest["content"]["membership"], &newest["state_key"]), (&json!("leave"), &json!(bob.user_id)));
        assert_eq!(refused(&bobs.get("joined_members").await), forbidden());
    }
    // Who never was there, or forgot it, sees nothing.
    ok(&bob.client.post(&room.path("forget"), json!({})).await);
    for user in [&bob, &dave] {
        let room = room.of(user);
        for rest in ["state", "state/m.room.name/", "members", "joined_members", "messages?dir=b", "aliases"] {
            assert_eq!(refused(&room.get(rest).await), forbidden(), "{rest}");
        }
    }
    let nowhere = Room { user: &alice, id: "!nowhere:hs.test".to_owned() };
    for rest in ["state", "state/m.room.name/", "members", "joined_members", "messages?dir=b"] {
        assert_eq!(refused(&nowhere.get(rest).await), forbidden(), "{rest}");
    }
    assert_eq!(refused(&nowhere.event("$e").await), not_found());
}

#[tokio::test]
async fn an_open_room_can_be_looked_at_from_outside() {
    let server = Server::default();
    let [alice, bob] = users(&server).await;
    let room = room_with_history(&alice, "world_readable").await;
    room.say("hello").await;
    let outside = room.of(&bob);
    assert_eq!(bodies(&outside.messages("dir=b").await["chunk"]), ["hello"]);
    assert_eq!(outside.messages("dir=b").await["chunk"][0]["unsigned"]["membership"], "leave");
    ok(&outside.get("state").await);
    ok(&outside.get("members").await);
    ok(&outside.get("aliases").await);
    assert_eq!(refused(&outside.get("joined_members").await), forbidden());
}

#[tokio::test]
async fn pitfall_004_state_paths_with_odd_characters() {
    let server = Server::default();
    let [alice] = users(&server).await;
    let room = public_room(&alice).await;
    let odd = [("org.example/a b", "k/ey%2F"), ("org.example.ü", "@alice:hs.test"), ("org.example+plus", "a+b c?d#e")];
    for (nr, (kind, key)) in odd.into_iter().enumerate() {
        let key = if key.starts_with('@') { &alice.user_id } else { key };
        room.set(kind, key, json!({"nr": nr})).await;
        let path = format!("state/{}/{}", enc(kind), enc(key));
        assert_eq!(ok(&room.get(&path).await), json!({"nr": nr}), "{path}");
        let event = ok(&room.get(&format!("{path}?format=event")).await);
        assert_eq!((&event["type"], &event["state_key"]), (&json!(kind), &json!(key)));
        assert_eq!((&event["room_id"], &event["content"]), (&json!(room.id), &json!({"nr": nr})));
        assert_eq!(refused(&room.get(&format!("state/{}", enc(kind))).await), not_found());
    }
    for path in ["state/m.room.create", "state/m.room.create/"] {
        assert!(ok(&room.get(path).await).is_object(), "{path}");
        assert_eq!(ok(&room.get(&format!("{path}?format=event")).await)["sender"], *alice.user_id);
    }
    assert_eq!(refused(&room.get("state/m.room.create?format=odd").await).0, 400);
}

#[tokio::test]
async fn pitfall_048_the_last_page_has_no_end() {
    let server = Server::default();
    let [alice] = users(&server).await;
    let room = public_room(&alice).await;
    for nr in 0..3 {
        room.say(&nr.to_string()).await;
    }
    let all = room.history().await;
    let whole = room.messages(&format!("dir=b&limit={}", all.len())).await;
    assert_eq!(whole.get("end"), None);
    let short = room.messages(&format!("dir=b&limit={}", all.len() - 1)).await;
    let rest = room.messages(&format!("dir=b&from={}", short["end"].as_str().unwrap())).await;
    assert_eq!((bodies(&rest["chunk"]).len(), rest["chunk"].as_array().unwrap().len()), (0, 1));
    assert_eq!(rest["chunk"][0]["type"], "m.room.create");
    assert_eq!(rest.get("end"), None);
    // Between two tokens there is what lies between them.
    let first = room.messages("dir=b&limit=1").await;
    let second = room.messages("dir=b&limit=2").await;
    let (newer, older) = (first["end"].as_str().unwrap(), second["end"].as_str().unwrap());
    let between = room.messages(&format!("dir=b&from={newer}&to={older}")).await;
    assert_eq!(bodies(&between["chunk"]), ["1"]);
    let forward = room.messages(&format!("dir=f&from={older}&to={newer}")).await;
    assert_eq!(bodies(&forward["chunk"]), ["1"]);
    assert_eq!(bodies(&room.messages(&format!("dir=f&from={older}")).await["chunk"]), ["1", "2"]);
    for wrong in ["dir=x", "", "dir=b&from=nonsense", "dir=b&limit=-1", "dir=b&filter=%7B"] {
        let answer = room.get(&format!("messages?{wrong}")).await;
        assert_eq!(refused(&answer), (400, "M_INVALID_PARAM".to_owned()), "{wrong}");
    }
}

#[tokio::test]
async fn pitfall_048_filtered_pages_go_on_to_their_end() {
    let server = Server::default();
    let [alice, bob] = users(&server).await;
    let room = public_room(&alice).await;
    room.join(&bob).await;
    room.say("a").await;
    room.of(&bob).say("b").await;
    room.send("m.room.message", json!({"msgtype": "m.image", "body": "c", "url": "mxc://hs.test/c"})).await;
    room.send("org.example.x", json!({"body": "x"})).await;
    let filtered = async |filter: Value| {
        let page = room.messages(&format!("dir=b&filter={}", enc(&filter.to_string()))).await;
        assert_eq!(page.get("end"), None);
        bodies(&page["chunk"]).join("")
    };
    assert_eq!(filtered(json!({"types": ["m.room.message"]})).await, "cba");
    assert_eq!(filtered(json!({"types": ["m.*"], "not_types": ["m.room.mem*"], "senders": [bob.user_id]})).await, "b");
    assert_eq!(filtered(json!({"not_senders": [bob.user_id]})).await, "xca");
    assert_eq!(filtered(json!({"contains_url": true})).await, "c");
    assert_eq!(filtered(json!({"types": ["m.room.message"], "contains_url": false})).await, "ba");
    assert_eq!(filtered(json!({"types": []})).await, "");
    assert_eq!(filtered(json!({"not_rooms": [room.id]})).await, "");
    assert_eq!(filtered(json!({"rooms": [room.id], "types": ["org.example.x"]})).await, "x");
    // Pages of one, of which the filter takes few.
    let filter = enc(&json!({"types": ["m.room.message"], "limit": 1}).to_string());
    let (mut said, mut from) = (String::new(), String::new());
    loop {
        let page = room.messages(&format!("dir=b&from={from}&filter={filter}")).await;
        assert!(page["chunk"].as_array().unwrap().len() <= 1);
        said += &bodies(&page["chunk"]).join("");
        match page["end"].as_str() {
            Some(end) => from = end.to_owned(),
            None => break,
        }
    }
    assert_eq!(said, "cba");
}

#[tokio::test]
async fn pitfall_048_lazy_loading_brings_the_senders() {
    let server = Server::default();
    let [alice, bob, carol] = users(&server).await;
    let room = public_room(&alice).await;
    room.join(&bob).await;
    room.join(&carol).await;
    room.of(&bob).say("b").await;
    let lazy = enc(&json!({"lazy_load_members": true}).to_string());
    let page = room.messages(&format!("dir=b&limit=1&filter={lazy}")).await;
    let state = page["state"].as_array().unwrap();
    assert_eq!(state.iter().map(|event| &event["state_key"]).collect::<Vec<_>>(), [&json!(bob.user_id)]);
    assert_eq!(room.messages("dir=b&limit=1").await.get("state"), None);
}

#[tokio::test]
async fn pitfall_002_only_the_sending_device_gets_its_transaction_id_back() {
    let server = Server::default();
    let [alice, bob] = users(&server).await;
    let other = server.log_in("alice").await;
    let room = public_room(&alice).await;
    room.join(&bob).await;
    let event_id = room.say("x").await;
    let txn = async |user: &User| {
        let page = room.of(user).messages("dir=b&limit=1").await;
        let event = ok(&room.of(user).event(&event_id).await);
        assert_eq!(page["chunk"][0]["unsigned"].get("transaction_id"), event["unsigned"].get("transaction_id"));
        event["unsigned"].get("transaction_id").cloned()
    };
    assert!(txn(&alice).await.is_some());
    assert_eq!(txn(&other).await, None);
    assert_eq!(txn(&bob).await, None);
}

#[tokio::test]
async fn pitfall_053_unsigned_tells_what_changed() {
    let server = Server::default();
    let [alice, bob] = users(&server).await;
    let room = public_room(&alice).await;
    let first = room.set("m.room.topic", "", json!({"topic": "one"})).await;
    let second = room.set("m.room.topic", "", json!({"topic": "two"})).await;
    room.join(&bob).await;
    let seen = ok(&room.of(&bob).event(&second).await);
    assert_eq!(seen["unsigned"]["replaces_state"], *first);
    assert_eq!(seen["unsigned"]["prev_content"], json!({"topic": "one"}));
    assert_eq!(seen["unsigned"]["membership"], "leave");
    assert_eq!(ok(&room.event(&second).await)["unsigned"]["membership"], "join");
    let said = room.say("oops").await;
    let redaction = room.redact(&said).await;
    let redacted = ok(&room.event(&said).await);
    assert_eq!(redacted["content"], json!({}));
    assert_eq!(redacted["unsigned"]["redacted_because"]["event_id"], *redaction);
}

#[tokio::test]
async fn pitfall_053_prev_content_is_for_those_who_may_see_it() {
    let server = Server::default();
    let [alice, bob] = users(&server).await;
    let room = room_with_history(&alice, "joined").await;
    room.set("m.room.topic", "", json!({"topic": "secret"})).await;
    room.join(&bob).await;
    let second = room.set("m.room.topic", "", json!({"topic": "public"})).await;
    assert_eq!(ok(&room.event(&second).await)["unsigned"]["prev_content"], json!({"topic": "secret"}));
    assert_eq!(ok(&room.of(&bob).event(&second).await)["unsigned"].get("prev_content"), None);
}

#[tokio::test]
async fn pitfall_037_ignored_users_fall_silent_but_stay_members() {
    let server = Server::default();
    let [alice, bob] = users(&server).await;
    let room = public_room(&alice).await;
    room.join(&bob).await;
    room.of(&bob).say("noise").await;
    let root = room.say("signal").await;
    let thread = json!({"rel_type": "m.thread", "event_id": root});
    room.of(&bob).send("m.room.message", json!({"body": "noise", "m.relates_to": thread})).await;
    let path = format!("/_matrix/client/v3/user/{}/account_data/m.ignored_user_list", enc(&alice.user_id));
    let mut ignored = serde_json::Map::new();
    ignored.insert(bob.user_id.clone(), json!({}));
    ok(&alice.client.put(&path, json!({"ignored_users": ignored})).await);
    let page = room.messages("dir=b&limit=100").await;
    assert_eq!(bodies(&page["chunk"]), ["signal"]);
    assert!(page["chunk"].as_array().unwrap().iter().any(|event| event["state_key"] == *bob.user_id));
    assert_eq!(ok(&room.event(&root).await)["unsigned"].get("m.relations"), None);
    let related = ok(&alice.client.get(&room.path(&format!("relations/{}", enc(&root))).replace("v3", "v1")).await);
    assert_eq!(related["chunk"], json!([]));
}

#[tokio::test]
async fn pitfall_049_context_splits_its_limit_and_fits_the_timeline() {
    let server = Server::default();
    let [alice, bob] = users(&server).await;
    let room = public_room(&alice).await;
    for nr in 0..4 {
        room.say(&format!("b{nr}")).await;
    }
    let event_id = room.say("here").await;
    for nr in 0..2 {
        room.say(&format!("a{nr}")).await;
    }
    room.set("m.room.topic", "", json!({"topic": "late"})).await;
    room.say("a2").await;
    let context = async |query: &str| ok(&room.get(&format!("context/{}{query}", enc(&event_id))).await);
    let around = context("?limit=5").await;
    assert_eq!(bodies(&around["events_before"]), ["b3", "b2"]);
    assert_eq!(around["event"]["content"]["body"], "here");
    assert_eq!(bodies(&around["events_after"]), ["a0", "a1"]);
    assert_eq!(around["events_after"].as_array().unwrap().len(), 3);
    // The state is that at the last event, which is the change of topic.
    let topic = |state: &Value| state.as_array().unwrap().iter().any(|event| event["type"] == "m.room.topic");
    assert!(topic(&around["state"]));
    assert!(!topic(&context("?limit=2").await["state"]));
    // Nothing is left out and nothing comes twice where the timeline goes on.
    let [start, end] = ["start", "end"].map(|name| enc(around[name].as_str().unwrap()));
    assert_eq!(bodies(&room.messages(&format!("dir=b&from={start}&limit=2")).await["chunk"]), ["b1", "b0"]);
    assert_eq!(bodies(&room.messages(&format!("dir=f&from={end}")).await["chunk"]), ["a2"]);
    let alone = context("?limit=0").await;
    assert_eq!((&alone["events_before"], &alone["events_after"]), (&json!([]), &json!([])));
    let start = enc(alone["start"].as_str().unwrap());
    assert_eq!(bodies(&room.messages(&format!("dir=b&from={start}&limit=1")).await["chunk"]), ["b3"]);
    // Lazily, only those who spoke are part of the state.
    room.join(&bob).await;
    let lazy = enc(&json!({"lazy_load_members": true}).to_string());
    let state = context(&format!("?limit=2&filter={lazy}")).await["state"].clone();
    let members = state.as_array().unwrap().iter().filter(|event| event["type"] == "m.room.member");
    assert_eq!(members.map(|event| &event["state_key"]).collect::<Vec<_>>(), [&json!(alice.user_id)]);
    assert_eq!(refused(&room.get("context/%24nothing").await), not_found());
}

#[tokio::test]
async fn state_that_was_read_before_is_shown_redacted_after_its_redaction() {
    let server = Server::default();
    let [alice] = users(&server).await;
    let room = public_room(&alice).await;
    let topic = room.set("m.room.topic", "", json!({"topic": "gone soon"})).await;
    let topic_of = async || {
        let state = ok(&room.get("state").await);
        state.as_array().unwrap().iter().find(|event| event["event_id"] == *topic).unwrap()["content"].clone()
    };
    assert_eq!(topic_of().await, json!({"topic": "gone soon"}));
    room.redact(&topic).await;
    assert_eq!(topic_of().await, json!({}));
}

#[tokio::test]
async fn members_are_those_of_the_time_and_kind_asked_for() {
    let server = Server::default();
    let [alice, bob, carol, dave] = users(&server).await;
    let room = public_room(&alice).await;
    room.join(&bob).await;
    let early = room.messages("dir=b&limit=1").await["start"].as_str().unwrap().to_owned();
    room.of(&bob).leave().await;
    room.act("invite", json!({"user_id": carol.user_id})).await;
    room.act("ban", json!({"user_id": dave.user_id})).await;
    let members = async |query: &str| {
        let found = ok(&room.get(&format!("members{query}")).await);
        let member = |event: &Value| {
            assert_eq!(event["room_id"], *room.id);
            let name =
                event["state_key"].as_str().unwrap().trim_start_matches('@').split(':').next().unwrap().to_owned();
            format!("{name} {}", event["content"]["membership"].as_str().unwrap())
        };
        found["chunk"].as_array().unwrap().iter().map(member).collect::<BTreeSet<_>>()
    };
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(members("").await, set(&["alice join", "bob leave", "carol invite", "dave ban"]));
    assert_eq!(members("?membership=join").await, set(&["alice join"]));
    assert_eq!(members("?not_membership=leave").await, set(&["alice join", "carol invite", "dave ban"]));
    assert_eq!(members("?membership=ban&not_membership=join").await, set(&["bob leave", "carol invite", "dave ban"]));
    assert_eq!(members(&format!("?at={early}")).await, set(&["alice join", "bob join"]));
    assert_eq!(refused(&room.get("members?membership=odd").await).0, 400);
    assert_eq!(refused(&room.get("members?at=odd").await).0, 400);
    let joined = ok(&room.get("joined_members").await);
    assert_eq!(joined["joined"].as_object().unwrap().keys().collect::<Vec<_>>(), [&alice.user_id]);
}

#[tokio::test]
async fn joined_members_show_their_profiles() {
    let server = Server::default();
    let [alice, bob] = users(&server).await;
    let path = format!("/_matrix/client/v3/profile/{}/displayname", enc(&alice.user_id));
    ok(&alice.client.put(&path, json!({"displayname": "Al \"x\""})).await);
    let room = public_room(&alice).await;
    room.join(&bob).await;
    let joined = ok(&room.get("joined_members").await)["joined"].clone();
    assert_eq!(joined[&alice.user_id]["display_name"], "Al \"x\"");
    assert!(joined[&bob.user_id].is_object());
    let rooms = ok(&bob.client.get("/_matrix/client/v3/joined_rooms").await);
    assert_eq!(rooms["joined_rooms"], json!([room.id]));
    room.of(&bob).leave().await;
    assert_eq!(ok(&bob.client.get("/_matrix/client/v3/joined_rooms").await)["joined_rooms"], json!([]));
}

/// What is done to a room while somebody reads it page by page.
#[derive(Clone, Debug)]
enum Move {
    Say,
    Topic,
    Read(usize),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![2 => Just(Move::Say), 1 => Just(Move::Topic), 3 => (1usize..5).prop_map(Move::Read)];
    proptest::collection::vec(one, 1..25)
}

fn run(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn pitfall_048_pages_of_any_size_give_each_event_once_in_both_directions(
        sizes in proptest::collection::vec(1usize..7, 1..4),
        said in 0usize..12,
    ) {
        run(async {
            let server = Server::default();
            let [alice] = users(&server).await;
            let room = public_room(&alice).await;
            for nr in 0..said {
                room.say(&nr.to_string()).await;
            }
            let all = room.history().await;
            assert_eq!(all.last().unwrap()["type"], "m.room.create");
            assert_eq!(ids(&all).into_iter().collect::<BTreeSet<_>>().len(), all.len());
            let backward = room.pages("b", None, &sizes).await;
            assert_eq!(ids(&backward), ids(&all));
            let mut forward = room.pages("f", None, &sizes).await;
            forward.reverse();
            assert_eq!(ids(&forward), ids(&all));
        });
    }

    #[test]
    fn pitfall_048_tokens_stay_where_they_are_while_the_room_goes_on(moves in moves()) {
        run(async {
            let server = Server::default();
            let [alice] = users(&server).await;
            let room = public_room(&alice).await;
            room.say("first").await;
            let before = room.history().await;
            let start = room.messages("dir=b&limit=1").await["start"].as_str().unwrap().to_owned();
            let (mut read, mut from, mut done) = (Vec::new(), start.clone(), false);
            let mut expected = Vec::new();
            for (nr, one) in moves.into_iter().enumerate() {
                match one {
                    Move::Say => expected.push(room.say("more").await),
                    Move::Topic => expected.push(room.set("m.room.topic", "", json!({"topic": nr.to_string()})).await),
                    Move::Read(limit) if !done => {
                        let page = room.messages(&format!("dir=b&from={from}&limit={limit}")).await;
                        read.extend(page["chunk"].as_array().unwrap().clone());
                        done = page["end"].is_null();
                        from = page["end"].as_str().unwrap_or_default().to_owned();
                    }
                    Move::Read(_) => {}
                }
            }
            if !done {
                read.extend(room.pages("b", Some(&from), &[3]).await);
            }
            assert_eq!(ids(&read), ids(&before));
            // And forward from there comes exactly what happened since.
            assert_eq!(ids(&room.pages("f", Some(&start), &[2]).await), expected);
        });
    }
}

#[tokio::test]
async fn pitfall_050_edits_threads_and_references_are_bundled() {
    let server = Server::default();
    let [alice, bob] = users(&server).await;
    let room = public_room(&alice).await;
    room.join(&bob).await;
    let bobs = room.of(&bob);
    let root = room.say("root").await;
    let relate = |kind: &str, to: &str| json!({"rel_type": kind, "event_id": to});
    let edit = |text: &str, to: &str| json!({"body": text, "m.new_content": {"body": text}, "m.relates_to": relate("m.replace", to)});
    let relations = async |room: &Room<'_>| ok(&room.event(&root).await)["unsigned"]["m.relations"].clone();
    assert_eq!(relations(&room).await, Value::Null);

    // Only valid edits count, and of these the newest.
    bobs.send("m.room.message", edit("foreign", &root)).await;
    room.send("org.example.other", edit("other type", &root)).await;
    room.send("m.room.message", json!({"body": "empty", "m.relates_to": relate("m.replace", &root)})).await;
    assert_eq!(relations(&room).await, Value::Null);
    let first = room.send("m.room.message", edit("first", &root)).await;
    server.app.clock.advance(std::time::Duration::from_millis(5));
    let second = room.send("m.room.message", edit("second", &root)).await;
    room.send("m.room.message", edit("edit of an edit", &second)).await;
    assert_eq!(relations(&bobs).await["m.replace"]["event_id"], *second);
    assert_eq!(relations(&bobs).await["m.replace"]["content"]["m.new_content"]["body"], "second");
    assert_eq!(ok(&room.event(&root).await)["content"]["body"], "root");
    assert_eq!(ok(&room.event(&second).await)["unsigned"].get("m.relations"), None);
    room.redact(&second).await;
    assert_eq!(relations(&bobs).await["m.replace"]["event_id"], *first);

    // Annotations are not bundled, references are.
    bobs.send("m.reaction", json!({"m.relates_to": {"rel_type": "m.annotation", "event_id": root, "key": "x"}})).await;
    let reference =
        bobs.send("m.room.message", json!({"body": "r", "m.relates_to": relate("m.reference", &root)})).await;
    assert_eq!(relations(&room).await["m.reference"], json!({"chunk": [{"event_id": reference}]}));
    assert_eq!(relations(&room).await.get("m.annotation"), None);

    // A thread shows its newest event, with that event's own edit.
    let in_thread = |text: &str| json!({"body": text, "m.relates_to": relate("m.thread", &root)});
    bobs.send("m.room.message", in_thread("t1")).await;
    let latest = bobs.send("m.room.message", in_thread("t2")).await;
    let gone = bobs.send("m.room.message", in_thread("t3")).await;
    bobs.redact(&gone).await;
    bobs.send("m.room.message", edit("t2 edited", &latest)).await;
    let thread = relations(&room).await["m.thread"].clone();
    assert_eq!((&thread["count"], &thread["current_user_participated"]), (&json!(2), &json!(true)));
    assert_eq!(thread["latest_event"]["event_id"], *latest);
    let nested = &thread["latest_event"]["unsigned"]["m.relations"]["m.replace"];
    assert_eq!(nested["content"]["m.new_content"]["body"], "t2 edited");
    // The same bundle comes with the timeline.
    let page = room.messages("dir=f&limit=100").await;
    let shown = page["chunk"].as_array().unwrap().iter().find(|event| event["event_id"] == *root).unwrap();
    assert_eq!(shown["unsigned"]["m.relations"]["m.thread"]["count"], 2);
    // A redacted event has no edits any more, but keeps its thread.
    room.redact(&root).await;
    assert_eq!(relations(&room).await.get("m.replace"), None);
    assert_eq!(relations(&room).await["m.thread"]["count"], 2);
}

#[tokio::test]
async fn pitfall_052_relations_are_filtered_paged_and_followed() {
    let server = Server::default();
    let [alice, bob] = users(&server).await;
    let room = public_room(&alice).await;
    let root = room.say("root").await;
    let relate = async |kind: &str, body: &str, rel_type: &str, to: &str| {
        room.send(kind, json!({"body": body, "m.relates_to": {"rel_type": rel_type, "event_id": to, "key": body}}))
            .await
    };
    let a = relate("m.room.message", "a", "m.thread", &root).await;
    let b = relate("m.room.message", "b", "m.reference", &root).await;
    relate("m.reaction", "c", "m.annotation", &root).await;
    let d = relate("m.reaction", "d", "m.annotation", &a).await;
    let e = relate("m.room.message", "e", "m.reference", &d).await;
    relate("m.room.message", "too deep", "m.reference", &e).await;
    let gone = relate("m.reaction", "gone", "m.annotation", &root).await;
    room.redact(&gone).await;
    let related = async |rest: &str| {
        let path = room.path(&format!("relations/{}{rest}", enc(&root))).replace("/v3/", "/v1/");
        ok(&room.user.client.get(&path).await)
    };
    assert_eq!(bodies(&related("").await["chunk"]), ["c", "b", "a"]);
    assert_eq!(related("").await.get("recursion_depth"), None);
    assert_eq!(bodies(&related("?dir=f").await["chunk"]), ["a", "b", "c"]);
    assert_eq!(bodies(&related("/m.annotation").await["chunk"]), ["c"]);
    assert_eq!(bodies(&related("/m.annotation/m.reaction").await["chunk"]), ["c"]);
    assert_eq!(bodies(&related("/m.annotation/m.room.message").await["chunk"]), Vec::<&str>::new());
    assert_eq!(bodies(&related("?recurse=true").await["chunk"]), ["e", "d", "c", "b", "a"]);
    assert_eq!(related("?recurse=true").await["recursion_depth"], 3);
    assert_eq!(bodies(&related("/m.annotation?recurse=true").await["chunk"]), ["d", "c"]);
    // In pages, both ways, each once.
    for (dir, expected) in [("b", "edcba"), ("f", "abcde")] {
        let (mut found, mut from) = (String::new(), String::new());
        loop {
            let page = related(&format!("?recurse=true&limit=2&dir={dir}&from={from}")).await;
            found += &bodies(&page["chunk"]).join("");
            assert_eq!(page.get("prev_batch").is_some(), !from.is_empty());
            match page["next_batch"].as_str() {
                Some(next) => from = next.to_owned(),
                None => break,
            }
        }
        assert_eq!(found, expected, "{dir}");
    }
    // Tokens of the timeline fit.
    let upto = ok(&room.get(&format!("context/{}?limit=0", enc(&b))).await)["end"].as_str().unwrap().to_owned();
    assert_eq!(bodies(&related(&format!("?from={upto}")).await["chunk"]), ["b", "a"]);
    assert_eq!(bodies(&related(&format!("?to={upto}")).await["chunk"]), ["c"]);
    // What cannot be seen has no relations.
    let path = room.path(&format!("relations/{}", enc(&root))).replace("/v3/", "/v1/");
    assert_eq!(refused(&bob.client.get(&path).await), not_found());
}

fn alias_path(alias: &str) -> String {
    format!("/_matrix/client/v3/directory/room/{}", enc(alias))
}

#[tokio::test]
async fn aliases_come_and_go() {
    let server = Server::default();
    let [alice, bob, carol] = users(&server).await;
    let room = public_room(&alice).await;
    room.join(&bob).await;
    let (path, body) = (alias_path("#räume/1:hs.test"), json!({"room_id": room.id}));
    assert_eq!(refused(&server.client.get(&path).await), not_found());
    assert_eq!(refused(&carol.client.put(&path, body.clone()).await), forbidden());
    ok(&bob.client.put(&path, body.clone()).await);
    let taken = bob.client.put(&path, body.clone()).await;
    assert_eq!(refused(&taken), (409, "M_UNKNOWN".to_owned()));
    // Nobody has to be logged in to ask.
    assert_eq!(ok(&server.client.get(&path).await), json!({"room_id": room.id, "servers": ["hs.test"]}));
    assert_eq!(ok(&room.get("aliases").await), json!({"aliases": ["#räume/1:hs.test"]}));
    assert_eq!(refused(&carol.client.get(&room.path("aliases")).await), forbidden());
    for wrong in ["#a:other.test", "#a b:hs.test", "#:hs.test", "noalias"] {
        let answer = bob.client.put(&alias_path(wrong), body.clone()).await;
        assert_eq!(refused(&answer), (400, "M_INVALID_PARAM".to_owned()), "{wrong}");
    }
    // Whoever made it takes it away, or whoever has the power; nobody else.
    assert_eq!(refused(&carol.client.delete(&path).await), forbidden());
    ok(&bob.client.delete(&path).await);
    assert_eq!(refused(&server.client.get(&path).await), not_found());
    assert_eq!(refused(&bob.client.delete(&path).await), not_found());
    ok(&bob.client.put(&path, body).await);
    ok(&alice.client.delete(&path).await);
    assert_eq!(ok(&room.get("aliases").await), json!({"aliases": []}));
}

#[tokio::test]
async fn pitfall_059_a_canonical_alias_leads_to_its_room() {
    let server = Server::default();
    let [alice] = users(&server).await;
    let (room, other) = (public_room(&alice).await, public_room(&alice).await);
    for (name, room) in [("#a:hs.test", &room), ("#b:hs.test", &room), ("#o:hs.test", &other)] {
        ok(&alice.client.put(&alias_path(name), json!({"room_id": room.id})).await);
    }
    let path = room.path("state/m.room.canonical_alias/");
    let put = async |content: Value| refused(&alice.client.put(&path, content).await);
    let bad = (400, "M_BAD_ALIAS".to_owned());
    assert_eq!(put(json!({"alias": "#none:hs.test"})).await, bad);
    assert_eq!(put(json!({"alias": "#o:hs.test"})).await, bad);
    assert_eq!(put(json!({"alias": "#a:hs.test", "alt_aliases": ["#none:hs.test"]})).await, bad);
    assert_eq!(put(json!({"alt_aliases": ["no alias"]})).await, (400, "M_INVALID_PARAM".to_owned()));
    assert_eq!(put(json!({"alias": "#a:hs.test", "alt_aliases": ["#b:hs.test"]})).await.0, 200);
    // A deleted alias leaves the event with it, if the one who deletes it may change that.
    ok(&alice.client.delete(&alias_path("#a:hs.test")).await);
    assert_eq!(ok(&room.get("state/m.room.canonical_alias/").await), json!({"alt_aliases": ["#b:hs.test"]}));
}

#[tokio::test]
async fn pitfall_055_the_directory_is_paged_searched_and_filtered() {
    let server = Server::default();
    let [alice, bob, carol] = users(&server).await;
    let listed = async |name: &str, more: Value| {
        let mut request = json!({"preset": "public_chat", "visibility": "public", "name": name});
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        create(&alice, request).await
    };
    let quiet = listed("Quiet", json!({"topic": "about tea", "room_alias_name": "quiet"})).await;
    let busy = listed("Busy", json!({})).await;
    let space = listed("Space", json!({"creation_content": {"type": "m.space"}})).await;
    let hidden = public_room(&alice).await;
    busy.join(&bob).await;
    busy.join(&carol).await;
    quiet.join(&bob).await;
    let names = |page: &Value| {
        let name = |room: &Value| room["name"].as_str().unwrap_or("-").to_owned();
        page["chunk"].as_array().unwrap().iter().map(name).collect::<Vec<_>>()
    };
    // Nobody has to be logged in to look, and those with the most members come first.
    let all = ok(&server.client.get("/_matrix/client/v3/publicRooms").await);
    assert_eq!(names(&all), ["Busy", "Quiet", "Space"]);
    assert_eq!(all["total_room_count_estimate"], 3);
    assert_eq!((all.get("next_batch"), all.get("prev_batch")), (None, None));
    let room = &all["chunk"][1];
    assert_eq!(room["room_id"], *quiet.id);
    assert_eq!((&room["topic"], &room["canonical_alias"]), (&json!("about tea"), &json!("#quiet:hs.test")));
    assert_eq!((&room["num_joined_members"], &room["world_readable"]), (&json!(2), &json!(false)));
    assert_eq!(all["chunk"][2]["room_type"], "m.space");
    // Pages, forth and back.
    let page =
        async |query: &str| ok(&server.client.get(&format!("/_matrix/client/v3/publicRooms?limit=1{query}")).await);
    let first = page("").await;
    let second = page(&format!("&since={}", first["next_batch"].as_str().unwrap())).await;
    let third = page(&format!("&since={}", second["next_batch"].as_str().unwrap())).await;
    assert_eq!([names(&first), names(&second), names(&third)], [["Busy"], ["Quiet"], ["Space"]]);
    assert_eq!(third.get("next_batch"), None);
    assert_eq!(names(&page(&format!("&since={}", third["prev_batch"].as_str().unwrap())).await), ["Quiet"]);
    // A room that vanishes meanwhile shifts nothing.
    let list = |room: &Room<'_>| format!("/_matrix/client/v3/directory/list/room/{}", enc(&room.id));
    ok(&alice.client.put(&list(&busy), json!({"visibility": "private"})).await);
    assert_eq!(names(&page(&format!("&since={}", first["next_batch"].as_str().unwrap())).await), ["Quiet"]);
    assert_eq!(refused(&server.client.get("/_matrix/client/v3/publicRooms?since=odd").await).0, 400);
    // Search and types.
    let search = async |body: Value| names(&ok(&bob.client.post("/_matrix/client/v3/publicRooms", body).await));
    assert_eq!(search(json!({"filter": {"generic_search_term": "TEA"}})).await, ["Quiet"]);
    assert_eq!(search(json!({"filter": {"generic_search_term": "#qui"}})).await, ["Quiet"]);
    assert_eq!(search(json!({"filter": {"room_types": ["m.space"]}})).await, ["Space"]);
    assert_eq!(search(json!({"filter": {"room_types": [null]}})).await, ["Quiet"]);
    assert_eq!(search(json!({"third_party_instance_id": "irc"})).await, Vec::<String>::new());
    assert_eq!(search(json!({})).await, ["Quiet", "Space"]);
    // Who may change what is listed.
    assert_eq!(ok(&server.client.get(&list(&busy)).await), json!({"visibility": "private"}));
    assert_eq!(ok(&server.client.get(&list(&space)).await), json!({"visibility": "public"}));
    assert_eq!(refused(&bob.client.put(&list(&quiet), json!({"visibility": "private"})).await), forbidden());
    ok(&alice.client.put(&list(&hidden), json!({})).await);
    assert_eq!(ok(&server.client.get(&list(&hidden)).await), json!({"visibility": "public"}));
    let nowhere = "/_matrix/client/v3/directory/list/room/!nowhere:hs.test";
    assert_eq!(refused(&server.client.get(nowhere).await), not_found());
    assert_eq!(refused(&alice.client.put(nowhere, json!({})).await), not_found());
}

#[tokio::test]
async fn pitfall_022_reading_on_from_a_limited_sync_closes_the_gap_exactly() {
    let server = Server::default();
    let [alice] = users(&server).await;
    let room = public_room(&alice).await;
    room.say("old").await;
    let sync = async |query: &str| ok(&alice.client.get(&format!("/_matrix/client/v3/sync?{query}")).await);
    let since = sync("timeout=0").await["next_batch"].as_str().unwrap().to_owned();
    let mut sent = Vec::new();
    for nr in 0..7 {
        sent.push(room.say(&nr.to_string()).await);
        sent.push(room.set("m.room.topic", "", json!({"topic": nr.to_string()})).await);
    }
    let filter = enc(&json!({"room": {"timeline": {"limit": 3}}}).to_string());
    let synced = sync(&format!("timeout=0&since={since}&filter={filter}")).await;
    let timeline = &synced["rooms"]["join"][&room.id]["timeline"];
    assert_eq!(timeline["limited"], true);
    let prev_batch = timeline["prev_batch"].as_str().unwrap();
    let mut all: Vec<Value> = timeline["events"].as_array().unwrap().clone();
    all.reverse();
    let (mut from, to) = (prev_batch.to_owned(), enc(&since));
    loop {
        let page = room.messages(&format!("dir=b&limit=4&from={from}&to={to}")).await;
        all.extend(page["chunk"].as_array().unwrap().iter().cloned());
        match page["end"].as_str() {
            Some(end) => from = end.to_owned(),
            None => break,
        }
    }
    sent.reverse();
    assert_eq!(ids(&all), sent);
    // Forward from the old token the same events come, the other way round.
    sent.reverse();
    assert_eq!(ids(&room.pages("f", Some(&since), &[5]).await), sent);
}
