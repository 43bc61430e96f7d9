//! Errors as HTTP answers.

use std::time::Duration;

use http::{HeaderValue, header};

use super::{Response, json_response};
use crate::error::Error;

impl From<Error> for Response {
    fn from(error: Error) -> Self {
        let mut response = json_response(error.status(), error.body().to_string());
        if let Some(after) = error.retry_after() {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(after)));
        }
        response
    }
}

/// Rounded up: a client that waits this long finds the limit gone.
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pitfall_008_a_limit_names_its_wait_twice() {
        let error = Error::limit_exceeded(Duration::from_millis(1500));
        assert_eq!(error.body()["retry_after_ms"], 1500);
        let response = Response::from(error);
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()[header::RETRY_AFTER], "2");
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
    }
}
