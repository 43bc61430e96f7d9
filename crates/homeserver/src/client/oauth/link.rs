//! A user lets in a device that has no browser, by the code that it shows (RFC 8628).

use http::StatusCode;
use ruma::OwnedUserId;

use super::fields::Fields;
use super::page::{self, Browser, Text, form, hidden};
use crate::App;
use crate::auth::oauth::Failure;
use crate::auth::oauth::browser::Person;
use crate::auth::oauth::clients;
use crate::auth::oauth::grants::{self, DeviceGrant};
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response};
use crate::limits::{Class, Owner};
use crate::schema::User;

const PATH: &str = "/oauth2/link";

pub(super) async fn show(ctx: RawCtx) -> Result<Response> {
    page::asked(&ctx, ask)
}

fn ask(ctx: &RawCtx, fields: &Fields) -> Result<Response, Failure> {
    let (app, browser) = (&ctx.app, Browser::of(ctx)?);
    let typed = fields.text("user_code");
    let Some(user) = &browser.user else {
        let query =
            if typed.is_empty() { String::new() } else { format!("?{}", Fields::of(&[("user_code", typed)]).encode()) };
        return Ok(page::log_in_first(app, &format!("{PATH}{query}")));
    };
    if typed.is_empty() {
        return Ok(code_page(app, &browser, None)?);
    }
    match find(app, &user.0, typed)? {
        Some(device) => Ok(confirm_page(app, &browser, user, &device)?),
        None => Ok(code_page(app, &browser, Some(typed))?),
    }
}

/// The device behind a code. Users may guess, but not often.
fn find(app: &App, user_id: &OwnedUserId, typed: &str) -> Result<Option<DeviceGrant>> {
    app.limits.check(Class::Login, Owner::Name(&format!("code:{user_id}")))?;
    Ok(grants::waiting(app, typed))
}

fn code_page(app: &App, browser: &Browser, wrong: Option<&str>) -> Result<Response> {
    let action = app.auth.oauth.site()?.url(PATH);
    let wrong_code = wrong
        .map_or("", |_| r#"<p class="wrong">No device waits with this code. Codes last a quarter of an hour.</p>"#);
    let main = format!(
        r#"{wrong_code}<form method="get" action="{}"><label>The code that your device shows
<input name="user_code" value="{}" autocomplete="off" autocapitalize="characters" required></label><button>Continue</button></form>"#,
        Text(&action),
        Text(wrong.unwrap_or("")),
    );
    let status = if wrong.is_some() { StatusCode::NOT_FOUND } else { StatusCode::OK };
    browser.page(app, status, "Log in on another device", &main)
}

fn confirm_page(app: &App, browser: &Browser, user: &(OwnedUserId, User), device: &DeviceGrant) -> Result<Response> {
    let client = clients::find(&app.store.snapshot(), &device.client_id)?;
    let client = client.ok_or_else(|| Error::not_found("The app is not known here any more"))?;
    let (user_id, host) = (&user.0, client.host());
    let inside = format!(
        r#"{}{}<button name="answer" value="allow">Continue</button><button class="other" name="answer" value="deny">Cancel</button>"#,
        hidden("user_code", &device.user_code),
        hidden("user", user_id.as_str()),
    );
    let main = format!(
        "<p><b>{}</b> of <b>{}</b> on another device wants to use your account <b>{}</b>.</p>\
         <p>It will read and send messages in your name, and change your account. Continue only if you hold that device in \
         your hands and it shows the code <code>{}</code>. If somebody sent you this code, cancel.</p>\
         {}<p>Device: <code>{}</code></p>{}",
        Text(client.client_name.as_deref().unwrap_or(&host)),
        Text(&host),
        Text(user_id.as_str()),
        Text(&device.user_code),
        page::warnings(app, user, &device.scope)?,
        Text(&device.scope.device_id),
        form(app, PATH, browser, &inside)?,
    );
    browser.page(app, StatusCode::OK, "Let this device in?", &main)
}

pub(super) async fn answer(ctx: RawCtx) -> Result<Response> {
    page::sent(ctx, decide).await
}

fn decide(ctx: &RawCtx, form: &Fields) -> Result<Response, Failure> {
    let (app, browser) = (&ctx.app, Browser::of(ctx)?);
    browser.check_form(app, form)?;
    let typed = form.text("user_code");
    let by = match &browser.user {
        Some((user_id, user)) if user_id.as_str() == form.text("user") => Person::new(user_id.clone(), user),
        _ => return Ok(page::go(app, &format!("{PATH}?{}", Fields::of(&[("user_code", typed)]).encode()))),
    };
    if find(app, &by.user_id, typed)?.is_none() {
        return Ok(code_page(app, &browser, Some(typed))?);
    }
    let (granted_by, title, text) = match form.text("answer") {
        "allow" => (Some(by), "The device is let in", "It goes on by itself in a moment. You can close this page."),
        "deny" => (None, "The device stays outside", "You can close this page."),
        _ => return Err(Error::invalid_param("There is no such answer").into()),
    };
    if !grants::answer(app, typed, granted_by) {
        return Ok(code_page(app, &browser, Some(typed))?);
    }
    Ok(browser.page(app, StatusCode::OK, title, &format!("<p>{text}</p>"))?)
}
