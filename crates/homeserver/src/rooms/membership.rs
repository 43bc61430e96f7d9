//! Joining, leaving, inviting, knocking, kicking, banning, forgetting. The rules are in `::rooms::membership`; here is
//! what they are asked with, and what comes of it.

use ::rooms::build::Draft;
use ::rooms::membership::{
    Act, Details, JoinNeeds, Obstacle, Plan, check, check_knock, choose_authoriser, draft, join_needs,
};
use ::rooms::state::{Part, Select, iter};
use http::StatusCode;
use ruma::events::StateEventType;
use ruma::events::room::member::MembershipState as Member;
use ruma::{CanonicalJsonObject, CanonicalJsonValue, OwnedUserId, RoomId, UserId};
use store::{Pos, Read};

use crate::App;
use crate::error::{Error, ErrorCode, Result};
use crate::rooms::read::RoomReader;
use crate::rooms::upgrade::{Follow, predecessor};
use crate::rooms::write::{Origin, RoomTx};
use crate::rooms::{change, invites};
use crate::schema::{self, MembershipState, room_nr};

/// In a member event: who vouches for a join to a restricted room.
const AUTHORISER: &str = "join_authorised_via_users_server";

/// What a user wants done to a membership, theirs or another's.
#[derive(Clone, Debug)]
pub struct Wish<'a> {
    pub act: Act,
    pub actor: &'a UserId,
    pub target: &'a UserId,
    pub reason: Option<String>,
    pub is_direct: bool,
    /// The actor is a guest, who may only join where guests may.
    pub guest: bool,
    /// The server wants it, and is not told no by what it asks of users.
    pub by_server: bool,
    /// Moves what who joins a room keeps about the room that it replaces.
    pub follow: Option<Follow>,
}

impl<'a> Wish<'a> {
    /// Something that somebody does to themselves.
    pub fn own(act: Act, user_id: &'a UserId) -> Self {
        Wish {
            act,
            actor: user_id,
            target: user_id,
            reason: None,
            is_direct: false,
            guest: false,
            by_server: false,
            follow: None,
        }
    }
}

/// Does it, unless it is so already.
pub async fn carry_out(app: &App, room_id: &RoomId, wish: Wish<'_>) -> Result<()> {
    if wish.act == Act::Invite {
        check_invitee(app, wish.target)?;
    }
    change(app, room_id, |room| {
        let (actor, target) = (membership(room, wish.actor)?, membership(room, wish.target)?);
        let plan = check(wish.act, (wish.actor, &actor), (wish.target, &target), &room.power()?).map_err(refuse)?;
        if plan == Plan::Nothing {
            return Ok(());
        }
        if wish.act == Act::Invite {
            invites::check(room.tx, wish.actor, wish.target)?;
        }
        if wish.act == Act::Knock {
            let join_rules = room.state(&StateEventType::RoomJoinRules, "")?;
            check_knock(join_rules.as_deref(), room.rules).map_err(refuse)?;
        }
        if wish.act == Act::Leave && target == Member::Invite && !wish.by_server {
            check_rejection(room, wish.target)?;
        }
        let mut details = Details { reason: wish.reason.clone(), is_direct: wish.is_direct, ..Details::default() };
        if wish.act == Act::Join {
            details.authoriser = authoriser(room, &wish, &target)?;
        }
        if matches!(wish.act, Act::Join | Act::Invite | Act::Knock) {
            details.profile = profile(room.tx, wish.target)?;
        }
        let draft = draft(wish.act, wish.actor.to_owned(), wish.target, details, app.clock.now());
        room.append(draft, Origin::default())?;
        match wish.follow {
            Some(follow) if wish.act == Act::Join => follow_upgrade(room, wish.target, follow),
            _ => Ok(()),
        }
    })
    .await?;
    Ok(())
}

/// Who joins for the first time the successor of a room that they were in takes along what they keep about it.
fn follow_upgrade(room: &mut RoomTx<'_>, user_id: &UserId, follow: Follow) -> Result<()> {
    let before = room.tx.peek(&schema::MEMBERSHIPS, (user_id.as_str(), room.nr))?;
    if before.is_some_and(|before| before.joined.is_some()) {
        return Ok(());
    }
    let Some(old) = predecessor(room)? else { return Ok(()) };
    let was = room.tx.peek(&schema::MEMBERSHIPS, (user_id.as_str(), room_nr(&old)))?;
    if was.is_some_and(|was| was.joined.is_some()) {
        let new = room.room_id.clone();
        follow(room.tx, user_id, &old, &new)?;
    }
    Ok(())
}

/// Whether the content of a member event invites somebody.
pub fn invites(content: &CanonicalJsonObject) -> bool {
    content.get("membership").and_then(CanonicalJsonValue::as_str) == Some("invite")
}

