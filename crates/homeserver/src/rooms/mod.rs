//! The shell around the `rooms` crate: reads what a decision needs, and lowers what follows from it to one batch.

pub mod aliases;
pub mod create;
pub mod directory;
pub mod hierarchy;
pub mod invites;
pub mod membership;
pub mod moderate;
pub mod moment;
pub mod overview;
pub mod pages;
pub mod public;
pub mod read;
pub mod relations;
pub mod remove;
pub mod search;
pub mod send;
pub mod shown;
pub mod sight;
pub mod summary;
#[cfg(test)]
mod tests;
pub mod threads;
pub mod upgrade;
pub mod visibility;
pub mod write;

use parking_lot::Mutex;
use ruma::RoomId;
use store::{Committed, Read as _};

use crate::App;
use crate::error::{Error, Result};
use crate::schema::room_nr;
use write::RoomTx;

/// Who changes a room waits for whoever changes it now, instead of deciding in vain. Only a hint: that decisions rest on
/// what they read is checked by the store.
pub struct Lanes(Vec<Mutex<()>>);

const LANES: usize = 1024;

impl Default for Lanes {
    fn default() -> Self {
        Lanes((0..LANES).map(|_| Mutex::new(())).collect())
    }
}

impl Lanes {
    fn of(&self, room_id: &RoomId) -> &Mutex<()> {
        &self.0[room_nr(room_id) as usize % LANES]
    }
}

/// Changes one room: runs `decide` on its newest state (again, if somebody else was faster), commits what it put in,
/// and returns when that is durable. A room that is not known here is forbidden: nobody learns which rooms there are.
pub async fn change<T: Send>(
    app: &App,
    room_id: &RoomId,
    mut decide: impl FnMut(&mut RoomTx<'_>) -> Result<T> + Send,
) -> Result<Committed<T>> {
    let lane = app.lanes.of(room_id);
    let mut redacted = Vec::new();
    let changed = app
        .store
        .transact_in(Some(lane), |tx| {
            let mut room =
                RoomTx::open(app, tx, room_id)?.ok_or_else(|| Error::forbidden("You are not in this room"))?;
            let value = decide(&mut room)?;
            redacted = room.finish();
            Ok(value)
        })
        .await;
    if changed.is_err() {
        // Others may have seen the events as redacted by a commit that is lost. What they saw had a version before this.
        let version = app.store.latest().version().next();
        redacted.into_iter().for_each(|at| app.room_cache.forget(at, version));
    }
    changed
}
