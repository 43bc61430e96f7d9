//! HTML as a stream of tags and text, the way browsers tell one from the other. There is no tree: what a preview needs
//! stands in single tags and short texts, so that a tree and its rules would be much code and much memory for nothing.
//!
//! Every byte is looked at a bounded number of times, nothing is copied, and all text is HTML: there are no errors.
//! Not here: what a page says of itself (`page.rs`).

use std::borrow::Cow;

/// Attributes of one tag that are looked at.
const MAX_ATTRIBUTES: usize = 64;
/// The longest reference to a character.
const MAX_REFERENCE_BYTES: usize = 32;

/// Elements whose content is text, whatever it looks like, until their own end tag.
const RAW: [&str; 8] = ["script", "style", "title", "textarea", "xmp", "iframe", "noembed", "noframes"];

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token<'a> {
    Start(Tag<'a>),
    /// The name, as it stands there.
    End(&'a str),
    /// With its references: see [`decode`].
    Text(&'a str),
}

/// A start tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag<'a> {
    name: &'a str,
    attributes: Vec<(&'a str, &'a str)>,
}

impl<'a> Tag<'a> {
    /// As it stands there.
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// The value of an attribute, if the tag has it.
    pub fn attribute(&self, name: &str) -> Option<Cow<'a, str>> {
        let found = self.attributes.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| decode(value))
    }
}

/// Reads a page from its start to its end.
pub struct Tokens<'a> {
    rest: &'a str,
    /// The element whose text comes next.
    raw: Option<&'static str>,
}

impl<'a> Tokens<'a> {
    pub fn new(html: &'a str) -> Self {
        Tokens { rest: html, raw: None }
    }

    /// So many bytes, which are not read again.
    fn take(&mut self, bytes: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at_checked(bytes).unwrap_or((self.rest, ""));
        self.rest = rest;
        taken
    }

    /// Everything before a sign, which is skipped. To the end, if there is none.
    fn skip_past(&mut self, sign: &str) {
        self.rest = self.rest.split_once(sign).map_or("", |(_, after)| after);
    }

    /// What begins with `<`. `None`: nothing of interest.
    fn markup(&mut self) -> Option<Token<'a>> {
        let after = self.rest.get(1..).unwrap_or_default();
        let is_name = |text: &str| text.starts_with(|c: char| c.is_ascii_alphabetic());
        if let Some(comment) = after.strip_prefix("!--") {
            self.rest = comment;
            self.skip_past("-->");
        } else if after.starts_with(['!', '?']) {
            self.skip_past(">");
        } else if let Some(end) = after.strip_prefix('/') {
            if !is_name(end) {
                self.skip_past(">");
                return None;
            }
            self.rest = end;
            return self.tag().map(|tag| Token::End(tag.name));
        } else if is_name(after) {
            self.rest = after;
            let tag = self.tag()?;
            self.raw = RAW.into_iter().find(|name| tag.name.eq_ignore_ascii_case(name));
            return Some(Token::Start(tag));
        } else {
            return Some(Token::Text(self.take(1)));
        }
        None
    }

    /// A tag from its name on. If the page ends before the tag does, nothing is left to read.
    fn tag(&mut self) -> Option<Tag<'a>> {
        let tag = self.whole_tag();
        if tag.is_none() {
            self.rest = "";
        }
        tag
    }

    fn whole_tag(&mut self) -> Option<Tag<'a>> {
        let name = self.take(self.rest.find(|c| is_space(c) || c == '/' || c == '>')?);
        let mut attributes = Vec::new();
        loop {
            self.rest = self.rest.trim_start_matches(|c| is_space(c) || c == '/');
            if let Some(rest) = self.rest.strip_prefix('>') {
                self.rest = rest;
                return Some(Tag { name, attributes });
            }
            let attribute = self.attribute()?;
            if attributes.len() < MAX_ATTRIBUTES {
                attributes.push(attribute);
            }
        }
    }

    fn attribute(&mut self) -> Option<(&'a str, &'a str)> {
        // An equals sign that comes first belongs to the name.
        let ends = |(at, c): &(usize, char)| *at > 0 && (is_space(*c) || matches!(c, '/' | '>' | '='));
        let name = self.take(self.rest.char_indices().find(ends)?.0);
        let Some(value) = self.rest.trim_start_matches(is_space).strip_prefix('=') else { return Some((name, "")) };
        self.rest = value.trim_start_matches(is_space);
        for quote in ['"', '\''] {
            if let Some(quoted) = self.rest.strip_prefix(quote) {
                let (value, rest) = quoted.split_once(quote)?;
                self.rest = rest;
                return Some((name, value));
            }
        }
        Some((name, self.take(self.rest.find(|c| is_space(c) || c == '>')?)))
    }
}

