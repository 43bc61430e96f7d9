//! From material to the JSON of an answer. Pure: the stored bytes of events are copied, nothing is parsed or read.

use std::collections::BTreeMap;

use ruma::OwnedUserId;
use ruma::presence::PresenceState;
use store::Pos;

use super::devices::{Lists, News};
use super::filter::Fields;
use super::material::{Datum, Material, ReadBy, Room, Stripped, Summary, Timeline};
use super::presence::Seen;
use super::token;
use super::unread::split;
use crate::push::counts::{Tally, Unread};
use crate::rooms::shown::{Shown, Style, number, string, stripped};
use crate::schema::KeyCounts;
use crate::stored::StoredEvent;

/// How the client wants it.
#[derive(Clone, Copy, Debug)]
pub struct Dress<'a> {
    pub now_ms: u64,
    pub device_id: Option<&'a str>,
    pub federation: bool,
    pub fields: Option<&'a Fields>,
    /// Under which names the state goes; clients before the specification ask for it under another one.
    pub state_after: StateAfter,
    pub thread_counts: bool,
}

/// Whether the state is that after the timeline, and what it is called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateAfter {
    pub stable: bool,
    pub unstable: bool,
}

impl StateAfter {
    pub fn wanted(self) -> bool {
        self.stable || self.unstable
    }
}

/// Writes the answer.
pub fn assemble(material: &Material, dress: &Dress<'_>) -> Vec<u8> {
    let mut writer = Writer { out: Vec::with_capacity(size_hint(material)), dress, scratch: Vec::new() };
    writer.answer(material);
    writer.out
}

fn size_hint(material: &Material) -> usize {
    let event = |event: &StoredEvent| event.client().len() + 160;
    let room = |room: &Room| {
        let state: usize = room.state.iter().map(|(_, e)| event(e)).sum();
        let timeline: usize = room.timeline.events.iter().map(|shown| event(&shown.event) + 64).sum();
        512 + state + timeline + room.receipts.len() * 128
    };
    256 + material.join.iter().chain(&material.leave).map(room).sum::<usize>()
}

/// The algorithm of the one-time keys that all clients use.
const SIGNED: &str = "signed_curve25519";

struct Writer<'a> {
    out: Vec<u8>,
    dress: &'a Dress<'a>,
    scratch: Vec<u8>,
}

