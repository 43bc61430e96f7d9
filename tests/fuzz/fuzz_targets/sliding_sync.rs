//! Bodies of sliding sync. What is done with them is in the homeserver (`fuzz/sliding_sync.rs`).
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| homeserver::fuzz::run("sliding_sync", input));
