//! Logging in and out, refreshing, login tokens.

use std::net::IpAddr;
use std::time::Duration;

use http::{Method, StatusCode};
use ruma::OwnedUserId;
use ruma::api::client::session::{get_login_token, get_login_types, logout, logout_all, refresh_token};
use serde::Deserialize;
use serde_json::{Value, json};
use store::Tx;

use super::register::service_of;
use crate::App;
use crate::auth::lockout::Guesser;
use crate::auth::password::{self, Proof};
use crate::auth::tokens::{self, Grant};
use crate::auth::uia::{self, UserIdentifier};
use crate::auth::{Access, Credentials, Requester, devices};
use crate::error::{Error, Result};
use crate::http::{Ctx, RawCtx, Response, Routes, json_response};
use crate::limits::{Class, Owner};
use crate::users::accounts;

pub fn routes() -> Routes {
    Routes::default()
        .ruma_answering(login_types)
        .raw(Method::POST, &["/_matrix/client/r0/login", "/_matrix/client/v3/login"], login)
        .access(Access::AppserviceTokenIfAny)
        .limit(Class::Login)
        .ruma(login_token)
        .limit(Class::Login)
        .ruma(refresh)
        .ruma(log_out)
        .guests()
        .locked()
        .ruma(log_out_all)
        .guests()
        .locked()
}

async fn login_types(ctx: Ctx<get_login_types::v3::Request>) -> Result<Response> {
    let mut flows =
        vec![json!({ "type": "m.login.password" }), json!({ "type": "m.login.token", "get_login_token": true })];
    if ctx.app.auth.oauth.site().is_ok() {
        // The pages that log in for OAuth do so for those who know no OAuth, too; under the older name for older clients.
        flows.push(json!({
            "type": "m.login.sso",
            "oauth_aware_preferred": true,
            "org.matrix.msc3824.delegated_oidc_compatibility": true,
        }));
    }
    if !ctx.app.appservices.is_empty() {
        flows.push(json!({ "type": "m.login.application_service" }));
    }
    Ok(json_response(StatusCode::OK, json!({ "flows": flows }).to_string()))
}

/// Read by itself: a request that names no type at all must be an error like any other.
#[derive(Deserialize)]
struct Login {
    #[serde(rename = "type")]
    kind: String,
    identifier: Option<UserIdentifier>,
    /// What clients sent before there were identifiers.
    user: Option<String>,
    password: Option<String>,
    token: Option<String>,
    device_id: Option<String>,
    initial_device_display_name: Option<String>,
    refresh_token: Option<bool>,
}

async fn login(mut ctx: RawCtx) -> Result<Response> {
    let login: Login = ctx.read_json().await?;
    let app = &ctx.app;
    let (user_id, grant, device_id) = match login.kind.as_str() {
        "m.login.password" => {
            let proof = by_password(app, &login, ctx.ip).await?;
            let open = |tx: &mut Tx| {
                proof.holds(tx)?;
                open(app, tx, proof.user_id(), &login)
            };
            let opened = app.store.transact(open).await?.value;
            (proof.user_id().clone(), opened.0, opened.1)
        }
        "m.login.token" => by_token(app, &login).await?,
        "m.login.application_service" => {
            let user_id = by_service(&ctx, &login)?;
            let open = |tx: &mut Tx| {
                uia::not_an_administrator(tx, &user_id)?;
                let opened = open(app, tx, &user_id, &login)?;
                devices::opened_by_service(tx, user_id.as_str(), &opened.1)?;
                Ok::<_, Error>(opened)
            };
            let opened = app.store.transact(open).await?.value;
            (user_id, opened.0, opened.1)
        }
        other => return Err(Error::unknown(format!("{other} is no way to log in here"))),
    };
    let mut answer = json!({
        "user_id": user_id,
        "home_server": app.server_name,
        "access_token": grant.access_token,
        "device_id": device_id,
    });
    add_refresh(&mut answer, &grant);
    if let Some(base_url) = &app.config.well_known.client_base_url {
        answer["well_known"] = json!({ "m.homeserver": { "base_url": base_url } });
    }
    Ok(json_response(StatusCode::OK, answer.to_string()))
}

