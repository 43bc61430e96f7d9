//! Room upgrades.

use ruma::api::client::room::upgrade_room::v3::{Request, Response};

use crate::error::Result;
use crate::http::{Ctx, Routes};
use crate::limits::Class;
use crate::rooms::upgrade::{Upgrade, upgrade as make};
use crate::users::upgrade::follow;

pub fn routes() -> Routes {
    Routes::default().ruma(upgrade).limit(Class::CreateRoom)
}

async fn upgrade(ctx: Ctx<Request>) -> Result<Response> {
    ctx.requester.not_suspended()?;
    let wanted = Upgrade {
        user_id: &ctx.requester.user_id,
        room_id: &ctx.request.room_id,
        version: ctx.request.new_version.clone(),
        additional_creators: ctx.request.additional_creators.clone(),
        follow,
    };
    Ok(Response::new(make(&ctx.app, wanted).await?))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::client::testing::*;
    use crate::testing::{Server, User};

    const CLIENT: &str = "/_matrix/client/v3";

    impl<'a> Room<'a> {
        async fn upgrade(&self, version: &str, more: Value) -> Room<'a> {
            let mut body = json!({"new_version": version});
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let done = ok(&self.user.client.post(&self.path("upgrade"), body).await);
            Room { user: self.user, id: done["replacement_room"].as_str().unwrap().to_owned() }
        }

        async fn entry(&self, kind: &str, key: &str) -> Value {
            ok(&self.get(&format!("state/{}/{}", enc(kind), enc(key))).await)
        }
    }

    async fn of_version<'a>(user: &'a User, version: &str, more: Value) -> Room<'a> {
        let mut request = json!({"preset": "public_chat", "room_version": version});
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        create(user, request).await
    }

    #[tokio::test]
    async fn pitfall_100_a_room_that_stays_here_says_so_and_so_do_those_that_replace_it() {
        let server = Server::default();
        let [alice] = users(&server).await;
        for (old, new) in [("11", "12"), ("12", "12"), ("6", "11")] {
            let local = of_version(&alice, old, json!({"creation_content": {"m.federate": false}})).await;
            assert_eq!(local.entry("m.room.create", "").await["m.federate"], false, "{old}");
            assert_eq!(
                local.upgrade(new, json!({})).await.entry("m.room.create", "").await["m.federate"],
                false,
                "{new}"
            );
            let usual = of_version(&alice, old, json!({})).await;
            assert_ne!(usual.entry("m.room.create", "").await["m.federate"], false, "{old}");
        }
    }

    #[tokio::test]
    async fn pitfall_067_a_room_of_any_version_becomes_one_of_another() {
        let server = Server::default();
        let [alice, bob] = users(&server).await;
        for (old, new) in [("6", "11"), ("10", "12"), ("12", "12"), ("12", "11"), ("9", "10")] {
            let state = json!([
                {"type": "m.room.encryption", "content": {"algorithm": "m.megolm.v1.aes-sha2"}},
                {"type": "m.room.history_visibility", "content": {"history_visibility": "joined"}},
                {"type": "m.room.server_acl", "content": {"allow": ["*"]}},
                {"type": "org.example.other", "content": {"stays": true}},
            ]);
            let levels = json!({"events": {"m.room.server_acl": 100}, "users": {"@bob:hs.test": 50}});
            let levels = if old == "12" {
                levels
            } else {
                json!({"events": levels["events"], "users": {"@bob:hs.test": 50, "@alice:hs.test": 100}})
            };
            let more = json!({
                "name": "the name", "topic": "the topic", "initial_state": state,
                "power_level_content_override": levels, "creation_content": {"type": "org.example.kind"},
            });
            let room = of_version(&alice, old, more).await;
            room.act("ban", json!({"user_id": "@eve:hs.test", "reason": "r"})).await;
            let next = room.upgrade(new, json!({})).await;

            let create = next.entry("m.room.create", "").await;
            let tombstone = ok(&room.get("state/m.room.tombstone/?format=event").await);
            assert_eq!(tombstone["content"]["replacement_room"], *next.id, "{old} to {new}");
            assert_eq!((&create["type"], &create["room_version"]), (&json!("org.example.kind"), &json!(new)));
            assert_eq!(create["predecessor"]["room_id"], *room.id);
            let named = create["predecessor"].get("event_id").cloned();
            assert_eq!(named, (new != "12").then(|| tombstone["event_id"].clone()));
            for kind in
                ["name", "topic", "encryption", "history_visibility", "server_acl", "join_rules", "guest_access"]
            {
                let kind = format!("m.room.{kind}");
                assert_eq!(next.entry(&kind, "").await, room.entry(&kind, "").await, "{kind}, {old} to {new}");
            }
            assert_eq!(refused(&next.get("state/org.example.other/").await), not_found());
            let ban = next.entry("m.room.member", "@eve:hs.test").await;
            assert_eq!(ban, json!({"membership": "ban", "reason": "r"}));
            let users = next.entry("m.room.power_levels", "").await["users"].clone();
            let all = json!({"@alice:hs.test": 100, "@bob:hs.test": 50});
            assert_eq!(users, if new == "12" { json!({"@bob:hs.test": 50}) } else { all }, "{old} to {new}");
            let old_levels = room.entry("m.room.power_levels", "").await;
            assert_eq!((&old_levels["events_default"], &old_levels["invite"]), (&json!(50), &json!(50)));
            room.join(&bob).await;
            next.join(&bob).await;
            next.say("hello").await;
        }
    }

    #[tokio::test]
    async fn pitfall_067_names_and_the_directory_follow() {
        let server = Server::default();
        let [alice] = users(&server).await;
        let more = json!({"room_alias_name": "town", "visibility": "public"});
        let room = of_version(&alice, "10", more).await;
        let other = enc("#other:hs.test");
        ok(&alice.client.put(&format!("{CLIENT}/directory/room/{other}"), json!({"room_id": room.id})).await);
        let content = json!({"alias": "#town:hs.test", "alt_aliases": ["#other:hs.test"]});
        room.set("m.room.canonical_alias", "", content.clone()).await;
        let next = room.upgrade("12", json!({})).await;
        for alias in ["#town:hs.test", "#other:hs.test"] {
            let found = ok(&alice.client.get(&format!("{CLIENT}/directory/room/{}", enc(alias))).await);
            assert_eq!(found["room_id"], *next.id);
        }
        assert_eq!(ok(&next.get("aliases").await)["aliases"], json!(["#other:hs.test", "#town:hs.test"]));
        assert_eq!(ok(&room.get("aliases").await)["aliases"], json!([]));
        assert_eq!(next.entry("m.room.canonical_alias", "").await, content);
        assert_eq!(room.entry("m.room.canonical_alias", "").await, json!({}));
        let listed = async |room: &Room<'_>| {
            ok(&alice.client.get(&format!("{CLIENT}/directory/list/room/{}", enc(&room.id))).await)["visibility"]
                .clone()
        };
        assert_eq!((listed(&room).await, listed(&next).await), (json!("private"), json!("public")));
    }

    #[tokio::test]
    async fn who_may_not_end_a_room_changes_nothing() {
        let server = Server::default();
        let [alice, bob, carol] = users(&server).await;
        let room = public_room(&alice).await;
        room.join(&bob).await;
        let try_as = async |user: &User, version: &str| {
            refused(&user.client.post(&room.path("upgrade"), json!({"new_version": version})).await)
        };
        assert_eq!(try_as(&bob, "11").await, forbidden());
        assert_eq!(try_as(&carol, "11").await, forbidden());
        assert_eq!(try_as(&alice, "nonsense").await, (400, "M_UNSUPPORTED_ROOM_VERSION".to_owned()));
        assert_eq!(refused(&room.get("state/m.room.tombstone/").await), not_found());
        assert_eq!(ok(&alice.client.get(&format!("{CLIENT}/joined_rooms")).await)["joined_rooms"], json!([room.id]));
    }

    #[tokio::test]
    async fn pitfall_067_creators_of_version_12_may_be_more_than_one() {
        let server = Server::default();
        let [alice, bob] = users(&server).await;
        let levels = json!({"users": {"@alice:hs.test": 100, "@bob:hs.test": 100, "@dan:hs.test": 50}});
        let room = of_version(&alice, "11", json!({"power_level_content_override": levels})).await;
        let next = room.upgrade("12", json!({"additional_creators": [bob.user_id]})).await;
        assert_eq!(next.entry("m.room.create", "").await["additional_creators"], json!([bob.user_id]));
        assert_eq!(next.entry("m.room.power_levels", "").await["users"], json!({"@dan:hs.test": 50}));
        next.join(&bob).await;
        // And where there are no creators nobody asks for them.
        let next = next.of(&bob).upgrade("11", json!({"additional_creators": [alice.user_id]})).await;
        assert_eq!(next.entry("m.room.create", "").await.get("additional_creators"), None);
        let users = next.entry("m.room.power_levels", "").await["users"].clone();
        assert_eq!(users, json!({"@alice:hs.test": 100, "@bob:hs.test": 100, "@dan:hs.test": 50}));
    }

    #[tokio::test]
    async fn a_space_keeps_its_children() {
        let server = Server::default();
        let [alice] = users(&server).await;
        let space = of_version(&alice, "11", json!({"creation_content": {"type": "m.space"}})).await;
        let (child, gone) = (public_room(&alice).await, public_room(&alice).await);
        let content = json!({"via": ["hs.test"], "order": "a"});
        space.set("m.space.child", &child.id, content.clone()).await;
        space.set("m.space.child", &gone.id, json!({})).await;
        let next = space.upgrade("12", json!({})).await;
        assert_eq!(next.entry("m.space.child", &child.id).await, content);
        assert_eq!(refused(&next.get(&format!("state/m.space.child/{}", enc(&gone.id))).await), not_found());
    }

    #[tokio::test]
    async fn more_bans_than_fit_at_once_follow_later() {
        let server = Server::default();
        let [alice] = users(&server).await;
        let room = of_version(&alice, "11", json!({})).await;
        for nr in 0..130 {
            room.act("ban", json!({"user_id": format!("@eve{nr}:hs.test")})).await;
        }
        let next = room.upgrade("11", json!({})).await;
        let banned = async || {
            let members = ok(&next.get("members?membership=ban").await);
            members["chunk"].as_array().unwrap().len()
        };
        assert_eq!(banned().await, 100);
        crate::jobs::drain(&server.app).await.unwrap();
        assert_eq!(banned().await, 130);
    }

    #[tokio::test]
    async fn pitfall_067_what_users_keep_about_the_room_comes_along_when_they_join() {
        let server = Server::default();
        let [alice, bob] = users(&server).await;
        let room = of_version(&alice, "11", json!({})).await;
        room.join(&bob).await;
        let data = |user: &User, rest: &str| format!("{CLIENT}/user/{}/{rest}", enc(&user.user_id));
        let in_room = |user: &User, room: &Room<'_>, rest: &str| data(user, &format!("rooms/{}/{rest}", enc(&room.id)));
        let rule = json!({"actions": ["notify"]});
        for user in [&alice, &bob] {
            ok(&user.client.put(&in_room(user, &room, "tags/u.work"), json!({"order": 0.5})).await);
            ok(&user.client.put(&in_room(user, &room, "account_data/org.example"), json!({"kept": 1})).await);
            let direct = json!({"@carol:hs.test": [room.id], "@dan:hs.test": ["!x:hs.test"]});
            ok(&user.client.put(&data(user, "account_data/m.direct"), direct).await);
            let of_room = format!("{CLIENT}/pushrules/global/room/{}", enc(&room.id));
            ok(&user.client.put(&of_room, rule.clone()).await);
            let condition = json!({"kind": "event_match", "key": "room_id", "pattern": room.id});
            let mute = json!({"actions": [], "conditions": [condition]});
            let muted = format!("{CLIENT}/pushrules/global/override/{}", enc(&room.id));
            ok(&user.client.put(&muted, mute).await);
        }
        let next = room.upgrade("12", json!({})).await;
        let came = async |user: &User| {
            let tags = ok(&user.client.get(&in_room(user, &next, "tags")).await)["tags"].clone();
            let direct = ok(&user.client.get(&data(user, "account_data/m.direct")).await);
            let other = user.client.get(&in_room(user, &next, "account_data/org.example")).await;
            let rule = user.client.get(&format!("{CLIENT}/pushrules/global/room/{}", enc(&next.id))).await;
            let mute = user.client.get(&format!("{CLIENT}/pushrules/global/override/{}", enc(&next.id))).await;
            [
                tags == json!({"u.work": {"order": 0.5}}),
                direct == json!({"@carol:hs.test": [room.id, next.id], "@dan:hs.test": ["!x:hs.test"]}),
                other.status == 200 && other.json() == json!({"kept": 1}),
                rule.status == 200 && rule.json()["actions"] == json!(["notify"]),
                mute.status == 200 && mute.json()["conditions"][0]["pattern"] == *next.id,
            ]
        };
        assert_eq!(came(&alice).await, [true; 5], "who makes the room is in it");
        assert_eq!(came(&bob).await, [false; 5]);
        next.join(&bob).await;
        assert_eq!(came(&bob).await, [true; 5]);
        // Once: who removes a tag and comes back does not get it again.
        ok(&bob.client.delete(&in_room(&bob, &next, "tags/u.work")).await);
        next.of(&bob).leave().await;
        next.join(&bob).await;
        assert_eq!(ok(&bob.client.get(&in_room(&bob, &next, "tags")).await)["tags"], json!({}));
    }

    #[tokio::test]
    async fn a_room_cannot_claim_to_follow_another_by_itself() {
        let server = Server::default();
        let [alice, bob] = users(&server).await;
        let room = of_version(&alice, "11", json!({})).await;
        room.join(&bob).await;
        let tags = |room: &Room<'_>| format!("{CLIENT}/user/{}/rooms/{}/tags", enc(&bob.user_id), enc(&room.id));
        ok(&bob.client.put(&format!("{}/u.work", tags(&room)), json!({})).await);
        let creation = json!({"predecessor": {"room_id": room.id, "event_id": "$x"}});
        let false_one = of_version(&alice, "11", json!({"creation_content": creation})).await;
        false_one.join(&bob).await;
        assert_eq!(ok(&bob.client.get(&tags(&false_one)).await)["tags"], json!({}));
    }
}
