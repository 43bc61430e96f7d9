//! How long work stands that an administrator asked for.

use http::Method;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use store::Read;

use super::{ok, room};
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response, Routes};
use crate::schema::{TASKS, Task, TaskAction, TaskState};

pub(super) fn routes() -> Routes {
    Routes::default()
        .raw(Method::GET, &["/_synapse/admin/v2/rooms/delete_status/{delete_id}"], delete_status)
        .raw(Method::GET, &["/_synapse/admin/v2/rooms/{room_id}/delete_status"], delete_status_of_room)
        .raw(Method::GET, &["/_synapse/admin/v1/purge_history_status/{purge_id}"], purge_status)
        .raw(Method::GET, &["/_synapse/admin/v1/user/redact_status/{redact_id}"], redact_status)
        .raw(Method::GET, &["/_synapse/admin/v1/scheduled_tasks"], list)
}

async fn delete_status(ctx: RawCtx) -> Result<Response> {
    let task = find(&ctx, TaskAction::DeleteRoom)?;
    ok(&deletion(ctx.arg(0), &task))
}

fn deletion(id: &str, task: &Task) -> Value {
    let mut body = json!({
        "delete_id": id,
        "room_id": task.resource,
        "status": match task.state {
            TaskState::Scheduled => "scheduled",
            TaskState::Active => "active",
            TaskState::Complete => "complete",
            TaskState::Failed => "failed",
        },
        "shutdown_room": result(task),
    });
    if let Some(error) = &task.error {
        body["error"] = json!(error);
    }
    body
}

async fn delete_status_of_room(ctx: RawCtx) -> Result<Response> {
    let room_id = room(&ctx, 0)?;
    let read = ctx.app.store.snapshot();
    let mut results = Vec::new();
    for row in read.scan(&TASKS, TASKS.all()) {
        let (id, task) = row?;
        if task.action == TaskAction::DeleteRoom && task.resource == room_id.as_str() {
            results.push(deletion(&id, &task));
        }
    }
    if results.is_empty() { Err(unknown()) } else { ok(&json!({ "results": results })) }
}

async fn purge_status(ctx: RawCtx) -> Result<Response> {
    let task = find(&ctx, TaskAction::PurgeHistory)?;
    let mut body = result(&task);
    body.insert("status".to_owned(), json!(status(task.state)));
    body.extend(task.error.map(|error| ("error".to_owned(), json!(error))));
    ok(&Value::Object(body))
}

async fn redact_status(ctx: RawCtx) -> Result<Response> {
    let task = find(&ctx, TaskAction::RedactUser)?;
    let mut body = result(&task);
    let status = if task.state == TaskState::Scheduled { "scheduled" } else { status(task.state) };
    body.insert("status".to_owned(), json!(status));
    body.extend(task.error.map(|error| ("error".to_owned(), json!(error))));
    ok(&Value::Object(body))
}

fn status(state: TaskState) -> &'static str {
    match state {
        TaskState::Scheduled | TaskState::Active => "active",
        TaskState::Complete => "complete",
        TaskState::Failed => "failed",
    }
}

#[derive(Deserialize)]
struct Query {
    action_name: Option<String>,
    resource_id: Option<String>,
    status: Option<String>,
    max_timestamp: Option<u64>,
}

async fn list(ctx: RawCtx) -> Result<Response> {
    let query: Query = ctx.query()?;
    let read = ctx.app.store.snapshot();
    let mut tasks = Vec::new();
    for row in read.scan(&TASKS, TASKS.all()) {
        let (id, task) = row?;
        let action = match task.action {
            TaskAction::DeleteRoom => "shutdown_and_purge_room",
            TaskAction::PurgeHistory => "purge_history",
            TaskAction::RedactUser => "redact_all_events",
        };
        let status = if task.state == TaskState::Scheduled { "scheduled" } else { status(task.state) };
        let is = |wanted: &Option<String>, found: &str| {
            wanted.as_deref().filter(|wanted| !wanted.is_empty()).is_none_or(|wanted| wanted == found)
        };
        let wanted = is(&query.action_name, action)
            && is(&query.resource_id, &task.resource)
            && is(&query.status, status)
            && query.max_timestamp.is_none_or(|most| task.changed_ts <= most);
        if wanted {
            tasks.push((task.started_ts, describe(&id, action, status, &task)));
        }
    }
    tasks.sort_by_key(|(started_ts, _)| *started_ts);
    let tasks: Vec<Value> = tasks.into_iter().map(|(_, task)| task).collect();
    ok(&json!({ "scheduled_tasks": tasks }))
}

fn describe(id: &str, action: &str, status: &str, task: &Task) -> Value {
    json!({
        "id": id,
        "action": action,
        "status": status,
        "timestamp_ms": task.changed_ts,
        "resource_id": task.resource,
        "result": result(task),
        "error": task.error,
    })
}

fn find(ctx: &RawCtx, action: TaskAction) -> Result<Task> {
    let task = ctx.app.store.snapshot().get(&TASKS, ctx.arg(0))?;
    task.filter(|task| task.action == action).ok_or_else(unknown)
}

fn result(task: &Task) -> Map<String, Value> {
    serde_json::from_str(&task.result).unwrap_or_default()
}

fn unknown() -> Error {
    Error::not_found("There is no such task, or it ended long ago")
}
