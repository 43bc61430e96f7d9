//! Forms and queries: names and values, each name once.

use std::time::Duration;

use crate::auth::oauth::{Failure, Reason, Refused};
use crate::http::{Body, RawCtx};

/// In the order they came in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fields(Vec<(String, String)>);

const MAX_FORM_BYTES: usize = 32 * 1024;

impl Fields {
    /// RFC 6749: a parameter is there once, and an empty one is not there.
    pub(super) fn parse(text: &str) -> Result<Self, Refused> {
        let invalid = || Refused::new(Reason::InvalidRequest, "The parameters make no sense");
        let mut fields: Vec<(String, String)> = serde_html_form::from_str(text).map_err(|_| invalid())?;
        fields.retain(|(_, value)| !value.is_empty());
        let twice =
            |(at, (name, _)): (usize, &(String, String))| fields.iter().skip(at + 1).any(|(other, _)| other == name);
        if fields.len() > 64 || fields.iter().enumerate().any(twice) {
            return Err(Refused::new(Reason::InvalidRequest, "A parameter is there twice"));
        }
        Ok(Self(fields))
    }

    /// The body of a request.
    pub(super) async fn read(ctx: &mut RawCtx) -> Result<Self, Failure> {
        let within: Duration = ctx.app.config.http.body_timeout.get();
        let body: Body = std::mem::take(&mut ctx.body);
        let bytes = body.collect(MAX_FORM_BYTES, within).await?;
        let text = std::str::from_utf8(&bytes);
        let text = text.map_err(|_| Refused::new(Reason::InvalidRequest, "The form is not UTF-8"))?;
        Ok(Self::parse(text)?)
    }

    pub(super) fn query(ctx: &RawCtx) -> Result<Self, Refused> {
        Self::parse(ctx.uri.query().unwrap_or(""))
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// A value, or the empty string.
    pub(super) fn text(&self, name: &str) -> &str {
        self.get(name).unwrap_or("")
    }

    pub(super) fn need(&self, name: &'static str) -> Result<&str, Refused> {
        self.get(name).ok_or_else(|| Refused::new(Reason::InvalidRequest, format!("{name} is missing")))
    }

    pub(super) fn without(&self, name: &str) -> Self {
        Self(self.0.iter().filter(|(known, _)| known != name).cloned().collect())
    }

    pub(super) fn of(fields: &[(&str, &str)]) -> Self {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Self(fields.iter().map(own).collect())
    }

    pub(super) fn encode(&self) -> String {
        // Pairs of strings can always be written.
        serde_html_form::to_string(&self.0).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_is_there_once() {
        let fields = Fields::parse("a=1&b=x%26y+z&c=").unwrap();
        assert_eq!((fields.get("a"), fields.text("b"), fields.get("c")), (Some("1"), "x&y z", None));
        assert_eq!(fields.without("a").encode(), "b=x%26y+z");
        assert!(Fields::parse("a=1&a=2").is_err());
        assert_eq!(fields.need("d").unwrap_err().why, "d is missing");
    }
}
