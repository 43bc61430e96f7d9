//! Application services all the way to one of our own, on loopback.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http_body_util::{BodyExt as _, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use store::{MemoryDisk, Read as _, journal};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::App;
use crate::client::testing::{enc, next, ok, refused};
use crate::config::Limit;
use crate::error::ErrorCode;
use crate::http::{Local, Router};
use crate::jobs::{self, tasks, tasks::Removal};
use crate::schema::{HEADS, SERVICE_FOLLOWERS, TO_DEVICE, room_nr};
use crate::testing::{Server, config};
use crate::users::accounts::{self, NewAccount, Opener};
use crate::users::admin;

const WHOAMI: &str = "/_matrix/client/v3/account/whoami";
const REGISTER: &str = "/_matrix/client/v3/register";

/// What a service is asked.
#[derive(Clone, Debug)]
struct Asked {
    method: Method,
    path: String,
    token: String,
    body: Value,
}

/// What becomes of a request: a status and a body.
type Answers = Arc<Mutex<VecDeque<(u16, Value)>>>;

/// An application service.
struct Service {
    url: String,
    asked: mpsc::UnboundedReceiver<Asked>,
    /// For the next requests; then all is well.
    answers: Answers,
    /// Where its registration is.
    dir: TempDir,
}

impl Service {
    async fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (tell, asked) = mpsc::unbounded_channel();
        let answers = Answers::default();
        tokio::spawn(serve(listener, tell, answers.clone()));
        Service { url, asked, answers, dir: tempfile::tempdir().unwrap() }
    }

    /// A server that knows this service by a registration with more in it.
    fn server(&self, more: &str) -> Server {
        self.server_on(MemoryDisk::new(), more)
    }

    fn server_on(&self, disk: MemoryDisk, more: &str) -> Server {
        let file = self.dir.path().join("registration.yaml");
        let text = format!(
            "id: irc\nurl: {}\nas_token: as-token\nhs_token: hs-token\nsender_localpart: _irc_bot\n{more}\nnamespaces:\n  \
             users: [{{ exclusive: true, regex: '@_irc_.*' }}]\n  aliases: [{{ exclusive: true, regex: '#irc_.*' }}]\n",
            self.url
        );
        std::fs::write(&file, text).unwrap();
        let mut config = config();
        config.application_services.files = vec![file];
        // Presence changes with what users do.
        config.presence.enabled = false;
        config.rate_limits.message = Limit::per_second(0.001, 1);
        Server::of(App::on_memory_disk(config, disk))
    }

    async fn next(&mut self) -> Asked {
        tokio::time::timeout(Duration::from_secs(20), self.asked.recv()).await.expect("it was not asked").unwrap()
    }

    /// The next request while the clock runs.
    async fn next_by_clock(&mut self, server: &Server) -> Asked {
        let asked = async {
            loop {
                if let Ok(asked) = self.asked.try_recv() {
                    return asked;
                }
                server.app.clock.advance(Duration::from_millis(500));
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), asked).await.expect("it was not asked")
    }

    /// The events of transactions, up to and with a message of this text.
    async fn told_up_to(&mut self, text: &str) -> Vec<Value> {
        let mut events: Vec<Value> = Vec::new();
        while events.last().is_none_or(|event| event["content"]["body"] != text) {
            let asked = self.next().await;
            assert!(asked.path.starts_with("/_matrix/app/v1/transactions/"), "{asked:?}");
            events.extend(asked.body["events"].as_array().unwrap().iter().cloned());
        }
        events
    }

    /// The next thing that is told besides events.
    async fn next_with(&mut self, field: &str) -> Value {
        loop {
            let asked = self.next().await;
            if !asked.body[field].is_null() {
                return asked.body[field].clone();
            }
        }
    }
}

async fn serve(listener: TcpListener, tell: mpsc::UnboundedSender<Asked>, answers: Answers) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (tell, answers) = (tell.clone(), answers.clone());
        let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let (tell, answers) = (tell.clone(), answers.clone());
            async move {
                let token = request.headers().get("authorization").map(|token| token.to_str().unwrap().to_owned());
                let (method, path) = (request.method().clone(), request.uri().to_string());
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let body = serde_json::from_slice(&body).unwrap_or_default();
                let (status, answer) = answers.lock().pop_front().unwrap_or((200, json!({})));
                let _ = tell.send(Asked { method, path, token: token.unwrap_or_default(), body });
                let answer = Full::new(Bytes::from(answer.to_string()));
                Ok::<_, Infallible>(http::Response::builder().status(status).body(answer).unwrap())
            }
        });
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

