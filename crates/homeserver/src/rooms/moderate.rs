//! What administrators of the server do in rooms, with the power that users of this server have there: they have none
//! themselves.

use ::rooms::build::Draft;
use ::rooms::event::Pdu;
use ::rooms::membership::Act;
use ::rooms::power::Action;
use http::StatusCode;
use ruma::events::room::power_levels::UserPowerLevel;
use ruma::events::{StateEventType, TimelineEventType};
use ruma::{CanonicalJsonObject, CanonicalJsonValue, EventId, OwnedUserId, RoomId, UserId};
use store::{Pos, Tx};

use super::change;
use super::membership::{Wish, carry_out, joined_local_users};
use super::send;
use super::write::{Origin, RoomTx};
use crate::App;
use crate::error::{Error, Result};
use crate::schema::{BLOCKED_ROOMS, Block, MembershipState};

/// The power of somebody who is made an administrator of a room whose powers are no numbers.
const USUAL_POWER: i64 = 100;

/// Lets nobody join a room any more, or lets them again. It need not be known here.
pub fn set_blocked(tx: &mut Tx, room_id: &RoomId, block: Option<&Block>) {
    match block {
        Some(block) => tx.put(&BLOCKED_ROOMS, room_id.as_str(), block),
        None => tx.delete(&BLOCKED_ROOMS, room_id.as_str()),
    }
}

/// Makes a user join a room; where that takes an invite, `inviter` invites them, or else somebody who may.
pub async fn join(app: &App, inviter: Option<&UserId>, user_id: &UserId, room_id: &RoomId) -> Result<()> {
    let own = || Wish::own(Act::Join, user_id);
    match carry_out(app, room_id, own()).await {
        Err(refused) if refused.status() == StatusCode::FORBIDDEN => {
            let inviter = someone_who(app, room_id, Action::Invite, inviter).await?.ok_or(refused)?;
            carry_out(app, room_id, Wish { act: Act::Invite, actor: &inviter, ..own() }).await?;
            carry_out(app, room_id, own()).await
        }
        outcome => outcome,
    }
}

/// Somebody of this server in a room with the power to do something: `first` if they have it, else the strongest.
async fn someone_who(
    app: &App,
    room_id: &RoomId,
    action: Action,
    first: Option<&UserId>,
) -> Result<Option<OwnedUserId>> {
    let found = change(app, room_id, |room| {
        let power = room.power()?;
        let may = |user: &UserId| {
            let sends =
                action != Action::Redact || power.allows_sending(user, &TimelineEventType::RoomRedaction, false);
            sends && power.allows(user, action)
        };
        let mut able = named_in_power(room)?;
        able.extend(first.map(ToOwned::to_owned));
        able.retain(|user| may(user));
        able.retain(|user| matches!(room.membership_of(user), Ok(MembershipState::Join)));
        if able.is_empty() {
            // Where everybody may, nobody need be named.
            able = joined_local_users(room)?;
            able.retain(|user| may(user));
        }
        let wanted = able.iter().find(|user| first.map(UserId::as_str) == Some(user.as_str()));
        Ok(wanted.or_else(|| able.iter().max_by_key(|user| power.of(user))).cloned())
    });
    Ok(found.await?.value)
}

/// Users of this server to whom a room gives a power of their own: a few, where its members may be very many.
fn named_in_power(room: &RoomTx<'_>) -> Result<Vec<OwnedUserId>> {
    let mut named: Vec<OwnedUserId> = room.power()?.privileged_creators().cloned().collect();
    if let Some(levels) = room.state(&StateEventType::RoomPowerLevels, "")? {
        let content = send::content_from(levels.content.get().as_bytes())?;
        if let Some(CanonicalJsonValue::Object(users)) = content.get("users") {
            named.extend(users.keys().filter_map(|user| UserId::parse(user.as_str()).ok()));
        }
    }
    named.retain(|user| room.is_local(user));
    Ok(named)
}

