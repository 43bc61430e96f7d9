//! Whatever is sent to whatever endpoint, the answer is a success or a Matrix error with the right status: never a 5xx,
//! never a panic, and nobody else's sync breaks over what got in.
//!
//! The endpoints come from the route table. Each gets bodies that are no JSON, bodies with one wrong value, odd path
//! segments, odd queries and odd headers. What a good body looks like stands in `examples`, and what is made of it in `shots`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use homeserver::config::{Config, Limit, RateLimits, RegistrationMode, Size};
use homeserver::http::{Answer, Local, Request, Router};
use homeserver::{App, api};
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

mod examples;
mod shots;

use examples::{examples, sliding};
use shots::{QUERY_NAMES, bad_keys, bad_query_values, bad_segments, bad_values, raw_bodies};

const PASSWORD: &str = "correct horse";
/// Where devices meet.
const MEETING: &str = "/_matrix/client/unstable/org.matrix.msc4108/rendezvous";
/// Where the pages of the authorization server say that they are.
const BASE: &str = "https://hs.test";
/// Nothing takes longer, except for polls.
const PATIENCE: Duration = Duration::from_secs(20);
/// A poll that has nothing to tell waits for a clock that stands still.
const POLL: Duration = Duration::from_millis(20);

/// Endpoints that take a file, or nothing at all (like all that delete).
const NO_JSON: &[&str] = &[
    "media::upload",
    "media::upload_later",
    "media::create",
    "admin::compact",
    "desk::media::quarantine_room",
    "desk::media::quarantine_user",
];

#[test]
fn every_endpoint_answers_bad_input_with_a_matrix_error() {
    let targets = targets();
    assert!(targets.len() > 100, "only {} endpoints", targets.len());
    let next = AtomicUsize::new(0);
    let (findings, requests) = (Mutex::new(Vec::new()), AtomicUsize::new(0));
    let work = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let world = World::new().await;
            while let Some(target) = targets.get(next.fetch_add(1, Ordering::Relaxed)) {
                let mut campaign = Campaign::new(&world, target).await;
                campaign.run().await;
                campaign.aftermath().await;
                requests.fetch_add(campaign.requests, Ordering::Relaxed);
                findings.lock().unwrap().append(&mut campaign.findings);
            }
            let doctor = world.admin.get("/doctor").await.json();
            let checks = doctor["findings"].as_array().cloned().unwrap_or_default();
            // The clock of a test stands still, long ago.
            let bad = |check: &&Value| check["ok"] != true && check["check"] != "the clock is plausible";
            if checks.is_empty() || checks.iter().any(|check| bad(&check)) {
                findings.lock().unwrap().push(format!("doctor: {doctor}"));
            }
        });
    };
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let (findings, requests) = (findings.into_inner().unwrap(), requests.into_inner());
    println!("{requests} requests to {} endpoints", targets.len());
    assert!(requests > 20_000, "only {requests} requests");
    assert!(findings.is_empty(), "{} findings:\n{}", findings.len(), findings.join("\n"));
}

// ---- endpoints ---------------------------------------------------------------------------------------------------

/// An endpoint to try, and what a good body of it looks like.
#[derive(Clone)]
struct Target {
    method: Method,
    /// With names in braces.
    path: String,
    handler: &'static str,
    admin: bool,
    token: bool,
    /// Values for path arguments that are not the usual ones.
    args: Vec<(&'static str, &'static str)>,
    body: Value,
}

/// Every handler once for each of its examples, under its newest path (of each length).
fn targets() -> Vec<Target> {
    let mut targets = Vec::new();
    let mut known = BTreeSet::new();
    // What both sides serve is tried where nobody is turned away.
    for (admin, routes) in [(true, api::admin()), (true, api::metrics()), (false, api::routes())] {
        for operation in routes.inventory().into_iter().rev() {
            let arguments = arguments(&operation.path).count();
            if !known.insert((operation.handler, operation.method.clone(), arguments)) {
                continue;
            }
            for (args, body) in examples(operation.handler) {
                targets.push(Target {
                    method: operation.method.parse().unwrap(),
                    path: operation.path.clone(),
                    handler: operation.handler,
                    admin,
                    token: operation.access != "anyone",
                    args,
                    body,
                });
            }
        }
    }
    targets
}

