//! Whole requests: method, target, headers and body, into the router. An input holds up to six of them, so that one may
//! meet what another left behind.
//!
//! ```text
//! PUT /_matrix/client/v3/rooms/{room}/send/m.room.message/1
//! Content-Type: application/json
//!
//! {"msgtype":"m.text","body":"first words"}
//! %%
//! GET /_matrix/client/v3/sync?since={since}
//! From: other
//! ```

use http::{HeaderName, HeaderValue, Method, Uri, header};

use super::parts;
use super::world::{self, Sender, World};
use crate::http::{Body, Request};

const MAX_REQUESTS: usize = 6;
const MAX_HEADERS: usize = 20;

pub(super) fn run(input: &[u8]) {
    world::with(|world| {
        let mut wrote = false;
        for part in parts(input).take(MAX_REQUESTS) {
            let Some((sender, request)) = parse(world, part) else { continue };
            let read = request.method() == Method::GET;
            let answer = world.send(sender, request);
            wrote |= !read && answer.status.is_success();
        }
        if wrote {
            world.aftermath();
        }
    });
}

/// A request, as far as HTTP lets it be one.
fn parse(world: &World, part: &[u8]) -> Option<(Sender, Request)> {
    let end = memchr::memmem::find(part, b"\n\n");
    let (head, body) = end.map_or((part, &[][..]), |end| part.split_at(end));
    let body = body.strip_prefix(b"\n\n").unwrap_or_default();
    let mut lines = head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let (method, target) = halves(lines.next()?, b' ')?;
    let mut request = Request::new(Body::from(world.fill_in(body, false)));
    *request.method_mut() = Method::from_bytes(method).ok()?;
    *request.uri_mut() = Uri::try_from(world.fill_in(target, true)).ok()?;
    let mut sender = Sender::Me;
    for (name, value) in lines.filter_map(|line| halves(line, b':')).take(MAX_HEADERS) {
        let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value.trim_ascii())) else {
            continue;
        };
        match (name, value.as_bytes()) {
            (header::FROM, b"other") => sender = Sender::Other,
            (header::FROM, b"nobody") => sender = Sender::Nobody,
            (header::AUTHORIZATION, _) => {
                sender = Sender::Nobody;
                request.headers_mut().append(header::AUTHORIZATION, value);
            }
            (name, _) => drop(request.headers_mut().append(name, value)),
        }
    }
    Some((sender, request))
}

fn halves(line: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let at = memchr::memchr(at, line)?;
    Some((line.get(..at)?, line.get(at + 1..)?))
}
