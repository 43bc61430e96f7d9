//! Key backups (spec: Server-side key backups).

use std::collections::BTreeMap;

use http::{Method, StatusCode};
use ruma::RoomId;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use crate::auth::Access;
use crate::blocking;
use crate::e2ee::backup::{self, NewKey, Part, Totals};
use crate::error::{Error, Result};
use crate::http::{RawCtx, Response, Routes, json_response};
use crate::limits::Class;
use crate::rooms::shown::{number, string};
use crate::schema::{BackedUpKey, Backup};

/// Keys of about so many bytes are kept in one commit.
const COMMIT_BYTES: usize = 256 * 1024;
const COMMIT_KEYS: usize = 500;
const MAX_ID_BYTES: usize = 255;
const MAX_ALGORITHM_BYTES: usize = 255;

pub fn routes() -> Routes {
    const ALL: &[&str] = &["/_matrix/client/v3/room_keys/keys", "/_matrix/client/unstable/room_keys/keys"];
    const ROOM: &[&str] =
        &["/_matrix/client/v3/room_keys/keys/{room_id}", "/_matrix/client/unstable/room_keys/keys/{room_id}"];
    const SESSION: &[&str] = &[
        "/_matrix/client/v3/room_keys/keys/{room_id}/{session_id}",
        "/_matrix/client/unstable/room_keys/keys/{room_id}/{session_id}",
    ];
    const VERSIONS: &[&str] = &["/_matrix/client/v3/room_keys/version", "/_matrix/client/unstable/room_keys/version"];
    const VERSION: &[&str] =
        &["/_matrix/client/v3/room_keys/version/{version}", "/_matrix/client/unstable/room_keys/version/{version}"];
    let routes = Routes::default()
        .raw(Method::POST, VERSIONS, create)
        .access(Access::Token)
        .limit(Class::Other)
        .raw(Method::GET, VERSIONS, current)
        .access(Access::Token)
        .raw(Method::GET, VERSION, get)
        .access(Access::Token)
        .raw(Method::PUT, VERSION, update)
        .access(Access::Token)
        .raw(Method::DELETE, VERSION, delete)
        .access(Access::Token);
    [ALL, ROOM, SESSION].into_iter().fold(routes, |routes, paths| {
        routes
            .raw(Method::GET, paths, get_keys)
            .access(Access::Token)
            .raw(Method::PUT, paths, put_keys)
            .access(Access::Token)
            .raw(Method::DELETE, paths, delete_keys)
            .access(Access::Token)
    })
}

// ---- versions ----------------------------------------------------------------------------------------------------

#[derive(Deserialize)]
struct VersionBody {
    algorithm: String,
    auth_data: Box<RawValue>,
    version: Option<String>,
}

impl VersionBody {
    fn checked(self) -> Result<Self> {
        if !self.auth_data.get().starts_with('{') {
            return Err(Error::bad_json("auth_data is an object"));
        }
        if self.auth_data.get().len() > store::limits::VALUE_BYTES / 2 || self.algorithm.len() > MAX_ALGORITHM_BYTES {
            return Err(Error::too_large("This is too large"));
        }
        Ok(self)
    }
}

async fn create(mut ctx: RawCtx) -> Result<Response> {
    let body = ctx.read_json::<VersionBody>().await?.checked()?;
    let user_id = ctx.requester()?.user_id.as_str();
    let (algorithm, auth_data) = (&body.algorithm, body.auth_data.get());
    let created = ctx.app.store.transact(|tx| backup::create(tx, user_id, algorithm, auth_data)).await?;
    Ok(json_response(StatusCode::OK, json!({ "version": created.value.to_string() }).to_string()))
}

async fn current(ctx: RawCtx) -> Result<Response> {
    let found = backup::current(&ctx.app.store.snapshot(), ctx.requester()?.user_id.as_str())?;
    let (version, backup) = found.ok_or_else(|| Error::not_found("There is no backup"))?;
    describe(version, &backup)
}

async fn get(ctx: RawCtx) -> Result<Response> {
    let version = number_of(ctx.arg(0))?;
    describe(version, &backup::get(&ctx.app.store.snapshot(), ctx.requester()?.user_id.as_str(), version)?)
}

