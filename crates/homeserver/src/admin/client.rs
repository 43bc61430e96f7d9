//! The other end of the administration socket: one request, one answer.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio_rustls::TlsConnector;

/// Waits for an answer where nothing else is to be done.
///
/// # Errors
/// In words for people: the answer's, or this process can get no more from the system.
pub fn wait<T>(answer: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|cause| cause.to_string())?.block_on(answer)
}

/// Sends one request to a running server. An answer that is not a success is one, too.
pub async fn call(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<&Value>,
    within: Duration,
) -> Result<(StatusCode, Value), String> {
    let answer = async {
        let stream = UnixStream::connect(socket)
            .await
            .map_err(|cause| format!("no server answers on {}: {cause}", socket.display()))?;
        exchange(stream, method, path, body).await
    };
    tokio::time::timeout(within, answer).await.map_err(|_| format!("no answer within {} s", within.as_secs()))?
}

/// Asks a server on this machine for a page, over HTTP or HTTPS, and wants a success. The certificate does not matter: it is
/// for a name by which others call this machine.
///
/// # Errors
/// In words for people.
pub async fn get_here(url: &str, within: Duration) -> Result<(), String> {
    let says = |cause: &dyn std::fmt::Display| format!("{url}: {cause}");
    let parsed = url::Url::parse(url).map_err(|cause| says(&cause))?;
    let address = parsed.socket_addrs(|| None).ok().and_then(|addresses| addresses.into_iter().next());
    let address = address.filter(|address| address.ip().is_loopback()).ok_or_else(|| says(&"not on this machine"))?;
    let path = parsed.path().to_owned();
    let answer = async {
        #[expect(clippy::disallowed_methods, reason = "this machine asks itself")]
        let stream = tokio::net::TcpStream::connect(address).await.map_err(|cause| says(&cause))?;
        if parsed.scheme() == "http" {
            return exchange(stream, Method::GET, &path, None).await;
        }
        let name = ServerName::from(address.ip()).to_owned();
        let stream = connector()?.connect(name, stream).await.map_err(|cause| says(&cause))?;
        exchange(stream, Method::GET, &path, None).await
    };
    let answer = tokio::time::timeout(within, answer).await.map_err(|_| says(&"no answer"))?;
    match answer? {
        (status, _) if status.is_success() => Ok(()),
        (status, _) => Err(says(&status)),
    }
}

fn connector() -> Result<TlsConnector, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let anybody = Arc::new(Anybody(provider.clone()));
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|cause| cause.to_string())?.dangerous().with_custom_certificate_verifier(anybody);
    Ok(TlsConnector::from(Arc::new(config.with_no_client_auth())))
}

/// Takes any certificate, if whoever shows it has its key.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Result<(StatusCode, Value), String> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|cause| cause.to_string())?;
    let driver = tokio::spawn(connection);
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "admin")
        .body(Full::new(body.map_or(Bytes::new(), |body| Bytes::from(body.to_string()))))
        .map_err(|cause| cause.to_string())?;
    let response = sender.send_request(request).await.map_err(|cause| cause.to_string())?;
    let status = response.status();
    let bytes = response.into_body().collect().await.map_err(|cause| cause.to_string())?.to_bytes();
    driver.abort();
    Ok((status, serde_json::from_slice(&bytes).unwrap_or(Value::Null)))
}
