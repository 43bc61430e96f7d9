//! Patterns of push rules (spec: Conditions for push rules, Glob-style matching): `*` is any text, `?` any character, and
//! case does not matter. They are taken apart once, when a rule is prepared.
//!
//! Whoever writes the pattern is not whoever writes the text, and neither is to be trusted with the time of a server. So
//! there is no recursion and no backtracking over more than one piece, and every step is paid for with [`Fuel`].

use std::borrow::Cow;
use std::cell::Cell;

use memchr::memmem::Finder;

/// Longer patterns match nothing.
pub const MAX_PATTERN_BYTES: usize = 1_024;
/// Steps (about nanoseconds) that the patterns of one user may take for one event. With a body as large as there may be,
/// that is enough for some two hundred words.
const MAX_STEPS: u64 = 1 << 20;
/// Bytes that a search for a plain text goes through in one step.
const BYTES_PER_STEP: usize = 16;

/// What matching took, and how much more it may take for one event.
#[derive(Debug, Default)]
pub struct Fuel {
    left: Cell<u64>,
    taken: Cell<u64>,
}

impl Fuel {
    /// It is about the next event.
    pub fn fill(&self) {
        self.left.set(MAX_STEPS);
    }

    /// Everything that was taken so far.
    pub fn taken(&self) -> u64 {
        self.taken.get()
    }

    /// Pays for some steps. If there is not enough left, they must not be done.
    pub fn take(&self, steps: usize) -> bool {
        let (steps, left) = (steps as u64, self.left.get());
        let taken = steps.min(left);
        self.left.set(left - taken);
        self.taken.set(self.taken.get() + taken);
        steps <= left
    }
}

/// A pattern, taken apart.
#[derive(Debug)]
pub struct Pattern {
    /// What stands between the asterisks. There is always one.
    pieces: Box<[Piece]>,
    scope: Scope,
}

/// What a pattern has to match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All of a text.
    Whole,
    /// A stretch of it that begins and ends at a word boundary.
    Words,
}

#[derive(Debug)]
enum Piece {
    /// Matches itself.
    Plain(Box<Finder<'static>>),
    /// Has question marks.
    Wild { text: Box<str>, chars: usize },
}

/// A text in lower case; costs nothing if it already is, and plain.
pub fn lower(text: &str) -> Cow<'_, str> {
    if is_lower(text) { Cow::Borrowed(text) } else { Cow::Owned(text.to_lowercase()) }
}

fn is_lower(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii() && !byte.is_ascii_uppercase())
}

impl Pattern {
    /// `None`: it is too long.
    pub fn new(pattern: &str, scope: Scope) -> Option<Self> {
        Self::of_pieces(pattern, scope, |lower| lower.split('*').map(Piece::new).collect())
    }

    /// A text in which asterisks and question marks stand for themselves.
    pub fn plain(text: &str, scope: Scope) -> Option<Self> {
        Self::of_pieces(text, scope, |lower| Box::new([Piece::plain(lower)]))
    }

    fn of_pieces(text: &str, scope: Scope, split: impl FnOnce(&str) -> Box<[Piece]>) -> Option<Self> {
        (text.len() <= MAX_PATTERN_BYTES).then(|| Pattern { pieces: split(&lower(text)), scope })
    }

    /// Whether it is all of a text, without wildcards.
    pub fn is_plain(&self, text: &str) -> bool {
        matches!(&*self.pieces, [Piece::Plain(finder)] if finder.needle() == lower(text).as_bytes())
    }

    /// About how much memory it takes.
    pub fn weight(&self) -> usize {
        size_of::<Self>() + self.pieces.iter().map(Piece::weight).sum::<usize>()
    }

    /// Whether it matches a text in any case.
    pub fn matches(&self, text: &str, fuel: &Fuel) -> bool {
        if let (Scope::Whole, [Piece::Plain(finder)]) = (self.scope, &*self.pieces)
            && text.is_ascii()
        {
            return fuel.take(1) && finder.needle().eq_ignore_ascii_case(text.as_bytes());
        }
        let steps = if is_lower(text) { text.len() / BYTES_PER_STEP } else { 4 * text.len() };
        fuel.take(steps) && self.matches_lower(&lower(text), fuel)
    }

