//! The bodies of the fuzz targets over their stored corpora: what the fuzzer once found interesting is tried
//! every time.
//!
//! A corpus file may be added by hand, or copied from `tests/fuzz/artifacts` after a finding. To fuzz on:
//! `cargo +nightly fuzz run --fuzz-dir tests/fuzz <target>`.

use incoming::smtp::fuzzing;
use incoming::{proxy, spool, tls};

type Body = fn(&[u8]);

/// Every target: its folder in `tests/fuzz/corpus` and its body.
const TARGETS: &[(&str, Body)] = &[
    ("command", fuzzing::command),
    ("content", fuzzing::content),
    ("chunks", fuzzing::chunks),
    ("session", fuzzing::session),
    ("recovery", spool::fuzzing::recovery),
    ("proxy", proxy::fuzz),
    ("tls_channel", tls::fuzzing::tls_channel),
];

#[test]
fn every_stored_input_keeps_the_promises() {
    for (target, body) in TARGETS {
        let folder = format!("{}/tests/fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
        let mut count = 0;
        for entry in std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{folder}: {e}")) {
            let path = entry.expect("a file").path();
            let data = std::fs::read(&path).expect("a readable file");
            let result = std::panic::catch_unwind(|| body(&data));
            assert!(
                result.is_ok(),
                "replay: cargo +nightly fuzz run --fuzz-dir tests/fuzz {target} {path:?}"
            );
            count += 1;
        }
        assert!(count > 0, "{folder} is empty");
    }
}

#[test]
fn every_target_of_the_fuzz_crate_is_run_here() {
    let manifest = include_str!("fuzz/Cargo.toml");
    let listed = manifest.lines().filter(|line| line.starts_with("path = \"fuzz_targets/")).count();
    assert_eq!(listed, TARGETS.len());
    for (target, _) in TARGETS {
        assert!(manifest.contains(&format!("name = \"{target}\"")), "{target}");
    }
}