impl Writer<'_> {
    fn text(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
    }

    fn string(&mut self, text: &str) {
        string(&mut self.out, text);
    }

    fn number(&mut self, value: u64) {
        number(&mut self.out, value);
    }

    /// Writes items with commas between them.
    fn each<T>(&mut self, items: impl IntoIterator<Item = T>, mut write: impl FnMut(&mut Self, T)) {
        for (index, item) in items.into_iter().enumerate() {
            if index > 0 {
                self.out.push(b',');
            }
            write(self, item);
        }
    }

    fn answer(&mut self, material: &Material) {
        self.text("{\"next_batch\":");
        self.string(&material.next.to_string());
        if !material.account_data.is_empty() {
            self.text(",\"account_data\":");
            self.account_data(&material.account_data);
        }
        if !material.presence.is_empty() {
            self.text(",\"presence\":{\"events\":[");
            self.each(&material.presence, Self::presence);
            self.text("]}");
        }
        self.devices(&material.devices);
        self.rooms(material);
        self.out.push(b'}');
    }

    fn devices(&mut self, news: &News) {
        if !news.to_device.is_empty() {
            self.text(",\"to_device\":{\"events\":[");
            self.each(&news.to_device, |writer, event| writer.out.extend_from_slice(event));
            self.text("]}");
        }
        if !news.lists.is_empty() {
            self.out.push(b',');
            device_lists(&mut self.out, &news.lists);
        }
        if let Some(counts) = &news.key_counts {
            self.out.push(b',');
            key_counts(&mut self.out, counts);
        }
    }

    fn rooms(&mut self, material: &Material) {
        let Material { join, invite, knock, leave, .. } = material;
        if join.is_empty() && invite.is_empty() && knock.is_empty() && leave.is_empty() {
            return;
        }
        self.text(",\"rooms\":{");
        let mut first = true;
        let mut section = |writer: &mut Self, name: &str, is_empty: bool| {
            if is_empty {
                return false;
            }
            writer.text(if std::mem::take(&mut first) { "\"" } else { ",\"" });
            writer.text(name);
            writer.text("\":{");
            true
        };
        for (name, rooms) in [("join", join), ("leave", leave)] {
            if section(self, name, rooms.is_empty()) {
                self.each(rooms, Self::room);
                self.out.push(b'}');
            }
        }
        for (name, state, rooms) in [("invite", "invite_state", invite), ("knock", "knock_state", knock)] {
            if section(self, name, rooms.is_empty()) {
                self.each(rooms, |writer, room| writer.stripped(state, room));
                self.out.push(b'}');
            }
        }
        self.out.push(b'}');
    }

    fn room(&mut self, room: &Room) {
        self.string(&room.room_id);
        self.text(":{\"timeline\":");
        self.timeline(&room.timeline);
        self.state(&room.state);
        if let Some(summary) = &room.summary {
            self.summary(summary);
        }
        if room.typing.is_some() || !room.receipts.is_empty() {
            self.ephemeral(room);
        }
        if !room.account_data.is_empty() {
            self.text(",\"account_data\":");
            self.account_data(&room.account_data);
        }
        if let Some(tally) = &room.unread {
            self.unread(tally);
        }
        self.out.push(b'}');
    }

    fn timeline(&mut self, timeline: &Timeline) {
        self.text("{\"events\":[");
        self.each(&timeline.events, Self::event);
        self.text(if timeline.limited {
            "],\"limited\":true,\"prev_batch\":"
        } else {
            "],\"limited\":false,\"prev_batch\":"
        });
        self.string(&token::position(timeline.prev_batch));
        self.out.push(b'}');
    }

    fn state(&mut self, events: &[(Pos, StoredEvent)]) {
        let StateAfter { stable, unstable } = self.dress.state_after;
        let names: &[&str] = match (stable, unstable) {
            (false, false) => &["state"],
            (true, false) => &["state_after"],
            (false, true) => &["org.matrix.msc4222.state_after"],
            (true, true) => &["state_after", "org.matrix.msc4222.state_after"],
        };
        let mut written: Option<std::ops::Range<usize>> = None;
        for name in names {
            self.text(",\"");
            self.text(name);
            self.text("\":");
            let start = self.out.len();
            match written.clone() {
                Some(range) => self.out.extend_from_within(range),
                None => {
                    self.text("{\"events\":[");
                    self.each(events, |writer, (at, event)| writer.event(&Shown::plain(*at, event.clone())));
                    self.text("]}");
                    written = Some(start..self.out.len());
                }
            }
        }
    }

    fn event(&mut self, shown: &Shown) {
        let Dress { now_ms, device_id, federation, fields, .. } = *self.dress;
        let style = Style { now_ms, device_id, room_id: None, federation };
        match fields {
            None => shown.write(&mut self.out, &style),
            Some(fields) => {
                self.scratch.clear();
                shown.write(&mut self.scratch, &style);
                let picked = fields.project(&self.scratch);
                self.out.extend_from_slice(&picked);
            }
        }
    }

    fn summary(&mut self, summary: &Summary) {
        self.text(",\"summary\":{\"m.joined_member_count\":");
        self.number(summary.joined.into());
        self.text(",\"m.invited_member_count\":");
        self.number(summary.invited.into());
        if let Some(heroes) = &summary.heroes {
            self.text(",\"m.heroes\":[");
            self.each(heroes, |writer, hero| writer.string(hero));
            self.out.push(b']');
        }
        self.out.push(b'}');
    }

    fn ephemeral(&mut self, room: &Room) {
        self.text(",\"ephemeral\":{\"events\":[");
        if let Some(typists) = &room.typing {
            typing_event(&mut self.out, typists);
        }
        if !room.receipts.is_empty() {
            if room.typing.is_some() {
                self.out.push(b',');
            }
            let mut more = receipts_event(&mut self.out, &room.receipts);
            while !more.is_empty() {
                self.out.push(b',');
                more = receipts_event(&mut self.out, more);
            }
        }
        self.text("]}");
    }

    fn unread(&mut self, tally: &Tally) {
        let (room, threads) = split(tally.clone(), self.dress.thread_counts);
        self.text(",\"unread_notifications\":");
        self.counts(room);
        if self.dress.thread_counts {
            self.text(",\"unread_thread_notifications\":{");
            self.each(threads, |writer, (root, unread)| {
                writer.string(&root);
                writer.out.push(b':');
                writer.counts(unread);
            });
            self.out.push(b'}');
        }
    }

    fn counts(&mut self, unread: Unread) {
        self.text("{\"notification_count\":");
        self.number(unread.notifications);
        self.text(",\"highlight_count\":");
        self.number(unread.highlights);
        self.out.push(b'}');
    }

    fn stripped(&mut self, name: &str, room: &Stripped) {
        self.string(&room.room_id);
        self.text(":{\"");
        self.text(name);
        self.text("\":{\"events\":[");
        self.each(&room.events, |writer, event| stripped(&mut writer.out, event));
        self.text("]}}");
    }

    fn account_data(&mut self, data: &[Datum]) {
        self.text("{\"events\":");
        account_data_events(&mut self.out, data);
        self.out.push(b'}');
    }

    fn presence(&mut self, seen: &Seen) {
        self.text("{\"type\":\"m.presence\",\"sender\":");
        self.string(seen.user_id.as_str());
        self.text(",\"content\":{\"presence\":");
        self.string(seen.state.as_str());
        self.text(",\"last_active_ago\":");
        self.number(u64::try_from(seen.last_active_ago.as_millis()).unwrap_or(u64::MAX));
        self.text(if seen.state == PresenceState::Online {
            ",\"currently_active\":true"
        } else {
            ",\"currently_active\":false"
        });
        if let Some(status) = &seen.status {
            self.text(",\"status_msg\":");
            self.string(status);
        }
        self.text("}}");
    }
}

