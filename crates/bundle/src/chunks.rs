//! Cutting by content, and the index that names the chunks of a part.
//!
//! Lives here: where chunks begin and end, the index's bytes. Not here: where a chunk lies in a file (read.rs).

use std::io::{self, Read};

use fastcdc::v2020::{Error as CutError, StreamCDC};

use crate::digest::Digest;
use crate::limits::{CHUNK_AVERAGE, CHUNK_MAX, CHUNK_MIN, STORED_MAX};

/// A chunk, as the index names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Of its plain bytes.
    pub plain: Digest,
    /// Of its bytes in the file.
    pub stored: Digest,
    pub plain_len: u32,
    pub stored_len: u32,
}

/// Bytes of a chunk in the index.
pub(crate) const ENTRY: usize = 32 + 32 + 4 + 4;

/// Cuts what the reader gives where its content says so: what stands before or behind does not move the cuts for long.
pub struct Cutter<R: Read>(StreamCDC<R>);

/// See [`Cutter`].
pub fn cut<R: Read>(reader: R) -> Cutter<R> {
    let size = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
    Cutter(StreamCDC::new(reader, size(CHUNK_MIN), size(CHUNK_AVERAGE), size(CHUNK_MAX)))
}

impl<R: Read> Iterator for Cutter<R> {
    type Item = io::Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(match self.0.next()? {
            Ok(chunk) => Ok(chunk.data),
            Err(CutError::IoError(error)) => Err(error),
            Err(CutError::Empty) => return None,
            Err(error) => Err(io::Error::other(error.to_string())),
        })
    }
}

/// The bytes of an index.
pub(crate) fn write_index(chunks: &[Chunk]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(chunks.len() * ENTRY);
    for chunk in chunks {
        bytes.extend_from_slice(&chunk.plain.0);
        bytes.extend_from_slice(&chunk.stored.0);
        bytes.extend_from_slice(&chunk.plain_len.to_le_bytes());
        bytes.extend_from_slice(&chunk.stored_len.to_le_bytes());
    }
    bytes
}

/// What an index says, if it makes a part of `bytes`.
pub(crate) fn read_index(index: &[u8], bytes: u64) -> Result<Vec<Chunk>, &'static str> {
    let chunks: Vec<Chunk> = index.chunks_exact(ENTRY).map(read_entry).collect::<Option<_>>().ok_or("it is cut off")?;
    if chunks.len() * ENTRY != index.len() {
        return Err("it is cut off");
    }
    let whole = |chunk: &Chunk| {
        (1..=CHUNK_MAX).contains(&(chunk.plain_len as usize)) && (1..=STORED_MAX).contains(&(chunk.stored_len as usize))
    };
    if !chunks.iter().all(whole) {
        return Err("it has a chunk of an impossible size");
    }
    if chunks.iter().map(|chunk| u64::from(chunk.plain_len)).sum::<u64>() != bytes {
        return Err("its chunks do not add up");
    }
    Ok(chunks)
}

fn read_entry(entry: &[u8]) -> Option<Chunk> {
    let digest = |at: usize| Some(Digest(entry.get(at..at + 32)?.try_into().ok()?));
    let number = |at: usize| Some(u32::from_le_bytes(entry.get(at..at + 4)?.try_into().ok()?));
    Some(Chunk { plain: digest(0)?, stored: digest(32)?, plain_len: number(64)?, stored_len: number(68)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::noise;

    #[test]
    fn cuts_come_back_behind_an_insertion() {
        let old = noise(1, 3_000_000);
        let mut new = old.clone();
        new.splice(1_000_000..1_000_000, *b"some bytes more");
        let digests = |bytes: &[u8]| -> Vec<Digest> { cut(bytes).map(|chunk| Digest::of(&chunk.unwrap())).collect() };
        let (before, after) = (digests(&old), digests(&new));
        let fresh = after.iter().filter(|digest| !before.contains(digest)).count();
        assert!(before.len() > 20 && fresh <= 3, "{fresh} of {}", after.len());
    }

    #[test]
    fn cuts_lose_nothing_and_keep_their_bounds() {
        for len in [0, 1, CHUNK_MIN - 1, CHUNK_MIN, CHUNK_MAX, CHUNK_MAX + 1, 1_000_003] {
            let bytes = noise(len as u64, len);
            let chunks: Vec<Vec<u8>> = cut(&bytes[..]).map(Result::unwrap).collect();
            assert_eq!(chunks.concat(), bytes);
            assert!(chunks.iter().all(|chunk| !chunk.is_empty() && chunk.len() <= CHUNK_MAX));
        }
        assert!(cut(&vec![0; 1_000_000][..]).map(Result::unwrap).all(|chunk| chunk.len() <= CHUNK_MAX));
    }

    #[test]
    fn an_index_comes_back_and_must_add_up() {
        let chunk =
            |plain_len, stored_len| Chunk { plain: Digest::of(b"p"), stored: Digest::of(b"s"), plain_len, stored_len };
        let chunks = vec![chunk(7, 20), chunk(9, 22)];
        let bytes = write_index(&chunks);
        assert_eq!(read_index(&bytes, 16), Ok(chunks));
        assert!(read_index(&bytes, 17).is_err());
        assert!(read_index(&bytes[..ENTRY + 5], 7).is_err());
        for (plain_len, stored_len) in [(0, 1), (1, 0), (CHUNK_MAX as u32 + 1, 1), (1, STORED_MAX as u32 + 1)] {
            assert!(read_index(&write_index(&[chunk(plain_len, stored_len)]), plain_len.into()).is_err());
        }
    }
}
