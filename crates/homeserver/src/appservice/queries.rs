//! What only an application service knows (spec: Querying; Third-party networks): users and aliases of its namespaces
//! that are not here yet, and the networks that it bridges.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use hashbrown::HashMap;
use http::{Method, StatusCode};
use parking_lot::Mutex;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use ruma::{OwnedRoomId, RoomAliasId, UserId};
use serde_json::{Map, Value, json};
use store::Read as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::calls::{self, CallError};
use crate::App;
use crate::auth::oauth::Expiring;
use crate::config::registrations::Registration;
use crate::error::{Error, Result};
use crate::outgoing::OutgoingError;
use crate::rooms::aliases;
use crate::schema::{USERS, topic};

/// Asks the service that a user belongs to whether there is such a user, if there is none yet. It registers them before
/// it answers. A service is not asked about what it wants itself.
pub async fn user(app: &App, user_id: &UserId, asking: Option<&str>) -> Result<()> {
    if app.appservices.is_empty() || app.store.snapshot().contains(&USERS, user_id.as_str())? {
        return Ok(());
    }
    let owners = app.appservices.iter().filter(|service| Some(service.id.as_str()) != asking);
    for service in owners.filter(|service| service.service.is_some() && service.has_user(user_id)) {
        if knows(app, service, format!("users/{}", encoded(user_id.as_str()))).await? {
            return Ok(());
        }
    }
    Ok(())
}

/// The room of an alias; services that the alias belongs to are asked for it. They make the room before they answer.
pub async fn alias(app: &App, alias: &RoomAliasId) -> Result<Option<OwnedRoomId>> {
    if let Some(room_id) = aliases::resolve(&app.store.snapshot(), alias)? {
        return Ok(Some(room_id));
    }
    if alias.server_name() != app.server_name {
        return Ok(None);
    }
    for service in app.appservices.iter().filter(|service| service.service.is_some()) {
        if !service.has_alias(alias.as_str()) {
            continue;
        }
        if knows(app, service, format!("rooms/{}", encoded(alias.as_str()))).await? {
            return aliases::resolve(&app.store.snapshot(), alias);
        }
    }
    Ok(None)
}

/// Questions to services that anybody can bring about: of each service a few at a time, and none twice in a short time that
/// it had no answer to. So they leave room for everything else that goes out.
pub struct Questions {
    turns: Mutex<HashMap<String, Arc<Semaphore>>>,
    /// By service and path.
    unknown: Expiring<(String, String), ()>,
}

/// Questions to one service at a time.
const MAX_AT_ONCE: usize = 4;
/// How long a question waits for its turn.
const WAIT: Duration = Duration::from_secs(5);
/// Of what is looked up in other networks; fields of networks are names, not texts.
const MAX_QUERY_BYTES: usize = 2_048;
const MAX_UNKNOWN: usize = 4_096;
const UNKNOWN_MS: u64 = 60 * 1000;

impl Default for Questions {
    fn default() -> Self {
        Self { turns: Mutex::default(), unknown: Expiring::new(MAX_UNKNOWN) }
    }
}

impl Questions {
    async fn turn(&self, service: &str) -> Result<OwnedSemaphorePermit> {
        let fresh = || Arc::new(Semaphore::new(MAX_AT_ONCE));
        let turns = self.turns.lock().entry(service.to_owned()).or_insert_with(fresh).clone();
        let turn = tokio::time::timeout(WAIT, turns.acquire_owned()).await;
        turn.map_err(|_| Error::service_timeout())?.map_err(Error::internal)
    }
}

/// Whether a service knows somebody or something.
async fn knows(app: &App, service: &Registration, path: String) -> Result<bool> {
    let (questions, key) = (&app.questions, (service.id.clone(), path));
    if questions.unknown.get(app.clock.now_ms(), &key).is_some() {
        return Ok(false);
    }
    let _turn = questions.turn(&service.id).await?;
    let known = is_known(service, calls::call(app, service, Method::GET, &key.1, None).await)?;
    if !known {
        let now = app.clock.now_ms();
        questions.unknown.push(now, now.saturating_add(UNKNOWN_MS), key, ());
    }
    Ok(known)
}

/// Whether a service knows what it was asked for. A client that waits is told when it does not answer.
fn is_known(service: &Registration, answer: Result<(StatusCode, bytes::Bytes), CallError>) -> Result<bool> {
    match answer {
        Ok((status, _)) => Ok(status.is_success()),
        Err(CallError::Outgoing(OutgoingError::TimedOut(_))) => Err(Error::service_timeout()),
        Err(cause) => {
            tracing::info!(service = service.id, %cause, "an application service cannot be asked");
            Ok(false)
        }
    }
}

