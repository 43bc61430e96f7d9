//! Accounts' tokens, login and interactive authentication. The HTTP edge calls `authenticate` and knows no more.

pub mod requester;

pub use requester::{Access, Credentials, Requester, Scheme};

use crate::App;
use crate::error::{Error, Result};

/// Looks a token up. There are no accounts yet, so no token is known.
pub async fn authenticate(_app: &App, _credentials: &Credentials) -> Result<Requester> {
    Err(Error::unknown_token())
}
