//! Messages to devices (spec: Send-to-Device messaging).

use std::collections::BTreeMap;

use http::{Method, StatusCode};
use ruma::{OwnedUserId, TransactionId};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::auth::Access;
use crate::blocking;
use crate::e2ee::to_device::{self, Sending};
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response, Routes, json_response};
use crate::limits::Class;
use crate::rooms::send::TxnKey;

/// Event types are no longer in rooms either.
const MAX_TYPE_BYTES: usize = 255;

pub fn routes() -> Routes {
    let paths = [
        "/_matrix/client/v3/sendToDevice/{event_type}/{txn_id}",
        "/_matrix/client/r0/sendToDevice/{event_type}/{txn_id}",
    ];
    Routes::default().raw(Method::PUT, &paths, send_to_device).access(Access::Token).limit(Class::ToDevice).guests()
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
    let sender = &*requester.user_id;
    let txn = TxnKey::new(requester, &["sendToDevice", kind], <&TransactionId>::from(ctx.arg(1)));
    let sending = Sending { sender, kind, messages: &body.messages, txn: txn.row(), now_ms: ctx.app.clock.now_ms() };
    let long = ctx.app.store.transact(|tx| to_device::send(tx, &ctx.app.server_name, &sending)).await?.value;
    for device in long {
        let store = ctx.app.store.clone();
        // What was sent was sent: if this fails, it is for the next message to try again.
        if let Err(cause) = blocking::run(move || to_device::trim(&store, &device)).await.and_then(|trimmed| trimmed) {
            tracing::warn!(%cause, "a long queue of messages to a device was not shortened");
        }
    }
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

    /// Messages of somebody, straight into bob's queue.
    async fn flood(server: &Server, bob: &User, sender: &str, messages: std::ops::Range<usize>, counted: u64) {
        use crate::schema::{TO_DEVICE_AT, TO_DEVICE_LOAD, ToDevice, Usage};
        let device = (bob.user_id.as_str(), bob.device_id.as_str());
        for chunk in messages.collect::<Vec<_>>().chunks(1_000) {
            let mut batch = store::Batch::new();
            for nr in chunk {
                let event = json!({ "sender": sender, "type": "m.test", "content": { "n": format!("{sender} {nr}") } });
                let at = batch.next_pos();
                batch.put(&TO_DEVICE, (device.0, device.1, at), &ToDevice(event.to_string().into()));
                batch.put(&TO_DEVICE_AT, device, &at);
            }
            batch.put(&TO_DEVICE_LOAD, device, &Usage { count: counted, bytes: 0 });
            server.app.store.commit(batch).unwrap().durable().await.unwrap();
        }
    }

    /// What waits for a device: who sent the oldest and the newest of each sender, and how many there are.
    fn waiting(server: &Server) -> std::collections::BTreeMap<String, (String, String, usize)> {
        let mut found = std::collections::BTreeMap::new();
        for row in server.app.store.latest().scan(&TO_DEVICE, TO_DEVICE.all()) {
            let event: Value = serde_json::from_slice(&row.unwrap().1.0).unwrap();
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            let n = text(&event["content"]["n"]);
            let entry = found.entry(text(&event["sender"])).or_insert_with(|| (n.clone(), n.clone(), 0));
            (entry.1, entry.2) = (n, entry.2 + 1);
        }
        found
    }

    #[tokio::test]
    async fn who_floods_a_device_pushes_out_their_own_messages() {
        let server = Server::default();
        let (alice, bob, mallory) =
            (server.user("alice").await, server.user("bob").await, server.user("mallory").await);
        send_one(&alice, &bob, "first").await;
        flood(&server, &bob, "@mallory:hs.test", 0..9_999, 10_000).await;
        // Whoever sends the message that is too much.
        send_one(&alice, &bob, "second").await;
        let left = waiting(&server);
        assert_eq!(left["@alice:hs.test"], ("first".to_owned(), "second".to_owned(), 2));
        assert_eq!(
            left["@mallory:hs.test"],
            ("@mallory:hs.test 1001".to_owned(), "@mallory:hs.test 9998".to_owned(), 8_998)
        );
        // Then there is room again for some time.
        send_one(&mallory, &bob, "third").await;
        assert_eq!(stored(&server), 9_001);
    }

    #[tokio::test]
    async fn a_queue_that_was_miscounted_is_counted_again() {
        let server = Server::default();
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        flood(&server, &bob, "@mallory:hs.test", 0..11_000, 998).await;
        send_one(&alice, &bob, "a").await;
        assert_eq!(stored(&server), 11_001, "it is not looked at each time");
        send_one(&alice, &bob, "b").await;
        assert_eq!(stored(&server), 9_000);
    }

    #[tokio::test]
    async fn what_waits_for_a_device_is_bounded_in_bytes() {
        let server = Server::default();
        let (alice, bob, mallory) =
            (server.user("alice").await, server.user("bob").await, server.user("mallory").await);
        send_one(&alice, &bob, "first").await;
        let bytes = || {
            let latest = server.app.store.latest();
            let rows = latest.scan(&TO_DEVICE, TO_DEVICE.all());
            rows.map(|row| row.unwrap().1.0.len()).sum::<usize>()
        };
        for nr in 0..24 {
            let messages = json!({ "@bob:hs.test": { "*": { "n": nr.to_string(), "x": "x".repeat(900_000) } } });
            assert!(send(&mallory, &nr.to_string(), messages).await.status.is_success());
            assert!(bytes() <= 16 * 1024 * 1024);
        }
        let left = waiting(&server);
        assert_eq!(left["@alice:hs.test"].2, 1);
        assert_eq!(left["@mallory:hs.test"].1, "23");
    }

    #[tokio::test]
    async fn what_was_counted_goes_with_the_device() {
        use crate::schema::TO_DEVICE_LOAD;
        let server = Server::default();
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        send_one(&alice, &bob, "1").await;
        let rows = || server.app.store.latest().count(&TO_DEVICE_LOAD, TO_DEVICE_LOAD.all()).unwrap();
        assert_eq!(rows(), 1);
        assert!(bob.client.post("/_matrix/client/v3/logout", json!({})).await.status.is_success());
        assert_eq!(rows(), 0);
    }
}
