//! The cost of one event in a room, from the draft to the durable commit, on the memory engine: what is decided and
//! written, without HTTP and without a disk.
#![allow(clippy::unwrap_used, reason = "a benchmark")]

use criterion::{Criterion, criterion_group, criterion_main};
use homeserver::App;
use homeserver::config::Config;
use homeserver::rooms::membership::{Wish, carry_out};
use homeserver::rooms::{create, send};
use homeserver::schema::{USERS, User};
use ruma::api::client::room::create_room::v3::{Request, RoomPreset};
use ruma::events::TimelineEventType;
use ruma::{CanonicalJsonObject, OwnedRoomId, OwnedUserId, UserId};

fn user(n: usize) -> OwnedUserId {
    UserId::parse(format!("@user{n}:hs.test")).unwrap()
}

/// A public room with this many members.
async fn room(app: &App, members: usize) -> OwnedRoomId {
    let mut batch = store::Batch::new();
    for n in 0..members {
        batch.put(&USERS, user(n).as_str(), &User::default());
    }
    app.store.commit(batch).unwrap().durable().await.unwrap();
    let request = Request { preset: Some(RoomPreset::PublicChat), ..Request::new() };
    let room = create::create(app, &user(0), request).await.unwrap();
    for n in 1..members {
        let user = user(n);
        carry_out(app, &room, Wish::own(::rooms::membership::Act::Join, &user)).await.unwrap();
    }
    room
}

fn benches(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    for members in [10, 1_000] {
        let app = App::in_memory(Config::new(ruma::owned_server_name!("hs.test")));
        let room = runtime.block_on(room(&app, members));
        let content: CanonicalJsonObject =
            serde_json::from_value(serde_json::json!({"msgtype": "m.text", "body": "x".repeat(120)})).unwrap();
        c.bench_function(&format!("send in a room of {members}"), |b| {
            b.iter(|| {
                let now = app.clock.now();
                let draft = ::rooms::build::Draft::message(
                    TimelineEventType::RoomMessage,
                    content.clone(),
                    user(members - 1),
                    now,
                );
                runtime.block_on(send::send(&app, &room, draft, None)).unwrap()
            });
        });
    }
    let app = App::in_memory(Config::new(ruma::owned_server_name!("hs.test")));
    let room = runtime.block_on(room(&app, 10_000));
    let mut n = 10_000;
    c.bench_function("join a room of 10,000", |b| {
        b.iter(|| {
            let user = user(n);
            n += 1;
            let wish = Wish::own(::rooms::membership::Act::Join, &user);
            runtime.block_on(carry_out(&app, &room, wish)).unwrap();
        });
    });
}

criterion_group!(send_benches, benches);
criterion_main!(send_benches);