// ---- the server and who lives there ------------------------------------------------------------------------------

struct World {
    local: Local,
    admin: Local,
    /// A client of OAuth.
    client: String,
    made: std::cell::Cell<u64>,
    _dir: tempfile::TempDir,
}

#[derive(Clone)]
struct User {
    id: String,
    device: String,
    local: Local,
}

impl World {
    async fn new() -> Self {
        let mut config = Config::new("hs.test".try_into().unwrap());
        config.registration.mode = RegistrationMode::Open;
        config.auth.password_memory = Size::kib(64);
        config.auth.password_passes = 1;
        config.rate_limits = RateLimits {
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
        };
        config.oauth.enabled = true;
        config.well_known.client_base_url = Some(BASE.to_owned());
        config.server_notices.sender = Some("notices".to_owned());
        config.media.preview_hosts = vec!["http://127.0.0.1:9".parse().unwrap()];
        let dir = tempfile::tempdir().unwrap();
        config.data_dir = dir.path().to_owned();
        let app = App::in_memory(config);
        let admin = api::admin().join(api::metrics());
        let admin = Local::new(Router::new(app.clone(), admin).unwrap());
        let local = Local::new(app.router());
        let client = local.post("/oauth2/registration", examples::oauth_client()).await.json();
        let client = client["client_id"].as_str().unwrap_or_else(|| panic!("{client}")).to_owned();
        World { local, admin, client, made: std::cell::Cell::new(0), _dir: dir }
    }

    async fn user(&self) -> User {
        let number = self.made.replace(self.made.get() + 1);
        let body =
            json!({"username": format!("user{number}"), "password": PASSWORD, "auth": {"type": "m.login.dummy"}});
        let answer = self.local.post("/_matrix/client/v3/register", body).await.json();
        let text = |name: &str| answer[name].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned();
        User { id: text("user_id"), device: text("device_id"), local: self.local.with_token(text("access_token")) }
    }
}

impl Target {
    /// Whether it answers in the words of OAuth, or with pages.
    fn is_oauth(&self) -> bool {
        self.handler.contains("::oauth::")
    }

    /// Whether it takes the body of a form.
    fn takes_form(&self) -> bool {
        let json = ["::registration::", "::rendezvous::"].iter().any(|module| self.handler.contains(module));
        self.is_oauth() && self.method == Method::POST && !json
    }
}

/// A browser that is logged in: its cookie, and what its forms carry.
#[derive(Default)]
struct Browser {
    cookie: String,
    csrf: String,
}

/// One endpoint under attack, with people and a room of its own.
struct Campaign<'a> {
    world: &'a World,
    target: &'a Target,
    user: User,
    other: User,
    room: String,
    event: String,
    browser: Browser,
    /// Where two devices meet.
    point: String,
    findings: Vec<String>,
    requests: usize,
    txn: u64,
}

/// A request, and what to say of it.
struct Shot {
    path: String,
    body: Bytes,
    headers: HeaderMap,
    what: String,
}

impl<'a> Campaign<'a> {
    async fn new(world: &'a World, target: &'a Target) -> Self {
        let (user, other) = (world.user().await, world.user().await);
        let mut campaign = Campaign {
            world,
            target,
            user,
            other,
            room: String::new(),
            event: String::new(),
            browser: Browser::default(),
            point: String::new(),
            findings: Vec::new(),
            requests: 0,
            txn: 0,
        };
        campaign.settle_in().await;
        campaign
    }

