//! End-to-end encryption keys (spec: Key and message distribution). Other servers are not asked: none is reachable.

use std::collections::{BTreeMap, BTreeSet};

use http::{Method, StatusCode};
use ruma::api::client::keys::get_key_changes::v3 as get_key_changes;
use ruma::{OwnedServerName, OwnedUserId};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use store::Read as _;

use crate::App;
use crate::auth::Access;
use crate::e2ee::keys::{self, Claimed, KeysById, Upload};
use crate::error::{Error, Result};
use crate::http::{Ctx, RawCtx, Response, Routes, json_response};
use crate::rooms::shown::{number, string};
use crate::schema::DEVICES;
use crate::sync::assemble::StateAfter;
use crate::sync::collect::{Ask, device_lists};
use crate::sync::filter::Filter;
use crate::sync::token::SyncToken;

/// Keys of so many devices are claimed in one commit.
const CLAIMS_AT_ONCE: usize = 500;
/// Answers about more users than this are made where they keep nobody waiting.
const MANY_USERS: usize = 200;

pub fn routes() -> Routes {
    Routes::default()
        .raw(Method::POST, &["/_matrix/client/v3/keys/upload", "/_matrix/client/r0/keys/upload"], upload)
        .access(Access::Token)
        .guests()
        .raw(Method::POST, &["/_matrix/client/v3/keys/query", "/_matrix/client/r0/keys/query"], query)
        .access(Access::Token)
        .guests()
        .raw(Method::POST, &["/_matrix/client/v3/keys/claim", "/_matrix/client/r0/keys/claim"], claim)
        .access(Access::Token)
        .guests()
        .ruma(key_changes)
}

// ---- upload ------------------------------------------------------------------------------------------------------

#[derive(Deserialize)]
struct UploadBody {
    device_keys: Option<Box<RawValue>>,
    one_time_keys: Option<KeysById>,
    fallback_keys: Option<KeysById>,
}

async fn upload(mut ctx: RawCtx) -> Result<Response> {
    let body: UploadBody = ctx.read_json().await?;
    let requester = ctx.requester()?;
    let (user_id, device_id) = (requester.user_id.as_str(), requester.device()?.as_str());
    let (one_time, fallback) = (body.one_time_keys.unwrap_or_default(), body.fallback_keys.unwrap_or_default());
    let new = Upload::new(user_id, device_id, body.device_keys.as_deref(), &one_time, &fallback)?;
    let counts = ctx.app.store.transact(|tx| keys::upload(tx, user_id, device_id, &new)).await?.value;
    let mut out = b"{\"one_time_key_counts\":{".to_vec();
    each(&mut out, &counts.one_time, |out, (algorithm, count)| {
        string(out, algorithm);
        out.push(b':');
        number(out, u64::from(*count));
    });
    out.extend_from_slice(b"}}");
    Ok(json_response(StatusCode::OK, out))
}

// ---- query -------------------------------------------------------------------------------------------------------

#[derive(Deserialize)]
struct QueryBody {
    device_keys: BTreeMap<OwnedUserId, Vec<String>>,
}

async fn query(mut ctx: RawCtx) -> Result<Response> {
    let body: QueryBody = ctx.read_json().await?;
    let app = ctx.app;
    let answer = if body.device_keys.len() > MANY_USERS {
        let answer = tokio::task::spawn_blocking(move || answer_query(&app, &body));
        answer.await.map_err(Error::internal)??
    } else {
        answer_query(&app, &body)?
    };
    Ok(json_response(StatusCode::OK, answer))
}

fn answer_query(app: &App, body: &QueryBody) -> Result<Vec<u8>> {
    let (here, elsewhere): (Vec<_>, Vec<_>) =
        body.device_keys.iter().partition(|(user_id, _)| user_id.server_name() == &*app.server_name);
    let mut out = Vec::with_capacity(64 + 1024 * here.len());
    out.extend_from_slice(b"{\"device_keys\":{");
    let read = app.store.snapshot();
    let mut failed = Ok(());
    each(&mut out, here, |out, (user_id, devices)| {
        string(out, user_id.as_str());
        out.extend_from_slice(b":{");
        let mut first = true;
        let wanted = devices.iter().map(String::as_str);
        let written = keys::identities(&read, user_id.as_str(), wanted, |device_id, keys| {
            if !std::mem::take(&mut first) {
                out.push(b',');
            }
            string(out, device_id);
            out.push(b':');
            let device = read.get(&DEVICES, (user_id.as_str(), device_id));
            let name = device.map(|device| device.and_then(|device| device.display_name));
            named(out, keys, name.ok().flatten().as_deref());
        });
        if let Err(error) = written {
            failed = Err(error);
        }
        out.push(b'}');
    });
    failed?;
    out.extend_from_slice(b"},\"failures\":");
    out.extend_from_slice(&unreachable(elsewhere.into_iter().map(|(user_id, _)| user_id)));
    out.push(b'}');
    Ok(out)
}

