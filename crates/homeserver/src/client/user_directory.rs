//! The user directory: whom somebody finds here. That is who is in a room with them, who is in a public room, and,
//! where the settings say so, everybody.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::Arc;

use ruma::api::client::user_directory::search_users::v3::{Request, Response, User};
use ruma::{OwnedUserId, UserId};
use store::{Read as _, Snapshot};

use crate::App;
use crate::blocking;
use crate::error::Result;
use crate::http::{Ctx, Routes};
use crate::limits::Class;
use crate::rooms::overview;
use crate::rooms::read::RoomReader;
use crate::rooms::shown::content_field;
use crate::schema::{PUBLIC_ROOMS, RoomNr};
use crate::sync::live::Memberships;
use crate::sync::presence::rooms_of;
use crate::users::directory::{self, Found};
use crate::users::profiles::Shown;

const MAX_RESULTS: u64 = 50;
/// The people around somebody are those of their rooms with no more members than this.
const SMALL_ROOM: u32 = 100;
/// So many people around are enough.
const MAX_NEAR: usize = 200;
/// So many rooms of others are looked into for one search. Whoever is in none of them that is public, and shares none with
/// who asks, is not found.
const MAX_ROOMS: usize = 400;

pub fn routes() -> Routes {
    Routes::default().ruma(search).limit(Class::Search)
}

async fn search(ctx: Ctx<Request>) -> Result<Response> {
    let (app, me, request) = (ctx.app.clone(), ctx.requester.user_id.clone(), ctx.request);
    let limit = u64::from(request.limit).min(MAX_RESULTS) as usize;
    let Found { users, limited } = blocking::run(move || find(&app, &me, &request.search_term, limit)).await??;
    let user = |(user_id, shown): (OwnedUserId, Shown)| User {
        user_id,
        display_name: shown.displayname,
        avatar_url: shown.avatar_url,
    };
    Ok(Response::new(users.into_iter().map(user).collect(), limited))
}

/// Up to `limit` users of that name whom somebody may find.
pub fn find(app: &App, me: &UserId, term: &str, limit: usize) -> Result<Found> {
    let read = app.store.snapshot();
    let (public, too_many) = (RefCell::default(), Cell::new(false));
    let acquaintances = Acquaintances { app, read: &read, mine: rooms_of(app, me)?, public, too_many };
    let all = app.config.user_directory.search_all_users;
    let may_find = |user: &UserId| Ok(all || user == me || acquaintances.include(user)?);
    let near = || if all { Ok(Vec::new()) } else { acquaintances.near() };
    let mut found = directory::search(&read, term, limit, may_find, near)?;
    found.limited |= acquaintances.too_many.get();
    Ok(found)
}

/// Whom a user can know of.
struct Acquaintances<'a> {
    app: &'a App,
    read: &'a Snapshot,
    mine: Arc<Memberships>,
    /// Rooms that were looked at.
    public: RefCell<HashMap<RoomNr, bool>>,
    /// Others were not.
    too_many: Cell<bool>,
}

