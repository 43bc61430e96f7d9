//! The one file that updates a box without a network: what it contains, who must have signed it, how it is made,
//! checked, thinned and read. Pure: readers and writers come from the caller and stay on its thread; no clock, no chance,
//! no path.
//!
//! ```text
//! magic | manifest | envelope | contents | chunk indices | chunks (zstd) | bill of materials
//!           signed   roots and   what of
//!                    signatures  it is here
//! ```
//!
//! Only the manifest is signed. Everything behind the contents is reached from it by SHA-256: a chunk is verified before
//! it is decompressed, its plain bytes before they are given out, a partition once more when it is whole. The contents
//! say which chunks this copy of the file carries; who changes them only makes a file that is refused.
//!
//! Reading is in steps, and each step is a type: [`Bundle::open`] gives a file whose manifest is unread bytes;
//! [`Bundle::judge`] weighs the signatures against a [`Trust`] and gives [`Checked`], which knows the [`Manifest`] and gives
//! out partitions. What is wrong is a [`Refusal`], whose text is for the officer who stands before the box.
//!
//! Not here: slots, boot entries and journals (the updater), files and progress bars (the binary).
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

#[cfg(test)]
mod attacks;
mod build;
mod chunks;
mod digest;
mod format;
#[cfg(any(test, feature = "testing"))]
pub mod fuzz;
mod lanes;
pub mod limits;
mod manifest;
mod read;
mod refusal;
mod rewrite;
mod sign;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod trust;

pub use build::{ImageSource, Inputs, build};
pub use chunks::{Chunk, Cutter, cut};
pub use digest::{Digest, Hasher};
pub use format::{Contents, Envelope, Signature, Signed};
pub use lanes::{Feed, hashed};
pub use manifest::{Arch, Blob, Image, Manifest, Part, PartName, Store};
pub use read::{Bundle, Checked, Have, Missing, NoSlot, Report, ThisBox, head_digest};
pub use refusal::Refusal;
pub use rewrite::{Keep, rewrite};
pub use sign::{Request, RequestKind, Signer};
pub use trust::{KeyId, PublicKey, Role, Root, Trust};
