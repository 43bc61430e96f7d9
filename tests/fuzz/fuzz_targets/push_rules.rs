//! Push rules, and events that they decide on. What is done with them is in the homeserver (`fuzz/push_rules.rs`).
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| homeserver::fuzz::run("push_rules", input));
