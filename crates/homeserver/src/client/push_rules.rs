//! One's own push rules.

use ruma::api::client::push::{
    self, PushRule, delete_pushrule, get_pushrule, get_pushrule_actions, get_pushrule_enabled, get_pushrules_all,
    get_pushrules_global_scope, set_pushrule, set_pushrule_actions, set_pushrule_enabled,
};
use ruma::push::{
    AnyPushRule, InsertPushRuleError, NewPushRule, PushCondition, RemovePushRuleError, RuleNotFoundError, Ruleset,
};
use store::Tx;

use crate::App;
use crate::auth::Requester;
use crate::error::{Error, Result};
use crate::http::{Ctx, Routes};
use crate::push::pattern::MAX_PATTERN_BYTES;
use crate::push::rules::{MAX_CONDITIONS, MAX_RULES};
use crate::users::push_rules;

const MAX_ID_BYTES: usize = 255;
const MAX_RULE_BYTES: usize = 16 * 1024;

pub fn routes() -> Routes {
    Routes::default()
        .ruma(all)
        .ruma(global)
        .ruma(get)
        .ruma(put)
        .ruma(delete)
        .ruma(get_enabled)
        .ruma(set_enabled)
        .ruma(get_actions)
        .ruma(set_actions)
}

async fn all(ctx: Ctx<get_pushrules_all::v3::Request>) -> Result<get_pushrules_all::v3::Response> {
    Ok(get_pushrules_all::v3::Response::new(read(&ctx.app, &ctx.requester)?))
}

async fn global(ctx: Ctx<get_pushrules_global_scope::v3::Request>) -> Result<get_pushrules_global_scope::v3::Response> {
    Ok(get_pushrules_global_scope::v3::Response::new(read(&ctx.app, &ctx.requester)?))
}

async fn get(ctx: Ctx<get_pushrule::v3::Request>) -> Result<get_pushrule::v3::Response> {
    let rule = find(&ctx.app, &ctx.requester, ctx.request.kind, &ctx.request.rule_id)?;
    Ok(get_pushrule::v3::Response::new(PushRule::from(rule)))
}

async fn put(ctx: Ctx<set_pushrule::v3::Request>) -> Result<set_pushrule::v3::Response> {
    let (before, after) = (ctx.request.before.as_deref(), ctx.request.after.as_deref());
    check_size(&ctx.body)?;
    check(&ctx.request.rule)?;
    let put = |rules: &mut Ruleset| {
        insert(rules, &ctx.request.rule, after, before)?;
        check_number(rules)
    };
    change(&ctx.app, &ctx.requester, put).await?;
    Ok(set_pushrule::v3::Response::new())
}

async fn delete(ctx: Ctx<delete_pushrule::v3::Request>) -> Result<delete_pushrule::v3::Response> {
    let delete = |rules: &mut Ruleset| {
        rules.remove(ctx.request.kind.clone(), &ctx.request.rule_id).map_err(|error| match error {
            RemovePushRuleError::ServerDefault => Error::invalid_param("Rules of the server cannot be deleted"),
            _ => unknown(),
        })
    };
    change(&ctx.app, &ctx.requester, delete).await?;
    Ok(delete_pushrule::v3::Response::new())
}

async fn get_enabled(ctx: Ctx<get_pushrule_enabled::v3::Request>) -> Result<get_pushrule_enabled::v3::Response> {
    let rule = find(&ctx.app, &ctx.requester, ctx.request.kind, &ctx.request.rule_id)?;
    Ok(get_pushrule_enabled::v3::Response::new(rule.enabled()))
}

async fn set_enabled(ctx: Ctx<set_pushrule_enabled::v3::Request>) -> Result<set_pushrule_enabled::v3::Response> {
    let request = &ctx.request;
    let set = |rules: &mut Ruleset| {
        rules.set_enabled(request.kind.clone(), &request.rule_id, request.enabled).map_err(not_found)
    };
    change(&ctx.app, &ctx.requester, set).await?;
    Ok(set_pushrule_enabled::v3::Response::new())
}

