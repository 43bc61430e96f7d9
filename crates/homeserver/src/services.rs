//! The state that all endpoints share: one `App`, cheap to clone, whose fields are set once at start.

use std::ops::Deref;
use std::sync::Arc;

use ruma::OwnedServerName;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::Clock;
use crate::config::Config;
use crate::http::limits::Limits;
use crate::http::{Router, api};
use crate::metrics::Metrics;
use crate::rng::Rng;

#[derive(Clone)]
pub struct App(Arc<Services>);

pub struct Services {
    pub config: Config,
    pub server_name: OwnedServerName,
    pub clock: Clock,
    pub rng: Rng,
    pub metrics: Metrics,
    pub limits: Limits,
    /// Cancelled when the server stops: long polls answer at once.
    pub shutdown: CancellationToken,
    /// Work that outlives its connection. A stop waits for it, briefly.
    pub tasks: TaskTracker,
}

impl App {
    pub fn new(config: Config, clock: Clock, rng: Rng) -> Self {
        Self(Arc::new(Services {
            server_name: config.server_name.clone(),
            limits: Limits::new(config.rate_limits.clone(), clock.clone()),
            metrics: Metrics::default(),
            shutdown: CancellationToken::new(),
            tasks: TaskTracker::new(),
            config,
            clock,
            rng,
        }))
    }
}

impl App {
    /// All endpoints, over this state.
    pub fn router(&self) -> Router {
        // The list of endpoints is fixed; a test builds it, so that it cannot contradict itself here.
        #[expect(clippy::panic, reason = "the table is a constant, and a test builds it")]
        Router::new(self.clone(), api::routes()).unwrap_or_else(|conflict| panic!("endpoints contradict: {conflict}"))
    }
}

impl Deref for App {
    type Target = Services;

    fn deref(&self) -> &Services {
        &self.0
    }
}
