//! A table in memory whose rows end by themselves, and that never holds more than it may.

use std::collections::HashMap;
use std::hash::Hash;

use parking_lot::Mutex;

/// Rows by key, each with the time (milliseconds since the epoch) at which it ends.
pub struct Expiring<K, V> {
    rows: Mutex<HashMap<K, (u64, V)>>,
    max: usize,
}

impl<K: Eq + Hash + Clone, V: Clone> Expiring<K, V> {
    pub fn new(max: usize) -> Self {
        Self { rows: Mutex::default(), max }
    }

    /// Adds a row, if there is room: nothing that lives is thrown out for it.
    #[must_use]
    pub fn add(&self, now_ms: u64, expires_ms: u64, key: K, value: V) -> bool {
        let mut rows = self.rows.lock();
        if rows.len() >= self.max {
            rows.retain(|_, (ends_ms, _)| *ends_ms > now_ms);
        }
        if rows.len() >= self.max && !rows.contains_key(&key) {
            return false;
        }
        rows.insert(key, (expires_ms, value));
        true
    }

    /// The same, but the row that would end first goes if there is no room.
    pub fn push(&self, now_ms: u64, expires_ms: u64, key: K, value: V) {
        if self.add(now_ms, expires_ms, key.clone(), value.clone()) {
            return;
        }
        let mut rows = self.rows.lock();
        let first = rows.iter().min_by_key(|(_, (ends_ms, _))| *ends_ms).map(|(key, _)| key.clone());
        if let Some(first) = first {
            rows.remove(&first);
        }
        rows.insert(key, (expires_ms, value));
    }

    pub fn get(&self, now_ms: u64, key: &K) -> Option<V> {
        self.rows.lock().get(key).filter(|(ends_ms, _)| *ends_ms > now_ms).map(|(_, value)| value.clone())
    }

    /// How many rows are of a kind.
    pub fn count(&self, now_ms: u64, is: impl Fn(&V) -> bool) -> usize {
        self.rows.lock().values().filter(|(ends_ms, value)| *ends_ms > now_ms && is(value)).count()
    }

    /// Looks at a row and changes it, as one step.
    pub fn update<T>(&self, now_ms: u64, key: &K, change: impl FnOnce(&mut V) -> T) -> Option<T> {
        let mut rows = self.rows.lock();
        let row = rows.get_mut(key).filter(|(ends_ms, _)| *ends_ms > now_ms)?;
        Some(change(&mut row.1))
    }

    pub fn take(&self, now_ms: u64, key: &K) -> Option<V> {
        self.rows.lock().remove(key).filter(|(ends_ms, _)| *ends_ms > now_ms).map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_end_and_are_no_more_than_they_may_be() {
        let table = Expiring::new(2);
        assert!(table.add(0, 10, "a", 1) && table.add(0, 20, "b", 2));
        assert!(!table.add(5, 30, "c", 3), "both others live");
        assert!(table.add(5, 12, "a", 4), "a row may be replaced");
        assert_eq!((table.get(11, &"a"), table.get(12, &"a")), (Some(4), None));
        assert!(table.add(12, 30, "c", 3), "the first has ended");
        table.push(12, 40, "d", 5);
        assert_eq!((table.get(12, &"b"), table.get(12, &"c"), table.get(12, &"d")), (None, Some(3), Some(5)));
        assert_eq!((table.count(12, |value| *value > 3), table.count(30, |_| true)), (1, 1));
        assert_eq!(table.update(12, &"c", |value| std::mem::replace(value, 9)), Some(3));
        assert_eq!((table.take(12, &"c"), table.take(12, &"c"), table.take(40, &"d")), (Some(9), None, None));
    }
}
