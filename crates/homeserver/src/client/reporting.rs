//! Reports: a user tells the administrators of an event, a room or another user. They are kept, and change nothing by
//! themselves.

use ruma::api::client::reporting::report_user;
use ruma::api::client::room::{report_content, report_room};
use store::Tx;

use super::events::{find, not_found};
use crate::App;
use crate::auth::Requester;
use crate::error::{Error, Result};
use crate::http::{Ctx, Routes};
use crate::limits::Class;
use crate::rooms::read::RoomReader;
use crate::rooms::visibility::{Reach, Standing};
use crate::schema::{REPORTS, Report, Reported, USERS};

/// The longest reason, in bytes.
const MAX_REASON: usize = 10_000;

pub fn routes() -> Routes {
    Routes::default().ruma(report_event).limit(Class::Other).ruma(report_room).ruma(report_user)
}

async fn report_event(ctx: Ctx<report_content::v3::Request>) -> Result<report_content::v3::Response> {
    let (request, user_id) = (&ctx.request, &ctx.requester.user_id);
    {
        let read = ctx.app.store.snapshot();
        let reader = RoomReader::new(&ctx.app.room_cache, &read);
        let reach = Reach::of_any(reader, user_id, &request.room_id)?;
        let reach = reach.filter(|reach| reach.standing == Standing::Joined).ok_or_else(not_found)?;
        let eyes = reach.eyes(reader, user_id)?;
        find(reader, &reach, &eyes, &request.event_id)?;
    }
    let about = Reported::Event { room_id: request.room_id.to_string(), event_id: request.event_id.to_string() };
    keep(&ctx.app, &ctx.requester, about, request.reason.as_deref().unwrap_or_default()).await?;
    Ok(report_content::v3::Response {})
}

/// The answer is the same for rooms that are not known here: nobody learns which ones are.
async fn report_room(ctx: Ctx<report_room::v3::Request>) -> Result<report_room::v3::Response> {
    let request = &ctx.request;
    check_reason(&request.reason)?;
    let known = {
        let read = ctx.app.store.snapshot();
        RoomReader::new(&ctx.app.room_cache, &read).head(&request.room_id)?.is_some()
    };
    if known {
        let about = Reported::Room { room_id: request.room_id.to_string() };
        keep(&ctx.app, &ctx.requester, about, &request.reason).await?;
    }
    Ok(report_room::v3::Response {})
}

async fn report_user(ctx: Ctx<report_user::v3::Request>) -> Result<report_user::v3::Response> {
    use store::Read as _;
    let request = &ctx.request;
    let is_ours = request.user_id.server_name() == ctx.app.server_name;
    if is_ours && !ctx.app.store.snapshot().contains(&USERS, request.user_id.as_str())? {
        return Err(Error::not_found("There is no such user"));
    }
    let about = Reported::User { user_id: request.user_id.to_string() };
    keep(&ctx.app, &ctx.requester, about, &request.reason).await?;
    Ok(report_user::v3::Response {})
}

fn check_reason(reason: &str) -> Result<()> {
    if reason.len() > MAX_REASON {
        return Err(Error::too_large(format!("A reason has at most {MAX_REASON} bytes")));
    }
    Ok(())
}

async fn keep(app: &App, requester: &Requester, about: Reported, reason: &str) -> Result<()> {
    check_reason(reason)?;
    let report = Report {
        ts: app.clock.now_ms(),
        reporter: requester.user_id.to_string(),
        reason: Some(reason.to_owned()).filter(|reason| !reason.is_empty()),
        about,
    };
    let put = |tx: &mut Tx| -> Result<()> {
        let at = tx.next_pos();
        tx.put(&REPORTS, at, &report);
        Ok(())
    };
    app.store.transact(put).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use store::Read as _;

    use super::{REPORTS, Report, Reported};
    use crate::client::testing::*;
    use crate::testing::{Server, User};

    #[tokio::test]
    async fn reports_are_kept_for_the_administrators() {
        let server = Server::default();
        let [alice, bob] = users(&server).await;
        let room = public_room(&alice).await;
        let event = room.say("rude").await;
        let report = async |user: &User, path: String, body| user.client.post(&path, body).await;
        let of_event = room.path(&format!("report/{}", enc(&event)));
        assert_eq!(refused(&report(&bob, of_event.clone(), json!({})).await), not_found());
        room.join(&bob).await;
        ok(&report(&bob, of_event, json!({"reason": "rude", "score": -100})).await);
        assert_eq!(refused(&report(&bob, room.path("report/$no"), json!({})).await), not_found());
        ok(&report(&bob, room.path("report"), json!({"reason": "spam"})).await);
        let nowhere = Room { user: &bob, id: "!nowhere:hs.test".to_owned() };
        ok(&report(&bob, nowhere.path("report"), json!({"reason": "spam"})).await);
        let too_long = json!({"reason": "x".repeat(10_001)});
        assert_eq!(report(&bob, nowhere.path("report"), too_long).await.status, 413, "as for any room");
        let of_user = |id: &str| format!("/_matrix/client/v3/users/{}/report", enc(id));
        ok(&report(&bob, of_user(&alice.user_id), json!({"reason": ""})).await);
        assert_eq!(refused(&report(&bob, of_user("@no:hs.test"), json!({"reason": ""})).await), not_found());
        assert_eq!(report(&bob, of_user(&alice.user_id), json!({"reason": "x".repeat(10_001)})).await.status, 413);

        let read = server.app.store.snapshot();
        let kept: Vec<Report> = read.scan(&REPORTS, REPORTS.all()).map(|row| row.unwrap().1).collect();
        let about: Vec<&Reported> = kept.iter().map(|report| &report.about).collect();
        let expected = [
            Reported::Event { room_id: room.id.clone(), event_id: event },
            Reported::Room { room_id: room.id.clone() },
            Reported::User { user_id: alice.user_id.clone() },
        ];
        assert_eq!(about, expected.iter().collect::<Vec<_>>());
        assert_eq!(
            kept.iter().map(|report| report.reason.as_deref()).collect::<Vec<_>>(),
            [Some("rude"), Some("spam"), None]
        );
        assert!(kept.iter().all(|report| report.reporter == bob.user_id));
    }
}
