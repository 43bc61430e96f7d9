//! How endpoints are registered. One table feeds the router, the generated endpoint list and the metrics.
//!
//! ```text
//! Routes::default()
//!     .ruma(account::whoami).guests()
//!     .ruma(session::login).limit(Class::Login)
//!     .ruma(sync::sync).poll().guests()
//!     .raw(Method::POST, &["/_matrix/media/v3/upload"], media::upload).access(Access::Token).limit(Class::Media)
//! ```
//! The modifiers change the endpoint before them.

use std::any::type_name;
use std::pin::Pin;

use bytes::Bytes;
use http::{Method, header};
use ruma::api::path_builder::PathBuilder;
use ruma::api::{IncomingRequest, IncomingRequestExt as _, OutgoingResponse, OutgoingResponseExt as _};
use smallvec::SmallVec;

use super::router::{Args, Prelude};
use super::{Body, Ctx, RawCtx, Response};
use crate::auth::{Access, Scheme};
use crate::error::{Error, Result};
use crate::limits::Class;

#[derive(Default)]
pub struct Routes {
    pub(super) endpoints: Vec<Endpoint>,
    /// For paths that none of them has.
    pub(super) otherwise: Option<Endpoint>,
}

/// One method on one or more paths.
pub struct Endpoint {
    pub method: Method,
    pub paths: Vec<String>,
    /// The handler's module path.
    pub name: &'static str,
    pub access: Access,
    pub class: Option<Class>,
    pub guests: bool,
    pub locked: bool,
    pub poll: bool,
    /// Answered while the server holds still for an update. What is shut by mistake makes a client ask again; what is open
    /// by mistake says that something is done, which a failed trial undoes.
    pub in_maintenance: bool,
    /// `None`: the usual limit of the settings.
    pub max_body: Option<usize>,
    pub(super) run: Run,
}

/// One line of the inventory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Operation {
    pub path: String,
    pub method: String,
    pub handler: &'static str,
    pub access: &'static str,
}

pub(super) type Pending = Pin<Box<dyn Future<Output = Result<Response>> + Send>>;

type ParseAndRun = dyn Fn(Prelude, http::Request<Bytes>, &Args) -> Result<Pending> + Send + Sync;

pub(super) enum Run {
    /// Gets the whole JSON body; parses it into a ruma type before anything is awaited.
    Parsed(Box<ParseAndRun>),
    /// Gets the body as a stream.
    Raw(Box<dyn Fn(RawCtx) -> Pending + Send + Sync>),
}

impl Routes {
    /// Registers a handler for an endpoint that ruma has types for, under every path of its history.
    pub fn ruma<R, F, A>(self, handler: F) -> Self
    where
        R: IncomingRequest + Send + 'static,
        R::Authentication: Scheme,
        F: Fn(Ctx<R>) -> A + Send + Sync + Clone + 'static,
        A: Future<Output = Result<R::OutgoingResponse>> + Send + 'static,
    {
        self.typed::<R, F>(move |prelude, request, args| {
            let answer = handler(parse::<R>(prelude, request, args)?);
            Ok(Box::pin(async move { encode(answer.await?) }))
        })
    }

    /// The same for a handler that builds its answer itself.
    pub fn ruma_answering<R, F, A>(self, handler: F) -> Self
    where
        R: IncomingRequest + Send + 'static,
        R::Authentication: Scheme,
        F: Fn(Ctx<R>) -> A + Send + Sync + Clone + 'static,
        A: Future<Output = Result<Response>> + Send + 'static,
    {
        self.typed::<R, F>(move |prelude, request, args| Ok(Box::pin(handler(parse::<R>(prelude, request, args)?))))
    }

    fn typed<R, F>(
        mut self,
        run: impl Fn(Prelude, http::Request<Bytes>, &Args) -> Result<Pending> + Send + Sync + 'static,
    ) -> Self
    where
        R: IncomingRequest,
        R::Authentication: Scheme,
    {
        let paths = R::PATH_BUILDER.all_paths().flat_map(spellings).collect();
        self.endpoints.push(Endpoint {
            method: R::METHOD,
            paths,
            name: type_name::<F>(),
            access: R::Authentication::ACCESS,
            class: R::RATE_LIMITED.then_some(Class::Other),
            guests: R::Authentication::ACCESS != Access::Token,
            locked: false,
            poll: false,
            in_maintenance: false,
            max_body: None,
            run: Run::Parsed(Box::new(run)),
        });
        self
    }

    /// Registers a handler that reads its request and builds its answer itself. Open to anyone unless `access` says
    /// otherwise, and never rate limited unless `limit` does.
    pub fn raw<F, A>(mut self, method: Method, paths: &[&str], handler: F) -> Self
    where
        F: Fn(RawCtx) -> A + Send + Sync + 'static,
        A: Future<Output = Result<Response>> + Send + 'static,
    {
        self.endpoints.push(Endpoint {
            method,
            paths: paths.iter().map(|path| (*path).to_owned()).collect(),
            name: type_name::<F>(),
            access: Access::Anyone,
            class: None,
            guests: false,
            locked: false,
            poll: false,
            in_maintenance: false,
            max_body: None,
            run: Run::Raw(Box::new(move |ctx| Box::pin(handler(ctx)))),
        });
        self
    }

    /// More endpoints, from another module.
    pub fn join(mut self, more: Routes) -> Self {
        self.endpoints.extend(more.endpoints);
        self.otherwise = self.otherwise.or(more.otherwise);
        self
    }

    /// A handler for every path that no endpoint has, whatever the method. It stands in no inventory.
    pub fn otherwise<F, A>(mut self, handler: F) -> Self
    where
        F: Fn(RawCtx) -> A + Send + Sync + 'static,
        A: Future<Output = Result<Response>> + Send + 'static,
    {
        self.otherwise = Self::default().raw(Method::GET, &["(other)"], handler).in_maintenance().endpoints.pop();
        self
    }

