//! Limits of every engine, so that data written to one fits all of them.

/// The longest key in bytes, with the tag of its table.
pub const KEY_BYTES: usize = 1024;
/// The longest value in bytes, in a table that is not chunked.
pub const VALUE_BYTES: usize = 96 * 1024;
/// The largest batch in bytes: all keys and values written.
pub const BATCH_BYTES: usize = 1024 * 1024;
/// The longest value in bytes, in a chunked table: ten chunks, which leaves room for other rows in the same batch.
pub const CHUNKED_VALUE_BYTES: usize = 10 * VALUE_BYTES;
/// How much may wait for the disk, in bytes, before `transact` waits and `commit` answers `Busy`.
pub const QUEUE_BYTES: usize = 32 * 1024 * 1024;
/// So much of the disk is kept free, in bytes: with less of it, flushes and compactions would stop halfway, and writes are
/// refused.
pub const DISK_RESERVE_BYTES: u64 = 64 * 1024 * 1024;
