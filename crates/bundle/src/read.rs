//! Reading a bundle, in the order of trust: bytes, signatures, manifest, indices, chunks.
//!
//! Memory is bounded whatever the file says: the head, the indices (72 bytes for each chunk) and some chunks that
//! threads work on.

use std::collections::HashMap;
use std::io::{self, Read, Seek, SeekFrom, Write};

use zstd_safe::DCtx;

use crate::chunks::{Chunk, ENTRY, read_index};
use crate::digest::{Digest, Hasher};
use crate::format::{Contents, Envelope, MAGIC};
use crate::lanes::{Feed, hashed, in_order};
use crate::limits::{MAX_CHUNKS, MAX_ENVELOPE, MAX_MANIFEST};
use crate::manifest::{Arch, Blob, Image, Manifest, Part, PartName};
use crate::refusal::Refusal;
use crate::trust::{KeyId, Trust};

/// A file that looks like a bundle. Nothing of it was believed yet.
#[derive(Debug)]
pub struct Bundle<R> {
    reader: R,
    len: u64,
    manifest: Vec<u8>,
    envelope: Envelope,
    contents: Vec<u8>,
    /// Where the chunk indices begin.
    indices_at: u64,
}

/// A bundle whose manifest is believed. What is behind the manifest is verified when it is read.
#[derive(Debug)]
pub struct Checked<R> {
    reader: R,
    manifest: Manifest,
    manifest_bytes: Vec<u8>,
    envelope: Envelope,
    contents: Contents,
    trust: Option<Trust>,
    signers: Vec<KeyId>,
    /// The chunks of each part, by image in the manifest's order; nothing where the image was taken out.
    indices: Vec<Option<[Vec<Chunk>; 3]>>,
    /// Where the chunks of this file are, by the digest of their stored bytes.
    places: HashMap<Digest, (u64, u32)>,
    sbom_at: u64,
}

/// What a box says of itself before a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThisBox {
    pub arch: Arch,
    /// The highest security version that it has run well.
    pub floor: u64,
    /// The one that it runs.
    pub security_version: u64,
    /// The format of its database.
    pub store_format: u32,
}

/// Plain chunks that are at hand already, such as those of the active slot.
pub trait Have {
    fn has(&self, plain: &Digest) -> bool;
    /// # Errors
    /// The chunk cannot be read. What is given is verified by the caller.
    fn chunk(&mut self, plain: &Digest) -> io::Result<Vec<u8>>;
}

/// Nothing is at hand.
#[derive(Clone, Copy, Debug)]
pub struct NoSlot;

/// Chunks of a part that are nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing {
    pub part: PartName,
    pub count: usize,
    pub first: Digest,
}

/// What a whole check has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Bytes of the chunks as they are stored, and plain.
    pub stored: u64,
    pub plain: u64,
    /// Chunks that are in the file, and those that a box must have.
    pub chunks: usize,
    pub elsewhere: usize,
}

