//! `m.login.sso`, for clients that know no OAuth: the user logs in on the pages of this server, and the client gets a
//! login token for it (spec: SSO client login; MSC3824).
//!
//! Such a client proves nothing, and anybody can make a link that looks like one. So nobody gets a token before the user
//! has read where it goes and agreed, and it lasts only as long as a client needs to use it.

use std::time::Duration;

use http::StatusCode;
use percent_encoding::percent_decode_str;
use ruma::OwnedUserId;
use store::{Read as _, Tx};
use url::Url;

use super::fields::Fields;
use super::page::{self, Browser, Text, form, hidden, redirect, shown};
use crate::App;
use crate::auth::oauth::{Failure, Reason, Refused};
use crate::auth::tokens;
use crate::config::RegistrationMode;
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response};
use crate::schema::USERS;

/// Where clients send their users.
pub(super) const REDIRECTS: &[&str] = &[
    "/_matrix/client/r0/login/sso/redirect",
    "/_matrix/client/v3/login/sso/redirect",
    "/_matrix/client/r0/login/sso/redirect/{idp_id}",
    "/_matrix/client/v3/login/sso/redirect/{idp_id}",
];
/// The page on which the user agrees.
pub(super) const PATH: &str = "/oauth2/sso";

const TOKEN_LIFETIME: Duration = Duration::from_secs(15);
const MAX_URL_BYTES: usize = 2 * 1024;
/// Schemes by which a browser would run or show something itself.
const FORBIDDEN_SCHEMES: [&str; 14] = [
    "about",
    "blob",
    "chrome",
    "content",
    "data",
    "file",
    "filesystem",
    "ftp",
    "intent",
    "javascript",
    "vbscript",
    "view-source",
    "ws",
    "wss",
];

/// Where a client wants its user, and the login token, to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Return {
    url: String,
    /// Who is there, as far as the URL says so.
    whose: String,
}

impl Return {
    fn parse(text: &str) -> Result<Self, Refused> {
        let wrong = |why: &'static str| Refused::new(Reason::InvalidRequest, why);
        if text.is_empty() || text.len() > MAX_URL_BYTES || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(wrong("The app does not say where to go afterwards."));
        }
        let url = Url::parse(text).map_err(|_| wrong("The app wants to go on at an address that is none."))?;
        let hides = !url.username().is_empty() || url.password().is_some() || text.contains('\\');
        if hides || FORBIDDEN_SCHEMES.contains(&url.scheme()) {
            return Err(wrong("The app wants to go on at an address that is not safe."));
        }
        let whose = match (url.scheme(), url.host_str()) {
            ("http" | "https", Some(host)) => match url.port() {
                Some(port) => format!("{host}:{port}"),
                None => host.to_owned(),
            },
            (scheme, _) => format!("{scheme}:"),
        };
        Ok(Self { url: text.to_owned(), whose })
    }

    /// Whether it is an app on the user's device, not a site.
    fn is_app(&self) -> bool {
        self.whose.ends_with(':')
    }

    /// The URL with a login token, and with no other than that.
    fn with_token(&self, token: &str) -> String {
        let (rest, fragment) = match self.url.split_once('#') {
            Some((rest, fragment)) => (rest, format!("#{fragment}")),
            None => (self.url.as_str(), String::new()),
        };
        let (start, query) = rest.split_once('?').unwrap_or((rest, ""));
        let others = query.split('&').filter(|pair| !pair.is_empty() && !is_token(pair));
        let query: String = others.flat_map(|pair| [pair, "&"]).collect();
        format!("{start}?{query}loginToken={token}{fragment}")
    }
}

/// Whether a part of a query is a login token, however its name is written.
fn is_token(pair: &str) -> bool {
    let name = pair.split('=').next().unwrap_or_default();
    percent_decode_str(name).eq(*b"loginToken")
}

/// A client sends its user.
pub(super) async fn begin(ctx: RawCtx) -> Result<Response> {
    ctx.app.auth.oauth.site()?;
    let outcome = Fields::query(&ctx).map_err(Failure::from).and_then(|fields| {
        if !ctx.arg(0).is_empty() {
            return Err(Error::not_found("This server knows no such other place to log in.").into());
        }
        let to = Return::parse(fields.text("redirectUrl"))?;
        let (url, action) = (to.url.as_str(), fields.text("action"));
        let fields = Fields::of(&[("redirectUrl", url), ("action", action)]);
        let fields = if action == "register" { fields } else { fields.without("action") };
        let mut response = page::go(&ctx.app, &format!("{PATH}?{}", fields.encode()));
        *response.status_mut() = StatusCode::FOUND;
        Ok(response)
    });
    shown(&ctx.app, outcome)
}

pub(super) async fn show(ctx: RawCtx) -> Result<Response> {
    page::asked(&ctx, ask)
}

