//! What must be true when everything has come to rest.

use std::collections::{BTreeMap, BTreeSet};

use homeserver::schema::{MEMBERSHIPS, MembershipState, room_nr};
use ruma::RoomId;
use serde_json::Value;
use store::Read as _;

use crate::Check;
use crate::act::{slide_request, sync_request};
use crate::model::Note;
use crate::play::Sim;
use crate::request::{Request, enc, v3};
use crate::truth::{self, Room, StateKey, text};
use crate::view::{RoomView, View, entries, list};

/// Checks everything; says how many events there are.
pub(crate) async fn check(sim: &mut Sim) -> Check<usize> {
    let rooms = truth::rooms(&sim.world.app)?;
    let tip = sim.world.app.store.tip().0;
    sent(sim, &rooms)?;
    memberships(sim, &rooms)?;
    retries(sim).await?;
    notes(sim).await?;
    let alive = sim.model.alive();
    for index in &alive {
        initial(sim, *index, &rooms).await?;
        timelines(sim, *index, &rooms, tip)?;
        window(sim, *index).await?;
    }
    let mut asked = BTreeSet::new();
    for index in alive {
        if asked.insert(sim.model.devices[index].user) {
            endpoints(sim, index, &rooms, tip).await?;
            account_data(sim, index)?;
        }
    }
    seen(sim, &rooms)?;
    if truth::rooms(&sim.world.app)?.values().map(|room| room.events.len()).sum::<usize>() != count(&rooms) {
        return Err("reading wrote events".to_owned());
    }
    Ok(count(&rooms))
}

fn count(rooms: &BTreeMap<String, Room>) -> usize {
    rooms.values().map(|room| room.events.len()).sum()
}

/// A new window shows the rooms that sync tells of, and besides only those that somebody else took the user out of.
async fn window(sim: &mut Sim, index: usize) -> Check {
    let device = &sim.model.devices[index];
    let request = slide_request("rest", None, 20, "$LAZY").with_token(&device.token);
    let json = sim.world.call(request).await?.json();
    let user = sim.model.user_of(index).to_owned();
    let read = sim.world.app.store.snapshot();
    let mut shown = BTreeSet::new();
    for (room, _) in entries(&json["rooms"]) {
        let room_id = RoomId::parse(room).map_err(|cause| cause.to_string())?;
        let row = read.get(&MEMBERSHIPS, (&user, room_nr(&room_id))).map_err(|cause| cause.to_string())?;
        let outside = |state| matches!(state, MembershipState::Leave | MembershipState::Ban);
        if row.is_none_or(|row| !outside(row.state) || row.forgotten) {
            shown.insert(room.clone());
        }
    }
    let view = &sim.model.devices[index].view;
    let told: BTreeSet<String> = view.joined.keys().chain(&view.invited).chain(&view.knocked).cloned().collect();
    same(&format!("device {index}"), "rooms in a window", &told, &shown)?;
    let tip = sim.world.app.store.tip().0;
    sim.looked(index, &json, tip, false);
    Ok(())
}

// ---- what was sent -----------------------------------------------------------------------------------------------

/// Every acknowledged event is there once, in an order that agrees with who waited for whom; every other one at most
/// once.
fn sent(sim: &Sim, rooms: &BTreeMap<String, Room>) -> Check {
    let mut by_id = BTreeMap::new();
    let mut markers: BTreeMap<String, &str> = BTreeMap::new();
    for room in rooms.values() {
        for event in &room.events {
            let marker = text(&event.content["org.example.marker"]);
            if let Some(other) = markers.insert(marker.clone(), &event.id).filter(|_| !marker.is_empty()) {
                return Err(format!("{marker} was sent twice: {other} and {}", event.id));
            }
        }
    }
    for sent in &sim.model.sent {
        let Some(id) = &sent.event_id else { continue };
        let room = rooms.get(&sent.room).ok_or_else(|| format!("{} was acknowledged and is gone", sent.room))?;
        let index = *room.index.get(id).ok_or_else(|| format!("{id} was acknowledged and is not in {}", room.id))?;
        if sent.txn && by_id.insert(id.clone(), sent).is_some() {
            return Err(format!("two transactions were answered {id}"));
        }
        let event = &room.events[index];
        if event.sender != sim.model.user_of(sent.device) {
            return Err(format!("{id} is not of who sent it"));
        }
        let marker = event.content.get("org.example.marker").map(text);
        if marker.is_some_and(|marker| marker != sent.marker) {
            return Err(format!("{id} is not what was sent"));
        }
        if let Some(redacted) = &sent.redacts
            && let Some(target) = room.index.get(redacted)
            && room.events[*target].content.get("org.example.marker").is_some()
        {
            return Err(format!("{redacted} was redacted by {id} and still has its content"));
        }
    }
    for room in rooms.values() {
        let mut newest = 0;
        for sent in room.events.iter().filter_map(|event| by_id.get(&event.id)) {
            if sent.acked.is_some_and(|acked| acked < newest) {
                let id = sent.event_id.as_deref().unwrap_or_default();
                return Err(format!("{id} comes after events that were sent when it had been acknowledged"));
            }
            newest = newest.max(sent.began);
        }
    }
    Ok(())
}

