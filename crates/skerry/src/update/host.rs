//! The server and its data, for the updater: maintenance over the administration socket, checkpoints in the data folder.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt as _, lchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use homeserver::admin::client;
use homeserver::admin::maintenance::{CHECKPOINTS, checkpoint_closed};
use homeserver::{dirs, maintenance};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use updater::Host;

use super::firmware::Firmware;
use super::settings::BoxSettings;

/// What a restoration puts aside.
const LEFT: &str = "store.left";

/// The server of this box.
pub(super) struct BoxHost {
    data: PathBuf,
    socket: PathBuf,
    boot_env: PathBuf,
    firmware: Firmware,
}

impl BoxHost {
    pub(super) fn new(settings: &BoxSettings) -> Self {
        let (data, socket, boot_env) = (&settings.data, &settings.admin_socket, &settings.boot_env);
        let firmware = Firmware(settings.firmware.clone());
        Self { data: data.clone(), socket: socket.clone(), boot_env: boot_env.clone(), firmware }
    }

    /// The server's answer; nothing if none runs.
    pub(super) fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        within: Duration,
    ) -> Result<Option<(StatusCode, Value)>, String> {
        // Who listens is asked; who does not, does not run.
        if std::os::unix::net::UnixStream::connect(&self.socket).is_err() {
            return Ok(None);
        }
        client::wait(client::call(&self.socket, method, path, body, within)).map(Some)
    }

    fn switch(&self, body: &Value) -> Result<bool, String> {
        const WITHIN: Duration = Duration::from_secs(900);
        match self.ask(Method::POST, "/maintenance", Some(body), WITHIN)? {
            None => Ok(false),
            Some((status, _)) if status.is_success() => Ok(true),
            Some((status, answer)) => Err(format!(
                "{status}: {}",
                answer.get("error").and_then(Value::as_str).unwrap_or("it does not say why")
            )),
        }
    }

    fn store(&self) -> PathBuf {
        self.data.join("store")
    }
}

impl Host for BoxHost {
    fn start_silent(&self, silent: bool) -> io::Result<()> {
        if let Some(folder) = self.boot_env.parent() {
            fs::create_dir_all(folder)?;
        }
        dirs::replace(&self.boot_env, format!("SKERRY_TRIAL={}\n", u8::from(silent)).as_bytes(), 0o644)
    }

    fn freeze(&self, checkpoint: &str) -> Result<(), String> {
        if self.switch(&json!({ "on": true, "checkpoint": checkpoint }))? || !self.store().exists() {
            return Ok(());
        }
        checkpoint_closed(&self.data, checkpoint)?;
        belong_to_the_server(&self.data).map_err(|error| error.to_string())
    }

    fn thaw(&self) -> Result<(), String> {
        self.switch(&json!({ "on": false })).map(drop)
    }

    fn store_format(&self) -> io::Result<u32> {
        Ok(maintenance::read_format(&self.data)?.unwrap_or(maintenance::OLDEST_FORMAT))
    }

    fn kept_floor(&self) -> u64 {
        self.firmware.floor()
    }

    fn keep_floor(&self, floor: u64) {
        if let Err(error) = self.firmware.raise(floor) {
            eprintln!("the firmware does not keep the floor {floor}: {error}");
        }
    }

    fn touched(&self) -> io::Result<bool> {
        maintenance::is_touched(&self.data)
    }

    fn restore(&self, checkpoint: &str) -> io::Result<()> {
        let (store, left) = (self.store(), self.data.join(LEFT));
        let from = self.data.join(CHECKPOINTS).join(checkpoint);
        if !from.exists() {
            return Ok(());
        }
        // A cut between the two leaves no store: then only the second is left to be done.
        if store.exists() {
            if left.exists() {
                fs::remove_dir_all(&left)?;
            }
            fs::rename(&store, &left)?;
            sync(&self.data)?;
        }
        fs::rename(&from, &store)?;
        sync(&self.data.join(CHECKPOINTS))?;
        sync(&self.data)
    }

