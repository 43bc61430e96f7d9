//! `cargo xtask test` and what runs like it: the suites, their order, and one summary at the end.
//!
//! Lives here: which suites there are and how each is started. Not here: the suites themselves (`cargo test` in the
//! crates, black-box ones in `tests/`).

use anyhow::{Result, bail};

use crate::run::Counts;
use crate::{browser, clients, needs, run};

const KILLS: &str = "200";

type Suite = fn() -> Result<(bool, Counts)>;

const SUITES: &[(&str, Suite)] =
    &[("unit", unit), ("clients", clients::suite), ("browser", browser::suite), ("crash", crash)];

/// `cargo xtask test [--only SUITE]...`
pub(crate) fn test(args: &[String]) -> Result<()> {
    let chosen = chosen(args)?;
    needs::build()?;
    let mut total = Counts::default();
    let mut failed = Vec::new();
    for (name, suite) in chosen {
        println!("\n#### suite: {name}");
        let (ok, counts) = suite()?;
        total.add(counts);
        // A suite that ran nothing has not passed.
        if !ok || counts.failed > 0 || counts.passed == 0 {
            failed.push(*name);
        }
    }
    if !failed.is_empty() {
        println!("\nsuites that failed: {}", failed.join(", "));
        // A suite can fail without a counted test (it did not compile): the closing line must not look green.
        total.failed = total.failed.max(1);
    }
    println!("\n{} passed, {} failed, {} skipped", total.passed, total.failed, total.skipped);
    if !failed.is_empty() {
        bail!("tests failed");
    }
    Ok(())
}

fn chosen(args: &[String]) -> Result<Vec<&'static (&'static str, Suite)>> {
    let mut chosen = Vec::new();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let name = match (arg.as_str(), arg.strip_prefix("--only=")) {
            (_, Some(name)) => Some(name),
            ("--only", _) => args.next().map(String::as_str),
            _ => bail!("test: unknown argument {arg}"),
        };
        match SUITES.iter().find(|(suite, _)| Some(*suite) == name) {
            Some(suite) => chosen.push(suite),
            None => bail!("test: --only takes {}", SUITES.iter().map(|s| s.0).collect::<Vec<_>>().join(", ")),
        }
    }
    Ok(if chosen.is_empty() { SUITES.iter().collect() } else { chosen })
}

/// Everything that `cargo test` runs, with nextest where it is installed (faster, kills what hangs).
fn unit() -> Result<(bool, Counts)> {
    if !needs::answers("cargo-nextest", &["nextest", "--version"]) {
        return run::counted_step("cargo test", run::cargo(["test", "--workspace", "--locked", "--no-fail-fast"]));
    }
    // The crash driver has a suite of its own, with more kills.
    let args = ["nextest", "run", "--workspace", "--locked", "--profile", "ci", "-E", "not binary(kills)"];
    let (mut ok, mut counts) = run::counted_step("cargo nextest run", run::cargo(args))?;
    let doc = ["test", "--workspace", "--locked", "--doc", "--no-fail-fast"];
    let (doc_ok, doc_counts) = run::counted_step("cargo test --doc", run::cargo(doc))?;
    ok &= doc_ok;
    counts.add(doc_counts);
    Ok((ok, counts))
}

/// The crash driver of `tests/crash` with all its kills, against the server as it is shipped. It is among the unit tests
/// too, with a few.
fn crash() -> Result<(bool, Counts)> {
    // A copy: the driver, which the unit tests have built already, comes with a server that has the tests' features.
    let server = run::target_dir().join("crash-server");
    std::fs::copy(clients::server_binary("debug")?, &server)?;
    let mut command = run::cargo(["test", "--workspace", "--locked", "--test", "kills", "--", "--nocapture"]);
    command.env("TEST_SERVER", server);
    if std::env::var_os("CRASH_KILLS").is_none() {
        command.env("CRASH_KILLS", KILLS);
    }
    run::counted_step("crash test", command)
}

/// `cargo xtask sim --seed N [--seeds M]`: the simulator's own arguments, passed on.
pub(crate) fn sim(args: &[String]) -> Result<()> {
    needs::build()?;
    let mut command = run::cargo(["run", "--locked", "--package", "sim", "--"]);
    command.args(args);
    run::step("sim", command)
}

/// `cargo xtask bench [ARGS]`
pub(crate) fn bench(args: &[String]) -> Result<()> {
    needs::build()?;
    let mut command = run::cargo(["bench", "--workspace", "--locked", "--benches"]);
    command.args(args);
    run::step("cargo bench", command)?;
    println!(
        "\nThese are the hot paths alone. For a whole server under load, point mxload's suites at `cargo xtask demo --release`."
    );
    Ok(())
}
