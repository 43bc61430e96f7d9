//! The web client over the router, from real folders.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use http::{HeaderMap, HeaderName, header};
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::App;
use crate::http::{Answer, Local, Request};

const INDEX: &str = "<!DOCTYPE html><script>start()</script><script src=\"/assets/main-067c82f7.js\"></script>";

/// A folder with a client in it, and who asks for it.
struct World {
    dir: TempDir,
    app: App,
    local: Local,
}

fn write(dir: &Path, name: &str, content: impl AsRef<[u8]>) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn folder() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in [
        ("client/index.html", INDEX),
        ("client/sw.js", "self.worker"),
        ("client/config.json", "{\"homeserverList\":[\"elsewhere.example\"]}"),
        ("client/olm.wasm", "\0asm"),
        ("client/assets/main-067c82f7.js", "the program"),
        ("client/assets/main-067c82f7.js.br", "program, brotli"),
        ("client/assets/main-067c82f7.js.gz", "program, gzip"),
        ("client/assets/a b+é.txt", "odd name"),
        ("client/deep/index.html", "deep"),
        ("client/only.gz", "an archive of its own"),
        ("client/_matrix/client/versions", "shadow"),
        ("client/_matrix/client/v3/nothing", "shadow"),
        ("client/.well-known/matrix/client", "shadow"),
        ("client/account/index.html", "shadow"),
        ("client/oauth2/authorize", "shadow"),
        ("client/.git/config", "hidden"),
        ("secret.txt", "outside"),
    ] {
        write(dir.path(), name, content);
    }
    dir
}

fn world_with(change: impl FnOnce(&mut Config)) -> World {
    let dir = folder();
    let mut config = Config::new(ruma::owned_server_name!("hs.test"));
    config.web.dir = Some(dir.path().join("client"));
    config.well_known.client_base_url = Some("https://matrix.hs.test".to_owned());
    change(&mut config);
    let app = App::in_memory(config);
    app.web.load().unwrap();
    World { local: Local::new(app.router()), app, dir }
}

fn world() -> World {
    world_with(|_| {})
}

impl World {
    async fn ask(&self, method: Method, path: &str, headers: &[(HeaderName, &str)]) -> Answer {
        let mut request = Request::default();
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().unwrap();
        let pairs = headers.iter().map(|(name, value)| (name.clone(), value.parse().unwrap()));
        request.headers_mut().extend(pairs.collect::<HeaderMap>());
        self.local.request(request).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask(Method::GET, path, &[]).await
    }

    /// As a browser that opens a page.
    async fn open(&self, path: &str) -> Answer {
        let accept = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
        self.ask(Method::GET, path, &[(ACCEPT, accept)]).await
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        write(&self.dir.path().join("client"), name, content);
    }
}

#[track_caller]
fn assert_text(answer: &Answer, text: &str) {
    assert_eq!(
        (answer.status, String::from_utf8_lossy(&answer.body).as_ref()),
        (StatusCode::OK, text),
        "{:?}",
        answer.headers
    );
}

#[track_caller]
fn assert_unrecognized(answer: &Answer, what: &str) {
    assert_eq!((answer.status, answer.errcode().as_str()), (StatusCode::NOT_FOUND, "M_UNRECOGNIZED"), "{what}");
}

#[tokio::test]
async fn without_a_folder_nothing_is_there() {
    let world = world_with(|config| config.web.dir = None);
    for path in ["/", "/index.html", "/config.json", "/anything"] {
        assert_unrecognized(&world.open(path).await, path);
    }
    assert_unrecognized(&world.ask(Method::POST, "/", &[]).await, "POST /");
}

