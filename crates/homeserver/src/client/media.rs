//! The media endpoints: upload, download, thumbnail. What is kept where, and how pictures get smaller, lives in
//! `crate::media`; here are requests, limits and headers. Previews of URLs are in `previews.rs`.

use std::time::Duration;

use http::header::{CONTENT_LENGTH, CONTENT_RANGE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use ruma::ServerName;
use serde::Deserialize;
use serde_json::json;

use crate::App;
use crate::auth::Access;
use crate::error::{Error, Result};
use crate::http::{Body, RawCtx, Response, Routes, json_response};
use crate::limits::Class;
use crate::media::headers::{self, Described, MAX_FILENAME_BYTES, Part};
use crate::media::thumbnail::Method as Shrink;
use crate::media::{About, Ask, Found, MediaId, Placed, disk_error};

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

/// Receives the body into a file, as far as the limits allow.
async fn receive(ctx: &mut RawCtx) -> Result<Placed> {
    let media = &ctx.app.media;
    let limit = media.max_upload();
    let too_large = || Error::too_large(format!("Files may be no larger than {limit} bytes"));
    let idle = ctx.app.config.http.body_timeout.get();
    let mut body = std::mem::take(&mut ctx.body);
    let announced = announced(&ctx.headers).unwrap_or(0);
    if announced > limit {
        return Err(refuse(body, idle, too_large()).await);
    }
    if let Err(error) = media.check_room(&ctx.requester()?.user_id, announced).await {
        return Err(refuse(body, idle, error).await);
    }
    let mut incoming = media.incoming().await?;
    while let Some(chunk) = body.chunk(idle).await? {
        if incoming.size() + chunk.len() as u64 > limit {
            drop(incoming);
            return Err(refuse(body, idle, too_large()).await);
        }
        incoming.write(&chunk).await.map_err(disk_error)?;
    }
    incoming.finish().await.map_err(disk_error)
}

fn announced(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Lets the client send some more before it is told why that is in vain.
async fn refuse(mut body: Body, idle: Duration, error: Error) -> Error {
    let mut left = DISCARD_BYTES;
    while let Ok(Some(chunk)) = body.chunk(idle).await {
        left = left.saturating_sub(chunk.len() as u64);
        if left == 0 {
            break;
        }
    }
    error
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

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use bytes::Bytes;
    use futures_util::{StreamExt as _, stream};
    use http::header;
    use image::{DynamicImage, ImageFormat, RgbImage};
    use tempfile::TempDir;

    use super::*;
    use crate::auth::Requester;
    use crate::config::{Config, Size};
    use crate::http::{Answer, Local};
    use crate::media::files::PIECE_BYTES;
    use crate::media::headers::hex;

    /// A server with a media directory.
    struct Site {
        app: App,
        dir: TempDir,
    }

    /// A request, straight to the handler.
    struct Call<'a> {
        method: Method,
        user: &'a str,
        query: String,
        args: Vec<String>,
        headers: HeaderMap,
        body: Body,
    }

    fn call<'a>(user: &'a str, query: &str, args: &[&str]) -> Call<'a> {
        Call {
            method: Method::GET,
            user,
            query: query.to_owned(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            headers: HeaderMap::new(),
            body: Body::empty(),
        }
    }

    impl Call<'_> {
        fn header(mut self, name: header::HeaderName, value: &str) -> Self {
            self.headers.insert(name, value.parse().unwrap());
            self
        }
        fn method(mut self, method: Method) -> Self {
            self.method = method;
            self
        }
        fn body(mut self, body: impl Into<Body>) -> Self {
            self.body = body.into();
            self
        }
    }

    impl Site {
        fn new() -> Self {
            Self::with(|_| {})
        }

        fn with(change: impl FnOnce(&mut Config)) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let mut config = Config::new(ruma::owned_server_name!("hs.test"));
            config.media.dir = Some(dir.path().to_owned());
            change(&mut config);
            Self { app: App::in_memory(config), dir }
        }

        fn on(disk: &store::MemoryDisk) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let mut config = Config::new(ruma::owned_server_name!("hs.test"));
            config.media.dir = Some(dir.path().to_owned());
            Self { app: App::on_memory_disk(config, disk.clone()), dir }
        }

        async fn ask<F, A>(&self, handler: F, call: Call<'_>) -> Answer
        where
            F: Fn(RawCtx) -> A,
            A: Future<Output = Result<Response>>,
        {
            let requester = Requester {
                user_id: ruma::UserId::parse(format!("@{}:hs.test", call.user)).unwrap(),
                device_id: Some("D".into()),
                token_id: "t".into(),
                guest: false,
                locked: false,
                suspended: call.user == "suspended",
                admin: false,
                appservice: None,
                rate_limited: true,
            };
            let ctx = RawCtx {
                app: self.app.clone(),
                method: call.method,
                uri: format!("/?{}", call.query).parse().unwrap(),
                headers: call.headers,
                args: call.args,
                body: call.body,
                requester: Some(requester),
                ip: [127, 0, 0, 1].into(),
            };
            let response = handler(ctx).await.unwrap_or_else(Response::from);
            let (parts, body) = response.into_parts();
            let body = body.collect(usize::MAX, Duration::from_secs(60)).await.unwrap();
            Answer { status: parts.status, headers: parts.headers, body }
        }

        /// Uploads as alice; the media ID.
        async fn put(&self, content_type: &str, body: impl Into<Body>) -> String {
            let request = call("alice", "", &[]).header(header::CONTENT_TYPE, content_type).body(body);
            media_id(&self.ask(upload, request).await)
        }

        async fn get(&self, media_id: &str) -> Answer {
            self.ask(download, call("bob", "timeout_ms=0", &["hs.test", media_id])).await
        }

        async fn thumb(&self, media_id: &str, query: &str) -> Answer {
            self.ask(thumbnail, call("bob", query, &["hs.test", media_id])).await
        }

        /// The files once nobody writes any more: how many are in place, and on their way.
        async fn files_at_last(&self) -> (usize, usize) {
            for _ in 0..200 {
                if self.files().1.is_empty() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let (placed, incoming) = self.files();
            (placed.len(), incoming.len())
        }

        /// All files of the media directory: in place, and on their way.
        fn files(&self) -> (Vec<String>, Vec<String>) {
            let (mut placed, mut incoming) = (Vec::new(), Vec::new());
            walk(self.dir.path(), &mut |path| {
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                if path.parent().unwrap().ends_with("incoming") { incoming.push(name) } else { placed.push(name) }
            });
            placed.sort();
            (placed, incoming)
        }
    }

    fn walk(dir: &Path, found: &mut impl FnMut(&Path)) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path, found) } else { found(&path) }
        }
    }

    fn media_id(answer: &Answer) -> String {
        let uri = answer.json()["content_uri"].as_str().unwrap_or_else(|| panic!("{answer:?}")).to_owned();
        uri.strip_prefix("mxc://hs.test/").unwrap().to_owned()
    }

    /// Bytes without pattern.
    fn noise(seed: u64, size: usize) -> Vec<u8> {
        let rng = crate::rng::Rng::seeded(seed);
        let mut block = vec![0; size.min(64 * 1024)];
        rng.fill(&mut block);
        let mut bytes: Vec<u8> = block.iter().copied().cycle().take(size).collect();
        bytes.chunks_mut(4096).zip(0u32..).for_each(|(page, n)| {
            page.iter_mut().zip(n.to_le_bytes()).for_each(|(byte, stamp)| *byte ^= stamp);
        });
        bytes
    }

    fn in_pieces(bytes: Vec<u8>, size: usize) -> Body {
        let pieces: Vec<_> = bytes.chunks(size).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        Body::stream(stream::iter(pieces), None)
    }

    fn picture(width: u32, height: u32) -> Vec<u8> {
        let image = RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8, y as u8, 128]));
        let mut bytes = std::io::Cursor::new(Vec::new());
        DynamicImage::from(image).write_to(&mut bytes, ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    fn outcome(answer: &Answer) -> (u16, String) {
        (answer.status.as_u16(), answer.errcode())
    }

    fn failed(status: u16, code: &str) -> (u16, String) {
        (status, code.to_owned())
    }

    #[tokio::test]
    async fn what_goes_in_comes_out() {
        let site = Site::new();
        let sizes = [0, 1, 1000, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 1 << 20, 20 << 20];
        for (seed, size) in (1..).zip(sizes) {
            let bytes = noise(seed, size);
            let id = site.put("application/octet-stream", in_pieces(bytes.clone(), 100_003)).await;
            let answer = site.get(&id).await;
            assert_eq!(answer.status, StatusCode::OK);
            assert_eq!(answer.headers[CONTENT_LENGTH], size.to_string());
            assert!(answer.body == bytes, "{size} bytes differ");
        }
        let (placed, incoming) = site.files();
        assert_eq!((placed.len(), incoming.len()), (sizes.len(), 0));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn many_at_once_do_not_mix() {
        let site = Arc::new(Site::new());
        let tasks: Vec<_> = (0..24u64)
            .map(|n| {
                let site = site.clone();
                tokio::spawn(async move {
                    // Some are the same file.
                    let bytes = noise(n % 6, 700_000 + n as usize % 6);
                    let id = site.put("text/plain", in_pieces(bytes.clone(), 65_536)).await;
                    assert!(site.get(&id).await.body == bytes);
                    id
                })
            })
            .collect();
        let mut ids = std::collections::HashSet::new();
        for task in tasks {
            assert!(ids.insert(task.await.unwrap()));
        }
        let (placed, incoming) = site.files();
        assert_eq!((placed.len(), incoming.len()), (6, 0), "the same file is kept once");
    }

    #[tokio::test]
    async fn an_upload_that_breaks_off_leaves_nothing() {
        let site = Site::new();
        for pieces in [0, 1, 5] {
            let broken = (0..=pieces).map(move |n| {
                let gone: crate::http::BoxError = "gone".into();
                if n == pieces { Err(gone) } else { Ok(Bytes::from(vec![n as u8; PIECE_BYTES])) }
            });
            let request = call("alice", "", &[]).body(Body::stream(stream::iter(broken), None));
            let answer = site.ask(upload, request).await;
            assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{answer:?}");
        }
        // Nor does one that is dropped in the middle.
        let never_ends = stream::iter([Ok(Bytes::from(vec![7; PIECE_BYTES * 2]))]).chain(stream::pending());
        let request = call("alice", "", &[]).body(Body::stream(never_ends, None));
        let waited = tokio::time::timeout(Duration::from_millis(300), site.ask(upload, request)).await;
        assert!(waited.is_err());
        assert_eq!(site.files_at_last().await, (0, 0));
        let alice = ruma::user_id!("@alice:hs.test");
        assert_eq!(site.app.media.uploads_of(alice).unwrap(), vec![]);
    }

    #[tokio::test]
    async fn an_upload_has_a_limit() {
        let site = Site::with(|config| config.media.max_upload = Size::kib(600));
        let (most, more) = (600 * 1024, 600 * 1024 + 1);
        let config = site.ask(config, call("alice", "", &[])).await;
        assert_eq!(config.json(), json!({ "m.upload.size": most }));
        site.put("text/plain", in_pieces(vec![1; most], 100_000)).await;
        let told = call("alice", "", &[]).header(CONTENT_LENGTH, &more.to_string()).body(vec![1; more]);
        let streamed = call("alice", "", &[]).body(in_pieces(vec![2; more], 100_000));
        let lied = call("alice", "", &[]).header(CONTENT_LENGTH, "5").body(in_pieces(vec![2; more], 100_000));
        for request in [told, streamed, lied] {
            assert_eq!(outcome(&site.ask(upload, request).await), failed(413, "M_TOO_LARGE"));
        }
        assert_eq!(site.files_at_last().await, (1, 0));
    }

    #[tokio::test]
    async fn pitfall_105_a_download_says_what_it_is() {
        let site = Site::new();
        let request = call("alice", "filename=Gr%C3%BC%C3%9Fe%20%26%20more.png", &[]);
        let request = request.header(header::CONTENT_TYPE, "image/png").body("x");
        let id = media_id(&site.ask(upload, request).await);
        let answer = site.get(&id).await;
        assert_eq!(answer.headers[header::CONTENT_TYPE], "image/png");
        assert_eq!(
            answer.headers[header::CONTENT_DISPOSITION],
            "inline; filename*=utf-8''Gr%C3%BC%C3%9Fe%20&%20more.png"
        );
        assert_eq!(answer.headers["cross-origin-resource-policy"], "cross-origin");
        assert_eq!(answer.headers[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
        assert!(answer.headers[header::CONTENT_SECURITY_POLICY].to_str().unwrap().contains("sandbox"));
        assert!(answer.headers[header::CACHE_CONTROL].to_str().unwrap().starts_with("private"));
        // The path can name the file otherwise.
        let named = site.ask(download, call("bob", "", &["hs.test", &id, "a/b.png"])).await;
        assert_eq!(named.headers[header::CONTENT_DISPOSITION], "inline; filename=\"a/b.png\"");
        let untyped = media_id(&site.ask(upload, call("alice", "", &[]).body("plain")).await);
        let answer = site.get(&untyped).await;
        assert_eq!(answer.headers[header::CONTENT_TYPE], "application/octet-stream");
        assert_eq!(answer.headers[header::CONTENT_DISPOSITION], "attachment");
        for active in ["image/svg+xml", "text/html; charset=utf-8"] {
            let id = site.put(active, "<svg/>").await;
            let answer = site.get(&id).await;
            assert_eq!(answer.headers[header::CONTENT_TYPE], active);
            assert_eq!(answer.headers[header::CONTENT_DISPOSITION], "attachment");
        }
        let long = format!("filename={}", "a".repeat(MAX_FILENAME_BYTES + 1));
        assert_eq!(outcome(&site.ask(upload, call("alice", &long, &[])).await), failed(400, "M_INVALID_PARAM"));
    }

    #[tokio::test]
    async fn parts_and_heads_and_copies_that_are_known() {
        let site = Site::new();
        let bytes = noise(1, 600_000);
        let id = site.put("text/plain", bytes.clone()).await;
        let get = || call("bob", "", &["hs.test", &id]);
        let head = site.ask(download, get().method(Method::HEAD)).await;
        assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));
        assert_eq!(head.headers[CONTENT_LENGTH], "600000");
        let part = site.ask(download, get().header(header::RANGE, "bytes=1000-499999")).await;
        assert_eq!(part.status, StatusCode::PARTIAL_CONTENT);
        assert_eq!(part.headers[CONTENT_RANGE], "bytes 1000-499999/600000");
        assert_eq!(part.headers[CONTENT_LENGTH], "499000");
        assert!(part.body == bytes[1000..500_000]);
        let outside = site.ask(download, get().header(header::RANGE, "bytes=600000-")).await;
        assert_eq!(outside.status, StatusCode::RANGE_NOT_SATISFIABLE);
        assert_eq!(outside.headers[CONTENT_RANGE], "bytes */600000");
        let etag = head.headers[header::ETAG].to_str().unwrap().to_owned();
        let known = site.ask(download, get().header(header::IF_NONE_MATCH, &etag)).await;
        assert_eq!((known.status, known.body.len()), (StatusCode::NOT_MODIFIED, 0));
    }

    #[tokio::test]
    async fn pitfall_104_only_well_formed_ids_of_this_server_are_looked_up() {
        let site = Site::new();
        std::fs::write(site.dir.path().join("secret"), "secret").unwrap();
        let id = site.put("text/plain", "x").await;
        for wrong in ["..", "../secret", "..%2fsecret", "a.b", "", "a/b", "ä"] {
            let answer = site.get(wrong).await;
            assert_eq!(outcome(&answer), failed(400, "M_INVALID_PARAM"), "{wrong}");
        }
        for (server, code) in [("..", 404), ("hs.test/..", 400), ("", 400), ("other.test", 404), ("hs.test:1", 404)] {
            let answer = site.ask(download, call("bob", "", &[server, &id])).await;
            assert_eq!(answer.status.as_u16(), code, "{server}");
        }
        assert_eq!(outcome(&site.get("unknown").await), failed(404, "M_NOT_FOUND"));
        // And through the router, which decodes.
        let client = Local::new(site.app.router());
        for path in ["..%2f..%2fsecret", "%2e%2e", "..", "a%00b"] {
            let answer = client.get(&format!("/_matrix/media/v3/download/hs.test/{path}")).await;
            assert!(answer.status.is_client_error() && !answer.body.starts_with(b"secret"), "{path} {answer:?}");
        }
    }

    #[tokio::test]
    async fn pitfall_105_media_is_for_those_with_a_token() {
        let site = Site::new();
        let id = site.put("image/png", picture(10, 10)).await;
        let client = Local::new(site.app.router());
        for path in ["download", "thumbnail"] {
            let new = format!("/_matrix/client/v1/media/{path}/hs.test/{id}?width=1&height=1");
            assert_eq!(outcome(&client.get(&new).await), failed(401, "M_MISSING_TOKEN"));
            for version in ["r0", "v1", "v3"] {
                let old = format!("/_matrix/media/{version}/{path}/hs.test/{id}?width=1&height=1");
                assert_eq!(outcome(&client.get(&old).await), failed(404, "M_NOT_FOUND"), "{old}");
            }
        }
        for path in ["/_matrix/client/v1/media/config", "/_matrix/media/v3/config"] {
            assert_eq!(outcome(&client.get(path).await), failed(401, "M_MISSING_TOKEN"));
        }
        assert_eq!(outcome(&client.post("/_matrix/media/v3/upload", json!({})).await), failed(401, "M_MISSING_TOKEN"));
        assert_eq!(outcome(&client.post("/_matrix/media/v1/create", json!({})).await), failed(401, "M_MISSING_TOKEN"));
    }

    #[tokio::test]
    async fn pitfall_105_media_from_before_the_freeze_stays_open() {
        let site = Site::with(|config| config.media.unauthenticated_before_ts = 1_700_000_000_001);
        let old = site.put("image/png", picture(10, 10)).await;
        site.app.clock.advance(Duration::from_millis(1));
        let new = site.put("image/png", picture(10, 10)).await;
        let client = Local::new(site.app.router());
        for version in ["r0", "v1", "v3"] {
            let get =
                async |id: &str| client.get(&format!("/_matrix/media/{version}/download/hs.test/{id}/x.png")).await;
            assert_eq!(get(&old).await.body, picture(10, 10));
            assert_eq!(outcome(&get(&new).await), failed(404, "M_NOT_FOUND"));
            let small = format!("/_matrix/media/{version}/thumbnail/hs.test/{old}?width=5&height=5");
            assert_eq!(client.get(&small).await.status, StatusCode::OK);
        }
    }

    #[tokio::test]
    async fn a_place_can_be_kept_for_a_later_upload() {
        let site = Site::new();
        let kept = site.ask(create, call("alice", "", &[])).await;
        assert_eq!(kept.json()["unused_expires_at"], 1_700_000_000_000u64 + 24 * 60 * 60 * 1000);
        let id = media_id(&kept);
        assert_eq!(outcome(&site.get(&id).await), failed(504, "M_NOT_YET_UPLOADED"));
        let small = site.thumb(&id, "width=1&height=1&timeout_ms=0").await;
        assert_eq!(outcome(&small), failed(504, "M_NOT_YET_UPLOADED"));
        let put = |user| {
            call(user, "filename=a.txt", &["hs.test", &id]).header(header::CONTENT_TYPE, "text/plain").body("hello")
        };
        assert_eq!(outcome(&site.ask(upload_later, put("bob")).await), failed(403, "M_FORBIDDEN"));
        let done = site.ask(upload_later, put("alice")).await;
        assert_eq!((done.status.as_u16(), done.json()), (200, json!({})));
        let answer = site.get(&id).await;
        assert_eq!(answer.body, "hello");
        assert_eq!(answer.headers[header::CONTENT_DISPOSITION], "inline; filename=a.txt");
        let again = site.ask(upload_later, put("alice")).await;
        assert_eq!(outcome(&again), failed(409, "M_CANNOT_OVERWRITE_MEDIA"));
        let unknown = call("alice", "", &["hs.test", "unknown"]).body("hello");
        assert_eq!(outcome(&site.ask(upload_later, unknown).await), failed(404, "M_NOT_FOUND"));
        let whole = site.put("text/plain", "other").await;
        let over = call("alice", "", &["hs.test", &whole]).body("hello");
        assert_eq!(outcome(&site.ask(upload_later, over).await), failed(409, "M_CANNOT_OVERWRITE_MEDIA"));
    }

    #[tokio::test]
    async fn pitfall_104_of_two_uploads_to_one_place_one_wins() {
        let site = Site::new();
        let id = media_id(&site.ask(create, call("alice", "", &[])).await);
        let put = |body: &'static str| site.ask(upload_later, call("alice", "", &["hs.test", &id]).body(body));
        let (a, b) = tokio::join!(put("first"), put("second"));
        let mut codes = [outcome(&a), outcome(&b)];
        codes.sort();
        assert_eq!(codes, [failed(200, ""), failed(409, "M_CANNOT_OVERWRITE_MEDIA")]);
        let (placed, incoming) = site.files();
        assert_eq!((placed.len(), incoming.len()), (1, 0), "the file of the loser is gone");
    }

    #[tokio::test]
    async fn pitfall_104_a_download_waits_for_its_upload() {
        let site = Site::new();
        let before = site.app.store.hub().listeners();
        let id = media_id(&site.ask(create, call("alice", "", &[])).await);
        let waiting = site.ask(download, call("bob", "timeout_ms=5000", &["hs.test", &id]));
        let filling = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            site.ask(upload_later, call("alice", "", &["hs.test", &id]).body("late")).await
        };
        let (waited, filled) = tokio::join!(waiting, filling);
        assert_eq!((filled.status.as_u16(), waited.status.as_u16()), (200, 200));
        assert_eq!(waited.body, "late");

        let id = media_id(&site.ask(create, call("alice", "", &[])).await);
        let waiting = site.ask(download, call("bob", "", &["hs.test", &id]));
        let clock = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            site.app.clock.advance(Duration::from_secs(20));
        };
        let (waited, ()) = tokio::join!(waiting, clock);
        assert_eq!(outcome(&waited), failed(504, "M_NOT_YET_UPLOADED"));
        assert_eq!(site.app.store.hub().listeners(), before, "nobody listens any more");
    }

    #[tokio::test]
    async fn pitfall_104_kept_places_are_few_and_expire() {
        let site = Site::with(|config| config.media.max_pending_uploads = 3);
        let mut ids = Vec::new();
        for _ in 0..3 {
            ids.push(media_id(&site.ask(create, call("alice", "", &[])).await));
        }
        let refused = site.ask(create, call("alice", "", &[])).await;
        assert_eq!(outcome(&refused), failed(429, "M_LIMIT_EXCEEDED"));
        assert!(site.ask(create, call("bob", "", &[])).await.status.is_success(), "everybody has their own");
        let filled = site.ask(upload_later, call("alice", "", &["hs.test", &ids[0]]).body("x")).await;
        assert!(filled.status.is_success());
        assert!(site.ask(create, call("alice", "", &[])).await.status.is_success(), "a used place is free again");
        site.app.clock.advance(Duration::from_secs(24 * 60 * 60));
        assert_eq!(outcome(&site.get(&ids[1]).await), failed(404, "M_NOT_FOUND"));
        let late = site.ask(upload_later, call("alice", "", &["hs.test", &ids[1]]).body("x")).await;
        assert_eq!(outcome(&late), failed(404, "M_NOT_FOUND"));
        for _ in 0..3 {
            assert!(site.ask(create, call("alice", "", &[])).await.status.is_success());
        }
        assert!(site.get(&ids[0]).await.status.is_success(), "what was uploaded stays");
        let alice = ruma::user_id!("@alice:hs.test");
        assert_eq!(site.app.media.uploads_of(alice).unwrap().len(), 4, "expired places are forgotten");
    }

    #[tokio::test]
    async fn a_disk_that_is_almost_full_takes_no_more_files() {
        let site = Site::with(|config| config.media.min_free = Size::bytes(u64::MAX / 2));
        let full = || failed(507, "M_RESOURCE_LIMIT_EXCEEDED");
        let told = call("alice", "", &[]).header(CONTENT_LENGTH, "3").body("xyz");
        assert_eq!(outcome(&site.ask(upload, told).await), full());
        assert_eq!(outcome(&site.ask(upload, call("alice", "", &[]).body(in_pieces(vec![1; 9], 3))).await), full());
        let id = media_id(&site.ask(create, call("alice", "", &[])).await);
        let later = call("alice", "", &["hs.test", &id]).body("x");
        assert_eq!(outcome(&site.ask(upload_later, later).await), full());
        assert_eq!(site.files_at_last().await, (0, 0));
    }

    #[tokio::test]
    async fn a_disk_that_is_almost_full_takes_no_more_thumbnails() {
        let site = Site::new();
        let id = site.put("image/png", picture(400, 300)).await;
        assert_eq!(site.thumb(&id, "width=90&height=90&method=crop").await.status, StatusCode::OK);
        // The same files and rows; only the settings are others.
        let app = &site.app;
        let mut config = app.config.clone();
        config.media.min_free = Size::bytes(u64::MAX / 2);
        let (clock, rng) = (app.clock.clone(), app.rng.clone());
        let media = crate::media::Media::new(app.store.clone(), &config, clock, rng, app.shutdown.clone());
        let found = media.find(&MediaId::parse(&id).unwrap(), Duration::ZERO).await.unwrap();
        let refused = media.thumbnail(&found, Ask::new(320, 240, Shrink::Scale, false)).await.unwrap_err();
        assert_eq!(refused.status(), 507);
        // What is made already is there, and so is what is not made smaller.
        media.thumbnail(&found, Ask::new(90, 90, Shrink::Crop, false)).await.unwrap();
        assert_eq!(site.get(&id).await.status, StatusCode::OK);
    }

    #[tokio::test]
    async fn each_user_has_so_much_and_no_more() {
        let site = Site::with(|config| config.media.max_user_total = Size::bytes(1_000));
        let first = site.put("text/plain", in_pieces(vec![1; 600], 100)).await;
        let over = || failed(403, "M_FORBIDDEN");
        let told = call("alice", "", &[]).header(CONTENT_LENGTH, "500").body(vec![2; 500]);
        assert_eq!(outcome(&site.ask(upload, told).await), over());
        assert_eq!(outcome(&site.ask(upload, call("alice", "", &[]).body(in_pieces(vec![2; 500], 100))).await), over());
        let id = media_id(&site.ask(create, call("alice", "", &[])).await);
        let later = |body: Vec<u8>| call("alice", "", &["hs.test", &id]).body(in_pieces(body, 100));
        assert_eq!(outcome(&site.ask(upload_later, later(vec![2; 500])).await), over());
        assert_eq!(site.files_at_last().await, (1, 0), "what is refused leaves nothing");
        // It is each user's own, and what is deleted makes room.
        assert!(site.ask(upload, call("bob", "", &[]).body(vec![3; 900])).await.status.is_success());
        assert!(site.app.media.delete(&MediaId::parse(&first).unwrap()).await.unwrap());
        assert!(site.ask(upload_later, later(vec![2; 500])).await.status.is_success());
        site.put("text/plain", in_pieces(vec![4; 500], 100)).await;
        assert_eq!(outcome(&site.ask(upload, call("alice", "", &[]).body("x")).await), over());
    }

    #[tokio::test]
    async fn uploads_of_a_time_when_nobody_counted_count() {
        use store::Read as _;
        let site = Site::with(|config| config.media.max_user_total = Size::bytes(1_000));
        for size in [300, 301, 302] {
            site.put("text/plain", vec![1; size]).await;
        }
        let counted = ("@alice:hs.test", "media");
        let known = site.app.store.snapshot().get(&crate::schema::USAGE, counted).unwrap();
        assert_eq!(known, Some(crate::schema::Usage { count: 3, bytes: 903 }));
        let mut batch = store::Batch::new();
        batch.delete(&crate::schema::USAGE, counted);
        site.app.store.commit(batch).unwrap().durable().await.unwrap();
        assert_eq!(
            outcome(&site.ask(upload, call("alice", "", &[]).body(vec![2; 98])).await),
            failed(403, "M_FORBIDDEN")
        );
        site.put("text/plain", vec![2; 97]).await;
        let known = site.app.store.snapshot().get(&crate::schema::USAGE, counted).unwrap();
        assert_eq!(known, Some(crate::schema::Usage { count: 4, bytes: 1_000 }));
    }

    #[tokio::test]
    async fn suspended_accounts_upload_nothing() {
        let site = Site::new();
        for answer in [
            site.ask(upload, call("suspended", "", &[]).body("x")).await,
            site.ask(create, call("suspended", "", &[])).await,
        ] {
            assert_eq!(outcome(&answer), failed(403, "M_USER_SUSPENDED"));
        }
    }

    #[tokio::test]
    async fn pitfall_106_thumbnails_are_made_once_and_kept() {
        let site = Site::new();
        let id = site.put("image/png", picture(400, 300)).await;
        let first = site.thumb(&id, "width=90&height=90&method=crop").await;
        assert_eq!(first.status, StatusCode::OK);
        assert_eq!(first.headers[header::CONTENT_TYPE], "image/jpeg");
        assert_eq!(first.headers[header::CONTENT_DISPOSITION], "inline; filename=thumbnail.jpeg");
        let image = image::load_from_memory(&first.body).unwrap();
        assert_eq!((image.width(), image.height()), (96, 96));
        let (placed, incoming) = site.files();
        assert_eq!((placed.len(), incoming.len()), (2, 0));
        // The picture itself is not looked at again: its file could be gone.
        let row = site.app.media.find(&MediaId::parse(&id).unwrap(), Duration::ZERO).await.unwrap();
        let name = hex(&row.sha256);
        std::fs::remove_file(site.dir.path().join(&name[..2]).join(&name[2..4]).join(&name)).unwrap();
        let second = site.thumb(&id, "width=96&height=96&method=crop&animated=false").await;
        assert_eq!(second.body, first.body);
        let other = site.thumb(&id, "width=320&height=240").await;
        assert_eq!(outcome(&other), failed(404, "M_NOT_FOUND"), "and this one needs it");
    }

    #[tokio::test]
    async fn pitfall_106_small_pictures_are_sent_as_they_are() {
        let site = Site::new();
        let bytes = picture(30, 20);
        // Whatever the uploader called it.
        let id = site.put("text/html", bytes.clone()).await;
        let answer = site.thumb(&id, "width=320&height=240&method=scale").await;
        assert_eq!((answer.status.as_u16(), &answer.body[..]), (200, &bytes[..]));
        assert_eq!(answer.headers[header::CONTENT_TYPE], "image/png");
        assert_eq!(answer.headers[header::CONTENT_DISPOSITION], "inline; filename=thumbnail.png");
    }

    #[tokio::test]
    async fn pitfall_106_what_cannot_be_a_thumbnail_says_so() {
        let site = Site::with(|config| config.media.max_thumbnail_pixels = 10_000);
        let text = site.put("image/png", "no picture").await;
        assert_eq!(outcome(&site.thumb(&text, "width=1&height=1").await), failed(400, "M_UNKNOWN"));
        let large = site.put("image/png", picture(101, 100)).await;
        assert_eq!(outcome(&site.thumb(&large, "width=1&height=1").await), failed(413, "M_TOO_LARGE"));
        let fits = site.put("image/png", picture(100, 100)).await;
        assert_eq!(site.thumb(&fits, "width=1&height=1&method=crop").await.status, StatusCode::OK);
        for query in
            ["", "width=1", "width=-1&height=1", "width=a&height=1", "width=0&height=5", "width=1&height=1&method=x"]
        {
            assert_eq!(outcome(&site.thumb(&fits, query).await), failed(400, "M_INVALID_PARAM"), "{query}");
        }
        let (_, incoming) = site.files();
        assert_eq!(incoming.len(), 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn many_thumbnails_at_once() {
        let site = Arc::new(Site::new());
        let id = site.put("image/png", picture(800, 600)).await;
        let queries = ["width=32&height=32&method=crop", "width=320&height=240", "width=90&height=50&method=crop"];
        let tasks: Vec<_> = (0..18)
            .map(|n| {
                let (site, id, query) = (site.clone(), id.clone(), queries[n % 3]);
                tokio::spawn(async move { (n % 3, site.thumb(&id, query).await) })
            })
            .collect();
        let mut seen: [Option<Bytes>; 3] = Default::default();
        for task in tasks {
            let (n, answer) = task.await.unwrap();
            assert_eq!(answer.status, StatusCode::OK);
            assert_eq!(seen[n].get_or_insert(answer.body.clone()), &answer.body);
        }
        assert_eq!(site.files().0.len(), 4, "one picture, three thumbnails");
    }

    #[tokio::test]
    async fn deleting_takes_the_file_with_the_last_upload() {
        let site = Site::new();
        let bytes = picture(200, 200);
        let (a, b) = (site.put("image/png", bytes.clone()).await, site.put("image/png", bytes.clone()).await);
        assert_eq!(site.thumb(&a, "width=32&height=32&method=crop").await.status, StatusCode::OK);
        assert_eq!(site.files().0.len(), 2);
        let delete = async |id: &str| site.app.media.delete(&MediaId::parse(id).unwrap()).await.unwrap();
        assert!(delete(&a).await);
        assert_eq!(outcome(&site.get(&a).await), failed(404, "M_NOT_FOUND"));
        assert_eq!(site.get(&b).await.body, bytes);
        assert_eq!(site.thumb(&b, "width=32&height=32&method=crop").await.status, StatusCode::OK);
        assert!(!delete(&a).await);
        assert!(delete(&b).await);
        assert_eq!(site.files(), (vec![], vec![]));
        let again = site.put("image/png", bytes.clone()).await;
        assert_eq!(site.get(&again).await.body, bytes);
    }

    #[tokio::test]
    async fn a_start_clears_away_what_has_no_row() {
        let site = Site::new();
        let id = site.put("text/plain", "kept").await;
        let kept = site.files().0;
        // As after a power cut: a file on its way, one in its place without a row, and one whose row was committed
        // just before its second name would have gone.
        let incoming = site.dir.path().join("incoming");
        std::fs::write(incoming.join("halfway"), "x").unwrap();
        let orphan = "ab".repeat(32);
        std::fs::create_dir_all(site.dir.path().join("ab/ab")).unwrap();
        std::fs::write(site.dir.path().join("ab/ab").join(&orphan), "x").unwrap();
        std::fs::write(incoming.join(format!("{orphan}-1")), "x").unwrap();
        std::fs::write(incoming.join(format!("{}-2", kept[0])), "x").unwrap();
        let again = crate::media::Media::new(
            site.app.store.clone(),
            &site.app.config,
            site.app.clock.clone(),
            site.app.rng.clone(),
            site.app.shutdown.clone(),
        );
        again.start().await.unwrap();
        assert_eq!(site.files(), (kept, vec![]));
        assert_eq!(site.get(&id).await.body, "kept");
    }

    #[tokio::test]
    async fn an_upload_whose_row_is_not_committed_leaves_nothing() {
        let disk = store::MemoryDisk::new();
        let site = Site::on(&disk);
        disk.set_full(true);
        for _ in 0..2 {
            let answer = site.ask(upload, call("alice", "", &[]).body("x")).await;
            assert!(answer.status.is_server_error(), "{answer:?}");
            assert_eq!(site.files().0.len(), 1, "nobody knows yet what came of it, and nothing more is taken");
        }
        disk.set_full(false);
        until(&site, || site.files() == (vec![], vec![])).await;
    }

    #[tokio::test]
    async fn an_upload_whose_row_turns_out_to_be_there_keeps_its_file() {
        let disk = store::MemoryDisk::new();
        let site = Site::on(&disk);
        disk.set_faults(store::Faults { unknown_written: 1.0, ..store::Faults::default() });
        let answer = site.ask(upload, call("alice", "", &[]).body("here")).await;
        assert!(answer.status.is_server_error(), "{answer:?}");
        disk.set_faults(store::Faults::default());
        until(&site, || site.app.store.health().is_ok() && site.files().1.is_empty()).await;
        use store::Read as _;
        let read = site.app.store.snapshot();
        let (media_id, _) = read.first(&crate::schema::MEDIA, crate::schema::MEDIA.all()).unwrap().unwrap();
        let answer = site.get(&media_id).await;
        assert_eq!((answer.status.as_u16(), &*answer.body), (200, &b"here"[..]), "never a row without a file");
    }

    /// Waits for something that happens in the background, some time later.
    async fn until(site: &Site, so: impl Fn() -> bool) {
        let wait = async {
            while !so() {
                site.app.clock.advance(Duration::from_secs(1));
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), wait).await.unwrap();
    }
}
