//! Versions of dependencies that must not come back: each has an advisory that matters to a server of strangers.
//!
//! Reads `Cargo.lock` alone, so that it needs no network and no database.

use std::fs;
use std::path::Path;

/// Package, first good version, and why.
const FLOORS: [(&str, Version, &str); 4] = [
    ("crossbeam-channel", (0, 5, 15), "RUSTSEC-2025-0024: double free when a channel is dropped"),
    ("rustls", (0, 23, 18), "RUSTSEC-2024-0399: a fragmented ClientHello panics the server"),
    ("bytes", (1, 11, 1), "RUSTSEC-2026-0007: integer overflow in BytesMut::reserve"),
    ("tracing-subscriber", (0, 3, 20), "RUSTSEC-2025-0055: escape sequences of a peer reach the terminal"),
];

type Version = (u64, u64, u64);

#[test]
fn no_locked_version_has_a_known_advisory() {
    let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock");
    let lock = fs::read_to_string(lock).expect("Cargo.lock");
    let packages = packages(&lock);
    assert!(packages.iter().any(|(name, _)| name == "crossbeam-channel"), "the lock file is read");
    for (name, floor, why) in FLOORS {
        for (_, version) in packages.iter().filter(|(package, _)| package == name) {
            let number = parse(version).unwrap_or_else(|| panic!("{name} has the version {version}"));
            assert!(number >= floor, "{name} {version} is locked; at least {floor:?} is needed: {why}");
        }
    }
}

/// Name and version of every `[[package]]`.
fn packages(lock: &str) -> Vec<(String, String)> {
    let value = |block: &str, key: &str| {
        let line = block.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "))?;
        Some(line.trim_matches('"').to_string())
    };
    let blocks = lock.split("[[package]]").skip(1);
    blocks.filter_map(|block| Some((value(block, "name")?, value(block, "version")?))).collect()
}

fn parse(version: &str) -> Option<Version> {
    let mut numbers = version.split(['-', '+']).next()?.splitn(3, '.').map(|n| n.parse().ok());
    Some((numbers.next()??, numbers.next()??, numbers.next()??))
}
