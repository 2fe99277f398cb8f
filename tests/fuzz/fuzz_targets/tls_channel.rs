//! `cargo +nightly fuzz run --fuzz-dir tests/fuzz tls_channel`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| incoming::tls::fuzzing::tls_channel(data));
