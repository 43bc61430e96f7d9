//! The `config.json` that web clients load first: one document with the names of several clients, which ignore each
//! other's. It says where the homeserver is, and turns off what would ask somebody else.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::config::Config;

pub(super) fn config_json(config: &Config) -> Bytes {
    let server_name = &config.server_name;
    let base_url = config.well_known.client_base_url.clone().unwrap_or_else(|| format!("https://{server_name}"));
    let base_url = base_url.trim_end_matches('/');
    let mut all = Map::new();
    for names in [cinny(base_url), element(config, base_url), hydrogen(base_url)] {
        if let Value::Object(names) = names {
            all.extend(names);
        }
    }
    all.extend(config.web.config_extra.clone());
    Value::Object(all).to_string().into()
}

/// The URL rather than the name: a name would be looked up at the host of that name, which may be another one.
fn cinny(base_url: &str) -> Value {
    json!({
        "homeserverList": [base_url],
        "defaultHomeserver": 0,
        "allowCustomHomeservers": false,
        "featuredCommunities": { "openAsDefault": false, "spaces": [], "rooms": [], "servers": [] },
        "hashRouter": { "enabled": false, "basename": "/" },
    })
}

fn element(config: &Config, base_url: &str) -> Value {
    json!({
        "default_server_config": {
            "m.homeserver": { "base_url": base_url, "server_name": config.server_name },
        },
        "disable_custom_urls": true,
        "disable_guests": !config.registration.guests,
        "disable_3pid_login": true,
        "integrations_ui_url": null,
        "integrations_rest_url": null,
        "integrations_widgets_urls": [],
        "bug_report_endpoint_url": null,
        "show_labs_settings": false,
    })
}

fn hydrogen(base_url: &str) -> Value {
    json!({ "defaultHomeServer": base_url })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(change: impl FnOnce(&mut Config)) -> Value {
        let mut config = Config::new(ruma::owned_server_name!("hs.test"));
        change(&mut config);
        serde_json::from_slice(&config_json(&config)).unwrap()
    }

    #[test]
    fn every_client_finds_this_server_and_no_other() {
        let json = made(|config| config.well_known.client_base_url = Some("https://matrix.hs.test/".to_owned()));
        assert_eq!(json["homeserverList"], json!(["https://matrix.hs.test"]));
        assert_eq!(json["allowCustomHomeservers"], false);
        let homeserver = &json["default_server_config"]["m.homeserver"];
        assert_eq!(homeserver, &json!({ "base_url": "https://matrix.hs.test", "server_name": "hs.test" }));
        assert_eq!(json["defaultHomeServer"], "https://matrix.hs.test");
        let text = json.to_string();
        assert_eq!(text.matches("://").count(), text.matches("https://matrix.hs.test").count(), "{text}");
    }

    #[test]
    fn without_a_url_it_is_the_host_of_the_server_name() {
        assert_eq!(made(|_| {})["homeserverList"], json!(["https://hs.test"]));
    }

    #[test]
    fn settings_may_add_and_replace() {
        let json = made(|config| {
            let extra = &mut config.web.config_extra;
            extra.insert("brand".to_owned(), json!("Harbour"));
            extra.insert("allowCustomHomeservers".to_owned(), json!(true));
        });
        assert_eq!((&json["brand"], &json["allowCustomHomeservers"]), (&json!("Harbour"), &json!(true)));
    }
}
