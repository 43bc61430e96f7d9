//! Who may sign: root documents, their chain, and weighing signatures.
//!
//! A box is born with one root document. Root N+1 counts if the thresholds of N and of N+1 have both signed it. Every
//! bundle carries the whole chain, so that a box that slept for years catches up.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{ED25519, UnparsedPublicKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::digest::Digest;
use crate::format::{Envelope, Signature, Signed};
use crate::limits::{MAX_KEYS, MAX_ROOT, MAX_ROOTS};
use crate::manifest::FORMAT;
use crate::refusal::Refusal;

/// What signatures are made over: these words, then the document.
pub(crate) const ROOT_CONTEXT: &[u8] = b"skerry root 1\n";
pub(crate) const RELEASE_CONTEXT: &[u8] = b"skerry release 1\n";

/// The SHA-256 of an Ed25519 public key. For people, its first 16 digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyId(pub Digest);

/// An Ed25519 public key. As text: Base64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey(pub [u8; 32]);

/// Who may say something, and how many of them must.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Role {
    pub keys: BTreeSet<KeyId>,
    pub threshold: u32,
}

/// A root document. It has one spelling, like the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Root {
    pub format: u32,
    /// 1, 2, 3 ...
    pub version: u64,
    pub keys: BTreeMap<KeyId, PublicKey>,
    /// Who says what the next root is.
    pub root: Role,
    /// Who says what a release is.
    pub release: Role,
    /// Keys that count for nothing from now on, also not for the step to this root.
    pub revoked: BTreeSet<KeyId>,
}

/// Whom a box believes.
#[derive(Clone, Debug)]
pub struct Trust {
    /// The newest root that this box has seen, as its bytes and what they say.
    bytes: Vec<u8>,
    root: Root,
    /// The site's own keys, if its owner wants a say.
    site: Option<(BTreeMap<KeyId, PublicKey>, Role)>,
}

impl Trust {
    /// The document that is in the image, or that an earlier bundle has brought.
    ///
    /// # Errors
    /// The document is not a good root.
    pub fn new(root: &[u8]) -> Result<Self, Refusal> {
        Ok(Self { bytes: root.to_vec(), root: Root::parse(root)?, site: None })
    }

    /// From now on a release needs `threshold` signatures of these keys, too.
    ///
    /// # Errors
    /// The threshold cannot be reached.
    pub fn with_site(mut self, keys: &[PublicKey], threshold: u32) -> Result<Self, Refusal> {
        let keys: BTreeMap<KeyId, PublicKey> = keys.iter().map(|key| (key.id(), *key)).collect();
        let role = Role { keys: keys.keys().copied().collect(), threshold };
        role.check(&keys).map_err(|why| Refusal::BadRoot { version: 0, why })?;
        self.site = Some((keys, role));
        Ok(self)
    }

    pub fn root(&self) -> &Root {
        &self.root
    }

    /// To be kept by the box, as its next [`Trust::new`].
    pub fn root_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What this box believes once it has followed the chain of an envelope. It never goes back.
    ///
    /// # Errors
    /// The chain has a gap, starts elsewhere, or a step lacks signatures.
    pub fn follow(&self, chain: &[Signed]) -> Result<Self, Refusal> {
        if chain.is_empty() {
            return Err(Refusal::NoRoots);
        }
        if chain.len() > MAX_ROOTS {
            return Err(Refusal::TooLarge { what: "the chain of roots" });
        }
        let mut now = self.clone();
        for (version, signed) in (1..).zip(chain) {
            let root = Root::parse(&signed.document)?;
            if root.version != version {
                let why = format!("it stands at place {version} of the chain");
                return Err(Refusal::BadRoot { version: root.version, why });
            }
            if version == self.root.version && signed.document != self.bytes {
                return Err(Refusal::ForeignRoot { version });
            }
            if version == now.root.version + 1 {
                now.root.succeeded_by(&root, signed)?;
                now.bytes.clone_from(&signed.document);
                now.root = root;
            }
        }
        Ok(now)
    }

    /// Whether enough of those who may have signed this release.
    pub(crate) fn weigh(&self, manifest: &[u8], envelope: &Envelope) -> Result<Vec<KeyId>, Refusal> {
        let count = |keys, role| tally(RELEASE_CONTEXT, manifest, &envelope.signatures, keys, role, &self.root.revoked);
        let release = count(&self.root.keys, &self.root.release)?;
        let site = match &self.site {
            Some((keys, role)) => count(keys, role)?,
            None => Tally::default(),
        };
        let needed = self.root.release.threshold as usize;
        if release.good.len() < needed {
            let unknown = release.others.len();
            return Err(Refusal::NotSigned { by: release.good.len(), needed, unknown, revoked: release.revoked });
        }
        if let Some((_, role)) = &self.site
            && site.good.len() < role.threshold as usize
        {
            return Err(Refusal::NotCountersigned { by: site.good.len(), needed: role.threshold as usize });
        }
        Ok(release.good.into_iter().chain(site.good).collect())
    }
}