/// Writes items with commas between them.
fn list<T>(out: &mut Vec<u8>, items: impl IntoIterator<Item = T>, mut write: impl FnMut(&mut Vec<u8>, T)) {
    for (index, item) in items.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write(out, item);
    }
}

/// Writes an array of account data.
pub fn account_data_events(out: &mut Vec<u8>, data: &[Datum]) {
    out.push(b'[');
    list(out, data, |out, (kind, content)| {
        out.extend_from_slice(b"{\"type\":");
        string(out, kind);
        out.extend_from_slice(b",\"content\":");
        out.extend_from_slice(content);
        out.push(b'}');
    });
    out.push(b']');
}

/// Writes `"device_lists":{…}`.
pub fn device_lists(out: &mut Vec<u8>, lists: &Lists) {
    out.extend_from_slice(b"\"device_lists\":{\"changed\":[");
    list(out, &lists.changed, |out, user_id| string(out, user_id));
    out.extend_from_slice(b"],\"left\":[");
    list(out, &lists.left, |out, user_id| string(out, user_id));
    out.extend_from_slice(b"]}");
}

/// Writes how many keys of a device are left, as two members of an object.
pub fn key_counts(out: &mut Vec<u8>, counts: &KeyCounts) {
    out.extend_from_slice(b"\"device_one_time_keys_count\":{");
    // Clients take the absence of this one for not knowing.
    let none = (!counts.one_time.contains_key(SIGNED)).then_some((SIGNED, 0));
    let some = counts.one_time.iter().map(|(algorithm, count)| (algorithm.as_str(), *count));
    list(out, none.into_iter().chain(some), |out, (algorithm, count)| {
        string(out, algorithm);
        out.push(b':');
        number(out, count.into());
    });
    out.extend_from_slice(b"},\"device_unused_fallback_key_types\":[");
    list(out, &counts.unused_fallback, |out, algorithm| string(out, algorithm));
    out.push(b']');
}

/// Writes who is typing.
pub fn typing_event(out: &mut Vec<u8>, typists: &[OwnedUserId]) {
    out.extend_from_slice(b"{\"type\":\"m.typing\",\"content\":{\"user_ids\":[");
    list(out, typists, |out, user| string(out, user.as_str()));
    out.extend_from_slice(b"]}}");
}

/// Writes receipts. Returns those that there was no room for: of one user at one event, a receipt of one thread only.
pub fn receipts_event<'r>(out: &mut Vec<u8>, receipts: impl IntoIterator<Item = &'r ReadBy>) -> Vec<&'r ReadBy> {
    // By event, kind and user.
    let mut events: BTreeMap<&str, [BTreeMap<&str, &ReadBy>; 2]> = BTreeMap::new();
    let mut more = Vec::new();
    for receipt in receipts {
        let kinds = events.entry(&receipt.event_id).or_default();
        let Some(kind) = kinds.get_mut(usize::from(receipt.private)) else { continue };
        // What is read whatever the thread says most.
        let known = kind.get(&*receipt.user_id).copied().filter(|known| known.thread <= receipt.thread);
        let out = match known {
            Some(_) => Some(receipt),
            None => kind.insert(&receipt.user_id, receipt),
        };
        more.extend(out);
    }
    out.extend_from_slice(b"{\"type\":\"m.receipt\",\"content\":{");
    list(out, events, |out, (event_id, kinds)| {
        string(out, event_id);
        out.extend_from_slice(b":{");
        let names = ["\"m.read\":{", "\"m.read.private\":{"];
        list(out, names.into_iter().zip(kinds).filter(|(_, users)| !users.is_empty()), |out, (name, users)| {
            out.extend_from_slice(name.as_bytes());
            list(out, users.into_values(), receipt);
            out.push(b'}');
        });
        out.push(b'}');
    });
    out.extend_from_slice(b"}}");
    more
}

fn receipt(out: &mut Vec<u8>, receipt: &ReadBy) {
    string(out, &receipt.user_id);
    out.extend_from_slice(b":{\"ts\":");
    number(out, receipt.ts);
    if !receipt.thread.is_empty() {
        out.extend_from_slice(b",\"thread_id\":");
        string(out, &receipt.thread);
    }
    out.push(b'}');
}
