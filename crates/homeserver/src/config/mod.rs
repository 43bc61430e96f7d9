//! Settings: one struct per section, every key with its meaning and default, unknown keys refused.
//!
//! `settings!` keeps the meaning next to the field, so that the reference and the example file are made from here
//! (`reference.rs`) and cannot drift. Loading and its error messages live in `load.rs`, units in `units.rs`.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use ruma::{OwnedServerName, RoomVersionId};
use serde::{Deserialize, Serialize};

mod load;
mod reference;
pub mod registrations;
mod units;

pub use load::{ConfigError, Overrides};
pub use reference::{example, reference};
pub use units::{Destination, Network, Size, Span};

/// One setting, for the reference.
#[derive(Clone, Debug)]
pub struct Setting {
    pub name: &'static str,
    pub meaning: &'static str,
    pub default: serde_json::Value,
}

/// One section, for the reference.
#[derive(Clone, Debug)]
pub struct Section {
    pub name: &'static str,
    pub meaning: &'static str,
    pub settings: Vec<Setting>,
}

macro_rules! settings {
    (
        $(#[doc = $meaning:literal])+
        pub struct $Section:ident = $section:literal {
            $( $(#[doc = $doc:literal])+ pub $field:ident: $Type:ty = $default:expr, )*
        }
    ) => {
        $(#[doc = $meaning])+
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $Section {
            $( $(#[doc = $doc])+ pub $field: $Type, )*
        }

        impl Default for $Section {
            fn default() -> Self {
                Self { $( $field: $default, )* }
            }
        }

        impl $Section {
            pub fn describe() -> Section {
                let default = Self::default();
                Section {
                    name: $section,
                    meaning: concat!($($meaning, "\n"),+),
                    settings: vec![$( Setting {
                        name: stringify!($field),
                        meaning: concat!($($doc, "\n"),+),
                        default: serde_json::to_value(&default.$field).unwrap_or_default(),
                    }, )*],
                }
            }
        }
    };
}

/// Everything that can be set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The name of this server: what stands behind the colon in user identifiers. It can never be changed.
    pub server_name: OwnedServerName,
    /// Where the store, the media and the signing key live.
    #[serde(default = "default_data_dir")]
    pub data_dir: PathBuf,
    /// How much memory the server may use; caches and buffers are carved out of it.
    #[serde(default = "default_memory_budget")]
    pub memory_budget: Size,
    /// Threads that answer requests; without it as many as the machine has cores.
    #[serde(default)]
    pub worker_threads: Option<NonZeroUsize>,
    #[serde(default = "default_listeners")]
    pub listeners: Vec<Listener>,
    #[serde(default)]
    pub http: Http,
    #[serde(default)]
    pub admin: Admin,
    #[serde(default)]
    pub metrics: Metrics,
    #[serde(default)]
    pub log: Log,
    #[serde(default)]
    pub registration: Registration,
    #[serde(default)]
    pub auth: Auth,
    #[serde(default)]
    pub oauth: Oauth,
    #[serde(default)]
    pub rooms: Rooms,
    #[serde(default)]
    pub media: Media,
    #[serde(default)]
    pub presence: Presence,
    #[serde(default)]
    pub user_directory: UserDirectory,
    #[serde(default)]
    pub push: Push,
    #[serde(default)]
    pub calls: Calls,
    #[serde(default)]
    pub server_notices: ServerNotices,
    #[serde(default)]
    pub application_services: ApplicationServices,
    #[serde(default)]
    pub outgoing: Outgoing,
    #[serde(default)]
    pub federation: Federation,
    #[serde(default)]
    pub well_known: WellKnown,
    #[serde(default)]
    pub web: Web,
    #[serde(default)]
    pub rate_limits: RateLimits,
}

fn default_data_dir() -> PathBuf {
    PathBuf::from("/var/lib/skerry")
}

fn default_memory_budget() -> Size {
    Size::mib(512)
}

fn default_listeners() -> Vec<Listener> {
    vec![Listener::default()]
}

settings! {
    /// Where clients connect. Repeat the section for more than one address.
    pub struct Listener = "listeners" {
        /// Address and port. Port 0 lets the system choose one.
        pub bind: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 8008)),
        /// Certificate chain and private key (PEM files) turn the listener into HTTPS. SIGHUP reads them anew.
        pub tls: Option<Tls> = None,
        /// Proxies (addresses or networks) whose X-Forwarded-For header is believed.
        pub trusted_proxies: Vec<Network> = vec![Network::loopback_v4(), Network::loopback_v6()],
    }
}

/// The files of a TLS listener.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

settings! {
    /// Limits of connections and requests.
    pub struct Http = "http" {
        /// Connections at one time, over all listeners. More have to wait for a free place.
        pub max_connections: usize = 20_000,
        /// The largest JSON body. Media has its own limit.
        pub max_body: Size = Size::mib(1),
        /// The largest request head (URL and headers).
        pub max_head: Size = Size::kib(32),
        /// A connection on which no complete request head arrives for this long is closed.
        pub idle_timeout: Span = Span::seconds(75),
        /// A request body has to arrive within this time.
        pub body_timeout: Span = Span::seconds(30),
        /// A TLS handshake has to finish within this time.
        pub handshake_timeout: Span = Span::seconds(10),
        /// On a stop, requests that are being answered get this long.
        pub shutdown_grace: Span = Span::millis(800),
    }
}

settings! {
    /// The local socket for administration. Who can open the file is an administrator.
    pub struct Admin = "admin" {
        /// Path of the unix socket; without it `admin.sock` in the data directory.
        pub socket: Option<PathBuf> = None,
    }
}

settings! {
    /// Figures for a monitoring system (Prometheus text format).
    pub struct Metrics = "metrics" {
        /// Address to serve `/metrics` on, best a loopback one. Off when it is not set.
        pub bind: Option<SocketAddr> = None,
    }
}

settings! {
    /// What is logged, and how. Logs go to standard error.
    pub struct Log = "log" {
        /// Level, or a list of `target=level`: error, warn, info, debug, trace.
        pub level: String = "info".to_owned(),
        /// `text` for people, `json` for machines.
        pub format: LogFormat = LogFormat::Text,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

settings! {
    /// Who may open an account.
    pub struct Registration = "registration" {
        /// `closed`: administrators create accounts. `token`: with a registration token. `open`: everybody.
        pub mode: RegistrationMode = RegistrationMode::Closed,
        /// With mode `token`: the tokens that may be used.
        pub tokens: Vec<String> = Vec::new(),
        /// Programs that know this secret may create accounts in every mode.
        pub shared_secret: Option<String> = None,
        /// Whether guests (accounts without a password) may be made.
        pub guests: bool = false,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RegistrationMode {
    Closed,
    Token,
    Open,
}

settings! {
    /// Logging in.
    pub struct Auth = "auth" {
        /// How long an access token lasts, for clients that can refresh theirs. For others it never ends.
        pub access_token_lifetime: Span = Span::seconds(60 * 60),
        /// How long a login token (to log in on another device) lasts.
        pub login_token_lifetime: Span = Span::seconds(120),
        /// The shortest password, in characters.
        pub password_min_length: usize = 8,
        /// After so many wrong passwords in a row for an account from one network, nobody there logs in to it by password
        /// for some time; others do, and who is logged in already goes on. 0: never.
        pub lockout_failures: u32 = 20,
        /// How long that is.
        pub lockout_time: Span = Span::seconds(10 * 60),
        /// How many devices one user may be logged in on. A login beyond that logs out the device that was not used for the
        /// longest time. 0: any number.
        pub max_devices: u32 = 300,
        /// The memory that hashing one password takes (argon2id). An eighth of the memory budget goes to hashing.
        pub password_memory: Size = Size::mib(19),
        /// How often that memory is gone through.
        pub password_passes: u32 = 2,
    }
}

settings! {
    /// Logging in by OAuth 2.0, next to passwords: clients send their users to pages of this server.
    pub struct Oauth = "oauth" {
        /// Whether clients may do that. The pages stand below `well_known.client_base_url`, which has to be set and to
        /// lead to this server (`/oauth2/`, `/account`, `/_matrix/`).
        pub enabled: bool = false,
    }
}

settings! {
    /// Rooms.
    pub struct Rooms = "rooms" {
        /// The version of new rooms when a client asks for none.
        pub default_version: RoomVersionId = RoomVersionId::V12,
    }
}

settings! {
    /// Uploaded files and thumbnails.
    pub struct Media = "media" {
        /// Where the files live; without it `media` in the data directory.
        pub dir: Option<PathBuf> = None,
        /// The largest upload.
        pub max_upload: Size = Size::mib(100),
        /// Pictures with more pixels than this get no thumbnail.
        pub max_thumbnail_pixels: u64 = 50_000_000,
        /// How many uploads one user may have announced without sending the file.
        pub max_pending_uploads: u32 = 10,
        /// How much the uploads of one user may take together; thumbnails do not count. 0: any amount.
        pub max_user_total: Size = Size::bytes(0),
        /// Uploads and new thumbnails are refused while less than this would be left free on the disk, besides the 64 MiB
        /// without which the store takes no writes: so that files never stop everything else.
        pub min_free: Size = Size::mib(512),
        /// Files uploaded before this time (milliseconds since 1970) can be fetched without a token, by clients and
        /// bridges that know nothing else. 0: none.
        pub unauthenticated_before_ts: u64 = 0,
        /// The sites that users get previews of, such as `https://wiki.example.org` (`:*` behind the host is any port):
        /// this server fetches their pages when somebody asks, and keeps their pictures. Empty: there are no previews. An
        /// isolated server only reaches private addresses, and a name that leads to the machine itself is not followed
        /// unless it is `localhost`.
        pub preview_hosts: Vec<Destination> = Vec::new(),
    }
}

settings! {
    /// Who is online.
    pub struct Presence = "presence" {
        /// Whether presence is kept and shown at all.
        pub enabled: bool = true,
    }
}

settings! {
    /// Finding users by name.
    pub struct UserDirectory = "user_directory" {
        /// Whether everybody finds everybody on this server. Otherwise people find those who are in a room with them, and
        /// those who are in public rooms.
        pub search_all_users: bool = false,
    }
}

settings! {
    /// Notifications for phones, which go through the gateways of the apps' makers.
    pub struct Push = "push" {
        /// The gateways that may be told of notifications, such as `https://push.example.org` (`:*` behind the host is
        /// any port). Empty: no notification leaves this server. An isolated server only reaches gateways at private
        /// addresses.
        pub gateways: Vec<Destination> = Vec::new(),
    }
}

settings! {
    /// Voice and video calls.
    pub struct Calls = "calls" {
        /// The TURN servers that clients may relay calls through, such as `turn:turn.example.org?transport=udp`.
        pub turn_uris: Vec<String> = Vec::new(),
        /// The secret shared with the TURN servers, from which each user gets a name and password for some time.
        pub turn_secret: Option<String> = None,
        /// How long such a name and password are good for.
        pub turn_lifetime: Span = Span::seconds(24 * 60 * 60),
        /// Without a shared secret: a name and a password that all users get.
        pub turn_username: Option<String> = None,
        /// The password that belongs to `turn_username`.
        pub turn_password: Option<String> = None,
        /// The URL of the service that lets users into LiveKit, for calls of many. It is told to clients as a MatrixRTC
        /// transport and in the well-known document.
        pub livekit_url: Option<String> = None,
    }
}

settings! {
    /// Messages of the server itself to its users, which administrators send (`skerry admin notice`). Each user has a room
    /// for them.
    pub struct ServerNotices = "server_notices" {
        /// The local part of the user who sends them, such as `notices`: an account that nobody logs in to. Without it
        /// there are none.
        pub sender: Option<String> = None,
        /// What that user is called.
        pub display_name: String = "Server Notices".to_owned(),
        /// What new rooms for them are called.
        pub room_name: String = "Server Notices".to_owned(),
    }
}

settings! {
    /// Bridges and bots that speak for many users.
    pub struct ApplicationServices = "application_services" {
        /// Their registration files (YAML), which the services write themselves. They are told of events at the URL in
        /// their file; an isolated server only reaches private addresses.
        pub files: Vec<PathBuf> = Vec::new(),
    }
}

settings! {
    /// Connections that this server opens. What they may go to is said where they are for.
    pub struct Outgoing = "outgoing" {
        /// A file with the certificates of the authorities to trust (PEM); without it the system's.
        pub ca_file: Option<PathBuf> = None,
    }
}

settings! {
    /// Other homeservers.
    pub struct Federation = "federation" {
        /// `isolated`: the server opens no connection to public addresses, and answers no other server. The only mode so
        /// far.
        pub mode: FederationMode = FederationMode::Isolated,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FederationMode {
    Isolated,
}

settings! {
    /// What `/.well-known/matrix/` tells clients and servers. Nothing is served for what is not set.
    pub struct WellKnown = "well_known" {
        /// The URL clients shall use, such as `https://matrix.example.org`.
        pub client_base_url: Option<String> = None,
        /// Host and port other servers shall use, such as `matrix.example.org:443`.
        pub server: Option<String> = None,
        /// A page with help.
        pub support_page: Option<String> = None,
        /// An administrator's Matrix identifier.
        pub support_matrix_id: Option<ruma::OwnedUserId> = None,
        /// An administrator's mail address.
        pub support_email: Option<String> = None,
        /// More keys for the client document, as they are (call services, tile servers).
        pub client_extra: serde_json::Map<String, serde_json::Value> = serde_json::Map::new(),
    }
}

settings! {
    /// A web client, served under the same addresses as the API. Off when no folder is set.
    pub struct Web = "web" {
        /// The folder with the client's files (such as Cinny's, Element's or Hydrogen's). They are read at the start and on
        /// SIGHUP. A `config.json` in it gives way to one that names this server: `well_known.client_base_url`, or else
        /// `https://` and the server name.
        pub dir: Option<PathBuf> = None,
        /// The path to serve it under.
        pub path: String = "/".to_owned(),
        /// More keys for the client's `config.json`, as they are. They win over ours.
        pub config_extra: serde_json::Map<String, serde_json::Value> = serde_json::Map::new(),
        /// Other places that the client may connect to, such as `https://livekit.example.org` for calls of many (`:*`
        /// behind the host is any port). Browsers keep it from all others.
        pub connect: Vec<Destination> = Vec::new(),
        /// A file (PEM) with the certificate of the authority that this server's own certificate is from. It is served at
        /// `/ca.crt` and `/ca.pem`, so that people can make their devices trust it; without a web client, a page at `/`
        /// tells them. Read at the start and on SIGHUP.
        pub authority: Option<PathBuf> = None,
    }
}

/// Paths that are never a web client's, whatever files it has: ours, and those of pages that other parts may bring.
pub const RESERVED_PATHS: [&str; 6] = ["/_matrix", "/_skerry", "/_synapse", "/.well-known", "/oauth2", "/account"];

impl Web {
    /// The path with a slash at both ends.
    pub fn base_path(&self) -> String {
        match self.path.trim_matches('/') {
            "" => "/".to_owned(),
            path => format!("/{path}/"),
        }
    }
}

settings! {
    /// How often one user (or one address, before a login) may do a thing: `per_second` on average, `burst` at once;
    /// `false` lifts the limit. Syncing is never limited.
    pub struct RateLimits = "rate_limits" {
        /// Attempts to log in.
        pub login: Limit = Limit::per_second(0.2, 20),
        /// New accounts.
        pub register: Limit = Limit::per_second(0.1, 10),
        /// Sending events.
        pub message: Limit = Limit::per_second(50.0, 200),
        /// Joining, knocking, leaving.
        pub join: Limit = Limit::per_second(5.0, 100),
        /// Inviting.
        pub invite: Limit = Limit::per_second(2.0, 100),
        /// Creating and upgrading rooms.
        pub create_room: Limit = Limit::per_second(1.0, 30),
        /// Sending messages to devices, such as the keys of conversations.
        pub to_device: Limit = Limit::per_second(50.0, 2_000),
        /// Uploading and fetching media.
        pub media: Limit = Limit::per_second(50.0, 500),
        /// Searching messages, people and the room directory.
        pub search: Limit = Limit::per_second(5.0, 50),
        /// Everything else that the specification calls rate limited.
        pub other: Limit = Limit::per_second(50.0, 500),
    }
}

/// A token bucket, or none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    Off,
    On { per_second: f64, burst: u32 },
}

impl Limit {
    pub const fn per_second(per_second: f64, burst: u32) -> Self {
        Self::On { per_second, burst }
    }
}

impl Config {
    /// The defaults for a server of this name.
    pub fn new(server_name: OwnedServerName) -> Self {
        Self {
            server_name,
            data_dir: default_data_dir(),
            memory_budget: default_memory_budget(),
            worker_threads: None,
            listeners: default_listeners(),
            http: Http::default(),
            admin: Admin::default(),
            metrics: Metrics::default(),
            log: Log::default(),
            registration: Registration::default(),
            auth: Auth::default(),
            oauth: Oauth::default(),
            rooms: Rooms::default(),
            media: Media::default(),
            presence: Presence::default(),
            user_directory: UserDirectory::default(),
            push: Push::default(),
            calls: Calls::default(),
            server_notices: ServerNotices::default(),
            application_services: ApplicationServices::default(),
            outgoing: Outgoing::default(),
            federation: Federation::default(),
            well_known: WellKnown::default(),
            web: Web::default(),
            rate_limits: RateLimits::default(),
        }
    }

    /// For showing: secrets become `(set)`.
    #[must_use]
    pub fn without_secrets(&self) -> Self {
        let hidden = "(set)".to_owned();
        let mut shown = self.clone();
        shown.registration.shared_secret = shown.registration.shared_secret.map(|_| hidden.clone());
        shown.calls.turn_secret = shown.calls.turn_secret.map(|_| hidden.clone());
        shown.calls.turn_password = shown.calls.turn_password.map(|_| hidden.clone());
        shown.registration.tokens.fill(hidden);
        shown
    }

    pub fn admin_socket(&self) -> PathBuf {
        self.admin.socket.clone().unwrap_or_else(|| self.data_dir.join("admin.sock"))
    }

    pub fn media_dir(&self) -> PathBuf {
        self.media.dir.clone().unwrap_or_else(|| self.data_dir.join("media"))
    }

    pub fn store_dir(&self) -> PathBuf {
        self.data_dir.join("store")
    }
}
