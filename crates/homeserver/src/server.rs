//! A running server: opened, bound, stopped. `run` adds what a process has: signals and the service manager.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use serde::Serialize;
use store::{Disk, Store};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::api;
use crate::appservice;
use crate::background;
use crate::blocking;
use crate::clock::Clock;
use crate::config::{Config, Listener};
use crate::delayed;
use crate::dirs;
use crate::gateway;
use crate::housekeeping;
use crate::http::Router;
use crate::http::listener::{Certificate, Connections, Door};
use crate::indexing;
use crate::jobs;
use crate::maintenance;
use crate::notices;
use crate::notify::Notify;
use crate::rng::Rng;
use crate::signing;
use crate::sync::recount;
use crate::{App, StartError};

/// A server that answers.
pub struct Server {
    app: App,
    connections: Connections,
    certificates: Vec<Certificate>,
    bound: Bound,
}

/// Where a server listens; what the ready file holds.
#[derive(Clone, Debug, Serialize)]
pub struct Bound {
    /// In the order of the settings, with the real ports.
    pub listeners: Vec<SocketAddr>,
    pub metrics: Option<SocketAddr>,
    pub admin: PathBuf,
    pub pid: u32,
}

/// What a process is told besides its settings.
#[derive(Debug, Default)]
pub struct RunOptions {
    /// This release has not proven itself: it starts in maintenance, and changes nothing that cannot be undone.
    pub trial: bool,
    /// Written (whole or not at all) with `Bound` as JSON once the server answers, removed when it stops.
    pub ready_file: Option<PathBuf>,
    /// Listening sockets that the service manager opened. Each is for the listener of the settings with its address.
    pub sockets: Vec<std::net::TcpListener>,
}

/// Opens the data directory. Blocks while the store replays its log. A release on trial says first that it has touched
/// the data: the engine writes when it is opened.
pub fn open(config: Config, trial: bool) -> Result<App, StartError> {
    let (clock, rng) = (Clock::system(), Rng::system());
    let appservices = App::registrations(&config)?;
    let dir = &config.data_dir;
    dirs::make_private(dir).map_err(file(|| format!("data directory {}", dir.display())))?;
    let format = maintenance::open_data(dir, trial).map_err(file(|| format!("data directory {}", dir.display())))?;
    let format = format.map_err(StartError::Other)?;
    let key = signing::load_or_create(&dir.join("signing.key"), &rng)?.key_pair()?;
    let disk = Disk::at(config.store_dir()).memory_budget_bytes(config.memory_budget.as_usize() / 2);
    let store = Store::open(disk)?;
    let app = App::with_services(config, appservices, store, key, clock, rng);
    app.maintenance.start(format, trial);
    Ok(app)
}

impl Server {
    /// Binds all sockets and answers from then on.
    pub async fn start(app: App) -> Result<Self, StartError> {
        let router = app.router();
        Self::start_with(app, router).await
    }

    /// The same with other endpoints for clients, for tests of the edge itself.
    pub async fn start_with(app: App, router: Router) -> Result<Self, StartError> {
        Self::start_on(app, router, Sockets::default()).await
    }

