//! A client without sockets: requests straight into the router, for tests and simulations.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, header};
use serde_json::Value;

use super::{Body, Client, Request, Router};

#[derive(Clone)]
pub struct Local {
    router: Router,
    token: Option<String>,
    client: Client,
}

/// An answer, read to its end.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Local {
    pub fn new(router: Router) -> Self {
        Self { router, token: None, client: Client::default() }
    }

    /// The same client, logged in.
    pub fn with_token(&self, token: impl Into<String>) -> Self {
        Self { token: Some(token.into()), ..self.clone() }
    }

    /// The same client at another address.
    pub fn from(&self, ip: IpAddr) -> Self {
        Self { client: Client { ip }, ..self.clone() }
    }

    pub fn router(&self) -> &Router {
        &self.router
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, Body::empty()).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(Method::POST, path, Body::from(body.to_string())).await
    }

    pub async fn put(&self, path: &str, body: Value) -> Answer {
        self.send(Method::PUT, path, Body::from(body.to_string())).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, Body::empty()).await
    }

    pub async fn send(&self, method: Method, path: &str, body: impl Into<Body>) -> Answer {
        let mut request = Request::new(body.into());
        *request.method_mut() = method;
        // A path that is no path is answered like one that nobody registered.
        *request.uri_mut() = path.parse().unwrap_or_default();
        self.request(request).await
    }

    /// Any request; the token is added.
    pub async fn request(&self, mut request: Request) -> Answer {
        if let Some(value) = self.token.as_ref().and_then(|token| format!("Bearer {token}").parse().ok()) {
            request.headers_mut().insert(header::AUTHORIZATION, value);
        }
        let (parts, body) = self.router.call(request, self.client).await.into_parts();
        let body = body.collect(usize::MAX, Duration::from_secs(60)).await.unwrap_or_default();
        Answer { status: parts.status, headers: parts.headers, body }
    }
}

impl Answer {
    /// The body as JSON; `null` if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The `errcode` of the body, or the empty string.
    pub fn errcode(&self) -> String {
        self.json().get("errcode").and_then(Value::as_str).unwrap_or_default().to_owned()
    }
}
