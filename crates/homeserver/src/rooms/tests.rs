//! The shell of rooms as its callers see it: on the memory engine, without HTTP.

use ::rooms::build::Draft;
use ::rooms::membership::Act;
use ::rooms::state::Select;
use ruma::api::client::room::Visibility;
use ruma::api::client::room::create_room::v3::{Request, RoomPreset};
use ruma::events::TimelineEventType;
use ruma::{CanonicalJsonObject, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, RoomVersionId, TransactionId, UserId};
use serde_json::json;
use store::{MemoryDisk, Pos, Read, Tx};

use crate::App;
use crate::auth::{Requester, devices};
use crate::config::Config;
use crate::error::{ErrorCode, Result};
use crate::rooms::membership::{Wish, carry_out, forget, leave, refresh_profile};
use crate::rooms::read::RoomReader;
use crate::rooms::send::{TxnKey, redaction, send, send_state};
use crate::rooms::visibility::{Reach, Standing};
use crate::schema::{self, MembershipState, User, room_nr};
use crate::stored::{Head, StoredEvent};

struct World {
    app: App,
}

impl World {
    async fn new(users: &[&str]) -> Self {
        Self::on(MemoryDisk::new(), users).await
    }

    async fn on(disk: MemoryDisk, users: &[&str]) -> Self {
        let app = App::on_memory_disk(Config::new(ruma::owned_server_name!("hs.test")), disk);
        let batch = users.iter().fold(store::Batch::new(), |mut batch, user| {
            batch.put(&schema::USERS, &format!("@{user}:hs.test"), &User::default());
            batch
        });
        app.store.commit(batch).unwrap().durable().await.unwrap();
        World { app }
    }

    async fn create(&self, creator: &str, request: Request) -> Result<OwnedRoomId> {
        super::create::create(&self.app, &user(creator), request).await
    }

    async fn log_in(&self, who: &str, device: &str) {
        let (app, who) = (&self.app, user(who));
        let log_in = |tx: &mut Tx| devices::log_in(app, tx, who.as_str(), Some(device), None);
        app.store.transact(log_in).await.unwrap();
    }

    async fn log_out(&self, who: &str, device: &str) {
        let who = user(who);
        self.app.store.transact(|tx: &mut Tx| devices::delete(tx, who.as_str(), device)).await.unwrap();
    }

    async fn public_room(&self, creator: &str) -> OwnedRoomId {
        let request = Request { preset: Some(RoomPreset::PublicChat), ..Request::new() };
        self.create(creator, request).await.unwrap()
    }

    async fn act(&self, act: Act, actor: &str, target: &str, room: &RoomId) -> Result<()> {
        let (actor, target) = (user(actor), user(target));
        carry_out(&self.app, room, Wish { actor: &actor, target: &target, ..Wish::own(act, &actor) }).await
    }

    async fn join(&self, who: &str, room: &RoomId) -> Result<()> {
        self.act(Act::Join, who, who, room).await
    }

    async fn say(&self, who: &str, room: &RoomId, body: &str) -> Result<OwnedEventId> {
        let draft = self.draft(who, "m.room.message", json!({"msgtype": "m.text", "body": body}));
        send(&self.app, room, draft, None).await
    }

    async fn set(&self, who: &str, room: &RoomId, kind: &str, content: serde_json::Value) -> Result<OwnedEventId> {
        let draft = Draft { state_key: Some(String::new()), ..self.draft(who, kind, content) };
        send_state(&self.app, room, draft).await
    }

    fn draft(&self, who: &str, kind: &str, content: serde_json::Value) -> Draft {
        Draft::message(TimelineEventType::from(kind), object(content), user(who), self.app.clock.now())
    }

    fn head(&self, room: &RoomId) -> Head {
        let snapshot = self.app.store.snapshot();
        RoomReader::new(&self.app.room_cache, &snapshot).head(room).unwrap().unwrap().1
    }

    fn event(&self, room: &RoomId, event_id: &OwnedEventId) -> (Pos, StoredEvent) {
        let snapshot = self.app.store.snapshot();
        let reader = RoomReader::new(&self.app.room_cache, &snapshot);
        let at = reader.find(room_nr(room), event_id).unwrap().unwrap();
        (at, reader.event(room_nr(room), at).unwrap().unwrap())
    }

