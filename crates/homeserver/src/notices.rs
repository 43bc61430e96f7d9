//! Server notices: what the server itself has to say to its users, in one room for each of them (spec: Server Notices).
//!
//! The account that sends them is nobody's. Account, room, invite, tag and message become one commit, each as far as it is
//! not there yet. That the invite cannot be rejected is decided in `rooms::membership`.

use ::rooms::build::Draft;
use ::rooms::membership::{Act, Details, draft};
use ruma::events::TimelineEventType;
use ruma::{CanonicalJsonObject, CanonicalJsonValue, EventId, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UserId};
use serde_json::{Map, Value, json};
use store::{Read as _, Tx};

use crate::App;
use crate::error::{Error, Result};
use crate::rooms::create::Wanted;
use crate::rooms::membership::profile;
use crate::rooms::send::{self, TxnKey};
use crate::rooms::write::{Origin, RoomTx};
use crate::schema::{HEADS, MEMBERSHIPS, MembershipState, NOTICE_ROOMS, TXNS, Txn, USERS, room_nr};
use crate::users::accounts::{self, NewAccount};
use crate::users::{account_data, profiles};

/// By this clients know the room.
const TAG: &str = "m.server_notice";

/// An event to be shown to a user.
#[derive(Clone, Debug)]
pub struct Notice {
    pub kind: String,
    /// For state of the room, such as its topic.
    pub state_key: Option<String>,
    pub content: CanonicalJsonObject,
}

/// Opens the account that sends, so that nobody takes its name. Does nothing where settings name none.
pub async fn prepare(app: &App) -> Result<()> {
    if app.config.server_notices.sender.is_none() {
        return Ok(());
    }
    let sender = sender(app)?;
    app.store.transact(|tx| open_sender(app, tx, &sender)).await.map(drop)
}

/// Who sends notices.
pub fn sender(app: &App) -> Result<OwnedUserId> {
    let name = app.config.server_notices.sender.as_deref();
    let name = name.ok_or_else(|| Error::unknown("This server sends no notices: server_notices.sender is not set"))?;
    accounts::user_id_for_new(app, name)
}

/// Tells a user something, once for each transaction. Returns the ID of the event.
pub async fn send(app: &App, user_id: &UserId, notice: Notice, txn: Option<TxnKey>) -> Result<OwnedEventId> {
    let sender = sender(app)?;
    let new_room = Wanted::private(app, &sender, app.config.server_notices.room_name.clone(), read_only())?;
    let draft = notice.draft(app, &sender);
    if draft.kind == TimelineEventType::RoomRedaction {
        return Err(Error::invalid_param("A notice is no redaction"));
    }
    let sent = app
        .store
        .transact(|tx| {
            if let Some(txn) = &txn
                && let Some(done) = tx.get(&TXNS, txn.row())?
            {
                return EventId::parse(done.event_id).map_err(Error::internal);
            }
            check_reader(tx, &sender, user_id)?;
            open_sender(app, tx, &sender)?;
            let mut room = match kept_room(tx, &sender, user_id)? {
                Some(room_id) => RoomTx::open(app, tx, &room_id)?.ok_or_else(|| Error::internal("a room went"))?,
                None => new_room.found(app, tx)?,
            };
            invite(app, &mut room, &sender, user_id)?;
            let event_id = match draft.state_key {
                Some(_) => send::put_state(&mut room, draft.clone())?,
                None => send::put(&mut room, draft.clone(), None)?,
            };
            let room_id = room.room_id.clone();
            let _nothing_redacted = room.finish();
            tx.put(&NOTICE_ROOMS, user_id.as_str(), &room_id.to_string());
            tag(tx, user_id, &room_id)?;
            if let Some(txn) = &txn {
                tx.put(&TXNS, txn.row(), &Txn::new(event_id.as_str(), app.clock.now_ms()));
            }
            Ok(event_id)
        })
        .await?;
    Ok(sent.value)
}

impl Notice {
    fn draft(&self, app: &App, sender: &UserId) -> Draft {
        let (kind, content, at) = (self.kind.as_str(), self.content.clone(), app.clock.now());
        match &self.state_key {
            Some(state_key) => Draft::state(kind, state_key.as_str(), content, sender.to_owned(), at),
            None => Draft::message(TimelineEventType::from(kind), content, sender.to_owned(), at),
        }
    }
}

/// Power levels of a room in which nobody but its creator speaks.
fn read_only() -> CanonicalJsonObject {
    CanonicalJsonObject::from([("users_default".to_owned(), CanonicalJsonValue::Integer(ruma::int!(-10)))])
}

fn check_reader(tx: &Tx, sender: &UserId, user_id: &UserId) -> Result<()> {
    if user_id == sender {
        return Err(Error::invalid_param("Notices are for others than their sender"));
    }
    match tx.get(&USERS, user_id.as_str())? {
        Some(user) if !user.deactivated => Ok(()),
        _ => Err(Error::not_found("There is no such user")),
    }
}

fn open_sender(app: &App, tx: &mut Tx, sender: &UserId) -> Result<()> {
    match tx.get(&USERS, sender.as_str())? {
        None => accounts::open(app, tx, sender, NewAccount::default())?,
        Some(user) if user.password_hash.is_none() && !user.deactivated && !user.guest => {}
        Some(_) => return Err(Error::unknown(format!("{sender} is somebody's account: notices need another sender"))),
    }
    profiles::set(tx, sender, profiles::DISPLAYNAME, Some(&json!(app.config.server_notices.display_name)))
}

/// The room of a user's notices, if it is there and the sender in it.
fn kept_room(tx: &Tx, sender: &UserId, user_id: &UserId) -> Result<Option<OwnedRoomId>> {
    let Some(room_id) = tx.get(&NOTICE_ROOMS, user_id.as_str())? else { return Ok(None) };
    let room_id = RoomId::parse(room_id).map_err(Error::internal)?;
    let nr = room_nr(&room_id);
    let member = tx.get(&MEMBERSHIPS, (sender.as_str(), nr))?;
    let joined = member.is_some_and(|member| member.state == MembershipState::Join);
    Ok((joined && tx.contains(&HEADS, nr)?).then_some(room_id))
}

/// Invites the user who is not there. Whoever wants no invites gets this one.
fn invite(app: &App, room: &mut RoomTx<'_>, sender: &UserId, user_id: &UserId) -> Result<()> {
    if matches!(room.membership_of(user_id)?, MembershipState::Join | MembershipState::Invite) {
        return Ok(());
    }
    let details = Details { profile: profile(room.tx, user_id)?, ..Details::default() };
    let invite = draft(Act::Invite, sender.to_owned(), user_id, details, app.clock.now());
    room.append(invite, Origin::default()).map(drop)
}

fn tag(tx: &mut Tx, user_id: &UserId, room_id: &RoomId) -> Result<()> {
    let kept = account_data::get(tx, user_id, room_id.as_str(), "m.tag")?;
    let kept = kept.and_then(|content| serde_json::from_slice::<Map<String, Value>>(&content).ok());
    let mut tags = match kept.and_then(|mut content| content.remove("tags")) {
        Some(Value::Object(tags)) => tags,
        _ => Map::new(),
    };
    if tags.contains_key(TAG) {
        return Ok(());
    }
    tags.insert(TAG.to_owned(), json!({}));
    account_data::put(tx, user_id, room_id.as_str(), "m.tag", json!({ "tags": tags }).to_string().into())
}