impl<'a> Iterator for Tokens<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        loop {
            if self.rest.is_empty() {
                return None;
            }
            if let Some(name) = self.raw.take() {
                let text = self.take(end_of_raw(self.rest, name));
                if !text.is_empty() {
                    return Some(Token::Text(text));
                }
            } else if self.rest.starts_with('<') {
                if let Some(token) = self.markup() {
                    return Some(token);
                }
            } else {
                return Some(Token::Text(self.take(self.rest.find('<').unwrap_or(self.rest.len()))));
            }
        }
    }
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0c')
}

/// Where the end tag of an element starts, or the page ends.
fn end_of_raw(text: &str, name: &str) -> usize {
    let closes = |after: &str| {
        let rest = after.strip_prefix("</").and_then(|after| after.split_at_checked(name.len()));
        rest.is_some_and(|(found, rest)| {
            found.eq_ignore_ascii_case(name) && rest.starts_with(|c| is_space(c) || c == '/' || c == '>')
        })
    };
    let mut ends = text.match_indices("</").map(|(at, _)| at);
    ends.find(|at| text.get(*at..).is_some_and(closes)).unwrap_or(text.len())
}

/// Text or the value of an attribute, with references to characters replaced by these.
pub fn decode(text: &str) -> Cow<'_, str> {
    if !text.contains('&') {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('&') {
        out.push_str(before);
        match reference(after) {
            Some((c, bytes)) => {
                out.push(c);
                rest = after.get(bytes..).unwrap_or_default();
            }
            None => {
                out.push('&');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// The character that is meant by what stands after an ampersand, and how many bytes that takes.
fn reference(text: &str) -> Option<(char, usize)> {
    let end = text.bytes().take(MAX_REFERENCE_BYTES).position(|byte| byte == b';')?;
    let name = text.get(..end)?;
    let c = match name.strip_prefix('#') {
        Some(number) => numbered(match number.strip_prefix(['x', 'X']) {
            Some(hex) => u32::from_str_radix(hex, 16).ok()?,
            None => number.parse().ok()?,
        }),
        None => self::named(name)?,
    };
    Some((c, end + 1))
}

fn numbered(number: u32) -> char {
    let byte = [number as u8];
    match number {
        // What old editors called so.
        0x80..=0x9f => encoding_rs::WINDOWS_1252.decode_without_bom_handling(&byte).0.chars().next(),
        0 => None,
        _ => char::from_u32(number),
    }
    .unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The names that titles and descriptions are likely to have: those of markup, of punctuation, and of Latin-1.
fn named(name: &str) -> Option<char> {
    let found = match name {
        "amp" | "AMP" => '&',
        "lt" | "LT" => '<',
        "gt" | "GT" => '>',
        "quot" | "QUOT" => '"',
        "apos" => '\'',
        "ndash" => '–',
        "mdash" => '—',
        "lsquo" => '‘',
        "rsquo" => '’',
        "sbquo" => '‚',
        "ldquo" => '“',
        "rdquo" => '”',
        "bdquo" => '„',
        "lsaquo" => '‹',
        "rsaquo" => '›',
        "hellip" => '…',
        "bull" => '•',
        "euro" => '€',
        "trade" => '™',
        "rarr" => '→',
        "larr" => '←',
        "minus" => '−',
        "OElig" => 'Œ',
        "oelig" => 'œ',
        "Scaron" => 'Š',
        "scaron" => 'š',
        _ => {
            let at = LATIN_1.iter().position(|known| *known == name)?;
            return char::from_u32(0xa0 + at as u32);
        }
    };
    Some(found)
}

/// From U+00A0 on.
const LATIN_1: [&str; 96] = [
    "nbsp", "iexcl", "cent", "pound", "curren", "yen", "brvbar", "sect", "uml", "copy", "ordf", "laquo", "not", "shy",
    "reg", "macr", "deg", "plusmn", "sup2", "sup3", "acute", "micro", "para", "middot", "cedil", "sup1", "ordm",
    "raquo", "frac14", "frac12", "frac34", "iquest", "Agrave", "Aacute", "Acirc", "Atilde", "Auml", "Aring", "AElig",
    "Ccedil", "Egrave", "Eacute", "Ecirc", "Euml", "Igrave", "Iacute", "Icirc", "Iuml", "ETH", "Ntilde", "Ograve",
    "Oacute", "Ocirc", "Otilde", "Ouml", "times", "Oslash", "Ugrave", "Uacute", "Ucirc", "Uuml", "Yacute", "THORN",
    "szlig", "agrave", "aacute", "acirc", "atilde", "auml", "aring", "aelig", "ccedil", "egrave", "eacute", "ecirc",
    "euml", "igrave", "iacute", "icirc", "iuml", "eth", "ntilde", "ograve", "oacute", "ocirc", "otilde", "ouml",
    "divide", "oslash", "ugrave", "uacute", "ucirc", "uuml", "yacute", "thorn", "yuml",
];

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert, proptest};

    use super::*;

    /// A line per token.
    fn shown(html: &str) -> Vec<String> {
        let tag = |tag: &Tag<'_>| {
            let attributes = tag.attributes.iter().map(|(name, value)| format!(" {name}={}", decode(value)));
            format!("<{}{}>", tag.name, attributes.collect::<String>())
        };
        let line = |token: Token<'_>| match token {
            Token::Start(start) => tag(&start),
            Token::End(name) => format!("</{name}>"),
            Token::Text(text) => decode(text).into_owned(),
        };
        Tokens::new(html).map(line).collect()
    }

    #[test]
    fn tags_and_text_are_told_apart() {
        let cases: &[(&str, &[&str])] = &[
            ("a<b>c</b>d", &["a", "<b>", "c", "</b>", "d"]),
            ("<!doctype html><p>x", &["<p>", "x"]),
            ("a<!-- <b> -- > -->c", &["a", "c"]),
            ("a<!-- never ends <b>", &["a"]),
            ("<?php echo '<b'; ?>x", &["x"]),
            ("1 < 2 <3", &["1 ", "<", " 2 ", "<", "3"]),
            ("</ b>x</3>y</b >z", &["x", "y", "</b>", "z"]),
            ("<a href=x>", &["<a href=x>"]),
            ("<A HREF = 'x > y' b c=\"1 '2'\" d=&amp;e/>", &["<A HREF=x > y b= c=1 '2' d=&e/>"]),
            ("<a/b/c=d>", &["<a b= c=d>"]),
            ("<a =b =c>", &["<a =b=c>"]),
            ("<a\nb=\n'c'\n>", &["<a b=c>"]),
            ("x<a href='never", &["x"]),
            ("x<a href=\"a\" <b>c", &["x", "<a href=a <b=>", "c"]),
            ("x</b never", &["x"]),
            ("x<", &["x", "<"]),
            ("<script>if (a<b) '</scriptx>' </SCRIPT >y", &["<script>", "if (a<b) '</scriptx>' ", "</SCRIPT>", "y"]),
            ("<title>a <b> &amp; c</title>", &["<title>", "a <b> & c", "</title>"]),
            ("<style></style>x", &["<style>", "</style>", "x"]),
            ("<title>never", &["<title>", "never"]),
            ("ä<ö>ü<aé=ß>", &["ä", "<", "ö>ü", "<aé=ß>"]),
        ];
        for (html, expected) in cases {
            assert_eq!(shown(html), *expected, "{html}");
        }
    }

    #[test]
    fn references_become_characters() {
        let cases = [
            ("a &amp; b &lt;&gt;&quot;&#39;", "a & b <>\"'"),
            ("&uuml;&Auml;&szlig;&nbsp;&eacute;&yuml;", "üÄß\u{a0}éÿ"),
            ("&#x1F600;&#128512;&#150;", "😀😀–"),
            ("&#0;&#xD800;&#99999999;", "\u{fffd}\u{fffd}\u{fffd}"),
            ("&nosuch; &amp &; & &#; &#x; AT&T;", "&nosuch; &amp &; & &#; &#x; AT&T;"),
            ("&aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa;", "&aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa;"),
        ];
        for (text, expected) in cases {
            assert_eq!(decode(text), expected);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_page(text in any::<String>()) {
            let tokens = Tokens::new(&text).count();
            prop_assert!(tokens <= text.len());
        }

        #[test]
        fn whatever_looks_like_markup_is_a_page(parts in proptest::collection::vec(0usize..22, 0..60)) {
            const PARTS: [&str; 22] = [
                "<", ">", "</", "/>", "<!--", "-->", "<!", "<?", "script", "title", "=", "\"", "'", " ", "&", "&#", ";", "a",
                "ü", "<title>", "</title>", "\0",
            ];
            let text: String = parts.iter().map(|part| PARTS[*part]).collect();
            let mut texts = 0;
            for token in Tokens::new(&text) {
                if let Token::Text(text) = token {
                    texts += text.len();
                    decode(text);
                }
            }
            prop_assert!(texts <= text.len());
        }
    }
}
