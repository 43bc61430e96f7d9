//! Clients register themselves (RFC 7591).

use http::StatusCode;
use serde_json::json;

use super::{answered, secret};
use crate::auth::oauth::clients::{self, Metadata, Registration};
use crate::auth::oauth::{Failure, Reason, Refused};
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response};

pub(super) async fn register(ctx: RawCtx) -> Result<Response> {
    ctx.app.auth.oauth.site()?;
    answered(registered(ctx).await)
}

async fn registered(mut ctx: RawCtx) -> Result<Response, Failure> {
    let said: Registration = match ctx.read_json().await {
        Ok(said) => said,
        Err(error) if error.status() == StatusCode::BAD_REQUEST => {
            return Err(Refused::new(Reason::InvalidClientMetadata, error.message().to_owned()).into());
        }
        Err(error) => return Err(error.into()),
    };
    let metadata = Metadata::new(said)?;
    let client_id = clients::register(&ctx.app, &metadata, ctx.ip).await?;
    let mut body = serde_json::to_value(&metadata).map_err(Error::internal)?;
    body["client_id"] = json!(client_id);
    Ok(secret(StatusCode::CREATED, &body))
}
