//! Who may see an event of the past: the history visibility rules, decided by the state at the
//! event. Not here: ignored users, filters, redactions.

use ruma::{
    UserId,
    events::{
        TimelineEventType,
        room::{history_visibility::HistoryVisibility, member::MembershipState},
    },
};
use serde_json::value::RawValue;

use crate::event::{Pdu, content_field};

/// The visibility a history visibility event sets. Without one, and for values nobody knows, it
/// is `shared`.
pub fn of(event: Option<&Pdu>) -> HistoryVisibility {
    event.map_or(HistoryVisibility::Shared, |pdu| in_content(&pdu.content))
}

fn in_content(content: &RawValue) -> HistoryVisibility {
    match content_field::<HistoryVisibility>(content, "history_visibility") {
        Some(
            known @ (HistoryVisibility::WorldReadable
            | HistoryVisibility::Shared
            | HistoryVisibility::Invited
            | HistoryVisibility::Joined),
        ) => known,
        _ => HistoryVisibility::Shared,
    }
}

/// Somebody who wants to see events of a room.
#[derive(Clone, Copy, Debug)]
pub struct Viewer<'a> {
    pub user_id: &'a UserId,
    /// The last position at which they were joined: [`Viewer::STILL`] if they are, the position of
    /// the event that ended it if they were, `None` if they never were.
    pub joined_until: Option<u64>,
}

impl Viewer<'_> {
    /// For [`Viewer::joined_until`]: joined now.
    pub const STILL: u64 = u64::MAX;
}

/// The parts of an event and of the state before it that decide who sees it.
#[derive(Clone, Debug)]
pub struct Scene<'a> {
    pub position: u64,
    pub kind: &'a TimelineEventType,
    pub state_key: Option<&'a str>,
    pub content: &'a RawValue,
    /// The history visibility before the event.
    pub visibility: HistoryVisibility,
    /// The membership of the viewer before the event.
    pub membership: MembershipState,
}

/// Whether a user may see an event.
pub fn may_see(viewer: &Viewer<'_>, scene: &Scene<'_>) -> bool {
    let joined_later = viewer.joined_until.is_some_and(|until| until > scene.position);
    if allows(&scene.visibility, &scene.membership, joined_later) {
        return true;
    }
    // These two kinds of event are seen by whoever may see what is before or what is after them.
    match (scene.kind, scene.state_key) {
        (TimelineEventType::RoomHistoryVisibility, Some("")) => {
            allows(&in_content(scene.content), &scene.membership, joined_later)
        }
        (TimelineEventType::RoomMember, Some(user)) if user == viewer.user_id.as_str() => {
            let after = content_field(scene.content, "membership");
            allows(&scene.visibility, &after.unwrap_or(MembershipState::Leave), joined_later)
        }
        _ => false,
    }
}

fn allows(visibility: &HistoryVisibility, membership: &MembershipState, joined_later: bool) -> bool {
    match (visibility, membership) {
        (HistoryVisibility::WorldReadable, _) | (_, MembershipState::Join) => true,
        (HistoryVisibility::Invited, membership) => *membership == MembershipState::Invite,
        (HistoryVisibility::Joined, _) => false,
        (_, _) => joined_later,
    }
}

/// Whether a server may have the content of an event: the memberships of its users before the
/// event decide, and for `shared` that it is in the room at all.
pub fn server_may_see<'a>(
    visibility: &HistoryVisibility,
    memberships_at_event: impl IntoIterator<Item = &'a MembershipState>,
    in_room_now: bool,
) -> bool {
    memberships_at_event.into_iter().any(|membership| allows(visibility, membership, in_room_now))
        || allows(visibility, &MembershipState::Leave, in_room_now)
}

#[cfg(test)]
mod tests {
    use HistoryVisibility as V;
    use MembershipState as M;
    use serde_json::{json, value::to_raw_value};

    use super::*;
    use crate::testing::state;