    fn clear(&self) -> io::Result<()> {
        // Never while it is all that there is.
        if !self.store().exists() && self.data.join(LEFT).exists() {
            return Ok(());
        }
        for dir in [CHECKPOINTS, LEFT] {
            match fs::remove_dir_all(self.data.join(dir)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        maintenance::forget_touch(&self.data)
    }
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// What the engine has made while we had it open is the server's, not ours.
fn belong_to_the_server(data: &Path) -> io::Result<()> {
    let owner = fs::metadata(data)?;
    let mut folders = vec![data.join("store"), data.join(CHECKPOINTS)];
    while let Some(folder) = folders.pop() {
        give(&folder, &owner)?;
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => folders.push(entry.path()),
                false => give(&entry.path(), &owner)?,
            }
        }
    }
    Ok(())
}

/// Never what a link leads to: the server may have put it there.
fn give(path: &Path, owner: &fs::Metadata) -> io::Result<()> {
    let is = fs::symlink_metadata(path)?;
    if is.is_symlink() || (is.uid(), is.gid()) == (owner.uid(), owner.gid()) {
        return Ok(());
    }
    lchown(path, Some(owner.uid()), Some(owner.gid()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};

    use super::*;

    /// Where nobody runs.
    fn empty() -> (tempfile::TempDir, BoxHost) {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let host = BoxHost {
            data: at("data"),
            socket: at("nobody.sock"),
            boot_env: at("run/boot.env"),
            firmware: Firmware(at("nowhere")),
        };
        (dir, host)
    }

    fn host() -> (tempfile::TempDir, BoxHost) {
        let (dir, host) = empty();
        for (folder, text) in [("store", "trial"), ("checkpoints/update-1", "before")] {
            fs::create_dir_all(host.data.join(folder)).unwrap();
            fs::write(host.data.join(folder).join("CURRENT"), text).unwrap();
        }
        (dir, host)
    }

    fn store(host: &BoxHost) -> String {
        fs::read_to_string(host.data.join("store/CURRENT")).unwrap()
    }

    #[test]
    fn a_restoration_may_be_cut_and_is_done_once() {
        // Whole, and then again.
        let (_dir, host) = host();
        host.restore("update-1").unwrap();
        assert_eq!(store(&host), "before");
        fs::write(host.data.join("store/CURRENT"), "served since").unwrap();
        host.restore("update-1").unwrap();
        assert_eq!(store(&host), "served since");
        host.clear().unwrap();
        assert!(!host.data.join(LEFT).exists() && !host.data.join(CHECKPOINTS).exists());
        assert_eq!(store(&host), "served since");
    }

    #[test]
    fn what_links_of_the_server_lead_to_is_not_given_to_it() {
        let (dir, host) = host();
        let [key, link] = [dir.path().join("box.key"), host.data.join("store/link")];
        fs::write(&key, "secret").unwrap();
        symlink(&key, &link).unwrap();
        symlink(dir.path(), host.data.join("store/folder")).unwrap();
        // Somebody else's: as root one can be made, and others may not even try.
        let owner = match nix::unistd::geteuid().is_root() {
            true => {
                chown(&host.data, Some(970), Some(970)).unwrap();
                fs::metadata(&host.data).unwrap()
            }
            false => fs::metadata("/").unwrap(),
        };
        let before = fs::metadata(&key).unwrap().uid();
        give(&link, &owner).unwrap();
        if nix::unistd::geteuid().is_root() {
            belong_to_the_server(&host.data).unwrap();
            assert_eq!(fs::metadata(host.data.join("store/CURRENT")).unwrap().uid(), 970);
        }
        assert_eq!(fs::metadata(&key).unwrap().uid(), before);
    }

    #[test]
    fn how_the_server_starts_is_replaced_and_not_written_through_a_link() {
        let (dir, host) = empty();
        let other = dir.path().join("other");
        fs::write(&other, "other").unwrap();
        fs::create_dir(dir.path().join("run")).unwrap();
        symlink(&other, &host.boot_env).unwrap();
        for (silent, says) in [(true, "SKERRY_TRIAL=1\n"), (false, "SKERRY_TRIAL=0\n")] {
            host.start_silent(silent).unwrap();
            assert_eq!(fs::read_to_string(&host.boot_env).unwrap(), says);
        }
        assert_eq!(fs::read_to_string(&other).unwrap(), "other");
    }

    #[test]
    fn a_cut_between_the_renames_loses_nothing() {
        let (_dir, host) = host();
        fs::rename(host.data.join("store"), host.data.join(LEFT)).unwrap();
        host.clear().unwrap();
        host.restore("update-1").unwrap();
        assert_eq!(store(&host), "before");
        host.clear().unwrap();
        assert_eq!(store(&host), "before");
    }

    #[test]
    fn a_box_without_data_has_nothing_to_lose() {
        let (_dir, host) = empty();
        assert_eq!((host.store_format().unwrap(), host.touched().unwrap()), (1, false));
        host.freeze("update-1").unwrap();
        host.restore("update-1").unwrap();
        host.clear().unwrap();
        host.thaw().unwrap();
    }
}
