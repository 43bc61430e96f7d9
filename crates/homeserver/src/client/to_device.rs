//! Messages to devices (spec: Send-to-Device messaging).

use std::collections::BTreeMap;

use http::{Method, StatusCode};
use ruma::{OwnedUserId, TransactionId};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::auth::Access;
use crate::e2ee::to_device::{self, Sending};
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response, Routes, json_response};
use crate::rooms::send::TxnKey;

/// Event types are no longer in rooms either.
const MAX_TYPE_BYTES: usize = 255;

pub fn routes() -> Routes {
    let paths = [
        "/_matrix/client/v3/sendToDevice/{event_type}/{txn_id}",
        "/_matrix/client/r0/sendToDevice/{event_type}/{txn_id}",
    ];
    Routes::default().raw(Method::PUT, &paths, send_to_device).access(Access::Token).guests()
}

#[derive(Deserialize)]
struct Body {
    messages: BTreeMap<OwnedUserId, BTreeMap<String, Box<RawValue>>>,
}

async fn send_to_device(mut ctx: RawCtx) -> Result<Response> {
    let body: Body = ctx.read_json().await?;
    let (requester, kind) = (ctx.requester()?, ctx.arg(0));
    if kind.is_empty() || kind.len() > MAX_TYPE_BYTES {
        return Err(Error::invalid_param("This is not an event type"));
    }
    let contents = body.messages.values().flat_map(BTreeMap::values);
    if contents.into_iter().any(|content| !content.get().starts_with('{')) {
        return Err(Error::bad_json("The content of a message is an object"));
    }
    let (sender, device_id) = (&*requester.user_id, requester.device_id.as_deref());
    let txn = TxnKey::new(sender, device_id, &["sendToDevice", kind], <&TransactionId>::from(ctx.arg(1)));
    let sending = Sending { sender, kind, messages: &body.messages, txn: txn.row(), now_ms: ctx.app.clock.now_ms() };
    ctx.app.store.transact(|tx| to_device::send(tx, &ctx.app.server_name, &sending)).await?;
    Ok(json_response(StatusCode::OK, "{}"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use store::Read as _;

    use crate::http::Answer;
    use crate::schema::TO_DEVICE;
    use crate::testing::{Server, User};

    async fn send(from: &User, txn: &str, messages: Value) -> Answer {
        let path = format!("/_matrix/client/v3/sendToDevice/m.test/{txn}");
        from.client.put(&path, json!({ "messages": messages })).await
    }

    async fn send_one(from: &User, to: &User, txn: &str) {
        let messages = json!({ (to.user_id.clone()): { (to.device_id.clone()): { "n": txn } } });
        assert!(send(from, txn, messages).await.status.is_success());
    }

    async fn sync(user: &User, since: Option<&str>) -> (Vec<String>, String) {
        let since = since.map(|since| format!("&since={since}")).unwrap_or_default();
        let body = user.client.get(&format!("/_matrix/client/v3/sync?timeout=0{since}")).await.json();
        (numbers(&body), body["next_batch"].as_str().unwrap().to_owned())
    }

    /// What the messages of a sync are called.
    fn numbers(sync: &Value) -> Vec<String> {
        let events = sync["to_device"]["events"].as_array();
        events.into_iter().flatten().map(|event| event["content"]["n"].as_str().unwrap().to_owned()).collect()
    }

    fn stored(server: &Server) -> usize {
        server.app.store.latest().count(&TO_DEVICE, TO_DEVICE.all()).unwrap()
    }

    #[tokio::test]
    async fn pitfall_030_messages_stay_until_the_device_comes_back_with_a_later_token() {
        let server = Server::default();
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let (_, start) = sync(&bob, None).await;
        for txn in ["1", "2", "3"] {
            send_one(&alice, &bob, txn).await;
        }
        let (first, later) = sync(&bob, Some(&start)).await;
        assert_eq!(first, ["1", "2", "3"]);
        let (again, _) = sync(&bob, Some(&start)).await;
        assert_eq!(again, ["1", "2", "3"], "the answer was lost");
        assert_eq!(sync(&bob, None).await.0, ["1", "2", "3"], "not acknowledged yet");
        assert_eq!(stored(&server), 3);
        send_one(&alice, &bob, "4").await;
        let (next, last) = sync(&bob, Some(&later)).await;
        assert_eq!(next, ["4"]);
        assert_eq!(stored(&server), 1);
        assert_eq!(sync(&bob, Some(&last)).await.0, Vec::<String>::new());
        assert_eq!(stored(&server), 0);
        assert_eq!(sync(&bob, None).await.0, Vec::<String>::new());
    }

    #[tokio::test]
    async fn pitfall_030_only_the_device_itself_acknowledges() {
        let server = Server::default();
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let phone = server.log_in("bob").await;
        send_one(&alice, &bob, "1").await;
        let (none, token) = sync(&phone, None).await;
        assert_eq!(none, Vec::<String>::new());
        sync(&phone, Some(&token)).await;
        assert_eq!(sync(&bob, None).await.0, ["1"]);
        assert_eq!(stored(&server), 1);
    }

    #[tokio::test]
    async fn pitfall_030_many_messages_come_in_several_answers() {
        let server = Server::default();
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let (_, start) = sync(&bob, None).await;
        for n in 0..230 {
            send_one(&alice, &bob, &n.to_string()).await;
        }
        let expected: Vec<String> = (0..230).map(|n: u32| n.to_string()).collect();
        let (first, token) = sync(&bob, Some(&start)).await;
        assert_eq!(first, expected[..100]);
        assert_eq!(sync(&bob, Some(&token)).await.0, expected[100..200]);
        let (second, token) = sync(&bob, Some(&token)).await;
        assert_eq!(second, expected[100..200], "the same for the same token");
        assert_eq!(stored(&server), 130);
        let (third, token) = sync(&bob, Some(&token)).await;
        assert_eq!(third, expected[200..]);
        assert_eq!(sync(&bob, Some(&token)).await.0, Vec::<String>::new());
        assert_eq!(stored(&server), 0);
    }

    #[tokio::test]
    async fn pitfall_029_a_message_wakes_the_device_that_waits() {
        let server = Server::default();
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let (_, since) = sync(&bob, None).await;
        let path = format!("/_matrix/client/v3/sync?timeout=30000&since={since}");
        let (answer, ()) = tokio::join!(bob.client.get(&path), send_one(&alice, &bob, "1"));
        let expected = json!({ "sender": "@alice:hs.test", "type": "m.test", "content": { "n": "1" } });
        assert_eq!(answer.json()["to_device"]["events"], json!([expected]));
    }

    #[tokio::test]
    async fn pitfall_031_all_devices_are_those_of_now() {
        let server = Server::default();
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let phone = server.log_in("bob").await;
        let messages = json!({
            "@bob:hs.test": { "*": { "n": "all" }, (phone.device_id.clone()): { "n": "phone" }, "UNKNOWN": { "n": "x" } },
            "@nobody:hs.test": { "*": { "n": "x" }, "D": { "n": "x" } },
            "@far:else.test": { "D": { "n": "x" } },
        });
        let answer = send(&alice, "1", messages).await;
        assert_eq!((answer.status.as_u16(), answer.json()), (200, json!({})));
        let tablet = server.log_in("bob").await;
        assert_eq!(sync(&bob, None).await.0, ["all"]);
        assert_eq!(sync(&phone, None).await.0, ["phone"]);
        assert_eq!(sync(&tablet, None).await.0, Vec::<String>::new());
        assert_eq!(stored(&server), 2);
    }

    #[tokio::test]
    async fn pitfall_001_a_transaction_is_sent_once() {
        let server = Server::default();
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let laptop = server.log_in("alice").await;
        tokio::join!(send_one(&alice, &bob, "1"), send_one(&alice, &bob, "1"));
        send_one(&alice, &bob, "1").await;
        assert_eq!(stored(&server), 1);
        send_one(&laptop, &bob, "1").await;
        assert_eq!(stored(&server), 2, "each device counts for itself");
        let path = "/_matrix/client/v3/sendToDevice/m.other/1";
        alice.client.put(path, json!({ "messages": { "@bob:hs.test": { "*": { "n": "2" } } } })).await;
        assert_eq!(stored(&server), 3, "another path, another transaction");
    }

    #[tokio::test]
    async fn requests_that_make_no_sense_are_refused() {
        let server = Server::default();
        let alice = server.user("alice").await;
        for wrong in
            [json!([]), json!({ "bob": {} }), json!({ "@bob:hs.test": [] }), json!({ "@bob:hs.test": { "D": 1 } })]
        {
            assert_eq!(send(&alice, "1", wrong).await.status, 400);
        }
        assert_eq!(alice.client.put("/_matrix/client/v3/sendToDevice/m.test/1", json!({})).await.status, 400);
        assert_eq!(stored(&server), 0);
    }

    #[tokio::test]
    async fn pitfall_011_a_deleted_device_gets_nothing_more() {
        let server = Server::default();
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        send_one(&alice, &bob, "1").await;
        assert!(bob.client.post("/_matrix/client/v3/logout", json!({})).await.status.is_success());
        assert_eq!(stored(&server), 0);
        send_one(&alice, &bob, "2").await;
        assert_eq!(stored(&server), 0);
    }

    #[tokio::test]
    async fn large_messages_are_kept_whole() {
        let server = Server::default();
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let long = "x".repeat(300_000);
        let messages = json!({ "@bob:hs.test": { "*": { "n": long } } });
        assert!(send(&alice, "1", messages).await.status.is_success());
        let (got, token) = sync(&bob, None).await;
        assert_eq!(got, [long]);
        sync(&bob, Some(&token)).await;
        assert_eq!(stored(&server), 0);
    }
}
