//! What goes wrong, as the protocol says it: the one place that makes `M_*` codes and JSON error bodies.
//!
//! Handlers return `Result<T>`; the constructors below are the vocabulary. Causes that are nobody's business
//! outside (engine failures, panics, corrupt rows) become `Error::internal`: logged here, answered as `M_UNKNOWN`.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use http::StatusCode;
pub use ruma::api::error::ErrorCode;
use ruma::api::error::{DeserializationError, FromHttpRequestError, IntoHttpError};
use serde_json::{Map, Value, json};

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An answer that is not a success. Boxed, so that `Result<T>` stays small on the path where nothing goes wrong.
pub struct Error(Box<Inner>);

struct Inner {
    status: StatusCode,
    /// `None` only for a user-interactive authentication round in which nothing failed yet.
    code: Option<ErrorCode>,
    message: Cow<'static, str>,
    extra: Map<String, Value>,
    retry_after: Option<Duration>,
}

type Text = Cow<'static, str>;

impl Error {
    pub fn new(status: StatusCode, code: ErrorCode, message: impl Into<Text>) -> Self {
        Self(Box::new(Inner {
            status,
            code: Some(code),
            message: message.into(),
            extra: Map::new(),
            retry_after: None,
        }))
    }

    /// A code that ruma does not know.
    pub fn custom(status: StatusCode, code: &'static str, message: impl Into<Text>) -> Self {
        Self::new(status, ErrorCode::from(code), message)
    }

    // 400

