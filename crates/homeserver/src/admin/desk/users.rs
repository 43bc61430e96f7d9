//! Accounts: looking through them, changing them, and what is known of one.

use std::collections::BTreeMap;

use http::{Method, StatusCode};
use ruma::UserId;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use store::Read;

use super::paging::{Paging, order};
use super::{account, asking, done, named, ok};
use crate::blocking;
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response, Routes, json_response};
use crate::rooms::overview;
use crate::schema::{ACCOUNT_DATA, DEVICE_SEEN, HEADS, MEMBERSHIPS, MembershipState, PUSHERS};
use crate::users::accounts::{self, Opener};
use crate::users::admin;
use crate::users::listing::{self, Entry, Order};

pub(super) fn routes() -> Routes {
    const USER: &str = "/_synapse/admin/v2/users/{user_id}";
    Routes::default()
        .raw(Method::GET, &["/_synapse/admin/v2/users", "/_synapse/admin/v3/users"], list)
        .raw(Method::GET, &[USER], get)
        .raw(Method::PUT, &[USER], put)
        .raw(Method::POST, &["/_synapse/admin/v1/deactivate/{user_id}"], deactivate)
        .raw(Method::POST, &["/_synapse/admin/v1/reset_password/{user_id}"], reset_password)
        .raw(Method::GET, &["/_synapse/admin/v1/users/{user_id}/admin"], is_admin)
        .raw(Method::PUT, &["/_synapse/admin/v1/users/{user_id}/admin"], set_admin)
        .raw(Method::PUT, &["/_synapse/admin/v1/suspend/{user_id}"], suspend)
        .raw(Method::POST, &["/_synapse/admin/v1/users/{user_id}/login"], act_for)
        .raw(Method::GET, &["/_synapse/admin/v1/username_available"], username_available)
        .raw(Method::GET, &["/_synapse/admin/v1/whois/{user_id}", "/_synapse/admin/v1/users/{user_id}/whois"], whois)
        .raw(Method::GET, &["/_synapse/admin/v1/users/{user_id}/pushers"], pushers)
        .raw(Method::GET, &["/_synapse/admin/v1/users/{user_id}/joined_rooms"], joined_rooms)
        .raw(Method::GET, &["/_synapse/admin/v1/users/{user_id}/memberships"], memberships)
        .raw(Method::GET, &["/_synapse/admin/v1/users/{user_id}/accountdata"], account_data)
        .raw(Method::GET, &["/_synapse/admin/v1/users/{user_id}/sent_invite_count"], sent_invites)
        .raw(Method::GET, &["/_synapse/admin/v1/users/{user_id}/cumulative_joined_room_count"], joins)
        .raw(Method::GET, &["/_synapse/admin/v1/threepid/{medium}/users/{address}"], by_address)
        .raw(Method::GET, &["/_synapse/admin/v1/auth_providers/{provider}/users/{external_id}"], by_address)
}

#[derive(Deserialize)]
struct Query {
    user_id: Option<String>,
    name: Option<String>,
    guests: Option<bool>,
    admins: Option<bool>,
    deactivated: Option<bool>,
    locked: Option<bool>,
    suspended: Option<bool>,
    order_by: Option<String>,
}

/// The older version leaves closed accounts out unless it is asked for them, too; the newer one takes the flag as it is.
/// Locked ones are left out by both.
async fn list(ctx: RawCtx) -> Result<Response> {
    let (query, paging): (Query, Paging) = (ctx.query()?, ctx.query()?);
    let newer = ctx.uri.path().starts_with("/_synapse/admin/v3/");
    let wanted = listing::Wanted {
        user_id: query.user_id.filter(|part| !part.is_empty()),
        name: query.name.filter(|part| !part.is_empty()),
        guests: query.guests,
        admins: query.admins,
        deactivated: if newer { query.deactivated } else { Some(false).filter(|_| query.deactivated != Some(true)) },
        locked: Some(false).filter(|_| query.locked != Some(true)),
        suspended: query.suspended,
    };
    let (order, descending) = (order(query.order_by.as_deref(), Order::parse)?, paging.descending());
    let read = ctx.app.store.snapshot();
    let found = blocking::run(move || listing::list(&read, &wanted, order, descending)).await??;
    let page = paging.cut(found);
    let users: Vec<Value> = page.items.iter().map(|entry| brief(entry, entry.user.created_ts)).collect();
    let mut body = json!({ "users": users, "total": page.total });
    if let Some(next) = page.next {
        body["next_token"] = json!(next.to_string());
    }
    ok(&body)
}

