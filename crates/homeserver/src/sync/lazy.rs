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
    /// The client came back from `since`: what it was sent later got lost on its way.
    pub fn forget_after(&self, since: Pos) {
        self.0.lock().retain(|_, sent| *sent <= since);
    }

    /// The room is new to the client, or new again.
    pub fn forget_room(&self, room: RoomNr) {
        self.0.lock().retain(|(of, _), _| *of != room);
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pitfall_026_what_was_in_a_lost_answer_is_not_known() {
        let sent = Sent::default();
        sent.remember(1, [Pos(4)], Pos(10));
        sent.remember(1, [Pos(5)], Pos(20));
        assert!(sent.knows(1, Pos(4), Pos(10)) && !sent.knows(1, Pos(5), Pos(10)));
        // The answer of version 20 never arrived; the next one, of version 30, had no need of that member.
        sent.forget_after(Pos(10));
        assert!(sent.knows(1, Pos(4), Pos(30)));
        assert!(!sent.knows(1, Pos(5), Pos(30)));
        sent.remember(2, [Pos(6)], Pos(10));
        sent.forget_room(1);
        assert!(!sent.knows(1, Pos(4), Pos(30)) && sent.knows(2, Pos(6), Pos(30)));
    }
}
