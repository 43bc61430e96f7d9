//! A server in memory with two people on it, for the targets that send requests. It is kept from one input to the next,
//! because making it takes longer than most inputs, and made anew once in a while and whenever somebody is logged out.

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, header};
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::App;
use crate::http::{Answer, Body, Request};
use crate::testing::{self, Server, User};

/// What is left behind by so many inputs is forgotten.
const INPUTS: u32 = 500;
/// Nothing takes longer.
const PATIENCE: Duration = Duration::from_secs(20);
/// A poll that has not answered by then waits for the clock, which stands still otherwise.
const WAIT: Duration = Duration::from_millis(2);
const LATER: Duration = Duration::from_secs(600);

pub(super) struct World {
    pub(super) me: User,
    pub(super) other: User,
    /// What the names in braces stand for.
    names: Vec<(&'static str, String)>,
    server: Server,
    runtime: Runtime,
    inputs: u32,
    folder: PathBuf,
}

/// Who sends a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sender {
    Me,
    Other,
    Nobody,
}

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

/// Does something in a world. If it panics, the next one gets a new one.
pub(super) fn with(work: impl FnOnce(&World)) {
    let known = WORLD.with(RefCell::take).filter(World::is_fit);
    let mut world = known.unwrap_or_else(World::new);
    world.inputs += 1;
    work(&world);
    WORLD.with(|slot| slot.replace(Some(world)));
}

