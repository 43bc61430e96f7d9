//! `skerry admin`: requests to a running server over its socket.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand};
use homeserver::admin::client;
use http::Method;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use crate::SettingsArgs;
use crate::desk::{self, MediaVerb, Page, ReportVerb, RoomVerb, ServiceVerb, TokenVerb};

#[derive(Args)]
pub(crate) struct AdminArgs {
    /// The server's socket; without it the settings say where it is.
    #[arg(long, value_name = "PATH", env = "SKERRY_ADMIN_SOCKET")]
    socket: Option<PathBuf>,
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(subcommand)]
    verb: AdminVerb,
}

#[derive(Subcommand)]
enum AdminVerb {
    /// Is the server fit to serve?
    Health,
    /// Examine the server and say what is wrong.
    Doctor,
    /// Compact the store.
    Compact,
    /// Accounts.
    User {
        #[command(subcommand)]
        verb: UserVerb,
    },
    /// Rooms.
    Room {
        #[command(subcommand)]
        verb: RoomVerb,
    },
    /// Uploads.
    Media {
        #[command(subcommand)]
        verb: MediaVerb,
    },
    /// Registration tokens.
    Token {
        #[command(subcommand)]
        verb: TokenVerb,
    },
    /// What users reported.
    Report {
        #[command(subcommand)]
        verb: ReportVerb,
    },
    /// Application services.
    Service {
        #[command(subcommand)]
        verb: ServiceVerb,
    },
    /// Tell a user something in the name of the server.
    Notice { user: String, text: String },
    /// How long work stands that was asked for.
    Tasks,
}

/// Without a password on standard input one is made and printed.
#[derive(Subcommand)]
enum UserVerb {
    /// Open an account.
    Create {
        username: String,
        /// The account may administer the server.
        #[arg(long)]
        admin: bool,
        /// Read the password from standard input.
        #[arg(long)]
        password_stdin: bool,
    },
    /// Set a new password, and end all sessions.
    ResetPassword {
        user: String,
        /// Read the password from standard input.
        #[arg(long)]
        password_stdin: bool,
        /// Leave the sessions alone.
        #[arg(long)]
        keep_sessions: bool,
    },
    /// List accounts.
    List {
        /// Only those with this in their name.
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        page: Page,
    },
    /// Show an account.
    Show { user: String },
    /// Make an account that of an administrator.
    Promote { user: String },
    /// Make it no longer one.
    Demote { user: String },
    /// Let nobody use an account; it keeps its sessions.
    Lock { user: String },
    /// Let them use it again.
    Unlock { user: String },
    /// Let a user read and leave, and nothing else.
    Suspend { user: String },
    /// Let them do everything again.
    Unsuspend { user: String },
    /// Redact what a user said.
    Redact { user: String },
    /// Close an account.
    Deactivate {
        user: String,
        /// Delete the profile, too.
        #[arg(long)]
        erase: bool,
    },
}

pub(crate) const SOON: Duration = Duration::from_secs(10);

/// One request.
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) body: Option<Value>,
    pub(crate) within: Duration,
}

impl AdminVerb {
    fn call(self) -> Result<Call> {
        const LATE: Duration = Duration::from_secs(24 * 3600);
        let call = |method, path: &str, body, within| Ok(Call { method, path: path.to_owned(), body, within });
        match self {
            Self::Health => call(Method::GET, "/health", None, SOON),
            Self::Doctor => call(Method::GET, "/doctor", None, LATE),
            Self::Compact => call(Method::POST, "/compact", None, LATE),
            Self::User { verb } => verb.call(),
            Self::Room { verb } => Ok(verb.call()),
            Self::Media { verb } => Ok(verb.call()),
            Self::Token { verb } => Ok(verb.call()),
            Self::Report { verb } => Ok(verb.call()),
            Self::Service { verb } => Ok(verb.call()),
            Self::Notice { user, text } => Ok(desk::notice(&user, &text)),
            Self::Tasks => Ok(desk::tasks()),
        }
    }
}

impl UserVerb {
    fn call(self) -> Result<Call> {
        let call = |path: String, body| Ok(Call { method: Method::POST, path, body: Some(body), within: SOON });
        match self {
            Self::Create { username, admin, password_stdin } => {
                let body = json!({ "username": username, "admin": admin, "password": password(password_stdin)? });
                call("/users".to_owned(), body)
            }
            Self::ResetPassword { user, password_stdin, keep_sessions } => {
                let body = json!({ "password": password(password_stdin)?, "log_out": !keep_sessions });
                call(format!("/users/{}/password", encoded(&user)), body)
            }
            Self::List { name, page } => Ok(desk::users(name.as_deref(), &page)),
            Self::Show { user } => Ok(desk::user(&user)),
            Self::Promote { user } => Ok(desk::set_user(&user, json!({ "admin": true }))),
            Self::Demote { user } => Ok(desk::set_user(&user, json!({ "admin": false }))),
            Self::Lock { user } => Ok(desk::set_user(&user, json!({ "locked": true }))),
            Self::Unlock { user } => Ok(desk::set_user(&user, json!({ "locked": false }))),
            Self::Suspend { user } => Ok(desk::suspend(&user, true)),
            Self::Unsuspend { user } => Ok(desk::suspend(&user, false)),
            Self::Redact { user } => Ok(desk::redact(&user)),
            Self::Deactivate { user, erase } => {
                call(format!("/users/{}/deactivate", encoded(&user)), json!({ "erase": erase }))
            }
        }
    }
}

/// The first line of standard input. Passwords do not belong on command lines, which everybody can see.
fn password(from_stdin: bool) -> Result<Option<String>> {
    if !from_stdin {
        return Ok(None);
    }
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    Ok(Some(line.trim_end_matches(['\r', '\n']).to_owned()))
}

pub(crate) fn encoded(segment: &str) -> String {
    utf8_percent_encode(segment, NON_ALPHANUMERIC).to_string()
}

/// Prints the answer. The exit code is 1 when the server said no, or that it is not well.
pub(crate) fn run(args: AdminArgs) -> Result<ExitCode> {
    let socket = match args.socket {
        Some(socket) => socket,
        None => args.settings.load()?.admin_socket(),
    };
    let Call { method, path, body, within } = args.verb.call()?;
    let answer = client::wait(client::call(&socket, method, &path, body.as_ref(), within));
    let (status, answer) = answer.map_err(anyhow::Error::msg)?;
    println!("{}", serde_json::to_string_pretty(&answer)?);
    let well = status.is_success() && answer.get("ok") != Some(&Value::Bool(false));
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
