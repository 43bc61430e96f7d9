//! The one gate to the outside: every connection that this server opens is opened here, and only to where the operator
//! said it may go.
//!
//! A request names where it may go; its host is resolved here, addresses that no request may reach are left out (all
//! public ones, for an isolated server), and what is connected to is an address that was looked at, never a name. Time and
//! size of the answer are bounded, and redirects are not followed, but by `fetch.rs`, which looks at each as at the first.
//! Not here: who asks for what.

pub mod fetch;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hashbrown::HashMap;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::config::registrations::Registrations;
use crate::config::{Config, Destination, FederationMode};

/// Requests under way at one time.
const MAX_REQUESTS: usize = 64;
/// Connections kept for the next request to the same place.
const MAX_IDLE: usize = 8;
/// Places that connections are kept to.
const MAX_PLACES: usize = 64;
/// Where systems keep the authorities they trust.
const SYSTEM_CA_FILES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Why a request did not get its answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutgoingError {
    #[error("this server may not connect to {0}")]
    NotAllowed(String),
    #[error("{0} cannot be reached: {1}")]
    Unreachable(String, String),
    #[error("{0} did not answer in time")]
    TimedOut(String),
}

/// Opens connections.
pub struct Outgoing {
    isolated: bool,
    tls: Result<Arc<ClientConfig>, String>,
    idle: Mutex<HashMap<Destination, Vec<SendRequest<Full<Bytes>>>>>,
    turns: Semaphore,
}

/// One POST of JSON.
pub struct Post<'a> {
    pub url: &'a str,
    pub body: Bytes,
    /// From now to the last packet.
    pub within: Duration,
    /// The largest answer that is read.
    pub max_answer_bytes: usize,
}

/// One request of any kind. A body is JSON.
pub struct Ask<'a> {
    pub method: Method,
    pub url: &'a str,
    /// A token that proves who asks.
    pub bearer: Option<&'a str>,
    pub body: Option<Bytes>,
    /// From now to the last packet.
    pub within: Duration,
    /// The largest answer that is read.
    pub max_answer_bytes: usize,
}

/// Who chose the URL that leads somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pointing {
    /// The operator, or a program that the operator named.
    Operator,
    /// Users, who may know names that lead to the machine itself.
    Users,
}

impl Outgoing {
    pub fn new(config: &Config, appservices: &Registrations) -> Self {
        let isolated = match config.federation.mode {
            FederationMode::Isolated => true,
        };
        // Whoever connects to nothing needs no certificates.
        let services = appservices.iter().filter_map(|registration| registration.service.as_ref());
        let named = config.push.gateways.iter().chain(&config.media.preview_hosts);
        let mut places = services.map(|service| &service.place).chain(named);
        let needed = places.any(|place| place.tls);
        let tls = if needed {
            client_config(config.outgoing.ca_file.as_deref())
        } else {
            Err("no destination with TLS was allowed when the server started".to_owned())
        };
        if let (Err(cause), true) = (&tls, needed) {
            tracing::error!(%cause, "no TLS connection can be opened");
        }
        Outgoing { isolated, tls, idle: Mutex::default(), turns: Semaphore::new(MAX_REQUESTS) }
    }

    /// Posts JSON to a URL that one of `allowed` covers. Any status is an answer, also that of a redirect.
    pub async fn post_json(
        &self,
        allowed: &[Destination],
        post: Post<'_>,
    ) -> Result<(StatusCode, Bytes), OutgoingError> {
        let Post { url, body, within, max_answer_bytes } = post;
        let ask = Ask { method: Method::POST, url, bearer: None, body: Some(body), within, max_answer_bytes };
        self.request(allowed, ask).await
    }

    /// Sends a request to a URL that one of `allowed` covers. Any status is an answer, also that of a redirect.
    pub async fn request(&self, allowed: &[Destination], ask: Ask<'_>) -> Result<(StatusCode, Bytes), OutgoingError> {
        let (uri, place) = place(ask.url).ok_or_else(|| OutgoingError::NotAllowed(ask.url.to_owned()))?;
        if !allowed.iter().any(|allowed| allowed.covers(&place)) {
            return Err(OutgoingError::NotAllowed(place.to_string()));
        }
        let within = ask.within;
        let asked = async {
            let _turn = self.turns.acquire().await;
            self.exchange(&place, &uri, &ask).await
        };
        tokio::time::timeout(within, asked).await.unwrap_or_else(|_| Err(OutgoingError::TimedOut(place.to_string())))
    }

