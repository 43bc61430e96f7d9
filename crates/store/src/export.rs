//! Export and import: every row of every table in one stream that no engine is needed to understand.
//!
//! ```text
//! magic, format (u16)
//! frame*: kind (u8), length (u32), payload, xxh3-64 of kind, length and payload
//!   kind 1: rows: hint (u8), key length (u16), key, value length (u32), value
//!   kind 2: the end: version (u64), number of rows (u64); nothing follows
//! ```
//! All integers are big endian. A stream without its end, or with a frame that does not match its checksum, is not
//! imported; the checksums find damage, not forgery.

use std::{
    io::{self, Write},
    sync::Arc,
};

use bytes::Bytes;
use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    Backing, Error, Pos, Snapshot, ValueReader,
    engine::{Engine, Group, Row, RowRef, Rows, open_engine},
    journal, limits,
    table::{Hint, RESERVED_TAGS, Table},
};

const MAGIC: &[u8; 16] = b"skerry store exp";
const FORMAT: u16 = 1;
const ROWS: u8 = 1;
const END: u8 = 2;
/// A frame is closed when it is longer than this; with one more row it stays well below the limit of the reader.
const FRAME_BYTES: usize = 512 * 1024;
const MAX_FRAME_BYTES: usize = 2 * (FRAME_BYTES + limits::KEY_BYTES + limits::VALUE_BYTES);

/// There while an import is under way; a store that has it was not imported completely and does not open.
pub(crate) const IMPORTING: Table<(), ()> =
    Table::internal(RESERVED_TAGS + 3, "importing", Hint::Small, None, "an import is not complete");

/// Why an export or import failed.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The stream could not be written or read.
    #[error("the stream failed: {0}")]
    Io(#[from] io::Error),
    /// The stream is not an export, or it is damaged or cut off.
    #[error("the export is damaged: {0}")]
    Damaged(&'static str),
    /// The stream was written by a later release.
    #[error("the export has format {0}, which this release does not know")]
    Format(u16),
    /// There is something in the store to import into.
    #[error("the store to import into is not empty")]
    NotEmpty,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] Error),
}

/// What was exported or imported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exported {
    /// The version of the snapshot.
    pub version: Pos,
    /// How many rows, those of the store itself included.
    pub rows: u64,
}

/// Writes a snapshot to a stream. Unbuffered: give it a `BufWriter`, and flush that.
pub fn export(snapshot: &Snapshot, mut to: impl Write) -> Result<Exported, ExportError> {
    to.write_all(MAGIC)?;
    to.write_all(&FORMAT.to_be_bytes())?;
    let tip = journal::TIP.key(());
    let mut frame = Vec::new();
    let mut rows = 0;
    for hint in Hint::ALL {
        let mut iter = snapshot.stable.snapshot.scan(hint, &[], &END_OF_KEYS, false);
        while let Some((key, value)) = iter.row() {
            if key != tip.bytes.as_slice() {
                push_row(&mut frame, hint, key, value);
                rows += 1;
            }
            if frame.len() >= FRAME_BYTES {
                write_frame(&mut to, ROWS, &frame)?;
                frame.clear();
            }
            iter.advance();
        }
        iter.status()?;
    }
    if !frame.is_empty() {
        write_frame(&mut to, ROWS, &frame)?;
    }
    let exported = Exported { version: snapshot.stable.version, rows };
    let end = [exported.version.0.to_be_bytes(), rows.to_be_bytes()].concat();
    write_frame(&mut to, END, &end)?;
    Ok(exported)
}

/// After every key: no tag of a table is 0xff, and chunks have the tag of their table behind theirs.
const END_OF_KEYS: [u8; 2] = [0xff; 2];

fn push_row(frame: &mut Vec<u8>, hint: Hint, key: &[u8], value: &[u8]) {
    frame.push(hint as u8);
    frame.extend_from_slice(&(key.len() as u16).to_be_bytes());
    frame.extend_from_slice(key);
    frame.extend_from_slice(&(value.len() as u32).to_be_bytes());
    frame.extend_from_slice(value);
}

fn write_frame(to: &mut impl Write, kind: u8, payload: &[u8]) -> io::Result<()> {
    let mut frame = Vec::with_capacity(payload.len() + 13);
    frame.push(kind);
    frame.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    frame.extend_from_slice(payload);
    let checksum = xxh3_64(&frame);
    frame.extend_from_slice(&checksum.to_be_bytes());
    to.write_all(&frame)
}

