//! What a console looks up, and the smaller things that it changes.

use super::*;

#[tokio::test]
async fn what_is_known_of_an_account() {
    let world = World::new().await;
    let alice = &world.alice;
    let room_id = world.room(alice).await;
    let data = "/_matrix/client/v3/user/@alice:hs.test";
    ok(&alice.client.put(&format!("{data}/account_data/org.example"), json!({ "a": 1 })).await);
    ok(&alice.client.put(&format!("{data}/rooms/{room_id}/account_data/org.example"), json!({ "b": 2 })).await);
    let invite = format!("/_matrix/client/v3/rooms/{room_id}/invite");
    ok(&alice.client.post(&invite, json!({ "user_id": "@root:hs.test" })).await);
    let of = async |what: &str| ok(&world.get(&format!("v1/users/@alice:hs.test/{what}")).await);
    let kept = of("accountdata").await["account_data"].clone();
    assert_eq!(kept["global"]["org.example"], json!({ "a": 1 }));
    assert_eq!(kept["rooms"], json!({ &room_id: { "org.example": { "b": 2 } } }));
    assert_eq!(of("pushers").await, json!({ "total": 0, "pushers": [] }));
    assert_eq!(of("sent_invite_count").await, json!({ "invite_count": 1 }));
    assert_eq!(of("cumulative_joined_room_count").await, json!({ "cumulative_joined_room_count": 1 }));
    let later = world.server.app.clock.now_ms() + 1;
    let none = of(&format!("cumulative_joined_room_count?from_ts={later}")).await;
    assert_eq!(none["cumulative_joined_room_count"], 0);
    let seen = of("whois").await;
    assert_eq!((&seen["user_id"], seen["devices"].as_object().unwrap().len()), (&json!("@alice:hs.test"), 1));
    assert_eq!(ok(&world.get("v1/whois/@alice:hs.test").await), seen);
    for nobody in ["v1/users/@nobody:hs.test/pushers", "v1/whois/@nobody:hs.test", "v2/users/@nobody:hs.test/devices"] {
        assert_eq!(world.get(nobody).await.errcode(), "M_NOT_FOUND", "{nobody}");
    }
}

#[tokio::test]
async fn nobody_is_found_by_an_address() {
    let world = World::new().await;
    for path in ["v1/threepid/email/users/a@b.test", "v1/auth_providers/oidc/users/17"] {
        assert_eq!(world.get(path).await.errcode(), "M_NOT_FOUND", "{path}");
    }
    assert_eq!(ok(&world.get("v1/username_available?username=free").await), json!({ "available": true }));
    assert_eq!(world.get("v1/username_available?username=alice").await.errcode(), "M_USER_IN_USE");
    assert_eq!(world.get("v1/username_available?username=No%20Name").await.errcode(), "M_INVALID_USERNAME");
    let version = ok(&world.server.client.get("/_synapse/admin/v1/server_version").await);
    assert!(version["server_version"].as_str().unwrap().starts_with("Skerry "), "{version}");
}

#[tokio::test]
async fn administrators_are_made_and_unmade() {
    let world = World::new().await;
    let path = "v1/users/@alice:hs.test/admin";
    assert_eq!(ok(&world.get(path).await), json!({ "admin": false }));
    assert_eq!(world.alice.client.get("/_synapse/admin/v1/rooms").await.errcode(), "M_FORBIDDEN");
    ok(&world.put(path, json!({ "admin": true })).await);
    assert_eq!(ok(&world.get(path).await), json!({ "admin": true }));
    ok(&world.alice.client.get("/_synapse/admin/v1/rooms").await);
    assert_eq!(world.put("v1/users/@root:hs.test/admin", json!({ "admin": false })).await.errcode(), "M_FORBIDDEN");
    ok(&world.put(path, json!({ "admin": false })).await);
    assert_eq!(world.alice.client.get("/_synapse/admin/v1/rooms").await.errcode(), "M_FORBIDDEN");
}

#[tokio::test]
async fn an_account_is_suspended_and_gets_a_new_password() {
    let world = World::new().await;
    let room_id = world.room(&world.alice).await;
    let say = format!("/_matrix/client/v3/rooms/{room_id}/send/m.room.message/1");
    let answer = ok(&world.put("v1/suspend/@alice:hs.test", json!({ "suspend": true })).await);
    assert_eq!(answer, json!({ "user_@alice:hs.test_suspended": true }));
    assert_eq!(world.alice.client.put(&say, json!({ "body": "b" })).await.errcode(), "M_USER_SUSPENDED");
    ok(&world.put("v1/suspend/@alice:hs.test", json!({ "suspend": false })).await);
    ok(&world.alice.client.put(&say, json!({ "body": "b" })).await);
    let path = "v1/reset_password/@alice:hs.test";
    ok(&world.post(path, json!({ "new_password": "another one", "logout_devices": false })).await);
    assert_eq!(world.alice.client.get("/_matrix/client/v3/account/whoami").await.status, 200);
    assert_eq!(world.server.try_log_in("alice", PASSWORD, json!({})).await.status, 403);
    assert_eq!(world.server.try_log_in("alice", "another one", json!({})).await.status, 200);
    ok(&world.post(path, json!({ "new_password": "and another" })).await);
    assert_eq!(world.alice.client.get("/_matrix/client/v3/account/whoami").await.status, 401);
}

