//! The room directory: putting rooms into it, and what it tells of them.
//!
//! Rooms with the most members come first, and among equals the order is that of their numbers. A token names the room
//! that a page ends or begins with, so that pages stay in step while rooms come and go. Not here: aliases, and how the
//! order is kept (`directory`).

use std::cmp::Reverse;

use ruma::directory::{Filter, PublicRoomsChunk, PublicRoomsChunkInit};
use ruma::events::room::history_visibility::HistoryVisibility;
use ruma::room::RoomType;
use ruma::{OwnedMxcUri, OwnedRoomAliasId, RoomId, UInt, UserId};
use store::Read;

use crate::App;
use crate::error::{Error, Result};
use crate::rooms::aliases::has_power;
use crate::rooms::directory::Place;
use crate::rooms::read::RoomReader;
use crate::schema::{self, RoomNr, room_nr};
use crate::stored::Head;

/// The most rooms in one answer, and how many there are if nobody says.
const MAX_LIMIT: usize = 500;
const DEFAULT_LIMIT: usize = 100;
const MAX_NETWORK_ID_BYTES: usize = 255;

/// Whether a room is in the directory; `None` if it is not known.
pub fn is_listed(read: &impl Read, room_id: &RoomId) -> Result<Option<bool>> {
    let room = room_nr(room_id);
    let head = read.get(&schema::HEADS, room)?.filter(|head| head.room_id == room_id.as_str());
    head.map(|_| Ok(read.contains(&schema::PUBLIC_ROOMS, room)?)).transpose()
}

/// Puts a room into the directory, or takes it out.
pub async fn set_listed(app: &App, user_id: &UserId, admin: bool, room_id: &RoomId, listed: bool) -> Result<()> {
    let room = room_nr(room_id);
    app.store
        .transact(|tx| {
            if is_listed(tx, room_id)?.is_none() {
                return Err(Error::not_found("The room is not known"));
            }
            if !admin && !has_power(app, tx, room_id, user_id)? {
                return Err(Error::forbidden("You do not have the power to publish this room"));
            }
            if listed {
                tx.put(&schema::PUBLIC_ROOMS, room, &());
            } else {
                tx.delete(&schema::PUBLIC_ROOMS, room);
            }
            Ok(())
        })
        .await?;
    Ok(())
}

/// Puts a room into the directory of another network, or takes it out. `network`: the ID of the application service, and
/// the network's.
pub async fn set_listed_in(app: &App, network: (&str, &str), room_id: &RoomId, listed: bool) -> Result<()> {
    let (service_id, network_id) = network;
    if network_id.len() > MAX_NETWORK_ID_BYTES {
        return Err(Error::invalid_param(format!("A network's ID has at most {MAX_NETWORK_ID_BYTES} bytes")));
    }
    let room = room_nr(room_id);
    app.store
        .transact(|tx| {
            if is_listed(tx, room_id)?.is_none() {
                return Err(Error::not_found("The room is not known"));
            }
            if listed {
                tx.put(&schema::NETWORK_ROOMS, (service_id, network_id, room), &());
            } else {
                tx.delete(&schema::NETWORK_ROOMS, (service_id, network_id, room));
            }
            Ok(())
        })
        .await?;
    Ok(())
}

/// A page of the directory.
#[derive(Debug, Default)]
pub struct Listing {
    pub chunk: Vec<PublicRoomsChunk>,
    pub next_batch: Option<String>,
    pub prev_batch: Option<String>,
    /// How many rooms there are in all pages.
    pub total: usize,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Page<'a> {
    pub limit: Option<UInt>,
    pub since: Option<&'a str>,
    pub filter: &'a Filter,
}

/// Reads a page of the directory, whose rooms have these places.
pub fn list<R: Read>(reader: RoomReader<'_, R>, places: &[Place], page: Page<'_>) -> Result<Listing> {
    let limit = page.limit.map_or(DEFAULT_LIMIT, |limit| u64::from(limit) as usize).clamp(1, MAX_LIMIT);
    let mut matching = Vec::new();
    if !page.filter.is_empty() {
        for place in places {
            if matches(reader, place.1, page.filter)? {
                matching.push(*place);
            }
        }
    }
    let places = if page.filter.is_empty() { places } else { &matching };
    let total = places.len();
    let (from, to) = bounds(places, page.since.map(parse_since).transpose()?, limit);
    let mut listing = Listing { total, ..Listing::default() };
    let page = places.get(from..to).unwrap_or_default();
    listing.next_batch = page.last().filter(|_| to < total).map(|place| write_since(Way::Next, *place));
    listing.prev_batch = page.first().filter(|_| from > 0).map(|place| write_since(Way::Previous, *place));
    for (_, room) in page {
        if let Some(head) = reader.head_of(*room)? {
            listing.chunk.push(summary(reader, *room, &head)?);
        }
    }
    Ok(listing)
}

