//! What users told the administrators of.

use http::Method;
use ruma::{EventId, RoomId};
use serde::Deserialize;
use serde_json::{Value, json};
use store::{Pos, Read, Tx};

use super::paging::Paging;
use super::{done, ok};
use crate::App;
use crate::blocking;
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response, Routes};
use crate::rooms::overview;
use crate::rooms::read::RoomReader;
use crate::rooms::shown::{Shown, Style};
use crate::schema::{REPORTS, Report, Reported};
use crate::stored::StoredEvent;

pub(super) fn routes() -> Routes {
    const EVENTS: &str = "/_synapse/admin/v1/event_reports";
    const EVENT: &str = "/_synapse/admin/v1/event_reports/{report_id}";
    const ROOMS: &str = "/_synapse/admin/v1/room_reports";
    const USERS: &str = "/_synapse/admin/v1/user_reports";
    const USER: &str = "/_synapse/admin/v1/user_reports/{report_id}";
    Routes::default()
        .raw(Method::GET, &[EVENTS], of_events)
        .raw(Method::GET, &[EVENT], of_event)
        .raw(Method::DELETE, &[EVENT], delete_of_event)
        .raw(Method::GET, &[ROOMS], of_rooms)
        .raw(Method::GET, &[USERS], of_users)
        .raw(Method::GET, &[USER], of_user)
        .raw(Method::DELETE, &[USER], delete_of_user)
}

#[derive(Deserialize)]
struct Query {
    user_id: Option<String>,
    room_id: Option<String>,
    target_user_id: Option<String>,
    event_sender_user_id: Option<String>,
}

fn contains(wanted: &Option<String>, text: &str) -> bool {
    wanted.as_ref().is_none_or(|part| text.contains(part.as_str()))
}

/// All reports of a kind, in the order of their arrival.
fn all(ctx: &RawCtx, is: impl Fn(&Report) -> bool) -> Result<Vec<(Pos, Report)>> {
    let read = ctx.app.store.snapshot();
    let mut found = Vec::new();
    for row in read.scan(&REPORTS, REPORTS.all()) {
        let (at, report) = row?;
        if is(&report) {
            found.push((at, report));
        }
    }
    Ok(found)
}

/// A page of reports. Only what is on it is looked up.
fn page(
    mut found: Vec<(Pos, Report)>,
    paging: &Paging,
    list: &str,
    show: impl Fn(Pos, &Report) -> Result<Value>,
) -> Result<Response> {
    if paging.newest_first() {
        found.reverse();
    }
    let page = paging.cut(found);
    let reports: Vec<Value> = page.items.iter().map(|(at, report)| show(*at, report)).collect::<Result<_>>()?;
    let mut body = json!({ list: reports, "total": page.total });
    if let Some(next) = page.next {
        body["next_token"] = json!(next);
    }
    ok(&body)
}

async fn of_events(ctx: RawCtx) -> Result<Response> {
    blocking::run(move || list_of_events(&ctx)).await?
}

fn list_of_events(ctx: &RawCtx) -> Result<Response> {
    let (query, paging): (Query, Paging) = (ctx.query()?, ctx.query()?);
    let is = |report: &Report| match &report.about {
        Reported::Event { room_id, .. } => {
            contains(&query.user_id, &report.reporter) && contains(&query.room_id, room_id)
        }
        _ => false,
    };
    let mut found = all(ctx, is)?;
    if query.event_sender_user_id.is_some() {
        let mut by_sender = Vec::new();
        for (at, report) in found {
            let event = find_event(ctx, &report)?;
            if contains(&query.event_sender_user_id, event.as_ref().map_or("", |(_, event)| event.sender())) {
                by_sender.push((at, report));
            }
        }
        found = by_sender;
    }
    page(found, &paging, "event_reports", |at, report| event_report(ctx, at, report))
}

fn event_report(ctx: &RawCtx, at: Pos, report: &Report) -> Result<Value> {
    let Reported::Event { room_id, event_id } = &report.about else { return Err(unknown()) };
    let read = ctx.app.store.snapshot();
    let reader = RoomReader::new(&ctx.app.room_cache, &read);
    let (name, canonical_alias) = match reader.head(&RoomId::parse(room_id).map_err(Error::internal)?)? {
        Some((nr, head)) => overview::names(reader, nr, &head)?,
        None => (None, None),
    };
    let event = find_event(ctx, report)?;
    Ok(json!({
        "id": at.0,
        "received_ts": report.ts,
        "room_id": room_id,
        "event_id": event_id,
        "user_id": report.reporter,
        "reason": report.reason,
        "score": null,
        "sender": event.as_ref().map(|(_, event)| event.sender()),
        "name": name,
        "canonical_alias": canonical_alias,
    }))
}