async fn started(server: &Server) -> Local {
    super::start(&server.app).await.unwrap();
    server.client.with_token("as-token")
}

/// Registers a user of the service.
async fn puppet(client: &Local, name: &str) -> String {
    let body = json!({ "type": "m.login.application_service", "username": name, "inhibit_login": true });
    ok(&client.post(REGISTER, body).await)["user_id"].as_str().unwrap().to_owned()
}

async fn room(client: &Local, query: &str, more: Value) -> String {
    let answer = client.post(&format!("/_matrix/client/v3/createRoom?{query}"), more).await;
    ok(&answer)["room_id"].as_str().unwrap().to_owned()
}

async fn join(client: &Local, room: &str, query: &str) {
    ok(&client.post(&format!("/_matrix/client/v3/join/{}?{query}", enc(room)), json!({})).await);
}

async fn say(client: &Local, room: &str, text: &str, query: &str) -> String {
    let path = format!("/_matrix/client/v3/rooms/{}/send/m.room.message/{}?{query}", enc(room), next());
    let answer = client.put(&path, json!({ "msgtype": "m.text", "body": text })).await;
    ok(&answer)["event_id"].as_str().unwrap().to_owned()
}

fn bodies(events: &[Value]) -> Vec<&str> {
    events.iter().filter_map(|event| event["content"]["body"].as_str()).collect()
}

fn public() -> Value {
    json!({ "preset": "public_chat" })
}

#[tokio::test]
async fn pitfall_018_a_service_speaks_for_its_users_only() {
    let service = Service::open().await;
    let server = service.server("rate_limited: false");
    let client = started(&server).await;
    let who = async |query: &str| client.get(&format!("{WHOAMI}?{query}")).await;
    assert_eq!(ok(&who("").await), json!({ "user_id": "@_irc_bot:hs.test" }));
    assert_eq!(refused(&who("user_id=@_irc_anna:hs.test").await), (403, "M_FORBIDDEN".to_owned()), "not registered");
    let anna = puppet(&client, "_irc_anna").await;
    assert_eq!(ok(&who("user_id=@_irc_anna:hs.test").await)["user_id"], anna);
    server.user("alice").await;
    assert_eq!(refused(&who("user_id=@alice:hs.test").await), (403, "M_FORBIDDEN".to_owned()));
    assert_eq!(refused(&who("user_id=anna").await).0, 400);
    // Devices are named, once they are there.
    let query = "user_id=@_irc_anna:hs.test&device_id=PHONE";
    assert_eq!(refused(&who(query).await), (400, "M_UNKNOWN_DEVICE".to_owned()));
    let path = "/_matrix/client/v3/devices/PHONE?user_id=@_irc_anna:hs.test";
    assert_eq!(client.put(path, json!({ "display_name": "Phone" })).await.status, 201);
    assert_eq!(client.put(path, json!({})).await.status, 200);
    assert_eq!(ok(&who(query).await)["device_id"], "PHONE");
    assert_eq!(client.delete(path).await.status, 200, "without a password");
    assert_eq!(refused(&who(query).await), (400, "M_UNKNOWN_DEVICE".to_owned()));
}

#[tokio::test]
async fn exclusive_names_are_kept_at_every_door() {
    let service = Service::open().await;
    let server = service.server("");
    let app = &server.app;
    let kept = ruma::user_id!("@_irc_anna:hs.test");
    let outcome = accounts::check_free(app, kept, &Opener::Anybody);
    assert_eq!(outcome.unwrap_err().code().map(ErrorCode::as_str), Some("M_EXCLUSIVE"));
    // However an account is opened, that is asked again.
    let open = async |opener: Opener| {
        let new = NewAccount { opener, ..NewAccount::default() };
        app.store.transact(|tx| accounts::open(app, tx, kept, new.clone())).await.map(|_| ())
    };
    for opener in [Opener::Anybody, Opener::Service("other".to_owned())] {
        assert_eq!(open(opener).await.unwrap_err().code().map(ErrorCode::as_str), Some("M_EXCLUSIVE"));
    }
    assert!(open(Opener::Service("irc".to_owned())).await.is_ok());
    // Administrators know what they do.
    admin::create(app, "_irc_root", "correct horse", false).await.unwrap();
}

