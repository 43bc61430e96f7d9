//! The suite in `tests/clients/browser`: the web client on board in Chromium, against the real binary.
//!
//! Lives here: bringing the browser and its driver, and where pictures go. Not here: the scenarios.

use anyhow::Result;

use crate::clients::{node, npm_ci, server_binary};
use crate::run::Counts;
use crate::{needs, run, web};

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
    run::counted_step("browser", command)
}
