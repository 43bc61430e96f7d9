//! What a password has to be like, for clients that say so before somebody chooses one (MSC2000).

use http::{Method, StatusCode};
use serde_json::json;

use crate::error::Result;
use crate::http::{RawCtx, Response, Routes, json_response};

const PATHS: &[&str] = &["/_matrix/client/r0/password_policy", "/_matrix/client/v3/password_policy"];

pub fn routes() -> Routes {
    Routes::default().raw(Method::GET, PATHS, policy)
}

async fn policy(ctx: RawCtx) -> Result<Response> {
    let body = json!({ "m.minimum_length": ctx.app.config.auth.password_min_length });
    Ok(json_response(StatusCode::OK, body.to_string()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::testing::{Server, config};

    #[tokio::test]
    async fn the_policy_is_that_of_the_settings() {
        let mut config = config();
        config.auth.password_min_length = 11;
        let server = Server::new(config);
        let policy = server.client.get("/_matrix/client/v3/password_policy").await.json();
        assert_eq!(policy, json!({ "m.minimum_length": 11 }));
        let body = json!({ "username": "a", "password": "x".repeat(10), "auth": { "type": "m.login.dummy" } });
        assert_eq!(server.client.post("/_matrix/client/v3/register", body).await.errcode(), "M_WEAK_PASSWORD");
    }
}
