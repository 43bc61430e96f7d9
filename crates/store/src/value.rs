//! Values: what a row holds. Every format knows its version, so that old bytes stay readable.

use std::ops::Deref;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::{Corrupt, Pos, key::Stamp};

/// A value under construction. Remembers where pending positions were written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ValueBuf {
    pub(crate) bytes: Vec<u8>,
    pub(crate) stamps: SmallVec<[Stamp; 2]>,
    pub(crate) error: Option<Corrupt>,
}

impl ValueBuf {
    /// One byte.
    pub fn u8(&mut self, int: u8) {
        self.bytes.push(int);
    }

    /// Two bytes, big endian.
    pub fn u16(&mut self, int: u16) {
        self.bytes.extend_from_slice(&int.to_be_bytes());
    }

    /// Four bytes, big endian.
    pub fn u32(&mut self, int: u32) {
        self.bytes.extend_from_slice(&int.to_be_bytes());
    }

    /// Eight bytes, big endian.
    pub fn u64(&mut self, int: u64) {
        self.bytes.extend_from_slice(&int.to_be_bytes());
    }

    /// A position, pending or real, in eight bytes.
    pub fn pos(&mut self, pos: Pos) {
        if pos.is_pending() {
            self.stamps.push(Stamp { at: self.bytes.len() as u32, inverted: false });
        }
        self.u64(pos.0);
    }

    /// Bytes with their length in front (four bytes).
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.u32(bytes.len() as u32);
        self.raw(bytes);
    }

    /// A string with its length in front (four bytes).
    pub fn str(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    /// Bytes as they are, of known length or up to the end.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// What was written so far; positions that are pending still are.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// A serde value in postcard form, up to the end of the value. It must not hold pending positions.
    pub fn postcard<T: serde::Serialize + ?Sized>(&mut self, value: &T) {
        match postcard::to_extend(value, std::mem::take(&mut self.bytes)) {
            Ok(bytes) => self.bytes = bytes,
            // Only for types that cannot say their length. The commit of this value fails.
            Err(error) => self.error = Some(Corrupt::new(error.to_string())),
        }
    }
}

/// The bytes of a stored value: borrowed from the engine where possible, shared where that costs nothing.
#[derive(Debug, Clone)]
pub enum Raw<'a> {
    /// Borrowed for the time of decoding.
    Borrowed(&'a [u8]),
    /// Shared; [`Raw::into_bytes`] does not copy.
    Shared(Bytes),
}

impl Deref for Raw<'_> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }
}

impl Raw<'_> {
    /// The bytes to keep; copies them if they are borrowed.
    pub fn into_bytes(self) -> Bytes {
        match self {
            Self::Borrowed(bytes) => Bytes::copy_from_slice(bytes),
            Self::Shared(bytes) => bytes,
        }
    }

    /// Reads field by field what a [`ValueBuf`] wrote.
    pub fn reader(&self) -> ValueReader<'_> {
        ValueReader(self)
    }
}

/// Reads what a [`ValueBuf`] wrote, field by field.
#[derive(Debug, Clone, Copy)]
pub struct ValueReader<'a>(&'a [u8]);

impl<'a> ValueReader<'a> {
    /// Reads from any bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next `n` bytes.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], Corrupt> {
        let (head, tail) = self.0.split_at_checked(n).ok_or(Corrupt::new("the value ends too early"))?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Corrupt> {
        self.take(N)?.try_into().map_err(|_| Corrupt::new("the value ends too early"))
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, Corrupt> {
        self.array().map(u8::from_be_bytes)
    }

    /// Two bytes.
    pub fn u16(&mut self) -> Result<u16, Corrupt> {
        self.array().map(u16::from_be_bytes)
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Result<u32, Corrupt> {
        self.array().map(u32::from_be_bytes)
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Result<u64, Corrupt> {
        self.array().map(u64::from_be_bytes)
    }

    /// A position.
    pub fn pos(&mut self) -> Result<Pos, Corrupt> {
        self.u64().map(Pos)
    }

    /// Bytes with their length in front.
    pub fn bytes(&mut self) -> Result<&'a [u8], Corrupt> {
        let len = self.u32()?;
        self.take(len as usize)
    }

    /// A string with its length in front.
    pub fn str(&mut self) -> Result<&'a str, Corrupt> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Corrupt::new("a string is not UTF-8"))
    }

    /// Everything that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    /// A serde value in postcard form, up to the end.
    pub fn postcard<T: serde::de::DeserializeOwned>(&mut self) -> Result<T, Corrupt> {
        postcard::from_bytes(self.rest()).map_err(|error| Corrupt::new(error.to_string()))
    }

    /// Nothing may be left.
    pub fn end(&self) -> Result<(), Corrupt> {
        if self.0.is_empty() { Ok(()) } else { Err(Corrupt::new("the value goes on after its end")) }
    }
}

/// Something a row can hold. By convention the first byte is the version of the format; an unknown version is
/// [`Corrupt`]. [`crate::postcard_value!`] does this for serde types; types that hold positions of their own commit
/// implement it by hand with [`ValueBuf::pos`].
pub trait Value: Sized {
    /// Appends the encoding.
    fn encode(&self, out: &mut ValueBuf);