impl Root {
    /// # Errors
    /// The document cannot be read, is not in its one spelling, or contradicts itself.
    pub fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        let unknown = |why: String| Refusal::BadRoot { version: 0, why };
        if bytes.len() > MAX_ROOT {
            return Err(unknown("it is too large".into()));
        }
        let root: Self = serde_json::from_slice(bytes).map_err(|error| unknown(error.to_string()))?;
        let bad = |why: String| Refusal::BadRoot { version: root.version, why };
        if root.to_bytes() != bytes {
            return Err(bad("it is not in its one spelling".into()));
        }
        root.check().map_err(bad)?;
        Ok(root)
    }

    /// The one spelling.
    #[expect(
        clippy::missing_panics_doc,
        clippy::expect_used,
        reason = "plain structures with text keys always serialize"
    )]
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a root is plain data")
    }

    fn check(&self) -> Result<(), String> {
        if self.format != FORMAT {
            return Err(format!("it is of format {}", self.format));
        }
        if self.version == 0 {
            return Err("versions begin at 1".into());
        }
        if self.keys.len() > MAX_KEYS || self.revoked.len() > MAX_KEYS {
            return Err(format!("it has more than {MAX_KEYS} keys"));
        }
        if let Some((id, _)) = self.keys.iter().find(|(id, key)| key.id() != **id) {
            return Err(format!("key {id} is not the key of this name"));
        }
        if let Some(id) = self.revoked.iter().find(|id| self.keys.contains_key(id)) {
            return Err(format!("key {id} is revoked and listed"));
        }
        self.root.check(&self.keys)?;
        self.release.check(&self.keys)
    }

    /// Whether this root and `next` itself have both signed `next`.
    fn succeeded_by(&self, next: &Self, signed: &Signed) -> Result<(), Refusal> {
        for judge in [self, next] {
            let tally =
                tally(ROOT_CONTEXT, &signed.document, &signed.signatures, &judge.keys, &judge.root, &next.revoked)?;
            let (by, needed) = (tally.good.len(), judge.root.threshold as usize);
            if by < needed {
                return Err(Refusal::RootNotSigned { version: next.version, judged_by: judge.version, by, needed });
            }
        }
        Ok(())
    }
}

impl Role {
    fn check(&self, keys: &BTreeMap<KeyId, PublicKey>) -> Result<(), String> {
        if let Some(id) = self.keys.iter().find(|id| !keys.contains_key(id)) {
            return Err(format!("key {id} is named, but not there"));
        }
        if self.threshold == 0 || self.threshold as usize > self.keys.len() {
            return Err(format!("{} of {} keys is not a threshold", self.threshold, self.keys.len()));
        }
        Ok(())
    }
}

/// The signatures on a document, sorted by what they are worth.
#[derive(Default)]
struct Tally {
    /// Each key once, however often it signed.
    good: BTreeSet<KeyId>,
    others: BTreeSet<KeyId>,
    revoked: Vec<KeyId>,
}

fn tally(
    context: &[u8],
    document: &[u8],
    signatures: &[Signature],
    keys: &BTreeMap<KeyId, PublicKey>,
    role: &Role,
    revoked: &BTreeSet<KeyId>,
) -> Result<Tally, Refusal> {
    let message = [context, document].concat();
    let mut tally = Tally::default();
    for signature in signatures {
        let id = signature.key;
        if revoked.contains(&id) {
            tally.revoked.push(id);
            continue;
        }
        let Some(key) = keys.get(&id).filter(|_| role.keys.contains(&id)) else {
            tally.others.insert(id);
            continue;
        };
        if !key.has_signed(&message, &signature.signature) {
            return Err(Refusal::FalseSignature(id));
        }
        tally.good.insert(id);
    }
    Ok(tally)
}

impl PublicKey {
    pub fn id(&self) -> KeyId {
        KeyId(Digest::of(&self.0))
    }

    /// Of the spelling that [`fmt::Display`] gives.
    pub fn parse(text: &str) -> Option<Self> {
        STANDARD.decode(text).ok()?.try_into().ok().map(Self)
    }

    fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0).verify(message, signature).is_ok()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("a public key is 32 bytes in Base64"))
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.0.iter().take(8).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
