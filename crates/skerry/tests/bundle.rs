//! `skerry bundle` as people use it: keys, roots, a release, signatures that come back on sticks, and every attack.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// Runs a verb in a folder.
fn bundle(folder: &Path, args: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_skerry"));
    command.env_clear().current_dir(folder).arg("bundle").args(args.split_whitespace()).output().unwrap()
}

/// What it said, if it went well.
fn good(folder: &Path, args: &str) -> String {
    let output = bundle(folder, args);
    assert!(output.status.success(), "{args}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn bad(folder: &Path, args: &str, says: &str) {
    let output = bundle(folder, args);
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(!output.status.success() && said.contains(says), "{args}: {said}");
}

fn public(folder: &Path, name: &str) -> String {
    let said = good(folder, &format!("keygen {name}.key --passphrase-file passphrase"));
    said.lines().find_map(|line| line.strip_prefix("public  ")).unwrap().to_owned()
}

/// Lines that pack well, and differ by release in one place.
fn image(folder: &Path, release: u32) {
    fs::create_dir_all(folder).unwrap();
    let lines = |what: &str| (0..20_000).map(|line| format!("{what} {line}\n")).collect::<String>();
    fs::write(folder.join("root.img"), lines("root") + &format!("release {release}\n")).unwrap();
    fs::write(folder.join("verity.img"), format!("tree {release}\n")).unwrap();
    fs::write(folder.join("kernel.efi"), lines("kernel")).unwrap();
    fs::write(folder.join("root_hash.txt"), "ab".repeat(32) + "\n").unwrap();
}

#[test]
fn a_release_from_keys_to_a_thin_file() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    fs::write(at.join("passphrase"), "correct horse battery\n").unwrap();
    fs::write(at.join("wrong"), "incorrect horse battery\n").unwrap();
    fs::write(at.join("sbom.json"), "{\"bomFormat\":\"CycloneDX\"}").unwrap();
    let [anna, ben, cleo] = ["anna", "ben", "cleo"].map(|name| public(at, name));
    bad(at, "keygen anna.key --passphrase-file passphrase", "exists");

    let keys = format!("--root-key {anna} --root-key {ben} --release-key {ben} --release-key {cleo}");
    good(at, &format!("root new {keys} --out root.json"));
    good(at, "root add root.json --out roots");
    for release in [1, 2] {
        image(&at.join(format!("image{release}")), release);
        good(
            at,
            &format!(
                "create --version 1.{release}.0 --security-version {release} --built-s 1790000000 --store 1..1 \
                 --image x86_64=image{release} --image arm64=image{release} --sbom sbom.json --roots roots --level 3 \
                 --out plain{release}"
            ),
        );
    }
    bad(at, "verify plain2 --root root.json", "signed by 0 of the 2 keys");

    good(at, "request plain2 --out request");
    bad(at, "sign request --key ben.key --passphrase-file wrong --out nothing", "passphrase is wrong");
    for name in ["ben", "cleo"] {
        let said = good(at, &format!("sign request --key {name}.key --passphrase-file passphrase --out {name}.sig"));
        assert!(said.contains("to be signed: release 1.2.0 (security version 2) for arm64, x86_64"), "{said}");
    }
    good(at, "attach plain2 --signature ben.sig --out half");
    bad(at, "verify half --root root.json", "signed by 1 of the 2 keys");
    good(at, "attach half --signature cleo.sig --out update");
    let said = good(at, "verify update --root root.json");
    assert_eq!(good(at, "verify update --root roots"), said, "a chain says whom to believe, too");
    for part in
        ["GOOD", "release           1.2.0", "2026-09-21", "image for arm64", "judged by         root document 1"]
    {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(good(at, "verify update --root root.json --sbom"), "{\"bomFormat\":\"CycloneDX\"}");

    good(at, "thin update --base plain1 --out thin");
    good(at, "strip thin --arch x86_64 --out small");
    let said = good(at, "verify small --root root.json");
    assert!(said.contains("thin  ") && said.contains("left out          the image for arm64"), "{said}");
    let size = |name: &str| fs::metadata(at.join(name)).unwrap().len();
    assert!(size("thin") < size("update") && size("small") < size("thin"));
    let json: serde_json::Value = serde_json::from_str(&good(at, "verify small --root root.json --json")).unwrap();
    assert_eq!((&json["good"], &json["manifest"]["version"]), (&true.into(), &"1.2.0".into()));
}

#[test]
fn a_key_is_revoked_and_the_chain_tells() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    fs::write(at.join("passphrase"), "correct horse battery\n").unwrap();
    let [anna, ben, cleo] = ["anna", "ben", "cleo"].map(|name| public(at, name));
    good(
        at,
        &format!("root new --root-key {anna} --root-key {ben} --release-key {anna} --release-threshold 1 --out first"),
    );
    good(at, "root add first --out one");
    let keys =
        format!("--root-key {ben} --root-key {cleo} --root-threshold 1 --release-key {cleo} --release-threshold 1");
    good(at, &format!("root new --chain one {keys} --out second"));
    good(at, "root request second --out request");
    good(at, "sign request --key anna.key --passphrase-file passphrase --out anna.sig");
    good(at, "sign request --key ben.key --passphrase-file passphrase --out ben.sig");
    bad(
        at,
        "root add --chain one second --signature ben.sig --out two",
        "signed by 1 of the 2 keys that root 1 asks for",
    );
    let said = good(at, "root add --chain one second --signature anna.sig --signature ben.sig --out two");
    assert!(said.starts_with("root document 2\n"), "{said}");
    // A key that the next root revokes has no say in it.
    good(
        at,
        &format!(
            "root new --chain two --root-key {cleo} --root-threshold 1 --release-key {cleo} --release-threshold 1 --revoke {ben} --out third"
        ),
    );
    good(at, "root request third --out again");
    good(at, "sign again --key ben.key --passphrase-file passphrase --out ben3.sig");
    bad(
        at,
        "root add --chain two third --signature ben3.sig --out three",
        "signed by 0 of the 1 keys that root 2 asks for",
    );
    good(at, "sign again --key cleo.key --passphrase-file passphrase --out cleo3.sig");
    assert!(good(at, "root add --chain two third --signature cleo3.sig --out three").contains("revoked: "));
}

/// What an officer on site reads is what lies beside each attack; those that need a box to be seen through are good files.
#[test]
fn every_attack_is_told_in_its_words() {
    let attacks = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bundle/tests/attacks");
    let for_a_box = ["downgrade", "other_machine", "thin_for_another_release"];
    let mut seen = 0;
    for attack in fs::read_dir(&attacks).unwrap() {
        let folder = attack.unwrap().path();
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        let output = bundle(&folder, "verify update.skerry --root ../../root.json");
        let said = String::from_utf8(output.stdout).unwrap();
        if for_a_box.contains(&name.as_str()) {
            assert!(output.status.success() && said.starts_with("GOOD\n"), "{name}: {said}");
        } else {
            let says = fs::read_to_string(folder.join("says.txt")).unwrap();
            assert!(!output.status.success(), "{name}");
            assert_eq!(said, format!("REFUSED\n{says}"), "{name}");
        }
        seen += 1;
    }
    assert!(seen >= 30, "{seen}");
}
