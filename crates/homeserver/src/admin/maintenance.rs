//! `POST /maintenance`: holding still for an update, with a checkpoint that holds everything that was acknowledged.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use http::StatusCode;
use serde::Deserialize;
use serde_json::json;
use store::{Disk, Store};

use crate::App;
use crate::blocking;
use crate::dirs;
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response, json_response};

/// Below the data directory.
pub const CHECKPOINTS: &str = "checkpoints";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Switch {
    on: bool,
    /// The name of a checkpoint to be taken.
    checkpoint: Option<String>,
}

pub async fn switch(mut ctx: RawCtx) -> Result<Response> {
    let body: Switch = ctx.read_json().await?;
    let app = &ctx.app;
    if !body.on {
        app.store.thaw();
        app.maintenance.set(false);
        tracing::info!("maintenance is over");
        return Ok(json_response(StatusCode::OK, json!({ "on": false }).to_string()));
    }
    let dir = body.checkpoint.map(|name| place(app, &name)).transpose()?;
    app.maintenance.set(true);
    if let Err(cause) = hold_still(app, dir).await {
        app.store.thaw();
        app.maintenance.set(false);
        tracing::error!(%cause, "the checkpoint could not be taken; maintenance is over");
        return Err(cause);
    }
    tracing::info!(position = app.store.tip().0, "maintenance: clients wait");
    Ok(json_response(StatusCode::OK, json!({ "on": true, "position": app.store.tip().0 }).to_string()))
}

async fn hold_still(app: &App, dir: Option<PathBuf>) -> Result<()> {
    app.store.freeze().await?;
    let Some(dir) = dir else { return Ok(()) };
    let store = app.store.clone();
    blocking::run(move || take(&store, &dir)).await?.map_err(Error::internal)
}

/// A checkpoint that is still there after a power cut; one of this name goes.
fn take(store: &Store, dir: &Path) -> Result<(), String> {
    let parent = dir.parent().unwrap_or(Path::new("."));
    let says = |cause: io::Error| format!("the checkpoint {}: {cause}", dir.display());
    dirs::make_private(parent).map_err(says)?;
    if dir.exists() {
        fs::remove_dir_all(dir).map_err(says)?;
    }
    store.checkpoint(dir).map_err(|cause| cause.to_string())?;
    make_last(dir).and_then(|()| File::open(parent)?.sync_all()).map_err(says)
}

/// A checkpoint of the data of a server that does not run.
///
/// # Errors
/// In words: the store cannot be opened, or the checkpoint cannot be written.
pub fn checkpoint_closed(data_dir: &Path, name: &str) -> Result<(), String> {
    let store = Store::open(Disk::at(data_dir.join("store"))).map_err(|cause| cause.to_string())?;
    take(&store, &data_dir.join(CHECKPOINTS).join(name))
}

/// Everything in a folder, and the folder, stays.
fn make_last(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        File::open(entry?.path())?.sync_all()?;
    }
    File::open(dir)?.sync_all()
}

fn place(app: &App, name: &str) -> Result<PathBuf> {
    let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-_~".contains(c);
    if name.is_empty() || name.len() > 200 || name.starts_with('.') || !name.chars().all(letters) {
        return Err(Error::invalid_param("A checkpoint's name has small letters, digits, '.', '-', '_' and '~'"));
    }
    Ok(app.config.data_dir.join(CHECKPOINTS).join(name))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::http::{Local, Router};
    use crate::testing::Server;

    #[tokio::test]
    async fn clients_wait_and_nothing_is_written_until_it_is_over() {
        let server = Server::default();
        let alice = server.user("alice").await;
        let admin = Local::new(Router::new(server.app.clone(), crate::api::admin()).unwrap());
        let held = admin.post("/maintenance", json!({ "on": true })).await;
        assert_eq!((held.status, held.json()["position"].as_u64()), (StatusCode::OK, Some(server.app.store.tip().0)));
        let (tip, whoami) = (server.app.store.tip(), "/_matrix/client/v3/account/whoami");
        for answer in [alice.client.get(whoami).await, admin.post("/users", json!({ "username": "late" })).await] {
            assert_eq!(
                (answer.status, &answer.json()["errcode"]),
                (StatusCode::SERVICE_UNAVAILABLE, &json!("M_UNAVAILABLE"))
            );
        }
        // Whoever writes past the router is held back, too.
        assert_eq!(admin.post("/maintenance/probe", json!({})).await.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(server.client.get("/_matrix/client/versions").await.status, StatusCode::OK);
        assert_eq!(
            (admin.get("/health").await.json()["maintenance"].clone(), server.app.store.tip()),
            (json!(true), tip)
        );

        assert_eq!(admin.post("/maintenance", json!({ "on": false })).await.status, StatusCode::OK);
        assert_ne!(alice.client.get(whoami).await.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(admin.post("/maintenance/probe", json!({})).await.status, StatusCode::OK);
        assert!(server.app.store.tip() > tip);
    }

    #[tokio::test]
    async fn a_checkpoint_that_cannot_be_taken_ends_it() {
        let server = Server::default();
        let admin = Local::new(Router::new(server.app.clone(), crate::api::admin()).unwrap());
        for name in ["", "../x", ".x", "A", "a/b"] {
            let answer = admin.post("/maintenance", json!({ "on": true, "checkpoint": name })).await;
            assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{name}");
            assert!(!server.app.maintenance.is_on());
        }
    }
}
