//! Room aliases: names for rooms, kept by this server, and what a canonical alias event may name.
//!
//! An alias and its row among the room's aliases are written in one commit. Not here: the room directory (`public`).

use ::rooms::build::Draft;
use ruma::events::{StateEventType, TimelineEventType};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedRoomAliasId, OwnedRoomId, RoomAliasId, RoomId, ServerName, UserId,
};
use store::{Read, Tx};

use crate::App;
use crate::error::{Error, ErrorCode, Result};
use crate::rooms::write::{Origin, RoomTx};
use crate::schema::{self, Alias, MembershipState, room_nr};

/// The longest alias, in bytes.
const MAX_ALIAS_BYTES: usize = 255;
const CANONICAL: &str = "m.room.canonical_alias";

/// The room an alias of this server stands for.
pub fn resolve(read: &impl Read, alias: &RoomAliasId) -> Result<Option<OwnedRoomId>> {
    let row = read.get(&schema::ALIASES, alias.as_str())?;
    row.map(|row| RoomId::parse(row.room_id).map_err(Error::internal)).transpose()
}

/// The aliases of this server for a room, in the order of their names.
pub fn of_room(read: &impl Read, room_id: &RoomId) -> Result<Vec<String>> {
    let span = schema::ROOM_ALIASES.prefix((room_nr(room_id),));
    read.scan(&schema::ROOM_ALIASES, span).keys().map(|key| Ok(key?.1)).collect()
}

/// Whether this can be an alias of this server.
pub fn check_name(alias: &RoomAliasId, server_name: &ServerName) -> Result<()> {
    let text = alias.as_str();
    let localpart = text.strip_prefix('#').and_then(|text| text.split_once(':')).map_or("", |(name, _)| name);
    if alias.server_name() != server_name {
        return Err(Error::invalid_param("Only aliases of this server can be changed here"));
    }
    if text.len() > MAX_ALIAS_BYTES {
        return Err(Error::invalid_param("The alias is longer than 255 bytes"));
    }
    if localpart.is_empty() || localpart.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(Error::invalid_param("This is not a room alias"));
    }
    Ok(())
}

/// Gives a room a name. Whoever does that must be in the room.
pub async fn create(app: &App, user_id: &UserId, alias: &RoomAliasId, room_id: &RoomId) -> Result<()> {
    check_name(alias, &app.server_name)?;
    let (user_id, room) = (user_id.as_str(), room_nr(room_id));
    let row = Alias { room_id: room_id.to_string(), creator: user_id.to_owned() };
    app.store
        .transact(|tx| {
            let member = tx.get(&schema::MEMBERSHIPS, (user_id, room))?;
            let head = tx.peek(&schema::HEADS, room)?.filter(|head| head.room_id == room_id.as_str());
            if head.is_none() || member.is_none_or(|member| member.state != MembershipState::Join) {
                return Err(Error::forbidden("You must be in the room to give it a name"));
            }
            if tx.get(&schema::ALIASES, alias.as_str())?.is_some() {
                return Err(Error::conflict(ErrorCode::Unknown, format!("The alias {alias} is taken")));
            }
            tx.put(&schema::ALIASES, alias.as_str(), &row);
            tx.put(&schema::ROOM_ALIASES, (room, alias.as_str()), &());
            Ok(())
        })
        .await?;
    Ok(())
}

/// Takes a name away from its room, and out of the room's canonical alias event where the user may change that.
pub async fn delete(app: &App, user_id: &UserId, admin: bool, alias: &RoomAliasId) -> Result<()> {
    app.store
        .transact(|tx| {
            let not_found = || Error::not_found(format!("There is no alias {alias}"));
            let row = tx.get(&schema::ALIASES, alias.as_str())?.ok_or_else(not_found)?;
            let room_id = RoomId::parse(&row.room_id).map_err(Error::internal)?;
            let powerful = has_power(app, tx, &room_id, user_id)?;
            if !powerful && !admin && row.creator != user_id.as_str() {
                return Err(Error::forbidden("This alias is somebody else's"));
            }
            tx.delete(&schema::ALIASES, alias.as_str());
            tx.delete(&schema::ROOM_ALIASES, (room_nr(&room_id), alias.as_str()));
            if powerful {
                drop_from_canonical(app, tx, &room_id, user_id, alias)?;
            }
            Ok(())
        })
        .await?;
    Ok(())
}

/// Whether a user is in a room and may change its canonical alias. This is also who may publish it.
pub fn has_power(app: &App, tx: &mut Tx, room_id: &RoomId, user_id: &UserId) -> Result<bool> {
    let Some(room) = RoomTx::open(app, tx, room_id)? else { return Ok(false) };
    if room.membership_of(user_id)? != MembershipState::Join {
        return Ok(false);
    }
    Ok(room.power()?.allows_sending(user_id, &TimelineEventType::RoomCanonicalAlias, true))
}

