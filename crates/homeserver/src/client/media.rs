//! The media endpoints: upload, download, thumbnail. What is kept where, and how pictures get smaller, lives in
//! `crate::media`; here are requests, limits and headers.
//!
//! URL previews are not registered: they would need connections to anywhere.

use std::time::Duration;

use http::header::{CONTENT_LENGTH, CONTENT_RANGE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use ruma::ServerName;
use serde::Deserialize;
use serde_json::json;

use crate::App;
use crate::auth::Access;
use crate::error::{Error, Result};
use crate::http::limits::Class;
use crate::http::{Body, RawCtx, Response, Routes, json_response};
use crate::media::headers::{self, Described, MAX_FILENAME_BYTES, Part};
use crate::media::thumbnail::Method as Shrink;
use crate::media::{About, Ask, Found, MediaId, Placed};

/// How long a download waits for an upload that was announced, if the client does not say.
const DEFAULT_WAIT_MS: u64 = 20_000;
/// How much is read of an upload that is refused, so that a client which only listens afterwards gets the answer.
const DISCARD_BYTES: u64 = 4 << 20;

pub fn routes() -> Routes {
    Routes::default()
        .raw(
            Method::POST,
            &["/_matrix/media/v3/upload", "/_matrix/media/r0/upload", "/_matrix/media/v1/upload"],
            upload,
        )
        .access(Access::Token)
        .limit(Class::Media)
        .raw(Method::POST, &["/_matrix/media/v1/create"], create)
        .access(Access::Token)
        .limit(Class::Media)
        .raw(Method::PUT, &["/_matrix/media/v3/upload/{server_name}/{media_id}"], upload_later)
        .access(Access::Token)
        .limit(Class::Media)
        .raw(
            Method::GET,
            &["/_matrix/client/v1/media/config", "/_matrix/media/v3/config", "/_matrix/media/r0/config"],
            config,
        )
        .access(Access::Token)
        .limit(Class::Media)
        .raw(
            Method::GET,
            &[
                "/_matrix/client/v1/media/download/{server_name}/{media_id}",
                "/_matrix/client/v1/media/download/{server_name}/{media_id}/{filename}",
            ],
            download,
        )
        .access(Access::Token)
        .limit(Class::Media)
        .guests()
        .raw(Method::GET, &["/_matrix/client/v1/media/thumbnail/{server_name}/{media_id}"], thumbnail)
        .access(Access::Token)
        .limit(Class::Media)
        .guests()
        .join(old_routes())
}

/// The endpoints from before v1.11, which ask for no token. They know media from before the freeze only.
fn old_routes() -> Routes {
    Routes::default()
        .raw(
            Method::GET,
            &[
                "/_matrix/media/v3/download/{server_name}/{media_id}",
                "/_matrix/media/v3/download/{server_name}/{media_id}/{filename}",
                "/_matrix/media/r0/download/{server_name}/{media_id}",
                "/_matrix/media/r0/download/{server_name}/{media_id}/{filename}",
                "/_matrix/media/v1/download/{server_name}/{media_id}",
                "/_matrix/media/v1/download/{server_name}/{media_id}/{filename}",
            ],
            download_unauthenticated,
        )
        .limit(Class::Media)
        .raw(
            Method::GET,
            &[
                "/_matrix/media/v3/thumbnail/{server_name}/{media_id}",
                "/_matrix/media/r0/thumbnail/{server_name}/{media_id}",
                "/_matrix/media/v1/thumbnail/{server_name}/{media_id}",
            ],
            thumbnail_unauthenticated,
        )
        .limit(Class::Media)
}

// ---- uploading ---------------------------------------------------------------------------------------------------

async fn upload(mut ctx: RawCtx) -> Result<Response> {
    let user_id = ctx.requester()?.user_id.clone();
    ctx.requester()?.not_suspended()?;
    let about = about(&ctx)?;
    let placed = receive(&mut ctx).await?;
    let media_id = ctx.app.media.add(&user_id, placed, &about).await?;
    let uri = media_id.uri(&ctx.app.server_name);
    Ok(json_response(StatusCode::OK, json!({ "content_uri": uri }).to_string()))
}

async fn create(ctx: RawCtx) -> Result<Response> {
    let requester = ctx.requester()?;
    requester.not_suspended()?;
    let reserved = ctx.app.media.reserve(&requester.user_id).await?;
    let body = json!({
        "content_uri": reserved.media_id.uri(&ctx.app.server_name),
        "unused_expires_at": reserved.unused_expires_ts,
    });
    Ok(json_response(StatusCode::OK, body.to_string()))
}

async fn upload_later(mut ctx: RawCtx) -> Result<Response> {
    let user_id = ctx.requester()?.user_id.clone();
    ctx.requester()?.not_suspended()?;
    let media_id = local_media_id(&ctx)?;
    let about = about(&ctx)?;
    ctx.app.media.check_reserved(&user_id, &media_id)?;
    let placed = receive(&mut ctx).await?;
    ctx.app.media.fill(&user_id, &media_id, placed, &about).await?;
    Ok(json_response(StatusCode::OK, "{}"))
}

fn about(ctx: &RawCtx) -> Result<About> {
    let filename = ctx.query_value("filename").filter(|name| !name.is_empty()).map(|name| name.into_owned());
    if filename.as_ref().is_some_and(|name| name.len() > MAX_FILENAME_BYTES) {
        return Err(Error::invalid_param(format!("The file name is longer than {MAX_FILENAME_BYTES} bytes")));
    }
    Ok(About { content_type: headers::content_type(&ctx.headers), filename })
}

/// Receives the body into a file, as far as the size limit allows.
async fn receive(ctx: &mut RawCtx) -> Result<Placed> {
    let limit = ctx.app.media.max_upload();
    let idle = ctx.app.config.http.body_timeout.get();
    let mut body = std::mem::take(&mut ctx.body);
    if announced(&ctx.headers).is_some_and(|length| length > limit) {
        return Err(refuse(body, idle, limit).await);
    }
    let mut incoming = ctx.app.media.incoming().await?;
    while let Some(chunk) = body.chunk(idle).await? {
        if incoming.size() + chunk.len() as u64 > limit {
            drop(incoming);
            return Err(refuse(body, idle, limit).await);
        }
        incoming.write(&chunk).await.map_err(disk)?;
    }
    incoming.finish().await.map_err(disk)
}

fn announced(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

async fn refuse(mut body: Body, idle: Duration, limit: u64) -> Error {
    let mut left = DISCARD_BYTES;
    while let Ok(Some(chunk)) = body.chunk(idle).await {
        left = left.saturating_sub(chunk.len() as u64);
        if left == 0 {
            break;
        }
    }
    Error::too_large(format!("Files may be no larger than {limit} bytes"))
}

fn disk(error: std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            tracing::error!(%error, "no room for an upload");
            Error::unavailable("The server has no room for this file")
        }
        _ => Error::internal(error),
    }
}

