//! What was tried elsewhere against offline updates, each as a file that must be refused, and the words it is refused with.
//!
//! The files lie in `tests/attacks/NAME`, so that people can see for themselves (`skerry bundle verify`). They are judged
//! as they lie there: a later version must still refuse them. `BLESS_ATTACKS=1 cargo test -p bundle` writes those that are
//! not there yet, and anew what is said; with `-- --nocapture every_attack` the table is printed.

use std::collections::BTreeSet;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use crate::format::{MAGIC, Signed};
use crate::testing::{release, root, signatures, signed, signed_root, signer, trust, unsigned, with};
use crate::{Arch, Bundle, Keep, KeyId, NoSlot, PartName, Refusal, ThisBox};

/// Name, file, and a part of what is said.
type Attack = (&'static str, Vec<u8>, &'static str);

fn attacks() -> Vec<Attack> {
    [on_the_file(), on_the_signatures(), on_the_roots(), on_the_box()].concat()
}

fn on_the_file() -> Vec<Attack> {
    let good = release(2);
    let end = good.len();
    let indices = head_len(&good);
    vec![
        ("not_a_bundle", b"#!/bin/sh\necho installing\n".to_vec(), "not a Skerry update file"),
        ("empty", Vec::new(), "not a Skerry update file"),
        (
            "line_ends_changed",
            changed(&good, |bytes| bytes.splice(7..8, *b"\r\n").for_each(drop)),
            "not a Skerry update",
        ),
        ("truncated_by_one_byte", good[..end - 1].to_vec(), "ends too early"),
        ("truncated_in_the_head", good[..100].to_vec(), "ends too early"),
        ("padded", [&good[..], b"x"].concat(), "1 bytes behind its end"),
        ("two_in_one", [&good[..], &good].concat(), "behind its end"),
        ("chunk_flipped", changed(&good, |bytes| bytes[end - 2_000] ^= 1), "damaged or was changed: a piece of it"),
        ("index_flipped", changed(&good, |bytes| bytes[indices + 40] ^= 1), "the index of the root image"),
        ("index_entries_swapped", changed(&good, |bytes| swap(bytes, indices, 72)), "the index of the root image"),
        ("sbom_flipped", changed(&good, |bytes| bytes[end - 3] ^= 1), "its bill of materials"),
        ("contents_claim_more", changed(&good, |bytes| claim_more(bytes)), "table of contents"),
        ("huge_manifest_length", changed(&good, |bytes| bytes[8..12].fill(0xff)), "larger than any update"),
        ("chunks_of_another_release", mixed(), "damaged or was changed"),
    ]
}

fn on_the_signatures() -> Vec<Attack> {
    let plain = unsigned(2);
    let twice = with(&plain, &Keep::default(), |envelope, manifest| {
        envelope.signatures = signatures(manifest, &[11, 11]);
    });
    let renamed = with(&plain, &Keep::default(), |envelope, manifest| {
        envelope.signatures = signatures(manifest, &[11, 11]);
        envelope.signatures[1].key = key(12);
    });
    let of_another = with(&plain, &Keep::default(), |envelope, _| {
        let other = Bundle::open(Cursor::new(unsigned(1))).unwrap();
        envelope.signatures = signatures(other.manifest_bytes(), &[11, 12]);
    });
    let manifest_changed = changed(&release(2), |bytes| {
        let at = find(bytes, b"\"security_version\":2");
        bytes[at + 19] = b'9';
    });
    vec![
        ("unsigned", plain.clone(), "signed by 0 of the 2 keys"),
        ("signed_by_one", signed(&plain, &[11]), "signed by 1 of the 2 keys"),
        ("same_key_twice", twice, "signed by 1 of the 2 keys"),
        ("same_signature_under_another_name", renamed, "is false"),
        ("signed_by_strangers", signed(&plain, &[21, 22]), "signed by 0 of the 2 keys that are needed; 2 more"),
        ("signed_by_root_keys", signed(&plain, &[1, 2]), "signed by 0 of the 2 keys that are needed; 2 more"),
        ("signatures_of_another_release", of_another, "is false"),
        ("manifest_changed_after_signing", manifest_changed, "is false"),
    ]
}

fn on_the_roots() -> Vec<Attack> {
    let chain = |roots: Vec<Signed>, by: &[u8]| {
        with(&unsigned(2), &Keep::default(), |envelope, manifest| {
            envelope.roots = roots;
            envelope.signatures = signatures(manifest, by);
        })
    };
    let first = || signed_root(&root(1), &[1, 2]);
    let mut stolen = root(2);
    let thief = signer(21).public().unwrap();
    stolen.keys.insert(thief.id(), thief);
    stolen.release.keys.insert(thief.id());
    stolen.release.threshold = 1;
    let mut revoking = root(2);
    revoking.revoked.insert(key(11));
    revoking.keys.remove(&key(11));
    revoking.release.keys.remove(&key(11));
    let mut foreign = root(1);
    foreign.release.threshold = 1;
    let mut dead = root(2);
    dead.revoked.insert(key(1));
    dead.keys.remove(&key(1));
    dead.root.keys.remove(&key(1));
    vec![
        ("no_roots", chain(Vec::new(), &[11, 12]), "no root documents"),
        ("root_of_somebody_else", chain(vec![signed_root(&foreign, &[1, 2])], &[11, 12]), "from somebody else"),
        (
            "root_signed_by_one",
            chain(vec![first(), signed_root(&stolen, &[1])], &[21]),
            "by 1 of the 2 keys that root 1",
        ),
        ("root_signed_by_release_keys", chain(vec![first(), signed_root(&stolen, &[11, 12])], &[21]), "by 0 of the 2"),
        ("root_skipped", chain(vec![first(), signed_root(&root(3), &[1, 2])], &[11, 12]), "stands at place 2"),
        (
            "root_signed_by_a_key_it_revokes",
            chain(vec![first(), signed_root(&dead, &[1, 2])], &[11, 12]),
            "by 1 of the 2",
        ),
        ("revoked_key", chain(vec![first(), signed_root(&revoking, &[1, 2])], &[11, 12]), "which was revoked"),
    ]
}

