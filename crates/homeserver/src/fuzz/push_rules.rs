//! Push rules and an event to judge by them: what the prepared rules say must be what ruma says.

use futures_util::FutureExt as _;
use ruma::events::room::power_levels::{RoomPowerLevels, RoomPowerLevelsSource};
use ruma::power_levels::NotificationPowerLevelsKey;
use ruma::push::{PushConditionRoomCtx, Ruleset};
use ruma::room_version_rules::AuthorizationRules;
use ruma::serde::Raw;
use ruma::{UInt, UserId, owned_room_id, owned_user_id, user_id};
use serde_json::Value;

use super::event::stored;
use super::parts;
use crate::error::Result;
use crate::push::pattern::{Fuel, MAX_PATTERN_BYTES};
use crate::push::rules::{Facts, MAX_CONDITIONS, Outcome, RoomFacts, Rules};

/// The rules (JSON), the type, the state key and the content of the event; one after the other.
pub(super) fn run(input: &[u8]) {
    let mut parts = parts(input);
    let (Some(json), Some(event)) = (parts.next(), parts.next()) else { return };
    let Ok(rules) = serde_json::from_slice::<Ruleset>(json) else { return };
    let comparable = serde_json::from_slice(json).is_ok_and(|json| is_comparable(&json));
    let Some((kind, content)) = std::str::from_utf8(event).ok().and_then(|event| event.split_once('\n')) else {
        return;
    };
    let (kind, state_key) = kind.split_once(' ').map_or((kind, None), |(kind, key)| (kind, Some(key)));
    let members = 1 + content.len() as u64 % 4;
    for sender in ["@other:hs.test", "@boss:hs.test"] {
        let Some(event) = stored(kind, state_key, sender, content) else { return };
        let room = Room(members);
        let fuel = Fuel::default();
        let said = Rules::new(rules.clone()).decide(&Facts::new(&event), &room, &fuel);
        assert!(fuel.taken() < MOST_STEPS, "{} steps", fuel.taken());
        // In ruma's, any text ends with its line.
        if !comparable || content.contains("\\n") {
            continue;
        }
        let Ok(expected) = by_ruma(&rules, &room, event.client()) else { return };
        assert_eq!(said.ok(), Some(expected), "{kind} of {sender}");
    }
}

/// Matching has a bound of its own, which no input of the fuzzer's size should reach by far.
const MOST_STEPS: u64 = 2 << 20;

/// Whether the rules are within the limits beyond which they match nothing here, and without wildcards side by side, the
/// second of which ruma takes for a plain character where whole words are asked for.
fn is_comparable(json: &Value) -> bool {
    match json {
        Value::String(text) => {
            let wild = |byte: &u8| matches!(byte, b'*' | b'?');
            text.len() <= MAX_PATTERN_BYTES && !text.as_bytes().windows(2).any(|pair| pair.iter().all(wild))
        }
        Value::Array(items) => items.len() <= MAX_CONDITIONS && items.iter().all(is_comparable),
        Value::Object(fields) => fields.values().all(is_comparable),
        _ => true,
    }
}

struct Room(u64);

impl RoomFacts for Room {
    fn user_id(&self) -> &UserId {
        user_id!("@me:hs.test")
    }

    fn room_id(&self) -> &str {
        "!room:hs.test"
    }

    fn joined_members(&self) -> u64 {
        self.0
    }

    fn may_notify(&self, sender: &str, key: &NotificationPowerLevelsKey) -> Result<bool> {
        let sender = <&UserId>::try_from(sender)?;
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
        let (me, name) = (owned_user_id!("@me:hs.test"), "Display Name".to_owned());
        let mut context =
            PushConditionRoomCtx::new(owned_room_id!("!room:hs.test"), UInt::new_saturating(self.0), me, name);
        let creators = [owned_user_id!("@boss:hs.test")];
        let levels = RoomPowerLevels::new(RoomPowerLevelsSource::None, &AuthorizationRules::V11, creators);
        context.power_levels = Some(levels.into());
        context
    }
}

/// Without any short cut.
fn by_ruma(rules: &Ruleset, room: &Room, client: &[u8]) -> Result<Outcome> {
    let mut json: Value = serde_json::from_slice(&[b"{", client, b"}"].concat())?;
    if let Some(json) = json.as_object_mut() {
        json.insert("event_id".to_owned(), "$event".into());
        json.insert("room_id".to_owned(), room.room_id().into());
    }
    let raw = Raw::<Value>::new(&json)?;
    let context = room.context();
    let found = rules.get_match(&raw, &context).now_or_never().flatten();
    Ok(found.map_or_else(Outcome::default, |rule| Outcome {
        notify: rule.triggers_notification(),
        highlight: rule.triggers_highlight(),
    }))
}
