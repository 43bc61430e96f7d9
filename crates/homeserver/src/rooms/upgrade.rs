//! Replacing a room by one of another version, in one commit: the new room, the tombstone of the old one, and what moves
//! from one to the other (spec: Room Upgrades).
//!
//! What goes over is decided in the `rooms` crate. More bans than fit are carried over by a job. Not here: what users
//! keep about rooms, which moves when they join the new one.

use std::collections::BTreeSet;
use std::sync::Arc;

use ::rooms::build::Draft;
use ::rooms::create::{CreateRequest, InitialState, Person, Preset, plan};
use ::rooms::event::{Pdu, room_id_is_create_hash, rules};
use ::rooms::membership::Act;
use ::rooms::state::{Part, Select};
use ::rooms::upgrade::{Levels, TRANSFERRED, create_content, levels, tightened};
use ruma::events::{StateEventType, TimelineEventType};
use ruma::room_version_rules::RoomVersionRules;
use ruma::{CanonicalJsonObject, CanonicalJsonValue, OwnedRoomId, OwnedUserId, RoomId, RoomVersionId, UserId};
use serde_json::value::RawValue;
use store::{Pos, Read, Tx};

use super::create::random_room_id;
use super::membership::{Wish, carry_out, profile};
use super::read::RoomReader;
use super::send::content_from;
use super::write::{Appended, Origin, RoomTx};
use crate::App;
use crate::error::{Error, ErrorCode, Result};
use crate::schema::{self, Alias, JOBS, Job, MembershipState, RoomNr, room_nr};
use crate::stored::Head;

/// The most bans, and the most children of a space, that go over together with the room itself.
const MAX_AT_ONCE: usize = 100;
/// The most aliases that move.
const MAX_ALIASES: usize = 500;

/// Moves what a user keeps about one room to another, in the same commit.
pub type Follow = fn(&mut Tx, &UserId, &RoomId, &RoomId) -> Result<()>;

/// What somebody wants.
pub struct Upgrade<'a> {
    pub user_id: &'a UserId,
    pub room_id: &'a RoomId,
    pub version: RoomVersionId,
    /// Heard only where the version has creators.
    pub additional_creators: Vec<OwnedUserId>,
    pub follow: Follow,
}

/// Makes the new room and returns its ID.
pub async fn upgrade(app: &App, wanted: Upgrade<'_>) -> Result<OwnedRoomId> {
    let rules = rules(&wanted.version).ok_or_else(|| {
        let message = format!("Rooms of version {} are not supported", wanted.version);
        Error::bad_request(ErrorCode::UnsupportedRoomVersion, message)
    })?;
    let lane = app.lanes.of(wanted.room_id);
    let made = app.store.transact_in(Some(lane), |tx| make(app, tx, &wanted, rules)).await?;
    Ok(made.value)
}

fn make(app: &App, tx: &mut Tx, wanted: &Upgrade<'_>, rules: &'static RoomVersionRules) -> Result<OwnedRoomId> {
    let not_there = || Error::forbidden("You are not in this room");
    let old = RoomTx::open(app, tx, wanted.room_id)?.ok_or_else(not_there)?;
    if old.membership_of(wanted.user_id)? != MembershipState::Join {
        return Err(not_there());
    }
    if !old.power()?.allows_sending(wanted.user_id, &TimelineEventType::RoomTombstone, true) {
        return Err(Error::forbidden("You do not have the power to upgrade this room"));
    }
    let content = Inheritance::of(&old, wanted, rules)?;
    // In older versions the new room names the tombstone, and in newer ones its own ID is not known before it is made.
    let new_id = if room_id_is_create_hash(rules) {
        let new_id = found(app, tx, wanted, &content, None, None)?;
        bury(app, tx, wanted, &new_id)?;
        new_id
    } else {
        let new_id = random_room_id(app)?;
        let tombstone = bury(app, tx, wanted, &new_id)?;
        found(app, tx, wanted, &content, Some(new_id.clone()), Some(&tombstone))?
    };
    move_names(tx, wanted, &new_id, &content.aliases)?;
    if let Some(after) = content.more_bans {
        let (from, to) = (wanted.room_id.to_string(), new_id.to_string());
        let job = tx.next_pos();
        tx.put(&JOBS, job, &Job::CopyBans { from, to, by: wanted.user_id.to_string(), after: after.0 });
    }
    (wanted.follow)(tx, wanted.user_id, wanted.room_id, &new_id)?;
    Ok(new_id)
}