#[tokio::test]
async fn devices_from_the_first_to_the_last() {
    let world = World::new().await;
    let all = "v2/users/@alice:hs.test/devices";
    let made = world.post(all, json!({ "device_id": "NEW", "display_name": "made" })).await;
    assert_eq!(made.status, 201, "{}", made.json());
    let new = ok(&world.get(&format!("{all}/NEW")).await);
    assert_eq!((&new["display_name"], &new["user_id"]), (&json!("made"), &json!("@alice:hs.test")));
    ok(&world.put(&format!("{all}/NEW"), json!({ "display_name": "renamed" })).await);
    assert_eq!(ok(&world.get(&format!("{all}/NEW")).await)["display_name"], "renamed");
    assert_eq!(ok(&world.get(all).await)["total"], 2);
    ok(&world.delete(&format!("{all}/NEW"), json!({})).await);
    assert_eq!(world.get(&format!("{all}/NEW")).await.errcode(), "M_NOT_FOUND");
    assert_eq!(world.put(&format!("{all}/NEW"), json!({ "display_name": "x" })).await.errcode(), "M_NOT_FOUND");
    let some = json!({ "devices": [world.alice.device_id, "GONE"] });
    ok(&world.post("v2/users/@alice:hs.test/delete_devices", some).await);
    assert_eq!(ok(&world.get(all).await), json!({ "total": 0, "devices": [] }));
    assert_eq!(world.alice.client.get("/_matrix/client/v3/account/whoami").await.status, 401);
}

#[tokio::test]
async fn a_room_is_read_by_who_is_not_in_it() {
    let world = World::new().await;
    let room_id = world.room(&world.alice).await;
    let said = [world.say(&world.alice, &room_id, "one").await, world.say(&world.alice, &room_id, "two").await];
    let of = async |what: &str| ok(&world.get(&format!("v1/rooms/{room_id}/{what}")).await);
    let state = of("state").await["state"].as_array().unwrap().clone();
    let kinds: Vec<&str> = state.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert!(kinds.contains(&"m.room.create") && kinds.contains(&"m.room.name"), "{kinds:?}");
    let names = of("state?type=m.room.name").await;
    assert_eq!(
        (names["state"].as_array().unwrap().len(), &names["state"][0]["content"]["name"]),
        (1, &json!("A room"))
    );
    let context = of(&format!("context/{}?limit=0", said[0])).await;
    assert_eq!(context["event"]["content"]["body"], "one");
    let nearest = of(&format!("timestamp_to_event?ts={}&dir=b", world.server.app.clock.now_ms())).await;
    assert_eq!(nearest["event_id"], *said[1]);
    assert_eq!(of("hierarchy").await["rooms"][0]["room_id"], *room_id);
    let ends = of("forward_extremities").await;
    assert_eq!((&ends["count"], &ends["results"][0]["event_id"]), (&json!(1), &json!(said[1])));
    let path = format!("v1/rooms/{room_id}/forward_extremities");
    assert_eq!(ok(&world.delete(&path, json!({})).await), json!({ "deleted": 0 }), "the last one stays");
    assert_eq!(world.get("v1/rooms/!nowhere:hs.test/state").await.errcode(), "M_NOT_FOUND");
    let sizes = ok(&world.get("v1/statistics/database/rooms").await);
    assert_eq!(sizes["rooms"][0]["room_id"], *room_id);
    assert!(sizes["rooms"][0]["estimated_size"].as_u64().unwrap() > 1_000, "{sizes}");
}

