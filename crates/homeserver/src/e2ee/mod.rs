//! End-to-end encryption, as far as a server has a part in it: it keeps the keys of devices and hands them out, and
//! passes messages on from device to device. It cannot read any of it, and does not check signatures: that is what
//! the devices do for each other.
//!
//! - `keys`: identity keys, one-time keys, fallback keys. `to_device`: messages.
//!
//! Not here: how devices hear of it (`sync`), and deleting a device with its keys (`auth::devices`).

pub mod keys;
pub mod to_device;