fn describe(version: u64, backup: &Backup) -> Result<Response> {
    let auth_data: &RawValue = serde_json::from_str(&backup.auth_data).map_err(Error::internal)?;
    let mut out = b"{\"algorithm\":".to_vec();
    string(&mut out, &backup.algorithm);
    out.extend_from_slice(b",\"auth_data\":");
    out.extend_from_slice(auth_data.get().as_bytes());
    out.extend_from_slice(b",\"version\":");
    string(&mut out, &version.to_string());
    out.push(b',');
    totals(&mut out, Totals::from(backup));
    out.push(b'}');
    Ok(json_response(StatusCode::OK, out))
}

async fn update(mut ctx: RawCtx) -> Result<Response> {
    let body = ctx.read_json::<VersionBody>().await?.checked()?;
    let version = number_of(ctx.arg(0))?;
    if body.version.is_some_and(|named| named != ctx.arg(0)) {
        return Err(Error::invalid_param("The version is not that of the path"));
    }
    let user_id = ctx.requester()?.user_id.as_str();
    let (algorithm, auth_data) = (&body.algorithm, body.auth_data.get());
    ctx.app.store.transact(|tx| backup::update(tx, user_id, version, algorithm, auth_data)).await?;
    Ok(json_response(StatusCode::OK, "{}"))
}

async fn delete(ctx: RawCtx) -> Result<Response> {
    let (version, user_id) = (number_of(ctx.arg(0))?, ctx.requester()?.user_id.as_str());
    ctx.app.store.transact(|tx| backup::delete(tx, user_id, version)).await?;
    Ok(json_response(StatusCode::OK, "{}"))
}

/// The number of a version, as this server writes it.
fn number_of(version: &str) -> Result<u64> {
    let number = version.parse::<u64>().ok().filter(|number| number.to_string() == version);
    number.ok_or_else(|| Error::not_found("There is no such backup"))
}

// ---- keys --------------------------------------------------------------------------------------------------------

#[derive(Deserialize)]
struct KeyBody {
    first_message_index: u64,
    forwarded_count: u64,
    is_verified: bool,
    session_data: Box<RawValue>,
}

#[derive(Deserialize)]
struct RoomBody {
    sessions: BTreeMap<String, KeyBody>,
}

#[derive(Deserialize)]
struct AllBody {
    rooms: BTreeMap<String, RoomBody>,
}

impl KeyBody {
    fn read(self, room_id: &str, session_id: &str) -> Result<NewKey> {
        RoomId::parse(room_id)?;
        let fits = |id: &str| !id.is_empty() && id.len() <= MAX_ID_BYTES && !id.contains(char::is_control);
        if !fits(session_id) || !fits(room_id) {
            return Err(Error::invalid_param("This is no ID of a session or of a room"));
        }
        let session_data = String::from(Box::<str>::from(self.session_data));
        if !session_data.starts_with('{') {
            return Err(Error::bad_json("session_data is an object"));
        }
        if session_data.len() > store::limits::VALUE_BYTES / 2 {
            return Err(Error::too_large("This key is too large"));
        }
        let KeyBody { first_message_index, forwarded_count, is_verified, .. } = self;
        let key = BackedUpKey { first_message_index, forwarded_count, is_verified, session_data };
        Ok(NewKey { room_id: room_id.to_owned(), session_id: session_id.to_owned(), key })
    }
}

/// The version that a request is about.
fn version(ctx: &RawCtx) -> Result<u64> {
    number_of(&ctx.query_value("version").ok_or_else(|| Error::missing_param("version is missing"))?)
}

/// What of a backup a path is about.
fn part(args: &[String]) -> Part<'_> {
    Part { room_id: args.first().map(String::as_str), session_id: args.get(1).map(String::as_str) }
}

async fn new_keys(ctx: &mut RawCtx) -> Result<Vec<NewKey>> {
    let args = ctx.args.clone();
    let Part { room_id, session_id } = part(&args);
    let rooms = match (room_id, session_id) {
        (Some(room_id), Some(session_id)) => {
            return Ok(vec![ctx.read_json::<KeyBody>().await?.read(room_id, session_id)?]);
        }
        (Some(room_id), None) => BTreeMap::from([(room_id.to_owned(), ctx.read_json::<RoomBody>().await?)]),
        _ => ctx.read_json::<AllBody>().await?.rooms,
    };
    let keys = rooms.into_iter().flat_map(|(room_id, room)| {
        room.sessions.into_iter().map(move |(session_id, key)| key.read(&room_id, &session_id))
    });
    keys.collect()
}