/// The user whose password this is. Whether the name or the password is wrong nobody learns, nor sees in the time.
async fn by_password(app: &App, login: &Login, ip: IpAddr) -> Result<Proof> {
    if let Some(identifier) = &login.identifier
        && identifier.kind != "m.id.user"
    {
        return Err(Error::unknown(format!("{} is no way to name a user here", identifier.kind)));
    }
    let named = login.identifier.as_ref().and_then(|identifier| identifier.user.as_ref()).or(login.user.as_ref());
    let named = named.ok_or_else(|| Error::missing_param("identifier is missing"))?;
    let password = login.password.as_deref().ok_or_else(|| Error::missing_param("password is missing"))?;
    whose_password(app, named, password, ip).await
}

/// That the password is that of the user of this name.
pub(super) async fn whose_password(app: &App, named: &str, password: &str, ip: IpAddr) -> Result<Proof> {
    let named = named.to_ascii_lowercase();
    let user_id = accounts::local_user(&app.server_name, &named);
    let name = user_id.as_ref().map_or(&*named, |user_id| user_id.as_str());
    app.limits.check(Class::Login, Owner::Name(name))?;
    let (guesser, now) = (Guesser::At(ip), app.clock.now_ms());
    app.auth.lockout.check(name, guesser, now)?;
    let proof = password::prove(app, user_id.as_deref(), password).await?;
    app.auth.lockout.note(name, guesser, proof.is_some(), now);
    proof.ok_or_else(password::wrong)
}

/// The user whom an application service logs in: one of its own.
fn by_service(ctx: &RawCtx, login: &Login) -> Result<OwnedUserId> {
    let app = &ctx.app;
    if ctx.requester.is_none() && Credentials::extract(&ctx.headers, ctx.uri.query())?.is_some() {
        return Err(Error::unknown_token());
    }
    let service = service_of(app, ctx.requester.as_ref())?;
    if service.makes_devices {
        return Err(Error::appservice_login_unsupported());
    }
    let named = login.identifier.as_ref().and_then(|identifier| identifier.user.as_ref()).or(login.user.as_ref());
    let named = named.ok_or_else(|| Error::missing_param("identifier is missing"))?;
    let user_id = accounts::local_user(&app.server_name, named).filter(|user_id| service.has_user(user_id));
    user_id.ok_or_else(|| Error::exclusive("This user is not in the namespaces of the application service"))
}

async fn by_token(app: &App, login: &Login) -> Result<(OwnedUserId, Grant, String)> {
    let secret = login.token.as_deref().ok_or_else(|| Error::missing_param("token is missing"))?;
    let opened = app
        .store
        .transact(|tx| {
            let Some(user_id) = tokens::take_login(app, tx, secret)? else { return Ok(None) };
            let user_id = OwnedUserId::try_from(user_id).map_err(Error::internal)?;
            let (grant, device_id) = open(app, tx, &user_id, login)?;
            Ok::<_, Error>(Some((user_id, grant, device_id)))
        })
        .await?
        .value;
    opened.ok_or_else(|| Error::forbidden("This login token is not valid"))
}

fn open(app: &App, tx: &mut Tx, user_id: &OwnedUserId, login: &Login) -> Result<(Grant, String)> {
    accounts::may_log_in(tx, user_id)?;
    let (device_id, name) = (login.device_id.as_deref(), login.initial_device_display_name.as_deref());
    let device_id = devices::log_in(app, tx, user_id.as_str(), device_id, name)?;
    let grant = tokens::open(app, tx, user_id.as_str(), &device_id, login.refresh_token == Some(true))?;
    Ok((grant, device_id))
}

