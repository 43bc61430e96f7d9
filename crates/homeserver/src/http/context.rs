//! What a handler gets.

use std::borrow::Cow;
use std::net::IpAddr;

use bytes::Bytes;
use http::{HeaderMap, Method, Uri};
use ruma::api::Metadata;

use super::Body;
use crate::App;
use crate::auth::requester::query_value;
use crate::auth::{Requester, Scheme};
use crate::error::{Error, Result};

/// The context of an endpoint that ruma has types for.
///
/// A long poll should take apart what it needs and drop the rest before it waits.
pub struct Ctx<R>
where
    R: Metadata,
    R::Authentication: Scheme,
{
    pub app: App,
    pub request: R,
    /// `Requester`, `Option<Requester>` or `()`, as the endpoint's authentication has it.
    pub requester: <R::Authentication as Scheme>::Requester,
    pub ip: IpAddr,
    /// The query as it came, for parameters that ruma does not know.
    pub query: Box<str>,
    /// The JSON body as it came (`{}` if there was none); empty for GET.
    pub body: Bytes,
    /// Empty for GET.
    pub user_agent: Box<str>,
}

impl<R> Ctx<R>
where
    R: Metadata,
    R::Authentication: Scheme,
{
    /// The first value of a query parameter, decoded.
    pub fn query_value(&self, name: &str) -> Option<Cow<'_, str>> {
        query_value(&self.query, name)
    }
}

/// The context of an endpoint that reads its request itself.
pub struct RawCtx {
    pub app: App,
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    /// Path arguments, percent-decoded once, in the order of the path.
    pub args: Vec<String>,
    /// Not read yet.
    pub body: Body,
    pub requester: Option<Requester>,
    pub ip: IpAddr,
}

impl RawCtx {
    /// The first value of a query parameter, decoded.
    pub fn query_value(&self, name: &str) -> Option<Cow<'_, str>> {
        query_value(self.uri.query()?, name)
    }

    /// The whole query, as a type.
    pub fn query<'a, T: serde::Deserialize<'a>>(&'a self) -> Result<T> {
        let query = self.uri.query().unwrap_or("");
        serde_html_form::from_str(query).map_err(|cause| Error::invalid_param(cause.to_string()))
    }

    /// A path argument. Asking beyond the path's own arguments gives the empty string.
    pub fn arg(&self, index: usize) -> &str {
        self.args.get(index).map_or("", String::as_str)
    }

    pub fn requester(&self) -> Result<&Requester> {
        self.requester.as_ref().ok_or_else(Error::missing_token)
    }

    /// Reads the body as a JSON object, within the usual limits. An empty body is an empty object.
    pub async fn read_json<T: serde::de::DeserializeOwned>(&mut self) -> Result<T> {
        self.read_json_within(usize::MAX).await
    }

    /// The same for a body that has no more than so many bytes, whatever the settings allow for others.
    pub async fn read_json_within<T: serde::de::DeserializeOwned>(&mut self, bytes: usize) -> Result<T> {
        let settings = &self.app.config.http;
        let (limit, within) = (settings.max_body.as_usize().min(bytes), settings.body_timeout.get());
        let bytes = std::mem::take(&mut self.body).collect(limit, within).await?;
        let bytes: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        super::json::check_object(bytes)?;
        Ok(serde_json::from_slice(bytes)?)
    }
}