    async fn exchange(
        &self,
        place: &Destination,
        uri: &Uri,
        ask: &Ask<'_>,
    ) -> Result<(StatusCode, Bytes), OutgoingError> {
        let broken = |cause: &dyn std::fmt::Display| OutgoingError::Unreachable(place.to_string(), cause.to_string());
        let request = || {
            let mut request = Request::builder()
                .method(ask.method.clone())
                .uri(uri.path_and_query().map_or("/", |path| path.as_str()))
                .header(header::HOST, uri.authority().map_or("", |authority| authority.as_str()))
                .header(header::USER_AGENT, "Skerry");
            if ask.body.is_some() {
                request = request.header(header::CONTENT_TYPE, "application/json");
            }
            if let Some(token) = ask.bearer {
                let mut value = HeaderValue::try_from(format!("Bearer {token}"))?;
                value.set_sensitive(true);
                request = request.header(header::AUTHORIZATION, value);
            }
            request.body(Full::new(ask.body.clone().unwrap_or_default()))
        };
        let (mut sender, response) = match self.reuse(place, request().map_err(|cause| broken(&cause))?).await {
            Some(answered) => answered,
            None => {
                let mut sender = self.connect(place, Pointing::Operator).await?;
                let request = request().map_err(|cause| broken(&cause))?;
                let response = sender.send_request(request).await.map_err(|cause| broken(&cause))?;
                (sender, response)
            }
        };
        let status = response.status();
        let body = Limited::new(response.into_body(), ask.max_answer_bytes);
        let body = body.collect().await.map_err(|cause| broken(&cause))?.to_bytes();
        if sender.ready().await.is_ok() {
            self.keep(place, sender);
        }
        Ok((status, body))
    }

    /// Over a connection that is there already. The other end may have closed it meanwhile: then there is no answer.
    async fn reuse(
        &self,
        place: &Destination,
        request: Request<Full<Bytes>>,
    ) -> Option<(SendRequest<Full<Bytes>>, http::Response<hyper::body::Incoming>)> {
        let mut sender = loop {
            let sender = self.idle.lock().get_mut(place)?.pop()?;
            if !sender.is_closed() && sender.is_ready() {
                break sender;
            }
        };
        let response = sender.send_request(request).await.ok()?;
        Some((sender, response))
    }

    fn keep(&self, place: &Destination, sender: SendRequest<Full<Bytes>>) {
        let mut idle = self.idle.lock();
        if idle.len() >= MAX_PLACES && !idle.contains_key(place) {
            idle.clear();
        }
        let senders = idle.entry(place.clone()).or_default();
        senders.retain(|sender| !sender.is_closed());
        if senders.len() < MAX_IDLE {
            senders.push(sender);
        }
    }

    async fn connect(
        &self,
        place: &Destination,
        pointing: Pointing,
    ) -> Result<SendRequest<Full<Bytes>>, OutgoingError> {
        let broken = |cause: String| OutgoingError::Unreachable(place.to_string(), cause);
        let stream = self.dial(place, pointing).await?;
        if !place.tls {
            return handshake(stream).await.map_err(|cause| broken(cause.to_string()));
        }
        let tls = self.tls.clone().map_err(broken)?;
        let name = place.host.trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(name).map_err(|cause| broken(cause.to_string()))?;
        let stream = tokio_rustls::TlsConnector::from(tls).connect(name, stream).await;
        let stream = stream.map_err(|cause| broken(cause.to_string()))?;
        handshake(stream).await.map_err(|cause| broken(cause.to_string()))
    }

    /// The first address that answers, of those that may be reached.
    async fn dial(&self, place: &Destination, pointing: Pointing) -> Result<TcpStream, OutgoingError> {
        let broken = |cause: &io::Error| OutgoingError::Unreachable(place.to_string(), cause.to_string());
        let host = place.host.trim_matches(['[', ']']);
        let port = place.port.unwrap_or_default();
        #[expect(clippy::disallowed_methods, reason = "this is the gate")]
        let found: Vec<SocketAddr> =
            tokio::net::lookup_host((host, port)).await.map_err(|cause| broken(&cause))?.collect();
        let mut last = OutgoingError::NotAllowed(place.to_string());
        let may = |ip| may_reach(ip, self.isolated) && (pointing == Pointing::Operator || is_meant(host, ip));
        for address in found.into_iter().filter(|address| may(address.ip())) {
            #[expect(clippy::disallowed_methods, reason = "this is the gate")]
            let connected = TcpStream::connect(address).await;
            match connected {
                Ok(stream) => {
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Err(cause) => last = broken(&cause),
            }
        }
        Err(last)
    }
}

async fn handshake<S>(stream: S) -> Result<SendRequest<Full<Bytes>>, hyper::Error>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = http1::Builder::new().max_buf_size(64 * 1024).handshake(TokioIo::new(stream)).await?;
    // Ends with the sender, or when the other end hangs up.
    tokio::spawn(connection);
    Ok(sender)
}

