//! The account page: what clients of OAuth leave to this server. Devices, the password, new cross-signing keys, the end.
//!
//! What could not be taken back, or would let a thief in, needs the password once more.

use std::fmt::Write as _;
use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use ruma::OwnedUserId;
use store::{Read, Tx};

use super::fields::Fields;
use super::page::{self, Browser, Text, form, hidden, shown};
use crate::App;
use crate::auth::devices;
use crate::auth::oauth::browser::Person;
use crate::auth::oauth::{Failure, clients};
use crate::auth::password::Proof;
use crate::client::session;
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response};
use crate::schema::{DEVICE_SEEN, DEVICES, Device, OAUTH_SESSIONS};
use crate::users::accounts;

const PATH: &str = "/account";
const PASSWORD: &str =
    r#"<label>Password<input name="password" type="password" autocomplete="current-password" required></label>"#;

pub(super) async fn show(ctx: RawCtx) -> Result<Response> {
    page::asked(&ctx, page_for)
}

fn page_for(ctx: &RawCtx, fields: &Fields) -> Result<Response, Failure> {
    let (app, browser) = (&ctx.app, Browser::of(ctx)?);
    let Some((user_id, _)) = &browser.user else {
        let query = fields.encode();
        let next = if query.is_empty() { PATH.to_owned() } else { format!("{PATH}?{query}") };
        return Ok(page::log_in_first(app, &next));
    };
    let device_id = fields.get("device_id");
    let action = fields.text("action");
    let action = action.strip_prefix("org.matrix.").unwrap_or(action);
    Ok(match (action, device_id) {
        ("device_view" | "session_view" | "device_delete" | "session_end", Some(device_id)) => {
            device_page(app, &browser, user_id, device_id)?
        }
        ("account_deactivate", _) => closing_page(app, &browser, user_id)?,
        ("cross_signing_reset", _) => reset_page(app, &browser, user_id)?,
        _ => overview(app, &browser, user_id)?,
    })
}

// ---- pages -------------------------------------------------------------------------------------------------------