/// Adds what a client needs to refresh, if it may.
pub(crate) fn add_refresh(answer: &mut Value, grant: &Grant) {
    if let Some(refresh_token) = &grant.refresh_token {
        answer["refresh_token"] = json!(refresh_token);
    }
    if let Some(expires_in) = grant.expires_in {
        answer["expires_in_ms"] = json!(u64::try_from(expires_in.as_millis()).unwrap_or(u64::MAX));
    }
}

async fn login_token(ctx: Ctx<get_login_token::v1::Request>) -> Result<get_login_token::v1::Response> {
    let (app, requester) = (&ctx.app, &ctx.requester);
    let passed = uia::check_password(app, requester, "login/get_token".to_owned(), &ctx.body).await?;
    let expires_in: Duration = app.config.auth.login_token_lifetime.get();
    let issue = |tx: &mut Tx| {
        passed.holds(tx)?;
        tokens::issue_login(app, tx, requester.user_id.as_str(), expires_in)
    };
    let login_token = app.store.transact(issue).await?.value;
    Ok(get_login_token::v1::Response::new(expires_in, login_token))
}

async fn refresh(ctx: Ctx<refresh_token::v3::Request>) -> Result<refresh_token::v3::Response> {
    let grant = tokens::refresh(&ctx.app, &ctx.request.refresh_token, tokens::Opened::ByLogin).await?;
    Ok(refresh_token::v3::Response {
        access_token: grant.access_token,
        refresh_token: grant.refresh_token,
        expires_in_ms: grant.expires_in,
    })
}

async fn log_out(ctx: Ctx<logout::v3::Request>) -> Result<logout::v3::Response> {
    let Requester { user_id, .. } = &ctx.requester;
    let device_id = ctx.requester.device()?.as_str();
    ctx.app.store.transact(|tx| devices::delete(tx, user_id.as_str(), device_id)).await?;
    Ok(logout::v3::Response::new())
}

async fn log_out_all(ctx: Ctx<logout_all::v3::Request>) -> Result<logout_all::v3::Response> {
    let user_id = ctx.requester.user_id.as_str();
    ctx.app.store.transact(|tx| devices::delete_others(tx, user_id, None)).await?;
    Ok(logout_all::v3::Response::new())
}

#[cfg(test)]
mod tests {
    use store::Read as _;

    use super::*;
    use crate::testing::{PASSWORD, Server, config};

    const WHOAMI: &str = "/_matrix/client/v3/account/whoami";
    const LOGIN: &str = "/_matrix/client/v3/login";
    const REFRESH: &str = "/_matrix/client/v3/refresh";
    const HOUR: Duration = Duration::from_secs(3_600);

    #[tokio::test]
    async fn a_password_opens_a_session_and_logging_out_ends_it() {
        let server = Server::default();
        server.user("alice").await;
        let alice = server.log_in("alice").await;
        let me = alice.client.get(WHOAMI).await.json();
        assert_eq!(me, json!({ "user_id": "@alice:hs.test", "device_id": alice.device_id }));
        assert_eq!(alice.client.post("/_matrix/client/v3/logout", json!({})).await.status, 200);
        let answer = alice.client.get(WHOAMI).await;
        assert_eq!((answer.status.as_u16(), answer.json().get("soft_logout")), (401, None));
    }

