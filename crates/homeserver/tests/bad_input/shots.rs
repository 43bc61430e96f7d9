//! What is wrong with the requests.

use bytes::Bytes;
use serde_json::{Value, json};

/// Bodies, and the code that is to be expected (empty: the handler decides).
pub(crate) fn raw_bodies() -> Vec<(Bytes, &'static str)> {
    let text = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    let nested = |open: &str, close: &str, n: usize| format!("{{\"a\":{}1{}}}", open.repeat(n), close.repeat(n));
    vec![
        (text(""), ""),
        (text("{}"), ""),
        (text(" \n{ } \t"), ""),
        (text("{"), "M_NOT_JSON"),
        (text("{\"a\":"), "M_NOT_JSON"),
        (text("{\"a\":1,}"), "M_NOT_JSON"),
        (text("{'a':1}"), "M_NOT_JSON"),
        (text("{\"a\":01}"), "M_NOT_JSON"),
        (text("{\"a\":NaN}"), "M_NOT_JSON"),
        (text("{\"a\":\"\u{1}\"}"), "M_NOT_JSON"),
        (text("{\"a\":\"\\ud800\"}"), ""),
        (text("{\"a\":\"\\u0000\"}"), ""),
        (text("{} {}"), "M_NOT_JSON"),
        (text("{}x"), "M_NOT_JSON"),
        (text("\u{feff}{}"), "M_NOT_JSON"),
        (text("hello"), "M_NOT_JSON"),
        (text("a=b&c=d"), "M_NOT_JSON"),
        (text("[]"), "M_BAD_JSON"),
        (text("[{}]"), "M_BAD_JSON"),
        (text("null"), "M_BAD_JSON"),
        (text("true"), "M_BAD_JSON"),
        (text("17"), "M_BAD_JSON"),
        (text("\"text\""), "M_BAD_JSON"),
        (Bytes::from_static(b"\xff\xfe{\0}\0"), "M_NOT_JSON"),
        (Bytes::from_static(b"{\"a\":\"\xff\"}"), "M_NOT_JSON"),
        (Bytes::from_static(b"\0"), "M_NOT_JSON"),
        (text("{\"a\":1e999}"), ""),
        (text(&format!("{{\"a\":{}}}", "9".repeat(5000))), ""),
        (text(&format!("{{\"{}\":1}}", "k".repeat(100_000))), ""),
        (text("{\"a\":1,\"a\":2,\"a\":{}}"), ""),
        (text(&nested("[", "]", 90)), ""),
        (text(&nested("[", "]", 20_000)), "M_BAD_JSON"),
        (text(&nested("{\"a\":", "}", 20_000)), "M_BAD_JSON"),
        (text(&"[".repeat(100_000)), "M_NOT_JSON"),
        (text(&format!("{{\"a\":\"{}\"}}", "x".repeat(40 << 20))), "M_TOO_LARGE"),
    ]
}

pub(crate) fn bad_values() -> Vec<(&'static str, Value)> {
    let mut nested = json!({});
    for _ in 0..60 {
        nested = json!({ "a": nested });
    }
    vec![
        ("null", Value::Null),
        ("true", json!(true)),
        ("0", json!(0)),
        ("-1", json!(-1)),
        ("1.5", json!(1.5)),
        ("1e308", json!(1e308)),
        ("2^53 + 1", json!(9_007_199_254_740_993_u64)),
        ("2^64 - 1", json!(u64::MAX)),
        ("-2^63", json!(i64::MIN)),
        ("empty", json!("")),
        ("NUL", json!("\0")),
        ("odd text", json!("\u{202e}\u{1f9c2}\u{10ffff}\r\n\"'<>&%00")),
        ("an odd ID", json!("@:")),
        ("another odd ID", json!("!\u{0}:hs.test:99999999")),
        ("a long text", json!("x".repeat(70_000))),
        ("a text of 300", json!(format!("@{}:hs.test", "y".repeat(300)))),
        ("[]", json!([])),
        ("[null]", json!([null])),
        ("[[[]]]", json!([[[]]])),
        ("many", json!(vec!["@z:hs.test"; 300])),
        ("{}", json!({})),
        ("{\"\": null}", json!({ "": null })),
        ("nested", nested),
    ]
}

