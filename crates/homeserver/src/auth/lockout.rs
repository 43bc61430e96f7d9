//! Accounts whose password is being guessed: after many wrong ones in a row the one who guesses may not try any more for a
//! while.
//!
//! Kept in bounded memory, by name, whether or not there is such an account: so nobody learns which there are. Guesses are
//! counted by where they come from, so that nobody can keep an owner out of their account by guessing. Not here: rate limits,
//! which also slow down those who have the right password.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::time::Duration;

use parking_lot::Mutex;

use crate::config;
use crate::error::{Error, Result};
use crate::limits::network;

/// The most pairs of a name and somebody who guesses that are remembered.
const MAX_KNOWN: usize = 16 * 1024;

pub struct Lockout {
    failures: u32,
    time: Duration,
    /// Names are as long as whoever guesses makes them: a hash is kept.
    hasher: RandomState,
    known: Mutex<HashMap<Key, Guesses>>,
}

/// Hashes of a name and of who guesses.
type Key = (u64, u64);

/// Who shows a password.
#[derive(Clone, Copy, Debug)]
pub enum Guesser<'a> {
    /// Somebody who is not logged in.
    At(IpAddr),
    /// A session of the account itself, by its device.
    Device(&'a str),
}

#[derive(Clone, Copy, Debug)]
struct Guesses {
    failures: u32,
    last_ms: u64,
}

impl Lockout {
    pub fn new(settings: &config::Auth) -> Self {
        Self {
            failures: settings.lockout_failures,
            time: settings.lockout_time.get(),
            hasher: RandomState::new(),
            known: Mutex::default(),
        }
    }

    /// Whether a password may be tried now.
    pub fn check(&self, name: &str, guesser: Guesser<'_>, now_ms: u64) -> Result<()> {
        let known = self.known.lock().get(&self.key(name, guesser)).copied();
        let left = known.filter(|known| self.locks(known)).map_or(0, |known| self.end(known).saturating_sub(now_ms));
        if left == 0 { Ok(()) } else { Err(Error::limit_exceeded(Duration::from_millis(left))) }
    }

    /// A password was tried.
    pub fn note(&self, name: &str, guesser: Guesser<'_>, fits: bool, now_ms: u64) {
        if self.failures == 0 {
            return;
        }
        let key = self.key(name, guesser);
        let mut all = self.known.lock();
        if fits {
            all.remove(&key);
            return;
        }
        if all.len() >= MAX_KNOWN && !all.contains_key(&key) {
            self.make_room(&mut all, now_ms);
        }
        let known = all.entry(key).or_insert(Guesses { failures: 0, last_ms: now_ms });
        // What is long ago does not count any more.
        let before = if self.end(*known) <= now_ms { 0 } else { known.failures };
        *known = Guesses { failures: before.saturating_add(1), last_ms: now_ms };
    }

    /// Forgets all guesses of the password of an account: it has another one now.
    pub fn forgive(&self, name: &str) {
        let name = self.hasher.hash_one(name);
        self.known.lock().retain(|(of, _), _| *of != name);
    }

    /// What has ended goes, or else the older half, and who is locked out goes last.
    fn make_room(&self, all: &mut HashMap<Key, Guesses>, now_ms: u64) {
        all.retain(|_, known| self.end(*known) > now_ms);
        if all.len() < MAX_KNOWN {
            return;
        }
        let rank = |known: &Guesses| (self.locks(known), known.last_ms);
        let mut ranks: Vec<_> = all.values().map(rank).collect();
        let (_, middle, _) = ranks.select_nth_unstable(MAX_KNOWN / 2);
        let middle = *middle;
        all.retain(|_, known| rank(known) > middle);
    }

    fn locks(&self, known: &Guesses) -> bool {
        self.failures > 0 && known.failures >= self.failures
    }

    fn key(&self, name: &str, guesser: Guesser<'_>) -> Key {
        let guesser = match guesser {
            Guesser::At(address) => self.hasher.hash_one(network(address)),
            Guesser::Device(device_id) => self.hasher.hash_one(device_id),
        };
        (self.hasher.hash_one(name), guesser)
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

    fn at(address: &str) -> Guesser<'static> {
        Guesser::At(address.parse().unwrap())
    }

    #[test]
    fn the_right_password_wipes_the_slate() {
        let (lockout, here) = (lockout(2), at("192.0.2.1"));
        for _ in 0..5 {
            lockout.note("a", here, false, 0);
            assert!(lockout.check("a", here, 0).is_ok());
            lockout.note("a", here, true, 0);
        }
    }

    #[test]
    fn guesses_of_long_ago_do_not_count() {
        let (lockout, here) = (lockout(2), at("192.0.2.1"));
        lockout.note("a", here, false, 0);
        lockout.note("a", here, false, 60_000);
        assert!(lockout.check("a", here, 60_000).is_ok());
        lockout.note("a", here, false, 61_000);
        assert!(lockout.check("a", here, 61_000).is_err());
        assert!(lockout.check("b", here, 61_000).is_ok());
        assert!(lockout.check("a", here, 121_000).is_ok());
    }

    #[test]
    fn who_guesses_keeps_only_themselves_out() {
        let lockout = lockout(1);
        lockout.note("a", at("2001:db8::1"), false, 0);
        assert!(lockout.check("a", at("2001:db8::2"), 0).is_err(), "the same network");
        for other in [at("2001:db8:0:1::1"), at("192.0.2.1"), Guesser::Device("D")] {
            assert!(lockout.check("a", other, 0).is_ok());
        }
        lockout.note("a", Guesser::Device("D"), false, 0);
        lockout.forgive("a");
        assert!(
            lockout.check("a", Guesser::Device("D"), 0).is_ok() && lockout.check("a", at("2001:db8::2"), 0).is_ok()
        );
    }

    #[test]
    fn little_is_remembered_of_a_guess_whatever_the_name() {
        // Nothing on the heap belongs to a row.
        assert!(!std::mem::needs_drop::<(Key, Guesses)>());
        let (lockout, here) = (lockout(2), at("192.0.2.1"));
        for nr in 0..2 * MAX_KNOWN as u64 {
            lockout.note(&nr.to_string(), here, false, nr / 1_000);
        }
        assert!(lockout.known.lock().len() <= MAX_KNOWN);
        let off = super::tests::lockout(0);
        off.note("a", here, false, 0);
        assert!(off.check("a", here, 0).is_ok());
    }

    #[test]
    fn fresh_names_do_not_wipe_out_who_is_locked() {
        let (lockout, here) = (lockout(2), at("192.0.2.1"));
        lockout.note("a", here, false, 0);
        lockout.note("a", here, false, 0);
        for nr in 0..4 * MAX_KNOWN as u64 {
            lockout.note(&nr.to_string(), here, false, 1 + nr / 1_000);
        }
        assert!(lockout.check("a", here, 100).is_err());
    }
}