    /// The room's events, oldest first.
    fn timeline(&self, room: &RoomId) -> Vec<(Pos, StoredEvent)> {
        let snapshot = self.app.store.snapshot();
        let rows = snapshot.scan(&schema::EVENTS, schema::EVENTS.prefix((room_nr(room),)));
        rows.map(|row| row.map(|((_, at), event)| (at, event)).unwrap()).collect()
    }

    fn membership(&self, who: &str, room: &RoomId) -> Option<schema::Membership> {
        let snapshot = self.app.store.snapshot();
        snapshot.get(&schema::MEMBERSHIPS, (user(who).as_str(), room_nr(room))).unwrap()
    }
}

/// A row that nobody can read: whoever comes to it fails.
fn junk() -> store::ValueBuf {
    let mut bytes = store::ValueBuf::default();
    bytes.raw(&[250]);
    bytes
}

fn user(name: &str) -> OwnedUserId {
    UserId::parse(format!("@{name}:hs.test")).unwrap()
}

fn object(value: serde_json::Value) -> CanonicalJsonObject {
    serde_json::from_value(value).unwrap()
}

fn requester(name: &str, device: &str) -> Requester {
    Requester {
        user_id: user(name),
        device_id: Some(device.into()),
        token_id: "t".into(),
        guest: false,
        locked: false,
        suspended: false,
        admin: false,
        appservice: None,
        rate_limited: true,
    }
}

#[tokio::test]
async fn pitfall_058_a_room_of_every_version_begins_in_the_order_of_the_spec() {
    let world = World::new(&["alice", "bob"]).await;
    for version in ::rooms::event::SUPPORTED_VERSIONS {
        let request = Request {
            room_version: Some(version.clone()),
            name: Some("A room".into()),
            topic: Some("About it".into()),
            room_alias_name: Some(format!("room{version}")),
            invite: vec![user("bob")],
            is_direct: true,
            visibility: Visibility::Public,
            ..Request::new()
        };
        let room = world.create("alice", request).await.unwrap();
        let kinds: Vec<String> = world.timeline(&room).iter().map(|(_, event)| event.kind().to_owned()).collect();
        let expected = "m.room.create m.room.member m.room.power_levels m.room.canonical_alias m.room.join_rules \
                        m.room.history_visibility m.room.guest_access m.room.name m.room.topic m.room.member";
        assert_eq!(kinds.join(" "), expected, "version {version}");
        let head = world.head(&room);
        assert_eq!((head.joined_members, head.invited_members, head.version), (1, 1, version));
        assert_eq!(world.membership("bob", &room).unwrap().state, MembershipState::Invite);
    }
}

#[tokio::test]
async fn two_rooms_made_in_one_millisecond_are_two_rooms() {
    let world = World::new(&["alice"]).await;
    let (a, b) =
        (world.create("alice", Request::new()).await.unwrap(), world.create("alice", Request::new()).await.unwrap());
    assert_ne!(a, b);
}

#[tokio::test]
async fn an_unknown_version_and_a_taken_alias_are_refused() {
    let world = World::new(&["alice"]).await;
    for version in ["1", "5", "13", "org.example"] {
        let request = Request { room_version: Some(RoomVersionId::try_from(version).unwrap()), ..Request::new() };
        let error = world.create("alice", request).await.unwrap_err();
        assert_eq!(error.code().map(|code| code.to_string()).as_deref(), Some("M_UNSUPPORTED_ROOM_VERSION"));
    }
    let request = Request { room_alias_name: Some("here".into()), ..Request::new() };
    world.create("alice", request.clone()).await.unwrap();
    let error = world.create("alice", request).await.unwrap_err();
    assert_eq!(error.code().map(|code| code.to_string()).as_deref(), Some("M_ROOM_IN_USE"));
}

