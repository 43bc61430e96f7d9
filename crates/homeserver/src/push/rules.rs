//! A user's push rules, prepared so that most events are decided without taking their JSON apart.
//!
//! Each rule gets gates: conditions that are quick to check and without which the rule cannot match. A rule whose gates
//! are all there is to it is decided by them; any other that passes them is decided by ruma. So the outcome is always
//! the one of ruma's own evaluation, which a test compares. Not here: storing rules, counting, sending pushes.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::ops::RangeBounds as _;
use std::sync::Arc;

use futures_util::FutureExt as _;
use ruma::UInt;
use ruma::push::{AnyPushRule, FlattenedJson, PushCondition, PushConditionRoomCtx, RoomMemberCountIs, Ruleset};
use ruma::serde::Raw;
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

/// What rules ask about the room.
pub trait RoomFacts {
    fn room_id(&self) -> &str;
    fn joined_members(&self) -> u64;
    /// All of it, for the rules that need more than the two above.
    fn context(&self) -> Result<PushConditionRoomCtx>;
}

/// The enabled rules of one user, most important first.
#[derive(Clone, Debug, Default)]
pub struct Rules(Arc<[Prepared]>);

#[derive(Debug)]
struct Prepared {
    gates: SmallVec<[Gate; 2]>,
    /// The gates are all there is to the rule.
    exact: bool,
    outcome: Outcome,
    rule: AnyPushRule,
}

/// Something quick to check.
#[derive(Debug)]
enum Gate {
    Kind(String),
    StateKey(String),
    Sender(String),
    Room(String),
    Members(RoomMemberCountIs),
    /// A string right in the content.
    Content(String, String),
    /// A key right in the content.
    Has(String),
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

impl Rules {
    pub fn new(ruleset: Ruleset) -> Self {
        Rules(ruleset.into_iter().filter(AnyPushRule::enabled).map(Prepared::new).collect())
    }

    /// What becomes of an event of somebody else.
    pub fn decide(&self, event: &Facts<'_>, room: &impl RoomFacts) -> Result<Outcome> {
        let mut context = None;
        'rules: for rule in self.0.iter() {
            let mut exact = rule.exact;
            for gate in &rule.gates {
                match gate.check(event, room) {
                    Answer::Yes => {}
                    Answer::No => continue 'rules,
                    Answer::Ask => exact = false,
                }
            }
            if exact {
                return Ok(rule.outcome);
            }
            let context = match &context {
                Some(context) => context,
                None => context.insert(room.context()?),
            };
            // Nothing in there waits: the one asynchronous condition needs a function we do not give.
            if rule.rule.applies(event.flattened(room.room_id()), context).now_or_never() == Some(true) {
                return Ok(rule.outcome);
            }
        }
        Ok(Outcome::default())
    }
}

impl Prepared {
    fn new(rule: AnyPushRule) -> Self {
        let outcome = Outcome { notify: rule.triggers_notification(), highlight: rule.triggers_highlight() };
        let (gates, exact) = match &rule {
            AnyPushRule::Override(rule) | AnyPushRule::PostContent(rule) | AnyPushRule::Underride(rule) => {
                gates_of_all(&rule.conditions, rule.rule_id.starts_with('.'))
            }
            AnyPushRule::Content(_) => (SmallVec::from_iter([Gate::Has("body".to_owned())]), false),
            AnyPushRule::Room(rule) => one(literal(rule.rule_id.as_str()).map(Gate::Room)),
            AnyPushRule::Sender(rule) => one(literal(rule.rule_id.as_str()).map(Gate::Sender)),
        };
        Prepared { gates, exact, outcome, rule }
    }
}

fn one(gate: Option<Gate>) -> (SmallVec<[Gate; 2]>, bool) {
    let exact = gate.is_some();
    (gate.into_iter().collect(), exact)
}

/// Old default rules have exceptions in ruma that are no conditions, so those with a name we do not know are not exact.
fn gates_of_all(conditions: &[PushCondition], predefined: bool) -> (SmallVec<[Gate; 2]>, bool) {
    let mut gates = SmallVec::new();
    let mut exact = !predefined || !conditions.iter().any(is_of_old_rules);
    for condition in conditions {
        let (gate, whole) = gate_of(condition);
        gates.extend(gate);
        exact &= whole;
    }
    (gates, exact)
}

fn is_of_old_rules(condition: &PushCondition) -> bool {
    matches!(condition.kind(), "contains_display_name" | "sender_notification_permission")
}

/// A gate for a condition, and whether the gate is all of it.
fn gate_of(condition: &PushCondition) -> (Option<Gate>, bool) {
    match condition {
        PushCondition::EventMatch(data) => gate_of_match(&data.key, &data.pattern),
        PushCondition::RoomMemberCount(data) => (Some(Gate::Members(data.is)), true),
        PushCondition::EventPropertyIs(data) => (content_key(&data.key).map(|(key, _)| Gate::Has(key)), false),
        PushCondition::EventPropertyContains(data) => (content_key(&data.key).map(|(key, _)| Gate::Has(key)), false),
        // Nobody subscribes to threads on this server, and what is not known never matches.
        PushCondition::ThreadSubscription(_) | PushCondition::_Custom(_) => (Some(Gate::Never), true),
        condition if condition.kind() == "contains_display_name" => (Some(Gate::Has("body".to_owned())), false),
        _ => (None, false),
    }
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
    fn check(&self, event: &Facts<'_>, room: &impl RoomFacts) -> Answer {
        match self {
            Gate::Kind(kind) => same(event.event.kind(), kind),
            Gate::StateKey(key) => event.event.state_key().map_or(Answer::No, |value| same(value, key)),
            Gate::Sender(sender) => same(event.event.sender(), sender),
            Gate::Room(room_id) => same(room.room_id(), room_id),
            Gate::Members(is) => yes(is.contains(&UInt::new_saturating(room.joined_members()))),
            Gate::Content(key, pattern) => event.content_text(key).map_or(Answer::No, |value| same(&value, pattern)),
            Gate::Has(key) => match event.content_value(key) {
                Some(_) => Answer::Ask,
                None => Answer::No,
            },
            Gate::Never => Answer::No,
        }
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
        Facts { event, content: OnceCell::new(), flattened: OnceCell::new() }
    }

    /// What the event relates to, if to anything.
    pub fn relates_to(&self) -> Option<RelatesTo<'a>> {
        serde_json::from_str(self.content_value("m.relates_to")?.get()).ok()
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
    use ::rooms::state::Root;
    use proptest::prelude::*;
    use ruma::events::room::power_levels::{RoomPowerLevels, RoomPowerLevelsSource};
    use ruma::room_version_rules::AuthorizationRules;
    use ruma::{owned_room_id, owned_user_id, user_id};
    use serde_json::{Value, json};
    use store::{Raw as RawBytes, Value as _, ValueBuf};

    use super::*;
    use crate::stored::NewEvent;

    const ME: &str = "@me:hs";

    struct Room(u64);

    impl RoomFacts for Room {
        fn room_id(&self) -> &str {
            "!room:hs"
        }
        fn joined_members(&self) -> u64 {
            self.0
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
