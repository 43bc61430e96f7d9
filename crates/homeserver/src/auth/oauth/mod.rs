//! The OAuth 2.0 authorization server: which clients there are, what their users granted them, and who sits in front of
//! the browser.
//!
//! Clients and sessions are rows. What lives for minutes (codes, grants for devices, logins of browsers, approvals) is
//! kept in bounded memory: after a restart a user begins anew. Not here: requests, answers and pages (`client/oauth`).

pub mod browser;
pub mod clients;
mod expiring;
pub mod grants;
pub mod rendezvous;
pub mod scope;

use std::borrow::Cow;

use ring::hmac;
use store::Read;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::rng::Rng;
use crate::schema::OAUTH_SESSIONS;

pub use expiring::Expiring;

/// What the authorization server keeps in memory.
pub struct Oauth {
    pub grants: grants::Grants,
    pub browsers: browser::Browsers,
    pub resets: browser::Resets,
    pub points: rendezvous::Points,
    pub newcomers: clients::Newcomers,
    site: Option<Site>,
}

impl Oauth {
    pub fn new(config: &Config, rng: &Rng) -> Self {
        Self {
            grants: grants::Grants::new(rng),
            browsers: browser::Browsers::new(rng),
            resets: browser::Resets::default(),
            points: rendezvous::Points::default(),
            newcomers: clients::Newcomers::default(),
            site: Site::of(config),
        }
    }

    /// Where the pages are. An error like that of an unknown path when there are none.
    pub fn site(&self) -> Result<&Site> {
        self.site.as_ref().ok_or_else(Error::unrecognized)
    }
}

/// Where the world reaches this server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Without a slash at the end.
    base: String,
}

impl Site {
    fn of(config: &Config) -> Option<Self> {
        let base = config.well_known.client_base_url.as_deref().filter(|_| config.oauth.enabled)?;
        Some(Self { base: base.trim_end_matches('/').to_owned() })
    }

    /// The URL of a path of this server.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    pub fn issuer(&self) -> String {
        self.url("/")
    }

    /// Whether cookies can be kept to secure connections.
    pub fn is_secure(&self) -> bool {
        self.base.starts_with("https://")
    }

    /// Where a user replaces their cross-signing keys.
    pub fn reset_url(&self) -> String {
        self.url("/account?action=org.matrix.cross_signing_reset")
    }
}

/// Whether a device logged in by OAuth.
pub fn is_session(read: &impl Read, user_id: &str, device_id: &str) -> Result<bool> {
    Ok(read.contains(&OAUTH_SESSIONS, (user_id, device_id))?)
}

/// Why an OAuth request is refused. The words are those of RFC 6749, 7591 and 8628, and of OpenID Connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    InvalidRequest,
    InvalidClient,
    InvalidGrant,
    InvalidScope,
    InvalidClientMetadata,
    InvalidRedirectUri,
    UnauthorizedClient,
    UnsupportedGrantType,
    UnsupportedResponseType,
    AccessDenied,
    ConsentRequired,
    AuthorizationPending,
    SlowDown,
    ExpiredToken,
    TemporarilyUnavailable,
}

impl Reason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::InvalidClient => "invalid_client",
            Self::InvalidGrant => "invalid_grant",
            Self::InvalidScope => "invalid_scope",
            Self::InvalidClientMetadata => "invalid_client_metadata",
            Self::InvalidRedirectUri => "invalid_redirect_uri",
            Self::UnauthorizedClient => "unauthorized_client",
            Self::UnsupportedGrantType => "unsupported_grant_type",
            Self::UnsupportedResponseType => "unsupported_response_type",
            Self::AccessDenied => "access_denied",
            Self::ConsentRequired => "consent_required",
            Self::AuthorizationPending => "authorization_pending",
            Self::SlowDown => "slow_down",
            Self::ExpiredToken => "expired_token",
            Self::TemporarilyUnavailable => "temporarily_unavailable",
        }
    }
}

/// An OAuth request that is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub reason: Reason,
    /// A sentence for developers.
    pub why: Cow<'static, str>,
}

impl Refused {
    pub fn new(reason: Reason, why: impl Into<Cow<'static, str>>) -> Self {
        Self { reason, why: why.into() }
    }
}

/// Either refused in OAuth's words, or something else went wrong.
#[derive(Debug)]
pub enum Failure {
    Refused(Refused),
    Other(Error),
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

impl From<Error> for Failure {
    #[track_caller]
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl From<store::Error> for Failure {
    #[track_caller]
    fn from(error: store::Error) -> Self {
        Self::Other(error.into())
    }
}

/// A key that lives as long as the process, to compare secrets in a time that tells nothing of them, and to make some
/// that need not be remembered.
pub(crate) struct Key(hmac::Key);

impl Key {
    fn new(rng: &Rng) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, &rng.bytes::<32>()))
    }

    fn tag(&self, text: &str) -> hmac::Tag {
        hmac::sign(&self.0, text.as_bytes())
    }

    fn is_tag(&self, text: &str, tag: &[u8]) -> bool {
        hmac::verify(&self.0, text.as_bytes(), tag).is_ok()
    }

    fn same(&self, one: &str, other: &str) -> bool {
        self.is_tag(one, self.tag(other).as_ref())
    }
}
