//! `skerry admin room|media|token|report|service|task`, and more about users: the endpoints that administration consoles use, too.

use clap::Subcommand;
use http::Method;
use serde_json::{Value, json};

use crate::admin::{Call, SOON, encoded};

/// What a list is asked for.
#[derive(clap::Args)]
pub(crate) struct Page {
    /// Where to start.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// How many at most.
    #[arg(long, default_value_t = 100)]
    limit: u64,
}

#[derive(Subcommand)]
pub(crate) enum RoomVerb {
    /// List rooms.
    List {
        /// Only those with this in their name or alias.
        #[arg(long)]
        search: Option<String>,
        #[command(flatten)]
        page: Page,
    },
    /// Show a room.
    Show { room_id: String },
    /// Show who is in a room.
    Members { room_id: String },
    /// Make everybody leave a room, and delete it.
    Delete {
        room_id: String,
        /// Nobody may join it again.
        #[arg(long)]
        block: bool,
        /// Keep what is stored of it.
        #[arg(long)]
        keep: bool,
    },
    /// Let nobody join a room.
    Block { room_id: String },
    /// Let people join a room again.
    Unblock { room_id: String },
    /// Make a user join a room.
    Join { room_id: String, user: String },
    /// Give a user the power of an administrator in a room.
    MakeAdmin { room_id: String, user: String },
    /// Delete the messages before an event.
    Purge { room_id: String, event_id: String },
}

#[derive(Subcommand)]
pub(crate) enum MediaVerb {
    /// List the uploads of a user.
    List {
        user: String,
        #[command(flatten)]
        page: Page,
    },
    /// Let nobody have an upload.
    Quarantine { server_name: String, media_id: String },
    /// Let people have it again.
    Release { server_name: String, media_id: String },
    /// Delete an upload.
    Delete { server_name: String, media_id: String },
    /// Delete what was uploaded before a time (milliseconds since 1970).
    DeleteOld {
        before_ts: u64,
        /// Only what is larger, in bytes.
        #[arg(long, default_value_t = 0)]
        larger_than: u64,
    },
}

#[derive(Subcommand)]
pub(crate) enum TokenVerb {
    /// List registration tokens.
    List,
    /// Make a registration token.
    Create {
        /// Without it one is made.
        token: Option<String>,
        /// For how many accounts it is good.
        #[arg(long)]
        uses: Option<u64>,
        /// Until when, in milliseconds since 1970.
        #[arg(long)]
        until_ts: Option<u64>,
    },
    /// Delete a registration token.
    Delete { token: String },
}

#[derive(Subcommand)]
pub(crate) enum ReportVerb {
    /// List what users reported of events.
    Events {
        #[command(flatten)]
        page: Page,
    },
    /// List what users reported of users.
    Users {
        #[command(flatten)]
        page: Page,
    },
    /// Show a report of an event.
    Show { id: u64 },
}

#[derive(Subcommand)]
pub(crate) enum ServiceVerb {
    /// List application services, what each was not told yet, and why.
    List,
    /// Show how one stands.
    Show { id: String },
    /// Go on without a transaction that a service will never take: it never hears of what is in it.
    Skip {
        id: String,
        /// The number of the transaction, as `show` has it.
        transaction: u64,
    },
}

impl ServiceVerb {
    pub(crate) fn call(self) -> Call {
        let get = |path: String| Call { method: Method::GET, path, body: None, within: SOON };
        match self {
            Self::List => get("/services".to_owned()),
            Self::Show { id } => get(format!("/services/{}", encoded(&id))),
            Self::Skip { id, transaction } => {
                let (path, body) = (format!("/services/{}/skip", encoded(&id)), json!({ "transaction": transaction }));
                Call { method: Method::POST, path, body: Some(body), within: SOON }
            }
        }
    }
}

fn get(path: String) -> Call {
    Call { method: Method::GET, path: format!("/_synapse/admin/{path}"), body: None, within: SOON }
}

fn send(method: Method, path: String, body: Value) -> Call {
    Call { method, path: format!("/_synapse/admin/{path}"), body: Some(body), within: SOON }
}

impl Page {
    fn query(&self) -> String {
        format!("from={}&limit={}", self.from, self.limit)
    }
}

/// The accounts, and what is known of one.
pub(crate) fn users(name: Option<&str>, page: &Page) -> Call {
    let name = name.map(|name| format!("&name={}", encoded(name))).unwrap_or_default();
    get(format!("v3/users?{}{name}", page.query()))
}

