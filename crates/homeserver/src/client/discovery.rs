//! What a client asks before it knows anybody: supported versions and the `.well-known` documents.

use http::{HeaderValue, Method, StatusCode, header};
use serde_json::{Map, Value, json};

use super::calls::foci;
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response, Routes, json_response};

/// A version stands here once every endpoint and behaviour it brought is there: clients change their ways on it. That the
/// endpoints are there is checked: `docs/generated/endpoints.md` has all operations of the last one named, and only those
/// may be missing that `docs/spec/not-served.tsv` gives a reason for. What else has to be true of each, as far as it is a
/// server's without federation:
///
/// - v1.11: media needs a token; the first upload of cross-signing keys needs no proof.
/// - v1.12: locked accounts; `via` at the door of a room; guests see media.
/// - v1.13: suspended accounts; what happens in passing reaches application services; one-time keys leave in their order.
/// - v1.14: new rooms have version 11 or later.
/// - v1.15: `auth_metadata` is there, or M_UNRECOGNIZED while OAuth is off.
/// - v1.16: room version 12; fields of profiles; `use_state_after`.
/// - v1.17: application services make devices and speak as them; `m.oauth` where keys are replaced.
/// - v1.18: administrators lock and suspend, and are told that they may; invites can be blocked; `/send` takes redactions.
/// - v1.19: mutual rooms; `replaces_state`.
const VERSIONS: &[&str] = &[
    "v1.1", "v1.2", "v1.3", "v1.4", "v1.5", "v1.6", "v1.7", "v1.8", "v1.9", "v1.10", "v1.11", "v1.12", "v1.13",
    "v1.14", "v1.15", "v1.16", "v1.17", "v1.18", "v1.19",
];

/// Features outside of the versions above. Once listed they stay for years.
const UNSTABLE_FEATURES: &[&str] = &[
    "org.matrix.msc3814",
    "org.matrix.simplified_msc3575",
    "org.matrix.msc4140",
    "org.matrix.msc4155",
    "org.matrix.msc4380.stable",
    "uk.half-shot.msc2666.query_mutual_rooms",
    "uk.half-shot.msc2666.query_mutual_rooms.stable",
];

pub fn routes() -> Routes {
    Routes::default()
        .raw(Method::GET, &["/_matrix/client/versions"], versions)
        .in_maintenance()
        .raw(Method::GET, &["/.well-known/matrix/client"], well_known_client)
        .in_maintenance()
        .raw(Method::GET, &["/.well-known/matrix/server"], well_known_server)
        .in_maintenance()
        .raw(Method::GET, &["/.well-known/matrix/support"], well_known_support)
        .in_maintenance()
}

async fn versions(ctx: RawCtx) -> Result<Response> {
    let mut features: Map<String, Value> =
        UNSTABLE_FEATURES.iter().map(|name| ((*name).to_owned(), Value::Bool(true))).collect();
    if ctx.app.config.calls.livekit_url.is_some() {
        features.insert("org.matrix.msc4143".to_owned(), Value::Bool(true));
    }
    if ctx.app.auth.oauth.site().is_ok() {
        features.insert("org.matrix.msc4108".to_owned(), Value::Bool(true));
    }
    Ok(document(json!({ "versions": VERSIONS, "unstable_features": features })))
}

async fn well_known_client(ctx: RawCtx) -> Result<Response> {
    let settings = &ctx.app.config.well_known;
    let Some(base_url) = &settings.client_base_url else { return Err(not_configured()) };
    let mut body = settings.client_extra.clone();
    body.insert("m.homeserver".to_owned(), json!({ "base_url": base_url }));
    let foci = foci(&ctx.app.config.calls);
    if !foci.is_empty() {
        body.insert("org.matrix.msc4143.rtc_foci".to_owned(), Value::Array(foci));
    }
    Ok(document(Value::Object(body)))
}

async fn well_known_server(ctx: RawCtx) -> Result<Response> {
    let Some(server) = &ctx.app.config.well_known.server else { return Err(not_configured()) };
    Ok(document(json!({ "m.server": server })))
}

