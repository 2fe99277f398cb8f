//! `cargo +nightly fuzz run --fuzz-dir tests/fuzz recovery`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| incoming::spool::fuzzing::recovery(data));