fn memberships(sim: &Sim, rooms: &BTreeMap<String, Room>) -> Check {
    for acked in &sim.model.memberships {
        let room = rooms.get(&acked.room).ok_or_else(|| format!("{} is gone", acked.room))?;
        if !room.has_membership(&acked.user, acked.membership, acked.tip) {
            return Err(format!("{}'s {} in {} was acknowledged and is gone", acked.user, acked.membership, room.id));
        }
    }
    let gone = sim.model.rooms.iter().find(|room| !rooms.contains_key(*room));
    gone.map_or(Ok(()), |room| Err(format!("{room} was acknowledged and is gone")))
}

/// The same transaction gets the same answer, however late.
async fn retries(sim: &mut Sim) -> Check {
    for index in 0..sim.model.sent.len() {
        let sent = &sim.model.sent[index];
        let device = &sim.model.devices[sent.device];
        let Some(id) = sent.event_id.clone().filter(|_| sent.txn && device.alive && index % 3 == 0) else { continue };
        let answer = sim.world.call(sent.request.clone().with_token(&device.token)).await?;
        if answer.json()["event_id"] != id.as_str() {
            return Err(format!("a retry of what became {id} is answered {}", answer.json()));
        }
    }
    Ok(())
}

/// Every message to a device arrived there once; sending it again brings it to nobody twice, and at last to everybody.
async fn notes(sim: &mut Sim) -> Check {
    arrived(sim)?;
    for index in 0..sim.model.notes.len() {
        let note = &sim.model.notes[index];
        let device = &sim.model.devices[note.device];
        if !device.alive {
            continue;
        }
        let answer = sim.world.call(note.request.clone().with_token(&device.token)).await?;
        if !answer.status.is_success() {
            return Err(format!("sending the note {} again is answered {}", note.marker, answer.json()));
        }
        sim.model.notes[index].acked = true;
    }
    for index in sim.model.alive() {
        sim.catch_up(index).await?;
    }
    arrived(sim)
}

/// What was acknowledged came to all that it was for, and nothing to others.
fn arrived(sim: &Sim) -> Check {
    for index in sim.model.alive() {
        let device = &sim.model.devices[index];
        let mine = |note: &&Note| note.to.contains(&index);
        for note in sim.model.notes.iter().filter(mine).filter(|note| note.acked) {
            if !device.notes.contains(&note.marker) {
                return Err(format!("the note {} was acknowledged and never came to device {index}", note.marker));
            }
        }
        let sent: BTreeSet<&str> = sim.model.notes.iter().filter(mine).map(|note| note.marker.as_str()).collect();
        if let Some(stray) = device.notes.iter().find(|marker| !sent.contains(marker.as_str())) {
            return Err(format!("the note {stray} came to device {index}, for which it was not"));
        }
    }
    Ok(())
}

// ---- what sync told ----------------------------------------------------------------------------------------------

