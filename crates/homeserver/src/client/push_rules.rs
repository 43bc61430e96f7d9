//! One's own push rules.

use ruma::api::client::push::{
    self, PushRule, delete_pushrule, get_pushrule, get_pushrule_actions, get_pushrule_enabled, get_pushrules_all,
    get_pushrules_global_scope, set_pushrule, set_pushrule_actions, set_pushrule_enabled,
};
use ruma::push::{AnyPushRule, InsertPushRuleError, RemovePushRuleError, RuleNotFoundError, Ruleset};
use store::Tx;

use crate::App;
use crate::auth::Requester;
use crate::error::{Error, Result};
use crate::http::{Ctx, Routes};
use crate::users::push_rules;

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
    let put = |rules: &mut Ruleset| rules.insert(ctx.request.rule.clone(), after, before).map_err(not_inserted);
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
