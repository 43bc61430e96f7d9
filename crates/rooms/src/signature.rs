//! Whose signatures an event needs, and whether they are right. Not here: fetching keys.

use std::collections::{BTreeMap, BTreeSet};

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, MilliSecondsSinceUnixEpoch, OwnedServerName, ServerName, UserId,
    room_version_rules::RoomVersionRules,
    serde::Base64,
    signatures::{PublicKeyMap, Verified, verify_event},
};

use crate::event::{FormatError, Parsed};

/// A key of a server and until when events may be signed with it.
#[derive(Clone, Debug)]
pub struct ServerKey {
    pub key: Base64,
    /// `valid_until_ts` of a current key, `expired_ts` of an old one.
    pub valid_until_ts: MilliSecondsSinceUnixEpoch,
}

/// The keys of servers by server name and key id.
pub type Keys = BTreeMap<OwnedServerName, BTreeMap<String, ServerKey>>;

/// Why an event is not authentic. Such events are dropped.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    #[error("the event names no valid signer")]
    NoSigner,
    #[error("{0} did not sign the event with a key we know to be valid then")]
    NoValidKey(OwnedServerName),
    #[error("{0}")]
    Wrong(String),
    #[error(transparent)]
    Format(#[from] FormatError),
}

/// The servers that must have signed an event.
pub fn required_signers(
    object: &CanonicalJsonObject,
    rules: &RoomVersionRules,
) -> Result<BTreeSet<OwnedServerName>, SignatureError> {
    let mut signers = BTreeSet::new();
    let content = object.get("content").and_then(CanonicalJsonValue::as_object);
    let is_member = field(object, "type") == Some("m.room.member");
    let membership = content.and_then(|content| field(content, "membership"));
    let third_party = content.and_then(|content| content.get("third_party_invite"));
    let by_third_party =
        is_member && membership == Some("invite") && third_party.is_some_and(CanonicalJsonValue::is_object);
    if !by_third_party {
        signers.insert(server_of(field(object, "sender")).ok_or(SignatureError::NoSigner)?);
    }
    if let Some(authoriser) = authoriser(object, rules) {
        signers.insert(server_of(authoriser.as_str()).ok_or(SignatureError::NoSigner)?);
    }
    Ok(signers)
}

/// The key ids under which the required signers signed: the keys to have before [`verify`].
pub fn keys_needed(
    object: &CanonicalJsonObject,
    rules: &RoomVersionRules,
) -> Result<BTreeMap<OwnedServerName, Vec<String>>, SignatureError> {
    let signatures = object.get("signatures").and_then(CanonicalJsonValue::as_object);
    Ok(required_signers(object, rules)?
        .into_iter()
        .map(|server| {
            let ids = signatures
                .and_then(|all| all.get(server.as_str()))
                .and_then(CanonicalJsonValue::as_object)
                .map(|of_server| of_server.keys().cloned().collect())
                .unwrap_or_default();
            (server, ids)
        })
        .collect())
}

/// Check the signatures and the content hash. An event whose content was changed comes back
/// redacted, as the spec wants it to be treated.
pub fn verify(parsed: Parsed, keys: &Keys, rules: &RoomVersionRules) -> Result<Parsed, SignatureError> {
    let signers = required_signers(&parsed.object, rules)?;
    let mut map = PublicKeyMap::new();
    for server in signers {
        let valid = valid_keys(keys, &server, parsed.pdu.origin_server_ts, rules);
        if valid.is_empty() {
            return Err(SignatureError::NoValidKey(server));
        }
        map.insert(server.to_string(), valid);
    }
    let verified = verify_event(&map, &parsed.object, &own_rules(&parsed.object, rules))
        .map_err(|error| SignatureError::Wrong(error.to_string()))?;
    match verified {
        Verified::All => Ok(parsed),
        _ => redacted(parsed, rules),
    }
}

/// The user whose server vouches for a restricted join. The library looks for one in every type of
/// event, which lets a stranger's message demand a signature nobody will give.
fn authoriser<'a>(object: &'a CanonicalJsonObject, rules: &RoomVersionRules) -> Option<&'a CanonicalJsonValue> {
    let content = object.get("content")?.as_object()?;
    let is_join = field(object, "type") == Some("m.room.member") && field(content, "membership") == Some("join");
    (is_join && rules.signatures.check_join_authorised_via_users_server)
        .then(|| content.get("join_authorised_via_users_server"))
        .flatten()
}

fn own_rules<'a>(object: &CanonicalJsonObject, rules: &'a RoomVersionRules) -> std::borrow::Cow<'a, RoomVersionRules> {
    if authoriser(object, rules).is_some() {
        return std::borrow::Cow::Borrowed(rules);
    }
    let mut rules = rules.clone();
    rules.signatures.check_join_authorised_via_users_server = false;
    std::borrow::Cow::Owned(rules)
}

fn redacted(parsed: Parsed, rules: &RoomVersionRules) -> Result<Parsed, SignatureError> {
    let mut object = parsed.object;
    ruma::canonical_json::redact_in_place(&mut object, &rules.redaction, None)
        .map_err(|error| SignatureError::Wrong(error.to_string()))?;
    Ok(Parsed::from_object(object, rules)?)
}

