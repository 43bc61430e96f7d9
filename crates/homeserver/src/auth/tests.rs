//! What sessions cost, and what they leave in the store, also on a disk that misbehaves.

use std::time::Duration;

use serde_json::{Value, json};
use store::{Faults, MemoryDisk, Read as _};

use crate::App;
use crate::schema::{DEVICE_SEEN, DEVICE_TOKENS, DEVICES, TOKENS};
use crate::testing::{PASSWORD, Server, config};

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
