//! Where the authorization server is and what it can do (RFC 8414).

use http::StatusCode;
use serde_json::json;

use crate::auth::oauth::clients::{CODE, DEVICE_CODE, REFRESH};
use crate::config::RegistrationMode;
use crate::error::Result;
use crate::http::{RawCtx, Response, json_response};

/// The specification's own, the one before it, and the one that general libraries look for.
pub(super) const PATHS: &[&str] = &[
    "/.well-known/openid-configuration",
    "/_matrix/client/unstable/org.matrix.msc2965/auth_metadata",
    "/_matrix/client/v1/auth_metadata",
];

/// What the account page understands. Profiles are changed by clients.
const ACTIONS: &[&str] = &[
    "org.matrix.devices_list",
    "org.matrix.device_view",
    "org.matrix.device_delete",
    "org.matrix.account_deactivate",
    "org.matrix.cross_signing_reset",
    "org.matrix.sessions_list",
    "org.matrix.session_view",
    "org.matrix.session_end",
];

pub(super) async fn metadata(ctx: RawCtx) -> Result<Response> {
    let site = ctx.app.auth.oauth.site()?;
    let mut body = json!({
        "issuer": site.issuer(),
        "authorization_endpoint": site.url("/oauth2/authorize"),
        "token_endpoint": site.url("/oauth2/token"),
        "revocation_endpoint": site.url("/oauth2/revoke"),
        "registration_endpoint": site.url("/oauth2/registration"),
        "device_authorization_endpoint": site.url("/oauth2/device"),
        "response_types_supported": ["code"],
        "response_modes_supported": ["query", "fragment"],
        "grant_types_supported": [CODE, REFRESH, DEVICE_CODE],
        "code_challenge_methods_supported": ["S256"],
        "token_endpoint_auth_methods_supported": ["none"],
        "revocation_endpoint_auth_methods_supported": ["none"],
        "account_management_uri": site.url("/account"),
        "account_management_actions_supported": ACTIONS,
    });
    if ctx.app.config.registration.mode != RegistrationMode::Closed {
        body["prompt_values_supported"] = json!(["create"]);
    }
    Ok(json_response(StatusCode::OK, body.to_string()))
}
