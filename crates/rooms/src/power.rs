//! Who may do what in a room: power levels with the defaults of the spec and the creators of room
//! version 12. Not here: the authorization rules, which decide in the end (`auth`).

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use ruma::{
    Int, OwnedUserId, UserId,
    events::{TimelineEventType, room::power_levels::UserPowerLevel},
    int,
    room_version_rules::RoomVersionRules,
    state_res::events::{RoomCreateEvent, RoomPowerLevelsEvent, RoomPowerLevelsIntField},
};

use crate::event::Pdu;

/// Something that takes power, apart from sending an event of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Invite,
    Kick,
    Ban,
    Redact,
}

/// The distribution of power in one state of a room.
#[derive(Clone, Debug)]
pub struct Power<'a> {
    rules: &'a RoomVersionRules,
    creators: HashSet<OwnedUserId>,
    levels: Option<RoomPowerLevelsEvent<Arc<Pdu>>>,
}

impl<'a> Power<'a> {
    /// From the create event and, if there is one, the power levels event of a state.
    pub fn new(create: Arc<Pdu>, power_levels: Option<Arc<Pdu>>, rules: &'a RoomVersionRules) -> Self {
        let creators = RoomCreateEvent::new(create).creators(&rules.authorization);
        Self { rules, creators: creators.unwrap_or_default(), levels: power_levels.map(RoomPowerLevelsEvent::new) }
    }

    /// Whether somebody is a creator whose power is not a number.
    pub fn is_privileged_creator(&self, user_id: &UserId) -> bool {
        self.rules.authorization.explicitly_privilege_room_creators && self.creators.contains(user_id)
    }

    /// The creators whose power is not a number.
    pub fn privileged_creators(&self) -> impl Iterator<Item = &OwnedUserId> {
        let privileged = self.rules.authorization.explicitly_privilege_room_creators;
        self.creators.iter().filter(move |_| privileged)
    }

    /// The power of a user.
    pub fn of(&self, user_id: &UserId) -> UserPowerLevel {
        if self.is_privileged_creator(user_id) {
            return UserPowerLevel::Infinite;
        }
        let level = match &self.levels {
            Some(levels) => levels.user_power_level(user_id, &self.rules.authorization).unwrap_or(int!(0)),
            None if self.creators.contains(user_id) => int!(100),
            None => int!(0),
        };
        UserPowerLevel::Int(level)
    }

    /// The level it takes to do something.
    pub fn required(&self, action: Action) -> Int {
        self.field(match action {
            Action::Invite => RoomPowerLevelsIntField::Invite,
            Action::Kick => RoomPowerLevelsIntField::Kick,
            Action::Ban => RoomPowerLevelsIntField::Ban,
            Action::Redact => RoomPowerLevelsIntField::Redact,
        })
    }

    /// The level it takes to send an event.
    pub fn required_to_send(&self, kind: &TimelineEventType, is_state: bool) -> Int {
        let default =
            if is_state { RoomPowerLevelsIntField::StateDefault } else { RoomPowerLevelsIntField::EventsDefault };
        let state_key = is_state.then_some("");
        self.levels
            .as_ref()
            .and_then(|levels| levels.event_power_level(kind, state_key, &self.rules.authorization).ok())
            .unwrap_or_else(|| default.default_value())
    }

    /// The level it takes to notify with a keyword (`room`).
    pub fn required_to_notify(&self, key: &str) -> Int {
        let levels: BTreeMap<String, Int> = self
            .levels
            .as_ref()
            .and_then(|levels| levels.notifications(&self.rules.authorization).ok().flatten())
            .unwrap_or_default();
        levels.get(key).copied().unwrap_or(int!(50))
    }

    /// Whether a user has the power to do something.
    pub fn allows(&self, user_id: &UserId, action: Action) -> bool {
        self.of(user_id) >= UserPowerLevel::Int(self.required(action))
    }

    /// Whether a user has the power to send an event.
    pub fn allows_sending(&self, user_id: &UserId, kind: &TimelineEventType, is_state: bool) -> bool {
        self.of(user_id) >= UserPowerLevel::Int(self.required_to_send(kind, is_state))
    }

    /// Whether a user has the power to kick or ban another, who must have less.
    pub fn allows_against(&self, user_id: &UserId, action: Action, target: &UserId) -> bool {
        self.allows(user_id, action) && self.of(target) < self.of(user_id)
    }

