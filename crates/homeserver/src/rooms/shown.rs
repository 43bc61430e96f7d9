//! How an event looks to a client: the one place that writes stored events into answers.
//!
//! The stored bytes are copied, not parsed; only `unsigned` is made anew for each reader. Whether the reader may see the
//! event, and which other events its `unsigned` shows, is decided before.

use ::rooms::event::with_redacts_for_clients;
use ruma::EventId;
use serde::Deserialize;
use serde_json::value::RawValue;
use store::Pos;

use crate::schema::MembershipState;
use crate::stored::StoredEvent;

/// What is the same for all events of an answer.
#[derive(Clone, Copy, Debug)]
pub struct Style<'a> {
    /// For `unsigned.age`.
    pub now_ms: u64,
    /// Only the device that sent an event sees its transaction ID.
    pub device_id: Option<&'a str>,
    /// The room, where the answer does not say it elsewhere.
    pub room_id: Option<&'a str>,
    /// Also what only other servers need.
    pub federation: bool,
}

/// An event with what its `unsigned` shows.
#[derive(Clone, Debug)]
pub struct Shown {
    pub at: Pos,
    pub event: StoredEvent,
    /// What the reader was in the room at the event.
    pub membership: Option<MembershipState>,
    /// The state event that this one replaced, if the reader may see it.
    pub replaced: Option<StoredEvent>,
    /// The event that redacted this one.
    pub redaction: Option<StoredEvent>,
    /// `m.relations`, as JSON.
    pub relations: Option<Box<RawValue>>,
}

impl Shown {
    /// An event about which nothing more is said.
    pub fn plain(at: Pos, event: StoredEvent) -> Self {
        Shown { at, event, membership: None, replaced: None, redaction: None, relations: None }
    }

    /// Writes the event as a JSON object.
    pub fn write(&self, out: &mut Vec<u8>, style: &Style<'_>) {
        let event = &self.event;
        out.reserve(event.client().len() + 256);
        begin(out, event, style);
        out.extend_from_slice(b",\"unsigned\":{\"age\":");
        number(out, style.now_ms.saturating_sub(event.origin_server_ts));
        if let Some(membership) = self.membership {
            member(out, "membership", membership.as_str());
        }
        if let Some(transaction_id) = event.transaction_id(style.device_id) {
            member(out, "transaction_id", transaction_id);
        }
        if let Some(replaced) = &self.replaced {
            member(out, "replaces_state", replaced.event_id());
            out.extend_from_slice(b",\"prev_content\":");
            out.extend_from_slice(content(replaced).get().as_bytes());
            member(out, "prev_sender", replaced.sender());
        }
        if let Some(redaction) = &self.redaction {
            out.extend_from_slice(b",\"redacted_because\":");
            Shown::plain(self.at, redaction.clone()).write(out, style);
        }
        if let Some(relations) = &self.relations {
            out.extend_from_slice(b",\"m.relations\":");
            out.extend_from_slice(relations.get().as_bytes());
        }
        out.extend_from_slice(b"}}");
    }
}

fn begin(out: &mut Vec<u8>, event: &StoredEvent, style: &Style<'_>) {
    out.push(b'{');
    if event.kind() == "m.room.redaction" {
        // Clients of all ages find what is redacted, wherever the room version keeps it.
        let redacts = redacts(event).and_then(|id| EventId::parse(id).ok());
        out.extend_from_slice(&with_redacts_for_clients(event.client(), redacts.as_deref()));
    } else {
        out.extend_from_slice(event.client());
    }
    member(out, "event_id", event.event_id());
    if let Some(room_id) = style.room_id {
        member(out, "room_id", room_id);
    }
    if style.federation && !event.federation().is_empty() {
        out.push(b',');
        out.extend_from_slice(event.federation());
    }
}

/// Writes a state event as somebody outside of the room gets it: four keys.
pub fn stripped(out: &mut Vec<u8>, event: &StoredEvent) {
    out.extend_from_slice(b"{\"content\":");
    out.extend_from_slice(content(event).get().as_bytes());
    member(out, "sender", event.sender());
    member(out, "state_key", event.state_key().unwrap_or_default());
    member(out, "type", event.kind());
    out.push(b'}');
}

/// The content of an event.
pub fn content(event: &StoredEvent) -> &RawValue {
    // Members are sorted by name, and `content` is the first one that clients get.
    let value = event.client().strip_prefix(b"\"content\":").unwrap_or(b"{}");
    let mut values = serde_json::Deserializer::from_slice(value).into_iter::<&RawValue>();
    values.next().and_then(Result::ok).unwrap_or(RawValue::NULL)
}

/// One member of an event's content, if it is there and of the type asked for.
pub fn content_field<'a, T: Deserialize<'a>>(event: &'a StoredEvent, field: &str) -> Option<T> {
    ::rooms::event::content_field(content(event), field)
}

/// The membership that a member event gives.
pub fn membership(event: &StoredEvent) -> Option<MembershipState> {
    content_field::<&str>(event, "membership").and_then(MembershipState::parse)
}

/// The event that a redaction names, wherever the room version keeps it.
pub fn redacts(event: &StoredEvent) -> Option<String> {
    #[derive(Deserialize)]
    struct Redaction {
        redacts: Option<String>,
    }
    content_field(event, "redacts").or_else(|| {
        let object = [b"{", event.client(), b"}"].concat();
        serde_json::from_slice::<Redaction>(&object).ok()?.redacts
    })
}

/// Writes `,"name":"text"`.
fn member(out: &mut Vec<u8>, name: &str, text: &str) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
    string(out, text);
}

