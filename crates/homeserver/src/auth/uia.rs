//! User-interactive authentication: an operation is asked for again until enough was proven.
//!
//! A session is bound to the operation and to the parameters it was begun with, holds what was proven so far, ends
//! after a while, and is good for one success. Sessions live in bounded memory: after a restart clients begin anew.

use std::collections::HashMap;

use parking_lot::Mutex;
use ring::digest::{SHA256, digest};
use ruma::UserId;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use store::Read;

use crate::App;
use crate::auth::lockout::Guesser;
use crate::auth::password::{self, Proof};
use crate::auth::{Requester, oauth};
use crate::error::{Error, Result};
use crate::limits::{Class, Owner};
use crate::schema::{REGISTRATION_TOKENS, RegistrationToken, USERS};

/// One thing to prove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// That one is the user whose token was used.
    Password,
    /// Nothing.
    Dummy,
    /// That one was given a registration token.
    RegistrationToken,
    /// That one approved the operation on a page of this server.
    Oauth,
    /// The same, under the name that clients knew before.
    OauthReset,
}

/// What an operation asks for.
pub struct Challenge<'a> {
    /// The name of the operation and its path arguments: a session is good for nothing else.
    pub operation: String,
    /// Who has to prove that it is them.
    pub user_id: Option<&'a UserId>,
    /// From which device they do so, if they have one.
    pub device_id: &'a str,
    /// Ways to succeed: one of these, its stages in order.
    pub flows: &'a [&'a [Stage]],
    /// The request's JSON body, with or without `auth`.
    pub body: &'a [u8],
    /// Whether every request of the session has to have the same body. Only registration is more lenient: clients ask
    /// for the flows before they know the user name.
    pub bound: bool,
}

/// All stages are done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Valid when it was shown. Who makes the account counts its use.
    pub registration_token: Option<String>,
    /// Of the password that was shown.
    password: Option<Proof>,
}

impl Passed {
    /// An error if what was proven is not so any more. To be asked in the transaction that does what was asked for.
    pub fn holds(&self, read: &impl Read) -> Result<()> {
        self.password.as_ref().map_or(Ok(()), |password| password.holds(read))
    }
}

#[derive(Default)]
pub struct Sessions(Mutex<HashMap<String, Session>>);

#[derive(Clone)]
struct Session {
    operation: [u8; 32],
    expires_ms: u64,
    completed: Vec<Stage>,
    passed: Passed,
}

/// `auth` of a request. Without `type` it asks whether what happened elsewhere is enough by now.
#[derive(Debug, Deserialize)]
struct Attempt {
    #[serde(rename = "type")]
    stage: Option<String>,
    session: Option<String>,
    identifier: Option<UserIdentifier>,
    /// What clients sent before there were identifiers.
    user: Option<String>,
    password: Option<String>,
    token: Option<String>,
}

/// Who somebody says they are.
#[derive(Debug, Deserialize)]
pub struct UserIdentifier {
    #[serde(rename = "type")]
    pub kind: String,
    pub user: Option<String>,
}

const LIFETIME_MS: u64 = 15 * 60 * 1000;
const MAX_SESSIONS: usize = 4_096;

/// Lets a request pass that proves who its sender is by their password. An application service has proved that by its
/// token, and its users have no passwords.
pub async fn check_password(app: &App, requester: &Requester, operation: String, body: &[u8]) -> Result<Passed> {
    if requester.appservice.is_some() {
        not_an_administrator(&app.store.snapshot(), &requester.user_id)?;
        return Ok(Passed::default());
    }
    // A client of OAuth never sees a password: its users do such things on the pages of this server.
    if is_by_oauth(app, requester)? {
        return Err(Error::unrecognized());
    }
    let flows = &[&[Stage::Password][..]];
    let user_id = Some(&*requester.user_id);
    check(app, &Challenge { operation, user_id, device_id: device_of(requester), flows, body, bound: true }).await
}