/// Fills an empty store from a stream made by [`export`]. Positions, the journal and cursors stay as they were, so
/// tokens that clients hold stay valid. If it fails half-way, the store does not open; delete it and start again.
pub fn import(into: impl Into<Backing>, mut from: impl io::Read) -> Result<Exported, ExportError> {
    let engine = open_engine(into.into())?;
    refuse_unless_empty(&*engine)?;
    read_header(&mut from)?;
    write_rows(&*engine, &Rows::unit(RowRef(Arc::new(importing(true)))), &[])?;
    let mut rows = 0;
    loop {
        let (kind, payload) = read_frame(&mut from)?;
        match kind {
            ROWS => {
                let group = parse_rows(payload)?;
                rows += group.len() as u64;
                write_rows(&*engine, &group, &[])?;
            }
            END => {
                let exported = parse_end(&payload)?;
                if exported.rows != rows {
                    return Err(ExportError::Damaged("rows are missing"));
                }
                if from.read(&mut [0])? != 0 {
                    return Err(ExportError::Damaged("it goes on after its end"));
                }
                write_rows(&*engine, &Rows::new(), &[importing(false), journal::tip_row(exported.version)])?;
                return Ok(exported);
            }
            _ => return Err(ExportError::Damaged("a frame of unknown kind")),
        }
    }
}

fn refuse_unless_empty(engine: &dyn Engine) -> Result<(), ExportError> {
    let snapshot = engine.snapshot()?;
    for hint in Hint::ALL {
        let rows = snapshot.scan(hint, &[], &END_OF_KEYS, false);
        rows.status()?;
        if rows.row().is_some() {
            return Err(ExportError::NotEmpty);
        }
    }
    Ok(())
}

fn importing(under_way: bool) -> Row {
    let value = if under_way { Some(Bytes::new()) } else { None };
    Row { hint: IMPORTING.def().hint, key: IMPORTING.key(()).bytes, value }
}

fn write_rows(engine: &dyn Engine, rows: &Rows, extra: &[Row]) -> Result<(), Error> {
    engine.write(&Group { rows, extra })
}

fn read_header(from: &mut impl io::Read) -> Result<(), ExportError> {
    let mut magic = [0; MAGIC.len()];
    read_exact(from, &mut magic)?;
    if &magic != MAGIC {
        return Err(ExportError::Damaged("it does not begin like one"));
    }
    let mut format = [0; 2];
    read_exact(from, &mut format)?;
    match u16::from_be_bytes(format) {
        FORMAT => Ok(()),
        format => Err(ExportError::Format(format)),
    }
}

fn read_frame(from: &mut impl io::Read) -> Result<(u8, Bytes), ExportError> {
    let mut frame = vec![0; 5];
    read_exact(from, &mut frame)?;
    let mut head = ValueReader::new(&frame);
    let damaged = |_| ExportError::Damaged("a frame is too short");
    let (kind, len) = (head.u8().map_err(damaged)?, head.u32().map_err(damaged)? as usize);
    if len > MAX_FRAME_BYTES {
        return Err(ExportError::Damaged("a frame is too long"));
    }
    frame.resize(5 + len, 0);
    read_exact(from, frame.get_mut(5..).unwrap_or_default())?;
    let mut checksum = [0; 8];
    read_exact(from, &mut checksum)?;
    if xxh3_64(&frame) != u64::from_be_bytes(checksum) {
        return Err(ExportError::Damaged("a checksum does not match"));
    }
    Ok((kind, Bytes::from(frame).slice(5..)))
}

fn read_exact(from: &mut impl io::Read, buf: &mut [u8]) -> Result<(), ExportError> {
    from.read_exact(buf).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => ExportError::Damaged("it is cut off"),
        _ => ExportError::Io(error),
    })
}

fn parse_rows(payload: Bytes) -> Result<Rows, ExportError> {
    let damaged = |_| ExportError::Damaged("a row is too short");
    let mut fields = ValueReader::new(&payload);
    let mut rows = Rows::new();
    while fields.end().is_err() {
        let hint = fields.u8().map_err(damaged)?;
        let hint = *Hint::ALL.get(usize::from(hint)).ok_or(ExportError::Damaged("a row with an unknown hint"))?;
        let key_len = fields.u16().map_err(damaged)?;
        let key = fields.take(usize::from(key_len)).map_err(damaged)?;
        let value = fields.bytes().map_err(damaged)?;
        if key.is_empty() || key.len() > limits::KEY_BYTES || value.len() > limits::VALUE_BYTES {
            return Err(ExportError::Damaged("a row exceeds the limits"));
        }
        let row = Row { hint, key: SmallVec::from_slice(key), value: Some(payload.slice_ref(value)) };
        if rows.insert(RowRef(Arc::new(row))).is_some() {
            return Err(ExportError::Damaged("a row is there twice"));
        }
    }
    Ok(rows)
}