/// Holds a member event that a client wrote itself to what the endpoints for joins and invites hold to. Who vouches for a
/// join is this server's to say, never the client's.
pub fn vet(room: &RoomTx<'_>, member: &mut Draft) -> Result<()> {
    member.content.remove(AUTHORISER);
    let Some(Ok(target)) = member.state_key.as_deref().map(UserId::parse) else { return Ok(()) };
    let wanted = match member.content.get("membership") {
        Some(CanonicalJsonValue::String(wanted)) => Member::from(wanted.as_str()),
        _ => return Ok(()),
    };
    let current = membership(room, &target)?;
    match wanted {
        // Also who is invited already: the invite would be told to them anew, in other words.
        Member::Invite => {
            check_invitee(room.app, &target)?;
            invites::check(room.tx, &member.sender, &target)
        }
        Member::Join if current != Member::Join => {
            let user = room.tx.get(&schema::USERS, target.as_str())?;
            let guest = user.is_some_and(|user| user.guest);
            let wish = Wish { guest, ..Wish::own(Act::Join, &target) };
            if let Some(vouching) = authoriser(room, &wish, &current)? {
                member.content.insert(AUTHORISER.to_owned(), CanonicalJsonValue::String(vouching.to_string()));
            }
            Ok(())
        }
        Member::Leave if current == Member::Invite && target == member.sender => check_rejection(room, &target),
        _ => Ok(()),
    }
}

/// The room of the server's notices waits for its user.
fn check_rejection(room: &RoomTx<'_>, user_id: &UserId) -> Result<()> {
    let notices = room.tx.get(&schema::NOTICE_ROOMS, user_id.as_str())?;
    if notices.is_some_and(|room_id| room_id == room.room_id.as_str()) {
        return Err(Error::cannot_leave_notices());
    }
    Ok(())
}

/// Takes a user out of a room, or refuses an invite. Fine if they are not there.
pub async fn leave(app: &App, user_id: &UserId, room_id: &RoomId) -> Result<()> {
    carry_out(app, room_id, Wish { by_server: true, ..Wish::own(Act::Leave, user_id) }).await
}

/// Brings the member event of a joined user up to date with their profile. Does nothing where it is.
pub async fn refresh_profile(app: &App, user_id: &UserId, room_id: &RoomId) -> Result<()> {
    change(app, room_id, |room| {
        let Some(member) = room.state(&StateEventType::RoomMember, user_id.as_str())? else { return Ok(()) };
        if ::rooms::membership::of(Some(&member)) != Member::Join {
            return Ok(());
        }
        let was = super::send::content_from(member.content.get().as_bytes())?;
        let mut content = was.clone();
        content.retain(|name, _| name != "displayname" && name != "avatar_url" && name != "reason");
        // Who vouched for the join has done so once.
        content.remove(AUTHORISER);
        content.extend(profile(room.tx, user_id)?);
        if content.get("displayname") == was.get("displayname") && content.get("avatar_url") == was.get("avatar_url") {
            return Ok(());
        }
        let draft = Draft::state("m.room.member", user_id.as_str(), content, user_id.to_owned(), app.clock.now());
        room.append(draft, Origin::default())?;
        Ok(())
    })
    .await?;
    Ok(())
}

/// The user no longer wants to see a room they left.
pub async fn forget(app: &App, user_id: &UserId, room_id: &RoomId) -> Result<()> {
    let room = room_nr(room_id);
    app.store
        .transact(|tx| {
            let Some(mut row) = tx.get(&schema::MEMBERSHIPS, (user_id.as_str(), room))? else {
                return Err(Error::not_found("You were never in this room"));
            };
            if !matches!(row.state, MembershipState::Leave | MembershipState::Ban) {
                return Err(Error::unknown("You must leave the room before you forget it"));
            }
            if !row.forgotten {
                row.forgotten = true;
                tx.put(&schema::MEMBERSHIPS, (user_id.as_str(), room), &row);
            }
            Ok(())
        })
        .await?;
    Ok(())
}

/// Nobody comes into a room that is blocked, whichever way. Who is there may still change what their member event says.
pub fn check_not_blocked(room: &RoomTx<'_>, member: &Draft) -> Result<()> {
    let wanted = match member.content.get("membership") {
        Some(CanonicalJsonValue::String(wanted)) => Member::from(wanted.as_str()),
        _ => return Ok(()),
    };
    if !matches!(wanted, Member::Join | Member::Invite | Member::Knock)
        || !room.tx.contains(&schema::BLOCKED_ROOMS, room.room_id.as_str())?
    {
        return Ok(());
    }
    let Some(Ok(target)) = member.state_key.as_deref().map(UserId::parse) else { return Ok(()) };
    match membership(room, &target)? {
        Member::Join => Ok(()),
        _ => Err(Error::forbidden("This room is blocked on this server")),
    }
}

