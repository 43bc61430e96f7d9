//! Server notices. What they are and how they get to their users lives in `crate::notices`.

use http::Method;
use ruma::{CanonicalJsonObject, TransactionId};
use serde::Deserialize;
use serde_json::json;

use super::{ok, user_of};
use crate::error::Result;
use crate::http::{RawCtx, Response, Routes};
use crate::notices::{self, Notice};
use crate::rooms::send::TxnKey;

const PATH: &str = "/_synapse/admin/v1/send_server_notice";
const WITH_TXN: &str = "/_synapse/admin/v1/send_server_notice/{txn_id}";

pub(super) fn routes() -> Routes {
    Routes::default().raw(Method::POST, &[PATH], send).raw(Method::PUT, &[WITH_TXN], send_once)
}

#[derive(Deserialize)]
struct Send {
    user_id: String,
    #[serde(default = "message", rename = "type")]
    kind: String,
    state_key: Option<String>,
    content: CanonicalJsonObject,
}

fn message() -> String {
    "m.room.message".to_owned()
}

async fn send(mut ctx: RawCtx) -> Result<Response> {
    let body: Send = ctx.read_json().await?;
    tell(ctx, body, None).await
}

async fn send_once(mut ctx: RawCtx) -> Result<Response> {
    let body: Send = ctx.read_json().await?;
    let (path, transaction_id) = (["send_server_notice"], <&TransactionId>::from(ctx.arg(0)));
    let txn = match &ctx.requester {
        Some(requester) => TxnKey::new(requester, &path, transaction_id),
        None => TxnKey::of_operator(&notices::sender(&ctx.app)?, &path, transaction_id),
    };
    tell(ctx, body, Some(txn)).await
}

