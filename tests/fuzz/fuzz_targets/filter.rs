//! Filters. What is done with them is in the homeserver (`fuzz/filter.rs`).
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| homeserver::fuzz::run("filter", input));
