//! HTML: pages of one column without scripts, pictures or anything from elsewhere; and the cookie of the browser.
//!
//! What comes from outside stands in a page only through [`Text`].

use std::fmt;

use http::{HeaderMap, HeaderValue, StatusCode, header};
use ruma::OwnedUserId;

use super::fields::Fields;
use crate::App;
use crate::auth::devices;
use crate::auth::oauth::scope::{self, Scope};
use crate::auth::oauth::{Failure, Site, browser};
use crate::error::{Error, Result};
use crate::http::{Body, RawCtx, Response, SameOrigin};
use crate::schema::User;

/// Text for a page: nothing in it is markup.
pub(super) struct Text<'a>(pub(super) &'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c => fmt::Write::write_char(f, c)?,
            }
        }
        Ok(())
    }
}

/// The browser that asks, and who is logged in there.
pub(super) struct Browser {
    secret: String,
    known: bool,
    pub(super) user: Option<(OwnedUserId, User)>,
}

impl Browser {
    pub(super) fn of(ctx: &RawCtx) -> Result<Self> {
        let (app, oauth) = (&ctx.app, &ctx.app.auth.oauth);
        // What is not of our making is replaced, whoever put it there.
        let secret = cookie(&ctx.headers, cookie_name(oauth.site()?)).filter(|secret| browser::is_secret(secret));
        let known = secret.is_some();
        let secret = secret.unwrap_or_else(|| oauth.browsers.new_secret(app));
        let user = oauth.browsers.who(app, &secret)?;
        Ok(Self { secret, known, user })
    }

