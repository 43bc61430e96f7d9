//! Work for several threads whose results come in order: what is computed waits neither for the stick nor for the disk.
//!
//! Readers and writers stay with the caller's thread. Memory is bounded: each lane holds [`DEPTH`] things at most.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, Builder, Scope, ScopedJoinHandle};

use crate::digest::{Digest, Hasher};
use crate::refusal::Refusal;

/// Lanes at most.
const MOST: usize = 4;
/// Things on their way in a lane.
const DEPTH: usize = 4;

/// A thread, the way to it, and the way back.
struct Lane<I, O>(SyncSender<I>, Receiver<O>);

/// Gives items to threads that work on them, and the results to `take`, in the order of the items.
pub(crate) fn in_order<I: Send, O: Send, W: FnMut(I) -> O + Send>(
    mut items: impl Iterator<Item = Result<I, Refusal>>,
    worker: impl Fn() -> Result<W, Refusal> + Sync,
    mut take: impl FnMut(O) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    let count = thread::available_parallelism().map_or(1, usize::from).min(MOST);
    thread::scope(|scope| {
        let lanes = (0..count).map(|_| lane(scope, worker()?)).collect::<Result<Vec<_>, Refusal>>()?;
        let (mut given, mut taken) = (0, 0);
        loop {
            // No lane ever has more than it holds: giving does not wait.
            let item = if given - taken < count * DEPTH { items.next().transpose()? } else { None };
            let none = item.is_none();
            if let (Some(item), Some(Lane(give, _))) = (item, lanes.get(given % count)) {
                give.send(item).map_err(|_| lost())?;
                given += 1;
            }
            if none && taken == given {
                return Ok(());
            }
            if none && let Some(Lane(_, results)) = lanes.get(taken % count) {
                take(results.recv().map_err(|_| lost())?)?;
                taken += 1;
            }
        }
    })
}

fn lane<'scope, I: Send + 'scope, O: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    mut work: impl FnMut(I) -> O + Send + 'scope,
) -> Result<Lane<I, O>, Refusal> {
    let (give, items) = sync_channel(DEPTH);
    let (done, results) = sync_channel(DEPTH);
    Builder::new().spawn_scoped(scope, move || {
        for item in items {
            if done.send(work(item)).is_err() {
                return;
            }
        }
    })?;
    Ok(Lane(give, results))
}

fn lost() -> Refusal {
    Refusal::Io(io::Error::other("a thread has ended too early"))
}

/// Takes bytes that are to be hashed elsewhere.
pub struct Feed<'scope> {
    give: SyncSender<Vec<u8>>,
    digest: ScopedJoinHandle<'scope, Digest>,
}

impl Feed<'_> {
    /// # Errors
    /// The thread that hashes is gone.
    pub fn give(&self, bytes: Vec<u8>) -> io::Result<()> {
        self.give.send(bytes).map_err(|_| io::Error::other("a thread has ended too early"))
    }
}

/// Hashes on a thread of its own what the work feeds it. The bytes of some pieces are held at most.
///
/// # Errors
/// What the work says; or there is no thread.
pub fn hashed<T, E: From<io::Error>>(work: impl FnOnce(&Feed<'_>) -> Result<T, E>) -> Result<(T, Digest), E> {
    thread::scope(|scope| {
        let (give, pieces) = sync_channel::<Vec<u8>>(DEPTH);
        let digest = Builder::new().spawn_scoped(scope, move || {
            let mut hasher = Hasher::default();
            pieces.iter().for_each(|piece| hasher.update(&piece));
            hasher.finish()
        })?;
        let feed = Feed { give, digest };
        let done = work(&feed)?;
        let Feed { give, digest } = feed;
        drop(give);
        let digest = digest.join().map_err(|_| io::Error::other("a thread has ended too early"))?;
        Ok((done, digest))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_and_errors_end_it() {
        let doubled = |items: Vec<Result<u64, Refusal>>, stop_at: u64| {
            let mut out = Vec::new();
            let done = in_order(
                items.into_iter(),
                || Ok(|item: u64| item * 2),
                |result| {
                    out.push(result);
                    if result == stop_at { Err(Refusal::Truncated) } else { Ok(()) }
                },
            );
            (done.is_ok(), out)
        };
        for len in [0, 1, 7, 1000] {
            let (ok, out) = doubled((0..len).map(Ok).collect(), u64::MAX);
            assert_eq!((ok, out), (true, (0..len).map(|item| item * 2).collect()));
        }
        let (ok, out) = doubled((0..1000).map(Ok).collect(), 84);
        assert_eq!((ok, out.last()), (false, Some(&84)));
        let broken = (0..100).map(|item| if item == 50 { Err(Refusal::Truncated) } else { Ok(item) });
        assert!(!doubled(broken.collect(), u64::MAX).0);
    }

    #[test]
    fn what_is_fed_is_hashed() {
        let pieces: Vec<Vec<u8>> = (0..50).map(|nr| vec![nr; 1000]).collect();
        let whole = pieces.concat();
        let fed = hashed(|feed| pieces.into_iter().try_for_each(|piece| feed.give(piece)));
        assert_eq!(fed.unwrap().1, Digest::of(&whole));
        assert!(hashed(|_| Err::<(), _>(io::Error::other("no"))).is_err());
    }
}
