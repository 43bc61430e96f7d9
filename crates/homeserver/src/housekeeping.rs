//! What keeps the data from growing without need: old journal entries and old transactions go, slowly and in the
//! background.
//!
//! Not here: work that a request decided on (`jobs`), and the engine's own compaction.

use std::time::Duration;

use store::{Batch, Read as _, Result, Store, journal};

use crate::App;
use crate::auth::oauth::clients;
use crate::schema::{TXNS, Txn};

/// The newest positions whose journal entries stay, for followers that are yet to come.
const KEEP: u64 = 1_000_000;
/// So long a client may repeat a request and gets the answer of the first.
const TXN_DAYS: u32 = 30;
/// Transactions that are looked at in one round.
const TXN_SLICE: usize = 20_000;
/// And deleted in one commit.
const TXN_BATCH: usize = 1_000;
const PAUSE: Duration = Duration::from_secs(600);

/// The key of a transaction.
type TxnKey = (String, String, [u8; 16]);

/// Keeps house until the server stops.
pub async fn run(app: App) {
    let mut from = None;
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
        if let Err(cause) = clients::forget_old(&app).await {
            tracing::warn!(%cause, "unused clients could not be forgotten; it is tried again later");
        }
        let before = Txn::day(app.clock.now_ms()).saturating_sub(TXN_DAYS);
        match forget_txns(&app.store, before, from.take(), TXN_SLICE).await {
            Ok(next) => from = next,
            Err(cause) => tracing::warn!(%cause, "old transactions could not be forgotten; it is tried again later"),
        }
    }
}

/// Looks at a stretch of the transactions and forgets those of before a day. Where to go on; `None` at the end.
async fn forget_txns(store: &Store, before: u32, from: Option<TxnKey>, slice: usize) -> Result<Option<TxnKey>> {
    let (mut old, mut last, mut seen) = (Vec::new(), None, 0);
    {
        let read = store.snapshot();
        let span = match &from {
            Some((user_id, device_id, hash)) => TXNS.all().after((user_id, device_id, hash)),
            None => TXNS.all(),
        };
        for row in read.scan(&TXNS, span.limit(slice)) {
            let (key, txn) = row?;
            seen += 1;
            if txn.day < before {
                old.push(key.clone());
            }
            last = Some(key);
        }
    }
    for keys in old.chunks(TXN_BATCH) {
        let mut batch = Batch::new();
        for (user_id, device_id, hash) in keys {
            batch.delete(&TXNS, (user_id, device_id, hash));
        }
        store.commit(batch)?.durable().await?;
    }
    Ok(last.filter(|_| seen == slice))
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
    async fn pitfall_001_transactions_are_forgotten_when_nobody_repeats_them_any_more() {
        let store = Store::open(MemoryDisk::new()).unwrap();
        let mut batch = Batch::new();
        for nr in 0..100u8 {
            batch.put(&TXNS, ("@a:hs", "D", &[nr; 16]), &Txn { event_id: String::new(), day: nr.into() });
        }
        store.commit(batch).unwrap().durable().await.unwrap();
        let (mut from, mut rounds) = (None, 0);
        loop {
            from = forget_txns(&store, 70, from, 32).await.unwrap();
            rounds += 1;
            if from.is_none() {
                break;
            }
        }
        assert_eq!((rounds, store.snapshot().count(&TXNS, TXNS.all()).unwrap()), (4, 30));
    }

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