    #[tokio::test]
    async fn too_many_wrong_passwords_close_the_door_for_a_while() {
        let mut config = config();
        config.auth.lockout_failures = 3;
        let server = Server::new(config);
        let alice = server.user("alice").await;
        for _ in 0..3 {
            assert_eq!(server.try_log_in("alice", "wrong horse", json!({})).await.errcode(), "M_FORBIDDEN");
        }
        for name in ["alice", "@alice:hs.test", "Alice"] {
            let refused = server.try_log_in(name, PASSWORD, json!({})).await;
            assert_eq!((refused.status.as_u16(), refused.errcode().as_str()), (429, "M_LIMIT_EXCEEDED"));
            assert!(refused.json()["retry_after_ms"].as_u64().unwrap() > 0);
        }
        assert_eq!(alice.client.get(WHOAMI).await.status, 200, "who is in stays in");
        let path = format!("/_matrix/client/v3/devices/{}", alice.device_id);
        let body = json!({ "auth": alice.auth() });
        let deleted = alice.client.send(Method::DELETE, &path, crate::http::Body::from(body.to_string())).await;
        assert_eq!(deleted.status, 200, "and may change what takes the password: {}", deleted.json());
        server.app.clock.advance(Duration::from_secs(601));
        assert_eq!(server.try_log_in("alice", PASSWORD, json!({})).await.status, 200);
        for _ in 0..3 {
            server.try_log_in("alice", "wrong horse", json!({})).await;
        }
        assert_eq!(server.try_log_in("alice", PASSWORD, json!({})).await.status, 429);
        crate::users::admin::reset_password(&server.app, "alice", "battery staple", false).await.unwrap();
        assert_eq!(server.try_log_in("alice", "battery staple", json!({})).await.status, 200, "a new password is new");
    }

    #[tokio::test]
    async fn names_come_in_three_forms() {
        let server = Server::default();
        server.user("alice").await;
        for name in ["alice", "@alice:hs.test", "Alice"] {
            assert_eq!(server.log_in(name).await.user_id, "@alice:hs.test");
        }
        let old = json!({ "type": "m.login.password", "user": "alice", "password": PASSWORD });
        assert_eq!(server.client.post(LOGIN, old).await.status, 200);
    }

    #[tokio::test]
    async fn a_wrong_password_looks_like_a_wrong_name() {
        let server = Server::default();
        server.user("alice").await;
        let (wrong, nobody) = (
            server.try_log_in("alice", "wrong horse", json!({})).await,
            server.try_log_in("nobody", PASSWORD, json!({})).await,
        );
        assert_eq!((wrong.status.as_u16(), wrong.errcode().as_str()), (403, "M_FORBIDDEN"));
        assert_eq!(wrong.json(), nobody.json());
        assert_eq!(server.try_log_in("@alice:elsewhere.test", PASSWORD, json!({})).await.status, 403);
    }

    #[tokio::test]
    async fn requests_that_make_no_sense_are_refused() {
        let server = Server::default();
        let login = async |body: Value| {
            let answer = server.client.post(LOGIN, body).await;
            (answer.status.as_u16(), answer.errcode())
        };
        let refused = |code: &str| (400, code.to_owned());
        assert_eq!(login(json!({})).await, refused("M_BAD_JSON"));
        assert_eq!(login(json!({ "type": "m.login.magic" })).await, refused("M_UNKNOWN"));
        assert_eq!(login(json!({ "type": "m.login.password", "password": "x" })).await, refused("M_MISSING_PARAM"));
        let phone = json!({ "type": "m.login.password", "identifier": { "type": "m.id.phone" }, "password": "x" });
        assert_eq!(login(phone).await, refused("M_UNKNOWN"));
        let device = json!({ "device_id": "" });
        server.user("alice").await;
        assert_eq!(server.try_log_in("alice", PASSWORD, device).await.errcode(), "M_INVALID_PARAM");
    }

    #[tokio::test]
    async fn pitfall_011_logging_in_on_a_known_device_voids_its_old_tokens() {
        let server = Server::default();
        let first = server.user("alice").await;
        let path = format!("/_matrix/client/v3/devices/{}", first.device_id);
        first.client.put(&path, json!({ "display_name": "mine" })).await;
        let more = json!({ "device_id": first.device_id, "initial_device_display_name": "other" });
        let second = server.log_in_with("alice", more).await;
        assert_eq!(second.device_id, first.device_id);
        assert_eq!(first.client.get(WHOAMI).await.errcode(), "M_UNKNOWN_TOKEN");
        assert_eq!(second.client.get(&path).await.json()["display_name"], "mine");
    }

