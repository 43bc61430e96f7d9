//! Which member events a device has been sent, so that lazy loading does not send them again and again.
//!
//! A member event counts as known once the client came back with a token that is not older than the answer it was in:
//! an answer that got lost is given again in full. What is forgotten here is sent once more.

use std::sync::Arc;

use hashbrown::HashMap;
use parking_lot::Mutex;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use ruma::{DeviceId, UserId};
use store::Pos;

use crate::schema::RoomNr;

/// About 16 KiB for each device.
const MAX_MEMBERS: usize = 512;
/// What a device takes that was sent nothing.
const BASE_BYTES: usize = 256;

/// What all devices were sent.
pub struct SentMembers(Cache<String, Weighed, Weight>);

/// What a device was sent with what it was weighed with: the cache wants that to stay.
#[derive(Clone)]
struct Weighed {
    sent: Arc<Sent>,
    bytes: usize,
}

#[derive(Clone)]
struct Weight;
impl Weighter<String, Weighed> for Weight {
    fn weight(&self, key: &String, weighed: &Weighed) -> u64 {
        (key.capacity() + weighed.bytes) as u64
    }
}

/// Member events by room and position, and the version of the answer they were in.
#[derive(Default)]
pub struct Sent(Mutex<HashMap<(RoomNr, Pos), Pos>>);

impl SentMembers {
    /// In about so much memory.
    pub fn new(bytes: u64) -> Self {
        SentMembers(Cache::with_weighter((bytes / 4_096) as usize, bytes, Weight))
    }

    /// What a device was sent. A client that starts anew knows nothing.
    pub fn of(&self, user_id: &UserId, device_id: &DeviceId, anew: bool) -> Arc<Sent> {
        let key = format!("{user_id} {device_id}");
        let known = self.0.get(&key).filter(|_| !anew);
        let sent = known.as_ref().map(|known| known.sent.clone()).unwrap_or_default();
        let bytes = sent.bytes();
        // Weighed again, if it grew or shrank with the last answer.
        if known.is_none_or(|known| known.bytes.abs_diff(bytes) > known.bytes / 4) {
            self.0.insert(key, Weighed { sent: sent.clone(), bytes });
        }
        sent
    }
}

impl Sent {
    /// What it takes in memory.
    fn bytes(&self) -> usize {
        BASE_BYTES + self.0.lock().capacity() * (size_of::<((RoomNr, Pos), Pos)>() + 4)
    }

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
    fn devices_are_remembered_by_what_they_take_in_memory() {
        let (all, alice) = (SentMembers::new(1 << 20), ruma::user_id!("@alice:hs.test"));
        for nr in 0..1_000u64 {
            let device = ruma::OwnedDeviceId::from(nr.to_string());
            all.of(alice, &device, true).remember(nr, (0..500).map(Pos), Pos(1));
            // It is weighed when the device comes back.
            all.of(alice, &device, false);
        }
        let real = all.0.len() * 500 * size_of::<((RoomNr, Pos), Pos)>();
        assert!(all.0.len() > 10 && real <= 1 << 20, "{} are remembered", all.0.len());
    }

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
