//! Searching for words in what was said (spec: Server Side Search).
//!
//! Only the newest events that fit are looked at for one answer; the next page goes on below them. What a page counts
//! and ranks is what was looked at. Not here: the index (`rooms::search`).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ::rooms::state::Select;
use ::rooms::timeline::Direction;
use http::{Method, StatusCode};
use ruma::{DeviceId, OwnedRoomId, RoomId, UserId};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use store::{Pos, Read, Snapshot};

use crate::App;
use crate::auth::{Access, Requester};
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response, Routes, json_response};
use crate::limits::Class;
use crate::rooms::membership::profile;
use crate::rooms::pages;
use crate::rooms::read::RoomReader;
use crate::rooms::relations::Gatherer;
use crate::rooms::search::{self, Key, Wanted, candidates, rank};
use crate::rooms::shown::{Shown, Style};
use crate::rooms::visibility::{Eyes, Ignored, Reach};
use crate::schema::{EventAt, HEADS, MEMBERSHIPS, MembershipState, RoomNr};
use crate::stored::StoredEvent;
use crate::sync::filter::Events;
use crate::sync::token;

const DEFAULT_LIMIT: usize = 10;
const MAX_LIMIT: usize = 100;
const MAX_CONTEXT: usize = 20;
/// The most events that are looked at for one answer.
const MAX_LOOKED_AT: usize = 1_000;
/// The most rooms that are searched.
const MAX_ROOMS: usize = 10_000;
/// The most state events in an answer.
const MAX_STATE: usize = 5_000;

pub fn routes() -> Routes {
    Routes::default()
        .raw(Method::POST, &["/_matrix/client/r0/search", "/_matrix/client/v3/search"], search)
        .access(Access::Token)
        .limit(Class::Search)
}

#[derive(Deserialize)]
struct Query {
    next_batch: Option<String>,
}

#[derive(Deserialize)]
struct Body {
    search_categories: Categories,
}

#[derive(Deserialize)]
struct Categories {
    room_events: Option<Criteria>,
}

#[derive(Deserialize)]
struct Criteria {
    search_term: String,
    keys: Option<Vec<String>>,
    filter: Option<Box<RawValue>>,
    #[serde(default)]
    order_by: Order,
    event_context: Option<Context>,
    #[serde(default)]
    include_state: bool,
    #[serde(default)]
    groupings: Groupings,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Order {
    Recent,
    #[default]
    Rank,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(default)]
struct Context {
    before_limit: usize,
    after_limit: usize,
    include_profile: bool,
}

impl Default for Context {
    fn default() -> Self {
        Context { before_limit: 5, after_limit: 5, include_profile: false }
    }
}

#[derive(Default, Deserialize)]
struct Groupings {
    #[serde(default)]
    group_by: Vec<Grouping>,
}

#[derive(Deserialize)]
struct Grouping {
    key: GroupBy,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum GroupBy {
    RoomId,
    Sender,
}

async fn search(mut ctx: RawCtx) -> Result<Response> {
    let query: Query = ctx.query()?;
    let body: Body = ctx.read_json().await?;
    let Some(criteria) = body.search_categories.room_events else {
        return Ok(json_response(StatusCode::OK, "{\"search_categories\":{}}"));
    };
    let from = query.next_batch.as_deref().map(Place::parse).transpose()?;
    let (app, requester) = (ctx.app.clone(), ctx.requester()?.clone());
    let work = move || answer(&app, &requester, &criteria, from);
    let found = tokio::task::spawn_blocking(work).await.map_err(Error::internal)??;
    Ok(json_response(StatusCode::OK, json!({"search_categories": {"room_events": found}}).to_string()))
}

fn answer(app: &App, requester: &Requester, criteria: &Criteria, from: Option<Place>) -> Result<Value> {
    let json = criteria.filter.as_ref().map_or("{}", |filter| filter.get());
    let (filter, _) = Events::parse(json.as_bytes())?;
    let named = serde_json::from_str::<Named>(json)?.rooms;
    let keys = match &criteria.keys {
        None => BTreeSet::from([Key::Body, Key::Name, Key::Topic]),
        Some(keys) => keys.iter().filter_map(|key| Key::parse(key)).collect(),
    };
    let words = search::terms(&criteria.search_term)?;
    let read = app.store.snapshot();
    let user_id = &*requester.user_id;
    let ignored = Ignored::by(&read, user_id)?;
    let from = from.unwrap_or(Place { until: read.version(), skip: 0, before: 0 });
    let wanted = Wanted {
        words: &words,
        keys: &keys,
        until: from.until,
        ignored: &ignored,
        related: &filter.related,
        takes: &|event| filter.take(event),
    };
    let mut finder = Finder { reader: RoomReader::new(&app.room_cache, &read), user_id, rooms: HashMap::new() };
    let rooms = finder.rooms(named.as_deref(), &filter)?;
    let (mut found, rest) = finder.find(&rooms, &wanted)?;
    if criteria.order_by == Order::Rank {
        found.sort_by(|a, b| b.rank.total_cmp(&a.rank));
    }
    let limit = filter.limit.unwrap_or(DEFAULT_LIMIT).clamp(1, MAX_LIMIT);
    let next = from.next(&found, rest, limit);
    let count = from.before + found.len();
    let page: Vec<Found> = found.into_iter().skip(from.skip).take(limit).collect();
    let show = Show { app, requester, ignored: &ignored, finder: &finder };
    let mut answer = show.page(&page, criteria)?;
    answer["count"] = json!(count);
    answer["highlights"] = json!(words);
    if let Some(next) = next {
        answer["next_batch"] = json!(next.write());
    }
    Ok(answer)
}

/// The rooms that a filter names.
#[derive(Deserialize)]
struct Named {
    rooms: Option<Vec<OwnedRoomId>>,
}

/// Where a page starts: with these events left out, of those that were looked at from a position on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    until: Pos,
    skip: usize,
    /// How many there were above that position.
    before: usize,
}

impl Place {
    /// The page after the one that starts here, when these were found and something is left below a position.
    fn next(self, found: &[Found], rest: Option<Pos>, limit: usize) -> Option<Place> {
        let skip = self.skip.saturating_add(limit);
        if skip < found.len() {
            return Some(Place { skip, ..self });
        }
        rest.map(|until| Place { until, skip: 0, before: self.before + found.len() })
    }