/// The URL, and where it leads. Who puts a name and a password into it gets nowhere.
fn place(url: &str) -> Option<(Uri, Destination)> {
    let uri: Uri = url.parse().ok()?;
    let authority = uri.authority()?;
    if authority.as_str().contains('@') {
        return None;
    }
    let place: Destination = format!("{}://{authority}", uri.scheme_str()?).parse().ok()?;
    place.port?;
    Some((uri, place))
}

/// Whether connections to an address are allowed at all. An isolated server stays in private networks.
fn may_reach(address: IpAddr, isolated: bool) -> bool {
    let (private, never) = match address.to_canonical() {
        IpAddr::V4(v4) => {
            let shared = v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64;
            (
                v4.is_loopback() || v4.is_private() || shared,
                v4.is_unspecified() || v4.is_multicast() || v4.is_broadcast() || v4.is_link_local(),
            )
        }
        IpAddr::V6(v6) => (
            v6.is_loopback() || v6.is_unique_local(),
            v6.is_unspecified() || v6.is_multicast() || v6.is_unicast_link_local(),
        ),
    };
    !never && (private || !isolated)
}

/// Whether an address may be what a host is meant to be: a name leads to the machine itself only if it says so. Whoever
/// rules over a name cannot make users look at what listens here for nobody else.
fn is_meant(host: &str, address: IpAddr) -> bool {
    !address.to_canonical().is_loopback() || host == "localhost" || host.parse::<IpAddr>().is_ok()
}

