//! The engine of real stores: RocksDB, with one column family per [`Hint`] and all its memory from one budget.
//!
//! Durability: one writer, each group one `WriteBatch` with the WAL synced before it returns. After a power cut the
//! WAL is replayed up to the first record that is not whole; every synced record lies before that.
//!
//! A full disk: RocksDB offers no call to resume after a failed write. It resumes by itself, though, when the failure
//! was a lack of space: every few seconds it looks at the free space, flushes what it has into a new file and starts a
//! new WAL. What would hurt is not the failed write but flushes and compactions that stop halfway. So a group is
//! refused up front ([`Error::Full`], nothing written) while less than the reserve is free, and [`Engine::recover`]
//! answers `Full` until the reserve is there again; a write that fails all the same goes the way described above.
//! Other errors of the disk stay until the process is restarted.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use nix::sys::statvfs::statvfs;
use rocksdb::{
    BlockBasedOptions, BottommostLevelCompaction, Cache, ColumnFamily, ColumnFamilyDescriptor, CompactOptions, DB,
    DBCompressionType, DBRawIterator, DBRecoveryMode, DataBlockIndexType, LogLevel, Options, ReadOptions, WriteBatch,
    WriteBufferManager, WriteOptions, checkpoint::Checkpoint,
};
use self_cell::self_cell;

use super::{Engine, EngineIter, EngineSnapshot, Group};
use crate::{Error, Result, limits, table::Hint};

/// The version of the table files. Raised only when every release that may be rolled back to can read the new one.
const FORMAT_VERSION: i32 = 6;

/// A directory for a store, and how much it may use.
#[derive(Debug, Clone)]
pub struct Disk {
    path: PathBuf,
    memory_budget_bytes: usize,
    reserve_bytes: u64,
}

impl Disk {
    /// The store in this directory, which is created if missing. 64 MiB of memory, 64 MiB of disk kept free.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), memory_budget_bytes: 64 << 20, reserve_bytes: limits::DISK_RESERVE_BYTES }
    }

    /// How much memory the engine may use for caches and write buffers together. At least 8 MiB.
    #[must_use]
    pub fn memory_budget_bytes(mut self, bytes: usize) -> Self {
        self.memory_budget_bytes = bytes;
        self
    }

    /// Writes are refused while less than this is free on the disk, so that flushes and compactions find room.
    #[must_use]
    pub fn reserve_bytes(mut self, bytes: u64) -> Self {
        self.reserve_bytes = bytes;
        self
    }
}

pub(crate) struct Rocks {
    db: Arc<DB>,
    disk: Disk,
    cache: Cache,
    write_buffers: WriteBufferManager,
    sync: WriteOptions,
}

impl Rocks {
    pub(crate) fn open(disk: Disk) -> Result<Self> {
        let budget = Budget::of(disk.memory_budget_bytes);
        // Memtables are charged to the cache, so the two together stay within the budget.
        let cache = Cache::new_hyper_clock_cache(budget.cache, 0);
        let write_buffers =
            WriteBufferManager::new_write_buffer_manager_with_cache(budget.write_buffers, false, cache.clone());
        let mut options = database_options(&budget);
        options.set_write_buffer_manager(&write_buffers);
        let families =
            Hint::ALL.map(|hint| ColumnFamilyDescriptor::new(family_name(hint), family_options(hint, &budget, &cache)));
        let db = DB::open_cf_descriptors(&options, &disk.path, families).map_err(engine_error)?;
        let mut sync = WriteOptions::default();
        sync.set_sync(true);
        Ok(Self { db: Arc::new(db), disk, cache, write_buffers, sync })
    }

    fn check_space(&self) -> Result<()> {
        let disk = statvfs(&self.disk.path).map_err(|errno| Error::Engine(format!("statvfs: {errno}")))?;
        let free_bytes = disk.blocks_available().saturating_mul(disk.fragment_size());
        if free_bytes < self.disk.reserve_bytes { Err(Error::Full) } else { Ok(()) }
    }
}

impl Engine for Rocks {
    fn snapshot(&self) -> Result<Arc<dyn EngineSnapshot>> {
        let snapshot = OwnedSnapshot::try_new(Arc::clone(&self.db), |db| Pinned::new(db))?;
        Ok(Arc::new(snapshot))
    }

    fn write(&self, group: &Group<'_>) -> Result<()> {
        self.check_space()?;
        let families = families(&self.db)?;
        let mut batch = WriteBatch::with_capacity_bytes(group.size_bytes());
        for row in group.iter() {
            let family = families[row.hint as usize];
            match &row.value {
                Some(value) => batch.put_cf(family, &row.key, value),
                None => batch.delete_cf(family, &row.key),
            }
        }
        self.db.write_opt(batch, &self.sync).map_err(engine_error)
    }

