//! Where things are on a box: the section `[update]` of `appliance.toml`. All of it has the box's own places as defaults, and
//! can be set otherwise, so that a test runs everything against files.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use bundle::{Arch, Digest, PublicKey, Store};
use figment::Figment;
use figment::providers::{Format as _, Toml};
use serde::Deserialize;
use updater::{Booted, Policy, Release, Site};

#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct BoxSettings {
    /// The disk with the slots; without it the one that the running root is on.
    pub(super) disk: Option<PathBuf>,
    /// Where the boot partition is mounted.
    pub(super) esp: PathBuf,
    /// The updater's own folder.
    pub(super) state: PathBuf,
    /// The server's data.
    pub(super) data: PathBuf,
    /// The root document of the image.
    pub(super) trust: PathBuf,
    pub(super) os_release: PathBuf,
    pub(super) cmdline: PathBuf,
    pub(super) admin_socket: PathBuf,
    /// Where the variables of the firmware are mounted.
    pub(super) firmware: PathBuf,
    /// What skerry.service reads.
    pub(super) boot_env: PathBuf,
    /// How often a new release is tried.
    pub(super) tries: u32,
    /// How often in a row a good one may fail before the other slot has its turn; 0: for ever.
    pub(super) keep_tries: u32,
    pub(super) second_approval: bool,
    /// Public keys (Base64) that have to sign, too.
    pub(super) site_keys: Vec<String>,
    pub(super) site_threshold: u32,
    /// What the gate of health asks. Only this machine is asked.
    pub(super) health_url: String,
    /// How long it may take until the server answers, in seconds.
    pub(super) health_within_s: u64,
    /// The command that lets the gate of health judge a release on trial, also where the boot loader has not counted its
    /// start: systemd asks for it by itself only if it has.
    pub(super) judge: Vec<String>,
    /// The command that starts the box again.
    pub(super) reboot: Vec<String>,
}

impl Default for BoxSettings {
    fn default() -> Self {
        Self {
            disk: None,
            esp: "/efi".into(),
            state: "/var/lib/skerry-update".into(),
            data: "/var/lib/skerry/data".into(),
            trust: "/usr/lib/skerry/trust/root.json".into(),
            os_release: "/usr/lib/os-release".into(),
            cmdline: "/proc/cmdline".into(),
            admin_socket: "/run/skerry/admin.sock".into(),
            firmware: "/sys/firmware/efi/efivars".into(),
            boot_env: "/run/skerry-update/boot.env".into(),
            tries: 3,
            keep_tries: 3,
            second_approval: false,
            site_keys: Vec::new(),
            site_threshold: 1,
            health_url: "https://127.0.0.1:443/_matrix/client/versions".into(),
            health_within_s: 300,
            judge: ["systemctl", "--no-block", "start", "boot-complete.target"].map(str::to_owned).to_vec(),
            reboot: vec!["systemctl".into(), "reboot".into()],
        }
    }
}

impl BoxSettings {
    /// Other sections of the file are for others.
    pub(super) fn load(path: &Path) -> Result<Self> {
        if !path.exists() {
            return Ok(Self::default());
        }
        let figment = Figment::from(Toml::file_exact(path));
        if !figment.contains("update") {
            return Ok(Self::default());
        }
        figment.extract_inner("update").with_context(|| path.display().to_string())
    }

    /// What the image asks of releases besides their makers' signatures.
    pub(super) fn policy(&self) -> Result<Policy> {
        let key = |text: &String| PublicKey::parse(text).with_context(|| format!("site_keys: {text} is no public key"));
        let keys: Vec<PublicKey> = self.site_keys.iter().map(key).collect::<Result<_>>()?;
        let site = (!keys.is_empty()).then_some(Site { keys, threshold: self.site_threshold });
        Ok(Policy { second_approval: self.second_approval, site })
    }

