//! Keeps the index for searching up to date: a follower of the journal, some seconds behind what happens.
//!
//! Rooms that many speak in are indexed in larger pieces that way, and sending waits for none of it: a search reads what
//! the index does not know yet. Where the follower is new, or the index was taken away, all rooms are gone through once.
//! Not here: what the index holds (`rooms::search`).

use std::collections::BTreeSet;
use std::time::Duration;

use store::{Batch, Pos, Read as _, journal};

use crate::App;
use crate::error::Result;
use crate::rooms::search;
use crate::schema::{HEADS, RoomNr, topic};

const FOLLOWER: &str = "search";
/// So many commits are taken together.
const SLICE: usize = 10_000;
/// So many rooms are looked up at once when all of them are gone through.
const ROOMS: usize = 1_000;
const PAUSE: Duration = Duration::from_secs(5);

/// Follows until the server stops.
pub async fn run(app: App) {
    let mut tip = app.store.hub().watch_tip();
    let work = async {
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
    let Some(mut done) = journal::cursor(&app.store.snapshot(), FOLLOWER)? else { return index_all(app).await };
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

/// Indexes all rooms, and follows from where that began.
async fn index_all(app: &App) -> Result<()> {
    let began = app.store.snapshot().version();
    let mut from: Option<RoomNr> = Some(0);
    while let Some(start) = from {
        let rooms: Vec<RoomNr> = {
            let read = app.store.snapshot();
            let span = HEADS.all().from(start).limit(ROOMS);
            read.scan(&HEADS, span).keys().collect::<store::Result<_>>()?
        };
        for room in &rooms {
            search::index(app, *room).await?;
        }
        from = rooms.last().filter(|_| rooms.len() == ROOMS).and_then(|last| last.checked_add(1));
    }
    advance(app, began).await
}

async fn advance(app: &App, version: Pos) -> Result<()> {
    let mut batch = Batch::new();
    journal::advance(&mut batch, FOLLOWER, version);
    app.store.commit(batch)?.durable().await?;
    Ok(())
}