    fn write(self) -> String {
        format!("s{}_{}_{}", self.until.0, self.skip, self.before)
    }

    fn parse(token: &str) -> Result<Self> {
        let parse = || {
            let mut parts = token.strip_prefix('s')?.split('_');
            let until = Pos(parts.next()?.parse().ok()?);
            let place = Place { until, skip: parts.next()?.parse().ok()?, before: parts.next()?.parse().ok()? };
            (parts.next().is_none() && until <= Pos::MAX && place.before <= u32::MAX as usize).then_some(place)
        };
        parse().ok_or_else(|| Error::invalid_param("This is no token of a search"))
    }
}

struct Found {
    at: EventAt,
    rank: f64,
    event: StoredEvent,
}

/// A room as the one who asks sees it.
struct Seen<'a> {
    room_id: OwnedRoomId,
    reach: Reach,
    eyes: Eyes<'a, Snapshot>,
}

struct Finder<'a> {
    reader: RoomReader<'a, Snapshot>,
    user_id: &'a UserId,
    rooms: HashMap<RoomNr, Option<Seen<'a>>>,
}

impl<'a> Finder<'a> {
    /// The rooms to search: those that the user is in, and those they left if they name them.
    fn rooms(&self, named: Option<&[OwnedRoomId]>, filter: &Events) -> Result<Vec<RoomNr>> {
        let span = MEMBERSHIPS.prefix((self.user_id.as_str(),)).limit(MAX_ROOMS);
        let mut rooms = Vec::new();
        for row in self.reader.read.scan(&MEMBERSHIPS, span) {
            let ((_, room), member) = row?;
            let left = named.is_some() && member.joined.is_some() && !member.forgotten;
            if member.state == MembershipState::Join || left {
                rooms.push(room);
            }
        }
        let heads = self.reader.read.multi_get(&HEADS, rooms.iter().copied())?;
        let wanted = |head: &crate::stored::Head| filter.rooms.take(&head.room_id);
        Ok(rooms
            .into_iter()
            .zip(heads)
            .filter(|(_, head)| head.as_ref().is_some_and(wanted))
            .map(|(nr, _)| nr)
            .collect())
    }

