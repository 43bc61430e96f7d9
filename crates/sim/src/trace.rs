//! What happened in a run: every line goes into a hash, and the last ones are kept to be read.

use std::collections::VecDeque;

use xxhash_rust::xxh3::Xxh3;

const KEPT: usize = 1_000;
/// The longest line.
const LONGEST: usize = 8_000;

#[derive(Default)]
pub(crate) struct Trace {
    tail: VecDeque<String>,
    hash: Xxh3,
    lines: u64,
}

impl Trace {
    /// `bytes` are hashed, too, but not kept.
    pub(crate) fn add(&mut self, line: String, bytes: &[u8]) {
        self.hash.update(line.as_bytes());
        self.hash.update(bytes);
        self.lines += 1;
        let mut line = format!("{:5} {line}", self.lines);
        if let Some((at, _)) = line.char_indices().nth(LONGEST) {
            line.truncate(at);
            line.push('…');
        }
        if self.tail.len() == KEPT {
            self.tail.pop_front();
        }
        self.tail.push_back(line);
    }

    pub(crate) fn say(&mut self, line: impl Into<String>) {
        self.add(line.into(), &[]);
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash.digest()
    }

    pub(crate) fn tail(&self) -> Vec<String> {
        self.tail.iter().cloned().collect()
    }
}
