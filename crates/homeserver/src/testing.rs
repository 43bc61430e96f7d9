//! A server in memory and its users, for tests and simulations: requests go straight into the router.

use serde_json::{Value, json};

use crate::App;
use crate::config::{Config, Limit, RateLimits, RegistrationMode, Size};
use crate::http::{Answer, Local};

/// The password of every user made here.
pub const PASSWORD: &str = "correct horse";

/// Settings for tests: registration is open, hashing is cheap, nothing is rate limited.
pub fn config() -> Config {
    let mut config = Config::new(ruma::owned_server_name!("hs.test"));
    config.registration.mode = RegistrationMode::Open;
    config.auth.password_memory = Size::kib(64);
    config.auth.password_passes = 1;
    config.rate_limits = unlimited();
    config
}

fn unlimited() -> RateLimits {
    RateLimits {
        login: Limit::Off,
        register: Limit::Off,
        message: Limit::Off,
        join: Limit::Off,
        invite: Limit::Off,
        create_room: Limit::Off,
        to_device: Limit::Off,
        media: Limit::Off,
        search: Limit::Off,
        other: Limit::Off,
    }
}

/// A server with these settings.
pub struct Server {
    pub app: App,
    /// A client that is not logged in.
    pub client: Local,
}

/// Somebody who is logged in.
#[derive(Clone)]
pub struct User {
    pub user_id: String,
    pub device_id: String,
    pub token: String,
    pub client: Local,
}

impl Default for Server {
    fn default() -> Self {
        Self::new(config())
    }
}

impl Server {
    pub fn new(config: Config) -> Self {
        Self::of(App::in_memory(config))
    }

    pub fn of(app: App) -> Self {
        let client = Local::new(app.router());
        Self { app, client }
    }

    /// Registers a user.
    pub async fn user(&self, name: &str) -> User {
        let body = json!({ "username": name, "password": PASSWORD, "auth": { "type": "m.login.dummy" } });
        self.logged_in(&self.client.post("/_matrix/client/v3/register", body).await)
    }

    /// Logs a user in on another device.
    pub async fn log_in(&self, name: &str) -> User {
        self.log_in_with(name, json!({})).await
    }

    /// Logs a user in, with more in the request.
    pub async fn log_in_with(&self, name: &str, more: Value) -> User {
        self.logged_in(&self.try_log_in(name, PASSWORD, more).await)
    }

    pub async fn try_log_in(&self, name: &str, password: &str, more: Value) -> Answer {
        let identifier = json!({ "type": "m.id.user", "user": name });
        let mut body = json!({ "type": "m.login.password", "identifier": identifier, "password": password });
        if let (Some(body), Value::Object(more)) = (body.as_object_mut(), more) {
            body.extend(more);
        }
        self.client.post("/_matrix/client/v3/login", body).await
    }

    fn logged_in(&self, answer: &Answer) -> User {
        let body = answer.json();
        let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
        assert!(answer.status.is_success(), "not logged in: {} {body}", answer.status);
        let token = text("access_token");
        User { user_id: text("user_id"), device_id: text("device_id"), client: self.client.with_token(&*token), token }
    }
}

impl User {
    /// What interactive authentication asks for.
    pub fn auth(&self) -> Value {
        json!({
            "type": "m.login.password",
            "identifier": { "type": "m.id.user", "user": self.user_id },
            "password": PASSWORD,
        })
    }
}
