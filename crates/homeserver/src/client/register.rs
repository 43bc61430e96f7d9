//! Opening accounts.

use ruma::OwnedUserId;
use ruma::api::client::account::register::{self, LoginType, RegistrationKind};
use ruma::api::client::account::{check_registration_token_validity, get_username_availability};
use store::Tx;

use crate::App;
use crate::auth::tokens::{self, Grant};
use crate::auth::uia::{self, Challenge, Stage};
use crate::auth::{Requester, devices};
use crate::config::RegistrationMode;
use crate::config::registrations::Registration;
use crate::error::{Error, Result};
use crate::http::{Ctx, Routes};
use crate::limits::Class;
use crate::users::accounts::{self, NewAccount, Opener};

pub fn routes() -> Routes {
    Routes::default().ruma(register).limit(Class::Register).ruma(available).ruma(token_validity).limit(Class::Register)
}

type Register = register::v3::Request;
type Registered = register::v3::Response;

async fn register(ctx: Ctx<Register>) -> Result<Registered> {
    match &ctx.request.kind {
        RegistrationKind::User if ctx.request.login_type == Some(LoginType::ApplicationService) => {
            register_for_service(&ctx).await
        }
        RegistrationKind::User => register_user(&ctx).await,
        RegistrationKind::Guest => register_guest(&ctx).await,
        _ => Err(Error::invalid_param("kind is either user or guest")),
    }
}

async fn register_user(ctx: &Ctx<Register>) -> Result<Registered> {
    let (app, request) = (&ctx.app, &ctx.request);
    let flows = match app.config.registration.mode {
        RegistrationMode::Closed => return Err(Error::forbidden("This server does not take new accounts")),
        RegistrationMode::Open => &[&[Stage::Dummy][..]],
        RegistrationMode::Token => &[&[Stage::RegistrationToken][..]],
    };
    let named = request.username.as_deref().map(|name| accounts::user_id_for_new(app, name)).transpose()?;
    if let Some(user_id) = &named {
        accounts::check_free(app, user_id, &Opener::Anybody)?;
    }
    if let Some(password) = &request.password {
        app.auth.passwords.acceptable(password)?;
    }
    let operation = "register".to_owned();
    let challenge = Challenge { operation, user_id: None, device_id: "", flows, body: &ctx.body, bound: false };
    let passed = uia::check(app, &challenge).await?;

    let password = request.password.as_deref().ok_or_else(|| Error::missing_param("password is missing"))?;
    let password_hash = Some(app.auth.passwords.hash(password).await?);
    let user_id = named.map_or_else(|| accounts::random_name(app, false), Ok)?;
    let new = NewAccount { password_hash, registration_token: passed.registration_token, ..NewAccount::default() };
    open(app, user_id, new, request).await
}

/// A service opens accounts in its namespaces, whatever the settings say of others. They have no passwords.
async fn register_for_service(ctx: &Ctx<Register>) -> Result<Registered> {
    let (app, request) = (&ctx.app, &ctx.request);
    let service = service_of(app, ctx.requester.as_ref())?;
    let name = request.username.as_deref().ok_or_else(|| Error::missing_param("username is missing"))?;
    let user_id = accounts::user_id_for_new(app, name)?;
    if !service.has_user(&user_id) {
        return Err(Error::exclusive("This user name is not in the namespaces of the application service"));
    }
    let opener = Opener::Service(service.id.clone());
    accounts::check_free(app, &user_id, &opener)?;
    if service.makes_devices && !request.inhibit_login {
        return Err(Error::appservice_login_unsupported());
    }
    open(app, user_id, NewAccount { opener, ..NewAccount::default() }, request).await
}

/// The service whose token a request came with.
pub(super) fn service_of<'a>(app: &'a App, requester: Option<&Requester>) -> Result<&'a Registration> {
    let id = requester.and_then(|requester| requester.appservice.as_deref()).ok_or_else(Error::missing_token)?;
    app.appservices.by_id(id).map(|service| &**service).ok_or_else(Error::unknown_token)
}

async fn register_guest(ctx: &Ctx<Register>) -> Result<Registered> {
    if !ctx.app.config.registration.guests {
        return Err(Error::forbidden("This server does not take guests"));
    }
    let new = NewAccount { guest: true, ..NewAccount::default() };
    // What a guest asks for beyond an account is not heard.
    let plain = Register::new();
    open(&ctx.app, accounts::random_name(&ctx.app, true)?, new, &plain).await
}