#[tokio::test]
async fn pitfall_018_exclusive_names_are_for_their_service() {
    let service = Service::open().await;
    let server = service.server("");
    let client = started(&server).await;
    let exclusive = (400, "M_EXCLUSIVE".to_owned());
    let mine = json!({ "username": "_irc_x", "password": "correct horse", "auth": { "type": "m.login.dummy" } });
    assert_eq!(refused(&server.client.post(REGISTER, mine).await), exclusive);
    let path = "/_matrix/client/v3/register/available?username=_irc_x";
    assert_eq!(refused(&server.client.get(path).await), exclusive);
    let outside = json!({ "type": "m.login.application_service", "username": "anna" });
    assert_eq!(refused(&client.post(REGISTER, outside.clone()).await), exclusive);
    assert_eq!(refused(&server.client.post(REGISTER, outside).await), (401, "M_MISSING_TOKEN".to_owned()));

    let alice = server.user("alice").await;
    let with_alias = json!({ "preset": "public_chat", "room_alias_name": "irc_tea" });
    let path = "/_matrix/client/v3/createRoom";
    assert_eq!(refused(&alice.client.post(path, with_alias.clone()).await), exclusive);
    let other = room(&alice.client, "", public()).await;
    let path = format!("/_matrix/client/v3/directory/room/{}", enc("#irc_tea:hs.test"));
    let body = json!({ "room_id": other });
    assert_eq!(refused(&alice.client.put(&path, body.clone()).await), exclusive);
    room(&client, "", with_alias).await;
    assert_eq!(refused(&alice.client.delete(&path).await), exclusive);
    let path = format!("/_matrix/client/v3/directory/room/{}", enc("#tea:hs.test"));
    join(&client, &other, "").await;
    assert_eq!(refused(&client.put(&path, body).await), exclusive);
}

#[tokio::test]
async fn a_service_logs_its_users_in_or_makes_devices() {
    let service = Service::open().await;
    let server = service.server("");
    let client = started(&server).await;
    puppet(&client, "_irc_anna").await;
    let login = async |client: &Local, user: &str| {
        let identifier = json!({ "type": "m.id.user", "user": user });
        let body = json!({ "type": "m.login.application_service", "identifier": identifier, "device_id": "D" });
        client.post("/_matrix/client/v3/login", body).await
    };
    let flows = ok(&server.client.get("/_matrix/client/v3/login").await);
    assert!(flows["flows"].as_array().unwrap().contains(&json!({ "type": "m.login.application_service" })), "{flows}");
    let session = ok(&login(&client, "_irc_anna").await);
    let anna = server.client.with_token(session["access_token"].as_str().unwrap());
    assert_eq!(ok(&anna.get(WHOAMI).await), json!({ "user_id": "@_irc_anna:hs.test", "device_id": "D" }));
    assert_eq!(refused(&login(&client, "alice").await), (400, "M_EXCLUSIVE".to_owned()));
    assert_eq!(refused(&login(&client, "_irc_nobody").await), (403, "M_FORBIDDEN".to_owned()));
    assert_eq!(refused(&login(&server.client, "_irc_anna").await), (401, "M_MISSING_TOKEN".to_owned()));
    assert_eq!(refused(&login(&anna, "_irc_anna").await), (401, "M_UNKNOWN_TOKEN".to_owned()));

    let server = service.server("io.element.msc4190: true");
    let client = started(&server).await;
    puppet(&client, "_irc_anna").await;
    let unsupported = (400, "M_APPSERVICE_LOGIN_UNSUPPORTED".to_owned());
    assert_eq!(refused(&login(&client, "_irc_anna").await), unsupported);
    let body = json!({ "type": "m.login.application_service", "username": "_irc_bert" });
    assert_eq!(refused(&client.post(REGISTER, body).await), unsupported);
}

