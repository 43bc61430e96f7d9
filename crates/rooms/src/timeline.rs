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