    /// A room with both users and an event in it, and a key backup.
    async fn settle_in(&mut self) {
        let body = json!({"preset": "public_chat", "power_level_content_override": {"users_default": 60}});
        let answer = self.user.local.post("/_matrix/client/v3/createRoom", body).await.json();
        answer["room_id"].as_str().unwrap_or_else(|| panic!("{answer}")).clone_into(&mut self.room);
        let backup = json!({"algorithm": "m.megolm_backup.v1.curve25519-aes-sha2", "auth_data": {"public_key": "k"}});
        let answer = self.user.local.post("/_matrix/client/v3/room_keys/version", backup).await;
        assert!(answer.status.is_success(), "{}", answer.json());
        let room = encode(&self.room);
        let joined = self.other.local.post(&format!("/_matrix/client/v3/join/{room}"), json!({})).await;
        assert!(joined.status.is_success(), "{}", joined.json());
        let path = format!("/_matrix/client/v3/rooms/{room}/send/m.room.message/first");
        let answer = self.user.local.put(&path, json!({"msgtype": "m.text", "body": "first"})).await.json();
        answer["event_id"].as_str().unwrap_or_else(|| panic!("{answer}")).clone_into(&mut self.event);
        if self.target.is_oauth() {
            self.browser = self.logged_in().await;
            let answer = self.world.local.post(MEETING, Value::Null).await.json();
            // There are no more than so many.
            self.point = answer["url"].as_str().and_then(|url| url.rsplit('/').next()).unwrap_or("x").to_owned();
        }
    }

    /// A browser in which the user has logged in to the pages.
    async fn logged_in(&self) -> Browser {
        let page = self.world.local.get("/oauth2/login").await;
        let csrf = csrf_of(&page);
        let fields = json!({"csrf": csrf, "username": self.user.id, "password": PASSWORD});
        let mut request = Request::new(form(&fields).into());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = "/oauth2/login".parse().unwrap();
        request.headers_mut().insert(header::COOKIE, HeaderValue::from_str(&cookie_of(&page)).unwrap());
        let answer = self.world.local.request(request).await;
        assert_eq!(answer.status, 303, "{}", String::from_utf8_lossy(&answer.body));
        let cookie = cookie_of(&answer);
        let mut request = Request::new(homeserver::http::Body::empty());
        *request.uri_mut() = "/account".parse().unwrap();
        request.headers_mut().insert(header::COOKIE, HeaderValue::from_str(&cookie).unwrap());
        let page = self.world.local.request(request).await;
        let csrf = csrf_of(&page);
        Browser { cookie, csrf }
    }

    async fn run(&mut self) {
        if self.target.method != Method::GET {
            self.raw_bodies().await;
            self.bodies().await;
        }
        self.paths().await;
        self.queries().await;
        self.headers().await;
    }

    // ---- attacks -------------------------------------------------------------------------------------------------

    async fn raw_bodies(&mut self) {
        for (body, code) in raw_bodies() {
            let what = format!("body {}", shown(&body));
            let answer =
                self.fire(Shot { path: self.path(), body, headers: HeaderMap::new(), what: what.clone() }).await;
            if code.is_empty()
                || self.target.method == Method::DELETE
                || self.target.is_oauth()
                || NO_JSON.iter().any(|handler| self.target.handler.ends_with(handler))
            {
                continue;
            }
            let told = answer.map(|answer| (answer.status.as_u16(), answer.errcode())).unwrap_or_default();
            let wanted = if code == "M_TOO_LARGE" { 413 } else { 400 };
            // Some look at the path first.
            let early = matches!(told.0, 401 | 403 | 404) || told.1 == "M_INVALID_PARAM";
            if told != (wanted, code.to_owned()) && !early {
                self.finding(&what, &format!("{wanted} {code} was to be expected, not {told:?}"));
            }
        }
    }

