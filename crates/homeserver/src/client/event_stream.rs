//! `/events`: what happens from a place in the stream on. In one room, for those who look into it without being there
//! (room previews), or, as it was before there was `/sync`, in all rooms of a user.

use std::sync::Arc;
use std::time::Duration;

use ::rooms::timeline::Direction;
use http::{Method, StatusCode};
use ruma::{OwnedRoomId, RoomId};
use serde::Deserialize;
use store::{Pos, Read as _, Signal, Snapshot};

use super::messages::{Looking, array, position};
use crate::App;
use crate::auth::Access;
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response, Routes, json_response};
use crate::rooms::pages::{self, Wanted};
use crate::rooms::read::RoomReader;
use crate::rooms::relations::Gatherer;
use crate::rooms::shown::string;
use crate::rooms::visibility::{Eyes, Ignored, Reach};
use crate::schema::topic;
use crate::stored::StoredEvent;
use crate::sync::live::LiveUser;
use crate::sync::token;
use crate::sync::wait::MAX_TIMEOUT;

/// How long a request waits that does not say.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// Events in one answer.
const MAX_EVENTS: usize = 100;

pub fn routes() -> Routes {
    let paths = ["/_matrix/client/r0/events", "/_matrix/client/v3/events"];
    Routes::default().raw(Method::GET, &paths, events).access(Access::Token).guests().poll()
}

#[derive(Deserialize)]
struct Query {
    from: Option<String>,
    timeout: Option<u64>,
    room_id: Option<OwnedRoomId>,
}

/// The request is gone before anything is waited for.
fn events(ctx: RawCtx) -> impl Future<Output = Result<Response>> + Send {
    let watch = Watch::begin(&ctx);
    drop(ctx);
    async move { Ok(json_response(StatusCode::OK, watch?.answer().await?)) }
}

/// Where something may happen.
enum Place {
    Room(OwnedRoomId),
    /// All rooms of the user.
    Everywhere(Arc<LiveUser>),
}

/// Somebody who waits for events.
struct Watch {
    app: App,
    looking: Looking,
    place: Place,
    /// Moves when there may be something to see.
    signal: Arc<Signal>,
    /// As the client knows it.
    start: String,
    /// Everything up to here was seen.
    at: Pos,
    timeout: Duration,
}

/// Events of several rooms, in the order in which they happened.
struct Found<'a> {
    rooms: Vec<(Reach, Eyes<'a, Snapshot>)>,
    /// With the index of their room.
    events: Vec<(Pos, usize, StoredEvent)>,
    /// Nothing before this was left out.
    end: Pos,
}

impl Watch {
    fn begin(ctx: &RawCtx) -> Result<Self> {
        let query: Query = ctx.query()?;
        let (app, looking) = (ctx.app.clone(), Looking::of(ctx)?);
        let from = position(query.from.as_deref())?;
        if from.is_some_and(|from| from > app.store.tip()) {
            return Err(Error::invalid_param("This token is of a time that has not come"));
        }
        let (place, signal) = match query.room_id {
            Some(room_id) => {
                let room = watched(&app, &app.store.snapshot(), &looking, &room_id)?.room;
                let signal = app.store.hub().signal();
                app.store.hub().attach(topic::room(room), &signal);
                (Place::Room(room_id), signal)
            }
            None => {
                let live = app.sync.live.get(&app.store, looking.user_id());
                let signal = live.signal.clone();
                (Place::Everywhere(live), signal)
            }
        };
        let at = from.unwrap_or_else(|| app.store.snapshot().version());
        let start = query.from.filter(|_| from.is_some()).unwrap_or_else(|| token::position(at));
        let timeout = query.timeout.map_or(DEFAULT_TIMEOUT, Duration::from_millis).min(MAX_TIMEOUT);
        Ok(Watch { app, looking, place, signal, start, at, timeout })
    }

    /// Answers, when something happened or the time is over.
    async fn answer(mut self) -> Result<Vec<u8>> {
        let started = self.app.clock.monotonic();
        loop {
            let nudges = self.signal.nudges();
            if let Some(answer) = self.look()? {
                return Ok(answer);
            }
            let waited = self.app.clock.monotonic().saturating_sub(started);
            let left = self.timeout.saturating_sub(waited);
            if left.is_zero() || self.app.shutdown.is_cancelled() {
                return Ok(self.nothing());
            }
            tokio::select! {
                () = self.signal.changed(self.at, nudges) => {}
                () = self.app.clock.sleep(left) => {}
                () = self.app.shutdown.cancelled() => {}
            }
        }
    }

