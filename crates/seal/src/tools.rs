//! The programs that do the work, behind a trait, so that the order of things can be tried without a disk and a TPM.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use crate::{Failure, doing, place};

/// The opened data is called so.
const NAME: &str = "var";
/// What the kernel image says of who may sign kernels for this machine; put there by the initial file system.
const SIGNERS: &str = "/run/systemd/tpm2-pcr-public-key.pem";
/// Lies over the rule by which the data's partition is made.
const RULE: &str = "/run/repart.d/30-var.conf.d/50-sealed.conf";
/// A typed key, for as long as a program reads it. `/run` is memory.
const TYPED: &str = "/run/skerry-seal.key";
const ROUNDS: u32 = 200;
const ROUND: Duration = Duration::from_millis(50);

/// A machine, or what stands for one.
pub trait Tools {
    /// Whether there is a TPM.
    fn has_tpm(&self) -> bool;
    /// The data's partition, if it was made.
    ///
    /// # Errors
    /// When there is no disk that the root is on.
    fn partition(&mut self) -> Result<Option<PathBuf>, Failure>;
    /// Makes the partition of all that is left on the disk; encrypted, and bound to the TPM, if that is said.
    ///
    /// # Errors
    /// A sentence.
    fn make(&mut self, sealed: bool) -> Result<(), Failure>;
    /// Puts an empty file system in place of what is on a partition.
    ///
    /// # Errors
    /// A sentence.
    fn make_plain(&mut self, partition: &Path) -> Result<(), Failure>;
    /// # Errors
    /// When it cannot be read.
    fn is_locked(&self, partition: &Path) -> Result<bool, Failure>;
    /// Opens it with the TPM; the device that it became.
    ///
    /// # Errors
    /// When the TPM refuses.
    fn open_by_tpm(&mut self, partition: &Path) -> Result<PathBuf, Failure>;
    /// Opens it with a recovery key; the device that it became.
    ///
    /// # Errors
    /// When it is another one's.
    fn open_by_key(&mut self, partition: &Path, key: &str) -> Result<PathBuf, Failure>;
    /// Binds it to this machine's TPM, in place of whatever it was bound to.
    ///
    /// # Errors
    /// A sentence.
    fn bind(&mut self, partition: &Path, key: &str) -> Result<(), Failure>;
    /// Looks over the file system, and mends it without asking.
    ///
    /// # Errors
    /// When something is left that cannot be mended.
    fn check(&mut self, device: &Path) -> Result<(), Failure>;
}

/// The machine that this runs on.
#[derive(Debug)]
pub struct ThisMachine;

impl Tools for ThisMachine {
    fn has_tpm(&self) -> bool {
        place::has_tpm(Path::new("/sys"))
    }

    fn partition(&mut self) -> Result<Option<PathBuf>, Failure> {
        let (sys, dev) = (Path::new("/sys"), Path::new("/dev"));
        Ok(place::partition(sys, dev, &place::disk(sys)?).map(|name| dev.join(name)))
    }

    fn make(&mut self, sealed: bool) -> Result<(), Failure> {
        let disk = Path::new("/dev").join(place::disk(Path::new("/sys"))?);
        let mut repart = Command::new("systemd-repart");
        repart.arg("--dry-run=no");
        let _ = fs::remove_file(RULE);
        if sealed {
            fs::create_dir_all(Path::new(RULE).parent().unwrap_or(Path::new("/")))
                .and_then(|()| fs::write(RULE, "[Partition]\nEncrypt=tpm2\n"))
                .map_err(doing(RULE))?;
            repart.args(binding(Path::new(SIGNERS)));
        }
        run(repart.arg(&disk))?;
        // The kernel shows it when it has read the table again.
        for _ in 0..ROUNDS {
            if self.partition()?.is_some_and(|partition| partition.exists()) {
                return Ok(());
            }
            sleep(ROUND);
        }
        Err(Failure("the partition for the data does not show up".to_owned()))
    }

    fn make_plain(&mut self, partition: &Path) -> Result<(), Failure> {
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-L", NAME]).arg(partition))
    }

    fn is_locked(&self, partition: &Path) -> Result<bool, Failure> {
        place::is_locked(partition)
    }

    fn open_by_tpm(&mut self, partition: &Path) -> Result<PathBuf, Failure> {
        attach(partition, Path::new("-"), "tpm2-device=auto,headless=true,tries=1")
    }

    fn open_by_key(&mut self, partition: &Path, key: &str) -> Result<PathBuf, Failure> {
        with_key(key, |file| attach(partition, file, "headless=true,tries=1"))
    }

