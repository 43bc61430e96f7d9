//! Accounts whose password is being guessed: after many wrong ones in a row nobody tries any more for a while.
//!
//! Kept in bounded memory, by name, whether or not there is such an account: so nobody learns which there are. Not here:
//! rate limits, which also slow down those who have the right password.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;

use crate::config;
use crate::error::{Error, Result};

/// The most names that are remembered.
const MAX_NAMES: usize = 16 * 1024;

pub struct Lockout {
    failures: u32,
    time: Duration,
    names: Mutex<HashMap<String, Guesses>>,
}

#[derive(Clone, Copy, Debug)]
struct Guesses {
    failures: u32,
    last_ms: u64,
}

impl Lockout {
    pub fn new(settings: &config::Auth) -> Self {
        Self { failures: settings.lockout_failures, time: settings.lockout_time.get(), names: Mutex::default() }
    }

    /// Whether a password may be tried now.
    pub fn check(&self, name: &str, now_ms: u64) -> Result<()> {
        let known = self.names.lock().get(name).copied();
        let locked = known.filter(|known| self.failures > 0 && known.failures >= self.failures);
        let left = locked.map_or(0, |known| self.end(known).saturating_sub(now_ms));
        if left == 0 { Ok(()) } else { Err(Error::limit_exceeded(Duration::from_millis(left))) }
    }

    /// A password was tried.
    pub fn note(&self, name: &str, fits: bool, now_ms: u64) {
        if self.failures == 0 {
            return;
        }
        let mut names = self.names.lock();
        if fits {
            names.remove(name);
            return;
        }
        if names.len() >= MAX_NAMES && !names.contains_key(name) {
            names.retain(|_, known| self.end(*known) > now_ms);
            if names.len() >= MAX_NAMES {
                names.clear();
            }
        }
        let known = names.entry(name.to_owned()).or_insert(Guesses { failures: 0, last_ms: now_ms });
        // What is long ago does not count any more.
        let before = if self.end(*known) <= now_ms { 0 } else { known.failures };
        *known = Guesses { failures: before.saturating_add(1), last_ms: now_ms };
    }

    fn end(&self, known: Guesses) -> u64 {
        known.last_ms.saturating_add(u64::try_from(self.time.as_millis()).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Span;

    fn lockout(failures: u32) -> Lockout {
        let settings =
            config::Auth { lockout_failures: failures, lockout_time: Span::seconds(60), ..config::Auth::default() };
        Lockout::new(&settings)
    }

    #[test]
    fn the_right_password_wipes_the_slate() {
        let lockout = lockout(2);
        for _ in 0..5 {
            lockout.note("a", false, 0);
            assert!(lockout.check("a", 0).is_ok());
            lockout.note("a", true, 0);
        }
    }

    #[test]
    fn guesses_of_long_ago_do_not_count() {
        let lockout = lockout(2);
        lockout.note("a", false, 0);
        lockout.note("a", false, 60_000);
        assert!(lockout.check("a", 60_000).is_ok());
        lockout.note("a", false, 61_000);
        assert!(lockout.check("a", 61_000).is_err());
        assert!(lockout.check("b", 61_000).is_ok());
        assert!(lockout.check("a", 121_000).is_ok());
    }

    #[test]
    fn names_are_forgotten_before_they_are_too_many() {
        let lockout = lockout(1);
        for nr in 0..2 * MAX_NAMES {
            lockout.note(&nr.to_string(), false, 0);
        }
        assert!(lockout.names.lock().len() <= MAX_NAMES);
        let off = super::tests::lockout(0);
        off.note("a", false, 0);
        assert!(off.check("a", 0).is_ok());
    }
}