    pub fn bad_request(code: ErrorCode, message: impl Into<Text>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// The body is JSON, but not what this endpoint takes.
    pub fn bad_json(message: impl Into<Text>) -> Self {
        Self::bad_request(ErrorCode::BadJson, message)
    }

    pub fn not_json(message: impl Into<Text>) -> Self {
        Self::bad_request(ErrorCode::NotJson, message)
    }

    pub fn invalid_param(message: impl Into<Text>) -> Self {
        Self::bad_request(ErrorCode::InvalidParam, message)
    }

    pub fn missing_param(message: impl Into<Text>) -> Self {
        Self::bad_request(ErrorCode::MissingParam, message)
    }

    pub fn unknown_pos(message: impl Into<Text>) -> Self {
        Self::bad_request(ErrorCode::UnknownPos, message)
    }

    pub fn invalid_signature(message: impl Into<Text>) -> Self {
        Self::custom(StatusCode::BAD_REQUEST, "M_INVALID_SIGNATURE", message)
    }

    /// A refusal for which the protocol has no code of its own.
    pub fn unknown(message: impl Into<Text>) -> Self {
        Self::bad_request(ErrorCode::Unknown, message)
    }

    /// The name is another application service's, or the service's own namespaces do not cover it.
    pub fn exclusive(message: impl Into<Text>) -> Self {
        Self::bad_request(ErrorCode::Exclusive, message)
    }

    /// An application service speaks for a device that is not there.
    pub fn unknown_device() -> Self {
        Self::bad_request(ErrorCode::UnknownDevice, "There is no such device")
    }

    /// The service makes devices for its users instead of logging in.
    pub fn appservice_login_unsupported() -> Self {
        let message = "The registration says that this application service makes devices instead of logging in";
        Self::bad_request(ErrorCode::AppserviceLoginUnsupported, message)
    }

    /// Neither mail addresses nor telephone numbers can be had here.
    pub fn no_such_medium() -> Self {
        let message = "This server neither sends mails nor messages to telephones";
        Self::bad_request(ErrorCode::ThreepidMediumNotSupported, message)
    }

    pub fn server_not_trusted() -> Self {
        Self::bad_request(ErrorCode::ServerNotTrusted, "This server works with no identity server")
    }

    /// Nobody has this address or telephone number.
    pub fn no_such_address() -> Self {
        Self::bad_request(ErrorCode::ThreepidNotFound, "No account has this address or number")
    }

    // 401

    pub fn missing_token() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, ErrorCode::MissingToken, "Missing access token")
    }

    /// The client forgets its keys when it sees this.
    pub fn unknown_token() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, ErrorCode::UnknownToken, "Unknown access token")
    }

    /// The token has run out but its session lives: the client refreshes and keeps its keys.
    pub fn soft_logout(message: impl Into<Text>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, ErrorCode::UnknownToken, message).with("soft_logout", true)
    }

    pub fn user_locked() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, ErrorCode::UserLocked, "This account is locked").with("soft_logout", true)
    }

    /// One round of user-interactive authentication: `info` holds flows, params, session and completed stages.
    /// A stage that failed says so through `failure`, whose code and message join the same body.
    pub fn interactive(info: &impl serde::Serialize, failure: Option<Error>) -> Self {
        let mut error = match failure {
            Some(failure) => failure.with_status(StatusCode::UNAUTHORIZED),
            None => Self(Box::new(Inner {
                status: StatusCode::UNAUTHORIZED,
                code: None,
                message: Cow::Borrowed(""),
                extra: Map::new(),
                retry_after: None,
            })),
        };
        match serde_json::to_value(info) {
            Ok(Value::Object(fields)) => error.0.extra.extend(fields.into_iter().filter(|(k, _)| !is_own_field(k))),
            Ok(_) => return Self::internal("interactive authentication info is not an object"),
            Err(cause) => return Self::internal(cause),
        }
        error
    }

    // 403, 404, 405, 409, 413, 429

    pub fn forbidden(message: impl Into<Text>) -> Self {
        Self::new(StatusCode::FORBIDDEN, ErrorCode::Forbidden, message)
    }

    pub fn guest_forbidden() -> Self {
        Self::new(StatusCode::FORBIDDEN, ErrorCode::GuestAccessForbidden, "Guests may not do this")
    }

    /// Keys go into the present backup only.
    pub fn wrong_backup(current: u64) -> Self {
        Self::new(StatusCode::FORBIDDEN, ErrorCode::WrongRoomKeysVersion, "This is not the present backup")
            .with("current_version", current.to_string())
    }

    /// An invite that the server itself stands behind.
    pub fn cannot_leave_notices() -> Self {
        let message = "Invites to the room of the server's notices cannot be rejected";
        Self::new(StatusCode::FORBIDDEN, ErrorCode::CannotLeaveServerNoticeRoom, message)
    }

    pub fn user_suspended() -> Self {
        Self::new(StatusCode::FORBIDDEN, ErrorCode::UserSuspended, "This account is suspended")
    }

    pub fn not_found(message: impl Into<Text>) -> Self {
        Self::new(StatusCode::NOT_FOUND, ErrorCode::NotFound, message)
    }

    /// There is no such endpoint. Clients probe for features with exactly this.
    pub fn unrecognized() -> Self {
        Self::new(StatusCode::NOT_FOUND, ErrorCode::Unrecognized, "Unrecognized request")
    }

    /// The endpoint exists, but not with this method.
    pub fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, ErrorCode::Unrecognized, "Unrecognized method")
    }

    pub fn conflict(code: ErrorCode, message: impl Into<Text>) -> Self {
        Self::new(StatusCode::CONFLICT, code, message)
    }

    /// An event was to wait longer than this server lets it.
    pub fn max_delay_exceeded(max_delay_ms: u64) -> Self {
        let message = "The delay is longer than this server allows";
        Self::custom(StatusCode::BAD_REQUEST, "M_MAX_DELAY_EXCEEDED", message)
            .with("max_delay", max_delay_ms)
            .with("max_delay_ms", max_delay_ms)
    }

    /// Somebody else changed what this request was about.
    pub fn concurrent_write() -> Self {
        let message = "It was changed since it was read";
        Self::new(StatusCode::PRECONDITION_FAILED, ErrorCode::Unknown, message)
            .with("org.matrix.msc4108.errcode", "M_CONCURRENT_WRITE")
    }

    pub fn too_large(message: impl Into<Text>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::TooLarge, message)
    }

    pub fn limit_exceeded(retry_after: Duration) -> Self {
        let mut error = Self::new(StatusCode::TOO_MANY_REQUESTS, ErrorCode::LimitExceeded, "Too many requests");
        error.0.retry_after = Some(retry_after);
        error
    }

    // What became of asking an application service.

    /// Its registration has no URL.
    pub fn url_not_set() -> Self {
        Self::bad_request(ErrorCode::UrlNotSet, "The registration of the application service has no URL")
    }

    /// It answered something that is not a success.
    pub fn bad_status(status: StatusCode, body: &str) -> Self {
        let message = format!("The application service answers {}", status.as_u16());
        Self::new(StatusCode::BAD_GATEWAY, ErrorCode::BadStatus, message)
            .with("status", status.as_u16())
            .with("body", body)
    }

    pub fn connection_failed(message: impl Into<Text>) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, ErrorCode::ConnectionFailed, message)
    }

    pub fn connection_timeout(message: impl Into<Text>) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, ErrorCode::ConnectionTimeout, message)
    }

    /// What a URL leads to could not be fetched.
    pub fn no_preview(message: impl Into<Text>) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, ErrorCode::Unknown, message)
    }

    /// A client waited for an application service that did not answer.
    pub fn service_timeout() -> Self {
        let message = "The application service that knows about this did not answer in time";
        Self::new(StatusCode::REQUEST_TIMEOUT, ErrorCode::Unknown, message)
    }

    // 408, 5xx

    pub fn request_timeout() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, ErrorCode::Unknown, "The request body did not arrive in time")
    }

    /// Something failed that the caller can do nothing about. The cause goes to the log and nowhere else.
    #[track_caller]
    pub fn internal(cause: impl fmt::Display) -> Self {
        let at = std::panic::Location::caller();
        tracing::error!(cause = %cause, at = %at, "internal error");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Unknown, "Internal server error")
    }

    /// There is no room on the disk; somebody has to make some.
    pub fn disk_full() -> Self {
        let status = StatusCode::INSUFFICIENT_STORAGE;
        Self::new(status, ErrorCode::ResourceLimitExceeded, "The server's disk is full").with("admin_contact", "")
    }

    /// The server cannot do this now, and the same request may well succeed a little later.
    pub fn unavailable(message: impl Into<Text>) -> Self {
        let mut error = Self::new(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unknown, message);
        error.0.retry_after = Some(Duration::from_secs(1));
        error
    }

    /// The server is being updated: it serves nobody for a moment.
    pub fn maintenance() -> Self {
        let mut error = Self::custom(StatusCode::SERVICE_UNAVAILABLE, "M_UNAVAILABLE", "The server is being updated");
        error.0.retry_after = Some(Duration::from_secs(15));
        error
    }

    // adjusting

    #[must_use]
    pub fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.0.extra.insert(field.to_owned(), value.into());
        self
    }

    #[must_use]
    pub fn with_status(mut self, status: StatusCode) -> Self {
        self.0.status = status;
        self
    }

    // looking

    pub fn status(&self) -> StatusCode {
        self.0.status
    }

    pub fn code(&self) -> Option<&ErrorCode> {
        self.0.code.as_ref()
    }

    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The JSON object a client gets.
    pub fn body(&self) -> Value {
        let mut body = self.0.extra.clone();
        if let Some(code) = &self.0.code {
            body.insert("errcode".to_owned(), json!(code.as_str()));
            body.insert("error".to_owned(), json!(self.0.message));
        }
        if let (Some(after), Some(ErrorCode::LimitExceeded)) = (self.0.retry_after, &self.0.code) {
            body.insert("retry_after_ms".to_owned(), json!(u64::try_from(after.as_millis()).unwrap_or(u64::MAX)));
        }
        Value::Object(body)
    }

    /// Whether the account is locked: the session lives on and has to wait.
    pub fn locks_out(&self) -> bool {
        self.0.code == Some(ErrorCode::UserLocked)
    }

    /// How long to wait before trying again.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }
}

