//! What is kept of a fuzzer's work, for the tests that run it again, and what a fuzzer starts from. Part of the tests of
//! each crate that has targets. Not here: what is run.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Runs what was kept of a target, and what once went wrong.
pub(crate) fn replay(target: &str, run: impl Fn(&[u8])) {
    let mut count = 0;
    for name in [format!("corpus/{target}.pack"), format!("found/{target}.pack")] {
        let pack = std::fs::read(folder().join(&name)).unwrap_or_default();
        for input in unpack(&pack) {
            // What is printed last is what it was if the process ends.
            println!("{name}: {:?}", String::from_utf8_lossy(&input[..input.len().min(300)]));
            run(input);
            count += 1;
        }
    }
    assert!(count >= 5, "only {count} inputs of {target}");
}

/// Writes the examples that a target starts from, if `cargo xtask fuzz` asks for them, and the words they are made of.
pub(crate) fn offer(target: &str, inputs: &[Vec<u8>]) {
    let Some(folder) = std::env::var_os("FUZZ_SEEDS") else { return };
    let folder = Path::new(&folder).join(target);
    std::fs::create_dir_all(&folder).unwrap();
    for (nr, input) in inputs.iter().enumerate() {
        std::fs::write(folder.join(format!("seed-{nr}")), input).unwrap();
    }
    std::fs::write(folder.with_extension("dict"), dictionary(inputs)).unwrap();
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz")
}

/// The inputs in a pack: each after a line with its length.
fn unpack(mut pack: &[u8]) -> Vec<&[u8]> {
    let mut inputs = Vec::new();
    while !pack.is_empty() {
        let end = pack.iter().position(|byte| *byte == b'\n').unwrap();
        let length: usize = std::str::from_utf8(&pack[..end]).unwrap().parse().unwrap();
        inputs.push(&pack[end + 1..end + 1 + length]);
        pack = pack[end + 1 + length..].strip_prefix(b"\n").unwrap();
    }
    inputs
}

/// The words that the inputs are made of, as the fuzzer reads them: it cannot guess a name from how it is compared.
fn dictionary(inputs: &[Vec<u8>]) -> String {
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.-@#!$*{}".contains(byte);
    let words = inputs.iter().flat_map(|input| input.split(move |byte| !is_word(byte)));
    let words: BTreeSet<&[u8]> = words.filter(|word| (2..40).contains(&word.len())).collect();
    let marks =
        [r#"\":{"#, r#"\":["#, r#"\":\""#, r#"\":null"#, r#"\":-1"#, r#",{\""#, r"\x0a%%\x0a", "%00", r"\\u0000"];
    let words = words.into_iter().map(|word| String::from_utf8_lossy(word).into_owned());
    words.chain(marks.map(str::to_owned)).map(|word| format!("\"{word}\"\n")).collect()
}
