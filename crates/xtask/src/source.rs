//! Reading Rust source just well enough for the repository's checks: what is code, what is comment, where functions end.
//!
//! Lives here: a scanner that blanks comments and literals (so that later searches see code only), and functions with
//! their lengths. Not here: what is allowed (selfcheck.rs). Not a parser: rustfmt and rustc have seen the files before.

use std::ops::Range;

/// A function and how many lines it spans, from `fn` to its closing brace.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) line: usize,
    pub(crate) lines: usize,
}

/// The source with comments and literals blanked; lines and columns stay where they are.
pub(crate) fn code_only(source: &str) -> String {
    blank(source, |_| true)
}

/// The source with only comments blanked.
pub(crate) fn without_comments(source: &str) -> String {
    blank(source, |start| start.starts_with(b"//") || start.starts_with(b"/*"))
}

/// Blanks the literals and comments that `chosen` accepts by how they start.
fn blank(source: &str, chosen: fn(&[u8]) -> bool) -> String {
    let bytes = source.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match literal_or_comment(bytes, at) {
            Some(end) => end.min(bytes.len()),
            None => {
                at += 1;
                continue;
            }
        };
        for byte in &mut out[at..end] {
            if chosen(&bytes[at..]) && *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Where the literal or comment that starts at `at` ends, if one starts there.
fn literal_or_comment(bytes: &[u8], at: usize) -> Option<usize> {
    let rest = &bytes[at..];
    let after_word = at > 0 && is_word(bytes[at - 1]);
    match rest {
        [b'/', b'/', ..] => Some(at + rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len())),
        [b'/', b'*', ..] => Some(at + block_comment(rest)),
        [b'"', ..] => Some(at + 1 + quoted(&rest[1..], b'"')),
        [b'b' | b'c', b'"', ..] if !after_word => Some(at + 2 + quoted(&rest[2..], b'"')),
        [b'r', b'"' | b'#', ..] if !after_word => raw_string(&rest[1..]).map(|n| at + 1 + n),
        [b'b' | b'c', b'r', b'"' | b'#', ..] if !after_word => raw_string(&rest[2..]).map(|n| at + 2 + n),
        // 'x' and '\n' are characters, 'x without a closing quote is a lifetime.
        [b'\'', b'\\', ..] => Some(at + 1 + quoted(&rest[1..], b'\'')),
        [b'\'', ..] => {
            let text = std::str::from_utf8(&rest[1..rest.len().min(6)])
                .or_else(|e| std::str::from_utf8(&rest[1..1 + e.valid_up_to()]));
            let first = text.ok()?.chars().next()?.len_utf8();
            (rest.get(1 + first) == Some(&b'\'')).then_some(at + 2 + first)
        }
        _ => None,
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match &rest[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// Length up to and with the closing quote; `rest` starts behind the opening one.
fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 0;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// `rest` starts behind the `r`; `r#name` is an identifier, not a string.
fn raw_string(rest: &[u8]) -> Option<usize> {
    let hashes = rest.iter().take_while(|b| **b == b'#').count();
    if rest.get(hashes) != Some(&b'"') {
        return None;
    }
    let mut end = vec![b'"'];
    end.resize(hashes + 1, b'#');
    let body = &rest[hashes + 1..];
    let found = body.windows(end.len()).position(|w| w == end).unwrap_or(body.len());
    Some(hashes + 1 + found + end.len())
}

/// The texts in source (plain and raw strings, not those of bytes), with where they start. Escapes stay as they are.
pub(crate) fn strings(source: &str) -> Vec<(usize, String)> {
    let bytes = source.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let Some(end) = literal_or_comment(bytes, at) else {
            at += 1;
            continue;
        };
        let end = end.min(bytes.len());
        if matches!(bytes[at], b'"' | b'r') {
            let text = String::from_utf8_lossy(&bytes[at..end]);
            let text = text.trim_start_matches(['r', '#']).trim_end_matches('#');
            let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
            found.extend(text.map(|text| (at, text.to_owned())));
        }
        at = end;
    }
    found
}

/// The functions with a body in source that went through [`code_only`].
pub(crate) fn functions(code: &str) -> Vec<Function> {
    let lines = |part: &str| part.bytes().filter(|b| *b == b'\n').count();
    let measured = |(name, span): (String, Range<usize>)| {
        let start = code[..span.start].rfind("fn ").unwrap_or(span.start);
        Function { name, line: 1 + lines(&code[..start]), lines: 1 + lines(&code[start..span.end]) }
    };
    function_spans(code).into_iter().map(measured).collect()
}

/// The same, each with its name and where it is: from the name to its closing brace.
pub(crate) fn function_spans(code: &str) -> Vec<(String, Range<usize>)> {
    let mut found = Vec::new();
    let bytes = code.as_bytes();
    let mut at = 0;
    while let Some(next) = code[at..].find("fn ") {
        let start = at + next;
        at = start + 3;
        if start > 0 && is_word(bytes[start - 1]) {
            continue;
        }
        let name: String = code[at..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if name.is_empty() {
            continue; // a function type
        }
        if let Some(end) = body_end(bytes, at) {
            found.push((name, at..end));
        }
    }
    found
}

/// The position of the brace that closes the body of the function whose name starts at `at`; none for a declaration.
fn body_end(bytes: &[u8], at: usize) -> Option<usize> {
    let mut nested = 0;
    let open = (at..bytes.len()).find(|i| {
        match bytes[*i] {
            b'(' | b'[' => nested += 1,
            b')' | b']' => nested -= 1,
            _ => {}
        }
        nested == 0 && matches!(bytes[*i], b'{' | b';')
    })?;
    if bytes[open] == b';' {
        return None;
    }
    let mut depth = 0;
    (open..bytes.len()).find(|i| {
        match bytes[*i] {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        depth == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked() {
        let source =
            "a /* x /* y */ z */ b // c\n\"s\\\"t\" 'c' '\\'' &'a str r#\"raw \" \"# b\"bytes\" r#type 'é' end";
        let code = code_only(source);
        for gone in ["x", "z", "// c", "s\\", "raw", "bytes", "é"] {
            assert!(!code.contains(gone), "{gone} in {code}");
        }
        for there in ["a ", " b ", "&'a str", "r#type", "end"] {
            assert!(code.contains(there), "{there} in {code}");
        }
        assert_eq!(code.lines().count(), source.lines().count());
    }

    #[test]
    fn texts_are_found() {
        let source = "f(\"a\\\"b\", r#\"c \"d\"\"#, b\"e\", 'f', r\"g\"); // \"h\"\n\"\"";
        let found: Vec<String> = strings(source).into_iter().map(|(_, text)| text).collect();
        assert_eq!(found, ["a\\\"b", "c \"d\"", "g", ""]);
        assert_eq!(strings(source)[0].0, 2);
    }

    #[test]
    fn functions_are_measured() {
        let source =
            "trait T {\n fn declared(&self);\n}\nfn one() {}\nfn two(x: [u8; 2]) -> fn(u8) {\n  let s = \"}\";\n}\n";
        let found = functions(&code_only(source));
        let expected = [("one", 4, 1), ("two", 5, 3)];
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (f, (name, line, lines)) in found.iter().zip(expected) {
            assert_eq!((f.name.as_str(), f.line, f.lines), (name, line, lines));
        }
    }
}