impl<R: Read + Seek> Bundle<R> {
    /// Reads the head.
    ///
    /// # Errors
    /// This is not a bundle, it is cut off, or the reader fails.
    pub fn open(mut reader: R) -> Result<Self, Refusal> {
        let len = reader.seek(SeekFrom::End(0))?;
        reader.seek(SeekFrom::Start(0))?;
        let mut magic = [0; MAGIC.len()];
        match reader.read_exact(&mut magic) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(Refusal::NotABundle),
            other => other?,
        }
        if magic != MAGIC {
            return Err(Refusal::NotABundle);
        }
        let manifest = section(&mut reader, MAX_MANIFEST, "the manifest")?;
        let envelope = Envelope::parse(&section(&mut reader, MAX_ENVELOPE, "the envelope")?)?;
        let contents = section(&mut reader, MAX_CHUNKS, "the table of contents")?;
        let indices_at = reader.stream_position()?;
        Ok(Self { reader, len, manifest, envelope, contents, indices_at })
    }

    pub fn manifest_bytes(&self) -> &[u8] {
        &self.manifest
    }

    pub fn envelope(&self) -> &Envelope {
        &self.envelope
    }

    /// Weighs the signatures, and only then looks at what they are for.
    ///
    /// # Errors
    /// Too few have signed, or the file is not what they have signed.
    pub fn judge(self, trust: &Trust) -> Result<Checked<R>, Refusal> {
        let trust = trust.follow(&self.envelope.roots)?;
        let signers = trust.weigh(&self.manifest, &self.envelope)?;
        self.read_indices(Some(trust), signers)
    }

    /// For those who make and sign bundles: believes the manifest as it is.
    ///
    /// # Errors
    /// The file is damaged.
    pub fn unjudged(self) -> Result<Checked<R>, Refusal> {
        self.read_indices(None, Vec::new())
    }

    fn read_indices(mut self, trust: Option<Trust>, signers: Vec<KeyId>) -> Result<Checked<R>, Refusal> {
        let manifest = Manifest::parse(&self.manifest)?;
        let contents = Contents::parse(&self.contents, &manifest)?;
        self.reader.seek(SeekFrom::Start(self.indices_at))?;
        let mut indices = Vec::with_capacity(manifest.images.len());
        for (image, here) in manifest.images.values().zip(&contents.images) {
            indices.push(here.as_ref().map(|_| image_indices(&mut self.reader, image)).transpose()?);
        }
        let mut at = self.reader.stream_position()?;
        let places = places(&contents, &indices, &mut at)?;
        let end = at.saturating_add(manifest.sbom.bytes);
        if end > self.len {
            return Err(Refusal::Truncated);
        }
        if end < self.len {
            return Err(Refusal::Padded { extra: self.len - end });
        }
        Ok(Checked {
            reader: self.reader,
            manifest,
            manifest_bytes: self.manifest,
            envelope: self.envelope,
            contents,
            trust,
            signers,
            indices,
            places,
            sbom_at: at,
        })
    }
}

/// The digest of everything that [`Bundle::open`] reads, with nothing of it looked at but lengths: whether two readings of
/// a file, one of which was done where it can harm nobody, have met the same bytes.
///
/// # Errors
/// This is not a bundle, it is cut off, or the reader fails.
pub fn head_digest(reader: &mut (impl Read + Seek)) -> Result<Digest, Refusal> {
    reader.seek(SeekFrom::Start(0))?;
    let mut hasher = Hasher::default();
    hasher.update(&bytes(reader, MAGIC.len())?);
    for (most, what) in [(MAX_MANIFEST, "the manifest"), (MAX_ENVELOPE, "the envelope"), (MAX_CHUNKS, "the contents")] {
        let section = section(reader, most, what)?;
        hasher.update(&(section.len() as u64).to_le_bytes());
        hasher.update(&section);
    }
    Ok(hasher.finish())
}

/// Bytes behind their length.
fn section(reader: &mut impl Read, max: usize, what: &'static str) -> Result<Vec<u8>, Refusal> {
    let mut len = [0; 4];
    reader.read_exact(&mut len).map_err(cut_off)?;
    let len = u32::from_le_bytes(len) as usize;
    if len > max {
        return Err(Refusal::TooLarge { what });
    }
    bytes(reader, len)
}

fn bytes(reader: &mut impl Read, len: usize) -> Result<Vec<u8>, Refusal> {
    let mut bytes = vec![0; len];
    reader.read_exact(&mut bytes).map_err(cut_off)?;
    Ok(bytes)
}

fn cut_off(error: io::Error) -> Refusal {
    if error.kind() == io::ErrorKind::UnexpectedEof { Refusal::Truncated } else { Refusal::Io(error) }
}

fn image_indices(reader: &mut impl Read, image: &Image) -> Result<[Vec<Chunk>; 3], Refusal> {
    let mut one = |(name, part): (PartName, &Part)| {
        let index = bytes(reader, part.chunks as usize * ENTRY)?;
        if Digest::of(&index) != part.index_sha256 {
            return Err(Refusal::damaged(format!("the index of the {name} image is not what was signed")));
        }
        read_index(&index, part.bytes).map_err(|why| Refusal::damaged(format!("the index of the {name} image: {why}")))
    };
    let [root, verity, kernel] = image.parts();
    Ok([one(root)?, one(verity)?, one(kernel)?])
}

