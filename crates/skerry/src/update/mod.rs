//! `skerry update`: bringing a release in from a file, approving, keeping and leaving it; and what the box does by itself at
//! each boot.
//!
//! Lives here: the verbs and their wiring. Not here: what is done (the `updater` crate), where things are (settings.rs), the
//! server and its data (host.rs), variables of the firmware (firmware.rs), the first reading of a file (checker.rs), what people are shown (show.rs).

mod checker;
mod firmware;
mod host;
mod settings;
mod show;

use std::fs::{File, TryLockError};
use std::io::{BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use homeserver::admin::client;
use homeserver::clock::Clock;
use homeserver::rng::Rng;
use http::Method;
use nix::sys::signal::{SigSet, Signal};
use serde_json::{Value, json};
use updater::{Error, FileDisk, Host as _, Journal, OsFolder, Settings, Step, Updater};

use checker::Believed;
use host::BoxHost;
use settings::BoxSettings;

#[derive(Args)]
pub(crate) struct UpdateArgs {
    /// How this box is set up.
    #[arg(
        long = "box",
        value_name = "FILE",
        global = true,
        default_value = "/usr/lib/skerry/appliance.toml",
        env = "SKERRY_BOX"
    )]
    settings: PathBuf,
    /// JSON instead of text.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// What runs, what the other slot holds, and what is going on.
    Status,
    /// Check a file to its last byte, and say what installing it would do.
    Plan { file: PathBuf },
    /// Check a file, write it into the slot that does not run, and start the box again with it, on trial.
    Install {
        file: PathBuf,
        /// Stop after the checks.
        #[arg(long)]
        dry_run: bool,
        /// Do not start the box again: the next start is the trial.
        #[arg(long)]
        no_reboot: bool,
        /// Who does this, for the history.
        #[arg(long, default_value = "console")]
        by: String,
    },
    /// Approve the release that waits, as a second person, and start the box again with it.
    Approve {
        version: String,
        /// Who does this. Not the one who installed it.
        #[arg(long)]
        by: String,
        /// Do not start the box again.
        #[arg(long)]
        no_reboot: bool,
    },
    /// Keep the release that is on trial.
    Commit,
    /// Throw away what is staged or on trial, or go back to the release in the other slot.
    Rollback {
        /// Do not start the box again.
        #[arg(long)]
        no_reboot: bool,
        #[arg(long, default_value = "console")]
        by: String,
    },
    /// What is asked of releases here besides their makers' signatures.
    Policy {
        /// Take back what images before this one asked for; what this one asks for stays.
        #[arg(long)]
        forget: bool,
        #[arg(long, default_value = "console")]
        by: String,
    },
    /// Everything that was done to this box, checked.
    History,
    /// At each start, before the server: do what is safe.
    Boot,
    /// Is the release that runs fit to stay?
    Health,
    /// The first reading of a file, as nobody (see checker.rs).
    #[command(hide = true)]
    CheckInput { believed: String },
}

/// A box, opened.
struct Opened {
    settings: BoxSettings,
    updater: Settings,
    booted: updater::Booted,
    disk: FileDisk,
    esp: OsFolder,
    state: OsFolder,
    host: BoxHost,
    /// Held as long as this is there.
    _only: Option<File>,
}

/// What a verb wants of the box.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Look,
    Change,
    /// Once nobody else does.
    ChangeAfterOthers,
}

impl Opened {
    fn new(path: &Path, access: Access) -> Result<Self> {
        let settings = BoxSettings::load(path)?;
        let (booted, factory) = settings.running()?;
        let disk = settings.disk()?;
        let trust = crate::bundle::believed(&settings.trust)
            .with_context(|| format!("{}: the root document of this box", settings.trust.display()))?;
        let updater = Settings {
            arch: settings::arch()?,
            tries: settings.tries,
            keep_tries: settings.keep_tries,
            trust,
            policy: settings.policy()?,
            factory,
        };
        let folder = |path: PathBuf| OsFolder::new(&path).with_context(|| path.display().to_string());
        let state = folder(settings.state.clone())?;
        let _only = only_one(&settings.state.join("lock"), access)?;
        Ok(Self {
            disk: FileDisk::open(&disk, access != Access::Look).with_context(|| disk.display().to_string())?,
            esp: folder(settings.esp.join("EFI/Linux"))?,
            state,
            host: BoxHost::new(&settings),
            settings,
            updater,
            booted,
            _only,
        })
    }

