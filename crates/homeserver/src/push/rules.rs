//! A user's push rules, prepared: taken apart once, and decided without allocating for each user.
//!
//! An event is taken apart as far as somebody asks, once for all of its recipients, and values are looked up in it by
//! their path. What rules say is what ruma's own evaluation says, which a test compares; but ruma's is not for rules and
//! events that somebody wrote to keep a server busy.
//!
//! Most users never change a rule. They share one set, in which [`Test::MyStateKey`] and [`Test::NamesMe`] stand for the
//! user; what it says of an event to all whom the event does not name is found out once per event.
//! Not here: storing rules, counting, sending pushes.

use std::borrow::{Borrow, Cow};
use std::cell::OnceCell;
use std::collections::{BTreeMap, HashSet};
use std::ops::RangeBounds as _;
use std::sync::{Arc, LazyLock};

use ruma::power_levels::NotificationPowerLevelsKey;
use ruma::push::{Action, AnyPushRule, PushCondition, RoomMemberCountIs, Ruleset, ScalarJsonValue, Tweak};
use ruma::{UInt, UserId, user_id};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;
use smallvec::SmallVec;

use super::pattern::{Fuel, MAX_PATTERN_BYTES, Pattern, Scope, lower};
use crate::error::Result;
use crate::stored::StoredEvent;

/// A user has at most so many rules of their own; of more the last ones do not count.
pub const MAX_RULES: usize = 1_000;
/// A rule with more never matches.
pub const MAX_CONDITIONS: usize = 32;

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
    /// What the user is called in the room.
    fn display_name(&self) -> Result<String>;
}

/// The enabled rules of one user, most important first.
#[derive(Clone, Debug)]
pub struct Rules(Arc<Set>);

#[derive(Debug)]
struct Set {
    rules: Box<[Prepared]>,
    weight: u64,
}

/// A rule, prepared.
#[derive(Debug)]
pub struct Prepared {
    /// All of them have to pass.
    tests: Tests,
    pub outcome: Outcome,
    actions: Vec<Action>,
    /// Everybody has it.
    is_servers: bool,
}

/// A condition, prepared.
#[derive(Debug)]
enum Test {
    Match(Place, Pattern),
    /// Exactly this value.
    Is(Place, ScalarJsonValue),
    /// This value in an array.
    Contains(Place, ScalarJsonValue),
    /// The state key is the user.
    MyStateKey,
    /// The user is among those whom the event mentions.
    NamesMe,
    /// The body has the user's name.
    MyName,
    Members(RoomMemberCountIs),
    /// The sender may notify in this way.
    MayNotify(NotificationPowerLevelsKey),
    /// Nothing passes.
    Never,
}

/// Where a value is.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Kind,
    StateKey,
    Sender,
    Room,
    EventId,
    /// The text of a message.
    Body,
    /// In the content: a key, and those below it.
    Content(Box<str>, Box<[String]>),
    /// Anywhere else, from the top on.
    Top(Box<[String]>),
}

/// Whom the shared rules are made for.
const NOBODY: &str = "@nobody:nowhere.invalid";
/// What everybody starts with.
static SERVERS: LazyLock<Rules> = LazyLock::new(|| Rules::of(servers().map(Prepared::shared).collect()));

fn servers() -> impl Iterator<Item = Prepared> {
    prepared(Ruleset::server_default(user_id!("@nobody:nowhere.invalid")))
}

fn prepared(ruleset: Ruleset) -> impl Iterator<Item = Prepared> {
    let mut own = 0;
    let counts = move |rule: &AnyPushRule| {
        own += usize::from(!rule.is_server_default());
        rule.is_server_default() || own <= MAX_RULES
    };
    ruleset.into_iter().filter(counts).filter(AnyPushRule::enabled).map(|rule| Prepared::new(&rule))
}

impl Default for Rules {
    fn default() -> Self {
        SERVERS.clone()
    }
}

impl Rules {
    pub fn new(ruleset: Ruleset) -> Self {
        Self::of(prepared(ruleset).collect())
    }

