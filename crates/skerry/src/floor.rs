//! `skerry clock`: the clock never stands before a time that this box has already seen.
//!
//! A box without a network and with an empty battery begins in 1970, or wherever. The floor is the highest of: when the
//! system was built, and when the time was last kept. A clock that once stood in the future does not raise it at once, and a
//! person at the console can set both. Not here: keeping it exactly; an officer or a site's own means do that.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use homeserver::clock::Clock;
use homeserver::dirs;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};
use time::OffsetDateTime;

use crate::bundle::moment as at;

const KEPT: &str = "/var/lib/skerry-console/clock";
const BUILT: &str = "/usr/lib/os-release";
/// The machine's own clock.
const RTC: &str = "/dev/rtc0";

#[derive(Args)]
pub(crate) struct ClockArgs {
    /// Where the time is kept.
    #[arg(long, value_name = "FILE", default_value = KEPT)]
    file: PathBuf,
    /// A file that was made with the system; its date is part of the floor.
    #[arg(long, value_name = "FILE", default_value = BUILT)]
    built: PathBuf,
    #[command(subcommand)]
    verb: ClockVerb,
}

#[derive(Subcommand)]
enum ClockVerb {
    /// Set the clock to the floor if it stands before it.
    Restore,
    /// Keep the time.
    Save,
}

/// A clock that goes well moves no further than this between two looks at it, however long a box was switched off for. A
/// longer step may be a clock that is wrong: it becomes part of the floor when the box has run for some days with it, since by
/// then somebody would have seen that nothing works.
const STEP_S: u64 = 30 * DAY_S;
const SETTLED_S: u64 = 7 * DAY_S;
const DAY_S: u64 = 24 * 3600;

pub(crate) fn run(args: &ClockArgs) -> Result<ExitCode> {
    let now = Clock::system().now_ms() / 1000;
    let floor = floor(&args.file, &args.built);
    match args.verb {
        ClockVerb::Restore if now < floor => {
            say(&format!(
                "the clock stood at {}, which is before {}, that this box has seen: set to that",
                at(now),
                at(floor)
            ));
            turn(floor)?;
        }
        ClockVerb::Restore => say(&format!("the clock stands at {}, the floor is {}", at(now), at(floor))),
        ClockVerb::Save => match next(floor, now, uptime_s()) {
            Some(next) => save(&args.file, next)?,
            None => say(&format!(
                "the clock stands at {}, long after {}, that this box has seen: kept when it has run for {} days",
                at(now),
                at(floor),
                SETTLED_S / DAY_S
            )),
        },
    }
    Ok(ExitCode::SUCCESS)
}

/// Sets the clock because somebody says what time it is, the floor with it, and the machine's own clock where there is one.
///
/// # Errors
/// The time is before the system was made, or the clock cannot be set. That the machine's own clock cannot be set is given back
/// as a sentence.
pub(crate) fn set(seconds: u64) -> Result<Option<String>> {
    let (file, built) = (Path::new(KEPT), Path::new(BUILT));
    let earliest = built_at(built).unwrap_or(0);
    if seconds < earliest {
        bail!("this system was made at {}: it cannot be earlier than that", at(earliest));
    }
    let before = Clock::system().now_ms() / 1000;
    // First: a clock that stood in the future must not leave its mark.
    save(file, seconds)?;
    turn(seconds)?;
    let own = OffsetDateTime::from_unix_timestamp(i64::try_from(seconds)?)?;
    let outcome = crate::rtc::set(Path::new(RTC), own);
    let log = format!("the clock was set by hand from {} to {}", at(before), at(seconds));
    let _ = writeln!(std::io::stderr(), "skerry: {log}");
    Ok(outcome.err())
}

fn turn(seconds: u64) -> Result<()> {
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::new(i64::try_from(seconds)?, 0)).context("the clock cannot be set")
}

fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// The next floor. It never falls: a clock that was set back does not lower it.
fn next(floor: u64, now: u64, uptime_s: u64) -> Option<u64> {
    (now <= floor.saturating_add(STEP_S) || uptime_s >= SETTLED_S).then_some(now.max(floor))
}

/// Since the machine started.
fn uptime_s() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |time| u64::try_from(time.tv_sec()).unwrap_or(0))
}

/// In seconds since 1970; 0 when nothing is known.
fn floor(file: &Path, built: &Path) -> u64 {
    let kept = fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok());
    kept.into_iter().chain(built_at(built)).max().unwrap_or(0)
}

fn built_at(built: &Path) -> Option<u64> {
    let built = fs::metadata(built).and_then(|metadata| metadata.modified()).ok()?;
    built.duration_since(std::time::UNIX_EPOCH).ok().map(|time| time.as_secs())
}

/// Written whole or not at all.
fn save(file: &Path, seconds: u64) -> Result<()> {
    dirs::replace(file, format!("{seconds}\n").as_bytes(), 0o666).context("the time cannot be kept")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_is_the_highest_and_never_falls() {
        let dir = tempfile::tempdir().unwrap();
        let (file, built) = (dir.path().join("clock"), dir.path().join("built"));
        assert_eq!(floor(&file, &built), 0);
        fs::write(&built, "").unwrap();
        let built_at = floor(&file, &built);
        assert!(built_at > 1_700_000_000);
        save(&file, built_at + 100).unwrap();
        assert_eq!(floor(&file, &built), built_at + 100);
        fs::write(&file, "nonsense").unwrap();
        assert_eq!(floor(&file, &built), built_at);
        let args = |verb| ClockArgs { file: file.clone(), built: built.clone(), verb };
        save(&file, 9_000_000_000).unwrap();
        run(&args(ClockVerb::Save)).unwrap();
        assert_eq!(floor(&file, &built), 9_000_000_000);
    }

    #[test]
    fn a_clock_that_was_once_in_the_future_does_not_stay_there() {
        let (kept, year) = (1_795_000_000, 365 * DAY_S);
        // Hour by hour, and after some weeks in a cupboard.
        assert_eq!(next(kept, kept + 3600, 60), Some(kept + 3600));
        assert_eq!(next(kept, kept + 29 * DAY_S, 60), Some(kept + 29 * DAY_S));
        // A dead chip says 2062, for hours or some days.
        assert_eq!(next(kept, kept + 36 * year, 60), None);
        assert_eq!(next(kept, kept + 36 * year, 6 * DAY_S), None);
        // Nobody minds: the box was switched off for two years.
        assert_eq!(next(kept, kept + 2 * year, 7 * DAY_S), Some(kept + 2 * year));
        assert_eq!(next(kept, kept - year, 7 * DAY_S), Some(kept));
        assert!(uptime_s() > 0);
    }

    #[test]
    fn a_clock_that_is_right_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let none = dir.path().join("none");
        run(&ClockArgs { file: none.clone(), built: none, verb: ClockVerb::Restore }).unwrap();
    }
}
