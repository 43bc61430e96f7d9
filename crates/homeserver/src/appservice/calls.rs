//! Requests to an application service: to the URL of its registration, with the token that it knows this server by, and
//! to the older paths where it does not know the present ones.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use serde::Deserialize;

use crate::App;
use crate::config::registrations::Registration;
use crate::error::ErrorCode;
use crate::outgoing::{Ask, OutgoingError};

const WITHIN: Duration = Duration::from_secs(30);
const MAX_ANSWER_BYTES: usize = 512 * 1024;
const PRESENT: &str = "/_matrix/app/v1/";

/// Why a service did not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    #[error("its registration has no URL")]
    NoUrl,
    #[error(transparent)]
    Outgoing(#[from] OutgoingError),
}

/// Asks a service under a path of the present version, such as `users/@a:b` (encoded), with a query at its end or not.
pub async fn call(
    app: &App,
    service: &Registration,
    method: Method,
    path: &str,
    body: Option<Bytes>,
) -> Result<(StatusCode, Bytes), CallError> {
    let answer = ask(app, service, method.clone(), &format!("{PRESENT}{path}"), body.clone()).await?;
    match older(path) {
        Some(older) if is_unknown_path(&answer) => {
            let second = ask(app, service, method, &older, body).await?;
            // What the present path said counts, unless the older one is better.
            Ok(if second.0.is_success() || !is_unknown_path(&second) { second } else { answer })
        }
        _ => Ok(answer),
    }
}

async fn ask(
    app: &App,
    service: &Registration,
    method: Method,
    path: &str,
    body: Option<Bytes>,
) -> Result<(StatusCode, Bytes), CallError> {
    let to = service.service.as_ref().ok_or(CallError::NoUrl)?;
    let url = format!("{}{path}", to.url);
    let bearer = Some(service.hs_token.as_str());
    let ask = Ask { method, url: &url, bearer, body, within: WITHIN, max_answer_bytes: MAX_ANSWER_BYTES };
    Ok(app.outgoing.request(std::slice::from_ref(&to.place), ask).await?)
}

/// Where services of a time before versions listen.
fn older(path: &str) -> Option<String> {
    match path.split('/').next()? {
        "transactions" | "users" | "rooms" => Some(format!("/{path}")),
        "thirdparty" => Some(format!("/_matrix/app/unstable/{path}")),
        _ => None,
    }
}

/// Whether an answer says that there is no such path, rather than that there is no such user or room.
fn is_unknown_path((status, body): &(StatusCode, Bytes)) -> bool {
    #[derive(Deserialize)]
    struct Answer {
        errcode: String,
    }
    match *status {
        StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => true,
        StatusCode::NOT_FOUND => {
            let answer = serde_json::from_slice::<Answer>(body).ok();
            answer.is_none_or(|answer| ErrorCode::from(answer.errcode) == ErrorCode::Unrecognized)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_paths_are_for_what_is_old() {
        assert_eq!(older("transactions/1").as_deref(), Some("/transactions/1"));
        assert_eq!(older("thirdparty/user?a=b").as_deref(), Some("/_matrix/app/unstable/thirdparty/user?a=b"));
        assert_eq!(older("ping"), None);
    }

    #[test]
    fn an_unknown_user_is_no_unknown_path() {
        let unknown = |status: u16, body: &'static str| {
            is_unknown_path(&(StatusCode::from_u16(status).unwrap(), Bytes::from_static(body.as_bytes())))
        };
        assert!(unknown(404, "<html>") && unknown(405, "") && unknown(404, r#"{"errcode":"M_UNRECOGNIZED"}"#));
        assert!(!unknown(404, r#"{"errcode":"M_NOT_FOUND"}"#) && !unknown(500, "") && !unknown(200, "{}"));
    }
}
