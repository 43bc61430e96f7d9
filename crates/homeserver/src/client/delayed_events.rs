//! Delayed events, in all the ways that clients ask for them (MSC4140): by a parameter of sending, by an endpoint of
//! their own, and looking after them by delay ID. What becomes of them is in `delayed`.

use http::{Method, StatusCode};
use ruma::{OwnedTransactionId, RoomId};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::App;
use crate::auth::{Access, Requester};
use crate::delayed::{self, Action, Plan};
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response, Routes, json_response};
use crate::limits::Class;
use crate::rooms::send::TxnKey;
use crate::schema::{Delayed, DelayedOutcome};

/// The parameter that makes sending wait.
pub const PARAMETER: &str = "org.matrix.msc4140.delay";

pub fn routes() -> Routes {
    const EVENTS: &[&str] =
        &["/_matrix/client/unstable/org.matrix.msc4140/delayed_events", "/_matrix/client/v1/delayed_events"];
    const EVENT: &[&str] = &[
        "/_matrix/client/unstable/org.matrix.msc4140/delayed_events/{delay_id}",
        "/_matrix/client/v1/delayed_events/{delay_id}",
    ];
    Routes::default()
        .raw(
            Method::PUT,
            &[
                "/_matrix/client/unstable/org.matrix.msc4140/rooms/{room_id}/delayed_event/{event_type}/{txn_id}",
                "/_matrix/client/v3/rooms/{room_id}/delayed_event/{event_type}/{txn_id}",
            ],
            schedule,
        )
        .access(Access::Token)
        .limit(Class::Message)
        .raw(Method::GET, EVENTS, list)
        .access(Access::Token)
        .limit(Class::Other)
        .raw(Method::GET, EVENT, get)
        .access(Access::Token)
        .limit(Class::Other)
        // The delay ID is all the proof that is needed: a service that looks after a call has nothing else.
        .raw(Method::POST, EVENT, manage_by_body)
        .limit(Class::Other)
        .raw(
            Method::POST,
            &[
                "/_matrix/client/unstable/org.matrix.msc4140/delayed_events/{delay_id}/{action}",
                "/_matrix/client/v1/delayed_events/{delay_id}/{action}",
            ],
            manage_by_path,
        )
        .limit(Class::Other)
}

#[derive(Deserialize)]
struct Request {
    /// In milliseconds; drafts called it `delay`.
    #[serde(alias = "delay")]
    delay_ms: Option<u64>,
    state_key: Option<String>,
    content: Option<Box<RawValue>>,
}

async fn schedule(mut ctx: RawCtx) -> Result<Response> {
    let request: Request = ctx.read_json().await?;
    let requester = ctx.requester()?;
    let (kind, txn_id) = (ctx.arg(1), OwnedTransactionId::from(ctx.arg(2)));
    let target = Target {
        room_id: &RoomId::parse(ctx.arg(0))?,
        kind,
        state_key: request.state_key.as_deref(),
        txn_id: Some(&txn_id),
    };
    let content = request.content.as_ref().ok_or_else(|| Error::missing_param("content is missing"))?;
    let delay_ms = request.delay_ms.ok_or_else(|| Error::missing_param("delay_ms is missing"))?;
    put_off(&ctx.app, requester, &target, content.get(), delay_ms).await
}

/// What is to be sent.
pub struct Target<'a> {
    pub room_id: &'a RoomId,
    pub kind: &'a str,
    pub state_key: Option<&'a str>,
    pub txn_id: Option<&'a ruma::TransactionId>,
}

/// The delay that the query of a send request asks for.
pub fn delay_in(value: Option<&str>) -> Result<Option<u64>> {
    let wrong = |_| Error::invalid_param(format!("{PARAMETER} is a number of milliseconds"));
    value.map(|value| value.parse().map_err(wrong)).transpose()
}

