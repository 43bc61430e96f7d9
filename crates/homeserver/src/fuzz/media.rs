//! Files: pictures of which thumbnails are made, and what is said about a file (type, name, ranges). The first byte
//! says which of both.

use std::io::Cursor;

use http::{HeaderMap, HeaderValue, header};
use ruma::http_headers::ContentDisposition;

use crate::media::headers::{Described, Part, content_type, describe};
use crate::media::thumbnail::{Ask, Bounds, Made, Method, make};

/// Enough for every way through the code, and little enough for many tries in a second.
const BOUNDS: Bounds = Bounds { max_pixels: 300_000 };
const SIZES: [(u32, u32); 4] = [(32, 32), (96, 96), (320, 240), (50, 17)];

pub(super) fn run(input: &[u8]) {
    let Some((first, rest)) = input.split_first() else { return };
    if first & 0x80 == 0 { picture(*first, rest) } else { headers(rest) }
}

fn picture(choice: u8, bytes: &[u8]) {
    let (width, height) = SIZES[usize::from(choice & 3)];
    let method = if choice & 4 == 0 { Method::Crop } else { Method::Scale };
    let ask = Ask::new(width, height, method, choice & 8 != 0);
    let Ok(Made::Smaller { bytes, content_type }) = make(Cursor::new(bytes), ask, BOUNDS) else { return };
    let (_, pixels) = crate::media::thumbnail::probe(Cursor::new(&bytes), BOUNDS).unwrap_or_else(|error| {
        #[expect(clippy::panic, reason = "this is how a fuzzer is told")]
        {
            panic!("a thumbnail that nobody can read: {error}")
        }
    });
    assert!(pixels > 0 && ["image/png", "image/jpeg", "image/gif"].contains(&content_type), "{content_type}");
}

/// Lines: the type, the name, a range, and what the client has already.
fn headers(input: &[u8]) {
    let mut lines = input.split(|byte| *byte == b'\n');
    let (mut sent, mut wants) = (HeaderMap::new(), HeaderMap::new());
    put(&mut sent, header::CONTENT_TYPE, lines.next());
    let name = lines.next().and_then(|name| std::str::from_utf8(name).ok());
    put(&mut wants, header::RANGE, lines.next());
    put(&mut wants, header::IF_NONE_MATCH, lines.next());
    put(&mut wants, header::IF_RANGE, lines.next());
    let kept = content_type(&sent);
    let mut told = HeaderMap::new();
    describe(&Described { content_type: kept.as_deref(), filename: name, sha256: &[7; 32] }, &mut told);
    let disposition = told.get(header::CONTENT_DISPOSITION).map(HeaderValue::as_bytes).unwrap_or_default();
    let read = ContentDisposition::try_from(disposition);
    assert!(read.is_ok(), "{:?}", String::from_utf8_lossy(disposition));
    if let Some(given) = lines.next() {
        let _ = ContentDisposition::try_from(given);
    }
    for size in [0, 1, 1_000, u64::MAX] {
        if let Part::Range(from, to) = Part::wanted(&wants, &[7; 32], size) {
            assert!(from < to && to <= size, "{from} to {to} of {size}");
        }
    }
}

fn put(headers: &mut HeaderMap, name: header::HeaderName, value: Option<&[u8]>) {
    if let Some(value) = value.and_then(|value| HeaderValue::from_bytes(value).ok()) {
        headers.insert(name, value);
    }
}
