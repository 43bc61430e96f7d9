//! What people do with a client that is made of matrix-rust-sdk and its UI crate: room lists by sliding sync, a second
//! sync for encryption, notifications, recovery.
//!
//! Lives here: the scenarios, each with a server of its own; those of logging in by OAuth are in `oauth`. Not here: the
//! person at the client (`person`) and at a browser (`browser`), the server under test (`server`).

mod browser;
mod oauth;
mod person;
mod server;

use matrix_sdk::RoomState;
use matrix_sdk::encryption::VerificationState;
use matrix_sdk::ruma::events::room::message::SyncRoomMessageEvent;
use matrix_sdk::ruma::events::{AnySyncMessageLikeEvent, AnySyncTimelineEvent};
use matrix_sdk_ui::notification_client::{
    NotificationClient, NotificationEvent, NotificationProcessSetup, NotificationStatus,
};
use matrix_sdk_ui::room_list_service::RoomListLoadingState;
use matrix_sdk_ui::sync_service::State;

use person::{Person, Shown, until};
use server::Server;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invite_is_shown_and_both_sides_talk() {
    let server = Server::started().await;
    let (alice, bob) = (Person::registered(&server, "alice").await, Person::registered(&server, "bob").await);
    let room_id = alice.named_room("Harbour", &[&bob]).await;
    let invited = until("the invite to a room with a name", async || {
        let room = bob.room_in(&room_id, RoomState::Invited)?;
        (room.display_name().await.unwrap().to_string() == "Harbour").then_some(room)
    })
    .await;
    invited.join().await.unwrap();
    let (at_alice, at_bob) = (alice.opens(&room_id).await, bob.opens(&room_id).await);

    at_alice.says("is the tide in?").await;
    at_bob.until_reads("is the tide in?").await;
    until("an unread message", async || (bob.room(&room_id).num_unread_messages() == 1).then_some(())).await;
    at_bob.says("not yet").await;
    at_alice.until_reads("not yet").await;
    at_alice.reacts_to("not yet", "🌊").await;
    at_bob.until_reaction("not yet", "🌊").await;

    at_bob.marks_as_read().await;
    until("nothing unread", async || (bob.room(&room_id).num_unread_messages() == 0).then_some(())).await;
    bob.room(&room_id).leave().await.unwrap();
    until("bob's end", async || alice.room(&room_id).joined_members_count().eq(&1).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_list_of_rooms_is_loaded_and_kept_in_order() {
    const ROOMS: usize = 45;
    let server = Server::started().await;
    let alice = Person::registered(&server, "alice").await;
    let mut room_ids = Vec::new();
    for n in 0..ROOMS {
        room_ids.push(alice.named_room(&format!("Berth {n}"), &[]).await);
    }

    let second = alice.another_device(&server).await;
    let all_rooms = second.all_rooms().await;
    let mut list = Shown::of(&all_rooms, 20);
    let newest_first: Vec<_> = room_ids.iter().rev().take(20).cloned().collect();
    list.until("the twenty newest rooms", |rooms| rooms == newest_first).await;
    let loaded = all_rooms.loading_state();
    until("the number of rooms", async || match loaded.get() {
        RoomListLoadingState::Loaded { maximum_number_of_rooms: Some(count) } => {
            (count as usize == ROOMS).then_some(())
        }
        _ => None,
    })
    .await;
    list.shows_more();
    list.shows_more();
    list.until("all rooms", |rooms| rooms.len() == ROOMS).await;

    // What is said somewhere far down brings it to the top.
    let old = &room_ids[3];
    alice.opens(old).await.says("still afloat").await;
    list.until("the old room to come up", |rooms| rooms.first() == Some(old) && rooms.len() == ROOMS).await;
    alice.room(old).leave().await.unwrap();
    list.until("the room to go", |rooms| !rooms.contains(old) && rooms.len() == ROOMS - 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn encrypted_messages_come_through_and_into_notifications() {
    let server = Server::started().await;
    let (alice, bob) = (Person::registered(&server, "alice").await, Person::registered(&server, "bob").await);
    let room_id = alice.direct_room(&bob).await;
    let (at_alice, at_bob) = (alice.opens(&room_id).await, bob.opens(&room_id).await);
    at_alice.says("the key is under the mat").await;
    at_bob.until_reads("the key is under the mat").await;
    at_bob.says("found it").await;
    at_alice.until_reads("found it").await;
    assert!(at_alice.is_encrypted("found it").await && at_bob.is_encrypted("the key is under the mat").await);

    // The app sleeps. A push wakes it, and it fetches what it was woken for, and the keys to read that.
    bob.sync.stop().await;
    alice.room(&room_id).discard_room_key().await.unwrap();
    let event_id = at_alice.says("wake up").await;
    let setup = NotificationProcessSetup::SingleProcess { sync_service: bob.sync.clone() };
    let notifications = NotificationClient::new(bob.client.clone(), setup).await.unwrap();
    let item = match notifications.get_notification(&room_id, &event_id).await.unwrap() {
        NotificationStatus::Event(item) => item,
        other => panic!("no notification: {other:?}"),
    };
    let NotificationEvent::Timeline(event) = &item.event else { panic!("not of the timeline: {item:?}") };
    match &**event {
        AnySyncTimelineEvent::MessageLike(AnySyncMessageLikeEvent::RoomMessage(SyncRoomMessageEvent::Original(e))) => {
            assert_eq!((e.content.body(), &*e.sender), ("wake up", alice.user_id()));
        }
        other => panic!("not decrypted: {other:?}"),
    }
    assert_eq!((item.is_noisy, item.joined_members_count), (Some(true), 2));

    bob.sync.start().await;
    at_bob.until_reads("wake up").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_login_recovers_what_was_said() {
    let server = Server::started().await;
    let (alice, bob) = (Person::registered(&server, "alice").await, Person::registered(&server, "bob").await);
    let room_id = alice.direct_room(&bob).await;
    let (at_alice, at_bob) = (alice.opens(&room_id).await, bob.opens(&room_id).await);
    at_alice.says("mine").await;
    at_bob.says("yours").await;
    at_alice.until_reads("yours").await;
    let key = alice.client.encryption().recovery().enable().wait_for_backups_to_upload().await.unwrap();

    let second = alice.another_device(&server).await;
    let at_second = second.opens(&room_id).await;
    at_second.until_unreadable(2).await;
    assert_ne!(second.client.encryption().verification_state().get(), VerificationState::Verified);
    second.client.encryption().recovery().recover(&key).await.unwrap();
    at_second.until_reads("mine").await;
    at_second.until_reads("yours").await;
    let state = second.client.encryption().verification_state();
    until("the second device to be verified", async || (state.get() == VerificationState::Verified).then_some(()))
        .await;

    // Others see it signed, and it takes part.
    let device_id = second.client.device_id().unwrap();
    until("bob to see the second device signed", async || {
        let device = bob.client.encryption().get_device(alice.user_id(), device_id).await.unwrap()?;
        device.is_cross_signed_by_owner().then_some(())
    })
    .await;
    at_bob.says("welcome back").await;
    at_second.until_reads("welcome back").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_is_found_again() {
    let mut server = Server::started().await;
    let (alice, bob) = (Person::registered(&server, "alice").await, Person::registered(&server, "bob").await);
    let room_id = alice.direct_room(&bob).await;
    let (at_alice, at_bob) = (alice.opens(&room_id).await, bob.opens(&room_id).await);
    at_alice.says("before the storm").await;
    at_bob.until_reads("before the storm").await;

    server.kill().await;
    let state = bob.sync.state();
    until("bob to be offline", async || matches!(state.get(), State::Offline).then_some(())).await;
    server.start().await;
    at_alice.says("after the storm").await;
    at_bob.until_reads("after the storm").await;
    assert!(matches!(state.get(), State::Running), "{:?}", state.get());
    at_bob.says("still here").await;
    at_alice.until_reads("still here").await;
}