    /// Reads what [`Value::encode`] wrote, or what a predecessor wrote.
    fn decode(raw: Raw<'_>) -> Result<Self, Corrupt>;
}

/// Raw bytes, as they are.
impl Value for Bytes {
    fn encode(&self, out: &mut ValueBuf) {
        out.raw(self);
    }
    fn decode(raw: Raw<'_>) -> Result<Self, Corrupt> {
        Ok(raw.into_bytes())
    }
}

/// Nothing: the key says it all.
impl Value for () {
    fn encode(&self, _: &mut ValueBuf) {}
    fn decode(_: Raw<'_>) -> Result<Self, Corrupt> {
        Ok(())
    }
}

impl Value for u64 {
    fn encode(&self, out: &mut ValueBuf) {
        out.u64(*self);
    }
    fn decode(raw: Raw<'_>) -> Result<Self, Corrupt> {
        let mut fields = raw.reader();
        let int = fields.u64()?;
        fields.end().map(|()| int)
    }
}

impl Value for Pos {
    fn encode(&self, out: &mut ValueBuf) {
        out.pos(*self);
    }
    fn decode(raw: Raw<'_>) -> Result<Self, Corrupt> {
        u64::decode(raw).map(Pos)
    }
}

impl Value for (u64, u64) {
    fn encode(&self, out: &mut ValueBuf) {
        out.u64(self.0);
        out.u64(self.1);
    }
    fn decode(raw: Raw<'_>) -> Result<Self, Corrupt> {
        let mut fields = raw.reader();
        let pair = (fields.u64()?, fields.u64()?);
        fields.end().map(|()| pair)
    }
}

impl Value for String {
    fn encode(&self, out: &mut ValueBuf) {
        out.raw(self.as_bytes());
    }
    fn decode(raw: Raw<'_>) -> Result<Self, Corrupt> {
        std::str::from_utf8(&raw).map(str::to_owned).map_err(|_| Corrupt::new("a string is not UTF-8"))
    }
}

/// Implements [`Value`] for a serde type: one byte of format version, then postcard.
///
/// `postcard_value!(Profile, 1)` for the first format; `postcard_value!(Profile, 2, from ProfileV1)` when bytes written
/// as `ProfileV1` (itself a `Value`, with `Profile: From<ProfileV1>`) are still around. The type must not hold pending
/// positions, and postcard is not self-describing: any change of fields is a new version.
#[macro_export]
macro_rules! postcard_value {
    ($type:ty, $version:literal) => {
        $crate::postcard_value!(@impl $type, $version, |_raw: $crate::Raw<'_>, version: u8| {
            Err($crate::Corrupt::new(format!("unknown format version {version}")))
        });
    };
    ($type:ty, $version:literal, from $previous:ty) => {
        $crate::postcard_value!(@impl $type, $version, |raw: $crate::Raw<'_>, _version: u8| {
            <$previous as $crate::Value>::decode(raw).map(<$type>::from)
        });
    };
    (@impl $type:ty, $version:literal, $older:expr) => {
        impl $crate::Value for $type {
            fn encode(&self, out: &mut $crate::ValueBuf) {
                out.u8($version);
                out.postcard(self);
            }
            fn decode(raw: $crate::Raw<'_>) -> Result<Self, $crate::Corrupt> {
                let mut fields = raw.reader();
                match fields.u8()? {
                    $version => fields.postcard(),
                    version => ($older)(raw, version),
                }
            }
        }
    };
}
