//! Signed bundles and their parts. What is done with them is in their crate (`fuzz.rs`).
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| bundle::fuzz::run(input));
