//! What notified a user, newest first (spec: Push Notifications, listing notifications).
//!
//! Nothing is written down for this: the rooms a user is in are read backwards, side by side, and the push rules say
//! which events count. So a list is always what the rules of now make of the past.

use std::collections::{BinaryHeap, VecDeque};

use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use store::{Pos, Read as _, Snapshot};

use super::messages::style;
use crate::App;
use crate::auth::{Access, Requester};
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response, Routes, json_response};
use crate::push::counts::ReadUpTo;
use crate::push::pattern::Fuel;
use crate::push::rules::Facts;
use crate::rooms::read::RoomReader;
use crate::rooms::shown::Shown;
use crate::schema::{self, Membership, MembershipState, RoomNr};
use crate::stored::{Head, StoredEvent};
use crate::sync::live::Look;
use crate::sync::token;
use crate::sync::unread::{Beholder, RoomScene, read_up_to, thread_by};

const DEFAULT_LIMIT: usize = 20;
const MAX_LIMIT: usize = 100;
/// So many events are looked at for one page: then the page is shorter, and the next one goes on.
const MAX_EVENTS: usize = 5_000;
/// The same for the steps that the user's patterns take.
const MAX_STEPS: u64 = 50_000_000;
/// So many events of a room are read at a time.
const CHUNK: usize = 32;

pub fn routes() -> Routes {
    Routes::default()
        .raw(Method::GET, &["/_matrix/client/r0/notifications", "/_matrix/client/v3/notifications"], list)
        .access(Access::Token)
}

#[derive(Deserialize)]
struct Query {
    from: Option<String>,
    limit: Option<usize>,
    only: Option<String>,
}

async fn list(ctx: RawCtx) -> Result<Response> {
    let query: Query = ctx.query()?;
    let until = query.from.as_deref().map(token::parse_position).transpose()?.unwrap_or(Pos::MAX);
    let limit = query.limit.unwrap_or(DEFAULT_LIMIT).clamp(1, MAX_LIMIT);
    let highlights_only = query.only.as_deref() == Some("highlight");
    let (app, requester) = (&ctx.app, ctx.requester()?);
    let look = app.sync.live.get(&app.store, &requester.user_id).look(&app.store)?;
    let page = Page { app, requester, look: &look, rooms: RoomReader::new(&app.room_cache, &look.snapshot) };
    let (notifications, next) = page.read(until, limit, highlights_only)?;
    let mut body = json!({ "notifications": notifications });
    if let Some(next) = next {
        body["next_token"] = json!(token::position(next));
    }
    Ok(json_response(StatusCode::OK, body.to_string()))
}

struct Page<'a> {
    app: &'a App,
    requester: &'a Requester,
    look: &'a Look,
    rooms: RoomReader<'a, Snapshot>,
}

/// Until where rooms are to be read, by index: the newest first.
type Newest = BinaryHeap<(Pos, usize)>;

/// A room that is read backwards.
struct Room<'a> {
    nr: RoomNr,
    head: Head,
    membership: &'a Membership,
    /// Read already, newest first.
    events: VecDeque<(Pos, StoredEvent)>,
    read: Option<ReadUpTo>,
}

