//! Fetching what users point at: a GET that carries nothing of theirs, redirects followed as far as each place on the way
//! is allowed, no connection kept.

use std::time::Duration;

use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use url::Url;

use super::{Outgoing, OutgoingError, Pointing, place};
use crate::config::Destination;

/// Redirects that are followed.
const MAX_REDIRECTS: usize = 5;

/// What to fetch, and how much of it.
pub struct Fetch<'a> {
    pub url: &'a Url,
    /// The content types that are wanted, as HTTP says it.
    pub accept: &'static str,
    /// From the first packet to the last, redirects included.
    pub within: Duration,
    /// How much is read of an answer with this content type.
    pub takes: &'a (dyn Fn(&str) -> Take + Sync),
}

/// How much of an answer is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    Nothing,
    /// At most so many bytes; what follows does not matter.
    Start(usize),
    /// All of it, if it has no more bytes than this.
    Whole(usize),
}

/// What came back from where the last redirect led.
#[derive(Clone, Debug)]
pub struct Fetched {
    pub url: Url,
    pub status: StatusCode,
    /// As it was said, or the empty string.
    pub content_type: String,
    pub body: Vec<u8>,
}

enum Hop {
    There(Fetched),
    Elsewhere(Url),
}

impl Outgoing {
    /// Whether a URL leads to a place that one of `allowed` covers.
    pub fn may_fetch(allowed: &[Destination], url: &Url) -> bool {
        place(url.as_str()).is_some_and(|(_, place)| allowed.iter().any(|allowed| allowed.covers(&place)))
    }

    /// Fetches from a URL that one of `allowed` covers, and so has every redirect to be. Any other status is an answer.
    pub async fn fetch(&self, allowed: &[Destination], fetch: Fetch<'_>) -> Result<Fetched, OutgoingError> {
        let _turn = self.turns.acquire().await;
        tokio::time::timeout(fetch.within, self.follow(allowed, &fetch))
            .await
            .unwrap_or_else(|_| Err(OutgoingError::TimedOut(named(fetch.url))))
    }

    async fn follow(&self, allowed: &[Destination], fetch: &Fetch<'_>) -> Result<Fetched, OutgoingError> {
        let mut url = fetch.url.clone();
        for _ in 0..=MAX_REDIRECTS {
            match self.hop(allowed, &url, fetch).await? {
                Hop::There(fetched) => return Ok(fetched),
                Hop::Elsewhere(next) => url = next,
            }
        }
        Err(OutgoingError::Unreachable(named(fetch.url), "it redirects too often".to_owned()))
    }

    async fn hop(&self, allowed: &[Destination], url: &Url, fetch: &Fetch<'_>) -> Result<Hop, OutgoingError> {
        let broken = |cause: &dyn std::fmt::Display| OutgoingError::Unreachable(named(url), cause.to_string());
        let (uri, place) = place(url.as_str()).ok_or_else(|| OutgoingError::NotAllowed(named(url)))?;
        if !allowed.iter().any(|allowed| allowed.covers(&place)) {
            return Err(OutgoingError::NotAllowed(place.to_string()));
        }
        let mut sender = self.connect(&place, Pointing::Users).await?;
        let request = Request::get(uri.path_and_query().map_or("/", |path| path.as_str()))
            .header(header::HOST, uri.authority().map_or("", |authority| authority.as_str()))
            .header(header::USER_AGENT, "Skerry")
            .header(header::ACCEPT, fetch.accept)
            .header(header::ACCEPT_ENCODING, "identity")
            .header(header::CONNECTION, "close")
            .body(Full::default())
            .map_err(|cause| broken(&cause))?;
        let response = sender.send_request(request).await.map_err(|cause| broken(&cause))?;
        if let Some(next) = redirected(url, &response) {
            return Ok(Hop::Elsewhere(next));
        }
        let status = response.status();
        let said = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let content_type = said.unwrap_or_default().to_owned();
        let take =
            if is_plain(&response) && status.is_success() { (fetch.takes)(&content_type) } else { Take::Nothing };
        let body = read(response.into_body(), take).await.map_err(|cause| broken(&cause))?;
        Ok(Hop::There(Fetched { url: url.clone(), status, content_type, body }))
    }
}

fn named(url: &Url) -> String {
    url.origin().ascii_serialization()
}

/// Where a redirect leads, if the answer is one.
fn redirected(url: &Url, response: &http::Response<Incoming>) -> Option<Url> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let mut next = url.join(response.headers().get(header::LOCATION)?.to_str().ok()?).ok()?;
    next.set_fragment(None);
    Some(next)
}

