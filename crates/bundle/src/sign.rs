//! Signing without a network: a request goes to the signer on a stick, a signature comes back.
//!
//! Lives here: both as text, and the key that signs. Not here: where keys are kept (the binary).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde::{Deserialize, Serialize};

use crate::format::Signature;
use crate::limits::{MAX_MANIFEST, MAX_ROOT};
use crate::manifest::Manifest;
use crate::refusal::Refusal;
use crate::trust::{KeyId, PublicKey, RELEASE_CONTEXT, ROOT_CONTEXT, Root};

/// What somebody is asked to sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestKind {
    Root,
    Release,
}

/// A document to be signed. As text: JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub kind: RequestKind,
    pub document: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestText {
    sign: RequestKind,
    document: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SignatureText {
    key: KeyId,
    signature: String,
}

/// A key that signs.
pub struct Signer(Ed25519KeyPair);

impl Request {
    /// What this document says, so that a signer knows what they sign.
    ///
    /// # Errors
    /// The document is not what the request says.
    pub fn subject(&self) -> Result<String, Refusal> {
        Ok(match self.kind {
            RequestKind::Root => {
                let root = Root::parse(&self.document)?;
                let (of, needed) = (root.release.keys.len(), root.release.threshold);
                format!("root document {}: releases need {needed} of {of} keys", root.version)
            }
            RequestKind::Release => {
                let manifest = Manifest::parse(&self.document)?;
                let arches = manifest.images.keys().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                format!("release {} (security version {}) for {arches}", manifest.version, manifest.security_version)
            }
        })
    }

    pub fn to_text(&self) -> String {
        let text = RequestText { sign: self.kind, document: STANDARD.encode(&self.document) };
        serde_json::to_string(&text).unwrap_or_default() + "\n"
    }

    /// # Errors
    /// The text is not a request.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let no = || Refusal::damaged("the signing request cannot be read");
        let most = MAX_MANIFEST.max(MAX_ROOT) * 4 / 3 + 1024;
        let request: RequestText =
            Some(text).filter(|text| text.len() <= most).map(serde_json::from_str).ok_or_else(no)?.map_err(|_| no())?;
        Ok(Self { kind: request.sign, document: STANDARD.decode(request.document).map_err(|_| no())? })
    }
}

impl Signature {
    pub fn to_text(&self) -> String {
        let text = SignatureText { key: self.key, signature: STANDARD.encode(self.signature) };
        serde_json::to_string(&text).unwrap_or_default() + "\n"
    }

    /// # Errors
    /// The text is not a signature.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let no = || Refusal::damaged("the signature cannot be read");
        let text: SignatureText = serde_json::from_str(text).map_err(|_| no())?;
        let bytes = STANDARD.decode(text.signature).map_err(|_| no())?;
        Ok(Self { key: text.key, signature: bytes.try_into().map_err(|_| no())? })
    }
}

impl Signer {
    /// From 32 secret bytes.
    pub fn from_seed(seed: &[u8; 32]) -> Option<Self> {
        Ed25519KeyPair::from_seed_unchecked(seed).ok().map(Self)
    }

    pub fn public(&self) -> Option<PublicKey> {
        self.0.public_key().as_ref().try_into().ok().map(PublicKey)
    }

    /// # Errors
    /// The document is not what the request says: nobody signs what they cannot read.
    pub fn sign(&self, request: &Request) -> Result<Signature, Refusal> {
        request.subject()?;
        let context = match request.kind {
            RequestKind::Root => ROOT_CONTEXT,
            RequestKind::Release => RELEASE_CONTEXT,
        };
        let message = [context, &request.document].concat();
        let key = self.public().ok_or_else(|| Refusal::damaged("the key"))?.id();
        let mut signature = [0; 64];
        signature.copy_from_slice(self.0.sign(&message).as_ref());
        Ok(Signature { key, signature })
    }
}
