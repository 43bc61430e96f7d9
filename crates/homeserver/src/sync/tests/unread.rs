//! Counts that are more work than one answer does.

use std::collections::BTreeSet;

use store::{Read as _, Tx};

use super::*;
use crate::schema::{UNREAD, UNREAD_LOG};
use crate::sync::recount;

fn count(answer: &Value, room: &str) -> Option<u64> {
    joined(answer, room)["unread_notifications"]["notification_count"].as_u64()
}

/// Answers count about this many events (first ones twenty times as many).
fn patience(world: &World, events: u64) {
    world.server.app.sync.recounts.set_patience(Duration::from_nanos(events * 2_000));
}

async fn drain(world: &World) {
    recount::drain(&world.server.app).await.unwrap();
}

/// As if nothing had been counted yet.
async fn forget(world: &World) {
    let app = &world.server.app;
    let rows: Vec<(String, u64)> =
        app.store.snapshot().scan(&UNREAD, UNREAD.all()).keys().map(Result::unwrap).collect();
    let delete = |tx: &mut Tx| -> Result<(), store::Error> {
        rows.iter().for_each(|(user, room)| tx.delete(&UNREAD, (user, *room)));
        Ok(())
    };
    app.store.transact(delete).await.unwrap();
    app.sync.live.forget();
}

/// A room in which bob wrote so many messages.
async fn busy(world: &World, messages: usize) -> (User, User, String) {
    let (alice, bob) = (world.user("alice").await, world.user("bob").await);
    let room = world.public(&alice).await;
    world.join(&bob, &room).await;
    for n in 0..messages {
        world.say(&bob, &room, &format!("{n}")).await;
    }
    (alice, bob, room)
}

#[tokio::test]
async fn pitfall_038_a_count_that_takes_long_comes_right_without_being_asked_for() {
    let world = World::new();
    let (alice, bob, room) = busy(&world, 60).await;
    patience(&world, 1);
    let mut client = Client::new(&alice);
    let part = count(&client.next().await, &room).unwrap();
    assert!((1..60).contains(&part), "{part}");
    assert!(is_quiet(&client.next().await));
    drain(&world).await;
    let answer = client.next().await;
    assert_eq!(count(&answer, &room), Some(60));
    assert_eq!(told(&joined(&answer, &room)["timeline"]), [""; 0]);
    assert!(is_quiet(&client.next().await));
    // It goes on from there.
    world.say(&bob, &room, "more").await;
    assert_eq!(count(&client.next().await, &room), Some(61));
    drain(&world).await;
    assert!(is_quiet(&client.next().await));
}

#[tokio::test]
async fn pitfall_038_a_waiting_poll_is_answered_when_a_count_is_right() {
    let world = World::new();
    let (alice, _, room) = busy(&world, 60).await;
    patience(&world, 1);
    let mut client = Client::new(&alice);
    client.next().await;
    let waiting = tokio::spawn(async move { client.poll("&timeout=30000").await });
    settle().await;
    assert!(!waiting.is_finished());
    drain(&world).await;
    let answer = tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("nobody woke it").unwrap();
    assert_eq!(count(&answer, &room), Some(60));
}

#[tokio::test]
async fn pitfall_038_however_a_count_is_divided_it_comes_to_the_same() {
    let world = World::new();
    let (alice, bob, room) = busy(&world, 10).await;
    let root = world.say(&bob, &room, "root").await;
    for n in 0..10 {
        let relation = json!({"rel_type": "m.thread", "event_id": root});
        let content = json!({"msgtype": "m.text", "body": n.to_string(), "m.relates_to": relation,
            "m.mentions": {"user_ids": if n % 3 == 0 { vec![alice.user_id.as_str()] } else { vec![] }}});
        world.send(if n == 4 { &alice } else { &bob }, &room, "m.room.message", content).await;
    }
    let parts = |answer: &Value| {
        let room = joined(answer, &room);
        (room["unread_notifications"].clone(), room["unread_thread_notifications"].clone())
    };
    let filter = json!({"room": {"timeline": {"unread_thread_notifications": true}}});
    let whole = parts(&Client::filtered(&alice, &filter).next().await);
    assert_eq!(whole.0, json!({"notification_count": 11, "highlight_count": 0}));
    assert_eq!(whole.1[&root], json!({"notification_count": 5, "highlight_count": 2}));
    for events in [0, 1, 2, 5] {
        forget(&world).await;
        patience(&world, events);
        let mut seen = BTreeSet::new();
        for _ in 0..30 {
            seen.insert(parts(&Client::filtered(&alice, &filter).next().await).0.to_string());
        }
        drain(&world).await;
        assert_eq!(parts(&Client::filtered(&alice, &filter).next().await), whole, "{events}: {seen:?}");
    }
}

