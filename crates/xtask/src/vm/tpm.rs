//! A TPM for a machine: the program `swtpm`, which keeps its state in a folder as a chip on a board does.
//!
//! Lives here: starting and ending it. Not here: how the machine sees it (machine.rs).

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// The socket that QEMU speaks to, in the TPM's folder.
pub(super) const SOCKET: &str = "line";
const ROUNDS: u32 = 600;
const ROUND: Duration = Duration::from_millis(50);

/// A TPM that is there until it is dropped.
pub(super) struct Tpm(Child);

impl Tpm {
    /// Powers up the TPM whose state lies in a folder; a new one if there is none.
    pub(super) fn start(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let socket = folder.join(SOCKET);
        let _ = fs::remove_file(&socket);
        let child = Command::new("swtpm")
            .args(["socket", "--tpm2", "--terminate", "--flags", "startup-clear"])
            .arg("--tpmstate")
            .arg(format!("dir={}", folder.display()))
            .arg("--ctrl")
            .arg(format!("type=unixio,path={}", socket.display()))
            .stdin(Stdio::null())
            .spawn()
            .context("swtpm")?;
        let mut tpm = Self(child);
        for _ in 0..ROUNDS {
            if socket.exists() {
                return Ok(tpm);
            }
            if let Some(status) = tpm.0.try_wait()? {
                bail!("swtpm ended with {status}");
            }
            thread::sleep(ROUND);
        }
        bail!("swtpm does not listen")
    }
}

impl Drop for Tpm {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
