//! Pages of lists, as administration consoles ask for them: `from`, `limit`, `dir`.

use serde::Deserialize;

use crate::error::{Error, Result};

const DEFAULT_LIMIT: usize = 100;
const MAX_LIMIT: usize = 10_000;

/// The part of a query that all lists have.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Paging {
    from: Option<usize>,
    limit: Option<usize>,
    dir: Option<Dir>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum Dir {
    #[serde(rename = "f")]
    Forward,
    #[serde(rename = "b")]
    Backward,
}

/// A part of a list.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Page<T> {
    pub(super) items: Vec<T>,
    /// How long the whole list is.
    pub(super) total: usize,
    pub(super) from: usize,
    /// Where the next page starts, if there is one.
    pub(super) next: Option<usize>,
    /// Where the page before this one starts, if there is one.
    pub(super) previous: Option<usize>,
}

impl Paging {
    pub(super) fn descending(&self) -> bool {
        self.dir == Some(Dir::Backward)
    }

    /// The same, for lists that have what is newest first unless somebody says otherwise.
    pub(super) fn newest_first(&self) -> bool {
        self.dir != Some(Dir::Forward)
    }

    pub(super) fn cut<T>(&self, all: Vec<T>) -> Page<T> {
        let (from, limit) = (self.from.unwrap_or(0), self.limit.unwrap_or(DEFAULT_LIMIT).clamp(1, MAX_LIMIT));
        let total = all.len();
        let items: Vec<T> = all.into_iter().skip(from).take(limit).collect();
        let end = from.saturating_add(items.len());
        Page {
            next: Some(end).filter(|end| *end < total && !items.is_empty()),
            previous: Some(from.saturating_sub(limit)).filter(|_| from > 0),
            items,
            total,
            from,
        }
    }
}

/// What a list is sorted by, if that is one of what it can be sorted by.
pub(super) fn order<T: Default>(name: Option<&str>, parse: impl Fn(&str) -> Option<T>) -> Result<T> {
    match name.filter(|name| !name.is_empty()) {
        None => Ok(T::default()),
        Some(name) => parse(name).ok_or_else(|| Error::invalid_param("This list cannot be sorted by that")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(from: usize, limit: usize) -> (Vec<u8>, Option<usize>, Option<usize>) {
        let paging = Paging { from: Some(from), limit: Some(limit), dir: None };
        let page = paging.cut((0..5).collect());
        assert_eq!(page.total, 5);
        (page.items, page.previous, page.next)
    }

    #[test]
    fn pages_follow_one_another() {
        assert_eq!(cut(0, 2), (vec![0, 1], None, Some(2)));
        assert_eq!(cut(2, 2), (vec![2, 3], Some(0), Some(4)));
        assert_eq!(cut(4, 2), (vec![4], Some(2), None));
        assert_eq!(cut(9, 2), (vec![], Some(7), None));
        assert_eq!(cut(usize::MAX, usize::MAX).0, Vec::<u8>::new());
    }
}
