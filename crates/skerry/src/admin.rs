//! `skerry admin`: requests to a running server over its socket.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand};
use homeserver::admin::client;
use http::Method;
use serde_json::Value;

use crate::SettingsArgs;

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
}

/// One request.
struct Call {
    method: Method,
    path: String,
    body: Option<Value>,
    within: Duration,
}

impl AdminVerb {
    fn call(self) -> Result<Call> {
        const SOON: Duration = Duration::from_secs(10);
        const LATE: Duration = Duration::from_secs(24 * 3600);
        let call = |method, path: &str, body, within| Ok(Call { method, path: path.to_owned(), body, within });
        match self {
            Self::Health => call(Method::GET, "/health", None, SOON),
            Self::Doctor => call(Method::GET, "/doctor", None, LATE),
            Self::Compact => call(Method::POST, "/compact", None, LATE),
        }
    }
}

/// Prints the answer. The exit code is 1 when the server said no, or that it is not well.
pub(crate) fn run(args: AdminArgs) -> Result<ExitCode> {
    let socket = match args.socket {
        Some(socket) => socket,
        None => args.settings.load()?.admin_socket(),
    };
    let Call { method, path, body, within } = args.verb.call()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(client::call(&socket, method, &path, body.as_ref(), within));
    let (status, answer) = answer.map_err(anyhow::Error::msg)?;
    println!("{}", serde_json::to_string_pretty(&answer)?);
    let well = status.is_success() && answer.get("ok") != Some(&Value::Bool(false));
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