    /// The good body, and it again and again with one thing wrong.
    async fn bodies(&mut self) {
        let good = self.fill_in(&self.target.body);
        self.body(&good, "the good body").await;
        let mut places = Vec::new();
        pointers(&good, String::new(), &mut places);
        for place in places {
            for (name, value) in bad_values() {
                let mut bad = good.clone();
                *bad.pointer_mut(&place).unwrap() = value;
                self.body(&bad, &format!("{place} is {name}")).await;
            }
            for key in bad_keys() {
                let mut bad = good.clone();
                let Some(object) = bad.pointer_mut(&place).and_then(Value::as_object_mut) else { break };
                let value = object.values().next().cloned().unwrap_or_default();
                object.insert(key.clone(), value);
                self.body(&bad, &format!("{place} has a key {}", shown(key.as_bytes()))).await;
            }
            let mut bad = good.clone();
            let (parent, key) = place.rsplit_once('/').unwrap();
            if let Some(object) = bad.pointer_mut(parent).and_then(Value::as_object_mut) {
                object.remove(&key.replace("~1", "/").replace("~0", "~"));
                self.body(&bad, &format!("{place} is missing")).await;
            }
        }
    }

    async fn body(&mut self, body: &Value, what: &str) {
        let body = self.encoded(body);
        self.fire(Shot { path: self.path(), body, headers: HeaderMap::new(), what: what.to_owned() }).await;
    }

    /// A body as the endpoint takes it.
    fn encoded(&self, body: &Value) -> Bytes {
        if self.target.takes_form() { form(body).into() } else { body.to_string().into() }
    }

    async fn paths(&mut self) {
        let names: Vec<String> = arguments(&self.target.path).map(str::to_owned).collect();
        for name in names {
            for bad in bad_segments() {
                let path = self.path_with(&name, &bad);
                // A request line is no longer than that.
                if path.len() < 60_000 {
                    self.shot(path, format!("{name} is {}", shown(bad.as_bytes()))).await;
                }
            }
        }
    }

    async fn queries(&mut self) {
        let path = self.path();
        let sign = if path.contains('?') { '&' } else { '?' };
        for query in
            ["", "&&&", "=", "=x", "%", "%zz", "%00=%00", "a=b=c", "?", "#", "limit", "limit=1&limit=2", "[]=1"]
        {
            self.shot(format!("{path}{sign}{query}"), format!("query {query:?}")).await;
        }
        for name in QUERY_NAMES {
            for value in bad_query_values() {
                let shown = shown(value.as_bytes());
                self.shot(format!("{path}{sign}{name}={value}"), format!("query {name}={shown}")).await;
            }
        }
    }

    async fn headers(&mut self) {
        let odd: [(HeaderName, &[u8]); 16] = [
            (header::AUTHORIZATION, b""),
            (header::AUTHORIZATION, b"Bearer"),
            (header::AUTHORIZATION, b"Bearer "),
            (header::AUTHORIZATION, b"Bearer \xff\xfe"),
            (header::AUTHORIZATION, b"Basic dXNlcjpwYXNz"),
            (header::AUTHORIZATION, b"X-Matrix origin=,key="),
            (header::CONTENT_TYPE, b"\xff"),
            (header::CONTENT_TYPE, b"text/plain; charset=utf-16"),
            (header::CONTENT_TYPE, b"application/x-www-form-urlencoded"),
            (header::IF_MATCH, b"\"\xff\""),
            (header::RANGE, b"bytes=5-1,-99999999999999999999"),
            (header::RANGE, b"bytes=99999999999999999999-"),
            (header::IF_NONE_MATCH, b"*"),
            (header::USER_AGENT, b"\xf0\x28\x8c\x28"),
            (header::ACCEPT, b"text/nonsense;q=zz"),
            (header::CONTENT_DISPOSITION, b"attachment; filename*=utf-8''%ff%00"),
        ];
        for (name, value) in odd {
            let mut headers = HeaderMap::new();
            headers.insert(name.clone(), HeaderValue::from_bytes(value).unwrap());
            let body = self.encoded(&self.fill_in(&self.target.body));
            let what = format!("{name}: {}", shown(value));
            self.fire(Shot { path: self.path(), body, headers, what }).await;
        }
    }