/// Lets a request pass that replaces its sender's cross-signing keys. Who logged in by OAuth has to approve of it on a page
/// of this server; after that some clients come back with the session, some with nothing.
pub async fn check_reset(app: &App, requester: &Requester, operation: String, body: &[u8]) -> Result<Passed> {
    if !is_by_oauth(app, requester)? {
        return check_password(app, requester, operation, body).await;
    }
    let flows = &[&[Stage::Oauth][..], &[Stage::OauthReset][..]];
    let (user_id, device_id) = (&*requester.user_id, device_of(requester));
    let challenge = Challenge { operation, user_id: Some(user_id), device_id, flows, body, bound: true };
    let mut wanted: Map<String, Value> = serde_json::from_slice(body)?;
    wanted.remove("auth");
    // What is approved is one request of one device, and nothing that somebody else puts in its place.
    let (wanted, resets) = (challenge.bind(&wanted), &app.auth.oauth.resets);
    if resets.is_approved(app, user_id, device_id, wanted)? {
        return Ok(Passed::default());
    }
    resets.ask(app, user_id, device_id, wanted);
    check(app, &challenge).await
}

/// An application service speaks for its users, but does not become an administrator through one: neither by a session that
/// it opens nor by what otherwise takes a password.
pub fn not_an_administrator(read: &impl Read, user_id: &UserId) -> Result<()> {
    match read.get(&USERS, user_id.as_str())? {
        Some(user) if user.admin => Err(Error::forbidden("Application services do not do this for administrators")),
        _ => Ok(()),
    }
}

/// Whether a requester logged in by OAuth: such clients see no passwords, so that they cannot prove anything by one.
pub fn is_by_oauth(app: &App, requester: &Requester) -> Result<bool> {
    oauth::is_session(&app.store.snapshot(), requester.user_id.as_str(), device_of(requester))
}

fn device_of(requester: &Requester) -> &str {
    requester.device_id.as_ref().map_or("", |device_id| device_id.as_str())
}

/// Lets a request pass that did all stages of a flow. Anything else is the error to answer with.
pub async fn check(app: &App, challenge: &Challenge<'_>) -> Result<Passed> {
    let mut body: Map<String, Value> = serde_json::from_slice(challenge.body)?;
    let attempt = match body.remove("auth") {
        None | Some(Value::Null) => None,
        Some(auth) => Some(serde_json::from_value::<Attempt>(auth)?),
    };
    let operation = challenge.bind(&body);
    let sessions = &app.auth.interactive;
    let Some(attempt) = attempt else {
        let id = sessions.begin(app, operation);
        return Err(challenge.ask(app, &id, &[], None));
    };
    let (id, mut session) = match &attempt.session {
        None => {
            let id = sessions.begin(app, operation);
            let session = sessions.find(app, &id).ok_or_else(|| Error::unavailable("Too many sessions"))?;
            (id, session)
        }
        Some(id) => match sessions.find(app, id) {
            Some(session) => (id.clone(), session),
            None => {
                let id = sessions.begin(app, operation);
                let unknown = Error::unknown("This session is unknown or has ended");
                return Err(challenge.ask(app, &id, &[], Some(unknown)));
            }
        },
    };
    if session.operation != operation {
        return Err(Error::forbidden("This session was begun for another request"));
    }
    if let Some(name) = &attempt.stage {
        match challenge.attempt(app, name, &attempt, &mut session).await {
            Ok(()) => sessions.advance(&id, &session),
            Err(failure) if failure.status().is_client_error() => {
                return Err(challenge.ask(app, &id, &session.completed, Some(failure)));
            }
            Err(failure) => return Err(failure),
        }
    }
    if challenge.flows.contains(&session.completed.as_slice()) {
        // Of two requests at the same time one takes the session with it.
        return sessions.take(&id).ok_or_else(|| challenge.ask(app, &id, &session.completed, None));
    }
    Err(challenge.ask(app, &id, &session.completed, None))
}

