//! createRoom: the whole room in one commit, or no room.

use ::rooms::create::{CreateError, CreateRequest, InitialState, Person, Preset, plan};
use ::rooms::event::{room_id_is_create_hash, rules};
use ruma::api::client::room::Visibility;
use ruma::api::client::room::create_room::v3::{Request, RoomPreset};
use ruma::events::TimelineEventType;
use ruma::serde::Raw;
use ruma::{
    CanonicalJsonObject, MilliSecondsSinceUnixEpoch, OwnedRoomAliasId, OwnedRoomId, RoomAliasId, RoomId, RoomVersionId,
    UserId,
};
use serde::Deserialize;
use store::{Read as _, Tx};

use crate::App;
use crate::error::{Error, ErrorCode, Result};
use crate::rooms::membership::{check_invitee, invites, profile, vet};
use crate::rooms::send::content_from;
use crate::rooms::write::{Origin, RoomTx};
use crate::schema::{self, Alias};

/// The most people a room can be made with.
const MAX_INVITES: usize = 100;

/// Makes a room and returns its ID.
pub async fn create(app: &App, creator: &UserId, request: Request) -> Result<OwnedRoomId> {
    let version = version(app, &request)?;
    check(app, &request)?;
    let alias = request.room_alias_name.as_deref().map(|name| local_alias(app, name)).transpose()?;
    let public = request.visibility == Visibility::Public;
    let wanted = Wanted::from_request(app, creator, request, version, alias)?;
    let made = app.store.transact(|tx| wanted.make(app, tx, public)).await?;
    Ok(made.value)
}

/// A checked request.
pub struct Wanted {
    request: CreateRequest,
    /// For versions whose room ID is not made from the create event.
    room_id: Option<OwnedRoomId>,
    alias: Option<OwnedRoomAliasId>,
}

impl Wanted {
    fn from_request(
        app: &App,
        creator: &UserId,
        request: Request,
        version: RoomVersionId,
        alias: Option<OwnedRoomAliasId>,
    ) -> Result<Self> {
        let preset = match &request.preset {
            Some(RoomPreset::PublicChat) => Preset::PublicChat,
            Some(RoomPreset::TrustedPrivateChat) => Preset::TrustedPrivateChat,
            Some(RoomPreset::PrivateChat) => Preset::PrivateChat,
            Some(_) => return Err(Error::invalid_param("There is no such preset")),
            None if request.visibility == Visibility::Public => Preset::PublicChat,
            None => Preset::PrivateChat,
        };
        let person = |user_id: &UserId| Person { user_id: user_id.to_owned(), profile: CanonicalJsonObject::new() };
        let mut invite: Vec<Person> = request.invite.iter().map(|user| person(user)).collect();
        invite.retain(|person| person.user_id != creator);
        let initial_state: Vec<InitialState> =
            request.initial_state.iter().map(initial_state).collect::<Result<_>>()?;
        check_invites(&invite, &initial_state)?;
        let request = CreateRequest {
            version,
            creator: person(creator),
            preset,
            creation_content: raw_content(request.creation_content.as_ref())?,
            power_level_content_override: raw_content(request.power_level_content_override.as_ref())?,
            initial_state,
            canonical_alias: alias.clone(),
            name: request.name,
            topic: request.topic,
            invite,
            is_direct: request.is_direct,
            at: app.clock.now(),
        };
        Self::new(app, request, alias)
    }

    /// A private room that the server makes, without invites.
    pub fn private(app: &App, creator: &UserId, name: String, power_levels: CanonicalJsonObject) -> Result<Self> {
        let request = CreateRequest {
            version: app.config.rooms.default_version.clone(),
            creator: Person { user_id: creator.to_owned(), profile: CanonicalJsonObject::new() },
            preset: Preset::PrivateChat,
            creation_content: CanonicalJsonObject::new(),
            power_level_content_override: power_levels,
            initial_state: Vec::new(),
            canonical_alias: None,
            name: Some(name),
            topic: None,
            invite: Vec::new(),
            is_direct: false,
            at: app.clock.now(),
        };
        Self::new(app, request, None)
    }

    fn new(app: &App, request: CreateRequest, alias: Option<OwnedRoomAliasId>) -> Result<Self> {
        let hashed = rules(&request.version).is_some_and(room_id_is_create_hash);
        let room_id = if hashed { None } else { Some(random_room_id(app)?) };
        Ok(Wanted { request, room_id, alias })
    }

