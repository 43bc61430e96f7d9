//! What the console does to the machine, behind a trait, so that its steps can be tried without one.

use std::fs::File;
use std::net::IpAddr;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use homeserver::admin::client;
use homeserver::clock::Clock;
use http::{Method, StatusCode};
use serde_json::Value;
use time::OffsetDateTime;

/// A box, or what stands for one.
pub(crate) trait Machine {
    /// `systemctl` with these arguments.
    fn systemctl(&mut self, args: &[&str]) -> Result<String, String>;
    /// One request to the server's socket.
    fn server(&mut self, method: Method, path: &str, body: Option<&Value>) -> Result<(StatusCode, Value), String>;
    /// `skerry update` with these arguments, its output where ours goes. Whether it went well.
    fn update(&mut self, args: &[&str]) -> Result<bool, String>;
    /// The same, and what it said.
    fn ask_update(&mut self, args: &[&str]) -> Result<(bool, String), String>;
    /// `journalctl` with these arguments: what it says, or nothing when that goes into a file.
    fn journal(&mut self, args: &[&str], to: Option<&File>) -> Result<String, String>;
    /// What `skerry-seal`, which opens the data, says to these arguments.
    fn seal(&mut self, args: &[&str]) -> Result<String, String>;
    /// The addresses under which others find this machine.
    fn addresses(&self) -> Vec<IpAddr>;
    fn memory_mib(&self) -> u64;
    fn now(&self) -> OffsetDateTime;
    /// Sets the clock, and what it may never stand before. A sentence if the machine's own clock did not take it.
    fn set_time(&mut self, to: OffsetDateTime) -> Result<Option<String>, String>;
    /// A moment, before something is asked again.
    fn pause(&mut self);
}

/// The box that this runs on.
pub(crate) struct ThisMachine {
    pub(crate) socket: PathBuf,
}

const PAUSE: Duration = Duration::from_millis(500);
const SOON: Duration = Duration::from_secs(20);

impl Machine for ThisMachine {
    fn systemctl(&mut self, args: &[&str]) -> Result<String, String> {
        let out = Command::new("systemctl").arg("--no-ask-password").args(args).stdin(Stdio::null()).output();
        let out = out.map_err(|cause| format!("systemctl: {cause}"))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        match out.status.success() {
            true => Ok(text(&out.stdout)),
            false => Err(format!("systemctl {}: {}{}", args.join(" "), text(&out.stdout), text(&out.stderr))),
        }
    }

    fn server(&mut self, method: Method, path: &str, body: Option<&Value>) -> Result<(StatusCode, Value), String> {
        client::wait(client::call(&self.socket, method, path, body, SOON))
    }

    fn update(&mut self, args: &[&str]) -> Result<bool, String> {
        let status = updater(args)?.status();
        Ok(status.map_err(|cause| format!("skerry update: {cause}"))?.success())
    }

    fn ask_update(&mut self, args: &[&str]) -> Result<(bool, String), String> {
        let out = updater(args)?.output().map_err(|cause| format!("skerry update: {cause}"))?;
        let said = [out.stdout, out.stderr].concat();
        Ok((out.status.success(), String::from_utf8_lossy(&said).into_owned()))
    }

    fn journal(&mut self, args: &[&str], to: Option<&File>) -> Result<String, String> {
        let failed = |cause: &dyn std::fmt::Display| format!("journalctl: {cause}");
        let mut journal = Command::new("journalctl");
        journal.arg("--no-pager").args(args).stdin(Stdio::null());
        if let Some(file) = to {
            journal.stdout(file.try_clone().map_err(|cause| failed(&cause))?);
        }
        let out = journal.output().map_err(|cause| failed(&cause))?;
        match out.status.success() {
            true => Ok(String::from_utf8_lossy(&out.stdout).into_owned()),
            false => Err(failed(&String::from_utf8_lossy(&out.stderr).trim())),
        }
    }

    fn seal(&mut self, args: &[&str]) -> Result<String, String> {
        let out = Command::new("skerry-seal").args(args).stdin(Stdio::null()).output();
        let out = out.map_err(|cause| format!("skerry-seal: {cause}"))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        // Programs below it say more; the last line is its own.
        let why = || text(&out.stderr).lines().last().unwrap_or("skerry-seal failed").to_owned();
        if out.status.success() { Ok(text(&out.stdout)) } else { Err(why()) }
    }

    fn addresses(&self) -> Vec<IpAddr> {
        let interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
        let mut found: Vec<IpAddr> = interfaces
            .filter_map(|interface| {
                let address = interface.address?;
                let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
                v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
            })
            .filter(is_for_others)
            .collect();
        found.sort();
        found.dedup();
        found
    }

    fn memory_mib(&self) -> u64 {
        let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kib =
            text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok());
        kib.unwrap_or(0_u64) / 1024
    }

    fn now(&self) -> OffsetDateTime {
        let seconds = i64::try_from(Clock::system().now_ms() / 1000).unwrap_or(0);
        OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }

    fn set_time(&mut self, to: OffsetDateTime) -> Result<Option<String>, String> {
        let seconds = u64::try_from(to.unix_timestamp()).map_err(|_| "before 1970".to_owned())?;
        crate::floor::set(seconds).map_err(|why| format!("{why:#}"))
    }

    fn pause(&mut self) {
        std::thread::sleep(PAUSE);
    }
}

/// In a process group of its own: a key that is pressed here, or a line that hangs up, does not end it halfway.
fn updater(args: &[&str]) -> Result<Command, String> {
    let own = std::env::current_exe().map_err(|cause| cause.to_string())?;
    let mut command = Command::new(own);
    command.arg("update").args(args).stdin(Stdio::null()).process_group(0);
    Ok(command)
}

fn is_for_others(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local(),
        IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use nix::unistd::{Pid, getpgid, getpgrp};

    use super::*;

    #[test]
    fn the_updater_is_in_no_group_that_keys_and_hangups_end() {
        // The test program itself, which waits for nobody.
        let mut child = updater(&["--list"]).unwrap().stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let group = getpgid(Some(Pid::from_raw(child.id() as i32)));
        let status = child.wait().unwrap();
        assert!(group.unwrap() != getpgrp(), "{status}");
    }
}