    async fn shot(&mut self, path: String, what: String) {
        let body = self.encoded(&self.fill_in(&self.target.body));
        self.fire(Shot { path, body, headers: HeaderMap::new(), what }).await;
    }

    // ---- firing --------------------------------------------------------------------------------------------------

    async fn fire(&mut self, shot: Shot) -> Option<Answer> {
        let Shot { path, body, headers, what } = shot;
        let Ok(uri) = path.parse::<http::Uri>() else { return None };
        self.requests += 1;
        self.txn += 1;
        let body = if self.target.method == Method::GET { homeserver::http::Body::empty() } else { body.into() };
        let mut request = Request::new(body);
        *request.method_mut() = self.target.method.clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        if self.target.is_oauth() {
            request.headers_mut().insert(header::COOKIE, HeaderValue::from_str(&self.browser.cookie).unwrap());
            let given = request.headers_mut().entry(header::IF_MATCH);
            given.or_insert(HeaderValue::from_static("\"1\""));
        }
        let anonymous = request.headers().contains_key(header::AUTHORIZATION);
        let local = match (self.target.admin, anonymous || !self.target.token) {
            (true, _) => &self.world.admin,
            (false, true) => &self.world.local,
            (false, false) => &self.user.local,
        };
        let poll = ["/sync", "/v3/events"].iter().any(|end| self.target.path.ends_with(end));
        let waited = tokio::time::timeout(if poll { POLL } else { PATIENCE }, local.request(request)).await;
        let Ok(answer) = waited else {
            if !poll {
                self.finding(&what, "it is never answered");
            }
            return None;
        };
        let judged = if self.target.is_oauth() { oauth_complaint(&answer) } else { complaint(&answer) };
        if let Some(complaint) = judged {
            self.finding(&what, &complaint);
        }
        let logged_out = answer.errcode() == "M_UNKNOWN_TOKEN" || self.target.method != Method::GET;
        if logged_out && !self.target.admin {
            self.come_back().await;
        }
        Some(answer)
    }

    /// What was asked for may have ended the session, or the account.
    async fn come_back(&mut self) {
        if self.user.local.get("/_matrix/client/v3/account/whoami").await.status == 401 {
            (self.user, self.other) = (self.world.user().await, self.world.user().await);
            self.settle_in().await;
        }
    }

    fn finding(&mut self, what: &str, complaint: &str) {
        let Target { method, path, .. } = self.target;
        if self.findings.len() < 8 {
            self.findings.push(format!("{method} {path} {:?}: {what}: {complaint}", self.target.args));
        }
    }

    /// Those who share a room with whatever came in can still read it.
    async fn aftermath(&mut self) {
        let room = encode(&self.room);
        let reads = [
            ("/_matrix/client/v3/sync?full_state=true".to_owned(), true),
            (
                "/_matrix/client/v3/sync?filter={%22room%22:{%22state%22:{%22lazy_load_members%22:true}}}".to_owned(),
                true,
            ),
            (format!("/_matrix/client/v3/rooms/{room}/messages?dir=b&limit=1000"), false),
            (format!("/_matrix/client/v3/rooms/{room}/state"), false),
            (format!("/_matrix/client/v3/rooms/{room}/members"), false),
            (format!("/_matrix/client/v1/rooms/{room}/relations/{}", encode(&self.event)), false),
            ("/_matrix/client/v3/publicRooms".to_owned(), true),
            (format!("/_matrix/client/v3/profile/{}", encode(&self.user.id)), false),
            ("/_matrix/client/v3/pushrules/".to_owned(), true),
        ];
        for user in [self.user.clone(), self.other.clone()] {
            for (path, must) in &reads {
                let answer = user.local.get(path).await;
                let fine = answer.status.is_success() && answer.json().is_object() || answer.json().is_array();
                if answer.status.is_server_error() || *must && !fine && answer.errcode() != "M_UNKNOWN_TOKEN" {
                    self.finding(&format!("afterwards {path}"), &format!("{} {}", answer.status, answer.json()));
                }
            }
            let answer = user.local.post("/_matrix/client/v4/sync", self.fill_in(&sliding())).await;
            if answer.status.is_server_error() {
                self.finding("afterwards sliding sync", &answer.json().to_string());
            }
        }
    }

