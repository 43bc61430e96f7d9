//! A server under test: the real binary (named by the variable `TEST_SERVER`) on a data folder of its own.

use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use matrix_sdk::reqwest::Certificate;
use matrix_sdk::sliding_sync::VersionBuilder;
use matrix_sdk::{Client, ClientBuilder};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};
use tempfile::TempDir;
use tokio::process::{Child, Command};

const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// Killed when it is dropped.
pub struct Server {
    /// Where clients reach it.
    pub url: String,
    /// The root of its certificate, if it has one.
    pub root: Option<Certificate>,
    folder: TempDir,
    process: Option<Child>,
}

impl Server {
    /// A server on a fresh folder, listening.
    pub async fn started() -> Self {
        Self::with(|settings, _, _| settings).await
    }

    /// One that is reached by TLS only, with a certificate of an authority made for it, and where people log in by
    /// OAuth. Its name is where it is, so that clients find it by the name.
    pub async fn secured() -> Self {
        let mut root = None;
        let mut server = Self::with(|settings, folder, port| {
            let (authority, tls) = certified(folder);
            root = Some(Certificate::from_pem(authority.as_bytes()).unwrap());
            let listener = format!("bind = \"127.0.0.1:{port}\"\n");
            assert!(settings.contains(&listener) && settings.contains("\"test.local\""));
            let settings = settings.replace("test.local", &format!("localhost:{port}"));
            let settings = settings.replace(&listener, &format!("{listener}{tls}"));
            format!(
                "{settings}\n[well_known]\nclient_base_url = \"https://localhost:{port}\"\n\n[oauth]\nenabled = true\n"
            )
        })
        .await;
        server.url = server.url.replace("http://127.0.0.1", "https://localhost");
        server.root = root;
        server
    }

    /// The settings of all tests, filled in and then changed.
    async fn with(change: impl FnOnce(String, &Path, u16) -> String) -> Self {
        // A port that was free a moment ago. Fixed, not 0: clients must find a restarted server where it was.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let folder = tempfile::Builder::new().prefix("skerry-rust-sdk-").tempdir().unwrap();
        let template = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../server.toml");
        let settings = std::fs::read_to_string(template).unwrap().replace("{port}", &port.to_string());
        let settings = settings.replace("{data}", folder.path().join("data").to_str().unwrap());
        let settings = change(settings, folder.path(), port);
        std::fs::write(folder.path().join("config.toml"), settings).unwrap();
        let mut server = Server { url: format!("http://127.0.0.1:{port}"), root: None, folder, process: None };
        server.start().await;
        server
    }

    /// What is after the scheme of its address.
    pub fn place(&self) -> &str {
        self.url.split_once("://").unwrap().1
    }

    /// The beginning of a client that trusts it. Of a secured one only the name is told.
    pub fn client(&self) -> ClientBuilder {
        let builder = Client::builder().sliding_sync_version_builder(VersionBuilder::DiscoverNative);
        match &self.root {
            None => builder.homeserver_url(&self.url),
            Some(root) => builder
                .server_name_or_homeserver_url(self.place())
                .disable_built_in_root_certificates()
                .add_root_certificates(vec![root.clone()]),
        }
    }

    /// Starts the process and waits until it listens.
    pub async fn start(&mut self) {
        let ready = self.folder.path().join("ready.json");
        let _ = std::fs::remove_file(&ready);
        let log = File::options().create(true).append(true).open(self.folder.path().join("server.log")).unwrap();
        let binary = std::env::var_os("TEST_SERVER").expect("TEST_SERVER names the server's binary");
        let mut process = Command::new(binary)
            .args(["serve", "--config"])
            .arg(self.folder.path().join("config.toml"))
            .arg("--ready-file")
            .arg(&ready)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let began = Instant::now();
        while !ready.exists() {
            let ended = process.try_wait().unwrap();
            assert!(ended.is_none() && began.elapsed() < READY_TIMEOUT, "not ready ({ended:?})\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.process = Some(process);
    }

    /// SIGKILL.
    pub async fn kill(&mut self) {
        self.process.take().unwrap().kill().await.unwrap();
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("server.log")).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let last = log.lines().rev().take(20).collect::<Vec<_>>();
            eprintln!("end of the server's log:\n{}", last.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
    }
}

/// Makes an authority and, by it, a certificate for this machine; the authority's own, and the setting that names the files.
fn certified(folder: &Path) -> (String, String) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let own = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
    let (certificate_file, key_file) = (folder.join("certificate.pem"), folder.join("key.pem"));
    std::fs::write(&certificate_file, own.pem()).unwrap();
    std::fs::write(&key_file, key.serialize_pem()).unwrap();
    let tls = format!(
        "tls = {{ certificate = \"{}\", key = \"{}\" }}\n",
        certificate_file.to_str().unwrap(),
        key_file.to_str().unwrap(),
    );
    (authority.pem(), tls)
}
