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
