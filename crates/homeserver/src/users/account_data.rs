//! Account data: a value per user, room (or none) and type, the log that sync reads, and where the log has each.
//!
//! Every write of account data goes through [`put`], inside whatever transaction decides it (read markers, push rules,
//! tags): value, log row and pointer stay one.

use std::ops::ControlFlow;

use bytes::Bytes;
use ruma::UserId;
use store::{Read, Tx};

use crate::error::{Error, Result};
use crate::schema::{ACCOUNT_DATA, ACCOUNT_DATA_AT, ACCOUNT_DATA_LOG, AccountData, AccountDataKey, USAGE, Usage};

/// In place of a room ID: account data of the user as such.
pub const GLOBAL: &str = "";

const MAX_BYTES: usize = 512 * 1024;
const MAX_TYPE_BYTES: usize = 255;
const MAX_TYPES: usize = 1_000;
/// All of a user's, in all rooms: every initial sync sends it.
const MAX_USAGE: Usage = Usage { count: 50_000, bytes: 32 * 1024 * 1024 };
/// Where it is counted.
const COUNTED: &str = "account_data";

/// The content, as it was put.
pub fn get(read: &impl Read, user_id: &UserId, room_id: &str, kind: &str) -> Result<Option<Bytes>> {
    Ok(read.get(&ACCOUNT_DATA, (user_id.as_str(), room_id, kind))?.map(|data| data.0))
}

/// Writes a JSON object. It is for the caller to know that it is one.
pub fn put(tx: &mut Tx, user_id: &UserId, room_id: &str, kind: &str, content: Bytes) -> Result<()> {
    if content.len() > MAX_BYTES {
        return Err(Error::too_large(format!("Account data has at most {MAX_BYTES} bytes")));
    }
    let key = (user_id.as_str(), room_id, kind);
    match tx.get(&ACCOUNT_DATA_AT, key)? {
        Some(before) => tx.delete(&ACCOUNT_DATA_LOG, (user_id.as_str(), before)),
        None => check_new(tx, user_id, room_id, kind)?,
    }
    charge(tx, key, content.len())?;
    let at = tx.next_pos();
    let log = AccountDataKey { room_id: room_id.to_owned(), kind: kind.to_owned() };
    tx.put(&ACCOUNT_DATA, key, &AccountData(content));
    tx.put(&ACCOUNT_DATA_AT, key, &at);
    tx.put(&ACCOUNT_DATA_LOG, (user_id.as_str(), at), &log);
    Ok(())
}

/// Counts what takes the place of what was there before. Who has too much may still replace it by less.
fn charge(tx: &mut Tx, key: (&str, &str, &str), content_bytes: usize) -> Result<()> {
    let (user_id, room_id, kind) = key;
    let before = tx.get(&ACCOUNT_DATA, key)?.map(|data| data.0.len());
    let known = match tx.get(&USAGE, (user_id, COUNTED))? {
        Some(known) => known,
        None => count(tx.unchecked(), user_id)?,
    };
    let bytes = |content: usize| (room_id.len() + kind.len() + content) as u64;
    let kept = before.map_or(known, |before| known.without(bytes(before)));
    let usage = kept.with(bytes(content_bytes));
    let grows = |of: fn(&Usage) -> u64| of(&usage) > of(&known) && of(&usage) > of(&MAX_USAGE);
    if grows(|usage| usage.count) || grows(|usage| usage.bytes) {
        let Usage { count, bytes } = MAX_USAGE;
        let message = format!("All account data of a user is at most {count} pieces of together {bytes} bytes");
        return Err(Error::too_large(message));
    }
    tx.put(&USAGE, (user_id, COUNTED), &usage);
    Ok(())
}

/// Counts all there is.
fn count(read: &impl Read, user_id: &str) -> Result<Usage> {
    let mut usage = Usage::default();
    read.visit(&ACCOUNT_DATA, ACCOUNT_DATA.prefix((user_id,)), |(_, room_id, kind), row| {
        // A row begins with a byte of format.
        usage = usage.with((room_id.len() + kind.len() + row.len().saturating_sub(1)) as u64);
        ControlFlow::Continue(())
    })?;
    Ok(usage)
}

