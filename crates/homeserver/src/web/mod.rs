//! A web client on board: the files of a folder, under the same origin as the Matrix API.
//!
//! - `site.rs`: which files there are. The folder is read once (and again on SIGHUP) into a list of names; what a
//!   request asks for is looked up there and never becomes a path, so that there is nothing to climb out of.
//! - `headers.rs`: what is said about them: type, how long to keep, what the page may load, which encoding.
//! - `config.rs`: the client's `config.json`, made from our settings.
//! - `authority.rs`: the certificate that people's devices have to trust, and a first page without a client.
//!
//! Not here: a client. Any will do that is made of static files.

mod authority;
mod config;
mod headers;
mod site;

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_LENGTH, LOCATION};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use percent_encoding::percent_decode_str;

use self::authority::Authority;
use self::site::{Content, Page, Site, Stored};
use crate::config::{Config, RESERVED_PATHS};
use crate::error::{Error, Result};
use crate::http::{Body, RawCtx, Response};
use crate::media::files::{Reading, blocking};

/// The client that is served, if any.
pub struct Web {
    /// Where it lies, and the path it is served under, which begins and ends with a slash.
    place: Option<(PathBuf, String)>,
    site: ArcSwapOption<Site>,
    config_json: Bytes,
    policy: headers::Policy,
    authority: Authority,
}

impl Web {
    /// Nothing is read yet.
    pub fn new(config: &Config) -> Self {
        let settings = &config.web;
        Self {
            place: settings.dir.clone().map(|dir| (dir, settings.base_path())),
            site: ArcSwapOption::empty(),
            config_json: config::config_json(config),
            policy: headers::Policy::new(config),
            authority: Authority::new(config),
        }
    }

    pub fn is_on(&self) -> bool {
        self.place.is_some() || self.authority.is_on()
    }

    /// Reads the folder, and serves what is there from now on. If it cannot be read, what was served before stays.
    /// Blocks.
    pub fn load(&self) -> Result<(), String> {
        self.authority.load()?;
        let Some((dir, _)) = &self.place else { return Ok(()) };
        let site = Site::read(dir, &self.policy, self.config_json.clone())
            .map_err(|cause| format!("web client {}: {cause}", dir.display()))?;
        tracing::info!(dir = %dir.display(), files = site.len(), "web client");
        self.site.store(Some(Arc::new(site)));
        Ok(())
    }
}

/// Answers every path that no endpoint has.
pub async fn serve(ctx: RawCtx) -> Result<Response> {
    let web = &ctx.app.web;
    if let Some(answer) = web.authority.answer(&ctx) {
        return answer;
    }
    let (Some((_, base)), Some(site)) = (&web.place, web.site.load_full()) else { return Err(Error::unrecognized()) };
    let path = ctx.uri.path();
    let Some(asked) = Asked::of(path, base) else { return Err(Error::unrecognized()) };
    if ctx.method != Method::GET && ctx.method != Method::HEAD {
        return Err(Error::method_not_allowed());
    }
    let name = match asked {
        Asked::File(name) => name,
        Asked::Base => return Ok(redirect(base, ctx.uri.query())),
    };
    let page = match name.as_deref().and_then(|name| site.find(name)) {
        Some(page) => page,
        // The client knows its own paths: whoever opens one in a browser gets the client.
        None if is_navigation(&ctx.headers) => site.index(),
        None => return Err(Error::unrecognized()),
    };
    send(page, &ctx.method, &ctx.headers).await
}

/// What a path means.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    /// Perhaps the file of this name; `None` if no file can be meant.
    File(Option<String>),
    /// The place of the client without its last slash, where relative links would lead elsewhere.
    Base,
}

impl Asked {
    /// `None`: nothing of the client's.
    fn of(path: &str, base: &str) -> Option<Self> {
        let Some(rest) = path.strip_prefix(base) else {
            return (base.strip_suffix('/') == Some(path)).then_some(Self::Base);
        };
        let mut names = Vec::new();
        let mut is_file = true;
        let mut segments = rest.split('/').peekable();
        while let Some(encoded) = segments.next() {
            let name = percent_decode_str(encoded).decode_utf8().ok()?;
            let last = segments.peek().is_none();
            if (name.is_empty() && !last) || name == "." || name == ".." || name.contains(['\0', '\\']) {
                return None;
            }
            // The name of a room may hold a slash, that of a file cannot.
            is_file &= !name.contains('/');
            names.push(name.into_owned());
        }
        let whole = format!("/{}", names.join("/"));
        if base == "/" && RESERVED_PATHS.iter().any(|reserved| is_below(&whole, reserved)) {
            return None;
        }
        if names.last().is_some_and(String::is_empty) {
            names.pop();
            names.push("index.html".to_owned());
        }
        Some(Self::File(is_file.then(|| names.join("/"))))
    }
}

/// Whether a path is that place or something in it.
fn is_below(path: &str, place: &str) -> bool {
    path.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// A page that is opened, not something that a page loads: only for the former, browsers ask for HTML.
fn is_navigation(headers: &HeaderMap) -> bool {
    headers.get_all(ACCEPT).iter().any(|value| value.as_bytes().windows(9).any(|part| part == b"text/html"))
}

fn redirect(base: &str, query: Option<&str>) -> Response {
    let to = query.map_or(base.to_owned(), |query| format!("{base}?{query}"));
    let mut response = Response::default();
    *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
    if let Ok(to) = HeaderValue::from_str(&to) {
        response.headers_mut().insert(LOCATION, to);
    }
    response
}

async fn send(page: &Page, method: &Method, asked: &HeaderMap) -> Result<Response> {
    let (content, encoding) = page.content_for(asked);
    let mut response = Response::default();
    headers::describe(page, content, encoding, response.headers_mut());
    if headers::has_already(asked, content) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return Ok(response);
    }
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(content.size));
    if method == Method::GET {
        *response.body_mut() = body(content).await?;
    }
    Ok(response)
}

async fn body(content: &Content) -> Result<Body> {
    let file = match &content.stored {
        Stored::Memory(bytes) => return Ok(bytes.clone().into()),
        Stored::File(file) => file.clone(),
    };
    let size = content.size;
    let opened = blocking(move || {
        let open = File::open(&file.path)?;
        let metadata = open.metadata()?;
        if metadata.len() != size || metadata.modified()? != file.modified {
            return Err(io::Error::other("the file has changed"));
        }
        Reading::of(open, size)
    });
    match opened.await {
        Ok(reading) => Ok(match reading.whole() {
            Ok(bytes) => bytes.into(),
            Err(reading) => Body::stream(reading.pieces(), Some(size)),
        }),
        Err(cause) => {
            tracing::warn!(%cause, "a file of the web client is not what it was; SIGHUP reads the folder anew");
            Err(Error::unavailable("The web client is being replaced"))
        }
    }
}

#[cfg(test)]
mod tests;
