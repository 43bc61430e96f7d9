//! The certificate of the site's own authority, for people to take before anything of theirs trusts this server; and a first
//! page that says so, where no web client is on board.
//!
//! Not here: making that certificate, and the server's own (the console of the appliance does).

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS,
};
use http::{Method, StatusCode};
use ring::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response};

/// What is given out under which path.
pub(super) struct Authority {
    file: Option<PathBuf>,
    has_client: bool,
    server_name: String,
    address: String,
    papers: ArcSwapOption<Papers>,
}

struct Papers {
    der: Bytes,
    pem: Bytes,
    page: Bytes,
}

impl Authority {
    /// Nothing is read yet.
    pub(super) fn new(config: &Config) -> Self {
        let server_name = config.server_name.to_string();
        let address = config.well_known.client_base_url.clone().unwrap_or_else(|| format!("https://{server_name}"));
        let has_client = config.web.dir.is_some();
        Self { file: config.web.authority.clone(), has_client, server_name, address, papers: ArcSwapOption::empty() }
    }

    pub(super) fn is_on(&self) -> bool {
        self.file.is_some()
    }

    /// Reads the file. Blocks.
    pub(super) fn load(&self) -> Result<(), String> {
        let Some(file) = &self.file else { return Ok(()) };
        let wrong = |cause: String| format!("authority {}: {cause}", file.display());
        let text = fs::read(file).map_err(|cause| wrong(cause.to_string()))?;
        let der = only_certificate(&text).map_err(wrong)?;
        let page = self.page(&fingerprint(&der));
        self.papers.store(Some(Arc::new(Papers { pem: text.into(), page: page.into(), der: Bytes::from(der) })));
        Ok(())
    }

    /// The answer for one of its paths; nothing for others.
    pub(super) fn answer(&self, ctx: &RawCtx) -> Option<Result<Response>> {
        let papers = self.papers.load_full()?;
        let (content_type, bytes) = match ctx.uri.path() {
            "/ca.crt" => ("application/x-x509-ca-cert", &papers.der),
            "/ca.pem" => ("application/x-pem-file", &papers.pem),
            "/" if !self.has_client => ("text/html; charset=utf-8", &papers.page),
            _ => return None,
        };
        if ctx.method != Method::GET && ctx.method != Method::HEAD {
            return Some(Err(Error::method_not_allowed()));
        }
        Some(Ok(response(content_type, bytes, ctx.method == Method::GET)))
    }

    fn page(&self, fingerprint: &str) -> String {
        let (name, address) = (escaped(&self.server_name), escaped(&self.address));
        format!(
            "<!DOCTYPE html><html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width\"><title>{name}</title></head><body>\
             <h1>{name}</h1><p>This is a Matrix server. In a Matrix app, choose <b>{address}</b> as the homeserver.</p>\
             <p>If your device warns of this server, make it trust the authority of this site: \
             <a href=\"/ca.crt\">its certificate</a> (<a href=\"/ca.pem\">as PEM</a>).</p>\
             <p>Compare its SHA-256 fingerprint with the one on the server's console before you do:<br>\
             <code>{fingerprint}</code></p></body></html>\n"
        )
    }
}

/// Exactly one certificate and nothing else: a key in this file would be given to everybody.
fn only_certificate(text: &[u8]) -> Result<Vec<u8>, String> {
    let sections = text.windows(11).filter(|part| part == b"-----BEGIN ").count();
    let mut certificates = CertificateDer::pem_slice_iter(text);
    match (sections, certificates.next(), certificates.next()) {
        (1, Some(Ok(certificate)), None) => Ok(certificate.to_vec()),
        _ => Err("has to hold one certificate (PEM) and nothing else".to_owned()),
    }
}

/// As consoles and browsers show it: `AB:CD:…`.
fn fingerprint(der: &[u8]) -> String {
    let bytes: Vec<String> = digest(&SHA256, der).as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
    bytes.join(":")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn response(content_type: &'static str, bytes: &Bytes, whole: bool) -> Response {
    let mut response = Response::default();
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(bytes.len()));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"));
    if whole {
        *response.body_mut() = bytes.clone().into();
    }
    response
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use http::header;

    use super::*;
    use crate::App;
    use crate::http::Local;

    fn certificate() -> rcgen::CertifiedKey<rcgen::KeyPair> {
        rcgen::generate_simple_self_signed(vec!["authority".to_owned()]).unwrap()
    }

    fn client(file: &Path, change: impl FnOnce(&mut Config)) -> Result<Local, String> {
        let mut config = Config::new(ruma::owned_server_name!("hs.test"));
        config.web.authority = Some(file.to_path_buf());
        change(&mut config);
        let app = App::in_memory(config);
        app.web.load()?;
        Ok(Local::new(app.router()))
    }

    #[tokio::test]
    async fn people_can_take_the_certificate_before_they_trust_it() {
        let dir = tempfile::tempdir().unwrap();
        let made = certificate();
        let file = dir.path().join("ca.pem");
        fs::write(&file, made.cert.pem()).unwrap();
        let client = client(&file, |_| {}).unwrap();
        let answer = client.get("/ca.crt").await;
        assert_eq!(answer.headers[header::CONTENT_TYPE], "application/x-x509-ca-cert");
        assert_eq!(answer.body[..], made.cert.der()[..]);
        assert_eq!(client.get("/ca.pem").await.body[..], *made.cert.pem().as_bytes());
        let page = client.get("/").await;
        let text = String::from_utf8(page.body.to_vec()).unwrap();
        assert!(text.contains("https://hs.test") && text.contains(&fingerprint(made.cert.der())), "{text}");
        assert_eq!(client.get("/ca.key").await.status, StatusCode::NOT_FOUND);
        assert_eq!(client.post("/ca.crt", serde_json::json!({})).await.status, StatusCode::METHOD_NOT_ALLOWED);
    }

    #[tokio::test]
    async fn a_web_client_keeps_its_first_page() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("ca.pem"), certificate().cert.pem()).unwrap();
        fs::create_dir(dir.path().join("client")).unwrap();
        fs::write(dir.path().join("client/index.html"), "the client").unwrap();
        let in_dir = |config: &mut Config| config.web.dir = Some(dir.path().join("client"));
        let client = client(&dir.path().join("ca.pem"), in_dir).unwrap();
        assert_eq!(client.get("/").await.body[..], *b"the client");
        assert_eq!(client.get("/ca.crt").await.status, StatusCode::OK);
    }

    #[test]
    fn a_key_is_never_given_out() {
        let dir = tempfile::tempdir().unwrap();
        let made = certificate();
        let file = dir.path().join("ca.pem");
        let (cert, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        for bad in [format!("{cert}{key}"), format!("{key}{cert}"), key, format!("{cert}{cert}"), "no".to_owned()] {
            fs::write(&file, bad).unwrap();
            assert!(client(&file, |_| {}).is_err_and(|text| text.contains("one certificate")));
        }
        assert!(client(&dir.path().join("missing"), |_| {}).is_err());
    }
}
