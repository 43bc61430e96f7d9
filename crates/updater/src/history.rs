//! What was done to this box: lines that name the one before them by its digest, each signed with the box's own key.
//!
//! Lives here: the lines, the key, and checking them. Whoever can write the folder and does not have the key can cut the
//! log short at most, and the journal, which names the last line, tells that. Times are shown, never judged.

use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bundle::Digest;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

use crate::folder::Folder;

const LOG: &str = "history.jsonl";
const KEY: &str = "box.key";
const CONTEXT: &[u8] = b"skerry history 1\n";
/// Bytes of the log at most. A line has some hundred.
const LARGEST: usize = 64 * 1024 * 1024;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// 1, 2, 3 ...
    pub number: u64,
    /// The digest of the line before, without its line end; of nothing for the first one.
    pub before: Digest,
    /// Seconds since 1970, as the box thought then.
    pub at_s: u64,
    pub event: Event,
    /// For people.
    pub text: String,
}

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    Refused,
    Staged,
    Approved,
    Armed,
    Trial,
    Committed,
    FellBack,
    RolledBack,
    Discarded,
    Noticed,
    /// One that only another release knows.
    #[serde(other)]
    Other,
}

/// The last line that the journal knows of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    pub number: u64,
    pub digest: Digest,
}

/// What the log says, and what is wrong with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    pub lines: Vec<Line>,
    /// In words, if it was changed.
    pub broken: Option<String>,
    head: Option<Head>,
    /// Bytes behind the last whole line: an addition that was cut.
    torn: bool,
    /// Bytes of the whole lines.
    whole: usize,
}

#[derive(Serialize, Deserialize)]
struct Signed {
    line: String,
    signature: String,
}

/// The key of the box. It is made when it is first needed, from 32 bytes of chance.
pub(crate) struct BoxKey(Ed25519KeyPair);

impl BoxKey {
    /// # Errors
    /// The folder cannot be read or written.
    pub(crate) fn load(state: &dyn Folder, chance: &[u8; 32]) -> io::Result<Self> {
        let seed = match state.load(KEY, 32)? {
            Some(seed) => seed,
            None => {
                state.replace(KEY, chance)?;
                chance.to_vec()
            }
        };
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed);
        pair.map(Self).map_err(|_| io::Error::other("the key of this box (box.key) is damaged"))
    }

    pub(crate) fn public(&self) -> Vec<u8> {
        self.0.public_key().as_ref().to_vec()
    }
}

/// Adds a line. What a power cut has left behind the last whole line goes.
///
/// # Errors
/// The folder cannot be read or written.
pub(crate) fn add(state: &dyn Folder, key: &BoxKey, at_s: u64, event: Event, text: &str) -> io::Result<Head> {
    let (history, bytes) = read(state, &key.public())?;
    if history.torn {
        state.replace(LOG, bytes.get(..history.whole).unwrap_or_default())?;
    }
    let before = history.head.map_or_else(|| Digest::of(b""), |head| head.digest);
    let number = history.head.map_or(1, |head| head.number + 1);
    let line = Line { number, before, at_s, event, text: text.to_owned() };
    let line = serde_json::to_string(&line).map_err(io::Error::from)?;
    let signature = STANDARD.encode(key.0.sign(&[CONTEXT, line.as_bytes()].concat()));
    let mut bytes = serde_json::to_vec(&Signed { line, signature }).map_err(io::Error::from)?;
    let digest = Digest::of(&bytes);
    bytes.push(b'\n');
    state.append(LOG, &bytes)?;
    state.sync()?;
    Ok(Head { number, digest })
}

/// Reads and checks everything. `known` is what the journal has seen last.
///
/// # Errors
/// The folder cannot be read.
pub(crate) fn check(state: &dyn Folder, public: &[u8], known: Option<Head>) -> io::Result<History> {
    let (mut history, bytes) = read(state, public)?;
    if let (None, Some(known)) = (&history.broken, known) {
        let lines = bytes.split(|byte| *byte == b'\n');
        let at = usize::try_from(known.number).ok().and_then(|number| number.checked_sub(1));
        let found = at.and_then(|at| lines.into_iter().nth(at)).map(Digest::of);
        if found != Some(known.digest) {
            history.broken = Some(format!("line {} is not there any more: the log was cut short", known.number));
        }
    }
    Ok(history)
}

