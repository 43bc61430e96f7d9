//! The rooms that two users are both in.

use std::iter::Peekable;

use http::{Method, StatusCode};
use ruma::UserId;
use serde::Deserialize;
use serde_json::json;
use store::Read;

use crate::auth::Access;
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response, Routes, json_response};
use crate::limits::Class;
use crate::schema::{HEADS, MEMBERSHIPS, MembershipState, RoomNr};

/// The most rooms in one answer.
const LIMIT: usize = 100;

const PATHS: &[&str] =
    &["/_matrix/client/unstable/uk.half-shot.msc2666/user/mutual_rooms", "/_matrix/client/v1/mutual_rooms"];

pub fn routes() -> Routes {
    Routes::default().raw(Method::GET, PATHS, mutual_rooms).access(Access::Token).limit(Class::Other)
}

#[derive(Deserialize)]
struct Query {
    user_id: String,
    from: Option<String>,
}

async fn mutual_rooms(ctx: RawCtx) -> Result<Response> {
    let query: Query = ctx.query()?;
    let (me, other) = (&ctx.requester()?.user_id, UserId::parse(&query.user_id)?);
    if *me == other {
        return Err(Error::invalid_param("You share all your rooms with yourself"));
    }
    let invalid = || Error::invalid_param("This is not a token of this list");
    let parse = |from: &str| u64::from_str_radix(from.strip_prefix('m')?, 16).ok();
    let from = query.from.as_deref().map(|from| parse(from).ok_or_else(invalid)).transpose()?;

    let read = ctx.app.store.snapshot();
    let both: Vec<RoomNr> =
        Both { one: joined(&read, me).peekable(), two: joined(&read, &other).peekable() }.collect::<Result<_>>()?;
    let start = from.map_or(0, |from| both.partition_point(|room| *room <= from));
    let page: Vec<RoomNr> = both.iter().skip(start).take(LIMIT).copied().collect();
    let more = both.len() > start + page.len();
    let heads = read.multi_get(&HEADS, page.iter().copied())?;
    let rooms: Vec<String> = heads.into_iter().flatten().map(|head| head.room_id).collect();
    let mut body = json!({ "joined": rooms, "count": both.len() });
    if let Some(last) = page.last().filter(|_| more) {
        body["next_batch"] = json!(format!("m{last:x}"));
    }
    Ok(json_response(StatusCode::OK, body.to_string()))
}

/// The rooms that a user is in, in the order of their numbers.
fn joined(read: &impl Read, user_id: &UserId) -> impl Iterator<Item = Result<RoomNr>> {
    let rows = read.scan(&MEMBERSHIPS, MEMBERSHIPS.prefix((user_id.as_str(),)));
    rows.filter_map(|row| match row {
        Ok(((_, room), member)) => (member.state == MembershipState::Join).then_some(Ok(room)),
        Err(cause) => Some(Err(cause.into())),
    })
}

/// What two ascending sequences have in common.
struct Both<A: Iterator, B: Iterator> {
    one: Peekable<A>,
    two: Peekable<B>,
}

impl<A, B> Iterator for Both<A, B>
where
    A: Iterator<Item = Result<RoomNr>>,
    B: Iterator<Item = Result<RoomNr>>,
{
    type Item = Result<RoomNr>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match (self.one.peek()?, self.two.peek()?) {
                (Err(_), _) => return self.one.next(),
                (_, Err(_)) => return self.two.next(),
                (Ok(one), Ok(two)) if one < two => drop(self.one.next()),
                (Ok(one), Ok(two)) if one > two => drop(self.two.next()),
                _ => {
                    self.two.next();
                    return self.one.next();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use crate::client::testing::*;
    use crate::testing::Server;

    #[tokio::test]
    async fn the_rooms_that_both_are_in() {
        let server = Server::default();
        let [alice, bob, carol] = users(&server).await;
        let mut shared = BTreeSet::new();
        for nr in 0..230 {
            let room = public_room(&alice).await;
            if nr % 2 == 0 {
                room.join(&bob).await;
                shared.insert(room.id);
            }
        }
        public_room(&bob).await;
        let invited = public_room(&alice).await;
        invited.act("invite", serde_json::json!({"user_id": bob.user_id})).await;
        let (mut found, mut from) = (Vec::new(), String::new());
        loop {
            let path = format!("/_matrix/client/v1/mutual_rooms?user_id={}{from}", enc(&bob.user_id));
            let page: Value = ok(&alice.client.get(&path).await);
            assert_eq!(page["count"], 115);
            found.extend(page["joined"].as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()));
            let Some(next) = page["next_batch"].as_str() else { break };
            from = format!("&from={}", enc(next));
        }
        assert_eq!((found.len(), found.into_iter().collect::<BTreeSet<_>>()), (115, shared));
        let unstable = "/_matrix/client/unstable/uk.half-shot.msc2666/user/mutual_rooms";
        let none = ok(&carol.client.get(&format!("{unstable}?user_id={}", enc(&alice.user_id))).await);
        assert_eq!(none, serde_json::json!({"joined": [], "count": 0}));
        for query in [format!("user_id={}", enc(&alice.user_id)), "user_id=@b:hs.test&from=x".into(), String::new()] {
            let answer = alice.client.get(&format!("/_matrix/client/v1/mutual_rooms?{query}")).await;
            assert_eq!(refused(&answer), (400, "M_INVALID_PARAM".to_owned()), "{query}");
        }
    }
}
