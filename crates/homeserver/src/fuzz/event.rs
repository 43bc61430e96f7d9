//! Events as other servers write them, contents that give power, and identifiers and tokens of all kinds. The first
//! byte is the room version.

use std::sync::Arc;

use ::rooms::event::{self, Parsed, Pdu, SUPPORTED_VERSIONS, canonical, join_from_storage};
use ::rooms::power::{Action, Power};
use ::rooms::{build, redact, rules};
use ruma::events::TimelineEventType;
use ruma::room_version_rules::RoomVersionRules;
use ruma::{EventId, MxcUri, OwnedServerName, RoomAliasId, RoomId, RoomOrAliasId, UserId, user_id};
use serde_json::value::RawValue;

use super::parts;
use crate::media::mxc::MediaId;
use crate::rooms::hierarchy;
use crate::stored::{NewEvent, StoredEvent};
use crate::sync::token::{ConnectionToken, SyncToken, parse_position};

pub(super) fn run(input: &[u8]) {
    let Some((first, rest)) = input.split_first() else { return };
    let version = &SUPPORTED_VERSIONS[usize::from(*first) % SUPPORTED_VERSIONS.len()];
    let Some(rules) = rules(version) else { return };
    for part in parts(rest).take(4) {
        whole(part, rules);
        if let Ok(text) = std::str::from_utf8(part) {
            text.lines().take(20).for_each(words);
            powers(text, rules);
        }
    }
}

/// An event that can be read says the same thing after every way through the store.
fn whole(bytes: &[u8], rules: &RoomVersionRules) {
    let Ok(parsed) = Parsed::from_bytes(bytes, rules) else { return };
    let json = parsed.json();
    let again = Parsed::from_bytes(&json, rules);
    assert_eq!(again.ok().map(|again| again.pdu.event_id), Some(parsed.pdu.event_id.clone()), "another event");
    let parts = parsed.parts(rules);
    let joined = join_from_storage(&parts, &parsed.pdu.room_id, rules).unwrap_or_default();
    assert_eq!(String::from_utf8_lossy(&joined), String::from_utf8_lossy(&json), "divided and joined");
    let stored = Pdu::from_storage(parsed.pdu.event_id.clone(), parsed.pdu.room_id.clone(), &parts, false, rules);
    assert!(stored.is_ok_and(|stored| stored.state_pair() == parsed.pdu.state_pair()), "not read from the store");
    let Ok(redacted) = redact::apply(parsed.object.clone(), rules) else { return };
    let twice = redact::apply(redacted.clone(), rules);
    assert_eq!(twice.ok(), Some(redacted.clone()), "a redaction changes what is redacted");
    let same = Parsed::from_bytes(&canonical(&redacted), rules);
    assert_eq!(same.ok().map(|same| same.pdu.event_id), Some(parsed.pdu.event_id), "redacting changes the ID");
    let _ = redact::client_part(&parts.client, rules);
    let _ = event::with_redacts_for_clients(&parts.client, parsed.pdu.redacts.as_deref());
}

/// A content as power levels, and as what a client sends.
fn powers(content: &str, rules: &RoomVersionRules) {
    let Ok(object) = build::content_from_json(content.as_bytes()) else { return };
    let content = canonical(&object);
    let again = build::content_from_json(&content);
    assert!(again.is_ok_and(|again| canonical(&again) == content), "canonical JSON is not what it is");
    let content = String::from_utf8_lossy(&content);
    for kind in ["m.room.power_levels", "m.room.create", "m.room.member", "m.room.message"] {
        let Ok(raw) = RawValue::from_string(content.clone().into_owned()) else { return };
        assert!(redact::content(kind, &raw, rules).is_ok(), "{kind}");
    }
    let create = pdu("m.room.create", r#"{"room_version":"11"}"#, rules);
    let levels = pdu("m.room.power_levels", &content, rules);
    if let (Some(create), Some(levels)) = (create, levels) {
        ask(&Power::new(create, Some(levels), rules));
    }
}

fn ask(power: &Power<'_>) {
    let (me, other) = (user_id!("@me:hs.test"), user_id!("@other:hs.test"));
    for action in [Action::Invite, Action::Kick, Action::Ban, Action::Redact] {
        let _ = power.required(action);
        let both = power.allows_against(me, action, other) && power.allows_against(other, action, me);
        assert!(!both, "each has more power than the other");
    }
    let kind = TimelineEventType::from("m.room.name");
    assert_eq!(power.allows_sending(me, &kind, true), power.of(me) >= power.required_to_send(&kind, true));
    let _ = power.required_to_notify("room");
}

fn pdu(kind: &str, content: &str, rules: &RoomVersionRules) -> Option<Arc<Pdu>> {
    let room = if kind == "m.room.create" { "" } else { "\"room_id\":\"!room:hs.test\"," };
    let json = format!(
        "{{\"auth_events\":[],\"content\":{content},\"depth\":1,\"hashes\":{{\"sha256\":\"\"}},\"origin_server_ts\":1,\
         \"prev_events\":[],{room}\"sender\":\"@me:hs.test\",\"signatures\":{{}},\"state_key\":\"\",\"type\":\"{kind}\"}}"
    );
    let old = json.replace("\"prev_events\":[],", "\"prev_events\":[],\"room_id\":\"!room:hs.test\",");
    Pdu::parse(json.as_bytes(), rules).or_else(|_| Pdu::parse(old.as_bytes(), rules)).ok().map(Arc::new)
}

/// Everything that is read from a path, a query or a field of its own.
fn words(text: &str) {
    let same = |id: &str| assert_eq!(id, text);
    let _ = RoomId::parse(text).map(|id| same(id.as_str()));
    let _ = RoomAliasId::parse(text).map(|id| same(id.as_str()));
    let _ = RoomOrAliasId::parse(text).map(|id| same(id.as_str()));
    let _ = EventId::parse(text).map(|id| same(id.as_str()));
    let _ = OwnedServerName::try_from(text).map(|name| (name.host().len(), name.port()));
    if let Ok(id) = UserId::parse(text) {
        assert_eq!(format!("@{}:{}", id.localpart(), id.server_name()), text);
    }
    let _ = <&MxcUri>::from(text).parts();
    if let Some(id) = MediaId::parse(text) {
        same(id.as_str());
    }
    if let Ok(token) = text.parse::<SyncToken>() {
        assert_eq!(token.to_string().parse::<SyncToken>().ok(), Some(token));
    }
    if let Ok(token) = text.parse::<ConnectionToken>() {
        assert_eq!(token.to_string().parse::<ConnectionToken>().ok(), Some(token));
    }
    let _ = parse_position(text);
    let _ = hierarchy::From::parse(text);
}

/// An event as it lies in the store; none if the parts make no JSON.
pub(super) fn stored(kind: &str, state_key: Option<&str>, sender: &str, content: &str) -> Option<StoredEvent> {
    let content: Box<RawValue> = serde_json::from_str(content).ok()?;
    let text = |text: &str| serde_json::Value::from(text).to_string();
    let key = state_key.map(|key| format!("\"state_key\":{},", text(key))).unwrap_or_default();
    let client = format!(
        "\"content\":{content},\"origin_server_ts\":1,\"sender\":{},{key}\"type\":{}",
        text(sender),
        text(kind)
    );
    // What does not fit into the fields of the header never gets this far.
    let fits = [kind, state_key.unwrap_or_default()].iter().all(|field| field.len() <= 255);
    let stored = || NewEvent::plain(kind, state_key, sender, client.as_bytes()).stored().ok();
    fits.then(stored).flatten()
}
