//! What the documents name is there: every `file.rs::test` is a test of that file.

use std::fs;
use std::path::{Path, PathBuf};

/// Every Rust file below `folder`.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn every_test_that_a_document_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    ["src", "tests"].iter().for_each(|folder| sources(&root.join(folder), &mut files));
    let mut named = 0;
    let mut missing = Vec::new();
    for document in ["docs/DURABILITY.md", "docs/SMTP.md", "docs/SPOOL.md", "docs/ARCHITECTURE.md"] {
        let text = fs::read_to_string(root.join(document)).expect("a document");
        for word in text.split('`').skip(1).step_by(2) {
            let Some((file, test)) = word.split_once("::") else { continue };
            let is_test = test.contains('_') && test.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            let file = if file == "simulation" { "tests/simulation/main.rs" } else { file };
            if !is_test || !file.ends_with(".rs") {
                continue;
            }
            named += 1;
            let is_there = files.iter().filter(|path| path.ends_with(file)).any(|path| {
                let text = fs::read_to_string(path).expect("a source file");
                text.contains(&format!("fn {test}("))
            });
            if !is_there {
                missing.push(format!("{document}: {word}"));
            }
        }
    }
    assert!(missing.is_empty(), "named and not there:\n{}", missing.join("\n"));
    assert!(named > 100, "the documents name tests: {named}");
}