    // ---- paths ---------------------------------------------------------------------------------------------------

    fn path(&self) -> String {
        self.path_with("", "")
    }

    /// The path with good arguments but one, which stands there as it is.
    fn path_with(&self, bad: &str, value: &str) -> String {
        let segments = self.target.path.split('/').map(|segment| {
            let Some(name) = segment.strip_prefix('{').and_then(|name| name.strip_suffix('}')) else {
                return segment.to_owned();
            };
            if name == bad { value.to_owned() } else { encode(&self.argument(name.trim_start_matches('*'))) }
        });
        let path = segments.collect::<Vec<_>>().join("/");
        // Without a version these say nothing else than that it is missing.
        if path.contains("/room_keys/keys") {
            return path + "?version=1";
        }
        if self.target.is_oauth() && self.target.method == Method::GET {
            return format!("{path}?{}", form(&self.fill_in(&self.target.body)));
        }
        path
    }

    fn argument(&self, name: &str) -> String {
        if let Some((_, value)) = self.target.args.iter().find(|(known, _)| *known == name) {
            return self.fill_in_text(value);
        }
        match name {
            "room_id" | "room_id_or_alias" => self.room.clone(),
            "event_id" => self.event.clone(),
            "user_id" => self.user.id.clone(),
            "user" => "user0".to_owned(),
            "device_id" => self.user.device.clone(),
            "room_alias" => "#alias:hs.test".to_owned(),
            "txn_id" => format!("t{}", self.txn),
            "server_name" => "hs.test".to_owned(),
            "media_id" => "abcdef".to_owned(),
            "filename" => "a.png".to_owned(),
            "event_type" => "m.room.message".to_owned(),
            "rel_type" => "m.thread".to_owned(),
            "receipt_type" => "m.read".to_owned(),
            "kind" => "override".to_owned(),
            "field" => "displayname".to_owned(),
            "filter_id" => "1".to_owned(),
            "tag" => "u.work".to_owned(),
            "action" => "cancel".to_owned(),
            "name" => self.point.clone(),
            _ => "x".to_owned(),
        }
    }

    fn fill_in_text(&self, text: &str) -> String {
        text.replace("{user}", &self.user.id)
            .replace("{other}", &self.other.id)
            .replace("{device}", &self.user.device)
            .replace("{room}", &self.room)
            .replace("{event}", &self.event)
            .replace("{client}", &self.world.client)
            .replace("{csrf}", &self.browser.csrf)
    }

    fn fill_in(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.fill_in_text(text)),
            Value::Array(items) => items.iter().map(|item| self.fill_in(item)).collect(),
            Value::Object(fields) => {
                let fields = fields.iter().map(|(key, value)| (self.fill_in_text(key), self.fill_in(value)));
                Value::Object(fields.collect())
            }
            other => other.clone(),
        }
    }
}

// ---- judging -----------------------------------------------------------------------------------------------------

