//! Figures: who uploads how much, which rooms are large.

use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::ok;
use super::paging::{Paging, order};
use crate::blocking;
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response, Routes};
use crate::media::ledger::Sum;
use crate::rooms::overview;
use crate::users::profiles;

/// The most rooms in the list of the large ones.
const LARGEST: usize = 10;

pub(super) fn routes() -> Routes {
    Routes::default().raw(Method::GET, &["/_synapse/admin/v1/statistics/users/media"], media_by_user).raw(
        Method::GET,
        &["/_synapse/admin/v1/statistics/database/rooms"],
        largest_rooms,
    )
}

#[derive(Clone, Copy, Default)]
enum By {
    #[default]
    UserId,
    Displayname,
    Length,
    Count,
}

impl By {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "user_id" | "id" => Self::UserId,
            "displayname" => Self::Displayname,
            "media_length" => Self::Length,
            "media_count" => Self::Count,
            _ => return None,
        })
    }
}

#[derive(Deserialize)]
struct Query {
    from_ts: Option<u64>,
    until_ts: Option<u64>,
    search_term: Option<String>,
    order_by: Option<String>,
}

struct Row {
    user_id: String,
    displayname: Option<String>,
    sum: Sum,
}

async fn media_by_user(ctx: RawCtx) -> Result<Response> {
    let (query, paging): (Query, Paging) = (ctx.query()?, ctx.query()?);
    let (from_ts, until_ts) = (query.from_ts.unwrap_or_default(), query.until_ts.unwrap_or(u64::MAX));
    if until_ts < from_ts {
        return Err(Error::invalid_param("until_ts is before from_ts"));
    }
    let by = order(query.order_by.as_deref(), By::parse)?;
    let term = query.search_term.unwrap_or_default().to_lowercase();
    let app = ctx.app.clone();
    let work = move || {
        let read = app.store.snapshot();
        let mut rows = Vec::new();
        for (user_id, sum) in app.media.sums(from_ts, until_ts)? {
            let id = ruma::UserId::parse(user_id.as_str()).map_err(Error::internal)?;
            let displayname = profiles::shown(&read, &id)?.displayname;
            let name = displayname.as_deref().unwrap_or_default().to_lowercase();
            if user_id.contains(&term) || name.contains(&term) {
                rows.push(Row { user_id, displayname, sum });
            }
        }
        rows.sort_by(|one, two| match by {
            By::UserId => one.user_id.cmp(&two.user_id),
            By::Displayname => one.displayname.cmp(&two.displayname),
            By::Length => one.sum.bytes.cmp(&two.sum.bytes),
            By::Count => one.sum.count.cmp(&two.sum.count),
        });
        if paging.descending() {
            rows.reverse();
        }
        Ok::<_, Error>(paging.cut(rows))
    };
    let page = blocking::run(work).await??;
    let describe = |row: &Row| {
        json!({ "user_id": row.user_id, "displayname": row.displayname, "media_count": row.sum.count,
            "media_length": row.sum.bytes })
    };
    let users: Vec<Value> = page.items.iter().map(describe).collect();
    let mut body = json!({ "users": users, "total": page.total });
    if let Some(next) = page.next {
        body["next_token"] = json!(next);
    }
    ok(&body)
}

async fn largest_rooms(ctx: RawCtx) -> Result<Response> {
    let read = ctx.app.store.snapshot();
    let sizes = blocking::run(move || overview::sizes(&read, LARGEST)).await??;
    let describe = |(room_id, bytes): (String, u64)| json!({ "room_id": room_id, "estimated_size": bytes });
    ok(&json!({ "rooms": sizes.into_iter().map(describe).collect::<Vec<_>>() }))
}
