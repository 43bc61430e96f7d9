//! Previews of what URLs lead to: a title, a text, a picture, for sites that the settings name.
//!
//! - `html.rs`: tags and text. `page.rs`: what a page says of itself. Both are pure.
//! - here: from a URL to a preview, and what is remembered of it.
//!
//! What may be connected to is decided by `outgoing`. The operator names the sites, so that nobody is asked for a
//! robots.txt, and what a page says is enough: other services are not asked for more about it (oEmbed).

pub mod html;
pub mod page;
#[cfg(test)]
pub mod testing;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use encoding_rs::{Encoding, UTF_8, WINDOWS_1252};
use http::StatusCode;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use ruma::UserId;
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;
use url::Url;

use crate::App;
use crate::blocking;
use crate::error::{Error, ErrorCode, Result};
use crate::media::MediaId;
use crate::outgoing::fetch::{Fetch, Fetched, Take};
use crate::outgoing::{Outgoing, OutgoingError};
use page::Page;

/// Sites that are asked at one time.
const AT_ONCE: usize = 8;
const MAX_URL_BYTES: usize = 2 * 1024;
/// For the page, and again for its picture.
const TIME: Duration = Duration::from_secs(10);
/// What stands at the start of a page is enough.
const MAX_PAGE_BYTES: usize = 512 * 1024;
const MAX_PICTURE_BYTES: usize = 8 * 1024 * 1024;
/// Where a page names its encoding.
const PRESCAN_BYTES: usize = 1_024;
/// How long a preview is remembered, and how long that there is none.
const LIFETIME_MS: u64 = 60 * 60 * 1_000;
const FAILURE_LIFETIME_MS: u64 = 60 * 1_000;

/// What was seen lately.
pub struct Previews {
    kept: Cache<String, Arc<Kept>, Weight>,
    turns: Semaphore,
}

struct Kept {
    until_ms: u64,
    outcome: Result<Preview, Failure>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Preview {
    /// A JSON object.
    body: Bytes,
    image: Option<MediaId>,
}

/// Why there is no preview.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Failure {
    Outgoing(OutgoingError),
    Status(u16),
    /// Something of ours, which is in the log.
    Ours,
}

#[derive(Clone)]
struct Weight;
impl Weighter<String, Arc<Kept>> for Weight {
    fn weight(&self, url: &String, kept: &Arc<Kept>) -> u64 {
        256 + url.len() as u64 + kept.outcome.as_ref().map_or(0, |preview| preview.body.len() as u64)
    }
}

impl Previews {
    /// Remembers in about so many bytes.
    pub fn new(bytes: u64) -> Self {
        Previews { kept: Cache::with_weighter((bytes / 1_024) as usize, bytes, Weight), turns: Semaphore::new(AT_ONCE) }
    }
}

/// The preview of what a URL leads to, as a JSON object. A picture that is new here is kept as an upload of whoever asks.
pub async fn of(app: &App, user_id: &UserId, url: &str) -> Result<Bytes> {
    let allowed = &app.config.media.preview_hosts;
    if allowed.is_empty() {
        return Err(Error::new(
            StatusCode::NOT_FOUND,
            ErrorCode::Unrecognized,
            "This server makes no previews of URLs",
        ));
    }
    let url = parse(url)?;
    if !Outgoing::may_fetch(allowed, &url) {
        return Err(Error::forbidden("This server makes no previews of this site"));
    }
    let kept = &app.previews.kept;
    if let Some(old) = kept.get(url.as_str())
        && !old.lives(app)?
    {
        kept.remove_if(url.as_str(), |now| Arc::ptr_eq(now, &old));
    }
    // Whoever asks for the same meanwhile waits for it.
    let found = match kept.get_value_or_guard_async(url.as_str()).await {
        Ok(found) => found,
        Err(guard) => {
            let made = Arc::new(Kept::new(app, make(app, user_id, &url).await));
            // Fails only if it was removed while it was made.
            let _ = guard.insert(made.clone());
            made
        }
    };
    found.outcome.as_ref().map(|preview| preview.body.clone()).map_err(Failure::to_error)
}