#[tokio::test]
async fn joining_counts_members_and_leaving_takes_them_off() {
    let world = World::new(&["alice", "bob", "carol"]).await;
    let room = world.public_room("alice").await;
    for name in ["bob", "carol"] {
        world.join(name, &room).await.unwrap();
        world.join(name, &room).await.unwrap();
    }
    assert_eq!(world.head(&room).joined_members, 3);
    leave(&world.app, &user("bob"), &room).await.unwrap();
    world.act(Act::Ban, "alice", "carol", &room).await.unwrap();
    assert_eq!(world.head(&room).joined_members, 1);
    assert!(world.join("carol", &room).await.is_err());
    assert!(world.say("bob", &room, "still here?").await.is_err());
    forget(&world.app, &user("bob"), &room).await.unwrap();
    assert!(world.membership("bob", &room).unwrap().forgotten);
    world.join("bob", &room).await.unwrap();
    let row = world.membership("bob", &room).unwrap();
    assert!(!row.forgotten && row.was_joined && row.state == MembershipState::Join);
}

#[tokio::test]
async fn private_rooms_take_an_invite_and_a_member_to_write() {
    let world = World::new(&["alice", "bob", "mallory"]).await;
    let room = world.create("alice", Request::new()).await.unwrap();
    assert!(world.join("bob", &room).await.is_err());
    world.act(Act::Invite, "alice", "bob", &room).await.unwrap();
    world.join("bob", &room).await.unwrap();
    assert!(world.say("mallory", &room, "hello").await.is_err());
    assert!(world.act(Act::Invite, "mallory", "mallory", &room).await.is_err());
    assert!(world.act(Act::Kick, "bob", "alice", &room).await.is_err());
    assert!(world.act(Act::Invite, "alice", "nobody", &room).await.is_err(), "there is no such user");
}

#[tokio::test]
async fn pitfall_060_a_restricted_join_names_who_vouches_unless_invited() {
    let world = World::new(&["alice", "bob", "carol"]).await;
    let club = world.public_room("alice").await;
    let room = world.create("alice", Request::new()).await.unwrap();
    let rule = json!({"join_rule": "restricted", "allow": [{"type": "m.room_membership", "room_id": club}]});
    world.set("alice", &room, "m.room.join_rules", rule).await.unwrap();
    assert!(world.join("bob", &room).await.is_err(), "bob is not in the club");
    world.join("bob", &club).await.unwrap();
    world.join("bob", &room).await.unwrap();
    world.act(Act::Invite, "alice", "carol", &room).await.unwrap();
    world.join("carol", &room).await.unwrap();
    let vouched: Vec<bool> = world
        .timeline(&room)
        .iter()
        .filter(|(_, event)| event.kind() == "m.room.member" && event.sender() != "@alice:hs.test")
        .map(|(_, event)| String::from_utf8_lossy(event.client()).contains("join_authorised_via_users_server"))
        .collect();
    assert_eq!(vouched, [true, false]);
}

#[tokio::test]
async fn pitfall_060_a_member_event_that_a_client_writes_itself_opens_no_door() {
    let world = World::new(&["alice", "bob", "carol"]).await;
    let club = world.public_room("alice").await;
    let room = world.create("alice", Request::new()).await.unwrap();
    let rule = json!({"join_rule": "restricted", "allow": [{"type": "m.room_membership", "room_id": club}]});
    world.set("alice", &room, "m.room.join_rules", rule).await.unwrap();
    let member = async |sender: &str, target: &str, content: serde_json::Value| {
        let draft =
            Draft { state_key: Some(user(target).to_string()), ..world.draft(sender, "m.room.member", content) };
        send_state(&world.app, &room, draft).await
    };
    let vouched = json!({"membership": "join", "join_authorised_via_users_server": "@alice:hs.test"});
    assert!(member("bob", "bob", vouched.clone()).await.is_err(), "bob is not in the club, whoever vouches");
    assert!(member("bob", "bob", json!({"membership": "join"})).await.is_err());
    world.join("bob", &club).await.unwrap();
    member("bob", "bob", json!({"membership": "join", "displayname": "Bob"})).await.unwrap();
    let named = member("bob", "bob", json!({"membership": "join", "displayname": "Bobby"})).await.unwrap();
    let (_, event) = world.event(&room, &named);
    assert!(!String::from_utf8_lossy(event.client()).contains("join_authorised"), "he was in already");
    assert!(member("alice", "nobody", json!({"membership": "invite"})).await.is_err(), "there is no such user");
    member("alice", "carol", json!({"membership": "invite"})).await.unwrap();
    member("carol", "carol", json!({"membership": "join"})).await.unwrap();
}

