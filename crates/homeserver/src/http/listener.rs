//! Sockets: accepting, TLS, connection limits and timeouts, stopping.
//!
//! What a connection costs while nothing happens on it is decided here: one task, hyper's buffers, no timer wheel of
//! our own. Connections that are half open are found by TCP itself (keep-alive and user timeout).

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::FutureExt as _;
use http::HeaderMap;
use hyper::body::Incoming;
use hyper::rt::{Read, Write};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use nix::sys::socket::{setsockopt, sockopt};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Body, Client, Request, Router};
use crate::config::{Http, Network, Tls};

/// What all listeners of a server share.
#[derive(Clone)]
pub struct Connections(Arc<Shared>);

struct Shared {
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
    places: Arc<Semaphore>,
    handshake_timeout: Duration,
    open: TaskTracker,
    /// No more requests: connections end when they have answered what they are at.
    stop: CancellationToken,
    /// No more patience.
    kill: CancellationToken,
}

/// The certificate of a listener, which can be replaced while it listens.
#[derive(Clone)]
pub struct Certificate {
    files: Tls,
    current: Arc<ArcSwap<ServerConfig>>,
}

/// How requests of one listener are to be understood.
#[derive(Clone)]
pub struct Door {
    pub router: Router,
    pub trusted_proxies: Arc<[Network]>,
    pub certificate: Option<Certificate>,
}

/// A peer that vanished is noticed after about this long.
const PEER_TIMEOUT: Duration = Duration::from_secs(60);

/// Runs a connection to its end. How it ended is the client's business: errors of transport are no news.
/// (A macro, since hyper's two kinds of connections share no trait.)
macro_rules! drive {
    ($connections:expr, $connection:expr) => {
        let mut connection = $connection;
        let finished = tokio::select! {
            _ = connection.as_mut() => true,
            () = $connections.0.stop.cancelled() => false,
        };
        if !finished {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                _ = connection => {}
                () = $connections.0.kill.cancelled() => {}
            }
        }
    };
}

impl Connections {
    pub fn new(settings: &Http) -> Self {
        let mut http1 = http1::Builder::new();
        http1
            .timer(TokioTimer::new())
            .header_read_timeout(settings.idle_timeout.get())
            .max_header_size(settings.max_head.as_usize())
            .max_headers(100)
            .max_buf_size(settings.max_head.as_usize().max(64 * 1024));
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .keep_alive_interval(PEER_TIMEOUT)
            .keep_alive_timeout(Duration::from_secs(20))
            .max_concurrent_streams(100)
            .max_header_list_size(u32::try_from(settings.max_head.get()).unwrap_or(u32::MAX))
            .initial_stream_window_size(256 * 1024)
            .initial_connection_window_size(1024 * 1024)
            .max_send_buf_size(64 * 1024);
        Self(Arc::new(Shared {
            http1,
            http2,
            places: Arc::new(Semaphore::new(settings.max_connections.min(Semaphore::MAX_PERMITS))),
            handshake_timeout: settings.handshake_timeout.get(),
            open: TaskTracker::new(),
            stop: CancellationToken::new(),
            kill: CancellationToken::new(),
        }))
    }

    /// Serves a TCP listener until the server stops.
    pub async fn serve_tcp(self, listener: TcpListener, door: Door) {
        let door = Arc::new(door);
        while let Some((stream, peer)) = self.next(|| listener.accept()).await {
            let Some(place) = self.place().await else { return };
            // Options that cannot be set cost comfort, not correctness.
            let _ = prepare(&stream);
            let held = (place, door.router.app().metrics.connection_opened());
            let (connections, door, peer) = (self.clone(), door.clone(), peer.ip().to_canonical());
            // Two futures, so that a plain connection does not carry room for a TLS session.
            if door.certificate.is_some() {
                self.0.open.spawn(connections.tls(stream, peer, door, held));
            } else {
                self.0.open.spawn(connections.http1(TokioIo::new(stream), peer, door, held));
            }
        }
    }

    /// Serves a unix socket until the server stops. It takes no places: an administrator always gets in.
    pub async fn serve_unix(self, listener: UnixListener, router: Router) {
        let door = Arc::new(Door { router, trusted_proxies: Arc::new([]), certificate: None });
        while let Some((stream, _)) = self.next(|| listener.accept()).await {
            let (connections, door) = (self.clone(), door.clone());
            self.0.open.spawn(async move {
                connections.http1(TokioIo::new(stream), Client::default().ip, door, ()).await;
            });
        }
    }

    /// Asks all connections to end, waits for `grace`, and drops those that are left. Says how many those were.
    pub async fn stop(&self, grace: Duration) -> usize {
        self.0.stop.cancel();
        self.0.open.close();
        let _ = tokio::time::timeout(grace, self.0.open.wait()).await;
        let left = self.0.open.len();
        self.0.kill.cancel();
        left
    }

    /// The next connection; `None` when the server stops.
    async fn next<S, P, A>(&self, accept: impl Fn() -> A) -> Option<(S, P)>
    where
        A: Future<Output = io::Result<(S, P)>>,
    {
        let accepted = async {
            loop {
                match accept().await {
                    Ok(connection) => return connection,
                    Err(cause) => after_failed_accept(&cause).await,
                }
            }
        };
        tokio::select! {
            biased;
            () = self.0.stop.cancelled() => None,
            next = accepted => Some(next),
        }
    }

    /// Waits until one more connection may be served; `None` when the server stops.
    async fn place(&self) -> Option<OwnedSemaphorePermit> {
        let places = Arc::clone(&self.0.places);
        tokio::select! {
            () = self.0.stop.cancelled() => None,
            place = places.acquire_owned() => place.ok(),
        }
    }

