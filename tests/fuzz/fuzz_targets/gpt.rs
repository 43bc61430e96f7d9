//! Partition tables, as the updater and the first process read them. What is done with them is in the updater (`fuzz`).
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| updater::fuzz::run(input));
