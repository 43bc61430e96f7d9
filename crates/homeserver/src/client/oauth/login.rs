//! Who sits in front of the browser: logging in, opening an account, logging out.

use std::net::IpAddr;

use http::StatusCode;
use store::Read as _;

use super::authorize;
use super::fields::Fields;
use super::page::{self, Browser, Text, form, hidden, shown};
use super::sso;
use crate::App;
use crate::auth::oauth::Failure;
use crate::auth::uia;
use crate::client::session;
use crate::config::RegistrationMode;
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response};
use crate::schema::USERS;
use crate::users::accounts::{self, NewAccount, Opener};

const LOGIN: &str = "/oauth2/login";
const REGISTER: &str = "/oauth2/register";

/// Where to go after a login: to one of our pages, never elsewhere.
fn next_of(fields: &Fields) -> String {
    let next = fields.text("next");
    let (path, query) = next.split_once('?').unwrap_or((next, ""));
    let known = [authorize::PATH, sso::PATH, "/oauth2/link", "/account"].contains(&path);
    if known && query.bytes().all(|byte| byte.is_ascii_graphic()) { next.to_owned() } else { "/account".to_owned() }
}

pub(super) async fn show(ctx: RawCtx) -> Result<Response> {
    ctx.app.auth.oauth.site()?;
    let outcome = Fields::query(&ctx).map_err(Failure::from).and_then(|fields| {
        let next = next_of(&fields);
        let query = next.split_once('?').map_or("", |(_, query)| query);
        let hint = Fields::parse(query).unwrap_or_default();
        let hint = hint.text("login_hint");
        let name = hint.strip_prefix("mxid:").unwrap_or(hint);
        Ok(login_page(&ctx.app, &Browser::of(&ctx)?, &next, name, None)?)
    });
    shown(&ctx.app, outcome)
}

