//! What administrators do to accounts: looking, locking, suspending.

use ruma::api::client::admin::{get_user_info, is_user_locked, is_user_suspended, lock_user, suspend_user};
use ruma::{MilliSecondsSinceUnixEpoch, UInt, UserId};
use store::{Read as _, Tx};

use crate::App;
use crate::auth::Requester;
use crate::error::{Error, Result};
use crate::http::{Ctx, Routes};
use crate::schema::{DEVICE_SEEN, USERS, User};
use crate::users::accounts;

pub fn routes() -> Routes {
    Routes::default().ruma(whois).ruma(is_locked).ruma(lock).ruma(is_suspended).ruma(suspend)
}

/// Also everybody about themselves.
async fn whois(ctx: Ctx<get_user_info::v3::Request>) -> Result<get_user_info::v3::Response> {
    use get_user_info::v3::{ConnectionInfo, DeviceInfo, Response, SessionInfo};
    let user_id = ctx.request.user_id;
    if ctx.requester.user_id != user_id {
        target(&ctx.app, &ctx.requester, &user_id)?;
    }
    let read = ctx.app.store.snapshot();
    let mut answer = Response::new();
    for row in read.scan(&DEVICE_SEEN, DEVICE_SEEN.prefix((user_id.as_str(),))) {
        let ((_, device_id), seen) = row?;
        let last_seen = Some(MilliSecondsSinceUnixEpoch(UInt::new_saturating(seen.ts)));
        let connection = ConnectionInfo { ip: seen.ip, last_seen, user_agent: None };
        let session = SessionInfo { connections: vec![connection] };
        answer.devices.insert(device_id, DeviceInfo { sessions: vec![session] });
    }
    answer.user_id = Some(user_id);
    Ok(answer)
}

async fn is_locked(ctx: Ctx<is_user_locked::v1::Request>) -> Result<is_user_locked::v1::Response> {
    let user = target(&ctx.app, &ctx.requester, &ctx.request.user_id)?;
    Ok(is_user_locked::v1::Response::new(user.locked))
}

async fn lock(ctx: Ctx<lock_user::v1::Request>) -> Result<lock_user::v1::Response> {
    let locked = ctx.request.locked;
    change(&ctx.app, &ctx.requester, &ctx.request.user_id, |user| User { locked, ..user }).await?;
    Ok(lock_user::v1::Response::new(locked))
}

async fn is_suspended(ctx: Ctx<is_user_suspended::v1::Request>) -> Result<is_user_suspended::v1::Response> {
    let user = target(&ctx.app, &ctx.requester, &ctx.request.user_id)?;
    Ok(is_user_suspended::v1::Response::new(user.suspended))
}

async fn suspend(ctx: Ctx<suspend_user::v1::Request>) -> Result<suspend_user::v1::Response> {
    let suspended = ctx.request.suspended;
    change(&ctx.app, &ctx.requester, &ctx.request.user_id, |user| User { suspended, ..user }).await?;
    Ok(suspend_user::v1::Response::new(suspended))
}

/// The account an administrator asks about. Others do not even learn whether it is there.
fn target(app: &App, requester: &Requester, user_id: &UserId) -> Result<User> {
    if !requester.admin {
        return Err(Error::forbidden("Only administrators may do this"));
    }
    if user_id.server_name() != app.server_name {
        return Err(Error::invalid_param("The user is not from this server"));
    }
    let user = accounts::find(app, user_id)?.filter(|user| !user.deactivated);
    user.ok_or_else(|| Error::not_found("There is no such account"))
}