/// The event that a report is about, if it is still there.
fn find_event(ctx: &RawCtx, report: &Report) -> Result<Option<(Pos, StoredEvent)>> {
    let Reported::Event { room_id, event_id } = &report.about else { return Ok(None) };
    let read = ctx.app.store.snapshot();
    let reader = RoomReader::new(&ctx.app.room_cache, &read);
    let Some((nr, _)) = reader.head(&RoomId::parse(room_id).map_err(Error::internal)?)? else { return Ok(None) };
    let event_id = EventId::parse(event_id).map_err(Error::internal)?;
    let Some(at) = reader.find(nr, &event_id)? else { return Ok(None) };
    Ok(reader.event(nr, at)?.map(|event| (at, event)))
}

async fn of_event(ctx: RawCtx) -> Result<Response> {
    let (at, report) = find(&ctx, |about| matches!(about, Reported::Event { .. }))?;
    let mut body = event_report(&ctx, at, &report)?;
    body["event_json"] = match (&report.about, find_event(&ctx, &report)?) {
        (Reported::Event { room_id, .. }, Some((at, event))) => {
            let now_ms = ctx.app.clock.now_ms();
            let style = Style { now_ms, device_id: None, room_id: Some(room_id), federation: true };
            let mut bytes = Vec::new();
            Shown::plain(at, event).write(&mut bytes, &style);
            serde_json::from_slice(&bytes).map_err(Error::internal)?
        }
        _ => Value::Null,
    };
    ok(&body)
}

async fn of_rooms(ctx: RawCtx) -> Result<Response> {
    let (query, paging): (Query, Paging) = (ctx.query()?, ctx.query()?);
    let is = |report: &Report| match &report.about {
        Reported::Room { room_id } => contains(&query.user_id, &report.reporter) && contains(&query.room_id, room_id),
        _ => false,
    };
    page(all(&ctx, is)?, &paging, "room_reports", |at, report| {
        let Reported::Room { room_id } = &report.about else { return Err(unknown()) };
        Ok(json!({ "id": at.0, "received_ts": report.ts, "room_id": room_id, "user_id": report.reporter,
            "reason": report.reason }))
    })
}

async fn of_users(ctx: RawCtx) -> Result<Response> {
    let (query, paging): (Query, Paging) = (ctx.query()?, ctx.query()?);
    let is = |report: &Report| match &report.about {
        Reported::User { user_id } => {
            contains(&query.user_id, &report.reporter) && contains(&query.target_user_id, user_id)
        }
        _ => false,
    };
    page(all(&ctx, is)?, &paging, "user_reports", |at, report| Ok(user_report(at, report)))
}

fn user_report(at: Pos, report: &Report) -> Value {
    let target = match &report.about {
        Reported::User { user_id } => Some(user_id),
        _ => None,
    };
    json!({
        "id": at.0,
        "received_ts": report.ts,
        "user_id": report.reporter,
        "target_user_id": target,
        "reason": report.reason.as_deref().unwrap_or_default(),
    })
}

async fn of_user(ctx: RawCtx) -> Result<Response> {
    let (at, report) = find(&ctx, |about| matches!(about, Reported::User { .. }))?;
    ok(&user_report(at, &report))
}

async fn delete_of_event(ctx: RawCtx) -> Result<Response> {
    delete(&ctx.app, number(&ctx)?, |about| matches!(about, Reported::Event { .. })).await
}

async fn delete_of_user(ctx: RawCtx) -> Result<Response> {
    delete(&ctx.app, number(&ctx)?, |about| matches!(about, Reported::User { .. })).await
}

async fn delete(app: &App, at: Pos, is: fn(&Reported) -> bool) -> Result<Response> {
    let delete = |tx: &mut Tx| {
        tx.get(&REPORTS, at)?.filter(|report| is(&report.about)).ok_or_else(unknown)?;
        tx.delete(&REPORTS, at);
        Ok::<_, Error>(())
    };
    app.store.transact(delete).await?;
    done()
}

fn find(ctx: &RawCtx, is: fn(&Reported) -> bool) -> Result<(Pos, Report)> {
    let at = number(ctx)?;
    let report = ctx.app.store.snapshot().get(&REPORTS, at)?.filter(|report| is(&report.about));
    Ok((at, report.ok_or_else(unknown)?))
}

fn number(ctx: &RawCtx) -> Result<Pos> {
    let number = ctx.arg(0).parse::<u64>().ok().filter(|number| *number <= Pos::MAX.0);
    number.map(Pos).ok_or_else(|| Error::invalid_param("The number of a report is a number"))
}

fn unknown() -> Error {
    Error::not_found("There is no such report")
}