    fn of(rules: Box<[Prepared]>) -> Self {
        let weight = rules.iter().map(Prepared::weight).sum::<usize>();
        Rules(Arc::new(Set { rules, weight: (size_of::<Set>() + weight) as u64 }))
    }

    /// Whether the shared rules can stand for the default rules of a user: not if the name were a pattern.
    pub fn can_share(user_id: &UserId) -> bool {
        user_id.as_str().is_ascii() && !user_id.as_str().contains(['*', '?'])
    }

    /// About how much memory they take.
    pub fn weight(&self) -> u64 {
        self.0.weight
    }

    /// What becomes of an event of somebody else.
    pub fn decide(&self, event: &Facts<'_>, room: &impl RoomFacts, fuel: &Fuel) -> Result<Outcome> {
        Ok(self.matching(event, room, fuel)?.map(|rule| rule.outcome).unwrap_or_default())
    }

    /// The rule that an event of somebody else matches.
    pub fn matching(&self, event: &Facts<'_>, room: &impl RoomFacts, fuel: &Fuel) -> Result<Option<&Prepared>> {
        fuel.fill();
        if !Arc::ptr_eq(&self.0, &SERVERS.0) || event.names(room.user_id()) {
            return self.find(event, room, fuel).map(|index| self.at(index));
        }
        let index = match event.unnamed.get() {
            Some(index) => *index,
            None => {
                let found = self.find(event, room, fuel)?;
                *event.unnamed.get_or_init(|| found)
            }
        };
        Ok(self.at(index))
    }

    fn at(&self, index: Option<usize>) -> Option<&Prepared> {
        self.0.rules.get(index?)
    }

    fn find(&self, event: &Facts<'_>, room: &impl RoomFacts, fuel: &Fuel) -> Result<Option<usize>> {
        'rules: for (index, rule) in self.0.rules.iter().enumerate() {
            if rule.is_servers {
                // Whatever a user's own rules took.
                fuel.fill();
            }
            for test in &rule.tests {
                if !test.passes(event, room, fuel)? {
                    continue 'rules;
                }
            }
            return Ok(Some(index));
        }
        Ok(None)
    }
}

impl Prepared {
    fn new(rule: &AnyPushRule) -> Self {
        let outcome = Outcome { notify: rule.triggers_notification(), highlight: rule.triggers_highlight() };
        let one = |test| Tests::from_iter([test]);
        let tests = match rule {
            AnyPushRule::Override(rule) | AnyPushRule::PostContent(rule) | AnyPushRule::Underride(rule) => {
                Test::all(&rule.conditions)
            }
            AnyPushRule::Content(rule) => one(Test::matching("content.body", &rule.pattern)),
            AnyPushRule::Room(rule) => one(Test::matching("room_id", rule.rule_id.as_str())),
            AnyPushRule::Sender(rule) => one(Test::matching("sender", rule.rule_id.as_str())),
        };
        Prepared { tests, outcome, actions: rule.actions().to_vec(), is_servers: rule.is_server_default() }
    }

    /// The same with whoever asks in the place of nobody.
    fn shared(mut self) -> Self {
        let nobody = |value: &ScalarJsonValue| value.as_str() == Some(NOBODY);
        for test in &mut self.tests {
            match test {
                Test::Match(Place::StateKey, pattern) if pattern.is_plain(NOBODY) => *test = Test::MyStateKey,
                Test::Contains(_, value) if nobody(value) => *test = Test::NamesMe,
                _ => {}
            }
        }
        self
    }

    fn weight(&self) -> usize {
        let actions = self.actions.iter().map(|action| size_of::<Action>() + weight_of(action)).sum::<usize>();
        let tests = self.tests.iter().map(|test| size_of::<Test>() + test.weight()).sum::<usize>();
        size_of::<Self>() + actions + tests
    }

    pub fn actions(&self) -> &[Action] {
        &self.actions
    }

