//! Sticks: which devices may be one, and looking into one without trusting it.
//!
//! A stick is mounted read-only, without programs, devices and links, for as long as it is looked at, and never by itself.
//! Not here: what is looked for (orders.rs, menu.rs).

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// File systems that sticks come with.
const KINDS: [&str; 4] = ["vfat", "exfat", "iso9660", "ext4"];
const STRICT: &str = "nosuid,nodev,noexec,nosymfollow";
const MOUNT_POINT: &str = "/run/skerry-stick";
/// What a block device's name begins with that is no stick.
const NOT_STICKS: [&str; 6] = ["loop", "ram", "zram", "dm-", "md", "fd"];

/// Devices that may be sticks, by name: partitions, and disks without any. The disk that the system runs from is none.
pub(crate) fn candidates(sys: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(sys.join("class/block")) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .flatten()
        .filter(|entry| may_be_stick(&entry.path()))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn may_be_stick(entry: &Path) -> bool {
    let name = entry.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let Ok(device) = fs::canonicalize(entry) else { return false };
    let empty = fs::read_to_string(device.join("size")).is_ok_and(|size| size.trim() == "0");
    if empty || NOT_STICKS.iter().any(|begin| name.starts_with(begin)) {
        return false;
    }
    if device.join("partition").exists() {
        return device.parent().is_some_and(|disk| !holds_the_system(disk));
    }
    partitions(&device).is_empty() && !is_held(&device)
}

fn partitions(disk: &Path) -> Vec<PathBuf> {
    let inside = fs::read_dir(disk).into_iter().flatten().flatten().map(|entry| entry.path());
    inside.filter(|path| path.join("partition").exists()).collect()
}

/// The verified root stands on two of its partitions.
fn holds_the_system(disk: &Path) -> bool {
    is_held(disk) || partitions(disk).iter().any(|partition| is_held(partition))
}

fn is_held(device: &Path) -> bool {
    fs::read_dir(device.join("holders")).is_ok_and(|mut holders| holders.next().is_some())
}

/// A mounted stick, until it is dropped.
pub(crate) struct Stick {
    device: PathBuf,
    kind: &'static str,
    at: PathBuf,
}

impl Stick {
    /// Mounts a device, if there is a file system that a stick may have.
    pub(crate) fn open(name: &str) -> Result<Self> {
        let (device, at) = (Path::new("/dev").join(name), PathBuf::from(MOUNT_POINT));
        fs::create_dir_all(&at)?;
        for kind in KINDS {
            if mount(&device, kind, &at, "ro").is_ok() {
                return Ok(Self { device, kind, at });
            }
        }
        bail!("{} has no file system that can be read", device.display())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.at
    }

    pub(crate) fn name(&self) -> String {
        self.device.display().to_string()
    }

    /// Puts a text on the stick, if it can be written to. Only for this it is mounted for writing.
    pub(crate) fn leave(self, file: &str, text: &str) -> Result<()> {
        self.fill(file, |mut file| Ok(file.write_all(text.as_bytes())?))
    }

    /// The same with what is written into the file that is handed out.
    pub(crate) fn fill(self, name: &str, write: impl FnOnce(&fs::File) -> Result<()>) -> Result<()> {
        let (device, kind, at) = (self.device.clone(), self.kind, self.at.clone());
        drop(self);
        if kind != "vfat" && kind != "exfat" {
            bail!("nothing is written to {kind}");
        }
        mount(&device, kind, &at, "rw")?;
        let stick = Self { device, kind, at };
        let file = fs::File::create(stick.at.join(name)).with_context(|| name.to_owned())?;
        write(&file)?;
        file.sync_all().and_then(|()| fs::File::open(&stick.at)?.sync_all()).with_context(|| name.to_owned())
    }
}

impl Drop for Stick {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(&self.at).stdin(Stdio::null()).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            // Nobody may be there to read it.
            let _ = writeln!(std::io::stderr(), "skerry: {} cannot be unmounted", self.device.display());
        }
    }
}

fn mount(device: &Path, kind: &str, at: &Path, access: &str) -> Result<()> {
    let mut mount = Command::new("mount");
    mount.args(["-t", kind, "-o", &options(kind, access)]).arg(device).arg(at);
    let status = mount.stdin(Stdio::null()).stderr(Stdio::null()).status().context("mount")?;
    if status.success() { Ok(()) } else { bail!("no {kind} on {}", device.display()) }
}

/// What is asked of the kernel, so that a stick has no say in it.
fn options(kind: &str, access: &str) -> String {
    // A journal that would have to be replayed stays as it is: nothing is written. And a stick that is broken, or says so,
    // does not stop the machine: ext4 does what is written on it otherwise.
    let more = if kind == "ext4" { ",noload,errors=continue" } else { "" };
    format!("{access},{STRICT}{more}")
}