    /// What fits, newest first, and where there may be more.
    fn find(&mut self, rooms: &[RoomNr], wanted: &Wanted<'_>) -> Result<(Vec<Found>, Option<Pos>)> {
        let mut found = Vec::new();
        if wanted.words.is_empty() {
            return Ok((found, None));
        }
        let candidates = candidates(self.reader, rooms, wanted)?;
        for at in candidates.iter().take(MAX_LOOKED_AT).copied() {
            let reader = self.reader;
            let Some(seen) = self.seen(at.room)? else { continue };
            if let Some((rank, event)) = rank(reader, &seen.eyes, at, wanted)? {
                found.push(Found { at, rank, event });
            }
        }
        Ok((found, candidates.get(MAX_LOOKED_AT).map(|next| next.at)))
    }

    fn seen(&mut self, room: RoomNr) -> Result<Option<&Seen<'a>>> {
        if !self.rooms.contains_key(&room) {
            let seen = self.look(room)?;
            self.rooms.insert(room, seen);
        }
        Ok(self.rooms.get(&room).and_then(Option::as_ref))
    }

    fn look(&self, room: RoomNr) -> Result<Option<Seen<'a>>> {
        let Some(head) = self.reader.head_of(room)? else { return Ok(None) };
        let room_id = RoomId::parse(head.room_id).map_err(Error::internal)?;
        let Some(reach) = Reach::of_any(self.reader, self.user_id, &room_id)? else { return Ok(None) };
        let eyes = reach.eyes(self.reader, self.user_id)?;
        Ok(Some(Seen { room_id, reach, eyes }))
    }
}

/// Writes what was found.
struct Show<'a> {
    app: &'a App,
    requester: &'a Requester,
    ignored: &'a Ignored,
    finder: &'a Finder<'a>,
}

