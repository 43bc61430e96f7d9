//! Bodies of sliding sync, in either dialect (the first byte says which): a first request, something new, and the same
//! request again where the first one ended.

use http::Method;
use serde_json::{Map, Value};

use super::world::{self, Sender, World};
use crate::http::Answer;

const EARLY: &str = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync";
const MERGED: &str = "/_matrix/client/v4/sync";

pub(super) fn run(input: &[u8]) {
    let Some((first, body)) = input.split_first() else { return };
    let merged = first & 1 == 1;
    world::with(|world| {
        let body = world.fill_in(body, false);
        let Some(pos) = ended(&first_poll(world, merged, &body)) else { return };
        let Some(again) = next_poll(merged, &body, &pos) else { return };
        let said = world.room_path("send/m.room.message/");
        let said = world.send_json(Sender::Other, Method::PUT, &format!("{said}{pos}"), br#"{"body":"b"}"#.to_vec());
        assert!(said.status.is_success(), "{}", said.json());
        let (path, body) = again;
        let answer = world.send_json(Sender::Me, Method::POST, &path, body);
        assert!(ended(&answer).is_some(), "the connection ends at {pos}");
    });
}

fn first_poll(world: &World, merged: bool, body: &[u8]) -> Answer {
    world.send_json(Sender::Me, Method::POST, if merged { MERGED } else { EARLY }, body.to_vec())
}

/// The same request from a place on; nothing where it cannot be said with another reader of JSON, which refuses numbers
/// that are too large even where nobody asks for them.
fn next_poll(merged: bool, body: &[u8], pos: &str) -> Option<(String, Vec<u8>)> {
    if merged {
        Some((MERGED.to_owned(), with_pos(body, pos)?))
    } else {
        Some((format!("{EARLY}?pos={pos}&timeout=5"), body.to_vec()))
    }
}

/// The place where an answer ends, if it is one.
fn ended(answer: &Answer) -> Option<String> {
    if !answer.status.is_success() {
        return None;
    }
    let body = answer.json();
    let pos = body.get("pos").and_then(Value::as_str);
    assert!(pos.is_some(), "an answer without pos: {body}");
    pos.map(str::to_owned)
}

fn with_pos(body: &[u8], pos: &str) -> Option<Vec<u8>> {
    // Nothing at all is as good as an empty object.
    let mut body: Value =
        if body.is_empty() { Value::Object(Map::new()) } else { serde_json::from_slice(body).ok()? };
    body.as_object_mut()?.insert("pos".to_owned(), pos.into());
    Some(body.to_string().into_bytes())
}
