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
        let Some(pos) = poll(world, merged, &body, None) else { return };
        let said = world.room_path("send/m.room.message/");
        let said = world.send_json(Sender::Other, Method::PUT, &format!("{said}{pos}"), br#"{"body":"b"}"#.to_vec());
        assert!(said.status.is_success(), "{}", said.json());
        assert!(poll(world, merged, &body, Some(&pos)).is_some(), "the connection ends at {pos}");
    });
}

/// Polls, and gives the place where the answer ends, if there is one.
fn poll(world: &World, merged: bool, body: &[u8], pos: Option<&str>) -> Option<String> {
    let answer = match (merged, pos) {
        (false, None) => world.send_json(Sender::Me, Method::POST, EARLY, body.to_vec()),
        (false, Some(pos)) => {
            world.send_json(Sender::Me, Method::POST, &format!("{EARLY}?pos={pos}&timeout=5"), body.to_vec())
        }
        (true, None) => world.send_json(Sender::Me, Method::POST, MERGED, body.to_vec()),
        (true, Some(pos)) => world.send_json(Sender::Me, Method::POST, MERGED, with_pos(body, pos)?),
    };
    ended(&answer)
}

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
