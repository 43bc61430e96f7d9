//! What a site asks of a release besides its makers' signatures: its own, and a second person.
//!
//! The image says it, and an update is another image. So the box keeps what it was asked for, and a release that asks for
//! less changes nothing: only somebody at the box takes it back, and the history tells of it.

use bundle::PublicKey;
use serde::{Deserialize, Serialize};

/// What is asked for. With nothing, the makers' signatures are enough.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Somebody else has to approve a release before it is armed.
    #[serde(default)]
    pub second_approval: bool,
    #[serde(default)]
    pub site: Option<Site>,
}

/// The keys of a site whose owner wants a say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    pub keys: Vec<PublicKey>,
    /// How many of them have to have signed.
    pub threshold: u32,
}

impl Policy {
    /// What is in force where this was asked for before, and an image asks for `image`. Other keys take the place of the
    /// ones before: the release that brings them was signed with those.
    #[must_use]
    pub fn kept_by(&self, image: &Self) -> Self {
        Self {
            second_approval: self.second_approval || image.second_approval,
            site: image.site.as_ref().or(self.site.as_ref()).cloned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(second_approval: bool, keys: &[u8]) -> Policy {
        let keys: Vec<PublicKey> = keys.iter().map(|key| PublicKey([*key; 32])).collect();
        Policy { second_approval, site: (!keys.is_empty()).then_some(Site { keys, threshold: 1 }) }
    }

    #[test]
    fn no_image_asks_for_less() {
        for (before, image, now) in [
            (policy(false, &[]), policy(false, &[]), policy(false, &[])),
            (policy(false, &[]), policy(true, &[1]), policy(true, &[1])),
            (policy(true, &[1]), policy(false, &[]), policy(true, &[1])),
            (policy(true, &[1]), policy(false, &[2]), policy(true, &[2])),
            (policy(false, &[1, 2]), policy(true, &[]), policy(true, &[1, 2])),
        ] {
            assert_eq!(before.kept_by(&image), now, "{before:?} {image:?}");
        }
    }
}