/// Gives a user as much power in a room as anybody of this server has who can give it, and invites them if they are not
/// there.
pub async fn make_admin(app: &App, room_id: &RoomId, user_id: &UserId) -> Result<()> {
    let make = |room: &mut RoomTx<'_>| -> Result<()> {
        let power = room.power()?;
        if power.is_privileged_creator(user_id) {
            return Ok(());
        }
        let mut able = joined_local_users(room)?;
        able.retain(|user| power.allows_sending(user, &TimelineEventType::RoomPowerLevels, true));
        let strongest = able.into_iter().max_by_key(|user| power.of(user));
        let nobody = || Error::unknown("Nobody of this server has the power to give some in this room");
        let strongest = strongest.ok_or_else(nobody)?;
        let level = match power.of(&strongest) {
            UserPowerLevel::Int(level) => level.into(),
            _ => USUAL_POWER,
        };
        let levels = room.state(&StateEventType::RoomPowerLevels, "")?;
        let mut content = match &levels {
            Some(levels) => send::content_from(levels.content.get().as_bytes())?,
            None => CanonicalJsonObject::new(),
        };
        give(&mut content, user_id, level)?;
        if levels.is_none() && !power.is_privileged_creator(&strongest) {
            give(&mut content, &strongest, level)?;
        }
        let draft = Draft::state("m.room.power_levels", "", content, strongest.clone(), app.clock.now());
        room.append(draft, Origin::default())?;
        let there = [MembershipState::Join, MembershipState::Invite].contains(&room.membership_of(user_id)?);
        if !there {
            let mut content = super::membership::profile(room.tx, user_id)?;
            content.insert("membership".to_owned(), CanonicalJsonValue::String("invite".to_owned()));
            let draft = Draft::state("m.room.member", user_id.as_str(), content, strongest, app.clock.now());
            room.append(draft, Origin::default())?;
        }
        Ok(())
    };
    change(app, room_id, make).await.map(drop)
}

/// Sets the power of a user in the content of a power levels event.
fn give(content: &mut CanonicalJsonObject, user_id: &UserId, level: i64) -> Result<()> {
    let level = CanonicalJsonValue::Integer(level.try_into().map_err(Error::internal)?);
    let users = content.entry("users".to_owned()).or_insert_with(|| CanonicalJsonValue::Object(Default::default()));
    match users {
        CanonicalJsonValue::Object(users) => {
            users.insert(user_id.to_string(), level);
            Ok(())
        }
        _ => Err(Error::unknown("The power levels of this room are not in order")),
    }
}

/// Keeps only the newest of the events that the next one would follow. Says how many were dropped.
pub async fn drop_extremities(app: &App, room_id: &RoomId) -> Result<usize> {
    let dropped = change(app, room_id, |room| {
        let surplus = room.head.extremities.len().saturating_sub(1);
        room.head.extremities.drain(..surplus);
        Ok(surplus)
    });
    Ok(dropped.await?.value)
}

/// Somebody of this server in a room who may redact what others said.
pub async fn redactor(app: &App, room_id: &RoomId) -> Result<Option<OwnedUserId>> {
    someone_who(app, room_id, Action::Redact, None).await
}

/// Redacts an event: as its sender if they are in the room and may, else as somebody who may.
pub async fn redact(
    app: &App,
    room_id: &RoomId,
    event_id: &EventId,
    redactor: Option<&UserId>,
    reason: Option<&str>,
) -> Result<()> {
    let redact = |room: &mut RoomTx<'_>| -> Result<()> {
        let Some(target) = find(room, event_id)? else { return Ok(()) };
        let sender = &*target.sender;
        let own = room.membership_of(sender)? == MembershipState::Join
            && room.power()?.allows_sending(sender, &TimelineEventType::RoomRedaction, false);
        let able = Some(sender).filter(|_| own).or(redactor);
        let able = able.ok_or_else(|| Error::forbidden("Nobody of this server may redact this event"))?;
        let mut content = CanonicalJsonObject::new();
        if let Some(reason) = reason {
            content.insert("reason".to_owned(), CanonicalJsonValue::String(reason.to_owned()));
        }
        send::put(room, send::redaction(able.to_owned(), event_id.to_owned(), content, app.clock.now()), None)?;
        Ok(())
    };
    change(app, room_id, redact).await.map(drop)
}

fn find(room: &RoomTx<'_>, event_id: &EventId) -> Result<Option<std::sync::Arc<Pdu>>> {
    let at: Option<Pos> = room.reader().find(room.nr, event_id)?;
    match at {
        Some(at) => room.pdu(at),
        None => Ok(None),
    }
}
