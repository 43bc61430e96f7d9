//! Mounting what the first seconds need, and changing over to the verified root.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot, execv};

use crate::{Failure, doing};

/// Where the verified root is before it becomes `/`.
pub const SYSROOT: &str = "/sysroot";
/// What is started there. There is no other choice.
pub const SYSTEMD: &str = "/usr/lib/systemd/systemd";

const STRICT: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC).union(MsFlags::MS_NODEV);

/// The kernel's own file systems: where, which, how.
const KERNEL: &[(&str, &str, MsFlags, Option<&str>)] = &[
    ("/proc", "proc", STRICT, None),
    ("/sys", "sysfs", STRICT, None),
    ("/dev", "devtmpfs", MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC), Some("mode=0755")),
    ("/run", "tmpfs", STRICT, Some("mode=0755")),
];

/// Mounts `/proc`, `/sys`, `/dev` and `/run`.
///
/// # Errors
/// When the kernel has one of them not.
pub fn mount_kernel() -> Result<(), Failure> {
    for (path, kind, flags, options) in KERNEL {
        fs::create_dir_all(path).map_err(doing(*path))?;
        mount(Some(*kind), *path, Some(*kind), *flags, *options).map_err(doing(format!("mounting {path}")))?;
    }
    Ok(())
}

/// What the kernel image brings for opening data with a TPM: which states of it the makers have signed, and their key. The
/// kernel's stub puts it here.
pub const PAPERS: &str = "/.extra";
/// Where systemd's programs look for it later.
pub const KEPT: &str = "/run/systemd";
const NAMES: [&str; 2] = ["tpm2-pcr-signature.json", "tpm2-pcr-public-key.pem"];

/// Takes along what would go with the initial file system. An image whose makers have no such key has nothing of it.
///
/// # Errors
/// When it is there and cannot be kept.
pub fn keep_papers(from: &Path, to: &Path) -> Result<(), Failure> {
    for name in NAMES {
        let paper = from.join(name);
        if paper.exists() {
            fs::create_dir_all(to).map_err(doing(to.display().to_string()))?;
            fs::copy(&paper, to.join(name)).map_err(doing(paper.display().to_string()))?;
        }
    }
    Ok(())
}

/// Mounts the verified device, read-only.
///
/// # Errors
/// When there is no erofs on it.
pub fn mount_root(device: &Path) -> Result<(), Failure> {
    fs::create_dir_all(SYSROOT).map_err(doing(SYSROOT))?;
    mount(Some(device), SYSROOT, Some("erofs"), MsFlags::MS_RDONLY, None::<&str>)
        .map_err(doing(format!("mounting {}", device.display())))
}

/// Mounts what every start has on the root besides: a place for temporary files, in memory. Done here, it takes no program
/// of its own that does it.
///
/// # Errors
/// When the root has no such folder.
pub fn mount_temporary() -> Result<(), Failure> {
    let place = format!("{SYSROOT}/tmp");
    mount(Some("tmpfs"), place.as_str(), Some("tmpfs"), STRICT, Some("mode=1777,size=64M"))
        .map_err(doing(format!("mounting {place}")))
}

/// Makes the verified root `/`, and becomes systemd.
///
/// # Errors
/// When the root lacks a folder to move to, or systemd.
pub fn change_over() -> Result<Infallible, Failure> {
    for (path, ..) in KERNEL {
        let to = format!("{SYSROOT}{path}");
        mount(Some(*path), to.as_str(), None::<&str>, MsFlags::MS_MOVE, None::<&str>)
            .map_err(doing(format!("moving {path} to {to}")))?;
    }
    chdir(SYSROOT).map_err(doing(SYSROOT))?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).map_err(doing("moving the root"))?;
    chroot(".").map_err(doing("changing the root"))?;
    chdir("/").map_err(doing("/"))?;
    let systemd = CString::new(SYSTEMD).map_err(doing(SYSTEMD))?;
    execv(&systemd, &[&systemd]).map_err(doing(SYSTEMD))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_opens_data_outlives_the_initial_file_system() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("extra"), folder.path().join("run/systemd"));
        keep_papers(&from, &to).unwrap();
        assert!(!to.exists());
        fs::create_dir_all(&from).unwrap();
        fs::write(from.join("tpm2-pcr-signature.json"), "{}").unwrap();
        fs::write(from.join("other"), "").unwrap();
        keep_papers(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(to.join("tpm2-pcr-signature.json")).unwrap(), "{}");
        assert_eq!(fs::read_dir(to).unwrap().count(), 1);
    }
}