fn read(state: &dyn Folder, public: &[u8]) -> io::Result<(History, Vec<u8>)> {
    let bytes = state.load(LOG, LARGEST)?.unwrap_or_default();
    let mut history = History::default();
    let pieces: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
    for (place, piece) in pieces.iter().enumerate() {
        let Some(text) = piece.strip_suffix(b"\n") else {
            history.torn = true;
            break;
        };
        match parse(text, history.head, public) {
            Ok(line) => {
                history.head = Some(Head { number: line.number, digest: Digest::of(text) });
                history.lines.push(line);
                history.whole += piece.len();
            }
            // The disk may have kept the end of an addition without its beginning.
            Err(_) if place + 1 == pieces.len() && text.contains(&0) => history.torn = true,
            Err(why) => {
                history.broken = Some(format!("line {}: {why}", place + 1));
                // Whoever adds to it goes on behind what is there, so that nothing is hidden.
                history.whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
                history.torn = history.whole < bytes.len();
                let last = pieces.iter().rev().find_map(|piece| piece.strip_suffix(b"\n")).unwrap_or_default();
                let number = pieces.len() as u64 - u64::from(history.torn);
                history.head = Some(Head { number, digest: Digest::of(last) });
                break;
            }
        }
    }
    Ok((history, bytes))
}

fn parse(text: &[u8], before: Option<Head>, public: &[u8]) -> Result<Line, &'static str> {
    let signed: Signed = serde_json::from_slice(text).map_err(|_| "it cannot be read")?;
    let signature = STANDARD.decode(&signed.signature).map_err(|_| "its signature cannot be read")?;
    let message = [CONTEXT, signed.line.as_bytes()].concat();
    let good = UnparsedPublicKey::new(&ED25519, public).verify(&message, &signature);
    good.map_err(|_| "its signature is not that of this box")?;
    let line: Line = serde_json::from_str(&signed.line).map_err(|_| "it cannot be read")?;
    let expected = before.map_or_else(|| (1, Digest::of(b"")), |head| (head.number + 1, head.digest));
    if (line.number, line.before) == expected { Ok(line) } else { Err("it does not follow the line before it") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::OsFolder;

    fn log() -> (tempfile::TempDir, OsFolder, BoxKey) {
        let dir = tempfile::tempdir().unwrap();
        let folder = OsFolder::new(dir.path()).unwrap();
        let key = BoxKey::load(&folder, &[7; 32]).unwrap();
        (dir, folder, key)
    }

    fn three(folder: &OsFolder, key: &BoxKey) -> Head {
        ["one", "two", "three"].map(|text| add(folder, key, 0, Event::Noticed, text).unwrap())[2]
    }

    #[test]
    fn lines_follow_one_another() {
        let (_dir, folder, key) = log();
        let head = three(&folder, &key);
        let history = check(&folder, &key.public(), Some(head)).unwrap();
        assert_eq!(history.lines.iter().map(|line| line.text.as_str()).collect::<Vec<_>>(), ["one", "two", "three"]);
        assert_eq!(history.broken, None);
        // The key stays the one that was made first.
        assert_eq!(BoxKey::load(&folder, &[8; 32]).unwrap().public(), key.public());
    }

    #[test]
    fn whoever_changes_a_line_is_seen() {
        let says = |change: fn(String) -> String| {
            let (_dir, folder, key) = log();
            let head = three(&folder, &key);
            let text = String::from_utf8(folder.load(LOG, LARGEST).unwrap().unwrap()).unwrap();
            folder.replace(LOG, change(text).as_bytes()).unwrap();
            check(&folder, &key.public(), Some(head)).unwrap().broken.unwrap_or_default()
        };
        assert_eq!(says(|text| text), "");
        assert!(says(|text| text.replace("two", "2wo")).contains("line 2: its signature"));
        assert!(
            says(|text| text.lines().filter(|line| !line.contains("two")).map(|l| format!("{l}\n")).collect())
                .contains("line 2: it does not follow")
        );
        assert!(says(|text| text.lines().take(2).map(|line| format!("{line}\n")).collect()).contains("cut short"));
        assert!(says(|_| String::new()).contains("cut short"));
    }

    #[test]
    fn what_a_later_release_has_written_belongs_to_it() {
        let (_dir, folder, key) = log();
        three(&folder, &key);
        let last = read(&folder, &key.public()).unwrap().0.head.unwrap();
        let line = serde_json::json!({
            "number": 4, "before": last.digest, "at_s": 0, "event": "melted", "text": "too hot", "degrees": 90,
        });
        let line = line.to_string();
        let signature = STANDARD.encode(key.0.sign(&[CONTEXT, line.as_bytes()].concat()));
        folder
            .append(LOG, format!("{}\n", serde_json::json!({ "line": line, "signature": signature })).as_bytes())
            .unwrap();
        add(&folder, &key, 0, Event::FellBack, "five").unwrap();
        let history = check(&folder, &key.public(), None).unwrap();
        assert_eq!((history.broken, history.lines.len(), history.lines[3].event), (None, 5, Event::Other));
    }

    #[test]
    fn an_addition_that_was_cut_is_forgotten() {
        let (_dir, folder, key) = log();
        let head = three(&folder, &key);
        folder.append(LOG, b"{\"line\":\"{\\\"num").unwrap();
        assert_eq!(check(&folder, &key.public(), Some(head)).unwrap().broken, None);
        add(&folder, &key, 0, Event::Armed, "four").unwrap();
        let history = check(&folder, &key.public(), Some(head)).unwrap();
        assert_eq!((history.lines.len(), history.broken), (4, None));
    }
}