#[tokio::test]
async fn a_service_does_not_become_an_administrator() {
    let service = Service::open().await;
    let server = service.server("");
    let client = started(&server).await;
    admin::create(&server.app, "_irc_root", "correct horse", true).await.unwrap();
    let identifier = json!({ "type": "m.id.user", "user": "_irc_root" });
    let login = json!({ "type": "m.login.application_service", "identifier": identifier });
    assert_eq!(refused(&client.post("/_matrix/client/v3/login", login).await).0, 403);
    let as_root = "user_id=@_irc_root:hs.test";
    assert_eq!(ok(&client.get(&format!("{WHOAMI}?{as_root}")).await)["user_id"], "@_irc_root:hs.test");
    let new = json!({ "new_password": "battery staple" });
    let path = format!("/_matrix/client/v3/account/password?{as_root}");
    assert_eq!(refused(&client.post(&path, new).await).0, 403);
    let path = format!("/_matrix/client/v3/account/deactivate?{as_root}");
    assert_eq!(refused(&client.post(&path, json!({})).await).0, 403);
    let path = format!("/_synapse/admin/v2/users/@_irc_root:hs.test?{as_root}");
    assert_eq!(refused(&client.get(&path).await).0, 403);
    // Nor by a session from before the user became one.
    puppet(&client, "_irc_anna").await;
    let identifier = json!({ "type": "m.id.user", "user": "_irc_anna" });
    let login = json!({ "type": "m.login.application_service", "identifier": identifier, "device_id": "D" });
    let session = ok(&client.post("/_matrix/client/v3/login", login).await);
    let anna = ruma::user_id!("@_irc_anna:hs.test");
    admin::reset_password(&server.app, "_irc_anna", "correct horse", false).await.unwrap();
    admin::set_admin(&server.app, anna, true).await.unwrap();
    let path = "/_synapse/admin/v2/users/@_irc_anna:hs.test";
    let by_service = server.client.with_token(session["access_token"].as_str().unwrap());
    assert_eq!(refused(&by_service.get(path).await).0, 403);
    let own = server.log_in_with("_irc_anna", json!({ "device_id": "D" })).await;
    assert_eq!(own.client.get(path).await.status, 200);
}

#[tokio::test]
async fn pitfall_018_limits_and_times_are_lifted_for_services() {
    let service = Service::open().await;
    let server = service.server("rate_limited: false");
    let client = started(&server).await;
    puppet(&client, "_irc_anna").await;
    let room = room(&client, "", public()).await;
    let query = "user_id=@_irc_anna:hs.test&ts=1234";
    join(&client, &room, query).await;
    for n in 0..3 {
        let event_id = say(&client, &room, &n.to_string(), query).await;
        let path = format!("/_matrix/client/v3/rooms/{}/event/{}", enc(&room), enc(&event_id));
        let event = ok(&client.get(&path).await);
        assert_eq!((&event["origin_server_ts"], &event["sender"]), (&json!(1234), &json!("@_irc_anna:hs.test")));
    }
    let limited = service.server("");
    let client = started(&limited).await;
    puppet(&client, "_irc_anna").await;
    let room = self::room(&client, "", public()).await;
    join(&client, &room, query).await;
    say(&client, &room, "0", query).await;
    let path = format!("/_matrix/client/v3/rooms/{}/send/m.room.message/x?{query}", enc(&room));
    assert_eq!(client.put(&path, json!({ "body": "1" })).await.status, 429);
    say(&client, &room, "the service's own user", "").await;
    say(&client, &room, "is never limited", "").await;
}

#[tokio::test]
async fn pitfall_019_a_service_hears_of_rooms_that_its_users_are_in_while_they_are() {
    let mut service = Service::open().await;
    let server = service.server("rate_limited: false");
    let client = started(&server).await;
    puppet(&client, "_irc_anna").await;
    let anna = "user_id=@_irc_anna:hs.test";
    let room = room(&client, "", public()).await;
    let other = self::room(&client, "", public()).await;
    let alice = server.user("alice").await;
    join(&alice.client, &room, "").await;
    // The bot leaves; there is nobody of the service in the room until Anna comes.
    ok(&client.post(&format!("/_matrix/client/v3/rooms/{}/leave", enc(&room)), json!({})).await);
    say(&alice.client, &room, "unheard", "").await;
    join(&client, &room, anna).await;
    say(&client, &room, "hello", anna).await;
    say(&client, &other, "end", "").await;
    let told = service.told_up_to("end").await;
    assert_eq!(bodies(&told), ["hello", "end"]);
    assert!(told.iter().all(|event| event["room_id"].is_string() && event["unsigned"]["age"].is_number()));
    let joined = |user: &str| {
        let is_join = |event: &&Value| event["state_key"] == user && event["content"]["membership"] == "join";
        told.iter().filter(is_join).count()
    };
    assert_eq!((joined("@_irc_bot:hs.test"), joined("@alice:hs.test"), joined("@_irc_anna:hs.test")), (2, 1, 1));
}

