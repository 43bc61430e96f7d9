//! Changing a room inside one transaction: gather, decide, and put what follows into the batch.
//!
//! [`RoomTx`] is the only writer of events, heads, state nodes and memberships. An event, the state after it, who is a
//! member now, what it redacts and what it relates to become one commit; nothing is told to anybody before.
//! Not here: what requests mean (`send`, `create`, `membership`), and who may read.

use std::collections::HashMap;
use std::sync::Arc;

use ::rooms::admit::admit_local;
use ::rooms::build::{Context, Draft, auth_types, build, seal};
use ::rooms::event::{EventNr, MAX_PREV_EVENTS, Parsed, Parts, Pdu, content_field, room_id_of_create, rules};
use ::rooms::power::Power;
use ::rooms::redact::takes_effect;
use ::rooms::state::{self, Fresh, Key, Node, NodeId, Nodes, Root};
use ruma::events::{StateEventType, TimelineEventType};
use ruma::room_version_rules::RoomVersionRules;
use ruma::{EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, RoomId, RoomVersionId, UserId};
use store::{Pos, Read as _, Tx, ValueBuf, View};

use crate::App;
use crate::error::{Error, Result};
use crate::rooms::membership::{check_not_blocked, takes_guests};
use crate::rooms::read::RoomReader;
use crate::rooms::relations::{ANNOTATION, THREAD, annotation_hash, forget_annotation, newest_reply};
use crate::schema::{self, EventAt, Job, Membership, MembershipState, Relation, RoomNr, room_nr};
use crate::stored::{Head, NewEvent, StoredEvent, TxnEcho};

/// A room as one transaction sees and changes it. Call [`RoomTx::finish`] when all events are in.
pub struct RoomTx<'a> {
    pub(super) app: &'a App,
    pub tx: &'a mut Tx,
    pub nr: RoomNr,
    pub room_id: OwnedRoomId,
    pub head: Head,
    pub rules: &'static RoomVersionRules,
    /// What this transaction adds and the store does not know yet.
    fresh_nodes: HashMap<NodeId, Arc<Node>>,
    fresh_pdus: HashMap<Pos, Arc<Pdu>>,
    /// Events that this transaction redacts.
    redacted: Vec<EventAt>,
}

/// An event that went into the batch.
#[derive(Clone, Debug)]
pub struct Appended {
    pub event_id: OwnedEventId,
    /// Pending until the commit is done.
    pub at: Pos,
    /// What it says, as it is stored.
    pub parts: Parts,
}

/// What else is known of an event of ours.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// The device and transaction that sent it.
    pub txn: Option<TxnEcho>,
}

impl<'a> RoomTx<'a> {
    /// An existing room; `None` if it is not known here.
    pub fn open(app: &'a App, tx: &'a mut Tx, room_id: &RoomId) -> Result<Option<Self>> {
        let nr = room_nr(room_id);
        let Some(head) = tx.get(&schema::HEADS, nr)?.filter(|head| head.room_id == room_id.as_str()) else {
            return Ok(None);
        };
        let rules = rules(&head.version).ok_or_else(|| Error::internal("a room of a version without rules"))?;
        Ok(Some(Self::with_head(app, tx, nr, room_id.to_owned(), head, rules)))
    }

