//! Application services, for administrators at the machine: how they stand, and going on without what one will not take.

use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;

use crate::appservice::waiting;
use crate::config::registrations::Registration;
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response, Routes, json_response};

pub fn routes() -> Routes {
    Routes::default().raw(Method::GET, &["/services"], list).raw(Method::GET, &["/services/{service}"], show).raw(
        Method::POST,
        &["/services/{service}/skip"],
        skip,
    )
}

async fn list(ctx: RawCtx) -> Result<Response> {
    let app = &ctx.app;
    let all = app.appservices.iter().map(|service| waiting::describe(app, service)).collect::<Result<Vec<_>>>()?;
    Ok(json_response(StatusCode::OK, json!({ "services": all }).to_string()))
}

async fn show(ctx: RawCtx) -> Result<Response> {
    Ok(json_response(StatusCode::OK, waiting::describe(&ctx.app, named(&ctx)?)?.to_string()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Skip {
    /// The number of the transaction: nobody skips what they have not seen.
    transaction: u64,
}

async fn skip(mut ctx: RawCtx) -> Result<Response> {
    let body: Skip = ctx.read_json().await?;
    let service = named(&ctx)?;
    let skipped = waiting::skip(&ctx.app, service, body.transaction).await?;
    tracing::warn!(service = service.id, %skipped, "an administrator skipped a transaction of an application service");
    Ok(json_response(StatusCode::OK, json!({ "skipped": skipped }).to_string()))
}

fn named(ctx: &RawCtx) -> Result<&Registration> {
    let service = ctx.app.appservices.by_id(ctx.arg(0));
    service.map(AsRef::as_ref).ok_or_else(|| Error::not_found("There is no application service of this ID"))
}