#[tokio::test]
async fn files_have_their_type_and_strict_headers() {
    let world = world();
    let index = world.get("/").await;
    assert_text(&index, INDEX);
    assert_eq!(index.headers[header::CONTENT_TYPE], "text/html; charset=utf-8");
    assert_eq!(index.headers[header::CONTENT_LENGTH], INDEX.len().to_string());
    assert_eq!(index.headers[header::CACHE_CONTROL], "no-cache");
    assert_eq!(index.headers[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
    assert_eq!(index.headers[header::REFERRER_POLICY], "no-referrer");
    let policy = index.headers[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
    assert!(policy.contains("frame-ancestors 'self'") && policy.contains("'sha256-"), "{policy}");

    let worker = world.get("/sw.js").await;
    assert_text(&worker, "self.worker");
    assert_eq!(worker.headers[header::CONTENT_TYPE], "text/javascript; charset=utf-8");
    assert_eq!(worker.headers[header::CACHE_CONTROL], "no-cache");
    assert!(!worker.headers[header::CONTENT_SECURITY_POLICY].to_str().unwrap().contains("'sha256-"));

    let program = world.get("/assets/main-067c82f7.js").await;
    assert_text(&program, "the program");
    assert_eq!(program.headers[header::CACHE_CONTROL], "public, max-age=31536000, immutable");
    assert_text(&world.get("/assets/a%20b+%C3%A9.txt").await, "odd name");
    assert_text(&world.get("/deep/").await, "deep");
    assert_text(&world.get("/deep/index.html?query=1").await, "deep");
}

#[tokio::test]
async fn the_clients_settings_are_ours_whatever_the_folder_says() {
    let answer = world().get("/config.json").await;
    assert_eq!(answer.headers[header::CONTENT_TYPE], "application/json");
    assert_eq!(answer.headers[header::CACHE_CONTROL], "no-cache");
    assert_eq!(answer.json()["homeserverList"], json!(["https://matrix.hs.test"]));
}

#[tokio::test]
async fn a_client_that_has_it_gets_no_body() {
    let world = world();
    for path in ["/", "/assets/main-067c82f7.js", "/config.json"] {
        let tag = world.get(path).await.headers[header::ETAG].to_str().unwrap().to_owned();
        for same in [tag.clone(), format!("\"x\", W/{tag}"), "*".to_owned()] {
            let answer = world.ask(Method::GET, path, &[(header::IF_NONE_MATCH, &same)]).await;
            assert_eq!((answer.status, answer.body.len()), (StatusCode::NOT_MODIFIED, 0), "{path} {same}");
            assert_eq!(answer.headers[header::ETAG], tag);
        }
        for other in ["\"x\"", "", "W/", ",,,"] {
            let answer = world.ask(Method::GET, path, &[(header::IF_NONE_MATCH, other)]).await;
            assert_eq!(answer.status, StatusCode::OK, "{path} {other}");
        }
    }
}

/// Images have one and the same time on all files.
#[tokio::test]
async fn other_content_of_the_same_size_and_time_has_another_tag() {
    let world = world();
    let path = world.dir.path().join("client/sw.js");
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    let before = world.get("/sw.js").await.headers[header::ETAG].clone();
    world.write("sw.js", "self.Worker");
    fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
    world.app.web.load().unwrap();
    let after = world.get("/sw.js").await;
    assert_text(&after, "self.Worker");
    assert_ne!(after.headers[header::ETAG], before);
}

#[tokio::test]
async fn what_is_compressed_already_is_sent_so_to_those_who_take_it() {
    let world = world();
    let path = "/assets/main-067c82f7.js";
    let ask = async |takes: &str| world.ask(Method::GET, path, &[(header::ACCEPT_ENCODING, takes)]).await;
    let mut tags = Vec::new();
    for (takes, encoding, body) in [
        ("gzip, deflate, br", Some("br"), "program, brotli"),
        ("gzip, br;q=0", Some("gzip"), "program, gzip"),
        ("identity", None, "the program"),
    ] {
        let answer = ask(takes).await;
        assert_text(&answer, body);
        assert_eq!(answer.headers.get(header::CONTENT_ENCODING).map(|value| value.to_str().unwrap()), encoding);
        assert_eq!(answer.headers[header::CONTENT_TYPE], "text/javascript; charset=utf-8");
        assert_eq!(answer.headers[header::VARY], "Accept-Encoding");
        tags.push(answer.headers[header::ETAG].clone());
    }
    assert!(tags[0] != tags[1] && tags[1] != tags[2] && tags[0] != tags[2], "{tags:?}");
    assert_unrecognized(&world.get("/assets/main-067c82f7.js.br").await, "an encoded file by its own name");
    assert_text(&world.get("/only.gz").await, "an archive of its own");
    assert!(!world.get("/sw.js").await.headers.contains_key(header::VARY));
}

#[tokio::test]
async fn pages_that_only_the_client_knows_are_the_client_and_missing_files_are_missing() {
    let world = world();
    for path in ["/home/", "/home/!room:hs.test/", "/direct/%21a%2Fb%3Ahs.test", "/login/https%3A%2F%2Fhs.test/?x=1"] {
        assert_text(&world.open(path).await, INDEX);
        assert_unrecognized(&world.get(path).await, path);
    }
    assert_unrecognized(&world.get("/assets/old-17c82f67.js").await, "an old program");
    // What a page deep down asks for beside itself.
    assert_text(&world.get("/home/room/olm.wasm").await, "\0asm");
    assert_unrecognized(&world.get("/home/other.wasm").await, "other.wasm");
}

#[tokio::test]
async fn nothing_of_ours_is_shadowed() {
    let world = world();
    assert!(world.get("/_matrix/client/versions").await.json()["versions"].is_array());
    for path in [
        "/_matrix/client/v3/nothing",
        "/_matrix",
        "/_matrix/",
        "/%5Fmatrix/client/v3/nothing",
        "/_matrix%2Fclient/v3/nothing",
        "/_skerry/x",
        "/_synapse/admin/v1/x",
        "/.well-known/other",
        "/oauth2/authorize",
        "/account",
        "/account/",
        "/account/index.html",
    ] {
        assert_unrecognized(&world.open(path).await, path);
    }
    for path in ["/.well-known/matrix/server", "/_matrix/client/v3/account/whoami"] {
        let answer = world.open(path).await;
        assert!(["M_NOT_FOUND", "M_MISSING_TOKEN"].contains(&answer.errcode().as_str()), "{path}");
    }
    // These only begin like them.
    for path in ["/accounts", "/_matrixx", "/oauth"] {
        assert_text(&world.open(path).await, INDEX);
    }
    let answer = world.ask(Method::POST, "/_matrix/client/v3/nothing", &[]).await;
    assert_unrecognized(&answer, "POST to an unknown endpoint");
}

#[tokio::test]
async fn no_path_leads_out_of_the_folder() {
    let world = world();
    let client = world.dir.path().join("client");
    symlink("../secret.txt", client.join("out.txt")).unwrap();
    symlink("/etc/passwd", client.join("passwd.txt")).unwrap();
    symlink("..", client.join("up")).unwrap();
    symlink("nowhere", client.join("dangling.txt")).unwrap();
    symlink("sw.js", client.join("in.js")).unwrap();
    world.app.web.load().unwrap();
    assert_text(&world.get("/in.js").await, "self.worker");
    for path in ["/out.txt", "/passwd.txt", "/up/secret.txt", "/dangling.txt", "/.git/config", "/secret.txt"] {
        assert_unrecognized(&world.get(path).await, path);
    }
    for path in [
        "/../secret.txt",
        "/..%2fsecret.txt",
        "/%2e%2e/secret.txt",
        "/%2E%2E%2Fsecret.txt",
        "/assets/../../secret.txt",
        "/assets/..%5c..%5csecret.txt",
        "/..\\secret.txt",
        "//etc/passwd",
        "/assets//main-067c82f7.js",
        "/%00",
        "/index.html%00.js",
        "/./index.html",
        "/%ff%fe",
        "/%",
        "/%2",
        "/%252e%252e%252fsecret.txt",
    ] {
        let Ok(uri) = path.parse::<http::Uri>() else { continue };
        for answer in [world.get(&uri.to_string()).await, world.open(&uri.to_string()).await] {
            let harmless = answer.status == StatusCode::NOT_FOUND || answer.body == INDEX.as_bytes();
            assert!(harmless, "{path}: {} {:?}", answer.status, answer.body);
        }
        assert_unrecognized(&world.get(path).await, path);
    }
    // An encoded slash is part of a name, and no file has such a name.
    assert_unrecognized(&world.get("/assets%2Fmain-067c82f7.js").await, "an encoded slash");
    let long = format!("/{}", "a/".repeat(10_000));
    assert_unrecognized(&world.get(&long).await, "a long path");
}

#[tokio::test]
async fn only_reading_is_answered() {
    let world = world();
    for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH] {
        let answer = world.ask(method.clone(), "/", &[]).await;
        assert_eq!((answer.status, answer.errcode().as_str()), (StatusCode::METHOD_NOT_ALLOWED, "M_UNRECOGNIZED"));
    }
    for path in ["/", "/assets/main-067c82f7.js", "/config.json"] {
        let (get, head) = (world.get(path).await, world.ask(Method::HEAD, path, &[]).await);
        assert_eq!((head.status, head.body.len()), (StatusCode::OK, 0), "{path}");
        assert_eq!(head.headers, get.headers, "{path}");
        assert_eq!(head.headers[header::CONTENT_LENGTH], get.body.len().to_string());
    }
    assert_unrecognized(&world.ask(Method::HEAD, "/missing.js", &[]).await, "HEAD of nothing");
}

#[tokio::test]
async fn under_a_path_of_its_own() {
    let world = world_with(|config| config.web.path = "/chat".to_owned());
    assert_text(&world.get("/chat/").await, INDEX);
    assert_text(&world.get("/chat/assets/main-067c82f7.js").await, "the program");
    assert_text(&world.open("/chat/home/").await, INDEX);
    // In a folder of its own nothing else can be meant.
    assert_text(&world.get("/chat/account/").await, "shadow");
    let answer = world.get("/chat?a=b").await;
    assert_eq!(
        (answer.status, &answer.headers[header::LOCATION]),
        (StatusCode::PERMANENT_REDIRECT, &"/chat/?a=b".parse().unwrap())
    );
    for path in ["/", "/index.html", "/chatter", "/chat/..", "/chat/../index.html", "/home/"] {
        assert_unrecognized(&world.open(path).await, path);
    }
    assert_unrecognized(&world.ask(Method::POST, "/", &[]).await, "POST /");
}

#[tokio::test]
async fn a_large_file_comes_in_pieces() {
    let world = world();
    let large: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    world.write("assets/large.bin", &large);
    world.app.web.load().unwrap();
    let answer = world.get("/assets/large.bin").await;
    assert_eq!((answer.status, answer.body.len()), (StatusCode::OK, large.len()));
    assert!(answer.body == large);
}

#[tokio::test]
async fn a_file_that_changed_is_not_sent_under_its_old_tag() {
    let world = world();
    world.write("sw.js", "a longer worker");
    assert_eq!(world.get("/sw.js").await.status, StatusCode::SERVICE_UNAVAILABLE);
    fs::remove_file(world.dir.path().join("client/olm.wasm")).unwrap();
    assert_eq!(world.get("/olm.wasm").await.status, StatusCode::SERVICE_UNAVAILABLE);
    world.app.web.load().unwrap();
    assert_text(&world.get("/sw.js").await, "a longer worker");
    assert_unrecognized(&world.get("/olm.wasm").await, "a file that is gone");
}

#[tokio::test]
async fn a_folder_that_is_no_client_is_refused_and_the_old_one_stays() {
    let world = world();
    let refused = |what: &str| {
        let problem = world.app.web.load().unwrap_err();
        assert!(problem.contains(what), "{problem}");
    };
    let client = world.dir.path().join("client");
    fs::rename(client.join("index.html"), client.join("start.html")).unwrap();
    refused("there is no index.html in it");
    fs::rename(client.join("start.html"), client.join("index.html")).unwrap();
    fs::create_dir_all(client.join("a/".repeat(20))).unwrap();
    refused("nested deeper");
    assert_text(&world.get("/").await, INDEX);
    fs::rename(&client, world.dir.path().join("away")).unwrap();
    refused("No such file");
    assert_eq!(world.get("/config.json").await.status, StatusCode::OK);
}