/// A URL as a client gives it. What no browser would fetch, or only with a name and a password, is none.
fn parse(url: &str) -> Result<Url> {
    let mut parsed = Url::parse(url).map_err(|_| Error::invalid_param("This is no URL"))?;
    let plain = parsed.username().is_empty() && parsed.password().is_none() && parsed.has_host();
    if !plain || !["http", "https"].contains(&parsed.scheme()) || parsed.as_str().len() > MAX_URL_BYTES {
        return Err(Error::invalid_param("There are no previews of such URLs"));
    }
    parsed.set_fragment(None);
    Ok(parsed)
}

impl Kept {
    fn new(app: &App, outcome: Result<Preview, Failure>) -> Self {
        let lifetime = if outcome.is_ok() { LIFETIME_MS } else { FAILURE_LIFETIME_MS };
        Kept { until_ms: app.clock.now_ms().saturating_add(lifetime), outcome }
    }

    /// Whether it is young enough, and its picture still there.
    fn lives(&self, app: &App) -> Result<bool> {
        let image = self.outcome.as_ref().ok().and_then(|preview| preview.image.as_ref());
        let shown = image.map_or(Ok(true), |media_id| app.media.is_shown(media_id))?;
        Ok(shown && self.until_ms > app.clock.now_ms())
    }
}

impl Failure {
    fn to_error(&self) -> Error {
        match self {
            Failure::Outgoing(OutgoingError::TimedOut(_)) => {
                Error::connection_timeout("The site did not answer in time")
            }
            Failure::Outgoing(OutgoingError::NotAllowed(_)) => {
                Error::forbidden("The site leads to where this server may not connect to")
            }
            Failure::Outgoing(OutgoingError::Unreachable(..)) => Error::no_preview("The site cannot be reached"),
            Failure::Status(status) => Error::no_preview(format!("The site answers {status}")),
            Failure::Ours => Error::unavailable("The preview could not be made"),
        }
    }
}