    /// One look at the store. If there is nothing, the watch moves on to where it looked.
    fn look(&mut self) -> Result<Option<Vec<u8>>> {
        let (read, rooms) = match &self.place {
            Place::Room(room_id) => {
                let read = self.app.store.snapshot();
                let reach = watched(&self.app, &read, &self.looking, room_id)?;
                (read, vec![reach])
            }
            Place::Everywhere(live) => {
                let look = live.look(&self.app.store)?;
                let reader = RoomReader::new(&self.app.room_cache, &look.snapshot);
                let mut rooms = Vec::new();
                for (room, _) in look.memberships.iter() {
                    let Some(head) = reader.head_of(room)?.filter(|head| head.last > self.at) else { continue };
                    let room_id = RoomId::parse(&head.room_id).map_err(Error::internal)?;
                    rooms.extend(Reach::of_any(reader, self.looking.user_id(), &room_id)?);
                }
                (look.snapshot, rooms)
            }
        };
        let ignored = self.looking.ignored(&read)?;
        let found = self.find(&read, rooms, &ignored)?;
        if found.events.is_empty() && found.end == read.version() {
            self.at = found.end;
            return Ok(None);
        }
        self.show(&read, &found, &ignored).map(Some)
    }

    /// What happened since, as far as one answer goes.
    fn find<'a>(&'a self, read: &'a Snapshot, rooms: Vec<Reach>, ignored: &Ignored) -> Result<Found<'a>> {
        let reader = RoomReader::new(&self.app.room_cache, read);
        let takes = |event: &StoredEvent| Ok(!ignored.hides(event));
        let mut found = Found { rooms: Vec::new(), events: Vec::new(), end: read.version() };
        for reach in rooms {
            let eyes = reach.eyes(reader, self.looking.user_id())?;
            let (direction, limit) = (Direction::Forward, MAX_EVENTS);
            let wanted = Wanted { direction, from: Some(self.at), to: Some(found.end), limit, takes: &takes };
            let page = pages::read(reader, &reach, &eyes, &wanted)?;
            let index = found.rooms.len();
            found.rooms.push((reach, eyes));
            found.end = found.end.min(page.end.unwrap_or(found.end));
            found.events.extend(page.events.into_iter().map(|(at, event)| (at, index, event)));
            found.events.sort_unstable_by_key(|(at, ..)| *at);
            if let Some((last, ..)) = found.events.get(MAX_EVENTS - 1) {
                found.end = found.end.min(*last);
            }
            let end = found.end;
            found.events.retain(|(at, ..)| *at <= end);
        }
        Ok(found)
    }

    fn show(&self, read: &Snapshot, found: &Found<'_>, ignored: &Ignored) -> Result<Vec<u8>> {
        let reader = RoomReader::new(&self.app.room_cache, read);
        let user_id = self.looking.user_id();
        let mut out = self.opened();
        array(&mut out, &found.events, |out, (at, index, event)| {
            let Some((reach, eyes)) = found.rooms.get(*index) else { return Ok(()) };
            let room_id = <&RoomId>::try_from(reach.head.room_id.as_str()).map_err(Error::internal)?;
            let style = self.looking.style(&self.app, room_id);
            Gatherer { reader, room: reach.room, eyes, user_id, ignored, style }.write(out, *at, event)
        })?;
        close(&mut out, found.end);
        Ok(out)
    }

    fn nothing(&self) -> Vec<u8> {
        let mut out = self.opened();
        out.extend_from_slice(b"[]");
        close(&mut out, self.at);
        out
    }

    fn opened(&self) -> Vec<u8> {
        let mut out = b"{\"start\":".to_vec();
        string(&mut out, &self.start);
        out.extend_from_slice(b",\"chunk\":");
        out
    }
}

fn close(out: &mut Vec<u8>, end: Pos) {
    out.extend_from_slice(b",\"end\":");
    string(out, &token::position(end));
    out.push(b'}');
}

