//! What relates to an event: bundled aggregations (edits, threads, references), and the events themselves.
//!
//! Annotations are not bundled: clients count them. Not here: that a relation is written and, when its event is
//! redacted, taken back (`write`).

use std::collections::HashSet;

use ::rooms::timeline::Direction;
use ruma::UserId;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use store::{Pos, Read, Span, Tx};

use crate::error::{Error, Result};
use crate::rooms::pages::{after, before};
use crate::rooms::read::RoomReader;
use crate::rooms::shown::{Shown, Style, content_field, number, string};
use crate::rooms::visibility::{Eyes, Ignored, Reach};
use crate::schema::{self, Relation, RoomNr};
use crate::stored::StoredEvent;

/// The relation of a reply to the root of its thread.
pub const THREAD: &str = "m.thread";
/// How many steps from the parent `recurse` goes.
pub const MAX_DEPTH: u32 = 3;
/// The relation of a reaction to what it reacts to.
pub const ANNOTATION: &str = "m.annotation";
/// The most relations that are looked at for one page, or for one filter.
const MAX_RELATED: usize = 5_000;
/// The most relations of one event that are looked at to see what is bundled with it, the newest ones.
const MAX_BUNDLED: usize = 10_000;
/// The most edits of one event that are read to find the newest valid one.
const MAX_EDITS: usize = 50;
/// The most events that are read to find out whether a user may see them, for one event that they relate to.
const MAX_LOOKED_AT: usize = 500;
/// The most references that are bundled with an event.
const MAX_REFERENCES: usize = 100;

/// Gathers what an event of a timeline shows to one user: what it did, what became of it, what relates to it.
pub struct Gatherer<'a, R> {
    pub reader: RoomReader<'a, R>,
    pub room: RoomNr,
    pub eyes: &'a Eyes<'a, R>,
    pub user_id: &'a UserId,
    pub ignored: &'a Ignored,
    pub style: Style<'a>,
}

impl<R: Read> Gatherer<'_, R> {
    /// Writes an event with all that belongs to it.
    pub fn write(&self, out: &mut Vec<u8>, at: Pos, event: &StoredEvent) -> Result<()> {
        let mut shown = self.show(at, event)?;
        shown.relations = self.bundle(event, true)?;
        shown.write(out, &self.style);
        Ok(())
    }

    /// An event without what relates to it.
    fn show(&self, at: Pos, event: &StoredEvent) -> Result<Shown> {
        Ok(Shown {
            membership: Some(self.eyes.membership_at(at, event)?),
            replaced: self.seen(event.replaces())?,
            redaction: self.seen(event.redacted_by())?,
            ..Shown::plain(at, event.clone())
        })
    }

    fn seen(&self, at: Option<Pos>) -> Result<Option<StoredEvent>> {
        let Some(at) = at else { return Ok(None) };
        let Some(event) = self.reader.event(self.room, at)? else { return Ok(None) };
        Ok(if self.eyes.see(at, &event)? { Some(event) } else { None })
    }

    /// `m.relations`, if there are any.
    pub fn bundle(&self, event: &StoredEvent, with_thread: bool) -> Result<Option<Box<RawValue>>> {
        if event.state_key().is_some() {
            return Ok(None);
        }
        let mut children = Children::default();
        let span = schema::RELATIONS.prefix((self.room, event.event_id())).reversed().limit(MAX_BUNDLED);
        for row in self.reader.read.scan(&schema::RELATIONS, span) {
            let ((_, _, at), relation) = row?;
            children.add(at, &relation, event, self);
        }
        let mut members = Vec::new();
        self.replacement(&mut members, event, &children.edits)?;
        if with_thread {
            self.thread(&mut members, event, &children)?;
        }
        self.references(&mut members, &children.references)?;
        if members.is_empty() {
            return Ok(None);
        }
        members.push(b'}');
        let json = String::from_utf8(members).map_err(Error::internal)?;
        RawValue::from_string(json).map(Some).map_err(Error::internal)
    }

    /// `m.replace`: the newest valid edit.
    fn replacement(&self, members: &mut Vec<u8>, event: &StoredEvent, edits: &[Pos]) -> Result<()> {
        if edits.is_empty() || event.redacted_by().is_some() || is_edit(event) {
            return Ok(());
        }
        let age = |edit: &StoredEvent| (edit.origin_server_ts, edit.event_id().to_owned());
        let mut newest: Option<(Pos, StoredEvent)> = None;
        for at in edits {
            let Some(edit) = self.reader.event(self.room, *at)? else { continue };
            if newest.as_ref().is_some_and(|(_, newest)| edit.origin_server_ts < newest.origin_server_ts) {
                // They come in the order of their arrival: what came before this one is older still.
                break;
            }
            if newest.as_ref().is_none_or(|(_, newest)| age(newest) < age(&edit))
                && edit.redacted_by().is_none()
                && has_new_content(&edit)
                && self.eyes.see(*at, &edit)?
            {
                newest = Some((*at, edit));
            }
        }
        if let Some((at, edit)) = newest {
            begin(members, "m.replace");
            self.show(at, &edit)?.write(members, &self.style);
        }
        Ok(())
    }

    /// `m.thread`: its newest event, how many there are, and whether the reader is one of those who take part.
    fn thread(&self, members: &mut Vec<u8>, event: &StoredEvent, children: &Children) -> Result<()> {
        for at in children.thread.iter().take(MAX_LOOKED_AT) {
            let Some(latest) = self.seen(Some(*at))?.filter(|latest| latest.redacted_by().is_none()) else { continue };
            begin(members, "m.thread");
            members.extend_from_slice(b"{\"latest_event\":");
            let mut shown = self.show(*at, &latest)?;
            shown.relations = self.bundle(&latest, false)?;
            shown.write(members, &self.style);
            members.extend_from_slice(b",\"count\":");
            number(members, self.count(&children.thread)?);
            let participated = children.participated || event.sender() == self.user_id.as_str();
            members.extend_from_slice(format!(",\"current_user_participated\":{participated}}}").as_bytes());
            break;
        }
        Ok(())
    }

    /// How many of these events the reader may see.
    fn count(&self, events: &[Pos]) -> Result<u64> {
        let (mut count, mut looks) = (0, MAX_LOOKED_AT);
        for at in events {
            count += u64::from(self.eyes.see_at(*at, &mut looks)?);
        }
        Ok(count)
    }

    /// `m.reference`: the IDs of the newest events that refer to this one.
    fn references(&self, members: &mut Vec<u8>, references: &[Pos]) -> Result<()> {
        let mut open = false;
        for &at in references.iter().rev() {
            let Some(reference) = self.reader.event(self.room, at)? else { continue };
            if reference.redacted_by().is_some() || !self.eyes.see(at, &reference)? {
                continue;
            }
            if open {
                members.push(b',');
            } else {
                begin(members, "m.reference");
                members.extend_from_slice(b"{\"chunk\":[");
                open = true;
            }
            members.extend_from_slice(b"{\"event_id\":");
            string(members, reference.event_id());
            members.push(b'}');
        }
        if open {
            members.extend_from_slice(b"]}");
        }
        Ok(())
    }
}

