//! The first reading of a file that somebody has brought: in a process of its own that can do nothing but compute.
//!
//! The box's updater is root. So a child of the same program, which is nobody, may gain nothing, and cannot open anything,
//! reads the file first, to its last byte, and says whether it is good. Only then the updater looks at it, and only if the
//! head of the file is still the one that was checked; everything behind the head is verified once more, piece by piece.
//!
//! The child is given the file as its standard input, whom to believe as an argument, and answers with one line.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::os::fd::AsFd as _;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bundle::{Bundle, Digest, PublicKey, Refusal, Trust, head_digest};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Uid, geteuid, setgroups, setresgid, setresuid};
use serde::{Deserialize, Serialize};
use updater::Site;

/// Nobody owns nothing, on any Linux.
const NOBODY: u32 = 65_534;
/// Bytes of an answer at most.
const ANSWER: u64 = 16 * 1024;
/// Bytes of memory, and seconds of computing.
const MEMORY: u64 = 1 << 30;
const SECONDS: u64 = 3600;

/// Whom to believe.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Believed {
    /// The root document, Base64.
    root: String,
    site_keys: Vec<String>,
    site_threshold: u32,
}

/// A line of the child: how far it is, and in the end what it found.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Line {
    /// So many percent.
    Reached(u64),
    /// With the digest of the head.
    Good(Digest),
    Refused(String),
}

impl Believed {
    pub(super) fn new(trust: &Trust, site: Option<&Site>) -> Self {
        Self {
            root: STANDARD.encode(trust.root_bytes()),
            site_keys: site.iter().flat_map(|site| &site.keys).map(ToString::to_string).collect(),
            site_threshold: site.map_or(1, |site| site.threshold),
        }
    }

    fn trust(&self) -> Result<Trust> {
        let trust = Trust::new(&STANDARD.decode(&self.root)?)?;
        if self.site_keys.is_empty() {
            return Ok(trust);
        }
        let keys = self.site_keys.iter().map(|key| PublicKey::parse(key));
        let keys: Vec<PublicKey> = keys.collect::<Option<_>>().context("a key of the site")?;
        Ok(trust.with_site(&keys, self.site_threshold)?)
    }
}

/// Has the file checked; `report` hears of each percent. In words why it is refused; otherwise nothing.
///
/// # Errors
/// No child can be started, or the file cannot be read.
pub(super) fn first_reading(file: &File, believed: &Believed, mut report: impl FnMut(u64)) -> Result<Option<String>> {
    let mut command = Command::new(std::env::current_exe().context("this program")?);
    command.args(["update", "check-input"]).arg(serde_json::to_string(believed)?);
    command.env_clear().current_dir("/").stdin(Stdio::from(file.try_clone()?)).stdout(Stdio::piped());
    let mut child = command.spawn().context("the process that reads the file")?;
    let mut found = None;
    for line in child.stdout.take().into_iter().flat_map(|out| BufReader::new(out.take(ANSWER)).lines()) {
        match line.ok().and_then(|line| serde_json::from_str(&line).ok()) {
            Some(Line::Reached(percent)) => report(percent.min(100)),
            last => {
                found = last;
                break;
            }
        }
    }
    let ended = child.wait()?;
    let head = match found.filter(|_| ended.success()) {
        Some(Line::Good(head)) => head,
        Some(Line::Refused(why)) => return Ok(Some(plain(&why))),
        _ => {
            return Ok(Some(format!(
                "The file could not be read to its end (the process that read it has ended: {ended}). Do not use it."
            )));
        }
    };
    let same = head_digest(&mut &*file).is_ok_and(|now| now == head);
    Ok((!same).then(|| "The file changes while it is read: the stick is broken, or somebody's trick.".to_owned()))
}

/// Nothing that moves a terminal's cursor.
fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

/// The child.
pub(super) fn run(believed: &str) -> Result<ExitCode> {
    let believed: Believed = serde_json::from_str(believed)?;
    let file = File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    confine()?;
    let line = match read(&file, &believed.trust()?) {
        Ok(head) => Line::Good(head),
        Err(refusal) => Line::Refused(refusal.to_string()),
    };
    say(&line)?;
    Ok(ExitCode::SUCCESS)
}

fn say(line: &Line) -> Result<()> {
    println!("{}", serde_json::to_string(line)?);
    Ok(())
}

fn read(mut file: &File, trust: &Trust) -> Result<Digest, Refusal> {
    let whole = file.seek(SeekFrom::End(0))?.max(1);
    let mut bundle = Bundle::open(BufReader::new(file))?.judge(trust)?;
    let mut said = 0;
    bundle.verify(|bytes| {
        let percent = bytes.saturating_mul(100) / whole;
        if percent > said {
            said = percent;
            // Whoever does not listen gets an answer all the same.
            let _ = say(&Line::Reached(percent));
        }
    })?;
    head_digest(&mut file)
}

/// From here on: nobody, who may gain nothing; no new descriptors and with them no file, socket or other program's output;
/// nothing written to a disk, no trace of memory, bounded memory and time.
fn confine() -> Result<()> {
    if geteuid().is_root() {
        setgroups(&[])?;
        setresgid(Gid::from_raw(NOBODY), Gid::from_raw(NOBODY), Gid::from_raw(NOBODY))?;
        setresuid(Uid::from_raw(NOBODY), Uid::from_raw(NOBODY), Uid::from_raw(NOBODY))?;
    }
    prctl::set_no_new_privs()?;
    prctl::set_dumpable(false)?;
    for (resource, most) in [
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_FSIZE, 0),
        (Resource::RLIMIT_NOFILE, 0),
        (Resource::RLIMIT_AS, MEMORY),
        (Resource::RLIMIT_CPU, SECONDS),
    ] {
        setrlimit(resource, most, most)?;
    }
    Ok(())
}