fn valid_keys(
    keys: &Keys,
    server: &ServerName,
    at: MilliSecondsSinceUnixEpoch,
    rules: &RoomVersionRules,
) -> BTreeMap<String, Base64> {
    keys.get(server)
        .into_iter()
        .flatten()
        .filter(|(_, key)| !rules.enforce_key_validity || at <= key.valid_until_ts)
        .map(|(id, key)| (id.clone(), key.key.clone()))
        .collect()
}

fn field<'a>(object: &'a CanonicalJsonObject, name: &str) -> Option<&'a str> {
    object.get(name).and_then(CanonicalJsonValue::as_str)
}

fn server_of(user_id: Option<&str>) -> Option<OwnedServerName> {
    Some(<&UserId>::try_from(user_id?).ok()?.server_name().to_owned())
}

#[cfg(test)]
mod tests {
    use ruma::signatures::Ed25519KeyPair;
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        build::seal,
        testing::{RULES_11, key_pair, object},
    };

    fn key(seed: u8) -> Ed25519KeyPair {
        key_pair(&Base64::<ruma::serde::base64::Standard, _>::new([seed; 32]).encode())
    }

    fn event(extra: Value) -> CanonicalJsonObject {
        let mut event = object(json!({
            "auth_events": [], "content": {"body": "hi"}, "depth": 1, "origin_server_ts": 100,
            "prev_events": [], "room_id": "!r:a.test", "sender": "@u:a.test",
            "type": "m.room.message",
        }));
        event.extend(object(extra));
        event
    }

    fn signed(extra: Value) -> Parsed {
        seal(event(extra), "a.test".try_into().unwrap(), &key(1), RULES_11).unwrap()
    }

    fn keys(of: &[(&str, u8)]) -> Keys {
        let entry = |(server, seed): &(&str, u8)| {
            let valid_until_ts = MilliSecondsSinceUnixEpoch(ruma::uint!(100));
            let key = ServerKey { key: Base64::new(key(*seed).public_key().to_vec()), valid_until_ts };
            ((*server).try_into().unwrap(), [("ed25519:1".to_owned(), key)].into())
        };
        of.iter().map(entry).collect()
    }

    #[test]
    fn a_signed_event_is_authentic_until_something_is_changed() {
        let keys = keys(&[("a.test", 1)]);
        let sealed = signed(json!({}));
        assert!(verify(sealed.clone(), &keys, RULES_11).is_ok());
        let mut forged = sealed.object.clone();
        forged.extend(object(json!({"depth": 2})));
        let forged = Parsed::from_object(forged, RULES_11).unwrap();
        assert!(verify(forged, &keys, RULES_11).is_err());
        let wrong = super::tests::keys(&[("a.test", 2)]);
        assert!(verify(sealed.clone(), &wrong, RULES_11).is_err());
        let missing = verify(sealed, &Keys::new(), RULES_11);
        assert!(matches!(missing, Err(SignatureError::NoValidKey(_))));
    }

    #[test]
    fn pitfall_088_an_event_with_changed_content_is_redacted_not_dropped() {
        let mut changed = signed(json!({})).object;
        changed.extend(object(json!({"content": {"body": "changed"}})));
        let changed = Parsed::from_object(changed, RULES_11).unwrap();
        let id = changed.pdu.event_id.clone();
        let verified = verify(changed, &keys(&[("a.test", 1)]), RULES_11).unwrap();
        assert_eq!(verified.pdu.content.get(), "{}");
        assert_eq!(verified.pdu.event_id, id);
    }

    #[test]
    fn a_key_counts_only_while_it_is_valid() {
        let keys = keys(&[("a.test", 1)]);
        assert!(verify(signed(json!({"origin_server_ts": 100})), &keys, RULES_11).is_ok());
        assert!(verify(signed(json!({"origin_server_ts": 101})), &keys, RULES_11).is_err());
    }

    #[test]
    fn only_restricted_joins_need_the_signature_of_an_authoriser() {
        let authoriser = "join_authorised_via_users_server";
        let keys = keys(&[("a.test", 1)]);
        // A message that names one, even in nonsense, is nothing special.
        for value in [json!("@x:b.test"), json!(17)] {
            let message = signed(json!({"content": {authoriser: value}}));
            assert!(verify(message, &keys, RULES_11).is_ok());
        }
        let member = |membership: &str| {
            signed(json!({
                "type": "m.room.member", "state_key": "@u:a.test",
                "content": {"membership": membership, authoriser: "@x:b.test"},
            }))
        };
        assert!(verify(member("leave"), &keys, RULES_11).is_ok());
        let join = member("join");
        assert!(verify(join.clone(), &keys, RULES_11).is_err());

        let mut both = join.object;
        ruma::signatures::sign_event("b.test", &key(2), &mut both, &RULES_11.redaction).unwrap();
        let both = Parsed::from_object(both, RULES_11).unwrap();
        let needed = keys_needed(&both.object, RULES_11).unwrap();
        assert_eq!(needed.keys().map(|name| name.as_str()).collect::<Vec<_>>(), ["a.test", "b.test"]);
        assert!(verify(both.clone(), &keys, RULES_11).is_err());
        let keys = super::tests::keys(&[("a.test", 1), ("b.test", 2)]);
        assert!(verify(both, &keys, RULES_11).is_ok());
    }
}