    fn bind(&mut self, partition: &Path, key: &str) -> Result<(), Failure> {
        with_key(key, |file| {
            // First: where another TPM holds a key for the same state, nothing would be added.
            run(Command::new("systemd-cryptenroll").arg("--wipe-slot=tpm2").arg(partition))?;
            let mut enroll = Command::new("systemd-cryptenroll");
            enroll.arg(format!("--unlock-key-file={}", file.display()));
            run(enroll.args(binding(Path::new(SIGNERS))).arg(partition))
        })
    }

    fn check(&mut self, device: &Path) -> Result<(), Failure> {
        // Nobody is there who could answer. One that was left in order is not looked at closely.
        // What it says is for the log, not for the console.
        let said = std::io::stderr().as_fd().try_clone_to_owned().map_err(doing("e2fsck"))?;
        let status = Command::new("e2fsck").arg("-y").arg(device).stdin(Stdio::null()).stdout(said).status();
        match status.map_err(doing("e2fsck"))?.code() {
            // Nothing was wrong, or it is mended.
            Some(0 | 1) => Ok(()),
            _ => Err(Failure(format!("the file system on {} is damaged", device.display()))),
        }
    }
}

/// A new recovery key for a partition that the TPM opens; the ones before open nothing any more.
///
/// # Errors
/// When the TPM does not open it.
pub fn recovery_key(partition: &Path) -> Result<String, Failure> {
    let mut enroll = Command::new("systemd-cryptenroll");
    enroll.args(["--unlock-tpm2-device=auto", "--recovery-key", "--wipe-slot=recovery"]).arg(partition);
    let out = quiet(&mut enroll).stderr(Stdio::inherit()).output().map_err(doing("systemd-cryptenroll"))?;
    let said = String::from_utf8_lossy(&out.stdout);
    let key = said.lines().find_map(crate::key::read);
    key.filter(|_| out.status.success()).ok_or_else(|| Failure("no recovery key could be made".to_owned()))
}

/// Takes the recovery key away.
///
/// # Errors
/// A sentence.
pub fn forget_recovery_key(partition: &Path) -> Result<(), Failure> {
    run(Command::new("systemd-cryptenroll").arg("--wipe-slot=recovery").arg(partition))
}

/// What data is bound to: the state of Secure Boot, and, where the kernel image names who signs kernels, to what they sign.
fn binding(signers: &Path) -> Vec<String> {
    let mut args = vec!["--tpm2-device=auto".to_owned(), "--tpm2-pcrs=7".into()];
    if signers.exists() {
        args.extend([format!("--tpm2-public-key={}", signers.display()), "--tpm2-public-key-pcrs=11".into()]);
    }
    args
}

fn attach(partition: &Path, key: &Path, options: &str) -> Result<PathBuf, Failure> {
    run(Command::new("systemd-cryptsetup").arg("attach").arg(NAME).arg(partition).arg(key).arg(options))?;
    Ok(Path::new("/dev/mapper").join(NAME))
}

/// Lays the key down where a program can read it, and takes it away.
fn with_key<T>(key: &str, work: impl FnOnce(&Path) -> Result<T, Failure>) -> Result<T, Failure> {
    let path = Path::new(TYPED);
    let _ = fs::remove_file(path);
    let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let outcome = match written.and_then(|mut file| file.write_all(key.as_bytes())) {
        Ok(()) => work(path),
        Err(cause) => Err(doing(TYPED)(cause)),
    };
    let _ = fs::remove_file(path);
    outcome
}

fn run(command: &mut Command) -> Result<(), Failure> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = quiet(command).stdout(Stdio::null()).status().map_err(doing(name.clone()))?;
    if status.success() { Ok(()) } else { Err(Failure(format!("{name} ended with {status}"))) }
}

/// Nobody is asked anything. Devices get their names from the kernel's word alone: udev's rules for them are not on the root.
fn quiet(command: &mut Command) -> &mut Command {
    command.env("DM_DISABLE_UDEV", "1").env("SYSTEMD_CRYPTSETUP_USE_TOKEN_MODULE", "0").stdin(Stdio::null())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_of_the_makers_open_it_where_their_key_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let signers = folder.path().join("key.pem");
        assert_eq!(binding(&signers), ["--tpm2-device=auto", "--tpm2-pcrs=7"]);
        fs::write(&signers, "").unwrap();
        let with = binding(&signers);
        assert_eq!(with[2], format!("--tpm2-public-key={}", signers.display()));
        assert_eq!(with[3], "--tpm2-public-key-pcrs=11");
    }
}
