//! What good requests look like: bodies by handler, and path arguments where the usual ones will not do.

use serde_json::{Value, json};

use super::PASSWORD;

pub(crate) type Example = (Vec<(&'static str, &'static str)>, Value);

/// Good bodies by handler. `{user}`, `{other}`, `{device}`, `{room}` and `{event}` stand for what there is.
pub(crate) fn examples(handler: &'static str) -> Vec<Example> {
    if handler.contains("::desk::") {
        return vec![(Vec::new(), of_the_desk())];
    }
    let name = handler.rsplit("::").take(2).collect::<Vec<_>>();
    let (module, name) = (name[1], name[0]);
    if handler.contains("::oauth::") {
        return oauth(module, name).into_iter().map(|fields| (Vec::new(), fields)).collect();
    }
    let auth = json!({"type": "m.login.password", "identifier": {"type": "m.id.user", "user": "{user}"},
        "password": PASSWORD, "session": "x"});
    let one = |body: Value| vec![(Vec::new(), body)];
    match (module, name) {
        ("create_room", _) => one(json!({
            "preset": "public_chat", "name": "n", "topic": "t", "visibility": "public", "invite": ["{other}"],
            "room_alias_name": "an-alias", "room_version": "11", "is_direct": true,
            "initial_state": [
                {"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "public"}},
                {"type": "org.example", "state_key": "key", "content": {"a": [1, {"b": "c"}]}}],
            "power_level_content_override": power_levels(),
            "creation_content": {"m.federate": true, "type": "m.space", "additional_creators": ["{other}"],
                "predecessor": {"room_id": "{room}", "event_id": "{event}"}},
        })),
        ("account", "close") => one(json!({"auth": auth, "erase": true, "id_server": "hs.test"})),
        ("account", "set_password") => {
            one(json!({"auth": auth, "new_password": "another password", "logout_devices": false}))
        }
        ("session", "login") => vec![
            (
                vec![],
                json!({"type": "m.login.password", "identifier": {"type": "m.id.user", "user": "{user}"},
                "password": PASSWORD, "device_id": "D", "initial_device_display_name": "n", "refresh_token": true}),
            ),
            (vec![], json!({"type": "m.login.token", "token": "t"})),
            (vec![], json!({"type": "m.login.application_service", "identifier": {"type": "m.id.user", "user": "u"}})),
        ],
        ("appservice", "request_ping") => one(json!({"transaction_id": "t"})),
        ("appservice", _) => one(json!({"visibility": "public"})),
        ("session", "refresh") => one(json!({"refresh_token": "t"})),
        ("session", _) => one(json!({"auth": auth})),
        ("register", _) => one(json!({
            "username": "somebody", "password": PASSWORD, "auth": {"type": "m.login.dummy", "session": "x"},
            "device_id": "D", "initial_device_display_name": "n", "inhibit_login": false, "refresh_token": true,
            "nonce": "n", "admin": false, "displayname": "d", "user_type": "bot", "mac": "00ff"})),
        ("devices", "delete_some") => one(json!({"devices": ["{device}", "other"], "auth": auth})),
        ("devices", "delete") => one(json!({"auth": auth})),
        ("devices", _) => one(json!({"display_name": "n"})),
        ("keys", "claim") => one(json!({"one_time_keys": {"{other}": {"DEVICE": "signed_curve25519"}}, "timeout": 10})),
        ("keys", "query") => one(json!({"device_keys": {"{other}": ["DEVICE"], "{user}": []}, "timeout": 10})),
        ("keys", "upload") => one(json!({
            "device_keys": device_keys(),
            "one_time_keys": {"signed_curve25519:AAAA":
                {"key": "c2tlcnJ5", "signatures": {"{user}": {"ed25519:{device}": "c2tlcnJ5"}}},
                "curve25519:BBBB": "c2tlcnJ5"},
            "fallback_keys": {"signed_curve25519:CCCC":
                {"key": "c2tlcnJ5", "fallback": true, "signatures": {"{user}": {"ed25519:{device}": "c2tlcnJ5"}}}}})),
        ("signing_keys", "upload") => {
            let key = |usage: &str| {
                json!({"user_id": "{user}", "usage": [usage], "keys": {"ed25519:c2tlcnJ5": "c2tlcnJ5"},
                    "signatures": {"{user}": {"ed25519:c2tlcnJ5": "c2tlcnJ5"}}})
            };
            one(json!({"master_key": key("master"), "self_signing_key": key("self_signing"),
                "user_signing_key": key("user_signing"), "auth": auth}))
        }
        ("signing_keys", _) => one(json!({"{user}": {"{device}": device_keys()}})),
        ("room_keys", "create" | "update") => one(json!({
            "algorithm": "m.megolm_backup.v1.curve25519-aes-sha2", "version": "1",
            "auth_data": {"public_key": "c2tlcnJ5", "signatures": {"{user}": {"ed25519:{device}": "c2tlcnJ5"}}}})),
        ("room_keys", "put_keys") => {
            let session = json!({"first_message_index": 1, "forwarded_count": 0, "is_verified": false,
                "session_data": {"ciphertext": "c", "ephemeral": "e", "mac": "m"}});
            let room = json!({"sessions": {"a session": session}});
            vec![(vec![], session), (vec![], room.clone()), (vec![], json!({"rooms": {"{room}": room}}))]
        }
        ("dehydrated_device", "put") => one(json!({
            "device_id": "DEHYDRATED", "initial_device_display_name": "n", "device_keys": device_keys(),
            "device_data": {"algorithm": "org.matrix.msc3814.v1.olm", "device_pickle": "p"},
            "one_time_keys": {"signed_curve25519:AAAA": {"key": "c2tlcnJ5", "signatures": {}}},
            "fallback_keys": {"signed_curve25519:CCCC": {"key": "c2tlcnJ5", "fallback": true, "signatures": {}}}})),
        ("dehydrated_device", _) => one(json!({"next_batch": "b"})),
        _ => of_what_people_do(module, name),
    }
}

/// The same for what is not about accounts, devices and keys.
fn of_what_people_do(module: &str, name: &str) -> Vec<Example> {
    let one = |body: Value| vec![(Vec::new(), body)];
    match (module, name) {
        ("presence", _) => one(json!({"presence": "online", "status_msg": "here"})),
        ("profile", _) => vec![
            (vec![("field", "displayname")], json!({"displayname": "n"})),
            (vec![("field", "avatar_url")], json!({"avatar_url": "mxc://hs.test/abc"})),
            (vec![("field", "org.example.field")], json!({"org.example.field": {"a": [1, "b"]}})),
            (vec![("field", "m.tz")], json!({"m.tz": "Atlantic/Reykjavik"})),
        ],
        ("directory", "search_public_rooms") => one(json!({"limit": 10, "since": "x",
            "filter": {"generic_search_term": "x", "room_types": [null, "m.space"]}, "include_all_networks": false,
            "third_party_instance_id": "x"})),
        ("directory", "set_room_visibility") => one(json!({"visibility": "public"})),
        ("directory", "create_alias") => one(json!({"room_id": "{room}"})),
        ("push_rules", "put") => ["override", "underride", "content", "room", "sender"]
            .into_iter()
            .map(|kind| {
                (
                    vec![("kind", kind)],
                    json!({
                "actions": ["notify", {"set_tweak": "sound", "value": "x"}, {"set_tweak": "highlight"}],
                "conditions": [{"kind": "event_match", "key": "type", "pattern": "m.*"},
                    {"kind": "room_member_count", "is": ">=2"}, {"kind": "contains_display_name"},
                    {"kind": "sender_notification_permission", "key": "room"},
                    {"kind": "event_property_contains", "key": "content.m\\.mentions.user_ids", "value": "x"}],
                "pattern": "x*"}),
                )
            })
            .collect(),
        ("push_rules", "set_actions") => {
            vec![(vec![("rule_id", ".m.rule.master")], json!({"actions": ["notify", {"set_tweak": "highlight"}]}))]
        }
        ("push_rules", "set_enabled") => vec![(vec![("rule_id", ".m.rule.master")], json!({"enabled": true}))],
        ("membership", _) => one(json!({"user_id": "{other}", "reason": "r", "via": ["hs.test"],
            "third_party_signed": {"sender": "{other}", "mxid": "{user}", "token": "t",
                "signatures": {"hs.test": {"ed25519:0": "c2ln"}}}})),
        ("receipts", "read_markers") => {
            one(json!({"m.fully_read": "{event}", "m.read": "{event}", "m.read.private": "{event}"}))
        }
        ("receipts", _) => one(json!({"thread_id": "main"})),
        ("message", "redact") => one(json!({"reason": "r", "redacts": "{event}"})),
        ("message", "send_message") => messages(),
        ("message", "put_state") => states(),
        ("typing", _) => one(json!({"typing": true, "timeout": 1000})),
        ("to_device", _) => {
            one(json!({"messages": {"{other}": {"*": {"a": 1}}, "{user}": {"{device}": {"b": [2]}, "X": {}}}}))
        }
        ("account_data", "put") => vec![
            (vec![], json!({"a": {"b": ["c", 1]}})),
            (vec![("event_type", "m.ignored_user_list")], json!({"ignored_users": {"@spam:hs.test": {}}})),
            (vec![("event_type", "m.direct")], json!({"{other}": ["{room}"]})),
            (vec![("event_type", "m.push_rules")], json!({"global": {}})),
            (vec![("event_type", "m.fully_read")], json!({"event_id": "{event}"})),
        ],
        ("account_data", "put_in_room") => vec![
            (vec![], json!({"a": {"b": ["c", 1]}})),
            (vec![("event_type", "m.tag")], json!({"tags": {"u.work": {"order": 0.5}}})),
            (vec![("event_type", "m.marked_unread")], json!({"unread": true})),
            (vec![("event_type", "m.fully_read")], json!({"event_id": "{event}"})),
        ],
        ("filters", "create") => one(filter()),
        ("openid", _) => one(json!({})),
        ("tags", "put") => one(json!({"order": 0.5, "org.example": true})),
        ("user_directory", _) => one(json!({"search_term": "x", "limit": 10})),
        ("admin", _) => one(json!({"locked": false, "suspended": false})),
        ("users", _) => one(json!({"user": "made", "username": "made", "password": PASSWORD, "admin": false,
            "logout_devices": true, "erase": false})),
        ("sliding_sync" | "sliding_sync_merged", _) => one(sliding()),
        _ => one(json!({"a": "b"})),
    }
}

/// What administrators send. Each endpoint takes what is meant for it.
fn of_the_desk() -> Value {
    json!({
        "password": PASSWORD, "new_password": PASSWORD, "logout_devices": false, "displayname": "d",
        "avatar_url": "mxc://hs.test/abc", "admin": true, "locked": false, "deactivated": false, "suspend": false,
        "threepids": [], "external_ids": [], "user_type": null, "erase": false, "valid_until_ms": null,
        "device_id": "NEW", "display_name": "n", "devices": ["{device}"], "user_id": "{other}", "block": false,
        "new_room_user_id": "{other}", "room_name": "n", "message": "m", "purge": false, "force_purge": false,
        "purge_up_to_event_id": "{event}", "purge_up_to_ts": 1, "delete_local_events": true, "rooms": ["{room}"],
        "content": {"msgtype": "m.text", "body": "b"}, "type": "m.room.message", "messages_per_second": 5, "burst_count": 9,
        "reason": "r", "limit": 5, "token": "abc", "length": 8, "uses_allowed": 1, "expiry_time": null,
    })
}

fn device_keys() -> Value {
    json!({"user_id": "{user}", "device_id": "{device}",
        "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
        "keys": {"curve25519:{device}": "c2tlcnJ5", "ed25519:{device}": "c2tlcnJ5"},
        "signatures": {"{user}": {"ed25519:{device}": "c2tlcnJ5"}}})
}

fn power_levels() -> Value {
    json!({"users": {"{user}": 100, "{other}": 50}, "events": {"m.room.name": 50}, "users_default": 0,
        "events_default": 0, "state_default": 50, "ban": 50, "kick": 50, "redact": 50, "invite": 0,
        "notifications": {"room": 50}})
}

fn messages() -> Vec<Example> {
    let related = |relation: Value| json!({"msgtype": "m.text", "body": "b", "m.relates_to": relation});
    vec![
        (
            vec![],
            json!({"msgtype": "m.text", "body": "b", "format": "org.matrix.custom.html", "formatted_body": "<b>b",
            "m.mentions": {"user_ids": ["{other}"], "room": true}}),
        ),
        (
            vec![],
            related(json!({"rel_type": "m.thread", "event_id": "{event}", "is_falling_back": true,
            "m.in_reply_to": {"event_id": "{event}"}})),
        ),
        (
            vec![],
            json!({"msgtype": "m.text", "body": "* e", "m.new_content": {"msgtype": "m.text", "body": "e"},
            "m.relates_to": {"rel_type": "m.replace", "event_id": "{event}"}}),
        ),
        (
            vec![("event_type", "m.reaction")],
            json!({"m.relates_to": {"rel_type": "m.annotation", "event_id": "{event}", "key": "k"}}),
        ),
        (
            vec![("event_type", "m.room.encrypted")],
            json!({"algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "c",
            "device_id": "D", "sender_key": "s", "session_id": "i"}),
        ),
        (vec![("event_type", "m.room.redaction")], json!({"redacts": "{event}", "reason": "r"})),
        (vec![("event_type", "m.poll.start")], json!({"m.poll": {"question": {"m.text": "q"}, "answers": [1, 2]}})),
    ]
}

fn states() -> Vec<Example> {
    let state = |kind: &'static str, body: Value| (vec![("event_type", kind), ("state_key", "")], body);
    vec![
        state("m.room.name", json!({"name": "n"})),
        state("m.room.topic", json!({"topic": "t", "m.topic": {"m.text": [{"body": "t", "mimetype": "text/plain"}]}})),
        state("m.room.avatar", json!({"url": "mxc://hs.test/abc", "info": {"w": 1, "h": 1}})),
        state("m.room.power_levels", power_levels()),
        state(
            "m.room.join_rules",
            json!({"join_rule": "restricted",
            "allow": [{"type": "m.room_membership", "room_id": "{room}"}]}),
        ),
        state("m.room.history_visibility", json!({"history_visibility": "shared"})),
        state("m.room.guest_access", json!({"guest_access": "can_join"})),
        state("m.room.canonical_alias", json!({"alias": "#a:hs.test", "alt_aliases": ["#b:hs.test"]})),
        state(
            "m.room.encryption",
            json!({"algorithm": "m.megolm.v1.aes-sha2", "rotation_period_ms": 604_800_000,
            "rotation_period_msgs": 100}),
        ),
        state("m.room.server_acl", json!({"allow": ["*"], "deny": ["evil.test"], "allow_ip_literals": false})),
        state("m.room.pinned_events", json!({"pinned": ["{event}"]})),
        state("m.room.tombstone", json!({"body": "gone", "replacement_room": "{room}"})),
        state("m.room.create", json!({"room_version": "11"})),
        (
            vec![("event_type", "m.room.member"), ("state_key", "{user}")],
            json!({"membership": "join", "displayname": "d", "avatar_url": "mxc://hs.test/abc", "is_direct": true,
                "join_authorised_via_users_server": "{other}", "third_party_invite": {"display_name": "d",
                "signed": {"mxid": "{user}", "token": "t", "signatures": {"hs.test": {"ed25519:0": "s"}}}}}),
        ),
        (
            vec![("event_type", "m.room.third_party_invite"), ("state_key", "token")],
            json!({"display_name": "d", "key_validity_url": "https://hs.test", "public_key": "k",
                "public_keys": [{"public_key": "k", "key_validity_url": "https://hs.test"}]}),
        ),
        (
            vec![("event_type", "m.space.child"), ("state_key", "{room}")],
            json!({"via": ["hs.test"], "order": "a", "suggested": true}),
        ),
        (
            vec![("event_type", "m.space.parent"), ("state_key", "{room}")],
            json!({"via": ["hs.test"], "canonical": true}),
        ),
    ]
}

fn filter() -> Value {
    let events = json!({"limit": 10, "types": ["m.room.*"], "not_types": ["m.x"], "senders": ["{user}"],
        "not_senders": ["{other}"], "rooms": ["{room}"], "not_rooms": ["!x:hs.test"], "contains_url": true,
        "lazy_load_members": true, "include_redundant_members": true, "unread_thread_notifications": true,
        "related_by_senders": ["{user}"], "related_by_rel_types": ["m.thread"]});
    json!({"event_fields": ["type", "content.body"], "event_format": "client", "presence": events,
        "account_data": events, "room": {"rooms": ["{room}"], "not_rooms": ["!x:hs.test"], "include_leave": true,
        "timeline": events, "state": events, "ephemeral": events, "account_data": events}})
}

pub(crate) fn sliding() -> Value {
    let room =
        json!({"timeline_limit": 3, "required_state": [["m.room.member", "$LAZY"], ["*", ""], ["m.room.create", "*"]]});
    let mut list = room.clone();
    list["ranges"] = json!([[0, 10], [12, 14]]);
    list["filters"] = json!({"is_dm": false, "is_invite": false, "is_encrypted": false, "room_types": [null, "m.space"],
        "not_room_types": ["x"], "tags": ["u.work"], "not_tags": ["u.x"], "spaces": ["{room}"], "room_name_like": "x"});
    let extension = json!({"enabled": true, "lists": ["a", "*"], "rooms": ["{room}", "*"]});
    json!({"conn_id": "c", "txn_id": "t", "timeout": 0, "set_presence": "online", "lists": {"a": list},
        "room_subscriptions": {"{room}": room},
        "extensions": {"to_device": {"enabled": true, "limit": 10, "since": "1"}, "e2ee": {"enabled": true},
            "account_data": extension, "receipts": extension, "typing": extension, "presence": extension,
            "io.element.msc4308.thread_subscriptions": {"enabled": true, "limit": 3}}})
}

/// What a client of OAuth says about itself.
pub(crate) fn oauth_client() -> Value {
    json!({
        "client_name": "App", "client_uri": "https://example.com/", "redirect_uris": ["https://example.com/callback"],
        "logo_uri": "https://example.com/logo", "tos_uri": "https://example.com/tos", "policy_uri": "https://example.com/p",
        "response_types": ["code"], "token_endpoint_auth_method": "none", "application_type": "web",
        "grant_types": ["authorization_code", "refresh_token", "urn:ietf:params:oauth:grant-type:device_code"]})
}

/// Fields of queries and forms of the authorization server; `{client}` and `{csrf}` stand for what there is.
fn oauth(module: &str, name: &str) -> Vec<Value> {
    const SCOPE: &str = "urn:matrix:client:api:* urn:matrix:client:device:PHONE12345";
    const REDIRECT: &str = "https://example.com/callback";
    let request = "client_id={client}&redirect_uri=https%3A%2F%2Fexample.com%2Fcallback&response_type=code&state=s&\
        code_challenge_method=S256&code_challenge=E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM&\
        scope=urn%3Amatrix%3Aclient%3Aapi%3A*+urn%3Amatrix%3Aclient%3Adevice%3APHONE12345";
    let with_csrf = |mut fields: Value| {
        fields["csrf"] = json!("{csrf}");
        fields
    };
    match (module, name) {
        ("registration", _) => vec![oauth_client()],
        ("token", "token") => vec![
            json!({"grant_type": "authorization_code", "client_id": "{client}", "code": "c", "redirect_uri": REDIRECT,
                "code_verifier": "a-verifier-that-is-long-enough-to-be-one-0123456789"}),
            json!({"grant_type": "refresh_token", "client_id": "{client}", "refresh_token": "t"}),
            json!({"grant_type": "urn:ietf:params:oauth:grant-type:device_code", "client_id": "{client}", "device_code": "d"}),
        ],
        ("token", "revoke") => vec![json!({"token": "t", "token_type_hint": "access_token", "client_id": "{client}"})],
        ("token", _) => vec![json!({"client_id": "{client}", "scope": SCOPE})],
        ("authorize", "show") => vec![json!({
            "client_id": "{client}", "redirect_uri": REDIRECT, "response_type": "code", "response_mode": "fragment",
            "state": "s", "scope": SCOPE, "code_challenge_method": "S256", "prompt": "login",
            "code_challenge": "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM", "login_hint": "mxid:{user}"})],
        ("authorize", _) => vec![with_csrf(json!({"request": request, "user": "{user}", "answer": "allow"}))],
        ("link", "show") => vec![json!({"user_code": "ABCD-EFGH"})],
        ("link", _) => vec![with_csrf(json!({"user_code": "ABCD-EFGH", "user": "{user}", "answer": "allow"}))],
        ("sso", "answer") => vec![with_csrf(json!({
            "redirectUrl": "https://example.com/", "request": "redirectUrl=https%3A%2F%2Fexample.com%2F", "user": "{user}",
            "answer": "allow"}))],
        ("sso", _) => vec![json!({"redirectUrl": "https://example.com/", "org.matrix.msc3824.action": "login"})],
        ("login", "show" | "show_registration") => vec![json!({"next": "/account?action=devices_list"})],
        ("login", "log_in") => vec![with_csrf(json!({"username": "{user}", "password": PASSWORD, "next": "/account"}))],
        ("login", "register") => vec![with_csrf(json!({
            "username": "somebody", "password": PASSWORD, "again": PASSWORD, "token": "t", "next": "/account"}))],
        ("login", _) => vec![with_csrf(json!({"next": "/account"}))],
        ("account", "show") => vec![json!({"action": "org.matrix.device_view", "device_id": "{device}"})],
        ("account", _) => vec![
            with_csrf(json!({"do": "device", "device_id": "{device}"})),
            with_csrf(
                json!({"do": "password", "password": PASSWORD, "new": PASSWORD, "again": PASSWORD, "others": "out"}),
            ),
            with_csrf(json!({"do": "close", "password": PASSWORD, "erase": "yes"})),
            with_csrf(json!({"do": "reset", "password": PASSWORD, "wanted": "AAAA"})),
        ],
        _ => vec![json!({})],
    }
}
