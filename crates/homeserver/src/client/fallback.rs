//! Pages for clients that cannot do something themselves: logging in, and the stages of interactive authentication.
//! Each page is one file without anything from elsewhere.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, Method, StatusCode, header};
use ring::digest::{SHA256, digest};

use crate::auth::uia::{self, Fallback};
use crate::error::{Error, Result};
use crate::http::{Body, RawCtx, Response, Routes};
use crate::limits::Class;

const LOGIN: &str = include_str!("fallback/login.html");
const LOGIN_SCRIPT: &str = include_str!("fallback/login.js");
const STAGE: &str = include_str!("fallback/stage.html");
const DONE: &str = include_str!("fallback/done.html");
const DONE_SCRIPT: &str = include_str!("fallback/done.js");
const STYLE: &str = include_str!("fallback/style.css");

/// A registration token and its surroundings are short.
const MAX_FORM_BYTES: usize = 16 * 1024;

pub fn routes() -> Routes {
    const STAGES: &[&str] =
        &["/_matrix/client/r0/auth/{auth_type}/fallback/web", "/_matrix/client/v3/auth/{auth_type}/fallback/web"];
    const LOGINS: &[&str] = &["/_matrix/static/client/login", "/_matrix/static/client/login/"];
    Routes::default()
        .raw(Method::GET, LOGINS, login)
        .raw(Method::GET, STAGES, stage)
        .limit(Class::Other)
        .raw(Method::POST, STAGES, prove)
        .limit(Class::Register)
}

async fn login(_: RawCtx) -> Result<Response> {
    Ok(page(StatusCode::OK, LOGIN, Some(LOGIN_SCRIPT)))
}

async fn stage(ctx: RawCtx) -> Result<Response> {
    let session = session(&ctx)?;
    let fallback = known_stage(&ctx)?;
    if uia::is_proven(&ctx.app, &session, fallback)? {
        return Ok(page(StatusCode::OK, DONE, Some(DONE_SCRIPT)));
    }
    Ok(form(StatusCode::OK, fallback, ""))
}

async fn prove(mut ctx: RawCtx) -> Result<Response> {
    #[derive(serde::Deserialize)]
    struct Form {
        session: Option<String>,
        token: Option<String>,
    }
    let fallback = known_stage(&ctx)?;
    let within = ctx.app.config.http.body_timeout.get();
    let bytes = std::mem::take(&mut ctx.body).collect(MAX_FORM_BYTES, within).await?;
    let asked: Form = serde_html_form::from_bytes(&bytes).map_err(|cause| Error::invalid_param(cause.to_string()))?;
    let session = match asked.session {
        Some(session) => session,
        None => session(&ctx)?,
    };
    match uia::prove(&ctx.app, &session, fallback, asked.token.as_deref()) {
        Ok(()) => Ok(page(StatusCode::OK, DONE, Some(DONE_SCRIPT))),
        Err(refused) if refused.status() == StatusCode::FORBIDDEN => {
            Ok(form(StatusCode::FORBIDDEN, fallback, refused.message()))
        }
        Err(cause) => Err(cause),
    }
}

fn session(ctx: &RawCtx) -> Result<String> {
    let session = ctx.query_value("session").map(|session| session.into_owned());
    session.ok_or_else(|| Error::missing_param("session is missing"))
}

fn known_stage(ctx: &RawCtx) -> Result<Fallback> {
    Fallback::parse(ctx.arg(0)).ok_or_else(|| Error::not_found("There is no page for this stage"))
}

fn form(status: StatusCode, fallback: Fallback, failure: &str) -> Response {
    let (title, input) = match fallback {
        Fallback::Dummy => ("Go on", ""),
        Fallback::RegistrationToken => (
            "This server asks for a registration token",
            "<label>Token <input name=\"token\" required autocomplete=\"off\" maxlength=\"255\"></label>",
        ),
    };
    let html = STAGE.replace("{title}", title).replace("{input}", input).replace("{failure}", &escaped(failure));
    page(status, &html, None)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A page with its style and script inside, which may load nothing and run nothing else.
fn page(status: StatusCode, html: &str, script: Option<&str>) -> Response {
    let style = format!("'sha256-{}'", hash(STYLE));
    let script_rule = script.map_or_else(|| "'none'".to_owned(), |script| format!("'sha256-{}'", hash(script)));
    let rule = format!(
        "default-src 'none'; style-src {style}; script-src {script_rule}; connect-src 'self'; form-action 'self'; \
         base-uri 'none'; frame-ancestors 'none'"
    );
    let script = script.map(|script| format!("<script>{script}</script>")).unwrap_or_default();
    let html = html.replace("{style}", &format!("<style>{STYLE}</style>")).replace("{script}", &script);
    let mut response = http::Response::new(Body::from(html));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Ok(rule) = HeaderValue::from_str(&rule) {
        headers.insert(header::CONTENT_SECURITY_POLICY, rule);
    }
    response
}

fn hash(text: &str) -> String {
    STANDARD.encode(digest(&SHA256, text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::config::RegistrationMode;
    use crate::http::Body;
    use crate::testing::{PASSWORD, Server, config};

    #[tokio::test]
    async fn a_stage_is_done_on_a_page() {
        let mut config = config();
        config.registration.mode = RegistrationMode::Token;
        config.registration.tokens = vec!["welcome".to_owned()];
        let server = Server::new(config);
        let mut body = json!({ "username": "alice", "password": PASSWORD });
        let asked = server.client.post("/_matrix/client/v3/register", body.clone()).await.json();
        let session = asked["session"].as_str().unwrap();
        let path = format!("/_matrix/client/v3/auth/m.login.registration_token/fallback/web?session={session}");
        let page = server.client.get(&path).await;
        assert!(String::from_utf8_lossy(&page.body).contains("name=\"token\""));
        let send = async |token: &str| {
            let form = Body::from(format!("token={token}"));
            server.client.send(http::Method::POST, &path, form).await.status.as_u16()
        };
        assert_eq!(send("wrong").await, 403);
        body["auth"] = json!({ "session": session });
        assert_eq!(server.client.post("/_matrix/client/v3/register", body.clone()).await.status, 401);
        assert_eq!(send("welcome").await, 200);
        assert_eq!(server.client.post("/_matrix/client/v3/register", body).await.status, 200);
        assert_eq!(server.client.get(&path).await.errcode(), "M_NOT_FOUND", "the session is over");
    }

    #[tokio::test]
    async fn pages_load_nothing_from_elsewhere() {
        let server = Server::default();
        let page = server.client.get("/_matrix/static/client/login/").await;
        let text = String::from_utf8(page.body.to_vec()).unwrap();
        assert!(text.contains("<script>") && !text.contains("http://") && !text.contains("https://"), "{text}");
        assert!(!text.contains("{script}") && !text.contains("{style}"));
        let unknown = server.client.get("/_matrix/client/v3/auth/m.login.sso/fallback/web?session=x").await;
        assert_eq!(unknown.errcode(), "M_NOT_FOUND");
    }
}
