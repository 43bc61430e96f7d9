//! Why a bundle is not taken, in words for the person on site.

use crate::digest::Digest;
use crate::manifest::{Arch, PartName};
use crate::trust::KeyId;

/// Why a bundle is not taken. Nothing was written to the box when one is given.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("This is not a Skerry update file. Take the file whose name ends in .skerry, and copy it as it is.")]
    NotABundle,
    #[error("The file ends too early: it was not copied completely. Copy it again.")]
    Truncated,
    #[error("The file has {extra} bytes behind its end. It was changed after it was made: do not use it.")]
    Padded { extra: u64 },
    #[error("The file is damaged or was changed: {what}. Copy it again; if that does not help, do not use it.")]
    Damaged { what: String },
    #[error(
        "The file is damaged or was changed: it says that {what} is larger than any update may have. Copy it again; if that does not help, do not use it."
    )]
    TooLarge { what: &'static str },
    #[error(
        "The file is of format {format}; this version reads format 1. Install an older release that reads it first."
    )]
    NewerFormat { format: u32 },

    #[error("The file does not say who may sign it: it has no root documents. Do not use it; ask where it came from.")]
    NoRoots,
    #[error(
        "Who may sign is not said as it should be (root document {version}: {why}). Do not use the file; ask where it came from."
    )]
    BadRoot { version: u64, why: String },
    #[error(
        "The file comes from somebody else, not from those whom this box believes: its root documents are others (from version {version} on). Do not use it."
    )]
    ForeignRoot { version: u64 },
    #[error(
        "The file would change who may sign updates, and too few have agreed to that: root document {version} is signed by {by} of the {needed} keys that root {judged_by} asks for. Do not use it; ask where it came from."
    )]
    RootNotSigned { version: u64, judged_by: u64, by: usize, needed: usize },
    #[error(
        "The release is signed by {by} of the {needed} keys that are needed{}. Do not use it; ask where it came from.",
        besides(.unknown, .revoked)
    )]
    NotSigned { by: usize, needed: usize, unknown: usize, revoked: Vec<KeyId> },
    #[error(
        "This site asks for signatures of its own: {by} of {needed} are there. Those who sign for the site have to sign the file first."
    )]
    NotCountersigned { by: usize, needed: usize },
    #[error(
        "A signature is false (of key {0}): the release was changed after it was signed, or the signature was made for another. Do not use it."
    )]
    FalseSignature(KeyId),

    #[error("The file has no image for this machine ({arch}); it has {}. Get the file for {arch}.", names(.there))]
    WrongArch { arch: Arch, there: Vec<Arch> },
    #[error(
        "The image for {arch}, which this machine needs, was taken out of this file. Get the whole file, or the one for {arch}."
    )]
    Stripped { arch: Arch },
    #[error(
        "Release {version} is older than what this box has run (security version {offered}, at least {floor} is needed). Going back would bring back holes that are closed. Get a newer release."
    )]
    Downgrade { version: String, offered: u64, floor: u64 },
    #[error(
        "This box must first be brought to security version {needed} (it has {have}): install a release in between."
    )]
    StepTooLarge { needed: u64, have: u64 },
    #[error(
        "Release {version} cannot read the data of this box (format {have}; it reads {oldest} to {newest}). Its notes say which release comes before it."
    )]
    StoreFormat { version: String, have: u32, oldest: u32, newest: u32 },
    #[error(
        "A thin update fits only boxes that run the release it was made from: {count} chunks of the {part} image are neither in this file nor on this box (the first is {first}). Use the full update."
    )]
    Missing { part: PartName, count: usize, first: Digest },

    #[error("The file cannot be read: {0}")]
    Io(#[from] std::io::Error),
}

impl Refusal {
    pub(crate) fn damaged(what: impl Into<String>) -> Self {
        Self::Damaged { what: what.into() }
    }
}

fn besides(unknown: &usize, revoked: &[KeyId]) -> String {
    let mut text = String::new();
    if *unknown > 0 {
        text += &format!("; {unknown} more by keys that may not sign releases");
    }
    for key in revoked {
        text += &format!("; one by key {key}, which was revoked");
    }
    text
}

fn names(arches: &[Arch]) -> String {
    arches.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}