    #[tokio::test]
    async fn logging_out_everywhere_ends_all_sessions() {
        let server = Server::default();
        let (one, two, bob) = (server.user("alice").await, server.log_in("alice").await, server.user("bob").await);
        assert_eq!(one.client.post("/_matrix/client/v3/logout/all", json!({})).await.status, 200);
        assert_eq!(one.client.get(WHOAMI).await.status, 401);
        assert_eq!(two.client.get(WHOAMI).await.status, 401);
        assert_eq!(bob.client.get(WHOAMI).await.status, 200);
    }

    #[tokio::test]
    async fn two_pairs_of_one_refresh_token_do_not_end_the_session() {
        let server = Server::default();
        server.user("alice").await;
        let login = server.try_log_in("alice", PASSWORD, json!({ "refresh_token": true })).await.json();
        let refresh = async |token: &Value| server.client.post(REFRESH, json!({ "refresh_token": token })).await;
        let pairs = [refresh(&login["refresh_token"]).await.json(), refresh(&login["refresh_token"]).await.json()];
        let whoami = async |pair: &Value| {
            server.client.with_token(pair["access_token"].as_str().unwrap()).get(WHOAMI).await.status.as_u16()
        };
        assert_eq!((whoami(&pairs[0]).await, whoami(&pairs[1]).await), (200, 200));
        let next = refresh(&pairs[0]["refresh_token"]).await;
        assert_eq!(next.status, 200, "{}", next.json());
        assert_eq!(whoami(&next.json()).await, 200);
        assert_eq!(refresh(&pairs[1]["refresh_token"]).await.status, 401, "the other pair was replaced");
    }

    #[tokio::test]
    async fn pitfall_009_an_ended_access_token_is_a_soft_logout_while_the_session_lives() {
        let server = Server::default();
        assert_eq!(server.client.get(WHOAMI).await.errcode(), "M_MISSING_TOKEN");
        assert_eq!(server.client.with_token("ska_nothing").get(WHOAMI).await.errcode(), "M_UNKNOWN_TOKEN");
        server.user("alice").await;
        let login = server.try_log_in("alice", PASSWORD, json!({ "refresh_token": true })).await.json();
        assert_eq!(login["expires_in_ms"], 3_600_000);
        let client = server.client.with_token(login["access_token"].as_str().unwrap());
        server.app.clock.advance(HOUR - Duration::from_millis(1));
        assert_eq!(client.get(WHOAMI).await.status, 200);
        server.app.clock.advance(Duration::from_millis(1));
        let ended = client.get(WHOAMI).await;
        assert_eq!((ended.status.as_u16(), ended.errcode().as_str()), (401, "M_UNKNOWN_TOKEN"));
        assert_eq!(ended.json()["soft_logout"], true);
        // A refresh token is no access token, nor the other way round.
        let refresh = login["refresh_token"].as_str().unwrap();
        assert_eq!(server.client.with_token(refresh).get(WHOAMI).await.errcode(), "M_UNKNOWN_TOKEN");
        let wrong = json!({ "refresh_token": login["access_token"] });
        assert_eq!(server.client.post(REFRESH, wrong).await.errcode(), "M_UNKNOWN_TOKEN");

        let renewed = server.client.post(REFRESH, json!({ "refresh_token": refresh })).await.json();
        let renewed = server.client.with_token(renewed["access_token"].as_str().unwrap());
        assert_eq!(renewed.post("/_matrix/client/v3/logout", json!({})).await.status, 200);
        assert_eq!(client.get(WHOAMI).await.json().get("soft_logout"), None);
    }

