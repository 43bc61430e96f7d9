//! Push rules: the account data `m.push_rules`, as ruma's `Ruleset`.

use bytes::Bytes;
use ruma::UserId;
use ruma::push::Ruleset;
use serde::{Deserialize, Serialize};
use store::{Read, Tx};

use crate::error::{Error, Result};
use crate::users::account_data;

pub const KIND: &str = "m.push_rules";

#[derive(Serialize, Deserialize)]
struct Content {
    global: Ruleset,
}

/// The rules of a user, brought up to date with the server's own. Of what cannot be read nothing counts: then events go
/// by the server's rules, for this user as for everybody, and the user may put others.
pub fn get(read: &impl Read, user_id: &UserId) -> Result<Ruleset> {
    let default = Ruleset::server_default(user_id);
    let Some(stored) = account_data::get(read, user_id, account_data::GLOBAL, KIND)? else { return Ok(default) };
    let mut rules = match serde_json::from_slice::<Content>(&stored) {
        Ok(content) => content.global,
        Err(cause) => {
            tracing::warn!(user = %user_id, %cause, "push rules cannot be read: those of the server count");
            return Ok(default);
        }
    };
    rules.update_with_server_default(default);
    Ok(rules)
}

pub fn put(tx: &mut Tx, user_id: &UserId, rules: Ruleset) -> Result<()> {
    let content = serde_json::to_vec(&Content { global: rules }).map_err(Error::internal)?;
    account_data::put(tx, user_id, account_data::GLOBAL, KIND, Bytes::from(content))
}

/// The rules of a user, unless they are the ones that everybody starts with.
pub fn get_changed(read: &impl Read, user_id: &UserId) -> Result<Option<Ruleset>> {
    let Some(stored) = account_data::get(read, user_id, account_data::GLOBAL, KIND)? else { return Ok(None) };
    let json = |rules| serde_json::to_vec(&Content { global: rules }).map_err(Error::internal);
    let default = json(Ruleset::server_default(user_id))?;
    if *stored == *default {
        return Ok(None);
    }
    let rules = get(read, user_id)?;
    Ok((json(rules.clone())? != default).then_some(rules))
}

/// What a new account starts with.
pub fn set_default(tx: &mut Tx, user_id: &UserId) -> Result<()> {
    put(tx, user_id, Ruleset::server_default(user_id))
}