/// The room, if the user may see what will happen there.
fn watched(app: &App, read: &Snapshot, looking: &Looking, room_id: &RoomId) -> Result<Reach> {
    Reach::of_watching(RoomReader::new(&app.room_cache, read), looking.user_id(), room_id)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::client::testing::*;
    use crate::testing::{Server, User, config};

    const EVENTS: &str = "/_matrix/client/v3/events";

    async fn watch(user: &User, room: &Room<'_>, more: &str) -> Value {
        ok(&user.client.get(&format!("{EVENTS}?room_id={}&{more}", enc(&room.id))).await)
    }

    fn seen(answer: &Value) -> Vec<&str> {
        ids(answer["chunk"].as_array().unwrap())
    }

    #[tokio::test]
    async fn who_looks_into_a_room_sees_what_happens_there() {
        let server = Server::default();
        let [alice, bob] = users(&server).await;
        let room = room_with_history(&alice, "world_readable").await;
        room.say("before").await;
        let now = watch(&bob, &room, "timeout=0").await;
        assert_eq!((seen(&now), &now["start"]), (Vec::new(), &now["end"]));
        let (one, two) = (room.say("one").await, room.say("two").await);
        let from = format!("timeout=0&from={}", now["end"].as_str().unwrap());
        let then = watch(&bob, &room, &from).await;
        assert_eq!((seen(&then), &then["start"]), (vec![one.as_str(), two.as_str()], &now["end"]));
        assert_eq!(then["chunk"][0]["room_id"], room.id);
        assert_eq!(
            seen(&watch(&bob, &room, &format!("timeout=0&from={}", then["end"].as_str().unwrap())).await).len(),
            0
        );
        // The token of a first look at the room goes on where that ended.
        let first = ok(&room.of(&bob).get("initialSync?limit=1").await);
        let last = room.say("last").await;
        let from = format!("timeout=0&from={}", first["messages"]["end"].as_str().unwrap());
        assert_eq!(seen(&watch(&bob, &room, &from).await), [last.as_str()]);
    }

    #[tokio::test]
    async fn a_watch_waits() {
        let server = Server::default();
        let [alice, bob] = users(&server).await;
        let room = room_with_history(&alice, "world_readable").await;
        let elsewhere = public_room(&alice).await;
        let waiting = watch(&bob, &room, "timeout=30000");
        let happening = async {
            elsewhere.say("not here").await;
            tokio::task::yield_now().await;
            room.say("here").await
        };
        let (answer, said) = tokio::join!(waiting, happening);
        assert_eq!(seen(&answer), [said.as_str()]);
    }

    #[tokio::test]
    async fn only_what_anybody_may_see_is_shown_to_those_outside() {
        let server = Server::default();
        let [alice, bob, carol] = users(&server).await;
        let (shared, open) = (public_room(&alice).await, room_with_history(&alice, "world_readable").await);
        let refusal = async |user: &User, room: &str| {
            refused(&user.client.get(&format!("{EVENTS}?timeout=0&room_id={}", enc(room))).await)
        };
        assert_eq!(refusal(&bob, &shared.id).await, forbidden());
        assert_eq!(refusal(&bob, "!nowhere:hs.test").await, forbidden());
        assert_eq!(refusal(&bob, "nonsense").await, (400, "M_INVALID_PARAM".to_owned()));
        shared.join(&carol).await;
        shared.of(&carol).leave().await;
        assert_eq!(refusal(&carol, &shared.id).await, forbidden());
        open.join(&carol).await;
        open.of(&carol).leave().await;
        let now = watch(&carol, &open, "timeout=0").await;
        let said = open.say("who left may look as others may").await;
        let from = format!("timeout=0&from={}", now["end"].as_str().unwrap());
        assert_eq!(seen(&watch(&carol, &open, &from).await), [said.as_str()]);
        open.set("m.room.history_visibility", "", json!({"history_visibility": "shared"})).await;
        assert_eq!(refusal(&bob, &open.id).await, forbidden());
        let token = |token: &str| format!("{EVENTS}?timeout=0&from={token}");
        assert_eq!(refused(&alice.client.get(&token("nonsense")).await), (400, "M_INVALID_PARAM".to_owned()));
        assert_eq!(refused(&alice.client.get(&token("t99999999")).await), (400, "M_INVALID_PARAM".to_owned()));
    }

    #[tokio::test]
    async fn guests_may_look_into_rooms() {
        let mut config = config();
        config.registration.guests = true;
        let server = Server::new(config);
        let alice = server.user("alice").await;
        let room = room_with_history(&alice, "world_readable").await;
        let guest = server.client.post("/_matrix/client/v3/register?kind=guest", json!({})).await.json();
        let guest = server.client.with_token(guest["access_token"].as_str().unwrap());
        ok(&guest.get(&format!("{EVENTS}?timeout=0&room_id={}", enc(&room.id))).await);
    }

    #[tokio::test]
    async fn without_a_room_it_is_about_all_of_ones_own() {
        let server = Server::default();
        let [alice, bob] = users(&server).await;
        let (one, two, other) = (public_room(&alice).await, public_room(&alice).await, public_room(&alice).await);
        one.join(&bob).await;
        two.join(&bob).await;
        let now = ok(&bob.client.get(&format!("{EVENTS}?timeout=0")).await);
        let mut said = Vec::new();
        for n in 0..70 {
            said.push(one.say(&format!("a{n}")).await);
            other.say("not for bob").await;
            said.push(two.say(&format!("b{n}")).await);
        }
        let (mut all, mut from) = (Vec::new(), now["end"].as_str().unwrap().to_owned());
        for _ in 0..3 {
            let page = ok(&bob.client.get(&format!("{EVENTS}?timeout=0&from={from}")).await);
            all.extend(seen(&page).into_iter().map(str::to_owned));
            from = page["end"].as_str().unwrap().to_owned();
        }
        assert_eq!(all, said);
        let path = format!("{EVENTS}?from={from}");
        let waiting = bob.client.get(&path);
        let happening = async { two.say("later").await };
        let (answer, said) = tokio::join!(waiting, happening);
        assert_eq!(seen(&ok(&answer)), [said.as_str()]);
    }

    #[tokio::test]
    async fn one_event_is_found_by_its_id_alone() {
        let server = Server::default();
        let [alice, bob] = users(&server).await;
        let room = public_room(&alice).await;
        let said = room.say("hello").await;
        let path = format!("{EVENTS}/{}", enc(&said));
        assert_eq!(ok(&alice.client.get(&path).await)["content"]["body"], "hello");
        assert_eq!(refused(&bob.client.get(&path).await), not_found());
        assert_eq!(refused(&bob.client.get(&format!("{EVENTS}/{}", enc("$nothing"))).await), not_found());
    }
}
