//! The authorization server as clients and browsers see it.

use std::cell::RefCell;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use http::{HeaderName, Method, header};
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};
use store::Read as _;

use super::fields::Fields;
use crate::auth::oauth::clients;
use crate::config::RegistrationMode;
use crate::http::{Answer, Body, Request};
use crate::schema::{DEVICE_TOKENS, DEVICES, OAUTH_CLIENTS, OAUTH_SESSIONS};
use crate::testing::{PASSWORD, Server, User, config};
use crate::users::admin;

const BASE: &str = "https://matrix.hs.test";
const WHOAMI: &str = "/_matrix/client/v3/account/whoami";
const VERIFIER: &str = "a-verifier-that-is-long-enough-to-be-one-0123456789";
const REDIRECT: &str = "https://app.example.com/callback";
const SCOPE: &str = "openid urn:matrix:client:api:* urn:matrix:client:device:PHONE12345";

fn server() -> Server {
    server_with(RegistrationMode::Open)
}

fn server_with(mode: RegistrationMode) -> Server {
    let mut config = config();
    config.oauth.enabled = true;
    config.well_known.client_base_url = Some(format!("{BASE}/"));
    config.registration.mode = mode;
    config.registration.tokens = vec!["welcome".to_owned()];
    Server::new(config)
}

const MEETING: &str = "/_matrix/client/unstable/org.matrix.msc4108/rendezvous";

/// One step at a meeting point: with an entity tag in a header, and a text if there is one.
async fn meet(server: &Server, method: Method, path: &str, tag: Option<(HeaderName, &str)>, text: &str) -> Answer {
    let mut request = Request::new(Body::from(text.to_owned()));
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().unwrap();
    request.headers_mut().insert(header::CONTENT_TYPE, "text/plain".parse().unwrap());
    if let Some((name, tag)) = tag {
        request.headers_mut().insert(name, tag.parse().unwrap());
    }
    server.client.request(request).await
}

#[tokio::test]
async fn two_devices_meet_and_neither_overwrites_what_it_has_not_seen() {
    let server = server();
    let versions = server.client.get("/_matrix/client/versions").await.json();
    assert_eq!(versions["unstable_features"]["org.matrix.msc4108"], true);
    let opened = meet(&server, Method::POST, MEETING, None, "").await;
    assert_eq!(opened.status, 201, "{}", opened.json());
    let url = opened.json()["url"].as_str().unwrap().to_owned();
    let point = url.strip_prefix(BASE).unwrap();
    let tag = |answer: &Answer| answer.headers[header::ETAG].to_str().unwrap().to_owned();
    let first = tag(&opened);

    let read = meet(&server, Method::GET, point, None, "").await;
    assert_eq!((read.status.as_u16(), &read.body[..], tag(&read)), (200, &b""[..], first.clone()));
    let unchanged = meet(&server, Method::GET, point, Some((header::IF_NONE_MATCH, &first)), "").await;
    assert_eq!((unchanged.status.as_u16(), tag(&unchanged)), (304, first.clone()));

    let written = meet(&server, Method::PUT, point, Some((header::IF_MATCH, &first)), "hello").await;
    let second = tag(&written);
    assert_eq!(written.status, 202);
    let late = meet(&server, Method::PUT, point, Some((header::IF_MATCH, &first)), "me first").await;
    assert_eq!((late.status.as_u16(), tag(&late)), (412, second.clone()));
    assert_eq!(late.json()["org.matrix.msc4108.errcode"], "M_CONCURRENT_WRITE");
    let read = meet(&server, Method::GET, point, Some((header::IF_NONE_MATCH, &first)), "").await;
    assert_eq!(&read.body[..], b"hello");
    assert_eq!(read.headers[header::CONTENT_TYPE], "text/plain");
    for name in [header::EXPIRES, header::LAST_MODIFIED] {
        assert!(read.headers[&name].to_str().unwrap().ends_with(" GMT"), "{name}");
    }
    assert_eq!(read.headers[header::CACHE_CONTROL], "no-store");

    let unseen = meet(&server, Method::PUT, point, None, "x").await;
    assert_eq!((unseen.status.as_u16(), unseen.errcode().as_str()), (400, "M_MISSING_PARAM"));
    let long = meet(&server, Method::PUT, point, Some((header::IF_MATCH, &second)), &"x".repeat(4_097)).await;
    assert_eq!((long.status.as_u16(), long.errcode().as_str()), (413, "M_TOO_LARGE"));

    assert_eq!(meet(&server, Method::DELETE, point, None, "").await.status, 204);
    for method in [Method::GET, Method::PUT, Method::DELETE] {
        let gone = meet(&server, method, point, Some((header::IF_MATCH, &second)), "x").await;
        assert_eq!((gone.status.as_u16(), gone.errcode().as_str()), (404, "M_NOT_FOUND"));
    }
}

#[tokio::test]
async fn meeting_points_end_and_are_no_more_than_so_many() {
    let server = server();
    let opened = meet(&server, Method::POST, MEETING, None, "x").await;
    let url = opened.json()["url"].as_str().unwrap().to_owned();
    let point = url.strip_prefix(BASE).unwrap();
    let mut opened = 1;
    let refused = loop {
        let answer = meet(&server, Method::POST, MEETING, None, "x").await;
        if answer.status != 201 {
            break answer;
        }
        opened += 1;
    };
    assert_eq!((opened, refused.status.as_u16()), (32, 429), "those of one network");
    assert_eq!(meet(&server, Method::GET, point, None, "").await.status, 200);
    server.app.clock.advance(Duration::from_secs(10 * 60));
    assert_eq!(meet(&server, Method::GET, point, None, "").await.status, 404);
    assert_eq!(meet(&server, Method::POST, MEETING, None, "x").await.status, 201);

    // Who cannot log in by OAuth has no use for them.
    let without = Server::new(config());
    assert_eq!(meet(&without, Method::POST, MEETING, None, "").await.errcode(), "M_UNRECOGNIZED");
    let versions = without.client.get("/_matrix/client/versions").await.json();
    assert!(versions["unstable_features"].get("org.matrix.msc4108").is_none());
}

fn challenge(verifier: &str) -> String {
    URL_SAFE_NO_PAD.encode(digest(&SHA256, verifier.as_bytes()))
}

fn app_metadata() -> Value {
    json!({
        "client_name": "App", "client_uri": "https://example.com/", "redirect_uris": [REDIRECT],
        "grant_types": ["authorization_code", "refresh_token", "urn:ietf:params:oauth:grant-type:device_code"],
    })
}

async fn register(server: &Server) -> String {
    let answer = server.client.post("/oauth2/registration", app_metadata()).await;
    assert_eq!(answer.status, 201, "{}", answer.json());
    answer.json()["client_id"].as_str().unwrap().to_owned()
}

/// A browser: keeps its cookie, and reads forms.
struct Browser<'a> {
    server: &'a Server,
    cookie: RefCell<Option<String>>,
}

impl<'a> Browser<'a> {
    fn new(server: &'a Server) -> Self {
        Self { server, cookie: RefCell::default() }
    }

