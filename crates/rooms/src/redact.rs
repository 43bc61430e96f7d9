//! What a redaction leaves of an event, and who may redact. Not here: which events were redacted.

use ruma::{
    CanonicalJsonObject, UserId,
    canonical_json::{redact_content_in_place, redact_in_place},
    room_version_rules::RoomVersionRules,
};
use serde_json::value::{RawValue, to_raw_value};

use crate::{
    event::{FormatError, canonical},
    power::{Action, Power},
};

/// What is left of a whole event.
pub fn apply(mut object: CanonicalJsonObject, rules: &RoomVersionRules) -> Result<CanonicalJsonObject, FormatError> {
    redact_in_place(&mut object, &rules.redaction, None).map_err(|error| FormatError::Format(error.to_string()))?;
    Ok(object)
}

/// What is left of the content of an event.
pub fn content(kind: &str, content: &RawValue, rules: &RoomVersionRules) -> Result<Box<RawValue>, FormatError> {
    let mut object: CanonicalJsonObject = serde_json::from_str(content.get())?;
    redact_content_in_place(&mut object, &rules.redaction, kind);
    Ok(to_raw_value(&object)?)
}

/// What is left of the client part of an event (see [`crate::event::Parts`]).
pub fn client_part(client: &[u8], rules: &RoomVersionRules) -> Result<Vec<u8>, FormatError> {
    let mut bytes = Vec::with_capacity(client.len() + 2);
    bytes.push(b'{');
    bytes.extend_from_slice(client);
    bytes.push(b'}');
    let redacted = canonical(&apply(serde_json::from_slice(&bytes)?, rules)?);
    let members = redacted.strip_prefix(b"{").and_then(|rest| rest.strip_suffix(b"}"));
    Ok(members.unwrap_or_default().to_vec())
}

/// Whether a redaction takes effect on an event of the same room: its sender has the power to
/// redact, or is of the server the event came from. The authorization rules do not ask this, so a
/// redaction can be in the room without ever taking effect.
pub fn takes_effect(redacter: &UserId, target_sender: &UserId, power: &Power<'_>) -> bool {
    redacter.server_name() == target_sender.server_name() || power.allows(redacter, Action::Redact)
}

/// Whether a local user may redact an event: their own, or with the power to redact.
pub fn may_redact(user_id: &UserId, target_sender: &UserId, power: &Power<'_>) -> bool {
    user_id == target_sender || power.allows(user_id, Action::Redact)
}
