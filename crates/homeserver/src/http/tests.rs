//! The router without sockets, on endpoints made for the purpose: matching, bodies, errors, CORS, detachment.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use ruma::api::client::account::whoami;
use ruma::api::client::membership::join_room_by_id;
use ruma::api::client::profile::get_display_name;
use ruma::api::client::room::create_room;
use ruma::api::client::session::login;
use ruma::api::client::state::get_state_event_for_key;
use ruma::api::client::sync::sync_events;
use serde_json::json;

use super::{Answer, Body, Ctx, Local, MAX_DEPTH, RawCtx, Request, Response, Router, Routes, json_response};
use crate::App;
use crate::auth::Access;
use crate::config::{Config, Limit, Size, Span};
use crate::error::{Error, Result};
use crate::limits::Class;

async fn whoami(ctx: Ctx<whoami::v3::Request>) -> Result<whoami::v3::Response> {
    Ok(whoami::v3::Response { user_id: ctx.requester.user_id, device_id: None, is_guest: false })
}

async fn display_name(ctx: Ctx<get_display_name::v3::Request>) -> Result<get_display_name::v3::Response> {
    Ok(get_display_name::v3::Response { displayname: Some(ctx.request.user_id.to_string()) })
}

/// Answers with its path arguments.
async fn args(ctx: RawCtx) -> Result<Response> {
    Ok(json_response(StatusCode::OK, json!(ctx.args).to_string()))
}

async fn panics(_: RawCtx) -> Result<Response> {
    panic!("on purpose")
}

async fn length(mut ctx: RawCtx) -> Result<Response> {
    let mut length = 0;
    while let Some(piece) = ctx.body.chunk(Duration::from_secs(5)).await? {
        length += piece.len();
    }
    Ok(json_response(StatusCode::OK, length.to_string()))
}

fn app(change: impl FnOnce(&mut Config)) -> App {
    let mut config = Config::new(ruma::owned_server_name!("hs.test"));
    change(&mut config);
    App::in_memory(config)
}

fn local(routes: Routes) -> Local {
    Local::new(Router::new(app(|_| {}), routes).unwrap())
}

fn problem(answer: &Answer) -> (u16, String) {
    (answer.status.as_u16(), answer.errcode())
}

/// The JSON body of a raw endpoint, for what every JSON endpoint does with it.
fn json_routes() -> Routes {
    async fn create(ctx: Ctx<create_room::v3::Request>) -> Result<create_room::v3::Response> {
        let name = ctx.request.name.unwrap_or_default();
        Err(Error::forbidden(format!("{}|{}", name, String::from_utf8_lossy(&ctx.body))))
    }
    Routes::default().ruma(create).access(Access::Anyone)
}

const CREATE: &str = "/_matrix/client/v3/createRoom";

#[tokio::test]
async fn pitfall_006_unknown_paths_and_methods_are_unrecognized() {
    let client = local(Routes::default().ruma(display_name));
    assert_eq!(problem(&client.get("/_matrix/client/v3/nothing").await), (404, "M_UNRECOGNIZED".to_owned()));
    assert_eq!(problem(&client.get("/").await), (404, "M_UNRECOGNIZED".to_owned()));
    let path = "/_matrix/client/v3/profile/@a:hs.test/displayname";
    assert_eq!(problem(&client.post(path, json!({})).await), (405, "M_UNRECOGNIZED".to_owned()));
    let made_up = Method::from_bytes(b"BREW").unwrap();
    assert_eq!(problem(&client.send(made_up, path, Body::empty()).await), (405, "M_UNRECOGNIZED".to_owned()));
}

#[tokio::test]
async fn every_path_of_the_history_leads_to_the_handler() {
    let client = local(Routes::default().ruma(display_name));
    for version in ["r0", "v3"] {
        let answer = client.get(&format!("/_matrix/client/{version}/profile/%40a%3Ahs.test/displayname")).await;
        assert_eq!(answer.json(), json!({"displayname": "@a:hs.test"}));
    }
}

