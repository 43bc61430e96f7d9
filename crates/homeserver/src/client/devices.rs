//! One's own devices.

use ruma::api::client::device::{self, delete_device, delete_devices, get_device, get_devices, update_device};
use ruma::{MilliSecondsSinceUnixEpoch, UInt};
use store::{Read, Tx};

use crate::auth::{devices, uia};
use crate::error::{Error, Result};
use crate::http::{Ctx, Routes};
use crate::schema::{DEVICE_SEEN, DEVICES, Device};

pub fn routes() -> Routes {
    Routes::default().ruma(list).ruma(get).ruma(update).ruma(delete).ruma(delete_some)
}

async fn list(ctx: Ctx<get_devices::v3::Request>) -> Result<get_devices::v3::Response> {
    let (read, user_id) = (ctx.app.store.snapshot(), ctx.requester.user_id.as_str());
    let mut found = Vec::new();
    for row in read.scan(&DEVICES, DEVICES.prefix((user_id,))) {
        let ((_, device_id), device) = row?;
        found.push(describe(&read, user_id, &device_id, device)?);
    }
    Ok(get_devices::v3::Response::new(found))
}

async fn get(ctx: Ctx<get_device::v3::Request>) -> Result<get_device::v3::Response> {
    let (read, user_id) = (ctx.app.store.snapshot(), ctx.requester.user_id.as_str());
    let device_id = ctx.request.device_id.as_str();
    let device = read.get(&DEVICES, (user_id, device_id))?.ok_or_else(unknown)?;
    Ok(get_device::v3::Response::new(describe(&read, user_id, device_id, device)?))
}

async fn update(ctx: Ctx<update_device::v3::Request>) -> Result<update_device::v3::Response> {
    let (user_id, device_id) = (ctx.requester.user_id.as_str(), ctx.request.device_id.as_str());
    let name = ctx.request.display_name.as_deref().map(devices::valid_name).transpose()?;
    let update = |tx: &mut Tx| -> Result<()> {
        let device = tx.get(&DEVICES, (user_id, device_id))?.ok_or_else(unknown)?;
        if let Some(name) = &name {
            tx.put(&DEVICES, (user_id, device_id), &Device { display_name: Some(name.clone()), ..device });
        }
        Ok(())
    };
    ctx.app.store.transact(update).await?;
    Ok(update_device::v3::Response::new())
}

async fn delete(ctx: Ctx<delete_device::v3::Request>) -> Result<delete_device::v3::Response> {
    let (user_id, device_id) = (ctx.requester.user_id.as_str(), ctx.request.device_id.as_str());
    let operation = format!("devices/{device_id}");
    uia::check_password(&ctx.app, &ctx.requester, operation, &ctx.body).await?;
    ctx.app.store.transact(|tx| devices::delete(tx, user_id, device_id)).await?;
    Ok(delete_device::v3::Response::new())
}

async fn delete_some(ctx: Ctx<delete_devices::v3::Request>) -> Result<delete_devices::v3::Response> {
    let user_id = ctx.requester.user_id.as_str();
    uia::check_password(&ctx.app, &ctx.requester, "delete_devices".to_owned(), &ctx.body).await?;
    let delete = |tx: &mut Tx| -> Result<()> {
        let mut device_ids = ctx.request.devices.iter();
        device_ids.try_for_each(|device_id| devices::delete(tx, user_id, device_id.as_str()))
    };
    ctx.app.store.transact(delete).await?;
    Ok(delete_devices::v3::Response::new())
}

fn describe(read: &impl Read, user_id: &str, device_id: &str, device: Device) -> Result<device::Device> {
    let seen = read.get(&DEVICE_SEEN, (user_id, device_id))?;
    let (ts, ip) = seen.map_or((None, None), |seen| (Some(seen.ts), seen.ip));
    Ok(device::Device {
        device_id: device_id.into(),
        display_name: device.display_name,
        last_seen_ip: ip,
        last_seen_ts: ts.map(|ts| MilliSecondsSinceUnixEpoch(UInt::new_saturating(ts))),
    })
}

fn unknown() -> Error {
    Error::not_found("There is no such device")
}