    /// What is `held` is given back when the connection ends.
    async fn tls<H: Send + 'static>(self, stream: TcpStream, peer: IpAddr, door: Arc<Door>, held: H) {
        let Some(certificate) = &door.certificate else { return };
        let acceptor = tokio_rustls::TlsAcceptor::from(certificate.current.load_full());
        let accepted = Box::pin(tokio::time::timeout(self.0.handshake_timeout, acceptor.accept(stream))).await;
        let Ok(Ok(stream)) = accepted else { return };
        // Boxed: neither kind of connection should pay for the other's size.
        let io = TokioIo::new(stream);
        let served: Pin<Box<dyn Future<Output = ()> + Send>> = match io.inner().get_ref().1.alpn_protocol() {
            Some(b"h2") => Box::pin(self.http2(io, peer, door, held)),
            _ => Box::pin(self.http1(io, peer, door, held)),
        };
        served.await;
    }

    async fn http1<H>(self, io: impl Read + Write + Unpin + Send + 'static, peer: IpAddr, door: Arc<Door>, _held: H) {
        let service = service_fn(move |request| answer(&door, peer, request));
        drive!(self, pin!(self.0.http1.serve_connection(io, service)));
    }

    async fn http2<H>(self, io: impl Read + Write + Unpin + Send + 'static, peer: IpAddr, door: Arc<Door>, _held: H) {
        let service = service_fn(move |request| answer(&door, peer, request));
        drive!(self, pin!(self.0.http2.serve_connection(io, service)));
    }
}

type Answer = Pin<Box<dyn Future<Output = Result<super::Response, Infallible>> + Send>>;

/// Boxed: hyper keeps room for this future as long as the connection lives, also while nothing is asked.
fn answer(door: &Door, peer: IpAddr, request: http::Request<Incoming>) -> Answer {
    let client = Client { ip: client_address(request.headers(), peer, &door.trusted_proxies) };
    let request: Request = request.map(Body::from);
    Box::pin(door.router.call(request, client).map(Ok))
}

/// The address that a chain of trusted proxies vouches for: the last one in X-Forwarded-For that is no proxy of ours.
fn client_address(headers: &HeaderMap, peer: IpAddr, trusted: &[Network]) -> IpAddr {
    let is_proxy = |address: IpAddr| trusted.iter().any(|network| network.contains(address));
    let mut client = peer;
    if !is_proxy(peer) {
        return client;
    }
    let values = headers.get_all("x-forwarded-for").into_iter().filter_map(|value| value.to_str().ok());
    let chain: Vec<&str> = values.flat_map(|value| value.split(',')).collect();
    for hop in chain.iter().rev() {
        let Ok(address) = hop.trim().parse::<IpAddr>() else { break };
        client = address.to_canonical();
        if !is_proxy(client) {
            break;
        }
    }
    client
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &30)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &10)?;
    setsockopt(stream, sockopt::TcpKeepCount, &3)?;
    setsockopt(stream, sockopt::TcpUserTimeout, &(PEER_TIMEOUT.as_millis() as u32))?;
    Ok(())
}

/// Clients that gave up while they waited are no failure; no file descriptors left is one that passes.
async fn after_failed_accept(cause: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    if !matches!(cause.kind(), ConnectionAborted | ConnectionReset | Interrupted) {
        tracing::warn!(%cause, "a connection could not be accepted");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

impl Certificate {
    pub fn load(files: &Tls) -> Result<Self, String> {
        let current = Arc::new(ArcSwap::new(read(files)?));
        Ok(Self { files: files.clone(), current })
    }

    /// Reads the files anew. If they are unusable, the certificate in use stays.
    pub fn reload(&self) -> Result<(), String> {
        self.current.store(read(&self.files)?);
        Ok(())
    }
}

fn read(files: &Tls) -> Result<Arc<ServerConfig>, String> {
    let certificate = |cause: &dyn std::fmt::Display| format!("certificate {}: {cause}", files.certificate.display());
    let chain: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(&files.certificate).map_err(|cause| certificate(&cause))?.collect();
    let chain = chain.map_err(|cause| certificate(&cause))?;
    if chain.is_empty() {
        return Err(certificate(&"has no certificate in it"));
    }
    let key =
        PrivateKeyDer::from_pem_file(&files.key).map_err(|cause| format!("key {}: {cause}", files.key.display()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|cause| cause.to_string())?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|cause| certificate(&cause))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_trusted_proxies_are_believed() {
        let trusted: Vec<Network> = vec!["10.0.0.0/8".parse().unwrap(), "127.0.0.1".parse().unwrap()];
        let seen = |peer: &str, forwarded: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in forwarded {
                headers.append("x-forwarded-for", http::HeaderValue::from_static(value));
            }
            client_address(&headers, peer.parse().unwrap(), &trusted).to_string()
        };
        assert_eq!(seen("127.0.0.1", &[]), "127.0.0.1");
        assert_eq!(seen("127.0.0.1", &["192.0.2.1"]), "192.0.2.1");
        assert_eq!(seen("192.0.2.9", &["192.0.2.1"]), "192.0.2.9");
        assert_eq!(seen("127.0.0.1", &["203.0.113.1, 192.0.2.1, 10.1.1.1"]), "192.0.2.1");
        assert_eq!(seen("127.0.0.1", &["203.0.113.1", "192.0.2.1"]), "192.0.2.1");
        assert_eq!(seen("127.0.0.1", &["nonsense, 10.0.0.1"]), "10.0.0.1");
        assert_eq!(seen("127.0.0.1", &["::ffff:192.0.2.1"]), "192.0.2.1");
    }
}
