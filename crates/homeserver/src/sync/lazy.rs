//! Which member events a device has been sent, so that lazy loading does not send them again and again.
//!
//! A member event counts as known once the client came back with a token that is not older than the answer it was in:
//! an answer that got lost is given again in full. What is forgotten here is sent once more.

use std::sync::Arc;

use hashbrown::HashMap;
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use ruma::{DeviceId, UserId};
use store::Pos;

use crate::schema::RoomNr;

const MAX_DEVICES: usize = 4096;
/// About 12 KiB for each device.
const MAX_MEMBERS: usize = 512;

/// What all devices were sent.
pub struct SentMembers(Cache<String, Arc<Sent>>);

/// Member events by room and position, and the version of the answer they were in.
#[derive(Default)]
pub struct Sent(Mutex<HashMap<(RoomNr, Pos), Pos>>);

impl Default for SentMembers {
    fn default() -> Self {
        SentMembers(Cache::new(MAX_DEVICES))
    }
}

impl SentMembers {
    /// What a device was sent. A client that starts anew knows nothing.
    pub fn of(&self, user_id: &UserId, device_id: &DeviceId, anew: bool) -> Arc<Sent> {
        let key = format!("{user_id} {device_id}");
        if let Some(sent) = self.0.get(&key)
            && !anew
        {
            return sent;
        }
        let sent = Arc::new(Sent::default());
        self.0.insert(key, sent.clone());
        sent
    }
}

impl Sent {
    /// Whether the client has a member event, being where it is.
    pub fn knows(&self, room: RoomNr, at: Pos, since: Pos) -> bool {
        self.0.lock().get(&(room, at)).is_some_and(|sent| *sent <= since)
    }

    /// These go out with an answer of that version.
    pub fn remember(&self, room: RoomNr, members: impl IntoIterator<Item = Pos>, version: Pos) {
        let mut sent = self.0.lock();
        for at in members {
            if sent.len() >= MAX_MEMBERS {
                sent.clear();
            }
            sent.entry((room, at)).or_insert(version);
        }
    }
}
