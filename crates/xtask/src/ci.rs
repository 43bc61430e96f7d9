//! `cargo xtask ci`: everything that is checked without running the product's tests.
//!
//! Lives here: the steps and their order (cheap ones first; all are run, then the verdict). Not here: tests (suites.rs).

use anyhow::{Result, bail};

use crate::{arrows, clients, docs, needs, policy, run, units};

type Step = fn() -> Result<()>;

pub(crate) fn ci() -> Result<()> {
    let steps: [(&str, Step); 8] = [
        ("system packages", needs::build),
        ("format", format),
        ("crate arrows", arrows::check),
        ("third-party rules", policy::check),
        ("advisories", policy::advisories),
        ("units of the appliance", units::check),
        ("clippy", clippy),
        ("generated documents", docs::check),
    ];
    let mut failed = Vec::new();
    for (name, step) in steps {
        if let Err(error) = step() {
            println!("{name}: {error:#}");
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    println!("\nxtask ci: {} steps ok", steps.len());
    Ok(())
}

fn format() -> Result<()> {
    run::step("cargo fmt --check", run::cargo(["fmt", "--all", "--check"]))?;
    let args = ["fmt", "--check", "--manifest-path", clients::RUST_SDK];
    run::step("cargo fmt --check (matrix-rust-sdk's scenarios)", run::cargo(args))
}

fn clippy() -> Result<()> {
    let args = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
    run::step("cargo clippy", run::cargo(args))
}