    fn recover(&self) -> Result<()> {
        self.check_space()
    }

    fn checkpoint(&self, dir: &Path) -> Result<()> {
        Checkpoint::new(&*self.db).and_then(|checkpoint| checkpoint.create_checkpoint(dir)).map_err(engine_error)
    }

    fn compact(&self) -> Result<()> {
        let mut options = CompactOptions::default();
        options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
        for family in families(&self.db)? {
            self.db.flush_cf(family).map_err(engine_error)?;
            self.db.compact_range_cf_opt(family, None::<&[u8]>, None::<&[u8]>, &options);
        }
        Ok(())
    }

    fn stats(&self) -> Vec<(&'static str, u64)> {
        let mut stats = vec![
            ("cache_bytes", self.cache.get_usage() as u64),
            ("cache_pinned_bytes", self.cache.get_pinned_usage() as u64),
            ("write_buffer_bytes", self.write_buffers.get_usage() as u64),
        ];
        let Ok(families) = families(&self.db) else { return stats };
        for (name, property) in PROPERTIES {
            let values = families.iter().map(|family| self.db.property_int_value_cf(family, property));
            stats.push((name, values.filter_map(|value| value.ok().flatten()).sum()));
        }
        stats
    }
}

/// Summed over the column families.
const PROPERTIES: [(&str, &str); 6] = [
    ("rows_estimate", "rocksdb.estimate-num-keys"),
    ("table_files_bytes", "rocksdb.total-sst-files-size"),
    ("live_data_bytes", "rocksdb.estimate-live-data-size"),
    ("pending_compaction_bytes", "rocksdb.estimate-pending-compaction-bytes"),
    ("memtable_bytes", "rocksdb.cur-size-all-mem-tables"),
    ("background_errors", "rocksdb.background-errors"),
];

fn families(db: &DB) -> Result<[&ColumnFamily; Hint::ALL.len()]> {
    let mut missing = false;
    let found = Hint::ALL.map(|hint| {
        let family = db.cf_handle(family_name(hint));
        missing |= family.is_none();
        family
    });
    match found {
        [Some(a), Some(b), Some(c), Some(d), Some(e)] => Ok([a, b, c, d, e]),
        _ => Err(Error::Engine("a column family is missing".to_owned())),
    }
}

/// Part of the disk format.
fn family_name(hint: Hint) -> &'static str {
    match hint {
        Hint::Small => "default",
        Hint::Lookup => "lookup",
        Hint::Bulk => "bulk",
        Hint::Log => "log",
        Hint::Cold => "cold",
    }
}

fn engine_error(error: rocksdb::Error) -> Error {
    let message = error.into_string();
    // RocksDB passes the error of the operating system on as text.
    if message.contains("No space left on device") || message.contains("Disk quota exceeded") {
        return Error::Full;
    }
    Error::Engine(message)
}

// ------------------------------------------------------------------------------------------------------- options

/// How the memory budget is divided.
struct Budget {
    /// Holds data, index and filter blocks, and is charged for the memtables.
    cache: usize,
    write_buffers: usize,
}

impl Budget {
    fn of(bytes: usize) -> Self {
        let bytes = bytes.max(8 << 20);
        // An eighth is left for what RocksDB does not account for: table readers, iterators, the batch being written.
        Self { cache: bytes - bytes / 8, write_buffers: (bytes / 4).min(256 << 20) }
    }
}

fn database_options(budget: &Budget) -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    // A group that was synced lies before any torn record; what follows a torn record was never acknowledged.
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    options.set_track_and_verify_wals_in_manifest(true);
    options.set_max_total_wal_size((budget.write_buffers as u64).max(16 << 20));
    // The WAL is synced group by group; table files are written out little by little, so that no flush delays a sync.
    options.set_bytes_per_sync(1 << 20);
    options.set_max_background_jobs(3);
    options.set_max_open_files(512);
    options.set_allow_mmap_reads(false);
    options.set_allow_mmap_writes(false);
    // One writer, whose batches are sorted.
    options.set_allow_concurrent_memtable_write(false);
    options.set_enable_write_thread_adaptive_yield(false);
    options.set_avoid_unnecessary_blocking_io(true);
    options.set_max_manifest_file_size(4 << 20);
    options.set_log_level(LogLevel::Warn);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(1 << 20);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options
}

