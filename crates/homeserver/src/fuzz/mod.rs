//! What a fuzzer drives: one function for each kind of bytes that come from outside. It must come back, whatever the
//! bytes are, and panics when an answer is wrong.
//!
//! The fuzzer itself is a workspace of its own (`tests/fuzz`), and so are the inputs that it found worth keeping; the
//! tests here replay them. Not here: the campaign of bad input against every endpoint (`tests/bad_input`), which needs
//! no luck to find what it looks for.

mod event;
mod filter;
mod media;
mod push_rules;
mod request;
mod sliding_sync;
#[cfg(test)]
mod tests;
mod world;

/// Takes any bytes.
pub type Target = fn(&[u8]);

/// Every target by its name: that of its binary, and of the folder of its inputs.
pub const TARGETS: [(&str, Target); 6] = [
    ("event", event::run),
    ("filter", filter::run),
    ("media", media::run),
    ("push_rules", push_rules::run),
    ("request", request::run),
    ("sliding_sync", sliding_sync::run),
];

/// Runs one input of the target of this name.
///
/// # Panics
/// If there is no such target, or something is wrong.
#[expect(clippy::panic, reason = "this is how a fuzzer is told")]
pub fn run(name: &str, input: &[u8]) {
    match TARGETS.iter().find(|(known, _)| *known == name) {
        Some((_, target)) => target(input),
        None => panic!("there is no target {name}"),
    }
}

/// Stands between the parts of an input that has several.
const BETWEEN: &[u8] = b"\n%%\n";

/// The parts of an input.
fn parts(input: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(input);
    std::iter::from_fn(move || {
        let whole = rest.take()?;
        let Some(at) = memchr::memmem::find(whole, BETWEEN) else { return Some(whole) };
        rest = whole.get(at + BETWEEN.len()..);
        whole.get(..at)
    })
}
