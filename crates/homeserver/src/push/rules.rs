//! A user's push rules, prepared so that most events are decided without taking their JSON apart.
//!
//! Each rule gets gates: conditions that are quick to check and without which the rule cannot match. A rule whose gates
//! are all there is to it is decided by them; any other that passes them is decided by ruma. So the outcome is always
//! the one of ruma's own evaluation, which a test compares.
//!
//! Most users never change a rule. They share one set, in which [`Gate::MyStateKey`] and [`Gate::NamesMe`] stand for the
//! user; what it says of an event to all whom the event does not name is found out once per event.
//! Not here: storing rules, counting, sending pushes.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::{BTreeMap, HashSet};
use std::ops::RangeBounds as _;
use std::sync::{Arc, LazyLock};

use futures_util::FutureExt as _;
use ruma::power_levels::NotificationPowerLevelsKey;
use ruma::push::{
    Action, AnyPushRule, FlattenedJson, PushCondition, PushConditionRoomCtx, RoomMemberCountIs, Ruleset,
    ScalarJsonValue, Tweak,
};
use ruma::serde::Raw;
use ruma::{UInt, UserId, user_id};
use serde::Deserialize;
use serde_json::value::RawValue;
use smallvec::SmallVec;

use crate::error::Result;
use crate::stored::StoredEvent;

/// What the rules say of an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub notify: bool,
    pub highlight: bool,
}

/// What rules ask about the room, and about whom it is.
pub trait RoomFacts {
    /// Whose rules these are.
    fn user_id(&self) -> &UserId;
    fn room_id(&self) -> &str;
    fn joined_members(&self) -> u64;
    /// Whether a sender has the power to notify in this way.
    fn may_notify(&self, sender: &str, key: &NotificationPowerLevelsKey) -> Result<bool>;
    /// All of it, for the rules that need more.
    fn context(&self) -> Result<PushConditionRoomCtx>;
}

/// The enabled rules of one user, most important first.
#[derive(Clone, Debug)]
pub struct Rules(Arc<[Prepared]>);

/// A rule, prepared.
#[derive(Debug)]
pub struct Prepared {
    gates: SmallVec<[Gate; 2]>,
    /// The gates are all there is to the rule.
    exact: bool,
    pub outcome: Outcome,
    rule: AnyPushRule,
}

/// Something quick to check.
#[derive(Debug)]
enum Gate {
    Kind(String),
    StateKey(String),
    /// The state key is the user.
    MyStateKey,
    Sender(String),
    Room(String),
    Members(RoomMemberCountIs),
    /// A string right in the content.
    Content(String, String),
    /// A key right in the content: it is there, and more has to be asked.
    Has(String),
    /// A key right in the content: it is there.
    With(String),
    /// Exactly this value at a path.
    Is(String, ScalarJsonValue),
    /// This value in an array at a path.
    Contains(String, ScalarJsonValue),
    /// The user is among those whom the event mentions.
    NamesMe,
    /// The sender may notify in this way.
    MayNotify(NotificationPowerLevelsKey),
    /// Nothing passes.
    Never,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    Yes,
    No,
    /// The gate cannot tell.
    Ask,
}

/// Whom the shared rules are made for.
const NOBODY: &str = "@nobody:nowhere.invalid";
/// What everybody starts with.
static SERVERS: LazyLock<Rules> = LazyLock::new(|| {
    let rules = Ruleset::server_default(user_id!("@nobody:nowhere.invalid"));
    Rules(prepared(rules).map(Prepared::shared).collect())
});

fn prepared(ruleset: Ruleset) -> impl Iterator<Item = Prepared> {
    ruleset.into_iter().filter(AnyPushRule::enabled).map(Prepared::new)
}

impl Default for Rules {
    fn default() -> Self {
        SERVERS.clone()
    }
}

impl Rules {
    pub fn new(ruleset: Ruleset) -> Self {
        Rules(prepared(ruleset).collect())
    }

