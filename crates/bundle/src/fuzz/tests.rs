//! Replays of what the fuzzer found worth keeping, and the inputs that it starts from.

use zstd_safe::CCtx;

use super::*;
use crate::testing::{signatures, signed_root, signer};
use crate::{Keep, RequestKind, rewrite};

#[path = "../../../../tests/fuzz/kept.rs"]
mod kept;

#[test]
fn what_was_kept_runs_again() {
    kept::replay(TARGET, run);
}

#[test]
fn good_inputs_are_where_the_fuzzer_starts() {
    let inputs: Vec<Vec<u8>> = files().into_iter().chain(parts()).chain(texts()).collect();
    inputs.iter().for_each(|input| run(input));
    kept::offer(TARGET, &inputs);
}

fn of(kind: u8, bytes: &[u8]) -> Vec<u8> {
    [&[kind], bytes].concat()
}

fn files() -> Vec<Vec<u8>> {
    let whole = release_of(2, small);
    let mut checked = Bundle::open(Cursor::new(&whole[..])).unwrap().judge(&trust()).unwrap();
    let envelope = checked.envelope().clone();
    let mut stripped = Vec::new();
    let keep = Keep { arches: Some([Arch::Arm64].into()), ..Keep::default() };
    rewrite(&mut checked, &keep, &envelope, &mut stripped).unwrap();
    vec![of(b'f', &whole), of(b'f', &stripped)]
}

fn parts() -> Vec<Vec<u8>> {
    let whole = release_of(2, small);
    let checked = Bundle::open(Cursor::new(&whole[..])).unwrap().judge(&trust()).unwrap();
    let chunks = checked.index(Arch::X86_64, crate::PartName::Root).unwrap();
    let len: u32 = chunks.iter().map(|chunk| chunk.plain_len).sum();
    let mut stored = [0; 100];
    let written = CCtx::create().compress(&mut stored[..], b"alphabet", 3).unwrap();
    let good = of(b'z', &[&[8, 0, 0], &stored[..written]].concat());
    let mut second = root(2);
    second.revoked = [signer(21).public().unwrap().id()].into();
    let chain =
        Envelope { roots: vec![signed_root(&root(1), &[1, 2]), signed_root(&second, &[1])], signatures: Vec::new() };
    vec![
        of(b'm', checked.manifest_bytes()),
        of(b'e', &checked.envelope().to_bytes()),
        of(b'e', &chain.to_bytes()),
        of(b'c', &checked.contents().to_bytes()),
        of(b'i', &[&len.to_le_bytes()[..], &write_index(chunks)].concat()),
        good,
        of(b'r', &root(1).to_bytes()),
        of(b'r', &second.to_bytes()),
    ]
}

fn texts() -> Vec<Vec<u8>> {
    let document = root(1).to_bytes();
    let key = signer(1).public().unwrap();
    let request = Request { kind: RequestKind::Root, document: document.clone() };
    let texts = [request.to_text(), signatures(&manifest_bytes(), &[11])[0].to_text(), key.to_string()];
    texts.iter().map(|text| of(b't', text.as_bytes())).collect()
}

fn manifest_bytes() -> Vec<u8> {
    let whole = release_of(2, small);
    Bundle::open(Cursor::new(&whole[..])).unwrap().manifest_bytes().to_vec()
}