fn login_page(app: &App, browser: &Browser, next: &str, name: &str, wrong: Option<&Error>) -> Result<Response> {
    let inside = format!(
        r#"{}<label>User name<input name="username" value="{}" autocomplete="username" autocapitalize="none" required></label>
<label>Password<input name="password" type="password" autocomplete="current-password" required></label><button>Log in</button>"#,
        hidden("next", next),
        Text(name),
    );
    let mut main = complaint(wrong);
    main.push_str(&form(app, LOGIN, browser, &inside)?);
    if app.config.registration.mode != RegistrationMode::Closed {
        let url = app.auth.oauth.site()?.url(&format!("{REGISTER}?{}", Fields::of(&[("next", next)]).encode()));
        main.push_str(&format!(r#"<p><a href="{}">Open an account</a></p>"#, Text(&url)));
    }
    let title = format!("Log in to {}", app.server_name);
    browser.page(app, wrong.map_or(StatusCode::OK, Error::status), &title, &main)
}

fn complaint(wrong: Option<&Error>) -> String {
    wrong.map_or_else(String::new, |error| format!(r#"<p class="wrong">{}</p>"#, Text(error.message())))
}

/// What goes wrong because of what somebody typed is told above the form that they can correct.
fn for_the_form(error: Error) -> Result<Error> {
    if error.status().is_client_error() { Ok(error) } else { Err(error) }
}

pub(super) async fn log_in(mut ctx: RawCtx) -> Result<Response> {
    ctx.app.auth.oauth.site()?;
    let outcome = async {
        let (fields, browser) = (Fields::read(&mut ctx).await?, Browser::of(&ctx)?);
        let app = &ctx.app;
        browser.check_form(app, &fields)?;
        let (next, name) = (next_of(&fields), fields.text("username").trim());
        match enter(app, name, fields.text("password"), ctx.ip).await {
            Ok(secret) => Ok(entered(app, &next, &secret)?),
            Err(error) => Ok(login_page(app, &browser, &next, name, Some(&for_the_form(error)?))?),
        }
    };
    let outcome: Result<Response, Failure> = outcome.await;
    shown(&ctx.app, outcome)
}

/// Logs a browser in; the secret for its cookie.
async fn enter(app: &App, name: &str, password: &str, ip: IpAddr) -> Result<String> {
    let proof = session::whose_password(app, name, password, ip).await?;
    // Of one moment: the login lasts as long as this password.
    let (read, user_id) = (app.store.snapshot(), proof.user_id().clone());
    proof.holds(&read)?;
    let user = read.get(&USERS, user_id.as_str())?.filter(|user| !user.deactivated);
    let user = user.ok_or_else(|| Error::forbidden("Wrong user name or password"))?;
    if user.locked {
        return Err(Error::user_locked());
    }
    Ok(app.auth.oauth.browsers.log_in(app, user_id, &user))
}

fn entered(app: &App, next: &str, secret: &str) -> Result<Response> {
    let mut response = page::go(app, next);
    page::set_cookie(app, &mut response, secret)?;
    Ok(response)
}

pub(super) async fn show_registration(ctx: RawCtx) -> Result<Response> {
    ctx.app.auth.oauth.site()?;
    let outcome = Fields::query(&ctx).map_err(Failure::from).and_then(|fields| {
        check_open(&ctx.app)?;
        Ok(registration_page(&ctx.app, &Browser::of(&ctx)?, &next_of(&fields), "", None)?)
    });
    shown(&ctx.app, outcome)
}

fn check_open(app: &App) -> Result<()> {
    match app.config.registration.mode {
        RegistrationMode::Closed => Err(Error::forbidden("This server does not take new accounts")),
        RegistrationMode::Token | RegistrationMode::Open => Ok(()),
    }
}

fn registration_page(app: &App, browser: &Browser, next: &str, name: &str, wrong: Option<&Error>) -> Result<Response> {
    let token = match app.config.registration.mode {
        RegistrationMode::Token => {
            r#"<label>Registration token<input name="token" autocomplete="off" required></label>"#
        }
        RegistrationMode::Open | RegistrationMode::Closed => "",
    };
    let inside = format!(
        r#"{}<label>User name<input name="username" value="{}" autocomplete="username" autocapitalize="none" required></label>
<label>Password<input name="password" type="password" autocomplete="new-password" required></label>
<label>Password, again<input name="again" type="password" autocomplete="new-password" required></label>{token}<button>Open the account</button>"#,
        hidden("next", next),
        Text(name),
    );
    let main = format!("{}{}", complaint(wrong), form(app, REGISTER, browser, &inside)?);
    let title = format!("Open an account on {}", app.server_name);
    browser.page(app, wrong.map_or(StatusCode::OK, Error::status), &title, &main)
}

pub(super) async fn register(mut ctx: RawCtx) -> Result<Response> {
    ctx.app.auth.oauth.site()?;
    let outcome = async {
        let (fields, browser) = (Fields::read(&mut ctx).await?, Browser::of(&ctx)?);
        let app = &ctx.app;
        browser.check_form(app, &fields)?;
        check_open(app)?;
        let (next, name) = (next_of(&fields), fields.text("username").trim());
        match open(app, name, &fields).await {
            Ok(secret) => Ok(entered(app, &next, &secret)?),
            Err(error) => Ok(registration_page(app, &browser, &next, name, Some(&for_the_form(error)?))?),
        }
    };
    let outcome: Result<Response, Failure> = outcome.await;
    shown(&ctx.app, outcome)
}

async fn open(app: &App, name: &str, fields: &Fields) -> Result<String> {
    let user_id = accounts::user_id_for_new(app, name)?;
    accounts::check_free(app, &user_id, &Opener::Anybody)?;
    let password = fields.text("password");
    if password != fields.text("again") {
        return Err(Error::invalid_param("The passwords differ"));
    }
    app.auth.passwords.acceptable(password)?;
    let registration_token = match app.config.registration.mode {
        RegistrationMode::Token => Some(fields.text("token").trim().to_owned()),
        RegistrationMode::Open | RegistrationMode::Closed => None,
    };
    if let Some(token) = &registration_token
        && !uia::registration_token_is_valid(app, token)?
    {
        return Err(Error::forbidden("This registration token is not valid"));
    }
    let password_hash = Some(app.auth.passwords.hash(password).await?);
    let new = NewAccount { password_hash, registration_token, ..NewAccount::default() };
    app.store.transact(|tx| accounts::open(app, tx, &user_id, new.clone())).await?;
    let user = accounts::find(app, &user_id)?.ok_or_else(|| Error::internal("an account that was just opened"))?;
    Ok(app.auth.oauth.browsers.log_in(app, user_id, &user))
}

pub(super) async fn log_out(mut ctx: RawCtx) -> Result<Response> {
    ctx.app.auth.oauth.site()?;
    let outcome = async {
        let (fields, browser) = (Fields::read(&mut ctx).await?, Browser::of(&ctx)?);
        browser.check_form(&ctx.app, &fields)?;
        browser.log_out(&ctx.app);
        Ok(page::log_in_first(&ctx.app, &next_of(&fields)))
    };
    let outcome: Result<Response, Failure> = outcome.await;
    shown(&ctx.app, outcome)
}