/// Whether the body is what it says, not packed.
fn is_plain(response: &http::Response<Incoming>) -> bool {
    let packed = response.headers().get(header::CONTENT_ENCODING);
    packed.is_none_or(|value| value.as_bytes().eq_ignore_ascii_case(b"identity"))
}

async fn read(mut body: Incoming, take: Take) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
    let (limit, whole) = match take {
        Take::Nothing => return Ok(Vec::new()),
        Take::Start(limit) => (limit, false),
        Take::Whole(limit) => (limit, true),
    };
    let announced = hyper::body::Body::size_hint(&body).lower();
    if whole && announced > limit as u64 {
        return Err("the answer is too long".into());
    }
    let mut bytes = Vec::with_capacity(limit.min(announced as usize));
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        let room = limit - bytes.len();
        if data.len() > room && whole {
            return Err("the answer is too long".into());
        }
        bytes.extend_from_slice(data.get(..room).unwrap_or(&data));
        if bytes.len() == limit && !whole {
            break;
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::Config;
    use crate::config::registrations::Registrations;
    use crate::previews::testing::Site;

    fn outgoing() -> Outgoing {
        Outgoing::new(&Config::new(ruma::owned_server_name!("hs.test")), &Registrations::default())
    }

    async fn get(allowed: &str, url: &str, take: Take) -> Result<Fetched, OutgoingError> {
        let (url, takes) = (url.parse().unwrap(), move |_: &str| take);
        let fetch = Fetch { url: &url, accept: "text/html", within: Duration::from_secs(20), takes: &takes };
        outgoing().fetch(&[allowed.parse().unwrap()], fetch).await
    }

    #[tokio::test]
    async fn redirects_are_followed_within_what_is_allowed() {
        let site = Site::start().await;
        site.put("/a", "302 Found", "location: /b#part", b"");
        site.put("/b", "200 OK", "content-type: text/html", b"hello");
        let fetched = get(&site.base(), &site.url("/a"), Take::Whole(9)).await.unwrap();
        assert_eq!((fetched.url.path(), &fetched.body[..], &*fetched.content_type), ("/b", &b"hello"[..], "text/html"));
        site.put("/loop", "307 Go", "location: /loop", b"");
        let endless = get(&site.base(), &site.url("/loop"), Take::Whole(9)).await.unwrap_err();
        assert!(matches!(endless, OutgoingError::Unreachable(..)), "{endless}");
        assert_eq!(site.count("/loop"), MAX_REDIRECTS + 1);
    }

    #[tokio::test]
    async fn pitfall_107_a_redirect_to_elsewhere_is_not_followed() {
        let (site, other) = (Site::start().await, TcpListener::bind("127.0.0.1:0").await.unwrap());
        let inside = format!("http://{}/secret", other.local_addr().unwrap());
        for target in [
            &inside,
            "http://169.254.169.254/latest",
            "file:///etc/passwd",
            "http://a@127.0.0.1/",
            "http://2130706433/",
        ] {
            site.put("/a", "302 Found", &format!("location: {target}"), b"");
            let refused = get(&site.base(), &site.url("/a"), Take::Whole(9)).await.unwrap_err();
            assert!(matches!(refused, OutgoingError::NotAllowed(_)), "{target}: {refused}");
        }
        let came = tokio::time::timeout(Duration::from_millis(50), other.accept()).await;
        assert!(came.is_err(), "somebody connected");
    }

    #[tokio::test]
    async fn no_more_is_read_than_is_wanted() {
        let site = Site::start().await;
        site.put("/long", "200 OK", "content-type: text/html", &[b'x'; 100_000]);
        let start = get(&site.base(), &site.url("/long"), Take::Start(1_000)).await.unwrap();
        assert_eq!(start.body.len(), 1_000);
        let whole = get(&site.base(), &site.url("/long"), Take::Whole(1_000)).await.unwrap_err();
        assert!(matches!(whole, OutgoingError::Unreachable(..)), "{whole}");
        assert_eq!(get(&site.base(), &site.url("/long"), Take::Nothing).await.unwrap().body, b"");
        site.put("/packed", "200 OK", "content-encoding: gzip", b"zzz");
        assert_eq!(get(&site.base(), &site.url("/packed"), Take::Whole(9)).await.unwrap().body, b"");
        site.put("/gone", "410 Gone", "content-type: text/html", b"gone");
        let gone = get(&site.base(), &site.url("/gone"), Take::Whole(9)).await.unwrap();
        assert_eq!((gone.status.as_u16(), &gone.body[..]), (410, &b""[..]));
    }
}