/// Where the chunks are that this file has. `at` moves behind them.
fn places(
    contents: &Contents,
    indices: &[Option<[Vec<Chunk>; 3]>],
    at: &mut u64,
) -> Result<HashMap<Digest, (u64, u32)>, Refusal> {
    let mut places = HashMap::new();
    let maps = contents.images.iter().flatten().flatten();
    let parts = indices.iter().flatten().flatten();
    for (map, chunks) in maps.zip(parts) {
        for (chunk, _) in chunks.iter().zip(map).filter(|(_, here)| **here) {
            if places.insert(chunk.stored, (*at, chunk.stored_len)).is_some() {
                return Err(Refusal::damaged(format!("chunk {} is in it twice", chunk.stored)));
            }
            *at = at.saturating_add(chunk.stored_len.into());
        }
    }
    Ok(places)
}

impl<R: Read + Seek> Checked<R> {
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub fn manifest_bytes(&self) -> &[u8] {
        &self.manifest_bytes
    }

    pub fn envelope(&self) -> &Envelope {
        &self.envelope
    }

    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Whom the box believes from now on; nothing if the bundle was not judged.
    pub fn trust(&self) -> Option<&Trust> {
        self.trust.as_ref()
    }

    /// Whose signatures counted.
    pub fn signers(&self) -> &[KeyId] {
        &self.signers
    }

    /// The chunks of a part, if its image is in this file.
    pub fn index(&self, arch: Arch, name: PartName) -> Option<&[Chunk]> {
        let place = self.manifest.images.keys().position(|image| *image == arch)?;
        let [root, verity, kernel] = self.indices.get(place)?.as_ref()?;
        Some(match name {
            PartName::Root => root,
            PartName::Verity => verity,
            PartName::Kernel => kernel,
        })
    }

    /// Whether the stored bytes of a chunk are in this file.
    pub fn contains(&self, chunk: &Chunk) -> bool {
        self.places.contains_key(&chunk.stored)
    }

    /// The bill of materials.
    ///
    /// # Errors
    /// It is damaged, or the reader fails.
    pub fn sbom(&mut self) -> Result<Vec<u8>, Refusal> {
        let Blob { bytes: len, sha256 } = self.manifest.sbom;
        self.reader.seek(SeekFrom::Start(self.sbom_at))?;
        let sbom = bytes(&mut self.reader, usize::try_from(len).map_err(|_| Refusal::Truncated)?)?;
        if Digest::of(&sbom) != sha256 {
            return Err(Refusal::damaged("its bill of materials is not what was signed"));
        }
        Ok(sbom)
    }

    /// The chunks of an image that are neither here nor at hand, by part. To be asked before anything is written.
    ///
    /// # Errors
    /// The image is not in this file.
    pub fn missing(&self, arch: Arch, have: &impl Have) -> Result<Vec<Missing>, Refusal> {
        let mut missing = Vec::new();
        for (part, _) in self.image(arch)?.parts() {
            let chunks = self.index(arch, part).ok_or(Refusal::Stripped { arch })?;
            let mut gone = chunks.iter().filter(|chunk| !self.contains(chunk) && !have.has(&chunk.plain));
            if let Some(first) = gone.next() {
                missing.push(Missing { part, count: 1 + gone.count(), first: first.plain });
            }
        }
        Ok(missing)
    }

    /// The image for a machine.
    ///
    /// # Errors
    /// There is none, or it was taken out of this file.
    pub fn image(&self, arch: Arch) -> Result<&Image, Refusal> {
        let there = || self.manifest.images.keys().copied().collect();
        let image = self.manifest.images.get(&arch).ok_or_else(|| Refusal::WrongArch { arch, there: there() })?;
        self.index(arch, PartName::Root).ok_or(Refusal::Stripped { arch })?;
        Ok(image)
    }

    /// Whether a box may take the step to this release.
    ///
    /// # Errors
    /// It may not: the refusal says why, and what to do instead.
    pub fn fits(&self, this: &ThisBox) -> Result<&Image, Refusal> {
        let image = self.image(this.arch)?;
        let Manifest { version, security_version, from_security_version, store, .. } = &self.manifest;
        if *security_version < this.floor {
            let (version, offered, floor) = (version.clone(), *security_version, this.floor);
            return Err(Refusal::Downgrade { version, offered, floor });
        }
        if this.security_version < *from_security_version {
            return Err(Refusal::StepTooLarge { needed: *from_security_version, have: this.security_version });
        }
        if !(store.oldest..=store.newest).contains(&this.store_format) {
            let (version, have) = (version.clone(), this.store_format);
            return Err(Refusal::StoreFormat { version, have, oldest: store.oldest, newest: store.newest });
        }
        Ok(image)
    }

