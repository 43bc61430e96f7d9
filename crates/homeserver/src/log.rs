//! Logging to standard error, for people or for machines.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::{Log, LogFormat};

/// Libraries that tell their every step at `info`. The settings have the last word.
const QUIET: &str = "ruma_state_res=warn,ruma_signatures=warn";

/// Sets the process' logger. Fails on a level that cannot be read, and when there is a logger already.
pub fn init(settings: &Log) -> Result<(), String> {
    let filter =
        EnvFilter::try_new(format!("{QUIET},{}", settings.level)).map_err(|cause| format!("log.level: {cause}"))?;
    let registry = tracing_subscriber::registry().with(filter);
    let set = match settings.format {
        LogFormat::Text => {
            let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
            let text = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colours);
            registry.with(text).try_init()
        }
        LogFormat::Json => {
            registry.with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr).json()).try_init()
        }
    };
    set.map_err(|cause| cause.to_string())
}
