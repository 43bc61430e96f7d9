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
