//! The binary as its users start it: ready file, service manager, signals, exit codes.
#![allow(clippy::unwrap_used, clippy::panic)]
#![allow(clippy::disallowed_methods, reason = "a test is a client, and measures real time")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::ops::{Deref, DerefMut};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn skerry() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_skerry"));
    command.env_clear();
    command
}

fn settings(dir: &Path) -> String {
    let file = dir.join("skerry.toml");
    let text = "server_name = \"hs.test\"\ndata_dir = \"DIR/data\"\nserver_notices.sender = \"notices\"\n\
                [[listeners]]\nbind = \"127.0.0.1:0\"\n";
    fs::write(&file, text.replace("DIR", &dir.display().to_string())).unwrap();
    file.display().to_string()
}

fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(60) {
        if let Some(found) = look() {
            return found;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("did not happen within a minute");
}

/// A server that does not outlive its test.
struct Running(Child);

impl Deref for Running {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Running {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn signal(child: &Child, name: &str) {
    // The shell has a `kill` of its own; the program is not there on every machine.
    let status = Command::new("sh").args(["-c", &format!("kill -{name} {}", child.id())]).status().unwrap();
    assert!(status.success());
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn serves_until_it_is_told_to_stop() {
    let dir = tempfile::tempdir().unwrap();
    let (file, ready) = (settings(dir.path()), dir.path().join("ready.json"));
    let manager = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut serve = skerry();
    serve.args(["serve", "--config", &file, "--ready-file", ready.to_str().unwrap()]).stderr(Stdio::null());
    serve.env("NOTIFY_SOCKET", dir.path().join("notify")).env("WATCHDOG_USEC", "300000");
    let mut child = Running(serve.spawn().unwrap());
    let bound: serde_json::Value = eventually(|| serde_json::from_slice(&fs::read(&ready).ok()?).ok());
    let mut told = Vec::new();
    while !told.contains(&"WATCHDOG=1".to_owned()) {
        let mut buffer = [0; 256];
        let length = manager.recv(&mut buffer).unwrap();
        told.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
    }
    assert_eq!(told[0], "READY=1");

    let mut stream = TcpStream::connect(bound["listeners"][0].as_str().unwrap()).unwrap();
    stream.write_all(b"GET /_matrix/client/versions HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut answer = [0; 15];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    let health = skerry().args(["admin", "--config", &file, "health"]).output().unwrap();
    assert!(health.status.success() && text(&health).contains("\"server_name\": \"hs.test\""), "{}", text(&health));

    let made = skerry().args(["admin", "--config", &file, "user", "create", "alice", "--admin"]).output().unwrap();
    assert!(made.status.success() && text(&made).contains("\"user_id\": \"@alice:hs.test\""), "{}", text(&made));
    let told = skerry().args(["admin", "--config", &file, "notice", "alice", "Read this"]).output().unwrap();
    assert!(told.status.success() && text(&told).contains("event_id"), "{}", text(&told));
    let gone = skerry().args(["admin", "--config", &file, "user", "deactivate", "@alice:hs.test"]).output().unwrap();
    assert!(gone.status.success(), "{}", text(&gone));

    // SIGHUP is no reason to leave.
    signal(&child, "HUP");
    std::thread::sleep(Duration::from_millis(100));
    assert!(child.try_wait().unwrap().is_none());
    let started = Instant::now();
    signal(&child, "TERM");
    assert!(child.wait().unwrap().success());
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    assert!(!ready.exists());
    let health = skerry().args(["admin", "--config", &file, "health"]).output().unwrap();
    assert!(!health.status.success() && text(&health).contains("no server answers"), "{}", text(&health));

    // The key stays the same over a restart.
    let key = fs::read_to_string(dir.path().join("data/signing.key")).unwrap();
    let mut child = Running(serve.spawn().unwrap());
    eventually(|| ready.exists().then_some(()));
    signal(&child, "INT");
    assert!(child.wait().unwrap().success());
    assert_eq!(fs::read_to_string(dir.path().join("data/signing.key")).unwrap(), key);
}

#[test]
fn settings_are_checked_before_anything_happens() {
    let dir = tempfile::tempdir().unwrap();
    let file = settings(dir.path());
    let run = |args: &[&str]| skerry().args(args).output().unwrap();
    let good = run(&["config", "check", "-c", &file]);
    assert!(good.status.success(), "{}", text(&good));
    let bad = run(&["config", "check", "-c", &file, "--set", "media.max_upload=much"]);
    assert!(!bad.status.success() && text(&bad).contains("media.max_upload"), "{}", text(&bad));
    fs::write(&file, "server_name = \"hs.test\"\n[http]\nmax_bodies = 1\n").unwrap();
    let bad = run(&["serve", "-c", &file]);
    assert!(!bad.status.success());
    assert!(text(&bad).contains(&format!("{file}:3: http.max_bodies")), "{}", text(&bad));
    let secret = run(&["config", "show", "-s", "server_name=hs.test", "-s", "registration.shared_secret=hush"]);
    assert!(secret.status.success() && !text(&secret).contains("hush"), "{}", text(&secret));
}

/// Starts the server as a service manager does that opened a socket: as the first descriptor behind the usual three.
fn serve_on(socket: std::net::TcpListener, file: &str, ready: &Path) -> Running {
    let mut shell = Command::new("sh");
    shell.env_clear().env("LISTEN_FDS", "1").args(["-c", "exec \"$0\" \"$@\" 3<&0 </dev/null"]);
    shell.args([env!("CARGO_BIN_EXE_skerry"), "serve", "--config", file, "--ready-file", ready.to_str().unwrap()]);
    Running(shell.stdin(std::os::fd::OwnedFd::from(socket)).stderr(Stdio::piped()).spawn().unwrap())
}

#[test]
fn it_answers_on_a_socket_that_was_opened_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let (file, ready) = (settings(dir.path()), dir.path().join("ready.json"));
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let text = fs::read_to_string(&file).unwrap().replace("127.0.0.1:0", &address.to_string());
    fs::write(&file, text).unwrap();
    // Who comes before the server does is answered by it.
    let mut early = TcpStream::connect(address).unwrap();
    early.write_all(b"GET /_matrix/client/versions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let server = serve_on(socket, &file, &ready);
    let mut answer = String::new();
    early.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let bound = eventually(|| fs::read_to_string(&ready).ok());
    assert!(bound.contains(&address.to_string()), "{bound}");
    signal(&server, "TERM");
}

#[test]
fn a_socket_that_no_listener_wants_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let file = settings(dir.path());
    let mut server = serve_on(std::net::TcpListener::bind("127.0.0.1:0").unwrap(), &file, &dir.path().join("ready"));
    let mut said = String::new();
    server.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(!server.wait().unwrap().success());
    assert!(said.contains("a socket was handed over for 127.0.0.1:"), "{said}");
}
