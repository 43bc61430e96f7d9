//! Who is in a room, and in which rooms a user is.
//!
//! A room of a thousand members is read in the order it lies on disk, and its events are copied, not parsed.

use http::{Method, StatusCode};
use ruma::RoomId;
use ruma::api::client::membership::joined_rooms;
use serde::Deserialize;
use serde_json::value::RawValue;
use store::{Pos, Read};

use ::rooms::state::{Part, Root, Select};

use super::messages::{array, style};
use crate::App;
use crate::auth::Access;
use crate::error::{Error, Result};
use crate::http::{Ctx, RawCtx, Response, Routes, json_response};
use crate::rooms::read::RoomReader;
use crate::rooms::shown::{Shown, content, string};
use crate::rooms::visibility::Reach;
use crate::schema::{self, MembershipState, RoomNr};
use crate::stored::StoredEvent;
use crate::sync::token;

pub fn routes() -> Routes {
    Routes::default()
        .raw(
            Method::GET,
            &["/_matrix/client/r0/rooms/{room_id}/members", "/_matrix/client/v3/rooms/{room_id}/members"],
            members,
        )
        .access(Access::Token)
        .guests()
        .raw(
            Method::GET,
            &["/_matrix/client/r0/rooms/{room_id}/joined_members", "/_matrix/client/v3/rooms/{room_id}/joined_members"],
            joined_members,
        )
        .access(Access::Token)
        .ruma(joined_rooms)
}

#[derive(Deserialize)]
struct MembersQuery {
    at: Option<String>,
    membership: Option<String>,
    not_membership: Option<String>,
}

async fn members(ctx: RawCtx) -> Result<Response> {
    let query: MembersQuery = ctx.query()?;
    let room_id = RoomId::parse(ctx.arg(0))?;
    let requester = ctx.requester()?;
    let wanted = parse_membership(query.membership.as_deref())?;
    let unwanted = parse_membership(query.not_membership.as_deref())?;
    let read = ctx.app.store.snapshot();
    let reader = RoomReader::new(&ctx.app.room_cache, &read);
    let reach = Reach::of(reader, &requester.user_id, &room_id)?;
    let root = match query.at.as_deref() {
        Some(at) => reach.state_at(reader, token::parse_position(at)?)?,
        None => reach.state(reader)?,
    };
    let mut events = member_events(&ctx.app, reader, reach.room, root)?;
    if wanted.is_some() || unwanted.is_some() {
        events.retain(|(_, event)| takes(wanted, unwanted, Member::of(event).membership()));
    }
    let style = style(&ctx.app, requester, &room_id);
    let mut out = Vec::with_capacity(512 * (events.len() + 1));
    out.extend_from_slice(b"{\"chunk\":");
    array(&mut out, events, |out, (at, event)| {
        Shown::plain(at, event).write(out, &style);
        Ok(())
    })?;
    out.push(b'}');
    Ok(json_response(StatusCode::OK, out))
}

fn parse_membership(membership: Option<&str>) -> Result<Option<MembershipState>> {
    let parse = |text| MembershipState::parse(text).ok_or_else(|| Error::invalid_param("There is no such membership"));
    membership.map(parse).transpose()
}

/// Both conditions together mean either of them.
fn takes(wanted: Option<MembershipState>, unwanted: Option<MembershipState>, is: Option<MembershipState>) -> bool {
    wanted.is_some_and(|wanted| is == Some(wanted)) || unwanted.is_some_and(|unwanted| is != Some(unwanted))
}

async fn joined_members(ctx: RawCtx) -> Result<Response> {
    let room_id = RoomId::parse(ctx.arg(0))?;
    let read = ctx.app.store.snapshot();
    let reader = RoomReader::new(&ctx.app.room_cache, &read);
    let reach = Reach::of_joined(reader, &ctx.requester()?.user_id, &room_id)?;
    let events = member_events(&ctx.app, reader, reach.room, reach.head.state)?;
    let mut out = Vec::with_capacity(160 * (events.len() + 1));
    out.extend_from_slice(b"{\"joined\":{");
    let mut first = true;
    for (_, event) in &events {
        let member = Member::of(event);
        let Some(user_id) = event.state_key().filter(|_| member.membership() == Some(MembershipState::Join)) else {
            continue;
        };
        if !std::mem::take(&mut first) {
            out.push(b',');
        }
        string(&mut out, user_id);
        member.write_profile(&mut out);
    }
    out.extend_from_slice(b"}}");
    Ok(json_response(StatusCode::OK, out))
}

/// The member events of a state, in the order they lie in.
fn member_events<R: Read>(
    app: &App,
    reader: RoomReader<'_, R>,
    room: RoomNr,
    root: Root,
) -> Result<Vec<(Pos, StoredEvent)>> {
    let mut positions: Vec<Pos> = reader.state_positions(root, Select::Only(Part::Members))?;
    positions.sort_unstable();
    app.sync.recent.state_events(reader, room, &positions)
}

/// What is looked at in the content of a member event.
#[derive(Default, Deserialize)]
struct Member<'e> {
    #[serde(borrow, default)]
    membership: Option<&'e RawValue>,
    #[serde(borrow, default)]
    displayname: Option<&'e RawValue>,
    #[serde(borrow, default)]
    avatar_url: Option<&'e RawValue>,
}

impl<'e> Member<'e> {
    fn of(event: &'e StoredEvent) -> Self {
        serde_json::from_str(content(event).get()).unwrap_or_default()
    }

    fn membership(&self) -> Option<MembershipState> {
        MembershipState::parse(self.membership?.get().trim_matches('"'))
    }

    /// As `:{"display_name":…,"avatar_url":…}`, without what is not there.
    fn write_profile(&self, out: &mut Vec<u8>) {
        let is_string = |value: &&RawValue| value.get().starts_with('"');
        let fields = [("display_name", self.displayname), ("avatar_url", self.avatar_url)];
        out.extend_from_slice(b":{");
        let mut first = true;
        for (name, value) in fields.into_iter().filter_map(|(name, value)| Some((name, value.filter(is_string)?))) {
            if !std::mem::take(&mut first) {
                out.push(b',');
            }
            string(out, name);
            out.push(b':');
            out.extend_from_slice(value.get().as_bytes());
        }
        out.push(b'}');
    }
}

async fn joined_rooms(ctx: Ctx<joined_rooms::v3::Request>) -> Result<joined_rooms::v3::Response> {
    let read = ctx.app.store.snapshot();
    let mut rooms = Vec::new();
    for row in read.scan(&schema::MEMBERSHIPS, schema::MEMBERSHIPS.prefix((ctx.requester.user_id.as_str(),))) {
        let ((_, room), membership) = row?;
        if membership.state == MembershipState::Join {
            rooms.push(room);
        }
    }
    let heads = read.multi_get(&schema::HEADS, rooms)?;
    let parse = |head: crate::stored::Head| RoomId::parse(head.room_id).map_err(Error::internal);
    Ok(joined_rooms::v3::Response::new(heads.into_iter().flatten().map(parse).collect::<Result<_>>()?))
}
