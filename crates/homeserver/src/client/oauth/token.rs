//! Tokens for codes, for devices and for older tokens; and their end (RFC 6749, 7009, 8628).

use http::StatusCode;
use serde_json::json;

use super::fields::Fields;
use super::{answered, secret};
use crate::auth::oauth::clients::{self, CODE, DEVICE_CODE, REFRESH};
use crate::auth::oauth::grants::{self, Session};
use crate::auth::oauth::scope::Scope;
use crate::auth::oauth::{Failure, Reason, Refused};
use crate::error::Result;
use crate::http::{RawCtx, Response};

pub(super) async fn token(mut ctx: RawCtx) -> Result<Response> {
    ctx.app.auth.oauth.site()?;
    let granted = async {
        let fields = Fields::read(&mut ctx).await?;
        let (app, grant_type, client_id) = (&ctx.app, fields.need("grant_type")?, fields.need("client_id")?);
        if ![CODE, REFRESH, DEVICE_CODE].contains(&grant_type) {
            return Err(Refused::new(Reason::UnsupportedGrantType, "This grant type is not known here").into());
        }
        let client = clients::find(&app.store.snapshot(), client_id)?.ok_or_else(unknown_client)?;
        // A device that refreshes its token needs no leave for it.
        if grant_type != REFRESH && !client.may(grant_type) {
            return Err(Refused::new(Reason::UnauthorizedClient, "The client did not register this grant type").into());
        }
        let session = match grant_type {
            CODE => {
                let (code, uri) = (fields.need("code")?, fields.need("redirect_uri")?);
                grants::redeem(app, code, client_id, uri, fields.need("code_verifier")?).await?
            }
            REFRESH => grants::refresh(app, fields.need("refresh_token")?, client_id).await?,
            _ => grants::poll(app, fields.need("device_code")?, client_id).await?,
        };
        Ok(opened(&session))
    };
    answered(granted.await)
}

fn opened(session: &Session) -> Response {
    let grant = &session.grant;
    let body = json!({
        "access_token": grant.access_token,
        "token_type": "Bearer",
        "expires_in": grant.expires_in.map(|lifetime| lifetime.as_secs()),
        "refresh_token": grant.refresh_token,
        "scope": session.scope,
    });
    secret(StatusCode::OK, &body)
}

/// Whoever has a token may end its session, also who found it somewhere.
pub(super) async fn revoke(mut ctx: RawCtx) -> Result<Response> {
    ctx.app.auth.oauth.site()?;
    let revoked = async {
        let fields = Fields::read(&mut ctx).await?;
        grants::revoke(&ctx.app, fields.need("token")?).await?;
        Ok(secret(StatusCode::OK, &json!({})))
    };
    answered(revoked.await)
}

/// A device without a browser asks for its user.
pub(super) async fn device(mut ctx: RawCtx) -> Result<Response> {
    let site = ctx.app.auth.oauth.site()?.clone();
    let asked = async {
        let fields = Fields::read(&mut ctx).await?;
        let (app, client_id) = (&ctx.app, fields.need("client_id")?);
        let client = clients::find(&app.store.snapshot(), client_id)?.ok_or_else(unknown_client)?;
        if !client.may(DEVICE_CODE) {
            return Err(Refused::new(Reason::UnauthorizedClient, "The client did not register this grant type").into());
        }
        let scope = Scope::parse(fields.text("scope"))?;
        let codes = grants::ask(app, client_id, scope, ctx.ip)?;
        let query = Fields::of(&[("user_code", &codes.user_code)]).encode();
        let body = json!({
            "device_code": codes.device_code,
            "user_code": codes.user_code,
            "verification_uri": site.url("/oauth2/link"),
            "verification_uri_complete": site.url(&format!("/oauth2/link?{query}")),
            "expires_in": grants::DEVICE_LIFETIME_MS / 1000,
            "interval": grants::POLL_INTERVAL_MS / 1000,
        });
        Ok(secret(StatusCode::OK, &body))
    };
    answered(asked.await)
}

fn unknown_client() -> Failure {
    Refused::new(Reason::InvalidClient, "This client is not registered here").into()
}
