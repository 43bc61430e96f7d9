//! The rooms of the directory in its order, kept from one request to the next: whoever reads a page causes no work for the
//! other pages.
//!
//! What is kept is that of one version. It is brought up to a later one by looking into those rooms in which something
//! happened since; only when rooms come into the directory or leave it, or when nobody remembers what happened, all of
//! them are read. Not here: what is told of a room (`public`).

use std::cmp::Reverse;
use std::sync::Arc;

use hashbrown::HashMap;
use parking_lot::Mutex;
use store::{Pos, Read, Signal, Store};

use crate::error::Result;
use crate::rooms::read::RoomReader;
use crate::schema::{self, RoomNr, topic};

/// Where a room stands in the directory: those with the most members come first.
pub type Place = (Reverse<u32>, RoomNr);

pub struct Directory {
    /// Moves when rooms come into the directory or leave it.
    signal: Arc<Signal>,
    known: Mutex<Option<Known>>,
}

struct Known {
    as_of: Pos,
    /// In order. Rooms that nobody is in are not among them.
    places: Arc<[Place]>,
    /// How many members each room of the directory has.
    members: Arc<HashMap<RoomNr, u32>>,
}

impl Directory {
    pub fn new(store: &Store) -> Self {
        let signal = store.hub().signal();
        store.hub().attach(topic::directory(), &signal);
        Directory { signal, known: Mutex::default() }
    }

    /// The places of all rooms. `changed` tells in which of the rooms something happened after a version and up to
    /// another, if that is known.
    pub fn places<R: Read>(
        &self,
        reader: RoomReader<'_, R>,
        changed: impl FnOnce(Pos, Pos, &dyn Fn(RoomNr) -> bool) -> Option<Vec<RoomNr>>,
    ) -> Result<Arc<[Place]>> {
        let version = reader.read.version();
        let mut known = self.known.lock();
        let kept = match known.take() {
            // Whoever sees a version finds the signal marked up to it.
            Some(kept) if self.signal.last() <= kept.as_of => kept.brought_up_to(version, reader, changed)?,
            _ => None,
        };
        let kept = kept.map_or_else(|| Known::read(reader), Ok)?;
        let places = kept.places.clone();
        *known = Some(kept);
        Ok(places)
    }
}

impl Known {
    fn read<R: Read>(reader: RoomReader<'_, R>) -> Result<Self> {
        let rooms: Vec<RoomNr> =
            reader.read.scan(&schema::PUBLIC_ROOMS, schema::PUBLIC_ROOMS.all()).keys().collect::<store::Result<_>>()?;
        let heads = reader.read.multi_get(&schema::HEADS, rooms.iter().copied())?;
        let members = |(room, head): (_, Option<crate::stored::Head>)| Some((room, head?.joined_members));
        let members: HashMap<RoomNr, u32> = rooms.into_iter().zip(heads).filter_map(members).collect();
        Ok(Known::of(reader.read.version(), members))
    }

    fn of(as_of: Pos, members: HashMap<RoomNr, u32>) -> Self {
        let inhabited = members.iter().filter(|(_, members)| **members > 0);
        let mut places: Vec<Place> = inhabited.map(|(room, members)| (Reverse(*members), *room)).collect();
        places.sort_unstable();
        Known { as_of, places: places.into(), members: Arc::new(members) }
    }

    /// The same as of a later version; `None` if that takes reading everything.
    fn brought_up_to<R: Read>(
        self,
        version: Pos,
        reader: RoomReader<'_, R>,
        changed: impl FnOnce(Pos, Pos, &dyn Fn(RoomNr) -> bool) -> Option<Vec<RoomNr>>,
    ) -> Result<Option<Self>> {
        if version <= self.as_of {
            return Ok(Some(self));
        }
        let Some(rooms) = changed(self.as_of, version, &|room| self.members.contains_key(&room)) else {
            return Ok(None);
        };
        let mut moved = Vec::new();
        for room in rooms {
            let members = reader.head_of(room)?.map_or(0, |head| head.joined_members);
            if self.members.get(&room) != Some(&members) {
                moved.push((room, members));
            }
        }
        if moved.is_empty() {
            return Ok(Some(Known { as_of: version, ..self }));
        }
        let mut members = Arc::unwrap_or_clone(self.members);
        members.extend(moved);
        Ok(Some(Known::of(version, members)))
    }
}
