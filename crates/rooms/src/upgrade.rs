//! Replacing a room by one of another version: what goes over into the new room, and what is left of power in the old.
//! Not here: aliases, the directory, and what users keep about rooms.

use std::collections::BTreeSet;

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, Int, OwnedUserId, RoomId, UserId, int,
    room_version_rules::RoomVersionRules,
};

use crate::create::CREATOR_LEVEL;

/// The state that goes over into the new room, besides the create event, power levels, bans and the children of a
/// space. Their state key is empty.
pub const TRANSFERRED: [&str; 8] = [
    "m.room.join_rules",
    "m.room.history_visibility",
    "m.room.guest_access",
    "m.room.encryption",
    "m.room.server_acl",
    "m.room.name",
    "m.room.topic",
    "m.room.avatar",
];

/// What the new room's create event holds besides what every create event does.
pub fn create_content(
    old: &CanonicalJsonObject,
    predecessor: &RoomId,
    last_event: Option<&EventId>,
    additional_creators: &[OwnedUserId],
    rules: &RoomVersionRules,
) -> CanonicalJsonObject {
    let kept = |name: &str| Some((name.to_owned(), old.get(name)?.clone()));
    let mut content: CanonicalJsonObject = ["type", "m.federate"].into_iter().filter_map(kept).collect();
    let mut from = CanonicalJsonObject::from([("room_id".to_owned(), text(predecessor.as_str()))]);
    if let Some(event_id) = last_event {
        from.insert("event_id".to_owned(), text(event_id.as_str()));
    }
    content.insert("predecessor".to_owned(), from.into());
    if rules.authorization.additional_room_creators && !additional_creators.is_empty() {
        let creators = additional_creators.iter().map(|user| text(user.as_str())).collect();
        content.insert("additional_creators".to_owned(), CanonicalJsonValue::Array(creators));
    }
    content
}

/// The power levels of the new room: while it is being made, and then for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Levels {
    /// With enough for its maker to put everything in.
    pub first: CanonicalJsonObject,
    pub last: CanonicalJsonObject,
}

/// What becomes of a room's power levels in the new room. `old_creators` are those of the old room whose power was not
/// a number, `creators` those of the new one.
pub fn levels(
    old: &CanonicalJsonObject,
    maker: &UserId,
    old_creators: &BTreeSet<OwnedUserId>,
    creators: &BTreeSet<OwnedUserId>,
) -> Levels {
    let mut last = in_numbers(old);
    let mut users = object(&last, "users");
    let highest = users.values().filter_map(number).max().unwrap_or_default().max(CREATOR_LEVEL.into());
    for creator in old_creators {
        users.insert(creator.to_string(), highest.into());
    }
    users.retain(|user, _| !creators.iter().any(|creator| creator.as_str() == user));
    last.insert("users".to_owned(), users.clone().into());

    let mut first = last.clone();
    if !creators.contains(maker) {
        let needed = object(&last, "events").values().chain(last.values()).filter_map(number).max();
        let own = users.get(maker.as_str()).and_then(number).unwrap_or_default();
        users.insert(maker.to_string(), own.max(needed.unwrap_or_default()).max(highest).into());
        first.insert("users".to_owned(), users.into());
    }
    Levels { first, last }
}

/// The power levels of the old room afterwards: nobody who is not somebody there speaks or invites any more. `None` if
/// that is so already.
pub fn tightened(old: &CanonicalJsonObject) -> Option<CanonicalJsonObject> {
    let level = |name: &str| old.get(name).and_then(number);
    let least = level("users_default").unwrap_or_default().saturating_add(int!(1)).max(int!(50));
    let mut levels = old.clone();
    for name in ["events_default", "invite"] {
        if level(name).unwrap_or_default() < least {
            levels.insert(name.to_owned(), least.into());
        }
    }
    (levels != *old).then_some(levels)
}