    fn me() -> &'static UserId {
        ruma::user_id!("@me:a.test")
    }

    fn sees(
        event: (&str, Option<&str>, serde_json::Value),
        visibility: V,
        membership: M,
        joined_until: Option<u64>,
    ) -> bool {
        let (kind, state_key, content) = event;
        let content = to_raw_value(&content).unwrap();
        let scene = Scene { position: 10, kind: &kind.into(), state_key, content: &content, visibility, membership };
        may_see(&Viewer { user_id: me(), joined_until }, &scene)
    }

    #[test]
    fn pitfall_046_the_table_of_visibilities_and_memberships() {
        let never = None;
        let before = Some(9);
        let later = Some(11);
        let now = Some(Viewer::STILL);
        // visibility, membership at the event, last joined, sees the event
        let table = [
            (V::WorldReadable, M::Leave, never, true),
            (V::WorldReadable, M::Ban, never, true),
            (V::Shared, M::Join, later, true),
            (V::Shared, M::Leave, never, false),
            (V::Shared, M::Leave, before, false),
            (V::Shared, M::Leave, later, true),
            (V::Shared, M::Leave, now, true),
            (V::Shared, M::Invite, never, false),
            (V::Shared, M::Invite, now, true),
            (V::Shared, M::Ban, later, true),
            (V::Invited, M::Join, now, true),
            (V::Invited, M::Invite, never, true),
            (V::Invited, M::Leave, now, false),
            (V::Invited, M::Knock, now, false),
            (V::Joined, M::Join, later, true),
            (V::Joined, M::Invite, now, false),
            (V::Joined, M::Leave, now, false),
            (V::Joined, M::Ban, before, false),
        ];
        for (visibility, membership, joined_until, expected) in table {
            let case = format!("{visibility} {membership} {joined_until:?}");
            let message = ("m.room.message", None, json!({}));
            assert_eq!(sees(message, visibility, membership, joined_until), expected, "{case}");
        }
    }

    #[test]
    fn pitfall_046_a_visibility_event_is_seen_from_either_side_of_it() {
        let change = |to: &str| {
            let content = json!({"history_visibility": to});
            ("m.room.history_visibility", Some(""), content)
        };
        assert!(sees(change("joined"), V::WorldReadable, M::Leave, None));
        assert!(sees(change("world_readable"), V::Joined, M::Leave, None));
        assert!(!sees(change("joined"), V::Invited, M::Leave, None));
        assert!(sees(change("invited"), V::Joined, M::Invite, None));
        // Only the state event of the room counts, not one like it.
        let lookalike = ("m.room.history_visibility", Some("x"), json!({"history_visibility": "world_readable"}));
        assert!(!sees(lookalike, V::Joined, M::Leave, None));
    }

    #[test]
    fn pitfall_046_ones_own_membership_is_seen_from_either_side_of_it() {
        let member = |user: &'static str, to: &str| ("m.room.member", Some(user), json!({"membership": to}));
        assert!(sees(member("@me:a.test", "join"), V::Joined, M::Leave, Some(Viewer::STILL)));
        assert!(sees(member("@me:a.test", "leave"), V::Joined, M::Join, Some(10)));
        assert!(sees(member("@me:a.test", "ban"), V::Joined, M::Join, Some(10)));
        assert!(sees(member("@me:a.test", "invite"), V::Invited, M::Leave, None));
        assert!(!sees(member("@me:a.test", "invite"), V::Joined, M::Leave, None));
        assert!(!sees(member("@other:a.test", "join"), V::Joined, M::Leave, None));
    }

    #[test]
    fn pitfall_046_no_visibility_and_unknown_visibilities_are_shared() {
        assert_eq!(of(None), V::Shared);
        for (content, expected) in [
            (json!({}), V::Shared),
            (json!({"history_visibility": "org.example.secret"}), V::Shared),
            (json!({"history_visibility": 1}), V::Shared),
            (json!({"history_visibility": "joined"}), V::Joined),
        ] {
            let event = state("m.room.history_visibility", "@me:a.test", "", content);
            assert_eq!(of(Some(&event)), expected);
        }
    }

    #[test]
    fn pitfall_046_servers_see_what_one_of_their_users_saw() {
        assert!(server_may_see(&V::WorldReadable, [], false));
        assert!(server_may_see(&V::Shared, [], true));
        assert!(!server_may_see(&V::Shared, [&M::Leave], false));
        assert!(server_may_see(&V::Joined, [&M::Leave, &M::Join], true));
        assert!(!server_may_see(&V::Joined, [&M::Leave, &M::Invite], true));
        assert!(server_may_see(&V::Invited, [&M::Invite], false));
        assert!(!server_may_see(&V::Invited, [&M::Leave], true));
    }
}
