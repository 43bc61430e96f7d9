//! `skerry clock`: the clock never stands before a time that this box has already seen.
//!
//! A box without a network and with an empty battery begins in 1970, or wherever. The floor is the highest of: when the
//! system was built, and when the time was last kept. Not here: keeping it exactly; an officer or a site's own means do that.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use homeserver::clock::Clock;
use homeserver::dirs;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

#[derive(Args)]
pub(crate) struct ClockArgs {
    /// Where the time is kept.
    #[arg(long, value_name = "FILE", default_value = "/var/lib/skerry-console/clock")]
    file: PathBuf,
    /// A file that was made with the system; its date is part of the floor.
    #[arg(long, value_name = "FILE", default_value = "/usr/lib/os-release")]
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

pub(crate) fn run(args: &ClockArgs) -> Result<ExitCode> {
    let now = Clock::system().now_ms() / 1000;
    let floor = floor(&args.file, &args.built);
    match args.verb {
        ClockVerb::Restore if now < floor => {
            println!("the clock stood at {now}, which is before {floor} that this box has seen: set to that");
            let time = TimeSpec::new(i64::try_from(floor)?, 0);
            clock_settime(ClockId::CLOCK_REALTIME, time).context("the clock cannot be set")?;
        }
        ClockVerb::Restore => println!("the clock stands at {now}, the floor is {floor}"),
        // A clock that was set back does not lower the floor.
        ClockVerb::Save => save(&args.file, now.max(floor))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// In seconds since 1970; 0 when nothing is known.
fn floor(file: &Path, built: &Path) -> u64 {
    let kept = fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok());
    let built = fs::metadata(built).and_then(|metadata| metadata.modified()).ok();
    let built = built.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok()).map(|time| time.as_secs());
    kept.into_iter().chain(built).max().unwrap_or(0)
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
    fn a_clock_that_is_right_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let none = dir.path().join("none");
        run(&ClockArgs { file: none.clone(), built: none, verb: ClockVerb::Restore }).unwrap();
    }
}
