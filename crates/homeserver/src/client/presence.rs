//! Who is online (spec: Presence): saying so, and asking for others.

use ruma::api::client::presence::{get_presence, set_presence};
use ruma::presence::PresenceState;

use crate::error::{Error, Result};
use crate::http::{Ctx, Routes};
use crate::sync::presence;

pub fn routes() -> Routes {
    Routes::default().ruma(set).ruma(get).guests()
}

async fn set(ctx: Ctx<set_presence::v3::Request>) -> Result<set_presence::v3::Response> {
    if ctx.request.user_id != ctx.requester.user_id {
        return Err(Error::forbidden("Only your own presence is yours to set"));
    }
    if !matches!(ctx.request.presence, PresenceState::Online | PresenceState::Offline | PresenceState::Unavailable) {
        return Err(Error::invalid_param("There is no such presence"));
    }
    if ctx.app.config.presence.enabled {
        let status = ctx.request.status_msg.filter(|status| !status.is_empty());
        if status.as_ref().is_some_and(|status| status.len() > 1024) {
            return Err(Error::invalid_param("The status message is too long"));
        }
        presence::set(&ctx.app, &ctx.requester.user_id, ctx.request.presence, status);
    }
    Ok(set_presence::v3::Response::new())
}

async fn get(ctx: Ctx<get_presence::v3::Request>) -> Result<get_presence::v3::Response> {
    let (app, user_id) = (&ctx.app, &ctx.request.user_id);
    if *user_id != ctx.requester.user_id {
        let (mine, theirs) = (presence::rooms_of(app, &ctx.requester.user_id)?, presence::rooms_of(app, user_id)?);
        if !mine.share_a_room(&theirs) {
            return Err(Error::forbidden("You share no room with this user"));
        }
    }
    let seen = app.sync.presence.of(user_id, app.clock.monotonic()).filter(|_| app.config.presence.enabled);
    let Some(seen) = seen else { return Ok(get_presence::v3::Response::new(PresenceState::Offline)) };
    let mut answer = get_presence::v3::Response::new(seen.state);
    answer.currently_active = Some(answer.presence == PresenceState::Online);
    answer.last_active_ago = Some(seen.last_active_ago);
    answer.status_msg = seen.status;
    Ok(answer)
}