    /// How the notification is to be presented.
    pub fn tweaks(&self) -> impl Iterator<Item = &Tweak> {
        self.actions().iter().filter_map(|action| match action {
            Action::SetTweak(tweak) => Some(tweak),
            _ => None,
        })
    }
}

/// What an action takes besides itself: about twice as much as its JSON.
fn weight_of(action: &Action) -> usize {
    match action {
        Action::Notify => 0,
        action => 2 * serde_json::to_vec(action).map_or(0, |json| json.len()),
    }
}

type Tests = SmallVec<[Test; 2]>;

impl Test {
    fn all(conditions: &[PushCondition]) -> Tests {
        if conditions.len() > MAX_CONDITIONS {
            return Tests::from_iter([Test::Never]);
        }
        conditions.iter().map(Test::new).collect()
    }

    fn new(condition: &PushCondition) -> Self {
        match condition {
            PushCondition::EventMatch(data) => Test::matching(&data.key, &data.pattern),
            PushCondition::EventPropertyIs(data) => {
                Place::new(&data.key).map_or(Test::Never, |place| Test::Is(place, data.value.clone()))
            }
            PushCondition::EventPropertyContains(data) => {
                Place::new(&data.key).map_or(Test::Never, |place| Test::Contains(place, data.value.clone()))
            }
            PushCondition::RoomMemberCount(data) => Test::Members(data.is),
            PushCondition::SenderNotificationPermission(data) => Test::MayNotify(data.key.clone()),
            // Deprecated, and so not to be named.
            condition if condition.kind() == "contains_display_name" => Test::MyName,
            // Nobody subscribes to threads on this server, and what is not known never matches.
            _ => Test::Never,
        }
    }

    fn matching(path: &str, pattern: &str) -> Self {
        let Some(place) = Place::new(path) else { return Test::Never };
        let scope = if place == Place::Body { Scope::Words } else { Scope::Whole };
        Pattern::new(pattern, scope).map_or(Test::Never, |pattern| Test::Match(place, pattern))
    }

    /// What it costs to look at the place at all.
    fn steps(&self) -> usize {
        match self {
            Test::Match(place, _) | Test::Is(place, _) | Test::Contains(place, _) => 8 + 32 * place.depth(),
            _ => 8,
        }
    }

    fn weight(&self) -> usize {
        match self {
            Test::Match(place, pattern) => place.weight() + pattern.weight(),
            Test::Is(place, value) | Test::Contains(place, value) => {
                place.weight() + value.as_str().map_or(0, str::len)
            }
            _ => 0,
        }
    }

    /// Whether an event passes. Nothing does once there is no fuel left.
    fn passes(&self, event: &Facts<'_>, room: &impl RoomFacts, fuel: &Fuel) -> Result<bool> {
        if !fuel.take(self.steps()) {
            return Ok(false);
        }
        Ok(match self {
            Test::Match(Place::Body, pattern) => event.body().is_some_and(|body| pattern.matches_lower(body, fuel)),
            Test::Match(place, pattern) => {
                let text = event.text_at(place, room.room_id());
                text.is_some_and(|text| fuel.take(text.len() / 2) && pattern.matches(&text, fuel))
            }
            Test::Is(place, value) => event.is_at(place, room.room_id(), value),
            Test::Contains(place, value) => {
                let values = event.values_at(place);
                fuel.take(2 * values.len()) && values.iter().any(|found| same(found, value))
            }
            Test::MyStateKey => event.about(room.user_id()),
            Test::NamesMe => event.mentions(room.user_id()),
            Test::MyName => match event.body() {
                Some(body) => has_name(body, &room.display_name()?, fuel),
                None => false,
            },
            Test::Members(is) => is.contains(&UInt::new_saturating(room.joined_members())),
            Test::MayNotify(key) => room.may_notify(event.event.sender(), key)?,
            Test::Never => false,
        })
    }
}

fn has_name(body: &str, name: &str, fuel: &Fuel) -> bool {
    !name.is_empty() && Pattern::plain(name, Scope::Words).is_some_and(|name| name.matches_lower(body, fuel))
}