/// The children of one event that can be bundled, newest first.
#[derive(Default)]
struct Children {
    edits: Vec<Pos>,
    thread: Vec<Pos>,
    references: Vec<Pos>,
    participated: bool,
}

impl Children {
    fn add<R: Read>(&mut self, at: Pos, relation: &Relation, parent: &StoredEvent, gatherer: &Gatherer<'_, R>) {
        if !gatherer.eyes.reach(at) || gatherer.ignored.hides_sender(&relation.sender) {
            return;
        }
        match relation.rel_type.as_str() {
            "m.replace" if relation.sender == parent.sender() && relation.kind == parent.kind() => {
                push_some(&mut self.edits, at, MAX_EDITS);
            }
            THREAD => {
                self.thread.push(at);
                self.participated |= relation.sender == gatherer.user_id.as_str();
            }
            "m.reference" => push_some(&mut self.references, at, MAX_REFERENCES),
            _ => {}
        }
    }
}

fn push_some(positions: &mut Vec<Pos>, at: Pos, most: usize) {
    if positions.len() < most {
        positions.push(at);
    }
}

fn begin(members: &mut Vec<u8>, name: &str) {
    members.push(if members.is_empty() { b'{' } else { b',' });
    string(members, name);
    members.push(b':');
}

/// Whether an event relates to another. (To be a reply is no relation in this sense.)
pub fn relates(event: &StoredEvent) -> bool {
    rel_type(event).is_some()
}

/// An edit cannot be edited.
fn is_edit(event: &StoredEvent) -> bool {
    rel_type(event).is_some_and(|rel_type| rel_type == "m.replace")
}

fn rel_type(event: &StoredEvent) -> Option<String> {
    #[derive(Deserialize)]
    struct RelatesTo {
        rel_type: String,
    }
    content_field::<RelatesTo>(event, "m.relates_to").map(|relates_to| relates_to.rel_type)
}

