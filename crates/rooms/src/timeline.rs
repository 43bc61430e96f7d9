//! Windows of a room's timeline: which of the events between two positions are shown, whether
//! there are more, and where to go on. Not here: what a token looks like, and who may see what.

/// A window of a timeline, oldest event first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window<T> {
    pub items: Vec<T>,
    /// There are more events after `since` than are shown.
    pub limited: bool,
    /// Everything at or before this position comes before the window.
    pub prev_batch: u64,
}

/// The newest events after `since` (exclusive) and up to `until` (inclusive), at most `limit`.
///
/// `newest_first` yields events with their positions, newest first; it is read no further than
/// one event beyond the window, so it may be a scan of the store.
pub fn window<T, E>(
    newest_first: impl IntoIterator<Item = Result<(u64, T), E>>,
    since: Option<u64>,
    until: u64,
    limit: usize,
) -> Result<Window<T>, E> {
    let mut items = Vec::new();
    let mut limited = false;
    let mut first = None;
    for item in newest_first {
        let (position, item) = item?;
        if position > until {
            continue;
        }
        if since.is_some_and(|since| position <= since) {
            break;
        }
        if items.len() == limit {
            limited = true;
            break;
        }
        items.push(item);
        first = Some(position);
    }
    items.reverse();
    // With nothing to show the way back starts where this window does.
    let prev_batch = match first {
        Some(position) => position.saturating_sub(1),
        None if limited => until,
        None => since.unwrap_or(until),
    };
    Ok(Window { items, limited, prev_batch })
}

/// Which way a page is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Backward,
    Forward,
}

/// The token after a page: where reading goes on in the same direction, if there is more.
///
/// A token stands between events: reading backward from it yields events at or before it, reading
/// forward events after it.
pub fn page_end(last: Option<u64>, direction: Direction, has_more: bool) -> Option<u64> {
    match direction {
        _ if !has_more => None,
        Direction::Backward => last.map(|position| position.saturating_sub(1)),
        Direction::Forward => last,
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn shown(since: Option<u64>, until: u64, limit: usize) -> Window<u64> {
        // Positions of a room: 2, 4, .. 20.
        let newest_first = (1..=10).rev().map(|n| Ok::<_, Infallible>((2 * n, 2 * n)));
        window(newest_first, since, until, limit).unwrap()
    }

    #[test]
    fn a_window_is_the_newest_events_in_order() {
        let all = shown(Some(14), 20, 10);
        assert_eq!(all, Window { items: vec![16, 18, 20], limited: false, prev_batch: 15 });
        let some = shown(Some(4), 18, 3);
        assert_eq!(some, Window { items: vec![14, 16, 18], limited: true, prev_batch: 13 });
        let first = shown(None, 20, 3);
        assert_eq!(first, Window { items: vec![16, 18, 20], limited: true, prev_batch: 15 });
        let whole = shown(None, 20, 10);
        assert!(!whole.limited && whole.items.len() == 10);
    }

    #[test]
    fn reading_back_from_a_window_leaves_nothing_out_and_repeats_nothing() {
        for since in [None, Some(0), Some(3), Some(4), Some(13)] {
            for limit in 0..12 {
                let window = shown(since, 19, limit);
                let before: Vec<u64> = (1..=10).map(|n| 2 * n).filter(|p| *p <= window.prev_batch).collect();
                let expected_end =
                    window.items.first().copied().unwrap_or(if window.limited { 19 } else { since.unwrap_or(19) + 1 });
                let expected: Vec<u64> = (1..=10).map(|n| 2 * n).filter(|p| *p < expected_end).collect();
                assert_eq!(before, expected, "{since:?} {limit}");
            }
        }
    }

    #[test]
    fn a_window_reads_no_further_than_it_must() {
        let read = std::cell::Cell::new(0);
        let endless = std::iter::from_fn(|| {
            read.set(read.get() + 1);
            Some(Ok::<_, Infallible>((1_000 - read.get(), ())))
        });
        assert!(window(endless, None, 2_000, 5).unwrap().limited);
        assert_eq!(read.get(), 6);
    }

    #[test]
    fn pages_end_where_the_next_begins() {
        assert_eq!(page_end(Some(8), Direction::Backward, true), Some(7));
        assert_eq!(page_end(Some(8), Direction::Forward, true), Some(8));
        assert_eq!(page_end(Some(8), Direction::Forward, false), None);
    }
}
