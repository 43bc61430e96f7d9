//! Where the box stands: one small file, replaced in one step at every transition.
//!
//! Lives here: the states and the file. Not here: what to do in which state (decide.rs).
//!
//! Two releases read and write this file: a trial that fails leaves it to the one before. So fields of later releases are
//! passed over, and each new field has a default. Another state, or another meaning, is another format; a release may
//! write one only if the release before it reads it.

use std::io;

use bundle::{Digest, Image, Manifest, Store};
use serde::{Deserialize, Serialize};

use crate::folder::Folder;
use crate::history::Head;
use crate::policy::Policy;

const FILE: &str = "state.json";
const FORMAT: u32 = 1;
const LARGEST: usize = 1024 * 1024;

/// What the box knows about its releases.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    pub format: u32,
    pub state: State,
    /// The release that counts: it runs, or it is what a trial that fails goes back to.
    pub running: Release,
    /// What the other slot holds, while it can be booted.
    pub other: Option<Release>,
    /// The lowest security version that may be installed.
    pub floor: u64,
    /// The newest root document that was followed to.
    pub root: Option<String>,
    /// The newest release that this box has ever seen a good file of.
    pub newest: Option<Newest>,
    /// How many installations were begun.
    #[serde(default)]
    pub attempts: u64,
    /// What the images so far asked of a release besides its makers' signatures.
    #[serde(default)]
    pub policy: Policy,
    /// The last line of the history.
    pub log: Option<Head>,
    /// Why the last update did not come to stay, in words.
    pub failure: Option<String>,
    /// How often in a row the box went forward again by itself to a release that had not come up.
    #[serde(default)]
    pub returns: u32,
}

/// A release, as much of it as matters here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    pub version: String,
    pub security_version: u64,
    /// The formats of the database that it reads.
    pub store: Store,
    /// What it consists of; not known of the one that the box was made with.
    pub image: Option<Image>,
}

/// The newest release that was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Newest {
    pub version: String,
    /// When it was made, in seconds since 1970.
    pub built_s: u64,
}

/// A step of an update. The comments say what is safe to do for whoever wakes up in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Nothing is going on. Safe: nothing to do but to tidy up.
    Idle,
    /// The slot that does not run is being written, or waits to be armed. Nothing boots it. Safe: to throw it away, or, if
    /// it is whole, to leave it waiting.
    Staged { to: Release, whole: bool, by: String, approved_by: Option<String> },
    /// The checkpoint is taken, the boot entry is about to be there, or is. Safe: to see which release was booted.
    Armed { to: Release, checkpoint: String },
    /// The new release was booted and has not proven itself. Safe: to go on trying while it runs; to fall back when the old
    /// one runs.
    Trial {
        to: Release,
        checkpoint: String,
        /// How often it has come up so far. The boot loader counts, too, where firmware lets it.
        #[serde(default)]
        starts: u32,
    },
    /// The old release is to stay. Safe: to put the data back and to throw the new one away, again if need be.
    Fallback { from: Release, checkpoint: Option<String>, reason: Reason },
}

/// Why a release was left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The power went before the boot entry was there.
    Interrupted,
    /// The entry was there; the boot loader took another.
    NotChosen,
    /// It was tried as often as it may be.
    DidNotStart { tries: u32 },
    /// It ran, and found itself unfit.
    Unfit { what: String },
    /// Somebody wanted it.
    Asked { by: String },
    /// One that another release has written down.
    #[serde(untagged)]
    Other(serde_json::Value),
}

impl Journal {
    /// That of a box which has never been updated.
    pub fn new(running: Release) -> Self {
        let floor = running.security_version;
        Self {
            format: FORMAT,
            state: State::Idle,
            running,
            other: None,
            floor,
            root: None,
            newest: None,
            attempts: 0,
            policy: Policy::default(),
            log: None,
            failure: None,
            returns: 0,
        }
    }

    /// The journal, or nothing if there is none yet.
    ///
    /// # Errors
    /// It cannot be read, or is of another format.
    pub fn load(state: &dyn Folder) -> io::Result<Option<Self>> {
        let Some(bytes) = state.load(FILE, LARGEST)? else { return Ok(None) };
        let bad = |why: String| io::Error::other(format!("the updater's journal (state.json): {why}"));
        let journal: Self = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
        if journal.format != FORMAT {
            return Err(bad(format!("it is of format {}", journal.format)));
        }
        Ok(Some(journal))
    }

    /// Whether a release that is not on trial may serve: not while the data is another release's, or is to be put back, and
    /// not where it opens holes that were closed.
    pub fn may_serve(&self, security_version: u64) -> bool {
        matches!(self.state, State::Idle | State::Staged { .. }) && security_version >= self.floor
    }

