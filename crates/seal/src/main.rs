//! `skerry-seal`: finds, makes and opens the data's partition before it is mounted, and makes recovery keys.
#![allow(clippy::print_stdout, reason = "a command line tool talks on standard output")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use seal::open::{self, State};
use seal::person::Consoles;
use seal::tools::{self, ThisMachine, Tools as _};
use seal::{Failure, place};

/// What is left behind for those who come later: `device` is what is mounted, `state` a word.
const LEFT: &str = "/run/skerry-var";
const USAGE: &str = "\
usage: skerry-seal open                  makes the data ready to be mounted
       skerry-seal status                plain, sealed (`with-key`, if there is a recovery key), or refused
       skerry-seal recovery-key          makes a new recovery key and prints it; those before open nothing any more
       skerry-seal forget-recovery-key   takes it away
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["open"] => open(),
        ["status"] => {
            print(status());
            Ok(())
        }
        ["recovery-key"] => sealed().and_then(|partition| tools::recovery_key(&partition)).map(print),
        ["forget-recovery-key"] => sealed().and_then(|partition| tools::forget_recovery_key(&partition)),
        _ => Err(Failure(USAGE.to_owned())),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("skerry-seal: {why}");
            ExitCode::FAILURE
        }
    }
}

fn print(line: String) {
    println!("{line}");
}

fn open() -> Result<(), Failure> {
    let mut person = Consoles::new(place::consoles(Path::new("/sys"), Path::new("/dev")));
    let data = open::open(&mut ThisMachine, &mut person, &mut |line| println!("skerry: {line}"))?;
    let left = Path::new(LEFT);
    let device = left.join("device");
    let _ = fs::remove_file(&device);
    fs::create_dir_all(left)
        .and_then(|()| symlink(&data.device, &device))
        .and_then(|()| fs::write(left.join("state"), data.state.word()))
        .map_err(|cause| Failure(format!("{LEFT}: {cause}")))
}

fn state() -> String {
    fs::read_to_string(Path::new(LEFT).join("state")).unwrap_or_else(|_| State::Plain.word().to_owned())
}

fn status() -> String {
    let has_key = || ThisMachine.partition().ok()?.and_then(|partition| place::has_recovery_key(&partition).ok());
    let state = state();
    if state == State::Sealed.word() && has_key() == Some(true) { format!("{state} with-key") } else { state }
}

/// The partition, if the TPM opens it.
fn sealed() -> Result<PathBuf, Failure> {
    if state() != State::Sealed.word() {
        return Err(Failure("the data is not bound to this machine's TPM".to_owned()));
    }
    ThisMachine.partition()?.ok_or_else(|| Failure("there is no data".to_owned()))
}
