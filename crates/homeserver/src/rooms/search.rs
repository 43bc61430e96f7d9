//! Searching for words: an index of what was said in rooms, and what of it one user may see.
//!
//! The index says for each word of a room in which events it stands, in blocks that are written now and then
//! ([`index`]). It is a hint: what it finds is read and looked at again, and events that came since are read anyway. It
//! can be made anew at any time. What is encrypted has no words. Not here: when the index is written (`indexing`), and
//! the request.

use std::collections::{BTreeMap, BTreeSet};

use store::{Pos, Read, Tx};

use super::read::RoomReader;
use super::relations::RelatedBy;
use super::shown::content_field;
use super::visibility::{Eyes, Ignored};
use crate::App;
use crate::error::{Error, Result};
use crate::schema::{self, EventAt, Postings, RoomNr};
use crate::stored::StoredEvent;

/// The longest word, in bytes; what is longer is cut off.
const MAX_WORD_BYTES: usize = 64;
/// The most different words of one event that are indexed.
const MAX_WORDS: usize = 500;
/// The most events that are indexed in one commit, and about the most bytes that it takes.
const MAX_EVENTS: usize = 256;
const MAX_BYTES: usize = 400 * 1024;
/// The most events with a word that are looked up in one room, newest first.
const MAX_POSTINGS: usize = 50_000;
/// The most events that came after the index was written and are looked at for one search.
const MAX_TAIL: usize = 10_000;

/// What is searched of an event: its text, under the name that clients know it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    Body,
    Name,
    Topic,
}

impl Key {
    pub fn parse(key: &str) -> Option<Self> {
        Some(match key {
            "content.body" => Key::Body,
            "content.name" => Key::Name,
            "content.topic" => Key::Topic,
            _ => return None,
        })
    }
}

/// The text of an event.
fn text(event: &StoredEvent) -> Option<(Key, String)> {
    let (key, field) = match event.kind() {
        "m.room.message" => (Key::Body, "body"),
        "m.room.name" => (Key::Name, "name"),
        "m.room.topic" => (Key::Topic, "topic"),
        _ => return None,
    };
    Some((key, content_field(event, field)?))
}

/// The words of a text, in lower case, in their order. A character of a script that does not part words is one.
pub fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    for char in text.chars() {
        if stands_alone(char) || !char.is_alphanumeric() {
            take(&mut word, &mut words);
        }
        if stands_alone(char) {
            words.push(char.to_string());
        } else if char.is_alphanumeric() {
            word.extend(char.to_lowercase());
        }
    }
    take(&mut word, &mut words);
    words
}

fn take(word: &mut String, words: &mut Vec<String>) {
    if word.is_empty() {
        return;
    }
    let mut end = word.len().min(MAX_WORD_BYTES);
    while !word.is_char_boundary(end) {
        end -= 1;
    }
    word.truncate(end);
    words.push(std::mem::take(word));
}

/// Chinese and Japanese.
fn stands_alone(char: char) -> bool {
    matches!(char, '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}'
        | '\u{20000}'..='\u{2ffff}')
}

/// The words of an event that the index knows.
fn indexed(event: &StoredEvent) -> BTreeSet<String> {
    let text = text(event).filter(|_| !event.hidden());
    text.map(|(_, text)| words(&text).into_iter().take(MAX_WORDS).collect()).unwrap_or_default()
}

// ---- writing -----------------------------------------------------------------------------------------------------

/// Brings the index of a room up to date, in small commits.
pub async fn index(app: &App, room: RoomNr) -> Result<()> {
    while app.store.transact(|tx| index_some(tx, room)).await?.value {}
    Ok(())
}

/// Indexes some events. Says whether there may be more.
fn index_some(tx: &mut Tx, room: RoomNr) -> Result<bool> {
    let from = tx.get(&schema::SEARCHED, room)?.unwrap_or(Pos::ZERO);
    let span = schema::EVENTS.prefix((room,)).after((room, from)).limit(MAX_EVENTS);
    let mut blocks: BTreeMap<String, Postings> = BTreeMap::new();
    let (mut count, mut bytes, mut last) = (0, 0, from);
    for row in tx.scan(&schema::EVENTS, span) {
        let ((_, at), event) = row?;
        if bytes > MAX_BYTES {
            break;
        }
        for word in indexed(&event) {
            bytes += word.len() + 48;
            blocks.entry(word).or_default().0.push(at.0);
        }
        (count, last) = (count + 1, at);
    }
    if count == 0 {
        return Ok(false);
    }
    for (word, block) in &blocks {
        tx.put(&schema::SEARCH_WORDS, (room, word, last), block);
    }
    tx.put(&schema::SEARCHED, room, &last);
    Ok(count == MAX_EVENTS || bytes > MAX_BYTES)
}

