//! Inputs for tests and the fuzzer: bytes from a seed, keys from a number, a release of two small images.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc, clippy::indexing_slicing, reason = "for tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Cursor, Read, Seek, SeekFrom};

use zstd_safe::CCtx;

use crate::build::write_head;
use crate::chunks::write_index;
use crate::limits::CHUNK_MAX;
use crate::manifest::{FORMAT, Store};
use crate::{
    Arch, Blob, Bundle, Chunk, Contents, Digest, Envelope, Image, ImageSource, Inputs, Keep, Manifest, Part, Request,
    RequestKind, Role, Root, Signature, Signed, Signer, Trust, build, hashed, rewrite,
};

/// Bytes that look like nothing, always the same for a seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| next().to_le_bytes()).collect();
    bytes.truncate(len);
    bytes
}

pub fn signer(number: u8) -> Signer {
    Signer::from_seed(&[number; 32]).unwrap()
}

/// Keys 1 to 3 say what the next root is (two of them), 11 to 13 what a release is (two of them).
pub fn root(version: u64) -> Root {
    let keys = [1, 2, 3, 11, 12, 13].map(|number| signer(number).public().unwrap());
    let role = |numbers: [u8; 3]| Role {
        keys: numbers.map(|number| signer(number).public().unwrap().id()).into(),
        threshold: 2,
    };
    Root {
        format: FORMAT,
        version,
        keys: keys.map(|key| (key.id(), key)).into(),
        root: role([1, 2, 3]),
        release: role([11, 12, 13]),
        revoked: BTreeSet::new(),
    }
}

pub fn trust() -> Trust {
    Trust::new(&root(1).to_bytes()).unwrap()
}

pub fn signed_root(root: &Root, by: &[u8]) -> Signed {
    let document = root.to_bytes();
    let request = Request { kind: RequestKind::Root, document: document.clone() };
    Signed { document, signatures: by.iter().map(|number| signer(*number).sign(&request).unwrap()).collect() }
}

pub fn signatures(manifest: &[u8], by: &[u8]) -> Vec<Signature> {
    let request = Request { kind: RequestKind::Release, document: manifest.to_vec() };
    by.iter().map(|number| signer(*number).sign(&request).unwrap()).collect()
}

/// The bytes of the images of a release. Most of the root stays the same from release to release.
pub fn parts(arch: Arch, release: u64) -> [Vec<u8>; 3] {
    let lines = |what: &str, from: u64, count: u64| -> Vec<u8> {
        (from..from + count).flat_map(|line| format!("{arch} {what} {line}\n").into_bytes()).collect()
    };
    let mut root = lines("root", 0, 9_000);
    root.splice(70_000..70_010, lines("release", release, 3));
    [root, lines("verity", release, 200), lines("kernel", release * 1000, 2_000)]
}

/// A release for both machines, not signed yet.
pub fn unsigned(release: u64) -> Vec<u8> {
    unsigned_of(release, parts)
}

fn unsigned_of(release: u64, parts: impl Fn(Arch, u64) -> [Vec<u8>; 3]) -> Vec<u8> {
    let source = |arch: Arch| {
        let [root, verity, kernel] =
            parts(arch, release).map(|bytes| Box::new(Cursor::new(bytes)) as Box<dyn std::io::Read>);
        (arch, ImageSource { root, verity, kernel, root_hash: Digest::of(b"tree") })
    };
    let inputs = Inputs {
        version: format!("1.{release}.0"),
        security_version: release,
        from_security_version: 1,
        built_s: 1_790_000_000,
        notes: "Closes a hole.\n".into(),
        store: Store { oldest: 1, newest: 2 },
        images: BTreeMap::from([source(Arch::X86_64), source(Arch::Arm64)]),
        sbom: br#"{"bomFormat":"CycloneDX"}"#.to_vec(),
        roots: vec![signed_root(&root(1), &[1, 2])],
        level: 3,
    };
    let mut out = Vec::new();
    build(inputs, &mut Cursor::new(Vec::new()), &mut out).unwrap();
    out
}

/// The bundle with another envelope.
pub fn with(bundle: &[u8], keep: &Keep, change: impl FnOnce(&mut Envelope, &[u8])) -> Vec<u8> {
    let mut checked = Bundle::open(Cursor::new(bundle)).unwrap().unjudged().unwrap();
    let mut envelope = checked.envelope().clone();
    change(&mut envelope, checked.manifest_bytes());
    let mut out = Vec::new();
    rewrite(&mut checked, keep, &envelope, &mut out).unwrap();
    out
}

/// A release signed by two.
pub fn release(number: u64) -> Vec<u8> {
    release_of(number, parts)
}

pub fn release_of(number: u64, parts: impl Fn(Arch, u64) -> [Vec<u8>; 3]) -> Vec<u8> {
    signed(&unsigned_of(number, parts), &[11, 12])
}

pub fn signed(bundle: &[u8], by: &[u8]) -> Vec<u8> {
    with(bundle, &Keep::default(), |envelope, manifest| envelope.signatures.extend(signatures(manifest, by)))
}

