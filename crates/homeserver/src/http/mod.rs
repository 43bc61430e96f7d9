//! The edge: connections in, answers out. What an endpoint means lives elsewhere (and the list of all in `api.rs`
//! beside this folder); here is what all have in common.
//!
//! - `routes.rs`: how endpoints are registered (`Routes::ruma`, `Routes::raw`), and the inventory of all of them.
//! - `context.rs`: what a handler gets.
//! - `router.rs`: from a request to an answer: match, limit, authenticate, read, run, CORS.
//! - `listener.rs`: sockets, TLS, timeouts, stopping.
//! - `local.rs`: a client without sockets, for tests and simulations.
//!
//! There is no web framework in between: paths are matched by `matchit`, and one table of endpoints is the router,
//! the inventory and the source of 404 and 405. A waiting long poll holds one boxed future and nothing of its request.

mod body;
mod context;
mod errors;
mod json;
pub mod listener;
mod local;
mod router;
mod routes;
#[cfg(test)]
mod tests;

pub use body::{Body, BoxError};
pub use context::{Ctx, RawCtx};
pub use json::MAX_DEPTH;
pub use local::{Answer, Local};
pub use router::{Client, Router};
pub use routes::{Endpoint, Operation, Routes};

pub type Request = http::Request<Body>;
pub type Response = http::Response<Body>;

/// Marks an answer (as an extension) that no other site may read: a page for the eyes of whoever sits there.
#[derive(Clone, Copy, Debug)]
pub struct SameOrigin;

/// A JSON answer for handlers that build their own.
pub fn json_response(status: http::StatusCode, body: impl Into<Body>) -> Response {
    let mut response = http::Response::new(body.into());
    *response.status_mut() = status;
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(http::header::CONTENT_TYPE, json);
    response
}