#[tokio::test]
async fn pitfall_007_cors_on_every_answer_and_options_runs_nothing() {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    async fn counted(_: RawCtx) -> Result<Response> {
        RUNS.fetch_add(1, Ordering::SeqCst);
        Ok(Response::default())
    }
    let client = local(Routes::default().raw(Method::GET, &["/counted"], counted).ruma(whoami).raw(
        Method::GET,
        &["/panics"],
        panics,
    ));
    for path in ["/counted", "/nowhere", "/_matrix/client/v3/account/whoami"] {
        let answer = client.send(Method::OPTIONS, path, Body::empty()).await;
        assert!(answer.status.is_success(), "{path}");
        assert_eq!(answer.headers[header::ACCESS_CONTROL_ALLOW_ORIGIN], "*");
        let allowed = answer.headers[header::ACCESS_CONTROL_ALLOW_HEADERS].to_str().unwrap();
        assert!(allowed.contains("Authorization") && allowed.contains("Content-Type"));
    }
    assert_eq!(RUNS.load(Ordering::SeqCst), 0);
    for path in ["/counted", "/nowhere", "/_matrix/client/v3/account/whoami", "/panics"] {
        assert_eq!(client.get(path).await.headers[header::ACCESS_CONTROL_ALLOW_ORIGIN], "*", "{path}");
    }
}

#[tokio::test]
async fn pitfall_004_state_keys_may_be_empty_and_are_decoded_once() {
    async fn state(ctx: Ctx<get_state_event_for_key::v3::Request>) -> Result<get_state_event_for_key::v3::Response> {
        Err(Error::not_found(format!("{}|{}", ctx.request.event_type, ctx.request.state_key)))
    }
    let client = local(Routes::default().ruma(state).access(Access::OptionalToken));
    // The type of `Ctx::requester` still asks for a token; what is of interest comes before it.
    let parsed = |end: &'static str| {
        let client = client.clone();
        async move { problem(&client.get(&format!("/_matrix/client/v3/rooms/!r:hs.test/state/{end}")).await).1 }
    };
    for end in ["m.room.name", "m.room.name/", "m.room.name/key", "a%2Fb/%40x%3Ay%25"] {
        assert_eq!(parsed(end).await, "M_MISSING_TOKEN", "{end}");
    }
    assert_eq!(parsed("a/b/c").await, "M_UNRECOGNIZED");
    let client = local(Routes::default().raw(Method::GET, &["/x/{type}/{key}", "/x/{type}/", "/x/{type}"], args));
    assert_eq!(client.get("/x/a%2Fb/%2540%25").await.json(), json!(["a/b", "%40%"]));
    assert_eq!(client.get("/x/a+b/c%2Bd").await.json(), json!(["a+b", "c+d"]));
    assert_eq!(client.get("/x/a/").await.json(), json!(["a"]));
    assert_eq!(problem(&client.get("/x/%ff").await), (400, "M_INVALID_PARAM".to_owned()));
}

#[tokio::test]
async fn pitfall_005_bodies_that_are_no_objects() {
    let client = local(json_routes());
    let send = |body: &'static str| {
        let client = client.clone();
        async move { problem(&client.send(Method::POST, CREATE, body).await) }
    };
    // An endpoint with a token type and no token ends there: the body was good.
    let good = (401, "M_MISSING_TOKEN".to_owned());
    assert_eq!(send("").await, good);
    assert_eq!(send("{}").await, good);
    assert_eq!(send(" {\"name\": \"x\"} ").await, good);
    assert_eq!(send("{").await, (400, "M_NOT_JSON".to_owned()));
    assert_eq!(send("{\"name\": }").await, (400, "M_NOT_JSON".to_owned()));
    assert_eq!(send("{} trailing").await, (400, "M_NOT_JSON".to_owned()));
    assert_eq!(send("name=x").await, (400, "M_NOT_JSON".to_owned()));
    assert_eq!(send("[]").await, (400, "M_BAD_JSON".to_owned()));
    assert_eq!(send("null").await, (400, "M_BAD_JSON".to_owned()));
    assert_eq!(send("{\"name\": 5}").await, (400, "M_BAD_JSON".to_owned()));
    assert_eq!(send("{\"invite\": [\"nobody\"]}").await, (400, "M_BAD_JSON".to_owned()));
}

