//! Uploads: whose they are, where they are shown, taking them away.

use std::collections::BTreeSet;

use http::Method;
use ruma::OwnedRoomId;
use serde::Deserialize;
use serde_json::{Value, json};
use store::Read;

use super::paging::{Paging, order};
use super::{account, asking_name, done, no_room, ok, room};
use crate::App;
use crate::blocking;
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response, Routes};
use crate::media::MediaId;
use crate::media::ledger::Entry;
use crate::rooms::overview;
use crate::rooms::read::RoomReader;
use crate::schema::{HEADS, PROFILES};

pub(super) fn routes() -> Routes {
    const OF_USER: &str = "/_synapse/admin/v1/users/{user_id}/media";
    const ONE: &str = "/_synapse/admin/v1/media/{server_name}/{media_id}";
    Routes::default()
        .raw(Method::GET, &["/_synapse/admin/v1/room/{room_id}/media"], of_room)
        .raw(Method::GET, &[OF_USER], of_user)
        .raw(Method::DELETE, &[OF_USER], delete_of_user)
        .raw(Method::GET, &[ONE], get)
        .raw(Method::DELETE, &[ONE], delete)
        .raw(Method::POST, &["/_synapse/admin/v1/media/delete"], delete_old)
        .raw(Method::POST, &["/_synapse/admin/v1/media/protect/{media_id}"], protect)
        .raw(Method::POST, &["/_synapse/admin/v1/media/unprotect/{media_id}"], unprotect)
        .raw(Method::POST, &["/_synapse/admin/v1/media/quarantine/{server_name}/{media_id}"], quarantine)
        .raw(Method::POST, &["/_synapse/admin/v1/media/unquarantine/{server_name}/{media_id}"], release)
        .raw(Method::POST, &["/_synapse/admin/v1/room/{room_id}/media/quarantine"], quarantine_room)
        .raw(Method::POST, &["/_synapse/admin/v1/user/{user_id}/media/quarantine"], quarantine_user)
}

async fn of_room(ctx: RawCtx) -> Result<Response> {
    let own = format!("mxc://{}/", ctx.app.server_name);
    let (local, remote): (Vec<String>, Vec<String>) =
        uploads_in(ctx.app.clone(), room(&ctx, 0)?).await?.into_iter().partition(|url| url.starts_with(&own));
    ok(&json!({ "total": local.len(), "local": local, "remote": remote }))
}

/// The uploads that a room shows.
async fn uploads_in(app: App, room_id: OwnedRoomId) -> Result<BTreeSet<String>> {
    let work = move || {
        let read = app.store.snapshot();
        let (nr, _) = RoomReader::new(&app.room_cache, &read).head(&room_id)?.ok_or_else(no_room)?;
        overview::uploads(&read, nr)
    };
    blocking::run(work).await?
}

/// What the uploads of a user are sorted by.
#[derive(Clone, Copy, Default)]
enum By {
    #[default]
    CreatedTs,
    MediaId,
    Length,
    Kind,
    Name,
    Quarantined,
    Protected,
}

impl By {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            // When files were last used is not written down.
            "created_ts" | "last_access_ts" | "id" => Self::CreatedTs,
            "media_id" => Self::MediaId,
            "media_length" => Self::Length,
            "media_type" => Self::Kind,
            "upload_name" => Self::Name,
            "quarantined_by" => Self::Quarantined,
            "safe_from_quarantine" => Self::Protected,
            _ => return None,
        })
    }

    fn sort(self, entries: &mut [Entry]) {
        entries.sort_by(|one, two| match self {
            Self::CreatedTs => one.upload.created_ts.cmp(&two.upload.created_ts),
            Self::MediaId => one.media_id.as_str().cmp(two.media_id.as_str()),
            Self::Length => one.upload.size_bytes.cmp(&two.upload.size_bytes),
            Self::Kind => one.upload.content_type.cmp(&two.upload.content_type),
            Self::Name => one.upload.filename.cmp(&two.upload.filename),
            Self::Quarantined => one.marks.quarantined_by.cmp(&two.marks.quarantined_by),
            Self::Protected => one.marks.protected.cmp(&two.marks.protected),
        });
    }
}

