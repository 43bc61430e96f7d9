//! What is checked on a body before any parser sees it: that it is JSON to its end whether or not anybody reads it
//! that far, an object, and not absurdly deep.

use serde::de::IgnoredAny;

use crate::error::{Error, Result};

/// Deeper bodies are refused. Parsers of clients and servers stop at 128 levels, and what arrives here is handed
/// on inside of sync responses and transactions, which add some of their own.
pub const MAX_DEPTH: usize = 100;

/// Two passes over the bytes, some nanoseconds each.
pub(super) fn check_object(body: &[u8]) -> Result<()> {
    let Ok(text) = std::str::from_utf8(body) else { return Err(Error::not_json("The body is not UTF-8")) };
    let object = text.trim_start().starts_with('{');
    if object {
        check_depth(body)?;
    }
    match serde_json::from_str::<IgnoredAny>(text) {
        Ok(_) if object => Ok(()),
        Ok(_) => Err(Error::bad_json("The body must be a JSON object")),
        Err(cause) => Err(Error::not_json(format!("The body is not JSON: {cause}"))),
    }
}

fn check_depth(body: &[u8]) -> Result<()> {
    let mut depth = 0usize;
    let mut at = 0;
    while let Some(byte) = body.get(at) {
        match byte {
            b'{' | b'[' => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Err(Error::bad_json(format!("The body is nested deeper than {MAX_DEPTH} levels")));
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => at = end_of_string(body, at + 1),
            _ => {}
        }
        at += 1;
    }
    Ok(())
}

/// The index of the closing quote, or the end of the input.
fn end_of_string(body: &[u8], mut at: usize) -> usize {
    while let Some(rest) = body.get(at..) {
        match memchr::memchr2(b'"', b'\\', rest) {
            Some(offset) if rest.get(offset) == Some(&b'\\') => at += offset + 2,
            Some(offset) => return at + offset,
            None => break,
        }
    }
    body.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(body: &str) -> String {
        match check_object(body.as_bytes()) {
            Ok(()) => "ok".to_owned(),
            Err(error) => error.code().unwrap().as_str().to_owned(),
        }
    }

    #[test]
    fn only_objects_pass() {
        assert_eq!(verdict(" {\"a\": 1}"), "ok");
        assert_eq!(verdict("[]"), "M_BAD_JSON");
        assert_eq!(verdict("\"text\""), "M_BAD_JSON");
        assert_eq!(verdict("null"), "M_BAD_JSON");
        assert_eq!(verdict("hello"), "M_NOT_JSON");
        assert_eq!(verdict("   "), "M_NOT_JSON");
    }

    #[test]
    fn all_of_it_is_json() {
        for body in ["{", "{\"a\":", "{\"a\":1,}", "{'a':1}", "{\"a\":01}", "{\"a\":NaN}", "{} {}", "{}x", "\u{feff}{}"]
        {
            assert_eq!(verdict(body), "M_NOT_JSON", "{body}");
        }
        assert_eq!(check_object(b"{\"a\":\"\xff\"}").unwrap_err().code().unwrap().as_str(), "M_NOT_JSON");
        assert_eq!(verdict("{\"a\":[1.5e3,-0,\"\\u00e9\",null,true,{}]}\r\n"), "ok");
    }

    #[test]
    fn depth_counts_brackets_outside_of_strings_only() {
        let nested = |n: usize| format!("{{\"a\":{}1{}}}", "[".repeat(n), "]".repeat(n));
        assert_eq!(verdict(&nested(MAX_DEPTH - 1)), "ok");
        assert_eq!(verdict(&nested(MAX_DEPTH)), "M_BAD_JSON");
        assert_eq!(verdict(&format!("{{\"a\":\"{}\"}}", "[".repeat(1000))), "ok");
        assert_eq!(verdict(&format!("{{\"a\":\"\\\"{}\"}}", "[".repeat(1000))), "ok");
        assert_eq!(verdict(&format!("{{\"a\":\"\\\\\",\"b\":{}", "[".repeat(1000))), "M_BAD_JSON");
        assert_eq!(verdict("{\"unclosed"), "M_NOT_JSON");
        assert_eq!(verdict("{\"unclosed\\"), "M_NOT_JSON");
        // Many siblings are not depth.
        assert_eq!(verdict(&format!("{{\"a\":[{}1]}}", "[],".repeat(1000))), "ok");
    }
}