#[tokio::test]
async fn pitfall_019_a_transaction_is_sent_in_the_same_words_until_it_is_taken() {
    let mut service = Service::open().await;
    let server = service.server("");
    let client = started(&server).await;
    service.answers.lock().extend([(500, json!({})), (502, json!({}))]);
    let room = room(&client, "", public()).await;
    let first = service.next().await;
    assert_eq!((first.method.as_str(), first.token.as_str()), ("PUT", "Bearer hs-token"));
    say(&client, &room, "later", "").await;
    for _ in 0..2 {
        let again = service.next_by_clock(&server).await;
        assert_eq!((&again.path, &again.body), (&first.path, &first.body));
    }
    let next = service.next_by_clock(&server).await;
    assert_ne!(next.path, first.path);
    assert_eq!(bodies(next.body["events"].as_array().unwrap()), ["later"]);
}

#[tokio::test]
async fn pitfall_019_what_was_not_taken_is_sent_after_a_restart() {
    let mut service = Service::open().await;
    let disk = MemoryDisk::new();
    let server = service.server_on(disk.clone(), "");
    let client = started(&server).await;
    service.answers.lock().push_back((500, json!({})));
    let room = room(&client, "", public()).await;
    let first = service.next().await;
    say(&client, &room, "later", "").await;
    server.app.shutdown.cancel();
    server.app.tasks.close();
    server.app.tasks.wait().await;
    drop((client, server));
    let server = service.server_on(disk, "");
    started(&server).await;
    let again = service.next().await;
    assert_eq!((&again.path, &again.body), (&first.path, &first.body));
    assert_eq!(bodies(&service.told_up_to("later").await), ["later"]);
}

#[tokio::test]
async fn an_administrator_goes_on_past_what_a_service_never_takes() {
    let mut service = Service::open().await;
    let server = service.server("");
    let client = started(&server).await;
    let desk = Local::new(Router::new(server.app.clone(), crate::admin::services::routes()).unwrap());
    let room = room(&client, "", public()).await;
    say(&client, &room, "good", "").await;
    service.told_up_to("good").await;
    service.answers.lock().extend((0..1_000).map(|_| (413, json!({}))));
    let poison = say(&client, &room, "poison", "").await;
    let first = service.next().await;
    let again = service.next_by_clock(&server).await;
    assert_eq!(again.path, first.path);
    say(&client, &room, "after", "").await;

    let shown = ok(&desk.get("/services/irc").await);
    let waiting = &shown["transaction"];
    assert!(first.path.ends_with(&format!("/{}", waiting["number"])), "{shown}");
    let event = json!({ "event_id": poison, "room_id": room, "sender": "@_irc_bot:hs.test", "type": "m.room.message" });
    assert_eq!((&waiting["event_count"], &waiting["events"]), (&json!(1), &json!([event])));
    assert_eq!(shown["trouble"]["cause"], "it answers 413 Payload Too Large");
    assert!(shown["trouble"]["failures"].as_u64() >= Some(1) && waiting["waiting_ms"].as_u64() > Some(0), "{shown}");
    assert!(shown["trouble"]["since_ts"].as_u64() >= waiting["since_ts"].as_u64(), "{shown}");
    assert_eq!(ok(&desk.get("/services").await)["services"].as_array().unwrap().len(), 1);

    let skip = async |number: &Value| desk.post("/services/irc/skip", json!({ "transaction": number })).await;
    assert_eq!(refused(&skip(&json!(17)).await), (404, "M_NOT_FOUND".to_owned()), "nobody has seen that");
    assert_eq!(refused(&desk.get("/services/other").await), (404, "M_NOT_FOUND".to_owned()));
    ok(&skip(&waiting["number"]).await);
    // One request may have been under way. The service still takes nothing, and is sent the next transaction all the same.
    let mut next = service.next_by_clock(&server).await;
    if next.path == first.path {
        next = service.next_by_clock(&server).await;
    }
    assert_ne!(next.path, first.path);
    assert_eq!(bodies(next.body["events"].as_array().unwrap()), ["after"]);
    assert_eq!(refused(&skip(&waiting["number"]).await), (404, "M_NOT_FOUND".to_owned()), "it is gone");
    service.answers.lock().clear();
}

#[tokio::test]
async fn a_service_that_is_away_for_weeks_begins_anew() {
    let mut service = Service::open().await;
    let server = service.server("");
    let client = started(&server).await;
    service.answers.lock().extend((0..2).map(|_| (502, json!({}))));
    let room = room(&client, "", public()).await;
    let first = service.next().await;
    let follower = format!("{}irc", SERVICE_FOLLOWERS);
    let cursor = || journal::cursor(&server.app.store.snapshot(), &follower).unwrap();
    let before = cursor();
    say(&client, &room, "missed", "").await;
    server.app.clock.advance(Duration::from_secs(15 * 24 * 3_600));
    let begun_anew = async {
        while cursor() == before {
            server.app.clock.advance(Duration::from_millis(500));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), begun_anew).await.unwrap();
    service.answers.lock().clear();
    say(&client, &room, "new", "").await;
    let next = loop {
        let next = service.next_by_clock(&server).await;
        if next.path != first.path {
            break next;
        }
    };
    assert_eq!(bodies(next.body["events"].as_array().unwrap()), ["new"]);
}

