//! Rate limits: one table of classes, one bucket per class and user (or address), in bounded memory.
//!
//! A bucket is one number, the time at which it would be full again (the generic cell rate algorithm).
//! Forgetting a bucket makes it full, so that the table may drop what it likes when it grows too large.

use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::{Mutex, RwLock};
use ruma::{OwnedUserId, UserId};
use store::{Read as _, Store};
use xxhash_rust::xxh3::Xxh3;

use crate::clock::Clock;
use crate::config::{Limit, RateLimits};
use crate::error::{Error, Result};
use crate::schema::{RATE_OVERRIDES, RateOverride};

/// What is limited together. Syncing is in no class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    Login,
    Register,
    Message,
    Join,
    Invite,
    CreateRoom,
    ToDevice,
    Media,
    Search,
    Other,
}

impl Class {
    /// All of them, one for each setting.
    pub const ALL: [Class; 10] = [
        Class::Login,
        Class::Register,
        Class::Message,
        Class::Join,
        Class::Invite,
        Class::CreateRoom,
        Class::ToDevice,
        Class::Media,
        Class::Search,
        Class::Other,
    ];
}

/// Whom a bucket belongs to.
#[derive(Clone, Copy, Debug, Hash)]
pub enum Owner<'a> {
    User(&'a UserId),
    Address(IpAddr),
    /// Anything else a handler wants to count, such as failed logins of one account name.
    Name(&'a str),
}

pub struct Limits {
    settings: RateLimits,
    clock: Clock,
    shards: [Mutex<Shard>; SHARDS],
    /// How often single users may send messages, whom an administrator allowed more or less than others.
    overrides: RwLock<HashMap<OwnedUserId, Limit>>,
}

/// Bucket to the time (nanoseconds of the monotonic clock) at which it is full again.
type Shard = HashMap<u64, u64>;

const SHARDS: usize = 16;
/// About 2 MiB for all shards together when full.
const MAX_PER_SHARD: usize = 4096;

impl Limits {
    pub fn new(settings: RateLimits, clock: Clock) -> Self {
        Self { settings, clock, shards: std::array::from_fn(|_| Mutex::default()), overrides: RwLock::default() }
    }

    /// Reads what administrators allowed single users. Once, before anything is limited.
    pub fn load(&self, store: &Store) -> Result<()> {
        let mut overrides = self.overrides.write();
        for row in store.snapshot().scan(&RATE_OVERRIDES, RATE_OVERRIDES.all()) {
            let (user_id, row) = row?;
            overrides.insert(UserId::parse(user_id).map_err(Error::internal)?, limit_of(&row));
        }
        Ok(())
    }

    /// Reads it again for one user, after it changed.
    pub fn refresh(&self, store: &Store, user_id: &UserId) -> Result<()> {
        // Read under the lock: of two changes the later one stays.
        let mut overrides = self.overrides.write();
        match store.snapshot().get(&RATE_OVERRIDES, user_id.as_str())? {
            Some(row) => overrides.insert(user_id.to_owned(), limit_of(&row)),
            None => overrides.remove(user_id),
        };
        Ok(())
    }

    /// Takes one out of the bucket, or says how long to wait.
    pub fn check(&self, class: Class, owner: Owner<'_>) -> Result<()> {
        match self.try_take(class, owner) {
            Ok(()) => Ok(()),
            Err(wait) => Err(Error::limit_exceeded(wait)),
        }
    }

    fn try_take(&self, class: Class, owner: Owner<'_>) -> Result<(), Duration> {
        let Limit::On { per_second, burst } = self.limit_for(class, owner) else { return Ok(()) };
        let interval = (1e9 / per_second) as u64;
        let depth = interval.saturating_mul(u64::from(burst));
        let now = u64::try_from(self.clock.monotonic().as_nanos()).unwrap_or(u64::MAX);
        let key = bucket(class, owner);

        let mut shard = self.shards[key as usize % SHARDS].lock();
        make_room(&mut shard, now);
        let full_at = shard.entry(key).or_insert(now);
        let next = (*full_at).max(now).saturating_add(interval);
        if next > now.saturating_add(depth) {
            return Err(Duration::from_nanos(next - now - depth));
        }
        *full_at = next;
        Ok(())
    }

    fn limit_for(&self, class: Class, owner: Owner<'_>) -> Limit {
        if let (Class::Message, Owner::User(user_id)) = (class, owner)
            && let Some(limit) = self.overrides.read().get(user_id)
        {
            return *limit;
        }
        self.limit(class)
    }

    fn limit(&self, class: Class) -> Limit {
        let settings = &self.settings;
        match class {
            Class::Login => settings.login,
            Class::Register => settings.register,
            Class::Message => settings.message,
            Class::Join => settings.join,
            Class::Invite => settings.invite,
            Class::CreateRoom => settings.create_room,
            Class::ToDevice => settings.to_device,
            Class::Media => settings.media,
            Class::Search => settings.search,
            Class::Other => settings.other,
        }
    }
}

fn limit_of(row: &RateOverride) -> Limit {
    match row.messages_per_second {
        0 => Limit::Off,
        per_second => Limit::per_second(f64::from(per_second), row.burst_count.max(1)),
    }
}

fn bucket(class: Class, owner: Owner<'_>) -> u64 {
    let mut hasher = Xxh3::new();
    class.hash(&mut hasher);
    match owner {
        Owner::Address(address) => network(address).hash(&mut hasher),
        owner => owner.hash(&mut hasher),
    }
    hasher.digest()
}

/// Whom an address stands for: a network of the new kind hands 2^64 of them to one subscriber.
pub fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(address) if address.to_ipv4_mapped().is_none() => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64))
        }
        address => address,
    }
}

