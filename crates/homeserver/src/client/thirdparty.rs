//! Other networks: there are none here, and that is what clients are told.

use http::{Method, StatusCode};

use crate::auth::Access;
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response, Routes, json_response};

pub fn routes() -> Routes {
    Routes::default()
        .raw(
            Method::GET,
            &["/_matrix/client/r0/thirdparty/protocols", "/_matrix/client/v3/thirdparty/protocols"],
            protocols,
        )
        .access(Access::Token)
        .raw(
            Method::GET,
            &[
                "/_matrix/client/r0/thirdparty/protocol/{protocol}",
                "/_matrix/client/v3/thirdparty/protocol/{protocol}",
                "/_matrix/client/r0/thirdparty/location/{protocol}",
                "/_matrix/client/v3/thirdparty/location/{protocol}",
                "/_matrix/client/r0/thirdparty/user/{protocol}",
                "/_matrix/client/v3/thirdparty/user/{protocol}",
                "/_matrix/client/r0/thirdparty/location",
                "/_matrix/client/v3/thirdparty/location",
                "/_matrix/client/r0/thirdparty/user",
                "/_matrix/client/v3/thirdparty/user",
            ],
            nothing,
        )
        .access(Access::Token)
}

async fn protocols(_: RawCtx) -> Result<Response> {
    Ok(json_response(StatusCode::OK, "{}"))
}

async fn nothing(_: RawCtx) -> Result<Response> {
    Err(Error::not_found("No other network is connected to this server"))
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