/// What is wrong with an answer.
fn complaint(answer: &Answer) -> Option<String> {
    let (status, json) = (answer.status.as_u16(), answer.json());
    if status < 400 {
        return None;
    }
    if status >= 500 {
        return Some(format!("{status} {json}"));
    }
    let kind = answer.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if kind != "application/json" {
        return Some(format!("{status} of type {kind:?}"));
    }
    if !answer.headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN) {
        return Some(format!("{status} without CORS headers"));
    }
    let code = answer.errcode();
    if status == 401 && code.is_empty() && json["flows"].is_array() {
        return None;
    }
    if !code.starts_with("M_") || !json["error"].is_string() {
        return Some(format!("{status} is no Matrix error: {json}"));
    }
    let right: &[u16] = match code.as_str() {
        // 405 is for account data that only the server may write.
        "M_BAD_JSON" => &[400, 405],
        "M_NOT_JSON"
        | "M_INVALID_PARAM"
        | "M_MISSING_PARAM"
        | "M_INVALID_USERNAME"
        | "M_USER_IN_USE"
        | "M_ROOM_IN_USE"
        | "M_INVALID_ROOM_STATE"
        | "M_UNSUPPORTED_ROOM_VERSION"
        | "M_UNKNOWN_POS"
        | "M_BAD_ALIAS" => &[400],
        "M_UNKNOWN_TOKEN" | "M_MISSING_TOKEN" => &[401],
        "M_NOT_FOUND" => &[404],
        "M_FORBIDDEN" | "M_GUEST_ACCESS_FORBIDDEN" => &[401, 403],
        "M_TOO_LARGE" => &[413],
        "M_LIMIT_EXCEEDED" => &[429],
        "M_UNRECOGNIZED" => &[404, 405],
        _ => return None,
    };
    (!right.contains(&status)).then(|| format!("{status} {json}"))
}

/// The same for what speaks OAuth or shows pages.
fn oauth_complaint(answer: &Answer) -> Option<String> {
    let (status, json) = (answer.status.as_u16(), answer.json());
    let kind = answer.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if kind.starts_with("text/html") {
        let guarded = answer.headers.contains_key(header::CONTENT_SECURITY_POLICY);
        let whole = guarded && answer.body.ends_with(b"</html>\n");
        return (status >= 500 || !whole).then(|| format!("{status} {}", String::from_utf8_lossy(&answer.body)));
    }
    if status >= 400 && json["error"].is_string() && json.get("errcode").is_none() {
        // A network has so many devices waiting for their users, and the clock of a test stands still.
        let full = status == 503 && json["error"] == "temporarily_unavailable";
        return (!full && ![400, 401].contains(&status)).then(|| format!("{status} {json}"));
    }
    complaint(answer)
}

// ---- small things ------------------------------------------------------------------------------------------------

/// The places in a value, its root left out.
fn pointers(value: &Value, at: String, places: &mut Vec<String>) {
    let mut inner = |key: String, value: &Value| {
        let place = format!("{at}/{key}");
        places.push(place.clone());
        pointers(value, place, places);
    };
    match value {
        Value::Array(items) => items.iter().enumerate().for_each(|(index, item)| inner(index.to_string(), item)),
        Value::Object(fields) => {
            fields.iter().for_each(|(key, value)| inner(key.replace('~', "~0").replace('/', "~1"), value));
        }
        _ => {}
    }
}

fn arguments(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'))
}

/// A value as the body of a form.
fn form(value: &Value) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let fields = value.as_object().into_iter().flatten();
    fields.map(|(name, value)| format!("{}={}", encode(name), encode(&text(value)))).collect::<Vec<_>>().join("&")
}

/// What the forms of a page carry.
fn csrf_of(page: &Answer) -> String {
    let html = String::from_utf8_lossy(&page.body).into_owned();
    let value = html.split("name=\"csrf\" value=\"").nth(1).and_then(|rest| rest.split('"').next());
    value.unwrap_or_else(|| panic!("{html}")).to_owned()
}

/// The cookie that an answer sets.
fn cookie_of(answer: &Answer) -> String {
    let cookie = answer.headers.get(header::SET_COOKIE).and_then(|cookie| cookie.to_str().ok()).unwrap_or_default();
    cookie.split(';').next().unwrap_or_default().to_owned()
}

fn encode(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes).escape_debug().take(60).collect::<String>();
    if bytes.len() > 60 { format!("{text}... ({} bytes)", bytes.len()) } else { text }
}
