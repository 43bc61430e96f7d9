//! The suites in `tests/clients`: real Matrix clients over real sockets against the real binary.
//!
//! Lives here: building the server for them, and bringing their packages (from PyPI, npm and crates.io, exact versions,
//! kept between runs). Not here: the scenarios, which are written in the clients' own languages.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::run::Counts;
use crate::{needs, run};

/// The scenarios with matrix-js-sdk, a file each.
const JS_FILES: &[&str] = &["scenarios.test.mjs", "restarts.test.mjs", "encryption.test.mjs"];

/// The package of the scenarios with matrix-rust-sdk: a workspace of its own.
pub(crate) const RUST_SDK: &str = "tests/clients/rust/Cargo.toml";

pub(crate) fn suite() -> Result<(bool, Counts)> {
    needs::clients()?;
    let server = server_binary("debug")?;
    let mut all_ok = true;
    let mut counts = Counts::default();
    for suite in ["nio", "mautrix"] {
        let mut command = run::command(&python(suite)?, ["-u", &format!("tests/clients/{suite}/run.py"), "--server"]);
        command.arg(&server).env("PYTHONDONTWRITEBYTECODE", "1");
        let (ok, counted) = run::counted_step(&format!("Python: {suite}"), command)?;
        all_ok &= ok && counted.passed > 0;
        counts.add(counted);
    }
    let mut command = run::command(&node()?, ["--test", "--test-force-exit", "--test-reporter=spec"]);
    command.args(JS_FILES).current_dir(js_folder()).env("TEST_SERVER", &server);
    let (ok, counted) = run::counted_step("matrix-js-sdk", command)?;
    all_ok &= ok && counted.passed > 0;
    counts.add(counted);
    let (ok, counted) = rust_sdk(&server)?;
    all_ok &= ok && counted.passed > 0;
    counts.add(counted);
    Ok((all_ok, counts))
}

/// The SDK is built in a folder of its own below ours, which is kept between runs: it shares nothing with the server. Not
/// the settings of ours in `.cargo/config.toml` either, with which its own ruma does not compile: cargo finds those from
/// the folder that it is started in, and gives them to us in the environment.
fn rust_sdk(server: &Path) -> Result<(bool, Counts)> {
    let manifest = text(&run::root().join(RUST_SDK))?;
    let cargo = |args: &[&str]| {
        let mut command = run::cargo(["test", "--locked", "--manifest-path", &manifest]);
        command.args(args).current_dir("/").env("TEST_SERVER", server);
        command.env("CARGO_TARGET_DIR", run::target_dir().join("rust-sdk"));
        command.env_remove("RUMA_UNSTABLE_EXHAUSTIVE_TYPES").env_remove("RUMA_IDENTIFIERS_STORAGE");
        command
    };
    run::step("cargo build of matrix-rust-sdk (minutes, once)", cargo(&["--no-run"]))?;
    run::counted_step("matrix-rust-sdk", cargo(&[]))
}

/// Builds the server (its dependencies are there already when the unit tests ran) and tells where it is.
pub(crate) fn server_binary(profile: &str) -> Result<PathBuf> {
    let mut args = vec!["build", "--locked", "--package", "skerry"];
    if profile == "release" {
        args.push("--release");
    }
    run::step("cargo build of the server", run::cargo(args))?;
    Ok(run::target_dir().join(profile).join("skerry"))
}

/// A Python with the packages of a suite, made anew when the list of packages or the Python changes.
pub(crate) fn python(suite: &str) -> Result<String> {
    let requirements = run::root().join(format!("tests/clients/{suite}/requirements.txt"));
    let version = run::output(run::command("python3", ["--version"]))?;
    let mut hasher = DefaultHasher::new();
    (std::fs::read(&requirements)?, version).hash(&mut hasher);
    let folder = run::cache_dir().join(format!("{suite}-{:016x}", hasher.finish()));
    let python = text(&folder.join("bin/python"))?;
    let complete = folder.join("complete");
    if !complete.exists() {
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder)?;
        run::step("python3 -m venv", run::command("python3", ["-m", "venv", &text(&folder)?]))?;
        let args =
            ["-m", "pip", "install", "--disable-pip-version-check", "--no-deps", "-q", "-r", &text(&requirements)?];
        run::step(&format!("pip install ({suite})"), run::command(&python, args))?;
        std::fs::write(complete, "")?;
    }
    Ok(python)
}

/// The Node.js that the lock file names, with the SDK beside it.
pub(crate) fn node() -> Result<String> {
    let folder = js_folder();
    npm_ci(&folder, "matrix-js-sdk")?;
    let machine = if std::env::consts::ARCH == "aarch64" { "arm64" } else { "x64" };
    let pinned = folder.join(format!("node_modules/node-linux-{machine}/bin/node"));
    if pinned.exists() { text(&pinned) } else { Ok("node".into()) }
}

/// Brings the packages that a folder's lock file names, unless they are there.
pub(crate) fn npm_ci(folder: &Path, what: &str) -> Result<()> {
    let installed = folder.join("node_modules/.package-lock.json");
    let wanted = folder.join("package-lock.json");
    let newer = |a: &Path, b: &Path| Ok::<_, std::io::Error>(a.metadata()?.modified()? >= b.metadata()?.modified()?);
    if newer(&installed, &wanted).unwrap_or(false) {
        return Ok(());
    }
    let mut command = run::command("npm", ["ci", "--prefer-offline", "--no-audit", "--no-fund", "--loglevel=error"]);
    command.current_dir(folder);
    run::step(&format!("npm ci ({what})"), command)
}

fn js_folder() -> PathBuf {
    run::root().join("tests/clients/js-sdk")
}

pub(crate) fn text(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).with_context(|| format!("{} is not UTF-8", path.display()))
}