/// A state key and a content.
type Entry = (String, CanonicalJsonObject);

/// What the new room gets from the old one.
struct Inheritance {
    create: CanonicalJsonObject,
    levels: Option<Levels>,
    state: Vec<InitialState>,
    bans: Vec<Entry>,
    /// Where to go on with the bans.
    more_bans: Option<Pos>,
    /// The old room's aliases here.
    aliases: Vec<(String, Alias)>,
    rules: &'static RoomVersionRules,
}

impl Inheritance {
    fn of(old: &RoomTx<'_>, wanted: &Upgrade<'_>, rules: &'static RoomVersionRules) -> Result<Self> {
        let content = |kind: &str| -> Result<Option<CanonicalJsonObject>> {
            old.state(&StateEventType::from(kind), "")?.map(|pdu| content_of(&pdu.content)).transpose()
        };
        let entry = |kind: &str, state_key: &str, content| InitialState {
            kind: kind.into(),
            state_key: state_key.to_owned(),
            content,
        };
        let create = content("m.room.create")?.unwrap_or_default();
        let mut state = Vec::new();
        for kind in TRANSFERRED {
            state.extend(content(kind)?.or_else(|| unsaid(kind)).map(|content| entry(kind, "", content)));
        }
        let aliases = aliases(old)?;
        if let Some(named) = content("m.room.canonical_alias")?.and_then(|content| canonical(content, &aliases)) {
            state.push(entry("m.room.canonical_alias", "", named));
        }
        if create.get("type").and_then(CanonicalJsonValue::as_str) == Some("m.space") {
            let children = children(old.reader(), old.nr, &old.head)?;
            state.extend(children.into_iter().map(|(key, content)| entry("m.space.child", &key, content)));
        }
        let (bans, more_bans) = bans(old.reader(), old.nr, &old.head, Pos::ZERO)?;
        let creators = creators(wanted, rules);
        let levels = content("m.room.power_levels")?.map(|was| old_levels(old, &was, wanted, &creators)).transpose()?;
        Ok(Inheritance { create, levels, state, bans, more_bans, aliases, rules })
    }
}

fn old_levels(
    old: &RoomTx<'_>,
    was: &CanonicalJsonObject,
    wanted: &Upgrade<'_>,
    creators: &BTreeSet<OwnedUserId>,
) -> Result<Levels> {
    let old_creators = old.power()?.privileged_creators().cloned().collect();
    Ok(levels(was, wanted.user_id, &old_creators, creators))
}

/// The users whose power in the new room is not a number.
fn creators(wanted: &Upgrade<'_>, rules: &RoomVersionRules) -> BTreeSet<OwnedUserId> {
    if !rules.authorization.explicitly_privilege_room_creators {
        return BTreeSet::new();
    }
    wanted.additional_creators.iter().cloned().chain([wanted.user_id.to_owned()]).collect()
}

/// What a room is that says nothing about it: the new one says the same, and not what new rooms say.
fn unsaid(kind: &str) -> Option<CanonicalJsonObject> {
    let (name, value) = match kind {
        "m.room.join_rules" => ("join_rule", "invite"),
        "m.room.history_visibility" => ("history_visibility", "shared"),
        "m.room.guest_access" => ("guest_access", "forbidden"),
        _ => return None,
    };
    Some(CanonicalJsonObject::from([(name.to_owned(), CanonicalJsonValue::String(value.to_owned()))]))
}

fn content_of(content: &RawValue) -> Result<CanonicalJsonObject> {
    content_from(content.get().as_bytes())
}

fn aliases(old: &RoomTx<'_>) -> Result<Vec<(String, Alias)>> {
    let span = schema::ROOM_ALIASES.prefix((old.nr,)).limit(MAX_ALIASES);
    let names: Vec<String> =
        old.tx.scan(&schema::ROOM_ALIASES, span).keys().map(|key| Ok(key?.1)).collect::<Result<_>>()?;
    let mut aliases = Vec::new();
    for name in names {
        let row = old.tx.get(&schema::ALIASES, &name)?.filter(|row| row.room_id == old.room_id.as_str());
        aliases.extend(row.map(|row| (name, row)));
    }
    Ok(aliases)
}

