//! The heroes of a room: whom to name it after when it has no name. Not here: counting members.

use ruma::{OwnedUserId, UserId};

/// The most heroes a summary names.
pub const MAX_HEROES: usize = 5;

/// The heroes for one user: the first members in the order given (that of their joining), never
/// the user themselves. Those who left or were banned stand in only when nobody else is there.
pub fn heroes(
    me: &UserId,
    joined_or_invited: impl IntoIterator<Item = OwnedUserId>,
    left_or_banned: impl IntoIterator<Item = OwnedUserId>,
) -> Vec<OwnedUserId> {
    let first = |users: &mut dyn Iterator<Item = OwnedUserId>| -> Vec<OwnedUserId> {
        users.filter(|user| user != me).take(MAX_HEROES).collect()
    };
    let present = first(&mut joined_or_invited.into_iter());
    if present.is_empty() { first(&mut left_or_banned.into_iter()) } else { present }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(names: &[&str]) -> Vec<OwnedUserId> {
        names.iter().map(|name| UserId::parse(format!("@{name}:a.test")).unwrap()).collect()
    }

    #[test]
    fn heroes_are_the_first_five_others() {
        let me = UserId::parse("@me:a.test").unwrap();
        let heroes = |present: &[&str], gone: &[&str]| super::heroes(&me, users(present), users(gone));
        assert_eq!(heroes(&["a", "me", "b"], &["c"]), users(&["a", "b"]));
        assert_eq!(heroes(&["f", "e", "me", "d", "c", "b", "a"], &[]), users(&["f", "e", "d", "c", "b"]));
        assert_eq!(heroes(&["me"], &["c", "me", "d"]), users(&["c", "d"]));
        assert_eq!(heroes(&["me"], &[]), users(&[]));
    }
}
