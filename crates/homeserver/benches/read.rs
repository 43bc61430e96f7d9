//! The cost of reading a room through the router, on RocksDB: what a client waits for, without sockets.
#![allow(clippy::unwrap_used, reason = "a benchmark")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use homeserver::App;
use homeserver::config::{Config, RegistrationMode};
use homeserver::http::Local;
use homeserver::rooms::membership::{Wish, carry_out};
use homeserver::rooms::send;
use homeserver::schema::{USERS, User};
use homeserver::{clock::Clock, rng::Rng, signing};
use ruma::events::TimelineEventType;
use ruma::{CanonicalJsonObject, OwnedUserId, RoomId, UserId};
use serde_json::json;
use store::{Disk, Store};

const MESSAGES: usize = 2_000;

fn user(n: usize) -> OwnedUserId {
    UserId::parse(format!("@user{n}:hs.test")).unwrap()
}

/// A client that is logged in, and a room of theirs with this many members and some messages.
async fn room(app: &App, members: usize) -> (Local, String) {
    let client = Local::new(app.router());
    let register = json!({"username": "reader", "password": "correct horse", "auth": {"type": "m.login.dummy"}});
    let registered = client.post("/_matrix/client/v3/register", register).await.json();
    let client = client.with_token(registered["access_token"].as_str().unwrap());
    let request = json!({"preset": "public_chat", "name": "bench"});
    let created = client.post("/_matrix/client/v3/createRoom", request).await.json();
    let room_id = RoomId::parse(created["room_id"].as_str().unwrap()).unwrap();
    let mut batch = store::Batch::new();
    for n in 1..members {
        batch.put(&USERS, user(n).as_str(), &User::default());
    }
    app.store.commit(batch).unwrap().durable().await.unwrap();
    let mut content: CanonicalJsonObject = serde_json::from_value(json!({"msgtype": "m.text"})).unwrap();
    content.insert("body".to_owned(), ruma::CanonicalJsonValue::String("x".repeat(120)));
    for n in 1..members.max(MESSAGES) {
        if n < members {
            carry_out(app, &room_id, Wish::own(::rooms::membership::Act::Join, &user(n))).await.unwrap();
        }
        let (sender, kind) = (user(n % (members - 1) + 1), TimelineEventType::RoomMessage);
        if n < MESSAGES && n >= members {
            let draft = ::rooms::build::Draft::message(kind, content.clone(), sender, app.clock.now());
            send::send(app, &room_id, draft, None).await.unwrap();
        }
    }
    (client, format!("/_matrix/client/v3/rooms/{room_id}"))
}

fn benches(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    for members in [100, 1_000] {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(Disk::at(dir.path())).unwrap();
        let rng = Rng::seeded(1);
        let key = signing::generate(&rng).unwrap().key_pair().unwrap();
        let mut config = Config::new(ruma::owned_server_name!("hs.test"));
        config.registration.mode = RegistrationMode::Open;
        let app = App::new(config, store, key, Clock::system(), rng);
        let (client, path) = runtime.block_on(room(&app, members));
        app.store.compact().unwrap();
        let mut group = c.benchmark_group(format!("{members} members"));
        let mut get = |name: &str, rest: &str, elements: u64| {
            let path = format!("{path}/{rest}");
            group.throughput(Throughput::Elements(elements));
            group.bench_function(name, |b| {
                b.iter(|| {
                    let answer = runtime.block_on(client.get(&path));
                    assert!(answer.status.is_success(), "{}", answer.json());
                    answer.body.len()
                });
            });
        };
        get("members", "members", members as u64);
        get("joined_members", "joined_members", members as u64);
        get("state", "state", members as u64);
        get("one state event", "state/m.room.name/", 1);
        get("messages, 100", "messages?dir=b&limit=100", 100);
        get("messages, 10", "messages?dir=b&limit=10", 10);
    }
}

criterion_group!(read_benches, benches);
criterion_main!(read_benches);