fn overview(app: &App, browser: &Browser, user_id: &OwnedUserId) -> Result<Response> {
    let (read, site) = (app.store.snapshot(), app.auth.oauth.site()?);
    let link = |action: &str, text: &str| {
        let url = site.url(&format!("{PATH}?action=org.matrix.{action}"));
        format!(r#"<p><a href="{}">{}</a></p>"#, Text(&url), Text(text))
    };
    let mut list = String::new();
    for (device_id, device) in devices::of(&read, user_id.as_str())? {
        let query = Fields::of(&[("action", "org.matrix.device_view"), ("device_id", &device_id)]).encode();
        let about = describe(app, &read, user_id, &device_id, &device)?;
        let url = site.url(&format!("{PATH}?{query}"));
        let _ = write!(list, r#"<li><a href="{}">{}</a><br>{}</li>"#, Text(&url), Text(&device_id), about);
    }
    let password = format!(
        r#"{}{PASSWORD}<label>New password<input name="new" type="password" autocomplete="new-password" required></label>
<label>New password, again<input name="again" type="password" autocomplete="new-password" required></label>
<label><input type="checkbox" name="others" value="out"> Log out all devices</label><button>Change</button>"#,
        hidden("do", "password"),
    );
    let log_out = format!(r#"{}<button class="other">Leave this page</button>"#, hidden("next", PATH));
    let main = format!(
        "<p>You are <b>{}</b>.</p><h2>Devices</h2><ul>{list}</ul><h2>Password</h2>{}<h2>More</h2>{}{}{}",
        Text(user_id.as_str()),
        form(app, PATH, browser, &password)?,
        link("cross_signing_reset", "Reset the keys that vouch for your devices"),
        link("account_deactivate", "Close this account"),
        form(app, "/oauth2/logout", browser, &log_out)?,
    );
    browser.page(app, StatusCode::OK, "Your account", &main)
}

/// A device in a few words, as HTML.
fn describe(app: &App, read: &impl Read, user_id: &OwnedUserId, device_id: &str, device: &Device) -> Result<String> {
    let key = (user_id.as_str(), device_id);
    let mut about = Vec::new();
    if let Some(name) = &device.display_name {
        about.push(Text(name).to_string());
    }
    if let Some(session) = read.get(&OAUTH_SESSIONS, key)?
        && let Some(client) = clients::find(read, &session.client_id)?
    {
        let host = client.host();
        about.push(Text(client.client_name.as_deref().unwrap_or(&host)).to_string());
    }
    let seen = read.get(&DEVICE_SEEN, key)?.map_or(device.created_ts, |seen| seen.ts);
    about.push(format!("used {}", ago(app.clock.now_ms().saturating_sub(seen))));
    Ok(about.join(", "))
}

fn ago(ms: u64) -> String {
    let minutes = ms / 60_000;
    match (minutes / (24 * 60), minutes / 60) {
        (0, 0) => "within the last hour".to_owned(),
        (0, hours) => format!("{hours} hours ago"),
        (days, _) => format!("{days} days ago"),
    }
}

fn device_page(app: &App, browser: &Browser, user_id: &OwnedUserId, device_id: &str) -> Result<Response> {
    let read = app.store.snapshot();
    let device = find_device(&read, user_id, device_id)?;
    let device = device.ok_or_else(|| Error::not_found("You have no such device, or no longer."))?;
    let inside =
        format!("{}{}<button>Log this device out</button>", hidden("do", "device"), hidden("device_id", device_id));
    let main = format!(
        "<p>Device <code>{}</code> of <b>{}</b>: {}.</p><p>Messages that only this device can read are lost with it.</p>{}{}",
        Text(device_id),
        Text(user_id.as_str()),
        describe(app, &read, user_id, device_id, &device)?,
        form(app, PATH, browser, &inside)?,
        back(app)?,
    );
    browser.page(app, StatusCode::OK, "A device", &main)
}

fn find_device(read: &impl Read, user_id: &OwnedUserId, device_id: &str) -> Result<Option<Device>> {
    // No device of ours has a longer name, and a key has to fit.
    if device_id.len() > 255 { Ok(None) } else { Ok(read.get(&DEVICES, (user_id.as_str(), device_id))?) }
}

fn closing_page(app: &App, browser: &Browser, user_id: &OwnedUserId) -> Result<Response> {
    let inside = format!(
        r#"{}{PASSWORD}<label><input type="checkbox" name="erase" value="yes"> Forget my profile, too</label><button>Close the account for ever</button>"#,
        hidden("do", "close"),
    );
    let main = format!(
        "<p>The account <b>{}</b> will leave all rooms and be closed. It cannot be opened again, and nobody gets its name.</p>{}{}",
        Text(user_id.as_str()),
        form(app, PATH, browser, &inside)?,
        back(app)?,
    );
    browser.page(app, StatusCode::OK, "Close this account?", &main)
}

fn reset_page(app: &App, browser: &Browser, user_id: &OwnedUserId) -> Result<Response> {
    const TITLE: &str = "Reset your keys?";
    let (read, mut asking) = (app.store.snapshot(), Vec::new());
    for reset in app.auth.oauth.resets.asking(app, user_id) {
        if let Some(device) = find_device(&read, user_id, &reset.device_id)? {
            let about = describe(app, &read, user_id, &reset.device_id, &device)?;
            asking.push((format!("<code>{}</code> ({about})", Text(&reset.device_id)), reset));
        }
    }
    let [(device, reset)] = asking.as_slice() else {
        let main = match asking.as_slice() {
            [] => "<p>No app asks for that now. Begin in the app, and come back from there.</p>".to_owned(),
            several => {
                let devices: String = several.iter().map(|(device, _)| format!("<li>{device}</li>")).collect();
                format!(
                    "<p>Several devices want to replace your keys at once:</p><ul>{devices}</ul><p>Log out those that are not \
                     yours, then ask again in the app.</p>"
                )
            }
        };
        return browser.page(app, StatusCode::CONFLICT, TITLE, &format!("{main}{}", back(app)?));
    };
    let wanted = URL_SAFE_NO_PAD.encode(reset.wanted);
    let inside =
        format!("{}{}{PASSWORD}<button>Allow the reset</button>", hidden("do", "reset"), hidden("wanted", &wanted));
    let main = format!(
        "<p>The device {device} of <b>{}</b> wants to replace the keys by which you vouch for your devices. Others will have \
         to verify you again. Allow this only if you have just asked for it in the app, because you lost your recovery key \
         and all other devices.</p>{}{}",
        Text(user_id.as_str()),
        form(app, PATH, browser, &inside)?,
        back(app)?,
    );
    browser.page(app, StatusCode::OK, TITLE, &main)
}

fn back(app: &App) -> Result<String> {
    Ok(format!(r#"<p><a href="{}">Your account</a></p>"#, Text(&app.auth.oauth.site()?.url(PATH))))
}

// ---- deeds -------------------------------------------------------------------------------------------------------

pub(super) async fn act(mut ctx: RawCtx) -> Result<Response> {
    ctx.app.auth.oauth.site()?;
    let outcome = async {
        let (fields, browser) = (Fields::read(&mut ctx).await?, Browser::of(&ctx)?);
        let app = &ctx.app;
        browser.check_form(app, &fields)?;
        let Some((user_id, user)) = browser.user.clone() else { return Ok(page::log_in_first(app, PATH)) };
        let text = match fields.text("do") {
            "device" => log_out_device(app, &user_id, fields.text("device_id")).await?,
            "password" => set_password(app, &user_id, &fields, ctx.ip).await?,
            "close" => close(app, &user_id, &fields, ctx.ip).await?,
            "reset" => allow_reset(app, &Person::new(user_id, &user), &fields, ctx.ip).await?,
            _ => return Err(Error::invalid_param("There is nothing of this name to do").into()),
        };
        Ok(browser.page(app, StatusCode::OK, "Done", &format!("<p>{text}</p>{}", back(app)?))?)
    };
    let outcome: Result<Response, Failure> = outcome.await;
    shown(&ctx.app, outcome)
}

async fn log_out_device(app: &App, user_id: &OwnedUserId, device_id: &str) -> Result<&'static str> {
    if find_device(&app.store.snapshot(), user_id, device_id)?.is_none() {
        return Err(Error::not_found("You have no such device, or no longer."));
    }
    app.store.transact(|tx| devices::delete(tx, user_id.as_str(), device_id)).await?;
    Ok("The device is logged out.")
}

/// That the user has not only left the browser open.
async fn check_password(app: &App, user_id: &OwnedUserId, fields: &Fields, ip: IpAddr) -> Result<Proof> {
    session::whose_password(app, user_id.as_str(), fields.text("password"), ip).await
}

async fn set_password(app: &App, user_id: &OwnedUserId, fields: &Fields, ip: IpAddr) -> Result<&'static str> {
    let new = fields.text("new");
    if new != fields.text("again") {
        return Err(Error::invalid_param("The new passwords differ."));
    }
    app.auth.passwords.acceptable(new)?;
    let proof = check_password(app, user_id, fields, ip).await?;
    let hash = app.auth.passwords.hash(new).await?;
    let log_out = fields.get("others").is_some();
    let set = |tx: &mut Tx| {
        proof.holds(tx)?;
        accounts::set_password(tx, user_id, &hash, log_out, None)
    };
    app.store.transact(set).await?;
    app.auth.lockout.forgive(user_id.as_str());
    Ok("The password is changed. Log in with it to go on here.")
}

async fn close(app: &App, user_id: &OwnedUserId, fields: &Fields, ip: IpAddr) -> Result<&'static str> {
    let proof = check_password(app, user_id, fields, ip).await?;
    let erase = fields.get("erase").is_some();
    let close = |tx: &mut Tx| {
        proof.holds(tx)?;
        accounts::close(tx, user_id, erase)
    };
    app.store.transact(close).await?;
    Ok("The account is closed.")
}

async fn allow_reset(app: &App, user: &Person, fields: &Fields, ip: IpAddr) -> Result<&'static str> {
    check_password(app, &user.user_id, fields, ip).await?.holds(&app.store.snapshot())?;
    let wanted = URL_SAFE_NO_PAD.decode(fields.text("wanted")).ok().and_then(|bytes| bytes.try_into().ok());
    if !wanted.is_some_and(|wanted| app.auth.oauth.resets.approve(app, user, wanted)) {
        return Err(Error::not_found("The app does not ask for this any more. Begin there once more."));
    }
    Ok("The reset is allowed for ten minutes. Go back to the app to finish it.")
}
