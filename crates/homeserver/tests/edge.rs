//! The server over real sockets: bad and slow clients, TLS, stopping. Endpoints here are made for the purpose.
#![allow(clippy::unwrap_used, clippy::panic)]
#![allow(clippy::disallowed_methods, reason = "a test is a client, and measures real time")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use homeserver::App;
use homeserver::admin::client;
use homeserver::config::{Config, Size, Span, Tls};
use homeserver::error::Result;
use homeserver::http::{RawCtx, Response, Router, Routes, json_response};
use homeserver::server::Server;
use http::{Method, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A server with a directory of its own.
struct World {
    server: Server,
    dir: TempDir,
}

async fn start(change: impl FnOnce(&mut Config, &Path)) -> World {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::new("hs.test".try_into().unwrap());
    config.data_dir = dir.path().to_owned();
    config.listeners[0].bind = "127.0.0.1:0".parse().unwrap();
    change(&mut config, dir.path());
    let app = App::in_memory(config);
    let router = Router::new(app.clone(), routes()).unwrap();
    World { server: Server::start_with(app, router).await.unwrap(), dir }
}

fn routes() -> Routes {
    Routes::default()
        .raw(Method::GET, &["/hello"], hello)
        .raw(Method::GET, &["/poll"], poll)
        .poll()
        .raw(Method::PUT, &["/slow"], slow)
        .raw(Method::POST, &["/json"], json)
}

async fn hello(ctx: RawCtx) -> Result<Response> {
    Ok(json_response(StatusCode::OK, format!("{{\"ip\":\"{}\"}}", ctx.ip)))
}

/// A long poll as it should be: it answers when the server stops.
async fn poll(ctx: RawCtx) -> Result<Response> {
    ctx.app.shutdown.cancelled().await;
    Ok(json_response(StatusCode::OK, "{\"polled\":true}"))
}

/// How many mutations have begun.
static BEGUN: AtomicUsize = AtomicUsize::new(0);

/// A mutation that takes its time.
async fn slow(ctx: RawCtx) -> Result<Response> {
    BEGUN.fetch_add(1, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(300)).await;
    std::fs::write(ctx.app.config.data_dir.join("done"), "").unwrap();
    Ok(json_response(StatusCode::OK, "{}"))
}

async fn json(mut ctx: RawCtx) -> Result<Response> {
    let body: serde_json::Value = ctx.read_json().await?;
    Ok(json_response(StatusCode::OK, body.to_string()))
}

impl World {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.server.bound().listeners[0]).await.unwrap()
    }

    /// Sends bytes and reads until the server closes, or for two seconds.
    async fn talk(&self, request: &str) -> String {
        let mut stream = self.connect().await;
        // A server that has heard enough may close while we still write.
        let _ = stream.write_all(request.as_bytes()).await;
        read_for(&mut stream, Duration::from_secs(2)).await
    }
}

async fn read_for(stream: &mut TcpStream, within: Duration) -> String {
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(within, stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

async fn eventually(mut holds: impl FnMut() -> bool) {
    for _ in 0..400 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("still not so after four seconds");
}

const GET: &str = "GET /hello HTTP/1.1\r\nhost: x\r\n\r\n";
const GET_LAST: &str = "GET /hello HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn one_connection_many_requests() {
    let world = start(|_, _| {}).await;
    let answer = world.talk(&format!("{GET}{GET}{GET_LAST}")).await;
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 3, "{answer}");
    assert_eq!(answer.matches("{\"ip\":\"127.0.0.1\"}").count(), 3, "{answer}");
    let head = world.talk("HEAD /hello HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200 OK") && head.ends_with("\r\n\r\n"), "{head}");
}