impl World {
    #[expect(clippy::unwrap_used, reason = "nothing can be tried without a world")]
    fn new() -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("fuzz-{}-{number}", std::process::id()));
        let mut config = testing::config();
        config.memory_budget = crate::config::Size::mib(64);
        config.data_dir.clone_from(&folder);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (server, me, other, names) = runtime.block_on(async {
            let app = App::in_memory(config);
            app.media.start().await.unwrap();
            let server = Server::of(app);
            let (me, other) = (server.user("me").await, server.user("other").await);
            let names = settle_in(&me, &other).await;
            (server, me, other, names)
        });
        World { me, other, names, server, runtime, inputs: 0, folder }
    }

    /// Whether it is as good as new, more or less.
    fn is_fit(&self) -> bool {
        let known = |user: &User| self.runtime.block_on(user.client.get("/_matrix/client/v3/account/whoami"));
        self.inputs < INPUTS && known(&self.me).status.is_success() && known(&self.other).status.is_success()
    }

    /// Names in braces are replaced by what they stand for.
    pub(super) fn fill_in(&self, text: &[u8], encoded: bool) -> Vec<u8> {
        let mut filled = Vec::with_capacity(text.len() + 64);
        let mut rest = text;
        while let Some(at) = memchr::memchr(b'{', rest) {
            let (before, from) = rest.split_at(at);
            filled.extend_from_slice(before);
            let named =
                |(name, _): &&(&str, String)| from.get(1..).is_some_and(|from| from.starts_with(name.as_bytes()));
            let ended = |(name, _): &&(&str, String)| from.get(name.len() + 1) == Some(&b'}');
            match self.names.iter().find(|name| named(name) && ended(name)) {
                Some((name, value)) if encoded => {
                    filled.extend(percent_encode(value.as_bytes(), NON_ALPHANUMERIC).flat_map(str::bytes));
                    rest = from.get(name.len() + 2..).unwrap_or_default();
                }
                Some((name, value)) => {
                    filled.extend_from_slice(value.as_bytes());
                    rest = from.get(name.len() + 2..).unwrap_or_default();
                }
                None => {
                    filled.push(b'{');
                    rest = from.get(1..).unwrap_or_default();
                }
            }
        }
        filled.extend_from_slice(rest);
        filled
    }

    /// Sends a request and judges the answer.
    pub(super) fn send(&self, sender: Sender, request: Request) -> Answer {
        let client = match sender {
            Sender::Me => &self.me.client,
            Sender::Other => &self.other.client,
            Sender::Nobody => &self.server.client,
        };
        let what = format!("{} {}", request.method(), request.uri());
        let head = request.method() == Method::HEAD;
        let answer = self.runtime.block_on(async {
            let mut answer = std::pin::pin!(client.request(request));
            let hurry = async {
                loop {
                    tokio::time::sleep(WAIT).await;
                    self.server.app.clock.advance(LATER);
                }
            };
            let answered = async {
                tokio::select! {
                    biased;
                    answer = &mut answer => answer,
                    never = hurry => never,
                }
            };
            tokio::time::timeout(PATIENCE, answered).await
        });
        #[expect(clippy::panic, reason = "this is how a fuzzer is told")]
        match answer {
            Ok(answer) => match complaint(&answer, head) {
                Some(complaint) => panic!("{what}: {complaint}"),
                None => answer,
            },
            Err(_) => panic!("{what} is never answered"),
        }
    }

    /// Sends JSON.
    pub(super) fn send_json(&self, sender: Sender, method: Method, path: &str, body: Vec<u8>) -> Answer {
        let mut request = Request::new(Body::from(body));
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().unwrap_or_default();
        self.send(sender, request)
    }

    /// What may have been left behind does not keep anybody from reading.
    pub(super) fn aftermath(&self) {
        for sender in [Sender::Me, Sender::Other] {
            let answer = self.send_json(sender, Method::GET, "/_matrix/client/v3/sync?full_state=true", Vec::new());
            let usable = answer.status.is_success() || answer.errcode() == "M_UNKNOWN_TOKEN";
            assert!(usable, "sync: {} {}", answer.status, answer.json());
        }
    }

    /// The path of a room.
    pub(super) fn room_path(&self, rest: &str) -> String {
        let path = format!("/_matrix/client/v3/rooms/{{room}}/{rest}");
        String::from_utf8_lossy(&self.fill_in(path.as_bytes(), true)).into_owned()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Rooms, messages, files and keys: something for every kind of request.
async fn settle_in(me: &User, other: &User) -> Vec<(&'static str, String)> {
    let made = |answer: &Answer, field: &str| {
        let body = answer.json();
        let text = body.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        assert!(!text.is_empty(), "no {field}: {} {body}", answer.status);
        text
    };
    let create = "/_matrix/client/v3/createRoom";
    let body = json!({"preset": "public_chat", "name": "n", "topic": "t", "invite": [other.user_id],
        "power_level_content_override": {"users_default": 60}});
    let room = made(&me.client.post(create, body).await, "room_id");
    let body = json!({"preset": "private_chat", "is_direct": true, "invite": [other.user_id], "initial_state": [
        {"type": "m.room.encryption", "state_key": "", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}]});
    let private = made(&me.client.post(create, body).await, "room_id");
    let body = json!({"creation_content": {"type": "m.space"}, "initial_state": [
        {"type": "m.space.child", "state_key": room, "content": {"via": ["hs.test"]}}]});
    let space = made(&me.client.post(create, body).await, "room_id");
    let enc = |text: &str| percent_encode(text.as_bytes(), NON_ALPHANUMERIC).to_string();
    other.client.post(&format!("/_matrix/client/v3/join/{}", enc(&room)), json!({})).await;
    let send = format!("/_matrix/client/v3/rooms/{}/send/m.room.message", enc(&room));
    let said = me.client.put(&format!("{send}/first"), json!({"msgtype": "m.text", "body": "first words"})).await;
    let event = made(&said, "event_id");
    let relation = json!({"rel_type": "m.thread", "event_id": event});
    let reply = json!({"msgtype": "m.text", "body": "second", "m.relates_to": relation});
    other.client.put(&format!("{send}/second"), reply).await;
    let backup = json!({"algorithm": "m.megolm_backup.v1.curve25519-aes-sha2", "auth_data": {"public_key": "k"}});
    made(&me.client.post("/_matrix/client/v3/room_keys/version", backup).await, "version");
    let filters = format!("/_matrix/client/v3/user/{}/filter", enc(&me.user_id));
    let filter = made(&me.client.post(&filters, json!({"room": {"timeline": {"limit": 3}}})).await, "filter_id");
    let since = made(&me.client.get("/_matrix/client/v3/sync").await, "next_batch");
    let picture: &[u8] = b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x01\0\x01\0\0\x02\x02\x44\x01\0;";
    let file = me.client.send(Method::POST, "/_matrix/media/v3/upload?filename=a.gif", picture.to_vec()).await;
    let media = made(&file, "content_uri").rsplit('/').next().unwrap_or_default().to_owned();
    let names = [("user", &me.user_id), ("other", &other.user_id), ("device", &me.device_id)];
    let names = names.map(|(name, value)| (name, value.clone()));
    let more = [("room", room), ("private", private), ("space", space), ("event", event), ("filter", filter)];
    names.into_iter().chain(more).chain([("since", since), ("media", media)]).collect()
}

/// What is wrong with an answer.
fn complaint(answer: &Answer, head: bool) -> Option<String> {
    let (status, json) = (answer.status.as_u16(), answer.json());
    if status >= 500 {
        return Some(format!("{status} {json}"));
    }
    if status < 400 || head {
        return None;
    }
    if !is_json(&answer.headers) {
        return Some(format!("{status} is no JSON"));
    }
    let auth = status == 401 && json.get("flows").is_some_and(Value::is_array);
    let code = json.get("errcode").and_then(Value::as_str).unwrap_or_default();
    let explained = json.get("error").is_some_and(Value::is_string);
    let right = auth || (code.starts_with("M_") && explained);
    (!right).then(|| format!("{status} is no Matrix error: {json}"))
}

fn is_json(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE) == Some(&HeaderValue::from_static("application/json"))
}
