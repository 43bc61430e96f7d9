//! How an event lies in the store: a small header that answers most questions without parsing JSON,
//! then the bytes that clients get, then the bytes that only other servers get.
//!
//! The layout is snapshot-tested: it may only change together with [`FORMAT`] and a way to read the old one.
//! What an event *means* lives in the `rooms` crate, not here.

use ::rooms::event::EventNr;
use ::rooms::state::{NodeId, Root};
use bytes::Bytes;
use ruma::RoomVersionId;
use store::{Corrupt, Pos, Raw, Value, ValueBuf, ValueReader};

/// The layout's version, the first byte of each stored event.
pub const FORMAT: u8 = 1;

const STATE: u8 = 1;
const REDACTED: u8 = 2;
const REJECTED: u8 = 4;
const SOFT_FAILED: u8 = 8;
const HAS_TXN: u8 = 16;
const HAS_URL: u8 = 32;

/// Who sent an event and under which transaction ID: only that device sees `unsigned.transaction_id`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnEcho {
    pub device_id: String,
    pub transaction_id: String,
}

/// An event on its way into the store.
#[derive(Clone, Debug)]
pub struct NewEvent<'a> {
    pub event_id: &'a str,
    pub sender: &'a str,
    pub kind: &'a str,
    pub state_key: Option<&'a str>,
    pub origin_server_ts: u64,
    /// The room's state before the event.
    pub before: Root,
    /// The room's state after it; the same as `before` for anything but an accepted state event.
    pub after: Root,
    /// The state event that this one replaces.
    pub replaces: Option<Pos>,
    pub txn: Option<TxnEcho>,
    pub contains_url: bool,
    pub rejected: bool,
    pub soft_failed: bool,
    pub redacted_by: Option<Pos>,
    /// JSON members for clients, comma separated, without braces.
    pub client: &'a [u8],
    /// JSON members for other servers only, comma separated, without braces.
    pub federation: &'a [u8],
}

impl<'a> NewEvent<'a> {
    /// An event of which nothing is known but what it says, as those need it who only judge or show one.
    pub fn plain(kind: &'a str, state_key: Option<&'a str>, sender: &'a str, client: &'a [u8]) -> Self {
        Self {
            event_id: "$event",
            sender,
            kind,
            state_key,
            origin_server_ts: 1,
            before: Root::EMPTY,
            after: Root::EMPTY,
            replaces: None,
            txn: None,
            contains_url: false,
            rejected: false,
            soft_failed: false,
            redacted_by: None,
            client,
            federation: b"",
        }
    }

    /// As the store gives it back.
    ///
    /// # Errors
    /// A field does not fit into the event's header.
    pub fn stored(&self) -> Result<StoredEvent, Corrupt> {
        let mut bytes = ValueBuf::default();
        self.encode(&mut bytes);
        StoredEvent::decode(Raw::Borrowed(bytes.as_bytes()))
    }

    /// Writes the event; pending positions are patched by the store when it assigns them.
    pub fn encode(&self, out: &mut ValueBuf) {
        let flag = |on: bool, bit: u8| if on { bit } else { 0 };
        out.u8(FORMAT);
        out.u8(flag(self.state_key.is_some(), STATE)
            | flag(self.redacted_by.is_some(), REDACTED)
            | flag(self.rejected, REJECTED)
            | flag(self.soft_failed, SOFT_FAILED)
            | flag(self.txn.is_some(), HAS_TXN)
            | flag(self.contains_url, HAS_URL));
        out.u64(self.origin_server_ts);
        put_root(out, self.after);
        if self.state_key.is_some() {
            put_root(out, self.before);
            out.pos(self.replaces.unwrap_or(Pos(0)));
        }
        if let Some(by) = self.redacted_by {
            out.pos(by);
        }
        put_str(out, self.event_id);
        put_str(out, self.sender);
        put_str(out, self.kind);
        if let Some(key) = self.state_key {
            put_str(out, key);
        }
        if let Some(txn) = &self.txn {
            put_str(out, &txn.device_id);
            put_str(out, &txn.transaction_id);
        }
        out.bytes(self.client);
        out.raw(self.federation);
    }
}

/// Writes a state root: ten bytes, all zero for an empty state.
pub fn put_root(out: &mut ValueBuf, root: Root) {
    match root.0 {
        Some(id) => {
            out.pos(Pos(id.nr.0));
            out.u16(id.idx);
        }
        None => out.raw(&[0; 10]),
    }
}

fn put_str(out: &mut ValueBuf, s: &str) {
    out.u16(s.len() as u16);
    out.raw(s.as_bytes());
}

/// A range of the stored bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Span {
    at: u32,
    len: u32,
}