/// A type that a user did not have so far: there may be only so many of them.
fn check_new(tx: &Tx, user_id: &UserId, room_id: &str, kind: &str) -> Result<()> {
    if kind.is_empty() || kind.len() > MAX_TYPE_BYTES || kind.contains('\0') {
        return Err(Error::invalid_param("This is not an event type"));
    }
    let span = ACCOUNT_DATA_AT.prefix((user_id.as_str(), room_id)).limit(MAX_TYPES);
    if tx.unchecked().count(&ACCOUNT_DATA_AT, span)? >= MAX_TYPES {
        return Err(Error::forbidden("There are too many types of account data"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::testing::Server;

    /// Writes account data as a client would, but without the client.
    async fn put_all(server: &Server, rooms: std::ops::Range<usize>, kind: &str, bytes: usize) -> Result<()> {
        let (alice, rooms) = (ruma::user_id!("@alice:hs.test"), rooms.collect::<Vec<_>>());
        for rooms in rooms.chunks((900_000 / (bytes + 300)).max(1)) {
            let content = Bytes::from("x".repeat(bytes));
            let put = |tx: &mut Tx| {
                rooms.iter().try_for_each(|nr| put(tx, alice, &format!("!{nr}:hs.test"), kind, content.clone()))
            };
            server.app.store.transact(put).await?;
        }
        Ok(())
    }

    fn usage(server: &Server) -> Usage {
        server.app.store.snapshot().get(&USAGE, ("@alice:hs.test", COUNTED)).unwrap().unwrap()
    }

    fn counted(server: &Server) -> Usage {
        count(&server.app.store.snapshot(), "@alice:hs.test").unwrap()
    }

    #[tokio::test]
    async fn what_is_counted_is_what_there_is() {
        let server = Server::default();
        server.user("alice").await;
        assert_eq!(usage(&server), counted(&server));
        put_all(&server, 0..20, "a", 1_000).await.unwrap();
        put_all(&server, 0..10, "a", 10).await.unwrap();
        put_all(&server, 5..25, "b", 1).await.unwrap();
        assert_eq!(usage(&server), counted(&server));
        // Of a time when nothing was counted.
        let before = counted(&server);
        let mut batch = store::Batch::new();
        batch.delete(&USAGE, ("@alice:hs.test", COUNTED));
        server.app.store.commit(batch).unwrap().durable().await.unwrap();
        put_all(&server, 25..26, "b", 1).await.unwrap();
        assert_eq!((usage(&server), usage(&server).count), (counted(&server), before.count + 1));
    }

    #[tokio::test]
    async fn account_data_is_bounded_over_all_rooms() {
        let server = Server::default();
        server.user("alice").await;
        let large = 256 * 1024;
        let rooms = MAX_USAGE.bytes as usize / large;
        put_all(&server, 0..rooms - 1, "a", large).await.unwrap();
        let refused = put_all(&server, rooms..rooms + 1, "a", large).await.unwrap_err();
        assert_eq!(refused.status(), 413);
        // What is there can be changed, what is small fits, and what was given up makes room.
        put_all(&server, 0..1, "a", large).await.unwrap();
        put_all(&server, rooms..rooms + 100, "b", 10).await.unwrap();
        put_all(&server, 0..1, "a", 2).await.unwrap();
        put_all(&server, rooms..rooms + 1, "a", large - 100_000).await.unwrap();
        assert!(usage(&server).bytes <= MAX_USAGE.bytes);
    }

    #[tokio::test]
    async fn so_many_pieces_and_no_more() {
        let server = Server::default();
        server.user("alice").await;
        let mut batch = store::Batch::new();
        let full = Usage { count: MAX_USAGE.count - 2, bytes: 1 };
        batch.put(&USAGE, ("@alice:hs.test", COUNTED), &full);
        server.app.store.commit(batch).unwrap().durable().await.unwrap();
        let mut outcomes = BTreeMap::new();
        for room in [1, 2, 3, 1] {
            outcomes.insert(room, put_all(&server, room..room + 1, "a", 1).await.is_ok());
        }
        assert_eq!(outcomes, BTreeMap::from([(1, true), (2, true), (3, false)]));
    }
}