fn is_own_field(name: &str) -> bool {
    matches!(name, "errcode" | "error")
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = self.0.code.as_ref().map_or("(interactive)", ErrorCode::as_str);
        write!(f, "{} {code}: {}", self.0.status.as_u16(), self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {}

/// What the store says, for those who cannot do better than to pass it on.
impl From<store::Error> for Error {
    #[track_caller]
    fn from(error: store::Error) -> Self {
        use store::Error as Store;
        match error {
            Store::Conflict | Store::Busy => Self::unavailable("Too many requests want the same thing; try again"),
            Store::Unknown => Self::unavailable("The request may or may not have been carried out"),
            Store::Closed => Self::unavailable("The server is stopping"),
            Store::Frozen => Self::maintenance(),
            Store::TooLarge { .. } => Self::too_large(error.to_string()),
            Store::Full => {
                tracing::error!("the disk is full: writes are refused");
                Self::disk_full()
            }
            Store::Engine(_) | Store::Corrupt { .. } => Self::internal(error),
        }
    }
}

impl From<::rooms::state::Corrupt> for Error {
    #[track_caller]
    fn from(cause: ::rooms::state::Corrupt) -> Self {
        Self::internal(cause)
    }
}

/// A request that ruma could not read.
impl From<FromHttpRequestError> for Error {
    fn from(error: FromHttpRequestError) -> Self {
        match error {
            FromHttpRequestError::MethodMismatch { .. } => Self::method_not_allowed(),
            FromHttpRequestError::Deserialization(cause) => match cause {
                DeserializationError::Json(cause) => cause.into(),
                DeserializationError::Utf8(_) => Self::not_json("The body is not UTF-8"),
                other => Self::invalid_param(other.to_string()),
            },
            other => Self::invalid_param(other.to_string()),
        }
    }
}

/// JSON that came from outside. JSON of our own that does not parse is `Error::internal`.
impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        match error.classify() {
            serde_json::error::Category::Data => Self::bad_json(error.to_string()),
            _ => Self::not_json(error.to_string()),
        }
    }
}

