//! From material to JSON, in the words of the merged proposal (`/v4/sync`) or of the one before
//! (`/unstable/org.matrix.simplified_msc3575/sync`). The stored bytes of events are copied.

use store::Pos;

use super::config::Config;
use super::lists::Marks;
use super::material::{Hero, Material, Room};
use crate::rooms::shown::{Shown, Style, number, string, stripped};
use crate::stored::StoredEvent;
use crate::sync::assemble::{account_data_events, device_lists, key_counts, receipts_event, typing_event};
use crate::sync::token;

/// How an answer is spelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// As clients spoke it before the proposal was merged.
    Early,
    Merged,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    ToDevice,
    E2ee,
    AccountData,
    Receipts,
    Typing,
}

impl Extension {
    fn name(self) -> &'static str {
        match self {
            Extension::ToDevice => "to_device",
            Extension::E2ee => "e2ee",
            Extension::AccountData => "account_data",
            Extension::Receipts => "receipts",
            Extension::Typing => "typing",
        }
    }

    /// What its name begins with as long as its own proposal is not merged.
    fn prefix(self) -> &'static str {
        match self {
            Extension::ToDevice => "org.matrix.msc4538.",
            Extension::E2ee => "org.matrix.msc4543.",
            Extension::AccountData => "org.matrix.msc3959.",
            Extension::Receipts => "org.matrix.msc3960.",
            Extension::Typing => "org.matrix.msc4508.",
        }
    }
}

/// The extensions that a client asked for by the name from before they were merged: they are answered by that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prefixed(u8);

impl Prefixed {
    pub fn add(&mut self, extension: Extension) {
        self.0 |= 1 << extension as u8;
    }

    fn has(self, extension: Extension) -> bool {
        self.0 & 1 << extension as u8 != 0
    }
}

/// What goes around the material.
pub struct Frame<'a> {
    pub pos: &'a str,
    pub txn_id: Option<&'a str>,
    pub config: &'a Config,
    pub marks: &'a Marks,
    pub style: Style<'a>,
    pub dialect: Dialect,
    pub prefixed: Prefixed,
}

/// Writes the answer.
pub fn assemble(material: &Material, frame: &Frame<'_>) -> Vec<u8> {
    let names: Vec<&str> = frame.config.lists.keys().map(String::as_str).collect();
    let (style, dialect) = (frame.style, frame.dialect);
    let mut writer = Writer { out: Vec::with_capacity(size_hint(material)), style, dialect, lists: &names };
    writer.answer(material, frame);
    writer.out
}

fn size_hint(material: &Material) -> usize {
    let event = |event: &StoredEvent| event.client().len() + 224;
    let room = |room: &Room| {
        let timeline = room.timeline.iter().flat_map(|timeline| &timeline.events).map(|shown| &shown.event);
        512 + room.required_state.iter().map(|(_, event)| event).chain(timeline).map(event).sum::<usize>()
    };
    let account_data: usize = material.account_data.iter().map(|(_, content)| content.len() + 64).sum();
    512 + account_data + material.rooms.iter().map(room).sum::<usize>() + material.receipts.len() * 256
}

struct Writer<'a> {
    out: Vec<u8>,
    style: Style<'a>,
    dialect: Dialect,
    /// The names of the lists.
    lists: &'a [&'a str],
}

