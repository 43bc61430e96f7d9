//! Room tags: the room account data `m.tag`, one tag at a time.

use bytes::Bytes;
use ruma::api::client::tag::{create_tag, delete_tag, get_tags};
use ruma::{RoomId, UserId};
use serde_json::{Map, Value, json};
use store::{Read, Tx};

use crate::App;
use crate::client::account_data::own;
use crate::error::{Error, Result};
use crate::http::{Ctx, Routes};
use crate::users::account_data;

const KIND: &str = "m.tag";
const MAX_TAG_BYTES: usize = 255;

pub fn routes() -> Routes {
    Routes::default().ruma(list).guests().ruma(put).guests().ruma(delete).guests()
}

async fn list(ctx: Ctx<get_tags::v3::Request>) -> Result<get_tags::v3::Response> {
    own(&ctx.requester, &ctx.request.user_id)?;
    let tags = read(&ctx.app.store.snapshot(), &ctx.requester.user_id, &ctx.request.room_id)?;
    // What does not look like a tag was put there as account data; it is no tag.
    let tags = tags.into_iter().filter_map(|(tag, info)| Some((tag.into(), serde_json::from_value(info).ok()?)));
    Ok(get_tags::v3::Response::new(tags.collect()))
}

async fn put(ctx: Ctx<create_tag::v3::Request>) -> Result<create_tag::v3::Response> {
    own(&ctx.requester, &ctx.request.user_id)?;
    if ctx.request.tag.len() > MAX_TAG_BYTES {
        return Err(Error::invalid_param(format!("A tag has at most {MAX_TAG_BYTES} bytes")));
    }
    let info: Value = serde_json::from_slice(&ctx.body)?;
    let put = |tags: &mut Map<String, Value>| {
        tags.insert(ctx.request.tag.clone(), info.clone());
    };
    change(&ctx.app, &ctx.requester.user_id, &ctx.request.room_id, put).await?;
    Ok(create_tag::v3::Response::new())
}

async fn delete(ctx: Ctx<delete_tag::v3::Request>) -> Result<delete_tag::v3::Response> {
    own(&ctx.requester, &ctx.request.user_id)?;
    let delete = |tags: &mut Map<String, Value>| {
        tags.remove(&ctx.request.tag);
    };
    change(&ctx.app, &ctx.requester.user_id, &ctx.request.room_id, delete).await?;
    Ok(delete_tag::v3::Response::new())
}

fn read(read: &impl Read, user_id: &UserId, room_id: &RoomId) -> Result<Map<String, Value>> {
    let Some(content) = account_data::get(read, user_id, room_id.as_str(), KIND)? else { return Ok(Map::new()) };
    let mut content: Map<String, Value> = serde_json::from_slice(&content).map_err(Error::internal)?;
    match content.remove("tags") {
        Some(Value::Object(tags)) => Ok(tags),
        _ => Ok(Map::new()),
    }
}

async fn change(
    app: &App,
    user_id: &UserId,
    room_id: &RoomId,
    change: impl Fn(&mut Map<String, Value>) + Send + Sync,
) -> Result<()> {
    let write = |tx: &mut Tx| {
        let before = read(tx, user_id, room_id)?;
        let mut tags = before.clone();
        change(&mut tags);
        if tags == before {
            return Ok(());
        }
        let content = Bytes::from(json!({ "tags": tags }).to_string());
        account_data::put(tx, user_id, room_id.as_str(), KIND, content)
    };
    app.store.transact(write).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::testing::Server;

    #[tokio::test]
    async fn pitfall_074_tags_come_and_go_and_are_account_data() {
        let server = Server::default();
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = "/_matrix/client/v3/user/@alice:hs.test/rooms/!r:hs.test";
        let tags = format!("{room}/tags");
        assert_eq!(alice.client.get(&tags).await.json(), json!({ "tags": {} }));
        let put = async |tag: &str, info: Value| alice.client.put(&format!("{tags}/{tag}"), info).await.status.as_u16();
        assert_eq!(put("m.favourite", json!({ "order": 0.25 })).await, 200);
        assert_eq!(put("u.work", json!({})).await, 200);
        assert_eq!(put(&"x".repeat(256), json!({})).await, 400);
        let both = json!({ "tags": { "m.favourite": { "order": 0.25 }, "u.work": {} } });
        assert_eq!(alice.client.get(&tags).await.json(), both);
        assert_eq!(alice.client.get(&format!("{room}/account_data/m.tag")).await.json(), both);
        assert_eq!(alice.client.delete(&format!("{tags}/m.favourite")).await.status, 200);
        assert_eq!(alice.client.delete(&format!("{tags}/m.favourite")).await.status, 200);
        assert_eq!(alice.client.get(&tags).await.json(), json!({ "tags": { "u.work": {} } }));
        assert_eq!(bob.client.get(&tags).await.errcode(), "M_FORBIDDEN");
    }
}
