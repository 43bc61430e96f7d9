//! Event graphs as text, and what becomes of them.
//!
//! A fixture has a line `version <n>` and then one event per line in the order of arrival:
//!
//! ```text
//! <name> <type> <sender> <state key> <after> [ts:<n>] [auth:<names>] <content>
//! ```
//!
//! The state key is `-` for none and `""` for the empty one; `after` names the events it follows,
//! joined by `+`, or is `-`. `@name` in a content stands for that event's id. Below `---` stand
//! the verdicts and the resolved state as they should be; `UPDATE_FIXTURES=1` writes them anew.

#![allow(clippy::unwrap_used, clippy::panic)]

mod room;

use std::{collections::HashMap, fmt::Write as _, path::Path};

use rooms::{Draft, Verdict, build};
use ruma::{MilliSecondsSinceUnixEpoch, OwnedEventId, RoomVersionId, UInt};

use crate::room::{Room, resolve_plainly};

fn check(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    let text = std::fs::read_to_string(&path).unwrap();
    let (graph, expected) = text.split_once("---\n").unwrap_or((&text, ""));
    let outcome = outcome(graph);
    if std::env::var_os("UPDATE_FIXTURES").is_some() {
        std::fs::write(&path, format!("{graph}---\n{outcome}")).unwrap();
        return;
    }
    assert_eq!(outcome, expected, "{name} has another outcome than it says");
}

fn outcome(graph: &str) -> String {
    let mut lines = graph.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let version = lines.next().unwrap().strip_prefix("version ").unwrap();
    let mut room = Room::new(&RoomVersionId::try_from(version).unwrap());
    let mut ids: HashMap<String, OwnedEventId> = HashMap::new();
    let mut names: HashMap<OwnedEventId, String> = HashMap::new();
    let mut out = String::new();
    for (at, line) in lines.enumerate() {
        let event = Line::parse(line, at as u64 + 1, &ids);
        let name = event.name.clone();
        let parsed = room.make(event.draft, &event.after, event.auth);
        let verdict = room.receive(parsed.pdu.clone());
        ids.insert(name.clone(), parsed.pdu.event_id.clone());
        names.insert(parsed.pdu.event_id, name.clone());
        match verdict {
            Verdict::Accept => writeln!(out, "{name}: accept").unwrap(),
            Verdict::SoftFail(reason) => writeln!(out, "{name}: soft-fail, {reason}").unwrap(),
            Verdict::Reject(reason) => writeln!(out, "{name}: reject, {reason}").unwrap(),
        }
    }
    writeln!(out, "state:").unwrap();
    for ((kind, key), id) in room.state_map(room.current) {
        writeln!(out, "  {kind} {key:?} = {}", names[&id]).unwrap();
    }
    let mut heads: Vec<&str> = room.extremities.iter().map(|id| names[id].as_str()).collect();
    heads.sort_unstable();
    writeln!(out, "heads: {}", heads.join(" ")).unwrap();

    // Reducing the question must not change the answer.
    let roots: Vec<_> = room.extremities.iter().map(|id| room.stored(id).after).collect();
    assert_eq!(room.state_map(room.current), resolve_plainly(&room, &roots));
    // Ids in reasons would change with every change to a fixture.
    for (id, name) in &names {
        out = out.replace(id.as_str(), &format!("<{name}>"));
    }
    out
}

struct Line {
    name: String,
    draft: Draft,
    after: Vec<OwnedEventId>,
    auth: Option<Vec<OwnedEventId>>,
}

impl Line {
    fn parse(line: &str, at: u64, ids: &HashMap<String, OwnedEventId>) -> Self {
        let (head, content) = line.split_once('{').unwrap_or((line, "}"));
        let mut content = format!("{{{content}");
        for (name, id) in ids {
            content = content.replace(&format!("@{name}\""), &format!("{id}\""));
        }
        let listed = |names: &str| -> Vec<OwnedEventId> {
            names.split('+').filter(|name| *name != "-").map(|name| ids[name].clone()).collect()
        };
        let mut words = head.split_whitespace();
        let mut word = || words.next().unwrap_or_else(|| panic!("too short: {line}"));
        let (name, kind, sender, state_key, after) = (word(), word(), word(), word(), word());
        let mut ts = at;
        let mut auth = None;
        for option in words {
            match option.split_once(':').unwrap() {
                ("ts", number) => ts = number.parse().unwrap(),
                ("auth", names) => auth = Some(listed(names)),
                _ => panic!("unknown option: {option}"),
            }
        }
        let draft = Draft {
            kind: kind.into(),
            content: build::content_from_json(content.as_bytes()).unwrap(),
            state_key: (state_key != "-").then(|| state_key.trim_matches('"').to_owned()),
            sender: sender.try_into().unwrap(),
            redacts: None,
            origin_server_ts: MilliSecondsSinceUnixEpoch(UInt::new(ts).unwrap()),
        };
        Self { name: name.to_owned(), draft, after: listed(after), auth }
    }
}

macro_rules! fixtures {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            check(concat!(stringify!($name), ".dag"));
        }
    )*};
}

fixtures! {
    simple_room
    power_struggle
    ban_against_sends
    join_rules_race
    creators_v12
    auth_events_selection
    resolution_v2
    resolution_v2_1
    rejected_prev
    unfederated
    restricted_join
    knocking
}

#[test]
fn every_fixture_is_run() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let this = include_str!("dag.rs");
    for entry in std::fs::read_dir(dir).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let stem = name.strip_suffix(".dag").unwrap();
        assert!(this.contains(&format!("    {stem}\n")), "{name} is not in the list");
    }
}
