//! Registration tokens. Those of the settings are not among them: they are changed there.

use http::Method;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use store::{Read, Tx};

use super::{done, ok};
use crate::App;
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response, Routes};
use crate::schema::{REGISTRATION_TOKENS, RegistrationToken};

const DEFAULT_LENGTH: usize = 16;
const MAX_LENGTH: usize = 64;

pub(super) fn routes() -> Routes {
    const ALL: &str = "/_synapse/admin/v1/registration_tokens";
    const NEW: &str = "/_synapse/admin/v1/registration_tokens/new";
    const ONE: &str = "/_synapse/admin/v1/registration_tokens/{token}";
    Routes::default()
        .raw(Method::GET, &[ALL], list)
        .raw(Method::POST, &[NEW], create)
        .raw(Method::GET, &[ONE], get)
        .raw(Method::PUT, &[ONE], update)
        .raw(Method::DELETE, &[ONE], delete)
}

#[derive(Deserialize)]
struct Query {
    valid: Option<bool>,
}

async fn list(ctx: RawCtx) -> Result<Response> {
    let query: Query = ctx.query()?;
    let (read, now) = (ctx.app.store.snapshot(), ctx.app.clock.now_ms());
    let mut tokens = Vec::new();
    for row in read.scan(&REGISTRATION_TOKENS, REGISTRATION_TOKENS.all()) {
        let (name, token) = row?;
        if query.valid.is_none_or(|valid| valid == token.usable(now)) {
            tokens.push(describe(&name, &token));
        }
    }
    ok(&json!({ "registration_tokens": tokens }))
}

/// Nothing is pending: a use counts when the account is opened.
fn describe(name: &str, token: &RegistrationToken) -> Value {
    json!({
        "token": name,
        "uses_allowed": token.uses_allowed,
        "pending": 0,
        "completed": token.completed,
        "expiry_time": token.expires_ts,
    })
}

async fn get(ctx: RawCtx) -> Result<Response> {
    let token = ctx.app.store.snapshot().get(&REGISTRATION_TOKENS, ctx.arg(0))?.ok_or_else(unknown)?;
    ok(&describe(ctx.arg(0), &token))
}

#[derive(Deserialize)]
struct Create {
    token: Option<String>,
    length: Option<usize>,
    uses_allowed: Option<u64>,
    expiry_time: Option<u64>,
}

async fn create(mut ctx: RawCtx) -> Result<Response> {
    let asked: Create = ctx.read_json().await?;
    let app = &ctx.app;
    check_expiry(app, asked.expiry_time)?;
    let name = match asked.token.filter(|name| !name.is_empty()) {
        Some(name) => name,
        None => match asked.length.unwrap_or(DEFAULT_LENGTH) {
            length @ 1..=MAX_LENGTH => app.rng.alphanumeric(length),
            _ => return Err(Error::invalid_param("A token has 1 to 64 characters")),
        },
    };
    let fits = |c: char| c.is_ascii_alphanumeric() || "._~-".contains(c);
    if name.len() > MAX_LENGTH || !name.chars().all(fits) {
        return Err(Error::invalid_param("A token has 1 to 64 characters of A-Z, a-z, 0-9 and . _ ~ -"));
    }
    let token = RegistrationToken { uses_allowed: asked.uses_allowed, completed: 0, expires_ts: asked.expiry_time };
    let put = |tx: &mut Tx| {
        if tx.contains(&REGISTRATION_TOKENS, &name)? {
            return Err(Error::invalid_param("There is such a token already"));
        }
        tx.put(&REGISTRATION_TOKENS, &name, &token);
        Ok(())
    };
    app.store.transact(put).await?;
    ok(&describe(&name, &token))
}

/// What is absent stays as it is; `null` takes a limit away.
#[derive(Deserialize)]
struct Update {
    #[serde(default, deserialize_with = "present")]
    uses_allowed: Option<Option<u64>>,
    #[serde(default, deserialize_with = "present")]
    expiry_time: Option<Option<u64>>,
}

fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Option<u64>>, D::Error> {
    Option::deserialize(from).map(Some)
}

async fn update(mut ctx: RawCtx) -> Result<Response> {
    let asked: Update = ctx.read_json().await?;
    let (app, name) = (&ctx.app, ctx.arg(0));
    let put = |tx: &mut Tx| {
        let known = tx.get(&REGISTRATION_TOKENS, name)?.ok_or_else(unknown)?;
        if let Some(expiry_time) = asked.expiry_time.filter(|expiry_time| *expiry_time != known.expires_ts) {
            check_expiry(app, expiry_time)?;
        }
        let token = RegistrationToken {
            uses_allowed: asked.uses_allowed.unwrap_or(known.uses_allowed),
            expires_ts: asked.expiry_time.unwrap_or(known.expires_ts),
            completed: known.completed,
        };
        tx.put(&REGISTRATION_TOKENS, name, &token);
        Ok::<_, Error>(token)
    };
    let token = app.store.transact(put).await?.value;
    ok(&describe(name, &token))
}

async fn delete(ctx: RawCtx) -> Result<Response> {
    let name = ctx.arg(0);
    let delete = |tx: &mut Tx| {
        tx.get(&REGISTRATION_TOKENS, name)?.ok_or_else(unknown)?;
        tx.delete(&REGISTRATION_TOKENS, name);
        Ok::<_, Error>(())
    };
    ctx.app.store.transact(delete).await?;
    done()
}

fn check_expiry(app: &App, expiry_time: Option<u64>) -> Result<()> {
    match expiry_time {
        Some(expiry_time) if expiry_time <= app.clock.now_ms() => {
            Err(Error::invalid_param("expiry_time is in the past"))
        }
        _ => Ok(()),
    }
}

fn unknown() -> Error {
    Error::not_found("There is no such registration token")
}
