//! What a room is, in short, for those who think of joining it; and who gets to know that much.

use ::rooms::event::rules;
use ::rooms::membership::{allowed_rooms, join_rule};
use ruma::UserId;
use ruma::events::StateEventType;
use ruma::events::room::history_visibility::HistoryVisibility;
use ruma::room::{JoinRuleKind, RoomType};
use serde::Serialize;
use store::Read;

use super::public;
use super::read::RoomReader;
use crate::error::{Error, Result};
use crate::schema::{MembershipState, RoomNr, room_nr};
use crate::stored::Head;

/// A room in short. Its fields are those of the specification.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    pub room_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canonical_alias: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub avatar_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room_type: Option<String>,
    pub num_joined_members: u64,
    pub join_rule: String,
    /// For restricted rooms: whose members may join.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_room_ids: Option<Vec<String>>,
    pub world_readable: bool,
    pub guest_can_join: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encryption: Option<String>,
    pub room_version: String,
}

/// A room as it is now, in short.
pub fn of<R: Read>(reader: RoomReader<'_, R>, room: RoomNr, head: &Head) -> Result<Summary> {
    let public = public::summary(reader, room, head)?;
    let pdu = |kind: StateEventType| reader.state_pdu(room, head, head.state, &kind, "");
    let rule = pdu(StateEventType::RoomJoinRules)?;
    let restricted = matches!(public.join_rule, JoinRuleKind::Restricted | JoinRuleKind::KnockRestricted);
    let allowed = rule.filter(|_| restricted).map(|rule| allowed_rooms(&rule));
    let encryption = pdu(StateEventType::RoomEncryption)?;
    Ok(Summary {
        room_id: head.room_id.clone(),
        canonical_alias: public.canonical_alias.map(String::from),
        name: public.name,
        topic: public.topic,
        avatar_url: public.avatar_url.map(String::from),
        room_type: public.room_type.as_ref().map(RoomType::as_str).map(str::to_owned),
        num_joined_members: public.num_joined_members.into(),
        join_rule: public.join_rule.as_str().to_owned(),
        allowed_room_ids: allowed.map(|rooms| rooms.into_iter().map(String::from).collect()),
        world_readable: public.world_readable,
        guest_can_join: public.guest_can_join,
        encryption: encryption.and_then(|pdu| pdu.content_field("algorithm")),
        room_version: head.version.to_string(),
    })
}

/// Whether a user (or somebody who does not say who they are) may know of a room: because they are in it or invited,
/// could join or knock, or could read it.
pub fn may_know<R: Read>(
    reader: RoomReader<'_, R>,
    user_id: Option<&UserId>,
    room: RoomNr,
    head: &Head,
) -> Result<bool> {
    let is = |room: RoomNr, states: &[MembershipState]| -> Result<bool> {
        let Some(user_id) = user_id else { return Ok(false) };
        Ok(reader.membership(user_id.as_str(), room)?.is_some_and(|row| states.contains(&row.state)))
    };
    if is(room, &[MembershipState::Join, MembershipState::Invite])? {
        return Ok(true);
    }
    let pdu = |kind: StateEventType| reader.state_pdu(room, head, head.state, &kind, "");
    let rules = rules(&head.version).ok_or_else(|| Error::internal("a room of a version without rules"))?;
    let (rule, rules) = (pdu(StateEventType::RoomJoinRules)?, &rules.authorization);
    let by_room = match join_rule(rule.as_deref()) {
        JoinRuleKind::Public => return Ok(true),
        JoinRuleKind::Knock if rules.knocking => return Ok(true),
        JoinRuleKind::KnockRestricted if rules.knock_restricted_join_rule => return Ok(true),
        JoinRuleKind::Restricted => rules.restricted_join_rule,
        _ => false,
    };
    if let Some(rule) = rule.filter(|_| by_room) {
        for allowed in allowed_rooms(&rule) {
            if is(room_nr(&allowed), &[MembershipState::Join])? {
                return Ok(true);
            }
        }
    }
    let visibility = pdu(StateEventType::RoomHistoryVisibility)?;
    Ok(::rooms::visibility::of(visibility.as_deref()) == HistoryVisibility::WorldReadable)
}
