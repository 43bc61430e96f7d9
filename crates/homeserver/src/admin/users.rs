//! Accounts, for administrators at the machine.

use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;

use crate::error::Result;
use crate::http::{RawCtx, Response, Routes, json_response};
use crate::users::admin;

pub fn routes() -> Routes {
    Routes::default()
        .raw(Method::POST, &["/users"], create)
        .raw(Method::POST, &["/users/{user}/password"], reset_password)
        .raw(Method::POST, &["/users/{user}/deactivate"], deactivate)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Create {
    username: String,
    password: Option<String>,
    #[serde(default)]
    admin: bool,
}

async fn create(mut ctx: RawCtx) -> Result<Response> {
    let body: Create = ctx.read_json().await?;
    let password = Password::given_or_made(&ctx, body.password);
    let user_id = admin::create(&ctx.app, &body.username, &password.text, body.admin).await?;
    tracing::info!(%user_id, admin = body.admin, "an administrator opened an account");
    Ok(password.answer(user_id.as_str()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reset {
    password: Option<String>,
    #[serde(default = "yes")]
    log_out: bool,
}

async fn reset_password(mut ctx: RawCtx) -> Result<Response> {
    let body: Reset = ctx.read_json().await?;
    let password = Password::given_or_made(&ctx, body.password);
    let user_id = admin::reset_password(&ctx.app, ctx.arg(0), &password.text, body.log_out).await?;
    tracing::info!(%user_id, "an administrator set a new password");
    Ok(password.answer(user_id.as_str()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Deactivate {
    #[serde(default)]
    erase: bool,
}

async fn deactivate(mut ctx: RawCtx) -> Result<Response> {
    let body: Deactivate = ctx.read_json().await?;
    let user_id = admin::deactivate(&ctx.app, ctx.arg(0), body.erase).await?;
    tracing::info!(%user_id, "an administrator closed an account");
    Ok(json_response(StatusCode::OK, json!({ "user_id": user_id }).to_string()))
}

fn yes() -> bool {
    true
}

/// A password that was given, or one that is made here and shown this once.
struct Password {
    text: String,
    made: bool,
}

impl Password {
    fn given_or_made(ctx: &RawCtx, given: Option<String>) -> Self {
        let longest_asked = ctx.app.config.auth.password_min_length.max(16);
        match given {
            Some(text) => Self { text, made: false },
            None => Self { text: ctx.app.rng.alphanumeric(longest_asked), made: true },
        }
    }

    fn answer(&self, user_id: &str) -> Response {
        let mut body = json!({ "user_id": user_id });
        if self.made {
            body["password"] = json!(self.text);
        }
        json_response(StatusCode::OK, body.to_string())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::App;
    use crate::config::Config;
    use crate::http::{Local, Router};

    async fn log_in(client: &Local, password: &Value) -> u16 {
        let identifier = json!({"type": "m.id.user", "user": "alice"});
        let body = json!({"type": "m.login.password", "identifier": identifier, "password": password});
        client.post("/_matrix/client/v3/login", body).await.status.as_u16()
    }

    #[tokio::test]
    async fn an_account_from_its_opening_to_its_end() {
        let app = App::in_memory(Config::new(ruma::owned_server_name!("hs.test")));
        let client = Local::new(app.router());
        let admin = Local::new(Router::new(app, routes()).unwrap());
        let made = admin.post("/users", json!({"username": "alice"})).await.json();
        assert_eq!(made["user_id"], "@alice:hs.test");
        assert_eq!(log_in(&client, &made["password"]).await, 200);
        assert_eq!(admin.post("/users", json!({"username": "alice"})).await.errcode(), "M_USER_IN_USE");
        assert_eq!(admin.post("/users", json!({"username": "b", "pass": 1})).await.errcode(), "M_BAD_JSON");

        let given = json!("correct horse battery");
        let reset = admin.post("/users/alice/password", json!({"password": given})).await;
        assert_eq!((reset.status, reset.json().get("password")), (StatusCode::OK, None));
        assert_eq!(log_in(&client, &made["password"]).await, 403);
        assert_eq!(log_in(&client, &given).await, 200);

        assert_eq!(admin.post("/users/@alice:hs.test/deactivate", json!({})).await.status, StatusCode::OK);
        assert_eq!(log_in(&client, &given).await, 403);
        assert_eq!(admin.post("/users/nobody/deactivate", json!({})).await.errcode(), "M_NOT_FOUND");
    }
}
