//! What a new room consists of: the events of createRoom as drafts, in the order of the spec. Not
//! here: room ids, aliases and who may create rooms.

use std::collections::BTreeSet;

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, Int, MilliSecondsSinceUnixEpoch, OwnedRoomAliasId, OwnedUserId,
    RoomVersionId, UserId, events::TimelineEventType, int, room_version_rules::RoomVersionRules,
};

use crate::build::Draft;

/// The power level of somebody who made a room before creators had their own kind of power.
pub const CREATOR_LEVEL: i32 = 100;

/// A named bundle of rules for a new room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    PrivateChat,
    TrustedPrivateChat,
    PublicChat,
}

/// One entry of `initial_state`.
#[derive(Clone, Debug, PartialEq)]
pub struct InitialState {
    pub kind: TimelineEventType,
    pub state_key: String,
    pub content: CanonicalJsonObject,
}

/// Somebody to be in the room from the start, with the `displayname` and `avatar_url` for their
/// member event, as far as we know them.
#[derive(Clone, Debug, PartialEq)]
pub struct Person {
    pub user_id: OwnedUserId,
    pub profile: CanonicalJsonObject,
}

/// What somebody wants a new room to be.
#[derive(Clone, Debug)]
pub struct CreateRequest {
    pub version: RoomVersionId,
    pub creator: Person,
    pub preset: Preset,
    pub creation_content: CanonicalJsonObject,
    pub power_level_content_override: CanonicalJsonObject,
    pub initial_state: Vec<InitialState>,
    pub canonical_alias: Option<OwnedRoomAliasId>,
    pub name: Option<String>,
    pub topic: Option<String>,
    pub invite: Vec<Person>,
    pub is_direct: bool,
    pub at: MilliSecondsSinceUnixEpoch,
}

/// Why a room cannot be made like this.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CreateError {
    #[error("`additional_creators` is not a list of user ids")]
    AdditionalCreators,
    #[error("{0} creates the room: creators have all power and cannot be given a power level")]
    CreatorInPowerLevels(String),
    #[error("`initial_state` cannot contain `{0}`")]
    InitialState(String),
}

/// The events of the new room in order, the create event first, invites last.
pub fn plan(request: CreateRequest, rules: &RoomVersionRules) -> Result<Vec<Draft>, CreateError> {
    for entry in &request.initial_state {
        if entry.kind == TimelineEventType::RoomCreate {
            return Err(CreateError::InitialState(entry.kind.to_string()));
        }
    }
    let create = create_content(&request, rules)?;
    let creators = creators(&request, &create, rules);
    let power_levels = power_levels(&request, &creators, rules)?;

    let mut plan = Plan { request: &request, drafts: Vec::new() };
    plan.push("m.room.create", "", create);
    let creator = &request.creator;
    plan.push("m.room.member", creator.user_id.as_str(), member(creator, "join", false));
    plan.push("m.room.power_levels", "", power_levels);
    if let Some(alias) = &request.canonical_alias {
        plan.push_unless_initial("m.room.canonical_alias", text("alias", alias.as_str()));
    }
    let (join_rule, history_visibility, guest_access) = match request.preset {
        Preset::PrivateChat | Preset::TrustedPrivateChat => ("invite", "shared", "can_join"),
        Preset::PublicChat => ("public", "shared", "forbidden"),
    };
    plan.push_unless_initial("m.room.join_rules", text("join_rule", join_rule));
    let visibility = text("history_visibility", history_visibility);
    plan.push_unless_initial("m.room.history_visibility", visibility);
    plan.push_unless_initial("m.room.guest_access", text("guest_access", guest_access));
    for entry in &request.initial_state {
        if !request.outranks(entry) {
            plan.push(&entry.kind.to_string(), &entry.state_key, entry.content.clone());
        }
    }
    if let Some(name) = &request.name {
        plan.push("m.room.name", "", text("name", name));
    }
    if let Some(topic) = &request.topic {
        plan.push("m.room.topic", "", topic_content(topic));
    }
    for person in &request.invite {
        let content = member(person, "invite", request.is_direct);
        plan.push("m.room.member", person.user_id.as_str(), content);
    }
    Ok(plan.drafts)
}

struct Plan<'a> {
    request: &'a CreateRequest,
    drafts: Vec<Draft>,
}

impl Plan<'_> {
    fn push(&mut self, kind: &str, state_key: &str, content: CanonicalJsonObject) {
        let creator = self.request.creator.user_id.clone();
        self.drafts.push(Draft::state(kind, state_key, content, creator, self.request.at));
    }

    fn push_unless_initial(&mut self, kind: &str, content: CanonicalJsonObject) {
        if self.request.initial(kind).is_none() {
            self.push(kind, "", content);
        }
    }
}