#[tokio::test]
async fn pitfall_038_what_is_redacted_while_it_is_counted_is_not_unread() {
    let world = World::new();
    let (alice, bob, room) = busy(&world, 30).await;
    let gone = world.say(&bob, &room, "gone").await;
    for n in 0..30 {
        world.say(&bob, &room, &format!("later {n}")).await;
    }
    let mut client = Client::new(&alice);
    assert_eq!(count(&client.next().await, &room), Some(61));
    patience(&world, 1);
    let redact = format!("/_matrix/client/v3/rooms/{room}/redact/{gone}/x");
    assert!(bob.client.put(&redact, json!({})).await.status.is_success());
    assert_eq!(count(&client.next().await, &room), Some(61), "the old count is better than a part of the new one");
    drain(&world).await;
    assert_eq!(count(&client.next().await, &room), Some(60));
}

#[tokio::test]
async fn who_left_leaves_no_count_behind() {
    let world = World::new();
    let (alice, bob, room) = busy(&world, 60).await;
    let app = &world.server.app;
    let rows = || {
        let read = app.store.snapshot();
        (read.count(&UNREAD, UNREAD.all()).unwrap(), read.count(&UNREAD_LOG, UNREAD_LOG.all()).unwrap())
    };
    patience(&world, 1);
    Client::new(&alice).next().await;
    drain(&world).await;
    assert_eq!(rows(), (1, 1));
    let leave = async || {
        let answer = alice.client.post(&format!("/_matrix/client/v3/rooms/{room}/leave"), json!({})).await;
        assert!(answer.status.is_success(), "{answer:?}");
    };
    leave().await;
    assert_eq!(rows(), (0, 0));

    // Nor does a count that was under way when they left.
    world.join(&alice, &room).await;
    world.say(&bob, &room, "again").await;
    let mut client = Client::new(&alice);
    client.next().await;
    for n in 0..30 {
        world.say(&bob, &room, &format!("again {n}")).await;
    }
    client.next().await;
    leave().await;
    drain(&world).await;
    assert_eq!(rows(), (0, 0));
}

#[tokio::test]
async fn pitfall_038_a_long_count_is_not_made_again_after_a_restart() {
    let disk = MemoryDisk::new();
    let world = World::at(disk.clone());
    let (alice, bob, room) = busy(&world, 60).await;
    patience(&world, 1);
    Client::new(&alice).next().await;
    drain(&world).await;
    let snapshot = world.server.app.store.snapshot();
    let row = snapshot.first(&UNREAD, UNREAD.all()).unwrap().unwrap();
    assert_eq!((row.1.main, snapshot.count(&UNREAD_LOG, UNREAD_LOG.all()).unwrap()), ((60, 0), 1));
    drop((snapshot, world));
    let world = World::at(disk);
    patience(&world, 0);
    let client =
        |user: &User| Client::new(&User { client: world.server.client.with_token(&*user.token), ..user.clone() });
    assert_eq!(count(&client(&alice).next().await, &room), Some(60));
    assert_eq!(count(&client(&bob).next().await, &room), Some(0));
}

#[tokio::test]
async fn pitfall_038_thousands_of_unread_messages_are_all_counted() {
    let world = World::new();
    let (alice, _, room) = busy(&world, 2_100).await;
    assert_eq!(count(&Client::new(&alice).next().await, &room), Some(2_100));
}
