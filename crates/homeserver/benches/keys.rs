//! The cost of key requests from the router to the answer, on the memory engine: without sockets and without a disk.
#![allow(clippy::unwrap_used, reason = "a benchmark")]

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use homeserver::testing::{Server, User};
use serde_json::{Map, Value, json};

const UPLOAD: &str = "/_matrix/client/v3/keys/upload";
const QUERY: &str = "/_matrix/client/v3/keys/query";
const CLAIM: &str = "/_matrix/client/v3/keys/claim";
const SIGNED: &str = "signed_curve25519";

fn signatures(user: &User) -> Value {
    json!({ (user.user_id.clone()): { (format!("ed25519:{}", user.device_id)): "s".repeat(86) } })
}

/// Identity keys and 50 one-time keys that were not there before.
fn upload(user: &User, round: usize) -> Value {
    let keys: Map<String, Value> = (0..50)
        .map(|n| {
            let key = format!("{round:020}{n:023}");
            (format!("{SIGNED}:{round}x{n}"), json!({ "key": key, "signatures": signatures(user) }))
        })
        .collect();
    let device_keys = json!({
        "user_id": user.user_id, "device_id": user.device_id,
        "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
        "keys": {
            (format!("curve25519:{}", user.device_id)): "c".repeat(43),
            (format!("ed25519:{}", user.device_id)): "e".repeat(43),
        },
        "signatures": signatures(user),
    });
    json!({ "device_keys": device_keys, "one_time_keys": keys })
}

fn benches(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let server = Server::default();
    let mut users = Vec::new();
    for n in 0..21 {
        let user = runtime.block_on(server.user(&format!("user{n}")));
        assert!(runtime.block_on(user.client.post(UPLOAD, upload(&user, 0))).status.is_success());
        users.push(user);
    }
    let mut round = 0;
    c.bench_function("upload 50 one-time keys (on a new device)", |b| {
        let next = || {
            round += 1;
            let user = runtime.block_on(server.log_in("user0"));
            let body = upload(&user, round);
            (user, body)
        };
        b.iter_batched(next, |(user, body)| runtime.block_on(user.client.post(UPLOAD, body)), BatchSize::PerIteration);
    });
    let everybody: Map<String, Value> = users.iter().skip(1).map(|user| (user.user_id.clone(), json!([]))).collect();
    let everybody = json!({ "device_keys": everybody });
    c.bench_function("query 20 users", |b| {
        b.iter(|| runtime.block_on(users[1].client.post(QUERY, everybody.clone())));
    });
    let whom = &users[2];
    let claim = json!({ "one_time_keys": { (whom.user_id.clone()): { (whom.device_id.clone()): SIGNED } } });
    let mut left = 50;
    c.bench_function("claim one key", |b| {
        let refill = || {
            if left == 0 {
                round += 1;
                runtime.block_on(whom.client.post(UPLOAD, upload(whom, round)));
                left = 50;
            }
            left -= 1;
        };
        b.iter_batched(
            refill,
            |()| runtime.block_on(users[1].client.post(CLAIM, claim.clone())),
            BatchSize::PerIteration,
        );
    });
}

criterion_group!(keys, benches);
criterion_main!(keys);
