//! The journal: which topics each commit touched, for those who follow what happens at their own pace.
//!
//! A follower keeps a cursor (a row, moved in the same commit as the work it stands for), reads on from it, and waits
//! on [`crate::Hub::watch_tip`]. Commits that touch no topic leave no entry.

use smallvec::SmallVec;

use crate::{
    Batch, Corrupt, Pos, Raw, Read, Result, Topic, Value, ValueBuf,
    engine::Row,
    table::{Hint, RESERVED_TAGS, Table},
};

pub(crate) const TIP: Table<(), Pos> =
    Table::internal(RESERVED_TAGS, "tip", Hint::Small, None, "the version of the last commit");
const ENTRIES: Table<Pos, Topics> =
    Table::internal(RESERVED_TAGS + 1, "journal", Hint::Log, None, "the topics touched by a commit, by its version");
const CURSORS: Table<String, Pos> =
    Table::internal(RESERVED_TAGS + 2, "cursors", Hint::Small, None, "how far a follower of the journal has come");

/// How many old entries one call of [`trim`] deletes at most.
const TRIM_ROWS: usize = 4096;

/// One commit in the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its version: read on after this.
    pub version: Pos,
    /// The topics it touched, each once.
    pub topics: Vec<Topic>,
}

/// The entries after version `after`, oldest first, at most `limit`. Trimmed entries are missing silently: a follower
/// that registered its cursor never misses one it needs.
pub fn read(from: &impl Read, after: Pos, limit: usize) -> Result<Vec<Entry>> {
    from.scan(&ENTRIES, ENTRIES.all().after(after).limit(limit))
        .map(|row| row.map(|(version, Topics(topics))| Entry { version, topics }))
        .collect()
}

/// How far a follower has come; `None` if it never registered.
pub fn cursor(from: &impl Read, follower: &str) -> Result<Option<Pos>> {
    from.get(&CURSORS, follower)
}

/// All followers and how far they have come.
pub fn cursors(from: &impl Read) -> Result<Vec<(String, Pos)>> {
    from.scan(&CURSORS, CURSORS.all()).collect()
}

/// Records in `batch` that a follower has dealt with everything up to `version`. The first time registers it.
pub fn advance(batch: &mut Batch, follower: &str, version: Pos) {
    batch.put(&CURSORS, follower, &version);
}

/// Forgets a follower that will not come back, so that it holds up trimming no longer.
pub fn forget(batch: &mut Batch, follower: &str) {
    batch.delete(&CURSORS, follower);
}

/// Adds to `batch` the deletion of old entries: those that every follower has dealt with, except for the newest `keep`
/// positions. Deletes a bounded number at a time and says how many; call again while that is not zero.
pub fn trim(from: &impl Read, batch: &mut Batch, keep: u64) -> Result<usize> {
    let newest = Pos(from.version().0.saturating_sub(keep));
    let done = cursors(from)?.into_iter().map(|(_, version)| version).fold(newest, Pos::min);
    let old: Vec<Pos> =
        from.scan(&ENTRIES, ENTRIES.all().through(done).limit(TRIM_ROWS)).keys().collect::<Result<_>>()?;
    for version in &old {
        batch.delete(&ENTRIES, *version);
    }
    Ok(old.len())
}

/// The row for a commit.
pub(crate) fn entry_row(version: Pos, topics: &[Topic]) -> Row {
    let mut value = ValueBuf::default();
    encode_topics(topics, &mut value);
    Row { hint: ENTRIES.def().hint, key: ENTRIES.key(version).bytes, value: Some(value.bytes.into()) }
}

/// The row that holds the tip.
pub(crate) fn tip_row(version: Pos) -> Row {
    let mut value = ValueBuf::default();
    version.encode(&mut value);
    Row { hint: TIP.def().hint, key: TIP.key(()).bytes, value: Some(value.bytes.into()) }
}

struct Topics(Vec<Topic>);

const FORMAT: u8 = 1;

fn encode_topics(topics: &[Topic], out: &mut ValueBuf) {
    out.u8(FORMAT);
    for topic in topics {
        let key = topic.key.get(..usize::from(u8::MAX)).unwrap_or(&topic.key);
        out.u8(topic.class);
        out.u8(key.len() as u8);
        out.raw(key);
    }
}

impl Value for Topics {
    fn encode(&self, out: &mut ValueBuf) {
        encode_topics(&self.0, out);
    }

    fn decode(raw: Raw<'_>) -> Result<Self, Corrupt> {
        let mut fields = raw.reader();
        if fields.u8()? != FORMAT {
            return Err(Corrupt::new("unknown format of a journal entry"));
        }
        let mut topics = Vec::new();
        while fields.end().is_err() {
            let class = fields.u8()?;
            let len = fields.u8()?;
            topics.push(Topic { class, key: SmallVec::from_slice(fields.take(usize::from(len))?) });
        }
        Ok(Self(topics))
    }
}
