//! Whom a user lets invite them, as their account data says: `m.invite_permission_config` and its forerunners.

use ruma::UserId;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use store::Read;

use crate::error::{Error, ErrorCode, Result};
use crate::schema;

/// Refuses an invite that the invited user does not want.
pub fn check(read: &impl Read, inviter: &UserId, invitee: &UserId) -> Result<()> {
    let blocked = all(read, invitee)?.is_some_and(|all| all.blocks())
        || unstable_all(read, invitee)?.is_some_and(|all| all.block_all)
        || by_lists(read, invitee)?.is_some_and(|lists| lists.blocks(inviter));
    if blocked && inviter != invitee {
        let message = "This user does not want to be invited";
        return Err(Error::new(http::StatusCode::FORBIDDEN, ErrorCode::InviteBlocked, message));
    }
    Ok(())
}

#[derive(Deserialize)]
struct All {
    default_action: Option<String>,
}

impl All {
    fn blocks(&self) -> bool {
        self.default_action.as_deref() == Some("block")
    }
}

fn all(read: &impl Read, user_id: &UserId) -> Result<Option<All>> {
    config(read, user_id, "m.invite_permission_config")
}

#[derive(Deserialize)]
struct UnstableAll {
    #[serde(default)]
    block_all: bool,
}

fn unstable_all(read: &impl Read, user_id: &UserId) -> Result<Option<UnstableAll>> {
    config(read, user_id, "org.matrix.msc4380.invite_permission_config")
}

/// The first list that the inviter is on decides; those of users come before those of servers. An invite to be ignored
/// is refused as well: the user is not bothered either way.
#[derive(Deserialize)]
#[serde(default)]
struct Lists {
    enabled: bool,
    allowed_users: Vec<String>,
    ignored_users: Vec<String>,
    blocked_users: Vec<String>,
    allowed_servers: Vec<String>,
    ignored_servers: Vec<String>,
    blocked_servers: Vec<String>,
}

impl Default for Lists {
    fn default() -> Self {
        let none = Vec::new;
        Lists {
            enabled: true,
            allowed_users: none(),
            ignored_users: none(),
            blocked_users: none(),
            allowed_servers: none(),
            ignored_servers: none(),
            blocked_servers: none(),
        }
    }
}

impl Lists {
    fn blocks(&self, inviter: &UserId) -> bool {
        let (user, server) = (inviter.as_str(), inviter.server_name().as_str());
        let lists = [
            (&self.allowed_users, user, false),
            (&self.ignored_users, user, true),
            (&self.blocked_users, user, true),
            (&self.allowed_servers, server, false),
            (&self.ignored_servers, server, true),
            (&self.blocked_servers, server, true),
        ];
        let on = |patterns: &[String], text: &str| patterns.iter().any(|pattern| glob(pattern, text));
        let decides = lists.into_iter().find(|(patterns, text, _)| on(patterns, text));
        self.enabled && decides.is_some_and(|(_, _, blocks)| blocks)
    }
}

fn by_lists(read: &impl Read, user_id: &UserId) -> Result<Option<Lists>> {
    config(read, user_id, "org.matrix.msc4155.invite_permission_config")
}

/// Clients may write anything there; what cannot be read blocks nobody.
fn config<T: DeserializeOwned>(read: &impl Read, user_id: &UserId, kind: &str) -> Result<Option<T>> {
    let row = read.get(&schema::ACCOUNT_DATA, (user_id.as_str(), "", kind))?;
    Ok(row.and_then(|row| serde_json::from_slice(&row.0).ok()))
}

/// Whether a text is what a pattern says, in which `*` stands for anything and `?` for any character.
fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == '?' || text.get(t) == Some(c) => {
                p += 1;
                t += 1;
            }
            // The last star takes one character more.
            _ => {
                let Some((at, taken)) = star else { return false };
                star = Some((at, taken + 1));
                p = at + 1;
                t = taken + 1;
            }
        }
    }
    pattern.get(p..).unwrap_or_default().iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use ruma::user_id;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn patterns() {
        for (pattern, text, is) in [
            ("", "", true),
            ("*", "", true),
            ("a*c", "abc", true),
            ("a*c", "abcd", false),
            ("*a*b*", "xaxbx", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("@*:evil.*", "@m:evil.example", true),
            ("ab", "abc", false),
        ] {
            assert_eq!(glob(pattern, text), is, "{pattern} {text}");
        }
    }

    #[test]
    fn the_first_list_decides() {
        let blocks = |lists: Value| {
            let lists: Lists = serde_json::from_value(lists).unwrap();
            lists.blocks(user_id!("@bob:hs.test"))
        };
        assert!(!blocks(json!({})));
        assert!(blocks(json!({"blocked_users": ["@b*:hs.test"]})));
        assert!(blocks(json!({"ignored_servers": ["*"]})));
        assert!(!blocks(json!({"allowed_users": ["@bob:hs.test"], "blocked_servers": ["*"]})));
        assert!(!blocks(json!({"enabled": false, "blocked_servers": ["*"]})));
        assert!(blocks(json!({"blocked_users": ["@bob:hs.test"], "allowed_servers": ["hs.test"]})));
    }
}