/// A file at the top of the stick, and nothing else that has a name.
pub(crate) fn file(dir: &Path, name: &str) -> Result<PathBuf, String> {
    let path = dir.join(name);
    match fs::symlink_metadata(&path) {
        Ok(found) if found.is_file() => Ok(path),
        Ok(_) => Err(format!("{name}: is not a file")),
        Err(cause) => Err(format!("{name}: {cause}")),
    }
}

/// Reads a file of the stick, no longer than so many bytes.
pub(crate) fn read(dir: &Path, name: &str, max_bytes: u64) -> Result<String, String> {
    use std::io::Read as _;
    let wrong = |why: &dyn std::fmt::Display| format!("{name}: {why}");
    let path = file(dir, name)?;
    let mut bytes = Vec::new();
    let file = fs::File::open(&path).map_err(|cause| wrong(&cause))?;
    file.take(max_bytes + 1).read_to_end(&mut bytes).map_err(|cause| wrong(&cause))?;
    if bytes.len() as u64 > max_bytes {
        return Err(wrong(&format!("is longer than {max_bytes} bytes")));
    }
    String::from_utf8(bytes).map_err(|_| wrong(&"is not text"))
}

/// Update files at the top of a stick, by name.
pub(crate) fn update_files(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.ends_with(".skerry") && !name.starts_with('.'))
        .take(100)
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn device(sys: &Path, path: &str, files: &[(&str, &str)], held: bool) {
        let real = sys.join("devices").join(path);
        fs::create_dir_all(real.join("holders")).unwrap();
        for (name, text) in files {
            fs::write(real.join(name), text).unwrap();
        }
        if held {
            fs::write(real.join("holders/dm-0"), "").unwrap();
        }
        fs::create_dir_all(sys.join("class/block")).unwrap();
        symlink(&real, sys.join("class/block").join(real.file_name().unwrap())).unwrap();
    }

    #[test]
    fn the_system_and_what_is_no_medium_are_no_sticks() {
        let sys = tempfile::tempdir().unwrap();
        assert!(candidates(sys.path()).is_empty());
        let partition: &[(&str, &str)] = &[("partition", "1"), ("size", "8")];
        let disk: &[(&str, &str)] = &[("size", "8")];
        for (path, files, held) in [
            ("vda", disk, false),
            ("vda/vda1", partition, false),
            ("vda/vda2", partition, true),
            ("sda", disk, false),
            ("sda/sda1", partition, false),
            ("vdb", disk, false),
            ("sr0", &[("size", "0")], false),
            ("loop0", disk, false),
            ("dm-0", disk, false),
        ] {
            device(sys.path(), path, files, held);
        }
        assert_eq!(candidates(sys.path()), ["sda1", "vdb"]);
    }

    #[test]
    fn files_of_a_stick_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), "12345").unwrap();
        fs::write(dir.path().join("b"), [0xff]).unwrap();
        fs::create_dir(dir.path().join("c")).unwrap();
        symlink("/etc/hostname", dir.path().join("d")).unwrap();
        let read = |name: &str, max| super::read(dir.path(), name, max);
        assert_eq!(read("a", 5), Ok("12345".to_owned()));
        assert!(read("a", 4).is_err_and(|why| why == "a: is longer than 4 bytes"));
        assert!(read("b", 9).is_err() && read("c", 9).is_err() && read("d", 9).is_err() && read("e", 9).is_err());
    }

    #[test]
    fn only_a_file_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(&dir.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        symlink("/etc/hostname", dir.path().join("link")).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let file = |name: &str| super::file(dir.path(), name);
        assert_eq!(file("file"), Ok(dir.path().join("file")));
        assert_eq!(file("fifo"), Err("fifo: is not a file".to_owned()));
        assert!(file("link").is_err() && file("none").is_err());
    }

    #[test]
    fn a_stick_has_no_say_in_how_it_is_mounted() {
        for kind in KINDS {
            let options = options(kind, "ro");
            assert!(options.starts_with("ro,nosuid,nodev,noexec,nosymfollow"), "{options}");
            assert_eq!(options.ends_with(",noload,errors=continue"), kind == "ext4");
        }
    }

    #[test]
    fn update_files_are_listed() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.skerry", "a.skerry", ".hidden.skerry", "c.txt"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        fs::create_dir(dir.path().join("d.skerry")).unwrap();
        assert_eq!(update_files(dir.path()), ["a.skerry", "b.skerry"]);
    }
}