#[tokio::test]
async fn history_goes_up_to_a_time_and_the_work_is_listed() {
    let world = World::new().await;
    let room_id = world.room(&world.alice).await;
    let old = world.say(&world.alice, &room_id, "old").await;
    world.server.app.clock.advance(std::time::Duration::from_secs(60));
    let now = world.server.app.clock.now_ms();
    let new = world.say(&world.alice, &room_id, "new").await;
    let path = format!("v1/purge_history/{room_id}");
    assert_eq!(world.post(&path, json!({})).await.errcode(), "M_MISSING_PARAM");
    let body = json!({ "purge_up_to_ts": now - 1, "delete_local_events": true });
    let purge_id = ok(&world.post(&path, body).await)["purge_id"].clone();
    let tasks =
        async |query: &str| ok(&world.get(&format!("v1/scheduled_tasks{query}")).await)["scheduled_tasks"].clone();
    assert_eq!((&tasks("").await[0]["id"], &tasks("").await[0]["status"]), (&purge_id, &json!("scheduled")));
    jobs::drain(&world.server.app).await.unwrap();
    let done = tasks("?status=complete&action_name=purge_history").await;
    assert_eq!((&done[0]["id"], &done[0]["resource_id"]), (&purge_id, &json!(room_id)));
    assert_eq!(tasks("?action_name=shutdown_and_purge_room").await, json!([]));
    assert_eq!(world.get(&format!("v1/fetch_event/{old}")).await.errcode(), "M_NOT_FOUND");
    ok(&world.get(&format!("v1/fetch_event/{new}")).await);
    let path = format!("v2/rooms/{room_id}/delete_status");
    assert_eq!(world.get(&path).await.errcode(), "M_NOT_FOUND", "nobody has deleted it");
    ok(&world.delete(&format!("v2/rooms/{room_id}"), json!({ "purge": true })).await);
    jobs::drain(&world.server.app).await.unwrap();
    assert_eq!(ok(&world.get(&path).await)["results"][0]["status"], "complete");
}

#[tokio::test]
async fn reports_of_users_and_rooms_are_read() {
    let world = World::new().await;
    let room_id = world.room(&world.root).await;
    let (user, room) =
        ("/_matrix/client/v3/users/@root:hs.test/report", format!("/_matrix/client/v3/rooms/{room_id}/report"));
    ok(&world.alice.client.post(user, json!({ "reason": "u" })).await);
    ok(&world.alice.client.post(&room, json!({ "reason": "r" })).await);
    let rooms = ok(&world.get("v1/room_reports?room_id=!").await);
    assert_eq!((&rooms["total"], &rooms["room_reports"][0]["room_id"]), (&json!(1), &json!(room_id)));
    let users = ok(&world.get("v1/user_reports?target_user_id=@root").await);
    let report = &users["user_reports"][0];
    assert_eq!(
        (&users["total"], &report["user_id"], &report["reason"]),
        (&json!(1), &json!("@alice:hs.test"), &json!("u"))
    );
    assert_eq!(ok(&world.get("v1/user_reports?target_user_id=@alice").await)["total"], 0);
    let one = format!("v1/user_reports/{}", report["id"]);
    assert_eq!(ok(&world.get(&one).await)["target_user_id"], "@root:hs.test");
    let other = format!("v1/event_reports/{}", report["id"]);
    assert_eq!(world.delete(&other, json!({})).await.errcode(), "M_NOT_FOUND", "it is of another kind");
    ok(&world.delete(&one, json!({})).await);
    assert_eq!(world.get(&one).await.errcode(), "M_NOT_FOUND");
}

#[tokio::test]
async fn uploads_of_a_room_and_of_a_user() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::with_uploads(dir.path()).await;
    let room_id = world.room(&world.alice).await;
    let upload = async |body: &'static str| {
        let answer = world.alice.client.send(Method::POST, "/_matrix/media/v3/upload", Body::from(body)).await;
        ok(&answer)["content_uri"].as_str().unwrap().to_owned()
    };
    let (shown, other) = (upload("shown").await, upload("other").await);
    let content = json!({ "msgtype": "m.file", "body": "f", "url": shown });
    let say = format!("/_matrix/client/v3/rooms/{room_id}/send/m.room.message/1");
    ok(&world.alice.client.put(&say, content).await);
    let of_room = json!({ "total": 1, "local": [&shown], "remote": [] });
    assert_eq!(ok(&world.get(&format!("v1/room/{room_id}/media")).await), of_room);
    let id = |uri: &str| uri.rsplit('/').next().unwrap().to_owned();
    let marks = async |uri: &str| {
        let info = ok(&world.get(&format!("v1/media/hs.test/{}", id(uri))).await)["media_info"].clone();
        (info["quarantined_by"].is_string(), info["safe_from_quarantine"] == true)
    };
    assert_eq!(marks(&shown).await, (false, false));
    let quarantined = ok(&world.post(&format!("v1/room/{room_id}/media/quarantine"), json!({})).await);
    assert_eq!(quarantined, json!({ "num_quarantined": 1 }));
    assert_eq!((marks(&shown).await.0, marks(&other).await.0), (true, false));
    ok(&world.post(&format!("v1/media/protect/{}", id(&other)), json!({})).await);
    assert_eq!(marks(&other).await, (false, true));
    let all = "v1/user/@alice:hs.test/media/quarantine";
    assert_eq!(ok(&world.post(all, json!({})).await)["num_quarantined"], 0, "one is, one is protected");
    ok(&world.post(&format!("v1/media/unprotect/{}", id(&other)), json!({})).await);
    assert_eq!(ok(&world.post(all, json!({})).await)["num_quarantined"], 1);
    assert_eq!(ok(&world.delete("v1/users/@alice:hs.test/media", json!({})).await)["total"], 2);
    assert_eq!(ok(&world.get("v1/users/@alice:hs.test/media").await)["total"], 0);
}
