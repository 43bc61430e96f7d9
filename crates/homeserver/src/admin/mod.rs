//! Administration over the local socket: JSON over HTTP, for `skerry admin` and for scripts (curl --unix-socket).
//!
//! Whoever can open the socket is an administrator; there are no tokens here.

pub mod client;
pub mod desk;
pub mod doctor;
pub mod maintenance;
pub mod metrics;
pub mod probe;
pub mod register;
pub mod services;
pub mod users;

use http::{Method, StatusCode};
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::http::{RawCtx, Response, Routes, json_response};

pub fn routes() -> Routes {
    Routes::default()
        .raw(Method::GET, &["/health"], health)
        .in_maintenance()
        .raw(Method::GET, &["/doctor"], doctor::doctor)
        .in_maintenance()
        .raw(Method::POST, &["/compact"], compact)
        .raw(Method::POST, &["/maintenance"], maintenance::switch)
        .in_maintenance()
        .raw(Method::POST, &["/maintenance/probe"], probe::probe)
        .in_maintenance()
        .join(services::routes())
        .join(users::routes())
}

/// Is the server fit to serve? 200 or 503, with the reason.
async fn health(ctx: RawCtx) -> Result<Response> {
    let app = &ctx.app;
    let figures: Map<String, Value> =
        app.store.stats().into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect();
    let writes = app.store.health();
    let status = if writes.is_ok() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = json!({
        "ok": writes.is_ok(),
        "reason": writes.err().map(|cause| cause.to_string()),
        "server_name": app.server_name,
        "version": env!("CARGO_PKG_VERSION"),
        "position": app.store.tip().0,
        "maintenance": app.maintenance.is_on(),
        "store_format": app.maintenance.write_format(),
        "connections": app.metrics.connections.get(),
        "open_polls": app.metrics.open_polls.get(),
        "store": figures,
    });
    Ok(json_response(status, body.to_string()))
}

/// Compacts the store. Takes long; the server goes on meanwhile.
async fn compact(ctx: RawCtx) -> Result<Response> {
    let store = ctx.app.store.clone();
    tokio::task::spawn_blocking(move || store.compact()).await.map_err(Error::internal)??;
    Ok(json_response(StatusCode::OK, "{}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::App;
    use crate::config::Config;
    use crate::http::{Local, Router};

    #[tokio::test]
    async fn a_fresh_server_is_healthy() {
        let app = App::in_memory(Config::new(ruma::owned_server_name!("hs.test")));
        let admin = Local::new(Router::new(app, routes()).unwrap());
        let health = admin.get("/health").await;
        assert_eq!((health.status, &health.json()["ok"]), (StatusCode::OK, &json!(true)), "{:?}", health.json());
        assert_eq!(admin.post("/compact", json!({})).await.status, StatusCode::OK);
    }
}
