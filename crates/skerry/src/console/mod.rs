//! `skerry console`: what an appliance shows on its screen and serial line instead of a login.
//!
//! Without a terminal of its own: lines in, lines out. A box that is not set up asks for what it needs (wizard.rs) or finds
//! it on a stick (orders.rs); later it shows its status and a menu (menu.rs). Not here: updates (`skerry update`), which
//! this calls.

mod files;
mod machine;
mod memory;
mod menu;
mod names;
mod orders;
mod papers;
#[cfg(test)]
mod power;
mod provision;
mod recovery;
#[cfg(test)]
mod served_tests;
mod setup;
mod site;
mod steps;
mod stick;
mod wizard;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufReader, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};

use self::files::Layout;
use self::machine::{Machine as _, ThisMachine};
use self::site::Site;
use self::wizard::Terminal;

#[derive(Args)]
pub(crate) struct ConsoleArgs {
    /// Do what a provisioning file on a stick says, once, and end.
    #[arg(long, conflicts_with_all = ["renew", "emergency"])]
    orders: bool,
    /// Renew the server's certificate if it is due, and end.
    #[arg(long, conflicts_with = "emergency")]
    renew: bool,
    /// Write down whom the server asks for the site's names, and end.
    #[arg(long, conflicts_with_all = ["orders", "renew", "emergency"])]
    names: bool,
    /// Say what failed, wait for half a minute, and end.
    #[arg(long)]
    emergency: bool,
}

pub(crate) fn run(args: &ConsoleArgs) -> Result<ExitCode> {
    let layout = Layout::of_the_box();
    let mut machine = ThisMachine { socket: layout.socket.clone() };
    match args {
        ConsoleArgs { orders: true, .. } => orders(&layout, &mut machine)?,
        ConsoleArgs { renew: true, .. } => {
            if steps::renew(&layout, &mut machine)? {
                say("the server has a new certificate");
            }
        }
        ConsoleArgs { names: true, .. } => {
            let servers = names::write(Path::new(names::STATE), Path::new(names::RESOLV_CONF))?;
            println!("skerry: name servers: {servers}");
        }
        ConsoleArgs { emergency: true, .. } => emergency(&mut machine),
        _ => converse(&layout, &mut machine)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Sticks show up some seconds after the kernel. What goes wrong with one keeps nothing else from being done.
fn orders(layout: &Layout, machine: &mut ThisMachine) -> Result<()> {
    const ROUNDS: u32 = 16;
    let _only = only_one()?;
    if site::put_back(layout)? {
        say("a change of settings was cut: the server has the old ones again");
        if let Err(why) = steps::restart_server(layout, machine) {
            say(&format!("{why:#}"));
        }
    }
    let mut seen = BTreeSet::new();
    for _ in 0..ROUNDS {
        orders::look(layout, machine, &mut seen, &mut |line| say(line));
        machine.pause();
    }
    // A first account that is still to be opened, whether or not the stick is still in.
    steps::finish(layout, machine)
}

/// To a console that may be gone.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "skerry: {line}");
}

/// No shell stands behind this: what can be done is to look, and to try again.
fn emergency(machine: &mut ThisMachine) {
    const TIME_TO_READ: Duration = Duration::from_secs(30);
    let failed = machine.systemctl(&["--failed", "--no-legend", "--plain", "--no-pager"]);
    say(&format!("this box did not start. What failed:\n{}", failed.unwrap_or_else(|why| why)));
    say(&format!("it restarts in {} seconds", TIME_TO_READ.as_secs()));
    std::thread::sleep(TIME_TO_READ);
}

fn converse(layout: &Layout, machine: &mut ThisMachine) -> Result<()> {
    let (input, output) = (BufReader::new(std::io::stdin()), std::io::stdout());
    let mut terminal = Terminal { input, output, echo };
    // No key ends this: an install that is under way would go on without anybody who sees it.
    set_line(LocalFlags::ISIG, false);
    terminal.say(&format!("\nSkerry {}", env!("CARGO_PKG_VERSION")))?;
    while !layout.is_set_up() {
        terminal.line("\nThis box is not set up yet. Press Enter to begin. ")?;
        let _only = match only_one() {
            Ok(lock) => lock,
            Err(why) => {
                terminal.say(&format!("  {why:#}"))?;
                continue;
            }
        };
        if layout.is_set_up() {
            break;
        }
        let setup = wizard::run(&mut terminal, &mut menu::site_papers)?;
        terminal.say("\n  one moment; the first start takes a while ...")?;
        match steps::set_up(&setup, &Site::default(), layout, machine) {
            Ok(done) => terminal.say(&format!("\nskerry: set up: {} administrator {}\n", done.url, done.username))?,
            Err(why) => terminal.say(&format!("  {why:#}"))?,
        }
        if recovery::is_missing(machine)
            && let Err(why) = recovery::hand_over(&mut terminal, machine)
        {
            terminal.say(&format!("  {why:#}"))?;
        }
    }
    if let Err(why) = steps::finish(layout, machine) {
        terminal.say(&format!("  {why:#}"))?;
    }
    menu::run(&mut terminal, layout, machine)
}

/// Two consoles, or a console and a stick, do not set up one box at once.
fn only_one() -> Result<Flock<File>> {
    let file = File::create("/run/skerry-console.lock").context("the console's lock")?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|_| anyhow::Error::msg("this box is being set up elsewhere: at another console, or from a stick"))
}

fn echo(on: bool) {
    set_line(LocalFlags::ECHO, on);
}

/// On a line that is no terminal there is nothing to turn on or off.
fn set_line(flag: LocalFlags, on: bool) {
    let terminal = std::io::stdin();
    let Ok(mut settings) = tcgetattr(&terminal) else { return };
    settings.local_flags.set(flag, on);
    let _ = std::io::stdout().flush();
    let _ = tcsetattr(&terminal, SetArg::TCSANOW, &settings);
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_console_comes_back_however_often_it_ends() {
        let unit = include_str!("../../../../systemd/skerry-console@.service");
        for line in ["Restart=always", "StartLimitIntervalSec=0", "KillMode=process"] {
            assert!(unit.lines().any(|other| other == line), "{line}");
        }
    }
}