fn client_config(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, String> {
    let file = match ca_file {
        Some(file) => file.to_owned(),
        None => SYSTEM_CA_FILES
            .iter()
            .map(PathBuf::from)
            .find(|file| file.exists())
            .ok_or("this system has no file of trusted authorities: outgoing.ca_file can name one")?,
    };
    let wrong = |cause: &dyn std::fmt::Display| format!("{}: {cause}", file.display());
    let mut roots = RootCertStore::empty();
    let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&file)
        .and_then(Iterator::collect)
        .map_err(|cause: rustls::pki_types::pem::Error| wrong(&cause))?;
    if roots.add_parsable_certificates(certificates).0 == 0 {
        return Err(wrong(&"has no certificate in it"));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|cause| cause.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn a_url_leads_to_one_place() {
        let leads = |url: &str| place(url).map(|(_, place)| place.to_string());
        assert_eq!(
            leads("https://Push.Example.org/_matrix/push/v1/notify").as_deref(),
            Some("https://push.example.org")
        );
        assert_eq!(leads("http://127.0.0.1:8009/x").as_deref(), Some("http://127.0.0.1:8009"));
        assert_eq!(leads("http://[::1]:8009/x").as_deref(), Some("http://[::1]:8009"));
        for nowhere in ["ftp://a/", "https://user@a/", "/path", "https://a:*/", "https://a b/"] {
            assert_eq!(leads(nowhere), None, "{nowhere}");
        }
    }

    #[test]
    fn allowed_places_are_scheme_host_and_port() {
        let covers = |allowed: &str, url: &str| allowed.parse::<Destination>().unwrap().covers(&place(url).unwrap().1);
        assert!(covers("https://a.example", "https://a.example/x"));
        assert!(!covers("https://a.example", "http://a.example:443/x"));
        assert!(!covers("https://a.example", "https://b.a.example/x"));
        assert!(!covers("https://a.example", "https://a.example:8443/x"));
        assert!(covers("http://127.0.0.1:*", "http://127.0.0.1:9/x"));
        assert!("example.org".parse::<Destination>().is_err());
        assert!("https://a/path".parse::<Destination>().is_err());
    }

    #[test]
    fn pitfall_073_an_isolated_server_stays_in_private_networks() {
        let may = |address: &str, isolated| may_reach(address.parse().unwrap(), isolated);
        for private in ["127.0.0.1", "10.1.2.3", "192.168.0.1", "172.31.0.1", "100.64.0.1", "::1", "fd00::1"] {
            assert!(may(private, true), "{private}");
        }
        for public in ["8.8.8.8", "100.128.0.1", "2001:db8::1", "::ffff:8.8.8.8"] {
            assert!(!may(public, true) && may(public, false), "{public}");
        }
        for never in ["0.0.0.0", "169.254.169.254", "224.0.0.1", "::", "fe80::1", "::ffff:169.254.169.254"] {
            assert!(!may(never, true) && !may(never, false), "{never}");
        }
    }

    #[test]
    fn pitfall_107_a_name_leads_to_the_machine_itself_only_if_it_says_so() {
        let meant = |host, address: &str| is_meant(host, address.parse().unwrap());
        assert!(meant("localhost", "127.0.0.1") && meant("127.0.0.2", "127.0.0.2") && meant("::1", "::1"));
        assert!(meant("wiki.example.org", "10.1.2.3"));
        for address in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert!(!meant("wiki.example.org", address), "{address}");
        }
    }

    fn outgoing() -> Outgoing {
        Outgoing::new(&Config::new(ruma::owned_server_name!("hs.test")), &Registrations::default())
    }

    async fn post(outgoing: &Outgoing, allowed: &str, url: &str) -> Result<(StatusCode, Bytes), OutgoingError> {
        let post = Post { url, body: Bytes::from("{}"), within: Duration::from_secs(5), max_answer_bytes: 64 };
        outgoing.post_json(&[allowed.parse().unwrap()], post).await
    }

    #[tokio::test]
    async fn what_was_not_allowed_is_not_connected_to() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/x", listener.local_addr().unwrap());
        let refused = post(&outgoing(), "http://127.0.0.1:1", &url).await.unwrap_err();
        assert!(matches!(refused, OutgoingError::NotAllowed(_)));
        let came = tokio::time::timeout(Duration::from_millis(50), listener.accept()).await;
        assert!(came.is_err(), "somebody connected");
    }

    #[tokio::test]
    async fn a_connection_is_used_again_and_a_redirect_is_just_an_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/x", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut seen = Vec::new();
            for answer in ["307 Go\r\nlocation: http://8.8.8.8/\r\ncontent-length: 0", "200 OK\r\ncontent-length: 2"] {
                let mut buffer = [0; 4096];
                let read = stream.read(&mut buffer).await.unwrap();
                seen.push(String::from_utf8_lossy(&buffer[..read]).into_owned());
                let body = if answer.ends_with('2') { "ok" } else { "" };
                stream.write_all(format!("HTTP/1.1 {answer}\r\n\r\n{body}").as_bytes()).await.unwrap();
            }
            seen
        });
        let outgoing = outgoing();
        assert_eq!(post(&outgoing, "http://127.0.0.1:*", &url).await.unwrap().0, 307);
        let (status, body) = post(&outgoing, "http://127.0.0.1:*", &url).await.unwrap();
        assert_eq!((status, &body[..]), (StatusCode::OK, &b"ok"[..]));
        let seen = server.await.unwrap();
        assert!(seen.iter().all(|request| request.starts_with("POST /x HTTP/1.1\r\n")), "{seen:?}");
    }

    #[tokio::test]
    async fn an_answer_that_is_too_long_is_none() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/x", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 4096];
            let _ = stream.read(&mut buffer).await.unwrap();
            let long = "x".repeat(100);
            stream.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{long}").as_bytes()).await.unwrap();
        });
        let failed = post(&outgoing(), "http://127.0.0.1:*", &url).await.unwrap_err();
        assert!(matches!(failed, OutgoingError::Unreachable(..)));
    }

    /// A server with a certificate of its own for `localhost`: where it listens, and the file with the certificate.
    async fn tls_server(dir: &Path) -> (u16, PathBuf) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let file = dir.join("ca.pem");
        std::fs::write(&file, made.cert.pem()).unwrap();
        let key =
            rustls::pki_types::PrivateKeyDer::from_pem_slice(made.signing_key.serialize_pem().as_bytes()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let mut buffer = [0; 4096];
                let _ = stream.read(&mut buffer).await.unwrap();
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
                stream.flush().await.unwrap();
            }
        });
        (port, file)
    }

    #[tokio::test]
    async fn only_those_are_talked_to_who_prove_who_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let (port, ca_file) = tls_server(dir.path()).await;
        let (_, other_file) = {
            let other = tempfile::tempdir().unwrap();
            let made = tls_server(other.path()).await;
            std::fs::copy(&made.1, dir.path().join("other.pem")).unwrap();
            (made.0, dir.path().join("other.pem"))
        };
        let with = |file: PathBuf| {
            let mut config = Config::new(ruma::owned_server_name!("hs.test"));
            config.push.gateways = vec!["https://localhost:*".parse().unwrap()];
            config.outgoing.ca_file = Some(file);
            Outgoing::new(&config, &Registrations::default())
        };
        let url = format!("https://localhost:{port}/x");
        assert_eq!(post(&with(ca_file), "https://localhost:*", &url).await.unwrap().0, 200);
        let stranger = post(&with(other_file), "https://localhost:*", &url).await.unwrap_err();
        assert!(matches!(stranger, OutgoingError::Unreachable(..)), "{stranger}");
        let nobody = post(&with(dir.path().join("none.pem")), "https://localhost:*", &url).await.unwrap_err();
        assert!(nobody.to_string().contains("none.pem"), "{nobody}");
    }
}