    /// The field of each form that shows that it is ours.
    fn form_token(&self, app: &App) -> String {
        format!(r#"<input type="hidden" name="csrf" value="{}">"#, app.auth.oauth.browsers.form_token(&self.secret))
    }

    /// Whether a form was made for this browser.
    pub(super) fn check_form(&self, app: &App, fields: &Fields) -> Result<()> {
        if self.known && app.auth.oauth.browsers.is_form_token(&self.secret, fields.text("csrf")) {
            Ok(())
        } else {
            Err(Error::forbidden(
                "This form is too old or comes from elsewhere. Go back, load the page again and retry.",
            ))
        }
    }

    /// Ends the login of this browser.
    pub(super) fn log_out(&self, app: &App) {
        app.auth.oauth.browsers.log_out(app, &self.secret);
    }

    /// A page for this browser.
    pub(super) fn page(&self, app: &App, status: StatusCode, title: &str, main: &str) -> Result<Response> {
        let mut response = page(app.auth.oauth.site()?, status, title, main);
        if !self.known {
            set_cookie(app, &mut response, &self.secret)?;
        }
        Ok(response)
    }
}

/// The page that the fields of a query ask for.
pub(super) fn asked(ctx: &RawCtx, ask: impl Fn(&RawCtx, &Fields) -> Result<Response, Failure>) -> Result<Response> {
    ctx.app.auth.oauth.site()?;
    let fields = Fields::query(ctx);
    shown(&ctx.app, fields.map_err(Failure::from).and_then(|fields| ask(ctx, &fields)))
}

/// What comes of a form that was sent.
pub(super) async fn sent(
    mut ctx: RawCtx,
    decide: impl Fn(&RawCtx, &Fields) -> Result<Response, Failure>,
) -> Result<Response> {
    ctx.app.auth.oauth.site()?;
    let fields = Fields::read(&mut ctx).await;
    shown(&ctx.app, fields.and_then(|fields| decide(&ctx, &fields)))
}

/// What a handler of a page gives: errors are pages, too.
pub(super) fn shown(app: &App, outcome: Result<Response, Failure>) -> Result<Response> {
    let site = app.auth.oauth.site()?;
    let (status, why) = match outcome {
        Ok(response) => return Ok(response),
        Err(Failure::Refused(refused)) => (StatusCode::BAD_REQUEST, refused.why.into_owned()),
        Err(Failure::Other(error)) if error.status().is_client_error() && error.retry_after().is_none() => {
            (error.status(), error.message().to_owned())
        }
        Err(Failure::Other(error)) => return Err(error),
    };
    Ok(page(site, status, "This did not work", &format!("<p>{}</p>", Text(&why))))
}

fn page(site: &Site, status: StatusCode, title: &str, main: &str) -> Response {
    let html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{title}</title><link rel=\"stylesheet\" href=\"{style}\"></head>\
         <body><main><h1>{title}</h1>{main}</main></body></html>\n",
        title = Text(title),
        style = Text(&site.url("/oauth2/style.css")),
    );
    let mut response = Response::new(Body::from(html));
    *response.status_mut() = status;
    guard(&mut response);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    // Forms are not limited to this origin: some answers to them lead to the client, and browsers look at those.
    const POLICY: &str = "default-src 'none'; style-src 'self'; base-uri 'none'; frame-ancestors 'none'";
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// For nobody's eyes but this browser's.
fn guard(response: &mut Response) {
    response.extensions_mut().insert(SameOrigin);
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
}

/// Sends the browser to a page of this server.
pub(super) fn go(app: &App, path: &str) -> Response {
    match app.auth.oauth.site() {
        Ok(site) => redirect(&site.url(path)),
        Err(error) => error.into(),
    }
}

/// Sends the browser to log in, and then back to a page.
pub(super) fn log_in_first(app: &App, next: &str) -> Response {
    go(app, &format!("/oauth2/login?{}", Fields::of(&[("next", next)]).encode()))
}

/// A form that is sent to a path of this server.
pub(super) fn form(app: &App, path: &str, browser: &Browser, inside: &str) -> Result<String> {
    let action = app.auth.oauth.site()?.url(path);
    let token = browser.form_token(app);
    Ok(format!(r#"<form method="post" action="{}">{token}{inside}</form>"#, Text(&action)))
}

/// A field that nobody sees.
pub(super) fn hidden(name: &str, value: &str) -> String {
    format!(r#"<input type="hidden" name="{name}" value="{}">"#, Text(value))
}

/// Sends the browser to a URL that was checked.
pub(super) fn redirect(url: &str) -> Response {
    let Ok(location) = HeaderValue::from_str(url) else {
        return Error::internal("a redirect to what is no URL").into();
    };
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SEE_OTHER;
    guard(&mut response);
    response.headers_mut().insert(header::LOCATION, location);
    response
}

/// With a prefix that keeps neighbours below the same domain from setting it, where browsers know that.
fn cookie_name(site: &Site) -> &'static str {
    if site.is_secure() { "__Host-skerry" } else { "skerry" }
}

fn cookie(headers: &HeaderMap, name: &str) -> Option<String> {
    let all = headers.get_all(header::COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    let mut pairs = all.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
}

/// Gives the browser a secret.
pub(super) fn set_cookie(app: &App, response: &mut Response, secret: &str) -> Result<()> {
    let site = app.auth.oauth.site()?;
    let secure = if site.is_secure() { "; Secure" } else { "" };
    let cookie = format!("{}={secret}; Path=/; HttpOnly; SameSite=Lax{secure}", cookie_name(site));
    let cookie = HeaderValue::from_str(&cookie).map_err(Error::internal)?;
    response.headers_mut().insert(header::SET_COOKIE, cookie);
    Ok(())
}

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1b1d22;--paper:#fff;--line:#c8ccd4;--deep:#0b5cad}
@media(prefers-color-scheme:dark){:root{--ink:#e8eaf0;--paper:#17191d;--line:#444a55;--deep:#7db6f2}}
body{margin:0;background:var(--paper);color:var(--ink);font:1rem/1.5 system-ui,sans-serif}
main{max-width:28rem;margin:0 auto;padding:2rem 1rem}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}
label{display:block;margin:.8rem 0}input:not([type=checkbox]){display:block;box-sizing:border-box;width:100%;padding:.6rem;
font:inherit;border:1px solid var(--line);border-radius:.4rem;background:var(--paper);color:var(--ink)}
button{padding:.6rem 1.2rem;font:inherit;border:1px solid var(--deep);border-radius:.4rem;background:var(--deep);
color:var(--paper);margin:.4rem .4rem .4rem 0}button.other{background:none;color:var(--deep)}
a{color:var(--deep)}ul{padding:0;list-style:none}li{border-top:1px solid var(--line);padding:.6rem 0}
.wrong{border-left:.3rem solid #c0392b;padding-left:.6rem}code{overflow-wrap:anywhere}
";

pub(super) async fn style(ctx: RawCtx) -> Result<Response> {
    ctx.app.auth.oauth.site()?;
    let mut response = Response::new(Body::from(STYLE));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/css; charset=utf-8"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600"));
    Ok(response)
}

/// What is said above the buttons of a page that asks whether to let a client in, besides what all clients get.
pub(super) fn warnings(app: &App, (user_id, user): &(OwnedUserId, User), scope: &Scope) -> Result<String> {
    let mut warnings = String::new();
    if user.admin && scope::may_administer(&scope.granted) {
        warnings.push_str(
            "<p class=\"wrong\">It also wants to <b>administer this server</b>: to change and close all accounts and rooms.</p>",
        );
    }
    if devices::is_open(&app.store.snapshot(), user_id.as_str(), &scope.device_id)? {
        warnings.push_str(
            "<p class=\"wrong\">You have a device of this name already: it is logged out, and this one takes its place.</p>",
        );
    }
    Ok(warnings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_outside_is_markup() {
        let text = Text("<a href=\"x\" onclick='y'>&amp;").to_string();
        assert_eq!(text, "&lt;a href=&quot;x&quot; onclick=&#39;y&#39;&gt;&amp;amp;");
    }

    #[test]
    fn the_cookie_is_found_among_others() {
        let mut headers = HeaderMap::new();
        headers.append(header::COOKIE, HeaderValue::from_static("a=b; __Host-skerry=s; skerry=t"));
        assert_eq!(cookie(&headers, "__Host-skerry").as_deref(), Some("s"));
        assert_eq!(cookie(&headers, "skerry").as_deref(), Some("t"));
        assert_eq!(cookie(&headers, "kerry"), None);
    }
}