/// The canonical alias event, as far as its aliases move.
fn canonical(mut content: CanonicalJsonObject, moving: &[(String, Alias)]) -> Option<CanonicalJsonObject> {
    let moves = |value: &CanonicalJsonValue| moving.iter().any(|(alias, _)| value.as_str() == Some(alias));
    content.retain(|name, value| match value {
        CanonicalJsonValue::Array(others) if name == "alt_aliases" => {
            others.retain(moves);
            !others.is_empty()
        }
        value => name == "alias" && moves(value),
    });
    (!content.is_empty()).then_some(content)
}

/// The children of a space: state keys and contents.
fn children<R: Read>(reader: RoomReader<'_, R>, room: RoomNr, head: &Head) -> Result<Vec<Entry>> {
    let mut children = Vec::new();
    for at in reader.state_positions(head.state, Select::Only(Part::Others))? {
        let is_child = |pdu: &Arc<Pdu>| pdu.kind == TimelineEventType::SpaceChild;
        let Some(pdu) = reader.pdu(room, head, at)?.filter(is_child) else { continue };
        let content = content_of(&pdu.content)?;
        if let (Some(key), Some(CanonicalJsonValue::Array(_))) = (&pdu.state_key, content.get("via")) {
            children.push((key.clone(), content));
        }
        if children.len() == MAX_AT_ONCE {
            break;
        }
    }
    Ok(children)
}

/// The bans whose events lie after a position, and where to go on after them.
fn bans<R: Read>(
    reader: RoomReader<'_, R>,
    room: RoomNr,
    head: &Head,
    after: Pos,
) -> Result<(Vec<Entry>, Option<Pos>)> {
    let mut members = reader.state_positions(head.state, Select::Only(Part::Members))?;
    members.retain(|at| *at > after);
    members.sort_unstable();
    let mut bans = Vec::new();
    for at in members {
        let banned = |pdu: &Arc<Pdu>| pdu.content_field::<&str>("membership") == Some("ban");
        let Some(pdu) = reader.pdu(room, head, at)?.filter(banned) else { continue };
        if let Some(user_id) = &pdu.state_key {
            let mut content = content_of(&pdu.content)?;
            content.retain(|name, _| name == "membership" || name == "reason");
            bans.push((user_id.clone(), content));
        }
        if bans.len() == MAX_AT_ONCE {
            return Ok((bans, Some(at)));
        }
    }
    Ok((bans, None))
}

/// Makes the new room.
fn found(
    app: &App,
    tx: &mut Tx,
    wanted: &Upgrade<'_>,
    content: &Inheritance,
    room_id: Option<OwnedRoomId>,
    tombstone: Option<&Appended>,
) -> Result<OwnedRoomId> {
    let (at, user_id) = (app.clock.now(), wanted.user_id);
    let last = tombstone.map(|tombstone| &*tombstone.event_id);
    let creators = &wanted.additional_creators;
    let request = CreateRequest {
        version: wanted.version.clone(),
        creator: Person { user_id: user_id.to_owned(), profile: profile(tx, user_id)? },
        preset: Preset::PrivateChat,
        creation_content: create_content(&content.create, wanted.room_id, last, creators, content.rules),
        power_level_content_override: content.levels.as_ref().map(|levels| levels.first.clone()).unwrap_or_default(),
        initial_state: content.state.clone(),
        canonical_alias: None,
        name: None,
        topic: None,
        invite: Vec::new(),
        is_direct: false,
        at,
    };
    let mut drafts = plan(request, content.rules).map_err(Error::internal)?.into_iter();
    let create = drafts.next().ok_or_else(|| Error::internal("a room without events"))?;
    let mut room = RoomTx::found(app, tx, &wanted.version, create, room_id)?;
    for draft in drafts {
        room.append(draft, Origin::default())?;
    }
    let state = |kind: &str, key: &str, content| Draft::state(kind, key, content, user_id.to_owned(), at);
    for (banned, content) in &content.bans {
        room.append(state("m.room.member", banned, content.clone()), Origin::default())?;
    }
    if let Some(levels) = content.levels.as_ref().filter(|levels| levels.first != levels.last) {
        room.append(state("m.room.power_levels", "", levels.last.clone()), Origin::default())?;
    }
    let new_id = room.room_id.clone();
    // Nothing is redacted here.
    let _ = room.finish();
    Ok(new_id)
}

