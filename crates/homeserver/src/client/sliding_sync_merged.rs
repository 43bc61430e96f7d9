//! Sliding sync (MSC4186) as it was merged, `/v4/sync`: what a request says. Everything is in its body. What becomes of
//! it is in the module `sync::sliding`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use ruma::presence::PresenceState;
use serde::Deserialize;

use super::sliding_sync::{
    ExtensionsBody, MAX_BODY_BYTES, MoreFilters, ScopeBody, ToDeviceBody, as_range, connection_name, subscriptions,
    timeline_limit,
};
use crate::auth::Access;
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response, Routes, json_response};
use crate::sync::sliding::assemble::{Dialect, Extension, Prefixed};
use crate::sync::sliding::config::{Config, Filters, List, MAX_LISTS, Pattern, Required, RoomConfig};
use crate::sync::sliding::poll::{Poll, Terms};

const MAX_SUBSCRIPTIONS: usize = 100;
const MAX_LIST_NAME: usize = 255;

pub fn routes() -> Routes {
    Routes::default().raw(Method::POST, &["/_matrix/client/v4/sync"], sync).access(Access::Token).poll()
}

#[derive(Deserialize)]
struct Body {
    conn_id: Option<String>,
    pos: Option<String>,
    timeout: Option<u64>,
    set_presence: Option<PresenceState>,
    #[serde(default)]
    lists: BTreeMap<String, ListBody>,
    #[serde(default)]
    room_subscriptions: BTreeMap<String, RoomBody>,
    #[serde(default)]
    extensions: AllExtensions,
}

#[derive(Deserialize)]
struct RoomBody {
    timeline_limit: u64,
    required_state: RequiredBody,
}

#[derive(Deserialize)]
struct ListBody {
    range: Option<(u64, u64)>,
    #[serde(flatten)]
    room: RoomBody,
    #[serde(default)]
    filters: FiltersBody,
}

#[derive(Deserialize)]
struct RequiredBody {
    #[serde(default)]
    include: Vec<Element>,
    #[serde(default)]
    exclude: Vec<Element>,
    #[serde(default)]
    lazy_members: bool,
}

#[derive(Deserialize)]
struct Element {
    #[serde(rename = "type")]
    kind: Option<String>,
    state_key: Option<String>,
}

#[derive(Default, Deserialize)]
struct FiltersBody {
    is_dm: Option<bool>,
    is_encrypted: Option<bool>,
    is_invited: Option<bool>,
    room_types: Option<Vec<Option<String>>>,
    #[serde(default)]
    not_room_types: Vec<Option<String>>,
    #[serde(flatten)]
    more: MoreFilters,
}

/// Under their own names, and under those of proposals.
#[derive(Default, Deserialize)]
struct AllExtensions {
    #[serde(flatten)]
    plain: ExtensionsBody,
    #[serde(rename = "org.matrix.msc4538.to_device")]
    to_device: Option<ToDeviceBody>,
    #[serde(rename = "org.matrix.msc4543.e2ee")]
    e2ee: Option<ScopeBody>,
    #[serde(rename = "org.matrix.msc3959.account_data")]
    account_data: Option<ScopeBody>,
    #[serde(rename = "org.matrix.msc3960.receipts")]
    receipts: Option<ScopeBody>,
    #[serde(rename = "org.matrix.msc4508.typing")]
    typing: Option<ScopeBody>,
}

/// The request is gone before anything is waited for.
fn sync(ctx: RawCtx) -> impl Future<Output = Result<Response>> + Send {
    let poll = Box::pin(begin(ctx));
    async move { Ok(json_response(StatusCode::OK, poll.await?.answer().await?)) }
}

async fn begin(mut ctx: RawCtx) -> Result<Box<Poll>> {
    let mut body: Body = ctx.read_json_within(MAX_BODY_BYTES).await?;
    let requester = ctx.requester()?;
    let (user_id, device_id) = (requester.user_id.clone(), requester.device_id.clone());
    let presence = body.set_presence.take().unwrap_or_default();
    if !matches!(presence, PresenceState::Online | PresenceState::Offline | PresenceState::Unavailable) {
        return Err(Error::invalid_param("This is no presence"));
    }
    let (extensions, prefixed) = std::mem::take(&mut body.extensions).read();
    let terms = Terms {
        pos: body.pos.take().filter(|pos| !pos.is_empty()),
        conn_id: connection_name(body.conn_id.take())?,
        txn_id: None,
        messages: extensions.messages()?,
        timeout: Duration::from_millis(body.timeout.unwrap_or(0)),
        config: body.config(extensions)?,
        presence,
        dialect: Dialect::Merged,
        prefixed,
    };
    Poll::new(ctx.app, user_id, device_id, terms)
}

impl Body {
    fn config(self, extensions: ExtensionsBody) -> Result<Config> {
        if self.lists.len() > MAX_LISTS || self.room_subscriptions.len() > MAX_SUBSCRIPTIONS {
            return Err(Error::invalid_param("Too many lists or subscriptions"));
        }
        let names: Vec<String> = self.lists.keys().cloned().collect();
        if !names.iter().all(|name| is_opaque(name)) {
            return Err(Error::invalid_param("This is no name for a list"));
        }
        let lists = self.lists.into_iter().map(|(name, list)| Ok((name, list.read()?))).collect::<Result<_>>()?;
        let subscriptions = subscriptions(self.room_subscriptions, RoomBody::read);
        Config { lists, subscriptions, extensions: extensions.read(&names)? }.checked()
    }
}

/// Whether a text is an opaque identifier (spec: Appendices).
fn is_opaque(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    !name.is_empty() && name.len() <= MAX_LIST_NAME && name.bytes().all(fits)
}

impl ListBody {
    fn read(self) -> Result<List> {
        let ranges = vec![self.range.map_or(Ok((0, usize::MAX)), as_range)?];
        let filters = Filters {
            is_dm: self.filters.is_dm,
            is_encrypted: self.filters.is_encrypted,
            is_invite: self.filters.is_invited,
            room_types: self.filters.room_types,
            not_room_types: self.filters.not_room_types,
            ..self.filters.more.read()
        };
        Ok(List { ranges, room: self.room.read(), filters })
    }
}

impl RoomBody {
    fn read(self) -> Arc<RoomConfig> {
        let RequiredBody { include, exclude, lazy_members } = self.required_state;
        let patterns = |elements: Vec<Element>| elements.into_iter().map(Element::read).collect();
        let required = Required::new(patterns(include), patterns(exclude), lazy_members);
        Arc::new(RoomConfig { timeline_limit: timeline_limit(self.timeline_limit), required })
    }
}

impl Element {
    fn read(self) -> Pattern {
        Pattern { kind: self.kind, key: self.state_key }
    }
}

impl AllExtensions {
    fn read(self) -> (ExtensionsBody, Prefixed) {
        let AllExtensions { mut plain, to_device, e2ee, account_data, receipts, typing } = self;
        let mut prefixed = Prefixed::default();
        if plain.to_device.is_none() && to_device.is_some() {
            plain.to_device = to_device;
            prefixed.add(Extension::ToDevice);
        }
        let scopes = [
            (&mut plain.e2ee, e2ee, Extension::E2ee),
            (&mut plain.account_data, account_data, Extension::AccountData),
            (&mut plain.receipts, receipts, Extension::Receipts),
            (&mut plain.typing, typing, Extension::Typing),
        ];
        for (plain, other, extension) in scopes {
            if plain.is_none() && other.is_some() {
                *plain = other;
                prefixed.add(extension);
            }
        }
        (plain, prefixed)
    }
}