/// What a client has put together from its syncs is what a new client is told at once.
async fn initial(sim: &mut Sim, index: usize, rooms: &BTreeMap<String, Room>) -> Check {
    let device = &sim.model.devices[index];
    let (taste, who) = (device.taste, format!("{} (device {index}, {:?})", sim.model.user_of(index), device.taste));
    let request = sync_request(taste, None, 0).with_token(&device.token);
    let answer = sim.world.call(request).await?.json();
    let mut new = View::default();
    let applied = new.apply(&answer, taste);
    if let Some((room, stranger)) = applied.strangers.first() {
        return Err(format!("{who} sees {stranger} write in {room} and is not told who that is"));
    }
    let user = sim.model.user_of(index).to_owned();
    let old = &sim.model.devices[index].view;
    same(&who, "joined rooms", &keys(&old.joined), &keys(&new.joined))?;
    same(&who, "invites", &old.invited, &new.invited)?;
    same(&who, "knocks", &old.knocked, &new.knocked)?;
    same(&who, "account data", &old.account_data, &new.account_data)?;
    let joined: BTreeSet<String> =
        rooms.values().filter(|room| room.membership(&user) == "join").map(|room| room.id.clone()).collect();
    same(&who, "joined rooms", &joined, &keys(&new.joined))?;
    let invited: BTreeSet<String> =
        rooms.values().filter(|room| room.membership(&user) == "invite").map(|room| room.id.clone()).collect();
    same(&who, "invites", &invited, &new.invited)?;
    for (id, new) in &new.joined {
        let (Some(old), Some(room)) = (old.joined.get(id), rooms.get(id)) else { continue };
        compare(&format!("{who} in {id}"), old, new, room, taste.lazy)?;
    }
    Ok(())
}

fn keys<V>(map: &BTreeMap<String, V>) -> BTreeSet<String> {
    map.keys().cloned().collect()
}

fn compare(who: &str, old: &RoomView, new: &RoomView, room: &Room, lazy: bool) -> Check {
    let truth = room.state_before(room.events.len());
    for (view, when) in [(old, "incremental"), (new, "initial")] {
        let wanted: BTreeMap<&StateKey, &String> = (truth.iter())
            .filter(|(key, _)| !lazy || key.0 != "m.room.member" || view.state.contains_key(*key))
            .collect();
        same(who, &format!("state ({when})"), &view.state.iter().collect(), &wanted)?;
        if view.joined_count.is_some_and(|count| count as usize != room.joined()) {
            return Err(format!("{who}: {when} sync counts {:?} members of {}", view.joined_count, room.joined()));
        }
        if !list(&view.typing).is_empty() {
            return Err(format!("{who}: {when} sync leaves {} typing", view.typing));
        }
    }
    same(who, "receipts", &old.receipts, &new.receipts)?;
    same(who, "room account data", &old.account_data, &new.account_data)?;
    same(who, "unread counts", &old.unread, &new.unread)?;
    if !old.broken && !old.timeline.ends_with(&new.timeline) && !new.timeline.ends_with(&old.timeline) {
        return Err(format!("{who}: timelines differ: {:?} and {:?}", old.timeline, new.timeline));
    }
    Ok(())
}

fn same<T: PartialEq + std::fmt::Debug>(who: &str, what: &str, incremental: &T, initial: &T) -> Check {
    if incremental == initial {
        return Ok(());
    }
    Err(format!("{who}: {what} differ:\n  {incremental:?}\n  {initial:?}"))
}

/// Like [`same`] for events of a room; says of each event that is too many or missing what it is.
fn same_events(who: &str, what: &str, room: &Room, told: &[String], wanted: &[String]) -> Check {
    if told == wanted {
        return Ok(());
    }
    let name = |id: &&String| match room.index.get(*id).map(|index| &room.events[*index]) {
        Some(event) => {
            format!("{} {} {:?} of {} {}", event.at, event.kind, event.state_key, event.sender, event.content)
        }
        None => format!("{id}, which is nowhere"),
    };
    let extra: Vec<String> = told.iter().filter(|id| !wanted.contains(id)).map(|id| name(&id)).collect();
    let missing: Vec<String> = wanted.iter().filter(|id| !told.contains(id)).map(|id| name(&id)).collect();
    let mut positions: Vec<_> = told.iter().filter_map(|id| Some(room.events[*room.index.get(id)?].at)).collect();
    let ordered = positions.is_sorted();
    positions.dedup();
    Err(format!(
        "{who}: {what} differ:\n  too many: {extra:#?}\n  missing: {missing:#?}\n  in order: {ordered}: {positions:?}"
    ))
}

