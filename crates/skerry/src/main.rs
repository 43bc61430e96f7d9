//! The one binary: arguments in, wiring, an exit code out. What is done lives in the libraries.
#![allow(clippy::print_stdout, reason = "a command line tool talks on standard output")]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

mod admin;
mod bundle;
mod console;
mod desk;
mod docs;
mod floor;
mod rtc;
mod update;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};
use homeserver::config::{self, Config, Overrides};
use homeserver::server::{self, RunOptions};

/// Few arenas and quick return of unused pages are set when jemalloc is built (`.cargo/config.toml`).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// A Matrix homeserver for networks with no way out.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Serve until SIGTERM or SIGINT. SIGHUP reads certificates anew.
    Serve {
        #[command(flatten)]
        settings: SettingsArgs,
        /// Write the bound addresses (JSON) into this file once the server answers.
        #[arg(long, value_name = "PATH")]
        ready_file: Option<PathBuf>,
        /// This release has not proven itself: start in maintenance, and change nothing that cannot be undone.
        #[arg(long, env = "SKERRY_TRIAL", value_parser = clap::builder::BoolishValueParser::new(), action = clap::ArgAction::SetTrue)]
        trial: bool,
    },
    /// Look at settings.
    Config {
        #[command(subcommand)]
        verb: ConfigVerb,
    },
    /// Administer a running server over its local socket.
    Admin {
        #[command(flatten)]
        args: admin::AdminArgs,
    },
    /// Make, sign and check update files.
    Bundle {
        #[command(flatten)]
        args: bundle::BundleArgs,
    },
    /// The appliance's console: first set-up, status, menu.
    Console {
        #[command(flatten)]
        args: console::ConsoleArgs,
    },
    /// The floor of the appliance's clock.
    Clock {
        #[command(flatten)]
        args: floor::ClockArgs,
    },
    /// Install releases from files, and keep or leave them.
    Update {
        #[command(flatten)]
        args: update::UpdateArgs,
    },
    /// Print generated documents.
    Docs {
        #[arg(value_enum)]
        document: docs::Document,
    },
}

#[derive(Subcommand)]
enum ConfigVerb {
    /// Say whether the settings are good.
    Check(SettingsArgs),
    /// Print the settings as they are after file, environment and flags.
    Show(SettingsArgs),
    /// Print the reference (Markdown).
    Reference,
    /// Print an example file (TOML).
    Example,
}

/// Where settings come from.
#[derive(Args, Clone)]
struct SettingsArgs {
    /// The settings file.
    #[arg(short, long, value_name = "FILE", env = "SKERRY_CONFIG")]
    config: Option<PathBuf>,
    /// Set one value: `section.key=value`.
    #[arg(short, long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl SettingsArgs {
    fn load(&self) -> Result<Config> {
        let environment = std::env::vars().filter(|(name, _)| name.starts_with("SKERRY_")).collect();
        let overrides = Overrides { file: self.config.clone(), environment, flags: self.set.clone() };
        Ok(Config::load(&overrides)?)
    }
}

fn main() -> ExitCode {
    match dispatch(Cli::parse().verb) {
        Ok(code) => code,
        Err(error) => {
            // Nobody may be there to read it.
            let _ = writeln!(std::io::stderr(), "skerry: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Serve { settings, ready_file, trial } => {
            let sockets = handed_over()?;
            serve(settings.load()?, RunOptions { trial, ready_file, sockets })?;
        }
        Verb::Config { verb } => config_verb(verb)?,
        Verb::Admin { args } => return admin::run(args),
        Verb::Bundle { args } => return bundle::run(args),
        Verb::Console { args } => return console::run(&args),
        Verb::Clock { args } => return floor::run(&args),
        Verb::Update { args } => return update::run(args),
        Verb::Docs { document } => print!("{}", document.text()),
    }
    Ok(ExitCode::SUCCESS)
}

/// The sockets that a service manager opened for this process (systemd's `LISTEN_FDS`).
fn handed_over() -> Result<Vec<std::net::TcpListener>> {
    let mut given = listenfd::ListenFd::from_env();
    let sockets = (0..given.len()).map(|at| given.take_tcp_listener(at).map(Option::into_iter));
    Ok(sockets.collect::<std::io::Result<Vec<_>>>().context("LISTEN_FDS")?.into_iter().flatten().collect())
}

fn serve(config: Config, options: RunOptions) -> Result<()> {
    homeserver::log::init(&config.log).map_err(anyhow::Error::msg)?;
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.enable_all().thread_name("skerry");
    if let Some(threads) = config.worker_threads {
        runtime.worker_threads(threads.get());
    }
    let runtime = runtime.build().context("the runtime could not be built")?;
    let outcome = runtime.block_on(server::run(config, options));
    // What blocks in the background must not hold up the end; the store is closed by its own destructor.
    runtime.shutdown_timeout(std::time::Duration::from_millis(100));
    Ok(outcome?)
}

fn config_verb(verb: ConfigVerb) -> Result<()> {
    match verb {
        ConfigVerb::Check(settings) => {
            let config = settings.load()?;
            println!("good: {}", config.server_name);
        }
        ConfigVerb::Show(settings) => {
            println!("{}", serde_json::to_string_pretty(&settings.load()?.without_secrets())?)
        }
        ConfigVerb::Reference => print!("{}", config::reference()),
        ConfigVerb::Example => print!("{}", config::example()),
    }
    Ok(())
}