// ---- downloading -------------------------------------------------------------------------------------------------

async fn config(ctx: RawCtx) -> Result<Response> {
    let body = json!({ "m.upload.size": ctx.app.media.max_upload() });
    Ok(json_response(StatusCode::OK, body.to_string()))
}

async fn download(ctx: RawCtx) -> Result<Response> {
    let get = Get::new(ctx)?;
    let found = get.find().await?;
    get.send_file(&found).await
}

async fn download_unauthenticated(ctx: RawCtx) -> Result<Response> {
    let get = Get::new(ctx)?;
    let found = get.find_old().await?;
    get.send_file(&found).await
}

/// A request for a file.
struct Get {
    app: App,
    method: Method,
    headers: HeaderMap,
    media_id: MediaId,
    /// The name that the client wants the file to have.
    filename: Option<String>,
    /// How long to wait for a file that is only announced.
    wait: Duration,
}

impl Get {
    fn new(ctx: RawCtx) -> Result<Self> {
        let wait_ms = match ctx.query_value("timeout_ms") {
            Some(text) => text.parse().map_err(|_| Error::invalid_param("timeout_ms is not a number"))?,
            None => DEFAULT_WAIT_MS,
        };
        Ok(Self {
            media_id: local_media_id(&ctx)?,
            filename: Some(ctx.arg(2)).filter(|name| !name.is_empty()).map(str::to_owned),
            wait: Duration::from_millis(wait_ms),
            app: ctx.app,
            method: ctx.method,
            headers: ctx.headers,
        })
    }

    async fn find(&self) -> Result<Found> {
        self.app.media.find(&self.media_id, self.wait).await
    }

    /// For those without a token: only what was there before the freeze. What is newer does not exist for them, be it
    /// uploaded or announced.
    async fn find_old(&self) -> Result<Found> {
        let frozen_since_ts = self.app.config.media.unauthenticated_before_ts;
        match self.app.media.find(&self.media_id, Duration::ZERO).await {
            Ok(found) if found.created_ts < frozen_since_ts => Ok(found),
            _ => Err(Error::not_found("There is no such media, or it needs a token")),
        }
    }

