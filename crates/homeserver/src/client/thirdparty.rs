//! Other networks (spec: Third-party networks): what application services bridge, and whom and what they know there.

use http::{Method, StatusCode};
use serde_json::Value;

use crate::appservice::queries;
use crate::auth::Access;
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response, Routes, json_response};
use crate::limits::Class;

pub fn routes() -> Routes {
    Routes::default()
        .raw(
            Method::GET,
            &["/_matrix/client/r0/thirdparty/protocols", "/_matrix/client/v3/thirdparty/protocols"],
            protocols,
        )
        .access(Access::Token)
        .limit(Class::Other)
        .raw(
            Method::GET,
            &["/_matrix/client/r0/thirdparty/protocol/{protocol}", "/_matrix/client/v3/thirdparty/protocol/{protocol}"],
            protocol,
        )
        .access(Access::Token)
        .limit(Class::Other)
        .raw(
            Method::GET,
            &[
                "/_matrix/client/r0/thirdparty/location/{protocol}",
                "/_matrix/client/v3/thirdparty/location/{protocol}",
                "/_matrix/client/r0/thirdparty/location",
                "/_matrix/client/v3/thirdparty/location",
            ],
            locations,
        )
        .access(Access::Token)
        .limit(Class::Other)
        .raw(
            Method::GET,
            &[
                "/_matrix/client/r0/thirdparty/user/{protocol}",
                "/_matrix/client/v3/thirdparty/user/{protocol}",
                "/_matrix/client/r0/thirdparty/user",
                "/_matrix/client/v3/thirdparty/user",
            ],
            users,
        )
        .access(Access::Token)
        .limit(Class::Other)
}

async fn protocols(ctx: RawCtx) -> Result<Response> {
    let found = queries::protocols(&ctx.app).await;
    Ok(json_response(StatusCode::OK, Value::Object(found).to_string()))
}

async fn protocol(ctx: RawCtx) -> Result<Response> {
    let found = queries::protocol(&ctx.app, ctx.arg(0)).await.ok_or_else(nothing)?;
    Ok(json_response(StatusCode::OK, found.to_string()))
}

async fn locations(ctx: RawCtx) -> Result<Response> {
    lookup(ctx, "location").await
}

async fn users(ctx: RawCtx) -> Result<Response> {
    lookup(ctx, "user").await
}

async fn lookup(ctx: RawCtx, kind: &str) -> Result<Response> {
    let protocol = Some(ctx.arg(0)).filter(|protocol| !protocol.is_empty());
    let found = queries::lookup(&ctx.app, kind, protocol, ctx.uri.query().unwrap_or_default()).await?;
    Ok(json_response(StatusCode::OK, Value::Array(found.ok_or_else(nothing)?).to_string()))
}

fn nothing() -> Error {
    Error::not_found("No such network is connected to this server")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::client::testing::*;
    use crate::testing::Server;

    #[tokio::test]
    async fn nobody_is_promised_another_network() {
        let server = Server::default();
        let [alice] = users(&server).await;
        let get = async |rest: &str| alice.client.get(&format!("/_matrix/client/v3/thirdparty/{rest}")).await;
        assert_eq!(ok(&get("protocols").await), json!({}));
        for rest in
            ["protocol/irc", "location/irc?channel=a", "user/irc", "location?alias=%23a:b", "user?userid=%40a:b"]
        {
            assert_eq!(refused(&get(rest).await), not_found(), "{rest}");
        }
        let answer = server.client.get("/_matrix/client/v3/thirdparty/protocols").await;
        assert_eq!(refused(&answer), (401, "M_MISSING_TOKEN".to_owned()));
    }
}