fn parse_end(payload: &[u8]) -> Result<Exported, ExportError> {
    let damaged = |_| ExportError::Damaged("the end is too short");
    let mut fields = ValueReader::new(payload);
    let exported = Exported { version: fields.pos().map_err(damaged)?, rows: fields.u64().map_err(damaged)? };
    fields.end().map_err(damaged)?;
    Ok(exported)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Batch, Disk, MemoryDisk, Read, Store, Topic,
        contract::{InMemory, OnDisk, Place},
    };

    static EVENTS: Table<(u64, Pos), Bytes> =
        Table::new(2, "events", Hint::Bulk, Some(|(room, _)| Topic::number(1, room)), "events");
    static BLOBS: Table<String, Bytes> = Table::new(5, "blobs", Hint::Cold, None, "large values").chunked();

    fn filled(store: &Store) -> Vec<u8> {
        for room in 0..40 {
            let mut batch = Batch::new();
            let pos = batch.next_pos();
            batch.put(&EVENTS, (room, pos), &Bytes::from(vec![room as u8; 40_000]));
            batch.put(&BLOBS, "large", &Bytes::from(vec![room as u8; 300_000]));
            journal::advance(&mut batch, "follower", Pos(room));
            store.commit(batch).unwrap().durable_blocking().unwrap();
        }
        exported(store)
    }

    fn exported(store: &Store) -> Vec<u8> {
        let mut bytes = Vec::new();
        export(&store.snapshot(), &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn an_export_is_the_same_from_every_engine_it_was_imported_into() {
        let (memory, disk) = (InMemory::new(), OnDisk::new());
        let original = filled(&disk.open());
        import(memory.0.clone(), original.as_slice()).unwrap();
        let in_memory = memory.open();
        assert!(exported(&in_memory) == original);

        let other = OnDisk::new();
        let report = import(Disk::at(other.0.path()), original.as_slice()).unwrap();
        let store = other.open();
        assert!(exported(&store) == original);
        assert_eq!((report.version, store.tip()), (Pos(40), Pos(40)));
        let snapshot = store.snapshot();
        assert_eq!(snapshot.get(&BLOBS, "large").unwrap(), Some(Bytes::from(vec![39; 300_000])));
        assert_eq!(snapshot.count(&EVENTS, EVENTS.all()).unwrap(), 40);
        assert_eq!(journal::read(&snapshot, Pos(30), 100).unwrap().len(), 10);
        assert_eq!(journal::cursor(&snapshot, "follower").unwrap(), Some(Pos(39)));
        assert_eq!(store.commit(Batch::new()).unwrap().base, Pos(41), "positions go on");
    }

    #[test]
    fn only_an_empty_store_is_filled() {
        let place = InMemory::new();
        let bytes = filled(&place.open());
        assert!(matches!(import(place.0.clone(), bytes.as_slice()), Err(ExportError::NotEmpty)));
    }

    #[test]
    fn damage_is_found_and_leaves_no_usable_store() {
        let place = InMemory::new();
        let bytes = filled(&place.open());
        let attempt = |bytes: &[u8]| {
            let disk = MemoryDisk::new();
            let error = import(disk.clone(), bytes).unwrap_err();
            let usable = Store::open(disk).is_ok_and(|store| store.tip() > Pos::ZERO);
            assert!(!usable, "{error}");
            error
        };
        for cut in [0, 10, 17, 30, bytes.len() / 2, bytes.len() - 1] {
            assert!(matches!(attempt(&bytes[..cut]), ExportError::Damaged(_)), "cut at {cut}");
        }
        for at in (0..bytes.len()).step_by(bytes.len() / 50) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            attempt(&damaged);
        }
        let longer = [bytes.as_slice(), b"x"].concat();
        assert!(matches!(attempt(&longer), ExportError::Damaged(_)));
        let mut later = bytes.clone();
        later[17] = 9;
        assert!(matches!(attempt(&later), ExportError::Format(9)));
    }

    #[test]
    fn an_interrupted_import_does_not_open() {
        let place = InMemory::new();
        let bytes = filled(&place.open());
        let disk = MemoryDisk::new();
        import(disk.clone(), &bytes[..bytes.len() - 5]).unwrap_err();
        assert!(matches!(Store::open(disk), Err(Error::Engine(_))));
    }
}