/// Schedules an event instead of sending it, and answers with its delay ID.
pub async fn put_off(
    app: &App,
    requester: &Requester,
    target: &Target<'_>,
    content: &str,
    delay_ms: u64,
) -> Result<Response> {
    requester.not_suspended()?;
    let path = ["delayed_event", target.room_id.as_str(), target.kind];
    let txn = |id| TxnKey::new(requester, &path, id);
    let plan = Plan {
        user_id: requester.user_id.clone(),
        device_id: requester.device_id.as_ref().map(ToString::to_string).unwrap_or_default(),
        room_id: target.room_id.to_owned(),
        kind: target.kind.to_owned(),
        state_key: target.state_key.map(str::to_owned),
        content: content.to_owned(),
        delay_ms,
        txn: target.txn_id.map(txn),
    };
    let delay_id = delayed::schedule(app, &plan).await?;
    Ok(json_response(StatusCode::OK, json!({ "delay_id": delay_id }).to_string()))
}

async fn list(ctx: RawCtx) -> Result<Response> {
    let all = delayed::of(&ctx.app.store.snapshot(), &ctx.requester()?.user_id)?;
    let (mut scheduled, mut finalised) = (Vec::new(), Vec::new());
    for (delay_id, row) in &all {
        if row.end.is_some() { &mut finalised } else { &mut scheduled }.push(shown(delay_id, row));
    }
    let body = json!({ "delayed_events": scheduled, "scheduled": scheduled, "finalised": finalised });
    Ok(json_response(StatusCode::OK, body.to_string()))
}

async fn get(ctx: RawCtx) -> Result<Response> {
    let row = delayed::get(&ctx.app.store.snapshot(), &ctx.requester()?.user_id, ctx.arg(0))?;
    Ok(json_response(StatusCode::OK, shown(ctx.arg(0), &row).to_string()))
}

async fn manage_by_path(ctx: RawCtx) -> Result<Response> {
    manage(&ctx.app, ctx.arg(0), ctx.arg(1)).await
}

async fn manage_by_body(mut ctx: RawCtx) -> Result<Response> {
    #[derive(Deserialize)]
    struct Body {
        action: Option<String>,
    }
    let body: Body = ctx.read_json().await?;
    let action = body.action.ok_or_else(|| Error::missing_param("action is missing"))?;
    manage(&ctx.app, ctx.arg(0), &action).await
}

async fn manage(app: &App, delay_id: &str, action: &str) -> Result<Response> {
    let action = Action::parse(action).ok_or_else(|| Error::invalid_param(format!("{action} is no action")))?;
    delayed::manage(app, delay_id, action).await?;
    Ok(json_response(StatusCode::OK, "{}"))
}