    /// What runs, as the image says of itself.
    pub(super) fn running(&self) -> Result<(Booted, Release)> {
        let os_release = read(&self.os_release)?;
        let field = |name: &str| {
            let lines = os_release.lines().filter_map(|line| line.split_once('='));
            lines.rev().find(|(key, _)| *key == name).map(|(_, value)| value.trim_matches(['"', '\'']).to_owned())
        };
        let version =
            field("IMAGE_VERSION").with_context(|| format!("{}: no IMAGE_VERSION", self.os_release.display()))?;
        let security_version = field("SKERRY_SECURITY_VERSION").map_or(Ok(0), |text| text.parse())?;
        let store = match field("SKERRY_STORE_FORMATS") {
            None => Store { oldest: 1, newest: 1 },
            Some(text) => crate::bundle::formats(&text)
                .map_err(|why| anyhow!("{}: SKERRY_STORE_FORMATS: {why}", self.os_release.display()))?,
        };
        let cmdline = read(&self.cmdline)?;
        let root_hash = cmdline.split_whitespace().find_map(|word| Digest::parse(word.strip_prefix("roothash=")?));
        let release = Release { version: version.clone(), security_version, store, image: None };
        Ok((Booted { version, root_hash }, release))
    }

    /// The disk with the slots: the one that the running root is on. Another disk may have the same partitions (a clone, the
    /// stick that the image was written from).
    pub(super) fn disk(&self) -> Result<PathBuf> {
        match &self.disk {
            Some(disk) => Ok(disk.clone()),
            None => disk_of_root(Path::new("/sys"))
                .map(|name| Path::new("/dev").join(name))
                .context("no disk has the system that runs: name it in the settings"),
        }
    }
}

/// The name of the disk below the verified root, which skerry-init calls `root`.
fn disk_of_root(sys: &Path) -> Option<OsString> {
    let mut devices = fs::read_dir(sys.join("block")).ok()?.flatten().map(|entry| entry.path());
    let is_root = |path: &PathBuf| fs::read_to_string(path.join("dm/name")).is_ok_and(|name| name.trim() == "root");
    let root = devices.find(is_root)?;
    let partition = fs::read_dir(root.join("slaves")).ok()?.flatten().next()?.file_name();
    // A partition's folder lies in its disk's.
    let folder = fs::canonicalize(sys.join("class/block").join(partition)).ok()?;
    Some(folder.parent()?.file_name()?.to_owned())
}

pub(super) fn arch() -> Result<Arch> {
    Arch::own().context("there are no images for machines of this kind")
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_boxes_are_delivered_with_is_what_is_taken_without_it() {
        let delivered = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../appliance/appliance.toml");
        assert!(delivered.exists());
        assert_eq!(BoxSettings::load(&delivered).unwrap(), BoxSettings::default());
    }

    #[test]
    fn the_disk_is_the_one_below_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let sys = dir.path();
        assert_eq!(disk_of_root(sys), None);
        for (disk, partition) in [("sda", "sda2"), ("nvme0n1", "nvme0n1p2"), ("nvme0n1", "nvme0n1p3")] {
            fs::create_dir_all(sys.join("devices").join(disk).join(partition)).unwrap();
            fs::create_dir_all(sys.join("class/block")).unwrap();
            symlink(sys.join("devices").join(disk).join(partition), sys.join("class/block").join(partition)).unwrap();
        }
        for (device, name, below) in
            [("dm-0", "var", "sda2"), ("dm-1", "root", "nvme0n1p2"), ("dm-1", "root", "nvme0n1p3")]
        {
            let device = sys.join("block").join(device);
            fs::create_dir_all(device.join("dm")).unwrap();
            fs::write(device.join("dm/name"), format!("{name}\n")).unwrap();
            fs::create_dir_all(device.join("slaves").join(below)).unwrap();
        }
        assert_eq!(disk_of_root(sys), Some("nvme0n1".into()));
    }

    #[test]
    fn a_mistake_in_the_settings_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("appliance.toml");
        fs::write(&file, "[update]\ntrys = 3\n").unwrap();
        let said = format!("{:#}", BoxSettings::load(&file).unwrap_err());
        assert!(said.contains("trys") && said.contains("appliance.toml"), "{said}");
    }
}