    async fn start_on(app: App, router: Router, mut sockets: Sockets) -> Result<Self, StartError> {
        let connections = Connections::new(&app.config.http);
        let mut bound =
            Bound { listeners: Vec::new(), metrics: None, admin: app.config.admin_socket(), pid: std::process::id() };
        let mut certificates = Vec::new();
        for settings in &app.config.listeners {
            let door = door(settings, router.clone())?;
            certificates.extend(door.certificate.clone());
            let (listener, address) = match sockets.take(settings.bind)? {
                Some(handed) => handed,
                None => bind(settings.bind).await?,
            };
            bound.listeners.push(address);
            tracing::info!(%address, tls = door.certificate.is_some(), "listening");
            tokio::spawn(connections.clone().serve_tcp(listener, door));
        }
        sockets.nothing_left()?;
        if let Some(address) = app.config.metrics.bind {
            let (listener, address) = bind(address).await?;
            bound.metrics = Some(address);
            let router = built(&app, api::metrics())?;
            let door = Door { router, trusted_proxies: Arc::new([]), certificate: None };
            tokio::spawn(connections.clone().serve_tcp(listener, door));
        }
        let loading = app.clone();
        blocking::run(move || loading.web.load())
            .await
            .map_err(|cause| StartError::Other(cause.to_string()))?
            .map_err(StartError::Other)?;
        let media_dir = app.config.media_dir();
        app.media.start().await.map_err(file(|| format!("media directory {}", media_dir.display())))?;
        notices::prepare(&app).await.map_err(|cause| StartError::Other(cause.message().to_owned()))?;
        background::spawn(&app, "jobs", jobs::run);
        background::spawn(&app, "housekeeping", housekeeping::run);
        background::spawn(&app, "indexing", indexing::run);
        background::spawn(&app, "notifications", gateway::run);
        appservice::start(&app).await.map_err(|cause| StartError::Other(cause.to_string()))?;
        background::spawn(&app, "delayed events", delayed::run);
        background::spawn(&app, "counts", recount::run);
        let admin = bind_unix(&bound.admin)?;
        tokio::spawn(connections.clone().serve_unix(admin, built(&app, api::admin())?));
        Ok(Self { app, connections, certificates, bound })
    }

    pub fn app(&self) -> &App {
        &self.app
    }

    pub fn bound(&self) -> &Bound {
        &self.bound
    }

    /// Reads certificates and the web client anew. A bad one is reported, and the old one stays.
    pub fn reload(&self) {
        for certificate in &self.certificates {
            match certificate.reload() {
                Ok(()) => tracing::info!("certificate reloaded"),
                Err(cause) => tracing::error!(%cause, "the old certificate stays in use"),
            }
        }
        let app = self.app.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(cause) = app.web.load() {
                tracing::error!(%cause, "the old web client stays in use");
            }
        });
    }

    /// Long polls answer, requests under way are finished, and what is still open after the grace is dropped.
    pub async fn stop(self) {
        let grace = self.app.config.http.shutdown_grace.get();
        self.app.shutdown.cancel();
        self.app.tasks.close();
        let connections = self.connections.stop(grace);
        let tasks = tokio::time::timeout(grace, self.app.tasks.wait());
        let (dropped, finished) = tokio::join!(connections, tasks);
        if dropped > 0 || finished.is_err() {
            tracing::warn!(connections = dropped, tasks = self.app.tasks.len(), "not everything ended in time");
        }
        let _ = fs::remove_file(&self.bound.admin);
    }
}

