//! One's own account: who am I, a new password, the end of it.

use ruma::api::client::account::{ThirdPartyIdRemovalStatus, change_password, deactivate, get_3pids, whoami};
use store::Tx;

use crate::auth::uia;
use crate::error::{Error, Result};
use crate::http::{Ctx, Routes};
use crate::users::accounts;

pub fn routes() -> Routes {
    Routes::default().ruma(who_am_i).guests().ruma(set_password).ruma(close).ruma(addresses)
}

async fn who_am_i(ctx: Ctx<whoami::v3::Request>) -> Result<whoami::v3::Response> {
    let requester = ctx.requester;
    Ok(whoami::v3::Response { user_id: requester.user_id, device_id: requester.device_id, is_guest: requester.guest })
}

/// The session that changes the password goes on.
async fn set_password(ctx: Ctx<change_password::v3::Request>) -> Result<change_password::v3::Response> {
    let app = &ctx.app;
    // Without a token it would take a mail address to prove who one is.
    let requester = ctx.requester.as_ref().ok_or_else(Error::missing_token)?;
    app.auth.passwords.acceptable(&ctx.request.new_password)?;
    uia::check_password(app, requester, "account/password".to_owned(), &ctx.body).await?;
    let hash = app.auth.passwords.hash(&ctx.request.new_password).await?;
    let keep = requester.device_id.as_ref().map(|device_id| device_id.as_str());
    let log_out = ctx.request.logout_devices;
    app.store.transact(|tx| accounts::set_password(tx, &requester.user_id, &hash, log_out, keep)).await?;
    Ok(change_password::v3::Response::new())
}

async fn close(ctx: Ctx<deactivate::v3::Request>) -> Result<deactivate::v3::Response> {
    let app = &ctx.app;
    let requester = ctx.requester.as_ref().ok_or_else(Error::missing_token)?;
    uia::check_password(app, requester, "account/deactivate".to_owned(), &ctx.body).await?;
    let close = |tx: &mut Tx| accounts::close(tx, &requester.user_id, ctx.request.erase);
    app.store.transact(close).await?;
    Ok(deactivate::v3::Response::new(ThirdPartyIdRemovalStatus::NoSupport))
}

/// Accounts have no mail addresses or telephone numbers here.
async fn addresses(_: Ctx<get_3pids::v3::Request>) -> Result<get_3pids::v3::Response> {
    Ok(get_3pids::v3::Response::new(Vec::new()))
}
