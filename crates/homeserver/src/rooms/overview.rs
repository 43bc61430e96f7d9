//! Rooms as administrators look through them: all of them, with what is known of each.
//!
//! Reads every room. It is not for the threads that answer requests.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::ops::ControlFlow;

use ::rooms::state::{Part, Select};
use ruma::{ServerName, UserId};
use serde::Serialize;
use serde_json::Value;
use store::{Pos, Read};

use super::read::RoomReader;
use super::shown::{content_field, membership};
use crate::error::Result;
use crate::schema::{EVENTS, HEADS, MEMBERSHIPS, MembershipState, PUBLIC_ROOMS, RoomNr};
use crate::stored::Head;

/// A room. Its fields are those that administration consoles know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Overview {
    pub room_id: String,
    pub name: Option<String>,
    pub canonical_alias: Option<String>,
    pub topic: Option<String>,
    pub avatar: Option<String>,
    pub joined_members: u32,
    pub joined_local_members: u32,
    pub version: String,
    pub creator: Option<String>,
    pub encryption: Option<String>,
    pub federatable: bool,
    pub public: bool,
    pub join_rules: Option<String>,
    pub guest_access: Option<String>,
    pub history_visibility: Option<String>,
    pub state_events: usize,
    pub room_type: Option<String>,
    pub tombstoned: bool,
    pub replacement_room: Option<String>,
}

/// Which rooms somebody looks for. What is absent does not matter.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// In the name or the alias, or the room ID.
    pub search_term: Option<String>,
    /// In the room directory, or not.
    pub public: Option<bool>,
    /// Nobody is in them, or somebody.
    pub empty: Option<bool>,
}

/// What rooms are sorted by. Equals are in the order of their IDs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    #[default]
    Name,
    CanonicalAlias,
    JoinedMembers,
    JoinedLocalMembers,
    Version,
    Creator,
    Encryption,
    Federatable,
    Public,
    JoinRules,
    GuestAccess,
    HistoryVisibility,
    StateEvents,
}

/// One room.
pub fn of<R: Read>(reader: RoomReader<'_, R>, room: RoomNr, head: &Head, server: &ServerName) -> Result<Overview> {
    let text = |kind: &str, field: &str| text(reader, room, head, kind, field);
    let create = reader.state_event(room, head.state, "m.room.create", "")?;
    let federate = create.as_ref().and_then(|create| content_field::<bool>(create, "m.federate"));
    let tombstone = reader.state_event(room, head.state, "m.room.tombstone", "")?;
    Ok(Overview {
        name: text("m.room.name", "name")?,
        canonical_alias: text("m.room.canonical_alias", "alias")?,
        topic: text("m.room.topic", "topic")?,
        avatar: text("m.room.avatar", "url")?,
        encryption: text("m.room.encryption", "algorithm")?,
        join_rules: text("m.room.join_rules", "join_rule")?,
        guest_access: text("m.room.guest_access", "guest_access")?,
        history_visibility: text("m.room.history_visibility", "history_visibility")?,
        joined_members: head.joined_members,
        joined_local_members: members(reader, room, head)?
            .iter()
            .filter(|user_id| UserId::parse(user_id.as_str()).is_ok_and(|user_id| user_id.server_name() == server))
            .count() as u32,
        version: head.version.to_string(),
        creator: create.as_ref().map(|create| create.sender().to_owned()),
        federatable: federate.unwrap_or(true),
        public: reader.read.contains(&PUBLIC_ROOMS, room)?,
        state_events: reader.state_positions(head.state, Select::All)?.len(),
        room_type: create.as_ref().and_then(|create| content_field(create, "type")),
        replacement_room: tombstone.as_ref().and_then(|event| content_field(event, "replacement_room")),
        tombstoned: tombstone.is_some(),
        room_id: head.room_id.clone(),
    })
}

/// The name of a room and its main alias, if it has them.
pub fn names<R: Read>(
    reader: RoomReader<'_, R>,
    room: RoomNr,
    head: &Head,
) -> Result<(Option<String>, Option<String>)> {
    let text = |kind: &str, field: &str| text(reader, room, head, kind, field);
    Ok((text("m.room.name", "name")?, text("m.room.canonical_alias", "alias")?))
}