/// Writes a JSON string.
pub fn string(out: &mut Vec<u8>, text: &str) {
    // Without leaving early the compiler looks at many bytes at once.
    let escapes = |found: bool, byte: u8| found | (byte < 0x20) | (byte == b'"') | (byte == b'\\');
    if !text.bytes().fold(false, escapes) {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    } else {
        let quoted = serde_json::Value::from(text).to_string();
        out.extend_from_slice(quoted.as_bytes());
    }
}

/// Writes a number.
pub fn number(out: &mut Vec<u8>, number: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    let mut left = number;
    loop {
        at -= 1;
        if let Some(digit) = digits.get_mut(at) {
            *digit = b'0' + (left % 10) as u8;
        }
        left /= 10;
        if left == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(at..).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::stored::{NewEvent, TxnEcho};

    fn event(kind: &str, state_key: Option<&str>, client: Value) -> StoredEvent {
        let client = client.to_string();
        let new = NewEvent {
            event_id: "$id",
            origin_server_ts: 1_000,
            txn: Some(TxnEcho { device_id: "D".to_owned(), transaction_id: "t\"1".to_owned() }),
            federation: br#""depth":7,"hashes":{}"#,
            ..NewEvent::plain(kind, state_key, "@a:x", &client.as_bytes()[1..client.len() - 1])
        };
        new.stored().unwrap()
    }

    fn shown(event: StoredEvent, style: &Style<'_>) -> Value {
        let mut out = Vec::new();
        Shown::plain(Pos(1), event).write(&mut out, style);
        serde_json::from_slice(&out).unwrap()
    }

    const STYLE: Style<'_> = Style { now_ms: 1_500, device_id: None, room_id: None, federation: false };

    fn message() -> StoredEvent {
        let client =
            json!({"content": {"body": "}\"{"}, "origin_server_ts": 1000, "sender": "@a:x", "type": "m.room.message"});
        event("m.room.message", None, client)
    }

    #[test]
    fn pitfall_002_the_transaction_id_is_for_its_device_only() {
        let style = |device_id| Style { device_id, ..STYLE };
        assert_eq!(shown(message(), &style(Some("D")))["unsigned"], json!({"age": 500, "transaction_id": "t\"1"}));
        assert_eq!(shown(message(), &style(Some("E")))["unsigned"], json!({"age": 500}));
        assert_eq!(shown(message(), &style(None))["unsigned"], json!({"age": 500}));
    }

    #[test]
    fn pitfall_053_unsigned_is_ours() {
        let mut shown = Shown::plain(Pos(1), message());
        shown.membership = Some(MembershipState::Join);
        shown.replaced = Some(message());
        shown.redaction = Some(message());
        let mut out = Vec::new();
        shown.write(&mut out, &Style { now_ms: 0, ..STYLE });
        let unsigned = serde_json::from_slice::<Value>(&out).unwrap()["unsigned"].clone();
        assert_eq!(unsigned["age"], 0);
        assert_eq!(unsigned["membership"], "join");
        assert_eq!(unsigned["replaces_state"], "$id");
        assert_eq!(unsigned["prev_content"], json!({"body": "}\"{"}));
        assert_eq!(unsigned["redacted_because"]["event_id"], "$id");
    }

    #[test]
    fn pitfall_054_the_room_id_is_there_where_it_is_wanted() {
        assert_eq!(shown(message(), &STYLE).get("room_id"), None);
        let style = Style { room_id: Some("!r"), ..STYLE };
        let create = event(
            "m.room.create",
            Some(""),
            json!({"content": {}, "origin_server_ts": 1000, "sender": "@a:x", "state_key": "", "type": "m.room.create"}),
        );
        assert_eq!(shown(create, &style)["room_id"], "!r");
    }

    #[test]
    fn a_redaction_names_its_target_twice() {
        let new = json!({"content": {"redacts": "$t"}, "origin_server_ts": 1000, "sender": "@a:x", "type": "m.room.redaction"});
        let old = json!({"content": {}, "origin_server_ts": 1000, "redacts": "$t", "sender": "@a:x", "type": "m.room.redaction"});
        for client in [new, old] {
            let shown = shown(event("m.room.redaction", None, client), &STYLE);
            assert_eq!((&shown["redacts"], &shown["content"]["redacts"]), (&json!("$t"), &json!("$t")));
        }
    }

    #[test]
    fn pitfall_036_stripped_state_has_four_keys() {
        let name = event(
            "m.room.name",
            Some(""),
            json!({"content": {"name": "n"}, "origin_server_ts": 1000, "sender": "@a:x", "state_key": "", "type": "m.room.name"}),
        );
        let mut out = Vec::new();
        stripped(&mut out, &name);
        let expected = json!({"content": {"name": "n"}, "sender": "@a:x", "state_key": "", "type": "m.room.name"});
        assert_eq!(serde_json::from_slice::<Value>(&out).unwrap(), expected);
    }

    #[test]
    fn federation_format_has_it_all() {
        let shown = shown(message(), &Style { federation: true, room_id: Some("!r:x"), ..STYLE });
        assert_eq!((&shown["depth"], &shown["room_id"]), (&json!(7), &json!("!r:x")));
    }

    #[test]
    fn numbers_and_strings() {
        let mut out = Vec::new();
        for n in [0, 9, 10, u64::MAX] {
            number(&mut out, n);
            out.push(b' ');
        }
        string(&mut out, "a\"\\\n\u{1}ü");
        assert_eq!(String::from_utf8(out).unwrap(), "0 9 10 18446744073709551615 \"a\\\"\\\\\\n\\u0001ü\"");
    }
}
