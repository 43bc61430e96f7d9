//! JSON that somebody signed: keys, with the signatures of those who vouch for them.

use std::collections::BTreeMap;

use bytes::Bytes;
use ruma::serde::Base64;
use ruma::signatures::{SigningKeyAlgorithm, to_canonical_json_string_for_signing, verify_canonical_json_bytes};
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

use crate::error::{Error, Result};

/// By user ID and key ID.
pub type Signatures = BTreeMap<String, BTreeMap<String, String>>;

/// An object and its signatures. What is signed keeps its words.
#[derive(Clone, Debug)]
pub struct Signed {
    /// All but `signatures`, and `unsigned`, which is the server's to write.
    members: BTreeMap<String, Box<RawValue>>,
    pub signatures: Signatures,
}

impl Signed {
    pub fn parse(json: &[u8]) -> Result<Self> {
        let mut members: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(json)?;
        members.remove("unsigned");
        let signatures = members.remove("signatures").map(|signatures| readable(&signatures)).unwrap_or_default();
        Ok(Signed { members, signatures })
    }

    pub fn to_json(&self) -> Result<Bytes> {
        let signatures = to_raw_value(&self.signatures).map_err(Error::internal)?;
        let mut members: BTreeMap<&str, &RawValue> =
            self.members.iter().map(|(name, value)| (name.as_str(), &**value)).collect();
        members.insert("signatures", &signatures);
        Ok(serde_json::to_vec(&members).map_err(Error::internal)?.into())
    }

    /// Whether both are the same but for the signatures.
    pub fn says_the_same(&self, other: &Self) -> bool {
        let value = |raw: &RawValue| serde_json::from_str::<Value>(raw.get()).ok();
        let same = |one: &RawValue, two: &RawValue| one.get() == two.get() || value(one) == value(two);
        self.members.len() == other.members.len()
            && self.members.iter().all(|(name, one)| other.members.get(name).is_some_and(|two| same(one, two)))
    }

    /// The signature of a user's key, whatever it is worth.
    pub fn signature(&self, user_id: &str, key_id: &str) -> Option<&str> {
        self.signatures.get(user_id)?.get(key_id).map(String::as_str)
    }

    /// Whether a user's key signed it: the key with this ID, which is this one.
    pub fn verify(&self, user_id: &str, key_id: &str, public_key: &str) -> Result<()> {
        let signature = self.signature(user_id, key_id);
        let signature = signature.ok_or_else(|| Error::invalid_signature(format!("{key_id} did not sign this")))?;
        let wrong = || Error::invalid_signature(format!("The signature of {key_id} is wrong"));
        let signature = Base64::<ruma::serde::base64::Standard>::parse(signature).map_err(|_| wrong())?;
        let public_key = Base64::<ruma::serde::base64::Standard>::parse(public_key).map_err(|_| wrong())?;
        let object = serde_json::to_vec(&self.members).map_err(Error::internal)?;
        let object = serde_json::from_slice(&object).map_err(|_| wrong())?;
        let canonical = to_canonical_json_string_for_signing(&object).map_err(|_| wrong())?;
        let (key, signature) = (public_key.as_bytes(), signature.as_bytes());
        verify_canonical_json_bytes(&SigningKeyAlgorithm::Ed25519, key, signature, canonical.as_bytes())
            .map_err(|_| wrong())
    }
}

/// Signatures as far as they are ones.
fn readable(signatures: &RawValue) -> Signatures {
    let users: BTreeMap<String, Value> = serde_json::from_str(signatures.get()).unwrap_or_default();
    let keys = |keys: Value| match keys {
        Value::Object(keys) => keys
            .into_iter()
            .filter_map(|(key_id, signature)| match signature {
                Value::String(signature) => Some((key_id, signature)),
                _ => None,
            })
            .collect(),
        _ => BTreeMap::new(),
    };
    users.into_iter().map(|(user_id, by_key)| (user_id, keys(by_key))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_signed_keeps_its_words() {
        let json = br#"{"b":1.50, "signatures":{"@a:x":{"k":"s","n":1},"@b:x":2}, "unsigned":{"x":1}, "a":"\u00fc"}"#;
        let mut signed = Signed::parse(json).unwrap();
        assert_eq!(signed.signature("@a:x", "k"), Some("s"));
        assert_eq!((signed.signature("@a:x", "n"), signed.signature("@b:x", "k")), (None, None));
        signed.signatures.clear();
        assert_eq!(&*signed.to_json().unwrap(), br#"{"a":"\u00fc","b":1.50,"signatures":{}}"#);
        let same = Signed::parse("{\"a\": \"ü\", \"b\": 1.5}".as_bytes()).unwrap();
        assert!(signed.says_the_same(&same));
        for other in [r#"{"a":"u","b":1.5}"#, r#"{"a":"ü"}"#, r#"{"a":"ü","b":1.5,"c":1}"#] {
            assert!(!signed.says_the_same(&Signed::parse(other.as_bytes()).unwrap()), "{other}");
        }
    }
}