pub(crate) fn bad_keys() -> Vec<String> {
    ["", "\0", "@", "!:", "*", "-1", "a.b", "\\", "\u{202e}", "signed_curve25519:", ":"]
        .into_iter()
        .map(str::to_owned)
        .chain(["k".repeat(2_000)])
        .collect()
}

/// Already encoded, or not, as it may be.
pub(crate) fn bad_segments() -> Vec<String> {
    let plain = [
        "",
        ".",
        "..",
        "%",
        "%zz",
        "%00",
        "%FF",
        "%2F",
        "%2F..%2F",
        "%E2%80%AE",
        "%0A",
        "%20",
        "*",
        "@",
        "!",
        "$",
        "%23",
        "@%3A",
        "%3Ahs.test",
        "@user0",
        "@user0%3A",
        "@user0%3Aother.test",
        "@%00%3Ahs.test",
        "@u%3Ahs.test%3A99999999",
        "!x%3Ahs.test",
        "!%3A",
        "$x",
        "%23x%3Ahs.test",
        "%23%3A",
        "-1",
        "0",
        "18446744073709551616",
        "NaN",
        "null",
        "m.",
        ".m.rule.",
        "m.room.member",
        "m.room.create",
        "%7B%7D",
        "a+b",
        "~",
        "%F0%9F%A7%82",
        "%252F",
    ];
    let long = ["x".repeat(300), "x".repeat(2_000), format!("@{}%3Ahs.test", "x".repeat(300)), "%C3%BC".repeat(4_000)];
    plain.into_iter().map(str::to_owned).chain(long).collect()
}

pub(crate) const QUERY_NAMES: &[&str] = &[
    "access_token",
    "action",
    "after",
    "allow_redirect",
    "allow_remote",
    "animated",
    "at",
    "dir",
    "event",
    "filename",
    "filter",
    "from",
    "full_state",
    "height",
    "include_all_networks",
    "kind",
    "limit",
    "max_depth",
    "membership",
    "method",
    "not_membership",
    "only",
    "order_by",
    "pos",
    "recurse",
    "redirectUrl",
    "room_id",
    "scope",
    "server",
    "server_name",
    "set_presence",
    "since",
    "suggested_only",
    "threadId",
    "timeout",
    "timeout_ms",
    "to",
    "token",
    "ts",
    "type",
    "url",
    "use_state_after",
    "user_id",
    "username",
    "version",
    "via",
    "width",
];

pub(crate) fn bad_query_values() -> Vec<String> {
    let plain = [
        "",
        "-1",
        "0",
        "1",
        "99999999999999999999",
        "1e9",
        "NaN",
        "true",
        "null",
        "b",
        "s",
        "s1",
        "s1_",
        "s_1",
        "t",
        "t-1",
        "t99999999999999999999",
        "s99999999999999999999_x.9",
        "s1_x.y_z",
        "%00",
        "%FF",
        "%F0%28",
        "%7B%7D",
        "%7B",
        "[]",
        "%7B%22room%22%3A5%7D",
        "%7B%22room%22%3A%7B%22timeline%22%3A%7B%22limit%22%3A-5%7D%7D%7D",
        "scale",
        "crop",
        "@user0%3Ahs.test",
        "!x%3Ahs.test",
        "hs.test%3A99999999",
        "join",
        "online",
        "x%26y",
    ];
    let deep = format!("{}{}", "%7B%22room%22%3A".repeat(300), "%7D".repeat(300));
    plain.into_iter().map(str::to_owned).chain(["x".repeat(5_000), deep]).collect()
}
