//! The devices of an account.

use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use store::{Read, Tx};

use super::{account, done, ok};
use crate::auth::devices;
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response, Routes, json_response};
use crate::schema::{self, DEHYDRATED_DEVICES, DEVICE_SEEN, DEVICES, Device};

pub(super) fn routes() -> Routes {
    const ALL: &str = "/_synapse/admin/v2/users/{user_id}/devices";
    const ONE: &str = "/_synapse/admin/v2/users/{user_id}/devices/{device_id}";
    Routes::default()
        .raw(Method::GET, &[ALL], list)
        .raw(Method::POST, &[ALL], create)
        .raw(Method::GET, &[ONE], get)
        .raw(Method::PUT, &[ONE], update)
        .raw(Method::DELETE, &[ONE], delete)
        .raw(Method::POST, &["/_synapse/admin/v2/users/{user_id}/delete_devices"], delete_some)
}

async fn list(ctx: RawCtx) -> Result<Response> {
    let (user_id, _) = account(&ctx, 0)?;
    let read = ctx.app.store.snapshot();
    let mut found = Vec::new();
    for (device_id, device) in devices::of(&read, user_id.as_str())? {
        found.push(describe(&read, user_id.as_str(), &device_id, &device)?);
    }
    ok(&json!({ "total": found.len(), "devices": found }))
}

async fn get(ctx: RawCtx) -> Result<Response> {
    let (user_id, _) = account(&ctx, 0)?;
    let read = ctx.app.store.snapshot();
    let device = read.get(&DEVICES, (user_id.as_str(), ctx.arg(1)))?.ok_or_else(unknown)?;
    ok(&describe(&read, user_id.as_str(), ctx.arg(1), &device)?)
}

fn describe(read: &impl Read, user_id: &str, device_id: &str, device: &Device) -> Result<Value> {
    let seen = read.get(&DEVICE_SEEN, (user_id, device_id))?;
    let dehydrated = read.get(&DEHYDRATED_DEVICES, user_id)?.is_some_and(|waiting| waiting.device_id == device_id);
    Ok(json!({
        "device_id": device_id,
        "display_name": device.display_name,
        "last_seen_ip": seen.as_ref().and_then(|seen| seen.ip.clone()),
        "last_seen_user_agent": null,
        "last_seen_ts": seen.map_or(device.created_ts, |seen| seen.ts),
        "user_id": user_id,
        "dehydrated": dehydrated,
    }))
}

#[derive(Deserialize)]
struct Create {
    device_id: String,
    display_name: Option<String>,
}

/// A device nobody is logged in on yet.
async fn create(mut ctx: RawCtx) -> Result<Response> {
    let asked: Create = ctx.read_json().await?;
    let (user_id, user) = account(&ctx, 0)?;
    if user.deactivated {
        return Err(Error::invalid_param("The account is closed"));
    }
    let make = |tx: &mut Tx| {
        let name = asked.display_name.as_deref();
        devices::log_in(&ctx.app, tx, user_id.as_str(), Some(&asked.device_id), name)
    };
    ctx.app.store.transact(make).await?;
    Ok(json_response(StatusCode::CREATED, "{}"))
}

#[derive(Deserialize)]
struct Update {
    display_name: Option<String>,
}

async fn update(mut ctx: RawCtx) -> Result<Response> {
    let asked: Update = ctx.read_json().await?;
    let (user_id, _) = account(&ctx, 0)?;
    let name = asked.display_name.as_deref().map(devices::valid_name).transpose()?;
    let device = (user_id.as_str(), ctx.arg(1));
    let update = |tx: &mut Tx| -> Result<()> {
        let known = tx.get(&DEVICES, device)?.ok_or_else(unknown)?;
        if let Some(name) = &name {
            tx.put(&DEVICES, device, &Device { display_name: Some(name.clone()), ..known });
            schema::device_list_changed(tx, user_id.as_str())?;
        }
        Ok(())
    };
    ctx.app.store.transact(update).await?;
    done()
}

async fn delete(ctx: RawCtx) -> Result<Response> {
    let (user_id, _) = account(&ctx, 0)?;
    let device_id = ctx.arg(1);
    ctx.app.store.transact(|tx| devices::delete(tx, user_id.as_str(), device_id)).await?;
    done()
}

#[derive(Deserialize)]
struct DeleteSome {
    devices: Vec<String>,
}

async fn delete_some(mut ctx: RawCtx) -> Result<Response> {
    let asked: DeleteSome = ctx.read_json().await?;
    let (user_id, _) = account(&ctx, 0)?;
    devices::delete_some(&ctx.app, user_id.as_str(), &asked.devices, |_| Ok(())).await?;
    done()
}

fn unknown() -> Error {
    Error::not_found("There is no such device")
}