fn brief(entry: &Entry, creation_ts: u64) -> Value {
    let user = &entry.user;
    json!({
        "name": entry.user_id,
        "displayname": entry.shown.displayname,
        "avatar_url": entry.shown.avatar_url,
        "is_guest": user.guest,
        "admin": user.admin,
        "user_type": null,
        "deactivated": user.deactivated,
        "erased": user.erased,
        "shadow_banned": false,
        "locked": user.locked,
        "suspended": user.suspended,
        "approved": true,
        "creation_ts": creation_ts,
        "last_seen_ts": entry.last_seen_ts,
    })
}

async fn get(ctx: RawCtx) -> Result<Response> {
    let (user_id, _) = account(&ctx, 0)?;
    ok(&describe(&ctx, &user_id)?)
}

/// One account tells its age in seconds, a list in milliseconds: that is what consoles expect.
fn describe(ctx: &RawCtx, user_id: &UserId) -> Result<Value> {
    let read = ctx.app.store.snapshot();
    let user = read.get(&crate::schema::USERS, user_id.as_str())?;
    let user = user.ok_or_else(|| Error::not_found("There is no such user"))?;
    let entry = listing::entry(&read, user_id, user)?;
    let mut body = brief(&entry, entry.user.created_ts / 1000);
    body["threepids"] = json!([]);
    body["external_ids"] = json!([]);
    for nothing in ["appservice_id", "consent_server_notice_sent", "consent_version", "consent_ts"] {
        body[nothing] = Value::Null;
    }
    Ok(body)
}

/// Consoles send back all that they were told, changed or not: what is not known here is let through.
#[derive(Deserialize)]
struct Put {
    password: Option<String>,
    logout_devices: Option<bool>,
    displayname: Option<String>,
    avatar_url: Option<String>,
    admin: Option<bool>,
    deactivated: Option<bool>,
    locked: Option<bool>,
    #[serde(default)]
    threepids: Vec<Value>,
    #[serde(default)]
    external_ids: Vec<Value>,
    user_type: Option<String>,
}

async fn put(mut ctx: RawCtx) -> Result<Response> {
    let asked: Put = ctx.read_json().await?;
    if !asked.threepids.is_empty() || !asked.external_ids.is_empty() {
        return Err(Error::invalid_param("Accounts have no addresses and no identities elsewhere here"));
    }
    if asked.user_type.is_some_and(|kind| !kind.is_empty()) {
        return Err(Error::invalid_param("There are no types of users here"));
    }
    let user_id = named(&ctx, 0)?;
    if asking(&ctx) == Some(&*user_id) && (asked.admin == Some(false) || asked.deactivated == Some(true)) {
        return Err(Error::forbidden("Administrators do not demote or close themselves"));
    }
    let wanted = admin::Wanted {
        password: asked.password.filter(|password| !password.is_empty()),
        log_out: asked.logout_devices.unwrap_or(true),
        displayname: asked.displayname,
        avatar_url: asked.avatar_url,
        admin: asked.admin,
        locked: asked.locked,
        deactivated: asked.deactivated,
    };
    let made = admin::put(&ctx.app, &user_id, &wanted).await?;
    tracing::info!(%user_id, made, by = asking(&ctx).map(UserId::as_str), "an administrator set an account");
    let status = if made { StatusCode::CREATED } else { StatusCode::OK };
    Ok(json_response(status, describe(&ctx, &user_id)?.to_string()))
}

#[derive(Deserialize)]
struct Deactivate {
    #[serde(default)]
    erase: bool,
}