impl CreateRequest {
    /// The last entry of `initial_state` for a type, with the empty state key.
    fn initial(&self, kind: &str) -> Option<&InitialState> {
        let kind = TimelineEventType::from(kind);
        self.initial_state.iter().rfind(|entry| entry.kind == kind && entry.state_key.is_empty())
    }

    /// Whether an entry of `initial_state` is expressed by another event of the plan.
    fn outranks(&self, entry: &InitialState) -> bool {
        entry.state_key.is_empty()
            && match entry.kind {
                TimelineEventType::RoomName => self.name.is_some(),
                TimelineEventType::RoomTopic => self.topic.is_some(),
                TimelineEventType::RoomPowerLevels => true,
                _ => false,
            }
    }
}

fn create_content(request: &CreateRequest, rules: &RoomVersionRules) -> Result<CanonicalJsonObject, CreateError> {
    let mut content = request.creation_content.clone();
    content.remove("creator");
    content.extend(text("room_version", request.version.as_str()));
    if !rules.authorization.use_room_create_sender {
        content.extend(text("creator", request.creator.user_id.as_str()));
    }
    if rules.authorization.additional_room_creators {
        let additional = additional_creators(request, &content)?;
        if !additional.is_empty() {
            let list = additional.into_iter().map(|id| CanonicalJsonValue::String(id.into()));
            let list = CanonicalJsonValue::Array(list.collect());
            content.insert("additional_creators".to_owned(), list);
        }
    }
    Ok(content)
}

fn additional_creators(
    request: &CreateRequest,
    content: &CanonicalJsonObject,
) -> Result<Vec<OwnedUserId>, CreateError> {
    let mut creators: Vec<OwnedUserId> = match content.get("additional_creators") {
        None => Vec::new(),
        Some(CanonicalJsonValue::Array(list)) => list
            .iter()
            .map(|id| id.as_str().and_then(|id| UserId::parse(id).ok()))
            .collect::<Option<_>>()
            .ok_or(CreateError::AdditionalCreators)?,
        Some(_) => return Err(CreateError::AdditionalCreators),
    };
    if request.preset == Preset::TrustedPrivateChat {
        creators.extend(request.invite.iter().map(|person| person.user_id.clone()));
    }
    let mut seen = BTreeSet::new();
    creators.retain(|id| seen.insert(id.clone()));
    Ok(creators)
}

/// The users whose power is not a number, if the room version has such users.
fn creators(request: &CreateRequest, create: &CanonicalJsonObject, rules: &RoomVersionRules) -> BTreeSet<String> {
    if !rules.authorization.explicitly_privilege_room_creators {
        return BTreeSet::new();
    }
    let additional = create.get("additional_creators").and_then(CanonicalJsonValue::as_array);
    additional
        .into_iter()
        .flatten()
        .filter_map(|id| id.as_str().map(str::to_owned))
        .chain([request.creator.user_id.to_string()])
        .collect()
}

fn power_levels(
    request: &CreateRequest,
    creators: &BTreeSet<String>,
    rules: &RoomVersionRules,
) -> Result<CanonicalJsonObject, CreateError> {
    let mut content = match request.initial("m.room.power_levels") {
        Some(entry) => entry.content.clone(),
        None => default_power_levels(request, rules),
    };
    content.extend(request.power_level_content_override.clone());
    let users = content.get("users").and_then(CanonicalJsonValue::as_object);
    match users.and_then(|users| users.keys().find(|user| creators.contains(*user))) {
        Some(creator) => Err(CreateError::CreatorInPowerLevels(creator.clone())),
        None => Ok(content),
    }
}

fn default_power_levels(request: &CreateRequest, rules: &RoomVersionRules) -> CanonicalJsonObject {
    let has_creators = rules.authorization.explicitly_privilege_room_creators;
    let mut users: Vec<(&str, Int)> = Vec::new();
    if !has_creators {
        users.push((request.creator.user_id.as_str(), CREATOR_LEVEL.into()));
        if request.preset == Preset::TrustedPrivateChat {
            let invited = request.invite.iter().map(|person| person.user_id.as_str());
            users.extend(invited.map(|user| (user, Int::from(CREATOR_LEVEL))));
        }
    }
    // Upgrading a room is for its creators, where there are any.
    let tombstone = if has_creators { int!(150) } else { int!(100) };
    let events = levels([
        ("m.room.avatar", int!(50)),
        ("m.room.canonical_alias", int!(50)),
        ("m.room.encryption", int!(100)),
        ("m.room.history_visibility", int!(100)),
        ("m.room.name", int!(50)),
        ("m.room.power_levels", int!(100)),
        ("m.room.server_acl", int!(100)),
        ("m.room.tombstone", tombstone),
    ]);
    let invite = if request.preset == Preset::PublicChat { int!(50) } else { int!(0) };
    let mut content = levels([
        ("ban", int!(50)),
        ("events_default", int!(0)),
        ("invite", invite),
        ("kick", int!(50)),
        ("redact", int!(50)),
        ("state_default", int!(50)),
        ("users_default", int!(0)),
    ]);
    content.insert("events".to_owned(), events.into());
    content.insert("notifications".to_owned(), levels([("room", int!(50))]).into());
    content.insert("users".to_owned(), levels(users).into());
    content
}

