//! docs/POLICIES.md says of each policy what there is: every example loads, every type has one, and every key with its default has its row.

use std::collections::BTreeSet;

use incoming::config::policies::PolicyKind;
use incoming::config::{Config, Sources, System};

const REFERENCE: &str = include_str!("../docs/POLICIES.md");

fn load(text: &str) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("incoming.toml");
    std::fs::write(&file, text).unwrap();
    let system = System { hostname: "mx.example.com".into(), cores_count: 2, descriptors_max: 20_000 };
    Config::load(&Sources { file: Some(file), ..Sources::default() }, &system).map_err(|e| e.to_string())
}

fn examples() -> impl Iterator<Item = &'static str> {
    REFERENCE.split("\n```toml\n").skip(1).map(|rest| rest.split_once("\n```").expect("the example ends").0)
}

#[test]
fn every_example_loads_and_every_type_has_one() {
    let mut shown = BTreeSet::new();
    for example in examples() {
        let config = load(example).unwrap_or_else(|e| panic!("{e}\n{example}"));
        shown.extend(config.policies.iter().map(|policy| policy.kind.word()));
        let again = load(&config.to_toml()).unwrap_or_else(|e| panic!("{e}\n{}", config.to_toml()));
        assert_eq!(again, config, "what is printed gives the same configuration");
    }
    let missing: Vec<_> = PolicyKind::WORDS.iter().filter(|word| !shown.contains(*word)).collect();
    assert!(missing.is_empty(), "types without an example: {missing:?}");
}

/// The keys of each type as they are printed for its example: a row for each in the section of the type.
#[test]
fn every_key_of_a_policy_has_a_row_in_its_section() {
    let common = ["type", "name", "dry_run", "on_error", "timeout"];
    let mut missing = BTreeSet::new();
    for example in examples() {
        let printed: toml::Table = toml::from_str(&load(example).unwrap().to_toml()).unwrap();
        for policy in printed.get("policy").and_then(toml::Value::as_array).into_iter().flatten() {
            let word = policy["type"].as_str().unwrap();
            let section = REFERENCE.split("\n## ").find(|section| section.starts_with(&format!("`{word}`")));
            let section = section.unwrap_or_else(|| panic!("no section ## `{word}`"));
            for key in policy.as_table().unwrap().keys().filter(|key| !common.contains(&key.as_str())) {
                if !section.lines().any(|line| line.starts_with(&format!("| `{key}` | "))) {
                    missing.insert(format!("{word}.{key}"));
                }
            }
        }
    }
    assert!(missing.is_empty(), "no row | `key` | default | in docs/POLICIES.md: {missing:?}");
}