    /// For `raw`: who may call it. (The endpoints of `ruma` bring this along.)
    pub fn access(self, access: Access) -> Self {
        self.last(|endpoint| endpoint.access = access)
    }

    /// The rate limit class, instead of the one ruma's metadata suggests.
    pub fn limit(self, class: Class) -> Self {
        self.last(|endpoint| endpoint.class = Some(class))
    }

    pub fn unlimited(self) -> Self {
        self.last(|endpoint| endpoint.class = None)
    }

    /// Guests may call it.
    pub fn guests(self) -> Self {
        self.last(|endpoint| endpoint.guests = true)
    }

    /// Locked accounts may call it (logging out).
    pub fn locked(self) -> Self {
        self.last(|endpoint| endpoint.locked = true)
    }

    /// It may wait long: it runs with its connection whatever the method, and ends when the client hangs up.
    pub fn poll(self) -> Self {
        self.last(|endpoint| endpoint.poll = true)
    }

    /// It is answered while the server holds still for an update: it changes nothing.
    pub fn in_maintenance(self) -> Self {
        self.last(|endpoint| endpoint.in_maintenance = true)
    }

    /// What is answered while the server holds still for an update.
    pub fn answered_in_maintenance(&self) -> impl Iterator<Item = (&Method, &str)> {
        let open = self.endpoints.iter().filter(|endpoint| endpoint.in_maintenance);
        open.flat_map(|endpoint| endpoint.paths.iter().map(|path| (&endpoint.method, path.as_str())))
    }

    /// The largest body of a `ruma` endpoint.
    pub fn max_body(self, bytes: usize) -> Self {
        self.last(|endpoint| endpoint.max_body = Some(bytes))
    }

    fn last(mut self, change: impl FnOnce(&mut Endpoint)) -> Self {
        if let Some(endpoint) = self.endpoints.last_mut() {
            change(endpoint);
        }
        self
    }

    /// Who may call any of these.
    pub fn guard(mut self, access: Access) -> Self {
        self.endpoints.iter_mut().for_each(|endpoint| endpoint.access = access);
        self
    }

    /// The rate limit classes that are in use.
    pub fn classes(&self) -> impl Iterator<Item = Class> {
        self.endpoints.iter().filter_map(|endpoint| endpoint.class)
    }

    /// The rate limit class of an endpoint; `None` also for one that is not there.
    pub fn class_of(&self, method: &str, path: &str) -> Option<Class> {
        let is = |endpoint: &&Endpoint| endpoint.method == method && endpoint.paths.iter().any(|known| known == path);
        self.endpoints.iter().find(is)?.class
    }

    /// Everything that is registered, sorted by path.
    pub fn inventory(&self) -> Vec<Operation> {
        let mut operations: Vec<Operation> = self.endpoints.iter().flat_map(Endpoint::operations).collect();
        operations.sort();
        operations
    }
}

impl Endpoint {
    /// The path that names the endpoint in metrics and logs: the newest one.
    pub fn route(&self) -> &str {
        let stable = self.paths.iter().rev().find(|path| !path.contains("/unstable/") && !path.ends_with('/'));
        stable.or(self.paths.first()).map_or("", String::as_str)
    }

    fn operations(&self) -> impl Iterator<Item = Operation> + '_ {
        self.paths.iter().map(|path| Operation {
            path: path.clone(),
            method: self.method.to_string(),
            handler: self.name,
            access: match self.access {
                Access::Anyone => "anyone",
                Access::OptionalToken => "token if any",
                Access::Token => "token",
                Access::AppserviceToken => "appservice",
                Access::AppserviceTokenIfAny => "appservice token if any",
                Access::Admin => "administrator",
            },
        })
    }

    /// Whether a client that hangs up must not stop it halfway.
    pub(super) fn detached(&self) -> bool {
        self.method != Method::GET && !self.poll
    }
}

/// A state key that comes last may be empty, and then its slash may be missing too.
fn spellings(path: &str) -> SmallVec<[String; 3]> {
    let mut spellings = SmallVec::from_iter([path.to_owned()]);
    if let Some(start) = path.strip_suffix("/{state_key}") {
        spellings.push(format!("{start}/"));
        spellings.push(start.to_owned());
    }
    spellings
}

fn parse<R>(prelude: Prelude, request: http::Request<Bytes>, args: &Args) -> Result<Ctx<R>>
where
    R: IncomingRequest,
    R::Authentication: Scheme,
{
    let (parts, body) = request.into_parts();
    let uri = parts.uri.clone();
    let args = args.decode(uri.path())?;
    let args: SmallVec<[&str; 4]> = args.iter().map(AsRef::as_ref).collect();
    let mut query = Box::default();
    let mut user_agent = Box::default();
    if let Some(text) = parts.uri.query() {
        query = Box::from(text);
    }
    if parts.method != Method::GET {
        let agent = parts.headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok());
        user_agent = Box::from(agent.unwrap_or(""));
    }
    let mut parsed = http::Request::from_parts(parts, body.as_ref());
    if *parsed.method() == Method::HEAD {
        *parsed.method_mut() = Method::GET;
    }
    Ok(Ctx {
        request: R::try_from_http_request(parsed, &args)?,
        requester: R::Authentication::accept(prelude.requester)?,
        app: prelude.app,
        ip: prelude.ip,
        query,
        user_agent,
        body,
    })
}

fn encode(response: impl OutgoingResponse) -> Result<Response> {
    let response: http::Response<Vec<u8>> = response.try_into_http_response().map_err(Error::from)?;
    Ok(response.map(Body::from))
}
