//! The same release in another file: with signatures, without the image of a foreign machine, or thin.

use std::collections::{BTreeSet, HashSet};
use std::io::{Read, Seek, Write};

use crate::build::write_head;
use crate::chunks::{Chunk, write_index};
use crate::digest::Digest;
use crate::format::{Contents, Envelope};
use crate::manifest::{Arch, PartName};
use crate::read::Checked;
use crate::refusal::Refusal;

/// What stays in the file. The manifest always does, so that its signatures hold.
#[derive(Clone, Debug, Default)]
pub struct Keep {
    /// Only these images; all if nothing is said.
    pub arches: Option<BTreeSet<Arch>>,
    /// Not the chunks that the receiving boxes have, by their plain digests.
    pub without: HashSet<Digest>,
}

/// Writes a bundle anew with another envelope, leaving out what is not kept.
///
/// # Errors
/// The bundle is damaged, nothing would remain, or a reader or writer fails.
pub fn rewrite<R: Read + Seek>(
    bundle: &mut Checked<R>,
    keep: &Keep,
    envelope: &Envelope,
    out: &mut impl Write,
) -> Result<(), Refusal> {
    let mut seen = HashSet::new();
    let (mut images, mut indices, mut kept) = (Vec::new(), Vec::new(), Vec::new());
    for arch in bundle.manifest().images.keys().copied() {
        let stays = keep.arches.as_ref().is_none_or(|arches| arches.contains(&arch));
        let chunks = |name| bundle.index(arch, name).filter(|_| stays);
        let [Some(root), Some(verity), Some(kernel)] = [PartName::Root, PartName::Verity, PartName::Kernel].map(chunks)
        else {
            images.push(None);
            continue;
        };
        images.push(Some([root, verity, kernel].map(|chunks| {
            indices.push(write_index(chunks));
            let here = |chunk: &Chunk| {
                bundle.contains(chunk) && !keep.without.contains(&chunk.plain) && seen.insert(chunk.stored)
            };
            let map: Vec<bool> = chunks.iter().map(here).collect();
            kept.extend(chunks.iter().zip(&map).filter(|(_, here)| **here).map(|(chunk, _)| *chunk));
            map
        })));
    }
    if images.iter().all(Option::is_none) {
        let there = bundle.manifest().images.keys().copied().collect();
        let arch = keep.arches.iter().flatten().next().copied().unwrap_or(Arch::X86_64);
        return Err(Refusal::WrongArch { arch, there });
    }
    let sbom = bundle.sbom()?;
    write_head(out, bundle.manifest_bytes(), envelope, &Contents { images })?;
    indices.iter().try_for_each(|index| out.write_all(index))?;
    for chunk in kept {
        let stored = bundle.stored(&chunk)?.ok_or_else(|| Refusal::damaged(format!("chunk {}", chunk.stored)))?;
        out.write_all(&stored)?;
    }
    out.write_all(&sbom)?;
    Ok(())
}
