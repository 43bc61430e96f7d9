//! Whatever happens, a client that applies the answers has what the server says: the state of `/state`, and the rooms
//! and timelines of `/v3/sync`.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// What a client knows of a room.
#[derive(Debug, Default)]
struct Room {
    state: BTreeMap<(String, String), String>,
    /// The events it has without a gap, up to the newest one.
    timeline: Vec<String>,
    name: Option<String>,
    joined: u64,
}

/// A client that has an open connection.
struct Model<'a> {
    connection: Connection<'a>,
    rooms: BTreeMap<String, Room>,
}

#[derive(Clone, Debug)]
enum Step {
    Say(usize, usize),
    Name(usize),
    Topic(usize),
    Join(usize),
    Leave(usize),
    Kick(usize),
    Window(usize),
    Limit(u64),
    Sync,
    /// The client gets an answer and loses it.
    Lose,
}

const ROOMS: usize = 4;

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..2usize, 0..ROOMS).prop_map(|(user, room)| Step::Say(user, room)),
        1 => (0..ROOMS).prop_map(Step::Name),
        1 => (0..ROOMS).prop_map(Step::Topic),
        1 => (0..ROOMS).prop_map(Step::Join),
        1 => (0..ROOMS).prop_map(Step::Leave),
        1 => (0..ROOMS).prop_map(Step::Kick),
        1 => (1..=ROOMS).prop_map(Step::Window),
        1 => (1..6u64).prop_map(Step::Limit),
        4 => Just(Step::Sync),
        2 => Just(Step::Lose),
    ]
}

impl<'a> Model<'a> {
    fn new(user: &'a User) -> Self {
        let connection = Connection::list(user, 2, json!([["*", "*"]]));
        Model { connection, rooms: BTreeMap::new() }
    }

    async fn sync(&mut self) {
        let answer = self.connection.sync().await;
        for (room_id, found) in answer["rooms"].as_object().unwrap() {
            let room = self.rooms.entry(room_id.clone()).or_default();
            if found["initial"] == true {
                *room = Room::default();
            }
            for event in found["required_state"].as_array().into_iter().flatten() {
                let text = |name: &str| event[name].as_str().unwrap().to_owned();
                room.state.insert((text("type"), text("state_key")), text("event_id"));
            }
            if found["limited"] == true {
                room.timeline.clear();
            }
            for event in ids(&found["timeline"]) {
                if !room.timeline.contains(&event) {
                    room.timeline.push(event);
                }
            }
            if let Some(name) = found.get("name") {
                room.name = name.as_str().map(str::to_owned);
            }
            room.joined = found["joined_count"].as_u64().unwrap_or(room.joined);
        }
    }

    /// With every room in the window, the client has what the server says.
    async fn check(&mut self) {
        self.connection.body["lists"]["all"]["ranges"] = json!([[0, 99]]);
        self.sync().await;
        let client = &self.connection.user.client;
        let filter = enc(&json!({"room": {"timeline": {"limit": 50}}}).to_string());
        let v3 = ok(&client.get(&format!("/_matrix/client/v3/sync?filter={filter}")).await);
        let joined = v3["rooms"]["join"].as_object().cloned().unwrap_or_default();
        for (room_id, v3) in &joined {
            let room = &self.rooms[room_id];
            let state = ok(&client.get(&path(room_id, "state")).await);
            let text = |event: &Value, name: &str| event[name].as_str().unwrap().to_owned();
            let state = state.as_array().unwrap().iter();
            let state: BTreeMap<_, _> =
                state.map(|e| ((text(e, "type"), text(e, "state_key")), text(e, "event_id"))).collect();
            assert_eq!(room.state, state);
            assert!(ids(&v3["timeline"]["events"]).ends_with(&room.timeline), "{v3} {room:?}");
            assert!(!room.timeline.is_empty());
            assert_eq!(room.joined, v3["summary"]["m.joined_member_count"].as_u64().unwrap());
            let name = client.get(&path(room_id, "state/m.room.name")).await.json()["name"].as_str().map(str::to_owned);
            assert_eq!(room.name, name);
        }
        nothing(&self.connection.sync().await);
    }
}

async fn run(steps: Vec<Step>) {
    let server = Server::default();
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let mut rooms = Vec::new();
    for _ in 0..ROOMS {
        rooms.push(public_room(&alice).await);
    }
    let mut model = Model::new(&bob);
    for step in steps {
        match step {
            Step::Say(user, room) => {
                let user = [&alice, &bob][user];
                let content = json!({"msgtype": "m.text", "body": "x"});
                user.client.put(&path(&rooms[room], &format!("send/m.room.message/{}", next())), content).await;
            }
            Step::Name(room) => {
                set(&alice, &rooms[room], "m.room.name", "", json!({"name": next().to_string()})).await;
            }
            Step::Topic(room) => {
                set(&alice, &rooms[room], "m.room.topic", "", json!({"topic": next().to_string()})).await;
            }
            Step::Join(room) => {
                bob.client.post(&path(&rooms[room], "join"), json!({})).await;
            }
            Step::Leave(room) => {
                bob.client.post(&path(&rooms[room], "leave"), json!({})).await;
            }
            Step::Kick(room) => {
                alice.client.post(&path(&rooms[room], "kick"), json!({"user_id": bob.user_id})).await;
            }
            Step::Window(rooms) => model.connection.body["lists"]["all"]["ranges"] = json!([[0, rooms - 1]]),
            Step::Limit(limit) => model.connection.body["lists"]["all"]["timeline_limit"] = json!(limit),
            Step::Sync => model.sync().await,
            Step::Lose => {
                model.connection.peek().await;
            }
        }
    }
    model.check().await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn pitfall_040_to_043_a_client_has_what_the_server_says(steps in proptest::collection::vec(step(), 1..40)) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run(steps));
    }
}