    async fn logged_in(server: &'a Server, name: &str) -> Self {
        let browser = Self::new(server);
        let page = browser.get("/oauth2/login").await;
        let csrf = field(&page, "csrf");
        let form = [("csrf", csrf.as_str()), ("username", name), ("password", PASSWORD)];
        let answer = browser.post("/oauth2/login", &form).await;
        assert_eq!((answer.status.as_u16(), location(&answer)), (303, format!("{BASE}/account")));
        browser
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, Body::empty()).await
    }

    async fn post(&self, path: &str, form: &[(&str, &str)]) -> Answer {
        self.send(Method::POST, path, Body::from(Fields::of(form).encode())).await
    }

    async fn send(&self, method: Method, path: &str, body: Body) -> Answer {
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = path.strip_prefix(BASE).unwrap_or(path).parse().unwrap();
        if let Some(cookie) = &*self.cookie.borrow() {
            request.headers_mut().insert(header::COOKIE, cookie.parse().unwrap());
        }
        let answer = self.server.client.request(request).await;
        if let Some(cookie) = answer.headers.get(header::SET_COOKIE) {
            let cookie = cookie.to_str().unwrap();
            assert!(cookie.starts_with("__Host-skerry=") && cookie.ends_with("; HttpOnly; SameSite=Lax; Secure"));
            *self.cookie.borrow_mut() = cookie.split(';').next().map(str::to_owned);
        }
        answer
    }

    /// Answers a form of a page, with more fields.
    async fn fill_in(&self, page: &Answer, path: &str, names: &[&str], more: &[(&str, &str)]) -> Answer {
        let hidden: Vec<(&str, String)> = names.iter().map(|name| (*name, field(page, name))).collect();
        let mut form: Vec<(&str, &str)> = hidden.iter().map(|(name, value)| (*name, value.as_str())).collect();
        form.extend(more);
        self.post(path, &form).await
    }

    /// Lets a client in; the code.
    async fn code(&self, client_id: &str) -> String {
        let page = self.get(&ask(client_id, &[])).await;
        assert_eq!(page.status, 200, "{}", text(&page));
        let names = ["csrf", "request", "user"];
        let answer = self.fill_in(&page, "/oauth2/authorize", &names, &[("answer", "allow")]).await;
        assert_eq!(answer.status, 303, "{}", text(&answer));
        returned(&location(&answer), '?').get("code").unwrap().to_owned()
    }
}

fn text(answer: &Answer) -> String {
    String::from_utf8(answer.body.to_vec()).unwrap()
}