impl Writer<'_> {
    fn text(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
    }

    fn string(&mut self, text: &str) {
        string(&mut self.out, text);
    }

    /// Writes `,"name":number`.
    fn count(&mut self, name: &str, value: u64) {
        self.text(",\"");
        self.text(name);
        self.text("\":");
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

    fn answer(&mut self, material: &Material, frame: &Frame<'_>) {
        self.text("{\"pos\":");
        self.string(frame.pos);
        if let Some(txn_id) = frame.txn_id {
            self.text(",\"txn_id\":");
            self.string(txn_id);
        }
        self.text(",\"lists\":{");
        self.each(frame.config.lists.keys().zip(&frame.marks.counts), |writer, (name, count)| {
            writer.string(name);
            writer.text(":{\"count\":");
            number(&mut writer.out, *count);
            writer.out.push(b'}');
        });
        self.text("},\"rooms\":{");
        self.each(&material.rooms, Self::room);
        self.text("},\"extensions\":{");
        self.extensions(material, frame.prefixed);
        self.text("}}");
    }

    // ---- rooms ---------------------------------------------------------------------------------------------------

    fn room(&mut self, room: &Room) {
        self.string(&room.room_id);
        self.text(":{\"bump_stamp\":");
        number(&mut self.out, room.bump_stamp.0);
        let merged = self.dialect == Dialect::Merged;
        let expanded = if merged { "expanded_timeline" } else { "unstable_expanded_timeline" };
        let flags = [
            (Some(true).filter(|_| room.initial), "initial"),
            (room.is_dm, "is_dm"),
            (Some(true).filter(|_| room.expanded), expanded),
        ];
        for (flag, name) in flags {
            let Some(flag) = flag else { continue };
            self.text(",\"");
            self.text(name);
            self.text(if flag { "\":true" } else { "\":false" });
        }
        if merged {
            self.standing(room);
        }
        for (value, name) in [(&room.name, "name"), (&room.avatar, "avatar")] {
            let Some(value) = value else { continue };
            self.text(",\"");
            self.text(name);
            self.text("\":");
            match value {
                Some(value) => self.string(value),
                None => self.text("null"),
            }
        }
        if let Some(heroes) = &room.heroes {
            self.text(",\"heroes\":[");
            self.each(heroes, Self::hero);
            self.out.push(b']');
        }
        if let Some((joined, invited)) = room.members {
            self.count("joined_count", joined.into());
            self.count("invited_count", invited.into());
        }
        if let Some(unread) = room.unread.filter(|_| !merged) {
            self.count("notification_count", unread.notifications);
            self.count("highlight_count", unread.highlights);
        }
        self.events(room);
        self.out.push(b'}');
    }

    /// What the user is in the room, and why it is told.
    fn standing(&mut self, room: &Room) {
        if let Some(membership) = room.membership {
            self.text(",\"membership\":");
            self.string(membership.as_str());
        }
        if room.lists != 0 {
            self.text(",\"lists\":[");
            let names = self.lists.iter().enumerate().filter(|(index, _)| room.lists & (1 << index) != 0);
            self.each(names, |writer, (_, name)| writer.string(name));
            self.out.push(b']');
        }
    }

    fn events(&mut self, room: &Room) {
        if let Some(events) = &room.stripped {
            let merged = self.dialect == Dialect::Merged;
            self.text(if merged { ",\"stripped_state\":[" } else { ",\"invite_state\":[" });
            self.each(events, |writer, event| stripped(&mut writer.out, event));
            self.out.push(b']');
        }
        if room.outside && self.dialect == Dialect::Merged {
            self.text(",\"stripped_state\":[");
            self.each(&room.required_state, |writer, (_, event)| stripped(&mut writer.out, event));
            self.out.push(b']');
            return;
        }
        if !room.required_state.is_empty() {
            self.text(",\"required_state\":[");
            self.each(&room.required_state, Self::state_event);
            self.out.push(b']');
        }
        let Some(timeline) = &room.timeline else { return };
        self.count("num_live", room.num_live as u64);
        self.text(if timeline.limited { ",\"limited\":true" } else { ",\"limited\":false" });
        self.text(",\"prev_batch\":");
        self.string(&token::position(timeline.prev_batch));
        self.text(",\"timeline\":[");
        self.each(&timeline.events, |writer, shown| shown.write(&mut writer.out, &writer.style));
        self.out.push(b']');
    }

    fn state_event(&mut self, (at, event): &(Pos, StoredEvent)) {
        Shown::plain(*at, event.clone()).write(&mut self.out, &self.style);
    }

    fn hero(&mut self, hero: &Hero) {
        self.text("{\"user_id\":");
        self.string(hero.user_id.as_str());
        for (value, name) in [(&hero.displayname, ",\"displayname\":"), (&hero.avatar_url, ",\"avatar_url\":")] {
            if let Some(value) = value {
                self.text(name);
                self.string(value);
            }
        }
        self.out.push(b'}');
    }

    // ---- extensions ----------------------------------------------------------------------------------------------

    fn extensions(&mut self, material: &Material, prefixed: Prefixed) {
        let mut first = true;
        let mut begin = |writer: &mut Self, extension: Extension| {
            writer.text(if std::mem::take(&mut first) { "\"" } else { ",\"" });
            writer.text(if prefixed.has(extension) { extension.prefix() } else { "" });
            writer.text(extension.name());
            writer.text("\":{");
        };
        if let Some(messages) = &material.to_device {
            begin(self, Extension::ToDevice);
            self.text("\"next_batch\":");
            self.string(&token::position(messages.next_batch));
            self.text(",\"events\":[");
            self.each(&messages.events, |writer, event| writer.out.extend_from_slice(event));
            self.text("]}");
        }
        if let Some(counts) = &material.key_counts {
            begin(self, Extension::E2ee);
            key_counts(&mut self.out, counts);
            self.out.push(b',');
            device_lists(&mut self.out, &material.device_lists);
            self.out.push(b'}');
        }
        if !material.account_data.is_empty() || !material.room_account_data.is_empty() {
            begin(self, Extension::AccountData);
            self.text("\"global\":");
            account_data_events(&mut self.out, &material.account_data);
            self.text(",\"rooms\":{");
            self.each(&material.room_account_data, |writer, (room_id, data)| {
                writer.string(room_id);
                writer.out.push(b':');
                account_data_events(&mut writer.out, data);
            });
            self.text("}}");
        }
        if !material.receipts.is_empty() {
            begin(self, Extension::Receipts);
            self.text("\"rooms\":{");
            self.each(&material.receipts, |writer, (room_id, receipts)| {
                writer.string(room_id);
                writer.out.push(b':');
                // One event is all there is room for: receipts of threads wait for those of the whole room.
                receipts_event(&mut writer.out, receipts);
            });
            self.text("}}");
        }
        if !material.typing.is_empty() {
            begin(self, Extension::Typing);
            self.text("\"rooms\":{");
            self.each(&material.typing, |writer, (room_id, typists)| {
                writer.string(room_id);
                writer.out.push(b':');
                typing_event(&mut writer.out, typists);
            });
            self.text("}}");
        }
    }
}
