//! End-to-end encryption, as far as a server has a part in it: it keeps the keys of devices and hands them out, and
//! passes messages on from device to device. It cannot read any of it. Whom to trust is decided by devices; a server
//! only refuses signatures that are wrong where it is to pass them on to others.
//!
//! - `keys`: identity keys, one-time keys, fallback keys. `to_device`: messages.
//! - `cross_signing`: keys that vouch for keys. `signed`: JSON with signatures.
//! - `backup`: keys of conversations, kept for their users. `dehydrated`: devices, kept likewise.
//!
//! Not here: how devices hear of it (`sync`), and deleting a device with its keys (`auth::devices`).

pub mod backup;
pub mod cross_signing;
pub mod dehydrated;
pub mod keys;
pub mod signed;
pub mod to_device;

use store::Tx;

use crate::error::Result;
use crate::schema::{self, JOBS, Job};

/// Deletes the keys of a user who is gone, besides those of devices. Backups that do not fit are left to a job.
pub fn forget(tx: &mut Tx, user_id: &str) -> Result<()> {
    cross_signing::forget(tx, user_id);
    if let Some(from) = backup::delete_from(tx, user_id, 0)? {
        let job = tx.next_pos();
        tx.put(&JOBS, job, &Job::ForgetBackups { user_id: user_id.to_owned(), from });
    }
    Ok(schema::device_list_changed(tx, user_id)?)
}
