//! What a redaction leaves of an event, and who may redact. Not here: which events were redacted.

use ruma::{
    CanonicalJsonObject, UserId,
    canonical_json::{redact_content_in_place, redact_in_place},
    room_version_rules::RoomVersionRules,
};
use serde_json::value::{RawValue, to_raw_value};

use crate::{
    event::{FormatError, canonical},
    power::{Action, Power},
};

/// What is left of a whole event.
pub fn apply(mut object: CanonicalJsonObject, rules: &RoomVersionRules) -> Result<CanonicalJsonObject, FormatError> {
    redact_in_place(&mut object, &rules.redaction, None).map_err(|error| FormatError::Format(error.to_string()))?;
    Ok(object)
}

/// What is left of the content of an event.
pub fn content(kind: &str, content: &RawValue, rules: &RoomVersionRules) -> Result<Box<RawValue>, FormatError> {
    let mut object: CanonicalJsonObject = serde_json::from_str(content.get())?;
    redact_content_in_place(&mut object, &rules.redaction, kind);
    Ok(to_raw_value(&object)?)
}

/// What is left of the client part of an event (see [`crate::event::Parts`]).
pub fn client_part(client: &[u8], rules: &RoomVersionRules) -> Result<Vec<u8>, FormatError> {
    let mut bytes = Vec::with_capacity(client.len() + 2);
    bytes.push(b'{');
    bytes.extend_from_slice(client);
    bytes.push(b'}');
    let redacted = canonical(&apply(serde_json::from_slice(&bytes)?, rules)?);
    let members = redacted.strip_prefix(b"{").and_then(|rest| rest.strip_suffix(b"}"));
    Ok(members.unwrap_or_default().to_vec())
}

/// Whether a redaction takes effect on an event of the same room: its sender has the power to
/// redact, or is of the server the event came from. The authorization rules do not ask this, so a
/// redaction can be in the room without ever taking effect.
pub fn takes_effect(redacter: &UserId, target_sender: &UserId, power: &Power<'_>) -> bool {
    redacter.server_name() == target_sender.server_name() || power.allows(redacter, Action::Redact)
}

/// Whether a local user may redact an event: their own, or with the power to redact.
pub fn may_redact(user_id: &UserId, target_sender: &UserId, power: &Power<'_>) -> bool {
    user_id == target_sender || power.allows(user_id, Action::Redact)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{RULES_10, RULES_11, object, state};

    fn left(kind: &str, given: Value, rules: &RoomVersionRules) -> Value {
        let given = to_raw_value(&given).unwrap();
        serde_json::from_str(content(kind, &given, rules).unwrap().get()).unwrap()
    }

    #[test]
    fn what_is_left_depends_on_the_version() {
        let create = json!({"creator": "@a:b", "room_version": "10", "m.federate": false});
        assert_eq!(left("m.room.create", create.clone(), RULES_10), json!({"creator": "@a:b"}));
        assert_eq!(left("m.room.create", create.clone(), RULES_11), create);
        let levels = json!({"invite": 1, "ban": 2, "notifications": {}});
        assert_eq!(left("m.room.power_levels", levels.clone(), RULES_10), json!({"ban": 2}));
        assert_eq!(left("m.room.power_levels", levels, RULES_11), json!({"ban": 2, "invite": 1}));
        let redaction = json!({"redacts": "$x", "reason": "r"});
        assert_eq!(left("m.room.redaction", redaction.clone(), RULES_10), json!({}));
        assert_eq!(left("m.room.redaction", redaction, RULES_11), json!({"redacts": "$x"}));
        let join = json!({"membership": "join", "displayname": "d", "join_authorised_via_users_server": "@a:b"});
        let kept = json!({"membership": "join", "join_authorised_via_users_server": "@a:b"});
        assert_eq!(left("m.room.member", join.clone(), &RoomVersionRules::V9), kept);
        assert_eq!(left("m.room.member", join, &RoomVersionRules::V8), json!({"membership": "join"}));
        let rules = json!({"join_rule": "restricted", "allow": []});
        assert_eq!(left("m.room.join_rules", rules.clone(), &RoomVersionRules::V8), rules);
        assert_eq!(left("m.room.message", json!({"body": "b"}), RULES_11), json!({}));
    }

    #[test]
    fn the_client_part_is_redacted_like_the_event() {
        let event = object(json!({
            "content": {"body": "b"}, "origin_server_ts": 1, "sender": "@u:a.test",
            "sticky": {"duration_ms": 1}, "type": "m.room.message",
        }));
        let parts = crate::event::split_for_storage(&event, RULES_11);
        assert_eq!(
            String::from_utf8(client_part(&parts.client, RULES_11).unwrap()).unwrap(),
            r#""content":{},"origin_server_ts":1,"sender":"@u:a.test","type":"m.room.message""#
        );
    }

    #[test]
    fn pitfall_066_a_redaction_takes_effect_by_power_or_by_server() {
        let create = state("m.room.create", "@admin:a.test", "", json!({}));
        let levels = json!({"users": {"@mod:c.test": 50}});
        let levels = state("m.room.power_levels", "@admin:a.test", "", levels);
        let power = Power::new(create, Some(levels), RULES_11);
        let user = |id: &str| UserId::parse(id).unwrap();
        let effect = |by: &str, of: &str| takes_effect(&user(by), &user(of), &power);
        assert!(effect("@u:a.test", "@u:a.test"));
        assert!(effect("@other:a.test", "@u:a.test"));
        assert!(!effect("@u:b.test", "@u:a.test"));
        assert!(effect("@mod:c.test", "@u:a.test"));
        assert!(!may_redact(&user("@other:a.test"), &user("@u:a.test"), &power));
        assert!(may_redact(&user("@mod:c.test"), &user("@u:a.test"), &power));
    }
}
