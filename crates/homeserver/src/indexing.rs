//! Keeps the index for searching up to date: a follower of the journal, some seconds behind what happens.
//!
//! Rooms that many speak in are indexed in larger pieces that way, and sending waits for none of it: a search reads what
//! the index does not know yet. Where the follower is new, or the index was taken away, all rooms are gone through once,
//! and the index of threads, which is kept together with the events, is checked on the way.
//! Not here: what the index holds (`rooms::search`).

use std::collections::BTreeSet;
use std::time::Duration;

use store::{Batch, Pos, Read as _, Snapshot, journal};

use crate::App;
use crate::error::Result;
use crate::rooms::{search, threads};
use crate::schema::{HEADS, RoomNr, SEARCHED, topic};
use crate::users::directory;

const FOLLOWER: &str = "search";
/// Stands where going through all rooms began, for as long as that is not done: the journal behind it stays.
const BEGINNER: &str = "search, from the beginning";
/// So many commits are taken together.
const SLICE: usize = 10_000;
/// So many rooms are looked up at once when all of them are gone through.
const ROOMS: usize = 1_000;
const PAUSE: Duration = Duration::from_secs(5);

/// Follows until the server stops.
pub async fn run(app: App) {
    let mut tip = app.store.hub().watch_tip();
    let work = async {
        if let Err(cause) = directory::complete(&app).await {
            tracing::warn!(%cause, "the user directory is not complete before the next start");
        }
        loop {
            tip.mark_unchanged();
            if let Err(cause) = catch_up(&app).await {
                tracing::warn!(%cause, "indexing for searches pauses");
            }
            app.clock.sleep(PAUSE).await;
            if tip.changed().await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = app.shutdown.cancelled() => {}
    }
}

/// Indexes everything that happened so far.
pub async fn catch_up(app: &App) -> Result<()> {
    let done = {
        let read = app.store.snapshot();
        let begun = journal::cursor(&read, BEGINNER)?.is_some();
        if begun || is_gone(&read)? { None } else { journal::cursor(&read, FOLLOWER)? }
    };
    let Some(mut done) = done else { return index_all(app).await };
    loop {
        let entries = journal::read(&app.store.snapshot(), done, SLICE)?;
        let Some(last) = entries.last().map(|entry| entry.version) else { return Ok(()) };
        let topics = entries.iter().flat_map(|entry| &entry.topics);
        let rooms: BTreeSet<RoomNr> =
            topics.filter(|topic| topic.class == topic::ROOM).filter_map(store::Topic::as_number).collect();
        for room in rooms {
            search::index(app, room).await?;
        }
        advance(app, last).await?;
        done = last;
    }
}

/// Whether there are rooms, and none is in the index.
fn is_gone(read: &Snapshot) -> store::Result<bool> {
    Ok(read.first(&SEARCHED, SEARCHED.all())?.is_none() && read.first(&HEADS, HEADS.all())?.is_some())
}

/// Indexes all rooms, and follows from where that began.
async fn index_all(app: &App) -> Result<()> {
    let began = begin(app).await?;
    let mut from: Option<RoomNr> = Some(0);
    while let Some(start) = from {
        let rooms: Vec<RoomNr> = {
            let read = app.store.snapshot();
            let span = HEADS.all().from(start).limit(ROOMS);
            read.scan(&HEADS, span).keys().collect::<store::Result<_>>()?
        };
        for room in &rooms {
            search::index(app, *room).await?;
            threads::index(app, *room).await?;
        }
        from = rooms.last().filter(|_| rooms.len() == ROOMS).and_then(|last| last.checked_add(1));
    }
    let mut batch = Batch::new();
    journal::advance(&mut batch, FOLLOWER, began);
    journal::forget(&mut batch, BEGINNER);
    app.store.commit(batch)?.durable().await?;
    Ok(())
}

/// Notes that all rooms are being gone through, and since when: what is written from then on is still to be followed.
/// Who was interrupted begins with the first room again.
async fn begin(app: &App) -> Result<Pos> {
    let (began, now) = {
        let read = app.store.snapshot();
        (journal::cursor(&read, BEGINNER)?, read.version())
    };
    if let Some(began) = began {
        return Ok(began);
    }
    let mut batch = Batch::new();
    journal::advance(&mut batch, BEGINNER, now);
    app.store.commit(batch)?.durable().await?;
    Ok(now)
}

async fn advance(app: &App, version: Pos) -> Result<()> {
    let mut batch = Batch::new();
    journal::advance(&mut batch, FOLLOWER, version);
    app.store.commit(batch)?.durable().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use store::{Key, Table, Value};

    use super::*;
    use crate::schema::{SEARCH_WORDS, THREAD_AT, THREADS};
    use crate::testing::Server;

    async fn clear<K, V>(app: &App, table: &Table<K, V>, delete: impl Fn(&mut Batch, &K))
    where
        K: Key,
        V: Value,
    {
        let mut batch = Batch::new();
        {
            let read = app.store.snapshot();
            let keys: Vec<K> = read.scan(table, table.all()).keys().collect::<store::Result<_>>().unwrap();
            assert!(!keys.is_empty());
            keys.iter().for_each(|key| delete(&mut batch, key));
        }
        app.store.commit(batch).unwrap().durable().await.unwrap();
    }

    fn counts(app: &App) -> [usize; 3] {
        let read = app.store.snapshot();
        [
            read.count(&SEARCH_WORDS, SEARCH_WORDS.all()).unwrap(),
            read.count(&THREADS, THREADS.all()).unwrap(),
            read.count(&THREAD_AT, THREAD_AT.all()).unwrap(),
        ]
    }

    #[tokio::test]
    async fn what_was_taken_away_is_made_anew_and_a_second_time_changes_nothing() {
        let server = Server::default();
        let alice = server.user("alice").await;
        let body = json!({"preset": "public_chat", "name": "one two"});
        let room = alice.client.post("/_matrix/client/v3/createRoom", body).await.json()["room_id"].clone();
        let say = async |txn: u32, content| {
            let room = room.as_str().unwrap();
            let path = format!("/_matrix/client/v3/rooms/{room}/send/m.room.message/{txn}");
            alice.client.put(&path, content).await.json()["event_id"].as_str().unwrap().to_owned()
        };
        let root = say(1, json!({"msgtype": "m.text", "body": "root"})).await;
        for nr in 2..5 {
            let relates_to = json!({"rel_type": "m.thread", "event_id": root});
            say(nr, json!({"msgtype": "m.text", "body": format!("reply {nr}"), "m.relates_to": relates_to})).await;
        }
        let app = &server.app;
        catch_up(app).await.unwrap();
        let before = counts(app);
        assert_eq!(before, [7, 1, 1]);
        clear(app, &SEARCH_WORDS, |batch, (room, word, at)| batch.delete(&SEARCH_WORDS, (*room, word.as_str(), *at)))
            .await;
        clear(app, &SEARCHED, |batch, room| batch.delete(&SEARCHED, *room)).await;
        clear(app, &THREADS, |batch, (room, at)| batch.delete(&THREADS, (*room, *at))).await;
        clear(app, &THREAD_AT, |batch, (room, root)| batch.delete(&THREAD_AT, (*room, root.as_str()))).await;
        assert_eq!(counts(app), [0, 0, 0]);
        catch_up(app).await.unwrap();
        assert_eq!(counts(app), before);
        let tip = app.store.tip();
        catch_up(app).await.unwrap();
        assert_eq!(app.store.tip(), tip);
    }

    #[tokio::test]
    async fn going_through_all_rooms_is_followed_from_its_beginning_also_after_an_interruption() {
        let server = Server::default();
        let alice = server.user("alice").await;
        let app = &server.app;
        let create = async |name: &str| {
            let body = json!({"preset": "public_chat", "name": name});
            let made = alice.client.post("/_matrix/client/v3/createRoom", body).await.json();
            crate::schema::room_nr(&ruma::RoomId::parse(made["room_id"].as_str().unwrap()).unwrap())
        };
        create("one").await;
        let second = create("two").await;
        let began = begin(app).await.unwrap();
        // What happens meanwhile is not forgotten by the journal, however long it takes.
        create("three").await;
        let mut batch = Batch::new();
        journal::trim(&app.store.snapshot(), &mut batch, 0).unwrap();
        app.store.commit(batch).unwrap().durable().await.unwrap();
        let left = journal::read(&app.store.snapshot(), Pos::ZERO, 100).unwrap();
        assert!(left.first().is_some_and(|entry| entry.version > began), "{left:?}");
        // One room is done when the server stops.
        search::index(app, second).await.unwrap();
        catch_up(app).await.unwrap();
        let read = app.store.snapshot();
        assert_eq!(read.count(&SEARCHED, SEARCHED.all()).unwrap(), 3);
        let cursors: Vec<String> = journal::cursors(&read).unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(cursors, [FOLLOWER]);
    }
}