/// From the first event a client has on, it has all that its user may see, in order.
fn timelines(sim: &Sim, index: usize, rooms: &BTreeMap<String, Room>, tip: u64) -> Check {
    let user = sim.model.user_of(index);
    let view = &sim.model.devices[index].view;
    // Of a room that was forgotten nothing is told any more.
    let told = |(id, view): &(&String, &RoomView)| !view.broken && !forgot(sim, user, id);
    for (id, view) in view.joined.iter().chain(&view.left).filter(told) {
        let room = rooms.get(id).ok_or_else(|| format!("{id} is gone"))?;
        let Some(first) = view.timeline.first().and_then(|first| room.index.get(first)) else { continue };
        // The end of a membership may be told although the event is not visible.
        let own = |index: &usize| {
            let event = &room.events[*index];
            event.kind == "m.room.member" && event.state_key.as_deref() == Some(user)
        };
        let end = room.end_for(user, tip).unwrap_or(0);
        let wanted: Vec<String> = (*first..room.events.len())
            .filter(|index| *index <= end && !own(index) && room.may_see(user, *index, tip))
            .map(|index| room.events[index].id.clone())
            .collect();
        let had: Vec<String> =
            view.timeline.iter().filter(|id| room.index.get(*id).is_none_or(|index| !own(index))).cloned().collect();
        same_events(&format!("{user} (device {index}) in {id}"), "timeline and truth", room, &had, &wanted)?;
    }
    Ok(())
}

fn account_data(sim: &Sim, index: usize) -> Check {
    let device = &sim.model.devices[index];
    for ((user, room, kind), data) in &sim.model.data {
        let Some(value) = data.value.as_ref().filter(|_| *user == device.user) else { continue };
        let told = if room.is_empty() {
            device.view.account_data.get(kind)
        } else {
            let Some(room) = device.view.joined.get(room) else { continue };
            room.account_data.get(kind)
        };
        if told != Some(value) {
            return Err(format!("account data {kind} of user {user} in {room:?}: set {value}, told {told:?}"));
        }
    }
    Ok(())
}

// ---- what endpoints say ------------------------------------------------------------------------------------------

async fn endpoints(sim: &mut Sim, index: usize, rooms: &BTreeMap<String, Room>, tip: u64) -> Check {
    let user = sim.model.user_of(index).to_owned();
    let joined = ask(sim, index, v3(&["joined_rooms"])).await?.1;
    let told: BTreeSet<String> = list(&joined["joined_rooms"]).iter().map(text).collect();
    let wanted: BTreeSet<String> =
        rooms.values().filter(|room| room.membership(&user) == "join").map(|room| room.id.clone()).collect();
    same(&user, "joined_rooms", &told, &wanted)?;
    for room in rooms.values() {
        let who = format!("{user} in {}", room.id);
        let (state_code, state) = ask(sim, index, v3(&["rooms", &room.id, "state"])).await?;
        let (members_code, members) = ask(sim, index, v3(&["rooms", &room.id, "members"])).await?;
        if state_code != members_code {
            return Err(format!("{who}: state is answered {state_code}, members {members_code}"));
        }
        let joined = room.membership(&user) == "join";
        if joined && state_code != 200 {
            return Err(format!("{who}: state is refused: {state}"));
        }
        let end = room.end_for(&user, tip);
        if state_code == 200 {
            if end.is_none() && !room.is_world_readable() {
                return Err(format!("{who}: the state is shown to somebody who never was inside"));
            }
            let at = end.filter(|_| !joined).map_or(room.events.len(), |end| end + 1);
            // Who forgot a room and looks at it from outside sees it as it is now.
            let candidates = [room.state_before(at), room.state_before(room.events.len())];
            let allowed = if room.is_world_readable() { 2 } else { 1 };
            let told = state_of(&state);
            if !candidates[..allowed].contains(&told) {
                same(&who, "GET state and truth", &told, &candidates[0])?;
            }
            let members_of = |state: BTreeMap<StateKey, String>| -> BTreeMap<StateKey, String> {
                state.into_iter().filter(|(key, _)| key.0 == "m.room.member").collect()
            };
            same(&who, "members and state", &state_of(&members["chunk"]), &members_of(told))?;
        }
        pages(sim, index, room, &who, tip).await?;
        if joined {
            joined_members(sim, index, room, &who).await?;
        }
    }
    Ok(())
}

async fn ask(sim: &mut Sim, index: usize, path: String) -> Check<(u16, Value)> {
    let token = sim.model.devices[index].token.clone();
    let answer = sim.world.call(Request::get(path).with_token(&token)).await?;
    Ok((answer.status.as_u16(), answer.json()))
}

fn state_of(events: &Value) -> BTreeMap<StateKey, String> {
    let entry = |event: &Value| ((text(&event["type"]), text(&event["state_key"])), text(&event["event_id"]));
    list(events).iter().map(entry).collect()
}