    /// Writes a part, each chunk only after it was verified (as it is stored, or as it was found). The whole is not checked:
    /// what was written is to be read again and given to [`Checked::is_part`], which it must be anyway.
    ///
    /// # Errors
    /// Something is damaged or missing, or a reader or the writer fails; then part of it may have been written.
    pub fn write_part(
        &mut self,
        arch: Arch,
        name: PartName,
        have: &mut impl Have,
        out: &mut impl Write,
    ) -> Result<(), Refusal> {
        let chunks = self.chunks_of(arch, name)?;
        let read = |chunk: &Chunk| {
            Ok(match self.read(chunk)? {
                Some(stored) => Raw::Stored(*chunk, stored),
                None if have.has(&chunk.plain) => Raw::Had(*chunk, have.chunk(&chunk.plain)?),
                None => return Err(Refusal::Missing { part: name, count: 1, first: chunk.plain }),
            })
        };
        let unpacks = || Unpack::new().map(|mut unpack| move |raw: Raw| raw.plain(&mut unpack));
        in_order(chunks.iter().map(read), unpacks, |plain: Result<Vec<u8>, Refusal>| Ok(out.write_all(&plain?)?))
    }

    /// Whether a reader gives a part, to its end and nothing more: chunk by chunk, as the signed index says.
    ///
    /// # Errors
    /// The image is not in this file, or the reader fails.
    pub fn is_part(
        &self,
        arch: Arch,
        name: PartName,
        reader: &mut dyn Read,
        mut progress: impl FnMut(u64),
    ) -> Result<bool, Refusal> {
        let (chunks, mut done) = (self.chunks_of(arch, name)?, 0);
        let read = |chunk: &Chunk| match bytes(&mut &mut *reader, chunk.plain_len as usize) {
            Ok(plain) => Ok((*chunk, plain)),
            Err(Refusal::Truncated) => Ok((*chunk, Vec::new())),
            Err(other) => Err(other),
        };
        let mut same = true;
        let is = |(chunk, plain): (Chunk, Vec<u8>)| (plain.len(), Digest::of(&plain) == chunk.plain);
        in_order(
            chunks.iter().map(read),
            || Ok(is),
            |(len, is)| {
                same &= is;
                done += len as u64;
                progress(done);
                Ok(())
            },
        )?;
        Ok(same && reader.read(&mut [0])? == 0)
    }

    fn chunks_of(&self, arch: Arch, name: PartName) -> Result<Vec<Chunk>, Refusal> {
        self.image(arch)?;
        Ok(self.index(arch, name).ok_or(Refusal::Stripped { arch })?.to_vec())
    }

    /// Whether a part comes out of the file as it was signed, as a whole, too.
    fn rehearse_part(&mut self, arch: Arch, name: PartName) -> Result<(), Refusal> {
        let part = *self.image(arch)?.part(name);
        let ((), digest) = hashed(|feed| self.write_part(arch, name, &mut NoSlot, &mut Fed(feed)))?;
        if digest != part.sha256 {
            return Err(Refusal::damaged(format!("the {name} image is not the one that was signed")));
        }
        Ok(())
    }

    /// Checks everything that is in the file: all of it is what was signed. `progress` hears how many stored bytes were
    /// checked.
    ///
    /// # Errors
    /// Something is damaged, or the reader fails.
    pub fn verify(&mut self, mut progress: impl FnMut(u64)) -> Result<Report, Refusal> {
        let mut report = Report::default();
        self.sbom()?;
        let chunks: Vec<Chunk> = self.indices.iter().flatten().flatten().flatten().copied().collect();
        let elsewhere = chunks.iter().filter(|chunk| !self.contains(chunk)).count();
        let there = chunks.iter().filter_map(|chunk| match self.read(chunk) {
            Ok(stored) => stored.map(|stored| Ok((*chunk, stored))),
            Err(refusal) => Some(Err(refusal)),
        });
        let good = |(chunk, stored): (Chunk, Vec<u8>)| is_stored(&chunk, &stored).map(|()| chunk);
        in_order(
            there,
            || Ok(good),
            |chunk| {
                let chunk = chunk?;
                report.chunks += 1;
                report.plain += u64::from(chunk.plain_len);
                report.stored += u64::from(chunk.stored_len);
                progress(report.stored);
                Ok(())
            },
        )?;
        Ok(Report { elsewhere, ..report })
    }

