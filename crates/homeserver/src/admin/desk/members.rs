//! Who may be in a room, and with what power.

use http::Method;
use ruma::{OwnedRoomId, RoomAliasId, RoomId};
use serde::Deserialize;
use serde_json::json;
use store::{Read, Tx};

use super::rooms::exists;
use super::{asking, asking_name, done, no_room, ok, room, user_of};
use crate::error::Result;
use crate::http::{RawCtx, Response, Routes};
use crate::rooms::{aliases, moderate};
use crate::schema::{BLOCKED_ROOMS, Block};

pub(super) fn routes() -> Routes {
    const BLOCK: &str = "/_synapse/admin/v1/rooms/{room_id}/block";
    Routes::default()
        .raw(Method::GET, &[BLOCK], is_blocked)
        .raw(Method::PUT, &[BLOCK], block)
        .raw(Method::POST, &["/_synapse/admin/v1/join/{room_id_or_alias}"], join)
        .raw(Method::POST, &["/_synapse/admin/v1/rooms/{room_id_or_alias}/make_room_admin"], make_admin)
}

async fn is_blocked(ctx: RawCtx) -> Result<Response> {
    let room_id = room(&ctx, 0)?;
    let block = ctx.app.store.snapshot().get(&BLOCKED_ROOMS, room_id.as_str())?;
    let mut body = json!({ "block": block.is_some() });
    if let Some(block) = block {
        body["user_id"] = json!(block.user_id);
    }
    ok(&body)
}

#[derive(Deserialize)]
struct SetBlock {
    block: bool,
}

async fn block(mut ctx: RawCtx) -> Result<Response> {
    let asked: SetBlock = ctx.read_json().await?;
    let room_id = room(&ctx, 0)?;
    let block = Block { user_id: asking_name(&ctx), ts: ctx.app.clock.now_ms(), task: None };
    let set = |tx: &mut Tx| -> Result<()> {
        moderate::set_blocked(tx, &room_id, Some(&block).filter(|_| asked.block));
        Ok(())
    };
    ctx.app.store.transact(set).await?;
    tracing::info!(%room_id, block = asked.block, by = asking_name(&ctx), "an administrator set whether a room is blocked");
    ok(&json!({ "block": asked.block }))
}

#[derive(Deserialize)]
struct Whom {
    user_id: String,
}

async fn join(mut ctx: RawCtx) -> Result<Response> {
    let asked: Whom = ctx.read_json().await?;
    let room_id = by_name(&ctx)?;
    let user_id = user_of(&ctx, &asked.user_id)?;
    super::account_of(&ctx, &user_id)?;
    moderate::join(&ctx.app, asking(&ctx), &user_id, &room_id).await?;
    tracing::info!(%room_id, %user_id, by = asking_name(&ctx), "an administrator made a user join a room");
    ok(&json!({ "room_id": room_id }))
}

#[derive(Deserialize)]
struct MakeAdmin {
    user_id: Option<String>,
}

/// Without a user: whoever asks.
async fn make_admin(mut ctx: RawCtx) -> Result<Response> {
    let asked: MakeAdmin = ctx.read_json().await?;
    let room_id = by_name(&ctx)?;
    let name = asked.user_id.unwrap_or_else(|| asking_name(&ctx));
    let user_id = user_of(&ctx, &name)?;
    super::account_of(&ctx, &user_id)?;
    moderate::make_admin(&ctx.app, &room_id, &user_id).await?;
    tracing::info!(%room_id, %user_id, by = asking_name(&ctx), "an administrator gave a user power in a room");
    done()
}

/// The room of a path that may also name an alias.
fn by_name(ctx: &RawCtx) -> Result<OwnedRoomId> {
    let name = ctx.arg(0);
    let room_id = if name.starts_with('#') {
        let alias = RoomAliasId::parse(name)?;
        aliases::resolve(&ctx.app.store.snapshot(), &alias)?.ok_or_else(no_room)?
    } else {
        RoomId::parse(name)?
    };
    exists(ctx, &room_id)?;
    Ok(room_id)
}