fn text<R: Read>(
    reader: RoomReader<'_, R>,
    room: RoomNr,
    head: &Head,
    kind: &str,
    field: &str,
) -> Result<Option<String>> {
    let event = reader.state_event(room, head.state, kind, "")?;
    Ok(event.and_then(|event| content_field::<String>(&event, field)).filter(|text| !text.is_empty()))
}

/// Who is in a room, sorted.
pub fn members<R: Read>(reader: RoomReader<'_, R>, room: RoomNr, head: &Head) -> Result<Vec<String>> {
    let events = reader.state_events(room, head.state, Select::Only(Part::Members))?;
    let joined = events.iter().filter(|(_, event)| membership(event) == Some(MembershipState::Join));
    let mut members: Vec<String> = joined.filter_map(|(_, event)| event.state_key().map(str::to_owned)).collect();
    members.sort_unstable();
    Ok(members)
}

/// A room that somebody looks for, as far as it was read.
pub struct Found {
    pub room: RoomNr,
    pub head: Head,
    /// Only what the order needs.
    overview: Overview,
}

/// The rooms that somebody looks for. What is to be shown of each is for [`of`] to say.
pub fn list<R: Read>(
    reader: RoomReader<'_, R>,
    server: &ServerName,
    wanted: &Wanted,
    order: Order,
    descending: bool,
) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    for row in reader.read.scan(&HEADS, HEADS.all()) {
        let (room, head) = row?;
        if wanted.empty.is_some_and(|empty| empty != (head.joined_members == 0)) {
            continue;
        }
        let public = reader.read.contains(&PUBLIC_ROOMS, room)?;
        if wanted.public.is_some_and(|wanted| wanted != public) {
            continue;
        }
        let overview = if order.is_cheap() {
            Overview {
                room_id: head.room_id.clone(),
                name: text(reader, room, &head, "m.room.name", "name")?,
                canonical_alias: text(reader, room, &head, "m.room.canonical_alias", "alias")?,
                joined_members: head.joined_members,
                version: head.version.to_string(),
                public,
                ..Overview::default()
            }
        } else {
            of(reader, room, &head, server)?
        };
        if wanted.takes(&overview) {
            found.push(Found { room, head, overview });
        }
    }
    found.sort_by(|one, two| {
        let by = order.compare(&one.overview, &two.overview);
        let by = if descending { by.reverse() } else { by };
        by.then_with(|| one.overview.room_id.cmp(&two.overview.room_id))
    });
    Ok(found)
}

impl Wanted {
    fn takes(&self, room: &Overview) -> bool {
        let Some(term) = &self.search_term else { return true };
        let term = term.to_lowercase();
        let has = |text: &Option<String>| text.as_ref().is_some_and(|text| text.to_lowercase().contains(&term));
        has(&room.name) || has(&room.canonical_alias) || room.room_id.to_lowercase() == term
    }
}

impl Order {
    /// `None` for what rooms cannot be sorted by.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "name" | "id" | "alphabetical" => Self::Name,
            "canonical_alias" | "alias" => Self::CanonicalAlias,
            "joined_members" | "members" | "size" => Self::JoinedMembers,
            "joined_local_members" => Self::JoinedLocalMembers,
            "version" => Self::Version,
            "creator" => Self::Creator,
            "encryption" | "is_encrypted" => Self::Encryption,
            "federatable" => Self::Federatable,
            "public" => Self::Public,
            "join_rules" => Self::JoinRules,
            "guest_access" => Self::GuestAccess,
            "history_visibility" => Self::HistoryVisibility,
            "state_events" => Self::StateEvents,
            _ => return None,
        })
    }

    /// Whether it takes little to know.
    fn is_cheap(self) -> bool {
        matches!(self, Self::Name | Self::CanonicalAlias | Self::JoinedMembers | Self::Version | Self::Public)
    }

    fn compare(self, one: &Overview, two: &Overview) -> Ordering {
        match self {
            // Rooms without a name come last.
            Self::Name => (one.name.is_none(), &one.name).cmp(&(two.name.is_none(), &two.name)),
            Self::CanonicalAlias => (one.canonical_alias.is_none(), &one.canonical_alias)
                .cmp(&(two.canonical_alias.is_none(), &two.canonical_alias)),
            Self::JoinedMembers => one.joined_members.cmp(&two.joined_members),
            Self::JoinedLocalMembers => one.joined_local_members.cmp(&two.joined_local_members),
            Self::Version => version_key(&one.version).cmp(&version_key(&two.version)),
            Self::Creator => one.creator.cmp(&two.creator),
            Self::Encryption => one.encryption.cmp(&two.encryption),
            Self::Federatable => one.federatable.cmp(&two.federatable),
            Self::Public => one.public.cmp(&two.public),
            Self::JoinRules => one.join_rules.cmp(&two.join_rules),
            Self::GuestAccess => one.guest_access.cmp(&two.guest_access),
            Self::HistoryVisibility => one.history_visibility.cmp(&two.history_visibility),
            Self::StateEvents => one.state_events.cmp(&two.state_events),
        }
    }
}

