//! Third-party rules: licences, sources, banned crates, duplicates. The rules stand in `.deny.toml`.
//!
//! Lives here: reading those rules and judging `cargo metadata` by them, with nothing to install and no network.
//! `cargo deny check` reads the same file; where it is installed, [`advisories`] runs it for the advisory database,
//! which is the one thing that cannot be judged offline without a local copy.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{clients, needs, run};

const RULES: &str = ".deny.toml";

/// Judges every package that a Linux build of the workspace resolves to, and what only tests are built with (for which
/// nothing is banned). Lock files that lag behind are noticed on the way.
pub(crate) fn check() -> Result<()> {
    judge("Cargo.toml", true)?;
    judge(clients::RUST_SDK, false)?;
    judge("tests/fuzz/Cargo.toml", true)
}

fn judge(manifest: &str, shipped: bool) -> Result<()> {
    let rules = std::fs::read_to_string(run::root().join(RULES)).context(RULES)?;
    let allowed = list(&rules, "licenses", "allow")?;
    let banned = list(&rules, "bans", "deny")?;
    let registries = list(&rules, "sources", "allow-registry")?;
    let mut wrong = Vec::new();
    let mut versions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in resolved(manifest)? {
        let Package { name, version, license, source } = package;
        match &source {
            Some(source) if !registries.iter().any(|r| source == &format!("registry+{r}")) => {
                wrong.push(format!("{name} {version} comes from {source}"));
            }
            Some(_) if shipped && banned.contains(&name) => wrong.push(format!("{name} {version} is banned")),
            _ => {}
        }
        match license.as_deref().map(|expression| license_ok(expression, &allowed)) {
            Some(true) => {}
            Some(false) => wrong.push(format!("{name} {version} has licence {}", license.unwrap_or_default())),
            None => wrong.push(format!("{name} {version} names no licence")),
        }
        versions.entry(name).or_default().insert(version);
    }
    let twice: Vec<String> = versions
        .iter()
        .filter(|(_, versions)| versions.len() > 1)
        .map(|(name, versions)| format!("{name} ({})", versions.iter().cloned().collect::<Vec<_>>().join(", ")))
        .collect();
    if !twice.is_empty() {
        println!("{manifest}: in more than one version (allowed): {}", twice.join(", "));
    }
    if !wrong.is_empty() {
        bail!("third-party rules ({RULES}) in {manifest}:\n  {}", wrong.join("\n  "));
    }
    println!("{manifest}: {} packages, licences, sources and bans ok", versions.len());
    Ok(())
}

/// The advisory database, where cargo-deny and a copy of the database are at hand; says so where they are not.
pub(crate) fn advisories() -> Result<()> {
    let database = std::env::var_os("HOME").map(std::path::PathBuf::from).map(|home| home.join(".cargo/advisory-dbs"));
    if !needs::answers("cargo-deny", &["--version"]) || !database.is_some_and(|dir| dir.is_dir()) {
        println!(
            "advisories: NOT checked here (needs cargo-deny and its advisory database, which is not in any package \
             registry). With network: cargo install --locked cargo-deny && cargo deny check"
        );
        return Ok(());
    }
    run::step("cargo deny check (offline)", run::cargo(["deny", "--offline", "check", "--disable-fetch"]))
}

struct Package {
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
}

fn resolved(manifest: &str) -> Result<Vec<Package>> {
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let args =
        ["metadata", "--locked", "--format-version", "1", "--filter-platform", &platform, "--manifest-path", manifest];
    let metadata: Value = serde_json::from_str(&run::output(run::cargo(args))?)?;
    let nodes = metadata["resolve"]["nodes"].as_array().context("cargo metadata without resolve")?;
    let used: BTreeSet<&str> = nodes.iter().filter_map(|node| node["id"].as_str()).collect();
    let packages = metadata["packages"].as_array().context("cargo metadata without packages")?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    Ok(packages
        .iter()
        .filter(|package| package["id"].as_str().is_some_and(|id| used.contains(id)))
        .map(|package| Package {
            name: text(&package["name"]).unwrap_or_default(),
            version: text(&package["version"]).unwrap_or_default(),
            license: text(&package["license"]),
            source: text(&package["source"]),
        })
        .collect())
}

/// The strings of the array `key` in `[section]`. Reads only the plain form that our rules file keeps to.
fn list(toml: &str, section: &str, key: &str) -> Result<BTreeSet<String>> {
    let mut inside = false;
    let mut array = String::new();
    let mut open = false;
    for line in toml.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if !open && line.starts_with('[') {
            inside = line == format!("[{section}]");
        } else if open {
            array.push_str(line);
        } else if inside && let Some(value) = line.strip_prefix(key).and_then(|rest| rest.trim().strip_prefix('=')) {
            array.push_str(value);
            open = true;
        }
        if open && array.contains(']') {
            return Ok(array.split('"').skip(1).step_by(2).map(str::to_owned).collect());
        }
    }
    bail!("{RULES}: no array `{key}` in [{section}]")
}

/// Whether an SPDX expression can be met with allowed licences. `OR` binds weaker than `AND`.
fn license_ok(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    any_of(&mut rest, allowed) && rest.is_empty()
}

fn any_of(words: &mut &[&str], allowed: &BTreeSet<String>) -> bool {
    let mut ok = all_of(words, allowed);
    while let ["OR", rest @ ..] = *words {
        *words = rest;
        ok |= all_of(words, allowed);
    }
    ok
}

fn all_of(words: &mut &[&str], allowed: &BTreeSet<String>) -> bool {
    let mut ok = one(words, allowed);
    while let ["AND", rest @ ..] = *words {
        *words = rest;
        ok &= one(words, allowed);
    }
    ok
}

fn one(words: &mut &[&str], allowed: &BTreeSet<String>) -> bool {
    match *words {
        ["(", rest @ ..] => {
            *words = rest;
            let ok = any_of(words, allowed);
            if let [")", rest @ ..] = *words {
                *words = rest;
                return ok;
            }
            false
        }
        [id, "WITH", exception, rest @ ..] => {
            *words = rest;
            allowed.contains(&format!("{id} WITH {exception}")) || allowed.contains(*id)
        }
        [id, rest @ ..] => {
            *words = rest;
            // `MPL-2.0+` offers that version among later ones.
            allowed.contains(id.trim_end_matches('+'))
        }
        [] => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(expression: &str, ok: bool) {
        let allowed = ["MIT", "Apache-2.0", "Unicode-3.0"].map(str::to_owned).into();
        assert_eq!(license_ok(expression, &allowed), ok, "{expression}");
    }

    #[test]
    fn licence_expressions() {
        check("MIT", true);
        check("GPL-3.0-only", false);
        check("MIT OR GPL-3.0-only", true);
        check("GPL-2.0/MIT", true);
        check("(MIT OR GPL-2.0) AND Unicode-3.0", true);
        check("MIT AND GPL-2.0 OR GPL-3.0", false);
        check("Apache-2.0 WITH LLVM-exception", true);
        check("(MIT", false);
        check("MIT+", true);
    }

    #[test]
    fn the_rules_file_is_read() {
        let toml = "[a]\nallow = [\"no\"]\n[b]\nallow = [\n  \"x\", # why\n  \"y\",\n]\n";
        assert_eq!(list(toml, "b", "allow").unwrap(), ["x", "y"].map(str::to_owned).into());
        assert!(list(toml, "b", "deny").is_err());
    }
}