    /// A room that begins with this create event. For versions whose room ID is not made from the create event,
    /// `room_id` is the ID to give it.
    pub fn found(
        app: &'a App,
        tx: &'a mut Tx,
        version: &RoomVersionId,
        create: Draft,
        room_id: Option<OwnedRoomId>,
    ) -> Result<Self> {
        let rules = rules(version).ok_or_else(|| Error::internal("a room version without rules"))?;
        let context = Context { room_id: room_id.as_deref(), prev_events: &[], depth: 1, auth_events: &[] };
        let seal_at = |at| {
            let draft = Draft { origin_server_ts: at, ..create.clone() };
            seal(build(draft, &context, rules), &app.server_name, &app.signing_key, rules).map_err(seal_error)
        };
        let id_of = |sealed: &Parsed| match &room_id {
            Some(room_id) => Ok(room_id.clone()),
            None => room_id_of_create(&sealed.pdu.event_id).ok_or_else(|| Error::internal("a room without an ID")),
        };
        let mut at = create.origin_server_ts;
        let mut sealed = seal_at(at)?;
        // Two rooms that one user makes in one millisecond would be the same room: the second is a bit later.
        while tx.get(&schema::HEADS, room_nr(&id_of(&sealed)?))?.is_some() {
            if room_id.is_some() {
                return Err(Error::internal("the number of the new room is taken"));
            }
            at = MilliSecondsSinceUnixEpoch(at.0 + ruma::uint!(1));
            sealed = seal_at(at)?;
        }
        let room_id = id_of(&sealed)?;
        let nr = room_nr(&room_id);
        let head = Head {
            room_id: room_id.to_string(),
            version: version.clone(),
            state: Root::EMPTY,
            extremities: Vec::new(),
            depth: 0,
            last: Pos::ZERO,
            joined_members: 0,
            invited_members: 0,
        };
        let mut room = Self::with_head(app, tx, nr, room_id, head, rules);
        admit_local(&sealed.pdu, |_, _| None, rules).map_err(|refusal| Error::forbidden(refusal.0))?;
        room.put(sealed, Origin::default())?;
        Ok(room)
    }

    fn with_head(
        app: &'a App,
        tx: &'a mut Tx,
        nr: RoomNr,
        room_id: OwnedRoomId,
        head: Head,
        rules: &'static RoomVersionRules,
    ) -> Self {
        let (fresh_nodes, fresh_pdus) = (HashMap::new(), HashMap::new());
        RoomTx { app, tx, nr, room_id, head, rules, fresh_nodes, fresh_pdus, redacted: Vec::new() }
    }

    /// The current state event under a type and key, as the rules see it.
    pub fn state(&self, kind: &StateEventType, state_key: &str) -> Result<Option<Arc<Pdu>>> {
        match state::get(self, self.head.state, Key::new(&kind.to_string(), state_key))? {
            Some(nr) => self.pdu(Pos(nr.0)),
            None => Ok(None),
        }
    }

    /// The `membership` of a user now; `Leave` also for somebody who never was here.
    pub fn membership_of(&self, user_id: &UserId) -> Result<MembershipState> {
        let member = self.state(&StateEventType::RoomMember, user_id.as_str())?;
        Ok(member.and_then(|pdu| membership_in(&pdu)).unwrap_or(MembershipState::Leave))
    }

    /// An event of this room, as the rules see it.
    pub fn pdu(&self, at: Pos) -> Result<Option<Arc<Pdu>>> {
        if let Some(pdu) = self.fresh_pdus.get(&at) {
            return Ok(Some(pdu.clone()));
        }
        self.reader().pdu(self.nr, &self.head, at)
    }