/// A release, signed by two, with as large a root image as one likes: its chunks are made when they are read.
pub struct Large {
    /// Everything before the chunks of the root image, and everything behind them.
    head: Vec<u8>,
    tail: Vec<u8>,
    chunks: u64,
    at: u64,
}

/// Bytes of such a chunk in the file.
const LARGE: u64 = CHUNK_MAX as u64 + 15;

/// A chunk of a large root image: no two are alike.
pub fn large_chunk(number: u64) -> Vec<u8> {
    let mut plain = vec![0x5a; CHUNK_MAX];
    plain[..8].copy_from_slice(&number.to_le_bytes());
    plain
}

/// A chunk as zstd writes what does not pack: a header with the length, and two blocks that are copied.
fn stored(plain: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x28\xb5\x2f\xfd\xa0".to_vec();
    bytes.extend((plain.len() as u32).to_le_bytes());
    for (nr, block) in plain.chunks(CHUNK_MAX / 2).enumerate() {
        bytes.extend_from_slice(&((block.len() << 3 | nr) as u32).to_le_bytes()[..3]);
        bytes.extend_from_slice(block);
    }
    bytes
}

fn named(plain: &[u8], stored: &[u8]) -> Chunk {
    Chunk {
        plain: Digest::of(plain),
        stored: Digest::of(stored),
        plain_len: plain.len() as u32,
        stored_len: stored.len() as u32,
    }
}

impl Large {
    /// A release 1.2.0 for x86_64.
    pub fn new(chunks: u64) -> Self {
        let work = |lane: u64| (lane..chunks).step_by(4).map(large_chunk).map(|plain| named(&plain, &stored(&plain)));
        let lanes: Vec<Vec<Chunk>> = std::thread::scope(|scope| {
            let threads = [0, 1, 2, 3].map(|lane| scope.spawn(move || work(lane).collect()));
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let root_index: Vec<Chunk> = (0..chunks as usize).map(|nr| lanes[nr % 4][nr / 4]).collect();
        let feed = |feed: &crate::Feed<'_>| (0..chunks).try_for_each(|nr| feed.give(large_chunk(nr)));
        let ((), sha256) = hashed::<_, io::Error>(feed).unwrap();
        let part = |bytes: u64, sha256: Digest, index: &[Chunk]| Part {
            bytes,
            sha256,
            chunks: index.len() as u32,
            index_sha256: Digest::of(&write_index(index)),
        };
        let small = |plain: &[u8]| {
            let mut packed = vec![0; 100];
            let len = CCtx::create().compress(&mut packed[..], plain, 3).unwrap();
            packed.truncate(len);
            let index = vec![named(plain, &packed)];
            (part(plain.len() as u64, Digest::of(plain), &index), index, packed)
        };
        let (verity, verity_index, verity_stored) = small(b"a hash tree");
        let (kernel, kernel_index, kernel_stored) = small(b"MZ a kernel");
        let root_part = part(chunks * CHUNK_MAX as u64, sha256, &root_index);
        let image = Image { root: root_part, verity, kernel, root_hash: Digest::of(b"large") };
        let sbom = b"{}";
        let manifest = Manifest {
            format: FORMAT,
            version: "1.2.0".into(),
            security_version: 2,
            from_security_version: 0,
            built_s: 1_790_000_000,
            notes: String::new(),
            store: Store { oldest: 1, newest: 1 },
            images: BTreeMap::from([(Arch::X86_64, image)]),
            sbom: Blob { bytes: 2, sha256: Digest::of(sbom) },
        }
        .to_bytes();
        let envelope =
            Envelope { roots: vec![signed_root(&root(1), &[1, 2])], signatures: signatures(&manifest, &[11, 12]) };
        let here = [vec![true; chunks as usize], vec![true], vec![true]];
        let mut head = Vec::new();
        write_head(&mut head, &manifest, &envelope, &Contents { images: vec![Some(here)] }).unwrap();
        head.extend([root_index, verity_index, kernel_index].iter().flat_map(|index| write_index(index)));
        let tail = [&verity_stored[..], &kernel_stored, sbom].concat();
        Self { head, tail, chunks, at: 0 }
    }

    /// Bytes of the file.
    pub fn len(&self) -> u64 {
        self.behind() + self.tail.len() as u64
    }

    pub fn is_empty(&self) -> bool {
        false
    }

    /// Where the chunks of the root image end.
    fn behind(&self) -> u64 {
        self.head.len() as u64 + self.chunks * LARGE
    }
}

impl Read for Large {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let (head, behind) = (self.head.len() as u64, self.behind());
        let piece = if self.at < head {
            self.head[self.at as usize..].to_vec()
        } else if self.at < behind {
            let one = LARGE;
            let (number, from) = ((self.at - head) / one, (self.at - head) % one);
            stored(&large_chunk(number))[from as usize..].to_vec()
        } else {
            self.tail.get((self.at - behind) as usize..).unwrap_or_default().to_vec()
        };
        let len = piece.len().min(bytes.len());
        bytes[..len].copy_from_slice(&piece[..len]);
        self.at += len as u64;
        Ok(len)
    }
}

impl Seek for Large {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.len().checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
