//! What an application service may do with its token: speak for its users and their devices (spec: Application Service
//! API, Identity assertion).

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ruma::{OwnedDeviceId, OwnedUserId, UserId};
use store::Read as _;

use super::{Credentials, Requester, devices, tokens};
use crate::App;
use crate::config::registrations::Registration;
use crate::error::{Error, Result};
use crate::schema::USERS;

/// Whom a service speaks for: the user it names, or its own one.
pub(super) fn speaker(app: &App, service: &Registration, credentials: &Credentials) -> Result<Requester> {
    let user_id = match &credentials.as_user {
        Some(named) => named_user(service, named)?,
        None => service.sender.clone(),
    };
    let read = app.store.snapshot();
    let user = read.get(&USERS, user_id.as_str())?.filter(|user| !user.deactivated);
    let user = user.ok_or_else(|| Error::forbidden("The application service has not registered this user"))?;
    if let Some(device_id) = &credentials.as_device
        && !devices::is_open(&read, user_id.as_str(), device_id)?
    {
        return Err(Error::unknown_device());
    }
    let requester = requester(service, user_id, credentials);
    Ok(Requester { locked: user.locked, suspended: user.suspended, ..requester })
}

/// The service itself, where it does not matter for whom it speaks: it registers a user, or logs one in.
pub fn itself(app: &App, credentials: &Credentials) -> Option<Requester> {
    let service = app.appservices.by_token(&credentials.token)?;
    let alone = Credentials { as_user: None, as_device: None, ..credentials.clone() };
    Some(requester(service, service.sender.clone(), &alone))
}

fn requester(service: &Registration, user_id: OwnedUserId, credentials: &Credentials) -> Requester {
    let exempt = !service.rate_limited || user_id == service.sender;
    Requester {
        user_id,
        device_id: credentials.as_device.as_deref().map(OwnedDeviceId::from),
        token_id: Arc::from(URL_SAFE_NO_PAD.encode(tokens::hash(&credentials.token))),
        guest: false,
        locked: false,
        suspended: false,
        // What an operator lets a service do stands in its registration.
        admin: false,
        appservice: Some(Arc::from(service.id.as_str())),
        rate_limited: !exempt,
    }
}

fn named_user(service: &Registration, named: &str) -> Result<OwnedUserId> {
    let user_id = UserId::parse(named)?;
    if service.has_user(&user_id) {
        return Ok(user_id);
    }
    Err(Error::forbidden("The application service cannot speak for this user"))
}
