//! What a bundle may have at most. A reader refuses more before it sets memory aside.

/// Bytes of a manifest.
pub const MAX_MANIFEST: usize = 256 * 1024;
/// Bytes of the envelope.
pub const MAX_ENVELOPE: usize = 1024 * 1024;
/// Root documents in an envelope.
pub const MAX_ROOTS: usize = 128;
/// Bytes of a root document.
pub const MAX_ROOT: usize = 64 * 1024;
/// Signatures on one document.
pub const MAX_SIGNATURES: usize = 32;
/// Keys in a root document.
pub const MAX_KEYS: usize = 64;
/// Bytes of a partition image.
pub const MAX_PART: u64 = 8 * 1024 * 1024 * 1024;
/// Chunks in all images of a bundle.
pub const MAX_CHUNKS: usize = 256 * 1024;
/// Bytes of the bill of materials.
pub const MAX_SBOM: u64 = 32 * 1024 * 1024;
/// Characters of the notes.
pub const MAX_NOTES: usize = 16 * 1024;

/// Plain bytes of a chunk: at least (but for the last one of a part), about, and at most. They are part of the format: a
/// box cuts its own slot the same way to find what it already has.
pub const CHUNK_MIN: usize = 16 * 1024;
pub const CHUNK_AVERAGE: usize = 64 * 1024;
pub const CHUNK_MAX: usize = 256 * 1024;
/// Bytes of a chunk as it is stored.
pub const STORED_MAX: usize = CHUNK_MAX + 4096;