/// An event as it was stored. Cloning copies no event data.
#[derive(Clone, Debug)]
pub struct StoredEvent {
    bytes: Bytes,
    flags: u8,
    pub origin_server_ts: u64,
    pub after: Root,
    before: Root,
    replaces: u64,
    redacted_by: u64,
    event_id: Span,
    sender: Span,
    kind: Span,
    state_key: Span,
    device_id: Span,
    transaction_id: Span,
    client: Span,
    federation: Span,
}

impl StoredEvent {
    pub fn event_id(&self) -> &str {
        self.str(self.event_id)
    }
    pub fn sender(&self) -> &str {
        self.str(self.sender)
    }
    /// The event's `type`.
    pub fn kind(&self) -> &str {
        self.str(self.kind)
    }
    pub fn state_key(&self) -> Option<&str> {
        (self.flags & STATE != 0).then(|| self.str(self.state_key))
    }
    /// Whether this is a state event of the given type and key.
    pub fn is_state(&self, kind: &str, state_key: &str) -> bool {
        self.kind() == kind && self.state_key() == Some(state_key)
    }
    /// The room's state before this event.
    pub fn before(&self) -> Root {
        if self.flags & STATE != 0 { self.before } else { self.after }
    }
    pub fn replaces(&self) -> Option<Pos> {
        (self.replaces != 0).then_some(Pos(self.replaces))
    }
    pub fn redacted_by(&self) -> Option<Pos> {
        (self.flags & REDACTED != 0).then_some(Pos(self.redacted_by))
    }
    pub fn rejected(&self) -> bool {
        self.flags & REJECTED != 0
    }
    /// Whether clients never get this event in a timeline.
    pub fn hidden(&self) -> bool {
        self.flags & (REJECTED | SOFT_FAILED) != 0
    }
    pub fn contains_url(&self) -> bool {
        self.flags & HAS_URL != 0
    }
    /// The transaction ID, if this device sent the event.
    pub fn transaction_id(&self, device_id: Option<&str>) -> Option<&str> {
        let mine = self.flags & HAS_TXN != 0 && device_id == Some(self.str(self.device_id));
        mine.then(|| self.str(self.transaction_id))
    }
    pub fn txn(&self) -> Option<TxnEcho> {
        (self.flags & HAS_TXN != 0).then(|| TxnEcho {
            device_id: self.str(self.device_id).to_owned(),
            transaction_id: self.str(self.transaction_id).to_owned(),
        })
    }
    /// JSON members for clients, comma separated, without braces.
    pub fn client(&self) -> &[u8] {
        self.span(self.client)
    }
    /// JSON members that only other servers get, comma separated, without braces.
    pub fn federation(&self) -> &[u8] {
        self.span(self.federation)
    }

    /// The event without what its redaction takes away.
    pub fn redacted<'a>(&'a self, by: Pos, client: &'a [u8]) -> NewEvent<'a> {
        NewEvent { redacted_by: Some(by), contains_url: false, client, ..self.as_new() }
    }

    fn as_new(&self) -> NewEvent<'_> {
        NewEvent {
            event_id: self.event_id(),
            sender: self.sender(),
            kind: self.kind(),
            state_key: self.state_key(),
            origin_server_ts: self.origin_server_ts,
            before: self.before(),
            after: self.after,
            replaces: self.replaces(),
            txn: self.txn(),
            contains_url: self.contains_url(),
            rejected: self.rejected(),
            soft_failed: self.flags & SOFT_FAILED != 0,
            redacted_by: self.redacted_by(),
            client: self.client(),
            federation: self.federation(),
        }
    }

    fn span(&self, s: Span) -> &[u8] {
        self.bytes.get(s.at as usize..(s.at + s.len) as usize).unwrap_or_default()
    }
    fn str(&self, s: Span) -> &str {
        std::str::from_utf8(self.span(s)).unwrap_or_default()
    }
}

impl Value for StoredEvent {
    fn encode(&self, out: &mut ValueBuf) {
        self.as_new().encode(out);
    }

    fn decode(raw: Raw<'_>) -> Result<Self, Corrupt> {
        let bytes = raw.into_bytes();
        let mut r = Reader { bytes: &bytes, at: 0 };
        let (format, flags) = (r.u8()?, r.u8()?);
        if format != FORMAT {
            return Err(Corrupt::new("stored event of an unknown format"));
        }
        let origin_server_ts = r.u64()?;
        let after = r.root()?;
        let (before, replaces) = if flags & STATE != 0 { (r.root()?, r.u64()?) } else { (after, 0) };
        let redacted_by = if flags & REDACTED != 0 { r.u64()? } else { 0 };
        let event_id = r.str()?;
        let sender = r.str()?;
        let kind = r.str()?;
        let state_key = if flags & STATE != 0 { r.str()? } else { Span::default() };
        let (device_id, transaction_id) =
            if flags & HAS_TXN != 0 { (r.str()?, r.str()?) } else { (Span::default(), Span::default()) };
        let client_len = r.u32()?;
        let client = r.take(client_len)?;
        let federation = Span { at: r.at, len: bytes.len() as u32 - r.at };
        Ok(StoredEvent {
            flags,
            origin_server_ts,
            after,
            before,
            replaces,
            redacted_by,
            event_id,
            sender,
            kind,
            state_key,
            device_id,
            transaction_id,
            client,
            federation,
            bytes,
        })
    }
}

