//! Logging in by OAuth 2.0: what clients ask (JSON and forms), and the pages that their users see.
//!
//! - `metadata.rs`, `registration.rs`, `token.rs`: what clients ask.
//! - `authorize.rs`, `link.rs`, `sso.rs`: a user lets a client in; `login.rs`: who the user is; `account.rs`: what they may do else.
//! - `rendezvous.rs`: two devices meet to log one of them in by the other.
//! - `page.rs`: HTML, cookies; `fields.rs`: forms and queries.
//!
//! Who may have what is decided in `auth/oauth`. While the settings do not ask for it, all of this is not there.

mod account;
mod authorize;
mod fields;
mod link;
mod login;
mod metadata;
mod page;
mod registration;
mod rendezvous;
mod sso;
#[cfg(test)]
mod tests;
mod token;

use http::{HeaderValue, Method, StatusCode, header};
use serde_json::json;

use crate::auth::oauth::{Failure, Reason, Refused};
use crate::error::Result;
use crate::http::{Response, Routes, json_response};
use crate::limits::Class;

pub fn routes() -> Routes {
    Routes::default()
        .raw(Method::GET, metadata::PATHS, metadata::metadata)
        .raw(Method::POST, &["/oauth2/registration"], registration::register)
        .limit(Class::Login)
        .raw(Method::POST, &["/oauth2/token"], token::token)
        .limit(Class::Other)
        .raw(Method::POST, &["/oauth2/revoke"], token::revoke)
        .limit(Class::Other)
        .raw(Method::POST, &["/oauth2/device"], token::device)
        .limit(Class::Login)
        .raw(Method::GET, &["/oauth2/authorize"], authorize::show)
        .limit(Class::Other)
        .raw(Method::POST, &["/oauth2/authorize"], authorize::answer)
        .limit(Class::Other)
        .raw(Method::GET, &["/oauth2/link"], link::show)
        .limit(Class::Other)
        .raw(Method::POST, &["/oauth2/link"], link::answer)
        .limit(Class::Other)
        .raw(Method::GET, sso::REDIRECTS, sso::begin)
        .limit(Class::Other)
        .raw(Method::GET, &[sso::PATH], sso::show)
        .limit(Class::Other)
        .raw(Method::POST, &[sso::PATH], sso::answer)
        .limit(Class::Other)
        .raw(Method::GET, &["/oauth2/login"], login::show)
        .limit(Class::Other)
        .raw(Method::POST, &["/oauth2/login"], login::log_in)
        .limit(Class::Login)
        .raw(Method::GET, &["/oauth2/register"], login::show_registration)
        .limit(Class::Other)
        .raw(Method::POST, &["/oauth2/register"], login::register)
        .limit(Class::Register)
        .raw(Method::POST, &["/oauth2/logout"], login::log_out)
        .limit(Class::Other)
        .raw(Method::POST, &[rendezvous::PATH], rendezvous::open)
        .limit(Class::Login)
        .raw(Method::GET, &[rendezvous::POINT], rendezvous::read)
        .limit(Class::Other)
        .raw(Method::PUT, &[rendezvous::POINT], rendezvous::write)
        .limit(Class::Other)
        .raw(Method::DELETE, &[rendezvous::POINT], rendezvous::close)
        .limit(Class::Other)
        .raw(Method::GET, &["/oauth2/style.css"], page::style)
        .raw(Method::GET, &["/account"], account::show)
        .limit(Class::Other)
        .raw(Method::POST, &["/account"], account::act)
        .limit(Class::Login)
}

/// An answer to a client, refusals included.
fn answered(outcome: Result<Response, Failure>) -> Result<Response> {
    match outcome {
        Ok(response) => Ok(response),
        Err(Failure::Refused(refused)) => Ok(refusal(&refused)),
        Err(Failure::Other(error)) => Err(error),
    }
}

fn refusal(refused: &Refused) -> Response {
    let status = match refused.reason {
        Reason::InvalidClient => StatusCode::UNAUTHORIZED,
        Reason::TemporarilyUnavailable => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::BAD_REQUEST,
    };
    secret(status, &json!({ "error": refused.reason.as_str(), "error_description": refused.why }))
}

/// A JSON answer that nobody keeps.
fn secret(status: StatusCode, body: &serde_json::Value) -> Response {
    let mut response = json_response(status, body.to_string());
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
