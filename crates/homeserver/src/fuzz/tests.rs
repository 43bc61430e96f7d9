//! Replays of what the fuzzer found worth keeping, and the inputs that it starts from.

use std::collections::BTreeSet;
use std::io::Cursor;

use http::Method;
use image::{DynamicImage, ImageFormat, Rgb, RgbImage, Rgba, RgbaImage};
use serde_json::{Value, json};

use super::{BETWEEN, TARGETS, run};
use crate::api;

#[path = "../../tests/bad_input/examples.rs"]
mod examples;

#[path = "../../../../tests/fuzz/kept.rs"]
mod kept;

/// What the examples log in with.
const PASSWORD: &str = crate::testing::PASSWORD;

macro_rules! replays {
    ($($target:ident)*) => {
        $(#[test]
        fn $target() {
            kept::replay(stringify!($target), |input| run(stringify!($target), input));
        })*

        #[test]
        fn every_target_is_replayed() {
            let names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
            assert_eq!(names, [$(stringify!($target)),*]);
        }
    };
}

replays! { event filter media push_rules request sliding_sync }

/// Every operation has a request to start from; and a good request is answered well.
#[test]
fn good_inputs_are_where_the_fuzzer_starts() {
    let seeds = [
        ("event", events()),
        ("filter", filters()),
        ("media", files()),
        ("push_rules", rules_and_events()),
        ("request", requests()),
        ("sliding_sync", sliding()),
    ];
    for (target, inputs) in &seeds {
        for input in inputs {
            run(target, input);
        }
    }
    assert!(seeds[4].1.len() > 150, "only {} requests", seeds[4].1.len());
    for (target, inputs) in seeds {
        kept::offer(target, &inputs);
    }
}

// ---- requests ----------------------------------------------------------------------------------------------------

fn requests() -> Vec<Vec<u8>> {
    let mut known = BTreeSet::new();
    let mut inputs = Vec::new();
    for operation in api::routes().inventory().into_iter().rev() {
        let arguments = operation.path.matches('{').count();
        if !known.insert((operation.handler, operation.method.clone(), arguments)) {
            continue;
        }
        let with_body = [Method::GET, Method::DELETE].iter().all(|method| operation.method != method.as_str());
        for (args, body) in examples::examples(operation.handler) {
            let mut input = format!("{} {}", operation.method, path(&operation.path, &args));
            if with_body {
                input += &format!("\nContent-Type: application/json\n\n{body}");
            }
            inputs.push(input.into_bytes());
        }
    }
    let odd = [
        "GET /_matrix/client/v3/sync?since={since}&timeout=5&filter={filter}\nFrom: other",
        "GET /_matrix/client/v3/rooms/{room}/messages?dir=b&limit=3&from={since}&filter=%7B%22types%22%3A[%22m.*%22]%7D",
        "GET /_matrix/client/v1/media/download/hs.test/{media}/x.gif\nRange: bytes=1-5\nIf-None-Match: \"x\"",
        "GET /_matrix/client/v1/media/thumbnail/hs.test/{media}?width=32&height=32&method=crop&animated=true",
        "OPTIONS /_matrix/client/v3/sync\nAuthorization: Bearer x",
        "HEAD /_matrix/client/versions\nFrom: nobody",
        "POST /_matrix/media/v3/upload?filename=a.png\nContent-Type: image/png\n\n\u{89}PNG",
        "PUT /_matrix/client/v3/profile/{user}/displayname\n\n{\"displayname\":\"n\"}\n%%\nGET /_matrix/client/v3/sync?full_state=true",
    ];
    inputs.extend(odd.map(|text| text.as_bytes().to_vec()));
    inputs
}

/// A path with something good in the place of each argument.
fn path(pattern: &str, args: &[(&str, &str)]) -> String {
    let value = |name: &str| match args.iter().find(|(known, _)| *known == name) {
        Some((_, value)) => (*value).to_owned(),
        None => usual(name).to_owned(),
    };
    let segments =
        pattern.split('/').map(|segment| match segment.strip_prefix('{').and_then(|s| s.strip_suffix('}')) {
            Some(name) => value(name.trim_start_matches('*')),
            None => segment.to_owned(),
        });
    let path = segments.collect::<Vec<_>>().join("/");
    if path.contains("/room_keys/keys") { path + "?version=1" } else { path }
}