/// Ends the old room: its tombstone, and as little to say in it as the user can bring about.
fn bury(app: &App, tx: &mut Tx, wanted: &Upgrade<'_>, new_id: &RoomId) -> Result<Appended> {
    let mut old = RoomTx::open(app, tx, wanted.room_id)?.ok_or_else(|| Error::internal("the room is gone"))?;
    let draft = |kind: &str, content| Draft::state(kind, "", content, wanted.user_id.to_owned(), app.clock.now());
    let text = |text: &str| CanonicalJsonValue::String(text.to_owned());
    let body = text("This room has been replaced");
    let tombstone = [("body".to_owned(), body), ("replacement_room".to_owned(), text(new_id.as_str()))];
    let tombstone = old.append(draft("m.room.tombstone", tombstone.into()), Origin::default())?;
    let power = old.power()?;
    let may = |kind: &str| power.allows_sending(wanted.user_id, &kind.into(), true);
    let named = old.state(&StateEventType::RoomCanonicalAlias, "")?.is_some_and(|pdu| pdu.content.get() != "{}");
    if named && may("m.room.canonical_alias") {
        old.append(draft("m.room.canonical_alias", CanonicalJsonObject::new()), Origin::default())?;
    }
    let levels = old.state(&StateEventType::RoomPowerLevels, "")?;
    let levels = levels.map(|pdu| content_of(&pdu.content)).transpose()?.unwrap_or_default();
    if let Some(levels) = tightened(&levels).filter(|_| may("m.room.power_levels")) {
        let attempt = old.append(draft("m.room.power_levels", levels), Origin::default());
        // Raising a level above one's own is not possible, and no reason not to go on.
        if let Err(cause) = attempt
            && cause.status() != http::StatusCode::FORBIDDEN
        {
            return Err(cause);
        }
    }
    // Nothing is redacted here.
    let _ = old.finish();
    Ok(tombstone)
}

/// The aliases and the place in the directory.
fn move_names(tx: &mut Tx, wanted: &Upgrade<'_>, new_id: &RoomId, aliases: &[(String, Alias)]) -> Result<()> {
    let (old, new) = (room_nr(wanted.room_id), room_nr(new_id));
    for (alias, row) in aliases {
        tx.put(&schema::ALIASES, alias, &Alias { room_id: new_id.to_string(), ..row.clone() });
        tx.delete(&schema::ROOM_ALIASES, (old, alias));
        tx.put(&schema::ROOM_ALIASES, (new, alias), &());
    }
    if tx.contains(&schema::PUBLIC_ROOMS, old)? {
        tx.delete(&schema::PUBLIC_ROOMS, old);
        tx.put(&schema::PUBLIC_ROOMS, new, &());
    }
    Ok(())
}

/// The room that this one replaces, if that one says so, too.
pub fn predecessor(room: &RoomTx<'_>) -> Result<Option<OwnedRoomId>> {
    let named = |pdu: &Pdu, field: &str| -> Option<OwnedRoomId> {
        let name = match field {
            "predecessor" => pdu.content_field::<serde_json::Value>(field)?.get("room_id")?.as_str()?.to_owned(),
            field => pdu.content_field::<String>(field)?,
        };
        RoomId::parse(name).ok()
    };
    let create = room.state(&StateEventType::RoomCreate, "")?;
    let Some(old) = create.and_then(|create| named(&create, "predecessor")) else { return Ok(None) };
    let reader = room.reader();
    let Some((nr, head)) = reader.head(&old)? else { return Ok(None) };
    let tombstone = reader.state_pdu(nr, &head, head.state, &StateEventType::RoomTombstone, "")?;
    let successor = tombstone.and_then(|tombstone| named(&tombstone, "replacement_room"));
    Ok((successor.as_deref() == Some(&*room.room_id)).then_some(old))
}

/// Carries over the next bans that did not fit. Returns where to go on.
pub async fn copy_bans(app: &App, from: &RoomId, to: &RoomId, by: &UserId, after: u64) -> Result<Option<u64>> {
    let (bans, next) = {
        let read = app.store.snapshot();
        let reader = RoomReader::new(&app.room_cache, &read);
        let Some((room, head)) = reader.head(from)? else { return Ok(None) };
        bans(reader, room, &head, Pos(after))?
    };
    for (banned, content) in bans {
        let Ok(target) = UserId::parse(&banned) else { continue };
        let reason = content.get("reason").and_then(CanonicalJsonValue::as_str).map(str::to_owned);
        let wish = Wish { actor: by, reason, ..Wish::own(Act::Ban, &target) };
        match carry_out(app, to, wish).await {
            // Whoever upgraded the room may have lost their power since, and a ban may be too large in another version.
            Err(cause) if !cause.status().is_client_error() => return Err(cause),
            _ => {}
        }
    }
    Ok(next.map(|at| at.0))
}