#[tokio::test]
async fn a_room_is_deleted_when_the_service_knows_that_its_users_left() {
    let mut service = Service::open().await;
    let server = service.server("");
    let client = started(&server).await;
    let room = room(&client, "", public()).await;
    say(&client, &room, "here", "").await;
    service.told_up_to("here").await;
    // The service is away while the room is closed.
    service.answers.lock().extend((0..3).map(|_| (502, json!({}))));
    say(&client, &room, "away", "").await;
    service.next().await;
    let room_id = ruma::RoomId::parse(room.as_str()).unwrap();
    let removal = Removal { room_id: room_id.clone(), purge: true, block: false, new_room: None };
    tasks::delete_room(&server.app, "", &removal).await.unwrap();
    jobs::drain(&server.app).await.unwrap();
    let is_there = || server.app.store.snapshot().contains(&HEADS, room_nr(&room_id)).unwrap();
    assert!(is_there());
    let mut left = false;
    while !left {
        let told = service.next_by_clock(&server).await.body["events"].clone();
        let is_leave = |event: &Value| event["content"]["membership"] == "leave" && event["room_id"] == room.as_str();
        left = told.as_array().unwrap().iter().any(is_leave);
    }
    let gone = async {
        while is_there() {
            server.app.clock.advance(Duration::from_millis(500));
            jobs::drain(&server.app).await.unwrap();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone).await.unwrap();
}

#[tokio::test]
async fn services_of_old_are_asked_under_their_paths() {
    let mut service = Service::open().await;
    let server = service.server("");
    let client = started(&server).await;
    service.answers.lock().push_back((404, json!({ "errcode": "M_UNRECOGNIZED" })));
    room(&client, "", public()).await;
    let (present, older) = (service.next().await, service.next().await);
    assert_eq!(format!("/_matrix/app/v1{}", older.path), present.path);
    assert_eq!(older.body, present.body);
}

#[tokio::test]
async fn pitfall_071_a_service_hears_of_typing_and_receipts_but_not_of_private_ones() {
    let mut service = Service::open().await;
    let server = service.server("receive_ephemeral: true");
    let client = started(&server).await;
    let room = room(&client, "", public()).await;
    let alice = server.user("alice").await;
    join(&alice.client, &room, "").await;
    let event_id = say(&client, &room, "read this", "").await;
    service.told_up_to("read this").await;
    let base = format!("/_matrix/client/v3/rooms/{}", enc(&room));
    let path = format!("{base}/typing/@alice:hs.test");
    ok(&alice.client.put(&path, json!({ "typing": true, "timeout": 30_000 })).await);
    let content = json!({ "user_ids": ["@alice:hs.test"] });
    let typing = json!({ "type": "m.typing", "room_id": room, "content": content });
    assert_eq!(service.next_with("ephemeral").await, json!([typing]));
    for kind in ["m.read.private", "m.read"] {
        ok(&alice.client.post(&format!("{base}/receipt/{kind}/{}", enc(&event_id)), json!({})).await);
    }
    let told = service.next_with("ephemeral").await;
    let ts = &told[0]["content"][&event_id]["m.read"]["@alice:hs.test"]["ts"];
    let content = json!({ (event_id.clone()): { "m.read": { "@alice:hs.test": { "ts": ts } } } });
    assert_eq!(told, json!([{ "type": "m.receipt", "room_id": room, "content": content }]));
    // Its own user's private receipts are its own.
    ok(&client.post(&format!("{base}/receipt/m.read.private/{}", enc(&event_id)), json!({})).await);
    let told = service.next_with("ephemeral").await;
    assert!(told[0]["content"][&event_id]["m.read.private"]["@_irc_bot:hs.test"].is_object(), "{told}");
}

#[tokio::test]
async fn messages_to_the_devices_of_a_service_go_to_the_service() {
    let mut service = Service::open().await;
    let server = service.server("org.matrix.msc3202: true");
    let client = started(&server).await;
    assert_eq!(client.put("/_matrix/client/v3/devices/BOT", json!({})).await.status, 201);
    let alice = server.user("alice").await;
    let messages = json!({ "@_irc_bot:hs.test": { "BOT": { "n": 1 } } });
    ok(&alice.client.put("/_matrix/client/v3/sendToDevice/m.test/1", json!({ "messages": messages })).await);
    let told = service.next_with("de.sorunome.msc2409.to_device").await;
    let expected = json!({
        "type": "m.test", "sender": alice.user_id, "content": { "n": 1 },
        "to_user_id": "@_irc_bot:hs.test", "to_device_id": "BOT",
    });
    assert_eq!(told, json!([expected]));
    let left = async || {
        while server.app.store.latest().count(&TO_DEVICE, TO_DEVICE.all()).unwrap() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), left()).await.expect("it was delivered and is kept");
}

