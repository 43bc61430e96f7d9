//! Previews of URLs. How they are made lives in `crate::previews`.

use http::{Method, StatusCode};

use crate::auth::Access;
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response, Routes, json_response};
use crate::limits::Class;
use crate::previews;

const PATHS: &[&str] = &[
    "/_matrix/client/v1/media/preview_url",
    "/_matrix/media/v3/preview_url",
    "/_matrix/media/r0/preview_url",
    "/_matrix/media/v1/preview_url",
];

pub fn routes() -> Routes {
    Routes::default().raw(Method::GET, PATHS, preview_url).access(Access::Token).limit(Class::Media)
}

async fn preview_url(ctx: RawCtx) -> Result<Response> {
    // The time a preview is wanted for is a wish: what there is, is the newest.
    if ctx.query_value("ts").is_some_and(|ts| ts.parse::<i64>().is_err()) {
        return Err(Error::invalid_param("ts is not a number"));
    }
    let url = ctx.query_value("url").ok_or_else(|| Error::missing_param("url is missing"))?;
    let body = previews::of(&ctx.app, &ctx.requester()?.user_id, &url).await?;
    Ok(json_response(StatusCode::OK, body))
}
