//! Media IDs: made, checked, and told apart from those of other servers. What is not a well-formed ID never gets near
//! the store or the disk.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ruma::ServerName;

use super::Sha256;
use crate::rng::Rng;

/// The second part of an `mxc://` URI: letters, digits, `-` and `_` only.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MediaId(String);

/// 142 bits: nobody guesses one.
const LENGTH: usize = 24;
/// Longer ones are nobody's.
const MAX_LENGTH: usize = 255;

impl MediaId {
    pub fn random(rng: &Rng) -> Self {
        Self(rng.alphanumeric(LENGTH))
    }

    /// The ID of a picture that this server fetched for a preview: the same for the same bytes. No random ID has its signs.
    pub fn of_preview(sha256: &Sha256) -> Self {
        Self(format!("preview_{}", URL_SAFE_NO_PAD.encode(sha256)))
    }

    pub fn parse(text: &str) -> Option<Self> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        let fits = !text.is_empty() && text.len() <= MAX_LENGTH && text.bytes().all(allowed);
        fits.then(|| Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The `mxc://` URI.
    pub fn uri(&self, server_name: &ServerName) -> String {
        format!("mxc://{server_name}/{}", self.0)
    }
}

impl fmt::Display for MediaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert, proptest};

    use super::*;

    #[test]
    fn pitfall_104_media_ids_have_a_small_alphabet() {
        let made = MediaId::random(&Rng::seeded(1));
        assert_eq!(MediaId::parse(made.as_str()), Some(made.clone()));
        assert_eq!(made.as_str().len(), LENGTH);
        let preview = MediaId::of_preview(&[0xfb; 32]);
        assert_eq!(MediaId::parse(preview.as_str()), Some(preview));
        assert_eq!(made.uri(ruma::server_name!("hs.test")), format!("mxc://hs.test/{made}"));
        let wrong = ["", ".", "..", "../x", "a/b", "a\\b", "a%2fb", "a.b", "a b", "ä", "a\0", "a\n", "a:b"];
        for text in wrong {
            assert_eq!(MediaId::parse(text), None, "{text:?}");
        }
        assert!(MediaId::parse(&"a".repeat(MAX_LENGTH)).is_some());
        assert!(MediaId::parse(&"a".repeat(MAX_LENGTH + 1)).is_none());
    }

    proptest! {
        #[test]
        fn pitfall_104_no_id_leads_out_of_a_directory(text in any::<String>()) {
            if let Some(id) = MediaId::parse(&text) {
                let path = std::path::Path::new(id.as_str());
                let parts: Vec<_> = path.components().collect();
                prop_assert!(matches!(parts[..], [std::path::Component::Normal(_)]));
            }
        }
    }
}