#[tokio::test]
async fn pitfall_001_a_transaction_is_one_event_however_often_it_comes() {
    let world = World::new(&["alice"]).await;
    let room = world.create("alice", Request::new()).await.unwrap();
    let key = |device: &str, path: &str, id: &str| {
        let asks = requester("alice", device);
        let path = ["send", room.as_str(), path];
        TxnKey::new(&asks, &path, <&TransactionId>::from(id))
    };
    let post = |txn: TxnKey| send(&world.app, &room, world.draft("alice", "m.a", json!({})), Some(txn));
    world.log_in("alice", "D1").await;
    world.log_in("alice", "D2").await;
    let (a, b) = tokio::join!(post(key("D1", "m.a", "1")), post(key("D1", "m.a", "1")));
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_eq!(a, b, "at the same time");
    assert_eq!(post(key("D1", "m.a", "1")).await.unwrap(), a, "later");
    for (device, path, id) in [("D2", "m.a", "1"), ("D1", "m.b", "1"), ("D1", "m.a", "2")] {
        assert_ne!(post(key(device, path, id)).await.unwrap(), a);
    }
    let (_, stored) = world.event(&room, &a);
    assert_eq!(stored.transaction_id(Some("D1")), Some("1"));
    assert_eq!(stored.transaction_id(Some("D2")), None);
    // With a device go its transactions: what comes after that would not be recognised when it is retried.
    world.log_out("alice", "D1").await;
    assert_eq!(post(key("D1", "m.a", "3")).await.unwrap_err().code(), Some(&ErrorCode::UnknownToken));
}

#[tokio::test]
async fn pitfall_003_the_same_state_again_is_the_same_event() {
    let world = World::new(&["alice"]).await;
    let room = world.create("alice", Request::new()).await.unwrap();
    let name = |name: &str| world.set("alice", &room, "m.room.name", json!({ "name": name }));
    let first = name("one").await.unwrap();
    assert_eq!(name("one").await.unwrap(), first);
    assert_ne!(name("two").await.unwrap(), first);
}

#[tokio::test]
async fn pitfall_066_a_redaction_takes_the_content_and_only_from_whom_it_may() {
    let world = World::new(&["alice", "bob", "carol"]).await;
    for version in [RoomVersionId::V10, RoomVersionId::V11, RoomVersionId::V12] {
        let preset = Some(RoomPreset::PublicChat);
        let request = Request { preset, room_version: Some(version), ..Request::new() };
        let room = world.create("alice", request).await.unwrap();
        for name in ["bob", "carol"] {
            world.join(name, &room).await.unwrap();
        }
        let said = world.say("bob", &room, "a secret").await.unwrap();
        let redact = |who: &str| {
            let draft = redaction(user(who), said.clone(), object(json!({})), world.app.clock.now());
            send(&world.app, &room, draft, None)
        };
        assert!(redact("carol").await.is_err());
        let redacted_by = redact("alice").await.unwrap();
        let (_, stored) = world.event(&room, &said);
        assert!(!String::from_utf8_lossy(stored.client()).contains("secret"));
        assert_eq!(stored.redacted_by(), Some(world.event(&room, &redacted_by).0));
        assert_eq!(stored.event_id(), said.as_str());
    }
}

#[tokio::test]
async fn pitfall_051_the_same_annotation_twice_is_refused() {
    let world = World::new(&["alice"]).await;
    let room = world.create("alice", Request::new()).await.unwrap();
    let said = world.say("alice", &room, "hello").await.unwrap();
    let react = |key: &str| {
        let content = json!({"m.relates_to": {"rel_type": "m.annotation", "event_id": said, "key": key}});
        send(&world.app, &room, world.draft("alice", "m.reaction", content), None)
    };
    let first = react("👍").await.unwrap();
    let error = react("👍").await.unwrap_err();
    assert_eq!(error.code().map(|code| code.to_string()).as_deref(), Some("M_DUPLICATE_ANNOTATION"));
    react("👎").await.unwrap();
    let draft = redaction(user("alice"), first, object(json!({})), world.app.clock.now());
    send(&world.app, &room, draft, None).await.unwrap();
    react("👍").await.unwrap();
}