async fn tell(ctx: RawCtx, body: Send, txn: Option<TxnKey>) -> Result<Response> {
    let user_id = user_of(&ctx, &body.user_id)?;
    let notice = Notice { kind: body.kind, state_key: body.state_key, content: body.content };
    let event_id = notices::send(&ctx.app, &user_id, notice, txn).await?;
    ok(&json!({ "event_id": event_id }))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::PATH;
    use crate::client::testing::{enc, ok, refused};
    use crate::testing::{PASSWORD, Server, User, config};
    use crate::users::admin;

    struct World {
        server: Server,
        root: User,
        alice: User,
    }

    impl World {
        async fn new() -> Self {
            let mut config = config();
            config.server_notices.sender = Some("notices".to_owned());
            let server = Server::new(config);
            admin::create(&server.app, "root", PASSWORD, true).await.unwrap();
            let (root, alice) = (server.log_in("root").await, server.user("alice").await);
            World { server, root, alice }
        }

        fn notice(&self, text: &str) -> Value {
            json!({ "user_id": self.alice.user_id, "content": { "msgtype": "m.text", "body": text } })
        }

        async fn tell(&self, text: &str) -> String {
            let told = ok(&self.root.client.post(PATH, self.notice(text)).await);
            told["event_id"].as_str().unwrap().to_owned()
        }

        async fn sync(&self, since: &str) -> Value {
            ok(&self.alice.client.get(&format!("/_matrix/client/v3/sync?timeout=0&since={since}")).await)
        }

        async fn invites(&self) -> Vec<String> {
            let sync = self.sync("").await;
            let invites = sync["rooms"]["invite"].as_object().cloned().unwrap_or_default();
            invites.into_iter().map(|(room_id, _)| room_id).collect()
        }

        async fn act(&self, room_id: &str, act: &str) -> (u16, String) {
            let path = format!("/_matrix/client/v3/rooms/{}/{act}", enc(room_id));
            refused(&self.alice.client.post(&path, json!({})).await)
        }
    }

    fn fine() -> (u16, String) {
        (200, String::new())
    }

    #[tokio::test]
    async fn a_user_has_one_room_for_notices() {
        let world = World::new().await;
        let first = world.tell("one").await;
        let invites = world.invites().await;
        let [room_id] = invites.as_slice() else { panic!("{invites:?}") };
        let before = world.sync("").await["next_batch"].as_str().unwrap().to_owned();
        world.tell("two").await;
        assert_eq!(world.invites().await, [room_id.as_str()]);
        assert_eq!(world.act(room_id, "join").await, fine());
        let room = world.sync(&before).await["rooms"]["join"][room_id].clone();
        let tags = room["account_data"]["events"].as_array().unwrap().iter().find(|event| event["type"] == "m.tag");
        assert_eq!(tags.unwrap()["content"], json!({ "tags": { "m.server_notice": {} } }));
        let events = format!("/_matrix/client/v3/rooms/{}/messages?dir=b&limit=20", enc(room_id));
        let events = ok(&world.alice.client.get(&events).await)["chunk"].as_array().unwrap().clone();
        let said: Vec<&Value> = events.iter().filter(|event| event["type"] == "m.room.message").collect();
        assert_eq!((said.len(), &said[1]["event_id"]), (2, &json!(first)));
        assert!(said.iter().all(|event| event["sender"] == "@notices:hs.test"));
        assert!(events.iter().any(|event| event["content"]["name"] == "Server Notices"));
        let mine = format!("/_matrix/client/v3/rooms/{}/send/m.room.message/1", enc(room_id));
        let answer = world.alice.client.put(&mine, json!({ "msgtype": "m.text", "body": "hello?" })).await;
        assert_eq!(answer.errcode(), "M_FORBIDDEN", "nobody else speaks there");
        // Who left is invited again, and the tag is there again.
        assert_eq!(world.act(room_id, "leave").await, fine());
        let tag = format!("/_matrix/client/v3/user/@alice:hs.test/rooms/{}/tags/m.server_notice", enc(room_id));
        ok(&world.alice.client.delete(&tag).await);
        world.tell("three").await;
        assert_eq!(world.invites().await, [room_id.as_str()]);
        let tags = tag.strip_suffix("/m.server_notice").unwrap();
        assert_eq!(ok(&world.alice.client.get(tags).await)["tags"], json!({ "m.server_notice": {} }));
    }

    #[tokio::test]
    async fn an_invite_to_notices_cannot_be_rejected() {
        let world = World::new().await;
        let blocking = format!("/_matrix/client/v3/user/{}/account_data/m.invite_permission_config", "@alice:hs.test");
        ok(&world.alice.client.put(&blocking, json!({ "default_action": "block" })).await);
        world.tell("read this").await;
        let invites = world.invites().await;
        let no = (403, "M_CANNOT_LEAVE_SERVER_NOTICE_ROOM".to_owned());
        assert_eq!(world.act(&invites[0], "leave").await, no);
        let member = format!("/_matrix/client/v3/rooms/{}/state/m.room.member/@alice:hs.test", enc(&invites[0]));
        assert_eq!(refused(&world.alice.client.put(&member, json!({ "membership": "leave" })).await), no);
        // Other invites can.
        let unblock = json!({ "default_action": "allow" });
        ok(&world.alice.client.put(&blocking, unblock).await);
        let other = json!({ "invite": [world.alice.user_id] });
        let other = ok(&world.root.client.post("/_matrix/client/v3/createRoom", other).await);
        assert_eq!(world.act(other["room_id"].as_str().unwrap(), "leave").await, fine());
        // Who goes for good leaves this one as well.
        let close = json!({ "auth": world.alice.auth() });
        ok(&world.alice.client.post("/_matrix/client/v3/account/deactivate", close).await);
        crate::jobs::drain(&world.server.app).await.unwrap();
        let members = format!("/_synapse/admin/v1/rooms/{}/state", enc(&invites[0]));
        let state = ok(&world.root.client.get(&members).await)["state"].as_array().unwrap().clone();
        let alice = state.iter().find(|event| event["state_key"] == "@alice:hs.test").unwrap();
        assert_eq!(alice["content"]["membership"], "leave");
    }

    #[tokio::test]
    async fn a_notice_is_sent_once_for_each_transaction() {
        let world = World::new().await;
        let put = async |txn: &str| ok(&world.root.client.put(&format!("{PATH}/{txn}"), world.notice("x")).await);
        let (first, again, other) = (put("a").await, put("a").await, put("b").await);
        assert_eq!(first, again);
        assert_ne!(first, other);
    }

    #[tokio::test]
    async fn a_room_that_is_gone_is_made_anew() {
        let world = World::new().await;
        world.tell("one").await;
        let old = world.invites().await;
        let path = format!("/_synapse/admin/v1/rooms/{}", enc(&old[0]));
        ok(&world.root.client.send(http::Method::DELETE, &path, crate::http::Body::from("{}")).await);
        crate::jobs::drain(&world.server.app).await.unwrap();
        // The ID of a room is made from when it was made, too.
        world.server.app.clock.advance(std::time::Duration::from_secs(1));
        world.tell("two").await;
        let new = world.invites().await;
        assert!(new.len() == 1 && new != old, "{old:?} {new:?}");
    }

    #[tokio::test]
    async fn not_everybody_gets_or_sends_notices() {
        let world = World::new().await;
        let outcome = async |user: &User, user_id: &str| {
            let body = json!({ "user_id": user_id, "content": { "body": "x" } });
            refused(&user.client.post(PATH, body).await)
        };
        assert_eq!(outcome(&world.alice, "@alice:hs.test").await, (403, "M_FORBIDDEN".to_owned()));
        assert_eq!(outcome(&world.root, "@nobody:hs.test").await, (404, "M_NOT_FOUND".to_owned()));
        assert_eq!(outcome(&world.root, "@alice:elsewhere.test").await, (400, "M_INVALID_PARAM".to_owned()));
        assert_eq!(outcome(&world.root, "@notices:hs.test").await, (400, "M_INVALID_PARAM".to_owned()));
        let redaction =
            json!({ "user_id": "@alice:hs.test", "type": "m.room.redaction", "content": { "redacts": "$x" } });
        assert_eq!(refused(&world.root.client.post(PATH, redaction).await), (400, "M_INVALID_PARAM".to_owned()));
        let server = Server::default();
        admin::create(&server.app, "root", PASSWORD, true).await.unwrap();
        assert_eq!(outcome(&server.log_in("root").await, "@root:hs.test").await, (400, "M_UNKNOWN".to_owned()));
    }

    #[tokio::test]
    async fn the_sender_is_nobodys_account() {
        let world = World::new().await;
        crate::notices::prepare(&world.server.app).await.unwrap();
        let body = json!({ "username": "notices", "password": PASSWORD, "auth": { "type": "m.login.dummy" } });
        let taken = world.server.client.post("/_matrix/client/v3/register", body).await;
        assert_eq!(taken.errcode(), "M_USER_IN_USE");
        let mut config = config();
        config.server_notices.sender = Some("carol".to_owned());
        let server = Server::new(config);
        server.user("carol").await;
        let wrong = crate::notices::prepare(&server.app).await.unwrap_err();
        assert!(wrong.message().contains("@carol:hs.test is somebody's account"), "{wrong}");
    }
}
