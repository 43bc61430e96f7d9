//! What is said about a file when it is sent: its type, its name, whether a browser may show it, and how long it may
//! be kept; and which part of it a client wants.

use http::{HeaderMap, HeaderValue, header};
use ruma::http_headers::{CROSS_ORIGIN_RESOURCE_POLICY, ContentDisposition, ContentDispositionType};

/// What a file is, as far as clients are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described<'a> {
    pub content_type: Option<&'a str>,
    pub filename: Option<&'a str>,
    /// Names the content: two files with the same one are the same bytes.
    pub sha256: &'a [u8; 32],
}

pub const OCTET_STREAM: &str = "application/octet-stream";
const MAX_CONTENT_TYPE_BYTES: usize = 255;
pub const MAX_FILENAME_BYTES: usize = 1024;

/// Types that no browser takes for a program. Everything else is for saving, not for showing.
const SHOWN: [&str; 26] = [
    "text/css",
    "text/plain",
    "text/csv",
    "application/json",
    "application/ld+json",
    "image/jpeg",
    "image/gif",
    "image/png",
    "image/apng",
    "image/webp",
    "image/avif",
    "video/mp4",
    "video/webm",
    "video/ogg",
    "video/quicktime",
    "audio/mp4",
    "audio/webm",
    "audio/aac",
    "audio/mpeg",
    "audio/ogg",
    "audio/wave",
    "audio/wav",
    "audio/x-wav",
    "audio/x-pn-wav",
    "audio/flac",
    "audio/x-flac",
];

const SECURITY_POLICY: HeaderValue = HeaderValue::from_static(
    "sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf; style-src 'unsafe-inline'; \
     object-src 'self';",
);
/// Only the client itself may keep it: others have to bring a token of their own. It never changes.
const KEEP: HeaderValue = HeaderValue::from_static("private, max-age=31536000, immutable");

/// The headers of a file. Its length is not among them.
pub fn describe(file: &Described<'_>, headers: &mut HeaderMap) {
    let content_type = file.content_type.unwrap_or(OCTET_STREAM);
    let value = HeaderValue::from_str(content_type).unwrap_or(HeaderValue::from_static(OCTET_STREAM));
    headers.insert(header::CONTENT_DISPOSITION, disposition(value.to_str().unwrap_or(OCTET_STREAM), file.filename));
    headers.insert(header::CONTENT_TYPE, value);
    headers.insert(header::ETAG, etag(file.sha256));
    headers.insert(header::CACHE_CONTROL, KEEP);
    headers.insert(header::CONTENT_SECURITY_POLICY, SECURITY_POLICY);
    headers.insert(CROSS_ORIGIN_RESOURCE_POLICY, HeaderValue::from_static("cross-origin"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
}

/// The content type of an upload, as it will be told to those who download. What is no type at all is not kept.
pub fn content_type(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(header::CONTENT_TYPE)?.to_str().ok()?.trim();
    let fits = text.len() <= MAX_CONTENT_TYPE_BYTES && text.contains('/');
    fits.then(|| text.to_owned())
}

fn disposition(content_type: &str, filename: Option<&str>) -> HeaderValue {
    let shown = is_shown(content_type);
    let kind = if shown { ContentDispositionType::Inline } else { ContentDispositionType::Attachment };
    let value = ContentDisposition::new(kind).with_filename(filename.map(str::to_owned)).to_string();
    let bare = if shown { "inline" } else { "attachment" };
    HeaderValue::from_str(&value).unwrap_or(HeaderValue::from_static(bare))
}

/// Whether a browser may show this type rather than save it.
fn is_shown(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or("").trim();
    SHOWN.iter().any(|shown| shown.eq_ignore_ascii_case(essence))
}

fn etag(sha256: &[u8; 32]) -> HeaderValue {
    HeaderValue::from_str(&format!("\"{}\"", hex(sha256))).unwrap_or(HeaderValue::from_static("\"\""))
}

/// Small letters and digits, two for each byte.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS.get(usize::from(nibble)).copied().unwrap_or_default());
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// Which part of a file is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The client has it already.
    Nothing,
    All,
    /// From the first to before the second byte.
    Range(u64, u64),
    /// A part that the file does not have.
    Outside,
}

impl Part {
    /// What the request headers ask for of a file of `size` bytes.
    pub fn wanted(headers: &HeaderMap, sha256: &[u8; 32], size: u64) -> Self {
        let ours = etag(sha256);
        if headers.get_all(header::IF_NONE_MATCH).iter().any(|value| names(value, &ours)) {
            return Self::Nothing;
        }
        if headers.get(header::IF_RANGE).is_some_and(|condition| condition != ours) {
            return Self::All;
        }
        headers.get(header::RANGE).and_then(|range| range.to_str().ok()).map_or(Self::All, |range| parse(range, size))
    }
}

/// Is our tag in the list (or is the list `*`)? `W/` makes no difference here.
pub fn names(list: &HeaderValue, ours: &HeaderValue) -> bool {
    let (Ok(list), Ok(ours)) = (list.to_str(), ours.to_str()) else { return false };
    list.split(',').map(str::trim).any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == ours)
}

