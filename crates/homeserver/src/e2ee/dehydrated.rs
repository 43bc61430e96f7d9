//! Dehydrated devices (MSC3814): a user leaves a device with the server, which gets keys and messages like any other,
//! until a device that logs in later takes its messages over. A user has one at most.

use store::{Read, Tx};

use super::keys::{self, Upload};
use crate::App;
use crate::auth::devices;
use crate::error::{Error, Result};
use crate::schema::{DEHYDRATED_DEVICES, DEVICES, DehydratedDevice};

/// A device to be left with the server.
#[derive(Debug)]
pub struct NewDevice {
    pub device: DehydratedDevice,
    pub display_name: Option<String>,
    pub keys: Upload,
}

pub fn get(read: &impl Read, user_id: &str) -> Result<DehydratedDevice> {
    let device = read.get(&DEHYDRATED_DEVICES, user_id)?;
    device.ok_or_else(|| Error::not_found("There is no dehydrated device"))
}

/// Keeps a device in the place of the one before.
pub fn put(app: &App, tx: &mut Tx, user_id: &str, new: &NewDevice) -> Result<()> {
    if let Some(known) = tx.get(&DEHYDRATED_DEVICES, user_id)? {
        devices::delete(tx, user_id, &known.device_id)?;
    }
    let device_id = new.device.device_id.as_str();
    if tx.contains(&DEVICES, (user_id, device_id))? {
        return Err(Error::invalid_param("There is a device with this name already"));
    }
    devices::log_in(app, tx, user_id, Some(device_id), new.display_name.as_deref())?;
    keys::upload(tx, user_id, device_id, &new.keys)?;
    tx.put(&DEHYDRATED_DEVICES, user_id, &new.device);
    Ok(())
}

/// Deletes the device. Returns its ID.
pub fn delete(tx: &mut Tx, user_id: &str) -> Result<String> {
    let DehydratedDevice { device_id, .. } = get(tx, user_id)?;
    devices::delete(tx, user_id, &device_id)?;
    Ok(device_id)
}