    /// Whether the shared rules can stand for the default rules of a user: not if the name were a pattern.
    pub fn can_share(user_id: &UserId) -> bool {
        literal(user_id.as_str()).is_some()
    }

    /// About how much memory they take.
    pub fn weight(&self) -> u64 {
        768 * (self.0.len() as u64 + 1)
    }

    /// What becomes of an event of somebody else.
    pub fn decide(&self, event: &Facts<'_>, room: &impl RoomFacts) -> Result<Outcome> {
        Ok(self.matching(event, room)?.map(|rule| rule.outcome).unwrap_or_default())
    }

    /// The rule that an event of somebody else matches.
    pub fn matching(&self, event: &Facts<'_>, room: &impl RoomFacts) -> Result<Option<&Prepared>> {
        if !Arc::ptr_eq(&self.0, &SERVERS.0) || event.names(room.user_id(), room.room_id()) {
            return Ok(self.find(event, room)?.and_then(|index| self.0.get(index)));
        }
        let index = match event.unnamed.get() {
            Some(index) => *index,
            None => {
                let found = self.find(event, room)?;
                *event.unnamed.get_or_init(|| found)
            }
        };
        Ok(index.and_then(|index| self.0.get(index)))
    }

    fn find(&self, event: &Facts<'_>, room: &impl RoomFacts) -> Result<Option<usize>> {
        let mut context = None;
        'rules: for (index, rule) in self.0.iter().enumerate() {
            let mut exact = rule.exact;
            for gate in &rule.gates {
                match gate.check(event, room)? {
                    Answer::Yes => {}
                    Answer::No => continue 'rules,
                    Answer::Ask => exact = false,
                }
            }
            if exact {
                return Ok(Some(index));
            }
            let context = match &context {
                Some(context) => context,
                None => context.insert(room.context()?),
            };
            // Nothing in there waits: the one asynchronous condition needs a function we do not give.
            if rule.rule.applies(event.flattened(room.room_id()), context).now_or_never() == Some(true) {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }
}

impl Prepared {
    fn new(rule: AnyPushRule) -> Self {
        let outcome = Outcome { notify: rule.triggers_notification(), highlight: rule.triggers_highlight() };
        let (gates, exact) = match &rule {
            AnyPushRule::Override(rule) | AnyPushRule::PostContent(rule) | AnyPushRule::Underride(rule) => {
                gates_of_all(&rule.conditions, &rule.rule_id)
            }
            AnyPushRule::Content(_) => (SmallVec::from_iter([Gate::Has("body".to_owned())]), false),
            AnyPushRule::Room(rule) => one(literal(rule.rule_id.as_str()).map(Gate::Room)),
            AnyPushRule::Sender(rule) => one(literal(rule.rule_id.as_str()).map(Gate::Sender)),
        };
        Prepared { gates, exact, outcome, rule }
    }

    /// The same with whoever asks in the place of nobody.
    fn shared(mut self) -> Self {
        for gate in &mut self.gates {
            match gate {
                Gate::StateKey(key) if key == NOBODY => *gate = Gate::MyStateKey,
                Gate::Contains(path, value) if path == MENTIONED && value.as_str() == Some(NOBODY) => {
                    *gate = Gate::NamesMe;
                }
                _ => {}
            }
        }
        self
    }

    pub fn actions(&self) -> &[Action] {
        self.rule.actions()
    }

