//! The tree with the tools that put images together: a small Debian of its own, so that the builder's system is left alone
//! and every builder has the same tools.
//!
//! Lives here: making it, running something in it, and which mirrors the builder's own apt uses. Not here: what is run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::keys::Keys;
use crate::run;

/// The Debian that tools and images are made from.
pub(super) const SUITE: &str = "trixie";
const PACKAGES: &[&str] = &[
    "cryptsetup-bin",
    "dosfstools",
    "e2fsprogs",
    "erofs-utils",
    "fdisk",
    "kmod",
    // What works out the state of a TPM loads these.
    "libtss2-esys-3.0.2-0t64",
    "libtss2-rc0t64",
    "mtools",
    "openssl",
    "python3-pefile",
    "sbsigntool",
    "systemd",
    "systemd-ukify",
    "xz-utils",
    "zstd",
];
/// Where the work folder is seen from inside.
const INSIDE: &str = "/w";
/// Where the keys are seen, for as long as something is signed with them.
pub(super) const KEYS_INSIDE: &str = "/k";
/// Enters the tree: mounts of its own, which go when it ends.
const ENTER: &str = "set -e; mount --bind \"$1\" \"$0/w\"; [ -z \"$2\" ] || mount --bind \"$2\" \"$0/k\"; \
     mount -t proc proc \"$0/proc\"; mount -t devtmpfs dev \"$0/dev\" 2>/dev/null || mount --bind /dev \"$0/dev\"; \
     root=$0; shift 2; exec chroot \"$root\" \"$@\"";

#[derive(Clone)]
pub(super) struct Tools {
    tree: PathBuf,
    work: PathBuf,
    keys: Option<PathBuf>,
    epoch_s: u64,
}

impl Tools {
    /// The tree below the work folder, made if it is not there.
    pub(super) fn ready(work: &Path, epoch_s: u64) -> Result<Self> {
        let tree = work.join("tools");
        let tools = Self { tree, work: work.to_owned(), keys: None, epoch_s };
        let stamp = tools.tree.join("made-of.txt");
        let sources = sources();
        let wanted = format!("{sources}{}\n", PACKAGES.join("\n"));
        if fs::read_to_string(&stamp).is_ok_and(|made| made == wanted) {
            return Ok(tools);
        }
        if tools.tree.exists() {
            fs::remove_dir_all(&tools.tree)?;
        }
        fs::create_dir_all(work)?;
        let mut bootstrap = run::command("debootstrap", ["--variant=minbase", SUITE]);
        bootstrap.arg(&tools.tree).arg(debian_mirror()?);
        run::step("a small Debian for the tools", bootstrap)?;
        for place in [INSIDE, KEYS_INSIDE] {
            fs::create_dir_all(tools.tree.join(place.trim_start_matches('/')))?;
        }
        fs::write(tools.tree.join("etc/apt/sources.list"), sources)?;
        for file in ["etc/resolv.conf", "etc/hosts"] {
            let _ = fs::copy(Path::new("/").join(file), tools.tree.join(file));
        }
        tools.step("its list of packages", &["apt-get", "update", "-q"])?;
        let mut install = vec!["apt-get", "install", "-y", "-q", "--no-install-recommends"];
        install.extend(PACKAGES);
        tools.step("the tools", &install)?;
        fs::write(stamp, wanted)?;
        Ok(tools)
    }

    /// The same, with keys to sign with.
    pub(super) fn with_keys(&self, keys: Option<&Keys>) -> Self {
        Self { keys: keys.map(|keys| keys.folder.clone()), ..self.clone() }
    }

    /// A command inside. The work folder is `/w` there.
    pub(super) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", ENTER]);
        command.arg(&self.tree).arg(&self.work).arg(self.keys.as_deref().unwrap_or(Path::new(""))).args(args);
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C.UTF-8")
            .env("HOME", "/root")
            .env("TZ", "UTC")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("MTOOLS_SKIP_CHECK", "1")
            .env("SOURCE_DATE_EPOCH", self.epoch_s.to_string());
        command
    }

    pub(super) fn step(&self, headline: &str, args: &[&str]) -> Result<()> {
        run::step(headline, self.command(args))
    }

    pub(super) fn output(&self, args: &[&str]) -> Result<String> {
        run::output(self.command(args))
    }

    /// What a path of the work folder, or of the tree, is called inside.
    pub(super) fn inside(&self, path: &Path) -> Result<String> {
        let (path, top) = match path.strip_prefix(&self.tree) {
            Ok(rest) => (rest, ""),
            Err(_) => (
                path.strip_prefix(&self.work)
                    .with_context(|| format!("{} has to lie below {}", path.display(), self.work.display()))?,
                INSIDE,
            ),
        };
        Ok(format!("{top}/{}", path.to_str().context("a path is not UTF-8")?))
    }

    pub(super) fn work(&self) -> &Path {
        &self.work
    }
}

/// Apt's sources for tools and images.
pub(super) fn sources() -> String {
    let (main, security) = mirrors(&host_sources());
    format!("deb {main} {SUITE} main\ndeb {main} {SUITE}-updates main\ndeb {security} {SUITE}-security main\n")
}

/// The mirror that the builder's own apt uses.
fn debian_mirror() -> Result<String> {
    Ok(mirrors(&host_sources()).0)
}

/// All that apt's sources say.
fn host_sources() -> String {
    let mut text = fs::read_to_string("/etc/apt/sources.list").unwrap_or_default();
    let entries = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        text.push('\n');
        text.push_str(&fs::read_to_string(path).unwrap_or_default());
    }
    text
}

/// Debian's mirror and the one for security, from what apt's sources say in either style; Debian's own where they say nothing.
fn mirrors(sources: &str) -> (String, String) {
    let addresses = || {
        sources
            .lines()
            .map(str::trim)
            .filter(|line| !line.starts_with('#'))
            .filter(|line| line.starts_with("deb ") || line.starts_with("URIs:"))
            .flat_map(str::split_whitespace)
            .filter(|word| word.contains("://"))
            .map(|word| word.trim_end_matches('/').to_owned())
    };
    let main = addresses().find(|address| address.ends_with("/debian"));
    let security = addresses().find(|address| address.ends_with("/debian-security"));
    (
        main.unwrap_or_else(|| "http://deb.debian.org/debian".into()),
        security.unwrap_or_else(|| "http://deb.debian.org/debian-security".into()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(sources: &str, main: &str, security: &str) {
        assert_eq!(mirrors(sources), (main.to_owned(), security.to_owned()), "{sources}");
    }

    #[test]
    fn the_builders_own_mirrors_are_used() {
        let debian = ("http://deb.debian.org/debian", "http://deb.debian.org/debian-security");
        check("", debian.0, debian.1);
        check("deb http://archive.ubuntu.com/ubuntu noble main", debian.0, debian.1);
        check(
            "Types: deb\n# URIs: http://old.example/debian\nURIs: http://mirror.example/debian/\nSuites: bookworm\n",
            "http://mirror.example/debian",
            debian.1,
        );
        check(
            "deb [signed-by=/k.gpg] https://m.example/a/debian bookworm main\n\
             deb https://m.example/a/debian-security bookworm-security main",
            "https://m.example/a/debian",
            "https://m.example/a/debian-security",
        );
    }
}