impl From<IntoHttpError> for Error {
    #[track_caller]
    fn from(error: IntoHttpError) -> Self {
        Self::internal(error)
    }
}

impl From<ruma::IdParseError> for Error {
    fn from(error: ruma::IdParseError) -> Self {
        Self::invalid_param(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(error: Error) -> (u16, Value) {
        (error.status().as_u16(), error.body())
    }

    #[test]
    fn a_full_disk_is_not_the_clients_fault_and_says_so() {
        let (status, body) = parts(store::Error::Full.into());
        assert_eq!((status, &body["errcode"]), (507, &json!("M_RESOURCE_LIMIT_EXCEEDED")));
        assert_eq!(parts(store::Error::Conflict.into()).0, 503);
        let leak = store::Error::Corrupt { table: "events", reason: "secret".to_owned() };
        assert!(!parts(leak.into()).1.to_string().contains("secret"));
    }

    #[test]
    fn pitfall_009_soft_logout_only_where_the_session_lives() {
        assert_eq!(Error::unknown_token().body().get("soft_logout"), None);
        let (status, body) = parts(Error::soft_logout("expired"));
        assert_eq!((status, &body["errcode"], &body["soft_logout"]), (401, &json!("M_UNKNOWN_TOKEN"), &json!(true)));
        assert_eq!(Error::missing_token().body()["errcode"], "M_MISSING_TOKEN");
        assert_eq!(Error::user_locked().body()["soft_logout"], true);
    }

    #[test]
    fn pitfall_013_a_failed_stage_keeps_flows_and_session() {
        let info = json!({"flows": [{"stages": ["m.login.password"]}], "params": {}, "session": "s"});
        let (status, body) = parts(Error::interactive(&info, None));
        assert_eq!((status, &body), (401, &info));
        let (status, body) = parts(Error::interactive(&info, Some(Error::forbidden("Wrong password"))));
        assert_eq!(status, 401);
        assert_eq!(body["errcode"], "M_FORBIDDEN");
        assert_eq!(body["session"], "s");
    }

    #[test]
    fn internal_causes_stay_inside() {
        let body = Error::internal("secret path /x/y").body().to_string();
        assert!(!body.contains("secret"), "{body}");
        assert!(body.contains("M_UNKNOWN"));
    }

    #[test]
    fn not_json_and_bad_json_differ() {
        let code = |text: &str| match serde_json::from_str::<std::collections::BTreeMap<String, u8>>(text) {
            Ok(_) => String::new(),
            Err(error) => Error::from(error).code().map(|c| c.as_str().to_owned()).unwrap_or_default(),
        };
        assert_eq!(code("{"), "M_NOT_JSON");
        assert_eq!(code("{\"a\": }"), "M_NOT_JSON");
        assert_eq!(code("{\"a\": \"x\"}"), "M_BAD_JSON");
    }

    #[test]
    fn the_result_stays_one_word() {
        assert_eq!(std::mem::size_of::<Result<()>>(), std::mem::size_of::<usize>());
    }
}