/// Only people who exist can be invited, and only people on this server while federation is off.
pub fn check_invitee(app: &App, user_id: &UserId) -> Result<()> {
    if user_id.server_name() != app.server_name {
        return Err(Error::forbidden("Users of other servers cannot be invited: federation is off"));
    }
    let user = app.store.snapshot().get(&schema::USERS, user_id.as_str())?;
    match user {
        Some(user) if !user.deactivated => Ok(()),
        _ => Err(Error::not_found("There is no such user")),
    }
}

/// What a member event says of its user: `displayname` and `avatar_url`.
pub fn profile(read: &impl Read, user_id: &UserId) -> Result<CanonicalJsonObject> {
    let mut profile = CanonicalJsonObject::new();
    for field in ["displayname", "avatar_url"] {
        let value = read.get(&schema::PROFILES, (user_id.as_str(), field))?;
        if let Some(value @ CanonicalJsonValue::String(_)) = value.and_then(|json| serde_json::from_slice(&json).ok()) {
            profile.insert(field.to_owned(), value);
        }
    }
    Ok(profile)
}

fn membership(room: &RoomTx<'_>, user_id: &UserId) -> Result<Member> {
    let member = room.state(&StateEventType::RoomMember, user_id.as_str())?;
    Ok(::rooms::membership::of(member.as_deref()))
}

/// Who vouches for a join, where the room wants somebody to.
fn authoriser(room: &RoomTx<'_>, wish: &Wish<'_>, current: &Member) -> Result<Option<OwnedUserId>> {
    if wish.guest && !guests_may_join(room)? {
        return Err(Error::guest_forbidden());
    }
    let join_rules = room.state(&StateEventType::RoomJoinRules, "")?;
    let JoinNeeds::Authoriser { rooms } = join_needs(join_rules.as_deref(), current, room.rules).map_err(refuse)?
    else {
        return Ok(None);
    };
    let mut allowed = false;
    for other in rooms {
        let row = room.tx.get(&schema::MEMBERSHIPS, (wish.target.as_str(), room_nr(&other)))?;
        allowed |= row.is_some_and(|row| row.state == MembershipState::Join);
    }
    if !allowed {
        return Err(Error::forbidden("Joining this room takes an invite, or being in a room that it names"));
    }
    let vouching = choose_authoriser(joined_local_users(room)?, &room.power()?);
    vouching.map(Some).ok_or_else(|| {
        let why = "Nobody on this server has the power to let you in";
        Error::new(StatusCode::FORBIDDEN, ErrorCode::UnableToAuthorizeJoin, why)
    })
}

fn guests_may_join(room: &RoomTx<'_>) -> Result<bool> {
    let access = room.state(&StateEventType::RoomGuestAccess, "")?;
    Ok(access.is_some_and(|pdu| takes_guests(&pdu)))
}

/// The guests in a room that takes none.
pub fn unwanted_guests(app: &App, room_id: &RoomId) -> Result<Vec<OwnedUserId>> {
    let read = app.store.snapshot();
    let reader = RoomReader::new(&app.room_cache, &read);
    let Some((room, head)) = reader.head(room_id)? else { return Ok(Vec::new()) };
    let access = reader.state_pdu(room, &head, head.state, &StateEventType::RoomGuestAccess, "")?;
    if access.is_some_and(|pdu| takes_guests(&pdu)) {
        return Ok(Vec::new());
    }
    let mut guests = Vec::new();
    for at in reader.state_positions(head.state, Select::Only(Part::Members))? {
        let Some(member) = reader.pdu(room, &head, at)? else { continue };
        let user_id = member.state_key.as_deref().and_then(|key| UserId::parse(key).ok());
        let Some(user_id) = user_id.filter(|_| ::rooms::membership::of(Some(&member)) == Member::Join) else {
            continue;
        };
        if read.get(&schema::USERS, user_id.as_str())?.is_some_and(|user| user.guest) {
            guests.push(user_id);
        }
    }
    Ok(guests)
}

/// Whether a guest access event lets guests in.
pub fn takes_guests(access: &::rooms::Pdu) -> bool {
    access.content_field::<&str>("guest_access") == Some("can_join")
}

/// The users of this server who are in a room.
pub fn joined_local_users(room: &RoomTx<'_>) -> Result<Vec<OwnedUserId>> {
    let mut users = Vec::new();
    for nr in iter(room, room.head.state, Select::Only(Part::Members)) {
        let Some(member) = room.pdu(Pos(nr?.0))? else { continue };
        let Some(user) = member.state_key.as_deref().and_then(|key| UserId::parse(key).ok()) else { continue };
        if ::rooms::membership::of(Some(&member)) == Member::Join && room.is_local(&user) {
            users.push(user);
        }
    }
    Ok(users)
}

fn refuse(obstacle: Obstacle) -> Error {
    Error::forbidden(obstacle.to_string())
}
