//! Unread counts: what notifications add up to, for the main timeline and for each thread (spec: Receiving
//! notifications). Pure sums; where receipts and events come from is for `sync::unread`.

use std::collections::BTreeMap;

use store::Pos;

use super::rules::Outcome;

/// How many events notify, and how many of these highlight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unread {
    pub notifications: u64,
    pub highlights: u64,
}

/// The unread events of one room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub main: Unread,
    /// By thread root; threads without unread events are left out.
    pub threads: BTreeMap<String, Unread>,
}

impl Tally {
    /// An unread event, in a thread or in the main timeline.
    pub fn add(&mut self, thread: Option<&str>, outcome: Outcome) {
        if !outcome.notify {
            return;
        }
        let unread = match thread {
            None => &mut self.main,
            Some(root) => self.threads.entry(root.to_owned()).or_default(),
        };
        unread.notifications += 1;
        unread.highlights += u64::from(outcome.highlight);
    }

    /// Everything so far was read in a thread or in the main timeline.
    pub fn clear(&mut self, thread: Option<&str>) {
        match thread {
            None => self.main = Unread::default(),
            Some(root) => {
                self.threads.remove(root);
            }
        }
    }

    /// All threads and the main timeline.
    pub fn total(&self) -> Unread {
        self.threads.values().fold(self.main, |sum, unread| Unread {
            notifications: sum.notifications + unread.notifications,
            highlights: sum.highlights + unread.highlights,
        })
    }
}

/// Up to where a user has read a room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadUpTo {
    /// Everywhere.
    pub all: Pos,
    /// In the main timeline.
    pub main: Pos,
    /// In threads, by root.
    pub threads: BTreeMap<String, Pos>,
}

impl ReadUpTo {
    /// Both kinds of receipt count, whichever is further ahead.
    pub fn raise(&mut self, thread: &str, at: Pos) {
        let place = match thread {
            "" => &mut self.all,
            "main" => &mut self.main,
            root => self.threads.entry(root.to_owned()).or_default(),
        };
        *place = at.max(*place);
    }

    /// Up to where a thread (or the main timeline) is read.
    pub fn of(&self, thread: Option<&str>) -> Pos {
        let own = match thread {
            None => Some(self.main),
            Some(root) => self.threads.get(root).copied(),
        };
        self.all.max(own.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pitfall_038_the_room_count_is_the_sum_and_highlights_are_part_of_it() {
        let mut tally = Tally::default();
        tally.add(None, Outcome { notify: true, highlight: true });
        tally.add(Some("$t"), Outcome { notify: true, highlight: false });
        tally.add(Some("$u"), Outcome { notify: false, highlight: false });
        assert_eq!(tally.total(), Unread { notifications: 2, highlights: 1 });
        assert_eq!(tally.main, Unread { notifications: 1, highlights: 1 });
        assert_eq!(tally.threads.keys().collect::<Vec<_>>(), ["$t"]);
        tally.clear(None);
        assert_eq!(tally.total(), Unread { notifications: 1, highlights: 0 });
    }

    #[test]
    fn pitfall_071_either_receipt_counts() {
        let mut read = ReadUpTo::default();
        read.raise("", Pos(5));
        read.raise("", Pos(3));
        read.raise("main", Pos(4));
        read.raise("$t", Pos(9));
        assert_eq!((read.of(None), read.of(Some("$t")), read.of(Some("$u"))), (Pos(5), Pos(9), Pos(5)));
    }
}
