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

#[cfg(test)]
mod tests {
    use MembershipState as M;
    use serde_json::json;

    use super::*;
    use crate::testing::{RULES_10, RULES_11, object, state};

    fn admin() -> &'static UserId {
        ruma::user_id!("@admin:a.test")
    }

    fn moderator() -> &'static UserId {
        ruma::user_id!("@mod:a.test")
    }

    fn user() -> &'static UserId {
        ruma::user_id!("@user:a.test")
    }

    fn power(content: serde_json::Value) -> Power<'static> {
        let create = state("m.room.create", "@admin:a.test", "", json!({}));
        let levels = state("m.room.power_levels", "@admin:a.test", "", content);
        Power::new(create, Some(levels), RULES_11)
    }

    fn usual() -> Power<'static> {
        power(json!({"users": {"@admin:a.test": 100, "@mod:a.test": 50}, "invite": 50}))
    }

    #[test]
    fn pitfall_064_nobody_acts_on_their_equals() {
        let power = usual();
        let kick = |actor, target| check(Act::Kick, (actor, &M::Join), (target, &M::Join), &power);
        assert_eq!(kick(moderator(), user()), Ok(Plan::Send));
        assert_eq!(kick(moderator(), admin()), Err(Obstacle::NoPower));
        assert_eq!(kick(moderator(), moderator()), Err(Obstacle::NoPower));
        assert_eq!(kick(user(), user()), Err(Obstacle::NoPower));
        let ban = |actor, target| check(Act::Ban, (actor, &M::Join), (target, &M::Leave), &power);
        assert_eq!(ban(moderator(), user()), Ok(Plan::Send));
        assert_eq!(ban(moderator(), admin()), Err(Obstacle::NoPower));
    }

    #[test]
    fn pitfall_064_lifting_a_ban_takes_the_power_to_ban_and_to_kick() {
        for (ban, kick, expected) in
            [(50, 50, Ok(Plan::Send)), (60, 50, Err(Obstacle::NoPower)), (50, 60, Err(Obstacle::NoPower))]
        {
            let power = power(json!({"users": {"@mod:a.test": 50}, "ban": ban, "kick": kick}));
            let unban = check(Act::Unban, (moderator(), &M::Join), (user(), &M::Ban), &power);
            assert_eq!(unban, expected, "ban {ban} kick {kick}");
        }
    }

    #[test]
    fn pitfall_064_a_kick_takes_back_an_invite() {
        let kick = check(Act::Kick, (moderator(), &M::Join), (user(), &M::Invite), &usual());
        assert_eq!(kick, Ok(Plan::Send));
    }

    #[test]
    fn what_is_so_already_and_what_cannot_be() {
        let power = usual();
        let by_self = |act, is| check(act, (user(), &is), (user(), &is), &power);
        let by_mod = |act, is| check(act, (moderator(), &M::Join), (user(), &is), &power);
        assert_eq!(by_self(Act::Join, M::Join), Ok(Plan::Nothing));
        assert_eq!(by_self(Act::Join, M::Ban), Err(Obstacle::Banned));
        assert_eq!(by_self(Act::Leave, M::Invite), Ok(Plan::Send));
        assert_eq!(by_self(Act::Leave, M::Leave), Ok(Plan::Nothing));
        assert_eq!(by_self(Act::Leave, M::Ban), Err(Obstacle::Banned));
        assert_eq!(by_self(Act::Knock, M::Join), Err(Obstacle::AlreadyJoined));
        assert_eq!(by_mod(Act::Invite, M::Join), Err(Obstacle::AlreadyJoined));
        assert_eq!(by_mod(Act::Invite, M::Ban), Err(Obstacle::Banned));
        assert_eq!(by_mod(Act::Invite, M::Knock), Ok(Plan::Send));
        assert_eq!(by_mod(Act::Kick, M::Leave), Err(Obstacle::TargetNotThere));
        assert_eq!(by_mod(Act::Unban, M::Leave), Err(Obstacle::NotBanned));
        assert_eq!(by_mod(Act::Ban, M::Ban), Ok(Plan::Nothing));
        let outside = check(Act::Invite, (moderator(), &M::Leave), (user(), &M::Leave), &power);
        assert_eq!(outside, Err(Obstacle::ActorNotJoined));
        let weak = check(Act::Invite, (user(), &M::Join), (moderator(), &M::Leave), &power);
        assert_eq!(weak, Err(Obstacle::NoPower));
    }

    fn rule(rule: &str) -> std::sync::Arc<Pdu> {
        state(
            "m.room.join_rules",
            "@admin:a.test",
            "",
            json!({
                "join_rule": rule,
                "allow": [
                    {"type": "m.room_membership", "room_id": "!space:a.test"},
                    {"type": "org.example.other", "room_id": "!x:a.test"},
                    {"type": "m.room_membership"},
                    17,
                ],
            }),
        )
    }

    #[test]
    fn pitfall_060_an_invite_makes_an_authoriser_needless() {
        let restricted = rule("restricted");
        let needs = |is: &M| join_needs(Some(&restricted), is, RULES_10);
        assert_eq!(needs(&M::Invite), Ok(JoinNeeds::Nothing));
        assert_eq!(needs(&M::Join), Ok(JoinNeeds::Nothing));
        assert_eq!(needs(&M::Ban), Err(Obstacle::Banned));
        let rooms = vec!["!space:a.test".try_into().unwrap()];
        assert_eq!(needs(&M::Leave), Ok(JoinNeeds::Authoriser { rooms: rooms.clone() }));
        assert_eq!(needs(&M::Knock), Ok(JoinNeeds::Authoriser { rooms }));
    }

    #[test]
    fn join_rules_a_version_does_not_know_ask_for_an_invite() {
        let needs = |name: &str, rules| join_needs(Some(&rule(name)), &M::Leave, rules);
        assert_eq!(needs("public", RULES_10), Ok(JoinNeeds::Nothing));
        for (name, rules) in [
            ("invite", RULES_10),
            ("private", RULES_10),
            ("knock", RULES_10),
            ("org.example.x", RULES_10),
            ("restricted", &RoomVersionRules::V7),
            ("knock_restricted", &RoomVersionRules::V9),
        ] {
            assert_eq!(needs(name, rules), Err(Obstacle::NotInvited), "{name}");
        }
        assert_eq!(join_needs(None, &M::Leave, RULES_10), Err(Obstacle::NotInvited));
    }

    #[test]
    fn pitfall_060_the_authoriser_is_a_member_with_the_power_to_invite() {
        let all = || [user(), moderator(), admin()].map(ToOwned::to_owned);
        assert_eq!(choose_authoriser(all(), &usual()).as_deref(), Some(admin()));
        assert_eq!(choose_authoriser([moderator().to_owned()], &usual()).as_deref(), Some(moderator()));
        assert_eq!(choose_authoriser([user().to_owned()], &usual()), None);
        let anybody = power(json!({}));
        assert_eq!(choose_authoriser(all(), &anybody).as_deref(), Some(admin()));
    }

    #[test]
    fn pitfall_061_knocking_takes_the_rule_and_the_version() {
        let knock = |name: &str, rules| check_knock(Some(&rule(name)), rules).is_ok();
        assert!(knock("knock", &RoomVersionRules::V7));
        assert!(!knock("knock", &RoomVersionRules::V6));
        assert!(knock("knock_restricted", RULES_10));
        assert!(!knock("knock_restricted", &RoomVersionRules::V9));
        assert!(!knock("public", RULES_10));
        assert_eq!(check_knock(None, RULES_10), Err(Obstacle::NoKnocking));
    }

    #[test]
    fn member_events_say_what_they_should_and_no_more() {
        let at = MilliSecondsSinceUnixEpoch(ruma::uint!(1));
        let details = || Details {
            profile: object(json!({"displayname": "U"})),
            reason: Some("r".to_owned()),
            is_direct: true,
            authoriser: Some(admin().to_owned()),
        };
        let content = |act| draft(act, moderator().to_owned(), user(), details(), at).content;
        assert_eq!(
            content(Act::Join),
            object(json!({
                "membership": "join", "displayname": "U", "reason": "r",
                "join_authorised_via_users_server": "@admin:a.test",
            }))
        );
        let invite = json!({"membership": "invite", "displayname": "U", "reason": "r", "is_direct": true});
        assert_eq!(content(Act::Invite), object(invite));
        let leave = object(json!({"membership": "leave", "reason": "r"}));
        assert_eq!(content(Act::Kick), leave);
        assert_eq!(content(Act::Unban), leave);
        assert_eq!(content(Act::Ban), object(json!({"membership": "ban", "reason": "r"})));
    }
}
