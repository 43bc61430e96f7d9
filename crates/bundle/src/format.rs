//! The parts of the file that are not content: envelope and contents, as values and as bytes.
//!
//! Numbers are little-endian. Every length is bounded before anything is read by it, and nothing may stand behind the end.

use crate::digest::Digest;
use crate::limits::{MAX_ENVELOPE, MAX_ROOT, MAX_ROOTS, MAX_SIGNATURES};
use crate::manifest::{Arch, Image, Manifest, PartName};
use crate::refusal::Refusal;
use crate::trust::KeyId;

/// How every bundle begins. The last byte tells files that a transfer has changed line ends in.
pub(crate) const MAGIC: [u8; 8] = *b"SKERRY1\n";

/// A signature on a document that stands elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signature {
    pub key: KeyId,
    /// Ed25519.
    pub signature: [u8; 64],
}

/// A document with its signatures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    pub document: Vec<u8>,
    pub signatures: Vec<Signature>,
}

/// Who says that the manifest is good, and by which right.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Envelope {
    /// All root documents, from version 1 on.
    pub roots: Vec<Signed>,
    /// On the manifest.
    pub signatures: Vec<Signature>,
}

/// What of the images is in this copy of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// By image in the manifest's order: nothing if it was taken out, otherwise for each part which chunks are here.
    pub images: Vec<Option<[Vec<bool>; 3]>>,
}

impl Envelope {
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_len(&mut bytes, self.roots.len());
        for root in &self.roots {
            put_len(&mut bytes, root.document.len());
            bytes.extend_from_slice(&root.document);
            put_signatures(&mut bytes, &root.signatures);
        }
        put_signatures(&mut bytes, &self.signatures);
        bytes
    }

    /// # Errors
    /// The bytes are not an envelope, to their end.
    pub fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        if bytes.len() > MAX_ENVELOPE {
            return Err(Refusal::TooLarge { what: "the envelope" });
        }
        let mut input = Input(bytes);
        let envelope = input.envelope().filter(|_| input.0.is_empty());
        envelope.ok_or_else(|| Refusal::damaged("the envelope cannot be read"))
    }
}

impl Contents {
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for image in &self.images {
            bytes.push(u8::from(image.is_some()));
            for map in image.iter().flatten() {
                put_bitmap(&mut bytes, map);
            }
        }
        bytes
    }

    /// # Errors
    /// The bytes do not fit the manifest.
    pub(crate) fn parse(bytes: &[u8], manifest: &Manifest) -> Result<Self, Refusal> {
        let mut input = Input(bytes);
        let images = manifest.images.values().map(|image| input.image(image)).collect::<Option<_>>();
        let images = images.filter(|_| input.0.is_empty());
        Ok(Self { images: images.ok_or_else(|| Refusal::damaged("its table of contents cannot be read"))? })
    }

    /// Which chunks of a part are here; none of an image that was taken out.
    pub fn of(&self, manifest: &Manifest, arch: Arch, name: PartName) -> Option<&[bool]> {
        let place = manifest.images.keys().position(|image| *image == arch)?;
        let [root, verity, kernel] = self.images.get(place)?.as_ref()?;
        Some(match name {
            PartName::Root => root,
            PartName::Verity => verity,
            PartName::Kernel => kernel,
        })
    }
}

fn bitmap_len(chunks: u32) -> usize {
    chunks.div_ceil(8) as usize
}

fn put_len(bytes: &mut Vec<u8>, len: usize) {
    bytes.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
}

fn put_signatures(bytes: &mut Vec<u8>, signatures: &[Signature]) {
    put_len(bytes, signatures.len());
    for signature in signatures {
        bytes.extend_from_slice(&signature.key.0.0);
        bytes.extend_from_slice(&signature.signature);
    }
}

fn put_bitmap(bytes: &mut Vec<u8>, map: &[bool]) {
    bytes.extend(map.chunks(8).map(|bits| bits.iter().rev().fold(0, |byte, bit| byte << 1 | u8::from(*bit))));
}

/// What is still to be read.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn envelope(&mut self) -> Option<Envelope> {
        let count = self.len(MAX_ROOTS)?;
        let mut roots = Vec::with_capacity(count);
        for _ in 0..count {
            let len = self.len(MAX_ROOT)?;
            let document = self.take(len)?.to_vec();
            roots.push(Signed { document, signatures: self.signatures()? });
        }
        Some(Envelope { roots, signatures: self.signatures()? })
    }

    fn signatures(&mut self) -> Option<Vec<Signature>> {
        let count = self.len(MAX_SIGNATURES)?;
        let one = |input: &mut Self| {
            let key = KeyId(Digest(input.take(32)?.try_into().ok()?));
            Some(Signature { key, signature: input.take(64)?.try_into().ok()? })
        };
        (0..count).map(|_| one(self)).collect()
    }

    fn image(&mut self, image: &Image) -> Option<Option<[Vec<bool>; 3]>> {
        match self.take(1)? {
            [0] => Some(None),
            [1] => {
                let [root, verity, kernel] = image.parts().map(|(_, part)| self.bitmap(part.chunks));
                Some(Some([root?, verity?, kernel?]))
            }
            _ => None,
        }
    }

    fn bitmap(&mut self, chunks: u32) -> Option<Vec<bool>> {
        let bytes = self.take(bitmap_len(chunks))?;
        let mut map: Vec<bool> = bytes.iter().flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1)).collect();
        let padding = map.split_off(chunks as usize);
        (!padding.contains(&true)).then_some(map)
    }

    fn len(&mut self, max: usize) -> Option<usize> {
        let bytes = self.take(4)?.try_into().ok()?;
        Some(u32::from_le_bytes(bytes) as usize).filter(|len| *len <= max)
    }

    fn take(&mut self, len: usize) -> Option<&[u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }
}