/// The places of the rooms in the directory of another network, with those of this one if all are asked for.
pub fn places_with<R: Read>(
    reader: RoomReader<'_, R>,
    here: &[Place],
    network: Option<(&str, &str)>,
) -> Result<Vec<Place>> {
    let span = match network {
        None => schema::NETWORK_ROOMS.all(),
        Some((service_id, network_id)) => schema::NETWORK_ROOMS.prefix((service_id, network_id)),
    };
    let keys = reader.read.scan(&schema::NETWORK_ROOMS, span).keys();
    let rooms: Vec<RoomNr> = keys.map(|key| key.map(|(_, _, room)| room)).collect::<store::Result<_>>()?;
    let heads = reader.read.multi_get(&schema::HEADS, rooms.iter().copied())?;
    let known = rooms.into_iter().zip(heads).filter_map(|(room, head)| Some((Reverse(head?.joined_members), room)));
    let mut places: Vec<Place> =
        known.filter(|(Reverse(members), _)| *members > 0).chain(here.iter().copied()).collect();
    places.sort_unstable();
    // A room in both has the same place twice.
    places.dedup();
    Ok(places)
}

fn matches<R: Read>(reader: RoomReader<'_, R>, room: RoomNr, filter: &Filter) -> Result<bool> {
    let Some(head) = reader.head_of(room)? else { return Ok(false) };
    let summary = summary(reader, room, &head)?;
    let kind = summary.room_type.as_ref().map(RoomType::as_str);
    if !filter.room_types.is_empty() && !filter.room_types.iter().any(|wanted| wanted.as_str() == kind) {
        return Ok(false);
    }
    let Some(term) = filter.generic_search_term.as_deref().map(str::trim).filter(|term| !term.is_empty()) else {
        return Ok(true);
    };
    let term = term.to_lowercase();
    let alias = summary.canonical_alias.as_ref().map(|alias| alias.as_str());
    let texts = [summary.name.as_deref(), summary.topic.as_deref(), alias];
    Ok(texts.into_iter().flatten().any(|text| text.to_lowercase().contains(&term)))
}

/// What anybody is told of a room in the directory.
pub fn summary<R: Read>(reader: RoomReader<'_, R>, room: RoomNr, head: &Head) -> Result<PublicRoomsChunk> {
    let pdu = |kind: &str| match reader.state_at(head.state, kind, "")? {
        Some(at) => reader.pdu(room, head, at),
        None => Ok(None),
    };
    let visibility = ::rooms::visibility::of(pdu("m.room.history_visibility")?.as_deref());
    let guests = text(pdu("m.room.guest_access")?.as_deref(), "guest_access");
    let mut summary = PublicRoomsChunk::from(PublicRoomsChunkInit {
        num_joined_members: head.joined_members.into(),
        room_id: RoomId::parse(&head.room_id).map_err(Error::internal)?,
        world_readable: visibility == HistoryVisibility::WorldReadable,
        guest_can_join: guests.as_deref() == Some("can_join"),
    });
    summary.name = text(pdu("m.room.name")?.as_deref(), "name");
    summary.topic = text(pdu("m.room.topic")?.as_deref(), "topic");
    let alias = text(pdu("m.room.canonical_alias")?.as_deref(), "alias");
    summary.canonical_alias = alias.and_then(|alias| OwnedRoomAliasId::try_from(alias).ok());
    summary.avatar_url = text(pdu("m.room.avatar")?.as_deref(), "url").map(OwnedMxcUri::from);
    summary.join_rule = ::rooms::membership::join_rule(pdu("m.room.join_rules")?.as_deref());
    summary.room_type = text(pdu("m.room.create")?.as_deref(), "type").map(RoomType::from);
    Ok(summary)
}

fn text(pdu: Option<&::rooms::Pdu>, field: &str) -> Option<String> {
    pdu?.content_field::<String>(field).filter(|text| !text.is_empty())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Next,
    Previous,
}

/// The rooms of a page, as indices in the list.
fn bounds(places: &[Place], since: Option<(Way, Place)>, limit: usize) -> (usize, usize) {
    let (from, to) = match since {
        None => (0, limit),
        Some((Way::Next, place)) => {
            let from = places.partition_point(|known| *known <= place);
            (from, from + limit)
        }
        Some((Way::Previous, place)) => {
            let to = places.partition_point(|known| *known < place);
            (to.saturating_sub(limit), to)
        }
    };
    (from.min(places.len()), to.min(places.len()))
}

fn write_since(way: Way, (Reverse(members), room): Place) -> String {
    let way = if way == Way::Next { 'n' } else { 'p' };
    format!("{way}{members}_{room}")
}

fn parse_since(since: &str) -> Result<(Way, Place)> {
    let parse = || {
        let (way, rest) = match since.strip_prefix('n') {
            Some(rest) => (Way::Next, rest),
            None => (Way::Previous, since.strip_prefix('p')?),
        };
        let (members, room) = rest.split_once('_')?;
        Some((way, (Reverse(members.parse().ok()?), room.parse().ok()?)))
    };
    parse().ok_or_else(|| Error::invalid_param("This is no token of this directory"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back() {
        for way in [Way::Next, Way::Previous] {
            let place = (Reverse(7), u64::MAX);
            assert_eq!(parse_since(&write_since(way, place)).unwrap(), (way, place));
        }
        for wrong in ["", "n", "x1_2", "n1", "n_2", "n1_", "n-1_2"] {
            assert!(parse_since(wrong).is_err(), "{wrong}");
        }
    }
}
