//! How often single users may send messages, where that is not what the settings say.

use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use store::{Read as _, Tx};

use super::{account, done, ok};
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response, Routes};
use crate::schema::{RATE_OVERRIDES, RateOverride};

pub(super) fn routes() -> Routes {
    const PATH: &str = "/_synapse/admin/v1/users/{user_id}/override_ratelimit";
    Routes::default().raw(Method::GET, &[PATH], get).raw(Method::POST, &[PATH], put).raw(
        Method::DELETE,
        &[PATH],
        delete,
    )
}

async fn get(ctx: RawCtx) -> Result<Response> {
    let (user_id, _) = account(&ctx, 0)?;
    let row = ctx.app.store.snapshot().get(&RATE_OVERRIDES, user_id.as_str())?;
    ok(&row.map_or_else(|| json!({}), |row| shown(&row)))
}

fn shown(row: &RateOverride) -> Value {
    json!({ "messages_per_second": row.messages_per_second, "burst_count": row.burst_count })
}

/// What is absent is 0, and 0 messages in a second means as many as they like.
#[derive(Deserialize)]
struct Put {
    #[serde(default)]
    messages_per_second: u32,
    #[serde(default)]
    burst_count: u32,
}

async fn put(mut ctx: RawCtx) -> Result<Response> {
    let Put { messages_per_second, burst_count } = ctx.read_json().await?;
    let (user_id, _) = account(&ctx, 0)?;
    let row = RateOverride { messages_per_second, burst_count };
    let put = |tx: &mut Tx| {
        tx.put(&RATE_OVERRIDES, user_id.as_str(), &row);
        Ok::<_, Error>(())
    };
    ctx.app.store.transact(put).await?;
    ctx.app.limits.refresh(&ctx.app.store, &user_id)?;
    ok(&shown(&row))
}

async fn delete(ctx: RawCtx) -> Result<Response> {
    let (user_id, _) = account(&ctx, 0)?;
    let delete = |tx: &mut Tx| {
        tx.delete(&RATE_OVERRIDES, user_id.as_str());
        Ok::<_, Error>(())
    };
    ctx.app.store.transact(delete).await?;
    ctx.app.limits.refresh(&ctx.app.store, &user_id)?;
    done()
}

#[cfg(test)]
mod tests {
    use http::Method;
    use serde_json::{Value, json};
    use store::MemoryDisk;

    use crate::App;
    use crate::client::testing::{next, ok, public_room, refused};
    use crate::config::Limit;
    use crate::http::Body;
    use crate::testing::{PASSWORD, Server, User, config};
    use crate::users::admin;

    const PATH: &str = "/_synapse/admin/v1/users/@alice:hs.test/override_ratelimit";

    /// How many messages of ten get through.
    async fn sent(user: &User, room_id: &str) -> usize {
        let mut sent = 0;
        for _ in 0..10 {
            let path = format!("/_matrix/client/v3/rooms/{room_id}/send/m.room.message/{}", next());
            let answer = user.client.put(&path, json!({ "msgtype": "m.text", "body": "x" })).await;
            sent += usize::from(answer.status == 200);
        }
        sent
    }

    #[tokio::test]
    async fn one_user_may_send_more_or_less_than_others() {
        let disk = MemoryDisk::new();
        let mut config = config();
        config.rate_limits.message = Limit::per_second(0.001, 3);
        let server = Server::of(App::on_memory_disk(config.clone(), disk.clone()));
        admin::create(&server.app, "root", PASSWORD, true).await.unwrap();
        let (root, alice, bob) = (server.log_in("root").await, server.user("alice").await, server.user("bob").await);
        let room = public_room(&alice).await;
        room.join(&bob).await;
        let get = async || ok(&root.client.get(PATH).await);
        assert_eq!((get().await, sent(&alice, &room.id).await, sent(&bob, &room.id).await), (json!({}), 3, 3));
        let put = async |body: Value| ok(&root.client.post(PATH, body).await);
        let unlimited = json!({ "messages_per_second": 0, "burst_count": 0 });
        assert_eq!((put(json!({})).await, get().await), (unlimited.clone(), unlimited));
        assert_eq!((sent(&alice, &room.id).await, sent(&bob, &room.id).await), (10, 0));
        // A server that starts again knows it.
        let again = Server::of(App::on_memory_disk(config, disk));
        let client = again.client.with_token(&*alice.token);
        assert_eq!(sent(&User { client, ..alice.clone() }, &room.id).await, 10);
        server.app.clock.advance(std::time::Duration::from_secs(100_000));
        put(json!({ "messages_per_second": 1, "burst_count": 5 })).await;
        assert_eq!(sent(&alice, &room.id).await, 5);
        ok(&root.client.send(Method::DELETE, PATH, Body::empty()).await);
        server.app.clock.advance(std::time::Duration::from_secs(100_000));
        assert_eq!((get().await, sent(&alice, &room.id).await), (json!({}), 3));
        assert_eq!(refused(&alice.client.get(PATH).await), (403, "M_FORBIDDEN".to_owned()));
        let nobody = PATH.replace("alice", "nobody");
        assert_eq!(refused(&root.client.get(&nobody).await), (404, "M_NOT_FOUND".to_owned()));
        assert_eq!(refused(&root.client.post(PATH, json!({ "burst_count": -1 })).await).0, 400);
    }
}
