//! The developer's door: `cargo xtask demo`, `test`, `ci` and friends.
//!
//! Lives here: argument handling and the list of verbs. Not here: what a verb does (one module each), and anything
//! of the server. This crate builds in seconds and never depends on the product's crates: it runs them.
#![allow(clippy::print_stdout, reason = "a command line tool talks on standard output")]
#![allow(clippy::disallowed_methods, reason = "steps are timed by the real clock")]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

mod arrows;
mod browser;
mod ci;
mod clients;
mod demo;
mod dist;
mod docs;
mod elf;
mod endpoints;
mod fuzz;
mod image;
mod needs;
mod pitfalls;
mod policy;
mod run;
mod selfcheck;
mod source;
mod suites;
mod tested;
mod units;
mod vm;
mod web;

use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask <verb>

  demo [--release] [--web]  build, start a server on loopback with two ready users, run until Ctrl-C
  test [--only SUITE]...    every test; SUITE: unit, clients, browser, crash
  ci                        format, clippy, doc drift, crate arrows, licences
  self-check                the repository's checks of itself (also part of `test`)
  sim --seed N [--seeds M]  replay simulated worlds N, N+1, ... (M of them)
  web [FOLDER]              make the web client, to be served by `[web] dir`
  fuzz TARGET [--minutes N] feed a parser odd bytes (N = 10), then keep what reaches new code; no TARGET: a list
  bench [ARGS]              criterion benchmarks; ARGS go to cargo bench
  units                     judge the appliance's units and packet filter with systemd's and nft's own eyes
  docs                      write the generated documents from the code
  dist [--target T]...      the static programs that are shipped; T: x86_64, aarch64
  image [--arch A]...       the appliance's disk image, and what an update of it consists of; A: x86_64, arm64
  vm [ARGS]                 try the image under QEMU; `vm test`: install, update, fall back (see `vm help`)

environment: CARGO_TARGET_DIR is respected; XDG_CACHE_HOME/skerry keeps the client suites' packages.
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let verb = args.first().map_or("help", String::as_str);
    let rest = args.get(1..).unwrap_or_default();
    let outcome = match verb {
        "demo" => demo::demo(rest),
        "test" => suites::test(rest),
        "ci" => ci::ci(),
        "self-check" => selfcheck::verb(),
        "sim" => suites::sim(rest),
        "web" => web::verb(rest),
        "fuzz" => fuzz::verb(rest),
        "bench" => suites::bench(rest),
        "units" => units::check(),
        "docs" => docs::write(),
        "dist" => dist::verb(rest),
        "image" => image::verb(rest),
        "vm" => vm::verb(rest),
        "help" | "--help" | "-h" => {
            print!("{USAGE}");
            Ok(())
        }
        other => Err(anyhow::anyhow!("no verb `{other}`\n\n{USAGE}")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("\nxtask {verb}: {error:#}");
            ExitCode::FAILURE
        }
    }
}
