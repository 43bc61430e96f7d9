//! Finding users of this server by name: an index of the words of their names.
//!
//! A user is found by how words begin: those of the name before the colon, and those of the display name. The rows change
//! with the names, in the same commit ([`update`]). A search looks at a bounded number of rows, however many users there
//! are. Whom somebody may find is not decided here (`client::user_directory`).

use std::collections::{BTreeSet, HashSet};

use bytes::Bytes;
use ruma::{OwnedUserId, UserId};
use store::{Read, Tx};

use crate::App;
use crate::error::{Error, Result};
use crate::schema::{DIRECTORY_USERS, DIRECTORY_WORDS, NameWords, SERVER, USERS};
use crate::users::profiles::{self, Shown};

/// The longest word, in bytes; what is longer is cut off.
const MAX_WORD_BYTES: usize = 48;
/// The most words of a user.
const MAX_WORDS: usize = 24;
/// So many users are looked at for one search, found or not.
const MAX_LOOKED_AT: usize = 200;
/// So many users are put into the index in one commit, when it is made anew.
const SLICE: usize = 200;
/// The row that says that the index is complete.
const COMPLETE: &str = "user_directory";

// ---- words -------------------------------------------------------------------------------------------------------

/// The words of a text, in lower case.
fn words(text: &str) -> impl Iterator<Item = String> {
    let lower = text.to_lowercase();
    let words: Vec<String> = lower
        .split(|char: char| !char.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(|word| cut(word).to_owned())
        .collect();
    words.into_iter()
}

fn cut(word: &str) -> &str {
    let mut end = word.len().min(MAX_WORD_BYTES);
    while !word.is_char_boundary(end) {
        end -= 1;
    }
    word.get(..end).unwrap_or_default()
}

/// What a word is found by. Scripts that do not part words are found by any of their characters.
fn entries(word: &str) -> impl Iterator<Item = &str> {
    let starts = word.char_indices().filter(|(at, char)| *at == 0 || stands_alone(*char));
    starts.filter_map(|(at, _)| word.get(at..))
}

/// Chinese and Japanese.
fn stands_alone(char: char) -> bool {
    matches!(char, '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}'
        | '\u{20000}'..='\u{2ffff}')
}

/// What a user is found by; nothing, if nobody is to find them.
fn words_of(read: &impl Read, user_id: &UserId) -> Result<BTreeSet<String>> {
    let user = read.get(&USERS, user_id.as_str())?;
    if user.is_none_or(|user| user.deactivated || user.guest) {
        return Ok(BTreeSet::new());
    }
    let shown = profiles::shown(read, user_id)?;
    let all = words(user_id.localpart()).chain(words(shown.displayname.as_deref().unwrap_or_default()));
    let all: Vec<String> = all.collect();
    Ok(all.iter().flat_map(|word| entries(word)).take(MAX_WORDS).map(str::to_owned).collect())
}

// ---- writing -----------------------------------------------------------------------------------------------------

/// Brings the rows of a user up to date. To be called after every change of a name, and when an account is opened,
/// closed, or opened again.
pub fn update(tx: &mut Tx, user_id: &UserId) -> Result<()> {
    let known = tx.get(&DIRECTORY_USERS, user_id.as_str())?.unwrap_or_default().0;
    let wanted = words_of(tx, user_id)?;
    if known == wanted {
        return Ok(());
    }
    for word in known.difference(&wanted) {
        tx.delete(&DIRECTORY_WORDS, (word, user_id.as_str()));
    }
    for word in wanted.difference(&known) {
        tx.put(&DIRECTORY_WORDS, (word, user_id.as_str()), &());
    }
    match wanted.is_empty() {
        true => tx.delete(&DIRECTORY_USERS, user_id.as_str()),
        false => tx.put(&DIRECTORY_USERS, user_id.as_str(), &NameWords(wanted)),
    }
    Ok(())
}

/// Makes the index, where a server of an earlier version left none.
pub async fn complete(app: &App) -> Result<()> {
    if app.store.snapshot().contains(&SERVER, COMPLETE)? {
        return Ok(());
    }
    let mut from = String::new();
    loop {
        let users: Vec<String> = {
            let read = app.store.snapshot();
            read.scan(&USERS, USERS.all().from(&from).limit(SLICE)).keys().collect::<store::Result<_>>()?
        };
        let add = |tx: &mut Tx| -> Result<()> {
            for user_id in &users {
                update(tx, <&UserId>::try_from(user_id.as_str()).map_err(Error::internal)?)?;
            }
            Ok(())
        };
        app.store.transact(add).await?;
        match users.last().filter(|_| users.len() == SLICE) {
            Some(last) => from = format!("{last}\0"),
            None => break,
        }
    }
    let done = |tx: &mut Tx| -> Result<()> {
        tx.put(&SERVER, COMPLETE, &Bytes::from_static(b"1"));
        Ok(())
    };
    app.store.transact(done).await.map(drop)
}

// ---- searching ---------------------------------------------------------------------------------------------------

/// What somebody is looking for.
struct Term {
    words: Vec<String>,
    /// The beginning of a user ID, if it is one.
    id: Option<String>,
}

impl Term {
    fn new(term: &str) -> Self {
        let term = term.trim();
        let id = match (term.starts_with('@'), term.contains(':')) {
            (true, _) => Some(term.to_lowercase()),
            (false, true) => Some(format!("@{}", term.to_lowercase())),
            (false, false) => None,
        };
        let mut words: Vec<String> = words(term).collect();
        // The longest one leaves the fewest to look at.
        words.sort_unstable_by_key(|word| std::cmp::Reverse(word.len()));
        Self { words, id }
    }

    /// Whether a user of these words is meant.
    fn fits(&self, user_id: &str, words: &BTreeSet<String>) -> bool {
        let begins =
            |wanted: &String| words.range(wanted.clone()..).next().is_some_and(|word| word.starts_with(wanted));
        match &self.id {
            Some(id) => user_id.starts_with(id),
            None => !self.words.is_empty() && self.words.iter().all(begins),
        }
    }
}

/// Users that are found.
#[derive(Debug, Default)]
pub struct Found {
    pub users: Vec<(OwnedUserId, Shown)>,
    /// There may be more.
    pub limited: bool,
}

/// Up to `limit` users of that name whom somebody may find. Where the name is so common that not all who have it can be
/// looked at, `near` (the people around who asks) are looked at, too.
pub fn search(
    read: &impl Read,
    term: &str,
    limit: usize,
    mut may_find: impl FnMut(&UserId) -> Result<bool>,
    near: impl FnOnce() -> Result<Vec<String>>,
) -> Result<Found> {
    let term = Term::new(term);
    let (mut found, mut seen) = (Found::default(), HashSet::new());
    let mut take = |user_id: String, found: &mut Found| -> Result<bool> {
        if !seen.insert(user_id.clone()) {
            return Ok(true);
        }
        let Some(words) = read.get(&DIRECTORY_USERS, user_id.as_str())? else { return Ok(true) };
        let user = UserId::parse(user_id.as_str()).map_err(Error::internal)?;
        if !term.fits(&user_id, &words.0) || !may_find(&user)? {
            return Ok(true);
        }
        if found.users.len() == limit {
            found.limited = true;
            return Ok(false);
        }
        found.users.push((user.clone(), profiles::shown(read, &user)?));
        Ok(true)
    };
    for (looked_at, user_id) in candidates(read, &term).enumerate() {
        if looked_at == MAX_LOOKED_AT {
            found.limited = true;
            break;
        }
        if !take(user_id?, &mut found)? {
            return Ok(found);
        }
    }
    if found.limited {
        for user_id in near()?.into_iter().take(MAX_LOOKED_AT) {
            if !take(user_id, &mut found)? {
                break;
            }
        }
    }
    Ok(found)
}

/// Users who may be meant, those with the shortest words first; some of them more than once.
fn candidates<'a>(read: &'a impl Read, term: &'a Term) -> Box<dyn Iterator<Item = Result<String>> + 'a> {
    if let Some(id) = &term.id {
        let users = read.scan(&DIRECTORY_USERS, DIRECTORY_USERS.all().from(id)).keys();
        return Box::new(users.map(|key| key.map_err(Error::from)).take_while(begins_with(id, String::as_str)));
    }
    let Some(word) = term.words.first() else { return Box::new(std::iter::empty()) };
    let rows = read.scan(&DIRECTORY_WORDS, DIRECTORY_WORDS.all().from((word, ""))).keys();
    let rows =
        rows.map(|key| key.map_err(Error::from)).take_while(begins_with(word, |(word, _): &(String, String)| word));
    Box::new(rows.map(|row| row.map(|(_, user_id)| user_id)))
}

fn begins_with<T>(start: &str, text: impl Fn(&T) -> &str) -> impl Fn(&Result<T>) -> bool {
    move |row| row.as_ref().map_or(true, |row| text(row).starts_with(start))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use serde_json::json;

    use super::*;
    use crate::schema::User;
    use crate::testing::Server;

    fn user_id(name: &str) -> OwnedUserId {
        UserId::parse(format!("@{name}:hs.test")).unwrap()
    }

    async fn people(server: &Server, people: &[(&str, &str)]) {
        let open = |tx: &mut Tx| -> Result<()> {
            for (name, displayname) in people {
                tx.put(&USERS, user_id(name).as_str(), &User::default());
                profiles::set(tx, &user_id(name), profiles::DISPLAYNAME, Some(&json!(displayname)))?;
                update(tx, &user_id(name))?;
            }
            Ok(())
        };
        server.app.store.transact(open).await.unwrap();
    }

    fn names(server: &Server, term: &str) -> String {
        let found = search(&server.app.store.snapshot(), term, 10, |_| Ok(true), || Ok(Vec::new())).unwrap();
        found.users.iter().map(|(user, _)| user.localpart()).collect::<Vec<_>>().join(" ")
    }

    #[tokio::test]
    async fn pitfall_057_words_are_found_by_how_they_begin() {
        let server = Server::default();
        let all = [("anna", "Anna Bell"), ("b.ann", "Ürsula O'Neil"), ("yamada", "山田太郎"), ("x1", "")];
        people(&server, &all).await;
        for (term, expected) in [
            ("ann", "b.ann anna"),
            ("ANNA", "anna"),
            ("bell an", "anna"),
            ("anna neil", ""),
            ("neil", "b.ann"),
            ("ürs", "b.ann"),
            ("太郎", "yamada"),
            ("山田", "yamada"),
            ("nna", ""),
            ("@an", "anna"),
            ("@anna:hs.test", "anna"),
            ("x1:hs", "x1"),
            ("", ""),
            (" . ", ""),
            ("@", "anna b.ann x1 yamada"),
        ] {
            assert_eq!(names(&server, term), expected, "{term:?}");
        }
    }

    #[tokio::test]
    async fn pitfall_057_rows_follow_the_names() {
        let server = Server::default();
        let rows = || {
            let read = server.app.store.snapshot();
            let words = read.count(&DIRECTORY_WORDS, DIRECTORY_WORDS.all()).unwrap();
            (words, read.count(&DIRECTORY_USERS, DIRECTORY_USERS.all()).unwrap())
        };
        let alice = server.user("alice").await;
        assert_eq!((rows(), names(&server, "alice")), ((1, 1), "alice".to_owned()));
        let name = "/_matrix/client/v3/profile/@alice:hs.test/displayname";
        alice.client.put(name, json!({"displayname": "Grace Hopper"})).await;
        assert_eq!((rows(), names(&server, "hopp")), ((3, 1), "alice".to_owned()));
        alice.client.put(name, json!({"displayname": "Grace Murray"})).await;
        assert_eq!(
            (rows(), names(&server, "hopp"), names(&server, "mur")),
            ((3, 1), String::new(), "alice".to_owned())
        );
        alice.client.delete(name).await;
        assert_eq!((rows(), names(&server, "grace")), ((1, 1), String::new()));
        alice.client.put(name, json!({"displayname": "Grace"})).await;
        alice.client.post("/_matrix/client/v3/account/deactivate", json!({"auth": alice.auth()})).await;
        assert_eq!((rows(), names(&server, "alice")), ((0, 0), String::new()));
        let guest = server.client.post("/_matrix/client/v3/register?kind=guest", json!({})).await;
        assert_eq!((guest.status.as_u16(), rows()), (403, (0, 0)));
    }

    #[tokio::test]
    async fn an_index_that_is_not_there_is_made() {
        let server = Server::default();
        let write = |tx: &mut Tx| -> Result<()> {
            for nr in 0..2 * SLICE + 7 {
                tx.put(&USERS, user_id(&format!("u{nr}")).as_str(), &User::default());
            }
            tx.put(&USERS, user_id("gone").as_str(), &User { deactivated: true, ..User::default() });
            Ok(())
        };
        server.app.store.transact(write).await.unwrap();
        complete(&server.app).await.unwrap();
        let read = server.app.store.snapshot();
        assert_eq!(read.count(&DIRECTORY_USERS, DIRECTORY_USERS.all()).unwrap(), 2 * SLICE + 7);
        assert_eq!(names(&server, "u406"), "u406");
        let tip = server.app.store.tip();
        complete(&server.app).await.unwrap();
        assert_eq!(server.app.store.tip(), tip, "once is enough");
    }

    #[tokio::test]
    async fn pitfall_057_a_search_looks_at_few_of_many() {
        let server = Server::default();
        let all: Vec<(String, &str)> = (0..1_000).map(|nr| (format!("u{nr:04}"), "Sam")).collect();
        let all: Vec<(&str, &str)> = all.iter().map(|(name, shown)| (name.as_str(), *shown)).collect();
        people(&server, &all).await;
        let read = server.app.store.snapshot();
        let looked_at = Cell::new(0);
        let nobody = |_: &UserId| {
            looked_at.set(looked_at.get() + 1);
            Ok(false)
        };
        let found = search(&read, "sam", 10, nobody, || Ok(Vec::new())).unwrap();
        assert_eq!((found.users.len(), found.limited, looked_at.get()), (0, true, MAX_LOOKED_AT));
        // Those around are found among any number of others.
        let friend = |user: &UserId| Ok(user.localpart() == "u0777");
        let found =
            search(&read, "sam", 10, friend, || Ok(vec![user_id("u0777").into(), user_id("u0001").into()])).unwrap();
        assert_eq!(found.users.iter().map(|(user, _)| user.localpart()).collect::<Vec<_>>(), ["u0777"]);
        let all = search(&read, "sam", 10, |_| Ok(true), || Ok(Vec::new())).unwrap();
        assert_eq!((all.users.len(), all.limited), (10, true));
        let few = search(&read, "u000", 10, |_| Ok(true), || Ok(Vec::new())).unwrap();
        assert_eq!((few.users.len(), few.limited), (10, false), "all there are");
    }
}