/// With the names of the proposal and those of its drafts.
fn shown(delay_id: &str, row: &Delayed) -> Value {
    let content: Value = serde_json::from_str(&row.content).unwrap_or_default();
    let mut shown = json!({
        "delay_id": delay_id,
        "room_id": row.room_id,
        "type": row.kind,
        "content": content,
        "delay": row.delay_ms,
        "delay_ms": row.delay_ms,
        "running_since": row.since_ts,
        "delayed_since_ts": row.since_ts,
    });
    if let Some(state_key) = &row.state_key {
        shown["state_key"] = json!(state_key);
    }
    if let Some(end) = &row.end {
        let mut finalised = json!({ "origin_server_ts": end.ts });
        match &end.outcome {
            DelayedOutcome::Sent(event_id) => finalised["event_id"] = json!(event_id),
            DelayedOutcome::Cancelled => {}
            DelayedOutcome::Failed(code, message) => {
                finalised["error"] = json!({ "errcode": code, "error": message });
            }
        }
        for (name, value) in finalised.as_object().into_iter().flatten() {
            shown[name] = value.clone();
        }
        shown["finalised_ts"] = json!(end.ts);
        shown["finalised"] = finalised;
    }
    shown
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};
    use store::{MemoryDisk, Read as _};
    use tokio::task::JoinHandle;

    use crate::App;
    use crate::delayed::{self, MAX_DELAY_MS, MAX_SCHEDULED};
    use crate::schema::{DELAYED, DELAYED_DUE, DELAYED_OF, USERS};
    use crate::testing::{Server, User, config};

    const EVENTS: &str = "/_matrix/client/unstable/org.matrix.msc4140/delayed_events";
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn server(disk: MemoryDisk) -> (Server, JoinHandle<()>) {
        let server = Server::of(App::on_memory_disk(config(), disk));
        let runner = tokio::spawn(delayed::run(server.app.clone()));
        (server, runner)
    }

    async fn room(user: &User) -> String {
        let answer = user.client.post("/_matrix/client/v3/createRoom", json!({ "preset": "public_chat" })).await;
        answer.json()["room_id"].as_str().unwrap().to_owned()
    }

    /// Puts a state event off by the parameter of sending.
    async fn put_off(user: &User, room: &str, key: &str, delay_ms: u64) -> String {
        let path =
            format!("/_matrix/client/v3/rooms/{room}/state/test.member/{key}?org.matrix.msc4140.delay={delay_ms}");
        let answer = user.client.put(&path, json!({ "left": true })).await;
        assert_eq!(answer.status, 200, "{}", answer.json());
        assert_eq!(answer.json().get("event_id"), None);
        answer.json()["delay_id"].as_str().unwrap().to_owned()
    }

    async fn is_sent(user: &User, room: &str, key: &str) -> bool {
        user.client.get(&format!("/_matrix/client/v3/rooms/{room}/state/test.member/{key}")).await.status == 200
    }

    /// The event is sent after this long by the server's clock, and not before.
    async fn wait_until_sent(server: &Server, user: &User, room: &str, key: &str) -> Duration {
        let before = server.app.clock.monotonic();
        let sent = async {
            while !is_sent(user, room, key).await {
                server.app.clock.advance(Duration::from_millis(500));
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), sent).await.expect("it is never sent");
        server.app.clock.monotonic() - before
    }

    async fn manage(server: &Server, delay_id: &str, action: &str) -> u16 {
        server.client.post(&format!("{EVENTS}/{delay_id}/{action}"), json!({})).await.status.as_u16()
    }

    #[tokio::test]
    async fn pitfall_075_an_event_that_shall_wait_does_not_go_out_at_once() {
        let (server, _runner) = server(MemoryDisk::new());
        let alice = server.user("alice").await;
        let room = room(&alice).await;
        put_off(&alice, &room, "a", 10_000).await;
        assert!(!is_sent(&alice, &room, "a").await);
        assert!(wait_until_sent(&server, &alice, &room, "a").await >= Duration::from_secs(10));
        let path = format!("/_matrix/client/v3/rooms/{room}/send/m.room.message/t?org.matrix.msc4140.delay=soon");
        assert_eq!(alice.client.put(&path, json!({ "body": "x" })).await.errcode(), "M_INVALID_PARAM");
    }

    #[tokio::test]
    async fn a_heartbeat_puts_the_end_off_and_silence_brings_it() {
        let (server, _runner) = server(MemoryDisk::new());
        let alice = server.user("alice").await;
        let room = room(&alice).await;
        let delay_id = put_off(&alice, &room, "a", 10_000).await;
        for _ in 0..5 {
            server.app.clock.advance(Duration::from_secs(5));
            assert_eq!(manage(&server, &delay_id, "restart").await, 200, "without any token");
        }
        assert!(!is_sent(&alice, &room, "a").await);
        assert!(wait_until_sent(&server, &alice, &room, "a").await >= Duration::from_secs(10));
        assert_eq!(manage(&server, &delay_id, "restart").await, 409);
        assert_eq!(manage(&server, &delay_id, "cancel").await, 409);
        assert_eq!(manage(&server, &delay_id, "send").await, 200);
    }

    #[tokio::test]
    async fn sent_at_once_or_cancelled_it_stays_so() {
        let (server, _runner) = server(MemoryDisk::new());
        let alice = server.user("alice").await;
        let room = room(&alice).await;
        let (sent, cancelled) = (put_off(&alice, &room, "a", 10_000).await, put_off(&alice, &room, "b", 10_000).await);
        assert_eq!(manage(&server, &sent, "send").await, 200);
        assert!(is_sent(&alice, &room, "a").await);
        let old = json!({ "action": "cancel" });
        assert_eq!(alice.client.post(&format!("{EVENTS}/{cancelled}"), old).await.status, 200);
        assert_eq!(manage(&server, &cancelled, "cancel").await, 200);
        assert_eq!(manage(&server, &cancelled, "send").await, 409);
        assert_eq!(manage(&server, &cancelled, "explode").await, 400);
        assert_eq!(manage(&server, "unknown", "cancel").await, 404);
        server.app.clock.advance(Duration::from_secs(60));
        put_off(&alice, &room, "c", 1_000).await;
        wait_until_sent(&server, &alice, &room, "c").await;
        assert!(!is_sent(&alice, &room, "b").await);
        // What became of them is known for a day.
        let ended = alice.client.get(&format!("{EVENTS}/{sent}")).await.json();
        assert!(ended["finalised"]["event_id"].is_string() && ended["event_id"].is_string());
        server.app.clock.advance(DAY);
        let forgotten = async {
            while server.app.store.snapshot().count(&DELAYED, DELAYED.all()).unwrap() > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), forgotten).await.unwrap();
        assert_eq!(server.app.store.snapshot().count(&DELAYED_DUE, DELAYED_DUE.all()).unwrap(), 0);
        assert_eq!(server.app.store.snapshot().count(&DELAYED_OF, DELAYED_OF.all()).unwrap(), 0);
    }

    #[tokio::test]
    async fn the_endpoint_of_its_own_schedules_once_for_a_transaction_and_lists() {
        let server = Server::default();
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = room(&alice).await;
        let base = "/_matrix/client/unstable/org.matrix.msc4140";
        let path = format!("{base}/rooms/{room}/delayed_event/m.room.message/t1");
        let body = json!({ "delay_ms": 5_000, "content": { "msgtype": "m.text", "body": "later" } });
        let first = alice.client.put(&path, body.clone()).await.json();
        assert_eq!(alice.client.put(&path, body).await.json(), first);
        let draft = json!({ "delay": 1_000, "state_key": "k", "content": {} });
        let path = format!("{base}/rooms/{room}/delayed_event/test.state/t2");
        let second = alice.client.put(&path, draft).await.json();
        let all = alice.client.get(EVENTS).await.json();
        let ids: Vec<&Value> = all["scheduled"].as_array().unwrap().iter().map(|one| &one["delay_id"]).collect();
        assert_eq!(ids, [&second["delay_id"], &first["delay_id"]], "the first to be sent comes first");
        assert_eq!(all["delayed_events"][0]["state_key"], "k");
        assert_eq!(
            (&all["scheduled"][1]["delay_ms"], &all["scheduled"][1]["type"]),
            (&json!(5_000), &json!("m.room.message"))
        );
        assert_eq!(all["scheduled"][1]["content"]["body"], "later");
        let delay_id = first["delay_id"].as_str().unwrap();
        assert_eq!(bob.client.get(&format!("{EVENTS}/{delay_id}")).await.status, 404);
        assert_eq!(bob.client.get(EVENTS).await.json()["scheduled"], json!([]));
        let path = format!("{base}/rooms/{room}/delayed_event/m.room.message/t3");
        let body = json!({ "delay_ms": 5_000, "content": {} });
        assert_eq!(bob.client.put(&path, body).await.errcode(), "M_FORBIDDEN", "bob is not in the room");
        for wrong in [json!({ "content": {} }), json!({ "delay_ms": 1 }), json!({ "delay_ms": 0, "content": {} })] {
            assert_eq!(alice.client.put(&path, wrong.clone()).await.status, 400, "{wrong}");
        }
    }

    #[tokio::test]
    async fn there_are_limits() {
        let server = Server::default();
        let alice = server.user("alice").await;
        let room = room(&alice).await;
        let path = |key: u64, delay_ms: u64| {
            format!("/_matrix/client/v3/rooms/{room}/state/test.member/{key}?org.matrix.msc4140.delay={delay_ms}")
        };
        let answer = alice.client.put(&path(0, MAX_DELAY_MS + 1), json!({})).await;
        assert_eq!(
            (answer.errcode().as_str(), &answer.json()["max_delay"]),
            ("M_MAX_DELAY_EXCEEDED", &json!(MAX_DELAY_MS))
        );
        for key in 0..MAX_SCHEDULED as u64 {
            assert_eq!(alice.client.put(&path(key, 60_000 + key), json!({})).await.status, 200);
        }
        let answer = alice.client.put(&path(0, 1_000), json!({})).await;
        assert_eq!((answer.status.as_u16(), answer.errcode().as_str()), (429, "M_LIMIT_EXCEEDED"));
        assert_eq!(answer.headers["retry-after"], "60");
    }

    #[tokio::test]
    async fn pitfall_075_timers_survive_a_restart_and_power_counts_when_it_is_sent() {
        let disk = MemoryDisk::new();
        let (room, kept, lost);
        {
            let (server, runner) = server(disk.clone());
            let (alice, bob) = (server.user("alice").await, server.user("bob").await);
            room = self::room(&alice).await;
            bob.client.post(&format!("/_matrix/client/v3/join/{room}"), json!({})).await;
            kept = put_off(&alice, &room, "a", 30_000).await;
            let path = format!("/_matrix/client/v3/rooms/{room}/send/m.room.message/x?org.matrix.msc4140.delay=20000");
            lost =
                bob.client.put(&path, json!({ "body": "late" })).await.json()["delay_id"].as_str().unwrap().to_owned();
            let ban = json!({ "user_id": bob.user_id });
            assert_eq!(alice.client.post(&format!("/_matrix/client/v3/rooms/{room}/ban"), ban).await.status, 200);
            server.app.shutdown.cancel();
            runner.await.unwrap();
        }
        let (server, _runner) = server(disk);
        let alice = server.log_in("alice").await;
        let waited = wait_until_sent(&server, &alice, &room, "a").await;
        assert!(waited >= Duration::from_secs(30), "{waited:?}");
        let sent = alice.client.get(&format!("{EVENTS}/{kept}")).await.json();
        assert!(sent["finalised"]["event_id"].is_string());
        let bob = server.log_in("bob").await;
        let failed = bob.client.get(&format!("{EVENTS}/{lost}")).await.json();
        assert_eq!(failed["finalised"]["error"]["errcode"], "M_FORBIDDEN", "{failed}");
        assert_eq!(failed.get("event_id"), None);
    }

    #[tokio::test]
    async fn pitfall_015_accounts_that_are_shut_out_send_nothing_later() {
        for shut in ["suspended", "locked", "deactivated"] {
            let (server, _runner) = server(MemoryDisk::new());
            let (alice, bob) = (server.user("alice").await, server.user("bob").await);
            let room = room(&alice).await;
            let joined = bob.client.post(&format!("/_matrix/client/v3/join/{room}"), json!({})).await;
            assert_eq!(joined.status, 200);
            let delay_id = put_off(&alice, &room, "a", 10_000).await;
            let shut_out = |tx: &mut store::Tx| -> crate::error::Result<()> {
                let mut user = tx.get(&USERS, &alice.user_id)?.unwrap();
                user.suspended = shut == "suspended";
                user.locked = shut == "locked";
                user.deactivated = shut == "deactivated";
                tx.put(&USERS, &alice.user_id, &user);
                Ok(())
            };
            server.app.store.transact(shut_out).await.unwrap();
            assert_eq!(manage(&server, &delay_id, "send").await, 403, "{shut}");
            let over = async {
                while server.app.store.snapshot().get(&DELAYED, &delay_id).unwrap().unwrap().end.is_none() {
                    server.app.clock.advance(Duration::from_millis(500));
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), over).await.unwrap();
            assert!(!is_sent(&bob, &room, "a").await, "{shut}");
        }
    }
}
