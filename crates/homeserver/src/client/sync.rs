//! `/sync` (spec: Syncing): what a request says. What becomes of it is in the module `sync`.

use std::time::Duration;

use http::{Method, StatusCode};
use ruma::presence::PresenceState;
use serde::Deserialize;

use crate::auth::Access;
use crate::error::Result;
use crate::http::{RawCtx, Response, Routes, json_response};
use crate::sync::assemble::StateAfter;
use crate::sync::wait::{Poll, Terms};

pub fn routes() -> Routes {
    let paths = ["/_matrix/client/r0/sync", "/_matrix/client/v3/sync"];
    Routes::default().raw(Method::GET, &paths, sync).access(Access::Token).guests().poll()
}

#[derive(Deserialize)]
struct Query {
    filter: Option<String>,
    since: Option<String>,
    #[serde(default)]
    full_state: bool,
    set_presence: Option<PresenceState>,
    timeout: Option<u64>,
    #[serde(default)]
    use_state_after: bool,
    /// What clients call it that were there before the specification.
    #[serde(default, rename = "org.matrix.msc4222.use_state_after")]
    unstable_use_state_after: bool,
}

/// The request is gone before anything is waited for.
fn sync(ctx: RawCtx) -> impl Future<Output = Result<Response>> + Send {
    let poll = begin(ctx);
    async move { Ok(json_response(StatusCode::OK, poll?.answer().await?)) }
}

fn begin(ctx: RawCtx) -> Result<Box<Poll>> {
    let query: Query = ctx.query()?;
    let requester = ctx.requester()?;
    let (user_id, device_id) = (requester.user_id.clone(), requester.device_id.clone());
    let terms = Terms {
        filter: query.filter.as_deref(),
        since: query.since.as_deref().filter(|since| !since.is_empty()),
        full_state: query.full_state,
        state_after: StateAfter { stable: query.use_state_after, unstable: query.unstable_use_state_after },
        timeout: Duration::from_millis(query.timeout.unwrap_or(0)),
        presence: query.set_presence.unwrap_or_default(),
    };
    Poll::new(ctx.app, user_id, device_id, &terms)
}