    fn updater(&self) -> Updater<'_> {
        Updater {
            disk: &self.disk,
            esp: &self.esp,
            state: &self.state,
            host: &self.host,
            settings: self.updater.clone(),
            booted: self.booted.clone(),
            now_s: Clock::system().now_ms() / 1000,
            chance: Rng::system().bytes(),
        }
    }

    /// Asks the box to start again.
    fn reboot(&self) -> Result<()> {
        self.call(&self.settings.reboot)
    }

    fn call(&self, command: &[String]) -> Result<()> {
        let Some((program, arguments)) = command.split_first() else { return Ok(()) };
        let status = Command::new(program).args(arguments).status().with_context(|| program.clone())?;
        if !status.success() {
            bail!("{program}: {status}");
        }
        Ok(())
    }
}

/// Two that change one box at once would write over each other's slot and journal.
fn only_one(path: &Path, access: Access) -> Result<Option<File>> {
    if access == Access::Look {
        return Ok(None);
    }
    let file = File::options().create(true).append(true).open(path).with_context(|| path.display().to_string())?;
    match access {
        Access::ChangeAfterOthers => file.lock()?,
        _ => match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                bail!("an update is being installed or taken back elsewhere: at another console, or from a stick")
            }
            tried => tried?,
        },
    }
    Ok(Some(file))
}