fn usual(name: &str) -> &'static str {
    match name {
        "room_id" | "room_id_or_alias" => "{room}",
        "event_id" => "{event}",
        "user_id" => "{user}",
        "device_id" => "{device}",
        "room_alias" => "%23alias%3Ahs.test",
        "txn_id" => "t1",
        "server_name" => "hs.test",
        "media_id" => "{media}",
        "filename" => "a.png",
        "event_type" => "m.room.message",
        "rel_type" => "m.thread",
        "receipt_type" => "m.read",
        "kind" => "override",
        "field" => "displayname",
        "filter_id" => "{filter}",
        "tag" => "u.work",
        "action" => "cancel",
        _ => "x",
    }
}

fn bodies(handler: &'static str) -> Vec<Value> {
    examples::examples(handler).into_iter().map(|(_, body)| body).collect()
}

fn sliding() -> Vec<Vec<u8>> {
    let merged = json!({"conn_id": "c", "timeout": 0, "lists": {"a": {"range": [0, 10], "timeline_limit": 3,
        "required_state": {"include": [{"type": "m.room.member", "state_key": "{user}"}, {"type": "m.room.name"}, {}],
            "exclude": [{"state_key": "x"}], "lazy_members": true},
        "filters": {"is_dm": false, "is_invited": false, "room_types": [null, "m.space"], "spaces": ["{space}"]}}},
        "room_subscriptions": {"{room}": {"timeline_limit": 1, "required_state": {}}},
        "extensions": {"to_device": {"enabled": true, "since": "1"}, "org.matrix.msc4543.e2ee": {"enabled": true},
            "typing": {"enabled": true, "lists": ["a"], "rooms": ["*"]}}});
    let early = examples::sliding();
    let plain = json!({"lists": {"a": {"ranges": [[0, 1]], "timeline_limit": 1, "required_state": [["*", "*"]]}}});
    let input = |dialect: &str, body: &Value| format!("{dialect}{body}").into_bytes();
    vec![input("0", &early), input("0", &plain), input("1", &merged), input("1", &json!({})), input("0", &json!({}))]
}

// ---- what clients say --------------------------------------------------------------------------------------------

fn filters() -> Vec<Vec<u8>> {
    let whole = bodies("filters::create").remove(0);
    let names = [("{user}", "@me:hs.test"), ("{other}", "@other:hs.test"), ("{room}", "!room:hs.test")];
    let filled = names.iter().fold(whole.to_string(), |text, (name, value)| text.replace(name, value));
    let part: Value = serde_json::from_str(&filled).unwrap();
    let part = part["room"]["timeline"].to_string();
    let fields = json!({"event_fields": ["content.a\\.b.c\\\\d", "type", "content", "content.body", ""]}).to_string();
    [filled, part, fields, "m.room.*\nm.room.message".into(), "*a*b\nxaxb".into(), "{}".into()]
        .map(String::into_bytes)
        .to_vec()
}

fn rules_and_events() -> Vec<Vec<u8>> {
    let conditions = bodies("push_rules::put").remove(0);
    let (conditions, actions) = (&conditions["conditions"], &conditions["actions"]);
    let rule = |more: Value| {
        let mut rule = json!({"rule_id": "r", "default": false, "enabled": true, "actions": actions});
        rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        rule
    };
    let rules = json!({"override": [rule(json!({"conditions": conditions}))], "underride": [rule(json!({"conditions":
            [{"kind": "event_property_is", "key": "content.a", "value": 1}]}))],
        "content": [rule(json!({"pattern": "wo*d"}))], "room": [rule(json!({"rule_id": "!room:hs.test"}))],
        "sender": [rule(json!({"rule_id": "@other:hs.test"}))]});
    let server = ruma::push::Ruleset::server_default(ruma::user_id!("@me:hs.test"));
    let server = serde_json::to_value(server).unwrap();
    let say = json!({"msgtype": "m.text", "body": "a word for @me:hs.test and @room", "a": 1, "url": "x",
        "m.mentions": {"user_ids": ["@me:hs.test"], "room": true}, "m.relates_to": {"rel_type": "m.replace"}});
    let member = json!({"membership": "invite", "displayname": "Display Name"});
    let mut inputs = Vec::new();
    for rules in [&rules, &server, &json!({})] {
        for (kind, content) in [("m.room.message", &say), ("m.room.member @me:hs.test", &member), ("m.x ", &json!({}))]
        {
            inputs.push([rules.to_string().as_bytes(), BETWEEN, format!("{kind}\n{content}").as_bytes()].concat());
        }
    }
    inputs
}

