//! `cargo +nightly fuzz run --fuzz-dir tests/fuzz chunks`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| incoming::smtp::fuzzing::chunks(data));