    /// Whether it matches a text that is in lower case.
    pub fn matches_lower(&self, text: &str, fuel: &Fuel) -> bool {
        let mut steps = Steps { text, fuel };
        match (self.scope, &*self.pieces) {
            (_, []) => false,
            (Scope::Whole, [only]) => steps.at(only, 0) == Some(text.len()),
            (Scope::Whole, [first, between @ .., last]) => steps.whole(first, between, last),
            (Scope::Words, [only]) if only.is_empty() => text.is_empty(),
            (Scope::Words, [only]) => {
                steps.find(only, 0, |start, end| bounds(text, start) && bounds(text, end)).is_some()
            }
            (Scope::Words, [first, between @ .., last]) => steps.words(first, between, last),
        }
    }
}

/// Whether there is a word boundary at this place: an end of the text, or a character on either side that is in no word.
fn bounds(text: &str, at: usize) -> bool {
    let in_word = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    let before = at.checked_sub(1).and_then(|before| text.as_bytes().get(before));
    !(in_word(before) && in_word(text.as_bytes().get(at)))
}

impl Piece {
    fn new(lower: &str) -> Self {
        if lower.contains('?') {
            Piece::Wild { text: lower.into(), chars: lower.chars().count() }
        } else {
            Piece::plain(lower)
        }
    }

    fn plain(lower: &str) -> Self {
        Piece::Plain(Box::new(Finder::new(lower.as_bytes()).into_owned()))
    }

    fn is_empty(&self) -> bool {
        self.text().is_empty()
    }

    fn weight(&self) -> usize {
        let finder = if matches!(self, Piece::Plain(_)) { size_of::<Finder<'_>>() } else { 0 };
        size_of::<Self>() + finder + self.text().len()
    }

    fn text(&self) -> &[u8] {
        match self {
            Piece::Plain(finder) => finder.needle(),
            Piece::Wild { text, .. } => text.as_bytes(),
        }
    }
}

/// Matching one text.
struct Steps<'a> {
    text: &'a str,
    fuel: &'a Fuel,
}