/// Early versions let levels be texts.
fn in_numbers(levels: &CanonicalJsonObject) -> CanonicalJsonObject {
    let convert = |(name, value): (&String, &CanonicalJsonValue)| {
        let value = match value {
            CanonicalJsonValue::Object(object) => in_numbers(object).into(),
            other => number(other).map_or_else(|| other.clone(), Into::into),
        };
        (name.clone(), value)
    };
    levels.iter().map(convert).collect()
}

fn object(levels: &CanonicalJsonObject, name: &str) -> CanonicalJsonObject {
    levels.get(name).and_then(CanonicalJsonValue::as_object).cloned().unwrap_or_default()
}

fn number(value: &CanonicalJsonValue) -> Option<Int> {
    match value {
        CanonicalJsonValue::Integer(number) => Some(*number),
        CanonicalJsonValue::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

fn text(text: &str) -> CanonicalJsonValue {
    CanonicalJsonValue::String(text.to_owned())
}

#[cfg(test)]
mod tests {
    use ruma::{owned_user_id, room_id};
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{RULES_11, RULES_12};

    fn object(value: Value) -> CanonicalJsonObject {
        serde_json::from_value(value).unwrap()
    }

    fn plain(content: &CanonicalJsonObject) -> Value {
        serde_json::to_value(content).unwrap()
    }

    #[test]
    fn pitfall_067_the_new_room_is_of_the_old_kind_and_says_where_it_comes_from() {
        let old = object(json!({
            "type": "m.space", "m.federate": false, "creator": "@a:x", "room_version": "9", "predecessor": {},
            "additional_creators": ["@z:x"],
        }));
        let more = [owned_user_id!("@b:x")];
        let from = room_id!("!old:x");
        let content = create_content(&old, from, Some(ruma::event_id!("$last")), &more, RULES_11);
        let predecessor = json!({"room_id": "!old:x", "event_id": "$last"});
        assert_eq!(plain(&content), json!({"type": "m.space", "m.federate": false, "predecessor": predecessor}));
        let content = create_content(&object(json!({})), from, None, &more, RULES_12);
        let predecessor = json!({"room_id": "!old:x"});
        assert_eq!(plain(&content), json!({"predecessor": predecessor, "additional_creators": ["@b:x"]}));
    }

    #[test]
    fn pitfall_067_creators_have_no_level_and_lose_none_when_there_are_no_creators() {
        let (alice, bob) = (owned_user_id!("@alice:x"), owned_user_id!("@bob:x"));
        let old = object(json!({"users": {"@alice:x": 100, "@bob:x": 90, "@carol:x": 50}, "ban": "60"}));
        let none = BTreeSet::new();
        let made = levels(&old, &alice, &none, &BTreeSet::from([alice.clone(), bob.clone()]));
        assert_eq!(plain(&made.last), json!({"users": {"@carol:x": 50}, "ban": 60}));
        assert_eq!(made.first, made.last);
        let back = levels(&object(json!({"users": {"@bob:x": 120}})), &alice, &BTreeSet::from([alice.clone()]), &none);
        assert_eq!(plain(&back.last), json!({"users": {"@alice:x": 120, "@bob:x": 120}}));
    }

    #[test]
    fn the_maker_has_what_it_takes_for_as_long_as_it_takes() {
        let mod_ = owned_user_id!("@mod:x");
        let old = object(json!({"users": {"@mod:x": 50}, "events": {"m.room.server_acl": 110}, "state_default": 60}));
        let made = levels(&old, &mod_, &BTreeSet::new(), &BTreeSet::new());
        assert_eq!((&made.last, &plain(&made.first)["users"]), (&old, &json!({"@mod:x": 110})));
    }

    #[test]
    fn pitfall_067_the_old_room_falls_silent() {
        let tighten = |old: Value| tightened(&object(old)).map(|levels| plain(&levels));
        assert_eq!(tighten(json!({})), Some(json!({"events_default": 50, "invite": 50})));
        let old = json!({"users_default": 60, "invite": 80, "ban": 50});
        assert_eq!(tighten(old), Some(json!({"users_default": 60, "invite": 80, "ban": 50, "events_default": 61})));
        assert_eq!(tighten(json!({"events_default": 50, "invite": 100})), None);
    }
}
