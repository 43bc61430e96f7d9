//! `doctor`: a list of checks of a running server, each with a verdict and what to do about it.

use http::StatusCode;
use nix::sys::statvfs::statvfs;
use serde::Serialize;
use serde_json::json;

use crate::App;
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response, json_response};

#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    pub check: &'static str,
    pub ok: bool,
    pub detail: String,
}

type Check = fn(&App) -> Result<String, String>;

const CHECKS: &[(&str, Check)] = &[
    ("the store takes writes", store_writes),
    ("there is space on the disk", disk_space),
    ("the clock is plausible", clock),
    ("the signing key works", signing_key),
];

/// 200 whatever is found: the answer says what is wrong.
pub(super) async fn doctor(ctx: RawCtx) -> Result<Response> {
    let app = ctx.app;
    let findings = tokio::task::spawn_blocking(move || examine(&app)).await.map_err(Error::internal)?;
    let ok = findings.iter().all(|finding| finding.ok);
    Ok(json_response(StatusCode::OK, json!({ "ok": ok, "findings": findings }).to_string()))
}

pub fn examine(app: &App) -> Vec<Finding> {
    let finding = |(check, examine): &(&'static str, Check)| match examine(app) {
        Ok(detail) => Finding { check, ok: true, detail },
        Err(detail) => Finding { check, ok: false, detail },
    };
    CHECKS.iter().map(finding).collect()
}

fn store_writes(app: &App) -> Result<String, String> {
    app.store.health().map_err(|cause| cause.to_string())?;
    Ok(format!("at position {}", app.store.tip().0))
}

fn disk_space(app: &App) -> Result<String, String> {
    const TOO_LITTLE_BYTES: u64 = 1 << 30;
    let dir = &app.config.data_dir;
    let space = statvfs(dir).map_err(|cause| format!("{}: {cause}", dir.display()))?;
    let free = space.blocks_available().saturating_mul(space.fragment_size());
    let text = format!("{} MiB free in {}", free >> 20, dir.display());
    if free < TOO_LITTLE_BYTES { Err(text) } else { Ok(text) }
}

fn clock(app: &App) -> Result<String, String> {
    /// The start of 2025: this program is younger.
    const BORN_MS: u64 = 1_735_689_600_000;
    let now = app.clock.now_ms();
    if now < BORN_MS {
        Err(format!("{now} ms since 1970 is long ago: set the clock"))
    } else {
        Ok(format!("{now} ms since 1970"))
    }
}

fn signing_key(app: &App) -> Result<String, String> {
    use ruma::signatures::KeyPair as _;
    let signature = app.signing_key.sign(b"doctor");
    Ok(signature.id())
}