#[tokio::test]
async fn deep_and_large_bodies_are_refused_before_they_are_parsed() {
    let client = local(json_routes());
    let deep = format!("{{\"creation_content\":{}{}}}", "{\"a\":".repeat(MAX_DEPTH), "}".repeat(MAX_DEPTH));
    assert_eq!(problem(&client.send(Method::POST, CREATE, deep).await), (400, "M_BAD_JSON".to_owned()));
    let endless = "[".repeat(1 << 19);
    let body = format!("{{\"creation_content\":{endless}");
    assert_eq!(problem(&client.send(Method::POST, CREATE, body).await), (400, "M_BAD_JSON".to_owned()));
    let large = format!("{{\"name\":\"{}\"}}", "x".repeat(1 << 20));
    assert_eq!(problem(&client.send(Method::POST, CREATE, large).await), (413, "M_TOO_LARGE".to_owned()));
    // In pieces, without a length.
    let pieces = futures_util::stream::iter((0..2000).map(|_| Ok(Bytes::from(vec![b' '; 1024]))));
    let answer = client.send(Method::POST, CREATE, Body::stream(pieces, None)).await;
    assert_eq!(problem(&answer), (413, "M_TOO_LARGE".to_owned()));
}

#[tokio::test]
async fn identifiers_and_queries_are_checked() {
    async fn join(ctx: Ctx<join_room_by_id::v3::Request>) -> Result<join_room_by_id::v3::Response> {
        Ok(join_room_by_id::v3::Response { room_id: ctx.request.room_id })
    }
    async fn sync(_: Ctx<sync_events::v3::Request>) -> Result<sync_events::v3::Response> {
        Err(Error::forbidden("parsed"))
    }
    let client =
        local(Routes::default().ruma(join).access(Access::Anyone).ruma(sync).access(Access::Anyone).ruma(display_name));
    let invalid = (400, "M_INVALID_PARAM".to_owned());
    assert_eq!(problem(&client.post("/_matrix/client/v3/rooms/nonsense/join", json!({})).await), invalid);
    assert_eq!(problem(&client.get("/_matrix/client/v3/sync?timeout=soon").await), invalid);
    assert_eq!(problem(&client.get("/_matrix/client/v3/sync?full_state=5").await), invalid);
    assert_eq!(problem(&client.get("/_matrix/client/v3/profile/nobody/displayname").await), invalid);
}

#[tokio::test]
async fn pitfall_009_tokens_are_missing_or_unknown() {
    let client = local(Routes::default().ruma(whoami));
    let path = "/_matrix/client/v3/account/whoami";
    assert_eq!(problem(&client.get(path).await), (401, "M_MISSING_TOKEN".to_owned()));
    let answer = client.with_token("nobody").get(path).await;
    assert_eq!(problem(&answer), (401, "M_UNKNOWN_TOKEN".to_owned()));
    assert_eq!(answer.json().get("soft_logout"), None);
    let query = format!("{path}?access_token=nobody");
    assert_eq!(problem(&client.get(&query).await), (401, "M_UNKNOWN_TOKEN".to_owned()));
    let mut request = Request::default();
    *request.uri_mut() = path.parse().unwrap();
    request.headers_mut().insert(header::AUTHORIZATION, HeaderValue::from_static("Basic abc"));
    assert_eq!(problem(&client.request(request).await), (401, "M_MISSING_TOKEN".to_owned()));
}

#[tokio::test]
async fn pitfall_008_limits_are_per_class_and_can_be_off() {
    let routes = || Routes::default().raw(Method::GET, &["/a/{x}"], args).limit(Class::Search);
    let limit = Limit::per_second(1.0, 2);
    let app = app(|config| config.rate_limits.search = limit);
    let client = Local::new(Router::new(app.clone(), routes()).unwrap());
    assert_eq!(client.get("/a/1").await.status, StatusCode::OK);
    assert_eq!(client.get("/a/2").await.status, StatusCode::OK);
    let refused = client.get("/a/3").await;
    assert_eq!(problem(&refused), (429, "M_LIMIT_EXCEEDED".to_owned()));
    assert_eq!(
        (&refused.json()["retry_after_ms"], &refused.headers[header::RETRY_AFTER]),
        (&json!(1000), &"1".parse().unwrap())
    );
    app.clock.advance(Duration::from_secs(1));
    assert_eq!(client.get("/a/4").await.status, StatusCode::OK);
}