/// Takes an event out of the index, in the commit that takes its words from it.
pub fn forget(tx: &mut Tx, room: RoomNr, at: Pos, event: &StoredEvent) -> Result<()> {
    if tx.get(&schema::SEARCHED, room)?.is_none_or(|searched| searched < at) {
        return Ok(());
    }
    for word in indexed(event) {
        let span = schema::SEARCH_WORDS.prefix((room, word.as_str())).from((room, &word, at)).limit(1);
        let Some(((_, _, last), mut block)) = tx.scan(&schema::SEARCH_WORDS, span).next().transpose()? else {
            continue;
        };
        block.0.retain(|known| *known != at.0);
        if block.0.is_empty() {
            tx.delete(&schema::SEARCH_WORDS, (room, &word, last));
        } else {
            tx.put(&schema::SEARCH_WORDS, (room, &word, last), &block);
        }
    }
    Ok(())
}

// ---- reading -----------------------------------------------------------------------------------------------------

/// What somebody looks for.
pub struct Wanted<'a> {
    /// All of them, each once.
    pub words: &'a [String],
    pub keys: &'a BTreeSet<Key>,
    /// Only events at or before this one.
    pub until: Pos,
    pub ignored: &'a Ignored,
    pub related: &'a RelatedBy,
    /// What else an event must be like.
    pub takes: &'a dyn Fn(&StoredEvent) -> bool,
}

/// Where events may lie that have all the words, in some rooms, newest first.
pub fn candidates<R: Read>(reader: RoomReader<'_, R>, rooms: &[RoomNr], wanted: &Wanted<'_>) -> Result<Vec<EventAt>> {
    let mut found = Vec::new();
    let mut tail = MAX_TAIL;
    let searched = reader.read.multi_get(&schema::SEARCHED, rooms.iter().copied())?;
    for (room, searched) in rooms.iter().copied().zip(searched) {
        let span = schema::EVENTS.prefix((room,)).after((room, searched.unwrap_or(Pos::ZERO)));
        let span = span.through((room, wanted.until)).reversed().limit(tail);
        for row in reader.read.scan(&schema::EVENTS, span) {
            let ((_, at), event) = row?;
            tail -= 1;
            let words = indexed(&event);
            if wanted.words.iter().all(|word| words.contains(word)) {
                found.push(EventAt { room, at });
            }
        }
        let together = in_index(reader, room, wanted)?;
        found.extend(together.into_iter().map(|at| EventAt { room, at: Pos(at) }));
    }
    found.sort_unstable_by_key(|found| std::cmp::Reverse(found.at));
    Ok(found)
}

/// The events of a room that the index knows to have all the words.
fn in_index<R: Read>(reader: RoomReader<'_, R>, room: RoomNr, wanted: &Wanted<'_>) -> Result<BTreeSet<u64>> {
    let mut together: Option<BTreeSet<u64>> = None;
    for word in wanted.words {
        let mut having = BTreeSet::new();
        for row in
            reader.read.scan(&schema::SEARCH_WORDS, schema::SEARCH_WORDS.prefix((room, word.as_str())).reversed())
        {
            having.extend(row?.1.0.into_iter().filter(|at| *at <= wanted.until.0));
            if having.len() >= MAX_POSTINGS {
                break;
            }
        }
        let both = match together {
            None => having,
            Some(before) => before.intersection(&having).copied().collect(),
        };
        if both.is_empty() {
            return Ok(both);
        }
        together = Some(both);
    }
    Ok(together.unwrap_or_default())
}

/// Looks at a candidate: how well it fits, if it does and the user may see it.
pub fn rank<R: Read>(
    reader: RoomReader<'_, R>,
    eyes: &Eyes<'_, R>,
    found: EventAt,
    wanted: &Wanted<'_>,
) -> Result<Option<(f64, StoredEvent)>> {
    let Some(event) = reader.event(found.room, found.at)? else { return Ok(None) };
    let Some((key, text)) = text(&event) else { return Ok(None) };
    let sees = |at, looks: &mut usize| eyes.see_at(at, looks);
    let fits = wanted.keys.contains(&key) && (wanted.takes)(&event) && !wanted.ignored.hides(&event);
    if !fits
        || !eyes.see(found.at, &event)?
        || !wanted.related.take(reader, found.room, (&sees, wanted.ignored), &event)?
    {
        return Ok(None);
    }
    let words = words(&text);
    let mut rank = 0.0;
    for wanted in wanted.words {
        match words.iter().filter(|word| *word == wanted).count() {
            0 => return Ok(None),
            count => rank += f64::from(u32::try_from(count).unwrap_or(u32::MAX)),
        }
    }
    // What says little else is more about it.
    Ok(Some((rank / f64::from(u32::try_from(words.len()).unwrap_or(u32::MAX)).sqrt(), event)))
}

/// The words of a search, each once.
pub fn terms(search_term: &str) -> Result<Vec<String>> {
    let words: BTreeSet<String> = words(search_term).into_iter().collect();
    if words.len() > 32 {
        return Err(Error::invalid_param("These are too many words to search for"));
    }
    Ok(words.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_small_and_parted_by_what_is_none() {
        let check = |text: &str, expected: &[&str]| assert_eq!(words(text), expected, "{text}");
        check("Hello, World-wide!", &["hello", "world", "wide"]);
        check("  ", &[]);
        check("ÄRGER straße 2x", &["ärger", "straße", "2x"]);
        check("東京 tower", &["東", "京", "tower"]);
        check("пример—текста", &["пример", "текста"]);
        check(&"é".repeat(40), &["é".repeat(32).as_str()]);
    }
}