    /// Whether everything that is in the file also unpacks into what was signed: for those who make a bundle. If it did
    /// not, its makers would have signed a mistake; nobody else can make it so.
    ///
    /// # Errors
    /// Something is not as its index says, or the reader fails.
    pub fn rehearse(&mut self) -> Result<(), Refusal> {
        for (arch, image) in self.manifest.images.clone() {
            for (name, _) in image.parts() {
                let Some(chunks) = self.index(arch, name).map(<[Chunk]>::to_vec) else { continue };
                if chunks.iter().all(|chunk| self.contains(chunk)) {
                    self.rehearse_part(arch, name)?;
                    continue;
                }
                let mut unpack = Unpack::new()?;
                for chunk in &chunks {
                    if let Some(stored) = self.stored(chunk)? {
                        same(chunk, unpack.plain(chunk, &stored)?)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The verified stored bytes of a chunk, if they are in this file.
    pub(crate) fn stored(&mut self, chunk: &Chunk) -> Result<Option<Vec<u8>>, Refusal> {
        let stored = self.read(chunk)?;
        stored.map(|stored| is_stored(chunk, &stored).map(|()| stored)).transpose()
    }

    /// The stored bytes of a chunk, if they are in this file; not verified.
    fn read(&mut self, chunk: &Chunk) -> Result<Option<Vec<u8>>, Refusal> {
        let Some((at, len)) = self.places.get(&chunk.stored).copied() else { return Ok(None) };
        if len != chunk.stored_len {
            return Err(Refusal::damaged(format!("chunk {} has two lengths", chunk.stored)));
        }
        self.reader.seek(SeekFrom::Start(at))?;
        bytes(&mut self.reader, len as usize).map(Some)
    }
}

fn is_stored(chunk: &Chunk, stored: &[u8]) -> Result<(), Refusal> {
    if Digest::of(stored) != chunk.stored {
        return Err(Refusal::damaged(format!("a piece of it (chunk {}) is not what was signed", chunk.stored)));
    }
    Ok(())
}

/// Hashes what is written.
struct Fed<'a, 'scope>(&'a Feed<'scope>);

impl Write for Fed<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.give(bytes.to_vec()).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A chunk as it was read or found; nothing of it was verified yet.
enum Raw {
    Stored(Chunk, Vec<u8>),
    Had(Chunk, Vec<u8>),
}

impl Raw {
    fn plain(self, unpack: &mut Unpack) -> Result<Vec<u8>, Refusal> {
        match self {
            Self::Stored(chunk, stored) => {
                is_stored(&chunk, &stored)?;
                unpack.plain(&chunk, &stored)
            }
            Self::Had(chunk, plain) => same(&chunk, plain),
        }
    }
}

/// Decompresses verified bytes, never to more than the index says.
pub(crate) struct Unpack(DCtx<'static>);

impl Unpack {
    pub(crate) fn new() -> Result<Self, Refusal> {
        Ok(Self(DCtx::try_create().ok_or(io::ErrorKind::OutOfMemory).map_err(io::Error::from)?))
    }

    pub(crate) fn plain(&mut self, chunk: &Chunk, stored: &[u8]) -> Result<Vec<u8>, Refusal> {
        let mut plain = vec![0; chunk.plain_len as usize];
        let unpacked = self.0.decompress(&mut plain[..], stored);
        let len = unpacked.map_err(|_| Refusal::damaged(format!("chunk {} cannot be unpacked", chunk.stored)))?;
        if len != plain.len() {
            return Err(Refusal::damaged(format!("chunk {} unpacks to another length", chunk.stored)));
        }
        Ok(plain)
    }
}

fn same(chunk: &Chunk, plain: Vec<u8>) -> Result<Vec<u8>, Refusal> {
    if plain.len() != chunk.plain_len as usize || Digest::of(&plain) != chunk.plain {
        return Err(Refusal::damaged(format!("chunk {} is not what it should be", chunk.plain)));
    }
    Ok(plain)
}

impl Have for NoSlot {
    fn has(&self, _: &Digest) -> bool {
        false
    }

    fn chunk(&mut self, _: &Digest) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::NotFound.into())
    }
}
