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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::testing::Server;

    #[tokio::test]
    async fn a_filter_is_kept_once_as_it_was_sent() {
        let server = Server::default();
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let path = "/_matrix/client/v3/user/@alice:hs.test/filter";
        let filter = json!({ "room": { "timeline": { "limit": 10 } }, "org.example.more": true });
        let id = alice.client.post(path, filter.clone()).await.json()["filter_id"].as_str().unwrap().to_owned();
        assert!(!id.starts_with('{'));
        assert_eq!(alice.client.post(path, filter.clone()).await.json()["filter_id"], id);
        assert_eq!(alice.client.get(&format!("{path}/{id}")).await.json(), filter);
        assert_ne!(alice.client.post(path, json!({})).await.json()["filter_id"], id);
        for missing in ["1", "x", "-1"] {
            assert_eq!(alice.client.get(&format!("{path}/{missing}")).await.errcode(), "M_NOT_FOUND");
        }
        assert_eq!(bob.client.get(&format!("{path}/{id}")).await.errcode(), "M_FORBIDDEN");
        assert_eq!(bob.client.post(path, filter).await.errcode(), "M_FORBIDDEN");
        let wrong = alice.client.post(path, json!({ "room": { "timeline": { "limit": "ten" } } })).await;
        assert_eq!((wrong.status.as_u16(), wrong.errcode().as_str()), (400, "M_BAD_JSON"));
        let large = json!({ "org.example.more": "x".repeat(70_000) });
        assert_eq!(alice.client.post(path, large).await.status, 413);
    }
}