fn make_room(shard: &mut Shard, now: u64) {
    if shard.len() >= MAX_PER_SHARD {
        shard.retain(|_, full_at| *full_at > now);
        if shard.len() >= MAX_PER_SHARD {
            shard.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(message: Limit) -> (Limits, Clock) {
        let clock = Clock::manual(1_000_000);
        (Limits::new(RateLimits { message, ..RateLimits::default() }, clock.clone()), clock)
    }

    #[test]
    fn pitfall_008_a_burst_then_a_trickle() {
        let (limits, clock) = limits(Limit::per_second(2.0, 5));
        let take = || limits.try_take(Class::Message, Owner::Name("a"));
        assert_eq!((0..5).filter(|_| take().is_ok()).count(), 5);
        assert_eq!(take().unwrap_err(), Duration::from_millis(500));
        // Asking while limited costs nothing.
        assert_eq!(take().unwrap_err(), Duration::from_millis(500));
        clock.advance(Duration::from_millis(500));
        assert!(take().is_ok());
        assert!(take().is_err());
        clock.advance(Duration::from_secs(60));
        assert_eq!((0..10).filter(|_| take().is_ok()).count(), 5);
    }

    #[test]
    fn owners_and_classes_do_not_share() {
        let (limits, _) = limits(Limit::per_second(1.0, 1));
        assert!(limits.check(Class::Message, Owner::Name("a")).is_ok());
        assert!(limits.check(Class::Message, Owner::Name("b")).is_ok());
        assert!(limits.check(Class::Join, Owner::Name("a")).is_ok());
        assert!(limits.check(Class::Message, Owner::Name("a")).is_err());
        let address = |text: &str| Owner::Address(text.parse().unwrap());
        assert!(limits.check(Class::Message, address("2001:db8::1")).is_ok());
        assert!(limits.check(Class::Message, address("2001:db8::2")).is_err());
        assert!(limits.check(Class::Message, address("2001:db8:0:1::2")).is_ok());
        // Those of the old kind, as listeners for both see them, are somebody each.
        assert!(limits.check(Class::Message, address("::ffff:192.0.2.1")).is_ok());
        assert!(limits.check(Class::Message, address("::ffff:192.0.2.2")).is_ok());
    }

    #[test]
    fn every_setting_is_that_of_one_class() {
        let settings = serde_json::to_value(RateLimits::default()).unwrap();
        let names: Vec<&String> = settings.as_object().unwrap().keys().collect();
        let mut classes = Vec::new();
        for name in &names {
            let mut one = settings.clone();
            one[name.as_str()] = serde_json::json!({ "per_second": 0.001, "burst": 1_234_567 });
            let limits = Limits::new(serde_json::from_value(one).unwrap(), Clock::manual(1));
            let is = |class: &Class| matches!(limits.limit(*class), Limit::On { burst: 1_234_567, .. });
            let found: Vec<Class> = Class::ALL.into_iter().filter(is).collect();
            assert_eq!(found.len(), 1, "{name}");
            classes.extend(found);
        }
        assert_eq!(classes.len(), Class::ALL.len());
    }

    #[test]
    fn a_class_can_be_off() {
        let (limits, _) = limits(Limit::Off);
        assert!((0..10_000).all(|_| limits.check(Class::Message, Owner::Name("a")).is_ok()));
    }

    #[test]
    fn memory_is_bounded() {
        let (limits, clock) = limits(Limit::per_second(1.0, 1));
        for n in 0..200_000 {
            let _ = limits.check(Class::Message, Owner::Name(&n.to_string()));
            clock.advance(Duration::from_millis(1));
        }
        assert!(limits.shards.iter().all(|shard| shard.lock().len() <= MAX_PER_SHARD));
    }
}