fn family_options(hint: Hint, budget: &Budget, cache: &Cache) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_format_version(FORMAT_VERSION);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    table.set_optimize_filters_for_memory(true);
    table.set_bloom_filter(10.0, false);
    table.set_block_size(match hint {
        Hint::Small | Hint::Lookup => 4 << 10,
        Hint::Bulk | Hint::Log => 16 << 10,
        Hint::Cold => 32 << 10,
    });
    if matches!(hint, Hint::Small | Hint::Lookup) {
        table.set_data_block_index_type(DataBlockIndexType::BinaryAndHash);
    }

    let write_buffer = budget.write_buffers / 2;
    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_bottommost_compression_type(match hint {
        // Rewritten or deleted too soon for the harder compression to pay.
        Hint::Small | Hint::Log => DBCompressionType::Lz4,
        Hint::Lookup | Hint::Bulk | Hint::Cold => DBCompressionType::Zstd,
    });
    options.set_write_buffer_size(write_buffer);
    options.set_max_write_buffer_number(4);
    options.set_arena_block_size((write_buffer / 16).clamp(64 << 10, 1 << 20));
    options.set_target_file_size_base(32 << 20);
    options.set_max_bytes_for_level_base(128 << 20);
    options.set_level_compaction_dynamic_level_bytes(true);
    if matches!(hint, Hint::Small | Hint::Lookup) {
        // Most look-ups ask for what is not in the memtable.
        options.set_memtable_whole_key_filtering(true);
        options.set_memtable_prefix_bloom_ratio(0.02);
    }
    options
}

// --------------------------------------------------------------------------------------------------------- reads

self_cell!(
    /// A snapshot that keeps its database open.
    struct OwnedSnapshot {
        owner: Arc<DB>,
        #[covariant]
        dependent: Pinned,
    }
);

struct Pinned<'a> {
    db: &'a DB,
    families: [&'a ColumnFamily; Hint::ALL.len()],
    snapshot: rocksdb::Snapshot<'a>,
    /// Made once: a look-up is too cheap to make its own.
    options: ReadOptions,
}

impl<'a> Pinned<'a> {
    fn new(db: &'a Arc<DB>) -> Result<Self> {
        let snapshot = db.snapshot();
        let mut options = ReadOptions::default();
        options.set_snapshot(&snapshot);
        Ok(Self { db, families: families(db)?, snapshot, options })
    }
}

impl EngineSnapshot for OwnedSnapshot {
    fn get(&self, hint: Hint, key: &[u8], found: &mut dyn FnMut(&[u8])) -> Result<()> {
        let pinned = self.borrow_dependent();
        let value = pinned.db.get_pinned_cf_opt(pinned.families[hint as usize], key, &pinned.options);
        if let Some(value) = value.map_err(engine_error)? {
            found(&value);
        }
        Ok(())
    }

    fn multi_get(&self, hint: Hint, keys: &[&[u8]], found: &mut dyn FnMut(usize, &[u8])) -> Result<()> {
        let pinned = self.borrow_dependent();
        let family = pinned.families[hint as usize];
        // Looking costs less than having them sorted again.
        let sorted = keys.is_sorted();
        let values = pinned.db.batched_multi_get_cf_opt(family, keys.iter().copied(), sorted, &pinned.options);
        for (index, value) in values.into_iter().enumerate() {
            if let Some(value) = value.map_err(engine_error)? {
                found(index, &value);
            }
        }
        Ok(())
    }

    fn scan<'a>(&'a self, hint: Hint, low: &[u8], high: &[u8], reversed: bool) -> Box<dyn EngineIter + 'a> {
        let pinned = self.borrow_dependent();
        let mut options = ReadOptions::default();
        options.set_snapshot(&pinned.snapshot);
        options.set_iterate_lower_bound(low);
        options.set_iterate_upper_bound(high);
        let mut rows = pinned.db.raw_iterator_cf_opt(pinned.families[hint as usize], options);
        if reversed {
            rows.seek_to_last();
        } else {
            rows.seek_to_first();
        }
        Box::new(RocksIter { rows, reversed })
    }
}

struct RocksIter<'a> {
    rows: DBRawIterator<'a>,
    reversed: bool,
}

impl EngineIter for RocksIter<'_> {
    fn row(&self) -> Option<(&[u8], &[u8])> {
        self.rows.item()
    }

    fn advance(&mut self) {
        if !self.rows.valid() {
            return;
        }
        if self.reversed {
            self.rows.prev();
        } else {
            self.rows.next();
        }
    }

    fn status(&self) -> Result<()> {
        self.rows.status().map_err(engine_error)
    }
}

