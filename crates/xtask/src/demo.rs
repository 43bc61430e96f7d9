//! `cargo xtask demo`: a server to play with, on loopback, with a fresh data folder and two people who share a room.
//!
//! Lives here: its settings, the accounts, and what is printed. It talks to the server like any client, with the few
//! lines of HTTP that takes.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::{clients, needs, run, web};

const PASSWORD: &str = "lighthouse";
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// Where the server listens, unless something else does.
const PORT: u16 = 8008;

pub(crate) fn demo(args: &[String]) -> Result<()> {
    let (mut profile, mut with_web) = ("debug", false);
    for arg in args {
        match arg.as_str() {
            "--release" => profile = "release",
            "--web" => with_web = true,
            _ => bail!("usage: cargo xtask demo [--release] [--web]"),
        }
    }
    needs::build()?;
    let web_client = if with_web { Some(web::client()?) } else { None };
    let binary = clients::server_binary(profile)?;
    let folder = run::target_dir().join("demo");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder)?;
    let (mut server, address) = start(&binary, &folder, web_client.as_deref())?;
    if let Err(error) = introduce(&address, &folder) {
        server.kill()?;
        server.wait()?;
        return Err(error);
    }
    // Ctrl-C reaches the server too: it stops by itself.
    let status = server.wait()?;
    println!("the server has stopped ({status})");
    Ok(())
}

/// Starts the server and waits until it answers; returns its address.
fn start(binary: &Path, folder: &Path, web_client: Option<&Path>) -> Result<(Child, String)> {
    let port = TcpListener::bind(("127.0.0.1", PORT)).or_else(|_| TcpListener::bind(("127.0.0.1", 0)))?;
    let port = port.local_addr()?.port();
    let mut settings = format!(
        "server_name = \"demo.local\"\ndata_dir = {:?}\n\n[[listeners]]\nbind = \"127.0.0.1:{port}\"\n\n\
         [registration]\nmode = \"open\"\n",
        folder.join("data"),
    );
    if let Some(dir) = web_client {
        settings += &format!("\n[web]\ndir = {dir:?}\n\n[well_known]\nclient_base_url = \"http://127.0.0.1:{port}\"\n");
    }
    let (config, ready, log) = (folder.join("skerry.toml"), folder.join("ready.json"), folder.join("server.log"));
    std::fs::write(&config, settings)?;
    let mut server = Command::new(binary)
        .arg("serve")
        .arg("--config")
        .arg(&config)
        .arg("--ready-file")
        .arg(&ready)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&log)?)
        .spawn()
        .with_context(|| format!("starting {}", binary.display()))?;
    let started = Instant::now();
    while !ready.exists() {
        if server.try_wait()?.is_some() || started.elapsed() > READY_TIMEOUT {
            bail!("the server did not come up:\n{}", std::fs::read_to_string(&log)?);
        }
        thread::sleep(Duration::from_millis(10));
    }
    let ready: Value = serde_json::from_slice(&std::fs::read(&ready)?)?;
    let address = ready["listeners"][0].as_str().with_context(|| format!("no address in {ready}"))?;
    Ok((server, address.to_owned()))
}

/// Makes the accounts and their room, and says what there is to try.
fn introduce(address: &str, folder: &Path) -> Result<()> {
    let alice = register(address, "alice")?;
    let bob = register(address, "bob")?;
    let room = json!({ "preset": "private_chat", "name": "Harbour", "invite": ["@bob:demo.local"] });
    let room = post(address, "/_matrix/client/v3/createRoom", &alice, &room)?;
    let room = room["room_id"].as_str().context("no room")?.replace('!', "%21").replace(':', "%3A");
    post(address, &format!("/_matrix/client/v3/join/{room}"), &bob, &json!({}))?;
    let api = format!("http://{address}/_matrix/client");
    println!(
        "
Skerry is running.

  URL       http://{address}   (point a Matrix client at it; with --web, open it in a browser)
  logins    alice / {PASSWORD}
            bob   / {PASSWORD}
  folder    {} (data, settings, server.log; emptied by the next demo)

Try, in another terminal:

  curl -s {api}/versions
  curl -s -X PUT -H 'Authorization: Bearer {alice}' -d '{{\"msgtype\":\"m.text\",\"body\":\"Ahoy\"}}' {api}/v3/rooms/{room}/send/m.room.message/1
  curl -s -H 'Authorization: Bearer {bob}' '{api}/v3/rooms/{room}/messages?dir=b&limit=3'

Ctrl-C stops it.",
        folder.display()
    );
    Ok(())
}

fn register(address: &str, name: &str) -> Result<String> {
    let body = json!({ "username": name, "password": PASSWORD, "auth": { "type": "m.login.dummy" } });
    let answer = post(address, "/_matrix/client/v3/register", "", &body)?;
    Ok(answer["access_token"].as_str().with_context(|| format!("no token in {answer}"))?.to_owned())
}

/// One request on a connection of its own.
fn post(address: &str, path: &str, token: &str, body: &Value) -> Result<Value> {
    let body = body.to_string();
    let authorization = if token.is_empty() { String::new() } else { format!("Authorization: Bearer {token}\r\n") };
    let mut stream = TcpStream::connect(address)?;
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{authorization}\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    if !head.starts_with("HTTP/1.1 200") {
        bail!("{path}: {head}\n{body}");
    }
    serde_json::from_str(body).with_context(|| format!("{path}: {body}"))
}