pub(crate) fn run(args: UpdateArgs) -> Result<ExitCode> {
    let access = match &args.verb {
        Verb::Status
        | Verb::Plan { .. }
        | Verb::Install { dry_run: true, .. }
        | Verb::Policy { forget: false, .. }
        | Verb::History
        | Verb::Health => Access::Look,
        Verb::Install { .. } | Verb::Approve { .. } | Verb::Rollback { .. } | Verb::Policy { .. } => Access::Change,
        Verb::Boot | Verb::Commit => Access::ChangeAfterOthers,
        Verb::CheckInput { believed } => return checker::run(believed),
    };
    let open = || Opened::new(&args.settings, access);
    match args.verb {
        Verb::CheckInput { .. } => {}
        Verb::Boot => return Ok(boot(&args.settings)),
        Verb::Health => return health(&args.settings),
        Verb::Status => show::tell(&show::status(&open()?.updater(), args.json)?),
        Verb::History => return history(&open()?, args.json),
        Verb::Policy { forget, by } => {
            let opened = open()?;
            if forget {
                opened.updater().forget_policy(&by)?;
            }
            print!("{}", show::policy(&opened.updater(), args.json)?);
        }
        Verb::Plan { file } | Verb::Install { file, dry_run: true, .. } => return plan(&open()?, &file, args.json),
        Verb::Install { file, no_reboot, by, .. } => return install(&open()?, &file, &by, args.json, !no_reboot),
        Verb::Approve { version, by, no_reboot } => {
            let opened = open()?;
            opened.updater().approve(&version, &by)?;
            let mut progress = show::Progress::new(args.json);
            arm(&opened.updater(), false, &mut progress)?;
            progress.end();
            return armed(&opened, args.json, !no_reboot);
        }
        Verb::Commit => {
            let opened = open()?;
            let kept = opened.updater().commit()?;
            let (word, text) =
                if kept { ("kept", "The new release stays.") } else { ("nothing", "No release was on trial.") };
            say(args.json, word, text);
        }
        Verb::Rollback { no_reboot, by } => {
            let opened = open()?;
            let reboot = opened.updater().rollback(&by)?;
            say(
                args.json,
                "rolled_back",
                if reboot { "The box goes back: it starts again." } else { "What was begun was thrown away." },
            );
            if reboot && !no_reboot {
                opened.reboot()?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn say(json: bool, word: &str, text: &str) {
    if json {
        show::tell(&format!("{}\n", json!({ "outcome": word, "text": text })));
    } else {
        show::tell(&format!("{text}\n"));
    }
}

fn refused(json: bool, error: &Error) -> ExitCode {
    if json {
        show::tell(&format!("{}\n", json!({ "outcome": "refused", "text": error.to_string() })));
    } else {
        show::tell(&format!("NOT DONE\n{error}\n"));
    }
    ExitCode::FAILURE
}

/// Opens a file and has it read where that can do no harm. Gives the file, or why it is not taken.
fn open_file(opened: &Opened, path: &Path, progress: &mut show::Progress) -> Result<Result<File, String>> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let updater = opened.updater();
    let journal = updater.journal()?;
    let believed = Believed::new(&updater.trust(&journal)?, updater.policy(&journal).site.as_ref());
    let report = |percent| progress.reached(Step::Check, percent, 100);
    Ok(match checker::first_reading(&file, &believed, report)? {
        None => Ok(file),
        Some(why) => Err(why),
    })
}

fn plan(opened: &Opened, file: &Path, json: bool) -> Result<ExitCode> {
    let mut progress = show::Progress::new(json);
    let file = open_file(opened, file, &mut progress)?;
    let mut report = |step, done, whole| progress.reached(step, done, whole);
    let plan = match file {
        Ok(file) => opened.updater().plan(BufReader::new(file), &mut report),
        Err(why) => Err(Error::Not(why)),
    };
    progress.end();
    match plan {
        Ok(plan) => show::tell(&show::plan(&plan, json)),
        Err(error) => return Ok(refused(json, &error)),
    }
    Ok(ExitCode::SUCCESS)
}

fn install(opened: &Opened, file: &Path, by: &str, json: bool, reboot: bool) -> Result<ExitCode> {
    let (updater, mut progress) = (opened.updater(), show::Progress::new(json));
    let file = open_file(opened, file, &mut progress)?;
    let mut report = |step, done, whole| progress.reached(step, done, whole);
    let plan = match file {
        Ok(file) => updater.stage(BufReader::new(file), by, &mut report),
        Err(why) => updater.refused(by, &why).and(Err(Error::Not(why))),
    };
    let plan = match plan {
        Ok(plan) => plan,
        Err(error) => {
            progress.end();
            return Ok(refused(json, &error));
        }
    };
    let waits = plan.needs_approval;
    let done = if waits { Ok(()) } else { arm(&updater, true, &mut progress) };
    progress.end();
    if let Err(error) = done {
        return Ok(refused(json, &error));
    }
    show::tell(&show::plan(&plan, json));
    if waits {
        let version = &plan.to.version;
        say(json, "staged", &format!("It waits for a second person: skerry update approve {version} --by NAME"));
        return Ok(ExitCode::SUCCESS);
    }
    armed(opened, json, reboot)
}

/// From where clients are told to wait, nothing ends this before they are served again or the release is armed: no key, no
/// line that hangs up.
fn arm(updater: &Updater<'_>, fresh: bool, progress: &mut show::Progress) -> Result<(), Error> {
    updater.arm(fresh, &mut |step, done, whole| {
        if step == Step::Arm {
            let mut signals = SigSet::empty();
            for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGTSTP] {
                signals.add(signal);
            }
            // If it cannot be, it goes on as it is.
            let _ = signals.thread_block();
        }
        progress.reached(step, done, whole);
    })
}

fn armed(opened: &Opened, json: bool, reboot: bool) -> Result<ExitCode> {
    say(json, "armed", "The release is installed. It is tried at the next start; until then clients wait.");
    if reboot {
        opened.reboot()?;
    }
    Ok(ExitCode::SUCCESS)
}

fn history(opened: &Opened, json: bool) -> Result<ExitCode> {
    let history = opened.updater().history()?;
    show::tell(&show::history(&history, json));
    Ok(if history.broken.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whatever goes wrong here, the server starts; silent, if anything might still have to be done to its data. Then clients
/// wait, and nobody loses what they were told is safe.
fn boot(path: &Path) -> ExitCode {
    match wake(path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("skerry update boot: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn wake(path: &Path) -> Result<()> {
    let settings = BoxSettings::load(path).map_err(|error| {
        let silent = BoxHost::new(&BoxSettings::default()).start_silent(true);
        silent.err().map_or(error, Into::into)
    })?;
    let host = BoxHost::new(&settings);
    host.start_silent(true)?;
    let opened = Opened::new(path, Access::ChangeAfterOthers).inspect_err(|_| {
        // Without the boot partition or the disk: the journal alone says whether anything is to be done.
        let journal = OsFolder::new(&settings.state).and_then(|state| Journal::load(&state));
        if let (Ok(journal), Ok((_, runs))) = (journal, settings.running())
            && journal.is_none_or(|journal| journal.may_serve(runs.security_version))
        {
            let _ = host.start_silent(false);
        }
    })?;
    let woken = opened.updater().wake()?;
    woken.said.iter().for_each(|line| show::tell(&format!("{line}\n")));
    if woken.reboot {
        opened.reboot()?;
    }
    if woken.trial {
        opened.call(&opened.settings.judge)?;
    }
    Ok(())
}

/// What is wrong.
enum Unfit {
    /// With this release, as far as can be told.
    Release(String),
    /// With the machine: another release would be no better off.
    Machine(String),
}

/// 0 if it is. A release on trial that is not leaves word for the one that comes after it. One that has proven itself is not
/// left for a full disk or the like, which would only take away what still works.
fn health(path: &Path) -> Result<ExitCode> {
    let settings = BoxSettings::load(path)?;
    let state = OsFolder::new(&settings.state).with_context(|| settings.state.display().to_string())?;
    let on_trial = Journal::load(&state)?.is_some_and(|journal| journal.state.checkpoint().is_some());
    let see_box = || Opened::new(path, Access::Look).map_err(|error| Unfit::Release(format!("{error:#}")));
    let fit = is_fit(&settings).and_then(|()| if on_trial { see_box().map(drop) } else { Ok(()) });
    let (why, counts) = match fit {
        Ok(()) => {
            show::tell("fit\n");
            return Ok(ExitCode::SUCCESS);
        }
        Err(Unfit::Release(why)) => (why, true),
        Err(Unfit::Machine(why)) => (why, on_trial),
    };
    show::tell(&format!("NOT FIT: {why}\n"));
    if on_trial {
        Opened::new(path, Access::Look)?.updater().complain(&why)?;
    } else if !counts {
        show::tell("This release goes on: another one would be no better off.\n");
    }
    Ok(if counts { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn is_fit(settings: &BoxSettings) -> Result<(), Unfit> {
    let host = BoxHost::new(settings);
    let clock = Clock::system();
    let until = clock.monotonic() + Duration::from_secs(settings.health_within_s);
    let ask = |method, path: &str| host.ask(method, path, None, Duration::from_secs(60));
    let release = |why: &str| Unfit::Release(why.to_owned());
    // A server that is still starting has time.
    let (status, answer) = loop {
        match ask(Method::GET, "/health") {
            Ok(Some(answer)) => break answer,
            Err(why) if clock.monotonic() > until => {
                return Err(release(&format!("the server does not answer: {why}")));
            }
            Ok(None) if clock.monotonic() > until => return Err(release("the server does not run")),
            _ => std::thread::sleep(Duration::from_millis(500)),
        }
    };
    if !status.is_success() {
        let reason = answer.get("reason").and_then(Value::as_str).unwrap_or("it does not say why");
        return Err(Unfit::Machine(format!("the server finds itself unfit: {reason}")));
    }
    match ask(Method::POST, "/maintenance/probe").map_err(Unfit::Release)? {
        Some((status, _)) if status.is_success() => {}
        Some((status, answer)) => {
            return Err(Unfit::Machine(format!("a test event does not make its way: {status} {answer}")));
        }
        None => return Err(release("the server went away")),
    }
    client::wait(client::get_here(&settings.health_url, Duration::from_secs(60))).map_err(Unfit::Release)?;
    let write = || -> std::io::Result<()> {
        let mut file = tempfile::tempfile_in(&settings.state)?;
        file.write_all(&[0; 4096])?;
        file.sync_all()
    };
    write().map_err(|error| Unfit::Machine(format!("the disk cannot be written: {error}")))
}
