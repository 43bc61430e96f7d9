//! Joining, leaving, inviting, kicking, banning, knocking: what each of them presupposes, its
//! event, and who can vouch for a restricted join. Not here: talking to other servers about it.

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, MilliSecondsSinceUnixEpoch, OwnedRoomId, OwnedUserId, RoomId, UserId,
    events::room::member::MembershipState, room::JoinRuleKind, room_version_rules::RoomVersionRules,
};
use serde::Deserialize;

use crate::{
    build::Draft,
    event::Pdu,
    power::{Action, Power},
};

/// Something done to a membership, by the user themselves or by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Join,
    Leave,
    Knock,
    Invite,
    Kick,
    Ban,
    Unban,
}

impl Act {
    /// The membership the target has afterwards.
    pub fn result(self) -> MembershipState {
        match self {
            Self::Join => MembershipState::Join,
            Self::Leave | Self::Kick | Self::Unban => MembershipState::Leave,
            Self::Knock => MembershipState::Knock,
            Self::Invite => MembershipState::Invite,
            Self::Ban => MembershipState::Ban,
        }
    }
}

/// Why an act is impossible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    #[error("you are not in the room")]
    ActorNotJoined,
    #[error("the user is banned from the room")]
    Banned,
    #[error("the user is already in the room")]
    AlreadyJoined,
    #[error("the user is not in the room")]
    TargetNotThere,
    #[error("the user is not banned")]
    NotBanned,
    #[error("this takes more power than you have")]
    NoPower,
    #[error("joining this room takes an invite")]
    NotInvited,
    #[error("this room does not take knocks")]
    NoKnocking,
}

/// What is to be done about a wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Make the event.
    Send,
    /// It is already so.
    Nothing,
}

/// The membership a member event gives; `leave` if there is no event.
pub fn of(member: Option<&Pdu>) -> MembershipState {
    member.and_then(|pdu| pdu.content_field::<MembershipState>("membership")).unwrap_or(MembershipState::Leave)
}

/// Whether somebody may do this to another (or, to join, leave or knock, to themselves), as far as
/// memberships and power decide it.
pub fn check(
    act: Act,
    actor: (&UserId, &MembershipState),
    target: (&UserId, &MembershipState),
    power: &Power<'_>,
) -> Result<Plan, Obstacle> {
    use MembershipState as M;
    let (actor_id, actor_is) = actor;
    let (target_id, target_is) = target;
    let on_another = !matches!(act, Act::Join | Act::Leave | Act::Knock);
    if on_another && *actor_is != M::Join {
        return Err(Obstacle::ActorNotJoined);
    }
    let with_power = |allowed: bool| if allowed { Ok(Plan::Send) } else { Err(Obstacle::NoPower) };
    match (act, target_is) {
        (Act::Join | Act::Knock | Act::Invite, M::Ban) => Err(Obstacle::Banned),
        (Act::Join, M::Join) => Ok(Plan::Nothing),
        (Act::Join, _) => Ok(Plan::Send),
        (Act::Leave, M::Join | M::Invite | M::Knock) => Ok(Plan::Send),
        (Act::Leave, M::Ban) => Err(Obstacle::Banned),
        (Act::Leave, _) => Ok(Plan::Nothing),
        (Act::Knock | Act::Invite, M::Join) => Err(Obstacle::AlreadyJoined),
        (Act::Knock, M::Invite) => Err(Obstacle::AlreadyJoined),
        (Act::Knock, M::Knock) => Ok(Plan::Nothing),
        (Act::Knock, _) => Ok(Plan::Send),
        (Act::Invite, _) => with_power(power.allows(actor_id, Action::Invite)),
        (Act::Kick, M::Join | M::Invite | M::Knock) => {
            with_power(power.allows_against(actor_id, Action::Kick, target_id))
        }
        (Act::Kick, _) => Err(Obstacle::TargetNotThere),
        (Act::Ban, M::Ban) => Ok(Plan::Nothing),
        (Act::Ban, _) => with_power(power.allows_against(actor_id, Action::Ban, target_id)),
        (Act::Unban, M::Ban) => with_power(power.allows_unban(actor_id, target_id)),
        (Act::Unban, _) => Err(Obstacle::NotBanned),
    }
}

/// What to put into a member event besides the membership.
#[derive(Clone, Debug, Default)]
pub struct Details {
    /// `displayname` and `avatar_url` of the target; for join, invite and knock.
    pub profile: CanonicalJsonObject,
    pub reason: Option<String>,
    pub is_direct: bool,
    /// Who vouches for a restricted join.
    pub authoriser: Option<OwnedUserId>,
}

