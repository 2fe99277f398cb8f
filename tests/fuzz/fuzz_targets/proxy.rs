//! `cargo +nightly fuzz run --fuzz-dir tests/fuzz proxy`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| incoming::proxy::fuzz(data));
