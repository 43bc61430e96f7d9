//! What sessions cost, and what they leave in the store, also on a disk that misbehaves.

use std::time::Duration;

use serde_json::{Value, json};
use store::{Batch, Faults, MemoryDisk, Read as _};

use crate::App;
use crate::auth::tokens;
use crate::jobs;
use crate::schema::{
    DEVICE_SEEN, DEVICE_TOKENS, DEVICES, Device, KEY_COUNTS, KeyCounts, Seen, TOKENS, Token, TokenKind,
};
use crate::testing::{PASSWORD, Server, User, config};
use crate::users::admin;

const WHOAMI: &str = "/_matrix/client/v3/account/whoami";
const REFRESH: &str = "/_matrix/client/v3/refresh";

fn server(disk: &MemoryDisk) -> Server {
    Server::of(App::on_memory_disk(config(), disk.clone()))
}

/// Every token is listed under its device, every device with tokens exists, and nothing is noted of others.
fn check_rows(server: &Server) {
    let read = server.app.store.snapshot();
    for row in read.scan(&TOKENS, TOKENS.all()) {
        let (hash, token) = row.unwrap();
        assert!(read.contains(&DEVICE_TOKENS, (&token.user_id, &token.device_id, &hash)).unwrap());
        assert!(token.partner.is_none_or(|partner| read.contains(&TOKENS, &partner).unwrap() || token.ended(u64::MAX)));
    }
    for row in read.scan(&DEVICE_TOKENS, DEVICE_TOKENS.all()) {
        let ((user_id, device_id, hash), ()) = row.unwrap();
        assert!(read.contains(&TOKENS, &hash).unwrap());
        assert!(device_id.is_empty() || read.contains(&DEVICES, (&user_id, &device_id)).unwrap());
    }
    for row in read.scan(&DEVICE_SEEN, DEVICE_SEEN.all()) {
        let ((user_id, device_id), _) = row.unwrap();
        assert!(read.contains(&DEVICES, (&user_id, &device_id)).unwrap());
    }
}

#[tokio::test]
async fn a_request_costs_two_reads_to_know_its_sender() {
    let disk = MemoryDisk::new();
    let server = server(&disk);
    let alice = server.user("alice").await;
    alice.client.get(WHOAMI).await;
    let before = disk.read_rounds();
    assert_eq!(alice.client.get(WHOAMI).await.status, 200);
    assert_eq!(disk.read_rounds() - before, 2);
}

#[tokio::test]
async fn whatever_is_repeated_inside_is_done_once() {
    for seed in 1..=10 {
        let disk = MemoryDisk::new();
        let server = server(&disk);
        disk.set_faults(Faults { seed, conflict: 0.4, expired: 0.05, ..Faults::default() });
        server.user("alice").await;
        let login = server.try_log_in("alice", PASSWORD, json!({ "refresh_token": true })).await.json();
        let next = server.client.post(REFRESH, json!({ "refresh_token": login["refresh_token"] })).await.json();
        let client = server.client.with_token(next["access_token"].as_str().unwrap());
        assert_eq!(client.get(WHOAMI).await.status, 200);
        check_rows(&server);
        assert_eq!(client.post("/_matrix/client/v3/logout/all", json!({})).await.status, 200);
        check_rows(&server);
        assert_eq!(server.app.store.snapshot().count(&TOKENS, TOKENS.all()).unwrap(), 0);
    }
}

#[tokio::test]
async fn pitfall_010_a_client_that_goes_on_asking_gets_through_a_disk_that_loses_answers() {
    let mut lost = 0;
    for seed in 4..=6 {
        let disk = MemoryDisk::new();
        let server = server(&disk);
        server.user("alice").await;
        let login = server.try_log_in("alice", PASSWORD, json!({ "refresh_token": true })).await.json();
        disk.set_faults(Faults { seed, unknown_written: 0.2, unknown_lost: 0.15, ..Faults::default() });
        let mut tokens = login;
        for _ in 0..3 {
            tokens = patient(&mut lost, async || {
                server.client.post(REFRESH, json!({ "refresh_token": tokens["refresh_token"] })).await
            })
            .await;
            let client = server.client.with_token(tokens["access_token"].as_str().unwrap());
            let me = patient(&mut lost, async || client.get(WHOAMI).await).await;
            assert_eq!(me["user_id"], "@alice:hs.test");
            server.app.clock.advance(Duration::from_secs(3_600));
        }
        disk.set_faults(Faults::default());
        check_rows(&server);
    }
    assert!(lost > 0, "no answer was lost: the test tests nothing");
}

