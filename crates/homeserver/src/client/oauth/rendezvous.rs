//! Two devices meet before one of them is logged in, to log in by a QR code (MSC4108, the form of 2024 that clients speak).
//!
//! Who made a meeting point tells its URL to the other by the code. Nobody has to be logged in for it.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue, StatusCode, header};
use ruma::http_headers::system_time_to_http_date;
use serde_json::json;

use crate::auth::oauth::rendezvous::{MAX_TEXT_BYTES, Point, Unwritten};
use crate::error::{Error, Result};
use crate::http::{Body, RawCtx, Response, json_response};

pub(super) const PATH: &str = "/_matrix/client/unstable/org.matrix.msc4108/rendezvous";
pub(super) const POINT: &str = "/_matrix/client/unstable/org.matrix.msc4108/rendezvous/{name}";

pub(super) async fn open(mut ctx: RawCtx) -> Result<Response> {
    let site = ctx.app.auth.oauth.site()?.clone();
    let text = text_of(&mut ctx).await?;
    let (name, point) = ctx.app.auth.oauth.points.open(&ctx.app, &text, ctx.ip)?;
    let body = json!({ "url": site.url(&format!("{PATH}/{name}")) });
    about(json_response(StatusCode::CREATED, body.to_string()), &point)
}

pub(super) async fn read(ctx: RawCtx) -> Result<Response> {
    ctx.app.auth.oauth.site()?;
    let point = ctx.app.auth.oauth.points.read(&ctx.app, ctx.arg(0)).ok_or_else(gone)?;
    let known = ctx.headers.get_all(header::IF_NONE_MATCH).iter().any(|tags| names(tags, &point.tag()));
    if known {
        return about(empty(StatusCode::NOT_MODIFIED), &point);
    }
    let mut response = Response::new(Body::from(point.text.as_bytes().to_vec()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    about(response, &point)
}

pub(super) async fn write(mut ctx: RawCtx) -> Result<Response> {
    ctx.app.auth.oauth.site()?;
    let seen = ctx.headers.get(header::IF_MATCH).ok_or_else(|| Error::missing_param("If-Match is missing"))?;
    let seen = seen.to_str().map_err(|_| Error::invalid_param("If-Match is no entity tag"))?.to_owned();
    let text = text_of(&mut ctx).await?;
    match ctx.app.auth.oauth.points.write(&ctx.app, ctx.arg(0), &seen, &text) {
        Ok(point) => about(empty(StatusCode::ACCEPTED), &point),
        Err(Unwritten::Changed(point)) => about(Error::concurrent_write().into(), &point),
        Err(Unwritten::Gone) => Err(gone()),
    }
}

pub(super) async fn close(ctx: RawCtx) -> Result<Response> {
    ctx.app.auth.oauth.site()?;
    if ctx.app.auth.oauth.points.close(&ctx.app, ctx.arg(0)) { Ok(empty(StatusCode::NO_CONTENT)) } else { Err(gone()) }
}

fn gone() -> Error {
    Error::not_found("Nobody meets here, or nobody any more")
}

async fn text_of(ctx: &mut RawCtx) -> Result<String> {
    let kind = ctx.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("");
    let kind = kind.split(';').next().unwrap_or("").trim();
    if !kind.is_empty() && !kind.eq_ignore_ascii_case("text/plain") {
        return Err(Error::invalid_param("Only text/plain can be left here"));
    }
    let within: Duration = ctx.app.config.http.body_timeout.get();
    let bytes = std::mem::take(&mut ctx.body).collect(MAX_TEXT_BYTES, within).await?;
    String::from_utf8(bytes.into()).map_err(|_| Error::invalid_param("The text is not UTF-8"))
}

/// Whether a list of entity tags has this one.
fn names(tags: &HeaderValue, tag: &str) -> bool {
    tags.to_str().is_ok_and(|tags| tags.split(',').any(|known| known.trim() == tag))
}

fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// Adds what is said of a point in every answer. Nothing between the two devices may keep one.
fn about(mut response: Response, point: &Point) -> Result<Response> {
    let headers: &mut HeaderMap = response.headers_mut();
    headers.insert(header::ETAG, HeaderValue::from_str(&point.tag()).map_err(Error::internal)?);
    headers.insert(header::EXPIRES, date(point.ends_ms)?);
    headers.insert(header::LAST_MODIFIED, date(point.written_ms)?);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::PRAGMA, HeaderValue::from_static("no-cache"));
    Ok(response)
}

fn date(ms: u64) -> Result<HeaderValue> {
    system_time_to_http_date(&(SystemTime::UNIX_EPOCH + Duration::from_millis(ms))).map_err(Error::internal)
}
