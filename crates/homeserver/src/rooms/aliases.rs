//! Room aliases as rooms see them: what a canonical alias may name.

use ruma::{CanonicalJsonObject, CanonicalJsonValue};
use store::Read as _;

use crate::error::{Error, ErrorCode, Result};
use crate::rooms::write::RoomTx;
use crate::schema;

/// Aliases that a new `m.room.canonical_alias` adds must exist and lead to this room (pitfall 59). Those that stood in
/// the old one may stay, whatever became of them.
pub fn check_canonical(room: &RoomTx<'_>, content: &CanonicalJsonObject) -> Result<()> {
    let before = room.state(&ruma::events::StateEventType::RoomCanonicalAlias, "")?;
    let before = match before {
        Some(pdu) => super::send::content_from(pdu.content.get().as_bytes())?,
        None => CanonicalJsonObject::new(),
    };
    let known = named(&before)?;
    for alias in named(content)? {
        if known.contains(&alias) {
            continue;
        }
        let row = room.tx.get(&schema::ALIASES, alias)?;
        if row.is_none_or(|row| row.room_id != room.room_id.as_str()) {
            return Err(Error::bad_request(ErrorCode::BadAlias, format!("{alias} does not lead to this room")));
        }
    }
    Ok(())
}

fn named(content: &CanonicalJsonObject) -> Result<Vec<&str>> {
    let bad = || Error::invalid_param("Aliases are strings");
    let mut aliases = Vec::new();
    match content.get("alias") {
        Some(CanonicalJsonValue::String(alias)) if !alias.is_empty() => aliases.push(alias.as_str()),
        None | Some(CanonicalJsonValue::Null | CanonicalJsonValue::String(_)) => {}
        Some(_) => return Err(bad()),
    }
    match content.get("alt_aliases") {
        Some(CanonicalJsonValue::Array(alt)) => {
            for alias in alt {
                aliases.push(alias.as_str().ok_or_else(bad)?);
            }
        }
        None | Some(CanonicalJsonValue::Null) => {}
        Some(_) => return Err(bad()),
    }
    Ok(aliases)
}
