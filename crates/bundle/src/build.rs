//! Making a bundle: cutting, packing, naming. The same inputs give the same bytes.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read, Seek, SeekFrom, Write};

use zstd_safe::{CCtx, compress_bound, get_error_name};

use crate::chunks::{Chunk, cut, write_index};
use crate::digest::{Digest, Hasher};
use crate::format::{Contents, Envelope, MAGIC, Signed};
use crate::limits::{MAX_CHUNKS, MAX_MANIFEST, MAX_PART};
use crate::manifest::{Arch, Blob, FORMAT, Image, Manifest, Part, Store};
use crate::refusal::Refusal;

/// What a release is made of.
pub struct Inputs<'a> {
    pub version: String,
    pub security_version: u64,
    pub from_security_version: u64,
    pub built_s: u64,
    pub notes: String,
    pub store: Store,
    pub images: BTreeMap<Arch, ImageSource<'a>>,
    pub sbom: Vec<u8>,
    /// The chain that the envelope carries; signatures come later ([`crate::rewrite`]).
    pub roots: Vec<Signed>,
    /// How hard zstd tries: 1 to 19.
    pub level: i32,
}

/// Where the parts of an image come from.
pub struct ImageSource<'a> {
    pub root: Box<dyn Read + 'a>,
    pub verity: Box<dyn Read + 'a>,
    pub kernel: Box<dyn Read + 'a>,
    pub root_hash: Digest,
}

/// Makes a bundle without signatures. `spool` holds the packed chunks meanwhile: they come last in the file, but decide
/// what stands first.
///
/// # Errors
/// An input is beyond the limits, or a reader or writer fails.
pub fn build(
    inputs: Inputs<'_>,
    spool: &mut (impl Read + Write + Seek),
    out: &mut impl Write,
) -> Result<Manifest, Refusal> {
    let mut pack = Pack { known: HashMap::new(), compressor: compressor()?, level: inputs.level, spool, chunks: 0 };
    let (mut images, mut maps, mut indices) = (BTreeMap::new(), Vec::new(), Vec::new());
    for (arch, source) in inputs.images {
        let [root, verity, kernel] = [pack.part(source.root)?, pack.part(source.verity)?, pack.part(source.kernel)?];
        let parts = (root.part, verity.part, kernel.part);
        images.insert(arch, Image { root: parts.0, verity: parts.1, kernel: parts.2, root_hash: source.root_hash });
        indices.extend([root.index, verity.index, kernel.index]);
        maps.push(Some([root.here, verity.here, kernel.here]));
    }
    let manifest = Manifest {
        format: FORMAT,
        version: inputs.version,
        security_version: inputs.security_version,
        from_security_version: inputs.from_security_version,
        built_s: inputs.built_s,
        notes: inputs.notes,
        store: inputs.store,
        images,
        sbom: Blob { bytes: inputs.sbom.len() as u64, sha256: Digest::of(&inputs.sbom) },
    };
    manifest.check().map_err(|what| Refusal::damaged(format!("this cannot be a release: {what}")))?;
    let envelope = Envelope { roots: inputs.roots, signatures: Vec::new() };
    write_head(out, &manifest.to_bytes(), &envelope, &Contents { images: maps })?;
    indices.iter().try_for_each(|index| out.write_all(index))?;
    spool.seek(SeekFrom::Start(0))?;
    io::copy(spool, out)?;
    out.write_all(&inputs.sbom)?;
    Ok(manifest)
}

/// Everything before the indices.
pub(crate) fn write_head(
    out: &mut impl Write,
    manifest: &[u8],
    envelope: &Envelope,
    contents: &Contents,
) -> Result<(), Refusal> {
    if manifest.len() > MAX_MANIFEST {
        return Err(Refusal::TooLarge { what: "the manifest" });
    }
    let envelope = envelope.to_bytes();
    Envelope::parse(&envelope)?;
    out.write_all(&MAGIC)?;
    for section in [manifest, &envelope, &contents.to_bytes()] {
        out.write_all(&u32::try_from(section.len()).unwrap_or(u32::MAX).to_le_bytes())?;
        out.write_all(section)?;
    }
    Ok(())
}

fn compressor() -> io::Result<CCtx<'static>> {
    CCtx::try_create().ok_or(io::ErrorKind::OutOfMemory.into())
}

struct Pack<'a, S> {
    /// What was packed already, by its plain digest.
    known: HashMap<Digest, Chunk>,
    compressor: CCtx<'static>,
    level: i32,
    spool: &'a mut S,
    chunks: usize,
}

struct Packed {
    part: Part,
    index: Vec<u8>,
    here: Vec<bool>,
}

impl<S: Write> Pack<'_, S> {
    fn part(&mut self, source: impl Read) -> Result<Packed, Refusal> {
        let (mut whole, mut chunks, mut here, mut bytes) = (Hasher::default(), Vec::new(), Vec::new(), 0);
        for plain in cut(source) {
            let plain = plain?;
            whole.update(&plain);
            bytes += plain.len() as u64;
            self.chunks += 1;
            if bytes > MAX_PART || self.chunks > MAX_CHUNKS {
                return Err(Refusal::TooLarge { what: "an image" });
            }
            let (chunk, fresh) = self.chunk(&plain)?;
            chunks.push(chunk);
            here.push(fresh);
        }
        let index = write_index(&chunks);
        let part = Part {
            bytes,
            sha256: whole.finish(),
            chunks: u32::try_from(chunks.len()).unwrap_or(u32::MAX),
            index_sha256: Digest::of(&index),
        };
        Ok(Packed { part, index, here })
    }

    /// The chunk, and whether it was packed just now.
    fn chunk(&mut self, plain: &[u8]) -> Result<(Chunk, bool), Refusal> {
        let digest = Digest::of(plain);
        if let Some(chunk) = self.known.get(&digest) {
            return Ok((*chunk, false));
        }
        let mut stored = vec![0; compress_bound(plain.len())];
        let packed = self.compressor.compress(&mut stored[..], plain, self.level);
        stored.truncate(packed.map_err(|code| io::Error::other(get_error_name(code)))?);
        self.spool.write_all(&stored)?;
        let len = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let chunk =
            Chunk { plain: digest, stored: Digest::of(&stored), plain_len: len(plain), stored_len: len(&stored) };
        self.known.insert(digest, chunk);
        Ok((chunk, true))
    }
}
