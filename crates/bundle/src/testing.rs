//! Inputs for tests and the fuzzer: bytes from a seed, keys from a number, a release of two small images.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "for tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;

use crate::manifest::{FORMAT, Store};
use crate::{
    Arch, Bundle, Digest, Envelope, ImageSource, Inputs, Keep, Request, RequestKind, Role, Root, Signature, Signed,
    Signer, Trust, build, rewrite,
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
