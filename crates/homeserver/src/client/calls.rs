//! What calls need besides events: relays for two (spec: Voice over IP), and where calls of many meet (MSC4143).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{Method, StatusCode};
use ring::hmac;
use ruma::UserId;
use serde_json::{Value, json};

use crate::auth::Access;
use crate::config::Calls;
use crate::error::Result;
use crate::http::{RawCtx, Response, Routes, json_response};
use crate::limits::Class;

pub fn routes() -> Routes {
    Routes::default()
        .raw(Method::GET, &["/_matrix/client/r0/voip/turnServer", "/_matrix/client/v3/voip/turnServer"], turn_server)
        .access(Access::Token)
        .limit(Class::Other)
        .guests()
        .raw(Method::GET, &["/_matrix/client/unstable/org.matrix.msc4143/rtc/transports"], transports)
        .access(Access::Token)
        .guests()
}

async fn turn_server(ctx: RawCtx) -> Result<Response> {
    let now_s = ctx.app.clock.now_ms() / 1_000;
    let body = credentials(&ctx.app.config.calls, &ctx.requester()?.user_id, now_s);
    Ok(json_response(StatusCode::OK, body.to_string()))
}

/// A name that ends, and the password that the TURN server works out from it. Nothing, if there is no TURN server.
fn credentials(settings: &Calls, user_id: &UserId, now_s: u64) -> Value {
    let lifetime_s = settings.turn_lifetime.get().as_secs();
    let (username, password) = match (&settings.turn_secret, &settings.turn_username, &settings.turn_password) {
        _ if settings.turn_uris.is_empty() => return json!({}),
        (Some(secret), ..) => {
            let username = format!("{}:{user_id}", now_s.saturating_add(lifetime_s));
            let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret.as_bytes());
            let password = STANDARD.encode(hmac::sign(&key, username.as_bytes()));
            (username, password)
        }
        (None, Some(username), password) => (username.clone(), password.clone().unwrap_or_default()),
        (None, None, _) => return json!({}),
    };
    json!({ "username": username, "password": password, "uris": settings.turn_uris, "ttl": lifetime_s })
}

async fn transports(ctx: RawCtx) -> Result<Response> {
    let body = json!({ "rtc_transports": foci(&ctx.app.config.calls) });
    Ok(json_response(StatusCode::OK, body.to_string()))
}

/// Where calls of many meet.
pub fn foci(settings: &Calls) -> Vec<Value> {
    let focus = |url: &String| json!({ "type": "livekit", "livekit_service_url": url });
    settings.livekit_url.iter().map(focus).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::testing::{Server, config};

    const TURN: &str = "/_matrix/client/v3/voip/turnServer";
    const TRANSPORTS: &str = "/_matrix/client/unstable/org.matrix.msc4143/rtc/transports";

    #[tokio::test]
    async fn a_relay_gets_a_name_that_ends_and_its_password() {
        let mut config = config();
        config.calls.turn_uris = vec!["turn:turn.hs.test?transport=udp".to_owned()];
        config.calls.turn_secret = Some("n0t4ctuAllymatr1Xd0TorgSshar3d5ecret4obvIousreAsons".to_owned());
        let server = Server::new(config);
        let alice = server.user("alice").await;
        let answer = alice.client.get(TURN).await.json();
        assert_eq!(answer["username"], "1700086400:@alice:hs.test");
        assert_eq!((&answer["ttl"], &answer["uris"]), (&json!(86_400), &json!(["turn:turn.hs.test?transport=udp"])));
        // Worked out with another program.
        assert_eq!(answer["password"], "1VftOWDv94KLRuzIqdXLzKSJ6Rs=");
        assert_eq!(server.client.get(TURN).await.errcode(), "M_MISSING_TOKEN");
    }

    #[tokio::test]
    async fn without_settings_there_is_nothing_to_call_through() {
        let server = Server::default();
        let alice = server.user("alice").await;
        assert_eq!(alice.client.get(TURN).await.json(), json!({}));
        assert_eq!(alice.client.get(TRANSPORTS).await.json(), json!({ "rtc_transports": [] }));
        assert_eq!(server.client.get("/.well-known/matrix/client").await.status, 404);
    }

    #[tokio::test]
    async fn pitfall_109_calls_of_many_meet_where_the_settings_say() {
        let mut config = config();
        config.calls.livekit_url = Some("https://rtc.hs.test".to_owned());
        config.well_known.client_base_url = Some("https://matrix.hs.test".to_owned());
        let server = Server::new(config);
        let alice = server.user("alice").await;
        let foci = json!([{ "type": "livekit", "livekit_service_url": "https://rtc.hs.test" }]);
        assert_eq!(alice.client.get(TRANSPORTS).await.json(), json!({ "rtc_transports": foci }));
        let told = server.client.get("/.well-known/matrix/client").await.json();
        assert_eq!(told["org.matrix.msc4143.rtc_foci"], foci);
    }
}
