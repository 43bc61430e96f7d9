//! Whole requests. What is done with them is in the homeserver (`fuzz/request.rs`).
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| homeserver::fuzz::run("request", input));
