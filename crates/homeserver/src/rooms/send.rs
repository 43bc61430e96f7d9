//! Sending events: messages, state, redactions. One request, one decision, one commit.
//!
//! The transaction row is in the same commit as the event, so that a retry answers with the same event, whatever
//! happened in between. Not here: memberships (`membership`) and new rooms (`create`).

use ::rooms::build::Draft;
use ::rooms::redact::may_redact;
use ruma::events::{StateEventType, TimelineEventType};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedUserId, RoomId,
    TransactionId, UserId,
};
use serde::Deserialize;
use store::{Read as _, Tx};

use crate::App;
use crate::auth::Requester;
use crate::error::{Error, ErrorCode, Result};
use crate::rooms::change;
use crate::rooms::membership;
use crate::rooms::relations::{ANNOTATION, THREAD, annotation_hash, relates};
use crate::rooms::write::{Origin, RoomTx};
use crate::schema::{self, MembershipState, Txn};
use crate::stored::TxnEcho;

/// Begins the scope of transactions of those who have no device.
const NO_DEVICE: char = '\n';

/// A transaction of a client: its scope is the device, or else the token, and the path (pitfall 1).
#[derive(Clone, Debug)]
pub struct TxnKey {
    user_id: OwnedUserId,
    device_id: String,
    hash: [u8; 16],
    transaction_id: String,
}

impl TxnKey {
    /// `path` is what identifies the endpoint, without the transaction ID.
    pub fn new(requester: &Requester, path: &[&str], transaction_id: &TransactionId) -> Self {
        let device_id = match &requester.device_id {
            Some(device_id) => device_id.to_string(),
            // Sessions without a device know nothing of each other. No device has such a name.
            None => format!("{NO_DEVICE}{}", requester.token_id),
        };
        Self::scoped(&requester.user_id, device_id, path, transaction_id)
    }

    /// A transaction of whoever uses the administration socket, kept with a user of the server itself.
    pub fn of_operator(user_id: &UserId, path: &[&str], transaction_id: &TransactionId) -> Self {
        Self::scoped(user_id, NO_DEVICE.to_string(), path, transaction_id)
    }

    fn scoped(user_id: &UserId, device_id: String, path: &[&str], transaction_id: &TransactionId) -> Self {
        let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
        for part in path.iter().copied().chain([transaction_id.as_str()]) {
            digest.update(&(part.len() as u64).to_be_bytes());
            digest.update(part.as_bytes());
        }
        let mut hash = [0; 16];
        hash.copy_from_slice(&digest.finish().as_ref()[..16]);
        TxnKey { user_id: user_id.to_owned(), device_id, hash, transaction_id: transaction_id.to_string() }
    }

    /// The key of its row.
    pub fn row(&self) -> (&str, &str, &[u8; 16]) {
        (self.user_id.as_str(), &self.device_id, &self.hash)
    }

    /// A logout takes the device's transactions along: what it overtook could be done a second time.
    pub fn check_device(&self, tx: &Tx) -> Result<()> {
        let device = (self.user_id.as_str(), self.device_id.as_str());
        if self.device_id.starts_with(NO_DEVICE) || tx.contains(&schema::DEVICES, device)? {
            return Ok(());
        }
        Err(Error::unknown_token())
    }

    fn echo(&self) -> TxnEcho {
        TxnEcho { device_id: self.device_id.clone(), transaction_id: self.transaction_id.clone() }
    }
}

/// Puts an event into a room, once for each transaction. Returns its ID.
pub async fn send(app: &App, room_id: &RoomId, draft: Draft, txn: Option<TxnKey>) -> Result<OwnedEventId> {
    let sent = change(app, room_id, |room| {
        if let Some(txn) = &txn
            && let Some(done) = room.tx.get(&schema::TXNS, txn.row())?
        {
            return EventId::parse(done.event_id).map_err(Error::internal);
        }
        if let Some(txn) = &txn {
            txn.check_device(room.tx)?;
        }
        let event_id = put(room, draft.clone(), txn.as_ref().map(TxnKey::echo))?;
        if let Some(txn) = &txn {
            room.tx.put(&schema::TXNS, txn.row(), &Txn::new(event_id.as_str(), app.clock.now_ms()));
        }
        Ok(event_id)
    })
    .await?;
    Ok(sent.value)
}

/// Puts a state event into a room. The same content as now is the same event as now (pitfall 3).
pub async fn send_state(app: &App, room_id: &RoomId, draft: Draft) -> Result<OwnedEventId> {
    Ok(change(app, room_id, |room| put_state(room, draft.clone())).await?.value)
}

/// Puts an event of a user of this server into a room.
pub fn put(room: &mut RoomTx<'_>, draft: Draft, txn: Option<TxnEcho>) -> Result<OwnedEventId> {
    check_sender(room, &draft)?;
    Ok(room.append(draft, Origin { txn })?.event_id)
}

