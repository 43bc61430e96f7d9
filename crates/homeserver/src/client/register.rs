//! Opening accounts.

use ruma::OwnedUserId;
use ruma::api::client::account::register::{self, RegistrationKind};
use ruma::api::client::account::{check_registration_token_validity, get_username_availability};
use store::Tx;

use crate::App;
use crate::auth::tokens::{self, Grant};
use crate::auth::uia::{self, Challenge, Stage};
use crate::auth::{Access, devices};
use crate::config::RegistrationMode;
use crate::error::{Error, Result};
use crate::http::limits::Class;
use crate::http::{Ctx, Routes};
use crate::users::accounts::{self, NewAccount};

pub fn routes() -> Routes {
    Routes::default()
        .ruma(register)
        .access(Access::Anyone)
        .limit(Class::Register)
        .ruma(available)
        .ruma(token_validity)
        .limit(Class::Register)
}

type Register = register::v3::Request;
type Registered = register::v3::Response;

async fn register(ctx: Ctx<Register>) -> Result<Registered> {
    match &ctx.request.kind {
        RegistrationKind::User => register_user(&ctx).await,
        RegistrationKind::Guest => register_guest(&ctx).await,
        _ => Err(Error::invalid_param("kind is either user or guest")),
    }
}

async fn register_user(ctx: &Ctx<Register>) -> Result<Registered> {
    let (app, request) = (&ctx.app, &ctx.request);
    let flows = match app.config.registration.mode {
        RegistrationMode::Closed => return Err(Error::forbidden("This server does not take new accounts")),
        RegistrationMode::Open => &[&[Stage::Dummy][..]],
        RegistrationMode::Token => &[&[Stage::RegistrationToken][..]],
    };
    let named = request.username.as_deref().map(|name| accounts::user_id_for_new(app, name)).transpose()?;
    if let Some(user_id) = &named {
        accounts::check_free(app, user_id)?;
    }
    if let Some(password) = &request.password {
        app.auth.passwords.acceptable(password)?;
    }
    let operation = "register".to_owned();
    let challenge = Challenge { operation, user_id: None, flows, body: &ctx.body, bound: false };
    let passed = uia::check(app, &challenge).await?;

    let password = request.password.as_deref().ok_or_else(|| Error::missing_param("password is missing"))?;
    let password_hash = Some(app.auth.passwords.hash(password).await?);
    let user_id = named.map_or_else(|| accounts::random_name(app, false), Ok)?;
    let new = NewAccount { password_hash, registration_token: passed.registration_token, ..NewAccount::default() };
    open(app, user_id, new, request).await
}

async fn register_guest(ctx: &Ctx<Register>) -> Result<Registered> {
    if !ctx.app.config.registration.guests {
        return Err(Error::forbidden("This server does not take guests"));
    }
    let new = NewAccount { guest: true, ..NewAccount::default() };
    // What a guest asks for beyond an account is not heard.
    let plain = Register::new();
    open(&ctx.app, accounts::random_name(&ctx.app, true)?, new, &plain).await
}

async fn open(app: &App, user_id: OwnedUserId, new: NewAccount, request: &Register) -> Result<Registered> {
    let open = |tx: &mut Tx| -> Result<Option<(Grant, String)>> {
        accounts::open(app, tx, &user_id, new.clone())?;
        if request.inhibit_login {
            return Ok(None);
        }
        let device_id = request.device_id.as_ref().map(|device_id| device_id.as_str());
        let name = request.initial_device_display_name.as_deref();
        let device_id = devices::log_in(app, tx, user_id.as_str(), device_id, name)?;
        let grant = tokens::open(app, tx, user_id.as_str(), &device_id, request.refresh_token)?;
        Ok(Some((grant, device_id)))
    };
    let session = app.store.transact(open).await?.value;
    let mut answer = Registered::new(user_id);
    if let Some((grant, device_id)) = session {
        answer.device_id = Some(device_id.into());
        answer.access_token = Some(grant.access_token);
        answer.refresh_token = grant.refresh_token;
        answer.expires_in = grant.expires_in;
    }
    Ok(answer)
}

async fn available(
    ctx: Ctx<get_username_availability::v3::Request>,
) -> Result<get_username_availability::v3::Response> {
    let user_id = accounts::user_id_for_new(&ctx.app, &ctx.request.username)?;
    accounts::check_free(&ctx.app, &user_id)?;
    Ok(get_username_availability::v3::Response::new(true))
}

async fn token_validity(
    ctx: Ctx<check_registration_token_validity::v1::Request>,
) -> Result<check_registration_token_validity::v1::Response> {
    if ctx.app.config.registration.mode != RegistrationMode::Token {
        return Err(Error::forbidden("This server takes no registration tokens"));
    }
    let valid = uia::registration_token_is_valid(&ctx.app, &ctx.request.token)?;
    Ok(check_registration_token_validity::v1::Response::new(valid))
}