#[tokio::test]
async fn head_is_get_without_its_body() {
    let client = local(Routes::default().ruma(display_name).raw(Method::GET, &["/a/{x}"], args));
    for path in ["/a/1", "/_matrix/client/v3/profile/@a:hs.test/displayname"] {
        assert_eq!(client.send(Method::HEAD, path, Body::empty()).await.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn a_panic_is_a_500_that_says_nothing_and_can_be_found_in_the_log() {
    let routes = Routes::default().raw(Method::GET, &["/panics"], panics).raw(Method::POST, &["/panics"], panics);
    let client = local(routes);
    for method in [Method::GET, Method::POST] {
        let answer = client.send(method, "/panics", Body::empty()).await;
        assert_eq!(problem(&answer), (500, "M_UNKNOWN".to_owned()));
        assert!(!String::from_utf8_lossy(&answer.body).contains("None"));
        assert!(answer.headers.contains_key("x-request-id"));
    }
    assert_eq!(problem(&client.get("/nowhere").await).0, 404);
}

#[tokio::test]
async fn a_mutation_survives_its_client_and_a_poll_does_not() {
    let app = app(|_| {});
    let (done, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(tokio::sync::Semaphore::new(0)));
    let slow = {
        let (done, gate) = (Arc::clone(&done), Arc::clone(&gate));
        move |_: RawCtx| {
            let (done, gate) = (Arc::clone(&done), Arc::clone(&gate));
            async move {
                let _turn = gate.acquire().await.map_err(Error::internal)?;
                done.fetch_add(1, Ordering::SeqCst);
                Ok(Response::default())
            }
        }
    };
    let routes =
        Routes::default().raw(Method::PUT, &["/slow"], slow.clone()).raw(Method::POST, &["/poll"], slow).poll();
    let client = Local::new(Router::new(app.clone(), routes).unwrap());
    for (method, path) in [(Method::PUT, "/slow"), (Method::POST, "/poll")] {
        let waiting = client.send(method, path, Body::empty());
        assert!(tokio::time::timeout(Duration::from_millis(50), waiting).await.is_err());
    }
    assert_eq!(app.metrics.open_polls.get(), 0);
    gate.add_permits(10);
    app.tasks.close();
    app.tasks.wait().await;
    assert_eq!(done.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_poll_that_does_not_watch_for_the_end_is_ended() {
    let app = app(|_| {});
    async fn forever(_: RawCtx) -> Result<Response> {
        std::future::pending().await
    }
    let routes = Routes::default().raw(Method::GET, &["/poll"], forever).poll();
    let client = Local::new(Router::new(app.clone(), routes).unwrap());
    let poll = tokio::spawn(async move { client.get("/poll").await });
    while app.metrics.open_polls.get() == 0 {
        tokio::task::yield_now().await;
    }
    app.shutdown.cancel();
    let answer = tokio::time::timeout(Duration::from_millis(900), poll).await.unwrap().unwrap();
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn a_slow_body_is_given_up() {
    let app = app(|config| config.http.body_timeout = Span::millis(50));
    let client = Local::new(Router::new(app, json_routes()).unwrap());
    let body = Body::stream(futures_util::stream::pending(), None);
    assert_eq!(client.send(Method::POST, CREATE, body).await.status, StatusCode::REQUEST_TIMEOUT);
}

#[tokio::test]
async fn the_size_limit_is_a_setting_and_streams_have_none() {
    let app = app(|config| config.http.max_body = Size::bytes(10));
    let routes = json_routes().raw(Method::PUT, &["/length"], length);
    let client = Local::new(Router::new(app, routes).unwrap());
    assert_eq!(problem(&client.post(CREATE, json!({"name": "long"})).await), (413, "M_TOO_LARGE".to_owned()));
    assert_eq!(client.send(Method::PUT, "/length", "x".repeat(5000)).await.json(), json!(5000));
}

#[tokio::test]
async fn one_path_and_method_has_one_endpoint() {
    let twice = Routes::default().raw(Method::GET, &["/a/{x}"], args).raw(Method::GET, &["/a/{y}"], args);
    let conflict = Router::new(app(|_| {}), twice).err().unwrap();
    assert!(conflict.contains("GET /a/{y}"), "{conflict}");
}

/// ruma looks into the body of a login for a type without asking whether it is there.
#[tokio::test]
async fn a_request_that_panics_while_it_is_read_is_answered() {
    async fn login(_: Ctx<login::v3::Request>) -> Result<login::v3::Response> {
        Err(Error::forbidden("not here"))
    }
    let local = local(Routes::default().ruma(login).access(Access::Anyone).unlimited());
    let known = json!({ "type": "m.login.token", "token": "t" });
    assert_eq!(local.post("/_matrix/client/v3/login", known).await.errcode(), "M_FORBIDDEN");
    let answer = local.post("/_matrix/client/v3/login", json!({})).await;
    assert!(["M_UNKNOWN", "M_BAD_JSON"].contains(&answer.errcode().as_str()), "{:?}", answer.json());
}
