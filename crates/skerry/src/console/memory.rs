//! What was ordered before: the digests of orders that were done, and how often an update was begun.
//!
//! An order is remembered when it is done, so that power that is cut in between costs nothing: every step of it can be done
//! again. Only an update is remembered before, too: one that stops the machine each time is not begun for ever.

use std::fs;

use anyhow::Result;

use super::files::Layout;

/// The oldest are forgotten. A line has some 70 bytes.
const MOST: usize = 1000;
const DONE: &str = "done";

pub(crate) struct Memory<'l> {
    layout: &'l Layout,
}

impl<'l> Memory<'l> {
    pub(crate) fn of(layout: &'l Layout) -> Self {
        Self { layout }
    }

    fn lines(&self) -> Vec<(String, String)> {
        let text = fs::read_to_string(self.layout.orders()).unwrap_or_default();
        let words = |line: &str| line.split_once(' ').map(|(sum, word)| (sum.to_owned(), word.to_owned()));
        text.lines().filter_map(words).collect()
    }

    fn word(&self, sum: &str) -> Option<String> {
        self.lines().into_iter().find(|(other, _)| other == sum).map(|(_, word)| word)
    }

    fn keep(&self, sum: &str, word: Option<&str>) -> Result<()> {
        let mut lines = self.lines();
        lines.retain(|(other, _)| other != sum);
        lines.extend(word.map(|word| (sum.to_owned(), word.to_owned())));
        let from = lines.len().saturating_sub(MOST);
        let text: String = lines.iter().skip(from).map(|(sum, word)| format!("{sum} {word}\n")).collect();
        self.layout.secret(&self.layout.orders(), &text)
    }

    pub(crate) fn was_done(&self, sum: &str) -> bool {
        self.word(sum).as_deref() == Some(DONE)
    }

    pub(crate) fn done(&self, sum: &str) -> Result<()> {
        self.keep(sum, Some(DONE))
    }

    /// One more beginning; how many it were before that never came to an end.
    pub(crate) fn begin(&self, sum: &str) -> Result<u32> {
        let before = self.word(sum).and_then(|word| word.parse().ok()).unwrap_or(0_u32);
        self.keep(sum, Some(&before.saturating_add(1).to_string()))?;
        Ok(before)
    }

    /// It came to an end, and may be tried again.
    pub(crate) fn forget(&self, sum: &str) -> Result<()> {
        self.keep(sum, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_orders_are_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::below(dir.path());
        let memory = Memory::of(&layout);
        assert!(!memory.was_done("a"));
        memory.done("a").unwrap();
        assert_eq!([memory.begin("b").unwrap(), memory.begin("b").unwrap()], [0, 1]);
        assert!(memory.was_done("a") && !memory.was_done("b"));
        memory.forget("b").unwrap();
        assert_eq!(memory.begin("b").unwrap(), 0);
        memory.done("b").unwrap();
        assert!(memory.was_done("a") && memory.was_done("b"));
    }

    #[test]
    fn the_oldest_are_forgotten_and_nonsense_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::below(dir.path());
        let memory = Memory::of(&layout);
        let many: String = (0..MOST).map(|at| format!("{at} done\n")).collect();
        fs::write(layout.orders(), format!("nonsense\n\n{many}")).unwrap();
        assert!(memory.was_done("0"));
        memory.done("new").unwrap();
        assert!(!memory.was_done("0") && memory.was_done("1") && memory.was_done("new"));
        fs::write(layout.orders(), [0xff; 100]).unwrap();
        assert_eq!(memory.begin("1").unwrap(), 0);
    }
}
