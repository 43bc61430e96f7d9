//! Opening accounts with a secret that the settings hold, for programs: the endpoint that other servers have for this.
//!
//! Who knows the secret signs a nonce together with what is asked for. Off unless a secret is set.

use http::{Method, StatusCode};
use ring::hmac;
use serde::Deserialize;
use serde_json::json;
use store::Tx;

use crate::App;
use crate::auth::devices;
use crate::auth::tokens::{self, Grant};
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response, Routes, json_response};
use crate::users::accounts::{self, NewAccount, Opener};
use crate::users::profiles;

const PATH: &[&str] = &["/_synapse/admin/v1/register"];

pub fn routes() -> Routes {
    Routes::default().raw(Method::GET, PATH, nonce).raw(Method::POST, PATH, register)
}

async fn nonce(ctx: RawCtx) -> Result<Response> {
    secret(&ctx.app)?;
    Ok(json_response(StatusCode::OK, json!({ "nonce": ctx.app.auth.nonces.make(&ctx.app) }).to_string()))
}

#[derive(Deserialize)]
struct Register {
    nonce: String,
    username: String,
    password: String,
    #[serde(default)]
    admin: bool,
    user_type: Option<String>,
    displayname: Option<String>,
    /// HMAC-SHA1 in hexadecimal digits.
    mac: String,
}

async fn register(mut ctx: RawCtx) -> Result<Response> {
    secret(&ctx.app)?;
    let asked: Register = ctx.read_json().await?;
    let app = &ctx.app;
    if !app.auth.nonces.take(app, &asked.nonce) {
        return Err(Error::unknown("The nonce is unknown or has ended"));
    }
    if !asked.is_signed(secret(app)?) {
        return Err(Error::forbidden("The mac is wrong"));
    }
    let user_id = accounts::user_id_for_new(app, &asked.username)?;
    accounts::check_free(app, &user_id, &Opener::Administrator)?;
    app.auth.passwords.acceptable(&asked.password)?;
    let password_hash = Some(app.auth.passwords.hash(&asked.password).await?);
    let new = NewAccount { password_hash, admin: asked.admin, opener: Opener::Administrator, ..NewAccount::default() };
    let open = |tx: &mut Tx| -> Result<(Grant, String)> {
        accounts::open(app, tx, &user_id, new.clone())?;
        if let Some(displayname) = &asked.displayname {
            profiles::set(tx, &user_id, profiles::DISPLAYNAME, Some(&json!(displayname)))?;
        }
        let device_id = devices::log_in(app, tx, user_id.as_str(), None, None)?;
        Ok((tokens::open(app, tx, user_id.as_str(), &device_id, false)?, device_id))
    };
    let (grant, device_id) = app.store.transact(open).await?.value;
    let answer = json!({
        "user_id": user_id,
        "home_server": app.server_name,
        "access_token": grant.access_token,
        "device_id": device_id,
    });
    Ok(json_response(StatusCode::OK, answer.to_string()))
}

/// Without a secret there is no such endpoint.
fn secret(app: &App) -> Result<&str> {
    let secret = app.config.registration.shared_secret.as_deref().filter(|secret| !secret.is_empty());
    secret.ok_or_else(Error::unrecognized)
}

impl Register {
    fn is_signed(&self, secret: &str) -> bool {
        let Some(mac) = from_hex(&self.mac) else { return false };
        let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret.as_bytes());
        let admin = if self.admin { "admin" } else { "notadmin" };
        let mut signed = [&self.nonce, &self.username, &self.password, admin].join("\0");
        if let Some(user_type) = &self.user_type {
            signed = format!("{signed}\0{user_type}");
        }
        hmac::verify(&key, signed.as_bytes(), &mac).is_ok()
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).map(|digit| digit as u8)).collect();
    let digits = digits.filter(|digits| digits.len() % 2 == 0)?;
    Some(digits.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::Value;

    use super::*;
    use crate::config::RegistrationMode;
    use crate::testing::{PASSWORD, Server, config};

    fn server() -> Server {
        let mut config = config();
        config.registration.mode = RegistrationMode::Closed;
        config.registration.shared_secret = Some("hush".to_owned());
        Server::new(config)
    }

    async fn nonce(server: &Server) -> String {
        server.client.get(PATH[0]).await.json()["nonce"].as_str().unwrap().to_owned()
    }

    fn signed(nonce: &str, name: &str, admin: bool) -> Value {
        let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, b"hush");
        let text = format!("{nonce}\0{name}\0{PASSWORD}\0{}", if admin { "admin" } else { "notadmin" });
        let mac: String = hmac::sign(&key, text.as_bytes()).as_ref().iter().map(|b| format!("{b:02x}")).collect();
        json!({ "nonce": nonce, "username": name, "password": PASSWORD, "admin": admin, "mac": mac })
    }

    #[tokio::test]
    async fn who_knows_the_secret_opens_an_account_on_a_closed_server() {
        let server = server();
        let body = signed(&nonce(&server).await, "alice", true);
        let answer = server.client.post(PATH[0], body.clone()).await.json();
        assert_eq!(answer["user_id"], "@alice:hs.test");
        let alice = server.client.with_token(answer["access_token"].as_str().unwrap());
        let me = alice.get("/_matrix/client/v3/account/whoami").await.json();
        assert_eq!(me["device_id"], answer["device_id"]);
        assert_eq!(server.client.post(PATH[0], body).await.status, 400, "a nonce is good once");
    }

    #[tokio::test]
    async fn nobody_else_does() {
        let server = server();
        let refuse = async |body: Value| server.client.post(PATH[0], body).await.status.as_u16();
        let mut promoted = signed(&nonce(&server).await, "alice", false);
        promoted["admin"] = json!(true);
        assert_eq!(refuse(promoted).await, 403);
        let mut garbled = signed(&nonce(&server).await, "alice", false);
        garbled["mac"] = json!("ä");
        assert_eq!(refuse(garbled).await, 403);
        assert_eq!(refuse(signed("made up", "alice", false)).await, 400);
        let late = signed(&nonce(&server).await, "alice", false);
        server.app.clock.advance(Duration::from_secs(60));
        assert_eq!(refuse(late).await, 400);
    }

    #[tokio::test]
    async fn without_a_secret_there_is_no_such_endpoint() {
        let server = Server::default();
        assert_eq!(server.client.get(PATH[0]).await.errcode(), "M_UNRECOGNIZED");
        let body = signed("x", "alice", false);
        assert_eq!(server.client.post(PATH[0], body).await.errcode(), "M_UNRECOGNIZED");
    }

    #[test]
    fn hexadecimal_digits_are_bytes() {
        assert_eq!(from_hex("00fFa0"), Some(vec![0, 255, 160]));
        assert_eq!(from_hex("0"), None);
        assert_eq!(from_hex("0g"), None);
    }
}