    /// Whether a user has the power to lift a ban: that of banning and that of kicking.
    pub fn allows_unban(&self, user_id: &UserId, target: &UserId) -> bool {
        self.allows(user_id, Action::Ban) && self.allows_against(user_id, Action::Kick, target)
    }

    fn field(&self, field: RoomPowerLevelsIntField) -> Int {
        self.levels
            .as_ref()
            .and_then(|levels| levels.get_as_int_or_default(field, &self.rules.authorization).ok())
            .unwrap_or_else(|| field.default_value())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{RULES_10, RULES_11, RULES_12, create_v12, state};

    fn alice() -> &'static UserId {
        ruma::user_id!("@alice:a.test")
    }

    fn bob() -> &'static UserId {
        ruma::user_id!("@bob:a.test")
    }

    fn carol() -> &'static UserId {
        ruma::user_id!("@carol:a.test")
    }

    fn levels(content: Value) -> Option<Arc<Pdu>> {
        Some(state("m.room.power_levels", "@alice:a.test", "", content))
    }

    fn in_v11(content: Option<Value>) -> Power<'static> {
        let create = state("m.room.create", "@alice:a.test", "", json!({}));
        Power::new(create, content.and_then(levels), RULES_11)
    }

    #[test]
    fn pitfall_065_defaults_are_the_same_without_the_key_and_without_the_event() {
        for power in [in_v11(None), in_v11(Some(json!({})))] {
            assert_eq!(power.of(bob()), UserPowerLevel::Int(int!(0)));
            assert_eq!(power.required_to_send(&"m.room.topic".into(), true), int!(50));
            assert_eq!(power.required_to_send(&"m.room.message".into(), false), int!(0));
            assert_eq!(power.required(Action::Invite), int!(0));
            assert_eq!(power.required(Action::Kick), int!(50));
            assert_eq!(power.required(Action::Ban), int!(50));
            assert_eq!(power.required(Action::Redact), int!(50));
            assert_eq!(power.required_to_notify("room"), int!(50));
        }
        // Only without the event is there something special about the creator.
        assert_eq!(in_v11(None).of(alice()), UserPowerLevel::Int(int!(100)));
        assert_eq!(in_v11(Some(json!({}))).of(alice()), UserPowerLevel::Int(int!(0)));
    }

    #[test]
    fn pitfall_065_creators_of_version_12_have_power_without_end() {
        let create = create_v12("@alice:a.test", json!({"additional_creators": ["@bob:a.test"]}));
        for levels in [None, levels(json!({"users": {"@carol:a.test": 9000}}))] {
            let power = Power::new(create.clone(), levels, RULES_12);
            assert_eq!(power.of(alice()), UserPowerLevel::Infinite);
            assert_eq!(power.of(bob()), UserPowerLevel::Infinite);
            assert!(power.of(carol()) < UserPowerLevel::Infinite);
            assert!(!power.allows_against(carol(), Action::Kick, bob()));
            assert!(!power.allows_against(alice(), Action::Kick, bob()));
        }
    }

    #[test]
    fn pitfall_065_before_version_10_levels_may_be_strings() {
        let create = state("m.room.create", "@alice:a.test", "", json!({"creator": "@alice:a.test"}));
        let content = json!({"users": {"@bob:a.test": "60"}, "ban": "70"});
        let rules = &RoomVersionRules::V9;
        let power = Power::new(create.clone(), levels(content.clone()), rules);
        assert_eq!(power.of(bob()), UserPowerLevel::Int(int!(60)));
        assert_eq!(power.required(Action::Ban), int!(70));
        let power = Power::new(create, levels(content), RULES_10);
        assert_eq!(power.of(bob()), UserPowerLevel::Int(int!(0)));
    }

    #[test]
    fn events_and_notifications_have_levels_of_their_own() {
        let power = in_v11(Some(json!({
            "events": {"m.room.topic": 10}, "state_default": 30, "events_default": 5,
            "notifications": {"room": 20}, "users_default": 10,
        })));
        assert!(power.allows_sending(bob(), &"m.room.topic".into(), true));
        assert!(!power.allows_sending(bob(), &"m.room.name".into(), true));
        assert!(power.allows_sending(bob(), &"m.room.name".into(), false));
        assert_eq!(power.required_to_notify("room"), int!(20));
    }
}