async fn joined_members(sim: &mut Sim, index: usize, room: &Room, who: &str) -> Check {
    let (_, members) = ask(sim, index, v3(&["rooms", &room.id, "joined_members"])).await?;
    let told: BTreeSet<String> = entries(&members["joined"]).map(|(user, _)| user.clone()).collect();
    let users = room.state.keys().filter(|key| key.0 == "m.room.member" && room.membership(&key.1) == "join");
    same(who, "joined_members", &told, &users.map(|key| key.1.clone()).collect())
}

/// Paging through a room, both ways, shows what its user may see, and nothing else.
async fn pages(sim: &mut Sim, index: usize, room: &Room, who: &str, tip: u64) -> Check {
    let user = sim.model.user_of(index).to_owned();
    let mut ways = Vec::new();
    for dir in ["b", "f"] {
        let Some(told) = page_through(sim, index, room, dir).await? else { break };
        ways.push(told);
    }
    let joined = room.membership(&user) == "join";
    let end = room.end_for(&user, tip);
    let [backward, forward] = ways.as_mut_slice() else {
        if joined {
            return Err(format!("{who}: messages are refused"));
        }
        return Ok(());
    };
    if end.is_none() && !room.was_world_readable() {
        return Err(format!("{who}: messages are shown to somebody who never was inside"));
    }
    backward.reverse();
    same_events(who, "messages backward and forward", room, backward, forward)?;
    let visible = |end: usize| -> Vec<String> {
        let visible = (0..room.events.len()).filter(|index| *index <= end && room.may_see(&user, *index, tip));
        visible.map(|index| room.events[index].id.clone()).collect()
    };
    let wanted = visible(end.unwrap_or(usize::MAX));
    // Who forgot a room looks at it like somebody from outside: that nothing is shown that should not be is checked
    // with all that was seen.
    if !joined && room.is_world_readable() && forgot(sim, &user, &room.id) {
        return Ok(());
    }
    same_events(who, "messages and truth", room, forward, &wanted)
}

fn forgot(sim: &Sim, user: &str, room: &str) -> bool {
    let nr = RoomId::parse(room).map(|room| room_nr(&room)).unwrap_or_default();
    let row = sim.world.app.store.snapshot().get(&MEMBERSHIPS, (user, nr));
    row.is_ok_and(|row| row.is_some_and(|row| row.forgotten))
}

async fn page_through(sim: &mut Sim, index: usize, room: &Room, dir: &str) -> Check<Option<Vec<String>>> {
    let mut ids = Vec::new();
    let mut from = String::new();
    for _ in 0..=room.events.len() {
        let token = if from.is_empty() { String::new() } else { format!("&from={}", enc(&from)) };
        let path = format!("{}?dir={dir}&limit=7{token}", v3(&["rooms", &room.id, "messages"]));
        let (code, page) = ask(sim, index, path).await?;
        if code != 200 {
            return Ok(None);
        }
        sim.looked(index, &page, sim.world.app.store.tip().0, false);
        for event in list(&page["chunk"]) {
            ids.push(text(&event["event_id"]));
            if event["unsigned"].get("redacted_because").is_some()
                && event["content"].get("org.example.marker").is_some()
            {
                return Err(format!("{} is redacted and still has its content", event["event_id"]));
            }
        }
        match page["end"].as_str() {
            Some(end) => from = end.to_owned(),
            None => return Ok(Some(ids)),
        }
    }
    Err(format!("paging through {} never ends", room.id))
}

// ---- what was seen -----------------------------------------------------------------------------------------------

/// Nobody was ever shown what they may not see.
fn seen(sim: &Sim, rooms: &BTreeMap<String, Room>) -> Check {
    let places: BTreeMap<&str, (&Room, usize)> = rooms
        .values()
        .flat_map(|room| room.index.iter().map(move |(id, index)| (id.as_str(), (room, *index))))
        .collect();
    for ((user, id), seen) in &sim.model.seen {
        let (room, index) = *places.get(id.as_str()).ok_or_else(|| format!("{user} saw {id}, which is nowhere"))?;
        let event = &room.events[index];
        let own = event.kind == "m.room.member" && event.state_key.as_deref() == Some(user.as_str());
        let inside = room.end_for(user, seen.tip).is_some_and(|end| index <= end);
        let allowed =
            if seen.in_state { inside || room.was_world_readable() } else { room.may_see(user, index, seen.tip) };
        if !allowed && !own {
            return Err(format!("{user} saw {id} ({}) of {} in {} at {}", event.kind, room.id, seen.place, seen.tip));
        }
    }
    Ok(())
}