async fn get_actions(ctx: Ctx<get_pushrule_actions::v3::Request>) -> Result<get_pushrule_actions::v3::Response> {
    let rule = find(&ctx.app, &ctx.requester, ctx.request.kind, &ctx.request.rule_id)?;
    Ok(get_pushrule_actions::v3::Response::new(rule.actions().to_vec()))
}

async fn set_actions(ctx: Ctx<set_pushrule_actions::v3::Request>) -> Result<set_pushrule_actions::v3::Response> {
    check_size(&ctx.body)?;
    let request = &ctx.request;
    let set = |rules: &mut Ruleset| {
        rules.set_actions(request.kind.clone(), &request.rule_id, request.actions.clone()).map_err(not_found)
    };
    change(&ctx.app, &ctx.requester, set).await?;
    Ok(set_pushrule_actions::v3::Response::new())
}

fn read(app: &App, requester: &Requester) -> Result<Ruleset> {
    push_rules::get(&app.store.snapshot(), &requester.user_id)
}

fn find(app: &App, requester: &Requester, kind: push::RuleKind, rule_id: &str) -> Result<AnyPushRule> {
    let rules = read(app, requester)?;
    rules.get(kind, rule_id).map(|rule| rule.to_owned()).ok_or_else(unknown)
}

async fn change(
    app: &App,
    requester: &Requester,
    change: impl Fn(&mut Ruleset) -> Result<()> + Send + Sync,
) -> Result<()> {
    let write = |tx: &mut Tx| {
        let mut rules = push_rules::get(tx, &requester.user_id)?;
        change(&mut rules)?;
        push_rules::put(tx, &requester.user_id, rules)
    };
    app.store.transact(write).await.map(|_| ())
}

fn check_size(body: &[u8]) -> Result<()> {
    if body.len() > MAX_RULE_BYTES {
        return Err(Error::too_large(format!("A push rule has at most {MAX_RULE_BYTES} bytes")));
    }
    Ok(())
}

/// Whether a rule is one that events can be compared with in a short time.
fn check(rule: &NewPushRule) -> Result<()> {
    if rule.rule_id().len() > MAX_ID_BYTES {
        return Err(Error::invalid_param(format!("The ID of a push rule has at most {MAX_ID_BYTES} bytes")));
    }
    let conditions = match rule {
        NewPushRule::Override(rule) | NewPushRule::PostContent(rule) | NewPushRule::Underride(rule) => &rule.conditions,
        NewPushRule::Content(rule) => return check_pattern(&rule.pattern),
        NewPushRule::Room(_) | NewPushRule::Sender(_) => return Ok(()),
    };
    if conditions.len() > MAX_CONDITIONS {
        return Err(Error::invalid_param(format!("A push rule has at most {MAX_CONDITIONS} conditions")));
    }
    conditions.iter().try_for_each(|condition| match condition {
        PushCondition::EventMatch(data) => check_pattern(&data.key).and_then(|()| check_pattern(&data.pattern)),
        PushCondition::EventPropertyIs(data) => check_pattern(&data.key),
        PushCondition::EventPropertyContains(data) => check_pattern(&data.key),
        _ => Ok(()),
    })
}

fn check_pattern(text: &str) -> Result<()> {
    if text.len() > MAX_PATTERN_BYTES {
        return Err(Error::invalid_param(format!("Patterns and keys have at most {MAX_PATTERN_BYTES} bytes")));
    }
    Ok(())
}

fn check_number(rules: &Ruleset) -> Result<()> {
    if rules.iter().filter(|rule| !rule.is_server_default()).count() > MAX_RULES {
        return Err(Error::forbidden(format!("A user has at most {MAX_RULES} push rules")));
    }
    Ok(())
}

