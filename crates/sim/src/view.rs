//! A client that knows nothing but what sync told it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::truth::{StateKey, text};

/// How a device asks for syncs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taste {
    pub(crate) limit: Option<u64>,
    pub(crate) lazy: bool,
    pub(crate) redundant: bool,
    pub(crate) state_after: bool,
}

impl Taste {
    /// What follows `?` in a request for a sync.
    pub(crate) fn query(self) -> String {
        let mut filter = serde_json::json!({ "room": { "timeline": {}, "state": {} }, "presence": { "types": [] } });
        if let Some(limit) = self.limit {
            filter["room"]["timeline"]["limit"] = limit.into();
        }
        if self.lazy {
            filter["room"]["state"]["lazy_load_members"] = true.into();
            filter["room"]["state"]["include_redundant_members"] = self.redundant.into();
        }
        let mut query = format!("filter={}", crate::request::enc(&filter.to_string()));
        if self.state_after {
            query.push_str("&use_state_after=true");
        }
        query
    }
}

/// A receipt's user, type and thread.
pub(crate) type ReceiptOf = (String, String, String);

#[derive(Clone, Debug, Default)]
pub(crate) struct RoomView {
    /// Event IDs, oldest first.
    pub(crate) timeline: Vec<String>,
    /// A gap could not be closed.
    pub(crate) broken: bool,
    pub(crate) state: BTreeMap<StateKey, String>,
    pub(crate) receipts: BTreeMap<ReceiptOf, String>,
    pub(crate) account_data: BTreeMap<String, Value>,
    pub(crate) unread: Value,
    pub(crate) joined_count: Option<u64>,
    pub(crate) typing: Value,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    pub(crate) joined: BTreeMap<String, RoomView>,
    pub(crate) left: BTreeMap<String, RoomView>,
    pub(crate) invited: BTreeSet<String>,
    pub(crate) knocked: BTreeSet<String>,
    pub(crate) account_data: BTreeMap<String, Value>,
}

/// A gap in a room's timeline that has to be closed by paging backwards from a token.
#[derive(Clone, Debug)]
pub(crate) struct Gap {
    pub(crate) room: String,
    pub(crate) from: String,
    /// New events, to be put after what fills the gap.
    pub(crate) after: Vec<String>,
    pub(crate) left: bool,
}

#[derive(Default)]
pub(crate) struct Applied {
    pub(crate) gaps: Vec<Gap>,
    /// Events that were shown, and whether as part of the state.
    pub(crate) seen: Vec<(String, bool)>,
    /// Senders in a timeline whose member event the client does not know, as (room, user).
    pub(crate) strangers: Vec<(String, String)>,
}

impl View {
    pub(crate) fn apply(&mut self, sync: &Value, taste: Taste) -> Applied {
        let mut applied = Applied::default();
        for event in list(&sync["account_data"]["events"]) {
            self.account_data.insert(text(&event["type"]), event["content"].clone());
        }
        for (room, news) in entries(&sync["rooms"]["join"]) {
            let fresh = !self.joined.contains_key(room);
            let mut view = self.joined.remove(room).or_else(|| self.left.remove(room)).unwrap_or_default();
            if fresh {
                view.typing = Value::Null;
                // Who joins is told the whole state.
                view.state.clear();
            }
            view.apply(room, news, taste, fresh, &mut applied, false);
            self.invited.remove(room);
            self.knocked.remove(room);
            self.joined.insert(room.clone(), view);
        }
        for (room, news) in entries(&sync["rooms"]["leave"]) {
            let fresh = !self.joined.contains_key(room);
            let mut view = self.joined.remove(room).or_else(|| self.left.remove(room)).unwrap_or_default();
            view.apply(room, news, taste, fresh, &mut applied, true);
            self.invited.remove(room);
            self.knocked.remove(room);
            self.left.insert(room.clone(), view);
        }
        for (section, invited) in [("invite", true), ("knock", false)] {
            for (room, _) in entries(&sync["rooms"][section]) {
                // Nobody says what happened until the end of the membership before.
                self.joined.remove(room);
                self.left.remove(room);
                self.invited.remove(room);
                self.knocked.remove(room);
                if invited {
                    self.invited.insert(room.clone())
                } else {
                    self.knocked.insert(room.clone())
                };
            }
        }
        applied
    }
}