impl<'a> Page<'a> {
    /// Notifications at or before a position, and where the next page begins.
    fn read(&self, until: Pos, limit: usize, highlights_only: bool) -> Result<(Vec<Value>, Option<Pos>)> {
        let rules = self.look.tastes.rules(&self.look.snapshot, &self.look.user_id)?;
        let (mut rooms, mut newest) = self.open(until)?;
        let mut found = Vec::new();
        let (mut looked_at, fuel) = (0, Fuel::default());
        while let Some((at, index)) = newest.pop() {
            if found.len() == limit || looked_at == MAX_EVENTS || fuel.taken() > MAX_STEPS {
                return Ok((found, Some(at)));
            }
            let Some(room) = rooms.get_mut(index) else { continue };
            if room.events.is_empty() {
                self.read_on(room, at)?;
                newest.extend(room.events.front().map(|(at, _)| (*at, index)));
                continue;
            }
            let Some((at, event)) = room.events.pop_front() else { continue };
            looked_at += 1;
            let before = room.events.front().map(|(at, _)| *at).unwrap_or(Pos(at.0.saturating_sub(1)));
            newest.push((before, index));
            let ignored = event.state_key().is_none() && self.look.tastes.ignores(event.sender());
            if event.hidden() || event.redacted_by().is_some() || event.sender() == self.look.user_id || ignored {
                continue;
            }
            let facts = Facts::new(&event);
            let scene = RoomScene::new(self.rooms, room.nr, &room.head);
            let beholder = Beholder { user_id: &self.look.user_id, scene: &scene };
            let rule = rules.matching(&facts, &beholder, &fuel)?;
            let Some(rule) = rule.filter(|rule| rule.outcome.notify && (rule.outcome.highlight || !highlights_only))
            else {
                continue;
            };
            let actions = serde_json::to_value(rule.actions()).map_err(Error::internal)?;
            let thread = thread_by(self.rooms, room.nr, &facts)?;
            let read = self.read_up_to(room)?.of(thread.as_deref()) >= at;
            found.push(self.notification(room, at, event, &actions, read)?);
        }
        Ok((found, None))
    }

    /// The joined rooms, and until where each is to be read: the one with the newest event comes first.
    fn open(&self, until: Pos) -> Result<(Vec<Room<'a>>, Newest)> {
        let (mut rooms, mut newest) = (Vec::new(), Newest::new());
        for (nr, membership) in self.look.memberships.iter() {
            if membership.state != MembershipState::Join {
                continue;
            }
            let Some(head) = self.rooms.head_of(nr)? else { continue };
            newest.push((head.last.min(until), rooms.len()));
            rooms.push(Room { nr, head, membership, events: VecDeque::new(), read: None });
        }
        Ok((rooms, newest))
    }

    fn read_on(&self, room: &mut Room<'_>, until: Pos) -> Result<()> {
        let joined = room.membership.joined.unwrap_or_default();
        if until <= joined {
            return Ok(());
        }
        let span = schema::EVENTS.prefix((room.nr,)).after((room.nr, joined)).through((room.nr, until));
        let rows = self.look.snapshot.scan(&schema::EVENTS, span.reversed().limit(CHUNK));
        room.events = rows.map(|row| row.map(|((_, at), event)| (at, event))).collect::<store::Result<_>>()?;
        Ok(())
    }

    fn read_up_to<'r>(&self, room: &'r mut Room<'_>) -> Result<&'r ReadUpTo> {
        if room.read.is_none() {
            room.read = Some(read_up_to(self.rooms, &self.look.user_id, room.nr, room.membership)?);
        }
        Ok(room.read.get_or_insert_default())
    }