    /// The stored room, without what this transaction adds.
    pub fn reader(&self) -> RoomReader<'_, View> {
        RoomReader::new(&self.app.room_cache, self.tx.unchecked())
    }

    /// Whether a user is of this server.
    pub fn is_local(&self, user_id: &UserId) -> bool {
        user_id.server_name() == self.app.server_name
    }

    /// Makes the draft an event of this room, if the rules allow it, and puts it and what follows into the batch.
    pub fn append(&mut self, draft: Draft, origin: Origin) -> Result<Appended> {
        if draft.kind == TimelineEventType::RoomMember {
            check_not_blocked(self, &draft)?;
        }
        let keys = auth_types(&draft, self.rules).map_err(|refusal| Error::forbidden(refusal.0))?;
        let mut auth_events = Vec::with_capacity(keys.len());
        for (kind, state_key) in &keys {
            if let Some(pdu) = self.state(kind, state_key)? {
                auth_events.push(pdu.event_id.clone());
            }
        }
        let prev_events = self.prev_events()?;
        let context = Context {
            room_id: Some(&self.room_id),
            prev_events: &prev_events,
            depth: self.head.depth + 1,
            auth_events: &auth_events,
        };
        let unsigned = build(draft, &context, self.rules);
        let sealed = seal(unsigned, &self.app.server_name, &self.app.signing_key, self.rules).map_err(seal_error)?;
        self.admit(&sealed.pdu)?;
        self.put(sealed, origin)
    }

    /// Writes the head. Nothing of the room may be changed after this. Returns the events that were redacted, for
    /// [`RoomCache::forget`](super::read::RoomCache::forget) if this cannot be committed.
    #[must_use]
    pub fn finish(self) -> Vec<EventAt> {
        self.tx.put(&schema::HEADS, self.nr, &self.head);
        self.redacted
    }

    fn prev_events(&self) -> Result<Vec<OwnedEventId>> {
        let newest = self.head.extremities.iter().rev().take(MAX_PREV_EVENTS);
        newest.map(|id| EventId::parse(id).map_err(Error::internal)).collect()
    }

    fn admit(&self, pdu: &Pdu) -> Result<()> {
        // The rules ask by closure; what goes wrong underneath them is kept aside.
        let failed = std::cell::RefCell::new(None);
        let state = |kind: &StateEventType, key: &str| {
            self.state(kind, key).unwrap_or_else(|error| {
                failed.borrow_mut().get_or_insert(error);
                None
            })
        };
        let verdict = admit_local(pdu, state, self.rules);
        match failed.into_inner() {
            Some(error) => Err(error),
            None => verdict.map_err(|refusal| Error::forbidden(refusal.0)),
        }
    }

    fn put(&mut self, sealed: Parsed, origin: Origin) -> Result<Appended> {
        let pdu = Arc::new(sealed.pdu);
        let at = self.tx.next_pos();
        let before = self.head.state;
        let replaces = self.put_state(&pdu, at)?;
        if pdu.kind == TimelineEventType::RoomRedaction {
            self.apply_redaction(&pdu, at)?;
        }
        if let Some(replaced) = replaces.filter(|_| pdu.kind == TimelineEventType::RoomGuestAccess) {
            let took_guests = self.pdu(replaced)?.is_some_and(|access| takes_guests(&access));
            if took_guests && !takes_guests(&pdu) {
                self.show_guests_out();
            }
        }
        self.put_relation(&pdu, at)?;
        let parts = ::rooms::event::split_for_storage(&sealed.object, self.rules);
        let event = NewEvent {
            event_id: pdu.event_id.as_str(),
            sender: pdu.sender.as_str(),
            kind: &pdu.kind.to_string(),
            state_key: pdu.state_key.as_deref(),
            origin_server_ts: pdu.origin_server_ts.get().into(),
            before,
            after: self.head.state,
            replaces,
            txn: origin.txn,
            contains_url: content_field::<&str>(&pdu.content, "url").is_some(),
            rejected: false,
            soft_failed: false,
            redacted_by: None,
            client: &parts.client,
            federation: &parts.federation,
        };
        let mut bytes = ValueBuf::default();
        event.encode(&mut bytes);
        self.tx.put_buf(&schema::EVENTS, (self.nr, at), bytes);
        self.tx.put(&schema::EVENT_IDS, pdu.event_id.as_str(), &EventAt { room: self.nr, at });
        self.head.extremities = vec![pdu.event_id.to_string()];
        self.head.depth += 1;
        self.head.last = at;
        let event_id = pdu.event_id.clone();
        self.fresh_pdus.insert(at, pdu);
        Ok(Appended { event_id, at, parts })
    }

    /// The state after the event, and who is a member after it. Returns the state event that this one replaces.
    fn put_state(&mut self, pdu: &Arc<Pdu>, at: Pos) -> Result<Option<Pos>> {
        let Some(state_key) = pdu.state_key.as_deref() else { return Ok(None) };
        let key = Key::new(&pdu.kind.to_string(), state_key);
        let replaces = state::get(self, self.head.state, key)?.map(|nr| Pos(nr.0));
        let mut fresh = Fresh::new(EventNr(at.0));
        let updated = state::insert(self, self.head.state, [(key, EventNr(at.0))], &mut fresh)?;
        for (id, node) in updated.nodes {
            let mut bytes = NodeSink(ValueBuf::default());
            node.encode(&mut bytes);
            self.tx.put_buf(&schema::STATE_NODES, (Pos(id.nr.0), id.idx), bytes.0);
            self.fresh_nodes.insert(id, node);
        }
        self.head.state = updated.root;
        if pdu.kind == TimelineEventType::RoomMember {
            let was = match replaces {
                Some(replaced) => self.pdu(replaced)?.and_then(|pdu| membership_in(&pdu)),
                None => None,
            };
            self.put_member(pdu, state_key, was, at)?;
        }
        Ok(replaces)
    }

    fn put_member(&mut self, pdu: &Pdu, user_id: &str, was: Option<MembershipState>, at: Pos) -> Result<()> {
        let Some(now) = membership_in(pdu) else { return Ok(()) };
        let count = |n: &mut u32, state: MembershipState| {
            *n = (*n + u32::from(now == state)).saturating_sub(u32::from(was == Some(state)));
        };
        count(&mut self.head.joined_members, MembershipState::Join);
        count(&mut self.head.invited_members, MembershipState::Invite);
        if !UserId::parse(user_id).is_ok_and(|user| self.is_local(&user)) {
            return Ok(());
        }
        let before = self.tx.get(&schema::MEMBERSHIPS, (user_id, self.nr))?;
        let still_joined = was == Some(MembershipState::Join) && now == MembershipState::Join;
        let joined = match (&before, now) {
            (Some(before), MembershipState::Join) if still_joined => before.joined,
            (_, MembershipState::Join) => Some(at),
            (before, _) => before.as_ref().and_then(|before| before.joined),
        };
        let left = match (was, now) {
            (_, MembershipState::Join) => None,
            (Some(MembershipState::Join), _) => Some(at),
            _ => before.as_ref().and_then(|before| before.left),
        };
        let was_joined = before.as_ref().is_some_and(|before| before.joined.is_some());
        let forgotten = before.is_some_and(|before| before.forgotten)
            && matches!(now, MembershipState::Leave | MembershipState::Ban);
        let row = Membership { state: now, event: at, joined, left, was_joined, forgotten };
        self.tx.put(&schema::MEMBERSHIPS, (user_id, self.nr), &row);
        if left == Some(at) {
            self.forget_unread(user_id)?;
        }
        Ok(())
    }

    /// Who has left has nothing unread here.
    fn forget_unread(&mut self, user_id: &str) -> Result<()> {
        self.tx.delete(&schema::UNREAD, (user_id, self.nr));
        let log = schema::UNREAD_LOG.prefix((user_id,));
        let rows: Vec<_> = self.tx.unchecked().scan(&schema::UNREAD_LOG, log).collect::<store::Result<_>>()?;
        for ((_, at), _) in rows.iter().filter(|(_, room)| *room == self.nr) {
            self.tx.delete(&schema::UNREAD_LOG, (user_id, *at));
        }
        Ok(())
    }

    fn put_relation(&mut self, pdu: &Pdu, at: Pos) -> Result<()> {
        if pdu.state_key.is_some() {
            return Ok(());
        }
        let Some(relates_to) = content_field::<RelatesTo>(&pdu.content, "m.relates_to") else { return Ok(()) };
        let (Some(rel_type), Some(parent)) = (relates_to.rel_type, relates_to.event_id) else { return Ok(()) };
        if rel_type.len() > 255 || parent.len() > 255 {
            return Ok(());
        }
        if rel_type == THREAD {
            self.move_thread(&parent, Some(at))?;
        }
        if let (ANNOTATION, Some(key)) = (&*rel_type, &relates_to.key) {
            let hash = annotation_hash(pdu.sender.as_str(), &pdu.kind.to_string(), key);
            self.tx.put(&schema::ANNOTATIONS, (self.nr, &parent, &hash), &at);
        }
        let row = Relation {
            rel_type,
            kind: pdu.kind.to_string(),
            sender: pdu.sender.to_string(),
            key: relates_to.key.filter(|key| key.len() <= 1024),
        };
        self.tx.put(&schema::RELATIONS, (self.nr, &parent, at), &row);
        Ok(())
    }

    /// The newest reply of a thread is here now; there is none any more without `at`.
    fn move_thread(&mut self, root: &str, at: Option<Pos>) -> Result<()> {
        if let Some(before) = self.tx.get(&schema::THREAD_AT, (self.nr, root))? {
            self.tx.delete(&schema::THREADS, (self.nr, before));
        }
        match at {
            Some(at) => {
                self.tx.put(&schema::THREADS, (self.nr, at), &root.to_owned());
                self.tx.put(&schema::THREAD_AT, (self.nr, root), &at);
            }
            None => self.tx.delete(&schema::THREAD_AT, (self.nr, root)),
        }
        Ok(())
    }

    /// Takes the content out of the event that this one redacts, if its sender may do that. An event that is not here
    /// cannot be redacted; the redaction itself stays in the room all the same.
    fn apply_redaction(&mut self, redaction: &Pdu, at: Pos) -> Result<()> {
        let Some(target_id) = &redaction.redacts else { return Ok(()) };
        let Some(target_at) = self.reader().find(self.nr, target_id)? else { return Ok(()) };
        let Some(target) = self.tx.get(&schema::EVENTS, (self.nr, target_at))? else { return Ok(()) };
        let sender = UserId::parse(target.sender()).map_err(Error::internal)?;
        if target.redacted_by().is_some() || !takes_effect(&redaction.sender, &sender, &self.power()?) {
            return Ok(());
        }
        let redacted = self.redact(&target, at)?;
        self.delete_relation(&target, target_at)?;
        crate::rooms::search::forget(self.tx, self.nr, target_at, &target)?;
        if target.is_state("m.room.guest_access", "") {
            self.show_guests_out();
        }
        self.tx.put_buf(&schema::EVENTS, (self.nr, target_at), redacted);
        self.redacted.push(EventAt { room: self.nr, at: target_at });
        Ok(())
    }

    /// Whoever is in the room as a guest leaves it, after this commit.
    fn show_guests_out(&mut self) {
        let job = self.tx.next_pos();
        self.tx.put(&schema::JOBS, job, &Job::LeaveGuests { room_id: self.room_id.to_string() });
    }

    /// What is redacted relates to nothing any more.
    fn delete_relation(&mut self, target: &StoredEvent, at: Pos) -> Result<()> {
        let relates_to = crate::rooms::shown::content_field::<RelatesTo>(target, "m.relates_to");
        let Some(parent) = relates_to.and_then(|it| it.event_id).filter(|parent| parent.len() <= 255) else {
            return Ok(());
        };
        self.tx.delete(&schema::RELATIONS, (self.nr, &parent, at));
        forget_annotation(self.tx, self.nr, at, target)?;
        if self.tx.get(&schema::THREAD_AT, (self.nr, &parent))? == Some(at) {
            let before = newest_reply(self.tx.unchecked(), self.nr, &parent, Pos(at.0.saturating_sub(1)))?;
            self.move_thread(&parent, before)?;
        }
        Ok(())
    }

    fn redact(&self, target: &StoredEvent, by: Pos) -> Result<ValueBuf> {
        let client = ::rooms::redact::client_part(target.client(), self.rules).map_err(Error::internal)?;
        let mut bytes = ValueBuf::default();
        target.redacted(by, &client).encode(&mut bytes);
        Ok(bytes)
    }

    /// Who has which power now.
    pub fn power(&self) -> Result<Power<'static>> {
        let create = self.state(&StateEventType::RoomCreate, "")?;
        let create = create.ok_or_else(|| Error::internal("a room without a create event"))?;
        Ok(Power::new(create, self.state(&StateEventType::RoomPowerLevels, "")?, self.rules))
    }
}

/// State as this transaction leaves it: what it added, then what is stored.
impl Nodes for RoomTx<'_> {
    type Error = Error;

    fn node(&self, id: NodeId) -> Result<Arc<Node>> {
        match self.fresh_nodes.get(&id) {
            Some(node) => Ok(node.clone()),
            None => self.reader().node(id),
        }
    }
}

#[derive(serde::Deserialize)]
struct RelatesTo {
    rel_type: Option<String>,
    event_id: Option<String>,
    key: Option<String>,
}

/// The `membership` in a member event's content.
pub fn membership_in(pdu: &Pdu) -> Option<MembershipState> {
    content_field::<&str>(&pdu.content, "membership").and_then(MembershipState::parse)
}

fn seal_error(error: ::rooms::build::SealError) -> Error {
    if error.is_too_large() { Error::too_large(error.to_string()) } else { Error::bad_json(error.to_string()) }
}

/// Lets state nodes write their pending numbers so that the store patches them.
struct NodeSink(ValueBuf);

impl state::Sink for NodeSink {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.raw(bytes);
    }
    fn nr(&mut self, nr: EventNr) {
        self.0.pos(Pos(nr.0));
    }
}