async fn well_known_support(ctx: RawCtx) -> Result<Response> {
    let settings = &ctx.app.config.well_known;
    let mut body = Map::new();
    let mut contact = Map::new();
    if let Some(user_id) = &settings.support_matrix_id {
        contact.insert("matrix_id".to_owned(), json!(user_id));
    }
    if let Some(address) = &settings.support_email {
        contact.insert("email_address".to_owned(), json!(address));
    }
    if !contact.is_empty() {
        contact.insert("role".to_owned(), json!("m.role.admin"));
        body.insert("contacts".to_owned(), json!([contact]));
    }
    if let Some(page) = &settings.support_page {
        body.insert("support_page".to_owned(), json!(page));
    }
    if body.is_empty() { Err(not_configured()) } else { Ok(document(Value::Object(body))) }
}

fn not_configured() -> Error {
    Error::not_found("This server does not have this document")
}

/// The same for everybody, so that caches may keep it for a while.
fn document(body: Value) -> Response {
    let mut response = json_response(StatusCode::OK, body.to_string());
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=600"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::App;
    use crate::config::Config;
    use crate::http::Local;

    fn client(change: impl FnOnce(&mut Config)) -> Local {
        let mut config = Config::new(ruma::owned_server_name!("hs.test"));
        change(&mut config);
        Local::new(App::in_memory(config).router())
    }

    #[tokio::test]
    async fn pitfall_108_versions_are_a_list_and_features_booleans() {
        let answer = client(|_| {}).get("/_matrix/client/versions").await;
        let body = answer.json();
        // All of them, up to the one whose operations the table of endpoints is checked against.
        let (last, named) = (19, body["versions"].as_array().unwrap());
        assert_eq!(*named, (1..=last).map(|minor| json!(format!("v1.{minor}"))).collect::<Vec<_>>());
        let checked = format!("/../../docs/spec/client-server-1.{last}.tsv");
        assert!(std::path::Path::new(&(env!("CARGO_MANIFEST_DIR").to_owned() + &checked)).is_file());
        assert!(body["unstable_features"].as_object().is_some_and(|all| all.values().all(|on| on == &json!(true))));
        assert_eq!(answer.headers[header::ACCESS_CONTROL_ALLOW_ORIGIN], "*");
    }

    #[tokio::test]
    async fn pitfall_109_well_known_is_json_with_cors_or_not_there() {
        let silent = client(|_| {});
        for name in ["client", "server", "support"] {
            let answer = silent.get(&format!("/.well-known/matrix/{name}")).await;
            assert_eq!((answer.status, answer.errcode().as_str()), (StatusCode::NOT_FOUND, "M_NOT_FOUND"), "{name}");
        }
        let told = client(|config| {
            let settings = &mut config.well_known;
            settings.client_base_url = Some("https://matrix.hs.test".to_owned());
            settings.client_extra.insert("org.matrix.msc4143.rtc_foci".to_owned(), json!([]));
            settings.server = Some("matrix.hs.test:443".to_owned());
            settings.support_email = Some("admin@hs.test".to_owned());
        });
        let answer = told.get("/.well-known/matrix/client").await;
        assert_eq!(answer.headers[header::CONTENT_TYPE], "application/json");
        assert_eq!(answer.headers[header::ACCESS_CONTROL_ALLOW_ORIGIN], "*");
        let expected =
            json!({"m.homeserver": {"base_url": "https://matrix.hs.test"}, "org.matrix.msc4143.rtc_foci": []});
        assert_eq!(answer.json(), expected);
        assert_eq!(told.get("/.well-known/matrix/server").await.json(), json!({"m.server": "matrix.hs.test:443"}));
        let contacts = told.get("/.well-known/matrix/support").await.json()["contacts"].clone();
        assert_eq!(contacts, json!([{"email_address": "admin@hs.test", "role": "m.role.admin"}]));
    }
}