/// Reads fixed and length-prefixed fields, never past the end.
struct Reader<'a> {
    bytes: &'a [u8],
    at: u32,
}

impl Reader<'_> {
    fn take(&mut self, len: u32) -> Result<Span, Corrupt> {
        let end = self.at.checked_add(len).filter(|end| *end as usize <= self.bytes.len());
        let end = end.ok_or_else(|| Corrupt::new("stored event is cut short"))?;
        let span = Span { at: self.at, len };
        self.at = end;
        Ok(span)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Corrupt> {
        let s = self.take(N as u32)?;
        self.bytes[s.at as usize..(s.at + s.len) as usize].try_into().map_err(|_| Corrupt::new("stored event"))
    }
    fn u8(&mut self) -> Result<u8, Corrupt> {
        Ok(self.array::<1>()?[0])
    }
    fn u32(&mut self) -> Result<u32, Corrupt> {
        Ok(u32::from_be_bytes(self.array()?))
    }
    fn u64(&mut self) -> Result<u64, Corrupt> {
        Ok(u64::from_be_bytes(self.array()?))
    }
    fn str(&mut self) -> Result<Span, Corrupt> {
        let len = u16::from_be_bytes(self.array()?) as u32;
        let span = self.take(len)?;
        std::str::from_utf8(&self.bytes[span.at as usize..(span.at + span.len) as usize])
            .map_err(|_| Corrupt::new("stored event holds text that is not UTF-8"))?;
        Ok(span)
    }
    fn root(&mut self) -> Result<Root, Corrupt> {
        root_from_bytes(self.array()?)
    }
}

/// The inverse of [`put_root`].
pub fn root_from_bytes(bytes: [u8; 10]) -> Result<Root, Corrupt> {
    let [a, b, c, d, e, f, g, h, i, j] = bytes;
    let nr = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
    let idx = u16::from_be_bytes([i, j]);
    Ok(if nr == 0 { Root::EMPTY } else { Root(Some(NodeId { nr: EventNr(nr), idx })) })
}

/// What a room looks like now: one row per room, rewritten by each event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    pub room_id: String,
    pub version: RoomVersionId,
    /// The current state.
    pub state: Root,
    /// Event IDs that the next event will name as `prev_events`.
    pub extremities: Vec<String>,
    /// The greatest depth of an event in the room.
    pub depth: u64,
    /// Where the newest timeline event lies.
    pub last: Pos,
    pub joined_members: u32,
    pub invited_members: u32,
}

impl Value for Head {
    fn encode(&self, out: &mut ValueBuf) {
        out.u8(FORMAT);
        put_root(out, self.state);
        out.pos(self.last);
        out.u64(self.depth);
        out.u32(self.joined_members);
        out.u32(self.invited_members);
        out.str(&self.room_id);
        out.str(self.version.as_str());
        out.u16(self.extremities.len() as u16);
        for id in &self.extremities {
            out.str(id);
        }
    }

    fn decode(raw: Raw<'_>) -> Result<Self, Corrupt> {
        let mut r = raw.reader();
        if r.u8()? != FORMAT {
            return Err(Corrupt::new("room head of an unknown format"));
        }
        let state = read_root(&mut r)?;
        let (last, depth) = (r.pos()?, r.u64()?);
        let (joined_members, invited_members) = (r.u32()?, r.u32()?);
        let room_id = r.str()?.to_owned();
        let version =
            RoomVersionId::try_from(r.str()?).map_err(|_| Corrupt::new("room head with a bad room version"))?;
        let count = r.u16()?;
        let extremities = (0..count).map(|_| r.str().map(str::to_owned)).collect::<Result<_, _>>()?;
        r.end()?;
        Ok(Head { room_id, version, state, extremities, depth, last, joined_members, invited_members })
    }
}

fn read_root(r: &mut ValueReader<'_>) -> Result<Root, Corrupt> {
    let bytes = r.take(10)?;
    root_from_bytes(bytes.try_into().map_err(|_| Corrupt::new("a state root is cut short"))?)
}
