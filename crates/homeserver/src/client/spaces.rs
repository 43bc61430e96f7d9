//! Spaces, and rooms in short (spec: Spaces; Room Summaries).

use http::{Method, StatusCode};
use ruma::{OwnedUserId, RoomAliasId, RoomId};
use serde::Deserialize;
use serde_json::{Value, json};

use super::messages::array;
use crate::auth::Access;
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response, Routes, json_response};
use crate::limits::Class;
use crate::rooms::hierarchy::{self, From, Wanted, child_json};
use crate::rooms::read::RoomReader;
use crate::rooms::shown::string;
use crate::rooms::{aliases, summary};

const DEFAULT_LIMIT: usize = 50;
const MAX_LIMIT: usize = 100;
/// How far down a hierarchy goes.
const MAX_DEPTH: u32 = 100;

const HIERARCHY: &[&str] = &[
    "/_matrix/client/unstable/org.matrix.msc2946/rooms/{room_id}/hierarchy",
    "/_matrix/client/v1/rooms/{room_id}/hierarchy",
];
/// Clients still use the spellings from before it was specified.
const UNSTABLE_SUMMARY: &[&str] = &[
    "/_matrix/client/unstable/im.nheko.summary/rooms/{room_id_or_alias}/summary",
    "/_matrix/client/unstable/im.nheko.summary/summary/{room_id_or_alias}",
];

pub fn routes() -> Routes {
    Routes::default()
        .raw(Method::GET, HIERARCHY, hierarchy)
        .access(Access::Token)
        .limit(Class::Other)
        .raw(Method::GET, &["/_matrix/client/v1/room_summary/{room_id_or_alias}"], room_summary)
        .access(Access::OptionalToken)
        .limit(Class::Other)
        .guests()
        .raw(Method::GET, UNSTABLE_SUMMARY, unstable_room_summary)
        .access(Access::OptionalToken)
        .limit(Class::Other)
        .guests()
}

#[derive(Deserialize)]
struct Query {
    from: Option<String>,
    limit: Option<usize>,
    max_depth: Option<u32>,
    suggested_only: Option<bool>,
}

/// The same for administrators, who see everything.
pub fn admin_routes() -> Routes {
    Routes::default().raw(Method::GET, &["/_synapse/admin/v1/rooms/{room_id}/hierarchy"], hierarchy_for_admin)
}

async fn hierarchy(ctx: RawCtx) -> Result<Response> {
    let user_id = ctx.requester()?.user_id.clone();
    walk(ctx, Some(user_id)).await
}

async fn hierarchy_for_admin(ctx: RawCtx) -> Result<Response> {
    walk(ctx, None).await
}

/// Without a user: all that there is.
async fn walk(ctx: RawCtx, user_id: Option<OwnedUserId>) -> Result<Response> {
    let query: Query = ctx.query()?;
    let room_id = RoomId::parse(ctx.arg(0))?;
    let wanted = Wanted {
        max_depth: query.max_depth.unwrap_or(MAX_DEPTH).min(MAX_DEPTH),
        suggested_only: query.suggested_only.unwrap_or(false),
    };
    let from = query.from.as_deref().map(|from| {
        let from = From::parse(from).filter(|from| from.wanted == wanted);
        from.ok_or_else(|| Error::invalid_param("This token is not one of this question"))
    });
    let from = from.transpose()?;
    let limit = query.limit.unwrap_or(DEFAULT_LIMIT).clamp(1, MAX_LIMIT);
    let app = ctx.app.clone();
    let walk = move || {
        let read = app.store.snapshot();
        let reader = RoomReader::new(&app.room_cache, &read);
        hierarchy::read(reader, user_id.as_deref(), &room_id, wanted, from, limit)
    };
    // A space may be large, and its state is read from the disk.
    let (rooms, next) = tokio::task::spawn_blocking(walk).await.map_err(Error::internal)??;

    let mut out = Vec::with_capacity(1_024 * (rooms.len() + 1));
    out.push(b'{');
    if let Some(next) = next {
        out.extend_from_slice(b"\"next_batch\":");
        string(&mut out, &next.write());
        out.push(b',');
    }
    out.extend_from_slice(b"\"rooms\":");
    array(&mut out, &rooms, |out, room| {
        serde_json::to_writer(&mut *out, &room.summary).map_err(Error::internal)?;
        // Goes on in the object that was just closed.
        out.pop();
        out.extend_from_slice(b",\"children_state\":");
        array(out, &room.children, child_json)?;
        out.push(b'}');
        Ok(())
    })?;
    out.push(b'}');
    Ok(json_response(StatusCode::OK, out))
}

