//! What a fuzzer drives: bytes of a stick, of somebody who cannot sign. It must come back, whatever the bytes are, and
//! panics when an answer is wrong. The inputs that were worth keeping are replayed by the tests here.
//!
//! An input begins with the letter of what it is: a whole file, or a part that in a file stands behind a digest, where
//! luck does not lead.

#[cfg(test)]
mod tests;

use std::io::Cursor;

use crate::chunks::{read_index, write_index};
use crate::manifest::Manifest;
use crate::read::Unpack;
use crate::testing::{release_of, root, trust};
use crate::{
    Arch, Bundle, Checked, Chunk, Contents, Digest, Envelope, NoSlot, PublicKey, Request, Root, Signature, ThisBox,
};

/// The name of the target.
pub const TARGET: &str = "bundle";

/// # Panics
/// If an answer is wrong.
pub fn run(input: &[u8]) {
    let Some((kind, bytes)) = input.split_first() else { return };
    match kind {
        b'f' => file(bytes),
        b'm' => manifest(bytes),
        b'e' => envelope(bytes),
        b'c' => contents(bytes),
        b'i' => index(bytes),
        b'z' => chunk(bytes),
        b'r' => root_document(bytes),
        b't' => text(bytes),
        _ => {}
    }
}

/// Without the keys nobody can make a file of another release; as one that is not judged, it is read to its end.
fn file(bytes: &[u8]) {
    if let Ok(mut checked) = Bundle::open(Cursor::new(bytes)).and_then(|bundle| bundle.judge(&trust())) {
        assert_eq!(checked.manifest().security_version, 2, "only this one was signed");
        read(&mut checked, true);
    }
    if let Ok(mut checked) = Bundle::open(Cursor::new(bytes)).and_then(Bundle::unjudged) {
        read(&mut checked, false);
    }
}

/// Who has signed says the same of a part in two ways; others need not.
fn read(checked: &mut Checked<Cursor<&[u8]>>, signed: bool) {
    let whole = checked.verify(|_| {}).is_ok() && checked.rehearse().is_ok();
    for arch in [Arch::X86_64, Arch::Arm64] {
        let this = ThisBox { arch, floor: 1, security_version: 1, store_format: 1 };
        let Ok(image) = checked.fits(&this).cloned() else { continue };
        let complete = checked.missing(arch, &NoSlot).is_ok_and(|missing| missing.is_empty());
        for (name, part) in image.parts() {
            let mut out = Vec::new();
            let written = checked.write_part(arch, name, &mut NoSlot, &mut out).is_ok();
            let is = checked.is_part(arch, name, &mut &out[..], |_| {}).is_ok_and(|is| is);
            let is_whole = out.len() as u64 == part.bytes && Digest::of(&out) == part.sha256;
            assert!(written || !is, "it is there, and was not written");
            assert!(!signed || (written == is && is == is_whole));
            assert!(written || !whole || !complete, "verified, but could not be written");
        }
    }
}

fn manifest(bytes: &[u8]) {
    if let Ok(manifest) = Manifest::parse(bytes) {
        assert_eq!(manifest.to_bytes(), bytes, "there is one spelling");
    }
}

fn envelope(bytes: &[u8]) {
    let Ok(envelope) = Envelope::parse(bytes) else { return };
    assert_eq!(envelope.to_bytes(), bytes);
    if let Ok(after) = trust().follow(&envelope.roots) {
        assert_eq!(after.root(), &root(1), "nobody but its keys appoints a successor");
    }
}

fn contents(bytes: &[u8]) {
    let good = release_of(2, small);
    let Ok(bundle) = Bundle::open(Cursor::new(&good[..])) else { return };
    let Ok(manifest) = Manifest::parse(bundle.manifest_bytes()) else { return };
    if let Ok(contents) = Contents::parse(bytes, &manifest) {
        assert_eq!(contents.to_bytes(), bytes);
    }
}

/// The first four bytes are the length of the part.
fn index(bytes: &[u8]) {
    let Some((len, bytes)) = bytes.split_first_chunk() else { return };
    if let Ok(chunks) = read_index(bytes, u32::from_le_bytes(*len).into()) {
        assert_eq!(write_index(&chunks), bytes);
    }
}

/// A compressed chunk that pretends to be what it may: its length in the first three bytes.
fn chunk(bytes: &[u8]) {
    let Some(([a, b, c], stored)) = bytes.split_first_chunk() else { return };
    let plain_len = u32::from_le_bytes([*a, *b, c % 5, 0]);
    let Ok(stored_len) = u32::try_from(stored.len()) else { return };
    let chunk = Chunk { plain: Digest::of(b"alphabet"), stored: Digest::of(stored), plain_len, stored_len };
    if let Ok(plain) = Unpack::new().and_then(|mut unpack| unpack.plain(&chunk, stored)) {
        assert_eq!(plain.len(), plain_len as usize);
    }
}

fn root_document(bytes: &[u8]) {
    let Ok(root) = Root::parse(bytes) else { return };
    assert_eq!(root.to_bytes(), bytes, "there is one spelling");
}

/// What signers hand each other: requests, signatures, public keys.
fn text(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(request) = Request::parse(text) {
        let _ = request.subject();
        assert!(Request::parse(&request.to_text()).is_ok_and(|again| again.document == request.document));
    }
    if let Ok(signature) = Signature::parse(text) {
        assert!(Signature::parse(&signature.to_text()).is_ok_and(|again| again == signature));
    }
    let _ = PublicKey::parse(text);
}

/// A release that a fuzzer can hold in its hands.
fn small(arch: Arch, release: u64) -> [Vec<u8>; 3] {
    ["root", "verity", "kernel"].map(|what| format!("{arch} {what} {release}\n").repeat(40).into_bytes())
}