async fn put_keys(mut ctx: RawCtx) -> Result<Response> {
    let version = version(&ctx)?;
    let keys = new_keys(&mut ctx).await?;
    let user_id = ctx.requester()?.user_id.as_str();
    let mut rest = keys.as_slice();
    loop {
        let (some, more) = rest.split_at(one_commit(rest));
        let kept = ctx.app.store.transact(|tx| backup::put(tx, user_id, version, some)).await?.value;
        rest = more;
        if rest.is_empty() {
            return Ok(answer_totals(kept));
        }
    }
}

/// How many of these keys go into one commit.
fn one_commit(keys: &[NewKey]) -> usize {
    let mut bytes = 0;
    let fits = keys.iter().take(COMMIT_KEYS).take_while(|new| {
        let before = bytes;
        bytes += new.key.session_data.len() + new.room_id.len() + new.session_id.len();
        before == 0 || bytes <= COMMIT_BYTES
    });
    fits.count()
}

async fn get_keys(ctx: RawCtx) -> Result<Response> {
    let (version, user_id) = (version(&ctx)?, ctx.requester()?.user_id.clone());
    let (snapshot, args) = (ctx.app.store.snapshot(), ctx.args);
    let one = part(&args).session_id.is_some();
    let read = move || -> Result<Vec<u8>> {
        let part = part(&args);
        let mut writer = Writer::new(part);
        backup::visit(&snapshot, user_id.as_str(), version, part, |room_id, session_id, key| {
            writer.key(room_id, session_id, key);
        })?;
        writer.finish()
    };
    // A whole backup may be large.
    let answer = if one { read()? } else { blocking::run(read).await?? };
    Ok(json_response(StatusCode::OK, answer))
}

/// Writes keys as they come, in the order of their rooms.
struct Writer<'a> {
    out: Vec<u8>,
    part: Part<'a>,
    room_id: Option<String>,
}

impl<'a> Writer<'a> {
    fn new(part: Part<'a>) -> Self {
        let begin: &[u8] = match part {
            Part { session_id: Some(_), .. } => b"",
            Part { room_id: Some(_), .. } => b"{\"sessions\":{",
            _ => b"{\"rooms\":{",
        };
        Writer { out: begin.to_vec(), part, room_id: None }
    }

    fn key(&mut self, room_id: &str, session_id: &str, key: &BackedUpKey) {
        let out = &mut self.out;
        let same = self.room_id.as_deref() == Some(room_id);
        if self.part.session_id.is_none() {
            match (&self.room_id, same) {
                (Some(_), true) => out.push(b','),
                (Some(_), false) => out.extend_from_slice(b"}},"),
                (None, _) => {}
            }
            if self.part.room_id.is_none() && !same {
                string(out, room_id);
                out.extend_from_slice(b":{\"sessions\":{");
            }
            string(out, session_id);
            out.push(b':');
        }
        if !same {
            self.room_id = Some(room_id.to_owned());
        }
        out.extend_from_slice(b"{\"first_message_index\":");
        number(out, key.first_message_index);
        out.extend_from_slice(b",\"forwarded_count\":");
        number(out, key.forwarded_count);
        out.extend_from_slice(if key.is_verified { b",\"is_verified\":true" } else { b",\"is_verified\":false" });
        out.extend_from_slice(b",\"session_data\":");
        out.extend_from_slice(key.session_data.as_bytes());
        out.push(b'}');
    }

    fn finish(mut self) -> Result<Vec<u8>> {
        match self.part {
            Part { session_id: Some(_), .. } if self.room_id.is_none() => {
                return Err(Error::not_found("There is no such key"));
            }
            Part { session_id: Some(_), .. } => {}
            Part { room_id: Some(_), .. } => self.out.extend_from_slice(b"}}"),
            _ => self.out.extend_from_slice(if self.room_id.is_some() { b"}}}}" } else { b"}}" }),
        }
        Ok(self.out)
    }
}

