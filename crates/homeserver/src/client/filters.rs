//! Sync filters: kept here, used by sync.

use http::{Method, StatusCode};
use ruma::api::client::filter::create_filter;
use store::Tx;

use crate::auth::Access;
use crate::client::account_data::own;
use crate::error::{Error, Result};
use crate::http::{Ctx, RawCtx, Response, Routes, json_response};
use crate::users::filters;

pub fn routes() -> Routes {
    let paths = &[
        "/_matrix/client/r0/user/{user_id}/filter/{filter_id}",
        "/_matrix/client/v3/user/{user_id}/filter/{filter_id}",
    ];
    Routes::default().ruma(create).guests().raw(Method::GET, paths, get).access(Access::Token).guests()
}

/// That the filter is one was found out when the request was read.
async fn create(ctx: Ctx<create_filter::v3::Request>) -> Result<create_filter::v3::Response> {
    own(&ctx.requester, &ctx.request.user_id)?;
    let create = |tx: &mut Tx| filters::create(tx, &ctx.requester.user_id, &ctx.body);
    let id = ctx.app.store.transact(create).await?.value;
    Ok(create_filter::v3::Response::new(id.to_string()))
}

async fn get(ctx: RawCtx) -> Result<Response> {
    let requester = ctx.requester()?;
    own(requester, <&ruma::UserId>::try_from(ctx.arg(0))?)?;
    let filter = filters::get(&ctx.app.store.snapshot(), &requester.user_id, ctx.arg(1))?;
    let filter = filter.ok_or_else(|| Error::not_found("There is no such filter"))?;
    Ok(json_response(StatusCode::OK, filter))
}