/// Asks a service whether it is there. Who is there gets what waits for it at once.
pub async fn ping(app: &App, service: &Registration, transaction_id: Option<&str>) -> Result<std::time::Duration> {
    let body = transaction_id.map_or_else(|| json!({}), |id| json!({ "transaction_id": id })).to_string();
    let began = app.clock.monotonic();
    match calls::call(app, service, Method::POST, "ping", Some(body.into())).await {
        Ok((status, _)) if status.is_success() => {
            app.store.hub().nudge(&topic::appservice(&service.id));
            Ok(app.clock.monotonic().saturating_sub(began))
        }
        Ok((status, body)) => Err(Error::bad_status(status, &String::from_utf8_lossy(&body))),
        Err(CallError::NoUrl) => Err(Error::url_not_set()),
        Err(CallError::Outgoing(cause @ OutgoingError::TimedOut(_))) => {
            Err(Error::connection_timeout(cause.to_string()))
        }
        Err(cause) => Err(Error::connection_failed(cause.to_string())),
    }
}

/// What is known of a network, from all services that bridge it; `None`: no service does.
pub async fn protocol(app: &App, name: &str) -> Option<Value> {
    let path = format!("thirdparty/protocol/{}", encoded(name));
    let answers = ask_all(app, &bridging(app, Some(name)), &path).await;
    let mut merged: Option<Map<String, Value>> = None;
    for (service, answer) in answers {
        let Value::Object(mut one) = answer else { continue };
        let mut instances = match one.remove("instances") {
            Some(Value::Array(instances)) => instances,
            _ => Vec::new(),
        };
        for instance in &mut instances {
            if let Some(network_id) = instance["network_id"].as_str().map(str::to_owned)
                && let Some(instance) = instance.as_object_mut()
            {
                instance.insert("instance_id".to_owned(), json!(instance_id(&service.id, &network_id)));
            }
        }
        let merged = merged.get_or_insert(one);
        match merged.entry("instances").or_insert_with(|| json!([])) {
            Value::Array(all) => all.append(&mut instances),
            other => *other = Value::Array(instances),
        }
    }
    merged.map(Value::Object)
}

/// All networks.
pub async fn protocols(app: &App) -> Map<String, Value> {
    let mut names: Vec<&str> = app.appservices.iter().flat_map(|one| &one.protocols).map(String::as_str).collect();
    names.sort_unstable();
    names.dedup();
    let mut found = Map::new();
    for (name, known) in names.iter().zip(join_all(names.iter().map(|name| protocol(app, name))).await) {
        if let Some(known) = known {
            found.insert((*name).to_owned(), known);
        }
    }
    found
}

/// What services say about users or locations (`kind`) of one network, or of all; `None`: no service bridges it.
pub async fn lookup(app: &App, kind: &str, name: Option<&str>, query: &str) -> Result<Option<Vec<Value>>> {
    if query.len() > MAX_QUERY_BYTES {
        return Err(Error::too_large(format!("A query has no more than {MAX_QUERY_BYTES} bytes")));
    }
    let services = bridging(app, name);
    if services.is_empty() {
        return Ok(None);
    }
    let name = name.map(|name| format!("/{}", encoded(name))).unwrap_or_default();
    let own = |pair: &&str| !pair.is_empty() && !pair.starts_with("access_token=");
    let query = query.split('&').filter(own).collect::<Vec<_>>().join("&");
    let answers = ask_all(app, &services, &format!("thirdparty/{kind}{name}?{query}")).await;
    Ok(Some(answers.into_iter().filter_map(|(_, answer)| answer.as_array().cloned()).flatten().collect()))
}

/// The name of a network in room directories.
pub fn instance_id(service_id: &str, network_id: &str) -> String {
    format!("{service_id}|{network_id}")
}

/// The service and the network of such a name.
pub fn parts_of(instance_id: &str) -> Option<(&str, &str)> {
    instance_id.rsplit_once('|')
}

fn bridging(app: &App, protocol: Option<&str>) -> Vec<Arc<Registration>> {
    let bridges = |service: &&Arc<Registration>| {
        service.service.is_some()
            && match protocol {
                Some(name) => service.protocols.iter().any(|known| known == name),
                None => !service.protocols.is_empty(),
            }
    };
    app.appservices.iter().filter(bridges).cloned().collect()
}

/// What those say that answer.
async fn ask_all(app: &App, services: &[Arc<Registration>], path: &str) -> Vec<(Arc<Registration>, Value)> {
    let answers = services.iter().map(|service| async move {
        let _turn = app.questions.turn(&service.id).await.ok()?;
        match calls::call(app, service, Method::GET, path, None).await {
            Ok((status, body)) if status.is_success() => serde_json::from_slice::<Value>(&body).ok(),
            Ok(_) => None,
            Err(cause) => {
                tracing::info!(service = service.id, %cause, "an application service cannot be asked");
                None
            }
        }
    });
    let answers = join_all(answers).await;
    services.iter().cloned().zip(answers).filter_map(|(service, answer)| Some((service, answer?))).collect()
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_service_is_asked_a_few_things_at_a_time() {
        let questions = Questions::default();
        let mut turns = Vec::new();
        for _ in 0..MAX_AT_ONCE {
            turns.push(questions.turn("irc").await.unwrap());
        }
        assert!(questions.turn("other").await.is_ok(), "each has turns of its own");
        let next = questions.turn("irc");
        tokio::pin!(next);
        assert!(futures_util::poll!(&mut next).is_pending());
        turns.pop();
        assert!(next.await.is_ok());
    }
}