/// Asks again while the server does not know.
async fn patient(lost: &mut u32, ask: impl AsyncFn() -> crate::http::Answer) -> Value {
    for _ in 0..2_000 {
        let answer = ask().await;
        if !answer.status.is_server_error() {
            assert_eq!(answer.status, 200, "{:?}", answer.json());
            return answer.json();
        }
        *lost += 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the server never knows");
}

// ---- very many devices -------------------------------------------------------------------------------------------

/// So many that their names alone do not fit into one commit.
const MANY: usize = 2_500;

fn long_name(nr: usize) -> String {
    format!("{nr:x>255}")
}

fn secret(nr: usize) -> String {
    format!("ska_{nr}")
}

/// A server on which alice has very many devices besides one that she uses. Each has the longest of names, and a token.
async fn crowded(server: Server) -> (Server, User) {
    let alice = server.user("alice").await;
    let user = alice.user_id.as_str();
    for chunk in (0..MANY).collect::<Vec<_>>().chunks(250) {
        let mut batch = Batch::new();
        for nr in chunk {
            let device = long_name(*nr);
            let token = Token {
                kind: TokenKind::Access,
                user_id: user.to_owned(),
                device_id: device.clone(),
                expires_ts: None,
                partner: None,
                unconfirmed: false,
                epoch: 0,
            };
            let hash = tokens::hash(&secret(*nr));
            batch.put(&TOKENS, &hash, &token);
            batch.put(&DEVICE_TOKENS, (user, &device, &hash), &());
            batch.put(&DEVICES, (user, &device), &Device::default());
            batch.put(&DEVICE_SEEN, (user, &device), &Seen::default());
            batch.put(&KEY_COUNTS, (user, &device), &KeyCounts::default());
        }
        server.app.store.commit(batch).unwrap().durable().await.unwrap();
    }
    assert_eq!(whoami(&server, &secret(7)).await, 200);
    (server, alice)
}

async fn whoami(server: &Server, token: &str) -> u16 {
    server.client.with_token(token).get(WHOAMI).await.status.as_u16()
}

/// No token of the many works any more, though nothing has happened in the background; and in the end nothing of them is
/// left but what belongs to `left` devices.
async fn check_gone(server: &Server, left: usize) {
    for nr in [0, 1, MANY / 2, MANY - 1] {
        assert_eq!(whoami(server, &secret(nr)).await, 401, "{nr}");
    }
    assert!(server.app.store.snapshot().count(&DEVICES, DEVICES.all()).unwrap() > left, "a job has something to do");
    jobs::drain(&server.app).await.unwrap();
    let read = server.app.store.snapshot();
    assert_eq!(read.count(&DEVICES, DEVICES.all()).unwrap(), left);
    assert_eq!(read.count(&DEVICE_TOKENS, DEVICE_TOKENS.all()).unwrap(), left);
    assert_eq!(read.count(&KEY_COUNTS, KEY_COUNTS.all()).unwrap(), 0);
    check_rows(server);
}

#[tokio::test]
async fn who_has_very_many_devices_logs_out_everywhere() {
    let (server, alice) = crowded(Server::default()).await;
    assert_eq!(alice.client.post("/_matrix/client/v3/logout/all", json!({})).await.status, 200);
    assert_eq!(alice.client.get(WHOAMI).await.errcode(), "M_UNKNOWN_TOKEN");
    check_gone(&server, 0).await;
    assert_eq!(server.log_in("alice").await.client.get(WHOAMI).await.status, 200);
}

#[tokio::test]
async fn a_new_password_ends_very_many_sessions_but_ones_own() {
    let (server, alice) = crowded(Server::default()).await;
    let path = "/_matrix/client/v3/account/password";
    let answer = alice.client.post(path, json!({ "auth": alice.auth(), "new_password": "another horse" })).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(alice.client.get(WHOAMI).await.status, 200);
    let listed = alice.client.get("/_matrix/client/v3/devices").await.json();
    assert_eq!(listed["devices"].as_array().unwrap().len(), 1, "the others are not shown any more");
    check_gone(&server, 1).await;
    assert_eq!(alice.client.get(WHOAMI).await.status, 200);
}

#[tokio::test]
async fn an_account_with_very_many_devices_can_be_closed() {
    let (server, alice) = crowded(Server::default()).await;
    let close = "/_matrix/client/v3/account/deactivate";
    assert_eq!(alice.client.post(close, json!({ "auth": alice.auth(), "erase": true })).await.status, 200);
    check_gone(&server, 0).await;
}

#[tokio::test]
async fn administrators_end_very_many_sessions_and_close_such_an_account() {
    let (server, _) = crowded(Server::default()).await;
    admin::reset_password(&server.app, "alice", "another horse", true).await.unwrap();
    check_gone(&server, 0).await;
    let (server, _) = crowded(Server::default()).await;
    admin::deactivate(&server.app, "alice", false).await.unwrap();
    check_gone(&server, 0).await;
}

#[tokio::test]
async fn very_many_devices_can_be_deleted_by_name() {
    let (server, alice) = crowded(Server::default()).await;
    let names: Vec<String> = (0..MANY).map(long_name).collect();
    let body = json!({ "auth": alice.auth(), "devices": names });
    let answer = alice.client.post("/_matrix/client/v3/delete_devices", body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(server.app.store.snapshot().count(&DEVICES, DEVICES.all()).unwrap(), 1);
    assert_eq!((whoami(&server, &secret(MANY - 1)).await, whoami(&server, &alice.token).await), (401, 200));
}

#[tokio::test]
async fn who_comes_back_under_an_old_name_is_not_taken_for_the_old_device() {
    let (server, alice) = crowded(Server::default()).await;
    assert_eq!(alice.client.post("/_matrix/client/v3/logout/all", json!({})).await.status, 200);
    let (name, read) = (long_name(MANY - 1), server.app.store.snapshot());
    assert!(read.contains(&KEY_COUNTS, (&alice.user_id, &name)).unwrap(), "the job has not come to it");
    let back = server.log_in_with("alice", json!({ "device_id": name })).await;
    let read = server.app.store.snapshot();
    assert!(!read.contains(&KEY_COUNTS, (&alice.user_id, &name)).unwrap(), "the keys of the old one are gone");
    assert_eq!(whoami(&server, &secret(MANY - 1)).await, 401);
    jobs::drain(&server.app).await.unwrap();
    assert_eq!(back.client.get(WHOAMI).await.status, 200);
    assert_eq!(server.app.store.snapshot().count(&DEVICES, DEVICES.all()).unwrap(), 1);
}

#[tokio::test]
async fn a_poll_that_waits_ends_when_its_device_is_logged_out() {
    let server = Server::default();
    let (laptop, phone) = (server.user("alice").await, server.log_in("alice").await);
    for (path, body) in [("/_matrix/client/v3/logout/all", json!({})), ("/_matrix/client/v3/logout", json!({}))] {
        let laptop = if path.ends_with("all") { laptop.clone() } else { server.log_in("alice").await };
        let phone = if path.ends_with("all") { &phone } else { &laptop };
        let since = laptop.client.get("/_matrix/client/v3/sync").await.json()["next_batch"].clone();
        let poll = format!("/_matrix/client/v3/sync?timeout=30000&since={}", since.as_str().unwrap());
        let (answer, ()) = tokio::join!(laptop.client.get(&poll), async {
            tokio::task::yield_now().await;
            assert_eq!(phone.client.post(path, body).await.status, 200);
        });
        assert_eq!((answer.status.as_u16(), answer.errcode().as_str()), (401, "M_UNKNOWN_TOKEN"), "{path}");
    }
}

#[tokio::test]
async fn a_login_too_many_logs_out_the_device_that_was_not_used_for_longest() {
    let mut settings = config();
    settings.auth.max_devices = 3;
    let server = Server::new(settings);
    let minute = || server.app.clock.advance(Duration::from_secs(15 * 60));
    let mut all = vec![server.user("alice").await];
    for _ in 0..2 {
        minute();
        all.push(server.log_in("alice").await);
    }
    let bob = server.user("bob").await;
    minute();
    // The first is used again, so that the second is the one.
    assert_eq!(all[0].client.get(WHOAMI).await.status, 200);
    minute();
    all.push(server.log_in("alice").await);
    let mut open = Vec::new();
    for user in &all {
        open.push(user.client.get(WHOAMI).await.status == 200);
    }
    assert_eq!(open, [true, false, true, true]);
    // A known device takes nobody's place, nor does that of another user.
    server.log_in_with("alice", json!({ "device_id": all[2].device_id })).await;
    assert_eq!(
        (all[0].client.get(WHOAMI).await.status, bob.client.get(WHOAMI).await.status.as_u16()),
        (http::StatusCode::OK, 200)
    );
    check_rows(&server);
}

#[tokio::test]
async fn who_had_too_many_devices_from_before_gets_rid_of_them() {
    let (server, _) = crowded(Server::default()).await;
    let count = || server.app.store.snapshot().count(&DEVICES, DEVICES.all()).unwrap();
    let before = count();
    server.log_in("alice").await;
    assert!(count() < before);
}

#[tokio::test]
async fn refreshing_again_and_again_leaves_few_tokens() {
    let server = Server::default();
    server.user("alice").await;
    let mut grant = server.try_log_in("alice", PASSWORD, json!({ "refresh_token": true })).await.json();
    for _ in 0..200 {
        grant = server.client.post(REFRESH, json!({ "refresh_token": grant["refresh_token"] })).await.json();
        assert_eq!(whoami(&server, grant["access_token"].as_str().unwrap()).await, 200);
    }
    let tokens = server.app.store.snapshot().count(&DEVICE_TOKENS, DEVICE_TOKENS.all()).unwrap();
    assert!(tokens < 80, "{tokens} tokens");
    check_rows(&server);
}