/// Puts a rule, or puts it anew: then it moves only if it is told where to.
fn insert(rules: &mut Ruleset, rule: &NewPushRule, after: Option<&str>, before: Option<&str>) -> Result<()> {
    if [after, before].contains(&Some(rule.rule_id())) {
        return Err(not_inserted(InsertPushRuleError::UnknownRuleId));
    }
    let known = rules.get(rule.kind(), rule.rule_id()).map(|known| known.enabled());
    if after.is_some() || before.is_some() {
        // A place is counted among the other rules. That the rule cannot be removed is found out below, too.
        let _ = rules.remove(rule.kind(), rule.rule_id());
    }
    rules.insert(rule.clone(), after, before).map_err(not_inserted)?;
    match known {
        Some(enabled) => rules.set_enabled(rule.kind(), rule.rule_id(), enabled).map_err(not_found),
        None => Ok(()),
    }
}

fn not_inserted(error: InsertPushRuleError) -> Error {
    match error {
        InsertPushRuleError::UnknownRuleId => Error::not_found("There is no rule to put this one next to"),
        other => Error::invalid_param(other.to_string()),
    }
}

fn not_found(_: RuleNotFoundError) -> Error {
    unknown()
}

fn unknown() -> Error {
    Error::not_found("There is no such rule")
}

#[cfg(test)]
mod tests {
    use ruma::push::NewPatternedPushRule;
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::Server;

    const RULES: &str = "/_matrix/client/v3/pushrules/";

    #[tokio::test]
    async fn a_new_user_has_the_servers_rules_also_as_account_data() {
        let server = Server::default();
        let alice = server.user("alice").await;
        let all = alice.client.get(RULES).await.json();
        assert_eq!(all["global"]["override"][0]["rule_id"], ".m.rule.master");
        assert_eq!(alice.client.get(&format!("{RULES}global/")).await.json(), all["global"]);
        let path = "/_matrix/client/v3/user/@alice:hs.test/account_data/m.push_rules";
        assert_eq!(alice.client.get(path).await.json(), all);
    }

    #[tokio::test]
    async fn pitfall_072_rules_are_put_moved_switched_and_deleted() {
        let server = Server::default();
        let alice = server.user("alice").await;
        let content = format!("{RULES}global/content");
        let put = async |path: String, body| {
            let answer = alice.client.put(&path, body).await;
            (answer.status.as_u16(), answer.errcode())
        };
        let ok = (200, String::new());
        let rule = |pattern: &str| json!({ "pattern": pattern, "actions": ["notify"] });
        assert_eq!(put(format!("{content}/cake"), rule("cake")).await, ok);
        assert_eq!(put(format!("{content}/tea"), rule("tea")).await, ok);
        let order = async || {
            let rules = alice.client.get(&format!("{RULES}global/")).await.json()["content"].clone();
            let ids = rules.as_array().unwrap().iter().map(|rule| rule["rule_id"].as_str().unwrap().to_owned());
            ids.collect::<Vec<_>>()
        };
        assert_eq!(order().await, ["tea", "cake"]);
        assert_eq!(put(format!("{content}/tea?after=cake"), rule("tea")).await, ok);
        assert_eq!(order().await, ["cake", "tea"]);
        assert_eq!(put(format!("{content}/cake?after=tea"), rule("cake")).await, ok);
        assert_eq!(order().await, ["tea", "cake"]);
        assert_eq!(put(format!("{content}/tea?after=cake"), rule("tea")).await, ok);
        assert_eq!(put(format!("{content}/tea?after=tea"), rule("tea")).await.1, "M_NOT_FOUND");
        assert_eq!(order().await, ["cake", "tea"]);
        assert_eq!(put(format!("{content}/tea?after=none"), rule("tea")).await.1, "M_NOT_FOUND");
        assert_eq!(put(format!("{content}/.mine"), rule("x")).await.1, "M_INVALID_PARAM");
        assert_eq!(put(format!("{content}/tea/enabled"), json!({ "enabled": false })).await, ok);
        assert_eq!(put(format!("{content}/tea/actions"), json!({ "actions": [] })).await, ok);
        let tea = alice.client.get(&format!("{content}/tea")).await.json();
        assert_eq!((&tea["enabled"], &tea["actions"], &tea["pattern"]), (&json!(false), &json!([]), &json!("tea")));
        assert_eq!(alice.client.get(&format!("{content}/tea/enabled")).await.json(), json!({ "enabled": false }));
        assert_eq!(alice.client.get(&format!("{content}/tea/actions")).await.json(), json!({ "actions": [] }));
        assert_eq!(alice.client.delete(&format!("{content}/tea")).await.status, 200);
        assert_eq!(alice.client.get(&format!("{content}/tea")).await.errcode(), "M_NOT_FOUND");
        assert_eq!(alice.client.delete(&format!("{content}/tea")).await.errcode(), "M_NOT_FOUND");
        let master = format!("{RULES}global/override/.m.rule.master");
        assert_eq!(alice.client.delete(&master).await.errcode(), "M_INVALID_PARAM");
        assert_eq!(put(format!("{master}/enabled"), json!({ "enabled": true })).await, ok);
        assert_eq!(alice.client.get(&master).await.json()["enabled"], true);
    }