#[tokio::test]
async fn pitfall_059_a_canonical_alias_must_lead_here() {
    let world = World::new(&["alice"]).await;
    let request = Request { room_alias_name: Some("mine".into()), ..Request::new() };
    let mine = world.create("alice", request).await.unwrap();
    let other = world.create("alice", Request::new()).await.unwrap();
    let alias = json!({"alias": "#mine:hs.test"});
    let error = world.set("alice", &other, "m.room.canonical_alias", alias.clone()).await.unwrap_err();
    assert_eq!(error.code().map(|code| code.to_string()).as_deref(), Some("M_BAD_ALIAS"));
    world.set("alice", &mine, "m.room.canonical_alias", alias).await.unwrap();
}

#[tokio::test]
async fn every_event_names_the_state_before_and_after_it() {
    let world = World::new(&["alice", "bob"]).await;
    let room = world.public_room("alice").await;
    world.join("bob", &room).await.unwrap();
    let said = world.say("bob", &room, "hi").await.unwrap();
    world.set("alice", &room, "m.room.name", json!({"name": "n"})).await.unwrap();
    let snapshot = world.app.store.snapshot();
    let reader = RoomReader::new(&world.app.room_cache, &snapshot);
    let mut before = ::rooms::state::Root::EMPTY;
    for (at, event) in world.timeline(&room) {
        assert_eq!(event.before(), before, "{} continues where the one before ended", event.kind());
        assert_eq!(reader.root_at(room_nr(&room), at).unwrap(), event.after);
        if let Some(state_key) = event.state_key() {
            assert_eq!(reader.state_at(event.after, event.kind(), state_key).unwrap(), Some(at));
        }
        before = event.after;
    }
    let (_, said) = world.event(&room, &said);
    assert!(reader.state_at(said.after, "m.room.name", "").unwrap().is_none());
    assert_eq!(reader.state_positions(said.after, Select::All).unwrap().len(), 7);
}