async fn room_summary(ctx: RawCtx) -> Result<Response> {
    Ok(json_response(StatusCode::OK, summarise(&ctx)?.to_string()))
}

async fn unstable_room_summary(ctx: RawCtx) -> Result<Response> {
    let mut summary = summarise(&ctx)?;
    for (was, is) in [("im.nheko.summary.room_version", "room_version"), ("im.nheko.summary.encryption", "encryption")]
    {
        if let Some(value) = summary.get(is).cloned() {
            summary[was] = value;
        }
    }
    Ok(json_response(StatusCode::OK, summary.to_string()))
}

fn summarise(ctx: &RawCtx) -> Result<Value> {
    let not_found = || Error::not_found("There is no such room, or it is not for you");
    let read = ctx.app.store.snapshot();
    let reader = RoomReader::new(&ctx.app.room_cache, &read);
    let room_id = match RoomId::parse(ctx.arg(0)) {
        Ok(room_id) => room_id,
        Err(_) => aliases::resolve(&read, &RoomAliasId::parse(ctx.arg(0))?)?.ok_or_else(not_found)?,
    };
    let user_id = ctx.requester.as_ref().map(|requester| &*requester.user_id);
    let (room, head) = reader.head(&room_id)?.ok_or_else(not_found)?;
    if !summary::may_know(reader, user_id, room, &head)? {
        return Err(not_found());
    }
    let mut summary = serde_json::to_value(summary::of(reader, room, &head)?).map_err(Error::internal)?;
    if let Some(user_id) = user_id {
        let membership = reader.membership(user_id.as_str(), room)?.map_or("leave", |row| row.state.as_str());
        summary["membership"] = json!(membership);
    }
    Ok(summary)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::client::testing::*;
    use crate::http::Answer;
    use crate::testing::{Server, User};

    async fn space(user: &User) -> Room<'_> {
        create(user, json!({"preset": "public_chat", "creation_content": {"type": "m.space"}})).await
    }

    async fn named<'a>(user: &'a User, preset: &str, name: &str) -> Room<'a> {
        create(user, json!({"preset": preset, "name": name})).await
    }

    impl Room<'_> {
        async fn adopt(&self, child: &Room<'_>, more: Value) {
            let mut content = json!({"via": ["hs.test"]});
            content.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            self.set("m.space.child", &child.id, content).await;
        }

        async fn hierarchy(&self, query: &str) -> Answer {
            let path = format!("/_matrix/client/v1/rooms/{}/hierarchy?{query}", enc(&self.id));
            self.user.client.get(&path).await
        }

        /// The rooms of one page.
        async fn rooms(&self, query: &str) -> Vec<String> {
            let page = ok(&self.hierarchy(query).await);
            let rooms = page["rooms"].as_array().unwrap();
            rooms.iter().map(|room| room["room_id"].as_str().unwrap().to_owned()).collect()
        }

        async fn summary(&self, client: &crate::http::Local) -> Answer {
            client.get(&format!("/_matrix/client/v1/room_summary/{}", enc(&self.id))).await
        }
    }

    #[tokio::test]
    async fn pitfall_056_children_come_by_order_then_age_then_name_and_need_a_via() {
        let server = Server::default();
        let [alice] = users(&server).await;
        let top = space(&alice).await;
        let mut rooms = Vec::new();
        for _ in 0..6 {
            rooms.push(public_room(&alice).await);
        }
        let [late, early, odd, gone, plain, empty] = &rooms[..] else { panic!() };
        top.adopt(late, json!({"order": "b"})).await;
        top.adopt(early, json!({"order": "a"})).await;
        server.app.clock.advance(std::time::Duration::from_millis(5));
        // No order that counts: the older event is first.
        top.adopt(odd, json!({"order": "é"})).await;
        server.app.clock.advance(std::time::Duration::from_millis(5));
        top.adopt(plain, json!({})).await;
        top.set("m.space.child", &gone.id, json!({})).await;
        top.set("m.space.child", &empty.id, json!({"via": []})).await;
        assert_eq!(top.rooms("").await, [&*top.id, &*early.id, &*late.id, &*odd.id, &*plain.id]);
        let page = ok(&top.hierarchy("limit=1").await);
        let children = page["rooms"][0]["children_state"].as_array().unwrap();
        let keys: Vec<&str> = children.iter().map(|child| child["state_key"].as_str().unwrap()).collect();
        assert_eq!(keys, [&*early.id, &*late.id, &*odd.id, &*plain.id]);
        let mut names: Vec<&String> = children[0].as_object().unwrap().keys().collect();
        names.sort();
        assert_eq!(names, ["content", "origin_server_ts", "sender", "state_key", "type"]);
        assert_eq!(
            (&page["rooms"][0]["room_type"], page["rooms"][0].get("allowed_room_ids")),
            (&json!("m.space"), None)
        );
    }

    #[tokio::test]
    async fn pitfall_056_a_hierarchy_is_walked_depth_first_in_pages() {
        let server = Server::default();
        let [alice] = users(&server).await;
        let (top, left, right, deep) =
            (space(&alice).await, space(&alice).await, space(&alice).await, space(&alice).await);
        let (leaf, both) = (public_room(&alice).await, public_room(&alice).await);
        top.adopt(&left, json!({"order": "1", "suggested": true})).await;
        top.adopt(&right, json!({"order": "2"})).await;
        top.adopt(&both, json!({"order": "3"})).await;
        left.adopt(&deep, json!({})).await;
        deep.adopt(&leaf, json!({"suggested": true})).await;
        right.adopt(&both, json!({})).await;
        // Round in circles.
        deep.adopt(&top, json!({})).await;
        let whole = [&*top.id, &*left.id, &*deep.id, &*leaf.id, &*right.id, &*both.id];
        assert_eq!(top.rooms("").await, whole);
        for limit in 1..=7 {
            let (mut found, mut from) = (Vec::new(), String::new());
            loop {
                let page = ok(&top.hierarchy(&format!("limit={limit}{from}")).await);
                let rooms = page["rooms"].as_array().unwrap();
                assert!(rooms.len() <= limit);
                found.extend(rooms.iter().map(|room| room["room_id"].as_str().unwrap().to_owned()));
                let Some(next) = page["next_batch"].as_str() else { break };
                from = format!("&from={}", enc(next));
            }
            assert_eq!(found, whole, "{limit}");
        }
        assert_eq!(top.rooms("max_depth=0").await, [&*top.id]);
        assert_eq!(top.rooms("max_depth=1").await, [&*top.id, &*left.id, &*right.id, &*both.id]);
        assert_eq!(top.rooms("suggested_only=true").await, [&*top.id, &*left.id]);
        let children = ok(&top.hierarchy("suggested_only=true").await)["rooms"][0]["children_state"].clone();
        assert_eq!(children.as_array().unwrap().len(), 1);
        // A token is good for the question it was given for.
        let next = ok(&top.hierarchy("limit=1").await)["next_batch"].as_str().unwrap().to_owned();
        for query in [format!("from={next}&max_depth=1"), format!("from={next}&suggested_only=true"), "from=x".into()] {
            assert_eq!(refused(&top.hierarchy(&query).await), (400, "M_INVALID_PARAM".to_owned()), "{query}");
        }
        // A room that goes between two pages does not disturb them.
        let page = ok(&top.hierarchy("limit=2").await);
        top.set("m.space.child", &left.id, json!({})).await;
        let next = enc(page["next_batch"].as_str().unwrap());
        assert_eq!(top.rooms(&format!("from={next}")).await, [&*both.id]);
    }

    #[tokio::test]
    async fn pitfall_056_rooms_are_shown_to_those_who_may_know_of_them() {
        let server = Server::default();
        let [alice, bob, carol] = users(&server).await;
        let top = space(&alice).await;
        let secret = named(&alice, "private_chat", "secret").await;
        let invited = named(&alice, "private_chat", "invited").await;
        invited.act("invite", json!({"user_id": bob.user_id})).await;
        let open = room_with_history(&alice, "world_readable").await;
        open.set("m.room.join_rules", "", json!({"join_rule": "invite"})).await;
        let knock = named(&alice, "private_chat", "knock").await;
        knock.set("m.room.join_rules", "", json!({"join_rule": "knock"})).await;
        let allow = json!([{"type": "m.room_membership", "room_id": top.id}]);
        let restricted = named(&alice, "private_chat", "restricted").await;
        restricted.set("m.room.join_rules", "", json!({"join_rule": "restricted", "allow": allow})).await;
        let listed = [&secret, &invited, &open, &knock, &restricted];
        for (nr, room) in listed.iter().enumerate() {
            top.adopt(room, json!({"order": nr.to_string()})).await;
        }
        top.set("m.space.child", "!elsewhere:other.test", json!({"via": ["other.test"]})).await;
        let seen = async |user: &User| {
            let rooms = top.of(user).rooms("").await;
            let mut seen = String::new();
            for room in listed {
                let listed = rooms.contains(&room.id);
                let summary = room.summary(&user.client).await;
                assert_eq!(summary.status.is_success(), listed, "{}", summary.json());
                if !listed {
                    assert_eq!(refused(&summary), not_found());
                }
                seen.push(if listed { 'y' } else { 'n' });
            }
            seen
        };
        assert_eq!(seen(&alice).await, "yyyyy");
        assert_eq!(seen(&bob).await, "nyyyn");
        assert_eq!(seen(&carol).await, "nnyyn");
        top.join(&carol).await;
        assert_eq!(seen(&carol).await, "nnyyy");
        assert_eq!(refused(&secret.of(&bob).hierarchy("").await), forbidden());
        let nowhere = Room { user: &bob, id: "!nowhere:hs.test".to_owned() };
        assert_eq!(refused(&nowhere.hierarchy("").await), forbidden());
        let summary = ok(&restricted.summary(&carol.client).await);
        assert_eq!((&summary["join_rule"], &summary["allowed_room_ids"]), (&json!("restricted"), &json!([top.id])));
        assert_eq!((&summary["membership"], &summary["name"]), (&json!("leave"), &json!("restricted")));
        assert_eq!(ok(&invited.summary(&bob.client).await)["membership"], "invite");
    }

    #[tokio::test]
    async fn a_summary_is_there_for_strangers_too_and_under_its_old_names() {
        let server = Server::default();
        let [alice] = users(&server).await;
        let state = json!([{"type": "m.room.encryption", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}]);
        let request = json!({"preset": "public_chat", "room_alias_name": "town", "topic": "t", "initial_state": state});
        let room = create(&alice, request).await;
        let summary = ok(&room.summary(&server.client).await);
        let version = summary["room_version"].clone();
        let expected = json!({
            "room_id": room.id, "canonical_alias": "#town:hs.test", "topic": "t", "num_joined_members": 1,
            "join_rule": "public", "world_readable": false, "guest_can_join": false,
            "encryption": "m.megolm.v1.aes-sha2", "room_version": version,
        });
        assert_eq!(summary, expected);
        let alias = enc("#town:hs.test");
        assert_eq!(ok(&server.client.get(&format!("/_matrix/client/v1/room_summary/{alias}")).await), expected);
        for path in [format!("rooms/{alias}/summary"), format!("summary/{alias}")] {
            let old = ok(&alice.client.get(&format!("/_matrix/client/unstable/im.nheko.summary/{path}")).await);
            assert_eq!(old["im.nheko.summary.encryption"], expected["encryption"]);
            assert_eq!((&old["im.nheko.summary.room_version"], &old["membership"]), (&version, &json!("join")));
        }
        let secret = named(&alice, "private_chat", "secret").await;
        assert_eq!(refused(&secret.summary(&server.client).await), not_found());
        let nothing = server.client.get(&format!("/_matrix/client/v1/room_summary/{}", enc("#no:hs.test"))).await;
        assert_eq!(refused(&nothing), not_found());
    }

    #[tokio::test]
    async fn pitfall_056_children_are_shown_up_to_so_many_bytes() {
        let server = Server::default();
        let [alice] = users(&server).await;
        let top = space(&alice).await;
        let mut wide = Vec::new();
        for _ in 0..3 {
            let space = space(&alice).await;
            let more = json!({"pad": "x".repeat(60_000), "via": ["hs.test"]});
            for nr in 0..75 {
                space.set("m.space.child", &format!("!child{nr}:hs.test"), more.clone()).await;
            }
            top.adopt(&space, json!({})).await;
            wide.push(space);
        }
        // A page of three spaces would be more than 12 MiB.
        let (mut rooms, mut from) = (Vec::new(), String::new());
        loop {
            let page = ok(&top.hierarchy(&format!("limit=50{from}")).await);
            assert!(page.to_string().len() < 9 << 20, "{}", page.to_string().len());
            for room in page["rooms"].as_array().unwrap() {
                assert!(room["children_state"].as_array().unwrap().len() < 72);
                rooms.push(room["room_id"].as_str().unwrap().to_owned());
            }
            match page["next_batch"].as_str() {
                Some(next) => from = format!("&from={}", enc(next)),
                None => break,
            }
        }
        assert_eq!(rooms.len(), 4, "each is there once");
    }
}
