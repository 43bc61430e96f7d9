//! A server under test: the real binary (named by the variable `TEST_SERVER`) on a data folder of its own.

use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::process::{Child, Command};

const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// Killed when it is dropped.
pub struct Server {
    pub url: String,
    folder: TempDir,
    process: Option<Child>,
}

impl Server {
    /// A server on a fresh folder, listening.
    pub async fn started() -> Self {
        // A port that was free a moment ago. Fixed, not 0: clients must find a restarted server where it was.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let folder = tempfile::Builder::new().prefix("skerry-rust-sdk-").tempdir().unwrap();
        let template = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../server.toml");
        let settings = std::fs::read_to_string(template).unwrap().replace("{port}", &port.to_string());
        let settings = settings.replace("{data}", folder.path().join("data").to_str().unwrap());
        std::fs::write(folder.path().join("config.toml"), settings).unwrap();
        let mut server = Server { url: format!("http://127.0.0.1:{port}"), folder, process: None };
        server.start().await;
        server
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
