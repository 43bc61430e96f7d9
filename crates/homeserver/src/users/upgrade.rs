//! What a user keeps about a room, brought over to the room that replaced it: tags and other account data, the list of
//! direct chats, push rules.
//!
//! What the user has for the new room already stays. Not here: rooms.

use bytes::Bytes;
use ruma::push::{ConditionalPushRule, PushCondition, Ruleset, SimplePushRule};
use ruma::{OwnedRoomId, RoomId, UserId};
use serde_json::{Map, Value};
use store::{Read as _, Tx};

use super::account_data::{self, GLOBAL};
use super::push_rules;
use crate::error::Result;
use crate::schema::ACCOUNT_DATA_AT;

/// The most pieces of account data that are brought over, and the most bytes.
const MAX_KINDS: usize = 50;
const MAX_BYTES: usize = 128 * 1024;

/// Brings it over.
pub fn follow(tx: &mut Tx, user_id: &UserId, from: &RoomId, to: &RoomId) -> Result<()> {
    room_data(tx, user_id, from, to)?;
    direct(tx, user_id, from, to)?;
    rules(tx, user_id, from, to)
}

fn room_data(tx: &mut Tx, user_id: &UserId, from: &RoomId, to: &RoomId) -> Result<()> {
    let span = ACCOUNT_DATA_AT.prefix((user_id.as_str(), from.as_str())).limit(MAX_KINDS);
    let kinds: Vec<String> =
        tx.scan(&ACCOUNT_DATA_AT, span).keys().map(|key| key.map(|key| key.2)).collect::<store::Result<_>>()?;
    let mut left = MAX_BYTES;
    // Where one has read to is an event of the old room.
    for kind in kinds.iter().filter(|kind| *kind != "m.fully_read") {
        let Some(content) = account_data::get(tx, user_id, from.as_str(), kind)? else { continue };
        let known = account_data::get(tx, user_id, to.as_str(), kind)?.is_some();
        if !known && content.len() <= left {
            left -= content.len();
            account_data::put(tx, user_id, to.as_str(), kind, content)?;
        }
    }
    Ok(())
}

/// `m.direct` lists rooms by user.
fn direct(tx: &mut Tx, user_id: &UserId, from: &RoomId, to: &RoomId) -> Result<()> {
    const KIND: &str = "m.direct";
    let Some(content) = account_data::get(tx, user_id, GLOBAL, KIND)? else { return Ok(()) };
    // Clients may write anything there.
    let Ok(mut lists) = serde_json::from_slice::<Map<String, Value>>(&content) else { return Ok(()) };
    let mut changed = false;
    for list in lists.values_mut().filter_map(Value::as_array_mut) {
        let has = |room: &RoomId| list.iter().any(|entry| entry.as_str() == Some(room.as_str()));
        if has(from) && !has(to) {
            list.push(to.as_str().into());
            changed = true;
        }
    }
    if changed {
        account_data::put(tx, user_id, GLOBAL, KIND, Bytes::from(Value::Object(lists).to_string()))?;
    }
    Ok(())
}

fn rules(tx: &mut Tx, user_id: &UserId, from: &RoomId, to: &RoomId) -> Result<()> {
    let mut rules = push_rules::get(tx, user_id)?;
    if copy_rules(&mut rules, from, to) {
        push_rules::put(tx, user_id, rules)?;
    }
    Ok(())
}

/// Adds for each rule about one room the same about another. Says whether there were any.
fn copy_rules(rules: &mut Ruleset, from: &RoomId, to: &RoomId) -> bool {
    let about: Vec<SimplePushRule<OwnedRoomId>> =
        rules.room.iter().filter(|rule| rule.rule_id == *from).cloned().collect();
    let mut changed = false;
    for rule in about {
        changed |= rules.room.insert(SimplePushRule { rule_id: to.to_owned(), ..rule });
    }
    for set in [&mut rules.override_, &mut rules.underride] {
        let copies: Vec<ConditionalPushRule> = set.iter().filter_map(|rule| copy_rule(rule, from, to)).collect();
        for copy in copies {
            changed |= set.insert(copy);
        }
    }
    changed
}

fn copy_rule(rule: &ConditionalPushRule, from: &RoomId, to: &RoomId) -> Option<ConditionalPushRule> {
    let mut copy = rule.clone();
    let mut about = false;
    for condition in &mut copy.conditions {
        if let PushCondition::EventMatch(wanted) = condition
            && wanted.key == "room_id"
            && wanted.pattern == from.as_str()
        {
            wanted.pattern = to.to_string();
            about = true;
        }
    }
    if !about || rule.default {
        return None;
    }
    copy.rule_id = match rule.rule_id.contains(from.as_str()) {
        true => rule.rule_id.replace(from.as_str(), to.as_str()),
        false => format!("{}_{to}", rule.rule_id),
    };
    Some(copy)
}
