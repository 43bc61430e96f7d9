//! The machine's own clock, which goes on while it is switched off: it is set when a person has said what time it is.
#![allow(unsafe_code, reason = "ioctls have no safe form")]

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use time::OffsetDateTime;

/// As the kernel wants it (`struct rtc_time`): months from 0, years from 1900, always UTC.
#[repr(C)]
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct RtcTime {
    second: i32,
    minute: i32,
    hour: i32,
    day: i32,
    month: i32,
    year: i32,
    unused: [i32; 3],
}

nix::ioctl_write_ptr!(set_time, b'p', 0x0a, RtcTime);

impl From<OffsetDateTime> for RtcTime {
    fn from(to: OffsetDateTime) -> Self {
        Self {
            second: to.second().into(),
            minute: to.minute().into(),
            hour: to.hour().into(),
            day: to.day().into(),
            month: i32::from(u8::from(to.month())) - 1,
            year: to.year() - 1900,
            unused: [0; 3],
        }
    }
}

/// Sets it.
///
/// # Errors
/// A sentence: this machine has none, or it takes no time.
pub(crate) fn set(device: &Path, to: OffsetDateTime) -> Result<(), String> {
    let says = |cause: &dyn std::fmt::Display| format!("{}: {cause}", device.display());
    let clock = File::open(device).map_err(|cause| says(&cause))?;
    let to = RtcTime::from(to);
    // SAFETY: the descriptor is open, and the kernel reads one structure of this layout, which lives here.
    let outcome = unsafe { set_time(clock.as_raw_fd(), &raw const to) };
    outcome.map(|_| ()).map_err(|cause| says(&cause))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months_and_years_are_counted_as_the_kernel_does() {
        let to = OffsetDateTime::from_unix_timestamp(1_795_371_127).unwrap();
        let expected = RtcTime { second: 7, minute: 12, hour: 18, day: 22, month: 10, year: 126, unused: [0; 3] };
        assert_eq!(RtcTime::from(to), expected);
    }

    #[test]
    fn what_is_no_clock_says_so() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let to = OffsetDateTime::UNIX_EPOCH;
        assert!(set(file.path(), to).is_err() && set(Path::new("/dev/none"), to).is_err());
    }
}
