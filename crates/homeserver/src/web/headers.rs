//! What is said about a file of the web client: its type, how long to keep it, what a page may load; and what a request
//! says about what it takes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HeaderMap,
    HeaderName, HeaderValue, IF_NONE_MATCH, REFERRER_POLICY, VARY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use ring::digest::{SHA256, digest};

use super::site::{Content, Encoding, Page};
use crate::config::Config;
use crate::media::headers::names;

const OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");
const FOR_EVER: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable");
/// To be asked for again each time, which costs a 304.
const ASK_AGAIN: HeaderValue = HeaderValue::from_static("no-cache");

/// All headers but the length.
pub(super) fn describe(page: &Page, content: &Content, encoding: Option<Encoding>, headers: &mut HeaderMap) {
    headers.insert(CONTENT_TYPE, page.content_type.clone());
    headers.insert(ETAG, content.etag.clone());
    headers.insert(CACHE_CONTROL, if page.named_by_content { FOR_EVER } else { ASK_AGAIN });
    headers.insert(CONTENT_SECURITY_POLICY, page.policy.clone());
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("SAMEORIGIN"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(OPENER_POLICY, HeaderValue::from_static("same-origin"));
    if page.has_encodings() {
        headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    }
    if let Some(encoding) = encoding {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static(encoding.name()));
    }
}

/// Whether the client says that it has this content.
pub(super) fn has_already(headers: &HeaderMap, content: &Content) -> bool {
    headers.get_all(IF_NONE_MATCH).iter().any(|list| names(list, &content.etag))
}

/// Whether a client takes an encoding.
pub(super) fn accepts(headers: &HeaderMap, encoding: &str) -> bool {
    let lists = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|list| list.to_str().ok());
    lists.flat_map(|list| list.split(',')).any(|item| {
        let mut parts = item.split(';').map(str::trim);
        let named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case(encoding));
        let weight = parts.find_map(|part| part.strip_prefix("q=")?.trim().parse::<f32>().ok());
        named && weight.unwrap_or(1.0) > 0.0
    })
}

/// The type that a name ends in. What is not known is not shown by a browser.
pub(super) fn content_type(name: &str) -> HeaderValue {
    let ending = name.rsplit('/').next().and_then(|last| last.rsplit_once('.')).map_or("", |(_, ending)| ending);
    HeaderValue::from_static(match ending.to_ascii_lowercase().as_str() {
        "html" | "htm" => "text/html; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "json" | "map" => "application/json",
        "webmanifest" => "application/manifest+json",
        "wasm" => "application/wasm",
        "txt" => "text/plain; charset=utf-8",
        "xml" => "application/xml",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "avif" => "image/avif",
        "ico" => "image/vnd.microsoft.icon",
        "woff" => "font/woff",
        "woff2" => "font/woff2",
        "ttf" => "font/ttf",
        "otf" => "font/otf",
        "ogg" | "oga" => "audio/ogg",
        "mp3" => "audio/mpeg",
        "wav" => "audio/wav",
        "m4a" => "audio/mp4",
        "mp4" => "video/mp4",
        "webm" => "video/webm",
        "pdf" => "application/pdf",
        _ => "application/octet-stream",
    })
}

/// Whether a name holds a hash, as build tools write it: `assets/index-BxK7f0aQ.js`, `bundles/0f3c…/main.js`. What is
/// overlooked costs a 304, what is wrongly found would stay in browsers for ever: so only what can hardly be a word.
pub(super) fn is_named_by_content(name: &str) -> bool {
    let (folders, last) = name.rsplit_once('/').unwrap_or(("", name));
    let Some((stem, _)) = last.rsplit_once('.') else { return false };
    let is_digest = |folder: &str| folder.len() >= 16 && folder.bytes().all(|b| b.is_ascii_hexdigit());
    let ending = stem.rsplit(['-', '.']).next().filter(|ending| *ending != stem);
    folders.split('/').any(is_digest)
        || ending.is_some_and(is_hash)
        || (folders.split('/').any(|folder| folder == "assets") && ends_in_short_hash(stem))
}