#[tokio::test]
async fn a_service_that_encrypts_hears_whose_devices_are_new() {
    let mut service = Service::open().await;
    let server = service.server("org.matrix.msc3202: true");
    let client = started(&server).await;
    let room = room(&client, "", public()).await;
    let alice = server.user("alice").await;
    let end = say(&client, &room, "before", "").await;
    assert_eq!(service.told_up_to("before").await.last().unwrap()["event_id"], end);
    join(&alice.client, &room, "").await;
    let told = service.next_with("org.matrix.msc3202.device_lists").await;
    assert_eq!(told, json!({ "changed": ["@alice:hs.test"], "left": [] }));
}

#[tokio::test]
async fn a_service_hears_of_rooms_with_aliases_of_its_own() {
    let mut service = Service::open().await;
    let server = service.server("");
    let client = started(&server).await;
    let alice = server.user("alice").await;
    let named = room(&client, "", json!({ "preset": "public_chat", "room_alias_name": "irc_tea" })).await;
    join(&alice.client, &named, "").await;
    ok(&client.post(&format!("/_matrix/client/v3/rooms/{}/leave", enc(&named)), json!({})).await);
    say(&alice.client, &named, "heard by the alias", "").await;
    let told = service.told_up_to("heard by the alias").await;
    assert_eq!(told.last().unwrap()["sender"], "@alice:hs.test");
}

