//! What a release consists of: the document that is signed.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::limits::{CHUNK_MAX, MAX_CHUNKS, MAX_NOTES, MAX_PART, MAX_SBOM};
use crate::refusal::Refusal;

/// The format that this version writes and reads.
pub(crate) const FORMAT: u32 = 1;

/// A release. It has one spelling: JSON without spaces, fields in the order below, maps sorted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub format: u32,
    /// For people: `1.4.0`. Small letters, digits, `.`, `-`, `_`, `~`.
    pub version: String,
    /// Rises with each release that closes a hole. A box never goes below the highest it has run.
    pub security_version: u64,
    /// The lowest security version that a box may have to take the step to this release.
    pub from_security_version: u64,
    /// When it was made, in seconds since 1970. Shown, never judged: boxes have no clock that they could trust.
    pub built_s: u64,
    /// For people, in some lines.
    pub notes: String,
    pub store: Store,
    pub images: BTreeMap<Arch, Image>,
    /// The bill of materials, CycloneDX in JSON.
    pub sbom: Blob,
}

// Of these three, the updater keeps what it has read in its journal, and releases before and after read that: they take
// fields that they do not know. A manifest with such fields is refused all the same: it is not in its one spelling.

/// Which formats of the database the release reads, and which one it writes once it is blessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Store {
    pub oldest: u32,
    pub newest: u32,
}

/// Everything that one slot of a machine holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The read-only file system.
    pub root: Part,
    /// Its hash tree.
    pub verity: Part,
    /// The unified kernel image for the ESP.
    pub kernel: Part,
    /// The top of the hash tree; it stands in the kernel's command line, too.
    pub root_hash: Digest,
}

/// A partition or file, and its chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    pub bytes: u64,
    pub sha256: Digest,
    pub chunks: u32,
    /// The digest of the part's chunk index.
    pub index_sha256: Digest,
}

/// Bytes that are stored as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blob {
    pub bytes: u64,
    pub sha256: Digest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Arch {
    #[serde(rename = "arm64")]
    Arm64,
    #[serde(rename = "x86_64")]
    X86_64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PartName {
    Root,
    Verity,
    Kernel,
}

impl Manifest {
    /// Reads a manifest whose signatures were found good.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        let head: Head = serde_json::from_slice(bytes).map_err(unreadable)?;
        if head.format != FORMAT {
            return Err(Refusal::NewerFormat { format: head.format });
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(unreadable)?;
        if manifest.to_bytes() != bytes {
            return Err(Refusal::damaged("the manifest is not in its one spelling"));
        }
        manifest.check().map_err(|what| Refusal::damaged(format!("the manifest is wrong: {what}")))?;
        Ok(manifest)
    }

    /// The one spelling.
    #[expect(
        clippy::missing_panics_doc,
        clippy::expect_used,
        reason = "plain structures with text keys always serialize"
    )]
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a manifest is plain data")
    }

    pub(crate) fn check(&self) -> Result<(), String> {
        let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-_~".contains(c);
        if self.version.is_empty() || self.version.len() > 64 || !self.version.chars().all(letters) {
            return Err("a version has 1 to 64 small letters, digits, '.', '-', '_' or '~'".into());
        }
        if self.notes.len() > MAX_NOTES || self.notes.chars().any(|c| c.is_control() && c != '\n') {
            return Err(format!("notes have at most {MAX_NOTES} bytes and no control characters"));
        }
        if self.from_security_version > self.security_version {
            return Err("from_security_version is above security_version".into());
        }
        if self.store.oldest > self.store.newest {
            return Err("store.oldest is above store.newest".into());
        }
        if self.images.is_empty() {
            return Err("there is no image".into());
        }
        if self.sbom.bytes > MAX_SBOM {
            return Err("the bill of materials is too large".into());
        }
        self.images.values().flat_map(Image::parts).try_for_each(|(name, part)| part.check(name))?;
        let chunks: u64 = self.images.values().flat_map(Image::parts).map(|(_, part)| u64::from(part.chunks)).sum();
        if chunks > MAX_CHUNKS as u64 {
            return Err(format!("{chunks} chunks are more than {MAX_CHUNKS}"));
        }
        Ok(())
    }
}

/// What is read first, so that a later format gets a better answer than "unknown field".
#[derive(Deserialize)]
struct Head {
    format: u32,
}

fn unreadable(error: serde_json::Error) -> Refusal {
    Refusal::damaged(format!("the manifest cannot be read ({error})"))
}

impl Image {
    /// In the order of the file.
    pub fn parts(&self) -> [(PartName, &Part); 3] {
        [(PartName::Root, &self.root), (PartName::Verity, &self.verity), (PartName::Kernel, &self.kernel)]
    }

    pub fn part(&self, name: PartName) -> &Part {
        match name {
            PartName::Root => &self.root,
            PartName::Verity => &self.verity,
            PartName::Kernel => &self.kernel,
        }
    }
}

impl Part {
    fn check(&self, name: PartName) -> Result<(), String> {
        let chunks = u64::from(self.chunks);
        if self.bytes == 0 || self.bytes > MAX_PART {
            return Err(format!("the {name} image has {} bytes; 1 to {MAX_PART} are possible", self.bytes));
        }
        if chunks == 0 || chunks > self.bytes || chunks.saturating_mul(CHUNK_MAX as u64) < self.bytes {
            return Err(format!("{chunks} chunks cannot make the {name} image of {} bytes", self.bytes));
        }
        Ok(())
    }
}

impl Arch {
    /// Of the machine that this is built for.
    pub fn own() -> Option<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Some(Self::X86_64),
            "aarch64" => Some(Self::Arm64),
            _ => None,
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Arm64 => "arm64",
            Self::X86_64 => "x86_64",
        })
    }
}

impl fmt::Display for PartName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Root => "root",
            Self::Verity => "verity",
            Self::Kernel => "kernel",
        })
    }
}