fn drop_from_canonical(app: &App, tx: &mut Tx, room_id: &RoomId, user_id: &UserId, alias: &RoomAliasId) -> Result<()> {
    let Some(mut room) = RoomTx::open(app, tx, room_id)? else { return Ok(()) };
    let Some(event) = room.state(&StateEventType::RoomCanonicalAlias, "")? else { return Ok(()) };
    let Ok(mut content) = serde_json::from_str::<CanonicalJsonObject>(event.content.get()) else { return Ok(()) };
    if !forget_alias(&mut content, alias) {
        return Ok(());
    }
    room.append(Draft::state(CANONICAL, "", content, user_id.to_owned(), app.clock.now()), Origin::default())?;
    // Nothing is redacted here.
    let _ = room.finish();
    Ok(())
}

/// Takes an alias out of the content of a canonical alias event, and says whether it was there.
fn forget_alias(content: &mut CanonicalJsonObject, alias: &RoomAliasId) -> bool {
    let is_it = |value: &CanonicalJsonValue| value.as_str() == Some(alias.as_str());
    let mut found = false;
    if content.get("alias").is_some_and(is_it) {
        content.remove("alias");
        found = true;
    }
    if let Some(CanonicalJsonValue::Array(others)) = content.get_mut("alt_aliases") {
        let before = others.len();
        others.retain(|other| !is_it(other));
        found |= others.len() < before;
        if others.is_empty() {
            content.remove("alt_aliases");
        }
    }
    found
}

/// What a client wants to put into the canonical alias event: every alias that was not in it before must be one of the
/// room. Older ones may have gone stale meanwhile, which is nobody's fault now.
pub fn check_canonical(room: &RoomTx<'_>, content: &CanonicalJsonObject) -> Result<()> {
    let wanted = aliases_in(content)?;
    let before = room.state(&StateEventType::RoomCanonicalAlias, "")?;
    let before = before.and_then(|event| serde_json::from_str::<CanonicalJsonObject>(event.content.get()).ok());
    let before = before.and_then(|content| aliases_in(&content).ok()).unwrap_or_default();
    for alias in wanted.iter().filter(|alias| !before.contains(alias)) {
        let row = room.tx.get(&schema::ALIASES, alias.as_str())?;
        if row.is_none_or(|row| row.room_id != room.room_id.as_str()) {
            let message = format!("The alias {alias} does not stand for this room");
            return Err(Error::bad_request(ErrorCode::BadAlias, message));
        }
    }
    Ok(())
}

fn aliases_in(content: &CanonicalJsonObject) -> Result<Vec<OwnedRoomAliasId>> {
    let malformed = || Error::invalid_param("`alias` and `alt_aliases` must hold room aliases");
    let main = match content.get("alias") {
        None | Some(CanonicalJsonValue::Null) => None,
        // Some clients take the alias away like this.
        Some(CanonicalJsonValue::String(alias)) if alias.is_empty() => None,
        Some(alias) => Some(alias),
    };
    let others = match content.get("alt_aliases") {
        None | Some(CanonicalJsonValue::Null) => &[],
        Some(CanonicalJsonValue::Array(aliases)) => aliases.as_slice(),
        Some(_) => return Err(malformed()),
    };
    let parse = |alias: &CanonicalJsonValue| RoomAliasId::parse(alias.as_str()?).ok();
    main.into_iter().chain(others).map(|alias| parse(alias).ok_or_else(malformed)).collect()
}

#[cfg(test)]
mod tests {
    use ruma::{room_alias_id, server_name};
    use serde_json::json;

    use super::*;

    fn content(value: serde_json::Value) -> CanonicalJsonObject {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn an_alias_is_of_this_server_and_has_a_name() {
        let server = server_name!("hs.test");
        assert!(check_name(room_alias_id!("#a-room:hs.test"), server).is_ok());
        assert!(check_name(room_alias_id!("#räume/1:hs.test"), server).is_ok());
        assert!(check_name(room_alias_id!("#a:other.test"), server).is_err());
        assert!(check_name(room_alias_id!("#:hs.test"), server).is_err());
        assert!(check_name(room_alias_id!("#a b:hs.test"), server).is_err());
    }

    #[test]
    fn a_deleted_alias_leaves_the_canonical_event() {
        let alias = room_alias_id!("#a:hs.test");
        let mut both = content(json!({"alias": "#a:hs.test", "alt_aliases": ["#a:hs.test", "#b:hs.test"]}));
        assert!(forget_alias(&mut both, alias));
        assert_eq!(both, content(json!({"alt_aliases": ["#b:hs.test"]})));
        let mut other = content(json!({"alias": "#b:hs.test"}));
        assert!(!forget_alias(&mut other, alias));
    }

    #[test]
    fn only_strings_are_aliases() {
        assert_eq!(aliases_in(&content(json!({"alias": "", "alt_aliases": null}))).unwrap().len(), 0);
        assert_eq!(aliases_in(&content(json!({"alias": "#a:b", "alt_aliases": ["#c:d"]}))).unwrap().len(), 2);
        assert!(aliases_in(&content(json!({"alias": 1}))).is_err());
        assert!(aliases_in(&content(json!({"alias": "a"}))).is_err());
        assert!(aliases_in(&content(json!({"alt_aliases": ["nope"]}))).is_err());
        assert!(aliases_in(&content(json!({"alt_aliases": {}}))).is_err());
    }
}