async fn delete_keys(ctx: RawCtx) -> Result<Response> {
    let (version, user_id) = (version(&ctx)?, ctx.requester()?.user_id.as_str());
    loop {
        let delete = ctx.app.store.transact(|tx| backup::delete_keys(tx, user_id, version, part(&ctx.args)));
        if let (true, left) = delete.await?.value {
            return Ok(answer_totals(left));
        }
    }
}

fn answer_totals(kept: Totals) -> Response {
    let mut out = vec![b'{'];
    totals(&mut out, kept);
    out.push(b'}');
    json_response(StatusCode::OK, out)
}

fn totals(out: &mut Vec<u8>, Totals { count, etag }: Totals) {
    out.extend_from_slice(b"\"count\":");
    number(out, count);
    out.extend_from_slice(b",\"etag\":");
    string(out, &etag.to_string());
}

#[cfg(test)]
mod tests {
    use http::Method;
    use serde_json::{Value, json};

    use crate::http::{Answer, Body};
    use crate::jobs;
    use crate::schema::{BACKED_UP_KEYS, BACKUPS, Backup};
    use crate::testing::{Server, User};
    use store::Read as _;

    const VERSION: &str = "/_matrix/client/v3/room_keys/version";
    const KEYS: &str = "/_matrix/client/v3/room_keys/keys";
    const ALGORITHM: &str = "m.megolm_backup.v1.curve25519-aes-sha2";

    fn ok(answer: &Answer) -> Value {
        assert!(answer.status.is_success(), "{answer:?}");
        answer.json()
    }

    fn outcome(answer: &Answer) -> (u16, String) {
        (answer.status.as_u16(), answer.errcode())
    }

    async fn create(user: &User) -> String {
        let body = json!({ "algorithm": ALGORITHM, "auth_data": { "public_key": "k", "n": 1.50 } });
        ok(&user.client.post(VERSION, body).await)["version"].as_str().unwrap().to_owned()
    }

    async fn delete(user: &User, path: &str) -> Answer {
        user.client.send(Method::DELETE, path, Body::from("")).await
    }

    fn key(first: u64, forwarded: u64, verified: bool, data: &str) -> Value {
        json!({ "first_message_index": first, "forwarded_count": forwarded, "is_verified": verified, "session_data": { "c": data } })
    }

    fn at(rest: &str, version: &str) -> String {
        format!("{KEYS}{rest}?version={version}")
    }

    #[tokio::test]
    async fn pitfall_080_versions_come_and_go() {
        let server = Server::default();
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        assert_eq!(outcome(&alice.client.get(VERSION).await), (404, "M_NOT_FOUND".to_owned()));
        let one = create(&alice).await;
        let two = create(&alice).await;
        assert_ne!(one, two);
        let expected = json!({
            "algorithm": ALGORITHM, "auth_data": { "public_key": "k", "n": 1.5 }, "count": 0, "etag": "0", "version": two,
        });
        assert_eq!(ok(&alice.client.get(VERSION).await), expected);
        assert_eq!(ok(&alice.client.get(&format!("{VERSION}/{one}")).await)["version"], one.as_str());
        for unknown in ["17", "x", "01", "-1"] {
            let answer = alice.client.get(&format!("{VERSION}/{unknown}")).await;
            assert_eq!(outcome(&answer), (404, "M_NOT_FOUND".to_owned()), "{unknown}");
        }
        assert_eq!(bob.client.get(&format!("{VERSION}/{one}")).await.status, 404);
        // What is said of it changes, how it is encrypted does not.
        let path = format!("{VERSION}/{two}");
        let update = |more: Value| {
            let mut body = json!({ "algorithm": ALGORITHM, "auth_data": { "new": true } });
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            body
        };
        for wrong in [json!({ "algorithm": "other" }), json!({ "version": one })] {
            let answer = alice.client.put(&path, update(wrong)).await;
            assert_eq!(outcome(&answer), (400, "M_INVALID_PARAM".to_owned()));
        }
        ok(&alice.client.put(&path, update(json!({ "version": two }))).await);
        ok(&alice.client.put(&path, update(json!({}))).await);
        assert_eq!(ok(&alice.client.get(VERSION).await)["auth_data"], json!({ "new": true }));
        assert_eq!(alice.client.put(&format!("{VERSION}/17"), update(json!({}))).await.status, 404);
        // Deleting twice is deleting once; what was before it is the present one again.
        ok(&delete(&alice, &path).await);
        ok(&delete(&alice, &path).await);
        assert_eq!(delete(&alice, &format!("{VERSION}/17")).await.status, 404);
        assert_eq!(alice.client.get(&path).await.status, 404);
        assert_eq!(ok(&alice.client.get(VERSION).await)["version"], one.as_str());
        assert_ne!(create(&alice).await, two, "numbers are not used again");
    }

