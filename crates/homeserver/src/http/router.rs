//! From a request to an answer.
//!
//! Order: match the path; answer OPTIONS; look the token up; rate limit; read and check the body; parse; run. Whatever
//! comes out, an error included, gets the CORS headers, is counted and, if it went wrong inside, logged.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use percent_encoding::percent_decode_str;
use smallvec::SmallVec;
use tracing::Instrument as _;

use super::json::check_object;
use super::routes::{Endpoint, Pending, Run};
use super::{Body, RawCtx, Request, Response, Routes, SameOrigin};
use crate::App;
use crate::auth::{self, Access, Credentials, Requester};
use crate::error::{Error, Result};
use crate::limits::Owner;
use crate::metrics::RouteMetrics;

/// Answers requests. Cheap to clone.
#[derive(Clone)]
pub struct Router(Arc<Inner>);

struct Inner {
    app: App,
    endpoints: Vec<(Endpoint, RouteMetrics)>,
    paths: matchit::Router<Methods>,
    otherwise: Option<(Endpoint, RouteMetrics)>,
    unmatched: RouteMetrics,
    requests: AtomicU64,
}

/// The endpoints of one path: almost always one or two.
#[derive(Default)]
struct Methods(SmallVec<[(Method, u16); 2]>);

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    pub ip: IpAddr,
}

impl Default for Client {
    fn default() -> Self {
        Self { ip: IpAddr::V4(Ipv4Addr::LOCALHOST) }
    }
}

/// What is known of a request before its own parsing.
pub(super) struct Prelude {
    pub(super) app: App,
    pub(super) requester: Option<Requester>,
    pub(super) ip: IpAddr,
}

/// Path arguments as places in the path, still encoded.
pub(super) struct Args(SmallVec<[(u32, u32); 4]>);

/// How long a long poll may go on once the server is stopping.
const POLL_GRACE: Duration = Duration::from_millis(300);

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

impl Router {
    /// Fails when two endpoints claim the same path and method.
    pub fn new(app: App, routes: Routes) -> Result<Self, String> {
        let mut by_path: BTreeMap<String, Methods> = BTreeMap::new();
        for (index, endpoint) in routes.endpoints.iter().enumerate() {
            let index = u16::try_from(index).map_err(|_| "too many endpoints".to_owned())?;
            for path in &endpoint.paths {
                by_path.entry(positional(path)).or_default().add(&endpoint.method, index, path)?;
            }
        }
        let mut paths = matchit::Router::new();
        for (path, methods) in by_path {
            paths.insert(path.as_str(), methods).map_err(|cause| format!("{path}: {cause}"))?;
        }
        let measured = |endpoint: Endpoint| {
            let metrics = app.metrics.route(&endpoint.method, endpoint.route());
            (endpoint, metrics)
        };
        Ok(Self(Arc::new(Inner {
            endpoints: routes.endpoints.into_iter().map(measured).collect(),
            otherwise: routes.otherwise.map(measured),
            unmatched: app.metrics.route(&Method::GET, "(none)"),
            paths,
            app,
            requests: AtomicU64::new(0),
        })))
    }

    pub fn app(&self) -> &App {
        &self.0.app
    }

    /// Answers one request. Never fails: what goes wrong is an answer too.
    pub fn call(&self, request: Request, client: Client) -> impl Future<Output = Response> + Send + use<> {
        // Boxed at once: a future has room for each place that it is passed through, also while a poll waits.
        self.clone().answer(Box::new(request), client)
    }

    async fn answer(self, request: Box<Request>, client: Client) -> Response {
        let inner = &*self.0;
        let started = inner.app.clock.monotonic();
        let number = inner.requests.fetch_add(1, Ordering::Relaxed);
        let (endpoint, outcome) = match inner.find(&request) {
            Found::Preflight => return preflight(),
            Found::Nothing(error) => (None, Err(error)),
            Found::Endpoint(endpoint, args) => {
                let span = tracing::info_span!("request", id = number, method = %endpoint.0.method, route = endpoint.0.route());
                (Some(endpoint), inner.serve(&endpoint.0, request, args, client).instrument(span).await)
            }
        };
        let mut response = outcome.unwrap_or_else(Response::from);
        if response.extensions().get::<SameOrigin>().is_none() {
            add_cors(response.headers_mut());
        }
        if !response.status().is_success() {
            add_request_id(response.headers_mut(), number);
        }
        let metrics = endpoint.map_or(&inner.unmatched, |(_, metrics)| metrics);
        metrics.observe(response.status(), inner.app.clock.monotonic().saturating_sub(started));
        response
    }
}