/// What tells an annotation of an event from others: by whom, of which type, with which key.
pub fn annotation_hash(sender: &str, kind: &str, key: &str) -> [u8; 16] {
    let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
    for part in [sender, kind, key] {
        digest.update(&(part.len() as u64).to_be_bytes());
        digest.update(part.as_bytes());
    }
    let mut hash = [0; 16];
    hash.copy_from_slice(&digest.finish().as_ref()[..16]);
    hash
}

/// An annotation is redacted or gone: its user may annotate its parent in the same way again.
pub fn forget_annotation(tx: &mut Tx, room: RoomNr, at: Pos, event: &StoredEvent) -> Result<()> {
    #[derive(Deserialize)]
    struct RelatesTo {
        rel_type: Option<String>,
        event_id: Option<String>,
        key: Option<String>,
    }
    let Some(RelatesTo { rel_type: Some(rel_type), event_id: Some(parent), key: Some(key) }) =
        content_field::<RelatesTo>(event, "m.relates_to")
    else {
        return Ok(());
    };
    let hash = annotation_hash(event.sender(), event.kind(), &key);
    if rel_type == ANNOTATION
        && parent.len() <= 255
        && tx.get(&schema::ANNOTATIONS, (room, &parent, &hash))? == Some(at)
    {
        tx.delete(&schema::ANNOTATIONS, (room, &parent, &hash));
    }
    Ok(())
}

/// An encrypted edit hides its new content.
fn has_new_content(edit: &StoredEvent) -> bool {
    edit.kind() == "m.room.encrypted" || content_field::<IgnoredAny>(edit, "m.new_content").is_some()
}