impl Challenge<'_> {
    /// Where the user goes, for stages that are done on pages.
    fn params(&self, app: &App) -> Value {
        let mut params = Map::new();
        if let Ok(site) = app.auth.oauth.site() {
            let stages = self.flows.iter().copied().flatten();
            for stage in stages.filter(|stage| matches!(stage, Stage::Oauth | Stage::OauthReset)) {
                params.insert(stage.name().to_owned(), json!({ "url": site.reset_url() }));
            }
        }
        Value::Object(params)
    }

    fn bind(&self, body: &Map<String, Value>) -> [u8; 32] {
        let body = if self.bound { json!(body).to_string() } else { String::new() };
        let user_id = self.user_id.map_or("", UserId::as_str);
        let text = json!([self.operation, user_id, body]).to_string();
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, text.as_bytes()).as_ref());
        hash
    }

    /// The 401 that says what there is to do.
    fn ask(&self, app: &App, session: &str, completed: &[Stage], failure: Option<Error>) -> Error {
        let names = |stages: &[Stage]| stages.iter().map(|stage| stage.name()).collect::<Vec<_>>();
        let flows: Vec<_> = self.flows.iter().map(|stages| json!({ "stages": names(stages) })).collect();
        let mut info = json!({ "flows": flows, "params": self.params(app), "session": session });
        if !completed.is_empty() {
            info["completed"] = json!(names(completed));
        }
        Error::interactive(&info, failure)
    }

    async fn attempt(&self, app: &App, name: &str, attempt: &Attempt, session: &mut Session) -> Result<()> {
        let stage = self.flows.iter().copied().flatten().find(|stage| stage.name() == name);
        let stage = *stage.ok_or_else(|| Error::unknown(format!("{name} is no stage here")))?;
        if session.completed.contains(&stage) {
            return Err(Error::forbidden("This stage is done already"));
        }
        let next = session.completed.len();
        let possible = |flow: &&[Stage]| flow.starts_with(&session.completed) && flow.get(next) == Some(&stage);
        if !self.flows.iter().any(possible) {
            return Err(Error::forbidden("Another stage comes first"));
        }
        match stage {
            Stage::Dummy => {}
            // Once it was approved, nobody is asked.
            Stage::Oauth | Stage::OauthReset => return Err(Error::forbidden("This was not approved yet")),
            Stage::Password => session.passed.password = Some(self.password(app, attempt).await?),
            Stage::RegistrationToken => {
                let token = attempt.token.as_deref().ok_or_else(|| Error::missing_param("token is missing"))?;
                if !registration_token_is_valid(app, token)? {
                    return Err(Error::forbidden("This registration token is not valid"));
                }
                session.passed.registration_token = Some(token.to_owned());
            }
        }
        session.completed.push(stage);
        Ok(())
    }

    async fn password(&self, app: &App, attempt: &Attempt) -> Result<Proof> {
        let user_id = self.user_id.ok_or_else(|| Error::internal("a password stage without a user"))?;
        let password = attempt.password.as_deref().ok_or_else(|| Error::missing_param("password is missing"))?;
        let named = attempt.identifier.as_ref().and_then(|identifier| identifier.user.as_deref());
        let named = named.or(attempt.user.as_deref());
        let named = named.ok_or_else(|| Error::missing_param("identifier is missing"))?;
        if named != user_id.as_str() && named != user_id.localpart() {
            return Err(Error::forbidden("The session belongs to another user"));
        }
        // Apart from those who are not logged in: they do not keep the owner from changing anything.
        app.limits.check(Class::Login, Owner::Name(&format!("own:{user_id}")))?;
        let (guesser, now) = (Guesser::Device(self.device_id), app.clock.now_ms());
        app.auth.lockout.check(user_id.as_str(), guesser, now)?;
        let proof = password::prove(app, Some(user_id), password).await?;
        app.auth.lockout.note(user_id.as_str(), guesser, proof.is_some(), now);
        proof.ok_or_else(|| Error::forbidden("Wrong password"))
    }
}

/// A stage that can be done on a page in a browser, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    Dummy,
    RegistrationToken,
}