#[derive(Deserialize)]
struct Query {
    order_by: Option<String>,
}

/// A page of what the user of the path has uploaded, newest first unless somebody says otherwise.
fn page_of(ctx: &RawCtx) -> Result<super::paging::Page<Entry>> {
    let (query, paging): (Query, Paging) = (ctx.query()?, ctx.query()?);
    let by = order(query.order_by.as_deref(), By::parse)?;
    let (user_id, _) = account(ctx, 0)?;
    let mut entries = ctx.app.media.entries_of(&user_id)?;
    by.sort(&mut entries);
    let unsaid = query.order_by.is_none_or(|name| name.is_empty());
    let backward = if unsaid { paging.newest_first() } else { paging.descending() };
    if backward {
        entries.reverse();
    }
    Ok(paging.cut(entries))
}

async fn of_user(ctx: RawCtx) -> Result<Response> {
    let page = page_of(&ctx)?;
    let media: Vec<Value> = page.items.iter().map(describe).collect();
    let mut body = json!({ "media": media, "total": page.total });
    if let Some(next) = page.next {
        body["next_token"] = json!(next);
    }
    ok(&body)
}

fn describe(entry: &Entry) -> Value {
    json!({
        "media_id": entry.media_id.as_str(),
        "created_ts": entry.upload.created_ts,
        "last_access_ts": null,
        "media_length": entry.upload.size_bytes,
        "media_type": entry.upload.content_type,
        "upload_name": entry.upload.filename,
        "quarantined_by": entry.marks.quarantined_by,
        "safe_from_quarantine": entry.marks.protected,
    })
}

async fn get(ctx: RawCtx) -> Result<Response> {
    let media_id = upload(&ctx, 0)?;
    let entry = ctx.app.media.entry(&media_id)?.ok_or_else(unknown)?;
    let mut body = describe(&entry);
    body["media_origin"] = json!(ctx.app.server_name);
    body["user_id"] = json!(entry.upload.user_id);
    ok(&json!({ "media_info": body }))
}

/// A page is deleted at a time; what is asked for again is the next one.
async fn delete_of_user(ctx: RawCtx) -> Result<Response> {
    let entries = page_of(&ctx)?.items;
    delete_all(&ctx.app, asking_name(&ctx), entries).await
}

async fn delete_all(app: &App, by: String, entries: Vec<Entry>) -> Result<Response> {
    let mut deleted = Vec::new();
    for entry in entries {
        if app.media.delete(&entry.media_id).await? {
            deleted.push(entry.media_id.as_str().to_owned());
        }
    }
    tracing::info!(uploads = deleted.len(), by, "an administrator deleted uploads");
    ok(&json!({ "total": deleted.len(), "deleted_media": deleted }))
}

async fn delete(ctx: RawCtx) -> Result<Response> {
    let media_id = upload(&ctx, 0)?;
    let entry = ctx.app.media.entry(&media_id)?.ok_or_else(unknown)?;
    delete_all(&ctx.app, asking_name(&ctx), vec![entry]).await
}

#[derive(Deserialize)]
struct Old {
    before_ts: u64,
    #[serde(default)]
    size_gt: u64,
    keep_profiles: Option<bool>,
}

/// Goes by when files were uploaded: when they were last used is not written down.
async fn delete_old(ctx: RawCtx) -> Result<Response> {
    /// Before this (a day of 1970), somebody meant seconds.
    const SOONEST_MS: u64 = 30_000_000_000;
    let asked: Old = ctx.query()?;
    if asked.before_ts < SOONEST_MS {
        return Err(Error::invalid_param("before_ts is in milliseconds since 1970"));
    }
    let app = ctx.app.clone();
    let work = move || {
        let mut entries = app.media.older_than(asked.before_ts, asked.size_gt)?;
        if asked.keep_profiles.unwrap_or(true) {
            let kept = avatars(&app)?;
            entries.retain(|entry| !kept.contains(&entry.media_id.uri(&app.server_name)));
        }
        Ok::<_, Error>(entries)
    };
    let entries = blocking::run(work).await??;
    delete_all(&ctx.app, asking_name(&ctx), entries).await
}

