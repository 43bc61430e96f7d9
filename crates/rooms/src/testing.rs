//! Events and keys for the tests of this crate.

use std::sync::Arc;

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, room_version_rules::RoomVersionRules, serde::Base64,
    signatures::Ed25519KeyPair,
};
use serde_json::{Value, json};

use crate::event::{Parsed, Pdu};

pub(crate) const RULES_10: &RoomVersionRules = &RoomVersionRules::V10;
pub(crate) const RULES_11: &RoomVersionRules = &RoomVersionRules::V11;
pub(crate) const RULES_12: &RoomVersionRules = &RoomVersionRules::V12;

pub(crate) fn object(value: Value) -> CanonicalJsonObject {
    match value.try_into().unwrap() {
        CanonicalJsonValue::Object(object) => object,
        other => panic!("no object: {other:?}"),
    }
}

pub(crate) fn key_pair(seed: &str) -> Ed25519KeyPair {
    // The ASN.1 around a seed in a PKCS#8 document.
    let mut der = vec![0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
    der.extend(Base64::<ruma::serde::base64::Standard>::parse(seed).unwrap().as_bytes());
    Ed25519KeyPair::from_der(&der, "1".to_owned()).unwrap()
}

/// A state event of a room of version 11 (or of version 12, for a create event without room id).
pub(crate) fn state(kind: &str, sender: &str, state_key: &str, content: Value) -> Arc<Pdu> {
    let event = json!({
        "auth_events": [], "content": content, "depth": 1, "hashes": {}, "origin_server_ts": 1,
        "prev_events": [], "room_id": "!r:a.test", "sender": sender, "signatures": {},
        "state_key": state_key, "type": kind,
    });
    Arc::new(Parsed::from_object(object(event), RULES_11).unwrap().pdu)
}

pub(crate) fn create_v12(sender: &str, content: Value) -> Arc<Pdu> {
    let event = json!({
        "auth_events": [], "content": content, "depth": 1, "hashes": {}, "origin_server_ts": 1,
        "prev_events": [], "sender": sender, "signatures": {}, "state_key": "",
        "type": "m.room.create",
    });
    Arc::new(Parsed::from_object(object(event), RULES_12).unwrap().pdu)
}
