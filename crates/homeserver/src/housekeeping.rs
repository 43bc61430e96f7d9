//! What keeps the data from growing without need: old journal entries go, slowly and in the background.
//!
//! Not here: work that a request decided on (`jobs`), and the engine's own compaction.

use std::time::Duration;

use store::{Batch, Result, Store, journal};

use crate::App;

/// The newest positions whose journal entries stay, for followers that are yet to come.
const KEEP: u64 = 1_000_000;
const PAUSE: Duration = Duration::from_secs(600);

/// Keeps house until the server stops.
pub async fn run(app: App) {
    loop {
        tokio::select! {
            () = app.shutdown.cancelled() => return,
            () = app.clock.sleep(PAUSE) => {}
        }
        match trim_journal(&app.store, KEEP).await {
            Ok(0) => {}
            Ok(entries) => tracing::debug!(entries, "old journal entries are gone"),
            Err(cause) => tracing::warn!(%cause, "the journal could not be trimmed; it is tried again later"),
        }
    }
}

/// Deletes entries that every follower has dealt with, in small commits. Returns how many.
async fn trim_journal(store: &Store, keep: u64) -> Result<usize> {
    let mut gone = 0;
    loop {
        let mut batch = Batch::new();
        let rows = journal::trim(&store.snapshot(), &mut batch, keep)?;
        if rows == 0 {
            return Ok(gone);
        }
        store.commit(batch)?.durable().await?;
        gone += rows;
    }
}

#[cfg(test)]
mod tests {
    use store::{MemoryDisk, Pos, Topic};

    use super::*;

    #[tokio::test]
    async fn what_a_follower_has_not_read_stays() {
        let store = Store::open(MemoryDisk::new()).unwrap();
        for n in 0..50 {
            let mut batch = Batch::new();
            batch.touch(Topic::number(1, n));
            store.commit(batch).unwrap().durable().await.unwrap();
        }
        let mut batch = Batch::new();
        journal::advance(&mut batch, "follower", Pos(20));
        store.commit(batch).unwrap().durable().await.unwrap();
        assert_eq!(trim_journal(&store, 10).await.unwrap(), 20);
        let left = journal::read(&store.snapshot(), Pos::ZERO, 100).unwrap();
        assert_eq!(left.first().map(|entry| entry.version), Some(Pos(21)));
        let mut batch = Batch::new();
        journal::forget(&mut batch, "follower");
        store.commit(batch).unwrap().durable().await.unwrap();
        assert!(trim_journal(&store, 10).await.unwrap() > 0);
        assert!(journal::read(&store.snapshot(), Pos::ZERO, 100).unwrap().len() <= 10);
    }
}