/// The value of a hidden field.
fn field(page: &Answer, name: &str) -> String {
    let (text, start) = (text(page), format!(r#"name="{name}" value=""#));
    let (_, rest) = text.split_once(&start).unwrap_or_else(|| panic!("no {name} in {text}"));
    rest.split('"').next().unwrap().replace("&amp;", "&").replace("&#39;", "'")
}

fn location(answer: &Answer) -> String {
    answer.headers.get(header::LOCATION).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
}

fn returned(location: &str, sign: char) -> Fields {
    let (uri, fields) = location.split_once(sign).unwrap();
    assert_eq!(uri, REDIRECT);
    Fields::parse(fields).unwrap()
}

/// An authorization request, with some fields changed (empty: left out).
fn ask(client_id: &str, changes: &[(&str, &str)]) -> String {
    let challenge = challenge(VERIFIER);
    let fields: [(&str, &str); 7] = [
        ("response_type", "code"),
        ("client_id", client_id),
        ("redirect_uri", REDIRECT),
        ("scope", SCOPE),
        ("state", "s&t"),
        ("code_challenge", &challenge),
        ("code_challenge_method", "S256"),
    ];
    let mut fields = fields.to_vec();
    for (name, value) in changes {
        fields.retain(|(known, _)| known != name);
        fields.push((*name, *value));
    }
    fields.retain(|(_, value)| !value.is_empty());
    format!("/oauth2/authorize?{}", Fields::of(&fields).encode())
}

async fn post_form(server: &Server, path: &str, form: &[(&str, &str)]) -> Answer {
    server.client.send(Method::POST, path, Body::from(Fields::of(form).encode())).await
}

async fn redeem(server: &Server, client_id: &str, code: &str) -> Answer {
    redeem_with(server, client_id, code, REDIRECT, VERIFIER).await
}

async fn redeem_with(server: &Server, client_id: &str, code: &str, uri: &str, verifier: &str) -> Answer {
    let form = [
        ("grant_type", "authorization_code"),
        ("client_id", client_id),
        ("code", code),
        ("redirect_uri", uri),
        ("code_verifier", verifier),
    ];
    post_form(server, "/oauth2/token", &form).await
}

async fn refresh(server: &Server, client_id: &str, token: &Value) -> Answer {
    let token = token.as_str().unwrap();
    let form = [("grant_type", "refresh_token"), ("client_id", client_id), ("refresh_token", token)];
    post_form(server, "/oauth2/token", &form).await
}

/// The status and the OAuth error.
fn error(answer: &Answer) -> (u16, String) {
    (answer.status.as_u16(), answer.json()["error"].as_str().unwrap_or_default().to_owned())
}

fn refused(reason: &str) -> (u16, String) {
    (400, reason.to_owned())
}

fn user(server: &Server, session: &Value) -> User {
    let token = session["access_token"].as_str().unwrap_or_else(|| panic!("{session}")).to_owned();
    let client = server.client.with_token(&*token);
    User { user_id: "@alice:hs.test".to_owned(), device_id: "PHONE12345".to_owned(), token, client }
}

/// A user who logged in by OAuth, with what the client was told.
async fn session(server: &Server) -> (String, Value) {
    let client_id = register(server).await;
    let code = Browser::logged_in(server, "alice").await.code(&client_id).await;
    let answer = redeem(server, &client_id, &code).await;
    assert_eq!(answer.status, 200, "{}", answer.json());
    (client_id, answer.json())
}

// ---- discovery and registration ----------------------------------------------------------------------------------

#[tokio::test]
async fn pitfall_006_what_is_off_is_not_there() {
    let server = Server::default();
    let gets = super::metadata::PATHS.iter().copied();
    for path in gets.chain(["/oauth2/authorize", "/oauth2/link", "/oauth2/login", "/oauth2/style.css", "/account"]) {
        let answer = server.client.get(path).await;
        assert_eq!((answer.status.as_u16(), answer.errcode().as_str()), (404, "M_UNRECOGNIZED"), "{path}");
    }
    let posts = ["registration", "token", "revoke", "device", "authorize", "link", "login", "register", "logout"];
    for path in posts.map(|name| format!("/oauth2/{name}")).iter().map(String::as_str).chain(["/account"]) {
        let answer = server.client.post(path, json!({})).await;
        assert_eq!((answer.status.as_u16(), answer.errcode().as_str()), (404, "M_UNRECOGNIZED"), "{path}");
    }
}

#[tokio::test]
async fn the_metadata_has_what_clients_insist_on() {
    let server = server();
    for path in super::metadata::PATHS {
        let answer = server.client.get(path).await;
        let body = answer.json();
        assert_eq!((answer.status.as_u16(), &body["issuer"]), (200, &json!("https://matrix.hs.test/")));
        assert_eq!(answer.headers[header::ACCESS_CONTROL_ALLOW_ORIGIN], "*");
        for name in ["authorization", "token", "revocation", "registration", "device_authorization"] {
            let url = body[format!("{name}_endpoint")].as_str().unwrap();
            assert!(url.starts_with("https://matrix.hs.test/oauth2/"), "{url}");
        }
        assert_eq!(body["response_types_supported"], json!(["code"]));
        assert_eq!(body["response_modes_supported"], json!(["query", "fragment"]));
        assert_eq!(body["code_challenge_methods_supported"], json!(["S256"]));
        assert_eq!(body["prompt_values_supported"], json!(["create"]));
        assert_eq!(body["account_management_uri"], "https://matrix.hs.test/account");
    }
    let closed = server_with(RegistrationMode::Closed);
    assert_eq!(closed.client.get(super::metadata::PATHS[0]).await.json().get("prompt_values_supported"), None);
}

#[tokio::test]
async fn the_same_client_is_one() {
    let server = server();
    let one = register(&server).await;
    assert_eq!(register(&server).await, one);
    let mut other = app_metadata();
    other["client_name"] = json!("Other");
    let other = server.client.post("/oauth2/registration", other).await.json();
    assert_ne!(other["client_id"], one);
    assert_eq!((&other["token_endpoint_auth_method"], &other["application_type"]), (&json!("none"), &json!("web")));
    let wrong = async |body: Value| error(&server.client.post("/oauth2/registration", body).await);
    assert_eq!(wrong(json!({})).await, refused("invalid_client_metadata"));
    assert_eq!(wrong(json!({ "client_uri": 1 })).await, refused("invalid_client_metadata"));
    let evil = json!({ "client_uri": "https://example.com", "redirect_uris": ["https://evil.test/"] });
    assert_eq!(wrong(evil).await, refused("invalid_redirect_uri"));
}

#[tokio::test]
async fn clients_without_sessions_are_forgotten_sooner_if_they_never_had_one() {
    let server = server();
    server.user("alice").await;
    let (client_id, tokens) = session(&server).await;
    let mut other = app_metadata();
    other["client_name"] = json!("Other");
    server.client.post("/oauth2/registration", other).await;
    let known = || server.app.store.latest().count(&OAUTH_CLIENTS, OAUTH_CLIENTS.all()).unwrap();
    let after = async |hours: u64| {
        server.app.clock.advance(Duration::from_secs(hours * 3_600));
        clients::forget_old(&server.app).await.unwrap();
        known()
    };
    assert_eq!(after(23).await, 2);
    assert_eq!(after(2).await, 1, "nobody ever used the other");
    assert_eq!(after(8 * 24).await, 1, "there is a session");
    let tokens = refresh(&server, &client_id, &tokens["refresh_token"]).await;
    assert_eq!(tokens.status, 200);
    // Registered anew, it still is one that was used; once its session is over, it has a week.
    assert_eq!(register(&server).await, client_id);
    let token = tokens.json()["access_token"].as_str().unwrap().to_owned();
    let revoked = server.client.send(Method::POST, "/oauth2/revoke", format!("token={token}")).await;
    assert_eq!((revoked.status.as_u16(), after(6 * 24).await), (200, 1));
    assert_eq!(after(2 * 24).await, 0);
}

#[tokio::test]
async fn new_clients_of_one_network_are_so_many_an_hour() {
    let server = server();
    let known = register(&server).await;
    let new = async |number: usize, last: u16| {
        let client = server.client.from(format!("2001:db8::{last:x}").parse().unwrap());
        let mut metadata = app_metadata();
        metadata["client_name"] = json!(format!("App {number}"));
        client.post("/oauth2/registration", metadata).await
    };
    for number in 0..32 {
        assert_eq!(new(number, number as u16).await.status, 201, "{number}");
    }
    let refused = new(32, 99).await;
    assert_eq!((refused.status.as_u16(), refused.errcode().as_str()), (429, "M_LIMIT_EXCEEDED"));
    assert_eq!(new(31, 99).await.status, 201, "what is known may come again");
    assert_eq!(register(&server).await, known, "others are not kept out");
    server.app.clock.advance(Duration::from_secs(3_601));
    assert_eq!(new(32, 99).await.status, 201);
}

#[tokio::test]
async fn nonsense_is_refused() {
    let server = server();
    server.user("alice").await;
    let client_id = register(&server).await;
    let alice = Browser::logged_in(&server, "alice").await;
    let csrf = field(&alice.get("/account").await, "csrf");
    let long = "x".repeat(10_000);
    let bodies: [&[u8]; 8] =
        [b"", b"\xff\xfe", b"a=%ff", b"&&==&", b"{}", b"grant_type=x", b"csrf=%00&do=%00", long.as_bytes()];
    let names = ["token", "revoke", "device", "authorize", "link", "login", "register", "logout"];
    let paths: Vec<String> =
        names.iter().map(|name| format!("/oauth2/{name}")).chain(["/account".to_owned()]).collect();
    for path in &paths {
        for body in bodies {
            let answer = alice.send(Method::POST, path, Body::from(body.to_vec())).await;
            assert!(answer.status.is_client_error(), "{path} {body:?}: {}", answer.status);
        }
        let huge = alice.send(Method::POST, path, Body::from(vec![b'x'; 40_000])).await;
        assert_eq!(huge.status, 413, "{path}");
    }
    for value in ["\0", "\u{202e}<script>alert(1)</script>", &long, "%", "../..", "@alice:hs.test"] {
        for name in
            ["user_code", "device_id", "action", "next", "request", "user", "answer", "do", "username", "password"]
        {
            let query = Fields::of(&[(name, value), ("action", "org.matrix.device_view")]).encode();
            for path in &paths {
                let page = alice.get(&format!("{path}?{query}")).await;
                assert!(!page.status.is_server_error() && !text(&page).contains("<script"), "{path}?{query}");
                let posted = alice.post(path, &[("csrf", &csrf), (name, value)]).await;
                assert!(!posted.status.is_server_error() && !text(&posted).contains("<script"), "{path} {name}");
            }
        }
        for name in ["client_id", "redirect_uri", "scope", "state", "code_challenge", "login_hint", "prompt"] {
            let page = alice.get(&ask(&client_id, &[(name, value)])).await;
            assert!(!page.status.is_server_error() && !text(&page).contains("<script"), "{name}");
        }
    }
}

// ---- codes -------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_client_is_let_in_and_gets_a_session() {
    let server = server();
    server.user("alice").await;
    let client_id = register(&server).await;
    let browser = Browser::new(&server);
    // First the user logs in, and comes back.
    let sent = browser.get(&ask(&client_id, &[("prompt", "login"), ("login_hint", "mxid:@alice:hs.test")])).await;
    let login = location(&sent);
    assert!(sent.status == 303 && login.starts_with("https://matrix.hs.test/oauth2/login?next="), "{login}");
    let page = browser.get(&login).await;
    assert!(text(&page).contains(r#"value="@alice:hs.test""#), "the name is there already");
    assert_eq!(page.headers.get(header::ACCESS_CONTROL_ALLOW_ORIGIN), None);
    assert!(page.headers[header::CONTENT_SECURITY_POLICY].to_str().unwrap().contains("frame-ancestors 'none'"));
    let wrong = [("username", "alice"), ("password", "wrong horse")];
    let answer = browser.fill_in(&page, "/oauth2/login", &["csrf", "next"], &wrong).await;
    assert_eq!((answer.status.as_u16(), answer.headers.get(header::SET_COOKIE)), (403, None));
    let before = browser.cookie.borrow().clone();
    let right = [("username", "alice"), ("password", PASSWORD)];
    let answer = browser.fill_in(&page, "/oauth2/login", &["csrf", "next"], &right).await;
    assert_ne!(*browser.cookie.borrow(), before, "a login has a new secret");
    // Then they are asked, once, although a login was asked for.
    let page = browser.get(&location(&answer)).await;
    assert!(text(&page).contains("<b>App</b> of <b>example.com</b>"), "{}", text(&page));
    let answer =
        browser.fill_in(&page, "/oauth2/authorize", &["csrf", "request", "user"], &[("answer", "allow")]).await;
    let fields = returned(&location(&answer), '?');
    assert_eq!(fields.get("state"), Some("s&t"));

    let answer = redeem(&server, &client_id, fields.get("code").unwrap()).await;
    let body = answer.json();
    assert_eq!(
        (answer.status.as_u16(), &body["token_type"], &body["expires_in"]),
        (200, &json!("Bearer"), &json!(3_600))
    );
    assert_eq!(body["scope"], "urn:matrix:client:api:* urn:matrix:client:device:PHONE12345");
    assert_eq!(answer.headers[header::CACHE_CONTROL], "no-store");
    assert_eq!(answer.headers[header::ACCESS_CONTROL_ALLOW_ORIGIN], "*");
    let alice = user(&server, &body);
    let me = json!({ "user_id": "@alice:hs.test", "device_id": "PHONE12345" });
    assert_eq!(alice.client.get(WHOAMI).await.json(), me);
}

#[tokio::test]
async fn an_answer_goes_back_as_a_fragment_if_it_shall() {
    let server = server();
    server.user("alice").await;
    let client_id = register(&server).await;
    let browser = Browser::logged_in(&server, "alice").await;
    let page = browser.get(&ask(&client_id, &[("response_mode", "fragment")])).await;
    let names = ["csrf", "request", "user"];
    let denied = browser.fill_in(&page, "/oauth2/authorize", &names, &[("answer", "deny")]).await;
    let fields = returned(&location(&denied), '#');
    assert_eq!(
        (fields.get("error"), fields.get("state"), fields.get("code")),
        (Some("access_denied"), Some("s&t"), None)
    );
}

#[tokio::test]
async fn nothing_is_sent_to_an_address_that_is_not_the_clients() {
    let server = server();
    server.user("alice").await;
    let client_id = register(&server).await;
    let browser = Browser::logged_in(&server, "alice").await;
    let wrong = [
        ask("unknown", &[]),
        ask("", &[]),
        ask(&client_id, &[("redirect_uri", "")]),
        ask(&client_id, &[("redirect_uri", "https://evil.test/")]),
        ask(&client_id, &[("redirect_uri", "https://app.example.com/callback/")]),
        ask(&client_id, &[("redirect_uri", "https://app.example.com/callback?x=1")]),
        format!("{}&redirect_uri=https%3A%2F%2Fevil.test", ask(&client_id, &[])),
    ];
    for path in wrong {
        let answer = browser.get(&path).await;
        assert_eq!((answer.status.as_u16(), location(&answer)), (400, String::new()), "{path}");
        let html = answer.headers[header::CONTENT_TYPE] == "text/html; charset=utf-8";
        assert!(html, "{path}");
    }
}

#[tokio::test]
async fn what_else_is_wrong_the_client_is_told() {
    let server = server();
    server.user("alice").await;
    let client_id = register(&server).await;
    let browser = Browser::logged_in(&server, "alice").await;
    let check = async |changes: &[(&str, &str)], reason: &str| {
        let answer = browser.get(&ask(&client_id, changes)).await;
        let fields = returned(&location(&answer), '?');
        assert_eq!((fields.get("error"), fields.get("state")), (Some(reason), Some("s&t")), "{changes:?}");
    };
    check(&[("response_type", "token")], "unsupported_response_type").await;
    check(&[("response_type", "")], "invalid_request").await;
    check(&[("response_mode", "form_post")], "invalid_request").await;
    check(&[("code_challenge_method", "plain")], "invalid_request").await;
    check(&[("code_challenge_method", "")], "invalid_request").await;
    check(&[("code_challenge", "short")], "invalid_request").await;
    check(&[("scope", "openid")], "invalid_scope").await;
    check(&[("prompt", "none")], "consent_required").await;
}

#[tokio::test]
async fn a_code_is_good_once_and_for_one_client() {
    let server = server();
    server.user("alice").await;
    let client_id = register(&server).await;
    let mut other = app_metadata();
    other["client_name"] = json!("Other");
    let other =
        server.client.post("/oauth2/registration", other).await.json()["client_id"].as_str().unwrap().to_owned();
    let browser = Browser::logged_in(&server, "alice").await;
    let code = browser.code(&client_id).await;
    let (other_verifier, hash) = ("b".repeat(43), challenge(VERIFIER));
    let wrong: [(&str, &str, &str, &str); 6] = [
        (&client_id, "skc_x", REDIRECT, VERIFIER),
        (&other, &code, REDIRECT, VERIFIER),
        (&client_id, &code, "https://app.example.com/other", VERIFIER),
        (&client_id, &code, REDIRECT, &other_verifier),
        (&client_id, &code, REDIRECT, &hash),
        (&client_id, &code, REDIRECT, "short"),
    ];
    for (client, code, uri, verifier) in wrong {
        assert_eq!(error(&redeem_with(&server, client, code, uri, verifier).await), refused("invalid_grant"));
    }
    assert_eq!(error(&redeem(&server, "unknown", &code).await), (401, "invalid_client".to_owned()));
    let opened = redeem(&server, &client_id, &code).await;
    assert_eq!(opened.status, 200, "whoever knew less has used nothing up");
    let alice = user(&server, &opened.json());
    assert_eq!(alice.client.get(WHOAMI).await.status, 200);
    // Somebody has the code and all that belongs to it: neither of the two is trusted.
    assert_eq!(error(&redeem(&server, &client_id, &code).await), refused("invalid_grant"));
    assert_eq!(alice.client.get(WHOAMI).await.errcode(), "M_UNKNOWN_TOKEN");

    let late = browser.code(&client_id).await;
    server.app.clock.advance(Duration::from_secs(120));
    assert_eq!(error(&redeem(&server, &client_id, &late).await), refused("invalid_grant"));
}

#[tokio::test]
async fn a_code_of_before_does_not_end_a_newer_session() {
    let server = server();
    server.user("alice").await;
    let client_id = register(&server).await;
    let browser = Browser::logged_in(&server, "alice").await;
    let (first, second) = (browser.code(&client_id).await, browser.code(&client_id).await);
    let old = user(&server, &redeem(&server, &client_id, &first).await.json());
    let new = user(&server, &redeem(&server, &client_id, &second).await.json());
    assert_eq!(old.client.get(WHOAMI).await.status, 401, "the device has one session");
    assert_eq!(error(&redeem(&server, &client_id, &first).await), refused("invalid_grant"));
    assert_eq!(new.client.get(WHOAMI).await.status, 200);
}

#[tokio::test]
async fn forms_of_other_sites_are_refused() {
    let server = server();
    server.user("alice").await;
    let client_id = register(&server).await;
    let (alice, stranger) = (Browser::logged_in(&server, "alice").await, Browser::new(&server));
    let page = alice.get(&ask(&client_id, &[])).await;
    let (request, user) = (field(&page, "request"), field(&page, "user"));
    let strange = field(&stranger.get("/oauth2/login").await, "csrf");
    for csrf in ["", "x", &strange] {
        let form = [("csrf", csrf), ("request", &request), ("user", &user), ("answer", "allow")];
        let answer = alice.post("/oauth2/authorize", &form).await;
        assert_eq!((answer.status.as_u16(), location(&answer)), (403, String::new()));
        let out = [("csrf", csrf), ("do", "device"), ("device_id", "X")];
        assert_eq!(alice.post("/account", &out).await.status, 403);
        assert_eq!(alice.post("/oauth2/link", &[("csrf", csrf), ("answer", "allow")]).await.status, 403);
    }
    let login = [("csrf", strange.as_str()), ("username", "alice"), ("password", PASSWORD)];
    assert_eq!(alice.post("/oauth2/login", &login).await.status, 403);
    assert_eq!(Browser::new(&server).post("/oauth2/login", &login).await.status, 403, "without a cookie");
    // The form is for the user who saw it.
    let csrf = field(&page, "csrf");
    let form = [("csrf", csrf.as_str()), ("request", &request), ("user", "@bob:hs.test"), ("answer", "allow")];
    let answer = alice.post("/oauth2/authorize", &form).await;
    assert!(location(&answer).starts_with("https://matrix.hs.test/oauth2/authorize?"), "{}", location(&answer));
}

#[tokio::test]
async fn a_login_leads_to_our_own_pages_only() {
    let server = server();
    server.user("alice").await;
    for next in [
        "https://evil.test/",
        "//evil.test/",
        "/\\evil.test",
        "/oauth2/authorize.evil.test",
        "@evil.test/account",
        "/_matrix/client/versions",
        "/account?\r\nX: y",
        "",
    ] {
        let browser = Browser::new(&server);
        let page = browser.get(&format!("/oauth2/login?{}", Fields::of(&[("next", next)]).encode())).await;
        assert_eq!(field(&page, "next"), "/account", "{next}");
        let csrf = field(&page, "csrf");
        let form = [("csrf", csrf.as_str()), ("next", next), ("username", "alice"), ("password", PASSWORD)];
        assert_eq!(location(&browser.post("/oauth2/login", &form).await), format!("{BASE}/account"), "{next}");
    }
}

#[tokio::test]
async fn nobody_is_sent_on_who_has_seen_no_page() {
    let server = server();
    server.user("alice").await;
    let client_id = register(&server).await;
    for wrong in [("prompt", "none"), ("scope", "openid"), ("response_type", "token")] {
        let sent = location(&Browser::new(&server).get(&ask(&client_id, &[wrong])).await);
        assert!(sent.starts_with(&format!("{BASE}/oauth2/login")), "{sent}");
    }
}

#[tokio::test]
async fn a_cookie_that_is_not_of_our_making_is_replaced() {
    let server = server();
    server.user("alice").await;
    let browser = Browser::new(&server);
    *browser.cookie.borrow_mut() = Some("__Host-skerry=planted".to_owned());
    let page = browser.get("/oauth2/login").await;
    let form = [("username", "alice"), ("password", PASSWORD)];
    assert_eq!(browser.fill_in(&page, "/oauth2/login", &["csrf"], &form).await.status, 303);
}

#[tokio::test]
async fn an_account_is_opened_where_the_client_asks_for_it() {
    let server = server_with(RegistrationMode::Token);
    let client_id = register(&server).await;
    let browser = Browser::new(&server);
    let page = location(&browser.get(&ask(&client_id, &[("prompt", "create")])).await);
    assert!(page.starts_with("https://matrix.hs.test/oauth2/register?next="), "{page}");
    let page = browser.get(&page).await;
    let fill_in = async |token: &str, again: &str| {
        let more = [("username", "carol"), ("password", PASSWORD), ("again", again), ("token", token)];
        browser.fill_in(&page, "/oauth2/register", &["csrf", "next"], &more).await
    };
    assert_eq!(fill_in("welcome", "other horse").await.status, 400);
    assert_eq!(fill_in("wrong", PASSWORD).await.status, 403);
    let answer = fill_in("welcome", PASSWORD).await;
    assert_eq!(answer.status, 303, "{}", text(&answer));
    let page = text(&browser.get(&location(&answer)).await);
    assert!(page.contains("<b>@carol:hs.test</b>"), "{page}");
    assert_eq!(server.try_log_in("carol", PASSWORD, json!({})).await.status, 200);
}

// ---- sessions ----------------------------------------------------------------------------------------------------

#[tokio::test]
async fn pitfall_010_an_old_refresh_token_ends_the_session_once_a_newer_one_was_used() {
    let server = server();
    server.user("alice").await;
    let (client_id, first) = session(&server).await;
    let legacy = json!({ "refresh_token": first["refresh_token"] });
    let legacy = server.client.post("/_matrix/client/v3/refresh", legacy).await;
    assert_eq!(legacy.errcode(), "M_UNKNOWN_TOKEN", "a session stays with what it began with");
    assert_eq!(error(&refresh(&server, "unknown", &first["refresh_token"]).await).1, "invalid_client");
    // An answer may be lost.
    assert_eq!(refresh(&server, &client_id, &first["refresh_token"]).await.status, 200);
    let second = refresh(&server, &client_id, &first["refresh_token"]).await.json();
    assert_eq!(second["scope"], first["scope"]);
    let alice = user(&server, &second);
    assert_eq!(alice.client.get(WHOAMI).await.status, 200);
    // Now the new one is in use: who still shows the old one is not the client, or the other is not.
    assert_eq!(error(&refresh(&server, &client_id, &first["refresh_token"]).await), refused("invalid_grant"));
    assert_eq!(alice.client.get(WHOAMI).await.errcode(), "M_UNKNOWN_TOKEN");
    assert_eq!(error(&refresh(&server, &client_id, &second["refresh_token"]).await), refused("invalid_grant"));
    let left = server.app.store.latest().count(&OAUTH_SESSIONS, OAUTH_SESSIONS.all()).unwrap();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn whoever_has_a_token_may_end_its_session() {
    let server = server();
    let by_password = server.user("alice").await;
    for kind in ["access_token", "refresh_token"] {
        let (_, tokens) = session(&server).await;
        let alice = user(&server, &tokens);
        assert_eq!(alice.client.get(WHOAMI).await.status, 200);
        let revoked = post_form(&server, "/oauth2/revoke", &[("token", tokens[kind].as_str().unwrap())]).await;
        assert_eq!(revoked.status, 200);
        assert_eq!(alice.client.get(WHOAMI).await.errcode(), "M_UNKNOWN_TOKEN");
        let again = post_form(&server, "/oauth2/revoke", &[("token", tokens[kind].as_str().unwrap())]).await;
        assert_eq!(again.status, 200);
    }
    assert_eq!(error(&post_form(&server, "/oauth2/revoke", &[]).await), refused("invalid_request"));
    post_form(&server, "/oauth2/revoke", &[("token", &by_password.token)]).await;
    assert_eq!(by_password.client.get(WHOAMI).await.status, 200, "a session stays with what it began with");
}

#[tokio::test]
async fn passwords_are_not_asked_of_clients_of_oauth() {
    let server = server();
    server.user("alice").await;
    let (_, tokens) = session(&server).await;
    let alice = user(&server, &tokens);
    for path in ["account/password", "account/deactivate", "delete_devices"] {
        let body = json!({ "auth": alice.auth(), "new_password": "battery staple", "devices": ["PHONE12345"] });
        let answer = alice.client.post(&format!("/_matrix/client/v3/{path}"), body).await;
        assert_eq!((answer.status.as_u16(), answer.errcode().as_str()), (404, "M_UNRECOGNIZED"), "{path}");
    }
    assert_eq!(alice.client.get(WHOAMI).await.status, 200);
    let told = async |user: &User| {
        let all = user.client.get("/_matrix/client/v3/capabilities").await.json()["capabilities"].clone();
        ["m.change_password", "m.get_login_token"].map(|name| all[name]["enabled"] == true)
    };
    assert_eq!(told(&alice).await, [false, false]);
    // The same device by password is a session of the other kind.
    let again = server.log_in_with("alice", json!({ "device_id": "PHONE12345" })).await;
    assert_eq!(told(&again).await, [true, true]);
    let body = json!({ "auth": again.auth(), "devices": ["NOSUCH"] });
    assert_eq!(again.client.post("/_matrix/client/v3/delete_devices", body).await.status, 200);
}

#[tokio::test]
async fn new_cross_signing_keys_are_approved_on_a_page() {
    const UPLOAD: &str = "/_matrix/client/v3/keys/device_signing/upload";
    let server = server();
    server.user("alice").await;
    let (_, tokens) = session(&server).await;
    let alice = user(&server, &tokens);
    let keys = |byte: u8, auth: Value| {
        let key = STANDARD_NO_PAD.encode([byte; 32]);
        let keys = json!({ (format!("ed25519:{key}")): key });
        json!({ "master_key": { "user_id": alice.user_id, "usage": ["master"], "keys": keys }, "auth": auth })
    };
    assert_eq!(alice.client.post(UPLOAD, keys(1, Value::Null)).await.status, 200, "the first ones are free");
    let asked = alice.client.post(UPLOAD, keys(2, Value::Null)).await;
    let info = asked.json();
    assert_eq!(asked.status, 401);
    let flows = json!([{ "stages": ["m.oauth"] }, { "stages": ["org.matrix.cross_signing_reset"] }]);
    assert_eq!(info["flows"], flows);
    let url = info["params"]["m.oauth"]["url"].as_str().unwrap().to_owned();
    assert_eq!(info["params"]["org.matrix.cross_signing_reset"]["url"], url);
    let auth = json!({ "session": info["session"] });
    assert_eq!(alice.client.post(UPLOAD, keys(2, auth.clone())).await.status, 401);
    let typed = json!({ "type": "m.oauth", "session": info["session"] });
    assert_eq!(alice.client.post(UPLOAD, keys(2, typed)).await.errcode(), "M_FORBIDDEN");

    let browser = Browser::logged_in(&server, "alice").await;
    let answer = async |password: &str| {
        let page = browser.get(&url).await;
        let names = ["csrf", "do", "wanted"];
        browser.fill_in(&page, "/account", &names, &[("password", password)]).await.status.as_u16()
    };
    assert_eq!(answer("wrong horse").await, 403);
    assert_eq!(alice.client.post(UPLOAD, keys(2, auth.clone())).await.status, 401);
    assert_eq!(answer(PASSWORD).await, 200);
    assert_eq!(alice.client.post(UPLOAD, keys(9, Value::Null)).await.status, 401, "other keys were not approved");
    assert_eq!(
        alice.client.post(UPLOAD, keys(2, Value::Null)).await.status,
        401,
        "and take the place of those that were"
    );
    assert_eq!(answer(PASSWORD).await, 200);
    assert_eq!(alice.client.post(UPLOAD, keys(2, auth.clone())).await.status, 200);
    assert_eq!(browser.get(&url).await.status, 409, "nobody asks now");
    // The approval is used up. Some clients come back without the session.
    assert_eq!(alice.client.post(UPLOAD, keys(3, Value::Null)).await.status, 401);
    assert_eq!(answer(PASSWORD).await, 200);
    assert_eq!(alice.client.post(UPLOAD, keys(3, Value::Null)).await.status, 200);
    // And it ends.
    let asked = alice.client.post(UPLOAD, keys(4, Value::Null)).await.json();
    assert_eq!(answer(PASSWORD).await, 200);
    server.app.clock.advance(Duration::from_secs(600));
    assert_eq!(alice.client.post(UPLOAD, keys(4, json!({ "session": asked["session"] }))).await.status, 401);
}

#[tokio::test]
async fn new_cross_signing_keys_are_not_approved_while_two_devices_want_some() {
    const UPLOAD: &str = "/_matrix/client/v3/keys/device_signing/upload";
    let server = server();
    server.user("alice").await;
    let (client_id, tokens) = session(&server).await;
    let alice = user(&server, &tokens);
    let browser = Browser::logged_in(&server, "alice").await;
    let other_scope = "urn:matrix:client:api:* urn:matrix:client:device:THIEF";
    let page = browser.get(&ask(&client_id, &[("scope", other_scope)])).await;
    let names = ["csrf", "request", "user"];
    let granted = browser.fill_in(&page, "/oauth2/authorize", &names, &[("answer", "allow")]).await;
    let code = returned(&location(&granted), '?').get("code").unwrap().to_owned();
    let thief = user(&server, &redeem(&server, &client_id, &code).await.json());
    let keys = |byte: u8| {
        let key = STANDARD_NO_PAD.encode([byte; 32]);
        let keys = json!({ (format!("ed25519:{key}")): key });
        json!({ "master_key": { "user_id": alice.user_id, "usage": ["master"], "keys": keys } })
    };
    assert_eq!(alice.client.post(UPLOAD, keys(1)).await.status, 200);
    assert_eq!(alice.client.post(UPLOAD, keys(2)).await.status, 401);
    assert_eq!(thief.client.post(UPLOAD, keys(3)).await.status, 401);
    let path = "/account?action=org.matrix.cross_signing_reset";
    let page = browser.get(path).await;
    assert_eq!(page.status, 409);
    assert!(text(&page).contains("THIEF") && text(&page).contains("PHONE12345"), "{}", text(&page));
    // Without the other one it goes on, and is for this device alone.
    let out = browser.get("/account?action=org.matrix.device_delete&device_id=THIEF").await;
    browser.fill_in(&out, "/account", &["csrf", "do", "device_id"], &[]).await;
    let page = browser.get(path).await;
    let names = ["csrf", "do", "wanted"];
    assert_eq!(browser.fill_in(&page, "/account", &names, &[("password", PASSWORD)]).await.status, 200);
    assert_eq!(alice.client.post(UPLOAD, keys(2)).await.status, 200);
}

#[tokio::test]
async fn a_client_administers_the_server_only_if_an_administrator_lets_it() {
    const DESK: &str = "/_synapse/admin/v2/users/@alice:hs.test";
    let server = server();
    let alice = server.user("alice").await;
    let client_id = register(&server).await;
    let browser = Browser::logged_in(&server, "alice").await;
    let admin_scope = "urn:matrix:client:api:* urn:matrix:client:device:CONSOLE urn:synapse:admin:*";
    let log_in = async |scope: &str| {
        let page = browser.get(&ask(&client_id, &[("scope", scope)])).await;
        let names = ["csrf", "request", "user"];
        let answer = browser.fill_in(&page, "/oauth2/authorize", &names, &[("answer", "allow")]).await;
        let code = returned(&location(&answer), '?').get("code").unwrap().to_owned();
        let opened = redeem(&server, &client_id, &code).await.json();
        let status = user(&server, &opened).client.get(DESK).await.status.as_u16();
        (text(&page).contains("administer this server"), opened["scope"].as_str().unwrap().contains("admin"), status)
    };
    assert_eq!(log_in(admin_scope).await, (false, false, 403), "she is no administrator");
    let user_id = ruma::UserId::parse(alice.user_id.as_str()).unwrap();
    admin::set_admin(&server.app, &user_id, true).await.unwrap();
    assert_eq!(log_in(SCOPE).await, (false, false, 403), "this client was not let do that");
    assert_eq!(log_in(admin_scope).await, (true, true, 200));
    assert_eq!(alice.client.get(DESK).await.status, 200, "a session by password is hers alone");
}

#[tokio::test]
async fn a_session_of_very_many_refreshes_is_ended_at_once() {
    let server = server();
    server.user("alice").await;
    let (client_id, mut tokens) = session(&server).await;
    for _ in 0..200 {
        tokens = refresh(&server, &client_id, &tokens["refresh_token"]).await.json();
    }
    let rows = || server.app.store.snapshot().count(&DEVICE_TOKENS, DEVICE_TOKENS.all()).unwrap();
    assert!(rows() < 150, "{}", rows());
    let alice = user(&server, &tokens);
    assert_eq!(alice.client.get(WHOAMI).await.status, 200);
    let revoked = post_form(&server, "/oauth2/revoke", &[("token", tokens["access_token"].as_str().unwrap())]).await;
    assert_eq!((revoked.status.as_u16(), rows()), (200, 1), "only that of another device is left");
}

#[tokio::test]
async fn two_pairs_of_one_refresh_token_do_not_end_the_session() {
    let server = server();
    server.user("alice").await;
    let (client_id, first) = session(&server).await;
    let pairs = [
        refresh(&server, &client_id, &first["refresh_token"]).await.json(),
        refresh(&server, &client_id, &first["refresh_token"]).await.json(),
    ];
    for pair in &pairs {
        assert_eq!(user(&server, pair).client.get(WHOAMI).await.status, 200);
    }
    let next = refresh(&server, &client_id, &pairs[0]["refresh_token"]).await;
    assert_eq!(next.status, 200, "{}", next.json());
    assert_eq!(user(&server, &next.json()).client.get(WHOAMI).await.status, 200);
    assert_eq!(error(&refresh(&server, &client_id, &pairs[1]["refresh_token"]).await), refused("invalid_grant"));
}

// ---- devices without a browser -----------------------------------------------------------------------------------

async fn device(server: &Server, client_id: &str) -> Value {
    let answer = post_form(server, "/oauth2/device", &[("client_id", client_id), ("scope", SCOPE)]).await;
    assert_eq!(answer.status, 200, "{}", answer.json());
    answer.json()
}

async fn poll(server: &Server, client_id: &str, device: &Value) -> Answer {
    let grant = "urn:ietf:params:oauth:grant-type:device_code";
    let code = device["device_code"].as_str().unwrap();
    post_form(server, "/oauth2/token", &[("grant_type", grant), ("client_id", client_id), ("device_code", code)]).await
}

async fn answer_device(browser: &Browser<'_>, device: &Value, answer: &str) -> Answer {
    let page = browser.get(device["verification_uri_complete"].as_str().unwrap()).await;
    assert_eq!(page.status, 200, "{}", text(&page));
    browser.fill_in(&page, "/oauth2/link", &["csrf", "user_code", "user"], &[("answer", answer)]).await
}

#[tokio::test]
async fn a_device_waits_for_its_user() {
    let server = server();
    server.user("alice").await;
    let (client_id, wait) = (register(&server).await, |seconds| server.app.clock.advance(Duration::from_secs(seconds)));
    let device = device(&server, &client_id).await;
    assert_eq!((&device["interval"], &device["expires_in"]), (&json!(5), &json!(900)));
    assert_eq!(error(&poll(&server, &client_id, &device).await), refused("authorization_pending"));
    assert_eq!(error(&poll(&server, &client_id, &device).await), refused("slow_down"));
    wait(5);
    assert_eq!(error(&poll(&server, &client_id, &device).await), refused("slow_down"), "it is ten seconds now");
    wait(15);
    assert_eq!(error(&poll(&server, &client_id, &device).await), refused("authorization_pending"));
    // The user logs in on the way, and may type the code as they like.
    let url = device["verification_uri_complete"].as_str().unwrap();
    let sent = location(&Browser::new(&server).get(url).await);
    assert!(sent.contains("/oauth2/login?next=%2Foauth2%2Flink%3Fuser_code"), "{sent}");
    let browser = Browser::logged_in(&server, "alice").await;
    assert_eq!(browser.get("/oauth2/link?user_code=AAAA-AAAA").await.status, 404);
    let typed = device["user_code"].as_str().unwrap().to_lowercase().replace('-', "%20");
    assert_eq!(browser.get(&format!("/oauth2/link?user_code={typed}")).await.status, 200);
    assert_eq!(answer_device(&browser, &device, "allow").await.status, 200);
    wait(20);
    let opened = poll(&server, &client_id, &device).await;
    assert_eq!(opened.status, 200, "{}", opened.json());
    assert_eq!(user(&server, &opened.json()).client.get(WHOAMI).await.json()["device_id"], "PHONE12345");
    assert_eq!(error(&poll(&server, &client_id, &device).await), refused("expired_token"), "it is good once");
}

#[tokio::test]
async fn devices_of_one_network_do_not_take_the_places_of_all_others() {
    let server = server();
    let client_id = register(&server).await;
    for _ in 0..64 {
        device(&server, &client_id).await;
    }
    let form = [("client_id", client_id.as_str()), ("scope", SCOPE)];
    let refused = post_form(&server, "/oauth2/device", &form).await;
    assert_eq!(error(&refused).1, "temporarily_unavailable");
    server.app.clock.advance(Duration::from_secs(900));
    device(&server, &client_id).await;
}

#[tokio::test]
async fn who_takes_the_place_of_a_device_is_shown_as_such() {
    let server = server();
    server.user("alice").await;
    let client_id = register(&server).await;
    let browser = Browser::logged_in(&server, "alice").await;
    let warned = async || text(&browser.get(&ask(&client_id, &[])).await).contains("takes its place");
    assert!(!warned().await);
    let code = browser.code(&client_id).await;
    assert_eq!(redeem(&server, &client_id, &code).await.status, 200);
    assert!(warned().await);
}

#[tokio::test]
async fn a_device_may_stay_outside() {
    let server = server();
    server.user("alice").await;
    let client_id = register(&server).await;
    let browser = Browser::logged_in(&server, "alice").await;
    let unwanted = device(&server, &client_id).await;
    assert_eq!(answer_device(&browser, &unwanted, "deny").await.status, 200);
    assert_eq!(error(&poll(&server, &client_id, &unwanted).await), refused("access_denied"));
    let late = device(&server, &client_id).await;
    server.app.clock.advance(Duration::from_secs(900));
    assert_eq!(error(&poll(&server, &client_id, &late).await), refused("expired_token"));
    let plain = json!({ "client_uri": "https://example.com/", "redirect_uris": [REDIRECT] });
    let plain =
        server.client.post("/oauth2/registration", plain).await.json()["client_id"].as_str().unwrap().to_owned();
    let answer = post_form(&server, "/oauth2/device", &[("client_id", &plain), ("scope", SCOPE)]).await;
    assert_eq!(error(&answer), refused("unauthorized_client"));
}

#[tokio::test]
async fn what_was_granted_before_logging_out_everywhere_opens_nothing_after_it() {
    let server = server();
    let alice = server.user("alice").await;
    let client_id = register(&server).await;
    let browser = Browser::logged_in(&server, "alice").await;
    let device = device(&server, &client_id).await;
    assert_eq!(answer_device(&browser, &device, "allow").await.status, 200);
    let code = browser.code(&client_id).await;
    assert_eq!(alice.client.post("/_matrix/client/v3/logout/all", json!({})).await.status, 200);
    assert_eq!(error(&redeem(&server, &client_id, &code).await), refused("invalid_grant"));
    server.app.clock.advance(Duration::from_secs(20));
    assert_eq!(error(&poll(&server, &client_id, &device).await), refused("invalid_grant"));
    let devices = server.app.store.snapshot().scan(&DEVICES, DEVICES.prefix(("@alice:hs.test",))).count();
    assert_eq!(devices, 0, "all were logged out, and none has come");
    assert_eq!(browser.get("/account").await.status, 303);
}

// ---- the account -------------------------------------------------------------------------------------------------

#[tokio::test]
async fn the_account_page_shows_devices_and_logs_them_out() {
    let server = server();
    let by_password = server.user("alice").await;
    let (_, tokens) = session(&server).await;
    let alice = user(&server, &tokens);
    let browser = Browser::new(&server);
    let sent = location(&browser.get("/account?action=org.matrix.devices_list").await);
    assert!(sent.ends_with("/oauth2/login?next=%2Faccount%3Faction%3Dorg.matrix.devices_list"), "{sent}");
    let browser = Browser::logged_in(&server, "alice").await;
    let page = text(&browser.get("/account?action=org.matrix.devices_list").await);
    assert!(page.contains("PHONE12345") && page.contains(&by_password.device_id) && page.contains("App"), "{page}");
    for action in ["org.matrix.device_delete", "org.matrix.device_view", "org.matrix.session_end"] {
        let page = browser.get(&format!("/account?action={action}&device_id=PHONE12345")).await;
        assert_eq!(field(&page, "device_id"), "PHONE12345");
    }
    assert_eq!(browser.get("/account?action=org.matrix.device_view&device_id=NOSUCH").await.status, 404);
    let page = browser.get("/account?action=org.matrix.device_delete&device_id=PHONE12345").await;
    let names = ["csrf", "do", "device_id"];
    assert_eq!(browser.fill_in(&page, "/account", &names, &[]).await.status, 200);
    assert_eq!(alice.client.get(WHOAMI).await.errcode(), "M_UNKNOWN_TOKEN");
    assert_eq!(browser.fill_in(&page, "/account", &names, &[]).await.status, 404, "it is gone");
    assert_eq!(by_password.client.get(WHOAMI).await.status, 200);
}

#[tokio::test]
async fn a_new_password_ends_the_logins_of_browsers() {
    let server = server();
    let alice = server.user("alice").await;
    let (one, two) = (Browser::logged_in(&server, "alice").await, Browser::logged_in(&server, "alice").await);
    let page = one.get("/account").await;
    let csrf = field(&page, "csrf");
    let change = async |password: &str, again: &str| {
        let form = [
            ("csrf", csrf.as_str()),
            ("do", "password"),
            ("password", password),
            ("new", "battery staple"),
            ("again", again),
        ];
        one.post("/account", &form).await.status.as_u16()
    };
    assert_eq!(change("wrong horse", "battery staple").await, 403);
    assert_eq!(change(PASSWORD, "battery stable").await, 400);
    assert_eq!(change(PASSWORD, "battery staple").await, 200);
    assert_eq!(server.try_log_in("alice", "battery staple", json!({})).await.status, 200);
    assert_eq!(alice.client.get(WHOAMI).await.status, 200, "devices stay unless they shall not");
    assert_eq!((one.get("/account").await.status.as_u16(), two.get("/account").await.status.as_u16()), (303, 303));
}

#[tokio::test]
async fn pitfall_012_a_new_password_voids_what_was_granted_and_not_fetched() {
    let server = server();
    let alice = server.user("alice").await;
    let (client_id, browser) = (register(&server).await, Browser::logged_in(&server, "alice").await);
    let (code, device) = (browser.code(&client_id).await, device(&server, &client_id).await);
    assert_eq!(answer_device(&browser, &device, "allow").await.status, 200);
    let body = json!({ "new_password": "battery staple", "auth": alice.auth() });
    assert_eq!(alice.client.post("/_matrix/client/v3/account/password", body).await.status, 200);
    assert_eq!(error(&redeem(&server, &client_id, &code).await), refused("invalid_grant"));
    assert_eq!(error(&poll(&server, &client_id, &device).await), refused("invalid_grant"));
}

#[tokio::test]
async fn a_login_of_a_browser_ends() {
    let server = server();
    server.user("alice").await;
    let browser = Browser::logged_in(&server, "alice").await;
    let page = browser.get("/account").await;
    assert_eq!(page.status, 200);
    let csrf = field(&page, "csrf");
    assert_eq!(browser.post("/oauth2/logout", &[("csrf", &csrf)]).await.status, 303);
    assert_eq!(browser.get("/account").await.status, 303);
    let browser = Browser::logged_in(&server, "alice").await;
    server.app.clock.advance(Duration::from_secs(30 * 60));
    assert_eq!(browser.get("/account").await.status, 303);
}

#[tokio::test]
async fn an_account_is_closed_with_its_password_only() {
    let server = server();
    let alice = server.user("alice").await;
    let browser = Browser::logged_in(&server, "alice").await;
    let page = browser.get("/account?action=org.matrix.account_deactivate").await;
    let close = async |password: &str| {
        browser.fill_in(&page, "/account", &["csrf", "do"], &[("password", password)]).await.status.as_u16()
    };
    assert_eq!(close("wrong horse").await, 403);
    assert_eq!(alice.client.get(WHOAMI).await.status, 200);
    assert_eq!(close(PASSWORD).await, 200);
    assert_eq!(alice.client.get(WHOAMI).await.status, 401);
    assert_eq!(browser.get("/account").await.status, 303);
}

// ---- clients that know no OAuth ------------------------------------------------------------------------------------

const SSO: &str = "/_matrix/client/v3/login/sso/redirect";
const APP: &str = "https://app.example.com/?keep=this#/here";

fn sso(redirect_url: &str, more: &[(&str, &str)]) -> String {
    let mut fields = vec![("redirectUrl", redirect_url)];
    fields.extend(more);
    format!("{SSO}?{}", Fields::of(&fields).encode())
}

#[tokio::test]
async fn a_client_without_oauth_gets_a_login_token() {
    let server = server();
    server.user("alice").await;
    let flows = server.client.get("/_matrix/client/v3/login").await.json()["flows"].clone();
    let flow = flows.as_array().unwrap().iter().find(|flow| flow["type"] == "m.login.sso").unwrap().clone();
    assert_eq!(flow["oauth_aware_preferred"], true);
    let browser = Browser::new(&server);
    let sent = browser.get(&sso(APP, &[("action", "login")])).await;
    assert_eq!(sent.status, 302);
    let first = browser.get(&location(&sent)).await;
    let login = browser.get(&location(&first)).await;
    assert!(location(&first).starts_with(&format!("{BASE}/oauth2/login?")), "{}", location(&first));
    let entered = [("username", "alice"), ("password", PASSWORD)];
    let answer = browser.fill_in(&login, "/oauth2/login", &["csrf", "next"], &entered).await;
    let page = browser.get(&location(&answer)).await;
    assert!(
        text(&page).contains("<b>app.example.com</b>") && text(&page).contains("@alice:hs.test"),
        "{}",
        text(&page)
    );
    let names = ["csrf", "redirectUrl", "user"];
    let answer = browser.fill_in(&page, "/oauth2/sso", &names, &[("answer", "allow")]).await;
    let (start, rest) = ("https://app.example.com/?keep=this&loginToken=", location(&answer));
    let token = rest.strip_prefix(start).unwrap().strip_suffix("#/here").unwrap().to_owned();
    let log_in = async || {
        let body = json!({ "type": "m.login.token", "token": token });
        server.client.post("/_matrix/client/v3/login", body).await
    };
    assert_eq!(log_in().await.json()["user_id"], "@alice:hs.test");
    assert_eq!(log_in().await.status, 403, "it is good for once");
    let late = browser.fill_in(&page, "/oauth2/sso", &names, &[("answer", "allow")]).await;
    let late = location(&late).strip_prefix(start).unwrap().strip_suffix("#/here").unwrap().to_owned();
    server.app.clock.advance(Duration::from_secs(16));
    let body = json!({ "type": "m.login.token", "token": late });
    assert_eq!(server.client.post("/_matrix/client/v3/login", body).await.status, 403, "and for a short time");
}

#[tokio::test]
async fn nobody_gets_a_login_token_whom_the_user_did_not_agree_to() {
    let server = server();
    let (alice, bob) = (server.user("alice").await, server.user("bob").await);
    let browser = Browser::logged_in(&server, "alice").await;
    let page = browser.get(&location(&browser.get(&sso(APP, &[])).await)).await;
    assert_eq!((page.status.as_u16(), location(&page)), (200, String::new()), "the user is asked");
    let csrf = field(&page, "csrf");
    let answer = async |browser: &Browser<'_>, more: &[(&str, &str)]| {
        let mut form = vec![("redirectUrl", APP), ("answer", "allow")];
        form.extend(more);
        browser.post("/oauth2/sso", &form).await
    };
    // A form from elsewhere, a form for somebody else, a form of another browser.
    assert_eq!(answer(&browser, &[("user", &alice.user_id)]).await.status, 403);
    let other = answer(&browser, &[("user", &bob.user_id), ("csrf", &csrf)]).await;
    assert!(location(&other).starts_with(&format!("{BASE}/oauth2/sso?")), "{}", location(&other));
    let stranger = Browser::new(&server);
    assert_eq!(answer(&stranger, &[("user", &alice.user_id), ("csrf", &csrf)]).await.status, 403);
    for url in ["", "javascript:alert(1)", "https://a@evil.test/", "nonsense"] {
        let refused = browser.get(&sso(url, &[])).await;
        assert_eq!((refused.status.as_u16(), location(&refused)), (400, String::new()), "{url}");
        let form = [("csrf", csrf.as_str()), ("user", &alice.user_id), ("redirectUrl", url), ("answer", "allow")];
        assert_eq!(browser.post("/oauth2/sso", &form).await.status, 400, "{url}");
    }
    assert_eq!(browser.get(&format!("{SSO}/elsewhere?redirectUrl=https://a.test/")).await.status, 404);
}

#[tokio::test]
async fn a_client_without_oauth_may_send_its_user_to_open_an_account() {
    let server = server();
    let browser = Browser::new(&server);
    let sent = browser.get(&sso("im.example://login", &[("action", "register")])).await;
    let first = browser.get(&location(&sent)).await;
    assert!(location(&first).starts_with(&format!("{BASE}/oauth2/register?")), "{}", location(&first));
    let page = browser.get(&location(&first)).await;
    let entered = [("username", "carol"), ("password", PASSWORD), ("again", PASSWORD)];
    let answer = browser.fill_in(&page, "/oauth2/register", &["csrf", "next"], &entered).await;
    let page = browser.get(&location(&answer)).await;
    assert!(text(&page).contains("<b>im.example:</b>"), "{}", text(&page));
    let names = ["csrf", "redirectUrl", "user"];
    let answer = browser.fill_in(&page, "/oauth2/sso", &names, &[("answer", "allow")]).await;
    assert!(location(&answer).starts_with("im.example://login?loginToken="), "{}", location(&answer));
}

#[tokio::test]
async fn without_settings_there_is_no_sso() {
    let server = Server::default();
    for path in [sso(APP, &[]), format!("{SSO}/x"), "/oauth2/sso".to_owned()] {
        assert_eq!(server.client.get(&path).await.errcode(), "M_UNRECOGNIZED");
    }
    let flows = server.client.get("/_matrix/client/v3/login").await.json()["flows"].clone();
    assert!(!flows.as_array().unwrap().iter().any(|flow| flow["type"] == "m.login.sso"));
}