    /// Durable when it returns; before that the old one is.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn store(&self, state: &dyn Folder) -> io::Result<()> {
        let bytes = serde_json::to_vec(self).map_err(io::Error::from)?;
        state.replace(FILE, &bytes)
    }
}

impl Release {
    /// What a signed release says of itself for this machine's image.
    pub fn of(manifest: &Manifest, image: &Image) -> Self {
        Self {
            version: manifest.version.clone(),
            security_version: manifest.security_version,
            store: manifest.store,
            image: Some(image.clone()),
        }
    }

    pub fn root_hash(&self) -> Option<Digest> {
        self.image.as_ref().map(|image| image.root_hash)
    }
}

impl State {
    /// For people and scripts: one word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Staged { whole: false, .. } => "writing",
            Self::Staged { .. } => "staged",
            Self::Armed { .. } => "armed",
            Self::Trial { .. } => "trial",
            Self::Fallback { .. } => "fallback",
        }
    }

    /// The release that is on its way in or out.
    pub fn release(&self) -> Option<&Release> {
        match self {
            Self::Idle => None,
            Self::Staged { to, .. } | Self::Armed { to, .. } | Self::Trial { to, .. } => Some(to),
            Self::Fallback { from, .. } => Some(from),
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Interrupted => f.write_str("the power went before the switch; nothing was lost"),
            Self::NotChosen => f.write_str("the boot loader did not take it"),
            Self::DidNotStart { tries } => write!(f, "it did not come up in {tries} tries"),
            Self::Unfit { what } => write!(f, "it came up, but: {what}"),
            Self::Asked { by } => write!(f, "{by} asked for it"),
            Self::Other(what) => write!(f, "another release knows why: {what}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::folder::OsFolder;

    #[test]
    fn what_a_later_release_has_added_is_passed_over() {
        let part =
            json!({ "bytes": 1, "sha256": Digest::of(b""), "chunks": 1, "index_sha256": Digest::of(b""), "new": 1 });
        let release = |version: &str| {
            json!({
                "version": version, "security_version": 1, "store": { "oldest": 1, "newest": 1, "new": 1 }, "new": { "new": 1 },
                "image": { "root": part, "verity": part, "kernel": part, "root_hash": Digest::of(b""), "new": [1] },
            })
        };
        let dir = tempfile::tempdir().unwrap();
        let folder = OsFolder::new(dir.path()).unwrap();
        let load = |state: serde_json::Value| {
            let future = json!({
                "format": 1, "state": state, "running": release("1"), "other": null, "floor": 1, "root": null,
                "newest": { "version": "2", "built_s": 1, "new": 1 }, "attempts": 1, "failure": null, "new": "new",
                "log": { "number": 1, "digest": Digest::of(b""), "new": 1 },
            });
            folder.replace(FILE, future.to_string().as_bytes()).unwrap();
            let journal = Journal::load(&folder).unwrap().unwrap();
            journal.store(&folder).unwrap();
            assert_eq!(Journal::load(&folder).unwrap().unwrap(), journal);
            journal.state
        };
        let trial = load(json!({ "trial": { "to": release("2"), "checkpoint": "c", "new": 1 } }));
        assert!(
            matches!(trial, State::Trial { to, .. } if to.version == "2" && to.root_hash() == Some(Digest::of(b"")))
        );
        for reason in
            [json!("melted"), json!({ "too_hot": { "degrees": 90 } }), json!({ "asked": { "by": "me", "new": 1 } })]
        {
            let fallback =
                json!({ "fallback": { "from": release("2"), "checkpoint": null, "reason": reason, "new": 1 } });
            let State::Fallback { reason: is, .. } = load(fallback) else { panic!("{reason}") };
            match is {
                Reason::Other(is) => assert_eq!(is, reason),
                is => assert_eq!(is, Reason::Asked { by: "me".into() }),
            }
        }
        // What is missing is as it was before anybody wrote it.
        let old = json!({ "format": 1, "state": "idle", "running": release("1"), "floor": 1 });
        folder.replace(FILE, old.to_string().as_bytes()).unwrap();
        let journal = Journal::load(&folder).unwrap().unwrap();
        assert_eq!((journal.attempts, journal.log, journal.other), (0, None, None));
    }

    #[test]
    fn another_format_is_not_guessed_at() {
        let dir = tempfile::tempdir().unwrap();
        let folder = OsFolder::new(dir.path()).unwrap();
        let release =
            Release { version: "1".into(), security_version: 1, store: Store { oldest: 1, newest: 1 }, image: None };
        Journal { format: 2, ..Journal::new(release) }.store(&folder).unwrap();
        assert!(Journal::load(&folder).unwrap_err().to_string().contains("format 2"));
    }
}