impl Acquaintances<'_> {
    fn include(&self, user: &UserId) -> Result<bool> {
        let theirs = rooms_of(self.app, user)?;
        if theirs.share_a_room(&self.mine) {
            return Ok(true);
        }
        for room in theirs.joined() {
            if self.is_public(room)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether everybody may join a room, or read it, or find it in the directory of rooms.
    fn is_public(&self, room: RoomNr) -> Result<bool> {
        if let Some(known) = self.public.borrow().get(&room) {
            return Ok(*known);
        }
        if self.public.borrow().len() >= MAX_ROOMS {
            self.too_many.set(true);
            return Ok(false);
        }
        let reader = RoomReader::new(&self.app.room_cache, self.read);
        let mut public = self.read.contains(&PUBLIC_ROOMS, room)?;
        if let Some(head) = reader.head_of(room)?.filter(|_| !public) {
            let says = |kind, field, value: &str| -> Result<bool> {
                let event = reader.state_event(room, head.state, kind, "")?;
                Ok(event.and_then(|event| content_field::<String>(&event, field)).as_deref() == Some(value))
            };
            public = says("m.room.join_rules", "join_rule", "public")?
                || says("m.room.history_visibility", "history_visibility", "world_readable")?;
        }
        self.public.borrow_mut().insert(room, public);
        Ok(public)
    }

    /// The people of the user's small rooms.
    fn near(&self) -> Result<Vec<String>> {
        let reader = RoomReader::new(&self.app.room_cache, self.read);
        let mut near = Vec::new();
        for room in self.mine.joined() {
            let Some(head) = reader.head_of(room)?.filter(|head| head.joined_members <= SMALL_ROOM) else { continue };
            near.extend(overview::members(reader, room, &head)?);
            if near.len() >= MAX_NEAR {
                break;
            }
        }
        Ok(near)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::client::testing::*;
    use crate::testing::{Server, User, config};

    async fn search(user: &User, body: Value) -> (String, bool) {
        let answer = ok(&user.client.post("/_matrix/client/v3/user_directory/search", body).await);
        let users = answer["results"].as_array().unwrap().clone();
        let ids: Vec<String> = users.iter().map(|user| user["user_id"].as_str().unwrap().to_owned()).collect();
        (ids.join(" "), answer["limited"].as_bool().unwrap())
    }

    async fn finds(user: &User, term: &str) -> String {
        search(user, json!({ "search_term": term })).await.0
    }

    fn everybody() -> Server {
        let mut config = config();
        config.user_directory.search_all_users = true;
        Server::new(config)
    }

    #[tokio::test]
    async fn a_search_looks_into_so_many_rooms_of_others() {
        use crate::schema::{MEMBERSHIPS, Membership, MembershipState};
        let server = Server::default();
        let searcher = server.user("searcher").await;
        let (zed, zoe) = (server.user("zed").await, server.user("zoe").await);
        let public = zoe.client.post("/_matrix/client/v3/createRoom", json!({ "preset": "public_chat" })).await;
        let public = ok(&public)["room_id"].as_str().unwrap().to_owned();
        let joined = Membership {
            state: MembershipState::Join,
            event: store::Pos(1),
            joined: Some(store::Pos(1)),
            left: None,
            was_joined: false,
            forgotten: false,
        };
        let in_rooms = async |rooms: std::ops::Range<usize>| {
            let mut batch = store::Batch::new();
            rooms.for_each(|room| batch.put(&MEMBERSHIPS, (&zed.user_id, room as u64), &joined));
            server.app.store.commit(batch).unwrap().durable().await.unwrap();
        };
        in_rooms(0..super::MAX_ROOMS - 1).await;
        let z = json!({ "search_term": "z" });
        assert_eq!(search(&searcher, z.clone()).await, ("@zoe:hs.test".to_owned(), false));
        in_rooms(super::MAX_ROOMS..super::MAX_ROOMS + 1).await;
        assert_eq!(search(&searcher, z.clone()).await, (String::new(), true));
        ok(&searcher.client.post(&format!("/_matrix/client/v3/join/{public}"), json!({})).await);
        assert_eq!(search(&searcher, z).await, ("@zoe:hs.test".to_owned(), false), "those in a room with somebody are");
    }

    #[tokio::test]
    async fn users_are_found_by_either_name_while_they_are_there() {
        let server = everybody();
        let [alice, bob, _] = users(&server).await;
        let name = json!({ "displayname": "Big BEN" });
        bob.client.put("/_matrix/client/v3/profile/@bob:hs.test/displayname", name).await;
        assert_eq!(search(&alice, json!({ "search_term": "big ben" })).await, ("@bob:hs.test".to_owned(), false));
        assert_eq!(finds(&alice, "CAROL").await, "@carol:hs.test");
        assert_eq!(
            search(&alice, json!({ "search_term": "@", "limit": 1 })).await,
            ("@alice:hs.test".to_owned(), true)
        );
        assert_eq!(finds(&alice, "nobody").await, "");
        bob.client.post("/_matrix/client/v3/account/deactivate", json!({ "auth": bob.auth() })).await;
        assert_eq!(finds(&alice, "ben").await, "");
    }

    #[tokio::test]
    async fn pitfall_057_strangers_are_found_only_in_public_rooms() {
        let server = Server::default();
        let [alice, bob, carol, dave] = users(&server).await;
        assert_eq!(
            (finds(&alice, "alice").await, finds(&alice, "bob").await),
            ("@alice:hs.test".into(), String::new())
        );
        // In a room with her.
        let private = create(&alice, json!({"preset": "private_chat", "invite": [bob.user_id]})).await;
        assert_eq!(finds(&alice, "bob").await, "", "an invite alone tells nobody anything");
        private.join(&bob).await;
        assert_eq!(
            (finds(&alice, "bob").await, finds(&bob, "alice").await),
            (bob.user_id.clone(), alice.user_id.clone())
        );
        assert_eq!(finds(&carol, "bob").await, "");
        private.of(&bob).leave().await;
        assert_eq!(finds(&alice, "bob").await, "");
        // In a room that everybody may join, or read, or that is in the directory of rooms.
        let public = public_room(&carol).await;
        assert_eq!(finds(&alice, "carol").await, carol.user_id);
        public.set("m.room.join_rules", "", json!({"join_rule": "invite"})).await;
        assert_eq!(finds(&alice, "carol").await, "");
        public.set("m.room.history_visibility", "", json!({"history_visibility": "world_readable"})).await;
        assert_eq!(finds(&alice, "carol").await, carol.user_id);
        let closed = create(&dave, json!({"preset": "private_chat"})).await;
        assert_eq!(finds(&alice, "dave").await, "");
        let list = format!("/_matrix/client/v3/directory/list/room/{}", enc(&closed.id));
        ok(&dave.client.put(&list, json!({"visibility": "public"})).await);
        assert_eq!(finds(&alice, "dave").await, dave.user_id);
    }

    #[tokio::test]
    async fn pitfall_057_those_around_are_found_among_any_number_of_the_same_name() {
        let server = Server::default();
        let [alice, bob] = users(&server).await;
        let open = |tx: &mut store::Tx| -> crate::error::Result<()> {
            for nr in 0..300 {
                let user_id = ruma::UserId::parse(format!("@bob.a{nr:03}:hs.test")).unwrap();
                tx.put(&crate::schema::USERS, user_id.as_str(), &crate::schema::User::default());
                crate::users::directory::update(tx, &user_id)?;
            }
            Ok(())
        };
        server.app.store.transact(open).await.unwrap();
        bob.client.put("/_matrix/client/v3/profile/@bob:hs.test/displayname", json!({"displayname": "Zora"})).await;
        assert_eq!(search(&alice, json!({ "search_term": "bo" })).await, (String::new(), true));
        create(&alice, json!({"preset": "private_chat", "invite": [bob.user_id]})).await.join(&bob).await;
        assert_eq!(search(&alice, json!({ "search_term": "bo" })).await, (bob.user_id.clone(), true));
    }

    #[tokio::test]
    async fn pitfall_057_everybody_is_found_where_the_settings_say_so() {
        let server = everybody();
        let [alice, bob] = users(&server).await;
        create(&bob, json!({"preset": "private_chat"})).await;
        assert_eq!(finds(&alice, "bob").await, bob.user_id);
    }
}