    async fn send_file(&self, found: &Found) -> Result<Response> {
        let described = Described {
            content_type: found.about.content_type.as_deref(),
            filename: self.filename.as_deref().or(found.about.filename.as_deref()),
            sha256: &found.sha256,
        };
        self.send(&described, found.size_bytes).await
    }

    /// Sends a file, or the part that is asked for.
    async fn send(&self, described: &Described<'_>, size: u64) -> Result<Response> {
        let mut response = http::Response::new(Body::empty());
        headers::describe(described, response.headers_mut());
        let (from, to) = match Part::wanted(&self.headers, described.sha256, size) {
            Part::All => (0, size),
            Part::Range(from, to) => {
                *response.status_mut() = StatusCode::PARTIAL_CONTENT;
                set_range(response.headers_mut(), &format!("bytes {from}-{}/{size}", to - 1));
                (from, to)
            }
            Part::Nothing => {
                *response.status_mut() = StatusCode::NOT_MODIFIED;
                return Ok(response);
            }
            Part::Outside => {
                *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
                set_range(response.headers_mut(), &format!("bytes */{size}"));
                return Ok(response);
            }
        };
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(to - from));
        if self.method != Method::HEAD {
            *response.body_mut() = match self.app.media.read(*described.sha256, from, to).await?.whole() {
                Ok(bytes) => bytes.into(),
                Err(reading) => Body::stream(reading.pieces(), Some(to - from)),
            };
        }
        Ok(response)
    }
}

/// The media ID of the path, if it is well formed and of this server. Others are not fetched from anywhere.
fn local_media_id(ctx: &RawCtx) -> Result<MediaId> {
    let server_name =
        <&ServerName>::try_from(ctx.arg(0)).map_err(|_| Error::invalid_param("This is no server name"))?;
    let media_id = MediaId::parse(ctx.arg(1)).ok_or_else(|| Error::invalid_param("This is no media ID"))?;
    if server_name == &*ctx.app.server_name {
        return Ok(media_id);
    }
    Err(Error::not_found("Media of other servers is not available here"))
}

fn set_range(headers: &mut HeaderMap, range: &str) {
    if let Ok(range) = HeaderValue::from_str(range) {
        headers.insert(CONTENT_RANGE, range);
    }
}

// ---- thumbnails --------------------------------------------------------------------------------------------------

#[derive(Deserialize)]
struct ThumbnailQuery {
    width: u32,
    height: u32,
    method: Option<String>,
    animated: Option<bool>,
}

async fn thumbnail(ctx: RawCtx) -> Result<Response> {
    let ask = ask(&ctx)?;
    let get = Get::new(ctx)?;
    let found = get.find().await?;
    get.send_thumbnail(found, ask).await
}

async fn thumbnail_unauthenticated(ctx: RawCtx) -> Result<Response> {
    let ask = ask(&ctx)?;
    let get = Get::new(ctx)?;
    let found = get.find_old().await?;
    get.send_thumbnail(found, ask).await
}

fn ask(ctx: &RawCtx) -> Result<Ask> {
    let query: ThumbnailQuery = ctx.query()?;
    if query.width == 0 || query.height == 0 {
        return Err(Error::invalid_param("A thumbnail has a width and a height"));
    }
    let method = match query.method.as_deref() {
        None | Some("scale") => Shrink::Scale,
        Some("crop") => Shrink::Crop,
        Some(_) => return Err(Error::invalid_param("The method is neither crop nor scale")),
    };
    Ok(Ask::new(query.width, query.height, method, query.animated.unwrap_or(false)))
}

impl Get {
    async fn send_thumbnail(&self, found: Found, ask: Ask) -> Result<Response> {
        // It is made to its end even if the client hangs up, so that the work is not lost.
        let app = self.app.clone();
        let made = self.app.tasks.spawn(async move { app.media.thumbnail(&found, ask).await });
        let made = made.await.map_err(Error::internal)??;
        let extension = made.content_type.strip_prefix("image/").unwrap_or("bin");
        let filename = format!("thumbnail.{extension}");
        let described =
            Described { content_type: Some(&made.content_type), filename: Some(&filename), sha256: &made.sha256 };
        self.send(&described, made.size_bytes).await
    }
}