enum Found<'a> {
    Endpoint(&'a (Endpoint, RouteMetrics), Args),
    Preflight,
    Nothing(Error),
}

impl Inner {
    fn find(&self, request: &Request) -> Found<'_> {
        if request.method() == Method::OPTIONS {
            return Found::Preflight;
        }
        let path = request.uri().path();
        let Ok(matched) = self.paths.at(path) else {
            let otherwise = self.otherwise.as_ref().map(|endpoint| Found::Endpoint(endpoint, Args(SmallVec::new())));
            return otherwise.unwrap_or_else(|| Found::Nothing(Error::unrecognized()));
        };
        let wanted = if request.method() == Method::HEAD { &Method::GET } else { request.method() };
        let index = matched.value.0.iter().find(|(method, _)| method == wanted).map(|(_, index)| usize::from(*index));
        match index.and_then(|index| self.endpoints.get(index)) {
            Some(endpoint) => Found::Endpoint(endpoint, Args::of(path, &matched.params)),
            None => Found::Nothing(Error::method_not_allowed()),
        }
    }

    async fn serve(&self, endpoint: &Endpoint, request: Box<Request>, args: Args, client: Client) -> Result<Response> {
        if self.app.maintenance.is_on() && !endpoint.in_maintenance {
            return Err(Error::maintenance());
        }
        // Boxed, so that its room is given back before a long wait.
        let answer = Box::pin(self.admit(endpoint, request, args, client)).await?;
        match endpoint.detached() {
            true => self.detached(answer).await,
            false if endpoint.poll => self.poll(answer).await,
            false => attached(answer).await,
        }
    }

    /// Everything up to the handler's own future. The request is gone when this returns: what a long poll holds on to
    /// is what its handler keeps.
    async fn admit(&self, endpoint: &Endpoint, request: Box<Request>, args: Args, client: Client) -> Result<Pending> {
        let app = self.app.clone();
        let credentials = match endpoint.access {
            // Clients with an old token open accounts and log in, too.
            Access::AppserviceTokenIfAny => {
                Credentials::extract(request.headers(), request.uri().query()).ok().flatten()
            }
            Access::Anyone => None,
            _ => Credentials::extract(request.headers(), request.uri().query())?,
        };
        let requester = self.requester(endpoint, credentials, client.ip).await?;
        self.limit(endpoint, requester.as_ref(), client.ip)?;
        match &endpoint.run {
            Run::Raw(run) => {
                let (parts, body) = (*request).into_parts();
                let args = args.decode(parts.uri.path())?.into_iter().map(Cow::into_owned).collect();
                let (method, uri, headers) = (parts.method, parts.uri, parts.headers);
                Ok(run(RawCtx { app, method, uri, headers, args, body, requester, ip: client.ip }))
            }
            Run::Parsed(run) => {
                let request = self.read_body(endpoint, *request).await?;
                let prelude = Prelude { app, requester, ip: client.ip };
                // Reading a request is not ours alone either: one that makes ruma panic is an answer, too.
                let read = AssertUnwindSafe(|| run(prelude, request, &args));
                std::panic::catch_unwind(read).unwrap_or_else(|panic| Err(panicked(panic.as_ref())))
            }
        }
    }

    async fn requester(
        &self,
        endpoint: &Endpoint,
        credentials: Option<Credentials>,
        ip: IpAddr,
    ) -> Result<Option<Requester>> {
        if endpoint.access == Access::AppserviceTokenIfAny {
            return Ok(credentials.and_then(|credentials| auth::appservice::itself(&self.app, &credentials)));
        }
        let Some(credentials) = credentials else {
            let needless = matches!(endpoint.access, Access::Anyone | Access::OptionalToken);
            return if needless { Ok(None) } else { Err(Error::missing_token()) };
        };
        let requester = auth::authenticate(&self.app, &credentials, ip).await?;
        if requester.locked && !endpoint.locked {
            return Err(Error::user_locked());
        }
        if requester.guest && !endpoint.guests {
            return Err(Error::guest_forbidden());
        }
        if endpoint.access == Access::Admin && !requester.admin {
            return Err(Error::forbidden("Only administrators may do this"));
        }
        if endpoint.access == Access::AppserviceToken && requester.appservice.is_none() {
            return Err(Error::forbidden("Only application services may do this"));
        }
        Ok(Some(requester))
    }

    fn limit(&self, endpoint: &Endpoint, requester: Option<&Requester>, ip: IpAddr) -> Result<()> {
        let Some(class) = endpoint.class else { return Ok(()) };
        match requester {
            Some(requester) if !requester.rate_limited => Ok(()),
            Some(requester) => self.app.limits.check(class, Owner::User(&requester.user_id)),
            None => self.app.limits.check(class, Owner::Address(ip)),
        }
    }

    /// The whole body of a JSON endpoint. A GET has none, whatever it sends along.
    async fn read_body(&self, endpoint: &Endpoint, request: Request) -> Result<http::Request<Bytes>> {
        let (parts, body) = request.into_parts();
        if endpoint.method == Method::GET {
            return Ok(http::Request::from_parts(parts, Bytes::new()));
        }
        let settings = &self.app.config.http;
        let limit = endpoint.max_body.unwrap_or(settings.max_body.as_usize());
        let mut bytes = body.collect(limit, settings.body_timeout.get()).await?;
        if bytes.is_empty() {
            bytes = Bytes::from_static(b"{}");
        } else {
            check_object(&bytes)?;
        }
        Ok(http::Request::from_parts(parts, bytes))
    }

    /// A handler that watches `App::shutdown` answers by itself when the server stops; one that does not is cut off.
    async fn poll(&self, answer: Pending) -> Result<Response> {
        let _open = self.app.metrics.poll_opened();
        let stopping = async {
            self.app.shutdown.cancelled().await;
            tokio::time::sleep(POLL_GRACE).await;
        };
        tokio::select! {
            outcome = attached(answer) => outcome,
            () = stopping => Err(Error::unavailable("The server is stopping")),
        }
    }

    /// Runs to its end whether or not anybody still waits for the answer.
    async fn detached(&self, answer: Pending) -> Result<Response> {
        let task = self.app.tasks.spawn(answer.in_current_span());
        match task.await {
            Ok(outcome) => outcome,
            Err(failure) if failure.is_panic() => Err(panicked(failure.into_panic().as_ref())),
            Err(_) => Err(Error::unavailable("The server is stopping")),
        }
    }
}