    #[tokio::test]
    async fn pitfall_072_rules_that_would_keep_the_server_busy_are_refused() {
        let server = Server::default();
        let alice = server.user("alice").await;
        let put = async |path: &str, body| {
            let answer = alice.client.put(&format!("{RULES}global/{path}"), body).await;
            (answer.status.as_u16(), answer.errcode())
        };
        let refused = (400, "M_INVALID_PARAM".to_owned());
        let content = |pattern: String| json!({ "pattern": pattern, "actions": ["notify"] });
        assert_eq!(put("content/long", content("a".to_owned() + &"?".repeat(1_024))).await, refused);
        assert_eq!(put("content/long", content("?".repeat(1_024))).await.0, 200);
        assert_eq!(put(&format!("content/{}", "x".repeat(256)), content("x".to_owned())).await, refused);
        let matching = |key: &str, pattern: &str| json!({ "kind": "event_match", "key": key, "pattern": pattern });
        let conditions = |conditions: Vec<Value>| json!({ "conditions": conditions, "actions": [] });
        assert_eq!(put("override/o", conditions(vec![matching("content.x", &"?".repeat(1_025))])).await, refused);
        assert_eq!(put("override/o", conditions(vec![matching(&"k".repeat(1_025), "x")])).await, refused);
        assert_eq!(put("underride/o", conditions(vec![matching("type", "x"); 33])).await, refused);
        assert_eq!(put("underride/o", conditions(vec![matching("type", "x"); 32])).await.0, 200);
        let large = json!({ "actions": [{ "set_tweak": "sound", "value": "x".repeat(20_000) }] });
        assert_eq!(put("sender/@b:hs", large.clone()).await, (413, "M_TOO_LARGE".to_owned()));
        assert_eq!(put("content/long/actions", large).await, (413, "M_TOO_LARGE".to_owned()));
    }

    #[test]
    fn there_are_only_so_many_rules() {
        let mut rules = Ruleset::server_default(ruma::user_id!("@alice:hs"));
        for n in 0..MAX_RULES {
            let rule = NewPatternedPushRule::new(format!("r{n}"), "x".to_owned(), Vec::new());
            insert(&mut rules, &NewPushRule::Content(rule), None, None).unwrap();
        }
        check_number(&rules).unwrap();
        let rule = NewPatternedPushRule::new("more".to_owned(), "x".to_owned(), Vec::new());
        insert(&mut rules, &NewPushRule::Content(rule), None, None).unwrap();
        assert_eq!(check_number(&rules).unwrap_err().status(), 403);
    }
}
