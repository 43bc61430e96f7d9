//! Pictures, and what is said about files. What is done with them is in the homeserver (`fuzz/media.rs`).
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| homeserver::fuzz::run("media", input));