async fn open(app: &App, user_id: OwnedUserId, new: NewAccount, request: &Register) -> Result<Registered> {
    let open = |tx: &mut Tx| -> Result<Option<(Grant, String)>> {
        accounts::open(app, tx, &user_id, new.clone())?;
        if request.inhibit_login {
            return Ok(None);
        }
        let device_id = request.device_id.as_ref().map(|device_id| device_id.as_str());
        let name = request.initial_device_display_name.as_deref();
        let device_id = devices::log_in(app, tx, user_id.as_str(), device_id, name)?;
        if matches!(new.opener, Opener::Service(_)) {
            devices::opened_by_service(tx, user_id.as_str(), &device_id)?;
        }
        let grant = tokens::open(app, tx, user_id.as_str(), &device_id, request.refresh_token)?;
        Ok(Some((grant, device_id)))
    };
    let session = app.store.transact(open).await?.value;
    let mut answer = Registered::new(user_id);
    if let Some((grant, device_id)) = session {
        answer.device_id = Some(device_id.into());
        answer.access_token = Some(grant.access_token);
        answer.refresh_token = grant.refresh_token;
        answer.expires_in = grant.expires_in;
    }
    Ok(answer)
}

async fn available(
    ctx: Ctx<get_username_availability::v3::Request>,
) -> Result<get_username_availability::v3::Response> {
    let user_id = accounts::user_id_for_new(&ctx.app, &ctx.request.username)?;
    accounts::check_free(&ctx.app, &user_id, &Opener::Anybody)?;
    Ok(get_username_availability::v3::Response::new(true))
}