async fn change(
    app: &App,
    requester: &Requester,
    user_id: &UserId,
    change: impl Fn(User) -> User + Send + Sync,
) -> Result<()> {
    let known = target(app, requester, user_id)?;
    if requester.user_id == user_id || known.admin {
        return Err(Error::forbidden("Administrators are not to be locked out"));
    }
    let write = |tx: &mut Tx| -> Result<()> {
        let user = tx.get(&USERS, user_id.as_str())?.filter(|user| !user.deactivated && !user.admin);
        let user = user.ok_or_else(|| Error::not_found("There is no such account"))?;
        tx.put(&USERS, user_id.as_str(), &change(user));
        Ok(())
    };
    app.store.transact(write).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::testing::{PASSWORD, Server, User};
    use crate::users::admin;

    const WHOAMI: &str = "/_matrix/client/v3/account/whoami";

    async fn world() -> (Server, User, User) {
        let server = Server::default();
        admin::create(&server.app, "root", PASSWORD, true).await.unwrap();
        let (root, alice) = (server.log_in("root").await, server.user("alice").await);
        (server, root, alice)
    }

    #[tokio::test]
    async fn pitfall_015_a_locked_account_keeps_its_tokens() {
        let (_server, root, alice) = world().await;
        let path = format!("/_matrix/client/v1/admin/lock/{}", alice.user_id);
        assert_eq!(root.client.get(&path).await.json(), json!({ "locked": false }));
        assert_eq!(root.client.put(&path, json!({ "locked": true })).await.json(), json!({ "locked": true }));
        assert_eq!(alice.client.get(WHOAMI).await.errcode(), "M_USER_LOCKED");
        assert_eq!(root.client.put(&path, json!({ "locked": false })).await.status, 200);
        assert_eq!(alice.client.get(WHOAMI).await.status, 200);
    }

    #[tokio::test]
    async fn pitfall_015_a_suspended_account_reads_but_does_not_change_its_profile() {
        let (_server, root, alice) = world().await;
        let path = format!("/_matrix/client/v1/admin/suspend/{}", alice.user_id);
        assert_eq!(root.client.put(&path, json!({ "suspended": true })).await.json(), json!({ "suspended": true }));
        assert_eq!(root.client.get(&path).await.json(), json!({ "suspended": true }));
        let name = "/_matrix/client/v3/profile/@alice:hs.test/displayname";
        let refused = alice.client.put(name, json!({ "displayname": "A" })).await;
        assert_eq!((refused.status.as_u16(), refused.errcode().as_str()), (403, "M_USER_SUSPENDED"));
        assert_eq!(alice.client.get(WHOAMI).await.status, 200);
    }

    #[tokio::test]
    async fn only_administrators_and_never_one_another() {
        let (server, root, alice) = world().await;
        admin::create(&server.app, "other", PASSWORD, true).await.unwrap();
        let lock = async |user: &User, target: &str| {
            let path = format!("/_matrix/client/v1/admin/lock/{target}");
            user.client.put(&path, json!({ "locked": true })).await.errcode()
        };
        assert_eq!(lock(&alice, "@root:hs.test").await, "M_FORBIDDEN");
        assert_eq!(lock(&alice, "@nobody:hs.test").await, "M_FORBIDDEN");
        assert_eq!(lock(&root, "@root:hs.test").await, "M_FORBIDDEN");
        assert_eq!(lock(&root, "@other:hs.test").await, "M_FORBIDDEN");
        assert_eq!(lock(&root, "@nobody:hs.test").await, "M_NOT_FOUND");
        assert_eq!(lock(&root, "@alice:elsewhere.test").await, "M_INVALID_PARAM");
    }

    #[tokio::test]
    async fn whois_is_for_oneself_and_administrators() {
        let (server, root, alice) = world().await;
        let path = "/_matrix/client/v3/admin/whois/@alice:hs.test";
        alice.client.get(WHOAMI).await;
        // A commit that waits for the disk comes after the note.
        let bob = server.user("bob").await;
        let known = alice.client.get(path).await.json();
        let connection = &known["devices"][&alice.device_id]["sessions"][0]["connections"][0];
        assert_eq!(connection["ip"], "127.0.0.1");
        assert_eq!(root.client.get(path).await.json(), known);
        assert_eq!(bob.client.get(path).await.errcode(), "M_FORBIDDEN");
    }
}