    #[tokio::test]
    async fn the_keys_of_one_user_take_so_many_bytes_and_no_more() {
        const FULL: u64 = 512 * 1024 * 1024;
        let server = Server::default();
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let (old, version) = (create(&alice).await, create(&alice).await);
        let bytes_of = |version: &str| {
            let key = (alice.user_id.as_str(), version.parse::<u64>().unwrap());
            server.app.store.snapshot().get(&BACKUPS, key).unwrap().unwrap().bytes
        };
        ok(&alice.client.put(&at("/!r:hs.test/s", &version), key(9, 0, true, &"x".repeat(1_000))).await);
        let one = bytes_of(&version);
        assert!((1_000..1_200).contains(&one), "{one}");
        // A better key takes its place, and room comes back with what goes.
        ok(&alice.client.put(&at("/!r:hs.test/s", &version), key(8, 0, true, "x")).await);
        assert_eq!(bytes_of(&version), one - 999);
        ok(&delete(&alice, &at("/!r:hs.test/s", &version)).await);
        assert_eq!(bytes_of(&version), 0);

        // What older versions hold counts, too.
        let fill = |tx: &mut store::Tx| -> crate::error::Result<()> {
            let key = (alice.user_id.as_str(), old.parse::<u64>().unwrap());
            let row = tx.get(&BACKUPS, key)?.unwrap();
            tx.put(&BACKUPS, key, &Backup { bytes: FULL - 150, ..row });
            Ok(())
        };
        server.app.store.transact(fill).await.unwrap();
        ok(&alice.client.put(&at("/!r:hs.test/s", &version), key(9, 0, true, "x")).await);
        let answer = alice.client.put(&at("/!r:hs.test/t", &version), key(9, 0, true, "x")).await;
        assert_eq!(outcome(&answer), (413, "M_TOO_LARGE".to_owned()));
        assert!(answer.json()["error"].as_str().unwrap().contains("512 MiB"), "{answer:?}");
        assert_eq!(ok(&alice.client.get(VERSION).await)["count"], 1);
        ok(&alice.client.put(&at("/!r:hs.test/s", &version), key(8, 0, true, "x")).await);
        ok(&bob.client.put(&at("/!r:hs.test/s", &create(&bob).await), key(9, 0, true, "x")).await);
        ok(&delete(&alice, &format!("{VERSION}/{old}")).await);
        ok(&alice.client.put(&at("/!r:hs.test/t", &version), key(9, 0, true, "x")).await);
    }

    #[tokio::test]
    async fn there_are_some_versions_and_a_new_one_takes_the_place_of_the_oldest() {
        let server = Server::default();
        let alice = server.user("alice").await;
        let one = create(&alice).await;
        ok(&alice.client.put(&at("/!r:hs.test/s", &one), key(0, 0, true, "x")).await);
        let two = create(&alice).await;
        for _ in 0..70 {
            create(&alice).await;
        }
        assert_eq!(outcome(&alice.client.get(&format!("{VERSION}/{one}")).await).0, 404);
        jobs::drain(&server.app).await.unwrap();
        let read = server.app.store.snapshot();
        assert_eq!(read.count(&BACKED_UP_KEYS, BACKED_UP_KEYS.all()).unwrap(), 0);
        assert_eq!(read.count(&BACKUPS, BACKUPS.all()).unwrap(), 64);
        // What was given out once can be deleted again and again; what never was cannot.
        assert_eq!(delete(&alice, &format!("{VERSION}/{two}")).await.status, 200);
        assert_eq!(outcome(&delete(&alice, &format!("{VERSION}/1000")).await).0, 404);
        // Making and deleting leaves nothing but the last number.
        for _ in 0..70 {
            let version = create(&alice).await;
            assert_eq!(delete(&alice, &format!("{VERSION}/{version}")).await.status, 200);
            assert_eq!(delete(&alice, &format!("{VERSION}/{version}")).await.status, 200);
        }
        assert_eq!(create(&alice).await, "143");
        assert_eq!(server.app.store.snapshot().count(&BACKUPS, BACKUPS.all()).unwrap(), 64);
    }