    fn notification(&self, room: &Room<'_>, at: Pos, event: StoredEvent, actions: &Value, read: bool) -> Result<Value> {
        let ts = event.origin_server_ts;
        let mut shown = Vec::new();
        let style = style(self.app, self.requester, <&ruma::RoomId>::try_from(room.head.room_id.as_str())?);
        Shown::plain(at, event).write(&mut shown, &style);
        let event: Box<RawValue> = serde_json::from_slice(&shown)?;
        let event = serde_json::to_value(event)?;
        Ok(json!({ "actions": actions, "event": event, "read": read, "room_id": room.head.room_id, "ts": ts }))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::testing::{Server, User};

    async fn list(user: &User, query: &str) -> Value {
        let answer = user.client.get(&format!("/_matrix/client/v3/notifications{query}")).await;
        assert_eq!(answer.status, 200, "{}", answer.json());
        answer.json()
    }

    fn bodies(list: &Value) -> Vec<String> {
        let all = list["notifications"].as_array().unwrap().iter();
        all.map(|one| one["event"]["content"]["body"].as_str().unwrap_or("?").to_owned()).collect()
    }

    async fn room(owner: &User, other: &User) -> String {
        let answer = owner.client.post("/_matrix/client/v3/createRoom", json!({ "preset": "public_chat" })).await;
        let room = answer.json()["room_id"].as_str().unwrap().to_owned();
        other.client.post(&format!("/_matrix/client/v3/join/{room}"), json!({})).await;
        room
    }

    async fn say(user: &User, room: &str, body: &str, more: Value) -> String {
        let mut content = json!({ "msgtype": "m.text", "body": body });
        content.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let path = format!("/_matrix/client/v3/rooms/{room}/send/m.room.message/{body}");
        user.client.put(&path, content).await.json()["event_id"].as_str().unwrap().to_owned()
    }

    #[tokio::test]
    async fn notifications_of_all_rooms_come_newest_first_page_by_page() {
        let server = Server::default();
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let (one, two) = (room(&alice, &bob).await, room(&alice, &bob).await);
        let mut expected = Vec::new();
        for nr in 0..40 {
            let body = format!("m{nr}");
            say(&alice, if nr % 3 == 0 { &one } else { &two }, &body, json!({})).await;
            say(&bob, &one, &format!("own{nr}"), json!({})).await;
            expected.insert(0, body);
        }
        let mut got = Vec::new();
        let mut page = list(&bob, "?limit=7").await;
        loop {
            assert!(bodies(&page).len() <= 7);
            got.extend(bodies(&page));
            let Some(next) = page["next_token"].as_str().map(str::to_owned) else { break };
            page = list(&bob, &format!("?limit=7&from={next}")).await;
        }
        assert_eq!(got, expected);
        assert!(list(&alice, "").await["notifications"].as_array().unwrap().len() > 7, "what bob wrote");
    }

    #[tokio::test]
    async fn a_notification_says_where_and_why_and_whether_it_was_read() {
        let server = Server::default();
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = room(&alice, &bob).await;
        let first = say(&alice, &room, "one", json!({})).await;
        let path = format!("/_matrix/client/v3/rooms/{room}/receipt/m.read/{first}");
        bob.client.post(&path, json!({})).await;
        say(&alice, &room, "two", json!({ "m.mentions": { "user_ids": [bob.user_id] } })).await;
        let gone = say(&alice, &room, "three", json!({})).await;
        alice.client.put(&format!("/_matrix/client/v3/rooms/{room}/redact/{gone}/r"), json!({})).await;
        let all = list(&bob, "").await;
        assert_eq!(bodies(&all), ["two", "one"]);
        let [two, one] = [&all["notifications"][0], &all["notifications"][1]];
        assert_eq!((&two["read"], &one["read"]), (&json!(false), &json!(true)));
        assert_eq!((&one["room_id"], &one["event"]["event_id"]), (&json!(room), &json!(first)));
        assert!(one["ts"].is_u64() && one["actions"].as_array().unwrap().contains(&json!("notify")));
        assert!(two["actions"].as_array().unwrap().contains(&json!({ "set_tweak": "highlight" })));
        assert_eq!(bodies(&list(&bob, "?only=highlight").await), ["two"]);
        assert_eq!(bob.client.get("/_matrix/client/v3/notifications?from=x").await.errcode(), "M_INVALID_PARAM");
    }

    #[tokio::test]
    async fn pitfall_037_notifications_leave_out_whom_the_user_ignores() {
        let server = Server::default();
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = room(&alice, &bob).await;
        say(&alice, &room, "one", json!({})).await;
        let path = format!("/_matrix/client/v3/user/{}/account_data/m.ignored_user_list", bob.user_id);
        bob.client.put(&path, json!({ "ignored_users": { alice.user_id: {} } })).await;
        assert!(bodies(&list(&bob, "").await).is_empty());
    }
}
