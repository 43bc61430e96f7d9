//! Who asks: the credentials a request carries, and what is known about their owner once they were looked up.

use std::borrow::Cow;
use std::sync::Arc;

use http::{HeaderMap, header};
use percent_encoding::percent_decode_str;
use ruma::api::auth_scheme;
use ruma::{DeviceId, OwnedDeviceId, OwnedUserId};

use crate::error::{Error, Result};

/// What a request brought along to prove who sends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    pub token: String,
    /// `?user_id=`: an appservice speaks for this user.
    pub as_user: Option<String>,
    /// `?device_id=`: an appservice speaks for this device of that user.
    pub as_device: Option<String>,
}

/// The authenticated sender of a request.
#[derive(Clone, Debug)]
pub struct Requester {
    pub user_id: OwnedUserId,
    /// `None` for appservices that did not name one.
    pub device_id: Option<OwnedDeviceId>,
    /// Identifies the token among the user's own (never the token itself).
    pub token_id: Arc<str>,
    pub guest: bool,
    /// A locked account may only log out.
    pub locked: bool,
    /// A suspended account may read and leave, hardly more: the endpoints decide.
    pub suspended: bool,
    /// May use the administration endpoints.
    pub admin: bool,
    pub appservice: Option<Arc<str>>,
    /// `false` for appservices that are exempt from rate limits.
    pub rate_limited: bool,
}

impl Requester {
    /// The device, for endpoints that make no sense without one.
    pub fn device(&self) -> Result<&DeviceId> {
        self.device_id.as_deref().ok_or_else(|| Error::forbidden("This endpoint needs a device"))
    }

    /// For writing endpoints that a suspended account may not use.
    pub fn not_suspended(&self) -> Result<()> {
        if self.suspended { Err(Error::user_suspended()) } else { Ok(()) }
    }
}

/// Which requester an endpoint wants to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// No token is looked for.
    Anyone,
    /// A token is checked if there is one.
    OptionalToken,
    Token,
    AppserviceToken,
    /// A token is looked at only if it is an application service's; others are as good as none.
    AppserviceTokenIfAny,
    /// A token of an administrator.
    Admin,
}

/// Ties ruma's authentication schemes to the type of `Ctx::requester`.
pub trait Scheme {
    const ACCESS: Access;
    type Requester: Send + 'static;

    /// The router has enforced `ACCESS` already; this only changes the type.
    fn accept(requester: Option<Requester>) -> Result<Self::Requester>;
}

impl Scheme for auth_scheme::AccessToken {
    const ACCESS: Access = Access::Token;
    type Requester = Requester;

    fn accept(requester: Option<Requester>) -> Result<Requester> {
        requester.ok_or_else(Error::missing_token)
    }
}

impl Scheme for auth_scheme::AccessTokenOptional {
    const ACCESS: Access = Access::OptionalToken;
    type Requester = Option<Requester>;

    fn accept(requester: Option<Requester>) -> Result<Self::Requester> {
        Ok(requester)
    }
}

impl Scheme for auth_scheme::AppserviceToken {
    const ACCESS: Access = Access::AppserviceToken;
    type Requester = Requester;

    fn accept(requester: Option<Requester>) -> Result<Requester> {
        requester.ok_or_else(Error::missing_token)
    }
}

impl Scheme for auth_scheme::AppserviceTokenOptional {
    const ACCESS: Access = Access::AppserviceTokenIfAny;
    type Requester = Option<Requester>;

    fn accept(requester: Option<Requester>) -> Result<Self::Requester> {
        Ok(requester)
    }
}

impl Scheme for auth_scheme::NoAccessToken {
    const ACCESS: Access = Access::Anyone;
    type Requester = ();

    fn accept(_: Option<Requester>) -> Result<()> {
        Ok(())
    }
}

impl Scheme for auth_scheme::NoAuthentication {
    const ACCESS: Access = Access::Anyone;
    type Requester = ();

    fn accept(_: Option<Requester>) -> Result<()> {
        Ok(())
    }
}

impl Credentials {
    /// The token of a request: `Authorization: Bearer` first (its scheme in any case), then `?access_token=`.
    pub fn extract(headers: &HeaderMap, query: Option<&str>) -> Result<Option<Self>> {
        let query = query.unwrap_or("");
        let token = match headers.get(header::AUTHORIZATION) {
            Some(value) => Some(bearer(value.as_bytes())?.to_owned()),
            None => query_value(query, "access_token").map(Cow::into_owned),
        };
        Ok(token.filter(|token| !token.is_empty()).map(|token| Self {
            token,
            as_user: query_value(query, "user_id").map(Cow::into_owned),
            as_device: query_value(query, "device_id")
                .or_else(|| query_value(query, "org.matrix.msc3202.device_id"))
                .map(Cow::into_owned),
        }))
    }
}

fn bearer(value: &[u8]) -> Result<&str> {
    const SCHEME: &[u8] = b"bearer ";
    let (scheme, token) = value.split_at_checked(SCHEME.len()).ok_or_else(Error::missing_token)?;
    if !scheme.eq_ignore_ascii_case(SCHEME) {
        return Err(Error::missing_token());
    }
    std::str::from_utf8(token).map(str::trim).map_err(|_| Error::unknown_token())
}

/// The first value of `name` in a query string, decoded.
pub fn query_value<'a>(query: &'a str, name: &str) -> Option<Cow<'a, str>> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then(|| decode_query(value))
    })
}

fn decode_query(value: &str) -> Cow<'_, str> {
    if value.contains('+') {
        let spaced = value.replace('+', " ");
        return Cow::Owned(percent_decode_str(&spaced).decode_utf8_lossy().into_owned());
    }
    percent_decode_str(value).decode_utf8_lossy()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn extract(authorization: Option<&'static str>, query: &str) -> Result<Option<String>> {
        let mut headers = HeaderMap::new();
        if let Some(value) = authorization {
            headers.insert(header::AUTHORIZATION, HeaderValue::from_static(value));
        }
        Ok(Credentials::extract(&headers, Some(query))?.map(|credentials| credentials.token))
    }

    #[test]
    fn a_token_comes_by_header_or_query() {
        assert_eq!(extract(Some("Bearer abc"), "").unwrap().as_deref(), Some("abc"));
        assert_eq!(extract(Some("bEaReR abc"), "access_token=x").unwrap().as_deref(), Some("abc"));
        assert_eq!(extract(None, "a=1&access_token=a%2Fb").unwrap().as_deref(), Some("a/b"));
        assert_eq!(extract(None, "access_token=").unwrap(), None);
        assert_eq!(extract(None, "").unwrap(), None);
        assert!(extract(Some("Basic abc"), "").is_err());
        assert!(extract(Some("Bearer"), "").is_err());
    }

    #[test]
    fn an_appservice_names_user_and_device() {
        let query = "user_id=%40a%3Ahs&org.matrix.msc3202.device_id=D+1&access_token=t";
        let credentials = Credentials::extract(&HeaderMap::new(), Some(query)).unwrap().unwrap();
        assert_eq!(credentials.as_user.as_deref(), Some("@a:hs"));
        assert_eq!(credentials.as_device.as_deref(), Some("D 1"));
    }
}
