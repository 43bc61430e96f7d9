//! The cost of syncing through the router, on RocksDB: a hundred rooms of twenty members with twenty messages each.
#![allow(clippy::unwrap_used, reason = "a benchmark")]

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use homeserver::App;
use homeserver::config::{Config, Limit, RegistrationMode};
use homeserver::http::Local;
use homeserver::rooms::membership::{Wish, carry_out};
use homeserver::rooms::send;
use homeserver::schema::{USERS, User};
use homeserver::sync::assemble::{Dress, StateAfter, assemble};
use homeserver::sync::collect::{Ask, collect};
use homeserver::sync::filter::Filter;
use homeserver::{clock::Clock, rng::Rng, signing};
use ruma::events::TimelineEventType;
use ruma::{CanonicalJsonObject, OwnedRoomId, OwnedUserId, RoomId, UserId};
use serde_json::json;
use store::{Disk, Store};

const ROOMS: usize = 100;
const MEMBERS: usize = 20;
const MESSAGES: usize = 20;

fn user(n: usize) -> OwnedUserId {
    UserId::parse(format!("@user{n}:hs.test")).unwrap()
}

async fn say(app: &App, room: &RoomId, n: usize) {
    let content: CanonicalJsonObject =
        serde_json::from_value(json!({"msgtype": "m.text", "body": "x".repeat(120)})).unwrap();
    let sender = user(n % (MEMBERS - 1) + 1);
    let draft = ::rooms::build::Draft::message(TimelineEventType::RoomMessage, content, sender, app.clock.now());
    send::send(app, room, draft, None).await.unwrap();
}

/// A client that is logged in, and its rooms.
async fn world(app: &App) -> (Local, OwnedUserId, Vec<OwnedRoomId>) {
    let client = Local::new(app.router());
    let register = json!({"username": "reader", "password": "correct horse", "auth": {"type": "m.login.dummy"}});
    let registered = client.post("/_matrix/client/v3/register", register).await.json();
    let client = client.with_token(registered["access_token"].as_str().unwrap());
    let users = (1..MEMBERS).fold(store::Batch::new(), |mut batch, n| {
        batch.put(&USERS, user(n).as_str(), &User::default());
        batch
    });
    app.store.commit(users).unwrap().durable().await.unwrap();
    let mut rooms = Vec::new();
    for n in 0..ROOMS {
        let request = json!({"preset": "public_chat", "name": format!("room {n}")});
        let created = client.post("/_matrix/client/v3/createRoom", request).await.json();
        let room_id = RoomId::parse(created["room_id"].as_str().unwrap()).unwrap();
        for n in 1..MEMBERS {
            carry_out(app, &room_id, Wish::own(::rooms::membership::Act::Join, &user(n))).await.unwrap();
        }
        for n in 0..MESSAGES {
            say(app, &room_id, n).await;
        }
        rooms.push(room_id);
    }
    let user_id = UserId::parse(registered["user_id"].as_str().unwrap()).unwrap();
    (client, user_id, rooms)
}

/// Another user in a room of their own, and where they say that they are typing there.
async fn somebody_else(client: &Local) -> (Local, String) {
    let register = json!({"username": "typist", "password": "correct horse", "auth": {"type": "m.login.dummy"}});
    let registered = client.post("/_matrix/client/v3/register", register).await.json();
    let client = client.with_token(registered["access_token"].as_str().unwrap());
    let created = client.post("/_matrix/client/v3/createRoom", json!({})).await.json();
    let (room, user) = (created["room_id"].as_str().unwrap(), registered["user_id"].as_str().unwrap());
    let typing = format!("/_matrix/client/v3/rooms/{room}/typing/{user}");
    (client, typing)
}

fn benches(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(Disk::at(dir.path())).unwrap();
    let rng = Rng::seeded(1);
    let key = signing::generate(&rng).unwrap().key_pair().unwrap();
    let mut config = Config::new(ruma::owned_server_name!("hs.test"));
    config.registration.mode = RegistrationMode::Open;
    config.rate_limits.create_room = Limit::Off;
    let app = App::new(config, store, key, Clock::system(), rng);
    let (client, user_id, rooms) = runtime.block_on(world(&app));
    app.store.compact().unwrap();

    let mut group = c.benchmark_group("sync");
    let get = |path: &str| runtime.block_on(client.get(path));
    let twenty = "filter=%7B%22room%22:%7B%22timeline%22:%7B%22limit%22:20%7D%7D%7D";
    let initial = format!("/_matrix/client/v3/sync?{twenty}");
    let since = || get(&initial).json()["next_batch"].as_str().unwrap().to_owned();
    group.bench_function("initial", |b| b.iter(|| get(&initial).body.len()));
    let empty = format!("{initial}&since={}", since());
    group.bench_function("empty", |b| b.iter(|| get(&empty).body.len()));
    runtime.block_on(say(&app, &rooms[0], 0));
    group.bench_function("one event", |b| b.iter(|| get(&empty).body.len()));

    let required = json!([["m.room.name", ""], ["m.room.encryption", ""], ["m.room.member", "$LAZY"]]);
    let list = json!({"ranges": [[0, 19]], "timeline_limit": 20, "required_state": required});
    let extensions =
        ["to_device", "e2ee", "account_data", "receipts", "typing"].map(|name| (name, json!({"enabled": true})));
    let request = json!({"lists": {"all": list}, "extensions": serde_json::Map::from_iter(extensions.map(|(n, v)| (n.to_owned(), v)))});
    let sliding = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync";
    let post = |pos: &str| runtime.block_on(client.post(&format!("{sliding}?{pos}"), request.clone()));
    group.bench_function("sliding, first", |b| b.iter(|| post("").body.len()));
    let pos = format!("pos={}", post("").json()["pos"].as_str().unwrap());
    group.bench_function("sliding, empty", |b| b.iter(|| post(&pos).body.len()));
    let (other, typing) = runtime.block_on(somebody_else(&client));
    let (mut pos, mut typist) = (pos, false);
    group.bench_function("sliding, empty, while others type", |b| {
        let type_or_stop = || {
            typist = !typist;
            runtime.block_on(other.put(&typing, json!({"typing": typist, "timeout": 30_000})));
        };
        let poll = |()| pos = format!("pos={}", post(&pos).json()["pos"].as_str().unwrap());
        b.iter_batched(type_or_stop, poll, BatchSize::PerIteration);
    });
    runtime.block_on(say(&app, &rooms[0], 0));
    group.bench_function("sliding, one event", |b| b.iter(|| post(&pos).body.len()));
    let everything = json!({"lists": {"all": {"ranges": [[0, 99]], "timeline_limit": 1, "required_state": required}}});
    let all_rooms = || runtime.block_on(client.post(sliding, everything.clone())).body.len();
    group.bench_function("sliding, first, a hundred rooms", |b| b.iter(all_rooms));

    let (live, filter) = (app.sync.live.get(&app.store, &user_id), Filter::default());
    let state_after = StateAfter::default();
    let (device_id, since, full_state) = (None, None, false);
    let ask =
        Ask { app: &app, user_id: &user_id, device_id, live: &live, filter: &filter, since, full_state, state_after };
    let dress =
        Dress { now_ms: 0, device_id: None, federation: false, fields: None, state_after, thread_counts: false };
    let material = collect(&ask).unwrap();
    group.bench_function("collect, initial", |b| b.iter(|| collect(&ask).unwrap().join.len()));
    group.bench_function("assemble, initial", |b| b.iter(|| assemble(&material, &dress).len()));
    group.finish();
}

criterion_group!(all, benches);
criterion_main!(all);