impl Steps<'_> {
    fn whole(&mut self, first: &Piece, between: &[Piece], last: &Piece) -> bool {
        let end = self.at(first, 0).and_then(|end| self.all(between, end));
        let (Some(end), Some(start)) = (end, self.start_of_last(last)) else { return false };
        start >= end && self.at(last, start) == Some(self.text.len())
    }

    fn words(&mut self, first: &Piece, between: &[Piece], last: &Piece) -> bool {
        let text = self.text;
        let end = if first.is_empty() { Some(0) } else { self.find(first, 0, |start, _| bounds(text, start)) };
        let Some(end) = end.and_then(|end| self.all(between, end)) else { return false };
        last.is_empty() || self.find(last, end, |_, end| bounds(text, end)).is_some()
    }

    /// Where the first of all ways ends in which some pieces follow each other.
    fn all(&mut self, pieces: &[Piece], from: usize) -> Option<usize> {
        pieces.iter().try_fold(from, |from, piece| self.find(piece, from, |_, _| true))
    }

    /// Where a piece has to begin to be at the end.
    fn start_of_last(&mut self, piece: &Piece) -> Option<usize> {
        match piece {
            Piece::Plain(finder) => {
                let start = self.text.len().checked_sub(finder.needle().len())?;
                self.text.is_char_boundary(start).then_some(start)
            }
            Piece::Wild { chars, .. } => self.text.char_indices().rev().nth(chars.saturating_sub(1)).map(|(at, _)| at),
        }
    }

    /// Where the first suitable match of a piece ends that begins at or after a place.
    fn find(&mut self, piece: &Piece, from: usize, suits: impl Fn(usize, usize) -> bool) -> Option<usize> {
        match piece {
            Piece::Plain(finder) => self.find_plain(finder, from, suits),
            Piece::Wild { .. } => {
                let rest = self.text.get(from..)?;
                for (start, _) in rest.char_indices().map(|(at, char)| (from + at, char)) {
                    if let Some(end) = self.at(piece, start)
                        && suits(start, end)
                    {
                        return Some(end);
                    }
                    if self.fuel.left.get() == 0 {
                        return None;
                    }
                }
                None
            }
        }
    }

    fn find_plain(
        &mut self,
        finder: &Finder<'_>,
        mut from: usize,
        suits: impl Fn(usize, usize) -> bool,
    ) -> Option<usize> {
        let len = finder.needle().len();
        loop {
            let rest = self.text.as_bytes().get(from..)?;
            let found = finder.find(rest);
            let read = found.map_or(rest.len(), |found| found + len);
            if !self.fuel.take(1 + read / BYTES_PER_STEP) {
                return None;
            }
            let start = from + found?;
            if suits(start, start + len) {
                return Some(start + len);
            }
            // Where a character begins that is the first of the needle, another byte of it does not.
            from = start + 1;
        }
    }

    /// Where a piece ends that begins right here.
    fn at(&mut self, piece: &Piece, start: usize) -> Option<usize> {
        let rest = self.text.get(start..)?;
        let (pattern, _) = match piece {
            Piece::Plain(finder) => {
                let needle = finder.needle();
                let same = self.fuel.take(1 + needle.len() / BYTES_PER_STEP) && rest.as_bytes().starts_with(needle);
                return same.then_some(start + needle.len());
            }
            Piece::Wild { text, chars } => (text, chars),
        };
        let mut chars = rest.chars();
        let mut steps = 1;
        let all = pattern.chars().all(|wanted| {
            steps += 1;
            chars.next().is_some_and(|char| wanted == '?' || wanted == char)
        });
        (self.fuel.take(steps) && all).then(|| self.text.len() - chars.as_str().len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ruma::push::{FlattenedJson, PushCondition, PushConditionRoomCtx};
    use ruma::serde::Raw;
    use ruma::{owned_room_id, owned_user_id, uint};
    use serde_json::json;

    use super::*;

    fn matches(pattern: &str, scope: Scope, text: &str) -> bool {
        let fuel = Fuel::default();
        fuel.fill();
        Pattern::new(pattern, scope).is_some_and(|pattern| pattern.matches(text, &fuel))
    }

    fn words(text: &str, pattern: &str) -> bool {
        matches(pattern, Scope::Words, text)
    }

    fn whole(text: &str, pattern: &str) -> bool {
        matches(pattern, Scope::Whole, text)
    }

    /// What ruma makes of it.
    fn oracle(pattern: &str, scope: Scope, text: &str) -> bool {
        use futures_util::FutureExt as _;

        let (key, event) = match scope {
            Scope::Words => ("content.body", json!({ "content": { "body": text } })),
            Scope::Whole => ("content.x", json!({ "content": { "x": text } })),
        };
        let condition = json!({ "kind": "event_match", "key": key, "pattern": pattern });
        let condition: PushCondition = serde_json::from_value(condition).unwrap();
        let room =
            PushConditionRoomCtx::new(owned_room_id!("!r:hs"), uint!(2), owned_user_id!("@me:hs"), "me".to_owned());
        let event = FlattenedJson::from_raw(&Raw::new(&event).unwrap());
        condition.applies(&event, &room).now_or_never().unwrap()
    }

    fn both(text: impl Strategy<Value = String>, pattern: &'static str) -> impl Strategy<Value = (String, String)> {
        (text, pattern)
    }

    /// Of wildcards in a row ruma takes every other one for itself.
    const SINGLE_WILDCARDS: &str = "[abÉ_ .]{0,2}([?*][abÉ_ .]{1,2}){0,3}[?*]?";

    /// The specification, word for word, and without any regard for time.
    fn naive(pattern: &str, scope: Scope, text: &str) -> bool {
        fn glob(pattern: &[char], text: &[char]) -> bool {
            match (pattern, text) {
                ([], text) => text.is_empty(),
                (['*', rest @ ..], _) => (0..=text.len()).any(|skipped| glob(rest, &text[skipped..])),
                (['?', rest @ ..], [_, text @ ..]) => glob(rest, text),
                ([wanted, rest @ ..], [char, text @ ..]) => wanted == char && glob(rest, text),
                _ => false,
            }
        }
        let (pattern, text): (Vec<char>, Vec<char>) =
            (pattern.to_lowercase().chars().collect(), text.to_lowercase().chars().collect());
        if scope == Scope::Whole || pattern.is_empty() {
            return glob(&pattern, &text);
        }
        let in_word = |char: &char| char.is_ascii_alphanumeric() || *char == '_';
        let bounds = |at: usize| !(at > 0 && at < text.len() && in_word(&text[at - 1]) && in_word(&text[at]));
        let ends = |start: usize| (start..=text.len()).filter(|end| bounds(*end));
        (0..=text.len())
            .filter(|start| bounds(*start))
            .any(|start| ends(start).any(|end| glob(&pattern, &text[start..end])))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 8_192, ..ProptestConfig::default() })]

        #[test]
        fn pitfall_072_words_match_like_ruma((text, pattern) in both("[abA_ é.]{0,12}", SINGLE_WILDCARDS)) {
            prop_assert_eq!(words(&text, &pattern), oracle(&pattern, Scope::Words, &text));
        }

        #[test]
        fn pitfall_072_values_match_like_ruma((text, pattern) in both("[abAé\n]{0,8}", "[abÉ\n?*]{0,6}")) {
            prop_assert_eq!(whole(&text, &pattern), oracle(&pattern, Scope::Whole, &text));
        }

        #[test]
        fn pitfall_072_patterns_match_as_specified((text, pattern) in both("[abA_ é.\n*?]{0,8}", "[abÉ_\n?*]{0,7}")) {
            for scope in [Scope::Words, Scope::Whole] {
                prop_assert_eq!(matches(&pattern, scope, &text), naive(&pattern, scope, &text), "{:?}", scope);
            }
        }

        #[test]
        fn pitfall_072_what_is_plain_matches_like_ruma((text, pattern) in both("[ab\n_ ]{0,14}", "[ab\n _]{0,4}")) {
            prop_assert_eq!(words(&text, &pattern), oracle(&pattern, Scope::Words, &text));
        }
    }

    #[test]
    fn pitfall_072_the_examples_of_the_specification() {
        for text in ["An example event.", "exple", "An exciting triple-whammy"] {
            assert!(words(text, "ex*ple"), "{text}");
        }
        assert!(whole("Lunch plans", "lunc?*") && whole("LUNCH", "lunc?*"));
        assert!(!whole(" lunch", "lunc?*") && !whole("lunc", "lunc?*"));
        // Any text goes over lines, too (ruma's does not).
        assert!(words("say tea\nor coffee now", "tea*coffee") && words("a\nb", "a?b"));
    }

    #[test]
    fn what_is_plain_has_no_wildcards() {
        let fuel = Fuel::default();
        fuel.fill();
        let name = Pattern::plain("*Star*", Scope::Words).unwrap();
        assert!(name.matches("hello *star*!", &fuel) && !name.matches("hello star", &fuel));
    }

    #[test]
    fn pitfall_072_many_words_that_only_begin_alike_overflow_no_stack() {
        let body = "abc ".repeat(16_000);
        let found = std::thread::Builder::new().stack_size(64 * 1024).spawn(move || words(&body, "ab")).unwrap();
        assert!(!found.join().unwrap());
    }

    #[test]
    fn patterns_that_are_too_long_are_none() {
        assert!(Pattern::new(&"?".repeat(MAX_PATTERN_BYTES), Scope::Words).is_some());
        assert!(Pattern::new(&"?".repeat(MAX_PATTERN_BYTES + 1), Scope::Words).is_none());
        assert!(Pattern::new(&("a".to_owned() + &"?".repeat(400_000)), Scope::Words).is_none());
    }

    #[test]
    fn what_takes_too_long_is_given_up() {
        let body = "a".repeat(64 * 1024);
        let fuel = Fuel::default();
        fuel.fill();
        assert!(Pattern::new("a", Scope::Words).unwrap().matches_lower("a", &fuel));
        let worst = Pattern::new(&("a?".repeat(500) + "b"), Scope::Words).unwrap();
        assert!(!worst.matches_lower(&body, &fuel));
        assert_eq!(fuel.taken(), MAX_STEPS);
        assert!(!Pattern::new("a", Scope::Words).unwrap().matches_lower("a", &fuel), "there is nothing left");
        fuel.fill();
        assert!(Pattern::new("a", Scope::Words).unwrap().matches_lower("a", &fuel));
    }

    #[test]
    fn a_body_of_any_size_is_searched_for_many_words() {
        let body = "lorem ipsum ".repeat(5_400) + "needle";
        let fuel = Fuel::default();
        fuel.fill();
        let others =
            (0..200).filter(|n| Pattern::new(&format!("word{n}"), Scope::Words).unwrap().matches_lower(&body, &fuel));
        assert_eq!(others.count(), 0);
        assert!(Pattern::new("needle", Scope::Words).unwrap().matches_lower(&body, &fuel));
    }
}