fn ask(ctx: &RawCtx, fields: &Fields) -> Result<Response, Failure> {
    let (app, browser) = (&ctx.app, Browser::of(ctx)?);
    let to = Return::parse(fields.text("redirectUrl"))?;
    // Asked for once, not again after it was done.
    let next = here(&to);
    if fields.text("action") == "register" && app.config.registration.mode != RegistrationMode::Closed {
        return Ok(page::go(app, &format!("/oauth2/register?{}", Fields::of(&[("next", &next)]).encode())));
    }
    match &browser.user {
        Some((user_id, _)) => Ok(consent(app, &browser, user_id, &to)?),
        None => Ok(page::log_in_first(app, &next)),
    }
}

fn here(to: &Return) -> String {
    format!("{PATH}?{}", Fields::of(&[("redirectUrl", &to.url)]).encode())
}

fn consent(app: &App, browser: &Browser, user_id: &OwnedUserId, to: &Return) -> Result<Response> {
    let inside = format!(
        r#"{}{}<button name="answer" value="allow">Continue</button>"#,
        hidden("redirectUrl", &to.url),
        hidden("user", user_id.as_str()),
    );
    let others = format!(r#"{}<button class="other">Use another account</button>"#, hidden("next", &here(to)));
    let kind = if to.is_app() { "The app that opens addresses with" } else { "The site" };
    let main = format!(
        "<p>{kind} <b>{}</b> wants to use your account <b>{}</b>.</p>\
         <p>It will read and send messages in your name, and change your account. Continue only if you have just begun to \
         log in there; otherwise close this page.</p><p>You will be sent to: <code>{}</code></p>{}{}",
        Text(&to.whose),
        Text(user_id.as_str()),
        Text(&to.url),
        form(app, PATH, browser, &inside)?,
        form(app, "/oauth2/logout", browser, &others)?,
    );
    browser.page(app, StatusCode::OK, "Let this app in?", &main)
}

pub(super) async fn answer(mut ctx: RawCtx) -> Result<Response> {
    ctx.app.auth.oauth.site()?;
    let outcome = async {
        let (fields, browser) = (Fields::read(&mut ctx).await?, Browser::of(&ctx)?);
        let app = &ctx.app;
        browser.check_form(app, &fields)?;
        let to = Return::parse(fields.text("redirectUrl"))?;
        let (user_id, user) = match &browser.user {
            Some((user_id, user)) if user_id.as_str() == fields.text("user") => (user_id, user),
            // Somebody else has logged in meanwhile, or nobody is any more: they see the page first.
            _ => return Ok(page::go(app, &here(&to))),
        };
        if fields.text("answer") != "allow" {
            return Err(Error::invalid_param("There is no such answer").into());
        }
        let issue = |tx: &mut Tx| {
            // Whoever changed the password meanwhile has ended this login.
            if tx.get(&USERS, user_id.as_str())?.as_ref() != Some(user) {
                return Err(Error::forbidden("Your account has just changed. Go back, load the page again and retry."));
            }
            tokens::issue_login(app, tx, user_id.as_str(), TOKEN_LIFETIME)
        };
        Ok(redirect(&to.with_token(&app.store.transact(issue).await?.value)))
    };
    let outcome: Result<Response, Failure> = outcome.await;
    shown(&ctx.app, outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_goes_to_where_the_user_was_told() {
        let whose = |url: &str| Return::parse(url).map(|to| to.whose).ok();
        assert_eq!(whose("https://app.example.org/?a=b#/c").as_deref(), Some("app.example.org"));
        assert_eq!(whose("http://localhost:8080/x").as_deref(), Some("localhost:8080"));
        assert_eq!(whose("https://APP.example.org:443/").as_deref(), Some("app.example.org"));
        assert_eq!(whose("im.example://login").as_deref(), Some("im.example:"));
        assert_eq!(whose("io.example.desktop:/vector/webapp/").as_deref(), Some("io.example.desktop:"));
        let unsafe_urls = [
            "",
            "/relative",
            "javascript:alert(1)",
            "JavaScript:alert(1)",
            "data:text/html,x",
            "file:///etc/passwd",
            "https://good.example.org@evil.test/",
            "https://good.example.org\\@evil.test/",
            "https://a.test/\r\nset-cookie: x",
            "https://a.test/ b",
            "https://",
            "view-source:https://a.test/",
        ];
        for url in unsafe_urls {
            assert_eq!(whose(url), None, "{url}");
        }
        assert_eq!(whose(&format!("https://a.test/{}", "x".repeat(MAX_URL_BYTES))), None);
    }

    #[test]
    fn the_token_joins_the_query() {
        let with = |url: &str| Return::parse(url).unwrap().with_token("T");
        assert_eq!(with("https://a.test/"), "https://a.test/?loginToken=T");
        assert_eq!(with("https://a.test/?b=c&d"), "https://a.test/?b=c&d&loginToken=T");
        assert_eq!(with("https://a.test/?loginToken=old&b=%20&login%54oken=x"), "https://a.test/?b=%20&loginToken=T");
        assert_eq!(with("https://a.test/#/sso?x=y"), "https://a.test/?loginToken=T#/sso?x=y");
        assert_eq!(with("im.example://login?a=b"), "im.example://login?a=b&loginToken=T");
    }
}
