//! Scopes: what a client asks for. There is one kind of access, to everything, and it is for one device; administrators may
//! let a client administer the server besides.

use super::{Reason, Refused};

/// A scope that can be granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    pub device_id: String,
    /// The parts that are granted, in the client's own spelling.
    pub granted: String,
}

/// What administration consoles ask for.
const ADMIN: &str = "urn:synapse:admin:*";

const API: [&str; 2] = ["urn:matrix:client:api:*", "urn:matrix:org.matrix.msc2967.client:api:*"];
/// The second is what clients sent before the specification had the first, and some still do.
const DEVICE: [&str; 2] = ["urn:matrix:client:device:", "urn:matrix:org.matrix.msc2967.client:device:"];
const MAX_BYTES: usize = 2_048;
const MAX_DEVICE_ID_BYTES: usize = 255;

impl Scope {
    /// Parts that nobody knows here, such as `openid`, are not granted.
    pub fn parse(text: &str) -> Result<Self, Refused> {
        let refused = |why: &'static str| Refused::new(Reason::InvalidScope, why);
        if text.len() > MAX_BYTES || !text.bytes().all(is_scope_byte) {
            return Err(refused("This is not a scope"));
        }
        let (mut granted, mut api, mut device_id) = (Vec::new(), false, None);
        for part in text.split(' ') {
            if API.contains(&part) {
                api = true;
            } else if let Some(named) = DEVICE.iter().find_map(|prefix| part.strip_prefix(prefix)) {
                if device_id.is_some_and(|other| other != named) {
                    return Err(refused("The scope names more than one device"));
                }
                device_id = Some(named);
            } else if part != ADMIN {
                continue;
            }
            if !granted.contains(&part) {
                granted.push(part);
            }
        }
        let device_id = device_id.ok_or_else(|| refused("The scope names no device"))?;
        if device_id.is_empty() || device_id.len() > MAX_DEVICE_ID_BYTES {
            return Err(refused("The scope names no good device"));
        }
        if !api {
            return Err(refused("The scope has to ask for the client-server API"));
        }
        Ok(Self { device_id: device_id.to_owned(), granted: granted.join(" ") })
    }
}

/// Whether a session with this scope may administer the server, if its user may.
pub fn may_administer(granted: &str) -> bool {
    granted.split(' ').any(|part| part == ADMIN)
}

impl Scope {
    /// What of it can be granted to a user.
    #[must_use]
    pub fn for_user(self, is_admin: bool) -> Self {
        if is_admin {
            return self;
        }
        let parts: Vec<&str> = self.granted.split(' ').filter(|part| *part != ADMIN).collect();
        let granted = parts.join(" ");
        Self { granted, ..self }
    }
}

/// RFC 6749, section 3.3, and the blank between parts.
fn is_scope_byte(byte: u8) -> bool {
    matches!(byte, b' ' | 0x21 | 0x23..=0x5b | 0x5d..=0x7e)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Option<(&str, &str)>) {
        let found = Scope::parse(text).ok();
        let found = found.as_ref().map(|scope| (scope.device_id.as_str(), scope.granted.as_str()));
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn a_scope_is_the_api_and_one_device_in_either_spelling() {
        let stable = "urn:matrix:client:api:* urn:matrix:client:device:ABC";
        check(stable, Some(("ABC", stable)));
        let old = "urn:matrix:org.matrix.msc2967.client:api:* urn:matrix:org.matrix.msc2967.client:device:ABC";
        check(old, Some(("ABC", old)));
        check(&format!("openid {stable}"), Some(("ABC", stable)));
        check(&format!("{stable} {old}"), Some(("ABC", &format!("{stable} {old}"))));
        let admin = format!("{stable} urn:synapse:admin:*");
        check(&admin, Some(("ABC", &admin)));
        assert!(may_administer(&admin) && !may_administer(stable));
        let scope = Scope::parse(&admin).unwrap();
        assert_eq!((scope.clone().for_user(true).granted, scope.for_user(false).granted), (admin, stable.to_owned()));
        // Keys in base64 are device IDs, too.
        let key = "urn:matrix:client:api:* urn:matrix:client:device:a+b/c=";
        check(key, Some(("a+b/c=", key)));
        for wrong in [
            "",
            "openid",
            "urn:matrix:client:api:*",
            "urn:matrix:client:device:ABC",
            "urn:matrix:client:api:* urn:matrix:client:device:",
            "urn:matrix:client:api:* urn:matrix:client:device:A urn:matrix:client:device:B",
            "urn:matrix:client:api:* urn:matrix:client:device:A\"B",
            "urn:matrix:client:api:*\nurn:matrix:client:device:A",
        ] {
            check(wrong, None);
        }
        check(&format!("urn:matrix:client:api:* urn:matrix:client:device:{}", "x".repeat(256)), None);
    }
}
