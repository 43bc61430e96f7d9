//! The suite in `tests/clients/browser`: the web client on board in Chromium, against the real binary.
//!
//! Lives here: bringing the browser and its driver, and where pictures go. Not here: the scenarios.
//!
//! Hydrogen is made here, of its packages. Cinny is not: what npm calls so has neither sources nor a build. Its journey
//! runs when somebody has a release of it.

use std::path::Path;

use anyhow::{Result, bail};

use crate::clients::{node, npm_ci, server_binary};
use crate::run::Counts;
use crate::{needs, run, web};

/// The variable that names a folder with a release of Cinny.
const CINNY: &str = "SKERRY_CINNY";

pub(crate) fn suite() -> Result<(bool, Counts)> {
    needs::browser()?;
    let server = server_binary("debug")?;
    let client = web::client()?;
    // The other side of the conversations is matrix-js-sdk, in the Node.js that it comes with.
    let node = node()?;
    let folder = run::root().join("tests/clients/browser");
    npm_ci(&folder, "Playwright")?;
    let pictures = run::target_dir().join("browser");
    std::fs::create_dir_all(&pictures)?;
    let args = ["--test", "--test-force-exit", "--test-reporter=spec", "hydrogen.test.mjs"];
    let mut command = run::command(&node, args);
    command.current_dir(&folder).env("TEST_SERVER", &server).env("TEST_WEB_CLIENT", &client);
    command.env("TEST_PICTURES", &pictures);
    match std::env::var_os(CINNY) {
        Some(folder) if Path::new(&folder).join("index.html").is_file() => {
            command.arg("cinny.test.mjs").env(CINNY, std::path::absolute(folder)?);
        }
        Some(folder) => bail!("{CINNY}: there is no index.html in {}", Path::new(&folder).display()),
        None => println!("Cinny is left out: npm has no build of it, and {CINNY} names no folder with a release"),
    }
    run::counted_step("browser", command)
}
