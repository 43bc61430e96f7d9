//! A person at a client: registers, logs in, keeps syncing like the apps do, and waits for what should show up.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eyeball_im::{Vector, VectorDiff};
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use matrix_sdk::encryption::{BackupDownloadStrategy, EncryptionSettings};
use matrix_sdk::ruma::api::client::account::register::v3::Request as Registration;
use matrix_sdk::ruma::api::client::receipt::create_receipt::v3::ReceiptType;
use matrix_sdk::ruma::api::client::room::create_room::v3::{Request as NewRoom, RoomPreset};
use matrix_sdk::ruma::api::client::uiaa::{AuthData, Dummy};
use matrix_sdk::ruma::events::room::message::RoomMessageEventContent;
use matrix_sdk::ruma::{OwnedEventId, OwnedRoomId, RoomId, UserId};
use matrix_sdk::{Client, Room, RoomState};
use matrix_sdk_ui::room_list_service::filters::new_filter_non_left;
use matrix_sdk_ui::room_list_service::{RoomList, RoomListDynamicEntriesController, RoomListItem};
use matrix_sdk_ui::sync_service::SyncService;
use matrix_sdk_ui::timeline::{EventTimelineItem, RoomExt as _, Timeline};

use crate::server::Server;

pub const PASSWORD: &str = "correct horse battery staple";
/// Much is computed, and the machine may be busy.
const WAIT: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(20);

/// Waits until `find` finds something; returns that.
pub async fn until<T>(what: &str, mut find: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + WAIT;
    while Instant::now() < end {
        if let Some(found) = find().await {
            return found;
        }
        tokio::time::sleep(PAUSE).await;
    }
    panic!("waited {WAIT:?} in vain for {what}");
}

/// A client as the apps make it: cross-signing and a backup by themselves, tokens refreshed when they end.
pub async fn app(server: &Server) -> Client {
    let settings = EncryptionSettings {
        auto_enable_cross_signing: true,
        backup_download_strategy: BackupDownloadStrategy::AfterDecryptionFailure,
        auto_enable_backups: true,
    };
    server.client().with_encryption_settings(settings).handle_refresh_tokens().build().await.unwrap()
}

pub struct Person {
    name: String,
    pub client: Client,
    pub sync: Arc<SyncService>,
}

impl Person {
    /// A new account, syncing. Each scenario has its own server, so names need not differ between them.
    pub async fn registered(server: &Server, name: &str) -> Self {
        let client = server.client().build().await.unwrap();
        let mut request = Registration::new();
        request.username = Some(name.to_owned());
        request.password = Some(PASSWORD.to_owned());
        request.auth = Some(AuthData::Dummy(Dummy::new()));
        request.inhibit_login = true;
        client.matrix_auth().register(request).await.unwrap();
        Self::logged_in(server, name).await
    }

    /// A new device of the same account.
    pub async fn another_device(&self, server: &Server) -> Self {
        Self::logged_in(server, &self.name).await
    }

    async fn logged_in(server: &Server, name: &str) -> Self {
        let client = app(server).await;
        client.matrix_auth().login_username(name, PASSWORD).initial_device_display_name("tests").await.unwrap();
        Self::at(client, name).await
    }

    /// At a client that is logged in. Two syncs that survive being offline.
    pub async fn at(client: Client, name: &str) -> Self {
        client.encryption().wait_for_e2ee_initialization_tasks().await;
        let sync = SyncService::builder(client.clone()).with_offline_mode().build().await.unwrap();
        sync.start().await;
        Person { name: name.to_owned(), client, sync: Arc::new(sync) }
    }

    pub fn user_id(&self) -> &UserId {
        self.client.user_id().unwrap()
    }

    pub fn room(&self, room_id: &RoomId) -> Room {
        self.client.get_room(room_id).unwrap_or_else(|| panic!("{} does not know {room_id}", self.name))
    }

    /// The room, if this person's membership is that.
    pub fn room_in(&self, room_id: &RoomId, state: RoomState) -> Option<Room> {
        self.client.get_room(room_id).filter(|room| room.state() == state)
    }

    /// A private room without encryption, and invites into it.
    pub async fn named_room(&self, name: &str, invited: &[&Person]) -> OwnedRoomId {
        let mut request = NewRoom::new();
        request.preset = Some(RoomPreset::PrivateChat);
        request.name = Some(name.to_owned());
        request.invite = invited.iter().map(|person| person.user_id().to_owned()).collect();
        self.client.create_room(request).await.unwrap().room_id().to_owned()
    }