    fn make(&self, app: &App, tx: &mut Tx, public: bool) -> Result<OwnedRoomId> {
        if let Some(alias) = &self.alias
            && tx.get(&schema::ALIASES, alias.as_str())?.is_some()
        {
            return Err(Error::bad_request(ErrorCode::RoomInUse, "This alias is taken"));
        }
        let creator = &self.request.creator.user_id;
        let room = self.found(app, tx)?;
        let (room_id, nr) = (room.room_id.clone(), room.nr);
        // Nothing is redacted here.
        let _ = room.finish();
        if let Some(alias) = &self.alias {
            let row = Alias { room_id: room_id.to_string(), creator: creator.to_string() };
            tx.put(&schema::ALIASES, alias.as_str(), &row);
            tx.put(&schema::ROOM_ALIASES, (nr, alias.as_str()), &());
        }
        if public {
            tx.put(&schema::PUBLIC_ROOMS, nr, &());
        }
        Ok(room_id)
    }

    /// The room with all its events, for more to be put in before it is finished.
    pub fn found<'a>(&self, app: &'a App, tx: &'a mut Tx) -> Result<RoomTx<'a>> {
        let version = &self.request.version;
        let rules = rules(version).ok_or_else(|| Error::internal("a room version without rules"))?;
        let mut request = self.request.clone();
        for person in std::iter::once(&mut request.creator).chain(&mut request.invite) {
            person.profile = profile(tx, &person.user_id)?;
        }
        let mut drafts = plan(request, rules).map_err(plan_error)?.into_iter();
        let create = drafts.next().ok_or_else(|| Error::internal("a room without events"))?;
        let mut room = RoomTx::found(app, tx, version, create, self.room_id.clone())?;
        // The creator's own join comes next, and needs nobody's leave.
        for draft in drafts.by_ref().take(1) {
            room.append(draft, Origin::default())?;
        }
        for mut draft in drafts {
            if draft.kind == TimelineEventType::RoomMember {
                vet(&room, &mut draft)?;
            }
            room.append(draft, Origin::default())?;
        }
        Ok(room)
    }
}

fn version(app: &App, request: &Request) -> Result<RoomVersionId> {
    let version = request.room_version.clone().unwrap_or_else(|| app.config.rooms.default_version.clone());
    if rules(&version).is_none() {
        return Err(Error::bad_request(
            ErrorCode::UnsupportedRoomVersion,
            format!("Rooms of version {version} are not supported"),
        ));
    }
    Ok(version)
}

fn check(app: &App, request: &Request) -> Result<()> {
    if !request.invite_3pid.is_empty() {
        return Err(Error::forbidden("People cannot be invited by address: there is no identity server"));
    }
    request.invite.iter().try_for_each(|user| check_invitee(app, user))
}

/// Bounds how many people a request invites, in whichever way it does.
fn check_invites(invite: &[Person], initial_state: &[InitialState]) -> Result<()> {
    let is_invite = |entry: &&InitialState| entry.kind == TimelineEventType::RoomMember && invites(&entry.content);
    check_number(invite.len() + initial_state.iter().filter(is_invite).count())
}

/// Bounds how many people are invited in one request.
pub fn check_number(invites: usize) -> Result<()> {
    if invites > MAX_INVITES {
        return Err(Error::invalid_param(format!("A room can be made with {MAX_INVITES} invites at most")));
    }
    Ok(())
}

fn local_alias(app: &App, name: &str) -> Result<OwnedRoomAliasId> {
    if name.is_empty() || name.chars().any(|c| c == ':' || c == '#' || c.is_whitespace() || c.is_control()) {
        return Err(Error::invalid_param("This is not the local part of an alias"));
    }
    RoomAliasId::parse(format!("#{name}:{}", app.server_name)).map_err(|cause| Error::invalid_param(cause.to_string()))
}

pub(super) fn random_room_id(app: &App) -> Result<OwnedRoomId> {
    RoomId::parse(format!("!{}:{}", app.rng.alphanumeric(18), app.server_name)).map_err(Error::internal)
}

fn raw_content<T>(raw: Option<&Raw<T>>) -> Result<CanonicalJsonObject> {
    raw.map_or_else(|| Ok(CanonicalJsonObject::new()), |raw| content_from(raw.json().get().as_bytes()))
}

fn initial_state<T>(raw: &Raw<T>) -> Result<InitialState> {
    #[derive(Deserialize)]
    struct Entry {
        #[serde(rename = "type")]
        kind: String,
        #[serde(default)]
        state_key: String,
        content: CanonicalJsonObject,
    }
    let entry: Entry =
        serde_json::from_str(raw.json().get()).map_err(|cause| Error::bad_json(format!("initial_state: {cause}")))?;
    Ok(InitialState { kind: entry.kind.into(), state_key: entry.state_key, content: entry.content })
}

fn plan_error(error: CreateError) -> Error {
    Error::bad_request(ErrorCode::InvalidRoomState, error.to_string())
}

/// When the request arrived, if the caller may say so.
pub fn timestamp(app: &App, wanted: Option<MilliSecondsSinceUnixEpoch>, trusted: bool) -> MilliSecondsSinceUnixEpoch {
    wanted.filter(|_| trusted).unwrap_or_else(|| app.clock.now())
}