    /// How the notification is to be presented.
    pub fn tweaks(&self) -> impl Iterator<Item = &Tweak> {
        self.actions().iter().filter_map(|action| match action {
            Action::SetTweak(tweak) => Some(tweak),
            _ => None,
        })
    }
}

fn one(gate: Option<Gate>) -> (SmallVec<[Gate; 2]>, bool) {
    let exact = gate.is_some();
    (gate.into_iter().collect(), exact)
}

/// Rules of old times that have exceptions in ruma that are no conditions.
const OLD_RULES: [&str; 2] = [".m.rule.roomnotif", ".m.rule.contains_display_name"];
/// Where an event says whom it mentions.
const MENTIONED: &str = r"content.m\.mentions.user_ids";

fn gates_of_all(conditions: &[PushCondition], rule_id: &str) -> (SmallVec<[Gate; 2]>, bool) {
    let mut gates = SmallVec::new();
    let mut exact = !OLD_RULES.contains(&rule_id);
    for condition in conditions {
        let (found, whole) = gates_of(condition);
        gates.extend(found);
        exact &= whole;
    }
    (gates, exact)
}

/// Gates for a condition, and whether they are all of it.
fn gates_of(condition: &PushCondition) -> (SmallVec<[Gate; 2]>, bool) {
    match condition {
        PushCondition::EventMatch(data) => {
            let (gate, whole) = gate_of_match(&data.key, &data.pattern);
            (gate.into_iter().collect(), whole)
        }
        PushCondition::RoomMemberCount(data) => one(Some(Gate::Members(data.is))),
        PushCondition::EventPropertyIs(data) => {
            (within(&data.key, Gate::Is(data.key.clone(), data.value.clone())), true)
        }
        PushCondition::EventPropertyContains(data) => {
            (within(&data.key, Gate::Contains(data.key.clone(), data.value.clone())), true)
        }
        PushCondition::SenderNotificationPermission(data) => one(Some(Gate::MayNotify(data.key.clone()))),
        // Nobody subscribes to threads on this server, and what is not known never matches.
        PushCondition::ThreadSubscription(_) | PushCondition::_Custom(_) => one(Some(Gate::Never)),
        condition if condition.kind() == "contains_display_name" => {
            (SmallVec::from_iter([Gate::Has("body".to_owned())]), false)
        }
        _ => (SmallVec::new(), false),
    }
}

/// A gate about a path, after a quicker one that most events do not pass.
fn within(path: &str, gate: Gate) -> SmallVec<[Gate; 2]> {
    content_key(path).map(|(key, _)| Gate::With(key)).into_iter().chain([gate]).collect()
}

fn gate_of_match(path: &str, pattern: &str) -> (Option<Gate>, bool) {
    let pattern = literal(pattern);
    let gate = match (path, pattern) {
        ("type", Some(pattern)) => Gate::Kind(pattern),
        ("state_key", Some(pattern)) => Gate::StateKey(pattern),
        ("sender", Some(pattern)) => Gate::Sender(pattern),
        ("room_id", Some(pattern)) => Gate::Room(pattern),
        (path, pattern) => match (content_key(path), pattern) {
            (Some((key, true)), Some(pattern)) if key != "body" => Gate::Content(key, pattern),
            (Some((key, _)), _) => return (Some(Gate::Has(key)), false),
            (None, _) => return (None, false),
        },
    };
    (Some(gate), true)
}

/// A pattern that stands for itself.
fn literal(pattern: &str) -> Option<String> {
    let plain = pattern.is_ascii() && !pattern.contains(['*', '?', '\\']);
    plain.then(|| pattern.to_owned())
}

/// The key right in the content that a path goes through, and whether the path ends there.
fn content_key(path: &str) -> Option<(String, bool)> {
    let mut chars = path.strip_prefix("content.")?.chars();
    let mut key = String::new();
    while let Some(char) = chars.next() {
        match char {
            '.' => return Some((key, false)),
            '\\' => key.extend(chars.next()),
            _ => key.push(char),
        }
    }
    Some((key, true))
}

impl Gate {
    fn check(&self, event: &Facts<'_>, room: &impl RoomFacts) -> Result<Answer> {
        Ok(match self {
            Gate::Kind(kind) => same(event.event.kind(), kind),
            Gate::StateKey(key) => event.event.state_key().map_or(Answer::No, |value| same(value, key)),
            Gate::MyStateKey => yes(event.about(room.user_id())),
            Gate::Sender(sender) => same(event.event.sender(), sender),
            Gate::Room(room_id) => same(room.room_id(), room_id),
            Gate::Members(is) => yes(is.contains(&UInt::new_saturating(room.joined_members()))),
            Gate::Content(key, pattern) => event.content_text(key).map_or(Answer::No, |value| same(&value, pattern)),
            Gate::Has(key) => match event.content_value(key) {
                Some(_) => Answer::Ask,
                None => Answer::No,
            },
            Gate::With(key) => yes(event.content_value(key).is_some()),
            Gate::Is(path, value) => {
                yes(event.flattened(room.room_id()).get(path).is_some_and(|found| *found == *value))
            }
            Gate::Contains(path, value) => {
                let found = event.flattened(room.room_id()).get(path).and_then(|found| found.as_array());
                yes(found.is_some_and(|found| found.contains(value)))
            }
            Gate::NamesMe => yes(event.mentions(room.user_id(), room.room_id())),
            Gate::MayNotify(key) => yes(room.may_notify(event.event.sender(), key)?),
            Gate::Never => Answer::No,
        })
    }
}

fn yes(yes: bool) -> Answer {
    if yes { Answer::Yes } else { Answer::No }
}

/// Patterns ignore case, which is simple enough for ASCII only.
fn same(value: &str, pattern: &str) -> Answer {
    if value.is_ascii() { yes(value.eq_ignore_ascii_case(pattern)) } else { Answer::Ask }
}

/// An event, taken apart as far as somebody asked.
pub struct Facts<'a> {
    pub event: &'a StoredEvent,
    content: OnceCell<Content<'a>>,
    flattened: OnceCell<FlattenedJson>,
    mentioned: OnceCell<HashSet<String>>,
    /// Which of the shared rules it matches for those whom it does not name.
    unnamed: OnceCell<Option<usize>>,
}

