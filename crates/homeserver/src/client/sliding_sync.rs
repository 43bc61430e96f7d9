//! Sliding sync (MSC4186) as clients spoke it before it was merged: what a request says. What becomes of it is in the
//! module `sync::sliding`; how it is spoken since is in `sliding_sync_merged`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use ruma::RoomId;
use ruma::presence::PresenceState;
use serde::Deserialize;

use crate::auth::Access;
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response, Routes, json_response};
use crate::schema::{RoomNr, room_nr};
use crate::sync::sliding::assemble::{Dialect, Prefixed};
use crate::sync::sliding::config::{
    Config, Extensions, Filters, List, MAX_LISTS, MAX_TIMELINE, Messages, Required, RoomConfig, Scope,
};
use crate::sync::sliding::poll::{Poll, Terms};
use crate::sync::token::parse_position;

/// The client's name for a connection is no longer.
const MAX_CONN_ID: usize = 255;
const MAX_SUBSCRIPTIONS: usize = 2_000;
/// What is asked for is kept as long as the client comes back for more; so it is not large.
pub(super) const MAX_BODY_BYTES: usize = 256 * 1024;

pub fn routes() -> Routes {
    let paths = ["/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"];
    Routes::default().raw(Method::POST, &paths, sync).access(Access::Token).poll()
}

#[derive(Deserialize)]
struct Query {
    pos: Option<String>,
    timeout: Option<u64>,
    set_presence: Option<PresenceState>,
}

#[derive(Deserialize)]
struct Body {
    conn_id: Option<String>,
    txn_id: Option<String>,
    lists: Option<BTreeMap<String, ListBody>>,
    room_subscriptions: Option<BTreeMap<String, RoomBody>>,
    #[serde(default)]
    extensions: ExtensionsBody,
}

#[derive(Deserialize)]
struct RoomBody {
    #[serde(default)]
    timeline_limit: u64,
    #[serde(default)]
    required_state: Vec<(String, String)>,
}

#[derive(Deserialize)]
struct ListBody {
    #[serde(default)]
    ranges: Vec<(u64, u64)>,
    #[serde(flatten)]
    room: RoomBody,
    filters: Option<FiltersBody>,
}

#[derive(Default, Deserialize)]
struct FiltersBody {
    is_dm: Option<bool>,
    is_encrypted: Option<bool>,
    is_invite: Option<bool>,
    room_types: Option<Vec<Option<String>>>,
    not_room_types: Option<Vec<Option<String>>>,
    #[serde(flatten)]
    more: MoreFilters,
}

/// Filters that are the same in both dialects.
#[derive(Default, Deserialize)]
pub(super) struct MoreFilters {
    spaces: Option<Vec<String>>,
    tags: Option<Vec<String>>,
    not_tags: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
pub(super) struct ExtensionsBody {
    pub account_data: Option<ScopeBody>,
    pub receipts: Option<ScopeBody>,
    pub typing: Option<ScopeBody>,
    pub to_device: Option<ToDeviceBody>,
    pub e2ee: Option<ScopeBody>,
}

#[derive(Default, Deserialize)]
pub(super) struct ToDeviceBody {
    enabled: Option<bool>,
    limit: Option<u64>,
    since: Option<String>,
}

#[derive(Default, Deserialize)]
pub(super) struct ScopeBody {
    #[serde(default)]
    enabled: Option<bool>,
    lists: Option<Vec<String>>,
    rooms: Option<Vec<String>>,
}

/// The request is gone before anything is waited for.
fn sync(ctx: RawCtx) -> impl Future<Output = Result<Response>> + Send {
    let poll = Box::pin(begin(ctx));
    async move { Ok(json_response(StatusCode::OK, poll.await?.answer().await?)) }
}

async fn begin(mut ctx: RawCtx) -> Result<Box<Poll>> {
    let body: Body = ctx.read_json_within(MAX_BODY_BYTES).await?;
    let query: Query = ctx.query()?;
    let requester = ctx.requester()?;
    let (user_id, device_id) = (requester.user_id.clone(), requester.device_id.clone());
    let terms = Terms {
        pos: query.pos.filter(|pos| !pos.is_empty()),
        conn_id: connection_name(body.conn_id.clone())?,
        txn_id: body.txn_id.clone(),
        messages: body.extensions.messages()?,
        config: body.config(user_id.as_str())?,
        timeout: Duration::from_millis(query.timeout.unwrap_or(0)),
        presence: query.set_presence.unwrap_or_default(),
        dialect: Dialect::Early,
        prefixed: Prefixed::default(),
    };
    Poll::new(ctx.app, user_id, device_id, terms)
}

/// The client's name for a connection.
pub(super) fn connection_name(conn_id: Option<String>) -> Result<String> {
    let conn_id = conn_id.unwrap_or_default();
    if conn_id.len() > MAX_CONN_ID {
        return Err(Error::invalid_param("conn_id is too long"));
    }
    Ok(conn_id)
}

/// What is wanted of rooms, sorted. Rooms that do not exist are as good as rooms that cannot be seen.
pub(super) fn subscriptions<T>(
    rooms: BTreeMap<String, T>,
    read: impl Fn(T) -> Arc<RoomConfig>,
) -> Vec<(RoomNr, Arc<RoomConfig>)> {
    let known = |(room, config): (String, T)| Some((room_nr(&RoomId::parse(room).ok()?), read(config)));
    let mut subscriptions: Vec<_> = rooms.into_iter().filter_map(known).collect();
    subscriptions.sort_unstable_by_key(|(room, _)| *room);
    subscriptions
}

pub(super) fn timeline_limit(limit: u64) -> usize {
    usize::try_from(limit).unwrap_or(usize::MAX).min(MAX_TIMELINE)
}

pub(super) fn as_range((from, to): (u64, u64)) -> Result<(usize, usize)> {
    let as_place = |index: u64| usize::try_from(index).unwrap_or(usize::MAX);
    if from > to {
        return Err(Error::invalid_param("A range ends before it begins"));
    }
    Ok((as_place(from), as_place(to)))
}

impl Body {
    fn config(self, me: &str) -> Result<Config> {
        let lists = self.lists.unwrap_or_default();
        let rooms = self.room_subscriptions.unwrap_or_default();
        if lists.len() > MAX_LISTS || rooms.len() > MAX_SUBSCRIPTIONS {
            return Err(Error::invalid_param("Too many lists or subscriptions"));
        }
        let names: Vec<String> = lists.keys().cloned().collect();
        let lists = lists.into_iter().map(|(name, list)| Ok((name, list.read(me)?))).collect::<Result<_>>()?;
        let subscriptions = subscriptions(rooms, |room| room.read(me));
        Config { lists, subscriptions, extensions: self.extensions.read(&names)? }.checked()
    }
}

impl ExtensionsBody {
    /// Which extensions are wanted, given the names of the lists.
    pub(super) fn read(self, names: &[String]) -> Result<Extensions> {
        let ExtensionsBody { account_data, receipts, typing, to_device, e2ee } = self;
        let read = |scope: Option<ScopeBody>| {
            Ok::<_, Error>(scope.map(|scope| scope.read(names)).transpose()?.unwrap_or_default())
        };
        Ok(Extensions {
            account_data: read(account_data)?,
            receipts: read(receipts)?,
            typing: read(typing)?,
            to_device: to_device.is_some_and(|body| body.enabled == Some(true)),
            e2ee: e2ee.is_some_and(|body| body.enabled == Some(true)),
        })
    }

