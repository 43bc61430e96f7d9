//! What this server can do and lets its users do.

use http::{Method, StatusCode};
use ruma::RoomVersionId;
use serde_json::{Map, Value, json};

use crate::auth::{Access, uia};
use crate::delayed;
use crate::error::Result;
use crate::http::{RawCtx, Response, Routes, json_response};
use crate::limits::Class;

/// The versions that rooms may have.
const ROOM_VERSIONS: [RoomVersionId; 7] = [
    RoomVersionId::V6,
    RoomVersionId::V7,
    RoomVersionId::V8,
    RoomVersionId::V9,
    RoomVersionId::V10,
    RoomVersionId::V11,
    RoomVersionId::V12,
];

const PATHS: &[&str] = &["/_matrix/client/r0/capabilities", "/_matrix/client/v3/capabilities"];

pub fn routes() -> Routes {
    Routes::default().raw(Method::GET, PATHS, capabilities).access(Access::Token).limit(Class::Other).guests()
}

/// Each one is spelled out, also where it says what the specification takes for granted: clients of old did not.
async fn capabilities(ctx: RawCtx) -> Result<Response> {
    // Who logged in by OAuth does these things on the pages of this server.
    let by_password = !uia::is_by_oauth(&ctx.app, ctx.requester()?)?;
    let stable = |version: &RoomVersionId| (version.to_string(), json!("stable"));
    let available: Map<String, Value> = ROOM_VERSIONS.iter().map(stable).collect();
    let moderates = ctx.requester()?.admin;
    let body = json!({ "capabilities": {
        "m.room_versions": { "default": ctx.app.config.rooms.default_version, "available": available },
        "m.change_password": { "enabled": by_password },
        "m.profile_fields": { "enabled": true },
        "m.set_displayname": { "enabled": true },
        "m.set_avatar_url": { "enabled": true },
        "m.3pid_changes": { "enabled": false },
        "m.account_moderation": { "lock": moderates, "suspend": moderates },
        "m.get_login_token": { "enabled": by_password },
        "m.delayed_events": { "max_delay_ms": delayed::MAX_DELAY_MS, "max_scheduled": delayed::MAX_SCHEDULED },
    } });
    Ok(json_response(StatusCode::OK, body.to_string()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::testing::{PASSWORD, Server};
    use crate::users::admin;

    #[tokio::test]
    async fn pitfall_110_the_default_room_version_is_one_of_the_stable_ones() {
        let server = Server::default();
        let alice = server.user("alice").await;
        let all = alice.client.get("/_matrix/client/v3/capabilities").await.json()["capabilities"].clone();
        let versions = &all["m.room_versions"];
        assert_eq!(versions["available"][versions["default"].as_str().unwrap()], "stable");
        assert_eq!(versions["available"].as_object().unwrap().len(), 7);
        assert_eq!(all["m.change_password"], json!({ "enabled": true }));
        assert_eq!(all["m.3pid_changes"], json!({ "enabled": false }));
        assert_eq!(all["m.account_moderation"], json!({ "lock": false, "suspend": false }));
        admin::create(&server.app, "root", PASSWORD, true).await.unwrap();
        let root = server.log_in("root").await;
        let all = root.client.get("/_matrix/client/v3/capabilities").await.json()["capabilities"].clone();
        assert_eq!(all["m.account_moderation"], json!({ "lock": true, "suspend": true }));
        assert_eq!(server.client.get("/_matrix/client/v3/capabilities").await.errcode(), "M_MISSING_TOKEN");
    }
}