/// Whether a value in an event is one that a rule asks for. Only integers that JSON can do are numbers here.
fn same(found: &Value, wanted: &ScalarJsonValue) -> bool {
    match (found, wanted) {
        (Value::Null, ScalarJsonValue::Null) => true,
        (Value::Bool(found), ScalarJsonValue::Bool(wanted)) => found == wanted,
        (Value::Number(found), ScalarJsonValue::Integer(wanted)) => found.as_i64() == Some(i64::from(*wanted)),
        (Value::String(found), ScalarJsonValue::String(wanted)) => found == wanted,
        _ => false,
    }
}

impl Place {
    /// `None`: the path is too long.
    fn new(path: &str) -> Option<Self> {
        if path.len() > MAX_PATTERN_BYTES {
            return None;
        }
        let keys = keys_of(path);
        Some(match keys.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["type"] => Place::Kind,
            ["state_key"] => Place::StateKey,
            ["sender"] => Place::Sender,
            ["room_id"] => Place::Room,
            ["event_id"] => Place::EventId,
            ["content", "body"] => Place::Body,
            ["content", key, ..] => Place::Content((*key).into(), keys.get(2..).unwrap_or_default().into()),
            _ => Place::Top(keys.into()),
        })
    }

    /// Keys below the first one.
    fn depth(&self) -> usize {
        match self {
            Place::Content(_, below) => below.len(),
            Place::Top(keys) => keys.len(),
            _ => 0,
        }
    }

    fn weight(&self) -> usize {
        let keys = |keys: &[String]| keys.iter().map(|key| size_of::<String>() + key.len()).sum::<usize>();
        match self {
            Place::Content(key, below) => key.len() + keys(below),
            Place::Top(all) => keys(all),
            _ => 0,
        }
    }
}

/// The keys of a path: divided by dots. A backslash before a dot or a backslash takes its meaning away.
fn keys_of(path: &str) -> Vec<String> {
    let mut keys = vec![String::new()];
    let mut chars = path.chars().peekable();
    while let Some(char) = chars.next() {
        let char = match char {
            '.' => {
                keys.push(String::new());
                continue;
            }
            '\\' => chars.next_if(|next| matches!(next, '.' | '\\')).unwrap_or(char),
            _ => char,
        };
        if let Some(key) = keys.last_mut() {
            key.push(char);
        }
    }
    keys
}

/// An event, taken apart as far as somebody asked.
pub struct Facts<'a> {
    pub event: &'a StoredEvent,
    content: OnceCell<Content<'a>>,
    /// All of it, for rules about what is not in the content.
    top: OnceCell<Value>,
    /// The text of a message, in lower case.
    body: OnceCell<Option<String>>,
    mentioned: OnceCell<HashSet<String>>,
    /// Which of the shared rules it matches for those whom it does not name.
    unnamed: OnceCell<Option<usize>>,
}

type Content<'a> = BTreeMap<Name<'a>, Part<'a>>;

/// A key of the content.
#[derive(PartialEq, Eq, PartialOrd, Ord, Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl Borrow<str> for Name<'_> {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// What is under a key of the content.
struct Part<'a> {
    raw: &'a RawValue,
    value: OnceCell<Value>,
}

impl<'a> Deserialize<'a> for Part<'a> {
    fn deserialize<D: Deserializer<'a>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Part { raw: <&RawValue>::deserialize(deserializer)?, value: OnceCell::new() })
    }
}