    #[tokio::test]
    async fn pitfall_010_a_refresh_token_is_good_until_what_it_got_is_used() {
        let server = Server::default();
        server.user("alice").await;
        let login = server.try_log_in("alice", PASSWORD, json!({ "refresh_token": true })).await.json();
        let refresh = async |token: &Value| server.client.post(REFRESH, json!({ "refresh_token": token })).await;
        // The first answer is lost.
        let lost = refresh(&login["refresh_token"]).await;
        assert_eq!(lost.status, 200);
        let second = refresh(&login["refresh_token"]).await.json();
        // Using the new access token ends the old refresh token, and the one that was lost.
        let client = server.client.with_token(second["access_token"].as_str().unwrap());
        assert_eq!(client.get(WHOAMI).await.status, 200);
        assert_eq!(refresh(&login["refresh_token"]).await.errcode(), "M_UNKNOWN_TOKEN");
        assert_eq!(refresh(&lost.json()["refresh_token"]).await.errcode(), "M_UNKNOWN_TOKEN");
        // So does using the new refresh token.
        let third = refresh(&second["refresh_token"]).await.json();
        let fourth = refresh(&third["refresh_token"]).await.json();
        assert_eq!(refresh(&second["refresh_token"]).await.errcode(), "M_UNKNOWN_TOKEN");
        // A request that was under way with the old access token is not cut off.
        assert_eq!(client.get(WHOAMI).await.status, 200);
        assert_eq!(server.client.with_token(fourth["access_token"].as_str().unwrap()).get(WHOAMI).await.status, 200);
    }

    #[tokio::test]
    async fn a_login_token_logs_in_once_and_soon() {
        let server = Server::default();
        let alice = server.user("alice").await;
        let path = "/_matrix/client/v1/login/get_token";
        assert_eq!(alice.client.post(path, json!({})).await.status, 401);
        let get = async || alice.client.post(path, json!({ "auth": alice.auth() })).await.json();
        let token = get().await;
        assert_eq!(token["expires_in_ms"], 120_000);
        let login = async |token: &Value| {
            let body = json!({ "type": "m.login.token", "token": token["login_token"] });
            server.client.post(LOGIN, body).await
        };
        let answer = login(&token).await;
        assert_eq!(answer.json()["user_id"], "@alice:hs.test");
        assert_ne!(answer.json()["device_id"], json!(alice.device_id));
        assert_eq!(login(&token).await.status, 403);
        let late = get().await;
        server.app.clock.advance(Duration::from_secs(120));
        assert_eq!(login(&late).await.status, 403);
    }

    #[tokio::test]
    async fn guessing_passwords_is_slowed_down() {
        let mut config = config();
        config.rate_limits.login = crate::config::Limit::per_second(0.1, 3);
        let server = Server::new(config);
        server.user("alice").await;
        for _ in 0..3 {
            assert_eq!(server.try_log_in("alice", "wrong horse", json!({})).await.status, 403);
        }
        let refused = server.try_log_in("alice", PASSWORD, json!({})).await;
        assert_eq!(refused.errcode(), "M_LIMIT_EXCEEDED");
        assert!(refused.headers.contains_key("retry-after"));
    }

    #[tokio::test]
    async fn a_locked_account_can_only_log_out() {
        let server = Server::default();
        let alice = server.user("alice").await;
        let lock = |tx: &mut Tx| -> Result<()> {
            let user = tx.get(&crate::schema::USERS, "@alice:hs.test")?.unwrap();
            tx.put(&crate::schema::USERS, "@alice:hs.test", &crate::schema::User { locked: true, ..user });
            Ok(())
        };
        server.app.store.transact(lock).await.unwrap();
        let answer = alice.client.get(WHOAMI).await;
        assert_eq!((answer.errcode().as_str(), &answer.json()["soft_logout"]), ("M_USER_LOCKED", &json!(true)));
        assert_eq!(server.try_log_in("alice", PASSWORD, json!({})).await.errcode(), "M_USER_LOCKED");
        assert_eq!(server.try_log_in("alice", "wrong horse", json!({})).await.errcode(), "M_FORBIDDEN");
        assert_eq!(alice.client.post("/_matrix/client/v3/logout", json!({})).await.status, 200);
    }
}