impl Fallback {
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Dummy, Self::RegistrationToken].into_iter().find(|fallback| fallback.stage().name() == name)
    }

    fn stage(self) -> Stage {
        match self {
            Self::Dummy => Stage::Dummy,
            Self::RegistrationToken => Stage::RegistrationToken,
        }
    }
}

/// Whether a stage of a session is done.
pub fn is_proven(app: &App, session: &str, fallback: Fallback) -> Result<bool> {
    Ok(find_session(app, session)?.completed.contains(&fallback.stage()))
}

/// Does a stage of a session, without the request that it was begun for. Whether the stages together are enough is
/// decided when that is made again.
pub fn prove(app: &App, id: &str, fallback: Fallback, token: Option<&str>) -> Result<()> {
    let mut session = find_session(app, id)?;
    if session.completed.contains(&fallback.stage()) {
        return Ok(());
    }
    if fallback == Fallback::RegistrationToken {
        let token = token.ok_or_else(|| Error::missing_param("token is missing"))?;
        if !registration_token_is_valid(app, token)? {
            return Err(Error::forbidden("This registration token is not valid"));
        }
        session.passed.registration_token = Some(token.to_owned());
    }
    session.completed.push(fallback.stage());
    app.auth.interactive.advance(id, &session);
    Ok(())
}

fn find_session(app: &App, id: &str) -> Result<Session> {
    app.auth.interactive.find(app, id).ok_or_else(|| Error::not_found("This session is unknown or has ended"))
}

/// Whether a registration token would be taken now: one of the settings, or one of the store that is not used up.
pub fn registration_token_is_valid(app: &App, token: &str) -> Result<bool> {
    if app.config.registration.tokens.iter().any(|known| known == token) {
        return Ok(true);
    }
    let found = app.store.snapshot().get(&REGISTRATION_TOKENS, token)?;
    Ok(found.is_some_and(|found| found.usable(app.clock.now_ms())))
}

impl RegistrationToken {
    pub fn usable(&self, now_ms: u64) -> bool {
        self.uses_allowed.is_none_or(|allowed| self.completed < allowed)
            && self.expires_ts.is_none_or(|expires_ts| expires_ts > now_ms)
    }
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Self::Password => "m.login.password",
            Self::Dummy => "m.login.dummy",
            Self::RegistrationToken => "m.login.registration_token",
            Self::Oauth => "m.oauth",
            Self::OauthReset => "org.matrix.cross_signing_reset",
        }
    }
}

impl Sessions {
    fn begin(&self, app: &App, operation: [u8; 32]) -> String {
        let id = app.rng.alphanumeric(24);
        let now = app.clock.now_ms();
        let expires_ms = now.saturating_add(LIFETIME_MS);
        let session = Session { operation, expires_ms, completed: Vec::new(), passed: Passed::default() };
        let mut sessions = self.0.lock();
        if sessions.len() >= MAX_SESSIONS {
            make_room(&mut sessions, now);
        }
        sessions.insert(id.clone(), session);
        id
    }

    fn find(&self, app: &App, id: &str) -> Option<Session> {
        let now = app.clock.now_ms();
        self.0.lock().get(id).filter(|session| session.expires_ms > now).cloned()
    }

    /// Keeps what was proven, unless the session has gone further or ended meanwhile.
    fn advance(&self, id: &str, proven: &Session) {
        if let Some(session) = self.0.lock().get_mut(id)
            && session.completed.len() < proven.completed.len()
        {
            session.clone_from(proven);
        }
    }

    fn take(&self, id: &str) -> Option<Passed> {
        self.0.lock().remove(id).map(|session| session.passed)
    }
}

/// Drops what has ended, or else the older half.
fn make_room(sessions: &mut HashMap<String, Session>, now_ms: u64) {
    sessions.retain(|_, session| session.expires_ms > now_ms);
    if sessions.len() >= MAX_SESSIONS {
        let mut ends: Vec<u64> = sessions.values().map(|session| session.expires_ms).collect();
        let (_, middle, _) = ends.select_nth_unstable(MAX_SESSIONS / 2);
        let middle = *middle;
        sessions.retain(|_, session| session.expires_ms > middle);
    }
}