impl From<OutgoingError> for Failure {
    fn from(error: OutgoingError) -> Self {
        tracing::debug!(%error, "no preview");
        Failure::Outgoing(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        tracing::debug!(%error, "no preview");
        Failure::Ours
    }
}

async fn make(app: &App, user_id: &UserId, url: &Url) -> Result<Preview, Failure> {
    let _turn = app.previews.turns.acquire().await;
    let takes = |content_type: &str| match essence(content_type).as_str() {
        "text/html" | "application/xhtml+xml" => Take::Start(MAX_PAGE_BYTES),
        other if other.starts_with("image/") => Take::Whole(MAX_PICTURE_BYTES),
        _ => Take::Nothing,
    };
    let accept = "text/html,application/xhtml+xml,image/*;q=0.8,*/*;q=0.1";
    let fetch = Fetch { url, accept, within: TIME, takes: &takes };
    let fetched = app.outgoing.fetch(&app.config.media.preview_hosts, fetch).await?;
    if !fetched.status.is_success() {
        return Err(Failure::Status(fetched.status.as_u16()));
    }
    match takes(&fetched.content_type) {
        Take::Start(_) => of_page(app, user_id, fetched).await,
        Take::Whole(_) => with_picture(app, user_id, Map::new(), fetched.body).await,
        Take::Nothing => Ok(preview(Map::new(), None)),
    }
}

async fn of_page(app: &App, user_id: &UserId, fetched: Fetched) -> Result<Preview, Failure> {
    let Fetched { url, content_type, body, .. } = fetched;
    let page = blocking::run(move || page::read(&text(&body, &content_type))).await?;
    let picture_url = picture_url(&url, &page);
    let fields = page.properties.into_iter().map(|(name, value)| (name, Value::String(value))).collect();
    match picture_url {
        Some(picture_url) => with_picture(app, user_id, fields, fetch_picture(app, &picture_url).await).await,
        None => Ok(preview(fields, None)),
    }
}

fn picture_url(url: &Url, page: &Page) -> Option<Url> {
    let base = page.base.as_deref().and_then(|base| url.join(base).ok());
    base.as_ref().unwrap_or(url).join(page.image.as_deref()?).ok()
}

/// The bytes of a picture. None, if there is no such picture or it is not to be had: the rest of the preview is.
async fn fetch_picture(app: &App, url: &Url) -> Vec<u8> {
    let takes = |_: &str| Take::Whole(MAX_PICTURE_BYTES);
    let fetch = Fetch { url, accept: "image/*", within: TIME, takes: &takes };
    match app.outgoing.fetch(&app.config.media.preview_hosts, fetch).await {
        Ok(fetched) => fetched.body,
        Err(error) => {
            tracing::debug!(%error, "a preview without its picture");
            Vec::new()
        }
    }
}

async fn with_picture(
    app: &App,
    user_id: &UserId,
    mut fields: Map<String, Value>,
    bytes: Vec<u8>,
) -> Result<Preview, Failure> {
    let Some(picture) = app.media.add_preview(user_id, bytes).await? else { return Ok(preview(fields, None)) };
    fields.insert("og:image".to_owned(), json!(picture.media_id.uri(&app.server_name)));
    fields.insert("og:image:type".to_owned(), json!(picture.content_type));
    fields.insert("og:image:width".to_owned(), json!(picture.width));
    fields.insert("og:image:height".to_owned(), json!(picture.height));
    fields.insert("matrix:image:size".to_owned(), json!(picture.size_bytes));
    Ok(preview(fields, Some(picture.media_id)))
}

fn preview(fields: Map<String, Value>, image: Option<MediaId>) -> Preview {
    Preview { body: Value::Object(fields).to_string().into(), image }
}

/// A content type without its parameters.
fn essence(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// The text of a page: in the encoding that its first bytes, its content type or the page itself names, in this order;
/// else in UTF-8 if it is that, or in what old pages are in.
fn text(bytes: &[u8], content_type: &str) -> String {
    let named = |label: &str| Encoding::for_label(label.as_bytes());
    let declared = || {
        let start = WINDOWS_1252.decode_without_bom_handling(bytes.get(..PRESCAN_BYTES).unwrap_or(bytes)).0;
        let encoding = named(&page::declared_encoding(&start)?)?;
        // Nobody could have read that in the encoding it names.
        Some(if encoding.is_ascii_compatible() { encoding } else { UTF_8 })
    };
    let guessed = || match std::str::from_utf8(bytes) {
        Err(wrong) if wrong.error_len().is_some() => WINDOWS_1252,
        // Or it was cut off within a character.
        _ => UTF_8,
    };
    let encoding = page::charset(content_type).and_then(named).or_else(declared).unwrap_or_else(guessed);
    encoding.decode(bytes).0.into_owned()
}

#[cfg(test)]
mod tests {
    use image::{DynamicImage, ImageFormat};
    use serde_json::json;

    use super::testing::Site;
    use super::*;
    use crate::config::Config;
    use crate::http::Answer;
    use crate::testing::{Server, User, config};

    /// A server that may look at a site, and somebody who asks.
    struct World {
        site: Site,
        server: Server,
        alice: User,
        _dir: tempfile::TempDir,
    }

    impl World {
        async fn new() -> Self {
            Self::with(|_, _| {}).await
        }

        async fn with(change: impl FnOnce(&mut Config, &Site)) -> Self {
            let (site, dir) = (Site::start().await, tempfile::tempdir().unwrap());
            let mut config = config();
            config.media.dir = Some(dir.path().to_owned());
            config.media.preview_hosts = vec![site.base().parse().unwrap()];
            change(&mut config, &site);
            let server = Server::new(config);
            let alice = server.user("alice").await;
            World { site, server, alice, _dir: dir }
        }

        async fn ask(&self, url: &str) -> Answer {
            let url = crate::client::testing::enc(url);
            self.alice.client.get(&format!("/_matrix/client/v1/media/preview_url?url={url}")).await
        }

        async fn see(&self, path: &str) -> Value {
            let answer = self.ask(&self.site.url(path)).await;
            assert_eq!(answer.status, 200, "{}", answer.json());
            answer.json()
        }
    }

    fn picture(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = std::io::Cursor::new(Vec::new());
        DynamicImage::new_rgb8(width, height).write_to(&mut bytes, ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    const HTML: &str = "content-type: text/html";

    #[tokio::test]
    async fn pitfall_107_a_page_is_seen_with_its_picture_once() {
        let world = World::new().await;
        let bytes = picture(40, 30);
        world.site.put("/wiki/", "200 OK", HTML, b"<title>Wiki</title><meta property=og:image content='a.png'><p>x");
        world.site.put("/wiki/a.png", "200 OK", "content-type: text/plain", &bytes);
        let seen = world.see("/wiki/#part").await;
        let image = seen["og:image"].as_str().unwrap().to_owned();
        let expected = json!({
            "og:title": "Wiki", "og:image": image, "og:image:type": "image/png", "og:image:width": 40,
            "og:image:height": 30, "matrix:image:size": bytes.len(),
        });
        assert_eq!(seen, expected);
        let download = image.replace("mxc://", "/_matrix/client/v1/media/download/");
        let file = world.alice.client.get(&download).await;
        assert_eq!((file.status.as_u16(), &file.body[..]), (200, &bytes[..]));
        assert_eq!(world.see("/wiki/").await, expected);
        assert_eq!((world.site.count("/wiki/"), world.site.count("/wiki/a.png")), (1, 1));
        world.server.app.clock.advance(Duration::from_secs(3_601));
        assert_eq!(world.see("/wiki/").await, expected, "the same picture has the same URI");
        assert_eq!(world.site.count("/wiki/"), 2);
        // A picture that an administrator deleted is fetched again.
        let media_id = MediaId::parse(image.rsplit('/').next().unwrap()).unwrap();
        assert!(world.server.app.media.delete(&media_id).await.unwrap());
        assert_eq!(world.see("/wiki/").await, expected);
        assert_eq!(world.site.count("/wiki/"), 3);
    }

    #[tokio::test]
    async fn pictures_and_other_files_have_previews_too() {
        let world = World::new().await;
        world.site.put("/a.png", "200 OK", "content-type: image/png", &picture(3, 4));
        assert_eq!(world.see("/a.png").await["og:image:height"], 4);
        world.site.put("/b.png", "200 OK", "content-type: image/png", b"no picture");
        assert_eq!(world.see("/b.png").await, json!({}));
        world.site.put("/c.svg", "200 OK", "content-type: image/svg+xml", b"<svg><script>alert(1)</script></svg>");
        assert_eq!(world.see("/c.svg").await, json!({}));
        world.site.put("/d.pdf", "200 OK", "content-type: application/pdf", b"%PDF");
        assert_eq!(world.see("/d.pdf").await, json!({}));
    }

    #[tokio::test]
    async fn pitfall_107_a_picture_is_fetched_from_allowed_places_only() {
        let (world, other) = (World::new().await, Site::start().await);
        other.put("/a.png", "200 OK", "content-type: image/png", &picture(3, 4));
        for (n, target) in
            [other.url("/a.png"), "file:///etc/passwd".into(), "http://169.254.169.254/a".into()].iter().enumerate()
        {
            let (path, html) =
                (format!("/{n}"), format!("<title>t</title><meta property=og:image content='{target}'>"));
            world.site.put(&path, "200 OK", HTML, html.as_bytes());
            assert_eq!(world.see(&path).await, json!({ "og:title": "t" }), "{target}");
        }
        assert_eq!(other.count("/a.png"), 0);
    }

    #[tokio::test]
    async fn pitfall_107_only_sites_that_settings_name_are_asked() {
        let world = World::new().await;
        let refused = async |url: &str| {
            let answer = world.ask(url).await;
            (answer.status.as_u16(), answer.errcode())
        };
        let is = |status: u16, code: &str| (status, code.to_owned());
        let other = Site::start().await;
        assert_eq!(refused(&other.url("/")).await, is(403, "M_FORBIDDEN"));
        world.site.put("/away", "302 Found", &format!("location: {}", other.url("/")), b"");
        assert_eq!(refused(&world.site.url("/away")).await, is(403, "M_FORBIDDEN"));
        assert_eq!(other.count("/"), 0);
        for url in ["", "wiki", "ftp://127.0.0.1/", "http://a:b@127.0.0.1/", "file:///etc/passwd", "http://"] {
            assert_eq!(refused(url).await, is(400, "M_INVALID_PARAM"), "{url}");
        }
        assert_eq!(refused(&format!("http://127.0.0.1/{}", "x".repeat(3_000))).await, is(400, "M_INVALID_PARAM"));
        let path = "/_matrix/client/v1/media/preview_url";
        assert_eq!(world.alice.client.get(path).await.errcode(), "M_MISSING_PARAM");
        assert_eq!(world.server.client.get(path).await.errcode(), "M_MISSING_TOKEN");
        assert_eq!(world.alice.client.get(&format!("{path}?url=http://a/&ts=x")).await.errcode(), "M_INVALID_PARAM");
    }

    #[tokio::test]
    async fn without_settings_there_are_no_previews() {
        let server = Server::default();
        let alice = server.user("alice").await;
        for path in ["/_matrix/client/v1/media/preview_url", "/_matrix/media/v3/preview_url"] {
            let answer = alice.client.get(&format!("{path}?url=https://wiki.example.org/")).await;
            assert_eq!((answer.status.as_u16(), answer.errcode().as_str()), (404, "M_UNRECOGNIZED"));
        }
    }

    #[tokio::test]
    async fn a_site_that_fails_is_left_alone_for_a_minute() {
        let world = World::new().await;
        let url = world.site.url("/gone");
        for _ in 0..2 {
            let answer = world.ask(&url).await;
            assert_eq!((answer.status.as_u16(), answer.errcode().as_str()), (502, "M_UNKNOWN"));
        }
        assert_eq!(world.site.count("/gone"), 1);
        world.site.put("/gone", "200 OK", HTML, b"<title>Back</title>");
        world.server.app.clock.advance(Duration::from_secs(61));
        assert_eq!(world.see("/gone").await, json!({ "og:title": "Back" }));
    }

    #[tokio::test]
    async fn those_who_ask_for_the_same_at_once_ask_the_site_once() {
        let world = World::new().await;
        world.site.put("/", "200 OK", HTML, b"<title>t</title>");
        let (one, two) = tokio::join!(world.see("/"), world.see("/"));
        assert_eq!((one, world.site.count("/")), (two, 1));
    }

    #[test]
    fn texts_are_read_in_their_encoding() {
        let read = |bytes: &[u8], content_type: &str| text(bytes, content_type);
        assert_eq!(read("ü".as_bytes(), "text/html"), "ü");
        assert_eq!(read(b"\xfc", "text/html"), "ü");
        assert_eq!(read("aü".as_bytes().get(..2).unwrap(), "text/html"), "a\u{fffd}");
        assert_eq!(read(b"\xc1", "text/html; charset=koi8-r"), "а");
        assert_eq!(read(b"\xef\xbb\xbf\xc3\xbc", "text/html; charset=koi8-r"), "ü");
        assert!(read(b"<meta charset=windows-1251>\xff", "text/html").ends_with('я'));
        assert!(read(b"<meta charset=utf-16>\xc3\xbc", "text/html").ends_with('ü'));
        assert_eq!(read(b"\xfc", "text/html; charset=nonsense"), "ü");
    }
}
