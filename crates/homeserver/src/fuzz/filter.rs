//! Filters, of whole syncs and of the events of a room: those that can be read are put to use.

use std::cell::OnceCell;

use serde_json::{Value, json};

use super::event::stored;
use crate::stored::StoredEvent;
use crate::sync::filter::{self, Events, Filter};

/// Longer patterns are not compared: the other way to match them takes their length squared.
const MAX_PATTERN: usize = 100;

thread_local! {
    static SAMPLES: OnceCell<Vec<StoredEvent>> = const { OnceCell::new() };
}

pub(super) fn run(input: &[u8]) {
    SAMPLES.with(|samples| {
        let samples = samples.get_or_init(samples_of_all_kinds);
        if let Ok(filter) = filter::parse(input) {
            whole(&filter, samples);
        }
        if let Ok((events, _)) = Events::parse(input) {
            part(&events, samples);
        }
        if let Some((pattern, text)) = pattern(input) {
            assert_eq!(filter::glob(pattern, text), matches(pattern.as_bytes(), text.as_bytes()), "{pattern} {text}");
        }
    });
}

fn samples_of_all_kinds() -> Vec<StoredEvent> {
    let sample = |kind, state_key, content: Value| stored(kind, state_key, "@me:hs.test", &content.to_string());
    vec![
        sample("m.room.message", None, json!({"msgtype": "m.text", "body": "b", "url": "mxc://hs.test/a"})),
        sample("m.room.member", Some("@me:hs.test"), json!({"membership": "join", "displayname": "n"})),
        sample("org.example.odd\u{7f}", Some(""), json!({"a.b": {"c\\d": [1, {"e": null}]}, "": {"": 1}})),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn whole(filter: &Filter, samples: &[StoredEvent]) {
    assert!(filter.timeline_limit() <= filter::MAX_LIMIT);
    for events in [
        &filter.timeline,
        &filter.state,
        &filter.ephemeral,
        &filter.presence,
        &filter.account_data,
        &filter.room_account_data,
    ] {
        part(events, samples);
    }
    let taken = filter.rooms.take("!room:hs.test");
    assert!(taken || !filter.takes_all_rooms());
    let Some(fields) = &filter.fields else { return };
    for event in samples {
        let event = [b"{", event.client(), b"}"].concat();
        let picked = fields.project(&event);
        assert!(serde_json::from_slice::<Value>(&picked).is_ok_and(|picked| picked.is_object()));
        assert_eq!(fields.project(&picked), picked, "what was picked is not picked again");
    }
}

fn part(events: &Events, samples: &[StoredEvent]) {
    for event in samples {
        let taken = events.take(event);
        let by_parts = events.take_parts(event.kind(), event.sender());
        assert!(taken || !events.take_all());
        assert!(by_parts || !taken, "an event is taken that its type or sender excludes");
        assert!(events.take_kind(event.kind()) || !by_parts);
    }
}

/// A pattern and a text, from an input of two lines.
fn pattern(input: &[u8]) -> Option<(&str, &str)> {
    let (pattern, text) = std::str::from_utf8(input).ok()?.split_once('\n')?;
    (pattern.len() <= MAX_PATTERN && text.len() <= MAX_PATTERN).then_some((pattern, text))
}

/// The plainest way to match a pattern: which beginnings of the text do its beginnings match?
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let mut reached = vec![false; text.len() + 1];
    reached[0] = true;
    for byte in pattern {
        let mut next = vec![false; text.len() + 1];
        for at in 0..=text.len() {
            next[at] = match byte {
                b'*' => reached[at] || (at > 0 && next[at - 1]),
                _ => at > 0 && reached[at - 1] && text[at - 1] == *byte,
            };
        }
        reached = next;
    }
    reached[text.len()]
}