#[tokio::test]
async fn a_ping_comes_back() {
    let mut service = Service::open().await;
    let server = service.server("");
    let client = started(&server).await;
    let ping = async |id: &str| {
        let path = format!("/_matrix/client/v1/appservice/{id}/ping");
        client.post(&path, json!({ "transaction_id": "meow" })).await
    };
    assert!(ok(&ping("irc").await)["duration_ms"].is_number());
    let asked = service.next().await;
    assert_eq!((asked.path.as_str(), asked.body), ("/_matrix/app/v1/ping", json!({ "transaction_id": "meow" })));
    assert_eq!(refused(&ping("other").await), (403, "M_FORBIDDEN".to_owned()));
    service.answers.lock().push_back((403, json!({ "errcode": "M_FORBIDDEN" })));
    let answer = ping("irc").await;
    assert_eq!(refused(&answer), (502, "M_BAD_STATUS".to_owned()));
    assert_eq!(
        (&answer.json()["status"], &answer.json()["body"]),
        (&json!(403), &json!(r#"{"errcode":"M_FORBIDDEN"}"#))
    );
    let alice = server.user("alice").await;
    let answer = alice.client.post("/_matrix/client/v1/appservice/irc/ping", json!({})).await;
    assert_eq!(refused(&answer), (403, "M_FORBIDDEN".to_owned()));
}

#[tokio::test]
async fn strangers_do_not_make_a_service_be_asked_without_end() {
    let mut service = Service::open().await;
    let server = service.server("");
    let client = started(&server).await;
    let alice = server.user("alice").await;
    let unknown = (404, json!({ "errcode": "M_NOT_FOUND" }));
    service.answers.lock().push_back(unknown.clone());
    for _ in 0..3 {
        let answer = server.client.get("/_matrix/client/v3/directory/room/%23irc_none:hs.test").await;
        assert_eq!(answer.status, 404);
    }
    assert!(service.next().await.path.ends_with("none%3Ahs%2Etest"));
    assert!(service.asked.try_recv().is_err(), "it has said so");
    server.app.clock.advance(Duration::from_secs(60));
    service.answers.lock().push_back(unknown);
    server.client.get("/_matrix/client/v3/directory/room/%23irc_none:hs.test").await;
    assert!(service.next().await.path.ends_with("none%3Ahs%2Etest"), "things change");
    // More guests than a room can be made with are refused before anybody is asked for them.
    let many: Vec<String> = (0..101).map(|nr| format!("@_irc_{nr}:hs.test")).collect();
    let answer = alice.client.post("/_matrix/client/v3/createRoom", json!({ "invite": many })).await;
    assert_eq!(refused(&answer).0, 400);
    assert!(service.asked.try_recv().is_err());
    drop(client);
}

#[tokio::test]
async fn users_and_aliases_are_asked_for_where_they_are_wanted() {
    let mut service = Service::open().await;
    let server = service.server("");
    let _client = started(&server).await;
    let alice = server.user("alice").await;
    let room = room(&alice.client, "", public()).await;
    service.answers.lock().push_back((404, json!({ "errcode": "M_NOT_FOUND" })));
    let path = format!("/_matrix/client/v3/rooms/{}/invite", enc(&room));
    alice.client.post(&path, json!({ "user_id": "@_irc_carl:hs.test" })).await;
    let asked = service.next().await;
    assert_eq!(
        (asked.method.as_str(), asked.path.as_str()),
        ("GET", "/_matrix/app/v1/users/%40%5Firc%5Fcarl%3Ahs%2Etest")
    );
    // A service that says yes and makes no room has none.
    let path = format!("/_matrix/client/v3/directory/room/{}", enc("#irc_tea:hs.test"));
    assert_eq!(refused(&alice.client.get(&path).await), (404, "M_NOT_FOUND".to_owned()));
    assert_eq!(service.next().await.path, "/_matrix/app/v1/rooms/%23irc%5Ftea%3Ahs%2Etest");
    let path = format!("/_matrix/client/v3/directory/room/{}", enc("#tea:hs.test"));
    assert_eq!(refused(&alice.client.get(&path).await), (404, "M_NOT_FOUND".to_owned()));
    assert!(service.asked.try_recv().is_err(), "it has nothing to do with other aliases");
}

#[tokio::test]
async fn networks_are_looked_up_through_their_services() {
    let mut service = Service::open().await;
    let server = service.server("protocols: [irc]");
    let client = started(&server).await;
    let alice = server.user("alice").await;
    let protocol = json!({
        "user_fields": ["nick"], "location_fields": ["channel"], "icon": "mxc://a/b", "field_types": {},
        "instances": [{ "desc": "Tea", "network_id": "tea", "fields": {} }],
    });
    service.answers.lock().push_back((200, protocol));
    let get = async |rest: &str| alice.client.get(&format!("/_matrix/client/v3/thirdparty/{rest}")).await;
    let found = ok(&get("protocols").await);
    assert_eq!(found["irc"]["instances"][0]["instance_id"], "irc|tea");
    assert_eq!(service.next().await.path, "/_matrix/app/v1/thirdparty/protocol/irc");
    let users = json!([{ "userid": "@_irc_anna:hs.test", "protocol": "irc", "fields": {} }]);
    service.answers.lock().push_back((200, users.clone()));
    assert_eq!(ok(&get("user/irc?nick=anna&access_token=secret").await), users);
    assert_eq!(service.next().await.path, "/_matrix/app/v1/thirdparty/user/irc?nick=anna");
    assert_eq!(refused(&get("user/xmpp").await), (404, "M_NOT_FOUND".to_owned()));
    let long = get(&format!("user/irc?nick={}", "x".repeat(3_000))).await;
    assert_eq!(refused(&long), (413, "M_TOO_LARGE".to_owned()));
    assert!(service.asked.try_recv().is_err(), "it is not asked that");

    let room = room(&client, "", public()).await;
    let path = format!("/_matrix/client/v3/directory/list/appservice/tea/{}", enc(&room));
    ok(&client.put(&path, json!({ "visibility": "public" })).await);
    let rooms = async |body: Value| {
        let found = ok(&alice.client.post("/_matrix/client/v3/publicRooms", body).await);
        found["chunk"].as_array().unwrap().len()
    };
    assert_eq!(rooms(json!({})).await, 0);
    assert_eq!(rooms(json!({ "third_party_instance_id": "irc|tea" })).await, 1);
    assert_eq!(rooms(json!({ "third_party_instance_id": "irc|milk" })).await, 0);
    assert_eq!(rooms(json!({ "include_all_networks": true })).await, 1);
    ok(&client.put(&path, json!({ "visibility": "private" })).await);
    assert_eq!(rooms(json!({ "include_all_networks": true })).await, 0);
    assert_eq!(refused(&alice.client.put(&path, json!({ "visibility": "public" })).await).0, 403);
}
