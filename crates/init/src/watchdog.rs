//! The machine's watchdog: armed at once, so that a boot that hangs ends, too. systemd takes it over.
#![allow(unsafe_code, reason = "ioctls have no safe form")]

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::Path;

/// From here until systemd feeds it. Slow disks and emulated machines take long.
pub const TIMEOUT_SECONDS: i32 = 180;

nix::ioctl_readwrite!(set_timeout, b'W', 6, i32);

/// Opening it starts it. It is closed without the farewell that would stop it, so that it goes on counting. Many machines
/// have none: then this says so, and nothing else.
///
/// # Errors
/// A sentence for the log.
pub fn arm(device: &Path) -> Result<(), String> {
    let watchdog =
        File::options().write(true).open(device).map_err(|cause| format!("{}: {cause}", device.display()))?;
    let mut seconds = TIMEOUT_SECONDS;
    // SAFETY: the descriptor is open, and the kernel reads and writes one integer, which lives here.
    let outcome = unsafe { set_timeout(watchdog.as_raw_fd(), &raw mut seconds) };
    outcome.map(|_| ()).map_err(|cause| format!("{}: its time cannot be set: {cause}", device.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_watchdog_there_is_a_sentence() {
        assert!(arm(Path::new("/nonexistent/watchdog")).is_err());
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(arm(file.path()).is_err_and(|text| text.contains("its time cannot be set")));
    }
}