/// Eight or more letters and digits in no order. Words, numbers and `1024x1024` are made of a few long runs, a hash of
/// many short ones.
fn is_hash(ending: &str) -> bool {
    let short = runs(ending).filter(|run| run.len() <= 2).count();
    ending.len() >= 8 && ending.bytes().all(|byte| byte.is_ascii_alphanumeric()) && short >= 3
}

/// Eight characters behind a dash, as two build tools end the names in their folder `assets`. That they are no words is
/// seen by a letter that stands alone, by capitals within, or by a number that is not the end.
fn ends_in_short_hash(stem: &str) -> bool {
    let Some((before, ending)) = stem.len().checked_sub(8).and_then(|at| stem.split_at_checked(at)) else {
        return false;
    };
    let is_number = |run: &[u8]| run.iter().all(u8::is_ascii_digit);
    let is_word = |run: &[u8]| {
        let capitals = run.iter().take_while(|byte| byte.is_ascii_uppercase()).count();
        run.len() >= 2 && (capitals == 0 || capitals == run.len() || (capitals == 1 && run.len() >= 3))
    };
    let runs: Vec<&[u8]> = runs(ending).collect();
    let odd = runs.iter().any(|run| !is_number(run) && !is_word(run));
    let number_within = runs.split_last().is_some_and(|(_, rest)| rest.iter().any(|run| is_number(run)));
    let is_size = matches!(runs.as_slice(), [_, [b'x'], _]);
    let plain = ending.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    before.ends_with('-') && plain && (odd || number_within) && !is_size
}

/// Pieces of one kind. `Dark` is one: a capital letter may begin one, but not end it.
fn runs(text: &str) -> impl Iterator<Item = &[u8]> {
    let kind = |byte: &u8| (byte.is_ascii_digit(), byte.is_ascii_uppercase());
    text.as_bytes().chunk_by(move |a, b| kind(a) == kind(b) || (a.is_ascii_uppercase() && b.is_ascii_lowercase()))
}

// ---- what a page may load ----------------------------------------------------------------------------------------

/// The content security policy: everything from this server, nothing from anybody else.
pub(super) struct Policy {
    /// Other origins of this server, and those that the settings allow.
    connect: String,
    homeserver: String,
}

impl Policy {
    pub(super) fn new(config: &Config) -> Self {
        let homeserver = config.well_known.client_base_url.as_deref().and_then(origin).unwrap_or_default();
        let mut connect = homeserver.clone();
        for allowed in &config.web.connect {
            let allowed = allowed.to_string();
            connect.push_str(&format!(" {allowed} {}", allowed.replacen("http", "ws", 1)));
        }
        Self { connect, homeserver }
    }

