//! Root documents as files: writing the next one, and gathering the chain that bundles carry.
//!
//! A chain is a text file with one signed document in each line, the first root first.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use bundle::{PublicKey, Request, RequestKind, Role, Root, Signature, Signed, Trust};
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};

use super::{read_text, show, write_new};

#[derive(Subcommand)]
pub(super) enum Verb {
    /// Write the first root document, or the one after a chain.
    New(NewArgs),
    /// Write what signers of a root document have to sign.
    Request {
        document: PathBuf,
        #[arg(short, long)]
        out: PathBuf,
    },
    /// Put a signed root document at the end of a chain, in a new file.
    Add {
        /// The chain so far; none for the first document.
        #[arg(long)]
        chain: Option<PathBuf>,
        document: PathBuf,
        #[arg(long = "signature")]
        signatures: Vec<PathBuf>,
        #[arg(short, long)]
        out: PathBuf,
    },
    /// Check a chain, and say whom it ends with.
    Show { chain: PathBuf },
}

#[derive(Args)]
pub(super) struct NewArgs {
    /// The chain so far; none for the first document.
    #[arg(long)]
    chain: Option<PathBuf>,
    /// A public key (Base64) that may sign the next root.
    #[arg(long = "root-key", required = true, value_parser = public_key)]
    root_keys: Vec<PublicKey>,
    #[arg(long, default_value_t = 2)]
    root_threshold: u32,
    /// A public key that may sign releases.
    #[arg(long = "release-key", required = true, value_parser = public_key)]
    release_keys: Vec<PublicKey>,
    #[arg(long, default_value_t = 2)]
    release_threshold: u32,
    /// A public key that counts for nothing any more.
    #[arg(long = "revoke", value_parser = public_key)]
    revoked: Vec<PublicKey>,
    #[arg(short, long)]
    out: PathBuf,
}

/// A line of a chain.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    document: String,
    signatures: Vec<String>,
}

pub(super) fn run(verb: Verb) -> Result<()> {
    match verb {
        Verb::New(args) => {
            let root = next(&args)?;
            write_new(&args.out, &root.to_bytes())?;
            print!("{}", show::root(&root));
        }
        Verb::Request { document, out } => {
            let document = read_text(&document)?.into_bytes();
            Root::parse(&document)?;
            write_new(&out, Request { kind: RequestKind::Root, document }.to_text().as_bytes())?;
        }
        Verb::Add { chain, document, signatures, out } => {
            let mut roots = chain.as_deref().map(read_chain).transpose()?.unwrap_or_default();
            let signatures =
                signatures.iter().map(|path| Ok(Signature::parse(&read_text(path)?)?)).collect::<Result<_>>()?;
            roots.push(Signed { document: read_text(&document)?.into_bytes(), signatures });
            let root = last(&roots)?;
            write_new(&out, to_text(&roots)?.as_bytes())?;
            print!("{}", show::root(&root));
        }
        Verb::Show { chain } => print!("{}", show::root(&last(&read_chain(&chain)?)?)),
    }
    Ok(())
}

fn next(args: &NewArgs) -> Result<Root> {
    let before = args.chain.as_deref().map(|chain| last(&read_chain(chain)?)).transpose()?;
    let ids = |keys: &[PublicKey]| keys.iter().map(PublicKey::id).collect::<BTreeSet<_>>();
    let mut revoked = before.as_ref().map(|root| root.revoked.clone()).unwrap_or_default();
    revoked.extend(ids(&args.revoked));
    let keys: BTreeMap<_, _> = args.root_keys.iter().chain(&args.release_keys).map(|key| (key.id(), *key)).collect();
    let root = Root {
        format: 1,
        version: before.map_or(1, |root| root.version + 1),
        keys,
        root: Role { keys: ids(&args.root_keys), threshold: args.root_threshold },
        release: Role { keys: ids(&args.release_keys), threshold: args.release_threshold },
        revoked,
    };
    Root::parse(&root.to_bytes())?;
    Ok(root)
}

/// What the chain ends with, if every step of it is signed.
fn last(chain: &[Signed]) -> Result<Root> {
    let first = chain.first().context("the chain is empty")?;
    Ok(Trust::new(&first.document)?.follow(chain)?.root().clone())
}

/// The root document in a file, or the last one of the chain in it.
pub(crate) fn believed(path: &Path) -> Result<Vec<u8>> {
    let text = read_text(path)?;
    match text.lines().next().is_some_and(|line| serde_json::from_str::<Line>(line).is_ok()) {
        true => Ok(last(&read_chain(path)?)?.to_bytes()),
        false => Ok(text.into_bytes()),
    }
}

pub(super) fn read_chain(path: &Path) -> Result<Vec<Signed>> {
    let text = read_text(path)?;
    let parse = |line: &str| -> Result<Signed> {
        let line: Line = serde_json::from_str(line)?;
        let signatures = line.signatures.iter().map(|text| Ok(Signature::parse(text)?)).collect::<Result<_>>()?;
        Ok(Signed { document: line.document.into_bytes(), signatures })
    };
    let roots: Vec<Signed> =
        text.lines().map(parse).collect::<Result<_>>().with_context(|| path.display().to_string())?;
    if roots.is_empty() {
        bail!("{}: the chain is empty", path.display());
    }
    Ok(roots)
}

fn to_text(chain: &[Signed]) -> Result<String> {
    let mut text = String::new();
    for root in chain {
        let document = String::from_utf8(root.document.clone())?;
        let signatures = root.signatures.iter().map(Signature::to_text).collect();
        text += &serde_json::to_string(&Line { document, signatures })?;
        text.push('\n');
    }
    Ok(text)
}

fn public_key(text: &str) -> Result<PublicKey, String> {
    PublicKey::parse(text).ok_or_else(|| "a public key is 32 bytes in Base64".into())
}