/// Device keys with the device's name, which is all that the server adds.
fn named(out: &mut Vec<u8>, keys: &[u8], name: Option<&str>) {
    let Some((name, open)) = name.zip(keys.strip_suffix(b"}")) else {
        out.extend_from_slice(keys);
        return;
    };
    out.extend_from_slice(open);
    out.extend_from_slice(b",\"unsigned\":{\"device_display_name\":");
    string(out, name);
    out.extend_from_slice(b"}}");
}

// ---- claim -------------------------------------------------------------------------------------------------------

#[derive(Deserialize)]
struct ClaimBody {
    one_time_keys: BTreeMap<OwnedUserId, BTreeMap<String, String>>,
}

async fn claim(mut ctx: RawCtx) -> Result<Response> {
    let body: ClaimBody = ctx.read_json().await?;
    let app = ctx.app;
    let (here, elsewhere): (Vec<_>, Vec<_>) =
        body.one_time_keys.iter().partition(|(user_id, _)| user_id.server_name() == &*app.server_name);
    let wanted: Vec<Wanted<'_>> = here
        .into_iter()
        .flat_map(|(user_id, devices)| {
            let devices = devices.iter();
            devices.map(|(device_id, algorithm)| Wanted { user_id: user_id.as_str(), device_id, algorithm })
        })
        .collect();
    let mut claimed: Vec<(Wanted<'_>, Claimed)> = Vec::with_capacity(wanted.len());
    for some in wanted.chunks(CLAIMS_AT_ONCE) {
        let taken = app.store.transact(|tx| {
            let claims = some.iter().map(|w| keys::claim(tx, w.user_id, w.device_id, w.algorithm));
            claims.collect::<Result<Vec<_>>>()
        });
        let taken = some.iter().zip(taken.await?.value);
        claimed.extend(taken.filter_map(|(wanted, key)| Some((*wanted, key?))));
    }
    let failures = unreachable(elsewhere.into_iter().map(|(user_id, _)| user_id));
    Ok(json_response(StatusCode::OK, answer_claim(&claimed, &failures)))
}

#[derive(Clone, Copy)]
struct Wanted<'a> {
    user_id: &'a str,
    device_id: &'a str,
    algorithm: &'a str,
}

fn answer_claim(claimed: &[(Wanted<'_>, Claimed)], failures: &[u8]) -> Vec<u8> {
    let mut out = b"{\"one_time_keys\":{".to_vec();
    let of_a_user = claimed.chunk_by(|(a, _), (b, _)| a.user_id == b.user_id);
    each(&mut out, of_a_user, |out, devices| {
        string(out, devices.first().map_or("", |(wanted, _)| wanted.user_id));
        out.extend_from_slice(b":{");
        each(out, devices, |out, (wanted, (key_id, key))| {
            string(out, wanted.device_id);
            out.extend_from_slice(b":{");
            string(out, key_id);
            out.push(b':');
            out.extend_from_slice(key);
            out.push(b'}');
        });
        out.push(b'}');
    });
    out.extend_from_slice(b"},\"failures\":");
    out.extend_from_slice(failures);
    out.push(b'}');
    out
}

// ---- changes -----------------------------------------------------------------------------------------------------

async fn key_changes(ctx: Ctx<get_key_changes::Request>) -> Result<get_key_changes::Response> {
    let (from, _to): (SyncToken, SyncToken) = (ctx.request.from.parse()?, ctx.request.to.parse()?);
    let user_id = ctx.requester.user_id;
    let app = ctx.app;
    // What came after `to` is told, too: the device is going to hear of it anyhow.
    let lists = tokio::task::spawn_blocking(move || {
        device_lists(&Ask {
            app: &app,
            user_id: &user_id,
            device_id: None,
            live: &app.sync.live.get(&app.store, &user_id),
            filter: &Filter::default(),
            since: Some(from),
            full_state: false,
            state_after: StateAfter::default(),
        })
    });
    let lists = lists.await.map_err(Error::internal)??;
    let users = |ids: BTreeSet<String>| ids.into_iter().filter_map(|id| OwnedUserId::try_from(id).ok()).collect();
    Ok(get_key_changes::Response::new(users(lists.changed), users(lists.left)))
}

// ---- writing -----------------------------------------------------------------------------------------------------

/// Writes items with commas between them.
fn each<T>(out: &mut Vec<u8>, items: impl IntoIterator<Item = T>, mut write: impl FnMut(&mut Vec<u8>, T)) {
    for (index, item) in items.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write(out, item);
    }
}

/// The servers of these users, as failures.
fn unreachable<'a>(users: impl Iterator<Item = &'a OwnedUserId>) -> Vec<u8> {
    let servers: BTreeSet<OwnedServerName> = users.map(|user_id| user_id.server_name().to_owned()).collect();
    let failure = || Error::unavailable("Other servers cannot be reached from here").body();
    let failures: Map<String, Value> = servers.into_iter().map(|server| (server.to_string(), failure())).collect();
    Value::Object(failures).to_string().into_bytes()
}
