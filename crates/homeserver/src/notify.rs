//! Tells the service manager how things are: systemd's notification protocol, a few words over a datagram socket.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The way to the service manager; does nothing when there is none.
#[derive(Clone, Debug, Default)]
pub struct Notify {
    socket: Option<String>,
    watchdog: Option<Duration>,
}

impl Notify {
    pub fn from_environment() -> Self {
        let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
        let for_us = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        Self {
            socket: std::env::var("NOTIFY_SOCKET").ok().filter(|path| !path.is_empty()),
            watchdog: number("WATCHDOG_USEC").filter(|_| for_us).map(Duration::from_micros),
        }
    }

    pub fn to(socket: impl Into<String>) -> Self {
        Self { socket: Some(socket.into()), watchdog: None }
    }

    /// How often `watchdog` is to be called, with room to spare.
    pub fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog.map(|limit| limit / 3).filter(|interval| !interval.is_zero())
    }

    pub fn ready(&self) {
        self.send("READY=1");
    }

    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    pub fn watchdog(&self) {
        self.send("WATCHDOG=1");
    }

    /// What `systemctl status` shows.
    pub fn status(&self, text: &str) {
        self.send(&format!("STATUS={text}"));
    }

    fn send(&self, message: &str) {
        let Some(path) = &self.socket else { return };
        if let Err(cause) = deliver(path, message) {
            tracing::warn!(%cause, "the service manager cannot be told {message}");
        }
    }
}

/// A path that starts with `@` names a socket outside of the file system.
fn deliver(path: &str, message: &str) -> io::Result<()> {
    let address = match path.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(path)?,
    };
    UnixDatagram::unbound()?.send_to_addr(message.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    #[test]
    fn both_kinds_of_sockets_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let notify = Notify::to(path.to_string_lossy());
        notify.ready();
        notify.watchdog();
        notify.stopping();
        assert_eq!([received(&socket), received(&socket), received(&socket)], ["READY=1", "WATCHDOG=1", "STOPPING=1"]);

        let name = format!("skerry-test-{}", std::process::id());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        Notify::to(format!("@{name}")).ready();
        assert_eq!(received(&socket), "READY=1");
    }

    #[test]
    fn without_a_manager_nothing_happens() {
        Notify::default().ready();
        Notify::to("/nowhere/at/all").ready();
    }
}
