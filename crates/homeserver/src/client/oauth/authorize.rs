//! A user lets a client in: the authorization endpoint and its consent page (RFC 6749, section 4.1; RFC 7636).
//!
//! Nothing is remembered between the request and the user's answer: the form brings the request along, and it is checked
//! anew. Until client and redirect URI are known to belong together, what is wrong is told to the user and to nobody
//! else; after that, to the client.

use http::StatusCode;
use ruma::OwnedUserId;

use super::fields::Fields;
use super::page::{self, Browser, Text, form, hidden, redirect};
use crate::App;
use crate::auth::oauth::browser::Person;
use crate::auth::oauth::clients::{self, CODE, Metadata};
use crate::auth::oauth::grants::{self, Code};
use crate::auth::oauth::scope::Scope;
use crate::auth::oauth::{Failure, Reason, Refused};
use crate::config::RegistrationMode;
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response};
use crate::schema::User;

pub(super) const PATH: &str = "/oauth2/authorize";

/// Where the answer goes.
struct Return {
    uri: String,
    fragment: bool,
    state: Option<String>,
}

/// Who asks, and where they are to be answered.
struct Asker {
    client_id: String,
    client: Metadata,
    to: Return,
}

/// What is asked for.
struct Wish {
    scope: Scope,
    challenge: String,
}

pub(super) async fn show(ctx: RawCtx) -> Result<Response> {
    page::asked(&ctx, ask)
}

fn ask(ctx: &RawCtx, fields: &Fields) -> Result<Response, Failure> {
    let (app, browser) = (&ctx.app, Browser::of(ctx)?);
    let asker = Asker::of(app, fields)?;
    let prompts: Vec<&str> = fields.text("prompt").split(' ').collect();
    let refused = match asker.wish(fields) {
        Ok(_) if prompts.contains(&"none") => Err(Refused::new(Reason::ConsentRequired, "Users are always asked")),
        outcome => outcome,
    };
    let wish = match refused {
        Ok(wish) => wish,
        Err(refused) if browser.user.is_some() => return Ok(asker.to.refuse(&refused)),
        // Who has seen no page of ours is not sent on to where some client wants.
        Err(_) => return Ok(page::log_in_first(app, &format!("{PATH}?{}", fields.encode()))),
    };
    // Asked for once, not again after it was done.
    let next = format!("{PATH}?{}", fields.without("prompt").encode());
    if prompts.contains(&"create") && app.config.registration.mode != RegistrationMode::Closed {
        return Ok(page::go(app, &format!("/oauth2/register?{}", Fields::of(&[("next", &next)]).encode())));
    }
    match &browser.user {
        Some(user) if !prompts.contains(&"login") => {
            Ok(consent(app, &browser, user, &asker, &wish, &fields.without("prompt").encode())?)
        }
        _ => Ok(page::log_in_first(app, &next)),
    }
}

