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