impl Group<'_> {
    /// About what the batch will take: rows with their keys and a few bytes around each.
    fn size_bytes(&self) -> usize {
        self.iter().map(|row| row.key.len() + row.value.as_ref().map_or(0, Bytes::len) + 16).sum::<usize>()
            + limits::KEY_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Batch, Pos, Read, Store,
        contract::{OnDisk, Place, counter, put_counter},
        table::Table,
    };

    static ROWS: Table<u64, Bytes> = Table::new(2, "rows", Hint::Bulk, None, "ballast");

    fn stat(store: &Store, name: &str) -> u64 {
        store.stats().into_iter().find(|(stat, _)| *stat == name).unwrap().1
    }

    fn fill(store: &Store, rows: u64) {
        for row in 0..rows {
            let mut batch = Batch::new();
            batch.put(&ROWS, row, &Bytes::from(vec![row as u8; 10_000]));
            let ticket = store.commit(batch).unwrap();
            if row % 100 == 99 {
                ticket.durable_blocking().unwrap();
            }
        }
    }

    #[test]
    fn a_checkpoint_is_a_store_of_its_own() {
        let place = OnDisk::new();
        let store = place.open();
        put_counter(&store, 1, 1);
        let copies = tempfile::tempdir().unwrap();
        let copy = copies.path().join("copy");
        store.checkpoint(&copy).unwrap();
        put_counter(&store, 1, 2);
        assert!(store.checkpoint(&copy).is_err(), "never over something else");
        let copied = Store::open(Disk::at(&copy)).unwrap();
        assert_eq!((counter(&copied.snapshot(), 1), copied.tip()), (Some(1), Pos(1)));
        put_counter(&copied, 1, 7);
        assert_eq!(counter(&store.snapshot(), 1), Some(2));
    }

    #[test]
    fn one_process_at_a_time() {
        let place = OnDisk::new();
        let _store = place.open();
        assert!(matches!(Store::open(Disk::at(place.0.path())), Err(Error::Engine(_))));
    }

    #[test]
    fn memory_stays_within_the_budget() {
        const BUDGET: u64 = 16 << 20;
        let place = OnDisk::new();
        let store = place.open();
        fill(&store, 8_000);
        let snapshot = store.snapshot();
        assert_eq!(snapshot.count(&ROWS, ROWS.all()).unwrap(), 8_000);
        let used = stat(&store, "cache_bytes");
        assert!((1..=BUDGET).contains(&used), "{used} bytes");
        assert!(stat(&store, "memtable_bytes") <= BUDGET / 2);
        assert!(stat(&store, "queued_bytes") == 0);
    }

    #[test]
    fn compacting_reclaims_what_was_deleted() {
        let place = OnDisk::new();
        let store = place.open();
        fill(&store, 1_000);
        store.compact().unwrap();
        let before = stat(&store, "table_files_bytes");
        let mut batch = Batch::new();
        (0..1_000).for_each(|row| batch.delete(&ROWS, row));
        store.commit(batch).unwrap().durable_blocking().unwrap();
        store.compact().unwrap();
        let after = stat(&store, "table_files_bytes");
        assert!(after < before / 2, "{before} -> {after}");
        assert_eq!(store.snapshot().count(&ROWS, ROWS.all()).unwrap(), 0);
    }

    #[test]
    fn a_torn_wal_tail_loses_nothing_that_was_synced() {
        let place = OnDisk::new();
        let store = place.open();
        for value in 1..=20 {
            put_counter(&store, 1, value);
        }
        // What is on the disk while the store runs, as a power cut would leave it, with garbage behind it.
        let after = tempfile::tempdir().unwrap();
        for torn in [&b""[..], b"\x12\x34\x56", &[0; 4096], &[0xab; 5000]] {
            let copy = after.path().join(format!("torn-{}", torn.len()));
            std::fs::create_dir(&copy).unwrap();
            for file in std::fs::read_dir(place.0.path()).unwrap() {
                let file = file.unwrap();
                let mut bytes = std::fs::read(file.path()).unwrap();
                if file.path().extension().is_some_and(|extension| extension == "log") {
                    bytes.extend_from_slice(torn);
                }
                std::fs::write(copy.join(file.file_name()), bytes).unwrap();
            }
            let store = Store::open(Disk::at(&copy)).unwrap();
            assert_eq!((counter(&store.snapshot(), 1), store.tip()), (Some(20), Pos(20)), "{} bytes", torn.len());
            put_counter(&store, 1, 21);
        }
    }
}