    #[tokio::test]
    async fn an_account_with_very_many_backups_is_closed_like_any_other() {
        let server = Server::default();
        let alice = server.user("alice").await;
        for chunk in (1..=60_000u64).collect::<Vec<_>>().chunks(5_000) {
            let mut batch = store::Batch::new();
            chunk.iter().for_each(|nr| batch.put(&BACKUPS, (&alice.user_id, *nr), &Backup::default()));
            server.app.store.commit(batch).unwrap().durable().await.unwrap();
        }
        let body = json!({ "auth": alice.auth() });
        assert_eq!(alice.client.post("/_matrix/client/v3/account/deactivate", body).await.status, 200);
        jobs::drain(&server.app).await.unwrap();
        let read = server.app.store.snapshot();
        let left: Vec<_> = read.scan(&BACKUPS, BACKUPS.all()).map(Result::unwrap).collect();
        assert!(left.iter().all(|(_, backup)| backup.deleted) && left.len() == 1, "{left:?}");
    }

    #[tokio::test]
    async fn pitfall_080_keys_replace_worse_ones_only() {
        let server = Server::default();
        let alice = server.user("alice").await;
        let version = create(&alice).await;
        let path = at("/!r:hs.test/s%2F%2B", &version);
        let put = async |key: Value| ok(&alice.client.put(&path, key).await);
        assert_eq!(put(key(5, 1, false, "a")).await, json!({ "count": 1, "etag": "1" }));
        assert_eq!(put(key(5, 1, false, "same")).await, json!({ "count": 1, "etag": "1" }));
        assert_eq!(put(key(6, 0, false, "later")).await["etag"], "1");
        assert_eq!(put(key(5, 0, false, "b")).await["etag"], "2");
        assert_eq!(put(key(4, 9, false, "c")).await["etag"], "3");
        assert_eq!(put(key(9, 9, true, "d")).await["etag"], "4");
        assert_eq!(put(key(0, 0, false, "unverified")).await, json!({ "count": 1, "etag": "4" }));
        assert_eq!(ok(&alice.client.get(&path).await), key(9, 9, true, "d"));
        assert_eq!(ok(&alice.client.get(VERSION).await)["etag"], "4");
    }

    #[tokio::test]
    async fn pitfall_080_keys_go_into_the_present_version_only() {
        let server = Server::default();
        let alice = server.user("alice").await;
        let body = || json!({ "rooms": { "!r:hs.test": { "sessions": { "s": key(0, 0, true, "a") } } } });
        assert_eq!(outcome(&alice.client.put(&at("", "1"), body()).await), (404, "M_NOT_FOUND".to_owned()));
        let (one, two) = (create(&alice).await, create(&alice).await);
        let answer = alice.client.put(&at("", &one), body()).await;
        assert_eq!(outcome(&answer), (403, "M_WRONG_ROOM_KEYS_VERSION".to_owned()));
        assert_eq!(answer.json()["current_version"], two.as_str());
        assert_eq!(alice.client.put(&at("", "17"), body()).await.status, 404);
        assert_eq!(outcome(&alice.client.put(KEYS, body()).await), (400, "M_MISSING_PARAM".to_owned()));
        ok(&alice.client.put(&at("", &two), body()).await);
        // A deleted version shows nothing at once, and its keys are gone a little later.
        ok(&delete(&alice, &format!("{VERSION}/{two}")).await);
        assert_eq!(alice.client.get(&at("", &two)).await.status, 404);
        assert_eq!(alice.client.get(&at("/!r:hs.test/s", &two)).await.status, 404);
        jobs::drain(&server.app).await.unwrap();
        assert_eq!(server.app.store.latest().count(&BACKED_UP_KEYS, BACKED_UP_KEYS.all()).unwrap(), 0);
    }