/// The pictures of users and rooms.
fn avatars(app: &App) -> Result<BTreeSet<String>> {
    let read = app.store.snapshot();
    let reader = RoomReader::new(&app.room_cache, &read);
    let mut avatars = BTreeSet::new();
    for row in read.scan(&PROFILES, PROFILES.all()) {
        let ((_, field), value) = row?;
        if field == "avatar_url" {
            avatars.extend(serde_json::from_slice::<String>(&value).ok());
        }
    }
    for row in read.scan(&HEADS, HEADS.all()) {
        let (room, head) = row?;
        let event = reader.state_event(room, head.state, "m.room.avatar", "")?;
        avatars.extend(event.and_then(|event| crate::rooms::shown::content_field::<String>(&event, "url")));
    }
    Ok(avatars)
}

async fn protect(ctx: RawCtx) -> Result<Response> {
    ctx.app.media.protect(&media_id(ctx.arg(0))?, true).await?;
    done()
}

async fn unprotect(ctx: RawCtx) -> Result<Response> {
    ctx.app.media.protect(&media_id(ctx.arg(0))?, false).await?;
    done()
}

async fn quarantine(ctx: RawCtx) -> Result<Response> {
    let media_id = upload(&ctx, 0)?;
    let changed = ctx.app.media.quarantine(&media_id, &asking_name(&ctx)).await?;
    let entry = ctx.app.media.entry(&media_id)?.ok_or_else(unknown)?;
    if !changed && entry.marks.protected {
        return Err(Error::forbidden("This upload is protected from quarantine"));
    }
    done()
}

async fn release(ctx: RawCtx) -> Result<Response> {
    ctx.app.media.release(&upload(&ctx, 0)?).await?;
    done()
}

async fn quarantine_room(ctx: RawCtx) -> Result<Response> {
    let own = format!("mxc://{}/", ctx.app.server_name);
    let urls = uploads_in(ctx.app.clone(), room(&ctx, 0)?).await?;
    let ids: Vec<MediaId> = urls.iter().filter_map(|url| MediaId::parse(url.strip_prefix(&own)?)).collect();
    quarantine_all(&ctx.app, asking_name(&ctx), ids).await
}

async fn quarantine_user(ctx: RawCtx) -> Result<Response> {
    let (user_id, _) = account(&ctx, 0)?;
    let ids = ctx.app.media.entries_of(&user_id)?.into_iter().map(|entry| entry.media_id).collect();
    quarantine_all(&ctx.app, asking_name(&ctx), ids).await
}

async fn quarantine_all(app: &App, by: String, ids: Vec<MediaId>) -> Result<Response> {
    let mut count = 0;
    for media_id in ids {
        match app.media.quarantine(&media_id, &by).await {
            Ok(changed) => count += usize::from(changed),
            // What a room shows may be gone.
            Err(cause) if cause.status() == http::StatusCode::NOT_FOUND => {}
            Err(cause) => return Err(cause),
        }
    }
    ok(&json!({ "num_quarantined": count }))
}

/// The upload of this server that two path arguments name.
fn upload(ctx: &RawCtx, index: usize) -> Result<MediaId> {
    if ctx.arg(index) != ctx.app.server_name.as_str() {
        return Err(Error::invalid_param("There is only media of this server here"));
    }
    media_id(ctx.arg(index + 1))
}

fn media_id(text: &str) -> Result<MediaId> {
    MediaId::parse(text).ok_or_else(|| Error::invalid_param("This is no media ID"))
}

fn unknown() -> Error {
    Error::not_found("There is no such media")
}
