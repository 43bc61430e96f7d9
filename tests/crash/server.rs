//! The server under test as a process: started, killed, started again on the same data folder.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::process::{Child, Command};

const READY_TIMEOUT: Duration = Duration::from_secs(60);

pub struct Server {
    folder: PathBuf,
    process: Option<Child>,
    pub url: String,
}

impl Server {
    /// A server whose data lies in `data`; its settings, log and ready file in `folder`. Not started yet.
    pub fn new(folder: &Path, data: &Path) -> Self {
        // Fixed while the server comes and goes, so that clients find it again.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let template = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/server.toml");
        let template = std::fs::read_to_string(template).unwrap();
        let config = template.replace("{port}", &port.to_string()).replace("{data}", data.to_str().unwrap());
        std::fs::write(folder.join("config.toml"), config).unwrap();
        Self { folder: folder.to_owned(), process: None, url: format!("http://127.0.0.1:{port}") }
    }

    /// Starts the process and waits until it listens. Tells how long that took.
    pub async fn start(&mut self) -> Duration {
        let ready = self.folder.join("ready.json");
        let _ = std::fs::remove_file(&ready);
        let log = File::options().create(true).append(true).open(self.folder.join("server.log")).unwrap();
        let binary = std::env::var("TEST_SERVER").unwrap_or_else(|_| env!("CARGO_BIN_EXE_skerry").into());
        let started = Instant::now();
        let mut process = Command::new(binary)
            .arg("serve")
            .arg("--config")
            .arg(self.folder.join("config.toml"))
            .arg("--ready-file")
            .arg(&ready)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        while !ready.exists() {
            if let Some(status) = process.try_wait().unwrap() {
                panic!("the server ended with {status}\n{}", self.log_tail());
            }
            assert!(started.elapsed() < READY_TIMEOUT, "the server is not ready\n{}", self.log_tail());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        self.process = Some(process);
        started.elapsed()
    }

    /// `kill -9`, and waits until the process is gone.
    pub async fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().await.unwrap();
        }
    }

    pub fn log_tail(&self) -> String {
        let log = std::fs::read(self.folder.join("server.log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}
