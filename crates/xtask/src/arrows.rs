//! The dependency arrows between crates, checked on what cargo resolved.
//!
//! Lives here: the table of forbidden arrows. Not here: the layers inside `homeserver` (selfcheck.rs).

use std::collections::BTreeSet;

use anyhow::{Result, bail};

use crate::run;

/// A crate, and what must not be anywhere below it.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("rooms", &["store", "homeserver", "tokio", "hyper", "axum", "rocksdb"]),
    ("store", &["rooms", "homeserver", "ruma", "hyper", "axum"]),
    ("homeserver", &["skerry", "sim", "updater", "bundle", "xtask"]),
    ("init", &["tokio", "serde", "rooms", "store", "homeserver", "bundle", "updater"]),
    ("seal", &["tokio", "serde", "rooms", "store", "homeserver", "bundle", "updater"]),
    ("bundle", &["tokio", "rooms", "store", "homeserver", "rocksdb"]),
    ("updater", &["rooms", "store", "homeserver", "rocksdb"]),
    ("skerry", &["sim", "xtask"]),
    ("xtask", &["rooms", "store", "homeserver", "skerry", "sim", "tokio", "rocksdb", "syn"]),
];

/// Every arrow that should not be there, as a sentence each.
pub(crate) fn check() -> Result<()> {
    let mut wrong = Vec::new();
    for (krate, never) in FORBIDDEN {
        if !run::root().join("crates").join(krate).is_dir() {
            continue;
        }
        let below = below(krate)?;
        for name in never.iter().filter(|name| below.contains(**name)) {
            wrong.push(format!(
                "{krate} must not depend on {name} (see: cargo tree -p {krate} -e normal,build -i {name})"
            ));
        }
    }
    if !wrong.is_empty() {
        bail!("crate arrows:\n  {}", wrong.join("\n  "));
    }
    println!("crate arrows: {} crates as they should be", FORBIDDEN.len());
    Ok(())
}

/// Names of all packages that a crate is built with (not those only its tests need).
fn below(krate: &str) -> Result<BTreeSet<String>> {
    let args = ["tree", "--locked", "-p", krate, "-e", "normal,build", "--prefix", "none", "--format", "{p}"];
    let tree = run::output(run::cargo(args))?;
    Ok(tree.lines().skip(1).filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
}