#[tokio::test]
async fn a_profile_change_touches_only_joined_rooms_and_only_once() {
    let world = World::new(&["alice"]).await;
    let room = world.public_room("alice").await;
    let mut batch = store::Batch::new();
    batch.put(&schema::PROFILES, ("@alice:hs.test", "displayname"), &bytes::Bytes::from_static(b"\"Alice\""));
    world.app.store.commit(batch).unwrap().durable().await.unwrap();
    let count = world.timeline(&room).len();
    for _ in 0..2 {
        refresh_profile(&world.app, &user("alice"), &room).await.unwrap();
    }
    assert_eq!(world.timeline(&room).len(), count + 1);
    let row = world.membership("alice", &room).unwrap();
    assert!(row.joined.unwrap() < row.event, "a new name is not a new join");
    assert_eq!(world.head(&room).joined_members, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_senders_in_one_room_make_one_chain() {
    let world = std::sync::Arc::new(World::new(&["alice"]).await);
    let room = world.public_room("alice").await;
    let mut tasks = tokio::task::JoinSet::new();
    for sender in 0..20 {
        let (world, room) = (world.clone(), room.clone());
        tasks.spawn(async move {
            for n in 0..20 {
                world.say("alice", &room, &format!("{sender}.{n}")).await.unwrap();
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let timeline = world.timeline(&room);
    assert_eq!(timeline.iter().filter(|(_, event)| event.kind() == "m.room.message").count(), 400);
    let head = world.head(&room);
    assert_eq!(head.depth, timeline.len() as u64);
    assert_eq!(head.last, timeline.last().unwrap().0);
    for pair in timeline.windows(2) {
        let prev = format!("\"prev_events\":[\"{}\"]", pair[0].1.event_id());
        assert!(String::from_utf8_lossy(pair[1].1.federation()).contains(&prev));
    }
}

#[tokio::test]
async fn pitfall_066_what_was_read_before_a_redaction_is_not_kept_after_it() {
    let world = World::new(&["alice"]).await;
    let room = world.public_room("alice").await;
    let topic = world.set("alice", &room, "m.room.topic", json!({"topic": "a secret"})).await.unwrap();
    let (nr, head, (at, _)) = (room_nr(&room), world.head(&room), world.event(&room, &topic));
    let (app, before) = (&world.app, world.app.store.snapshot());
    let draft = redaction(user("alice"), topic, object(json!({})), app.clock.now());
    send(app, &room, draft, None).await.unwrap();
    let tells = |read: &store::Snapshot| {
        let reader = RoomReader::new(&app.room_cache, read);
        let event = app.sync.recent.state_events(reader, nr, &[at]).unwrap().remove(0).1;
        let pdu = reader.pdu(nr, &head, at).unwrap().unwrap();
        (String::from_utf8_lossy(event.client()).contains("secret"), pdu.content.get().contains("secret"))
    };
    // Somebody who began before the redaction reads what there was then, and puts it into no cache.
    assert_eq!(tells(&before), (true, true));
    assert_eq!(tells(&app.store.snapshot()), (false, false));
    assert_eq!(tells(&app.store.snapshot()), (false, false));
}

#[tokio::test]
async fn what_a_lost_redaction_took_away_is_there_again() {
    let disk = MemoryDisk::new();
    let world = World::on(disk.clone(), &["alice"]).await;
    let room = world.public_room("alice").await;
    let topic = world.set("alice", &room, "m.room.topic", json!({"topic": "a secret"})).await.unwrap();
    let (nr, head, (at, _)) = (room_nr(&room), world.head(&room), world.event(&room, &topic));
    let app = world.app.clone();
    disk.hold();
    let tip = app.store.tip();
    let draft = redaction(user("alice"), topic, object(json!({})), app.clock.now());
    let redacting = {
        let (app, room) = (app.clone(), room.clone());
        tokio::spawn(async move { send(&app, &room, draft, None).await })
    };
    while app.store.latest().version() == tip {
        tokio::task::yield_now().await;
    }
    let tells = |read: &dyn Fn(&crate::App) -> Result<std::sync::Arc<::rooms::Pdu>>| {
        read(&app).unwrap().content.get().contains("secret")
    };
    let pending = |app: &App| {
        let view = app.store.latest();
        Ok(RoomReader::new(&app.room_cache, &view).pdu(nr, &head, at)?.unwrap())
    };
    let durable = |app: &App| {
        let snapshot = app.store.snapshot();
        Ok(RoomReader::new(&app.room_cache, &snapshot).pdu(nr, &head, at)?.unwrap())
    };
    assert!(!tells(&pending));
    disk.set_full(true);
    disk.release();
    assert!(redacting.await.unwrap().is_err());
    assert!(tells(&durable));
    disk.set_full(false);
    while app.store.health().is_err() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert!(tells(&durable) && tells(&pending));
}

#[tokio::test]
async fn whether_an_annotation_is_there_already_takes_no_look_at_the_others() {
    let world = World::new(&["alice", "bob"]).await;
    let room = world.public_room("alice").await;
    world.join("bob", &room).await.unwrap();
    let said = world.say("alice", &room, "hello").await.unwrap();
    let react = |who: &str, key: &str| {
        let content = json!({"m.relates_to": {"rel_type": "m.annotation", "event_id": said, "key": key}});
        send(&world.app, &room, world.draft(who, "m.reaction", content), None)
    };
    let other = react("bob", "+").await.unwrap();
    let (at, _) = world.event(&room, &other);
    let mut batch = store::Batch::new();
    batch.put_buf(&schema::RELATIONS, (room_nr(&room), said.as_str(), at), junk());
    world.app.store.commit(batch).unwrap().durable().await.unwrap();
    react("alice", "+").await.unwrap();
    assert!(react("alice", "+").await.is_err());
    assert!(react("bob", "+").await.is_err());
}

#[tokio::test]
async fn pitfall_047_where_somebody_left_is_known_however_much_happened_to_them_since() {
    let disk = MemoryDisk::new();
    let world = World::on(disk.clone(), &["alice", "bob"]).await;
    let room = world.public_room("alice").await;
    world.join("bob", &room).await.unwrap();
    leave(&world.app, &user("bob"), &room).await.unwrap();
    let left = world.membership("bob", &room).unwrap().event;
    let look = || {
        let (bob, read, before) = (user("bob"), world.app.store.snapshot(), disk.read_rounds());
        let reader = RoomReader::new(&world.app.room_cache, &read);
        let reach = Reach::of(reader, &bob, &room).unwrap();
        assert_eq!(reach.standing, Standing::Left(left));
        disk.read_rounds() - before
    };
    let reads = look();
    for _ in 0..20 {
        world.act(Act::Invite, "alice", "bob", &room).await.unwrap();
        leave(&world.app, &user("bob"), &room).await.unwrap();
    }
    world.act(Act::Ban, "alice", "bob", &room).await.unwrap();
    assert_eq!(look(), reads);
    world.act(Act::Unban, "alice", "bob", &room).await.unwrap();
    world.join("bob", &room).await.unwrap();
    assert_eq!(world.membership("bob", &room).unwrap().left, None);
}

#[tokio::test]
async fn a_ban_that_is_too_large_for_another_version_is_left_out() {
    let world = World::new(&["alice"]).await;
    let version = |version: &str| Request {
        preset: Some(RoomPreset::PublicChat),
        room_version: Some(RoomVersionId::try_from(version).unwrap()),
        ..Request::new()
    };
    let old = world.create("alice", version("12")).await.unwrap();
    let new = world.create("alice", version("11")).await.unwrap();
    let alice = user("alice");
    let ban = async |name: &str, reason: String| {
        let target = user(name);
        let reason = Some(reason);
        carry_out(&world.app, &old, Wish { actor: &alice, reason, ..Wish::own(Act::Ban, &target) }).await
    };
    // The largest reason that there is room for, to within less than the events of version 11 are larger.
    let mut largest = None;
    for (nr, size) in (64_000..65_536).rev().step_by(20).enumerate() {
        let name = format!("large{nr:03}");
        if ban(&name, "x".repeat(size)).await.is_ok() {
            largest = Some(name);
            break;
        }
    }
    let largest = largest.unwrap();
    ban("small", String::new()).await.unwrap();
    assert_eq!(super::upgrade::copy_bans(&world.app, &old, &new, &alice, 0).await.unwrap(), None);
    assert_eq!(world.membership("small", &new).unwrap().state, MembershipState::Ban);
    assert_eq!(world.membership(&largest, &new), None, "this one tests nothing if it fits");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn pitfall_097_what_many_do_at_once_makes_one_chain() {
    let names: Vec<String> = (0..8).map(|nr| format!("u{nr}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let world = World::new(&names).await;
    let room_id = world.public_room("u0").await;
    let busy = names.iter().map(|name| {
        let (app, room_id, user_id) = (world.app.clone(), room_id.clone(), user(name));
        tokio::spawn(async move {
            if user_id.localpart() != "u0" {
                carry_out(&app, &room_id, Wish::own(Act::Join, &user_id)).await.unwrap();
            }
            for nr in 0..10 {
                let content = super::send::content_from(format!("{{\"body\":\"{nr}\"}}").as_bytes()).unwrap();
                let draft = super::send::message("m.room.message", content, user_id.clone(), app.clock.now()).unwrap();
                super::send::send(&app, &room_id, draft, None).await.unwrap();
            }
        })
    });
    for task in busy.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    let read = world.app.store.snapshot();
    let reader = RoomReader::new(&world.app.room_cache, &read);
    let (room, head) = reader.head(&room_id).unwrap().unwrap();
    let positions: Vec<Pos> =
        read.scan(&schema::EVENTS, schema::EVENTS.prefix((room,))).keys().map(|key| key.unwrap().1).collect();
    assert!(positions.len() >= 7 + 80, "{}", positions.len());
    let mut last = None;
    for at in positions {
        let event = reader.pdu(room, &head, at).unwrap().unwrap();
        assert_eq!(event.prev_events, last.into_iter().collect::<Vec<_>>(), "each event follows the one before it");
        last = Some(event.event_id.clone());
    }
    assert_eq!(head.extremities, [last.unwrap().to_string()]);
}