/// The event of an act.
pub fn draft(act: Act, actor: OwnedUserId, target: &UserId, details: Details, at: MilliSecondsSinceUnixEpoch) -> Draft {
    let shows_profile = matches!(act, Act::Join | Act::Invite | Act::Knock);
    let mut content = if shows_profile { details.profile } else { CanonicalJsonObject::new() };
    let mut put = |name: &str, value: CanonicalJsonValue| content.insert(name.to_owned(), value);
    put("membership", CanonicalJsonValue::String(act.result().to_string()));
    if let Some(reason) = details.reason {
        put("reason", CanonicalJsonValue::String(reason));
    }
    if details.is_direct && act == Act::Invite {
        put("is_direct", CanonicalJsonValue::Bool(true));
    }
    if let Some(authoriser) = details.authoriser
        && act == Act::Join
    {
        let authoriser = CanonicalJsonValue::String(authoriser.to_string());
        put("join_authorised_via_users_server", authoriser);
    }
    Draft::state("m.room.member", target.as_str(), content, actor, at)
}

/// What it takes to join, for one user at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JoinNeeds {
    /// Nothing further.
    Nothing,
    /// To be in one of these rooms, and a member with the power to invite who vouches for it.
    Authoriser { rooms: Vec<OwnedRoomId> },
}

/// What the join rule asks of a user who wants in. Unknown rules ask for an invite.
pub fn join_needs(
    join_rules: Option<&Pdu>,
    current: &MembershipState,
    rules: &RoomVersionRules,
) -> Result<JoinNeeds, Obstacle> {
    match current {
        MembershipState::Ban => return Err(Obstacle::Banned),
        // With an invite nobody has to vouch, and naming somebody would make their server's
        // signature necessary.
        MembershipState::Join | MembershipState::Invite => return Ok(JoinNeeds::Nothing),
        _ => {}
    }
    let kind = join_rule(join_rules);
    let by_room = match kind {
        JoinRuleKind::Public => return Ok(JoinNeeds::Nothing),
        JoinRuleKind::Restricted => rules.authorization.restricted_join_rule,
        JoinRuleKind::KnockRestricted => rules.authorization.knock_restricted_join_rule,
        _ => false,
    };
    if by_room {
        Ok(JoinNeeds::Authoriser { rooms: join_rules.map(allowed_rooms).unwrap_or_default() })
    } else {
        Err(Obstacle::NotInvited)
    }
}

/// Whether the room takes knocks.
pub fn check_knock(join_rules: Option<&Pdu>, rules: &RoomVersionRules) -> Result<(), Obstacle> {
    let taken = match join_rule(join_rules) {
        JoinRuleKind::Knock => rules.authorization.knocking,
        JoinRuleKind::KnockRestricted => rules.authorization.knock_restricted_join_rule,
        _ => false,
    };
    if taken { Ok(()) } else { Err(Obstacle::NoKnocking) }
}

/// The join rule of a state; `invite` if it has none.
pub fn join_rule(join_rules: Option<&Pdu>) -> JoinRuleKind {
    join_rules.and_then(|pdu| pdu.content_field::<JoinRuleKind>("join_rule")).unwrap_or(JoinRuleKind::Invite)
}

/// The rooms whose members a restricted room lets in. Conditions we do not know are passed over.
pub fn allowed_rooms(join_rules: &Pdu) -> Vec<OwnedRoomId> {
    #[derive(Deserialize)]
    struct Condition {
        #[serde(rename = "type")]
        kind: String,
        room_id: Option<String>,
    }
    let conditions: Vec<serde_json::Value> = join_rules.content_field("allow").unwrap_or_default();
    conditions
        .into_iter()
        .filter_map(|condition| serde_json::from_value::<Condition>(condition).ok())
        .filter(|condition| condition.kind == "m.room_membership")
        .filter_map(|condition| RoomId::parse(condition.room_id?).ok())
        .collect()
}

/// Who vouches for a restricted join: of the users of this server who are joined, the one with the
/// most power, if that suffices to invite. Of several the first by name, so that the choice does
/// not depend on the order they come in.
pub fn choose_authoriser(
    joined_local_users: impl IntoIterator<Item = OwnedUserId>,
    power: &Power<'_>,
) -> Option<OwnedUserId> {
    joined_local_users
        .into_iter()
        .filter(|user| power.allows(user, Action::Invite))
        .max_by(|a, b| power.of(a).cmp(&power.of(b)).then_with(|| b.cmp(a)))
}
