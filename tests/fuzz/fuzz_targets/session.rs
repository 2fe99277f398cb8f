//! `cargo +nightly fuzz run --fuzz-dir tests/fuzz session`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| incoming::smtp::fuzzing::session(data));
