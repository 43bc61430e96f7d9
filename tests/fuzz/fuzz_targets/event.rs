//! Events of other servers, contents that give power, identifiers and tokens. What is done with them is in the homeserver (`fuzz/event.rs`).
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| homeserver::fuzz::run("event", input));