impl Part<'_> {
    fn value(&self) -> &Value {
        self.value.get_or_init(|| serde_json::from_str(self.raw.get()).unwrap_or_default())
    }
}

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
            top: OnceCell::new(),
            body: OnceCell::new(),
            mentioned: OnceCell::new(),
            unnamed: OnceCell::new(),
        }
    }

    /// What the event relates to, if to anything.
    pub fn relates_to(&self) -> Option<RelatesTo<'a>> {
        serde_json::from_str(self.part("m.relates_to")?.raw.get()).ok()
    }

    /// Whether there is anything in the event about this user and nobody else.
    fn names(&self, user_id: &UserId) -> bool {
        self.about(user_id) || self.mentions(user_id)
    }

    /// Whether this is state under the user's name.
    fn about(&self, user_id: &UserId) -> bool {
        self.event.state_key().is_some_and(|key| key.eq_ignore_ascii_case(user_id.as_str()))
    }

    fn mentions(&self, user_id: &UserId) -> bool {
        let mentioned = self.mentioned.get_or_init(|| {
            let found = self.part("m.mentions").and_then(|part| part.value().get("user_ids")?.as_array());
            found.into_iter().flatten().filter_map(|name| name.as_str().map(str::to_owned)).collect()
        });
        !mentioned.is_empty() && mentioned.contains(user_id.as_str())
    }

    fn part(&self, key: &str) -> Option<&Part<'a>> {
        self.content.get_or_init(|| content(self.event)).get(key)
    }

    fn body(&self) -> Option<&str> {
        let body = || Some(lower(&text_of(self.part("body")?.raw)?).into_owned());
        self.body.get_or_init(body).as_deref()
    }

    /// The text at a place.
    fn text_at<'s>(&'s self, place: &Place, room_id: &'s str) -> Option<Cow<'s, str>> {
        match place {
            Place::Kind => Some(Cow::Borrowed(self.event.kind())),
            Place::StateKey => self.event.state_key().map(Cow::Borrowed),
            Place::Sender => Some(Cow::Borrowed(self.event.sender())),
            Place::EventId => Some(Cow::Borrowed(self.event.event_id())),
            Place::Room => Some(Cow::Borrowed(room_id)),
            Place::Body => text_of(self.part("body")?.raw),
            Place::Content(key, below) if below.is_empty() => text_of(self.part(key)?.raw),
            Place::Content(..) | Place::Top(_) => self.value_at(place)?.as_str().map(Cow::Borrowed),
        }
    }

    /// Whether there is exactly this at a place.
    fn is_at(&self, place: &Place, room_id: &str, wanted: &ScalarJsonValue) -> bool {
        match place {
            Place::Body | Place::Content(..) | Place::Top(_) => {
                self.value_at(place).is_some_and(|found| same(found, wanted))
            }
            _ => wanted.as_str().is_some_and(|wanted| self.text_at(place, room_id).as_deref() == Some(wanted)),
        }
    }

    /// What is in an array at a place.
    fn values_at(&self, place: &Place) -> &[Value] {
        self.value_at(place).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// What is at a place in the event's JSON.
    fn value_at(&self, place: &Place) -> Option<&Value> {
        let under = |value, keys: &[String]| {
            keys.iter().try_fold(value, |value: &Value, key| value.as_object().and_then(|object| object.get(key)))
        };
        match place {
            Place::Body => self.part("body").map(Part::value),
            Place::Content(key, below) => under(self.part(key)?.value(), below),
            Place::Top(keys) => under(self.top.get_or_init(|| top(self.event)), keys),
            _ => None,
        }
    }
}

fn text_of(raw: &RawValue) -> Option<Cow<'_, str>> {
    // Most of what is asked for is no text, which its first character says.
    raw.get().starts_with('"').then(|| serde_json::from_str::<Name<'_>>(raw.get()).ok()).flatten().map(|text| text.0)
}

fn content(event: &StoredEvent) -> Content<'_> {
    // `content` is the first of the members that clients get: they are sorted.
    let value = event.client().strip_prefix(b"\"content\":").unwrap_or(b"{}");
    let mut values = serde_json::Deserializer::from_slice(value).into_iter::<Content<'_>>();
    values.next().and_then(Result::ok).unwrap_or_default()
}