    /// The messages that are wanted, if any are.
    pub(super) fn messages(&self) -> Result<Option<Messages>> {
        let Some(body) = self.to_device.as_ref().filter(|body| body.enabled == Some(true)) else { return Ok(None) };
        let since = body.since.as_deref().filter(|since| !since.is_empty()).map(parse_position).transpose()?;
        let limit = body.limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
        Ok(Some(Messages { since, limit: limit.max(1) }))
    }
}

impl ListBody {
    fn read(self, me: &str) -> Result<List> {
        let ranges = self.ranges.into_iter().map(as_range).collect::<Result<_>>()?;
        let filters = self.filters.unwrap_or_default();
        let filters = Filters {
            is_dm: filters.is_dm,
            is_encrypted: filters.is_encrypted,
            is_invite: filters.is_invite,
            // Clients send an empty list where they mean that all will do.
            room_types: filters.room_types.filter(|types| !types.is_empty()),
            not_room_types: filters.not_room_types.unwrap_or_default(),
            ..filters.more.read()
        };
        Ok(List { ranges, room: self.room.read(me), filters })
    }
}

impl RoomBody {
    fn read(self, me: &str) -> Arc<RoomConfig> {
        let pairs = self.required_state.iter().map(|(kind, key)| (kind.as_str(), key.as_str()));
        let required = Required::from_pairs(pairs, me);
        Arc::new(RoomConfig { timeline_limit: timeline_limit(self.timeline_limit), required })
    }
}

impl MoreFilters {
    pub(super) fn read(self) -> Filters {
        let spaces =
            |ids: Vec<String>| ids.iter().filter_map(|id| RoomId::parse(id).ok()).map(|id| room_nr(&id)).collect();
        Filters {
            spaces: self.spaces.map(spaces),
            tags: self.tags,
            not_tags: self.not_tags.unwrap_or_default(),
            ..Filters::default()
        }
    }
}

impl ScopeBody {
    /// Names of lists that there are not, and rooms that are none, match nothing.
    fn read(self, names: &[String]) -> Result<Scope> {
        if self.enabled != Some(true) {
            return Ok(Scope::default());
        }
        let length = |list: &Option<Vec<String>>| list.as_ref().map_or(0, Vec::len);
        if length(&self.lists) > 2 * MAX_LISTS || length(&self.rooms) > MAX_SUBSCRIPTIONS {
            return Err(Error::invalid_param("An extension is wanted for too many lists or rooms"));
        }
        let all =
            |wanted: &Option<Vec<String>>| wanted.as_ref().is_none_or(|wanted| wanted.iter().any(|one| one == "*"));
        let wants_list = |name: &String| all(&self.lists) || self.lists.iter().flatten().any(|wanted| wanted == name);
        let lists = names.iter().enumerate().filter(|(_, name)| wants_list(name));
        let rooms = self.rooms.iter().flatten().filter_map(|room| RoomId::parse(room).ok());
        Ok(Scope {
            enabled: true,
            lists: lists.fold(0, |lists, (index, _)| lists | 1 << index),
            subscribed: all(&self.rooms),
            rooms: rooms.map(|room| room_nr(&room)).collect(),
        })
    }
}