    /// An encrypted room with somebody who has joined, known to be both on both sides.
    pub async fn direct_room(&self, other: &Person) -> OwnedRoomId {
        let room_id = self.client.create_dm(other.user_id()).await.unwrap().room_id().to_owned();
        until("the invite", async || other.room_in(&room_id, RoomState::Invited)).await.join().await.unwrap();
        for person in [self, other] {
            until("the room to be encrypted and have two members", async || {
                let room = person.room_in(&room_id, RoomState::Joined)?;
                let encrypted = room.latest_encryption_state().await.unwrap().is_encrypted();
                (encrypted && room.joined_members_count() == 2).then_some(())
            })
            .await;
        }
        room_id
    }

    /// Looks at a room from now on.
    pub async fn opens(&self, room_id: &RoomId) -> Opened {
        until("the room", async || self.room_in(room_id, RoomState::Joined)).await;
        self.sync.room_list_service().subscribe_to_rooms(&[room_id]).await;
        let timeline = self.room(room_id).timeline().await.unwrap();
        Opened { name: self.name.clone(), timeline }
    }

    pub async fn all_rooms(&self) -> RoomList {
        self.sync.room_list_service().all_rooms().await.unwrap()
    }
}

/// A list of rooms on a screen.
pub struct Shown<'a> {
    changes: Pin<Box<dyn Stream<Item = Vec<VectorDiff<RoomListItem>>> + 'a>>,
    pages: RoomListDynamicEntriesController,
    rooms: Vector<RoomListItem>,
}

impl<'a> Shown<'a> {
    /// Those rooms that the person has not left, `page_size` of them to begin with.
    pub fn of(rooms: &'a RoomList, page_size: usize) -> Self {
        let (changes, pages) = rooms.entries_with_dynamic_adapters(page_size);
        assert!(pages.set_filter(Box::new(new_filter_non_left())));
        Shown { changes: Box::pin(changes), pages, rooms: Vector::new() }
    }

    /// Waits until the list looks right.
    pub async fn until(&mut self, what: &str, looks_right: impl Fn(&[OwnedRoomId]) -> bool) {
        until(what, async || {
            while let Some(Some(changes)) = self.changes.next().now_or_never() {
                changes.into_iter().for_each(|change| change.apply(&mut self.rooms));
            }
            let ids: Vec<_> = self.rooms.iter().map(|room| room.room_id().to_owned()).collect();
            looks_right(&ids).then_some(())
        })
        .await;
    }

    /// One page more.
    pub fn shows_more(&self) {
        self.pages.add_one_page();
    }
}

/// A room on a screen.
pub struct Opened {
    name: String,
    timeline: Timeline,
}

impl Opened {
    /// Sends a text, and waits until it has arrived; returns its ID.
    pub async fn says(&self, body: &str) -> OwnedEventId {
        self.timeline.send(RoomMessageEventContent::text_plain(body).into()).await.unwrap();
        let sent = async || self.item(body).await?.event_id().map(ToOwned::to_owned);
        until(&format!("{}'s \"{body}\" to be sent", self.name), sent).await
    }

    /// Waits until a message of somebody is there, and can be read.
    pub async fn until_reads(&self, body: &str) {
        until(&format!("{} to read \"{body}\"", self.name), async || self.item(body).await).await;
    }

    /// Waits until so many messages are there that cannot be read.
    pub async fn until_unreadable(&self, count: usize) {
        until(&format!("{count} messages that {} cannot read", self.name), async || {
            let items = self.timeline.items().await;
            let events = items.iter().filter_map(|item| item.as_event());
            (events.filter(|event| event.content().is_unable_to_decrypt()).count() == count).then_some(())
        })
        .await;
    }

    pub async fn is_encrypted(&self, body: &str) -> bool {
        self.item(body).await.unwrap().encryption_info().is_some()
    }

    pub async fn reacts_to(&self, body: &str, key: &str) {
        let item = self.item(body).await.unwrap();
        self.timeline.toggle_reaction(&item.identifier(), key).await.unwrap();
    }

    pub async fn until_reaction(&self, body: &str, key: &str) {
        until(&format!("{} to see {key}", self.name), async || {
            let item = self.item(body).await?;
            item.content().reactions()?.contains_key(key).then_some(())
        })
        .await;
    }

    pub async fn marks_as_read(&self) {
        self.timeline.mark_as_read(ReceiptType::Read).await.unwrap();
    }

    async fn item(&self, body: &str) -> Option<EventTimelineItem> {
        let items = self.timeline.items().await;
        let mut events = items.iter().filter_map(|item| item.as_event());
        events.find(|event| event.content().as_message().is_some_and(|message| message.body() == body)).cloned()
    }
}