async fn deactivate(mut ctx: RawCtx) -> Result<Response> {
    let asked: Deactivate = ctx.read_json().await?;
    let (user_id, _) = account(&ctx, 0)?;
    if asking(&ctx) == Some(&*user_id) {
        return Err(Error::forbidden("Administrators do not close themselves"));
    }
    admin::deactivate(&ctx.app, user_id.as_str(), asked.erase).await?;
    tracing::info!(%user_id, erase = asked.erase, by = asking(&ctx).map(UserId::as_str), "an administrator closed an account");
    ok(&json!({ "id_server_unbind_result": "no-support" }))
}

#[derive(Deserialize)]
struct ResetPassword {
    new_password: String,
    logout_devices: Option<bool>,
}

async fn reset_password(mut ctx: RawCtx) -> Result<Response> {
    let asked: ResetPassword = ctx.read_json().await?;
    let (user_id, _) = account(&ctx, 0)?;
    let log_out = asked.logout_devices.unwrap_or(true);
    admin::reset_password(&ctx.app, user_id.as_str(), &asked.new_password, log_out).await?;
    tracing::info!(%user_id, by = asking(&ctx).map(UserId::as_str), "an administrator set a new password");
    done()
}

async fn is_admin(ctx: RawCtx) -> Result<Response> {
    let (_, user) = account(&ctx, 0)?;
    ok(&json!({ "admin": user.admin }))
}

#[derive(Deserialize)]
struct SetAdmin {
    admin: bool,
}

async fn set_admin(mut ctx: RawCtx) -> Result<Response> {
    let asked: SetAdmin = ctx.read_json().await?;
    let user_id = named(&ctx, 0)?;
    if asking(&ctx) == Some(&*user_id) && !asked.admin {
        return Err(Error::forbidden("Administrators do not demote themselves"));
    }
    admin::set_admin(&ctx.app, &user_id, asked.admin).await?;
    tracing::info!(%user_id, admin = asked.admin, by = asking(&ctx).map(UserId::as_str), "an administrator was made or unmade");
    done()
}

#[derive(Deserialize)]
struct Suspend {
    suspend: bool,
}

async fn suspend(mut ctx: RawCtx) -> Result<Response> {
    let asked: Suspend = ctx.read_json().await?;
    let user_id = named(&ctx, 0)?;
    admin::suspend(&ctx.app, &user_id, asked.suspend).await?;
    ok(&json!({ format!("user_{user_id}_suspended"): asked.suspend }))
}

#[derive(Deserialize)]
struct ActFor {
    valid_until_ms: Option<u64>,
}

async fn act_for(mut ctx: RawCtx) -> Result<Response> {
    let asked: ActFor = ctx.read_json().await?;
    let user_id = named(&ctx, 0)?;
    if asking(&ctx) == Some(&*user_id) {
        return Err(Error::invalid_param("You are logged in as yourself already"));
    }
    let access_token = admin::act_for(&ctx.app, &user_id, asking(&ctx), asked.valid_until_ms).await?;
    tracing::info!(%user_id, by = asking(&ctx).map(UserId::as_str), "an administrator acts for a user");
    ok(&json!({ "access_token": access_token }))
}

async fn username_available(ctx: RawCtx) -> Result<Response> {
    let name = ctx.query_value("username").ok_or_else(|| Error::missing_param("username is missing"))?;
    let user_id = accounts::user_id_for_new(&ctx.app, &name)?;
    accounts::check_free(&ctx.app, &user_id, &Opener::Administrator)?;
    ok(&json!({ "available": true }))
}

async fn whois(ctx: RawCtx) -> Result<Response> {
    let (user_id, _) = account(&ctx, 0)?;
    let read = ctx.app.store.snapshot();
    let mut devices = Map::new();
    for row in read.scan(&DEVICE_SEEN, DEVICE_SEEN.prefix((user_id.as_str(),))) {
        let ((_, device_id), seen) = row?;
        let connection = json!({ "ip": seen.ip, "last_seen": seen.ts, "user_agent": null });
        devices.insert(device_id, json!({ "sessions": [{ "connections": [connection] }] }));
    }
    ok(&json!({ "user_id": user_id, "devices": devices }))
}