/// The same for state.
pub fn put_state(room: &mut RoomTx<'_>, mut draft: Draft) -> Result<OwnedEventId> {
    check_sender(room, &draft)?;
    let kind = StateEventType::from(draft.kind.to_string());
    if kind == StateEventType::RoomMember {
        membership::vet(room, &mut draft)?;
    }
    let state_key = draft.state_key.as_deref().unwrap_or_default();
    if let Some(now) = room.state(&kind, state_key)?
        && now.sender == draft.sender
        && content_from(now.content.get().as_bytes()).is_ok_and(|content| content == draft.content)
    {
        return Ok(now.event_id.clone());
    }
    if kind == StateEventType::RoomCanonicalAlias {
        crate::rooms::aliases::check_canonical(room, &draft.content)?;
    }
    Ok(room.append(draft, Origin::default())?.event_id)
}

/// What the rules of rooms leave open, but users of this server may not do.
fn check_sender(room: &RoomTx<'_>, draft: &Draft) -> Result<()> {
    if draft.kind == TimelineEventType::RoomMember && draft.state_key.is_some() {
        return Ok(());
    }
    if room.membership_of(&draft.sender)? != MembershipState::Join {
        return Err(Error::forbidden("You are not in this room"));
    }
    if draft.kind == TimelineEventType::RoomRedaction && draft.state_key.is_none() {
        check_redaction(room, draft)?;
    }
    if draft.state_key.is_none() {
        check_annotation(room, draft)?;
        check_thread(room, draft)?;
    }
    Ok(())
}

fn check_redaction(room: &RoomTx<'_>, draft: &Draft) -> Result<()> {
    let Some(redacts) = &draft.redacts else { return Err(Error::missing_param("What is to be redacted is missing")) };
    let at = room.reader().find(room.nr, redacts)?.ok_or_else(|| Error::not_found("There is no such event"))?;
    let target = room.tx.get(&schema::EVENTS, (room.nr, at))?.ok_or_else(|| Error::not_found("No such event"))?;
    let sender = UserId::parse(target.sender()).map_err(Error::internal)?;
    let account = room.tx.get(&schema::USERS, draft.sender.as_str())?;
    if sender != draft.sender && account.is_some_and(|account| account.suspended) {
        return Err(Error::user_suspended());
    }
    if may_redact(&draft.sender, &sender, &room.power()?) {
        Ok(())
    } else {
        Err(Error::forbidden("You may not redact this event"))
    }
}

/// What relates to something else cannot be the root of a thread (pitfall 51).
fn check_thread(room: &RoomTx<'_>, draft: &Draft) -> Result<()> {
    let relates_to = draft.content.get("m.relates_to").and_then(|value| value.as_object());
    let text = |name: &str| relates_to.and_then(|it| it.get(name)).and_then(|value| value.as_str());
    let (Some(THREAD), Some(root)) = (text("rel_type"), text("event_id")) else { return Ok(()) };
    let view = room.tx.unchecked();
    let Some(found) = view.get(&schema::EVENT_IDS, root)?.filter(|found| found.room == room.nr) else { return Ok(()) };
    let root = view.get(&schema::EVENTS, (room.nr, found.at))?;
    if root.is_some_and(|root| relates(&root)) {
        return Err(Error::unknown("A thread cannot begin with an event that relates to another"));
    }
    Ok(())
}

/// One user annotates an event with one key once (pitfall 51).
fn check_annotation(room: &RoomTx<'_>, draft: &Draft) -> Result<()> {
    let Some(relates_to) = draft.content.get("m.relates_to").and_then(|value| value.as_object()) else { return Ok(()) };
    let text = |name: &str| relates_to.get(name).and_then(|value| value.as_str());
    let (Some(ANNOTATION), Some(parent), Some(key)) = (text("rel_type"), text("event_id"), text("key")) else {
        return Ok(());
    };
    let hash = annotation_hash(draft.sender.as_str(), &draft.kind.to_string(), key);
    if parent.len() <= 255 && room.tx.contains(&schema::ANNOTATIONS, (room.nr, parent, &hash))? {
        let why = "You have annotated this event with this key already";
        return Err(Error::bad_request(ErrorCode::DuplicateAnnotation, why));
    }
    Ok(())
}

/// The content of a client's request as canonical JSON.
pub fn content_from(bytes: &[u8]) -> Result<CanonicalJsonObject> {
    ::rooms::build::content_from_json(bytes).map_err(|cause| Error::bad_json(cause.to_string()))
}

/// The content of a redaction.
#[derive(Debug, Default, Deserialize)]
pub struct Redaction {
    pub reason: Option<String>,
}

/// What a client sends, as a draft. What a redaction redacts is told in its content.
pub fn message(
    kind: &str,
    mut content: CanonicalJsonObject,
    sender: OwnedUserId,
    at: MilliSecondsSinceUnixEpoch,
) -> Result<Draft> {
    if kind != "m.room.redaction" {
        return Ok(Draft::message(TimelineEventType::from(kind), content, sender, at));
    }
    let redacts = match content.remove("redacts") {
        Some(CanonicalJsonValue::String(id)) => EventId::parse(id).ok(),
        _ => None,
    };
    let redacts = redacts.ok_or_else(|| Error::missing_param("The content does not say what it redacts"))?;
    Ok(redaction(sender, redacts, content, at))
}

/// A redaction as a draft.
pub fn redaction(
    sender: OwnedUserId,
    redacts: OwnedEventId,
    content: CanonicalJsonObject,
    at: MilliSecondsSinceUnixEpoch,
) -> Draft {
    let mut draft = Draft::message(TimelineEventType::RoomRedaction, content, sender, at);
    draft.redacts = Some(redacts);
    draft
}
