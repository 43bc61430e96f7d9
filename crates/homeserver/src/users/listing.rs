//! All accounts of the server, as administrators look through them: filtered, sorted, with what is known of each.
//!
//! Reads every account. It is not for the threads that answer requests.

use std::cmp::Ordering;

use ruma::UserId;
use store::Read;

use crate::error::{Error, Result};
use crate::schema::{DEVICE_SEEN, USERS, User};
use crate::users::profiles::{self, Shown};

/// An account.
#[derive(Clone, Debug)]
pub struct Entry {
    pub user_id: String,
    pub user: User,
    pub shown: Shown,
    /// When one of the devices was last used, to within some minutes.
    pub last_seen_ts: Option<u64>,
}

/// Which accounts somebody looks for. What is absent does not matter.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// In the user ID.
    pub user_id: Option<String>,
    /// In the name before the colon, or in the display name.
    pub name: Option<String>,
    pub guests: Option<bool>,
    pub admins: Option<bool>,
    pub deactivated: Option<bool>,
    pub locked: Option<bool>,
    pub suspended: Option<bool>,
}

/// What accounts are sorted by. Equals are in the order of their IDs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    #[default]
    Name,
    Displayname,
    AvatarUrl,
    CreationTs,
    LastSeenTs,
    Admin,
    IsGuest,
    Deactivated,
    Erased,
    Locked,
    Suspended,
}

/// One account.
pub fn entry(read: &impl Read, user_id: &UserId, user: User) -> Result<Entry> {
    let mut last_seen_ts = None;
    for row in read.scan(&DEVICE_SEEN, DEVICE_SEEN.prefix((user_id.as_str(),))) {
        last_seen_ts = last_seen_ts.max(Some(row?.1.ts));
    }
    Ok(Entry { user_id: user_id.to_string(), shown: profiles::shown(read, user_id)?, last_seen_ts, user })
}

/// The accounts that somebody looks for.
pub fn list(read: &impl Read, wanted: &Wanted, order: Order, descending: bool) -> Result<Vec<Entry>> {
    let mut found = Vec::new();
    for row in read.scan(&USERS, USERS.all()) {
        let (user_id, user) = row?;
        if !wanted.takes(&user_id, &user) {
            continue;
        }
        let entry = entry(read, &UserId::parse(user_id).map_err(Error::internal)?, user)?;
        if wanted.takes_name(&entry) {
            found.push(entry);
        }
    }
    found.sort_by(|one, two| {
        let by = order.compare(one, two);
        if descending { by.reverse() } else { by }
    });
    Ok(found)
}

impl Wanted {
    fn takes(&self, user_id: &str, user: &User) -> bool {
        let is = |wanted: Option<bool>, flag: bool| wanted.is_none_or(|wanted| wanted == flag);
        // Asking for guests means guests as well.
        (self.guests != Some(false) || !user.guest)
            && is(self.admins, user.admin)
            && is(self.deactivated, user.deactivated)
            && is(self.locked, user.locked)
            && is(self.suspended, user.suspended)
            && self.user_id.as_ref().is_none_or(|part| user_id.contains(&part.to_lowercase()))
    }

    fn takes_name(&self, entry: &Entry) -> bool {
        let Some(name) = &self.name else { return true };
        let name = name.to_lowercase();
        let localpart = entry.user_id.split(':').next().unwrap_or_default();
        let shown = entry.shown.displayname.as_deref().unwrap_or_default();
        localpart.contains(&name) || shown.to_lowercase().contains(&name)
    }
}

impl Order {
    /// `None` for what accounts cannot be sorted by.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "name" | "id" => Self::Name,
            "displayname" => Self::Displayname,
            "avatar_url" => Self::AvatarUrl,
            "creation_ts" => Self::CreationTs,
            "last_seen_ts" => Self::LastSeenTs,
            "admin" => Self::Admin,
            "is_guest" => Self::IsGuest,
            "deactivated" => Self::Deactivated,
            "erased" => Self::Erased,
            "locked" => Self::Locked,
            "suspended" => Self::Suspended,
            _ => return None,
        })
    }

    fn compare(self, one: &Entry, two: &Entry) -> Ordering {
        match self {
            Self::Name => one.user_id.cmp(&two.user_id),
            Self::Displayname => one.shown.displayname.cmp(&two.shown.displayname),
            Self::AvatarUrl => one.shown.avatar_url.cmp(&two.shown.avatar_url),
            Self::CreationTs => one.user.created_ts.cmp(&two.user.created_ts),
            Self::LastSeenTs => one.last_seen_ts.cmp(&two.last_seen_ts),
            Self::Admin => one.user.admin.cmp(&two.user.admin),
            Self::IsGuest => one.user.guest.cmp(&two.user.guest),
            Self::Deactivated => one.user.deactivated.cmp(&two.user.deactivated),
            Self::Erased => one.user.erased.cmp(&two.user.erased),
            Self::Locked => one.user.locked.cmp(&two.user.locked),
            Self::Suspended => one.user.suspended.cmp(&two.user.suspended),
        }
    }
}