async fn token_validity(
    ctx: Ctx<check_registration_token_validity::v1::Request>,
) -> Result<check_registration_token_validity::v1::Response> {
    if ctx.app.config.registration.mode != RegistrationMode::Token {
        return Err(Error::forbidden("This server takes no registration tokens"));
    }
    let valid = uia::registration_token_is_valid(&ctx.app, &ctx.request.token)?;
    Ok(check_registration_token_validity::v1::Response::new(valid))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use store::Read as _;

    use super::*;
    use crate::http::Answer;
    use crate::schema::{REGISTRATION_TOKENS, RegistrationToken};
    use crate::testing::{PASSWORD, Server, config};

    const REGISTER: &str = "/_matrix/client/v3/register";

    fn server(mode: RegistrationMode) -> Server {
        let mut config = config();
        config.registration.mode = mode;
        config.registration.tokens = vec!["welcome".to_owned()];
        Server::new(config)
    }

    async fn register(server: &Server, body: Value) -> Answer {
        server.client.post(REGISTER, body).await
    }

    fn dummy(name: &str) -> Value {
        json!({ "username": name, "password": PASSWORD, "auth": { "type": "m.login.dummy" } })
    }

    #[tokio::test]
    async fn pitfall_013_nothing_is_registered_without_auth() {
        let server = Server::default();
        let asked = register(&server, json!({ "username": "alice", "password": PASSWORD })).await;
        let info = asked.json();
        assert_eq!((asked.status.as_u16(), asked.errcode().as_str()), (401, ""));
        assert_eq!((&info["flows"], &info["params"]), (&json!([{ "stages": ["m.login.dummy"] }]), &json!({})));
        // The flows may be asked for before the name is known.
        let mut body = dummy("alice");
        body["auth"]["session"] = info["session"].clone();
        let done = register(&server, body.clone()).await.json();
        assert_eq!((&done["user_id"], done["access_token"].is_string()), (&json!("@alice:hs.test"), true));
        body["username"] = json!("bob");
        let again = register(&server, body).await;
        assert_eq!((again.status.as_u16(), again.errcode().as_str()), (401, "M_UNKNOWN"), "a session is good once");
        assert_ne!(again.json()["session"], info["session"]);
    }

    #[tokio::test]
    async fn names_are_small_and_taken_once() {
        let server = Server::default();
        assert_eq!(register(&server, dummy("Alice")).await.json()["user_id"], "@alice:hs.test");
        let taken = register(&server, dummy("aLICE")).await;
        assert_eq!((taken.status.as_u16(), taken.errcode().as_str()), (400, "M_USER_IN_USE"));
        for name in ["", "a b", "ä", "@a:hs.test", "a!b", &"a".repeat(250)] {
            assert_eq!(register(&server, dummy(name)).await.errcode(), "M_INVALID_USERNAME", "{name:?}");
        }
        assert_eq!(register(&server, dummy("a.b_c=d-e/f+1")).await.status, 200);
        let available = async |name: &str| {
            let path = format!("/_matrix/client/v3/register/available?username={name}");
            let answer = server.client.get(&path).await;
            (answer.json()["available"] == true, answer.errcode())
        };
        assert_eq!(available("bob").await, (true, String::new()));
        assert_eq!(available("alice").await, (false, "M_USER_IN_USE".to_owned()));
        assert_eq!(available("a!b").await, (false, "M_INVALID_USERNAME".to_owned()));
    }

    #[tokio::test]
    async fn of_two_who_want_a_name_at_once_one_gets_it() {
        let server = Server::default();
        let (one, two) = tokio::join!(register(&server, dummy("alice")), register(&server, dummy("alice")));
        let mut statuses = [one.status.as_u16(), two.status.as_u16()];
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 400]);
    }

    #[tokio::test]
    async fn who_names_nothing_gets_a_name_and_a_device() {
        let server = Server::default();
        let body = json!({ "password": PASSWORD, "auth": { "type": "m.login.dummy" } });
        let (one, two) = (register(&server, body.clone()).await.json(), register(&server, body).await.json());
        assert!(one["user_id"].as_str().unwrap().ends_with(":hs.test"));
        assert_ne!(one["user_id"], two["user_id"]);
        let mut body = dummy("alice");
        body["inhibit_login"] = json!(true);
        let quiet = register(&server, body).await.json();
        assert_eq!((quiet.get("access_token"), quiet["user_id"].as_str()), (None, Some("@alice:hs.test")));
        let mut body = dummy("bob");
        body["device_id"] = json!("PHONE");
        body["refresh_token"] = json!(true);
        let bob = register(&server, body).await.json();
        assert_eq!((bob["device_id"].as_str(), bob["refresh_token"].is_string()), (Some("PHONE"), true));
    }

    #[tokio::test]
    async fn weak_passwords_are_refused_before_anything_is_asked() {
        let answer = register(&Server::default(), json!({ "username": "alice", "password": "short" })).await;
        assert_eq!((answer.status.as_u16(), answer.errcode().as_str()), (400, "M_WEAK_PASSWORD"));
    }

    #[tokio::test]
    async fn a_closed_server_takes_nobody_and_guests_are_off() {
        let server = server(RegistrationMode::Closed);
        for path in [REGISTER.to_owned(), format!("{REGISTER}?kind=guest")] {
            let answer = server.client.post(&path, dummy("alice")).await;
            assert_eq!((answer.status.as_u16(), answer.errcode().as_str()), (403, "M_FORBIDDEN"));
        }
        assert_eq!(server.client.post(&format!("{REGISTER}?kind=cat"), dummy("a")).await.status, 400);
    }

    #[tokio::test]
    async fn pitfall_017_a_guest_has_a_token_and_may_do_little() {
        let mut config = config();
        config.registration.guests = true;
        let server = Server::new(config);
        let guest = server.client.post(&format!("{REGISTER}?kind=guest"), json!({})).await.json();
        let client = server.client.with_token(guest["access_token"].as_str().unwrap());
        let me = client.get("/_matrix/client/v3/account/whoami").await.json();
        assert_eq!((&me["user_id"], &me["is_guest"]), (&guest["user_id"], &json!(true)));
        assert_eq!(client.get("/_matrix/client/v3/devices").await.errcode(), "M_GUEST_ACCESS_FORBIDDEN");
    }

    #[tokio::test]
    async fn a_registration_token_opens_as_many_accounts_as_it_says() {
        let server = server(RegistrationMode::Token);
        let put = |tx: &mut Tx| -> Result<()> {
            let token = RegistrationToken { uses_allowed: Some(1), completed: 0, expires_ts: None };
            tx.put(&REGISTRATION_TOKENS, "once", &token);
            tx.put(&REGISTRATION_TOKENS, "late", &RegistrationToken { expires_ts: Some(1), ..token });
            Ok(())
        };
        server.app.store.transact(put).await.unwrap();
        let with = async |name: &str, token: &str| {
            let auth = json!({ "type": "m.login.registration_token", "token": token });
            let answer = register(&server, json!({ "username": name, "password": PASSWORD, "auth": auth })).await;
            (answer.status.as_u16(), answer.errcode())
        };
        let valid = async |token: &str| {
            let path = "/_matrix/client/v1/register/m.login.registration_token/validity";
            server.client.get(&format!("{path}?token={token}")).await.json()["valid"] == true
        };
        let refused = (401, "M_FORBIDDEN".to_owned());
        assert!(valid("once").await && valid("welcome").await && !valid("late").await && !valid("x").await);
        assert_eq!(with("alice", "x").await, refused);
        assert_eq!(with("alice", "late").await, refused);
        assert_eq!(with("alice", "once").await.0, 200);
        assert_eq!(with("bob", "once").await, refused);
        assert!(!valid("once").await);
        assert_eq!(with("bob", "welcome").await.0, 200);
        assert_eq!(with("carol", "welcome").await.0, 200);
        let dummy = register(&server, dummy("dora")).await;
        assert_eq!((dummy.status.as_u16(), dummy.errcode().as_str()), (401, "M_UNKNOWN"));
        let left = server.app.store.snapshot().get(&REGISTRATION_TOKENS, "once").unwrap().unwrap();
        assert_eq!(left.completed, 1);
    }
}