/// Where the newest reply of a thread lies, at or before a position.
pub fn newest_reply(read: &impl Read, room: RoomNr, root: &str, until: Pos) -> Result<Option<Pos>> {
    let span = schema::RELATIONS.prefix((room, root)).through((room, root, until)).reversed().limit(MAX_RELATED);
    for row in read.scan(&schema::RELATIONS, span) {
        let ((_, _, at), relation) = row?;
        if relation.rel_type == THREAD {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

/// Whether a user sees the event at a position, with so many looks: [`Eyes::see_at`].
pub type Sees<'a> = &'a dyn Fn(Pos, &mut usize) -> Result<bool>;

/// What has to relate to an event so that a filter takes it: `related_by_senders` and `related_by_rel_types`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct RelatedBy {
    related_by_senders: Option<HashSet<String>>,
    related_by_rel_types: Option<HashSet<String>>,
}

impl RelatedBy {
    /// What it takes in memory besides itself.
    pub fn bytes(&self) -> usize {
        let set = |set: &HashSet<String>| {
            set.capacity() * (size_of::<String>() + 8) + set.iter().map(|text| 16 + text.capacity()).sum::<usize>()
        };
        self.related_by_senders.as_ref().map_or(0, set) + self.related_by_rel_types.as_ref().map_or(0, set)
    }

    /// Whether an event is taken. Only what the user sees of what relates to it counts.
    pub fn take<R: Read>(
        &self,
        reader: RoomReader<'_, R>,
        room: RoomNr,
        (sees, ignored): (Sees<'_>, &Ignored),
        event: &StoredEvent,
    ) -> Result<bool> {
        if self.related_by_senders.is_none() && self.related_by_rel_types.is_none() {
            return Ok(true);
        }
        let wants = |wanted: &Option<HashSet<String>>, it: &str| wanted.as_ref().is_none_or(|all| all.contains(it));
        let mut looks = MAX_LOOKED_AT;
        let span = schema::RELATIONS.prefix((room, event.event_id())).limit(MAX_RELATED);
        for row in reader.read.scan(&schema::RELATIONS, span) {
            let ((_, _, at), relation) = row?;
            if wants(&self.related_by_senders, &relation.sender)
                && wants(&self.related_by_rel_types, &relation.rel_type)
                && !ignored.hides_sender(&relation.sender)
                && sees(at, &mut looks)?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// What of the events that relate to a parent is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub rel_type: Option<&'a str>,
    pub kind: Option<&'a str>,
    /// Also what relates to what relates to the parent, and so on.
    pub recurse: bool,
    pub direction: Direction,
    pub from: Option<Pos>,
    pub to: Option<Pos>,
    pub limit: usize,
    pub ignored: &'a Ignored,
}

impl Wanted<'_> {
    fn takes(&self, relation: &Relation) -> bool {
        self.rel_type.is_none_or(|wanted| wanted == relation.rel_type)
            && self.kind.is_none_or(|wanted| wanted == relation.kind)
            && !self.ignored.hides_sender(&relation.sender)
    }

    /// Whether a position lies between `from` and `to`.
    fn spans(&self, at: Pos) -> bool {
        let (newest, oldest) = match self.direction {
            Direction::Backward => (self.from, self.to),
            Direction::Forward => (self.to, self.from),
        };
        newest.is_none_or(|newest| at <= newest) && oldest.is_none_or(|oldest| at > oldest)
    }

    /// The relations of a parent between `from` and `to`, in the order wanted.
    fn span(&self, room: RoomNr, parent: &str, end: Pos) -> Span<(RoomNr, String, Pos)> {
        let key = |at| (room, parent, at);
        let (newest, oldest) = match self.direction {
            Direction::Backward => (self.from, self.to),
            Direction::Forward => (self.to, self.from),
        };
        let mut span = schema::RELATIONS.prefix((room, parent)).through(key(newest.unwrap_or(Pos::MAX).min(end)));
        if let Some(oldest) = oldest {
            span = span.after(key(oldest));
        }
        if self.direction == Direction::Backward { span.reversed() } else { span }
    }
}

/// Events with their positions, and where the next page starts.
pub type Page = (Vec<(Pos, StoredEvent)>, Option<Pos>);

/// The events that relate to one, page by page.
pub fn read<R: Read>(
    reader: RoomReader<'_, R>,
    reach: &Reach,
    eyes: &Eyes<'_, R>,
    parent: &StoredEvent,
    wanted: &Wanted<'_>,
) -> Result<Page> {
    if !wanted.recurse {
        return read_flat(reader, reach, eyes, parent, wanted);
    }
    let mut positions = related(reader, reach.room, parent.event_id(), wanted)?;
    positions.retain(|at| wanted.spans(*at));
    positions.sort_unstable();
    if wanted.direction == Direction::Backward {
        positions.reverse();
    }
    let mut page = Vec::new();
    for at in positions {
        if !put(reader, reach.room, eyes, wanted, &mut page, at)? {
            let end = page.last().map(|(last, _)| after(wanted.direction, *last));
            return Ok((page, end));
        }
    }
    Ok((page, None))
}

/// The events that relate to one directly. A page that ends because it took too much looking may be empty and still not
/// be the last.
fn read_flat<R: Read>(
    reader: RoomReader<'_, R>,
    reach: &Reach,
    eyes: &Eyes<'_, R>,
    parent: &StoredEvent,
    wanted: &Wanted<'_>,
) -> Result<Page> {
    let mut page: Vec<(Pos, StoredEvent)> = Vec::new();
    let span = wanted.span(reach.room, parent.event_id(), reach.end());
    for (scanned, row) in reader.read.scan(&schema::RELATIONS, span).enumerate() {
        let ((_, _, at), relation) = row?;
        if scanned == MAX_RELATED {
            return Ok((page, Some(before(wanted.direction, at))));
        }
        if !wanted.takes(&relation) {
            continue;
        }
        if !put(reader, reach.room, eyes, wanted, &mut page, at)? {
            let end = page.last().map(|(last, _)| after(wanted.direction, *last));
            return Ok((page, end));
        }
    }
    Ok((page, None))
}

/// Puts an event on a page if it may be seen. Nothing is put on a page that is full, and the answer is no.
fn put<R: Read>(
    reader: RoomReader<'_, R>,
    room: RoomNr,
    eyes: &Eyes<'_, R>,
    wanted: &Wanted<'_>,
    page: &mut Vec<(Pos, StoredEvent)>,
    at: Pos,
) -> Result<bool> {
    let Some(event) = reader.event(room, at)? else { return Ok(true) };
    if event.redacted_by().is_some() || !eyes.see(at, &event)? {
        return Ok(true);
    }
    let space = page.len() < wanted.limit;
    if space {
        page.push((at, event));
    }
    Ok(space)
}

/// Where the events lie that relate to one directly or not, each once, without those that are not wanted.
fn related<R: Read>(reader: RoomReader<'_, R>, room: RoomNr, parent: &str, wanted: &Wanted<'_>) -> Result<Vec<Pos>> {
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    let mut level = vec![parent.to_owned()];
    for _ in 0..MAX_DEPTH {
        let mut children: Vec<Pos> = Vec::new();
        for parent in &level {
            let span = schema::RELATIONS.prefix((room, parent.as_str())).limit(MAX_RELATED);
            for row in reader.read.scan(&schema::RELATIONS, span) {
                let ((_, _, at), relation) = row?;
                if seen.len() >= MAX_RELATED || !seen.insert(at) {
                    continue;
                }
                children.push(at);
                if wanted.takes(&relation) {
                    found.push(at);
                }
            }
        }
        if children.is_empty() {
            break;
        }
        children.sort_unstable();
        level.clear();
        for at in children {
            level.extend(reader.event(room, at)?.map(|event| event.event_id().to_owned()));
        }
    }
    Ok(found)
}
