//! Keys: typed tuples whose encoding keeps their order, so that a scan sees rows in the order of their keys.
//!
//! Integers are big endian; strings end with 0x00 and escape 0x00 and 0x01; [`Desc`] inverts. The encodings are part
//! of the disk format.

use std::mem::size_of;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::{Corrupt, Pos};

/// A key under construction. Remembers where pending positions were written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyBuf {
    pub(crate) bytes: SmallVec<[u8; 56]>,
    pub(crate) stamps: SmallVec<[Stamp; 2]>,
}

/// Where a pending position sits in encoded bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) at: u32,
    pub(crate) inverted: bool,
}

impl Stamp {
    /// Replaces the pending position at this place by the real one.
    pub(crate) fn patch(self, bytes: &mut [u8], base: Pos) {
        let at = self.at as usize;
        let Some(field) = bytes.get_mut(at..at + 8).and_then(|field| <&mut [u8; 8]>::try_from(field).ok()) else {
            return;
        };
        let flip = if self.inverted { u64::MAX } else { 0 };
        let pending = Pos(u64::from_be_bytes(*field) ^ flip);
        *field = (pending.resolve(base).0 ^ flip).to_be_bytes();
    }

    /// The offset of the pending position at this place.
    pub(crate) fn offset(self, bytes: &[u8]) -> u32 {
        let at = self.at as usize;
        let field = bytes.get(at..at + 8).and_then(|field| <[u8; 8]>::try_from(field).ok()).unwrap_or_default();
        let flip = if self.inverted { u64::MAX } else { 0 };
        Pos(u64::from_be_bytes(field) ^ flip).offset().unwrap_or_default()
    }
}

impl KeyBuf {
    pub(crate) fn with_tag(tag: u8) -> Self {
        let mut key = Self::default();
        key.bytes.push(tag);
        key
    }

    /// Bytes of fixed length, or the last part of a key.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// A string of any content; more may follow.
    pub fn str(&mut self, text: &str) {
        for &byte in text.as_bytes() {
            if byte <= 1 {
                self.bytes.extend_from_slice(&[1, byte + 1]);
            } else {
                self.bytes.push(byte);
            }
        }
        self.bytes.push(0);
    }

    /// A position, pending or real.
    pub fn pos(&mut self, pos: Pos) {
        self.stamped(pos, false);
    }

    /// A position, pending or real, in descending order.
    pub fn pos_desc(&mut self, pos: Pos) {
        self.stamped(pos, true);
    }

    fn stamped(&mut self, pos: Pos, inverted: bool) {
        if pos.is_pending() {
            self.stamps.push(Stamp { at: self.bytes.len() as u32, inverted });
        }
        let flip = if inverted { u64::MAX } else { 0 };
        self.bytes.extend_from_slice(&(pos.0 ^ flip).to_be_bytes());
    }
}

/// The rest of a key being decoded.
#[derive(Debug, Clone, Copy)]
pub struct KeyReader<'a>(pub(crate) &'a [u8]);

impl<'a> KeyReader<'a> {
    /// The next `n` bytes.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], Corrupt> {
        let (head, tail) = self.0.split_at_checked(n).ok_or(Corrupt::new("the key ends too early"))?;
        self.0 = tail;
        Ok(head)
    }

    /// The next `N` bytes as an array.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Corrupt> {
        self.take(N)?.try_into().map_err(|_| Corrupt::new("the key ends too early"))
    }

    /// Everything that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    /// A string written by [`KeyBuf::str`].
    pub fn str(&mut self) -> Result<String, Corrupt> {
        let end = self.0.iter().position(|&byte| byte == 0).ok_or(Corrupt::new("a string in the key has no end"))?;
        let escaped = self.take(end)?;
        self.take(1)?;
        let mut text = Vec::with_capacity(escaped.len());
        let mut bytes = escaped.iter();
        while let Some(&byte) = bytes.next() {
            match byte {
                1 => match bytes.next() {
                    Some(&next @ (1 | 2)) => text.push(next - 1),
                    _ => return Err(Corrupt::new("a string in the key has a wrong escape")),
                },
                _ => text.push(byte),
            }
        }
        String::from_utf8(text).map_err(|_| Corrupt::new("a string in the key is not UTF-8"))
    }
}

/// Something that can be (part of) the key of a table. The encoding keeps the order.
///
/// `Ref` is the cheap form used for look-ups: `&str` for `String`, `&[u8]` for `Bytes`, the value itself for integers
/// and positions, and tuples of those for tuples.
pub trait Key: Sized {
    /// The borrowed form.
    type Ref<'a>: Copy;

    /// True when this takes all the rest of the key, so that nothing may follow it in a tuple.
    const TAIL: bool = false;

