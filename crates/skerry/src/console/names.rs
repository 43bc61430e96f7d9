//! Name servers for the server, where it may reach the site: what systemd-networkd was told by the set-up or by DHCP, as the
//! file that resolvers read (`resolv.conf`).
//!
//! Not here: when this is done (skerry-names.path), and the network's own settings (files.rs).

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context as _, Result};
use homeserver::dirs;

/// What networkd knows of all links together.
pub(super) const STATE: &str = "/run/systemd/netif/state";
/// Where `/etc/resolv.conf` leads to.
pub(super) const RESOLV_CONF: &str = "/run/skerry-names/resolv.conf";
/// Resolvers ask no more than these.
const MOST_SERVERS: usize = 3;

/// Writes the name servers down. Without any, no name is asked for anywhere.
///
/// # Errors
/// The file cannot be written.
pub(super) fn write(state: &Path, resolv_conf: &Path) -> Result<usize> {
    // Before networkd has begun there is no state.
    let servers = servers(&fs::read_to_string(state).unwrap_or_default());
    let mut text = String::from("# Written by the console, as networkd knows it.\n");
    servers.iter().for_each(|server| text.push_str(&format!("nameserver {server}\n")));
    dirs::replace(resolv_conf, text.as_bytes(), 0o644).with_context(|| resolv_conf.display().to_string())?;
    Ok(servers.len())
}

fn servers(state: &str) -> Vec<IpAddr> {
    let lines = state.lines().filter_map(|line| line.strip_prefix("DNS="));
    lines.flat_map(str::split_whitespace).filter_map(|server| server.parse().ok()).take(MOST_SERVERS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_network_says_is_what_resolvers_read() {
        let dir = tempfile::tempdir().unwrap();
        let (state, file) = (dir.path().join("state"), dir.path().join("resolv.conf"));
        let written = |servers: usize, expected: &[&str]| {
            assert_eq!(write(&state, &file).unwrap(), servers);
            let text = fs::read_to_string(&file).unwrap();
            let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
            assert_eq!(lines, expected);
        };
        written(0, &[]);
        fs::write(&state, "OPER_STATE=routable\nDNS=10.1.2.1 fec0::3 x%y\nNTP=\nDOMAINS=evil\n").unwrap();
        written(2, &["nameserver 10.1.2.1", "nameserver fec0::3"]);
        fs::write(&state, "DNS=1.1.1.1 2.2.2.2 3.3.3.3 4.4.4.4\n").unwrap();
        written(3, &["nameserver 1.1.1.1", "nameserver 2.2.2.2", "nameserver 3.3.3.3"]);
        fs::write(&state, "DNS=\n").unwrap();
        written(0, &[]);
    }
}