async fn pushers(ctx: RawCtx) -> Result<Response> {
    let (user_id, _) = account(&ctx, 0)?;
    let read = ctx.app.store.snapshot();
    let mut pushers = Vec::new();
    for row in read.scan(&PUSHERS, PUSHERS.prefix((user_id.as_str(),))) {
        let ((_, app_id, pushkey), pusher) = row?;
        let data: Value = serde_json::from_str(&pusher.data).map_err(Error::internal)?;
        pushers.push(json!({
            "app_id": app_id,
            "pushkey": pushkey,
            "kind": pusher.kind,
            "app_display_name": pusher.app_display_name,
            "device_display_name": pusher.device_display_name,
            "profile_tag": pusher.profile_tag,
            "lang": pusher.lang,
            "data": data,
        }));
    }
    ok(&json!({ "total": pushers.len(), "pushers": pushers }))
}

async fn joined_rooms(ctx: RawCtx) -> Result<Response> {
    let (user_id, _) = account(&ctx, 0)?;
    let mut rooms = rooms_of(&ctx.app.store.snapshot(), &user_id)?;
    rooms.retain(|_, state| *state == MembershipState::Join);
    let rooms: Vec<String> = rooms.into_keys().collect();
    ok(&json!({ "total": rooms.len(), "joined_rooms": rooms }))
}

async fn memberships(ctx: RawCtx) -> Result<Response> {
    let (user_id, _) = account(&ctx, 0)?;
    let rooms = rooms_of(&ctx.app.store.snapshot(), &user_id)?;
    let memberships: BTreeMap<String, &str> =
        rooms.into_iter().map(|(room_id, state)| (room_id, state.as_str())).collect();
    ok(&json!({ "total": memberships.len(), "memberships": memberships }))
}

/// What a user is in which room.
fn rooms_of(read: &impl Read, user_id: &UserId) -> Result<BTreeMap<String, MembershipState>> {
    let mut rooms = BTreeMap::new();
    for row in read.scan(&MEMBERSHIPS, MEMBERSHIPS.prefix((user_id.as_str(),))) {
        let ((_, room), membership) = row?;
        if let Some(head) = read.get(&HEADS, room)? {
            rooms.insert(head.room_id, membership.state);
        }
    }
    Ok(rooms)
}

async fn account_data(ctx: RawCtx) -> Result<Response> {
    let (user_id, _) = account(&ctx, 0)?;
    let read = ctx.app.store.snapshot();
    let (mut global, mut rooms) = (Map::new(), Map::new());
    for row in read.scan(&ACCOUNT_DATA, ACCOUNT_DATA.prefix((user_id.as_str(),))) {
        let ((_, room_id, kind), data) = row?;
        let content: Value = serde_json::from_slice(&data.0).map_err(Error::internal)?;
        if room_id.is_empty() {
            global.insert(kind, content);
        } else if let Some(of_room) = rooms.entry(room_id).or_insert_with(|| json!({})).as_object_mut() {
            of_room.insert(kind, content);
        }
    }
    ok(&json!({ "account_data": { "global": global, "rooms": rooms } }))
}

#[derive(Deserialize)]
struct Since {
    from_ts: Option<u64>,
}

async fn sent_invites(ctx: RawCtx) -> Result<Response> {
    let since: Since = ctx.query()?;
    let (user_id, _) = account(&ctx, 0)?;
    let read = ctx.app.store.snapshot();
    let from_ts = since.from_ts.unwrap_or_default();
    let count = blocking::run(move || overview::sent_invites(&read, &user_id, from_ts)).await??;
    ok(&json!({ "invite_count": count }))
}

async fn joins(ctx: RawCtx) -> Result<Response> {
    let since: Since = ctx.query()?;
    let (user_id, _) = account(&ctx, 0)?;
    let read = ctx.app.store.snapshot();
    let count = overview::joins(&read, &user_id, since.from_ts.unwrap_or_default())?;
    ok(&json!({ "cumulative_joined_room_count": count }))
}

/// Nobody has an address or an identity elsewhere.
async fn by_address(_: RawCtx) -> Result<Response> {
    Err(Error::not_found("There is no such user"))
}
