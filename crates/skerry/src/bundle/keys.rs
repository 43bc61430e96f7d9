//! Keys that sign, in files that are sealed with a passphrase (Argon2id, ChaCha20-Poly1305).
//!
//! Lives here: making, sealing and opening. Not here: what is signed.

use std::fs::File;
use std::io::{BufRead as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use argon2::{Algorithm, Argon2, Params, Version};
use bundle::{PublicKey, Signer};
use clap::Args;
use homeserver::rng::Rng;
use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};

#[derive(Args)]
pub(super) struct PassphraseArgs {
    /// Take the passphrase from the first line of this file instead of asking.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

/// A key file, JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    public: PublicKey,
    memory_kib: u32,
    passes: u32,
    salt: Vec<u8>,
    nonce: [u8; NONCE_LEN],
    /// The seed and its tag.
    sealed: Vec<u8>,
}

const MEMORY_KIB: u32 = 256 * 1024;
const PASSES: u32 = 3;
/// More than this in a file is not ours, and would only cost memory and time.
const MAX_MEMORY_KIB: u32 = 1024 * 1024;
const MAX_PASSES: u32 = 16;
const MIN_PASSPHRASE: usize = 12;

/// A new key in a new file.
pub(super) fn make(path: &Path, passphrase: &PassphraseArgs) -> Result<PublicKey> {
    let passphrase = ask(passphrase, true)?;
    let rng = Rng::system();
    let (mut seed, salt, nonce): ([u8; 32], [u8; 16], [u8; NONCE_LEN]) = (rng.bytes(), rng.bytes(), rng.bytes());
    let public = Signer::from_seed(&seed).and_then(|signer| signer.public()).context("no key came of it")?;
    let mut sealed = seed.to_vec();
    seed.fill(0);
    let key = key(&passphrase, &salt, MEMORY_KIB, PASSES)?;
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(public.0), &mut sealed)
        .map_err(|_| anyhow!("the key could not be sealed"))?;
    let file = Sealed { public, memory_kib: MEMORY_KIB, passes: PASSES, salt: salt.to_vec(), nonce, sealed };
    let mut out = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| path.display().to_string())?;
    out.write_all((serde_json::to_string(&file)? + "\n").as_bytes())?;
    out.sync_all()?;
    Ok(public)
}

pub(super) fn public(path: &Path) -> Result<PublicKey> {
    Ok(read(path)?.public)
}

/// The key in a file, for somebody who knows its passphrase.
pub(super) fn open(path: &Path, passphrase: &PassphraseArgs) -> Result<Signer> {
    let Sealed { public, memory_kib, passes, salt, nonce, mut sealed } = read(path)?;
    if memory_kib > MAX_MEMORY_KIB || passes > MAX_PASSES {
        bail!("{}: this is not a key file of ours", path.display());
    }
    let key = key(&ask(passphrase, false)?, &salt, memory_kib, passes)?;
    let seed = key
        .open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(public.0), &mut sealed)
        .map_err(|_| anyhow!("the passphrase is wrong, or the file is damaged"))?;
    let seed = <[u8; 32]>::try_from(&*seed).context("the key is not one")?;
    Signer::from_seed(&seed).filter(|signer| signer.public() == Some(public)).context("the key is not one")
}

fn read(path: &Path) -> Result<Sealed> {
    serde_json::from_str(&super::read_text(path)?)
        .with_context(|| format!("{}: this is not a key file", path.display()))
}

fn key(passphrase: &str, salt: &[u8], memory_kib: u32, passes: u32) -> Result<LessSafeKey> {
    let params = Params::new(memory_kib, passes, 1, Some(32)).map_err(|error| anyhow!("{error}"))?;
    let mut bytes = [0; 32];
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(passphrase.as_bytes(), salt, &mut bytes)
        .map_err(|error| anyhow!("{error}"))?;
    let key = UnboundKey::new(&CHACHA20_POLY1305, &bytes).map_err(|_| anyhow!("no key came of it"))?;
    Ok(LessSafeKey::new(key))
}

fn ask(args: &PassphraseArgs, new: bool) -> Result<String> {
    let passphrase = match &args.passphrase_file {
        Some(path) => super::read_text(path)?.lines().next().unwrap_or_default().to_owned(),
        None => {
            let first = unseen("passphrase: ")?;
            if new && unseen("once more: ")? != first {
                bail!("these are two");
            }
            first
        }
    };
    if new && passphrase.chars().count() < MIN_PASSPHRASE {
        bail!("a passphrase has at least {MIN_PASSPHRASE} characters");
    }
    Ok(passphrase)
}

/// A line from the terminal that is not shown while it is typed.
fn unseen(prompt: &str) -> Result<String> {
    let terminal = File::options().read(true).write(true).open("/dev/tty").context("there is no terminal to ask at")?;
    let before = tcgetattr(&terminal)?;
    let mut quiet = before.clone();
    quiet.local_flags.remove(LocalFlags::ECHO);
    (&terminal).write_all(prompt.as_bytes())?;
    tcsetattr(&terminal, SetArg::TCSAFLUSH, &quiet)?;
    let mut line = String::new();
    let read = std::io::BufReader::new(&terminal).read_line(&mut line);
    tcsetattr(&terminal, SetArg::TCSAFLUSH, &before)?;
    (&terminal).write_all(b"\n")?;
    read?;
    Ok(line.trim_end_matches('\n').to_owned())
}
