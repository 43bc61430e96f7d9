//! Mail addresses and telephone numbers of accounts. There are none: this server sends no mails and asks no identity
//! server, and says so in the way that each endpoint has for it.
//!
//! The list of one's addresses, which is empty, is in `account`.

use http::{Method, StatusCode};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::json;

use crate::auth::Access;
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response, Routes, json_response};
use crate::limits::Class;

macro_rules! versions {
    ($rest:literal) => {
        &[concat!("/_matrix/client/r0/", $rest), concat!("/_matrix/client/v3/", $rest)]
    };
}

pub fn routes() -> Routes {
    let token = |routes: Routes| routes.access(Access::Token).limit(Class::Other);
    let routes = Routes::default();
    let routes = token(routes.raw(Method::POST, versions!("account/3pid"), add));
    let routes = token(routes.raw(Method::POST, versions!("account/3pid/add"), add));
    let routes = token(routes.raw(Method::POST, versions!("account/3pid/bind"), bind));
    let routes = token(routes.raw(Method::POST, versions!("account/3pid/unbind"), unbind));
    let routes = token(routes.raw(Method::POST, versions!("account/3pid/delete"), delete));
    let mut routes = routes;
    for paths in [
        versions!("register/email/requestToken"),
        versions!("register/msisdn/requestToken"),
        versions!("account/3pid/email/requestToken"),
        versions!("account/3pid/msisdn/requestToken"),
    ] {
        routes = routes.raw(Method::POST, paths, request_token).limit(Class::Register);
    }
    for paths in [versions!("account/password/email/requestToken"), versions!("account/password/msisdn/requestToken")] {
        routes = routes.raw(Method::POST, paths, request_token_for_password).limit(Class::Register);
    }
    routes
}

#[derive(Deserialize)]
struct Asked {
    id_server: Option<String>,
}

/// Nothing is sent to an address, so none can be shown to be one's own.
async fn request_token(mut ctx: RawCtx) -> Result<Response> {
    let asked: Asked = ctx.read_json().await?;
    Err(if asked.id_server.is_some() { Error::server_not_trusted() } else { Error::no_such_medium() })
}

async fn request_token_for_password(mut ctx: RawCtx) -> Result<Response> {
    let asked: Asked = ctx.read_json().await?;
    Err(if asked.id_server.is_some() { Error::server_not_trusted() } else { Error::no_such_address() })
}

/// What the capability `m.3pid_changes` says.
async fn add(mut ctx: RawCtx) -> Result<Response> {
    let _: serde_json::Map<String, serde_json::Value> = ctx.read_json().await?;
    Err(Error::forbidden("Accounts have no addresses here"))
}

#[derive(Deserialize)]
struct Bind {
    #[serde(rename = "id_server")]
    _id_server: String,
    #[serde(rename = "sid")]
    _sid: IgnoredAny,
}

async fn bind(mut ctx: RawCtx) -> Result<Response> {
    let _: Bind = ctx.read_json().await?;
    Err(Error::server_not_trusted())
}

#[derive(Deserialize)]
struct Which {
    #[serde(rename = "medium")]
    _medium: String,
    #[serde(rename = "address")]
    _address: String,
}

/// No identity server is told of anything, which is what the answer says.
async fn unbind(mut ctx: RawCtx) -> Result<Response> {
    let _: Which = ctx.read_json().await?;
    Ok(json_response(StatusCode::OK, json!({ "id_server_unbind_result": "no-support" }).to_string()))
}

async fn delete(mut ctx: RawCtx) -> Result<Response> {
    let _: Which = ctx.read_json().await?;
    Err(Error::not_found("This account has no such address"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::client::testing::*;
    use crate::testing::Server;

    #[tokio::test]
    async fn every_endpoint_says_in_its_own_way_that_there_are_no_addresses() {
        let server = Server::default();
        let [alice] = users(&server).await;
        let address = json!({ "medium": "email", "address": "a@b.test", "client_secret": "s", "sid": "1" });
        let post = async |path: &str, id_server: bool| {
            let mut body = address.clone();
            if id_server {
                body["id_server"] = json!("id.test");
            }
            let answer = alice.client.post(&format!("/_matrix/client/v3/{path}"), body).await;
            (answer.status.as_u16(), answer.json()["errcode"].as_str().unwrap_or_default().to_owned())
        };
        let refusal = |status: u16, code: &str| (status, code.to_owned());
        for path in ["register/email/requestToken", "account/3pid/msisdn/requestToken"] {
            assert_eq!(post(path, false).await, refusal(400, "M_THREEPID_MEDIUM_NOT_SUPPORTED"), "{path}");
            assert_eq!(post(path, true).await, refusal(400, "M_SERVER_NOT_TRUSTED"), "{path}");
        }
        let none = ok(&alice.client.get("/_matrix/client/v3/account/3pid").await);
        assert_eq!(none, json!({ "threepids": [] }));
        let password = "account/password/email/requestToken";
        assert_eq!(post(password, false).await, refusal(400, "M_THREEPID_NOT_FOUND"));
        assert_eq!(post("account/3pid/add", false).await, forbidden());
        assert_eq!(post("account/3pid/bind", true).await, refusal(400, "M_SERVER_NOT_TRUSTED"));
        assert_eq!(post("account/3pid/bind", false).await, refusal(400, "M_BAD_JSON"));
        assert_eq!(post("account/3pid/delete", false).await, not_found());
        assert_eq!(post("account/3pid/unbind", false).await, refusal(200, ""));
        let nobody = server.client.post("/_matrix/client/v3/account/3pid/add", json!({})).await;
        assert_eq!(nobody.errcode(), "M_MISSING_TOKEN");
    }
}
