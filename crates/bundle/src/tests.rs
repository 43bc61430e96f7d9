//! What must come out when everything is right, and what no file may do.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io::{self, Cursor};

use proptest::prelude::*;

use crate::testing::{parts, release, root, signatures, signed_root, signer, trust, unsigned, with};
use crate::{
    Arch, Bundle, Checked, Digest, Envelope, Have, Keep, Manifest, NoSlot, PartName, Refusal, Request, RequestKind,
    Signature, ThisBox, Trust, cut,
};

const NAMES: [PartName; 3] = [PartName::Root, PartName::Verity, PartName::Kernel];

fn judged(file: &[u8]) -> Checked<Cursor<&[u8]>> {
    Bundle::open(Cursor::new(file)).unwrap().judge(&trust()).unwrap()
}

#[test]
fn what_goes_in_comes_out() {
    let file = release(2);
    let mut bundle = judged(&file);
    let report = bundle.verify(|_| {}).unwrap();
    for arch in [Arch::X86_64, Arch::Arm64] {
        for (name, bytes) in NAMES.iter().zip(parts(arch, 2)) {
            let mut out = Vec::new();
            bundle.write_part(arch, *name, &mut NoSlot, &mut out).unwrap();
            assert!(out == bytes, "{arch} {name}");
        }
        assert!(bundle.missing(arch, &NoSlot).unwrap().is_empty());
    }
    assert_eq!(report.elsewhere, 0);
    assert!(report.chunks > 6 && report.stored < report.plain);
    assert_eq!(bundle.sbom().unwrap(), br#"{"bomFormat":"CycloneDX"}"#);
    assert_eq!(bundle.signers().len(), 2);
}

/// What nobody but its makers can do: everything is as it was signed, and yet does not make the image.
#[test]
fn a_mistake_of_its_makers_is_found_when_it_is_rehearsed() {
    let mut file = unsigned(2);
    let unjudged = |file: &[u8]| Bundle::open(Cursor::new(file.to_vec())).unwrap().unjudged().unwrap();
    unjudged(&file).rehearse().unwrap();
    let root = unjudged(&file).manifest().images[&Arch::X86_64].root.sha256.to_string();
    let at = file.windows(root.len()).position(|window| window == root.as_bytes()).unwrap();
    file[at..at + root.len()].copy_from_slice(Digest::of(b"other").to_string().as_bytes());
    unjudged(&file).verify(|_| {}).unwrap();
    let found = unjudged(&file).rehearse();
    assert!(matches!(&found, Err(Refusal::Damaged { what }) if what.contains("root image")), "{found:?}");
}

#[test]
fn the_same_inputs_make_the_same_file() {
    assert_eq!(unsigned(2), unsigned(2));
}

#[test]
fn a_thin_bundle_needs_the_release_that_it_was_made_from() {
    let old: HashMap<Digest, Vec<u8>> = parts(Arch::X86_64, 1)
        .iter()
        .flat_map(|part| cut(&part[..]))
        .map(Result::unwrap)
        .map(|c| (Digest::of(&c), c))
        .collect();
    let keep = Keep { without: old.keys().copied().collect(), arches: Some(BTreeSet::from([Arch::X86_64])) };
    let full = release(2);
    let thin = with(&full, &keep, |_, _| {});
    assert!(thin.len() * 2 < full.len(), "{} of {}", thin.len(), full.len());

    let mut bundle = judged(&thin);
    assert!(bundle.verify(|_| {}).unwrap().elsewhere > 0);
    bundle.rehearse().unwrap();
    assert!(bundle.missing(Arch::X86_64, &NoSlot).unwrap().iter().any(|missing| missing.part == PartName::Root));
    let mut slot = Slot(old);
    assert!(bundle.missing(Arch::X86_64, &slot).unwrap().is_empty());
    for (name, bytes) in NAMES.iter().zip(parts(Arch::X86_64, 2)) {
        let mut out = Vec::new();
        bundle.write_part(Arch::X86_64, *name, &mut slot, &mut out).unwrap();
        assert!(out == bytes, "{name}");
    }
    // A slot that gives something else is noticed.
    slot.0.values_mut().for_each(|bytes| bytes[0] ^= 1);
    let wrong = bundle.write_part(Arch::X86_64, PartName::Root, &mut slot, &mut io::sink());
    assert!(matches!(wrong, Err(Refusal::Damaged { .. })), "{wrong:?}");
}

struct Slot(HashMap<Digest, Vec<u8>>);

impl Have for Slot {
    fn has(&self, plain: &Digest) -> bool {
        self.0.contains_key(plain)
    }

    fn chunk(&mut self, plain: &Digest) -> io::Result<Vec<u8>> {
        Ok(self.0[plain].clone())
    }
}

#[test]
fn one_machine_can_be_taken_out_and_the_signatures_hold() {
    let keep = Keep { arches: Some(BTreeSet::from([Arch::Arm64])), without: HashSet::new() };
    let file = with(&release(2), &keep, |_, _| {});
    let mut bundle = judged(&file);
    bundle.verify(|_| {}).unwrap();
    bundle.write_part(Arch::Arm64, PartName::Root, &mut NoSlot, &mut io::sink()).unwrap();
    assert!(matches!(bundle.image(Arch::X86_64), Err(Refusal::Stripped { .. })));
    assert!(matches!(
        bundle.write_part(Arch::X86_64, PartName::Root, &mut NoSlot, &mut io::sink()),
        Err(Refusal::Stripped { .. })
    ));
}

/// Keys change hands over several roots; a box that knows only the first follows, one that is ahead does not go back.
#[test]
fn roots_are_followed_and_never_backwards() {
    let (first, mut second) = (root(1), root(2));
    let (new, old) = (signer(14).public().unwrap(), signer(11).public().unwrap().id());
    second.keys.insert(new.id(), new);
    second.release.keys.insert(new.id());
    let mut third = second.clone();
    third.version = 3;
    third.keys.remove(&old);
    third.release.keys.remove(&old);
    third.revoked.insert(old);
    let chain = [signed_root(&first, &[]), signed_root(&second, &[1, 3]), signed_root(&third, &[2, 3])];
    let file = |by: &[u8], roots: usize| {
        with(&unsigned(2), &Keep::default(), |envelope, manifest| {
            envelope.roots = chain[..roots].to_vec();
            envelope.signatures = signatures(manifest, by);
        })
    };
    let judge = |file: &[u8], trust: &Trust| {
        Bundle::open(Cursor::new(file)).unwrap().judge(trust).map(|b| b.trust().unwrap().clone())
    };
    assert_eq!(judge(&file(&[11, 12], 1), &trust()).unwrap().root().version, 1);
    let ahead = judge(&file(&[12, 14], 3), &trust()).unwrap();
    assert_eq!(ahead.root(), &third);
    assert_eq!(Trust::new(ahead.root_bytes()).unwrap().root(), &third);
    // What was signed by a key that is revoked by now is not enough for a box that knows.
    let refusal = judge(&file(&[11, 12], 1), &ahead).unwrap_err();
    assert!(matches!(&refusal, Refusal::NotSigned { by: 1, revoked, .. } if revoked[..] == [old]), "{refusal}");
    assert_eq!(judge(&file(&[12, 13], 1), &ahead).unwrap().root().version, 3);
}

#[test]
fn a_site_may_ask_for_its_own_signature() {
    let site = signer(31).public().unwrap();
    let trust = trust().with_site(&[site], 1).unwrap();
    let refusal = Bundle::open(Cursor::new(release(2))).unwrap().judge(&trust).unwrap_err();
    assert!(matches!(refusal, Refusal::NotCountersigned { by: 0, needed: 1 }), "{refusal}");
    let both = with(&release(2), &Keep::default(), |envelope, manifest| {
        envelope.signatures.extend(signatures(manifest, &[31]));
    });
    assert_eq!(Bundle::open(Cursor::new(both)).unwrap().judge(&trust).unwrap().signers().len(), 3);
    // It does not stand in for one of the others.
    let one = with(&unsigned(2), &Keep::default(), |envelope, manifest| {
        envelope.signatures = signatures(manifest, &[11, 31]);
    });
    assert!(matches!(Bundle::open(Cursor::new(one)).unwrap().judge(&trust), Err(Refusal::NotSigned { .. })));
    assert!(trust.with_site(&[site], 2).is_err());
}

#[test]
fn a_box_says_what_it_can_take() {
    let file = release(3);
    let bundle = judged(&file);
    let this = ThisBox { arch: Arch::X86_64, floor: 3, security_version: 3, store_format: 2 };
    bundle.fits(&this).unwrap();
    bundle.fits(&ThisBox { floor: 0, security_version: 1, store_format: 1, ..this }).unwrap();
    let check = |this: ThisBox, says: &str| {
        let refusal = bundle.fits(&this).unwrap_err().to_string();
        assert!(refusal.contains(says), "{refusal}");
    };
    check(ThisBox { floor: 4, ..this }, "security version 3, at least 4 is needed");
    check(ThisBox { floor: 0, security_version: 0, ..this }, "must first be brought to security version 1");
    check(ThisBox { store_format: 3, ..this }, "cannot read the data of this box (format 3; it reads 1 to 2)");
    check(ThisBox { store_format: 0, ..this }, "format 0; it reads 1 to 2");
}

#[test]
fn a_later_format_is_named_as_such() {
    let request = |document: &str| Request { kind: RequestKind::Release, document: document.into() }.subject();
    let refusal = request(r#"{"format":2,"something":"else"}"#).unwrap_err();
    assert!(matches!(refusal, Refusal::NewerFormat { format: 2 }), "{refusal}");
    assert!(request("{}").is_err());
}

#[test]
fn documents_have_one_spelling() {
    let bundle = unsigned(2);
    let bytes = Bundle::open(Cursor::new(&bundle)).unwrap().manifest_bytes().to_vec();
    Manifest::parse(&bytes).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    for other in [
        text.replacen(':', ": ", 1),
        text.clone() + " ",
        text.replacen("{", "{\"extra\":1,", 1),
        text.replacen("\"notes\":\"", "\"notes\":\"\\u0041", 1),
    ] {
        assert!(matches!(Manifest::parse(other.as_bytes()), Err(Refusal::Damaged { .. })), "{other}");
    }
    let root_text = String::from_utf8(root(1).to_bytes()).unwrap();
    assert!(Trust::new((root_text + "\n").as_bytes()).is_err());
}

#[test]
fn a_manifest_must_make_sense() {
    let bundle = unsigned(2);
    let good = Manifest::parse(Bundle::open(Cursor::new(&bundle)).unwrap().manifest_bytes()).unwrap();
    let check = |name: &str, change: &dyn Fn(&mut Manifest)| {
        let mut manifest = good.clone();
        change(&mut manifest);
        assert!(manifest.check().is_err(), "{name}");
    };
    let kernel = |manifest: &mut Manifest, change: &dyn Fn(&mut crate::Part)| {
        manifest.images.values_mut().for_each(|image| change(&mut image.kernel));
    };
    check("a version with a slash", &|manifest| manifest.version = "../1".into());
    check("no version", &|manifest| manifest.version.clear());
    check("notes with a bell", &|manifest| manifest.notes.push('\u{7}'));
    check("a step from above", &|manifest| manifest.from_security_version = 3);
    check("formats the wrong way round", &|manifest| manifest.store.oldest = 3);
    check("no image", &|manifest| manifest.images.clear());
    check("a large bill of materials", &|manifest| manifest.sbom.bytes = 1 << 40);
    check("an empty part", &|manifest| kernel(manifest, &|part| part.bytes = 0));
    check("a huge part", &|manifest| kernel(manifest, &|part| part.bytes = 1 << 50));
    check("too few chunks", &|manifest| kernel(manifest, &|part| part.bytes = 1 << 32));
    check("no chunks", &|manifest| kernel(manifest, &|part| part.chunks = 0));
    check("too many chunks", &|manifest| {
        kernel(manifest, &|part| (part.bytes, part.chunks) = (1 << 30, 1 << 20));
    });
}

#[test]
fn a_manifest_has_no_fields_of_its_own() {
    let bundle = unsigned(2);
    let good = String::from_utf8(Bundle::open(Cursor::new(&bundle)).unwrap().manifest_bytes().to_vec()).unwrap();
    assert!(Manifest::parse(good.as_bytes()).is_ok());
    for field in ["format", "oldest", "root", "index_sha256"] {
        let more = good.replacen(&format!("\"{field}\":"), &format!("\"zz\":1,\"{field}\":"), 1);
        assert!(more != good && Manifest::parse(more.as_bytes()).is_err(), "beside {field}");
    }
}

#[test]
fn requests_and_signatures_travel_as_text() {
    let bundle = unsigned(2);
    let document = Bundle::open(Cursor::new(&bundle)).unwrap().manifest_bytes().to_vec();
    let request = Request { kind: RequestKind::Release, document };
    assert_eq!(Request::parse(&request.to_text()).unwrap(), request);
    assert_eq!(request.subject().unwrap(), "release 1.2.0 (security version 2) for arm64, x86_64");
    let signature = signer(11).sign(&request).unwrap();
    assert_eq!(Signature::parse(&signature.to_text()).unwrap(), signature);
    assert!(Request::parse("{}").is_err() && Signature::parse("").is_err());
    // A release is not signed as a root, nor a root as a release.
    assert!(signer(11).sign(&Request { kind: RequestKind::Root, ..request }).is_err());
}

/// Whatever stands in the file, there is an answer, and nothing is given out that was not signed.
fn whatever_happens(file: &[u8]) -> Result<(), TestCaseError> {
    let good = parts(Arch::X86_64, 2);
    let Ok(bundle) = Bundle::open(Cursor::new(file)) else { return Ok(()) };
    let Ok(mut bundle) = bundle.judge(&trust()) else { return Ok(()) };
    let _ = bundle.verify(|_| {});
    for (name, bytes) in NAMES.iter().zip(good) {
        let mut out = Vec::new();
        if bundle.write_part(Arch::X86_64, *name, &mut NoSlot, &mut out).is_ok() {
            prop_assert!(out == bytes, "{name}");
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn damage_is_noticed(damage in prop::collection::vec((any::<prop::sample::Index>(), 1_u8..), 1..4), head in any::<bool>()) {
        let mut file = release(2);
        let len = if head { 3_000 } else { file.len() };
        for (at, flip) in damage {
            let at = at.index(len);
            file[at] ^= flip;
        }
        whatever_happens(&file)?;
    }

    #[test]
    fn any_bytes_get_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..300), magic in any::<bool>()) {
        let mut file = if magic { b"SKERRY1\n".to_vec() } else { Vec::new() };
        file.extend(&bytes);
        whatever_happens(&file)?;
        let _ = Envelope::parse(&bytes);
    }
}