type Content<'a> = BTreeMap<Cow<'a, str>, &'a RawValue>;

/// What an event relates to.
#[derive(Debug, Deserialize)]
pub struct RelatesTo<'a> {
    #[serde(borrow, default)]
    pub rel_type: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub event_id: Option<Cow<'a, str>>,
}

impl<'a> Facts<'a> {
    pub fn new(event: &'a StoredEvent) -> Self {
        Facts {
            event,
            content: OnceCell::new(),
            flattened: OnceCell::new(),
            mentioned: OnceCell::new(),
            unnamed: OnceCell::new(),
        }
    }

    /// What the event relates to, if to anything.
    pub fn relates_to(&self) -> Option<RelatesTo<'a>> {
        serde_json::from_str(self.content_value("m.relates_to")?.get()).ok()
    }

    /// Whether there is anything in the event about this user and nobody else.
    fn names(&self, user_id: &UserId, room_id: &str) -> bool {
        self.about(user_id) || self.mentions(user_id, room_id)
    }

    /// Whether this is state under the user's name.
    fn about(&self, user_id: &UserId) -> bool {
        self.event.state_key().is_some_and(|key| key.eq_ignore_ascii_case(user_id.as_str()))
    }

    fn mentions(&self, user_id: &UserId, room_id: &str) -> bool {
        let mentioned = self.mentioned.get_or_init(|| {
            let there = self.content_value("m.mentions").is_some();
            let found = there.then(|| self.flattened(room_id).get(MENTIONED)?.as_array()).flatten();
            found.into_iter().flatten().filter_map(|name| name.as_str().map(str::to_owned)).collect()
        });
        !mentioned.is_empty() && mentioned.contains(user_id.as_str())
    }

    fn content_value(&self, key: &str) -> Option<&'a RawValue> {
        self.content.get_or_init(|| content(self.event)).get(key).copied()
    }

    fn content_text(&self, key: &str) -> Option<Cow<'a, str>> {
        #[derive(Deserialize)]
        struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
        Some(serde_json::from_str::<Text<'_>>(self.content_value(key)?.get()).ok()?.0)
    }

    fn flattened(&self, room_id: &str) -> &FlattenedJson {
        self.flattened.get_or_init(|| {
            let mut json = Vec::with_capacity(self.event.client().len() + 160);
            json.push(b'{');
            json.extend_from_slice(self.event.client());
            for (name, value) in [("event_id", self.event.event_id()), ("room_id", room_id)] {
                json.extend_from_slice(format!(",\"{name}\":{}", serde_json::Value::from(value)).as_bytes());
            }
            json.push(b'}');
            // Stored events are JSON; if one were not, no rule would match.
            let raw = serde_json::from_slice::<Box<RawValue>>(&json).unwrap_or_else(|_| RawValue::NULL.to_owned());
            FlattenedJson::from_raw(&Raw::<serde_json::Value>::from_json(raw))
        })
    }
}