/// One range is answered; what is not understood, or asks for several, gets the whole file, as the protocol allows.
fn parse(range: &str, size: u64) -> Part {
    let Some((first, last)) = range.strip_prefix("bytes=").and_then(|range| range.trim().split_once('-')) else {
        return Part::All;
    };
    let number =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
    let (from, to) = match (first, last) {
        ("", last) => match number(last) {
            Some(0) => return Part::Outside,
            Some(last) => (size.saturating_sub(last), size),
            None => return Part::All,
        },
        (first, "") => match number(first) {
            Some(first) => (first, size),
            None => return Part::All,
        },
        (first, last) => match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => (first, last.saturating_add(1).min(size)),
            _ => return Part::All,
        },
    };
    if from < to { Part::Range(from, to) } else { Part::Outside }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn described(content_type: Option<&str>, filename: Option<&str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        describe(&Described { content_type, filename, sha256: &[0xab; 32] }, &mut headers);
        headers
    }

    fn wanted(headers: &[(header::HeaderName, &str)], size: u64) -> Part {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(name.clone(), value.parse().unwrap());
        }
        Part::wanted(&map, &[0xab; 32], size)
    }

    #[test]
    fn pitfall_105_only_the_whitelist_is_shown() {
        for shown in SHOWN {
            let headers = described(Some(shown), None);
            assert_eq!(headers[header::CONTENT_DISPOSITION], "inline", "{shown}");
        }
        assert_eq!(described(Some("Text/Plain; charset=utf-8"), None)[header::CONTENT_DISPOSITION], "inline");
        for saved in [
            "image/svg+xml",
            "text/html",
            "application/xhtml+xml",
            "text/htmlx",
            "image/png2",
            "",
            "text/plain,text/html",
        ] {
            assert_eq!(described(Some(saved), None)[header::CONTENT_DISPOSITION], "attachment", "{saved}");
        }
        let unknown = described(None, None);
        assert_eq!(unknown[header::CONTENT_TYPE], OCTET_STREAM);
        assert_eq!(unknown[header::CONTENT_DISPOSITION], "attachment");
    }

    #[test]
    fn pitfall_105_every_file_is_fenced_in() {
        let headers = described(Some("image/png"), Some("a.png"));
        assert_eq!(headers[CROSS_ORIGIN_RESOURCE_POLICY], "cross-origin");
        assert_eq!(headers[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
        assert!(headers[header::CONTENT_SECURITY_POLICY].to_str().unwrap().starts_with("sandbox; default-src 'none'"));
        let kept = headers[header::CACHE_CONTROL].to_str().unwrap();
        assert!(kept.contains("private") && kept.contains("immutable") && !kept.contains("public"), "{kept}");
        assert_eq!(headers[header::ETAG], format!("\"{}\"", "ab".repeat(32)));
    }

    #[test]
    fn pitfall_105_names_are_quoted_or_encoded() {
        let name =
            |name| described(Some("image/png"), Some(name))[header::CONTENT_DISPOSITION].to_str().unwrap().to_owned();
        assert_eq!(name("a.png"), "inline; filename=a.png");
        assert_eq!(name("my \"best\" \\ one.png"), r#"inline; filename="my \"best\" \\ one.png""#);
        assert_eq!(name("Bär €.png"), "inline; filename*=utf-8''B%C3%A4r%20%E2%82%AC.png");
        assert_eq!(name("a\r\nSet-Cookie: b"), "inline; filename=\"aSet-Cookie: b\"");
    }

    #[test]
    fn one_range_is_understood() {
        let range = |text| wanted(&[(header::RANGE, text)], 100);
        assert_eq!(range("bytes=0-0"), Part::Range(0, 1));
        assert_eq!(range("bytes=10-19"), Part::Range(10, 20));
        assert_eq!(range("bytes=90-"), Part::Range(90, 100));
        assert_eq!(range("bytes=90-1000"), Part::Range(90, 100));
        assert_eq!(range("bytes=-10"), Part::Range(90, 100));
        assert_eq!(range("bytes=-1000"), Part::Range(0, 100));
        assert_eq!(range("bytes=100-"), Part::Outside);
        assert_eq!(range("bytes=-0"), Part::Outside);
        for other in ["bytes=", "bytes=-", "bytes=5-2", "bytes=a-b", "bytes=0-1,5-6", "lines=0-1", "bytes=+1-2", ""] {
            assert_eq!(range(other), Part::All, "{other}");
        }
        assert_eq!(wanted(&[(header::RANGE, "bytes=0-")], 0), Part::Outside);
    }

    #[test]
    fn a_client_that_has_it_gets_nothing() {
        let ours = format!("\"{}\"", "ab".repeat(32));
        assert_eq!(wanted(&[(header::IF_NONE_MATCH, &ours)], 5), Part::Nothing);
        assert_eq!(wanted(&[(header::IF_NONE_MATCH, &format!("\"x\", W/{ours}"))], 5), Part::Nothing);
        assert_eq!(wanted(&[(header::IF_NONE_MATCH, "*")], 5), Part::Nothing);
        assert_eq!(wanted(&[(header::IF_NONE_MATCH, "\"x\"")], 5), Part::All);
        assert_eq!(wanted(&[(header::IF_RANGE, &ours), (header::RANGE, "bytes=1-2")], 5), Part::Range(1, 3));
        assert_eq!(wanted(&[(header::IF_RANGE, "\"x\""), (header::RANGE, "bytes=1-2")], 5), Part::All);
    }

    proptest! {
        #[test]
        fn any_range_stays_inside(text in "(bytes=)?[0-9,\\-a-z ]{0,24}|.{0,30}", size in 0u64..200) {
            match parse(&text, size) {
                Part::Range(from, to) => prop_assert!(from < to && to <= size),
                Part::All | Part::Outside => {}
                Part::Nothing => prop_assert!(false),
            }
        }

        #[test]
        fn any_name_survives_the_header(name in any::<String>()) {
            let value = disposition("image/png", Some(&name));
            let read = ContentDisposition::try_from(value.as_bytes()).unwrap();
            let expected: String = name.chars().filter(|c| !name.is_ascii() || !c.is_ascii_control()).collect();
            prop_assert_eq!(read.filename.unwrap_or_default(), expected);
            prop_assert!(value.as_bytes().starts_with(b"inline"));
        }

        #[test]
        fn any_content_type_makes_a_header(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let mut headers = HeaderMap::new();
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                headers.insert(header::CONTENT_TYPE, value);
            }
            let kept = content_type(&headers);
            let described = described(kept.as_deref(), None);
            if let Some(kept) = kept {
                prop_assert_eq!(described[header::CONTENT_TYPE].to_str().unwrap(), kept);
            }
        }
    }
}