/// Serves until a signal ends it.
pub async fn run(config: Config, options: RunOptions) -> Result<(), StartError> {
    let notify = Notify::from_environment();
    raise_file_limit();
    // Before anything answers, so that no signal is missed.
    let mut signals = Signals::new().map_err(file(|| "signals".to_owned()))?;
    let trial = options.trial;
    let app = tokio::task::spawn_blocking(move || open(config, trial))
        .await
        .map_err(|cause| StartError::Other(format!("opening the data directory failed: {cause}")))??;
    let router = app.router();
    let server = Server::start_on(app, router, Sockets(options.sockets)).await?;
    if let Some(path) = &options.ready_file {
        write_ready_file(path, server.bound()).map_err(file(|| format!("ready file {}", path.display())))?;
    }
    notify.ready();
    notify.status(&format!("serving {}", server.app().server_name));
    tracing::info!(server_name = %server.app().server_name, trial, "ready");
    let watchdog = tokio::spawn(feed_watchdog(notify.clone()));
    while let Event::Reload = signals.next().await {
        server.reload();
    }
    tracing::info!("stopping");
    notify.stopping();
    watchdog.abort();
    server.stop().await;
    if let Some(path) = &options.ready_file {
        let _ = fs::remove_file(path);
    }
    Ok(())
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

enum Event {
    Stop,
    Reload,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Event {
        tokio::select! {
            _ = self.terminate.recv() => Event::Stop,
            _ = self.interrupt.recv() => Event::Stop,
            _ = self.hangup.recv() => Event::Reload,
        }
    }
}

/// Proves that the runtime still turns; a server that hangs is restarted.
async fn feed_watchdog(notify: Notify) {
    let Some(interval) = notify.watchdog_interval() else { return };
    loop {
        tokio::time::sleep(interval).await;
        notify.watchdog();
    }
}

fn door(settings: &Listener, router: Router) -> Result<Door, StartError> {
    let certificate = settings.tls.as_ref().map(Certificate::load).transpose().map_err(StartError::Other)?;
    Ok(Door { router, trusted_proxies: settings.trusted_proxies.clone().into(), certificate })
}

fn built(app: &App, routes: crate::http::Routes) -> Result<Router, StartError> {
    Router::new(app.clone(), routes).map_err(StartError::Other)
}

/// Sockets that somebody else opened, such as for ports that this process may not open.
#[derive(Default)]
struct Sockets(Vec<std::net::TcpListener>);

impl Sockets {
    /// The one with this address, if it was handed over.
    fn take(&mut self, address: SocketAddr) -> Result<Option<(TcpListener, SocketAddr)>, StartError> {
        let is_it = |socket: &std::net::TcpListener| socket.local_addr().is_ok_and(|local| local == address);
        let Some(found) = self.0.iter().position(is_it) else { return Ok(None) };
        let socket = self.0.swap_remove(found);
        let at = || format!("the socket handed over for {address}");
        socket.set_nonblocking(true).map_err(file(at))?;
        Ok(Some((TcpListener::from_std(socket).map_err(file(at))?, address)))
    }

    /// One that no listener wants would keep its clients waiting for ever.
    fn nothing_left(self) -> Result<(), StartError> {
        let Some(socket) = self.0.first() else { return Ok(()) };
        let address = socket.local_addr().map_or_else(|cause| cause.to_string(), |address| address.to_string());
        Err(StartError::Other(format!(
            "a socket was handed over for {address}, but no listener in the settings is bound there"
        )))
    }
}

async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let at = || format!("listening on {address}");
    let listener = TcpListener::bind(address).await.map_err(file(at))?;
    let address = listener.local_addr().map_err(file(at))?;
    Ok((listener, address))
}

/// Replaces a socket that a dead server left behind, but never one that somebody answers on.
fn bind_unix(path: &Path) -> Result<UnixListener, StartError> {
    let at = || format!("administration socket {}", path.display());
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(StartError::Other(format!("{}: another server is running", at())));
    }
    let _ = fs::remove_file(path);
    let listener = bind_private(path).map_err(file(at))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(file(at))?;
    Ok(listener)
}

/// Nobody else can ever connect: who does it between binding and a change of permissions would stay.
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    // The mask is that of the whole process. Whatever another thread makes in this moment is private, too.
    let before = umask(Mode::S_IRWXG | Mode::S_IRWXO);
    let bound = UnixListener::bind(path);
    umask(before);
    bound
}

fn write_ready_file(path: &Path, bound: &Bound) -> io::Result<()> {
    let draft = path.with_extension("new");
    fs::write(&draft, serde_json::to_vec(bound)?)?;
    fs::rename(draft, path)
}

/// Every connection takes a file descriptor, and the usual limit of 1024 is for other programs.
fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most.min(1 << 20), most));
    if let Err(cause) = raised {
        tracing::warn!(%cause, "the limit of open files could not be raised");
    }
}

fn file(what: impl FnOnce() -> String) -> impl FnOnce(io::Error) -> StartError {
    move |cause| StartError::File { what: what(), cause }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[tokio::test]
    async fn the_socket_for_administration_is_private_from_its_first_moment() {
        let dir = tempfile::tempdir().unwrap();
        let (path, before, after) =
            (dir.path().join("admin.sock"), dir.path().join("before"), dir.path().join("after"));
        fs::write(&before, "").unwrap();
        let _listener = bind_private(&path).unwrap();
        assert_eq!(mode(&path) & 0o077, 0);
        // And the mask is what it was.
        fs::write(&after, "").unwrap();
        assert_eq!(mode(&before), mode(&after));
    }
}
