//! The state that all endpoints share: one `App`, cheap to clone, whose fields are set once at start.

use std::ops::Deref;
use std::sync::Arc;

use ruma::OwnedServerName;
use ruma::signatures::Ed25519KeyPair;
use store::{MemoryDisk, Store};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api;
use crate::appservice::queries::Questions;
use crate::appservice::waiting::Troubles;
use crate::auth::Auth;
use crate::clock::Clock;
use crate::config::Config;
use crate::config::registrations::Registrations;
use crate::http::Router;
use crate::limits::Limits;
use crate::maintenance::Maintenance;
use crate::media::Media;
use crate::metrics::Metrics;
use crate::outgoing::Outgoing;
use crate::previews::Previews;
use crate::rng::Rng;
use crate::rooms::Lanes;
use crate::rooms::directory::Directory;
use crate::rooms::read::RoomCache;
use crate::signing;
use crate::sync::Sync;
use crate::web::{self, Web};

#[derive(Clone)]
pub struct App(Arc<Services>);

pub struct Services {
    pub config: Config,
    pub server_name: OwnedServerName,
    pub store: Store,
    /// Signs events and requests of this server.
    pub signing_key: Ed25519KeyPair,
    /// What is worth keeping in memory of rooms.
    pub room_cache: Arc<RoomCache>,
    /// The room directory in its order.
    pub directory: Directory,
    /// Who changes a room takes turns with others who do.
    pub lanes: Lanes,
    pub media: Media,
    /// What polls share.
    pub sync: Sync,
    pub clock: Clock,
    pub rng: Rng,
    pub metrics: Metrics,
    pub limits: Limits,
    pub auth: Auth,
    /// Bridges and bots, as their registration files have it.
    pub appservices: Registrations,
    /// Questions to application services.
    pub questions: Questions,
    /// What application services do not take.
    pub troubles: Troubles,
    /// The web client on board.
    pub web: Web,
    /// The one gate to the outside.
    pub outgoing: Outgoing,
    pub previews: Previews,
    /// Whether clients have to wait.
    pub maintenance: Maintenance,
    /// Cancelled when the server stops: long polls answer at once.
    pub shutdown: CancellationToken,
    /// Work that outlives its connection. A stop waits for it, briefly.
    pub tasks: TaskTracker,
}

/// Why a server could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the store could not be opened: {0}")]
    Store(#[from] store::Error),
    #[error("{what}: {cause}")]
    File { what: String, cause: std::io::Error },
    #[error("{0}")]
    Other(String),
}

impl App {
    /// A server without application services.
    pub fn new(config: Config, store: Store, signing_key: Ed25519KeyPair, clock: Clock, rng: Rng) -> Self {
        Self::with_services(config, Registrations::default(), store, signing_key, clock, rng)
    }

    pub fn with_services(
        config: Config,
        appservices: Registrations,
        store: Store,
        signing_key: Ed25519KeyPair,
        clock: Clock,
        rng: Rng,
    ) -> Self {
        let limits = Limits::new(config.rate_limits.clone(), clock.clone());
        if let Err(error) = limits.load(&store) {
            tracing::error!(%error, "exceptions from rate limits cannot be read");
        }
        let shutdown = CancellationToken::new();
        Self(Arc::new(Services {
            media: Media::new(store.clone(), &config, clock.clone(), rng.clone(), shutdown.clone()),
            server_name: config.server_name.clone(),
            limits,
            auth: Auth::new(&config, rng.clone()),
            outgoing: Outgoing::new(&config, &appservices),
            web: Web::new(&config),
            previews: Previews::new(config.memory_budget.as_usize() as u64 / 128),
            metrics: Metrics::default(),
            maintenance: Maintenance::default(),
            shutdown,
            tasks: TaskTracker::new(),
            room_cache: RoomCache::follow(&store, config.memory_budget.as_usize() as u64 / 8),
            directory: Directory::new(&store),
            lanes: Lanes::default(),
            sync: Sync::new(&store, &rng, config.memory_budget.as_usize() as u64 / 8),
            store,
            signing_key,
            appservices,
            questions: Questions::default(),
            troubles: Troubles::default(),
            config,
            clock,
            rng,
        }))
    }

    /// The registration files that settings name.
    pub fn registrations(config: &Config) -> Result<Registrations, StartError> {
        Registrations::load(&config.application_services.files, &config.server_name)
            .map_err(|wrong| StartError::Other(wrong.join("\n")))
    }

    /// A server that forgets everything, with a clock that stands still and the same randomness every time.
    pub fn in_memory(config: Config) -> Self {
        Self::on_memory_disk(config, MemoryDisk::new())
    }

    /// The same on a disk that a test holds on to.
    #[expect(clippy::panic, reason = "a store in memory and a key of our own making cannot be wrong")]
    pub fn on_memory_disk(config: Config, disk: MemoryDisk) -> Self {
        let rng = Rng::seeded(1);
        let parts = Store::open(disk)
            .map_err(StartError::from)
            .and_then(|store| Ok((store, signing::generate(&rng)?.key_pair()?, Self::registrations(&config)?)));
        match parts {
            Ok((store, key, appservices)) => {
                Self::with_services(config, appservices, store, key, Clock::manual(1_700_000_000_000), rng)
            }
            Err(cause) => panic!("{cause}"),
        }
    }

    /// All endpoints, over this state.
    pub fn router(&self) -> Router {
        let routes = match self.web.is_on() {
            true => api::routes().otherwise(web::serve),
            false => api::routes(),
        };
        // The list of endpoints is fixed; a test builds it, so that it cannot contradict itself here.
        #[expect(clippy::panic, reason = "the table is a constant, and a test builds it")]
        Router::new(self.clone(), routes).unwrap_or_else(|conflict| panic!("endpoints contradict: {conflict}"))
    }
}

impl Deref for App {
    type Target = Services;

    fn deref(&self) -> &Services {
        &self.0
    }
}