    /// The policy of a page that brings these scripts (hashes) inside itself.
    pub(super) fn with_scripts(&self, scripts: &[String]) -> HeaderValue {
        let Self { connect, homeserver } = self;
        let policy: [(&str, &[&str]); 13] = [
            ("default-src", &["'none'"]),
            ("script-src", &["'self' 'wasm-unsafe-eval'", &scripts.join(" ")]),
            ("worker-src", &["'self' blob:"]),
            // Clients set styles from scripts; a style cannot fetch from elsewhere under this policy.
            ("style-src", &["'self' 'unsafe-inline'"]),
            ("img-src", &["'self' blob: data:", homeserver]),
            ("media-src", &["'self' blob: data:", homeserver]),
            ("font-src", &["'self' data:"]),
            ("connect-src", &["'self' blob: data:", connect]),
            ("manifest-src", &["'self'"]),
            ("frame-src", &["'self' blob:"]),
            ("frame-ancestors", &["'self'"]),
            ("form-action", &["'self'", homeserver]),
            ("base-uri", &["'self'"]),
        ];
        let directive = |(name, sources): &(&str, &[&str])| {
            let sources = sources.iter().map(|source| source.trim()).filter(|source| !source.is_empty());
            std::iter::once(*name).chain(sources).collect::<Vec<_>>().join(" ")
        };
        let policy = policy.iter().map(directive).collect::<Vec<_>>().join("; ");
        HeaderValue::from_str(&policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
    }
}

/// Scheme, host and port of a URL.
fn origin(url: &str) -> Option<String> {
    let uri: http::Uri = url.parse().ok()?;
    Some(format!("{}://{}", uri.scheme_str()?, uri.authority()?.as_str().rsplit('@').next()?))
}

/// The scripts that stand in a page itself, as a policy names them.
pub(super) fn inline_scripts(html: &str) -> Vec<String> {
    // Browsers read all line ends like this before anything else.
    let html = html.replace("\r\n", "\n").replace('\r', "\n");
    let lower = html.to_ascii_lowercase();
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(start) = lower.get(at..).and_then(|rest| rest.find("<script")).map(|start| at + start) {
        at = start + "<script".len();
        let Some(open) = tag_end(lower.get(at..).unwrap_or("")) else { break };
        let tag = lower.get(at..at + open).unwrap_or("");
        at += open + 1;
        let Some(length) = lower.get(at..).and_then(|rest| rest.find("</script")) else { break };
        if tag.starts_with(|c: char| c.is_ascii_whitespace() || c == '/') && has_src(tag) {
            continue;
        }
        let hash = digest(&SHA256, html.get(at..at + length).unwrap_or("").as_bytes());
        found.push(format!("'sha256-{}'", STANDARD.encode(hash)));
        at += length;
    }
    found
}

/// The place of the bracket that closes a tag: not one in quotes.
fn tag_end(rest: &str) -> Option<usize> {
    let mut quote = None;
    rest.bytes().position(|byte| {
        match (quote, byte) {
            (None, b'"' | b'\'') => quote = Some(byte),
            (Some(open), _) if open == byte => quote = None,
            _ => {}
        }
        quote.is_none() && byte == b'>'
    })
}

fn has_src(tag: &str) -> bool {
    tag.split_ascii_whitespace().any(|attribute| attribute == "src" || attribute.starts_with("src="))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().unwrap())])
    }

    #[test]
    fn encodings_are_taken_by_name_and_weight() {
        for (list, takes) in [
            ("br", true),
            ("gzip, deflate, br, zstd", true),
            ("gzip;q=1.0, BR;q=0.1", true),
            ("br;q=0", false),
            ("br; q=0.0, gzip", false),
            ("gzip", false),
            ("brotli", false),
            ("*", false),
            ("", false),
            ("br;q=x", true),
        ] {
            assert_eq!(accepts(&headers(ACCEPT_ENCODING, list), "br"), takes, "{list}");
        }
        assert!(!accepts(&HeaderMap::new(), "br"));
    }

    #[test]
    fn types_follow_the_ending_and_the_unknown_is_not_shown() {
        for (name, expected) in [
            ("index.html", "text/html; charset=utf-8"),
            ("a/b.c/sw.JS", "text/javascript; charset=utf-8"),
            ("olm.wasm", "application/wasm"),
            ("a.woff2", "font/woff2"),
            ("LICENSE", "application/octet-stream"),
            ("folder.html/file", "application/octet-stream"),
            ("x.exe", "application/octet-stream"),
            ("", "application/octet-stream"),
        ] {
            assert_eq!(content_type(name), expected, "{name}");
        }
    }

    #[test]
    fn only_what_cannot_be_a_word_is_a_hash() {
        for hashed in [
            "assets/index-BxK7f0aQ.js",
            "assets/index-KxCSKDtb.css",
            "assets/index-Atzb1wkb.js",
            "assets/index-yNHlaxUt.js",
            "assets/ReactPrism-6_8cFNpw.js",
            "assets/Twemoji.Mozilla.v.7.0-24C-IzKj.woff2",
            "deep/assets/pdf--JlfJc1I.js",
            "assets/main-OCS7QBXT.js",
            "Inter-Black-067c82f7.woff",
            "main.5f3e9c1b2a7d.js",
            "bundles/0f3c5a9b8e7d6c5b4a39/theme.css",
        ] {
            assert!(is_named_by_content(hashed), "{hashed}");
        }
        for plain in [
            "index.html",
            "sw.js",
            "config.json",
            "theme-element-light.css",
            "notification-permission.js",
            "android-chrome-192x192.png",
            "icon-1024x10240.png",
            "report-20240131.js",
            "my-JavaScript.js",
            "some-DarkMode.css",
            "NOTIFICATION-SETTINGS.js",
            "number-23456723.js",
            "an-HTMLElement.js",
            "release-v20240131.js",
            "Twemoji.Mozilla.v15.1.0.woff2",
            "BxK7f0aQ.js",
            "index-KxCSKDtb.css",
            "assets/BxK7f0aQ.js",
            "assets/a-settings.js",
            "assets/a-my-style.css",
            "assets/a-DarkMode.css",
            "assets/a-SETTINGS.css",
            "assets/a-version2.css",
            "assets/a-20240131.css",
            "assets/a-1024x768.png",
            "assets/a-äöüäöüäöü.png",
            "assets/short.js",
            "a/b-%2e%2e%2e%2e1.js",
            "",
            ".",
            "-",
        ] {
            assert!(!is_named_by_content(plain), "{plain}");
        }
    }

    fn policy(change: impl FnOnce(&mut Config)) -> String {
        let mut config = Config::new(ruma::owned_server_name!("hs.test"));
        change(&mut config);
        Policy::new(&config).with_scripts(&["'sha256-x'".to_owned()]).to_str().unwrap().to_owned()
    }

    #[test]
    fn a_page_may_load_from_here_and_from_nowhere_else() {
        let own = policy(|_| {});
        assert!(own.starts_with("default-src 'none'; script-src 'self' 'wasm-unsafe-eval' 'sha256-x'; "), "{own}");
        assert!(!own.contains("://") && !own.contains('*') && !own.contains("'unsafe-eval'"), "{own}");
        assert!(own.contains("frame-ancestors 'self'") && own.contains("connect-src 'self' blob: data:;"), "{own}");

        let told = policy(|config| {
            config.well_known.client_base_url = Some("https://user@matrix.hs.test:8448/path;x".to_owned());
            config.web.connect = vec!["https://sfu.hs.test".parse().unwrap(), "http://10.0.0.1:*".parse().unwrap()];
        });
        let connect = "connect-src 'self' blob: data: https://matrix.hs.test:8448 https://sfu.hs.test \
                       wss://sfu.hs.test http://10.0.0.1:* ws://10.0.0.1:*;";
        assert!(told.contains(connect), "{told}");
        assert!(told.contains("img-src 'self' blob: data: https://matrix.hs.test:8448;"), "{told}");
    }

    #[test]
    fn a_base_url_that_is_none_opens_nothing() {
        for odd in ["", "/", "matrix.hs.test", "https://", "https:// *", "https://a;script-src *", "a\r\nb: c"] {
            let policy = policy(|config| config.well_known.client_base_url = Some(odd.to_owned()));
            assert!(policy.matches("script-src").count() == 1 && !policy.contains('*'), "{odd}: {policy}");
        }
    }

    /// The hash that browsers name for this script in their messages.
    #[test]
    fn scripts_in_a_page_are_named_by_their_hash() {
        let known = "'sha256-RFWPLDbv2BY+rCkDzsE+0fr8ylGr2R2faWMhq4lfEQc='"; // doSomething();
        for page in [
            "<script>doSomething();</script>",
            "<p><SCRIPT type=\"a>b\" >doSomething();</Script><script src=a.js></script>",
            "<script src='x'>ignored</script><script>doSomething();</script >",
        ] {
            assert_eq!(inline_scripts(page), [known], "{page}");
        }
        assert_eq!(inline_scripts("<script>a\r\nb</script>"), inline_scripts("<script>a\nb</script>"));
        assert_eq!(inline_scripts("<script>1</script><script>2</script>").len(), 2);
        for none in ["", "<script", "<script>", "<script>x", "<script src=x></script>", "é<script src>é</script>"] {
            assert!(inline_scripts(none).is_empty(), "{none}");
        }
    }
}
