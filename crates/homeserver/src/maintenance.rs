//! Holding still for an update: clients wait, nothing is written, and what the data looks like stays what the release
//! before can read.
//!
//! Lives here: whether maintenance is on, what is answered meanwhile, the format of the data and who may raise it. Not here:
//! the verbs on the socket (admin/maintenance.rs), slots and boot entries (the updater).

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::watch;

use crate::dirs;

/// The formats of the data that this release reads. It writes the newest one, but not on trial: what a trial writes, the
/// release before has to read. A format is raised in the release after the one that learnt to read it.
pub const OLDEST_FORMAT: u32 = 1;
pub const NEWEST_FORMAT: u32 = 1;

/// Beside the store: the format that it is written in, as a number.
const FORMAT_FILE: &str = "format";
/// Beside the store: a trial may have changed something.
const TOUCHED_FILE: &str = "trial";

/// Whether the server holds still.
pub struct Maintenance {
    on: watch::Sender<bool>,
    format: AtomicU32,
}

impl Default for Maintenance {
    fn default() -> Self {
        Self { on: watch::Sender::new(false), format: AtomicU32::new(NEWEST_FORMAT) }
    }
}

impl Maintenance {
    pub(crate) fn start(&self, format: u32, trial: bool) {
        self.format.store(format, Ordering::Relaxed);
        self.set(trial);
    }

    pub fn set(&self, on: bool) {
        self.on.send_replace(on);
    }

    pub fn is_on(&self) -> bool {
        *self.on.borrow()
    }

    /// The format that is written.
    pub fn write_format(&self) -> u32 {
        self.format.load(Ordering::Relaxed)
    }

    /// Waits until it is off.
    pub async fn ended(&self) {
        let mut on = self.on.subscribe();
        // The sender lives as long as `self`.
        if on.wait_for(|on| !on).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Looks at the format of the data before anything else is opened, and gives the one to write. A trial leaves its mark.
///
/// # Errors
/// The folder cannot be read or written; in words, if this release does not read the data.
pub fn open_data(dir: &Path, trial: bool) -> io::Result<Result<u32, String>> {
    open_between(dir, trial, OLDEST_FORMAT, NEWEST_FORMAT)
}

fn open_between(dir: &Path, trial: bool, oldest: u32, newest: u32) -> io::Result<Result<u32, String>> {
    let format = read_format(dir)?;
    if let Some(format) = format.filter(|format| !(oldest..=newest).contains(format)) {
        return Ok(Err(format!(
            "the data is of format {format}, this release reads {oldest} to {newest}: start the release that wrote it"
        )));
    }
    if trial {
        dirs::replace(&dir.join(TOUCHED_FILE), b"a release on trial has opened the data\n", 0o666)?;
        return Ok(Ok(format.unwrap_or(newest)));
    }
    if format != Some(newest) {
        dirs::replace(&dir.join(FORMAT_FILE), format!("{newest}\n").as_bytes(), 0o666)?;
    }
    Ok(Ok(newest))
}

/// The format of the data in a folder; nothing if there is none yet.
///
/// # Errors
/// It cannot be read, or is no number.
pub fn read_format(dir: &Path) -> io::Result<Option<u32>> {
    match fs::read_to_string(dir.join(FORMAT_FILE)) {
        Ok(text) => text.trim().parse().map(Some).map_err(|_| io::Error::other(format!("{FORMAT_FILE} is no number"))),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(cause),
    }
}

/// Whether a trial has opened the data.
///
/// # Errors
/// The folder cannot be read.
pub fn is_touched(dir: &Path) -> io::Result<bool> {
    dir.join(TOUCHED_FILE).try_exists()
}

/// Forgets that a trial has opened the data.
///
/// # Errors
/// The folder cannot be written.
pub fn forget_touch(dir: &Path) -> io::Result<()> {
    if is_touched(dir)? {
        fs::remove_file(dir.join(TOUCHED_FILE))?;
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changes_nothing_is_answered_meanwhile() {
        let routes = crate::api::routes();
        let open: Vec<_> = routes.answered_in_maintenance().map(|(method, path)| format!("{method} {path}")).collect();
        assert_eq!(
            open,
            [
                "GET /_matrix/client/versions",
                "GET /.well-known/matrix/client",
                "GET /.well-known/matrix/server",
                "GET /.well-known/matrix/support",
            ]
        );
        let routes = crate::admin::routes();
        let open: Vec<_> = routes.answered_in_maintenance().map(|(method, path)| format!("{method} {path}")).collect();
        assert_eq!(open, ["GET /health", "GET /doctor", "POST /maintenance", "POST /maintenance/probe"]);
    }

    #[tokio::test]
    async fn clients_wait_wherever_they_knock() {
        let mut config = crate::config::Config::new(ruma::owned_server_name!("hs.test"));
        config.oauth.enabled = true;
        config.well_known.client_base_url = Some("https://hs.test".to_owned());
        let app = crate::App::in_memory(config);
        app.maintenance.set(true);
        let client = crate::http::Local::new(app.router());
        assert_eq!(client.get("/_matrix/client/versions").await.status, 200);
        for path in
            ["/_matrix/client/v3/sync", "/_matrix/client/v1/auth_metadata", "/_synapse/admin/v2/users", "/account"]
        {
            let answer = client.get(path).await;
            assert_eq!((answer.status.as_u16(), &answer.json()["errcode"]), (503, &"M_UNAVAILABLE".into()), "{path}");
        }
        for path in ["/oauth2/token", "/oauth2/register", "/oauth2/revoke", "/oauth2/login", "/_matrix/media/v3/upload"]
        {
            let answer = client.post(path, serde_json::json!({})).await;
            assert_eq!((answer.status.as_u16(), &answer.json()["errcode"]), (503, &"M_UNAVAILABLE".into()), "{path}");
        }
    }

    #[test]
    fn a_trial_leaves_its_mark_and_raises_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        let open = |trial, oldest, newest| open_between(at, trial, oldest, newest).unwrap();
        assert_eq!((open(false, 1, 1), read_format(at).unwrap()), (Ok(1), Some(1)));
        assert!(!is_touched(at).unwrap());
        // The next release reads both; on trial it writes the old one.
        assert_eq!((open(true, 1, 2), read_format(at).unwrap()), (Ok(1), Some(1)));
        assert!(is_touched(at).unwrap());
        assert_eq!(open(false, 1, 1), Ok(1), "the release before reads it still");
        forget_touch(at).unwrap();
        assert!(!is_touched(at).unwrap());
        // Once it stays, it writes the new one, and the release before does not open that.
        assert_eq!((open(false, 1, 2), read_format(at).unwrap()), (Ok(2), Some(2)));
        assert!(open(false, 1, 1).unwrap_err().contains("format 2"));
        assert_eq!(read_format(at).unwrap(), Some(2));
    }

    #[tokio::test]
    async fn whoever_waits_for_its_end_is_woken() {
        let maintenance = Maintenance::default();
        maintenance.ended().await;
        maintenance.set(true);
        tokio::join!(maintenance.ended(), async { maintenance.set(false) });
        assert!(!maintenance.is_on());
    }
}
