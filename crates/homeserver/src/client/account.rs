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
    let passed = uia::check_password(app, requester, "account/password".to_owned(), &ctx.body).await?;
    let hash = app.auth.passwords.hash(&ctx.request.new_password).await?;
    let keep = requester.device_id.as_ref().map(|device_id| device_id.as_str());
    let log_out = ctx.request.logout_devices;
    let set = |tx: &mut Tx| {
        passed.holds(tx)?;
        accounts::set_password(tx, &requester.user_id, &hash, log_out, keep)
    };
    app.store.transact(set).await?;
    app.auth.lockout.forgive(requester.user_id.as_str());
    Ok(change_password::v3::Response::new())
}

async fn close(ctx: Ctx<deactivate::v3::Request>) -> Result<deactivate::v3::Response> {
    let app = &ctx.app;
    let requester = ctx.requester.as_ref().ok_or_else(Error::missing_token)?;
    let passed = uia::check_password(app, requester, "account/deactivate".to_owned(), &ctx.body).await?;
    let close = |tx: &mut Tx| {
        passed.holds(tx)?;
        accounts::close(tx, &requester.user_id, ctx.request.erase)
    };
    app.store.transact(close).await?;
    Ok(deactivate::v3::Response::new(ThirdPartyIdRemovalStatus::NoSupport))
}

/// Accounts have no mail addresses or telephone numbers here.
async fn addresses(_: Ctx<get_3pids::v3::Request>) -> Result<get_3pids::v3::Response> {
    Ok(get_3pids::v3::Response::new(Vec::new()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::testing::{PASSWORD, Server, User};

    const WHOAMI: &str = "/_matrix/client/v3/account/whoami";
    const NEW: &str = "battery staple";

    async fn change(user: &User, more: Value) -> u16 {
        let mut body = json!({ "new_password": NEW, "auth": user.auth() });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        user.client.post("/_matrix/client/v3/account/password", body).await.status.as_u16()
    }

    #[tokio::test]
    async fn pitfall_012_a_new_password_logs_out_the_others() {
        let server = Server::default();
        let (here, there) = (server.user("alice").await, server.log_in("alice").await);
        assert_eq!(change(&here, json!({})).await, 200);
        assert_eq!(here.client.get(WHOAMI).await.status, 200);
        assert_eq!(there.client.get(WHOAMI).await.status, 401);
        assert_eq!(server.try_log_in("alice", PASSWORD, json!({})).await.status, 403);
        assert_eq!(server.try_log_in("alice", NEW, json!({})).await.status, 200);
    }

    #[tokio::test]
    async fn a_new_password_can_leave_the_others_alone() {
        let server = Server::default();
        let (here, there) = (server.user("alice").await, server.log_in("alice").await);
        assert_eq!(change(&here, json!({ "logout_devices": false })).await, 200);
        assert_eq!(there.client.get(WHOAMI).await.status, 200);
    }

    #[tokio::test]
    async fn without_the_old_password_there_is_no_new_one() {
        let server = Server::default();
        let alice = server.user("alice").await;
        assert_eq!(change(&alice, json!({ "auth": null })).await, 401);
        let mut auth = alice.auth();
        auth["password"] = json!("wrong horse");
        let body = json!({ "new_password": NEW, "auth": auth });
        let answer = alice.client.post("/_matrix/client/v3/account/password", body).await;
        assert_eq!((answer.status.as_u16(), answer.errcode().as_str()), (401, "M_FORBIDDEN"));
        assert_eq!(answer.json()["flows"], json!([{ "stages": ["m.login.password"] }]));
        let body = json!({ "new_password": NEW });
        assert_eq!(server.client.post("/_matrix/client/v3/account/password", body).await.errcode(), "M_MISSING_TOKEN");
        assert_eq!(server.try_log_in("alice", PASSWORD, json!({})).await.status, 200);
    }

    #[tokio::test]
    async fn pitfall_016_a_closed_account_stays_closed_and_its_name_taken() {
        let server = Server::default();
        let (alice, other) = (server.user("alice").await, server.log_in("alice").await);
        let path = format!("/_matrix/client/v3/profile/{}", alice.user_id);
        let name = json!({ "displayname": "Alice" });
        assert_eq!(alice.client.put(&format!("{path}/displayname"), name).await.status, 200);
        let close = "/_matrix/client/v3/account/deactivate";
        assert_eq!(alice.client.post(close, json!({})).await.status, 401);
        let mut auth = alice.auth();
        auth["session"] = alice.client.post(close, json!({})).await.json()["session"].clone();
        let more = alice.client.post(close, json!({ "auth": auth, "erase": true })).await;
        assert_eq!(more.errcode(), "M_FORBIDDEN", "to erase was not asked for with this session");
        auth["session"] = alice.client.post(close, json!({ "erase": true })).await.json()["session"].clone();
        let answer = alice.client.post(close, json!({ "auth": auth, "erase": true })).await;
        assert_eq!(answer.json(), json!({ "id_server_unbind_result": "no-support" }));
        for user in [&alice, &other] {
            assert_eq!(user.client.get(WHOAMI).await.errcode(), "M_UNKNOWN_TOKEN");
        }
        assert_eq!(server.try_log_in("alice", PASSWORD, json!({})).await.errcode(), "M_FORBIDDEN");
        assert_eq!(server.client.get(&path).await.json(), json!({}));
        let body = json!({ "username": "alice", "password": PASSWORD });
        assert_eq!(server.client.post("/_matrix/client/v3/register", body).await.errcode(), "M_USER_IN_USE");
    }

    #[tokio::test]
    async fn administrators_open_and_close_accounts() {
        use crate::users::admin;
        let server = Server::default();
        let app = &server.app;
        assert_eq!(admin::create(app, "alice", PASSWORD, true).await.unwrap(), "@alice:hs.test");
        assert!(admin::create(app, "alice", PASSWORD, false).await.is_err());
        let alice = server.log_in("alice").await;
        admin::reset_password(app, "@alice:hs.test", NEW, true).await.unwrap();
        assert_eq!(alice.client.get(WHOAMI).await.status, 401);
        assert_eq!(server.try_log_in("alice", NEW, json!({})).await.status, 200);
        admin::deactivate(app, "alice", false).await.unwrap();
        assert_eq!(server.try_log_in("alice", NEW, json!({})).await.status, 403);
        assert!(admin::reset_password(app, "alice", NEW, true).await.is_err());
        assert!(admin::deactivate(app, "nobody", false).await.is_err());
    }
}
