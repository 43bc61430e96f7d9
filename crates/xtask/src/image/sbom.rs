//! The bill of materials: every package of Debian's and every crate that is in the image, as CycloneDX has it.
//!
//! Lives here: asking cargo, and the document. Not here: which packages there are (packages.rs).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::packages::{Package, Packages};
use super::{Arch, Recipe};
use crate::run;

/// A crate that is linked into one of the programs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Crate {
    name: String,
    version: String,
    licence: String,
    /// SHA-256 of the published file; none for our own.
    checksum: Option<String>,
}

/// What cargo links into the static programs.
pub(super) fn crates(arch: Arch) -> Result<BTreeSet<Crate>> {
    let target = match arch {
        Arch::X86_64 => "x86_64-unknown-linux-musl",
        Arch::Arm64 => "aarch64-unknown-linux-musl",
    };
    let lock = fs::read_to_string(run::root().join("Cargo.lock"))?;
    let args =
        ["tree", "--locked", "-p", "skerry", "-p", "init", "-e", "normal", "--prefix", "none", "--target", target];
    let tree = run::output(run::cargo(args.into_iter().chain(["--format", "{p}|{l}"])))?;
    linked(&tree, &checksums(&lock))
}

/// Lines of `cargo tree`: `name vVERSION (where)|licence`, a star behind those that were there before.
fn linked(tree: &str, checksums: &BTreeMap<(String, String), String>) -> Result<BTreeSet<Crate>> {
    let line = |line: &str| {
        let (package, licence) = line.split_once('|')?;
        let mut words = package.split_whitespace();
        let (name, version) = (words.next()?.to_owned(), words.next()?.strip_prefix('v')?.to_owned());
        let checksum = checksums.get(&(name.clone(), version.clone())).cloned();
        Some(Crate { name, version, licence: licence.trim_end_matches(" (*)").trim().to_owned(), checksum })
    };
    let lines = tree.lines().filter(|line| !line.trim().is_empty());
    lines.map(|text| line(text).with_context(|| format!("a line of cargo tree like this: {text}"))).collect()
}

/// Name and version to checksum, from the lock file.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let mut found = BTreeMap::new();
    for entry in lock.split("[[package]]") {
        let field = |name: &str| {
            let line = entry.lines().find_map(|line| line.strip_prefix(&format!("{name} = ")))?;
            Some(line.trim_matches('"').to_owned())
        };
        if let (Some(name), Some(version), Some(checksum)) = (field("name"), field("version"), field("checksum")) {
            found.insert((name, version), checksum);
        }
    }
    found
}

pub(super) fn write(recipe: &Recipe, packages: &Packages, crates: &BTreeSet<Crate>) -> String {
    let mut components: Vec<Value> = packages.all.iter().map(package).collect();
    components.extend(crates.iter().map(linked_crate));
    let document = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": { "component": {
            "type": "operating-system",
            "bom-ref": "skerry",
            "name": "skerry",
            "version": recipe.version,
        } },
        "components": components,
    });
    format!("{document:#}\n")
}

fn package(package: &Package) -> Value {
    let Package { name, version, arch, sha256, .. } = package;
    let purl = format!("pkg:deb/debian/{}@{}?arch={arch}", escaped(name), escaped(version));
    json!({
        "type": "library",
        "bom-ref": purl,
        "purl": purl,
        "name": name,
        "version": version,
        "hashes": [{ "alg": "SHA-256", "content": sha256 }],
    })
}

fn linked_crate(linked: &Crate) -> Value {
    let Crate { name, version, licence, checksum } = linked;
    let purl = format!("pkg:cargo/{}@{}", escaped(name), escaped(version));
    let mut component = json!({ "type": "library", "bom-ref": purl, "purl": purl, "name": name, "version": version });
    if let Some(component) = component.as_object_mut() {
        if !licence.is_empty() {
            // The older way of writing a choice of licences is no expression.
            let expression = licence.replace('/', " OR ");
            component.insert("licenses".into(), json!([{ "expression": expression }]));
        }
        if let Some(checksum) = checksum {
            component.insert("hashes".into(), json!([{ "alg": "SHA-256", "content": checksum }]));
        }
    }
    component
}

/// What may not stand in a package URL as it is, in percent.
fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_~".contains(&byte);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crates_have_licence_and_checksum() {
        let lock = "version = 4\n[[package]]\nname = \"bytes\"\nversion = \"1.12.0\"\nsource = \"r\"\nchecksum = \"abc\"\n\n\
                    [[package]]\nname = \"skerry\"\nversion = \"0.1.0\"\n";
        let tree =
            "skerry v0.1.0 (/home/x)|Apache-2.0\nbytes v1.12.0|MIT/Apache-2.0\n\nbytes v1.12.0|MIT/Apache-2.0 (*)\n";
        let found: Vec<Crate> = linked(tree, &checksums(lock)).unwrap().into_iter().collect();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].name.as_str(), found[0].checksum.as_deref()), ("bytes", Some("abc")));
        assert_eq!((found[1].name.as_str(), found[1].checksum.as_deref()), ("skerry", None));
        assert_eq!(linked_crate(&found[0])["licenses"][0]["expression"], "MIT OR Apache-2.0");
        assert!(linked("nonsense", &BTreeMap::new()).is_err());
    }

    #[test]
    fn packages_are_named_by_url() {
        let found = package(&Package {
            name: "libstdc++6".into(),
            version: "1:14.2~rc1+b2".into(),
            arch: "amd64".into(),
            sha256: "ff".into(),
            file: "/w/x.deb".into(),
        });
        assert_eq!(found["purl"], "pkg:deb/debian/libstdc%2B%2B6@1%3A14.2~rc1%2Bb2?arch=amd64");
        assert_eq!(found["hashes"][0]["content"], "ff");
    }
}