impl RoomView {
    fn apply(&mut self, room: &str, news: &Value, taste: Taste, fresh: bool, applied: &mut Applied, left: bool) {
        let section = if taste.state_after { "state_after" } else { "state" };
        for event in list(&news[section]["events"]) {
            self.set_state(event);
            applied.seen.push((text(&event["event_id"]), true));
        }
        let events = list(&news["timeline"]["events"]);
        for event in events {
            if event.get("state_key").is_some() && !taste.state_after {
                self.set_state(event);
            }
            applied.seen.push((text(&event["event_id"]), false));
        }
        for event in events {
            let member = ("m.room.member".to_owned(), text(&event["sender"]));
            if !left && !self.state.contains_key(&member) {
                applied.strangers.push((room.to_owned(), member.1));
            }
        }
        // A room that was forgotten ends without a word.
        self.broken |= left && events.is_empty();
        let limited = news["timeline"]["limited"] == true;
        // Who is outside is told what becomes of their membership, but not what happens around it: that is no timeline.
        let outside = left && fresh && !limited && events.len() == 1;
        let ids: Vec<String> = events.iter().filter(|_| !outside).map(|event| text(&event["event_id"])).collect();
        let prev_batch = text(&news["timeline"]["prev_batch"]);
        if let Some(gap) = self.extend(room, ids, limited, prev_batch, fresh, left) {
            applied.gaps.push(gap);
        }
        self.rest(news);
    }

    fn set_state(&mut self, event: &Value) {
        self.state.insert((text(&event["type"]), text(&event["state_key"])), text(&event["event_id"]));
    }

    /// Puts new events at the end of the timeline. If something is missing between, says what.
    fn extend(
        &mut self,
        room: &str,
        ids: Vec<String>,
        limited: bool,
        from: String,
        fresh: bool,
        left: bool,
    ) -> Option<Gap> {
        let overlap = ids.iter().rposition(|id| self.timeline.contains(id));
        if let Some(last_known) = overlap {
            if !limited && ids.len() > self.timeline.len() {
                // All there is, from the start of what the client may see.
                self.timeline = ids;
            } else {
                self.timeline.extend(ids.into_iter().skip(last_known + 1));
            }
            return None;
        }
        if !limited && fresh && !left {
            self.timeline = ids;
            return None;
        }
        if limited && !self.timeline.is_empty() {
            return Some(Gap { room: room.to_owned(), from, after: ids, left });
        }
        self.timeline.extend(ids);
        None
    }

    fn rest(&mut self, news: &Value) {
        for event in list(&news["ephemeral"]["events"]) {
            if event["type"] == "m.typing" {
                self.typing = event["content"]["user_ids"].clone();
            }
            if event["type"] == "m.receipt" {
                self.receipts(&event["content"]);
            }
        }
        for event in list(&news["account_data"]["events"]) {
            self.account_data.insert(text(&event["type"]), event["content"].clone());
        }
        if let Some(unread) = news.get("unread_notifications") {
            self.unread = unread.clone();
        }
        if let Some(count) = news["summary"]["m.joined_member_count"].as_u64() {
            self.joined_count = Some(count);
        }
    }

    fn receipts(&mut self, content: &Value) {
        for (event, kinds) in entries(content) {
            for (kind, users) in entries(kinds) {
                for (user, receipt) in entries(users) {
                    let of = (user.clone(), kind.clone(), text(&receipt["thread_id"]));
                    self.receipts.insert(of, event.clone());
                }
            }
        }
    }
}

pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

pub(crate) fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}
