//! What users do, chosen at random. Not here: what comes of it (`play`).

use std::collections::BTreeSet;

use homeserver::schema::{MEMBERSHIPS, MembershipState, room_nr};
use rand::Rng as _;
use rand::seq::IndexedRandom as _;
use rand_chacha::ChaCha8Rng;
use ruma::RoomId;
use serde_json::{Value, json};
use store::Read as _;

use crate::model::{Model, Note, Sent};
use crate::request::{Request, enc, v3};
use crate::view::Taste;
use crate::world::World;

/// What a request is about, to judge its answer by.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    /// The first try, or another one, to send an event.
    Send(usize),
    /// Likewise for a message to devices.
    Note(usize),
    Create,
    Member {
        room: String,
        user: String,
        membership: &'static str,
    },
    Sync {
        device: usize,
        since: Option<String>,
        /// The answer gets lost on its way.
        lose: bool,
    },
    /// Looks at rooms through a window.
    Slide {
        device: usize,
        pos: Option<(String, u32)>,
        /// The answer gets lost on its way.
        lose: bool,
    },
    /// Shows events of a room's timeline, or its state.
    Look {
        device: usize,
        state: bool,
    },
    Data {
        key: (usize, String, String),
        value: Value,
    },
    Receipt {
        user: String,
        room: String,
        event: String,
    },
    LogIn {
        user: usize,
        taste: Taste,
    },
    LogOut {
        device: usize,
    },
    Refresh {
        device: usize,
        with: String,
    },
    Other,
}

/// A request of a device.
pub(crate) struct Planned {
    pub(crate) device: usize,
    pub(crate) request: Request,
    pub(crate) op: Op,
}

pub(crate) struct Chooser<'a> {
    pub(crate) dice: &'a mut ChaCha8Rng,
    pub(crate) world: &'a World,
    pub(crate) model: &'a mut Model,
    pub(crate) now: u64,
}

const VERSIONS: [&str; 12] = ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12"];
const VISIBILITIES: [&str; 4] = ["world_readable", "shared", "invited", "joined"];