fn consent(
    app: &App,
    browser: &Browser,
    user: &(OwnedUserId, User),
    asker: &Asker,
    wish: &Wish,
    request: &str,
) -> Result<Response> {
    let (user_id, host) = (&user.0, asker.client.host());
    let name = asker.client.client_name.as_deref().unwrap_or(&host);
    let inside = format!(
        r#"{}{}<button name="answer" value="allow">Continue</button><button class="other" name="answer" value="deny">Cancel</button>"#,
        hidden("request", request),
        hidden("user", user_id.as_str()),
    );
    let next = format!("{PATH}?{request}");
    let others = format!(r#"{}<button class="other">Use another account</button>"#, hidden("next", &next));
    let main = format!(
        "<p><b>{}</b> of <b>{}</b> wants to use your account <b>{}</b>.</p>\
         <p>It will read and send messages in your name, and change your account. Continue only if you have just begun to \
         log in there.</p>{}<p>Device: <code>{}</code><br>You will be sent to: <code>{}</code></p>{}{}",
        Text(name),
        Text(&host),
        Text(user_id.as_str()),
        page::warnings(app, user, &wish.scope)?,
        Text(&wish.scope.device_id),
        Text(&asker.to.uri),
        form(app, PATH, browser, &inside)?,
        form(app, "/oauth2/logout", browser, &others)?,
    );
    browser.page(app, StatusCode::OK, "Let this app in?", &main)
}

pub(super) async fn answer(ctx: RawCtx) -> Result<Response> {
    page::sent(ctx, decide).await
}

fn decide(ctx: &RawCtx, form: &Fields) -> Result<Response, Failure> {
    let (app, browser) = (&ctx.app, Browser::of(ctx)?);
    browser.check_form(app, form)?;
    let request = Fields::parse(form.text("request"))?;
    let asker = Asker::of(app, &request)?;
    let wish = match asker.wish(&request) {
        Ok(wish) => wish,
        Err(refused) => return Ok(asker.to.refuse(&refused)),
    };
    let by = match &browser.user {
        Some((user_id, user)) if user_id.as_str() == form.text("user") => Person::new(user_id.clone(), user),
        // Somebody else has logged in meanwhile, or nobody is any more: they see the page first.
        _ => return Ok(page::go(app, &format!("{PATH}?{}", request.encode()))),
    };
    match form.text("answer") {
        "allow" => {}
        "deny" => return Ok(asker.to.refuse(&Refused::new(Reason::AccessDenied, "The user did not want this"))),
        _ => return Err(Error::invalid_param("There is no such answer").into()),
    }
    let Asker { client_id, to, .. } = asker;
    let code = Code::new(client_id, to.uri.clone(), wish.challenge, by, wish.scope);
    Ok(match code.issue(app) {
        Ok(code) => to.answer(&[("code", &code)]),
        Err(refused) => to.refuse(&refused),
    })
}

impl Asker {
    fn of(app: &App, fields: &Fields) -> Result<Self, Failure> {
        let client_id = fields.need("client_id")?;
        let unknown =
            || Refused::new(Reason::InvalidClient, "This app is not known here. Go back to it and begin anew.");
        let client = clients::find(&app.store.snapshot(), client_id)?.ok_or_else(unknown)?;
        let uri = fields.need("redirect_uri")?;
        if !client.redirects_to(uri) {
            return Err(Refused::new(
                Reason::InvalidRequest,
                "The app asks for an answer at an address that is not its own.",
            )
            .into());
        }
        let fragment = fields.get("response_mode") == Some("fragment");
        let to = Return { uri: uri.to_owned(), fragment, state: fields.get("state").map(str::to_owned) };
        Ok(Self { client_id: client_id.to_owned(), client, to })
    }

    fn wish(&self, fields: &Fields) -> Result<Wish, Refused> {
        let invalid = |why: &'static str| Refused::new(Reason::InvalidRequest, why);
        if fields.need("response_type")? != "code" {
            return Err(Refused::new(Reason::UnsupportedResponseType, "The only response type is code"));
        }
        if !self.client.may(CODE) {
            return Err(Refused::new(Reason::UnauthorizedClient, "The client did not register this grant type"));
        }
        if !matches!(fields.get("response_mode"), None | Some("query" | "fragment")) {
            return Err(invalid("The response modes are query and fragment"));
        }
        if fields.get("code_challenge_method") != Some("S256") {
            return Err(invalid("code_challenge_method has to be S256"));
        }
        let challenge = fields.need("code_challenge")?;
        if !grants::is_challenge(challenge) {
            return Err(invalid("This is no code_challenge"));
        }
        Ok(Wish { scope: Scope::parse(fields.text("scope"))?, challenge: challenge.to_owned() })
    }
}

impl Return {
    fn refuse(&self, refused: &Refused) -> Response {
        self.answer(&[("error", refused.reason.as_str()), ("error_description", &refused.why)])
    }

    fn answer(&self, fields: &[(&str, &str)]) -> Response {
        let mut fields = fields.to_vec();
        if let Some(state) = &self.state {
            fields.push(("state", state));
        }
        let sign = match (self.fragment, self.uri.contains('?')) {
            (true, _) => "#",
            (false, true) => "&",
            (false, false) => "?",
        };
        redirect(&format!("{}{sign}{}", self.uri, Fields::of(&fields).encode()))
    }
}