pub(crate) fn user(user: &str) -> Call {
    get(format!("v2/users/{}", encoded(user)))
}

pub(crate) fn set_user(user: &str, change: Value) -> Call {
    send(Method::PUT, format!("v2/users/{}", encoded(user)), change)
}

pub(crate) fn suspend(user: &str, suspend: bool) -> Call {
    send(Method::PUT, format!("v1/suspend/{}", encoded(user)), json!({ "suspend": suspend }))
}

pub(crate) fn redact(user: &str) -> Call {
    send(Method::POST, format!("v1/user/{}/redact", encoded(user)), json!({ "rooms": [] }))
}

pub(crate) fn notice(user: &str, text: &str) -> Call {
    let content = json!({ "msgtype": "m.text", "body": text });
    send(Method::POST, "v1/send_server_notice".to_owned(), json!({ "user_id": user, "content": content }))
}

pub(crate) fn tasks() -> Call {
    get("v1/scheduled_tasks".to_owned())
}

impl RoomVerb {
    pub(crate) fn call(self) -> Call {
        let block = |room_id: &str, block: bool| {
            send(Method::PUT, format!("v1/rooms/{}/block", encoded(room_id)), json!({ "block": block }))
        };
        match self {
            Self::List { search, page } => {
                let search = search.map(|term| format!("&search_term={}", encoded(&term))).unwrap_or_default();
                get(format!("v1/rooms?{}{search}", page.query()))
            }
            Self::Show { room_id } => get(format!("v1/rooms/{}", encoded(&room_id))),
            Self::Members { room_id } => get(format!("v1/rooms/{}/members", encoded(&room_id))),
            Self::Delete { room_id, block, keep } => {
                let body = json!({ "block": block, "purge": !keep });
                send(Method::DELETE, format!("v2/rooms/{}", encoded(&room_id)), body)
            }
            Self::Block { room_id } => block(&room_id, true),
            Self::Unblock { room_id } => block(&room_id, false),
            Self::Join { room_id, user } => {
                send(Method::POST, format!("v1/join/{}", encoded(&room_id)), json!({ "user_id": user }))
            }
            Self::MakeAdmin { room_id, user } => {
                let path = format!("v1/rooms/{}/make_room_admin", encoded(&room_id));
                send(Method::POST, path, json!({ "user_id": user }))
            }
            Self::Purge { room_id, event_id } => {
                let path = format!("v1/purge_history/{}/{}", encoded(&room_id), encoded(&event_id));
                send(Method::POST, path, json!({ "delete_local_events": true }))
            }
        }
    }
}

impl MediaVerb {
    pub(crate) fn call(self) -> Call {
        let one = |verb: &str, server_name: &str, media_id: &str| {
            format!("v1/media/{verb}{}/{}", encoded(server_name), encoded(media_id))
        };
        match self {
            Self::List { user, page } => get(format!("v1/users/{}/media?{}", encoded(&user), page.query())),
            Self::Quarantine { server_name, media_id } => {
                send(Method::POST, one("quarantine/", &server_name, &media_id), json!({}))
            }
            Self::Release { server_name, media_id } => {
                send(Method::POST, one("unquarantine/", &server_name, &media_id), json!({}))
            }
            Self::Delete { server_name, media_id } => send(Method::DELETE, one("", &server_name, &media_id), json!({})),
            Self::DeleteOld { before_ts, larger_than } => {
                let path = format!("v1/media/delete?before_ts={before_ts}&size_gt={larger_than}");
                send(Method::POST, path, json!({}))
            }
        }
    }
}

impl TokenVerb {
    pub(crate) fn call(self) -> Call {
        match self {
            Self::List => get("v1/registration_tokens".to_owned()),
            Self::Create { token, uses, until_ts } => {
                let body = json!({ "token": token, "uses_allowed": uses, "expiry_time": until_ts });
                send(Method::POST, "v1/registration_tokens/new".to_owned(), body)
            }
            Self::Delete { token } => {
                send(Method::DELETE, format!("v1/registration_tokens/{}", encoded(&token)), json!({}))
            }
        }
    }
}

impl ReportVerb {
    pub(crate) fn call(self) -> Call {
        match self {
            Self::Events { page } => get(format!("v1/event_reports?{}", page.query())),
            Self::Users { page } => get(format!("v1/user_reports?{}", page.query())),
            Self::Show { id } => get(format!("v1/event_reports/{id}")),
        }
    }
}