    #[tokio::test]
    async fn keys_are_got_and_deleted_by_one_by_room_and_all() {
        let server = Server::default();
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let version = create(&alice).await;
        assert_eq!(ok(&alice.client.get(&at("", &version)).await), json!({ "rooms": {} }));
        assert_eq!(ok(&alice.client.get(&at("/!a:hs.test", &version)).await), json!({ "sessions": {} }));
        assert_eq!(alice.client.get(&at("/!a:hs.test/1", &version)).await.status, 404);
        let room = |names: &[&str]| {
            let sessions = names.iter().map(|name| ((*name).to_owned(), key(0, 0, true, name)));
            json!({ "sessions": serde_json::Map::from_iter(sessions) })
        };
        let all = json!({ "rooms": { "!a:hs.test": room(&["1", "2", "3"]), "!b:hs.test": room(&["1", "2"]) } });
        let kept = ok(&alice.client.put(&at("", &version), all.clone()).await);
        assert_eq!(kept, json!({ "count": 5, "etag": "1" }));
        ok(&alice.client.put(&at("/!c:hs.test", &version), room(&["9"])).await);
        let mut all_three = all.clone();
        all_three["rooms"]["!c:hs.test"] = room(&["9"]);
        assert_eq!(ok(&alice.client.get(&at("", &version)).await), all_three);
        assert_eq!(ok(&alice.client.get(&at("/!b:hs.test", &version)).await), all["rooms"]["!b:hs.test"]);
        assert_eq!(bob.client.get(&at("", &version)).await.status, 404);
        let left = ok(&delete(&alice, &at("/!a:hs.test/2", &version)).await);
        assert_eq!(left, json!({ "count": 5, "etag": "3" }));
        assert_eq!(ok(&delete(&alice, &at("/!a:hs.test/2", &version)).await), left, "it was gone already");
        assert_eq!(ok(&delete(&alice, &at("/!b:hs.test", &version)).await)["count"], 3);
        assert_eq!(ok(&alice.client.get(&at("/!a:hs.test", &version)).await), room(&["1", "3"]));
        assert_eq!(ok(&delete(&alice, &at("", &version)).await)["count"], 0);
        assert_eq!(ok(&alice.client.get(&at("", &version)).await), json!({ "rooms": {} }));
        assert_eq!(delete(&alice, &at("", "17")).await.status, 404);
    }

    #[tokio::test]
    async fn many_keys_at_once_are_kept_and_deleted() {
        let server = Server::default();
        let alice = server.user("alice").await;
        let version = create(&alice).await;
        let long = "x".repeat(200);
        let sessions: serde_json::Map<String, Value> =
            (0..2_345).map(|n| (format!("{n:043}"), key(0, 0, true, &long))).collect();
        let body = json!({ "rooms": { "!r:hs.test": { "sessions": sessions } } });
        assert_eq!(ok(&alice.client.put(&at("", &version), body.clone()).await)["count"], 2_345);
        assert_eq!(ok(&alice.client.get(&at("", &version)).await), body);
        assert_eq!(ok(&delete(&alice, &at("", &version)).await)["count"], 0);
        assert_eq!(ok(&alice.client.get(&at("", &version)).await), json!({ "rooms": {} }));
    }

    #[tokio::test]
    async fn requests_that_make_no_sense_are_refused() {
        let server = Server::default();
        let alice = server.user("alice").await;
        let version = create(&alice).await;
        for wrong in [json!({}), json!({ "algorithm": "a" }), json!({ "algorithm": "a", "auth_data": 1 })] {
            assert_eq!(alice.client.post(VERSION, wrong).await.status, 400);
        }
        let good = key(0, 0, true, "a");
        for wrong in ["first_message_index", "forwarded_count", "is_verified", "session_data"] {
            let mut key = good.clone();
            key[wrong] = json!("x");
            let answer = alice.client.put(&at("/!r:hs.test/s", &version), key.clone()).await;
            assert_eq!(outcome(&answer), (400, "M_BAD_JSON".to_owned()), "{wrong}");
            key.as_object_mut().unwrap().remove(wrong);
            assert_eq!(alice.client.put(&at("/!r:hs.test/s", &version), key).await.status, 400, "{wrong}");
        }
        for path in ["/nonsense/s", "/!r:hs.test/s%00", &format!("/!r:hs.test/{}", "s".repeat(300))] {
            assert_eq!(alice.client.put(&at(path, &version), good.clone()).await.status, 400);
        }
        assert_eq!(outcome(&server.client.get(VERSION).await).0, 401);
        assert_eq!(ok(&alice.client.get(VERSION).await)["count"], 0);
    }
}