#[tokio::test]
async fn heads_and_bodies_have_limits() {
    let world = start(|config, _| config.http.max_body = Size::kib(1)).await;
    let answer = world.talk(&format!("GET /hello HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(40_000))).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    let answer = world.talk(&format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(40_000))).await;
    assert!(answer.starts_with("HTTP/1.1 414") || answer.starts_with("HTTP/1.1 431"), "{answer}");
    let many: String = (0..200).map(|n| format!("h{n}: x\r\n")).collect();
    let answer = world.talk(&format!("GET /hello HTTP/1.1\r\n{many}\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    // Announced: refused without reading it.
    let answer = world.talk("POST /json HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000\r\n\r\n{").await;
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("M_TOO_LARGE"), "{answer}");
    // Not announced: refused as soon as it is too much.
    let chunk = format!("400\r\n{}\r\n", "x".repeat(0x400));
    let answer = world
        .talk(&format!("POST /json HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n{chunk}{chunk}"))
        .await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(world.talk("nonsense\r\n\r\n").await.starts_with("HTTP/1.1 400"));
}

/// Over a real connection: what the router is told about lengths is what goes out.
#[tokio::test]
async fn the_web_client_is_sent_whole_and_read_anew() {
    let dir = tempfile::tempdir().unwrap();
    let client = dir.path().join("client");
    std::fs::create_dir(&client).unwrap();
    std::fs::write(client.join("index.html"), "the first").unwrap();
    std::fs::write(client.join("large.js"), vec![b'x'; 1 << 20]).unwrap();
    let mut config = Config::new("hs.test".try_into().unwrap());
    config.data_dir = dir.path().to_owned();
    config.listeners[0].bind = "127.0.0.1:0".parse().unwrap();
    config.web.dir = Some(client.clone());
    let world = World { server: Server::start(App::in_memory(config)).await.unwrap(), dir };
    let ask = async |method: &str, path: &str| {
        world.talk(&format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).await
    };
    let answer = ask("GET", "/").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\nthe first"), "{answer}");
    assert_eq!(ask("GET", "/large.js").await.matches('x').count() >> 20, 1);
    let head = ask("HEAD", "/large.js").await;
    assert!(head.contains("content-length: 1048576\r\n") && head.ends_with("\r\n\r\n"), "{head}");

    std::fs::remove_file(client.join("index.html")).unwrap();
    world.server.reload();
    std::fs::write(client.join("index.html"), "the second one").unwrap();
    world.server.reload();
    let end = Instant::now() + Duration::from_secs(20);
    while !ask("GET", "/").await.ends_with("the second one") {
        assert!(Instant::now() < end, "not read anew");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn slow_and_silent_clients_are_let_go() {
    let world = start(|config, _| {
        config.http.idle_timeout = Span::millis(200);
        config.http.body_timeout = Span::millis(200);
    })
    .await;
    let started = Instant::now();
    // Half a head; nothing at all; a request and then nothing; half a body.
    assert!(!world.talk("GET /hello HTTP/1.1\r\nhost:").await.contains("200 OK"));
    assert_eq!(world.talk("").await, "");
    assert!(world.talk(GET).await.starts_with("HTTP/1.1 200"));
    let answer = world.talk("POST /json HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{").await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    // Each of them would have been waited for two seconds.
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    // A head that trickles in does not get more time by trickling.
    let mut stream = world.connect().await;
    let trickle = async {
        while stream.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(3), trickle).await.unwrap();
}

#[tokio::test]
async fn connections_that_hang_up_are_forgotten() {
    let world = start(|_, _| {}).await;
    let open = || world.server.app().metrics.connections.get();
    let polling = || world.server.app().metrics.open_polls.get();
    let mut held = Vec::new();
    for _ in 0..300 {
        held.push(world.connect().await);
    }
    let mut polls = Vec::new();
    for _ in 0..50 {
        let mut stream = world.connect().await;
        stream.write_all(b"GET /poll HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        polls.push(stream);
    }
    eventually(|| open() == 350 && polling() == 50).await;
    assert!(world.talk(GET_LAST).await.starts_with("HTTP/1.1 200"));
    drop((held, polls));
    eventually(|| open() == 0 && polling() == 0).await;
}

#[tokio::test]
async fn there_are_only_so_many_places() {
    let world = start(|config, _| config.http.max_connections = 2).await;
    let (first, _second) = (world.connect().await, world.connect().await);
    let mut third = world.connect().await;
    third.write_all(GET_LAST.as_bytes()).await.unwrap();
    assert_eq!(read_for(&mut third, Duration::from_millis(200)).await, "");
    drop(first);
    let answer = read_for(&mut third, Duration::from_secs(2)).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
}

#[tokio::test]
async fn a_stop_answers_polls_finishes_mutations_and_takes_less_than_a_second() {
    let world = start(|_, _| {}).await;
    let app = world.server.app().clone();
    let mut poll = world.connect().await;
    poll.write_all(b"GET /poll HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut slow = world.connect().await;
    slow.write_all(b"PUT /slow HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    let mut idle = world.connect().await;
    idle.write_all(GET.as_bytes()).await.unwrap();
    let mut buffer = [0; 4096];
    assert!(idle.read(&mut buffer).await.unwrap() > 0);
    // This one hangs up; what it asked for happens all the same.
    let mut gone = world.connect().await;
    gone.write_all(b"PUT /slow HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    eventually(|| app.metrics.open_polls.get() == 1 && BEGUN.load(Ordering::SeqCst) == 2).await;
    drop(gone);

    let started = Instant::now();
    let address = world.server.bound().listeners[0];
    world.server.stop().await;
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    assert!(read_for(&mut poll, Duration::from_secs(1)).await.contains("{\"polled\":true}"));
    assert!(read_for(&mut slow, Duration::from_secs(1)).await.starts_with("HTTP/1.1 200"));
    assert_eq!(idle.read(&mut buffer).await.unwrap(), 0);
    assert!(world.dir.path().join("done").exists());
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_client_that_reads_nothing_does_not_hold_up_a_stop() {
    let world = start(|config, _| config.http.shutdown_grace = Span::millis(300)).await;
    let mut stuck = world.connect().await;
    let requests = GET.repeat(100);
    // Requests without end whose answers nobody reads, until the buffers of both sides are full.
    while let Ok(sent) = tokio::time::timeout(Duration::from_millis(100), stuck.write_all(requests.as_bytes())).await {
        sent.unwrap();
    }
    let started = Instant::now();
    world.server.stop().await;
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
}

#[tokio::test]
async fn administration_over_its_socket() {
    use std::os::unix::fs::PermissionsExt as _;
    let world = start(|_, _| {}).await;
    let socket = world.server.bound().admin.clone();
    let within = Duration::from_secs(5);
    let (status, health) = client::call(&socket, Method::GET, "/health", None, within).await.unwrap();
    assert_eq!((status, &health["ok"]), (StatusCode::OK, &serde_json::json!(true)));
    let (_, doctor) = client::call(&socket, Method::GET, "/doctor", None, within).await.unwrap();
    assert!(doctor["findings"].as_array().unwrap().len() >= 4);
    let (status, _) = client::call(&socket, Method::GET, "/_matrix/client/versions", None, within).await.unwrap();
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);

    // A second server on the same socket is refused, a dead one's socket is replaced.
    let config = world.server.app().config.clone();
    let second = Server::start(App::in_memory(config.clone())).await;
    assert!(second.err().unwrap().to_string().contains("another server is running"));
    world.server.stop().await;
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert!(socket.exists());
    Server::start(App::in_memory(config)).await.unwrap().stop().await;
    assert!(client::call(&socket, Method::GET, "/health", None, within).await.is_err());
}

#[tokio::test]
async fn metrics_have_a_listener_of_their_own() {
    let world = start(|config, _| config.metrics.bind = Some("127.0.0.1:0".parse().unwrap())).await;
    let mut stream = TcpStream::connect(world.server.bound().metrics.unwrap()).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let answer = read_for(&mut stream, Duration::from_secs(2)).await;
    assert!(answer.contains("skerry_http_connections 1") && answer.ends_with("# EOF\n"), "{answer}");
    let answer = world.talk("GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
}

/// Writes a new certificate for `hs.test` and returns how to trust it.
fn certificate(files: &Tls) -> rustls::RootCertStore {
    let made = rcgen::generate_simple_self_signed(["hs.test".to_owned()]).unwrap();
    std::fs::write(&files.certificate, made.cert.pem()).unwrap();
    std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&files.certificate).unwrap()).unwrap();
    roots
}

async fn tls(
    world: &World,
    roots: &rustls::RootCertStore,
    protocol: &str,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots.clone())
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    connector.connect(ServerName::try_from("hs.test").unwrap(), world.connect().await).await
}

#[tokio::test]
async fn tls_speaks_both_versions_of_http_and_reloads_its_certificate() {
    let mut made = None;
    let world = start(|config, dir| {
        let tls = Tls { certificate: dir.join("cert.pem"), key: dir.join("key.pem") };
        made = Some((tls.clone(), certificate(&tls)));
        config.listeners[0].tls = Some(tls);
        config.http.handshake_timeout = Span::millis(300);
    })
    .await;
    let (files, roots) = made.unwrap();

    let mut stream = tls(&world, &roots, "http/1.1").await.unwrap();
    stream.write_all(GET_LAST.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(answer.starts_with(b"HTTP/1.1 200 OK"));

    let stream = TokioIo::new(tls(&world, &roots, "h2").await.unwrap());
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake::<_, _, Empty<Bytes>>(TokioExecutor::new(), stream).await.unwrap();
    let driver = tokio::spawn(connection);
    let request = http::Request::get("https://hs.test/hello").body(Empty::new()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!((response.status(), response.version()), (StatusCode::OK, http::Version::HTTP_2));
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "{\"ip\":\"127.0.0.1\"}");

    // Plain HTTP, and a handshake that never comes, end the connection.
    assert!(!world.talk(GET).await.contains("200 OK"));
    assert_eq!(world.talk("").await, "");

    // A new certificate is taken, a broken one is not.
    let renewed = certificate(&files);
    world.server.reload();
    assert!(tls(&world, &roots, "http/1.1").await.is_err());
    tls(&world, &renewed, "http/1.1").await.unwrap();
    std::fs::write(&files.key, "broken").unwrap();
    world.server.reload();
    tls(&world, &renewed, "http/1.1").await.unwrap();

    // With a connection of HTTP/2 open, a stop is no slower.
    let started = Instant::now();
    world.server.stop().await;
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    driver.abort();
}