/// Ten comes after nine.
fn version_key(version: &str) -> (Option<u32>, &str) {
    (version.parse().ok(), version)
}

// ---- what is in a room -------------------------------------------------------------------------------------------

/// The uploads that the events of a room show, as far as they are not encrypted. Avatars of members are not the room's.
pub fn uploads(read: &impl Read, room: RoomNr) -> Result<BTreeSet<String>> {
    let mut uploads = BTreeSet::new();
    for row in read.scan(&EVENTS, EVENTS.prefix((room,))) {
        let (_, event) = row?;
        if event.kind() == "m.room.member" {
            continue;
        }
        let info = content_field::<Value>(&event, "info").unwrap_or_default();
        let file = content_field::<Value>(&event, "file").unwrap_or_default();
        let url = content_field::<String>(&event, "url");
        let inside = [&info["thumbnail_url"], &info["thumbnail_file"]["url"], &file["url"]];
        uploads.extend(url);
        uploads.extend(inside.into_iter().filter_map(Value::as_str).map(str::to_owned));
    }
    uploads.retain(|url| url.starts_with("mxc://"));
    Ok(uploads)
}

/// How many bytes the events of each room take, largest first. Reads everything.
pub fn sizes(read: &impl Read, most: usize) -> Result<Vec<(String, u64)>> {
    let mut sizes = Vec::new();
    for row in read.scan(&HEADS, HEADS.all()) {
        let (room, head) = row?;
        let mut bytes = 0;
        read.visit(&EVENTS, EVENTS.prefix((room,)), |_, event| {
            bytes += event.len() as u64;
            ControlFlow::Continue(())
        })?;
        sizes.push((head.room_id, bytes));
    }
    sizes.sort_by(|(one, size), (two, other)| other.cmp(size).then_with(|| one.cmp(two)));
    sizes.truncate(most);
    Ok(sizes)
}

// ---- what a user did ---------------------------------------------------------------------------------------------

/// How many invites a user sent since a time, in the rooms that they are or were in. Reads these rooms.
pub fn sent_invites(read: &impl Read, user_id: &UserId, from_ts: u64) -> Result<usize> {
    let mut count = 0;
    for row in read.scan(&MEMBERSHIPS, MEMBERSHIPS.prefix((user_id.as_str(),))) {
        let ((_, room), _) = row?;
        for row in read.scan(&EVENTS, EVENTS.prefix((room,))) {
            let (_, event) = row?;
            let is_invite = event.kind() == "m.room.member"
                && event.sender() == user_id.as_str()
                && event.origin_server_ts >= from_ts
                && membership(&event) == Some(MembershipState::Invite);
            count += usize::from(is_invite);
        }
    }
    Ok(count)
}

/// How many of the rooms that a user is or was in they joined last since a time.
pub fn joins(read: &impl Read, user_id: &UserId, from_ts: u64) -> Result<usize> {
    let mut count = 0;
    for row in read.scan(&MEMBERSHIPS, MEMBERSHIPS.prefix((user_id.as_str(),))) {
        let ((_, room), membership) = row?;
        let Some(joined) = membership.joined.filter(|at| *at != Pos::ZERO) else { continue };
        let event = read.get(&EVENTS, (room, joined))?;
        count += usize::from(event.is_some_and(|event| event.origin_server_ts >= from_ts));
    }
    Ok(count)
}