fn content(event: &StoredEvent) -> Content<'_> {
    // `content` is the first of the members that clients get: they are sorted.
    let value = event.client().strip_prefix(b"\"content\":").unwrap_or(b"{}");
    let mut values = serde_json::Deserializer::from_slice(value).into_iter::<Content<'_>>();
    values.next().and_then(Result::ok).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use ::rooms::state::Root;
    use proptest::prelude::*;
    use ruma::events::room::power_levels::{RoomPowerLevels, RoomPowerLevelsSource};
    use ruma::room_version_rules::AuthorizationRules;
    use ruma::{OwnedUserId, owned_room_id, owned_user_id};
    use serde_json::{Value, json};
    use store::{Raw as RawBytes, Value as _, ValueBuf};

    use super::*;
    use crate::stored::NewEvent;

    const ME: &str = "@me:hs";

    struct Room(u64);

    impl RoomFacts for Room {
        fn user_id(&self) -> &UserId {
            user_id!("@me:hs")
        }
        fn room_id(&self) -> &str {
            "!room:hs"
        }
        fn joined_members(&self) -> u64 {
            self.0
        }
        fn may_notify(&self, sender: &str, key: &NotificationPowerLevelsKey) -> Result<bool> {
            let sender = <&UserId>::try_from(sender).unwrap();
            let levels = self.context()?.power_levels;
            Ok(levels.is_some_and(|levels| levels.has_sender_notification_permission(sender, key)))
        }
        fn context(&self) -> Result<PushConditionRoomCtx> {
            let name = "Display Name".to_owned();
            let count = UInt::new_saturating(self.0);
            let mut context =
                PushConditionRoomCtx::new(owned_room_id!("!room:hs"), count, owned_user_id!("@me:hs"), name);
            let creators = [owned_user_id!("@boss:hs")];
            let levels = RoomPowerLevels::new(RoomPowerLevelsSource::None, &AuthorizationRules::V11, creators);
            context.power_levels = Some(levels.into());
            Ok(context)
        }
    }

    fn stored(kind: &str, state_key: Option<&str>, sender: &str, content: &Value) -> StoredEvent {
        let mut client = json!({"content": content, "origin_server_ts": 1, "sender": sender, "type": kind});
        if let Some(state_key) = state_key {
            client["state_key"] = json!(state_key);
        }
        let client = client.to_string();
        let new = NewEvent {
            event_id: "$event",
            sender,
            kind,
            state_key,
            origin_server_ts: 1,
            before: Root::EMPTY,
            after: Root::EMPTY,
            replaces: None,
            txn: None,
            contains_url: false,
            rejected: false,
            soft_failed: false,
            redacted_by: None,
            client: &client.as_bytes()[1..client.len() - 1],
            federation: b"",
        };
        let mut bytes = ValueBuf::default();
        new.encode(&mut bytes);
        StoredEvent::decode(RawBytes::Borrowed(bytes.as_bytes())).unwrap()
    }

    fn outcome(ruleset: &Ruleset, members: u64, event: &StoredEvent) -> Outcome {
        Rules::new(ruleset.clone()).decide(&Facts::new(event), &Room(members)).unwrap()
    }

    /// What ruma makes of it, without any short cut.
    fn oracle(ruleset: &Ruleset, members: u64, event: &StoredEvent) -> Outcome {
        let mut json: Value = serde_json::from_slice(&[b"{", event.client(), b"}"].concat()).unwrap();
        json["event_id"] = json!("$event");
        json["room_id"] = json!("!room:hs");
        let raw = Raw::<Value>::new(&json).unwrap();
        let context = Room(members).context().unwrap();
        let found = ruleset.get_match(&raw, &context).now_or_never().unwrap();
        found.map_or_else(Outcome::default, |rule| Outcome {
            notify: rule.triggers_notification(),
            highlight: rule.triggers_highlight(),
        })
    }

    fn content() -> impl Strategy<Value = Value> {
        let word = prop_oneof![
            Just("hello Display name and me".to_owned()),
            Just("@room".to_owned()),
            Just("ΜΕ K".to_owned()),
            "[a-zA-Z.* \\\\\"]{0,12}",
        ];
        let mentions = prop_oneof![
            Just(Value::Null),
            Just(json!({"user_ids": [ME]})),
            Just(json!({"user_ids": ["@other:hs"], "room": true})),
            Just(json!("nonsense")),
        ];
        let relation = prop_oneof![
            Just(Value::Null),
            Just(json!({"rel_type": "m.replace", "event_id": "$x"})),
            Just(json!({"rel_type": "m.thread", "event_id": "$x"})),
        ];
        let kind = prop_oneof![Just("m.text"), Just("m.notice"), Just("M.NOTICE"), Just("m.nötice")];
        let membership = prop_oneof![Just("invite"), Just("join")];
        (word, mentions, relation, kind, membership, 0u8..64).prop_map(
            |(word, mentions, relation, kind, membership, keep)| {
                let all = [
                    ("body", json!(word)),
                    ("m.mentions", mentions),
                    ("m.relates_to", relation),
                    ("msgtype", json!(kind)),
                    ("membership", json!(membership)),
                    ("a.b", json!({"c\\d": {"e": word}, "n": 1, "t": true})),
                ];
                let kept = all.into_iter().enumerate().filter(|(index, _)| keep & (1 << index) != 0);
                kept.map(|(_, (name, value))| (name.to_owned(), value)).collect::<serde_json::Map<_, _>>().into()
            },
        )
    }

    fn event() -> impl Strategy<Value = StoredEvent> {
        let kind = prop_oneof![
            4 => Just("m.room.message"), 1 => Just("m.room.encrypted"), 1 => Just("m.room.member"),
            1 => Just("m.room.tombstone"), 1 => Just("m.reaction"), 1 => Just("m.room.server_acl"),
            1 => Just("m.call.invite"), 1 => Just("M.ROOM.MESSAGE"), 1 => Just("m.röom"),
        ];
        let state_key =
            prop_oneof![3 => Just(None), 1 => Just(Some("")), 1 => Just(Some(ME)), 1 => Just(Some("@other:hs"))];
        let sender = prop_oneof![Just("@other:hs"), Just("@boss:hs")];
        (kind, state_key, sender, content())
            .prop_map(|(kind, key, sender, content)| stored(kind, key, sender, &content))
    }

    fn condition() -> impl Strategy<Value = Value> {
        let key = prop_oneof![
            Just("type"),
            Just("state_key"),
            Just("sender"),
            Just("room_id"),
            Just("content.body"),
            Just("content.msgtype"),
            Just(r"content.a\.b.c\\d.e"),
            Just(r"content.m\.relates_to.rel_type"),
            Just("content"),
        ];
        let pattern = prop_oneof![
            Just("m.room.message"),
            Just("m.room.*"),
            Just("m.notice"),
            Just("!room:hs"),
            Just("@other:hs"),
            Just(""),
            Just("hello"),
            Just("k"),
            Just("m.replace"),
            Just("m.r?om"),
            Just("*"),
        ];
        let value = prop_oneof![Just(json!(true)), Just(json!(1)), Just(json!("m.thread")), Just(json!(ME))];
        let path = prop_oneof![
            Just(r"content.a\.b.t"),
            Just(r"content.a\.b.n"),
            Just(r"content.m\.mentions.user_ids"),
            Just("type"),
            Just(r"content.m\.relates_to.rel_type"),
        ];
        prop_oneof![
            4 => (key, pattern).prop_map(|(key, pattern)| json!({"kind": "event_match", "key": key, "pattern": pattern})),
            1 => prop_oneof![Just("2"), Just("==3"), Just(">2"), Just("<=2")]
                .prop_map(|is| json!({"kind": "room_member_count", "is": is})),
            1 => Just(json!({"kind": "contains_display_name"})),
            1 => Just(json!({"kind": "sender_notification_permission", "key": "room"})),
            1 => Just(json!({"kind": "nobody.knows"})),
            1 => (path.clone(), value.clone())
                .prop_map(|(key, value)| json!({"kind": "event_property_is", "key": key, "value": value})),
            1 => (path, value)
                .prop_map(|(key, value)| json!({"kind": "event_property_contains", "key": key, "value": value})),
        ]
    }

    /// The default rules, and some of a user's own.
    fn ruleset() -> impl Strategy<Value = Ruleset> {
        let actions = || {
            prop_oneof![
                Just(json!([])),
                Just(json!(["notify"])),
                Just(json!(["notify", {"set_tweak": "highlight"}])),
                Just(json!(["dont_notify"])),
            ]
        };
        let conditional = || (proptest::collection::vec(condition(), 0..3), actions(), any::<bool>());
        let own = |(conditions, actions, enabled): (Vec<Value>, Value, bool)| json!({"rule_id": "own", "default": false, "enabled": enabled, "actions": actions, "conditions": conditions});
        let word = prop_oneof![Just("hello"), Just("ro*m"), Just("me")];
        (
            proptest::option::of(conditional().prop_map(own)),
            proptest::option::of(conditional().prop_map(own)),
            proptest::option::of((word, actions())),
            proptest::option::of(actions()),
            proptest::option::of(actions()),
        )
            .prop_map(|(override_, underride, content, room, sender)| {
                let mut all = serde_json::to_value(Ruleset::server_default(user_id!("@me:hs"))).unwrap();
                let mut first = |kind: &str, rule: Value| match all.get_mut(kind).and_then(Value::as_array_mut) {
                    Some(rules) => rules.insert(usize::from(kind == "override"), rule),
                    None => all[kind] = json!([rule]),
                };
                override_.into_iter().for_each(|rule| first("override", rule));
                underride.into_iter().for_each(|rule| first("underride", rule));
                if let Some((word, actions)) = content {
                    first("content", json!({"rule_id": "w", "default": false, "enabled": true, "actions": actions, "pattern": word}));
                }
                let simple = |id: &str, actions: Value| json!({"rule_id": id, "default": false, "enabled": true, "actions": actions});
                room.into_iter().for_each(|actions| first("room", simple("!room:hs", actions)));
                sender.into_iter().for_each(|actions| first("sender", simple("@other:hs", actions)));
                serde_json::from_value(all).unwrap()
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1_500, ..ProptestConfig::default() })]

        #[test]
        fn pitfall_072_the_short_cut_decides_like_ruma(ruleset in ruleset(), event in event(), members in 1u64..5) {
            prop_assert_eq!(outcome(&ruleset, members, &event), oracle(&ruleset, members, &event));
        }

        #[test]
        fn pitfall_072_the_shared_rules_decide_like_ones_own(event in event(), members in 1u64..5) {
            let own = Ruleset::server_default(user_id!("@me:hs"));
            let (facts, room) = (Facts::new(&event), Room(members));
            let shared = Rules::default();
            // Somebody else comes first: what is found for one must not be taken for the other.
            let other = Member { user_id: owned_user_id!("@second:hs"), room: Room(members), asked: Cell::new(0) };
            shared.decide(&facts, &other).unwrap();
            prop_assert_eq!(shared.decide(&facts, &room).unwrap(), oracle(&own, members, &event));
        }
    }

    /// Another member. Counts how often it is asked about the room.
    struct Member {
        user_id: OwnedUserId,
        room: Room,
        asked: Cell<usize>,
    }

    impl RoomFacts for Member {
        fn user_id(&self) -> &UserId {
            &self.user_id
        }
        fn room_id(&self) -> &str {
            "!room:hs"
        }
        fn joined_members(&self) -> u64 {
            self.asked.set(self.asked.get() + 1);
            self.room.joined_members()
        }
        fn may_notify(&self, sender: &str, key: &NotificationPowerLevelsKey) -> Result<bool> {
            self.asked.set(self.asked.get() + 1);
            self.room.may_notify(sender, key)
        }
        fn context(&self) -> Result<PushConditionRoomCtx> {
            self.asked.set(self.asked.get() + 100);
            self.room.context()
        }
    }

    #[test]
    fn a_thousand_members_with_default_rules_take_one_evaluation() {
        let content = json!({"msgtype": "m.text", "body": "x", "m.mentions": {"user_ids": ["@u7:hs"], "room": false}});
        let event = stored("m.room.message", None, "@other:hs", &content);
        let facts = Facts::new(&event);
        let rules = Rules::default();
        let mut asked = 0;
        for nr in 0..1_000 {
            let user_id = OwnedUserId::try_from(format!("@u{nr}:hs")).unwrap();
            let member = Member { user_id, room: Room(1_000), asked: Cell::new(0) };
            let outcome = rules.decide(&facts, &member).unwrap();
            assert_eq!(outcome, Outcome { notify: true, highlight: nr == 7 }, "{nr}");
            asked += member.asked.get();
        }
        assert!(asked < 10, "the room was asked {asked} times");
    }

    #[test]
    fn pitfall_072_the_default_rules() {
        let rules = Ruleset::server_default(user_id!("@me:hs"));
        let say = |content: Value| outcome(&rules, 3, &stored("m.room.message", None, "@other:hs", &content));
        let (silent, notify, highlight) =
            (Outcome::default(), Outcome { notify: true, highlight: false }, Outcome { notify: true, highlight: true });
        assert_eq!(say(json!({"msgtype": "m.text", "body": "@me:hs"})), notify);
        assert_eq!(say(json!({"msgtype": "m.notice", "body": "x"})), silent);
        assert_eq!(say(json!({"msgtype": "m.text", "body": "x", "m.mentions": {"user_ids": [ME]}})), highlight);
        let edit =
            json!({"msgtype": "m.text", "body": "x", "m.relates_to": {"rel_type": "m.replace", "event_id": "$x"}});
        assert_eq!(say(edit), silent);
        let everybody = json!({"msgtype": "m.text", "body": "@room", "m.mentions": {"room": true}});
        assert_eq!(say(everybody.clone()), notify, "this takes more power");
        let boss = stored("m.room.message", None, "@boss:hs", &everybody);
        assert_eq!(outcome(&rules, 3, &boss), highlight);
        let invite = stored("m.room.member", Some(ME), "@other:hs", &json!({"membership": "invite"}));
        assert_eq!(outcome(&rules, 3, &invite), notify);
        let join = stored("m.room.member", Some("@other:hs"), "@other:hs", &json!({"membership": "join"}));
        assert_eq!(outcome(&rules, 3, &join), silent);
        let reaction = stored("m.reaction", None, "@other:hs", &json!({}));
        assert_eq!(outcome(&rules, 3, &reaction), silent);
    }
}