// ---- files -------------------------------------------------------------------------------------------------------

fn files() -> Vec<Vec<u8>> {
    let halves = RgbImage::from_fn(60, 40, |x, _| if x < 30 { Rgb([255, 0, 0]) } else { Rgb([0, 0, 255]) });
    let glass = RgbaImage::from_fn(40, 60, |x, y| Rgba([x as u8, y as u8, 9, (x * y) as u8]));
    let mut inputs = Vec::new();
    for image in [DynamicImage::ImageRgb8(halves), DynamicImage::ImageRgba8(glass)] {
        for (choice, format) in (0u8..).zip([ImageFormat::Png, ImageFormat::Gif, ImageFormat::Jpeg, ImageFormat::WebP])
        {
            let mut bytes = Cursor::new(vec![(choice % 2) | 8]);
            bytes.set_position(1);
            let image = if format == ImageFormat::Jpeg { image.to_rgb8().into() } else { image.clone() };
            image.write_to(&mut bytes, format).unwrap();
            inputs.push(bytes.into_inner());
        }
    }
    let texts = [
        "image/png\na \"b\" ü.png\nbytes=1-5\n\"x\", W/\"y\"\n\"x\"\ninline; filename*=utf-8''%C3%BC.png",
        "text/plain; charset=utf-8\nx\nbytes=-5\n*\n\nattachment; filename=\"a\\\"b\"",
        "a/b\n\nbytes=5-",
    ];
    inputs.extend(texts.map(|text| [b"\x80", text.as_bytes()].concat()));
    inputs
}

// ---- events ------------------------------------------------------------------------------------------------------

fn events() -> Vec<Vec<u8>> {
    let event = |kind: &str, content: Value| {
        json!({"auth_events": [], "content": content, "depth": 5, "hashes": {"sha256": "aGFzaA"},
            "origin_server_ts": 1_700_000_000_000_u64, "prev_events": ["$pppppppppppppppppppppppppppppppppppppppppp1"],
            "room_id": "!room:hs.test", "sender": "@me:hs.test", "type": kind, "unsigned": {"age": 1},
            "signatures": {"hs.test": {"ed25519:a": "c2ln"}}})
    };
    let mut power = event(
        "m.room.power_levels",
        json!({"users": {"@me:hs.test": 100, "@other:hs.test": "50"},
        "events": {"m.room.name": 50}, "state_default": 50, "notifications": {"room": 20}, "kick": 9_007_199_254_740_991_i64}),
    );
    power["state_key"] = json!("");
    let mut redaction = event("m.room.redaction", json!({"redacts": "$x", "reason": "r"}));
    redaction["redacts"] = json!("$x");
    let say = event("m.room.message", json!({"body": "\u{1}ü\u{1f9c2}", "n": {"a": [1, -1, true, null]}}));
    let mut create = event("m.room.create", json!({"room_version": "12", "additional_creators": ["@other:hs.test"]}));
    create["state_key"] = json!("");
    create.as_object_mut().unwrap().remove("room_id");
    let words = "!room:hs.test\n#alias:hs.test:8448\n@me:hs.test\n$event\nmxc://hs.test/abc\ns12_0000abcd.5td9\n\
        c12_0000abcd.7\nt12\nh3_1_20_ab\n[::1]:80\n1.2.3.4";
    let content = power["content"].to_string();
    let mut inputs = Vec::new();
    for (version, first) in [power, redaction, say, create].iter().enumerate() {
        for version in [version as u8, 5, 6] {
            let first = first.to_string();
            inputs
                .push([&[version], first.as_bytes(), BETWEEN, content.as_bytes(), BETWEEN, words.as_bytes()].concat());
        }
    }
    inputs
}