fn levels<'a>(entries: impl IntoIterator<Item = (&'a str, Int)>) -> CanonicalJsonObject {
    entries.into_iter().map(|(name, level)| (name.to_owned(), level.into())).collect()
}

fn member(person: &Person, membership: &str, is_direct: bool) -> CanonicalJsonObject {
    let mut content = person.profile.clone();
    content.extend(text("membership", membership));
    if is_direct {
        content.insert("is_direct".to_owned(), CanonicalJsonValue::Bool(true));
    }
    content
}

fn topic_content(topic: &str) -> CanonicalJsonObject {
    let mut plain = text("body", topic);
    plain.extend(text("mimetype", "text/plain"));
    let mut block = CanonicalJsonObject::new();
    block.insert("m.text".to_owned(), CanonicalJsonValue::Array(vec![plain.into()]));
    let mut content = text("topic", topic);
    content.insert("m.topic".to_owned(), block.into());
    content
}

fn text(name: &str, value: &str) -> CanonicalJsonObject {
    [(name.to_owned(), CanonicalJsonValue::String(value.to_owned()))].into_iter().collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{RULES_10, RULES_11, RULES_12, object};

    fn person(name: &str) -> Person {
        let user_id = UserId::parse(format!("@{name}:a.test")).unwrap();
        Person { user_id, profile: object(json!({"displayname": name})) }
    }

    fn request(version: RoomVersionId) -> CreateRequest {
        CreateRequest {
            version,
            creator: person("alice"),
            preset: Preset::PrivateChat,
            creation_content: CanonicalJsonObject::new(),
            power_level_content_override: CanonicalJsonObject::new(),
            initial_state: Vec::new(),
            canonical_alias: None,
            name: None,
            topic: None,
            invite: Vec::new(),
            is_direct: false,
            at: MilliSecondsSinceUnixEpoch(ruma::uint!(1)),
        }
    }

    fn initial(kind: &str, content: Value) -> InitialState {
        InitialState { kind: kind.into(), state_key: String::new(), content: object(content) }
    }

    fn kinds(plan: &[Draft]) -> Vec<String> {
        plan.iter().map(|draft| draft.kind.to_string().replace("m.room.", "")).collect()
    }

    fn content(plan: &[Draft], kind: &str) -> Value {
        let found: Vec<_> = plan.iter().filter(|draft| draft.kind.to_string() == format!("m.room.{kind}")).collect();
        assert_eq!(found.len(), 1, "{kind}");
        serde_json::to_value(&found[0].content).unwrap()
    }

    #[test]
    fn pitfall_058_the_events_come_in_the_order_of_the_spec() {
        let mut request = request(RoomVersionId::V11);
        request.preset = Preset::PublicChat;
        request.name = Some("n".to_owned());
        request.topic = Some("t".to_owned());
        request.canonical_alias = Some("#room:a.test".try_into().unwrap());
        request.invite = vec![person("bob"), person("carol")];
        request.is_direct = true;
        request.initial_state = vec![initial("m.room.encryption", json!({"algorithm": "x"}))];
        let plan = plan(request, RULES_11).unwrap();
        assert_eq!(
            kinds(&plan),
            [
                "create",
                "member",
                "power_levels",
                "canonical_alias",
                "join_rules",
                "history_visibility",
                "guest_access",
                "encryption",
                "name",
                "topic",
                "member",
                "member",
            ]
        );
        assert_eq!(content(&plan, "create"), json!({"room_version": "11"}));
        assert_eq!(content(&plan, "join_rules"), json!({"join_rule": "public"}));
        assert_eq!(content(&plan, "guest_access"), json!({"guest_access": "forbidden"}));
        assert_eq!(content(&plan, "power_levels")["users"], json!({"@alice:a.test": 100}));
        assert_eq!(content(&plan, "topic")["m.topic"]["m.text"][0]["body"], "t");
        let invite = plan.last().unwrap();
        assert_eq!(invite.state_key.as_deref(), Some("@carol:a.test"));
        let expected = json!({"membership": "invite", "is_direct": true, "displayname": "carol"});
        assert_eq!(serde_json::to_value(&invite.content).unwrap(), expected);
        let join = json!({"membership": "join", "displayname": "alice"});
        assert_eq!(serde_json::to_value(&plan[1].content).unwrap(), join);
    }

    #[test]
    fn pitfall_058_initial_state_wins_over_the_preset_name_and_topic_over_both() {
        let mut request = request(RoomVersionId::V11);
        request.name = Some("from name".to_owned());
        request.initial_state = vec![
            initial("m.room.join_rules", json!({"join_rule": "knock"})),
            initial("m.room.history_visibility", json!({"history_visibility": "joined"})),
            initial("m.room.name", json!({"name": "from state"})),
            initial("m.room.topic", json!({"topic": "from state"})),
        ];
        let plan = plan(request, RULES_11).unwrap();
        assert_eq!(
            kinds(&plan),
            ["create", "member", "power_levels", "guest_access", "join_rules", "history_visibility", "topic", "name",]
        );
        assert_eq!(content(&plan, "join_rules"), json!({"join_rule": "knock"}));
        assert_eq!(content(&plan, "name"), json!({"name": "from name"}));
        assert_eq!(content(&plan, "topic"), json!({"topic": "from state"}));
    }

    #[test]
    fn pitfall_058_creation_content_cannot_say_who_creates_what() {
        for (version, rules, expected) in [
            (
                RoomVersionId::V10,
                RULES_10,
                json!({"creator": "@alice:a.test", "room_version": "10", "type": "m.space", "m.federate": false}),
            ),
            (RoomVersionId::V11, RULES_11, json!({"room_version": "11", "type": "m.space", "m.federate": false})),
        ] {
            let mut request = request(version);
            request.creation_content = object(json!({
                "creator": "@mallory:a.test", "room_version": "1", "type": "m.space", "m.federate": false
            }));
            assert_eq!(content(&plan(request, rules).unwrap(), "create"), expected);
        }
    }

    #[test]
    fn a_create_event_cannot_come_in_by_the_back_door() {
        let mut request = request(RoomVersionId::V11);
        request.initial_state = vec![initial("m.room.create", json!({}))];
        assert!(matches!(plan(request, RULES_11), Err(CreateError::InitialState(_))));
    }

    #[test]
    fn in_a_trusted_chat_everybody_has_the_same_power() {
        let mut request = request(RoomVersionId::V11);
        request.preset = Preset::TrustedPrivateChat;
        request.invite = vec![person("bob")];
        let levels = content(&plan(request.clone(), RULES_11).unwrap(), "power_levels");
        assert_eq!(levels["users"], json!({"@alice:a.test": 100, "@bob:a.test": 100}));

        request.version = RoomVersionId::V12;
        request.creation_content = object(json!({"additional_creators": ["@carol:a.test", "@carol:a.test"]}));
        let plan = plan(request, RULES_12).unwrap();
        let creators = &content(&plan, "create")["additional_creators"];
        assert_eq!(*creators, json!(["@carol:a.test", "@bob:a.test"]));
        assert_eq!(content(&plan, "power_levels")["users"], json!({}));
    }

    #[test]
    fn in_version_12_upgrading_is_for_creators_and_creators_have_no_level() {
        let request = request(RoomVersionId::V12);
        let levels = content(&plan(request.clone(), RULES_12).unwrap(), "power_levels");
        assert_eq!(levels["events"]["m.room.tombstone"], 150);
        assert_eq!(levels["users"], json!({}));

        let mut listed = request.clone();
        listed.power_level_content_override = object(json!({"users": {"@alice:a.test": 100}}));
        let error = CreateError::CreatorInPowerLevels("@alice:a.test".to_owned());
        assert_eq!(plan(listed, RULES_12).unwrap_err(), error);

        for wrong in [json!("@bob:a.test"), json!([1]), json!(["bob"])] {
            let mut request = request.clone();
            request.creation_content = object(json!({"additional_creators": wrong}));
            assert_eq!(plan(request, RULES_12).unwrap_err(), CreateError::AdditionalCreators);
        }
    }

    #[test]
    fn an_override_replaces_whole_keys_of_the_power_levels() {
        let mut request = request(RoomVersionId::V11);
        request.power_level_content_override = object(json!({"events": {"m.room.name": 0}, "invite": 100}));
        let levels = content(&plan(request, RULES_11).unwrap(), "power_levels");
        assert_eq!(levels["events"], json!({"m.room.name": 0}));
        assert_eq!((&levels["invite"], &levels["ban"]), (&json!(100), &json!(50)));
    }
}
