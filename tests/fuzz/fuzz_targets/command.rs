//! `cargo +nightly fuzz run --fuzz-dir tests/fuzz command`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| incoming::smtp::fuzzing::command(data));
