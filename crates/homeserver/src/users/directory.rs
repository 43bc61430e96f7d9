//! Finding users of this server by name.

use ruma::{OwnedUserId, UserId};
use store::Read;

use crate::error::{Error, Result};
use crate::schema::USERS;
use crate::users::profiles::{self, Shown};

/// Up to `limit` users whose name or display name contains the term, whatever its case; and whether there are more.
/// Reads all accounts: it is not for the threads that answer requests.
pub fn search(read: &impl Read, term: &str, limit: usize) -> Result<(Vec<(OwnedUserId, Shown)>, bool)> {
    let term = term.trim().to_lowercase();
    let mut found = Vec::new();
    for row in read.scan(&USERS, USERS.all()) {
        let (user_id, user) = row?;
        if user.deactivated || user.guest {
            continue;
        }
        let user_id = UserId::parse(user_id).map_err(Error::internal)?;
        let shown = profiles::shown(read, &user_id)?;
        let name = shown.displayname.as_deref().unwrap_or_default();
        if user_id.as_str().contains(&term) || name.to_lowercase().contains(&term) {
            if found.len() == limit {
                return Ok((found, true));
            }
            found.push((user_id, shown));
        }
    }
    Ok((found, false))
}