impl Chooser<'_> {
    /// What a device does next.
    pub(crate) fn plan(&mut self) -> Option<Planned> {
        let alive: Vec<usize> = self.model.alive().into_iter().collect();
        let device = *alive.choose(self.dice)?;
        if self.model.devices[device].expired && !self.model.devices[device].refreshing {
            return self.refresh(device);
        }
        let planned = match self.dice.random_range(0..100) {
            0..26 => self.sync(device),
            26..48 => self.message(device),
            48..53 => self.retry(device),
            53..58 => self.state(device),
            58..61 => self.redact(device),
            61..74 => self.membership(device),
            74..78 => self.create(device),
            78..82 => self.receipt(device),
            82..85 => self.data(device),
            85..86 => self.tag(device),
            86..87 => self.typing(device),
            87..88 => self.profile(device),
            88..91 => self.note(device),
            91..95 => self.look(device),
            95..98 => self.slide(device),
            98 => self.log_in(device),
            _ => self.session(device),
        };
        planned.map(|(request, op)| Planned { device, request, op })
    }

    fn user(&self, device: usize) -> String {
        self.model.user_of(device).to_owned()
    }

    fn membership_of(&self, user: &str, room: &str) -> Option<MembershipState> {
        let room = RoomId::parse(room).ok()?;
        let row = self.world.app.store.snapshot().get(&MEMBERSHIPS, (user, room_nr(&room))).ok()??;
        Some(row.state)
    }

    /// A room the user is in, mostly.
    fn room(&mut self, device: usize) -> Option<String> {
        let user = self.user(device);
        if self.dice.random_bool(0.05) {
            return self.model.rooms.choose(self.dice).cloned();
        }
        let mine: Vec<&String> = self.model.rooms.iter().collect();
        let joined = |room: &&&String| self.membership_of(&user, room) == Some(MembershipState::Join);
        let mine: Vec<String> = mine.iter().filter(joined).map(|room| (*room).clone()).collect();
        mine.choose(self.dice).cloned()
    }

    /// An event that was sent to a room.
    fn event(&mut self, room: &str) -> Option<String> {
        let ids: Vec<&String> = (self.model.sent.iter())
            .filter(|sent| sent.room == room)
            .filter_map(|sent| sent.event_id.as_ref())
            .collect();
        let newest = ids.len().saturating_sub(8);
        ids[newest..].choose(self.dice).map(|id| (*id).clone())
    }

    fn one_of(&mut self, of: &[&'static str]) -> &'static str {
        of.choose(self.dice).copied().unwrap_or_default()
    }

    fn chance(&mut self, probability: f64) -> bool {
        self.dice.random_bool(probability)
    }

    // ---- sync and looking ----------------------------------------------------------------------------------------

    fn sync(&mut self, device: usize) -> Option<(Request, Op)> {
        if self.model.devices[device].syncing {
            return None;
        }
        let lose = self.chance(0.08);
        let timeout = if self.chance(0.3) { 30_000 } else { 0 };
        let device_model = &mut self.model.devices[device];
        device_model.syncing = true;
        let request = sync_request(device_model.taste, device_model.since.as_deref(), timeout);
        Some((request, Op::Sync { device, since: device_model.since.clone(), lose }))
    }

    fn slide(&mut self, device: usize) -> Option<(Request, Op)> {
        if self.model.devices[device].sliding {
            return None;
        }
        let lose = self.chance(0.15);
        let timeline_limit = self.dice.random_range(0..6);
        let members = self.one_of(&["$LAZY", "$ME", "*"]);
        self.model.devices[device].sliding = true;
        let pos = self.model.devices[device].pos.clone();
        let request = slide_request("window", pos.as_ref().map(|(pos, _)| pos.as_str()), timeline_limit, members);
        Some((request, Op::Slide { device, pos, lose }))
    }

    fn look(&mut self, device: usize) -> Option<(Request, Op)> {
        let room = if self.chance(0.3) { self.model.rooms.choose(self.dice).cloned()? } else { self.room(device)? };

        let from = self.model.devices[device].since.clone();
        let event = self.event(&room);
        let kind = self.dice.random_range(0..9);
        let limit = self.dice.random_range(1..12);
        let dir = self.one_of(&["b", "f"]);
        let path = match (kind, event) {
            (0, _) => v3(&["rooms", &room, "state"]),
            (1, _) => v3(&["rooms", &room, "members"]),
            (2, Some(event)) => format!("{}?limit={limit}", v3(&["rooms", &room, "context", &event])),
            (3, Some(event)) => v3(&["rooms", &room, "event", &event]),
            (4, Some(event)) => format!("/_matrix/client/v1/rooms/{}/relations/{}", enc(&room), enc(&event)),
            (5, _) => {
                let from = from.map(|from| format!("&from={}", enc(&from))).unwrap_or_default();
                format!("{}?dir={dir}&limit={limit}{from}", v3(&["rooms", &room, "messages"]))
            }
            (6, _) => {
                let filter = enc(&self.filter(device).to_string());
                return Some((
                    Request::get(format!("{}?filter={filter}", v3(&["sync"]))),
                    Op::Look { device, state: false },
                ));
            }
            (7, _) => v3(&["joined_rooms"]),
            _ => format!("{}?dir={dir}&limit={limit}", v3(&["rooms", &room, "messages"])),
        };
        Some((Request::get(path), Op::Look { device, state: kind < 2 }))
    }

    /// A filter of any kind: what comes through it must still be something its user may see.
    fn filter(&mut self, device: usize) -> Value {
        let types = ["m.room.message", "m.room.*", "*", "m.reaction", "m.room.member"];
        let mut timeline = json!({ "limit": self.dice.random_range(0..6) });
        let field = self.one_of(&["types", "not_types"]);
        timeline[field] = json!([self.one_of(&types)]);
        if self.chance(0.3) {
            let field = self.one_of(&["senders", "not_senders"]);
            timeline[field] = json!([self.user(device)]);
        }
        json!({
            "room": {
                "timeline": timeline,
                "state": { "types": [self.one_of(&types)], // What a device was sent of members is remembered: that is for its own way of syncing.
                "lazy_load_members": false },
                "include_leave": self.chance(0.5),
            },
            "presence": { "types": [] },
        })
    }

    // ---- events --------------------------------------------------------------------------------------------------

    fn sent(&mut self, device: usize, room: String, request: Request, marker: String, txn: bool) -> (Request, Op) {
        let (began, redacts) = (self.now, None);
        let index = self.model.sent.len();
        let sent =
            Sent { room, device, request: request.clone(), marker, txn, redacts, event_id: None, began, acked: None };
        self.model.sent.push(sent);
        (request, Op::Send(index))
    }

    fn message(&mut self, device: usize) -> Option<(Request, Op)> {
        let room = self.room(device)?;
        let number = self.model.number();
        let marker = format!("marker-{number}");
        let parent = self.event(&room).filter(|_| self.dice.random_bool(0.3));
        let mut kind = "m.room.message";
        let mut content = json!({ "msgtype": "m.text", "body": marker, "org.example.marker": marker });
        if let Some(parent) = parent {
            match self.dice.random_range(0..4) {
                0 => {
                    kind = "m.reaction";
                    content["m.relates_to"] = json!({ "rel_type": "m.annotation", "event_id": parent, "key": marker });
                }
                1 => {
                    content["m.new_content"] = json!({ "msgtype": "m.text", "body": "edited" });
                    content["m.relates_to"] = json!({ "rel_type": "m.replace", "event_id": parent });
                }
                2 => content["m.relates_to"] = json!({ "rel_type": "m.thread", "event_id": parent }),
                _ => content["m.relates_to"] = json!({ "m.in_reply_to": { "event_id": parent } }),
            }
        }
        let request = Request::put(v3(&["rooms", &room, "send", kind, &format!("txn{number}")]), content);
        Some(self.sent(device, room, request, marker, true))
    }

    /// Tries again, whether or not the first try was answered.
    fn retry(&mut self, device: usize) -> Option<(Request, Op)> {
        let mine = |sent: &Sent| sent.txn && sent.device == device;
        let mine: Vec<usize> = (0..self.model.sent.len()).filter(|index| mine(&self.model.sent[*index])).collect();
        let open: Vec<usize> =
            mine.iter().copied().filter(|index| self.model.sent[*index].event_id.is_none()).collect();
        let from = if open.is_empty() || self.chance(0.4) { mine } else { open };
        let index = *from.choose(self.dice)?;
        let mut request = self.model.sent[index].request.clone();
        if self.world.sabotage == Some(crate::world::Sabotage::ForgetTransaction) {
            request.path.push('x');
        }
        Some((request, Op::Send(index)))
    }

    /// A message to one to three devices, or an older one once more.
    fn note(&mut self, device: usize) -> Option<(Request, Op)> {
        let mine = |index: &usize| self.model.notes[*index].device == device;
        let mine: Vec<usize> = (0..self.model.notes.len()).filter(mine).collect();
        if let Some(index) = mine.choose(self.dice).copied().filter(|_| self.dice.random_bool(0.3)) {
            return Some((self.model.notes[index].request.clone(), Op::Note(index)));
        }
        let alive: Vec<usize> = self.model.alive().into_iter().collect();
        let count = self.dice.random_range(1..=3);
        let to: BTreeSet<usize> = alive.choose_multiple(self.dice, count).copied().collect();
        let number = self.model.number();
        let marker = format!("marker-{number}");
        let mut messages = json!({});
        for index in &to {
            let (user, id) = (self.user(*index), &self.model.devices[*index].id);
            messages[user][id.as_str()] = json!({ "org.example.marker": marker });
        }
        let path = v3(&["sendToDevice", "org.example.note", &format!("txn{number}")]);
        let request = Request::put(path, json!({ "messages": messages }));
        self.model.notes.push(Note { device, request: request.clone(), marker, to, acked: false });
        Some((request, Op::Note(self.model.notes.len() - 1)))
    }

    fn state(&mut self, device: usize) -> Option<(Request, Op)> {
        let room = self.room(device)?;
        let marker = format!("marker-{}", self.model.number());
        let key = self.one_of(&["", "a", "b/c", "ü %"]).to_owned();
        let (kind, key, mut content) = match self.dice.random_range(0..6) {
            0 => ("m.room.name", String::new(), json!({ "name": marker })),
            1 => ("m.room.topic", String::new(), json!({ "topic": marker })),
            2 | 3 => {
                let visibility = self.one_of(&VISIBILITIES);
                ("m.room.history_visibility", String::new(), json!({ "history_visibility": visibility }))
            }
            4 => {
                let rule = self.one_of(&["public", "invite", "knock"]);
                ("m.room.join_rules", String::new(), json!({ "join_rule": rule }))
            }
            _ => ("org.example.state", key, json!({})),
        };
        content["org.example.marker"] = json!(marker);
        let request = Request::put(v3(&["rooms", &room, "state", kind, &key]), content);
        Some(self.sent(device, room, request, marker, false))
    }

    fn redact(&mut self, device: usize) -> Option<(Request, Op)> {
        let room = self.room(device)?;
        let event = self.event(&room)?;
        let txn = format!("txn{}", self.model.number());
        let request = Request::put(v3(&["rooms", &room, "redact", &event, &txn]), json!({ "reason": "no" }));
        let planned = self.sent(device, room, request, String::new(), true);
        if let Some(sent) = self.model.sent.last_mut() {
            sent.redacts = Some(event);
        }
        Some(planned)
    }

    // ---- rooms ---------------------------------------------------------------------------------------------------

    pub(crate) fn create(&mut self, device: usize) -> Option<(Request, Op)> {
        if self.model.rooms.len() >= 6 && self.chance(0.8) {
            return None;
        }
        let invite: Vec<String> =
            self.model.users.iter().map(|user| user.id.clone()).filter(|_| self.dice.random_bool(0.25)).collect();
        let mut body = json!({
            "preset": self.one_of(&["private_chat", "public_chat", "trusted_private_chat"]),
            "room_version": self.one_of(&VERSIONS),
        });
        if self.chance(0.5) {
            let me = self.user(device);
            body["invite"] = invite.into_iter().filter(|user| *user != me).collect();
        }
        if self.chance(0.5) {
            let visibility = json!({ "history_visibility": self.one_of(&VISIBILITIES) });
            body["initial_state"] = json!([{ "type": "m.room.history_visibility", "content": visibility }]);
        }
        if self.chance(0.5) {
            body["power_level_content_override"] = json!({ "users_default": 50, "invite": 0 });
        }
        if self.chance(0.4) {
            body["name"] = json!("a room");
        }
        Some((Request::post(v3(&["createRoom"]), body), Op::Create))
    }

    fn membership(&mut self, device: usize) -> Option<(Request, Op)> {
        let me = self.user(device);
        let other = self.model.users.choose(self.dice)?.id.clone();
        let room = self.model.rooms.choose(self.dice).cloned()?;
        let mine = self.membership_of(&me, &room);
        let inside = mine == Some(MembershipState::Join);
        let act = match self.dice.random_range(0..10) {
            0..5 if !inside => "join",
            5..6 if !inside => "knock",
            6..8 if !inside => "forget",
            0..2 => "leave",
            2..6 => "invite",
            6..7 => "kick",
            7..8 => "ban",
            8..9 => "unban",
            _ => "join",
        };
        let (user, membership) = match act {
            "join" => (me, "join"),
            "knock" => (me, "knock"),
            "leave" => (me, "leave"),
            "invite" => (other, "invite"),
            "ban" => (other, "ban"),
            "kick" | "unban" => (other, "leave"),
            _ => return Some((Request::post(v3(&["rooms", &room, "forget"]), json!({})), Op::Other)),
        };
        let body = match act {
            "invite" | "kick" | "ban" | "unban" => json!({ "user_id": user }),
            _ => json!({}),
        };
        let path = if act == "knock" { v3(&["knock", &room]) } else { v3(&["rooms", &room, act]) };
        Some((Request::post(path, body), Op::Member { room, user, membership }))
    }

    // ---- what is the user's own ----------------------------------------------------------------------------------

    fn receipt(&mut self, device: usize) -> Option<(Request, Op)> {
        let room = self.room(device)?;
        let event = self.event(&room)?;
        let op = Op::Receipt { user: self.user(device), room: room.clone(), event: event.clone() };
        if self.chance(0.3) {
            let body = json!({ "m.fully_read": event, "m.read": event });
            return Some((Request::post(v3(&["rooms", &room, "read_markers"]), body), op));
        }
        let kind = self.one_of(&["m.read", "m.read", "m.read.private"]);
        let body = match self.dice.random_range(0..4) {
            0 => json!({ "thread_id": "main" }),
            1 => json!({ "thread_id": event }),
            _ => json!({}),
        };
        Some((Request::post(v3(&["rooms", &room, "receipt", kind, &event]), body), op))
    }

    fn data(&mut self, device: usize) -> Option<(Request, Op)> {
        let user = self.user(device);
        let kind = self.one_of(&["org.example.a", "org.example.b"]);
        let value = json!({ "n": self.model.number() });
        let room = if self.chance(0.5) { self.room(device)? } else { String::new() };
        let path = if room.is_empty() {
            v3(&["user", &user, "account_data", kind])
        } else {
            v3(&["user", &user, "rooms", &room, "account_data", kind])
        };
        let key = (self.model.devices[device].user, room, kind.to_owned());
        self.model.data_begins(key.clone());
        Some((Request::put(path, value.clone()), Op::Data { key, value }))
    }

    fn tag(&mut self, device: usize) -> Option<(Request, Op)> {
        let room = self.room(device)?;
        let tag = self.one_of(&["m.favourite", "u.work"]);
        let path = v3(&["user", &self.user(device), "rooms", &room, "tags", tag]);
        let order = f64::from(self.dice.random_range(0..8)) / 8.0;
        let request =
            if self.chance(0.7) { Request::put(path, json!({ "order": order })) } else { Request::delete(path) };
        Some((request, Op::Other))
    }

    fn typing(&mut self, device: usize) -> Option<(Request, Op)> {
        let room = self.room(device)?;
        let body =
            if self.chance(0.7) { json!({ "typing": true, "timeout": 20_000 }) } else { json!({ "typing": false }) };
        Some((Request::put(v3(&["rooms", &room, "typing", &self.user(device)]), body), Op::Other))
    }

    fn profile(&mut self, device: usize) -> Option<(Request, Op)> {
        let name = format!("name {}", self.model.number());
        let path = v3(&["profile", &self.user(device), "displayname"]);
        Some((Request::put(path, json!({ "displayname": name })), Op::Other))
    }

    fn log_in(&mut self, device: usize) -> Option<(Request, Op)> {
        if self.model.alive().len() >= 9 {
            return None;
        }
        let user = self.model.devices[device].user;
        let taste = self.taste();
        Some(log_in(&self.model.users[user].name.clone(), user, taste, self.dice.random_bool(0.5)))
    }

    pub(crate) fn taste(&mut self) -> Taste {
        Taste {
            limit: [None, Some(1), Some(2), Some(3), Some(5), Some(20)].choose(self.dice).copied().flatten(),
            lazy: self.chance(0.4),
            redundant: self.chance(0.3),
            state_after: self.chance(0.3),
        }
    }

    fn session(&mut self, device: usize) -> Option<(Request, Op)> {
        if self.model.devices[device].refresh.is_some() && self.chance(0.7) {
            return self.refresh(device).map(|planned| (planned.request, planned.op));
        }
        let user = self.model.devices[device].user;
        let others = self.model.alive().into_iter().filter(|other| self.model.devices[*other].user == user).count();
        if others < 2 {
            return None;
        }
        self.model.devices[device].uncertain = true;
        Some((Request::post(v3(&["logout"]), json!({})), Op::LogOut { device }))
    }

    fn refresh(&mut self, device: usize) -> Option<Planned> {
        if self.model.devices[device].refreshing {
            return None;
        }
        let with = self.model.devices[device].refresh.clone()?;
        self.model.devices[device].refreshing = true;
        let request = Request::post(v3(&["refresh"]), json!({ "refresh_token": with }));
        Some(Planned { device, request, op: Op::Refresh { device, with } })
    }
}

pub(crate) fn sync_request(taste: Taste, since: Option<&str>, timeout: u64) -> Request {
    let since = since.map(|since| format!("&since={}", enc(since))).unwrap_or_default();
    Request::get(format!("{}?timeout={timeout}&{}{since}", v3(&["sync"]), taste.query()))
}

/// All rooms, as Element X asks for them.
pub(crate) fn slide_request(connection: &str, pos: Option<&str>, timeline_limit: u64, members: &str) -> Request {
    let pos = pos.map(|pos| format!("&pos={}", enc(pos))).unwrap_or_default();
    let list = json!({
        "ranges": [[0, 99]],
        "timeline_limit": timeline_limit,
        "required_state": [["m.room.member", members], ["m.room.name", ""], ["org.example.state", "*"]],
    });
    let path = format!("/_matrix/client/unstable/org.matrix.simplified_msc3575/sync?timeout=0{pos}");
    Request::post(path, json!({ "conn_id": connection, "lists": { "all": list } }))
}

pub(crate) fn log_in(name: &str, user: usize, taste: Taste, refresh: bool) -> (Request, Op) {
    let body = json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": name },
        "password": homeserver::testing::PASSWORD,
        "refresh_token": refresh,
    });
    (Request::post(v3(&["login"]), body), Op::LogIn { user, taste })
}
