//! The least HTTP client that can tell an answer from a server that went away.

use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

type Bytes = hyper::body::Bytes;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// The connection broke before the whole answer was there: nobody knows whether the request was carried out.
#[derive(Debug)]
pub struct Gone;

pub struct Reply {
    pub status: u16,
    pub body: Bytes,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {:?}", self.body))
    }
}

/// One account's connection to the server.
#[derive(Clone)]
pub struct Session {
    http: Client<HttpConnector, Full<Bytes>>,
    url: String,
    token: String,
    pub user_id: String,
}

impl Session {
    /// Registers an account.
    pub async fn register(url: &str, name: &str) -> Self {
        let http = Client::builder(TokioExecutor::new()).build_http();
        let mut session = Self { http, url: url.to_owned(), token: String::new(), user_id: String::new() };
        let body = json!({ "username": name, "password": "crash test", "auth": { "type": "m.login.dummy" } });
        let answer = session.ok("POST", "/v3/register", &body).await;
        session.token = answer["access_token"].as_str().unwrap().to_owned();
        session.user_id = answer["user_id"].as_str().unwrap().to_owned();
        session
    }

    /// A request below `/_matrix/client`; any status is an answer.
    pub async fn call(&self, method: &str, path: &str, body: &Value) -> Result<Reply, Gone> {
        let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        self.bytes(method, &format!("/_matrix/client{path}"), "application/json", body).await
    }

    pub async fn bytes(&self, method: &str, path: &str, content_type: &str, body: Bytes) -> Result<Reply, Gone> {
        let mut request = hyper::Request::builder().method(method).uri(format!("{}{path}", self.url));
        if !self.token.is_empty() {
            request = request.header("authorization", format!("Bearer {}", self.token));
        }
        let request = request.header("content-type", content_type).body(Full::new(body)).unwrap();
        let exchange = async {
            let (head, body) = self.http.request(request).await.map_err(|_| Gone)?.into_parts();
            let body = body.collect().await.map_err(|_| Gone)?.to_bytes();
            Ok(Reply { status: head.status.as_u16(), body })
        };
        match tokio::time::timeout(REQUEST_TIMEOUT, exchange).await {
            Ok(outcome) => outcome,
            Err(_) => panic!("{method} {path}: no answer for {REQUEST_TIMEOUT:?}"),
        }
    }

    /// A request that must succeed.
    pub async fn ok(&self, method: &str, path: &str, body: &Value) -> Value {
        let reply = self.call(method, path, body).await;
        let reply = reply.unwrap_or_else(|Gone| panic!("{method} {path}: the server went away"));
        assert_eq!(reply.status, 200, "{method} {path}: {}", String::from_utf8_lossy(&reply.body));
        reply.json()
    }
}

/// Percent-encodes one part of a path.
pub fn part(text: &str) -> String {
    text.bytes()
        .map(|b| {
            if b.is_ascii_alphanumeric() || b"-._~".contains(&b) {
                char::from(b).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect()
}