impl Show<'_> {
    fn page(&self, page: &[Found], criteria: &Criteria) -> Result<Value> {
        let mut results = Vec::with_capacity(page.len());
        for found in page {
            let Some(Some(seen)) = self.finder.rooms.get(&found.at.room) else { continue };
            let mut result = json!({"rank": found.rank, "result": self.event(seen, found.at.at, &found.event)?});
            if let Some(context) = &criteria.event_context {
                result["context"] = self.context(seen, found, context)?;
            }
            results.push(result);
        }
        let mut answer = json!({ "results": results });
        if !criteria.groupings.group_by.is_empty() {
            answer["groups"] = self.groups(page, &criteria.groupings.group_by);
        }
        if criteria.include_state {
            answer["state"] = self.state(page)?;
        }
        Ok(answer)
    }

    fn style<'s>(&'s self, seen: &'s Seen<'_>) -> Style<'s> {
        Style {
            now_ms: self.app.clock.now_ms(),
            device_id: self.requester.device_id.as_deref().map(DeviceId::as_str),
            room_id: Some(seen.room_id.as_str()),
            federation: false,
        }
    }

    fn event(&self, seen: &Seen<'_>, at: Pos, event: &StoredEvent) -> Result<Value> {
        let reader = self.finder.reader;
        let (user_id, style) = (self.finder.user_id, self.style(seen));
        let gatherer =
            Gatherer { reader, room: seen.reach.room, eyes: &seen.eyes, user_id, ignored: self.ignored, style };
        let mut out = Vec::with_capacity(1_024);
        gatherer.write(&mut out, at, event)?;
        serde_json::from_slice(&out).map_err(Error::internal)
    }

    /// What was said before and after.
    fn context(&self, seen: &Seen<'_>, found: &Found, wanted: &Context) -> Result<Value> {
        let takes = |event: &StoredEvent| Ok(!self.ignored.hides(event));
        let page = |direction, from: Pos, limit: usize| -> Result<Vec<(Pos, StoredEvent)>> {
            let limit = limit.min(MAX_CONTEXT);
            if limit == 0 {
                return Ok(Vec::new());
            }
            let wanted = pages::Wanted { direction, from: Some(from), to: None, limit, takes: &takes };
            Ok(pages::read(self.finder.reader, &seen.reach, &seen.eyes, &wanted)?.events)
        };
        let at = found.at.at;
        let before = page(Direction::Backward, Pos(at.0.saturating_sub(1)), wanted.before_limit)?;
        let after = page(Direction::Forward, at, wanted.after_limit)?;
        let (first, last) = (before.last().map_or(at, |(at, _)| *at), after.last().map_or(at, |(at, _)| *at));
        let all = |events: &[(Pos, StoredEvent)]| -> Result<Vec<Value>> {
            events.iter().map(|(at, event)| self.event(seen, *at, event)).collect()
        };
        let mut context = json!({
            "start": token::position(Pos(first.0.saturating_sub(1))), "end": token::position(last),
            "events_before": all(&before)?, "events_after": all(&after)?,
        });
        if wanted.include_profile {
            let events = before.iter().chain(&after).map(|(_, event)| event).chain([&found.event]);
            let senders: BTreeSet<&str> = events.map(StoredEvent::sender).collect();
            let mut profiles = BTreeMap::new();
            for sender in senders {
                let user_id = UserId::parse(sender).map_err(Error::internal)?;
                profiles.insert(sender.to_owned(), profile(self.finder.reader.read, &user_id)?);
            }
            context["profile_info"] = json!(profiles);
        }
        Ok(context)
    }

    /// The results by room or by sender; the groups in the order of their first results.
    fn groups(&self, page: &[Found], by: &[Grouping]) -> Value {
        let mut answer = json!({});
        for Grouping { key } in by {
            let mut groups: BTreeMap<String, (usize, Vec<&str>)> = BTreeMap::new();
            for found in page {
                let name = match key {
                    GroupBy::Sender => found.event.sender().to_owned(),
                    GroupBy::RoomId => match self.finder.rooms.get(&found.at.room) {
                        Some(Some(seen)) => seen.room_id.to_string(),
                        _ => continue,
                    },
                };
                let order = groups.len() + 1;
                groups.entry(name).or_insert((order, Vec::new())).1.push(found.event.event_id());
            }
            let shown: BTreeMap<String, Value> = groups
                .into_iter()
                .map(|(name, (order, results))| (name, json!({"order": order, "results": results})))
                .collect();
            let key = if *key == GroupBy::Sender { "sender" } else { "room_id" };
            answer[key] = json!(shown);
        }
        answer
    }

    /// The state of the rooms, as the user takes it to be now.
    fn state(&self, page: &[Found]) -> Result<Value> {
        let (reader, mut left) = (self.finder.reader, MAX_STATE);
        let mut answer = json!({});
        let rooms: BTreeSet<RoomNr> = page.iter().map(|found| found.at.room).collect();
        for seen in rooms.iter().filter_map(|room| self.finder.rooms.get(room)?.as_ref()) {
            let mut positions = reader.state_positions(seen.reach.state(reader)?, Select::All)?;
            positions.sort_unstable();
            positions.truncate(left);
            left -= positions.len();
            let mut shown = Vec::with_capacity(positions.len());
            for (at, event) in reader.events_at(seen.reach.room, &positions)? {
                let mut out = Vec::with_capacity(512);
                Shown::plain(at, event).write(&mut out, &self.style(seen));
                shown.push(serde_json::from_slice::<Value>(&out).map_err(Error::internal)?);
            }
            answer[seen.room_id.as_str()] = json!(shown);
        }
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use store::Read as _;

    use crate::client::testing::*;
    use crate::indexing::catch_up;
    use crate::schema::{SEARCH_WORDS, SEARCHED};
    use crate::testing::{Server, User};

    async fn search(user: &User, query: &str, criteria: Value) -> Value {
        let body = json!({"search_categories": {"room_events": criteria}});
        let answer = ok(&user.client.post(&format!("/_matrix/client/v3/search{query}"), body).await);
        answer["search_categories"]["room_events"].clone()
    }

    fn found(answer: &Value) -> Vec<String> {
        let results = answer["results"].as_array().unwrap().iter();
        results.map(|result| result["result"]["event_id"].as_str().unwrap().to_owned()).collect()
    }

    async fn recent(user: &User, term: &str) -> Vec<String> {
        found(&search(user, "", json!({"search_term": term, "order_by": "recent"})).await)
    }

    #[tokio::test]
    async fn words_are_found_before_and_after_they_are_indexed() {
        let server = Server::default();
        let [alice] = users(&server).await;
        let room = create(&alice, json!({"preset": "public_chat", "name": "Harbour talk"})).await;
        let one = room.say("The quick brown Fox").await;
        let two = room.say("a fox, again").await;
        room.send("m.room.encrypted", json!({"algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "fox"})).await;
        for round in 0..2 {
            assert_eq!(recent(&alice, "fox").await, [&*two, &*one], "{round}");
            assert_eq!(recent(&alice, "FOX quick").await, [&*one]);
            assert_eq!(recent(&alice, "harbour").await.len(), 1);
            assert!(recent(&alice, "foxes").await.is_empty() && recent(&alice, "!?").await.is_empty());
            catch_up(&server.app).await.unwrap();
        }
        let read = server.app.store.snapshot();
        assert_eq!(read.count(&SEARCHED, SEARCHED.all()).unwrap(), 1);
        // What comes later joins what is there.
        let three = room.say("Fox three").await;
        assert_eq!(recent(&alice, "fox").await, [&*three, &*two, &*one]);
        catch_up(&server.app).await.unwrap();
        assert_eq!(recent(&alice, "fox").await, [&*three, &*two, &*one]);
    }

    #[tokio::test]
    async fn pitfall_066_what_is_redacted_is_neither_found_nor_kept_in_the_index() {
        let server = Server::default();
        let [alice] = users(&server).await;
        let room = public_room(&alice).await;
        let (first, second) = (room.say("secret plan").await, room.say("open plan").await);
        catch_up(&server.app).await.unwrap();
        room.redact(&first).await;
        let has = |word: &str| {
            let read = server.app.store.snapshot();
            read.scan(&SEARCH_WORDS, SEARCH_WORDS.all()).any(|row| row.unwrap().0.1 == word)
        };
        assert!(!has("secret") && has("plan"));
        assert_eq!(recent(&alice, "plan").await, [&*second]);
        assert!(recent(&alice, "secret").await.is_empty());
    }

    #[tokio::test]
    async fn pitfall_046_only_what_one_may_see_is_found() {
        let server = Server::default();
        let [alice, bob, carol] = users(&server).await;
        let room = room_with_history(&alice, "joined").await;
        room.say("word before").await;
        room.join(&bob).await;
        let during = room.say("word during").await;
        room.of(&bob).leave().await;
        room.say("word after").await;
        let open = room_with_history(&alice, "world_readable").await;
        open.say("word in the open").await;
        for _ in 0..2 {
            assert!(recent(&bob, "word").await.is_empty(), "who left has to name the room");
            let named = json!({"search_term": "word", "filter": {"rooms": [room.id]}});
            let answer = search(&bob, "", named.clone()).await;
            assert_eq!((found(&answer), &answer["count"]), (vec![during.clone()], &json!(1)));
            assert!(found(&search(&carol, "", named).await).is_empty());
            assert!(recent(&carol, "word").await.is_empty(), "not what is open to anybody either");
            assert_eq!(recent(&alice, "word").await.len(), 4);
            catch_up(&server.app).await.unwrap();
        }
        let path = format!("/_matrix/client/v3/user/{}/account_data/m.ignored_user_list", enc(&alice.user_id));
        room.join(&bob).await;
        room.of(&bob).say("word of bob").await;
        assert_eq!(recent(&alice, "word").await.len(), 5);
        ok(&alice.client.put(&path, json!({"ignored_users": {&bob.user_id: {}}})).await);
        assert_eq!(recent(&alice, "word").await.len(), 4);
    }

    #[tokio::test]
    async fn results_are_ordered_filtered_grouped_and_come_with_what_is_around() {
        let server = Server::default();
        let [alice, bob] = users(&server).await;
        let room = create(&alice, json!({"preset": "public_chat", "topic": "boats boats boats"})).await;
        let other = public_room(&alice).await;
        room.join(&bob).await;
        let name = format!("/_matrix/client/v3/profile/{}/displayname", enc(&alice.user_id));
        ok(&alice.client.put(&name, json!({"displayname": "Alice"})).await);
        let best = room.say("boats").await;
        let before = room.of(&bob).say("hm").await;
        let long = room.of(&bob).say("boats are one thing and there is a lot else to say").await;
        let after = room.say("so it is").await;
        let elsewhere = other.say("boats elsewhere").await;
        let criteria = |more: Value| {
            let mut criteria = json!({"search_term": "boats", "keys": ["content.body"]});
            criteria.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            criteria
        };
        let ranked = search(&alice, "", criteria(json!({}))).await;
        assert_eq!(found(&ranked), [&*best, &*elsewhere, &*long]);
        assert_eq!((&ranked["count"], &ranked["highlights"]), (&json!(3), &json!(["boats"])));
        assert_eq!(found(&search(&alice, "", criteria(json!({"keys": ["content.topic"]}))).await).len(), 1);
        let by_bob = criteria(json!({"filter": {"senders": [bob.user_id]}}));
        assert_eq!(found(&search(&alice, "", by_bob).await), [&*long]);
        let not_there = criteria(json!({"filter": {"not_rooms": [room.id]}}));
        assert_eq!(found(&search(&alice, "", not_there).await), [&*elsewhere]);

        let more = json!({
            "filter": {"senders": [bob.user_id]}, "include_state": true,
            "event_context": {"before_limit": 1, "after_limit": 1, "include_profile": true},
        });
        let full = search(&alice, "", criteria(more)).await;
        let context = &full["results"][0]["context"];
        assert_eq!(ids(context["events_before"].as_array().unwrap()), [&*before]);
        assert_eq!(ids(context["events_after"].as_array().unwrap()), [&*after]);
        assert_eq!(context["profile_info"][&alice.user_id], json!({"displayname": "Alice"}));
        let start = enc(context["start"].as_str().unwrap());
        let page = room.messages(&format!("dir=b&limit=2&from={start}")).await;
        assert!(ids(page["chunk"].as_array().unwrap()).contains(&&*best));
        assert!(full["state"][&room.id].as_array().unwrap().iter().any(|event| event["type"] == "m.room.create"));

        let group_by = json!([{"key": "room_id"}, {"key": "sender"}]);
        let grouped = search(&alice, "", criteria(json!({"groupings": {"group_by": group_by}}))).await;
        let rooms = &grouped["groups"]["room_id"];
        assert_eq!(rooms[&room.id], json!({"order": 1, "results": [best, long]}));
        assert_eq!(rooms[&other.id], json!({"order": 2, "results": [elsewhere]}));
        assert_eq!(grouped["groups"]["sender"][&bob.user_id]["results"], json!([long]));
    }

    #[tokio::test]
    async fn pages_of_results_neither_overlap_nor_leave_out() {
        let server = Server::default();
        let [alice] = users(&server).await;
        let room = public_room(&alice).await;
        let mut said = Vec::new();
        // More than one answer looks at.
        for nr in 0..1_150 {
            said.insert(0, room.say(&format!("again {nr}")).await);
            if nr == 900 {
                catch_up(&server.app).await.unwrap();
            }
        }
        for order in ["recent", "rank"] {
            let (mut all, mut query) = (Vec::new(), String::new());
            loop {
                let criteria = json!({"search_term": "again", "order_by": order, "filter": {"limit": 90}});
                let page = search(&alice, &query, criteria).await;
                assert!(page["results"].as_array().unwrap().len() <= 90);
                all.extend(found(&page));
                let Some(next) = page["next_batch"].as_str() else { break };
                query = format!("?next_batch={}", enc(next));
            }
            if order == "rank" {
                assert_eq!(all.len(), said.len());
                all.sort_unstable();
                let mut sorted = said.clone();
                sorted.sort_unstable();
                assert_eq!(all, sorted);
            } else {
                assert_eq!(all, said);
            }
        }
        for query in ["?next_batch=x", "?next_batch=s1_2", "?next_batch=s1_2_3_4"] {
            let body = json!({"search_categories": {"room_events": {"search_term": "again"}}});
            let answer = alice.client.post(&format!("/_matrix/client/v3/search{query}"), body).await;
            assert_eq!(refused(&answer), (400, "M_INVALID_PARAM".to_owned()), "{query}");
        }
    }
}
