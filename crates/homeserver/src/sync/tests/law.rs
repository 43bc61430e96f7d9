//! The law of sync: two steps show what one step shows, and both come to what a client that starts anew is told.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::App;
use crate::http::Local;
use crate::rng::Rng;

/// What a client makes of the answers it gets.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    joined: BTreeMap<String, Known>,
    invited: BTreeSet<String>,
    account_data: BTreeMap<String, Value>,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Known {
    state: BTreeMap<(String, String), String>,
    timeline: Vec<String>,
    receipts: BTreeMap<(String, String), String>,
    account_data: BTreeMap<String, Value>,
    unread: Value,
    summary: BTreeMap<String, Value>,
}

fn list(events: &Value) -> impl Iterator<Item = &Value> {
    events["events"].as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

impl Model {
    fn apply(&mut self, answer: &Value) {
        for event in list(&answer["account_data"]) {
            self.account_data.insert(text(&event["type"]), event["content"].clone());
        }
        let rooms = |section: &str| answer["rooms"][section].as_object().cloned().unwrap_or_default();
        for room in rooms("invite").into_iter().map(|(room, _)| room) {
            self.joined.remove(&room);
            self.invited.insert(room);
        }
        for room in rooms("leave").into_iter().map(|(room, _)| room) {
            self.joined.remove(&room);
            self.invited.remove(&room);
        }
        for (room, part) in rooms("join") {
            self.invited.remove(&room);
            self.joined.entry(room).or_default().apply(&part);
        }
    }

    /// The same as seen by somebody who has no more than this of each timeline.
    fn cut(mut self, limit: usize) -> Self {
        for known in self.joined.values_mut() {
            let skip = known.timeline.len().saturating_sub(limit);
            known.timeline.drain(..skip);
        }
        self
    }
}

impl Known {
    fn apply(&mut self, part: &Value) {
        for event in list(&part["state"]).chain(list(&part["state_after"])) {
            self.put(event);
        }
        if part["timeline"]["limited"] == true {
            self.timeline.clear();
        }
        for event in list(&part["timeline"]) {
            let id = text(&event["event_id"]);
            self.timeline.retain(|known| *known != id);
            self.timeline.push(id);
            if part.get("state_after").is_none() && event.get("state_key").is_some() {
                self.put(event);
            }
        }
        for event in list(&part["ephemeral"]).filter(|event| event["type"] == "m.receipt") {
            for (event_id, kinds) in event["content"].as_object().into_iter().flatten() {
                for (kind, users) in kinds.as_object().into_iter().flatten() {
                    for user in users.as_object().into_iter().flatten().map(|(user, _)| user) {
                        self.receipts.insert((kind.clone(), user.clone()), event_id.clone());
                    }
                }
            }
        }
        for event in list(&part["account_data"]) {
            self.account_data.insert(text(&event["type"]), event["content"].clone());
        }
        if let Some(unread) = part.get("unread_notifications") {
            self.unread = unread.clone();
        }
        for (name, value) in part["summary"].as_object().into_iter().flatten() {
            self.summary.insert(name.clone(), value.clone());
        }
    }

    fn put(&mut self, event: &Value) {
        self.state.insert((text(&event["type"]), text(&event["state_key"])), text(&event["event_id"]));
    }
}

/// Something that happens: who does what where.
type Step = (u8, u8, u8);

struct Play {
    world: World,
    users: Vec<User>,
    rooms: Vec<String>,
    last: Vec<String>,
}

impl Play {
    async fn new() -> Self {
        let world = World::new();
        let mut users = Vec::new();
        for name in ["alice", "bob", "carol"] {
            users.push(world.user(name).await);
        }
        let mut rooms = Vec::new();
        let levels = json!({"state_default": 0, "invite": 0});
        for preset in ["public_chat", "public_chat", "private_chat"] {
            let body = json!({"preset": preset, "power_level_content_override": levels});
            rooms.push(world.room(&users[0], body).await);
        }
        let last = vec![String::new(); rooms.len()];
        Play { world, users, rooms, last }
    }

    /// Does it, or something like it; what the rules forbid does not happen.
    async fn step(&mut self, (who, what, place): Step) {
        let user = self.users[who as usize % self.users.len()].clone();
        let other = self.users[(who as usize + 1 + place as usize % 2) % self.users.len()].clone();
        let index = place as usize % self.rooms.len();
        let room = self.rooms[index].clone();
        let path = |rest: &str| format!("/_matrix/client/v3/rooms/{room}/{rest}");
        let txn = self.world.txn.replace(self.world.txn.get() + 1);
        let target = json!({"user_id": other.user_id});
        let answer = match what % 20 {
            0..=4 => {
                let mention = if what % 2 == 0 { json!([other.user_id]) } else { json!([]) };
                let content =
                    json!({"msgtype": "m.text", "body": txn.to_string(), "m.mentions": {"user_ids": mention}});
                user.client.put(&path(&format!("send/m.room.message/{txn}")), content).await
            }
            5 => user.client.put(&path("state/m.room.name"), json!({"name": txn.to_string()})).await,
            6 => user.client.put(&path("state/m.room.topic"), json!({"topic": txn.to_string()})).await,
            7 | 8 => user.client.post(&path("join"), json!({})).await,
            9 => user.client.post(&path("leave"), json!({})).await,
            10 => user.client.post(&path("invite"), target).await,
            11 => self.users[0].client.post(&path("kick"), target).await,
            12 => user.client.post(&path(&format!("receipt/m.read/{}", self.last[index])), json!({})).await,
            13 => user.client.post(&path(&format!("receipt/m.read.private/{}", self.last[index])), json!({})).await,
            14 => {
                let path = format!("/_matrix/client/v3/user/{}/rooms/{room}/account_data/m.tag", user.user_id);
                user.client.put(&path, json!({"tags": {txn.to_string(): {}}})).await
            }
            15 => user.client.put(&path(&format!("redact/{}/{txn}", self.last[index])), json!({})).await,
            16 => self.users[0].client.post(&path("ban"), target).await,
            17 => self.users[0].client.post(&path("unban"), target).await,
            18 => user.client.post(&path("forget"), json!({})).await,
            _ => {
                let visibility = ["shared", "joined", "invited", "world_readable"][txn as usize % 4];
                let content = json!({"history_visibility": visibility});
                self.users[0].client.put(&path("state/m.room.history_visibility"), content).await
            }
        };
        if let Some(event_id) = answer.json()["event_id"].as_str() {
            self.last[index] = event_id.to_owned();
        }
    }

    async fn steps(&mut self, steps: &[Step]) {
        for step in steps {
            self.step(*step).await;
        }
    }
}

/// How a client syncs.
#[derive(Clone, Copy, Debug)]
struct Manner {
    limit: usize,
    lazy: bool,
    state_after: bool,
    /// The server starts anew before the long step: it knows nothing but what is stored.
    restart: bool,
}

async fn two_steps_are_one(first: &[Step], second: &[Step], third: &[Step], manner: Manner) {
    let Manner { limit, lazy, state_after, restart } = manner;
    let more = if state_after { "&use_state_after=true" } else { "" };
    let mut play = Play::new().await;
    play.steps(first).await;
    let filter = json!({"room": {"timeline": {"limit": limit}, "state": {"lazy_load_members": lazy}}});
    let mut client = Client::filtered(&play.users[1], &filter);
    client.query.push_str(more);
    let mut model = Model::default();
    model.apply(&client.next().await);
    let (mut long, mut long_model) = (client.clone(), model.clone());
    play.steps(second).await;
    model.apply(&client.next().await);
    play.steps(third).await;
    model.apply(&client.next().await);
    if restart {
        long.user.client = restarted(&play.world).with_token(&*long.user.token);
    }
    long_model.apply(&long.next().await);
    assert!(is_quiet(&client.next().await));
    let (mut fresh, mut anew) = (client.clone(), Model::default());
    fresh.since = None;
    anew.apply(&fresh.next().await);
    for known in [&mut model, &mut long_model, &mut anew].into_iter().flat_map(|model| model.joined.values_mut()) {
        // A name that was given lets the heroes be forgotten, and who loads members lazily has some of them.
        if known.state.contains_key(&("m.room.name".to_owned(), String::new())) {
            known.summary.remove("m.heroes");
        }
        if lazy {
            known.state.retain(|(kind, _), _| kind != "m.room.member");
        }
    }
    let (model, long_model, anew) = (model.cut(limit), long_model.cut(limit), anew.cut(limit));
    assert_eq!(model, long_model, "two steps and one");
    assert_eq!(model, anew, "and from the start");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn two_steps_show_what_one_shows(
        first in steps(12),
        second in steps(16),
        third in steps(16),
        limit in prop_oneof![Just(1usize), Just(3), Just(100)],
        (lazy, state_after, restart) in any::<(bool, bool, bool)>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let manner = Manner { limit, lazy, state_after, restart };
        runtime.block_on(two_steps_are_one(&first, &second, &third, manner));
    }
}

/// A server on the same store that remembers nothing.
fn restarted(world: &World) -> Local {
    let app = &world.server.app;
    let key = crate::signing::generate(&Rng::seeded(9)).unwrap().key_pair().unwrap();
    Local::new(App::new(app.config.clone(), app.store.clone(), key, app.clock.clone(), Rng::seeded(7)).router())
}

fn steps(most: usize) -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(any::<Step>(), 0..most)
}