/// Ends when the client hangs up.
async fn attached(answer: Pending) -> Result<Response> {
    AssertUnwindSafe(answer).catch_unwind().await.unwrap_or_else(|panic| Err(panicked(panic.as_ref())))
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Error {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text");
    Error::internal(format!("a handler panicked: {text}"))
}

impl Methods {
    fn add(&mut self, method: &Method, endpoint: u16, path: &str) -> Result<(), String> {
        if self.0.iter().any(|(known, _)| known == method) {
            return Err(format!("{method} {path} is registered twice"));
        }
        self.0.push((method.clone(), endpoint));
        Ok(())
    }
}

/// Names of arguments differ between endpoints of one path; their places do not.
fn positional(path: &str) -> String {
    let name = |(index, segment): (usize, &str)| match segment.strip_prefix('{') {
        Some(name) if name.starts_with('*') => format!("{{*p{index}}}"),
        Some(_) => format!("{{p{index}}}"),
        None => segment.to_owned(),
    };
    path.split('/').enumerate().map(name).collect::<Vec<_>>().join("/")
}

impl Args {
    fn of(path: &str, params: &matchit::Params<'_, '_>) -> Self {
        let start = path.as_ptr() as usize;
        let place = |value: &str| {
            let from = value.as_ptr() as usize - start;
            (from as u32, (from + value.len()) as u32)
        };
        Self(params.iter().map(|(_, value)| place(value)).collect())
    }

    /// Percent-decodes every argument, once.
    pub(super) fn decode<'a>(&self, path: &'a str) -> Result<SmallVec<[Cow<'a, str>; 4]>> {
        let decode = |(from, to): &(u32, u32)| {
            let encoded = path.get(*from as usize..*to as usize).unwrap_or("");
            percent_decode_str(encoded).decode_utf8().map_err(|_| Error::invalid_param("The path is not UTF-8"))
        };
        self.0.iter().map(decode).collect()
    }
}

/// The answer to every OPTIONS: no endpoint is asked, no token is looked at.
fn preflight() -> Response {
    let mut response = http::Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    add_cors(response.headers_mut());
    let day = HeaderValue::from_static("86400");
    response.headers_mut().insert(header::ACCESS_CONTROL_MAX_AGE, day);
    response
}

fn add_cors(headers: &mut HeaderMap) {
    const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, PUT, DELETE, OPTIONS");
    const HEADERS: HeaderValue =
        HeaderValue::from_static("X-Requested-With, Content-Type, Authorization, If-Match, If-None-Match");
    const EXPOSED: HeaderValue = HeaderValue::from_static("ETag, Retry-After, X-Request-Id");
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HEADERS);
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
}

fn add_request_id(headers: &mut HeaderMap, number: u64) {
    headers.insert(REQUEST_ID, HeaderValue::from(number));
}