fn on_the_box() -> Vec<Attack> {
    let only = |arch| Keep { arches: Some(BTreeSet::from([arch])), ..Keep::default() };
    let thin = {
        let old = Bundle::open(Cursor::new(release(1))).unwrap().unjudged().unwrap();
        let without = old.index(Arch::X86_64, PartName::Root).unwrap().iter().map(|chunk| chunk.plain).collect();
        with(&release(2), &Keep { without, ..Keep::default() }, |_, _| {})
    };
    vec![
        ("downgrade", release(1), "is older than what this box has run"),
        ("other_machine", with(&release(2), &only(Arch::Arm64), |_, _| {}), "was taken out of this file"),
        ("thin_for_another_release", thin, "neither in this file nor on this box"),
    ]
}

/// As a box does it that has run security version 2 and has nothing at hand.
fn install(file: &[u8]) -> Result<(), Refusal> {
    let this = ThisBox { arch: Arch::X86_64, floor: 2, security_version: 2, store_format: 1 };
    let mut checked = Bundle::open(Cursor::new(file))?.judge(&trust())?;
    checked.fits(&this)?;
    checked.verify(|_| {})?;
    if let Some(missing) = checked.missing(this.arch, &NoSlot)?.first() {
        return Err(Refusal::Missing { part: missing.part, count: missing.count, first: missing.first });
    }
    Ok(())
}

#[test]
fn a_good_bundle_is_taken() {
    install(&release(2)).unwrap();
    install(&release(3)).unwrap();
}

#[test]
fn every_attack_is_refused_in_the_right_words() {
    for (name, file, says) in attacks() {
        let refusal = install(&file).expect_err(name).to_string();
        assert!(refusal.contains(says), "{name}: {refusal}");
    }
}

#[test]
fn every_attack_lies_there_as_a_file() {
    for (name, file, _) in attacks() {
        let place = folder().join(name);
        if std::env::var_os("BLESS_ATTACKS").is_some() && !place.exists() {
            fs::create_dir_all(&place).unwrap();
            fs::write(place.join("update.skerry"), &file).unwrap();
        }
        if std::env::var_os("BLESS_ATTACKS").is_some() {
            let there = fs::read(place.join("update.skerry")).unwrap();
            fs::write(place.join("says.txt"), format!("{}\n", install(&there).unwrap_err())).unwrap();
        }
        let (file, says) = (fs::read(place.join("update.skerry")).expect(name), place.join("says.txt"));
        let said = install(&file).expect_err(name).to_string();
        println!("{name:<34} {said}");
        assert_eq!(format!("{said}\n"), fs::read_to_string(says).unwrap(), "{name}");
    }
    // The root document that they are judged by, for people who try them.
    let born_with = folder().with_file_name("root.json");
    if std::env::var_os("BLESS_ATTACKS").is_some() && !born_with.exists() {
        fs::write(&born_with, root(1).to_bytes()).unwrap();
    }
    assert_eq!(fs::read(born_with).unwrap(), root(1).to_bytes());
    let mut names: Vec<_> = attacks().iter().map(|attack| attack.0.to_owned()).collect();
    let mut there: Vec<_> =
        fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    there.sort();
    assert_eq!(there, names);
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/attacks")
}

fn key(number: u8) -> KeyId {
    signer(number).public().unwrap().id()
}

fn changed(bytes: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    change(&mut bytes);
    bytes
}

/// Where the contents of a bundle begin.
fn contents_at(bytes: &[u8]) -> usize {
    let mut at = MAGIC.len();
    for _ in 0..2 {
        at += 4 + u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    }
    at + 4
}

fn head_len(bytes: &[u8]) -> usize {
    let at = contents_at(bytes);
    at + u32::from_le_bytes(bytes[at - 4..at].try_into().unwrap()) as usize
}

/// Sets a bit behind the last chunk of the first part.
fn claim_more(bytes: &mut [u8]) {
    let at = contents_at(bytes);
    bytes[at + 1] = 0xff;
}

/// Swaps the first two of things of this size.
fn swap(bytes: &mut [u8], at: usize, size: usize) {
    let (first, second) = bytes[at..at + 2 * size].split_at_mut(size);
    first.swap_with_slice(second);
}

fn find(bytes: &[u8], what: &[u8]) -> usize {
    bytes.windows(what.len()).position(|window| window == what).unwrap()
}

/// The head of one release, and what belongs to another behind it.
fn mixed() -> Vec<u8> {
    let (one, other) = (release(2), release(3));
    let chunks = |bundle: &[u8]| {
        let manifest = Bundle::open(Cursor::new(bundle)).unwrap().unjudged().unwrap();
        let images = manifest.manifest().images.values();
        head_len(bundle)
            + images.flat_map(|image| image.parts()).map(|(_, part)| part.chunks as usize * 72).sum::<usize>()
    };
    let (head, rest) = (&one[..chunks(&one)], &other[chunks(&other)..]);
    let mut mixed = [head, rest].concat();
    mixed.resize(one.len(), 0);
    mixed
}