fn top(event: &StoredEvent) -> Value {
    serde_json::from_slice(&[b"{", event.client(), b"}"].concat()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures_util::FutureExt as _;
    use proptest::prelude::*;
    use ruma::events::room::power_levels::{RoomPowerLevels, RoomPowerLevelsSource};
    use ruma::push::PushConditionRoomCtx;
    use ruma::room_version_rules::AuthorizationRules;
    use ruma::serde::Raw;
    use ruma::{OwnedUserId, owned_room_id, owned_user_id};
    use serde_json::{Value, json};

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
            let levels = self.context().power_levels;
            Ok(levels.is_some_and(|levels| levels.has_sender_notification_permission(sender, key)))
        }
        fn display_name(&self) -> Result<String> {
            Ok(self.context().user_display_name)
        }
    }

    impl Room {
        /// The same for ruma.
        fn context(&self) -> PushConditionRoomCtx {
            let name = "Display Name".to_owned();
            let count = UInt::new_saturating(self.0);
            let mut context =
                PushConditionRoomCtx::new(owned_room_id!("!room:hs"), count, owned_user_id!("@me:hs"), name);
            let creators = [owned_user_id!("@boss:hs")];
            let levels = RoomPowerLevels::new(RoomPowerLevelsSource::None, &AuthorizationRules::V11, creators);
            context.power_levels = Some(levels.into());
            context
        }
    }

    fn stored(kind: &str, state_key: Option<&str>, sender: &str, content: &Value) -> StoredEvent {
        let mut client = json!({"content": content, "origin_server_ts": 1, "sender": sender, "type": kind});
        if let Some(state_key) = state_key {
            client["state_key"] = json!(state_key);
        }
        let client = client.to_string();
        NewEvent::plain(kind, state_key, sender, &client.as_bytes()[1..client.len() - 1]).stored().unwrap()
    }

    fn outcome(ruleset: &Ruleset, members: u64, event: &StoredEvent) -> Outcome {
        Rules::new(ruleset.clone()).decide(&Facts::new(event), &Room(members), &Fuel::default()).unwrap()
    }

    /// What ruma makes of it, without any short cut.
    fn oracle(ruleset: &Ruleset, members: u64, event: &StoredEvent) -> Outcome {
        let mut json: Value = serde_json::from_slice(&[b"{", event.client(), b"}"].concat()).unwrap();
        json["event_id"] = json!("$event");
        json["room_id"] = json!("!room:hs");
        let raw = Raw::<Value>::new(&json).unwrap();
        let context = Room(members).context();
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
            shared.decide(&facts, &other, &Fuel::default()).unwrap();
            let outcome = shared.decide(&facts, &room, &Fuel::default()).unwrap();
            prop_assert_eq!(outcome, oracle(&own, members, &event));
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
        fn display_name(&self) -> Result<String> {
            self.asked.set(self.asked.get() + 100);
            self.room.display_name()
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
            let outcome = rules.decide(&facts, &member, &Fuel::default()).unwrap();
            assert_eq!(outcome, Outcome { notify: true, highlight: nr == 7 }, "{nr}");
            asked += member.asked.get();
        }
        assert!(asked < 10, "the room was asked {asked} times");
    }

    #[test]
    fn an_event_is_taken_apart_only_where_rules_ask() {
        let deep = (0..90).fold(json!(1), |inner, n| json!({ format!("{n}{}", "k".repeat(300)): inner }));
        let content = json!({"body": "x", "deep": deep, "m.mentions": {"user_ids": [ME]}, "msgtype": "m.text"});
        let event = stored("m.room.message", None, "@other:hs", &content);
        let facts = Facts::new(&event);
        let outcome = Rules::default().decide(&facts, &Room(3), &Fuel::default()).unwrap();
        assert_eq!(outcome, Outcome { notify: true, highlight: true });
        assert!(facts.part("m.mentions").unwrap().value.get().is_some() && facts.top.get().is_none());
        assert!(facts.part("deep").unwrap().value.get().is_none());
    }

    #[test]
    fn paths_are_divided_by_dots_that_nothing_hides() {
        assert_eq!(keys_of(r"content.m\.mentions.user_ids"), ["content", "m.mentions", "user_ids"]);
        assert_eq!(keys_of(r"content.a\\.b\c."), ["content", r"a\", r"b\c", ""]);
        assert_eq!(keys_of(""), [""]);
    }

    #[test]
    fn rules_beyond_the_limits_match_nothing() {
        let rule = |id: String, conditions: Value| json!({"rule_id": id, "default": false, "enabled": true, "actions": ["notify"], "conditions": conditions});
        let decide = |rules: Value| {
            let ruleset: Ruleset = serde_json::from_value(rules).unwrap();
            outcome(&ruleset, 3, &stored("x", None, "@other:hs", &json!({"body": "aaa"}))).notify
        };
        let matching = |pattern: String| json!({"kind": "event_match", "key": "content.body", "pattern": pattern});
        assert!(decide(json!({"override": [rule("own".to_owned(), json!([matching("a*".to_owned())]))]})));
        let too_long = matching("*".repeat(MAX_PATTERN_BYTES + 1));
        assert!(!decide(json!({"override": [rule("own".to_owned(), json!([too_long]))]})));
        let too_many = vec![matching("*".to_owned()); MAX_CONDITIONS + 1];
        assert!(!decide(json!({"override": [rule("own".to_owned(), json!(too_many))]})));
        let never = json!([matching("b".to_owned())]);
        let mut rules: Vec<Value> = (0..MAX_RULES).map(|n| rule(format!("r{n}"), never.clone())).collect();
        rules.push(rule("last".to_owned(), json!([])));
        assert!(!decide(json!({"override": rules.clone()})));
        rules.remove(0);
        assert!(decide(json!({"override": rules})));
    }

    #[test]
    fn the_worst_rules_take_no_longer_than_their_fuel() {
        let deep = format!("content{}", ".a".repeat(500));
        let (is, contains) = ("event_property_is", "event_property_contains");
        let conditions = [
            json!({"kind": is, "key": deep, "value": 1}),
            json!({"kind": contains, "key": "content.many", "value": "x"}),
            json!({"kind": "event_match", "key": "content.upper", "pattern": "*x?"}),
            json!({"kind": "event_match", "key": "content.body", "pattern": "a?".repeat(500) + "b"}),
        ];
        let nested = (0..90).fold(json!(1), |inner, _| json!({"a": inner}));
        let content =
            json!({"a": nested["a"], "body": "a".repeat(20_000), "many": vec![1; 5_000], "upper": "É".repeat(9_000)});
        let event = stored("m.room.message", None, "@other:hs", &content);
        let (facts, fuel) = (Facts::new(&event), Fuel::default());
        let rules = (0..MAX_RULES).map(|n| {
            let condition = vec![&conditions[n % conditions.len()]; 1];
            json!({"rule_id": n.to_string(), "default": false, "enabled": true, "actions": [], "conditions": condition})
        });
        let rules: Vec<Value> = rules.collect();
        let ruleset: Ruleset = serde_json::from_value(json!({"override": rules.clone()})).unwrap();
        assert!(Rules::new(ruleset).matching(&facts, &Room(3), &fuel).unwrap().is_none());
        assert_eq!(fuel.taken(), 1 << 20);
        // The rules of the server count nevertheless.
        let mut all = serde_json::to_value(Ruleset::server_default(user_id!("@me:hs"))).unwrap();
        let own = all["override"].as_array_mut().unwrap();
        own.extend(rules);
        let ruleset: Ruleset = serde_json::from_value(all).unwrap();
        assert!(Rules::new(ruleset).decide(&facts, &Room(3), &Fuel::default()).unwrap().notify);
    }

    #[test]
    fn what_rules_weigh_is_about_what_they_hold() {
        let pattern = |len: usize| {
            let rule =
                json!({"rule_id": "w", "default": false, "enabled": true, "actions": [], "pattern": "x".repeat(len)});
            let ruleset: Ruleset = serde_json::from_value(json!({"content": [rule]})).unwrap();
            Rules::new(ruleset).weight()
        };
        assert_eq!(pattern(1_000) - pattern(10), 990);
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
