//! A box that was set up, served for real: the settings, certificates and account that the console makes, behind a server
//! on loopback, seen by somebody who trusts nothing but the authority.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;

use homeserver::config::{Config, Overrides};
use homeserver::server::{self, Server};
use http::{Method, StatusCode};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::runtime::Runtime;

use super::files::Layout;
use super::machine::{Machine, ThisMachine};
use super::provision;
use super::steps;

const ORDER: &str = "server_name = \"box.example\"\naddress = \"127.0.0.1\"\nnetwork.dhcp = true\n\
    admin.username = \"chief\"\nadmin.password = \"correct horse\"\n\
    settings.server_notices.sender = \"notices\"\n";

/// A machine whose one service is the server.
struct Served {
    runtime: Runtime,
    settings: std::path::PathBuf,
    server: Option<Server>,
    socket: ThisMachine,
}

impl Machine for Served {
    fn systemctl(&mut self, args: &[&str]) -> Result<String, String> {
        if args == ["restart", "--no-block", "skerry.service"] {
            let overrides = Overrides { file: Some(self.settings.clone()), ..Overrides::default() };
            let config = Config::load(&overrides).map_err(|why| why.to_string())?;
            let app = server::open(config, false).map_err(|why| why.to_string())?;
            self.server = Some(self.runtime.block_on(Server::start(app)).map_err(|why| why.to_string())?);
        }
        Ok(String::new())
    }

    fn server(&mut self, method: Method, path: &str, body: Option<&Value>) -> Result<(StatusCode, Value), String> {
        self.socket.server(method, path, body)
    }

    fn update(&mut self, _args: &[&str]) -> Result<bool, String> {
        Err("there is nothing to update".to_owned())
    }

    fn ask_update(&mut self, _args: &[&str]) -> Result<(bool, String), String> {
        Err("there is nothing to update".to_owned())
    }

    fn journal(&mut self, _args: &[&str], _to: Option<&std::fs::File>) -> Result<String, String> {
        Err("there is no journal".to_owned())
    }

    fn seal(&mut self, _args: &[&str]) -> Result<String, String> {
        Err("there is no TPM".to_owned())
    }

    fn addresses(&self) -> Vec<IpAddr> {
        vec!["10.0.2.15".parse().unwrap()]
    }

    fn memory_mib(&self) -> u64 {
        512
    }

    fn now(&self) -> OffsetDateTime {
        self.socket.now()
    }

    fn set_time(&mut self, _to: OffsetDateTime) -> Result<Option<String>, String> {
        Err("the clock stays".to_owned())
    }

    fn pause(&mut self) {
        self.socket.pause();
    }
}

/// One request over TLS, with trust in this authority only. The status line and the body.
fn request(to: SocketAddr, authority_pem: &str, head: &str, body: &str) -> (String, Vec<u8>) {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority_pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    #[allow(clippy::disallowed_methods, reason = "a test is a client")]
    let socket = TcpStream::connect(to).unwrap();
    let mut tls = StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), socket);
    let length = body.len();
    write!(tls, "{head} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
    let mut answer = Vec::new();
    tls.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|part| part == b"\r\n\r\n").unwrap();
    let status = String::from_utf8_lossy(&answer[..end]).lines().next().unwrap().to_owned();
    (status, answer[end + 4..].to_vec())
}

#[test]
fn a_box_set_up_by_a_file_serves_its_administrator() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::below(dir.path());
    let orders = provision::parse(ORDER, &|name, _| Err(name.to_owned())).unwrap();
    let (setup, site) = (orders.setup.unwrap(), orders.site.unwrap());
    let mut machine = Served {
        runtime: Runtime::new().unwrap(),
        settings: layout.settings(),
        server: None,
        socket: ThisMachine { socket: layout.socket.clone() },
    };
    let done = steps::set_up(&setup, &site, &layout, &mut machine).unwrap();
    assert_eq!((done.url.as_str(), done.username.as_str()), ("https://127.0.0.1", "chief"));

    let to = machine.server.as_ref().unwrap().bound().listeners[0];
    let authority = std::fs::read_to_string(layout.authority()).unwrap();
    let (status, der) = request(to, &authority, "GET /ca.crt", "");
    assert_eq!(status, "HTTP/1.1 200 OK");
    assert_eq!(der, CertificateDer::from_pem_slice(authority.as_bytes()).unwrap().to_vec());
    let (_, page) = request(to, &authority, "GET /", "");
    assert!(String::from_utf8_lossy(&page).contains(&done.fingerprint.unwrap()));

    let identifier = json!({"type": "m.id.user", "user": "chief"});
    let body = json!({"type": "m.login.password", "identifier": identifier, "password": "correct horse"});
    let (status, answer) = request(to, &authority, "POST /_matrix/client/v3/login", &body.to_string());
    assert_eq!(status, "HTTP/1.1 200 OK");
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!(answer["user_id"], "@chief:box.example");
    let head = format!(
        "GET /_synapse/admin/v2/users/@chief:box.example?access_token={}",
        answer["access_token"].as_str().unwrap()
    );
    assert_eq!(request(to, &authority, &head, "").0, "HTTP/1.1 200 OK");

    // What the order set is in force.
    let body = json!({"user_id": "@chief:box.example", "content": {"msgtype": "m.text", "body": "hello"}});
    let path = "/_synapse/admin/v1/send_server_notice";
    let (status, answer) = machine.server(Method::POST, path, Some(&body)).unwrap();
    assert_eq!(status, StatusCode::OK, "{answer}");

    let server = machine.server.take().unwrap();
    machine.runtime.block_on(server.stop());
}