    /// Appends the encoding of `key`.
    fn encode(key: Self::Ref<'_>, out: &mut KeyBuf);

    /// Reads what [`Key::encode`] wrote.
    fn decode(input: &mut KeyReader<'_>) -> Result<Self, Corrupt>;
}

macro_rules! integers {
    ($($int:ty),*) => {$(
        impl Key for $int {
            type Ref<'a> = $int;
            fn encode(key: $int, out: &mut KeyBuf) {
                out.raw(&key.to_be_bytes());
            }
            fn decode(input: &mut KeyReader<'_>) -> Result<Self, Corrupt> {
                input.array::<{ size_of::<$int>() }>().map(<$int>::from_be_bytes)
            }
        }
    )*};
}
integers!(u8, u16, u32, u64, u128);

impl Key for bool {
    type Ref<'a> = bool;
    fn encode(key: bool, out: &mut KeyBuf) {
        out.raw(&[u8::from(key)]);
    }
    fn decode(input: &mut KeyReader<'_>) -> Result<Self, Corrupt> {
        match input.array()? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(Corrupt::new("a boolean in the key is neither 0 nor 1")),
        }
    }
}

impl Key for Pos {
    type Ref<'a> = Pos;
    fn encode(key: Pos, out: &mut KeyBuf) {
        out.pos(key);
    }
    fn decode(input: &mut KeyReader<'_>) -> Result<Self, Corrupt> {
        u64::decode(input).map(Pos)
    }
}

impl Key for String {
    type Ref<'a> = &'a str;
    fn encode(key: &str, out: &mut KeyBuf) {
        out.str(key);
    }
    fn decode(input: &mut KeyReader<'_>) -> Result<Self, Corrupt> {
        input.str()
    }
}

/// Raw bytes: only as the last part of a key.
impl Key for Bytes {
    type Ref<'a> = &'a [u8];
    const TAIL: bool = true;
    fn encode(key: &[u8], out: &mut KeyBuf) {
        out.raw(key);
    }
    fn decode(input: &mut KeyReader<'_>) -> Result<Self, Corrupt> {
        Ok(Bytes::copy_from_slice(input.rest()))
    }
}

impl<const N: usize> Key for [u8; N] {
    type Ref<'a> = &'a [u8; N];
    fn encode(key: &[u8; N], out: &mut KeyBuf) {
        out.raw(key);
    }
    fn decode(input: &mut KeyReader<'_>) -> Result<Self, Corrupt> {
        input.array()
    }
}

/// The key of a table that has one row.
impl Key for () {
    type Ref<'a> = ();
    fn encode((): (), _: &mut KeyBuf) {}
    fn decode(_: &mut KeyReader<'_>) -> Result<Self, Corrupt> {
        Ok(())
    }
}

/// A part of a key in descending order: `Desc<u64>` or `Desc<Pos>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Desc<T>(pub T);

impl Key for Desc<u64> {
    type Ref<'a> = Desc<u64>;
    fn encode(key: Desc<u64>, out: &mut KeyBuf) {
        out.raw(&(!key.0).to_be_bytes());
    }
    fn decode(input: &mut KeyReader<'_>) -> Result<Self, Corrupt> {
        u64::decode(input).map(|inverted| Desc(!inverted))
    }
}

impl Key for Desc<Pos> {
    type Ref<'a> = Desc<Pos>;
    fn encode(key: Desc<Pos>, out: &mut KeyBuf) {
        out.pos_desc(key.0);
    }
    fn decode(input: &mut KeyReader<'_>) -> Result<Self, Corrupt> {
        u64::decode(input).map(|inverted| Desc(Pos(!inverted)))
    }
}

/// The leading parts of a key `K`: `()`, `(a,)`, `(a, b)`… Used for scans.
pub trait Prefix<K: Key>: Copy {
    /// Appends the encoding of the prefix.
    fn encode(self, out: &mut KeyBuf);
}

macro_rules! tuples {
    ($(($($part:ident $field:tt),+ ; $last:ident))*) => {$(
        impl<$($part: Key),+> Key for ($($part,)+) {
            type Ref<'a> = ($($part::Ref<'a>,)+);
            const TAIL: bool = $last::TAIL;
            fn encode(key: Self::Ref<'_>, out: &mut KeyBuf) {
                const { assert!(tail_is_last(&[$($part::TAIL),+]), "only the last part of a key may be raw bytes") };
                $($part::encode(key.$field, out);)+
            }
            fn decode(input: &mut KeyReader<'_>) -> Result<Self, Corrupt> {
                Ok(($($part::decode(input)?,)+))
            }
        }
    )*};
}
tuples! {
    (A 0, B 1; B)
    (A 0, B 1, C 2; C)
    (A 0, B 1, C 2, D 3; D)
    (A 0, B 1, C 2, D 3, E 4; E)
}

const fn tail_is_last(tails: &[bool]) -> bool {
    let mut i = 0;
    while i + 1 < tails.len() {
        if tails[i] {
            return false;
        }
        i += 1;
    }
    true
}

macro_rules! prefixes {
    ($(($($part:ident $field:tt),+) of ($($whole:ident),+))*) => {$(
        impl<'a, $($whole: Key),+> Prefix<($($whole,)+)> for ($($part::Ref<'a>,)+) {
            fn encode(self, out: &mut KeyBuf) {
                $(<$part as Key>::encode(self.$field, out);)+
            }
        }
    )*};
}
prefixes! {
    (A 0) of (A, B)
    (A 0) of (A, B, C)
    (A 0, B 1) of (A, B, C)
    (A 0) of (A, B, C, D)
    (A 0, B 1) of (A, B, C, D)
    (A 0, B 1, C 2) of (A, B, C, D)
    (A 0) of (A, B, C, D, E)
    (A 0, B 1) of (A, B, C, D, E)
    (A 0, B 1, C 2) of (A, B, C, D, E)
    (A 0, B 1, C 2, D 3) of (A, B, C, D, E)
}

/// Implements [`Key`] for a newtype around a key: `key_newtype!(UserNr, u64)` for `struct UserNr(u64)`, which must be
/// `Copy`.
#[macro_export]
macro_rules! key_newtype {
    ($name:ident, $inner:ty) => {
        impl $crate::Key for $name {
            type Ref<'a> = $name;
            fn encode(key: $name, out: &mut $crate::KeyBuf) {
                <$inner as $crate::Key>::encode(key.0, out);
            }
            fn decode(input: &mut $crate::KeyReader<'_>) -> Result<Self, $crate::Corrupt> {
                <$inner as $crate::Key>::decode(input).map($name)
            }
        }
    };
}
